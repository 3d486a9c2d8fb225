//! Who could hold chunks, as this node sees it: the storing peers that are here, or away for not long.
//!
//! A peer that is away for less than the repair delay still counts: a restart moves nothing. Away counts from the last
//! byte that was heard, never from before this node's own start, so that a node that comes back from a power cut does not
//! think itself alone. Are over a third away at once, it is more likely this node that was cut off, and the delay is
//! eight times as long.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::reach::Reach;
use crate::{key::Key, placement::Candidate, ranking::Ranking};

/// How much longer the delay is while over a third of the peers are away.
const CAUTION: u32 = 8;
/// Peers that are remembered; beyond it, of those that are away, who left longest ago goes first.
pub(super) const MOST_PEERS: usize = 8192;

/// What a peer says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Said {
    /// It takes chunks.
    pub storing: bool,
    /// It has no room, with hysteresis.
    pub full: bool,
    /// It is being drained: what it holds is to be had, and not to be counted on.
    pub leaving: bool,
}

#[derive(Clone, Debug)]
struct Peer {
    key: Key,
    said: Said,
    connected: bool,
    /// The last byte; never before this node's start.
    heard: Instant,
    /// In the view without a break since then.
    since: Instant,
    /// It was caught in a lie: nothing that it holds or will hold is counted on until then.
    lied_until: Option<Instant>,
    in_view: bool,
}

/// Who could hold chunks.
#[derive(Debug)]
pub struct View {
    local: Candidate,
    /// Whether this node itself takes chunks.
    storing: bool,
    delay: Duration,
    peers: BTreeMap<PeerId, Peer>,
    ranking: Ranking,
    /// How often that changed.
    changes: u64,
    /// Of this node, among those in view.
    reach: Reach,
    /// Over a third of those in view are away.
    cautious: bool,
    /// When time alone changes something next. With the three beside it, worked out anew when a peer changes.
    next: Option<Instant>,
    /// Some peer is full or was caught in a lie.
    doubtful: bool,
}

impl View {
    /// Nobody but this node.
    pub fn new(local: PeerId, storing: bool, delay: Duration) -> Self {
        let local = Candidate::from(local);
        let ranking = Ranking::new(storing.then_some(local));
        let (peers, reach) = (BTreeMap::new(), Reach::new(local.key, []));
        Self { local, storing, delay, peers, ranking, changes: 0, reach, cautious: false, next: None, doubtful: false }
    }

    /// This node.
    pub fn local(&self) -> PeerId {
        self.local.peer
    }

    /// Something was heard of a peer, or it is known from an earlier run and counts as heard now. What it says of itself
    /// counts from its greeting on.
    pub fn heard(&mut self, now: Instant, peer: PeerId, connected: bool) -> Vec<Key> {
        if let Some(known) = self.peers.get_mut(&peer).filter(|known| known.connected) {
            // The most frequent of all: nothing follows from it.
            known.heard = known.heard.max(now);
            return Vec::new();
        }
        let entry = self.peers.entry(peer).or_insert_with(|| Peer {
            key: Key::from(&peer),
            said: Said { storing: false, full: false, leaving: false },
            connected,
            heard: now,
            since: now,
            lied_until: None,
            in_view: false,
        });
        entry.heard = entry.heard.max(now);
        entry.connected |= connected;
        self.bound();
        self.refresh(now)
    }

    /// What a peer said of itself. Gives the keys of peers that came into the view, left it or count otherwise now.
    pub fn said(&mut self, now: Instant, peer: PeerId, said: Said) -> Vec<Key> {
        let Some(entry) = self.peers.get_mut(&peer).filter(|entry| entry.said != said) else { return Vec::new() };
        let (viewed, key) = (entry.in_view, entry.key);
        entry.said = said;
        let mut changed = self.refresh(now);
        if viewed && !changed.contains(&key) {
            changed.push(key);
        }
        changed
    }

    /// Its last connection ended; the last byte came at `heard`.
    pub fn left(&mut self, now: Instant, peer: &PeerId, heard: Instant) -> Vec<Key> {
        if let Some(entry) = self.peers.get_mut(peer) {
            entry.connected = false;
            entry.heard = entry.heard.max(heard);
        }
        self.refresh(now)
    }

