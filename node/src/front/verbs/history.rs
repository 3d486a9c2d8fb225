//! `history`: the versions of a name that are kept.

use futures::FutureExt as _;
use p2p_protocol::catalogue::Publication;
use serde::{Deserialize, Serialize};

use super::{
    Answering, Call, Verb,
    ls::{entry_kind, label, rfc3339, shown_name},
    many,
    rm::settled,
};
use crate::{node::Node, report::VersionLine, service::locate::Locate};

/// `history NAME`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HistoryRequest {
    /// Of what.
    pub reference: String,
}

impl Verb for HistoryRequest {
    const PATH: &'static str = "history";
    type Answer = VersionLine;

    fn answer(self, node: Node, _: Call) -> Answering<VersionLine> {
        async move {
            let rooms = node.rooms();
            let versions = settled(rooms, &self.reference, || rooms.inspect.history(&self.reference)).await?;
            let locate = rooms.locate.clone();
            Ok(many(versions.into_iter().map(move |version| line(&version, &locate))))
        }
        .boxed()
    }
}

fn line(version: &Publication, locate: &Locate) -> VersionLine {
    VersionLine {
        name: shown_name(version),
        version: version.version,
        cid: version.root.to_string(),
        kind: entry_kind(version.kind),
        size: version.size,
        publisher: version.publisher.to_string(),
        publisher_label: label(locate, &version.publisher),
        time: rfc3339(version.time_milliseconds),
        removed: version.removed,
    }
}
