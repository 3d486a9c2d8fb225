//! The chunks that a manifest itself is made of: its inner nodes have the addresses of all of them.

use super::{Child, Entry, MAX_MALFORMED, Malformed, Manifest, Place, Shape, Step, Unasked};
use crate::{Chunk, Key};

/// Lists a manifest's own chunks whose keys lie in a range, with their lengths: they are stored and placed like any
/// others, and listed by nothing else. Reads all inner nodes and no leaf; used like
/// [`RangeReader`](super::RangeReader), but what is listed ascends within a step only.
#[derive(Debug)]
pub struct OwnChunks {
    shape: Shape,
    from: Key,
    to: Option<Key>,
    /// Inner nodes to be read, the next last: at most three levels of 1,024.
    waiting: Vec<Child>,
    found: Vec<(Key, Entry)>,
    told: Option<Place>,
    malformed: u32,
    bytes_read: u64,
}

impl OwnChunks {
    /// The chunks with keys from `from` up to `to`, which is not included (none: to the end of the keyspace).
    ///
    /// # Errors
    ///
    /// No manifest has so many entries, or such a root.
    pub fn new(manifest: &Manifest, from: Key, to: Option<Key>) -> Result<Self, Malformed> {
        let shape = Shape::new(manifest.entries)?;
        let root = shape.root_of(manifest)?;
        let waiting = if root.place.level > 0 { vec![root] } else { Vec::new() };
        let mut own = Self { shape, from, to, waiting, found: Vec::new(), told: None, malformed: 0, bytes_read: 0 };
        own.find(&[root]);
        Ok(own)
    }

    /// What is next. [`Step::Want`] is said again until it was answered, everything else once.
    pub fn next_step(&mut self) -> Step {
        if !self.found.is_empty() {
            return Step::Listed(std::mem::take(&mut self.found));
        }
        if let Some(place) = self.told.take() {
            return Step::Malformed(place);
        }
        self.waiting.last().map_or(Step::Done, |node| Step::Want(node.entry))
    }

    /// Answers [`Step::Want`] with its chunk.
    ///
    /// # Errors
    ///
    /// It is not the one that was asked for; nothing has changed.
    pub fn supply(&mut self, chunk: &Chunk) -> Result<(), Unasked> {
        let node = self.waiting.pop_if(|node| node.entry.cid == *chunk.cid()).ok_or(Unasked(*chunk.cid()))?;
        self.bytes_read += chunk.len() as u64;
        match self.shape.children(node.place, chunk) {
            Ok(children) => {
                self.find(&children);
                if node.place.level > 1 {
                    self.waiting.extend(children.into_iter().rev());
                }
            }
            Err(Malformed(_)) => {
                self.malformed += 1;
                self.told = Some(node.place);
                if self.malformed >= MAX_MALFORMED {
                    self.told = Some(self.shape.root());
                    self.waiting.clear();
                }
            }
        }
        Ok(())
    }

    /// Answers [`Step::Want`] where the chunk cannot be had: what is below it is left out, and the rest goes on.
    pub fn lacking(&mut self) {
        self.waiting.pop();
    }

    /// Up to `limit` nodes that are wanted after the current one, for fetching them ahead.
    pub fn ahead(&self, limit: usize) -> Vec<Entry> {
        self.waiting.iter().rev().skip(1).take(limit).map(|node| node.entry).collect()
    }

    /// Bytes of the manifest's chunks that were supplied so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    fn find(&mut self, children: &[Child]) {
        let keyed = children.iter().map(|child| (child.entry.key(), child.entry));
        self.found.extend(keyed.filter(|(key, _)| *key >= self.from && self.to.is_none_or(|to| *key < to)));
        self.found.sort_unstable_by_key(|(key, _)| *key);
    }
}
