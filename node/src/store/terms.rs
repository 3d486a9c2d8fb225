//! What is said of chunks: on what terms they are kept, what the index has of them, what the store holds in all.

use p2p_protocol::Cid;

/// Why this node keeps a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It is of the chunk's replica set.
    Replica,
    /// An adder's own copy of what it does not have to hold; gives way when a replica needs the room.
    Cache,
}

/// On what terms a chunk is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Why.
    pub role: Role,
    /// Copies wanted in the network, 1 to 16.
    pub wanted: u8,
    /// Fewer copies than wanted are known to exist: it is pinned, and offered to peers as they come.
    pub owed: bool,
    /// The root that it belongs to, where the writer knew it.
    pub root: Option<Cid>,
}

/// What the index says of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The address under which it came first.
    pub cid: Cid,
    /// Payload bytes.
    pub length: u32,
    /// On what terms.
    pub terms: Terms,
}

/// A change of the terms of chunks that are here; `None` leaves a field as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Amendment {
    /// The new role.
    pub role: Option<Role>,
    /// The new mark.
    pub owed: Option<bool>,
    /// The new number of copies wanted.
    pub wanted: Option<u8>,
}

/// Whether a chunk was here before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// It was not.
    New,
    /// It was; its terms are now the stronger of both (replica over cache, more copies, owed over not).
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
    /// Chunks, replicas and caches.
    pub chunks: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// The most that they may take.
    pub capacity_bytes: u64,
    /// Bytes that a new replica could have: what is free, and what caches would give.
    pub free_bytes: u64,
    /// Chunks marked owed.
    pub owed: u64,
    /// It is full, as others are told: from 95 % of what it may take, until 85 % are left again. What caches take does
    /// not count, for they give way; a disk that others fill is part of what it may take.
    pub full: bool,
}

/// From which share of what a store may take it is full, and under which it is no more.
const FULL_PERCENT: u128 = 95;
const FREE_PERCENT: u128 = 85;

/// Whether a store is full that `was` full or not, keeps `used_bytes` that do not give way, and has room for
/// `room_bytes` more. Between the two shares it stays what it was: peers that are told must not be told otherwise with
/// each chunk that comes or goes.
pub(super) fn is_full(was: bool, used_bytes: u64, room_bytes: u64) -> bool {
    let (used, total) = (u128::from(used_bytes), u128::from(used_bytes) + u128::from(room_bytes));
    let percent = if was { FREE_PERCENT } else { FULL_PERCENT };
    used * 100 >= total * percent
}
