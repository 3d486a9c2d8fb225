//! One add's chunks on their way: kept here, sent to the replica set, counted as they are acknowledged.
//!
//! A chunk is kept here first, marked owed, so that a crash at any moment leaves the duty on disk; the mark goes when all
//! copies are acknowledged. An add that is given up (its job dropped before the end) was never published: its chunks stay
//! where they are, but those that this node kept only for it are no longer owed, so that they give way, unless another
//! add ran beside it and may count on them.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64, atomic::Ordering},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use p2p_protocol::{
    Chunk, Multihash, PeerId,
    manifest::Entry as ManifestEntry,
    replicate::{Plan, Tally, most_asked},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Report, Shared, UNIT_BYTES, Wish, amend::Change};
use crate::{
    service::transfer::Ask,
    store::{Amendment, Entry, Put, Role, StoreError, Terms},
};

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
    /// No other add ran when this one began, and this is its number.
    alone: Option<u64>,
    finished: bool,
}

#[derive(Debug)]
struct State {
    shared: Arc<Shared>,
    wish: Wish,
    units: Arc<Semaphore>,
    /// Chunks that have not yet what the wish waits for.
    unsettled: watch::Sender<u64>,
    copies: AtomicU64,
    progress: Mutex<Progress>,
    given_up: CancellationToken,
}

#[derive(Debug, Default)]
struct Progress {
    tally: Tally,
    /// The first failure of this node's own store: the add cannot go on.
    failed: Option<StoreError>,
    remembered: HashSet<Multihash>,
    order: VecDeque<Multihash>,
    /// Of the remembered, those that were new to this node.
    new: HashSet<Multihash>,
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
            self.new.remove(&oldest);
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
    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing under this lock panics.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> Option<StoreError> {
        self.progress().failed.clone()
    }

    async fn run(
        self: Arc<Self>,
        chunk: Chunk,
        entry: Option<Entry>,
        permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
        unsettled: Unsettled,
    ) {
        let given_up = self.given_up.clone();
        tokio::select! {
            () = given_up.cancelled() => {}
            placed = self.place(chunk, entry, unsettled) => if let Err(error) = placed {
                self.progress().failed.get_or_insert(error);
            },
        }
        drop(permits);
    }

