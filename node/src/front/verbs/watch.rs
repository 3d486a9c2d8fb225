//! `watch`: updates of the catalogue, from now on.

use futures::{FutureExt as _, StreamExt as _, future::ready, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;

use super::{
    Answering, Call, Verb,
    ls::{rfc3339, shown_name},
};
use crate::{node::Node, report::Update, service::catalogue::Change};

/// `watch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WatchRequest {}

impl Verb for WatchRequest {
    const PATH: &'static str = "watch";
    const UNTIL_STOPPED: bool = true;
    type Answer = Update;

    fn answer(self, node: Node, _: Call) -> Answering<Update> {
        // Subscribed before the answer begins: whoever has read its head misses nothing from then on.
        let changes = node.rooms().catalogue.changes();
        let updates = stream::unfold(changes, |mut changes| async move {
            loop {
                match changes.recv().await {
                    Ok(change) => return Some((Ok(update(&change)), changes)),
                    // A watcher that lags loses the oldest; what stands is in `ls`.
                    Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "a watcher lags behind the catalogue"),
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        ready(Ok(updates.boxed())).boxed()
    }
}

fn update(change: &Change) -> Update {
    let publication = &change.publication;
    let event = match &change.previous {
        _ if publication.removed => "removed",
        Some(previous) if !previous.removed => "updated",
        _ => "added",
    };
    Update {
        event: event.to_owned(),
        cid: publication.root.to_string(),
        name: shown_name(publication),
        size: publication.size,
        publisher: publication.publisher.to_string(),
        version: publication.version,
        time: rfc3339(publication.time_milliseconds),
    }
}
