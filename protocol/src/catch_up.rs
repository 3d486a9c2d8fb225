//! When to catch up with whom: each peer once for each of its connections, a couple when something new came by another
//! way than gossip, and one at random now and then, whatever happened.
//!
//! One session makes two catalogues equal, so one of a pair is enough: the one with the smaller peer id goes first.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{chance::Chance, machine::StateMachine};

/// Sessions that this node runs at once: more would pull the same entries several times over.
const SESSIONS: usize = 4;
/// A peer that newly connected is compared with within this time.
const FIRST: Duration = Duration::from_millis(250);
/// Of a pair, the one with the greater peer id leaves the first word to the other for this long.
const COURTESY: Duration = Duration::from_millis(1500);
/// After a failure the wait starts here and doubles.
const RETRY: Duration = Duration::from_secs(1);
/// A peer that failed so often in a row is left to the safety net.
const ATTEMPTS: u32 = 5;
/// How often one random peer is compared with, whatever happened; a tenth more or less.
const SAFETY_NET: Duration = Duration::from_secs(60);
/// After something new came, so long is waited for more before a couple of peers are told.
const COALESCE: Duration = Duration::from_secs(2);
/// How many peers are told: two of a few make what gossip lost known to all within a few times [`COALESCE`].
const COUPLE: usize = 2;

/// What happened outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Who is connected and speaks the protocol, each with a number that changes when it connects anew; all of them.
    Peers(Vec<(PeerId, u64)>),
    /// Something new is here that gossip may have missed to bring elsewhere.
    Fresh,
    /// Somebody waits for a comparison with this peer.
    Compare(PeerId),
    /// The peer ran a session with this node: the two are equal now.
    Served(PeerId),
    /// A session of [`Output::Open`] came to its end.
    Ended {
        /// With whom.
        peer: PeerId,
        /// It failed in a way that may pass.
        again: bool,
    },
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Run a session with this peer.
    Open(PeerId),
}

/// A connected peer.
#[derive(Debug)]
struct Standing {
    epoch: u64,
    due: Option<Instant>,
    running: bool,
    failures: u32,
    /// A session with it came to its end, one way or the other, since it is connected.
    compared: bool,
}

/// The machine. Its size follows the peers that are connected.
#[derive(Debug)]
pub struct CatchUp {
    local: PeerId,
    chance: Chance,
    peers: BTreeMap<PeerId, Standing>,
    outputs: VecDeque<Output>,
    /// When a couple of peers are told of what is new.
    tell: Option<Instant>,
    /// When a random peer is compared with.
    net: Instant,
}

impl CatchUp {
    /// Nobody is connected yet.
    pub fn new(local: PeerId, mut chance: Chance, now: Instant) -> Self {
        let net = now + chance.around(SAFETY_NET, 0.1);
        Self { local, chance, peers: BTreeMap::new(), outputs: VecDeque::new(), tell: None, net }
    }

    /// Whether each peer that is connected was compared with, or could not be.
    pub fn is_settled(&self) -> bool {
        self.peers.values().all(|standing| standing.compared)
    }

    /// Sessions that run now.
    pub fn running(&self) -> usize {
        self.peers.values().filter(|standing| standing.running).count()
    }

    /// Takes note of who is connected: who is new is due soon, who is gone is forgotten.
    fn see(&mut self, now: Instant, connected: Vec<(PeerId, u64)>) {
        let mut before = std::mem::take(&mut self.peers);
        for (peer, epoch) in connected {
            let known = before.remove(&peer);
            let running = known.as_ref().is_some_and(|standing| standing.running);
            let standing = match known {
                Some(standing) if standing.epoch == epoch => standing,
                _ => {
                    let wait = if self.local < peer { Duration::ZERO } else { COURTESY };
                    let due = Some(now + wait + self.chance.part(FIRST));
                    Standing { epoch, due, running, failures: 0, compared: false }
                }
            };
            self.peers.insert(peer, standing);
        }
    }

    fn ended(&mut self, now: Instant, peer: PeerId, again: bool) {
        let Some(standing) = self.peers.get_mut(&peer) else { return };
        standing.running = false;
        standing.compared = true;
        standing.failures = if again { standing.failures + 1 } else { 0 };
        // A new connection may have made it due already.
        if (1..=ATTEMPTS).contains(&standing.failures) && standing.due.is_none() {
            let wait = RETRY * (1 << (standing.failures - 1));
            standing.due = Some(now + wait + self.chance.part(wait));
        }
    }

