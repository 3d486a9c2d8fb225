//! The simulated network: it holds the other end of every node's command channel, so that the real services of dozens
//! of nodes run in one process, on tokio's paused clock, with latency, bandwidth and cuts, from a seed.
//!
//! It must answer as the libp2p driver does: one contract suite, in the package of the tests, runs against both.
//! What it does not model: lookups answer from the truth, gossip floods every link, a dialled peer is identified as
//! soon as the link's delay has passed, and a cut link is cut both ways. It is compiled for tests alone (the feature
//! `simulated`), and its tables are bounded by what a test puts in.

mod pipe;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use p2p_protocol::{Key, Multihash};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use pipe::Link;

use super::{
    BAN, COMMANDS, Command, GossipMessage, Heard, Inbound, NetError, Network, Peer, PeerTable, Source, Stream, Verdict,
};
use crate::runner;

/// How far the nodes know each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    /// Everybody is connected to everybody: a LAN.
    Full,
    /// Everybody starts connected to so many others at random, and finds the rest by lookups.
    Partial {
        /// How many.
        degree: usize,
    },
}

/// The network. Clone the handle freely.
#[derive(Clone)]
pub struct Fabric {
    state: Arc<Mutex<State>>,
}

struct State {
    topology: Topology,
    link: Link,
    random: StdRng,
    nodes: BTreeMap<PeerId, Member>,
    /// Connected pairs, smaller id first, with what ends their streams.
    links: BTreeMap<(PeerId, PeerId), CancellationToken>,
    /// Pairs that cannot connect.
    severed: BTreeSet<(PeerId, PeerId)>,
    /// Pairs that may not connect before a time, by the one that said so.
    banned: HashMap<(PeerId, PeerId), Instant>,
    bans: Vec<Ban>,
    /// Nodes whose every link is down.
    away: BTreeSet<PeerId>,
    /// Nodes whose messages nobody hears.
    muted: BTreeSet<PeerId>,
    lookups: usize,
    epoch: u64,
}

/// That a node refuses another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ban {
    /// Who refuses.
    pub by: PeerId,
    /// Whom.
    pub peer: PeerId,
    /// Why.
    pub reason: String,
}

struct Member {
    address: Multiaddr,
    table: watch::Sender<Arc<PeerTable>>,
    acceptors: BTreeMap<String, mpsc::Sender<Inbound>>,
    topics: BTreeMap<String, mpsc::Sender<GossipMessage>>,
    heard: HashSet<[u8; 32]>,
    provides: HashSet<Vec<u8>>,
    alive: CancellationToken,
}

fn pair(a: PeerId, b: PeerId) -> (PeerId, PeerId) {
    if a < b { (a, b) } else { (b, a) }
}

/// The identity of the `number`th node of a simulation: the same in every run.
pub fn keypair(number: u64) -> Keypair {
    let seed: [u8; 32] = Sha256::digest(format!("p2p-node simulation {number}")).into();
    Keypair::ed25519_from_bytes(seed).expect("32 bytes are a key")
}

impl Default for Fabric {
    /// A wired LAN on which everybody knows everybody.
    fn default() -> Self {
        Self::new(1, Topology::Full, Link::LAN)
    }
}

impl Fabric {
    /// A wired LAN on which nobody knows anybody until they are [connected](Self::connect) or look each other up.
    pub fn sparse() -> Self {
        Self::new(1, Topology::Partial { degree: 0 }, Link::LAN)
    }

