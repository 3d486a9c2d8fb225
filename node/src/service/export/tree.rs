//! Writing a tree: many entries at once, directories from the deepest known one on, so that little of a huge tree is
//! held.
//!
//! Everything is made relative to its directory's descriptor and never through a symbolic link, so that whatever a DAG
//! claims and whatever stands in a partial already, nothing is written outside of it.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use p2p_protocol::{
    Chunk, Cid, Codec,
    dag::{DirectoryWalker, Entry, Metadata, Node, decode},
};
use rustix::{
    fs::{AtFlags, Dir as Listing, Mode, OFlags, StatVfs},
    io::Errno,
};

use super::{Job, Result, WINDOW_CHUNKS, WriteError, file, own, restore, restore_link, target::SYNCS_FILES};
use crate::service::fetch::ChunkSource;

/// Directories whose descriptors are kept open for what is below them: far under the 1024 files of a process.
const OPEN_DIRECTORIES: usize = 64;
/// Entries that are held (about 110 bytes each) before directories are entered one at a time only.
const MANY_ENTRIES: usize = 100_000;
/// Entries that are held at most: a tree that unfolds wider than that at every level was made to exhaust memory.
const MAX_ENTRIES: usize = 600_000;
/// Entries that one `get` writes: more than most disks have inodes for. A few nodes that link to each other unfold to 2^30 files, and no
/// count of what is held at once tells them from an honest tree.
pub(super) const MOST_WRITTEN: u64 = 1 << 24;
/// After so many entries the disk is asked for its free inodes.
const INODES_EVERY: u64 = 4096;
/// The part of a disk's inodes that a tree leaves free: without any, nobody else makes a file on it.
const INODES_LEFT: u64 = 20;
/// Directories below each other: every honest tree is shallower (a path has 4096 bytes).
const MAX_DEPTH: usize = 8192;
/// What a node that is not raw is expected to weigh.
const NODE_BYTES: u64 = 64 * 1024;
/// Directories that are looked at for something to begin: those above wait for their shards meanwhile.
const LOOKED_AT: usize = 8;

/// A directory that is being written. It is finished, its time set last, when nobody refers to it any more.
#[derive(Debug)]
struct Place {
    above: Option<Arc<Place>>,
    name: String,
    depth: usize,
    metadata: Metadata,
    descriptor: Mutex<Option<Arc<OwnedFd>>>,
}

impl Place {
    /// Its descriptor, opened again if it was closed. Blocks.
    fn open(&self) -> rustix::io::Result<Arc<OwnedFd>> {
        let mut closed = Vec::new();
        let mut at = self;
        let mut descriptor = loop {
            if let Some(open) = &*at.descriptor.lock().unwrap_or_else(PoisonError::into_inner) {
                break open.clone();
            }
            closed.push(at);
            at = at.above.as_deref().ok_or(Errno::BADF)?;
        };
        while let Some(place) = closed.pop() {
            descriptor = Arc::new(rustix::fs::openat(&descriptor, &*place.name, DIRECTORY, Mode::empty())?);
        }
        *self.descriptor.lock().unwrap_or_else(PoisonError::into_inner) = Some(descriptor.clone());
        Ok(descriptor)
    }