    /// It said that it has what it has not.
    pub fn lied(&mut self, now: Instant, peer: &PeerId, time: Duration) -> Vec<Key> {
        let Some(entry) = self.peers.get_mut(peer) else { return Vec::new() };
        let again = entry.lied_until.replace(now + time).is_some();
        let lied = if again { Vec::new() } else { vec![entry.key] };
        let mut changed = self.refresh(now);
        changed.extend(lied);
        changed
    }

    /// Brings the view up to date with the time; gives the keys of peers that left it or count otherwise. Costs nothing
    /// before [`next`](Self::next).
    pub fn update(&mut self, now: Instant) -> Vec<Key> {
        if self.next.is_none_or(|next| next > now) { Vec::new() } else { self.refresh(now) }
    }

    /// Works everything out anew: O(peers). Gives the keys of peers that came, left or count otherwise.
    fn refresh(&mut self, now: Instant) -> Vec<Key> {
        let delay = self.delay();
        let (mut changed, mut moved) = (Vec::new(), Vec::new());
        for (id, peer) in &mut self.peers {
            let here = peer.connected || now.saturating_duration_since(peer.heard) < delay;
            let in_view = here && peer.said.storing && !peer.said.leaving;
            if in_view && !peer.in_view {
                peer.since = now;
            }
            let forgiven = peer.lied_until.is_some_and(|until| until <= now);
            if forgiven {
                peer.lied_until = None;
            }
            if forgiven || in_view != peer.in_view {
                changed.push(peer.key);
            }
            if in_view != peer.in_view {
                peer.in_view = in_view;
                moved.push((Candidate { peer: *id, key: peer.key }, in_view));
            }
        }
        if !moved.is_empty() {
            self.changes += 1;
            for (candidate, came) in moved {
                if came {
                    self.ranking.insert(candidate);
                } else {
                    self.ranking.remove(&candidate.key);
                }
            }
            self.reach = self.reach_of(self.local.key);
        }
        self.foresee();
        changed
    }

    /// What follows from the peers as they are now.
    fn foresee(&mut self) {
        let viewed = self.peers.values().filter(|peer| peer.in_view);
        let (all, away) = viewed.fold((0, 0), |(all, away), peer| (all + 1, away + usize::from(!peer.connected)));
        self.cautious = away * 3 > all;
        let delay = self.delay();
        let leaves = self.peers.values().filter(|peer| peer.in_view && !peer.connected).map(|peer| peer.heard + delay);
        let forgiven = self.peers.values().filter_map(|peer| peer.lied_until);
        self.next = leaves.chain(forgiven).min();
        self.doubtful = self.peers.values().any(|peer| peer.said.full || peer.lied_until.is_some());
    }

    /// How long a peer may be away now before it does not count any more.
    pub fn delay(&self) -> Duration {
        if self.cautious { self.delay * CAUTION } else { self.delay }
    }

    /// Whether over a third of those in view are away.
    pub fn is_cautious(&self) -> bool {
        self.cautious
    }

    /// When [`update`](Self::update) is due next.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether any peer is full or was caught in a lie of late: if not, nobody has to be asked about.
    pub fn has_doubts(&self) -> bool {
        self.doubtful
    }

    /// Those in view, this node among them if it takes chunks.
    pub fn ranking(&self) -> &Ranking {
        &self.ranking
    }

    /// How often somebody came into the view or left it: the same ranking as long as it is the same number.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many of those in view are nearer to a key than this node.
    pub fn nearer(&self, key: &Key) -> usize {
        self.reach.nearer(key)
    }

    /// Where this node stands among those in view.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Where another peer of the view stands, or would.
    pub fn reach_of(&self, peer: Key) -> Reach {
        let viewed = self.peers.values().filter(|other| other.in_view).map(|other| &other.key);
        Reach::new(peer, viewed.chain(self.storing.then_some(&self.local.key)))
    }

    /// Whether this node takes chunks.
    pub fn is_storing(&self) -> bool {
        self.storing
    }

