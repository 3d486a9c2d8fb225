//! Who is connected and who was: connections, what identify said, and the table that services watch.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, identify, swarm::ConnectionId};
use tokio::sync::watch;

use super::{
    Peer, PeerTable, Source, Tuning, address,
    heard::{Ears, Heard},
    protocol_name,
    pulse::Pong,
};

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
    /// When it was last known to be alive itself, rather than another one of the same peer.
    alive: Instant,
    /// Since when it is being pinged.
    asked: Option<Instant>,
}

/// What is known of a peer with connections.
#[derive(Debug)]
struct Open {
    connections: Vec<Connection>,
    since: Instant,
    identified: bool,
    leaves: Option<Instant>,
    heard: Heard,
}

/// How long silence is taken for peace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    quiet: Duration,
    doubt: Duration,
    silence: Duration,
}

impl From<&Tuning> for Patience {
    fn from(tuning: &Tuning) -> Self {
        Self { quiet: tuning.quiet, doubt: tuning.doubt, silence: tuning.silence }
    }
}

/// What is to be done about connections.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Overdue {
    /// These are to be closed: dead, never identified, or of another network.
    pub close: Vec<ConnectionId>,
    /// These are to be pinged.
    pub ask: Vec<(PeerId, ConnectionId)>,
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
    patience: Patience,
    ears: Ears,
    last_tick: Instant,
}

impl Peers {
    /// An empty table of the network `network`; `ears` have the stamps that its connections set.
    pub fn new(network: &str, patience: Patience, ears: Ears, watch: watch::Sender<Arc<PeerTable>>) -> Self {
        Self {
            open: HashMap::new(),
            gone: HashMap::new(),
            table: PeerTable::default(),
            changed: true,
            watch,
            protocol: protocol_name(network, "id", 1),
            patience,
            ears,
            last_tick: Instant::now(),
        }
    }

