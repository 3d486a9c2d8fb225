//! Nodes, the links between them, and what is to happen when.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;
use p2p_protocol::{
    Key,
    chance::Chance,
    duty::{
        self, Input, Said, Settings, Spans,
        lister::{self, Listed},
    },
    machine::StateMachine as _,
    manifest::Entry,
    placement::{Candidate, REGION_AGE},
    ranking::Ranking,
};

use crate::{
    catalogue::{PublicationKey, Version},
    client::Step,
    content::Root,
    figures::Figures,
    model::Model,
    node::{Node, NodeId},
    trace::Happening,
};

/// Peers that a node of a large network knows of: so many of those nearest to it, and so many of each of Kademlia's
/// buckets; more than may have to hold a chunk, so that none of a bucket's keys seems to be this node's.
const NEAR: usize = 24;
const BUCKET: usize = 20;
/// After a start a node has met those it knows of.
const MEETING: Duration = Duration::from_secs(5);
/// Between looks at what nodes count as their duty: what is counted wrong stays so for hours, and each look costs a pass.
const COUNTED: Duration = Duration::from_secs(300);
/// Events at one time that only a loop without an end has.
const AT_ONCE: u64 = 1_000_000;

/// What somebody publishes.
#[derive(Debug)]
pub struct Publication {
    /// What.
    pub root: usize,
    /// What it is from a version on, where that is something else.
    pub later: BTreeMap<u64, usize>,
    /// The greatest version.
    pub last: u64,
    /// Who.
    pub publisher: NodeId,
    /// Copies wanted.
    pub copies: u8,
}

impl Publication {
    /// Of `root`, not published yet.
    pub fn new(root: usize, publisher: NodeId, copies: u8) -> Self {
        Self { root, later: BTreeMap::new(), last: 0, publisher, copies }
    }

    /// All that it ever was.
    pub(crate) fn roots(&self) -> impl Iterator<Item = usize> + '_ {
        self.later.values().copied().chain([self.root])
    }
}

/// Something that is to happen.
#[derive(Debug)]
pub(crate) enum Event {
    Timer { node: NodeId, starts: u32 },
    Met { node: NodeId, starts: u32 },
    Link { a: NodeId, b: NodeId },
    Input { node: NodeId, starts: u32, input: Input },
    Asked { node: NodeId, starts: u32, peer: NodeId, request: u64, keys: Vec<Key> },
    Proving { node: NodeId, starts: u32, peer: NodeId, request: u64, keys: Vec<Key> },
    Pulled { node: NodeId, starts: u32, key: Key, entry: Entry, source: Option<(NodeId, u32)> },
    Free { node: NodeId, starts: u32, entries: Vec<Entry> },
    Audit { node: NodeId, starts: u32, peer: NodeId },
    Compare { node: NodeId, starts: u32, peer: NodeId, begun: Instant },
    Read { node: NodeId, starts: u32, listed: Listed, spans: Arc<Spans>, list: bool, covers: Arc<Spans> },
    Purge { node: NodeId, starts: u32, publications: Vec<u64> },
    Tell { node: NodeId, starts: u32 },
    Gossip { node: NodeId, key: PublicationKey, version: Version },
    Client(Step),
    Trace(Happening),
}

