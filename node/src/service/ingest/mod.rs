//! Reading files, trees and streams into chunks, and sending those on their way to be kept.
//!
//! Three things overlap: a blocking step reads, cuts, hashes and links the next batch ([`tree`], [`stream`]), the
//! chunks of earlier batches are being kept and replicated ([`Job::submit`]), and nothing waits for an order among
//! them, because the DAG is settled where it is read. At the end its distinct chunks, which were sorted on disk meanwhile,
//! become its listing ([`listing`]). No blocking step ever waits for the async side, so that the
//! service runs under a paused clock too. Bytes in flight are bounded by [`IN_FLIGHT_BYTES`].

mod error;
mod faults;
mod leaves;
mod listing;
mod stream;
#[cfg(test)]
mod tests;
mod tree;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{
    StreamExt as _,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use p2p_protocol::{Chunk, Cid, catalogue::Kind, chunker::ChunkerKind, dag::Link, manifest::Listing};
use tokio::{io::AsyncRead, sync::watch};

pub use self::error::AddError;
use self::{stream::StreamReader, tree::TreeReader};
use super::{
    blocking::Blocking,
    distinct::Distinct,
    progress::Progress,
    reason::reason,
    replicate::{Job, Replicate, Report, Wish},
};
use crate::store::{Put, StoreError};

/// Chunk bytes that are on their way from the reader to the store: enough to keep a disk busy while the next are read.
const IN_FLIGHT_BYTES: usize = 24 << 20;
/// Chunks on their way: small files come by the hundred, and the store commits 64 at a time.
const IN_FLIGHT_CHUNKS: usize = 512;
/// Bytes of a batch; with one being read while the window drains, 32 MiB are held at the most.
const BATCH_BYTES: usize = 8 << 20;
/// Chunks of a batch.
const BATCH_CHUNKS: usize = 256;

/// How content is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadOptions {
    /// Where to cut.
    pub chunker: ChunkerKind,
    /// Keep modes and modification times.
    pub preserve: bool,
}

type Result<T, E = AddError> = std::result::Result<T, E>;

/// What was added.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ingested {
    /// The root.
    pub root: Cid,
    /// What it is.
    pub kind: Kind,
    /// Content bytes.
    pub size: u64,
    /// Distinct blocks of the DAG; a manifest's own are not counted.
    pub chunks: u64,
    /// Those that this node did not have before.
    pub chunks_new: u64,
    /// Which they are. Where it is a manifest, that was kept and replicated like the DAG.
    pub listing: Listing,
    /// How replication went.
    pub report: Report,
}

/// Where chunks go as they are made.
pub trait ChunkSink: Sync {
    /// Keeps one; returns whether it was new here. Waits while too much is in flight. Cancel-safe.
    fn submit(&self, chunk: Chunk) -> impl Future<Output = Result<Put, StoreError>> + Send;
    /// Copies that other peers acknowledged so far.
    fn copies(&self) -> u64;
}

impl ChunkSink for Job {
    fn submit(&self, chunk: Chunk) -> impl Future<Output = Result<Put, StoreError>> + Send {
        self.submit(chunk)
    }

    fn copies(&self) -> u64 {
        self.copies()
    }
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Ingest {
    replicate: Replicate,
    data_dir: Option<Arc<Path>>,
    blocking: Blocking,
}

impl Ingest {
    /// Adds through `replicate`; `data_dir` is the node's own, which cannot be added, and whose `tmp` takes what does not
    /// fit into memory (without one, the system's does).
    pub fn new(replicate: Replicate, data_dir: Option<PathBuf>, blocking: Blocking) -> Self {
        Self { replicate, data_dir: data_dir.map(Into::into), blocking }
    }

    /// Adds a file, a tree or a symbolic link, whole: dotfiles, empty directories, links as links. `path` is absolute,
    /// `shown` as the user wrote it. A `path` that is itself a symbolic link is added as a link; with a slash at its end
    /// what it points to is.
    ///
    /// Returns when `wish` is met or cannot be. Dropping the future ends the work; what is stored stays.
    ///
    /// # Errors
    ///
    /// No such path, or something in the tree that cannot be read, changed meanwhile, has a name that is not UTF-8, is
    /// neither file, directory nor link, or is this node's own data directory; the rest was read to its end all the same,
    /// and the first twenty are named. The store is full.
    pub async fn add_path(
        &self,
        path: &Path,
        shown: &str,
        wish: Wish,
        options: ReadOptions,
        progress: &watch::Sender<Progress>,
    ) -> Result<Ingested> {
        let (path, shown_there, data_dir) = (path.to_owned(), shown.to_owned(), self.data_dir.clone());
        let open = move || TreeReader::open(&path, &shown_there, options, data_dir.as_deref());
        let reader = self.blocking.run(open).await??;
        self.add(reader, shown, wish, progress).await
    }

