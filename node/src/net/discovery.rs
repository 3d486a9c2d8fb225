//! Finding peers and staying with them: whom to dial next, and when the first look around is over.
//!
//! A small network is a full mesh: every known peer is connected, so that placement needs no lookup. In a larger one
//! the nearest are. All of it is decisions: time comes in, [`Intent`]s go out, and the driver does the dialling.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use p2p_protocol::Key;

use super::{Source, Tuning, address};

/// Peers that are known at once, connected or not: several times what is ever connected (a guess).
const MAX_KNOWN: usize = 2048;
/// Peers of other networks that are remembered, so that they are left alone.
const MAX_FOREIGN: usize = 1024;
/// How long they are left alone.
const FOREIGN_FOR: Duration = Duration::from_secs(10 * 60);
/// Dials of discovery at once: a burst of a small network's size, with eight sockets each at the most.
const MAX_ATTEMPTS: usize = 16;
/// How long a peer is dialled again after it was last seen or named.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// The longest wait between attempts at a peer that never answered.
const STRANGER_MOST: Duration = Duration::from_secs(10 * 60);
/// Of two nodes that find each other at once, the one with the greater id waits this long: one connection is enough.
const POLITENESS: Duration = Duration::from_millis(300);
/// Failures in a row after which a peer is taken out of the routing table.
pub(super) const FAILURES_UNROUTED: u32 = 3;
/// Random places that are looked at beside the own one, so that a small network is soon known whole.
const RANDOM_TARGETS: usize = 3;
/// Waits between looks around: soon while there is news, rarely when there is none.
const LOOKS: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(5 * 60)];

/// What the driver is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Intent {
    /// Dial a peer.
    Peer { peer: PeerId, addresses: Vec<Multiaddr> },
    /// Dial the bootstrap address of this number, whose peer is not known.
    Bootstrap { index: usize, address: Multiaddr },
    /// Look around in the DHT near each of these.
    Look { targets: Vec<Vec<u8>> },
}

/// What an attempt was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attempt {
    Peer(PeerId),
    Bootstrap(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle,
    Dialling,
    Connected,
}

#[derive(Debug)]
struct Known {
    addresses: Vec<Multiaddr>,
    source: Source,
    state: State,
    /// When it was last connected.
    seen: Option<Instant>,
    /// When somebody last named it.
    named: Instant,
    failures: u32,
    next: Instant,
    /// It was reached, or not, at least once.
    tried: bool,
}

#[derive(Debug)]
struct Bootstrap {
    address: Multiaddr,
    peer: Option<PeerId>,
    /// The user said which peer it is, so that no other will do.
    pinned: bool,
    dialling: bool,
    failures: u32,
    next: Instant,
    tried: bool,
    /// It is this node's own address, or nobody's that could be dialled.
    useless: bool,
}

/// Who is known, and what is tried.
pub(super) struct Discovery {
    local: PeerId,
    tuning: Tuning,
    known: HashMap<PeerId, Known>,
    bootstraps: Vec<Bootstrap>,
    attempts: HashMap<ConnectionId, Attempt>,
    foreign: HashMap<PeerId, Instant>,
    started: Instant,
    mdns: bool,
    looking: usize,
    looked: bool,
    look_step: usize,
    next_look: Option<Instant>,
    discovered: bool,
}

impl Discovery {
    /// Starts with what the settings and an earlier run know.
    pub fn new(
        local: PeerId,
        bootstrap: &[Multiaddr],
        known: &[(PeerId, Vec<Multiaddr>)],
        mdns: bool,
        tuning: Tuning,
        now: Instant,
    ) -> Self {
        let mut discovery = Self {
            local,
            tuning,
            known: HashMap::new(),
            bootstraps: Vec::new(),
            attempts: HashMap::new(),
            foreign: HashMap::new(),
            started: now,
            mdns,
            looking: 0,
            looked: false,
            look_step: 0,
            next_look: None,
            discovered: false,
        };
        for given in bootstrap {
            let (address, peer) = address::split_peer(given);
            discovery.bootstraps.push(Bootstrap {
                address,
                peer,
                pinned: peer.is_some(),
                dialling: false,
                failures: 0,
                next: now,
                tried: false,
                useless: peer == Some(local),
            });
        }
        for (peer, addresses) in known.iter().take(MAX_KNOWN) {
            discovery.learn(*peer, addresses.clone(), Source::Bootstrap, now);
        }
        discovery
    }

