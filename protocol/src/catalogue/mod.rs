//! The catalogue: signed publications, and for each place the versions of it that stand.
//!
//! A [`Publication`] is what a publisher says of a root. [`SignedPublication`] is its form on the wire and on
//! disk: holding one is the proof that its signature was checked for this network. [`Versions`] says which of those of one
//! place stand, [`Catalogue`] is the map of them that every node arrives at, whatever the order of arrival. The formats
//! are in `SPEC.md`, "Publications".

mod body;
mod entries;
mod handles;
mod invalid;
mod map;
mod name;
mod shares;
mod signed;
mod versions;

#[cfg(test)]
mod limits_tests;
#[cfg(test)]
mod map_tests;

pub use body::{FORMAT_VERSION, MAX_CHUNKS, MAX_EXTENSION_BYTES, MAX_SIZE_BYTES, MAX_TIME_MILLISECONDS};
pub use invalid::InvalidPublication;
pub use map::{Catalogue, Dropped, Kept, Merge, Outcome};
pub use name::{MAX_NAME_BYTES, NameError, check_label, check_name, label_from};
pub use shares::{Class, Limits, MAX_ENTRIES};
pub(crate) use signed::read_unsigned;
pub use signed::{MAX_ENTRY_BYTES, MAX_NETWORK_BYTES, MAX_SIGNED_BYTES, PublicationId, SignedPublication};
pub use versions::{MAX_VERSIONS, Merged, Standing, Versions};

use crate::{Cid, HashCode, Multihash, PeerId, manifest::Listing};

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
    /// Copies wanted, 1 to 16: what is known of the byte that says how redundantly the chunks are kept.
    pub replicas: u8,
    /// Distinct chunks of the root's DAG, 1 to [`MAX_CHUNKS`].
    pub chunks: u64,
    /// Which they are: themselves if they are few, else by their manifest.
    pub listing: Listing,
    /// From 1, one more than the highest seen for the same key.
    pub version: u64,
    /// The lowest version that is kept, 1 to `version`; of a removal: its own.
    pub floor: u64,
    /// Milliseconds since the Unix epoch; for people, never for order.
    pub time_milliseconds: u64,
    /// A removal. It says what it removed, so that whoever has it can tell what could be restored, and refers to nothing.
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

    /// Its body, as it would be signed: for a node's own records.
    ///
    /// # Errors
    /// Where it is none that may be signed.
    pub fn to_unsigned_bytes(&self) -> Result<Vec<u8>, InvalidPublication> {
        body::check(self)?;
        body::encode(self, &[], 0)
    }

    /// Reads what [`to_unsigned_bytes`](Self::to_unsigned_bytes) gives. Nobody's word stands behind it.
    ///
    /// # Errors
    /// Where it is not that.
    pub fn from_unsigned_bytes(bytes: &[u8]) -> Result<Self, InvalidPublication> {
        body::check_known(bytes)?;
        let (publication, _) = body::decode(bytes)?;
        body::check(&publication)?;
        Ok(publication)
    }

    /// Under which its signed bytes are kept.
    pub fn version_key(&self) -> VersionKey {
        VersionKey { place: self.key().place(), version: self.version }
    }
}

/// Where an entry stands: the hash of its publisher and of its name or, without one, its root.
///
/// BLAKE3 in key-derivation mode over the peer id's bytes, one byte that tells names (1) from roots (0), and the
/// name's or the CID's bytes. A hash, so that every key has one size in memory and on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EntryKey(pub [u8; 32]);

/// A version of an entry, among all.
///
/// The beginning of the entry's key tells places apart: the rest would take memory, and save nobody. Whoever finds two of
/// their own names or roots with one beginning (2^64 hashes) has them in one place, and nobody else's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VersionKey {
    /// See [`EntryKey::place`].
    pub place: [u8; 16],
    /// Which version.
    pub version: u64,
}

impl EntryKey {
    const CONTEXT: &'static str = "p2p-node 2026 catalogue entry key";

    /// Its first 16 bytes.
    pub fn place(&self) -> [u8; 16] {
        let mut place = [0; 16];
        place.copy_from_slice(&self.0[..16]);
        place
    }

    /// An address in its place, which nothing has: an entry is kept, beside everybody, by the storing peers that would
    /// keep a chunk of this address, and they answer for it.
    pub fn address(&self) -> Multihash {
        Multihash { code: HashCode::Blake3, digest: self.0 }
    }

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
