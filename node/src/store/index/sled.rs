//! The index in sled 0.34.
//!
//! Its `flush` alone is not durable (measured: acknowledged entries were lost in every simulated power cut), so
//! its `db` file is synced once more. It panics where its file is damaged: every call is caught.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Index, Look, Pair, StoreError, Write};
use crate::store::quiet::quietly;

/// sled's page cache, by what its pages take in the file; in memory they take four times as much. Enough for the inner
/// nodes of millions of entries: leaves are read from the system's cache.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
/// How often sled's own thread writes out what `apply` without `sync` left (metadata only) and cleans its file.
/// Without that thread the file is never cleaned.
const FLUSH_MILLISECONDS: u64 = 1000;

/// How long one that was closed just now may still hold its lock: its threads have little to end.
const LOCKED: Duration = Duration::from_secs(2);

/// An open sled.
pub(in crate::store) struct SledIndex {
    // An option so that `drop` can catch the panic of a damaged one.
    tree: Option<sled::Db>,
    file: File,
}

impl SledIndex {
    /// Opens the index in `directory`, or makes it.
    pub(in crate::store) fn open(directory: &Path) -> Result<Self, StoreError> {
        let config = sled::Config::new()
            .path(directory)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(Some(FLUSH_MILLISECONDS));
        // Its threads let go of the file a moment after it was dropped.
        let started = Instant::now();
        let tree = loop {
            match caught(|| config.open()) {
                // It has no error of its own for that.
                Err(StoreError::Index(reason)) if reason.contains("acquire lock") && started.elapsed() < LOCKED => {
                    thread::sleep(LOCKED / 100);
                }
                opened => break opened?,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(directory.join("db"))
            .map_err(|error| StoreError::Index(format!("its file cannot be opened: {error}")))?;
        Ok(Self { tree: Some(tree), file })
    }

    fn tree(&self) -> Result<&sled::Db, StoreError> {
        self.tree.as_ref().ok_or(StoreError::Closed)
    }
}

impl Drop for SledIndex {
    fn drop(&mut self) {
        let tree = self.tree.take();
        // A damaged sled may panic while it flushes for the last time; what it held is in the segments.
        if let Err(panic) = quietly(move || drop(tree)) {
            tracing::debug!(%panic, "the index failed while it was closed");
        }
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let tree = self.tree()?;
        caught(|| tree.get(key)).map(|found| found.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        let tree = self.tree()?;
        if start >= end {
            return Ok(Vec::new());
        }
        caught(|| {
            tree.range(start..end)
                .take(limit)
                .map(|pair| pair.map(|(key, value)| (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value))))
                .collect()
        })
    }

    fn walk(&self, start: &[u8], end: &[u8], look: &mut Look<'_>) -> Result<(), StoreError> {
        let tree = self.tree()?;
        if start >= end {
            return Ok(());
        }
        let mut seen = Ok(());
        caught(|| {
            for pair in tree.range(start..end) {
                let (key, value) = pair?;
                seen = look(&key, &value);
                if seen.is_err() {
                    break;
                }
            }
            Ok(())
        })?;
        seen
    }

    fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let tree = self.tree()?;
        caught(|| {
            let mut batch = sled::Batch::default();
            for (key, value) in writes {
                match value {
                    Some(value) => batch.insert(key, value),
                    None => batch.remove(key),
                }
            }
            tree.apply_batch(batch)
        })
    }

    fn sync(&self) -> Result<(), StoreError> {
        let tree = self.tree()?;
        caught(|| tree.flush())?;
        self.file.sync_data().map_err(|error| StoreError::Index(format!("its file cannot be synced: {error}")))
    }
}

fn caught<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match quietly(work) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StoreError::Index(error.to_string())),
        Err(panic) => Err(StoreError::Index(panic)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::memory::MemoryIndex;

    #[test]
    fn a_walk_shows_what_a_range_has_until_it_is_broken_off() {
        let directory = tempfile::tempdir().expect("there is room");
        let indexes: [Box<dyn Index>; 2] =
            [Box::new(SledIndex::open(directory.path()).expect("it opens")), Box::new(MemoryIndex::default())];
        for index in indexes {
            // More than a page of the walk that an index without one of its own has.
            for part in (0..3000_u32).collect::<Vec<_>>().chunks(60) {
                let writes = part.iter().map(|number| (number.to_be_bytes().to_vec(), Some(vec![1; 40]))).collect();
                index.apply(writes).expect("it writes");
            }
            for (start, end, limit) in
                [(0_u32, 3000_u32, 9999), (5, 2053, 9999), (7, 7, 9999), (9, 4, 9999), (5, 2053, 1500)]
            {
                let mut seen = Vec::new();
                let walked = index.walk(&start.to_be_bytes(), &end.to_be_bytes(), &mut |key, value| {
                    seen.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                    if seen.len() < limit { Ok(()) } else { Err(StoreError::Closed) }
                });
                let found = index.range(&start.to_be_bytes(), &end.to_be_bytes(), limit).expect("it reads");
                assert_eq!(walked.is_err(), found.len() == limit, "{start} {end} {limit}");
                assert!(seen == found, "{start} {end} {limit}: {} and {}", seen.len(), found.len());
            }
        }
    }
}
