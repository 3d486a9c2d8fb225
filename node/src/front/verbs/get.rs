//! `get`: fetches, verifies, writes.

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};

use super::{Answering, Call, Verb, one};
use crate::{
    front::api::wire::WirePath,
    node::Node,
    report::{GetOptions, Got},
};

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
}

impl Verb for GetRequest {
    const PATH: &'static str = "get";
    type Answer = Got;

    fn answer(self, node: Node, call: Call) -> Answering<Got> {
        let options = GetOptions {
            reference: self.reference,
            output: self.output.map(|path| path.0),
            directory: self.directory.0,
            force: self.force,
        };
        async move { Ok(one(node.rooms().export.get(options, &call.progress).await?)) }.boxed()
    }
}
