//! What is asked of a network: the time, who reaches whom, who should hold a chunk, what a publication lists.

use std::time::{Duration, Instant};

use p2p_protocol::{
    Key,
    duty::{EXTRA, lister::Listed, view::View},
};

use crate::{
    catalogue::{PublicationKey, Version},
    node::NodeId,
    world::World,
};

/// In a network of up to so many, everybody knows everybody.
const SMALL: usize = 128;

impl World {
    /// The time since the beginning.
    pub fn now(&self) -> Duration {
        self.now
    }

    pub(crate) fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// Whether nodes know only some of the others.
    pub(crate) fn is_large(&self) -> bool {
        self.everyone.len() > SMALL
    }

    /// Whether two nodes can have a connection.
    pub(crate) fn reaches(&self, a: NodeId, b: NodeId) -> bool {
        let (one, other) = (&self.nodes[a], &self.nodes[b]);
        let cut = self.one_way.contains(&(a, b)) || self.one_way.contains(&(b, a));
        one.is_up() && other.is_up() && one.side == other.side && !cut
    }

    /// The view of a node that is up.
    pub fn view(&self, node: NodeId) -> Option<&View> {
        Some(self.nodes[node].running.as_ref()?.keeper.view())
    }

    /// Who should hold a chunk: the k nearest that are up, honest and not leaving, of those k + 4 that may have to.
    pub fn nearest(&self, key: &Key, k: usize) -> Vec<NodeId> {
        let mut near = self.nearest_up(key, k + EXTRA);
        near.retain(|id| !self.nodes[*id].liar);
        near.truncate(k);
        near
    }

    /// The nearest that are up and not leaving, nearest first.
    pub(crate) fn nearest_up(&self, key: &Key, count: usize) -> Vec<NodeId> {
        let among = |those: usize| -> Vec<NodeId> {
            let near = self.everyone.nearest(key, those);
            near.iter().map(|peer| self.by_peer[peer]).filter(|id| self.counts(*id)).take(count).collect()
        };
        // Mostly few are down; where not, all are looked at.
        let up = among(2 * count + 8);
        if up.len() == count { up } else { among(self.everyone.len()) }
    }

    /// Whether a node is up and stays.
    fn counts(&self, id: NodeId) -> bool {
        self.nodes[id].is_up() && !self.nodes[id].disk.leaving
    }

    /// What a version of a publication is of.
    pub(crate) fn root_of(&self, key: PublicationKey, version: u64) -> usize {
        let publication = &self.publications[key as usize];
        publication.later.range(..=version).next_back().map_or(publication.root, |(_, root)| *root)
    }

    /// What a node is to list for a version of a publication.
    pub(crate) fn what_it_lists(&self, key: PublicationKey, version: Version) -> Listed {
        let root = &self.roots[self.root_of(key, version.version)];
        let (listing, chunks) = (root.listing.clone(), root.entries.len() as u64);
        let copies = self.publications[key as usize].copies;
        Listed { publication: version.id(key), listing, chunks, copies, publisher: None }
    }
}
