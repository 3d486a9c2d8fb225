//! Whole copies that a user has this node keep: pinned, waited for, unpinned, listed.
//!
//! What is pinned is written down first ([`super::keep::pins`]); the loop fetches it like whatever else is this node's to
//! hold, at the same pace, and goes on with it after a restart. Here a user waits for it, and is told what stands in its
//! way.

use std::time::Duration;

use p2p_protocol::{
    Cid,
    catalogue::Publication,
    duty::keeper::FULL,
    manifest::{Entry, LEAF_ENTRIES, Writer},
};
use tokio::{
    sync::watch::Sender,
    time::{Instant, sleep},
};

use super::{
    blocking::{Blocking, Unfinished},
    fetch::{Fetch, FetchJob},
    inspect::{Inspect, Keepable, Naming, ReadError, Through, Walked, fetch_error},
    keep::{
        Keep, KeepError,
        pins::{Content, Target},
    },
    progress::Progress,
};
use crate::store::{Store, StoreError, Usage};

/// Chunks that are looked at together.
const BATCH: usize = 1024;
/// Entries of a manifest that are written in one step: 64 leaves.
const STEP_ENTRIES: usize = 64 * LEAF_ENTRIES;
/// Between looks at whether something came.
const LOOK: Duration = Duration::from_millis(100);
/// How long nothing has to come before everybody is asked whether it can come at all: longer than it takes to find out
/// that a peer is dead.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why something is not pinned, or not unpinned.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The sentences say it.
pub enum PinError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
    #[error("cannot pin {reference}: {missing} bytes of it are not here, and this node has room for {room} more")]
    NoRoom { reference: String, missing: u64, room: u64 },
    #[error("{reference} is pinned, and not all of it is here: the disk is full")]
    Full { reference: String },
    #[error("{reference} is pinned, and not all of it is here: {why}")]
    Missing { reference: String, why: ReadError },
    #[error("{0} was unpinned, or removed, before all of it was here")]
    Ended(String),
    #[error("{0} is not pinned on this node")]
    NotPinned(String),
    #[error("{reference} is pinned by its name: {}", names.join(", "))]
    ByName { reference: String, names: Vec<String> },
}

impl From<StoreError> for PinError {
    fn from(why: StoreError) -> Self {
        Self::Keep(why.into())
    }
}

/// A pin, and what it stands for now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pinned {
    /// What it keeps.
    pub content: Publication,
    /// Later versions of its name follow.
    pub by_name: bool,
}

/// What was pinned and is all here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Whole {
    /// The pin.
    pub pinned: Pinned,
    /// Chunks of it, with those of its manifest.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Pin {
    store: Store,
    keep: Keep,
    fetch: Fetch,
    inspect: Inspect,
    blocking: Blocking,
}

impl Pin {
    /// Over these rooms.
    pub fn new(store: Store, keep: Keep, fetch: Fetch, inspect: Inspect, blocking: Blocking) -> Self {
        Self { store, keep, fetch, inspect, blocking }
    }

    /// Pins what a reference means, and returns when all of it is here; of a name, all of its newest version then.
    /// Cancel-safe: once it is written down, it stays pinned and comes all the same.
    ///
    /// # Errors
    /// Before it is pinned: what [`Inspect::keepable`] says; nobody has its root, or all of its manifest; there is no room
    /// for it, or for another pin. After it: the disk is full, or nobody has some of it; it was unpinned or removed
    /// meanwhile.
    pub async fn pin(&self, reference: &str, progress: &Sender<Progress>) -> Result<Whole, PinError> {
        let (target, content) = match self.inspect.keepable(reference).await? {
            Keepable::Name(content) => (by_name(&content), *content),
            Keepable::Published(content) => (by_root(&content), *content),
            Keepable::Walked(walked) => {
                let content = self.list(*walked).await?;
                (by_root(&content), content)
            }
        };
        self.check(reference, &content).await?;
        self.keep.pin(&target).await?;
        let mut content = content;
        loop {
            let (chunks, bytes, now) = self.see_through(reference, &target, content, progress).await?;
            match now {
                Some(later) => content = later,
                None => {
                    let Content::Is(content) = self.keep.content(&target) else {
                        return Err(PinError::Ended(reference.to_owned()));
                    };
                    let by_name = target.name().is_some();
                    return Ok(Whole { pinned: Pinned { content: *content, by_name }, chunks, bytes });
                }
            }
        }
    }

