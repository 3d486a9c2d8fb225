//! When what nothing lists may be freed: its grace is over, and whoever could still list it was asked.
//!
//! A row says by itself when its grace ends ([`Row::grace_ends`]). It also has to have been unlisted before the
//! *barrier*: each storing peer seen within [`SEEN_GRACES`] graces has completed a comparison of catalogues that began
//! later, so that this node would know of a publication that lists it on the other side of a partition. Who never
//! compares is waited for no longer than who left. While a manifest cannot be read that may list anything, nothing is
//! freed.
//!
//! No row is kept here: a look at all of them finds which are over, and notes when another look is worth its cost, at
//! the first end of a grace or once what waits for the barrier may have passed it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::{Moment, Row, SEEN_GRACES, View, view::MOST_PEERS};

/// Looks at every row are no closer together than this, or than the grace: each costs seconds of a core for a million.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Where nothing happened meanwhile that could let it be freed: peers that are gone stop to count with time alone.
const LOOK_SELDOM: Duration = Duration::from_secs(600);
/// A peer whose catalogue is to be compared with is asked again after so long, or after the grace.
const COMPARE_AGAIN: Duration = Duration::from_secs(60);
/// The shortest of these, whatever the grace.
const SHORTEST: Duration = Duration::from_secs(1);

/// What is to be done so that something may be freed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// Something may be over: every row is to be looked at.
    Look,
    /// Catalogues are to be compared with these, which are connected.
    Compare(Vec<PeerId>),
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Collection {
    grace: Duration,
    /// When this node started, by the clock of whoever drives it and by its own.
    started: (Instant, Moment),
    /// When the last completed comparison of catalogues with each peer began: of those that began within seven graces,
    /// which is all that counts, and of no more peers than a view has.
    compared: BTreeMap<PeerId, Moment>,
    /// Who was asked for one within [`COMPARE_AGAIN`], and when.
    asked: BTreeMap<PeerId, Instant>,
    /// The first end of a grace among rows that are held.
    grace_ends: Option<Moment>,
    /// The first time of unlisting among rows whose grace is over, and which wait for peers to compare catalogues.
    blocked: Option<Moment>,
    /// When it was last worked out what is to be done.
    looked: Option<Instant>,
    /// Since then a catalogue was compared or a peer came or went, or one is waited for that is here.
    stirred: bool,
    /// Until then nothing is freed: something cannot be read.
    unread: Option<Instant>,
}

impl Collection {
    /// Of a node that starts now, at `moment` of its own clock.
    pub(super) fn new(grace: Duration, now: Instant, moment: Moment) -> Self {
        Self {
            grace,
            started: (now, moment),
            compared: BTreeMap::new(),
            asked: BTreeMap::new(),
            grace_ends: None,
            blocked: None,
            looked: None,
            stirred: false,
            unread: None,
        }
    }

    /// The time of this node's own clock.
    pub(super) fn moment(&self, now: Instant) -> Moment {
        let (started, moment) = self.started;
        Moment(moment.0 + now.saturating_duration_since(started).as_secs())
    }

    /// Peers came, went or count otherwise.
    pub(super) fn stir(&mut self) {
        self.stirred = true;
    }

    /// A comparison of catalogues with a peer was completed, which began then.
    pub(super) fn compared(&mut self, peer: PeerId, begun: Instant) {
        let begun = self.moment(begun);
        let known = self.compared.entry(peer).or_default();
        *known = (*known).max(begun);
        self.stirred = true;
        // An older one says no more than none: nobody is waited for longer than that.
        let longest = (self.grace * SEEN_GRACES).as_secs();
        self.compared.retain(|_, known| known.0.saturating_add(longest) >= begun.0);
        while self.compared.len() > MOST_PEERS
            && let Some(oldest) = self.compared.iter().min_by_key(|(_, known)| **known).map(|(peer, _)| *peer)
        {
            self.compared.remove(&oldest);
        }
    }

    /// Something that is held was unlisted now, or came and nothing lists it.
    pub(super) fn unlisted(&mut self, now: Instant) {
        self.ends(self.moment(now).plus(self.grace));
    }

    /// Something that cannot be read may list anything, until then; `None`: all was read.
    pub(super) fn set_unread(&mut self, until: Option<Instant>) {
        self.unread = until;
        self.stirred = true;
    }

    /// Until when nothing is freed, because something cannot be read.
    pub(super) fn unread(&self) -> Option<Instant> {
        self.unread
    }

