//! The answering side of a session: chunks read ahead and written as they come, chunks taken, checked and acknowledged.
//!
//! Bytes read ahead, bytes taken and requests are bounded a session and over all of them, and a peer that asks for more
//! is read more slowly. What breaks the rules is dropped and remembered; what is not understood is answered so.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, StreamExt as _, stream::FuturesUnordered};
use p2p_protocol::{
    Chunk, ChunkError, Cid, Multihash, PeerId,
    bucket::Bucket,
    wire::transfer::{Held, Message, Offer, WireError, carries_chunk, is_request, limit},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    promised::Promised,
    session::{INLINE_HASH_BYTES, OPENING},
    stream::{FrameReader, FrameWriter, Progress, STALL, StreamError, greet},
};
use crate::{net::Stream, runner::now, store::StoreError};

/// Budgets are counted in this, and even an empty chunk costs one.
const UNIT_BYTES: u64 = 1024;
/// Chunk bytes read ahead of the wire for one session, and taken from it and not yet on disk: eight chunks of 1 MiB keep
/// disk, hash and wire busy at once.
const SESSION_UNITS: usize = 8 * 1024;
/// The same over all sessions, each way: with the node's own work a daemon stays under 256 MiB.
pub(super) const NODE_UNITS: usize = 32 * 1024;
/// Wants that wait to be read ahead: four full windows of the smallest chunks; beyond it the peer is not read.
const WANTS: usize = 1024;
/// Chunks of one session that are read from the store at once.
const READS: usize = 8;
/// Answers that wait for the wire; those with payload are bounded by bytes before that.
const ANSWERS: usize = 256;
/// Puts and offers of one session whose answers are not written yet.
const OPEN: usize = 1024;
/// Requests a second that a peer may make, and how many of them at once: far over what a link and the store can do with
/// small chunks, and little enough that answering takes no whole core.
const REQUESTS_PER_SECOND: u32 = 50_000;
const REQUESTS_BURST: u32 = 10_000;
/// Index lookups after which other tasks get a turn.
const LOOKUPS: usize = 64;

/// Why serving ended other than by the peer closing.
#[derive(Debug)]
enum Ended {
    /// The stream.
    Stream(StreamError),
    /// A broken rule.
    Violation(String),
}

