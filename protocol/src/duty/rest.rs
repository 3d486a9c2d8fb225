//! Publications at rest: read over this node's part of the keyspace, with nothing to do for them.
//!
//! Nearly all are at rest nearly all the time, and most were read over the same, so that each is a number under its id
//! (some 23 bytes), and what was read is kept once for all of them. What they list is not kept: it is said again when it
//! is to be read again.

use std::{collections::BTreeMap, sync::Arc};

use super::{Spans, roll};

/// What a publication at rest was read over.
#[derive(Clone, Debug)]
pub(super) struct Cover {
    /// Copies that it wants.
    pub(super) copies: u8,
    /// What it was read over, as far as that is kept.
    pub(super) covered: Arc<Spans>,
    /// Where there may be references to it.
    pub(super) touched: Arc<Spans>,
    /// Whether that is all that it should cover.
    pub(super) complete: bool,
    /// Whether it was read at all is still to be said: see [`Rest::doubt`].
    pub(super) doubtful: bool,
}

#[derive(Debug)]
struct Shared {
    cover: Cover,
    members: usize,
    /// When the last of them was seen first.
    last_seen: u32,
}

/// Eight bytes: it is kept a million times.
#[derive(Clone, Copy, Debug)]
struct Place {
    shared: u16,
    /// In which round it was told last.
    round: u16,
    /// When it was seen first, in seconds of whoever counts them.
    seen: u32,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Rest {
    places: BTreeMap<u64, Place>,
    /// By the numbers that places have; one without members may become another. As many as there were parts while
    /// something that is still live was read: a handful.
    shared: Vec<Shared>,
}

impl Rest {
    /// It was read over all that it should cover, and is left alone; or it waits until it is asked for again. `false`: what
    /// it was read over is one more than can be told apart, and it is not at rest.
    pub(super) fn put(&mut self, publication: u64, cover: Cover, seen: u32, round: u16) -> bool {
        self.take(publication);
        let same = |shared: &Shared| {
            let other = &shared.cover;
            let equal = |a: &Arc<Spans>, b: &Arc<Spans>| Arc::ptr_eq(a, b) || a == b;
            other.copies == cover.copies
                && (other.complete, other.doubtful) == (cover.complete, cover.doubtful)
                && equal(&other.covered, &cover.covered)
                && equal(&other.touched, &cover.touched)
        };
        let known = self.shared.iter().position(|shared| shared.members > 0 && same(shared));
        let free = || self.shared.iter().position(|shared| shared.members == 0);
        let at = known.or_else(free).unwrap_or(self.shared.len());
        let Ok(number) = u16::try_from(at) else { return false };
        if known.is_none() {
            let new = Shared { cover, members: 0, last_seen: 0 };
            match self.shared.get_mut(at) {
                Some(free) => *free = new,
                None => self.shared.push(new),
            }
        }
        let shared = &mut self.shared[at];
        shared.members += 1;
        shared.last_seen = shared.last_seen.max(seen);
        self.places.insert(publication, Place { shared: number, round, seen });
        true
    }

    /// It was told in a round.
    pub(super) fn told(&mut self, publication: u64, round: u16) {
        if let Some(place) = self.places.get_mut(&publication) {
            place.round = round;
        }
    }

    /// Those that were not told in a round.
    pub(super) fn not_told(&self, round: u16) -> Vec<u64> {
        self.places.iter().filter(|(_, place)| place.round != round).map(|(publication, _)| *publication).collect()
    }

    /// All that are at rest.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.places.keys().copied()
    }

    /// It is at rest no more: what it was read over, and when it was seen first.
    pub(super) fn take(&mut self, publication: u64) -> Option<(Cover, u32)> {
        let Place { shared, seen, .. } = self.places.remove(&publication)?;
        let shared = &mut self.shared[shared as usize];
        shared.members -= 1;
        Some((shared.cover.clone(), seen))
    }

    /// What one was read over; `None`: it is not at rest.
    pub(super) fn get(&self, publication: u64) -> Option<&Cover> {
        self.places.get(&publication).map(|place| &self.shared[place.shared as usize].cover)
    }

    /// The parts of the keyspace moved: what all of those that want `copies` copies cover, and should cover. True where
    /// one of them does not cover all of it.
    pub(super) fn moved(&mut self, copies: u8, part: &Arc<Spans>) -> bool {
        let mut lacking = false;
        for shared in self.shared.iter_mut().filter(|shared| shared.members > 0 && shared.cover.copies == copies) {
            let covered = shared.cover.covered.and(part);
            shared.cover.complete = part.without(&covered).is_empty();
            shared.cover.covered = if covered == **part { part.clone() } else { Arc::new(covered) };
            lacking |= !shared.cover.complete;
        }
        lacking
    }

