//! The catalogue's state: the map, what of it is still to be written, and who is told.

use std::{
    collections::HashSet,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use libp2p::identity::Keypair;
use p2p_protocol::{
    PeerId,
    catalogue::{
        Catalogue as Map, Class, EntryKey, Kept as _, Limits, MAX_SIGNED_BYTES, Merge, Outcome, Publication,
        PublicationId, SignedPublication, VersionKey,
    },
};
use tokio::sync::{Mutex as AsyncMutex, Notify, broadcast, oneshot, watch};

use super::{
    Change, Event, Live, PublishError, keep,
    keep::{Item, Own, Progress, Queue, Then},
    kept::{self, Lookup, Pending},
    payload,
    records::{self, NetworkTag, Value},
    same_content,
};
use crate::{
    net::Network,
    store::{Store, StoreError},
};

/// Changes that a slow receiver may be behind: what a catch-up brings in some seconds; about 1 MiB while it is full.
const CHANGES: usize = 1024;
/// Records of a page, after which other tasks get a turn while the log is read: under a MiB, a few milliseconds.
pub(super) const PAGE: usize = 512;
/// Publishers that are remembered as known: as many as there are peers in the table of those that store.
const KNOWN: usize = 8192;

/// What gossip, catch-up and the handle share.
pub(in crate::service) struct Ledger {
    network: Network,
    store: Store,
    keypair: Keypair,
    network_name: String,
    network_tag: NetworkTag,
    topic: String,
    local: PeerId,
    /// Held while a publication is merged and put into the queue, so that both have one order. Never across an await.
    state: Mutex<State>,
    /// There is something in the queue.
    queued: Notify,
    progress: watch::Receiver<Progress>,
    /// Who publishes has it from the look at the version to the merge. The keys that were published since the start.
    own: AsyncMutex<HashSet<EntryKey>>,
    changes: broadcast::Sender<Change>,
    live: broadcast::Sender<Live>,
    fresh: Notify,
    /// Whether the peers that are here were compared with.
    caught_up: watch::Sender<bool>,
}

/// What stands, and what of it is not on disk yet.
pub(super) struct State {
    map: Map,
    pub(super) queue: Queue,
    pending: Pending,
    /// The last that was given to a change.
    position: u64,
    known: HashSet<PeerId>,
}

#[cfg(test)]
impl State {
    /// Whether nothing waits to be written or is held until it is.
    pub(super) fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.pending.is_empty()
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("local", &self.local).field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// The map, for as long as it is looked at.
pub(in crate::service) struct MapGuard<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for MapGuard<'_> {
    type Target = Map;

    fn deref(&self) -> &Map {
        &self.0.map
    }
}

impl Ledger {
    /// Reads the store. What is of another network is left out; records of what does not stand are removed.
    pub(super) async fn load(
        network: Network,
        store: Store,
        keypair: Keypair,
        network_name: &str,
        topic: &str,
        limits: Limits,
        progress: watch::Receiver<Progress>,
    ) -> Result<Self, StoreError> {
        let local = keypair.public().to_peer_id();
        let mut map = Map::with_limits(limits);
        map.set_class(&local, Class::Own);
        let position = read(&store, records::network_tag(network_name), &mut map).await?;
        Ok(Self {
            network,
            store,
            keypair,
            network_name: network_name.to_owned(),
            network_tag: records::network_tag(network_name),
            topic: topic.to_owned(),
            local,
            state: Mutex::new(State {
                map,
                queue: Queue::default(),
                pending: Pending::default(),
                position,
                known: HashSet::new(),
            }),
            queued: Notify::new(),
            progress,
            own: AsyncMutex::default(),
            changes: broadcast::Sender::new(CHANGES),
            live: broadcast::Sender::new(CHANGES),
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

    pub(super) fn network_tag(&self) -> NetworkTag {
        self.network_tag
    }

    pub(in crate::service) fn store(&self) -> &Store {
        &self.store
    }

    /// Whether the peers that are here were compared with, as it is and as it changes.
    pub(in crate::service) fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.subscribe()
    }

    /// See [`caught_up`](Self::caught_up).
    pub(in crate::service) fn set_caught_up(&self, caught_up: bool) {
        self.caught_up.send_if_modified(|before| std::mem::replace(before, caught_up) != caught_up);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under it panics; if something did, what stands is still signed and complete.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The map, for a short look.
    pub(in crate::service) fn map(&self) -> MapGuard<'_> {
        MapGuard(self.state())
    }

    /// A look at the map that needs bytes of what stands, which may have to be read from the disk.
    pub(in crate::service) fn look<T>(&self, look: impl FnOnce(&Map, &Lookup<'_>) -> T) -> T {
        let state = self.state();
        look(&state.map, &self.lookup(&state.pending))
    }

    fn lookup<'a>(&'a self, pending: &'a Pending) -> Lookup<'a> {
        Lookup { pending, store: &self.store, network: self.network_tag }
    }

    /// The signed bytes of a publication, if it still stands.
    pub(in crate::service) fn bytes_of(&self, publication: &Publication) -> Option<Bytes> {
        let (publisher, key, version) = (&publication.publisher, publication.key(), publication.version);
        self.look(|map, kept| {
            let stands = map.stands(publisher, &key, version);
            stands.then(|| kept.signed_bytes(&publication.version_key())).flatten()
        })
    }

    /// The signed bytes of what stands by an id, without holding anybody up while they are read. What is lost on the disk
    /// is forgotten: then it comes again from others.
    pub(in crate::service) fn signed_bytes(&self, id: &PublicationId) -> Option<Bytes> {
        let key = {
            let state = self.state();
            let key = state.map.key_of(id)?;
            if let Some(bytes) = state.pending.get(&key) {
                return Some(bytes);
            }
            key
        };
        let read = || kept::read(&self.store, self.network_tag, &key);
        let is_it = |bytes: &Bytes| blake3::hash(bytes) == *id;
        match read() {
            Ok(Some(bytes)) if is_it(&bytes) => return Some(bytes),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a publication could not be read");
                return None;
            }
        }
        // It may have been superseded, or replaced by one that is not on disk yet, or written just now.
        let mut state = self.state();
        if state.map.key_of(id)? != key || state.pending.get(&key).is_some() {
            return None;
        }
        match read() {
            Ok(Some(bytes)) if is_it(&bytes) => Some(bytes),
            Ok(_) => {
                tracing::warn!("a publication is lost on the disk; it is asked for again");
                state.map.forget_id(id);
                None
            }
            Err(_) => None,
        }
    }

    /// These are on disk.
    pub(super) fn written(&self, items: &[(u64, Item)]) {
        let mut state = self.state();
        for (number, item) in items {
            if let Some((key, _)) = &item.write {
                state.pending.written(key, *number);
            }
        }
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// The last position that was given.
    pub(super) fn position(&self) -> u64 {
        self.state().position
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Returns when something may be in the queue. Cancel-safe; one waiter.
    pub(super) async fn queued(&self) {
        self.queued.notified().await;
    }

    /// Tells whoever watches.
    pub(super) fn tell(&self, change: Change) {
        // Nobody may be listening.
        let _ = self.changes.send(change);
    }

    pub(super) fn liveness(&self) -> broadcast::Receiver<Live> {
        self.live.subscribe()
    }

    /// Tells whoever keeps chunks because of it.
    pub(super) fn tell_live(&self, live: Live) {
        // Nobody may be listening.
        let _ = self.live.send(live);
    }

    /// These are storing peers: what they publish does not give way to strangers any more.
    pub(super) fn know(&self, peers: impl IntoIterator<Item = PeerId>) {
        let mut state = self.state();
        for peer in peers {
            if peer != self.local && state.known.len() < KNOWN && state.known.insert(peer) {
                state.map.set_class(&peer, Class::Known);
            }
        }
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

    /// Waits until all that was taken in by now is on disk. See [`keep::flushed`].
    pub(in crate::service) async fn flushed(&self) -> Result<(), StoreError> {
        keep::flushed(self).await
    }

    /// Takes in what was heard or pulled; says what became of it. It is on disk some milliseconds later: see
    /// [`flushed`](Self::flushed). Waits where more than that is waiting to be written. Cancel-safe.
    pub(in crate::service) async fn take(&self, signed: SignedPublication) -> Outcome {
        keep::room(self).await;
        if signed.publication().publisher == self.local {
            return self.take_own(signed).await;
        }
        self.merge(signed).0
    }

    /// This node's own publication comes back from the network: its log was lost, or another run of it was ahead.
    async fn take_own(&self, signed: SignedPublication) -> Outcome {
        let own = self.own.lock().await;
        let publication = signed.publication().clone();
        let (outcome, previous) = self.merge(signed);
        // What was published in this run before the network's higher version was known is the later word of the two.
        if let (Outcome::Taken { current: true, .. }, Some(mine)) = (&outcome, &previous)
            && own.contains(&publication.key())
            && mine.time_milliseconds > publication.time_milliseconds
            && !same_content(mine, &publication)
            && let Some(version) = publication.version.checked_add(1)
        {
            let floor = if mine.removed { version } else { self.map().floor(&self.local, &publication.key()) };
            let again = Publication { version, floor, ..mine.clone() };
            if let Err(error) = self.issue(again).await {
                tracing::warn!(%error, "could not publish again what an older publication of this node superseded");
            }
        }
        outcome
    }

    /// Publishes what `next` makes of what is current under `key` and the floor there (0: nothing stands). Not
    /// cancel-safe.
    pub(super) async fn publish(
        &self,
        key: EntryKey,
        next: impl FnOnce(Option<Publication>, u64) -> Result<Next, PublishError>,
    ) -> Result<Publication, PublishError> {
        let mut own = self.own.lock().await;
        let publication = {
            let state = self.state();
            let current = state.map.get(&self.local, &key, &self.lookup(&state.pending));
            let publication = match next(current, state.map.floor(&self.local, &key))? {
                Next::Stands(publication) => return Ok(publication),
                Next::Publish(publication) => publication,
            };
            if !state.map.has_room(&self.local, &key, publication.version, publication.floor) {
                return Err(PublishError::Share(state.map.limits().entries_per_publisher));
            }
            publication
        };
        let published = self.issue(publication).await?;
        own.insert(key);
        Ok(published)
    }

    /// Signs, keeps in the log, merges, tells. The caller holds `own`.
    async fn issue(&self, publication: Publication) -> Result<Publication, PublishError> {
        let signed = SignedPublication::sign(&self.keypair, &self.network_name, publication.clone())
            .map_err(|why| PublishError::invalid(&publication, why.to_string()))?;
        let (answer, kept) = oneshot::channel();
        {
            let mut state = self.state();
            let previous = state.map.get(&self.local, &publication.key(), &self.lookup(&state.pending));
            let (position, event) = (state.position + 1, event(&publication, previous.as_ref()));
            state.position = position;
            let value = Value {
                position,
                event: Some(event),
                network: self.network_tag,
                signed_bytes: Bytes::copy_from_slice(signed.bytes()),
            };
            let change = Change { position, event, publication: publication.clone() };
            state.queue.push(Item {
                write: Some((publication.version_key(), value)),
                gone: Vec::new(),
                position,
                // That is known once it is merged.
                live: Vec::new(),
                then: Then::Merge(Box::new(Own { signed: signed.clone(), change, answer })),
            });
        }
        self.queued.notify_one();
        kept.await.map_err(|_| StoreError::Closed)??;
        if let Err(error) = self.network.publish(&self.topic, payload(&signed)).await {
            // Catch-up brings it to the others.
            tracing::debug!(%error, "could not gossip a publication");
        }
        self.set_fresh();
        Ok(publication)
    }

    /// Merges one of this node that is in the log already.
    pub(super) fn merge_kept(&self, signed: SignedPublication) -> Outcome {
        let mut state = self.state();
        let Merged { outcome, mut gone, live } = self.merge_into(&mut state, &signed);
        if matches!(outcome, Outcome::Older | Outcome::Beyond) {
            gone.push(signed.publication().version_key());
        }
        if !gone.is_empty() || !live.is_empty() {
            let position = state.position;
            state.queue.push(Item { write: None, gone, position, live, then: Then::Nothing });
            self.queued.notify_one();
        }
        outcome
    }

    /// Merges, and puts what changed into the queue; gives what was current before.
    fn merge(&self, signed: SignedPublication) -> (Outcome, Option<Publication>) {
        let mut state = self.state();
        let (publisher, key) = (&signed.publication().publisher, signed.publication().key());
        let previous = state.map.get(publisher, &key, &self.lookup(&state.pending));
        let Merged { outcome, gone, live } = self.merge_into(&mut state, &signed);
        let signed_bytes = Bytes::copy_from_slice(signed.bytes());
        let publication = signed.into_parts().0;
        let key = publication.version_key();
        let (mut write, mut then) = (None, Then::Nothing);
        if let Outcome::Taken { current, .. } = &outcome {
            state.position += 1;
            let position = state.position;
            let event = current.then(|| event(&publication, previous.as_ref()));
            write =
                Some((key, Value { position, event, network: self.network_tag, signed_bytes: signed_bytes.clone() }));
            if let Some(event) = event {
                then = Then::Tell(Box::new(Change { position, event, publication }));
            }
        }
        if write.is_some() || !gone.is_empty() {
            let (position, wrote) = (state.position, write.is_some());
            let number = state.queue.push(Item { write, gone, position, live, then });
            if wrote {
                state.pending.put(key, number, signed_bytes);
            }
            self.queued.notify_one();
        }
        (outcome, previous)
    }

    fn merge_into(&self, state: &mut State, signed: &SignedPublication) -> Merged {
        let State { map, pending, .. } = state;
        let overflowed = map.has_overflowed();
        let Merge { outcome, dropped } = map.merge(signed, &self.lookup(pending));
        if !overflowed && map.has_overflowed() {
            tracing::warn!(
                entries = map.len(),
                "the catalogue has no room for all that is published: the rest is not listed here, and its chunks are not kept"
            );
        }
        let publication = signed.publication();
        // One of the same version is overwritten.
        let gone = dropped.iter().map(|other| other.key).filter(|key| *key != publication.version_key()).collect();
        let ceased = dropped.into_iter().filter_map(|other| other.publication).filter(|other| !other.removed);
        let became = (outcome.is_taken() && !publication.removed).then(|| Live::Became(publication.clone()));
        // What comes first: chunks that both list are wanted all the time.
        let live = became.into_iter().chain(ceased.map(Live::Ceased)).collect();
        Merged { outcome, gone, live }
    }
}

/// What a merge did, and what follows from it.
struct Merged {
    outcome: Outcome,
    /// What does not stand any more.
    gone: Vec<VersionKey>,
    live: Vec<Live>,
}

/// What is to be published.
pub(super) enum Next {
    /// Nothing: this stands.
    Stands(Publication),
    /// This.
    Publish(Publication),
}

fn event(publication: &Publication, previous: Option<&Publication>) -> Event {
    match previous {
        _ if publication.removed => Event::Removed,
        Some(previous) if !previous.removed => Event::Updated,
        _ => Event::Added,
    }
}

/// Fills the map from the log; gives the last position that was given.
async fn read(store: &Store, network: NetworkTag, map: &mut Map) -> Result<u64, StoreError> {
    let last = store.record(records::POSITION)?;
    let mut position = last.and_then(|value| value[..].try_into().ok()).map_or(0, u64::from_be_bytes);
    let pending = Pending::default();
    let lookup = Lookup { pending: &pending, store, network };
    let mut gone = Vec::new();
    let mut after: Option<Bytes> = None;
    loop {
        let page = store.records(records::PREFIX, after.as_deref(), PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        tokio::task::yield_now().await;
        for (key, value) in page {
            let Some(value) = Value::decode(&value) else {
                tracing::debug!("left out a record of the catalogue that only a later version can read");
                continue;
            };
            position = position.max(value.position);
            // It stays in the log for that network.
            if value.network != network {
                continue;
            }
            // Its signature was checked before it was written.
            match SignedPublication::read_back(&value.signed_bytes) {
                Ok(signed) if records::is_key_of(&key, signed.publication()) => {
                    let Merge { outcome, dropped } = map.merge(&signed, &lookup);
                    gone.extend(dropped.iter().map(|other| records::key(&other.key)));
                    if !outcome.is_taken() {
                        gone.push(key);
                    }
                }
                Ok(_) => gone.push(key),
                // A later version wrote it, and will read it again.
                Err(error) => tracing::debug!(%error, "left out a publication of the log"),
            }
        }
    }
    if !gone.is_empty() {
        let position = Bytes::copy_from_slice(&position.to_be_bytes());
        store.put_record(Bytes::from_static(records::POSITION), position).await?;
        gone.sort_unstable();
        gone.dedup();
        store.change_records(gone.into_iter().map(|key| (key, None)).collect()).await?;
    }
    Ok(position)
}
