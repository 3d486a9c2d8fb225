//! `restore`: undoes a removal, or brings an earlier version back.

use futures::{FutureExt as _, StreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::{
    Answering, Call, Verb, publish,
    rm::{changed, settled},
};
use crate::{
    error::Result,
    node::Node,
    report::Changed,
    service::{catalogue::PublishError, inspect::Named},
};

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
            let named = settled(rooms, || rooms.inspect.to_restore(&self.reference)).await?;
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
    // What nobody has any more is not promised again. That its root is there is no proof of the rest.
    rooms.inspect.resolve(&content.root.to_string()).await?;
    let restored = rooms.catalogue.restore(content.key(), version).await?;
    let short = publish::confirm(rooms, &restored, restored.replicas).await;
    Ok(changed(&restored, short))
}
