//! `pin`, `unpin` and `ls --pinned`: whole copies that this node keeps for its user.

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Answering, Call, Verb,
    ls::{catalogue_line, shown_name},
    many, one,
};
use crate::{
    node::Node,
    report::{CatalogueLine, PinnedBy, PinnedWhole, Unpinned},
    service::pin::Pinned,
};

/// `pin REF`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PinRequest {
    /// What.
    pub reference: String,
}

impl Verb for PinRequest {
    const PATH: &'static str = "pin";
    type Answer = PinnedWhole;

    fn answer(self, node: Node, call: Call) -> Answering<PinnedWhole> {
        async move {
            let began = Instant::now();
            let whole = node.rooms().pin.pin(&self.reference, &call.progress).await?;
            let Pinned { content, .. } = &whole.pinned;
            Ok(one(PinnedWhole {
                cid: content.root.to_string(),
                name: shown_name(content),
                pinned: pinned_by(&whole.pinned),
                size: content.size,
                chunks: whole.chunks,
                bytes: whole.bytes,
                seconds: began.elapsed().as_secs_f64(),
            }))
        }
        .boxed()
    }
}

/// `unpin REF`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnpinRequest {
    /// What.
    pub reference: String,
}

impl Verb for UnpinRequest {
    const PATH: &'static str = "unpin";
    type Answer = Unpinned;

    fn answer(self, node: Node, _: Call) -> Answering<Unpinned> {
        async move {
            let (cid, name) = node.rooms().pin.unpin(&self.reference).await?;
            Ok(one(Unpinned { cid: cid.to_string(), name }))
        }
        .boxed()
    }
}

/// `ls --pinned`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LsPinnedRequest {}

impl Verb for LsPinnedRequest {
    const PATH: &'static str = "ls-pinned";
    type Answer = CatalogueLine;

    fn answer(self, node: Node, _: Call) -> Answering<CatalogueLine> {
        async move {
            let locate = node.rooms().locate.clone();
            let pinned = node.rooms().pin.list_all()?;
            Ok(many(pinned.into_iter().map(move |pinned| CatalogueLine {
                pinned: Some(pinned_by(&pinned)),
                ..catalogue_line(&pinned.content, &locate)
            })))
        }
        .boxed()
    }
}

fn pinned_by(pinned: &Pinned) -> PinnedBy {
    if pinned.by_name { PinnedBy::Name } else { PinnedBy::Cid }
}
