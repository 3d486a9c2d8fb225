//! Finding peers and staying with them: whom to dial next, and when the first look around is over.
//!
//! A small network is a full mesh: every known peer is connected, so that placement needs no lookup. In a larger one
//! the nearest are. Addresses (`A`) are opaque: whoever drives the machine hands in only those that can be dialled.
//! Of what is due, what was due first is dialled first, so that nothing waits for ever.

mod event;
mod peers;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use self::peers::{Known, LeftAlone, Peers};
pub use self::{
    event::{AttemptId, Failure, Input, Output, Settings, Source},
    peers::{MAX_ADDRESSES, MAX_KNOWN},
};
use crate::{PeerId, chance::Chance, key::Key, machine::StateMachine};

/// Peers of other networks that are remembered, so that they are left alone.
const MAX_FOREIGN: usize = 1024;
/// How long they are left alone.
const FOREIGN_FOR: Duration = Duration::from_secs(10 * 60);
/// Peers that broke the rules and are remembered: more are a flood that this cannot stop anyway (a guess).
const MAX_BANNED: usize = 4096;
/// Attempts at once: a burst of a small network's size, with eight sockets each at the most.
pub const MAX_ATTEMPTS: usize = 16;
/// The longest wait between attempts at a peer that never answered.
const STRANGER_MOST: Duration = Duration::from_secs(10 * 60);
/// How much of a wait between attempts is chance, more or less, so that nodes do not act in step.
const SPREAD: f64 = 0.2;
/// Of two nodes that find each other at once, the one with the greater id waits this long: one connection is enough.
const POLITENESS: Duration = Duration::from_millis(300);
/// The wait before a peer is tried again that somebody else is dialling already.
const BUSY: Duration = Duration::from_secs(1);
/// So many times [`Settings::redial_least`] is the first wait for a peer that was there and does not answer when it is dialled
/// again: it is switched off or starts, and then dials whom it remembers. To dial it in that very moment would make two
/// connections, which cost twice.
const ABSENT: u32 = 5;
/// Failures in a row after which a peer is taken out of the routing table: one that is away must not slow the lookups
/// of the others.
const FAILURES_UNROUTED: u32 = 3;
/// Places that are looked at beside the own one, one in each quarter of the keyspace, so that a small network is soon
/// known whole: a lookup names twenty peers, and a quarter of [`Settings::full_mesh`] peers are fewer as a rule.
const QUARTERS: usize = 4;
/// Up to so many known peers a look at the own place is enough: it names as many.
const ONE_LOOKUP: usize = 16;
/// Waits between looks around: soon while there is news, rarely when there is none, since whoever comes looks for the
/// others. A lookup asks each of the peers that it names, which costs some 50 KB in a network of fifty.
const LOOKS: [Duration; 7] = [
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 60 * 60),
    Duration::from_secs(6 * 60 * 60),
];
/// The step of [`LOOKS`] from which a look is at one place only, the own one and the quarters in turn. A node that finds most
/// of the peers that it remembers begins with it.
const AT_REST: usize = 3;

/// Whom an attempt is to reach: a peer, or whoever is at the bootstrap address of this number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Target {
    Bootstrap(usize),
    Peer(PeerId),
}

/// An address that the user named.
#[derive(Clone, Debug)]
struct Bootstrap<A> {
    address: A,
    peer: Option<PeerId>,
    /// The user said which peer it is, so that no other will do.
    pinned: bool,
    failures: u32,
    next: Instant,
    tried: bool,
    /// It is this node's own address.
    useless: bool,
}

