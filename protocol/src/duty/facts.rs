//! What peers were found to have and to lack.
//!
//! Only what a decision waits for is remembered: a peer that lacks a chunk which it should hold, since when; and a full
//! peer that has one, so that it is not asked again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::key::Key;

/// Facts that are remembered: some 10 MiB. What is forgotten is asked or found again.
const MOST_FACTS: usize = 65_536;

/// How many times the delay a peer that is filling up is waited for.
const PATIENCE: u32 = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fact {
    Has,
    Lacks {
        since: Instant,
        /// From when on the delay counts: since then, or since an audit found that the peer was filling up.
        counted: Instant,
    },
}

/// What peers were found to have and to lack. Bounded.
#[derive(Debug, Default)]
pub(super) struct Facts {
    facts: BTreeMap<Key, BTreeMap<PeerId, Fact>>,
    count: usize,
    /// How many chunks the last audit of a neighbour found it to lack, where it lacked any.
    audited: BTreeMap<PeerId, usize>,
    /// What was found to be lacking and has not been given out by [`ripe`](Self::ripe), by when that began to count.
    ripening: BTreeSet<(Instant, Key, PeerId)>,
    /// Where a peer may count otherwise since [`turned`](Self::turned) was asked: it is, after everything that is noted.
    turned: Vec<Turned>,
}

/// A peer may count otherwise for a chunk than it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Turned {
    pub(super) key: Key,
    pub(super) peer: PeerId,
    /// It came to have it, or is not known to have it any more: that says something only of a full peer. Else it does not
    /// lack it for long any more.
    pub(super) had: bool,
}

impl Facts {
    /// It has the chunk: it proved it, or a decision that errs on the safe side may believe it.
    pub(super) fn has(&mut self, key: Key, peer: PeerId) {
        if !self.is_held(&key, &peer) {
            self.note(key, peer, Fact::Has);
            self.turned.push(Turned { key, peer, had: true });
        }
    }

    /// It lacks the chunk. It counts from the first time.
    pub(super) fn lacks(&mut self, now: Instant, key: Key, peer: PeerId) {
        if !matches!(self.get(&key, &peer), Some(Fact::Lacks { .. })) {
            self.note(key, peer, Fact::Lacks { since: now, counted: now });
        }
    }

    /// An audit found that it lacks these and nothing else; `filling`: it says that it is fetching.
    ///
    /// Where they are fewer than the last time, or no more and it says so, it is filling up: a disk that was replaced, or
    /// a newcomer. Nobody is to take over what it fetches itself: what it lacks counts from now, for as long as
    /// [`PATIENCE`] delays, whatever it says.
    pub(super) fn audited(&mut self, now: Instant, peer: PeerId, keys: Vec<Key>, filling: bool, delay: Duration) {
        let before = self.audited.insert(peer, keys.len());
        let fills = before.is_some_and(|before| keys.len() < before || filling && keys.len() == before);
        let keys: BTreeSet<Key> = keys.into_iter().collect();
        let lacked = |(key, peers): (&Key, &BTreeMap<PeerId, Fact>)| {
            let lacks = matches!(peers.get(&peer), Some(Fact::Lacks { .. }));
            (lacks && !keys.contains(key)).then_some(*key)
        };
        let came: Vec<Key> = self.facts.iter().filter_map(lacked).collect();
        came.into_iter().for_each(|key| self.forget_of(key, &peer));
        for key in keys {
            match self.get(&key, &peer) {
                Some(Fact::Lacks { since, counted }) if fills => {
                    let counted = counted.max(now.min(since + delay * (PATIENCE - 1)));
                    self.note(key, peer, Fact::Lacks { since, counted });
                }
                Some(Fact::Lacks { .. }) => {}
                _ => self.note(key, peer, Fact::Lacks { since: now, counted: now }),
            }
        }
    }

    /// Nobody but these is audited now. What the last audit of another found does not tell, when it is a neighbour again,
    /// whether it fills up: it should hold something else by then.
    pub(super) fn neighbours(&mut self, neighbours: &[PeerId]) {
        self.audited.retain(|peer, _| neighbours.contains(peer));
    }

