//! The fingerprint of a set of ids: BLAKE3 of their sum modulo 2^256 and their number, cut to 16 bytes.
//!
//! A sum, so that it is kept incrementally: an id is added or taken away in a few instructions, and the sums of
//! neighbouring ranges add up to the sum of both. XOR would be as cheap and is easily made to collide.

use super::Id;

/// The sum of some ids and their number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    /// Least significant first.
    limbs: [u64; 4],
    count: u64,
}

impl Sum {
    /// Adds an id, read as a little-endian number.
    pub fn add(&mut self, id: &Id) {
        self.plus(limbs(id));
        self.count = self.count.wrapping_add(1);
    }

    /// Takes an id away that was added.
    pub fn subtract(&mut self, id: &Id) {
        let mut borrow = false;
        for (mine, theirs) in self.limbs.iter_mut().zip(limbs(id)) {
            let (difference, first) = mine.overflowing_sub(theirs);
            let (difference, second) = difference.overflowing_sub(u64::from(borrow));
            *mine = difference;
            borrow = first || second;
        }
        self.count = self.count.wrapping_sub(1);
    }

    /// Adds another range's sum.
    pub fn join(&mut self, other: &Self) {
        self.plus(other.limbs);
        self.count = self.count.wrapping_add(other.count);
    }

    /// How many ids it is of.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The fingerprint: BLAKE3 over the sum (32 bytes) and the number (8), both little-endian, its first 16 bytes.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut input = [0; 40];
        for (bytes, limb) in input.chunks_exact_mut(8).zip(self.limbs.iter().chain([&self.count])) {
            bytes.copy_from_slice(&limb.to_le_bytes());
        }
        let mut out = [0; 16];
        out.copy_from_slice(&blake3::hash(&input).as_bytes()[..16]);
        Fingerprint(out)
    }

    fn plus(&mut self, other: [u64; 4]) {
        let mut carry = false;
        for (mine, theirs) in self.limbs.iter_mut().zip(other) {
            let (sum, first) = mine.overflowing_add(theirs);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            *mine = sum;
            carry = first || second;
        }
    }
}

fn limbs(id: &Id) -> [u64; 4] {
    let mut out = [0; 4];
    for (limb, bytes) in out.iter_mut().zip(id.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(bytes);
        *limb = u64::from_le_bytes(eight);
    }
    out
}

/// 16 bytes that are equal for equal sets and, but for a collision, different for different ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint(pub [u8; 16]);
