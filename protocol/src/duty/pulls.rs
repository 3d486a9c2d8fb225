//! What is missing here: found out who has it, then fetched, fewest copies first, at a bounded pace.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::{ASK_KEYS, Span};
use crate::{chance::Chance, key::Key, manifest::Entry};

/// Missing chunks in hand: while there are so many, the sweep waits. Under 2 MiB.
const MOST_MISSING: usize = 4096;
/// Pulls under way: enough to keep a link busy beside what users do.
const MOST_PULLS: usize = 8;
/// Their bytes.
const MOST_BYTES: u64 = 16 << 20;
/// After a pull that failed; it doubles to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct Missing {
    entry: Entry,
    copies: u8,
    pinned: bool,
    /// Answers that are still to come.
    open: usize,
    has: Vec<PeerId>,
    tries: u32,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Asking,
    Ready,
    Pulling,
    /// It failed; again from then on.
    Waiting(Instant),
    /// Its row is being looked at again.
    Again,
}

/// What a peer answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) peer: PeerId,
    /// On what it was asked, and whether it has it; `None`: it did not say.
    pub(super) said: Vec<(Key, Option<bool>)>,
    /// The chunks that are waiting for no answer any more.
    pub(super) answered: Vec<Answered>,
}

/// A chunk all of whose answers are in.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) key: Key,
    pub(super) copies: u8,
    /// It is this node's to hold, whoever else has it.
    pub(super) pinned: bool,
}

/// What is missing here.
#[derive(Debug)]
pub(super) struct Pulls {
    missing: BTreeMap<Key, Missing>,
    ready: BTreeSet<(usize, Key)>,
    waiting: BTreeSet<(Instant, Key)>,
    /// Keys that each peer is to be asked about.
    to_ask: BTreeMap<PeerId, Vec<Key>>,
    asked: BTreeMap<u64, (PeerId, Vec<Key>)>,
    busy: BTreeSet<PeerId>,
    pulling: usize,
    bytes: u64,
    bytes_per_second: u64,
    /// The pace allows the next pull from then on.
    paced: Instant,
}

