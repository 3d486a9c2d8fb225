//! `rm`: withdraws what this node published.

use futures::{FutureExt as _, StreamExt as _, stream};
use p2p_protocol::catalogue::Publication;
use serde::{Deserialize, Serialize};

use super::{Answering, Call, Verb, ls::shown_name, publish};
use crate::{
    error::Result,
    node::{Node, Rooms},
    report::Changed,
    service::inspect::{Named, ReadError},
};

/// `rm REF…`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RmRequest {
    /// What.
    pub references: Vec<String>,
}

impl Verb for RmRequest {
    const PATH: &'static str = "rm";
    type Answer = Changed;

    fn answer(self, node: Node, _: Call) -> Answering<Changed> {
        async move {
            let rooms = node.rooms();
            let mut all: Vec<Named> = Vec::new();
            // All of them are looked up first: where one cannot be removed, nothing is.
            for reference in &self.references {
                for named in settled(rooms, reference, || rooms.inspect.to_remove(reference)).await? {
                    if all.iter().all(|other| other.key() != named.key()) {
                        all.push(named);
                    }
                }
            }
            let lines = stream::iter(all).then(move |named| remove(node.clone(), named));
            Ok(lines.boxed())
        }
        .boxed()
    }
}

async fn remove(node: Node, named: Named) -> Result<Changed> {
    let rooms = node.rooms();
    let removed = rooms.catalogue.withdraw(named.key()).await?;
    let told = publish::confirm(rooms, &removed, removed.replicas).await;
    Ok(changed(&removed, told))
}

/// Looks again once the catalogue of the peers is here, where there is nothing to be found before.
pub(super) async fn settled<T>(rooms: &Rooms, reference: &str, find: impl Fn() -> Result<T, ReadError>) -> Result<T> {
    match find() {
        Err(ReadError::UnknownName(_) | ReadError::UnknownRoot(_) | ReadError::NoVersion { .. }) => {
            rooms.inspect.settled().await;
            match find() {
                Ok(found) => Ok(found),
                Err(why) => Err(rooms.inspect.labelled(reference, why).await.into()),
            }
        }
        found => Ok(found?),
    }
}

pub(super) fn changed(publication: &Publication, publish::Told { short, warning }: publish::Told) -> Changed {
    Changed {
        cid: publication.root.to_string(),
        name: shown_name(publication),
        version: publication.version,
        warnings: warning.into_iter().collect(),
        short,
    }
}
