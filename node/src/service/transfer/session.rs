//! The asking side of a session: a table of requests, a writer that batches them, a reader that answers them.
//!
//! One task polls both halves. Chunks are hashed off it. A session that fails answers every request with the reason.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWrite};
use p2p_protocol::{
    Chunk, Cid, Multihash, PeerId,
    wire::transfer::{Greeting, Held, MAX_OFFERS, MAX_WANTS, Message, Offer, carries_chunk, is_answer, limit},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared, TransferError, broken,
    stream::{FrameReader, FrameWriter, Progress, STALL, StreamError, greet},
};

/// Opening and greeting take at most so long: a dial, a handshake and a round trip on a bad link.
pub(super) const OPENING: Duration = Duration::from_secs(10);
/// With requests open and no byte moving for so long, the peer is taken for dead.
const SILENCE: Duration = STALL;
/// The longest that one request may take on a session on which other things move: a whole window over a very slow link.
const REQUEST_LIMIT: Duration = Duration::from_secs(300);
/// An idle session gives its read buffer back after so long (a guess).
const IDLE: Duration = Duration::from_secs(10);

/// A window's unit. A small chunk costs [`LEAST_UNITS`], so that the window bounds their number too: 256 on a LAN.
const UNIT_BYTES: u64 = 1024;
const LEAST_UNITS: u32 = 64;
/// 16 chunks of 1 MiB: on a LAN no more were faster, and at a 10 ms round trip they still allow 1.6 GB/s.
const WINDOW_UNITS: u32 = 16 * 1024;
/// The window grows with the round trip beyond this, so that the link stays as full …
const WINDOW_ROUND_TRIP: Duration = Duration::from_millis(10);
/// … up to 64 chunks: at 20 ms they moved a quarter more than 16 did.
const WINDOW_MOST: u32 = 4;
/// Requests that wait for the writer: more than a window of the smallest.
const QUEUE: usize = 1024;
/// Requests that one gathering of the writer takes.
const GATHER: usize = 256;
/// Chunks up to this are hashed where they arrive (some 30 µs), larger ones on a thread of their own.
pub(super) const INLINE_HASH_BYTES: usize = 32 * 1024;

/// The answer to an offer that was not refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offered {
    /// The peer had it: it is a replica there now.
    Kept,
    /// It lacks it and has room.
    Send,
}

type Answer<T> = oneshot::Sender<Result<T, TransferError>>;

/// What is asked of a peer.
enum Call {
    Want { cid: Cid, answer: Answer<Option<Chunk>>, permit: OwnedSemaphorePermit },
    Offer { offer: Offer, answer: Answer<Offered>, permit: OwnedSemaphorePermit },
    Put { cid: Cid, bytes: Bytes, answer: Answer<()>, permit: OwnedSemaphorePermit },
    Have { hashes: Vec<Multihash>, answer: Answer<Vec<Option<Held>>> },
    Renew { hashes: Vec<Multihash>, answer: Answer<Vec<bool>> },
    Greet { answer: Answer<Greeting> },
    Tell(Box<Greeting>),
}

/// A request whose answer has not come. The permit keeps its place in the window, wanted or not, until it does.
enum Waiting {
    Chunk(Cid, Answer<Option<Chunk>>, OwnedSemaphorePermit),
    Offered { answer: Answer<Offered>, _permit: OwnedSemaphorePermit },
    Kept { answer: Answer<()>, _permit: OwnedSemaphorePermit },
    Holdings(usize, Answer<Vec<Option<Held>>>),
    Renewed(usize, Answer<Vec<bool>>),
    Greeting(Answer<Greeting>),
}

