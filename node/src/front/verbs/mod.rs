//! What a node is asked and answers: each verb once, in a file of its own.
//!
//! A [`Verb`] is a request: it says under which path it is asked, what comes back, and how a node answers it. The client
//! ([`Client`](super::api::client::Client)), the routes of the local API and whatever else serves the same verbs follow
//! from that and from the [`table`].

pub mod add;
pub mod cat;
pub mod connect;
pub mod drain;
pub mod gc;
pub mod get;
pub mod history;
pub mod ls;
pub mod peers;
pub mod pin;
mod publish;
pub mod restore;
pub mod rm;
pub mod stat;
pub mod status;
pub mod verify;
pub mod watch;

use std::future::ready;

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::AsyncRead, sync::watch::Sender};
use tokio_util::sync::CancellationToken;

use super::api::answer::Answer;
use crate::{
    error::{Error, Result},
    node::Node,
    service::{progress::Progress, worker::Layer},
};

/// What a verb gives, in order: one, many, or none before a failure, which is the last. Dropping it ends the verb.
pub type Items<T> = BoxStream<'static, Result<T>>;
/// What a verb comes to; the outer failure is what is known before the first item. Dropping it ends the verb.
pub type Answering<T> = BoxFuture<'static, Result<Items<T>>>;
/// What a caller sends beside its request.
pub type Content = Box<dyn AsyncRead + Send + Unpin>;

/// A request that a node answers.
pub trait Verb: Serialize + DeserializeOwned + Send + 'static {
    /// Where it is asked, below the API's prefix; the same in every API.
    const PATH: &'static str;
    /// Whether content follows the request.
    const SENDS_CONTENT: bool = false;
    /// Whether it only ends with its caller or the node.
    const UNTIL_STOPPED: bool = false;
    /// An item of what comes back.
    type Answer: Answer;

    /// Answers it. What is to be so before the caller hears anything is done before this returns.
    fn answer(self, node: Node, call: Call) -> Answering<Self::Answer>;
}

/// What comes with a request.
pub struct Call {
    /// Where to tell how far it is.
    pub progress: Sender<Progress>,
    /// What the caller sends, where the verb [takes it](Verb::SENDS_CONTENT).
    pub content: Option<Content>,
}

/// Who answers verbs: a node, or a test in its place.
pub trait Answers: Clone + Send + Sync + 'static {
    /// As [`Verb::answer`].
    fn answer<V: Verb>(&self, verb: V, call: Call) -> Answering<V::Answer>;

    /// Where the tasks run that answer.
    fn tasks(&self) -> &Layer;
}

impl Answers for Node {
    fn tasks(&self) -> &Layer {
        &self.rooms().top
    }

    /// Until the node stops, which fails whatever is under way.
    fn answer<V: Verb>(&self, verb: V, call: Call) -> Answering<V::Answer> {
        let stopping = self.stopping();
        let answering = verb.answer(self.clone(), call);
        async move {
            tokio::select! {
                biased;
                () = stopping.cancelled() => Err(stopped()),
                items = answering => Ok(until(stopping.clone(), items?)),
            }
        }
        .boxed()
    }
}

/// The same items, until `stopping`.
fn until<T: Send + 'static>(stopping: CancellationToken, items: Items<T>) -> Items<T> {
    let next = |state: Option<(CancellationToken, Items<T>)>| async move {
        let (stopping, mut items) = state?;
        let item = tokio::select! {
            biased;
            () = stopping.cancelled() => Err(stopped()),
            item = items.next() => item?,
        };
        let rest = item.is_ok().then_some((stopping, items));
        Some((item, rest))
    };
    stream::unfold(Some((stopping, items)), next).boxed()
}

fn stopped() -> Error {
    Error::failed("the daemon is stopping").hint("start it again and repeat the command")
}

/// Takes the verbs one by one, each as its type.
pub trait Table {
    /// One of them.
    fn verb<V: Verb>(&mut self);
}

/// Every verb.
pub fn table(into: &mut impl Table) {
    into.verb::<add::AddRequest>();
    into.verb::<add::AddStreamRequest>();
    into.verb::<get::GetRequest>();
    into.verb::<cat::CatRequest>();
    into.verb::<ls::LsRequest>();
    into.verb::<ls::LsInsideRequest>();
    into.verb::<pin::LsPinnedRequest>();
    into.verb::<stat::StatRequest>();
    into.verb::<stat::StatLocalRequest>();
    into.verb::<rm::RmRequest>();
    into.verb::<restore::RestoreRequest>();
    into.verb::<history::HistoryRequest>();
    into.verb::<pin::PinRequest>();
    into.verb::<pin::UnpinRequest>();
    into.verb::<gc::GcRequest>();
    into.verb::<drain::DrainRequest>();
    into.verb::<watch::WatchRequest>();
    into.verb::<verify::VerifyRequest>();
    into.verb::<verify::VerifyReferenceRequest>();
    into.verb::<peers::PeersRequest>();
    into.verb::<connect::ConnectRequest>();
    into.verb::<status::StatusRequest>();
}

/// One item.
fn one<T: Send + 'static>(item: T) -> Items<T> {
    stream::once(ready(Ok(item))).boxed()
}

/// Many, which are all there already.
fn many<T: Send + 'static>(items: impl IntoIterator<Item = T, IntoIter: Send + 'static>) -> Items<T> {
    stream::iter(items.into_iter().map(Ok)).boxed()
}
