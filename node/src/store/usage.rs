//! What is said of chunks, and what the store holds in all.

use p2p_protocol::Cid;

/// What the index says of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The address under which it came first.
    pub cid: Cid,
    /// Payload bytes.
    pub length: u32,
}

/// Whether a chunk was here before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// It was not.
    New,
    /// It was, and is intact.
    Known,
}

/// What a removal was of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// Chunks that were here, and are not any more.
    pub chunks: u64,
    /// What they took: payloads and the headers of their records. A compaction gives it back to the disk.
    pub bytes: u64,
}

/// What the store holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Chunks.
    pub chunks: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// The most that they may take.
    pub capacity_bytes: u64,
    /// Bytes that a new chunk could have now.
    pub free_bytes: u64,
    /// It is full, as others are told: from 95 % of what it may take, until 85 % are left again. A disk that others fill
    /// is part of what it may take.
    pub full: bool,
}

/// From which share of what a store may take it is full, and under which it is no more.
const FULL_PERCENT: u128 = 95;
const FREE_PERCENT: u128 = 85;

/// Whether a store is full that `was` full or not, keeps `used_bytes`, and has room for `room_bytes` more. Between the
/// two shares it stays what it was: peers that are told must not be told otherwise with each chunk that comes or goes.
pub(super) fn is_full(was: bool, used_bytes: u64, room_bytes: u64) -> bool {
    let (used, total) = (u128::from(used_bytes), u128::from(used_bytes) + u128::from(room_bytes));
    let percent = if was { FREE_PERCENT } else { FULL_PERCENT };
    used * 100 >= total * percent
}
