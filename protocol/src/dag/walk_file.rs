//! Walking a file in order, or a range of it: says which chunk is next, never fetches one.

use std::ops::Range;

use bytes::Bytes;

use super::{DagError, Leaf, Node, Part, decode};
use crate::{Chunk, Cid, Codec};

/// The most levels of a file. The balanced layout has three for a petabyte; others (trickle) go deeper, never so deep.
pub const MAX_DEPTH: usize = 32;
/// The most links that wait at once: depth times 1024 in the layout made here is a few thousand, and others' wide nodes
/// fit too. At 64 bytes each, 8 MiB.
pub const MAX_WAITING: usize = 128 * 1024;

/// What is next in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A raw leaf: fetch it, check its length ([`check_leaf`](super::check_leaf) with `length`), and use
    /// `bytes[skip..skip + take]`.
    Leaf {
        /// Its chunk.
        cid: Cid,
        /// Where its first byte stands in the file.
        offset: u64,
        /// How long it must be, from its parent: 1 or more.
        length: u64,
        /// How many of its first bytes are before the range.
        skip: u64,
        /// How many bytes from there are in the range: 1 or more.
        take: u64,
    },
    /// A node to be read first: fetch it and give it to [`FileWalker::expand`].
    Inner(Cid),
    /// Content that stood inside a node, cut to the range.
    Bytes {
        /// Where its first byte stands in the file.
        offset: u64,
        /// One byte or more.
        bytes: Bytes,
    },
}

/// An in-order walk over a byte range of a file. Holds at most [`MAX_WAITING`] links.
#[derive(Debug)]
pub struct FileWalker {
    size: u64,
    range: Range<u64>,
    /// What is to come, the next last. Everything in it overlaps the range and has a byte or more.
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
enum Waiting {
    Part { cid: Cid, offset: u64, size: u64, depth: u8 },
    Inline { offset: u64, bytes: Bytes },
}

impl FileWalker {
    /// A walk over the bytes of `range` that the file has. The root may be a leaf: its bytes are then a step.
    pub fn new(root: &Chunk, range: Range<u64>) -> Result<Self, DagError> {
        let node = decode(root)?;
        let size = node.file_size().ok_or(DagError::NotAFile(*root.cid()))?;
        let range = range.start.min(size)..range.end.min(size);
        let mut walker = Self { size, range, waiting: Vec::new() };
        walker.unfold(node, 0, 0)?;
        Ok(walker)
    }

    /// Content bytes of the whole file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes that are walked over: what was asked for, as far as the file has it.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The next step, in the order of the file; `None` at the end. A leaf or bytes are given once. [`Step::Inner`] is
    /// given again until [`expand`](Self::expand) was called with that node.
    pub fn next_step(&mut self) -> Option<Step> {
        match self.waiting.last()? {
            Waiting::Part { cid, .. } if cid.codec == Codec::DagPb => return Some(Step::Inner(*cid)),
            _ => {}
        }
        Some(match self.waiting.pop()? {
            Waiting::Part { cid, offset, size, .. } => {
                let overlap = self.overlap(offset, size);
                Step::Leaf {
                    cid,
                    offset,
                    length: size,
                    skip: overlap.start - offset,
                    take: overlap.end - overlap.start,
                }
            }
            Waiting::Inline { offset, bytes } => Step::Bytes { offset, bytes },
        })
    }

    /// Answers [`Step::Inner`] with its chunk, which may turn out to be a leaf: its bytes are then the next step.
    ///
    /// # Errors
    ///
    /// [`DagError::Unasked`] for another chunk (the walk can go on); anything else means that the file is broken.
    pub fn expand(&mut self, chunk: &Chunk) -> Result<(), DagError> {
        let found = *chunk.cid();
        match self.waiting.last() {
            Some(Waiting::Part { cid, .. }) if *cid == found && found.codec == Codec::DagPb => {}
            _ => return Err(DagError::Unasked(found)),
        }
        self.answer(found, decode(chunk)?)
    }

