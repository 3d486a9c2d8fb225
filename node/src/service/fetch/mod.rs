//! Getting chunks: this node's store first, then their holders, several at once.
//!
//! The decisions are [`p2p_protocol::fetch`]'s; here are the rooms that it is driven over ([`driver`]). One driver task
//! serves all that one reader asks for, so that it can weigh its peers against each other, and ends with the last
//! handle of its job.

mod driver;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use p2p_protocol::{Chunk, Cid, Multihash, PeerId};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::driver::{Order, Peers, Refusal, drive};
use super::{
    locate::Locate,
    transfer::{Transfer, TransferError},
    worker::Layer,
};
use crate::{
    net::Network,
    store::{Store, StoreError},
};

/// Orders that may wait for the driver: it takes them at once unless it has too many open.
const ORDERS: usize = 64;
/// How long an answer of the DHT is good: wants of one reader end in bursts.
const PROVIDERS_AGE: Duration = Duration::from_secs(10);
/// How long the DHT is waited for.
const PROVIDERS_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a chunk could not be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody that answers has it.
    #[error("no reachable peer has {cid} (asked {asked})")]
    NotFound {
        /// The chunk.
        cid: Cid,
        /// How many peers were asked.
        asked: usize,
    },
    /// The own store failed, and no peer has it either.
    #[error("{0}")]
    Store(String),
    /// The same, because its disk has no room.
    #[error("{0}")]
    NoSpace(String),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

impl From<StoreError> for FetchError {
    fn from(why: StoreError) -> Self {
        let text = why.to_string();
        if matches!(why, StoreError::NoSpace { .. }) { Self::NoSpace(text) } else { Self::Store(text) }
    }
}

/// Where chunks come from: a [`FetchJob`], or a map in a test.
pub trait ChunkSource: Clone + Send + Sync + 'static {
    /// One chunk of about `bytes` bytes (a guess is enough), verified, and who gave it. Cancel-safe.
    fn chunk(&self, cid: Cid, bytes: u64) -> impl Future<Output = Result<(Chunk, PeerId), FetchError>> + Send;
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Fetch {
    network: Network,
    store: Store,
    locate: Locate,
    transfer: Transfer,
    workers: Layer,
}

/// One reader's fetches: knows the root and its publishers. Clone it freely; its task ends with the last clone.
#[derive(Clone, Debug)]
pub struct FetchJob {
    local: PeerId,
    store: Store,
    orders: mpsc::Sender<Order>,
}

impl Fetch {
    /// A fetcher over these rooms, whose tasks are of the layer `workers`.
    pub fn new(network: Network, store: Store, locate: Locate, transfer: Transfer, workers: Layer) -> Self {
        Self { network, store, locate, transfer, workers }
    }

    /// Begins a read of `root`; `publishers` are asked too, and `replicas` is how many holders come first. Starts a
    /// task: call it on the runtime.
    pub fn begin(&self, root: Cid, publishers: Vec<PeerId>, replicas: u8) -> FetchJob {
        let (orders, inbox) = mpsc::channel(ORDERS);
        let rooms = Rooms { fetch: self.clone(), root, publishers, providers: Mutex::new(None) };
        drop(self.workers.task(drive(Arc::new(rooms), replicas, inbox)));
        FetchJob { local: self.network.local(), store: self.store.clone(), orders }
    }
}

impl FetchJob {
    /// One chunk, verified, and who gave it (this node's own id for the own store). Callers bound how many they ask at
    /// once. Cancel-safe.
    pub async fn chunk(&self, cid: Cid) -> Result<(Chunk, PeerId), FetchError> {
        self.sized_chunk(cid, 256 * 1024).await
    }

