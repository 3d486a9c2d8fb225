//! Which storing peers there are, and which of them are nearest to a key. SKELETON.

use p2p_protocol::{Multihash, PeerId};

use super::transfer::Transfer;
use crate::net::Network;

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Locate {}

#[allow(unused_variables, clippy::unimplemented, clippy::unused_async, missing_docs)]
impl Locate {
    /// Starts following the peer table; greets each peer that speaks the transfer protocol. Stops when `Network` does.
    pub fn start(network: Network, transfer: Transfer, storing: bool) -> Self {
        unimplemented!()
    }
    /// Storing peers that can take a chunk now (greeted, connected), nearest to the chunk first, this node
    /// included if it stores. In a network too large to be known whole, a region lookup comes first (cached).
    pub async fn ranked(&self, hash: &Multihash) -> Vec<PeerId> {
        unimplemented!()
    }
    /// Storing peers connected now, this node not counted.
    pub fn reachable(&self) -> usize {
        unimplemented!()
    }
    /// Storing peers seen within the last hour, reachable or not, this node included if it stores.
    pub fn seen(&self) -> usize {
        unimplemented!()
    }
    /// Storing peers seen within the last hour that are not reachable now.
    pub fn missing(&self) -> Vec<PeerId> {
        unimplemented!()
    }
    /// Waits until the first round of discovery is over and those found were greeted (10 s at the most).
    pub async fn discovered(&self) {
        unimplemented!()
    }
    /// Changes whenever a storing peer comes or goes.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        unimplemented!()
    }
}
