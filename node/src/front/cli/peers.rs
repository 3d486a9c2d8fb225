//! `peers`.

use super::{
    output::{Failure, Output, warn_of_version},
    text::{self, Columns},
};
use crate::{
    front::{api::client::Client, verbs::peers::PeersRequest},
    report::PeerLine,
};

/// A line a peer: id, label, latency, how found, agent, addresses.
pub(super) async fn run(client: &Client, output: &mut Output) -> Result<(), Failure> {
    let mut peers = client.call(&PeersRequest {}).await?;
    warn_of_version(peers.version_difference());
    let mut columns = Columns::new(&['<', '<', '>', '<', '<', '<']);
    while let Some(peer) = peers.next(|_| {}).await? {
        if output.is_json() {
            output.json(&peer)?;
        } else {
            columns.row(row(&peer), output)?;
        }
    }
    columns.finish(output)
}

fn row(peer: &PeerLine) -> Vec<String> {
    vec![
        text::shown(&peer.peer_id),
        peer.label.as_deref().map_or_else(|| "-".to_owned(), text::shown),
        peer.latency.map_or_else(|| "-".to_owned(), |seconds| format!("{:.1} ms", seconds * 1000.0)),
        text::shown(&peer.source),
        peer.agent.as_deref().map_or_else(|| "-".to_owned(), text::shown),
        if peer.addresses.is_empty() { "-".to_owned() } else { text::shown(&peer.addresses.join(",")) },
    ]
}
