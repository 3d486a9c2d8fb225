//! The records of a segment, byte by byte (protocol/SPEC.md, "On disk"): their headers, checksums and bodies.
//!
//! A header's checksum covers the segment's salt and the record's offset, so a record is only valid where it was
//! written: bytes of a payload that look like a record never become one, however they were crafted.

use bytes::Bytes;
use p2p_protocol::{Cid, Codec, MAX_CHUNK_BYTES, Multihash, cid::MULTIHASH_BYTES};

use super::Entry;

/// What every header begins with, whatever the record's kind: all that is needed to check it and to step over it.
pub(super) const COMMON_BYTES: usize = 24;
/// Bytes of the header of a chunk or a deletion.
pub(super) const HEAD_BYTES: usize = 80;
/// Bytes of the header of a value, or of a value's deletion.
pub(super) const VALUE_HEAD_BYTES: usize = 40;
/// The most bytes that a header of any kind may have: what a walk reads at once is more.
const MAX_HEAD_BYTES: usize = 1024;
/// The most bytes that the key of a value may have: it is part of an index key.
pub(super) const MAX_KEY_BYTES: usize = 512;
/// The most bytes that a value may have: what a gossip message may have, which is what values come from.
pub(super) const MAX_VALUE_BYTES: usize = 64 * 1024;
/// Where the checksum stands in a header.
const SUM_AT: usize = 16;
/// Where the origin stands in the header of a chunk's deletion.
const ORIGIN_AT: usize = 66;

/// What every record begins with. The first and last byte are not ASCII, so text never looks like it.
pub(super) const MAGIC: [u8; 4] = [0xc5, b'p', b'2', 0xa9];

/// A segment's random bytes, without which none of its records can be made or read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Salt(pub(super) [u8; 16]);

/// Why a chunk is not here any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gone {
    /// It was asked for.
    Removed,
    /// Its bytes do not match its address: it is to be fetched again.
    Damaged,
}

/// What is appended to the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Record {
    /// A chunk.
    Chunk(Entry, Bytes),
    /// The chunk is gone.
    Deletion(Entry, Gone, Origin),
    /// A key and its value; the last one holds.
    Value(Bytes, Bytes),
    /// The key has no value any more.
    Unset(Bytes, Origin),
}

/// Where a deletion was appended first: the number of that segment, or `None` where it still stands there. What it
/// deletes is in that segment or in older ones, however often the deletion itself was copied since.
pub(super) type Origin = Option<u32>;

/// A header that was read: what the record is, without its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Head {
    /// A chunk; the body is its payload.
    Chunk(Entry),
    /// See [`Record::Deletion`].
    Deletion(Entry, Gone, Origin),
    /// A value; the body is key and value.
    Value {
        /// Bytes of the key.
        key: usize,
        /// Bytes of the value.
        value: usize,
        /// Of the body.
        checksum: [u8; 8],
    },
    /// See [`Record::Unset`]; the body is the key.
    Unset {
        /// Bytes of the key.
        key: usize,
        /// Of the body.
        checksum: [u8; 8],
        /// See [`Origin`].
        origin: Origin,
    },
    /// Intact, and of a kind, a length or with fields that only a newer version knows.
    Unknown {
        /// Bytes of its header.
        head: u16,
        /// Bytes of its body.
        body: u32,
    },
}

impl Head {
    /// Bytes of the header.
    pub(super) fn head_bytes(&self) -> u64 {
        match self {
            Self::Value { .. } | Self::Unset { .. } => VALUE_HEAD_BYTES as u64,
            Self::Unknown { head, .. } => u64::from(*head),
            _ => HEAD_BYTES as u64,
        }
    }

    /// Bytes of the body.
    pub(super) fn body_bytes(&self) -> u64 {
        match self {
            Self::Chunk(entry) => u64::from(entry.length),
            Self::Value { key, value, .. } => (key + value) as u64,
            Self::Unset { key, .. } => *key as u64,
            Self::Unknown { body, .. } => u64::from(*body),
            Self::Deletion(..) => 0,
        }
    }

    /// The length that a header claims to have; `None` where none begins. `bytes`: at least its common part.
    pub(super) fn claimed_bytes(bytes: &[u8]) -> Option<usize> {
        if bytes.get(..4)? != MAGIC {
            return None;
        }
        let length = usize::from(u16::from_be_bytes(array(bytes, 6)?));
        (COMMON_BYTES..=MAX_HEAD_BYTES).contains(&length).then_some(length)
    }

    /// Reads the header at the start of `bytes`, which stood at `offset` of the segment with `salt`; `None` where
    /// there is no valid one.
    pub(super) fn decode(bytes: &[u8], salt: Salt, offset: u64) -> Option<Self> {
        let head = bytes.get(..Self::claimed_bytes(bytes)?)?;
        if checksum(salt, offset, head) != array(head, SUM_AT)? {
            return None;
        }
        let body = u32::from_be_bytes(array(head, 8)?);
        // `claimed_bytes` read it from two bytes.
        let unknown = Self::Unknown { head: head.len() as u16, body };
        Some(Self::known(head, body).unwrap_or(unknown))
    }

