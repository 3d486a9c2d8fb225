//! What users do: adds, quick and slow, and removals.

use std::time::Duration;

use p2p_protocol::{
    Key,
    duty::{EXTRA, Input},
    manifest::Entry,
};

use crate::{
    catalogue::{PublicationKey, Version},
    node::NodeId,
    world::{Event, Publication, World},
};

/// Bytes of a signed publication without its few entries.
const PUBLICATION_BYTES: u64 = 300;
/// Copies of each message that a node of the mesh gets.
const GOSSIP_COPIES: u64 = 3;

/// One step of something a user does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Put(PublicationKey),
    Renew(PublicationKey),
}

/// An add that is under way.
#[derive(Debug)]
pub(crate) struct Add {
    pub(crate) node: NodeId,
    /// What is still to be put, the last first: the chunks, then the manifest's.
    left: Vec<(Key, Entry)>,
    acknowledged: Vec<(Key, Entry, Duration, usize)>,
    /// Between two chunks.
    pace: Duration,
    /// It was removed, and its chunks are those that others have yet.
    restores: bool,
    root: usize,
}

impl World {
    /// A node begins to add a root, which takes about `time`.
    pub(crate) fn begin_add(&mut self, node: NodeId, root: usize, copies: u8, time: Duration) {
        if !self.nodes[node].is_up() {
            return;
        }
        let key = self.publications.len() as PublicationKey;
        self.publications.push(Publication::new(root, node, copies));
        let chunks = self.roots[root].entries.len();
        self.note(|| format!("node {node} begins to add publication {key}: {chunks} chunks, {copies} copies"));
        self.begin(key, node, root, time, false);
    }

    fn begin(&mut self, key: PublicationKey, node: NodeId, root: usize, time: Duration, restores: bool) {
        let of = &self.roots[root];
        let left: Vec<_> = of.manifest.iter().chain(of.entries.iter().rev()).copied().collect();
        let pace = time / u32::try_from(left.len().max(1)).unwrap_or(u32::MAX);
        self.adds.insert(key, Add { node, left, acknowledged: Vec::new(), pace, restores, root });
        self.after(Duration::ZERO, Event::Client(Step::Put(key)));
        let quarter = self.settings.grace / 4;
        self.after(quarter, Event::Client(Step::Renew(key)));
    }

    pub(crate) fn client(&mut self, step: Step) {
        match step {
            Step::Put(key) => self.put_next(key),
            Step::Renew(key) => {
                if self.adds.contains_key(&key) {
                    self.renew(key, self.settings.grace / 4);
                    self.after(self.settings.grace / 4, Event::Client(Step::Renew(key)));
                }
            }
        }
    }

    fn put_next(&mut self, publication: PublicationKey) {
        // Chunks without a pause between them are put at once.
        loop {
            let Some(add) = self.adds.get_mut(&publication) else { return };
            let (node, pace, restores) = (add.node, add.pace, add.restores);
            let Some((key, entry)) = add.left.pop() else { return self.publish(publication) };
            if restores && !self.nodes[node].disk.holds(&key) && self.source(node, &key, &[]).is_none() {
                self.note(|| format!("publication {publication} is not restored: {key:?} is gone"));
                self.adds.remove(&publication);
                return;
            }
            let copies = self.publications[publication as usize].copies;
            let acknowledged = self.put(node, key, entry, copies);
            let now = self.now;
            if let Some(add) = self.adds.get_mut(&publication) {
                add.acknowledged.push((key, entry, now, acknowledged));
            }
            if !pace.is_zero() {
                return self.after(pace, Event::Client(Step::Put(publication)));
            }
        }
    }

    /// Puts a chunk on the k closest, as the adding node sees them, and keeps a copy; gives how many of them took it.
    fn put(&mut self, node: NodeId, key: Key, entry: Entry, copies: u8) -> usize {
        let k = usize::from(copies);
        let Some(view) = self.view(node) else { return 0 };
        let ranked: Vec<NodeId> = if self.is_large() {
            let ranked = self.nearest_up(&key, k + EXTRA);
            self.look_up(node, 1);
            ranked
        } else {
            view.ranking().nearest(&key, k + EXTRA).iter().map(|peer| self.by_peer[peer]).collect()
        };
        let mut acknowledged = 0;
        for to in ranked {
            if acknowledged == k {
                break;
            }
            let full = self.nodes[to].running.as_ref().is_some_and(|running| running.keeper.is_full());
            let takes = (to == node || self.reaches(node, to)) && (!full || self.nodes[to].disk.holds(&key));
            if takes && self.store(to, key, entry) {
                acknowledged += 1;
                self.space(to);
            }
        }
        // Its own copy is renewed like any other, or it would be freed while the add goes on.
        self.store(node, key, entry);
        acknowledged
    }

