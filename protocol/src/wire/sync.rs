//! Frames of the catch-up protocol `/p2p-node/<network>/catalogue/1` (`SPEC.md`, "Catch-up").
//!
//! The opener of the stream asks, the acceptor answers, one frame at a time: RECONCILE is answered by DIFFERENCE, WANT
//! by ENTRIES, PUSH by TAKEN. So neither side ever has to hold more than one frame.

use bytes::Bytes;

use crate::{catalogue::MAX_SIGNED_BYTES, reconcile::Id};

/// Bytes before each payload: kind, length (big-endian).
pub const HEADER_BYTES: usize = 5;
/// The longest payload: large enough that 65,536 entries cost some hundred round trips, small enough to hold for each
/// of the sessions that are served at once.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;
/// The most ids of a WANT: what one ENTRIES holds on average, and again as many.
pub const MAX_WANTED: usize = 512;

const RECONCILE: u8 = 1;
const DIFFERENCE: u8 = 2;
const WANT: u8 = 3;
const ENTRIES: u8 = 4;
const PUSH: u8 = 5;
const TAKEN: u8 = 6;

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// A message of set reconciliation, asking.
    Reconcile(Bytes),
    /// The response to it.
    Difference(Bytes),
    /// Ids of publications that are asked for.
    Want(Vec<Id>),
    /// Signed publications, in the order of the WANT.
    Entries {
        /// How many of the wanted ids this answers, from the first; those of them that are gone are left out.
        answered: u16,
        /// Their signed bytes, unchecked.
        entries: Vec<Bytes>,
    },
    /// Signed publications that the other side lacks; their signed bytes, unchecked.
    Push(Vec<Bytes>),
    /// How many of a PUSH were new.
    Taken(u16),
}

/// The kind and payload length that a header announces, checked before anything is allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    kind: u8,
    length: usize,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [kind, length @ ..] = bytes;
        let limit = match kind {
            RECONCILE | DIFFERENCE | ENTRIES | PUSH => MAX_PAYLOAD_BYTES,
            WANT => MAX_WANTED * size_of::<Id>(),
            TAKEN => 2,
            _ => return Err(FrameError::Kind(kind)),
        };
        match usize::try_from(u32::from_be_bytes(length)) {
            Ok(length) if length <= limit => Ok(Self { kind, length }),
            _ => Err(FrameError::TooLong { kind, limit }),
        }
    }

    /// How many bytes follow.
    pub fn length(&self) -> usize {
        self.length
    }
}

impl Frame {
    /// Header and payload. Whoever makes a frame keeps it within the bounds; see [`pack`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        out[0] = match self {
            Self::Reconcile(message) => {
                out.extend_from_slice(message);
                RECONCILE
            }
            Self::Difference(message) => {
                out.extend_from_slice(message);
                DIFFERENCE
            }
            Self::Want(ids) => {
                ids.iter().for_each(|id| out.extend_from_slice(id));
                WANT
            }
            Self::Entries { answered, entries } => {
                out.extend_from_slice(&answered.to_be_bytes());
                put_entries(&mut out, entries);
                ENTRIES
            }
            Self::Push(entries) => {
                put_entries(&mut out, entries);
                PUSH
            }
            Self::Taken(count) => {
                out.extend_from_slice(&count.to_be_bytes());
                TAKEN
            }
        };
        // A frame over 4 GiB is never made; the other side refuses far shorter ones.
        let length = u32::try_from(out.len() - HEADER_BYTES).unwrap_or(u32::MAX);
        out[1..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
        out
    }

    /// Reads the payload that came after `header`. Total; the entries share `payload`.
    pub fn decode(header: Header, payload: Bytes) -> Result<Self, FrameError> {
        if payload.len() != header.length {
            return Err(FrameError::Malformed("a payload of another length"));
        }
        Ok(match header.kind {
            RECONCILE => Self::Reconcile(payload),
            DIFFERENCE => Self::Difference(payload),
            WANT => {
                let (ids, rest) = payload.as_chunks();
                if !rest.is_empty() {
                    return Err(FrameError::Malformed("ids that are cut off"));
                }
                Self::Want(ids.to_vec())
            }
            ENTRIES => {
                let Some((&answered, _)) = payload.split_first_chunk() else {
                    return Err(FrameError::Malformed("no number of answered ids"));
                };
                Self::Entries { answered: u16::from_be_bytes(answered), entries: take_entries(payload.slice(2..))? }
            }
            PUSH => Self::Push(take_entries(payload)?),
            TAKEN => match payload[..].try_into() {
                Ok(count) => Self::Taken(u16::from_be_bytes(count)),
                Err(_) => return Err(FrameError::Malformed("no number of taken entries")),
            },
            kind => return Err(FrameError::Kind(kind)),
        })
    }
}

/// Whether an entry of `length` bytes still fits into a frame whose entries are packed into `packed` bytes so far;
/// counts it if so.
pub fn pack(packed: &mut usize, length: usize) -> bool {
    // The number of answered ids stands before the entries.
    let fits = length <= MAX_SIGNED_BYTES && *packed + 2 + length <= MAX_PAYLOAD_BYTES - 2;
    if fits {
        *packed += 2 + length;
    }
    fits
}

fn put_entries(out: &mut Vec<u8>, entries: &[Bytes]) {
    for entry in entries {
        // A signed publication has 678 bytes at most.
        out.extend_from_slice(&(entry.len() as u16).to_be_bytes());
        out.extend_from_slice(entry);
    }
}

fn take_entries(mut payload: Bytes) -> Result<Vec<Bytes>, FrameError> {
    let mut entries = Vec::new();
    while !payload.is_empty() {
        let Some((&length, _)) = payload.split_first_chunk() else {
            return Err(FrameError::Malformed("an entry's length that is cut off"));
        };
        let length = usize::from(u16::from_be_bytes(length));
        // Empty entries would let a frame claim tens of thousands of them.
        if length == 0 || length > MAX_SIGNED_BYTES || payload.len() < 2 + length {
            return Err(FrameError::Malformed("an entry of an impossible length"));
        }
        entries.push(payload.slice(2..2 + length));
        payload = payload.slice(2 + length..);
    }
    Ok(entries)
}

/// Why bytes are no frame: the sender's fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// A kind that is not known here.
    #[error("frame kind {0} is not known here")]
    Kind(u8),
    /// A claim over the bound of its kind.
    #[error("a frame of kind {kind} claims more than the {limit} bytes that it may have")]
    TooLong {
        /// Its kind.
        kind: u8,
        /// The bound.
        limit: usize,
    },
    /// A payload that does not parse.
    #[error("the frame is malformed: {0}")]
    Malformed(&'static str),
}

#[cfg(test)]
#[path = "sync_tests.rs"]
mod tests;
