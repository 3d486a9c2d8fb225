//! The log: where records are appended to. On disk it is segment files, in memory a map of payloads.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::{
    StoreError,
    index::table::Position,
    record::{Record, Salt},
    segment::{self, Location, SEGMENT_HEAD_BYTES},
};

/// A payload that is smaller is copied beside its header: one slice costs the system more than the copy.
const COPY_BELOW_BYTES: usize = 16 * 1024;
/// The most that one write takes. Measured on a virtual machine (Linux 6.18, ext4), `add --local` of 1 GiB: 0.7 to 3.2 s with one write a
/// batch, 0.76 to 0.91 s over 18 runs in pieces; perf found the difference in the kernel's copy into the page cache. Probably (not proven)
/// big writes get big folios, of memory that the host must find first; `dd` was as uneven: 0.7 s with 64 and 256 KiB, 0.9 s with 1 MiB,
/// 2.1 and 2.6 s with 4 MiB, yet 0.8 and 0.9 s with 16 MiB.
const WRITE_BYTES: usize = 256 * 1024;

/// What can be appended to.
pub(super) trait Log: Send {
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
    /// Its bytes.
    pub(super) length: u64,
}

/// The log on disk.
#[derive(Debug)]
pub(super) struct SegmentLog {
    directory: PathBuf,
    sealed: BTreeMap<u32, Sealed>,
    head: Head,
    segment_bytes: u64,
    reserve_bytes: u64,
    /// A limit like a full disk's on the head segment, for tests.
    #[cfg(test)]
    pub(super) full_at: Arc<std::sync::atomic::AtomicU64>,
}

#[derive(Debug)]
struct Head {
    number: u32,
    salt: Salt,
    file: File,
    /// The end of what was appended.
    end: u64,
    /// The end of what is on disk.
    synced: u64,
    /// It cannot be trusted any more (a failed sync or truncation): the next batch begins a new segment.
    spoilt: bool,
}

impl SegmentLog {
    /// Opens the segments in `directory` without reading their records; makes the first where there is none.
    pub(super) fn open(directory: &Path, segment_bytes: u64, reserve_bytes: u64) -> Result<Self, StoreError> {
        let mut numbers = Vec::new();
        for found in fs::read_dir(directory).map_err(|e| failed("listing", directory, e))? {
            let found = found.map_err(|e| failed("listing", directory, e))?;
            numbers.extend(found.file_name().to_str().and_then(segment::number));
        }
        numbers.sort_unstable();
        let mut sealed = BTreeMap::new();
        let mut head = None;
        for (place, &number) in numbers.iter().enumerate() {
            let path = segment::path(directory, number);
            let last = place + 1 == numbers.len();
            let file =
                OpenOptions::new().read(true).write(last).open(&path).map_err(|e| failed("opening", &path, e))?;
            let length = file.metadata().map_err(|e| failed("reading", &path, e))?.len();
            let salt = segment::read_header(&file, number).map_err(|e| failed("reading", &path, e))?;
            match salt {
                Some(salt) if last => {
                    head = Some(Head { number, salt, file, end: length, synced: length, spoilt: false });
                }
                None if last && length <= SEGMENT_HEAD_BYTES => {
                    // Its making was interrupted: nothing was ever in it.
                    fs::remove_file(&path).map_err(|e| failed("removing", &path, e))?;
                }
                _ => {
                    if salt.is_none() {
                        tracing::warn!(segment = %path.display(), "the header of a segment is damaged; what the index knows of it can still be read");
                    }
                    sealed.insert(number, Sealed { salt, length });
                }
            }
        }
        let head = match head {
            Some(head) => head,
            None => create(directory, numbers.last().map_or(1, |last| last + 1))?,
        };
        Ok(Self {
            directory: directory.to_owned(),
            sealed,
            head,
            segment_bytes,
            reserve_bytes,
            #[cfg(test)]
            full_at: Arc::new(std::sync::atomic::AtomicU64::new(u64::MAX)),
        })
    }

    /// The sealed segments, by number.
    pub(super) fn sealed(&self) -> &BTreeMap<u32, Sealed> {
        &self.sealed
    }

    /// The directory of the segments.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
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

    /// Cuts the head off at `end`.
    pub(super) fn truncate(&mut self, end: u64) -> Result<(), StoreError> {
        let path = segment::path(&self.directory, self.head.number);
        self.head.file.set_len(end).map_err(|e| failed("truncating", &path, e))?;
        self.head.file.sync_data().map_err(|e| failed("syncing", &path, e))?;
        self.head.end = end;
        self.head.synced = end;
        Ok(())
    }

    /// Removes a sealed segment.
    pub(super) fn remove(&mut self, number: u32) -> Result<(), StoreError> {
        if self.sealed.remove(&number).is_some() {
            let path = segment::path(&self.directory, number);
            fs::remove_file(&path).map_err(|e| failed("removing", &path, e))?;
            sync_directory(&self.directory)?;
        }
        Ok(())
    }