    /// Ends a pin; gives what it was of, and its name if it was pinned by that.
    ///
    /// # Errors
    /// A malformed reference; there is no such pin, or several of one name; of the store.
    pub async fn unpin(&self, reference: &str) -> Result<(Cid, Option<String>), PinError> {
        let pinned = self.keep.pinned()?;
        let not_pinned = || PinError::NotPinned(reference.to_owned());
        let target = match self.inspect.naming(reference)? {
            Naming::Root(root) => self.of_root(reference, root, &pinned)?,
            Naming::Name(peer, text) => {
                let named = |target: &&Target| {
                    target
                        .name()
                        .is_some_and(|(publisher, name)| name == text && peer.is_none_or(|peer| peer == *publisher))
                };
                let mut named: Vec<&Target> = pinned.iter().filter(named).collect();
                match (named.pop(), named.is_empty()) {
                    (Some(one), true) => one.clone(),
                    (None, _) => {
                        // An earlier version is pinned by its root.
                        let Keepable::Published(content) = self.inspect.keepable(reference).await? else {
                            return Err(not_pinned());
                        };
                        self.of_root(reference, content.root, &pinned)?
                    }
                    (Some(one), false) => {
                        named.push(one);
                        let choices = named.into_iter().filter_map(|target| target.name());
                        let choices = choices.map(|(publisher, name)| format!("{publisher}/{name}"));
                        return Err(ReadError::Ambiguous { name: text, choices: choices.collect() }.into());
                    }
                }
            }
            Naming::Inside => {
                let root = *self.inspect.resolve(reference).await?.chunk.cid();
                self.of_root(reference, root, &pinned)?
            }
        };
        let root = match self.keep.content(&target) {
            Content::Is(content) => content.root,
            Content::Removed | Content::Unknown => target.pinned().root,
        };
        self.keep.unpin(&target).await?;
        Ok((root, target.name().map(|(_, name)| name.to_owned())))
    }

    /// All that is pinned, as it stands now, in the order of names (labels) and roots. A name that the catalogue does not
    /// have, because it is full, stands as it did when it was pinned; one that was removed is left out.
    pub fn list_all(&self) -> Result<Vec<Pinned>, StoreError> {
        let pinned = self.keep.pinned()?;
        let mut lines: Vec<Pinned> = pinned
            .iter()
            .filter_map(|target| {
                let content = match self.keep.content(target) {
                    Content::Is(content) => *content,
                    Content::Unknown => target.pinned().clone(),
                    Content::Removed => return None,
                };
                Some(Pinned { content, by_name: target.name().is_some() })
            })
            .collect();
        let shown = |content: &Publication| content.name.clone().unwrap_or_else(|| content.label.clone());
        lines.sort_by_key(|line| (shown(&line.content), line.content.root.to_bytes(), line.by_name));
        Ok(lines)
    }

    /// The pin of a root.
    fn of_root(&self, reference: &str, root: Cid, pinned: &[Target]) -> Result<Target, PinError> {
        let of_root = |target: &&Target| matches!(target, Target::Root(content) if content.root == root);
        if let Some(target) = pinned.iter().find(of_root) {
            return Ok(target.clone());
        }
        let names = pinned.iter().filter_map(|target| match (target.name(), self.keep.content(target)) {
            (Some((_, name)), Content::Is(content)) if content.root == root => Some(name.to_owned()),
            _ => None,
        });
        match names.collect::<Vec<_>>() {
            names if names.is_empty() => Err(PinError::NotPinned(reference.to_owned())),
            names => Err(PinError::ByName { reference: reference.to_owned(), names }),
        }
    }

    /// Writes the manifest of what was walked: the same that its publication would have.
    async fn list(&self, walked: Walked) -> Result<Publication, PinError> {
        let Walked { mut content, mut sorted } = walked;
        let mut writer = Writer::new();
        loop {
            let step = self.blocking.run(move || {
                let entries = sorted.take(STEP_ENTRIES);
                (sorted, entries)
            });
            let (rest, entries) = step.await?;
            sorted = rest;
            // The scratch file cannot be read, or a node says that a chunk below it is longer than chunks are.
            let entries = entries.map_err(|_| KeepError::Unpinnable)?;
            let (mut chunks, ended) = (Vec::new(), entries.is_empty());
            if ended {
                content.chunks = writer.entries();
                content.listing = writer.finish_listing(&mut chunks);
                for chunk in chunks {
                    self.keep.put(chunk).await?;
                }
                return Ok(content);
            }
            for entry in entries {
                writer.push(entry, &mut chunks).map_err(|_| KeepError::Unpinnable)?;
            }
            for chunk in chunks {
                self.keep.put(chunk).await?;
            }
        }
    }

    /// Whether its root can be had, its manifest can be read, and there is room for what is not here.
    async fn check(&self, reference: &str, content: &Publication) -> Result<(), PinError> {
        let job = self.reader(content);
        job.chunk(content.root).await.map_err(|why| fetch_error(reference, &why))?;
        let mut listed = Through::new(content, reference, &job);
        let mut missing = 0;
        loop {
            let batch = listed.next(BATCH).await?;
            if batch.is_empty() {
                break;
            }
            let lacking = self.keep.not_kept(&batch).await?.missing;
            missing += lacking.iter().map(|entry| u64::from(entry.length)).sum::<u64>();
        }
        let usage = self.store.usage();
        let room = room(&usage);
        if missing > 0 && (usage.full || missing > room) {
            return Err(PinError::NoRoom { reference: reference.to_owned(), missing, room });
        }
        Ok(())
    }

