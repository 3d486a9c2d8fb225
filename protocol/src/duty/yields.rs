//! Cached copies that are given up once their replica sets proved that they have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use libp2p_identity::PeerId;

use super::ASK_KEYS;
use crate::{key::Key, manifest::Entry};

/// Copies that are being proved at once: what one question to each peer takes.
const MOST_PROVING: usize = ASK_KEYS;

#[derive(Debug)]
struct Proving {
    entry: Entry,
    /// Who has not proved it yet.
    needs: BTreeSet<PeerId>,
}

/// Cached copies that are being proved.
#[derive(Debug, Default)]
pub(super) struct Yields {
    proving: BTreeMap<Key, Proving>,
    to_ask: BTreeMap<PeerId, Vec<Key>>,
    asked: BTreeMap<u64, (PeerId, Vec<Key>)>,
    busy: BTreeSet<PeerId>,
    /// When there may be more to give up than is in hand.
    later: Option<Instant>,
    /// Who did not answer, and until when it is not asked: at most those in view.
    shunned: BTreeMap<PeerId, Instant>,
}

impl Yields {
    pub(super) fn has_room(&self) -> bool {
        self.proving.len() < MOST_PROVING
    }

    /// There may be more to give up at `at`, once what is in hand is over.
    pub(super) fn later(&mut self, at: Instant) {
        self.later = Some(self.later.map_or(at, |before| before.min(at)));
    }

    /// When that is; `None`: nothing is known of, or some are in hand.
    pub(super) fn next(&self) -> Option<Instant> {
        self.later.filter(|_| self.proving.is_empty())
    }

    /// Whether it is now, which is said once.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        self.proving.is_empty() && self.later.take_if(|at| *at <= now).is_some()
    }

    /// It did not answer: nothing is asked of it until then.
    pub(super) fn shun(&mut self, peer: PeerId, until: Instant) {
        self.shunned.insert(peer, until);
        self.later(until);
    }

    /// Until when it is not asked, if it did not answer of late.
    pub(super) fn shunned(&self, peer: &PeerId) -> Option<Instant> {
        self.shunned.get(peer).copied()
    }

    /// A cached copy may go once each of `members` proved that it has it; there is at least one.
    pub(super) fn add(&mut self, key: Key, entry: Entry, members: &[PeerId]) {
        if members.is_empty() || self.proving.contains_key(&key) {
            return;
        }
        for peer in members {
            self.to_ask.entry(*peer).or_default().push(key);
        }
        self.proving.insert(key, Proving { entry, needs: members.iter().copied().collect() });
    }

    /// The next question, if there is one.
    pub(super) fn ask(&mut self, request: u64) -> Option<(PeerId, Vec<Entry>)> {
        let peer = *self.to_ask.keys().find(|peer| !self.busy.contains(peer))?;
        let mut keys = self.to_ask.remove(&peer)?;
        keys.retain(|key| self.proving.contains_key(key));
        let entries: Vec<_> = keys.iter().filter_map(|key| self.proving.get(key)).map(|one| one.entry).collect();
        if entries.is_empty() {
            return self.ask(request);
        }
        self.busy.insert(peer);
        self.asked.insert(request, (peer, keys));
        Some((peer, entries))
    }

    /// An answer came, or none. Gives the copies that may go, and what the peer could not prove.
    pub(super) fn answer(&mut self, request: u64, proved: Option<&[bool]>) -> Option<(PeerId, Vec<Entry>, Vec<Key>)> {
        let (peer, keys) = self.asked.remove(&request)?;
        self.busy.remove(&peer);
        let (mut go, mut failed) = (Vec::new(), Vec::new());
        for (at, key) in keys.into_iter().enumerate() {
            let Some(proving) = self.proving.get_mut(&key) else { continue };
            match proved.map(|proved| proved.get(at).copied().unwrap_or(false)) {
                Some(true) => {
                    proving.needs.remove(&peer);
                    if proving.needs.is_empty()
                        && let Some(proving) = self.proving.remove(&key)
                    {
                        go.push(proving.entry);
                    }
                }
                Some(false) => {
                    self.proving.remove(&key);
                    failed.push(key);
                }
                None => {
                    self.proving.remove(&key);
                }
            }
        }
        Some((peer, go, failed))
    }

    /// The replica set of some of them may have changed: what was proved does not count, and another peer may be asked.
    pub(super) fn forget(&mut self, now: Instant) {
        self.shunned.retain(|_, until| *until > now);
        if !self.proving.is_empty() {
            self.later(now);
        }
        self.proving.clear();
        self.to_ask.clear();
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;
    use crate::{Cid, Codec};

    /// Distinct peers; any 32 bytes are an ed25519 secret key.
    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
    }

    fn chunk(name: &str) -> (Key, Entry) {
        let entry = Entry { cid: Cid::of(Codec::Raw, name.as_bytes()), length: 1 };
        (entry.key(), entry)
    }

    /// Two chunks that two peers are to prove, and the requests.
    fn asked() -> (Yields, [(Key, Entry); 2]) {
        let (mut yields, chunks) = (Yields::default(), [chunk("one"), chunk("two")]);
        for (key, entry) in chunks {
            yields.add(key, entry, &[peer(1), peer(2)]);
            yields.add(key, entry, &[peer(1), peer(2)]);
        }
        for request in 1..=2 {
            let (_, entries) = yields.ask(request).expect("two peers");
            assert_eq!(entries, chunks.map(|(_, entry)| entry));
        }
        assert!(yields.ask(3).is_none(), "one question a peer");
        (yields, chunks)
    }

    #[test]
    fn a_copy_goes_when_each_proved_it_and_stays_where_one_did_not() {
        let (mut yields, [one, two]) = asked();
        let (_, go, failed) = yields.answer(1, Some(&[true, true])).expect("it was asked");
        assert!(go.is_empty() && failed.is_empty());
        let (_, go, failed) = yields.answer(2, Some(&[true, false])).expect("it was asked");
        assert_eq!((go, failed), (vec![one.1], vec![two.0]));
        assert!(yields.proving.is_empty() && yields.answer(2, Some(&[true, true])).is_none());
    }

    #[test]
    fn no_answer_a_short_one_or_another_view_lets_nothing_go() {
        let (mut yields, _) = asked();
        yields.answer(1, None).expect("it was asked");
        let (_, go, failed) = yields.answer(2, Some(&[true, true])).expect("it was asked");
        assert!(go.is_empty() && failed.is_empty());
        let (mut yields, [_, two]) = asked();
        yields.answer(1, Some(&[true, true])).expect("it was asked");
        assert_eq!(yields.answer(2, Some(&[])).expect("it was asked").1, []);
        let (mut yields, _) = asked();
        yields.answer(1, Some(&[true, true])).expect("it was asked");
        yields.forget(Instant::now());
        assert_eq!(yields.answer(2, Some(&[true, true])).expect("it was asked").1, []);
        yields.add(two.0, two.1, &[]);
        assert!(yields.proving.is_empty(), "nobody would have it");
    }

    #[test]
    fn they_are_bounded() {
        let mut yields = Yields::default();
        for at in 0..MOST_PROVING {
            assert!(yields.has_room());
            let (key, entry) = chunk(&at.to_string());
            yields.add(key, entry, &[peer(1)]);
        }
        assert!(!yields.has_room());
        assert_eq!(yields.ask(1).map(|(_, entries)| entries.len()), Some(ASK_KEYS));
    }
}
