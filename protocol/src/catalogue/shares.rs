//! How much of the catalogue each publisher may have, and who gives way where there is no room.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use super::{EntryKey, Merged, Standing, Versions};

/// The most entries, each version and each removal counting as one: at some 600 bytes each (the signed bytes are about
/// 300, the indexes the rest) 40 MiB, most of what an idle daemon may take.
pub const MAX_ENTRIES: usize = 65_536;
/// The most entries of one publisher: half of all, so that one alone never fills the catalogue.
pub const MAX_ENTRIES_PER_PUBLISHER: usize = 32_768;

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
        Self { entries: MAX_ENTRIES, entries_per_publisher: MAX_ENTRIES_PER_PUBLISHER }
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

/// All publishers, what each has, and what they may have.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    limits: Limits,
    publishers: BTreeMap<Publisher, Shelf>,
    /// Those of a higher class than strangers. As many as the caller names.
    classes: BTreeMap<Publisher, Class>,
    len: usize,
    strangers: Tier,
    known: Tier,
}

/// What one publisher has.
#[derive(Clone, Debug, Default)]
struct Shelf {
    keys: BTreeMap<EntryKey, Versions<u32>>,
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

    /// How many entries stand.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn class(&self, publisher: &Publisher) -> Class {
        self.classes.get(publisher).copied().unwrap_or_default()
    }

    pub(super) fn set_class(&mut self, publisher: Publisher, class: Class) {
        let len = self.publishers.get(&publisher).map_or(0, |shelf| shelf.len);
        self.count(publisher, len, 0);
        match class {
            Class::Stranger => self.classes.remove(&publisher),
            class => self.classes.insert(publisher, class),
        };
        self.count(publisher, 0, len);
    }

    /// What stands of a place.
    pub(super) fn versions(&self, publisher: &Publisher, key: &EntryKey) -> Option<&Versions<u32>> {
        self.publishers.get(publisher)?.keys.get(key)
    }

    /// All places.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Versions<u32>> {
        self.publishers.values().flat_map(|shelf| shelf.keys.values())
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

    /// Whether one more of `version` and `floor` finds room without pushing out another entry of its publisher.
    pub(super) fn has_room(&self, publisher: &Publisher, key: &EntryKey, version: u64, floor: u64) -> bool {
        let Some(shelf) = self.publishers.get(publisher) else { return !self.is_out(publisher) };
        let growth = shelf.keys.get(key).map_or(1, |versions| versions.growth(version, floor));
        shelf.len.saturating_add_signed(growth) <= self.share(publisher) && !self.is_out(publisher)
    }

    /// Takes one in by the rules of [`Versions`], without regard to room.
    pub(super) fn merge(
        &mut self,
        publisher: Publisher,
        key: EntryKey,
        new: Standing<u32>,
        order: impl FnOnce(&u32) -> Ordering,
    ) -> Merged<u32> {
        let shelf = self.publishers.entry(publisher).or_default();
        let versions = shelf.keys.entry(key).or_default();
        let before = shelf.len;
        let merged = versions.merge(new, order);
        if let Merged::Taken(dropped) = &merged {
            shelf.len = before + 1 - dropped.len();
        }
        let after = shelf.len;
        self.count(publisher, before, after);
        merged
    }

    /// Brings all within the limits after `publisher` got more; gives what went.
    pub(super) fn make_room(&mut self, publisher: Publisher) -> Vec<u32> {
        let mut dropped = Vec::new();
        self.shrink(publisher, self.share(&publisher), &mut dropped);
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
                        self.shrink(publisher, largest - 1, &mut dropped);
                    }
                }
                Some(&(_, last)) => {
                    tier.ceiling = Some(last);
                    self.shrink(last, 0, &mut dropped);
                }
                None => break,
            }
        }
        dropped
    }

    fn share(&self, publisher: &Publisher) -> usize {
        let share = match self.class(publisher) {
            Class::Stranger => self.strangers.share,
            Class::Known => self.known.share,
            Class::Own => None,
        };
        share.unwrap_or(self.limits.entries_per_publisher)
    }

    /// Drops what a publisher has in its greatest keys, there the lowest versions first, until it has `share` at most.
    fn shrink(&mut self, publisher: Publisher, share: usize, dropped: &mut Vec<u32>) {
        let Some(shelf) = self.publishers.get_mut(&publisher) else { return };
        let before = shelf.len;
        while shelf.len > share
            && let Some(mut last) = shelf.keys.last_entry()
        {
            if let Some(lowest) = last.get_mut().pop_lowest() {
                shelf.len -= 1;
                dropped.push(lowest.held);
            }
            if last.get().is_empty() {
                last.remove();
            }
        }
        let after = shelf.len;
        if after == 0 {
            self.publishers.remove(&publisher);
        }
        self.count(publisher, before, after);
    }

    /// Takes note that a publisher has as much as it now has.
    fn count(&mut self, publisher: Publisher, before: usize, after: usize) {
        self.len = self.len + after - before;
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
