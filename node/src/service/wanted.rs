//! The wanted table on disk: what is listed or held here, and how long what nothing lists is protected.
//!
//! A row a chunk ([`p2p_protocol::duty::wanted`]), in the store's key table: derived, so that a table that is lost is
//! made again from what is held and from what the catalogue lists. What this node acknowledges to anybody is noted here
//! in the same commit, by this node's own clock, before the answer is given: nobody is told "kept" of what is freed a
//! moment later.

mod compare;
mod notes;
mod roll;
mod shares;
mod sums;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use p2p_protocol::{
    Chunk, Key, Multihash,
    duty::{
        Moment, Reference, Row, SCAN_ROWS, Scanned, Settings, Span, Spans, span,
        wanted::{Change, merge},
    },
    manifest::Entry,
};
use tokio::sync::{Notify, RwLock};

use self::{
    notes::{covered_name, covered_note},
    roll::Standing,
    shares::Shares,
    sums::Sums,
};
pub use self::{
    roll::Noted,
    sums::{InRange, Side},
};
use crate::{
    runner::now,
    store::{Edit, KeyTable, MAX_TABLE_CHANGES, Put, Store, StoreError, TableChange},
};

/// The note of this node's own clock: eight bytes, seconds.
const CLOCK: &[u8] = b"clock";
/// Chunks that are read from the store at once while a table is made.
const PAGE: usize = 4096;

/// A part of the rows, in key order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rows {
    /// At most [`SCAN_ROWS`].
    pub rows: Vec<Scanned>,
    /// What is behind them; `None`: nothing.
    pub rest: Option<Span>,
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Wanted {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    keys: KeyTable,
    /// When this node started, and what its own clock said then.
    started: (Instant, Moment),
    /// The generation of the table that counts; 0 while there is none.
    generation: AtomicU64,
    /// Held shared while something is acknowledged, alone while something is freed.
    acknowledging: RwLock<()>,
    lost: Notify,
    /// The clock's note as it was written last, in seconds; `u64::MAX` before that.
    noted: AtomicU64,
    sums: Mutex<Sums>,
    /// Parts of the table that were read for sums since the start.
    scanned: AtomicU64,
    /// How much is here for which peer.
    shares: Shares,
    /// How long what was withdrawn may be renewed.
    grace: Duration,
    /// A chunk came that was not here.
    news: AtomicBool,
    /// What was live when everything was read, as it is noted.
    roll: Standing,
}

