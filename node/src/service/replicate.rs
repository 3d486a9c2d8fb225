//! Putting chunks on the k closest storing peers, and making the copies that are owed. SKELETON.

use p2p_protocol::{Chunk, PeerId};

use super::{locate::Locate, transfer::Transfer};
use crate::store::{Put, Store, StoreError};

/// What an add asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// Copies, 1 to 16.
    pub wanted: u8,
    /// Wait for so many; `None`: `wanted`, or as many as there are storing peers.
    pub wait: Option<u8>,
    /// Store here only; the copies are made in the background.
    pub local: bool,
}

/// What was reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The smallest number of peers (this node counted where it is of the replica set) that confirmed any one chunk.
    pub min: u8,
    /// Storing peers seen within the last hour, this node included: more copies than that could not be expected.
    pub seen: usize,
    /// Peers that should have taken a copy and did not, and why (at most 16).
    pub failures: Vec<(PeerId, String)>,
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Replicate {}

/// One add's chunks on their way. Bounded: `submit` waits when too many bytes are in flight.
#[derive(Debug)]
pub struct Job {}

#[allow(unused_variables, clippy::unimplemented, clippy::unused_async, missing_docs)]
impl Replicate {
    /// Starts the background task that makes owed copies as storing peers come.
    pub fn start(store: Store, locate: Locate, transfer: Transfer) -> Self {
        unimplemented!()
    }
    /// Begins an add; waits for the first round of discovery unless `wish.local`.
    pub async fn begin(&self, wish: Wish) -> Job {
        unimplemented!()
    }
    /// Copies being made now, by adds and in the background.
    pub fn in_flight(&self) -> u64 {
        unimplemented!()
    }
}

#[allow(unused_variables, clippy::unimplemented, clippy::unused_async, missing_docs)]
impl Job {
    /// Keeps a chunk here (as replica or cache, owed until its copies are acknowledged) and sends it on its way to
    /// the replica set. Returns whether it was new to this node, before the copies are made. Waits while too many
    /// bytes are in flight. Cancel-safe.
    pub async fn submit(&self, chunk: Chunk) -> Result<Put, StoreError> {
        unimplemented!()
    }
    /// Copies that other peers acknowledged so far.
    pub fn copies(&self) -> u64 {
        unimplemented!()
    }
    /// Waits for what `wish` said.
    pub async fn finish(self) -> Result<Report, StoreError> {
        unimplemented!()
    }
}
