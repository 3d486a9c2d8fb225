//! The writer: the only one that changes the store. It takes operations in batches and commits each batch in the
//! order that makes "acknowledged" mean "on disk":
//!
//! append → fdatasync the segment → apply to the index → flush it → fdatasync its file → acknowledge.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use p2p_protocol::{Chunk, Key, Multihash};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    Entry, Put, Removed, StoreError, Tuning,
    census::{Census, SegmentCount},
    disk::Disk,
    draft::{At, Draft, Shift, cost},
    index::table::{Content, Position, Table},
    key_table::TableChange,
    log::{Log, Sealed, SegmentLog},
    read::{Segments, Source},
    record::{Gone, Record},
    recover,
    segment::Location,
    shared::{IndexState, Shared},
};

/// What is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// To a put.
    Put(Put),
    /// To a put with a change of the key table, and whether that was made.
    PutWith(Put, bool),
    /// To a change of the key table: whether it was made.
    Table(bool),
    /// To a removal: what it was of.
    Removed(Removed),
    /// To everything else.
    Done,
}

/// What is answered, or why it was not done.
pub(super) type Outcome = Result<Answer, StoreError>;

/// What is asked of the writer.
pub(super) enum Request {
    /// Keep a chunk.
    Put(Chunk),
    /// Keep a chunk, and change the key table.
    PutWith(Chunk, TableChange),
    /// Change the key table.
    Table(TableChange),
    /// Sync what was changed without a commit.
    Flush,
    /// Remove chunks.
    Remove(Vec<Multihash>),
    /// Keep values, or remove them where there is none.
    Values(Vec<(Bytes, Option<Bytes>)>),
    /// A read found that the record there is damaged.
    Damaged(Multihash, Location),
    /// A read found that the value there is damaged.
    DamagedValue(Bytes, Location),
    /// Records of a segment that is being compacted.
    Relocate(Vec<(Location, Record)>),
    /// Nothing live is in this segment any more: remove it.
    Retire(u32),
    /// The compaction is idle again.
    Compacted {
        /// The segment that it could not remove.
        stuck: Option<u32>,
    },
    /// Make the index again if it failed; commit nothing.
    Heal,
    /// End.
    Close,
}

impl Request {
    /// What it brings, in bytes.
    fn bytes(&self) -> u64 {
        match self {
            Self::Put(chunk) | Self::PutWith(chunk, _) => chunk.len() as u64,
            Self::Values(values) => {
                let length = |(key, value): &(Bytes, Option<Bytes>)| key.len() + value.as_ref().map_or(0, Bytes::len);
                values.iter().map(length).sum::<usize>() as u64
            }
            _ => 0,
        }
    }

    /// What it changes of the key table.
    fn change(&self) -> Option<&TableChange> {
        match self {
            Self::PutWith(_, change) | Self::Table(change) => Some(change),
            _ => None,
        }
    }

    /// Whether it waits for a sync though it changes nothing.
    fn flushes(&self) -> bool {
        matches!(self, Self::Flush)
    }
}

/// A request, where its answer goes, and its share of the queue.
pub(super) struct Operation {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Outcome>,
    /// Held until the answer is given: what is under way is bounded by bytes.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// See the module's text.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Box<dyn Log>,
    /// Bytes of the live chunks and values of each segment.
    pub(super) live: BTreeMap<u32, u64>,
    /// Bytes of the deletions of each segment since the store was opened: perhaps still needed.
    pub(super) kept: BTreeMap<u32, u64>,
    /// Where the index is made again; `None` in memory.
    pub(super) index_paths: Option<recover::IndexPaths>,
}

