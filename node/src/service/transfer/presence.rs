//! What this node says of itself beyond its store, and telling its peers when that changes.

use std::time::Duration;

use futures::StreamExt as _;
use p2p_protocol::{Label, PeerId, wire::transfer::Greeting};
use tokio::{sync::mpsc, time::timeout};

use super::{Shared, Transfer, lock};

/// Greetings of peers that wait to be taken in: whoever sends more waits, on its own session.
const HEARD: usize = 64;
/// A peer that cannot be told within so long is not told; it asks again within the hour.
const TELLING: Duration = Duration::from_secs(10);
/// Peers that are told at once: most have a session, and the others a handshake each, on a link that may be slow (a guess).
const TELLING_AT_ONCE: usize = 16;

/// What its owner decides, all else in a greeting being the store's, and what greetings said.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Presence {
    pub(super) label: Label,
    pub(super) leaving: bool,
    /// Whether the last greeting that was made said storing, full and leaving, and its label.
    last: Option<(bool, bool, bool, Label)>,
    /// How often a greeting said something else than the one before it.
    changes: u64,
}

impl Presence {
    /// Notes what a greeting says that is about to go out.
    pub(super) fn note(&mut self, greeting: &Greeting) {
        let Greeting { storing, full, leaving, label, .. } = greeting;
        let says = (*storing, *full, *leaving, label.clone());
        if self.last.as_ref() != Some(&says) {
            self.changes += 1;
            self.last = Some(says);
        }
    }
}

impl Transfer {
    /// This node is called so from now on.
    pub fn introduce(&self, label: Label) {
        lock(&self.shared.presence).label = label;
        self.shared.other.notify_one();
    }

    /// This node leaves, or does not any more.
    pub fn leave(&self, leaving: bool) {
        lock(&self.shared.presence).leaving = leaving;
        self.shared.other.notify_one();
    }

    /// Whether it leaves.
    pub fn is_leaving(&self) -> bool {
        lock(&self.shared.presence).leaving
    }

    /// What people call this node.
    pub fn own_label(&self) -> Label {
        lock(&self.shared.presence).label.clone()
    }

    /// Returns when its owner decided something else. Cancel-safe; one waiter.
    pub async fn decided(&self) {
        self.shared.other.notified().await;
    }

    /// The greetings that peers send, with which their sessions begin or anew on one that is open, from now on. The last to
    /// ask hears them.
    pub fn heard(&self) -> mpsc::Receiver<(PeerId, Greeting)> {
        let (sender, heard) = mpsc::channel(HEARD);
        *lock(&self.shared.heard) = Some(sender);
        heard
    }

    /// How often what greetings say was another, with what one would say now. Each that opens a session counts: who was
    /// greeted between two decisions heard what nobody else did, and is to be told as well.
    pub fn said(&self) -> u64 {
        self.shared.own_greeting();
        lock(&self.shared.presence).changes
    }

    /// Says this node's greeting anew to these peers. With whom it has no session of its own, because they opened theirs
    /// first, it opens one.
    pub async fn announce(&self, peers: impl IntoIterator<Item = PeerId>) {
        let own = self.shared.own_greeting();
        let tell = |peer| {
            let (shared, own) = (self.shared.clone(), own.clone());
            async move {
                if let Ok(session) = shared.session(peer).await {
                    session.tell(own).await;
                }
            }
        };
        let telling = futures::stream::iter(peers).map(|peer| timeout(TELLING, tell(peer)));
        telling.buffer_unordered(TELLING_AT_ONCE).for_each(|_| std::future::ready(())).await;
    }
}

impl Shared {
    /// Passes on what a peer says of itself.
    pub(super) async fn hear(&self, peer: PeerId, greeting: Greeting) {
        let hearing = lock(&self.heard).clone();
        if let Some(hearing) = hearing {
            // Whoever heard them is gone only with this service.
            let _ = hearing.send((peer, greeting)).await;
        }
    }
}
