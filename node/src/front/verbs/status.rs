//! `status`: the node at a glance.

use std::sync::Arc;

use futures::{FutureExt as _, future::ready};
use serde::{Deserialize, Serialize};

use super::{Answering, Call, Verb, ls::label, one};
use crate::{
    node::Node,
    report::{Replication, Status, Transfers, Work},
    service::worker::{Standing, State},
};

/// Damaged chunks that are counted: with more of them the disk is the matter.
const DAMAGED: usize = 10_000;

/// `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatusRequest {}

impl Verb for StatusRequest {
    const PATH: &'static str = "status";
    type Answer = Status;

    fn answer(self, node: Node, _: Call) -> Answering<Status> {
        ready(Ok(one(status(&node)))).boxed()
    }
}

fn status(node: &Node) -> Status {
    let rooms = node.rooms();
    let usage = rooms.store.usage();
    let (sent_bytes, received_bytes) = rooms.transfer.transferred();
    let table = Arc::clone(&rooms.network.peers().borrow());
    let health = rooms.keep.health();
    let missing = health.wanting as u64;
    // Where there are fewer machines than copies are wanted, everything is short of some.
    let alone = rooms.locate.reachable() + 1 < usize::from(rooms.replicas);
    Status {
        peer_id: rooms.network.local().to_string(),
        label: label(&rooms.locate, &rooms.network.local()),
        listen: node.ready().listen,
        network: node.network_name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: node.uptime().as_secs_f64(),
        peers: table.peers.values().filter(|peer| peer.connected).count(),
        known_peers: rooms.locate.reachable(),
        chunks: usage.chunks,
        bytes: usage.bytes,
        capacity: usage.capacity_bytes,
        replication: Replication {
            factor: rooms.replicas,
            duty: health.duty,
            missing,
            under_replicated: if alone { usage.chunks.max(missing) } else { missing.max(health.lacking as u64) },
            in_flight: rooms.replicate.in_flight() + health.fetching as u64,
            eta_seconds: (missing > 0)
                .then(|| rooms.keep.time_for(missing * usage.bytes / usage.chunks.max(1)).as_secs_f64()),
        },
        damaged: rooms.store.damaged(None, DAMAGED).map_or(0, |damaged| damaged.len() as u64),
        transfers: Transfers { sent_bytes, received_bytes },
        work: rooms.workers.list().iter().map(work).collect(),
        draining: rooms.keep.is_leaving(),
        cautious: health.cautious,
        catalogue_full: rooms.catalogue.has_overflowed(),
        complete: rooms.sync.is_complete(),
    }
}

fn work(standing: &Standing) -> Work {
    let (state, done, total) = match standing.state {
        State::Idle => ("idle", 0, None),
        State::Working { done, total } => ("working", done, total),
        State::Waiting { .. } => ("waiting", 0, None),
        State::Failed => ("failed", 0, None),
    };
    Work { name: standing.name.to_owned(), state: state.to_owned(), done, total, rate: standing.rate() }
}
