//! The key table's part of the index: small values by Kademlia key, and notes by name, in generations.
//!
//! Everything of one generation stands under its number, and the head names the generation that counts: a new one is
//! loaded beside it and takes its place in one write. The head also has the XOR of a print of each entry and note, so
//! that an index that lost some of them is found out (see `recover.rs`).

use std::{
    ops::{Bound, RangeBounds},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use p2p_protocol::Key;

use super::{Index, Write};
use crate::store::{
    StoreError,
    key_table::{Edit, TableChange},
    record::{array, first_eight},
};

const SPACE: u8 = 7;
const HEAD: u8 = 8;
/// Behind the generation: an entry or a note.
const ENTRY: u8 = 0;
const NOTE: u8 = 1;
/// Entries read at once where all of them are looked at.
const PAGE: usize = 1024;

/// The Kademlia key of an entry's key, of whatever generation.
pub(super) fn kademlia_key(key: &[u8]) -> Option<&[u8]> {
    (key.len() == 42 && key[0] == SPACE && key[9] == ENTRY).then(|| &key[10..])
}

/// The generation that counts after a write, if it is of the head.
pub(super) fn generation(key: &[u8], value: Option<&[u8]>) -> Option<u64> {
    (key == [HEAD]).then(|| value.and_then(|value| array(value, 0)).map_or(0, u64::from_be_bytes))
}

/// What counts, and what it adds up to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    generation: u64,
    entries: u64,
    sum: u64,
}

#[derive(Default)]
struct State {
    head: Option<Head>,
    /// The one that is being loaded.
    loading: Option<Head>,
}

/// See the module's text.
pub(in crate::store) struct Keys {
    index: Arc<dyn Index>,
    state: Mutex<State>,
    /// Generations that do not count may be there.
    garbage: AtomicBool,
}

