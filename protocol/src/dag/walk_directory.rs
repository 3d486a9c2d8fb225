//! Listing a directory, flat or sharded: asks for the shards it needs, several at once.

use super::{
    DagError, Entry, Node, ShardLink, decode,
    hamt::{Fanout, Position},
};
use crate::{Chunk, Cid};

/// The most shards that are asked for at once: they are small, and sixteen hide the delay of any link.
pub const MAX_WANTED: usize = 16;

/// A listing. Entries come in the order of the shards that were supplied, not of the names. Holds what one path of shards
/// for each shard under way links to (at most 16 × 11 levels × 1024 links), and the entries until they are taken.
///
/// ```
/// # use p2p_protocol::{Chunk, Cid, dag::{DagError, DirectoryWalker}};
/// # fn list(root: &Chunk, fetch: impl Fn(Cid) -> Chunk) -> Result<(), DagError> {
/// let mut walker = DirectoryWalker::new(root)?;
/// while !walker.done() {
///     for entry in walker.take_entries() {
///         println!("{}", entry.name);
///     }
///     for cid in walker.wanted() {
///         walker.supply(&fetch(cid))?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DirectoryWalker {
    /// The root's; every shard below has the same.
    fanout: Option<Fanout>,
    /// Shards that were not asked for yet, the next last: deeper ones first, so that few wait.
    waiting: Vec<(Cid, Position)>,
    /// Shards that were asked for.
    asked: Vec<(Cid, Position)>,
    entries: Vec<Entry>,
}

impl DirectoryWalker {
    /// A listing of the directory whose root is this chunk.
    pub fn new(root: &Chunk) -> Result<Self, DagError> {
        let mut walker = Self { fanout: None, waiting: Vec::new(), asked: Vec::new(), entries: Vec::new() };
        match decode(root)? {
            Node::Directory { entries, .. } => walker.entries = entries,
            Node::Shard { fanout, links, .. } => walker.unfold(fanout, links, Position::ROOT)?,
            Node::Leaf(_) | Node::File { .. } | Node::Symlink { .. } => {
                return Err(DagError::NotADirectory(*root.cid()));
            }
        }
        Ok(walker)
    }

    /// Shards to fetch and [`supply`](Self::supply) now: each is given once, and at most [`MAX_WANTED`] are under way.
    /// Empty while enough are.
    pub fn wanted(&mut self) -> Vec<Cid> {
        let room = MAX_WANTED - self.asked.len().min(MAX_WANTED);
        let start = self.waiting.len() - self.waiting.len().min(room);
        let next = self.waiting.split_off(start);
        self.asked.extend(next.iter().rev());
        next.iter().rev().map(|(cid, _)| *cid).collect()
    }

    /// Takes a shard that was wanted; in any order.
    ///
    /// # Errors
    ///
    /// [`DagError::Unasked`] for another chunk (the listing can go on); anything else means that the directory is broken.
    pub fn supply(&mut self, chunk: &Chunk) -> Result<(), DagError> {
        let cid = *chunk.cid();
        let index = self.asked.iter().position(|(asked, _)| *asked == cid).ok_or(DagError::Unasked(cid))?;
        let (_, position) = self.asked.swap_remove(index);
        let Node::Shard { fanout, links, .. } = decode(chunk)? else {
            return Err(DagError::Shard("what is below it is not a shard"));
        };
        if links.is_empty() {
            // Else a small DAG of empty shards could be walked for ever.
            return Err(DagError::Shard("a shard below it is empty"));
        }
        self.unfold(fanout, links, position)
    }

    /// The entries found since the last call. Take them after each [`supply`](Self::supply) to keep memory bounded.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// Whether there is nothing more to want, to supply or to take.
    pub fn done(&self) -> bool {
        self.waiting.is_empty() && self.asked.is_empty() && self.entries.is_empty()
    }

    fn unfold(&mut self, fanout: u64, links: Vec<ShardLink>, position: Position) -> Result<(), DagError> {
        let fanout = same_fanout(&mut self.fanout, fanout)?;
        let before = self.waiting.len();
        for ShardLink { place, cid, tsize, name } in links {
            match name {
                Some(name) => {
                    check_place(position, fanout, place, &name)?;
                    self.entries.push(Entry { name, cid, tsize });
                }
                None => self.waiting.push((cid, position.below(fanout, place)?)),
            }
        }
        self.waiting[before..].reverse();
        Ok(())
    }
}

/// Checks a shard's fanout against the root's, which is remembered.
pub(super) fn same_fanout(known: &mut Option<Fanout>, fanout: u64) -> Result<Fanout, DagError> {
    let fanout = Fanout::new(fanout)?;
    if *known.get_or_insert(fanout) == fanout {
        Ok(fanout)
    } else {
        Err(DagError::Shard("its fanout is not that of the directory's root"))
    }
}

/// Checks that a name stands where its hash says. By this no shard with a name under it can stand in two places.
pub(super) fn check_place(position: Position, fanout: Fanout, place: usize, name: &str) -> Result<(), DagError> {
    if position.holds(fanout, place, name) {
        Ok(())
    } else {
        Err(DagError::Shard("a name does not stand where its hash says"))
    }
}