    fn roll(&mut self) -> Result<(), StoreError> {
        let next = create(&self.directory, self.head.number + 1)?;
        let old = std::mem::replace(&mut self.head, next);
        self.sealed.insert(old.number, Sealed { salt: Some(old.salt), length: old.end });
        Ok(())
    }

    #[cfg(test)]
    fn write(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let limit = self.full_at.load(std::sync::atomic::Ordering::SeqCst);
        let total: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        if self.head.end + total <= limit {
            return write_all(&mut self.head.file, slices);
        }
        // What a full disk does: it takes some, then no more.
        let mut left = limit.saturating_sub(self.head.end) as usize;
        for slice in slices {
            let part = slice.len().min(left);
            self.head.file.write_all(&slice[..part])?;
            left -= part;
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    #[cfg(not(test))]
    fn write(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        write_all(&mut self.head.file, slices)
    }
}

impl Log for SegmentLog {
    fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, StoreError> {
        let total: u64 = records.iter().map(Record::total_bytes).sum();
        let used = self.head.end > SEGMENT_HEAD_BYTES;
        if self.head.spoilt || (used && self.head.end + total > self.segment_bytes) {
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
        let outcome = head.file.seek(SeekFrom::Start(head.end)).and_then(|_| self.write(&mut slices));
        if let Err(error) = outcome {
            self.undo();
            return Err(full_or_failed(
                total,
                "appending to",
                &segment::path(&self.directory, self.head.number),
                error,
            ));
        }
        self.head.end = offset;
        Ok(locations)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        if let Err(error) = self.head.file.sync_data() {
            let needed = self.head.end - self.head.synced;
            // After a failed sync nobody knows which pages are on disk, and a second one may say "done" wrongly.
            self.head.spoilt = true;
            let path = segment::path(&self.directory, self.head.number);
            return Err(full_or_failed(needed, "syncing", &path, error));
        }
        self.head.synced = self.head.end;
        Ok(())
    }

    fn undo(&mut self) {
        self.head.end = self.head.synced;
        if let Err(error) = self.head.file.set_len(self.head.synced) {
            tracing::warn!(%error, "a partial append could not be taken back; a new segment is begun");
            self.head.spoilt = true;
        }
    }

    fn position(&self) -> Position {
        Position { segment: self.head.number, salt: self.head.salt, offset: self.head.end }
    }

    fn release(&mut self, _: Location) {}

    fn free_bytes(&self) -> u64 {
        free_space(&self.directory).map_or(u64::MAX, |free| free.saturating_sub(self.reserve_bytes))
    }

    fn segments(&mut self) -> Option<&mut SegmentLog> {
        Some(self)
    }
}

/// Payloads by the offset of their record.
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
    fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, StoreError> {
        let mut payloads = self.payloads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut locations = Vec::with_capacity(records.len());
        for record in records {
            locations.push(Location { segment: 1, offset: self.end });
            if let Record::Chunk(_, payload) = record {
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

fn create(directory: &Path, number: u32) -> Result<Head, StoreError> {
    let path = segment::path(directory, number);
    let salt = Salt(rand::random());
    let header = segment::encode_header(number, salt);
    let make = || {
        // An earlier try may have left one that nothing was ever acknowledged in.
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(&header)?;
        file.sync_all()?;
        Ok(file)
    };
    let file = make().map_err(|error| full_or_failed(SEGMENT_HEAD_BYTES, "making", &path, error))?;
    sync_directory(directory)?;
    Ok(Head { number, salt, file, end: SEGMENT_HEAD_BYTES, synced: SEGMENT_HEAD_BYTES, spoilt: false })
}

/// Writes all of `slices`, none of which is empty or over [`WRITE_BYTES`], at the cursor.
fn write_all(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        let mut bytes = 0;
        let fits = slices.iter().take_while(|slice| {
            bytes += slice.len();
            bytes <= WRITE_BYTES
        });
        let count = fits.count().max(1);
        match file.write_vectored(&slices[..count]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes what was made in `directory` survive a power cut.
pub(super) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(|e| failed("syncing", directory, e))
}

/// Bytes free for this user on the file system of `directory`.
pub(super) fn free_space(directory: &Path) -> Result<u64, StoreError> {
    let found = rustix::fs::statvfs(directory).map_err(|e| failed("asking the free space of", directory, e.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The error of `doing` something with `path`.
pub(super) fn failed(doing: &str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { doing: format!("{doing} {}", path.display()), source }
}

fn full_or_failed(needed: u64, doing: &str, path: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::NoSpace { needed, reason: "the disk is full".into() }
        }
        _ => failed(doing, path, error),
    }
}
