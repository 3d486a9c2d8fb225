//! A DAG looked at as a whole: its chunks by its links, what its publications list, and who has each.
//!
//! Whoever is healthy has nothing to learn here that `stat` does not say. This goes on where something is missing, and
//! names what is: a node that nobody has leaves out what is below it, unless a manifest lists that; a copy of this node
//! is read and hashed before it counts. Both sides come in the order of keys, a batch at a time, whatever their number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures::{StreamExt as _, stream};
use p2p_protocol::{
    Chunk, Cid, Codec, Key, Multihash, PeerId,
    dag::{Node, decode, links},
    manifest::{Entry, Listing},
};
use tokio::sync::watch::Sender;

use super::{
    AT_ONCE, Inspect, ReadError, Resolved, Result, dag_error, fetch_error,
    listed::Listed,
    measure::{MAX_LEVEL, MAX_LEVELS, NODE_BYTES},
};
use crate::{
    service::{
        distinct::{Distinct, Sorted},
        fetch::{ChunkSource, FetchError, FetchJob},
        holders::Holders,
        progress::Progress,
        reason::reason,
    },
    store::StoreError,
};

/// Chunks that are asked about at a time: what one request takes.
const BATCH: usize = 1024;
/// Listings of one root that are compared with it: honest ones are all the same.
const MOST_LISTINGS: usize = 4;
/// Own copies that are read at once.
const READ_AT_ONCE: usize = 4;
/// Damaged chunks that are named.
const MOST_DAMAGED: usize = 4096;

/// What was found of a DAG.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    /// What was looked at.
    pub root: Cid,
    /// Distinct chunks of the DAG.
    pub chunks: u64,
    /// Their bytes, as far as they are known.
    pub bytes: u64,
    /// Copies of this node that are damaged.
    pub damaged: u64,
    /// Some of those.
    pub some_damaged: Vec<Multihash>,
    /// Chunks, of the DAG or listed, that neither this node nor anybody who answers has.
    pub missing: u64,
    /// Chunks with fewer copies than wanted, though with one.
    pub under_replicated: u64,
    /// Copies that are wanted.
    pub wanted: u8,
    /// Chunks by who has them, this node included.
    pub holders: BTreeMap<PeerId, u64>,
    /// What its publications list of it; `None`: none is of this root.
    pub listing: Option<Agreement>,
}

/// How what a DAG has, and what its publications list of it, agree.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Agreement {
    /// Chunks of the DAG that a listing lacks.
    pub unlisted: u64,
    /// Chunks that are listed and are not of the DAG, as far as that could be read.
    pub surplus: u64,
    /// Part of a listing is malformed, or could not be had.
    pub unreadable: bool,
}

/// What is known of the DAG behind `found`.
pub(super) async fn check(
    rooms: &Inspect,
    found: &Resolved,
    reference: &str,
    progress: &Sender<Progress>,
) -> Result<Checked> {
    let root = *found.chunk.cid();
    let wanted = found.wanted.unwrap_or(rooms.replicas);
    let mut distinct = Distinct::new(&rooms.scratch);
    let complete = walk(&found.source, root, reference, |cid, bytes| {
        progress.send_modify(|now| {
            now.chunks += 1;
            now.total_bytes = found.stated_bytes;
        });
        // Up to 65,536 chunks this touches no disk, and then once in so many.
        distinct.push(&cid, u32::try_from(bytes).unwrap_or(u32::MAX)).map_err(|why| scratch_error(rooms, &why))
    })
    .await?;
    let sorted = rooms.blocking.run(move || distinct.sorted()).await?.map_err(|why| scratch_error(rooms, &why))?;
    let mut listings: Vec<(Listing, u64)> = Vec::new();
    for publication in rooms.catalogue.by_root(&root) {
        let listing = (publication.listing, publication.chunks);
        if !listings.contains(&listing) && listings.len() < MOST_LISTINGS {
            listings.push(listing);
        }
    }
    let listing = (!listings.is_empty()).then(Agreement::default);
    let checked = Checked {
        root,
        chunks: 0,
        bytes: 0,
        damaged: 0,
        some_damaged: Vec::new(),
        missing: 0,
        under_replicated: 0,
        wanted,
        holders: BTreeMap::new(),
        listing,
    };
    let holders = Holders::new(rooms.transfer.clone(), rooms.locate.clone());
    let mut checking = Checking { rooms, reference, progress, holders, checked };
    checking.all(sorted, &listings, &found.source).await?;
    if let Some(agreement) = &mut checking.checked.listing
        && !complete
    {
        // What is below a node that nobody has may be all of it.
        agreement.surplus = 0;
    }
    Ok(checking.checked)
}

