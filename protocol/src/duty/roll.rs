//! A short account of which publications are live, by which a few changes are found where they are.
//!
//! It is kept for a time at which all of them were read. What is live later and adds up to the same was read then; of
//! what does not, a sixty-fourth for each change is looked at again, and not everything.

/// The parts that ids fall into, by their first six bits.
const PARTS: usize = 64;

/// For each of 64 parts of the ids the XOR of a hash of each id that is in. The salt is this node's own and told to
/// nobody: whoever may choose ids cannot choose some that cancel out others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Roll {
    salt: u64,
    sums: [u64; PARTS],
    /// A bit for each part of which nothing is known.
    unsure: u64,
}

impl Roll {
    /// Of [`to_bytes`](Self::to_bytes).
    pub const BYTES: usize = 8 * (PARTS + 2);

    /// With nothing in it.
    pub fn new(salt: u64) -> Self {
        Self { salt, sums: [0; PARTS], unsure: 0 }
    }

    /// Its salt.
    pub fn salt(&self) -> u64 {
        self.salt
    }

    /// Puts an id in, or takes it out.
    pub fn toggle(&mut self, id: u64) {
        let said = [self.salt.to_be_bytes(), id.to_be_bytes()].concat();
        let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(&said).as_bytes();
        self.sums[part(id)] ^= u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    }

    /// Nothing is known any more of the parts that these ids are of. True: something was.
    pub fn forget(&mut self, ids: impl IntoIterator<Item = u64>) -> bool {
        let before = self.unsure;
        self.unsure = ids.into_iter().fold(before, |unsure, id| unsure | 1 << part(id));
        self.unsure != before
    }

    /// A bit for each part in which the two are not known to be equal.
    pub(super) fn differing(&self, other: &Self) -> u64 {
        let apart = self.sums.iter().zip(&other.sums).enumerate().filter(|(_, (one, other))| one != other);
        let apart = apart.fold(0, |bits, (part, _)| bits | 1 << part);
        let salts = if self.salt == other.salt { 0 } else { u64::MAX };
        apart | salts | self.unsure | other.unsure
    }

    /// Its salt, 64 sums and the bits of the parts of which nothing is known: 8 bytes each, big-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let numbers = [self.salt].into_iter().chain(self.sums).chain([self.unsure]);
        numbers.flat_map(u64::to_be_bytes).collect()
    }

    /// `None`: it is of another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let mut numbers = bytes.chunks_exact(8).map(|bytes| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)));
        let salt = numbers.next()?;
        let mut sums = [0; PARTS];
        for sum in &mut sums {
            *sum = numbers.next()?;
        }
        Some(Self { salt, sums, unsure: numbers.next()? })
    }
}

/// The part that an id is of.
fn part(id: u64) -> usize {
    (id >> 58) as usize
}

/// Whether an id is of one of these parts, a bit for each.
pub(super) fn is_of(id: u64, parts: u64) -> bool {
    parts >> part(id) & 1 == 1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        /// Two are equal where their sets are, and differ only in the parts in which those do.
        #[test]
        fn it_differs_where_the_sets_do(
            one in vec(any::<u64>(), 0..40),
            other in vec(any::<u64>(), 0..6),
            forgotten in vec(any::<u64>(), 0..3),
        ) {
            let (mut a, mut b) = (Roll::new(7), Roll::new(7));
            let one: BTreeSet<u64> = one.into_iter().collect();
            let other: BTreeSet<u64> = other.into_iter().collect();
            one.iter().for_each(|id| { a.toggle(*id); b.toggle(*id) });
            other.iter().for_each(|id| b.toggle(*id));
            prop_assert_eq!(a.forget(forgotten.iter().copied()), !forgotten.is_empty());
            let expected = other.iter().chain(&forgotten).fold(0_u64, |bits, id| bits | 1 << part(*id));
            prop_assert_eq!(a.differing(&b), expected);
            prop_assert_eq!(b.differing(&a), expected);
            prop_assert!(other.iter().all(|id| is_of(*id, a.differing(&b))));
            prop_assert_eq!(Roll::from_bytes(&a.to_bytes()), Some(a));
        }
    }

    #[test]
    fn with_another_salt_nothing_is_known_to_be_equal() {
        assert_eq!(Roll::new(1).differing(&Roll::new(2)), u64::MAX);
        assert_eq!(Roll::new(1).differing(&Roll::new(1)), 0);
        let bytes = Roll::new(1).to_bytes();
        assert_eq!(bytes.len(), Roll::BYTES);
        assert!((0..bytes.len()).all(|cut| Roll::from_bytes(&bytes[..cut]).is_none()));
    }
}
