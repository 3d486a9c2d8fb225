//! UnixFS: files, directories and symbolic links as DAGs of chunks (ipfs/specs UNIXFS.md, DAG-PB; IPIP-499 for the profile).
//!
//! Building is streaming and pure: leaves and entries go in, finished inner nodes come out. Reading is total: any bytes
//! either decode or end in a [`DagError`], and the walkers ask for the chunks they need instead of fetching them.

mod build_directory;
mod build_file;
mod error;
mod hamt;
mod lookup;
mod name;
mod node;
mod pb;
mod unixfs;
mod walk_directory;
mod walk_file;

use bytes::Bytes;

pub use build_directory::{DirectoryBuilder, MAX_ENTRIES, MAX_TARGET_BYTES, symlink, symlink_with_profile};
pub use build_file::FileBuilder;
pub(crate) use build_file::node_bytes;
pub use error::DagError;
pub use lookup::{Lookup, NameLookup};
pub use name::{MAX_NAME_BYTES, check_name};
pub use node::{ChildLink, Entry, Leaf, Node, Part, ShardLink, check_leaf, decode, links};
pub use walk_directory::{DirectoryWalker, MAX_WANTED};
pub use walk_file::{FileWalker, MAX_DEPTH, MAX_WAITING, Step};

use crate::{Chunk, Cid, Codec, HashCode, cid::Multihash};

/// A finished part of a DAG, as its parent refers to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Link {
    /// Its root.
    pub cid: Cid,
    /// Content bytes under it: the file's, or the sum of all files' in the directory.
    pub size: u64,
    /// Bytes of all chunks under it, the root included, repeats counted (what DAG-PB calls Tsize).
    pub tsize: u64,
}

impl Link {
    /// The link to a raw leaf.
    pub fn leaf(chunk: &Chunk) -> Self {
        let length = chunk.len() as u64;
        Self { cid: *chunk.cid(), size: length, tsize: length }
    }
}

/// Mode and modification time, where they were asked to be kept (UnixFS 1.5). The default is neither.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Metadata {
    /// Permission bits, the low twelve (0o7777); higher ones are neither written nor read.
    pub mode: Option<u32>,
    /// Seconds since the Unix epoch, and nanoseconds after them (below 1,000,000,000).
    pub mtime: Option<(i64, u32)>,
}

impl Metadata {
    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.mode.is_none() && self.mtime.is_none()
    }
}

/// How DAGs are laid out. The addresses of equal content are equal only under equal profiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Links that an inner node of a file has at most.
    width: usize,
    /// A directory whose block would have more bytes is sharded.
    flat_bytes: usize,
    /// What addresses are made with.
    hash: HashCode,
}

impl Profile {
    /// `unixfs-v1-2025` with BLAKE3: 1024 links a node, directories sharded over 256 KiB.
    pub const STANDARD: Self = Self { width: 1024, flat_bytes: 256 * 1024, hash: HashCode::Blake3 };

    /// With another number of links a node: 2 to 8192 (a node of 8192 links stays under 2 MiB); other numbers become the nearest.
    pub fn with_width(self, width: usize) -> Self {
        Self { width: width.clamp(2, 8192), ..self }
    }

    /// With another size over which directories are sharded: at most 1 MiB, so that the block is a valid chunk.
    pub fn with_flat_bytes(self, flat_bytes: usize) -> Self {
        Self { flat_bytes: flat_bytes.min(1024 * 1024), ..self }
    }

    /// With another hash function.
    pub fn with_hash(self, hash: HashCode) -> Self {
        Self { hash, ..self }
    }

    /// Makes the chunk of a node or of an empty leaf. The builders' own bounds keep every node below the size of a chunk.
    fn chunk(self, codec: Codec, bytes: Vec<u8>) -> Chunk {
        let bytes = Bytes::from(bytes);
        let made = match self.hash {
            HashCode::Blake3 => Chunk::new(codec, bytes),
            hash => Chunk::verify(Cid { codec, hash: Multihash::of(hash, &bytes) }, bytes),
        };
        made.expect("the builders bound the links, names and targets of a node below 2 MiB, and the hash was just made")
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::STANDARD
    }
}

#[cfg(test)]
mod tests;
