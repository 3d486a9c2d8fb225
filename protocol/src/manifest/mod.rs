//! Manifests: all distinct chunks of a DAG, in the order of their Kademlia keys (`SPEC.md`, "Manifests").
//!
//! A publication says which chunks its root means: the few of a small DAG itself, those of a larger one by the address
//! of a manifest. Whoever has the DAG can make its manifest again, to the same address. A manifest is written by
//! [`Writer`]; a range of its keys is read by [`RangeReader`], its own chunks are found by [`OwnChunks`]. Both know the
//! manifest's [`Shape`] from the number of entries alone, so that nothing that another file would do to a reader can be
//! done with a manifest.

mod entry;
mod leaf;
mod own;
mod read;
mod search;
mod shape;
#[cfg(test)]
mod tests;
mod write;

pub use entry::{ENTRY_BYTES, Entry};
pub use leaf::Leaf;
pub use own::OwnChunks;
pub use read::RangeReader;
pub use shape::{Child, LEAF_BYTES, LEAF_ENTRIES, MAX_ENTRIES, Place, Shape};
pub use write::{WriteError, Writer};

use crate::{Chunk, Cid, Key};

/// The most entries that stand in a publication itself; a DAG of more chunks has a manifest.
pub const MAX_INLINE_ENTRIES: usize = 8;

/// Malformed nodes after which a reader takes the whole manifest for malformed. An honest one has none; a hostile one
/// of few chunks that stand in many places could otherwise be read for as long as its number of entries claims. A guess.
const MAX_MALFORMED: u32 = 64;

/// How a publication says which chunks its root means.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Listing {
    /// The chunks themselves, in the order of their keys: 0 to [`MAX_INLINE_ENTRIES`].
    Inline(Vec<Entry>),
    /// The root of the manifest's file.
    Manifest(Cid),
}

impl Listing {
    /// The listing of a DAG with these chunks, which come in strictly ascending order of their keys; the chunks of a
    /// manifest, where there is one, are appended to `out`: 40 bytes an entry and its inner nodes, all in memory. A
    /// [`Writer`] does the same bit by bit.
    pub fn of(entries: impl IntoIterator<Item = Entry>, out: &mut Vec<Chunk>) -> Result<Self, WriteError> {
        let mut writer = Writer::new();
        for entry in entries {
            writer.push(entry, out)?;
        }
        Ok(writer.finish_listing(out))
    }

    /// These entries inline; `None` where they are over [`MAX_INLINE_ENTRIES`] or not in strictly ascending order of
    /// their keys.
    pub fn inline(entries: Vec<Entry>) -> Option<Self> {
        let ascending = entries.is_sorted_by(|a, b| a.key() < b.key());
        (entries.len() <= MAX_INLINE_ENTRIES && ascending).then_some(Self::Inline(entries))
    }
}

/// A manifest, as a publication names it: with the number of entries the exact shape of its tree is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Manifest {
    /// The root of its file.
    pub root: Cid,
    /// How many chunks it lists: 1 to [`MAX_ENTRIES`].
    pub entries: u64,
}

/// Not part of any manifest, or not where it stands: a leaf that is malformed lists nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a part of a manifest: {0}")]
pub struct Malformed(pub(crate) &'static str);

/// A reader was given a chunk that it did not ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} was not asked for")]
pub struct Unasked(pub Cid);

/// What a reader of a manifest has to say next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A chunk to be fetched and given to `supply`; said again until it is. `length` is what it must have: a source that
    /// has another has another chunk.
    Want(Entry),
    /// Entries of the range, ascending, one or more, with their keys.
    Listed(Vec<(Key, Entry)>),
    /// What stands at this place is malformed: it and what is below it list nothing. The root's place: all that was not
    /// listed yet is given up.
    Malformed(Place),
    /// The range was gone through.
    Done,
}
