//! Renewals: an add that takes long asks those that keep what it sent to go on keeping it, and sends again what is gone.
//!
//! Nothing lists an add's chunks before its end, and what nothing lists is freed when its grace is over since it was last
//! acknowledged. So what was acknowledged over a quarter of the grace ago is renewed, again and again, at those that
//! should hold it by now, and here; before the end all that is so old is renewed once more. A short add renews nothing.
//!
//! Nobody waits for a peer that is dead: who owes an answer for a quarter of the grace is not counted on until it comes,
//! and what it keeps goes to the next nearest, beside the rounds of renewals. So two quarters are left of each grace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::poll_fn,
    io,
    ops::ControlFlow,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use p2p_protocol::{
    Chunk, Key, Multihash, PeerId,
    manifest::Entry,
    replicate::{Plan, most_asked},
};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Transfer, TransferError, job::State};
use crate::store::StoreError;

/// Chunks of an add that are made whole again at once: 16 MiB at the most.
pub(super) const MENDING: usize = 8;
/// Chunks of an add that wait to be made whole again: their tasks have a few KiB each.
const MOST_MENDING: usize = 2048;

/// Who is asked to renew, one request a peer at a time: whoever owes an answer is not waited for, nor counted.
#[derive(Default)]
pub(super) struct Renewing {
    /// Answers that did not come in time. Bounded by the peers that there are.
    late: BTreeMap<PeerId, BoxFuture<'static, ()>>,
}

impl fmt::Debug for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing").field("late", &self.late.keys()).finish()
    }
}

impl Renewing {
    /// Asks each peer about its own, and waits until all have answered or `patience` is over. Gives what each renewed;
    /// who is late stands in [`late`](Self::late).
    async fn ask(
        &mut self,
        transfer: &Transfer,
        at_peers: BTreeMap<PeerId, Vec<Multihash>>,
        patience: Duration,
    ) -> BTreeMap<PeerId, BTreeSet<Multihash>> {
        let asking = at_peers.into_iter().map(|(peer, hashes)| {
            let transfer = transfer.clone();
            let asked = async move {
                let renewed = transfer.renew(peer, hashes.clone()).await.unwrap_or_else(|error| {
                    tracing::debug!(%peer, %error, "a peer did not renew what it keeps for an add");
                    Vec::new()
                });
                hashes.into_iter().zip(renewed).filter(|(_, renewed)| *renewed).map(|(hash, _)| hash).collect()
            };
            (peer, asked.boxed())
        });
        let mut asking: BTreeMap<PeerId, BoxFuture<'static, BTreeSet<Multihash>>> = asking.collect();
        let mut renewed = BTreeMap::new();
        let until = Instant::now() + patience;
        while !asking.is_empty() {
            let next = poll_fn(|context| {
                let done = asking.iter_mut().find_map(|(peer, asked)| match asked.poll_unpin(context) {
                    Poll::Ready(hashes) => Some((*peer, hashes)),
                    Poll::Pending => None,
                });
                done.map_or(Poll::Pending, Poll::Ready)
            });
            let Ok((peer, hashes)) = timeout_at(until, next).await else { break };
            asking.remove(&peer);
            renewed.insert(peer, hashes);
        }
        for (peer, asked) in asking {
            tracing::debug!(%peer, "a peer is late to renew what it keeps for an add: it does not count meanwhile");
            self.late.insert(peer, asked.map(drop).boxed());
        }
        renewed
    }

    /// Those who still owe an answer.
    fn late(&mut self) -> BTreeSet<PeerId> {
        self.late.retain(|_, asked| asked.now_or_never().is_none());
        self.late.keys().copied().collect()
    }
}

/// Chunks of an add that are being made whole again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mending {
    all: usize,
    /// Those of them that have fewer copies than the add waits for.
    awaited: usize,
}

/// A chunk that has not all its copies, and who has it.
struct Short {
    entry: Entry,
    /// How many of those who should have it do.
    copies: u8,
    /// Those who should have it by now, the nearest first, and those who would instead.
    peers: Vec<PeerId>,
    have: BTreeSet<PeerId>,
}

impl State {
    /// Renews what is due, until the add is over.
    pub(super) async fn renew_on(self: Arc<Self>) {
        let over = self.over.clone();
        tokio::select! {
            () = over.cancelled() => {}
            () = self.renew_for_ever() => {}
        }
    }