    /// What cannot be read does not count any more once its time is over.
    pub(super) fn update(&mut self, now: Instant) {
        if self.unread.is_some_and(|until| until <= now) {
            self.set_unread(None);
        }
    }

    /// What was unlisted before this may be freed once its grace is over; `None`: nothing may, something cannot be read.
    pub(super) fn freeable_before(&self, now: Instant, view: &View) -> Option<Moment> {
        self.unread.is_none().then(|| self.barrier(now, view))
    }

    /// What was unlisted before this is known to every storing peer that could still list it, or was for so long that who
    /// is here and compares no catalogues is waited for no more than who left. Cost: O(peers).
    pub(super) fn barrier(&self, now: Instant, view: &View) -> Moment {
        let longest = self.grace * SEEN_GRACES;
        let seen = view.seen_within(now, longest);
        let known = seen.map(|peer| self.compared.get(&peer).copied().unwrap_or_default()).min();
        known.unwrap_or(Moment(u64::MAX)).max(Moment(self.moment(now).0.saturating_sub(longest.as_secs())))
    }

    /// Whether a row that is held may be freed at `moment`; if not, when to look again is noted.
    pub(super) fn is_over(&mut self, row: &Row, moment: Moment, barrier: Moment) -> bool {
        let (Some(unlisted), Some(ends)) = (row.unlisted(), row.grace_ends(self.grace)) else { return false };
        if ends > moment {
            self.ends(ends);
            return false;
        }
        if unlisted >= barrier || self.unread.is_some() {
            self.stirred |= self.blocked.is_none();
            self.blocked = Some(self.blocked.map_or(unlisted, |first| first.min(unlisted)));
            return false;
        }
        true
    }

    /// What is to be done now, if anything; what `Look` is for is noted anew by the look.
    pub(super) fn due(&mut self, now: Instant, view: &View) -> Option<Due> {
        if self.next().is_none_or(|at| at > now) {
            return None;
        }
        (self.looked, self.stirred) = (Some(now), false);
        let over = self.grace_ends.is_some_and(|ends| ends <= self.moment(now));
        let unblocked =
            self.blocked.is_some_and(|unlisted| unlisted < self.barrier(now, view)) && self.unread.is_none();
        if over || unblocked {
            (self.grace_ends, self.blocked) = (None, None);
            return Some(Due::Look);
        }
        let unlisted = self.blocked?;
        Some(Due::Compare(self.ask(now, unlisted, view)))
    }

    /// Those to compare catalogues with who have not since something was unlisted, and were not asked to just now.
    fn ask(&mut self, now: Instant, unlisted: Moment, view: &View) -> Vec<PeerId> {
        let again = self.within_grace(COMPARE_AGAIN);
        let known = |peer: &PeerId| self.compared.get(peer).is_some_and(|begun| *begun > unlisted);
        let seen = view.seen_within(now, self.grace * SEEN_GRACES);
        let mut waited_for: Vec<PeerId> = seen.filter(|peer| !known(peer) && view.is_connected(peer)).collect();
        self.stirred |= !waited_for.is_empty();
        self.asked.retain(|_, at| now.saturating_duration_since(*at) < again);
        waited_for.retain(|peer| !self.asked.contains_key(peer));
        self.asked.extend(waited_for.iter().map(|peer| (*peer, now)));
        waited_for
    }

    /// When [`due`](Self::due) has something next.
    pub(super) fn next(&self) -> Option<Instant> {
        let (started, first) = self.started;
        let ends = self.grace_ends.map(|ends| started + Duration::from_secs(ends.0.saturating_sub(first.0)));
        let after = |wait: Duration| self.looked.map_or(started, |at| at + wait);
        let again = self.within_grace(LOOK_AGAIN);
        let blocked = self.blocked.map(|_| after(if self.stirred { again } else { LOOK_SELDOM }));
        let ends = ends.map(|ends| ends.max(after(again)));
        ends.into_iter().chain(blocked).min()
    }

    /// A grace of something that is held ends then.
    fn ends(&mut self, ends: Moment) {
        self.grace_ends = Some(self.grace_ends.map_or(ends, |first| first.min(ends)));
    }

    /// A wait that makes a short grace no longer.
    fn within_grace(&self, wait: Duration) -> Duration {
        wait.min(self.grace.max(SHORTEST))
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;
    use crate::{Cid, Codec, duty::Said, manifest::Entry};

    const GRACE: Duration = Duration::from_secs(1000);
    const SECOND: Duration = Duration::from_secs(1);
    /// The node's own clock at its start.
    const FIRST: Moment = Moment(50_000);

    /// Distinct peers; any 32 bytes are an ed25519 secret key.
    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
    }

