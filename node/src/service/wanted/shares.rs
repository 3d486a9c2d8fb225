//! What each peer has put here that nothing lists yet: bounded, so that nobody fills a store with what is never published.
//!
//! What somebody adds is unlisted until the add is over, and so is what a stranger puts here for nothing. So it is
//! counted for whoever brought it, and the peer may have a share of the *room*: of what is free, and of what all peers
//! have brought that nothing lists. As soon as something lists it, it counts no more. An add that is larger than the share
//! is refused as if this store were full: the next nearest takes the copy, and once it is published each node fetches what
//! it should hold, which no share bounds.
//!
//! Keys cost nothing, so that all strangers have one share together: whoever makes many keys cannot take what is left to
//! peers that this node has known for long, each of which has a share of its own.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use p2p_protocol::{
    Chunk, Key, MAX_CHUNK_BYTES, Multihash, PeerId,
    duty::{Bringer, Row, SCAN_ROWS, Span, span, wanted::Change},
    manifest::Entry,
};

use super::{Wanted, edit};
use crate::{
    runner::now,
    store::{KeyTable, MAX_TABLE_CHANGES, Put, StoreError},
};

/// The part of the room, in quarters, that a peer may fill which has been a storing peer for long (a guess: no add of such a
/// machine should meet it but where the disks are all but full).
const KNOWN: u64 = 3;
/// The part that all others may fill together: in a network that was made today, everybody's adds that are under way.
const STRANGERS: u64 = 2;
/// What a chunk takes beside its bytes, in the log and in the index: who puts small ones pays for that too.
const BESIDE_BYTES: u64 = 256;
/// Peers that have something here: beside these only those that are known may bring anything. Some 100 KiB.
const PEERS: usize = 4096;
/// Peers that are known: as many as the table of those that store has, and as many of earlier runs.
const MOST_KNOWN: usize = 8192;
/// What is counted may drift (a damaged chunk is not taken off, a table that is made anew names nobody): where a share is
/// reached it is counted again, and again no sooner than this and twenty times what it took.
const RECOUNT: Duration = Duration::from_secs(60);
const RECOUNT_TIMES: u32 = 20;

/// Bytes by who brought them.
#[derive(Debug, Default)]
pub(super) struct Shares {
    counted: Mutex<Counted>,
    /// Held by who counts; when the last count was over, and how long it took.
    count: tokio::sync::Mutex<Option<(Instant, Duration)>>,
}

#[derive(Debug, Default)]
struct Counted {
    /// None has nothing.
    bytes: HashMap<Bringer, u64>,
    /// Of them, what is on its way: it may not have taken room of the store yet.
    coming: u64,
    /// From when on who is known.
    known: HashMap<Bringer, Instant>,
    /// Who has been one of those that store for long, in an earlier run.
    met: HashSet<Bringer>,
}

impl Counted {
    fn add(&mut self, who: Bringer, bytes: u64) {
        *self.bytes.entry(who).or_default() += bytes;
    }

    fn take(&mut self, who: Bringer, bytes: u64) {
        if let Some(has) = self.bytes.get_mut(&who) {
            *has = has.saturating_sub(bytes);
            if *has == 0 {
                self.bytes.remove(&who);
            }
        }
    }

    fn is_known(&self, who: &Bringer, at: Instant) -> bool {
        self.met.contains(who) || self.known.get(who).is_some_and(|from| *from <= at)
    }

    /// How much more a peer may bring where so much is free.
    fn left(&self, who: &Bringer, free: u64, at: Instant) -> u64 {
        let has = self.bytes.get(who).copied().unwrap_or(0);
        let room = self.bytes.values().fold(free, |sum, bytes| sum.saturating_add(*bytes)).saturating_sub(self.coming);
        let quarters = |count: u64| room / 4 * count;
        let left = if self.is_known(who, at) {
            quarters(KNOWN).saturating_sub(has)
        } else if has == 0 && self.bytes.len() >= PEERS {
            0
        } else {
            let strangers = self.bytes.iter().filter(|(other, _)| !self.is_known(other, at));
            quarters(STRANGERS).saturating_sub(strangers.map(|(_, bytes)| *bytes).sum())
        };
        left.min(free)
    }
}

/// Whether a chunk that nothing lists is here already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Here {
    /// It is not.
    Not,
    /// It counts for nobody.
    ForNobody,
    /// It counts for this peer.
    For(Bringer),
}

/// A share's bytes that are taken for a chunk that is on its way; given back if it does not come.
pub(super) struct Charge<'a> {
    shares: &'a Shares,
    taken: Option<(Bringer, u64)>,
    /// For whom it was here before.
    before: Option<(Bringer, u64)>,
}

