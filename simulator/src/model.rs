//! What must hold, by somebody who sees every disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use p2p_protocol::{Key, duty::keeper::Role, machine::StateMachine as _};

use crate::{
    catalogue::PublicationKey,
    node::{Kept, NodeId},
    world::World,
};

/// What the network has promised, and where the copies are.
#[derive(Debug, Default)]
pub struct Model {
    /// Honest disks that have a chunk, of nodes that are down too.
    copies: BTreeMap<Key, BTreeSet<NodeId>>,
    /// Acknowledged and not removed: the chunks, and the copies wanted.
    live: BTreeMap<PublicationKey, (Vec<Key>, u8)>,
    /// Published, and parts of it only on liars.
    hollow: BTreeMap<PublicationKey, BTreeSet<Key>>,
    /// How many of those list a chunk, and the most copies that one wants.
    listed: BTreeMap<Key, (usize, u8)>,
    /// When copies of a chunk were lost that are not made again yet.
    gaps: BTreeMap<Key, Vec<Duration>>,
    /// What does not hold: the first thing that was found.
    pub violation: Option<String>,
}

impl Model {
    pub(crate) fn came(&mut self, key: Key, node: NodeId) {
        self.copies.entry(key).or_default().insert(node);
    }

    pub(crate) fn went(&mut self, key: &Key, node: NodeId) {
        if let Some(copies) = self.copies.get_mut(key) {
            copies.remove(&node);
            if copies.is_empty() {
                self.copies.remove(key);
            }
        }
    }

    /// An add returned. What only liars took was never there, and nobody can be held to it.
    pub(crate) fn acknowledged(&mut self, publication: PublicationKey, keys: Vec<Key>, copies: u8) {
        if keys.iter().any(|key| self.copies(key) == 0) {
            self.hollow.insert(publication, keys.into_iter().collect());
            return;
        }
        for key in &keys {
            let listed = self.listed.entry(*key).or_insert((0, copies));
            listed.0 += 1;
            listed.1 = listed.1.max(copies);
        }
        self.live.insert(publication, (keys, copies));
    }

    pub(crate) fn removed(&mut self, publication: PublicationKey) {
        self.hollow.remove(&publication);
        let Some((keys, _)) = self.live.remove(&publication) else { return };
        for key in keys {
            if let Some(listed) = self.listed.get_mut(&key) {
                listed.0 -= 1;
                if listed.0 == 0 {
                    self.listed.remove(&key);
                    self.gaps.remove(&key);
                }
            }
        }
    }

    /// A copy was lost with its disk; gives whether the last one of something that was promised.
    pub(crate) fn lost(&mut self, key: &Key, node: NodeId, now: Duration) -> bool {
        self.went(key, node);
        let Some((_, wanted)) = self.listed.get(key) else { return false };
        // Where there are cached copies more than are wanted, none has to be made.
        if self.copies(key) < usize::from(*wanted) {
            self.gaps.entry(*key).or_default().push(now);
        }
        !self.copies.contains_key(key)
    }

    /// A copy was made; gives how long after the loss that it makes up for.
    pub(crate) fn pulled(&mut self, key: Key, now: Duration) -> Option<Duration> {
        let gaps = self.gaps.get_mut(&key)?;
        let since = gaps.remove(0);
        if gaps.is_empty() {
            self.gaps.remove(&key);
        }
        Some(now.saturating_sub(since))
    }

    /// Whether something promised lists a chunk.
    pub fn is_live(&self, key: &Key) -> bool {
        self.listed.contains_key(key)
    }

    /// Copies that are wanted of a chunk; 0 where nothing promised lists it.
    pub fn wanted(&self, key: &Key) -> usize {
        self.listed.get(key).map_or(0, |(_, copies)| usize::from(*copies))
    }

    fn is_hollow(&self, key: &Key) -> bool {
        self.hollow.values().any(|keys| keys.contains(key))
    }

    /// Honest disks that have a chunk.
    pub fn copies(&self, key: &Key) -> usize {
        self.copies.get(key).map_or(0, BTreeSet::len)
    }

    /// Those who have a chunk, honest and not gone for good.
    pub fn holders(&self, key: &Key) -> impl Iterator<Item = NodeId> + '_ {
        self.copies.get(key).into_iter().flatten().copied()
    }

    /// The chunks that something promised lists.
    pub fn live(&self) -> impl Iterator<Item = (&Key, u8)> {
        self.listed.iter().map(|(key, (_, copies))| (key, *copies))
    }

    /// The publications that are promised.
    pub fn publications(&self) -> impl Iterator<Item = PublicationKey> + '_ {
        self.live.keys().copied()
    }

    pub(crate) fn violates(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }
}

