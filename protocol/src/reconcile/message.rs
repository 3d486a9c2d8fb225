//! Messages of set reconciliation: parts of the id space in ascending order (`SPEC.md`, "Set reconciliation").

use super::{Bound, Fingerprint, Id};

/// Every message may be at least this long: a list of 32 ids or 16 fingerprints fits, so that every message gets on.
pub const MIN_MESSAGE_BYTES: usize = 2048;

const SKIP: u8 = 0;
const FINGERPRINT: u8 = 1;
const IDS: u8 = 2;
const END: u8 = 0xff;
const ID_BYTES: usize = 32;
/// The longest bound (length and 32 bytes) and a mode.
const HEAD_BYTES: usize = 1 + ID_BYTES + 1;

/// What a message says of one part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// Nothing is asked here, or it is equal.
    Skip,
    /// The sender's fingerprint of the part.
    Fingerprint(Fingerprint),
    /// All ids that the sender has in the part, ascending.
    Ids(Vec<Id>),
}

/// Reads a message: parts and their upper bounds; each starts where the one before ends. Total, and takes no more
/// memory than a small multiple of `bytes`.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<(Bound, Part)>, ReconcileError> {
    let rest = &mut &*bytes;
    let mut parts = Vec::new();
    let mut from = Bound::START;
    while !rest.is_empty() {
        let to = take_bound(rest)?;
        if to <= from {
            return Err(ReconcileError::Malformed("bounds that do not ascend"));
        }
        let part = match take::<1>(rest)? {
            [SKIP] => Part::Skip,
            [FINGERPRINT] => Part::Fingerprint(Fingerprint(take(rest)?)),
            [IDS] => Part::Ids(take_ids(rest, from, to)?),
            _ => return Err(ReconcileError::Malformed("an unknown mode")),
        };
        parts.push((to, part));
        from = to;
    }
    Ok(parts)
}

fn take_bound(rest: &mut &[u8]) -> Result<Bound, ReconcileError> {
    let [length] = take(rest)?;
    if length == END {
        return Ok(Bound::End);
    }
    let (given, tail) =
        rest.split_at_checked(usize::from(length)).ok_or(ReconcileError::Malformed("a cut-off bound"))?;
    let mut id = [0; ID_BYTES];
    id.get_mut(..given.len()).ok_or(ReconcileError::Malformed("a bound over 32 bytes"))?.copy_from_slice(given);
    if given.last() == Some(&0) {
        return Err(ReconcileError::Malformed("a bound that ends in zero"));
    }
    *rest = tail;
    Ok(Bound::At(id))
}

fn take_ids(rest: &mut &[u8], from: Bound, to: Bound) -> Result<Vec<Id>, ReconcileError> {
    let count = usize::from(u16::from_be_bytes(take(rest)?));
    // What is claimed must be there before room is made for it.
    if rest.len() < count * ID_BYTES {
        return Err(ReconcileError::Malformed("fewer ids than it says"));
    }
    let mut ids: Vec<Id> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = take(rest)?;
        let place = Bound::At(id);
        if place < from || place >= to || ids.last().is_some_and(|last| *last >= id) {
            return Err(ReconcileError::Malformed("ids that do not ascend, or of another range"));
        }
        ids.push(id);
    }
    Ok(ids)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ReconcileError> {
    let (head, tail) = rest.split_first_chunk().ok_or(ReconcileError::Malformed("a cut-off part"))?;
    *rest = tail;
    Ok(*head)
}

/// Writes a message of bounded length.
pub(super) struct Writer {
    out: Vec<u8>,
    limit: usize,
    /// How far it has come, the skip that waits included.
    at: Bound,
    /// Skips are joined, and written when something follows.
    skip: bool,
}

impl Writer {
    /// A message of at most `limit` bytes (at least [`MIN_MESSAGE_BYTES`]).
    pub(super) fn new(limit: usize) -> Self {
        Self { out: Vec::new(), limit: limit.max(MIN_MESSAGE_BYTES), at: Bound::START, skip: false }
    }

    /// Where the next part starts.
    pub(super) fn at(&self) -> Bound {
        self.at
    }

    /// Nothing up to `to`. Always fits.
    pub(super) fn skip(&mut self, to: Bound) {
        if to > self.at {
            self.at = to;
            self.skip = true;
        }
    }

    /// A fingerprint up to `to`; false if it does not fit.
    pub(super) fn fingerprint(&mut self, to: Bound, fingerprint: Fingerprint) -> bool {
        if self.room() < HEAD_BYTES + fingerprint.0.len() {
            return false;
        }
        self.head(to, FINGERPRINT);
        self.out.extend_from_slice(&fingerprint.0);
        true
    }

    /// How many ids a list could have now; `None` if not even an empty list fits.
    pub(super) fn ids_that_fit(&self) -> Option<usize> {
        let room = self.room().checked_sub(HEAD_BYTES + 2)?;
        Some((room / ID_BYTES).min(usize::from(u16::MAX)))
    }

    /// A list up to `to`, of no more ids than [`ids_that_fit`](Self::ids_that_fit).
    pub(super) fn ids(&mut self, to: Bound, ids: &[Id]) {
        self.head(to, IDS);
        // At most 65,535, as `ids_that_fit` says.
        self.out.extend_from_slice(&(ids.len() as u16).to_be_bytes());
        ids.iter().for_each(|id| self.out.extend_from_slice(id));
    }

    /// The message.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.flush_skip();
        self.out
    }

    /// What is left for a part, with a skip before it and one behind it always provided for.
    fn room(&self) -> usize {
        self.limit.saturating_sub(self.out.len() + 2 * HEAD_BYTES)
    }

    fn head(&mut self, to: Bound, mode: u8) {
        self.flush_skip();
        self.bound(to);
        self.out.push(mode);
        self.at = to;
    }

    fn flush_skip(&mut self) {
        if std::mem::take(&mut self.skip) {
            self.bound(self.at);
            self.out.push(SKIP);
        }
    }

    fn bound(&mut self, bound: Bound) {
        match bound {
            Bound::End => self.out.push(END),
            Bound::At(id) => {
                let length = id.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                self.out.push(length as u8);
                self.out.extend_from_slice(&id[..length]);
            }
        }
    }
}

/// Why a session ended without a result. All but [`TooMuch`](Self::TooMuch) are the other side's fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Bytes that are no message.
    #[error("the reconciliation message is malformed: {0}")]
    Malformed(&'static str),
    /// A response that says something of what was not asked.
    #[error("the response is about something that was not asked")]
    Unasked,
    /// A response that covers nothing.
    #[error("the response does not get on")]
    NoProgress,
    /// More rounds, ids or open ranges than the limits allow.
    #[error("the reconciliation takes more {0} than allowed")]
    TooMuch(&'static str),
}
