//! Whole copies that users have nodes keep: by root, for ever, and by name, with its versions and as long as it stands.

use std::collections::BTreeSet;

use p2p_protocol::{
    Key,
    duty::{PIN, lister, lister::Listed},
    machine::StateMachine as _,
};

use crate::{
    catalogue::{PublicationKey, Version},
    node::NodeId,
    world::World,
};

/// What a user pinned on a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pinning {
    /// This root.
    Root(usize),
    /// Whatever stands under a name.
    Name(PublicationKey),
}

/// Marks of what rows know pins as: no publication of a trace has so great a number.
const PINS: u64 = 1 << 63;
const NAMES: u64 = 1 << 62;

impl World {
    /// A user pins what a publication is now, or its name.
    pub(crate) fn pin(&mut self, node: NodeId, publication: PublicationKey, by_name: bool) {
        let version = self.nodes[node].disk.catalogue.get(publication).filter(|version| !version.removed);
        let (Some(version), true, false) = (version, self.nodes[node].is_up(), self.nodes[node].liar) else { return };
        let root = Pinning::Root(self.root_of(publication, version.version));
        let pinning = if by_name { Pinning::Name(publication) } else { root };
        if self.nodes[node].disk.pins.insert(pinning) {
            self.note(|| format!("node {node} pins {pinning:?}"));
            self.pin_live(node, pinning);
            self.drive(node);
        }
    }

    /// A user unpins all that has to do with a publication.
    pub(crate) fn unpin(&mut self, node: NodeId, publication: PublicationKey) {
        if !self.nodes[node].is_up() {
            return;
        }
        let roots: BTreeSet<usize> = self.publications[publication as usize].roots().collect();
        let over: Vec<Pinning> = self.nodes[node]
            .disk
            .pins
            .iter()
            .filter(|pinning| match pinning {
                Pinning::Root(root) => roots.contains(root),
                Pinning::Name(key) => *key == publication,
            })
            .copied()
            .collect();
        for pinning in over {
            self.note(|| format!("node {node} unpins {pinning:?}"));
            let id = self.pin_id(node, pinning);
            self.nodes[node].disk.pins.remove(&pinning);
            if let Some(id) = id {
                self.pin_gone(node, id);
            }
        }
        self.drive(node);
    }

    /// A node learned of a version where `before` stood: the name may be pinned.
    pub(crate) fn repin(&mut self, node: NodeId, key: PublicationKey, before: Option<Version>, version: Version) {
        let pinning = Pinning::Name(key);
        if !self.nodes[node].disk.pins.contains(&pinning) {
            return;
        }
        if version.removed {
            self.note(|| format!("node {node} pins {pinning:?} no more: it is removed"));
            self.nodes[node].disk.pins.remove(&pinning);
        } else {
            self.pin_live(node, pinning);
        }
        if let Some(before) = before.filter(|before| !before.removed) {
            self.pin_gone(node, PINS | NAMES | before.id(key));
        }
    }

    /// What rows know a pin as, if there is something that it keeps.
    fn pin_id(&self, node: NodeId, pinning: Pinning) -> Option<u64> {
        match pinning {
            Pinning::Root(root) => Some(PINS | root as u64),
            Pinning::Name(key) => {
                let version = self.nodes[node].disk.catalogue.get(key).filter(|version| !version.removed)?;
                Some(PINS | NAMES | version.id(key))
            }
        }
    }

    /// The root that rows mean by a publication or a pin.
    pub(crate) fn root_meant(&self, id: u64) -> usize {
        if id & (PINS | NAMES) == PINS {
            return (id & !PINS) as usize;
        }
        let id = id & !(PINS | NAMES);
        self.root_of((id >> 32) as PublicationKey, id & 0xffff_ffff)
    }

    /// The lister of a node is told of a pin.
    pub(crate) fn pin_live(&mut self, node: NodeId, pinning: Pinning) {
        let Some(id) = self.pin_id(node, pinning) else { return };
        let root = &self.roots[self.root_meant(id)];
        let (listing, chunks) = (root.listing.clone(), root.entries.len() as u64);
        self.tell_live(node, Listed { publication: id, listing, chunks, copies: PIN, publisher: None });
    }

