//! How many chunks this node should hold, counted as the rows are looked at.
//!
//! Each look begins and ends where keys share their first [`PREFIX_BITS`] bits no longer (`sweep`), so that what changed
//! is counted anew together with the little around it, and a look at everything is not waited for.

use std::collections::BTreeMap;

use super::span::{Span, before};
use crate::key::Key;

/// Rows are counted by so many first bits of their keys: of a million rows some fifteen share them, and there are never
/// more than 65,536 numbers.
pub(super) const PREFIX_BITS: u32 = 16;

/// The first bits of a key.
fn prefix(key: &Key) -> u16 {
    u16::from_be_bytes([key.0[0], key.0[1]])
}

/// The first key that shares the first bits of `key`.
pub(super) fn first_of_prefix(key: &Key) -> Key {
    let mut first = [0; 32];
    first[..2].copy_from_slice(&key.0[..2]);
    Key(first)
}

/// Chunks by the first bits of their keys, and how many there are in all.
#[derive(Debug, Default)]
pub(super) struct Counts {
    total: u64,
    /// Those that are not zero.
    by_prefix: BTreeMap<u16, u32>,
}

impl Counts {
    /// How many there are, as each part of the keyspace was looked at last.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// A look at a span found these. One that begins among keys that share their first bits goes on with what the look
    /// before it began.
    pub(super) fn looked(&mut self, span: &Span, found: impl IntoIterator<Item = Key>) {
        let goes_on = span.from != first_of_prefix(&span.from);
        let first = u32::from(prefix(&span.from)) + u32::from(goes_on);
        // A span is never empty, so that its end has a key before it.
        let last = span.to.as_ref().and_then(before).map_or(u32::from(u16::MAX), |last| u32::from(prefix(&last)));
        if first <= last {
            // So both are 65,535 at the most.
            let before: Vec<u16> =
                self.by_prefix.range(first as u16..=last as u16).map(|(prefix, _)| *prefix).collect();
            self.total -= before.iter().filter_map(|prefix| self.by_prefix.remove(prefix)).map(u64::from).sum::<u64>();
        }
        for key in found {
            *self.by_prefix.entry(prefix(&key)).or_default() += 1;
            self.total += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::duty::{span::after, sweep::Sweep};

    /// Some keys share their first bits with many.
    fn key() -> impl Strategy<Value = Key> {
        (prop::sample::select(vec![0_u16, 1, 7, 8, 0xffff]), any::<u8>()).prop_map(|(prefix, rest)| {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&prefix.to_be_bytes());
            key[31] = rest;
            Key(key)
        })
    }

    /// What a store answers: so many rows of a span at most.
    fn rows(all: &BTreeSet<Key>, span: &Span, most: usize) -> (Vec<Key>, bool) {
        let found: Vec<Key> = all.iter().filter(|key| span.contains(key)).copied().collect();
        (found.iter().take(most).copied().collect(), found.len() <= most)
    }

    proptest! {
        /// Whatever comes and goes between which looks, and however few rows one look is given: once nothing is left to
        /// look at, the count is that of all that is there.
        #[test]
        fn what_was_looked_at_is_counted_once(
            changes in vec((key(), any::<bool>(), 0..3_usize), 60), most in 1..6_usize,
        ) {
            let (mut sweep, mut counts) = (Sweep::new(std::time::Instant::now()), Counts::default());
            let mut all = BTreeSet::new();
            let look = |sweep: &mut Sweep, counts: &mut Counts, all: &BTreeSet<Key>| {
                let Some((scan, span)) = sweep.begin() else { return false };
                let (found, ended) = rows(all, &span, most);
                let looked = sweep.take(scan, found.last().copied(), ended).expect("it is under way");
                counts.looked(&looked, found.into_iter().filter(|key| looked.contains(key)));
                true
            };
            for (key, comes, looks) in changes {
                if comes { all.insert(key); } else { all.remove(&key); }
                sweep.mark(Span::of(key));
                for _ in 0..looks {
                    look(&mut sweep, &mut counts, &all);
                }
            }
            let mut looks = 0;
            while look(&mut sweep, &mut counts, &all) {
                looks += 1;
                prop_assert!(looks < 2000, "it never ends");
            }
            prop_assert_eq!(counts.total(), all.len() as u64);
        }
    }

    #[test]
    fn the_last_keys_are_counted_too() {
        let mut counts = Counts::default();
        let last = Key([0xff; 32]);
        assert_eq!(after(&last), None);
        counts.looked(&Span::ALL, [Key([0; 32]), last]);
        counts.looked(&Span { from: first_of_prefix(&last), to: None }, [last]);
        assert_eq!(counts.total(), 2);
    }
}
