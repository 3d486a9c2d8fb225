//! The records of a segment, byte by byte (protocol/SPEC.md, "On disk"): their headers, checksums and bodies.
//!
//! A header's checksum covers the segment's salt and the record's offset, so a record is only valid where it was
//! written: bytes of a payload that look like a record never become one, however they were crafted.

use bytes::Bytes;
use p2p_protocol::{
    Cid, Codec, MAX_CHUNK_BYTES, Multihash,
    cid::{CID_BYTES, MULTIHASH_BYTES},
};

use super::{Entry, Role, Terms};

/// Bytes of the header of a chunk, an amendment or a deletion.
pub(super) const HEAD_BYTES: usize = 96;
/// Bytes of the header of a value.
pub(super) const VALUE_HEAD_BYTES: usize = 32;
/// The most bytes that the key of a value may have: it is part of an index key.
pub(super) const MAX_KEY_BYTES: usize = 512;
/// The most bytes that a value may have: what a gossip message may have, which is what values come from.
pub(super) const MAX_VALUE_BYTES: usize = 64 * 1024;
/// The most copies that can be wanted.
const MAX_WANTED: u8 = 16;

/// What every record begins with. The first and last byte are not ASCII, so text never looks like it.
pub(super) const MAGIC: [u8; 4] = [0xc5, b'p', b'2', 0xa9];

/// A segment's random bytes, without which none of its records can be made or read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Salt(pub(super) [u8; 16]);

/// Why a chunk is not here any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gone {
    /// A cache that gave way.
    Evicted,
    /// It was asked for.
    Removed,
    /// Its bytes do not match its address: it is to be fetched again on the terms that the record carries.
    Damaged,
}

/// What is appended to the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Record {
    /// A chunk and its terms.
    Chunk(Entry, Bytes),
    /// The terms of a chunk from now on.
    Amendment(Entry),
    /// The chunk is gone.
    Deletion(Entry, Gone),
    /// A key and its value; the last one holds.
    Value(Bytes, Bytes),
}

/// A header that was read: what the record is, without its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Head {
    /// A chunk; the body is its payload.
    Chunk(Entry),
    /// See [`Record::Amendment`].
    Amendment(Entry),
    /// See [`Record::Deletion`].
    Deletion(Entry, Gone),
    /// A value; the body is key and value.
    Value {
        /// Bytes of the key.
        key: usize,
        /// Bytes of the value.
        value: usize,
        /// Of the body.
        checksum: [u8; 8],
    },
}

impl Head {
    /// Bytes of the header.
    pub(super) fn head_bytes(&self) -> u64 {
        match self {
            Self::Value { .. } => VALUE_HEAD_BYTES as u64,
            _ => HEAD_BYTES as u64,
        }
    }

    /// Bytes of the body.
    pub(super) fn body_bytes(&self) -> u64 {
        match self {
            Self::Chunk(entry) => u64::from(entry.length),
            Self::Value { key, value, .. } => (key + value) as u64,
            Self::Amendment(_) | Self::Deletion(..) => 0,
        }
    }

    /// Reads the header at the start of `bytes`, which stood at `offset` of the segment with `salt`; `None` where
    /// there is no valid one.
    pub(super) fn decode(bytes: &[u8], salt: Salt, offset: u64) -> Option<Self> {
        if bytes.get(..4)? != MAGIC {
            return None;
        }
        let kind = *bytes.get(4)?;
        let length = if kind == 4 { VALUE_HEAD_BYTES } else { HEAD_BYTES };
        let head = bytes.get(..length)?;
        let (fields, sum) = head.split_at(length - 8);
        if checksum(salt, offset, fields) != sum {
            return None;
        }
        if kind == 4 {
            let key = usize::from(u16::from_be_bytes(array(head, 6)?));
            let value = usize::try_from(u32::from_be_bytes(array(head, 8)?)).ok()?;
            if key > MAX_KEY_BYTES || value > MAX_VALUE_BYTES {
                return None;
            }
            return Some(Self::Value { key, value, checksum: array(head, 12)? });
        }
        let entry = decode_entry(head)?;
        match (kind, head[9]) {
            (1, 0) => Some(Self::Chunk(entry)),
            (2, 0) => Some(Self::Amendment(entry)),
            (3, 0) => Some(Self::Deletion(entry, Gone::Evicted)),
            (3, 1) => Some(Self::Deletion(entry, Gone::Removed)),
            (3, 2) => Some(Self::Deletion(entry, Gone::Damaged)),
            _ => None,
        }
    }
}

