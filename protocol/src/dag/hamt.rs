//! Where a name stands in a sharded directory: a hash array mapped trie (Bagwell, 2001) over murmur3-x64-64, as UnixFS has it.
//!
//! The 64 bits of a name's hash are used from the most significant on, as many at each level as index the fanout. A
//! shard's bitfield says which of its places are taken; its links stand in the order of their places and their names
//! begin with the place in upper-case hexadecimal.

use bytes::Bytes;

use super::DagError;

/// The fanout that is written here.
pub(super) const STANDARD: Fanout = Fanout { bits: 8 };

/// The first 64 bits of a name's murmur3-x64-128.
pub(super) fn hash(name: &str) -> u64 {
    let mut bytes = name.as_bytes();
    let hash = murmur3::murmur3_x64_128(&mut bytes, 0).expect("reading from memory never fails");
    // The crate gives the two halves as one number, the first of them below.
    hash as u64
}

/// How many places a shard has: a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fanout {
    bits: u32,
}

impl Fanout {
    /// 8 to 1024, what other implementations make.
    pub(super) fn new(fanout: u64) -> Result<Self, DagError> {
        if fanout.is_power_of_two() && (8..=1024).contains(&fanout) {
            Ok(Self { bits: fanout.trailing_zeros() })
        } else {
            Err(DagError::Shard("its fanout is not a power of two from 8 to 1024"))
        }
    }

    pub(super) fn places(self) -> usize {
        1 << self.bits
    }

    /// How many levels a hash has bits for.
    pub(super) fn levels(self) -> usize {
        (64 / self.bits) as usize
    }

    /// The place of `hash` in a shard at `level`, below [`levels`](Self::levels), the root being 0.
    pub(super) fn place(self, hash: u64, level: usize) -> usize {
        let used = self.bits * level as u32;
        ((hash << used) >> (64 - self.bits)) as usize
    }

    /// How many hexadecimal digits a link's name begins with.
    pub(super) fn digits(self) -> usize {
        self.bits.div_ceil(4) as usize
    }

    /// What the name of the link at `place` begins with.
    pub(super) fn prefix(self, place: usize) -> String {
        format!("{place:0width$X}", width = self.digits())
    }

    /// The bitfield of the taken places: a big-endian number, the lowest place its lowest bit, without leading zero bytes.
    pub(super) fn bitfield(self, places: impl Iterator<Item = usize>) -> Vec<u8> {
        let bytes = self.places() / 8;
        let mut field = vec![0; bytes];
        for place in places {
            field[bytes - 1 - place / 8] |= 1 << (place % 8);
        }
        let zeros = field.iter().take_while(|byte| **byte == 0).count();
        field.drain(..zeros);
        field
    }

    /// The taken places of a bitfield, in order.
    pub(super) fn taken(self, field: &Bytes) -> Result<Vec<usize>, DagError> {
        if field.len() > self.places() / 8 {
            return Err(DagError::Shard("its bitfield is longer than its fanout"));
        }
        let bit = |place: usize| field[field.len() - 1 - place / 8] >> (place % 8) & 1 == 1;
        Ok((0..field.len() * 8).filter(|place| bit(*place)).collect())
    }
}

/// Where a shard stands: the bits that led to it. Every name under it has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position {
    pub(super) level: usize,
    /// The bits so far, at the top of the number.
    path: u64,
}

impl Position {
    pub(super) const ROOT: Self = Self { level: 0, path: 0 };

    /// Where the shard behind `place` stands; an error when the hash has no bits left for it.
    pub(super) fn below(self, fanout: Fanout, place: usize) -> Result<Self, DagError> {
        let level = self.level + 1;
        if level >= fanout.levels() {
            return Err(DagError::TooDeep(fanout.levels()));
        }
        let path = self.path | (place as u64) << (64 - fanout.bits * level as u32);
        Ok(Self { level, path })
    }

    /// Whether `name` belongs at `place` of the shard that stands here.
    pub(super) fn holds(self, fanout: Fanout, place: usize, name: &str) -> bool {
        let hash = hash(name);
        let used = fanout.bits * self.level as u32;
        let above = if used == 0 { 0 } else { hash >> (64 - used) << (64 - used) };
        above == self.path && fanout.place(hash, self.level) == place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitfields_are_read_as_they_were_written() {
        for places in [vec![], vec![0], vec![7, 8], vec![255], (0..256).collect()] {
            let field = STANDARD.bitfield(places.iter().copied());
            assert_eq!(STANDARD.taken(&Bytes::from(field)), Ok(places));
        }
        assert_eq!(STANDARD.bitfield([0, 9].into_iter()), [2, 1]);
        assert!(STANDARD.taken(&Bytes::from_static(&[0; 33])).is_err());
    }

    #[test]
    fn a_name_stands_where_its_hash_says() {
        for fanout in [8, 16, 256, 1024].map(|fanout| Fanout::new(fanout).expect("a power of two")) {
            let hash = hash("name");
            let mut position = Position::ROOT;
            for level in 0..fanout.levels() {
                let place = fanout.place(hash, level);
                assert!(position.holds(fanout, place, "name"));
                assert!(!position.holds(fanout, place ^ 1, "name"));
                match position.below(fanout, place) {
                    Ok(below) => {
                        let aside = position.below(fanout, place ^ 1).expect("its neighbour is as deep");
                        assert!(!aside.holds(fanout, fanout.place(hash, level + 1), "name"));
                        position = below;
                    }
                    Err(error) => assert_eq!((error, level + 1), (DagError::TooDeep(fanout.levels()), fanout.levels())),
                }
            }
        }
        assert!(Fanout::new(0).is_err() && Fanout::new(255).is_err() && Fanout::new(2048).is_err());
    }
}