    async fn place(
        self: &Arc<Self>,
        chunk: Chunk,
        entry: Option<Entry>,
        unsettled: Unsettled,
    ) -> Result<(), StoreError> {
        let (shared, wanted, cid) = (&self.shared, self.wish.wanted, *chunk.cid());
        let local = shared.locate.local();
        let mut plan = Plan::new(wanted, shared.locate.ranked(&cid.hash, most_asked(wanted)).await);
        let role = if plan.is_member(&local) { Role::Replica } else { Role::Cache };
        // Where this node is all that is wanted, nothing is owed and no mark has to be taken off.
        let terms = Terms { role, wanted, owed: wanted > 1 || role == Role::Cache, root: None };
        // Added before, not owed, and intact: there is nothing to write. Where it cannot be read the put below says why,
        // before the chunk is counted off.
        let stands = !self.wish.local
            && entry.is_some_and(|entry| stands(&entry, &terms))
            && matches!(shared.store.verify(&cid.hash).await, Ok(Some(_)));
        if !stands {
            // Said before the chunk is counted off: `finish` looks for failures as soon as none is left.
            let kept = shared.wanted.put(chunk.clone(), terms).await;
            kept.inspect_err(|error| {
                self.progress().failed.get_or_insert(error.clone());
            })?;
        }
        if let Some(entry) = entry.filter(|_| stands) {
            let kept = shared.wanted.renew(&[ManifestEntry { cid, length: entry.length }]).await;
            kept.inspect_err(|error| {
                self.progress().failed.get_or_insert(error.clone());
            })?;
        }
        if self.wish.local {
            unsettled.settle(u8::from(role == Role::Replica));
            return Ok(());
        }
        let wait = self.wish.wait.unwrap_or(wanted).min(wanted);
        let outranked = entry.is_some_and(|entry| entry.terms.owed && entry.terms.wanted > wanted);
        let mut unsettled = Some(unsettled);
        let ask = Ask { wanted, owed: plan.is_short_of_peers(), root: None };
        let mut asks = FuturesUnordered::new();
        loop {
            while let Some(peer) = plan.poll_ask() {
                if peer == local {
                    plan.kept(&local);
                } else {
                    let chunk = chunk.clone();
                    asks.push(async move { (peer, shared.hand_over(peer, chunk, ask).await) });
                }
            }
            // With all copies wanted, what is written at the end is part of the promise: no copy is still owed then.
            if plan.copies() >= wait
                && !plan.is_complete()
                && let Some(unsettled) = unsettled.take()
            {
                unsettled.settle(plan.copies());
            }
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
        drop(asks);
        self.conclude(&plan, chunk, ask, role, !stands && terms.owed, outranked).await;
        if let Some(unsettled) = unsettled {
            unsettled.settle(plan.copies());
        }
        Ok(())
    }

    /// What is known at the end is written down, here and at the holders. `marked`: the chunk was put as owed;
    /// `outranked`: it was owed before, on higher terms.
    async fn conclude(&self, plan: &Plan, chunk: Chunk, ask: Ask, role: Role, marked: bool, outranked: bool) {
        let (shared, local) = (&self.shared, self.shared.locate.local());
        let promoted = role == Role::Cache && plan.holders().contains(&local);
        let change = Amendment {
            role: promoted.then_some(Role::Replica),
            owed: (marked == plan.is_complete()).then_some(!marked),
            wanted: None,
        };
        // A mark of an earlier add that wanted more copies is not this one's to take off.
        let change = if outranked { Amendment { owed: None, ..change } } else { change };
        if change != Amendment::default() {
            self.amend(chunk.cid().hash, change).await;
        }
        if plan.is_complete() {
            return;
        }
        if ask.owed {
            return;
        }
        // Those who took it do not know that it stays short; now they owe the rest too, should this node be lost.
        shared.failed.notify_one();
        let ask = Ask { owed: true, ..ask };
        let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        for peer in plan.holders().iter().filter(|peer| **peer != local) {
            if let Err(error) = shared.offer(*peer, *chunk.cid(), length, ask).await {
                tracing::debug!(%peer, %error, "a holder could not be told that copies are owed");
            }
        }
    }

    async fn amend(&self, hash: Multihash, change: Amendment) {
        // The task ends only after the last sender.
        let _ = self.shared.changes.send(Change::Amend(hash, change)).await;
    }
}

/// Marks are being taken off after an add that was given up. No add begins meanwhile: it could lose its own marks.
struct Cleaning(Arc<Shared>);

impl Cleaning {
    fn new(shared: Arc<Shared>) -> Self {
        shared.cleaning.send_modify(|count| *count += 1);
        Self(shared)
    }
}

impl Drop for Cleaning {
    fn drop(&mut self) {
        self.0.cleaning.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// Whether what is kept already is at least what `terms` ask for.
fn stands(entry: &Entry, terms: &Terms) -> bool {
    let kept = &entry.terms;
    !kept.owed && kept.wanted >= terms.wanted && (kept.role == Role::Replica || terms.role == Role::Cache)
}

impl Job {
    pub(super) fn new(shared: Arc<Shared>, wish: Wish) -> Self {
        let alone = {
            let mut jobs = shared.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            jobs.started += 1;
            jobs.active += 1;
            (jobs.active == 1).then_some(jobs.started)
        };
        let state = State {
            shared,
            wish,
            units: Arc::new(Semaphore::new(JOB_UNITS)),
            unsettled: watch::Sender::new(0),
            copies: AtomicU64::new(0),
            progress: Mutex::default(),
            given_up: CancellationToken::new(),
        };
        Self { state: Arc::new(state), alone, finished: false }
    }

    /// Takes a chunk to keep it here (as replica or cache, owed until its copies are acknowledged) and to send it to the
    /// replica set, and returns whether it was new to this node, before any of that is done: what fails at the own store
    /// is the error of a later call, of [`finish`](Self::finish) at the latest. Waits while too many bytes are in
    /// flight. Cancel-safe: until it returns nothing was begun.
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
            if entry.is_none() {
                progress.new.insert(hash);
            }
        }
        // Counted before the task runs: `finish` may look before it does.
        drop(state.shared.workers.task(state.clone().run(chunk, entry, (own, all), Unsettled::new(state))));
        Ok(if entry.is_some() { Put::Known } else { Put::New })
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
        if let Some(error) = self.state.failed() {
            return Err(error);
        }
        let shared = &self.state.shared;
        if self.state.wish.local {
            shared.fresh.notify_one();
        } else {
            let (done, settled) = oneshot::channel();
            if shared.changes.send(Change::Settled(done)).await.is_ok() {
                let _ = settled.await;
            }
        }
        self.finished = true;
        let progress = self.state.progress();
        let failures: Vec<(PeerId, String)> = progress.tally.failures().to_vec();
        Ok(Report { min: progress.tally.min().unwrap_or(0), seen: shared.locate.seen(), failures })
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let shared = &self.state.shared;
        let jobs = {
            let mut jobs = shared.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            jobs.active = jobs.active.saturating_sub(1);
            *jobs
        };
        if self.finished {
            return;
        }
        self.state.given_up.cancel();
        let new: Vec<Multihash> = self.state.progress().new.drain().collect();
        if self.alone != Some(jobs.started) || new.is_empty() {
            return;
        }
        // Without a runtime the process is ending: the chunks stay owed, which loses nothing.
        if tokio::runtime::Handle::try_current().is_ok() {
            let cleaning = Cleaning::new(shared.clone());
            let change = Amendment { owed: Some(false), ..Amendment::default() };
            let cleaned = shared.workers.task(async move {
                let changes = &cleaning.0.changes;
                // The task that takes them ends only after the last sender.
                for hash in new {
                    let _ = changes.send(Change::Amend(hash, change)).await;
                }
                let (done, settled) = oneshot::channel();
                let _ = changes.send(Change::Settled(done)).await;
                let _ = settled.await;
            });
            drop(cleaned);
        }
    }
}
