//! Catching up on the catalogue from a peer: what gossip did not bring.
//!
//! One session makes two catalogues equal: the opener finds the difference by set reconciliation, pulls what it lacks
//! and pushes what the peer lacks. So one of a pair is enough, and the one with the smaller peer id goes first.
//! [`schedule`] says when and with whom, [`session`] is what the two sides say. A node that was away has all within
//! seconds of its first connection.

mod schedule;
mod session;

use std::{collections::HashMap, sync::Arc, time::Duration};

use libp2p::PeerId;
use rand::Rng as _;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::catalogue::ledger::Ledger;
use crate::net::{Inbound, NetError, Network, PeerTable};
use schedule::Schedule;
use session::{Budget, SessionError, Summary};

/// Inbound streams that may wait for their turn.
pub(super) const INBOUND_WAITING: usize = 16;
/// Ends of served sessions that may wait for the scheduler to note them; one that is lost costs a session.
pub(super) const SERVED_WAITING: usize = 64;
/// Sessions that this node runs at once: more would pull the same entries several times over.
const OUTBOUND: usize = 4;
/// Sessions that are served at once: each holds two frames of 64 KiB at most, 2 MiB together.
const INBOUND: usize = 16;
/// Sessions that are served at once to one peer: its own and one that it has given up.
const INBOUND_PER_PEER: usize = 2;
/// Peers whose budgets are remembered; a full budget is the same as none, so only busy peers count.
const BUDGETS: usize = 1024;
/// How long a session may take in all.
const SESSION: Duration = Duration::from_secs(300);
/// How long a stream may take to open.
const OPENING: Duration = Duration::from_secs(15);
/// How often one random peer is compared with, whatever happened.
const SAFETY_NET: Duration = Duration::from_secs(60);
/// After something new came by another way than gossip, so long is waited for more before a couple of peers are told.
const COALESCE: Duration = Duration::from_secs(2);
/// How many peers are told: two of a few make what gossip lost known to all within a few times [`COALESCE`].
const COUPLE: usize = 2;
/// How long a peer that sent what is invalid is refused.
pub(super) const BAN: Duration = Duration::from_secs(3600);

/// Runs this node's own sessions, until the network is gone.
pub(super) async fn run(ledger: Arc<Ledger>, network: Network, protocol: String, mut served: mpsc::Receiver<PeerId>) {
    let mut peers = network.peers();
    let mut schedule = Schedule::new(ledger.local());
    let mut sessions: JoinSet<(PeerId, Result<Summary, SessionError>)> = JoinSet::new();
    let mut told: Option<Instant> = None;
    let mut net = Instant::now() + around(SAFETY_NET);
    schedule.see(Instant::now(), &capable(&peers.borrow_and_update(), &protocol), jitter);
    loop {
        let now = Instant::now();
        while sessions.len() < OUTBOUND
            && let Some(peer) = schedule.next(now)
        {
            let (ledger, network, protocol) = (ledger.clone(), network.clone(), protocol.clone());
            sessions.spawn(async move { (peer, open(&ledger, &network, peer, protocol).await) });
        }
        // With all sessions taken, the end of one is what is waited for.
        let due = if sessions.len() < OUTBOUND { schedule.due() } else { None };
        let wake = [due, told, Some(net)].into_iter().flatten().min().unwrap_or(net);
        tokio::select! {
            changed = peers.changed() => {
                if changed.is_err() {
                    return;
                }
                let capable = capable(&peers.borrow_and_update(), &protocol);
                schedule.see(Instant::now(), &capable, jitter);
            }
            () = ledger.fresh() => {
                told.get_or_insert(Instant::now() + COALESCE);
            }
            Some(peer) = served.recv() => schedule.served(peer),
            Some(ended) = sessions.join_next(), if !sessions.is_empty() => {
                if let Ok((peer, outcome)) = ended {
                    let good = settle(&ledger, &network, peer, outcome).await;
                    schedule.ended(Instant::now(), peer, good, jitter);
                }
            }
            () = sleep_until(wake) => {
                let now = Instant::now();
                if told.is_some_and(|at| at <= now) {
                    told = None;
                    schedule.some(now, COUPLE, pick);
                }
                if net <= now {
                    net = now + around(SAFETY_NET);
                    schedule.some(now, 1, pick);
                }
            }
        }
    }
}

async fn open(
    ledger: &Arc<Ledger>,
    network: &Network,
    peer: PeerId,
    protocol: String,
) -> Result<Summary, SessionError> {
    let timeout = |_| SessionError::Timeout;
    let stream = tokio::time::timeout(OPENING, network.open_stream(peer, protocol)).await.map_err(timeout)??;
    tokio::time::timeout(SESSION, session::catch_up(ledger, stream)).await.map_err(timeout)?
}