    /// [`expand`](Self::expand) after decoding; the next waiting part is `cid`.
    fn answer(&mut self, cid: Cid, node: Node) -> Result<(), DagError> {
        let Some(Waiting::Part { offset, size, depth, .. }) = self.waiting.pop() else {
            return Err(DagError::Unasked(cid));
        };
        let found = node.file_size().ok_or(DagError::NotAFile(cid))?;
        if found != size {
            return Err(DagError::Length { cid, expected: size, found });
        }
        let depth = depth + 1;
        if usize::from(depth) > MAX_DEPTH {
            return Err(DagError::TooDeep(MAX_DEPTH));
        }
        self.unfold(node, offset, depth)
    }

    /// The first `limit` nodes among what is known to come, in order, the current one included: those that will be
    /// [`Step::Inner`] unless the walk ends before. For fetching them ahead.
    pub fn upcoming_inner(&self, limit: usize) -> Vec<Cid> {
        let inner = self.waiting.iter().rev().filter_map(|waiting| match waiting {
            Waiting::Part { cid, .. } if cid.codec == Codec::DagPb => Some(*cid),
            _ => None,
        });
        inner.take(limit).collect()
    }

    /// Puts what a node at `offset` holds before everything that waits.
    fn unfold(&mut self, node: Node, offset: u64, depth: u8) -> Result<(), DagError> {
        let (inline, parts) = match node {
            Node::Leaf(Leaf { bytes, .. }) => (bytes, Vec::new()),
            Node::File { inline, parts, .. } => (inline, parts),
            // `file_size` was asked before, and these have none.
            Node::Directory { .. } | Node::Shard { .. } | Node::Symlink { .. } => return Ok(()),
        };
        let before = self.waiting.len();
        self.inline(offset, &inline);
        let mut at = offset + inline.len() as u64;
        for Part { cid, size, .. } in parts {
            // Parts of no bytes are passed over: they add nothing, and a DAG of them could be walked for ever.
            if !self.overlap(at, size).is_empty() {
                if self.waiting.len() >= MAX_WAITING {
                    return Err(DagError::TooWide(MAX_WAITING));
                }
                self.waiting.push(Waiting::Part { cid, offset: at, size, depth });
            }
            at += size;
        }
        self.waiting[before..].reverse();
        Ok(())
    }

    fn inline(&mut self, offset: u64, bytes: &Bytes) {
        let overlap = self.overlap(offset, bytes.len() as u64);
        if !overlap.is_empty() {
            // Both are at most the length of a chunk behind `offset`.
            let bytes = bytes.slice((overlap.start - offset) as usize..(overlap.end - offset) as usize);
            self.waiting.push(Waiting::Inline { offset: overlap.start, bytes });
        }
    }

    /// What of `size` bytes at `offset` is in the range. Every node's sizes were checked to add up within the file's,
    /// so that no sum here overflows.
    fn overlap(&self, offset: u64, size: u64) -> Range<u64> {
        self.range.start.max(offset)..self.range.end.min(offset + size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dag::Metadata;

    /// No chunk can link to itself; a hash function that broke could make one.
    #[test]
    fn a_file_that_contains_itself_ends_in_an_error() {
        let chunk = |cid| {
            let part = Part { cid, size: 5, tsize: 5 };
            Node::File { size: 5, inline: Bytes::new(), parts: vec![part], metadata: Metadata::default() }
        };
        let cid = Cid::of(Codec::DagPb, b"itself");
        let mut walker = FileWalker { size: 5, range: 0..5, waiting: Vec::new() };
        walker.unfold(chunk(cid), 0, 0).expect("the root is fine");
        for _ in 0..MAX_DEPTH {
            assert_eq!(walker.next_step(), Some(Step::Inner(cid)));
            walker.answer(cid, chunk(cid)).expect("a level that could be honest");
        }
        assert_eq!(walker.answer(cid, chunk(cid)), Err(DagError::TooDeep(MAX_DEPTH)));
    }
}