    /// [`chunk`](Self::chunk) of a chunk that should have about `bytes` bytes: peers' windows are weighed by it.
    pub async fn sized_chunk(&self, cid: Cid, bytes: u64) -> Result<(Chunk, PeerId), FetchError> {
        let failure = match self.store.get(&cid.hash).await {
            Ok(Some(chunk)) => match under(cid, chunk) {
                Some(chunk) => return Ok((chunk, self.local)),
                None => None,
            },
            Ok(None) => None,
            Err(why) => {
                tracing::warn!("reading {cid} from the own store failed, asking peers: {why}");
                Some(why.into())
            }
        };
        match order(&self.orders, cid, bytes).await {
            Err(FetchError::NotFound { .. }) if failure.is_some() => Err(failure.unwrap_or(FetchError::Stopped)),
            answer => answer,
        }
    }
}

impl ChunkSource for FetchJob {
    fn chunk(&self, cid: Cid, bytes: u64) -> impl Future<Output = Result<(Chunk, PeerId), FetchError>> + Send {
        self.sized_chunk(cid, bytes)
    }
}

/// Has the driver get a chunk; dropping the future lets it go.
async fn order(orders: &mpsc::Sender<Order>, cid: Cid, bytes: u64) -> Result<(Chunk, PeerId), FetchError> {
    let left = CancellationToken::new();
    let _guard = left.clone().drop_guard();
    let (reply, answer) = oneshot::channel();
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    orders.send(Order { cid, bytes, reply, left }).await.map_err(|_| FetchError::Stopped)?;
    answer.await.map_err(|_| FetchError::Stopped)?
}

/// The chunk under the address that was asked for: equal bytes may have come under the other codec.
fn under(cid: Cid, chunk: Chunk) -> Option<Chunk> {
    if *chunk.cid() == cid { Some(chunk) } else { Chunk::verify(cid, chunk.into_bytes()).ok() }
}

/// The rooms that a driver works over.
struct Rooms {
    fetch: Fetch,
    root: Cid,
    publishers: Vec<PeerId>,
    /// What the DHT said of the root, and when.
    providers: Mutex<Option<(Instant, Vec<PeerId>)>>,
}

impl Rooms {
    async fn providers(&self) -> Vec<PeerId> {
        let mut known = self.providers.lock().await;
        if let Some((at, providers)) = &*known
            && at.elapsed() < PROVIDERS_AGE
        {
            return providers.clone();
        }
        let asked = self.fetch.network.providers(self.root.hash.to_bytes().to_vec());
        let providers = match tokio::time::timeout(PROVIDERS_TIMEOUT, asked).await {
            Ok(Ok(providers)) => providers,
            Ok(Err(why)) => {
                tracing::debug!("no providers of {}: {why}", self.root);
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        *known = Some((Instant::now(), providers.clone()));
        providers
    }
}

impl Peers for Rooms {
    async fn ranked(&self, hash: Multihash, most: usize) -> Vec<PeerId> {
        // Right after a start nobody is known yet, and nobody who is asked proves nothing.
        self.fetch.locate.discovered().await;
        // One more, for this node itself may be among them.
        let mut ranked = self.fetch.locate.sources(&hash, most.saturating_add(1)).await;
        ranked.retain(|peer| *peer != self.fetch.network.local());
        ranked.truncate(most);
        ranked
    }

    async fn others(&self, hash: Multihash) -> Vec<PeerId> {
        let mut others = self.publishers.clone();
        others.extend(self.providers().await);
        // Whoever came since the first look.
        others.extend(self.fetch.locate.sources(&hash, usize::MAX).await);
        others.retain(|peer| *peer != self.fetch.network.local());
        others
    }

    async fn ask(&self, peer: PeerId, cid: Cid) -> Result<Option<Chunk>, Refusal> {
        match self.fetch.transfer.fetch(peer, cid).await {
            Ok(chunk) => Ok(chunk),
            // Whoever broke the rules was dropped by its session.
            Err(TransferError::Violation { .. }) => Err(Refusal::Wrong),
            Err(why) => {
                tracing::debug!("{peer} did not give {cid}: {why}");
                Err(Refusal::Failed)
            }
        }
    }
}
