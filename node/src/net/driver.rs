//! The driver: the swarm's loop. It only routes; what waits, waits in the components.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    connection_limits::ConnectionLimits,
    core::transport::ListenerId,
    identify, kad, mdns,
    swarm::{
        DialError, StreamUpgradeError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use p2p_protocol::{chance::Chance, discovery::Input};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{
    COMMANDS, Command, Config, NetError, Network, PeerTable, Source, Tuning, address,
    bans::{BAN, Bans},
    behaviour::{Behaviour, BehaviourEvent},
    dht::Dht,
    dial::{self, Attempt, Dials, Reply},
    discovery::Discovery,
    gossip::{Decided, Gossip},
    heard::Ears,
    listen,
    peers::{Identified, Patience, Peers},
    streams::Streams,
    transport,
};

/// How often time is told to the components without a timer of their own. The peer table needs a regular beat, to tell
/// that this node slept from peers that fell silent; bans and dials that are waited for need no better clock than that.
const TICK: Duration = Duration::from_secs(1);
/// How long the first listen addresses are waited for; interfaces are reported at once.
const LISTEN_WITHIN: Duration = Duration::from_secs(5);
/// The pause after which no more listen addresses are expected.
const LISTEN_QUIET: Duration = Duration::from_millis(50);
/// How long a peer may take to identify itself.
const IDENTIFY_WITHIN: Duration = Duration::from_secs(10);
/// How long closing takes at the most.
const CLOSE_WITHIN: Duration = Duration::from_millis(1500);

/// Joins the network. Returns once it listens: the table's `listen` has real addresses and ports.
///
/// # Errors
/// [`NetError::Listen`] where an address of [`super::Listen::Exact`] cannot be had.
pub async fn start(config: Config) -> Result<(Network, Driver), NetError> {
    start_tuned(config, Tuning::default()).await
}

/// [`start`], with other times than the usual ones: for tests.
///
/// # Errors
/// As [`start`].
pub async fn start_tuned(config: Config, tuning: Tuning) -> Result<(Network, Driver), NetError> {
    let local = config.keypair.public().to_peer_id();
    let plan = listen::plan(&config.listen, config.transport)?;
    let behaviour = Behaviour::new(&config.keypair, &config.network, config.mdns, &tuning)?;
    let control = behaviour.streams.new_control();
    let ears = Ears::default();
    let swarm = transport::swarm(&config, behaviour, &tuning, &ears)?;
    let (commands, orders) = mpsc::channel(COMMANDS);
    let (table, watched) = watch::channel(Arc::new(PeerTable::default()));
    let now = Instant::now();
    let patience = tuning.handshake + IDENTIFY_WITHIN;
    let mut driver = Loop {
        local,
        swarm,
        dials: Dials::new(patience),
        peers: Peers::new(&config.network, Patience::from(&tuning), ears, table),
        discovery: Discovery::new(local, &config, &tuning, Chance::new(rand::random()), now),
        dht: Dht::new(local),
        gossip: Gossip::default(),
        streams: Streams::new(control),
        bans: Bans::default(),
        listeners: Vec::new(),
        tuning,
    };
    driver.listen(plan).await?;
    driver.publish();
    let (stop, stopping) = oneshot::channel();
    let task = tokio::spawn(driver.run(orders, stopping));
    Ok((Network::new(local, commands, watched), Driver { stop: Some(stop), task }))
}

/// The running end of a [`Network`]. Dropped, it ends at once without a farewell to the peers.
#[derive(Debug)]
pub struct Driver {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Driver {
    /// Closes the connections and ends, within 2 s. Commands from now on get [`NetError::Stopped`].
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            // A loop that ended already needs no telling.
            let _ = stop.send(());
        }
        if timeout(CLOSE_WITHIN + TICK, &mut self.task).await.is_err() {
            tracing::warn!("connections did not close in time");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Loop {
    local: PeerId,
    swarm: Swarm<Behaviour>,
    dials: Dials,
    peers: Peers,
    discovery: Discovery,
    dht: Dht,
    gossip: Gossip,
    streams: Streams,
    bans: Bans,
    listeners: Vec<ListenerId>,
    tuning: Tuning,
}

impl Loop {
    async fn run(mut self, mut orders: mpsc::Receiver<Command>, mut stopping: oneshot::Receiver<()>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commanded = true;
        loop {
            let held = self.gossip.due();
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                order = orders.recv(), if commanded => match order {
                    Some(order) => self.on_command(order),
                    // Every handle is gone: the node still serves until it is stopped.
                    None => commanded = false,
                },
                decided = self.gossip.decided() => self.on_decided(&decided),
                () = until(held) => self.gossip.say_held(&mut self.swarm.behaviour_mut().gossipsub, Instant::now()),
                () = self.discovery.due() => {}
                _ = tick.tick() => self.on_tick(),
                _ = &mut stopping => break,
            }
            self.discovery.act(&mut self.swarm, &mut self.dht);
            self.publish();
        }
        drop(orders);
        self.close().await;
    }

    /// Listens on the first set of addresses that works, and waits until they are known.
    async fn listen(&mut self, plan: listen::Plan) -> Result<(), NetError> {
        let mut refused = None;
        'sets: for set in plan.sets {
            let mut listeners = Vec::new();
            for wanted in set {
                match self.swarm.listen_on(wanted.clone()) {
                    Ok(id) => listeners.push(id),
                    Err(error) => {
                        refused = Some(unlistenable(&wanted, error));
                        for id in listeners {
                            self.swarm.remove_listener(id);
                        }
                        continue 'sets;
                    }
                }
            }
            let wait = if listeners.is_empty() { Duration::ZERO } else { LISTEN_WITHIN };
            let until = tokio::time::Instant::now() + wait;
            let (listening, mut missing) = (listeners.clone(), listeners);
            loop {
                let quiet = if missing.is_empty() { LISTEN_QUIET } else { wait };
                let until = until.min(tokio::time::Instant::now() + quiet);
                let Ok(event) = tokio::time::timeout_at(until, self.swarm.select_next_some()).await else { break };
                if let SwarmEvent::NewListenAddr { listener_id, .. } = &event {
                    missing.retain(|id| id != listener_id);
                }
                self.on_event(event);
            }
            self.listeners = listening;
            return Ok(());
        }
        refused.map_or(Ok(()), Err)
    }

    fn on_command(&mut self, command: Command) {
        let now = Instant::now();
        let behaviour = self.swarm.behaviour_mut();
        match command {
            Command::Dial { address, source, reply } => self.dial_address(address, source, Reply::Peer(reply)),
            Command::DialPeer { peer, reply } => self.dial_peer(peer, Reply::Done(reply)),
            Command::ClosestPeers { preimage, reply } => {
                let whole = self.complete().then(|| self.peers.connected().copied().collect());
                self.dht.closest(&mut self.swarm.behaviour_mut().kad, preimage, whole, reply);
            }
            Command::Provide { key, reply } => self.dht.provide(&mut behaviour.kad, &key, reply),
            Command::Providers { key, reply } => self.dht.providers(&mut behaviour.kad, &key, reply),
            Command::OpenStream { peer, protocol, reply } => {
                let (connected, waits) = oneshot::channel();
                self.dial_peer(peer, Reply::Done(connected));
                self.streams.open(peer, protocol, waits, self.peers.heard(&peer), reply);
            }
            // Whoever asked and went away needs no answer, here and below.
            Command::AcceptStreams { protocol, streams, reply } => {
                let _ = reply.send(self.streams.accept(protocol, streams));
            }
            Command::Subscribe { topic, messages, reply } => {
                let _ = reply.send(self.gossip.subscribe(&mut behaviour.gossipsub, &topic, messages));
            }
            Command::Publish { topic, data, reply } => {
                let _ = reply.send(self.gossip.publish(&mut behaviour.gossipsub, &topic, data, now));
            }
            Command::Ban { peer, duration, reason } => self.ban(peer, duration, &reason),
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::Behaviour(event) => self.on_protocol(event, now),
            SwarmEvent::ConnectionEstablished { peer_id: peer, connection_id: id, endpoint, .. } => {
                self.peers.on_established(peer, id, &endpoint, now);
                self.discovery.on_established(id, peer);
                if let Some(attempt) = self.dials.on_established(id, peer) {
                    self.discovery.learn(peer, vec![attempt.address], attempt.source);
                }
                if self.peers.is_connected(&peer) {
                    self.dials.on_identified(peer);
                }
            }
            SwarmEvent::ConnectionClosed { peer_id: peer, connection_id: id, cause, .. } => {
                tracing::debug!(%peer, ?cause, "a connection closed");
                if self.peers.on_closed(peer, id, now) {
                    self.discovery.handle(Input::Lost { peer });
                    self.dials.on_lost(peer, "it closed the connection");
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error, .. } => {
                tracing::debug!(peer = ?peer_id, "a dial failed: {error}");
                self.discovery.on_failed(connection_id, peer_id, &error);
                let open = peer_id.is_some_and(|peer| self.peers.is_open(&peer));
                self.dials.on_failed(connection_id, peer_id, open, &error);
            }
            SwarmEvent::NewListenAddr { address, .. } => self.peers.on_listen(&address, true),
            SwarmEvent::ExpiredListenAddr { address, .. } => self.peers.on_listen(&address, false),
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                for address in addresses {
                    if let Err(error) = &reason {
                        tracing::error!(%address, "no longer listening: {error}");
                    }
                    self.peers.on_listen(&address, false);
                }
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!("a listener failed for a moment: {error}"),
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, "an incoming connection failed: {error}");
            }
            _ => {}
        }
    }

    fn on_protocol(&mut self, event: BehaviourEvent, now: Instant) {
        match event {
            BehaviourEvent::Identify(event) => self.on_identify(event, now),
            BehaviourEvent::Pulse(pong) => self.peers.on_pong(pong, now),
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Gossipsub(event) => {
                self.gossip.on_event(&mut self.swarm.behaviour_mut().gossipsub, event);
            }
            BehaviourEvent::Mdns4(event) | BehaviourEvent::Mdns6(event) => self.on_mdns(event),
            BehaviourEvent::Limits(never) | BehaviourEvent::Blocked(never) => match never {},
            BehaviourEvent::Streams(()) => {}
        }
    }

    fn on_identify(&mut self, event: identify::Event, now: Instant) {
        match event {
            identify::Event::Received { peer_id: peer, info, .. } => {
                let source = self.discovery.machine().source(&peer);
                match self.peers.on_identify(peer, info, source, now) {
                    Some(Identified::Ours { addresses, first }) => {
                        Dht::insert(&mut self.swarm.behaviour_mut().kad, peer, &addresses);
                        if first {
                            let source = source.unwrap_or(Source::Incoming);
                            self.discovery.handle(Input::Connected { peer, addresses, source });
                            self.dials.on_identified(peer);
                        } else {
                            self.discovery.learn(peer, addresses, source.unwrap_or(Source::Incoming));
                        }
                    }
                    Some(Identified::Foreign { speaks }) => {
                        tracing::debug!(%peer, %speaks, "not a node of this network");
                        self.swarm.behaviour_mut().kad.remove_peer(&peer);
                        self.discovery.on_foreign(peer);
                        self.dials.on_foreign(peer, &format!("it speaks {speaks:?}"));
                    }
                    None => {}
                }
            }
            identify::Event::Error { peer_id: peer, error: StreamUpgradeError::NegotiationFailed, .. }
                if !self.peers.is_connected(&peer) =>
            {
                self.peers.on_unidentifiable(peer, now);
                self.discovery.on_foreign(peer);
                self.dials.on_foreign(peer, "it does not say what it is");
            }
            _ => {}
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        let found = self.dht.on_event(&mut self.swarm.behaviour_mut().kad, event);
        for (peer, addresses) in found.peers {
            self.discovery.learn(peer, addresses, Source::Kademlia);
        }
        if found.looked {
            self.discovery.handle(Input::Looked);
        }
    }

    fn on_mdns(&mut self, event: mdns::Event) {
        if let mdns::Event::Discovered(found) = event {
            for (peer, address) in found {
                self.discovery.learn(peer, vec![address], Source::Mdns);
                self.peers.found_by(&peer, Source::Mdns);
            }
        }
    }

    fn on_decided(&mut self, decided: &Decided) {
        if self.gossip.on_decided(&mut self.swarm.behaviour_mut().gossipsub, decided) {
            self.ban(decided.from, BAN, "it passed on a message that is not valid");
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        let overdue = self.peers.overdue(IDENTIFY_WITHIN, now);
        for id in overdue.close {
            self.swarm.close_connection(id);
        }
        for (peer, id) in overdue.ask {
            self.swarm.behaviour_mut().pulse.ask(peer, id);
        }
        self.peers.forget_old(now);
        self.bans.tick(&mut self.swarm.behaviour_mut().blocked, now);
        self.dials.tick(now);
    }

    fn dial_address(&mut self, address: Multiaddr, source: Source, reply: Reply) {
        let now = Instant::now();
        let (bare, peer) = address::split_peer(&address);
        let options = match peer {
            // First: the connection of one that is refused may still be closing.
            Some(peer) if self.bans.contains(&peer) => return reply.send(Err(unreachable(&address, BANNED))),
            Some(peer) if self.peers.is_connected(&peer) => {
                self.peers.found_by(&peer, source);
                return reply.send(Ok(peer));
            }
            Some(peer) if peer == self.local => {
                return reply.send(Err(unreachable(&address, "that is this node itself")));
            }
            Some(peer) => DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(vec![bare.clone()])
                .allocate_new_port()
                .build(),
            None => DialOpts::unknown_peer_id().address(bare.clone()).allocate_new_port().build(),
        };
        let attempt = Attempt { id: options.connection_id(), address: bare, source };
        match self.swarm.dial(options) {
            Ok(()) => match peer {
                Some(peer) => self.dials.wait_peer(peer, Some(attempt), reply, now),
                None => self.dials.wait_address(attempt, reply, now),
            },
            // The swarm drops the addresses that it listens on itself.
            Err(DialError::NoAddresses) => reply.send(Err(unreachable(&address, "that is this node itself"))),
            Err(error) => reply.send(Err(unreachable(&address, &dial::reason(&error)))),
        }
    }

    fn dial_peer(&mut self, peer: PeerId, reply: Reply) {
        // First: the connection of one that is refused may still be closing.
        if self.bans.contains(&peer) {
            return reply.send(Err(unreachable(&peer, BANNED)));
        }
        if self.peers.is_connected(&peer) {
            return reply.send(Ok(peer));
        }
        if peer == self.local {
            return reply.send(Err(unreachable(&peer, "that is this node itself")));
        }
        let addresses = address::usable(
            self.discovery.machine().addresses(&peer).into_iter().chain(self.peers.addresses(&peer)),
            true,
        );
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .allocate_new_port()
            .build();
        match self.swarm.dial(options) {
            // Connected, but not identified yet; or being dialled.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {
                self.dials.wait_peer(peer, None, reply, Instant::now());
            }
            Err(error) => reply.send(Err(unreachable(&peer, &dial::reason(&error)))),
        }
    }

    fn ban(&mut self, peer: PeerId, duration: Duration, reason: &str) {
        if peer == self.local {
            return;
        }
        tracing::warn!(%peer, ?duration, "a peer is refused: {reason}");
        self.bans.ban(&mut self.swarm.behaviour_mut().blocked, peer, duration, Instant::now());
        self.swarm.behaviour_mut().kad.remove_peer(&peer);
        self.discovery.handle(Input::Banned { peer, lasts: duration });
        self.peers.forget(&peer);
        self.dials.on_lost(peer, BANNED);
    }

    /// Whether every peer of the network can be in the table.
    fn complete(&mut self) -> bool {
        let most = self.tuning.full_mesh;
        self.peers.len() <= most
            && self.discovery.machine().known() <= most
            && Dht::has_room(&mut self.swarm.behaviour_mut().kad, most.max(20))
    }

    fn publish(&mut self) {
        let complete = self.complete();
        self.peers.publish(self.discovery.machine().discovered(), complete);
    }

    /// Closes the connections; what does not close in time is dropped.
    async fn close(mut self) {
        // Nobody comes in any more: they would find a node that does not answer.
        *self.swarm.behaviour_mut().limits.limits_mut() =
            ConnectionLimits::default().with_max_established(Some(0)).with_max_pending_incoming(Some(0));
        for listener in std::mem::take(&mut self.listeners) {
            self.swarm.remove_listener(listener);
        }
        let peers: Vec<_> = self.peers.open().copied().collect();
        for peer in peers {
            // An error means that it is gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.next().await;
            }
        };
        // What is left then is cut off with the swarm.
        let _ = timeout(CLOSE_WITHIN, closed).await;
    }
}

/// Waits until then; for ever, if that is never. Cancel-safe.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

const BANNED: &str = "it broke the rules and is refused for now";

fn unreachable(subject: &impl ToString, reason: &str) -> NetError {
    NetError::Unreachable { subject: subject.to_string(), reason: reason.to_owned() }
}

fn unlistenable(address: &Multiaddr, error: libp2p::TransportError<std::io::Error>) -> NetError {
    match error {
        libp2p::TransportError::Other(error) => listen::refused(address, &error),
        libp2p::TransportError::MultiaddrNotSupported(_) => NetError::Listen {
            address: address.clone(),
            reason: "no transport for such an address (/ip4/…/tcp/PORT and /ip4/…/udp/PORT/quic-v1 are known)"
                .to_owned(),
        },
    }
}
