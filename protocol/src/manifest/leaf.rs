//! A leaf of a manifest: up to 128 entries in strictly ascending order of their keys.

use super::{ENTRY_BYTES, Entry, LEAF_ENTRIES, Malformed};
use crate::Key;

/// A leaf that was read: every entry is valid, and their keys ascend strictly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// 1 to [`LEAF_ENTRIES`], with their keys.
    entries: Vec<(Key, Entry)>,
}

impl Leaf {
    /// Reads a leaf's bytes. Total: anything but 1 to [`LEAF_ENTRIES`] valid entries in strictly ascending order is
    /// malformed, all of it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() || entries.is_empty() || entries.len() > LEAF_ENTRIES {
            return Err(Malformed("a leaf has 1 to 128 entries of 40 bytes"));
        }
        let mut read: Vec<(Key, Entry)> = Vec::with_capacity(entries.len());
        for bytes in entries {
            let entry = Entry::from_bytes(bytes).ok_or(Malformed("an entry is not valid"))?;
            let key = entry.key();
            if read.last().is_some_and(|(before, _)| *before >= key) {
                return Err(Malformed("the entries of a leaf do not ascend"));
            }
            read.push((key, entry));
        }
        Ok(Self { entries: read })
    }

    /// The entries, ascending, with their keys.
    pub fn entries(&self) -> &[(Key, Entry)] {
        &self.entries
    }

    /// The entries, given away.
    pub fn into_entries(self) -> Vec<(Key, Entry)> {
        self.entries
    }

    /// The least key.
    pub fn first(&self) -> Key {
        self.entries[0].0
    }

    /// The greatest key.
    pub fn last(&self) -> Key {
        self.entries[self.entries.len() - 1].0
    }

    /// Whether it may stand between other leaves: all its keys lie above `after` (the last key of a leaf before it, where
    /// one is known) and below `before` (the first key of a leaf behind it).
    pub fn check_between(&self, after: Option<&Key>, before: Option<&Key>) -> Result<(), Malformed> {
        let fits = after.is_none_or(|after| self.first() > *after) && before.is_none_or(|before| self.last() < *before);
        if fits { Ok(()) } else { Err(Malformed("a leaf does not lie between its neighbours")) }
    }
}
