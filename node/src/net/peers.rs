//! Who is connected and who was: connections, what identify said, and the table that services watch.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, identify, swarm::ConnectionId};
use tokio::sync::watch;

use super::{Peer, PeerTable, Source, address, protocol_name};

/// How long a disconnected peer stays in the table.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// Disconnected peers in the table: an hour of a network much larger than this is meant for (a guess).
const MAX_GONE: usize = 4096;
/// Protocols that are kept of what a peer lists: this node lists about ten.
const MAX_PROTOCOLS: usize = 64;
/// A peer of another network is let go only now, so that it too learns why.
const FAREWELL: Duration = Duration::from_millis(300);
/// A pause of the loop by this much means that this node slept, not that its peers fell silent.
const SLEPT: Duration = Duration::from_secs(5);

/// A connection.
#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    remote: Multiaddr,
    dialled: bool,
    /// When it was last known to be alive.
    heard: Instant,
}

/// What is known of a peer with connections.
#[derive(Debug)]
struct Open {
    connections: Vec<Connection>,
    since: Instant,
    identified: bool,
    leaves: Option<Instant>,
}

/// What identify showed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Identified {
    /// A peer of this network, its usable addresses; `first` since it connected.
    Ours { addresses: Vec<Multiaddr>, first: bool },
    /// Of another network, or another program.
    Foreign { speaks: String },
}

/// The connections and the table.
pub(super) struct Peers {
    open: HashMap<PeerId, Open>,
    gone: HashMap<PeerId, Instant>,
    table: PeerTable,
    changed: bool,
    watch: watch::Sender<Arc<PeerTable>>,
    protocol: String,
    silence: Duration,
    last_tick: Instant,
}

impl Peers {
    /// An empty table of the network `network`; connections silent for `silence` are closed.
    pub fn new(network: &str, silence: Duration, watch: watch::Sender<Arc<PeerTable>>) -> Self {
        Self {
            open: HashMap::new(),
            gone: HashMap::new(),
            table: PeerTable::default(),
            changed: true,
            watch,
            protocol: protocol_name(network, "id", 1),
            silence,
            last_tick: Instant::now(),
        }
    }

