//! Who keeps a chunk: the k storing peers nearest to its key, the asking one included.
//!
//! Kademlia's own lookup never returns the asking node, so whoever calls adds itself to the candidates.

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
/// Candidates are distinct. Cost: O(n) for the selection, O(count log count) for the order.
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

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

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
}
