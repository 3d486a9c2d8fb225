//! `stat`: what the network says of a DAG, or what this node's own store holds.

use std::collections::BTreeSet;

use futures::{FutureExt as _, StreamExt as _, future::ready, stream};
use p2p_protocol::PeerId;
use serde::{Deserialize, Serialize};

use super::{
    Answering, Call, Items, Verb,
    ls::{entry_kind, label},
    many,
};
use crate::{
    error::Error,
    node::Node,
    report::{LocalChunk, Placement, Stat, StatCopies},
    service::inspect::{Copies, Survey},
    service::keep::{Keep, Part},
    store::{Entry, Store},
};

/// Entries of the index that are read at a time: a page is a few hundred KiB at most.
const PAGE: usize = 1024;

/// `stat REF`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatRequest {
    /// What.
    pub reference: String,
    /// Whether each chunk's copies are listed.
    pub placement: bool,
    /// The newest version of the name, asked of a majority.
    #[serde(default)]
    pub fresh: bool,
}

/// The answer to `stat REF`, in parts: the placement of a big DAG is far longer than a line may be.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatPart {
    /// All but the placement; `placement` is then empty, or `None` if it was not asked for.
    Stat(Stat),
    /// The copies of one chunk.
    Placement(Placement),
}

impl StatPart {
    /// The parts of an answer; `label` says what people call a peer.
    pub fn of<L: Fn(&PeerId) -> Option<String>>(survey: Survey, label: L) -> impl Iterator<Item = Self> + use<L> {
        let Survey { root, kind, size, chunks, wanted, min, max, holders, placement } = survey;
        let rows = placement.iter().flatten().flat_map(|copies| copies.holders.iter().chain(&copies.cached));
        let named: BTreeSet<_> = holders.keys().chain(rows).collect();
        let labels = named.into_iter().filter_map(|peer| Some((peer.to_base58(), label(peer)?))).collect();
        let stat = Stat {
            labels,
            cid: root.to_string(),
            kind: entry_kind(kind),
            size,
            chunks,
            replicas: StatCopies { wanted, min, max },
            holders: holders.into_iter().map(|(peer, chunks)| (peer.to_base58(), chunks)).collect(),
            placement: placement.as_ref().map(|_| Vec::new()),
        };
        let rows = placement.unwrap_or_default().into_iter().map(|copies| Self::Placement(row(&copies)));
        std::iter::once(Self::Stat(stat)).chain(rows)
    }
}

fn row(copies: &Copies) -> Placement {
    let text = |peers: &[PeerId]| peers.iter().map(|peer| peer.to_base58()).collect();
    Placement {
        cid: copies.cid.to_string(),
        size: u64::from(copies.bytes),
        holders: text(&copies.holders),
        cached: text(&copies.cached),
    }
}

impl Verb for StatRequest {
    const PATH: &'static str = "stat";
    type Answer = StatPart;

    fn answer(self, node: Node, _: Call) -> Answering<StatPart> {
        async move {
            if self.fresh {
                node.rooms().inspect.freshen(&self.reference).await?;
            }
            let survey = node.rooms().inspect.stat(&self.reference, self.placement).await?;
            let locate = node.rooms().locate.clone();
            Ok(many(StatPart::of(survey, move |peer| label(&locate, peer))))
        }
        .boxed()
    }
}

/// `stat --local`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatLocalRequest {}

impl Verb for StatLocalRequest {
    const PATH: &'static str = "stat-local";
    type Answer = LocalChunk;

    fn answer(self, node: Node, _: Call) -> Answering<LocalChunk> {
        ready(Ok(local(node.rooms().store.clone(), node.rooms().keep.clone()))).boxed()
    }
}

/// Every chunk of a store, page by page.
fn local(store: Store, keep: Keep) -> Items<LocalChunk> {
    let pages = stream::try_unfold((store, keep, None, false), |(store, keep, after, done)| async move {
        if done {
            return Ok::<_, Error>(None);
        }
        let reader = store.clone();
        let page = tokio::task::spawn_blocking(move || reader.scan(after, PAGE))
            .await
            .map_err(|_| Error::failed("reading the index failed"))??;
        let last = page.last().map(|entry| (&entry.cid.hash).into());
        let done = page.len() < PAGE;
        let parts = keep.parts(page.iter().map(|entry| entry.cid.hash).collect()).await?;
        let line = |(entry, (part, wanted)): (&Entry, (Part, u8))| {
            let role = match part {
                Part::Replica => "replica",
                Part::Cache => "cache",
                Part::Pending => "pending",
            };
            LocalChunk { cid: entry.cid.to_string(), size: u64::from(entry.length), role: role.to_owned(), wanted }
        };
        let lines: Vec<_> = page.iter().zip(parts).map(line).collect();
        Ok(Some((stream::iter(lines.into_iter().map(Ok)), (store, keep, last, done))))
    });
    stream::StreamExt::flat_map(pages, |page| match page {
        Ok(lines) => lines.left_stream(),
        Err(error) => stream::once(std::future::ready(Err(error))).right_stream(),
    })
    .boxed()
}
