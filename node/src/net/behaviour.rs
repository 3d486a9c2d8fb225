//! What the swarm speaks: a line for each protocol, and how each is set.

use std::{num::NonZeroUsize, time::Duration};

use libp2p::{
    PeerId, StreamProtocol,
    allow_block_list::{self, BlockedPeers},
    connection_limits::{self, ConnectionLimits},
    gossipsub, identify,
    identity::Keypair,
    kad, mdns,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::{NetError, Tuning, protocol_name, providers::Providers, pulse::Pulse};

/// The longest gossiped message: a publication is under 4 KiB, so this leaves room for batches.
pub(super) const MAX_GOSSIP_BYTES: usize = 64 * 1024;

/// "Never", as a time that clocks can add.
pub(super) const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How often mDNS asks who is there, once somebody was found; until then it asks after half a second, and then after twice as
/// long each time. Everybody answers everybody's queries, so that the answers grow with the square of the network: a node
/// of fifty sends 1.5 MB of them a day.
const MDNS_QUERIES: Duration = Duration::from_secs(15 * 60);
/// How long an answer is good for: two that get lost are no loss.
const MDNS_TTL: Duration = Duration::from_secs(45 * 60);

/// Every protocol that the swarm speaks.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub limits: connection_limits::Behaviour,
    pub blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub identify: identify::Behaviour,
    pub pulse: Pulse,
    pub kad: kad::Behaviour<Providers>,
    pub gossipsub: gossipsub::Behaviour,
    pub streams: libp2p_stream::Behaviour,
    pub mdns4: Toggle<mdns::tokio::Behaviour>,
    pub mdns6: Toggle<mdns::tokio::Behaviour>,
}

impl Behaviour {
    /// All of them, set for the network `network`.
    pub fn new(keypair: &Keypair, network: &str, mdns: bool, tuning: &Tuning) -> Result<Self, NetError> {
        let local = keypair.public().to_peer_id();
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits()),
            blocked: allow_block_list::Behaviour::default(),
            identify: identify(keypair, network),
            pulse: Pulse::default(),
            kad: kademlia(local, network, tuning)?,
            gossipsub: gossip(network)?,
            streams: libp2p_stream::Behaviour::new(),
            mdns4: multicast(local, mdns, false).into(),
            mdns6: multicast(local, mdns, true).into(),
        })
    }
}

fn limits() -> ConnectionLimits {
    ConnectionLimits::default()
        // Handshakes cost a key exchange each; half-open ones go after the handshake's timeout.
        .with_max_pending_incoming(Some(128))
        // A dial opens up to eight sockets.
        .with_max_pending_outgoing(Some(64))
        // Two nodes that dial each other at once have two; more is a reconnection under way.
        .with_max_established_per_peer(Some(4))
        // An idle connection takes some tens of KiB, so all of them stay under 50 MiB; a quarter is left for
        // connections that this node chose, so that it cannot be cut off by those that come in.
        .with_max_established_incoming(Some(768))
        .with_max_established(Some(1024))
}

fn identify(keypair: &Keypair, network: &str) -> identify::Behaviour {
    let config = identify::Config::new(protocol_name(network, "id", 1), keypair.public())
        .with_agent_version(format!("p2p-node/{}", env!("CARGO_PKG_VERSION")))
        // What changes is pushed; to ask every peer again every five minutes, as is usual, would tell nothing new.
        .with_interval(NEVER)
        .with_push_listen_addr_updates(true)
        // Addresses are kept by discovery, which knows what they are worth.
        .with_cache_size(0);
    identify::Behaviour::new(config)
}

fn kademlia(local: PeerId, network: &str, tuning: &Tuning) -> Result<kad::Behaviour<Providers>, NetError> {
    let mut config = kad::Config::new(stream_protocol(protocol_name(network, "kad", 1))?);
    config
        // Only peers that identify proved to be of this network are inserted, by us.
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        // No bucket is full in a network that is small enough to be known whole.
        .set_kbucket_size(NonZeroUsize::new(tuning.full_mesh.max(20)).unwrap_or(NonZeroUsize::MIN))
        .set_record_filtering(kad::StoreInserts::Unfiltered)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_provider_record_ttl(Some(Duration::from_secs(48 * 60 * 60)))
        .set_provider_publication_interval(Some(Duration::from_secs(12 * 60 * 60)))
        // Discovery looks around by itself, at its own pace.
        .set_periodic_bootstrap_interval(None)
        .set_substreams_timeout(Duration::from_secs(5))
        .set_query_timeout(Duration::from_secs(15));
    let mut kad = kad::Behaviour::with_config(local, Providers::new(local), config);
    // Without this it is a client until an external address is confirmed, which on a LAN never happens.
    kad.set_mode(Some(kad::Mode::Server));
    Ok(kad)
}

fn gossip(network: &str) -> Result<gossipsub::Behaviour, NetError> {
    let config = gossipsub::ConfigBuilder::default()
        // One name, of version 1.1: each further one would stand in what every peer says of itself, and none of what later
        // versions can do is of use for messages that are this short.
        .protocol_id(protocol_name(network, "gossip", 1), gossipsub::Version::V1_1)
        // What is said is signed by its publisher; who passes it on is nobody's business.
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .message_id_fn(|message| gossipsub::MessageId::new(blake3::hash(&message.data).as_bytes()))
        .validate_messages()
        .max_transmit_size(MAX_GOSSIP_BYTES + 1024)
        // One's own messages go to every peer that listens, not only to the mesh, which may still be forming.
        .flood_publish(true)
        .heartbeat_initial_delay(Duration::from_millis(200))
        .heartbeat_interval(Duration::from_secs(1))
        // A verdict may take a while (the store's disk); a message must be kept until then.
        .history_length(12)
        .history_gossip(6)
        .duplicate_cache_time(Duration::from_secs(300))
        .connection_handler_queue_len(1024)
        .build()
        .map_err(|error| invalid(network, error))?;
    gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, config)
        .map_err(|error| invalid(network, error))
}

/// mDNS of one address family; `None` where it is off or the system refuses it, which leaves the other ways.
fn multicast(local: PeerId, on: bool, ipv6: bool) -> Option<mdns::tokio::Behaviour> {
    if !on {
        return None;
    }
    let config = mdns::Config { ttl: MDNS_TTL, query_interval: MDNS_QUERIES, enable_ipv6: ipv6 };
    mdns::tokio::Behaviour::new(config, local)
        .inspect_err(|error| tracing::warn!(ipv6, "no discovery on the local network: {error}"))
        .ok()
}

/// A protocol's name for libp2p; it starts with `/`.
pub(super) fn stream_protocol(name: String) -> Result<StreamProtocol, NetError> {
    StreamProtocol::try_from_owned(name.clone()).map_err(|error| invalid(&name, error))
}

fn invalid(subject: &str, error: impl std::fmt::Display) -> NetError {
    NetError::Unreachable { subject: subject.to_owned(), reason: error.to_string() }
}
