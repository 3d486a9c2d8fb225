//! Attacks on fresh reads: the real services on the simulated network, writers and readers of names at work, while nodes
//! crash, lose their disks, join, leave and are cut off from each other. What was written and read is a history, and a
//! checker says where it is not what `protocol/src/fresh` promises:
//!
//! - a fresh read sees each write that was settled before it began, whoever wrote it and wherever it is read;
//! - the fresh reads of one node never go back.
//!
//! Each run follows from its seed, but for the order of hash maps. What fails is made smaller and printed. `P2P_TEST_SEED`
//! runs another seed, `P2P_TEST_RUNS` so many of them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use libp2p::PeerId;
use p2p_node::{
    net::simulated::{Fabric, Link, Topology, keypair},
    node::{Rooms, Site},
    service::{catalogue::Draft, sync::begins_with},
    store::Store,
};
use p2p_protocol::{
    Cid, Codec,
    catalogue::{EntryKey, Kind},
    fresh::witnesses,
    manifest::{Entry, Listing},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

const K: u8 = 3;
const NAMES: [&str; 2] = ["red", "blue"];
/// Nodes of one run at the most, those that are gone included.
const MOST_NODES: usize = 9;
/// Longer than any read or write takes, of simulated time.
const DRAINED: Duration = Duration::from_secs(60);

/// What befalls a network. A node is a number, taken modulo those there are; what does not apply is skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Wait(u64),
    Write {
        node: usize,
        name: usize,
    },
    Read {
        node: usize,
        name: usize,
        publisher: Option<usize>,
    },
    /// Two sides that cannot hear each other, by the bits of the nodes.
    Split(u16),
    Heal,
    Crash(usize),
    Restart(usize),
    /// The disk is lost, the identity is kept.
    Wipe(usize),
    Join {
        stores: bool,
    },
}

/// A trace: how many nodes begin, and what then happens.
#[derive(Clone)]
struct Trace {
    seed: u64,
    ops: Vec<Op>,
}

impl Trace {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut ops = Vec::new();
        // A network grows from one node; some are written to while it does.
        for _ in 0..random.random_range(1..5) {
            ops.push(Op::Join { stores: true });
            ops.push(Op::Wait(random.random_range(0..4000)));
        }
        for _ in 0..random.random_range(30..70) {
            let node = random.random_range(0..MOST_NODES);
            let name = random.random_range(0..NAMES.len());
            ops.push(match random.random_range(0..100) {
                0..30 => Op::Write { node, name },
                30..70 => {
                    let publisher = random.random_bool(0.6).then(|| random.random_range(0..MOST_NODES));
                    Op::Read { node, name, publisher }
                }
                70..76 => Op::Split(random.random()),
                76..82 => Op::Heal,
                82..86 => Op::Crash(node),
                86..92 => Op::Restart(node),
                92..96 => Op::Wipe(node),
                _ => Op::Join { stores: random.random_bool(0.8) },
            });
            let wait = match random.random_range(0..3) {
                0 => 0,
                1 => random.random_range(0..300),
                _ => random.random_range(0..8000),
            };
            ops.push(Op::Wait(wait));
        }
        Self { seed, ops }
    }
}

/// What came of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// It goes on, or its node died.
    Open,
    /// A write that each later fresh read sees; or what a fresh read saw (0: nothing).
    Done(u64),
    /// A write that says that it may not be seen yet, or a read that did not get enough answers.
    Short,
}

/// A write or a read of one register, with its place in the order of all that began and ended.
#[derive(Clone, Debug)]
struct Event {
    write: bool,
    node: usize,
    /// Of the node: another one after its disk was lost.
    life: u32,
    publisher: usize,
    name: usize,
    began: u64,
    ended: u64,
    outcome: Outcome,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.write { "writes" } else { "reads" };
        let Self { node, life, publisher, name, began, ended, outcome, .. } = self;
        let name = NAMES[*name];
        write!(f, "{began:>5} to {ended:>5}: node {node} (life {life}) {what} {publisher}/{name}: {outcome:?}")
    }
}

#[derive(Default)]
struct History {
    order: u64,
    events: Vec<Event>,
}