impl Wanted {
    /// The table of `store`, as it was left, with the usual grace; [`make`](Self::make) makes one that is lost.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn open(store: Store) -> Result<Self, StoreError> {
        Self::open_with(store, Settings::default().grace)
    }

    /// The same with a grace: how long what nothing lists is kept.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn open_with(store: Store, grace: Duration) -> Result<Self, StoreError> {
        let keys = store.key_table();
        let note = keys.note(CLOCK)?;
        let clock = note.and_then(|bytes| Some(u64::from_be_bytes(bytes.as_ref().try_into().ok()?)));
        let generation = keys.generation()?.unwrap_or(0);
        let started = (now(), Moment(clock.unwrap_or(0)));
        let (generation, acknowledging, lost) = (AtomicU64::new(generation), RwLock::default(), Notify::new());
        let (noted, sums) = (AtomicU64::new(u64::MAX), Mutex::default());
        // What an earlier run left is found by the first look at everything.
        let news = AtomicBool::new(false);
        let shares = Shares::default();
        let scanned = AtomicU64::new(0);
        let roll = Standing::read(&keys)?;
        let inner = Inner {
            store,
            keys,
            started,
            generation,
            acknowledging,
            lost,
            noted,
            sums,
            scanned,
            shares,
            grace,
            news,
            roll,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The time of this node's own clock.
    pub fn moment(&self) -> Moment {
        let (started, moment) = self.inner.started;
        Moment(moment.0 + now().saturating_duration_since(started).as_secs())
    }

    /// Whether there is a table.
    pub fn is_made(&self) -> bool {
        self.inner.generation.load(Ordering::Acquire) != 0
    }

    /// Makes the table from what is held, each chunk as if it had come now. `false`: the index was lost meanwhile, and there
    /// is no table yet. Blocks.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub fn make(&self) -> Result<bool, StoreError> {
        let mut rebuild = self.inner.keys.rebuild()?;
        let (moment, generation) = (self.moment(), rebuild.generation());
        let mut after = None;
        loop {
            let page = self.inner.store.scan(after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(Key::from(&last.cid.hash));
            for held in page {
                let row = Row::new(Entry { cid: held.cid, length: held.length }, moment);
                if !rebuild.push(Key::from(&held.cid.hash), row.to_bytes().into())? {
                    return Ok(false);
                }
            }
        }
        let clock = (Bytes::from_static(CLOCK), Bytes::copy_from_slice(&moment.0.to_be_bytes()));
        let made = rebuild.finish(&[clock])?;
        if made {
            self.inner.roll.lost();
            self.inner.generation.store(generation, Ordering::Release);
        }
        Ok(made)
    }

    /// Returns when the table turned out to be lost: it has to be made again. Cancel-safe; one waiter.
    pub async fn lost(&self) {
        self.inner.lost.notified().await;
    }

    /// [`Store::put`], noted as acknowledged now in the same commit.
    ///
    /// # Errors
    /// Where the store fails, or has no room.
    pub async fn put(&self, chunk: Chunk) -> Result<Put, StoreError> {
        let _acknowledging = self.inner.acknowledging.read().await;
        if !self.is_made() {
            return self.inner.store.put(chunk).await;
        }
        // A chunk has 2 MiB at the most.
        let entry = Entry { cid: *chunk.cid(), length: chunk.len() as u32 };
        let (change, clock) = self.change(vec![self.renewal(&entry)], Vec::new());
        let (put, noted) = self.inner.store.put_with(chunk, change).await?;
        self.noted(clock, noted);
        if put == Put::New {
            self.inner.news.store(true, Ordering::Relaxed);
        }
        Ok(put)
    }

    /// Whether chunks came since this was asked last: perhaps nothing will ever list them.
    pub fn take_news(&self) -> bool {
        self.inner.news.swap(false, Ordering::Relaxed)
    }

    /// Notes those of these that are here as acknowledged now, on disk on return, and says which they are: none of them is
    /// freed between the look and the note.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub async fn renew(&self, hashes: &[Multihash]) -> Result<Vec<bool>, StoreError> {
        let _acknowledging = self.inner.acknowledging.read().await;
        let held = hashes.iter().map(|hash| self.inner.store.entry(hash)).collect::<Result<Vec<_>, _>>()?;
        let here: Vec<_> = held.iter().flatten().map(|held| Entry { cid: held.cid, length: held.length }).collect();
        if self.is_made() {
            for part in here.chunks(MAX_TABLE_CHANGES - 1) {
                let edits = part.iter().map(|entry| self.renewal(entry)).collect();
                let (change, clock) = self.change(edits, Vec::new());
                let noted = self.inner.keys.commit(change).await?;
                self.noted(clock, noted);
            }
        }
        Ok(held.iter().map(Option::is_some).collect())
    }

    /// Which of these are not here, and how many are here and named by no pin: none of the others is given up or freed
    /// between the look and the answer.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub async fn not_pinned(&self, entries: &[Entry]) -> Result<(Vec<Entry>, usize), StoreError> {
        let _acknowledging = self.inner.acknowledging.read().await;
        let (mut missing, mut unpinned) = (Vec::new(), 0);
        for entry in entries {
            if !self.holds(entry)? {
                missing.push(*entry);
            } else if !self.row(&entry.key())?.is_some_and(|row| row.is_pinned()) {
                unpinned += 1;
            }
        }
        Ok((missing, unpinned))
    }

    /// Up to [`SCAN_ROWS`] rows of a span, in key order, and whether those are all. A row that nothing lists and of whose
    /// chunk nothing is here goes on the way. Blocks.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub fn scan(&self, span: &Span) -> Result<(Vec<Scanned>, bool), StoreError> {
        let found = match span.to {
            Some(to) => self.inner.keys.range(span.from..to, SCAN_ROWS)?,
            None => self.inner.keys.range(span.from.., SCAN_ROWS)?,
        };
        let ended = found.len() < SCAN_ROWS;
        let (mut rows, mut idle) = (Vec::with_capacity(found.len()), Vec::new());
        let present = self.inner.store.present(&found.iter().map(|(key, _)| *key).collect::<Vec<_>>())?;
        for ((key, bytes), held) in found.into_iter().zip(present) {
            let Some(row) = Row::from_bytes(&bytes) else { continue };
            if !held && !row.is_needed() {
                self.inner.shares.give_back(&row);
                idle.push((key, Edit::Merge(merge, Change::Forget(bytes.to_vec()).to_bytes().into())));
            }
            rows.push(Scanned { key, row, held });
        }
        for part in idle.chunks(MAX_TABLE_CHANGES - 1) {
            self.apply(part.to_vec(), Vec::new())?;
        }
        Ok((rows, ended))
    }

    /// The next rows of a span, as of [`scan`](Self::scan). Blocks.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub fn rows(&self, span: &Span) -> Result<Rows, StoreError> {
        let (rows, ended) = self.scan(span)?;
        let from = rows.last().filter(|_| !ended).and_then(|last| span::after(&last.key));
        Ok(Rows { rows, rest: from.map(|from| Span { from, to: span.to }) })
    }

    /// The row of a chunk.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn row(&self, key: &Key) -> Result<Option<Row>, StoreError> {
        Ok(self.inner.keys.get(key)?.and_then(|bytes| Row::from_bytes(&bytes)))
    }

    /// A publication lists these. Blocks.
    ///
    /// Before its first row, it is noted to be read over nothing: a node that is killed half-way knows of it at its next
    /// start, also where its publication is not live any more.
    ///
    /// # Errors
    /// Where the index cannot be read or written. What was written by then stays, and is done again with the rest.
    pub fn list(&self, reference: Reference, entries: &[(Key, Entry)]) -> Result<(), StoreError> {
        if !entries.is_empty() && self.inner.keys.note(&covered_name(reference.publication))?.is_none() {
            self.set_covered(reference.publication, Some(&Spans::new()))?;
        }
        let now = self.moment();
        if !self.inner.shares.is_empty() {
            for (key, _) in entries {
                self.row(key)?.iter().for_each(|row| self.inner.shares.give_back(row));
            }
        }
        let change = |entry: &Entry| Change::List(*entry, reference, now);
        if !entries.is_empty() {
            self.before_listing()?;
        }
        self.apply_all(entries.iter().map(|(key, entry)| (*key, change(entry))))
    }

    /// What [`list`](Self::list) or [`unlist`](Self::unlist) do, for many publications that list a few chunks each, in few
    /// batches of the index: those of one publication are in one. It is not noted what they were read over: the
    /// [roll](Self::note_roll) says it. Blocks.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub fn note_few(&self, all: impl IntoIterator<Item = Few>) -> Result<(), StoreError> {
        let now = self.moment();
        let (mut edits, mut notes) = (Vec::new(), Vec::new());
        for Few { reference, entries, list } in all {
            // One more is for the clock.
            if edits.len() + notes.len() + entries.len() + 1 >= MAX_TABLE_CHANGES {
                self.apply(std::mem::take(&mut edits), std::mem::take(&mut notes))?;
            }
            if !list {
                self.before_unlisting([reference.publication])?;
                notes.push(covered_note(reference.publication, None));
            } else if !entries.is_empty() {
                self.before_listing()?;
            }
            for (key, entry) in entries {
                if list && !self.inner.shares.is_empty() {
                    self.row(&key)?.iter().for_each(|row| self.inner.shares.give_back(row));
                }
                let change = match list {
                    true => Change::List(entry, reference, now),
                    false => Change::Unlist(reference.publication, now),
                };
                edits.push((key, Edit::Merge(merge, change.to_bytes().into())));
            }
        }
        if edits.is_empty() && notes.is_empty() { Ok(()) } else { self.apply(edits, notes) }
    }

    /// A publication lists these no more. Blocks.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub fn unlist(&self, publication: u64, keys: impl IntoIterator<Item = Key>) -> Result<(), StoreError> {
        let now = self.moment();
        self.before_unlisting([publication])?;
        self.apply_all(keys.into_iter().map(|key| (key, Change::Unlist(publication, now))))
    }

    /// Takes all references to these publications off, by a look at every row. Blocks.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub fn purge(&self, publications: &BTreeSet<u64>) -> Result<(), StoreError> {
        let now = self.moment();
        self.before_unlisting(publications.iter().copied())?;
        let mut next = Some(Span::ALL);
        while let Some(span) = next {
            let page = self.rows(&span)?;
            let named = page.rows.iter().flat_map(|scanned| {
                let named = scanned.row.publications().filter(|publication| publications.contains(publication));
                named.map(|publication| (scanned.key, Change::Unlist(publication, now)))
            });
            self.apply_all(named)?;
            next = page.rest;
        }
        Ok(())
    }

    /// Leaves out the rows outside of these parts of whose chunks nothing is here and which no pin names. Blocks.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub fn narrow(&self, parts: &Spans) -> Result<(), StoreError> {
        self.before_moving()?;
        for outside in Spans::all().without(parts).iter() {
            let mut next = Some(outside);
            while let Some(span) = next {
                let page = self.rows(&span)?;
                let idle = page.rows.iter().filter(|scanned| !scanned.held && !scanned.row.is_pinned());
                self.apply_all(idle.map(|scanned| (scanned.key, Change::Forget(scanned.row.to_bytes()))))?;
                next = page.rest;
            }
        }
        Ok(())
    }

    /// Frees those of these chunks whose grace is over, and that nothing lists by now: it was withdrawn, or an add brought
    /// them that did not come to its end.
    ///
    /// # Errors
    /// Where the index or the log cannot be read or written; what was freed by then is gone.
    pub async fn free(&self, entries: &[Entry], grace: Duration) -> Result<u64, StoreError> {
        // Nobody is told "kept" meanwhile.
        let _alone = self.inner.acknowledging.write().await;
        let moment = self.moment();
        let (mut over, mut edits) = (Vec::new(), Vec::new());
        for entry in entries {
            let key = entry.key();
            let Some(row) = self.row(&key)? else { continue };
            if row.grace_ends(grace).is_some_and(|ends| ends <= moment) {
                over.push(entry.cid.hash);
                self.inner.shares.give_back(&row);
                edits.push((key, Edit::Merge(merge, Change::Forget(row.to_bytes()).to_bytes().into())));
            }
        }
        let freed = over.len() as u64;
        self.inner.store.remove(over).await?;
        for part in edits.chunks(MAX_TABLE_CHANGES - 1) {
            self.apply(part.to_vec(), Vec::new())?;
        }
        Ok(freed)
    }

    /// Gives up those of these copies that something lists still and no pin keeps, and of which `may` says so by key and
    /// copies wanted.
    ///
    /// # Errors
    /// As [`free`](Self::free).
    pub async fn give_up(&self, entries: &[Entry], may: impl Fn(&Key, u8) -> bool) -> Result<u64, StoreError> {
        // Nobody is told "kept" meanwhile.
        let _alone = self.inner.acknowledging.write().await;
        let mut over = Vec::new();
        for entry in entries {
            let key = entry.key();
            let cached = |row: &Row| row.is_wanted() && !row.is_pinned();
            if self.row(&key)?.is_some_and(|row| cached(&row) && may(&key, row.copies())) {
                over.push(entry.cid.hash);
            }
        }
        let given_up = over.len() as u64;
        self.inner.store.remove(over).await?;
        Ok(given_up)
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        // A panic under it would leave a bucket that is worked out again.
        self.inner.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes this node's clock down: as far as it got.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub fn keep_time(&self) -> Result<(), StoreError> {
        self.apply(Vec::new(), Vec::new())
    }

    /// Whether something is held outside of these parts.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn strays(&self, parts: &Spans) -> Result<Spans, StoreError> {
        let outside = Spans::all().without(parts);
        let mut strays = Spans::new();
        for span in outside.iter() {
            let before = span::before(&span.from);
            let first = self.inner.store.scan(before, 1)?;
            if first.iter().any(|held| span.contains(&Key::from(&held.cid.hash))) {
                strays.insert(span);
            }
        }
        Ok(strays)
    }

    /// Whether a chunk is here.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn holds(&self, entry: &Entry) -> Result<bool, StoreError> {
        Ok(self.inner.store.entry(&entry.cid.hash)?.is_some())
    }

    fn apply_all(&self, changes: impl Iterator<Item = (Key, Change)>) -> Result<(), StoreError> {
        let mut edits = Vec::with_capacity(MAX_TABLE_CHANGES);
        for (key, change) in changes {
            edits.push((key, Edit::Merge(merge, change.to_bytes().into())));
            if edits.len() == MAX_TABLE_CHANGES - 1 {
                self.apply(std::mem::take(&mut edits), Vec::new())?;
            }
        }
        if edits.is_empty() { Ok(()) } else { self.apply(edits, Vec::new()) }
    }

    fn apply(&self, entries: Vec<(Key, Edit)>, notes: Vec<Note>) -> Result<(), StoreError> {
        let (change, clock) = self.change(entries, notes);
        let noted = self.inner.keys.apply(&change)?;
        self.noted(clock, noted);
        Ok(())
    }

    fn renewal(&self, entry: &Entry) -> (Key, Edit) {
        edit(entry, Change::Renew(*entry, self.moment()))
    }

    /// A change of this generation, and the clock's note that goes with it: with the first of each second, so that no row is
    /// on disk without a note of its time. (Where two changes of one second overtook each other it may be a second back.)
    fn change(&self, entries: Vec<(Key, Edit)>, mut notes: Vec<Note>) -> (TableChange, Option<Moment>) {
        let moment = self.moment();
        let due = (self.inner.noted.load(Ordering::Acquire) != moment.0).then_some(moment);
        if due.is_some() {
            notes.push((Bytes::from_static(CLOCK), Some(Bytes::copy_from_slice(&moment.0.to_be_bytes()))));
        }
        (TableChange { generation: self.inner.generation.load(Ordering::Acquire), entries, notes }, due)
    }

    /// A change was made, or not; `clock`: the note that went with it.
    fn noted(&self, clock: Option<Moment>, made: bool) {
        if let Some(Moment(seconds)) = clock.filter(|_| made) {
            self.inner.noted.store(seconds, Ordering::Release);
        }
        if !made && self.is_made() {
            self.inner.generation.store(0, Ordering::Release);
            self.inner.lost.notify_one();
        }
    }
}

/// What a publication that lists a few chunks says of them.
#[derive(Clone, Debug)]
pub struct Few {
    /// As rows know it.
    pub reference: Reference,
    /// Fewer than [`MAX_TABLE_CHANGES`] − 2.
    pub entries: Vec<(Key, Entry)>,
    /// It lists them; or it does not any more.
    pub list: bool,
}

/// A note's name and what is in it; `None`: it goes.
type Note = (Bytes, Option<Bytes>);

fn edit(entry: &Entry, change: Change) -> (Key, Edit) {
    (entry.key(), Edit::Merge(merge, change.to_bytes().into()))
}

#[cfg(test)]
#[path = "wanted_tests.rs"]
mod tests;
