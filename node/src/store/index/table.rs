//! What the index holds: its key spaces and the form of its values.
//!
//! A first byte names the key space; chunks are under their Kademlia key, so that a region is a range, and so are those
//! that were damaged, so that a scan of them costs what it finds.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use p2p_protocol::{Cid, Codec, Key, MAX_CHUNK_BYTES, Multihash, cid::MULTIHASH_BYTES};

use super::{Index, Write, keys::Keys, watch::Watched};
use crate::store::{
    Entry, StoreError,
    record::{MAX_VALUE_BYTES, Salt, VALUE_HEAD_BYTES, array, body_checksum, first_eight},
    segment::Location,
};

const POSITION: u8 = 0;
/// Behind [`POSITION`], the key of the sum.
const SUM: u8 = 1;
const CHUNK: u8 = 1;
const DAMAGED: u8 = 2;
const RECORD: u8 = 5;
const META: u8 = 6;
/// Bytes that the index has of a value: segment, offset, length, checksum.
const VALUE_BYTES: usize = 24;
/// The most bytes that the name of a metadata tree may have: its length is one byte of the key.
pub(in crate::store) const MAX_TREE_BYTES: usize = 255;

/// A chunk that is here, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::store) struct Held {
    pub(in crate::store) location: Location,
    pub(in crate::store) entry: Entry,
}

/// What the index has of a value beside its place: enough to read it, and to know whether what was read is it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::store) struct Content {
    /// Bytes of the value.
    pub(in crate::store) length: u32,
    /// Of key and value, as in the record's header.
    pub(in crate::store) checksum: [u8; 8],
}

impl Content {
    /// That of `value` under `key`. A value's length is bounded where it is taken (`MAX_VALUE_BYTES`).
    pub(in crate::store) fn of(key: &[u8], value: &[u8]) -> Self {
        Self { length: value.len() as u32, checksum: body_checksum(key, value) }
    }

    /// What the record under `key` takes in the log.
    pub(in crate::store) fn record_bytes(&self, key: &[u8]) -> u64 {
        (VALUE_HEAD_BYTES + key.len()) as u64 + u64::from(self.length)
    }
}

/// A value that is here, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::store) struct HeldValue {
    pub(in crate::store) location: Location,
    pub(in crate::store) content: Content,
}

/// How far the index has followed the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::store) struct Position {
    pub(in crate::store) segment: u32,
    pub(in crate::store) salt: Salt,
    /// The end of the last record that is indexed.
    pub(in crate::store) offset: u64,
}

/// The index with its key spaces; clone it freely.
#[derive(Clone)]
pub(in crate::store) struct Table {
    index: Arc<Watched>,
    keys: Arc<Keys>,
}

impl Table {
    pub(in crate::store) fn new(index: Arc<dyn Index>) -> Result<Self, StoreError> {
        let index = Arc::new(Watched::new(index));
        let keys = Arc::new(Keys::open(index.clone())?);
        Ok(Self { index, keys })
    }

    /// As [`Watched::take_changed`].
    pub(in crate::store) fn take_changed(&self) -> Vec<u16> {
        self.index.take_changed()
    }

    /// The key table.
    pub(in crate::store) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(in crate::store) fn index(&self) -> &dyn Index {
        &*self.index
    }

    pub(in crate::store) fn position(&self) -> Result<Option<Position>, StoreError> {
        let Some(value) = self.index.get(&[POSITION])? else { return Ok(None) };
        let position = || {
            Some(Position {
                segment: u32::from_be_bytes(array(&value, 0)?),
                salt: Salt(array(&value, 4)?),
                offset: u64::from_be_bytes(array(&value, 20)?),
            })
        };
        position().map(Some).ok_or_else(|| StoreError::Index("its log position cannot be read".into()))
    }

    /// The sum over all chunks and values that it should hold.
    pub(in crate::store) fn sum(&self) -> Result<u64, StoreError> {
        let value = self.index.get(&[POSITION, SUM])?;
        Ok(value.and_then(|value| array(&value, 0)).map_or(0, u64::from_be_bytes))
    }

    pub(in crate::store) fn chunk(&self, key: &Key) -> Result<Option<Held>, StoreError> {
        self.index.get(&chunk_key(key))?.map(|value| decode_held(&value)).transpose()
    }

    /// Up to `limit` chunks in key order, strictly after `after`.
    pub(in crate::store) fn chunks(&self, after: Option<Key>, limit: usize) -> Result<Vec<(Key, Held)>, StoreError> {
        let pairs = self.index.range(&start(CHUNK, after), &[CHUNK + 1], limit)?;
        pairs.iter().map(|(key, value)| Ok((decode_key(key)?, decode_held(value)?))).collect()
    }

