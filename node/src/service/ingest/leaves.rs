//! One file's bytes on their way into a DAG: cut, hashed (large ones on two threads), linked.

use bytes::Bytes;
use p2p_protocol::{
    Chunk, Codec,
    dag::{FileBuilder, Link, Metadata},
};

use super::Batch;

/// Leaves of together so many bytes are hashed on a second thread too: below it, starting one costs more than it gains.
const SPLIT_BYTES: usize = 2 << 20;

/// The DAG of one file while its bytes come. Leaves wait until a batch is full, so that they can be hashed together.
#[derive(Debug)]
pub(super) struct Leaves {
    builder: FileBuilder,
    cut: Vec<Bytes>,
    cut_bytes: usize,
}

impl Leaves {
    pub(super) fn new(metadata: Metadata) -> Self {
        Self { builder: FileBuilder::new(metadata), cut: Vec::new(), cut_bytes: 0 }
    }

    pub(super) fn push(&mut self, leaf: Bytes) {
        self.cut_bytes += leaf.len();
        self.cut.push(leaf);
    }

    /// Bytes that wait to be hashed.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.cut_bytes
    }

    /// Hashes what waits and puts it into `batch`, inner nodes that are complete by that too.
    pub(super) fn settle(&mut self, batch: &mut Batch) {
        let leaves = std::mem::take(&mut self.cut);
        let bytes = std::mem::take(&mut self.cut_bytes);
        let mut inner = Vec::new();
        for chunk in hash(leaves, bytes) {
            self.builder.leaf(Link::leaf(&chunk), &mut inner);
            batch.push(chunk);
        }
        inner.into_iter().for_each(|chunk| batch.push(chunk));
    }

    /// Ends the file.
    pub(super) fn finish(mut self, batch: &mut Batch) -> Link {
        self.settle(batch);
        let mut inner = Vec::new();
        let link = self.builder.finish(&mut inner);
        inner.into_iter().for_each(|chunk| batch.push(chunk));
        link
    }
}

fn hash(mut leaves: Vec<Bytes>, bytes: usize) -> Vec<Chunk> {
    if bytes < SPLIT_BYTES || leaves.len() < 2 {
        return hash_here(leaves);
    }
    let second = leaves.split_off(leaves.len() / 2);
    let (mut first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| hash_here(second));
        (hash_here(leaves), second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    first.extend(second);
    first
}

fn hash_here(leaves: Vec<Bytes>) -> Vec<Chunk> {
    let chunk = |leaf| Chunk::new(Codec::Raw, leaf).expect("a chunker cuts at 2 MiB at the latest");
    leaves.into_iter().map(chunk).collect()
}
