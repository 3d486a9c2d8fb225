//! Opening the index: it follows the log from where it was, or is thrown away and made again from the segments.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use p2p_protocol::Key;

use super::{
    StoreError,
    draft::{At, Counters, Draft, cost, value_bytes},
    index::{
        sled::SledIndex,
        table::{Position, Table},
    },
    log::{Log as _, SegmentLog, failed, sync_directory},
    record::{Gone, HEAD_BYTES, Head, Salt, body_checksum},
    segment::{self, Location, SEGMENT_HEAD_BYTES, Step, Walk},
};

/// Entries read at once when the whole index is looked through.
const PAGE: usize = 1024;
/// Records whose changes are applied at once: with a chunk's marks, a few batches.
const REPLAY_BATCH: usize = 64;

/// Where the index is, and where a damaged one is moved to.
#[derive(Clone, Debug)]
pub(super) struct IndexPaths {
    pub(super) index: PathBuf,
    pub(super) aside: PathBuf,
}

/// An index that has followed the log to its end, and what was counted in it.
pub(super) struct Recovered {
    pub(super) table: Table,
    pub(super) counters: Counters,
    pub(super) live: BTreeMap<u32, u64>,
}

/// Opens the index and lets it follow the log; the torn tail of the log is cut off.
pub(super) fn index(paths: &IndexPaths, log: &mut SegmentLog) -> Result<Recovered, StoreError> {
    let there = paths.index.exists();
    let reason = match open(&paths.index).and_then(|table| follow(table, log)) {
        Ok(recovered) => return Ok(recovered),
        Err(Unfit::Store(error)) => return Err(error),
        Err(Unfit::Index(reason)) => reason,
    };
    if there {
        tracing::warn!(
            %reason, aside = %paths.aside.display(),
            "the index does not fit the store's segments; it is moved aside and made again from them"
        );
        if paths.aside.exists() {
            fs::remove_dir_all(&paths.aside).map_err(|e| failed("removing", &paths.aside, e))?;
        }
        fs::rename(&paths.index, &paths.aside).map_err(|e| failed("moving aside", &paths.index, e))?;
    } else {
        if log.all().iter().any(|(_, _, length)| *length > SEGMENT_HEAD_BYTES) {
            tracing::warn!(index = %paths.index.display(), "the index is missing; it is made again from the store's segments");
        }
        // Made just now, and empty: nothing of it is worth keeping.
        if paths.index.exists() {
            fs::remove_dir_all(&paths.index).map_err(|e| failed("removing", &paths.index, e))?;
        }
    }
    let table = open(&paths.index).map_err(Unfit::into_error)?;
    rebuild(table, log).map_err(Unfit::into_error)
}

/// Why an index was not taken.
enum Unfit {
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

fn open(directory: &Path) -> Result<Table, Unfit> {
    // With permissions of our own: sled would make it readable to all.
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("making", directory, error).into());
        }
        _ => {}
    }
    let index = SledIndex::open(directory)?;
    sync_directory(directory)?;
    if let Some(parent) = directory.parent() {
        sync_directory(parent)?;
    }
    Ok(Table::new(Arc::new(index)))
}

/// Replays the tail from the index's position on.
fn follow(table: Table, log: &mut SegmentLog) -> Result<Recovered, Unfit> {
    let Some(position) = table.position()? else { return Err(Unfit::Index("it is empty".into())) };
    let fits = log.all().iter().any(|(number, salt, length)| {
        *number == position.segment && *salt == Some(position.salt) && position.offset <= *length
    });
    if !fits {
        return Err(Unfit::Index("its position is not in the log".into()));
    }
    replay(&table, log, Some(position))?;
    count(table, log)
}

fn rebuild(table: Table, log: &mut SegmentLog) -> Result<Recovered, Unfit> {
    replay(&table, log, None)?;
    count(table, log)
}

/// Applies what the log says from `from` on, or all of it, and cuts off the head's torn tail.
fn replay(table: &Table, log: &mut SegmentLog, from: Option<Position>) -> Result<(), Unfit> {
    let segments = log.all();
    let directory = log.directory().to_owned();
    let mut changed = from.is_none();
    for (place, (number, salt, length)) in segments.iter().copied().enumerate() {
        let head = place + 1 == segments.len();
        let start = match from {
            Some(position) if number < position.segment => continue,
            Some(position) if number == position.segment => position.offset,
            _ => SEGMENT_HEAD_BYTES,
        };
        let path = segment::path(&directory, number);
        let Some(salt) = salt else {
            tracing::warn!(segment = %path.display(), "the header of a segment is damaged: its records are not found again");
            continue;
        };
        if start >= length {
            continue;
        }
        let file = File::open(&path).map_err(|e| failed("opening", &path, e))?;
        let mut part = Part { table, number, salt, path: &path, verify: head, end: start, replayed: 0 };
        part.replay(&file, length)?;
        changed |= part.replayed > 0;
        if head && part.end < length {
            let torn = length - part.end;
            tracing::warn!(segment = %path.display(), bytes = torn, "a torn end of the log was cut off");
            log.truncate(part.end)?;
        }
    }
    if changed {
        // The position is the end of the log now, also where the log is empty.
        let draft = Draft::replay(table);
        apply(table, draft, &log.position())?;
        table.index().sync()?;
    }
    Ok(())
}

