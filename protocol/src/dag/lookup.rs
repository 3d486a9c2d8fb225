//! Finding one name in a directory: asks only for the shards on its path.

use super::{
    DagError, Entry, Node, ShardLink, decode,
    hamt::{self, Fanout, Position},
    walk_directory::{check_place, same_fanout},
};
use crate::{Chunk, Cid};

/// What became of a lookup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Fetch this shard and [`supply`](NameLookup::supply) it.
    Wanted(Cid),
    /// The directory has the name.
    Found(Entry),
    /// It does not.
    Absent,
}

/// A lookup of one name. Ends after as many shards as a hash has places for: 8 in the directories that are made here.
#[derive(Debug)]
pub struct NameLookup {
    name: String,
    fanout: Option<Fanout>,
    position: Position,
    state: Lookup,
}

impl NameLookup {
    /// A lookup of `name` in the directory whose root is this chunk.
    pub fn new(root: &Chunk, name: &str) -> Result<Self, DagError> {
        let mut lookup = Self { name: name.to_owned(), fanout: None, position: Position::ROOT, state: Lookup::Absent };
        match decode(root)? {
            Node::Directory { entries, .. } => {
                if let Some(entry) = entries.into_iter().find(|entry| entry.name == name) {
                    lookup.state = Lookup::Found(entry);
                }
            }
            Node::Shard { fanout, links, .. } => lookup.descend(fanout, links)?,
            Node::Leaf(_) | Node::File { .. } | Node::Symlink { .. } => {
                return Err(DagError::NotADirectory(*root.cid()));
            }
        }
        Ok(lookup)
    }

    /// What is known: the answer, or the shard that is wanted for it.
    pub fn state(&self) -> &Lookup {
        &self.state
    }

    /// Takes the wanted shard.
    ///
    /// # Errors
    ///
    /// [`DagError::Unasked`] for another chunk (the lookup can go on); anything else means that the directory is broken.
    pub fn supply(&mut self, chunk: &Chunk) -> Result<(), DagError> {
        if self.state != Lookup::Wanted(*chunk.cid()) {
            return Err(DagError::Unasked(*chunk.cid()));
        }
        match decode(chunk)? {
            Node::Shard { fanout, links, .. } => self.descend(fanout, links),
            _ => Err(DagError::Shard("what is below it is not a shard")),
        }
    }

    /// Goes on in the shard at the position.
    fn descend(&mut self, fanout: u64, links: Vec<ShardLink>) -> Result<(), DagError> {
        let fanout = same_fanout(&mut self.fanout, fanout)?;
        let place = fanout.place(hamt::hash(&self.name), self.position.level);
        self.state = match links.into_iter().find(|link| link.place == place) {
            None => Lookup::Absent,
            Some(ShardLink { cid, tsize, name: Some(name), .. }) => {
                check_place(self.position, fanout, place, &name)?;
                if name == self.name { Lookup::Found(Entry { name, cid, tsize }) } else { Lookup::Absent }
            }
            Some(ShardLink { cid, name: None, .. }) => {
                self.position = self.position.below(fanout, place)?;
                Lookup::Wanted(cid)
            }
        };
        Ok(())
    }
}
