//! When the copies that are owed are offered again: soon after something came that may take them, and ever later after a
//! failure. One pass at a time.

use std::time::{Duration, Instant};

use crate::machine::StateMachine;

/// Peers that come together are served together.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// After a failure, or a chunk taken as owed: the first wait, doubled up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_secs(30);
const RETRY_MOST: Duration = Duration::from_secs(300);

/// What happened outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// A storing peer came or went, or chunks were left owed that nobody was asked to keep yet.
    News,
    /// Chunks were left owed because a peer failed, or taken as owed.
    Trouble,
    /// A pass is over; `clean` unless a peer or the store failed.
    Done {
        /// Nothing failed.
        clean: bool,
    },
}

/// What is to be done: offer all that is owed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pass;

/// The machine.
#[derive(Debug)]
pub struct Owed {
    due: Option<Instant>,
    wait: Duration,
    running: bool,
    /// What came during a pass.
    news: bool,
    trouble: bool,
    pass: Option<Pass>,
}

impl Default for Owed {
    fn default() -> Self {
        Self { due: None, wait: RETRY, running: false, news: false, trouble: false, pass: None }
    }
}

impl Owed {
    /// When the next pass is due, if one is.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    fn by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

impl StateMachine for Owed {
    type Input = Input;
    type Output = Pass;

    fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::News if self.running => self.news = true,
            Input::News => self.by(now + DEBOUNCE),
            Input::Trouble if self.running => self.trouble = true,
            Input::Trouble => {
                self.due.get_or_insert(now + self.wait);
            }
            Input::Done { clean } => {
                self.running = false;
                let trouble = std::mem::take(&mut self.trouble);
                if clean {
                    self.wait = RETRY;
                }
                if trouble || !clean {
                    self.by(now + self.wait);
                }
                if !clean {
                    self.wait = (self.wait * 2).min(RETRY_MOST);
                }
                if std::mem::take(&mut self.news) {
                    self.by(now + DEBOUNCE);
                }
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if !self.running && self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.running = true;
            self.pass = Some(Pass);
        }
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.due.filter(|_| !self.running).map(|at| (at, "owed copies"))
    }

    fn poll_output(&mut self) -> Option<Pass> {
        self.pass.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_taken_up_at_once_and_failures_ever_later() {
        let mut now = Instant::now();
        let mut owed = Owed::default();
        let mut waits = Vec::new();
        owed.handle(now, Input::News);
        for _ in 0..6 {
            let (at, _) = owed.poll_timeout().expect("a pass is due");
            waits.push((at - now).as_secs());
            now = at;
            owed.handle_timeout(now);
            assert_eq!((owed.poll_output(), owed.poll_timeout()), (Some(Pass), None), "one at a time");
            owed.handle(now, Input::Done { clean: false });
        }
        assert_eq!(waits, [1, 30, 60, 120, 240, 300]);
        now += RETRY_MOST;
        owed.handle_timeout(now);
        owed.handle(now, Input::News);
        owed.handle(now, Input::Done { clean: true });
        assert_eq!(owed.poll_timeout().map(|(at, _)| at), Some(now + DEBOUNCE), "what came during a pass");
    }
}
