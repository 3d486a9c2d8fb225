//! The node: builds the rooms bottom-up, stops them top-down.
//!
//! ```text
//! store ─┐
//!        ├─ transfer ─ locate ─ replicate ─ ingest        (add)
//! net ───┤                   └─ fetch ───── export        (get, cat, ls, stat)
//!        └─ catalogue + sync                              (publications)
//! ```
//!
//! [`Rooms`] is everything above the network's handle and the store, so that a simulated fabric and a memory store carry
//! the very same code as a daemon does. [`Node`] adds what a process has: the data directory, the identity, the swarm.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use libp2p::{Multiaddr, identity::Keypair, multiaddr::Protocol};
use p2p_protocol::{Label, catalogue::Limits, duty};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    identity::{self, IdentityError},
    net::{self, Driver, Listen, NetError, Network, TransportKind},
    service::{
        audit::{self, Audit},
        blocking::Blocking,
        catalogue::{Catalogue, StartError},
        export::Export,
        fetch::Fetch,
        ingest::{self, Ingest},
        inspect::Inspect,
        keep::{Around, Keep, drain},
        locate::Locate,
        pin::Pin,
        remember,
        replicate::Replicate,
        scrub::Scrub,
        sync::{self, Sync},
        transfer::Transfer,
        wanted::Wanted,
        worker::{Layer, Work, Workers},
    },
    settings::{DEFAULT_PORT, DEFAULT_REPLICAS, Settings},
    store::{Store, StoreError},
};

/// The log record that remembers the port of a node whose default port was taken.
const PORT_RECORD: &[u8] = b"setting/port";
/// How long background work, and then the store's last writes, may take to end before the node goes on stopping: all of
/// it has 10 s.
const WORKERS_GRACE: Duration = Duration::from_secs(2);
const STORE_GRACE: Duration = Duration::from_secs(4);

/// Makes another seed of one: two services should not draw the same.
const KEEPING: u64 = 0x6b65_6570;

/// What the rooms are built for.
#[derive(Clone, Debug)]
pub struct Site<'a> {
    /// The network's name.
    pub network_name: &'a str,
    /// What people call this node.
    pub label: Label,
    /// Copies that an add asks for when it does not say.
    pub replicas: u8,
    /// How what this node should hold is kept.
    pub duty: duty::Settings,
    /// Within which each chunk is read again; zero: never.
    pub scrub_period: Duration,
    /// How much of the catalogue it keeps.
    pub limits: Limits,
    /// Has a `tmp` for what does not fit into memory; `None`: the system's own directory for that.
    pub data_dir: Option<&'a Path>,
    /// Of all chance in the services: the same seed, on the same network, gives the same run.
    pub seed: u64,
}

impl<'a> Site<'a> {
    /// Of the default settings: a node without a label or a directory, which does not read again what it has.
    pub fn new(network_name: &'a str, seed: u64) -> Self {
        Self {
            network_name,
            label: Label::default(),
            replicas: DEFAULT_REPLICAS,
            duty: duty::Settings::default(),
            scrub_period: Duration::ZERO,
            limits: Limits::default(),
            data_dir: None,
            seed,
        }
    }
}

/// Why a node does not start, or does not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its data directory is not there and cannot be made.
    #[error("cannot make the data directory {}: {why}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// Opening the store panicked: a bug.
    #[error("opening the store failed")]
    Opening,
    /// The store's last writes took too long.
    #[error("the store did not finish its last writes in time")]
    NotClosed,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The catalogue.
    #[error(transparent)]
    Catalogue(#[from] StartError),
}

type Result<T, E = NodeError> = std::result::Result<T, E>;

