//! The task that drives one reader's [`Machine`]: carries out what it decides, and tells it what became of it.

use std::{collections::HashMap, sync::Arc};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use p2p_protocol::{
    Chunk, Cid, Multihash, PeerId,
    fetch::{Fetch as Machine, Input, Output, WantId},
    machine::StateMachine as _,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::FetchError;

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
    /// Storing peers that can be reached, nearest to the hash first, this node left out.
    fn ranked(&self, hash: Multihash) -> impl Future<Output = Vec<PeerId>> + Send;
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

/// One reader's driver.
pub(super) struct Driver<P> {
    peers: Arc<P>,
    machine: Machine,
    open: HashMap<WantId, Open>,
    by_cid: HashMap<Cid, WantId>,
    next: WantId,
    /// Lookups and asks: bounded by the open wants, each of which has a few.
    work: FuturesUnordered<BoxFuture<'static, Event>>,
}

impl<P: Peers> Driver<P> {
    pub(super) fn new(peers: Arc<P>, replicas: u8) -> Self {
        Self {
            peers,
            machine: Machine::new(replicas),
            open: HashMap::new(),
            by_cid: HashMap::new(),
            next: 0,
            work: FuturesUnordered::new(),
        }
    }

    /// Serves orders until everybody who could give one is gone.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let due = self.machine.poll_timeout().map(|(at, _)| Instant::from_std(at));
            tokio::select! {
                order = orders.recv(), if self.open.len() < MAX_OPEN => match order {
                    Some(order) => self.take(order),
                    None => return,
                },
                Some(event) = self.work.next() => self.event(event),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.machine.handle_timeout(now());
                }
            }
            self.carry_out();
        }
    }

    fn take(&mut self, Order { cid, bytes, reply, left }: Order) {
        let want = match self.by_cid.get(&cid) {
            Some(want) => *want,
            None => {
                let want = self.next;
                self.next += 1;
                self.by_cid.insert(cid, want);
                let open = Open { cid, waiting: Vec::new(), asks: Vec::new(), delivered: None };
                self.open.insert(want, open);
                self.machine.handle(now(), Input::Want { want, bytes });
                want
            }
        };
        if let Some(open) = self.open.get_mut(&want) {
            open.waiting.push(reply);
        }
        self.work.push(left.cancelled_owned().map(move |()| Event::Left(want)).boxed());
    }

    fn event(&mut self, event: Event) {
        let input = match event {
            Event::Nothing => return,
            Event::Ranked(want, peers) => Input::Candidates { want, peers },
            Event::Others(want, peers) => Input::More { want, peers },
            Event::Left(want) => {
                let Some(open) = self.open.get_mut(&want) else { return };
                open.waiting.retain(|waiting| !waiting.is_closed());
                if !open.waiting.is_empty() {
                    return;
                }
                self.close(want);
                Input::Cancel { want }
            }
            Event::Answer(want, peer, answer) => {
                let Some(open) = self.open.get_mut(&want) else { return };
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
        };
        self.machine.handle(now(), input);
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Locate { want } => self.start(want, |peers, want, cid| {
                    async move { Event::Ranked(want, peers.ranked(cid.hash).await) }.boxed()
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
                    let Some(Open { waiting, delivered: Some(chunk), .. }) = self.close(want) else { continue };
                    for reply in waiting {
                        // Whoever is gone does not need it.
                        let _ = reply.send(Ok((chunk.clone(), peer)));
                    }
                }
                Output::NotFound { want, asked } => {
                    let Some(Open { waiting, cid, .. }) = self.close(want) else { continue };
                    for reply in waiting {
                        let _ = reply.send(Err(FetchError::NotFound { cid, asked }));
                    }
                }
            }
        }
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

/// The machine's clock: tokio's, so that it can be paused.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
