//! One add's chunks on their way: kept here, sent to the replica set, counted as they are acknowledged.
//!
//! A chunk is kept here whether or not this node is of its replica set: it serves whoever asks before the copies are
//! made. An add that is given up (its job dropped before the end) was never published, and what it left is freed when
//! its grace is over. One that takes long renews what it sent (`renew.rs`), so that its beginning is still there at its
//! end.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use p2p_protocol::{
    Chunk, Multihash, PeerId,
    manifest::Entry,
    replicate::{Plan, Tally, most_asked},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Report, Shared, UNIT_BYTES, Wish,
    renew::{MENDING, Mending, Renewing},
    sent::Sent,
};
use crate::store::{Put, StoreError};

/// Chunk bytes that one add may have in flight: two windows of a session, so that neither disk nor link waits.
const JOB_UNITS: usize = 32 * 1024;
/// What a small chunk counts at least, so that at most 2048 are in flight.
const LEAST_UNITS: u32 = 16;
/// Chunks of an add that are remembered, to send what repeats once: 3 MiB. What repeats later costs an offer.
const REMEMBERED: usize = 65_536;

/// One add's chunks on their way. Bounded: `submit` waits when too many bytes are in flight.
#[derive(Debug)]
pub struct Job {
    state: Arc<State>,
    finished: bool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) shared: Arc<Shared>,
    pub(super) wish: Wish,
    /// It keeps a copy of everything here, as an add does.
    pub(super) keeps_all: bool,
    /// What is to be renewed if it takes long.
    pub(super) sent: Sent,
    /// Held by who renews.
    pub(super) renewing: tokio::sync::Mutex<Renewing>,
    /// Chunks that are short of copies, and are being made whole again beside the renewals.
    pub(super) mending: watch::Sender<Mending>,
    /// Those that are at once.
    pub(super) mends: Semaphore,
    units: Arc<Semaphore>,
    /// Chunks that have not yet what the wish waits for.
    unsettled: watch::Sender<u64>,
    copies: AtomicU64,
    progress: Mutex<Progress>,
    pub(super) given_up: CancellationToken,
    /// It is over, well or not.
    pub(super) over: CancellationToken,
}

#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) tally: Tally,
    /// The first failure of this node's own store: the add cannot go on.
    pub(super) failed: Option<StoreError>,
    remembered: HashSet<Multihash>,
    order: VecDeque<Multihash>,
}

impl Progress {
    /// Whether it is the first time, as far as is remembered.
    fn remember(&mut self, hash: Multihash) -> bool {
        if !self.remembered.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        true
    }
}

/// A chunk that has not yet what the wish waits for; however its task ends, it is counted off.
struct Unsettled(Arc<State>);

impl Unsettled {
    fn new(state: &Arc<State>) -> Self {
        state.unsettled.send_modify(|count| *count += 1);
        Self(state.clone())
    }

