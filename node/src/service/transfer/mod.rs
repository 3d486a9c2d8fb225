//! Moving chunks: one long-lived session a peer, pipelined. `protocol/SPEC.md`, "Chunk transfer", has the bytes.
//!
//! A node asks on streams that it opens ([`session`]) and answers on those that it accepts ([`serve`]). Sessions to a
//! peer are opened when they are needed, kept, and opened anew when the peer's connections came anew.

mod presence;
mod promised;
mod serve;
mod session;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

pub use p2p_protocol::wire::transfer::{Greeting, Held};
use p2p_protocol::{
    Chunk, Cid, Multihash, PeerId,
    wire::{
        transfer::{MAX_HAVES, MAX_RENEWALS, Offer},
        version::{Hello, Spoken},
    },
};
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use self::session::Offered;
use self::{presence::Presence, session::Session, stream::Traffic};
use super::{
    wanted::Wanted,
    worker::{Layer, Work},
};
use crate::{
    net::{Acceptor, BAN, NetError, Network},
    store::Store,
};

/// Inbound streams that wait to be accepted: a network of a hundred peers may greet at once (a guess).
const ACCEPTING: usize = 128;
/// Inbound sessions of one peer: the one in use, and one that takes over after a reconnection.
const INBOUND_PER_PEER: usize = 2;
/// Inbound sessions of all peers: each costs some 16 KiB at rest.
const INBOUND: usize = 1024;
/// Peers whose sessions are remembered before those without an open one are forgotten.
const SLOTS: usize = 1024;
/// Chunks up to this are handed over at once: sending one costs no more than the round trip of an offer on a LAN.
const PUT_AT_ONCE_BYTES: usize = 16 * 1024;
/// A session that could not be opened is not tried again for so long, unless the peer connected anew.
const REOPEN_AFTER: Duration = Duration::from_millis(500);

/// Why a peer did not give or take.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransferError {
    /// The session could not be opened, or broke.
    #[error(transparent)]
    Net(#[from] NetError),
    /// It has no room.
    #[error("{peer} has no room")]
    NoSpace {
        /// The peer.
        peer: PeerId,
    },
    /// It does not take chunks, or its disk failed.
    #[error("{peer} refused: {reason}")]
    Refused {
        /// The peer.
        peer: PeerId,
        /// What it said.
        reason: String,
    },
    /// It broke the protocol or sent wrong bytes; it was dropped.
    #[error("{peer} broke the protocol: {reason}")]
    Violation {
        /// The peer.
        peer: PeerId,
        /// How.
        reason: String,
    },
    /// It does not understand what it was asked, or answered by what is not understood here: one of both is older.
    #[error("{peer} speaks another version")]
    Unsupported {
        /// The peer.
        peer: PeerId,
    },
    /// It did not answer in time.
    #[error("{peer} did not answer in time")]
    Timeout {
        /// The peer.
        peer: PeerId,
    },
}