    /// Somebody named a peer and its addresses. True if it was not known.
    pub fn learn(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, source: Source, now: Instant) -> bool {
        if peer == self.local || self.is_foreign(&peer, now) {
            return false;
        }
        let addresses = address::usable(addresses, true);
        let next = now + self.politeness(&peer);
        if let Some(known) = self.known.get_mut(&peer) {
            known.named = now;
            let before = known.addresses.len();
            let merged = addresses.into_iter().chain(std::mem::take(&mut known.addresses));
            known.addresses = address::usable(merged, true);
            if known.source == Source::Incoming {
                known.source = source;
            }
            // Multicast means that it is there now; a new address is a new chance.
            if known.state == State::Idle && (source == Source::Mdns || known.addresses.len() > before) {
                known.next = known.next.min(next);
            }
            return false;
        }
        if addresses.is_empty() || (self.known.len() >= MAX_KNOWN && !self.make_room()) {
            return false;
        }
        let known =
            Known { addresses, source, state: State::Idle, seen: None, named: now, failures: 0, next, tried: false };
        self.known.insert(peer, known);
        true
    }

    fn politeness(&self, peer: &PeerId) -> Duration {
        if self.local > *peer { POLITENESS } else { Duration::ZERO }
    }

    fn make_room(&mut self) -> bool {
        let stale = self
            .known
            .iter()
            .filter(|(_, known)| known.state == State::Idle)
            .min_by_key(|(_, known)| (known.seen, known.named))
            .map(|(peer, _)| *peer);
        stale.is_some_and(|peer| self.known.remove(&peer).is_some())
    }

    fn is_foreign(&self, peer: &PeerId, now: Instant) -> bool {
        self.foreign.get(peer).is_some_and(|until| *until > now)
    }

    /// How a peer was found, if it is known.
    pub fn source(&self, peer: &PeerId) -> Option<Source> {
        let bootstrap = self.bootstraps.iter().any(|b| b.peer == Some(*peer)).then_some(Source::Bootstrap);
        bootstrap.or_else(|| self.known.get(peer).map(|known| known.source))
    }