/// The services of a node over any network handle and any store. Clone it freely.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// The network's handle.
    pub network: Network,
    /// The chunks of this node.
    pub store: Store,
    /// Sessions with peers.
    pub transfer: Transfer,
    /// Who stores, and who is near.
    pub locate: Locate,
    /// Copies.
    pub replicate: Replicate,
    /// Reading files and trees.
    pub ingest: Ingest,
    /// Getting chunks.
    pub fetch: Fetch,
    /// Publications.
    pub catalogue: Catalogue,
    /// Having publications kept elsewhere.
    pub sync: Sync,
    /// Comparing with neighbours.
    pub audit: Audit,
    /// What this node should hold.
    pub keep: Keep,
    /// Whole copies for this node's user.
    pub pin: Pin,
    /// Reading every chunk again.
    pub scrub: Scrub,
    /// Looking into DAGs.
    pub inspect: Inspect,
    /// Writing them out.
    pub export: Export,
    /// Copies that an add asks for when it does not say.
    pub replicas: u8,
    /// What runs in the background.
    pub workers: Arc<Workers>,
    /// The layer of what is above the services: the first to end.
    pub top: Layer,
}

impl Rooms {
    /// Builds the services bottom-up, each with a layer of workers of its own. A store without capacity makes a node that
    /// only reads and publishes.
    pub async fn build(network: Network, store: Store, keypair: Keypair, site: Site<'_>) -> Result<Self> {
        let Site { network_name, label, replicas, duty, scrub_period, limits, data_dir, seed } = site;
        let storing = store.usage().capacity_bytes > 0;
        let workers = Arc::new(Workers::default());
        let blocking = Blocking::new(workers.layer());
        let wanted = Wanted::open_with(store.clone(), duty.grace)?;
        let layer = workers.layer();
        let transfer =
            Transfer::start(network.clone(), store.clone(), wanted.clone(), network_name, storing, &layer).await?;
        transfer.introduce(label);
        let locate = Locate::start(network.clone(), transfer.clone(), storing, &workers.layer());
        let replicate = Replicate::new(
            store.clone(),
            wanted.clone(),
            locate.clone(),
            transfer.clone(),
            duty.grace,
            ingest::scratch(data_dir),
            &workers.layer(),
        );
        let fetch = Fetch::new(network.clone(), store.clone(), locate.clone(), transfer.clone(), workers.layer());
        let ingest = Ingest::new(replicate.clone(), data_dir.map(Path::to_owned), blocking.clone());
        let catalogue =
            Catalogue::start(network.clone(), store.clone(), keypair, network_name, limits, &workers).await?;
        let sync = sync::start(network.clone(), &catalogue, blocking.clone(), seed, &workers.layer()).await?;
        let below = audit::Below {
            store: store.clone(),
            wanted: wanted.clone(),
            catalogue: catalogue.clone(),
            transfer: transfer.clone(),
            blocking: blocking.clone(),
        };
        let audit = Audit::start(network.clone(), below, network_name, &workers.layer()).await?;
        let around = Around {
            store: store.clone(),
            wanted,
            locate: locate.clone(),
            transfer: transfer.clone(),
            fetch: fetch.clone(),
            catalogue: catalogue.clone(),
            sync: sync.clone(),
            audit: audit.clone(),
            blocking: blocking.clone(),
        };
        if drain::remembered(&store)? {
            tracing::info!("this node leaves, as an earlier run was told: it hands its chunks over and takes no more");
            locate.leave(true);
        }
        let keep = Keep::start(around, duty, storing, seed ^ KEEPING, &workers.layer());
        let scrub = Scrub::start(
            store.clone(),
            keep.clone(),
            transfer.clone(),
            locate.clone(),
            blocking.clone(),
            scrub_period,
            &workers.layer(),
        );
        let scratch = data_dir.map_or_else(std::env::temp_dir, |directory| directory.join("tmp"));
        let inspect = Inspect::new(
            network.clone(),
            store.clone(),
            transfer.clone(),
            locate.clone(),
            fetch.clone(),
            catalogue.clone(),
            sync.clone(),
            replicas,
            scratch.clone(),
            blocking.clone(),
        );
        let pin = Pin::new(store.clone(), keep.clone(), fetch.clone(), inspect.clone(), blocking.clone());
        let export = Export::new(inspect.clone(), scratch, blocking);
        let top = workers.layer();
        let (knowing, met) = (catalogue.clone(), locate.clone());
        top.spawn("known publishers", |work| know(knowing, met, work));
        Ok(Self {
            network,
            store,
            transfer,
            locate,
            replicate,
            ingest,
            fetch,
            catalogue,
            sync,
            audit,
            keep,
            pin,
            scrub,
            inspect,
            export,
            replicas,
            workers,
            top,
        })
    }