struct Checking<'a> {
    rooms: &'a Inspect,
    reference: &'a str,
    progress: &'a Sender<Progress>,
    holders: Holders,
    checked: Checked,
}

impl Checking<'_> {
    /// Goes through both sides in the order of keys, as far as each has been read, a batch at a time.
    async fn all(&mut self, mut sorted: Sorted, listings: &[(Listing, u64)], job: &FetchJob) -> Result<()> {
        let mut listed: Vec<Listed<'_>> =
            listings.iter().map(|(listing, chunks)| Listed::new(listing, *chunks, job)).collect();
        let (mut linked, mut ended) = (VecDeque::new(), false);
        loop {
            if linked.len() < BATCH && !ended {
                let (rest, batch) = self
                    .rooms
                    .blocking
                    .run(move || {
                        let batch = sorted.take(BATCH);
                        (sorted, batch)
                    })
                    .await?;
                sorted = rest;
                let batch = batch.map_err(|why| scratch_error(self.rooms, &why))?;
                ended = batch.len() < BATCH;
                linked.extend(batch.into_iter().map(|entry| (entry.key(), entry)));
            }
            for listing in &mut listed {
                listing.fill(BATCH).await.map_err(|why| self.failed(&why))?;
            }
            let last = linked.back().filter(|_| !ended).map(|(key, _): &(Key, Entry)| *key);
            let horizon = listed.iter().filter_map(Listed::horizon).chain(last).min();
            let count = linked.partition_point(|(key, _)| horizon.is_none_or(|horizon| *key <= horizon));
            let linked: BTreeMap<Key, Entry> = linked.drain(..count).collect();
            let lists = listed.iter_mut().map(|listing| listing.take(horizon.as_ref()).into_iter().collect()).collect();
            self.batch(linked, lists).await?;
            // Nothing bounds it: each side has ended, and was taken whole.
            if horizon.is_none() {
                break;
            }
        }
        for listing in &mut listed {
            let own = listing.own().await.map_err(|why| self.failed(&why))?;
            for part in own.chunks(BATCH) {
                let hashes: Vec<Multihash> = part.iter().map(|entry| entry.cid.hash).collect();
                self.ask(&hashes).await?;
            }
            if let Some(agreement) = &mut self.checked.listing {
                agreement.unreadable |= listing.is_unreadable();
            }
        }
        Ok(())
    }

    /// Compares what is linked with what each listing has in the same stretch of keys, and asks for all of it.
    async fn batch(&mut self, linked: BTreeMap<Key, Entry>, lists: Vec<BTreeMap<Key, Entry>>) -> Result<()> {
        let mut union = linked.clone();
        for list in lists {
            if let Some(agreement) = &mut self.checked.listing {
                agreement.unlisted += linked.keys().filter(|key| !list.contains_key(key)).count() as u64;
                agreement.surplus += list.keys().filter(|key| !linked.contains_key(key)).count() as u64;
            }
            for (key, entry) in list {
                let known = union.entry(key).or_insert(entry);
                // The length of a node that nobody has is known by what lists it.
                known.length = known.length.max(entry.length);
            }
        }
        let bytes = linked.keys().filter_map(|key| union.get(key)).map(|entry| u64::from(entry.length)).sum::<u64>();
        self.checked.chunks += linked.len() as u64;
        self.checked.bytes += bytes;
        let hashes: Vec<Multihash> = union.values().map(|entry| entry.cid.hash).collect();
        for part in hashes.chunks(BATCH) {
            self.ask(part).await?;
        }
        self.progress.send_modify(|now| now.bytes += bytes);
        Ok(())
    }

    /// Counts the copies of these chunks; those of this node are read.
    async fn ask(&mut self, hashes: &[Multihash]) -> Result<()> {
        let store = &self.rooms.store;
        let read = stream::iter(hashes.to_vec()).map(async |hash| {
            let held = store.verify(&hash).await?.is_some();
            let damaged = !held && store.is_damaged(&hash)?;
            Ok::<_, StoreError>((held, damaged))
        });
        let own: Vec<_> = read.buffered(READ_AT_ONCE).collect().await;
        let own = own.into_iter().collect::<std::result::Result<Vec<_>, _>>();
        let own = own.map_err(|why| self.failed(&why.into()))?;
        let found = self.holders.of(hashes, self.checked.wanted).await;
        let (local, checked) = (self.rooms.network.local(), &mut self.checked);
        for ((hash, (held, damaged)), peers) in hashes.iter().zip(own).zip(found) {
            if damaged {
                checked.damaged += 1;
                if checked.some_damaged.len() < MOST_DAMAGED {
                    checked.some_damaged.push(*hash);
                }
            }
            let having = peers.into_iter().chain(held.then_some(local));
            let mut copies = 0;
            for peer in having {
                *checked.holders.entry(peer).or_default() += 1;
                copies += 1;
            }
            match copies {
                0 => checked.missing += 1,
                some if some < usize::from(checked.wanted) => checked.under_replicated += 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn failed(&self, why: &FetchError) -> ReadError {
        fetch_error(self.reference, why)
    }
}

fn scratch_error(rooms: &Inspect, why: &std::io::Error) -> ReadError {
    ReadError::Scratch { directory: rooms.scratch.display().to_string(), why: reason(why) }
}

/// Tells of every chunk below `root`, and of it, at least once, with its length where that is known; raw leaves are not
/// fetched. A node that nobody has is told of, and what is below it is not: then it gives `false`.
async fn walk<S: ChunkSource>(
    source: &S,
    root: Cid,
    reference: &str,
    mut seen: impl FnMut(Cid, u64) -> Result<()>,
) -> Result<bool> {
    let (mut level, mut complete) = (BTreeSet::from([root]), true);
    for _ in 0..MAX_LEVELS {
        if level.is_empty() {
            return Ok(complete);
        }
        let mut next = BTreeSet::new();
        let mut nodes = stream::iter(std::mem::take(&mut level))
            .map(async |cid| (source.chunk(cid, NODE_BYTES).await, cid))
            .buffer_unordered(AT_ONCE);
        while let Some((got, cid)) = nodes.next().await {
            let chunk = match got {
                Ok((chunk, _)) => chunk,
                Err(FetchError::NotFound { .. }) => {
                    complete = false;
                    seen(cid, 0)?;
                    continue;
                }
                Err(why) => return Err(fetch_error(reference, &why)),
            };
            seen(cid, chunk.len() as u64)?;
            for (cid, bytes) in below(&chunk, reference)? {
                if cid.codec == Codec::Raw {
                    seen(cid, bytes)?;
                } else {
                    next.insert(cid);
                }
            }
            if next.len() > MAX_LEVEL {
                return Err(ReadError::TooWide { reference: reference.to_owned(), most: MAX_LEVEL });
            }
        }
        level = next;
    }
    Err(ReadError::TooDeep { reference: reference.to_owned(), most: MAX_LEVELS })
}

/// What a node links to, with the length that it says of each: what it is of raw ones.
fn below(chunk: &Chunk, reference: &str) -> Result<Vec<(Cid, u64)>> {
    if let Node::File { parts, .. } = decode(chunk).map_err(|why| dag_error(reference, why))? {
        return Ok(parts.iter().map(|part| (part.cid, part.size)).collect());
    }
    let links = links(chunk).map_err(|why| dag_error(reference, why))?;
    Ok(links.into_iter().map(|link| (link.cid, link.tsize)).collect())
}
