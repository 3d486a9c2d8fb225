//! The key table's part of the index: small values by Kademlia key, and notes by name, in generations.
//!
//! Everything of one generation stands under its number, and the head names the generation that counts: a new one is
//! loaded beside it and takes its place in one write. The head also has the XOR of a print of each entry and note, so
//! that an index that lost some of them is found out (see `recover.rs`).

use std::{
    ops::{Bound, Range, RangeBounds},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use p2p_protocol::Key;

use super::{Index, MAX_BATCH, Write, table::bounds};
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

    /// Makes each of `changes`, all of it or none of it, in as few batches of the index as take them. Of each, in their
    /// order: `false` where it was made for a generation that does not count.
    pub(in crate::store) fn apply<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a TableChange>,
    ) -> Result<Vec<bool>, StoreError> {
        let mut state = self.state();
        let mut made = Vec::new();
        let mut writes = Writes::default();
        for change in changes {
            let Some(mut head) = writes.head.or(state.head).filter(|head| head.generation == change.generation) else {
                made.push(false);
                continue;
            };
            if writes.list.len() + change.entries.len() + change.notes.len() > MAX_BATCH {
                self.write(&mut state, std::mem::take(&mut writes))?;
            }
            for (key, edit) in &change.entries {
                let key = entry_key(head.generation, key);
                let before = self.current(&writes, &key)?;
                let after = match edit {
                    Edit::Set(value) => Some(value.to_vec()),
                    Edit::Remove => None,
                    Edit::Merge(merge, operand) => merge(before.as_deref(), operand),
                };
                if before.as_deref() == after.as_deref() {
                    continue;
                }
                head.entries = head.entries + u64::from(after.is_some()) - u64::from(before.is_some());
                head.turn(&key, before.as_deref(), after.as_deref());
                writes.set(key, after);
            }
            for (name, value) in &change.notes {
                let key = note_key(head.generation, name);
                let before = self.current(&writes, &key)?;
                if before.as_deref() == value.as_deref() {
                    continue;
                }
                head.turn(&key, before.as_deref(), value.as_deref());
                writes.set(key, value.as_deref().map(<[u8]>::to_vec));
            }
            writes.head = Some(head);
            made.push(true);
        }
        self.write(&mut state, writes)?;
        Ok(made)
    }

    fn write(&self, state: &mut State, writes: Writes) -> Result<(), StoreError> {
        let Writes { mut list, head: Some(head) } = writes else { return Ok(()) };
        // What changes nothing is not written.
        if list.is_empty() {
            return Ok(());
        }
        list.push(head_write(&head));
        self.index.apply(list)?;
        state.head = Some(head);
        Ok(())
    }

    /// The value of an index key after `writes`.
    fn current(&self, writes: &Writes, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match writes.list.iter().find(|(written, _)| written == key) {
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
            let key = entry_key(generation, key);
            loading.turn(&key, None, Some(value));
            writes.push((key, Some(value.to_vec())));
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
            let key = note_key(generation, name);
            head.turn(&key, None, Some(value));
            writes.push((key, Some(value.to_vec())));
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

    /// What the entries of the generation that counts add up to whose keys' first byte is in `part` (the end is at most
    /// 256).
    pub(in crate::store) fn count(&self, part: &Range<u16>) -> Result<Tally, StoreError> {
        self.generation()
            .map_or(Ok(Tally::default()), |generation| self.tally(&bounds(&space(generation, ENTRY), part)))
    }

    /// Takes `entries`, [counted](Self::count) of all of them, and looks at every note: whether they add up to what the
    /// head says. Where they do not, the table is lost.
    pub(in crate::store) fn check(&self, entries: Tally) -> Result<(), StoreError> {
        let Some(head) = self.state().head else { return Ok(()) };
        let notes = self.tally(&[NOTE, NOTE + 1].map(|kind| space(head.generation, kind)))?;
        if (entries.sum ^ notes.sum, entries.rows) != (head.sum, head.entries) {
            tracing::warn!("the key table does not hold what it was given; it is made again");
            self.index.apply(vec![(vec![HEAD], None)])?;
            self.state().head = None;
        }
        Ok(())
    }

    fn tally(&self, [start, end]: &[Vec<u8>; 2]) -> Result<Tally, StoreError> {
        let mut tally = Tally::default();
        self.index.walk(start, end, &mut |key, value| {
            tally.add(Tally { rows: 1, sum: print(key, value) });
            Ok(())
        })?;
        Ok(tally)
    }
}

/// What a part of the table adds up to.
#[derive(Clone, Copy, Default)]
pub(in crate::store) struct Tally {
    rows: u64,
    sum: u64,
}

impl Tally {
    /// Takes in another part.
    pub(in crate::store) fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.sum ^= other.sum;
    }
}

/// Writes of changes that go into one batch, and the head after them. A key stands in it once, so that what many changes
/// say of one note is one write; there are at most [`MAX_BATCH`].
#[derive(Default)]
struct Writes {
    list: Vec<Write>,
    head: Option<Head>,
}