    /// Ends all background work, from the top down; within `grace`. The network and the store stay open.
    pub async fn stop(&self, grace: Duration) {
        self.workers.stop(grace).await;
    }
}

/// A running node: clone the handle freely.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    rooms: Rooms,
    network_name: String,
    started: Instant,
    stopping: CancellationToken,
    /// The network's driver, until the node stops.
    driver: Mutex<Option<Driver>>,
}

/// How often roots are announced again: twice within the 24 h and more that provider records live (libp2p kad-dht spec).
const ANNOUNCE_EVERY: Duration = Duration::from_secs(12 * 60 * 60);

/// What a daemon says when it serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// This node.
    pub peer_id: String,
    /// Real addresses, `/p2p/…` at the end.
    pub listen: Vec<String>,
}

impl Node {
    /// Opens the store (taking the data directory's lock first), joins the network, starts the services.
    pub async fn start(settings: Settings) -> Result<Self> {
        let opened = settings.clone();
        let (store, (keypair, made), known, port) =
            tokio::task::spawn_blocking(move || open(&opened)).await.map_err(|_| NodeError::Opening)??;
        let joining = async {
            if made {
                sync::begins_with(&store, &keypair.public().to_peer_id(), settings.bootstrap.is_empty())
                    .await
                    .map_err(NodeError::from)?;
            }
            Self::join(&settings, store.clone(), keypair, known, port).await
        };
        let started = match joining.await {
            Ok(node) => node,
            Err(error) => {
                // Whatever failed, the lock must not outlive the attempt.
                let _ = store.close().await;
                return Err(error);
            }
        };
        Ok(started)
    }

    async fn join(
        settings: &Settings,
        store: Store,
        keypair: Keypair,
        known: Vec<remember::Known>,
        port: Option<u16>,
    ) -> Result<Self> {
        let long = |known: &&remember::Known| known.stored_first.is_some_and(|ago| ago >= settings.duty.probation);
        let known_for_long: Vec<_> = known.iter().filter(long).map(|known| known.peer).collect();
        let storing: Vec<_> = known.iter().filter_map(|known| Some((known.peer, known.stored?))).collect();
        let listen = if settings.listen.is_empty() {
            Listen::Default { port: port.unwrap_or(DEFAULT_PORT) }
        } else {
            Listen::Exact(settings.listen.clone())
        };
        let (network, driver) = net::start(net::Config {
            keypair: keypair.clone(),
            network: settings.network.clone(),
            listen,
            bootstrap: settings.bootstrap.clone(),
            known: known.into_iter().map(|known| (known.peer, known.addresses)).collect(),
            mdns: settings.mdns,
            transport: TransportKind::Real,
        })
        .await?;
        if settings.listen.is_empty() {
            remember_port(&store, &network, port).await?;
        }
        let site = Site {
            network_name: &settings.network,
            label: settings.label.clone(),
            duty: settings.duty,
            scrub_period: settings.scrub_period,
            replicas: settings.replicas,
            limits: Limits::of(settings.catalogue_entries),
            data_dir: Some(settings.data_dir.as_path()),
            seed: rand::random(),
        };
        let rooms = Rooms::build(network.clone(), store.clone(), keypair, site).await?;
        rooms.catalogue.know(storing.iter().map(|(peer, _)| *peer));
        rooms.keep.met(known_for_long);
        rooms.locate.recall(storing);
        let name = settings.network.clone();
        let (locate, catalogue) = (rooms.locate.clone(), rooms.catalogue.clone());
        rooms.top.spawn("remembering peers", |work| remember::run(network.clone(), store, locate.clone(), name, work));
        rooms.top.spawn("announcing roots", |work| announce(network, rooms.locate.clone(), catalogue, work));
        Ok(Self {
            inner: Arc::new(Inner {
                rooms,
                network_name: settings.network.clone(),
                started: Instant::now(),
                stopping: CancellationToken::new(),
                driver: Mutex::new(Some(driver)),
            }),
        })
    }

