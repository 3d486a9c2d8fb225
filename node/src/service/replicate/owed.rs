//! Copies that are owed, made in the background: when a storing peer comes, and again, later each time, after a failure.
//!
//! Whoever holds an owed chunk offers it to the k closest; offers are idempotent, so several holders may. Each begins at
//! its own place in the keyspace, so that they seldom offer the same chunk at the same time. When k peers acknowledged,
//! the mark goes; the copy stays. When to offer is [`p2p_protocol::owed`]'s.

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use p2p_protocol::{
    Chunk, Key,
    owed::{Input, Owed, Pass},
    replicate::{Plan, most_asked},
};
use tokio::sync::{Notify, watch};

use super::{Shared, amend::Change};
use crate::{
    runner::World,
    service::{
        transfer::{Ask, Offered, TransferError},
        worker::Work,
    },
    store::{Amendment, Entry, Role},
};

/// Owed entries that are read from the index at once.
const PAGE: usize = 256;
/// Chunks that are settled at once: 16 MiB at the most while their bytes are needed.
const SETTLING: usize = 8;

/// The machine's world: what comes and goes, and the pass that is under way.
pub(super) struct Passes {
    pub(super) shared: Arc<Shared>,
    pub(super) topology: watch::Receiver<u64>,
    pub(super) owing: Arc<Notify>,
    /// One at the most.
    pub(super) pass: FuturesUnordered<BoxFuture<'static, Input>>,
    pub(super) work: Work,
}

impl World<Owed> for Passes {
    fn act(&mut self, Pass: Pass) {
        let shared = self.shared.clone();
        self.pass.push(async move { Input::Done { clean: pass(&shared).await } }.boxed());
    }

    async fn next(&mut self) -> Option<Input> {
        tokio::select! {
            changed = self.topology.changed() => changed.ok().map(|()| Input::News),
            () = self.shared.fresh.notified() => Some(Input::News),
            () = self.shared.failed.notified() => Some(Input::Trouble),
            () = self.owing.notified() => Some(Input::Trouble),
            Some(done) = self.pass.next() => Some(done),
        }
    }

    fn settled(&mut self, machine: &Owed) {
        match machine.due() {
            _ if !self.pass.is_empty() => self.work.working(0, Some(self.shared.store.usage().owed)),
            Some(due) => self.work.waiting(due.into()),
            None => self.work.idle(),
        }
    }
}

/// Offers all that is owed; `false` where a peer failed that should have taken a copy, or the store.
async fn pass(shared: &Arc<Shared>) -> bool {
    if shared.store.usage().owed == 0 || shared.locate.reachable() == 0 {
        return true;
    }
    let own = Key::from(&shared.locate.local());
    let mut clean = true;
    // From its own place to the end, then from the start to its own place.
    for (mut after, until) in [(Some(own), None), (None, Some(own))] {
        loop {
            let page = match shared.store.owed(after, PAGE) {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "what is owed cannot be read");
                    return false;
                }
            };
            let Some(last) = page.last() else { break };
            after = Some(Key::from(&last.cid.hash));
            let mut settling = FuturesUnordered::new();
            for entry in page.iter().filter(|entry| until.is_none_or(|until| Key::from(&entry.cid.hash) <= until)) {
                if settling.len() >= SETTLING {
                    clean &= settling.next().await.unwrap_or(true);
                }
                settling.push(settle(shared, *entry));
            }
            while let Some(settled) = settling.next().await {
                clean &= settled;
            }
            if until.is_some_and(|until| after.is_some_and(|after| after > until)) {
                break;
            }
        }
    }
    clean
}

/// Brings one owed chunk to the k closest, as far as they take it; `false` where one failed.
async fn settle(shared: &Arc<Shared>, entry: Entry) -> bool {
    let (cid, terms, local) = (entry.cid, entry.terms, shared.locate.local());
    let ranked = shared.locate.ranked(&cid.hash, most_asked(terms.wanted)).await;
    let mut plan = Plan::new(terms.wanted, ranked);
    let ask = Ask { wanted: terms.wanted, owed: plan.is_short_of_peers(), root: terms.root };
    let bytes = tokio::sync::OnceCell::new();
    let mut asks = FuturesUnordered::new();
    let mut clean = true;
    loop {
        while let Some(peer) = plan.poll_ask() {
            if peer == local {
                // A copy whose bytes are damaged is none.
                match shared.store.verify(&cid.hash).await {
                    Ok(Some(_)) => plan.kept(&local),
                    Ok(None) | Err(_) => plan.refused(&local),
                }
                continue;
            }
            let bytes = &bytes;
            asks.push(async move {
                let answer = match shared.offer(peer, cid, entry.length, ask).await {
                    Ok(Offered::Kept) => Ok(()),
                    Ok(Offered::Send) => match load(shared, entry, bytes).await {
                        Some(chunk) => shared.counted(peer, shared.transfer.put(peer, chunk, ask)).await,
                        None => Err(TransferError::Refused { peer, reason: "the chunk is no longer here".into() }),
                    },
                    Err(error) => Err(error),
                };
                (peer, answer)
            });
        }
        let Some((peer, answer)) = asks.next().await else { break };
        match answer {
            Ok(()) => plan.kept(&peer),
            Err(error) => {
                tracing::debug!(%peer, %cid, %error, "an owed copy was not taken");
                plan.refused(&peer);
                clean = false;
            }
        }
    }
    drop(asks);
    let role = if plan.holders().contains(&local) { Role::Replica } else { Role::Cache };
    // A copy that was acknowledged is never given up for what others say that they keep: they may not.
    let promoted = role == Role::Replica && terms.role == Role::Cache;
    let done = plan.is_complete().then_some(false);
    let change = Amendment { role: promoted.then_some(role), owed: done, wanted: None };
    if change != Amendment::default() {
        // The task ends only after the last sender.
        let _ = shared.changes.send(Change::Amend(cid.hash, change)).await;
    }
    clean
}

async fn load(shared: &Shared, entry: Entry, bytes: &tokio::sync::OnceCell<Option<Chunk>>) -> Option<Chunk> {
    let loaded = bytes.get_or_init(|| async {
        shared.store.get(&entry.cid.hash).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "an owed chunk cannot be read");
            None
        })
    });
    loaded.await.clone()
}
