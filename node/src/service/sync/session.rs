//! One catch-up session, from either side (`protocol/SPEC.md`, "Catch-up").

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use p2p_protocol::{
    catalogue::{Outcome, SignedPublication},
    reconcile::{Id, Initiator, ReconcileError, ReconcileLimits, Step, respond},
    wire::sync::{Frame, FrameError, HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, MAX_WANTED, pack},
};
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    net::{NetError, Stream},
    service::catalogue::ledger::Ledger,
};

/// How long one frame may take, either way.
const FRAME: Duration = Duration::from_secs(20);
/// The most frames of one session that is served: four times what 65,536 entries take that are all pulled and pushed.
const FRAMES: usize = 4096;
/// Other tasks get a turn after so many signatures (some 2 ms).
const CHECKED_AT_ONCE: usize = 32;
/// What a peer may ask at once: frames, a new session counting as [`OPENING_COST`] of them. Enough for the whole of a
/// full catalogue.
const BUDGET: u32 = 400;
/// How many of them come back in a second.
const BUDGET_PER_SECOND: u32 = 50;
/// What opening a session costs: five a second in the long run.
const OPENING_COST: u32 = 10;

/// What a session moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Summary {
    /// Publications that were new here.
    pub(super) pulled: usize,
    /// Publications that were new there.
    pub(super) pushed: usize,
}

/// Why a session did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// No stream.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Stream(#[from] std::io::Error),
    /// The peer was too slow.
    #[error("the peer did not answer in time")]
    Timeout,
    /// Too much to do in one session.
    #[error("the session took more {0} than allowed")]
    TooMuch(&'static str),
    /// The peer sent what no honest peer sends.
    #[error("{0}")]
    Hostile(String),
}

impl From<FrameError> for SessionError {
    fn from(error: FrameError) -> Self {
        Self::Hostile(error.to_string())
    }
}

impl From<ReconcileError> for SessionError {
    fn from(error: ReconcileError) -> Self {
        match error {
            ReconcileError::TooMuch(what) => Self::TooMuch(what),
            other => Self::Hostile(other.to_string()),
        }
    }
}

/// The opener's side: finds the difference, pulls, then pushes. What was pulled before a failure stays.
pub(super) async fn catch_up(ledger: &Arc<Ledger>, mut stream: Stream) -> Result<Summary, SessionError> {
    let mut summary = Summary::default();
    let mut initiator = Initiator::new(ReconcileLimits::default());
    let mut message = initiator.initiate(ledger.map().ids());
    loop {
        let Frame::Difference(response) = ask(&mut stream, &Frame::Reconcile(message.into())).await? else {
            return Err(out_of_turn());
        };
        let step = initiator.handle(ledger.map().ids(), &response)?;
        match step {
            Step::Send(next) => message = next,
            Step::Done => break,
        }
    }

    let mut need = initiator.need().iter();
    loop {
        let mut wanted = wanted(ledger, &mut need);
        if wanted.is_empty() {
            break;
        }
        while !wanted.is_empty() {
            let Frame::Entries { answered, entries } = ask(&mut stream, &Frame::Want(wanted.clone())).await? else {
                return Err(out_of_turn());
            };
            let answered = usize::from(answered);
            if answered == 0 || answered > wanted.len() {
                return Err(SessionError::Hostile("it answered none of what was wanted, or more".to_owned()));
            }
            summary.pulled += take(ledger, entries, Some(&wanted[..answered])).await?;
            wanted.drain(..answered);
        }
    }

    let mut have = initiator.have().iter().peekable();
    while have.peek().is_some() {
        let entries = standing(ledger, &mut have);
        if entries.is_empty() {
            break;
        }
        let Frame::Taken(count) = ask(&mut stream, &Frame::Push(entries)).await? else {
            return Err(out_of_turn());
        };
        summary.pushed += usize::from(count);
    }
    // The end is said by closing; what was to be said was answered.
    let _ = timeout(FRAME, stream.close()).await;
    Ok(summary)
}

/// The acceptor's side: answers until the opener closes. Its summary counts what was pushed to it as pulled.
pub(super) async fn serve(ledger: &Arc<Ledger>, mut stream: Stream, budget: &Budget) -> Result<Summary, SessionError> {
    let mut summary = Summary::default();
    for _ in 0..FRAMES {
        let Some(frame) = timeout(FRAME, read(&mut stream)).await.map_err(|_| SessionError::Timeout)?? else {
            return Ok(summary);
        };
        budget.frame().await;
        let answer = match frame {
            Frame::Reconcile(message) => {
                let response = respond(ledger.map().ids(), &message, MAX_PAYLOAD_BYTES)?;
                Frame::Difference(response.into())
            }
            Frame::Want(ids) => {
                let mut ids = ids.iter().peekable();
                let asked = ids.len();
                let entries = standing(ledger, &mut ids);
                // At most MAX_WANTED.
                Frame::Entries { answered: (asked - ids.len()) as u16, entries }
            }
            Frame::Push(entries) => {
                let taken = take(ledger, entries, None).await?;
                summary.pulled += taken;
                Frame::Taken(u16::try_from(taken).unwrap_or(u16::MAX))
            }
            Frame::Difference(_) | Frame::Entries { .. } | Frame::Taken(_) => return Err(out_of_turn()),
        };
        write(&mut stream, &answer).await?;
    }
    Err(SessionError::TooMuch("frames"))
}