impl Keys {
    /// What is in `index`.
    pub(in crate::store) fn open(index: Arc<dyn Index>) -> Result<Self, StoreError> {
        let head = match index.get(&[HEAD])? {
            None => None,
            Some(value) => {
                let head = || {
                    let [generation, entries, sum] = [0, 8, 16].map(|at| array(&value, at).map(u64::from_be_bytes));
                    Some(Head { generation: generation?, entries: entries?, sum: sum? })
                };
                Some(head().ok_or_else(|| StoreError::Index("the key table's head cannot be read".into()))?)
            }
        };
        let state = Mutex::new(State { head, loading: None });
        Ok(Self { index, state, garbage: AtomicBool::new(true) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation that counts; `None`: the table is lost, or was never made.
    pub(in crate::store) fn generation(&self) -> Option<u64> {
        self.state().head.map(|head| head.generation)
    }

    /// How many entries it has.
    pub(in crate::store) fn entries(&self) -> u64 {
        self.state().head.map_or(0, |head| head.entries)
    }

    pub(in crate::store) fn get(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        self.generation().map_or(Ok(None), |generation| self.index.get(&entry_key(generation, key)))
    }

    /// Up to `limit` entries in key order.
    pub(in crate::store) fn range(
        &self,
        range: &impl RangeBounds<Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StoreError> {
        let Some(generation) = self.generation() else { return Ok(Vec::new()) };
        let after = |key: &Key| [&entry_key(generation, key)[..], &[0]].concat();
        let start = match range.start_bound() {
            Bound::Included(key) => entry_key(generation, key),
            Bound::Excluded(key) => after(key),
            Bound::Unbounded => space(generation, ENTRY),
        };
        let end = match range.end_bound() {
            Bound::Included(key) => after(key),
            Bound::Excluded(key) => entry_key(generation, key),
            Bound::Unbounded => space(generation, ENTRY + 1),
        };
        let pairs = self.index.range(&start, &end, limit)?;
        let decode = |(key, value): (Bytes, Bytes)| match array(&key, 10) {
            Some(bytes) if key.len() == 42 => Ok((Key(bytes), value)),
            _ => Err(StoreError::Index("a key of the key table has the wrong length".into())),
        };
        pairs.into_iter().map(decode).collect()
    }

    pub(in crate::store) fn note(&self, name: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.generation().map_or(Ok(None), |generation| self.index.get(&note_key(generation, name)))
    }

    /// Up to `limit` notes in the order of their names, strictly after `after`.
    pub(in crate::store) fn notes(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let Some(generation) = self.generation() else { return Ok(Vec::new()) };
        let start = match after {
            None => space(generation, NOTE),
            Some(name) => [&note_key(generation, name)[..], &[0]].concat(),
        };
        let pairs = self.index.range(&start, &space(generation, NOTE + 1), limit)?;
        Ok(pairs.into_iter().map(|(name, value)| (name.slice(10..), value)).collect())
    }

    /// Makes all of `change` or none of it; `false`: it was made for a generation that does not count.
    pub(in crate::store) fn apply(&self, change: &TableChange) -> Result<bool, StoreError> {
        let mut state = self.state();
        let Some(mut head) = state.head.filter(|head| head.generation == change.generation) else { return Ok(false) };
        // Two edits of one key see each other.
        let mut writes: Vec<Write> = Vec::with_capacity(1 + change.entries.len() + change.notes.len());
        for (key, edit) in &change.entries {
            let key = entry_key(head.generation, key);
            let before = self.current(&writes, &key)?;
            let after = match edit {
                Edit::Set(value) => Some(value.to_vec()),
                Edit::Remove => None,
                Edit::Merge(merge, operand) => merge(before.as_deref(), operand),
            };
            head.entries = head.entries + u64::from(after.is_some()) - u64::from(before.is_some());
            set(&mut head, &mut writes, key, before.as_deref(), after);
        }
        for (name, value) in &change.notes {
            let key = note_key(head.generation, name);
            let before = self.current(&writes, &key)?;
            set(&mut head, &mut writes, key, before.as_deref(), value.as_deref().map(<[u8]>::to_vec));
        }
        writes.push(head_write(&head));
        self.index.apply(writes)?;
        state.head = Some(head);
        Ok(true)
    }

    /// The value of an index key after `writes`.
    fn current(&self, writes: &[Write], key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match writes.iter().rev().find(|(written, _)| written == key) {
            Some((_, value)) => Ok(value.as_deref().map(Bytes::copy_from_slice)),
            None => self.index.get(key),
        }
    }

    /// Begins to load a new generation, and gives its number; one that was being loaded is given up.
    pub(in crate::store) fn begin(&self) -> u64 {
        // Random, so that no two are taken for one another, in whatever index they were made.
        let generation = rand::random_range(1..u64::MAX);
        let mut state = self.state();
        if state.loading.replace(Head { generation, entries: 0, sum: 0 }).is_some() {
            self.garbage.store(true, Ordering::SeqCst);
        }
        generation
    }

    /// Adds entries, none of which it has yet, to what is being loaded; `false`: that is another one, or none.
    pub(in crate::store) fn load(&self, generation: u64, entries: &[(Key, Bytes)]) -> Result<bool, StoreError> {
        let Some(mut loading) = self.state().loading.filter(|loading| loading.generation == generation) else {
            return Ok(false);
        };
        let mut writes = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            loading.entries += 1;
            set(&mut loading, &mut writes, entry_key(generation, key), None, Some(value.to_vec()));
        }
        // Without the lock: changes of the one that counts do not wait.
        self.index.apply(writes)?;
        let mut state = self.state();
        let same = state.loading.is_some_and(|loading| loading.generation == generation);
        if same {
            state.loading = Some(loading);
        }
        Ok(same)
    }

    /// Lets the loaded generation count, with `notes`, on disk on return; `false`: it is not being loaded any more.
    pub(in crate::store) fn finish(&self, generation: u64, notes: &[(Bytes, Bytes)]) -> Result<bool, StoreError> {
        let mut state = self.state();
        let Some(mut head) = state.loading.filter(|loading| loading.generation == generation) else {
            return Ok(false);
        };
        let mut writes = Vec::with_capacity(1 + notes.len());
        for (name, value) in notes {
            set(&mut head, &mut writes, note_key(generation, name), None, Some(value.to_vec()));
        }
        writes.push(head_write(&head));
        self.index.apply(writes)?;
        *state = State { head: Some(head), loading: None };
        drop(state);
        self.garbage.store(true, Ordering::SeqCst);
        self.index.sync()?;
        Ok(true)
    }

    /// Gives up what is being loaded, if it is `generation`.
    pub(in crate::store) fn abandon(&self, generation: u64) {
        let mut state = self.state();
        if state.loading.is_some_and(|loading| loading.generation == generation) {
            state.loading = None;
            self.garbage.store(true, Ordering::SeqCst);
        }
    }

    /// Whether there may be something to [`Self::sweep`].
    pub(in crate::store) fn has_garbage(&self) -> bool {
        self.garbage.load(Ordering::SeqCst)
    }

    /// Removes up to `limit` entries of generations that do not count; `false`: there are none left.
    pub(in crate::store) fn sweep(&self, limit: usize) -> Result<bool, StoreError> {
        // Before the look: what becomes garbage meanwhile is found by the next one.
        self.garbage.store(false, Ordering::SeqCst);
        // Under the lock throughout: one that begins after the look must not be taken for garbage.
        let state = self.state();
        let mut live: Vec<u64> = [state.head, state.loading].into_iter().flatten().map(|h| h.generation).collect();
        live.sort_unstable();
        // Between the live ones. They are under the greatest number, which is never taken.
        let starts = [vec![SPACE]].into_iter().chain(live.iter().map(|generation| numbered(generation + 1)));
        let ends = live.iter().map(|generation| numbered(*generation)).chain([vec![SPACE + 1]]);
        for (start, end) in starts.zip(ends) {
            let pairs = self.index.range(&start, &end, limit)?;
            if !pairs.is_empty() {
                self.index.apply(pairs.into_iter().map(|(key, _)| (key.to_vec(), None)).collect())?;
                self.garbage.store(true, Ordering::SeqCst);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks at every entry and note: whether they add up to what the head says. Where they do not, the table is lost.
    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        let Some(head) = self.state().head else { return Ok(()) };
        let (mut sum, mut entries) = (0, 0);
        let mut start = space(head.generation, ENTRY);
        let end = space(head.generation, NOTE + 1);
        loop {
            let page = self.index.range(&start, &end, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            start = [&last[..], &[0]].concat();
            for (key, value) in &page {
                sum ^= print(key, value);
                entries += u64::from(key[9] == ENTRY);
            }
        }
        if (sum, entries) != (head.sum, head.entries) {
            tracing::warn!("the key table does not hold what it was given; it is made again");
            self.index.apply(vec![(vec![HEAD], None)])?;
            self.state().head = None;
        }
        Ok(())
    }
}

/// Adds a write of `key` and takes it into the head's sum.
fn set(head: &mut Head, writes: &mut Vec<Write>, key: Vec<u8>, before: Option<&[u8]>, after: Option<Vec<u8>>) {
    for value in [before, after.as_deref()].into_iter().flatten() {
        head.sum ^= print(&key, value);
    }
    writes.push((key, after));
}

/// What an entry or a note adds to the sum, and what takes it out again.
fn print(key: &[u8], value: &[u8]) -> u64 {
    // A key is 10 to 265 bytes long.
    let length = (key.len() as u32).to_be_bytes();
    u64::from_be_bytes(first_eight(blake3::Hasher::new().update(&length).update(key).update(value)))
}

fn head_write(head: &Head) -> Write {
    (vec![HEAD], Some([head.generation, head.entries, head.sum].map(u64::to_be_bytes).concat()))
}

fn numbered(generation: u64) -> Vec<u8> {
    [&[SPACE][..], &generation.to_be_bytes()].concat()
}

fn space(generation: u64, kind: u8) -> Vec<u8> {
    [&[SPACE][..], &generation.to_be_bytes(), &[kind]].concat()
}

fn entry_key(generation: u64, key: &Key) -> Vec<u8> {
    [&space(generation, ENTRY)[..], &key.0].concat()
}

fn note_key(generation: u64, name: &[u8]) -> Vec<u8> {
    [&space(generation, NOTE)[..], name].concat()
}
