//! What a run did and found: events with the second, counts, and what must not be.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Events that are kept: an hour of a busy network has a tenth of them (a guess). What comes then is counted only.
const MOST_EVENTS: usize = 400_000;

/// The story of a run.
#[derive(Debug)]
pub struct Log {
    began: Instant,
    /// Events are told as they come, too.
    aloud: bool,
    events: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    found: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Log {
    /// An empty one, whose time begins now.
    pub fn new(aloud: bool) -> Self {
        let (events, counts, found) = Default::default();
        Self { began: Instant::now(), aloud, events, counts, found, over: AtomicBool::new(false) }
    }

    /// How long the run has taken.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Something happened: one line.
    pub fn event(&self, text: impl AsRef<str>) {
        let line = format!("{:8.1} s  {}", self.elapsed().as_secs_f64(), text.as_ref().replace('\n', " | "));
        if self.aloud {
            eprintln!("{line}");
        }
        let mut events = held(&self.events);
        if events.len() < MOST_EVENTS {
            events.push(line);
        }
    }

    /// One more of `name`.
    pub fn count(&self, name: &'static str) {
        self.add(name, 1);
    }

    /// `more` of `name`; none makes it known, so that it is printed.
    pub fn add(&self, name: &'static str, more: u64) {
        *held(&self.counts).entry(name).or_default() += more;
    }

    /// The greatest of `name` so far is at least `value`.
    pub fn at_least(&self, name: &'static str, value: u64) {
        let mut counts = held(&self.counts);
        let entry = counts.entry(name).or_default();
        *entry = value.max(*entry);
    }

    /// Something that must not be, counted as `name`. Ends the run.
    pub fn found(&self, name: &'static str, text: impl AsRef<str>) {
        self.count(name);
        self.event(format!("FOUND {name}: {}", text.as_ref()));
        held(&self.found).push(text.as_ref().to_owned());
        self.end();
    }

    /// Whether there is time no more, or no point.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The workers end what they are at and begin nothing.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// All that must not be and is.
    pub fn all_found(&self) -> Vec<String> {
        held(&self.found).clone()
    }

    /// All counts, by name.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        held(&self.counts).clone()
    }

    /// All events.
    pub fn events(&self) -> Vec<String> {
        held(&self.events).clone()
    }
}

/// What a thread that panicked held is as good as before: nothing here is changed in steps.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