impl History {
    fn tick(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// The first pair that is not as it should be.
    fn violation(&self) -> Option<(String, Event, Event)> {
        for read in self.events.iter().filter(|event| !event.write) {
            let Outcome::Done(seen) = read.outcome else { continue };
            let before = self.events.iter().filter(|event| {
                event.ended < read.began && (event.publisher, event.name) == (read.publisher, read.name)
            });
            for earlier in before {
                let Outcome::Done(version) = earlier.outcome else { continue };
                let same_memory = (earlier.node, earlier.life) == (read.node, read.life);
                if version > seen && (earlier.write || same_memory) {
                    let what = if earlier.write { "misses a write that returned" } else { "goes back" };
                    return Some((format!("a fresh read {what} before it began"), earlier.clone(), read.clone()));
                }
            }
        }
        None
    }
}

struct Node {
    peer: PeerId,
    store: Store,
    /// While it runs.
    rooms: Option<Rooms>,
    life: u32,
    /// What is on its disk while it does not run.
    left: Left,
}

/// What a node has that was stopped.
#[derive(Clone, Default)]
struct Left {
    complete: bool,
    /// The newest versions, by publisher and name.
    versions: BTreeMap<(usize, usize), u64>,
}

struct Run {
    fabric: Fabric,
    nodes: Vec<Node>,
    history: Arc<Mutex<History>>,
    split: Option<u16>,
    /// Counts starts and crashes, so that what a dead node says is not heard.
    running: Arc<Mutex<BTreeMap<usize, u32>>>,
    starts: u32,
}

impl Run {
    async fn build(&mut self, number: usize) {
        let network = self.fabric.join(self.nodes[number].peer);
        // Pushes and comparisons alone: gossip would hide what they miss.
        self.fabric.mute(self.nodes[number].peer);
        self.cut();
        let site = Site { replicas: K, ..Site::new("simulation", u64::from(self.starts)) };
        let store = self.nodes[number].store.clone();
        let rooms = Rooms::build(network, store, keypair(number as u64), site).await.expect("the rooms stand");
        self.nodes[number].rooms = Some(rooms);
        self.starts += 1;
        self.running.lock().expect("whole").insert(number, self.starts);
    }

    /// Cuts what the split says, and connects the rest.
    fn cut(&self) {
        for (a, one) in self.nodes.iter().enumerate() {
            for (b, other) in self.nodes.iter().enumerate().skip(a + 1) {
                let apart = self.split.is_some_and(|bits| (bits >> a) & 1 != (bits >> b) & 1);
                if apart {
                    self.fabric.sever(one.peer, other.peer);
                } else {
                    self.fabric.connect(one.peer, other.peer);
                }
            }
        }
    }

    async fn crash(&mut self, number: usize) {
        self.running.lock().expect("whole").remove(&number);
        self.fabric.kill(self.nodes[number].peer);
        if let Some(rooms) = self.nodes[number].rooms.take() {
            self.nodes[number].left = self.left(&rooms);
            rooms.stop(Duration::from_secs(2)).await;
        }
    }

    fn left(&self, rooms: &Rooms) -> Left {
        let version = |publisher: usize, name: usize| {
            let (peer, name) = (self.nodes[publisher].peer, NAMES[name]);
            rooms.catalogue.current(&peer, &EntryKey::named(&peer, name)).map(|current| current.version)
        };
        let places = (0..self.nodes.len()).flat_map(|publisher| (0..NAMES.len()).map(move |name| (publisher, name)));
        let versions = places.filter_map(|(publisher, name)| Some(((publisher, name), version(publisher, name)?)));
        Left { complete: rooms.sync.is_complete(), versions: versions.collect() }
    }

    /// Whether a disk more may be lost: each settled write is on the disk of another member that is complete, running or
    /// not. Of what is being written nobody knows who acknowledged it; of those fewer are lost at once than there are.
    fn may_wipe(&self, number: usize) -> bool {
        let others: Vec<(&Node, Left)> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(other, node)| *other != number && node.store.usage().capacity_bytes > 0)
            .map(|(_, node)| (node, node.rooms.as_ref().map_or_else(|| node.left.clone(), |rooms| self.left(rooms))))
            .collect();
        let history = self.history.lock().expect("whole");
        let writes = || history.events.iter().filter(|event| event.write);
        let safe = |event: &Event| match event.outcome {
            Outcome::Done(version) => {
                let place = (event.publisher, event.name);
                others.iter().any(|(_, left)| left.complete && left.versions.get(&place) >= Some(&version))
            }
            Outcome::Open | Outcome::Short => true,
        };
        let lost = others.iter().filter(|(node, left)| node.life > 0 && !left.complete).count();
        let is_open = |event: &Event| {
            let life = (self.nodes[event.node].life, self.nodes[event.node].rooms.is_some());
            event.outcome == Outcome::Open && life == (event.life, true)
        };
        writes().all(safe) && (!writes().any(is_open) || lost + 1 < witnesses(others.len() + 1))
    }

