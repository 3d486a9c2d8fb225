//! How far one pass over all chunks is, and how fast it goes on.

use std::time::Duration;

use p2p_protocol::duty::Moment;

use crate::store::{Pass, PassPosition};

/// The least that a pass reads a second: a small store is done with soon, and its disk may sleep again.
const FLOOR: u64 = 1 << 20;
/// The most: a disk that serves others has most of its time left for them. A period that would need more is not kept.
const CEILING: u64 = 32 << 20;

/// How fast chunks are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pace {
    /// Within which each chunk is read again, not zero.
    pub(super) period: Duration,
}

impl Pace {
    /// A pass has half of the period, and one begins each half: what came right behind the beginning of one is read
    /// within the next.
    fn half(&self) -> Duration {
        self.period / 2
    }

    /// How long the next step of a pass waits, that began then, after `read` bytes of which `left` were to be read.
    pub(super) fn wait(&self, read: u64, left: u64, began: Moment, now: Moment) -> Duration {
        let gone = Duration::from_secs(now.0.saturating_sub(began.0));
        let time = self.half().saturating_sub(gone).as_secs_f64();
        // Nine tenths of the time that is left: what comes meanwhile is read too.
        let even = if time > 0.0 { left as f64 / (time * 0.9) } else { CEILING as f64 };
        Duration::from_secs_f64(read as f64 / even.clamp(FLOOR as f64, CEILING as f64))
    }
}

/// A pass: under way, or the last one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Scrubbing {
    /// When it began.
    pub(super) began: Moment,
    /// There was none yet, or it is over: nothing is under way.
    over: Over,
    /// Where it goes on; `None`: at the beginning.
    pub(super) position: Option<PassPosition>,
    /// Chunks that were read.
    pub(super) chunks: u64,
    /// Their payload bytes.
    pub(super) bytes: u64,
    /// Those of them that were damaged.
    pub(super) damaged: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Over {
    /// There was none yet.
    #[default]
    Never,
    No,
    Yes,
}

/// Bytes of what is kept.
const KEPT_BYTES: usize = 8 + 1 + 3 * 8 + 24;

impl Scrubbing {
    /// One that begins now.
    pub(super) fn begin(now: Moment) -> Self {
        Self { began: now, over: Over::No, ..Self::default() }
    }

    /// Whether something of it is still to be read.
    pub(super) fn is_under_way(&self) -> bool {
        self.over == Over::No
    }

    /// How long nothing is to be done; `None`: something is now.
    pub(super) fn rests(&self, pace: &Pace, now: Moment) -> Option<Duration> {
        let next = self.began.plus(pace.half());
        (self.over == Over::Yes && next > now).then(|| Duration::from_secs(next.0 - now.0))
    }

    /// A step was made.
    pub(super) fn take(&mut self, step: &Pass) {
        self.chunks += step.chunks;
        self.bytes += step.bytes;
        self.damaged += step.damaged.len() as u64;
        self.position = step.next;
        if step.next.is_none() {
            self.over = Over::Yes;
        }
    }

    /// As it is kept: when it began (8), whether it is over (1), chunks, bytes and damaged ones (8 each), and, unless it
    /// is over or at its beginning, the position (24).
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(KEPT_BYTES);
        out.extend_from_slice(&self.began.0.to_be_bytes());
        out.push(u8::from(self.over == Over::Yes));
        for number in [self.chunks, self.bytes, self.damaged] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend(self.position.iter().flat_map(PassPosition::to_bytes));
        out
    }

    /// `None` where it is not that.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, position) = bytes.split_at_checked(KEPT_BYTES - 24)?;
        let number = |at: usize| Some(u64::from_be_bytes(numbers.get(at..at + 8)?.try_into().ok()?));
        let over = match numbers.get(8)? {
            0 => Over::No,
            1 => Over::Yes,
            _ => return None,
        };
        let position = if position.is_empty() { None } else { Some(PassPosition::from_bytes(position)?) };
        let [chunks, bytes, damaged] = [number(9)?, number(17)?, number(25)?];
        Some(Self { began: Moment(number(0)?), over, position, chunks, bytes, damaged })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn position() -> PassPosition {
        PassPosition::from_bytes(&[[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9], [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7]].concat())
            .expect("it has its length")
    }

    #[test]
    fn a_pass_is_kept_as_it_is() {
        let mut pass = Scrubbing::begin(Moment(5));
        assert_eq!(Scrubbing::from_bytes(&pass.to_bytes()), Some(pass));
        pass.take(&Pass { next: Some(position()), chunks: 3, bytes: 700, ..Pass::default() });
        assert_eq!(Scrubbing::from_bytes(&pass.to_bytes()), Some(pass));
        assert!(pass.is_under_way());
        let bytes = pass.to_bytes();
        assert!((0..bytes.len()).filter(|cut| *cut != 33).all(|cut| Scrubbing::from_bytes(&bytes[..cut]).is_none()));
        pass.take(&Pass { next: None, chunks: 1, bytes: 1, ..Pass::default() });
        assert_eq!(Scrubbing::from_bytes(&pass.to_bytes()), Some(pass));
        assert_eq!((pass.is_under_way(), pass.chunks, pass.bytes), (false, 4, 701));
    }

    #[test]
    fn a_pass_begins_each_half_of_the_period_and_at_once_where_there_was_none() {
        let pace = Pace { period: Duration::from_secs(30 * DAY) };
        assert_eq!(Scrubbing::default().rests(&pace, Moment(0)), None);
        let mut pass = Scrubbing::begin(Moment(DAY));
        assert_eq!(pass.rests(&pace, Moment(DAY)), None);
        pass.take(&Pass::default());
        assert_eq!(pass.rests(&pace, Moment(2 * DAY)), Some(Duration::from_secs(14 * DAY)));
        assert_eq!(pass.rests(&pace, Moment(16 * DAY)), None);
    }

    #[test]
    fn the_pace_is_even_with_a_floor_and_a_ceiling() {
        let pace = Pace { period: Duration::from_secs(20 * DAY) };
        let rate = |left: u64, now: u64| 1e6 / pace.wait(1_000_000, left, Moment(0), Moment(now)).as_secs_f64();
        assert_eq!(rate(1 << 30, 0) as u64, FLOOR);
        let terabytes = rate(9 << 40, 0);
        assert!((terabytes - (9_u64 << 40) as f64 / (9.0 * DAY as f64)).abs() < 100.0, "{terabytes}");
        assert!(rate(9 << 40, DAY) > terabytes, "what is late goes faster");
        assert_eq!(rate(1 << 50, 0) as u64, CEILING);
        assert_eq!(rate(1, 11 * DAY) as u64, CEILING, "and as fast as it may once its time is over");
    }
}
