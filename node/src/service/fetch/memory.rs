//! A source of chunks for tests: a map, with what a network does to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use libp2p::identity::Keypair;
use p2p_protocol::{Chunk, Cid, PeerId};

use super::{ChunkSource, FetchError};
use crate::service::ingest::{AddError, ReadOptions, chunks_of};

/// Chunks in memory, given by one of three peers each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    chunks: BTreeMap<Cid, Chunk>,
    lost: BTreeSet<Cid>,
    asked: Vec<Cid>,
    /// After so many answers nothing more comes.
    answers: Option<usize>,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with it")
    }

    pub(crate) fn insert(&self, chunk: Chunk) -> Cid {
        let cid = *chunk.cid();
        self.state().chunks.insert(cid, chunk);
        cid
    }

    /// Reads a file or a tree in; its root.
    pub(crate) fn add(&self, path: &Path, options: ReadOptions) -> Result<Cid, AddError> {
        chunks_of(path, options, |chunk| {
            self.insert(chunk);
        })
    }

    pub(crate) fn chunk_now(&self, cid: &Cid) -> Chunk {
        self.state().chunks[cid].clone()
    }

    pub(crate) fn cids(&self) -> Vec<Cid> {
        self.state().chunks.keys().copied().collect()
    }

    pub(crate) fn lose(&self, cid: Cid) {
        self.state().lost.insert(cid);
    }

    pub(crate) fn find_again(&self) {
        let mut state = self.state();
        state.lost.clear();
        state.answers = None;
    }

    /// After so many more answers nothing comes.
    pub(crate) fn answer_only(&self, answers: usize) {
        self.state().answers = Some(answers);
    }

    /// What was asked for since the last call.
    pub(crate) fn take_asked(&self) -> Vec<Cid> {
        std::mem::take(&mut self.state().asked)
    }

    pub(crate) fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id()
    }
}

impl ChunkSource for Memory {
    async fn chunk(&self, cid: Cid, _: u64) -> Result<(Chunk, PeerId), FetchError> {
        // So that answers come in another order than asks.
        for _ in 0..cid.hash.digest[1] % 5 {
            tokio::task::yield_now().await;
        }
        let mut state = self.state();
        state.asked.push(cid);
        let exhausted = match &mut state.answers {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if exhausted || state.lost.contains(&cid) {
            return Err(FetchError::NotFound { cid, asked: 3 });
        }
        let chunk = state.chunks.get(&cid).cloned().ok_or(FetchError::NotFound { cid, asked: 3 })?;
        Ok((chunk, Self::peer(1 + cid.hash.digest[0] % 3)))
    }
}
