//! The tree of a manifest: the number of its entries gives every node's place, links, length and sizes.

use std::{collections::HashSet, ops::Range};

use super::{ENTRY_BYTES, Entry, Malformed, Manifest};
use crate::{
    Chunk, Cid, Codec, HashCode, Multihash,
    dag::{self, Link, Metadata, node_bytes},
};

/// Entries of a leaf; only the last leaf has fewer. A reader of a part of a manifest reads whole leaves, and above each
/// leaf a link of about 50 bytes: of a million entries, a thousandth costs 95 KB with leaves of 128 (101 of 256, 134 of
/// 1,024) and a hundredth 456 KB (460, 491); of 100,000, a thousandth 47 KB (33, 49).
pub const LEAF_ENTRIES: usize = 128;
/// Bytes of a full leaf.
pub const LEAF_BYTES: usize = LEAF_ENTRIES * ENTRY_BYTES;
/// The most entries of a manifest: 4 PiB in chunks of 1 MiB. It bounds what can be made of a claim, and keeps every
/// size far below 2^64.
pub const MAX_ENTRIES: u64 = 1 << 32;

/// Links of a full inner node, as the standard profile has it.
const NODE_LINKS: u64 = 1024;

/// Where a node stands in the tree.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Place {
    /// 0 for leaves; the root's is the height of the tree: at most 3.
    pub level: u8,
    /// Which one of its level, from 0.
    pub index: u64,
}

/// A chunk of a manifest, as its parent refers to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Child {
    /// Where it stands.
    pub place: Place,
    /// Its address, and its length as it must be.
    pub entry: Entry,
}

/// The tree of a manifest with a given number of entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    entries: u64,
    /// From the leaves up; the last has the root alone.
    levels: Vec<Level>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Level {
    nodes: u64,
    /// Each but the last.
    full: Below,
    last: Below,
}

/// A node and what is below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Below {
    /// Bytes of the node alone.
    length: u32,
    /// Content bytes: 40 for each entry.
    size: u64,
    /// Bytes of all its chunks.
    tsize: u64,
}

impl Below {
    fn leaf(entries: u64) -> Self {
        let size = entries * ENTRY_BYTES as u64;
        Self { length: size as u32, size, tsize: size }
    }

    fn node(links: &[Self]) -> Self {
        // Every address has the same length, so that any will do to measure.
        let cid = Cid { codec: Codec::Raw, hash: Multihash { code: HashCode::Blake3, digest: [0; 32] } };
        let links: Vec<Link> = links.iter().map(|below| below.link(cid)).collect();
        let length = node_bytes(&links, Metadata::default()).len();
        let sum = |of: fn(&Link) -> u64| links.iter().map(of).sum::<u64>();
        Self { length: length as u32, size: sum(|link| link.size), tsize: sum(|link| link.tsize) + length as u64 }
    }

    fn link(self, cid: Cid) -> Link {
        Link { cid, size: self.size, tsize: self.tsize }
    }
}

impl Shape {
    /// The tree for `entries` entries, 1 to [`MAX_ENTRIES`].
    pub fn new(entries: u64) -> Result<Self, Malformed> {
        if !(1..=MAX_ENTRIES).contains(&entries) {
            return Err(Malformed("it has no entries, or more than any manifest"));
        }
        let each = LEAF_ENTRIES as u64;
        let leaves = entries.div_ceil(each);
        let last = Below::leaf(entries - (leaves - 1) * each);
        let mut level = Level { nodes: leaves, full: Below::leaf(each), last };
        let mut levels = vec![level];
        while level.nodes > 1 {
            let nodes = level.nodes.div_ceil(NODE_LINKS);
            let mut links = vec![level.full; (level.nodes - (nodes - 1) * NODE_LINKS) as usize];
            if let Some(last) = links.last_mut() {
                *last = level.last;
            }
            let last = Below::node(&links);
            // With one node on the level there is no full one beside it, and nothing asks for it.
            let full = if nodes > 1 { Below::node(&vec![level.full; NODE_LINKS as usize]) } else { last };
            level = Level { nodes, full, last };
            levels.push(level);
        }
        Ok(Self { entries, levels })
    }

