//! What the network holds: publications, gossiped and kept.
//!
//! This file is the handle and the gossip; [`ledger`] is the state that gossip and catch-up share, [`keep`] writes what
//! changed into the store's log, this node's own publications and others' alike. Memory has what a merge and a comparison
//! need; the bytes are read from the log ([`kept`], [`list`]).

mod changes;
mod keep;
mod kept;
pub(in crate::service) mod ledger;
mod list;
mod publish;
mod records;

#[cfg(test)]
mod tests;

use std::{cmp::Reverse, sync::Arc, time::Duration};

use libp2p::identity::Keypair;
use p2p_protocol::{
    Cid, PeerId,
    catalogue::{EntryKey, Limits, Outcome, Publication, SignedPublication},
    reconcile::{Bound, Fingerprint, IdRanges as _},
    wire::announce,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::worker::{Layer, Work, Workers};
use crate::{
    net::{GossipMessage, NetError, Network, Verdict, protocol_name},
    store::{Store, StoreError},
};
use ledger::Ledger;

pub use self::{
    changes::{Change, Changes, Event, Live, SinceError},
    publish::{Draft, PublishError},
};

/// Gossiped messages that may wait: each is under a kilobyte and takes some 50 µs to check; what is lost beyond comes
/// by catch-up.
const HEARD: usize = 256;
/// The first comparison with the peers that are here is waited for no longer than this.
const CAUGHT_UP: Duration = Duration::from_secs(10);

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
    /// What the log has of another network, which this data directory may have been used in, is left out.
    pub async fn start(
        network: Network,
        store: Store,
        keypair: Keypair,
        network_name: &str,
        limits: Limits,
        workers: &Workers,
    ) -> Result<Self, StartError> {
        let name = protocol_name(network_name, "catalogue", 1);
        let (done, progress) = watch::channel(keep::Progress::default());
        let ledger =
            Arc::new(Ledger::load(network.clone(), store, keypair, network_name, &name, limits, progress).await?);
        // Below the rest, which waits for it.
        let keeping = ledger.clone();
        workers.layer().spawn("catalogue records", |work| keep::run(keeping, done, work));
        let workers = workers.layer();
        let cannot_join = |why| StartError::Join { topic: name.clone(), why: Box::new(why) };
        let heard = network.subscribe(&name, HEARD).await.map_err(cannot_join)?;
        let judged = ledger.clone();
        workers.spawn("gossip", |work| listen(judged, heard, work));
        Ok(Self { ledger, workers })
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

    /// Those of a root that are live, as current or kept versions; this node's own first, then the newest.
    pub fn by_root(&self, root: &Cid) -> Vec<Publication> {
        self.own_first(self.standing_with_root(root), |entry| !entry.removed)
    }

    /// Those under a published name (not a label), one a publisher; this node's own first, then the newest.
    pub fn by_name(&self, name: &str) -> Vec<Publication> {
        self.own_first(self.current_with_name(name), |entry| !entry.removed)
    }

    /// All versions of a root that stand, removals too; in no order.
    pub fn standing_with_root(&self, root: &Cid) -> Vec<Publication> {
        self.ledger.look(|map, kept| map.standing_with_root(root, kept))
    }

    /// What is current under a published name, one a publisher, removals too; in no order.
    pub fn current_with_name(&self, name: &str) -> Vec<Publication> {
        self.ledger.look(|map, kept| map.current_with_name(name, kept))
    }

    fn own_first(&self, mut entries: Vec<Publication>, keep: impl Fn(&Publication) -> bool) -> Vec<Publication> {
        let local = self.ledger.local();
        entries.retain(keep);
        entries.sort_by_key(|entry| {
            let newest = (Reverse(entry.time_milliseconds), Reverse(entry.version));
            (entry.publisher != local, newest, entry.publisher, entry.name.clone())
        });
        entries
    }

    /// What is current under a key, a removal too.
    pub fn current(&self, publisher: &PeerId, key: &EntryKey) -> Option<Publication> {
        self.ledger.look(|map, kept| map.get(publisher, key, kept))
    }

    /// One of the versions that stand under a key.
    pub fn version(&self, publisher: &PeerId, key: &EntryKey, version: u64) -> Option<Publication> {
        self.ledger.look(|map, kept| map.version(publisher, key, version, kept))
    }

    /// The versions that stand under a key, newest first, removals too.
    pub fn history(&self, publisher: &PeerId, key: &EntryKey) -> Vec<Publication> {
        self.ledger.look(|map, kept| map.history(publisher, key, kept))
    }

    /// Of the ids of all publications that stand: equal where the catalogues are.
    pub fn fingerprint(&self) -> Fingerprint {
        self.ledger.map().ids().fingerprint(&(Bound::START..Bound::End))
    }

    /// Whether something was refused, or gave way, for want of room since the start.
    pub fn has_overflowed(&self) -> bool {
        self.ledger.map().has_overflowed()
    }

    /// These are storing peers that this node knows: what they publish does not give way to what strangers do.
    pub fn know(&self, peers: impl IntoIterator<Item = PeerId>) {
        self.ledger.know(peers);
    }
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

/// Whether two publications of one key say the same, version, floor and time aside.
fn same_content(a: &Publication, b: &Publication) -> bool {
    (a.root, a.kind, a.size, a.replicas, a.chunks, &a.listing, &a.label, a.removed)
        == (b.root, b.kind, b.size, b.replicas, b.chunks, &b.listing, &b.label, b.removed)
}

/// The payload that gossips a publication.
fn payload(signed: &SignedPublication) -> bytes::Bytes {
    announce::encode(signed).into()
}
