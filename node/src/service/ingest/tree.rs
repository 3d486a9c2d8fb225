//! Reading a file or a tree, bit by bit: each step blocks and gives a bounded batch of chunks.
//!
//! The walk keeps its own stack and opens everything relative to its directory without following symbolic links, so
//! that neither a deep tree nor a loop nor a directory that is swapped for a link while it is read can lead it astray.
//! At most [`OPEN_DIRECTORIES`] + 3 files are open: deeper directories are closed and reopened as `..` of their child.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::Read as _,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    vec,
};

use p2p_protocol::{
    catalogue::Kind,
    chunker::Chunker,
    dag::{self, DirectoryBuilder, Link, Metadata},
};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::{AddError, Batch, ReadOptions, Result, faults::Faults, leaves::Leaves};
use crate::service::reason::reason;

/// Directories that stay open while what is below them is read: far under the 1024 files of a process.
const OPEN_DIRECTORIES: usize = 64;
/// The most directories below each other. Beyond it the file system is broken (a loop of mounts); each level holds its
/// entries in memory.
const MAX_DEPTH: usize = 16 * 1024;

/// What makes a file or a directory the same one, and the same as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Identity {
    device: u64,
    inode: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    identity: Identity,
    size: u64,
    mtime: (i64, u32),
}

/// The walk: [`read`](Self::read) until [`done`](Self::done).
#[derive(Debug)]
pub(super) struct TreeReader {
    chunker: Chunker,
    options: ReadOptions,
    /// The path as the user wrote it.
    shown: String,
    own_data: Option<Identity>,
    /// What the user named, until it is begun.
    start: Option<(CString, FileType)>,
    frames: Vec<Frame>,
    file: Option<OpenFile>,
    faults: Faults,
    root: Option<(Link, Kind)>,
}

/// A directory that is being read.
#[derive(Debug)]
struct Frame {
    name: String,
    /// `None` while it is closed for the sake of those below.
    directory: Option<OwnedFd>,
    identity: Identity,
    entries: vec::IntoIter<(CString, FileType)>,
    builder: DirectoryBuilder,
}

#[derive(Debug)]
struct OpenFile {
    name: String,
    file: File,
    before: Stamp,
    read: u64,
    leaves: Leaves,
}

impl TreeReader {
    /// Begins with `path`, shown to people as `shown`. `own_data` is the node's data directory, which is refused.
    pub(super) fn open(path: &Path, shown: &str, options: ReadOptions, own_data: Option<&Path>) -> Result<Self> {
        let failed = |why: String| AddError::Failed { shown: shown.to_owned(), why };
        let chunker = Chunker::new(options.chunker)
            .map_err(|why| AddError::BadChunker { shown: shown.to_owned(), why: why.to_string() })?;
        if let Some(data) = own_data
            && let (Ok(data), Ok(path)) = (data.canonicalize(), path.canonicalize())
            && path.starts_with(data)
        {
            return Err(AddError::OwnData(shown.to_owned()));
        }
        // A symbolic link that is named itself is added as a link; with a slash behind it, the system follows it here.
        let stat = rustix::fs::lstat(path).map_err(|why| match why {
            Errno::NOENT => AddError::NoSuchPath(shown.to_owned()),
            why => failed(words(why)),
        })?;
        let name =
            CString::new(path.as_os_str().as_bytes()).map_err(|_| failed("the path contains a NUL byte".to_owned()))?;
        Ok(Self {
            chunker,
            options,
            shown: shown.to_owned(),
            own_data: own_data.and_then(|data| rustix::fs::stat(data).ok()).map(|stat| identity(&stat)),
            start: Some((name, FileType::from_raw_mode(stat.st_mode))),
            frames: Vec::new(),
            file: None,
            faults: Faults::default(),
            root: None,
        })
    }

    /// Whether everything was read.
    pub(super) fn done(&self) -> bool {
        self.start.is_none() && self.frames.is_empty() && self.file.is_none()
    }

