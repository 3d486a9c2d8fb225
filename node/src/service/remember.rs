//! Remembered peers: those met in this run are written down, and tried at the next start.
//!
//! So is which of them store: those seen within the last hour count as storing peers of the network after a restart too.
//! All of it lives in the index (`peers`): losing it costs a `--bootstrap`, nothing more. Only peers whose identify
//! proved that they are of this network are in the table, so only those are remembered.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{locate::Locate, worker::Work};
use crate::{
    net::{Network, Peer, PeerTable},
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
/// Whoever is still here is written down anew after so long: by so much less a node that is killed believes to have seen it.
const REFRESH: Duration = Duration::from_secs(300);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Remembered {
    addresses: Vec<Multiaddr>,
    met_unix_seconds: u64,
    /// The network in which it was a storing peer, if it was one.
    #[serde(default)]
    stores_in: Option<String>,
    /// When it was met first as one.
    #[serde(default)]
    stores_since_unix_seconds: Option<u64>,
}

impl Remembered {
    /// When it was met first as a storing peer of `network`.
    fn since(&self, network: &str) -> Option<u64> {
        self.stores_since_unix_seconds.filter(|_| self.stores_in.as_deref() == Some(network))
    }
}

/// A peer of an earlier run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// Who.
    pub peer: PeerId,
    /// Where it was reached.
    pub addresses: Vec<Multiaddr>,
    /// How long ago it was last seen, where it was a storing peer of this network then.
    pub stored: Option<Duration>,
    /// How long ago it was met first as one.
    pub stored_first: Option<Duration>,
}

/// The peers of earlier runs, last met first. What cannot be read is left out: it is only a cache.
pub fn known(store: &Store, network: &str) -> Result<Vec<Known>, StoreError> {
    let now = unix_seconds();
    let oldest = now.saturating_sub(KEEP.as_secs());
    let mut known: Vec<(u64, Known)> = Vec::new();
    for (key, value) in store.meta(TREE)? {
        let Ok(peer) = PeerId::from_bytes(&key) else { continue };
        match serde_json::from_slice::<Remembered>(&value) {
            Ok(remembered) if remembered.met_unix_seconds >= oldest => {
                let ago = |seconds: u64| Duration::from_secs(now.saturating_sub(seconds));
                let stored_first = remembered.since(network).map(ago);
                let Remembered { addresses, met_unix_seconds: met, stores_in, .. } = remembered;
                let stored = (stores_in.as_deref() == Some(network)).then(|| ago(met));
                known.push((met, Known { peer, addresses, stored, stored_first }));
            }
            _ => store.remove_meta(TREE, &key)?,
        }
    }
    known.sort_by_key(|(met, ..)| std::cmp::Reverse(*met));
    for (_, known) in known.iter().skip(MAX_PEERS) {
        store.remove_meta(TREE, &known.peer.to_bytes())?;
    }
    known.truncate(MAX_PEERS);
    Ok(known.into_iter().map(|(_, known)| known).collect())
}

/// What was written of a peer, to tell what is news.
type Written = BTreeMap<PeerId, (Vec<Multiaddr>, bool)>;

/// Writes peers down as the table changes: the first at once, so that a node that is killed young knows somebody when it
/// comes back. Ends when the network does.
pub async fn run(network: Network, store: Store, locate: Locate, name: String, work: Work) {
    let (mut table, mut storing) = (network.peers(), locate.changes());
    let mut written = Written::new();
    let mut fresh_until = Instant::now() + REFRESH;
    table.mark_changed();
    loop {
        work.waiting(fresh_until);
        tokio::select! {
            changed = table.changed() => if changed.is_err() { return },
            changed = storing.changed() => if changed.is_err() { return },
            () = sleep_until(fresh_until) => {
                fresh_until = Instant::now() + REFRESH;
                written.clear();
            }
        }
        let Some(done) = write_now(&mut table, &store, &locate, &name, std::mem::take(&mut written)).await else {
            return;
        };
        written = done;
        if !written.is_empty() {
            sleep_until(Instant::now() + SETTLE).await;
        }
    }
}

/// Writes down the peers of this moment: at the end of a run, what came since the last write.
pub async fn finish(network: &Network, store: &Store, locate: &Locate, name: &str) {
    // Nothing of it panics; if it did, a few peers would be forgotten.
    let _ = write_now(&mut network.peers(), store, locate, name, Written::new()).await;
}