    fn known(head: &[u8], body: u32) -> Option<Self> {
        if head[4] == 3 && head.len() == VALUE_HEAD_BYTES {
            let key = usize::from(u16::from_be_bytes(array(head, 24)?));
            let value = usize::try_from(body).ok()?.checked_sub(key)?;
            let bounded = key <= MAX_KEY_BYTES && value <= MAX_VALUE_BYTES;
            return bounded.then_some(Self::Value { key, value, checksum: array(head, 28)? });
        }
        if head[4] == 4 && head.len() == VALUE_HEAD_BYTES {
            let key = usize::from(u16::from_be_bytes(array(head, 24)?));
            let bounded = key <= MAX_KEY_BYTES && key == body as usize;
            let (checksum, origin) = (array(head, 28)?, decode_origin(head, 36)?);
            return bounded.then_some(Self::Unset { key, checksum, origin });
        }
        if head.len() != HEAD_BYTES {
            return None;
        }
        let entry = decode_entry(head)?;
        let origin = decode_origin(head, ORIGIN_AT)?;
        match (head[4], head[25], body) {
            (1, 0, body) if body == entry.length => Some(Self::Chunk(entry)),
            (2, 0, 0) => Some(Self::Deletion(entry, Gone::Removed, origin)),
            (2, 1, 0) => Some(Self::Deletion(entry, Gone::Damaged, origin)),
            _ => None,
        }
    }
}

impl Record {
    /// Bytes of header and body.
    pub(super) fn total_bytes(&self) -> u64 {
        match self {
            Self::Chunk(_, payload) => (HEAD_BYTES + payload.len()) as u64,
            Self::Deletion(..) => HEAD_BYTES as u64,
            Self::Value(key, value) => (VALUE_HEAD_BYTES + key.len() + value.len()) as u64,
            Self::Unset(key, _) => (VALUE_HEAD_BYTES + key.len()) as u64,
        }
    }

    /// Appends the header to `out`, as it stands at `offset` of the segment with `salt`.
    pub(super) fn encode_head(&self, salt: Salt, offset: u64, out: &mut Vec<u8>) {
        let start = out.len();
        let (kind, length, body) = match self {
            Self::Chunk(entry, _) => (1, HEAD_BYTES, entry.length),
            Self::Deletion(..) => (2, HEAD_BYTES, 0),
            // Both were bounded when they were taken (`MAX_KEY_BYTES`, `MAX_VALUE_BYTES`).
            Self::Value(key, value) => (3, VALUE_HEAD_BYTES, (key.len() + value.len()) as u32),
            Self::Unset(key, _) => (4, VALUE_HEAD_BYTES, key.len() as u32),
        };
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[kind, 0]);
        out.extend_from_slice(&(length as u16).to_be_bytes());
        out.extend_from_slice(&body.to_be_bytes());
        // Four bytes that nobody uses yet, and the place of the checksum.
        out.extend_from_slice(&[0; 12]);
        match self {
            Self::Chunk(entry, _) => encode_entry(entry, 0, out),
            Self::Deletion(entry, gone, origin) => {
                let reason = match gone {
                    Gone::Removed => 0,
                    Gone::Damaged => 1,
                };
                encode_entry(entry, reason, out);
                out.extend_from_slice(&origin.unwrap_or(0).to_be_bytes());
            }
            Self::Value(key, value) => {
                out.extend_from_slice(&(key.len() as u16).to_be_bytes());
                out.extend_from_slice(&[0; 2]);
                out.extend_from_slice(&body_checksum(key, value));
            }
            Self::Unset(key, origin) => {
                out.extend_from_slice(&(key.len() as u16).to_be_bytes());
                out.extend_from_slice(&[0; 2]);
                out.extend_from_slice(&body_checksum(key, &[]));
                out.extend_from_slice(&origin.unwrap_or(0).to_be_bytes());
            }
        }
        out.resize(start + length, 0);
        let sum = checksum(salt, offset, &out[start..]);
        out[start + SUM_AT..start + COMMON_BYTES].copy_from_slice(&sum);
    }

    /// The parts of the body, in order.
    pub(super) fn body(&self) -> [&Bytes; 2] {
        static EMPTY: Bytes = Bytes::new();
        match self {
            Self::Chunk(_, payload) => [payload, &EMPTY],
            Self::Deletion(..) => [&EMPTY, &EMPTY],
            Self::Value(key, value) => [key, value],
            Self::Unset(key, _) => [key, &EMPTY],
        }
    }
}

/// The first eight bytes of BLAKE3 over the key and the value.
pub(super) fn body_checksum(key: &[u8], value: &[u8]) -> [u8; 8] {
    first_eight(blake3::Hasher::new().update(key).update(value))
}

/// Over all of the header but the checksum itself.
fn checksum(salt: Salt, offset: u64, head: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&salt.0).update(&offset.to_be_bytes());
    first_eight(hasher.update(&head[..SUM_AT]).update(&head[COMMON_BYTES..]))
}

pub(super) fn first_eight(hasher: &blake3::Hasher) -> [u8; 8] {
    let mut out = [0; 8];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn encode_entry(entry: &Entry, reason: u8, out: &mut Vec<u8>) {
    let Entry { cid, length } = entry;
    out.extend_from_slice(&[cid.codec.code(), reason, 0, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&cid.hash.to_bytes());
}

fn decode_entry(head: &[u8]) -> Option<Entry> {
    let codec = Codec::from_code(u64::from(head[24]))?;
    let length = u32::from_be_bytes(array(head, 28)?);
    if length as usize > MAX_CHUNK_BYTES {
        return None;
    }
    let hash = Multihash::from_bytes(head.get(32..32 + MULTIHASH_BYTES)?).ok()?;
    Some(Entry { cid: Cid { codec, hash }, length })
}

/// The origin at `at` of a deletion's header; segments are numbered from 1.
fn decode_origin(head: &[u8], at: usize) -> Option<Origin> {
    let number = u32::from_be_bytes(array(head, at)?);
    Some((number != 0).then_some(number))
}

/// The `N` bytes at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