    /// An empty network, every link of which is like `link`.
    pub fn new(seed: u64, topology: Topology, link: Link) -> Self {
        let state = State {
            topology,
            link,
            random: StdRng::seed_from_u64(seed),
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            severed: BTreeSet::new(),
            banned: HashMap::new(),
            bans: Vec::new(),
            away: BTreeSet::new(),
            muted: BTreeSet::new(),
            lookups: 0,
            epoch: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node joins, or starts again: its handle, connected as the topology says.
    pub fn join(&self, local: PeerId) -> Network {
        self.kill(local);
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let mut state = self.lock();
        let full = state.topology == Topology::Full;
        // A memory address names the node, so that `Dial` has something to dial.
        let number = u64::from_be_bytes(Key::from(&local).0[..8].try_into().expect("eight bytes"));
        let address = Multiaddr::empty().with(Protocol::Memory(number));
        let table =
            PeerTable { listen: vec![address.clone()], discovered: true, complete: full, ..PeerTable::default() };
        let (table, peers) = watch::channel(Arc::new(table));
        let alive = CancellationToken::new();
        let member = Member {
            address,
            table,
            acceptors: BTreeMap::new(),
            topics: BTreeMap::new(),
            heard: HashSet::new(),
            provides: HashSet::new(),
            alive: alive.clone(),
        };
        let mut others: Vec<PeerId> = state.nodes.keys().copied().collect();
        state.nodes.insert(local, member);
        if let Topology::Partial { degree } = state.topology {
            while others.len() > degree {
                let out = state.random.random_range(0..others.len());
                others.swap_remove(out);
            }
        }
        for other in others {
            state.connect(local, other, Source::Kademlia);
        }
        drop(state);
        tokio::spawn(self.clone().serve(local, inbox, alive));
        Network::new(local, commands, peers)
    }

    /// The node is gone at once, as by `kill -9`: its links break, its handle answers `Stopped`.
    pub fn kill(&self, peer: PeerId) {
        let mut state = self.lock();
        state.disconnect_all(peer);
        if let Some(member) = state.nodes.remove(&peer) {
            member.alive.cancel();
        }
    }

    /// Cuts the link between two nodes, which stays down until they are [connected](Self::connect) again.
    pub fn sever(&self, a: PeerId, b: PeerId) {
        let mut state = self.lock();
        state.severed.insert(pair(a, b));
        state.disconnect(a, b);
    }

    /// Connects two nodes; a cut link is mended.
    pub fn connect(&self, a: PeerId, b: PeerId) {
        let mut state = self.lock();
        state.severed.remove(&pair(a, b));
        state.connect(a, b, Source::Kademlia);
    }

    /// The node is away: its links break, and it goes on without any.
    pub fn leave(&self, peer: PeerId) {
        let mut state = self.lock();
        state.away.insert(peer);
        state.disconnect_all(peer);
    }

    /// It is back, connected with all who are there, each anew.
    pub fn back(&self, peer: PeerId) {
        let mut state = self.lock();
        state.away.remove(&peer);
        let others: Vec<PeerId> = state.nodes.keys().copied().collect();
        for other in others {
            state.connect(peer, other, Source::Kademlia);
        }
    }

    /// What the node says on topics is heard by nobody from now on.
    pub fn mute(&self, peer: PeerId) {
        self.lock().muted.insert(peer);
    }

    /// Says something on a topic to one node, whoever is connected; its verdict comes back, and has no consequence.
    pub fn say(&self, from: PeerId, to: PeerId, topic: &str, data: Bytes) -> oneshot::Receiver<Verdict> {
        let (verdict, judged) = oneshot::channel();
        if let Some(subscriber) = self.lock().nodes.get(&to).and_then(|member| member.topics.get(topic)) {
            // A queue that is full loses the message, which the receiver sees.
            let _ = subscriber.try_send(GossipMessage { data, from, verdict });
        }
        judged
    }

    /// Who refused whom so far, and why.
    pub fn bans(&self) -> Vec<Ban> {
        self.lock().bans.clone()
    }

    /// Lookups that were made so far.
    pub fn lookups(&self) -> usize {
        self.lock().lookups
    }

    async fn serve(self, local: PeerId, mut inbox: mpsc::Receiver<Command>, alive: CancellationToken) {
        loop {
            let command = tokio::select! {
                // First: where it has started again, this is not the one that lives.
                biased;
                () = alive.cancelled() => return,
                command = inbox.recv() => command,
            };
            match command {
                Some(command) => self.answer(local, command, &alive),
                // Every handle is gone: the node is still there until it is killed, as the driver is until it is stopped.
                None => return,
            }
        }
    }

    fn answer(&self, local: PeerId, command: Command, alive: &CancellationToken) {
        match command {
            Command::Dial { address, source, reply } => {
                let peer = self
                    .lock()
                    .nodes
                    .iter()
                    .find(|(_, m)| address.iter().next() == m.address.iter().next())
                    .map(|(p, _)| *p);
                let fabric = self.clone();
                later(alive, async move {
                    let unreachable =
                        || NetError::Unreachable { subject: address.to_string(), reason: "nobody is there".to_owned() };
                    let outcome = match peer {
                        Some(peer) => fabric.dial(local, peer, source).await.map(|()| peer),
                        None => Err(unreachable()),
                    };
                    let _ = reply.send(outcome);
                });
            }
            Command::DialPeer { peer, reply } => {
                let fabric = self.clone();
                later(alive, async move {
                    let _ = reply.send(fabric.dial(local, peer, Source::Kademlia).await);
                });
            }
            Command::ClosestPeers { preimage, reply } => {
                let key = Key(Sha256::digest(&preimage).into());
                let mut peers: Vec<_> = {
                    let state = self.lock();
                    let here = state.nodes.keys().filter(|peer| **peer != local && !state.away.contains(peer));
                    here.copied().collect()
                };
                peers.sort_by_key(|peer| Key::from(peer).distance(&key));
                peers.truncate(20);
                let delay = {
                    let mut state = self.lock();
                    state.lookups += 1;
                    state.link.latency * 4
                };
                later(alive, async move {
                    sleep(delay).await;
                    let _ = reply.send(Ok(peers));
                });
            }
            Command::Provide { key, reply } => {
                if let Some(member) = self.lock().nodes.get_mut(&local) {
                    member.provides.insert(key);
                }
                let _ = reply.send(Ok(()));
            }
            Command::Providers { key, reply } => {
                let state = self.lock();
                let peers =
                    state.nodes.iter().filter(|(_, m)| m.provides.contains(&key)).map(|(peer, _)| *peer).collect();
                let _ = reply.send(Ok(peers));
            }
            Command::OpenStream { peer, protocol, reply } => {
                let fabric = self.clone();
                later(alive, async move {
                    let _ = reply.send(fabric.open(local, peer, protocol).await);
                });
            }
            Command::AcceptStreams { protocol, streams, reply } => {
                self.lock().accept(local, protocol, streams);
                let _ = reply.send(Ok(()));
            }
            Command::Subscribe { topic, messages, reply } => {
                if let Some(member) = self.lock().nodes.get_mut(&local) {
                    member.topics.insert(topic, messages);
                }
                let _ = reply.send(Ok(()));
            }
            Command::Publish { topic, data, reply } => {
                if let Some(member) = self.lock().nodes.get_mut(&local) {
                    member.heard.insert(message_id(&topic, &data));
                }
                self.spread(local, &topic, &data);
                let _ = reply.send(Ok(()));
            }
            Command::Ban { peer, duration, reason } => self.lock().ban(Ban { by: local, peer, reason }, duration),
        }
    }

    async fn dial(&self, local: PeerId, peer: PeerId, source: Source) -> Result<(), NetError> {
        let latency = self.lock().link.latency;
        sleep(latency * 2).await;
        let mut state = self.lock();
        if state.connect(local, peer, source) {
            Ok(())
        } else {
            Err(NetError::Unreachable { subject: peer.to_string(), reason: "the link is down".to_owned() })
        }
    }

    async fn open(&self, local: PeerId, peer: PeerId, protocol: String) -> Result<Stream, NetError> {
        let connected = self.lock().links.contains_key(&pair(local, peer));
        if !connected {
            self.dial(local, peer, Source::Kademlia).await?;
        }
        let latency = self.lock().link.latency;
        sleep(latency).await;
        let (ours, theirs, acceptor) = {
            let state = self.lock();
            let unreachable =
                || NetError::Unreachable { subject: peer.to_string(), reason: "the link is down".to_owned() };
            let cut = state.links.get(&pair(local, peer)).ok_or_else(unreachable)?;
            let acceptor = state.nodes.get(&peer).and_then(|member| member.acceptors.get(&protocol));
            let acceptor = acceptor.ok_or(NetError::Unsupported { peer, protocol })?.clone();
            let (ours, theirs) = pipe::pair(state.link, cut.clone());
            (ours, theirs, acceptor)
        };
        let gone = |_| NetError::Unreachable { subject: peer.to_string(), reason: "it takes no streams".to_owned() };
        acceptor.send((local, theirs)).await.map_err(gone)?;
        Ok(ours)
    }

    /// Sends a message over every link of `from` to those who have not heard it.
    fn spread(&self, from: PeerId, topic: &str, data: &Bytes) {
        let state = self.lock();
        if state.muted.contains(&from) {
            return;
        }
        let neighbours: Vec<PeerId> = state
            .links
            .keys()
            .filter_map(|(a, b)| if *a == from { Some(*b) } else { (*b == from).then_some(*a) })
            .collect();
        let latency = state.link.latency;
        drop(state);
        for neighbour in neighbours {
            let (fabric, topic, data) = (self.clone(), topic.to_owned(), data.clone());
            tokio::spawn(async move {
                sleep(latency).await;
                fabric.hear(neighbour, from, topic, data).await;
            });
        }
    }

    async fn hear(&self, local: PeerId, from: PeerId, topic: String, data: Bytes) {
        let (verdict, answer) = oneshot::channel();
        {
            let mut state = self.lock();
            let Some(member) = state.nodes.get_mut(&local) else { return };
            let Some(subscriber) = member.topics.get(&topic) else { return };
            let message = GossipMessage { data: data.clone(), from, verdict };
            // A queue that is full loses the message, as the driver's does.
            if !member.heard.insert(message_id(&topic, &data)) || subscriber.try_send(message).is_err() {
                return;
            }
        }
        match answer.await {
            Ok(Verdict::Accept) => self.spread(local, &topic, &data),
            Ok(Verdict::Reject) => {
                let reason = "it passed on a message that is not valid".to_owned();
                self.lock().ban(Ban { by: local, peer: from, reason }, BAN);
            }
            Ok(Verdict::Ignore) | Err(_) => {}
        }
    }
}

fn later(alive: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(alive.clone().run_until_cancelled_owned(work));
}

fn message_id(topic: &str, data: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(topic.as_bytes()).chain_update([0]).chain_update(data).finalize().into()
}

impl State {
    fn ban(&mut self, ban: Ban, duration: Duration) {
        let Ban { by, peer, .. } = ban;
        self.banned.insert((by, peer), Instant::now() + duration);
        self.disconnect(by, peer);
        self.bans.push(ban);
    }

    fn disconnect_all(&mut self, peer: PeerId) {
        let ends: Vec<_> = self.links.keys().filter(|(a, b)| *a == peer || *b == peer).copied().collect();
        for (a, b) in ends {
            self.disconnect(a, b);
        }
    }

    /// Connects two nodes where that is possible; `true` if they are connected now.
    fn connect(&mut self, a: PeerId, b: PeerId, source: Source) -> bool {
        let link = pair(a, b);
        if self.links.contains_key(&link) {
            return true;
        }
        let now = Instant::now();
        let banned = [(a, b), (b, a)].iter().any(|pair| self.banned.get(pair).is_some_and(|until| *until > now));
        let there = self.nodes.contains_key(&a) && self.nodes.contains_key(&b);
        let away = self.away.contains(&a) || self.away.contains(&b);
        if a == b || banned || away || !there || self.severed.contains(&link) {
            return false;
        }
        self.links.insert(link, CancellationToken::new());
        self.epoch += 1;
        let epoch = self.epoch;
        for (local, other, source) in [(a, b, source), (b, a, Source::Incoming)] {
            let Some(member) = self.nodes.get(&other) else { continue };
            let peer = Peer {
                connected: true,
                addresses: vec![member.address.clone()],
                protocols: member.acceptors.keys().cloned().collect(),
                agent: Some("simulated".to_owned()),
                source,
                epoch,
                heard: Heard::now(),
            };
            peer.heard.measure(Some(self.link.latency * 2));
            self.change(local, |table| {
                table.peers.insert(other, Arc::new(peer));
            });
        }
        true
    }

    fn disconnect(&mut self, a: PeerId, b: PeerId) {
        let Some(cut) = self.links.remove(&pair(a, b)) else { return };
        cut.cancel();
        for (local, other) in [(a, b), (b, a)] {
            self.change(local, |table| {
                if let Some(peer) = table.peers.get_mut(&other).map(Arc::make_mut) {
                    peer.connected = false;
                    // A link is alive until it is cut: nobody was silent before.
                    peer.heard.hear(runner::now());
                    peer.heard.measure(None);
                }
            });
        }
    }

    fn accept(&mut self, local: PeerId, protocol: String, streams: mpsc::Sender<Inbound>) {
        let Some(member) = self.nodes.get_mut(&local) else { return };
        member.acceptors.insert(protocol, streams);
        let protocols: Vec<String> = member.acceptors.keys().cloned().collect();
        // Those who know it learn of the new protocol, as identify's push tells them.
        let others: Vec<PeerId> = self.nodes.keys().filter(|peer| **peer != local).copied().collect();
        for other in others {
            self.change(other, |table| {
                if let Some(peer) = table.peers.get_mut(&local).map(Arc::make_mut) {
                    peer.protocols.clone_from(&protocols);
                }
            });
        }
    }

    fn change(&self, local: PeerId, change: impl FnOnce(&mut PeerTable)) {
        if let Some(member) = self.nodes.get(&local) {
            member.table.send_modify(|table| change(Arc::make_mut(table)));
        }
    }
}

/// Waits until `condition` holds, for `limit` of simulated time at the most.
pub async fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?} of simulated time: {what}");
        sleep_until(Instant::now() + Duration::from_millis(50)).await;
    }
}

/// The `k` of `peers` nearest to a chunk, computed here and not by what is tested.
pub fn truth(hash: &Multihash, peers: &[PeerId], k: usize) -> BTreeSet<PeerId> {
    let target: [u8; 32] = Sha256::digest(hash.to_bytes()).into();
    let mut ranked: Vec<([u8; 32], PeerId)> = peers
        .iter()
        .map(|peer| {
            let key: [u8; 32] = Sha256::digest(peer.to_bytes()).into();
            (std::array::from_fn(|i| key[i] ^ target[i]), *peer)
        })
        .collect();
    ranked.sort();
    ranked.into_iter().take(k).map(|(_, peer)| peer).collect()
}
