//! Reading payloads: a bounded cache of open segments, verification, and setting aside what is damaged.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::{
    disk::{Disk, DiskFile},
    index::table::Content,
    log::Payloads,
    record::{HEAD_BYTES, VALUE_HEAD_BYTES, body_checksum},
    segment::{self, Location},
};

/// Segments that are kept open: 8 GiB of the store, and few of the descriptors that a process may have.
const OPEN_SEGMENTS: usize = 32;
/// Damaged records that are kept for whoever wants to look at them: at most 128 MiB.
const KEPT_DAMAGED: usize = 64;

/// Where payloads are read from.
#[derive(Debug)]
pub(super) enum Source {
    /// Segment files.
    Disk(Segments),
    /// A map.
    Memory(Payloads),
}

/// Segment files that are open for reading.
#[derive(Debug)]
pub(super) struct Segments {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    quarantine: PathBuf,
    open: Mutex<VecDeque<(u32, Arc<dyn DiskFile>)>>,
}

impl Source {
    /// The payload of the chunk whose record is at `location`. Blocks, on disk.
    pub(super) fn payload(&self, location: Location, length: u32) -> io::Result<Bytes> {
        match self {
            Self::Memory(payloads) => {
                let payloads = payloads.lock().unwrap_or_else(PoisonError::into_inner);
                payloads.get(&location.offset).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            Self::Disk(segments) => {
                let mut bytes = vec![0; length as usize];
                segments.file(location.segment)?.read_at(&mut bytes, location.offset + HEAD_BYTES as u64)?;
                Ok(bytes.into())
            }
        }
    }

    /// The value of the record at `location`, if it is the one that `content` is of. Blocks, on disk.
    pub(super) fn value(&self, key: &[u8], location: Location, content: &Content) -> io::Result<Option<Bytes>> {
        match self {
            Self::Memory(payloads) => {
                let payloads = payloads.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(payloads.get(&location.offset).cloned())
            }
            Self::Disk(segments) => {
                // The value alone is handed out: it may be kept for long.
                let mut body = vec![0; key.len() + content.length as usize];
                segments.file(location.segment)?.read_at(&mut body, location.offset + VALUE_HEAD_BYTES as u64)?;
                let (found, value) = body.split_at(key.len());
                let intact = found == key && body_checksum(found, value) == content.checksum;
                Ok(intact.then(|| Bytes::copy_from_slice(value)))
            }
        }
    }

    /// The segment is removed: forget its file.
    pub(super) fn forget(&self, segment: u32) {
        if let Self::Disk(segments) = self {
            segments.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|(number, _)| *number != segment);
        }
    }

    /// Copies a damaged record into the quarantine, as far as it can be read and there is room; `None` otherwise.
    pub(super) fn set_aside(&self, name: &str, location: Location, length: u32) -> Option<PathBuf> {
        let Self::Disk(segments) = self else { return None };
        if fs::read_dir(&segments.quarantine).ok()?.count() >= KEPT_DAMAGED {
            return None;
        }
        let mut bytes = vec![0; HEAD_BYTES + length as usize];
        segments.file(location.segment).ok()?.read_at(&mut bytes, location.offset).ok()?;
        let name = format!("{name}.{:08}.{}", location.segment, location.offset);
        let path = segments.quarantine.join(name);
        fs::write(&path, bytes).ok()?;
        Some(path)
    }
}

impl Segments {
    /// Reads segments in `directory`.
    pub(super) fn new(disk: &Arc<dyn Disk>, directory: &Path, quarantine: &Path) -> Self {
        Self {
            disk: Arc::clone(disk),
            directory: directory.to_owned(),
            quarantine: quarantine.to_owned(),
            open: Mutex::default(),
        }
    }

    fn file(&self, number: u32) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = open.iter().position(|(found, _)| *found == number)
            && let Some(found) = open.remove(place)
        {
            let file = Arc::clone(&found.1);
            open.push_front(found);
            return Ok(file);
        }
        // Under the lock, so that a segment that is being removed cannot come back into the cache after `forget`.
        let file = self.disk.open(&segment::path(&self.directory, number), false)?;
        open.truncate(OPEN_SEGMENTS - 1);
        open.push_front((number, Arc::clone(&file)));
        Ok(file)
    }
}
