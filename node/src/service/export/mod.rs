//! Writing a DAG out: as files and trees (`get`), and as a stream of bytes in order (`cat`).
//!
//! `get` writes into a partial beside the target ([`target`]), many chunks at once and out of order ([`mod@file`], [`tree`]),
//! has it all on the disk, and only then gives it its name. What an earlier `get` left in the partial is hashed and
//! kept. Nothing is put into the store. What is under way at once is bounded by [`WINDOW_BYTES`] and [`WINDOW_CHUNKS`].

mod cat;
mod error;
mod file;
mod own;
mod target;
#[cfg(test)]
mod tests;
mod tree;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::stream::BoxStream;
use p2p_protocol::{
    Chunk, Cid, PeerId,
    dag::{DagError, Node},
};
use rustix::{fs::AtFlags, io::Errno};
use tokio::sync::{Semaphore, watch};

pub use self::error::WriteError;
use self::target::{Target, Wanted};
use super::{
    blocking::{Blocking, Unfinished},
    distinct::Distinct,
    fetch::{ChunkSource, FetchError},
    inspect::{Inspect, ReadError, Resolved, dag_error, fetch_error},
    progress::Progress,
    reason::reason,
};

/// Chunk bytes that one `get` has under way, from the ask to the disk: what several peers at 20 ms need, and a fraction
/// of a daemon's memory.
const WINDOW_BYTES: usize = 40 << 20;
/// Chunks that are under way, however small: what hides the delay of small files. All of them lying about their length
/// could not take more than 256 MiB.
const WINDOW_CHUNKS: usize = 128;

type Result<T, E = WriteError> = std::result::Result<T, E>;

/// What is to be written, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetOptions {
    /// CID, CID/path/inside, NAME, or PEER/NAME (a path may follow a name too).
    pub reference: String,
    /// Where to, absolute; into a directory that is there it is put inside. `None`: under the label in `directory`.
    pub output: Option<PathBuf>,
    /// The caller's current directory, absolute.
    pub directory: PathBuf,
    /// Replace what is there.
    pub force: bool,
}

/// What was written.
#[derive(Clone, PartialEq, Debug)]
pub struct Written {
    /// Its root.
    pub root: Cid,
    /// Where.
    pub path: PathBuf,
    /// Content bytes.
    pub size: u64,
    /// Distinct chunks of it.
    pub chunks: u64,
    /// Bytes by the peer that sent them; this node's own store is under its own id.
    pub from: BTreeMap<PeerId, u64>,
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Export {
    inspect: Inspect,
    scratch: PathBuf,
    blocking: Blocking,
}

impl Export {
    /// Writes what `inspect` finds; `scratch` is a directory for what does not fit into memory.
    pub fn new(inspect: Inspect, scratch: PathBuf, blocking: Blocking) -> Self {
        Self { inspect, scratch, blocking }
    }

    /// Fetches a file, a directory or a symbolic link, verifies it and writes it. Dropping the future ends the work; what
    /// was written stays in the partial beside the target, for the next `get`.
    ///
    /// Modes and times are restored where the DAG has them; of modes only the permissions (0o777): whoever made a DAG
    /// cannot have this user run it as somebody else.
    ///
    /// # Errors
    ///
    /// The target is there already (without `force`); the disk is full; nobody has it, or not all of it; a bad reference.
    /// Nothing stands under the target's name then.
    pub async fn get(&self, options: GetOptions, progress: &watch::Sender<Progress>) -> Result<Written> {
        // What is in the way is told before anything is asked of the network, as far as the name is known.
        if let Some(output) = options.output.clone() {
            let force = options.force;
            self.blocking.run(move || target::check_early(&output, force)).await??;
        }
        let found = self.inspect.resolve(&options.reference).await?;
        write(found, options, &self.scratch, tree::MOST_WRITTEN, progress, &self.blocking).await
    }

    /// A file's bytes in order, `length` of them (or all) from `offset` on; none beyond its end. The outer error is what
    /// is known before the first byte; after an error inside nothing more comes. Dropping the stream ends the work.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get); a directory or a symbolic link is not printed.
    pub async fn cat(
        &self,
        reference: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let found = self.inspect.resolve(reference).await?;
        cat::stream(found, reference, offset, length)
    }
}

/// Writes what was found where `options` say, of a tree `most` entries at most.
async fn write<S: ChunkSource>(
    found: Resolved<S>,
    options: GetOptions,
    scratch: &Path,
    most: u64,
    progress: &watch::Sender<Progress>,
    blocking: &Blocking,
) -> Result<Written> {
    let wanted = Wanted {
        label: found.label.clone(),
        root: *found.chunk.cid(),
        directory: found.node().is_directory(),
        link: matches!(found.node(), Node::Symlink { .. }),
    };
    let link = match found.node() {
        Node::Symlink { target, metadata } => Some((target.clone(), *metadata)),
        _ => None,
    };
    let (root, metadata) = (*found.chunk.cid(), found.node().metadata());
    let total_bytes = found.node().file_size().or(found.stated_bytes);
    let reference = options.reference.clone();
    let target = blocking.run(move || Target::open(&wanted, &options)).await??;
    progress.send_modify(|progress| progress.total_bytes = total_bytes);
    let job = Arc::new(Job {
        source: found.source,
        reference,
        bytes: Semaphore::new(WINDOW_BYTES),
        chunks: Semaphore::new(WINDOW_CHUNKS),
        tally: Mutex::new(Tally { distinct: Distinct::new(scratch), from: BTreeMap::new() }),
        progress: progress.clone(),
        partial: target.partial_path(),
        blocking: blocking.clone(),
    });
    job.count(&found.chunk, found.from)?;
    let written = match &target {
        Target { file: Some(file), .. } => file::write(&job, &found.chunk, file.clone()).await,
        Target { tree: Some(top), .. } => tree::write(&job, found.chunk.clone(), top.clone(), most).await,
        Target { .. } => Ok(0),
    };
    // Whether it went well or not, the target knows what is to become of the partial.
    let size = match written {
        Ok(size) => size,
        Err(error) => {
            let _ = blocking.run(move || target.leave()).await;
            return Err(error);
        }
    };
    let path = blocking.run(move || target.commit(link, metadata)).await??;
    let job = Arc::into_inner(job).ok_or(Unfinished)?;
    let Tally { distinct, from } = job.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let chunks = blocking.run(move || distinct.count()).await?.map_err(|why| job_scratch_error(&why))?;
    Ok(Written { root, path, size, chunks, from })
}

fn job_scratch_error(why: &io::Error) -> WriteError {
    WriteError::Scratch(reason(why))
}

/// One `get` under way.
#[derive(Debug)]
struct Job<S> {
    source: S,
    reference: String,
    bytes: Semaphore,
    chunks: Semaphore,
    tally: Mutex<Tally>,
    progress: watch::Sender<Progress>,
    partial: PathBuf,
    blocking: Blocking,
}

#[derive(Debug)]
struct Tally {
    distinct: Distinct,
    from: BTreeMap<PeerId, u64>,
}

/// The right to have a chunk under way.
struct Permit<'a> {
    _chunk: tokio::sync::SemaphorePermit<'a>,
    _bytes: tokio::sync::SemaphorePermit<'a>,
}

