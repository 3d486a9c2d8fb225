//! Who keeps a chunk: the k storing peers nearest to its key, the asking one included.
//!
//! Kademlia's own lookup never returns the asking node, so whoever calls adds itself to the candidates.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::key::Key;

/// The most copies that may be asked for.
pub const MAX_REPLICAS: u8 = 16;
/// How many beyond k are asked when one of the k refuses.
pub const EXTRA_CANDIDATES: usize = 4;

/// A peer with its key computed once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The peer.
    pub peer: PeerId,
    /// Its place in the keyspace.
    pub key: Key,
}

impl From<PeerId> for Candidate {
    fn from(peer: PeerId) -> Self {
        Self { peer, key: Key::from(&peer) }
    }
}

/// The `count` of `candidates` nearest to `key`, nearest first; fewer if there are fewer.
///
/// Candidates are distinct. Cost: O(n) for the selection, O(count log count) for the order: a look at all of them, which
/// tests and the benchmark hold [`Ranking::nearest`](crate::ranking::Ranking::nearest) against.
pub fn closest(key: &Key, candidates: &[Candidate], count: usize) -> Vec<PeerId> {
    let mut ranked: Vec<_> = candidates.iter().map(|c| (c.key.distance(key), c.peer)).collect();
    if count == 0 || ranked.is_empty() {
        return Vec::new();
    }
    if count < ranked.len() {
        ranked.select_nth_unstable_by_key(count - 1, |(distance, _)| *distance);
        ranked.truncate(count);
    }
    ranked.sort_unstable_by_key(|(distance, _)| *distance);
    ranked.into_iter().map(|(_, peer)| peer).collect()
}

/// A part of the keyspace: every key that shares the first `bits` bits of `start`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// The first key of it.
    pub start: Key,
    /// How many bits its keys share, 0 (all keys) to 256 (one key).
    pub bits: u32,
}

impl Region {
    /// The region of the keys that share `bits` bits with `key`.
    pub fn around(key: &Key, bits: u32) -> Self {
        let bits = bits.min(256);
        let mut start = *key;
        for (at, byte) in (0_u32..).zip(&mut start.0) {
            let kept = bits.saturating_sub(at * 8).min(8);
            // The upper `kept` bits; a shift by 8 leaves none.
            *byte &= u8::MAX.checked_shl(8 - kept).unwrap_or(0);
        }
        Self { start, bits }
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &Key) -> bool {
        self.start.common_prefix_bits(key) >= self.bits
    }

    /// What one lookup tells about, and not only about the key that was looked up.
    ///
    /// `answer` is the peers nearest to `key`. Whoever shares more bits with the key than the farthest of them is nearer
    /// than it and so in the answer: the answer is complete for the region of those bits. If it has at least `least`
    /// peers, the `least` nearest to any key of the region are among them; if not, the answer is good for `key` alone.
    /// `all`: the answer is every peer that there is.
    pub fn of_answer(key: &Key, answer: &[PeerId], least: usize, all: bool) -> Self {
        if all {
            return Self::around(key, 0);
        }
        let shared: Vec<u32> = answer.iter().map(|peer| Key::from(peer).common_prefix_bits(key)).collect();
        let farthest = shared.iter().min().copied().unwrap_or(256);
        let inside = shared.iter().filter(|bits| **bits > farthest).count();
        Self::around(key, if inside >= least { farthest + 1 } else { 256 })
    }
}

/// Regions that a lookup has told about. They never overlap; each is forgotten with age, and when a peer of it comes or goes.
#[derive(Clone, Debug, Default)]
pub struct Regions {
    /// By the first key of each: its bits, and when it was learned.
    known: BTreeMap<Key, (u32, Instant)>,
}

/// The most regions that are remembered: enough for 40,000 peers, a quarter of a megabyte.
pub const MAX_REGIONS: usize = 4096;
/// A region is looked up again after so long, because peers can come that nobody told this node of.
pub const REGION_AGE: Duration = Duration::from_secs(600);

impl Regions {
    /// Whether a lookup of this region is known and fresh.
    pub fn covers(&self, key: &Key, now: Instant) -> bool {
        self.around(key).is_some_and(|(_, learned)| now.saturating_duration_since(learned) < REGION_AGE)
    }

    /// Remembers a region; those inside it go.
    pub fn learn(&mut self, region: Region, now: Instant) {
        if let Some((outer, _)) = self.around(&region.start)
            && outer.bits <= region.bits
        {
            self.known.remove(&outer.start);
        }
        let inside: Vec<Key> =
            self.known.range(region.start..).map(|(start, _)| *start).take_while(|key| region.contains(key)).collect();
        for start in inside {
            self.known.remove(&start);
        }
        while self.known.len() >= MAX_REGIONS {
            // Any will do: what is needed again costs one lookup.
            self.known.pop_first();
        }
        self.known.insert(region.start, (region.bits, now));
    }

