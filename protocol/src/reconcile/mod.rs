//! Range-based set reconciliation: what each of two peers lacks of the other's set of 32-byte ids.
//!
//! Source: A. Meyer, "Range-Based Set Reconciliation", SRDS 2023, and D. Hoyte's Negentropy, whose additive
//! fingerprint this one is modelled on. Two peers compare fingerprints of ranges of the id space; a range whose
//! fingerprints differ is cut into parts that are compared in turn, until a part is small enough to list. Equal sets
//! cost one round trip of some twenty bytes each way; otherwise the bytes grow with the difference and the round
//! trips with the logarithm of the sets.
//!
//! The [`Initiator`] has the state and learns the difference; the other side is the function [`respond`], which keeps
//! nothing between messages. Neither holds the set: an [`IdRanges`] is given with each call, so it may live behind a
//! lock and change in the meantime (an id that comes or goes during a session may be missed, or reported and found gone).
//!
//! Messages are bounded by the sender's choice and cut where they are full: a response covers a beginning of what was
//! asked, and the initiator asks for the rest again. The format is in `SPEC.md`, "Set reconciliation".
//!
//! What it does not withstand: a sum modulo 2^256 can be made to collide by whoever chooses some tens of thousands of
//! ids (D. Wagner, 2002), so two peers can be kept from noticing a difference in *that publisher's* ids and, with
//! great effort, one more. A collision hides a difference; it never invents one, and nothing is trusted because of it.

mod fingerprint;
mod idset;
mod initiator;
mod message;

#[cfg(test)]
mod tests;

pub use fingerprint::{Fingerprint, Sum};
pub use idset::{IdMap, IdSet};
pub use initiator::{Initiator, ReconcileLimits, Step, respond};
pub use message::{MIN_MESSAGE_BYTES, ReconcileError};

use std::ops::Range;

/// What is reconciled: hashes, so evenly spread.
pub type Id = [u8; 32];

/// A cut of the id space: everything below it, and the rest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Bound {
    /// Below this id.
    At(Id),
    /// Above every id.
    End,
}

impl Bound {
    /// Below every id.
    pub const START: Self = Self::At([0; 32]);
}

/// Ids from `start` (included) to `end` (not included).
pub type Span = Range<Bound>;

/// A sorted set of ids that can be asked about ranges.
pub trait IdRanges {
    /// How many ids are in `span`.
    fn count(&self, span: &Span) -> usize;
    /// The fingerprint of the ids in `span`.
    fn fingerprint(&self, span: &Span) -> Fingerprint;
    /// The first `limit` ids in `span`, ascending.
    fn ids(&self, span: &Span, limit: usize) -> Vec<Id>;
    /// The id with `skip` ids of `span` before it.
    fn nth(&self, span: &Span, skip: usize) -> Option<Id>;
}
