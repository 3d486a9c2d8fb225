//! What the services' own tests share: nodes on the simulated network, named by a seed.

use std::time::Duration;

use libp2p::{PeerId, identity::Keypair};

use super::{transfer::Transfer, wanted::Wanted, worker::Layer};
use crate::{
    net::{
        Network, protocol_name,
        simulated::{self, Fabric},
    },
    store::Store,
};

/// The network's name in tests.
pub(crate) const NETWORK: &str = "test";
/// A gibibyte: no test fills it.
pub(crate) const ROOMY: u64 = 1 << 30;

/// The identity of a seed.
pub(crate) fn keypair(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("any 32 bytes are a secret key")
}

/// The peer of a seed.
pub(crate) fn peer(seed: u8) -> PeerId {
    keypair(seed).public().to_peer_id()
}

/// The transfer protocol's name in tests.
pub(crate) fn transfer_protocol() -> String {
    protocol_name(NETWORK, "transfer", 1)
}

/// Nodes that serve chunks.
pub(crate) trait Serve {
    /// A node whose transfer service runs over a store in memory.
    async fn serve(&self, seed: u8, capacity_bytes: u64) -> (Network, Store, Transfer);
}

impl Serve for Fabric {
    async fn serve(&self, seed: u8, capacity_bytes: u64) -> (Network, Store, Transfer) {
        let (network, store) = (self.join(peer(seed)), Store::in_memory(capacity_bytes));
        let (storing, workers) = (capacity_bytes > 0, Layer::alone());
        let wanted = Wanted::open(store.clone()).expect("it opens");
        let transfer = Transfer::start(network.clone(), store.clone(), wanted, NETWORK, storing, &workers).await;
        (network, store, transfer.expect("the network accepts streams"))
    }
}

/// Waits until `condition` holds; it is an error where that takes a minute.
pub(crate) async fn eventually(what: &str, condition: impl FnMut() -> bool) {
    simulated::eventually(what, Duration::from_secs(60), condition).await;
}