/// A session that broke, as callers see it.
fn broken(peer: PeerId, reason: impl fmt::Display) -> TransferError {
    TransferError::Net(NetError::Unreachable { subject: peer.to_string(), reason: reason.to_string() })
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Transfer {
    shared: Arc<Shared>,
}

/// What all sessions of this node share.
struct Shared {
    network: Network,
    store: Store,
    /// Notes what is acknowledged.
    wanted: Wanted,
    protocol: Spoken,
    storing: bool,
    presence: Mutex<Presence>,
    /// The presence is another.
    other: Notify,
    /// Who hears greetings of peers.
    heard: Mutex<Option<mpsc::Sender<(PeerId, Greeting)>>>,
    slots: Mutex<HashMap<PeerId, Arc<Slot>>>,
    inbound: Mutex<HashMap<PeerId, Vec<(u64, CancellationToken)>>>,
    traffic: Arc<Traffic>,
    /// Chunk bytes read for peers, and taken from them, in units of the serving side.
    reading: Arc<Semaphore>,
    taking: Arc<Semaphore>,
    workers: Layer,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// The session that this node opened to one peer.
#[derive(Default)]
struct Slot {
    session: Mutex<Option<Arc<Session>>>,
    /// Held by whoever opens; says how the last attempt failed, when, and at which epoch of the peer.
    opening: tokio::sync::Mutex<Option<(Instant, Option<u64>, TransferError)>>,
}

impl Slot {
    fn session(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        lock(&self.session)
    }

    fn serving(&self, epoch: Option<u64>) -> Option<Arc<Session>> {
        self.session().as_ref().filter(|session| session.serves(epoch)).cloned()
    }
}

/// No code under these locks panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn epoch(&self, peer: PeerId) -> Option<u64> {
        let table = self.network.peers();
        let table = table.borrow();
        table.peers.get(&peer).filter(|peer| peer.connected).map(|peer| peer.epoch)
    }

    fn latency(&self, peer: PeerId) -> Option<Duration> {
        let table = self.network.peers();
        let table = table.borrow();
        table.peers.get(&peer).and_then(|peer| peer.heard.latency())
    }

    fn own_greeting(&self) -> Greeting {
        let usage = self.store.usage();
        let storing = self.storing && usage.capacity_bytes > 0;
        let dialect = self.network.dialect();
        let hello = Hello { version: dialect.transfer.newest(), features: dialect.features };
        let mut presence = lock(&self.presence);
        let (label, leaving) = (presence.label.clone(), presence.leaving);
        let (capacity_bytes, free_bytes) = (usage.capacity_bytes, usage.free_bytes);
        let full = storing && usage.full;
        let greeting = Greeting { hello, storing, full, leaving, capacity_bytes, free_bytes, label };
        presence.note(&greeting);
        greeting
    }

    /// Drops a peer that broke the rules: the one place where anything of this protocol does.
    async fn ban(&self, peer: PeerId, reason: impl Into<String>) -> TransferError {
        let reason = reason.into();
        tracing::warn!(%peer, %reason, "a peer broke the rules of the transfer protocol and is refused for an hour");
        self.network.ban(peer, BAN, reason.clone()).await;
        TransferError::Violation { peer, reason }
    }

    fn slot(&self, peer: PeerId) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        if slots.len() >= SLOTS && !slots.contains_key(&peer) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.serving(None).is_some());
        }
        slots.entry(peer).or_default().clone()
    }

    /// The session to `peer`, opened if there is none. Those who wait for the same attempt share its failure.
    async fn session(self: &Arc<Self>, peer: PeerId) -> Result<Arc<Session>, TransferError> {
        if peer == self.network.local() {
            return Err(broken(peer, "that is this node itself"));
        }
        let slot = self.slot(peer);
        let epoch = self.epoch(peer);
        if let Some(session) = slot.serving(epoch) {
            return Ok(session);
        }
        let began = Instant::now();
        let mut failed = slot.opening.lock().await;
        let epoch = self.epoch(peer);
        if let Some(session) = slot.serving(epoch) {
            return Ok(session);
        }
        if let Some((at, at_epoch, error)) = &*failed
            && *at_epoch == epoch
            && (*at >= began || at.elapsed() < REOPEN_AFTER)
        {
            return Err(error.clone());
        }
        // An older session goes out of use here; what it still owes is answered before it closes.
        *slot.session() = None;
        match Session::open(self, peer).await {
            Ok(session) => {
                *failed = None;
                *slot.session() = Some(session.clone());
                Ok(session)
            }
            Err(error) => {
                *failed = Some((Instant::now(), epoch, error.clone()));
                Err(error)
            }
        }
    }

    /// Registers an inbound session; the oldest of a peer that has too many gives way.
    fn admit(&self, peer: PeerId, id: u64) -> Option<CancellationToken> {
        let mut inbound = lock(&self.inbound);
        if inbound.values().map(Vec::len).sum::<usize>() >= INBOUND {
            return None;
        }
        let sessions = inbound.entry(peer).or_default();
        if sessions.len() >= INBOUND_PER_PEER {
            sessions.remove(0).1.cancel();
        }
        let cancelled = CancellationToken::new();
        sessions.push((id, cancelled.clone()));
        Some(cancelled)
    }

    fn leave(&self, peer: PeerId, id: u64) {
        let mut inbound = lock(&self.inbound);
        if let Some(sessions) = inbound.get_mut(&peer) {
            sessions.retain(|(other, _)| *other != id);
            if sessions.is_empty() {
                inbound.remove(&peer);
            }
        }
    }
}

/// Serves inbound streams until the network stops.
async fn accept(shared: Arc<Shared>, mut inbound: Acceptor, _listed: Work) {
    for id in 0.. {
        let Some((version, peer, stream)) = inbound.recv().await else { return };
        let Some(cancelled) = shared.admit(peer, id) else {
            tracing::debug!(%peer, "too many inbound transfer sessions");
            continue;
        };
        tracing::debug!(%peer, version, "an inbound transfer session");
        let serving = shared.clone();
        drop(shared.workers.task(async move {
            serve::serve(serving.clone(), peer, stream, cancelled).await;
            serving.leave(peer, id);
        }));
    }
}

