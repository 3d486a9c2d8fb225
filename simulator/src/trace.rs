//! What befalls a network: generated from a seed, and made smaller where it shows a fault.

use std::time::Duration;

use p2p_protocol::{chance::Chance, duty::Settings};

use crate::{catalogue::PublicationKey, node::NodeId, world::World};

/// Something that happens. Nodes and publications are counted modulo how many there are, so that any part of a trace is
/// a trace.
#[derive(Clone, PartialEq, Debug)]
pub enum Happening {
    /// A new node comes.
    Join,
    /// A node is switched off, or dies.
    Stop(NodeId),
    /// It comes back.
    Start(NodeId),
    /// It is gone for good, with its disk.
    Depart(NodeId),
    /// Its disk is lost, and it starts again with an empty one and its old identity.
    Wipe(NodeId),
    /// The network falls apart: the nodes of the list are on the other side.
    Part(Vec<NodeId>),
    /// The sides meet again.
    Heal,
    /// Nothing comes through from the first to the second.
    Cut(NodeId, NodeId),
    /// All such links work again.
    Mend,
    /// A disk has room for so many more chunks only.
    Fill(NodeId, u64),
    /// It has room again.
    Grow(NodeId),
    /// An add of so many chunks, with so many copies, over some time.
    Add(NodeId, usize, u8, Duration),
    /// Another node adds what a publication has.
    Again(NodeId, PublicationKey),
    /// The publisher removes it.
    Remove(PublicationKey),
    /// The publisher takes the removal back, which takes some time, while all its chunks are there.
    Restore(PublicationKey, Duration),
    /// A node is to be switched off for good some day: it hands its share over.
    Drain(NodeId),
    /// It stays after all.
    Stay(NodeId),
    /// A node's user pins what a publication is now; or its name, if so.
    Pin(NodeId, PublicationKey, bool),
    /// And unpins all of it.
    Unpin(NodeId, PublicationKey),
    /// The publisher adds another root of so many chunks under the same name, over some time.
    Update(PublicationKey, usize, Duration),
    /// A node begins to lie: it keeps nothing that it is given, and says that it has everything.
    Lie(NodeId),
}

/// Bytes of a chunk of small networks.
pub const CHUNK_BYTES: u32 = 1 << 20;

impl World {
    pub(crate) fn happen(&mut self, happening: Happening) {
        let count = self.nodes.len().max(1);
        self.note(|| format!("{happening:?}"));
        match happening {
            Happening::Join => {
                self.join();
            }
            Happening::Stop(node) => self.stop(node % count),
            Happening::Start(node) => self.start(node % count),
            Happening::Depart(node) => self.depart(node % count),
            Happening::Wipe(node) => self.wipe(node % count),
            Happening::Part(nodes) => {
                for node in nodes {
                    self.nodes[node % count].side = 1;
                }
                (0..count).for_each(|node| self.relink(node));
            }
            Happening::Heal => {
                self.nodes.iter_mut().for_each(|node| node.side = 0);
                (0..count).for_each(|node| self.relink(node));
            }
            Happening::Cut(from, to) => {
                let (from, to) = (from % count, to % count);
                self.one_way.insert((from, to));
                self.relink(from);
            }
            Happening::Mend => {
                let cut = std::mem::take(&mut self.one_way);
                cut.into_iter().for_each(|(from, _)| self.relink(from));
            }
            Happening::Fill(node, chunks) => {
                let node = node % count;
                let room = chunks * u64::from(CHUNK_BYTES);
                self.set_capacity(node, self.nodes[node].disk.used + room);
            }
            Happening::Grow(node) => {
                self.set_capacity(node % count, u64::MAX);
            }
            Happening::Add(node, chunks, copies, time) => {
                let root = self.make_root(chunks, CHUNK_BYTES);
                if !self.nodes[node % count].liar {
                    self.begin_add(node % count, root, copies, time);
                }
            }
            Happening::Again(node, publication) => {
                if let Some(of) = self.pick(publication)
                    && !self.nodes[node % count].liar
                {
                    let (root, copies) = (self.publications[of as usize].root, self.publications[of as usize].copies);
                    self.begin_add(node % count, root, copies, Duration::ZERO);
                }
            }
            Happening::Remove(publication) => {
                if let Some(of) = self.pick(publication) {
                    self.withdraw(of);
                }
            }
            Happening::Restore(publication, time) => {
                if let Some(of) = self.pick(publication) {
                    self.restore(of, time);
                }
            }
            Happening::Drain(node) => self.leave(node % count, true),
            Happening::Stay(node) => self.leave(node % count, false),
            Happening::Pin(node, publication, by_name) => {
                if let Some(of) = self.pick(publication) {
                    self.pin(node % count, of, by_name);
                }
            }
            Happening::Unpin(node, publication) => {
                if let Some(of) = self.pick(publication) {
                    self.unpin(node % count, of);
                }
            }
            Happening::Update(publication, chunks, time) => {
                if let Some(of) = self.pick(publication) {
                    let root = self.make_root(chunks, CHUNK_BYTES);
                    self.update(of, root, time);
                }
            }
            Happening::Lie(node) => self.lie(node % count),
        }
    }

