//! `drain`: hands this node's share over to the others before it is switched off for good.

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Answering, Call, Verb, one};
use crate::{node::Node, report::Drained, service::keep::drain::HandedOver};

/// `drain`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrainRequest {
    /// The node stays after all.
    #[serde(default)]
    pub cancel: bool,
}

impl Verb for DrainRequest {
    const PATH: &'static str = "drain";
    type Answer = Drained;

    fn answer(self, node: Node, call: Call) -> Answering<Drained> {
        async move {
            let (began, keep) = (Instant::now(), &node.rooms().keep);
            let handed = if self.cancel {
                keep.leave(false).await?;
                HandedOver::default()
            } else {
                // Right after a start nobody is known yet.
                node.rooms().locate.discovered().await;
                keep.leave(true).await?;
                keep.hand_over(&call.progress).await?
            };
            Ok(one(Drained {
                draining: !self.cancel,
                chunks: handed.chunks,
                bytes: handed.bytes,
                seconds: began.elapsed().as_secs_f64(),
            }))
        }
        .boxed()
    }
}
