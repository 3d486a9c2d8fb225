//! `connect`: dials a peer.

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};

use super::{Answering, Call, Verb, one};
use crate::{error::Error, net::Source, node::Node, settings};

/// `connect`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// A multiaddr.
    pub address: String,
}

impl Verb for ConnectRequest {
    const PATH: &'static str = "connect";
    /// The peer's id.
    type Answer = String;

    fn answer(self, node: Node, _: Call) -> Answering<String> {
        async move {
            let address = settings::multiaddr(&self.address).map_err(Error::usage)?;
            Ok(one(node.rooms().network.dial(address, Source::Manual).await?.to_string()))
        }
        .boxed()
    }
}