    fn pick(&self, publication: PublicationKey) -> Option<PublicationKey> {
        publication.checked_rem(self.publications.len() as PublicationKey)
    }

    /// A node is gone for good, unless the last copy of something promised would go with it.
    pub(crate) fn depart(&mut self, node: NodeId) {
        if self.nodes[node].departed || (self.gated && !self.survives_without(node)) {
            return;
        }
        self.stop(node);
        self.destroy(node);
        self.nodes[node].departed = true;
        self.forget(node);
    }

    pub(crate) fn wipe(&mut self, node: NodeId) {
        if self.nodes[node].departed || (self.gated && !self.survives_without(node)) {
            return;
        }
        self.stop(node);
        self.destroy(node);
        self.start(node);
    }

    fn lie(&mut self, node: NodeId) {
        if self.nodes[node].departed || !self.survives_without(node) {
            return;
        }
        let kept: Vec<_> =
            self.nodes[node].disk.rows.iter().filter(|(_, kept)| kept.held).map(|(key, _)| *key).collect();
        for key in kept {
            self.drop_chunk(node, &key);
        }
        self.nodes[node].liar = true;
    }
}

/// A trace: what happens when.
#[derive(Clone, PartialEq, Debug)]
pub struct Trace {
    /// Of the world: delays, identities, contents.
    pub seed: u64,
    /// Nodes at the beginning.
    pub nodes: usize,
    /// What happens, in order.
    pub happenings: Vec<(Duration, Happening)>,
}

/// How long a small network is shaken.
const SHAKEN: Duration = Duration::from_secs(3 * 24 * 3600);

impl Trace {
    /// A small network, and a few dozen things that happen to it in three days.
    pub fn small(seed: u64, settings: &Settings) -> Self {
        let mut chance = Chance::new(seed);
        let nodes = 2 + chance.below(10);
        let count = 10 + chance.below(50);
        // Not every run has everything: some faults show only without others.
        let kinds = chance.number();
        let mut happenings: Vec<_> = (0..count)
            .map(|_| {
                let at = Duration::from_secs(60) + chance.part(SHAKEN);
                (at, Self::happening(&mut chance, kinds, settings))
            })
            .collect();
        happenings.sort_by_key(|(at, _)| *at);
        Self { seed, nodes, happenings }
    }

