//! Waiting for a condition with a deadline: the only place where the process suites sleep.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// How long anything that must happen may take. Generous: a test fails by what it sees, never by being slow.
pub const LONG: Duration = Duration::from_secs(90);

/// Looks again and again until `look` gives a value.
///
/// # Panics
/// After `patience`, with what was waited for and why it was not so the last time.
#[track_caller]
pub fn until<T, E: Display>(what: &str, patience: Duration, look: impl FnMut() -> Result<T, E>) -> T {
    until_watching(what, patience, Duration::from_millis(50), look)
}

/// The same, looking every `interval`: for what does not last.
///
/// # Panics
/// As [`until`].
#[track_caller]
pub fn until_watching<T, E: Display>(
    what: &str,
    patience: Duration,
    interval: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return found,
            Err(reason) if Instant::now() >= deadline => {
                panic!("waited {} s in vain until {what}: {reason}", patience.as_secs())
            }
            Err(_) => std::thread::sleep(interval),
        }
    }
}

/// `Ok` where `condition` holds, else `reason`: for use with [`until`].
pub fn check(condition: bool, reason: impl Display) -> Result<(), String> {
    if condition { Ok(()) } else { Err(reason.to_string()) }
}

/// Lets a tenth of a second pass: for what goes round and round until its time is over.
pub fn a_tick() {
    std::thread::sleep(Duration::from_millis(100));
}

/// Lets a moment pass, up to `longest`: for tests whose subject is that something happens at any moment.
pub fn any_moment(random: &mut impl rand::Rng, longest: Duration) {
    std::thread::sleep(longest.mul_f64(random.random_range(0.0..1.0)));
}
