//! What is said in a session of audits, by turns: frames, and how long one may take.

use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use p2p_protocol::{
    reconcile::ReconcileError,
    wire::{
        audit::{AuditError, Frame, limit},
        frame::{HEADER_BYTES, Header},
        version::Hello,
    },
};
use tokio::time::timeout;

use crate::{
    net::{NetError, Stream},
    store::StoreError,
};

/// How long one frame may take, either way: the acceptor may wait for its budget of reading.
pub(super) const FRAME: Duration = Duration::from_secs(40);

/// Why a session did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// No stream.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Stream(#[from] std::io::Error),
    /// This node's own table or chunks could not be read.
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
    /// This node does not know yet who is in view, or lost what was asked about meanwhile.
    #[error("this node is not ready for it")]
    NotReady,
    /// The peer sent what no honest peer sends.
    #[error("{0}")]
    Hostile(String),
}

impl From<AuditError> for SessionError {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Unsupported(_) => Self::Unsupported,
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

/// The opener's side: what it says and hears, by turns.
pub(super) struct Dialogue {
    stream: Stream,
    /// The id of the last request.
    request: u32,
    /// The greeting of the other side was heard.
    greeted: bool,
    /// Bytes of frames, both directions, since they were asked for.
    bytes: u64,
}

impl Dialogue {
    /// Greets.
    pub(super) async fn begin(mut stream: Stream, own: Hello) -> Result<Self, SessionError> {
        let bytes = write(&mut stream, 0, &Frame::Greeting(own)).await?;
        Ok(Self { stream, request: 0, greeted: false, bytes })
    }

    /// Asks, and hears the answer.
    pub(super) async fn ask(&mut self, frame: &Frame) -> Result<Frame, SessionError> {
        self.request = self.request.wrapping_add(1);
        self.bytes += write(&mut self.stream, self.request, frame).await?;
        if !self.greeted {
            self.bytes += greeted(self.read().await?)?;
            self.greeted = true;
        }
        match self.read().await? {
            None => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Some((request, ..)) if request != self.request => Err(out_of_turn()),
            Some((_, Ok(Frame::Unsupported), _)) => Err(SessionError::Unsupported),
            Some((_, frame, length)) => {
                self.bytes += length;
                Ok(frame?)
            }
        }
    }

    /// Bytes of frames since this was asked last.
    pub(super) fn take_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }

    /// The end is said by closing; what was to be said was answered.
    pub(super) async fn end(mut self) {
        let _ = timeout(FRAME, self.stream.close()).await;
    }

    async fn read(&mut self) -> Result<Option<Heard>, SessionError> {
        timeout(FRAME, read(&mut self.stream)).await.map_err(|_| SessionError::Timeout)?
    }
}

/// A frame: its request, what it is, and its bytes.
pub(super) type Heard = (u32, Result<Frame, AuditError>, u64);

/// The length of a greeting with which the other side began. What it offers beyond this version is not used yet.
pub(super) fn greeted(begun: Option<Heard>) -> Result<u64, SessionError> {
    match begun {
        None => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        Some((0, Ok(Frame::Greeting(_)), length)) => Ok(length),
        Some((_, Err(error @ (AuditError::Frame(_) | AuditError::Malformed(_))), _)) => Err(error.into()),
        Some(_) => Err(SessionError::Hostile("it did not begin with a greeting".to_owned())),
    }
}

/// Sends a frame; gives its length.
pub(super) async fn write(stream: &mut Stream, request: u32, frame: &Frame) -> Result<u64, SessionError> {
    let bytes = frame.encode(request);
    let sending = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    timeout(FRAME, sending).await.map_err(|_| SessionError::Timeout)??;
    Ok(bytes.len() as u64)
}

/// Reads a frame; `None` where the stream ends between two. The inner error is that of its bytes; the stream goes on
/// behind them.
pub(super) async fn read(stream: &mut Stream) -> Result<Option<Heard>, SessionError> {
    let mut header = [0; HEADER_BYTES];
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..]).await?;
    let header = Header::decode(&header, limit).map_err(AuditError::from)?;
    // No kind has more than 64 KiB, known or not.
    let mut payload = vec![0; header.length as usize];
    stream.read_exact(&mut payload).await?;
    let length = HEADER_BYTES as u64 + u64::from(header.length);
    Ok(Some((header.request, Frame::decode(header.kind, payload.into()), length)))
}