    async fn apply(&mut self, op: Op) {
        let count = self.nodes.len();
        match op {
            Op::Wait(milliseconds) => sleep(Duration::from_millis(milliseconds)).await,
            Op::Join { stores } if count < MOST_NODES => {
                let store = Store::in_memory(if stores { 64 << 20 } else { 0 });
                let peer = keypair(count as u64).public().to_peer_id();
                begins_with(&store, &peer, count == 0).await.expect("it is kept");
                self.nodes.push(Node { peer, store, rooms: None, life: 0, left: Left::default() });
                self.build(count).await;
            }
            _ if count == 0 => {}
            Op::Join { .. } => {}
            Op::Split(bits) => {
                self.split = Some(bits);
                self.cut();
            }
            Op::Heal => {
                self.split = None;
                self.cut();
            }
            Op::Crash(node) => self.crash(node % count).await,
            Op::Restart(node) if self.nodes[node % count].rooms.is_none() => self.build(node % count).await,
            Op::Restart(_) => {}
            Op::Wipe(node) => {
                let node = node % count;
                if self.may_wipe(node) {
                    self.crash(node).await;
                    let capacity = self.nodes[node].store.usage().capacity_bytes;
                    self.nodes[node].store = Store::in_memory(capacity);
                    self.nodes[node].life += 1;
                    self.nodes[node].left = Left::default();
                    self.build(node).await;
                }
            }
            Op::Write { node, name } => self.begin(node % count, name, None, true),
            Op::Read { node, name, publisher: Some(publisher) } => {
                self.begin(node % count, name, Some(publisher % count), false);
            }
            Op::Read { node, name, publisher: None } => self.begin(node % count, name, None, false),
        }
    }

    /// Has a node write or read, beside all else. A read of a name without a publisher is one of every publisher's.
    fn begin(&self, number: usize, name: usize, publisher: Option<usize>, write: bool) {
        let node = &self.nodes[number];
        let Some(rooms) = node.rooms.clone() else { return };
        let (history, running) = (self.history.clone(), self.running.clone());
        let start = running.lock().expect("whole").get(&number).copied();
        let peers: Vec<PeerId> = self.nodes.iter().map(|node| node.peer).collect();
        let registers: Vec<usize> = match (write, publisher) {
            (true, _) => vec![number],
            (false, Some(publisher)) => vec![publisher],
            (false, None) => (0..peers.len()).collect(),
        };
        let first = {
            let mut history = history.lock().expect("whole");
            let began = history.tick();
            let first = history.events.len();
            history.events.extend(registers.iter().map(|publisher| Event {
                write,
                node: number,
                life: node.life,
                publisher: *publisher,
                name,
                began,
                ended: u64::MAX,
                outcome: Outcome::Open,
            }));
            first
        };
        tokio::spawn(async move {
            let outcomes: Vec<Outcome> = if write {
                vec![publish(&rooms, NAMES[name], first).await]
            } else {
                let reference = match publisher {
                    Some(publisher) => format!("{}/{}", peers[publisher], NAMES[name]),
                    None => NAMES[name].to_owned(),
                };
                let fresh = rooms.inspect.freshen(&reference).await.is_ok();
                let seen = |register: &usize| {
                    let publisher = peers[*register];
                    let current = rooms.catalogue.current(&publisher, &EntryKey::named(&publisher, NAMES[name]));
                    if fresh { Outcome::Done(current.map_or(0, |current| current.version)) } else { Outcome::Short }
                };
                registers.iter().map(seen).collect()
            };
            if start.is_none() || running.lock().expect("whole").get(&number).copied() != start {
                return;
            }
            let mut history = history.lock().expect("whole");
            let ended = history.tick();
            for (event, outcome) in history.events[first..].iter_mut().zip(outcomes) {
                event.ended = ended;
                event.outcome = outcome;
            }
        });
    }
}