impl Writes {
    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        match self.list.iter_mut().find(|(written, _)| *written == key) {
            Some((_, written)) => *written = value,
            None => self.list.push((key, value)),
        }
    }
}

impl Head {
    /// Takes a change of a key from one value to another into the sum.
    fn turn(&mut self, key: &[u8], before: Option<&[u8]>, after: Option<&[u8]>) {
        for value in [before, after].into_iter().flatten() {
            self.sum ^= print(key, value);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::{Pair, memory::MemoryIndex};

    /// An index that counts the writes of each batch.
    #[derive(Default)]
    struct Counting(MemoryIndex, Mutex<Vec<usize>>);

    impl Index for Counting {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.0.get(key)
        }

        fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
            self.0.range(start, end, limit)
        }

        fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
            self.1.lock().expect("nothing panics").push(writes.len());
            self.0.apply(writes)
        }

        fn sync(&self) -> Result<(), StoreError> {
            self.0.sync()
        }
    }

    fn loaded() -> (Arc<Counting>, Keys, u64) {
        let index = Arc::new(Counting::default());
        let keys = Keys::open(index.clone()).expect("it is empty");
        let generation = keys.begin();
        assert!(keys.finish(generation, &[]).expect("it is in memory"));
        index.1.lock().expect("nothing panics").clear();
        (index, keys, generation)
    }

    /// Adds up what it is given: the order and the number of edits show.
    fn add(current: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
        Some([current.unwrap_or_default(), operand].concat())
    }

    #[test]
    fn parts_of_the_keyspace_have_each_entry_once() {
        let (index, keys, generation) = loaded();
        // At the bounds of parts, and beside them.
        let entries: Vec<_> = [0, 1, 7, 8, 127, 128, 254, 255]
            .into_iter()
            .flat_map(|first| {
                [0, u8::MAX].map(|rest| {
                    let mut key = [rest; 32];
                    key[0] = first;
                    (Key(key), Edit::Set(Bytes::from_static(b"value")))
                })
            })
            .collect();
        let notes = vec![(Bytes::from_static(b"\xff"), Some(Bytes::from_static(b"note")))];
        keys.apply([&TableChange { generation, entries, notes }]).expect("it is in memory");
        let count = |bytes: usize| {
            let mut tally = Tally::default();
            for start in (0..256).step_by(bytes) {
                tally.add(keys.count(&(start..start + bytes as u16)).expect("it reads"));
            }
            tally
        };
        for bytes in [1, 8, 128, 256] {
            let tally = count(bytes);
            assert_eq!(tally.rows, 16);
            keys.check(tally).expect("it reads");
            assert!(keys.generation().is_some(), "it adds up in parts of {bytes}");
        }
        // One of another value has the same number of rows.
        index.apply(vec![(entry_key(generation, &Key([0; 32])), Some(b"other".to_vec()))]).expect("it is in memory");
        keys.check(count(8)).expect("it reads");
        assert_eq!(keys.generation(), None, "it does not add up any more");
    }

    #[test]
    fn changes_made_together_are_those_made_one_by_one_in_few_batches_that_are_bounded() {
        let (apart, one_by_one, apart_generation) = loaded();
        let (together, at_once, generation) = loaded();
        let changes = |generation| -> Vec<TableChange> {
            let change = |number: u8| TableChange {
                // Every tenth is for a table that there is none of.
                generation: generation + u64::from(number % 10 == 9),
                // Some keys are changed by more than one.
                entries: vec![(Key([number % 150; 32]), Edit::Merge(add, Bytes::copy_from_slice(&[number])))],
                notes: vec![(Bytes::from_static(b"clock"), Some(Bytes::copy_from_slice(&[number / 7])))],
            };
            (0..200).map(change).collect()
        };
        let mut expected = Vec::new();
        for change in changes(apart_generation) {
            expected.extend(one_by_one.apply([&change]).expect("it is in memory"));
        }
        assert_eq!(at_once.apply(&changes(generation)).expect("it is in memory"), expected);
        assert_eq!(expected.iter().filter(|made| **made).count(), 180);
        let seen = |keys: &Keys| {
            (keys.range(&(..), 1000).expect("it reads"), keys.notes(None, 1000).expect("it reads"), keys.entries())
        };
        assert_eq!(seen(&at_once), seen(&one_by_one));
        let state = at_once.state().head;
        at_once.check(at_once.count(&(0..256)).expect("it reads")).expect("it reads");
        assert_eq!((at_once.state().head, state.is_some()), (state, true), "what is written adds up to its sum");
        let batches = |index: &Counting| index.1.lock().expect("nothing panics").clone();
        assert_eq!(batches(&apart).len(), 180);
        let batches = batches(&together);
        // The note and the head go once with each.
        assert!(batches.len() <= 4 && batches.iter().all(|writes| *writes <= MAX_BATCH + 1), "{batches:?}");
    }
}
