//! What a node's machines want done, done on its disk and over the network.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use p2p_protocol::{
    Key,
    duty::{
        Input, Output, Pulled, Reference, Row, SCAN_ROWS, Scanned, Span, Spans,
        lister::{self, Listed},
    },
    machine::StateMachine as _,
    manifest::{ENTRY_BYTES, Entry, LEAF_ENTRIES},
};

use crate::{
    node::{Kept, NodeId},
    sampled,
    world::{Event, World},
};

/// What one node gets from another.
const BYTES_PER_SECOND: f64 = 100e6;
/// Who does not answer is given up after so long.
const SILENCE: Duration = Duration::from_secs(10);
/// Rows that are compared one by one once they are listed; of more, their part of the keyspace.
const MOST_KEYS: usize = 64;
/// Entries of the leaves that are compared with.
const WIDE_LEAF: u64 = 1024;
/// A question's and an answer's bytes for each chunk, and of a frame.
const ASK_BYTES: u64 = 34 + 6;
const FRAME_BYTES: u64 = 20;

impl World {
    /// Carries out what the machines of a node want, until they want nothing more.
    pub(crate) fn drive(&mut self, id: NodeId) {
        loop {
            let now = self.instant();
            let Some(running) = &mut self.nodes[id].running else { return };
            if let Some(output) = running.lister.poll_output() {
                self.list(id, output);
            } else if running.met && running.reach.as_ref() != Some(running.keeper.view().reach()) {
                let reach = running.keeper.view().reach().clone();
                running.reach = Some(reach.clone());
                running.lister.handle(now, lister::Input::Moved(reach));
            } else if running.most_copies != running.lister.most_copies() {
                running.most_copies = running.lister.most_copies();
                running.keeper.handle(now, Input::MostCopies(running.most_copies));
            } else if let Some(output) = running.keeper.poll_output() {
                self.keep(id, output);
            } else {
                break;
            }
        }
        if let Some(running) = &mut self.nodes[id].running
            && running.full != running.keeper.is_full()
        {
            running.full = running.keeper.is_full();
            self.say(id);
        }
        self.arm(id);
    }

    fn arm(&mut self, id: NodeId) {
        let now = self.instant();
        let node = &mut self.nodes[id];
        let starts = node.starts;
        let Some(running) = &mut node.running else { return };
        let times = [running.keeper.poll_timeout(), running.lister.poll_timeout()];
        let Some(at) = times.into_iter().flatten().map(|(at, _)| at.max(now)).min() else { return };
        if running.timer.is_none_or(|timer| at < timer) {
            running.timer = Some(at);
            let at = at - self.base;
            self.at(at, Event::Timer { node: id, starts });
        }
    }

    fn keep(&mut self, id: NodeId, output: Output) {
        let starts = self.nodes[id].starts;
        match output {
            Output::Scan { scan, span } => {
                let (rows, ended) = self.scan(id, &span);
                let now = self.instant();
                if let Some(running) = &mut self.nodes[id].running {
                    running.keeper.handle(now, Input::Rows { scan, rows, ended });
                }
            }
            Output::Ask { request, peer, entries } => {
                let keys: Vec<Key> = entries.iter().map(Entry::key).collect();
                self.figures.ask_bytes += 2 * FRAME_BYTES + ASK_BYTES * keys.len() as u64;
                let (wait, peer) = (self.delay(), self.by_peer[&peer]);
                self.figures.asks += 1;
                let full = self.nodes[peer].running.as_ref().is_some_and(|there| there.full);
                self.figures.asks_of_full += u64::from(full);
                self.after(wait, Event::Asked { node: id, starts, peer, request, keys });
            }
            Output::Prove { request, peer, entries } => {
                let keys: Vec<Key> = entries.iter().map(Entry::key).collect();
                self.figures.ask_bytes += 2 * FRAME_BYTES + (34 + 16) * keys.len() as u64;
                let (wait, peer) = (self.delay(), self.by_peer[&peer]);
                self.after(wait, Event::Proving { node: id, starts, peer, request, keys });
            }
            Output::Pull { entry, .. } if self.nodes[id].liar => {
                self.after(
                    SILENCE,
                    Event::Input { node: id, starts, input: Input::Pulled(entry.key(), Pulled::Failed) },
                );
            }
            Output::Pull { entry, from } => {
                let key = entry.key();
                let from: Vec<NodeId> = from.iter().filter_map(|peer| self.by_peer.get(peer).copied()).collect();
                let source = self.source(id, &key, &from);
                let wait = match source {
                    Some(_) => self.delay() + Duration::from_secs_f64(f64::from(entry.length) / BYTES_PER_SECOND),
                    None => SILENCE,
                };
                let source = source.map(|source| (source, self.nodes[source].starts));
                self.after(wait, Event::Pulled { node: id, starts, key, entry, source });
            }
            Output::Audit(peer) => {
                let (wait, peer) = (self.delay(), self.by_peer[&peer]);
                self.after(wait, Event::Audit { node: id, starts, peer });
            }
            Output::Compare(peer) => {
                let (wait, peer, begun) = (self.delay(), self.by_peer[&peer], self.instant());
                self.after(wait, Event::Compare { node: id, starts, peer, begun });
            }
            Output::Free(entries) => {
                // Between the look and the removal others may say that they want it.
                let wait = self.delay();
                self.after(wait, Event::Free { node: id, starts, entries });
            }
            Output::GiveUp(entries) => self.give_up(id, &entries),
        }
    }

