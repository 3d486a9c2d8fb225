//! The network as services see it: a handle with about ten commands and a watch on the peer table.
//!
//! Bytes never pass the driver: it hands out streams. Nothing here knows a chunk, a name or a replica.
//! Behind the handle: [`driver`] routes, and each component (`dial`, `peers`, `discovery`, `dht`, `gossip`,
//! `streams`, `bans`) owns its own pending maps.

pub mod address;
mod bans;
mod behaviour;
mod dht;
mod dial;
mod discovery;
pub mod driver;
mod gather;
mod gossip;
pub mod heard;
mod listen;
mod peers;
mod providers;
mod pulse;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
mod streams;
mod transport;

use std::{collections::BTreeMap, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use futures::{AsyncRead, AsyncWrite};
use libp2p::{Multiaddr, PeerId, identity::Keypair};
use p2p_protocol::wire::version::{Dialect, Spoken};
use tokio::sync::{mpsc, oneshot, watch};

pub use bans::BAN;
pub use driver::{Driver, start, start_tuned};
pub use heard::Heard;
pub use p2p_protocol::{discovery::Source, wire::version::protocol_name};

/// What a node joins the network with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its identity.
    pub keypair: Keypair,
    /// The network's name: part of every protocol name.
    pub network: String,
    /// Where peers reach it.
    pub listen: Listen,
    /// Peers to join through, `/p2p/ID` at the end optional; tried for as long as the node runs.
    pub bootstrap: Vec<Multiaddr>,
    /// Peers of an earlier run, tried at the start.
    pub known: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// Sockets, or channels within the process.
    pub transport: TransportKind,
}

/// Where a node listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// On these addresses; one that is taken is an error. Port 0 is any free one.
    Exact(Vec<Multiaddr>),
    /// TCP and QUIC on every address, IPv4 and IPv6 where there is IPv6; another port if this one is taken.
    Default {
        /// The port that is tried first.
        port: u16,
    },
}

/// What connections are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransportKind {
    /// TCP and QUIC.
    Real,
    /// Channels within the process (`/memory/N`), for tests.
    Memory,
}

/// Times and sizes that only tests change.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// The longest that a connection may take to be made, upgrades included.
    pub handshake: Duration,
    /// A peer that was not heard for so long is pinged.
    pub quiet: Duration,
    /// So is one that something was said to, if no byte came back for so long.
    pub doubt: Duration,
    /// A connection on which a ping brings nothing within this time is closed.
    pub silence: Duration,
    /// Up to so many known peers, every one of them is connected; beyond, the nearest.
    pub full_mesh: usize,
    /// How long the first look around by mDNS takes.
    pub mdns_first: Duration,
    /// The longest that the first round of discovery may take.
    pub first_round: Duration,
    /// The first wait before a peer that dropped is dialled again; it doubles up to `redial_most`.
    pub redial_least: Duration,
    /// The longest wait between two attempts to reach a peer.
    pub redial_most: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            // Three round trips and a key exchange: long even for a satellite link (a guess).
            handshake: Duration::from_secs(10),
            // A dead peer that nobody needs may be taken for a live one for so long; a ping more often costs bytes and
            // batteries, for ever, on every connection.
            quiet: Duration::from_secs(600),
            // A dead peer that is used is noticed within 20 s. Both are long enough for a busy link, on which anything
            // that comes back counts.
            doubt: Duration::from_secs(8),
            silence: Duration::from_secs(10),
            // 64 idle connections are a few MiB; the networks that this is for are smaller.
            full_mesh: 64,
            mdns_first: Duration::from_millis(1500),
            first_round: Duration::from_secs(10),
            redial_least: Duration::from_secs(1),
            redial_most: Duration::from_secs(60),
        }
    }
}

/// A byte stream to a peer: a libp2p substream, or a pipe of the simulated network.
pub trait StreamIo: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> StreamIo for T {}
/// A boxed [`StreamIo`].
pub type Stream = Box<dyn StreamIo>;

/// Commands that may wait for the driver: enough that a burst of services does not block (a guess).
pub const COMMANDS: usize = 256;

/// A peer of this network that is, or lately was, connected and identified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Whether a connection is up and identify is done on it.
    pub connected: bool,
    /// Where it can be dialled, without `/p2p/…`.
    pub addresses: Vec<Multiaddr>,
    /// The protocols that its identify lists.
    pub protocols: Vec<String>,
    /// What it says it runs.
    pub agent: Option<String>,
    /// How it was found.
    pub source: Source,
    /// Counts its connections' comings: a change means that streams to it are new.
    pub epoch: u64,
    /// When it was last heard, and the last measured round trip: as they are when they are read, without the table being
    /// published anew.
    pub heard: Heard,
}

/// What the driver knows, published whenever it changes. Its clones share the rows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerTable {
    /// Every identified peer of this network; disconnected ones stay for an hour.
    pub peers: BTreeMap<PeerId, Arc<Peer>>,
    /// Addresses that this node listens on, ports real, without `/p2p/…`.
    pub listen: Vec<Multiaddr>,
    /// The first round of discovery (bootstrap and remembered peers tried, a look around by mDNS, a lookup of self) is over.
    pub discovered: bool,
    /// No Kademlia bucket is full: every peer of the network can be in `peers`.
    pub complete: bool,
}