impl From<StreamError> for Ended {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

/// A rule that a task of the session saw broken.
#[derive(Default)]
struct Fault {
    reason: OnceLock<String>,
    seen: CancellationToken,
}

/// An answer on its way, and what it holds until it is written.
struct Reply {
    request: u32,
    message: Message,
    _permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Reply {
    fn new(request: u32, message: Message) -> Self {
        Self { request, message, _permits: None }
    }
}

/// Serves one inbound stream until it ends, breaks, breaks a rule or is cancelled.
pub(super) async fn serve(shared: Arc<Shared>, peer: PeerId, stream: Stream, cancelled: CancellationToken) {
    let served = tokio::select! {
        () = cancelled.cancelled() => Ok(()),
        served = run(&shared, peer, stream) => served,
    };
    match served {
        Ok(()) => tracing::debug!(%peer, "an inbound transfer session ended"),
        Err(Ended::Violation(reason)) => drop(shared.ban(peer, reason).await),
        Err(Ended::Stream(StreamError::Wire(error))) => drop(shared.ban(peer, error.to_string()).await),
        Err(Ended::Stream(error)) => tracing::debug!(%peer, ?error, "an inbound transfer session broke"),
    }
}

async fn run(shared: &Arc<Shared>, peer: PeerId, stream: Stream) -> Result<(), Ended> {
    let (read, write) = stream.split();
    let progress = Progress::new(shared.traffic.clone());
    let mut reader = FrameReader::new(read, progress.clone());
    let mut writer = FrameWriter::new(write, progress);
    let greeting = timeout(OPENING, greet(shared.own_greeting(), &mut reader, &mut writer)).await;
    let Some(greeting) = greeting.unwrap_or(Err(StreamError::Stalled))? else {
        return Err(Ended::Violation("it did not begin with a greeting".into()));
    };
    shared.hear(peer, greeting).await;

    let (replies, replying) = mpsc::channel(ANSWERS);
    let (wants, wanted) = mpsc::channel(WANTS);
    let fault = Arc::new(Fault::default());
    let reading = listen(shared, peer, reader, wants, replies.clone(), fault.clone());
    let ahead = read_ahead(shared, wanted, replies);
    let writing = write_replies(writer, replying);
    // The reader ends with the stream; then the others end as their queues close, after the last answer is written.
    tokio::select! {
        () = fault.seen.cancelled() => Err(Ended::Violation(fault.reason.get().cloned().unwrap_or_default())),
        done = async { tokio::try_join!(reading, async { ahead.await; Ok(()) }, writing) } => done.map(|_| ()),
    }
}

async fn listen<R: AsyncRead + Unpin>(
    shared: &Arc<Shared>,
    peer: PeerId,
    mut reader: FrameReader<R>,
    wants: mpsc::Sender<(u32, Multihash)>,
    replies: mpsc::Sender<Reply>,
    fault: Arc<Fault>,
) -> Result<(), Ended> {
    let taking = Arc::new(Semaphore::new(SESSION_UNITS));
    let open = Arc::new(Semaphore::new(OPEN));
    let promised = Arc::new(Promised::default());
    let mut requests = Bucket::new(now(), REQUESTS_BURST, REQUESTS_PER_SECOND);
    while reader.ready().await? {
        let header = reader.header().await?;
        let request = header.request;
        if limit(header.kind).is_none() {
            reader.skip(header.length).await?;
            pay(&mut requests, 1).await;
            send(&replies, Reply::new(request, Message::Unsupported)).await;
            continue;
        }
        if !is_request(header.kind) {
            return Err(Ended::Violation(format!("frame kind 0x{:02x} is no request", header.kind)));
        }
        let permits = if carries_chunk(header.kind) {
            Some(permits(&taking, &shared.taking, u64::from(header.length)).await)
        } else {
            None
        };
        let body = reader.body(header.length).await?;
        let message = match Message::decode(header.kind, body) {
            Ok(message) => message,
            Err(WireError::Unsupported { .. }) => Message::Unsupported,
            Err(error) => return Err(StreamError::Wire(error).into()),
        };
        pay(&mut requests, cost(&message)).await;
        match message {
            Message::Unsupported => send(&replies, Reply::new(request, Message::Unsupported)).await,
            Message::Greeting(greeting) => shared.hear(peer, greeting).await,
            Message::Greet => {
                send(&replies, Reply::new(request, Message::Greeting(shared.own_greeting()))).await;
            }
            Message::Want(hashes) => {
                for (at, hash) in (0_u32..).zip(hashes) {
                    // The reading side goes only with this whole session.
                    let _ = wants.send((request.wrapping_add(at), hash)).await;
                }
            }
            Message::Have(hashes) => {
                let held = holdings(shared, &hashes).await;
                send(&replies, Reply::new(request, Message::Holdings(held))).await;
            }
            Message::Renew(hashes) => {
                let place = permit(&open, 1).await;
                let (asked, replies) = (shared.clone(), replies.clone());
                drop(shared.workers.task(async move {
                    let renewed = renew(&asked, &peer, &hashes).await;
                    send(&replies, Reply::new(request, renewed)).await;
                    drop(place);
                }));
            }
            Message::Offer(offers) => {
                let place = permit(&open, 1).await;
                let (asked, replies, promised) = (shared.clone(), replies.clone(), promised.clone());
                drop(shared.workers.task(async move {
                    consider(&asked, &peer, request, offers, &promised, &replies).await;
                    drop(place);
                }));
            }
            Message::Put(cid, bytes) => {
                let place = permit(&open, 1).await;
                let (asked, replies, fault) = (shared.clone(), replies.clone(), fault.clone());
                let promised = promised.clone();
                drop(shared.workers.task(async move {
                    let answer = keep(&asked, &peer, cid, bytes, &fault).await;
                    promised.settle(&cid.hash);
                    drop(permits);
                    if let Some(answer) = answer {
                        send(&replies, Reply::new(request, answer)).await;
                    }
                    drop(place);
                }));
            }
            // `is_request` let nothing else through.
            _ => return Err(Ended::Violation("it sent an answer on a stream that it opened".into())),
        }
    }
    Ok(())
}

/// Waits until `count` tokens are there. A sleep of no time at all would still take a tick of the timer, a millisecond.
async fn pay(requests: &mut Bucket, count: u32) {
    let wait = requests.take(now(), count);
    if !wait.is_zero() {
        sleep(wait).await;
    }
}

/// What a message costs of the budget of requests; a look at the index is cheaper than a read.
fn cost(message: &Message) -> u32 {
    let count = match message {
        Message::Want(hashes) => hashes.len(),
        Message::Offer(offers) => offers.len(),
        Message::Renew(hashes) => hashes.len(),
        Message::Have(hashes) => hashes.len().div_ceil(8),
        _ => 1,
    };
    u32::try_from(count).unwrap_or(REQUESTS_BURST)
}

async fn send(replies: &mpsc::Sender<Reply>, reply: Reply) {
    // The writer is gone: so is the peer.
    let _ = replies.send(reply).await;
}

/// A budget that is never closed.
async fn permit(budget: &Arc<Semaphore>, units: u32) -> Option<OwnedSemaphorePermit> {
    budget.clone().acquire_many_owned(units).await.ok()
}

/// First the session's own share, so that a peer that asks for much waits there and not in front of the others.
async fn permits(
    session: &Arc<Semaphore>,
    node: &Arc<Semaphore>,
    bytes: u64,
) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
    // A chunk and its address are a quarter of a session's share at most.
    let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, SESSION_UNITS as u32);
    let session = permit(session, units).await?;
    Some((session, permit(node, units).await?))
}

