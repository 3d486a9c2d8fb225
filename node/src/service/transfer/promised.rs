//! Room that was promised to a peer: it was told to send a chunk, and has not yet.
//!
//! Offers come in batches, and many are answered before the first of their chunks arrives. Without this, a node with room
//! for one more chunk would have all of them sent, and throw away all but one. Each session has its own, so that a peer
//! that offers what it never sends takes room from nobody else.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use p2p_protocol::Multihash;

use super::stream::STALL;

/// A promise is over after this: a session that says nothing for so long ends.
const LASTS: Duration = STALL;
/// What a record takes beside its chunk, at most (`store`): a promise that is a little too large harms nobody.
const BESIDE_BYTES: u64 = 256;
/// Promises that are remembered, more than a peer has under way; the oldest is forgotten.
const MOST: usize = 4096;

/// The promises of a session.
#[derive(Debug, Default)]
pub(super) struct Promised(Mutex<VecDeque<(Multihash, u64, Instant)>>);

impl Promised {
    /// Whether a chunk of `length` bytes may be sent where `free` bytes are free in the store; if so, they are promised.
    pub(super) fn take(&self, hash: Multihash, length: u32, free: u64, now: Instant) -> bool {
        let mut promises = self.promises();
        promises.retain(|(other, _, since)| *other != hash && now.duration_since(*since) < LASTS);
        let bytes = u64::from(length) + BESIDE_BYTES;
        let sum: u64 = promises.iter().map(|(_, bytes, _)| bytes).sum();
        if sum + bytes > free {
            return false;
        }
        promises.push_back((hash, bytes, now));
        if promises.len() > MOST {
            promises.pop_front();
        }
        true
    }

    /// It was kept, or not: it is the store that counts from now on.
    pub(super) fn settle(&self, hash: &Multihash) {
        self.promises().retain(|(other, ..)| other != hash);
    }

    fn promises(&self) -> MutexGuard<'_, VecDeque<(Multihash, u64, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use p2p_protocol::HashCode;

    use super::*;

    fn hash(number: u8) -> Multihash {
        Multihash::of(HashCode::Blake3, &[number])
    }

    #[test]
    fn what_is_promised_is_promised_once() {
        let (promised, now) = (Promised::default(), Instant::now());
        assert!(promised.take(hash(1), 1000, 3000, now));
        assert!(promised.take(hash(2), 1000, 3000, now));
        assert!(!promised.take(hash(3), 1000, 3000, now), "two of them and what is beside them leave less");
        // Asked again, it counts once.
        assert!(promised.take(hash(2), 1000, 3000, now));
        promised.settle(&hash(1));
        assert!(promised.take(hash(3), 1000, 3000, now));
        assert!(!promised.take(hash(4), 10_000, 3000, now));
    }

    #[test]
    fn a_promise_ends_and_there_are_only_so_many() {
        let (promised, now) = (Promised::default(), Instant::now());
        assert!(promised.take(hash(1), 1000, 1500, now));
        assert!(!promised.take(hash(2), 1000, 1500, now + LASTS - Duration::from_millis(1)));
        assert!(promised.take(hash(2), 1000, 1500, now + LASTS));
        let all = Promised::default();
        for number in 0..2 * MOST as u64 {
            let hash = Multihash::of(HashCode::Blake3, &number.to_be_bytes());
            assert!(all.take(hash, 0, u64::MAX, now));
        }
        assert_eq!(all.promises().len(), MOST);
    }
}
