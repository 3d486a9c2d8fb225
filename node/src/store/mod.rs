//! The store: segments hold the truth, sled is the index.
//!
//! Chunks, deletions and values are records that are appended to segment
//! files; the index says where each is, and is made again from them whenever it is missing or damaged. One writer
//! commits batches (`writer.rs` has the order that makes an acknowledgement true), readers go through the index to the
//! segments and verify what they read, and a compaction copies what is live out of segments that are mostly dead. Why
//! a chunk is kept is not known here, and none is dropped unless that is asked for: a store without room takes no more.
//! Beside what the log says, the index holds a table of small values by key that is derived elsewhere (`key_table.rs`).
//! The formats are in protocol/SPEC.md, "On disk".

mod census;
mod compact;
mod count;
mod disk;
mod draft;
mod erase;
mod error;
mod index;
mod key_table;
mod layout;
mod log;
mod quiet;
mod read;
mod record;
mod recover;
mod replay;
mod scrub;
mod segment;
mod shared;
#[cfg(test)]
mod tests;
mod threads;
mod usage;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Sender},
    },
    thread,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use p2p_protocol::{Chunk, Key, Multihash};
use tokio::{
    sync::{Semaphore, oneshot},
    task,
};

use self::{
    compact::{Compaction, Stop},
    disk::{Disk, SystemDisk},
    draft::Counters,
    index::{
        memory::MemoryIndex,
        table::{HeldValue, Table},
    },
    layout::Layout,
    log::{MemoryLog, Payloads},
    read::Source,
    record::{MAX_KEY_BYTES, MAX_VALUE_BYTES},
    shared::{IndexState, Read, ReadValue, Shared},
    threads::WriterThread,
    writer::{Answer, Operation, Outcome, Request, Writer, blamed},
};
pub use self::{
    error::StoreError,
    key_table::{
        Edit, KeyTable, MAX_NOTE_BYTES, MAX_NOTE_NAME_BYTES, MAX_TABLE_CHANGES, MAX_TABLE_VALUE_BYTES, Merge, Rebuild,
        TableChange,
    },
    scrub::{Pass, PassPosition},
    usage::{Entry, Put, Removed, Usage},
};

/// Bytes of a segment file (small enough to be compacted in seconds, large enough for few files).
const SEGMENT_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes that puts leave free on the disk: for deletions, the index and a compaction, which make room again.
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of puts that may be under way: two batches.
const QUEUE_BYTES: u32 = 32 * 1024 * 1024;
/// What every operation takes of the queue beside its payload: at most 32,768 are under way.
const OPERATION_BYTES: u32 = 1024;
/// Chunks that are verified at once without being read out: each takes a thread and at most 2 MiB (guess: as many as
/// keep a disk busy).
const VERIFYING: usize = 4;
/// Hashes or records that one operation is about: what one batch of the index takes.
const PART: usize = 64;
/// Operations that one call with many hashes has under way: they share a sync, and whoever comes meanwhile waits for no
/// more than these.
const PARTS_AT_ONCE: usize = 4;
/// The same of records: they are small, and sixteen parts take little longer to sync than four (measured on a busy
/// machine: 200,000 records of 600 bytes took 19.9 s with 4 parts at once, and 9.1 s with 16).
const RECORD_PARTS_AT_ONCE: usize = 16;

/// What tests make smaller.
#[derive(Clone, Copy, Debug)]
struct Tuning {
    segment_bytes: u64,
    reserve_bytes: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES, reserve_bytes: RESERVE_BYTES }
    }
}

/// The handle: clone it freely. When the last one is dropped the store closes by itself, soon; [`Store::close`] waits.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    door: Door,
}

/// The way to the writer.
enum Door {
    /// It has a thread.
    Thread { sender: Sender<Operation>, queue: Arc<Semaphore>, verifying: Arc<Semaphore> },
    /// Whoever asks does the work.
    Inline(Box<Mutex<Option<Writer>>>),
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Door::Thread { sender, .. } = &self.door {
            let (reply, _) = oneshot::channel();
            // Closed already: then there is nothing left to do.
            let _ = sender.send(Operation { request: Request::Close, reply, permit: None });
        }
    }
}

