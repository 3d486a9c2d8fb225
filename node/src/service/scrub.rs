//! Reading every chunk again, so that what a disk loses is found while others still have it.
//!
//! A worker goes through the log at a gentle pace, and goes on after a restart where it was. What is damaged is set
//! aside by the store and then simply missing: the keeper is told, and fetches it again. At the end of each pass the
//! wanted table is compared with the store and the catalogue. [`Scrub::verify`] does the same at once (`verify.rs`).
//!
//! Time is this node's own clock ([`Moment`](p2p_protocol::duty::Moment)): what counts is how long it runs.

mod pass;
mod verify;

use std::{sync::Arc, time::Duration};

use futures::future::pending;
use p2p_protocol::{Key, Multihash, PeerId};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, sleep_until},
};

pub use self::verify::{Verified, VerifyError};
use self::{
    pass::{Pace, Scrubbing},
    verify::Left,
};
use super::{
    blocking::Blocking,
    holders::Holders,
    keep::{Keep, KeepError, Part},
    locate::Locate,
    transfer::Transfer,
    worker::{Layer, Work},
};
use crate::store::{Store, StoreError};

/// Payload bytes of one step: it is in hand one chunk after the other, and a disk that is wanted for something else has
/// it back within milliseconds.
const STEP_BYTES: u64 = 1 << 20;
/// How often it is written down how far a pass is: so much is read again after a kill.
const NOTE_EVERY: Duration = Duration::from_secs(2);
/// After a failure of the store.
const AGAIN: Duration = Duration::from_secs(60);
/// How often it is looked whether something damaged is to be seen to; it doubles to the longest while nothing comes of it.
const SEE_TO: Duration = Duration::from_secs(60);
const SEE_TO_SELDOM: Duration = Duration::from_secs(3600);
/// Damaged chunks that are looked at at once.
const DAMAGED_PAGE: usize = 1024;
/// Where the store keeps how far the pass is: lost with the index, and then a pass begins.
const TREE: &str = "scrub";
const PASS: &[u8] = b"pass";

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Scrub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    keep: Keep,
    transfer: Transfer,
    locate: Locate,
    blocking: Blocking,
    /// `None`: never.
    pace: Option<Pace>,
    /// Held by whoever reads.
    pass: Mutex<Scrubbing>,
}

impl Scrub {
    /// Starts reading each chunk again within `period` (zero: never).
    pub fn start(
        store: Store,
        keep: Keep,
        transfer: Transfer,
        locate: Locate,
        blocking: Blocking,
        period: Duration,
        workers: &Layer,
    ) -> Self {
        let pace = (!period.is_zero()).then_some(Pace { period });
        let pass = Mutex::new(Scrubbing::default());
        let scrub = Self { inner: Arc::new(Inner { store, keep, transfer, locate, blocking, pace, pass }) };
        let (reading, mending) = (scrub.clone(), scrub.clone());
        workers.spawn("scrub", |work| async move { reading.run(&work).await });
        workers.spawn("seeing to damage", |work| async move { mending.see_to(&work).await });
        scrub
    }