/// The next ids to ask for: those that have not come by another way in the meantime.
fn wanted<'a>(ledger: &Ledger, need: &mut impl Iterator<Item = &'a Id>) -> Vec<Id> {
    let map = ledger.map();
    need.filter(|id| !map.ids().contains(id)).take(MAX_WANTED).copied().collect()
}

/// As many of the publications as one frame holds; takes their ids off, and those of what does not stand any more.
fn standing<'a>(ledger: &Ledger, ids: &mut std::iter::Peekable<impl Iterator<Item = &'a Id>>) -> Vec<Bytes> {
    let map = ledger.map();
    let mut packed = 0;
    let mut entries = Vec::new();
    while let Some(id) = ids.peek() {
        if let Some(bytes) = map.signed_bytes(id) {
            if !pack(&mut packed, bytes.len()) {
                break;
            }
            entries.push(Bytes::copy_from_slice(bytes));
        }
        ids.next();
    }
    entries
}

/// Checks publications and takes them in; gives how many were new. `wanted`: they must be of these, in their order.
async fn take(ledger: &Ledger, entries: Vec<Bytes>, wanted: Option<&[Id]>) -> Result<usize, SessionError> {
    let mut taken = 0;
    let mut wanted = wanted.map(<[Id]>::iter);
    for (index, entry) in entries.iter().enumerate() {
        if index % CHECKED_AT_ONCE == CHECKED_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        if ledger.knows(entry) {
            continue;
        }
        let signed = SignedPublication::decode(ledger.network_name(), entry)
            .map_err(|error| SessionError::Hostile(error.to_string()))?;
        if let Some(wanted) = &mut wanted {
            let id = signed.id();
            if !wanted.any(|other| *other == id) {
                return Err(SessionError::Hostile("it sent a publication that was not wanted".to_owned()));
            }
        }
        if matches!(ledger.take(signed).await, Outcome::Taken { .. }) {
            taken += 1;
        }
    }
    Ok(taken)
}

fn out_of_turn() -> SessionError {
    SessionError::Hostile("it sent a frame that was not its turn to send".to_owned())
}

/// Sends a frame and reads the answer.
async fn ask(stream: &mut Stream, frame: &Frame) -> Result<Frame, SessionError> {
    write(stream, frame).await?;
    let answer = timeout(FRAME, read(stream)).await.map_err(|_| SessionError::Timeout)??;
    answer.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
}

async fn write(stream: &mut Stream, frame: &Frame) -> Result<(), SessionError> {
    let bytes = frame.encode();
    let sending = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    Ok(timeout(FRAME, sending).await.map_err(|_| SessionError::Timeout)??)
}

/// Reads a frame; `None` where the stream ends between two.
async fn read(stream: &mut Stream) -> Result<Option<Frame>, SessionError> {
    let mut header = [0; HEADER_BYTES];
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..]).await?;
    let header = Header::decode(header)?;
    let mut payload = vec![0; header.length()];
    stream.read_exact(&mut payload).await?;
    Ok(Some(Frame::decode(header, payload.into())?))
}

/// What one peer may ask of this node: a bucket that fills up with time.
#[derive(Debug)]
pub(super) struct Budget(Mutex<(f64, Instant)>);

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new((f64::from(BUDGET), now)))
    }

    /// Pays for a session; false where there is not enough.
    pub(super) fn open(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refill(&mut state, now);
        let enough = state.0 >= f64::from(OPENING_COST);
        if enough {
            state.0 -= f64::from(OPENING_COST);
        }
        enough
    }

    /// Pays for a frame, waiting until there is enough. At most as many wait as the peer has sessions.
    async fn frame(&self) {
        let ready = {
            let now = Instant::now();
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            refill(&mut state, now);
            // The debt of who waits is in the bucket already, so that two do not wait for one and the same.
            state.0 -= 1.0;
            if state.0 >= 0.0 {
                return;
            }
            now + Duration::from_secs_f64(-state.0 / f64::from(BUDGET_PER_SECOND))
        };
        sleep_until(ready).await;
    }

    /// Whether it is as good as new.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refill(&mut state, now);
        state.0 >= f64::from(BUDGET)
    }
}

fn refill(state: &mut (f64, Instant), now: Instant) {
    let passed = now.saturating_duration_since(state.1).as_secs_f64();
    *state = ((state.0 + passed * f64::from(BUDGET_PER_SECOND)).min(f64::from(BUDGET)), now.max(state.1));
}
