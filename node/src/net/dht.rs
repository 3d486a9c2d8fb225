//! Kademlia: lookups and provider records (Maymounkov and Mazières, 2002; libp2p kad-dht spec).
//!
//! Lookups never return this node. In a network that is known whole no lookup is needed at all.

use std::collections::{BTreeSet, HashMap};

use libp2p::{
    Multiaddr, PeerId,
    kad::{self, QueryId, QueryResult, RecordKey},
};
use tokio::sync::oneshot;

use super::{NetError, address, providers::Providers};

/// Lookups at once: each holds a few KiB and talks to about twenty peers (a guess).
const MAX_LOOKUPS: usize = 256;
/// What a lookup returns at most: Kademlia's k.
const MOST: usize = 20;
/// Providers that are reported of one key.
const MAX_PROVIDERS: usize = 64;

type Behaviour = kad::Behaviour<Providers>;
type Answer<T> = oneshot::Sender<Result<T, NetError>>;

#[derive(Debug)]
enum Lookup {
    Closest(Answer<Vec<PeerId>>),
    Provide(Answer<()>),
    Providers {
        found: BTreeSet<PeerId>,
        reply: Answer<Vec<PeerId>>,
    },
    /// Discovery looks around.
    Around,
}

/// What a finished step means to discovery.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Peers that were named, where they are.
    pub peers: Vec<(PeerId, Vec<Multiaddr>)>,
    /// A look around is over.
    pub looked: bool,
}

/// The lookups that are under way.
#[derive(Debug)]
pub(super) struct Dht {
    local: PeerId,
    lookups: HashMap<QueryId, Lookup>,
}

impl Dht {
    /// None yet.
    pub fn new(local: PeerId) -> Self {
        Self { local, lookups: HashMap::new() }
    }

    /// The peers nearest to SHA-256(`preimage`); `whole`: all peers there are, if this node knows them all.
    pub fn closest(
        &mut self,
        kad: &mut Behaviour,
        preimage: Vec<u8>,
        whole: Option<Vec<PeerId>>,
        reply: Answer<Vec<PeerId>>,
    ) {
        if let Some(peers) = whole {
            let target = kad::KBucketKey::new(preimage);
            let mut ranked: Vec<_> =
                peers.into_iter().map(|peer| (kad::KBucketKey::from(peer).distance(&target), peer)).collect();
            ranked.sort_unstable();
            let _ = reply.send(Ok(ranked.into_iter().take(MOST).map(|(_, peer)| peer).collect()));
        } else if let Some(reply) = self.admit(reply) {
            let id = kad.get_closest_peers(preimage);
            self.lookups.insert(id, Lookup::Closest(reply));
        }
    }

    /// Announces this node as a provider.
    pub fn provide(&mut self, kad: &mut Behaviour, key: &[u8], reply: Answer<()>) {
        let Some(reply) = self.admit(reply) else { return };
        match kad.start_providing(RecordKey::new(&key)) {
            Ok(id) => {
                self.lookups.insert(id, Lookup::Provide(reply));
            }
            Err(error) => {
                let _ = reply.send(Err(NetError::Unreachable { subject: "the DHT".into(), reason: error.to_string() }));
            }
        }
    }

    /// Asks who provides a key.
    pub fn providers(&mut self, kad: &mut Behaviour, key: &[u8], reply: Answer<Vec<PeerId>>) {
        if let Some(reply) = self.admit(reply) {
            let id = kad.get_providers(RecordKey::new(&key));
            self.lookups.insert(id, Lookup::Providers { found: BTreeSet::new(), reply });
        }
    }

    /// Looks around near `target` for the sake of discovery.
    pub fn look_around(&mut self, kad: &mut Behaviour, target: Vec<u8>) {
        let id = kad.get_closest_peers(target);
        self.lookups.insert(id, Lookup::Around);
    }

    fn admit<T>(&self, reply: Answer<T>) -> Option<Answer<T>> {
        if self.lookups.len() < MAX_LOOKUPS {
            return Some(reply);
        }
        let reason = "too many lookups are under way".to_owned();
        let _ = reply.send(Err(NetError::Unreachable { subject: "the DHT".to_owned(), reason }));
        None
    }

    /// An event of Kademlia.
    pub fn on_event(&mut self, kad: &mut Behaviour, event: kad::Event) -> Found {
        let mut found = Found::default();
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else { return found };
        match result {
            QueryResult::GetClosestPeers(result) => {
                let peers = match result {
                    Ok(done) => done.peers,
                    // What it found in its time is worth having.
                    Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                let nearest: Vec<_> =
                    peers.iter().map(|peer| peer.peer_id).filter(|peer| *peer != self.local).collect();
                found.peers = peers
                    .into_iter()
                    .filter(|peer| peer.peer_id != self.local)
                    .map(|peer| (peer.peer_id, address::usable(peer.addrs, true)))
                    .collect();
                match self.lookups.remove(&id) {
                    Some(Lookup::Closest(reply)) => drop(reply.send(Ok(nearest.into_iter().take(MOST).collect()))),
                    Some(Lookup::Around) => found.looked = true,
                    _ => {}
                }
            }
            QueryResult::StartProviding(result) => {
                if let Some(Lookup::Provide(reply)) = self.lookups.remove(&id) {
                    let timeout = |_| NetError::Timeout { subject: "the announcement of a root".to_owned() };
                    let _ = reply.send(result.map(|_| ()).map_err(timeout));
                }
            }
            QueryResult::GetProviders(result) => {
                if let (
                    Ok(kad::GetProvidersOk::FoundProviders { providers, .. }),
                    Some(Lookup::Providers { found, .. }),
                ) = (result, self.lookups.get_mut(&id))
                {
                    let room = MAX_PROVIDERS.saturating_sub(found.len());
                    found.extend(providers.into_iter().take(room));
                }
                // A timeout is the last step too: what was found until then is the answer.
                if step.last
                    && let Some(Lookup::Providers { found, reply }) = self.lookups.remove(&id)
                {
                    let _ = reply.send(Ok(found.into_iter().collect()));
                }
            }
            // The next part of what is not wanted.
            QueryResult::Bootstrap(_) if !step.last => finish(kad, &id),
            _ => {}
        }
        found
    }

    /// Puts a peer that identify proved to be of this network into the routing table.
    pub fn insert(kad: &mut Behaviour, peer: PeerId, addresses: &[Multiaddr]) {
        // Loopback addresses are passed on only where a peer has no other.
        let routable = addresses.iter().any(|address| !address::is_loopback(address));
        let mut came = false;
        for address in addresses.iter().filter(|address| !routable || !address::is_loopback(address)) {
            came |= kad.add_address(&peer, address.clone()) == kad::RoutingUpdate::Success;
        }
        // libp2p's Kademlia looks around by itself whenever it knows fewer than twenty peers and another one comes, which
        // cannot be turned off and would ask each of them once for each bucket. Discovery does that, and asks less. A
        // bootstrap that is begun here takes the place of that one, and is over before anybody was asked.
        if came && let Ok(id) = kad.bootstrap() {
            finish(kad, &id);
        }
    }

    /// Whether no bucket is full, so that no peer was turned away.
    pub fn has_room(kad: &mut Behaviour, bucket: usize) -> bool {
        kad.kbuckets().all(|entries| entries.num_entries() < bucket)
    }
}

fn finish(kad: &mut Behaviour, id: &QueryId) {
    if let Some(mut query) = kad.query_mut(id) {
        query.finish();
    }
}
