//! The peers that are known, connected or not, nearest to this node first; and those that are left alone for a while.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::Source;
use crate::{Distance, Key, PeerId};

/// Peers that are known at once, connected or not: several times what is ever connected (a guess).
pub const MAX_KNOWN: usize = 2048;
/// The most addresses that are kept of one peer: two transports on eight interface addresses (a guess).
pub const MAX_ADDRESSES: usize = 16;
/// How long a peer is dialled again after it was last seen or named.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// The longest that a peer is left alone, so that a clock's sum cannot overflow.
const LEFT_ALONE_MOST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What is known of a peer.
#[derive(Clone, Debug)]
pub(super) struct Known<A> {
    pub peer: PeerId,
    pub addresses: Vec<A>,
    pub source: Source,
    /// It is connected and of this network.
    pub connected: bool,
    /// When it was last connected.
    pub seen: Option<Instant>,
    /// When somebody last named it.
    pub named: Instant,
    /// Attempts in a row that failed.
    pub failures: u32,
    /// When it is dialled next, if it is not connected.
    pub next: Instant,
    /// It was reached, or not, at least once.
    pub tried: bool,
}

impl<A> Known<A> {
    /// When it is forgotten, unless it is connected.
    pub fn forgotten(&self) -> Instant {
        self.seen.map_or(self.named, |seen| seen.max(self.named)) + REMEMBERED
    }
}

/// Every known peer: at most [`MAX_KNOWN`].
#[derive(Clone, Debug)]
pub(super) struct Peers<A> {
    own: Key,
    peers: BTreeMap<Distance, Known<A>>,
}

impl<A> Peers<A> {
    /// None yet, around `local`.
    pub fn new(local: &PeerId) -> Self {
        Self { own: Key::from(local), peers: BTreeMap::new() }
    }

    fn place(&self, peer: &PeerId) -> Distance {
        Key::from(peer).distance(&self.own)
    }

    pub fn get(&self, peer: &PeerId) -> Option<&Known<A>> {
        self.peers.get(&self.place(peer))
    }

    pub fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Known<A>> {
        let place = self.place(peer);
        self.peers.get_mut(&place)
    }

    /// Adds a peer; where there is no room, in place of the one that was not connected and not named for longest.
    /// Left out where all are connected.
    pub fn insert(&mut self, known: Known<A>) {
        if self.peers.len() >= MAX_KNOWN {
            let idle = self.peers.iter().filter(|(_, known)| !known.connected);
            let stale = idle.min_by_key(|(_, known)| (known.seen, known.named)).map(|(place, _)| *place);
            if stale.and_then(|place| self.peers.remove(&place)).is_none() {
                return;
            }
        }
        self.peers.insert(self.place(&known.peer), known);
    }

    pub fn remove(&mut self, peer: &PeerId) {
        let place = self.place(peer);
        self.peers.remove(&place);
    }

    /// Nearest first.
    pub fn iter(&self) -> impl Iterator<Item = &Known<A>> {
        self.peers.values()
    }

    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Forgets whom nobody has seen or named for long.
    pub fn forget_old(&mut self, now: Instant) {
        self.peers.retain(|_, known| known.connected || known.forgotten() > now);
    }
}

/// Peers that are left alone until a time.
#[derive(Clone, Debug)]
pub(super) struct LeftAlone {
    until: BTreeMap<PeerId, Instant>,
    most: usize,
}

impl LeftAlone {
    /// None yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self { until: BTreeMap::new(), most }
    }

    /// Leaves a peer alone for so long; a longer time that was said before stands. Where there is no room, the one
    /// whose time is over first is let go.
    pub fn add(&mut self, peer: PeerId, lasts: Duration, now: Instant) {
        let until = now + lasts.min(LEFT_ALONE_MOST);
        if self.until.len() >= self.most
            && !self.until.contains_key(&peer)
            && let Some(soonest) = self.until.iter().min_by_key(|(_, until)| **until).map(|(peer, _)| *peer)
        {
            self.until.remove(&soonest);
        }
        let entry = self.until.entry(peer).or_insert(until);
        *entry = (*entry).max(until);
    }

    pub fn contains(&self, peer: &PeerId) -> bool {
        self.until.contains_key(peer)
    }

    pub fn remove(&mut self, peer: &PeerId) {
        self.until.remove(peer);
    }

    /// Lets those go whose time is over.
    pub fn expire(&mut self, now: Instant) {
        self.until.retain(|_, until| *until > now);
    }

    /// When the next one's time is over.
    pub fn next(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }
}
