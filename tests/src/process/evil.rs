//! A peer that speaks the network's protocols and lies in them.
//!
//! A real libp2p node (identify, ping, Kademlia, gossipsub) whose transfer and catalogue streams are served by hand, from
//! the byte layouts of `SPEC.md`, so that it can say what the product's own encoders would refuse to.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, gossipsub, identify,
    identity::Keypair,
    kad, noise, ping,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, tls, yamux,
};
use tokio::{runtime::Runtime, sync::mpsc};

use super::{
    Daemon, LONG,
    forge::Chunks,
    sybil::{self, Asked},
    tree::noise,
    until,
};

/// What it does where an honest peer would answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tactic {
    /// Serves its own chunks truly, and takes none.
    Serve,
    /// Says that it keeps whatever it is offered or given and has whatever it is asked about, in audits and catalogues too,
    /// and keeps nothing.
    Acknowledge,
    /// Serves nothing at all, and is no storing peer: it only asks.
    Put,
    /// Claims to hold everything, and sends other bytes.
    WrongBytes,
    /// Begins an answer with a header that claims 4 GiB, and sends as much of it as is taken.
    HugeFrame,
    /// Answers with noise instead of frames.
    Noise,
    /// Breaks off in the middle of an answer.
    Truncate,
    /// Takes every question and answers none.
    Silence,
    /// Answers what was not asked, a thousand times.
    Flood,
    /// Serves chunks truly, and answers the catalogue's catch-up with noise.
    CatalogueNoise,
    /// The same, beginning with a header that claims 4 GiB.
    CatalogueHuge,
    /// The same, breaking off in the middle of a frame.
    CatalogueTruncate,
    /// The same, never answering.
    CatalogueSilence,
}

impl Tactic {
    /// Whether chunks are served truly.
    fn is_true(self) -> bool {
        matches!(self, Self::Serve) || self.is_of_catalogue()
    }

    /// Whether it speaks the catalogue's protocol. Otherwise it does not, so that whoever drops it drops it for its
    /// chunks.
    fn is_of_catalogue(self) -> bool {
        use Tactic::{CatalogueHuge, CatalogueNoise, CatalogueSilence, CatalogueTruncate};
        matches!(self, CatalogueNoise | CatalogueHuge | CatalogueTruncate | CatalogueSilence)
    }
}

/// The most that one answer pours out: enough to be seen in a daemon's memory if it were kept.
const POUR_BYTES: usize = 512 << 20;

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    kad: kad::Behaviour<kad::store::MemoryStore>,
    gossipsub: gossipsub::Behaviour,
    streams: libp2p_stream::Behaviour,
}

type Order = Box<dyn FnOnce(&mut Swarm<Behaviour>) + Send>;

/// The peer; gone when dropped.
pub struct Evil {
    runtime: Option<Runtime>,
    orders: mpsc::UnboundedSender<Order>,
    control: libp2p_stream::Control,
    network: String,
    peer: PeerId,
    topics: Arc<Mutex<BTreeSet<String>>>,
    asked: Arc<Asked>,
}

impl Evil {
    /// Joins `network` through `daemons`, serving `chunks` by `tactic`.
    ///
    /// # Panics
    /// If it cannot: libp2p or the loopback is missing.
    pub fn start(network: &str, daemons: &[&Daemon], tactic: Tactic, chunks: Chunks) -> Self {
        Self::start_as(Keypair::generate_ed25519(), network, daemons, tactic, chunks)
    }

