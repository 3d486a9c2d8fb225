//! What a reader knows of one peer: its window, how fast it delivers, whether it can be trusted.

use std::time::{Duration, Instant};

/// Asks that a peer gets before anything is known of it.
pub(super) const FIRST_WINDOW: usize = 4;
/// The most asks in flight to one peer: what 20 ms of round trip needs at full speed (measured).
const MAX_WINDOW: usize = 64;
/// The most bytes in flight from one peer, so that a window of large chunks stays within a reader's memory.
const MAX_WINDOW_BYTES: u64 = 32 << 20;
/// When an ask to a peer that never delivered is late: it can have to be dialled first.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
/// No answer is late before this: below it, hedging costs more than it gains.
const MIN_PATIENCE: Duration = Duration::from_millis(100);
/// And every answer is late after this.
const MAX_PATIENCE: Duration = Duration::from_secs(5);
/// How long a peer is passed over after its first failure; doubled by each failure in a row.
const FIRST_PUT_OFF: Duration = Duration::from_millis(500);
/// The most that the doubling gives: 500 ms × 2⁴ = 8 s.
const MAX_DOUBLINGS: u32 = 4;

/// One peer, as a reader sees it.
#[derive(Debug)]
pub(super) struct Peer {
    /// In asks; grows by one for each delivery until the first trouble, then by one for each window delivered.
    window: f64,
    ramping: bool,
    in_flight: usize,
    in_flight_bytes: u64,
    /// Smoothed time from ask to delivery and its mean deviation, as TCP keeps them (RFC 6298).
    latency: Option<(Duration, Duration)>,
    /// Smoothed time that one chunk takes while others are in the pipe too.
    service: Option<Duration>,
    last_delivery: Option<Instant>,
    failures: u32,
    put_off_until: Option<Instant>,
    banned: bool,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            window: FIRST_WINDOW as f64,
            ramping: true,
            in_flight: 0,
            in_flight_bytes: 0,
            latency: None,
            service: None,
            last_delivery: None,
            failures: 0,
            put_off_until: None,
            banned: false,
        }
    }
}

impl Peer {
    pub(super) fn window(&self) -> usize {
        self.window as usize
    }

    /// Whether another ask of so many bytes fits; an idle peer takes one of any size.
    pub(super) fn has_room(&self, bytes: u32) -> bool {
        self.in_flight == 0
            || (self.in_flight < self.window() && self.in_flight_bytes + u64::from(bytes) <= MAX_WINDOW_BYTES)
    }

    /// When another ask would be answered, from now, as far as is known: nobody tried is tried at once.
    pub(super) fn expected(&self) -> Duration {
        let ahead = u32::try_from(self.in_flight + 1).unwrap_or(u32::MAX);
        // With nothing known yet, the emptier pipe goes first.
        self.service.unwrap_or(Duration::from_nanos(1)).saturating_mul(ahead)
    }

    pub(super) fn banned(&self) -> bool {
        self.banned
    }

    /// Until when it is passed over, if it is.
    pub(super) fn put_off_until(&self) -> Option<Instant> {
        self.put_off_until
    }

    /// Ends its time of being passed over, if that is past.
    pub(super) fn forgive(&mut self, now: Instant) {
        self.put_off_until = self.put_off_until.filter(|until| *until > now);
    }

    /// How long an answer may take before it is late.
    pub(super) fn patience(&self) -> Duration {
        self.latency.map_or(FIRST_PATIENCE, |(mean, deviation)| {
            (mean.saturating_mul(2) + deviation.saturating_mul(4)).clamp(MIN_PATIENCE, MAX_PATIENCE)
        })
    }

    pub(super) fn took_off(&mut self, bytes: u32) {
        self.in_flight += 1;
        self.in_flight_bytes += u64::from(bytes);
    }

    pub(super) fn landed(&mut self, bytes: u32) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(u64::from(bytes));
    }

    pub(super) fn answered(&mut self) {
        self.failures = 0;
        self.put_off_until = None;
    }

    pub(super) fn delivered(&mut self, now: Instant, asked_at: Instant, late: bool) {
        self.answered();
        let took = now.saturating_duration_since(asked_at);
        self.latency = Some(match self.latency {
            None => (took, took / 2),
            Some((mean, deviation)) => ((mean * 7 + took) / 8, (deviation * 3 + mean.abs_diff(took)) / 4),
        });
        let busy_since = self.last_delivery.map_or(asked_at, |last| last.max(asked_at));
        let service = now.saturating_duration_since(busy_since).max(Duration::from_nanos(1));
        self.service = Some(self.service.map_or(service, |mean| (mean * 7 + service) / 8));
        self.last_delivery = Some(now);
        if !late {
            let step = if self.ramping { 1.0 } else { 1.0 / self.window };
            self.window = (self.window + step).min(MAX_WINDOW as f64);
        }
    }

    pub(super) fn was_late(&mut self) {
        self.shrink();
    }

    pub(super) fn failed(&mut self, now: Instant) {
        if self.put_off_until.is_some() {
            // A session that breaks fails all that was asked on it: that is one failure.
            return;
        }
        self.shrink();
        self.put_off_until = Some(now + FIRST_PUT_OFF * 2_u32.pow(self.failures.min(MAX_DOUBLINGS)));
        self.failures = self.failures.saturating_add(1);
    }

    pub(super) fn ban(&mut self) {
        self.banned = true;
    }

    fn shrink(&mut self) {
        self.ramping = false;
        self.window = (self.window / 2.0).max(1.0);
    }
}
