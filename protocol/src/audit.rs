//! Comparing with a neighbour what it should hold, and proofs that a peer has the bytes of a chunk (`SPEC.md`, "Audits").
//!
//! What is compared is the *common range*: the keys of which both sides know that they are the audited peer's duty, as
//! far as the asking node has rows for them. It follows from the view alone, so that two fingerprints, of the catalogues
//! and of this range, tell whether two sets may be compared at all.
//!
//! A proof is a hash of the chunk's bytes under a key that was not known before: whoever gives it had the bytes at hand
//! after it was asked. It does not say whose disk they came from: a peer may fetch the chunk to answer. The id of who asks
//! is part of the key, and an honest peer takes it from the connection: so nobody can have an honest holder answer a
//! question that another one asked. The id of who proves is not: two holders give the same proof to the same question, and
//! who has no copy can tell by comparing them.

use libp2p_identity::PeerId;

use crate::{
    duty::{EXTRA, Spans, reach::Reach},
    key::Key,
    reconcile::Fingerprint,
};

/// Bytes of a nonce: fresh, random, for one question.
pub const NONCE_BYTES: usize = 32;
/// Bytes of a proof: half of a BLAKE3 hash; nobody has more than one try.
pub const PROOF_BYTES: usize = 16;
/// Stands for the fingerprint of a catalogue that has no room for all that is published: it differs for good from others,
/// and what those list besides is no reason to compare nothing. No set has this fingerprint, as far as anybody can find.
pub const OVERFLOWED: Fingerprint = Fingerprint([0; 16]);
/// What the key of a proof is derived under.
const PROOF_CONTEXT: &str = "p2p-node 2026 proof of possession";

/// Whether two sides list the same, or differ because one of them has no room for the rest: then whatever one of them lists
/// and the other does not keep is lacking there, as long as that is so, and others have to hold it.
pub fn is_comparable(one: Fingerprint, other: Fingerprint) -> bool {
    one == other || one == OVERFLOWED || other == OVERFLOWED
}

/// What a proof is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Challenge {
    /// The nonce.
    pub nonce: [u8; NONCE_BYTES],
    /// Who asked.
    pub asker: PeerId,
}

impl Challenge {
    /// The proof that `bytes` are at hand: the first half of BLAKE3 of them, keyed by the key that is derived of the nonce
    /// and the asker's id.
    pub fn proof(&self, bytes: &[u8]) -> [u8; PROOF_BYTES] {
        let mut hasher = blake3::Hasher::new_derive_key(PROOF_CONTEXT);
        hasher.update(&self.nonce).update(&self.asker.to_bytes());
        let hash = blake3::keyed_hash(hasher.finalize().as_bytes(), bytes);
        let mut proof = [0; PROOF_BYTES];
        proof.copy_from_slice(&hash.as_bytes()[..PROOF_BYTES]);
        proof
    }
}

/// The common range of two neighbours, by the copies that are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Common {
    /// For 1 copy and more, in order.
    spans: Vec<Spans>,
}

impl Common {
    /// Of the node that asks and the peer that is audited, each among the storing peers in view; `most`: the most copies
    /// that anything live wants. The audited peer is one of the nearest as many as there are copies, and the node that
    /// asks one of the next [`EXTRA`] at least: that far its rows are complete.
    pub fn new(asker: &Reach, audited: &Reach, most: u8) -> Self {
        let of = |copies: usize| audited.within(copies).and(&asker.within(copies + EXTRA));
        Self { spans: (1..=usize::from(most)).map(of).collect() }
    }