/// Publishes as an add does that has its chunks stored already.
async fn publish(rooms: &Rooms, name: &str, content: usize) -> Outcome {
    let root = Cid::of(Codec::Raw, format!("{name} {content}").as_bytes());
    let draft = Draft {
        name: Some(name.to_owned()),
        label: name.to_owned(),
        root,
        kind: Kind::File,
        size: 1,
        replicas: K,
        chunks: 1,
        listing: Listing::Inline(vec![Entry { cid: root, length: 1 }]),
        keep: 10,
    };
    let Ok(published) = rooms.catalogue.publish(draft).await else { return Outcome::Short };
    let candidates = rooms.locate.ranked(&published.key().address(), usize::from(K) + 4).await;
    let expected = K.min(u8::try_from(rooms.locate.seen()).expect("few"));
    let confirmed = rooms.sync.confirm(&published, candidates, expected).await;
    if confirmed.unsettled == 0 { Outcome::Done(published.version) } else { Outcome::Short }
}

/// Runs a trace on a clock and a network of its own.
fn run(trace: &Trace) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let mut run = Run {
            fabric: Fabric::new(trace.seed, Topology::Full, Link::LAN),
            nodes: Vec::new(),
            history: Arc::default(),
            split: None,
            running: Arc::default(),
            starts: 0,
        };
        for op in &trace.ops {
            run.apply(*op).await;
        }
        sleep(DRAINED).await;
        let history = std::mem::take(&mut *run.history.lock().expect("whole"));
        for number in 0..run.nodes.len() {
            run.crash(number).await;
        }
        history
    })
}

/// Leaves out what the failure does not need, as far as a bounded number of tries goes.
fn shrink(mut trace: Trace) -> (Trace, History) {
    let mut history = run(&trace);
    let mut tries = 120;
    let mut length = trace.ops.len() / 2;
    while length > 0 && tries > 0 {
        let mut at = 0;
        while at + length <= trace.ops.len() && tries > 0 {
            let mut smaller = trace.clone();
            smaller.ops.drain(at..at + length);
            tries -= 1;
            let outcome = run(&smaller);
            if outcome.violation().is_some() {
                (trace, history) = (smaller, outcome);
            } else {
                at += length;
            }
        }
        length /= 2;
    }
    (trace, history)
}

/// How many of the seeds' operations came to what, so that a run that shows nothing is seen.
#[derive(Default, Debug)]
struct Figures {
    settled: usize,
    unsettled: usize,
    fresh: usize,
    short: usize,
    /// Fresh reads that saw something.
    saw: usize,
}

impl Figures {
    fn count(&mut self, history: &History) {
        for event in &history.events {
            match (event.write, event.outcome) {
                (true, Outcome::Done(_)) => self.settled += 1,
                (true, Outcome::Short) => self.unsettled += 1,
                (false, Outcome::Done(seen)) => {
                    self.fresh += 1;
                    self.saw += usize::from(seen > 0);
                }
                (false, Outcome::Short) => self.short += 1,
                (_, Outcome::Open) => {}
            }
        }
    }
}

#[test]
fn a_fresh_read_never_misses_a_write_that_returned_before_it_began() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("P2P_TEST_SEED").unwrap_or(20_261_127);
    let runs = number("P2P_TEST_RUNS").unwrap_or(if number("P2P_TEST_SEED").is_some() { 1 } else { 40 });
    let mut figures = Figures::default();
    for seed in first..first + runs {
        let trace = Trace::new(seed);
        let history = run(&trace);
        figures.count(&history);
        if history.violation().is_none() {
            continue;
        }
        let (trace, history) = shrink(trace);
        let (what, earlier, read) = history.violation().expect("only what fails is kept");
        let register = (read.publisher, read.name);
        let told: Vec<String> = history
            .events
            .iter()
            .filter(|event| (event.publisher, event.name) == register)
            .map(ToString::to_string)
            .collect();
        panic!(
            "seed {seed}: {what}\n  {earlier}\n  {read}\nall of that register:\n  {}\nthe trace, made smaller: {:#?}\n\
             to run it again: P2P_TEST_SEED={seed} cargo test -p p2p-tests --test fresh_history",
            told.join("\n  "),
            trace.ops
        );
    }
    eprintln!("{runs} runs: {figures:?}");
    if runs >= 40 {
        let Figures { settled, fresh, saw, .. } = figures;
        assert!(settled > 100 && fresh > 200 && saw > 100, "too little was seen to say anything: {figures:?}");
    }
}
