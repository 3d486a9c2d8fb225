//! Keeping the catalogue in the store's log: what changed waits in a queue, and one worker writes many at once.
//!
//! The queue is in the order in which the map changed, and so are the positions that changes are told by: whoever was
//! told of one may rely on all before it being on disk.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use p2p_protocol::catalogue::{Outcome, SignedPublication, VersionKey};
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

use super::{
    Change, Live,
    ledger::Ledger,
    records::{self, Value},
};
use crate::{service::worker::Work, store::StoreError};

/// Changes that may wait to be written; whoever brings more waits. As many as a busy second of catch-up brings: some
/// 2 MiB.
pub(super) const WAITING: usize = 4096;
/// Changes that are written at once: the store makes one batch of them.
const AT_ONCE: usize = 1024;
/// After the store failed the same is tried again so much later.
const RETRY: Duration = Duration::from_secs(1);

/// What is to be written, in order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// With their numbers.
    items: VecDeque<(u64, Item)>,
    /// How many were ever put in.
    entered: u64,
}

/// One change of the map.
#[derive(Debug)]
pub(super) struct Item {
    /// A record.
    pub(super) write: Option<(VersionKey, Value)>,
    /// Those of what does not stand any more.
    pub(super) gone: Vec<VersionKey>,
    /// The last position that was given by then.
    pub(super) position: u64,
    /// What became live by it, and what ceased to be.
    pub(super) live: Vec<Live>,
    pub(super) then: Then,
}

/// What is done once it is on disk.
#[derive(Debug)]
pub(super) enum Then {
    /// Nothing is told.
    Nothing,
    /// Everybody is told.
    Tell(Box<Change>),
    /// This node's own publication: only now it is merged, so that nobody learns of what might be lost.
    Merge(Box<Own>),
}

/// A publication that this node made.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) signed: SignedPublication,
    pub(super) change: Change,
    /// Told what became of it.
    pub(super) answer: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// How far the worker is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// Items that were written (own ones also if they could not be: then they are out).
    done: u64,
    /// How often the store failed.
    failures: u64,
    /// What it said last.
    error: Option<StoreError>,
}

impl Queue {
    /// Puts one in; gives its number.
    pub(super) fn push(&mut self, item: Item) -> u64 {
        self.entered += 1;
        self.items.push_back((self.entered, item));
        self.entered
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The next to be written.
    pub(super) fn take(&mut self) -> Vec<(u64, Item)> {
        self.items.drain(..self.items.len().min(AT_ONCE)).collect()
    }

    /// Puts back what could not be written.
    fn put_back(&mut self, items: Vec<(u64, Item)>) {
        for item in items.into_iter().rev() {
            self.items.push_front(item);
        }
    }
}

/// Waits until there is room for one more change.
pub(super) async fn room(ledger: &Ledger) {
    let mut progress = ledger.progress();
    while ledger.state().queue.items.len() >= WAITING {
        if progress.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until all that was merged by now is on disk.
///
/// # Errors
///
/// The store failed meanwhile: nothing is known of what is not on disk yet, which is tried again.
pub(super) async fn flushed(ledger: &Ledger) -> Result<(), StoreError> {
    let mut progress = ledger.progress();
    let entered = ledger.state().queue.entered;
    let failures = progress.borrow_and_update().failures;
    let reached = progress.wait_for(|now| now.done >= entered || now.failures != failures).await;
    match reached {
        // After a failure those that were given up count as done too: only a later look is sure again.
        Ok(now) if now.failures == failures => Ok(()),
        Ok(now) => Err(now.error.clone().unwrap_or(StoreError::Closed)),
        Err(_) => Err(StoreError::Closed),
    }
}

/// The worker: writes what waits, until the store is closed.
pub(super) async fn run(ledger: Arc<Ledger>, progress: watch::Sender<Progress>, work: Work) {
    loop {
        let items = ledger.state().queue.take();
        if items.is_empty() {
            work.idle();
            ledger.queued().await;
            continue;
        }
        work.working(0, Some(items.len() as u64));
        match write(&ledger, &items).await {
            Ok(()) => {
                let written = items.len() as u64;
                ledger.written(&items);
                items.into_iter().for_each(|(_, item)| conclude(&ledger, item));
                progress.send_modify(|now| now.done += written);
            }
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "the catalogue could not be kept; it is tried again");
                fail(&ledger, items, error, &progress);
                sleep(RETRY).await;
            }
        }
    }
}

/// Writes the records, and then removes those of what they superseded: a crash between the two leaves more than stands,
/// never less.
async fn write(ledger: &Ledger, items: &[(u64, Item)]) -> Result<(), StoreError> {
    let (mut writes, mut gone) = (BTreeMap::new(), BTreeSet::new());
    for (_, item) in items {
        for key in &item.gone {
            let key = records::key(key);
            writes.remove(&key);
            gone.insert(key);
        }
        if let Some((key, value)) = &item.write {
            let key = records::key(key);
            gone.remove(&key);
            writes.insert(key, Some(value.encode()));
        }
    }
    if !gone.is_empty()
        && let Some((_, last)) = items.last()
    {
        // The position of what goes must not be given again.
        let position = Bytes::copy_from_slice(&last.position.to_be_bytes());
        writes.insert(Bytes::from_static(records::POSITION), Some(position));
    }
    ledger.store().change_records(writes.into_iter().collect()).await?;
    let gone: Vec<_> = gone.into_iter().map(|key| (key, None)).collect();
    if !gone.is_empty()
        && let Err(error) = ledger.store().change_records(gone).await
    {
        // They are found not to stand at the next start, and removed then.
        tracing::warn!(%error, "publications that were superseded could not be removed from the log");
    }
    Ok(())
}

/// What is to be done once an item is on disk.
fn conclude(ledger: &Ledger, item: Item) {
    item.live.into_iter().for_each(|live| ledger.tell_live(live));
    match item.then {
        Then::Nothing => {}
        Then::Tell(change) => ledger.tell(*change),
        Then::Merge(own) => {
            let Own { signed, change, answer } = *own;
            let outcome = ledger.merge_kept(signed);
            if matches!(outcome, Outcome::Taken { current: true, .. }) {
                ledger.tell(change);
            }
            // Whoever published may have gone.
            let _ = answer.send(Ok(outcome));
        }
    }
}

/// This node's own publications are given up, and whoever made them is told; the rest, which stands in memory, goes back.
pub(super) fn fail(ledger: &Ledger, items: Vec<(u64, Item)>, error: StoreError, progress: &watch::Sender<Progress>) {
    let mut again = Vec::new();
    let mut given_up = 0;
    for (number, item) in items {
        match item.then {
            Then::Merge(own) => {
                given_up += 1;
                // Whoever published may have gone.
                let _ = own.answer.send(Err(error.clone()));
            }
            then => again.push((number, Item { then, ..item })),
        }
    }
    ledger.state().queue.put_back(again);
    progress.send_modify(|now| {
        now.done += given_up;
        now.failures += 1;
        now.error = Some(error);
    });
}