    /// Whether it can be asked now.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.connected)
    }

    /// Whether it has no room.
    pub fn is_full(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.said.full)
    }

    /// Whether it was caught in a lie of late.
    pub fn is_liar(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.lied_until.is_some())
    }

    /// Since when it is in view without a break; `None`: it is not.
    pub fn since(&self, peer: &PeerId) -> Option<Instant> {
        self.peers.get(peer).filter(|peer| peer.in_view).map(|peer| peer.since)
    }

    /// The storing peers that were heard within `time`, in view or not.
    pub fn seen_within(&self, now: Instant, time: Duration) -> impl Iterator<Item = PeerId> + '_ {
        let recent = move |peer: &Peer| peer.connected || now.saturating_duration_since(peer.heard) < time;
        self.peers.iter().filter(move |(_, peer)| peer.said.storing && recent(peer)).map(|(id, _)| *id)
    }

    /// The peers in view nearest to this node, nearest first.
    pub fn neighbours(&self, count: usize) -> Vec<PeerId> {
        let mut nearest = self.ranking.nearest(&self.local.key, count + 1);
        nearest.retain(|peer| *peer != self.local.peer);
        nearest.truncate(count);
        nearest
    }

    fn bound(&mut self) {
        while self.peers.len() > MOST_PEERS {
            let away = self.peers.iter().filter(|(_, peer)| !peer.connected);
            let Some(oldest) = away.min_by_key(|(_, peer)| peer.heard).map(|(id, _)| *id) else { break };
            if let Some(peer) = self.peers.remove(&oldest).filter(|peer| peer.in_view) {
                self.ranking.remove(&peer.key);
                self.changes += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;

    const DELAY: Duration = Duration::from_secs(100);
    const HERE: Said = Said { storing: true, full: false, leaving: false };

    /// Distinct peers; any 32 bytes are an ed25519 secret key.
    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
    }

    /// Of peer 0, which has met the first so many others.
    fn view(start: Instant, others: u8) -> View {
        let mut view = View::new(peer(0), true, DELAY);
        for other in 1..=others {
            view.heard(start, peer(other), true);
            view.said(start, peer(other), HERE);
        }
        view
    }

    #[test]
    fn who_is_away_counts_for_the_delay_from_the_last_byte() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut view = view(start, 9);
        assert_eq!((view.ranking().len(), view.neighbours(20).len()), (10, 9));
        assert!(view.left(at(30), &peer(1), at(20)).is_empty());
        assert!(view.update(at(119)).is_empty() && view.since(&peer(1)) == Some(start));
        assert_eq!(view.next(), Some(at(120)));
        assert_eq!(view.update(at(120)), [Key::from(&peer(1))]);
        assert_eq!((view.ranking().len(), view.since(&peer(1))), (9, None));
        assert_eq!(view.heard(at(200), peer(1), true), [Key::from(&peer(1))]);
        assert_eq!(view.since(&peer(1)), Some(at(200)), "what it was before does not count");
    }

    #[test]
    fn who_was_there_before_the_start_counts_as_heard_now() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut view = View::new(peer(0), true, DELAY);
        view.heard(start, peer(1), false);
        assert_eq!(view.said(start, peer(1), HERE), [Key::from(&peer(1))]);
        assert!(view.since(&peer(1)).is_some() && !view.is_connected(&peer(1)));
        // It is the only one, so that all are away.
        assert!(view.update(at(799)).is_empty());
        assert_eq!(view.update(at(800)), [Key::from(&peer(1))]);
    }

    #[test]
    fn away_never_counts_from_before_this_node_met_a_peer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut view = view(at(100), 9);
        // A stamp of an earlier run.
        assert!(view.left(at(130), &peer(1), at(20)).is_empty(), "it has been there until now");
        assert!(view.update(at(199)).is_empty());
        assert_eq!(view.update(at(200)), [Key::from(&peer(1))]);
        // Nor from before it was heard last, whatever is said of its end.
        view.heard(at(250), peer(2), true);
        view.left(at(260), &peer(2), at(20));
        assert!(view.update(at(349)).is_empty());
        assert_eq!(view.update(at(350)), [Key::from(&peer(2))]);
    }

    #[test]
    fn peers_that_are_remembered_are_bounded_and_who_left_longest_ago_goes_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut view = view(start, 3);
        view.left(at(1), &peer(2), at(1));
        view.left(at(2), &peer(1), at(2));
        let known = view.peers[&peer(3)].clone();
        for number in 0..MOST_PEERS as u64 - 3 {
            // Any 32 bytes are a SHA-256 hash, and any such hash is a peer's id.
            let id = [[0x12, 32].as_slice(), &[0; 24], &number.to_be_bytes()].concat();
            view.peers.insert(PeerId::from_bytes(&id).expect("a hash"), known.clone());
        }
        assert_eq!(view.peers.len(), MOST_PEERS);
        view.heard(at(3), peer(4), true);
        assert_eq!(view.peers.len(), MOST_PEERS);
        let there = [1, 2, 3, 4].map(|seed| view.peers.contains_key(&peer(seed)));
        assert_eq!(there, [true, false, true, true]);
        assert_ne!(view.ranking().nearest(&Key::from(&peer(2)), 1), [peer(2)]);
    }

    #[test]
    fn with_over_a_third_away_the_delay_is_eight_times_as_long() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut view = view(start, 6);
        view.left(at(0), &peer(1), at(0));
        view.left(at(0), &peer(2), at(0));
        assert!(!view.is_cautious() && view.delay() == DELAY, "a third");
        view.left(at(0), &peer(3), at(0));
        assert!(view.is_cautious() && view.update(at(799)).is_empty());
        view.heard(at(799), peer(1), true);
        assert_eq!(view.next(), Some(at(100)), "no more than a third again: the others have been away for long");
        assert_eq!(view.update(at(799)).len(), 2);
    }

    #[test]
    fn who_stores_nothing_or_leaves_is_not_in_view_and_who_lies_is_known() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut view = view(start, 3);
        assert!(view.said(at(1), peer(1), HERE).is_empty(), "it said so before");
        assert_eq!(view.said(at(1), peer(1), Said { leaving: true, ..HERE }).len(), 1);
        assert_eq!(view.said(at(1), peer(2), Said { storing: false, ..HERE }).len(), 1);
        assert_eq!(view.neighbours(20), [peer(3)]);
        assert!(!view.has_doubts());
        assert_eq!(view.said(at(1), peer(3), Said { full: true, ..HERE }), [Key::from(&peer(3))]);
        assert!(view.is_full(&peer(3)) && view.has_doubts());
        view.said(at(1), peer(3), HERE);
        assert!(!view.has_doubts());
        assert_eq!(view.lied(at(2), &peer(3), DELAY), [Key::from(&peer(3))]);
        assert!(view.is_liar(&peer(3)) && view.has_doubts() && view.update(at(101)).is_empty());
        assert_eq!(view.update(at(102)), [Key::from(&peer(3))]);
        assert!(!view.is_liar(&peer(3)) && !view.has_doubts());
    }

    #[test]
    fn those_in_view_are_ranked_however_they_came_and_went() {
        let start = Instant::now();
        let mut view = view(start, 40);
        for (seconds, other) in (1..=200).zip((1..=40).cycle().step_by(7)) {
            let now = start + Duration::from_secs(seconds);
            if view.is_connected(&peer(other)) {
                view.left(now, &peer(other), start);
            } else {
                view.heard(now, peer(other), true);
            }
            let viewed = (1..=40).map(peer).filter(|peer| view.since(peer).is_some());
            let all: Vec<Candidate> = viewed.chain([peer(0)]).map(Candidate::from).collect();
            assert_eq!(view.ranking(), &Ranking::new(all.iter().copied()));
            assert_eq!(view.reach(), &Reach::new(Key::from(&peer(0)), all.iter().map(|one| &one.key)));
        }
    }

    #[test]
    fn who_left_counts_as_seen_for_a_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut view = view(start, 2);
        view.left(at(10), &peer(1), at(10));
        let seen = |now| view.seen_within(now, Duration::from_secs(1000)).collect::<Vec<_>>().len();
        assert_eq!((seen(at(1009)), seen(at(1010))), (2, 1));
    }
}
