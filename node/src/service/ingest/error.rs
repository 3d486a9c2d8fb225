//! Why something cannot be added.

use super::faults::Faults;
use crate::service::blocking::Unfinished;

/// Nothing is published then. `shown` is the path as its asker wrote it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)] // The sentences say it.
pub enum AddError {
    #[error("cannot add {shown}: {why}")]
    Failed { shown: String, why: String },
    #[error("cannot add {shown}: {why}")]
    BadChunker { shown: String, why: String },
    #[error("cannot add {0}: it is this node's own data directory, which would then contain itself")]
    OwnData(String),
    #[error("cannot add {0}: there is no such file or directory")]
    NoSuchPath(String),
    #[error("{0}")]
    Faults(Faults),
    #[error("cannot add -: reading it failed: {0}; nothing was published")]
    Stream(String),
    #[error("cannot add {shown}: {why}")]
    Full { shown: String, why: String },
    #[error("cannot count chunks in the data directory's tmp: {0}")]
    Scratch(String),
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
}