    /// The same with a key that was made before.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_as(keypair: Keypair, network: &str, daemons: &[&Daemon], tactic: Tactic, chunks: Chunks) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let _inside = runtime.enter();
        let mut swarm = swarm(keypair, network);
        let peer = *swarm.local_peer_id();
        let mut control = swarm.behaviour().streams.new_control();
        let protocols = match tactic {
            Tactic::Acknowledge => &["transfer", "catalogue", "audit"][..],
            Tactic::Put => &[],
            _ if tactic.is_of_catalogue() => &["transfer", "catalogue"],
            _ => &["transfer"],
        };
        let asked = Arc::new(Asked::default());
        for &protocol in protocols {
            let mut inbound = control.accept(name(network, protocol)).expect("nobody else takes it");
            let chunks = Arc::new(chunks.clone());
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                while let Some((asker, mut stream)) = inbound.next().await {
                    let (chunks, asked) = (Arc::clone(&chunks), Arc::clone(&asked));
                    let catalogue = protocol == "catalogue";
                    tokio::spawn(async move {
                        // The acceptor of any stream says first that it has it.
                        if stream.write_all(&[TAKEN]).await.is_err() {
                            return;
                        }
                        // Being dropped is what it is here for.
                        let _ = if tactic == Tactic::Acknowledge {
                            sybil::agree(stream, protocol, asker, &asked).await
                        } else if catalogue {
                            disturb(stream, tactic).await
                        } else {
                            answer(stream, tactic, &chunks).await
                        };
                    });
                }
            });
        }
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("an address")).expect("the loopback has free ports");
        for daemon in daemons {
            for address in daemon.listen() {
                swarm.dial(address.parse::<Multiaddr>().expect("an address")).expect("it may dial");
            }
        }
        let (orders, taken) = mpsc::unbounded_channel();
        let topics = Arc::default();
        tokio::spawn(run(swarm, taken, Arc::clone(&topics)));
        drop(_inside);
        Self { runtime: Some(runtime), orders, control, network: network.into(), peer, topics, asked }
    }

    /// What it was asked, if it is one that [acknowledges](Tactic::Acknowledge).
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Its peer id.
    pub fn peer_id(&self) -> String {
        self.peer.to_string()
    }

    /// Waits until `daemon` takes it for a storing peer, as it does for whoever greets like one.
    #[track_caller]
    pub fn wait_until_trusted_by(&self, daemon: &Daemon, others: usize) {
        daemon.wait_for_peers(others + 1);
    }

    /// Waits until `daemon` is connected to it.
    #[track_caller]
    pub fn wait_until_met_by(&self, daemon: &Daemon) {
        let peer = self.peer_id();
        until("the evil peer is met", LONG, || {
            let peers = daemon.json_lines(["peers"]);
            super::wait::check(peers.iter().any(|line| line["peer_id"] == peer.as_str()), format!("{peers:?}"))
        });
    }

    /// Waits until `daemon` is not connected to it.
    #[track_caller]
    pub fn wait_until_dropped_by(&self, daemon: &Daemon) {
        let peer = self.peer_id();
        until("the evil peer is dropped", LONG, || {
            let peers = daemon.json_lines(["peers"]);
            super::wait::check(peers.iter().all(|line| line["peer_id"] != peer.as_str()), format!("{peers:?}"))
        });
    }

    /// Says each of `messages` on every topic that it has heard of; at least one, or it waits for one.
    #[track_caller]
    pub fn gossip(&self, messages: Vec<Vec<u8>>) {
        let topics = until("a topic is heard of", LONG, || {
            let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if topics.is_empty() { Err("none yet") } else { Ok(topics) }
        });
        self.order(move |swarm| {
            for topic in topics {
                for message in &messages {
                    // A full queue or a message said before: there are more where it came from.
                    let _ =
                        swarm.behaviour_mut().gossipsub.publish(gossipsub::IdentTopic::new(&topic), message.clone());
                }
            }
        });
    }

    /// Opens a stream of `protocol` to `daemon`, writes `bytes` as far as they are taken, and reads until the other
    /// side closes or `patience` is over. Gives what was read, at most a MiB.
    ///
    /// Refused streams give nothing: a daemon may well have dropped this peer.
    pub fn throw(&self, daemon: &Daemon, protocol: &str, bytes: Vec<u8>, patience: Duration) -> Vec<u8> {
        self.exchange(daemon, protocol, bytes, 1 << 20, patience)
    }

    /// The same, until `most` bytes were read.
    pub fn exchange(
        &self,
        daemon: &Daemon,
        protocol: &str,
        bytes: Vec<u8>,
        most: usize,
        patience: Duration,
    ) -> Vec<u8> {
        let mut control = self.control.clone();
        let name = name(&self.network, protocol);
        let target: PeerId = daemon.peer_id().parse().expect("a peer id");
        let mut read = Vec::new();
        let thrown = async {
            let Ok(mut stream) = control.open_stream(target, name).await else { return };
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            let mut buffer = vec![0; 1 << 16];
            while let Ok(more @ 1..) = stream.read(&mut buffer).await {
                read.extend_from_slice(&buffer[..more.min(most - read.len())]);
                if read.len() == most {
                    break;
                }
            }
        };
        // What was read by then is what there is.
        let _ = self.handle().block_on(async { tokio::time::timeout(patience, thrown).await });
        read
    }

    /// Asks `daemon` on a stream of the transfer protocol, and waits for as many answers as these requests have: kind by
    /// request.
    ///
    /// # Panics
    /// If they do not come.
    #[track_caller]
    pub fn ask(&self, daemon: &Daemon, requests: &[Vec<u8>], answers: usize) -> BTreeMap<u32, u8> {
        let mut control = self.control.clone();
        let name = name(&self.network, "transfer");
        let target: PeerId = daemon.peer_id().parse().expect("a peer id");
        let bytes = [&greeting(), &requests.concat()[..]].concat();
        let asked = async {
            let stream = control.open_stream(target, name).await.map_err(io::Error::other)?;
            let (mut read, mut write) = stream.split();
            let writing = async {
                write.write_all(&bytes).await?;
                write.flush().await
            };
            let reading = async {
                read.read_exact(&mut [0]).await?;
                let mut found = BTreeMap::new();
                while found.len() < answers {
                    let (kind, request, _) = read_frame(&mut read).await?;
                    if kind != GREETING {
                        found.insert(request, kind);
                    }
                }
                Ok(found)
            };
            futures::try_join!(writing, reading).map(|((), found)| found)
        };
        let asked = self.handle().block_on(async { tokio::time::timeout(LONG, asked).await });
        asked.expect("it answers in time").unwrap_or_else(|error| panic!("it was cut off: {error}"))
    }

    /// Opens `count` streams of `protocol` to `daemon` that write `bytes` and then neither read nor close. They live as
    /// long as this peer.
    pub fn hang(&self, daemon: &Daemon, protocol: &str, bytes: &[u8], count: usize) {
        let target: PeerId = daemon.peer_id().parse().expect("a peer id");
        for _ in 0..count {
            let mut control = self.control.clone();
            let (name, bytes) = (name(&self.network, protocol), bytes.to_vec());
            self.handle().spawn(async move {
                if let Ok(mut stream) = control.open_stream(target, name).await {
                    let _ = stream.write_all(&bytes).await;
                    let _ = stream.flush().await;
                    std::future::pending::<()>().await;
                }
            });
        }
    }

    fn order(&self, order: impl FnOnce(&mut Swarm<Behaviour>) + Send + 'static) {
        // Its task ends only with it.
        let _ = self.orders.send(Box::new(order));
    }

    fn handle(&self) -> &tokio::runtime::Handle {
        self.runtime.as_ref().expect("it is taken only by drop").handle()
    }
}

