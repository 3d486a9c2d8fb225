//! Real swarms in one process: on the memory transport, or on sockets of 127.0.0.1. They run in real time.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, identity::Keypair};
use p2p_node::net::{self, Config, Driver, Listen, NetError, Network, PeerTable, TransportKind, Tuning};
use tokio::time::{Instant, sleep};

/// How long anything may take before a test gives up: nothing takes a tenth of it, unless the machine is overloaded.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A node of the network layer alone: a swarm and its handle.
pub struct Swarm {
    /// The handle.
    pub network: Network,
    /// The other end.
    pub driver: Driver,
    keypair: Keypair,
}

/// How a swarm is started; `Options::default()` is a lone node in memory.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its identity; a new one if none is given.
    pub keypair: Option<Keypair>,
    /// The network's name.
    pub network: String,
    /// Where it listens.
    pub listen: Listen,
    /// Whom it joins through.
    pub bootstrap: Vec<Multiaddr>,
    /// Whom it knows of an earlier run.
    pub known: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Memory or sockets.
    pub transport: TransportKind,
    /// Times and sizes.
    pub tuning: Tuning,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keypair: None,
            network: "test".to_owned(),
            listen: Listen::Default { port: 0 },
            bootstrap: Vec::new(),
            known: Vec::new(),
            transport: TransportKind::Memory,
            // Peers that drop are redialled fast, and the dead are noticed fast, so that tests are.
            tuning: Tuning { redial_least: Duration::from_millis(200), ..Tuning::default() },
        }
    }
}

impl Options {
    /// Sockets of 127.0.0.1 instead: `tcp`, `quic`, or both.
    pub fn on_loopback(mut self, tcp: bool, quic: bool) -> Self {
        let mut listen = Vec::new();
        if tcp {
            listen.push(multiaddr("/ip4/127.0.0.1/tcp/0"));
        }
        if quic {
            listen.push(multiaddr("/ip4/127.0.0.1/udp/0/quic-v1"));
        }
        self.listen = Listen::Exact(listen);
        self.transport = TransportKind::Real;
        self
    }

    /// Joins through `other`.
    pub fn through(mut self, other: &Swarm) -> Self {
        self.bootstrap.extend(other.addresses());
        self
    }

    /// Starts it.
    pub async fn start(self) -> Swarm {
        self.try_start().await.expect("a swarm that starts")
    }

    /// Starts it where another one listened until just now: its port may take a moment to be free.
    pub async fn restart(self) -> Swarm {
        let start = Instant::now();
        loop {
            match self.clone().try_start().await {
                Ok(swarm) => return swarm,
                Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts it, or says why not.
    pub async fn try_start(self) -> Result<Swarm, NetError> {
        let keypair = self.keypair.unwrap_or_else(Keypair::generate_ed25519);
        let config = Config {
            keypair: keypair.clone(),
            network: self.network,
            listen: self.listen,
            bootstrap: self.bootstrap,
            known: self.known,
            mdns: false,
            transport: self.transport,
        };
        let (network, driver) = net::start_tuned(config, self.tuning).await?;
        Ok(Swarm { network, driver, keypair })
    }
}

impl Swarm {
    /// Its peer id.
    pub fn id(&self) -> PeerId {
        self.network.local()
    }

    /// Its identity.
    pub fn keypair(&self) -> Keypair {
        self.keypair.clone()
    }

    /// Where it listens, without `/p2p/…`.
    pub fn listen(&self) -> Vec<Multiaddr> {
        self.network.peers().borrow().listen.clone()
    }

    /// Where it listens, with `/p2p/…`.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        self.listen()
            .into_iter()
            .map(|address| address.with_p2p(self.id()).expect("no other peer id is in it"))
            .collect()
    }

    /// Waits until its peer table is as `condition` says.
    pub async fn until(&self, what: &str, condition: impl FnMut(&PeerTable) -> bool) {
        until(&self.network, what, condition).await;
    }

    /// Waits until exactly these peers are connected.
    pub async fn meets(&self, others: &[PeerId]) {
        self.until(&format!("{} others", others.len()), |table| {
            let connected = table.peers.iter().filter(|(_, peer)| peer.connected).count();
            connected == others.len() && others.iter().all(|id| table.peers.get(id).is_some_and(|p| p.connected))
        })
        .await;
    }
}

/// `count` swarms, the first of which is the bootstrap peer of all others, connected in a full mesh.
pub async fn mesh(count: usize, options: &Options) -> Vec<Swarm> {
    let mut swarms = vec![options.clone().start().await];
    for _ in 1..count {
        swarms.push(options.clone().through(&swarms[0]).start().await);
    }
    meet(&swarms).await;
    swarms
}

/// Waits until all of them are connected with all others.
pub async fn meet(swarms: &[Swarm]) {
    for swarm in swarms {
        let others: Vec<_> = swarms.iter().map(Swarm::id).filter(|id| *id != swarm.id()).collect();
        swarm.meets(&others).await;
    }
}

/// The handles.
pub fn networks(swarms: &[Swarm]) -> Vec<Network> {
    swarms.iter().map(|swarm| swarm.network.clone()).collect()
}

/// Waits until a node's peer table is as `condition` says.
///
/// # Panics
/// After [`LIMIT`], with `what` and the table.
pub async fn until(network: &Network, what: &str, mut condition: impl FnMut(&PeerTable) -> bool) {
    let mut peers = network.peers();
    let waited = tokio::time::timeout(LIMIT, peers.wait_for(|table| condition(table))).await;
    match waited {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => panic!("the node stopped while this was waited for: {what}"),
        Err(_) => panic!("not within {LIMIT:?}: {what}; the table is {:?}", network.peers().borrow()),
    }
}

/// An address.
pub fn multiaddr(text: &str) -> Multiaddr {
    text.parse().expect("a multiaddr")
}