    /// How many entries there are.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How many leaves there are.
    pub fn leaves(&self) -> u64 {
        self.levels[0].nodes
    }

    /// Where the root stands.
    pub fn root(&self) -> Place {
        Place { level: (self.levels.len() - 1) as u8, index: 0 }
    }

    /// The root as a child of nobody: `manifest`'s address, if a manifest of this shape can have it.
    pub fn root_of(&self, manifest: &Manifest) -> Result<Child, Malformed> {
        let place = self.root();
        let fits = manifest.entries == self.entries && fits(&manifest.root, place.level);
        if fits {
            Ok(self.child(place, manifest.root))
        } else {
            Err(Malformed("the root's address is of another kind"))
        }
    }

    /// The leaves under the node at `place`, by number. Places outside of the tree have none.
    pub fn leaves_under(&self, place: Place) -> Range<u64> {
        let width = NODE_LINKS.saturating_pow(u32::from(place.level));
        let first = place.index.saturating_mul(width).min(self.leaves());
        first..first.saturating_add(width).min(self.leaves())
    }

    /// What the node at `place` has for children, if `chunk` is it.
    ///
    /// The bytes of a node follow from its place and its children's addresses, and must be exactly those: so there is one
    /// root for one set of entries, no node is longer than it must be, and no child stands in it twice.
    ///
    /// # Errors
    ///
    /// The chunk is anything else, or `place` is a leaf's or outside of the tree. Reads in proportion to the expected node.
    pub fn children(&self, place: Place, chunk: &Chunk) -> Result<Vec<Child>, Malformed> {
        let inner = place.level > 0 && usize::from(place.level) < self.levels.len();
        if !inner || place.index >= self.levels[usize::from(place.level)].nodes {
            return Err(Malformed("no inner node stands there"));
        }
        // Before anything is read: a longer one costs nothing, and one of fewer links is shorter.
        if chunk.len() != self.below(place).length as usize {
            return Err(Malformed("an inner node has another length"));
        }
        let links = dag::links(chunk).map_err(|_| Malformed("an inner node is not one"))?;
        let below = place.level - 1;
        let first = place.index * NODE_LINKS;
        let count = (self.levels[usize::from(below)].nodes - first).min(NODE_LINKS);
        if links.iter().any(|link| !fits(&link.cid, below)) {
            return Err(Malformed("an inner node has links of another kind"));
        }
        let places = (first..first + count).map(|index| Place { level: below, index });
        let children: Vec<Child> = places.zip(&links).map(|(place, link)| self.child(place, link.cid)).collect();
        let expected: Vec<Link> = children.iter().map(|child| self.below(child.place).link(child.entry.cid)).collect();
        if node_bytes(&expected, Metadata::default()) != chunk.bytes()[..] {
            return Err(Malformed("an inner node is written otherwise"));
        }
        let distinct: HashSet<Cid> = links.iter().map(|link| link.cid).collect();
        if distinct.len() < links.len() {
            return Err(Malformed("a part stands in an inner node twice"));
        }
        Ok(children)
    }

    fn child(&self, place: Place, cid: Cid) -> Child {
        Child { place, entry: Entry { cid, length: self.below(place).length } }
    }

    /// `place` is in the tree.
    fn below(&self, place: Place) -> &Below {
        let level = &self.levels[usize::from(place.level)];
        if place.index + 1 < level.nodes { &level.full } else { &level.last }
    }
}

/// Whether a manifest's node on this level can have the address: leaves are raw, and all were made with BLAKE3.
fn fits(cid: &Cid, level: u8) -> bool {
    let codec = if level == 0 { Codec::Raw } else { Codec::DagPb };
    cid.codec == codec && cid.hash.code == HashCode::Blake3
}