/// Who is known, and what is tried.
#[derive(Clone, Debug)]
pub struct Discovery<A> {
    local: PeerId,
    settings: Settings,
    chance: Chance,
    known: Peers<A>,
    bootstraps: Vec<Bootstrap<A>>,
    attempts: BTreeMap<AttemptId, Target>,
    next_attempt: AttemptId,
    /// Peers with a connection that did not say yet what they are, or that are banned and will be cut off: not more
    /// than there are connections.
    greeting: BTreeSet<PeerId>,
    foreign: LeftAlone,
    banned: LeftAlone,
    started: Instant,
    /// Lookups of a look around that are not over.
    looking: usize,
    looked: bool,
    /// Peers of an earlier run that are still to be tried before it is decided whether to look around at all.
    remembers: bool,
    look_step: usize,
    next_look: Option<Instant>,
    discovered: bool,
    due: Option<(Instant, &'static str)>,
    outputs: VecDeque<Output<A>>,
}

impl<A: Clone + Eq> Discovery<A> {
    /// Starts with what the settings and an earlier run know: bootstrap addresses, with the peer where the user named
    /// it, and peers with their addresses.
    pub fn new(
        local: PeerId,
        bootstrap: Vec<(A, Option<PeerId>)>,
        known: Vec<(PeerId, Vec<A>)>,
        settings: Settings,
        chance: Chance,
        now: Instant,
    ) -> Self {
        let bootstraps = bootstrap.into_iter().map(|(address, peer)| Bootstrap {
            address,
            peer,
            pinned: peer.is_some(),
            failures: 0,
            next: now,
            tried: false,
            useless: peer == Some(local),
        });
        let mut discovery = Self {
            local,
            settings,
            chance,
            known: Peers::new(&local),
            bootstraps: bootstraps.collect(),
            attempts: BTreeMap::new(),
            next_attempt: 0,
            greeting: BTreeSet::new(),
            foreign: LeftAlone::new(MAX_FOREIGN),
            banned: LeftAlone::new(MAX_BANNED),
            started: now,
            looking: 0,
            looked: false,
            remembers: !known.is_empty(),
            look_step: 0,
            next_look: None,
            discovered: false,
            due: None,
            outputs: VecDeque::new(),
        };
        for (peer, addresses) in known.into_iter().take(MAX_KNOWN) {
            discovery.learn(peer, addresses, Source::Bootstrap, now);
        }
        discovery.decide(now);
        discovery
    }

    /// Whether the first round is over: bootstrap addresses and known peers were tried, multicast had its time, and
    /// the peers that were reached have been asked for others.
    pub fn discovered(&self) -> bool {
        self.discovered
    }

    /// How many peers are known, connected or not: at most [`MAX_KNOWN`].
    pub fn known(&self) -> usize {
        self.known.len()
    }

    /// How a peer was found, if it is known.
    pub fn source(&self, peer: &PeerId) -> Option<Source> {
        let bootstrap = self.bootstraps(peer).next().map(|_| Source::Bootstrap);
        bootstrap.or_else(|| self.known.get(peer).map(|known| known.source))
    }

    /// The bootstrap addresses of a peer.
    pub fn bootstraps(&self, peer: &PeerId) -> impl Iterator<Item = &A> {
        let peer = Some(*peer);
        self.bootstraps.iter().filter(move |bootstrap| bootstrap.peer == peer).map(|bootstrap| &bootstrap.address)
    }

    /// Where a peer can be dialled: at most [`MAX_ADDRESSES`].
    pub fn addresses(&self, peer: &PeerId) -> Vec<A> {
        let known = self.known.get(peer).into_iter().flat_map(|known| &known.addresses);
        distinct(self.bootstraps(peer).chain(known).cloned())
    }

    fn learn(&mut self, peer: PeerId, addresses: Vec<A>, source: Source, now: Instant) {
        if peer == self.local || self.foreign.contains(&peer) || self.banned.contains(&peer) {
            return;
        }
        let next = now + self.politeness(&peer);
        if let Some(known) = self.known.get_mut(&peer) {
            known.named = now;
            let before = known.addresses.len();
            known.addresses = distinct(addresses.into_iter().chain(std::mem::take(&mut known.addresses)));
            if known.source == Source::Incoming {
                known.source = source;
            }
            // Multicast means that it is there now; a new address is a new chance.
            if source == Source::Mdns || known.addresses.len() > before {
                known.next = known.next.min(next);
            }
        } else if !addresses.is_empty() {
            self.insert(peer, addresses, source, next, now);
        }
    }

    fn insert(&mut self, peer: PeerId, addresses: Vec<A>, source: Source, next: Instant, now: Instant) {
        self.known.insert(Known {
            peer,
            addresses: distinct(addresses),
            source,
            connected: false,
            seen: None,
            named: now,
            failures: 0,
            next,
            tried: false,
        });
    }

    fn politeness(&self, peer: &PeerId) -> Duration {
        if self.local > *peer { POLITENESS } else { Duration::ZERO }
    }

    fn established(&mut self, attempt: AttemptId, peer: PeerId) {
        let Some(target) = self.attempts.remove(&attempt) else { return };
        let connected = self.is_connected(&peer);
        if let Target::Bootstrap(index) = target {
            let bootstrap = &mut self.bootstraps[index];
            bootstrap.peer = Some(peer);
            if connected {
                // It is what it is known to be, and will not say so again.
                bootstrap.tried = true;
                bootstrap.failures = 0;
            }
        }
        if !connected {
            self.greeting.insert(peer);
        }
    }

