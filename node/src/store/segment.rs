//! One segment: its files' names, its header, and a walk over its records that survives damage.
//!
//! A copy of the header stands in a small file beside the segment, so that one bad sector never takes the salt, without
//! which no record can be read. It is also what says that a segment ought to be there, and where a sealed one ends.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
};

use super::{
    disk::{Disk, DiskFile},
    record::{COMMON_BYTES, Head, MAGIC, Salt, array, first_eight},
};

/// Bytes of a segment's header, and where its first record begins.
pub(super) const SEGMENT_HEAD_BYTES: u64 = 64;
const SEGMENT_MAGIC: [u8; 8] = *b"p2p-node";
const SEGMENT_FORMAT: u32 = 2;
/// What a walk reads first where bodies are stepped over: a page, which costs little beside a chunk.
const LEAST_WINDOW_BYTES: usize = 4 * 1024;
/// What it reads at once where records follow each other closely: many small ones a call.
const MOST_WINDOW_BYTES: usize = 256 * 1024;

/// Where a record begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Location {
    /// The segment's number.
    pub(super) segment: u32,
    /// The offset of the record's header.
    pub(super) offset: u64,
}

/// The path of segment `number` in `directory`.
pub(super) fn path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.seg"))
}

/// The path of the file beside it.
pub(super) fn side_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.head"))
}

/// The number of the segment whose file is called `name`; `extension`: `.seg`, or `.head` for the file beside it.
pub(super) fn number(name: &str, extension: &str) -> Option<u32> {
    let digits = name.strip_suffix(extension)?;
    if digits.len() < 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// What the header of a segment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHead {
    /// Without which its records cannot be read.
    pub(super) salt: Salt,
    /// Where it ends; 0 as long as it is appended to, and always in the segment itself. What stands behind was written
    /// by a batch that failed, and does not count.
    pub(super) end: u64,
}