    /// Where a peer can be dialled.
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let mut addresses: Vec<_> =
            self.bootstraps.iter().filter(|b| b.peer == Some(*peer)).map(|b| b.address.clone()).collect();
        addresses.extend(self.known.get(peer).into_iter().flat_map(|known| known.addresses.iter().cloned()));
        address::usable(addresses, true)
    }

    /// How many peers are known, connected or not.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// What to do now. Each dial must be reported by [`Self::on_dialling`] or [`Self::on_not_dialled`].
    pub fn intents(&mut self, now: Instant) -> Vec<Intent> {
        let mut intents = Vec::new();
        let mut room = MAX_ATTEMPTS.saturating_sub(self.attempts.len());
        for index in 0..self.bootstraps.len() {
            let bootstrap = &self.bootstraps[index];
            let there = bootstrap.peer.and_then(|peer| self.known.get(&peer)).map(|known| known.state);
            let wanted = !bootstrap.useless && !bootstrap.dialling && bootstrap.next <= now && room > 0;
            if !wanted || matches!(there, Some(State::Connected | State::Dialling)) {
                continue;
            }
            room -= 1;
            let address = bootstrap.address.clone();
            intents.push(match bootstrap.peer {
                Some(peer) => Intent::Peer { peer, addresses: self.addresses(&peer) },
                None => Intent::Bootstrap { index, address },
            });
        }
        let mut due: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| known.state == State::Idle && known.next <= now && !known.addresses.is_empty())
            .map(|(peer, _)| *peer)
            .filter(|peer| !intents.iter().any(|i| matches!(i, Intent::Peer { peer: p, .. } if p == peer)))
            .collect();
        if self.known.len() > self.tuning.full_mesh && !due.is_empty() {
            let nearest = self.nearest();
            due.retain(|peer| nearest.contains(peer));
        }
        for peer in due.into_iter().take(room) {
            intents.push(Intent::Peer { peer, addresses: self.addresses(&peer) });
        }
        if self.looking == 0 && self.next_look.is_some_and(|at| at <= now) {
            self.next_look = Some(now + LOOKS[self.look_step.min(LOOKS.len() - 1)]);
            self.look_step += 1;
            let mut targets = vec![self.local.to_bytes()];
            targets.extend((0..RANDOM_TARGETS).map(|_| rand::random::<[u8; 32]>().to_vec()));
            self.looking = targets.len();
            intents.push(Intent::Look { targets });
        }
        intents
    }

    /// Of more peers than are connected at once, those that are.
    fn nearest(&self) -> HashSet<PeerId> {
        let own = Key::from(&self.local);
        let mut ranked: Vec<_> = self.known.keys().map(|peer| (Key::from(peer).distance(&own), *peer)).collect();
        ranked.sort_unstable();
        ranked.into_iter().take(self.tuning.full_mesh).map(|(_, peer)| peer).collect()
    }

    /// A dial is under way.
    pub fn on_dialling(&mut self, intent: &Intent, attempt: ConnectionId) {
        match intent {
            Intent::Peer { peer, .. } => {
                self.attempts.insert(attempt, Attempt::Peer(*peer));
                if let Some(known) = self.known.get_mut(peer) {
                    known.state = State::Dialling;
                }
                self.bootstraps.iter_mut().filter(|b| b.peer == Some(*peer)).for_each(|b| b.dialling = true);
            }
            Intent::Bootstrap { index, .. } => {
                self.attempts.insert(attempt, Attempt::Bootstrap(*index));
                self.bootstraps[*index].dialling = true;
            }
            Intent::Look { .. } => {}
        }
    }

    /// A dial could not even begin. `busy`: only because the peer is being dialled already.
    pub fn on_not_dialled(&mut self, intent: &Intent, busy: bool, now: Instant) {
        match intent {
            Intent::Peer { peer, .. } if busy => {
                let soon = now + Duration::from_secs(1);
                self.known.get_mut(peer).into_iter().for_each(|known| known.next = soon);
                self.bootstraps.iter_mut().filter(|b| b.peer == Some(*peer)).for_each(|b| b.next = soon);
            }
            Intent::Peer { peer, .. } => {
                self.fail(*peer, now);
            }
            Intent::Bootstrap { index, .. } => self.fail_bootstrap(*index, now),
            Intent::Look { .. } => {}
        }
    }

    /// A dial brought a connection to `peer`.
    pub fn on_established(&mut self, attempt: ConnectionId, peer: PeerId) {
        if let Some(Attempt::Bootstrap(index)) = self.attempts.remove(&attempt) {
            let bootstrap = &mut self.bootstraps[index];
            bootstrap.peer = Some(peer);
            bootstrap.dialling = true;
        }
    }

    /// A dial failed. The peer's count of failures in a row, if it was for one.
    pub fn on_failed(&mut self, attempt: ConnectionId, own_address: bool, now: Instant) -> Option<(PeerId, u32)> {
        match self.attempts.remove(&attempt)? {
            Attempt::Peer(peer) => Some((peer, self.fail(peer, now))),
            Attempt::Bootstrap(index) => {
                self.bootstraps[index].useless |= own_address;
                self.fail_bootstrap(index, now);
                None
            }
        }
    }

    /// Another peer answered at an address: it is not this peer's any more.
    pub fn on_wrong_address(&mut self, peer: &PeerId, address: &Multiaddr) {
        let address = address::bare(address);
        if let Some(known) = self.known.get_mut(peer) {
            known.addresses.retain(|a| *a != address);
        }
        // A bootstrap peer that got a new identity is still the one that was meant, unless the user said which.
        for bootstrap in self.bootstraps.iter_mut().filter(|b| b.peer == Some(*peer) && b.address == address) {
            tracing::warn!(%address, %peer, "another peer answers at this bootstrap address");
            if !bootstrap.pinned {
                bootstrap.peer = None;
            }
        }
    }

    fn fail(&mut self, peer: PeerId, now: Instant) -> u32 {
        for index in 0..self.bootstraps.len() {
            if self.bootstraps[index].peer == Some(peer) {
                self.fail_bootstrap(index, now);
            }
        }
        let Some(known) = self.known.get_mut(&peer) else { return 0 };
        if known.state == State::Connected {
            return 0;
        }
        known.state = State::Idle;
        known.tried = true;
        known.failures = known.failures.saturating_add(1);
        let most = if known.seen.is_some() { self.tuning.redial_most } else { STRANGER_MOST };
        known.next = now + backoff(self.tuning.redial_least, most, known.failures);
        known.failures
    }

    fn fail_bootstrap(&mut self, index: usize, now: Instant) {
        let bootstrap = &mut self.bootstraps[index];
        bootstrap.dialling = false;
        bootstrap.tried = true;
        bootstrap.failures = bootstrap.failures.saturating_add(1);
        bootstrap.next = now + backoff(self.tuning.redial_least, self.tuning.redial_most, bootstrap.failures);
    }

    /// A peer of this network is connected, and these are its addresses.
    pub fn on_connected(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, source: Source, now: Instant) {
        let fresh = self.known.get(&peer).is_none_or(|known| known.seen.is_none());
        self.foreign.remove(&peer);
        self.learn(peer, addresses, source, now);
        if let Some(known) = self.known.get_mut(&peer) {
            known.state = State::Connected;
            known.seen = Some(now);
            known.tried = true;
            known.failures = 0;
        }
        for bootstrap in self.bootstraps.iter_mut().filter(|b| b.peer == Some(peer)) {
            bootstrap.dialling = false;
            bootstrap.tried = true;
            bootstrap.failures = 0;
        }
        if fresh {
            // News: look around soon, at once the first time.
            self.look_step = 0;
            let soon = now + if self.looked { LOOKS[0] } else { Duration::ZERO };
            self.next_look = Some(self.next_look.map_or(soon, |at| at.min(soon)));
        }
    }

    /// The last connection of a peer is gone.
    pub fn on_lost(&mut self, peer: PeerId, now: Instant) {
        let politeness = self.politeness(&peer);
        match self.known.get_mut(&peer) {
            Some(known) if known.state == State::Connected => {
                known.state = State::Idle;
                known.seen = Some(now);
                known.next = now + self.tuning.redial_least + politeness;
                for bootstrap in self.bootstraps.iter_mut().filter(|b| b.peer == Some(peer)) {
                    bootstrap.next = now + self.tuning.redial_least;
                }
            }
            _ => {
                self.fail(peer, now);
            }
        }
    }

    /// A peer is of another network: forgotten, and left alone for a while. One that the user named is tried again.
    pub fn on_foreign(&mut self, peer: PeerId, now: Instant) {
        self.known.remove(&peer);
        if self.foreign.len() >= MAX_FOREIGN {
            self.foreign.clear();
        }
        self.foreign.insert(peer, now + FOREIGN_FOR);
        for index in 0..self.bootstraps.len() {
            if self.bootstraps[index].peer == Some(peer) {
                tracing::warn!(address = %self.bootstraps[index].address, "a node of another network answers there");
                self.fail_bootstrap(index, now);
            }
        }
    }

    /// Forgets a peer (it is refused from now on).
    pub fn forget(&mut self, peer: &PeerId) {
        self.known.remove(peer);
    }

    /// A look around is over.
    pub fn on_looked(&mut self) {
        self.looking = self.looking.saturating_sub(1);
        if self.looking == 0 {
            self.looked = true;
        }
    }

    /// Time passes: old peers are forgotten, and the first round ends.
    pub fn tick(&mut self, now: Instant) {
        self.known.retain(|_, known| {
            let last = known.seen.map_or(known.named, |seen| seen.max(known.named));
            known.state != State::Idle || now.duration_since(last) < REMEMBERED
        });
        self.foreign.retain(|_, until| *until > now);
        self.discovered = self.discovered || self.first_round_is_over(now);
    }

    /// Whether the first round is over.
    pub fn discovered(&self) -> bool {
        self.discovered
    }

    fn first_round_is_over(&self, now: Instant) -> bool {
        let since = now.duration_since(self.started);
        if since >= self.tuning.first_round {
            return true;
        }
        let heard = !self.mdns || since >= self.tuning.mdns_first;
        let bootstraps = self.bootstraps.iter().all(|bootstrap| bootstrap.tried || bootstrap.useless);
        let nearest = (self.known.len() > self.tuning.full_mesh).then(|| self.nearest());
        let wanted = |peer: &PeerId| nearest.as_ref().is_none_or(|nearest| nearest.contains(peer));
        let known = self.known.iter().all(|(peer, known)| known.tried || !wanted(peer));
        let alone = self.known.values().all(|known| known.state != State::Connected);
        heard && bootstraps && known && (alone || self.looked)
    }
}

/// The wait after so many failures in a row: doubling, with some of it random so that nodes do not act in step.
fn backoff(least: Duration, most: Duration, failures: u32) -> Duration {
    let wait = least.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(most);
    wait.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
#[path = "discovery_tests.rs"]
mod tests;
