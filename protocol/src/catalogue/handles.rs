//! Many small numbers in an order that whoever has them knows: by what they stand for.

/// The most of a block: 2 KiB, which an insertion moves a half of.
const BLOCK: usize = 512;
/// Neighbours that together have fewer are joined.
const SPARSE: usize = BLOCK / 2;
/// By how many places a block grows.
const GROWTH: usize = 64;

/// Handles in blocks of at most 512, about 5 bytes each. What a handle stands for does not change while it is here.
#[derive(Clone, Debug, Default)]
pub(super) struct Handles {
    /// None is empty.
    blocks: Vec<Vec<u32>>,
}

/// Where a handle is, or would be: block, and place in it. Good until the next change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct At(usize, usize);

impl Handles {
    /// Behind all of which `is_before` is true: true of some from the first on, and of none behind them.
    pub(super) fn behind(&self, is_before: impl Fn(u32) -> bool) -> At {
        let block = self.blocks.partition_point(|block| block.last().is_some_and(|last| is_before(*last)));
        let place = self.blocks.get(block).map_or(0, |block| block.partition_point(|handle| is_before(*handle)));
        At(block, place)
    }

    /// The handle there.
    pub(super) fn get(&self, at: At) -> Option<u32> {
        self.blocks.get(at.0)?.get(at.1).copied()
    }

    /// The handle just before.
    pub(super) fn before(&self, at: At) -> Option<u32> {
        let At(block, place) = at;
        match place.checked_sub(1) {
            Some(place) => self.get(At(block, place)),
            None => self.blocks.get(block.checked_sub(1)?)?.last().copied(),
        }
    }

    /// Those from there on.
    pub(super) fn from(&self, at: At) -> impl Iterator<Item = u32> + '_ {
        let blocks = self.blocks.get(at.0..).unwrap_or_default();
        blocks.iter().flatten().skip(at.1).copied()
    }

    pub(super) fn insert(&mut self, at: At, handle: u32) {
        let At(mut block, mut place) = at;
        if block == self.blocks.len() {
            // Behind all: into the last block.
            match block.checked_sub(1) {
                Some(last) => (block, place) = (last, self.blocks[last].len()),
                None => self.blocks.push(Vec::with_capacity(GROWTH)),
            }
        }
        if self.blocks[block].len() >= BLOCK {
            let upper = self.blocks[block].split_off(BLOCK / 2);
            self.blocks[block].shrink_to_fit();
            self.blocks.insert(block + 1, upper);
            if place > BLOCK / 2 {
                (block, place) = (block + 1, place - BLOCK / 2);
            }
        }
        let handles = &mut self.blocks[block];
        if handles.len() == handles.capacity() {
            handles.reserve_exact(GROWTH);
        }
        handles.insert(place, handle);
    }

    /// Takes out the one that is there.
    pub(super) fn remove(&mut self, at: At) {
        let At(block, place) = at;
        self.blocks[block].remove(place);
        if self.blocks[block].is_empty() {
            self.blocks.remove(block);
        } else if block + 1 < self.blocks.len() && self.blocks[block].len() + self.blocks[block + 1].len() < SPARSE {
            let upper = self.blocks.remove(block + 1);
            self.blocks[block].extend(upper);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn they_are_what_a_sorted_list_is(changes in vec((any::<bool>(), 0u32..3000), 0..6000)) {
            let (mut handles, mut list) = (Handles::default(), Vec::new());
            for (insert, handle) in changes {
                let at = handles.behind(|other| other < handle);
                match list.binary_search(&handle) {
                    Ok(place) => {
                        prop_assert_eq!(handles.get(at), Some(handle));
                        if !insert {
                            handles.remove(at);
                            list.remove(place);
                        }
                    }
                    Err(place) => {
                        prop_assert_ne!(handles.get(at), Some(handle));
                        if insert {
                            handles.insert(at, handle);
                            list.insert(place, handle);
                        }
                    }
                }
            }
            prop_assert!(handles.blocks.iter().all(|block| (1..=BLOCK).contains(&block.len())));
            for from in [0, 1500, 2999] {
                let at = handles.behind(|other| other < from);
                let place = list.partition_point(|other| *other < from);
                prop_assert_eq!(handles.from(at).collect::<Vec<_>>(), &list[place..]);
                prop_assert_eq!(handles.before(at), place.checked_sub(1).map(|place| list[place]));
            }
        }
    }
}
