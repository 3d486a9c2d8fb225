//! Finding the first leaf of a range: interpolation, because keys are hashes and spread evenly, and bisection where they
//! are not (Perl, Itai and Avni, "Interpolation search: a log log N search", 1978).

use super::LEAF_ENTRIES;
use crate::Key;

/// Guesses by interpolation before every second one is a bisection. Among even keys the second guess is next to the leaf
/// or on it.
const GUESSES: u32 = 3;

/// What is known of where the first leaf is that has a key of the range or lies behind its beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Search {
    from: Key,
    /// Entries in all.
    entries: u64,
    /// It is this leaf at least: those before end below `from`.
    low: u64,
    /// It is this leaf at most: it begins behind `from`, or is the end.
    high: u64,
    /// The last key of a leaf before `low`, the nearest that was read.
    after: Option<Key>,
    /// The first key of the leaf at `high`.
    before: Option<Key>,
    probes: u32,
}

impl Search {
    pub(super) fn new(from: Key, entries: u64) -> Self {
        let high = entries.div_ceil(LEAF_ENTRIES as u64);
        Self { from, entries, low: 0, high, after: None, before: None, probes: 0 }
    }

    /// The leaf that is searched for, once it is known; the number of leaves where the range begins behind them all.
    pub(super) fn found(&self) -> Option<u64> {
        (self.low >= self.high).then_some(self.low)
    }

    /// The leaf to look at next, `low <= guess < high`; the same until [`narrow`](Self::narrow) is called.
    pub(super) fn guess(&self) -> u64 {
        let count = self.high - self.low;
        if self.probes >= GUESSES && self.probes % 2 == 1 {
            return self.low + count / 2;
        }
        let each = LEAF_ENTRIES as u64;
        let (start, end) = (self.low * each, (self.high * each).min(self.entries));
        let at = start + share(&self.from, self.after.as_ref(), self.before.as_ref(), end - start);
        (at / each).clamp(self.low, self.high - 1)
    }

    /// The leaves that are still in question: from the first, up to the second, which is not.
    pub(super) fn in_question(&self) -> (u64, u64) {
        (self.low, self.high)
    }

    /// The last key of the nearest leaf before the one that was found.
    pub(super) fn after(&self) -> Option<Key> {
        self.after
    }

    /// Takes what was seen of a leaf in question: its first and last keys. Whatever they are, fewer leaves are in question
    /// then.
    pub(super) fn narrow(&mut self, leaf: u64, first: Key, last: Key) {
        self.probes = self.probes.saturating_add(1);
        if last < self.from {
            self.low = leaf + 1;
            self.after = Some(last);
        } else if first > self.from {
            self.high = leaf;
            self.before = Some(first);
        } else {
            self.low = leaf;
            self.high = leaf;
        }
    }

    /// Ends it where all leaves still in question are unreadable: what follows them is the first that can be listed.
    pub(super) fn give_up(&mut self) {
        self.low = self.high;
    }
}

/// Of `count` entries that lie evenly between two keys (none: an end of the keyspace), how many lie below `key`.
pub(super) fn share(key: &Key, after: Option<&Key>, before: Option<&Key>, count: u64) -> u64 {
    let least = after.map_or([0; 32], |after| after.0);
    let most = before.map_or([0xff; 32], |before| before.0);
    // What the bounds share says nothing; the eight bytes from there on say enough.
    let same = least.iter().zip(&most).take_while(|(a, b)| a == b).count().min(24);
    let number = |bytes: &[u8; 32]| bytes[same..same + 8].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let (low, high, at) = (number(&least), number(&most), number(&key.0.max(least).min(most)));
    if high <= low {
        return 0;
    }
    let part = u128::from(at.clamp(low, high) - low) * u128::from(count) / u128::from(high - low);
    // At most `count`: the quotient of the two differences is at most 1.
    part as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: u64 = LEAF_ENTRIES as u64;

    /// Finds the leaf of `from` among keys that `key` gives by number, and says how many leaves were looked at.
    fn find(from: Key, entries: u64, key: impl Fn(u64) -> Key) -> (u64, u32) {
        let mut search = Search::new(from, entries);
        let mut looked = 0;
        loop {
            if let Some(found) = search.found() {
                return (found, looked);
            }
            let guess = search.guess();
            assert_eq!(guess, search.guess());
            looked += 1;
            search.narrow(guess, key(guess * EACH), key(((guess + 1) * EACH).min(entries) - 1));
        }
    }

    fn number(high: u64, low: u64) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&high.to_be_bytes());
        key[24..].copy_from_slice(&low.to_be_bytes());
        Key(key)
    }

    #[test]
    fn an_even_spread_is_found_at_once() {
        let entries = 1_000_000_u64;
        let step = u64::MAX / entries;
        let key = |at: u64| number(at * step, 0);
        for wanted in (0..entries).step_by(9_973) {
            let (found, looked) = find(key(wanted), entries, key);
            assert_eq!(found, wanted / EACH);
            assert!(looked <= 2, "{looked} looks for {wanted}");
        }
        assert_eq!(find(number(u64::MAX, u64::MAX), entries, key).0, entries.div_ceil(EACH), "behind all");
    }

    /// Any order that somebody could make up costs as many looks as bisection, twice over.
    #[test]
    fn keys_that_were_made_up_cost_no_more_than_bisection() {
        let entries = 1_u64 << 32;
        let bound = GUESSES + 2 * 26;
        let exponential = |at: u64| number(1 << (at / (entries / 63 + 1)), at);
        // All but the first and the last in a corner, and all alike in their first 24 bytes.
        let corner = |at: u64| if at + 1 == entries { number(u64::MAX, 0) } else { number(u64::from(at > 0), at) };
        let close = |at: u64| number(7, at);
        let keys: [(&str, &dyn Fn(u64) -> Key); 3] =
            [("exponential", &exponential), ("corner", &corner), ("close", &close)];
        for (name, key) in keys {
            for wanted in (0..entries).step_by(40_000_003) {
                let (found, looked) = find(key(wanted), entries, key);
                assert_eq!(found, wanted / EACH, "{name}");
                // Once there is a close key on either side, what they share says nothing and the rest is as even as any.
                let bound = if name == "close" && wanted < entries / 2 { 10 } else { bound };
                assert!(looked <= bound, "{looked} looks for {wanted} of {name}");
            }
        }
    }

    #[test]
    fn a_share_is_never_over_the_whole() {
        let keys = [number(0, 0), number(0, 1), number(1, 0), number(u64::MAX, 0), Key([0xff; 32])];
        for key in &keys {
            for after in keys.iter().map(Some).chain([None]) {
                for before in keys.iter().map(Some).chain([None]) {
                    assert!(share(key, after, before, 1 << 32) <= 1 << 32);
                }
            }
        }
        assert_eq!(share(&number(1 << 63, 0), None, None, 1000), 500);
    }
}
