//! Catching up on the catalogue from a peer: what gossip did not bring.
//!
//! One session makes two catalogues equal: the opener finds the difference by set reconciliation, pulls what it lacks
//! and pushes what the peer lacks. [`p2p_protocol::catch_up`] decides when and with whom, [`session`] is what the two
//! sides say. A node that was away has all within seconds of its first connection.

mod confirm;
mod fresh;
mod refused;
mod session;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use libp2p::PeerId;
use p2p_protocol::{
    catch_up::{CatchUp, Input, Output},
    chance::Chance,
    wire::version::{Hello, Spoken},
};
use tokio::sync::{broadcast, mpsc, watch};

use super::{
    blocking::Blocking,
    catalogue::{Catalogue, StartError, ledger::Ledger},
    turns::{
        SessionError,
        serve::{self, SESSION, Service},
    },
    worker::{Layer, Work},
};
use crate::{
    net::{BAN, NetError, Network, PeerTable, Stream},
    runner::{self, World, now},
};
use fresh::Circle;
use refused::Refused;
use session::{Budget, Summary};

/// Ends of served sessions that may wait for the scheduler to note them; one that is lost costs a session.
const SERVED_WAITING: usize = 64;
/// Comparisons that a slow listener may be behind, and peers with whom one may be waited for.
const COMPARED: usize = 256;
/// How long a stream may take to open.
const OPENING: Duration = Duration::from_secs(15);

pub use confirm::Confirmed;
pub use fresh::{Short, begins_with};

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Sync {
    ledger: Arc<Ledger>,
    network: Network,
    protocol: Spoken,
    compared: broadcast::Sender<Compared>,
    asked: mpsc::Sender<PeerId>,
    circle: Arc<Circle>,
    refused: Arc<Refused>,
    blocking: Blocking,
}

/// A comparison of two catalogues that was completed: both know what either knew when it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compared {
    /// With whom.
    pub peer: PeerId,
    /// When it began.
    pub begun: Instant,
}

impl Sync {
    /// Has the catalogues compared with a peer soon, if it is connected.
    pub fn compare(&self, peer: PeerId) {
        // Where so many are waited for, it is asked for again later.
        let _ = self.asked.try_send(peer);
    }

    /// Comparisons as they are completed, whoever began them. A receiver that lags loses the oldest.
    pub fn compared(&self) -> broadcast::Receiver<Compared> {
        self.compared.subscribe()
    }
}

/// Serves catch-up for `catalogue` and runs this node's own sessions, by the chance of `seed`.
///
/// # Errors
/// Where the store cannot be read, or the protocol's streams cannot be accepted.
pub async fn start(
    network: Network,
    catalogue: &Catalogue,
    blocking: Blocking,
    seed: u64,
    workers: &Layer,
) -> Result<Sync, StartError> {
    let ledger = catalogue.ledger().clone();
    let circle = Arc::new(Circle::load(ledger.clone(), network.clone())?);
    let protocol = Spoken::new(ledger.network_name(), "catalogue", network.dialect().catalogue);
    let inbound = network.accept_spoken(&protocol, serve::WAITING).await.map_err(|why| StartError::Join {
        topic: protocol.names().next().map_or_else(String::new, |(_, name)| name.to_owned()),
        why: Box::new(why),
    })?;
    let (served, serves) = mpsc::channel(SERVED_WAITING);
    let refused = Arc::new(Refused::new());
    let (compared, (asked, asks)) = (broadcast::Sender::new(COMPARED), mpsc::channel(COMPARED));
    let serving = Serving {
        ledger: ledger.clone(),
        circle: circle.clone(),
        blocking: blocking.clone(),
        network: network.clone(),
        served,
        compared: compared.clone(),
    };
    workers.spawn("catch-up, served", |work| serve::run(serving, inbound, work));
    let mut peers = network.peers();
    peers.mark_changed();
    let handle = Sync {
        ledger: ledger.clone(),
        network: network.clone(),
        protocol: protocol.clone(),
        compared: compared.clone(),
        asked,
        circle,
        refused: refused.clone(),
        blocking: blocking.clone(),
    };
    let introducing = handle.clone();
    workers.spawn("introductions", |work| fresh::run(introducing, work));
    let machine = CatchUp::new(ledger.local(), Chance::new(seed), now());
    workers.spawn("catch-up", |work| {
        let sessions = FuturesUnordered::new();
        runner::run(
            machine,
            Sessions {
                ledger,
                refused,
                blocking,
                network,
                protocol,
                peers,
                serves,
                compared,
                asks,
                sessions,
                began: 0,
                work,
            },
        )
    });
    Ok(handle)
}

/// The machine's world: the peer table, what is new in the ledger, and the sessions that this node opened.
struct Sessions {
    ledger: Arc<Ledger>,
    refused: Arc<Refused>,
    blocking: Blocking,
    network: Network,
    protocol: Spoken,
    peers: watch::Receiver<Arc<PeerTable>>,
    serves: mpsc::Receiver<PeerId>,
    compared: broadcast::Sender<Compared>,
    asks: mpsc::Receiver<PeerId>,
    /// Bounded by the machine.
    sessions: FuturesUnordered<BoxFuture<'static, Input>>,
    /// Sessions that were begun since the start.
    began: u64,
    work: Work,
}