impl<S: ChunkSource> Job<S> {
    /// Waits until a chunk that should have `bytes` bytes may be under way.
    async fn permit(&self, bytes: u64) -> Result<Permit<'_>> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1024, p2p_protocol::MAX_CHUNK_BYTES as u32);
        let closed = |_| Unfinished;
        // The number first: whoever waits for bytes then has a place, and nobody holds bytes while waiting.
        let chunk = self.chunks.acquire().await.map_err(closed)?;
        let bytes = self.bytes.acquire_many(bytes).await.map_err(closed)?;
        Ok(Permit { _chunk: chunk, _bytes: bytes })
    }

    /// Gets a chunk and counts it.
    async fn chunk(&self, cid: Cid, bytes: u64) -> Result<Chunk> {
        let (chunk, from) = self.source.chunk(cid, bytes).await.map_err(|why| self.missing(&why))?;
        self.count(&chunk, from)?;
        Ok(chunk)
    }

    fn count(&self, chunk: &Chunk, from: PeerId) -> Result<()> {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        *tally.from.entry(from).or_default() += chunk.len() as u64;
        // Once in a hundred thousand chunks this writes four megabytes; nothing in between touches a disk.
        tally.distinct.push(chunk.cid(), chunk.len() as u32).map_err(|why| job_scratch_error(&why))
    }

    /// Counts a chunk that the partial has already.
    fn count_kept(&self, cid: &Cid, bytes: u64) -> Result<()> {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.distinct.push(cid, u32::try_from(bytes).unwrap_or(u32::MAX)).map_err(|why| job_scratch_error(&why))
    }

    fn wrote(&self, bytes: u64) {
        self.progress.send_modify(|progress| {
            progress.bytes += bytes;
            progress.chunks += 1;
        });
    }

    fn missing(&self, why: &FetchError) -> WriteError {
        match fetch_error(&self.reference, why) {
            why @ ReadError::Missing { .. } => {
                WriteError::Incomplete { why, partial: self.partial.display().to_string() }
            }
            why => why.into(),
        }
    }

    fn refused(&self, why: DagError) -> WriteError {
        dag_error(&self.reference, why).into()
    }

    fn io(&self, what: &str, why: &io::Error) -> WriteError {
        write_error(what, why, &self.partial)
    }
}

/// Something could not be written.
fn write_error(what: &str, why: &io::Error, partial: &Path) -> WriteError {
    let full = matches!(why.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let (what, why) = (what.to_owned(), reason(why));
    if full {
        return WriteError::Full { what, why, partial: partial.display().to_string() };
    }
    WriteError::Io { what, why }
}

/// Gives a file or directory its mode and time, where the DAG has them.
fn restore(file: impl rustix::fd::AsFd, metadata: &p2p_protocol::dag::Metadata) -> rustix::io::Result<()> {
    if let Some(mode) = metadata.mode {
        rustix::fs::fchmod(&file, permissions(mode))?;
    }
    match metadata.mtime {
        Some(mtime) => rustix::fs::futimens(file, &times(mtime)),
        None => Ok(()),
    }
}

/// Gives a symbolic link its time, where the DAG has it.
fn restore_link(
    directory: impl rustix::fd::AsFd,
    name: &str,
    metadata: &p2p_protocol::dag::Metadata,
) -> rustix::io::Result<()> {
    match metadata.mtime {
        None => Ok(()),
        Some(mtime) => match rustix::fs::utimensat(directory, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW) {
            // Some file systems keep no times of links.
            Err(Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
            done => done,
        },
    }
}

/// The permissions of a kept mode: set-user-id and its like are left out.
#[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
fn permissions(mode: u32) -> rustix::fs::Mode {
    rustix::fs::Mode::from_raw_mode((mode & 0o777) as rustix::fs::RawMode)
}

fn times((seconds, nanoseconds): (i64, u32)) -> rustix::fs::Timestamps {
    let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
    rustix::fs::Timestamps {
        last_access: time(0, rustix::fs::UTIME_OMIT),
        last_modification: time(seconds, i64::from(nanoseconds)),
    }
}
