//! A network of a few nodes in one process, for the services' own tests: it holds the other end of every handle.
//!
//! Streams are pipes in memory. A node can leave (its pipes break) and come back (with a new epoch).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libp2p::identity::Keypair;
use p2p_protocol::{
    Key, PeerId,
    placement::{Candidate, closest},
};
use tokio::{
    io::{DuplexStream, copy_bidirectional, duplex},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::{compat::TokioAsyncReadCompatExt as _, sync::CancellationToken};

use super::{transfer::Transfer, worker::Layer};
use crate::{
    net::{Command, Inbound, NetError, Network, Peer, PeerTable, Source, protocol_name},
    store::Store,
};

/// The network's name in tests.
pub(crate) const NETWORK: &str = "test";
/// A gibibyte: no test fills it.
pub(crate) const ROOMY: u64 = 1 << 30;

/// The peer of a seed.
pub(crate) fn peer(seed: u8) -> PeerId {
    // Any 32 bytes are a secret key.
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
}

/// The transfer protocol's name in tests.
pub(crate) fn transfer_protocol() -> String {
    protocol_name(NETWORK, "transfer", 1)
}

/// The network; clone the handle freely.
#[derive(Clone, Default)]
pub(crate) struct Fabric {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<PeerId, Node>,
    bans: Vec<(PeerId, PeerId, String)>,
    lookups: usize,
    /// Peers are listed only where they met; lookups find the others.
    sparse: bool,
}

struct Node {
    here: bool,
    epoch: u64,
    acceptors: HashMap<String, mpsc::Sender<Inbound>>,
    table: watch::Sender<Arc<PeerTable>>,
    /// Cancelled when it leaves: its pipes break.
    present: CancellationToken,
}

impl Fabric {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A network where only those who met know each other.
    pub(crate) fn sparse() -> Self {
        let fabric = Self::default();
        fabric.inner().sparse = true;
        fabric
    }

    /// A node's handle; everybody is connected with it at once, unless the network is sparse.
    pub(crate) fn join(&self, seed: u8) -> Network {
        let local = peer(seed);
        let (commands, mut asked) = mpsc::channel(64);
        let table = PeerTable { discovered: true, complete: !self.inner().sparse, ..PeerTable::default() };
        let (table, peers) = watch::channel(Arc::new(table));
        let node = Node { here: true, epoch: 0, acceptors: HashMap::new(), table, present: CancellationToken::new() };
        self.inner().nodes.insert(local, node);
        let fabric = self.clone();
        tokio::spawn(async move {
            while let Some(command) = asked.recv().await {
                fabric.run(local, command).await;
            }
        });
        Network::new(local, commands, peers)
    }

    /// A node whose transfer service runs over a store in memory.
    pub(crate) async fn serve(&self, seed: u8, capacity_bytes: u64) -> (Network, Store, Transfer) {
        let network = self.join(seed);
        let store = Store::in_memory(capacity_bytes);
        let transfer =
            Transfer::start(network.clone(), store.clone(), NETWORK, capacity_bytes > 0, &Layer::alone()).await;
        (network, store, transfer.expect("the fabric accepts streams"))
    }

    /// It is gone: its pipes break, and everybody sees it.
    pub(crate) fn leave(&self, seed: u8) {
        let mut inner = self.inner();
        if let Some(node) = inner.nodes.get_mut(&peer(seed)) {
            node.here = false;
            node.present.cancel();
        }
        inner.publish();
    }

    /// It is back, at a new epoch.
    pub(crate) fn back(&self, seed: u8) {
        let mut inner = self.inner();
        if let Some(node) = inner.nodes.get_mut(&peer(seed)) {
            node.here = true;
            node.present = CancellationToken::new();
        }
        inner.connect(peer(seed));
        inner.publish();
    }

    /// Who banned whom, and why.
    pub(crate) fn bans(&self) -> Vec<(PeerId, PeerId, String)> {
        self.inner().bans.clone()
    }

    /// Lookups that were made.
    pub(crate) fn lookups(&self) -> usize {
        self.inner().lookups
    }

    async fn run(&self, local: PeerId, command: Command) {
        // Whoever asked may have given up; then nobody needs the answer.
        match command {
            Command::AcceptStreams { protocol, streams, reply } => {
                let mut inner = self.inner();
                if let Some(node) = inner.nodes.get_mut(&local) {
                    node.acceptors.insert(protocol, streams);
                }
                if !inner.sparse {
                    inner.connect(local);
                }
                inner.publish();
                let _ = reply.send(Ok(()));
            }
            Command::OpenStream { peer, protocol, reply } => {
                let _ = reply.send(self.open(local, peer, protocol));
            }
            Command::DialPeer { peer, reply } => {
                let mut inner = self.inner();
                let here = inner.nodes.get(&peer).is_some_and(|node| node.here);
                if here {
                    inner.meet(local, peer);
                    inner.publish();
                }
                let _ = reply.send(if here { Ok(()) } else { Err(unreachable(peer)) });
            }
            Command::ClosestPeers { preimage, reply } => {
                let mut inner = self.inner();
                inner.lookups += 1;
                let candidates: Vec<Candidate> = inner
                    .nodes
                    .iter()
                    .filter(|(peer, node)| **peer != local && node.here)
                    .map(|(peer, _)| Candidate::from(*peer))
                    .collect();
                let hash = p2p_protocol::Multihash::from_bytes(&preimage).expect("a chunk's hash is looked up");
                let _ = reply.send(Ok(closest(&Key::from(&hash), &candidates, 20)));
            }
            Command::Ban { peer, reason, .. } => self.inner().bans.push((local, peer, reason)),
            _ => {}
        }
    }

    fn open(&self, from: PeerId, to: PeerId, protocol: String) -> Result<crate::net::Stream, NetError> {
        let (near, near_end) = duplex(64 * 1024);
        let (far, far_end) = duplex(64 * 1024);
        let inner = self.inner();
        let (Some(opener), Some(node)) = (inner.nodes.get(&from), inner.nodes.get(&to)) else {
            return Err(unreachable(to));
        };
        if !node.here || !opener.here {
            return Err(unreachable(to));
        }
        let Some(acceptor) = node.acceptors.get(&protocol) else {
            return Err(NetError::Unsupported { peer: to, protocol });
        };
        acceptor.try_send((from, Box::new(far.compat()))).map_err(|_| unreachable(to))?;
        tokio::spawn(pump(near_end, far_end, opener.present.clone(), node.present.clone()));
        Ok(Box::new(near.compat()))
    }
}

impl Inner {
    /// Connects `peer` with all who are here, at a new epoch.
    fn connect(&mut self, peer: PeerId) {
        if let Some(node) = self.nodes.get_mut(&peer) {
            node.epoch += 1;
        }
        let others: Vec<PeerId> = self.nodes.keys().filter(|other| **other != peer).copied().collect();
        for other in others {
            self.meet(peer, other);
        }
    }

    fn meet(&mut self, a: PeerId, b: PeerId) {
        for (from, to) in [(a, b), (b, a)] {
            let Some(known) = self.nodes.get(&to) else { continue };
            let row = Peer {
                connected: known.here,
                addresses: Vec::new(),
                protocols: known.acceptors.keys().cloned().collect(),
                agent: None,
                latency: Some(Duration::from_millis(1)),
                source: Source::Bootstrap,
                epoch: known.epoch,
            };
            if let Some(node) = self.nodes.get_mut(&from) {
                node.table.send_modify(|table| {
                    Arc::make_mut(table).peers.insert(to, row);
                });
            }
        }
    }

    /// Brings every table in line with who is here.
    fn publish(&mut self) {
        let state: BTreeMap<PeerId, (bool, u64, Vec<String>)> = self
            .nodes
            .iter()
            .map(|(peer, node)| (*peer, (node.here, node.epoch, node.acceptors.keys().cloned().collect())))
            .collect();
        for node in self.nodes.values() {
            node.table.send_modify(|table| {
                for (peer, row) in &mut Arc::make_mut(table).peers {
                    if let Some((here, epoch, protocols)) = state.get(peer) {
                        row.connected = *here && node.here;
                        row.epoch = *epoch;
                        row.protocols.clone_from(protocols);
                    }
                }
            });
        }
    }
}

fn unreachable(peer: PeerId) -> NetError {
    NetError::Unreachable { subject: peer.to_string(), reason: "it is not there".into() }
}

async fn pump(mut near: DuplexStream, mut far: DuplexStream, one: CancellationToken, other: CancellationToken) {
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        () = one.cancelled() => {}
        () = other.cancelled() => {}
    }
}

/// Waits until `condition` holds; it is an error where that takes a minute of the (paused) clock.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = timeout(Duration::from_secs(60), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "it never came to this: {what}");
}
