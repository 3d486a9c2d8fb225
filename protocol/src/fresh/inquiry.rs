//! One fresh read: whom to ask, and when enough have answered.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_identity::PeerId;

use super::{MAX_MEMBERS, Members, answers};
use crate::wire::sync_fresh::Told;

/// How often one peer is asked at the most: each time after the first, somebody has named members that nobody had heard of.
const TIMES: u8 = 4;

/// What a fresh read has come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It goes on.
    Open,
    /// What was told is fresh.
    Fresh,
    /// Too few can answer.
    Short {
        /// How many answered that are counted.
        answered: usize,
        /// How many it takes.
        needed: usize,
        /// Who did not answer, or not for certain, ascending.
        silent: Vec<PeerId>,
    },
}

/// The machine of one read. It is fed with answers, and ends with a [`Verdict`].
#[derive(Debug)]
pub struct Inquiry {
    local: PeerId,
    publisher: Option<PeerId>,
    members: BTreeSet<PeerId>,
    /// Connected ones of which nobody knows whether they store: they count until they have said.
    unknown: BTreeSet<PeerId>,
    asked: BTreeMap<PeerId, u8>,
    /// Asked, and not heard of yet.
    open: BTreeSet<PeerId>,
    /// Members that said that they are complete, and how many members they counted then, themselves among them.
    complete: BTreeMap<PeerId, usize>,
    /// The publisher has answered for itself.
    vouched: bool,
}

impl Inquiry {
    /// A read of a name of `publisher`, or of everybody, by a node that counts `members`; `connected` are the peers that
    /// it can ask at once.
    pub fn new(publisher: Option<PeerId>, members: &Members, connected: impl IntoIterator<Item = PeerId>) -> Self {
        let local = members.local();
        let mut known: BTreeSet<PeerId> = members.others().collect();
        let unknown = connected.into_iter().filter(|peer| *peer != local && !known.contains(peer)).collect();
        if members.stores() {
            known.insert(local);
        }
        Self {
            local,
            publisher,
            members: known,
            unknown,
            asked: BTreeMap::new(),
            open: BTreeSet::new(),
            complete: BTreeMap::new(),
            vouched: false,
        }
    }

    /// Whom to ask now, the publisher first. Each is given once, and again where it answered before it was told of members
    /// that somebody else named: whether it is complete depends on them.
    pub fn ask(&mut self) -> Vec<PeerId> {
        let all = self.publisher.iter().chain(&self.members).chain(&self.unknown);
        let mut next: Vec<PeerId> = Vec::new();
        for peer in all.filter(|peer| **peer != self.local && !self.open.contains(*peer)) {
            let times = self.asked.get(peer).copied().unwrap_or(0);
            let outdated = self.complete.get(peer).is_some_and(|counted| *counted < self.members.len());
            if (times == 0 || (outdated && times < TIMES)) && !next.contains(peer) {
                next.push(*peer);
            }
        }
        for peer in &next {
            *self.asked.entry(*peer).or_default() += 1;
            self.open.insert(*peer);
        }
        next
    }

    /// A peer has answered. Whom it counts is among this node's [members](Members::learn) already.
    pub fn told(&mut self, peer: PeerId, told: &Told) {
        self.open.remove(&peer);
        self.unknown.remove(&peer);
        self.members.extend(told.members.iter().map(|member| member.peer));
        if told.stores {
            self.members.insert(peer);
        }
        self.complete.remove(&peer);
        if told.cut {
            return;
        }
        if told.complete && told.stores {
            let counted: BTreeSet<PeerId> = told.members.iter().map(|member| member.peer).chain([peer]).collect();
            self.complete.insert(peer, counted.len());
        }
        self.vouched |= told.own && self.publisher == Some(peer);
    }

    /// A peer did not answer.
    pub fn failed(&mut self, peer: PeerId) {
        self.open.remove(&peer);
    }

    /// Who was asked and is not heard of yet.
    pub fn open(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.open.iter().copied()
    }

