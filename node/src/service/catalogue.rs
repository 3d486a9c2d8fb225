//! What the network holds: publications, gossiped and kept.
//!
//! This file is the handle and the gossip; [`ledger`] is the state that gossip and catch-up share.
//! This node's own publications are records of the store's log; others' are metadata of its index, which come back by
//! catch-up where the index had to be rebuilt.

pub(in crate::service) mod ledger;

#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use libp2p::identity::Keypair;
use p2p_protocol::{
    Cid,
    catalogue::{EntryKey, Kind, MAX_TIME_MILLISECONDS, Outcome, Publication, SignedPublication, label_from},
    wire::announce,
};
use tokio::{
    sync::{broadcast, mpsc},
    time::timeout,
};

use super::worker::{Layer, Work};
use crate::{
    net::{GossipMessage, NetError, Network, Verdict, protocol_name},
    store::{Store, StoreError},
};
use ledger::Ledger;

/// Gossiped messages that may wait: each is under a kilobyte and takes some 50 µs to check; what is lost beyond comes
/// by catch-up.
const HEARD: usize = 256;
/// The first comparison with the peers that are here is waited for no longer than this.
const CAUGHT_UP: Duration = Duration::from_secs(10);

/// What an add publishes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draft {
    /// The name, or none. Checked with [`p2p_protocol::catalogue::check_name`].
    pub name: Option<String>,
    /// The file's name; what no label may contain is replaced.
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

/// Why the catalogue cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What the store has of it cannot be read.
    #[error("cannot read the catalogue from the store: {0}")]
    Load(#[from] StoreError),
    /// Its gossip cannot be heard.
    #[error("cannot join the catalogue's topic {topic}: {why}")]
    Join {
        /// The topic.
        topic: String,
        /// Why.
        why: Box<NetError>,
    },
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Catalogue {
    ledger: Arc<Ledger>,
    workers: Layer,
}

impl Catalogue {
    /// Loads what the store has and joins the topic.
    ///
    /// Everything that is loaded is checked again, signatures too (some 50 µs each): a data directory may have been
    /// used in another network, and what is passed on must be valid in this one.
    pub async fn start(
        network: Network,
        store: Store,
        keypair: Keypair,
        network_name: &str,
        workers: &Layer,
    ) -> Result<Self, StartError> {
        let name = protocol_name(network_name, "catalogue", 1);
        let ledger = Arc::new(Ledger::load(network.clone(), store, keypair, network_name, &name).await?);
        let cannot_join = |why| StartError::Join { topic: name.clone(), why: Box::new(why) };
        let heard = network.subscribe(&name, HEARD).await.map_err(cannot_join)?;
        let judged = ledger.clone();
        workers.spawn("gossip", |work| listen(judged, heard, work));
        Ok(Self { ledger, workers: workers.clone() })
    }

    /// What catch-up works on.
    pub(in crate::service) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Waits until this node has compared its catalogue with each peer that is connected (10 s at the most).
    pub async fn caught_up(&self) {
        // Without an answer in time, what is known by then is what there is.
        let _ = timeout(CAUGHT_UP, self.ledger.caught_up().wait_for(|caught_up| *caught_up)).await;
    }

    /// Signs, keeps durably, gossips. Publishing what already stands unchanged makes no new version.
    ///
    /// The version is one more than the highest known here for that name or root, whether it is from this node's log
    /// or was heard. Once begun it is carried through even if the caller goes away.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSpace`] where this node has as many publications as the catalogue keeps of one publisher; an
    /// invalid name or number of replicas is [`StoreError::Io`] with `InvalidInput`; else what the store's log says.
    pub async fn publish(&self, draft: Draft) -> Result<Publication, StoreError> {
        let ledger = self.ledger.clone();
        // A task of its own: between the log and the map there is no place to stop.
        let published = self.workers.carry_through(async move { ledger.publish(draft).await }).await;
        published.ok().flatten().unwrap_or(Err(StoreError::Closed))
    }

    /// All that stand (removals left out), by name (without one, label), then publisher.
    pub fn entries(&self) -> Vec<Publication> {
        let mut entries: Vec<_> = self.ledger.map().publications().collect();
        entries.sort_by(|a, b| order(a).cmp(&order(b)));
        entries
    }

    /// Those of a root; this node's own first, then the newest.
    pub fn by_root(&self, root: &Cid) -> Vec<Publication> {
        let local = self.ledger.local();
        let mut entries: Vec<_> = self.ledger.map().by_root(root).collect();
        entries.sort_by_key(|entry| {
            (entry.publisher != local, Reverse(entry.time_milliseconds), entry.publisher, entry.name.clone())
        });
        entries
    }

    /// Those under a published name (not a label), one a publisher; this node's own first, then the newest.
    pub fn by_name(&self, name: &str) -> Vec<Publication> {
        let local = self.ledger.local();
        let mut entries: Vec<_> = self.ledger.map().by_name(name).collect();
        entries.sort_by_key(|entry| (entry.publisher != local, Reverse(entry.time_milliseconds), entry.publisher));
        entries
    }

    /// Changes from now on. A receiver that lags loses the oldest.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.ledger.changes()
    }
}

