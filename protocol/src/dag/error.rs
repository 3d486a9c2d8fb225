//! What can be wrong with a DAG: in what others made, or in what is to be made.

use crate::{Cid, CidError};

/// Why a node, a directory or a walk was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DagError {
    /// The bytes are not DAG-PB.
    #[error("not a DAG-PB node: {0}")]
    DagPb(&'static str),
    /// The DAG-PB node does not hold valid UnixFS.
    #[error("not a UnixFS node: {0}")]
    UnixFs(&'static str),
    /// A link to what the network does not store.
    #[error("a link cannot be followed: {0}")]
    Link(#[from] CidError),
    /// The sizes that a node states overflow, or differ from what is there.
    #[error("sizes that do not add up: {0}")]
    Sizes(&'static str),
    /// A leaf has another length than its parent says.
    #[error("{cid} has {found} bytes where its parent says {expected}")]
    Length {
        /// The leaf.
        cid: Cid,
        /// What the parent says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// A name that no directory may have.
    #[error("the name {name:?} is refused: {why}")]
    Name {
        /// The name, as far as it is text; at most [`MAX_NAME_BYTES`](super::MAX_NAME_BYTES) bytes of it.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two entries of one name.
    #[error("the name {name:?} stands in the directory twice")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A sharded directory that breaks its own rules.
    #[error("not a valid directory shard: {0}")]
    Shard(&'static str),
    /// More levels than any honest DAG has: it may contain itself.
    #[error("the DAG is over {0} levels deep")]
    TooDeep(usize),
    /// More to remember at once than any honest DAG asks for.
    #[error("the DAG is too wide: over {0} links wait at once")]
    TooWide(usize),
    /// More entries than this node puts into one directory.
    #[error("a directory has at most {0} entries")]
    TooManyEntries(usize),
    /// A symbolic link's target that is empty or too long.
    #[error("a symbolic link's target has 1 to {} bytes, not {length}", super::MAX_TARGET_BYTES)]
    Target {
        /// Its bytes.
        length: usize,
    },
    /// A file was asked for.
    #[error("{0} is not a file")]
    NotAFile(Cid),
    /// A directory was asked for.
    #[error("{0} is not a directory")]
    NotADirectory(Cid),
    /// A chunk was supplied that was not asked for.
    #[error("{0} was not asked for")]
    Unasked(Cid),
}
