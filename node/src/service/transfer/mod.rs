//! Moving chunks: one long-lived session a peer, pipelined. SKELETON.

use p2p_protocol::{Chunk, Cid, Multihash, PeerId};

use crate::{
    net::{NetError, Network},
    store::{Role, Store},
};

/// What a peer says of itself when a session begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// Whether it takes chunks.
    pub storing: bool,
    /// The most that it keeps.
    pub capacity_bytes: u64,
    /// What it still has room for.
    pub free_bytes: u64,
}

/// On what terms a peer is asked to keep a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Copies wanted in the network.
    pub wanted: u8,
    /// Fewer copies than wanted can be made now: the receiver owes the rest too.
    pub owed: bool,
    /// The root, where known.
    pub root: Option<Cid>,
}

/// What a peer holds of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holding {
    /// As what.
    pub role: Role,
    /// Copies that it believes are wanted.
    pub wanted: u8,
    /// Payload bytes.
    pub length: u32,
}

/// Why a peer did not give or take.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransferError {
    /// The session could not be opened, or broke.
    #[error(transparent)]
    Net(#[from] NetError),
    /// It has no room.
    #[error("{peer} has no room")]
    NoSpace {
        /// The peer.
        peer: PeerId,
    },
    /// It does not take chunks, or its disk failed.
    #[error("{peer} refused: {reason}")]
    Refused {
        /// The peer.
        peer: PeerId,
        /// What it said.
        reason: String,
    },
    /// It broke the protocol or sent wrong bytes; it was dropped.
    #[error("{peer} broke the protocol: {reason}")]
    Violation {
        /// The peer.
        peer: PeerId,
        /// How.
        reason: String,
    },
    /// It did not answer in time.
    #[error("{peer} did not answer in time")]
    Timeout {
        /// The peer.
        peer: PeerId,
    },
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Transfer {}

#[allow(unused_variables, clippy::unimplemented, clippy::unused_async, missing_docs)]
impl Transfer {
    /// Accepts sessions and serves them from `store`; opens sessions as they are needed.
    pub async fn start(network: Network, store: Store, network_name: &str, storing: bool) -> Result<Self, NetError> {
        unimplemented!()
    }
    /// The peer's greeting, from the session that is open or a new one.
    pub async fn greeting(&self, peer: PeerId) -> Result<Greeting, TransferError> {
        unimplemented!()
    }
    /// One chunk, verified; `None`: the peer does not have it. Many calls are pipelined on the one session.
    /// Cancel-safe: a dropped call's answer is discarded.
    pub async fn fetch(&self, peer: PeerId, cid: Cid) -> Result<Option<Chunk>, TransferError> {
        unimplemented!()
    }
    /// Has the peer keep a chunk as a replica; returns when it says that it is on its disk. The bytes are not
    /// sent if it has them already.
    pub async fn store(&self, peer: PeerId, chunk: Chunk, ask: Ask) -> Result<(), TransferError> {
        unimplemented!()
    }
    /// What the peer holds of each, at most 1024 a call.
    pub async fn holdings(&self, peer: PeerId, hashes: Vec<Multihash>) -> Result<Vec<Option<Holding>>, TransferError> {
        unimplemented!()
    }
    /// Chunk bytes since the start: sent, received.
    pub fn transferred(&self) -> (u64, u64) {
        unimplemented!()
    }
    /// The greeting that this node gives.
    pub fn own_greeting(&self) -> Greeting {
        unimplemented!()
    }
}