async fn holdings(shared: &Shared, hashes: &[Multihash]) -> Vec<Option<Held>> {
    let mut held = Vec::with_capacity(hashes.len());
    for (at, hash) in hashes.iter().enumerate() {
        if at % LOOKUPS == LOOKUPS - 1 {
            tokio::task::yield_now().await;
        }
        let entry = shared.store.entry(hash).unwrap_or_else(|error| {
            tracing::warn!(%error, "the index cannot be read");
            None
        });
        held.push(entry.map(|entry| Held { length: entry.length }));
    }
    held
}

/// Answers a batch of offers: what is here and intact is acknowledged, as if it had been put again.
async fn consider(
    shared: &Shared,
    peer: &PeerId,
    first: u32,
    offers: Vec<Offer>,
    promised: &Promised,
    replies: &mpsc::Sender<Reply>,
) {
    let mut kept = Vec::new();
    for (at, offer) in (0_u32..).zip(&offers) {
        let request = first.wrapping_add(at);
        let answer = if !shared.storing {
            Message::Refused("it takes no chunks".into())
        } else {
            // Read and hashed: "kept" says that its bytes are intact.
            match shared.store.verify(&offer.cid.hash).await {
                Err(error) => refusal(&error),
                Ok(None) => may_send(shared, peer, offer, promised).await,
                Ok(Some(_)) => {
                    kept.push((request, *offer));
                    continue;
                }
            }
        };
        send(replies, Reply::new(request, answer)).await;
    }
    let hashes: Vec<_> = kept.iter().map(|(_, offer)| offer.cid.hash).collect();
    let renewed = shared.wanted.renew_for(peer, &hashes).await;
    for (at, (request, offer)) in kept.into_iter().enumerate() {
        let message = match &renewed {
            Ok(renewed) if renewed[at] => Message::Kept,
            // It went between the look and the note, or has to be brought again to be kept.
            Ok(_) => may_send(shared, peer, &offer, promised).await,
            Err(error) => refusal(error),
        };
        send(replies, Reply::new(request, message)).await;
    }
}

/// Whether a peer may send a chunk: there is room, and its share of it.
async fn may_send(shared: &Shared, peer: &PeerId, offer: &Offer, promised: &Promised) -> Message {
    match shared.wanted.room_for(peer, &offer.cid.hash).await {
        Ok(room) if promised.take(offer.cid.hash, offer.length, room, now()) => Message::Send,
        Ok(_) => Message::NoSpace,
        Err(error) => refusal(&error),
    }
}

