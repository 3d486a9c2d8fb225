//! `restore`: undoes a removal, or brings an earlier version back.

use futures::{FutureExt as _, StreamExt as _, stream};
use p2p_protocol::catalogue::Publication;
use serde::{Deserialize, Serialize};

use super::{
    Answering, Call, Verb, publish,
    rm::{changed, settled},
};
use crate::{
    error::{Error, Kind, Result},
    node::{Node, Rooms},
    report::Changed,
    service::{
        catalogue::PublishError,
        inspect::{Named, Through, fetch_error},
    },
};

/// Chunks that are asked about at a time: what one request takes.
const BATCH: usize = 1024;

/// `restore REF`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// What.
    pub reference: String,
}

impl Verb for RestoreRequest {
    const PATH: &'static str = "restore";
    type Answer = Changed;

    fn answer(self, node: Node, _: Call) -> Answering<Changed> {
        async move {
            let rooms = node.rooms();
            let named = settled(rooms, &self.reference, || rooms.inspect.to_restore(&self.reference)).await?;
            Ok(stream::iter(named).then(move |named| restore(node.clone(), named)).boxed())
        }
        .boxed()
    }
}

async fn restore(node: Node, named: Named) -> Result<Changed> {
    let rooms = node.rooms();
    let Named { current, version } = named;
    let content = match version {
        Some(version) => rooms.catalogue.version(&current.publisher, &current.key(), version),
        None => Some(current.clone()),
    };
    let content = content.ok_or(PublishError::Nothing)?;
    if version.is_none() && !current.removed {
        return Err(PublishError::Stands(super::ls::shown_name(&current)).into());
    }
    keep_on(rooms, &content).await.map_err(freed)?;
    let restored = rooms.catalogue.restore(content.key(), version).await?;
    let told = publish::confirm(rooms, &restored, restored.replicas).await;
    Ok(changed(&restored, told))
}

/// What nobody has any more was most likely freed.
fn freed(error: Error) -> Error {
    if error.kind != Kind::NotFound {
        return error;
    }
    error.hint(
        "once the grace of a removal (--gc-grace) is over its chunks are freed: add it again where it came from, or try \
         again when a peer that may have it is back",
    )
}

/// Has all that a publication lists kept on by those that should hold it, before it is promised again: what was looked at
/// first would be freed while the last is. What is with none of them is fetched from whoever has it; what nobody has any
/// more is the end of it.
async fn keep_on(rooms: &Rooms, content: &Publication) -> Result<()> {
    let job = rooms.replicate.begin_again(content.replicas).await;
    let name = super::ls::shown_name(content);
    let fetching = rooms.fetch.begin(content.root, vec![content.publisher], content.replicas);
    let mut listed = Through::new(content, &name, &fetching);
    loop {
        let batch = listed.next(BATCH).await?;
        if batch.is_empty() {
            // Waits for what was fetched to be where it belongs, and renews once more what was looked at long ago.
            job.finish().await?;
            return Ok(());
        }
        for entry in job.keep_on(&batch).await? {
            let found = fetching.sized_chunk(entry.cid, entry.length.into()).await;
            let (chunk, _) = found.map_err(|why| fetch_error(&name, &why))?;
            job.submit(chunk).await?;
        }
    }
}
