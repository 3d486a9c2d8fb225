//! Walking a DAG level by level: each distinct node of a level is read once, however often it is linked.
//!
//! Content bytes are counted with repeats (that is what `get` would write), so each node carries how often it occurs.
//! By going level by level a small DAG that unfolds to an enormous tree costs only what its distinct nodes do.

use std::collections::BTreeMap;

use futures::{StreamExt as _, stream};
use p2p_protocol::{
    Chunk, Cid, Codec,
    dag::{Node, decode, links},
};

use super::{AT_ONCE, ReadError, Result, dag_error, fetch_error};
use crate::service::fetch::ChunkSource;

/// What an inner node is expected to weigh: the flat directories made here end at 256 KiB.
pub(super) const NODE_BYTES: u64 = 64 * 1024;
/// Inner nodes of one level that are remembered, at about 120 bytes each: 40 million files, or 300 TiB in one.
pub(super) const MAX_LEVEL: usize = 300_000;
/// Levels: every honest directory tree and file is shallower (a path has 4096 bytes).
pub(super) const MAX_LEVELS: usize = 8192;

/// Walks all below `root` and gives its content bytes. `seen` is told every chunk at least once (more than once where it
/// stands on several levels), with its length where that is known: raw leaves only if `leaves`, without fetching them,
/// and the inside of files only then.
pub(super) async fn walk<S: ChunkSource>(
    source: &S,
    root: Cid,
    reference: &str,
    leaves: bool,
    mut seen: impl FnMut(Cid, u64) -> Result<()>,
) -> Result<u64> {
    let mut size = 0_u64;
    // How often each node's content counts: below a file's root it counted there.
    let mut level = BTreeMap::from([(root, 1_u64)]);
    for _ in 0..MAX_LEVELS {
        if level.is_empty() {
            return Ok(size);
        }
        let mut next = BTreeMap::new();
        let mut nodes = stream::iter(std::mem::take(&mut level))
            .map(async |(cid, times)| (source.chunk(cid, NODE_BYTES).await, times))
            .buffer_unordered(AT_ONCE);
        while let Some((got, times)) = nodes.next().await {
            let (chunk, _) = got.map_err(|why| fetch_error(reference, &why))?;
            seen(*chunk.cid(), chunk.len() as u64)?;
            size = size.saturating_add(unfold(&chunk, times, reference, leaves, &mut next, &mut seen)?);
        }
        level = next;
    }
    Err(ReadError::TooDeep { reference: reference.to_owned(), most: MAX_LEVELS })
}

/// Content bytes under `root`, repeats counted.
pub(super) async fn content_bytes<S: ChunkSource>(source: &S, root: Cid, reference: &str) -> Result<u64> {
    walk(source, root, reference, false, |_, _| Ok(())).await
}

/// Puts the children of a node into the next level; gives the content bytes that it adds.
fn unfold(
    chunk: &Chunk,
    times: u64,
    reference: &str,
    leaves: bool,
    next: &mut BTreeMap<Cid, u64>,
    seen: &mut impl FnMut(Cid, u64) -> Result<()>,
) -> Result<u64> {
    let node = decode(chunk).map_err(|why| dag_error(reference, why))?;
    let mut size = 0_u64;
    let file = match node.file_size() {
        Some(bytes) => {
            size = bytes.saturating_mul(times);
            if !leaves {
                return Ok(size);
            }
            true
        }
        None => false,
    };
    let below = if file { 0 } else { times };
    if let Node::File { parts, .. } = &node {
        // Its parts say how long they are in content, which for raw ones is their length.
        for part in parts {
            add(part.cid, part.size, below, next, seen, leaves, reference)?;
        }
        return Ok(size);
    }
    for link in links(chunk).map_err(|why| dag_error(reference, why))? {
        if link.cid.codec == Codec::Raw {
            size = size.saturating_add(link.tsize.saturating_mul(below));
        }
        add(link.cid, link.tsize, below, next, seen, leaves, reference)?;
    }
    Ok(size)
}

fn add(
    cid: Cid,
    bytes: u64,
    times: u64,
    next: &mut BTreeMap<Cid, u64>,
    seen: &mut impl FnMut(Cid, u64) -> Result<()>,
    leaves: bool,
    reference: &str,
) -> Result<()> {
    if cid.codec == Codec::Raw {
        return if leaves { seen(cid, bytes) } else { Ok(()) };
    }
    let known = next.entry(cid).or_insert(0);
    *known = known.saturating_add(times);
    if next.len() > MAX_LEVEL {
        return Err(ReadError::TooWide { reference: reference.to_owned(), most: MAX_LEVEL });
    }
    Ok(())
}