impl SegmentHead {
    /// The header of segment `number`.
    pub(super) fn encode(&self, number: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEAD_BYTES as usize);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&SEGMENT_FORMAT.to_be_bytes());
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&self.salt.0);
        out.extend_from_slice(&self.end.to_be_bytes());
        out.resize(SEGMENT_HEAD_BYTES as usize - 8, 0);
        let sum = first_eight(blake3::Hasher::new().update(&out));
        out.extend_from_slice(&sum);
        out
    }

    /// Reads that of segment `number` from the start of `file`; `None` where it is damaged.
    pub(super) fn read(file: &dyn DiskFile, number: u32) -> io::Result<Option<Self>> {
        let mut header = [0; SEGMENT_HEAD_BYTES as usize];
        match file.read_at(&mut header, 0) {
            Ok(()) => {}
            Err(error) if unreadable(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        let (fields, sum) = header.split_at(header.len() - 8);
        let valid = first_eight(blake3::Hasher::new().update(fields)) == sum
            && fields.starts_with(&SEGMENT_MAGIC)
            && array(fields, 8).map(u32::from_be_bytes) == Some(SEGMENT_FORMAT)
            && array(fields, 12).map(u32::from_be_bytes) == Some(number);
        let head = || Some(Self { salt: Salt(array(fields, 16)?), end: u64::from_be_bytes(array(fields, 32)?) });
        Ok(if valid { head() } else { None })
    }

    /// Reads the copy beside segment `number`; `None` where it is missing or damaged.
    pub(super) fn read_side(disk: &dyn Disk, directory: &Path, number: u32) -> io::Result<Option<Self>> {
        match disk.open(&side_path(directory, number), false) {
            Ok(file) => Self::read(&*file, number),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the copy beside segment `number`; on disk on return, its directory's entry aside.
    pub(super) fn write_side(&self, disk: &dyn Disk, directory: &Path, number: u32) -> io::Result<()> {
        let path = side_path(directory, number);
        let file = if disk.exists(&path) { disk.open(&path, true)? } else { disk.create(&path)? };
        file.write_at(&mut [IoSlice::new(&self.encode(number))], 0)?;
        file.sync()
    }
}

/// Whether the bytes are not to be had: the file is too short, or the disk cannot read them.
pub(super) fn unreadable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// What a walk meets next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A record whose header is valid and whose body is inside the file.
    Record {
        /// Where its header begins.
        offset: u64,
        /// What it is.
        head: Head,
    },
    /// Bytes that are no record, with a record after them.
    Damage {
        /// Where they begin.
        offset: u64,
        /// How many there are.
        length: u64,
    },
    /// Bytes up to the end of the file that are no record.
    Torn {
        /// Where they begin.
        offset: u64,
    },
    /// The end, on a record's boundary.
    End,
}

/// A walk over the records of a segment.
pub(super) struct Walk<'a> {
    file: &'a dyn DiskFile,
    salt: Salt,
    offset: u64,
    end: u64,
    /// What is read next, if the next record follows closely.
    window_bytes: usize,
    window: Vec<u8>,
    window_offset: u64,
}

impl<'a> Walk<'a> {
    /// From `offset`, which is a record's boundary, to `end`.
    pub(super) fn new(file: &'a dyn DiskFile, salt: Salt, offset: u64, end: u64) -> Self {
        Self { file, salt, offset, end, window_bytes: LEAST_WINDOW_BYTES, window: Vec::new(), window_offset: 0 }
    }

    /// The next thing; after [`Step::Torn`] and [`Step::End`] there is nothing more.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        let start = self.offset;
        if start >= self.end {
            return Ok(Step::End);
        }
        if let Some(head) = self.head_at(start)? {
            self.offset = start + head.head_bytes() + head.body_bytes();
            return Ok(Step::Record { offset: start, head });
        }
        // Look for the next place where a header stands that is valid there.
        let mut at = start + 1;
        while at < self.end {
            let Some(candidate) = self.find_magic(at)? else { break };
            if self.head_at(candidate)?.is_some() {
                self.offset = candidate;
                return Ok(Step::Damage { offset: start, length: candidate - start });
            }
            at = candidate + 1;
        }
        self.offset = self.end;
        Ok(Step::Torn { offset: start })
    }

    /// Where the next step begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Fills `bytes` from `offset` on.
    pub(super) fn read_into(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_at(bytes, offset)
    }

    /// The bytes `length` from `offset` on.
    pub(super) fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        // `length` is of a valid header: bounded there.
        let mut bytes = vec![0; length as usize];
        self.file.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn head_at(&mut self, offset: u64) -> io::Result<Option<Head>> {
        let (salt, end) = (self.salt, self.end);
        let Some(length) = Head::claimed_bytes(self.bytes_at(offset, COMMON_BYTES)?) else { return Ok(None) };
        let head = Head::decode(self.bytes_at(offset, length)?, salt, offset);
        Ok(head.filter(|head| offset + head.head_bytes() + head.body_bytes() <= end))
    }

    fn find_magic(&mut self, mut at: u64) -> io::Result<Option<u64>> {
        loop {
            let bytes = self.bytes_at(at, MOST_WINDOW_BYTES)?;
            if bytes.len() < MAGIC.len() {
                return Ok(None);
            }
            if let Some(found) = bytes.windows(MAGIC.len()).position(|window| window == MAGIC) {
                return Ok(Some(at + found as u64));
            }
            at += (bytes.len() - (MAGIC.len() - 1)) as u64;
        }
    }

    /// Up to `length` bytes from `offset` on, fewer only at the end.
    fn bytes_at(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let wanted = self.end.saturating_sub(offset).min(length as u64) as usize;
        let inside =
            offset >= self.window_offset && offset + wanted as u64 <= self.window_offset + self.window.len() as u64;
        if !inside {
            // Close to the last window: small records, of which the next window takes more; far from it, a body was
            // stepped over, and what is read beside the header is likely another one's payload.
            let past = offset.checked_sub(self.window_offset + self.window.len() as u64);
            let near = offset >= self.window_offset && past.is_none_or(|past| past < LEAST_WINDOW_BYTES as u64);
            let grown = if near { self.window_bytes * 2 } else { LEAST_WINDOW_BYTES };
            self.window_bytes = grown.min(MOST_WINDOW_BYTES);
            let fill = self.end.saturating_sub(offset).min(self.window_bytes.max(wanted) as u64) as usize;
            self.window.resize(fill, 0);
            self.window_offset = offset;
            if let Err(error) = self.file.read_at(&mut self.window, offset) {
                self.window.clear();
                return Err(error);
            }
        }
        let start = (offset - self.window_offset) as usize;
        Ok(&self.window[start..start + wanted])
    }
}