    /// What `ready` says.
    pub fn ready(&self) -> Ready {
        let local = self.inner.rooms.network.local();
        Ready { peer_id: local.to_string(), listen: self.listen_addresses() }
    }

    /// Takes no more work, ends what is under way, closes the store. Within 10 s. A second call does nothing.
    pub async fn stop(&self) -> Result<()> {
        self.inner.stopping.cancel();
        let Some(driver) = self.inner.driver.lock().await.take() else { return Ok(()) };
        self.inner.rooms.stop(WORKERS_GRACE).await;
        let Rooms { network, store, locate, .. } = &self.inner.rooms;
        remember::finish(network, store, locate, &self.inner.network_name).await;
        driver.stop().await;
        match tokio::time::timeout(STORE_GRACE, self.inner.rooms.store.close()).await {
            Ok(closed) => Ok(closed?),
            Err(_) => Err(NodeError::NotClosed),
        }
    }

    /// Its services.
    pub fn rooms(&self) -> &Rooms {
        &self.inner.rooms
    }

    /// The name of its network.
    pub fn network_name(&self) -> &str {
        &self.inner.network_name
    }

    /// How long it has run.
    pub fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// Ends when the node begins to stop: nothing new is to be begun from then on, and what is under way is to end.
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stopping.clone()
    }

    fn listen_addresses(&self) -> Vec<String> {
        let local = self.inner.rooms.network.local();
        let table = Arc::clone(&self.inner.rooms.network.peers().borrow());
        table.listen.iter().map(|address| address.clone().with(Protocol::P2p(local)).to_string()).collect()
    }
}

/// Tells the catalogue which publishers are storing peers that this node has met.
async fn know(catalogue: Catalogue, locate: Locate, work: Work) {
    let mut changes = locate.changes();
    loop {
        catalogue.know(locate.met().into_keys());
        work.idle();
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Announces the roots that this node published as provider records, now and again: peers keep those in memory, and not for ever.
async fn announce(network: Network, locate: Locate, catalogue: Catalogue, work: Work) {
    loop {
        locate.discovered().await;
        let local = network.local();
        let mut entries = catalogue.list();
        let mut done = 0;
        while let Some(entry) = entries.next().await {
            let publication = match entry {
                Ok(publication) if publication.publisher == local => publication,
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(%error, "not every root was announced as a provider record");
                    break;
                }
            };
            work.working(done, None);
            done += 1;
            match network.provide(publication.root.hash.to_bytes().to_vec()).await {
                Ok(()) => {}
                Err(NetError::Stopped) => return,
                Err(error) => {
                    tracing::debug!(root = %publication.root, %error, "a root was not announced as a provider record");
                }
            }
        }
        let next = Instant::now() + ANNOUNCE_EVERY;
        work.waiting(next);
        tokio::time::sleep_until(next).await;
    }
}

type Opened = (Store, (Keypair, bool), Vec<remember::Known>, Option<u16>);

fn open(settings: &Settings) -> Result<Opened> {
    make_directory(&settings.data_dir)?;
    let store = Store::open(&settings.data_dir, settings.capacity_bytes)?;
    // The data directory is locked: nobody makes one in between.
    let made = !settings.data_dir.join(identity::FILE).exists();
    let keypair = identity::load_or_make(&settings.data_dir)?;
    let known = remember::known(&store, &settings.network)?;
    let port = store.record(PORT_RECORD)?.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok());
    Ok((store, (keypair, made), known, port))
}

fn make_directory(directory: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|why| NodeError::Directory { path: directory.to_owned(), why })
}

/// A free port that was taken because the default one was not free is the one to try at the next start.
async fn remember_port(store: &Store, network: &Network, before: Option<u16>) -> Result<()> {
    let table = Arc::clone(&network.peers().borrow());
    let port = table.listen.iter().flat_map(Multiaddr::iter).find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let Some(port) = port.filter(|port| Some(*port) != before && (before.is_some() || *port != DEFAULT_PORT)) else {
        return Ok(());
    };
    store.put_record(Bytes::from_static(PORT_RECORD), Bytes::from(port.to_string())).await?;
    Ok(())
}
