//! `gc`: frees now what nothing live lists and whose grace is over.

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Answering, Call, Verb, one};
use crate::{node::Node, report::Freed};

/// `gc`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GcRequest {}

impl Verb for GcRequest {
    const PATH: &'static str = "gc";
    type Answer = Freed;

    fn answer(self, node: Node, call: Call) -> Answering<Freed> {
        async move {
            let began = Instant::now();
            let collected = node.rooms().keep.collect(&call.progress).await?;
            Ok(one(Freed {
                chunks_freed: collected.chunks,
                bytes_freed: collected.bytes,
                kept_in_grace: collected.kept,
                seconds: began.elapsed().as_secs_f64(),
            }))
        }
        .boxed()
    }
}