impl Drop for Evil {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Without waiting for tasks that hang on purpose.
            runtime.shutdown_background();
        }
    }
}

fn name(network: &str, protocol: &str) -> StreamProtocol {
    StreamProtocol::try_from_owned(format!("/p2p-node/{network}/{protocol}/1")).expect("it begins with a slash")
}

fn swarm(keypair: Keypair, network: &str) -> Swarm<Behaviour> {
    let local = keypair.public().to_peer_id();
    let gossip = gossipsub::ConfigBuilder::default()
        .protocol_id(format!("/p2p-node/{network}/gossip/1"), gossipsub::Version::V1_1)
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .max_transmit_size(1 << 20)
        .flood_publish(true)
        .build()
        .expect("these settings fit each other");
    let identity = identify::Config::new(format!("/p2p-node/{network}/id/1"), keypair.public())
        .with_agent_version("p2p-node/evil".into());
    let mut kad =
        kad::Behaviour::with_config(local, kad::store::MemoryStore::new(local), kad::Config::new(name(network, "kad")));
    kad.set_mode(Some(kad::Mode::Server));
    let behaviour = Behaviour {
        identify: identify::Behaviour::new(identity),
        ping: ping::Behaviour::default(),
        kad,
        gossipsub: gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, gossip)
            .expect("these settings fit each other"),
        streams: libp2p_stream::Behaviour::new(),
    };
    SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::default(), (tls::Config::new, noise::Config::new), yamux::Config::default)
        .expect("TCP is there")
        .with_behaviour(|_| behaviour)
        .expect("it is ready made")
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3600)))
        .build()
}

