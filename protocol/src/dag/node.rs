//! Reading one chunk: what it is, and what it links to. Total: any bytes give a [`Node`] or a [`DagError`].

use std::collections::HashSet;

use bytes::Bytes;

use super::{
    DagError, MAX_TARGET_BYTES, Metadata, check_name,
    hamt::Fanout,
    pb::{self, PbNode},
    unixfs::{MURMUR3_X64_64, Message, Type},
};
use crate::{Chunk, Cid, Codec};

/// What a chunk is. Everything that one node can state wrongly was checked; what its children are is the walkers' to check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    /// Bytes of a file, or a file of its own: a raw chunk, or a UnixFS node with its content inside.
    Leaf(Leaf),
    /// A file, or a part of one, with parts below.
    File {
        /// Content bytes, inline ones and all parts': they add up.
        size: u64,
        /// Content before that of the parts; empty in all common layouts.
        inline: Bytes,
        /// In the order of the file.
        parts: Vec<Part>,
        /// Of the root only.
        metadata: Metadata,
    },
    /// A directory in one chunk.
    Directory {
        /// In the order they stand in; names were checked and are distinct.
        entries: Vec<Entry>,
        /// Its mode and time.
        metadata: Metadata,
    },
    /// A sharded directory's root, or one of its inner shards.
    Shard {
        /// How many places it has, 8 to 1024, a power of two.
        fanout: u64,
        /// In the order of their places.
        links: Vec<ShardLink>,
        /// Of the root only.
        metadata: Metadata,
    },
    /// A symbolic link.
    Symlink {
        /// As it was written: any bytes, 1 to [`MAX_TARGET_BYTES`].
        target: Bytes,
        /// Its mode and time.
        metadata: Metadata,
    },
}

/// Content without links.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The content.
    pub bytes: Bytes,
    /// None for raw chunks.
    pub metadata: Metadata,
}

/// A part of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Its chunk.
    pub cid: Cid,
    /// Content bytes under it, as its parent says.
    pub size: u64,
    /// Bytes of all chunks under it, as its parent says; nothing checks it.
    pub tsize: u64,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// A checked name ([`check_name`]).
    pub name: String,
    /// Its root.
    pub cid: Cid,
    /// Bytes of all chunks under it, as the directory says; nothing checks it.
    pub tsize: u64,
}

/// A link of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardLink {
    /// Its place, below the fanout.
    pub place: usize,
    /// An entry's root, or the shard below.
    pub cid: Cid,
    /// As the shard says; nothing checks it.
    pub tsize: u64,
    /// The entry's checked name; `None` for a shard below.
    pub name: Option<String>,
}

/// A child of any node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChildLink {
    /// Its chunk.
    pub cid: Cid,
    /// Bytes of all chunks under it, as its parent says; nothing checks it.
    pub tsize: u64,
}

impl Node {
    /// Mode and time, where they were kept.
    pub fn metadata(&self) -> Metadata {
        match self {
            Self::Leaf(Leaf { metadata, .. })
            | Self::File { metadata, .. }
            | Self::Directory { metadata, .. }
            | Self::Shard { metadata, .. }
            | Self::Symlink { metadata, .. } => *metadata,
        }
    }

    /// Content bytes, where the node says: a file's or a leaf's.
    pub fn file_size(&self) -> Option<u64> {
        match self {
            Self::Leaf(leaf) => Some(leaf.bytes.len() as u64),
            Self::File { size, .. } => Some(*size),
            Self::Directory { .. } | Self::Shard { .. } | Self::Symlink { .. } => None,
        }
    }

    /// Whether it is a directory, sharded or not.
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory { .. } | Self::Shard { .. })
    }
}

/// Reads a chunk. Allocates in proportion to it.
pub fn decode(chunk: &Chunk) -> Result<Node, DagError> {
    if chunk.cid().codec == Codec::Raw {
        return Ok(Node::Leaf(Leaf { bytes: chunk.bytes().clone(), metadata: Metadata::default() }));
    }
    let PbNode { links, data } = pb::decode(chunk.bytes())?;
    let data = data.ok_or(DagError::UnixFs("it has no data"))?;
    let message = Message::decode(&data, links.len())?;
    match message.kind {
        Type::Raw | Type::File => file(links, message),
        Type::Directory => directory(links, &message),
        Type::HamtShard => shard(links, message),
        Type::Symlink if !links.is_empty() => Err(DagError::UnixFs("a symbolic link has links")),
        Type::Symlink => {
            let target = message.data.unwrap_or_default();
            if target.is_empty() || target.len() > MAX_TARGET_BYTES {
                return Err(DagError::Target { length: target.len() });
            }
            Ok(Node::Symlink { target, metadata: message.metadata })
        }
    }
}

