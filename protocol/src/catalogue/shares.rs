//! How much of the catalogue each publisher may have, and who gives way where there is no room.

use std::collections::{BTreeMap, BTreeSet};

/// The most entries, each version and each removal counting as one, unless it is said otherwise: some 30 MiB on a disk that
/// any stranger may fill, and 7 MiB of memory.
pub const MAX_ENTRIES: usize = 65_536;

/// How much a [`Catalogue`](super::Catalogue) holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The most entries in all, at least 1.
    pub entries: usize,
    /// The most entries of one publisher, at least 1.
    pub entries_per_publisher: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(MAX_ENTRIES)
    }
}

impl Limits {
    /// So many in all, and half of them of one publisher, so that one alone never fills the catalogue.
    pub const fn of(entries: usize) -> Self {
        Self { entries, entries_per_publisher: entries / 2 }
    }
}

/// What a publisher is to this node. Keys cost nothing: who gives way cannot depend on their number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Class {
    /// Anybody: gives way first.
    #[default]
    Stranger,
    /// A storing peer that this node knows: gives way to its like alone, once no stranger has an entry.
    Known,
    /// This node itself: never gives way.
    Own,
}

/// A publisher: its public key.
pub(super) type Publisher = [u8; 32];

/// All publishers, how much each has, and what they may have.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    limits: Limits,
    /// None has nothing.
    publishers: BTreeMap<Publisher, Shelf>,
    /// Numbers that nobody has.
    free: Vec<u32>,
    /// Those of a higher class than strangers. As many as the caller names.
    classes: BTreeMap<Publisher, Class>,
    len: usize,
    /// Something gave way since the start.
    overflowed: bool,
    strangers: Tier,
    known: Tier,
}

/// What one publisher has.
#[derive(Clone, Copy, Debug)]
struct Shelf {
    /// Its entries' number for it.
    number: u32,
    len: usize,
}

/// The publishers of a class that gives way.
#[derive(Clone, Debug, Default)]
struct Tier {
    /// What each of them may have once the catalogue overflowed; never grows. `None`: the limit.
    share: Option<usize>,
    /// Those from this key on have given way; never grows. `None`: none has.
    ceiling: Option<Publisher>,
    /// Its publishers by how much they have; none has nothing.
    by_len: BTreeSet<(usize, Publisher)>,
}