    /// Of a node that has met two storing peers, and one that stores nothing.
    fn node(start: Instant) -> (Collection, View) {
        let mut view = View::new(peer(0), true, GRACE);
        for (other, storing) in [(1, true), (2, true), (3, false)] {
            view.heard(start, peer(other), true);
            view.said(start, peer(other), Said { storing, full: false, leaving: false });
        }
        (Collection::new(GRACE, start, FIRST), view)
    }

    fn row(unlisted: Moment) -> Row {
        Row::new(Entry { cid: Cid::of(Codec::Raw, b"a chunk"), length: 1 }, unlisted)
    }

    /// Whether a row that was unlisted then may be freed now.
    fn is_over(collection: &mut Collection, now: Instant, view: &View, unlisted: Moment) -> bool {
        let (moment, barrier) = (collection.moment(now), collection.barrier(now, view));
        collection.is_over(&row(unlisted), moment, barrier)
    }

    #[test]
    fn the_barrier_is_the_oldest_of_the_last_comparisons_and_never_older_than_seven_graces() {
        let start = Instant::now();
        let at = |seconds| start + SECOND * seconds;
        let (mut collection, mut view) = node(start);
        let barrier = |collection: &Collection, seconds, view: &View| collection.barrier(at(seconds), view).0;
        assert_eq!(barrier(&collection, 100, &view), FIRST.0 + 100 - 7000, "nobody compared");
        collection.compared(peer(1), at(90));
        assert_eq!(barrier(&collection, 100, &view), FIRST.0 + 100 - 7000, "not all did");
        collection.compared(peer(2), at(70));
        assert_eq!(barrier(&collection, 100, &view), FIRST.0 + 70);
        // They may end in another order than they began in.
        collection.compared(peer(1), at(60));
        collection.compared(peer(2), at(95));
        assert_eq!(barrier(&collection, 100, &view), FIRST.0 + 90);
        // Who left counts for seven graces from its last byte, and then not at all.
        view.left(at(100), &peer(1), at(100));
        assert_eq!(barrier(&collection, 7099, &view), FIRST.0 + 99, "it has not compared for longer than that");
        assert_eq!(barrier(&collection, 7094, &view), FIRST.0 + 94);
        collection.compared(peer(2), at(7050));
        assert_eq!(barrier(&collection, 7099, &view), FIRST.0 + 99);
        assert_eq!(barrier(&collection, 7100, &view), FIRST.0 + 7050);
        view.left(at(7100), &peer(2), at(7100));
        assert_eq!(collection.barrier(at(14_100), &view), Moment(u64::MAX), "there is nobody");
    }

    #[test]
    fn a_row_is_over_after_its_grace_below_the_barrier_and_while_all_can_be_read() {
        let start = Instant::now();
        let (mut collection, view) = node(start);
        let now = start + 2 * GRACE;
        [1, 2].into_iter().for_each(|other| collection.compared(peer(other), start + GRACE / 2));
        let below = Moment(FIRST.0 + 499);
        assert!(is_over(&mut collection, now, &view, below));
        assert!(!is_over(&mut collection, now, &view, Moment(FIRST.0 + 500)), "as it was compared");
        assert!(!is_over(&mut collection, start + GRACE, &view, below), "the grace runs");
        assert_eq!(collection.freeable_before(now, &view), Some(Moment(FIRST.0 + 500)));
        collection.set_unread(Some(now + SECOND));
        assert!(!is_over(&mut collection, now, &view, below) && collection.freeable_before(now, &view).is_none());
        collection.update(now);
        assert_eq!(collection.unread(), Some(now + SECOND));
        collection.update(now + SECOND);
        assert!(is_over(&mut collection, now + SECOND, &view, below));
    }

