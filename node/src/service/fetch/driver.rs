//! What one reader's [`Machine`] runs in: carries out what it decides, and tells it what became of it.

use std::{collections::HashMap, sync::Arc};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use p2p_protocol::{
    Chunk, Cid, Multihash, PeerId,
    fetch::{Fetch as Machine, Input, Output, WantId},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::FetchError;
use crate::runner::{self, World};

/// Wants that are open at once; more orders wait. Readers bound themselves far below by bytes.
const MAX_OPEN: usize = 1024;

/// Somebody wants a chunk.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) cid: Cid,
    /// About how long it is.
    pub(super) bytes: u32,
    pub(super) reply: oneshot::Sender<Result<(Chunk, PeerId), FetchError>>,
    /// Cancelled when whoever asked is gone, answered or not.
    pub(super) left: CancellationToken,
}

/// Why a peer gave no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// The session broke, or could not be opened.
    Failed,
    /// It broke the rules.
    Wrong,
}

/// The peers, as a driver needs them.
pub(super) trait Peers: Send + Sync + 'static {
    /// The `most` storing peers nearest to the hash that can be reached, nearest first, this node left out.
    fn ranked(&self, hash: Multihash, most: usize) -> impl Future<Output = Vec<PeerId>> + Send;
    /// Who else may have chunks of this root.
    fn others(&self, hash: Multihash) -> impl Future<Output = Vec<PeerId>> + Send;
    /// Asks a peer; what it gives is verified. `None`: it does not have it.
    fn ask(&self, peer: PeerId, cid: Cid) -> impl Future<Output = Result<Option<Chunk>, Refusal>> + Send;
}

/// What something that was started came to.
enum Event {
    Ranked(WantId, Vec<PeerId>),
    Others(WantId, Vec<PeerId>),
    Answer(WantId, PeerId, Result<Option<Chunk>, Refusal>),
    /// Somebody who waited for it is gone.
    Left(WantId),
    /// An ask that was abandoned.
    Nothing,
}

/// A want that is open.
struct Open {
    cid: Cid,
    /// Everybody who asked for this chunk while it was on its way.
    waiting: Vec<oneshot::Sender<Result<(Chunk, PeerId), FetchError>>>,
    asks: Vec<(PeerId, AbortHandle)>,
    delivered: Option<Chunk>,
}

/// One reader's driver: what its machine runs in.
pub(super) struct Driver<P> {
    peers: Arc<P>,
    orders: mpsc::Receiver<Order>,
    open: HashMap<WantId, Open>,
    by_cid: HashMap<Cid, WantId>,
    next: WantId,
    /// Lookups and asks: bounded by the open wants, each of which has a few.
    work: FuturesUnordered<BoxFuture<'static, Event>>,
}

/// Serves orders until everybody who could give one is gone.
pub(super) async fn drive<P: Peers>(peers: Arc<P>, replicas: u8, orders: mpsc::Receiver<Order>) {
    let (open, by_cid) = (HashMap::new(), HashMap::new());
    let driver = Driver { peers, orders, open, by_cid, next: 0, work: FuturesUnordered::new() };
    runner::run(Machine::new(replicas), driver).await;
}

impl<P: Peers> World<Machine> for Driver<P> {
    async fn next(&mut self) -> Option<Input> {
        loop {
            let input = tokio::select! {
                order = self.orders.recv(), if self.open.len() < MAX_OPEN => self.take(order?),
                Some(event) = self.work.next() => self.event(event),
            };
            if input.is_some() {
                return input;
            }
        }
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Locate { want, most } => self.start(want, move |peers, want, cid| {
                async move { Event::Ranked(want, peers.ranked(cid.hash, most).await) }.boxed()
            }),
            Output::Widen { want } => self.start(want, |peers, want, cid| {
                async move { Event::Others(want, peers.others(cid.hash).await) }.boxed()
            }),
            Output::Ask { want, peer } => self.ask(want, peer),
            Output::Abandon { want, peer } => {
                if let Some(open) = self.open.get_mut(&want) {
                    open.asks.extract_if(.., |(asked, _)| *asked == peer).for_each(|(_, ask)| ask.abort());
                }
            }
            Output::Found { want, peer } => {
                let Some(Open { waiting, delivered: Some(chunk), .. }) = self.close(want) else { return };
                for reply in waiting {
                    // Whoever is gone does not need it.
                    let _ = reply.send(Ok((chunk.clone(), peer)));
                }
            }
            Output::NotFound { want, asked } => {
                let Some(Open { waiting, cid, .. }) = self.close(want) else { return };
                for reply in waiting {
                    let _ = reply.send(Err(FetchError::NotFound { cid, asked }));
                }
            }
        }
    }
}

impl<P: Peers> Driver<P> {
    /// Takes an order; `None` where that chunk is on its way already.
    fn take(&mut self, Order { cid, bytes, reply, left }: Order) -> Option<Input> {
        let known = self.by_cid.get(&cid).copied();
        let want = known.unwrap_or(self.next);
        if known.is_none() {
            self.next += 1;
            self.by_cid.insert(cid, want);
            self.open.insert(want, Open { cid, waiting: Vec::new(), asks: Vec::new(), delivered: None });
        }
        if let Some(open) = self.open.get_mut(&want) {
            open.waiting.push(reply);
        }
        self.work.push(left.cancelled_owned().map(move |()| Event::Left(want)).boxed());
        known.is_none().then_some(Input::Want { want, bytes })
    }

    fn event(&mut self, event: Event) -> Option<Input> {
        Some(match event {
            Event::Nothing => return None,
            Event::Ranked(want, peers) => Input::Candidates { want, peers },
            Event::Others(want, peers) => Input::More { want, peers },
            Event::Left(want) => {
                let open = self.open.get_mut(&want)?;
                open.waiting.retain(|waiting| !waiting.is_closed());
                if !open.waiting.is_empty() {
                    return None;
                }
                self.close(want);
                Input::Cancel { want }
            }
            Event::Answer(want, peer, answer) => {
                let open = self.open.get_mut(&want)?;
                open.asks.retain(|(asked, _)| *asked != peer);
                match answer {
                    Ok(Some(chunk)) => {
                        open.delivered = Some(chunk);
                        Input::Delivered { want, peer }
                    }
                    Ok(None) => Input::Missing { want, peer },
                    Err(Refusal::Failed) => Input::Failed { want, peer },
                    Err(Refusal::Wrong) => Input::Wrong { want, peer },
                }
            }
        })
    }

    fn start(&mut self, want: WantId, begin: impl FnOnce(Arc<P>, WantId, Cid) -> BoxFuture<'static, Event>) {
        if let Some(open) = self.open.get(&want) {
            self.work.push(begin(self.peers.clone(), want, open.cid));
        }
    }

    fn ask(&mut self, want: WantId, peer: PeerId) {
        let Some(open) = self.open.get_mut(&want) else { return };
        let (abort, registration) = AbortHandle::new_pair();
        open.asks.push((peer, abort));
        let (peers, cid) = (self.peers.clone(), open.cid);
        let ask = Abortable::new(async move { peers.ask(peer, cid).await }, registration);
        let event = ask.map(move |answer| match answer {
            Ok(answer) => Event::Answer(want, peer, answer),
            Err(_) => Event::Nothing,
        });
        self.work.push(event.boxed());
    }

    /// Forgets a want; what is still asked for it is let go.
    fn close(&mut self, want: WantId) -> Option<Open> {
        let open = self.open.remove(&want)?;
        open.asks.iter().for_each(|(_, ask)| ask.abort());
        self.by_cid.remove(&open.cid);
        Some(open)
    }
}