/// What a subscriber thinks of a gossiped message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Valid: forward it.
    Accept,
    /// Not worth forwarding (old, known), nobody's fault.
    Ignore,
    /// Invalid: its sender is at fault.
    Reject,
}

/// A gossiped message that waits for its verdict before it is forwarded.
#[derive(Debug)]
pub struct GossipMessage {
    /// What was said.
    pub data: Bytes,
    /// The peer that passed it on (not its author).
    pub from: PeerId,
    /// Where the verdict goes; dropped = ignore.
    pub verdict: oneshot::Sender<Verdict>,
}

/// An inbound stream and who opened it.
pub type Inbound = (PeerId, Stream);

/// What the driver (or the simulated network) is asked.
pub enum Command {
    /// Dial an address; answered once the peer is identified as one of this network.
    #[allow(missing_docs)]
    Dial { address: Multiaddr, source: Source, reply: oneshot::Sender<Result<PeerId, NetError>> },
    /// Dial a known peer; answered as `Dial`. At once if it is connected.
    #[allow(missing_docs)]
    DialPeer { peer: PeerId, reply: oneshot::Sender<Result<(), NetError>> },
    /// The peers nearest to SHA-256(`preimage`), at most 20, never this one.
    #[allow(missing_docs)]
    ClosestPeers { preimage: Vec<u8>, reply: oneshot::Sender<Result<Vec<PeerId>, NetError>> },
    /// Announce this node as provider of a root (a Kademlia provider record).
    #[allow(missing_docs)]
    Provide { key: Vec<u8>, reply: oneshot::Sender<Result<(), NetError>> },
    /// Who announced that it provides a root.
    #[allow(missing_docs)]
    Providers { key: Vec<u8>, reply: oneshot::Sender<Result<Vec<PeerId>, NetError>> },
    /// Open a stream to a peer (dialled if it is not connected).
    #[allow(missing_docs)]
    OpenStream { peer: PeerId, protocol: String, reply: oneshot::Sender<Result<Stream, NetError>> },
    /// Send this protocol's inbound streams to `streams`; one acceptor a protocol.
    #[allow(missing_docs)]
    AcceptStreams { protocol: String, streams: mpsc::Sender<Inbound>, reply: oneshot::Sender<Result<(), NetError>> },
    /// Join a gossip topic; one subscriber a topic.
    #[allow(missing_docs)]
    Subscribe { topic: String, messages: mpsc::Sender<GossipMessage>, reply: oneshot::Sender<Result<(), NetError>> },
    /// Say something on a topic; nobody listening is not an error.
    #[allow(missing_docs)]
    Publish { topic: String, data: Bytes, reply: oneshot::Sender<Result<(), NetError>> },
    /// Disconnect a peer that broke the rules and refuse it for so long.
    #[allow(missing_docs)]
    Ban { peer: PeerId, duration: Duration, reason: String },
}

/// Why the network did not do as it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NetError {
    /// The peer could not be reached.
    #[error("cannot reach {subject}: {reason}")]
    Unreachable {
        /// The peer or address.
        subject: String,
        /// What was tried and how it failed.
        reason: String,
    },
    /// It is a node of another network, or no p2p-node at all.
    #[error("{subject} is not a node of this network: {reason}")]
    WrongNetwork {
        /// The peer or address.
        subject: String,
        /// What it speaks.
        reason: String,
    },
    /// The peer does not speak the protocol.
    #[error("{peer} does not speak {protocol}")]
    Unsupported {
        /// The peer.
        peer: PeerId,
        /// The protocol.
        protocol: String,
    },
    /// A listen address could not be bound.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// Why.
        reason: String,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
    /// It took too long.
    #[error("{subject} did not answer in time")]
    Timeout {
        /// What was waited for.
        subject: String,
    },
}

/// The handle: clone it freely. The other end is the driver, or the simulated network.
#[derive(Clone, Debug)]
pub struct Network {
    local: PeerId,
    commands: mpsc::Sender<Command>,
    peers: watch::Receiver<Arc<PeerTable>>,
    dialect: Dialect,
}

impl Network {
    /// A handle whose commands go to `commands` and whose table is `peers`.
    pub fn new(local: PeerId, commands: mpsc::Sender<Command>, peers: watch::Receiver<Arc<PeerTable>>) -> Self {
        Self { local, commands, peers, dialect: Dialect::default() }
    }

    /// The same handle for services that speak `dialect`: so tests start a node of a later version.
    pub fn speaking(self, dialect: Dialect) -> Self {
        Self { dialect, ..self }
    }

    /// What the services of this node speak.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// This node.
    pub fn local(&self) -> PeerId {
        self.local
    }

    /// The peer table, as it is and as it changes.
    pub fn peers(&self) -> watch::Receiver<Arc<PeerTable>> {
        self.peers.clone()
    }