    fn failed(&mut self, attempt: AttemptId, why: Failure, now: Instant) {
        let Some(target) = self.attempts.remove(&attempt) else { return };
        match (target, why) {
            (Target::Peer(peer), Failure::Busy) => {
                let soon = now + BUSY;
                self.known.get_mut(&peer).into_iter().for_each(|known| known.next = soon);
                self.bootstraps.iter_mut().filter(|b| b.peer == Some(peer)).for_each(|b| b.next = soon);
            }
            (Target::Peer(peer), _) => {
                let failures = self.fail(peer, now);
                if failures >= FAILURES_UNROUTED && why != Failure::Refused {
                    self.outputs.push_back(Output::Unroute { peer });
                }
            }
            (Target::Bootstrap(index), _) => {
                self.bootstraps[index].useless |= why == Failure::OwnAddress;
                self.fail_bootstrap(index, now);
            }
        }
    }

    /// Counts a failure to reach a peer that is not connected; how many in a row.
    fn fail(&mut self, peer: PeerId, now: Instant) -> u32 {
        for index in 0..self.bootstraps.len() {
            if self.bootstraps[index].peer == Some(peer) {
                self.fail_bootstrap(index, now);
            }
        }
        let Some(known) = self.known.get_mut(&peer).filter(|known| !known.connected) else { return 0 };
        known.tried = true;
        known.failures = known.failures.saturating_add(1);
        let (least, most) = match known.seen {
            Some(_) => (self.settings.redial_least * ABSENT, self.settings.redial_most),
            None => (self.settings.redial_least, STRANGER_MOST),
        };
        let (failures, next) = (known.failures, now + backoff(least, most, known.failures, &mut self.chance));
        known.next = next;
        if known.seen.is_some() {
            let own = self.bootstraps.iter_mut().filter(|bootstrap| bootstrap.peer == Some(peer));
            own.for_each(|bootstrap| bootstrap.next = next);
        }
        failures
    }

    fn fail_bootstrap(&mut self, index: usize, now: Instant) {
        let bootstrap = &mut self.bootstraps[index];
        bootstrap.tried = true;
        bootstrap.failures = bootstrap.failures.saturating_add(1);
        let most = self.settings.redial_most;
        bootstrap.next = now + backoff(self.settings.redial_least, most, bootstrap.failures, &mut self.chance);
    }

    fn wrong_address(&mut self, peer: &PeerId, address: &A) {
        if let Some(known) = self.known.get_mut(peer) {
            known.addresses.retain(|known| known != address);
        }
        // A bootstrap peer that got a new identity is still the one that was meant, unless the user said which.
        for bootstrap in self.bootstraps.iter_mut().filter(|b| b.peer == Some(*peer) && b.address == *address) {
            if !bootstrap.pinned {
                bootstrap.peer = None;
            }
        }
    }

    fn connected(&mut self, peer: PeerId, addresses: Vec<A>, source: Source, now: Instant) {
        self.greeting.remove(&peer);
        if peer == self.local || self.banned.contains(&peer) {
            return;
        }
        self.foreign.remove(&peer);
        self.learn(peer, addresses, source, now);
        if self.known.get(&peer).is_none() {
            // Nobody can dial it, but it is there, and must not be dialled through its bootstrap address.
            self.insert(peer, Vec::new(), source, now, now);
        }
        let mut news = false;
        if let Some(known) = self.known.get_mut(&peer) {
            // Who was remembered is no news, and who came by itself looks for the others.
            news = known.seen.is_none() && matches!(known.source, Source::Mdns | Source::Kademlia | Source::Manual);
            known.connected = true;
            known.seen = Some(now);
            known.tried = true;
            known.failures = 0;
        }
        for bootstrap in self.bootstraps.iter_mut().filter(|b| b.peer == Some(peer)) {
            bootstrap.tried = true;
            bootstrap.failures = 0;
        }
        if news {
            self.look_step = 0;
        }
        if news || self.next_look.is_none() {
            // At once the first time.
            let soon = now + if self.looked { LOOKS[0] } else { Duration::ZERO };
            self.next_look = Some(self.next_look.map_or(soon, |at| at.min(soon)));
        }
    }

    fn lost(&mut self, peer: PeerId, now: Instant) {
        self.greeting.remove(&peer);
        let next = now + self.settings.redial_least;
        let politeness = self.politeness(&peer);
        let Some(known) = self.known.get_mut(&peer).filter(|known| known.connected) else {
            self.fail(peer, now);
            return;
        };
        known.connected = false;
        known.seen = Some(now);
        known.next = next + politeness;
        self.bootstraps.iter_mut().filter(|b| b.peer == Some(peer)).for_each(|b| b.next = next);
    }