    /// What came of it, once it is [`done`](Self::done).
    pub(super) fn outcome(self) -> Result<(Link, Kind)> {
        match (self.faults.is_empty(), self.root) {
            (false, _) => Err(AddError::Faults(self.faults.of(self.shown))),
            (true, Some(root)) => Ok(root),
            (true, None) => Err(AddError::Failed { shown: self.shown, why: "it was not read to its end".to_owned() }),
        }
    }

    /// What is being read now, for people.
    pub(super) fn current(&self) -> Option<String> {
        self.file.as_ref().map(|file| self.place(&file.name))
    }

    /// Content bytes in all, where that is known before they are read.
    pub(super) fn total_bytes(&self) -> Option<u64> {
        self.file.as_ref().filter(|_| self.frames.is_empty()).map(|file| file.before.size)
    }

    /// Reads until `batch` is full or there is nothing more. After the first fault chunks are no longer given out: the
    /// rest is read only to find what else is wrong.
    pub(super) fn read(&mut self, batch: &mut Batch) {
        while !self.done() && !batch.is_full(self.file.as_ref().map_or(0, |file| file.leaves.waiting_bytes())) {
            if !self.faults.is_empty() {
                batch.discard();
            }
            if let Some((name, kind)) = self.start.take() {
                self.begin(name, kind, batch);
            } else if self.file.is_some() {
                self.read_file(batch);
            } else {
                self.next_entry(batch);
            }
        }
        if let Some(file) = &mut self.file {
            file.leaves.settle(batch);
        }
        if !self.faults.is_empty() {
            batch.discard();
        }
    }

    /// The path of `name` in the directory that is read now, as the user would write it.
    fn place(&self, name: &str) -> String {
        let mut path = self.shown.trim_end_matches('/').to_owned();
        if path.is_empty() {
            path.push('/');
        }
        let below = self.frames.iter().skip(1).map(|frame| frame.name.as_str()).chain([name]);
        for name in below.filter(|name| !name.is_empty()) {
            if !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(name);
        }
        path
    }

    fn fault(&mut self, name: &str, why: impl std::fmt::Display) {
        let place = self.place(name);
        self.faults.add(&place, why);
    }

    fn next_entry(&mut self, batch: &mut Batch) {
        let Some(frame) = self.frames.last_mut() else { return };
        match frame.entries.next() {
            Some((name, kind)) => self.begin(name, kind, batch),
            None => self.leave(batch),
        }
    }