    async fn renew_for_ever(self: &Arc<Self>) {
        let age = self.shared.grace / 4;
        loop {
            let oldest = self.sent.oldest().unwrap_or_else(Instant::now);
            sleep_until(oldest + age).await;
            if self.renew_due().await.is_break() {
                return;
            }
        }
    }

    /// Renews all that is due now, once, and waits until what had not all its copies has them, or cannot.
    pub(super) async fn renew_once_more(self: &Arc<Self>) {
        // What becomes due meanwhile is renewed by the rounds that go on, or left: whoever reads the publication has three
        // quarters of the grace to do so.
        let _ = self.renew_due().await;
        // The sender lives in this job.
        let _ = self.mending.subscribe().wait_for(|mending| mending.awaited == 0).await;
    }

    /// Renews what is due, page by page, each once. What is short of copies is mended beside it: that may take long, and
    /// what is to be renewed must not wait.
    async fn renew_due(self: &Arc<Self>) -> ControlFlow<()> {
        let age = self.shared.grace / 4;
        let mut renewing = self.renewing.lock().await;
        // A round that takes longer than a quarter of the grace ends all the same: somebody else may wait for the next.
        let began = Instant::now();
        loop {
            if self.sent.oldest().is_none_or(|oldest| oldest >= began) {
                return ControlFlow::Continue(());
            }
            let due = match self.sent.take_due(age).await {
                Ok(None) => return ControlFlow::Continue(()),
                Ok(Some(due)) => Ok(due),
                Err(source) => Err(StoreError::Io { doing: "reading what was sent".into(), source: Arc::new(source) }),
            };
            let renewed = async {
                let (page, entries) = due?;
                let began = Instant::now();
                let short = self.look(&mut renewing, &entries).await?;
                self.sent.renewed(page, began);
                // So that the next page is renewed in time, whatever this one lacks.
                let until = self.sent.oldest().unwrap_or(began) + 2 * age;
                for short in short {
                    self.mend_beside(short, until).await;
                }
                Ok(())
            };
            if let Err(error) = renewed.await {
                self.progress().failed.get_or_insert(error);
                return ControlFlow::Break(());
            }
        }
    }

    /// Renews these here and at their k closest; what is not there any more is sent again. Gives those that none of all
    /// these has.
    pub(super) async fn renew(&self, entries: &[Entry]) -> Result<Vec<Entry>, StoreError> {
        let mut renewing = self.renewing.lock().await;
        let short = self.look(&mut renewing, entries).await?;
        drop(renewing);
        let mended: Vec<_> =
            stream::iter(short).map(|short| self.mend(short)).buffer_unordered(MENDING).try_collect().await?;
        Ok(mended.into_iter().flatten().collect())
    }

    /// Renews these here and at their k closest, and gives those that are not with all of them. Who does not answer within
    /// a quarter of the grace is left out until it does: the next nearest stands in for it.
    async fn look(&self, renewing: &mut Renewing, entries: &[Entry]) -> Result<Vec<Short>, StoreError> {
        let shared = &self.shared;
        let hashes: Vec<_> = entries.iter().map(|entry| entry.cid.hash).collect();
        let here = shared.wanted.renew(&hashes).await?;
        let wanted = usize::from(self.wish.wanted);
        let late = renewing.late();
        let (patience, mut at_peers) = (shared.grace / 4, BTreeMap::<PeerId, Vec<Multihash>>::new());
        let until = Instant::now() + patience;
        let mut ranked = Vec::with_capacity(entries.len());
        for hash in &hashes {
            let mut peers = if self.wish.local {
                Vec::new()
            } else {
                let most = most_asked(self.wish.wanted);
                // A look at the network may be held up by somebody dead, too.
                let ranked = timeout_at(until, shared.locate.ranked(hash, most)).await;
                ranked.unwrap_or_else(|_| shared.locate.known(&Key::from(hash), most))
            };
            let known = peers.len();
            peers.retain(|peer| !late.contains(peer));
            for peer in peers.iter().take(wanted).filter(|peer| **peer != shared.locate.local()) {
                at_peers.entry(*peer).or_default().push(*hash);
            }
            ranked.push((peers, known));
        }
        let renewed = renewing.ask(&shared.transfer, at_peers, patience).await;
        let late = renewing.late();
        let mut progress = self.progress();
        late.iter().for_each(|peer| progress.tally.failure(*peer, TransferError::Timeout { peer: *peer }.to_string()));
        let short = entries.iter().zip(here).zip(ranked).filter_map(|((entry, here), (mut peers, known))| {
            let local = shared.locate.local();
            let has = |peer: &PeerId| renewed.get(peer).is_some_and(|which| which.contains(&entry.cid.hash));
            let have: BTreeSet<PeerId> = peers.iter().copied().filter(has).collect();
            peers.retain(|peer| !late.contains(peer));
            let closest = peers.iter().take(wanted);
            let count = closest.clone().filter(|peer| if **peer == local { here } else { have.contains(peer) }).count();
            // At most `wanted`, which came as a u8.
            let copies = u8::try_from(count).unwrap_or(u8::MAX);
            if count < closest.len() || !here && self.keeps_all {
                return Some(Short { entry: *entry, copies, peers, have });
            }
            if count < wanted.min(known) {
                // Nobody is there to stand in for those who are late.
                progress.tally.chunk(copies);
            }
            None
        });
        Ok(short.collect())
    }