async fn run(
    mut swarm: Swarm<Behaviour>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    topics: Arc<Mutex<BTreeSet<String>>>,
) {
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => order(&mut swarm),
                None => return,
            },
            event = swarm.select_next_some() => match event {
                SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                    for address in info.listen_addrs {
                        swarm.behaviour_mut().kad.add_address(&peer_id, address);
                    }
                }
                SwarmEvent::Behaviour(BehaviourEvent::Gossipsub(gossipsub::Event::Subscribed { topic, .. })) => {
                    let topic = topic.into_string();
                    // Its own subscription makes it one of the mesh.
                    let _ = swarm.behaviour_mut().gossipsub.subscribe(&gossipsub::IdentTopic::new(&topic));
                    topics.lock().unwrap_or_else(PoisonError::into_inner).insert(topic);
                }
                _ => {}
            },
        }
    }
}

/// A frame: `[kind u8][request u32][length u32][bytes]`.
pub fn frame(kind: u8, request: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&request.to_be_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
    out
}

/// The header of a frame that claims the most that a header can.
pub fn claim(kind: u8, request: u32) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&request.to_be_bytes());
    out.extend_from_slice(&u32::MAX.to_be_bytes());
    out
}

/// The greeting of a storing peer with a TiB of room.
pub fn greeting() -> Vec<u8> {
    let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    bytes.extend_from_slice(&(1_u64 << 40).to_be_bytes());
    bytes.extend_from_slice(&(1_u64 << 40).to_be_bytes());
    frame(GREETING, 0, &bytes)
}

