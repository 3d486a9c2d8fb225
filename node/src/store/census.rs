//! The census: what was counted in the index, written down at an orderly end, so that the next start counts nothing.
//!
//! A start believes it if index and segments are exactly as it says, and removes it before anything is changed: so it
//! is there only while nobody has touched the store since. Without it the index is read from the disk, past what is
//! cached of it (a killed process may have left there what never got to the disk), and looked through to its end.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    path::{Path, PathBuf},
};

use super::{
    StoreError,
    disk::{Disk, WRITE_BYTES},
    draft::Counters,
    index::table::Position,
    log::failed,
    record::{Salt, array, first_eight},
};

const MAGIC: [u8; 8] = *b"p2pcount";
/// Bytes before those of the segments, and of each.
const HEAD_BYTES: usize = 68;
const SEGMENT_BYTES: usize = 28;
/// The most bytes that are read: more than 100 TiB of segments.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// What is counted of one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct SegmentCount {
    /// Its bytes, as far as they count.
    pub(super) length: u64,
    /// Those of its live chunks and values.
    pub(super) live: u64,
    /// Those of its deletions, as far as they were seen.
    pub(super) kept: u64,
}

/// See the module's text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Census {
    /// That of the index, which is the end of the log.
    pub(super) position: Position,
    /// That of the index.
    pub(super) sum: u64,
    pub(super) counters: Counters,
    /// Every segment.
    pub(super) segments: BTreeMap<u32, SegmentCount>,
}

fn path(root: &Path) -> PathBuf {
    root.join("census")
}

impl Census {
    /// Takes the census out of the data directory; `None`: there was none that can be read. It is gone for good on
    /// return.
    pub(super) fn take(disk: &dyn Disk, root: &Path) -> Result<Option<Self>, StoreError> {
        let path = path(root);
        if !disk.exists(&path) {
            return Ok(None);
        }
        let read = || {
            let file = disk.open(&path, false)?;
            let length = file.length()?;
            if length > MAX_BYTES {
                return Ok(None);
            }
            let mut bytes = vec![0; length as usize];
            file.read_at(&mut bytes, 0)?;
            Ok::<_, io::Error>(Self::decode(&bytes))
        };
        // One that cannot be read is none.
        let census = read().unwrap_or(None);
        disk.remove(&path).map_err(|e| failed("removing", &path, e))?;
        disk.sync_directory(root).map_err(|e| failed("syncing", root, e))?;
        Ok(census)
    }

    /// Writes it down; on disk on return. Nothing may be changed after it.
    pub(super) fn write(&self, disk: &dyn Disk, root: &Path) -> Result<(), StoreError> {
        let path = path(root);
        let bytes = self.encode();
        let write = || {
            let file = disk.create(&path)?;
            let mut slices: Vec<_> = bytes.chunks(WRITE_BYTES).map(IoSlice::new).collect();
            file.write_at(&mut slices, 0)?;
            file.sync()?;
            disk.sync_directory(root)
        };
        write().map_err(|e| failed("writing", &path, e))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.segments.len() * SEGMENT_BYTES + 8);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.position.segment.to_be_bytes());
        out.extend_from_slice(&self.position.salt.0);
        let Counters { chunks, payload_bytes } = self.counters;
        for number in [self.position.offset, self.sum, chunks, payload_bytes] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.resize(HEAD_BYTES, 0);
        for (number, SegmentCount { length, live, kept }) in &self.segments {
            out.extend_from_slice(&number.to_be_bytes());
            for bytes in [length, live, kept] {
                out.extend_from_slice(&bytes.to_be_bytes());
            }
        }
        let sum = first_eight(blake3::Hasher::new().update(&out));
        out.extend_from_slice(&sum);
        out
    }

    /// `None` where it is damaged, or of a version that counts other things.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (fields, sum) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
        let segments = fields.get(HEAD_BYTES..)?;
        let whole = first_eight(blake3::Hasher::new().update(fields)) == sum && fields.starts_with(&MAGIC);
        if !whole || segments.len() % SEGMENT_BYTES != 0 || fields[60..HEAD_BYTES] != [0; 8] {
            return None;
        }
        let number = |at| array(fields, at).map(u64::from_be_bytes);
        let position = Position {
            segment: u32::from_be_bytes(array(fields, 8)?),
            salt: Salt(array(fields, 12)?),
            offset: number(28)?,
        };
        let [sum, chunks, payload_bytes] = [36, 44, 52].map(number);
        let counters = Counters { chunks: chunks?, payload_bytes: payload_bytes? };
        let segment = |bytes: &[u8]| {
            let [length, live, kept] = [4, 12, 20].map(|at| array(bytes, at).map(u64::from_be_bytes));
            let count = SegmentCount { length: length?, live: live?, kept: kept? };
            Some((u32::from_be_bytes(array(bytes, 0)?), count))
        };
        let segments = segments.chunks(SEGMENT_BYTES).map(segment).collect::<Option<_>>()?;
        Some(Self { position, sum: sum?, counters, segments })
    }
}