impl Waiting {
    fn fail(self, error: TransferError) {
        // Whoever no longer waits does not need to know.
        match self {
            Self::Chunk(_, answer, _) => drop(answer.send(Err(error))),
            Self::Offered { answer, .. } => drop(answer.send(Err(error))),
            Self::Kept { answer, .. } => drop(answer.send(Err(error))),
            Self::Holdings(_, answer) => drop(answer.send(Err(error))),
            Self::Renewed(_, answer) => drop(answer.send(Err(error))),
            Self::Greeting(answer) => drop(answer.send(Err(error))),
        }
    }
}

#[derive(Default)]
struct Table {
    /// By their ids, each with the first id of its frame.
    waiting: HashMap<u32, (u32, Waiting)>,
    failed: Option<TransferError>,
}

/// What the task, the hashing threads and the callers share.
struct State {
    peer: PeerId,
    table: Mutex<Table>,
    /// A request came into an empty table: silence counts from now.
    armed: Notify,
    dead: CancellationToken,
    progress: Arc<Progress>,
    /// Chunks asked for, and chunks given: each in units.
    gets: Arc<Semaphore>,
    puts: Arc<Semaphore>,
    /// What a chunk of this session costs on average, in units: its length is not known when it is asked for.
    average_units: AtomicU32,
    greeting: Mutex<Greeting>,
}

impl State {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        // Nothing that could panic runs under this lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session; the first reason stands.
    fn fail(&self, error: TransferError) {
        let (waiting, error) = {
            let mut table = self.table();
            let error = table.failed.get_or_insert(error).clone();
            (std::mem::take(&mut table.waiting), error)
        };
        for (_, waiting) in waiting.into_values() {
            waiting.fail(error.clone());
        }
        self.gets.close();
        self.puts.close();
        self.dead.cancel();
    }

    fn error(&self) -> TransferError {
        self.table().failed.clone().unwrap_or_else(|| broken(self.peer, "the session ended"))
    }

    fn violation(&self, reason: impl Into<String>) -> TransferError {
        TransferError::Violation { peer: self.peer, reason: reason.into() }
    }

    /// `first`: the first id of the frame that asks for it.
    fn register(&self, first: u32, request: u32, waiting: Waiting) {
        let mut table = self.table();
        if let Some(error) = table.failed.clone() {
            drop(table);
            return waiting.fail(error);
        }
        if table.waiting.is_empty() {
            self.progress.touch();
            self.armed.notify_one();
        }
        table.waiting.insert(request, (first, waiting));
    }

    /// Fails what is still open of the frame whose first request is `first`.
    fn unsupported(&self, first: u32) {
        let mut failed = Vec::new();
        let mut table = self.table();
        // No frame asks for more.
        for at in 0..GATHER as u32 {
            let request = first.wrapping_add(at);
            if table.waiting.get(&request).is_some_and(|(of, _)| *of == first) {
                failed.extend(table.waiting.remove(&request));
            }
        }
        drop(table);
        for (_, waiting) in failed {
            waiting.fail(TransferError::Unsupported { peer: self.peer });
        }
    }

    fn learn_size(&self, bytes: usize) {
        let average = self.average_units.load(Ordering::Relaxed);
        let next = (u64::from(average) * 7 + u64::from(units(bytes))) / 8;
        self.average_units.store(u32::try_from(next).unwrap_or(LEAST_UNITS).max(LEAST_UNITS), Ordering::Relaxed);
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from((bytes as u64).div_ceil(UNIT_BYTES)).unwrap_or(WINDOW_UNITS).clamp(LEAST_UNITS, WINDOW_UNITS)
}

/// A session with one peer. When the last handle goes, what is open is still answered, then the stream is closed.
pub(super) struct Session {
    state: Arc<State>,
    queue: mpsc::Sender<Call>,
    /// The peer table's epoch when it was opened, once the table had one.
    epoch: Mutex<Option<u64>>,
    /// How many times [`WINDOW_UNITS`] the windows are now.
    windows: Mutex<u32>,
}

impl Session {
    /// Opens a stream, exchanges greetings and starts the task.
    pub(super) async fn open(shared: &Arc<Shared>, peer: PeerId) -> Result<Arc<Self>, TransferError> {
        let opening = async {
            // An acceptor that lags resets a stream: once more, then it is an error.
            match Self::begin(shared, peer).await {
                Err(TransferError::Net(crate::net::NetError::Unreachable { .. })) => Self::begin(shared, peer).await,
                other => other,
            }
        };
        timeout(OPENING, opening).await.unwrap_or(Err(TransferError::Timeout { peer }))
    }

