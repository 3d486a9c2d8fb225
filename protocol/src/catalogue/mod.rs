//! The catalogue: signed publications, merged as a last-writer-wins map. SKELETON: its builder replaces all but these names.

use crate::{Cid, PeerId};

/// What a root is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// What a publisher says of a root, before it is signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication {
    /// Who says so.
    pub publisher: PeerId,
    /// The name it stands under; `None`: under its root.
    pub name: Option<String>,
    /// The file's name, for people; never a key. A single valid path component, at most 255 bytes.
    pub label: String,
    /// The root.
    pub root: Cid,
    /// What the root is.
    pub kind: Kind,
    /// Content bytes.
    pub size: u64,
    /// Copies wanted.
    pub replicas: u8,
    /// From 1, one more than the highest seen for the same key.
    pub version: u64,
    /// Milliseconds since the Unix epoch; for people, never for order.
    pub time_milliseconds: u64,
    /// A removal.
    pub removed: bool,
}
