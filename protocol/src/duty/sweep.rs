//! Which part of the keyspace is to be compared, one scan at a time.

use std::time::{Duration, Instant};

use super::{
    counts::{PREFIX_BITS, first_of_prefix},
    span::{Span, Spans, after, before},
};
use crate::key::Key;

/// Everything is compared at least this often, whatever happened: three seconds of a core for a million rows.
const PASS: Duration = Duration::from_secs(6 * 3600);

/// Parts that are remembered apart, under half a megabyte; of more, everything is compared.
const MOST_PARTS: usize = 4096;

/// What is left to compare.
#[derive(Debug)]
pub(super) struct Sweep {
    dirty: Spans,
    /// The scan that is under way, and its span.
    scanning: Option<(u64, Span)>,
    scans: u64,
    next_pass: Instant,
}

impl Sweep {
    pub(super) fn new(now: Instant) -> Self {
        Self { dirty: Spans::all(), scanning: None, scans: 0, next_pass: now + PASS }
    }

    /// A span is to be compared, and with it what shares its first bits, so that what is looked at can be counted.
    pub(super) fn mark(&mut self, span: Span) {
        let last = span.to.as_ref().and_then(before);
        let to = last.and_then(|last| Span::of_prefix(first_of_prefix(&last), PREFIX_BITS).to);
        self.dirty.insert(Span { from: first_of_prefix(&span.from), to });
        if self.dirty.len() > MOST_PARTS {
            self.dirty = Spans::all();
        }
    }

    pub(super) fn mark_all(&mut self, spans: &Spans) {
        spans.iter().for_each(|span| self.mark(span));
    }

    /// Everything is to be compared.
    pub(super) fn pass(&mut self, now: Instant) {
        self.dirty = Spans::all();
        self.next_pass = now + PASS;
    }

    /// The next scan, if there is one to make and none is under way.
    pub(super) fn begin(&mut self) -> Option<(u64, Span)> {
        if self.scanning.is_some() {
            return None;
        }
        let span = self.dirty.pop_first()?;
        self.scans += 1;
        self.scanning = Some((self.scans, span));
        self.scanning
    }

    /// The answer of a scan came: gives what was looked at, if it is the one that is under way. Where rows follow, that
    /// ends before the first bits of the last row's key, unless it began there: those behind it are left to do.
    pub(super) fn take(&mut self, scan: u64, last: Option<Key>, ended: bool) -> Option<Span> {
        let (_, span) = self.scanning.take_if(|(id, _)| *id == scan)?;
        let rest = last.as_ref().and_then(|last| {
            let first = first_of_prefix(last);
            if first > span.from { Some(first) } else { after(last) }
        });
        if !ended
            && let Some(from) = rest
            && span.to.is_none_or(|to| from < to)
        {
            self.dirty.insert(Span { from, to: span.to });
            return Some(Span { from: span.from, to: Some(from) });
        }
        Some(span)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.scanning.is_none() && self.dirty.is_empty()
    }

    pub(super) fn next_pass(&self) -> Instant {
        self.next_pass
    }
}