    async fn begin(shared: &Arc<Shared>, peer: PeerId) -> Result<Arc<Self>, TransferError> {
        let (version, stream) = shared.network.open_spoken(peer, &shared.protocol).await?;
        let (read, write) = stream.split();
        let progress = Progress::new(shared.traffic.clone());
        let mut reader = FrameReader::new(read, progress.clone());
        let mut writer = FrameWriter::new(write, progress.clone());
        let greeting = match greet(shared.own_greeting(), &mut reader, &mut writer).await {
            Ok(Some(greeting)) => greeting,
            Ok(None) => return Err(shared.ban(peer, "it did not begin with a greeting").await),
            Err(StreamError::Wire(error)) => return Err(shared.ban(peer, error.to_string()).await),
            Err(StreamError::Stalled) => return Err(TransferError::Timeout { peer }),
            Err(StreamError::Io(error)) => return Err(broken(peer, error)),
        };
        tracing::debug!(%peer, version, hello = ?greeting.hello, "a transfer session is open");
        let state = Arc::new(State {
            peer,
            table: Mutex::default(),
            armed: Notify::new(),
            dead: CancellationToken::new(),
            progress,
            gets: Arc::new(Semaphore::new(WINDOW_UNITS as usize)),
            puts: Arc::new(Semaphore::new(WINDOW_UNITS as usize)),
            average_units: AtomicU32::new(UNIT_BYTES as u32),
            greeting: Mutex::new(greeting),
        });
        let (queue, calls) = mpsc::channel(QUEUE);
        drop(shared.workers.task(run(shared.clone(), state.clone(), reader, writer, calls)));
        let epoch = Mutex::new(shared.epoch(peer));
        Ok(Arc::new(Self { state, queue, epoch, windows: Mutex::new(1) }))
    }

    /// Whether it can be used for a peer that is at `epoch` now.
    pub(super) fn serves(&self, epoch: Option<u64>) -> bool {
        if self.state.dead.is_cancelled() {
            return false;
        }
        let mut own = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if own.is_none() {
            *own = epoch;
        }
        epoch.is_none() || *own == epoch
    }

    /// Lets the windows grow with the measured round trip; they never shrink.
    pub(super) fn widen(&self, round_trip: Duration) {
        let times = round_trip.as_micros().div_ceil(WINDOW_ROUND_TRIP.as_micros());
        let times = u32::try_from(times).unwrap_or(WINDOW_MOST).clamp(1, WINDOW_MOST);
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if times > *windows {
            let more = ((times - *windows) * WINDOW_UNITS) as usize;
            self.state.gets.add_permits(more);
            self.state.puts.add_permits(more);
            *windows = times;
        }
    }

