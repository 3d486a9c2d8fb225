//! One line of a manifest: a chunk's codec, multihash and length, in 40 bytes (`SPEC.md`, "Manifests").

use crate::{Cid, Codec, Key, MAX_CHUNK_BYTES, Multihash, cid::MULTIHASH_BYTES};

/// Bytes of an entry: codec, multihash, length, one spare.
pub const ENTRY_BYTES: usize = 1 + MULTIHASH_BYTES + 4 + 1;

/// A chunk that a manifest lists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// The chunk's address.
    pub cid: Cid,
    /// Its bytes, at most [`MAX_CHUNK_BYTES`].
    pub length: u32,
}

impl Entry {
    /// Where the chunk stands in the keyspace, and so in the manifest.
    pub fn key(&self) -> Key {
        Key::from(&self.cid.hash)
    }

    /// The binary form; the spare byte is zero.
    pub fn to_bytes(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[0] = self.cid.codec.code();
        bytes[1..35].copy_from_slice(&self.cid.hash.to_bytes());
        bytes[35..39].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Reads the binary form; `None` where it is malformed: another codec or hash function, a length over the bound, a
    /// spare byte that is not zero.
    pub fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let codec = Codec::from_code(u64::from(bytes[0]))?;
        let hash = Multihash::from_bytes(&bytes[1..35]).ok()?;
        let length = u32::from_be_bytes(bytes[35..39].try_into().ok()?);
        let valid = length as usize <= MAX_CHUNK_BYTES && bytes[39] == 0;
        valid.then_some(Self { cid: Cid { codec, hash }, length })
    }
}