    /// Equal where two nodes see the same range, and only there: the first 16 bytes of BLAKE3 over, for 1 copy and more,
    /// the length of its spans' short form in 4 bytes and that form.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        for spans in &self.spans {
            let bytes = spans.to_bytes();
            // A few spans a bit of the keyspace, of at most 66 bytes.
            hasher.update(&(bytes.len() as u32).to_be_bytes()).update(&bytes);
        }
        let mut out = [0; 16];
        out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Fingerprint(out)
    }

    /// Whether a chunk of which so many copies are wanted is of the range.
    pub fn contains(&self, key: &Key, copies: u8) -> bool {
        self.of(copies).is_some_and(|spans| spans.contains(key))
    }

    /// The range of the chunks of which so many copies are wanted.
    pub fn of(&self, copies: u8) -> Option<&Spans> {
        usize::from(copies).checked_sub(1).and_then(|at| self.spans.get(at))
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn peer(seed: u8) -> PeerId {
        // Any 32 bytes are an ed25519 secret key.
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
    }

    #[test]
    fn a_proof_is_the_specification_and_bound_to_all_that_it_is_of() {
        let challenge = Challenge { nonce: [7; 32], asker: peer(1) };
        let proof = challenge.proof(b"a chunk");
        // The vector of SPEC.md.
        let hex: String = proof.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "1012b953d2f6c9fc01f7b695a901bce7");
        for other in [Challenge { nonce: [8; 32], ..challenge }, Challenge { asker: peer(3), ..challenge }] {
            assert_ne!(other.proof(b"a chunk"), proof);
        }
        assert_ne!(challenge.proof(b"a chunk "), proof);
    }

    #[test]
    fn catalogues_are_comparable_where_they_are_equal_or_one_has_no_room() {
        let [one, other] = [Fingerprint([1; 16]), Fingerprint([2; 16])];
        assert!(is_comparable(one, one) && !is_comparable(one, other));
        assert!(is_comparable(OVERFLOWED, one) && is_comparable(one, OVERFLOWED));
    }

    proptest! {
        /// The range is what a look at all peers says, on both sides.
        #[test]
        fn the_common_range_is_the_audited_peers_duty_as_far_as_the_asker_has_rows(
            peers in vec(any::<[u8; 2]>(), 2..60), keys in vec(any::<[u8; 2]>(), 1..40), most in 1..5_u8,
        ) {
            let key = |[a, b]: [u8; 2]| { let mut key = [0; 32]; (key[0], key[1]) = (a, b); Key(key) };
            let all: Vec<Key> = peers.into_iter().map(key).collect();
            prop_assume!(all[0] != all[1]);
            let reach = |peer: Key| Reach::new(peer, &all);
            let common = Common::new(&reach(all[0]), &reach(all[1]), most);
            for wanted in keys.into_iter().map(key) {
                let nearer = |peer: Key| {
                    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
                    distinct.into_iter().filter(|other| other.distance(&wanted) < peer.distance(&wanted)).count()
                };
                // Two peers of one key are one to `Reach` only where it is the peer's own.
                prop_assume!(all.iter().collect::<std::collections::BTreeSet<_>>().len() == all.len());
                for copies in 0..=most + 1 {
                    let within = copies > 0 && copies <= most
                        && nearer(all[1]) < usize::from(copies)
                        && nearer(all[0]) < usize::from(copies) + EXTRA;
                    prop_assert_eq!(common.contains(&wanted, copies), within);
                }
            }
        }
    }

    #[test]
    fn views_that_see_another_range_have_another_fingerprint() {
        let key = |first: u8| Key(std::array::from_fn(|at| if at == 0 { first } else { 0 }));
        let all: Vec<Key> = (0..16).map(|at| key(at * 16)).collect();
        let of = |others: &[Key], most| {
            Common::new(&Reach::new(all[0], others), &Reach::new(all[1], others), most).fingerprint()
        };
        let whole = of(&all, 3);
        assert_eq!(of(&all, 3), whole);
        assert_ne!(of(&all[..6], 3), whole, "peers that are near are not in view");
        assert_ne!(of(&all, 2), whole);
        // Who is far from both changes nothing that is compared.
        assert_eq!(of(&all[..15], 2), of(&all, 2));
        let first = Common::new(&Reach::new(all[0], &[]), &Reach::new(all[1], &[]), 1).fingerprint();
        let hex: String = first.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "f4c01ae2e5c77cb4f9473358c79dd443", "the vector of SPEC.md: everything, for one copy");
    }
}
