//! How near a peer is to any key, without a look at the other peers, and to which keys it is near.
//!
//! A peer is nearer to a key than another one if they agree with the key differently in the first bit in which the two
//! peers differ (Maymounkov and Mazières, 2002, section 2.1). So for one peer it is enough to know how many others
//! first differ from it in each bit: those are nearer to a key for whose bit they stand.

use super::span::{Span, Spans};
use crate::key::Key;

/// What the rank of one peer among others follows from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    peer: Key,
    /// For each bit, how many others differ from the peer there first.
    differ: Vec<usize>,
}

impl Reach {
    /// Of `peer` among `others`, of whom it may be one. Cost: O(others).
    pub fn new<'a>(peer: Key, others: impl IntoIterator<Item = &'a Key>) -> Self {
        let mut differ = Vec::new();
        for other in others {
            let bits = other.common_prefix_bits(&peer) as usize;
            if bits == 256 {
                continue;
            }
            if differ.len() <= bits {
                differ.resize(bits + 1, 0);
            }
            differ[bits] += 1;
        }
        Self { peer, differ }
    }

    /// How many others are nearer to `key`: 0 where the peer is the nearest.
    pub fn nearer(&self, key: &Key) -> usize {
        let there = |(bit, _): &(u32, &usize)| key.bit(*bit) != self.peer.bit(*bit);
        (0_u32..).zip(&self.differ).filter(there).map(|(_, count)| count).sum()
    }

    /// The keys to which fewer than `count` others are nearer.
    pub fn within(&self, count: usize) -> Spans {
        let mut spans = Spans::new();
        self.gather(Key([0; 32]), 0, count, &mut spans);
        spans
    }

    /// Those of the keys that share `bits` bits with `start`.
    fn gather(&self, start: Key, bits: u32, count: usize, spans: &mut Spans) {
        let (known, open) = self.differ.split_at(self.differ.len().min(bits as usize));
        let stand = |(bit, _): &(u32, &usize)| start.bit(*bit) != self.peer.bit(*bit);
        let nearer: usize = (0_u32..).zip(known).filter(stand).map(|(_, others)| others).sum();
        if nearer >= count {
            return;
        }
        if nearer + open.iter().sum::<usize>() < count {
            spans.insert(Span::of_prefix(start, bits));
            return;
        }
        // Others are open, so that there are bits left.
        let mut one = start;
        one.0[bits as usize / 8] |= 0x80 >> (bits % 8);
        self.gather(start, bits + 1, count, spans);
        self.gather(one, bits + 1, count, spans);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn ranks_and_spans_are_those_of_a_look_at_all(
            peers in vec(any::<[u8; 2]>(), 1..80), keys in vec(any::<[u8; 2]>(), 1..50), count in 1..20_usize,
        ) {
            let key = |[a, b]: [u8; 2]| { let mut key = [0; 32]; (key[0], key[1]) = (a, b); Key(key) };
            let others: Vec<Key> = peers[1..].iter().copied().map(key).filter(|other| *other != key(peers[0])).collect();
            let peer = key(peers[0]);
            let reach = Reach::new(peer, &others);
            let spans = reach.within(count);
            for wanted in keys.into_iter().map(key) {
                let nearer = others.iter().filter(|other| other.distance(&wanted) < peer.distance(&wanted)).count();
                prop_assert_eq!(reach.nearer(&wanted), nearer);
                prop_assert_eq!(spans.contains(&wanted), nearer < count);
            }
        }
    }
}