/// The replay of one segment.
struct Part<'a> {
    table: &'a Table,
    number: u32,
    salt: Salt,
    path: &'a Path,
    /// Whether payloads are hashed: of the head, whose last batch may have been interrupted by a power cut.
    verify: bool,
    /// The end of the last record that is good.
    end: u64,
    replayed: u64,
}

impl Part<'_> {
    fn replay(&mut self, file: &File, length: u64) -> Result<(), Unfit> {
        let mut walk = Walk::new(file, self.salt, self.end, length);
        let mut draft = Draft::replay(self.table);
        loop {
            let step = walk.step().map_err(|e| failed("reading", self.path, e))?;
            match step {
                Step::Record { offset, head } => {
                    let end = offset + head.head_bytes() + head.body_bytes();
                    if self.take(&walk, &mut draft, offset, head)? {
                        self.end = end;
                        self.replayed += 1;
                    } else {
                        tracing::warn!(segment = %self.path.display(), offset, "a record's bytes do not match its header; it is left out");
                    }
                }
                Step::Damage { offset, length } => {
                    tracing::warn!(segment = %self.path.display(), offset, bytes = length, "a damaged part of a segment is left out");
                }
                Step::Torn { offset } => {
                    if !self.verify {
                        tracing::warn!(segment = %self.path.display(), offset, bytes = length - offset, "the damaged end of a segment is left out");
                    }
                    break;
                }
                Step::End => break,
            }
            if draft.len() >= REPLAY_BATCH {
                let full = std::mem::replace(&mut draft, Draft::replay(self.table));
                apply(self.table, full, &self.position())?;
            }
        }
        apply(self.table, draft, &self.position())
    }

    fn position(&self) -> Position {
        Position { segment: self.number, salt: self.salt, offset: self.end }
    }

    /// Takes a record into the draft; false if its body is damaged.
    fn take(&self, walk: &Walk<'_>, draft: &mut Draft<'_>, offset: u64, head: Head) -> Result<bool, Unfit> {
        let location = Location { segment: self.number, offset };
        let body = |from: u64| walk.read(offset + from, head.body_bytes()).map_err(|e| failed("reading", self.path, e));
        match head {
            Head::Chunk(entry) => {
                if self.verify && entry.cid.hash.code.digest(&body(HEAD_BYTES as u64)?) != entry.cid.hash.digest {
                    return Ok(false);
                }
                draft.keep(Key::from(&entry.cid.hash), entry, At::Log(location))?;
            }
            Head::Amendment(entry) => {
                let key = Key::from(&entry.cid.hash);
                if let Some((mut current, at)) = draft.chunk(&key)? {
                    current.terms = entry.terms;
                    draft.keep(key, current, at)?;
                }
            }
            Head::Deletion(entry, gone) => {
                draft.drop_chunk(Key::from(&entry.cid.hash), (gone == Gone::Damaged).then_some(entry))?;
            }
            Head::Value { key, checksum, .. } => {
                let body = body(head.head_bytes())?;
                let (key, value) = body.split_at(key);
                if body_checksum(key, value) != checksum {
                    return Ok(false);
                }
                draft.keep_value(key.to_vec().into(), value.to_vec().into(), At::Log(location))?;
            }
        }
        Ok(true)
    }
}

fn apply(table: &Table, draft: Draft<'_>, position: &Position) -> Result<(), Unfit> {
    let (batches, _) = draft.finish(&[], position)?;
    for batch in batches {
        table.index().apply(batch)?;
    }
    Ok(())
}

/// Counts what the index holds, and looks whether each entry can be where it says.
fn count(table: Table, log: &SegmentLog) -> Result<Recovered, Unfit> {
    let lengths: BTreeMap<u32, u64> = log.all().iter().map(|(number, _, length)| (*number, *length)).collect();
    let inside = |location: Location, bytes: u64| {
        lengths.get(&location.segment).is_some_and(|length| location.offset + bytes <= *length)
    };
    let outside = || Unfit::Index("an entry of it is outside of the segments".into());
    let mut counters = Counters::default();
    let mut live: BTreeMap<u32, u64> = BTreeMap::new();
    let mut after = None;
    loop {
        let page = table.chunks(after, PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (key, held) in &page {
            if !inside(held.location, cost(&held.entry)) {
                return Err(outside());
            }
            if Key::from(&held.entry.cid.hash) != *key {
                return Err(Unfit::Index("an entry of it is under a key that is not its own".into()));
            }
            counters.add(&held.entry);
            *live.entry(held.location.segment).or_default() += cost(&held.entry);
        }
    }
    let mut after: Option<bytes::Bytes> = None;
    loop {
        let page = table.values(after.as_deref(), PAGE)?;
        let Some((last, ..)) = page.last() else { break };
        after = Some(last.clone());
        for (key, location, value) in &page {
            let bytes = value_bytes(key, value);
            if !inside(*location, bytes) {
                return Err(outside());
            }
            *live.entry(location.segment).or_default() += bytes;
        }
    }
    Ok(Recovered { table, counters, live })
}
