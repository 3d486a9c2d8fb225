//! A token bucket: what somebody may ask for at once, and how fast it comes back. Time is an argument.

use std::time::{Duration, Instant};

/// Tokens that come back with time. Who takes more than there are is in debt, and told how long to wait.
#[derive(Clone, Debug)]
pub struct Bucket {
    most: f64,
    per_second: f64,
    /// Below zero: what those who wait have taken already, so that two never wait for the same token.
    left: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket of `most` tokens, `per_second` of which come back in a second.
    pub fn new(now: Instant, most: u32, per_second: u32) -> Self {
        let most = f64::from(most);
        Self { most, per_second: f64::from(per_second), left: most, filled: now }
    }

    /// Takes `count` tokens; gives how long to wait until they are there. Zero: they were.
    pub fn take(&mut self, now: Instant, count: u32) -> Duration {
        self.fill(now);
        self.left -= f64::from(count);
        if self.left < 0.0 { Duration::from_secs_f64(-self.left / self.per_second) } else { Duration::ZERO }
    }

    /// Takes `count` tokens if they are there; says whether they were.
    pub fn try_take(&mut self, now: Instant, count: u32) -> bool {
        self.fill(now);
        let enough = self.left >= f64::from(count);
        if enough {
            self.left -= f64::from(count);
        }
        enough
    }

    /// Whether it is as good as new.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= self.most
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.most);
        self.filled = now.max(self.filled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_its_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now, 10, 5);
        assert!(bucket.is_full(now));
        assert_eq!(bucket.take(now, 10), Duration::ZERO);
        assert!(!bucket.try_take(now, 1) && !bucket.is_full(now));
        assert_eq!(bucket.take(now, 5), Duration::from_secs(1));
        // The next one waits behind the one before.
        assert_eq!(bucket.take(now, 5), Duration::from_secs(2));
        let later = now + Duration::from_secs(2);
        assert!(!bucket.try_take(later, 1) && bucket.try_take(later + Duration::from_secs(1), 5));
        assert!(bucket.is_full(later + Duration::from_secs(100)));
        // A clock that seems to go back gives nothing.
        assert_eq!(bucket.take(now, 10), Duration::ZERO);
        assert!(!bucket.is_full(now));
    }
}
