//! `cat`: a file's bytes in order.

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use super::{Answering, Call, Verb};
use crate::{front::api::answer::Piece, node::Node};

/// `cat`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CatRequest {
    /// What.
    pub reference: String,
    /// The first byte.
    pub offset: u64,
    /// How many; `None`: to the end.
    pub length: Option<u64>,
    /// The newest version of the name, asked of a majority.
    #[serde(default)]
    pub fresh: bool,
}

impl Verb for CatRequest {
    const PATH: &'static str = "cat";
    type Answer = Piece;

    fn answer(self, node: Node, _: Call) -> Answering<Piece> {
        let Self { reference, offset, length, fresh } = self;
        async move {
            if fresh {
                node.rooms().inspect.freshen(&reference).await?;
            }
            Ok(node.rooms().export.cat(&reference, offset, length).await?.map_ok(Piece).err_into().boxed())
        }
        .boxed()
    }
}
