//! The key table: a small value for each of millions of Kademlia keys, and notes, derived from what is elsewhere.
//!
//! It stands in the index alone, not in the log: with the index it is lost, and whoever owns it makes it again. Its
//! *generation* tells: a number that is another one after each [`Rebuild`], and none while the table is lost. A change
//! names the generation that it was made for and is not made in another.

use std::{io, ops::RangeBounds, sync::Arc};

use bytes::Bytes;
use p2p_protocol::{Chunk, Key};

use super::{
    Put, Store, StoreError,
    writer::{Answer, Request},
};

/// The most bytes of a value, and of what is merged into one.
pub const MAX_TABLE_VALUE_BYTES: usize = 256;
/// The most entries and notes, together, that a change has: what one batch of the index takes.
pub const MAX_TABLE_CHANGES: usize = 64;
/// The most bytes that the name of a note has.
pub const MAX_NOTE_NAME_BYTES: usize = 255;
/// The most bytes that a note has: progress, not content.
pub const MAX_NOTE_BYTES: usize = 1024;

/// What becomes of a value: from the current one and an operand, the new one, or `None` to remove it. At most
/// [`MAX_TABLE_VALUE_BYTES`]; it is called while other changes of the table wait.
pub type Merge = fn(current: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>>;

/// What is to be done with an entry.
#[derive(Clone, Debug)]
pub enum Edit {
    /// This is its value.
    Set(Bytes),
    /// It goes, if it is there.
    Remove,
    /// Its value is what [`Merge`] makes of the one that it has then: changes from two sides add up.
    Merge(Merge, Bytes),
}

/// Changes that are made together or not at all, also through a crash.
#[derive(Clone, Debug, Default)]
pub struct TableChange {
    /// The generation that it is for.
    pub generation: u64,
    /// Entries; of two edits of one key the second sees the first.
    pub entries: Vec<(Key, Edit)>,
    /// Notes (how far something got): a name and its value from now on.
    pub notes: Vec<(Bytes, Option<Bytes>)>,
}

impl TableChange {
    /// [`StoreError::Io`] with `InvalidInput` where it is over a bound.
    fn check(&self) -> Result<(), StoreError> {
        let long = |edit: &Edit| match edit {
            Edit::Set(value) | Edit::Merge(_, value) => value.len() > MAX_TABLE_VALUE_BYTES,
            Edit::Remove => false,
        };
        let fits = self.entries.len() + self.notes.len() <= MAX_TABLE_CHANGES
            && !self.entries.iter().any(|(_, edit)| long(edit))
            && self.notes.iter().all(|(name, value)| note_fits(name, value.as_deref().unwrap_or_default()));
        if fits { Ok(()) } else { Err(too_long()) }
    }
}

fn note_fits(name: &[u8], value: &[u8]) -> bool {
    name.len() <= MAX_NOTE_NAME_BYTES && value.len() <= MAX_NOTE_BYTES
}

fn too_long() -> StoreError {
    let source = io::Error::new(io::ErrorKind::InvalidInput, "a change, a value or a note is too long");
    StoreError::Io { doing: "changing the key table".into(), source: Arc::new(source) }
}

/// The handle; clone it freely.
#[derive(Clone, Debug)]
pub struct KeyTable {
    store: Store,
}

impl Store {
    /// The key table of this store.
    pub fn key_table(&self) -> KeyTable {
        KeyTable { store: self.clone() }
    }

    /// [`Store::put`], and on success `change` in the same commit: both are on disk on return. The second answer is as
    /// that of [`KeyTable::commit`]; the chunk is kept in either case.
    pub async fn put_with(&self, chunk: Chunk, change: TableChange) -> Result<(Put, bool), StoreError> {
        change.check()?;
        self.put_checked(chunk, Some(change)).await
    }
}

impl KeyTable {
    /// The generation that counts; `None`: the table is lost, or was never made, and is empty.
    pub fn generation(&self) -> Result<Option<u64>, StoreError> {
        self.store.with(|table| Ok(table.keys().generation()))
    }

    /// How many entries it has.
    pub fn entries(&self) -> Result<u64, StoreError> {
        self.store.with(|table| Ok(table.keys().entries()))
    }

    /// The value of `key`.
    pub fn get(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        self.store.with(|table| table.keys().get(key))
    }

    /// Up to `limit` entries of `range`, in key order.
    pub fn range(&self, range: impl RangeBounds<Key>, limit: usize) -> Result<Vec<(Key, Bytes)>, StoreError> {
        self.store.with(|table| table.keys().range(&range, limit))
    }

    /// The prefixes of 16 bits under which an entry may be another one, or a chunk have come or gone, since this was asked
    /// last, ascending; all of them at first, and after the index was made again. For one caller: it is told once.
    pub fn take_changed(&self) -> Result<Vec<u16>, StoreError> {
        self.store.with(|table| Ok(table.take_changed()))
    }

    /// The note of that name.
    pub fn note(&self, name: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.with(|table| table.keys().note(name))
    }

    /// Up to `limit` notes in the order of their names, strictly after `after`.
    pub fn notes(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.store.with(|table| table.keys().notes(after, limit))
    }

    /// Makes `change`; seen by everyone on return, on disk with the next commit of anything or [`KeyTable::flush`],
    /// within about a second. A crash takes back a last part of what was applied, in its order. `false`: it was for a
    /// generation that does not count, and nothing was done. [`StoreError::Io`] with `InvalidInput`: over a bound.
    pub fn apply(&self, change: &TableChange) -> Result<bool, StoreError> {
        change.check()?;
        self.store.with(|table| Ok(table.keys().apply([change])? == [true]))
    }

    /// [`KeyTable::apply`], on disk on return, with a sync that it shares with others. A dropped future may leave it
    /// done. `false` too where the table was lost at that moment.
    pub async fn commit(&self, change: TableChange) -> Result<bool, StoreError> {
        change.check()?;
        let answer = self.store.ask(Request::Table(change), 0).await?;
        Ok(matches!(answer, Answer::Table(true)))
    }

    /// Returns when everything applied before is on disk.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.store.ask(Request::Flush, 0).await.map(drop)
    }

    /// Begins to make the table again, beside the one that counts, which goes on to until [`Rebuild::finish`]; what
    /// is changed in that meanwhile is not taken over. One that had begun before is given up.
    pub fn rebuild(&self) -> Result<Rebuild, StoreError> {
        let generation = self.store.with(|table| Ok(table.keys().begin()))?;
        Ok(Rebuild { table: self.clone(), generation, waiting: Vec::new(), last: None })
    }
}

