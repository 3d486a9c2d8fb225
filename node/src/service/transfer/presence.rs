//! What this node says of itself beyond its store, and telling its peers when that changes.

use std::time::Duration;

use futures::future::join_all;
use p2p_protocol::{Label, PeerId, wire::transfer::Greeting};
use tokio::{sync::mpsc, time::timeout};

use super::{Transfer, lock};

/// Greetings of peers that wait to be taken in: whoever sends more waits, on its own session.
const HEARD: usize = 64;
/// A session whose queue is full for so long is not told; its peer asks again within the hour.
const TELLING: Duration = Duration::from_secs(10);

/// What its owner decides: all else in a greeting is the store's.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Presence {
    pub(super) label: Label,
    pub(super) leaving: bool,
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

    /// The greetings that peers send on sessions that are open, from now on. The last to ask hears them.
    pub fn heard(&self) -> mpsc::Receiver<(PeerId, Greeting)> {
        let (sender, heard) = mpsc::channel(HEARD);
        *lock(&self.shared.heard) = Some(sender);
        heard
    }

    /// Says this node's greeting anew on every session that it has open.
    pub async fn announce(&self) {
        let sessions: Vec<_> = lock(&self.shared.slots).values().filter_map(|slot| slot.serving(None)).collect();
        let own = self.shared.own_greeting();
        join_all(sessions.iter().map(|session| timeout(TELLING, session.tell(own.clone())))).await;
    }
}
