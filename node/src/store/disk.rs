//! What the store needs of a disk, so that tests can put one in its place that loses, tears and reorders what was not
//! synced: files that are read and written at offsets, directories whose entries are synced apart, and the index.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, IoSlice, Read as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
    thread,
};

use super::{
    StoreError,
    index::{Index, sled::SledIndex},
};

/// The most that one write takes: bigger ones make `add` uneven (ARCHITECTURE.md, "Decisions").
pub(super) const WRITE_BYTES: usize = 256 * 1024;

/// Bytes that are read ahead at once, and in all: the index of four million chunks (guess: more might push out of the
/// cache of a small machine what is not looked at yet).
const READ_BYTES: usize = 1024 * 1024;
const READ_AHEAD_BYTES: u64 = 1024 * 1024 * 1024;

/// A disk. What was made, renamed or removed in a directory survives a power cut once that directory was synced.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// Makes the file, or cuts it to nothing where there is one; only this user can read it.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file that is there, to be read and, where `writable`, written.
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// The names in a directory, in no order.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Whether there is a file or a directory.
    fn exists(&self, path: &Path) -> bool;
    /// Moves a file or a directory within its directory; a file that has the name is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory, if there is none; only this user can enter it.
    fn make_directory(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all that is in it, if it is there.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes the entries of a directory survive a power cut.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
    /// Bytes free for this user.
    fn free_bytes(&self, directory: &Path) -> io::Result<u64>;
    /// Forgets what is cached of the index in a directory, if there is one, after a sync of it: what is read next is what
    /// is on the disk.
    fn forget(&self, directory: &Path) -> io::Result<()>;
    /// Begins to read the index in a directory from its files' beginning to their end, so that what is asked of it soon is
    /// cached: whoever looks through it asks in another order. It only makes that faster; failures show when they are met.
    fn read_ahead(&self, _directory: &Path) {}
    /// Opens the index in a directory, or makes it there.
    fn index(&self, directory: &Path) -> Result<Arc<dyn Index>, StoreError>;
}

/// An open file.
pub(super) trait DiskFile: fmt::Debug + Send + Sync {
    /// Its bytes.
    fn length(&self) -> io::Result<u64>;
    /// Fills `bytes` from `offset` on; `UnexpectedEof` where there are fewer.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `slices`, none of which is empty or over [`WRITE_BYTES`], from `offset` on.
    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Cuts it off, or fills it up with zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Returns when what was written, and the length, is on disk. After a failure nobody knows what is, and a later
    /// success says nothing of it.
    fn sync(&self) -> io::Result<()>;
}

/// The system's.
#[derive(Debug)]
pub(super) struct SystemDisk;

impl Disk for SystemDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        Ok(Arc::new(options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?))
    }

    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(writable).open(path)?))
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        // A name that is not text is none of the store's.
        let names = fs::read_dir(directory)?.map(|found| found.map(|found| found.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        if path.exists() { fs::remove_dir_all(path) } else { Ok(()) }
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(directory)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn forget(&self, directory: &Path) -> io::Result<()> {
        for found in fs::read_dir(directory)? {
            let path = found?.path();
            if path.is_file() {
                let file = OpenOptions::new().read(true).write(true).open(path)?;
                file.sync_data()?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            }
        }
        Ok(())
    }

    fn read_ahead(&self, directory: &Path) {
        let directory = directory.to_owned();
        // Where it cannot be started, or nothing be read, nothing is read ahead.
        drop(thread::Builder::new().name("store-read-ahead".into()).spawn(move || read_all(&directory)));
    }

    fn index(&self, directory: &Path) -> Result<Arc<dyn Index>, StoreError> {
        Ok(Arc::new(SledIndex::open(directory)?))
    }
}

/// Reads the files in a directory, and lets go of what it reads; what keeps it is the system's cache.
fn read_all(directory: &Path) -> io::Result<()> {
    let mut bytes = vec![0; READ_BYTES];
    let mut left = READ_AHEAD_BYTES;
    for found in fs::read_dir(directory)? {
        let path = found?.path();
        if !path.is_file() {
            continue;
        }
        let mut file = File::open(path)?;
        while left > 0 {
            match file.read(&mut bytes)? {
                0 => break,
                read => left = left.saturating_sub(read as u64),
            }
        }
    }
    Ok(())
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn write_at(&self, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        while !slices.is_empty() {
            let mut bytes = 0;
            let fits = slices.iter().take_while(|slice| {
                bytes += slice.len();
                bytes <= WRITE_BYTES
            });
            let count = fits.count().max(1);
            match rustix::io::pwritev(self, &slices[..count], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
