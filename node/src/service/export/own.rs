//! What an earlier `get` left, gone on with only where nobody else can have a hand in it.
//!
//! The directory that is written into may be one that everybody writes into. What stands there under a partial's name may
//! then be another user's, who can still change it after it was verified, or be known under a second name, through which
//! something outside would be overwritten.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, Stat},
    io::Errno,
};

/// The mode of a new file, before the umask: never one that everybody may write into.
const FILE_MODE: Mode = Mode::from_raw_mode(0o664);
/// The mode of a new directory, before the umask.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o775);
const FILE: OFlags = OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Makes a file that is not there yet. Blocks.
pub(super) fn new_file(directory: impl AsFd, name: &str) -> rustix::io::Result<File> {
    let flags = FILE | OFlags::CREATE | OFlags::EXCL;
    Ok(rustix::fs::openat(directory, name, flags, FILE_MODE)?.into())
}

/// Opens a file to write into, or makes it. Blocks.
///
/// # Errors
///
/// [`Errno::EXIST`]: something stands there that is not a file of this user's own.
pub(super) fn open_file(directory: impl AsFd, name: &str) -> rustix::io::Result<File> {
    match new_file(&directory, name) {
        Err(Errno::EXIST) => {}
        made => return made,
    }
    let found = rustix::fs::openat(directory, name, FILE, Mode::empty())?;
    own(&found, FileType::RegularFile)?;
    Ok(found.into())
}

/// Opens a directory to write into, or makes it. Blocks. Fails as [`open_file`] does.
pub(super) fn open_directory(above: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let made = match rustix::fs::mkdirat(&above, name, DIRECTORY_MODE) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(why) => return Err(why),
    };
    let found = rustix::fs::openat(above, name, DIRECTORY, Mode::empty())?;
    if !made {
        own(&found, FileType::Directory)?;
    }
    Ok(found)
}

fn own(found: &OwnedFd, kind: FileType) -> rustix::io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    if is_own(&rustix::fs::fstat(found)?, kind, user) { Ok(()) } else { Err(Errno::EXIST) }
}

/// Whether it is of this kind, belongs to `user`, has this one name, and not everybody may write into it. A group may:
/// where the umask gives new files to the user's group, the result is the group's to write as well.
fn is_own(stat: &Stat, kind: FileType, user: u32) -> bool {
    let one_name = kind == FileType::Directory || stat.st_nlink == 1;
    FileType::from_raw_mode(stat.st_mode) == kind && stat.st_uid == user && one_name && stat.st_mode & 0o002 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_this_users_alone_is_gone_on_with() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        std::fs::write(&path, b"x").expect("a file");
        let mut stat = rustix::fs::stat(&path).expect("it is there");
        let user = stat.st_uid;
        stat.st_mode = (stat.st_mode & !0o777) | 0o664;
        assert!(is_own(&stat, FileType::RegularFile, user));
        assert!(!is_own(&stat, FileType::RegularFile, user + 1), "another user's");
        assert!(!is_own(&stat, FileType::Directory, user), "no directory");
        let mut linked = stat;
        linked.st_nlink = 2;
        assert!(!is_own(&linked, FileType::RegularFile, user), "known elsewhere");
        let mut open = stat;
        open.st_mode |= 0o002;
        assert!(!is_own(&open, FileType::RegularFile, user), "everybody may write into it");
    }
}