    /// Mends a chunk in a task of its own. Where many are under way until then, it is left to a later round.
    async fn mend_beside(self: &Arc<Self>, short: Short, until: Instant) {
        let mut mending = self.mending.subscribe();
        if timeout_at(until, mending.wait_for(|mending| mending.all < MOST_MENDING)).await.is_err() {
            self.progress().tally.chunk(short.copies);
            return;
        }
        let awaited = usize::from(short.copies < self.wish.wait.unwrap_or(self.wish.wanted));
        self.mending.send_modify(|mending| {
            mending.all += 1;
            mending.awaited += awaited;
        });
        let state = self.clone();
        drop(self.shared.workers.task(async move {
            let given_up = state.given_up.clone();
            let mend = async {
                let _place = state.mends.acquire().await;
                state.mend(short).await
            };
            let mended = tokio::select! {
                biased;
                () = given_up.cancelled() => Ok(None),
                mended = mend => mended,
            };
            if let Some(error) = mended.map_or_else(Some, |gone| gone.as_ref().map(is_gone)) {
                state.progress().failed.get_or_insert(error);
            }
            state.mending.send_modify(|mending| {
                mending.all -= 1;
                mending.awaited -= awaited;
            });
        }));
    }

    /// Makes the copies of a chunk that are missing, of one that is left; gives it back where none is.
    async fn mend(&self, short: Short) -> Result<Option<Entry>, StoreError> {
        let Short { entry, mut peers, have, .. } = short;
        let shared = &self.shared;
        let found = match shared.store.get(&entry.cid.hash).await? {
            Some(chunk) => Some(chunk),
            None => self.fetch_back(&entry, &have).await,
        };
        let Some(chunk) = found else { return Ok(Some(entry)) };
        let local = shared.locate.local();
        if self.keeps_all || peers.iter().take(self.wish.wanted.into()).any(|peer| *peer == local) {
            // Here too it may have been freed just now.
            match shared.wanted.put(chunk.clone()).await {
                Ok(_) => {}
                // The next nearest takes it.
                Err(StoreError::NoSpace { .. }) if !self.keeps_all => peers.retain(|peer| *peer != local),
                Err(error) => return Err(error),
            }
        } else {
            peers.retain(|peer| *peer != local);
        }
        if self.wish.local {
            return Ok(None);
        }
        let mut plan = Plan::new(self.wish.wanted, peers);
        self.spread(&mut plan, &chunk, &have, |_| {}).await;
        self.progress().tally.chunk(plan.copies());
        Ok(None)
    }

    async fn fetch_back(&self, entry: &Entry, have: &BTreeSet<PeerId>) -> Option<Chunk> {
        for peer in have {
            if let Ok(Some(chunk)) = self.shared.transfer.fetch(*peer, entry.cid).await {
                return Some(chunk);
            }
        }
        None
    }
}

fn is_gone(entry: &Entry) -> StoreError {
    let source = io::Error::new(io::ErrorKind::NotFound, "nobody has it any more");
    StoreError::Io { doing: format!("renewing chunk {}", entry.cid), source: Arc::new(source) }
}

#[cfg(test)]
#[path = "renew_tests.rs"]
mod tests;
