//! Writing a manifest: entries in, in the order of their keys, its chunks out as they are complete.

use super::{ENTRY_BYTES, Entry, LEAF_BYTES, LEAF_ENTRIES, Listing, MAX_ENTRIES, MAX_INLINE_ENTRIES, Manifest};
use crate::{
    Chunk, Codec, Key, MAX_CHUNK_BYTES,
    dag::{FileBuilder, Link, Metadata},
};

/// Why an entry cannot stand next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteError {
    /// Its key is not above that of the entry before.
    #[error("the chunks of a manifest do not come in the order of their keys, each once")]
    Disorder,
    /// No chunk is so long.
    #[error("a chunk of {0} bytes cannot be listed: none has over {MAX_CHUNK_BYTES}")]
    TooLong(u32),
    /// There are too many.
    #[error("a manifest lists at most {MAX_ENTRIES} chunks")]
    TooMany,
}

/// A manifest that is being written. Holds one leaf's entries and one node's links for each level: under 200 KiB.
#[derive(Debug)]
pub struct Writer {
    /// The leaf that is being filled, never full between calls.
    leaf: Vec<Entry>,
    last: Option<Key>,
    entries: u64,
    builder: FileBuilder,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// One without entries.
    pub fn new() -> Self {
        let builder = FileBuilder::new(Metadata::default());
        Self { leaf: Vec::with_capacity(LEAF_ENTRIES), last: None, entries: 0, builder }
    }

    /// Takes the next entry, whose key is above all before, and appends to `out` the manifest's chunks that are complete
    /// by that: none for most, a leaf and a node for each level at most. After an error nothing has changed.
    pub fn push(&mut self, entry: Entry, out: &mut Vec<Chunk>) -> Result<(), WriteError> {
        let key = entry.key();
        if self.last.is_some_and(|last| key <= last) {
            return Err(WriteError::Disorder);
        }
        if entry.length as usize > MAX_CHUNK_BYTES {
            return Err(WriteError::TooLong(entry.length));
        }
        if self.entries == MAX_ENTRIES {
            return Err(WriteError::TooMany);
        }
        self.last = Some(key);
        self.entries += 1;
        self.leaf.push(entry);
        if self.leaf.len() == LEAF_ENTRIES {
            self.end_leaf(out);
        }
        Ok(())
    }

    /// How many entries were taken.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Ends the manifest: appends its remaining chunks to `out`. One of a single leaf is that raw leaf; `None` where there
    /// was no entry, which has none.
    pub fn finish(mut self, out: &mut Vec<Chunk>) -> Option<Manifest> {
        if self.entries == 0 {
            return None;
        }
        if !self.leaf.is_empty() {
            self.end_leaf(out);
        }
        Some(Manifest { root: self.builder.finish(out).cid, entries: self.entries })
    }

    /// Ends it as a publication names it: up to [`MAX_INLINE_ENTRIES`] entries stand in the listing, and there is no
    /// manifest.
    pub fn finish_listing(self, out: &mut Vec<Chunk>) -> Listing {
        if self.entries <= MAX_INLINE_ENTRIES as u64 {
            // Fewer than a leaf: all of them are still here.
            return Listing::Inline(self.leaf);
        }
        match self.finish(out) {
            Some(manifest) => Listing::Manifest(manifest.root),
            None => Listing::Inline(Vec::new()),
        }
    }

    fn end_leaf(&mut self, out: &mut Vec<Chunk>) {
        let mut bytes = Vec::with_capacity(self.leaf.len() * ENTRY_BYTES);
        self.leaf.drain(..).for_each(|entry| bytes.extend_from_slice(&entry.to_bytes()));
        debug_assert!(bytes.len() <= LEAF_BYTES);
        let leaf = Chunk::new(Codec::Raw, bytes).expect("a leaf of 5,120 bytes is shorter than a chunk may be");
        let link = Link::leaf(&leaf);
        out.push(leaf);
        self.builder.leaf(link, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cid;

    #[test]
    fn a_manifest_ends_where_every_reader_would_refuse_it() {
        let mut writer = Writer { entries: MAX_ENTRIES - 1, ..Writer::new() };
        let mut entries = [b"a", b"b"].map(|bytes| Entry { cid: Cid::of(Codec::Raw, bytes), length: 1 });
        entries.sort_by_key(Entry::key);
        assert_eq!(writer.push(entries[0], &mut Vec::new()), Ok(()));
        assert_eq!(writer.push(entries[1], &mut Vec::new()), Err(WriteError::TooMany));
        assert_eq!(writer.entries(), MAX_ENTRIES);
    }
}