    fn scan(&self, id: NodeId, span: &Span) -> (Vec<Scanned>, bool) {
        let from = self.nodes[id].disk.rows.range(span.from..);
        let mut rows = from.take_while(|(key, _)| span.contains(key));
        let some = rows.by_ref().take(SCAN_ROWS);
        let some: Vec<_> =
            some.map(|(key, kept)| Scanned { key: *key, row: kept.row.clone(), held: kept.held }).collect();
        (some, rows.next().is_none())
    }

    /// Who gives a chunk: those that said so, else the nearest that is connected and has it.
    pub(crate) fn source(&self, id: NodeId, key: &Key, from: &[NodeId]) -> Option<NodeId> {
        let gives = |peer: &NodeId| self.reaches(id, *peer) && self.nodes[*peer].disk.holds(key);
        let said = from.iter().copied().find(|peer| gives(peer));
        // In a large network a look-up finds others than those that it knows.
        let known = |peer: &NodeId| self.is_large() || self.nodes[id].connected.contains(peer);
        said.or_else(|| {
            let near = self.model.holders(key).filter(|peer| *peer != id && known(peer)).filter(gives);
            near.min_by_key(|peer| self.nodes[*peer].key.distance(key))
        })
    }

    pub(crate) fn asked(&mut self, id: NodeId, starts: u32, peer: NodeId, request: u64, keys: &[Key]) {
        let there = self.reaches(id, peer);
        let (disk, liar) = (&self.nodes[peer].disk, self.nodes[peer].liar);
        let has = there.then(|| keys.iter().map(|key| liar || disk.holds(key)).collect());
        let wait = if there { self.delay() } else { SILENCE };
        self.after(wait, Event::Input { node: id, starts, input: Input::Holdings { request, has } });
    }

    pub(crate) fn proving(&mut self, id: NodeId, starts: u32, peer: NodeId, request: u64, keys: &[Key]) {
        let there = self.reaches(id, peer);
        let disk = &self.nodes[peer].disk;
        let proved = there.then(|| keys.iter().map(|key| disk.holds(key)).collect());
        let wait = if there { self.delay() } else { SILENCE };
        self.after(wait, Event::Input { node: id, starts, input: Input::Proved { request, proved } });
    }