    /// A connection came up; nothing is known of the peer yet.
    pub fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, now: Instant) {
        let connection = Connection {
            id,
            remote: address::bare(endpoint.get_remote_address()),
            dialled: endpoint.is_dialer(),
            heard: now,
        };
        let open = self.open.entry(peer).or_insert_with(|| Open {
            connections: Vec::new(),
            since: now,
            identified: false,
            leaves: None,
        });
        open.connections.push(connection);
    }

    /// A connection went down. True if it was the last one of the peer.
    pub fn on_closed(&mut self, peer: PeerId, id: ConnectionId, now: Instant) -> bool {
        let Some(open) = self.open.get_mut(&peer) else { return false };
        open.connections.retain(|connection| connection.id != id);
        if !open.connections.is_empty() {
            return false;
        }
        self.open.remove(&peer);
        if let Some(entry) = self.table.peers.get_mut(&peer) {
            entry.connected = false;
            entry.latency = None;
            self.gone.insert(peer, now);
            self.changed = true;
        }
        self.forget_old(now);
        true
    }

    /// What a peer says of itself. `source` is how it was found, if that is known already.
    pub fn on_identify(
        &mut self,
        peer: PeerId,
        said: identify::Info,
        source: Option<Source>,
        now: Instant,
    ) -> Option<Identified> {
        let open = self.open.get_mut(&peer)?;
        if said.protocol_version != self.protocol {
            open.leaves = Some(now + FAREWELL);
            return Some(Identified::Foreign { speaks: shortened(&said.protocol_version) });
        }
        let first = !open.identified;
        open.identified = true;
        let local = open.connections.iter().any(|c| address::is_loopback(&c.remote));
        let mut addresses = address::usable(said.listen_addrs, local);
        let mut dialled = false;
        if let Some(connection) = open.connections.iter().find(|c| c.dialled).or(open.connections.first()) {
            addresses = address::in_use_first(addresses, &connection.remote, connection.dialled);
            dialled = connection.dialled;
        }
        let unnamed = if dialled { Source::Kademlia } else { Source::Incoming };
        let mut protocols: Vec<String> =
            said.protocols.iter().take(MAX_PROTOCOLS).map(|protocol| protocol.to_string()).collect();
        protocols.sort_unstable();
        let old = self.table.peers.get(&peer);
        let entry = Peer {
            connected: true,
            addresses: addresses.clone(),
            protocols,
            agent: Some(shortened(&said.agent_version)),
            latency: old.and_then(|old| old.latency),
            source: match (old.map(|old| old.source), source) {
                // The first way counts, except that having been dialled says less than having found.
                (Some(Source::Incoming) | None, found) => found.unwrap_or(unnamed),
                (Some(old), _) => old,
            },
            epoch: old.map_or(0, |old| old.epoch) + u64::from(first),
        };
        if old != Some(&entry) {
            self.table.peers.insert(peer, entry);
            self.changed = true;
        }
        self.gone.remove(&peer);
        Some(Identified::Ours { addresses, first })
    }

    /// A peer that speaks no identify is none of ours.
    pub fn on_unidentifiable(&mut self, peer: PeerId, now: Instant) {
        if let Some(open) = self.open.get_mut(&peer)
            && !open.identified
        {
            open.leaves = Some(now + FAREWELL);
        }
    }

    /// A ping was answered.
    pub fn on_pong(&mut self, peer: PeerId, id: ConnectionId, round_trip: Duration, now: Instant) {
        let Some(open) = self.open.get_mut(&peer) else { return };
        if let Some(connection) = open.connections.iter_mut().find(|connection| connection.id == id) {
            connection.heard = now;
        }
        if let Some(entry) = self.table.peers.get_mut(&peer) {
            entry.latency = Some(round_trip);
            self.changed = true;
        }
    }

    /// How a peer was found became known after it had connected.
    pub fn found_by(&mut self, peer: &PeerId, source: Source) {
        if let Some(entry) = self.table.peers.get_mut(peer)
            && entry.source == Source::Incoming
            && source != Source::Incoming
        {
            entry.source = source;
            self.changed = true;
        }
    }

    /// Forgets a peer that is refused from now on.
    pub fn forget(&mut self, peer: &PeerId) {
        self.gone.remove(peer);
        if self.table.peers.remove(peer).is_some() {
            self.changed = true;
        }
    }

    /// Connections that must be closed: silent, never identified, or of another network.
    pub fn overdue(&mut self, identify_within: Duration, now: Instant) -> Vec<ConnectionId> {
        if now.duration_since(self.last_tick) > SLEPT {
            self.open.values_mut().flat_map(|open| &mut open.connections).for_each(|c| c.heard = now);
        }
        self.last_tick = now;
        let mut overdue = Vec::new();
        for (peer, open) in &self.open {
            let all = open.leaves.is_some_and(|leaves| leaves <= now)
                || (!open.identified && now.duration_since(open.since) > identify_within);
            for connection in &open.connections {
                let silent = now.duration_since(connection.heard) > self.silence;
                if all || silent {
                    tracing::debug!(%peer, silent, "closing a connection");
                    overdue.push(connection.id);
                }
            }
        }
        overdue
    }

    /// Drops what is over an hour old.
    pub fn forget_old(&mut self, now: Instant) {
        let mut over: Vec<PeerId> = Vec::new();
        over.extend(self.gone.iter().filter(|(_, at)| now.duration_since(**at) > REMEMBERED).map(|(peer, _)| *peer));
        if self.gone.len() > MAX_GONE
            && let Some(oldest) = self.gone.iter().min_by_key(|(_, at)| **at).map(|(peer, _)| *peer)
        {
            over.push(oldest);
        }
        for peer in over {
            self.forget(&peer);
        }
    }

    /// Whether a connection is up and the peer is of this network.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.open.get(peer).is_some_and(|open| open.identified)
    }

    /// Whether there is any connection, identified or not.
    pub fn is_open(&self, peer: &PeerId) -> bool {
        self.open.contains_key(peer)
    }

    /// Peers with a connection, identified or not.
    pub fn open(&self) -> impl Iterator<Item = &PeerId> {
        self.open.keys()
    }

    /// Peers of this network with a connection.
    pub fn connected(&self) -> impl Iterator<Item = &PeerId> {
        self.open.iter().filter(|(_, open)| open.identified).map(|(peer, _)| peer)
    }

    /// Where a peer of the table can be dialled.
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.table.peers.get(peer).map(|entry| entry.addresses.clone()).unwrap_or_default()
    }

    /// Identified peers, connected or lately so.
    pub fn len(&self) -> usize {
        self.table.peers.len()
    }

    /// An address that this node listens on came (or went).
    pub fn on_listen(&mut self, address: &Multiaddr, up: bool) {
        let address = address::bare(address);
        self.table.listen.retain(|known| *known != address);
        if up && address::is_dialable(&address) {
            self.table.listen.push(address);
            // Loopback last: it is of no use to others.
            self.table.listen.sort_by_key(address::is_loopback);
        }
        self.changed = true;
    }

    /// Publishes the table if anything changed.
    pub fn publish(&mut self, discovered: bool, complete: bool) {
        if self.table.discovered != discovered || self.table.complete != complete {
            self.table.discovered = discovered;
            self.table.complete = complete;
            self.changed = true;
        }
        if std::mem::take(&mut self.changed) {
            self.watch.send_replace(Arc::new(self.table.clone()));
        }
    }
}