impl Pulls {
    pub(super) fn new(now: Instant, bytes_per_second: u64) -> Self {
        Self {
            missing: BTreeMap::new(),
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            to_ask: BTreeMap::new(),
            asked: BTreeMap::new(),
            busy: BTreeSet::new(),
            pulling: 0,
            bytes: 0,
            bytes_per_second: bytes_per_second.max(1),
            paced: now,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.missing.len() < MOST_MISSING
    }

    pub(super) fn len(&self) -> usize {
        self.missing.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.pulling
    }

    /// A chunk is missing, of which so many copies are wanted, or which is pinned here; `members` may have it and can be
    /// asked. Nothing happens if it is known already.
    pub(super) fn add(&mut self, key: Key, entry: Entry, (copies, pinned): (u8, bool), members: &[PeerId]) {
        let tries = match self.missing.get(&key) {
            None => 0,
            Some(known) if known.stage == Stage::Again => known.tries,
            Some(_) => return,
        };
        for peer in members {
            self.to_ask.entry(*peer).or_default().push(key);
        }
        let open = members.len();
        let stage = Stage::Asking;
        self.missing.insert(key, Missing { entry, copies, pinned, open, has: Vec::new(), tries, stage });
        if open == 0 {
            self.ready(key);
        }
    }

    /// It is here, or not this node's any more.
    pub(super) fn remove(&mut self, key: &Key) {
        // What is being fetched is counted until it ends.
        if self.missing.get(key).is_some_and(|missing| missing.stage != Stage::Pulling)
            && let Some(missing) = self.missing.remove(key)
        {
            self.ready.remove(&(missing.has.len(), *key));
            if let Stage::Waiting(until) = missing.stage {
                self.waiting.remove(&(until, *key));
            }
        }
    }

    /// Nothing is wanted for now; what is being fetched comes all the same.
    pub(super) fn clear(&mut self) {
        self.missing.retain(|_, missing| missing.stage == Stage::Pulling);
        self.ready.clear();
        self.waiting.clear();
        self.to_ask.clear();
    }

    /// The next question, if there is one.
    pub(super) fn ask(&mut self, request: u64) -> Option<(PeerId, Vec<Entry>)> {
        let peer = *self.to_ask.keys().find(|peer| !self.busy.contains(peer))?;
        let mut keys = self.to_ask.remove(&peer)?;
        if keys.len() > ASK_KEYS {
            self.to_ask.insert(peer, keys.split_off(ASK_KEYS));
        }
        keys.retain(|key| self.missing.get(key).is_some_and(|missing| missing.stage == Stage::Asking));
        let entries: Vec<_> = keys.iter().filter_map(|key| self.missing.get(key)).map(|one| one.entry).collect();
        if entries.is_empty() {
            return self.ask(request);
        }
        self.busy.insert(peer);
        self.asked.insert(request, (peer, keys));
        Some((peer, entries))
    }

    /// An answer came, or none, to something that was asked.
    pub(super) fn answer(&mut self, request: u64, has: Option<&[bool]>) -> Option<Answer> {
        let (peer, keys) = self.asked.remove(&request)?;
        self.busy.remove(&peer);
        let mut said = Vec::with_capacity(keys.len());
        let mut answered = Vec::new();
        for (at, key) in keys.into_iter().enumerate() {
            let has = has.map(|has| has.get(at).copied().unwrap_or(false));
            said.push((key, has));
            let Some(missing) = self.missing.get_mut(&key).filter(|missing| missing.stage == Stage::Asking) else {
                continue;
            };
            if has == Some(true) {
                missing.has.push(peer);
            }
            missing.open = missing.open.saturating_sub(1);
            if missing.open == 0 {
                answered.push(Answered { key, copies: missing.copies, pinned: missing.pinned });
            }
        }
        Some(Answer { peer, said, answered })
    }

    /// All that could be asked about it was.
    pub(super) fn ready(&mut self, key: Key) {
        if let Some(missing) = self.missing.get_mut(&key) {
            missing.stage = Stage::Ready;
            self.ready.insert((missing.has.len(), key));
        }
    }

    /// The next to be fetched now, and from whom.
    pub(super) fn pull(&mut self, now: Instant) -> Option<(Entry, Vec<PeerId>)> {
        if self.pulling >= MOST_PULLS || self.bytes >= MOST_BYTES || self.paced > now {
            return None;
        }
        let (_, key) = self.ready.pop_first()?;
        let missing = self.missing.get_mut(&key)?;
        missing.stage = Stage::Pulling;
        let length = u64::from(missing.entry.length);
        self.pulling += 1;
        self.bytes += length;
        let pace = Duration::from_secs_f64(length as f64 / self.bytes_per_second as f64);
        self.paced = self.paced.max(now) + pace;
        Some((missing.entry, missing.has.clone()))
    }

    /// A pull ended, well or not.
    pub(super) fn pulled(&mut self, now: Instant, key: &Key, kept: bool, chance: &mut Chance) {
        let Some(missing) = self.missing.get_mut(key).filter(|missing| missing.stage == Stage::Pulling) else { return };
        self.pulling -= 1;
        self.bytes -= u64::from(missing.entry.length);
        if kept {
            self.missing.remove(key);
            return;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << missing.tries.min(16)).min(LONGEST_WAIT);
        missing.tries += 1;
        let until = now + chance.around(wait, 0.2);
        missing.stage = Stage::Waiting(until);
        self.waiting.insert((until, *key));
    }

    /// Somebody came who may have what is missing: what failed is tried again now.
    pub(super) fn hurry(&mut self, now: Instant) {
        for (_, key) in std::mem::take(&mut self.waiting) {
            if let Some(missing) = self.missing.get_mut(&key) {
                missing.stage = Stage::Waiting(now);
                self.waiting.insert((now, key));
            }
        }
    }

    /// The chunks that are to be tried again: their rows are to be looked at.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Key> {
        let mut due = Vec::new();
        while let Some(&(until, key)) = self.waiting.first()
            && until <= now
        {
            self.waiting.pop_first();
            if let Some(missing) = self.missing.get_mut(&key) {
                missing.stage = Stage::Again;
                due.push(key);
            }
        }
        due
    }

    /// The rows of a part of the keyspace were looked at: what was to be tried again and was not added has no row now.
    pub(super) fn settle(&mut self, span: &Span) {
        self.missing.retain(|key, missing| missing.stage != Stage::Again || !span.contains(key));
    }

