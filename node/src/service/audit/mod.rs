//! Comparing with neighbours what they should hold, and having them prove it (`protocol/SPEC.md`, "Audits").
//!
//! What is compared and what a proof is, [`p2p_protocol::audit`] says; when and with whom, the keeper
//! (`p2p_protocol::duty`). Here are both sides of a session: [`ask`] finds what a peer lacks and whether it lies,
//! [`serve`] answers. A comparison reads sums and no chunk; a proof reads the chunks that are asked for, at a pace that
//! leaves the disk to whoever is served.

mod ask;
mod serve;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use p2p_protocol::{
    Key, Multihash, PeerId,
    audit::{Challenge, Common, OVERFLOWED, PROOF_BYTES},
    duty::{Audited, reach::Reach},
    manifest::Entry,
    ranking::Ranking,
    reconcile::Fingerprint,
    wire::{
        audit::Frame,
        version::{Hello, Spoken},
    },
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    blocking::Blocking,
    catalogue::Catalogue,
    transfer::Transfer,
    turns::{self, SessionError},
    wanted::{InRange, Side, Wanted},
    worker::Layer,
};
use crate::{
    net::{BAN, NetError, Network},
    store::{Store, StoreError},
};

/// Comparisons that this node makes at once: all neighbours are due within minutes of a start.
const AT_ONCE: usize = 4;
/// How long one comparison, or the proofs for one question, may take.
const SESSION: Duration = Duration::from_secs(100);
/// How long a stream may take to open.
const OPENING: Duration = Duration::from_secs(15);
/// How long one frame may take, either way: the acceptor may wait for its budget of reading.
const FRAME: Duration = Duration::from_secs(40);

type Asker = turns::Asker<Frame>;

/// Who is in view, and what follows from the catalogue: what both sides of a comparison start from.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Storing peers in view, this node among them if it stores.
    pub ranking: Ranking,
    /// The most copies that anything live wants.
    pub most_copies: u8,
}

impl Standing {
    /// Where a peer stands among those in view.
    pub fn reach_of(&self, peer: &PeerId) -> Reach {
        Reach::new(Key::from(peer), self.ranking.keys())
    }

    fn common(&self, asker: &PeerId, audited: &PeerId) -> Common {
        Common::new(&self.reach_of(asker), &self.reach_of(audited), self.most_copies)
    }
}

/// What audits did since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Comparisons with neighbours that came to an end.
    pub compared: u64,
    /// Of those, how many found all that should be there.
    pub equal: u64,
    /// Payload bytes and frame headers of what this node asked, both directions, the proofs left out.
    pub compared_bytes: u64,
    /// The same of the proofs.
    pub proved_bytes: u64,
    /// Chunks that were read here for proofs, its own and those for others.
    pub chunks_read: u64,
    /// Parts of the table, a 65,536th of the keyspace each, whose rows were read here, to compare and to pick what is proved.
    pub parts_read: u64,
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Audit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    network: Network,
    store: Store,
    wanted: Wanted,
    catalogue: Catalogue,
    transfer: Transfer,
    blocking: Blocking,
    protocol: Spoken,
    standing: Mutex<Option<Arc<Standing>>>,
    /// Chunks that this node should hold and has not.
    missing: AtomicU32,
    asking: Semaphore,
    compared: AtomicU64,
    equal: AtomicU64,
    compared_bytes: AtomicU64,
    proved_bytes: AtomicU64,
    chunks_read: AtomicU64,
}

/// What a session needs beside its stream.
#[derive(Clone, Debug)]
pub struct Below {
    /// The chunks of this node.
    pub store: Store,
    /// Its rows.
    pub wanted: Wanted,
    /// What is listed.
    pub catalogue: Catalogue,
    /// Getting chunks, where two proofs differ.
    pub transfer: Transfer,
    /// Steps that block.
    pub blocking: Blocking,
}

impl Audit {
    /// Serves comparisons and proofs.
    ///
    /// # Errors
    /// Where the protocol's streams cannot be accepted.
    pub async fn start(network: Network, below: Below, name: &str, workers: &Layer) -> Result<Self, NetError> {
        let Below { store, wanted, catalogue, transfer, blocking } = below;
        let protocol = Spoken::new(name, "audit", network.dialect().audit);
        let inbound = network.accept_spoken(&protocol, turns::serve::WAITING).await?;
        let [compared, equal, compared_bytes, proved_bytes, chunks_read] = [(); 5].map(|()| AtomicU64::new(0));
        let shared = Arc::new(Shared {
            network,
            store,
            wanted,
            catalogue,
            transfer,
            blocking,
            protocol,
            standing: Mutex::default(),
            missing: AtomicU32::new(0),
            asking: Semaphore::new(AT_ONCE),
            compared,
            equal,
            compared_bytes,
            proved_bytes,
            chunks_read,
        });
        let serving = shared.clone();
        workers.spawn("audits, served", |work| turns::serve::run(serve::Serving::new(serving), inbound, work));
        Ok(Self { shared })
    }

    /// Who is in view now: until this is said once, nothing can be compared.
    pub fn stand(&self, standing: Standing) {
        *lock(&self.shared.standing) = Some(Arc::new(standing));
    }

