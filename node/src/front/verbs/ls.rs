//! `ls`: the catalogue, or a directory's entries.

use futures::{FutureExt as _, StreamExt as _, future::ready};
use p2p_protocol::{
    PeerId,
    catalogue::{Kind as RootKind, Publication},
};
use serde::{Deserialize, Serialize};

use super::{Answering, Call, Verb, many};
use crate::{
    node::Node,
    report::{CatalogueLine, DirectoryLine, EntryKind},
    service::{inspect::Line, locate::Locate},
};

/// `ls`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LsRequest {}

impl Verb for LsRequest {
    const PATH: &'static str = "ls";
    type Answer = CatalogueLine;

    fn answer(self, node: Node, _: Call) -> Answering<CatalogueLine> {
        let locate = node.rooms().locate.clone();
        let lines = node.rooms().catalogue.list().map(move |entry| Ok(catalogue_line(&entry?, &locate)));
        ready(Ok(lines.boxed())).boxed()
    }
}

/// `ls REF`; of a file: the one line that it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LsInsideRequest {
    /// What.
    pub reference: String,
    /// The newest version of the name, asked of a majority.
    #[serde(default)]
    pub fresh: bool,
}

impl Verb for LsInsideRequest {
    const PATH: &'static str = "ls-inside";
    type Answer = DirectoryLine;

    fn answer(self, node: Node, _: Call) -> Answering<DirectoryLine> {
        async move {
            if self.fresh {
                node.rooms().inspect.freshen(&self.reference).await?;
            }
            Ok(many(node.rooms().inspect.ls_inside(&self.reference).await?.into_iter().map(directory_line)))
        }
        .boxed()
    }
}

fn directory_line(line: Line) -> DirectoryLine {
    DirectoryLine { name: line.name, cid: line.cid.to_string(), kind: entry_kind(line.kind), size: line.size }
}

pub(super) fn catalogue_line(publication: &Publication, locate: &Locate) -> CatalogueLine {
    CatalogueLine {
        name: shown_name(publication),
        cid: publication.root.to_string(),
        kind: entry_kind(publication.kind),
        size: publication.size,
        publisher: publication.publisher.to_string(),
        publisher_label: label(locate, &publication.publisher),
        version: publication.version,
        updated: rfc3339(publication.time_milliseconds),
        pinned: None,
    }
}

/// What people call a peer.
pub(super) fn label(locate: &Locate, peer: &PeerId) -> Option<String> {
    locate.label(peer).map(|label| label.to_string())
}

pub(super) fn entry_kind(kind: RootKind) -> EntryKind {
    match kind {
        RootKind::File => EntryKind::File,
        RootKind::Directory => EntryKind::Directory,
        RootKind::Symlink => EntryKind::Symlink,
    }
}

pub(super) fn shown_name(publication: &Publication) -> String {
    publication.name.clone().unwrap_or_else(|| publication.label.clone())
}

/// RFC 3339 in UTC; a time that no calendar has (a publisher may claim any) is the epoch.
pub(super) fn rfc3339(milliseconds: u64) -> String {
    let timestamp = i64::try_from(milliseconds).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    timestamp.unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_and_total() {
        assert_eq!(rfc3339(1_000), "1970-01-01T00:00:01Z");
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }
}
