//! Candidates in the order of their keys, so that the nearest to any key are found without a look at all of them.
//!
//! Keys that share a prefix stand together, so the sorted list is a binary trie: of the two halves that differ in a bit,
//! every key of the half that agrees with the wanted key there is nearer than any of the other (Maymounkov and
//! Mazières, 2002, section 2.1).

use libp2p_identity::PeerId;

use crate::{key::Key, placement::Candidate};

/// Distinct candidates, sorted by key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranking {
    sorted: Vec<Candidate>,
}

impl Ranking {
    /// Sorts them: O(n log n), once for each change of who there is.
    pub fn new(candidates: impl IntoIterator<Item = Candidate>) -> Self {
        let mut sorted: Vec<_> = candidates.into_iter().collect();
        sorted.sort_unstable_by_key(|candidate| candidate.key);
        sorted.dedup_by_key(|candidate| candidate.key);
        Self { sorted }
    }

    /// Takes one in; one of the same key stays. Cost: O(n) of moves.
    pub fn insert(&mut self, candidate: Candidate) {
        if let Err(at) = self.sorted.binary_search_by_key(&candidate.key, |other| other.key) {
            self.sorted.insert(at, candidate);
        }
    }

    /// Takes the one of a key out, if there is one. Cost: O(n) of moves.
    pub fn remove(&mut self, key: &Key) {
        if let Ok(at) = self.sorted.binary_search_by_key(key, |other| other.key) {
            self.sorted.remove(at);
        }
    }

    /// Their keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.sorted.iter().map(|candidate| &candidate.key)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The `count` nearest to `key`, nearest first; fewer if there are fewer. Cost: O(count + log² n), for keys that are
    /// hashes.
    pub fn nearest(&self, key: &Key, count: usize) -> Vec<PeerId> {
        let mut nearest = Vec::with_capacity(count.min(self.sorted.len()));
        gather(&self.sorted, key, count, &mut nearest);
        nearest
    }
}

/// Appends the nearest of `sorted`, up to `count` in all. As deep as there are bits, 256, at the most.
fn gather(sorted: &[Candidate], key: &Key, count: usize, nearest: &mut Vec<PeerId>) {
    let ([first, .., last], true) = (sorted, nearest.len() < count) else {
        if let ([only], true) = (sorted, nearest.len() < count) {
            nearest.push(only.peer);
        }
        return;
    };
    // Distinct keys in order: the first and the last differ, and all agree up to there.
    let bit = first.key.common_prefix_bits(&last.key);
    let (zeros, ones) = sorted.split_at(sorted.partition_point(|candidate| !candidate.key.bit(bit)));
    let (near, far) = if key.bit(bit) { (ones, zeros) } else { (zeros, ones) };
    gather(near, key, count, nearest);
    gather(far, key, count, nearest);
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::placement::closest;

    /// A peer whose key is taken as given: only the order of keys counts here.
    fn candidate(peer: PeerId, key: [u8; 32]) -> Candidate {
        Candidate { peer, key: Key(key) }
    }

    proptest! {
        #[test]
        fn the_nearest_are_those_of_a_full_sort(
            keys in vec(any::<[u8; 32]>(), 0..60), close in vec(0..8_u8, 0..8), wanted: [u8; 32], count in 0..70_usize,
        ) {
            // Some keys that share all but their last bits too.
            let all = keys.into_iter().chain(close.into_iter().map(|last| { let mut key = wanted; key[31] ^= last; key }));
            let candidates: Vec<_> = all
                .enumerate()
                .map(|(at, key)| {
                    let seed = [u8::try_from(at).expect("few"); 32];
                    candidate(Keypair::ed25519_from_bytes(seed).expect("32 bytes").public().to_peer_id(), key)
                })
                .collect();
            let ranking = Ranking::new(candidates.clone());
            let distinct: Vec<_> = candidates.iter().copied().filter(|one| ranking.sorted.contains(one)).collect();
            prop_assert_eq!(ranking.nearest(&Key(wanted), count), closest(&Key(wanted), &distinct, count));
            prop_assert_eq!(ranking.len(), distinct.len());
            let mut grown = Ranking::default();
            distinct.iter().chain(&distinct).for_each(|one| grown.insert(*one));
            prop_assert_eq!(&grown, &ranking);
            distinct.iter().step_by(2).for_each(|one| grown.remove(&one.key));
            prop_assert_eq!(grown, Ranking::new(distinct.iter().skip(1).step_by(2).copied()));
        }
    }
}
