//! Opening the index: it follows the log from where it was, or a new one is made from the segments.
//!
//! A new one is made in a directory of its own and takes the other's place when it is complete and on disk. What the old
//! one knew to be where the log has nothing any more (a segment that is lost, or whose headers are) is not forgotten:
//! chunks and values are written again where their bytes are still good; other chunks are remembered as damaged.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use p2p_protocol::{Chunk, Key};

use super::{
    Entry, StoreError,
    census::{Census, SegmentCount},
    count::look_through,
    disk::Disk,
    draft::{At, Counters, Draft},
    index::table::{Content, HeldValue, Position, Table},
    log::{Log as _, SegmentLog, failed},
    record::{Gone, HEAD_BYTES, Head, Record, VALUE_HEAD_BYTES, body_checksum},
    replay::{apply, replay},
    segment::{self, Location, SEGMENT_HEAD_BYTES, Step, Walk},
};

/// Entries read at once when the whole of an old index is looked through.
const PAGE: usize = 1024;
/// Records and their bytes that are appended at once while what was lost is written down: an index batch, two chunks.
const LOST_RECORDS: usize = 64;
const LOST_BYTES: u64 = 4 * 1024 * 1024;

/// Where the index is, and the others that there may be beside it.
#[derive(Clone, Debug)]
pub(super) struct IndexPaths {
    root: PathBuf,
    index: PathBuf,
    /// One that is being made.
    unfinished: PathBuf,
    /// One that is not followed any more, until the new one has taken from it what only it knows.
    old: PathBuf,
    /// The last of them, for whoever wants to look at it.
    aside: PathBuf,
}

impl IndexPaths {
    /// The data directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Those of a data directory.
    pub(super) fn below(root: &Path) -> Self {
        let [index, unfinished, old, aside] =
            ["index", "index.new", "index.old", "index.aside"].map(|name| root.join(name));
        Self { root: root.to_owned(), index, unfinished, old, aside }
    }
}

/// An index that has followed the log to its end, and what was counted in it.
pub(super) struct Recovered {
    pub(super) table: Table,
    pub(super) counters: Counters,
    /// Bytes of the live chunks and values of each segment.
    pub(super) live: BTreeMap<u32, u64>,
    /// Bytes of the amendments and deletions of each, as far as they are known.
    pub(super) kept: BTreeMap<u32, u64>,
}

/// Opens the index and lets it follow the log; the torn tail of the log is cut off. `failed`: why the one that is there
/// must not be followed, whatever it says.
pub(super) fn index(paths: &IndexPaths, log: &mut SegmentLog, failed: Option<String>) -> Result<Recovered, StoreError> {
    let disk = std::sync::Arc::clone(log.disk());
    // Before anything is changed.
    let census = Census::take(&*disk, &paths.root)?;
    let reason = match failed {
        Some(reason) => reason,
        None if !disk.exists(&paths.index) => "it is missing".into(),
        None => match open_known(&*disk, paths, census.as_ref()).and_then(|table| follow(table, log, census)) {
            Ok(recovered) => {
                // Of an earlier start that was interrupted just before.
                set_aside(&*disk, paths).map_err(Unfit::into_error)?;
                return Ok(recovered);
            }
            Err(Unfit::Store(error)) => return Err(error),
            Err(Unfit::Index(reason)) => reason,
        },
    };
    renew(&*disk, paths, log, &reason).map_err(Unfit::into_error)
}