    /// So many chunks of its duty are missing here.
    pub fn lacking(&self, missing: usize) {
        self.shared.missing.store(u32::try_from(missing).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Who is in view, as it was said last: the same as long as it is the same pointer.
    pub fn standing(&self) -> Option<Arc<Standing>> {
        lock(&self.shared.standing).clone()
    }

    /// Compares with a neighbour what it should hold, and has a few chunks of it proved. Cancel-safe.
    pub async fn compare(&self, peer: PeerId) -> Audited {
        // It is never closed.
        let Ok(_turn) = self.shared.asking.acquire().await else { return Audited::Failed };
        let outcome = timeout(SESSION, ask::compare(&self.shared, peer)).await;
        let audited = self.shared.settle(peer, outcome.unwrap_or(Err(SessionError::Timeout))).await;
        let audited = audited.unwrap_or(Audited::Failed);
        if !matches!(audited, Audited::Failed | Audited::Apart) {
            self.shared.compared.fetch_add(1, Ordering::Relaxed);
        }
        match &audited {
            Audited::Equal => drop(self.shared.equal.fetch_add(1, Ordering::Relaxed)),
            Audited::Lied(keys) => {
                tracing::warn!(%peer, chunks = keys.len(), "a peer claims chunks that it has not: it is not counted on");
            }
            Audited::Lacks { keys, filling } => {
                tracing::debug!(%peer, chunks = keys.len(), filling, "a neighbour lacks what it should hold");
            }
            other => tracing::debug!(%peer, ?other, "nothing follows from an audit"),
        }
        audited
    }

    /// Has a peer prove that it has the bytes of these, all of which are here; in their order. `None`: it did not answer,
    /// or one of them is not here any more. Cancel-safe.
    pub async fn prove(&self, peer: PeerId, entries: &[Entry]) -> Option<Vec<bool>> {
        let proving = timeout(SESSION, ask::prove(&self.shared, peer, entries)).await;
        self.shared.settle(peer, proving.unwrap_or(Err(SessionError::Timeout))).await
    }

    /// What was done since the start.
    pub fn figures(&self) -> Figures {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let Shared { compared, equal, compared_bytes, proved_bytes, chunks_read, .. } = &*self.shared;
        Figures {
            compared: read(compared),
            equal: read(equal),
            compared_bytes: read(compared_bytes),
            proved_bytes: read(proved_bytes),
            chunks_read: read(chunks_read),
            parts_read: self.shared.wanted.scanned(),
        }
    }
}

/// No code under these locks panics.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn hello(&self) -> Hello {
        let dialect = self.network.dialect();
        Hello { version: dialect.audit.newest(), features: dialect.features }
    }

    fn standing(&self) -> Option<Arc<Standing>> {
        lock(&self.standing).clone()
    }

    /// The fingerprint of the catalogue as it is now, or that it has no room for all.
    fn catalogue_print(&self) -> Fingerprint {
        if self.catalogue.has_overflowed() { OVERFLOWED } else { self.catalogue.fingerprint() }
    }

    /// Asks something of what is in a range, away from the async tasks.
    async fn within<T: Send + 'static>(
        &self,
        common: &Arc<Common>,
        side: Side,
        work: impl FnOnce(&InRange<'_>) -> T + Send + 'static,
    ) -> Result<T, SessionError> {
        let (wanted, common) = (self.wanted.clone(), common.clone());
        let step = move || {
            let set = wanted.in_range(&common, side);
            let done = work(&set);
            set.check().map(|()| done)
        };
        Ok(self.blocking.run(step).await.map_err(|_| StoreError::Closed)??)
    }

    /// What this node's own copy would prove; `None`: it has none that reads well.
    async fn own_proof(
        &self,
        challenge: Challenge,
        hash: &Multihash,
    ) -> Result<Option<[u8; PROOF_BYTES]>, SessionError> {
        let Some(chunk) = self.store.get(hash).await? else { return Ok(None) };
        self.chunks_read.fetch_add(1, Ordering::Relaxed);
        let step = move || challenge.proof(chunk.bytes());
        Ok(Some(self.blocking.run(step).await.map_err(|_| StoreError::Closed)?))
    }

    async fn open(&self, peer: PeerId) -> Result<Asker, SessionError> {
        let opening = timeout(OPENING, self.network.open_spoken(peer, &self.protocol));
        let (_version, stream) = opening.await.map_err(|_| SessionError::Timeout)??;
        Asker::begin(stream, self.hello(), FRAME).await
    }

    /// What came of a session that this node opened; a peer that broke the rules is dropped.
    async fn settle<T>(&self, peer: PeerId, outcome: Result<T, SessionError>) -> Option<T> {
        match outcome {
            Ok(done) => Some(done),
            Err(SessionError::Hostile(reason)) => {
                tracing::warn!(%peer, reason, "a peer broke the rules of audits");
                self.network.ban(peer, BAN, reason).await;
                None
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "an audit did not come to its end");
                None
            }
        }
    }

    /// When `began` was so long ago, in milliseconds, at least one.
    fn spent(began: Instant) -> u32 {
        // A question that takes seven weeks is cut off long before.
        (began.elapsed().as_millis() as u32).max(1)
    }
}