    /// Shows `look` each chunk whose key's first byte is in `part` (the end is at most 256), in key order, and what it
    /// adds to the sum.
    pub(in crate::store) fn walk_chunks(
        &self,
        part: &Range<u16>,
        mut look: impl FnMut(Key, Held, u64) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let [start, end] = bounds(&[CHUNK], part);
        self.index.walk(&start, &end, &mut |key, value| {
            let key = decode_key(key)?;
            look(key, decode_held(value)?, print(&key.0, value))
        })
    }

    /// Shows `look` the key and the place of every value, in key order.
    pub(in crate::store) fn walk_values(
        &self,
        mut look: impl FnMut(&[u8], HeldValue) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.index.walk(&[RECORD], &[RECORD + 1], &mut |key, value| look(&key[1..], decode_value(value)?))
    }

    /// Which of these keys, ascending, have a chunk here: by one look at all chunks between them where those are about as
    /// many, which costs less than to ask for each.
    pub(in crate::store) fn present(&self, keys: &[Key]) -> Result<Vec<bool>, StoreError> {
        let [first, .., last] = keys else {
            return keys.iter().map(|key| Ok(self.chunk(key)?.is_some())).collect();
        };
        let limit = keys.len() + keys.len() / 4;
        let end = [&chunk_key(last)[..], &[0]].concat();
        let found = self.index.range(&chunk_key(first), &end, limit)?;
        let seen = if found.len() < limit { None } else { found.last().map(|(key, _)| decode_key(key)).transpose()? };
        let mut found = found.iter().map(|(key, _)| decode_key(key)).peekable();
        let mut present = Vec::with_capacity(keys.len());
        for key in keys {
            // Behind what was looked at each is asked for.
            if seen.is_some_and(|seen| *key > seen) {
                present.push(self.chunk(key)?.is_some());
                continue;
            }
            while found.next_if(|found| found.as_ref().is_ok_and(|found| found < key)).is_some() {}
            match found.peek() {
                Some(Ok(found)) => present.push(found == key),
                None => present.push(false),
                Some(Err(error)) => return Err(error.clone()),
            }
        }
        Ok(present)
    }

    /// Up to `limit` chunks that were damaged and have not come again, in key order, strictly after `after`.
    pub(in crate::store) fn all_damaged(&self, after: Option<Key>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let pairs = self.index.range(&start(DAMAGED, after), &[DAMAGED + 1], limit)?;
        pairs.iter().map(|(_, value)| decode_held(value).map(|held| held.entry)).collect()
    }

    /// What was known of a damaged chunk.
    pub(in crate::store) fn damaged(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let value = self.index.get(&damaged_key(key))?;
        value.map(|value| decode_held(&value).map(|held| held.entry)).transpose()
    }

    /// The value of a log record, by its place.
    pub(in crate::store) fn value(&self, key: &[u8]) -> Result<Option<HeldValue>, StoreError> {
        self.index.get(&prefixed(RECORD, key))?.map(|value| decode_value(&value)).transpose()
    }

    /// Keys of log records that begin with `prefix`, and the places of their values: a page of `limit` in key order,
    /// strictly after `after`.
    pub(in crate::store) fn values(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, HeldValue)>, StoreError> {
        let space = prefixed(RECORD, prefix);
        let mut from = prefixed(RECORD, after.unwrap_or_default());
        if after.is_some() {
            from.push(0);
        }
        let end = behind(&space);
        let pairs = self.index.range(&from.max(space), &end, limit)?;
        pairs.into_iter().map(|(key, value)| Ok((key.slice(1..), decode_value(&value)?))).collect()
    }

    /// All of metadata tree `tree`, in key order.
    pub(in crate::store) fn meta(&self, tree: &str) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let prefix = meta_key(tree, &[])?;
        let end = behind(&prefix);
        let pairs = self.index.range(&prefix, &end, usize::MAX)?;
        Ok(pairs.into_iter().map(|(key, value)| (key.slice(prefix.len()..), value)).collect())
    }

    pub(in crate::store) fn set_meta(&self, tree: &str, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        self.index.apply(vec![(meta_key(tree, key)?, value.map(<[u8]>::to_vec))])
    }
}

/// The write that records what the index should hold: in every batch, so that it is never true of another state.
pub(in crate::store) fn sum_write(sum: u64) -> Write {
    (vec![POSITION, SUM], Some(sum.to_be_bytes().to_vec()))
}

/// What a chunk adds to the sum, and what takes it out again.
pub(in crate::store) fn chunk_print(key: &Key, held: &Held) -> u64 {
    print(&key.0, &encode_held(held))
}

/// What a value adds to the sum, by its place: another value has another.
pub(in crate::store) fn value_print(key: &[u8], location: Location) -> u64 {
    let [segment, offset] = [u64::from(location.segment), location.offset].map(u64::to_be_bytes);
    print(&[&segment[..], &offset].concat(), key)
}

fn print(one: &[u8], other: &[u8]) -> u64 {
    u64::from_be_bytes(first_eight(blake3::Hasher::new().update(one).update(other)))
}