    pub(crate) fn pulled(&mut self, id: NodeId, starts: u32, key: Key, entry: Entry, source: Option<(NodeId, u32)>) {
        if self.running(id, starts).is_none() {
            return;
        }
        let gave = |(peer, run): (NodeId, u32)| {
            self.reaches(id, peer) && self.nodes[peer].starts == run && self.nodes[peer].disk.holds(&key)
        };
        // Told apart before it is here: a copy of its own says nothing.
        let (joined, absent) = self.needs(id, &key);
        let outcome = if !source.is_some_and(gave) {
            Pulled::Failed
        } else if self.store(id, key, entry) {
            self.figures.pulls += 1;
            let bytes = u64::from(entry.length);
            self.figures.pulled_bytes += bytes;
            self.figures.joined_bytes += u64::from(joined) * bytes;
            self.figures.absent_bytes += u64::from(absent && !joined) * bytes;
            let waited = self.model.pulled(key, self.now);
            self.figures.repairs.extend(waited);
            Pulled::Kept
        } else {
            Pulled::NoSpace
        };
        self.tell(id, Input::Pulled(key, outcome));
        self.space(id);
    }

    /// Why a node needs a chunk: it came lately and it is its share, or somebody who has it is away.
    fn needs(&self, id: NodeId, key: &Key) -> (bool, bool) {
        let copies = self.model.wanted(key);
        let joined = self.nodes[id].joined > self.figures.since && self.nearest_up(key, copies).contains(&id);
        let absent = self.model.holders(key).any(|holder| !self.nodes[holder].is_up());
        (joined, absent)
    }

    /// Puts a chunk on a disk, acknowledged; `false`: there is no room.
    pub(crate) fn store(&mut self, id: NodeId, key: Key, entry: Entry) -> bool {
        let now = self.instant();
        let node = &mut self.nodes[id];
        let Some(running) = &node.running else { return false };
        if node.liar {
            return true;
        }
        let moment = running.keeper.moment(now);
        let held = node.disk.holds(&key);
        if !held && node.disk.used + u64::from(entry.length) > node.disk.capacity {
            return false;
        }
        let kept = node.disk.rows.entry(key).or_insert_with(|| Kept { row: Row::new(entry, moment), held: false });
        kept.row.renew(moment);
        if !held {
            kept.held = true;
            node.disk.changes += 1;
            node.disk.used += u64::from(entry.length);
        }
        let unlisted = !kept.row.is_needed();
        self.model.came(key, id);
        if unlisted {
            self.tell(id, Input::Unlisted);
        }
        true
    }

    /// Tells a node's loop how full its disk is.
    pub(crate) fn space(&mut self, id: NodeId) {
        let (used, capacity) = (self.nodes[id].disk.used, self.nodes[id].disk.capacity);
        self.tell(id, Input::Space { used, capacity });
    }

    /// Takes a chunk off a disk.
    pub(crate) fn drop_chunk(&mut self, id: NodeId, key: &Key) {
        let disk = &mut self.nodes[id].disk;
        if let Some(kept) = disk.rows.get_mut(key)
            && std::mem::take(&mut kept.held)
        {
            disk.changes += 1;
            disk.used -= u64::from(kept.row.entry.length);
            if !kept.row.is_needed() {
                disk.rows.remove(key);
            }
        }
        self.model.went(key, id);
    }

    pub(crate) fn free(&mut self, id: NodeId, entries: &[Entry]) {
        let now = self.instant();
        for entry in entries {
            let key = entry.key();
            let node = &self.nodes[id];
            let Some(moment) = node.running.as_ref().map(|running| running.keeper.moment(now)) else { return };
            let over = |kept: &Kept| kept.row.grace_ends(self.settings.grace).is_some_and(|ends| ends <= moment);
            if node.disk.rows.get(&key).is_some_and(over) {
                self.note(|| format!("node {id} frees {key:?}"));
                self.drop_chunk(id, &key);
                self.figures.freed += 1;
                self.check_copies(&key, "freed");
                self.check_pinned(id, &key, "freed");
            }
        }
        self.space(id);
    }

    fn give_up(&mut self, id: NodeId, entries: &[Entry]) {
        for entry in entries {
            let key = entry.key();
            // It may have been pinned since it was proved.
            if self.nodes[id].disk.rows.get(&key).is_some_and(|kept| kept.row.is_pinned()) {
                continue;
            }
            self.note(|| format!("node {id} gives {key:?} up"));
            self.drop_chunk(id, &key);
            self.figures.given_up += 1;
            self.check_copies(&key, "given up");
            self.check_pinned(id, &key, "given up");
        }
        self.space(id);
    }