/// Notes how a session ended; says whether the peer is to be tried again (`Err`), or was asked enough.
async fn settle(
    ledger: &Ledger,
    network: &Network,
    peer: PeerId,
    outcome: Result<Summary, SessionError>,
) -> schedule::Ended {
    match outcome {
        Ok(summary) => {
            if summary != Summary::default() {
                tracing::debug!(%peer, pulled = summary.pulled, pushed = summary.pushed, "caught up");
            }
            if summary.pulled > 0 {
                ledger.set_fresh();
            }
            schedule::Ended::Done
        }
        Err(SessionError::Hostile(reason)) => {
            tracing::warn!(%peer, reason, "a peer broke the rules of catch-up");
            network.ban(peer, BAN, reason).await;
            schedule::Ended::Done
        }
        Err(SessionError::Net(NetError::Unsupported { .. } | NetError::Stopped)) => schedule::Ended::Done,
        Err(error) => {
            tracing::debug!(%peer, %error, "could not catch up");
            schedule::Ended::Failed
        }
    }
}

/// Serves others' sessions, until the network is gone. Says on `served` with whom one came to its end.
pub(super) async fn serve(
    ledger: Arc<Ledger>,
    network: Network,
    mut inbound: mpsc::Receiver<Inbound>,
    served: mpsc::Sender<PeerId>,
) {
    let mut sessions: JoinSet<(PeerId, Result<Summary, SessionError>)> = JoinSet::new();
    let mut running: HashMap<PeerId, usize> = HashMap::new();
    let mut budgets: HashMap<PeerId, Arc<Budget>> = HashMap::new();
    loop {
        tokio::select! {
            arrived = inbound.recv(), if sessions.len() < INBOUND => {
                let Some((peer, stream)) = arrived else { return };
                let Some(budget) = budget_of(&mut budgets, peer) else { continue };
                let count = running.entry(peer).or_default();
                // Dropping the stream closes it; the peer tries again later.
                if *count >= INBOUND_PER_PEER || !budget.open(Instant::now()) {
                    tracing::debug!(%peer, "too many catch-up sessions of one peer");
                    continue;
                }
                *count += 1;
                let ledger = ledger.clone();
                sessions.spawn(async move {
                    let session = session::serve(&ledger, stream, &budget);
                    let outcome = tokio::time::timeout(SESSION, session).await;
                    (peer, outcome.unwrap_or(Err(SessionError::Timeout)))
                });
            }
            Some(ended) = sessions.join_next(), if !sessions.is_empty() => {
                // Only a panic or an abort ends a session otherwise; neither happens while this runs.
                let Ok((peer, outcome)) = ended else { continue };
                if let Some(count) = running.get_mut(&peer) {
                    *count -= 1;
                    if *count == 0 {
                        running.remove(&peer);
                    }
                }
                let good = outcome.is_ok();
                settle(&ledger, &network, peer, outcome).await;
                if good {
                    // One that is lost costs a session that finds nothing.
                    let _ = served.try_send(peer);
                }
            }
        }
    }
}

/// The peer's budget, made full if there is none. `None` where too many peers are busy at once.
fn budget_of(budgets: &mut HashMap<PeerId, Arc<Budget>>, peer: PeerId) -> Option<Arc<Budget>> {
    if !budgets.contains_key(&peer) && budgets.len() >= BUDGETS {
        let now = Instant::now();
        budgets.retain(|_, budget| Arc::strong_count(budget) > 1 || !budget.is_full(now));
        if budgets.len() >= BUDGETS {
            return None;
        }
    }
    Some(budgets.entry(peer).or_insert_with(|| Arc::new(Budget::new(Instant::now()))).clone())
}

/// The connected peers that list the protocol, and their epochs.
fn capable(table: &PeerTable, protocol: &str) -> Vec<(PeerId, u64)> {
    table
        .peers
        .iter()
        .filter(|(_, peer)| peer.connected && peer.protocols.iter().any(|listed| listed == protocol))
        .map(|(id, peer)| (*id, peer.epoch))
        .collect()
}

/// A random part of `upto`, so that the nodes of a network do not act as one.
fn jitter(upto: Duration) -> Duration {
    upto.mul_f64(rand::rng().random::<f64>())
}

/// `period`, a tenth more or less.
fn around(period: Duration) -> Duration {
    period.mul_f64(rand::rng().random_range(0.9..1.1))
}

/// A random index below `count`, which is not 0.
fn pick(count: usize) -> usize {
    rand::rng().random_range(0..count)
}