    /// Adds what a reader gives, to its end, as one file. Otherwise as [`add_path`](Self::add_path).
    pub async fn add_stream(
        &self,
        reader: Box<dyn AsyncRead + Send + Unpin>,
        wish: Wish,
        options: ReadOptions,
        progress: &watch::Sender<Progress>,
    ) -> Result<Ingested> {
        let reader = StreamReader::new(reader, options)?;
        self.add(reader, "-", wish, progress).await
    }

    async fn add(
        &self,
        reader: impl Reader,
        shown: &str,
        wish: Wish,
        progress: &watch::Sender<Progress>,
    ) -> Result<Ingested> {
        let job = self.replicate.begin(wish).await;
        let scratch = scratch(self.data_dir.as_deref());
        let read = pump(reader, &job, Distinct::new(&scratch), shown, progress, &self.blocking).await?;
        let report = finish(job, shown, progress).await?;
        let Read { link, kind, chunks, chunks_new, listing } = read;
        Ok(Ingested { root: link.cid, kind, size: link.size, chunks, chunks_new, listing, report })
    }
}

/// Where a node with this data directory puts what does not fit into memory.
pub fn scratch(data_dir: Option<&Path>) -> PathBuf {
    data_dir.map_or_else(std::env::temp_dir, |data| data.join("tmp"))
}

/// Waits for the copies, and tells how many there are meanwhile.
async fn finish(job: Job, shown: &str, progress: &watch::Sender<Progress>) -> Result<Report> {
    progress.send_modify(|progress| {
        progress.copies = job.copies();
        progress.current = None;
    });
    job.finish().await.map_err(|why| store_error(shown, &why))
}

/// The root of a file or tree, with nothing stored and no daemon: what `add --only-hash` prints. Blocks.
///
/// # Errors
///
/// As [`Ingest::add_path`], but for the store's; the node's own data directory is not looked for.
pub fn hash_only(path: &Path, shown: &str, options: ReadOptions) -> Result<Cid> {
    // The chunks are dropped: only the links count.
    read_all(TreeReader::open(path, shown, options, None)?, drop)
}

/// The chunks of a file or a tree, each as often as it stands in it.
#[cfg(test)]
pub(crate) fn chunks_of(path: &Path, options: ReadOptions, give: impl FnMut(Chunk)) -> Result<Cid> {
    read_all(TreeReader::open(path, "it", options, None)?, give)
}

fn read_all(mut reader: TreeReader, mut give: impl FnMut(Chunk)) -> Result<Cid> {
    while !reader.done() {
        let mut batch = Batch::default();
        reader.read(&mut batch);
        batch.chunks.into_iter().for_each(&mut give);
    }
    reader.outcome().map(|(link, _)| link.cid)
}

/// The root of one file with the bytes that `reader` gives, to its end. Blocks.
pub fn hash_only_stream(reader: &mut dyn io::Read, options: ReadOptions) -> Result<Cid> {
    stream::hash_only(reader, options)
}

/// Chunks that were made together.
#[derive(Debug, Default)]
struct Batch {
    chunks: Vec<Chunk>,
    /// Payload bytes of `chunks`.
    chunk_bytes: usize,
    /// Every chunk of the DAG that came up and its length, given out or not.
    seen: Vec<(Cid, u32)>,
    /// Content bytes that were read for it.
    bytes: u64,
}

impl Batch {
    fn push(&mut self, chunk: Chunk) {
        self.chunk_bytes += chunk.len();
        // A chunk has 2 MiB at the most.
        self.seen.push((*chunk.cid(), chunk.len() as u32));
        self.chunks.push(chunk);
    }

    fn is_full(&self, waiting_bytes: usize) -> bool {
        self.chunk_bytes + waiting_bytes >= BATCH_BYTES || self.chunks.len() >= BATCH_CHUNKS
    }

