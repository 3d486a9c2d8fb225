//! Comparisons with neighbours, and what they cost on the wire.

use std::time::Duration;

use p2p_protocol::{
    Key,
    duty::{Audited, EXTRA, Input},
};

use crate::{
    node::{Kept, Mark, NodeId},
    world::{Event, World},
};

/// One round trip that finds everything equal: two frames, two fingerprints of catalogue and view, one of the set.
const EQUAL_BYTES: u64 = 2 * 9 + 2 * 48 + 16;
/// Chunks whose bytes are proved in one audit.
const PROOFS: usize = 8;
/// A proof: a nonce for all, a hash of 16 bytes for each and its key.
const PROOF_BYTES: u64 = 34 + 16;
/// Who does not answer is given up after so long.
const SILENCE: Duration = Duration::from_secs(10);

impl World {
    /// A node compares with a neighbour what that one should hold.
    pub(crate) fn audit(&mut self, id: NodeId, starts: u32, peer: NodeId) {
        if self.running(id, starts).is_none() {
            return;
        }
        self.figures.audits += 1;
        let before = self.figures.audit_bytes;
        let there = self.reaches(id, peer);
        let outcome = if there { self.compare_holdings(id, peer) } else { Audited::Failed };
        if self.is_settling(id) {
            self.figures.restart_bytes += self.figures.audit_bytes - before;
        }
        let wait = if there { self.delay() } else { SILENCE };
        let input = Input::Audited(self.nodes[peer].peer, outcome);
        self.after(wait, Event::Input { node: id, starts, input });
    }

    /// Whether a node came back from a short restart so recently that what it compares is a cost of that.
    pub(crate) fn is_settling(&self, id: NodeId) -> bool {
        let window = self.settings.audit_interval + Duration::from_secs(60);
        self.nodes[id].restarted.is_some_and(|at| self.now - at < window)
    }

    fn compare_holdings(&mut self, id: NodeId, peer: NodeId) -> Audited {
        self.figures.audit_bytes += EQUAL_BYTES;
        if self.closed_form_audits {
            // As where nothing is found: each proof is checked against the own copy or against another holder.
            self.figures.audit_bytes += PROOFS as u64 * 2 * PROOF_BYTES;
            return Audited::Equal;
        }
        let (Some(mine), Some(theirs)) = (self.view(id), self.view(peer)) else { return Audited::Failed };
        let around = 2 * (usize::from(self.most_copies(id)) + EXTRA);
        let key = self.nodes[peer].key;
        if mine.ranking().nearest(&key, around) != theirs.ranking().nearest(&key, around)
            || self.nodes[id].disk.catalogue.fingerprint() != self.nodes[peer].disk.catalogue.fingerprint()
        {
            return Audited::Apart;
        }
        let reach = mine.reach_of(key);
        let Some(running) = &self.nodes[id].running else { return Audited::Failed };
        let changes = (self.nodes[id].disk.changes, self.nodes[peer].disk.changes);
        let mark = Mark { changes, reach: reach.clone() };
        let parts = running.lister.parts();
        let expected = |key: &Key, kept: &Kept| {
            let copies = kept.row.copies();
            reach.nearer(key) < usize::from(copies) && parts.get(&copies).is_some_and(|part| part.contains(key))
        };
        let known = running.equal.get(&peer).filter(|(found, _)| *found == mark);
        let mut keys = known.map(|(_, keys)| keys.clone());
        if keys.is_none() {
            let there = &self.nodes[peer];
            let rows = self.nodes[id].disk.rows.iter().filter(|(key, kept)| expected(key, kept));
            let (mut lacks, mut edges, mut last, mut all) = (Vec::new(), 0, false, Vec::new());
            for (key, _) in rows {
                let lacking = !there.liar && !there.disk.holds(key);
                lacks.extend(lacking.then_some(*key));
                edges += u64::from(lacking != last);
                last = lacking;
                all.push(*key);
            }
            if !lacks.is_empty() {
                // The edge of what is lacking is found in log16 steps of 16 fingerprints each, and a list of 32 chunks;
                // a range between two of them is empty on one side, and is told as that.
                self.figures.audit_bytes += edges * (600 + 34 * 32);
                return Audited::Lacks { keys: lacks, filling: false };
            }
            keys = Some(all);
        }
        let keys = keys.unwrap_or_default();
        let picked = (0..PROOFS.min(keys.len())).map(|_| keys[self.chance.below(keys.len())]);
        let rows = &self.nodes[id].disk.rows;
        let proving: Vec<(Key, u32, bool)> =
            picked.filter_map(|key| rows.get(&key).map(|kept| (key, kept.row.entry.length, kept.held))).collect();
        if let Some(running) = &mut self.nodes[id].running {
            running.equal.insert(peer, (mark, keys));
        }
        let failed = self.prove(id, peer, &proving);
        if failed.is_empty() { Audited::Equal } else { Audited::Lied(failed) }
    }

    /// The peer is to prove a few of what it should hold; gives what it could not.
    ///
    /// What the asking node holds too it can check itself. For the rest it asks another holder with the same nonce: where
    /// the answers differ it fetches the chunk, and knows.
    fn prove(&mut self, id: NodeId, peer: NodeId, proving: &[(Key, u32, bool)]) -> Vec<Key> {
        let mut failed = Vec::new();
        for &(key, length, held) in proving {
            let truly = self.nodes[peer].disk.holds(&key);
            self.figures.audit_bytes += PROOF_BYTES;
            if held {
                failed.extend((!truly).then_some(key));
                continue;
            }
            let connected = &self.nodes[id].connected;
            let others = self.model.holders(&key).filter(|other| *other != peer && connected.contains(other));
            let other = others.min_by_key(|other| self.nodes[*other].key.distance(&key));
            if other.is_some() {
                self.figures.audit_bytes += PROOF_BYTES;
                if !truly {
                    self.figures.audit_bytes += u64::from(length);
                    failed.push(key);
                }
            }
        }
        failed
    }

    pub(crate) fn most_copies(&self, id: NodeId) -> u8 {
        self.nodes[id].running.as_ref().map_or(1, |running| running.lister.most_copies())
    }
}
