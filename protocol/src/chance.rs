//! Chance from a seed: what a decision needs of randomness, so that the same seed gives the same run.
//!
//! ChaCha with 8 rounds (`rand_chacha`), whose output for a seed never changes with the version of the crate or the
//! machine. Nothing here is secret: keys and nonces are made where there is entropy.

use std::time::Duration;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

/// A source of chance; each machine that needs one is made with its own.
#[derive(Clone, Debug)]
pub struct Chance(ChaCha8Rng);

impl Chance {
    /// The source of a seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Any of the 2^64 numbers: a seed for another source, say.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// An index below `count`; 0 where `count` is 0.
    pub fn below(&mut self, count: usize) -> usize {
        // A multiplication spreads 64 bits over the range (Lemire, 2019); its bias is under count / 2^64.
        let wide = u128::from(self.number()) * count as u128;
        (wide >> 64) as usize
    }

    /// A number from 0 up to, not including, 1.
    pub fn fraction(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A part of `upto`, so that the nodes of a network do not act as one.
    pub fn part(&mut self, upto: Duration) -> Duration {
        upto.mul_f64(self.fraction())
    }

    /// `period`, up to the share `spread` (0 to 1) of it more or less.
    pub fn around(&mut self, period: Duration, spread: f64) -> Duration {
        period.mul_f64(1.0 - spread + 2.0 * spread * self.fraction())
    }

    /// Any 32 bytes: a place in the keyspace, say.
    pub fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_run_and_another_another() {
        let run = |seed| {
            let mut chance = Chance::new(seed);
            (chance.number(), chance.below(1000), chance.bytes(), chance.part(Duration::from_secs(60)))
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        assert_eq!(Chance::new(0).number(), 0xb585_f767_a79a_3b6c, "the generator of a seed never changes");
    }

    #[test]
    fn what_is_drawn_is_within_its_bounds() {
        let mut chance = Chance::new(1);
        let minute = Duration::from_secs(60);
        let mut seen = [false; 5];
        for _ in 0..1000 {
            seen[chance.below(5)] = true;
            assert!(chance.fraction() < 1.0 && chance.part(minute) < minute);
            let about = chance.around(minute, 0.1).as_secs_f64();
            assert!((54.0..=66.0).contains(&about), "{about}");
        }
        assert_eq!((seen, chance.below(0), chance.below(1)), ([true; 5], 0, 0));
    }
}