    /// A peer came or went: its region is to be looked up again.
    pub fn forget(&mut self, peer: &Key) {
        if let Some((region, _)) = self.around(peer) {
            self.known.remove(&region.start);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The region that contains `key`: as none overlap, the last that begins at or before it, if any.
    fn around(&self, key: &Key) -> Option<(Region, Instant)> {
        let (start, (bits, learned)) = self.known.range(..=*key).next_back()?;
        let region = Region { start: *start, bits: *bits };
        region.contains(key).then_some((region, *learned))
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn the_closest_are_those_of_a_full_sort() {
        let peers: Vec<Candidate> =
            (0..40).map(|_| Candidate::from(Keypair::generate_ed25519().public().to_peer_id())).collect();
        for seed in 0..50_u8 {
            let key = Key([seed.wrapping_mul(37); 32]);
            let mut sorted = peers.clone();
            sorted.sort_by_key(|c| c.key.distance(&key));
            let wanted: Vec<_> = sorted.iter().take(3).map(|c| c.peer).collect();
            assert_eq!(closest(&key, &peers, 3), wanted);
            assert_eq!(closest(&key, &peers, 100).len(), 40);
            assert!(closest(&key, &peers, 0).is_empty());
        }
    }

    /// What a perfect lookup answers: the 20 nearest.
    fn lookup(key: &Key, peers: &[Candidate]) -> Vec<PeerId> {
        closest(key, peers, 20)
    }

    fn peers(seeds: &[[u8; 32]]) -> Vec<Candidate> {
        seeds
            .iter()
            .filter_map(|seed| Keypair::ed25519_from_bytes(*seed).ok())
            .map(|pair| Candidate::from(pair.public().to_peer_id()))
            .collect()
    }

    /// Looks up whatever is not covered; gives how many lookups that took, and whether every placement was right.
    fn place(peers: &[Candidate], keys: &[[u8; 32]], k: usize) -> (usize, bool) {
        let now = Instant::now();
        let (mut regions, mut known, mut lookups, mut right) = (Regions::default(), Vec::new(), 0, true);
        for key in keys.iter().map(|key| Key(*key)) {
            if !regions.covers(&key, now) {
                let answer = lookup(&key, peers);
                regions.learn(Region::of_answer(&key, &answer, k, answer.len() == peers.len()), now);
                lookups += 1;
                for candidate in answer.into_iter().map(Candidate::from) {
                    if !known.contains(&candidate) {
                        known.push(candidate);
                    }
                }
                assert!(regions.covers(&key, now), "what was looked up is covered");
            }
            right &= closest(&key, &known, k) == closest(&key, peers, k);
        }
        (lookups, right)
    }

    #[test]
    fn the_cost_grows_with_regions_and_not_with_chunks() {
        let seeds: Vec<[u8; 32]> = (0..300_u32).map(|n| *blake3::hash(&n.to_be_bytes()).as_bytes()).collect();
        let keys: Vec<[u8; 32]> =
            (0..6_000_u32).map(|n| *blake3::hash(&[&n.to_be_bytes()[..], b"key"].concat()).as_bytes()).collect();
        let peers = peers(&seeds);
        let (few, right) = place(&peers, &keys[..1_000], 3);
        assert!(right);
        let (many, right) = place(&peers, &keys, 3);
        assert!(right);
        assert!(few <= 60, "{few} lookups for 300 peers");
        assert!(many <= few + 10, "{many} lookups for six times the chunks, {few} before");
        assert_eq!(place(&peers[..15], &keys, 3), (1, true), "a small network is one region");
    }

    #[test]
    fn a_region_is_forgotten_when_a_peer_of_it_comes_and_with_age() {
        let (key, now) = (Key([0x55; 32]), Instant::now());
        let mut regions = Regions::default();
        regions.learn(Region::around(&key, 4), now);
        assert!(regions.covers(&Key([0x5a; 32]), now) && !regions.covers(&Key([0x65; 32]), now));
        regions.forget(&Key([0x65; 32]));
        assert!(regions.covers(&key, now));
        assert!(!regions.covers(&key, now + REGION_AGE));
        regions.forget(&Key([0x50; 32]));
        assert!(!regions.covers(&key, now) && regions.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn placement_by_region_is_placement_by_lookup(
            seeds in vec(any::<[u8; 32]>(), 1..120), keys in vec(any::<[u8; 32]>(), 1..200), k in 1..8_usize,
        ) {
            let (_, right) = place(&peers(&seeds), &keys, k);
            prop_assert!(right);
        }

        #[test]
        fn regions_never_overlap(learned in vec((any::<[u8; 32]>(), 0..12_u32), 1..60), key: [u8; 32]) {
            let now = Instant::now();
            let mut regions = Regions::default();
            for (start, bits) in learned {
                let region = Region::around(&Key(start), bits);
                prop_assert!(region.contains(&Key(start)) && region.contains(&region.start));
                regions.learn(region, now);
                prop_assert!(regions.covers(&Key(start), now));
            }
            let around = regions.known.iter().filter(|(start, (bits, _))| Region { start: **start, bits: *bits }.contains(&Key(key)));
            let count = around.count();
            prop_assert!(count <= 1);
            prop_assert_eq!(regions.covers(&Key(key), now), count == 1);
        }
    }
}
