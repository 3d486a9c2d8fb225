//! Where the copies of a DAG's chunks are: asked of every reachable storing peer, batch by batch.

use std::collections::BTreeMap;

use futures::future::join_all;
use p2p_protocol::{Cid, Key, Multihash, PeerId, catalogue::Kind};

use super::{Inspect, ReadError, Resolved, Result, fetch_error, kind, measure};
use crate::service::{distinct::Distinct, fetch::FetchError, reason::reason};

/// Chunks that are asked about at a time: what one request takes.
const BATCH: usize = 1024;
/// Rows that an answer may have: it is built in memory, at up to a kilobyte each with the JSON that it becomes.
const MAX_ROWS: usize = 100_000;

/// Where the copies of a DAG are, as far as peers answer now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survey {
    /// What was asked about.
    pub root: Cid,
    /// What it is.
    pub kind: Kind,
    /// Content bytes.
    pub size: u64,
    /// Distinct blocks.
    pub chunks: u64,
    /// Copies wanted.
    pub wanted: u8,
    /// Copies of the chunk with the fewest, no more than are wanted.
    pub min: u8,
    /// Copies of the chunk with the most, no more than are wanted.
    pub max: u8,
    /// Chunks of which a peer counts as a holder, by peer.
    pub holders: BTreeMap<PeerId, u64>,
    /// The copies of each chunk, where they were asked for.
    pub placement: Option<Vec<Copies>>,
}

/// Where one chunk is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copies {
    /// The chunk.
    pub cid: Cid,
    /// Its bytes.
    pub bytes: u32,
    /// The nearest of those that keep it, as many as are wanted.
    pub holders: Vec<PeerId>,
    /// Who keeps it beside them.
    pub cached: Vec<PeerId>,
}

/// What the network says of the DAG behind `found`.
pub(super) async fn stat(rooms: &Inspect, found: &Resolved, reference: &str, placement: bool) -> Result<Survey> {
    let root = *found.chunk.cid();
    let mut distinct = Distinct::new(&rooms.scratch);
    let scratch_error =
        |why: std::io::Error| ReadError::Scratch { directory: rooms.scratch.display().to_string(), why: reason(&why) };
    let size = measure::walk(&found.source, root, reference, true, |cid, bytes| {
        // Up to 65,536 chunks this touches no disk, and then once in so many.
        distinct.push(&cid, u32::try_from(bytes).unwrap_or(u32::MAX)).map_err(scratch_error)
    })
    .await?;
    let mut sorted = rooms.blocking.run(move || distinct.sorted()).await?.map_err(scratch_error)?;
    let mut peers = rooms.locate.sources(&root.hash, usize::MAX).await;
    peers.retain(|peer| *peer != rooms.network.local());
    let wanted = found.wanted.unwrap_or(rooms.replicas);
    let mut tally = Tally::default();
    loop {
        let (rest, batch) = rooms
            .blocking
            .run(move || {
                let batch = sorted.take(BATCH);
                (sorted, batch)
            })
            .await?;
        sorted = rest;
        let batch = batch.map_err(scratch_error)?;
        let batch: Vec<_> = batch.into_iter().map(|entry| (entry.cid, entry.length)).collect();
        if batch.is_empty() {
            break;
        }
        let copies = ask(rooms, &mut peers, &batch).await.map_err(|why| fetch_error(reference, &why))?;
        for ((cid, bytes), copies) in batch.iter().zip(copies) {
            tally.take(*cid, *bytes, copies, wanted, placement);
        }
        if placement && tally.rows.len() > MAX_ROWS {
            return Err(ReadError::TooManyChunks { reference: reference.to_owned(), most: MAX_ROWS });
        }
    }
    Ok(Survey {
        root,
        kind: kind(found.node()),
        size,
        chunks: tally.chunks,
        wanted,
        min: count(tally.min.unwrap_or(0)),
        max: count(tally.max),
        holders: tally.holders,
        placement: placement.then_some(tally.rows),
    })
}

