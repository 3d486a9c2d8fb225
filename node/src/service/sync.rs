//! Catching up on the catalogue from a peer: what gossip did not bring.
//!
//! One session makes two catalogues equal: the opener finds the difference by set reconciliation, pulls what it lacks
//! and pushes what the peer lacks. [`p2p_protocol::catch_up`] decides when and with whom, [`session`] is what the two
//! sides say. A node that was away has all within seconds of its first connection.

mod confirm;
mod fresh;
mod session;

use std::{
    collections::HashMap,
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
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
};

use super::{
    blocking::Blocking,
    catalogue::{Catalogue, StartError, ledger::Ledger},
    worker::{Layer, Work},
};
use crate::{
    net::{Acceptor, BAN, NetError, Network, PeerTable},
    runner::{self, World, now},
};
use fresh::Circle;
use session::{Budget, SessionError, Summary};

/// Inbound streams that may wait for their turn.
const INBOUND_WAITING: usize = 16;
/// Ends of served sessions that may wait for the scheduler to note them; one that is lost costs a session.
const SERVED_WAITING: usize = 64;
/// Sessions that are served at once: each holds two frames of 64 KiB at most, 2 MiB together.
const INBOUND: usize = 16;
/// Sessions that are served at once to one peer: its own and one that it has given up.
const INBOUND_PER_PEER: usize = 2;
/// Peers whose budgets are remembered; a full budget is the same as none, so only busy peers count.
const BUDGETS: usize = 1024;
/// Comparisons that a slow listener may be behind, and peers with whom one may be waited for.
const COMPARED: usize = 256;
/// How long a session may take in all.
const SESSION: Duration = Duration::from_secs(300);
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
    let inbound = network.accept_spoken(&protocol, INBOUND_WAITING).await.map_err(|why| StartError::Join {
        topic: protocol.names().next().map_or_else(String::new, |(_, name)| name.to_owned()),
        why: Box::new(why),
    })?;
    let (served, serves) = mpsc::channel(SERVED_WAITING);
    let (compared, (asked, asks)) = (broadcast::Sender::new(COMPARED), mpsc::channel(COMPARED));
    let (serving, from) = ((ledger.clone(), circle.clone(), blocking.clone()), network.clone());
    let telling = compared.clone();
    workers.spawn("catch-up, served", |work| serve(serving, from, inbound, served, telling, work));
    let mut peers = network.peers();
    peers.mark_changed();
    let handle = Sync {
        ledger: ledger.clone(),
        network: network.clone(),
        protocol: protocol.clone(),
        compared: compared.clone(),
        asked,
        circle,
        blocking: blocking.clone(),
    };
    let introducing = handle.clone();
    workers.spawn("introductions", |work| fresh::run(introducing, work));
    let machine = CatchUp::new(ledger.local(), Chance::new(seed), now());
    workers.spawn("catch-up", |work| {
        let sessions = FuturesUnordered::new();
        runner::run(
            machine,
            Sessions { ledger, blocking, network, protocol, peers, serves, compared, asks, sessions, began: 0, work },
        )
    });
    Ok(handle)
}

/// The machine's world: the peer table, what is new in the ledger, and the sessions that this node opened.
struct Sessions {
    ledger: Arc<Ledger>,
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
        let (blocking, compared, begun) = (self.blocking.clone(), self.compared.clone(), now());
        let session = async move {
            let outcome = open(&ledger, &blocking, &network, peer, &protocol).await;
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
    blocking: &Blocking,
    network: &Network,
    peer: PeerId,
    protocol: &Spoken,
) -> Result<Summary, SessionError> {
    let timeout = |_| SessionError::Timeout;
    let opening = tokio::time::timeout(OPENING, network.open_spoken(peer, protocol));
    let (version, stream) = opening.await.map_err(timeout)??;
    tracing::debug!(%peer, version, "a session of catch-up");
    tokio::time::timeout(SESSION, session::catch_up(ledger, blocking, hello(network), stream)).await.map_err(timeout)?
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

/// Serves others' sessions, until the network is gone. Says on `served` with whom one came to its end.
async fn serve(
    (ledger, circle, blocking): (Arc<Ledger>, Arc<Circle>, Blocking),
    network: Network,
    mut inbound: Acceptor,
    served: mpsc::Sender<PeerId>,
    compared: broadcast::Sender<Compared>,
    work: Work,
) {
    let mut sessions: JoinSet<(PeerId, Instant, Result<Summary, SessionError>)> = JoinSet::new();
    let mut running: HashMap<PeerId, usize> = HashMap::new();
    let mut budgets: HashMap<PeerId, Arc<Budget>> = HashMap::new();
    let mut ended = 0;
    loop {
        match sessions.len() as u64 {
            0 => work.idle(),
            running => work.working(ended, Some(ended + running)),
        }
        tokio::select! {
            arrived = inbound.recv(), if sessions.len() < INBOUND => {
                let Some((_version, peer, stream)) = arrived else { return };
                let Some(budget) = budget_of(&mut budgets, peer) else { continue };
                let count = running.entry(peer).or_default();
                // Dropping the stream closes it; the peer tries again later.
                if *count >= INBOUND_PER_PEER || !budget.open() {
                    tracing::debug!(%peer, "too many catch-up sessions of one peer");
                    continue;
                }
                *count += 1;
                let (ledger, circle, blocking) = (ledger.clone(), circle.clone(), blocking.clone());
                let (own, begun) = (hello(&network), now());
                sessions.spawn(async move {
                    let session = session::serve(&ledger, &circle, &blocking, own, (peer, stream), &budget);
                    let outcome = tokio::time::timeout(SESSION, session).await;
                    (peer, begun, outcome.unwrap_or(Err(SessionError::Timeout)))
                });
            }
            Some(done) = sessions.join_next(), if !sessions.is_empty() => {
                ended += 1;
                // Only a panic ends a session otherwise.
                let Ok((peer, begun, outcome)) = done else { continue };
                if let Some(count) = running.get_mut(&peer) {
                    *count -= 1;
                    if *count == 0 {
                        running.remove(&peer);
                    }
                }
                // One that only handed something over, or asked for a name, compared nothing.
                let good = outcome.as_ref().is_ok_and(|summary| summary.compared);
                settle(&ledger, &network, peer, outcome).await;
                if good {
                    // One that is lost costs a session that finds nothing.
                    let _ = served.try_send(peer);
                    let _ = compared.send(Compared { peer, begun });
                }
            }
        }
    }
}

/// The peer's budget, made full if there is none. `None` where too many peers are busy at once.
fn budget_of(budgets: &mut HashMap<PeerId, Arc<Budget>>, peer: PeerId) -> Option<Arc<Budget>> {
    if !budgets.contains_key(&peer) && budgets.len() >= BUDGETS {
        budgets.retain(|_, budget| Arc::strong_count(budget) > 1 || !budget.is_full());
        if budgets.len() >= BUDGETS {
            return None;
        }
    }
    Some(budgets.entry(peer).or_insert_with(|| Arc::new(Budget::default())).clone())
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