/// Makes a new index from the log, in the place of the one that is there, if there is one.
fn renew(disk: &dyn Disk, paths: &IndexPaths, log: &mut SegmentLog, reason: &str) -> Result<Recovered, Unfit> {
    if disk.exists(&paths.index) {
        tracing::warn!(
            %reason, aside = %paths.aside.display(),
            "the index does not fit the store's segments; it is moved aside and made again from them"
        );
        set_aside(disk, paths)?;
        rename(disk, &paths.index, &paths.old)?;
    } else if log.all().iter().any(|(_, _, length)| *length > SEGMENT_HEAD_BYTES) {
        tracing::warn!(index = %paths.index.display(), "the index is missing; it is made again from the store's segments");
    }
    remove(disk, &paths.unfinished)?;
    let table = open(disk, paths, &paths.unfinished)?;
    replay(&table, log, None)?;
    if disk.exists(&paths.old) {
        // What it cannot say any more is lost with it.
        let lost = match open(disk, paths, &paths.old) {
            Ok(old) => write_down_lost(&old, &table, log),
            Err(error) => Err(error),
        };
        match lost {
            Err(Unfit::Index(reason)) => tracing::debug!(%reason, "the old index could not be read to its end"),
            other => other?,
        }
        // What only it knew is in the log now.
        set_aside(disk, paths)?;
    }
    // On disk by now, and closed before it moves: it has files that it opens by their names. Opening it again syncs the
    // move, before anything is answered: the other is never followed again.
    drop(table);
    rename(disk, &paths.unfinished, &paths.index)?;
    count(open(disk, paths, &paths.index)?, log)
}

/// What an old index had that is of no use any more is kept for whoever wants to look at it.
fn set_aside(disk: &dyn Disk, paths: &IndexPaths) -> Result<(), Unfit> {
    if disk.exists(&paths.old) {
        remove(disk, &paths.aside)?;
        rename(disk, &paths.old, &paths.aside)?;
    }
    Ok(())
}

fn rename(disk: &dyn Disk, from: &Path, to: &Path) -> Result<(), Unfit> {
    Ok(disk.rename(from, to).map_err(|e| failed("moving", from, e))?)
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<(), Unfit> {
    Ok(disk.remove_directory(path).map_err(|e| failed("removing", path, e))?)
}

fn sync(disk: &dyn Disk, path: &Path) -> Result<(), Unfit> {
    Ok(disk.sync_directory(path).map_err(|e| failed("syncing", path, e))?)
}

/// Why an index was not taken.
pub(super) enum Unfit {
    /// It is to be made again.
    Index(String),
    /// Making it again would not help.
    Store(StoreError),
}

impl Unfit {
    fn into_error(self) -> StoreError {
        match self {
            Self::Index(reason) => StoreError::Index(reason),
            Self::Store(error) => error,
        }
    }
}

impl From<StoreError> for Unfit {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Index(reason) => Self::Index(reason),
            other => Self::Store(other),
        }
    }
}

fn open(disk: &dyn Disk, paths: &IndexPaths, directory: &Path) -> Result<Table, Unfit> {
    // With permissions of our own: sled would make it readable to all.
    disk.make_directory(directory).map_err(|e| failed("making", directory, e))?;
    let index = disk.index(directory)?;
    sync(disk, directory)?;
    sync(disk, &paths.root)?;
    Ok(Table::new(index)?)
}

/// Opens the index that is there; from the disk itself, unless it was closed in good order.
fn open_known(disk: &dyn Disk, paths: &IndexPaths, census: Option<&Census>) -> Result<Table, Unfit> {
    if census.is_none() {
        let forgotten = disk.forget(&paths.index);
        forgotten.map_err(|error| Unfit::Index(format!("its files cannot be synced: {error}")))?;
        // It will be looked through to its end.
        disk.read_ahead(&paths.index);
    }
    open(disk, paths, &paths.index)
}