/// What a peer calls itself, without control characters and no longer than a line.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use libp2p::{
        core::{Endpoint, transport::PortUse},
        identity::Keypair,
    };

    use super::*;

    fn endpoint() -> ConnectedPoint {
        ConnectedPoint::Dialer {
            address: "/ip4/10.0.0.2/tcp/4242".parse().expect("a multiaddr"),
            role_override: Endpoint::Dialer,
            port_use: PortUse::New,
        }
    }

    fn said(network: &str) -> identify::Info {
        identify::Info {
            public_key: Keypair::generate_ed25519().public(),
            protocol_version: protocol_name(network, "id", 1),
            agent_version: "p2p-node/\u{7}test".to_owned(),
            listen_addrs: vec!["/ip4/127.0.0.1/tcp/1".parse().expect("a multiaddr")],
            protocols: Vec::new(),
            observed_addr: "/ip4/10.0.0.1/tcp/1".parse().expect("a multiaddr"),
            signed_peer_record: None,
        }
    }

    fn table() -> (Peers, watch::Receiver<Arc<PeerTable>>) {
        let (sender, receiver) = watch::channel(Arc::default());
        (Peers::new("a", Duration::from_secs(18), sender), receiver)
    }

    const TICK: Duration = Duration::from_secs(1);

    #[test]
    fn a_peer_that_comes_back_has_a_new_epoch_and_keeps_its_source() {
        let (mut peers, watch) = table();
        let (peer, now) = (PeerId::random(), Instant::now());
        for round in 1..=3 {
            let (a, b) = (ConnectionId::new_unchecked(round * 2), ConnectionId::new_unchecked(round * 2 + 1));
            peers.on_established(peer, a, &endpoint(), now);
            assert!(!peers.is_connected(&peer));
            let first = peers.on_identify(peer, said("a"), Some(Source::Manual), now);
            assert!(matches!(first, Some(Identified::Ours { first: true, .. })));
            peers.on_established(peer, b, &endpoint(), now);
            let again = peers.on_identify(peer, said("a"), None, now);
            assert!(matches!(again, Some(Identified::Ours { first: false, .. })));
            peers.publish(false, true);
            let seen = watch.borrow().peers[&peer].clone();
            assert_eq!((seen.epoch, seen.source, seen.connected), (round as u64, Source::Manual, true));
            assert_eq!(seen.agent.as_deref(), Some("p2p-node/test"));
            // Loopback addresses of another machine are left out; the one that was dialled is in.
            assert_eq!(seen.addresses, vec!["/ip4/10.0.0.2/tcp/4242".parse().expect("a multiaddr")]);
            assert!(!peers.on_closed(peer, a, now));
            assert!(peers.on_closed(peer, b, now));
            peers.publish(false, true);
            assert!(!watch.borrow().peers[&peer].connected);
        }
        peers.forget_old(now + REMEMBERED + TICK);
        assert_eq!(peers.len(), 0);
    }

    #[test]
    fn silent_and_unidentified_connections_are_closed() {
        let (mut peers, _watch) = table();
        let (peer, start) = (PeerId::random(), Instant::now());
        let id = ConnectionId::new_unchecked(1);
        peers.on_established(peer, id, &endpoint(), start);
        let mut now = start;
        let mut closed = Vec::new();
        while closed.is_empty() && now < start + Duration::from_secs(60) {
            now += TICK;
            closed = peers.overdue(Duration::from_secs(10), now);
        }
        assert_eq!(now.duration_since(start).as_secs(), 11, "never identified");

        peers.on_identify(peer, said("a"), None, now);
        peers.on_pong(peer, id, Duration::from_millis(3), now);
        let heard = now;
        while peers.overdue(Duration::from_secs(10), now).is_empty() {
            now += TICK;
        }
        assert_eq!(now.duration_since(heard).as_secs(), 19, "silent");
    }

    #[test]
    fn peers_are_not_taken_for_dead_because_this_node_slept() {
        let (mut peers, _watch) = table();
        let (peer, start) = (PeerId::random(), Instant::now());
        peers.on_established(peer, ConnectionId::new_unchecked(1), &endpoint(), start);
        peers.on_identify(peer, said("a"), None, start);
        peers.overdue(TICK, start);
        assert!(peers.overdue(TICK, start + Duration::from_secs(3600)).is_empty());
    }

    #[test]
    fn a_peer_of_another_network_leaves_and_is_never_in_the_table() {
        let (mut peers, _watch) = table();
        let (peer, now) = (PeerId::random(), Instant::now());
        peers.on_established(peer, ConnectionId::new_unchecked(1), &endpoint(), now);
        assert!(matches!(peers.on_identify(peer, said("b"), None, now), Some(Identified::Foreign { .. })));
        assert_eq!((peers.len(), peers.is_connected(&peer)), (0, false));
        assert!(peers.overdue(Duration::from_secs(10), now).is_empty());
        assert_eq!(peers.overdue(Duration::from_secs(10), now + FAREWELL).len(), 1);
    }
}