    fn happening(chance: &mut Chance, kinds: u64, settings: &Settings) -> Happening {
        let grace = settings.grace;
        loop {
            let kind = chance.below(22);
            if kind != 12 && !(13..=15).contains(&kind) && kinds & (1 << kind) == 0 {
                continue;
            }
            let (a, b) = (chance.below(32), chance.below(32));
            let publication = chance.below(64) as PublicationKey;
            return match kind {
                0 => Happening::Join,
                1 => Happening::Stop(a),
                2 => Happening::Start(a),
                3 => Happening::Depart(a),
                4 => Happening::Wipe(a),
                5 => Happening::Part((0..1 + a % 6).map(|_| chance.below(32)).collect()),
                6 => Happening::Cut(a, b),
                7 => Happening::Fill(a, b as u64),
                8 => Happening::Grow(a),
                9 => Happening::Lie(a),
                10 => Happening::Again(a, publication),
                11 => Happening::Add(a, 1 + b, 1 + chance.below(4) as u8, grace.mul_f64(3.0 * chance.fraction())),
                12 => Happening::Remove(publication),
                13 if chance.below(2) == 0 => Happening::Heal,
                13 => Happening::Mend,
                14 => Happening::Start(a),
                16 => Happening::Restore(publication, grace.mul_f64(chance.fraction())),
                17 => Happening::Drain(a),
                18 => Happening::Stay(a),
                19 => Happening::Pin(a, publication, b % 2 == 0),
                20 => Happening::Unpin(a, publication),
                21 => Happening::Update(publication, 1 + b, grace.mul_f64(chance.fraction())),
                _ => Happening::Add(a, 1 + chance.below(200), 1 + chance.below(4) as u8, Duration::ZERO),
            };
        }
    }

    /// Runs it, lets the network come to rest, and says what does not hold.
    pub fn run(&self, settings: Settings, log: bool) -> Outcome {
        let mut world = World::new(self.seed, settings);
        world.log = log.then(Vec::new);
        for _ in 0..self.nodes {
            world.join();
        }
        world.run(Duration::from_secs(60));
        for (at, happening) in &self.happenings {
            world.happens(*at, happening.clone());
        }
        world.run(SHAKEN + Duration::from_secs(120));
        // Everything is mended, and everybody comes back who is not gone for good.
        let now = world.now();
        world.happens(now, Happening::Heal);
        world.happens(now, Happening::Mend);
        for node in 0..world.nodes.len() {
            world.happens(now, Happening::Grow(node));
            world.happens(now, Happening::Start(node));
        }
        // Those that are gone for good count for what may be freed for seven graces.
        let rest = settings.grace * 10;
        world.run(now + rest);
        let pulls = world.figures.pulls;
        world.run(now + rest + settings.grace);
        if world.model.violation.is_none() {
            world.check_settled();
        }
        if world.model.violation.is_none() && world.figures.pulls > pulls {
            world.model.violation = Some(format!("{} copies were made at rest", world.figures.pulls - pulls));
        }
        Outcome { violation: world.model.violation.take(), figures: world.figures, log: world.log.unwrap_or_default() }
    }

    /// A trace as small as can be found that fails too: without parts of what happens, then without nodes.
    pub fn shrink(&self, settings: Settings) -> Self {
        let mut smallest = self.clone();
        let mut part = smallest.happenings.len().div_ceil(2);
        while part > 0 {
            let mut at = 0;
            while at < smallest.happenings.len() {
                let mut fewer = smallest.clone();
                fewer.happenings.drain(at..(at + part).min(smallest.happenings.len()));
                if fewer.run(settings, false).violation.is_some() {
                    smallest = fewer;
                } else {
                    at += part;
                }
            }
            part = if part == 1 { 0 } else { part.div_ceil(2) };
        }
        while smallest.nodes > 1 {
            let fewer = Self { nodes: smallest.nodes - 1, ..smallest.clone() };
            if fewer.run(settings, false).violation.is_none() {
                break;
            }
            smallest = fewer;
        }
        smallest
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// What did not hold.
    pub violation: Option<String>,
    /// What was counted.
    pub figures: crate::figures::Figures,
    /// What happened, if it was wanted.
    pub log: Vec<String>,
}
