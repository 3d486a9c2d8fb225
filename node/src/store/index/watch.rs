//! Which parts of the keyspace changed in the index since somebody looked: a bit for each prefix of 16 bits.
//!
//! It stands between the index and everybody who writes to it, so that no change is missed, whatever the reason: what is
//! put, listed, unlisted, removed, found damaged or moved. An index that takes the place of another one counts as changed
//! everywhere.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use super::{Index, Look, Pair, StoreError, Write, keys, table};
use crate::store::record::array;

/// Prefixes of 16 bits in words of 64.
const WORDS: usize = (1 << 16) / 64;

/// An index, and what changed in it.
pub(in crate::store) struct Watched {
    index: Arc<dyn Index>,
    changed: Box<[AtomicU64; WORDS]>,
    /// The generation of the key table that counted last.
    generation: AtomicU64,
}

impl Watched {
    /// All of it counts as changed.
    pub(in crate::store) fn new(index: Arc<dyn Index>) -> Self {
        let changed = Box::new([const { AtomicU64::new(u64::MAX) }; WORDS]);
        Self { index, changed, generation: AtomicU64::new(0) }
    }

    /// The prefixes under which a chunk or an entry of the key table may be another one than when this was asked last,
    /// ascending.
    pub(in crate::store) fn take_changed(&self) -> Vec<u16> {
        let mut prefixes = Vec::new();
        for (word, bits) in (0_u16..).zip(self.changed.iter()) {
            // Most of the time nothing changed, and a look costs less than an exchange.
            let mut bits = if bits.load(Ordering::Acquire) == 0 { 0 } else { bits.swap(0, Ordering::AcqRel) };
            while bits != 0 {
                // Under 64.
                prefixes.push(word * 64 + bits.trailing_zeros() as u16);
                bits &= bits - 1;
            }
        }
        prefixes
    }

    fn mark(&self, prefix: u16) {
        self.changed[usize::from(prefix) / 64].fetch_or(1 << (prefix % 64), Ordering::AcqRel);
    }
}

/// The first 16 bits of the Kademlia key that a key of the index is of.
fn prefix(key: &[u8]) -> Option<u16> {
    let of = table::kademlia_key(key).or_else(|| keys::kademlia_key(key))?;
    array(of, 0).map(u16::from_be_bytes)
}

impl Index for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.index.get(key)
    }

    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.index.range(start, end, limit)
    }

    fn walk(&self, start: &[u8], end: &[u8], look: &mut Look<'_>) -> Result<(), StoreError> {
        self.index.walk(start, end, look)
    }

    fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let prefixes: Vec<u16> = writes.iter().filter_map(|(key, _)| prefix(key)).collect();
        let generation = writes.iter().rev().find_map(|(key, value)| keys::generation(key, value.as_deref()));
        self.index.apply(writes)?;
        // After the change can be seen: who looks in between sees the old state and is told of the new one later.
        prefixes.into_iter().for_each(|prefix| self.mark(prefix));
        if let Some(generation) = generation
            && self.generation.swap(generation, Ordering::AcqRel) != generation
        {
            self.changed.iter().for_each(|bits| bits.store(u64::MAX, Ordering::Release));
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.index.sync()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, OnceLock, Weak};

    use super::*;
    use crate::store::index::memory::MemoryIndex;

    /// An index at which somebody looks for changes while one is under way and cannot be seen yet.
    #[derive(Default)]
    struct Looked {
        index: MemoryIndex,
        watched: OnceLock<Weak<Watched>>,
        seen: Mutex<Vec<u16>>,
    }

    impl Index for Looked {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.index.get(key)
        }

        fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
            self.index.range(start, end, limit)
        }

        fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
            if let Some(watched) = self.watched.get().and_then(Weak::upgrade) {
                self.seen.lock().expect("nobody panics").extend(watched.take_changed());
            }
            self.index.apply(writes)
        }

        fn sync(&self) -> Result<(), StoreError> {
            self.index.sync()
        }
    }

    #[test]
    fn who_looks_while_a_change_is_under_way_is_told_of_it_later() {
        let index = Arc::new(Looked::default());
        let watched = Arc::new(Watched::new(index.clone()));
        index.watched.set(Arc::downgrade(&watched)).expect("once");
        assert_eq!(watched.take_changed().len(), 1 << 16, "all of a new one");
        let mut key = p2p_protocol::Key([0; 32]);
        (key.0[0], key.0[1]) = (0x12, 0x34);
        watched.apply(vec![(table::chunk_key(&key), Some(b"a chunk".to_vec()))]).expect("it is kept");
        assert!(index.seen.lock().expect("nobody panics").is_empty(), "it could not be seen yet");
        assert_eq!((watched.take_changed(), watched.take_changed()), (vec![0x1234], vec![]));
    }
}