    /// Begins an entry of the directory that is read now, or what the user named.
    fn begin(&mut self, raw: CString, kind: FileType, batch: &mut Batch) {
        let name = if self.frames.is_empty() {
            // What its publication calls it.
            if Path::new(OsStr::from_bytes(raw.to_bytes())).file_name().is_some_and(|name| name.to_str().is_none()) {
                self.fault("", NOT_UTF8);
                // A directory is read all the same, for what else is wrong.
                if kind != FileType::Directory {
                    return;
                }
            }
            String::new()
        } else {
            match raw.to_str() {
                Ok(name) => name.to_owned(),
                Err(_) => {
                    let name = raw.to_string_lossy().into_owned();
                    return self.fault(&name, NOT_UTF8);
                }
            }
        };
        let begun = match kind {
            FileType::RegularFile => self.begin_file(&raw, name.clone()),
            FileType::Directory => self.enter(&raw, name.clone()),
            FileType::Symlink => self.link(&raw, name.clone(), batch),
            FileType::Fifo => Err("it is a named pipe; only files, directories and symbolic links can be added".into()),
            FileType::Socket => Err("it is a socket; only files, directories and symbolic links can be added".into()),
            FileType::CharacterDevice | FileType::BlockDevice => {
                Err("it is a device; only files, directories and symbolic links can be added".into())
            }
            FileType::Unknown => {
                match self.at(|directory| rustix::fs::statat(directory, &*raw, AtFlags::SYMLINK_NOFOLLOW)) {
                    Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                        FileType::Unknown => Err("it is of a kind that cannot be added".into()),
                        known => return self.begin(raw, known, batch),
                    },
                    Err(why) => Err(words(why)),
                }
            }
        };
        if let Err(why) = begun {
            self.fault(&name, why);
        }
    }

    /// Does something in the directory that is read now; for what the user named, in the current one.
    fn at<T>(&self, act: impl FnOnce(rustix::fd::BorrowedFd<'_>) -> rustix::io::Result<T>) -> rustix::io::Result<T> {
        match self.frames.last() {
            None => act(rustix::fs::CWD),
            // The directory that is read now is always open: only those above are closed.
            Some(frame) => frame.directory.as_ref().map_or(Err(Errno::BADF), |directory| act(directory.as_fd())),
        }
    }

    fn open_at(&self, name: &CString, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        // What the user named was looked at already, and may end in a slash that follows a link.
        let follow = if self.frames.is_empty() { OFlags::empty() } else { OFlags::NOFOLLOW };
        self.at(|directory| rustix::fs::openat(directory, &**name, flags | follow | OFlags::CLOEXEC, Mode::empty()))
    }

    fn begin_file(&mut self, raw: &CString, name: String) -> Result<(), String> {
        // Not blocking, should it have become a pipe since it was looked at.
        let file = self.open_at(raw, OFlags::RDONLY | OFlags::NONBLOCK).map_err(words)?;
        let stat = rustix::fs::fstat(&file).map_err(words)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(CHANGED.into());
        }
        let leaves = Leaves::new(self.metadata(&stat, true));
        self.file = Some(OpenFile { name, file: File::from(file), before: stamp(&stat), read: 0, leaves });
        Ok(())
    }

    fn read_file(&mut self, batch: &mut Batch) {
        let Some(open) = &mut self.file else { return };
        match open.file.read(self.chunker.spare()) {
            Ok(0) => self.end_file(batch),
            Ok(read) => {
                open.read += read as u64;
                batch.bytes += read as u64;
                self.chunker.advance(read);
                while let Some(leaf) = self.chunker.next_chunk() {
                    open.leaves.push(leaf);
                }
            }
            Err(why) if why.kind() == std::io::ErrorKind::Interrupted => {}
            Err(why) => self.drop_file(reason(&why)),
        }
    }

    fn end_file(&mut self, batch: &mut Batch) {
        let Some(mut open) = self.file.take() else { return };
        for leaf in self.chunker.finish() {
            open.leaves.push(leaf);
        }
        let after = match rustix::fs::fstat(&open.file) {
            Ok(stat) => stamp(&stat),
            Err(why) => return self.fault(&open.name, words(why)),
        };
        if after != open.before || open.read != after.size {
            return self.fault(&open.name, CHANGED);
        }
        let link = open.leaves.finish(batch);
        self.give(open.name, link, Kind::File);
    }

    fn drop_file(&mut self, why: String) {
        // The rest of its bytes must not become the next file's first.
        drop(self.chunker.finish());
        if let Some(open) = self.file.take() {
            self.fault(&open.name, why);
        }
    }

    fn link(&mut self, raw: &CString, name: String, batch: &mut Batch) -> Result<(), String> {
        let target = self.at(|directory| rustix::fs::readlinkat(directory, &**raw, Vec::new())).map_err(words)?;
        let metadata = if self.options.preserve {
            let stat = self.at(|directory| rustix::fs::statat(directory, &**raw, AtFlags::SYMLINK_NOFOLLOW));
            self.metadata(&stat.map_err(words)?, false)
        } else {
            Metadata::default()
        };
        let (chunk, link) = dag::symlink(target.as_bytes(), metadata).map_err(|why| why.to_string())?;
        batch.push(chunk);
        self.give(name, link, Kind::Symlink);
        Ok(())
    }

    fn enter(&mut self, raw: &CString, name: String) -> Result<(), String> {
        let directory = self.open_at(raw, OFlags::RDONLY | OFlags::DIRECTORY).map_err(words)?;
        let stat = rustix::fs::fstat(&directory).map_err(words)?;
        let identity = identity(&stat);
        if self.own_data == Some(identity) {
            return Err(OWN_DATA.into());
        }
        if self.frames.len() >= MAX_DEPTH || self.frames.iter().any(|frame| frame.identity == identity) {
            return Err("it contains itself, or is nested too deep; the file system may be damaged".into());
        }
        let entries = list(&directory).map_err(words)?;
        if entries.len() > dag::MAX_ENTRIES {
            return Err(format!("it has {} entries, and a directory has at most {}", entries.len(), dag::MAX_ENTRIES));
        }
        let builder = DirectoryBuilder::new(self.metadata(&stat, true));
        if self.frames.len() >= OPEN_DIRECTORIES
            && let Some(above) = self.frames.last_mut()
        {
            above.directory = None;
        }
        let entries = entries.into_iter();
        self.frames.push(Frame { name, directory: Some(directory), identity, entries, builder });
        Ok(())
    }

    /// Ends the directory that is read now and goes back to the one above.
    fn leave(&mut self, batch: &mut Batch) {
        let Some(frame) = self.frames.pop() else { return };
        if let Err(why) = self.reopen(&frame) {
            // What is left of the one above cannot be read any more: that is a fault of it, told once.
            if let Some(above) = self.frames.last_mut() {
                above.entries = Vec::new().into_iter();
            }
            self.fault("", why);
        }
        match frame.builder.finish(&mut |chunk| batch.push(chunk)) {
            Ok(link) => self.give(frame.name, link, Kind::Directory),
            Err(why) => self.fault(&frame.name, why),
        }
    }

    /// Opens the directory above `frame` again if it was closed.
    fn reopen(&mut self, frame: &Frame) -> Result<(), String> {
        let (Some(above), Some(below)) = (self.frames.last_mut(), &frame.directory) else { return Ok(()) };
        if above.directory.is_none() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(below, "..", flags, Mode::empty()).map_err(words)?;
            above.directory = Some(directory);
            let directory = above.directory.as_ref().map(rustix::fs::fstat);
            if !directory.is_some_and(|stat| stat.is_ok_and(|stat| identity(&stat) == above.identity)) {
                return Err(CHANGED.into());
            }
        }
        Ok(())
    }

    /// Puts what is finished into the directory that it stands in.
    fn give(&mut self, name: String, link: Link, kind: Kind) {
        let Some(frame) = self.frames.last_mut() else {
            self.root = Some((link, kind));
            return;
        };
        if let Err(why) = frame.builder.entry(name.clone(), link) {
            self.fault(&name, why);
        }
    }

    fn metadata(&self, stat: &Stat, mode: bool) -> Metadata {
        if !self.options.preserve {
            return Metadata::default();
        }
        // A symbolic link's own mode means nothing and differs between systems.
        let mode = mode.then_some(permissions(stat));
        Metadata { mode, mtime: Some(mtime(stat)) }
    }
}