/// Replays the tail from the index's position on. What is counted in it is what `census` says, if nothing has changed
/// since.
fn follow(table: Table, log: &mut SegmentLog, census: Option<Census>) -> Result<Recovered, Unfit> {
    let Some(position) = table.position()? else { return Err(Unfit::Index("it is empty".into())) };
    let fits = log.all().iter().any(|(number, salt, length)| {
        *number == position.segment && *salt == Some(position.salt) && position.offset <= *length
    });
    if !fits {
        return Err(Unfit::Index("its position is not in the log".into()));
    }
    let described = census.as_ref().is_some_and(|census| describes(census, position, log));
    replay(&table, log, Some(position))?;
    match census.filter(|_| described) {
        Some(census) if table.sum()? == census.sum => {
            let counts = |of: fn(&SegmentCount) -> u64| census.segments.iter().map(move |(n, count)| (*n, of(count)));
            let (live, kept) = (counts(|count| count.live).collect(), counts(|count| count.kept).collect());
            Ok(Recovered { table, counters: census.counters, live, kept })
        }
        _ => count(table, log),
    }
}

/// Whether an index that is at `position` and the segments are as they were when it was written.
fn describes(census: &Census, position: Position, log: &SegmentLog) -> bool {
    let segments = log.all().into_iter().map(|(number, salt, length)| salt.map(|_| (number, length)));
    let counted = census.segments.iter().map(|(number, count)| Some((*number, count.length)));
    position == census.position && log.position() == census.position && segments.eq(counted)
}

/// Counts what the index holds, and holds it against its sum: a sync of it may have failed just before its process was
/// killed, and what came later may be on disk without what came before. What is outside of the segments is lost, and written down.
fn count(table: Table, log: &mut SegmentLog) -> Result<Recovered, Unfit> {
    let lengths = log.all().iter().map(|(number, _, length)| (*number, *length)).collect();
    let counted = look_through(&table, lengths)?;
    if counted.sum != table.sum()? {
        return Err(Unfit::Index("it does not hold what it was given".into()));
    }
    let mut lost = Lost::new(&table, log);
    counted.lost.into_iter().try_for_each(|entry| lost.damaged(entry))?;
    counted.lost_values.into_iter().try_for_each(|key| lost.add(Record::Unset(key, None)))?;
    lost.write()?;
    table.keys().check(counted.keys)?;
    Ok(Recovered { table, counters: counted.counters, live: counted.live, kept: BTreeMap::new() })
}

