//! Renewals: an add that takes long asks those that keep what it sent to go on keeping it, and sends again what is gone.
//!
//! Nothing lists an add's chunks before its end, and what nothing lists is freed when its grace is over since it was last
//! acknowledged. So what was acknowledged over a quarter of the grace ago is renewed, again and again, at those that
//! should hold it by now, and here; before the end all that is so old is renewed once more. A short add renews nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::ControlFlow,
    sync::Arc,
};

use futures::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use p2p_protocol::{
    Chunk, Multihash, PeerId,
    manifest::Entry,
    replicate::{Plan, most_asked},
};
use tokio::time::{Instant, sleep_until};

use super::job::State;
use crate::store::StoreError;

/// Chunks that are made whole again at once: 16 MiB at the most.
const MENDING: usize = 8;

impl State {
    /// Renews what is due, until the add is over.
    pub(super) async fn renew_on(self: Arc<Self>) {
        let over = self.over.clone();
        tokio::select! {
            () = over.cancelled() => {}
            () = self.renew_for_ever() => {}
        }
    }

    async fn renew_for_ever(&self) {
        let age = self.shared.grace / 4;
        loop {
            let oldest = self.sent.oldest().unwrap_or_else(Instant::now);
            sleep_until(oldest + age).await;
            if self.renew_due().await.is_break() {
                return;
            }
        }
    }

    /// Renews all that is due now, once.
    pub(super) async fn renew_once_more(&self) {
        // What becomes due meanwhile is left: whoever reads the publication has three quarters of the grace to do so.
        let _ = self.renew_due().await;
    }

    /// Renews what is due, page by page, each once.
    async fn renew_due(&self) -> ControlFlow<()> {
        let age = self.shared.grace / 4;
        let _one = self.renewing.lock().await;
        // A round that takes longer than a quarter of the grace ends all the same: somebody else may wait for the next.
        let began = Instant::now();
        loop {
            if self.sent.oldest().is_none_or(|oldest| oldest >= began) {
                return ControlFlow::Continue(());
            }
            let renewed = match self.sent.take_due(age).await {
                Ok(None) => return ControlFlow::Continue(()),
                Ok(Some((page, entries))) => {
                    let began = Instant::now();
                    self.renew(&entries).await.and_then(|gone| match gone.first() {
                        Some(entry) => Err(is_gone(entry)),
                        None => {
                            self.sent.renewed(page, began);
                            Ok(())
                        }
                    })
                }
                Err(source) => Err(StoreError::Io { doing: "reading what was sent".into(), source: Arc::new(source) }),
            };
            if let Err(error) = renewed {
                self.progress().failed.get_or_insert(error);
                return ControlFlow::Break(());
            }
        }
    }

    /// Renews these here and at their k closest; what is not there any more is sent again. Gives those that none of all
    /// these has.
    pub(super) async fn renew(&self, entries: &[Entry]) -> Result<Vec<Entry>, StoreError> {
        let shared = &self.shared;
        let hashes: Vec<_> = entries.iter().map(|entry| entry.cid.hash).collect();
        let here = shared.wanted.renew(&hashes).await?;
        let mut at_peers: BTreeMap<PeerId, Vec<Multihash>> = BTreeMap::new();
        let mut ranked = Vec::with_capacity(entries.len());
        for hash in &hashes {
            let peers = if self.wish.local {
                Vec::new()
            } else {
                shared.locate.ranked(hash, most_asked(self.wish.wanted)).await
            };
            for peer in peers.iter().take(self.wish.wanted.into()).filter(|peer| **peer != shared.locate.local()) {
                at_peers.entry(*peer).or_default().push(*hash);
            }
            ranked.push(peers);
        }
        let asked = at_peers.into_iter().map(|(peer, hashes)| async move {
            let renewed = shared.transfer.renew(peer, hashes.clone()).await.unwrap_or_else(|error| {
                tracing::debug!(%peer, %error, "a peer did not renew what it keeps for an add");
                Vec::new()
            });
            let renewed = hashes.into_iter().zip(renewed).filter(|(_, renewed)| *renewed);
            (peer, renewed.map(|(hash, _)| hash).collect::<BTreeSet<_>>())
        });
        let renewed: Vec<_> = join_all(asked).await;
        let short = entries.iter().zip(here).zip(ranked).filter_map(|((entry, here), peers)| {
            let has = |peer: &PeerId| renewed.iter().any(|(who, which)| who == peer && which.contains(&entry.cid.hash));
            let have: BTreeSet<PeerId> = peers.iter().copied().filter(has).collect();
            let local = shared.locate.local();
            let closest = peers.iter().take(self.wish.wanted.into());
            let whole = closest.into_iter().all(|peer| if *peer == local { here } else { have.contains(peer) });
            let whole = whole && (here || !self.keeps_all);
            (!whole).then_some((*entry, peers, have))
        });
        let short: Vec<_> = short.collect();
        let mended = stream::iter(short).map(|(entry, peers, have)| self.mend(entry, peers, have));
        let mended: Vec<_> = mended.buffer_unordered(MENDING).try_collect().await?;
        Ok(mended.into_iter().flatten().collect())
    }

    /// Makes the copies of a chunk that are missing, of one that is left; gives it back where none is.
    async fn mend(
        &self,
        entry: Entry,
        mut peers: Vec<PeerId>,
        have: BTreeSet<PeerId>,
    ) -> Result<Option<Entry>, StoreError> {
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