fn file(links: Vec<pb::PbLink>, message: Message) -> Result<Node, DagError> {
    let inline = message.data.unwrap_or_default();
    if links.len() != message.block_sizes.len() {
        return Err(DagError::Sizes("there are fewer block sizes than links"));
    }
    let parts: Vec<Part> = links
        .iter()
        .zip(&message.block_sizes)
        .map(|(link, size)| Part { cid: link.cid, size: *size, tsize: link.tsize })
        .collect();
    let size = parts
        .iter()
        .try_fold(inline.len() as u64, |sum, part| sum.checked_add(part.size))
        .ok_or(DagError::Sizes("the parts of a file have over 2^64 bytes"))?;
    if message.file_size.is_some_and(|stated| stated != size) {
        return Err(DagError::Sizes("the parts of a file are not as long as the file"));
    }
    let metadata = message.metadata;
    if parts.is_empty() {
        return Ok(Node::Leaf(Leaf { bytes: inline, metadata }));
    }
    Ok(Node::File { size, inline, parts, metadata })
}

fn directory(links: Vec<pb::PbLink>, message: &Message) -> Result<Node, DagError> {
    let mut entries = Vec::with_capacity(links.len());
    let mut names = HashSet::with_capacity(links.len());
    for link in &links {
        let name = check_name(&link.name)?;
        if !names.insert(name) {
            return Err(DagError::DuplicateName { name: name.to_owned() });
        }
        entries.push(Entry { name: name.to_owned(), cid: link.cid, tsize: link.tsize });
    }
    Ok(Node::Directory { entries, metadata: message.metadata })
}

fn shard(links: Vec<pb::PbLink>, message: Message) -> Result<Node, DagError> {
    if message.hash_type != Some(MURMUR3_X64_64) {
        return Err(DagError::Shard("its hash function is not murmur3-x64-64"));
    }
    let fanout = Fanout::new(message.fanout.unwrap_or_default())?;
    let places = fanout.taken(&message.data.unwrap_or_default())?;
    if places.len() != links.len() {
        return Err(DagError::Shard("its bitfield has another number of places than it has links"));
    }
    let mut read = Vec::with_capacity(links.len());
    for (place, link) in places.into_iter().zip(links) {
        let Some(name) = link.name.strip_prefix(fanout.prefix(place).as_bytes()) else {
            return Err(DagError::Shard("a link's name does not begin with its place"));
        };
        let name = if name.is_empty() { None } else { Some(check_name(name)?.to_owned()) };
        read.push(ShardLink { place, cid: link.cid, tsize: link.tsize, name });
    }
    Ok(Node::Shard { fanout: fanout.places() as u64, links: read, metadata: message.metadata })
}

/// The content of a leaf that its parent says has `expected` bytes: a raw chunk's, or that inside a UnixFS node.
pub fn check_leaf(chunk: &Chunk, expected: u64) -> Result<Bytes, DagError> {
    let cid = *chunk.cid();
    match decode(chunk)? {
        Node::Leaf(Leaf { bytes, .. }) if bytes.len() as u64 == expected => Ok(bytes),
        node => match node.file_size() {
            Some(found) => Err(DagError::Length { cid, expected, found }),
            None => Err(DagError::NotAFile(cid)),
        },
    }
}

/// All children of a chunk, in order, repeats included: none for a raw one. Works for any DAG-PB, UnixFS or not.
pub fn links(chunk: &Chunk) -> Result<Vec<ChildLink>, DagError> {
    if chunk.cid().codec == Codec::Raw {
        return Ok(Vec::new());
    }
    let links = pb::decode(chunk.bytes())?.links;
    Ok(links.into_iter().map(|link| ChildLink { cid: link.cid, tsize: link.tsize }).collect())
}