impl Charge<'_> {
    /// It is here.
    pub(super) fn keep(mut self) {
        let mut counted = self.shares.counted();
        if let Some((_, bytes)) = self.taken.take() {
            counted.coming -= bytes;
        }
        if let Some((who, bytes)) = self.before {
            counted.take(who, bytes);
        }
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if let Some((who, bytes)) = self.taken {
            let mut counted = self.shares.counted();
            counted.coming -= bytes;
            counted.take(who, bytes);
        }
    }
}

/// What a chunk of so many bytes counts as.
fn cost(length: u32) -> u64 {
    u64::from(length) + BESIDE_BYTES
}

impl Shares {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        // Nothing under this lock panics.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing lists a row's chunk any more that counted, or it is listed: whoever brought it has so much less here.
    pub(super) fn give_back(&self, row: &Row) {
        if let Some(who) = row.bringer() {
            self.counted().take(who, cost(row.entry.length));
        }
    }

    /// Whether anything is counted at all.
    pub(super) fn is_empty(&self) -> bool {
        self.counted().bytes.is_empty()
    }

    fn try_take(&self, who: Bringer, length: u32, here: Here, free: u64) -> Option<Charge<'_>> {
        let bytes = cost(length);
        let (free, before) = match here {
            Here::For(before) if before == who => return Some(Charge { shares: self, taken: None, before: None }),
            // It takes no more room.
            Here::For(before) => (free.saturating_add(bytes), Some(before)),
            Here::ForNobody => (free.saturating_add(bytes), None),
            Here::Not => (free, None),
        };
        let mut counted = self.counted();
        if counted.left(&who, free, now()) < bytes {
            return None;
        }
        counted.add(who, bytes);
        counted.coming += bytes;
        Some(Charge { shares: self, taken: Some((who, bytes)), before: before.map(|before| (before, bytes)) })
    }
}

impl Wanted {
    /// [`put`](Self::put) of a chunk that a peer brought: what nothing lists counts for it, as far as its share reaches.
    ///
    /// # Errors
    /// Where the peer's share or the store has no room, or the store fails.
    pub async fn put_from(&self, peer: &PeerId, chunk: Chunk) -> Result<Put, StoreError> {
        let _acknowledging = self.inner.acknowledging.read().await;
        if !self.is_made() {
            return self.inner.store.put(chunk).await;
        }
        let who = Bringer::from(peer);
        // A chunk has 2 MiB at the most.
        let entry = Entry { cid: *chunk.cid(), length: chunk.len() as u32 };
        let (row, here) = (self.row(&entry.key())?, self.inner.store.entry(&entry.cid.hash)?.is_some());
        let (change, charge) = if row.as_ref().is_some_and(Row::is_needed) {
            (Change::Renew(entry, self.moment()), None)
        } else {
            let here = match row.and_then(|row| row.bringer()) {
                _ if !here => Here::Not,
                Some(before) => Here::For(before),
                None => Here::ForNobody,
            };
            (Change::Bring(entry, who, self.moment()), Some(self.charge(who, entry.length, here).await?))
        };
        let (change, clock) = self.change(vec![edit(&entry, change)], Vec::new());
        let (put, made) = self.inner.store.put_with(chunk, change).await?;
        self.noted(clock, made);
        // One that came meanwhile as well, from wherever, is counted there.
        if let Some(charge) = charge.filter(|_| put == Put::New || here) {
            charge.keep();
        }
        if put == Put::New {
            self.inner.news.store(true, Ordering::Relaxed);
        }
        Ok(put)
    }

