//! The catalogue: signed publications, merged as a last-writer-wins map.
//!
//! A [`Publication`] is what a publisher says of a root. [`SignedPublication`] is its form on the wire and on
//! disk: holding one is the proof that its signature was checked for this network. [`Catalogue`] is the map
//! of them that every node arrives at, whatever the order of arrival. The formats are in `SPEC.md`, "Publications".

mod map;
mod name;
mod signed;

#[cfg(test)]
mod map_tests;

pub use map::{Catalogue, Limits, MAX_ENTRIES, MAX_ENTRIES_PER_PUBLISHER, Merge, Outcome};
pub use name::{MAX_NAME_BYTES, NameError, check_label, check_name, label_from};
pub use signed::{
    FORMAT_VERSION, InvalidPublication, MAX_ENTRY_BYTES, MAX_EXTENSION_BYTES, MAX_NETWORK_BYTES, MAX_SIGNED_BYTES,
    MAX_TIME_MILLISECONDS, PublicationId, SignedPublication,
};
pub(crate) use signed::{extension, read_checked};

use crate::{Cid, PeerId};

/// The fewest copies that a publication may ask for.
pub const MIN_REPLICAS: u8 = 1;
/// The most copies that a publication may ask for.
pub const MAX_REPLICAS: u8 = 16;

/// What a root is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

impl Kind {
    /// Its byte in the format.
    pub const fn code(self) -> u8 {
        match self {
            Self::File => 0,
            Self::Directory => 1,
            Self::Symlink => 2,
        }
    }

    /// The kind of a byte of the format.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::File),
            1 => Some(Self::Directory),
            2 => Some(Self::Symlink),
            _ => None,
        }
    }
}

/// What a publisher says of a root, before it is signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication {
    /// Who says so.
    pub publisher: PeerId,
    /// The name it stands under; `None`: under its root.
    pub name: Option<String>,
    /// The file's name, for people; never a key. A single valid path component, at most 255 bytes.
    pub label: String,
    /// The root.
    pub root: Cid,
    /// What the root is.
    pub kind: Kind,
    /// Content bytes.
    pub size: u64,
    /// Copies wanted.
    pub replicas: u8,
    /// From 1, one more than the highest seen for the same key.
    pub version: u64,
    /// Milliseconds since the Unix epoch; for people, never for order.
    pub time_milliseconds: u64,
    /// A removal.
    pub removed: bool,
}

impl Publication {
    /// Where it stands in the catalogue.
    pub fn key(&self) -> EntryKey {
        match &self.name {
            Some(name) => EntryKey::named(&self.publisher, name),
            None => EntryKey::unnamed(&self.publisher, &self.root),
        }
    }
}

/// Where an entry stands: the hash of its publisher and of its name or, without one, its root.
///
/// BLAKE3 in key-derivation mode over the peer id's bytes, one byte that tells names (1) from roots (0), and the
/// name's or the CID's bytes. A hash, so that every key has one size in memory and on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EntryKey(pub [u8; 32]);

impl EntryKey {
    const CONTEXT: &'static str = "p2p-node 2026 catalogue entry key";

    /// The place of what `publisher` has under a name.
    pub fn named(publisher: &PeerId, name: &str) -> Self {
        Self::derive(publisher, 1, name.as_bytes())
    }

    /// The place of what `publisher` has without a name.
    pub fn unnamed(publisher: &PeerId, root: &Cid) -> Self {
        Self::derive(publisher, 0, &root.to_bytes())
    }

    fn derive(publisher: &PeerId, tag: u8, slot: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(Self::CONTEXT);
        hasher.update(&publisher.to_bytes()).update(&[tag]).update(slot);
        Self(*hasher.finalize().as_bytes())
    }
}
