//! Manifests: all distinct chunks of a DAG, in the order of their Kademlia keys (`SPEC.md`, "Manifests").
//!
//! A publication says which chunks its root means: the few of a small DAG itself, those of a larger one by the address
//! of a manifest. Whoever has the DAG can make its manifest again, to the same address.

mod entry;

pub use entry::{ENTRY_BYTES, Entry};

use crate::Cid;

/// The most entries that stand in a publication itself; a DAG of more chunks has a manifest.
pub const MAX_INLINE_ENTRIES: usize = 8;

/// How a publication says which chunks its root means.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Listing {
    /// The chunks themselves, in the order of their keys: 0 to [`MAX_INLINE_ENTRIES`].
    Inline(Vec<Entry>),
    /// The root of the manifest's file.
    Manifest(Cid),
}
