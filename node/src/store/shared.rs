//! What the handles, the writer and the compaction share: the index, the source of payloads, the counters.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use p2p_protocol::{Chunk, Key, Multihash};

use super::{
    Entry, StoreError, Usage,
    disk::Disk,
    draft::Counters,
    index::table::{Held, HeldValue, Table},
    read::Source,
    segment::unreadable,
    usage::is_full,
};

/// How often a read asks the index again where the chunk is, when it was not where the index said: each time a whole
/// compaction must have gone by.
const READ_TRIES: usize = 8;

/// The index, as it stands.
pub(super) enum IndexState {
    /// It can be used.
    Open(Table),
    /// It failed; the writer makes it again.
    Failed(String),
    /// The store is closed.
    Closed,
}

/// See the module's text.
pub(super) struct Shared {
    pub(super) index: RwLock<IndexState>,
    pub(super) source: Source,
    pub(super) counters: Mutex<Counters>,
    /// The writer has been asked to make the index again: one request at a time.
    pub(super) healing: AtomicBool,
    /// Batches that were committed, each with its two syncs.
    pub(super) batches: AtomicU64,
    pub(super) capacity_bytes: u64,
    /// What [`Usage::full`] was when it was asked for last.
    pub(super) full: AtomicBool,
    /// Where free space is asked for, and how much of it is left alone.
    pub(super) disk: Option<(Arc<dyn Disk>, PathBuf, u64)>,
}

/// What a read gave.
pub(super) enum Read {
    /// The chunk.
    Chunk(Chunk),
    /// It is not here.
    Missing,
    /// It is here, and damaged.
    Damaged(Held),
}

/// What a read of a value gave.
pub(super) enum ReadValue {
    /// The value.
    Value(Bytes),
    /// It is not here any more.
    Missing,
    /// It is here, and damaged.
    Damaged(HeldValue),
}

impl Shared {
    /// Runs `work` on the index; a failure of it is remembered, so that the writer makes the index again.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Table) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let outcome = match &*self.index.read().unwrap_or_else(PoisonError::into_inner) {
            IndexState::Open(table) => work(table),
            IndexState::Failed(reason) => return Err(StoreError::Index(reason.clone())),
            IndexState::Closed => return Err(StoreError::Closed),
        };
        if let Err(StoreError::Index(reason)) = &outcome {
            self.fail(reason);
        }
        outcome
    }

    /// Takes the index out of use.
    pub(super) fn fail(&self, reason: &str) {
        let mut state = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*state, IndexState::Open(_)) {
            tracing::warn!(%reason, "the index failed; it is made again from the log");
            *state = IndexState::Failed(reason.to_owned());
        }
    }

    /// Puts `state` in its place; the old index is closed on return.
    pub(super) fn replace(&self, state: IndexState) {
        let old = std::mem::replace(&mut *self.index.write().unwrap_or_else(PoisonError::into_inner), state);
        drop(old);
    }

    pub(super) fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn entry(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.with(|table| Ok(table.chunk(key)?.map(|held| held.entry)))
    }

    /// Reads and verifies. Blocks, on disk.
    pub(super) fn read(&self, hash: &Multihash) -> Result<Read, StoreError> {
        let key = Key::from(hash);
        let mut last: Option<Held> = None;
        for _ in 0..READ_TRIES {
            let Some(held) = self.with(|table| table.chunk(&key))? else { return Ok(Read::Missing) };
            if last.is_some_and(|last| last.location == held.location) {
                return Ok(Read::Damaged(held));
            }
            match self.source.payload(held.location, held.entry.length) {
                Ok(bytes) => {
                    if let Ok(chunk) = Chunk::verify(held.entry.cid, bytes) {
                        return Ok(Read::Chunk(chunk));
                    }
                }
                // The segment is gone or too short (it may have been compacted meanwhile), or the disk cannot read it.
                Err(error) if error.kind() == io::ErrorKind::NotFound || unreadable(&error) => {}
                Err(source) => {
                    return Err(StoreError::Io {
                        doing: format!("reading chunk {}", held.entry.cid),
                        source: Arc::new(source),
                    });
                }
            }
            last = Some(held);
        }
        // It moved each time: it is here, and a later try will find it.
        Err(StoreError::Io { doing: "reading a chunk".into(), source: Arc::new(io::ErrorKind::Interrupted.into()) })
    }

    /// Reads the value of `key`, which the index just said to be `held`. Blocks, on disk.
    pub(super) fn read_value(&self, key: &[u8], held: HeldValue) -> Result<ReadValue, StoreError> {
        let mut held = held;
        for _ in 0..READ_TRIES {
            match self.source.value(key, held.location, &held.content) {
                Ok(Some(value)) => return Ok(ReadValue::Value(value)),
                Ok(None) => {}
                // As of a chunk.
                Err(error) if error.kind() == io::ErrorKind::NotFound || unreadable(&error) => {}
                Err(source) => {
                    return Err(StoreError::Io { doing: "reading a record".into(), source: Arc::new(source) });
                }
            }
            match self.with(|table| table.value(key))? {
                None => return Ok(ReadValue::Missing),
                Some(found) if found == held => return Ok(ReadValue::Damaged(held)),
                Some(found) => held = found,
            }
        }
        Err(StoreError::Io { doing: "reading a record".into(), source: Arc::new(io::ErrorKind::Interrupted.into()) })
    }

    /// Reads and verifies; what is damaged is set aside. Blocks, on disk.
    pub(super) fn read_or_set_aside(&self, hash: &Multihash) -> Result<Read, StoreError> {
        let read = self.read(hash);
        if let Ok(Read::Damaged(held)) = &read {
            self.set_aside(held);
        }
        read
    }

    /// Says that a chunk is damaged, and keeps its record for whoever wants to look at it. Blocks.
    pub(super) fn set_aside(&self, held: &Held) {
        let cid = held.entry.cid;
        let kept = self.source.set_aside(&cid.to_string(), held.location, held.entry.length);
        let kept = kept.map_or_else(|| "nowhere".to_owned(), |path| path.display().to_string());
        tracing::warn!(%cid, segment = held.location.segment, offset = held.location.offset, %kept, "a chunk is damaged and was set aside; it will be fetched again");
    }

    /// Bytes free on the disk, above what is left alone; as many as there may be, where nobody can say.
    pub(super) fn free_on_disk(&self) -> u64 {
        let Some((disk, directory, reserve)) = &self.disk else { return u64::MAX };
        disk.free_bytes(directory).map_or(u64::MAX, |free| free.saturating_sub(*reserve))
    }

    pub(super) fn usage(&self) -> Usage {
        let counters = *self.counters();
        let under_capacity = self.capacity_bytes.saturating_sub(counters.used_bytes());
        let free_bytes = under_capacity.min(self.free_on_disk());
        let full = is_full(self.full.load(Ordering::Relaxed), counters.used_bytes(), free_bytes);
        self.full.store(full, Ordering::Relaxed);
        Usage {
            full,
            chunks: counters.chunks,
            bytes: counters.payload_bytes,
            capacity_bytes: self.capacity_bytes,
            free_bytes,
        }
    }
}