/// Opens the segments and the index below `root`, on `disk`.
pub(super) fn open(
    disk: &Arc<dyn Disk>,
    root: &Path,
    capacity_bytes: u64,
    tuning: Tuning,
) -> Result<Writer, StoreError> {
    let segments = root.join("segments");
    let index_paths = recover::IndexPaths::below(root);
    let mut log = SegmentLog::open(disk, &segments, tuning.segment_bytes, tuning.reserve_bytes)?;
    let recovered = recover::index(&index_paths, &mut log, None)?;
    let shared = Arc::new(Shared {
        index: RwLock::new(IndexState::Open(recovered.table)),
        source: Source::Disk(Segments::new(disk, &segments, &root.join("quarantine"))),
        counters: Mutex::new(recovered.counters),
        healing: AtomicBool::new(false),
        batches: AtomicU64::new(0),
        capacity_bytes,
        full: AtomicBool::new(false),
        disk: Some((Arc::clone(disk), segments, tuning.reserve_bytes)),
    });
    let (live, kept) = (recovered.live, recovered.kept);
    Ok(Writer { shared, log: Box::new(log), live, kept, index_paths: Some(index_paths) })
}

/// What a batch will append, and what is answered when that is done.
struct Plan<'a> {
    draft: Draft<'a>,
    records: Vec<Record>,
    /// What puts may still take of the disk.
    disk_bytes: u64,
    capacity_bytes: u64,
}

