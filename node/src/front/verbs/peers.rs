//! `peers`: who is connected.

use std::sync::Arc;

use futures::{FutureExt as _, future::ready};
use serde::{Deserialize, Serialize};

use super::{Answering, Call, Verb, ls::label, many};
use crate::{
    net::{Network, Source},
    node::Node,
    report::PeerLine,
    service::locate::Locate,
};

/// `peers`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeersRequest {}

impl Verb for PeersRequest {
    const PATH: &'static str = "peers";
    type Answer = PeerLine;

    fn answer(self, node: Node, _: Call) -> Answering<PeerLine> {
        ready(Ok(many(peers(&node.rooms().network, &node.rooms().locate)))).boxed()
    }
}

fn peers(network: &Network, locate: &Locate) -> Vec<PeerLine> {
    let table = Arc::clone(&network.peers().borrow());
    let connected = table.peers.iter().filter(|(_, peer)| peer.connected);
    connected
        .map(|(id, peer)| PeerLine {
            peer_id: id.to_string(),
            label: label(locate, id),
            addresses: peer.addresses.iter().map(ToString::to_string).collect(),
            latency: peer.heard.latency().map(|latency| latency.as_secs_f64()),
            agent: peer.agent.clone(),
            source: match peer.source {
                Source::Mdns => "mdns",
                Source::Kademlia => "kademlia",
                Source::Bootstrap => "bootstrap",
                Source::Incoming => "incoming",
                Source::Manual => "manual",
            }
            .to_owned(),
        })
        .collect()
}
