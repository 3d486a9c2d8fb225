//! `verify`: reads every chunk here again, or looks at all of a reference; waits for what is damaged or missing.

use futures::FutureExt as _;
use p2p_protocol::PeerId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Answering, Call, Verb, ls::label, one};
use crate::{
    node::Node,
    report::{Manifest, Verified, VerifiedDag},
    service::inspect::{Agreement, Checked},
};

/// `verify`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyRequest {}

impl Verb for VerifyRequest {
    const PATH: &'static str = "verify";
    type Answer = Verified;

    fn answer(self, node: Node, call: Call) -> Answering<Verified> {
        async move {
            let began = Instant::now();
            let found = node.rooms().scrub.verify(&call.progress).await?;
            Ok(one(Verified {
                chunks: found.chunks,
                bytes: found.bytes,
                damaged: found.damaged,
                repaired: found.repaired,
                missing: found.missing,
                seconds: began.elapsed().as_secs_f64(),
                dag: None,
            }))
        }
        .boxed()
    }
}

/// `verify REF`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyReferenceRequest {
    /// What.
    pub reference: String,
}

impl Verb for VerifyReferenceRequest {
    const PATH: &'static str = "verify-reference";
    type Answer = Verified;

    fn answer(self, node: Node, call: Call) -> Answering<Verified> {
        async move {
            let began = Instant::now();
            let rooms = node.rooms();
            let mut found = rooms.inspect.check(&self.reference, &call.progress).await?;
            let named = std::mem::take(&mut found.some_damaged);
            let unnamed = found.damaged - named.len() as u64;
            let left = if named.is_empty() { 0 } else { rooms.scrub.see_through(named).await? };
            Ok(one(verified(found, left + unnamed, began, |peer| label(&rooms.locate, peer))))
        }
        .boxed()
    }
}

fn verified(found: Checked, still_damaged: u64, began: Instant, label: impl Fn(&PeerId) -> Option<String>) -> Verified {
    let Checked { root, chunks, bytes, damaged, missing, under_replicated, wanted, holders, listing, .. } = found;
    let Agreement { unlisted, surplus, unreadable } = listing.unwrap_or_default();
    let manifest = match listing {
        None => Manifest::None,
        Some(_) if unreadable => Manifest::Unreadable,
        Some(_) if unlisted + surplus > 0 => Manifest::Differs,
        Some(_) => Manifest::Equal,
    };
    let labels = holders.keys().filter_map(|peer| Some((peer.to_base58(), label(peer)?))).collect();
    let dag = VerifiedDag {
        labels,
        cid: root.to_string(),
        under_replicated,
        wanted,
        holders: holders.into_iter().map(|(peer, chunks)| (peer.to_base58(), chunks)).collect(),
        manifest,
        unlisted,
        surplus,
    };
    Verified {
        chunks,
        bytes,
        damaged,
        repaired: damaged - still_damaged,
        missing,
        seconds: began.elapsed().as_secs_f64(),
        dag: Some(dag),
    }
}