/// The write that records how far the log is indexed.
pub(in crate::store) fn position_write(position: &Position) -> Write {
    let mut value = Vec::with_capacity(28);
    value.extend_from_slice(&position.segment.to_be_bytes());
    value.extend_from_slice(&position.salt.0);
    value.extend_from_slice(&position.offset.to_be_bytes());
    (vec![POSITION], Some(value))
}

pub(in crate::store) fn chunk_key(key: &Key) -> Vec<u8> {
    prefixed(CHUNK, &key.0)
}

pub(in crate::store) fn damaged_key(key: &Key) -> Vec<u8> {
    prefixed(DAMAGED, &key.0)
}

/// The Kademlia key of a chunk's key.
pub(super) fn kademlia_key(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(&[CHUNK]).filter(|key| key.len() == 32)
}

/// The write that keeps the place of a value, or removes it.
pub(in crate::store) fn value_write(key: &[u8], value: Option<HeldValue>) -> Write {
    let value = value.map(|HeldValue { location, content }| {
        let mut out = Vec::with_capacity(VALUE_BYTES);
        out.extend_from_slice(&location.segment.to_be_bytes());
        out.extend_from_slice(&location.offset.to_be_bytes());
        out.extend_from_slice(&content.length.to_be_bytes());
        out.extend_from_slice(&content.checksum);
        out
    });
    (prefixed(RECORD, key), value)
}

pub(in crate::store) fn encode_held(held: &Held) -> Vec<u8> {
    let Held { location, entry: Entry { cid, length } } = held;
    let mut out = Vec::with_capacity(17 + MULTIHASH_BYTES);
    out.extend_from_slice(&location.segment.to_be_bytes());
    out.extend_from_slice(&location.offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.push(cid.codec.code());
    out.extend_from_slice(&cid.hash.to_bytes());
    out
}

fn decode_held(value: &[u8]) -> Result<Held, StoreError> {
    let held = || {
        let location =
            Location { segment: u32::from_be_bytes(array(value, 0)?), offset: u64::from_be_bytes(array(value, 4)?) };
        let length = u32::from_be_bytes(array(value, 12)?);
        let codec = Codec::from_code(u64::from(*value.get(16)?))?;
        let hash = Multihash::from_bytes(value.get(17..)?).ok()?;
        let held = Held { location, entry: Entry { cid: Cid { codec, hash }, length } };
        (length as usize <= MAX_CHUNK_BYTES).then_some(held)
    };
    held().ok_or_else(|| StoreError::Index("an entry of it cannot be read".into()))
}

fn decode_value(value: &[u8]) -> Result<HeldValue, StoreError> {
    let held = || {
        let location =
            Location { segment: u32::from_be_bytes(array(value, 0)?), offset: u64::from_be_bytes(array(value, 4)?) };
        let content = Content { length: u32::from_be_bytes(array(value, 12)?), checksum: array(value, 16)? };
        let fits = value.len() == VALUE_BYTES && content.length as usize <= MAX_VALUE_BYTES;
        fits.then_some(HeldValue { location, content })
    };
    held().ok_or_else(|| StoreError::Index("a record of it cannot be read".into()))
}

fn decode_key(key: &[u8]) -> Result<Key, StoreError> {
    if key.len() != 33 {
        return Err(StoreError::Index("a key of it has the wrong length".into()));
    }
    array(key, 1).map(Key).ok_or_else(|| StoreError::Index("a key of it cannot be read".into()))
}

/// From where on and to where the keys are that begin with `space` and whose next byte is in `part`, whose end is at most
/// 256. The first part has those without a next byte.
pub(super) fn bounds(space: &[u8], part: &Range<u16>) -> [Vec<u8>; 2] {
    [part.start, part.end].map(|byte| match u8::try_from(byte) {
        Ok(0) => space.to_vec(),
        Ok(byte) => [space, &[byte]].concat(),
        Err(_) => behind(space),
    })
}

/// The first key behind all that begin with `prefix`, whose first byte is a key space: under 255.
fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while end.last() == Some(&u8::MAX) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn prefixed(space: u8, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(space);
    out.extend_from_slice(key);
    out
}

fn start(space: u8, after: Option<Key>) -> Vec<u8> {
    match after {
        None => vec![space],
        Some(key) => {
            let mut out = prefixed(space, &key.0);
            out.push(0);
            out
        }
    }
}

fn meta_key(tree: &str, key: &[u8]) -> Result<Vec<u8>, StoreError> {
    let length = u8::try_from(tree.len())
        .map_err(|_| StoreError::Index(format!("a tree's name has at most {MAX_TREE_BYTES} bytes")))?;
    let mut out = prefixed(META, &[length]);
    out.extend_from_slice(tree.as_bytes());
    out.extend_from_slice(key);
    Ok(out)
}
