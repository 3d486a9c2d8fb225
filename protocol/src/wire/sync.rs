//! Frames of the catch-up protocol `/p2p-node/<network>/catalogue/<version>` (`SPEC.md`, "Catch-up").
//!
//! Both sides begin with a greeting. Then the opener of the stream asks and the acceptor answers, one frame at a time:
//! RECONCILE is answered by DIFFERENCE, WANT by ENTRIES, PUSH by TAKEN, ASK by TOLD. So neither side ever has to hold
//! more than one frame.

use bytes::Bytes;

use super::{
    frame::{GREETING, GROWING_LIMIT, UNKNOWN_LIMIT, UNSUPPORTED},
    sync_fresh::{Ask, Told},
    turns::{Turn, TurnError, read_greeting},
    version::Hello,
};
use crate::{catalogue::MAX_ENTRY_BYTES, reconcile::Id};

/// The longest payload: large enough that 65,536 entries cost some hundred round trips, small enough to hold for each
/// of the sessions that are served at once. A frame of an unknown kind has no more, so that one buffer holds any.
pub const MAX_PAYLOAD_BYTES: usize = UNKNOWN_LIMIT as usize;
/// The most ids of a WANT: what one ENTRIES holds on average, and again as many.
pub const MAX_WANTED: usize = 512;

const RECONCILE: u8 = 0x10;
const DIFFERENCE: u8 = 0x11;
const WANT: u8 = 0x20;
const ENTRIES: u8 = 0x21;
const PUSH: u8 = 0x30;
const TAKEN: u8 = 0x31;
const ASK: u8 = 0x40;
const TOLD: u8 = 0x41;

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// The first of both sides (request 0).
    Greeting(Hello),
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
    /// What is here of a name, and who is known to store.
    Ask(Ask),
    /// The answer to it.
    Told(Told),
    /// The request is not understood.
    Unsupported,
}

impl Turn for Frame {
    const UNSUPPORTED: Self = Self::Unsupported;

    fn greeting(hello: Hello) -> Self {
        Self::Greeting(hello)
    }

    fn as_greeting(&self) -> Option<Hello> {
        match self {
            Self::Greeting(hello) => Some(*hello),
            _ => None,
        }
    }

    fn limit(kind: u8) -> Option<u32> {
        Some(match kind {
            GREETING | UNSUPPORTED => GROWING_LIMIT,
            RECONCILE | DIFFERENCE | ENTRIES | PUSH | ASK | TOLD => MAX_PAYLOAD_BYTES as u32,
            WANT => (MAX_WANTED * size_of::<Id>()) as u32,
            TAKEN => 2,
            _ => return None,
        })
    }

    /// The entries of a frame are those that [`pack`] let through.
    fn put(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Greeting(hello) => {
                hello.encode(out);
                GREETING
            }
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
                put_entries(out, entries);
                ENTRIES
            }
            Self::Push(entries) => {
                put_entries(out, entries);
                PUSH
            }
            Self::Taken(count) => {
                out.extend_from_slice(&count.to_be_bytes());
                TAKEN
            }
            Self::Ask(ask) => {
                ask.encode(out);
                ASK
            }
            Self::Told(told) => {
                told.encode(out);
                TOLD
            }
            Self::Unsupported => UNSUPPORTED,
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, TurnError> {
        Ok(match kind {
            GREETING => Self::Greeting(read_greeting(&payload)?),
            RECONCILE => Self::Reconcile(payload),
            DIFFERENCE => Self::Difference(payload),
            WANT => {
                let (ids, rest) = payload.as_chunks();
                if !rest.is_empty() {
                    return Err(TurnError::Malformed("ids that are cut off"));
                }
                Self::Want(ids.to_vec())
            }
            ENTRIES => {
                let Some((&answered, _)) = payload.split_first_chunk() else {
                    return Err(TurnError::Malformed("no number of answered ids"));
                };
                Self::Entries { answered: u16::from_be_bytes(answered), entries: take_entries(payload.slice(2..))? }
            }
            PUSH => Self::Push(take_entries(payload)?),
            TAKEN => match payload[..].try_into() {
                Ok(count) => Self::Taken(u16::from_be_bytes(count)),
                Err(_) => return Err(TurnError::Malformed("no number of taken entries")),
            },
            ASK => Self::Ask(Ask::decode(&payload)?),
            TOLD => Self::Told(Told::decode(&payload)?),
            UNSUPPORTED => Self::Unsupported,
            kind => return Err(TurnError::Unsupported(kind)),
        })
    }
}

/// Whether an entry of `length` bytes still fits into a frame whose entries are packed into `packed` bytes so far;
/// counts it if so.
pub fn pack(packed: &mut usize, length: usize) -> bool {
    // The number of answered ids stands before the entries.
    let fits = length <= MAX_ENTRY_BYTES && *packed + 2 + length <= MAX_PAYLOAD_BYTES - 2;
    if fits {
        *packed += 2 + length;
    }
    fits
}

pub(super) fn put_entries(out: &mut Vec<u8>, entries: &[Bytes]) {
    for entry in entries {
        // `pack` lets nothing through that is longer than two bytes can say.
        out.extend_from_slice(&(entry.len() as u16).to_be_bytes());
        out.extend_from_slice(entry);
    }
}

pub(super) fn take_entries(mut payload: Bytes) -> Result<Vec<Bytes>, TurnError> {
    let mut entries = Vec::new();
    while !payload.is_empty() {
        let Some((&length, _)) = payload.split_first_chunk() else {
            return Err(TurnError::Malformed("an entry's length that is cut off"));
        };
        let length = usize::from(u16::from_be_bytes(length));
        // Empty entries would let a frame claim tens of thousands of them.
        if length == 0 || length > MAX_ENTRY_BYTES || payload.len() < 2 + length {
            return Err(TurnError::Malformed("an entry of an impossible length"));
        }
        entries.push(payload.slice(2..2 + length));
        payload = payload.slice(2 + length..);
    }
    Ok(entries)
}

#[cfg(test)]
#[path = "sync_tests.rs"]
mod tests;