impl Writer {
    /// Commits `operations` and answers each.
    pub(super) fn commit(&mut self, operations: Vec<Operation>) {
        if operations.is_empty() {
            return;
        }
        match self.try_commit(&operations) {
            Ok(outcomes) => {
                for (operation, outcome) in operations.into_iter().zip(outcomes) {
                    drop(operation.permit);
                    // Whoever asked may have gone; it is done all the same.
                    let _ = operation.reply.send(outcome);
                }
            }
            // One that does not fit must not fail the others: each tries alone.
            Err(StoreError::NoSpace { .. }) if operations.len() > 1 => {
                for operation in operations {
                    self.commit(vec![operation]);
                }
            }
            Err(error) => {
                let needed = operations.iter().map(|operation| operation.request.bytes()).sum();
                let error = blamed(error, needed, self.log.free_bytes());
                for operation in operations {
                    drop(operation.permit);
                    let _ = operation.reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn try_commit(&mut self, operations: &[Operation]) -> Result<Vec<Outcome>, StoreError> {
        self.log.ready()?;
        self.heal()?;
        let shared = Arc::clone(&self.shared);
        let table = match &*shared.index.read().unwrap_or_else(PoisonError::into_inner) {
            IndexState::Open(table) => table.clone(),
            IndexState::Failed(reason) => return Err(StoreError::Index(reason.clone())),
            IndexState::Closed => return Err(StoreError::Closed),
        };
        let mut logged = None;
        let outcome = self.commit_to(&table, operations, &mut logged);
        // The index can only be made again when nobody has it open.
        drop(table);
        if let Err(StoreError::Index(reason)) = &outcome {
            self.shared.fail(reason);
            self.heal()?;
            if let Some(outcomes) = logged {
                // The batch was in the log, which the index has followed now.
                return Ok(outcomes);
            }
        }
        outcome
    }

    /// `logged` is what will be answered, once the batch is on disk in the log.
    fn commit_to(
        &mut self,
        table: &Table,
        operations: &[Operation],
        logged: &mut Option<Vec<Outcome>>,
    ) -> Result<Vec<Outcome>, StoreError> {
        let mut plan = Plan {
            draft: Draft::new(table, *self.shared.counters()),
            records: Vec::new(),
            disk_bytes: self.log.free_bytes(),
            capacity_bytes: self.shared.capacity_bytes,
        };
        let mut outcomes = Vec::with_capacity(operations.len());
        for operation in operations {
            outcomes.push(match self.plan(&mut plan, &operation.request) {
                Ok(answer) => Ok(answer),
                Err(error @ StoreError::NoSpace { .. }) => Err(error),
                Err(error) => return Err(error),
            });
        }
        let Plan { draft, records, .. } = plan;
        let asked = operations.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
        let apart = asked.filter(|(operation, _)| operation.request.change().is_some() || operation.request.flushes());
        if records.is_empty() && apart.count() == 0 {
            return Ok(outcomes);
        }
        let counters = draft.counters();
        let mut batches = (Vec::new(), Vec::new());
        let mut locations = Vec::new();
        if !records.is_empty() {
            locations = self.log.append(&records)?;
            if let Err(error) = self.log.sync() {
                self.log.undo();
                return Err(error);
            }
            batches = draft.finish(&locations, &self.log.position())?;
        }
        // Without the changes of the key table: where the index fails now, the table is lost.
        *logged = Some(outcomes.clone());
        let (batches, shifts) = batches;
        for batch in batches {
            table.index().apply(batch)?;
        }
        let (changes, answers): (Vec<_>, Vec<_>) = operations
            .iter()
            .zip(&mut outcomes)
            .filter_map(|(operation, outcome)| match outcome {
                Ok(Answer::PutWith(_, made) | Answer::Table(made)) => Some((operation.request.change()?, made)),
                _ => None,
            })
            .unzip();
        // All at once: most of what they cost is the same for each.
        for (answer, made) in answers.into_iter().zip(table.keys().apply(changes)?) {
            *answer = made;
        }
        table.index().sync()?;
        self.shared.batches.fetch_add(1, Ordering::Relaxed);
        *self.shared.counters() = counters;
        self.account(&records, &locations, &shifts);
        Ok(outcomes)
    }

    fn account(&mut self, records: &[Record], locations: &[Location], shifts: &[Shift]) {
        for (record, location) in records.iter().zip(locations) {
            // They are live until a compaction finds that nothing needs them.
            if matches!(record, Record::Deletion(..) | Record::Unset(..)) {
                *self.kept.entry(location.segment).or_default() += record.total_bytes();
            }
        }
        for shift in shifts {
            let live = self.live.entry(shift.location.segment).or_default();
            if shift.live {
                *live += shift.bytes;
            } else {
                *live = live.saturating_sub(shift.bytes);
                self.log.release(shift.location);
            }
        }
    }

    fn plan(&mut self, plan: &mut Plan<'_>, request: &Request) -> Outcome {
        match request {
            Request::Put(chunk) => return plan_put(plan, chunk).map(Answer::Put),
            Request::PutWith(chunk, _) => return plan_put(plan, chunk).map(|put| Answer::PutWith(put, false)),
            Request::Table(_) => return Ok(Answer::Table(false)),
            Request::Remove(hashes) => {
                let mut removed = Removed::default();
                for hash in hashes {
                    let key = Key::from(hash);
                    if let Some((entry, _)) = plan.draft.chunk(&key)? {
                        plan.draft.drop_chunk(key, None)?;
                        plan.records.push(Record::Deletion(entry, Gone::Removed, None));
                        removed.chunks += 1;
                        removed.bytes += cost(&entry);
                    } else if let Some(entry) = plan.draft.damaged(&key)? {
                        // Nobody waits for it any more.
                        plan.draft.drop_chunk(key, None)?;
                        plan.records.push(Record::Deletion(entry, Gone::Removed, None));
                    }
                }
                return Ok(Answer::Removed(removed));
            }
            Request::Values(changes) => {
                for (key, value) in changes {
                    match value {
                        Some(value) => {
                            let content = Content::of(key, value);
                            plan.draft.keep_value(key.clone(), content, At::Batch(plan.records.len()))?;
                            plan.records.push(Record::Value(key.clone(), value.clone()));
                        }
                        None if plan.draft.value(key)?.is_some() => {
                            plan.draft.drop_value(key.clone())?;
                            plan.records.push(Record::Unset(key.clone(), None));
                        }
                        None => {}
                    }
                }
            }
            Request::Damaged(hash, location) => {
                let key = Key::from(hash);
                if let Some((entry, At::Log(found))) = plan.draft.chunk(&key)?
                    && found == *location
                {
                    plan.draft.drop_chunk(key, Some(entry))?;
                    plan.records.push(Record::Deletion(entry, Gone::Damaged, None));
                }
            }
            Request::DamagedValue(key, location) => {
                if plan.draft.value(key)? == Some(At::Log(*location)) {
                    plan.draft.drop_value(key.clone())?;
                    plan.records.push(Record::Unset(key.clone(), None));
                }
            }
            Request::Relocate(moved) => {
                for (from, record) in moved {
                    self.plan_move(plan, *from, record)?;
                }
            }
            Request::Flush | Request::Retire(_) | Request::Compacted { .. } | Request::Heal | Request::Close => {}
        }
        Ok(Answer::Done)
    }

    /// Appends again what is still needed of a record that stands at `from`.
    fn plan_move(&mut self, plan: &mut Plan<'_>, from: Location, record: &Record) -> Result<(), StoreError> {
        match record {
            Record::Chunk(entry, payload) => {
                let key = Key::from(&entry.cid.hash);
                if let Some((current, At::Log(found))) = plan.draft.chunk(&key)?
                    && found == from
                {
                    plan.draft.keep(key, current, At::Batch(plan.records.len()))?;
                    plan.records.push(Record::Chunk(current, payload.clone()));
                }
            }
            Record::Deletion(entry, gone, origin) => {
                // Needed while the deleted record may still be in an older segment; a mark of damage, until the chunk
                // is here again.
                let key = Key::from(&entry.cid.hash);
                let needed = match gone {
                    Gone::Damaged => plan.draft.damaged(&key)?.is_some(),
                    Gone::Removed => true,
                };
                let origin = origin.unwrap_or(from.segment);
                let older = self.log.segments().is_some_and(|segments| segments.has_older(origin));
                if plan.draft.chunk(&key)?.is_none() && needed && (older || *gone == Gone::Damaged) {
                    plan.records.push(Record::Deletion(*entry, *gone, Some(origin)));
                }
            }
            Record::Unset(key, origin) => {
                let origin = origin.unwrap_or(from.segment);
                let older = self.log.segments().is_some_and(|segments| segments.has_older(origin));
                if plan.draft.value(key)?.is_none() && older {
                    plan.records.push(Record::Unset(key.clone(), Some(origin)));
                }
            }
            Record::Value(key, value) => {
                if plan.draft.value(key)? == Some(At::Log(from)) {
                    plan.draft.keep_value(key.clone(), Content::of(key, value), At::Batch(plan.records.len()))?;
                    plan.records.push(record.clone());
                }
            }
        }
        Ok(())
    }

    /// Removes a sealed segment in which nothing is live.
    pub(super) fn retire(&mut self, number: u32) -> Outcome {
        let Some(segments) = self.log.segments() else { return Ok(Answer::Done) };
        if self.live.get(&number).is_some_and(|live| *live > 0) {
            return Err(StoreError::Index(format!("something live is still in segment {number}")));
        }
        segments.remove(number)?;
        self.live.remove(&number);
        self.kept.remove(&number);
        self.shared.source.forget(number);
        Ok(Answer::Done)
    }

    /// Makes the index again if it failed.
    fn heal(&mut self) -> Result<(), StoreError> {
        self.shared.healing.store(false, Ordering::SeqCst);
        let failed = match &*self.shared.index.read().unwrap_or_else(PoisonError::into_inner) {
            IndexState::Failed(reason) => reason.clone(),
            _ => return Ok(()),
        };
        let (Some(paths), Some(segments)) = (&self.index_paths, self.log.segments()) else { return Ok(()) };
        let recovered = recover::index(paths, segments, Some(failed))?;
        *self.shared.counters() = recovered.counters;
        self.live = recovered.live;
        self.kept = recovered.kept;
        self.shared.replace(IndexState::Open(recovered.table));
        Ok(())
    }

    /// The sealed segment that is most worth compacting: live bytes under `percent` of it, room for their copy,
    /// and not one of `except`.
    pub(super) fn worth_compacting(&mut self, percent: u64, except: &BTreeSet<u32>) -> Option<(u32, Sealed)> {
        let room = self.log.free_bytes();
        let (live, kept) = (&self.live, &self.kept);
        let segments: &SegmentLog = self.log.segments()?;
        let candidates = segments.sealed().iter().filter_map(|(number, sealed)| {
            // Without its salt its records cannot be walked; what is live in it stays where it is.
            sealed.salt?;
            if except.contains(number) {
                return None;
            }
            let bytes = |of: &BTreeMap<u32, u64>| of.get(number).copied().unwrap_or(0);
            let live = (bytes(live) + bytes(kept)).min(sealed.length);
            (live * 100 < sealed.length * percent && (live == 0 || live < room)).then_some((live, *number, *sealed))
        });
        candidates.min_by_key(|(live, number, _)| (*live, *number)).map(|(_, number, sealed)| (number, sealed))
    }

    /// Whether something of the key table does not count any more.
    pub(super) fn has_garbage(&self) -> bool {
        self.shared.with(|table| Ok(table.keys().has_garbage())).unwrap_or(false)
    }

    /// Ends: the index is closed, and what is counted in it written down.
    pub(super) fn close(&mut self) {
        let counted = self.shared.with(|table| {
            table.index().sync()?;
            Ok((table.position()?, table.sum()?))
        });
        self.shared.replace(IndexState::Closed);
        let written = match counted {
            Ok((Some(position), sum)) => self.write_census(position, sum),
            Ok((None, _)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::debug!(%error, "the store was not closed in good order; the next start looks through its index");
        }
    }

    fn write_census(&mut self, position: Position, sum: u64) -> Result<(), StoreError> {
        let (Some(paths), Some(segments)) = (&self.index_paths, self.log.segments()) else { return Ok(()) };
        let count = |(number, _, length)| {
            let bytes = |of: &BTreeMap<u32, u64>| of.get(&number).copied().unwrap_or(0);
            (number, SegmentCount { length, live: bytes(&self.live), kept: bytes(&self.kept) })
        };
        let counted = segments.all().into_iter().map(count).collect();
        let census = Census { position, sum, counters: *self.shared.counters(), segments: counted };
        census.write(&**segments.disk(), paths.root())
    }
}

/// What callers are told of a failure. An index says of its own failure only that it failed, and where the disk has no room
/// (`free_bytes`, above the reserve) that is why: neither it nor the one that is to be made in its place can be written.
pub(super) fn blamed(error: StoreError, needed: u64, free_bytes: u64) -> StoreError {
    let full = match &error {
        StoreError::Index(_) => free_bytes == 0,
        StoreError::Io { source, .. } => {
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        }
        _ => false,
    };
    match full {
        true => StoreError::NoSpace { needed, reason: format!("the disk is full ({error})") },
        false => error,
    }
}

fn plan_put(plan: &mut Plan<'_>, chunk: &Chunk) -> Result<Put, StoreError> {
    let key = Key::from(&chunk.cid().hash);
    if plan.draft.chunk(&key)?.is_some() {
        return Ok(Put::Known);
    }
    // A chunk's constructors bound its length.
    let entry = Entry { cid: *chunk.cid(), length: chunk.len() as u32 };
    let needed = cost(&entry);
    let no_space = |reason: &str| Err(StoreError::NoSpace { needed, reason: reason.into() });
    if plan.draft.counters().used_bytes() + needed > plan.capacity_bytes {
        return no_space("the store's capacity is reached");
    }
    if plan.disk_bytes < needed {
        return no_space("the disk is nearly full");
    }
    plan.disk_bytes -= needed;
    plan.draft.keep(key, entry, At::Batch(plan.records.len()))?;
    plan.records.push(Record::Chunk(entry, chunk.bytes().clone()));
    Ok(Put::New)
}
