//! Overwriting what was removed: the bytes of a chunk that is not here any more must not stay in a segment for good.
//!
//! A compaction takes a segment once a quarter of it is dead, and with it what was removed. What is removed of a segment
//! that stays mostly live, or of the one that is written to, would stay readable to whoever takes the disk. A pass over
//! the store (`scrub.rs`) goes by every record anyway: it overwrites the payload of each chunk's record that the index
//! does not have at that place. So the next pass that begins bounds how long it stays, and its pace what it costs: what
//! is dead is read in each pass, and written once.
//!
//! The index forgets a place only after the record that says so, the deletion or the copy made by a compaction, is
//! synced: whoever reads the log again finds that record behind the one that was overwritten. An index is believed here
//! as a compaction believes it. Headers stay, so that the log can be walked. What is written is a pattern and not zeros:
//! a record that has it is known to be gone, while one whose bytes the disk lost is damaged, and its chunk comes back.
//!
//! Values of the log (the catalogue's entries) are not overwritten, and what is promised is the bytes in the files of
//! segments: a damaged record that was set aside is a copy, and a file system that copies on write, or a flash disk, may
//! keep old blocks that are in no file, as any may of a segment that a compaction removed.

use std::{
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
};

use super::disk::{Disk, DiskFile, WRITE_BYTES};

/// What a payload is overwritten with, again and again from its first byte on.
const PATTERN: [u8; 8] = *b"p2pgone\n";

/// Whether nothing is left of a payload that is not what its record says.
pub(super) fn is_erased(payload: &[u8]) -> bool {
    payload.chunks(PATTERN.len()).all(|part| PATTERN.starts_with(part))
}

/// Overwrites payloads of one segment. What fails is said once, and left to the next pass: reading goes on.
pub(super) struct Eraser<'a> {
    disk: &'a dyn Disk,
    path: &'a Path,
    /// Opened to be written to when something is.
    file: Option<Arc<dyn DiskFile>>,
    failed: bool,
}

impl<'a> Eraser<'a> {
    /// Of the segment in the file `path`.
    pub(super) fn new(disk: &'a dyn Disk, path: &'a Path) -> Self {
        Self { disk, path, file: None, failed: false }
    }

    /// Overwrites the `length` bytes from `offset` on, a payload: at most 2 MiB; on disk after [`Self::finish`]. Gives
    /// how many were overwritten.
    pub(super) fn erase(&mut self, offset: u64, length: usize) -> u64 {
        if self.failed {
            return 0;
        }
        let write = || {
            let file = match &self.file {
                Some(file) => Arc::clone(file),
                None => self.disk.open(self.path, true)?,
            };
            let bytes: Vec<u8> = PATTERN.iter().copied().cycle().take(length).collect();
            let mut slices: Vec<_> = bytes.chunks(WRITE_BYTES).map(IoSlice::new).collect();
            file.write_at(&mut slices, offset)?;
            Ok::<_, io::Error>(file)
        };
        match write() {
            Ok(file) => {
                self.file = Some(file);
                length as u64
            }
            Err(error) => {
                self.fail(&error);
                0
            }
        }
    }

    /// Returns when all that was overwritten is on disk.
    pub(super) fn finish(mut self) {
        if let Some(Err(error)) = self.file.take().map(|file| file.sync()) {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.failed = true;
        tracing::warn!(segment = %self.path.display(), %error, "what was removed could not be overwritten; the next pass tries again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_pattern_to_its_end_is_erased() {
        let whole: Vec<u8> = PATTERN.iter().copied().cycle().take(30).collect();
        for length in 0..30 {
            assert!(is_erased(&whole[..length]), "{length}");
        }
        for at in 0..30 {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            assert!(!is_erased(&torn), "{at}");
        }
        assert!(!is_erased(&[0; 30]));
    }
}