    fn reader(&self, content: &Publication) -> FetchJob {
        self.fetch.begin(content.root, vec![content.publisher], content.replicas)
    }

    /// Waits until all of `content` is here and pinned; gives how many chunks that is and how many bytes, and what the
    /// pin stands for if that has become another version.
    async fn see_through(
        &self,
        reference: &str,
        target: &Target,
        content: Publication,
        progress: &Sender<Progress>,
    ) -> Result<(u64, u64, Option<Publication>), PinError> {
        let job = self.reader(&content);
        let mut listed = Through::new(&content, reference, &job);
        let (mut chunks, mut bytes) = (0, 0);
        loop {
            let read = listed.next(BATCH).await;
            let batch = read.map_err(|why| PinError::Missing { reference: reference.to_owned(), why })?;
            if batch.is_empty() {
                return Ok((chunks, bytes, None));
            }
            let waiting = Waiting { pin: self, reference, target, content: &content, job: &job };
            let told = |here: u64| {
                let bytes = bytes + here;
                progress.send_modify(|now| {
                    (now.bytes, now.total_bytes) = (now.bytes.max(bytes), Some(content.size.max(bytes)));
                });
            };
            if let Some(later) = waiting.until_here(&batch, told).await? {
                return Ok((chunks, bytes, Some(later)));
            }
            chunks += batch.len() as u64;
            bytes += length_of(&batch);
            progress.send_modify(|now| now.chunks = now.chunks.max(chunks));
        }
    }
}

/// Somebody who waits for some chunks of a pin.
struct Waiting<'a> {
    pin: &'a Pin,
    reference: &'a str,
    target: &'a Target,
    content: &'a Publication,
    job: &'a FetchJob,
}

impl Waiting<'_> {
    /// Waits for these, and tells how many bytes of them are here; gives what the pin stands for if that has become
    /// another version.
    async fn until_here(&self, batch: &[Entry], told: impl Fn(u64)) -> Result<Option<Publication>, PinError> {
        let keep = &self.pin.keep;
        let ended = || PinError::Ended(self.reference.to_owned());
        let (mut fewest, mut since) = (usize::MAX, Instant::now());
        loop {
            let left = keep.not_kept(batch).await?;
            told(length_of(batch) - length_of(&left.missing));
            if left.missing.is_empty() && left.unpinned == 0 {
                return Ok(None);
            }
            if !keep.is_pinned(self.target)? {
                return Err(ended());
            }
            match keep.content(self.target) {
                Content::Is(now) if now.root == self.content.root => {}
                Content::Is(now) => return Ok(Some(*now)),
                Content::Removed => return Err(ended()),
                Content::Unknown => {}
            }
            let usage = self.pin.store.usage();
            if !left.missing.is_empty() && (usage.full || length_of(&left.missing) > usage.free_bytes) {
                return Err(PinError::Full { reference: self.reference.to_owned() });
            }
            if left.missing.len() < fewest {
                (fewest, since) = (left.missing.len(), Instant::now());
            } else if since.elapsed() >= PATIENCE
                && let Some(entry) = left.missing.first()
            {
                self.ask_everybody(entry).await?;
                since = Instant::now();
            }
            sleep(LOOK).await;
        }
    }

    /// Fetches one that does not come by itself, from whoever there is.
    async fn ask_everybody(&self, entry: &Entry) -> Result<(), PinError> {
        let found = self.job.sized_chunk(entry.cid, entry.length.into()).await;
        let (chunk, _) = found.map_err(|why| PinError::Missing {
            reference: self.reference.to_owned(),
            why: fetch_error(self.reference, &why),
        })?;
        self.pin.keep.put(chunk).await?;
        Ok(())
    }
}

fn by_name(content: &Publication) -> Target {
    match &content.name {
        Some(_) => Target::Name(Box::new(as_it_was(content))),
        None => by_root(content),
    }
}

fn by_root(content: &Publication) -> Target {
    Target::Root(Box::new(as_it_was(content)))
}

/// Content that was removed is pinned as what it was.
fn as_it_was(content: &Publication) -> Publication {
    Publication { removed: false, ..content.clone() }
}

fn length_of(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| u64::from(entry.length)).sum()
}

/// Bytes that can come before the store is full.
fn room(usage: &Usage) -> u64 {
    let most = usage.bytes.saturating_add(usage.free_bytes) as f64 * FULL;
    (most as u64).saturating_sub(usage.bytes)
}
