//! The log: where records are appended to. On disk it is segment files, in memory a map of payloads.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::{
    StoreError,
    disk::{Disk, DiskFile, WRITE_BYTES},
    index::table::Position,
    record::{Record, Salt},
    segment::{self, Location, SEGMENT_HEAD_BYTES, SegmentHead},
};

/// A payload that is smaller is copied beside its header: one slice costs the system more than the copy.
const COPY_BELOW_BYTES: usize = 16 * 1024;

/// What can be appended to.
pub(super) trait Log: Send {
    /// Makes it fit to be appended to, and to be believed, after a failure; to be called before anything is answered.
    fn ready(&mut self) -> Result<(), StoreError>;
    /// Appends all of `records` or none; they are not on disk before [`Log::sync`].
    fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, StoreError>;
    /// Returns when everything appended is on disk.
    fn sync(&mut self) -> Result<(), StoreError>;
    /// Takes back what was appended since the last [`Log::sync`] that succeeded.
    fn undo(&mut self);
    /// The end of what was appended.
    fn position(&self) -> Position;
    /// The record at `location` is not live any more.
    fn release(&mut self, location: Location);
    /// Bytes that may be written before the disk is as full as it may get.
    fn free_bytes(&self) -> u64;
    /// The segments on disk, where there are any.
    fn segments(&mut self) -> Option<&mut SegmentLog>;
}

/// A segment that is not appended to any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    /// Its salt; `None` where its header is damaged: then only the index knows what is in it.
    pub(super) salt: Option<Salt>,
    /// Its bytes, as far as they count.
    pub(super) length: u64,
}

/// The log on disk.
#[derive(Debug)]
pub(super) struct SegmentLog {
    files: Files,
    sealed: BTreeMap<u32, Sealed>,
    head: Head,
    segment_bytes: u64,
    reserve_bytes: u64,
}

#[derive(Debug)]
struct Head {
    number: u32,
    salt: Salt,
    file: Arc<dyn DiskFile>,
    /// The end of what was appended.
    end: u64,
    /// The end of what is on disk, as far as this run knows: 0 where it did not begin the segment.
    synced: u64,
    /// It cannot be trusted any more (a failed sync, or a part that could not be taken back): nothing is answered
    /// before it is closed at `synced` and the next one begun.
    spoilt: bool,
}

