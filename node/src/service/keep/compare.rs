//! The table compared with the catalogue and the store: by whoever looks at everything anyway.
//!
//! The rows follow from what is told as it happens. What was missed (a kill half-way through a manifest, a put while the
//! table was made) is found here: rows that name what is not live lose those references, chunks without a row get one,
//! and what publications list is read again and listed where it is not.

use std::collections::BTreeSet;

use p2p_protocol::{
    Key, Multihash,
    duty::{Input, Moment, Row, Span, keeper::Role},
};
use tokio::sync::{mpsc, oneshot};

use super::{Around, Keep, KeepError};
use crate::{
    service::{blocking::Blocking, wanted::Wanted},
    store::StoreError,
};

/// Publications that one comparison reads again: a small network's all. A large one's manifests would be more bytes than
/// all that its changes cost, and come in turn.
pub(super) const READ_AGAIN: usize = 4096;
/// Publications that are named and not live, of one comparison: what one kill leaves is at most as many as are read at
/// once. The others are found by the next one.
pub(super) const MOST_NAMED: usize = 1024;
/// Comparisons that wait: whoever asks for another finds the same.
pub(super) const COMPARISONS: usize = 4;
/// Missing chunks that are named; the others are counted.
const MOST_LACKING: usize = 4096;

/// One comparison, asked for.
#[derive(Debug)]
pub(super) struct Comparison {
    /// From which publication on some are read again.
    pub(super) begins_at: u64,
    pub(super) done: oneshot::Sender<Drift>,
}

/// What a comparison found of rows, and puts right.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Drift {
    /// Chunks that are held and had no row.
    pub rowless: u64,
    /// Publications that rows named, and that are not live.
    pub gone: u64,
}

/// Chunks that this node should hold and does not.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Lacking {
    /// How many.
    pub count: u64,
    /// Some of them.
    pub some: Vec<Multihash>,
}

/// Where the loop is told of what others found.
#[derive(Clone, Debug)]
pub(super) struct Ears {
    pub(super) keeper: mpsc::Sender<Input>,
    pub(super) lister: mpsc::Sender<Comparison>,
}

impl Keep {
    /// Compares the table with the store and the catalogue, and puts right what differs: what is gone is taken off, and
    /// what is listed is put in, a little after this returns. `None`: there is no table to compare now. Cancel-safe.
    pub async fn compare(&self) -> Option<Drift> {
        let ears = self.ears()?;
        let (done, found) = oneshot::channel();
        // Spread over the ids, which are hashes: in turn, without anything to remember.
        let begins_at = self.moment().0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ears.lister.send(Comparison { begins_at, done }).await.ok()?;
        let drift = found.await.ok()?;
        if drift != Drift::default() {
            let Drift { rowless, gone } = drift;
            tracing::info!(rowless, gone, "the table of what is wanted differed from the store or the catalogue");
        }
        Some(drift)
    }

    /// These chunks may be missing here: they are compared again now.
    pub async fn look_at(&self, hashes: Vec<Multihash>) {
        let Some(ears) = self.ears() else { return };
        for hash in hashes {
            // Where the loop begins anew, it looks at everything.
            let _ = ears.keeper.send(Input::Changed(Span::of(Key::from(&hash)))).await;
        }
    }

    /// Looks through the table for what this node should hold and does not: a scan of all rows.
    ///
    /// # Errors
    /// Where the index cannot be read; and where the table is being made.
    pub async fn lacking(&self) -> Result<Lacking, KeepError> {
        let mut lacking = Lacking::default();
        let mut next = Some(Span::ALL);
        while let Some(span) = next {
            let page = self.around.rows(span).await?;
            let missing = page.rows.into_iter().filter(|scanned| scanned.row.is_needed() && !scanned.held);
            let missing: Vec<Row> = missing.map(|scanned| scanned.row).collect();
            let hashes: Vec<Multihash> = missing.iter().map(|row| row.entry.cid.hash).collect();
            let roles = self.roles(missing).await?;
            let found: Vec<_> = hashes.into_iter().zip(roles).filter(|(_, role)| *role == Role::Duty).collect();
            lacking.count += found.len() as u64;
            let room = MOST_LACKING - lacking.some.len();
            lacking.some.extend(found.into_iter().map(|(hash, _)| hash).take(room));
            next = page.rest;
        }
        Ok(lacking)
    }

    /// Whether there is a table, and the loop works on it.
    pub fn is_running(&self) -> bool {
        self.ears().is_some()
    }

    /// The time of this node's own clock.
    pub fn moment(&self) -> Moment {
        self.around.wanted.moment()
    }
}

/// Makes a row for each chunk that is held and has none; gives for how many.
pub(super) async fn complete(wanted: &Wanted, blocking: &Blocking) -> Result<u64, StoreError> {
    let (mut made, mut after) = (0, None);
    loop {
        let wanted = wanted.clone();
        let (count, rest) = blocking.run(move || wanted.complete(after)).await??;
        made += count;
        match rest {
            Some(key) => after = Some(key),
            None => return Ok(made),
        }
    }
}

/// Looks at all rows: what was found, and the publications that are named and not among `live`, which ascends.
pub(super) async fn rows(around: &Around, live: &[u64]) -> Result<(Drift, Vec<u64>), StoreError> {
    let rowless = complete(&around.wanted, &around.blocking).await?;
    let mut named = BTreeSet::new();
    let mut next = Some(Span::ALL);
    while let Some(span) = next
        && named.len() < MOST_NAMED
    {
        let page = around.rows(span).await?;
        let named_there = page.rows.iter().flat_map(|scanned| scanned.row.publications());
        named.extend(named_there.filter(|id| live.binary_search(id).is_err()));
        next = page.rest;
    }
    Ok((Drift { rowless, gone: named.len() as u64 }, named.into_iter().collect()))
}