    /// Those of which it was doubtful whether they were read, and that are of these parts of the ids, were not; the others
    /// were. True: there are some that were not.
    pub(super) fn doubt(&mut self, parts: u64) -> bool {
        let doubtful = |place: &Place| self.shared[place.shared as usize].cover.doubtful;
        let doubted = self.places.iter().filter(|(id, place)| roll::is_of(**id, parts) && doubtful(place));
        let doubted: Vec<(u64, u16)> = doubted.map(|(id, place)| (*id, place.round)).collect();
        for (id, round) in &doubted {
            if let Some((cover, seen)) = self.take(*id) {
                // Where it was read, if it was, there may be references to it. If they cannot be told apart it is told anew.
                let cover = Cover { covered: Arc::default(), complete: false, doubtful: false, ..cover };
                self.put(*id, cover, seen, *round);
            }
        }
        self.shared.iter_mut().for_each(|shared| shared.cover.doubtful = false);
        !doubted.is_empty()
    }

    /// When the last of those that do not cover what they should was seen first; `None`: all do.
    pub(super) fn last_lacking(&self) -> Option<u32> {
        let lacking = self.shared.iter().filter(|shared| shared.members > 0 && !shared.cover.complete);
        lacking.map(|shared| shared.last_seen).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{duty::Span, key::Key};

    fn spans(start: u8, bits: u32) -> Arc<Spans> {
        Arc::new([Span::of_prefix(Key([start; 32]), bits)].into_iter().collect())
    }

    fn cover(copies: u8, covered: &Arc<Spans>) -> Cover {
        // Of another place in memory each time.
        let covered = Arc::new(covered.as_ref().clone());
        Cover { copies, covered: covered.clone(), touched: covered, complete: true, doubtful: false }
    }

    #[test]
    fn what_was_read_over_the_same_is_kept_once_and_comes_back_as_it_went() {
        let mut rest = Rest::default();
        let (small, large) = (spans(0, 4), spans(0, 2));
        for number in 0..100 {
            rest.put(number, cover(3, &large), number as u32, 0);
        }
        rest.put(100, cover(2, &large), 7, 0);
        rest.put(101, cover(3, &small), 7, 0);
        assert_eq!(rest.shared.len(), 3);
        let (found, seen) = rest.take(50).expect("it is there");
        assert_eq!((found.copies, &found.covered, &found.touched, seen), (3, &large, &large, 50));
        assert!(rest.take(50).is_none() && rest.get(50).is_none());
        // The place of what nobody has any more is taken by another.
        assert!(rest.take(101).is_some());
        rest.put(102, cover(4, &small), 1, 0);
        assert_eq!(rest.shared.len(), 3);
        assert_eq!(rest.get(102).expect("it is there").copies, 4);
        // To put it again is to change it.
        rest.put(102, cover(3, &large), 2, 0);
        assert_eq!(rest.take(102).expect("it is there").0.copies, 3);
        assert_eq!(rest.shared.iter().map(|shared| shared.members).sum::<usize>(), 100);
    }

    #[test]
    fn what_was_doubtful_and_is_of_these_parts_was_read_over_nothing() {
        let (mut rest, all) = (Rest::default(), spans(0, 2));
        let id = |number: u64| number << 58;
        for number in 0..64 {
            rest.put(id(number), Cover { doubtful: number != 9, ..cover(3, &all) }, number as u32, 5);
        }
        assert!(rest.doubt(1 << 3 | 1 << 9 | 1 << 60));
        for number in 0..64 {
            let found = rest.get(id(number)).expect("it is there");
            let read = !matches!(number, 3 | 60);
            assert_eq!((found.complete, found.covered.is_empty(), found.doubtful), (read, !read, false), "{number}");
            assert_eq!(found.touched, all, "it may have been");
        }
        assert_eq!(rest.last_lacking(), Some(60));
        assert!(rest.not_told(5).is_empty(), "it was told");
        assert!(!rest.doubt(u64::MAX), "it is said once");
    }

    #[test]
    fn what_does_not_cover_a_part_that_moved_is_lacking_and_what_it_covers_beyond_is_forgotten() {
        let mut rest = Rest::default();
        let (small, large) = (spans(0, 4), spans(0, 2));
        (0..10).for_each(|number| assert!(rest.put(number, cover(3, &small), number as u32, 0)));
        rest.put(10, cover(2, &small), 99, 0);
        assert_eq!(rest.last_lacking(), None);
        assert!(rest.moved(3, &large));
        assert_eq!(rest.last_lacking(), Some(9), "of those that want three copies");
        assert!(!rest.get(3).expect("it is there").complete && rest.get(10).expect("it is there").complete);
        for number in 0..10 {
            assert_eq!(rest.take(number).expect("it is there").0.covered, small);
        }
        assert_eq!(rest.last_lacking(), None);
        rest.put(1, cover(3, &large), 1, 0);
        assert!(!rest.moved(3, &small));
        let (found, _) = rest.take(1).expect("it is there");
        assert_eq!((found.covered, found.touched), (small, large), "references may still be where it was read");
    }
}
