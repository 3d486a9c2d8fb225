//! The store: segments hold the truth, sled is the index. SKELETON: the store's builder replaces this text and the bodies.

use std::path::Path;

use bytes::Bytes;
use p2p_protocol::{Chunk, Cid, Key, Multihash};

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
}

/// Why the store did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room under the capacity, or on the disk.
    #[error("no space for {needed} bytes: {reason}")]
    NoSpace {
        /// How many were asked for.
        needed: u64,
        /// Whose limit it was.
        reason: String,
    },
    /// Another daemon has it open.
    #[error("another daemon already runs on {0}")]
    Locked(std::path::PathBuf),
    /// Made by a newer version.
    #[error("the data directory has format {found}, and this version reads up to {known}")]
    TooNew {
        /// Its format.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// The system failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, on which file.
        doing: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The index failed and could not be rebuilt.
    #[error("the index failed: {0}")]
    Index(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Store {}

#[allow(unused_variables, clippy::unimplemented, clippy::unused_async, missing_docs)]
impl Store {
    /// Opens (or makes) the store in `dir`, taking its lock; rebuilds the index where that is needed. Blocks.
    /// `capacity_bytes`: the most that chunks may take, for this run only; `None`: what was remembered at an earlier
    /// start, else 80 % of the space free now, which is then remembered.
    pub fn open(dir: &Path, capacity_bytes: Option<u64>) -> Result<Self, StoreError> {
        unimplemented!()
    }
    /// A store in memory with the same behaviour, for simulations: no threads, no blocking.
    pub fn in_memory(capacity_bytes: u64) -> Self {
        unimplemented!()
    }
    /// Keeps a chunk; returns when it and its terms are on disk.
    pub async fn put(&self, chunk: Chunk, terms: Terms) -> Result<Put, StoreError> {
        unimplemented!()
    }
    /// What the index says.
    pub fn entry(&self, hash: &Multihash) -> Result<Option<Entry>, StoreError> {
        unimplemented!()
    }
    /// The chunk, verified; one that is damaged is set aside, said in the log, and `None`.
    pub async fn get(&self, hash: &Multihash) -> Result<Option<Chunk>, StoreError> {
        unimplemented!()
    }
    /// Changes the terms of those that are here; returns when that is on disk.
    pub async fn amend(&self, hashes: Vec<Multihash>, change: Amendment) -> Result<(), StoreError> {
        unimplemented!()
    }
    /// Up to `limit` entries in key order, strictly after `after`.
    pub fn scan(&self, after: Option<Key>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        unimplemented!()
    }
    /// Up to `limit` owed entries in key order, strictly after `after`.
    pub fn owed(&self, after: Option<Key>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        unimplemented!()
    }
    /// What it holds now; cheap.
    pub fn usage(&self) -> Usage {
        unimplemented!()
    }
    /// Appends to the log what could not be derived again (this node's own publications); last writer wins by `key`. Durable on return.
    pub async fn put_record(&self, key: Bytes, value: Bytes) -> Result<(), StoreError> {
        unimplemented!()
    }
    /// Every record, by key.
    pub fn records(&self) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        unimplemented!()
    }
    /// Small derivable metadata in the index (catalogue of others, peers, settings): `tree` names a key space; lost when the index is rebuilt.
    pub fn set_meta(&self, tree: &str, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        unimplemented!()
    }
    /// Removes one.
    pub fn remove_meta(&self, tree: &str, key: &[u8]) -> Result<(), StoreError> {
        unimplemented!()
    }
    /// All of a key space, in key order.
    pub fn meta(&self, tree: &str) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        unimplemented!()
    }
    /// Ends what is under way, flushes, releases the lock.
    pub async fn close(&self) -> Result<(), StoreError> {
        unimplemented!()
    }
}