    /// What the peer said of itself last.
    pub(super) fn greeting(&self) -> Greeting {
        self.state.greeting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what this node says of itself now; nothing comes back.
    pub(super) async fn tell(&self, own: Greeting) {
        // A session that ended needs no telling.
        let _ = self.queue.send(Call::Tell(Box::new(own))).await;
    }

    pub(super) async fn refresh(&self) -> Result<Greeting, TransferError> {
        self.call(|answer| Call::Greet { answer }).await
    }

    pub(super) async fn want(&self, cid: Cid) -> Result<Option<Chunk>, TransferError> {
        let permit = self.permit(&self.state.gets, self.state.average_units.load(Ordering::Relaxed)).await?;
        self.call(|answer| Call::Want { cid, answer, permit }).await
    }

    pub(super) async fn offer(&self, offer: Offer) -> Result<Offered, TransferError> {
        let permit = self.permit(&self.state.puts, LEAST_UNITS).await?;
        self.call(|answer| Call::Offer { offer, answer, permit }).await
    }

    pub(super) async fn put(&self, chunk: Chunk) -> Result<(), TransferError> {
        let permit = self.permit(&self.state.puts, units(chunk.len())).await?;
        let (cid, bytes) = (*chunk.cid(), chunk.into_bytes());
        self.call(|answer| Call::Put { cid, bytes, answer, permit }).await
    }

    pub(super) async fn have(&self, hashes: Vec<Multihash>) -> Result<Vec<Option<Held>>, TransferError> {
        self.call(|answer| Call::Have { hashes, answer }).await
    }

    pub(super) async fn renew(&self, hashes: Vec<Multihash>) -> Result<Vec<bool>, TransferError> {
        self.call(|answer| Call::Renew { hashes, answer }).await
    }

    async fn permit(&self, window: &Arc<Semaphore>, units: u32) -> Result<OwnedSemaphorePermit, TransferError> {
        window.clone().acquire_many_owned(units).await.map_err(|_| self.state.error())
    }

    async fn call<T>(&self, call: impl FnOnce(Answer<T>) -> Call) -> Result<T, TransferError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.queue.send(call(answer)).await.map_err(|_| self.state.error())?;
            answered.await.map_err(|_| self.state.error())?
        };
        timeout(REQUEST_LIMIT, asked).await.unwrap_or(Err(TransferError::Timeout { peer: self.state.peer }))
    }
}

async fn run<R, W>(
    shared: Arc<Shared>,
    state: Arc<State>,
    mut reader: FrameReader<R>,
    mut writer: FrameWriter<W>,
    mut calls: mpsc::Receiver<Call>,
) where
    R: futures::AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    {
        let reading = read(&state, &mut reader);
        let writing = write(&state, &mut writer, &mut calls);
        tokio::pin!(reading, writing);
        let error = tokio::select! {
            () = state.dead.cancelled() => state.error(),
            error = &mut reading => error,
            written = &mut writing => match written {
                Err(error) => stream_error(&state, error),
                // Nobody will ask again: the answers that are still due are read, then it ends.
                Ok(()) => reading.await,
            },
        };
        state.fail(error);
    }
    if let TransferError::Violation { reason, .. } = state.error() {
        shared.ban(state.peer, reason).await;
    }
    tracing::debug!(peer = %state.peer, reason = %state.error(), "a transfer session ended");
}

fn stream_error(state: &State, error: StreamError) -> TransferError {
    match error {
        StreamError::Io(error) => broken(state.peer, error),
        StreamError::Wire(error) => state.violation(error.to_string()),
        StreamError::Stalled => TransferError::Timeout { peer: state.peer },
    }
}

