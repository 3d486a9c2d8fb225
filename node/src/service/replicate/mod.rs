//! Putting chunks on the k closest storing peers: the fast path of an add.
//!
//! What could not be put there is made up for by whoever should hold it, once the publication lists it
//! (`service/keep`): nothing is remembered here of what is short.

mod job;
mod renew;
mod sent;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use p2p_protocol::{Chunk, PeerId};
use tokio::{sync::Semaphore, time::Instant};

pub use self::job::Job;
use super::{
    locate::Locate,
    transfer::{Transfer, TransferError},
    wanted::Wanted,
    worker::Layer,
};
use crate::store::Store;

/// Budgets are counted in this.
const UNIT_BYTES: u64 = 1024;
/// Chunk bytes that all adds may have in flight: with what a daemon holds for its sessions it stays under 256 MiB.
const NODE_UNITS: usize = 48 * 1024;
/// A peer that has no room is not asked again for so long: each chunk would cost a round trip to hear the same.
const FULL_FOR: Duration = Duration::from_secs(5);
/// A peer that could not be reached or was silent is left alone for so long: each chunk would wait for the same silence.
const SILENT_FOR: Duration = Duration::from_secs(10);

/// What an add asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// Copies, 1 to 16.
    pub wanted: u8,
    /// Wait for so many; `None`: `wanted`, or as many as there are storing peers.
    pub wait: Option<u8>,
    /// Store here only: those who should hold it fetch it once it is published.
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
pub struct Replicate {
    shared: Arc<Shared>,
}

/// What all jobs share.
#[derive(Debug)]
struct Shared {
    store: Store,
    /// Notes what is acknowledged.
    wanted: Wanted,
    locate: Locate,
    transfer: Transfer,
    /// Chunk bytes of all adds, in units.
    units: Arc<Semaphore>,
    in_flight: AtomicU64,
    /// Peers that are not worth asking now, until when, and why.
    shunned: Mutex<HashMap<PeerId, (Instant, TransferError)>>,
    workers: Layer,
    /// As [`p2p_protocol::duty::Settings::grace`].
    grace: Duration,
    /// For what does not fit into memory.
    scratch: PathBuf,
}

impl Shared {
    /// Why `peer` is not to be asked now.
    fn shunned(&self, peer: &PeerId) -> Option<TransferError> {
        let mut shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, error) = shunned.get(peer)?;
        if *until > Instant::now() {
            return Some(error.clone());
        }
        shunned.remove(peer);
        None
    }

    fn shun(&self, peer: PeerId, error: &TransferError) {
        let time = match error {
            TransferError::NoSpace { .. } => FULL_FOR,
            TransferError::Refused { .. } | TransferError::Unsupported { .. } => return,
            TransferError::Net(_) | TransferError::Timeout { .. } | TransferError::Violation { .. } => SILENT_FOR,
        };
        let mut shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        // Never more entries than there are peers to rank, and those that are over go with the next one.
        let now = Instant::now();
        shunned.retain(|_, (until, _)| *until > now);
        shunned.insert(peer, (now + time, error.clone()));
    }

    /// Has a peer keep a chunk, unless it is not to be asked now.
    async fn hand_over(&self, peer: PeerId, chunk: Chunk) -> Result<(), TransferError> {
        if let Some(error) = self.shunned(&peer) {
            return Err(error);
        }
        let _counted = InFlight::new(&self.in_flight);
        let result = self.transfer.store(peer, chunk).await;
        if let Err(error) = &result {
            self.shun(peer, error);
        }
        result
    }
}

/// One copy under way, for as long as it lives.
struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Replicate {
    /// Puts chunks where `locate` says, by way of `transfer`. What nothing lists is freed after `grace`; `scratch` is a
    /// directory for what does not fit into memory.
    pub fn new(
        store: Store,
        wanted: Wanted,
        locate: Locate,
        transfer: Transfer,
        grace: Duration,
        scratch: PathBuf,
        workers: &Layer,
    ) -> Self {
        let shared = Arc::new(Shared {
            store,
            wanted,
            locate,
            transfer,
            units: Arc::new(Semaphore::new(NODE_UNITS)),
            in_flight: AtomicU64::new(0),
            shunned: Mutex::default(),
            workers: workers.clone(),
            grace,
            scratch,
        });
        Self { shared }
    }

    /// Begins an add; waits for the first round of discovery unless `wish.local`.
    pub async fn begin(&self, wish: Wish) -> Job {
        if !wish.local {
            self.shared.locate.discovered().await;
        }
        Job::new(self.shared.clone(), wish, true)
    }

    /// Begins to have chunks kept on that were added before, by [`Job::keep_on`]; waits for the first round of discovery.
    /// This node takes a copy only where it is to hold one.
    pub async fn begin_again(&self, wanted: u8) -> Job {
        self.shared.locate.discovered().await;
        Job::new(self.shared.clone(), Wish { wanted, wait: None, local: false }, false)
    }

    /// Copies that adds are making now.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }
}
