//! When to catch up with whom: pure, so that time and chance come in as arguments.

use std::{collections::BTreeMap, time::Duration};

use libp2p::PeerId;
use tokio::time::Instant;

/// A peer that newly connected is compared with within this time.
const FIRST: Duration = Duration::from_millis(250);
/// Of a pair, the one with the greater peer id leaves the first word to the other for this long.
const COURTESY: Duration = Duration::from_millis(1500);
/// After a failure the wait starts here and doubles.
const RETRY: Duration = Duration::from_secs(1);
/// A peer that failed so often in a row is left to the safety net.
const ATTEMPTS: u32 = 5;

/// How a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// There is no reason to try again.
    Done,
    /// It failed in a way that may pass.
    Failed,
}

/// The connected peers and what is due. Bounded by the peer table.
#[derive(Debug)]
pub(super) struct Schedule {
    local: PeerId,
    peers: BTreeMap<PeerId, Standing>,
}

#[derive(Debug)]
struct Standing {
    epoch: u64,
    due: Option<Instant>,
    running: bool,
    failures: u32,
}

impl Schedule {
    pub(super) fn new(local: PeerId) -> Self {
        Self { local, peers: BTreeMap::new() }
    }

    /// Takes note of who is connected (with the epoch): who is new is due soon, who is gone is forgotten.
    pub(super) fn see(&mut self, now: Instant, connected: &[(PeerId, u64)], jitter: impl Fn(Duration) -> Duration) {
        let before = std::mem::take(&mut self.peers);
        let mut before: BTreeMap<_, _> = before.into_iter().collect();
        for &(peer, epoch) in connected {
            let known = before.remove(&peer);
            let running = known.as_ref().is_some_and(|standing| standing.running);
            let standing = match known {
                Some(standing) if standing.epoch == epoch => standing,
                _ => {
                    let wait = if self.local < peer { Duration::ZERO } else { COURTESY };
                    Standing { epoch, due: Some(now + wait + jitter(FIRST)), running, failures: 0 }
                }
            };
            self.peers.insert(peer, standing);
        }
    }

    /// The next peer that is due, marked as running.
    pub(super) fn next(&mut self, now: Instant) -> Option<PeerId> {
        let (peer, standing) = self
            .peers
            .iter_mut()
            .filter(|(_, standing)| !standing.running && standing.due.is_some_and(|due| due <= now))
            .min_by_key(|(_, standing)| standing.due)?;
        standing.due = None;
        standing.running = true;
        Some(*peer)
    }

    /// When the next is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.peers.values().filter(|standing| !standing.running).filter_map(|standing| standing.due).min()
    }

    /// A session that [`next`](Self::next) gave came to its end.
    pub(super) fn ended(&mut self, now: Instant, peer: PeerId, ended: Ended, jitter: impl Fn(Duration) -> Duration) {
        let Some(standing) = self.peers.get_mut(&peer) else { return };
        standing.running = false;
        standing.failures = match ended {
            Ended::Done => 0,
            Ended::Failed => standing.failures + 1,
        };
        // A new connection may have made it due already.
        if (1..=ATTEMPTS).contains(&standing.failures) && standing.due.is_none() {
            let wait = RETRY * (1 << (standing.failures - 1));
            standing.due = Some(now + wait + jitter(wait));
        }
    }

    /// The peer ran a session with this node: the two are equal now.
    pub(super) fn served(&mut self, peer: PeerId) {
        if let Some(standing) = self.peers.get_mut(&peer) {
            standing.due = None;
            standing.failures = 0;
        }
    }

    /// Makes up to `count` peers due now, chosen by `pick`, which gives an index below its argument.
    pub(super) fn some(&mut self, now: Instant, count: usize, pick: impl Fn(usize) -> usize) {
        let mut peers: Vec<_> = self.peers.values_mut().collect();
        for _ in 0..count.min(peers.len()) {
            let index = pick(peers.len()).min(peers.len() - 1);
            let standing = peers.swap_remove(index);
            standing.due = Some(standing.due.map_or(now, |due| due.min(now)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: Duration) -> Duration {
        Duration::ZERO
    }

    /// Three peer ids, ascending.
    fn three() -> [PeerId; 3] {
        let mut peers = [PeerId::random(), PeerId::random(), PeerId::random()];
        peers.sort();
        peers
    }

    #[test]
    fn each_new_connection_is_compared_once() {
        let [local, peer, other] = three();
        let now = Instant::now();
        let mut schedule = Schedule::new(local);
        schedule.see(now, &[(peer, 1)], none);
        assert_eq!(schedule.next(now), Some(peer));
        assert_eq!(schedule.next(now), None);
        schedule.ended(now, peer, Ended::Done, none);
        schedule.see(now, &[(peer, 1)], none);
        assert_eq!(schedule.due(), None);
        schedule.see(now, &[(peer, 2), (other, 1)], none);
        assert!(schedule.next(now).is_some() && schedule.next(now).is_some() && schedule.next(now).is_none());
    }

    #[test]
    fn a_reconnection_during_a_session_is_compared_after_it() {
        let [local, peer, _] = three();
        let now = Instant::now();
        let mut schedule = Schedule::new(local);
        schedule.see(now, &[(peer, 1)], none);
        assert_eq!(schedule.next(now), Some(peer));
        schedule.see(now, &[(peer, 2)], none);
        assert_eq!((schedule.next(now), schedule.due()), (None, None));
        schedule.ended(now, peer, Ended::Failed, none);
        assert_eq!(schedule.next(now), Some(peer));
    }

    #[test]
    fn the_greater_of_a_pair_waits_and_need_not_run() {
        let [peer, local, _] = three();
        let now = Instant::now();
        let mut schedule = Schedule::new(local);
        schedule.see(now, &[(peer, 1)], none);
        assert_eq!(schedule.next(now), None);
        assert_eq!(schedule.due(), Some(now + COURTESY));
        schedule.served(peer);
        assert_eq!(schedule.due(), None);
    }

    #[test]
    fn failures_are_retried_ever_later_and_then_left() {
        let [local, peer, _] = three();
        let mut now = Instant::now();
        let mut schedule = Schedule::new(local);
        schedule.see(now, &[(peer, 1)], none);
        for failure in 0..ATTEMPTS {
            assert_eq!(schedule.next(now), Some(peer));
            schedule.ended(now, peer, Ended::Failed, none);
            assert_eq!(schedule.due(), Some(now + RETRY * (1 << failure)));
            now += RETRY * (1 << failure);
        }
        assert_eq!(schedule.next(now), Some(peer));
        schedule.ended(now, peer, Ended::Failed, none);
        assert_eq!(schedule.due(), None);
        schedule.some(now, 2, |_| 0);
        assert_eq!(schedule.next(now), Some(peer));
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let [local, peer, _] = three();
        let now = Instant::now();
        let mut schedule = Schedule::new(local);
        schedule.see(now, &[(peer, 1)], none);
        schedule.see(now, &[], none);
        assert_eq!(schedule.next(now), None);
        schedule.some(now, 2, |_| 0);
        assert_eq!(schedule.due(), None);
        schedule.ended(now, peer, Ended::Failed, none);
        assert_eq!(schedule.due(), None);
    }
}