async fn write<W: AsyncWrite + Unpin>(
    state: &State,
    writer: &mut FrameWriter<W>,
    calls: &mut mpsc::Receiver<Call>,
) -> Result<(), StreamError> {
    let mut next = 1_u32;
    let mut gathered = Vec::with_capacity(16);
    while calls.recv_many(&mut gathered, GATHER).await > 0 {
        let (mut wants, mut offers) = (Vec::new(), Vec::new());
        for call in gathered.drain(..) {
            match call {
                Call::Want { cid, answer, permit } if !answer.is_closed() => wants.push((cid, answer, permit)),
                Call::Offer { offer, answer, permit } if !answer.is_closed() => offers.push((offer, answer, permit)),
                Call::Put { cid, bytes, answer, permit } if !answer.is_closed() => {
                    state.register(next, next, Waiting::Kept { answer, _permit: permit });
                    writer.push(next, &Message::Put(cid, bytes)).await?;
                    next = next.wrapping_add(1);
                }
                Call::Have { hashes, answer } if !answer.is_closed() => {
                    state.register(next, next, Waiting::Holdings(hashes.len(), answer));
                    writer.push(next, &Message::Have(hashes)).await?;
                    next = next.wrapping_add(1);
                }
                Call::Renew { hashes, answer } if !answer.is_closed() => {
                    state.register(next, next, Waiting::Renewed(hashes.len(), answer));
                    writer.push(next, &Message::Renew(hashes)).await?;
                    next = next.wrapping_add(1);
                }
                Call::Greet { answer } if !answer.is_closed() => {
                    state.register(next, next, Waiting::Greeting(answer));
                    writer.push(next, &Message::Greet).await?;
                    next = next.wrapping_add(1);
                }
                Call::Tell(own) => drop(writer.push(0, &Message::Greeting(*own)).await?),
                // Nobody waits for it any more.
                _ => {}
            }
        }
        const { assert!(GATHER <= MAX_WANTS && GATHER <= MAX_OFFERS, "one gathering is one frame") };
        if !wants.is_empty() {
            let hashes = wants.iter().map(|(cid, ..)| cid.hash).collect();
            let first = next;
            for (cid, answer, permit) in wants {
                state.register(first, next, Waiting::Chunk(cid, answer, permit));
                next = next.wrapping_add(1);
            }
            writer.push(first, &Message::Want(hashes)).await?;
        }
        if !offers.is_empty() {
            let offered = offers.iter().map(|(offer, ..)| *offer).collect();
            let first = next;
            for (_, answer, permit) in offers {
                state.register(first, next, Waiting::Offered { answer, _permit: permit });
                next = next.wrapping_add(1);
            }
            writer.push(first, &Message::Offer(offered)).await?;
        }
        if calls.is_empty() {
            writer.flush().await?;
        }
    }
    writer.close().await
}

async fn read<R: futures::AsyncRead + Unpin>(state: &Arc<State>, reader: &mut FrameReader<R>) -> TransferError {
    loop {
        if !reader.is_ready()
            && let Err(error) = wait(state, reader).await
        {
            return error;
        }
        match answer(state, reader).await {
            Ok(Ok(())) => {}
            Ok(Err(violation)) => return violation,
            Err(error) => return stream_error(state, error),
        }
    }
}

/// Waits for the first byte of the next answer; silence while requests are open is an error.
async fn wait<R: futures::AsyncRead + Unpin>(state: &State, reader: &mut FrameReader<R>) -> Result<(), TransferError> {
    let mut resting = false;
    loop {
        let open = !state.table().waiting.is_empty();
        let deadline = state.progress.last() + SILENCE;
        if open && Instant::now() >= deadline {
            return Err(TransferError::Timeout { peer: state.peer });
        }
        tokio::select! {
            biased;
            ready = reader.ready() => return match ready {
                Ok(true) => Ok(()),
                Ok(false) => Err(broken(state.peer, "it closed the session")),
                Err(error) => Err(stream_error(state, error)),
            },
            () = state.armed.notified() => {}
            () = sleep_until(deadline), if open => {}
            () = sleep(IDLE), if !open && !resting => {
                reader.rest();
                resting = true;
            }
        }
    }
}

