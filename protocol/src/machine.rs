//! The shape of every state machine here: events and time in, actions out.
//!
//! Modelled on sans-I/O cores (quinn-proto, firezone's connlib): the machine never looks at a clock
//! and never does I/O, so a test drives it with any schedule and a seed. One that needs chance is made with a
//! [`Chance`](crate::chance::Chance): the same seed and the same inputs give the same outputs.

use std::time::Instant;

/// A pure state machine, driven by whoever owns the I/O and the timer.
///
/// After every call to [`handle`](Self::handle) or [`handle_timeout`](Self::handle_timeout) the driver drains
/// [`poll_output`](Self::poll_output) until it gives `None`, then arms its timer with
/// [`poll_timeout`](Self::poll_timeout).
pub trait StateMachine {
    /// What happened outside.
    type Input;
    /// What the driver is to do.
    type Output;

    /// Takes one event.
    fn handle(&mut self, now: Instant, input: Self::Input);

    /// Tells the machine that time has passed; a call before the deadline is harmless.
    fn handle_timeout(&mut self, now: Instant);

    /// When [`handle_timeout`](Self::handle_timeout) is due next, and why.
    fn poll_timeout(&self) -> Option<(Instant, &'static str)>;

    /// The next thing to do, in order.
    fn poll_output(&mut self) -> Option<Self::Output>;
}
