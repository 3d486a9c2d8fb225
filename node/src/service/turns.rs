//! Sessions in which two sides speak by turns ([`p2p_protocol::wire::turns`]): one asks, the other answers, a frame at a
//! time. What is asked is each protocol's own; how others' sessions are taken on is [`serve`]'s.

pub(super) mod serve;

use std::{io, marker::PhantomData, time::Duration};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use p2p_protocol::{
    reconcile::ReconcileError,
    wire::{
        frame::{HEADER_BYTES, Header},
        turns::{Turn, TurnError},
        version::Hello,
    },
};
use tokio::time::timeout;

use crate::{
    net::{NetError, Stream},
    store::StoreError,
};

/// Why a session did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// No stream.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Stream(#[from] io::Error),
    /// What this node itself has could not be read, or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The peer was too slow.
    #[error("the peer did not answer in time")]
    Timeout,
    /// Too much to do in one session.
    #[error("the session took more {0} than allowed")]
    TooMuch(&'static str),
    /// One side does not understand the other: one of both is older.
    #[error("the peer speaks another version")]
    Unsupported,
    /// This node itself cannot go on with it: it is starting or ending, or lost what it was about.
    #[error("{0}")]
    NotReady(&'static str),
    /// The peer sent what no honest peer sends.
    #[error("{0}")]
    Hostile(String),
}

impl From<TurnError> for SessionError {
    fn from(error: TurnError) -> Self {
        match error {
            TurnError::Unsupported(_) => Self::Unsupported,
            other => Self::Hostile(other.to_string()),
        }
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

pub(super) fn out_of_turn() -> SessionError {
    SessionError::Hostile("it sent a frame that was not its turn to send".to_owned())
}

/// The opener's side. Not cancel-safe: what is dropped in the middle of a frame ends the session.
pub(super) struct Asker<T> {
    stream: Stream,
    patience: Duration,
    /// The id of the last request.
    request: u32,
    /// The greeting of the other side was heard.
    greeted: bool,
    /// Bytes of frames, both directions, since they were asked for.
    bytes: u64,
    spoken: PhantomData<fn() -> T>,
}

impl<T: Turn> Asker<T> {
    /// Greets. `patience`: how long one frame may take, either way.
    ///
    /// # Errors
    /// Where the stream breaks, or takes none of it in time.
    pub(super) async fn begin(mut stream: Stream, own: Hello, patience: Duration) -> Result<Self, SessionError> {
        let bytes = write(&mut stream, patience, 0, &T::greeting(own)).await?;
        Ok(Self { stream, patience, request: 0, greeted: false, bytes, spoken: PhantomData })
    }

    /// Asks; the answer is to be [heard](Self::hear).
    ///
    /// # Errors
    /// As of [`begin`](Self::begin).
    pub(super) async fn say(&mut self, frame: &T) -> Result<(), SessionError> {
        self.request = self.request.wrapping_add(1);
        self.bytes += write(&mut self.stream, self.patience, self.request, frame).await?;
        Ok(())
    }

    /// The answer to what was said last.
    ///
    /// # Errors
    /// [`SessionError::Unsupported`] where the other side says so; where it breaks the rules, says nothing in time, or is
    /// gone.
    pub(super) async fn hear(&mut self) -> Result<T, SessionError> {
        if !self.greeted {
            let begun = read(&mut self.stream, self.patience).await?;
            self.bytes += greeted::<T>(begun.ok_or_else(ended)?)?;
            self.greeted = true;
        }
        let heard = read::<T>(&mut self.stream, self.patience).await?.ok_or_else(ended)?;
        if heard.request != self.request {
            return Err(out_of_turn());
        }
        self.bytes += heard.bytes;
        match heard.frame? {
            frame if frame == T::UNSUPPORTED => Err(SessionError::Unsupported),
            frame => Ok(frame),
        }
    }

    /// Asks, and hears the answer.
    ///
    /// # Errors
    /// As of [`hear`](Self::hear).
    pub(super) async fn ask(&mut self, frame: &T) -> Result<T, SessionError> {
        self.say(frame).await?;
        self.hear().await
    }

    /// Bytes of frames since this was asked last.
    pub(super) fn take_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }

    /// The end is said by closing; what was to be said was answered.
    pub(super) async fn end(mut self) {
        let _ = timeout(self.patience, self.stream.close()).await;
    }
}

/// The acceptor's side. Not cancel-safe.
pub(super) struct Answerer<T> {
    stream: Stream,
    patience: Duration,
    /// Frames that may still be asked.
    left: usize,
    /// What is to be answered.
    request: u32,
    spoken: PhantomData<fn() -> T>,
}

impl<T: Turn> Answerer<T> {
    /// Greets, and hears the greeting; `None`: the opener closed at once. `patience`: how long one frame may take, either
    /// way; `frames`: how many may be asked at most.
    ///
    /// # Errors
    /// Where the opener does not begin with a greeting, or not in time, or is gone.
    pub(super) async fn begin(
        mut stream: Stream,
        own: Hello,
        patience: Duration,
        frames: usize,
    ) -> Result<Option<Self>, SessionError> {
        write(&mut stream, patience, 0, &T::greeting(own)).await?;
        let Some(begun) = read(&mut stream, patience).await? else { return Ok(None) };
        greeted::<T>(begun)?;
        Ok(Some(Self { stream, patience, left: frames, request: 0, spoken: PhantomData }))
    }

    /// What is asked next; `None`: the opener has closed. The inner error is that of a frame's bytes: one that is
    /// [not known](TurnError::Unsupported) is to be answered, any other ends the session.
    ///
    /// # Errors
    /// [`SessionError::TooMuch`] after so many frames; where nothing comes in time, or the opener is gone.
    pub(super) async fn next(&mut self) -> Result<Option<Result<T, TurnError>>, SessionError> {
        self.left = self.left.checked_sub(1).ok_or(SessionError::TooMuch("frames"))?;
        let heard = read(&mut self.stream, self.patience).await?;
        Ok(heard.map(|Heard { request, frame, .. }| {
            self.request = request;
            frame
        }))
    }

    /// Answers what was asked last.
    ///
    /// # Errors
    /// Where the opener is gone, or takes none of it in time.
    pub(super) async fn answer(&mut self, frame: &T) -> Result<(), SessionError> {
        write(&mut self.stream, self.patience, self.request, frame).await?;
        Ok(())
    }
}

/// A frame that was read.
struct Heard<T> {
    request: u32,
    frame: Result<T, TurnError>,
    /// Its length, the header counted.
    bytes: u64,
}

fn ended() -> SessionError {
    io::Error::from(io::ErrorKind::UnexpectedEof).into()
}

/// The length of a greeting with which the other side began. What it offers beyond this version is not used yet.
fn greeted<T: Turn>(begun: Heard<T>) -> Result<u64, SessionError> {
    match begun.frame {
        Ok(frame) if begun.request == 0 && frame.as_greeting().is_some() => Ok(begun.bytes),
        Err(error @ (TurnError::Frame(_) | TurnError::Malformed(_))) => Err(error.into()),
        _ => Err(SessionError::Hostile("it did not begin with a greeting".to_owned())),
    }
}

/// Sends a frame; gives its length.
async fn write<T: Turn>(stream: &mut Stream, patience: Duration, request: u32, frame: &T) -> Result<u64, SessionError> {
    let bytes = frame.encode(request);
    let sending = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    timeout(patience, sending).await.map_err(|_| SessionError::Timeout)??;
    Ok(bytes.len() as u64)
}

/// Reads a frame; `None` where the stream ends between two. The stream goes on behind a frame whose bytes are wrong.
async fn read<T: Turn>(stream: &mut Stream, patience: Duration) -> Result<Option<Heard<T>>, SessionError> {
    let reading = async {
        let mut header = [0; HEADER_BYTES];
        if stream.read(&mut header[..1]).await? == 0 {
            return Ok::<_, SessionError>(None);
        }
        stream.read_exact(&mut header[1..]).await?;
        let header = Header::decode(&header, T::limit).map_err(TurnError::from)?;
        // No kind of these protocols has more than 64 KiB, known or not.
        let mut payload = vec![0; header.length as usize];
        stream.read_exact(&mut payload).await?;
        let bytes = HEADER_BYTES as u64 + u64::from(header.length);
        Ok(Some(Heard { request: header.request, frame: T::decode(header.kind, payload.into()), bytes }))
    };
    timeout(patience, reading).await.map_err(|_| SessionError::Timeout)?
}