#[derive(Debug)]
struct Due {
    at: Duration,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A whole network.
#[derive(Debug)]
pub struct World {
    pub(crate) base: Instant,
    pub(crate) now: Duration,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    /// Events since time went on.
    at_once: u64,
    /// What nodes count as their duty is compared with their rows from then on.
    counted: Duration,
    /// Everybody who ever was.
    pub nodes: Vec<Node>,
    /// Looked up only, so that its order makes nothing different.
    pub(crate) by_peer: HashMap<PeerId, NodeId>,
    /// Those who are not gone for good.
    pub(crate) everyone: Ranking,
    pub(crate) roots: Vec<Root>,
    pub(crate) publications: Vec<Publication>,
    pub(crate) settings: Settings,
    /// What must hold.
    pub model: Model,
    /// What was counted.
    pub figures: Figures,
    pub(crate) chance: Chance,
    /// Links on which nothing comes through from the first to the second.
    pub(crate) one_way: BTreeSet<(NodeId, NodeId)>,
    pub(crate) adds: BTreeMap<PublicationKey, crate::client::Add>,
    /// A disk goes only where something promised has another copy left.
    pub gated: bool,
    /// Audits find what is equal and cost what that costs: for networks too large to look at each.
    pub closed_form_audits: bool,
    /// What happened, for a reader, where it is wanted.
    pub log: Option<Vec<String>>,
}

impl World {
    /// An empty network.
    pub fn new(seed: u64, settings: Settings) -> Self {
        Self {
            base: Instant::now(),
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            order: 0,
            at_once: 0,
            counted: Duration::ZERO,
            nodes: Vec::new(),
            by_peer: HashMap::new(),
            everyone: Ranking::default(),
            roots: Vec::new(),
            publications: Vec::new(),
            settings,
            model: Model::default(),
            figures: Figures::default(),
            chance: Chance::new(seed),
            one_way: BTreeSet::new(),
            adds: BTreeMap::new(),
            gated: true,
            closed_form_audits: false,
            log: None,
        }
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{:>9.1} s  {}", now.as_secs_f64(), what()));
        }
    }