fn order(entry: &Publication) -> (&str, [u8; 36], Vec<u8>) {
    (entry.name.as_deref().unwrap_or(&entry.label), entry.root.to_bytes(), entry.publisher.to_bytes())
}

/// Judges what is gossiped, until the network is gone.
///
/// Whether a publication of a known format is valid does not depend on who looks or when, and nobody honest passes on
/// what is not: the network refuses whoever sent one that is not. What is of an unknown format is ignored.
async fn listen(ledger: Arc<Ledger>, mut heard: mpsc::Receiver<GossipMessage>, _listed: Work) {
    while let Some(message) = heard.recv().await {
        let verdict = judge(&ledger, &message).await;
        // The driver may have given up waiting.
        let _ = message.verdict.send(verdict);
    }
}

async fn judge(ledger: &Ledger, message: &GossipMessage) -> Verdict {
    match announce::signed_bytes(&message.data) {
        Ok(bytes) if ledger.knows(bytes) => return Verdict::Ignore,
        _ => {}
    }
    match announce::decode(ledger.network_name(), &message.data) {
        Ok(signed) => match ledger.take(signed).await {
            Outcome::Taken { .. } => Verdict::Accept,
            Outcome::Known | Outcome::Older | Outcome::Beyond => Verdict::Ignore,
        },
        // Only a later version can tell whether it is valid, so it is not passed on.
        Err(error) if error.is_unknown() => Verdict::Ignore,
        Err(error) => {
            tracing::debug!(from = %message.from, %error, "refused a gossiped publication");
            Verdict::Reject
        }
    }
}

impl Draft {
    fn key(&self, publisher: &p2p_protocol::PeerId) -> EntryKey {
        match &self.name {
            Some(name) => EntryKey::named(publisher, name),
            None => EntryKey::unnamed(publisher, &self.root),
        }
    }

    /// What is published, the version to be set.
    fn into_publication(self, publisher: p2p_protocol::PeerId) -> Publication {
        // For people: a clock before 1970 or after 9999 shows the nearest time that can be written.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Publication {
            publisher,
            label: label_from(&self.label, self.name.as_deref().unwrap_or(&self.root.to_string())),
            name: self.name,
            root: self.root,
            kind: self.kind,
            size: self.size,
            replicas: self.replicas,
            version: 0,
            time_milliseconds: u64::try_from(now).unwrap_or(u64::MAX).min(MAX_TIME_MILLISECONDS),
            removed: false,
        }
    }
}

/// Whether two publications of one key say the same, version and time aside.
fn same_content(a: &Publication, b: &Publication) -> bool {
    (a.root, a.kind, a.size, a.replicas, &a.label, a.removed)
        == (b.root, b.kind, b.size, b.replicas, &b.label, b.removed)
}

/// The payload that gossips a publication.
fn payload(signed: &SignedPublication) -> bytes::Bytes {
    announce::encode(signed).into()
}