    /// [`renew`](Self::renew) for a peer that asks for it and brings nothing: not of what was withdrawn longer than the grace ago, nor of
    /// what nothing lists beyond its share. Whoever is told so brings it again.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub async fn renew_for(&self, peer: &PeerId, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        let _acknowledging = self.inner.acknowledging.read().await;
        let (who, made) = (Bringer::from(peer), self.is_made());
        let (mut renewed, mut edits, mut charges) = (Vec::with_capacity(hashes.len()), Vec::new(), Vec::new());
        for hash in hashes {
            let Some(held) = self.inner.store.entry(hash)? else {
                renewed.push(false);
                continue;
            };
            let (entry, now) = (Entry { cid: held.cid, length: held.length }, self.moment());
            let row = self.row(&entry.key())?;
            if !row.as_ref().is_none_or(|row| row.is_renewable(now, self.inner.grace)) {
                renewed.push(false);
                continue;
            }
            // What something lists, or has, counts for nobody.
            if made && !row.as_ref().is_some_and(Row::was_listed) {
                let here = row.and_then(|row| row.bringer()).map_or(Here::ForNobody, Here::For);
                match self.charge(who, entry.length, here).await {
                    Ok(charge) => charges.push(charge),
                    Err(StoreError::NoSpace { .. }) => {
                        renewed.push(false);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            edits.push(edit(&entry, Change::RenewFor(entry, who, now)));
            renewed.push(true);
        }
        if made {
            for part in edits.chunks(MAX_TABLE_CHANGES - 1) {
                let (change, clock) = self.change(part.to_vec(), Vec::new());
                self.noted(clock, self.inner.keys.commit(change).await?);
            }
        }
        charges.into_iter().for_each(Charge::keep);
        Ok(renewed)
    }

    /// Storing peers are known from these times on, and those that were known in earlier runs; all others are strangers.
    pub fn acquaint(&self, peers: impl IntoIterator<Item = (Bringer, Instant)>) {
        self.inner.shares.counted().known = peers.into_iter().take(MOST_KNOWN).collect();
    }

    /// These were storing peers in an earlier run, and for long by now: they are known.
    pub fn met(&self, peers: impl IntoIterator<Item = PeerId>) {
        self.inner.shares.counted().met = peers.into_iter().take(MOST_KNOWN).map(|peer| Bringer::from(&peer)).collect();
    }

    /// How many bytes of chunks a peer may bring now, this chunk being one of them: what something lists is bounded by the
    /// store alone.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub async fn room_for(&self, peer: &PeerId, hash: &Multihash) -> Result<u64, StoreError> {
        let free = || self.inner.store.usage().free_bytes;
        if !self.is_made() || self.row(&Key::from(hash))?.is_some_and(|row| row.is_needed()) {
            return Ok(free());
        }
        let who = Bringer::from(peer);
        self.count_shares(None).await?;
        let left = || self.inner.shares.counted().left(&who, free(), now());
        if left() <= MAX_CHUNK_BYTES as u64 {
            self.count_shares(Some(RECOUNT)).await?;
        }
        Ok(left())
    }

    /// Takes the bytes of a chunk that nothing lists of a peer's share; an error where that has not so many left.
    pub(super) async fn charge(&self, who: Bringer, length: u32, here: Here) -> Result<Charge<'_>, StoreError> {
        self.count_shares(None).await?;
        let charge = || self.inner.shares.try_take(who, length, here, self.inner.store.usage().free_bytes);
        let mut charged = charge();
        if charged.is_none() && self.count_shares(Some(RECOUNT)).await? {
            charged = charge();
        }
        charged.ok_or_else(|| StoreError::NoSpace {
            needed: u64::from(length),
            reason: "what this peer has put here, and nothing lists yet, fills its share".to_owned(),
        })
    }

    /// Counts what is here for whom, unless it was done: ever, or within `again`. Whether it was done now.
    async fn count_shares(&self, again: Option<Duration>) -> Result<bool, StoreError> {
        let mut last = self.inner.shares.count.lock().await;
        let due = match (*last, again) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some((at, took)), Some(again)) => now().saturating_duration_since(at) >= again.max(took * RECOUNT_TIMES),
        };
        if !due {
            return Ok(false);
        }
        let (began, keys) = (now(), self.inner.keys.clone());
        // What is on its way counts too, and twice if it comes meanwhile, until it is counted again.
        let before = self.inner.shares.counted().bytes.clone();
        // A thread is refused only while the runtime shuts down.
        let scanned = tokio::task::spawn_blocking(move || scan(&keys)).await.map_err(|_| StoreError::Closed)?;
        let found = scanned?;
        let mut counted = self.inner.shares.counted();
        let during: Vec<_> = counted
            .bytes
            .iter()
            .map(|(who, bytes)| (*who, bytes.saturating_sub(before.get(who).copied().unwrap_or(0))))
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        counted.bytes = found;
        during.into_iter().for_each(|(who, bytes)| counted.add(who, bytes));
        *last = Some((now(), now().saturating_duration_since(began)));
        Ok(true)
    }
}

/// What is here for whom, by a look at every row. Blocks.
fn scan(keys: &KeyTable) -> Result<HashMap<Bringer, u64>, StoreError> {
    let (mut found, mut span) = (Counted::default(), Span::ALL);
    loop {
        let rows: Vec<(Key, Bytes)> = keys.range(span.from.., SCAN_ROWS)?;
        for row in rows.iter().filter_map(|(_, bytes)| Row::from_bytes(bytes)) {
            if let Some(who) = row.bringer() {
                found.add(who, cost(row.entry.length));
            }
        }
        match rows.last().and_then(|(last, _)| span::after(last)) {
            Some(from) if rows.len() == SCAN_ROWS => span.from = from,
            _ => return Ok(found.bytes),
        }
    }
}
