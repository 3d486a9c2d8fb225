//! The data directory: what is in it, its lock, its format version, the remembered capacity.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    StoreError,
    disk::{Disk as _, SystemDisk},
    log::failed,
};

/// The format that this version writes.
const FORMAT: u32 = 2;
/// The share of the free space that a first start takes as its capacity.
const CAPACITY_PERCENT: u64 = 80;

/// The paths, and the lock that is held while this lives.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) segments: PathBuf,
    lock: File,
}

/// The lock is of the open file, which a process that is being started by another thread shares for a moment: closing it
/// here would not be the end of it.
impl Drop for Layout {
    fn drop(&mut self) {
        // If that fails, it ends with the file.
        let _ = self.lock.unlock();
    }
}

impl Layout {
    /// Takes the lock, checks the format, makes what is missing.
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        make_directory(root)?;
        let lock_path = root.join("lock");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(&lock_path).map_err(|e| failed("opening", &lock_path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(root.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed("locking", &lock_path, error)),
        }
        check_format(root)?;
        let layout = Self { root: root.to_owned(), segments: root.join("segments"), lock };
        // What is in `tmp` belonged to a run that is over.
        let tmp = root.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).map_err(|e| failed("removing", &tmp, e))?;
        }
        for directory in [&layout.segments, &root.join("quarantine"), &tmp] {
            make_directory(directory)?;
        }
        sync(root)?;
        Ok(layout)
    }

    /// The capacity: `explicit`, for this run only, or what is remembered, or a share of what is free, which is then
    /// remembered.
    pub(super) fn capacity(&self, explicit: Option<u64>) -> Result<u64, StoreError> {
        if let Some(explicit) = explicit {
            return Ok(explicit);
        }
        let path = self.root.join("capacity");
        match fs::read_to_string(&path) {
            Ok(text) => {
                if let Ok(remembered) = text.trim().parse() {
                    return Ok(remembered);
                }
                tracing::warn!(file = %path.display(), "the remembered capacity cannot be read; it is set again from the free space");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("reading", &path, error)),
        }
        // In two steps, so that the greatest number of bytes does not overflow.
        let free = SystemDisk.free_bytes(&self.root).map_err(|e| failed("asking the free space of", &self.root, e))?;
        let capacity = free / 100 * CAPACITY_PERCENT;
        replace(&self.root, "capacity", &format!("{capacity}\n"))?;
        Ok(capacity)
    }
}

fn check_format(root: &Path) -> Result<(), StoreError> {
    let path = root.join("format");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(found) if found > FORMAT => Err(StoreError::TooNew { found, known: FORMAT }),
            // Format 1 was never released. One that comes after this is migrated here, before anything is opened.
            Ok(FORMAT) => Ok(()),
            Ok(found @ 1..FORMAT) => Err(StoreError::TooOld { found, known: FORMAT }),
            _ => {
                let reason = io::Error::new(io::ErrorKind::InvalidData, "it holds no format version");
                Err(failed("reading", &path, reason))
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace(root, "format", &format!("{FORMAT}\n")),
        Err(error) => Err(failed("reading", &path, error)),
    }
}

/// Puts `text` into the file `name`, all of it or none.
fn replace(root: &Path, name: &str, text: &str) -> Result<(), StoreError> {
    let path = root.join(name);
    let partial = root.join(format!("{name}.new"));
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &path)
    };
    write().map_err(|e| failed("writing", &path, e))?;
    sync(root)
}

fn sync(directory: &Path) -> Result<(), StoreError> {
    SystemDisk.sync_directory(directory).map_err(|e| failed("syncing", directory, e))
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    SystemDisk.make_directory(path).map_err(|e| failed("making", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_ends_with_it_though_a_process_that_starts_has_its_file_still() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let layout = Layout::open(directory.path()).expect("it opens");
        assert!(matches!(Layout::open(directory.path()), Err(StoreError::Locked(_))));
        // As a child has it between its fork and its exec.
        let inherited = layout.lock.try_clone().expect("it is duplicated");
        drop(layout);
        Layout::open(directory.path()).expect("nobody has it open");
        drop(inherited);
    }
}