    /// It is told that one ended. What is published of its root is read again first: rows outside of a node's part name
    /// only those whose chunks were there when they were read.
    fn pin_gone(&mut self, node: NodeId, id: u64) {
        let (root, now) = (self.root_meant(id), self.instant());
        let entries: Vec<_> = self.nodes[node].disk.catalogue.entries().collect();
        let live = entries.into_iter().filter(|(_, version)| !version.removed);
        let of_root = live.filter(|(key, version)| self.root_of(*key, version.version) == root);
        let again = of_root.map(|(key, version)| version.id(key)).collect();
        if let Some(running) = &mut self.nodes[node].running {
            running.live.remove(&id);
            running.lister.handle(now, lister::Input::Compare(again));
            running.lister.handle(now, lister::Input::Gone { publication: id, listed: None });
        }
    }

    /// The roots that a node is to have whole, each with whether its table says so by now.
    fn pinned_roots(&self, node: NodeId) -> Vec<(usize, bool)> {
        let disk = &self.nodes[node].disk;
        let ids = disk.pins.iter().filter_map(|pinning| self.pin_id(node, *pinning));
        ids.map(|id| (self.root_meant(id), disk.covered.contains_key(&id))).collect()
    }

    /// Whether a root has a chunk, or its manifest does.
    fn has(&self, root: usize, key: &Key) -> bool {
        let root = &self.roots[root];
        let listed = root.entries.binary_search_by_key(key, |(key, _)| *key).is_ok();
        listed || root.manifest.iter().any(|(own, _)| own == key)
    }

    /// Whether a pin of a node keeps a chunk.
    pub(crate) fn is_pinned(&self, node: NodeId, key: &Key) -> bool {
        self.pinned_roots(node).into_iter().any(|(root, _)| self.has(root, key))
    }

    /// A chunk went by a node's own decision: none that it listed for a pin may.
    pub(crate) fn check_pinned(&mut self, node: NodeId, key: &Key, how: &str) {
        if self.pinned_roots(node).into_iter().any(|(root, listed)| listed && self.has(root, key)) {
            let now = self.now().as_secs();
            self.model.violates(format!("at {now} s node {node} has {how} {key:?}, and it is pinned there"));
        }
    }

    /// When nothing has happened for long: of what is pinned on a node all is there that anybody has whom it reaches, and
    /// no row is kept by a pin that is over. Gives whether it may still look for something that nobody has.
    pub(crate) fn check_pins(&mut self, node: NodeId) -> bool {
        let mut hopeless = false;
        let there = |world: &Self, key: &Key| world.model.holders(key).any(|holder| world.nodes[holder].is_up());
        for (root, _) in self.pinned_roots(node) {
            let of = &self.roots[root];
            let keys: Vec<Key> = of.manifest.iter().chain(&of.entries).map(|(key, _)| *key).collect();
            // Without all of its manifest it is not known what it has.
            let readable = of.manifest.iter().all(|(key, _)| there(self, key));
            hopeless |= !keys.iter().all(|key| there(self, key));
            let disk = &self.nodes[node].disk;
            let kept = |key: &Key| disk.rows.get(key).is_some_and(|kept| kept.held && kept.row.is_pinned());
            let missing = keys.iter().filter(|key| readable && there(self, key) && !kept(key)).count();
            if missing > 0 {
                self.model.violates(format!("node {node} has pinned root {root}, and lacks {missing} chunks of it"));
            }
        }
        let rows = self.nodes[node].disk.rows.iter().filter(|(_, kept)| kept.row.is_pinned());
        let stale = rows.filter(|(key, _)| !self.is_pinned(node, key)).count();
        if stale > 0 {
            self.model.violates(format!("node {node} keeps {stale} chunks for pins that are over"));
        }
        hopeless
    }
}