const OWN_DATA: &str = "it is this node's own data directory, which would then contain itself";
const CHANGED: &str = "it changed while it was read";
const NOT_UTF8: &str = "its name is not UTF-8; rename it";

fn words(why: Errno) -> String {
    reason(&why.into())
}

/// The entries of a directory in the order of their names, `.` and `..` left out.
fn list(directory: &OwnedFd) -> rustix::io::Result<Vec<(CString, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            entries.push((name.to_owned(), entry.file_type()));
        }
        if entries.len() > dag::MAX_ENTRIES {
            break;
        }
    }
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}

// The widths of these fields differ between systems.
#[allow(clippy::unnecessary_cast, clippy::cast_lossless, clippy::useless_conversion)]
fn identity(stat: &Stat) -> Identity {
    Identity { device: stat.st_dev as u64, inode: stat.st_ino as u64 }
}

#[allow(clippy::unnecessary_cast, clippy::cast_lossless, clippy::useless_conversion)]
fn mtime(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime as i64, stat.st_mtime_nsec as u32)
}

fn stamp(stat: &Stat) -> Stamp {
    Stamp { identity: identity(stat), size: u64::try_from(stat.st_size).unwrap_or(0), mtime: mtime(stat) }
}

#[allow(clippy::unnecessary_cast, clippy::cast_lossless, clippy::useless_conversion)]
fn permissions(stat: &Stat) -> u32 {
    stat.st_mode as u32 & 0o7777
}
