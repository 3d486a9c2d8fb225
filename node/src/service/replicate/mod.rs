//! Putting chunks on the k closest storing peers, and making the copies that are owed.
//!
//! An add is a [`Job`] (`job.rs`); copies that an add could not make, or that a peer handed over as owed, are made by one
//! worker in the background (`owed.rs`). Marks are taken off in batches (`amend.rs`), so that they cost few syncs.

mod amend;
mod job;
mod owed;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::stream::FuturesUnordered;
use p2p_protocol::{Chunk, Cid, PeerId, owed::Owed};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::Instant,
};

use self::amend::Change;
pub use self::job::Job;
use super::{
    locate::Locate,
    transfer::{Ask, Offered, Transfer, TransferError},
    wanted::Wanted,
    worker::Layer,
};
use crate::{runner, store::Store};

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
pub struct Replicate {
    shared: Arc<Shared>,
}

/// What jobs and the background share.
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
    changes: mpsc::Sender<Change>,
    /// Peers that are not worth asking now, until when, and why.
    shunned: Mutex<HashMap<PeerId, (Instant, TransferError)>>,
    /// Chunks were left owed that no peer has been asked to keep yet.
    fresh: Notify,
    /// Chunks were left owed because a peer failed.
    failed: Notify,
    jobs: Mutex<Jobs>,
    /// Adds that were given up, and whose marks are being taken off.
    cleaning: watch::Sender<u64>,
    workers: Layer,
}

/// How many adds there were, and how many there are.
#[derive(Clone, Copy, Debug, Default)]
struct Jobs {
    started: u64,
    active: u64,
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

    /// Has a peer keep a chunk whose bytes are at hand.
    async fn hand_over(&self, peer: PeerId, chunk: Chunk, ask: Ask) -> Result<(), TransferError> {
        self.counted(peer, self.transfer.store(peer, chunk, ask)).await
    }

    /// Asks whether a peer keeps a chunk, or lacks it.
    async fn offer(&self, peer: PeerId, cid: Cid, length: u32, ask: Ask) -> Result<Offered, TransferError> {
        self.counted(peer, self.transfer.offer(peer, cid, length, ask)).await
    }

    async fn counted<T>(
        &self,
        peer: PeerId,
        copy: impl Future<Output = Result<T, TransferError>>,
    ) -> Result<T, TransferError> {
        if let Some(error) = self.shunned(&peer) {
            return Err(error);
        }
        let _counted = InFlight::new(&self.in_flight);
        let result = copy.await;
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
    /// Starts the worker that makes owed copies as storing peers come.
    pub fn start(store: Store, wanted: Wanted, locate: Locate, transfer: Transfer, workers: &Layer) -> Self {
        let changes = amend::start(store.clone(), workers);
        let (topology, owing) = (locate.changes(), transfer.owing());
        let shared = Arc::new(Shared {
            store,
            wanted,
            locate,
            transfer,
            units: Arc::new(Semaphore::new(NODE_UNITS)),
            in_flight: AtomicU64::new(0),
            changes,
            shunned: Mutex::default(),
            fresh: Notify::new(),
            failed: Notify::new(),
            jobs: Mutex::default(),
            cleaning: watch::Sender::new(0),
            workers: workers.clone(),
        });
        let owes = shared.clone();
        workers.spawn("owed copies", |work| {
            let pass = FuturesUnordered::new();
            runner::run(Owed::default(), owed::Passes { shared: owes, topology, owing, pass, work })
        });
        Self { shared }
    }

    /// Begins an add; waits for the first round of discovery unless `wish.local`.
    pub async fn begin(&self, wish: Wish) -> Job {
        if !wish.local {
            self.shared.locate.discovered().await;
        }
        // The sender lives in `shared`.
        let _ = self.shared.cleaning.subscribe().wait_for(|count| *count == 0).await;
        Job::new(self.shared.clone(), wish)
    }

    /// Copies being made now, by adds and in the background.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }
}
