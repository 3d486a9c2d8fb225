//! Getting chunks: this node's store first, then their holders, several at once. SKELETON.

use p2p_protocol::{Chunk, Cid, PeerId};

use super::{locate::Locate, transfer::Transfer};
use crate::{net::Network, store::Store};

/// Why a chunk could not be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody that answers has it.
    #[error("no reachable peer has {cid} (asked {asked})")]
    NotFound {
        /// The chunk.
        cid: Cid,
        /// How many peers were asked.
        asked: usize,
    },
    /// The own store failed.
    #[error("{0}")]
    Store(String),
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Fetch {}

/// One reader's fetches: knows the root and its publishers. Clone it freely.
#[derive(Clone, Debug)]
pub struct FetchJob {}

#[allow(unused_variables, clippy::unimplemented, clippy::unused_async, missing_docs)]
impl Fetch {
    /// A fetcher over these rooms.
    pub fn new(network: Network, store: Store, locate: Locate, transfer: Transfer) -> Self {
        unimplemented!()
    }
    /// Begins a read of `root`; `publishers` are asked too, and `replicas` is how many holders come first.
    pub fn begin(&self, root: Cid, publishers: Vec<PeerId>, replicas: u8) -> FetchJob {
        unimplemented!()
    }
}

#[allow(unused_variables, clippy::unimplemented, clippy::unused_async, missing_docs)]
impl FetchJob {
    /// One chunk, verified, and who gave it (this node's own id for the own store). Callers bound how many they ask at once.
    /// Cancel-safe.
    pub async fn chunk(&self, cid: Cid) -> Result<(Chunk, PeerId), FetchError> {
        unimplemented!()
    }
}
