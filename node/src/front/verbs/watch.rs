//! `watch`: updates of the catalogue, from now on or from an earlier position on.

use futures::{FutureExt as _, StreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::{
    Answering, Call, Verb,
    ls::{label, rfc3339, shown_name},
};
use crate::{
    error::Error,
    node::Node,
    report::Update,
    service::{
        catalogue::{Change, Event},
        locate::Locate,
    },
};

/// `watch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WatchRequest {
    /// What came after this position is told first.
    #[serde(default)]
    pub since: Option<u64>,
}

impl Verb for WatchRequest {
    const PATH: &'static str = "watch";
    const UNTIL_STOPPED: bool = true;
    type Answer = Update;

    fn answer(self, node: Node, _: Call) -> Answering<Update> {
        async move {
            // Subscribed before the answer begins: whoever has read its head misses nothing from then on.
            let changes = node.rooms().catalogue.changes(self.since).await?;
            let locate = node.rooms().locate.clone();
            let updates = stream::try_unfold((changes, locate), |(mut changes, locate)| async move {
                let Some(change) = changes.next().await.transpose()? else { return Ok::<_, Error>(None) };
                Ok(Some((update(&change, &locate), (changes, locate))))
            });
            Ok(updates.boxed())
        }
        .boxed()
    }
}

fn update(change: &Change, locate: &Locate) -> Update {
    let publication = &change.publication;
    let event = match change.event {
        Event::Added => "added",
        Event::Updated => "updated",
        Event::Removed => "removed",
    };
    Update {
        event: event.to_owned(),
        cid: publication.root.to_string(),
        name: shown_name(publication),
        size: publication.size,
        publisher: publication.publisher.to_string(),
        publisher_label: label(locate, &publication.publisher),
        version: publication.version,
        time: rfc3339(publication.time_milliseconds),
        position: change.position,
    }
}
