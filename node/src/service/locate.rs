//! Which storing peers there are, and which of them are nearest to a key.
//!
//! One task follows the peer table and greets whoever lists the transfer protocol, anew with each of its connections;
//! what a peer says then decides whether chunks are placed on it. Where not every peer can be known, a lookup a region
//! (`p2p_protocol::placement`) finds those that matter, and they are dialled and greeted before anything is ranked.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use p2p_protocol::{
    Key, Multihash, PeerId,
    placement::{Candidate, EXTRA_CANDIDATES, Region, Regions, closest},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::transfer::{Greeting, Transfer, TransferError};
use crate::net::{Network, PeerTable};

/// How long a storing peer that left still counts as one of the network.
const SEEN: Duration = Duration::from_secs(3600);
/// The epoch of a peer that an earlier run met: no connection of this run has it.
const EARLIER: u64 = u64::MAX;
/// Peers greeted at once: a handshake each, on a link that may be slow (a guess).
const GREETINGS: usize = 16;
/// A peer that could not be greeted is tried again after this, doubled each time up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// A peer's free space changes: it is asked again after so long, one peer at a time (a guess).
const REFRESH: Duration = Duration::from_secs(300);
/// The first round of discovery is waited for no longer than this.
const DISCOVERY: Duration = Duration::from_secs(10);
/// A lookup, and meeting those it named, take at most so long each; without an answer the known peers are ranked.
const LOOKUP: Duration = Duration::from_secs(5);
/// After a lookup that failed the known peers are ranked for so long.
const LOOKUP_AGAIN: Duration = Duration::from_secs(5);
/// Peers of one answer that are dialled at once.
const MEETINGS: usize = 8;
/// Peers that are remembered: far more than a table has; those that left longest ago go first.
const KNOWN: usize = 8192;
/// A region has at least as many peers as are asked for a chunk of the usual three copies. (One with more copies is
/// placed with what lookups for its neighbours found too; a lookup names 20 peers, so no region could promise 16 + 4.)
const REGION_PEERS: usize = 3 + EXTRA_CANDIDATES;
/// What a lookup names where there are as many.
const ANSWER: usize = 20;

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Locate {
    shared: Arc<Shared>,
    settled: watch::Receiver<bool>,
    changes: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Shared {
    network: Network,
    transfer: Transfer,
    storing: bool,
    state: Mutex<State>,
    /// One lookup at a time: chunks come in bursts, and most of a burst needs the same few.
    looking: tokio::sync::Mutex<()>,
    settled: watch::Sender<bool>,
    changes: watch::Sender<u64>,
}

/// What is known of a peer that was greeted.
#[derive(Clone, Copy, Debug)]
struct Known {
    key: Key,
    greeting: Greeting,
    /// The connection at which it was greeted.
    epoch: u64,
    connected: bool,
    /// When it was last seen connected.
    seen: Instant,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<PeerId, Known>,
    /// Connected storing peers, and this node if it stores.
    candidates: Arc<Vec<Candidate>>,
    regions: Regions,
    lookup_failed: Option<Instant>,
}

impl State {
    fn storing(&self) -> impl Iterator<Item = (&PeerId, &Known)> {
        self.known.iter().filter(|(_, known)| known.greeting.storing)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a peer said. `epoch`: of the connection that it said it on.
    fn greeted(&self, peer: PeerId, epoch: u64, greeting: Greeting) {
        let mut state = self.state();
        let connected = self.network.peers().borrow().peers.get(&peer).is_some_and(|row| row.connected);
        let key = Key::from(&peer);
        let known = Known { key, greeting, epoch, connected, seen: Instant::now() };
        let before = state.known.insert(peer, known);
        // A peer that connected anew may have lost what it had: those who owe it copies want to hear of it.
        let anew = greeting.storing && before.is_none_or(|before| before.epoch != epoch);
        if before.is_none_or(|before| before.epoch == EARLIER) {
            state.regions.forget(&key);
        }
        if state.known.len() > KNOWN
            && let Some(oldest) =
                state.known.iter().filter(|(_, known)| !known.connected).min_by_key(|(_, known)| known.seen)
        {
            let oldest = *oldest.0;
            state.known.remove(&oldest);
        }
        self.rank(&mut state, anew);
    }

    /// Brings what is known in line with the peer table.
    fn follow(&self, table: &PeerTable) {
        let now = Instant::now();
        let mut state = self.state();
        let mut came_or_went = Vec::new();
        state.known.retain(|peer, known| {
            // What it said to an earlier run is not what it says now.
            let connected = known.epoch != EARLIER && table.peers.get(peer).is_some_and(|row| row.connected);
            if known.connected != connected {
                came_or_went.push(known.key);
            }
            if known.connected || connected {
                known.seen = now;
            }
            known.connected = connected;
            now.saturating_duration_since(known.seen) < SEEN
        });
        for key in came_or_went {
            state.regions.forget(&key);
        }
        self.rank(&mut state, false);
    }

    /// Computes the candidates; tells those who wait if they changed, or if one of them connected anew.
    fn rank(&self, state: &mut State, anew: bool) {
        let local = self.storing.then(|| self.network.local());
        let mut candidates: Vec<Candidate> = state
            .storing()
            .filter(|(_, known)| known.connected)
            .map(|(peer, known)| Candidate { peer: *peer, key: known.key })
            .collect();
        candidates.extend(local.map(Candidate::from));
        if anew || *state.candidates != candidates {
            state.candidates = Arc::new(candidates);
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Makes sure that the peers nearest to `hash` are known: one lookup a region.
    async fn look_up(&self, hash: &Multihash) {
        let key = Key::from(hash);
        let known = |state: &State| {
            let lately = state.lookup_failed.is_some_and(|at| at.elapsed() < LOOKUP_AGAIN);
            lately || state.regions.covers(&key, Instant::now().into_std())
        };
        if known(&self.state()) {
            return;
        }
        let _one = self.looking.lock().await;
        if known(&self.state()) {
            return;
        }
        let answer = match timeout(LOOKUP, self.network.closest_peers(hash.to_bytes().to_vec())).await {
            Ok(Ok(answer)) if !answer.is_empty() => answer,
            _ => {
                self.state().lookup_failed = Some(Instant::now());
                return;
            }
        };
        let meetings = futures::stream::iter(answer.clone()).for_each_concurrent(MEETINGS, |peer| self.meet(peer));
        // Those that answer late are greeted all the same, by the task that follows the table.
        let _ = timeout(LOOKUP, meetings).await;
        let mut state = self.state();
        let all = answer.len() < ANSWER && state.known.len() <= answer.len();
        state.regions.learn(Region::of_answer(&key, &answer, REGION_PEERS, all), Instant::now().into_std());
        state.lookup_failed = None;
    }

    /// Connects to a peer and greets it, unless that was done.
    async fn meet(&self, peer: PeerId) {
        if peer == self.network.local() || self.state().known.get(&peer).is_some_and(|known| known.connected) {
            return;
        }
        if self.network.dial_peer(peer).await.is_err() {
            return;
        }
        let epoch = |table: &PeerTable| table.peers.get(&peer).filter(|row| row.connected).map(|row| row.epoch);
        let mut table = self.network.peers();
        let epoch = match table.wait_for(|table| epoch(table).is_some()).await {
            Ok(table) => epoch(&table),
            Err(_) => None,
        };
        if let (Some(epoch), Ok(greeting)) = (epoch, self.transfer.greeting(peer).await) {
            self.greeted(peer, epoch, greeting);
        }
    }
}

/// A peer that could not be greeted.
struct Failure {
    epoch: u64,
    times: u32,
    again: Instant,
}

/// The task's own: who is being greeted, and who could not be.
struct Greeter {
    shared: Arc<Shared>,
    running: JoinSet<(PeerId, u64, Result<Greeting, TransferError>)>,
    greeting: HashSet<PeerId>,
    failed: HashMap<PeerId, Failure>,
    refreshed: Instant,
}

impl Greeter {
    /// Follows the table until the network stops.
    async fn run(mut self) {
        let mut peers = self.shared.network.peers();
        loop {
            let table = peers.borrow_and_update().clone();
            self.shared.follow(&table);
            let again = self.greet(&table);
            tokio::select! {
                changed = peers.changed() => if changed.is_err() { return },
                Some(done) = self.running.join_next() => match done {
                    Ok((peer, epoch, result)) => self.done(peer, epoch, result),
                    Err(error) => tracing::error!(%error, "greeting a peer failed"),
                },
                () = sleep_until(again) => self.refresh(&table),
            }
        }
    }

    /// Starts what can be started; gives when to look again.
    fn greet(&mut self, table: &PeerTable) -> Instant {
        let now = Instant::now();
        let mut again = self.refreshed + REFRESH;
        let mut waiting = false;
        self.failed.retain(|peer, failure| {
            table.peers.get(peer).is_some_and(|row| row.connected && row.epoch == failure.epoch)
        });
        for (peer, row) in &table.peers {
            if !row.connected || !row.protocols.iter().any(|name| name == self.shared.transfer.protocol()) {
                continue;
            }
            if self.shared.state().known.get(peer).is_some_and(|known| known.epoch == row.epoch) {
                continue;
            }
            if self.greeting.contains(peer) {
                waiting = true;
                continue;
            }
            if let Some(failure) = self.failed.get(peer)
                && failure.again > now
            {
                again = again.min(failure.again);
                continue;
            }
            waiting |= !self.failed.contains_key(peer);
            if self.running.len() < GREETINGS {
                self.start(*peer, row.epoch, false);
            }
        }
        self.shared.settled.send_if_modified(|settled| {
            let was = *settled;
            *settled = was || (table.discovered && !waiting);
            *settled != was
        });
        again
    }

    fn start(&mut self, peer: PeerId, epoch: u64, anew: bool) {
        let transfer = self.shared.transfer.clone();
        self.greeting.insert(peer);
        self.running.spawn(async move {
            let greeting = if anew { transfer.refresh(peer).await } else { transfer.greeting(peer).await };
            (peer, epoch, greeting)
        });
    }

    fn done(&mut self, peer: PeerId, epoch: u64, result: Result<Greeting, TransferError>) {
        self.greeting.remove(&peer);
        match result {
            Ok(greeting) => {
                self.failed.remove(&peer);
                self.shared.greeted(peer, epoch, greeting);
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "a peer could not be greeted");
                let times = self.failed.get(&peer).map_or(0, |failure| failure.times).saturating_add(1);
                let wait = RETRY.saturating_mul(1 << times.min(10)).min(RETRY_MOST);
                self.failed.insert(peer, Failure { epoch, times, again: Instant::now() + wait });
            }
        }
    }

    /// Asks all peers again that were greeted and are here, a few at a time.
    fn refresh(&mut self, table: &PeerTable) {
        if self.refreshed.elapsed() < REFRESH {
            return;
        }
        self.refreshed = Instant::now();
        let due: Vec<(PeerId, u64)> = table
            .peers
            .iter()
            .filter(|(peer, row)| row.connected && !self.greeting.contains(peer))
            .filter(|(peer, row)| self.shared.state().known.get(peer).is_some_and(|known| known.epoch == row.epoch))
            .map(|(peer, row)| (*peer, row.epoch))
            .take(GREETINGS)
            .collect();
        for (peer, epoch) in due {
            self.start(peer, epoch, true);
        }
    }
}

impl Locate {
    /// Starts following the peer table; greets each peer that speaks the transfer protocol. Stops when `Network` does.
    pub fn start(network: Network, transfer: Transfer, storing: bool) -> Self {
        let (settled, settled_seen) = watch::channel(false);
        let (changes, changes_seen) = watch::channel(0);
        let shared = Arc::new(Shared {
            network,
            transfer,
            storing,
            state: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            settled,
            changes,
        });
        shared.rank(&mut shared.state(), false);
        let greeter = Greeter {
            shared: shared.clone(),
            running: JoinSet::new(),
            greeting: HashSet::new(),
            failed: HashMap::new(),
            refreshed: Instant::now(),
        };
        tokio::spawn(greeter.run());
        Self { shared, settled: settled_seen, changes: changes_seen }
    }

    /// This node.
    pub fn local(&self) -> PeerId {
        self.shared.network.local()
    }

    /// Storing peers that can take a chunk now (greeted, connected), nearest to the chunk first, this node
    /// included if it stores. In a network too large to be known whole, a region lookup comes first (cached).
    pub async fn ranked(&self, hash: &Multihash) -> Vec<PeerId> {
        let complete = self.shared.network.peers().borrow().complete;
        if !complete {
            self.shared.look_up(hash).await;
        }
        let candidates = self.shared.state().candidates.clone();
        closest(&Key::from(hash), &candidates, candidates.len())
    }

    /// Storing peers connected now, this node not counted.
    pub fn reachable(&self) -> usize {
        self.shared.state().candidates.len() - usize::from(self.shared.storing)
    }

    /// Storing peers seen within the last hour, reachable or not, this node included if it stores.
    pub fn seen(&self) -> usize {
        self.shared.state().storing().filter(|(_, known)| is_seen(known)).count() + usize::from(self.shared.storing)
    }

    /// Storing peers seen within the last hour that are not reachable now.
    pub fn missing(&self) -> Vec<PeerId> {
        let state = self.shared.state();
        let missing = state.storing().filter(|(_, known)| !known.connected && is_seen(known));
        missing.map(|(peer, _)| *peer).collect()
    }

    /// Storing peers that this run met within the last hour, and how long ago each was last seen.
    pub fn met(&self) -> BTreeMap<PeerId, Duration> {
        let state = self.shared.state();
        let met = state.storing().filter(|(_, known)| known.epoch != EARLIER && is_seen(known));
        met.map(|(peer, known)| (*peer, if known.connected { Duration::ZERO } else { known.seen.elapsed() })).collect()
    }

    /// Storing peers that an earlier run saw, and how long ago: they count as [`seen`](Self::seen) until that is an hour.
    /// Older ones are left out.
    pub fn recall(&self, storing: impl IntoIterator<Item = (PeerId, Duration)>) {
        let now = Instant::now();
        let mut state = self.shared.state();
        for (peer, ago) in storing.into_iter().filter(|(_, ago)| *ago < SEEN).take(KNOWN) {
            let greeting = Greeting { storing: true, capacity_bytes: 0, free_bytes: 0 };
            // A machine that was started since may have no such instant.
            let seen = now.checked_sub(ago).unwrap_or(now);
            let known = Known { key: Key::from(&peer), greeting, epoch: EARLIER, connected: false, seen };
            state.known.entry(peer).or_insert(known);
        }
    }

    /// Waits until the first round of discovery is over and those found were greeted (10 s at the most).
    pub async fn discovered(&self) {
        let mut settled = self.settled.clone();
        // Without an answer in time, what is known by then is what there is.
        let _ = timeout(DISCOVERY, settled.wait_for(|settled| *settled)).await;
    }

    /// Changes whenever a storing peer comes or goes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

fn is_seen(known: &Known) -> bool {
    known.connected || known.seen.elapsed() < SEEN
}

#[cfg(test)]
#[path = "locate_tests.rs"]
mod tests;
