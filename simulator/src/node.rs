//! One node: a disk, and the machines that run while it is up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p_identity::{Keypair, PeerId};
use p2p_protocol::{
    Key,
    chance::Chance,
    duty::{Keeper, Moment, Row, Settings, Spans, lister::Lister, reach::Reach},
};

use crate::{catalogue::Catalogue, pins::Pinning};

/// Which node; never used again.
pub type NodeId = usize;

/// A row and whether its chunk is here.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The row.
    pub row: Row,
    /// The bytes are here.
    pub held: bool,
}

/// What outlives a restart.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The wanted table, and what is held.
    pub rows: BTreeMap<Key, Kept>,
    /// What each publication was read over.
    pub covered: BTreeMap<u64, Arc<Spans>>,
    /// The parts of the keyspace whose rows are kept.
    pub parts: BTreeMap<u8, Arc<Spans>>,
    /// Publications.
    pub catalogue: Catalogue,
    /// The node's own clock when it was last written.
    pub moment: Moment,
    /// Grows with each change of the rows or of what is held.
    pub changes: u64,
    /// Bytes that are held.
    pub used: u64,
    /// Bytes that may be.
    pub capacity: u64,
    /// It is being drained: its share is for the others.
    pub leaving: bool,
    /// What its user has it keep whole.
    pub pins: BTreeSet<Pinning>,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            covered: BTreeMap::new(),
            parts: BTreeMap::new(),
            catalogue: Catalogue::default(),
            moment: Moment(0),
            changes: 0,
            used: 0,
            capacity: u64::MAX,
            leaving: false,
            pins: BTreeSet::new(),
        }
    }
}

impl Disk {
    /// Whether a chunk is here.
    pub fn holds(&self, key: &Key) -> bool {
        self.rows.get(key).is_some_and(|kept| kept.held)
    }
}

/// How things stood when a neighbour was compared with: while it is the same, so is the outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Changes of both disks.
    pub changes: (u64, u64),
    /// Where the neighbour stood.
    pub reach: Reach,
}

/// What runs while a node is up.
#[derive(Debug)]
pub struct Running {
    /// The loop.
    pub keeper: Keeper,
    /// What is read.
    pub lister: Lister,
    /// What the lister was told last.
    pub reach: Option<Reach>,
    /// The most copies that anything wants, as the loop was told last.
    pub most_copies: u8,
    /// When the timer goes off that is in the queue.
    pub timer: Option<Instant>,
    /// Publications that the lister knows as live.
    pub live: BTreeSet<u64>,
    /// It has met who there is, so that it knows where it stands.
    pub met: bool,
    /// What those around it were told last of whether it has room.
    pub full: bool,
    /// Neighbours that were found to have what they should, how things were then, and what that is.
    pub equal: BTreeMap<NodeId, (Mark, Vec<Key>)>,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its peer id.
    pub peer: PeerId,
    /// Its key.
    pub key: Key,
    /// What outlives a restart.
    pub disk: Disk,
    /// `None`: it is down.
    pub running: Option<Running>,
    /// Counts starts, so that what was sent to an earlier run goes nowhere.
    pub starts: u32,
    /// Gone for good.
    pub departed: bool,
    /// It says that it keeps what it does not.
    pub liar: bool,
    /// It is on the other side of a partition.
    pub side: u8,
    /// Nodes that it knows of.
    pub circle: BTreeSet<NodeId>,
    /// Those of them it is connected to.
    pub connected: BTreeSet<NodeId>,
    /// When it went down, while it is.
    pub down_since: Option<Duration>,
    /// When it came into the network.
    pub joined: Duration,
    /// When it came back from a restart that was shorter than the repair delay.
    pub restarted: Option<Duration>,
    /// Since when the regions count that it knows from look-ups, and how many those are.
    pub looked: (Duration, u64),
}

impl Node {
    /// A node with an identity of its own, down.
    pub fn new(chance: &mut Chance) -> Self {
        // Any 32 bytes are an ed25519 secret key.
        let keypair = Keypair::ed25519_from_bytes(chance.bytes()).expect("32 bytes");
        let peer = keypair.public().to_peer_id();
        Self {
            peer,
            key: Key::from(&peer),
            disk: Disk::default(),
            running: None,
            starts: 0,
            departed: false,
            liar: false,
            side: 0,
            circle: BTreeSet::new(),
            connected: BTreeSet::new(),
            down_since: None,
            joined: Duration::ZERO,
            restarted: None,
            looked: (Duration::ZERO, 0),
        }
    }

    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Starts the machines at a time.
    pub fn start(&mut self, now: Instant, settings: Settings, chance: Chance) {
        self.starts += 1;
        let keeper = Keeper::new(self.peer, true, settings, now, self.disk.moment, chance);
        let lister = Lister::new(settings.grace, self.disk.parts.clone());
        let (live, equal) = (BTreeSet::new(), BTreeMap::new());
        self.running = Some(Running {
            keeper,
            lister,
            reach: None,
            most_copies: 1,
            timer: None,
            live,
            met: false,
            full: false,
            equal,
        });
    }
}