    /// When there is something to do again without an answer.
    pub(super) fn next(&self) -> Option<Instant> {
        let waiting = self.waiting.first().map(|(until, _)| *until);
        let free = self.pulling < MOST_PULLS && self.bytes < MOST_BYTES && !self.ready.is_empty();
        waiting.into_iter().chain(free.then_some(self.paced)).min()
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

    fn chunk(number: u32, length: u32) -> (Key, Entry) {
        let entry = Entry { cid: Cid::of(Codec::Raw, &number.to_be_bytes()), length };
        (entry.key(), entry)
    }

    /// Has all questions answered; `has` tells for each peer and chunk.
    fn answer(pulls: &mut Pulls, has: impl Fn(&PeerId, &Entry) -> bool) {
        while let Some((peer, entries)) = pulls.ask(1) {
            let has: Vec<bool> = entries.iter().map(|entry| has(&peer, entry)).collect();
            let answer = pulls.answer(1, Some(&has)).expect("it was asked");
            answer.answered.into_iter().for_each(|one| pulls.ready(one.key));
        }
    }

    #[test]
    fn the_fewest_copies_come_first_from_those_that_said_so() {
        let now = Instant::now();
        let mut pulls = Pulls::new(now, u64::MAX);
        let chunks = [chunk(1, 10), chunk(2, 10), chunk(3, 10)];
        for (key, entry) in chunks {
            pulls.add(key, entry, (3, false), &[peer(1), peer(2)]);
        }
        // All have the first, one the second, and nobody the third.
        answer(&mut pulls, |who, entry| *entry == chunks[0].1 || (*entry == chunks[1].1 && *who == peer(2)));
        assert_eq!(pulls.pull(now), Some((chunks[2].1, vec![])));
        assert_eq!(pulls.pull(now), Some((chunks[1].1, vec![peer(2)])));
        let (entry, from) = pulls.pull(now).expect("the third");
        assert_eq!((entry, from.len()), (chunks[0].1, 2));
        assert_eq!((pulls.pull(now), pulls.in_flight()), (None, 3));
    }

    #[test]
    fn a_peer_has_one_question_at_a_time_and_each_chunk_stands_in_one() {
        let mut pulls = Pulls::new(Instant::now(), u64::MAX);
        let (first, second) = (chunk(1, 10), chunk(2, 10));
        pulls.add(first.0, first.1, (3, false), &[peer(1)]);
        assert_eq!(pulls.ask(1), Some((peer(1), vec![first.1])));
        pulls.add(first.0, first.1, (3, false), &[peer(1)]);
        pulls.add(second.0, second.1, (3, false), &[peer(1)]);
        assert_eq!(pulls.ask(2), None, "the first is not answered");
        let Answer { peer: who, said, answered } = pulls.answer(1, None).expect("it was asked");
        assert_eq!((who, said, answered.len()), (peer(1), vec![(first.0, None)], 1));
        assert_eq!(pulls.ask(2), Some((peer(1), vec![second.1])));
        assert!(pulls.answer(1, Some(&[true])).is_none(), "answered already");
        for number in 10..10 + 2000 {
            let (key, entry) = chunk(number, 10);
            pulls.add(key, entry, (3, false), &[peer(2)]);
        }
        assert_eq!(pulls.ask(3).map(|(_, entries)| entries.len()), Some(ASK_KEYS));
    }

    #[test]
    fn what_failed_is_tried_again_later_and_later_or_when_somebody_comes() {
        let (start, mut chance) = (Instant::now(), Chance::new(1));
        let (mut now, mut pulls, (key, entry)) = (start, Pulls::new(start, u64::MAX), chunk(1, 10));
        let mut waits = Vec::new();
        for _ in 0..10 {
            pulls.add(key, entry, (3, false), &[]);
            assert!(pulls.pull(now).is_some() && pulls.next().is_none());
            pulls.pulled(now, &key, false, &mut chance);
            let again = pulls.next().expect("it waits");
            assert!(pulls.due(now).is_empty());
            waits.push((again - now).as_secs_f64());
            now = again;
            assert_eq!(pulls.due(now), [key]);
        }
        assert!((24.0..=36.0).contains(&waits[0]) && (2880.0..=4320.0).contains(&waits[9]), "{waits:?}");
        pulls.add(key, entry, (3, false), &[]);
        assert!(pulls.pull(now).is_some());
        pulls.pulled(now, &key, false, &mut chance);
        pulls.hurry(now);
        assert_eq!(pulls.due(now), [key]);
        pulls.settle(&Span::of(key));
        assert_eq!((pulls.len(), pulls.next()), (0, None), "its row is gone");
    }

    #[test]
    fn the_pace_and_what_is_in_flight_are_bounded() {
        let now = Instant::now();
        let mut pulls = Pulls::new(now, 1 << 20);
        for number in 0..MOST_MISSING as u32 {
            let (key, entry) = chunk(number, 1 << 20);
            pulls.add(key, entry, (3, false), &[]);
        }
        assert!(!pulls.has_room() && pulls.pull(now).is_some());
        assert_eq!((pulls.pull(now), pulls.next()), (None, Some(now + Duration::from_secs(1))), "a MiB a second");
        let later = now + Duration::from_secs(60);
        let mut fast = Pulls::new(now, u64::MAX);
        for number in 0..20 {
            let (key, entry) = chunk(number, if number < 10 { 1 } else { 9 << 20 });
            fast.add(key, entry, (3, false), &[]);
        }
        let mut started = Vec::new();
        while let Some((entry, _)) = fast.pull(later) {
            started.push(u64::from(entry.length));
        }
        let bytes: u64 = started.iter().sum();
        assert!(started.len() <= MOST_PULLS && bytes < MOST_BYTES + (9 << 20), "{started:?}");
    }

    #[test]
    fn what_is_not_wanted_any_more_is_dropped_and_what_is_being_fetched_counts_until_it_ends() {
        let (now, mut chance) = (Instant::now(), Chance::new(1));
        let mut pulls = Pulls::new(now, u64::MAX);
        let (first, second) = (chunk(1, 10), chunk(2, 10));
        pulls.add(first.0, first.1, (3, false), &[]);
        assert!(pulls.pull(now).is_some());
        pulls.add(second.0, second.1, (3, false), &[]);
        pulls.remove(&first.0);
        pulls.remove(&second.0);
        assert_eq!((pulls.len(), pulls.in_flight(), pulls.pull(now)), (1, 1, None));
        pulls.clear();
        pulls.pulled(now, &first.0, true, &mut chance);
        assert_eq!((pulls.len(), pulls.in_flight()), (0, 0));
    }
}
