//! Who is asked to keep one chunk, who did, and what an add may say of it.
//!
//! [`Plan`] is one chunk's: it asks the k nearest, and for each refusal the next nearest, k + [`EXTRA_CANDIDATES`] at the
//! most. [`Tally`] is one add's. Neither counts what was not acknowledged.

use libp2p_identity::PeerId;

use crate::placement::EXTRA_CANDIDATES;

/// How many peers may be asked to keep a chunk of which so many copies are wanted.
pub fn most_asked(wanted: u8) -> usize {
    usize::from(wanted.max(1)) + EXTRA_CANDIDATES
}

/// The copies of one chunk, as they are asked for and acknowledged.
#[derive(Clone, Debug)]
pub struct Plan {
    wanted: usize,
    /// Nearest first, cut to those who may be asked.
    ranked: Vec<PeerId>,
    /// The first of `ranked` that was not asked yet.
    next: usize,
    asked: Vec<PeerId>,
    kept: Vec<PeerId>,
}

impl Plan {
    /// `ranked` are distinct storing peers, nearest first, the asking node among them if it stores. `wanted` from 1.
    pub fn new(wanted: u8, mut ranked: Vec<PeerId>) -> Self {
        let wanted = usize::from(wanted.max(1));
        ranked.truncate(wanted + EXTRA_CANDIDATES);
        Self { wanted, ranked, next: 0, asked: Vec::new(), kept: Vec::new() }
    }

    /// The next to be asked now (the asking node itself is "asked" by keeping its copy), `None` while
    /// enough are asked or nobody is left.
    pub fn poll_ask(&mut self) -> Option<PeerId> {
        if self.kept.len() + self.asked.len() >= self.wanted {
            return None;
        }
        let peer = *self.ranked.get(self.next)?;
        self.next += 1;
        self.asked.push(peer);
        Some(peer)
    }

    /// `peer` acknowledged. Nothing happens unless it was asked and had not answered.
    pub fn kept(&mut self, peer: &PeerId) {
        if self.answered(peer) {
            self.kept.push(*peer);
        }
    }

    /// `peer` refused, failed or did not answer.
    pub fn refused(&mut self, peer: &PeerId) {
        self.answered(peer);
    }

    fn answered(&mut self, peer: &PeerId) -> bool {
        match self.asked.iter().position(|asked| asked == peer) {
            Some(at) => {
                self.asked.swap_remove(at);
                true
            }
            None => false,
        }
    }

    /// Whether no answer is due and nobody is left to ask, or none is needed.
    pub fn is_over(&self) -> bool {
        self.asked.is_empty() && (self.is_complete() || self.next >= self.ranked.len())
    }

    /// Whether as many as wanted acknowledged.
    pub fn is_complete(&self) -> bool {
        self.kept.len() >= self.wanted
    }

    /// Who acknowledged.
    pub fn holders(&self) -> &[PeerId] {
        &self.kept
    }

    /// How many acknowledged.
    pub fn copies(&self) -> u8 {
        // At most `wanted`, which came as a u8.
        u8::try_from(self.kept.len()).unwrap_or(u8::MAX)
    }
}

/// The most peers that a report names as failed.
pub const MAX_FAILURES: usize = 16;

/// What an add may say of all its chunks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    min: Option<u8>,
    failures: Vec<(PeerId, String)>,
}

impl Tally {
    /// A chunk has so many acknowledged copies.
    pub fn chunk(&mut self, copies: u8) {
        self.min = Some(self.min.map_or(copies, |min| min.min(copies)));
    }

    /// A peer did not take a copy; its first reason stands.
    pub fn failure(&mut self, peer: PeerId, reason: impl Into<String>) {
        if self.failures.len() < MAX_FAILURES && self.failures.iter().all(|(known, _)| *known != peer) {
            self.failures.push((peer, reason.into()));
        }
    }

    /// The copies of the chunk that has the fewest; `None` before the first.
    pub fn min(&self) -> Option<u8> {
        self.min
    }

