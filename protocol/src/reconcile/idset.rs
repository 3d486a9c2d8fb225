//! A sorted set of ids with a sum kept for each block of them.

use super::{Bound, Fingerprint, Id, IdRanges, Span, Sum};

/// The most ids of a block: 16 KiB, so that moving half of it for an insertion stays within the first-level cache.
const BLOCK: usize = 512;
/// Neighbours that together have fewer are joined, so that removals leave no trail of tiny blocks.
const SPARSE: usize = BLOCK / 2;

/// Sorted ids in blocks of at most 512, with the sum of each block.
///
/// With n ids: `insert`, `remove` and `contains` O(log n + 512 + n/512), a range's count or fingerprint
/// O(n/512 + 512) additions (about 2 µs at n = 65,536, 30 µs at ten million), memory about 40 bytes an id.
#[derive(Clone, Debug, Default)]
pub struct IdSet {
    blocks: Vec<Block>,
    len: usize,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// Ascending; never empty.
    ids: Vec<Id>,
    sum: Sum,
}

/// Block and place in it; (number of blocks, 0) is behind the last.
type Position = (usize, usize);

impl IdSet {
    /// Adds an id; false if it was there.
    pub fn insert(&mut self, id: Id) -> bool {
        if self.blocks.is_empty() {
            self.blocks.push(Block::default());
        }
        // The last block takes what is behind all.
        let at = self.block_of(&id).min(self.blocks.len() - 1);
        let block = &mut self.blocks[at];
        let Err(place) = block.ids.binary_search(&id) else { return false };
        block.ids.insert(place, id);
        block.sum.add(&id);
        self.len += 1;
        if block.ids.len() > BLOCK {
            let upper = Block::of(block.ids.split_off(BLOCK / 2));
            *block = Block::of(std::mem::take(&mut block.ids));
            self.blocks.insert(at + 1, upper);
        }
        true
    }

    /// Takes an id out; false if it was not there.
    pub fn remove(&mut self, id: &Id) -> bool {
        let at = self.block_of(id);
        let Some(block) = self.blocks.get_mut(at) else { return false };
        let Ok(place) = block.ids.binary_search(id) else { return false };
        block.ids.remove(place);
        block.sum.subtract(id);
        self.len -= 1;
        if block.ids.is_empty() {
            self.blocks.remove(at);
        } else if at + 1 < self.blocks.len() && self.blocks[at].ids.len() + self.blocks[at + 1].ids.len() < SPARSE {
            let upper = self.blocks.remove(at + 1);
            self.blocks[at].ids.extend(upper.ids);
            self.blocks[at].sum.join(&upper.sum);
        }
        true
    }

    /// Whether an id is here.
    pub fn contains(&self, id: &Id) -> bool {
        self.blocks.get(self.block_of(id)).is_some_and(|block| block.ids.binary_search(id).is_ok())
    }

    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Id> {
        self.blocks.iter().flat_map(|block| &block.ids)
    }

    /// The first block whose last id is not below `id`.
    fn block_of(&self, id: &Id) -> usize {
        self.blocks.partition_point(|block| block.ids.last().is_some_and(|last| last < id))
    }

    fn position(&self, bound: &Bound) -> Position {
        let Bound::At(id) = bound else { return (self.blocks.len(), 0) };
        let at = self.block_of(id);
        (at, self.blocks.get(at).map_or(0, |block| block.ids.partition_point(|other| other < id)))
    }

    /// The parts of blocks between two positions, each with its block where all of it is meant.
    fn slices(&self, span: &Span) -> impl Iterator<Item = (&[Id], Option<&Sum>)> {
        let (first, from) = self.position(&span.start);
        let (last, to) = self.position(&span.end);
        let upto = if to > 0 { last + 1 } else { last };
        self.blocks.get(first..upto.max(first)).unwrap_or_default().iter().enumerate().map(move |(index, block)| {
            let start = if index == 0 { from } else { 0 };
            let end = if first + index == last { to } else { block.ids.len() };
            let whole = start == 0 && end == block.ids.len();
            (block.ids.get(start..end).unwrap_or_default(), whole.then_some(&block.sum))
        })
    }
}

impl IdRanges for IdSet {
    fn count(&self, span: &Span) -> usize {
        self.slices(span).map(|(ids, _)| ids.len()).sum()
    }

    fn fingerprint(&self, span: &Span) -> Fingerprint {
        let mut sum = Sum::default();
        for (ids, whole) in self.slices(span) {
            match whole {
                Some(block) => sum.join(block),
                None => ids.iter().for_each(|id| sum.add(id)),
            }
        }
        sum.fingerprint()
    }

    fn ids(&self, span: &Span, limit: usize) -> Vec<Id> {
        self.slices(span).flat_map(|(ids, _)| ids).take(limit).copied().collect()
    }

    fn nth(&self, span: &Span, mut skip: usize) -> Option<Id> {
        for (ids, _) in self.slices(span) {
            match ids.get(skip) {
                Some(id) => return Some(*id),
                None => skip -= ids.len(),
            }
        }
        None
    }
}

impl PartialEq for IdSet {
    /// Equal ids; how they lie in blocks does not count.
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl Eq for IdSet {}

impl FromIterator<Id> for IdSet {
    fn from_iter<T: IntoIterator<Item = Id>>(ids: T) -> Self {
        let mut ids: Vec<Id> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        // Three quarters full, so that the first insertions split nothing.
        let blocks = ids.chunks(BLOCK / 4 * 3).map(|part| Block::of(part.to_vec())).collect();
        Self { blocks, len: ids.len() }
    }
}

impl Block {
    fn of(ids: Vec<Id>) -> Self {
        let mut sum = Sum::default();
        ids.iter().for_each(|id| sum.add(id));
        Self { ids, sum }
    }
}