fn count(copies: usize) -> u8 {
    u8::try_from(copies).unwrap_or(u8::MAX)
}

#[derive(Default)]
struct Tally {
    chunks: u64,
    min: Option<usize>,
    max: usize,
    holders: BTreeMap<PeerId, u64>,
    rows: Vec<Copies>,
}

impl Tally {
    /// The holders are the nearest of those that have it, as many as are wanted: where a nearer peer is full, that is the
    /// one that keeps it instead.
    fn take(&mut self, cid: Cid, bytes: u32, mut holders: Vec<PeerId>, wanted: u8, placement: bool) {
        self.chunks += 1;
        let key = Key::from(&cid.hash);
        holders.sort_by_cached_key(|peer| Key::from(peer).distance(&key));
        let cached = holders.split_off(holders.len().min(usize::from(wanted)));
        self.min = Some(self.min.map_or(holders.len(), |min| min.min(holders.len())));
        self.max = self.max.max(holders.len());
        for holder in &holders {
            *self.holders.entry(*holder).or_default() += 1;
        }
        if placement {
            self.rows.push(Copies { cid, bytes, holders, cached });
        }
    }
}

/// Who has each chunk of a batch. A peer that does not answer is not asked again.
async fn ask(
    rooms: &Inspect,
    peers: &mut Vec<PeerId>,
    batch: &[(Cid, u32)],
) -> std::result::Result<Vec<Vec<PeerId>>, FetchError> {
    let hashes: Vec<Multihash> = batch.iter().map(|(cid, _)| cid.hash).collect();
    let local = rooms.network.local();
    let (store, own) = (rooms.store.clone(), hashes.clone());
    let own = rooms
        .blocking
        .run(move || own.iter().map(|hash| store.entry(hash)).collect::<std::result::Result<Vec<_>, _>>())
        .await
        .map_err(|why| FetchError::Store(why.to_string()))??;
    let mut copies: Vec<Vec<PeerId>> =
        own.into_iter().map(|entry| entry.map(|_| local).into_iter().collect()).collect();
    let answers = join_all(peers.iter().map(|peer| rooms.transfer.holdings(*peer, hashes.clone()))).await;
    let mut silent = Vec::new();
    for (peer, answer) in peers.iter().zip(answers) {
        match answer {
            Ok(holdings) => {
                for (copies, holding) in copies.iter_mut().zip(holdings) {
                    copies.extend(holding.map(|_| *peer));
                }
            }
            Err(why) => {
                tracing::warn!("{peer} did not say what it holds, and is left out: {why}");
                silent.push(*peer);
            }
        }
    }
    peers.retain(|peer| !silent.contains(peer));
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use p2p_protocol::Codec;

    use super::*;

    #[test]
    fn only_holders_count_and_the_fewest_and_most_are_told() {
        let peers: Vec<PeerId> = (1..4)
            .map(|seed| Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id())
            .collect();
        let mut tally = Tally::default();
        let cid = |number: u8| Cid::of(Codec::Raw, &[number]);
        let copies = |held: &[usize]| held.iter().map(|at| peers[*at]).collect::<Vec<_>>();
        tally.take(cid(1), 1, copies(&[0, 1, 2]), 2, true);
        tally.take(cid(2), 1, copies(&[2]), 2, true);
        assert_eq!((tally.chunks, tally.min, tally.max), (2, Some(1), 2));
        let key = Key::from(&cid(1).hash);
        let farthest = peers.iter().max_by_key(|peer| Key::from(*peer).distance(&key)).expect("three");
        assert_eq!(tally.rows[0].cached, vec![*farthest], "the nearest hold it");
        assert_eq!((tally.rows[1].holders.len(), tally.rows[1].cached.len()), (1, 0));
        assert_eq!(tally.holders.values().sum::<u64>(), 3);
        tally.take(cid(3), 1, Vec::new(), 2, false);
        assert_eq!((tally.min, tally.rows.len()), (Some(0), 2));
    }
}