    fn close(&self) {
        // The top's is the only way in.
        if self.above.is_some() {
            self.descriptor.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Where `name` in it is, from the top of the tree.
    fn path(&self, name: &str) -> String {
        let mut names = vec![name];
        let mut at = self;
        while let Some(above) = &at.above {
            names.push(&at.name);
            at = above;
        }
        names.reverse();
        names.join("/")
    }
}

impl Drop for Place {
    /// One after the other: a chain of thousands must not end in as many calls within each other.
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(mut place) = above.and_then(Arc::into_inner) {
            above = place.above.take();
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory whose entries are being begun.
struct Frame {
    place: Arc<Place>,
    walker: DirectoryWalker,
    entries: Vec<Entry>,
    shards: Vec<Cid>,
}

/// What something that was begun came to.
enum Done {
    /// An entry of the place is complete: so many content bytes.
    Written { place: Arc<Place>, size: u64, node: bool },
    /// An entry was a directory, and is there now; the place it stands in.
    Entered { place: Arc<Place>, frame: Box<Frame> },
    /// A shard of a frame.
    Shard(u64, Chunk),
}

struct Writing<'a, S> {
    job: &'a Job<S>,
    /// Whether there is nothing of an earlier attempt.
    fresh: bool,
    frames: BTreeMap<u64, Frame>,
    next: u64,
    held: usize,
    /// Entries under way that may turn out to be directories.
    nodes: usize,
    /// Entries begun, and the most that may be.
    begun: u64,
    most: u64,
    size: u64,
}

/// Writes the directory whose root is `root` into `top`, which may hold an earlier attempt at it, `most` entries at most
/// ([`MOST_WRITTEN`]). Gives its content bytes.
pub(super) async fn write<S: ChunkSource>(job: &Job<S>, root: Chunk, top: Arc<OwnedFd>, most: u64) -> Result<u64> {
    let looked = top.clone();
    let fresh = job.blocking.run(move || is_empty(&looked)).await?.map_err(|why| job.io("the partial", &why.into()))?;
    let walker = DirectoryWalker::new(&root).map_err(|why| job.refused(why))?;
    let metadata = decode(&root).map_err(|why| job.refused(why))?.metadata();
    drop(root);
    if !fresh && metadata.mode.is_some() {
        // An earlier attempt may have restored a mode that forbids writing.
        let _ = rustix::fs::fchmod(&top, Mode::RWXU);
    }
    let disk = top.clone();
    let place = Place { above: None, name: String::new(), depth: 0, metadata, descriptor: Mutex::new(Some(top)) };
    let frame = Frame { place: Arc::new(place), walker, entries: Vec::new(), shards: Vec::new() };
    let mut writing =
        Writing { job, fresh, frames: BTreeMap::new(), next: 0, held: 0, nodes: 0, begun: 0, most, size: 0 };
    writing.enter(frame)?;
    let mut asked = 0;
    let mut under_way: FuturesUnordered<BoxFuture<'_, Result<Done>>> = FuturesUnordered::new();
    loop {
        while under_way.len() < WINDOW_CHUNKS
            && let Some(begun) = writing.begin()?
        {
            under_way.push(begun);
        }
        if writing.begun - asked >= INODES_EVERY {
            asked = writing.begun;
            let disk = disk.clone();
            let found = job.blocking.run(move || rustix::fs::fstatvfs(&*disk)).await?;
            enough_inodes(job, &found.map_err(|why| job.io("the partial", &why.into()))?)?;
        }
        match under_way.next().await {
            Some(done) => writing.take(done?)?,
            None => return Ok(writing.size),
        }
    }
}

/// Refuses to go on where a disk runs short of inodes.
fn enough_inodes<S>(job: &Job<S>, disk: &StatVfs) -> Result<()> {
    if spares_inodes(disk.f_files, disk.f_favail) {
        return Ok(());
    }
    Err(WriteError::NoInodes {
        reference: job.reference.clone(),
        left: disk.f_favail,
        partial: job.partial.display().to_string(),
    })
}

/// Whether so many free inodes are enough. File systems that make them as they are needed tell no total, or none free while files are
/// still made: where there is truly none, the next file fails by itself.
pub(super) fn spares_inodes(total: u64, free: u64) -> bool {
    free == 0 || free >= total / INODES_LEFT
}

fn is_empty(directory: &OwnedFd) -> rustix::io::Result<bool> {
    for entry in Listing::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

impl<'a, S: ChunkSource> Writing<'a, S> {
    fn enter(&mut self, mut frame: Frame) -> Result<()> {
        frame.entries = frame.walker.take_entries();
        // From the end on: the first name first.
        frame.entries.reverse();
        self.hold(frame.entries.len())?;
        self.frames.insert(self.next, frame);
        self.next += 1;
        if let Some((_, deep)) = self.frames.iter().rev().nth(OPEN_DIRECTORIES) {
            deep.place.close();
        }
        Ok(())
    }

    fn hold(&mut self, entries: usize) -> Result<()> {
        self.held += entries;
        if self.held > MAX_ENTRIES {
            return Err(WriteError::TooWide { reference: self.job.reference.clone(), most: MAX_ENTRIES });
        }
        Ok(())
    }

    fn too_many(&self) -> WriteError {
        let Job { reference, partial, .. } = self.job;
        WriteError::TooMany { reference: reference.clone(), most: self.most, partial: partial.display().to_string() }
    }

    /// Something to do next, if there is any; directories that are done are left.
    fn begin(&mut self) -> Result<Option<BoxFuture<'a, Result<Done>>>> {
        let mut looked_at = 0;
        let mut below = u64::MAX;
        while looked_at < LOOKED_AT {
            let Some((&id, frame)) = self.frames.range_mut(..below).next_back() else { break };
            below = id;
            looked_at += 1;
            if let Some(entry) = frame.entries.last() {
                let node = entry.cid.codec != Codec::Raw;
                if node && self.held > MANY_ENTRIES && self.nodes > 0 {
                    continue;
                }
                let place = frame.place.clone();
                let Some(entry) = frame.entries.pop() else { continue };
                self.held -= 1;
                self.nodes += usize::from(node);
                self.begun += 1;
                if self.begun > self.most {
                    return Err(self.too_many());
                }
                let (job, fresh) = (self.job, self.fresh);
                return Ok(Some(self::entry(job, place, entry, fresh).boxed()));
            }
            if frame.shards.is_empty() {
                frame.shards = frame.walker.wanted();
                frame.shards.reverse();
            }
            if let Some(cid) = frame.shards.pop() {
                let job = self.job;
                let shard = async move {
                    let _permit = job.permit(NODE_BYTES).await?;
                    Ok(Done::Shard(id, job.chunk(cid, NODE_BYTES).await?))
                };
                return Ok(Some(shard.boxed()));
            }
            if frame.walker.done()
                && let Some(frame) = self.frames.remove(&id)
            {
                looked_at -= 1;
                self.leave(frame.place)?;
            }
        }
        Ok(None)
    }

    fn take(&mut self, done: Done) -> Result<()> {
        match done {
            Done::Written { place, size, node } => {
                self.nodes -= usize::from(node);
                self.size = self.size.saturating_add(size);
                self.leave(place)
            }
            Done::Entered { place, frame } => {
                self.nodes -= 1;
                self.enter(*frame)?;
                self.leave(place)
            }
            Done::Shard(id, chunk) => {
                let Some(frame) = self.frames.get_mut(&id) else { return Ok(()) };
                frame.walker.supply(&chunk).map_err(|why| self.job.refused(why))?;
                let mut entries = frame.walker.take_entries();
                let held = entries.len();
                entries.reverse();
                frame.entries.append(&mut entries);
                self.hold(held)
            }
        }
    }

    /// Lets go of a place; whoever is last sets its mode and time.
    fn leave(&self, place: Arc<Place>) -> Result<()> {
        let mut place = Some(place);
        while let Some(mut last) = place.and_then(Arc::into_inner) {
            if !last.metadata.is_empty() {
                let restored = last.open().and_then(|directory| restore(&*directory, &last.metadata));
                restored.map_err(|why| self.job.io(&last.path(""), &why.into()))?;
            }
            place = last.above.take();
        }
        Ok(())
    }
}

/// Has one entry in its place.
async fn entry<S: ChunkSource>(job: &Job<S>, place: Arc<Place>, entry: Entry, fresh: bool) -> Result<Done> {
    let Entry { name, cid, tsize } = entry;
    let raw = cid.codec == Codec::Raw;
    let bytes = if raw { tsize } else { NODE_BYTES };
    let name: Arc<str> = name.into();
    let failed = |why: io::Error| job.io(&shown(job, &place, &name), &why);
    let permit = job.permit(bytes).await?;
    if raw && !fresh && tsize <= p2p_protocol::MAX_CHUNK_BYTES as u64 {
        let (at, called) = (place.clone(), name.clone());
        if job.blocking.run(move || is_there(&at, &called, cid, tsize as usize)).await? {
            job.count_kept(&cid, tsize)?;
            job.wrote(tsize);
            return Ok(Done::Written { place, size: tsize, node: false });
        }
    }
    let chunk = job.chunk(cid, bytes).await?;
    let (at, called) = (place.clone(), name.clone());
    let size = match decode(&chunk).map_err(|why| job.refused(why))? {
        Node::Leaf(leaf) => {
            let size = leaf.bytes.len() as u64;
            job.blocking
                .run(move || put_small(&at, &called, &leaf.bytes, &leaf.metadata, fresh))
                .await?
                .map_err(failed)?;
            job.wrote(size);
            size
        }
        Node::File { metadata, .. } => {
            // What a large file has under way is its own leaves.
            drop(permit);
            let file = job.blocking.run(move || open_file(&at, &called, fresh)).await?.map_err(failed)?;
            let file = Arc::new(file);
            let size = file::write(job, &chunk, file.clone()).await?;
            job.blocking.run(move || finish_file(&file, &metadata)).await?.map_err(failed)?;
            size
        }
        Node::Symlink { target, metadata } => {
            job.blocking.run(move || put_link(&at, &called, &target, &metadata, fresh)).await?.map_err(failed)?;
            0
        }
        Node::Directory { metadata, .. } | Node::Shard { metadata, .. } => {
            drop(permit);
            if place.depth >= MAX_DEPTH {
                return Err(WriteError::TooDeep { reference: job.reference.clone(), most: MAX_DEPTH });
            }
            let walker = DirectoryWalker::new(&chunk).map_err(|why| job.refused(why))?;
            let below =
                job.blocking.run(move || make_directory(at, &called, metadata, fresh)).await?.map_err(failed)?;
            let frame = Frame { place: Arc::new(below), walker, entries: Vec::new(), shards: Vec::new() };
            return Ok(Done::Entered { place, frame: Box::new(frame) });
        }
    };
    Ok(Done::Written { place, size, node: !raw })
}

fn shown<S>(job: &Job<S>, place: &Place, name: &str) -> String {
    format!("{} of {}", place.path(name), job.reference)
}

/// Whether a file of these bytes stands there already. Blocks.
fn is_there(place: &Place, name: &str, cid: Cid, length: usize) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(directory) = place.open() else { return false };
    let Ok(found) = rustix::fs::openat(&*directory, name, flags, Mode::empty()) else { return false };
    let found = File::from(found);
    found.metadata().is_ok_and(|is| is.is_file() && is.len() == length as u64) && file::holds(&found, cid, 0, length)
}

/// Opens an entry's file. In a partial that is fresh nothing can be there; in an older one, only a file of its own.
fn open_file(place: &Place, name: &str, fresh: bool) -> io::Result<File> {
    let directory = place.open()?;
    if fresh {
        return Ok(own::new_file(&*directory, name)?);
    }
    if let Ok(found) = own::open_file(&*directory, name) {
        return Ok(found);
    }
    // It cannot be opened (its mode was restored already) or is something else: a new one takes its place.
    rustix::fs::unlinkat(&*directory, name, AtFlags::empty())?;
    Ok(own::new_file(&*directory, name)?)
}

fn put_small(place: &Place, name: &str, bytes: &Bytes, metadata: &Metadata, fresh: bool) -> io::Result<()> {
    let file = open_file(place, name, fresh)?;
    file.write_all_at(bytes, 0)?;
    if !fresh {
        file.set_len(bytes.len() as u64)?;
    }
    finish_file(&file, metadata)
}

fn finish_file(file: &File, metadata: &Metadata) -> io::Result<()> {
    restore(file, metadata)?;
    if SYNCS_FILES { Ok(()) } else { file.sync_all() }
}

fn put_link(place: &Place, name: &str, target: &Bytes, metadata: &Metadata, fresh: bool) -> io::Result<()> {
    let directory = place.open()?;
    match rustix::fs::symlinkat(&**target, &*directory, name) {
        Err(Errno::EXIST) if !fresh => {
            rustix::fs::unlinkat(&*directory, name, AtFlags::empty())?;
            rustix::fs::symlinkat(&**target, &*directory, name)?;
        }
        made => made?,
    }
    Ok(restore_link(&*directory, name, metadata)?)
}

fn make_directory(above: Arc<Place>, name: &str, metadata: Metadata, fresh: bool) -> io::Result<Place> {
    let directory = above.open()?;
    match rustix::fs::mkdirat(&*directory, name, Mode::from_raw_mode(0o777)) {
        Err(Errno::EXIST) if !fresh => {}
        made => made?,
    }
    let made = rustix::fs::openat(&*directory, name, DIRECTORY, Mode::empty())?;
    if !fresh && metadata.mode.is_some() {
        // An earlier attempt may have restored a mode that forbids writing.
        let _ = rustix::fs::fchmod(&made, Mode::RWXU);
    }
    let depth = above.depth + 1;
    let descriptor = Mutex::new(Some(Arc::new(made)));
    Ok(Place { above: Some(above), name: name.to_owned(), depth, metadata, descriptor })
}