/// Writes down what `old` says to be where the log has nothing any more, and `table`, made from the log, lacks. What the
/// log does have there was removed by a later record.
fn write_down_lost(old: &Table, table: &Table, log: &mut SegmentLog) -> Result<(), Unfit> {
    let mut lost = Lost::new(table, log);
    let mut after = None;
    loop {
        let page = old.chunks(after, PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (key, held) in page {
            if table.chunk(&key)?.is_some() || table.damaged(&key)?.is_some() {
                continue;
            }
            let entry = held.entry;
            let recorded = matches!(lost.head(held.location), Some(Head::Chunk(found)) if found.cid == entry.cid);
            let payload = lost.bytes(held.location, HEAD_BYTES as u64, u64::from(entry.length));
            match payload.and_then(|payload| Chunk::verify(entry.cid, payload).ok()) {
                Some(_) if recorded => {}
                Some(chunk) => drop(lost.add(Record::Chunk(entry, chunk.into_bytes()))?),
                None => lost.damaged(entry)?,
            }
        }
    }
    let mut after = None;
    loop {
        let page = old.all_damaged(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(Key::from(&last.cid.hash));
        for entry in page {
            let key = Key::from(&entry.cid.hash);
            if table.chunk(&key)?.is_none() && table.damaged(&key)?.is_none() {
                lost.damaged(entry)?;
            }
        }
    }
    let mut after: Option<Bytes> = None;
    loop {
        let page = old.values(&[], after.as_deref(), PAGE)?;
        let Some((last, ..)) = page.last() else { break };
        after = Some(last.clone());
        for (key, HeldValue { location, content }) in page {
            let now = table.value(&key)?.map(|held| held.location);
            let newer = now.is_some_and(|found| found >= location);
            let recorded = match lost.head(location) {
                Some(head @ Head::Value { key: split, checksum, .. }) => {
                    let body = lost.bytes(location, head.head_bytes(), head.body_bytes());
                    body.is_some_and(|body| body_checksum(&body[..split], &body[split..]) == checksum)
                }
                _ => false,
            };
            if newer || recorded {
                continue;
            }
            let body =
                lost.bytes(location, VALUE_HEAD_BYTES as u64, content.record_bytes(&key) - VALUE_HEAD_BYTES as u64);
            match body.map(Bytes::from).filter(|body| body_checksum(body, &[]) == content.checksum) {
                Some(body) => lost.add(Record::Value(key.clone(), body.slice(key.len()..)))?,
                // What it had replaced must not come back.
                None if now.is_some() => lost.add(Record::Unset(key, None))?,
                None => {}
            }
        }
    }
    lost.write()
}

/// What was lost, on its way into the log and the index.
struct Lost<'a> {
    table: &'a Table,
    log: &'a mut SegmentLog,
    records: Vec<Record>,
    bytes: u64,
    total: u64,
}

impl<'a> Lost<'a> {
    fn new(table: &'a Table, log: &'a mut SegmentLog) -> Self {
        Self { table, log, records: Vec::new(), bytes: 0, total: 0 }
    }

    /// The header that stands at `location`.
    fn head(&self, location: Location) -> Option<Head> {
        let (_, salt, length) = self.log.all().into_iter().find(|(number, ..)| *number == location.segment)?;
        let file = self.log.disk().open(&segment::path(self.log.directory(), location.segment), false).ok()?;
        match Walk::new(&*file, salt?, location.offset, length).step() {
            Ok(Step::Record { offset, head }) if offset == location.offset => Some(head),
            _ => None,
        }
    }

    /// The `length` bytes that stand `skip` behind `location`.
    fn bytes(&self, location: Location, skip: u64, length: u64) -> Option<Vec<u8>> {
        let file = self.log.disk().open(&segment::path(self.log.directory(), location.segment), false).ok()?;
        // A chunk's or a value's: bounded where the index was read.
        let mut bytes = vec![0; length as usize];
        file.read_at(&mut bytes, location.offset + skip).ok()?;
        Some(bytes)
    }

    fn damaged(&mut self, entry: Entry) -> Result<(), Unfit> {
        self.add(Record::Deletion(entry, Gone::Damaged, None))
    }

    fn add(&mut self, record: Record) -> Result<(), Unfit> {
        self.bytes += record.total_bytes();
        self.records.push(record);
        if self.records.len() >= LOST_RECORDS || self.bytes >= LOST_BYTES { self.flush() } else { Ok(()) }
    }

    fn write(mut self) -> Result<(), Unfit> {
        self.flush()?;
        if self.total > 0 {
            tracing::warn!(
                records = self.total,
                "parts of the log are lost; what the index knew of them is written down again"
            );
            self.table.index().sync()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Unfit> {
        let records = std::mem::take(&mut self.records);
        self.bytes = 0;
        if records.is_empty() {
            return Ok(());
        }
        let locations = match self.log.append(&records) {
            Ok(locations) => locations,
            // The store must open all the same; the next start tries again.
            Err(error @ StoreError::NoSpace { .. }) => {
                tracing::warn!(%error, "what was lost could not be written down");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.log.sync()?;
        let mut draft = Draft::replay(self.table);
        for (number, record) in records.iter().enumerate() {
            match record {
                Record::Chunk(entry, _) => draft.keep(Key::from(&entry.cid.hash), *entry, At::Batch(number))?,
                Record::Deletion(entry, ..) => {
                    draft.drop_chunk(Key::from(&entry.cid.hash), Some(*entry))?;
                }
                Record::Value(key, value) => {
                    draft.keep_value(key.clone(), Content::of(key, value), At::Batch(number))?;
                }
                Record::Unset(key, _) => draft.drop_value(key.clone())?,
            }
        }
        self.total += records.len() as u64;
        apply(self.table, draft, &locations, &self.log.position())
    }
}