impl World<CatchUp> for Sessions {
    fn act(&mut self, Output::Open(peer): Output) {
        self.began += 1;
        let (ledger, network, protocol) = (self.ledger.clone(), self.network.clone(), self.protocol.clone());
        let (blocking, refused) = (self.blocking.clone(), self.refused.clone());
        let (compared, begun) = (self.compared.clone(), now());
        let session = async move {
            let outcome = open(&ledger, &refused, &blocking, &network, peer, &protocol).await;
            if outcome.is_ok() {
                // Nobody may be listening.
                let _ = compared.send(Compared { peer, begun });
            }
            Input::Ended { peer, again: settle(&ledger, &network, peer, outcome).await }
        };
        self.sessions.push(session.boxed());
    }

    async fn next(&mut self) -> Option<Input> {
        tokio::select! {
            changed = self.peers.changed() => {
                changed.ok()?;
                Some(Input::Peers(capable(&self.peers.borrow_and_update(), &self.protocol)))
            }
            () = self.ledger.fresh() => Some(Input::Fresh),
            Some(peer) = self.serves.recv() => Some(Input::Served(peer)),
            Some(peer) = self.asks.recv() => Some(Input::Compare(peer)),
            Some(ended) = self.sessions.next() => Some(ended),
        }
    }

    fn settled(&mut self, machine: &CatchUp) {
        self.ledger.set_caught_up(machine.is_settled());
        match machine.running() as u64 {
            0 => self.work.idle(),
            running => self.work.working(self.began - running, Some(self.began)),
        }
    }
}

async fn open(
    ledger: &Arc<Ledger>,
    refused: &Refused,
    blocking: &Blocking,
    network: &Network,
    peer: PeerId,
    protocol: &Spoken,
) -> Result<Summary, SessionError> {
    let timeout = |_| SessionError::Timeout;
    let opening = tokio::time::timeout(OPENING, network.open_spoken(peer, protocol));
    let (version, stream) = opening.await.map_err(timeout)??;
    tracing::debug!(%peer, version, "a session of catch-up");
    let session = session::catch_up(ledger, (peer, refused), blocking, hello(network), stream);
    tokio::time::timeout(SESSION, session).await.map_err(timeout)?
}

/// What this node's sessions begin with.
fn hello(network: &Network) -> Hello {
    let dialect = network.dialect();
    Hello { version: dialect.catalogue.newest(), features: dialect.features }
}

/// Notes how a session ended; says whether it failed in a way that may pass.
async fn settle(ledger: &Ledger, network: &Network, peer: PeerId, outcome: Result<Summary, SessionError>) -> bool {
    match outcome {
        Ok(summary) => {
            if summary.pulled > 0 || summary.pushed > 0 {
                tracing::debug!(%peer, pulled = summary.pulled, pushed = summary.pushed, "caught up");
            }
            if summary.pulled > 0 {
                ledger.set_fresh();
            }
            false
        }
        Err(SessionError::Hostile(reason)) => {
            tracing::warn!(%peer, reason, "a peer broke the rules of catch-up");
            network.ban(peer, BAN, reason).await;
            false
        }
        Err(SessionError::Unsupported | SessionError::Net(NetError::Unsupported { .. } | NetError::Stopped)) => false,
        Err(error) => {
            tracing::debug!(%peer, %error, "could not catch up");
            true
        }
    }
}

/// What answers others' sessions.
struct Serving {
    ledger: Arc<Ledger>,
    circle: Arc<Circle>,
    blocking: Blocking,
    network: Network,
    /// Takes with whom one came to its end.
    served: mpsc::Sender<PeerId>,
    compared: broadcast::Sender<Compared>,
}

impl Service for Serving {
    type Budget = Budget;
    type Done = Summary;

    fn session(
        &self,
        peer: PeerId,
        stream: Stream,
        budget: Arc<Budget>,
    ) -> BoxFuture<'static, Result<Summary, SessionError>> {
        let (ledger, circle, blocking) = (self.ledger.clone(), self.circle.clone(), self.blocking.clone());
        let own = hello(&self.network);
        async move { session::answer(&ledger, &circle, &blocking, own, (peer, stream), &budget).await }.boxed()
    }

    async fn ended(&mut self, peer: PeerId, begun: Instant, outcome: Result<Summary, SessionError>) {
        // One that only handed something over, or asked for a name, compared nothing.
        let good = outcome.as_ref().is_ok_and(|summary| summary.compared);
        settle(&self.ledger, &self.network, peer, outcome).await;
        if good {
            // One that is lost costs a session that finds nothing.
            let _ = self.served.try_send(peer);
            let _ = self.compared.send(Compared { peer, begun });
        }
    }
}

/// The connected peers that list the protocol in a version that is accepted here, and their epochs.
fn capable(table: &PeerTable, protocol: &Spoken) -> Vec<(PeerId, u64)> {
    table
        .peers
        .iter()
        .filter(|(_, peer)| peer.connected && protocol.is_listed(&peer.protocols))
        .map(|(id, peer)| (*id, peer.epoch))
        .collect()
}