impl World {
    /// A copy went by a node's own decision: something promised must have another.
    pub(crate) fn check_copies(&mut self, key: &Key, how: &str) {
        if self.model.is_live(key) && self.model.copies(key) == 0 {
            let now = self.now().as_secs();
            self.model.violates(format!("at {now} s the last copy of {key:?} was {how}, and it is listed"));
        }
    }

    /// Whether every chunk that is promised would have another copy, were this node's disk gone.
    pub(crate) fn survives_without(&self, node: NodeId) -> bool {
        let held = self.nodes[node].disk.rows.iter().filter(|(_, kept)| kept.held);
        let mut live = held.filter(|(key, _)| self.model.is_live(key));
        live.all(|(key, _)| self.model.copies(key) > 1)
    }

    /// A disk is gone with what it held.
    pub(crate) fn destroy(&mut self, node: NodeId) {
        let disk = std::mem::take(&mut self.nodes[node].disk);
        for (key, kept) in disk.rows.iter().filter(|(_, kept)| kept.held) {
            if self.model.is_live(key) {
                self.figures.lost_copy_bytes += u64::from(kept.row.entry.length);
            }
            if self.model.lost(key, node, self.now()) {
                self.figures.lost += 1;
                self.figures.lost_bytes += u64::from(kept.row.entry.length);
            }
        }
    }

    /// Where a node has nothing in hand and everything compared, the duty that it counts is what a look at each row finds.
    pub(crate) fn check_duty(&mut self) {
        if self.is_large() {
            return;
        }
        let now = self.instant();
        for (id, node) in self.nodes.iter().enumerate() {
            let Some(running) = &node.running else { continue };
            let keeper = &running.keeper;
            if !keeper.is_idle() || keeper.poll_timeout().is_some_and(|(at, _)| at <= now) {
                continue;
            }
            let is_duty = |(key, kept): &(&Key, &Kept)| keeper.role(now, key, &kept.row) == Role::Duty;
            let duty = node.disk.rows.iter().filter(is_duty).count() as u64;
            if keeper.duty() != duty {
                let (counts, at) = (keeper.duty(), self.now().as_secs());
                return self
                    .model
                    .violates(format!("at {at} s node {id} counts {counts} chunks as its duty, of {duty}"));
            }
        }
    }

    /// When nothing has happened for long: every chunk that is promised is on its k closest, and what nothing lists is
    /// gone everywhere.
    pub fn check_settled(&mut self) {
        let liars = self.nodes.iter().any(|node| node.liar && node.is_up());
        let live: Vec<(Key, u8)> = self.model.live().map(|(key, copies)| (*key, copies)).collect();
        for (key, copies) in live {
            let nearest = self.nearest(&key, usize::from(copies));
            let holders = self.nodes.iter().filter(|node| node.is_up() && node.disk.holds(&key)).count();
            let missing: Vec<_> = nearest.iter().filter(|node| !self.nodes[**node].disk.holds(&key)).collect();
            // A liar takes a place among the nearest until it is caught; then the next one has the copy.
            if holders < nearest.len() || (!liars && !missing.is_empty()) {
                let what = format!("{key:?} has {holders} copies and is missing on {missing:?}, of {nearest:?}");
                return self.model.violates(what);
            }
        }
        for (id, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_up() && !node.liar) {
            let left = node
                .disk
                .rows
                .iter()
                .filter(|(key, kept)| kept.held && !self.model.is_live(key) && !self.model.is_hollow(key))
                .filter(|(key, _)| !self.is_pinned(id, key));
            if let Some((key, kept)) = left.clone().next() {
                let what =
                    format!("node {id} still has {} chunks that nothing lists: {key:?}, {:?}", left.count(), kept.row);
                return self.model.violates(what);
            }
        }
        for id in 0..self.nodes.len() {
            if !self.nodes[id].is_up() || self.nodes[id].liar {
                continue;
            }
            let hopeless = self.check_pins(id);
            let missing = self.nodes[id].running.as_ref().map_or(0, |running| running.keeper.in_hand().0);
            if missing > 0 && self.model.hollow.is_empty() && !hopeless {
                return self.model.violates(format!("node {id} still looks for {missing} chunks"));
            }
        }
        let catalogues: BTreeSet<u64> =
            self.nodes.iter().filter(|node| node.is_up()).map(|node| node.disk.catalogue.fingerprint()).collect();
        if catalogues.len() > 1 {
            self.model.violates(format!("{} different catalogues", catalogues.len()));
        }
    }
}