/// A key table that is being made.
#[derive(Debug)]
pub struct Rebuild {
    table: KeyTable,
    generation: u64,
    /// At most [`MAX_TABLE_CHANGES`].
    waiting: Vec<(Key, Bytes)>,
    last: Option<Key>,
}

impl Rebuild {
    /// The generation that it will be.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Adds the next entry; their keys ascend. Blocks now and then. `false`: the index was lost meanwhile, or another
    /// rebuild has begun, and this one leads nowhere. [`StoreError::Io`] with `InvalidInput`: not in order, or a value
    /// that is too long.
    pub fn push(&mut self, key: Key, value: Bytes) -> Result<bool, StoreError> {
        if value.len() > MAX_TABLE_VALUE_BYTES {
            return Err(too_long());
        }
        if self.last.is_some_and(|last| last >= key) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the keys do not ascend");
            return Err(StoreError::Io { doing: "making the key table".into(), source: Arc::new(source) });
        }
        self.last = Some(key);
        self.waiting.push((key, value));
        if self.waiting.len() < MAX_TABLE_CHANGES { Ok(true) } else { self.load() }
    }

    /// Lets it count, with `notes` (at most [`MAX_TABLE_CHANGES`]), on disk on return; `false` as from
    /// [`Rebuild::push`]. Blocks. What counted before is removed in the background.
    pub fn finish(mut self, notes: &[(Bytes, Bytes)]) -> Result<bool, StoreError> {
        if notes.len() > MAX_TABLE_CHANGES || !notes.iter().all(|(name, value)| note_fits(name, value)) {
            return Err(too_long());
        }
        Ok(self.load()? && self.table.store.with(|table| table.keys().finish(self.generation, notes))?)
    }

    fn load(&mut self) -> Result<bool, StoreError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.table.store.with(|table| table.keys().load(self.generation, &waiting))
    }
}

impl Drop for Rebuild {
    fn drop(&mut self) {
        // After `finish` there is nothing to give up; where the index failed, nothing is left of it.
        let _ = self.table.store.with(|table| {
            table.keys().abandon(self.generation);
            Ok(())
        });
        self.table.store.sweep();
    }
}
