//! When which neighbour is compared with.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::LONGEST_AUDIT;
use crate::chance::Chance;

/// An audit that was not answered is over after so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// However short the repair delay, a neighbour is compared with no sooner again, if the first interval is not shorter.
const SOONEST: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Neighbour {
    next: Instant,
    interval: Duration,
}

/// When which neighbour is compared with.
#[derive(Debug)]
pub(super) struct Audits {
    base: Duration,
    /// After something was found.
    soon: Duration,
    neighbours: BTreeMap<PeerId, Neighbour>,
}

impl Audits {
    /// `base`: the first interval; `delay`: the repair delay, within which a peer that was found to lack something is
    /// compared with again, so that it is seen whether it fills up.
    pub(super) fn new(base: Duration, delay: Duration) -> Self {
        let base = base.min(LONGEST_AUDIT);
        Self { base, soon: base.min((delay * 2 / 3).max(SOONEST)), neighbours: BTreeMap::new() }
    }

    /// These are the neighbours now; new ones get a time within the first interval.
    pub(super) fn set(&mut self, now: Instant, peers: &[PeerId], chance: &mut Chance) {
        self.neighbours.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            let base = self.base;
            self.neighbours.entry(*peer).or_insert_with(|| Neighbour { next: now + chance.part(base), interval: base });
        }
    }

    /// Something changed: everybody is compared with within the first interval.
    pub(super) fn reset(&mut self, now: Instant, chance: &mut Chance) {
        for neighbour in self.neighbours.values_mut() {
            neighbour.interval = self.base;
            neighbour.next = neighbour.next.min(now + chance.part(self.base));
        }
    }

    /// Those to compare with now, if they can be asked.
    pub(super) fn due(&mut self, now: Instant, connected: impl Fn(&PeerId) -> bool) -> Vec<PeerId> {
        let mut due = Vec::new();
        for (peer, neighbour) in &mut self.neighbours {
            if neighbour.next > now {
                continue;
            }
            if connected(peer) {
                neighbour.next = now + PATIENCE.max(neighbour.interval);
                due.push(*peer);
            } else {
                neighbour.next = now + neighbour.interval;
            }
        }
        due
    }

    /// It was compared with; `calm`: nothing was found.
    pub(super) fn done(&mut self, now: Instant, peer: &PeerId, calm: bool, chance: &mut Chance) {
        let soon = self.soon;
        if let Some(neighbour) = self.neighbours.get_mut(peer) {
            neighbour.interval = if calm { (neighbour.interval * 2).min(LONGEST_AUDIT) } else { soon };
            neighbour.next = now + chance.around(neighbour.interval, 0.1);
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.neighbours.values().map(|neighbour| neighbour.next).min()
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;

    const BASE: Duration = Duration::from_secs(600);
    const DELAY: Duration = Duration::from_secs(300);

    /// Distinct peers; any 32 bytes are an ed25519 secret key.
    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
    }

    fn about(time: Duration, wanted: Duration) -> bool {
        (wanted.mul_f64(0.9)..=wanted.mul_f64(1.1)).contains(&time)
    }

    #[test]
    fn the_interval_doubles_while_nothing_is_found_and_is_short_after_a_find() {
        let (mut now, mut chance) = (Instant::now(), Chance::new(1));
        let mut audits = Audits::new(BASE, DELAY);
        audits.set(now, &[peer(1)], &mut chance);
        let first = audits.next().expect("a neighbour");
        assert!(first - now < BASE);
        for wanted in [1200, 2400, 4800, 9600, 19_200, 21_600, 21_600] {
            now = audits.next().expect("a neighbour");
            assert_eq!(audits.due(now, |_| true), [peer(1)]);
            assert!(audits.due(now, |_| true).is_empty(), "it was asked");
            audits.done(now, &peer(1), true, &mut chance);
            let wait = audits.next().expect("a neighbour") - now;
            assert!(about(wait, Duration::from_secs(wanted)), "{wait:?} of {wanted} s");
        }
        audits.done(now, &peer(1), false, &mut chance);
        assert!(about(audits.next().expect("a neighbour") - now, DELAY * 2 / 3), "sooner than the repair delay");
        audits.done(now, &peer(1), true, &mut chance);
        audits.reset(now, &mut chance);
        assert!(audits.next().expect("a neighbour") - now < BASE, "something changed");
    }

    #[test]
    fn who_is_away_is_not_asked_and_who_does_not_answer_is_asked_again() {
        let (now, mut chance) = (Instant::now(), Chance::new(1));
        let mut audits = Audits::new(BASE, DELAY);
        audits.set(now, &[peer(1)], &mut chance);
        let at = audits.next().expect("a neighbour");
        assert!(audits.due(at, |_| false).is_empty());
        assert_eq!(audits.next(), Some(at + BASE));
        assert_eq!(audits.due(at + BASE, |_| true), [peer(1)]);
        assert_eq!(audits.next(), Some(at + 2 * BASE), "no answer came");
        audits.set(now, &[peer(2)], &mut chance);
        audits.done(now, &peer(1), true, &mut chance);
        assert_eq!(audits.neighbours.keys().collect::<Vec<_>>(), [&peer(2)]);
        assert_eq!(Audits::new(BASE, Duration::ZERO).soon, SOONEST);
    }
}