impl Shares {
    pub(super) fn new(limits: Limits) -> Self {
        let limits =
            Limits { entries: limits.entries.max(1), entries_per_publisher: limits.entries_per_publisher.max(1) };
        Self { limits, ..Self::default() }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// How many entries stand.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether something gave way for want of room since the start.
    pub(super) fn have_overflowed(&self) -> bool {
        self.overflowed
    }

    pub(super) fn class(&self, publisher: &Publisher) -> Class {
        self.classes.get(publisher).copied().unwrap_or_default()
    }

    pub(super) fn set_class(&mut self, publisher: Publisher, class: Class) {
        let len = self.publishers.get(&publisher).map_or(0, |shelf| shelf.len);
        self.shift(publisher, len, 0);
        match class {
            Class::Stranger => self.classes.remove(&publisher),
            class => self.classes.insert(publisher, class),
        };
        self.shift(publisher, 0, len);
    }

    /// The number of a publisher that has something.
    pub(super) fn number(&self, publisher: &Publisher) -> Option<u32> {
        self.publishers.get(publisher).map(|shelf| shelf.number)
    }

    /// The publisher of a number, by a look at all.
    pub(super) fn publisher(&self, number: u32) -> Option<Publisher> {
        self.publishers.iter().find(|(_, shelf)| shelf.number == number).map(|(publisher, _)| *publisher)
    }

    /// Whether the publisher is one of those that have given way as a whole.
    pub(super) fn is_out(&self, publisher: &Publisher) -> bool {
        let tier = match self.class(publisher) {
            Class::Stranger => &self.strangers,
            Class::Known => &self.known,
            Class::Own => return false,
        };
        tier.ceiling.is_some_and(|ceiling| *publisher >= ceiling)
    }

    /// Whether `growth` more find room without pushing out another entry of their publisher.
    pub(super) fn has_room(&self, publisher: &Publisher, growth: isize) -> bool {
        let len = self.publishers.get(publisher).map_or(0, |shelf| shelf.len);
        len.saturating_add_signed(growth) <= self.share(publisher) && !self.is_out(publisher)
    }

    /// Counts one more of a publisher; gives its number.
    pub(super) fn add(&mut self, publisher: Publisher) -> u32 {
        let fresh = Shelf { number: self.free.last().copied().unwrap_or(self.publishers.len() as u32), len: 0 };
        let shelf = self.publishers.entry(publisher).or_insert(fresh);
        if shelf.len == 0 && self.free.last() == Some(&shelf.number) {
            self.free.pop();
        }
        shelf.len += 1;
        let Shelf { number, len } = *shelf;
        self.len += 1;
        self.shift(publisher, len - 1, len);
        number
    }

    /// Counts out `gone` entries of a publisher, which has so many.
    pub(super) fn subtract(&mut self, publisher: Publisher, gone: usize) {
        let Some(shelf) = self.publishers.get_mut(&publisher) else { return };
        let before = shelf.len;
        shelf.len = before.saturating_sub(gone);
        let Shelf { number, len } = *shelf;
        self.len -= before - len;
        if len == 0 {
            self.publishers.remove(&publisher);
            self.free.push(number);
        }
        self.shift(publisher, before, len);
    }

    /// Brings all within the limits after `publisher` got more: who gives up how many, to be taken by their numbers, and
    /// counted out already.
    pub(super) fn make_room(&mut self, publisher: Publisher) -> Vec<(u32, usize)> {
        let mut gone = Vec::new();
        self.shrink(publisher, self.share(&publisher), &mut gone);
        while self.len > self.limits.entries {
            let Some(tier) = [&mut self.strangers, &mut self.known].into_iter().find(|tier| !tier.by_len.is_empty())
            else {
                break;
            };
            match tier.by_len.last() {
                Some(&(largest, _)) if largest > 1 => {
                    // One entry too many, so a share of `largest` is too much, and one less is enough.
                    tier.share = Some(largest - 1);
                    let over: Vec<_> =
                        tier.by_len.range((largest, [0; 32])..).map(|(_, publisher)| *publisher).collect();
                    for publisher in over {
                        self.shrink(publisher, largest - 1, &mut gone);
                    }
                }
                Some(&(_, last)) => {
                    tier.ceiling = Some(last);
                    self.shrink(last, 0, &mut gone);
                }
                None => break,
            }
        }
        self.overflowed |= !gone.is_empty();
        gone
    }

    fn share(&self, publisher: &Publisher) -> usize {
        let share = match self.class(publisher) {
            Class::Stranger => self.strangers.share,
            Class::Known => self.known.share,
            Class::Own => None,
        };
        share.unwrap_or(self.limits.entries_per_publisher)
    }

    /// Leaves `share` at most to a publisher.
    fn shrink(&mut self, publisher: Publisher, share: usize, gone: &mut Vec<(u32, usize)>) {
        let Some(&Shelf { number, len }) = self.publishers.get(&publisher) else { return };
        if len > share {
            self.subtract(publisher, len - share);
            gone.push((number, len - share));
        }
    }

    /// Takes note in its tier that a publisher has as much as it now has.
    fn shift(&mut self, publisher: Publisher, before: usize, after: usize) {
        let tier = match self.class(&publisher) {
            Class::Stranger => &mut self.strangers,
            Class::Known => &mut self.known,
            Class::Own => return,
        };
        if before != after {
            tier.by_len.remove(&(before, publisher));
            if after > 0 {
                tier.by_len.insert((after, publisher));
            }
        }
    }
}