    pub(crate) fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    pub(crate) fn at(&mut self, at: Duration, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due { at: at.max(self.now), order: self.order, event }));
    }

    /// Something of the trace is to happen at a time.
    pub fn happens(&mut self, at: Duration, happening: Happening) {
        self.at(at, Event::Trace(happening));
    }

    /// Runs to a time, or until the model finds that something does not hold.
    pub fn run(&mut self, until: Duration) {
        while self.model.violation.is_none()
            && self.queue.peek().is_some_and(|Reverse(due)| due.at <= until)
            && let Some(Reverse(due)) = self.queue.pop()
        {
            if due.at > self.now {
                self.at_once = 0;
            }
            self.at_once += 1;
            if self.at_once > AT_ONCE {
                let last = format!("{:?}", due.event);
                self.model.violation = Some(format!("at {:?} it never comes to rest: {last}", due.at));
                break;
            }
            self.now = due.at;
            self.step(due.event);
            if self.now >= self.counted {
                self.counted = self.now + COUNTED;
                self.check_duty();
            }
        }
        if self.model.violation.is_none() {
            self.now = self.now.max(until);
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Timer { node, starts } => {
                let now = self.instant();
                // One that was set earlier for a later time is over.
                if let Some(running) = self.running(node, starts)
                    && running.timer == Some(now)
                {
                    running.timer = None;
                    running.keeper.handle_timeout(now);
                    running.lister.handle_timeout(now);
                    self.drive(node);
                }
            }
            Event::Met { node, starts } => {
                if let Some(running) = self.running(node, starts) {
                    running.met = true;
                    self.drive(node);
                }
            }
            Event::Link { a, b } => self.link(a, b),
            Event::Input { node, starts, input } => {
                if self.running(node, starts).is_some() {
                    self.tell(node, input);
                }
            }
            Event::Asked { node, starts, peer, request, keys } => self.asked(node, starts, peer, request, &keys),
            Event::Proving { node, starts, peer, request, keys } => self.proving(node, starts, peer, request, &keys),
            Event::Pulled { node, starts, key, entry, source } => self.pulled(node, starts, key, entry, source),
            Event::Free { node, starts, entries } => {
                if self.running(node, starts).is_some() {
                    self.free(node, &entries);
                }
            }
            Event::Audit { node, starts, peer } => self.audit(node, starts, peer),
            Event::Compare { node, starts, peer, begun } => self.compare(node, starts, peer, begun),
            Event::Read { node, starts, listed, spans, list, covers } => {
                self.read(node, starts, &listed, &spans, list, covers);
            }
            Event::Purge { node, starts, publications } => self.purge(node, starts, publications),
            Event::Tell { node, starts } => self.tell_all(node, starts),
            Event::Gossip { node, key, version } => self.learn(node, key, version),
            Event::Client(step) => self.client(step),
            Event::Trace(happening) => self.happen(happening),
        }
    }

    pub(crate) fn running(&mut self, node: NodeId, starts: u32) -> Option<&mut crate::node::Running> {
        let node = &mut self.nodes[node];
        if node.starts == starts { node.running.as_mut() } else { None }
    }

    /// A new node comes, empty.
    pub fn join(&mut self) -> NodeId {
        let mut node = Node::new(&mut self.chance);
        node.joined = self.now;
        let id = self.nodes.len();
        self.by_peer.insert(node.peer, id);
        let candidate = Candidate { peer: node.peer, key: node.key };
        self.nodes.push(node);
        for other in self.circle(id) {
            self.nodes[id].circle.insert(other);
            self.nodes[other].circle.insert(id);
        }
        self.everyone.insert(candidate);
        self.figures.lookups += 1;
        self.start(id);
        id
    }

    /// Whom a new node gets to know.
    fn circle(&self, id: NodeId) -> Vec<NodeId> {
        let here = (0..id).filter(|other| !self.nodes[*other].departed);
        if !self.is_large() {
            return here.collect();
        }
        let key = self.nodes[id].key;
        let mut near: Vec<_> = here.map(|other| (self.nodes[other].key.distance(&key), other)).collect();
        near.sort_unstable();
        let mut buckets: BTreeMap<u32, usize> = BTreeMap::new();
        let known = near.into_iter().enumerate().filter(|(at, (_, other))| {
            let bucket = buckets.entry(self.nodes[*other].key.common_prefix_bits(&key)).or_default();
            *bucket += 1;
            *at < NEAR || *bucket <= BUCKET
        });
        known.map(|(_, (_, other))| other).collect()
    }

    /// A node is gone for good: in a large network those who knew it get to know another one of its bucket.
    pub(crate) fn forget(&mut self, id: NodeId) {
        let key = self.nodes[id].key;
        self.everyone.remove(&key);
        let circle = std::mem::take(&mut self.nodes[id].circle);
        let near: Vec<NodeId> = self.everyone.nearest(&key, BUCKET).iter().map(|peer| self.by_peer[peer]).collect();
        for other in circle {
            self.nodes[other].circle.remove(&id);
            if !self.is_large() {
                continue;
            }
            let unknown = near.iter().find(|new| **new != other && !self.nodes[other].circle.contains(new));
            if let Some(&new) = unknown {
                self.nodes[other].circle.insert(new);
                self.nodes[new].circle.insert(other);
                let wait = self.delay();
                self.after(wait, Event::Link { a: other, b: new });
                self.figures.lookups += 1;
            }
        }
    }

    /// A look-up of a key, and of others, of so many in all: each tells about its region for a while.
    pub(crate) fn look_up(&mut self, id: NodeId, keys: u64) {
        let regions = (self.everyone.len() / BUCKET).max(1) as u64;
        let (now, looked) = (self.now, &mut self.nodes[id].looked);
        if now.saturating_sub(looked.0) >= REGION_AGE {
            *looked = (now, 0);
        }
        let new = keys.min(regions - looked.1.min(regions));
        looked.1 += new;
        self.figures.lookups += new;
    }

    /// A node starts.
    pub(crate) fn start(&mut self, id: NodeId) {
        if self.nodes[id].is_up() || self.nodes[id].departed {
            return;
        }
        let now = self.instant();
        let chance = Chance::new(self.chance.number());
        let settings = self.settings;
        let restarted = self.nodes[id].starts > 0;
        let down = self.nodes[id].down_since.take();
        if down.is_some_and(|down| self.now - down < settings.repair_delay) {
            self.nodes[id].restarted = Some(self.now);
            self.figures.restarts += 1;
        }
        self.nodes[id].start(now, settings, chance);
        let starts = self.nodes[id].starts;
        let circle: Vec<NodeId> = self.nodes[id].circle.iter().copied().collect();
        if restarted {
            for other in &circle {
                let peer = self.nodes[*other].peer;
                self.tell(id, Input::Remembered(peer));
                let leaving = self.nodes[*other].disk.leaving;
                self.tell(id, Input::Said(peer, Said { storing: true, full: false, leaving }));
            }
        }
        let (used, capacity) = (self.nodes[id].disk.used, self.nodes[id].disk.capacity);
        self.tell(id, Input::Space { used, capacity });
        if self.nodes[id].disk.leaving {
            self.tell(id, Input::Leaving(true));
        }
        let entries: Vec<_> = self.nodes[id].disk.catalogue.entries().collect();
        for (key, version) in entries.into_iter().filter(|(_, version)| !version.removed) {
            self.goes_live(id, key, version);
        }
        let pins: Vec<_> = self.nodes[id].disk.pins.iter().copied().collect();
        pins.into_iter().for_each(|pinning| self.pin_live(id, pinning));
        // References to what is not live any more may be left from the run before.
        let stale: Vec<u64> = self.nodes[id].disk.covered.keys().copied().collect();
        for publication in stale {
            let live = self.nodes[id].running.as_ref().is_some_and(|running| running.live.contains(&publication));
            if !live {
                self.after(Duration::from_secs(1), Event::Purge { node: id, starts, publications: vec![publication] });
            }
        }
        for other in circle {
            let wait = self.delay();
            self.after(wait, Event::Link { a: id, b: other });
        }
        self.after(MEETING, Event::Met { node: id, starts });
        self.drive(id);
    }

    /// A node stops; nothing of what it holds in memory stays.
    pub(crate) fn stop(&mut self, id: NodeId) {
        let now = self.instant();
        let Some(running) = self.nodes[id].running.take() else { return };
        let down = self.now;
        let node = &mut self.nodes[id];
        node.down_since = Some(down);
        node.disk.moment = running.keeper.moment(now);
        node.disk.parts = running.lister.parts().clone();
        let connected: Vec<NodeId> = std::mem::take(&mut node.connected).into_iter().collect();
        for other in connected {
            self.lose(other, id);
        }
        self.adds.retain(|_, add| add.node != id);
    }

    /// The links of a node are looked at again.
    pub(crate) fn relink(&mut self, id: NodeId) {
        let circle: Vec<NodeId> = self.nodes[id].circle.iter().copied().collect();
        for other in circle {
            let wait = self.delay();
            self.after(wait, Event::Link { a: id, b: other });
        }
    }

    fn link(&mut self, a: NodeId, b: NodeId) {
        let linked = self.nodes[a].connected.contains(&b);
        match (linked, self.reaches(a, b)) {
            (false, true) => {
                self.meet(a, b);
                self.meet(b, a);
                let wait = self.delay();
                let (starts, begun) = (self.nodes[a].starts, self.instant());
                // Whoever meets compares catalogues.
                self.after(wait, Event::Compare { node: a, starts, peer: b, begun });
                let starts = self.nodes[b].starts;
                self.after(wait, Event::Compare { node: b, starts, peer: a, begun });
            }
            (true, false) => {
                self.lose(a, b);
                self.lose(b, a);
            }
            _ => {}
        }
    }

    fn meet(&mut self, node: NodeId, other: NodeId) {
        self.nodes[node].connected.insert(other);
        let peer = self.nodes[other].peer;
        let full = self.nodes[other].running.as_ref().is_some_and(|running| running.keeper.is_full());
        self.tell(node, Input::Heard(peer));
        let leaving = self.nodes[other].disk.leaving;
        self.tell(node, Input::Said(peer, Said { storing: true, full, leaving }));
    }

    fn lose(&mut self, node: NodeId, other: NodeId) {
        if self.nodes[node].connected.remove(&other) {
            let (peer, now) = (self.nodes[other].peer, self.instant());
            self.tell(node, Input::Left(peer, now));
        }
    }

    /// Gives the loop of a node something, and does what follows.
    pub(crate) fn tell(&mut self, node: NodeId, input: Input) {
        let now = self.instant();
        if let Some(running) = &mut self.nodes[node].running {
            running.keeper.handle(now, input);
            self.drive(node);
        }
    }

    /// A node learns of a version of a publication.
    pub(crate) fn learn(&mut self, node: NodeId, key: PublicationKey, version: Version) {
        if !self.nodes[node].is_up() {
            return;
        }
        let Some(before) = self.nodes[node].disk.catalogue.merge(key, version) else { return };
        let now = self.instant();
        if let Some(before) = before.filter(|before| !before.removed) {
            let publication = before.id(key);
            let listed = Some(self.what_it_lists(key, before));
            if let Some(running) = &mut self.nodes[node].running {
                running.live.remove(&publication);
                running.lister.handle(now, lister::Input::Gone { publication, listed });
            }
        }
        if !version.removed {
            self.goes_live(node, key, version);
        }
        self.repin(node, key, before, version);
        self.drive(node);
    }

    /// The lister of a node is told of a publication that is live, or of a pin.
    pub(crate) fn tell_live(&mut self, node: NodeId, listed: Listed) {
        let (now, id) = (self.instant(), listed.publication);
        let node = &mut self.nodes[node];
        let covered = node.disk.covered.get(&id).cloned().unwrap_or_default();
        if let Some(running) = &mut node.running {
            running.live.insert(id);
            running.lister.handle(now, lister::Input::Live { listed, covered, doubtful: false });
        }
    }

    /// A node learned that a version of a publication is live.
    pub(crate) fn goes_live(&mut self, node: NodeId, key: PublicationKey, version: Version) {
        let listed = self.what_it_lists(key, version);
        self.tell_live(node, listed);
    }

    /// How long a message takes.
    pub(crate) fn delay(&mut self) -> Duration {
        Duration::from_millis(5) + self.chance.part(Duration::from_millis(60))
    }

    /// A node begins to hand its share over, or does not leave after all; its disk remembers it.
    pub(crate) fn leave(&mut self, id: NodeId, leaving: bool) {
        if self.nodes[id].departed || self.nodes[id].disk.leaving == leaving {
            return;
        }
        self.nodes[id].disk.leaving = leaving;
        self.tell(id, Input::Leaving(leaving));
        self.say(id);
    }

    /// Changes what a node's disk may take.
    pub(crate) fn set_capacity(&mut self, id: NodeId, capacity: u64) {
        self.nodes[id].disk.capacity = capacity;
        self.space(id);
    }

    /// Tells those connected to a node what it says of itself.
    pub(crate) fn say(&mut self, id: NodeId) {
        let Some(full) = self.nodes[id].running.as_ref().map(|running| running.keeper.is_full()) else { return };
        let said = Said { storing: true, full, leaving: self.nodes[id].disk.leaving };
        let peer = self.nodes[id].peer;
        let connected: Vec<NodeId> = self.nodes[id].connected.iter().copied().collect();
        for other in connected {
            let (wait, starts) = (self.delay(), self.nodes[other].starts);
            self.after(wait, Event::Input { node: other, starts, input: Input::Said(peer, said) });
        }
    }
}

/// Duty's settings for small networks: a day passes in minutes, so that weeks fit a test.
pub fn quick_settings() -> Settings {
    Settings { grace: Duration::from_secs(6 * 3600), ..duty::Settings::default() }
}