    /// A connection came up; nothing is known of the peer yet.
    pub fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, now: Instant) {
        let connection = Connection {
            id,
            remote: address::bare(endpoint.get_remote_address()),
            dialled: endpoint.is_dialer(),
            alive: now,
            asked: None,
        };
        let open = self.open.entry(peer).or_insert_with(|| Open {
            connections: Vec::new(),
            since: now,
            identified: false,
            leaves: None,
            heard: self.ears.of(&peer),
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
            let entry = Arc::make_mut(entry);
            entry.connected = false;
            entry.heard.measure(None);
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
        let old = self.table.peers.get(&peer).map(|old| &**old);
        let entry = Peer {
            connected: true,
            addresses: addresses.clone(),
            protocols,
            agent: Some(shortened(&said.agent_version)),
            source: match (old.map(|old| old.source), source) {
                // The first way counts, except that having been dialled says less than having found.
                (Some(Source::Incoming) | None, found) => found.unwrap_or(unnamed),
                (Some(old), _) => old,
            },
            epoch: old.map_or(0, |old| old.epoch) + u64::from(first),
            heard: open.heard.clone(),
        };
        if old != Some(&entry) {
            self.table.peers.insert(peer, Arc::new(entry));
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
    pub fn on_pong(&mut self, pong: Pong, now: Instant) {
        let Some(open) = self.open.get_mut(&pong.peer) else { return };
        open.heard.measure(Some(pong.round_trip));
        if let Some(connection) = open.connections.iter_mut().find(|connection| connection.id == pong.connection) {
            connection.alive = now;
            connection.asked = None;
        }
    }

    /// How a peer was found became known after it had connected.
    pub fn found_by(&mut self, peer: &PeerId, source: Source) {
        if let Some(entry) = self.table.peers.get_mut(peer)
            && entry.source == Source::Incoming
            && source != Source::Incoming
        {
            Arc::make_mut(entry).source = source;
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

    /// What is to be done about connections now; called every second or so.
    ///
    /// A peer is left in peace for as long as it is heard now and then. It is pinged when it was silent for long, or when
    /// it owes an answer; whatever comes then, a ping's answer or not, shows that it is alive. What comes over one of
    /// several connections does not speak for the others: each is pinged for itself.
    pub fn overdue(&mut self, identify_within: Duration, now: Instant) -> Overdue {
        let Patience { quiet, doubt, silence } = self.patience;
        if now.duration_since(self.last_tick) > SLEPT {
            // What answered meanwhile may not have been read yet.
            let connections = self.open.values_mut().flat_map(|open| &mut open.connections);
            connections.filter_map(|connection| connection.asked.as_mut()).for_each(|asked| *asked = now);
        }
        self.last_tick = now;
        let mut overdue = Overdue::default();
        for (peer, open) in &mut self.open {
            let unwanted = open.leaves.is_some_and(|leaves| leaves <= now)
                || (!open.identified && now.duration_since(open.since) > identify_within);
            let since = |at: Instant| now.saturating_duration_since(at);
            let owing = open.heard.unanswered().is_some_and(|said| since(said) > doubt);
            let alone = open.connections.len() == 1;
            for connection in &mut open.connections {
                if alone {
                    connection.alive = connection.alive.max(open.heard.last());
                }
                connection.asked = connection.asked.filter(|asked| connection.alive <= *asked);
                let dead = connection.asked.is_some_and(|asked| since(asked) > silence);
                if unwanted || dead {
                    tracing::debug!(%peer, dead, "closing a connection");
                    overdue.close.push(connection.id);
                } else if connection.asked.is_none() && (owing || since(connection.alive) > quiet) {
                    tracing::debug!(%peer, owing, "is it there?");
                    connection.asked = Some(now);
                    overdue.ask.push((*peer, connection.id));
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

    /// The stamps of a peer, known or not.
    pub fn heard(&self, peer: &PeerId) -> Heard {
        self.ears.of(peer)
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
        (Peers::new("a", Patience::from(&Tuning::default()), Ears::default(), sender), receiver)
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

    const IDENTIFY: Duration = Duration::from_secs(10);

    /// Lets seconds pass until something is to be done: what, and after how many.
    fn until_overdue(peers: &mut Peers, now: &mut Instant) -> (Overdue, u64) {
        let start = *now;
        loop {
            *now += TICK;
            let overdue = peers.overdue(IDENTIFY, *now);
            if overdue != Overdue::default() {
                return (overdue, now.duration_since(start).as_secs());
            }
            assert!(*now < start + Duration::from_secs(3600), "nothing is to be done for an hour");
        }
    }

    fn asks(peer: PeerId, ids: &[ConnectionId]) -> Overdue {
        Overdue { close: Vec::new(), ask: ids.iter().map(|id| (peer, *id)).collect() }
    }

    fn closes(ids: &[ConnectionId]) -> Overdue {
        Overdue { close: ids.to_vec(), ask: Vec::new() }
    }

    /// A table with one identified peer on these connections, its stamps, and now.
    fn met(ids: &[ConnectionId]) -> (Peers, PeerId, Heard, Instant) {
        let (mut peers, _) = table();
        let (peer, now) = (PeerId::random(), Instant::now());
        for id in ids {
            peers.on_established(peer, *id, &endpoint(), now);
        }
        peers.on_identify(peer, said("a"), None, now);
        let heard = peers.ears.of(&peer);
        heard.hear(now);
        (peers, peer, heard, now)
    }

    #[test]
    fn a_peer_that_never_says_what_it_is_is_let_go() {
        let (mut peers, _watch) = table();
        let (peer, mut now) = (PeerId::random(), Instant::now());
        let id = ConnectionId::new_unchecked(1);
        peers.on_established(peer, id, &endpoint(), now);
        assert_eq!(until_overdue(&mut peers, &mut now), (closes(&[id]), 11));
    }

    #[test]
    fn a_peer_at_peace_is_pinged_after_ten_minutes_and_closed_if_nothing_comes() {
        let id = ConnectionId::new_unchecked(1);
        let (mut peers, peer, heard, mut now) = met(&[id]);
        assert_eq!(until_overdue(&mut peers, &mut now), (asks(peer, &[id]), 601));
        // Anything that is heard will do.
        heard.hear(now + TICK / 2);
        assert_eq!(until_overdue(&mut peers, &mut now), (asks(peer, &[id]), 601));
        let round_trip = Duration::from_millis(3);
        peers.on_pong(Pong { peer, connection: id, round_trip }, now + TICK / 2);
        assert_eq!(heard.latency(), Some(round_trip));
        assert_eq!(until_overdue(&mut peers, &mut now), (asks(peer, &[id]), 601));
        assert_eq!(until_overdue(&mut peers, &mut now), (closes(&[id]), 11));
    }

    #[test]
    fn a_peer_that_owes_an_answer_is_pinged_soon() {
        let id = ConnectionId::new_unchecked(1);
        let (mut peers, peer, heard, mut now) = met(&[id]);
        heard.say(now + TICK * 3);
        heard.hear(now + TICK * 4);
        heard.say(now + TICK * 7 + TICK / 2);
        heard.say(now + TICK * 9);
        assert_eq!(until_overdue(&mut peers, &mut now), (asks(peer, &[id]), 16));
        assert_eq!(until_overdue(&mut peers, &mut now), (closes(&[id]), 11));
    }

    #[test]
    fn one_connection_of_a_peer_does_not_speak_for_another() {
        let [dead, good] = [1, 2].map(ConnectionId::new_unchecked);
        let (mut peers, peer, heard, mut now) = met(&[dead, good]);
        assert_eq!(until_overdue(&mut peers, &mut now), (asks(peer, &[dead, good]), 601));
        heard.hear(now + TICK);
        peers.on_pong(Pong { peer, connection: good, round_trip: TICK }, now + TICK);
        assert_eq!(until_overdue(&mut peers, &mut now), (closes(&[dead]), 11));
    }

    #[test]
    fn peers_are_not_taken_for_dead_because_this_node_slept() {
        let id = ConnectionId::new_unchecked(1);
        let (mut peers, peer, _, mut now) = met(&[id]);
        peers.overdue(IDENTIFY, now);
        now += Duration::from_secs(3600);
        assert_eq!(peers.overdue(IDENTIFY, now), asks(peer, &[id]), "it is asked, to begin with");
        now += Duration::from_secs(3600);
        assert_eq!(peers.overdue(IDENTIFY, now), Overdue::default(), "the answer may not have been read yet");
        assert_eq!(until_overdue(&mut peers, &mut now), (closes(&[id]), 11));
    }

    #[test]
    fn a_peer_of_another_network_leaves_and_is_never_in_the_table() {
        let (mut peers, _watch) = table();
        let (peer, now) = (PeerId::random(), Instant::now());
        peers.on_established(peer, ConnectionId::new_unchecked(1), &endpoint(), now);
        assert!(matches!(peers.on_identify(peer, said("b"), None, now), Some(Identified::Foreign { .. })));
        assert_eq!((peers.len(), peers.is_connected(&peer)), (0, false));
        assert_eq!(peers.overdue(IDENTIFY, now), Overdue::default());
        assert_eq!(peers.overdue(IDENTIFY, now + FAREWELL).close.len(), 1);
    }
}
