//! Reading every chunk again now, and waiting for what is missing.

use std::time::Duration;

use p2p_protocol::{MAX_CHUNK_BYTES, Multihash};
use tokio::{
    sync::watch::Sender,
    time::{Instant, sleep},
};

use super::{Scrub, pass::Scrubbing};
use crate::{
    service::{blocking::Unfinished, keep::KeepError, progress::Progress},
    store::StoreError,
};

/// Payload bytes of one step: the disk reads them in one go, and progress is told of each.
const STEP_BYTES: u64 = 8 << 20;
/// Chunks that are waited for by name; the others are found by the next look at the table.
pub(super) const MOST_NAMED: usize = 4096;
/// How long nothing has to come before what is missing is not waited for any more: longer than it takes to find out that
/// a peer is dead, to ask the others, and to try again what failed once (`protocol/src/duty/pulls.rs`).
const PATIENCE: Duration = Duration::from_secs(45);
/// How often it is looked whether something came.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What re-reading every chunk found.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Verified {
    /// Chunks that were read.
    pub chunks: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Chunks that are damaged: found now, or earlier and not here again when this began.
    pub damaged: u64,
    /// Of those: here again, or a copy too many that another peer has too.
    pub repaired: u64,
    /// Chunks that this node should hold and that are not here at the end.
    pub missing: u64,
}

/// Why chunks could not be read again.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The sentences say it.
pub enum VerifyError {
    #[error("the chunks cannot be read again: {0}")]
    Store(StoreError),
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
}

impl From<StoreError> for VerifyError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What is damaged and was not seen to yet.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Left {
    /// How many.
    pub(super) damaged: u64,
    /// Those of them that this node should hold, as far as they are named.
    pub(super) duty: Vec<Multihash>,
}

impl Scrub {
    /// Reads every chunk again, as fast as the disk goes; what is damaged is set aside, and waited for, with what is
    /// missing beside it, as long as something comes. Cancel-safe: what was set aside is fetched again all the same.
    pub async fn verify(&self, progress: &Sender<Progress>) -> Result<Verified, VerifyError> {
        let mut verified = Verified::default();
        self.inner.locate.discovered().await;
        {
            // The worker waits meanwhile.
            let mut pass = self.inner.pass.lock().await;
            let before = self.mend().await?;
            let mut own = Scrubbing::begin(self.inner.keep.moment());
            while own.is_under_way() {
                self.step(&mut own, STEP_BYTES).await?;
                let total = self.inner.store.usage().bytes.max(own.bytes);
                progress.send_modify(|now| {
                    (now.bytes, now.total_bytes, now.chunks) = (own.bytes, Some(total), own.chunks);
                });
            }
            (verified.chunks, verified.bytes) = (own.chunks, own.bytes);
            verified.damaged = before.damaged + own.damaged;
            // Nothing has to be read a second time.
            *pass = own;
            self.note(&pass);
        }
        self.inner.keep.compare().await;
        self.wait(&mut verified, progress).await?;
        Ok(verified)
    }

    /// Waits for these, which are damaged, as long as something comes; gives how many are left. Cancel-safe.
    pub async fn see_through(&self, mut damaged: Vec<Multihash>) -> Result<u64, VerifyError> {
        let mut since = Instant::now();
        self.inner.keep.look_at(damaged.clone()).await;
        loop {
            // What is not this node's to hold is forgotten where others have it.
            self.mend().await?;
            let (store, looked) = (self.inner.store.clone(), damaged.clone());
            let step = move || {
                let marked = looked.iter().map(|hash| store.is_damaged(hash));
                marked.collect::<Result<Vec<bool>, StoreError>>()
            };
            let mut marked = self.inner.blocking.run(step).await??.into_iter();
            let before = damaged.len();
            damaged.retain(|_| marked.next().unwrap_or(false));
            if damaged.len() < before {
                since = Instant::now();
            }
            if damaged.is_empty() || since.elapsed() >= self.patience() {
                return Ok(damaged.len() as u64);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// At a pace that lets a chunk take long, it is waited for longer.
    fn patience(&self) -> Duration {
        PATIENCE.max(self.inner.keep.time_for(2 * MAX_CHUNK_BYTES as u64))
    }

    /// Waits for what is damaged or missing, as long as something comes.
    async fn wait(&self, verified: &mut Verified, progress: &Sender<Progress>) -> Result<(), VerifyError> {
        let (mut least, mut since) = (u64::MAX, Instant::now());
        loop {
            let looked = Instant::now();
            let left = self.mend().await?;
            let lacking = self.inner.keep.lacking().await?;
            // One that others read meanwhile, and found damaged.
            verified.damaged = verified.damaged.max(left.damaged);
            verified.repaired = verified.damaged - left.damaged;
            verified.missing = lacking.count;
            let mut waiting: Vec<Multihash> = left.duty.into_iter().chain(lacking.some).collect();
            waiting.sort_unstable();
            waiting.dedup();
            self.inner.keep.look_at(waiting.clone()).await;
            let open = left.damaged.max(lacking.count);
            if open == 0 {
                return Ok(());
            }
            progress.send_modify(|now| now.current = Some(format!("{open} chunks are waited for")));
            if open < least {
                (least, since) = (open, Instant::now());
            }
            // Looking at those that are named costs less than at everything, which takes a fifth of the time at most.
            let pause = LOOK_EVERY.max(looked.elapsed() * 4);
            loop {
                if since.elapsed() >= self.patience() {
                    return Ok(());
                }
                sleep(pause).await;
                let (store, named) = (self.inner.store.clone(), waiting.clone());
                let step = move || {
                    let missing = named.iter().map(|hash| Ok(store.entry(hash)?.is_none()));
                    missing.collect::<Result<Vec<bool>, StoreError>>()
                };
                let missing = self.inner.blocking.run(step).await??;
                let still = missing.iter().filter(|missing| **missing).count();
                if still < waiting.len() {
                    let mut missing = missing.into_iter();
                    waiting.retain(|_| missing.next().unwrap_or(false));
                    since = Instant::now();
                }
                if waiting.is_empty() {
                    break;
                }
            }
        }
    }
}