    /// Makes up to `count` peers due now.
    fn some(&mut self, now: Instant, count: usize) {
        let mut peers: Vec<_> = self.peers.values_mut().collect();
        for _ in 0..count.min(peers.len()) {
            let standing = peers.swap_remove(self.chance.below(peers.len()));
            standing.due = Some(standing.due.map_or(now, |due| due.min(now)));
        }
    }

    /// Begins what is due, as far as there is room.
    fn advance(&mut self, now: Instant) {
        if self.tell.is_some_and(|at| at <= now) {
            self.tell = None;
            self.some(now, COUPLE);
        }
        if self.net <= now {
            self.net = now + self.chance.around(SAFETY_NET, 0.1);
            self.some(now, 1);
        }
        for _ in self.running()..SESSIONS {
            let due = self.peers.iter_mut().filter(|(_, standing)| !standing.running);
            let first = due.filter(|(_, s)| s.due.is_some_and(|due| due <= now)).min_by_key(|(_, s)| s.due);
            let Some((peer, standing)) = first else { return };
            standing.due = None;
            standing.running = true;
            self.outputs.push_back(Output::Open(*peer));
        }
    }
}

impl StateMachine for CatchUp {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Peers(connected) => self.see(now, connected),
            Input::Fresh => {
                self.tell.get_or_insert(now + COALESCE);
            }
            Input::Compare(peer) => {
                if let Some(standing) = self.peers.get_mut(&peer) {
                    standing.due = Some(standing.due.map_or(now, |due| due.min(now)));
                }
            }
            Input::Served(peer) => {
                if let Some(standing) = self.peers.get_mut(&peer) {
                    standing.due = None;
                    standing.failures = 0;
                    standing.compared = true;
                }
            }
            Input::Ended { peer, again } => self.ended(now, peer, again),
        }
        self.advance(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        // With all sessions taken, the end of one is what is waited for.
        let full = self.running() >= SESSIONS;
        let sessions = self.peers.values().filter(|standing| !standing.running && !full);
        let due = sessions.filter_map(|standing| standing.due).map(|at| (at, "session"));
        let tell = self.tell.map(|at| (at, "news"));
        due.chain(tell).chain([(self.net, "safety net")]).min()
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Peer ids, ascending.
    fn ids<const N: usize>() -> [PeerId; N] {
        let mut ids = std::array::from_fn(|seed| {
            let seed = u8::try_from(seed).expect("few");
            Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id()
        });
        ids.sort();
        ids
    }

    fn machine(local: PeerId) -> (CatchUp, Instant) {
        let now = Instant::now();
        (CatchUp::new(local, Chance::new(1), now), now)
    }

    /// Lets time pass to `end`; who was opened, and when.
    fn until(machine: &mut CatchUp, end: Instant) -> Vec<(Instant, PeerId)> {
        let mut opened = Vec::new();
        let mut now = None;
        loop {
            opened.extend(std::iter::from_fn(|| machine.poll_output()).map(|Output::Open(peer)| (now, peer)));
            match machine.poll_timeout() {
                Some((at, _)) if at <= end => {
                    now = Some(at);
                    machine.handle_timeout(at);
                }
                _ => return opened.into_iter().map(|(at, peer)| (at.unwrap_or(end), peer)).collect(),
            }
        }
    }

    #[test]
    fn each_new_connection_is_compared_once_and_during_a_session_after_it() {
        let [local, peer, other] = ids();
        let (mut machine, now) = machine(local);
        machine.handle(now, Input::Peers(vec![(peer, 1)]));
        assert!(!machine.is_settled());
        let soon = now + FIRST;
        assert_eq!(until(&mut machine, soon).len(), 1);
        machine.handle(soon, Input::Peers(vec![(peer, 2), (other, 1)]));
        let soon = soon + FIRST;
        assert_eq!(until(&mut machine, soon).iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), [other]);
        machine.handle(soon, Input::Ended { peer, again: false });
        assert_eq!(until(&mut machine, soon).iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), [peer]);
        machine.handle(soon, Input::Ended { peer, again: false });
        machine.handle(soon, Input::Ended { peer: other, again: false });
        machine.handle(soon, Input::Peers(vec![(peer, 2), (other, 1)]));
        assert!(until(&mut machine, soon + COURTESY).is_empty() && machine.is_settled());
    }

    #[test]
    fn the_greater_of_a_pair_waits_and_need_not_run() {
        let [peer, local] = ids();
        let (mut machine, now) = machine(local);
        machine.handle(now, Input::Peers(vec![(peer, 1)]));
        assert!(until(&mut machine, now + COURTESY - FIRST).is_empty());
        machine.handle(now + COURTESY - FIRST, Input::Served(peer));
        assert!(until(&mut machine, now + COURTESY + FIRST).is_empty() && machine.is_settled());
    }

    #[test]
    fn failures_are_retried_ever_later_and_then_left_to_the_net() {
        let [local, peer] = ids();
        let (mut machine, now) = machine(local);
        machine.net = now + SAFETY_NET * 10;
        machine.handle(now, Input::Peers(vec![(peer, 1)]));
        let mut tries = Vec::new();
        while let [(at, _)] = until(&mut machine, now + SAFETY_NET * 9)[..] {
            tries.push(at - now);
            machine.handle(at, Input::Ended { peer, again: true });
        }
        assert_eq!(tries.len(), 1 + ATTEMPTS as usize, "{tries:?}");
        assert!(tries.windows(2).skip(1).all(|pair| pair[1] > pair[0]));
        assert_eq!(until(&mut machine, now + SAFETY_NET * 11).len(), 1, "the net");
    }

    #[test]
    fn what_is_new_is_told_to_a_couple_after_a_while() {
        let [local, a, b, c] = ids();
        let (mut machine, now) = machine(local);
        machine.handle(now, Input::Peers(vec![(a, 1), (b, 1), (c, 1)]));
        [a, b, c].into_iter().for_each(|peer| machine.handle(now, Input::Served(peer)));
        machine.handle(now, Input::Fresh);
        machine.handle(now + COALESCE / 2, Input::Fresh);
        let told = until(&mut machine, now + COALESCE * 3);
        assert_eq!(told.iter().map(|(at, _)| *at - now).collect::<Vec<_>>(), [COALESCE; COUPLE]);
    }

    proptest! {
        /// Whatever happens in whatever order: few sessions at once, one a peer, nobody who is gone; the same seed gives
        /// the same run; and with sessions that end, everybody who is connected is compared with.
        #[test]
        fn a_schedule_keeps_its_laws(seed: u64, steps in vec((0..8_usize, 0..3_u64, 0..5_u8, 0..3000_u64), 1..150)) {
            let [local, peers @ ..] = ids::<9>();
            let start = Instant::now();
            let run = || {
                let (mut now, mut machine) = (start, CatchUp::new(local, Chance::new(seed), start));
                let (mut connected, mut open, mut log) = (BTreeMap::new(), Vec::<PeerId>::new(), Vec::new());
                for (at, epoch, what, wait) in &steps {
                    now += Duration::from_millis(*wait);
                    let peer = peers[*at];
                    match what {
                        0 => drop(connected.insert(peer, *epoch)),
                        1 => drop(connected.remove(&peer)),
                        2 => machine.handle(now, Input::Fresh),
                        3 => machine.handle(now, Input::Served(peer)),
                        _ if !open.is_empty() => {
                            let peer = open.swap_remove(at % open.len());
                            machine.handle(now, Input::Ended { peer, again: epoch % 2 == 0 });
                        }
                        _ => {}
                    }
                    machine.handle(now, Input::Peers(connected.iter().map(|(peer, epoch)| (*peer, *epoch)).collect()));
                    machine.handle_timeout(now);
                    for Output::Open(peer) in std::iter::from_fn(|| machine.poll_output()) {
                        assert!(connected.contains_key(&peer), "nobody who is gone");
                        log.push((now, peer));
                        open.push(peer);
                    }
                    assert!(machine.running() <= SESSIONS);
                }
                let end = now + Duration::from_secs(30);
                for peer in open {
                    machine.handle(now, Input::Ended { peer, again: false });
                }
                loop {
                    while let Some(Output::Open(peer)) = machine.poll_output() {
                        machine.handle(now, Input::Ended { peer, again: false });
                    }
                    match machine.poll_timeout() {
                        Some((at, _)) if at <= end => now = now.max(at),
                        _ => break,
                    }
                    machine.handle_timeout(now);
                }
                assert!(machine.is_settled(), "everybody was compared with");
                log
            };
            prop_assert_eq!(run(), run());
        }
    }
}
