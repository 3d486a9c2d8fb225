//! What the protocols share in which two sides speak by turns: the opener of a stream asks, the acceptor answers, one
//! frame at a time, and both begin with a greeting (`SPEC.md`, "Catch-up" and "Audits").

use bytes::Bytes;

use super::{
    frame::{FrameError, HEADER_BYTES, Header},
    version::Hello,
};

/// A frame of such a protocol.
pub trait Turn: Sized + PartialEq {
    /// The answer to a request that is not understood.
    const UNSUPPORTED: Self;

    /// The first frame of both sides (request 0).
    fn greeting(hello: Hello) -> Self;

    /// What it says, if it is a greeting.
    fn as_greeting(&self) -> Option<Hello>;

    /// The most bytes that a frame of `kind` may have; `None`: it is not known here.
    fn limit(kind: u8) -> Option<u32>;

    /// Appends the payload, and gives the kind. Whoever makes a frame keeps it within its [`limit`](Self::limit).
    fn put(&self, out: &mut Vec<u8>) -> u8;

    /// Reads the payload of a frame of `kind`, within its [`limit`](Self::limit). Total; what it holds may share
    /// `payload`.
    ///
    /// # Errors
    /// [`TurnError::Unsupported`] and [`TurnError::Malformed`].
    fn decode(kind: u8, payload: Bytes) -> Result<Self, TurnError>;

    /// Header and payload.
    fn encode(&self, request: u32) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        let kind = self.put(&mut out);
        // A frame over 4 GiB is never made; the other side refuses far shorter ones.
        let length = u32::try_from(out.len() - HEADER_BYTES).unwrap_or(u32::MAX);
        out[..HEADER_BYTES].copy_from_slice(&Header { kind, request, length }.encode());
        out
    }
}

/// Why bytes are no frame; all but [`Unsupported`](Self::Unsupported) is the sender's fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TurnError {
    /// The header.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A kind that is not known here.
    #[error("frame kind 0x{0:02x} is not known here")]
    Unsupported(u8),
    /// A payload that does not parse.
    #[error("the frame is malformed: {0}")]
    Malformed(&'static str),
}

/// What a greeting's payload begins with; what a later version appends is ignored.
pub(super) fn read_greeting(payload: &[u8]) -> Result<Hello, TurnError> {
    let hello = payload.split_first_chunk().and_then(|(hello, _)| Hello::decode(*hello));
    hello.ok_or(TurnError::Malformed("no greeting"))
}

/// Reads a whole frame; `bytes` must be that and no more.
#[cfg(test)]
pub(super) fn decode_whole<T: Turn>(bytes: &[u8]) -> Result<T, TurnError> {
    let (head, payload) = bytes.split_first_chunk().ok_or(TurnError::Malformed("no header"))?;
    let header = Header::decode(head, T::limit)?;
    if header.length as usize != payload.len() {
        return Err(TurnError::Malformed("a payload of another length"));
    }
    T::decode(header.kind, Bytes::copy_from_slice(payload))
}

/// Any bytes are read or refused, and what is read of a known kind is written as it was. For property tests.
#[cfg(test)]
pub(super) fn is_total<T: Turn>(kind: u8, bytes: &[u8]) -> bool {
    let _ = decode_whole::<T>(bytes);
    match T::decode(kind, Bytes::copy_from_slice(bytes)) {
        // Of these what a later version appends is left out.
        Ok(frame) if frame.as_greeting().is_none() && frame != T::UNSUPPORTED => {
            frame.encode(7)[HEADER_BYTES..] == *bytes
        }
        _ => true,
    }
}