    async fn run(&self, work: &Work) {
        let Some(pace) = self.inner.pace else { return pending().await };
        match self.kept() {
            Ok(kept) => {
                if let Some(kept) = kept {
                    if kept.is_under_way() && kept.chunks > 0 {
                        let (chunks, bytes) = (kept.chunks, kept.bytes);
                        tracing::info!(chunks, bytes, "reading every chunk again goes on where it was");
                    }
                    *self.inner.pass.lock().await = kept;
                }
            }
            Err(error) => tracing::warn!(%error, "how far reading every chunk again was cannot be read"),
        }
        let mut noted = Instant::now();
        loop {
            let mut pass = self.inner.pass.lock().await;
            let now = self.inner.keep.moment();
            if let Some(rest) = pass.rests(&pace, now) {
                drop(pass);
                let until = Instant::now() + rest;
                work.waiting(until);
                sleep_until(until).await;
                continue;
            }
            let usage = self.inner.store.usage();
            let left = usage.bytes.saturating_sub(pass.bytes);
            work.working(pass.bytes, Some(usage.bytes.max(pass.bytes)));
            let began = Instant::now();
            let stepped = self.step(&mut pass, STEP_BYTES).await;
            let wait = match stepped {
                Ok(read) => {
                    if !pass.is_under_way() || noted.elapsed() >= NOTE_EVERY {
                        self.note(&pass);
                        noted = Instant::now();
                    }
                    // Beside other work a step takes longer, and then the next one waits for longer.
                    pace.wait(read, left, pass.began, now).max(began.elapsed() * 3)
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "reading every chunk again stops for a minute");
                    AGAIN
                }
            };
            let over = !pass.is_under_way();
            drop(pass);
            if over {
                self.inner.keep.compare().await;
            }
            sleep(wait).await;
        }
    }

    /// Reads about `bytes` on, from the beginning where no pass is under way; gives how many were read.
    async fn step(&self, pass: &mut Scrubbing, bytes: u64) -> Result<u64, StoreError> {
        if !pass.is_under_way() {
            *pass = Scrubbing::begin(self.inner.keep.moment());
        }
        let step = self.inner.store.read_pass(pass.position, bytes).await?;
        pass.take(&step);
        if !step.damaged.is_empty() {
            let damaged = step.damaged.iter().map(|entry| entry.cid.hash).collect();
            self.inner.keep.look_at(damaged).await;
        }
        if !pass.is_under_way() && pass.chunks > 0 {
            let Scrubbing { chunks, bytes, damaged, .. } = *pass;
            tracing::info!(chunks, bytes, damaged, "every chunk was read again");
        }
        Ok(step.bytes)
    }

    fn kept(&self) -> Result<Option<Scrubbing>, StoreError> {
        let kept = self.inner.store.meta(TREE)?;
        Ok(kept.iter().find(|(key, _)| key == PASS).and_then(|(_, value)| Scrubbing::from_bytes(value)))
    }

    /// A failure costs that some is read again.
    fn note(&self, pass: &Scrubbing) {
        if let Err(error) = self.inner.store.set_meta(TREE, PASS, &pass.to_bytes()) {
            tracing::debug!(%error, "how far reading every chunk again is could not be written down");
        }
    }

    /// Sees to what was found damaged by whoever read it.
    async fn see_to(&self, work: &Work) {
        let (mut wait, mut before) = (SEE_TO, 0);
        loop {
            // Before the loop runs nothing is known to be listed.
            let mended = if self.inner.keep.is_running() { self.mend().await } else { Ok(Left::default()) };
            match mended {
                Ok(left) => {
                    let same = left.damaged == before && left.damaged > 0;
                    wait = if same { (wait * 2).min(SEE_TO_SELDOM) } else { SEE_TO };
                    before = left.damaged;
                }
                Err(KeepError::Store(StoreError::Closed)) => return,
                Err(error) => tracing::warn!(%error, "what is damaged cannot be looked at"),
            }
            work.idle();
            sleep(wait).await;
        }
    }

    /// Looks at everything that is marked damaged: what nothing lists any more, and what others should hold and one of
    /// them has, is forgotten. What this node should hold is the keeper's to fetch. Gives what is left.
    async fn mend(&self) -> Result<Left, KeepError> {
        let mut left = Left::default();
        let mut after = None;
        let mut holders = Holders::new(self.inner.transfer.clone(), self.inner.locate.clone());
        loop {
            let store = self.inner.store.clone();
            let page = self
                .inner
                .blocking
                .run(move || store.damaged(after, DAMAGED_PAGE))
                .await
                .map_err(StoreError::from)??;
            let page: Vec<Multihash> = page.into_iter().map(|entry| entry.cid.hash).collect();
            let Some(last) = page.last() else { return Ok(left) };
            after = Some(Key::from(last));
            let (mut over, mut caches, mut copies) = (Vec::new(), Vec::new(), 1);
            for (hash, (part, wanted)) in page.iter().zip(&self.inner.keep.parts(page.clone()).await?) {
                match part {
                    Part::Pending => over.push(*hash),
                    Part::Cache => {
                        caches.push(*hash);
                        copies = copies.max(*wanted);
                    }
                    Part::Replica => left.duty.push(*hash),
                }
            }
            let held: Vec<Vec<PeerId>> = holders.of(&caches, copies).await;
            over.extend(caches.iter().zip(&held).filter(|(_, held)| !held.is_empty()).map(|(hash, _)| *hash));
            left.damaged += (page.len() - over.len()) as u64;
            left.duty.truncate(verify::MOST_NAMED);
            if !over.is_empty() {
                self.inner.store.remove(over).await?;
            }
        }
    }
}