    #[test]
    fn it_looks_when_a_grace_ends_and_again_once_all_that_it_waits_for_have_compared() {
        let start = Instant::now();
        let (mut collection, view) = node(start);
        assert!(collection.next().is_none() && collection.due(start, &view).is_none());
        collection.unlisted(start);
        let now = start + GRACE;
        assert_eq!(collection.next(), Some(now));
        assert_eq!(collection.due(now, &view), Some(Due::Look));
        assert!(!is_over(&mut collection, now, &view, FIRST), "the barrier");
        // It was not waited for before: soon. Those that are here and store are asked, once in a while.
        let now = now + LOOK_AGAIN;
        assert_eq!(collection.next(), Some(now));
        assert_eq!(collection.due(now, &view), Some(Due::Compare(vec_sorted([1, 2]))));
        collection.compared(peer(1), now);
        assert_eq!(collection.due(now + LOOK_AGAIN, &view), Some(Due::Compare(vec![])), "the other was asked just now");
        assert_eq!(collection.due(now + COMPARE_AGAIN, &view), Some(Due::Compare(vec![peer(2)])));
        collection.compared(peer(2), now + COMPARE_AGAIN);
        assert_eq!(collection.due(now + COMPARE_AGAIN + LOOK_AGAIN, &view), Some(Due::Look));
        assert!(is_over(&mut collection, now + COMPARE_AGAIN + LOOK_AGAIN, &view, FIRST));
        assert!(collection.next().is_none(), "nothing waits any more");
    }

    #[test]
    fn who_is_gone_is_waited_for_without_many_looks() {
        let start = Instant::now();
        let (mut collection, mut view) = node(start);
        [1, 2].into_iter().for_each(|other| drop(view.left(start, &peer(other), start)));
        collection.unlisted(start);
        let mut now = start + GRACE;
        let mut looks = 0;
        loop {
            if collection.due(now, &view) == Some(Due::Look) {
                looks += 1;
                if is_over(&mut collection, now, &view, FIRST) {
                    break;
                }
            }
            now = collection.next().expect("it waits");
        }
        assert_eq!(looks, 2, "at the end of the grace, and when nobody counts any more");
        assert!(now >= start + 7 * GRACE && now < start + 7 * GRACE + LOOK_SELDOM + SECOND, "{:?}", now - start);
    }

    /// A peer that nobody else is; any 32 bytes are a SHA-256 hash, and any such hash is a peer's id.
    fn passer_by(number: u64) -> PeerId {
        PeerId::from_bytes(&[[0x12, 32].as_slice(), &[0; 24], &number.to_be_bytes()].concat()).expect("a hash")
    }

    #[test]
    fn only_those_of_the_last_seven_graces_are_remembered_and_what_follows_is_the_same() {
        let start = Instant::now();
        let (mut collection, mut view) = node(start);
        // Of everybody, for ever.
        let (mut all, mut asked) = (BTreeMap::new(), 0);
        for number in 0..200_u32 {
            let now = start + GRACE / 10 * number;
            let other = passer_by(number.into());
            view.heard(now, other, true);
            view.said(now, other, Said { storing: true, full: false, leaving: false });
            collection.compared(other, now);
            all.insert(other, collection.moment(now));
            view.left(now, &other, now);
            // The two that stay have not compared, and are asked.
            asked += collection.ask(now, collection.moment(now), &view).len();
            let seen: Vec<PeerId> = view.seen_within(now, GRACE * SEEN_GRACES).collect();
            assert!(collection.compared.len() <= seen.len() + 1, "{} of {}", collection.compared.len(), seen.len());
            let longest = Moment(collection.moment(now).0.saturating_sub(7000));
            let slowest = seen.iter().map(|peer| all.get(peer).copied().unwrap_or_default()).min();
            assert_eq!(collection.barrier(now, &view), slowest.unwrap_or_default().max(longest));
        }
        assert!(collection.compared.len() >= 70, "{}", collection.compared.len());
        assert_eq!((asked, collection.asked.len()), (400, 2));
        // Those that were asked and left are not remembered.
        let now = start + GRACE * 20;
        [1, 2].into_iter().for_each(|other| drop(view.left(now, &peer(other), now)));
        assert!(collection.ask(now, collection.moment(now), &view).is_empty() && collection.asked.is_empty());
    }

    #[test]
    fn however_many_compare_at_once_no_more_are_remembered_than_a_view_has() {
        let start = Instant::now();
        let (mut collection, _) = node(start);
        for number in 0..MOST_PEERS as u64 + 10 {
            collection.compared(passer_by(number), start + SECOND * (number / 100) as u32);
        }
        assert_eq!(collection.compared.len(), MOST_PEERS);
        let last = passer_by(MOST_PEERS as u64 + 9);
        assert!(collection.compared.contains_key(&last) && !collection.compared.contains_key(&passer_by(0)));
    }

    fn vec_sorted<const N: usize>(seeds: [u8; N]) -> Vec<PeerId> {
        let mut peers = seeds.map(peer).to_vec();
        peers.sort_unstable();
        peers
    }
}