/// The greeting of catch-up: version and features.
pub fn hello() -> Vec<u8> {
    frame(GREETING, 0, &[1, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// What the acceptor of a stream of any protocol sends first.
const TAKEN: u8 = 1;
const GREETING: u8 = 0x01;
const GREET: u8 = 0x02;
const WANT: u8 = 0x10;
const CHUNK: u8 = 0x11;
const MISSING: u8 = 0x12;
const HAVE: u8 = 0x20;
const HOLDINGS: u8 = 0x21;
const OFFER: u8 = 0x30;
const REFUSED: u8 = 0x35;
/// Of catch-up.
const DIFFERENCE: u8 = 0x11;

/// The next frame that is said: its kind, request and body, of 4 MiB at the most.
pub(super) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, u32, Vec<u8>)> {
    let mut header = [0; 9];
    stream.read_exact(&mut header).await?;
    let [kind, a, b, c, d, e, f, g, h] = header;
    let mut body = vec![0; u32::from_be_bytes([e, f, g, h]).min(4 << 20) as usize];
    stream.read_exact(&mut body).await?;
    Ok((kind, u32::from_be_bytes([a, b, c, d]), body))
}

/// Serves one transfer stream.
async fn answer(mut stream: Stream, tactic: Tactic, chunks: &Chunks) -> io::Result<()> {
    stream.write_all(&greeting()).await?;
    stream.flush().await?;
    loop {
        let (kind, request, body) = read_frame(&mut stream).await?;
        match kind {
            GREETING => {}
            GREET => stream.write_all(&greeting()).await?,
            HAVE => {
                // Everything, or what it has.
                let rows = body.as_chunks::<34>().0.iter().flat_map(|hash| match (tactic, chunks.get(hash)) {
                    (_, Some(bytes)) => held(bytes.len()),
                    (tactic, None) if tactic.is_true() => [0; 8],
                    (_, None) => held(1 << 20),
                });
                let rows: Vec<u8> = rows.collect();
                stream.write_all(&frame(HOLDINGS, request, &rows)).await?;
            }
            WANT => {
                for (place, hash) in body.as_chunks::<34>().0.iter().enumerate() {
                    let request = request.wrapping_add(place as u32);
                    match chunks.get(hash) {
                        Some(bytes) => stream.write_all(&frame(CHUNK, request, bytes)).await?,
                        None => lie(&mut stream, tactic, request).await?,
                    }
                }
            }
            OFFER if tactic.is_true() => {
                // One answer at least; an offer of several is left waiting for the rest, which is its right to time out.
                stream.write_all(&frame(REFUSED, request, b"not here")).await?;
            }
            _ if tactic.is_true() => stream.write_all(&frame(REFUSED, request, b"not here")).await?,
            _ => lie(&mut stream, tactic, request).await?,
        }
        stream.flush().await?;
    }
}

fn held(length: usize) -> [u8; 8] {
    let [a, b, c, d] = (length as u32).to_be_bytes();
    [1, 0, 0, 0, a, b, c, d]
}

/// Answers one request in the worst way of the tactic.
async fn lie(stream: &mut Stream, tactic: Tactic, request: u32) -> io::Result<()> {
    match tactic {
        _ if tactic.is_true() => stream.write_all(&frame(MISSING, request, &[])).await,
        Tactic::WrongBytes => stream.write_all(&frame(CHUNK, request, &noise(u64::from(request), 1 << 20))).await,
        Tactic::HugeFrame => {
            stream.write_all(&claim(CHUNK, request)).await?;
            let piece = vec![0; 1 << 16];
            for _ in 0..POUR_BYTES / piece.len() {
                stream.write_all(&piece).await?;
            }
            Ok(())
        }
        Tactic::Noise => stream.write_all(&noise(u64::from(request) + 1, 1 << 16)).await,
        Tactic::Truncate => {
            let whole = frame(CHUNK, request, &[0; 1000]);
            stream.write_all(&whole[..100]).await?;
            stream.close().await?;
            Err(io::ErrorKind::UnexpectedEof.into())
        }
        Tactic::Silence => Ok(()),
        Tactic::Flood => {
            for other in 0..1000 {
                let unasked = request.wrapping_add(1000 + other);
                stream.write_all(&frame(CHUNK, unasked, &[7; 1 << 16])).await?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Serves one stream of the catalogue's catch-up, and never gives a right answer.
async fn disturb(mut stream: Stream, tactic: Tactic) -> io::Result<()> {
    // Its greeting, and the header of its first question.
    let mut asked = [0; 9 + 9 + 9];
    stream.read_exact(&mut asked).await?;
    stream.write_all(&hello()).await?;
    match tactic {
        Tactic::CatalogueSilence => std::future::pending::<()>().await,
        Tactic::CatalogueHuge => {
            stream.write_all(&claim(DIFFERENCE, 1)).await?;
            let piece = vec![0; 1 << 16];
            for _ in 0..POUR_BYTES / piece.len() {
                stream.write_all(&piece).await?;
            }
        }
        Tactic::CatalogueTruncate => stream.write_all(&frame(DIFFERENCE, 1, &[1; 256])[..12]).await?,
        _ => stream.write_all(&frame(DIFFERENCE, 1, &noise(9, 1024))).await?,
    }
    stream.close().await
}
