//! `connect MULTIADDR`.

use clap::Args;
use libp2p::Multiaddr;
use serde::Serialize;

use super::output::{Failure, Output, one};
use crate::{
    front::{api::client::Client, verbs::connect::ConnectRequest},
    settings,
};

/// Arguments of `connect`.
#[derive(Args, Clone, Debug)]
pub struct Connect {
    /// Where the peer is, such as /ip4/192.0.2.1/tcp/4242 or /dns/example.org/udp/4242/quic-v1; /p2p/PEER at the end is optional
    #[arg(value_name = "MULTIADDR", value_parser = settings::multiaddr)]
    pub address: Multiaddr,
}

#[derive(Serialize)]
struct Connected {
    peer_id: String,
}

/// Dials, and prints the peer id.
pub(super) async fn run(verb: &Connect, client: &Client, output: &mut Output) -> Result<(), Failure> {
    settings::check_dial(&verb.address)?;
    let request = ConnectRequest { address: verb.address.to_string() };
    let peer_id: String = one(client.call(&request).await?, |_| {}).await?;
    if output.is_json() { output.json(&Connected { peer_id }) } else { output.line(&peer_id) }
}