    /// What it has come to, this node's `members` being what they are now. Ask whom [`ask`](Self::ask) names before: an
    /// answer may have named more.
    pub fn verdict(&self, members: &Members) -> Verdict {
        let all = self.members.len();
        let needed = answers(all + self.unknown.len());
        // All that they count is in `members`: they count all of it if they count as many.
        let mut counted: BTreeSet<PeerId> =
            self.complete.iter().filter(|(_, n)| **n >= all).map(|(peer, _)| *peer).collect();
        if members.stores() && members.is_complete() {
            counted.insert(self.local);
        }
        let vouched = self.vouched || (self.publisher == Some(self.local) && members.has_own());
        let countable = all <= MAX_MEMBERS && !members.is_crowded();
        if vouched || (counted.len() >= needed && countable) {
            return Verdict::Fresh;
        }
        if !self.open.is_empty() {
            return Verdict::Open;
        }
        let all = self.members.iter().chain(&self.unknown).chain(&self.publisher);
        let silent: BTreeSet<PeerId> = all.filter(|peer| !counted.contains(peer)).copied().collect();
        Verdict::Short { answered: counted.len(), needed, silent: silent.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;
    use crate::fresh::{Begun, Member, Row};

    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id()
    }

    /// Node 0, which was introduced to so many others that are complete.
    fn node(others: u8) -> Members {
        let row = Row { seen: 1, complete: true, introduced: Some(true) };
        Members::new(peer(0), true, Begun::Founding, (1..=others).map(|seed| (peer(seed), row)))
    }

    fn member(seed: u8) -> Member {
        Member { peer: peer(seed), ago_seconds: 0, complete: true }
    }

    /// What a witness says that counts `members`.
    fn counting(members: impl IntoIterator<Item = u8>) -> Told {
        let members = members.into_iter().map(member).collect();
        Told { complete: true, own: true, stores: true, members, ..Told::default() }
    }

    fn sorted(seeds: impl IntoIterator<Item = u8>) -> Vec<PeerId> {
        let mut peers: Vec<PeerId> = seeds.into_iter().map(peer).collect();
        peers.sort();
        peers
    }

    #[test]
    fn enough_answers_are_fresh_and_too_few_are_named() {
        let members = node(4);
        let mut inquiry = Inquiry::new(None, &members, []);
        assert_eq!(inquiry.ask(), sorted(1..5));
        assert_eq!((inquiry.ask(), inquiry.verdict(&members)), (vec![], Verdict::Open));
        inquiry.told(peer(1), &counting([0, 2, 3, 4]));
        inquiry.told(peer(2), &Told { complete: false, ..counting([0, 1, 3, 4]) });
        inquiry.failed(peer(3));
        assert_eq!(inquiry.verdict(&members), Verdict::Open);
        inquiry.failed(peer(4));
        let short = Verdict::Short { answered: 2, needed: 3, silent: sorted([2, 3, 4]) };
        assert_eq!(inquiry.verdict(&members), short);
        inquiry.told(peer(3), &counting([0, 1, 2, 4]));
        assert_eq!(inquiry.verdict(&members), Verdict::Fresh);
    }

    #[test]
    fn members_that_an_answer_names_are_asked_and_told_of_to_who_answered_before() {
        let mut members = node(2);
        let mut inquiry = Inquiry::new(None, &members, []);
        inquiry.ask();
        inquiry.told(peer(1), &counting([0, 2]));
        assert_eq!(inquiry.verdict(&members), Verdict::Fresh, "two of three");
        let named = counting([0, 1, 3, 4]);
        members.learn(0, &named.members);
        inquiry.told(peer(2), &named);
        // The first has not counted the two, and this node may not be complete beside them.
        assert_eq!(inquiry.ask(), sorted([1, 3, 4]));
        assert_eq!(inquiry.verdict(&members), Verdict::Open);
        inquiry.told(peer(1), &counting([0, 2, 3, 4]));
        inquiry.told(peer(3), &counting([0, 1, 2, 4]));
        assert_eq!(inquiry.verdict(&members), Verdict::Fresh);
        // Somebody who goes on naming others ends by itself.
        let mut times = 0;
        for seed in 10..100 {
            times += usize::from(inquiry.ask().contains(&peer(1)));
            inquiry.told(peer(1), &counting([0, seed]));
        }
        assert_eq!(times, usize::from(TIMES) - 2);
    }

    #[test]
    fn a_reader_that_is_not_complete_does_not_count_itself() {
        let row = Row { seen: 1, complete: true, introduced: None };
        let members = Members::new(peer(0), true, Begun::Founding, (1..4).map(|seed| (peer(seed), row)));
        let mut inquiry = Inquiry::new(None, &members, []);
        inquiry.ask();
        inquiry.told(peer(1), &counting([0, 2, 3]));
        assert_eq!(inquiry.verdict(&members), Verdict::Open, "two of four");
        inquiry.told(peer(2), &counting([0, 1, 3]));
        assert_eq!(inquiry.verdict(&members), Verdict::Fresh);
    }

    #[test]
    fn who_has_not_said_whether_it_stores_counts() {
        let members = node(0);
        let mut inquiry = Inquiry::new(None, &members, [peer(1), peer(2)]);
        assert_eq!(inquiry.ask(), sorted([1, 2]));
        assert_eq!(inquiry.verdict(&members), Verdict::Open);
        inquiry.told(peer(1), &Told::default());
        assert_eq!(inquiry.verdict(&members), Verdict::Fresh, "one of two is enough where two witness");
        let mut inquiry = Inquiry::new(None, &members, [peer(1), peer(2)]);
        inquiry.ask();
        [1, 2].into_iter().for_each(|seed| inquiry.failed(peer(seed)));
        assert!(matches!(inquiry.verdict(&members), Verdict::Short { answered: 1, needed: 2, .. }));
    }

    #[test]
    fn a_publisher_answers_for_itself_and_only_for_itself() {
        let members = node(6);
        let others = || counting([0, 2, 3, 4, 5, 6]);
        for (publisher, fresh) in [(Some(1), true), (Some(2), false), (None, false)] {
            let mut inquiry = Inquiry::new(publisher.map(peer), &members, []);
            let first = inquiry.ask()[0];
            assert!(publisher.is_none_or(|publisher| first == peer(publisher)));
            inquiry.told(peer(1), &Told { complete: false, ..others() });
            assert_eq!(inquiry.verdict(&members) == Verdict::Fresh, fresh, "{publisher:?}");
        }
        let mut inquiry = Inquiry::new(Some(peer(1)), &members, []);
        inquiry.ask();
        inquiry.told(peer(1), &Told { complete: false, own: false, ..others() });
        inquiry.told(peer(1), &Told { cut: true, ..others() });
        assert_eq!(inquiry.verdict(&members), Verdict::Open, "one that lost its disk, or not all of an answer");
        // One's own names are known at home.
        assert_eq!(Inquiry::new(Some(peer(0)), &members, []).verdict(&members), Verdict::Fresh);
    }
}
