//! A file's bytes in order, read ahead by a bounded window.

use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesOrdered},
};
use p2p_protocol::{
    Chunk, PeerId,
    dag::{FileWalker, Node, Step, check_leaf},
};

use super::{Result, WriteError};
use crate::service::{
    fetch::{ChunkSource, FetchError},
    inspect::{Resolved, dag_error, fetch_error},
};

/// Content bytes that are fetched ahead of the reader: what several peers deliver while it looks away.
const AHEAD_BYTES: u64 = 16 << 20;
/// Leaves that are fetched ahead, however small.
const AHEAD_LEAVES: usize = 64;
/// The longest piece that is given out: the command line sees a failure between two of them.
const PIECE_BYTES: usize = 256 * 1024;

type Fetched = std::result::Result<(Chunk, PeerId), FetchError>;

struct Reading<S> {
    source: S,
    reference: String,
    walker: FileWalker,
    /// Leaves on their way, in the order of the file, and their content bytes together.
    ahead: FuturesOrdered<BoxFuture<'static, (u64, Result<Bytes>)>>,
    ahead_bytes: u64,
    /// A node that must be read before the walk goes on.
    inner: Option<BoxFuture<'static, Fetched>>,
    /// What is left of a leaf that is being given out.
    piece: Bytes,
}

/// The bytes of what was found, from `offset` on.
pub(super) fn stream<S: ChunkSource>(
    found: Resolved<S>,
    reference: &str,
    offset: u64,
    length: Option<u64>,
) -> Result<BoxStream<'static, Result<Bytes>>> {
    match found.node() {
        Node::Leaf(_) | Node::File { .. } => {}
        Node::Directory { .. } | Node::Shard { .. } => return Err(WriteError::IsDirectory(reference.to_owned())),
        Node::Symlink { .. } => return Err(WriteError::IsLink(reference.to_owned())),
    }
    let end = length.map_or(u64::MAX, |length| offset.saturating_add(length));
    let walker = FileWalker::new(&found.chunk, offset..end).map_err(|why| dag_error(reference, why))?;
    let reading = Reading {
        source: found.source,
        reference: reference.to_owned(),
        walker,
        ahead: FuturesOrdered::new(),
        ahead_bytes: 0,
        inner: None,
        piece: Bytes::new(),
    };
    // After an error there is nothing to go on with.
    let steps = stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(None) => None,
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reading))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(steps.boxed())
}

impl<S: ChunkSource> Reading<S> {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if !self.piece.is_empty() {
                let length = self.piece.len().min(PIECE_BYTES);
                return Ok(Some(self.piece.split_to(length)));
            }
            self.fill();
            if self.ahead.is_empty() && self.inner.is_none() {
                return Ok(None);
            }
            let inner = async {
                match &mut self.inner {
                    Some(inner) => inner.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((length, bytes)) = self.ahead.next() => {
                    self.ahead_bytes -= length;
                    self.piece = bytes?;
                }
                node = inner => {
                    self.inner = None;
                    let (chunk, _) = node.map_err(|why| fetch_error(&self.reference, &why))?;
                    self.walker.expand(&chunk).map_err(|why| dag_error(&self.reference, why))?;
                }
            }
        }
    }

    /// Sends for what comes next, as far as the window allows.
    fn fill(&mut self) {
        while self.inner.is_none() && self.ahead_bytes < AHEAD_BYTES && self.ahead.len() < AHEAD_LEAVES {
            let (source, reference) = (self.source.clone(), self.reference.clone());
            match self.walker.next_step() {
                None => return,
                Some(Step::Inner(cid)) => {
                    self.inner = Some(async move { source.chunk(cid, 64 * 1024).await }.boxed());
                }
                Some(Step::Bytes { bytes, .. }) => {
                    let length = bytes.len() as u64;
                    self.ahead_bytes += length;
                    self.ahead.push_back(std::future::ready((length, Ok(bytes))).boxed());
                }
                Some(Step::Leaf { cid, length, skip, take, .. }) => {
                    self.ahead_bytes += length;
                    let leaf = async move {
                        let (chunk, _) =
                            source.chunk(cid, length).await.map_err(|why| fetch_error(&reference, &why))?;
                        let bytes = check_leaf(&chunk, length).map_err(|why| dag_error(&reference, why))?;
                        // Both are within the leaf, whose length was just checked.
                        Ok(bytes.slice(skip as usize..(skip + take) as usize))
                    };
                    self.ahead.push_back(leaf.map(move |bytes| (length, bytes)).boxed());
                }
            }
        }
    }
}