/// Reads one answer. The inner error is a broken rule.
async fn answer<R: futures::AsyncRead + Unpin>(
    state: &Arc<State>,
    reader: &mut FrameReader<R>,
) -> Result<Result<(), TransferError>, StreamError> {
    let header = reader.header().await?;
    let known = limit(header.kind).is_some();
    if known && !is_answer(header.kind) {
        return Ok(Err(state.violation(format!("frame kind 0x{:02x} is no answer", header.kind))));
    }
    // Taken before its bytes are read: what was not asked for is not allocated for.
    let Some((first, waiting)) = state.table().waiting.remove(&header.request) else {
        return Ok(Err(state.violation(format!("request {} was never made", header.request))));
    };
    if !known {
        waiting.fail(TransferError::Unsupported { peer: state.peer });
        reader.skip(header.length).await?;
        return Ok(Ok(()));
    }
    if carries_chunk(header.kind) && !matches!(waiting, Waiting::Chunk(..)) {
        let error = state.violation("a chunk came that was not asked for");
        waiting.fail(error.clone());
        return Ok(Err(error));
    }
    let message = match reader.body(header.length).await {
        Ok(body) => Message::decode(header.kind, body).map_err(StreamError::Wire),
        Err(error) => Err(error),
    };
    let message = match message {
        Ok(message) => message,
        Err(error) => {
            waiting.fail(stream_error(
                state,
                match &error {
                    StreamError::Wire(wire) => StreamError::Wire(wire.clone()),
                    StreamError::Stalled => StreamError::Stalled,
                    StreamError::Io(io) => StreamError::Io(io.kind().into()),
                },
            ));
            return Err(error);
        }
    };
    if message == Message::Unsupported {
        waiting.fail(TransferError::Unsupported { peer: state.peer });
        state.unsupported(first);
        return Ok(Ok(()));
    }
    Ok(settle(state, waiting, message))
}

fn settle(state: &Arc<State>, waiting: Waiting, message: Message) -> Result<(), TransferError> {
    let peer = state.peer;
    match (waiting, message) {
        (Waiting::Chunk(cid, answer, permit), Message::Chunk(bytes)) => {
            state.learn_size(bytes.len());
            if bytes.len() <= INLINE_HASH_BYTES {
                verify(state, cid, bytes, answer, permit);
            } else {
                let state = state.clone();
                // Bounded by the window: the permit goes along. Nothing waits for the thread but the caller.
                tokio::task::spawn_blocking(move || verify(&state, cid, bytes, answer, permit));
            }
        }
        (Waiting::Chunk(_, answer, _), Message::Missing) => drop(answer.send(Ok(None))),
        (Waiting::Offered { answer, .. }, Message::Kept) => drop(answer.send(Ok(Offered::Kept))),
        (Waiting::Offered { answer, .. }, Message::Send) => drop(answer.send(Ok(Offered::Send))),
        (Waiting::Kept { answer, .. }, Message::Kept) => drop(answer.send(Ok(()))),
        (waiting @ (Waiting::Offered { .. } | Waiting::Kept { .. }), Message::NoSpace) => {
            waiting.fail(TransferError::NoSpace { peer });
        }
        (waiting @ (Waiting::Offered { .. } | Waiting::Kept { .. }), Message::Refused(reason)) => {
            waiting.fail(TransferError::Refused { peer, reason });
        }
        (Waiting::Holdings(count, answer), Message::Holdings(held)) if held.len() == count => {
            drop(answer.send(Ok(held)));
        }
        (Waiting::Renewed(count, answer), Message::Renewed(renewed)) if renewed.len() == count => {
            drop(answer.send(Ok(renewed)));
        }
        (Waiting::Greeting(answer), Message::Greeting(greeting)) => {
            *state.greeting.lock().unwrap_or_else(PoisonError::into_inner) = greeting.clone();
            drop(answer.send(Ok(greeting)));
        }
        (waiting, message) => {
            let error = state.violation(format!("an answer of kind 0x{:02x} does not fit", message.kind()));
            waiting.fail(error.clone());
            return Err(error);
        }
    }
    Ok(())
}

fn verify(state: &State, cid: Cid, bytes: Bytes, answer: Answer<Option<Chunk>>, permit: OwnedSemaphorePermit) {
    let verified = Chunk::verify(cid, bytes).map_err(|error| state.violation(error.to_string()));
    drop(permit);
    if let Err(error) = &verified {
        // The session's task bans the peer when it ends.
        state.fail(error.clone());
    }
    // Whoever no longer waits does not need it.
    drop(answer.send(verified.map(Some)));
}
