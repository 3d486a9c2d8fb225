//! `get`: fetches, verifies, writes.

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Answering, Call, Verb, ls::label, one};
use crate::{front::api::wire::WirePath, node::Node, report::Got, service::export::GetOptions};

/// `get`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GetRequest {
    /// What.
    pub reference: String,
    /// Where to, absolute; `None`: under its label in `directory`.
    pub output: Option<WirePath>,
    /// The caller's current directory.
    pub directory: WirePath,
    /// Replace what is there.
    pub force: bool,
    /// The newest version of the name, asked of a majority.
    #[serde(default)]
    pub fresh: bool,
}

impl Verb for GetRequest {
    const PATH: &'static str = "get";
    type Answer = Got;

    fn answer(self, node: Node, call: Call) -> Answering<Got> {
        let fresh = self.fresh;
        let options = GetOptions {
            reference: self.reference,
            output: self.output.map(|path| path.0),
            directory: self.directory.0,
            force: self.force,
        };
        async move {
            let began = Instant::now();
            if fresh {
                node.rooms().inspect.freshen(&options.reference).await?;
            }
            let written = node.rooms().export.get(options, &call.progress).await?;
            let locate = &node.rooms().locate;
            let labels =
                written.from.keys().filter_map(|peer| Some((peer.to_base58(), label(locate, peer)?))).collect();
            Ok(one(Got {
                cid: written.root.to_string(),
                path: written.path.display().to_string(),
                size: written.size,
                seconds: began.elapsed().as_secs_f64(),
                chunks: written.chunks,
                from: written.from.into_iter().map(|(peer, bytes)| (peer.to_base58(), bytes)).collect(),
                labels,
            }))
        }
        .boxed()
    }
}
