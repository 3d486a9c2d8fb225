//! Remembered peers: those met in this run are written down, and tried at the next start.
//!
//! They live in the index (`peers`): losing them costs a `--bootstrap`, nothing more. Only peers whose identify
//! proved that they are of this network are in the table, so only those are remembered.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use crate::{
    net::{Network, PeerTable},
    store::{Store, StoreError},
};

const TREE: &str = "peers";
/// Peers that are remembered at the most: a network of this class is far smaller (a guess).
const MAX_PEERS: usize = 1024;
/// Addresses that are remembered of each: what a machine with a few interfaces announces, twice.
const MAX_ADDRESSES: usize = 8;
/// How long a peer that was not met again is remembered.
const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Table changes come in bursts while nodes meet; one write serves a burst.
const SETTLE: Duration = Duration::from_secs(1);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Remembered {
    addresses: Vec<Multiaddr>,
    met_unix_seconds: u64,
}

/// The peers of earlier runs, last met first. What cannot be read is left out: it is only a cache.
pub fn known(store: &Store) -> Result<Vec<(PeerId, Vec<Multiaddr>)>, StoreError> {
    let oldest = unix_seconds().saturating_sub(KEEP.as_secs());
    let mut known: Vec<(u64, PeerId, Vec<Multiaddr>)> = Vec::new();
    for (key, value) in store.meta(TREE)? {
        let Ok(peer) = PeerId::from_bytes(&key) else { continue };
        match serde_json::from_slice::<Remembered>(&value) {
            Ok(remembered) if remembered.met_unix_seconds >= oldest => {
                known.push((remembered.met_unix_seconds, peer, remembered.addresses));
            }
            _ => store.remove_meta(TREE, &key)?,
        }
    }
    known.sort_by_key(|(met, ..)| std::cmp::Reverse(*met));
    for (_, peer, _) in known.iter().skip(MAX_PEERS) {
        store.remove_meta(TREE, &peer.to_bytes())?;
    }
    known.truncate(MAX_PEERS);
    Ok(known.into_iter().map(|(_, peer, addresses)| (peer, addresses)).collect())
}

/// Writes peers down as the table changes: the first at once, so that a node that is killed young knows somebody when it
/// comes back. Ends when the network does.
pub async fn run(network: Network, store: Store) {
    let mut table = network.peers();
    let mut written: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
    table.mark_changed();
    while table.changed().await.is_ok() {
        let now = Arc::clone(&table.borrow_and_update());
        let store = store.clone();
        let earlier = std::mem::take(&mut written);
        // sled may touch the disk: not on the runtime's own threads.
        match tokio::task::spawn_blocking(move || write(&store, &now, earlier)).await {
            Ok(done) => written = done,
            Err(_) => return,
        }
        if !written.is_empty() {
            sleep_until(Instant::now() + SETTLE).await;
        }
    }
}

/// Writes down the peers of this moment: at the end of a run, what came since the last write.
pub async fn finish(network: &Network, store: &Store) {
    let now = Arc::clone(&network.peers().borrow());
    let store = store.clone();
    // Nothing of it panics; if it did, a few peers would be forgotten.
    let _ = tokio::task::spawn_blocking(move || write(&store, &now, BTreeMap::new())).await;
}

fn write(
    store: &Store,
    table: &PeerTable,
    mut written: BTreeMap<PeerId, Vec<Multiaddr>>,
) -> BTreeMap<PeerId, Vec<Multiaddr>> {
    for (peer, state) in table.peers.iter().filter(|(_, state)| state.connected).take(MAX_PEERS) {
        let mut addresses: Vec<Multiaddr> = state.addresses.iter().take(MAX_ADDRESSES).cloned().collect();
        // The same addresses in another order are no news.
        addresses.sort_by_key(ToString::to_string);
        if addresses.is_empty() || written.get(peer) == Some(&addresses) {
            continue;
        }
        let remembered = Remembered { addresses: addresses.clone(), met_unix_seconds: unix_seconds() };
        let Ok(value) = serde_json::to_vec(&remembered) else { continue };
        match store.set_meta(TREE, &peer.to_bytes(), &value) {
            Ok(()) => {
                written.insert(*peer, addresses);
            }
            Err(error) => tracing::warn!(%peer, %error, "cannot remember a peer"),
        }
    }
    written
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