impl Transfer {
    /// Accepts sessions and serves them from `store`; opens sessions as they are needed.
    pub async fn start(
        network: Network,
        store: Store,
        wanted: Wanted,
        network_name: &str,
        storing: bool,
        workers: &Layer,
    ) -> Result<Self, NetError> {
        let protocol = Spoken::new(network_name, "transfer", network.dialect().transfer);
        let inbound = network.accept_spoken(&protocol, ACCEPTING).await?;
        let shared = Arc::new(Shared {
            network,
            store,
            wanted,
            protocol,
            storing,
            presence: Mutex::default(),
            other: Notify::new(),
            heard: Mutex::default(),
            slots: Mutex::default(),
            inbound: Mutex::default(),
            traffic: Arc::default(),
            reading: Arc::new(Semaphore::new(serve::NODE_UNITS)),
            taking: Arc::new(Semaphore::new(serve::NODE_UNITS)),
            workers: workers.clone(),
        });
        let serving = shared.clone();
        workers.spawn("transfer, served", |work| accept(serving, inbound, work));
        Ok(Self { shared })
    }

    /// The protocol, in every version that this node accepts.
    pub fn protocol(&self) -> &Spoken {
        &self.shared.protocol
    }

    /// The peer's greeting, from the session that is open or a new one.
    pub async fn greeting(&self, peer: PeerId) -> Result<Greeting, TransferError> {
        Ok(self.shared.session(peer).await?.greeting())
    }

    /// A greeting that the peer gives now.
    pub async fn refresh(&self, peer: PeerId) -> Result<Greeting, TransferError> {
        self.shared.session(peer).await?.refresh().await
    }

    /// One chunk, verified; `None`: the peer does not have it. Many calls are pipelined on the one session.
    /// Cancel-safe: a dropped call's answer is discarded.
    pub async fn fetch(&self, peer: PeerId, cid: Cid) -> Result<Option<Chunk>, TransferError> {
        self.wide(peer).await?.want(cid).await
    }

    /// Has the peer keep a chunk; returns when it says that it is on its disk. The bytes of all but small
    /// chunks are not sent if it has them already. Cancel-safe: the peer may keep it all the same.
    pub async fn store(&self, peer: PeerId, chunk: Chunk) -> Result<(), TransferError> {
        let session = self.wide(peer).await?;
        if chunk.len() > PUT_AT_ONCE_BYTES {
            let offer = Offer { cid: *chunk.cid(), length: length(&chunk) };
            if session.offer(offer).await? == Offered::Kept {
                return Ok(());
            }
        }
        session.put(chunk).await
    }

    /// Asks whether the peer has a chunk, which it then keeps for a while, or has room for it. Cancel-safe.
    pub async fn offer(&self, peer: PeerId, cid: Cid, length: u32) -> Result<Offered, TransferError> {
        self.wide(peer).await?.offer(Offer { cid, length }).await
    }

    /// Hands a chunk over, whether the peer has it or not; returns when it is on its disk. Cancel-safe.
    pub async fn put(&self, peer: PeerId, chunk: Chunk) -> Result<(), TransferError> {
        self.wide(peer).await?.put(chunk).await
    }

    /// What the peer holds of each, in their order, however many: they are asked for 1024 at a time. Cancel-safe.
    pub async fn holdings(&self, peer: PeerId, hashes: Vec<Multihash>) -> Result<Vec<Option<Held>>, TransferError> {
        let session = self.shared.session(peer).await?;
        let mut holdings = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(MAX_HAVES) {
            holdings.extend(session.have(batch.to_vec()).await?);
        }
        Ok(holdings)
    }

    /// Has the peer keep these as if they were put now, and says of each whether it has it; it is on its disk then.
    /// Cancel-safe.
    pub async fn renew(&self, peer: PeerId, hashes: Vec<Multihash>) -> Result<Vec<bool>, TransferError> {
        let session = self.shared.session(peer).await?;
        let mut renewed = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(MAX_RENEWALS) {
            renewed.extend(session.renew(batch.to_vec()).await?);
        }
        Ok(renewed)
    }

    /// Bytes of this protocol since the start, of every frame and in both roles: sent, received.
    pub fn transferred(&self) -> (u64, u64) {
        let Traffic { sent_bytes, received_bytes } = &*self.shared.traffic;
        (sent_bytes.load(Ordering::Relaxed), received_bytes.load(Ordering::Relaxed))
    }

    /// The greeting that this node gives.
    pub fn own_greeting(&self) -> Greeting {
        self.shared.own_greeting()
    }

    /// The session, with windows as wide as the link's delay asks for.
    async fn wide(&self, peer: PeerId) -> Result<Arc<Session>, TransferError> {
        let session = self.shared.session(peer).await?;
        if let Some(latency) = self.shared.latency(peer) {
            session.widen(latency);
        }
        Ok(session)
    }
}

fn length(chunk: &Chunk) -> u32 {
    // A chunk has at most 2 MiB.
    u32::try_from(chunk.len()).unwrap_or(u32::MAX)
}
