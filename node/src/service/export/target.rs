//! Where a `get` writes: the target's name, the partial beside it, and the rename at the end.
//!
//! The partial is `.<name>.<end of the CID>.p2p-partial`: the same content for the same place finds it again. It is
//! locked while it is written; a lock goes with the process that had it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use p2p_protocol::{
    Cid,
    dag::{Metadata, check_name},
};
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};

use super::{GetOptions, Result, WriteError, own, restore_link, write_error};
use crate::service::reason::reason;

/// The most bytes of a file's name on every common file system.
const MAX_FILE_NAME_BYTES: usize = 255;
/// How many characters of the CID tell partials apart: the last twelve carry 60 bits.
const CID_CHARACTERS: usize = 12;

/// What is to be written.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// What to call it where the user does not say.
    pub(super) label: String,
    pub(super) root: Cid,
    pub(super) directory: bool,
    pub(super) link: bool,
}

/// A target whose partial is open and locked. Exactly one of `file` and `tree` is there, or neither for a link.
#[derive(Debug)]
pub(super) struct Target {
    parent: OwnedFd,
    parent_path: PathBuf,
    name: String,
    partial: String,
    force: bool,
    /// The partial of a file.
    pub(super) file: Option<Arc<File>>,
    /// The partial of a directory.
    pub(super) tree: Option<Arc<OwnedFd>>,
}

/// Says what is in the way as far as that is known before the content is: a path that is there and not a directory.
pub(super) fn check_early(output: &Path, force: bool) -> Result<()> {
    match fs::metadata(output) {
        Ok(found) if found.is_dir() => Ok(()),
        _ => match fs::symlink_metadata(output) {
            Ok(_) if !force => Err(in_the_way(output)),
            _ => Ok(()),
        },
    }
}

fn in_the_way(path: &Path) -> WriteError {
    WriteError::Taken(path.display().to_string())
}

/// The path to write to, from what the user said.
fn place(wanted: &Wanted, options: &GetOptions) -> Result<(PathBuf, String)> {
    let label = || {
        let usable = check_name(wanted.label.as_bytes()).is_ok() && wanted.label.len() <= MAX_FILE_NAME_BYTES;
        if usable { wanted.label.clone() } else { wanted.root.to_string() }
    };
    let Some(output) = &options.output else { return Ok((options.directory.clone(), label())) };
    if fs::metadata(output).is_ok_and(|found| found.is_dir()) {
        return Ok((output.clone(), label()));
    }
    let shown = output.display().to_string();
    if output.as_os_str().as_bytes().ends_with(b"/") {
        return Err(WriteError::NoDirectory(shown));
    }
    match (output.parent(), output.file_name().and_then(|name| name.to_str())) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok((parent.to_owned(), name.to_owned()))
        }
        _ => Err(WriteError::NoName(shown)),
    }
}

/// The partial's name: the target's is cut where both together would be too long.
fn partial_name(name: &str, root: &Cid) -> String {
    let cid = root.to_string();
    let cid = &cid[cid.len().saturating_sub(CID_CHARACTERS)..];
    let room = MAX_FILE_NAME_BYTES - ".".len() - ".".len() - CID_CHARACTERS - ".p2p-partial".len();
    let mut end = name.len().min(room);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!(".{}.{cid}.p2p-partial", &name[..end])
}

impl Target {
    /// Finds the place, refuses what is in the way, and opens the partial. Blocks.
    pub(super) fn open(wanted: &Wanted, options: &GetOptions) -> Result<Self> {
        let (parent_path, name) = place(wanted, options)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(&parent_path, flags, Mode::empty()).map_err(|why| {
            let directory = parent_path.display().to_string();
            match why {
                rustix::io::Errno::NOENT => WriteError::NoDirectory(directory),
                _ => WriteError::Directory { directory, why: reason(&why.into()) },
            }
        })?;
        let partial = partial_name(&name, &wanted.root);
        let mut target = Self { parent, parent_path, name, partial, force: options.force, file: None, tree: None };
        if !options.force && target.is_taken() {
            return Err(in_the_way(&target.path()));
        }
        if wanted.directory {
            target.tree = Some(Arc::new(target.open_tree()?));
        } else if !wanted.link {
            target.file = Some(Arc::new(target.open_file()?));
        }
        Ok(target)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.parent_path.join(&self.name)
    }

    pub(super) fn partial_path(&self) -> PathBuf {
        self.parent_path.join(&self.partial)
    }

