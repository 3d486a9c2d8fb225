//! Which storing peers there are, and which of them are nearest to a key.
//!
//! Who is known is [`p2p_protocol::locate::Table`]'s, who is greeted when is its greeter's; here is the greeting. Where
//! not every peer can be known, a lookup a region (`p2p_protocol::placement`) finds those that matter, and they are
//! dialled and greeted before anything is ranked.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use p2p_protocol::{
    Key, Label, Multihash, PeerId,
    duty::Said,
    locate::{
        Table,
        greeter::{Greet, Greeter, Input},
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    transfer::{Greeting, Transfer},
    worker::{Layer, Work},
};
use crate::{
    net::{Network, Peer, PeerTable},
    runner::{self, World, now},
};

/// The first round of discovery is waited for no longer than this.
const DISCOVERY: Duration = Duration::from_secs(10);
/// A lookup, and meeting those it named, take at most so long each; without an answer the known peers are ranked.
const LOOKUP: Duration = Duration::from_secs(5);
/// How often it is looked at whether this node's own store filled up, or has room again.
const LOOK: Duration = Duration::from_secs(5);
/// Peers of one answer that are dialled at once.
const MEETINGS: usize = 8;
/// Greetings of peers that did not say yet which network they are of: as many as may be in the middle of a handshake.
const EARLY: usize = 128;
/// How long such a greeting is good for: longer than a handshake takes.
const EARLY_FOR: Duration = Duration::from_secs(10);

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
    started: Instant,
    table: Mutex<Table>,
    /// One lookup at a time: chunks come in bursts, and most of a burst needs the same few.
    looking: tokio::sync::Mutex<()>,
    changes: watch::Sender<u64>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing under this lock panics.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, changed: bool) {
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Takes what a peer said. `epoch`: of the connection that it said it on.
    fn greeted(&self, peer: PeerId, epoch: u64, greeting: Greeting) {
        let connected = self.network.peers().borrow().peers.get(&peer).is_some_and(|row| row.connected);
        let Greeting { storing, full, leaving, label, .. } = greeting;
        let said = Said { storing, full, leaving };
        let changed = self.table().greeted(now(), (peer, label), epoch, connected, said);
        self.changed(changed);
    }

    /// The connection of a peer that said by now which network it is of, and can be asked in it: what others say by
    /// themselves is nothing to rely on.
    fn epoch(&self, peer: &PeerId) -> Option<u64> {
        let (table, spoken) = (self.network.peers(), self.transfer.protocol());
        let table = table.borrow();
        let asked = |row: &&Arc<Peer>| row.connected && spoken.is_listed(&row.protocols);
        table.peers.get(peer).filter(asked).map(|row| row.epoch)
    }

    /// Who can be told something by the transfer protocol now.
    fn reached(&self) -> Vec<PeerId> {
        let (table, spoken) = (self.network.peers(), self.transfer.protocol());
        let table = table.borrow();
        let connected = table.peers.iter().filter(|(_, row)| row.connected && spoken.is_listed(&row.protocols));
        connected.map(|(peer, _)| *peer).collect()
    }

    /// Makes sure that the peers nearest to `hash` are known: one lookup a region.
    async fn look_up(&self, hash: &Multihash) {
        let key = Key::from(hash);
        if self.table().covers(now(), &key) {
            return;
        }
        let _one = self.looking.lock().await;
        if self.table().covers(now(), &key) {
            return;
        }
        let answer = match timeout(LOOKUP, self.network.closest_peers(hash.to_bytes().to_vec())).await {
            Ok(Ok(answer)) => answer,
            _ => Vec::new(),
        };
        let meetings = futures::stream::iter(&answer).for_each_concurrent(MEETINGS, |peer| self.meet(*peer));
        // Those that answer late are greeted all the same, by the worker that follows the table.
        let _ = timeout(LOOKUP, meetings).await;
        self.table().looked_up(now(), &key, &answer);
    }

    /// Connects to a peer and greets it, unless that was done.
    async fn meet(&self, peer: PeerId) {
        if peer == self.network.local() || self.table().is_connected(&peer) {
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

/// The greeter's world: the peer table, and the greetings that are under way.
struct Greetings {
    shared: Arc<Shared>,
    peers: watch::Receiver<Arc<PeerTable>>,
    heard: mpsc::Receiver<(PeerId, Greeting)>,
    /// What peers said before they said which network they are of, and when: the last of each.
    early: Vec<(Instant, PeerId, Greeting)>,
    /// What the machine is to be told next: not more than were early.
    inputs: VecDeque<Input>,
    /// Bounded by the machine.
    running: FuturesUnordered<BoxFuture<'static, Input>>,
    settled: watch::Sender<bool>,
    work: Work,
}

impl Greetings {
    /// Takes what a peer says by itself: its last word counts, also where an earlier one is not taken in yet.
    fn hear(&mut self, peer: PeerId, greeting: Greeting) {
        self.forget_early(&peer);
        if let Some(epoch) = self.shared.epoch(&peer) {
            self.shared.greeted(peer, epoch, greeting);
            self.inputs.push_back(Input::Heard { peer, epoch });
        } else if self.early.len() < EARLY {
            // Whoever finds no room is greeted after a moment.
            self.early.push((Instant::now(), peer, greeting));
        }
    }

    /// What a peer said before is not to be taken in any more: it said something since.
    fn forget_early(&mut self, peer: &PeerId) {
        self.early.retain(|(_, other, _)| other != peer);
    }

    /// Takes in the table as it is now.
    fn follow(&mut self) -> Input {
        self.early.retain(|(said, _, _)| said.elapsed() < EARLY_FOR);
        let known = |(_, peer, _): &mut (Instant, PeerId, Greeting)| self.shared.epoch(peer).is_some();
        let known: Vec<_> = self.early.extract_if(.., known).collect();
        // After the table, which says that they are connected.
        known.into_iter().for_each(|(_, peer, greeting)| self.hear(peer, greeting));
        let table = self.peers.borrow_and_update().clone();
        let is_connected = |peer: &PeerId| table.peers.get(peer).is_some_and(|row| row.connected);
        let changed = self.shared.table().follow(now(), is_connected);
        self.shared.changed(changed);
        let spoken = self.shared.transfer.protocol();
        let connected = table.peers.iter().filter(|(_, row)| row.connected && spoken.is_listed(&row.protocols));
        Input::Peers {
            connected: connected.map(|(peer, row)| (*peer, row.epoch)).collect(),
            discovered: table.discovered,
        }
    }
}

impl World<Greeter> for Greetings {
    fn act(&mut self, Greet { peer, epoch, anew }: Greet) {
        let shared = self.shared.clone();
        let greeting = async move {
            let said = if anew { shared.transfer.refresh(peer).await } else { shared.transfer.greeting(peer).await };
            match said {
                Ok(greeting) => {
                    shared.greeted(peer, epoch, greeting);
                    Input::Greeted { peer, epoch }
                }
                Err(error) => {
                    tracing::debug!(%peer, %error, "a peer could not be greeted");
                    Input::Failed { peer, epoch }
                }
            }
        };
        self.running.push(greeting.boxed());
    }

    async fn next(&mut self) -> Option<Input> {
        loop {
            if let Some(input) = self.inputs.pop_front() {
                return Some(input);
            }
            tokio::select! {
                changed = self.peers.changed() => return changed.is_ok().then(|| self.follow()),
                Some(answer) = self.running.next() => {
                    // It was asked after the table said which network it is of, so that this is its newer word.
                    if let Input::Greeted { peer, .. } = &answer {
                        self.forget_early(&peer.clone());
                    }
                    return Some(answer);
                }
                Some((peer, greeting)) = self.heard.recv() => self.hear(peer, greeting),
            }
        }
    }

    fn settled(&mut self, machine: &Greeter) {
        self.settled.send_if_modified(|settled| std::mem::replace(settled, machine.is_settled()) != *settled);
        let (connected, greeted) = machine.counts();
        if connected == greeted {
            self.work.idle();
        } else {
            self.work.working(greeted as u64, Some(connected as u64));
        }
    }
}

/// Tells peers what this node says of itself whenever that changes.
async fn tell(shared: Arc<Shared>, _listed: Work) {
    let transfer = &shared.transfer;
    let mut told = None;
    loop {
        let said = Some(transfer.said());
        if told != said {
            transfer.announce(shared.reached()).await;
            told = said;
        }
        // However often its owner decides, and however its store fills, no more than one greeting a second goes out.
        let changed = async { tokio::join!(transfer.decided(), sleep(Duration::from_secs(1))) };
        let _ = timeout(LOOK, changed).await;
    }
}

impl Locate {
    /// Starts following the peer table; greets each peer that speaks the transfer protocol.
    pub fn start(network: Network, transfer: Transfer, storing: bool, workers: &Layer) -> Self {
        let (settled, settled_seen) = watch::channel(false);
        let (changes, changes_seen) = watch::channel(0);
        let mut peers = network.peers();
        peers.mark_changed();
        let table = Mutex::new(Table::new(network.local(), storing));
        let (started, looking) = (Instant::now(), tokio::sync::Mutex::default());
        let heard = transfer.heard();
        let shared = Arc::new(Shared { network, transfer, started, table, looking, changes });
        let (world, telling) = (shared.clone(), shared.clone());
        workers.spawn("greeting", |work| {
            let (early, inputs, running) = (Vec::new(), VecDeque::new(), FuturesUnordered::new());
            let greeter = Greeter::new(world.network.local());
            runner::run(greeter, Greetings { shared: world, peers, heard, early, inputs, running, settled, work })
        });
        workers.spawn("telling of itself", |work| tell(telling, work));
        Self { shared, settled: settled_seen, changes: changes_seen }
    }

    /// This node.
    pub fn local(&self) -> PeerId {
        self.shared.network.local()
    }

    /// The `most` storing peers nearest to the chunk that can take it now (greeted, connected), nearest first, this node
    /// included if it stores; fewer where there are no more. In a network too large to be known whole, a region lookup
    /// comes first (cached).
    pub async fn ranked(&self, hash: &Multihash, most: usize) -> Vec<PeerId> {
        let complete = self.shared.network.peers().borrow().complete;
        if !complete {
            self.shared.look_up(hash).await;
        }
        let ranking = self.shared.table().ranking();
        ranking.nearest(&Key::from(hash), most)
    }

    /// The `most` nearest to a key of those that can take a chunk now, as far as they are known without asking anybody.
    pub fn known(&self, key: &Key, most: usize) -> Vec<PeerId> {
        self.shared.table().ranking().nearest(key, most)
    }

    /// As [`ranked`](Self::ranked), of those that can be asked for a chunk: with those that leave.
    pub async fn sources(&self, hash: &Multihash, most: usize) -> Vec<PeerId> {
        let complete = self.shared.network.peers().borrow().complete;
        if !complete {
            self.shared.look_up(hash).await;
        }
        let sources = self.shared.table().sources();
        sources.nearest(&Key::from(hash), most)
    }

    /// This node leaves, and takes nothing more, or it does not any more: its peers are told.
    pub fn leave(&self, leaving: bool) {
        self.shared.transfer.leave(leaving);
        let news = self.shared.table().leave(leaving);
        self.shared.changed(news);
    }

    /// What people call a peer (this node too), if it said so.
    pub fn label(&self, peer: &PeerId) -> Option<Label> {
        if *peer == self.local() {
            return Some(self.shared.transfer.own_label()).filter(|label| !label.is_empty());
        }
        self.shared.table().label(peer)
    }

    /// Storing peers connected now, this node not counted.
    pub fn reachable(&self) -> usize {
        self.shared.table().reachable()
    }

    /// Storing peers seen within the last hour, reachable or not, this node included if it stores.
    pub fn seen(&self) -> usize {
        self.shared.table().seen(now())
    }

    /// Storing peers seen within the last hour that are not reachable now.
    pub fn missing(&self) -> Vec<PeerId> {
        self.shared.table().missing(now())
    }

    /// Every storing peer that is remembered, those that leave too: whether it is connected, and what it said of itself.
    pub fn storing(&self) -> Vec<(PeerId, bool, Said)> {
        self.shared.table().all_storing().collect()
    }

    /// Storing peers that this run met within the last hour, and how long ago each was last seen.
    pub fn met(&self) -> BTreeMap<PeerId, Duration> {
        self.shared.table().met(now())
    }

    /// Storing peers that an earlier run saw, and how long ago: they count as [`seen`](Self::seen) until that is an hour.
    pub fn recall(&self, storing: impl IntoIterator<Item = (PeerId, Duration)>) {
        self.shared.table().recall(now(), storing);
    }

    /// Waits until the first round of discovery is over and those found were greeted (10 s at the most, and never longer
    /// than 20 s after the start).
    pub async fn discovered(&self) {
        let mut settled = self.settled.clone();
        let until = (Instant::now() + DISCOVERY).min(self.shared.started + 2 * DISCOVERY);
        // Without an answer in time, what is known by then is what there is.
        let _ = timeout_at(until, settled.wait_for(|settled| *settled)).await;
    }

    /// Changes whenever a storing peer comes, goes or says something else of itself.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

#[cfg(test)]
#[path = "locate_tests.rs"]
mod tests;