impl SegmentLog {
    /// Opens the segments in `directory` without reading their records; makes the first where there is none.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        directory: &Path,
        segment_bytes: u64,
        reserve_bytes: u64,
    ) -> Result<Self, StoreError> {
        let names = disk.names(directory).map_err(|e| failed("listing", directory, e))?;
        let numbered = |extension| names.iter().filter_map(move |name| segment::number(name, extension));
        let numbers: BTreeSet<u32> = numbered(".seg").collect();
        let sides: BTreeSet<u32> = numbered(".head").collect();
        let newest = numbers.iter().chain(&sides).max().copied();
        let files = Files { disk: Arc::clone(disk), directory: directory.to_owned() };
        let mut sealed = BTreeMap::new();
        let mut head = None;
        for &number in &numbers {
            match files.open(number, newest == Some(number))? {
                Opened::Head(found) => head = Some(found),
                Opened::Sealed(found) => drop(sealed.insert(number, found)),
                Opened::Nothing => {}
            }
        }
        for &number in sides.difference(&numbers) {
            // Either it was being removed, and nothing in it counted any more, or it is lost: the index knows.
            tracing::warn!(segment = %segment::path(directory, number).display(), "a segment is missing; the index knows what was still in it, if anything");
            files.remove(number)?;
        }
        // Of these entries too.
        disk.sync_directory(directory).map_err(|e| failed("syncing", directory, e))?;
        let head = match head {
            Some(head) => head,
            None => files.create(newest.map_or(1, |newest| newest + 1))?,
        };
        Ok(Self { files, sealed, head, segment_bytes, reserve_bytes })
    }

    /// The sealed segments, by number.
    pub(super) fn sealed(&self) -> &BTreeMap<u32, Sealed> {
        &self.sealed
    }

    /// The directory of the segments.
    pub(super) fn directory(&self) -> &Path {
        &self.files.directory
    }

    /// All segments: number, salt and length, in order; the head is the last.
    pub(super) fn all(&self) -> Vec<(u32, Option<Salt>, u64)> {
        let sealed = self.sealed.iter().map(|(number, sealed)| (*number, sealed.salt, sealed.length));
        sealed.chain([(self.head.number, Some(self.head.salt), self.head.end)]).collect()
    }

    /// Whether a segment older than `number` is still there.
    pub(super) fn has_older(&self, number: u32) -> bool {
        self.sealed.keys().next().is_some_and(|first| *first < number)
    }

    /// The disk.
    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.files.disk
    }

    /// Puts the head's bytes from `from` on on disk, as far as this run has not done so. They are written once more:
    /// whoever wrote them may have been killed, perhaps after a sync that failed, of which a second one says nothing.
    pub(super) fn settle(&mut self, from: u64) -> Result<(), StoreError> {
        let path = segment::path(&self.files.directory, self.head.number);
        if self.head.synced == 0 {
            let head = SegmentHead { salt: self.head.salt, end: 0 }.encode(self.head.number);
            let written = self.head.file.write_at(&mut [IoSlice::new(&head)], 0);
            written.map_err(|e| full_or_failed(SEGMENT_HEAD_BYTES, "writing", &path, e))?;
        }
        let mut at = from.max(self.head.synced);
        let mut piece = vec![0; WRITE_BYTES];
        while at < self.head.end {
            let length = (self.head.end - at).min(WRITE_BYTES as u64) as usize;
            let piece = &mut piece[..length];
            self.head.file.read_at(piece, at).map_err(|e| failed("reading", &path, e))?;
            let written = self.head.file.write_at(&mut [IoSlice::new(piece)], at);
            written.map_err(|e| full_or_failed(length as u64, "writing", &path, e))?;
            at += length as u64;
        }
        if self.head.end > self.head.synced {
            self.head.file.sync().map_err(|e| failed("syncing", &path, e))?;
        }
        self.head.synced = self.head.end;
        Ok(())
    }

    /// Cuts the head off at `end`. Not synced: what stands behind is no record, and stays none until the next batch is.
    pub(super) fn truncate(&mut self, end: u64) -> Result<(), StoreError> {
        let path = segment::path(&self.files.directory, self.head.number);
        self.head.file.set_length(end).map_err(|e| failed("truncating", &path, e))?;
        self.head.end = end;
        self.head.synced = end;
        Ok(())
    }

    /// Removes a sealed segment; it does not come back.
    pub(super) fn remove(&mut self, number: u32) -> Result<(), StoreError> {
        if self.sealed.remove(&number).is_some() {
            self.files.remove(number)?;
        }
        Ok(())
    }

    /// Closes the head and begins the next segment.
    fn roll(&mut self) -> Result<(), StoreError> {
        let Head { number, salt, synced, .. } = self.head;
        // From here on, what it may be said to end at stands: nothing more may be appended.
        self.head.spoilt = true;
        let closed = SegmentHead { salt, end: synced };
        let written = closed.write_side(&*self.files.disk, &self.files.directory, number);
        let side = segment::side_path(&self.files.directory, number);
        written.map_err(|e| full_or_failed(SEGMENT_HEAD_BYTES, "closing", &side, e))?;
        self.head = self.files.create(number + 1)?;
        self.sealed.insert(number, Sealed { salt: Some(salt), length: synced });
        Ok(())
    }
}

/// The segments' directory.
#[derive(Debug)]
struct Files {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
}

/// What a segment was found to be.
enum Opened {
    Head(Head),
    Sealed(Sealed),
    Nothing,
}