    fn leave_alone(&mut self, peer: PeerId, now: Instant) {
        self.greeting.remove(&peer);
        self.known.remove(&peer);
        self.foreign.add(peer, FOREIGN_FOR, now);
        for index in 0..self.bootstraps.len() {
            if self.bootstraps[index].peer == Some(peer) {
                self.fail_bootstrap(index, now);
            }
        }
    }

    /// Does what is due, and finds out what is due next and when.
    fn decide(&mut self, now: Instant) {
        self.known.forget_old(now);
        self.foreign.expire(now);
        self.banned.expire(now);
        self.dial(now);
        self.recognise(now);
        self.look_around(now);
        self.discovered = self.discovered || self.first_round_is_over(now);
        self.due = self.next_due(now);
    }

    fn dial(&mut self, now: Instant) {
        let mut due: Vec<_> = self.targets().filter(|(at, _)| *at <= now).collect();
        due.sort_unstable();
        for (_, target) in due {
            // Two bootstrap addresses may be one peer's, and it may be known too.
            if self.attempts.len() >= MAX_ATTEMPTS || self.is_under_way(target) {
                continue;
            }
            let attempt = self.next_attempt;
            self.next_attempt += 1;
            let target = self.resolved(target);
            self.attempts.insert(attempt, target);
            self.outputs.push_back(match target {
                Target::Peer(peer) => Output::DialPeer { attempt, peer, addresses: self.addresses(&peer) },
                Target::Bootstrap(index) => {
                    Output::DialBootstrap { attempt, address: self.bootstraps[index].address.clone() }
                }
            });
        }
    }

    /// All that may be dialled, now or later, and when.
    fn targets(&self) -> impl Iterator<Item = (Instant, Target)> {
        let away = |peer: PeerId| !self.is_connected(&peer) && !self.banned.contains(&peer);
        let bootstraps = self.bootstraps.iter().enumerate();
        let bootstraps = bootstraps.filter(move |(_, b)| !b.useless && b.peer.is_none_or(away));
        let known = self.nearest().filter(|known| !known.connected && !known.addresses.is_empty());
        let known = known.map(|known| (known.next, Target::Peer(known.peer)));
        let targets = bootstraps.map(|(index, b)| (b.next, Target::Bootstrap(index))).chain(known);
        targets.filter(|(_, target)| !self.is_under_way(*target))
    }

    /// Whether an attempt is under way, or the peer did not say yet what it is.
    fn is_under_way(&self, target: Target) -> bool {
        let target = self.resolved(target);
        let greets = matches!(target, Target::Peer(peer) if self.greeting.contains(&peer));
        greets || self.attempts.values().any(|of| *of == target)
    }

    /// The peer itself, where it is known who is at a bootstrap address.
    fn resolved(&self, target: Target) -> Target {
        match target {
            Target::Bootstrap(index) => self.bootstraps[index].peer.map_or(target, Target::Peer),
            Target::Peer(_) => target,
        }
    }

    fn is_connected(&self, peer: &PeerId) -> bool {
        self.known.get(peer).is_some_and(|known| known.connected)
    }

    /// Of more peers than are connected at once, those that are.
    fn nearest(&self) -> impl Iterator<Item = &Known<A>> {
        self.known.iter().take(self.settings.full_mesh)
    }

    /// A node that comes back and finds most of whom it remembers has no need to look for others at once: they keep their
    /// places, and whoever came meanwhile is found by the looks at rest, or finds it.
    fn recognise(&mut self, now: Instant) {
        if !self.remembers || !self.nearest().all(|known| known.tried) {
            return;
        }
        self.remembers = false;
        let connected = self.nearest().filter(|known| known.connected).count();
        if connected * 2 > self.nearest().count() {
            self.looked = true;
            self.look_step = AT_REST + 1;
            self.next_look = Some(now + LOOKS[AT_REST]);
        }
    }

    fn look_around(&mut self, now: Instant) {
        if self.remembers && now.duration_since(self.started) < self.settings.first_round / 2 {
            return;
        }
        if self.looking > 0 || self.next_look.is_none_or(|at| at > now) {
            return;
        }
        self.next_look = Some(now + LOOKS[self.look_step.min(LOOKS.len() - 1)]);
        let places = if self.known.len() > ONE_LOOKUP { 0..=QUARTERS } else { 0..=0 };
        let targets: Vec<_> = if self.look_step < AT_REST {
            places.map(|place| self.place(place)).collect()
        } else {
            let place = (self.look_step - AT_REST) % places.count();
            vec![self.place(place)]
        };
        self.look_step += 1;
        self.looking = targets.len();
        self.outputs.push_back(Output::LookAround { targets });
    }