impl Store {
    /// Opens (or makes) the store in `dir`, taking its lock; rebuilds the index where that is needed. Blocks.
    /// `capacity_bytes`: the most that chunks may take, for this run only; `None`: what was remembered at an earlier
    /// start, else 80 % of the space free now, which is then remembered.
    pub fn open(dir: &Path, capacity_bytes: Option<u64>) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(SystemDisk), dir, capacity_bytes, Tuning::default())
    }

    /// The lock and the small files of the data directory are always on the system's disk.
    fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        capacity_bytes: Option<u64>,
        tuning: Tuning,
    ) -> Result<Self, StoreError> {
        let layout = Layout::open(dir)?;
        let capacity_bytes = layout.capacity(capacity_bytes)?;
        let writer = writer::open(&disk, dir, capacity_bytes, tuning)?;
        let shared = Arc::clone(&writer.shared);
        let (sender, receiver) = mpsc::channel();
        // One segment at a time: the next is chosen when the one before is done.
        let (jobs, todo) = mpsc::sync_channel(1);
        let stop = Arc::new(Stop::default());
        let asking = sender.clone();
        let ask = move |request| {
            let (reply, answer) = oneshot::channel();
            asking.send(Operation { request, reply, permit: None }).map_err(|_| StoreError::Closed)?;
            answer.blocking_recv().map_err(|_| StoreError::Closed)?.map(drop)
        };
        let (shared_too, directory) = (Arc::clone(&shared), layout.segments.clone());
        let compaction =
            Compaction { shared: shared_too, disk, directory, ask: Box::new(ask), stop: Arc::clone(&stop) };
        let spawning = |source| StoreError::Io { doing: "starting a thread".into(), source: Arc::new(source) };
        let builder = thread::Builder::new().name("store-compaction".into());
        let compaction = builder.spawn(move || compaction.run(&todo)).map_err(spawning)?;
        let thread = WriterThread {
            writer,
            receiver,
            jobs,
            compacting: false,
            stuck: BTreeSet::new(),
            stop,
            compaction,
            layout,
        };
        thread::Builder::new().name("store-writer".into()).spawn(move || thread.run()).map_err(spawning)?;
        let queue = Arc::new(Semaphore::new(QUEUE_BYTES as usize));
        let verifying = Arc::new(Semaphore::new(VERIFYING));
        Ok(Self { inner: Arc::new(Inner { shared, door: Door::Thread { sender, queue, verifying } }) })
    }

    /// A store in memory with the same behaviour, for simulations: no threads, no blocking.
    pub fn in_memory(capacity_bytes: u64) -> Self {
        let payloads = Payloads::default();
        let table = Table::new(Arc::new(MemoryIndex::default())).expect("an empty map in memory reads");
        let shared = Arc::new(Shared {
            index: RwLock::new(IndexState::Open(table)),
            source: Source::Memory(Arc::clone(&payloads)),
            counters: Mutex::new(Counters::default()),
            healing: AtomicBool::new(false),
            batches: AtomicU64::new(0),
            capacity_bytes,
            full: AtomicBool::new(false),
            disk: None,
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
            log: Box::new(MemoryLog::new(payloads)),
            live: BTreeMap::new(),
            kept: BTreeMap::new(),
            index_paths: None,
        };
        Self { inner: Arc::new(Inner { shared, door: Door::Inline(Box::new(Mutex::new(Some(writer)))) }) }
    }

    /// Keeps a chunk; returns when it is on disk. One that is here already is verified first, and written
    /// anew, as [`Put::New`], where it is damaged. Puts that are under way at once are done in any order. Waits while the
    /// queue is full. A dropped future may leave the chunk kept all the same. [`StoreError::NoSpace`] harms nobody else.
    pub async fn put(&self, chunk: Chunk) -> Result<Put, StoreError> {
        self.put_checked(chunk, None).await.map(|(put, _)| put)
    }

    async fn put_checked(&self, chunk: Chunk, change: Option<TableChange>) -> Result<(Put, bool), StoreError> {
        // A chunk's constructors bound its length.
        let bytes = chunk.len() as u32;
        let hash = chunk.cid().hash;
        match self.verify(&hash).await {
            Ok(_) => {}
            // The writer makes the index anew before it does anything, if there is room for one.
            Err(StoreError::Index(_) | StoreError::NoSpace { .. }) => {
                self.ask(Request::Heal, 0).await?;
                self.verify(&hash).await?;
            }
            // What is here could not be read: nobody can say that it is intact.
            Err(error) => return Err(error),
        }
        let request = match change {
            None => Request::Put(chunk),
            Some(change) => Request::PutWith(chunk, change),
        };
        match self.ask(request, bytes).await? {
            Answer::Put(put) => Ok((put, false)),
            Answer::PutWith(put, changed) => Ok((put, changed)),
            // The writer answers a put with nothing else (`Writer::plan`).
            Answer::Done | Answer::Removed(_) | Answer::Table(_) => unreachable!("a put is answered as one"),
        }
    }

    /// What the index says.
    pub fn entry(&self, hash: &Multihash) -> Result<Option<Entry>, StoreError> {
        self.healing(self.inner.shared.entry(&Key::from(hash)))
    }

    /// The chunk, verified; one that is damaged is set aside, said in the log, and `None`.
    pub async fn get(&self, hash: &Multihash) -> Result<Option<Chunk>, StoreError> {
        let (shared, hash) = (Arc::clone(&self.inner.shared), *hash);
        let read = match &self.inner.door {
            Door::Inline(_) => shared.read_or_set_aside(&hash),
            Door::Thread { .. } => {
                let read = task::spawn_blocking(move || shared.read_or_set_aside(&hash));
                read.await.map_err(|_| StoreError::Closed)?
            }
        };
        match self.healing(read)? {
            Read::Chunk(chunk) => Ok(Some(chunk)),
            Read::Missing => Ok(None),
            Read::Damaged(held) => {
                self.ask(Request::Damaged(hash, held.location), 0).await?;
                Ok(None)
            }
        }
    }

    /// What the index says of a chunk whose bytes were just read and are intact: what may be confirmed to others. One
    /// that is damaged is set aside, said in the log, and `None`. A few are read at once, the others wait.
    pub async fn verify(&self, hash: &Multihash) -> Result<Option<Entry>, StoreError> {
        // Most that is put is new, and has nothing to be read.
        if self.entry(hash)?.is_none() {
            return Ok(None);
        }
        let found = match &self.inner.door {
            Door::Inline(_) => self.get(hash).await?,
            Door::Thread { verifying, .. } => {
                let (store, verifying, hash) = (self.clone(), Arc::clone(verifying), *hash);
                // In a task: whoever is next in line for a place takes it though nobody waits any more.
                let read = task::spawn(async move {
                    let _place = verifying.acquire_owned().await;
                    store.get(&hash).await
                });
                read.await.map_err(|_| StoreError::Closed)??
            }
        };
        if found.is_some() { self.entry(hash) } else { Ok(None) }
    }

    /// Removes those that are here, and says what that was of; returns when it is on disk. Those that were
    /// [damaged](Self::damaged) are not remembered any more.
    /// However many there are, others are served between them. A dropped future may leave some of it done.
    pub async fn remove(&self, hashes: Vec<Multihash>) -> Result<Removed, StoreError> {
        self.ask_for_parts(&hashes, PARTS_AT_ONCE, |part| (Request::Remove(part), 0)).await
    }

    /// Which of these keys, ascending, have a chunk here; cheaper than to ask for each where most have.
    pub fn present(&self, keys: &[Key]) -> Result<Vec<bool>, StoreError> {
        self.with(|table| table.present(keys))
    }

    /// Up to `limit` entries in key order, strictly after `after`.
    pub fn scan(&self, after: Option<Key>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let found = self.with(|table| table.chunks(after, limit));
        Ok(found?.into_iter().map(|(_, held)| held.entry).collect())
    }

    /// Up to `limit` chunks, in key order and strictly after `after`, that were damaged and have not been put again.
    pub fn damaged(&self, after: Option<Key>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.with(|table| table.all_damaged(after, limit))
    }

    /// Whether what is here can be found now; cheap.
    pub fn check(&self) -> Result<(), StoreError> {
        self.with(|_| Ok(()))
    }

    /// What it holds now; cheap.
    pub fn usage(&self) -> Usage {
        self.inner.shared.usage()
    }

    /// Appends to the log what could not be derived again (entries of the catalogue); last writer wins by `key`.
    /// Durable on return. A key has at most 512 bytes, a value at most 64 KiB.
    pub async fn put_record(&self, key: Bytes, value: Bytes) -> Result<(), StoreError> {
        self.change_records(vec![(key, Some(value))]).await
    }

    /// Removes a record, if it is here; durable on return: it does not come back.
    pub async fn remove_record(&self, key: Bytes) -> Result<(), StoreError> {
        self.change_records(vec![(key, None)]).await
    }

    /// Keeps each record whose value is given and removes the others; durable on return, with a few syncs for all. A
    /// key stands in it once. A failure, a crash or a dropped future may leave any part of it done.
    pub async fn change_records(&self, changes: Vec<(Bytes, Option<Bytes>)>) -> Result<(), StoreError> {
        let long = |(key, value): &(Bytes, Option<Bytes>)| {
            key.len() > MAX_KEY_BYTES || value.as_ref().is_some_and(|value| value.len() > MAX_VALUE_BYTES)
        };
        if changes.iter().any(long) {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the key or the value is too long");
            return Err(StoreError::Io { doing: "keeping a record".into(), source: Arc::new(source) });
        }
        let request = |part: Vec<(Bytes, Option<Bytes>)>| {
            let bytes = part.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len)).sum::<usize>();
            // At most 64 of 65 KiB.
            (Request::Values(part), bytes as u32)
        };
        self.ask_for_parts(&changes, RECORD_PARTS_AT_ONCE, request).await.map(drop)
    }

    /// The value of a record, read from the log. One that is damaged is `None` from then on. Blocks, on disk.
    pub fn record(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.with(|table| table.value(key))? {
            Some(held) => self.read_value(key, held),
            None => Ok(None),
        }
    }

    /// Records whose keys begin with `prefix`: up to `limit` in key order, strictly after `after`, without those that
    /// are damaged. All of them are a page after the other, each from the last key of the one before; fewer than
    /// `limit` are the last. Blocks, on disk: a value at a time is read from the log.
    pub fn records(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let mut found = Vec::new();
        let mut after = after.map(Bytes::copy_from_slice);
        // What is left out because it is damaged does not end the page.
        while found.len() < limit {
            let page = self.with(|table| table.values(prefix, after.as_deref(), limit - found.len()))?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, held) in page {
                let value = self.read_value(&key, held)?;
                found.extend(value.map(|value| (key, value)));
            }
        }
        Ok(found)
    }

    /// The value of `key`, which the index just said to be `held`. One that is damaged is forgotten.
    fn read_value(&self, key: &[u8], held: HeldValue) -> Result<Option<Bytes>, StoreError> {
        match self.healing(self.inner.shared.read_value(key, held))? {
            ReadValue::Value(value) => Ok(Some(value)),
            ReadValue::Missing => Ok(None),
            ReadValue::Damaged(HeldValue { location, .. }) => {
                tracing::warn!(
                    segment = location.segment,
                    offset = location.offset,
                    "a record is damaged; it is forgotten"
                );
                if let Door::Thread { sender, .. } = &self.inner.door {
                    let (reply, _) = oneshot::channel();
                    let request = Request::DamagedValue(Bytes::copy_from_slice(key), location);
                    // Closed: whoever reads it next finds the same.
                    let _ = sender.send(Operation { request, reply, permit: None });
                }
                Ok(None)
            }
        }
    }

    /// Small derivable metadata in the index (catalogue of others, peers, settings): `tree` names a key space and has
    /// at most 255 bytes; lost when the index is rebuilt. On disk within about a second, or with the next put.
    pub fn set_meta(&self, tree: &str, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.with(|table| table.set_meta(tree, key, Some(value)))
    }

    /// Removes one.
    pub fn remove_meta(&self, tree: &str, key: &[u8]) -> Result<(), StoreError> {
        self.with(|table| table.set_meta(tree, key, None))
    }

    /// All of a key space, in key order.
    pub fn meta(&self, tree: &str) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.with(|table| table.meta(tree))
    }

    /// Ends what is under way, flushes, releases the lock: on return the same process can open it again. Everything
    /// that was asked before is done; what is asked after gets [`StoreError::Closed`].
    pub async fn close(&self) -> Result<(), StoreError> {
        match &self.inner.door {
            Door::Thread { .. } => match self.ask(Request::Close, 0).await {
                Ok(_) | Err(StoreError::Closed) => Ok(()),
                Err(error) => Err(error),
            },
            Door::Inline(writer) => {
                if let Some(mut writer) = writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    writer.close();
                }
                Ok(())
            }
        }
    }

    /// Asks for parts of `items`, `at_once` at a time; `request` makes an operation and its payload bytes of each. Gives
    /// what they removed.
    async fn ask_for_parts<T: Clone>(
        &self,
        items: &[T],
        at_once: usize,
        request: impl Fn(Vec<T>) -> (Request, u32),
    ) -> Result<Removed, StoreError> {
        let mut total = Removed::default();
        let mut asked = FuturesUnordered::new();
        let mut parts = items.chunks(PART);
        loop {
            while asked.len() < at_once
                && let Some(part) = parts.next()
            {
                let (request, bytes) = request(part.to_vec());
                asked.push(self.ask(request, bytes));
            }
            match asked.next().await {
                Some(Ok(Answer::Removed(removed))) => {
                    total.chunks += removed.chunks;
                    total.bytes += removed.bytes;
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(total),
            }
        }
    }

    async fn ask(&self, request: Request, payload_bytes: u32) -> Outcome {
        let (reply, answer) = oneshot::channel();
        match &self.inner.door {
            Door::Inline(writer) => {
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(writer) = writer.as_mut() else { return Err(StoreError::Closed) };
                writer.commit(vec![Operation { request, reply, permit: None }]);
            }
            Door::Thread { sender, queue, .. } => {
                let share = payload_bytes.saturating_add(OPERATION_BYTES).min(QUEUE_BYTES);
                let permit = Arc::clone(queue).acquire_many_owned(share).await.map_err(|_| StoreError::Closed)?;
                let operation = Operation { request, reply, permit: Some(permit) };
                sender.send(operation).map_err(|_| StoreError::Closed)?;
            }
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `work` on the index.
    fn with<T>(&self, work: impl FnOnce(&Table) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.healing(self.inner.shared.with(work))
    }

    /// Has what does not count any more of the key table removed: in the background, or here where there is none.
    fn sweep(&self) {
        match &self.inner.door {
            Door::Thread { sender, .. } => {
                let (reply, _) = oneshot::channel();
                // The writer looks for what is to be done after each commit, also one of nothing. Closed: the next
                // start does.
                let _ = sender.send(Operation { request: Request::Heal, reply, permit: None });
            }
            // What failed is found again by the next sweep.
            Door::Inline(_) => while let Ok(true) = self.with(|table| table.keys().sweep(PART)) {},
        }
    }

    /// Lets the writer make the index again if it failed; where the disk has no room for that, says so.
    fn healing<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let (Err(StoreError::Index(_)), Door::Thread { sender, .. }) = (&outcome, &self.inner.door)
            && !self.inner.shared.healing.swap(true, Ordering::SeqCst)
        {
            let (reply, _) = oneshot::channel();
            // Closed: then nothing has to be made again.
            let _ = sender.send(Operation { request: Request::Heal, reply, permit: None });
        }
        outcome.map_err(|error| blamed(error, 0, self.inner.shared.free_on_disk()))
    }
}
