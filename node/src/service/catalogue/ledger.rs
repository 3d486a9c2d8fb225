//! The catalogue's state: the map, where it is kept, and who is told.

use std::{
    collections::HashSet,
    fmt, io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use libp2p::identity::Keypair;
use p2p_protocol::{
    PeerId,
    catalogue::{
        Catalogue as Map, EntryKey, InvalidPublication, MAX_SIGNED_BYTES, Outcome, Publication, SignedPublication,
    },
};
use tokio::sync::{Mutex as AsyncMutex, Notify, broadcast, watch};

use super::{Change, Draft, payload, same_content};
use crate::{
    net::Network,
    store::{Store, StoreError},
};

/// Changes that a slow receiver may be behind: what a catch-up brings in some seconds; about 1 MiB while it is full.
const CHANGES: usize = 1024;
/// The store's records that are publications: this, then the entry's key.
const RECORD_PREFIX: &[u8] = b"publication/";
/// The index's key space of others' publications, by entry key.
const META: &str = "catalogue";
/// While loading, other tasks get a turn after so many signatures (some 10 ms).
const LOADED_AT_ONCE: usize = 256;

/// What gossip, catch-up and the handle share.
pub(in crate::service) struct Ledger {
    network: Network,
    store: Store,
    keypair: Keypair,
    network_name: String,
    topic: String,
    local: PeerId,
    /// Held while a publication is merged, kept and told, so that all three have one order. Never across an await.
    map: Mutex<Map>,
    /// Who publishes has it from the look at the version to the merge. The keys that were published since the start.
    own: AsyncMutex<HashSet<EntryKey>>,
    changes: broadcast::Sender<Change>,
    fresh: Notify,
    /// Whether the peers that are here were compared with.
    caught_up: watch::Sender<bool>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("local", &self.local).field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Ledger {
    /// Reads the store. What is not valid in this network is left out, and others' such entries are removed.
    pub(super) async fn load(
        network: Network,
        store: Store,
        keypair: Keypair,
        network_name: &str,
        topic: &str,
    ) -> Result<Self, StoreError> {
        let local = keypair.public().to_peer_id();
        let mut map = Map::default();
        let own = store.records(RECORD_PREFIX, None, usize::MAX)?.into_iter();
        let others = store.meta(META)?;
        for (index, (key, value)) in own.chain(others).enumerate() {
            if index % LOADED_AT_ONCE == LOADED_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            match SignedPublication::decode(network_name, &value) {
                Ok(signed) => drop(map.merge(signed)),
                // Of another network, or of a key that this data directory had before: it stays in the log.
                Err(error) if key.starts_with(RECORD_PREFIX) => {
                    tracing::debug!(%error, "left out a publication of this node's log");
                }
                // A later version wrote it, and will read it again.
                Err(error) if error.is_unknown() => {
                    tracing::debug!(%error, "left out a publication that only a later version can read");
                }
                Err(error) => {
                    tracing::debug!(%error, "removed a publication that is not valid here");
                    store.remove_meta(META, &key)?;
                }
            }
        }
        Ok(Self {
            network,
            store,
            keypair,
            network_name: network_name.to_owned(),
            topic: topic.to_owned(),
            local,
            map: Mutex::new(map),
            own: AsyncMutex::default(),
            changes: broadcast::Sender::new(CHANGES),
            fresh: Notify::new(),
            caught_up: watch::Sender::new(false),
        })
    }

    pub(in crate::service) fn local(&self) -> PeerId {
        self.local
    }

    pub(in crate::service) fn network_name(&self) -> &str {
        &self.network_name
    }

    /// Whether the peers that are here were compared with, as it is and as it changes.
    pub(super) fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.subscribe()
    }

    /// See [`caught_up`](Self::caught_up).
    pub(in crate::service) fn set_caught_up(&self, caught_up: bool) {
        self.caught_up.send_if_modified(|before| std::mem::replace(before, caught_up) != caught_up);
    }

    /// The map, for a short look or change.
    pub(in crate::service) fn map(&self) -> MutexGuard<'_, Map> {
        // Its methods do not panic; if one did, what stands is still signed and complete.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Whether these very signed bytes stand already.
    pub(in crate::service) fn knows(&self, signed_bytes: &[u8]) -> bool {
        signed_bytes.len() <= MAX_SIGNED_BYTES && self.map().ids().contains(blake3::hash(signed_bytes).as_bytes())
    }

    /// Returns when something new is here that gossip may have missed to bring elsewhere. Cancel-safe; one waiter.
    pub(in crate::service) async fn fresh(&self) {
        self.fresh.notified().await;
    }

    /// Says that something new is here: it was published, or came by catch-up.
    pub(in crate::service) fn set_fresh(&self) {
        self.fresh.notify_one();
    }

    /// Takes in what was heard or pulled; says what became of it. Cancel-safe but for this node's own publications,
    /// which then are in the map and not yet in the log: they come from the network again.
    pub(in crate::service) async fn take(&self, signed: SignedPublication) -> Outcome {
        if signed.publication().publisher == self.local {
            return self.take_own(signed).await;
        }
        let key = signed.publication().key();
        let (map, outcome) = self.merge(&signed);
        if matches!(outcome, Outcome::Taken { .. })
            && let Err(error) = self.store.set_meta(META, &key.0, signed.bytes())
        {
            // It stands in memory, and comes again from the peers after a restart.
            tracing::warn!(%error, "could not keep a publication in the index");
        }
        drop(map);
        outcome
    }

    /// This node's own publication comes back from the network: its log was lost, or another run of it was ahead.
    async fn take_own(&self, signed: SignedPublication) -> Outcome {
        let own = self.own.lock().await;
        let key = signed.publication().key();
        let outcome = self.merge(&signed).1;
        let Outcome::Taken { previous } = &outcome else { return outcome };
        if let Err(error) = self.store.put_record(record_key(&key), Bytes::copy_from_slice(signed.bytes())).await {
            tracing::warn!(%error, "could not keep this node's own publication, which came from a peer");
        }
        // What was published in this run before the network's higher version was known is the later word of the two.
        if let Some(mine) = previous
            && own.contains(&key)
            && mine.time_milliseconds > signed.publication().time_milliseconds
            && !same_content(mine, signed.publication())
            && let Some(version) = signed.publication().version.checked_add(1)
        {
            let again = Publication { version, ..mine.clone() };
            if let Err(error) = self.issue(again).await {
                tracing::warn!(%error, "could not publish again what an older publication of this node superseded");
            }
        }
        outcome
    }

    /// See [`super::Catalogue::publish`]. Not cancel-safe.
    pub(super) async fn publish(&self, draft: Draft) -> Result<Publication, StoreError> {
        let mut own = self.own.lock().await;
        let key = draft.key(&self.local);
        let mut publication = draft.into_publication(self.local);
        let (standing, room) = {
            let map = self.map();
            (map.get(&self.local, &key), map.has_room(&self.local))
        };
        match standing {
            Some(standing) if same_content(&standing, &publication) => return Ok(standing),
            Some(standing) => {
                publication.version = standing
                    .version
                    .checked_add(1)
                    .ok_or_else(|| invalid(&publication, "its version cannot grow any more".to_owned()))?;
            }
            None if !room => {
                return Err(StoreError::NoSpace {
                    needed: MAX_SIGNED_BYTES as u64,
                    reason: "the catalogue keeps no more publications of one publisher".to_owned(),
                });
            }
            None => publication.version = 1,
        }
        let published = self.issue(publication).await?;
        own.insert(key);
        Ok(published)
    }

    /// Signs, keeps in the log, merges, tells. The caller holds `own`.
    async fn issue(&self, publication: Publication) -> Result<Publication, StoreError> {
        let signed = SignedPublication::sign(&self.keypair, &self.network_name, publication.clone())
            .map_err(|error: InvalidPublication| invalid(&publication, error.to_string()))?;
        let key = record_key(&publication.key());
        self.store.put_record(key, Bytes::copy_from_slice(signed.bytes())).await?;
        drop(self.merge(&signed));
        if let Err(error) = self.network.publish(&self.topic, payload(&signed)).await {
            // Catch-up brings it to the others.
            tracing::debug!(%error, "could not gossip a publication");
        }
        self.set_fresh();
        Ok(publication)
    }

    /// Merges and tells; whoever has to keep it does so before the guard goes.
    fn merge(&self, signed: &SignedPublication) -> (MutexGuard<'_, Map>, Outcome) {
        let mut map = self.map();
        let merge = map.merge(signed.clone());
        for key in &merge.dropped {
            if let Err(error) = self.store.remove_meta(META, &key.0) {
                tracing::warn!(%error, "could not remove a publication from the index");
            }
        }
        if let Outcome::Taken { previous } = &merge.outcome {
            // Nobody may be listening.
            let _ = self.changes.send(Change { publication: signed.publication().clone(), previous: previous.clone() });
        }
        (map, merge.outcome)
    }
}

fn record_key(key: &EntryKey) -> Bytes {
    [RECORD_PREFIX, &key.0].concat().into()
}

fn invalid(publication: &Publication, reason: String) -> StoreError {
    StoreError::Io {
        doing: format!("publishing {}", publication.name.as_deref().unwrap_or(&publication.label)),
        source: io::Error::new(io::ErrorKind::InvalidInput, reason).into(),
    }
}
