//! What the network holds: publications, gossiped and kept. SKELETON.

use libp2p::identity::Keypair;
use p2p_protocol::{
    Cid,
    catalogue::{Kind, Publication},
};
use tokio::sync::broadcast;

use crate::{
    error::Result,
    net::Network,
    store::{Store, StoreError},
};

/// What an add publishes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draft {
    /// The name, or none.
    pub name: Option<String>,
    /// The file's name.
    pub label: String,
    /// The root.
    pub root: Cid,
    /// What it is.
    pub kind: Kind,
    /// Content bytes.
    pub size: u64,
    /// Copies wanted.
    pub replicas: u8,
}

/// A change of the catalogue: `previous` is what it supersedes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// What stands now.
    pub publication: Publication,
    /// What stood before.
    pub previous: Option<Publication>,
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Catalogue {}

#[allow(unused_variables, clippy::unimplemented, clippy::unused_async, missing_docs)]
impl Catalogue {
    /// Loads what the store has, joins the topic, serves and runs catch-up.
    pub async fn start(network: Network, store: Store, keypair: Keypair, network_name: &str) -> Result<Self> {
        unimplemented!()
    }
    /// Signs, keeps durably, gossips. Publishing what already stands unchanged makes no new version.
    pub async fn publish(&self, draft: Draft) -> Result<Publication, StoreError> {
        unimplemented!()
    }
    /// All that stand (removals left out), by name, then publisher.
    pub fn entries(&self) -> Vec<Publication> {
        unimplemented!()
    }
    /// Those of a root; this node's own first, then the newest.
    pub fn by_root(&self, root: &Cid) -> Vec<Publication> {
        unimplemented!()
    }
    /// Those under a published name (not a label), one a publisher.
    pub fn by_name(&self, name: &str) -> Vec<Publication> {
        unimplemented!()
    }
    /// Changes from now on. A receiver that lags loses the oldest.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        unimplemented!()
    }
}