    /// Dials an address; returns once the peer is identified as one of this network.
    pub async fn dial(&self, address: Multiaddr, source: Source) -> Result<PeerId, NetError> {
        self.ask(|reply| Command::Dial { address, source, reply }).await
    }

    /// Dials a known peer; at once if it is connected.
    pub async fn dial_peer(&self, peer: PeerId) -> Result<(), NetError> {
        self.ask(|reply| Command::DialPeer { peer, reply }).await
    }

    /// The peers nearest to SHA-256(`preimage`), nearest first, at most 20, this node never among them.
    pub async fn closest_peers(&self, preimage: Vec<u8>) -> Result<Vec<PeerId>, NetError> {
        self.ask(|reply| Command::ClosestPeers { preimage, reply }).await
    }

    /// Announces this node as provider of a root.
    pub async fn provide(&self, key: Vec<u8>) -> Result<(), NetError> {
        self.ask(|reply| Command::Provide { key, reply }).await
    }

    /// Who announced that it provides a root.
    pub async fn providers(&self, key: Vec<u8>) -> Result<Vec<PeerId>, NetError> {
        self.ask(|reply| Command::Providers { key, reply }).await
    }

    /// Opens a stream.
    pub async fn open_stream(&self, peer: PeerId, protocol: impl Into<String>) -> Result<Stream, NetError> {
        let protocol = protocol.into();
        self.ask(|reply| Command::OpenStream { peer, protocol, reply }).await
    }

    /// Takes a protocol's inbound streams; `capacity` of them wait at most.
    pub async fn accept_streams(
        &self,
        protocol: impl Into<String>,
        capacity: usize,
    ) -> Result<mpsc::Receiver<Inbound>, NetError> {
        let (streams, inbound) = mpsc::channel(capacity);
        let protocol = protocol.into();
        self.ask(|reply| Command::AcceptStreams { protocol, streams, reply }).await?;
        Ok(inbound)
    }

    /// Opens a stream of the newest version that the peer speaks; gives which one that is.
    ///
    /// # Errors
    /// [`NetError::Unsupported`] where the peer speaks none of them.
    pub async fn open_spoken(&self, peer: PeerId, spoken: &Spoken) -> Result<(u8, Stream), NetError> {
        let listed = self.peers.borrow().peers.get(&peer).map(|row| row.protocols.clone()).unwrap_or_default();
        let mut refused = NetError::Unsupported { peer, protocol: String::new() };
        for (version, name) in spoken.to_try(&listed) {
            match self.open_stream(peer, name).await {
                Ok(stream) => return Ok((version, stream)),
                Err(error @ NetError::Unsupported { .. }) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    /// Takes a protocol's inbound streams in every version that is spoken; `capacity` of each wait at most.
    pub async fn accept_spoken(&self, spoken: &Spoken, capacity: usize) -> Result<Acceptor, NetError> {
        let mut inbound = Vec::with_capacity(2);
        for (version, name) in spoken.names() {
            inbound.push((version, self.accept_streams(name, capacity).await?));
        }
        Ok(Acceptor { inbound })
    }

    /// Joins a gossip topic; `capacity` messages wait at most, more are ignored.
    pub async fn subscribe(
        &self,
        topic: impl Into<String>,
        capacity: usize,
    ) -> Result<mpsc::Receiver<GossipMessage>, NetError> {
        let (messages, heard) = mpsc::channel(capacity);
        let topic = topic.into();
        self.ask(|reply| Command::Subscribe { topic, messages, reply }).await?;
        Ok(heard)
    }

    /// Says something on a topic.
    pub async fn publish(&self, topic: impl Into<String>, data: Bytes) -> Result<(), NetError> {
        let topic = topic.into();
        self.ask(|reply| Command::Publish { topic, data, reply }).await
    }

    /// Disconnects a peer that broke the rules and refuses it for `duration`.
    pub async fn ban(&self, peer: PeerId, duration: Duration, reason: impl Into<String>) {
        let reason = reason.into();
        // A driver that is gone has no connection to that peer either.
        let _ = self.commands.send(Command::Ban { peer, duration, reason }).await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, NetError>>) -> Command,
    ) -> Result<T, NetError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| NetError::Stopped)?;
        answer.await.map_err(|_| NetError::Stopped)?
    }
}

/// The inbound streams of one protocol in every version that is spoken.
#[derive(Debug)]
pub struct Acceptor {
    inbound: Vec<(u8, mpsc::Receiver<Inbound>)>,
}

impl Acceptor {
    /// The next stream, who opened it and in which version; `None` when the network is gone. Cancel-safe.
    pub async fn recv(&mut self) -> Option<(u8, PeerId, Stream)> {
        std::future::poll_fn(|context| {
            let mut open = false;
            for (version, streams) in &mut self.inbound {
                match streams.poll_recv(context) {
                    Poll::Ready(Some((peer, stream))) => return Poll::Ready(Some((*version, peer, stream))),
                    Poll::Ready(None) => {}
                    Poll::Pending => open = true,
                }
            }
            if open { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }
}
