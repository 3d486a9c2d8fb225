//! Changes of the catalogue, from now on or from an earlier position on.
//!
//! Every change that this node made its own has a position, one more than the one before, and its publication's record
//! carries it. So the past is told from the log: each publication that stands, in the order in which it came; what was
//! superseded meanwhile is left out.

use std::collections::VecDeque;

use bytes::Bytes;
use p2p_protocol::catalogue::{Publication, SignedPublication};
use tokio::sync::broadcast;

use super::{
    Catalogue,
    ledger::{Ledger, PAGE},
    records::{self, Value},
};
use crate::store::StoreError;

/// What a change was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Nothing stood there before.
    Added,
    /// It is a new version of what stood there.
    Updated,
    /// It is a removal.
    Removed,
}

/// A change of the catalogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Which of this node's changes it is, from 1; it grows from one to the next.
    pub position: u64,
    /// What it was.
    pub event: Event,
    /// What is current now.
    pub publication: Publication,
}

/// What makes chunks wanted, or no longer: a publication that stands and is no removal, current or kept, is live.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Live {
    /// It stands from now on.
    Became(Publication),
    /// It does not stand any more.
    Ceased(Publication),
}

/// Why the changes from a position on cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum SinceError {
    /// This node was never there.
    #[error("there is no position {asked}: this node's last is {last}")]
    Ahead {
        /// What was asked for.
        asked: u64,
        /// The last one.
        last: u64,
    },
    /// The store's log.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Changes, first those of the past that were asked for, then each as it comes.
#[derive(Debug)]
pub struct Changes {
    /// Positions and records of the past, ascending.
    past: VecDeque<(u64, Bytes)>,
    ledger: std::sync::Arc<Ledger>,
    /// The last position that was told; those up to it are not told again.
    told: u64,
    live: broadcast::Receiver<Change>,
    /// Changes after `told` came faster than they were taken, and some of them are to be had from the log alone.
    behind: bool,
}

impl Catalogue {
    /// Changes from now on, or all after position `since`. What becomes current once this returned is never missed.
    pub async fn changes(&self, since: Option<u64>) -> Result<Changes, SinceError> {
        let last = self.ledger.position();
        // Before the past is read: what comes meanwhile is told by this.
        let live = self.ledger.changes();
        let told = since.unwrap_or(last);
        let mut changes = Changes { past: VecDeque::new(), ledger: self.ledger.clone(), told, live, behind: false };
        if told > last {
            return Err(SinceError::Ahead { asked: told, last });
        }
        if since.is_some() {
            changes.catch_up().await?;
        }
        Ok(changes)
    }
}

impl Catalogue {
    /// Which publications become live and cease to be from now on, in the order of the changes, each once it is on disk. A
    /// receiver that lags loses the oldest, and is told so: then it compares with [`live_pages`](Self::live_pages) anew.
    pub fn liveness(&self) -> broadcast::Receiver<Live> {
        self.ledger.liveness()
    }
}

impl Changes {
    /// Has what came after the last that was told read from the log.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let last = self.ledger.position();
        // What was given a position by now is in the log after this; what comes later is told as it comes.
        self.ledger.flushed().await?;
        self.past = past(&self.ledger, self.told, last).await?.into();
        self.told = last;
        self.behind = false;
        Ok(())
    }

    /// The next change, once there is one; `None` when the catalogue is gone. Whoever takes them more slowly than they come
    /// is told from the log what that has, without those that were superseded meanwhile. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The store's log.
    pub async fn next(&mut self) -> Option<Result<Change, StoreError>> {
        loop {
            while let Some((position, record)) = self.past.pop_front() {
                // What was superseded since the list was made is told by what superseded it.
                if let Some(change) = read(&self.ledger, position, &record) {
                    return Some(Ok(change));
                }
            }
            if self.behind {
                if let Err(why) = self.catch_up().await {
                    return Some(Err(why));
                }
                continue;
            }
            match self.live.recv().await {
                Ok(change) if change.position <= self.told => {}
                Ok(change) => {
                    self.told = change.position;
                    return Some(Ok(change));
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Positions after `since` up to `last`, and the keys of their records: some 100 bytes each, 6 MiB for a full catalogue.
async fn past(ledger: &Ledger, since: u64, last: u64) -> Result<Vec<(u64, Bytes)>, StoreError> {
    let mut past = Vec::new();
    let mut after: Option<Bytes> = None;
    loop {
        let page = ledger.store().records(records::PREFIX, after.as_deref(), PAGE)?;
        let Some((end, _)) = page.last() else { break };
        after = Some(end.clone());
        tokio::task::yield_now().await;
        for (key, value) in page {
            if let Some(Value { position, event: Some(_), network, .. }) = Value::decode(&value)
                && network == ledger.network_tag()
                && since < position
                && position <= last
            {
                // A copy: what is read is a part of its page.
                past.push((position, Bytes::copy_from_slice(&key)));
            }
        }
    }
    past.sort_unstable();
    Ok(past)
}

fn read(ledger: &Ledger, position: u64, record: &[u8]) -> Option<Change> {
    let value = Value::decode(&ledger.store().record(record).ok()??)?;
    let event = value.event.filter(|_| value.position == position)?;
    let signed = SignedPublication::read_back(&value.signed_bytes).ok()?;
    Some(Change { position, event, publication: signed.into_parts().0 })
}
