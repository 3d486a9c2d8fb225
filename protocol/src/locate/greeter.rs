//! Who is greeted when: each peer on each of its connections, again after a failure, and anew now and then because its
//! free space changes.
//!
//! Both ends of a session hear a greeting, so one session of a pair is enough: the one with the smaller peer id opens it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::machine::StateMachine;

/// Peers greeted at once: a handshake each, on a link that may be slow (a guess).
pub const GREETINGS: usize = 16;
/// A peer that could not be greeted is tried again after this, doubled each time up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// A peer's free space changes, and hardly anything hangs on it: whoever is full says so when it is asked to keep something.
/// It is asked again after so long (a guess), which costs some 600 bytes in all.
const REFRESH: Duration = Duration::from_secs(60 * 60);
/// Of a pair, the one with the greater peer id leaves the first word to the other for this long.
pub(super) const COURTESY: Duration = Duration::from_millis(1500);

/// What happened outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Who is connected and can be greeted, and which of its connections that is; all of them.
    Peers {
        /// The peers, each with a number that changes when it connects anew.
        connected: Vec<(PeerId, u64)>,
        /// The first round of discovery is over.
        discovered: bool,
    },
    /// A peer said what it is.
    Greeted {
        /// The peer.
        peer: PeerId,
        /// The connection of the [`Greet`] that this answers.
        epoch: u64,
    },
    /// A peer said what it is by itself.
    Heard {
        /// The peer.
        peer: PeerId,
        /// The connection that it said it on.
        epoch: u64,
    },
    /// A peer could not be greeted.
    Failed {
        /// The peer.
        peer: PeerId,
        /// As of [`Input::Greeted`].
        epoch: u64,
    },
}

/// What is to be done: greet a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Greet {
    /// The peer.
    pub peer: PeerId,
    /// Its connection.
    pub epoch: u64,
    /// It was greeted on this connection before: what it said then does not do.
    pub anew: bool,
}

/// A peer that is connected.
#[derive(Debug)]
struct Standing {
    epoch: u64,
    /// Whether it was greeted on this connection.
    greeted: bool,
    failures: u32,
    /// When it is to be greeted (again).
    due: Instant,
}

/// The machine. Its size follows the peers that are connected.
#[derive(Debug)]
pub struct Greeter {
    local: PeerId,
    peers: BTreeMap<PeerId, Standing>,
    running: BTreeSet<PeerId>,
    outputs: VecDeque<Greet>,
    discovered: bool,
    settled: bool,
}

impl Greeter {
    /// Nobody is connected yet.
    pub fn new(local: PeerId) -> Self {
        let (peers, running, outputs) = (BTreeMap::new(), BTreeSet::new(), VecDeque::new());
        Self { local, peers, running, outputs, discovered: false, settled: false }
    }

    /// Whether the first round of discovery is over, and everybody that it found was greeted, or could not be.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// How many are connected, and how many of these were greeted.
    pub fn counts(&self) -> (usize, usize) {
        (self.peers.len(), self.peers.values().filter(|standing| standing.greeted).count())
    }

    fn advance(&mut self, now: Instant) {
        // Strangers first: everybody else was counted before.
        let mut due: Vec<_> = self
            .peers
            .iter()
            .filter(|(peer, standing)| standing.due <= now && !self.running.contains(peer))
            .map(|(peer, standing)| (standing.greeted, standing.due, *peer))
            .collect();
        due.sort_unstable();
        let room = GREETINGS.saturating_sub(self.running.len());
        for (anew, _, peer) in due.into_iter().take(room) {
            if let Some(standing) = self.peers.get(&peer) {
                self.running.insert(peer);
                self.outputs.push_back(Greet { peer, epoch: standing.epoch, anew });
            }
        }
        let tried = |standing: &Standing| standing.greeted || standing.failures > 0;
        self.settled |= self.discovered && self.peers.values().all(tried);
    }

    /// What came of a greeting, or came without one.
    fn answered(&mut self, now: Instant, peer: PeerId, epoch: u64, greeted: bool) {
        // Of an older connection: the new one is greeted yet.
        let Some(standing) = self.peers.get_mut(&peer).filter(|standing| standing.epoch == epoch) else { return };
        if greeted {
            standing.greeted = true;
            standing.failures = 0;
            standing.due = now + REFRESH;
        } else {
            standing.failures = standing.failures.saturating_add(1);
            standing.due = now + RETRY.saturating_mul(1 << standing.failures.min(10)).min(RETRY_MOST);
        }
    }
}

impl StateMachine for Greeter {
    type Input = Input;
    type Output = Greet;

    fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Peers { connected, discovered } => {
                self.discovered |= discovered;
                let mut before = std::mem::take(&mut self.peers);
                for (peer, epoch) in connected {
                    let known = before.remove(&peer).filter(|standing| standing.epoch == epoch);
                    let due = now + if self.local < peer { Duration::ZERO } else { COURTESY };
                    let standing = known.unwrap_or(Standing { epoch, greeted: false, failures: 0, due });
                    self.peers.insert(peer, standing);
                }
            }
            Input::Heard { peer, epoch } => self.answered(now, peer, epoch, true),
            Input::Greeted { peer, epoch } => {
                self.running.remove(&peer);
                self.answered(now, peer, epoch, true);
            }
            Input::Failed { peer, epoch } => {
                self.running.remove(&peer);
                self.answered(now, peer, epoch, false);
            }
        }
        self.advance(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        // With all places taken, the end of one greeting is what is waited for.
        if self.running.len() >= GREETINGS {
            return None;
        }
        let waiting = self.peers.iter().filter(|(peer, _)| !self.running.contains(peer));
        waiting.map(|(_, standing)| (standing.due, "greeting")).min()
    }

    fn poll_output(&mut self) -> Option<Greet> {
        self.outputs.pop_front()
    }
}