    fn is_taken(&self) -> bool {
        rustix::fs::statat(&self.parent, &*self.name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn open_file(&self) -> Result<File> {
        let file = own::open_file(&self.parent, &self.partial).map_err(|why| self.partial_error(why))?;
        self.lock(&file)?;
        Ok(file)
    }

    fn open_tree(&self) -> Result<OwnedFd> {
        let tree = own::open_directory(&self.parent, &self.partial).map_err(|why| self.partial_error(why))?;
        self.lock(&tree)?;
        Ok(tree)
    }

    fn lock(&self, partial: impl AsFd) -> Result<()> {
        match rustix::fs::flock(partial, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(WriteError::Busy(self.path().display().to_string())),
            // A file system without locks has one get at a time, by its user's care.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn partial_error(&self, why: Errno) -> WriteError {
        let path = self.partial_path();
        match why {
            Errno::LOOP | Errno::NOTDIR | Errno::EXIST | Errno::ISDIR | Errno::MLINK | Errno::NXIO => {
                WriteError::NotOurs { target: self.path().display().to_string(), partial: path.display().to_string() }
            }
            why => write_error(&path.display().to_string(), &why.into(), &path),
        }
    }

    /// Ends a `get` that failed: a partial in which there is nothing goes, any other stays. Blocks.
    pub(super) fn leave(self) {
        let empty = self.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|found| found.len() == 0));
        if empty {
            let _ = rustix::fs::unlinkat(&self.parent, &*self.partial, AtFlags::empty());
        }
        if self.tree.is_some() {
            // Fails where there is something in it.
            let _ = rustix::fs::unlinkat(&self.parent, &*self.partial, AtFlags::REMOVEDIR);
        }
    }

    /// Has everything on the disk and gives it its name. `link` is what a symbolic link points to. Blocks.
    pub(super) fn commit(self, link: Option<(Bytes, Metadata)>, metadata: Metadata) -> Result<PathBuf> {
        let error = |why: io::Error| write_error(&self.path().display().to_string(), &why, &self.partial_path());
        if let Some(file) = &self.file {
            super::restore(file, &metadata).map_err(|why| error(why.into()))?;
            file.sync_all().map_err(error)?;
        }
        if let Some(tree) = &self.tree {
            sync_tree(tree).map_err(error)?;
        }
        if let Some((to, metadata)) = link {
            let _ = rustix::fs::unlinkat(&self.parent, &*self.partial, AtFlags::empty());
            rustix::fs::symlinkat(&*to, &self.parent, &*self.partial).map_err(|why| error(why.into()))?;
            restore_link(&self.parent, &self.partial, &metadata).map_err(|why| error(why.into()))?;
        }
        self.rename().map_err(|why| match why {
            Errno::EXIST | Errno::NOTEMPTY if !self.force => in_the_way(&self.path()),
            why => error(why.into()),
        })?;
        rustix::fs::fsync(&self.parent).map_err(|why| error(why.into()))?;
        Ok(self.path())
    }

    fn rename(&self) -> rustix::io::Result<()> {
        if !self.force {
            return self.rename_new();
        }
        match rustix::fs::renameat(&self.parent, &*self.partial, &self.parent, &*self.name) {
            // A directory is in the way, or is to take a file's place: the old one is moved aside and then removed.
            Err(Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => self.swap(),
            done => done,
        }
    }

    #[cfg(target_os = "linux")]
    fn rename_new(&self) -> rustix::io::Result<()> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.parent, &*self.partial, &self.parent, &*self.name, flags) {
            // The file system cannot tell: looked at first, then renamed.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.rename_looked(),
            done => done,
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn rename_new(&self) -> rustix::io::Result<()> {
        self.rename_looked()
    }

    fn rename_looked(&self) -> rustix::io::Result<()> {
        if self.is_taken() {
            return Err(Errno::EXIST);
        }
        rustix::fs::renameat(&self.parent, &*self.partial, &self.parent, &*self.name)
    }

    fn swap(&self) -> rustix::io::Result<()> {
        let aside = format!("{}.replaced", self.partial);
        rustix::fs::renameat(&self.parent, &*self.name, &self.parent, &*aside)?;
        if let Err(why) = rustix::fs::renameat(&self.parent, &*self.partial, &self.parent, &*self.name) {
            // The old one goes back.
            let _ = rustix::fs::renameat(&self.parent, &*aside, &self.parent, &*self.name);
            return Err(why);
        }
        let path = self.parent_path.join(&aside);
        let removed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        if let Err(why) = removed {
            tracing::warn!("what {} replaced is still in {}: {why}", self.path().display(), path.display());
        }
        Ok(())
    }
}

impl Drop for Target {
    /// Lets the next `get` in at once: a write that was under way when this one was cancelled still has the partial open
    /// for a moment (and writes what is right).
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
        if let Some(tree) = &self.tree {
            let _ = rustix::fs::flock(tree, FlockOperation::Unlock);
        }
    }
}

/// Has all of a tree on the disk: at once where the system can, for a sync of each of many small files costs more than
/// writing them.
#[cfg(target_os = "linux")]
fn sync_tree(tree: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(tree)?)
}

/// Elsewhere each file was synced when it was finished; the top is left.
#[cfg(not(target_os = "linux"))]
fn sync_tree(tree: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(tree)?)
}

/// Whether [`sync_tree`] covers the files.
pub(super) const SYNCS_FILES: bool = cfg!(target_os = "linux");
