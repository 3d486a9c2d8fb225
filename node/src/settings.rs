//! What the daemon runs with: flags beat the environment, which beats the file.

use std::path::PathBuf;

use libp2p::Multiaddr;

/// The name of the network that a node joins when none is given.
pub const DEFAULT_NETWORK: &str = "main";
/// Copies of each chunk that are asked for when nothing else is said.
pub const DEFAULT_REPLICAS: u8 = 3;
/// The port that is tried first.
pub const DEFAULT_PORT: u16 = 4242;

/// Validated settings of a daemon.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's state: absolute.
    pub data_dir: PathBuf,
    /// Where peers reach it; empty: the default port on every address (a free, remembered port if it is taken).
    pub listen: Vec<Multiaddr>,
    /// Peers to join through.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// Copies of each chunk that this node asks for when it adds, 1 to 16.
    pub replicas: u8,
    /// The most bytes that chunks may take; `None`: 80 % of the free space at the first start, remembered.
    pub capacity_bytes: Option<u64>,
    /// The network's name.
    pub network: String,
}