    /// The preimage of place 0, the own one, or of some place in one of the quarters 1 to 4.
    fn place(&mut self, place: usize) -> Vec<u8> {
        match place.checked_sub(1) {
            Some(quarter) => self.place_in(quarter),
            None => self.local.to_bytes(),
        }
    }

    /// Some place in a quarter of the keyspace: found by trying, four times on average.
    fn place_in(&mut self, quarter: usize) -> Vec<u8> {
        let mut place = self.chance.bytes();
        // With 64 tries one in 10^8 is elsewhere, which costs a look nothing but a little of its view.
        for _ in 0..64 {
            if usize::from(Key::of(&place).0[0] >> 6) == quarter {
                break;
            }
            place = self.chance.bytes();
        }
        place.to_vec()
    }

    fn first_round_is_over(&self, now: Instant) -> bool {
        let since = now.duration_since(self.started);
        if since >= self.settings.first_round {
            return true;
        }
        let heard = self.settings.mdns_first.is_none_or(|first| since >= first);
        let bootstraps = self
            .bootstraps
            .iter()
            .all(|b| b.tried || b.useless || b.peer.is_some_and(|peer| self.banned.contains(&peer)));
        let known = self.nearest().all(|known| known.tried);
        let alone = self.known.iter().all(|known| !known.connected);
        heard && bootstraps && known && (alone || self.looked)
    }

    /// The next thing to do after `now`. Where there is no room for another attempt, the end of one comes first.
    fn next_due(&self, now: Instant) -> Option<(Instant, &'static str)> {
        let round = [self.settings.mdns_first, Some(self.settings.first_round)]
            .into_iter()
            .flatten()
            .map(|lasts| (self.started + lasts, "the end of the first round"))
            .filter(|(at, _)| !self.discovered && *at > now);
        let room = self.attempts.len() < MAX_ATTEMPTS;
        let dials = self.targets().filter(|_| room).map(|(at, target)| match target {
            Target::Bootstrap(_) => (at, "a bootstrap address"),
            Target::Peer(_) => (at, "a known peer"),
        });
        let remembers = self.started + self.settings.first_round / 2;
        let held = |at: Instant| if self.remembers { at.max(remembers) } else { at };
        let look = self.next_look.filter(|_| self.looking == 0).map(|at| (held(at), "a look around"));
        let old = self.known.iter().filter(|known| !known.connected).map(|k| (k.forgotten(), "a peer to forget"));
        let alone = [self.foreign.next(), self.banned.next()].into_iter().flatten().map(|at| (at, "a peer left alone"));
        round.chain(dials).chain(look).chain(old).chain(alone).min_by_key(|(at, _)| *at)
    }
}

impl<A: Clone + Eq> StateMachine for Discovery<A> {
    type Input = Input<A>;
    type Output = Output<A>;

    fn handle(&mut self, now: Instant, input: Input<A>) {
        match input {
            Input::Learnt { peer, addresses, source } => self.learn(peer, addresses, source, now),
            Input::Established { attempt, peer } => self.established(attempt, peer),
            Input::Failed { attempt, why } => self.failed(attempt, why, now),
            Input::WrongAddress { peer, address } => self.wrong_address(&peer, &address),
            Input::Connected { peer, addresses, source } => self.connected(peer, addresses, source, now),
            Input::Lost { peer } => self.lost(peer, now),
            Input::Foreign { peer } => self.leave_alone(peer, now),
            Input::Banned { peer, lasts } => {
                // However short the ban: its connection closes first.
                if self.is_connected(&peer) {
                    self.greeting.insert(peer);
                }
                self.known.remove(&peer);
                self.banned.add(peer, lasts, now);
            }
            Input::Looked => {
                self.looking = self.looking.saturating_sub(1);
                self.looked |= self.looking == 0;
            }
        }
        self.decide(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.decide(now);
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.due
    }

    fn poll_output(&mut self) -> Option<Output<A>> {
        self.outputs.pop_front()
    }
}

/// Each once, at most [`MAX_ADDRESSES`], those that come first.
fn distinct<A: Eq>(addresses: impl IntoIterator<Item = A>) -> Vec<A> {
    let mut kept = Vec::new();
    for address in addresses {
        if !kept.contains(&address) {
            kept.push(address);
        }
        if kept.len() == MAX_ADDRESSES {
            break;
        }
    }
    kept
}

/// The wait after so many failures in a row: doubling, with some of it chance.
fn backoff(least: Duration, most: Duration, failures: u32, chance: &mut Chance) -> Duration {
    let doubled = least.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
    chance.around(doubled.min(most), SPREAD)
}