impl Files {
    /// Opens segment `number`; if it is the `newest` and was not closed it is the head.
    fn open(&self, number: u32, newest: bool) -> Result<Opened, StoreError> {
        let path = segment::path(&self.directory, number);
        let file = self.disk.open(&path, newest).map_err(|e| failed("opening", &path, e))?;
        let length = file.length().map_err(|e| failed("reading", &path, e))?;
        let own = SegmentHead::read(&*file, number).map_err(|e| failed("reading", &path, e))?;
        let side = SegmentHead::read_side(&*self.disk, &self.directory, number);
        let side = side.map_err(|e| failed("reading the copy of the header of", &path, e))?;
        if newest && own.is_none() && length <= SEGMENT_HEAD_BYTES {
            // Its making was interrupted: nothing was ever in it.
            self.remove(number)?;
            return Ok(Opened::Nothing);
        }
        if own.is_none() || side.is_none() {
            tracing::warn!(segment = %path.display(), "the header of a segment is damaged, or the copy of it");
        }
        let known = side.or(own);
        // Of the newest it may not be on disk: whoever wrote it may have been killed before that.
        if let Some(known) = known.filter(|_| newest || side.is_none()) {
            let write = known.write_side(&*self.disk, &self.directory, number);
            write.map_err(|e| full_or_failed(SEGMENT_HEAD_BYTES, "writing the copy of the header of", &path, e))?;
        }
        match known {
            Some(SegmentHead { salt, end: 0 }) if newest => {
                let end = length.max(SEGMENT_HEAD_BYTES);
                Ok(Opened::Head(Head { number, salt, file, end, synced: 0, spoilt: false }))
            }
            _ => {
                let end = known.map_or(0, |known| known.end);
                let length = if end == 0 { length } else { length.min(end) };
                Ok(Opened::Sealed(Sealed { salt: known.map(|known| known.salt), length }))
            }
        }
    }

    fn create(&self, number: u32) -> Result<Head, StoreError> {
        let path = segment::path(&self.directory, number);
        let head = SegmentHead { salt: Salt(rand::random()), end: 0 };
        let make = || {
            // An earlier try may have left one that nothing was ever acknowledged in.
            let file = self.disk.create(&path)?;
            file.write_at(&mut [IoSlice::new(&head.encode(number))], 0)?;
            file.sync()?;
            head.write_side(&*self.disk, &self.directory, number)?;
            self.disk.sync_directory(&self.directory)?;
            Ok(file)
        };
        let file = make().map_err(|error| full_or_failed(2 * SEGMENT_HEAD_BYTES, "making", &path, error))?;
        let (end, synced) = (SEGMENT_HEAD_BYTES, SEGMENT_HEAD_BYTES);
        Ok(Head { number, salt: head.salt, file, end, synced, spoilt: false })
    }

    fn remove(&self, number: u32) -> Result<(), StoreError> {
        let remove = |path: &Path| match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path, error)),
            _ => Ok(()),
        };
        remove(&segment::path(&self.directory, number))?;
        self.disk.sync_directory(&self.directory).map_err(|e| failed("syncing", &self.directory, e))?;
        // After it, for good: a segment that came back without it would not know where it ends.
        remove(&segment::side_path(&self.directory, number))
    }
}

impl Log for SegmentLog {
    fn ready(&mut self) -> Result<(), StoreError> {
        if self.head.spoilt { self.roll() } else { Ok(()) }
    }

    fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, StoreError> {
        let total: u64 = records.iter().map(Record::total_bytes).sum();
        let used = self.head.end > SEGMENT_HEAD_BYTES;
        if used && self.head.end + total > self.segment_bytes {
            self.roll()?;
        }
        let head = &mut self.head;
        let mut locations = Vec::with_capacity(records.len());
        let mut small = Vec::new();
        // Small parts are gathered in one buffer; big payloads are written from where they are.
        let mut parts: Vec<(usize, Option<&Bytes>)> = Vec::new();
        let mut offset = head.end;
        for record in records {
            locations.push(Location { segment: head.number, offset });
            record.encode_head(head.salt, offset, &mut small);
            for body in record.body() {
                if body.len() < COPY_BELOW_BYTES {
                    small.extend_from_slice(body);
                } else {
                    parts.push((small.len(), Some(body)));
                }
            }
            offset += record.total_bytes();
        }
        parts.push((small.len(), None));
        let mut slices = Vec::with_capacity(2 * parts.len());
        let mut from = 0;
        for (to, body) in parts {
            slices.extend(small[from..to].chunks(WRITE_BYTES).map(IoSlice::new));
            slices.extend(body.iter().flat_map(|body| body.chunks(WRITE_BYTES)).map(IoSlice::new));
            from = to;
        }
        if let Err(error) = head.file.write_at(&mut slices, head.end) {
            self.undo();
            let path = segment::path(&self.files.directory, self.head.number);
            return Err(full_or_failed(total, "appending to", &path, error));
        }
        self.head.end = offset;
        Ok(locations)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        if let Err(error) = self.head.file.sync() {
            let needed = self.head.end - self.head.synced;
            // After a failed sync nobody knows which pages are on disk, and a second one may say "done" wrongly.
            self.head.spoilt = true;
            self.head.end = self.head.synced;
            let path = segment::path(&self.files.directory, self.head.number);
            return Err(full_or_failed(needed, "syncing", &path, error));
        }
        self.head.synced = self.head.end;
        Ok(())
    }

    fn undo(&mut self) {
        if self.head.spoilt {
            return;
        }
        // On disk too: a record of what failed must not come back after something else was answered.
        let taken = self.head.file.set_length(self.head.synced).and_then(|()| self.head.file.sync());
        self.head.end = self.head.synced;
        if let Err(error) = taken {
            tracing::warn!(%error, "a partial append could not be taken back; a new segment is begun");
            self.head.spoilt = true;
        }
    }

    fn position(&self) -> Position {
        Position { segment: self.head.number, salt: self.head.salt, offset: self.head.end }
    }

    fn release(&mut self, _: Location) {}

    fn free_bytes(&self) -> u64 {
        self.files
            .disk
            .free_bytes(&self.files.directory)
            .map_or(u64::MAX, |free| free.saturating_sub(self.reserve_bytes))
    }

    fn segments(&mut self) -> Option<&mut SegmentLog> {
        Some(self)
    }
}

/// Payloads of chunks, and values, by the offset of their record.
pub(super) type Payloads = Arc<Mutex<BTreeMap<u64, Bytes>>>;

/// The log in memory: what is not live is gone at once.
#[derive(Debug, Default)]
pub(super) struct MemoryLog {
    payloads: Payloads,
    end: u64,
    synced: u64,
}

impl MemoryLog {
    /// An empty one, whose payloads stay readable through `payloads`.
    pub(super) fn new(payloads: Payloads) -> Self {
        Self { payloads, end: 0, synced: 0 }
    }
}

impl Log for MemoryLog {
    fn ready(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, StoreError> {
        let mut payloads = self.payloads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut locations = Vec::with_capacity(records.len());
        for record in records {
            locations.push(Location { segment: 1, offset: self.end });
            if let Record::Chunk(_, payload) | Record::Value(_, payload) = record {
                payloads.insert(self.end, payload.clone());
            }
            self.end += record.total_bytes();
        }
        Ok(locations)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.synced = self.end;
        Ok(())
    }

    fn undo(&mut self) {
        self.payloads.lock().unwrap_or_else(PoisonError::into_inner).split_off(&self.synced);
        self.end = self.synced;
    }

    fn position(&self) -> Position {
        Position { segment: 1, salt: Salt([0; 16]), offset: self.end }
    }

    fn release(&mut self, location: Location) {
        self.payloads.lock().unwrap_or_else(PoisonError::into_inner).remove(&location.offset);
    }

    fn free_bytes(&self) -> u64 {
        u64::MAX
    }

    fn segments(&mut self) -> Option<&mut SegmentLog> {
        None
    }
}

/// The error of `doing` something with `path`.
pub(super) fn failed(doing: &str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { doing: format!("{doing} {}", path.display()), source: Arc::new(source) }
}

fn full_or_failed(needed: u64, doing: &str, path: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::NoSpace { needed, reason: "the disk is full".into() }
        }
        _ => failed(doing, path, error),
    }
}
