//! Which cache gives way next: the least recently used, of a sample where there are many.
//!
//! Chunk keys are hashes, so a range of them is a random sample (Redis's approximated LRU, with a sample so large
//! that a store of few caches is ordered exactly).

use std::collections::VecDeque;

use p2p_protocol::Key;

use super::{
    StoreError,
    index::table::{Mark, Table},
    shared::Shared,
};

/// Caches looked at at once: about ten milliseconds of index reads.
pub(super) const SAMPLE: usize = 4096;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Evictor {
    /// Candidates, oldest first, with the use that they were ordered by.
    candidates: VecDeque<(Key, u64)>,
    /// Where the next sample begins.
    cursor: Option<Key>,
}

impl Evictor {
    /// The next candidate; whoever asks checks that it is still a cache. `None`: there is none left.
    pub(super) fn next(&mut self, table: &Table, shared: &Shared) -> Result<Option<Key>, StoreError> {
        // Every candidate that is passed over has been used since, so a second round finds others or the same again.
        for _ in 0..2 {
            while let Some((key, used)) = self.candidates.pop_front() {
                if shared.recency().used(&key.0) == used {
                    return Ok(Some(key));
                }
            }
            self.refill(table, shared)?;
        }
        Ok(self.candidates.pop_front().map(|(key, _)| key))
    }

    fn refill(&mut self, table: &Table, shared: &Shared) -> Result<(), StoreError> {
        let mut keys = table.marked(Mark::Cache, self.cursor, SAMPLE)?;
        if keys.len() < SAMPLE && self.cursor.is_some() {
            // Around the end of the keyspace, without looking at a key twice.
            let mut rest = table.marked(Mark::Cache, None, SAMPLE - keys.len())?;
            rest.retain(|key| self.cursor.is_some_and(|cursor| *key <= cursor));
            keys.append(&mut rest);
        }
        self.cursor = keys.last().copied();
        let all = keys.len() < SAMPLE;
        let mut aged = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(held) = table.chunk(&key)? {
                aged.push((shared.recency().used(&key.0), held.location, key));
            }
        }
        aged.sort_unstable();
        if !all {
            aged.truncate(SAMPLE / 4);
        }
        self.candidates = aged.into_iter().map(|(used, _, key)| (key, used)).collect();
        Ok(())
    }
}
