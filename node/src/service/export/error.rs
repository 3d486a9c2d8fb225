//! Why something cannot be written out.

use crate::service::{blocking::Unfinished, inspect::ReadError};

/// Nothing stands under the target's name then. `reference` is as its asker wrote it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)] // The sentences say it.
pub enum WriteError {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Some of it is in the partial.
    #[error("{why}")]
    Incomplete { why: ReadError, partial: String },
    #[error("cannot write {0}: it is there already")]
    Taken(String),
    #[error("cannot write into {0}: there is no such directory")]
    NoDirectory(String),
    #[error("cannot write to {0}: it does not end in a name that is UTF-8")]
    NoName(String),
    #[error("cannot write into {directory}: {why}")]
    Directory { directory: String, why: String },
    #[error("cannot write {0}: another get of the same is writing it now")]
    Busy(String),
    #[error("cannot write {target}: {partial} is something else than what an earlier get left")]
    NotOurs { target: String, partial: String },
    #[error("cannot write {what}: the disk is full ({why})")]
    Full { what: String, why: String, partial: String },
    #[error("cannot write {what}: {why}")]
    Io { what: String, why: String },
    #[error("cannot write {reference}: a file of {size} bytes has no space on a disk with {free_bytes} bytes free")]
    NoRoom { reference: String, size: u64, free_bytes: u64 },
    #[error("cannot write all of {reference}: the disk has room for only {left} more files, which are left for others")]
    NoInodes { reference: String, left: u64, partial: String },
    #[error(
        "cannot write {reference}: over {most} entries of its directories wait at once, which no honest tree needs"
    )]
    TooWide { reference: String, most: usize },
    #[error("cannot write all of {reference}: it has over {most} entries, as a tree has that was made to fill a disk")]
    TooMany { reference: String, most: u64, partial: String },
    #[error("cannot write {reference}: it is over {most} directories deep")]
    TooDeep { reference: String, most: usize },
    #[error("cannot print {0}: it is a directory")]
    IsDirectory(String),
    #[error("cannot print {0}: it is a symbolic link")]
    IsLink(String),
    #[error("cannot count chunks in the data directory's tmp: {0}")]
    Scratch(String),
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
}