    /// Who failed, and why.
    pub fn failures(&self) -> &[(PeerId, String)] {
        &self.failures
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use libp2p_identity::Keypair;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn peer(n: u8) -> PeerId {
        // Any 32 bytes are an ed25519 secret key.
        Keypair::ed25519_from_bytes([n; 32]).expect("32 bytes").public().to_peer_id()
    }

    #[test]
    fn a_refusal_goes_to_the_next_nearest_and_at_most_four_more_are_asked() {
        let ranked: Vec<PeerId> = (0..20).map(peer).collect();
        let mut plan = Plan::new(3, ranked.clone());
        let mut asked = Vec::new();
        while let Some(peer) = plan.poll_ask() {
            asked.push(peer);
        }
        assert_eq!(asked, ranked[..3]);
        plan.kept(&ranked[0]);
        plan.refused(&ranked[1]);
        assert_eq!(plan.poll_ask(), Some(ranked[3]));
        plan.refused(&ranked[2]);
        plan.refused(&ranked[3]);
        while let Some(peer) = plan.poll_ask() {
            plan.refused(&peer);
            asked.push(peer);
        }
        assert!(plan.is_over() && !plan.is_complete());
        assert_eq!((plan.copies(), plan.holders()), (1, &ranked[..1]));
        assert_eq!(asked.len(), 3 + 3, "with the one above, seven in all");
    }

    #[test]
    fn a_tally_keeps_the_fewest_and_sixteen_reasons() {
        let mut tally = Tally::default();
        assert_eq!(tally.min(), None);
        [3, 1, 2].into_iter().for_each(|copies| tally.chunk(copies));
        assert_eq!(tally.min(), Some(1));
        for n in 0..40 {
            tally.failure(peer(n / 2), format!("{n}"));
        }
        assert_eq!(tally.failures().len(), MAX_FAILURES);
        assert_eq!(tally.failures()[0].1, "0");
    }

    proptest! {
        /// Whatever the answers and their order: it ends, asks nobody twice and nobody beyond k + 4, asks the nearest
        /// first, counts exactly what was acknowledged, and stops short only when everybody who may be asked refused.
        #[test]
        fn a_plan_keeps_its_laws(count in 0..25_u8, wanted in 1..=16_u8, answers in vec((any::<prop::sample::Index>(), any::<bool>(), any::<bool>()), 60)) {
            let ranked: Vec<PeerId> = (0..count).map(peer).collect();
            let stranger = peer(200);
            let mut plan = Plan::new(wanted, ranked.clone());
            let (mut open, mut asked, mut acknowledged) = (Vec::new(), Vec::new(), HashSet::new());
            for (which, keeps, noise) in answers {
                while let Some(peer) = plan.poll_ask() {
                    open.push(peer);
                    asked.push(peer);
                }
                prop_assert!(acknowledged.len() + open.len() <= usize::from(wanted));
                if noise {
                    plan.kept(&stranger);
                    ranked.iter().filter(|peer| !open.contains(peer)).for_each(|peer| plan.kept(peer));
                }
                if open.is_empty() {
                    break;
                }
                let peer = open.swap_remove(which.index(open.len()));
                if keeps { plan.kept(&peer); acknowledged.insert(peer); } else { plan.refused(&peer); }
                prop_assert_eq!(plan.holders().iter().copied().collect::<HashSet<_>>(), acknowledged.clone());
            }
            prop_assert!(open.is_empty() && plan.is_over());
            prop_assert_eq!(&asked[..], &ranked[..asked.len()]);
            prop_assert!(asked.len() <= usize::from(wanted) + EXTRA_CANDIDATES);
            if !plan.is_complete() {
                prop_assert_eq!(asked.len(), ranked.len().min(usize::from(wanted) + EXTRA_CANDIDATES));
            }
            prop_assert_eq!(usize::from(plan.copies()), acknowledged.len());
        }
    }
}