/// On disk when it returns: a node that is killed young would else think itself among fewer peers when it comes back, and
/// fetch what is not its share.
async fn write_now(
    table: &mut watch::Receiver<Arc<PeerTable>>,
    store: &Store,
    locate: &Locate,
    name: &str,
    written: Written,
) -> Option<Written> {
    let now = Arc::clone(&table.borrow_and_update());
    let storing = locate.met();
    let name = name.to_owned();
    // sled may touch the disk: not on the runtime's own threads.
    let writing = store.clone();
    let step = move || {
        let mut news = false;
        let written = write(&writing, &now, &storing, &name, written, &mut news);
        (written, news)
    };
    let (written, news) = tokio::task::spawn_blocking(step).await.ok()?;
    if news && let Err(error) = store.key_table().flush().await {
        tracing::debug!(%error, "the peers that were met are not on disk yet");
    }
    Some(written)
}

fn write(
    store: &Store,
    table: &PeerTable,
    storing: &BTreeMap<PeerId, Duration>,
    name: &str,
    mut written: Written,
    news: &mut bool,
) -> Written {
    let before = store.meta(TREE).unwrap_or_else(|error| {
        tracing::warn!(%error, "it cannot be read since when peers are known");
        Vec::new()
    });
    let since =
        |(peer, value): (Bytes, Bytes)| Some((peer, serde_json::from_slice::<Remembered>(&value).ok()?.since(name)?));
    let since: BTreeMap<Bytes, u64> = before.into_iter().filter_map(since).collect();
    let here = |(peer, state): &(&PeerId, &Arc<Peer>)| state.connected || storing.contains_key(peer);
    for (peer, state) in table.peers.iter().filter(here).take(MAX_PEERS) {
        let mut addresses: Vec<Multiaddr> = state.addresses.iter().take(MAX_ADDRESSES).cloned().collect();
        // The same addresses in another order are no news.
        addresses.sort_by_key(ToString::to_string);
        let stored = storing.get(peer);
        let now = (addresses, stored.is_some());
        if now.0.is_empty() || written.get(peer) == Some(&now) {
            continue;
        }
        let remembered = Remembered {
            addresses: now.0.clone(),
            met_unix_seconds: unix_seconds().saturating_sub(stored.map_or(0, Duration::as_secs)),
            stores_in: now.1.then(|| name.to_owned()),
            stores_since_unix_seconds: now
                .1
                .then(|| since.get(&peer.to_bytes()[..]).copied().unwrap_or_else(unix_seconds)),
        };
        let Ok(value) = serde_json::to_vec(&remembered) else { continue };
        match store.set_meta(TREE, &peer.to_bytes(), &value) {
            Ok(()) => {
                written.insert(*peer, now);
                *news = true;
            }
            Err(error) => tracing::warn!(%peer, %error, "cannot remember a peer"),
        }
    }
    written
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Heard, Source};

    /// A table of one peer, found at this address.
    fn table(peer: PeerId, port: u16) -> PeerTable {
        let row = Peer {
            connected: true,
            addresses: vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("an address")],
            protocols: Vec::new(),
            agent: None,
            source: Source::Incoming,
            epoch: 1,
            heard: Heard::default(),
        };
        PeerTable { peers: [(peer, Arc::new(row))].into(), ..PeerTable::default() }
    }

    #[test]
    fn since_when_a_peer_stores_is_not_lost_when_it_is_met_again() {
        let (store, peer) = (Store::in_memory(1 << 20), PeerId::random());
        let storing = BTreeMap::from([(peer, Duration::ZERO)]);
        let met = |port, name: &str| {
            write(&store, &table(peer, port), &storing, name, Written::new(), &mut false);
        };
        met(1, "a");
        let first = known(&store, "a").expect("it reads").remove(0);
        assert!(first.stored_first.is_some_and(|ago| ago < Duration::from_secs(60)), "{first:?}");
        // As if that had been two days ago.
        let value = store.meta(TREE).expect("it reads").remove(0).1;
        let mut value: serde_json::Value = serde_json::from_slice(&value).expect("JSON");
        value["stores_since_unix_seconds"] = (unix_seconds() - 2 * 86_400).into();
        store.set_meta(TREE, &peer.to_bytes(), value.to_string().as_bytes()).expect("it writes");
        met(2, "a");
        let again = known(&store, "a").expect("it reads").remove(0);
        assert_ne!(again.addresses, first.addresses);
        assert!(again.stored_first.is_some_and(|ago| ago >= Duration::from_secs(2 * 86_400)), "{again:?}");
        assert_eq!(known(&store, "b").expect("it reads").remove(0).stored_first, None, "of another network");
        met(3, "b");
        let other = known(&store, "b").expect("it reads").remove(0);
        assert!(other.stored_first.is_some_and(|ago| ago < Duration::from_secs(60)), "{other:?}");
    }
}