impl Record {
    /// Bytes of header and body.
    pub(super) fn total_bytes(&self) -> u64 {
        match self {
            Self::Chunk(_, payload) => (HEAD_BYTES + payload.len()) as u64,
            Self::Amendment(_) | Self::Deletion(..) => HEAD_BYTES as u64,
            Self::Value(key, value) => (VALUE_HEAD_BYTES + key.len() + value.len()) as u64,
        }
    }

    /// Appends the header to `out`, as it stands at `offset` of the segment with `salt`.
    pub(super) fn encode_head(&self, salt: Salt, offset: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        match self {
            Self::Chunk(entry, _) => encode_entry(entry, 1, 0, out),
            Self::Amendment(entry) => encode_entry(entry, 2, 0, out),
            Self::Deletion(entry, gone) => {
                let reason = match gone {
                    Gone::Evicted => 0,
                    Gone::Removed => 1,
                    Gone::Damaged => 2,
                };
                encode_entry(entry, 3, reason, out);
            }
            Self::Value(key, value) => {
                out.extend_from_slice(&[4, 0]);
                // Both were bounded when they were taken (`MAX_KEY_BYTES`, `MAX_VALUE_BYTES`).
                out.extend_from_slice(&(key.len() as u16).to_be_bytes());
                out.extend_from_slice(&(value.len() as u32).to_be_bytes());
                out.extend_from_slice(&body_checksum(key, value));
                out.extend_from_slice(&[0; 4]);
            }
        }
        let sum = checksum(salt, offset, &out[start..]);
        out.extend_from_slice(&sum);
    }

    /// The parts of the body, in order.
    pub(super) fn body(&self) -> [&Bytes; 2] {
        static EMPTY: Bytes = Bytes::new();
        match self {
            Self::Chunk(_, payload) => [payload, &EMPTY],
            Self::Amendment(_) | Self::Deletion(..) => [&EMPTY, &EMPTY],
            Self::Value(key, value) => [key, value],
        }
    }
}

/// The first eight bytes of BLAKE3 over the key and the value.
pub(super) fn body_checksum(key: &[u8], value: &[u8]) -> [u8; 8] {
    first_eight(blake3::Hasher::new().update(key).update(value))
}

fn checksum(salt: Salt, offset: u64, fields: &[u8]) -> [u8; 8] {
    first_eight(blake3::Hasher::new().update(&salt.0).update(&offset.to_be_bytes()).update(fields))
}

pub(super) fn first_eight(hasher: &blake3::Hasher) -> [u8; 8] {
    let mut out = [0; 8];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn encode_entry(entry: &Entry, kind: u8, reason: u8, out: &mut Vec<u8>) {
    let Entry { cid, length, terms } = entry;
    out.extend_from_slice(&[kind, cid.codec.code(), role_code(terms.role), terms.wanted, flags(terms), reason, 0, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&cid.hash.to_bytes());
    out.extend_from_slice(&terms.root.map_or([0; CID_BYTES], |root| root.to_bytes()));
    out.extend_from_slice(&[0; 2]);
}

fn decode_entry(head: &[u8]) -> Option<Entry> {
    let codec = Codec::from_code(u64::from(head[5]))?;
    let length = u32::from_be_bytes(array(head, 12)?);
    if length as usize > MAX_CHUNK_BYTES {
        return None;
    }
    let hash = Multihash::from_bytes(head.get(16..16 + MULTIHASH_BYTES)?).ok()?;
    let terms = decode_terms(head[6], head[7], head[8], head.get(50..50 + CID_BYTES)?)?;
    Some(Entry { cid: Cid { codec, hash }, length, terms })
}

/// The byte of a role.
pub(super) fn role_code(role: Role) -> u8 {
    match role {
        Role::Replica => 0,
        Role::Cache => 1,
    }
}

/// Bit 0: owed; bit 1: there is a root.
pub(super) fn flags(terms: &Terms) -> u8 {
    u8::from(terms.owed) | (u8::from(terms.root.is_some()) << 1)
}

/// The terms of their four fields; `root` is only read where its flag is set.
pub(super) fn decode_terms(role: u8, wanted: u8, flags: u8, root: &[u8]) -> Option<Terms> {
    let role = match role {
        0 => Role::Replica,
        1 => Role::Cache,
        _ => return None,
    };
    if wanted > MAX_WANTED || flags > 3 {
        return None;
    }
    let root = if flags & 2 == 0 { None } else { Some(Cid::from_bytes(root).ok()?) };
    Some(Terms { role, wanted, owed: flags & 1 == 1, root })
}

/// The `N` bytes at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