/// Notes what is here as acknowledged once more.
async fn renew(shared: &Shared, peer: &PeerId, hashes: &[Multihash]) -> Message {
    if !shared.storing {
        return Message::Renewed(vec![false; hashes.len()]);
    }
    match shared.wanted.renew_for(peer, hashes).await {
        Ok(renewed) => Message::Renewed(renewed),
        Err(error) => {
            tracing::warn!(%error, "what a peer counts on could not be noted");
            Message::Renewed(vec![false; hashes.len()])
        }
    }
}

/// Checks and keeps a chunk; the answer is given after it is on disk. `None`: its bytes are wrong, the session ends.
async fn keep(shared: &Shared, peer: &PeerId, cid: Cid, bytes: Bytes, fault: &Fault) -> Option<Message> {
    if !shared.storing {
        return Some(Message::Refused("it takes no chunks".into()));
    }
    match verified(cid, bytes).await {
        Err(error) => {
            // The first reason stands.
            let _ = fault.reason.set(error.to_string());
            fault.seen.cancel();
            None
        }
        Ok(None) => Some(Message::Refused("it is stopping".into())),
        Ok(Some(chunk)) => Some(match shared.wanted.put_from(peer, chunk).await {
            Ok(_) => Message::Kept,
            Err(error) => refusal(&error),
        }),
    }
}

async fn verified(cid: Cid, bytes: Bytes) -> Result<Option<Chunk>, ChunkError> {
    if bytes.len() <= INLINE_HASH_BYTES {
        return Chunk::verify(cid, bytes).map(Some);
    }
    // A thread is refused only while the runtime shuts down.
    tokio::task::spawn_blocking(move || Chunk::verify(cid, bytes)).await.ok().transpose()
}

/// What a peer is told: not which file failed.
fn refusal(error: &StoreError) -> Message {
    match error {
        StoreError::NoSpace { .. } => Message::NoSpace,
        StoreError::Closed => Message::Refused("it is stopping".into()),
        error => {
            tracing::warn!(%error, "a chunk from a peer could not be kept");
            Message::Refused("its store failed".into())
        }
    }
}

/// Reads wanted chunks from the store, several at once, within the budgets.
async fn read_ahead(shared: &Arc<Shared>, mut wanted: mpsc::Receiver<(u32, Multihash)>, replies: mpsc::Sender<Reply>) {
    let reading = Arc::new(Semaphore::new(SESSION_UNITS));
    let mut reads = FuturesUnordered::new();
    loop {
        tokio::select! {
            want = wanted.recv(), if reads.len() < READS => match want {
                Some((request, hash)) => reads.push(read_one(shared, &reading, request, hash, &replies)),
                None => break,
            },
            Some(()) = reads.next() => {}
        }
    }
    while reads.next().await.is_some() {}
}

async fn read_one(
    shared: &Shared,
    budget: &Arc<Semaphore>,
    request: u32,
    hash: Multihash,
    replies: &mpsc::Sender<Reply>,
) {
    let entry = match shared.store.entry(&hash) {
        Ok(entry) => entry,
        Err(error) => {
            tracing::warn!(%error, "the index cannot be read");
            None
        }
    };
    let Some(entry) = entry else { return send(replies, Reply::new(request, Message::Missing)).await };
    let permits = permits(budget, &shared.reading, u64::from(entry.length)).await;
    let message = match shared.store.get(&hash).await {
        Ok(Some(chunk)) => Message::Chunk(chunk.into_bytes()),
        Ok(None) => Message::Missing,
        Err(error) => {
            tracing::warn!(%error, "a chunk that a peer wants cannot be read");
            Message::Missing
        }
    };
    send(replies, Reply { request, message, _permits: permits }).await;
}

async fn write_replies<W: AsyncWrite + Unpin>(
    mut writer: FrameWriter<W>,
    mut replies: mpsc::Receiver<Reply>,
) -> Result<(), Ended> {
    while let Some(reply) = replies.recv().await {
        writer.push(reply.request, &reply.message).await?;
        if replies.is_empty() {
            writer.flush().await?;
        }
    }
    // A peer that closed its side first may be gone altogether: then there is nobody to close for.
    let _ = timeout(STALL, writer.close()).await;
    Ok(())
}
