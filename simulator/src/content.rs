//! What is added: chunks, and the roots and manifests that list them.

use p2p_protocol::{
    Cid, Codec, Key,
    manifest::{ENTRY_BYTES, Entry, LEAF_ENTRIES, Listing, MAX_INLINE_ENTRIES},
};

use crate::world::World;

/// What a root consists of.
#[derive(Debug)]
pub struct Root {
    /// The chunks of its DAG, in the order of their keys.
    pub entries: Vec<(Key, Entry)>,
    /// The chunks of its manifest, in the order of the leaves; none for a small root.
    pub manifest: Vec<(Key, Entry)>,
    /// What its publication says.
    pub listing: Listing,
    /// What it stands for, where it is a sample.
    pub sample: Option<Sample>,
}

/// What a sampled root stands for.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Files of this size.
    pub files: u64,
    /// Distinct chunks of each.
    pub chunks: u64,
}

impl World {
    /// A root of new chunks of so many bytes each; gives its number.
    pub fn make_root(&mut self, chunks: usize, length: u32) -> usize {
        let mut entries: Vec<_> = (0..chunks.max(1)).map(|_| self.make_chunk(length)).collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        let leaves = entries.len().div_ceil(LEAF_ENTRIES);
        let manifest: Vec<_> = match entries.len() {
            0..=MAX_INLINE_ENTRIES => Vec::new(),
            // The leaves, and the node above them.
            _ => (0..leaves + usize::from(leaves > 1))
                .map(|_| self.make_chunk((LEAF_ENTRIES * ENTRY_BYTES) as u32))
                .collect(),
        };
        let listing = match manifest.last() {
            None => Listing::Inline(entries.iter().map(|(_, entry)| *entry).collect()),
            Some((_, top)) => Listing::Manifest(top.cid),
        };
        self.roots.push(Root { entries, manifest, listing, sample: None });
        self.roots.len() - 1
    }

    /// A root that stands for many: `samples` chunks of so many bytes each stand for those of `sample`.
    pub(crate) fn make_sample(&mut self, samples: usize, length: u32, sample: Sample) -> usize {
        let mut entries: Vec<_> = (0..samples.max(1)).map(|_| self.make_chunk(length)).collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        // What is read of its manifest is counted; nothing here needs its bytes.
        let listing = Listing::Manifest(entries[0].1.cid);
        self.roots.push(Root { entries, manifest: Vec::new(), listing, sample: Some(sample) });
        self.roots.len() - 1
    }

    fn make_chunk(&mut self, length: u32) -> (Key, Entry) {
        let cid = Cid::of(Codec::Raw, &self.chance.bytes());
        let entry = Entry { cid, length };
        (entry.key(), entry)
    }
}