    /// Says again what was acknowledged longer ago than `age`, and sends again what is gone.
    fn renew(&mut self, publication: PublicationKey, age: Duration) {
        let Some(add) = self.adds.get(&publication) else { return };
        let (node, now) = (add.node, self.now);
        let copies = self.publications[publication as usize].copies;
        let old: Vec<usize> = (0..add.acknowledged.len()).filter(|at| now - add.acknowledged[*at].2 >= age).collect();
        for at in old {
            let Some(&(key, entry, ..)) = self.adds.get(&publication).and_then(|add| add.acknowledged.get(at)) else {
                return;
            };
            let restores = self.adds.get(&publication).is_some_and(|add| add.restores);
            let there = !restores || self.nodes[node].disk.holds(&key) || self.source(node, &key, &[]).is_some();
            let acknowledged = if there { self.put(node, key, entry, copies) } else { 0 };
            if let Some(add) = self.adds.get_mut(&publication) {
                add.acknowledged[at] = (key, entry, now, acknowledged);
            }
        }
    }

    fn publish(&mut self, publication: PublicationKey) {
        self.renew(publication, Duration::ZERO);
        let Some(add) = self.adds.remove(&publication) else { return };
        let fewest = add.acknowledged.iter().map(|(.., copies)| *copies).min().unwrap_or(0);
        if fewest == 0 {
            self.note(|| format!("publication {publication} fails: a chunk was taken by nobody"));
            return;
        }
        let before = self.nodes[add.node].disk.catalogue.get(publication).map_or(0, |version| version.version);
        if self.root_of(publication, before) != add.root {
            self.publications[publication as usize].later.insert(before + 1, add.root);
        }
        // What it was before lists nothing any more.
        self.model.removed(publication);
        self.announce(add.node, publication, false);
        let keys: Vec<Key> = add.acknowledged.iter().map(|(key, ..)| *key).collect();
        let copies = self.publications[publication as usize].copies;
        self.note(|| format!("publication {publication} is acknowledged, {fewest} copies at least"));
        self.model.acknowledged(publication, keys, copies);
    }

    /// A publication is withdrawn by its publisher.
    pub(crate) fn withdraw(&mut self, publication: PublicationKey) {
        let Some(of) = self.publications.get(publication as usize) else { return };
        let node = of.publisher;
        let stands = self.nodes[node].disk.catalogue.get(publication).is_some_and(|version| !version.removed);
        if self.nodes[node].is_up() && stands {
            self.note(|| format!("node {node} removes publication {publication}"));
            self.model.removed(publication);
            self.announce(node, publication, true);
        }
    }

    /// The publisher begins to take a removal back: each chunk is put again on those that should hold it, from whoever has
    /// it yet, so that none is freed while the rest is looked at and the news goes around; where one is not there any
    /// more, nothing is promised again.
    pub(crate) fn restore(&mut self, publication: PublicationKey, time: Duration) {
        let Some(of) = self.publications.get(publication as usize) else { return };
        let node = of.publisher;
        let removed = self.nodes[node].disk.catalogue.get(publication).filter(|version| version.removed);
        if let Some(root) = removed.map(|version| self.root_of(publication, version.version))
            && self.nodes[node].is_up()
            && !self.nodes[node].liar
            && !self.adds.contains_key(&publication)
        {
            self.note(|| format!("node {node} begins to restore publication {publication}"));
            self.begin(publication, node, root, time, true);
        }
    }

    /// The publisher begins to add another root under the same name, which takes about `time`.
    pub(crate) fn update(&mut self, publication: PublicationKey, root: usize, time: Duration) {
        let Some(of) = self.publications.get(publication as usize) else { return };
        let (node, last) = (of.publisher, of.last);
        let version = self.nodes[node].disk.catalogue.get(publication);
        // Whoever lost its disk and does not know its own last version by now would give its number a second time.
        let stands = version.is_some_and(|version| !version.removed && version.version == last);
        if stands && self.nodes[node].is_up() && !self.nodes[node].liar && !self.adds.contains_key(&publication) {
            self.note(|| format!("node {node} begins to add another version of publication {publication}"));
            self.begin(publication, node, root, time, false);
        }
    }

    fn announce(&mut self, node: NodeId, publication: PublicationKey, removed: bool) {
        let before = self.nodes[node].disk.catalogue.get(publication).map_or(0, |version| version.version);
        let version = Version { version: before + 1, removed };
        let of = &mut self.publications[publication as usize];
        of.last = of.last.max(version.version);
        self.learn(node, publication, version);
        let inline = match &self.roots[self.root_of(publication, version.version)].listing {
            p2p_protocol::manifest::Listing::Inline(entries) => 40 * entries.len() as u64,
            p2p_protocol::manifest::Listing::Manifest(_) => 36,
        };
        let side = self.nodes[node].side;
        let hearers: Vec<NodeId> = (0..self.nodes.len())
            .filter(|other| *other != node && self.nodes[*other].is_up() && self.nodes[*other].side == side)
            .collect();
        self.figures.gossip_bytes += hearers.len() as u64 * GOSSIP_COPIES * (PUBLICATION_BYTES + inline);
        // The k closest have it on disk before the add returns; everybody else hears of it.
        let copies = usize::from(self.publications[publication as usize].copies);
        for (at, other) in hearers.into_iter().enumerate() {
            if at < copies && self.reaches(node, other) {
                self.learn(other, publication, version);
            } else {
                let wait = self.delay() + self.chance.part(Duration::from_secs(1));
                self.after(wait, Event::Gossip { node: other, key: publication, version });
            }
        }
        // What was not acknowledged long before may be over: its holders look again.
        self.tell(node, Input::Unlisted);
    }
}
