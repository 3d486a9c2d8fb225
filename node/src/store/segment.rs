//! One segment file: its name, its header, and a walk over its records that survives damage.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::record::{Head, MAGIC, Salt, array, first_eight};

/// Bytes of one copy of the header; there are two, so that one damaged copy harms nothing.
const COPY_BYTES: usize = 64;
/// Where the first record begins.
pub(super) const SEGMENT_HEAD_BYTES: u64 = 2 * COPY_BYTES as u64;
const SEGMENT_MAGIC: [u8; 8] = *b"p2p-node";
const SEGMENT_FORMAT: u32 = 1;
/// What a walk reads at once: many small records a call, and little beside a chunk.
const WINDOW_BYTES: usize = 256 * 1024;

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

/// The number of the segment that is called `name`.
pub(super) fn number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() < 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The header of a segment, both copies.
pub(super) fn encode_header(number: u32, salt: Salt) -> Vec<u8> {
    let mut copy = Vec::with_capacity(2 * COPY_BYTES);
    copy.extend_from_slice(&SEGMENT_MAGIC);
    copy.extend_from_slice(&SEGMENT_FORMAT.to_be_bytes());
    copy.extend_from_slice(&number.to_be_bytes());
    copy.extend_from_slice(&salt.0);
    copy.resize(COPY_BYTES - 8, 0);
    let sum = first_eight(blake3::Hasher::new().update(&copy));
    copy.extend_from_slice(&sum);
    copy.extend_from_within(..);
    copy
}

/// Reads the salt of segment `number`; `None` where both copies of the header are damaged.
pub(super) fn read_header(file: &File, number: u32) -> io::Result<Option<Salt>> {
    let mut header = [0; 2 * COPY_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    Ok(header.chunks_exact(COPY_BYTES).find_map(|copy| {
        let (fields, sum) = copy.split_at(COPY_BYTES - 8);
        let valid = first_eight(blake3::Hasher::new().update(fields)) == sum
            && fields.starts_with(&SEGMENT_MAGIC)
            && array(fields, 8).map(u32::from_be_bytes) == Some(SEGMENT_FORMAT)
            && array(fields, 12).map(u32::from_be_bytes) == Some(number);
        if valid { array(fields, 16).map(Salt) } else { None }
    }))
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
    file: &'a File,
    salt: Salt,
    offset: u64,
    end: u64,
    window: Vec<u8>,
    window_offset: u64,
}

impl<'a> Walk<'a> {
    /// From `offset`, which is a record's boundary, to `end`.
    pub(super) fn new(file: &'a File, salt: Salt, offset: u64, end: u64) -> Self {
        Self { file, salt, offset, end, window: Vec::new(), window_offset: 0 }
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

    /// The bytes `length` from `offset` on.
    pub(super) fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        // `length` is of a valid header: bounded there.
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn head_at(&mut self, offset: u64) -> io::Result<Option<Head>> {
        let salt = self.salt;
        let end = self.end;
        let head = Head::decode(self.bytes_at(offset, super::record::HEAD_BYTES)?, salt, offset);
        Ok(head.filter(|head| offset + head.head_bytes() + head.body_bytes() <= end))
    }

    fn find_magic(&mut self, mut at: u64) -> io::Result<Option<u64>> {
        loop {
            let bytes = self.bytes_at(at, WINDOW_BYTES)?;
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
            let fill = self.end.saturating_sub(offset).min(WINDOW_BYTES.max(wanted) as u64) as usize;
            self.window.resize(fill, 0);
            self.window_offset = offset;
            if let Err(error) = self.file.read_exact_at(&mut self.window, offset) {
                self.window.clear();
                return Err(error);
            }
        }
        let start = (offset - self.window_offset) as usize;
        Ok(&self.window[start..start + wanted])
    }
}