    fn list(&mut self, id: NodeId, output: lister::Output) {
        let starts = self.nodes[id].starts;
        match output {
            lister::Output::Read { listed, spans, list, covers } => {
                let wait = self.delay();
                self.after(wait, Event::Read { node: id, starts, listed, spans, list, covers });
            }
            lister::Output::Purge(publications) => {
                self.after(Duration::from_secs(1), Event::Purge { node: id, starts, publications });
            }
            // The simulator knows; and each disk notes here what each publication was read over.
            lister::Output::Live(_) | lister::Output::Drifted => {}
            lister::Output::Tell => self.after(Duration::from_secs(1), Event::Tell { node: id, starts }),
            lister::Output::Narrowed { .. } => {
                let node = &mut self.nodes[id];
                let Some(running) = &node.running else { return };
                let parts = running.lister.parts();
                node.disk.changes += 1;
                node.disk.rows.retain(|key, kept| {
                    kept.held || kept.row.is_pinned() || parts.values().any(|part| part.contains(key))
                });
            }
            lister::Output::Unread(until) => self.tell(id, Input::Unread(until)),
        }
    }

    /// A manifest, or the few entries of a publication, is read over parts of the keyspace and applied to the rows.
    pub(crate) fn read(
        &mut self,
        id: NodeId,
        starts: u32,
        listed: &Listed,
        spans: &Spans,
        list: bool,
        covers: Arc<Spans>,
    ) {
        if self.running(id, starts).is_none() {
            return;
        }
        let root = self.root_meant(listed.publication);
        if let Some(sample) = self.roots[root].sample.filter(|_| list) {
            let (bytes, chunks) = sampled::manifest_read(sample.chunks, LEAF_ENTRIES as u64, spans);
            let (wide, _) = sampled::manifest_read(sample.chunks, WIDE_LEAF, spans);
            self.figures.manifest_bytes += sample.files * bytes;
            self.figures.wide_manifest_bytes += sample.files * wide;
            self.look_up(id, sample.files * chunks);
        }
        let root = &self.roots[root];
        let mut leaves = std::collections::BTreeSet::new();
        let mut listing = Vec::new();
        for (at, (key, entry)) in root.entries.iter().enumerate() {
            if spans.contains(key) || self.nodes[id].disk.holds(key) {
                leaves.insert(at / LEAF_ENTRIES);
                listing.push((*key, *entry));
            }
        }
        let own = root.manifest.iter().filter(|(key, _)| spans.contains(key) || self.nodes[id].disk.holds(key));
        listing.extend(own.copied());
        if !root.manifest.is_empty() {
            let top = (root.manifest.len() > 1).then_some(root.manifest.len() - 1);
            let needed: Vec<usize> = leaves.into_iter().chain(top).collect();
            let there = |at: &usize| {
                let key = &root.manifest[*at].0;
                self.nodes[id].disk.holds(key) || self.source(id, key, &[]).is_some()
            };
            if !needed.iter().all(there) {
                self.listed(id, listed.publication, false);
                return;
            }
            let fetched = needed.iter().filter(|at| !self.nodes[id].disk.holds(&root.manifest[**at].0)).count();
            self.figures.manifest_bytes += (fetched * LEAF_ENTRIES * ENTRY_BYTES) as u64;
        }
        let reference = Reference { publication: listed.publication, copies: listed.copies };
        // Where little is listed, a look at all of the part for each publication would cost more than anything else.
        let few = listing.len() <= MOST_KEYS;
        let keys = listing.iter().filter(|_| few).map(|(key, _)| Span::of(*key));
        let changed: Vec<Span> = keys.chain(spans.iter().filter(|_| !few)).collect();
        for (key, entry) in listing {
            if list {
                self.list_row(id, key, entry, reference);
            } else {
                self.unlist_row(id, key, listed.publication);
            }
        }
        if list {
            self.nodes[id].disk.covered.insert(listed.publication, covers);
        } else {
            self.nodes[id].disk.covered.remove(&listed.publication);
            self.tell(id, Input::Unlisted);
        }
        for span in changed {
            self.tell(id, Input::Changed(span));
        }
        self.listed(id, listed.publication, true);
    }