    /// Enough copies, or no more to be had.
    fn settle(self, copies: u8) {
        self.0.progress().tally.chunk(copies);
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.0.unsettled.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl State {
    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing under this lock panics.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> Option<StoreError> {
        self.progress().failed.clone()
    }

    async fn run(
        self: Arc<Self>,
        chunk: Chunk,
        permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
        unsettled: Unsettled,
    ) {
        let given_up = self.given_up.clone();
        tokio::select! {
            // First of all: what has not begun does not begin any more.
            biased;
            () = given_up.cancelled() => {}
            placed = self.place(chunk, unsettled) => if let Err(error) = placed {
                self.progress().failed.get_or_insert(error);
            },
        }
        drop(permits);
    }

    async fn place(self: &Arc<Self>, chunk: Chunk, unsettled: Unsettled) -> Result<(), StoreError> {
        let (shared, wanted, hash) = (&self.shared, self.wish.wanted, chunk.cid().hash);
        let local = shared.locate.local();
        let ranked = shared.locate.ranked(&hash, most_asked(wanted)).await;
        let is_member = ranked.iter().take(wanted.into()).any(|peer| *peer == local);
        let mut plan = Plan::new(wanted, ranked);
        let since = Instant::now();
        let kept = match shared.wanted.put(chunk.clone()).await {
            // A chunk has 2 MiB at the most. Before it is here it would be taken for gone.
            Ok(_) => self.note(Entry { cid: *chunk.cid(), length: chunk.len() as u32 }, since).await,
            Err(error) => Err(error),
        };
        // Said before the chunk is counted off: `finish` looks for failures as soon as none is left.
        kept.inspect_err(|error| {
            self.progress().failed.get_or_insert(error.clone());
        })?;
        if self.wish.local {
            unsettled.settle(u8::from(is_member));
            return Ok(());
        }
        let wait = self.wish.wait.unwrap_or(wanted).min(wanted);
        let mut unsettled = Some(unsettled);
        self.spread(&mut plan, &chunk, &BTreeSet::new(), |plan| {
            if plan.copies() >= wait
                && let Some(unsettled) = unsettled.take()
            {
                unsettled.settle(plan.copies());
            }
        })
        .await;
        if let Some(unsettled) = unsettled {
            unsettled.settle(plan.copies());
        }
        Ok(())
    }

    /// Notes what is to be renewed if it takes long.
    async fn note(&self, entry: Entry, since: Instant) -> Result<(), StoreError> {
        let noted = self.sent.push(entry, since).await;
        noted.map_err(|source| StoreError::Io { doing: "noting what was sent".into(), source: Arc::new(source) })
    }

    /// Has those of a plan keep a chunk that is here, but for those that `have` it anyway; after each step, `told`.
    pub(super) async fn spread(
        &self,
        plan: &mut Plan,
        chunk: &Chunk,
        have: &BTreeSet<PeerId>,
        mut told: impl FnMut(&Plan),
    ) {
        let (shared, local) = (&self.shared, self.shared.locate.local());
        let mut asks = FuturesUnordered::new();
        loop {
            while let Some(peer) = plan.poll_ask() {
                if peer == local || have.contains(&peer) {
                    plan.kept(&peer);
                } else {
                    let chunk = chunk.clone();
                    asks.push(async move { (peer, shared.hand_over(peer, chunk).await) });
                }
            }
            told(plan);
            let Some((peer, answer)) = asks.next().await else { break };
            match answer {
                Ok(()) => {
                    plan.kept(&peer);
                    self.copies.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    plan.refused(&peer);
                    self.progress().tally.failure(peer, error.to_string());
                }
            }
        }
    }
}

impl Job {
    pub(super) fn new(shared: Arc<Shared>, wish: Wish, keeps_all: bool) -> Self {
        let sent = Sent::new(&shared.scratch);
        let state = State {
            shared,
            wish,
            keeps_all,
            sent,
            renewing: tokio::sync::Mutex::default(),
            mending: watch::Sender::new(Mending::default()),
            mends: Semaphore::new(MENDING),
            units: Arc::new(Semaphore::new(JOB_UNITS)),
            unsettled: watch::Sender::new(0),
            copies: AtomicU64::new(0),
            progress: Mutex::default(),
            given_up: CancellationToken::new(),
            over: CancellationToken::new(),
        };
        let state = Arc::new(state);
        drop(state.shared.workers.task(state.clone().renew_on()));
        Self { state, finished: false }
    }

    /// Takes a chunk to keep it here and to send it to the replica set, and returns whether it was new to this node, before
    /// any of that is done: what fails at the own store is the error of a later call, of [`finish`](Self::finish) at the
    /// latest. Waits while too many bytes are in flight. Cancel-safe: until it returns nothing was begun.
    pub async fn submit(&self, chunk: Chunk) -> Result<Put, StoreError> {
        let state = &self.state;
        let units = u32::try_from((chunk.len() as u64).div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = units.clamp(LEAST_UNITS, JOB_UNITS as u32);
        // Neither is ever closed.
        let own = state.units.clone().acquire_many_owned(units).await.map_err(|_| StoreError::Closed)?;
        let all = state.shared.units.clone().acquire_many_owned(units).await.map_err(|_| StoreError::Closed)?;
        let hash = chunk.cid().hash;
        let entry = state.shared.store.entry(&hash)?;
        {
            let mut progress = state.progress();
            if let Some(error) = &progress.failed {
                return Err(error.clone());
            }
            if !progress.remember(hash) {
                return Ok(Put::Known);
            }
        }
        // Counted before the task runs: `finish` may look before it does.
        drop(state.shared.workers.task(state.clone().run(chunk, (own, all), Unsettled::new(state))));
        Ok(if entry.is_some() { Put::Known } else { Put::New })
    }

    /// Has those that should hold these chunks go on keeping them, as if they were sent now, and makes the copies that are
    /// missing of those that are left. Gives the chunks that are neither here nor with any of those: whoever finds one
    /// elsewhere submits it.
    pub async fn keep_on(&self, entries: &[Entry]) -> Result<Vec<Entry>, StoreError> {
        let since = Instant::now();
        let gone = self.state.renew(entries).await?;
        for entry in entries.iter().filter(|entry| !gone.contains(entry)) {
            self.state.note(*entry, since).await?;
        }
        Ok(gone)
    }

    /// Copies that other peers acknowledged so far.
    pub fn copies(&self) -> u64 {
        self.state.copies.load(Ordering::Relaxed)
    }

    /// Waits for what `wish` said. Copies beyond it are still made afterwards, in the background.
    pub async fn finish(mut self) -> Result<Report, StoreError> {
        let mut unsettled = self.state.unsettled.subscribe();
        // The sender lives in this job.
        let _ = unsettled.wait_for(|count| *count == 0).await;
        if self.state.failed().is_none() {
            self.state.renew_once_more().await;
        }
        if let Some(error) = self.state.failed() {
            return Err(error);
        }
        self.finished = true;
        let progress = self.state.progress();
        let failures: Vec<(PeerId, String)> = progress.tally.failures().to_vec();
        Ok(Report { min: progress.tally.min().unwrap_or(0), seen: self.state.shared.locate.seen(), failures })
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.state.over.cancel();
        if !self.finished {
            self.state.given_up.cancel();
        }
    }
}