    /// Whether anything is known of a chunk.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.facts.contains_key(key)
    }

    /// Whether it is known to have it.
    pub(super) fn is_held(&self, key: &Key, peer: &PeerId) -> bool {
        self.get(key, peer) == Some(Fact::Has)
    }

    /// Whether it has lacked it for that long.
    pub(super) fn is_lacking(&self, now: Instant, key: &Key, peer: &PeerId, delay: Duration) -> bool {
        match self.get(key, peer) {
            Some(Fact::Lacks { counted, .. }) => now.saturating_duration_since(counted) >= delay,
            Some(Fact::Has) | None => false,
        }
    }

    /// The chunks that a peer has come to lack for `delay` by now; each is given out once.
    pub(super) fn ripe(&mut self, now: Instant, delay: Duration) -> Vec<Key> {
        let mut ripe = Vec::new();
        while let Some(&(counted, key, _)) = self.ripening.first()
            && counted + delay <= now
        {
            self.ripening.pop_first();
            ripe.push(key);
        }
        ripe
    }

    /// When the next of them will have lacked its chunk for `delay`.
    pub(super) fn next(&self, delay: Duration) -> Option<Instant> {
        self.ripening.first().map(|(counted, ..)| *counted + delay)
    }

    /// Where a peer may count otherwise since this was asked last, but for what [`ripe`](Self::ripe) gives out.
    pub(super) fn turned(&mut self) -> Vec<Turned> {
        std::mem::take(&mut self.turned)
    }

    /// How many chunks somebody is known to lack.
    pub(super) fn lacking(&self) -> usize {
        let lacks = |peers: &&BTreeMap<PeerId, Fact>| peers.values().any(|fact| *fact != Fact::Has);
        self.facts.values().filter(lacks).count()
    }

    /// Nothing is known of a chunk any more.
    fn forget(&mut self, key: &Key) {
        for (peer, fact) in self.facts.remove(key).unwrap_or_default() {
            self.dropped(*key, peer, fact);
        }
    }

    /// Nothing is known of a peer any more: it was found to have all that it should, or comes with another disk.
    pub(super) fn forget_peer(&mut self, peer: &PeerId) {
        self.audited.remove(peer);
        let keys: Vec<_> =
            self.facts.iter().filter(|(_, peers)| peers.contains_key(peer)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.forget_of(key, peer));
    }

    fn forget_of(&mut self, key: Key, peer: &PeerId) {
        let Some(peers) = self.facts.get_mut(&key) else { return };
        let fact = peers.remove(peer);
        if peers.is_empty() {
            self.facts.remove(&key);
        }
        if let Some(fact) = fact {
            self.dropped(key, *peer, fact);
        }
    }

    fn get(&self, key: &Key, peer: &PeerId) -> Option<Fact> {
        self.facts.get(key)?.get(peer).copied()
    }

    fn note(&mut self, key: Key, peer: PeerId, fact: Fact) {
        if let Some(before) = self.facts.entry(key).or_default().insert(peer, fact) {
            self.dropped(key, peer, before);
        }
        self.count += 1;
        if let Fact::Lacks { counted, .. } = fact {
            self.ripening.insert((counted, key, peer));
        }
        while self.count > MOST_FACTS
            && let Some((key, _)) = self.facts.first_key_value()
        {
            self.forget(&key.clone());
        }
    }

    fn dropped(&mut self, key: Key, peer: PeerId, fact: Fact) {
        self.count -= 1;
        let counted = match fact {
            Fact::Has => true,
            Fact::Lacks { counted, .. } => !self.ripening.remove(&(counted, key, peer)),
        };
        if counted {
            self.turned.push(Turned { key, peer, had: fact == Fact::Has });
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;

    const DELAY: Duration = Duration::from_secs(100);

    fn key(first: u8) -> Key {
        Key([first; 32])
    }

    fn peer(seed: u8) -> PeerId {
        // Any 32 bytes are an ed25519 secret key.
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
    }

    #[test]
    fn what_is_lacking_counts_from_the_first_time_and_is_given_out_once() {
        let (start, mut facts) = (Instant::now(), Facts::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        facts.lacks(at(0), key(1), peer(1));
        facts.lacks(at(50), key(1), peer(1));
        assert!(!facts.is_lacking(at(99), &key(1), &peer(1), DELAY));
        assert_eq!((facts.next(DELAY), facts.ripe(at(99), DELAY)), (Some(at(100)), vec![]));
        assert!(facts.is_lacking(at(100), &key(1), &peer(1), DELAY));
        assert_eq!(facts.ripe(at(100), DELAY), [key(1)]);
        assert_eq!((facts.ripe(at(200), DELAY), facts.lacking()), (vec![], 1));
        facts.has(key(1), peer(1));
        assert!(facts.is_held(&key(1), &peer(1)) && !facts.is_lacking(at(300), &key(1), &peer(1), DELAY));
        facts.lacks(at(300), key(1), peer(1));
        assert!(!facts.is_lacking(at(399), &key(1), &peer(1), DELAY), "it had it meanwhile");
    }

    #[test]
    fn a_peer_that_fills_up_is_waited_for_and_not_for_ever() {
        let (start, mut facts) = (Instant::now(), Facts::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lacks: Vec<Key> = (1..=20).map(key).collect();
        facts.audited(at(0), peer(1), lacks.clone(), false, DELAY);
        for round in 1..=14 {
            lacks.remove(0);
            facts.audited(at(round * 50), peer(1), lacks.clone(), false, DELAY);
            assert!(!facts.is_lacking(at(round * 50 + 49), &key(20), &peer(1), DELAY), "round {round}");
            assert!(!facts.knows(&key(1)), "it came");
        }
        lacks.remove(0);
        facts.audited(at(750), peer(1), lacks.clone(), false, DELAY);
        assert!(!facts.is_lacking(at(799), &key(20), &peer(1), DELAY));
        assert!(facts.is_lacking(at(800), &key(20), &peer(1), DELAY), "eight delays, whatever it does");
    }

    #[test]
    fn a_peer_that_stays_as_it_is_is_not_waited_for() {
        let (start, mut facts) = (Instant::now(), Facts::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        facts.audited(at(0), peer(1), vec![key(1), key(2)], false, DELAY);
        facts.audited(at(50), peer(1), vec![key(1), key(2)], false, DELAY);
        assert!(facts.is_lacking(at(100), &key(1), &peer(1), DELAY));
        facts.audited(at(100), peer(1), vec![key(1)], false, DELAY);
        assert!(!facts.is_lacking(at(199), &key(1), &peer(1), DELAY), "it went on");
        assert_eq!(facts.next(DELAY), Some(at(200)));
        facts.forget_peer(&peer(1));
        assert!(!facts.knows(&key(1)) && facts.next(DELAY).is_none());
    }

    #[test]
    fn who_says_that_it_is_fetching_is_waited_for_as_long_as_it_does_not_lack_more() {
        let (start, mut facts) = (Instant::now(), Facts::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        for round in 0..20 {
            facts.audited(at(round * 50), peer(1), vec![key(1), key(2)], true, DELAY);
            facts.audited(at(round * 50), peer(2), (0..=round as u8).map(key).collect(), true, DELAY);
        }
        assert!(!facts.is_lacking(at(799), &key(1), &peer(1), DELAY));
        assert!(facts.is_lacking(at(800), &key(1), &peer(1), DELAY), "eight delays, whatever it says");
        assert!(facts.is_lacking(at(100), &key(0), &peer(2), DELAY), "it lacks more and more");
    }

    #[test]
    fn how_much_a_peer_lacked_is_remembered_while_it_is_a_neighbour() {
        let (start, mut facts) = (Instant::now(), Facts::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (more, fewer) = (vec![key(1), key(2)], vec![key(1)]);
        [1, 2].into_iter().for_each(|other| facts.audited(at(0), peer(other), more.clone(), false, DELAY));
        facts.neighbours(&[peer(2), peer(3)]);
        assert_eq!(facts.audited.keys().collect::<Vec<_>>(), [&peer(2)]);
        [1, 2].into_iter().for_each(|other| facts.audited(at(50), peer(other), fewer.clone(), false, DELAY));
        let lacking = [1, 2].map(|other| facts.is_lacking(at(100), &key(1), &peer(other), DELAY));
        assert_eq!(lacking, [true, false], "the other fills up");
    }

    #[test]
    fn facts_are_bounded_and_counted() {
        let (start, mut facts) = (Instant::now(), Facts::default());
        for at in 0..70_000_u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&at.to_be_bytes());
            facts.lacks(start, Key(key), peer(1));
        }
        assert_eq!((facts.count, facts.facts.len(), facts.ripening.len()), (MOST_FACTS, MOST_FACTS, MOST_FACTS));
        facts.forget_peer(&peer(1));
        assert_eq!((facts.count, facts.facts.len(), facts.ripening.len()), (0, 0, 0));
    }
}