    /// Drops the chunks: the add has failed already.
    fn discard(&mut self) {
        self.chunks.clear();
        self.chunk_bytes = 0;
    }
}

/// What gives batches until it is done.
trait Reader: Send + Sized + 'static {
    /// The next batch, by work that does not hold up the runtime.
    fn next(self, blocking: Blocking) -> BoxFuture<'static, Result<(Self, Batch)>>;
    fn done(&self) -> bool;
    fn current(&self) -> Option<String>;
    fn total_bytes(&self) -> Option<u64>;
    fn outcome(self) -> Result<(Link, Kind)>;
}

impl Reader for TreeReader {
    fn next(mut self, blocking: Blocking) -> BoxFuture<'static, Result<(Self, Batch)>> {
        Box::pin(async move {
            let step = move || {
                let mut batch = Batch::default();
                self.read(&mut batch);
                (self, batch)
            };
            Ok(blocking.run(step).await?)
        })
    }

    fn done(&self) -> bool {
        self.done()
    }

    fn current(&self) -> Option<String> {
        self.current()
    }

    fn total_bytes(&self) -> Option<u64> {
        self.total_bytes()
    }

    fn outcome(self) -> Result<(Link, Kind)> {
        self.outcome()
    }
}

/// What was read to its end, every chunk of it and of its manifest kept.
#[derive(Debug)]
struct Read {
    link: Link,
    kind: Kind,
    chunks: u64,
    chunks_new: u64,
    listing: Listing,
}

/// Reads to the end and has everything kept; last what lists it.
async fn pump<R: Reader, S: ChunkSink>(
    reader: R,
    sink: &S,
    distinct: Distinct,
    shown: &str,
    progress: &watch::Sender<Progress>,
    blocking: &Blocking,
) -> Result<Read> {
    let mut kept = FuturesUnordered::new();
    let mut in_flight_bytes = 0;
    let mut chunks_new = 0;
    // Both are with the step that is under way, or here.
    let mut idle = Some(reader);
    let mut counting = Some(distinct);
    let mut reading = None;
    loop {
        let room = in_flight_bytes < IN_FLIGHT_BYTES && kept.len() < IN_FLIGHT_CHUNKS;
        if room
            && let Some(reader) = idle.take_if(|reader| !reader.done())
            && let Some(distinct) = counting.take()
        {
            reading = Some(Box::pin(step(reader, distinct, blocking)));
        }
        if reading.is_none() && kept.is_empty() {
            break;
        }
        tokio::select! {
            Some(read) = OptionFuture::from(reading.as_mut()), if reading.is_some() => {
                reading = None;
                let (reader, batch, distinct) = read?;
                counting = Some(distinct);
                progress.send_modify(|progress| {
                    progress.bytes += batch.bytes;
                    progress.total_bytes = progress.total_bytes.or(reader.total_bytes());
                    progress.current = reader.current().or(progress.current.take());
                });
                idle = Some(reader);
                for chunk in batch.chunks {
                    let bytes = chunk.len();
                    in_flight_bytes += bytes;
                    kept.push(async move { (bytes, sink.submit(chunk).await) });
                }
            }
            Some((bytes, put)) = kept.next(), if !kept.is_empty() => {
                in_flight_bytes -= bytes;
                chunks_new += u64::from(put.map_err(|why| store_error(shown, &why))? == Put::New);
                progress.send_modify(|progress| {
                    progress.chunks += 1;
                    progress.copies = sink.copies();
                });
            }
        }
    }
    let lost = || AddError::Failed { shown: shown.to_owned(), why: "reading it was interrupted".to_owned() };
    let (link, kind) = idle.ok_or_else(lost)?.outcome()?;
    let distinct = counting.ok_or_else(lost)?;
    let (listing, chunks) = listing::list(distinct, sink, shown, blocking).await?;
    Ok(Read { link, kind, chunks, chunks_new, listing })
}

/// One batch, its hashes counted.
async fn step<R: Reader>(reader: R, mut distinct: Distinct, blocking: &Blocking) -> Result<(R, Batch, Distinct)> {
    let (reader, batch) = reader.next(blocking.clone()).await?;
    blocking
        .run(move || {
            for (cid, bytes) in &batch.seen {
                distinct.push(cid, *bytes).map_err(|why| count_error(&why))?;
            }
            Ok((reader, batch, distinct))
        })
        .await?
}

fn count_error(why: &io::Error) -> AddError {
    AddError::Scratch(reason(why))
}

fn store_error(shown: &str, why: &StoreError) -> AddError {
    let (shown, text) = (shown.to_owned(), why.to_string());
    match why {
        StoreError::NoSpace { .. } => AddError::Full { shown, why: text },
        _ => AddError::Failed { shown, why: text },
    }
}