    fn listed(&mut self, id: NodeId, publication: u64, complete: bool) {
        let now = self.instant();
        if let Some(running) = &mut self.nodes[id].running {
            running.lister.handle(now, lister::Input::Done { publication, complete });
            self.drive(id);
        }
    }

    fn list_row(&mut self, id: NodeId, key: Key, entry: Entry, reference: Reference) {
        let Some(moment) = self.moment(id) else { return };
        let disk = &mut self.nodes[id].disk;
        disk.changes += 1;
        let kept = disk.rows.entry(key).or_insert_with(|| Kept { row: Row::new(entry, moment), held: false });
        kept.row.list(reference);
    }

    fn unlist_row(&mut self, id: NodeId, key: Key, publication: u64) {
        let Some(moment) = self.moment(id) else { return };
        let disk = &mut self.nodes[id].disk;
        if let Some(kept) = disk.rows.get_mut(&key) {
            disk.changes += 1;
            kept.row.unlist(publication, moment);
            if !kept.held && !kept.row.is_needed() {
                disk.rows.remove(&key);
            }
        }
    }

    pub(crate) fn purge(&mut self, id: NodeId, starts: u32, publications: Vec<u64>) {
        if self.running(id, starts).is_none() {
            return;
        }
        let keys: Vec<Key> = self.nodes[id].disk.rows.keys().copied().collect();
        for key in keys {
            publications.iter().for_each(|publication| self.unlist_row(id, key, *publication));
        }
        for publication in &publications {
            self.nodes[id].disk.covered.remove(publication);
        }
        self.tell(id, Input::Unlisted);
        self.tell(id, Input::Changed(Span::ALL));
        let now = self.instant();
        if let Some(running) = &mut self.nodes[id].running {
            running.lister.handle(now, lister::Input::Completed(publications));
            self.drive(id);
        }
    }

    /// Everything that is live is told again, as its lister asked for.
    pub(crate) fn tell_all(&mut self, id: NodeId, starts: u32) {
        if self.running(id, starts).is_none() {
            return;
        }
        let entries: Vec<_> = self.nodes[id].disk.catalogue.entries().collect();
        let now = self.instant();
        if let Some(running) = self.running(id, starts) {
            running.lister.handle(now, lister::Input::Telling);
        }
        for (key, version) in entries.into_iter().filter(|(_, version)| !version.removed) {
            self.goes_live(id, key, version);
        }
        if let Some(running) = self.running(id, starts) {
            running.lister.handle(now, lister::Input::Told);
        }
        self.drive(id);
    }

    pub(crate) fn moment(&self, id: NodeId) -> Option<p2p_protocol::duty::Moment> {
        Some(self.nodes[id].running.as_ref()?.keeper.moment(self.instant()))
    }

    /// Two nodes compare catalogues; both know the union then.
    pub(crate) fn compare(&mut self, id: NodeId, starts: u32, peer: NodeId, begun: Instant) {
        if self.running(id, starts).is_none() || !self.reaches(id, peer) {
            return;
        }
        let before = self.figures.gossip_bytes;
        self.figures.gossip_bytes += 2 * 90;
        if self.nodes[id].disk.catalogue.fingerprint() != self.nodes[peer].disk.catalogue.fingerprint() {
            let theirs: Vec<_> = self.nodes[peer].disk.catalogue.entries().collect();
            let mine: Vec<_> = self.nodes[id].disk.catalogue.entries().collect();
            for (to, entries) in [(id, theirs), (peer, mine)] {
                for (key, version) in entries {
                    if self.nodes[to].disk.catalogue.get(key) != Some(version) {
                        let root = self.root_of(key, version.version);
                        self.figures.gossip_bytes += 400 * self.roots[root].sample.map_or(1, |sample| sample.files);
                        self.learn(to, key, version);
                    }
                }
            }
        }
        if self.is_settling(id) || self.is_settling(peer) {
            self.figures.restart_bytes += self.figures.gossip_bytes - before;
        }
        let peer = self.nodes[peer].peer;
        self.tell(id, Input::Reconciled(peer, begun));
    }
}
