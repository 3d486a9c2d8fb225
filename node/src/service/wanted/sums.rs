//! Sums over the rows, kept by the first 16 bits of their keys, so that two sets are compared without a look at each row.
//!
//! A bucket has, for each number of copies, the sum of the keys of the rows that something lists and of those of them
//! whose chunk is here. It is worked out anew, by a scan of its rows, when it is asked for and anything in it changed
//! since. A part of the keyspace is a number of whole buckets and two scans at its ends. 65,536 buckets of 24 bytes, and
//! 88 for each number of copies in one that has rows: at most 8 MiB where all ask for the same.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::atomic::Ordering};

use p2p_protocol::{
    Key,
    audit::Common,
    duty::{Row, SCAN_ROWS, Span, span},
    manifest::Entry,
    reconcile::{self, Bound, Fingerprint, Id, IdRanges, Sum},
};

use super::Wanted;
use crate::store::StoreError;

/// Buckets whose rows are remembered while one question is answered: each is some hundreds of rows.
const REMEMBERED: usize = 64;

/// Which of the rows in a range are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Those that something lists.
    Wanted,
    /// Those of them whose chunk is here.
    Held,
}

/// Of one bucket, for so many copies.
#[derive(Clone, Copy, Default, Debug)]
struct Part {
    copies: u8,
    wanted: Sum,
    held: Sum,
}

/// A row that something lists.
#[derive(Clone, Copy, Debug)]
struct Found {
    key: Key,
    copies: u8,
    held: bool,
}

/// The sums of all buckets.
#[derive(Debug)]
pub(super) struct Sums {
    buckets: Vec<Vec<Part>>,
    stale: Vec<bool>,
}

impl Default for Sums {
    fn default() -> Self {
        let count = 1 << 16;
        Self { buckets: vec![Vec::new(); count], stale: vec![true; count] }
    }
}

impl Wanted {
    /// The chunks of a range, as a set that can be compared. Its questions block.
    pub fn in_range<'a>(&'a self, common: &'a Common, side: Side) -> InRange<'a> {
        InRange { wanted: self, common, side, rows: RefCell::default(), failed: RefCell::default() }
    }

    /// How often the rows of a bucket were scanned since the start, to work its sums out or for themselves.
    pub fn scanned(&self) -> u64 {
        self.inner.scanned.load(Ordering::Relaxed)
    }

    fn rows_of(&self, bucket: u16) -> Result<Vec<Found>, StoreError> {
        self.inner.scanned.fetch_add(1, Ordering::Relaxed);
        let Span { mut from, to } = whole(bucket);
        let mut found = Vec::new();
        loop {
            let page = match to {
                Some(to) => self.inner.keys.range(from..to, SCAN_ROWS)?,
                None => self.inner.keys.range(from.., SCAN_ROWS)?,
            };
            let last = page.last().map(|(key, _)| *key);
            let ended = page.len() < SCAN_ROWS;
            for (key, bytes) in page {
                let Some(row) = Row::from_bytes(&bytes).filter(Row::is_wanted) else { continue };
                let held = self.inner.store.entry(&row.entry.cid.hash)?.is_some();
                found.push(Found { key, copies: row.copies(), held });
            }
            match last.and_then(|last| span::after(&last)) {
                Some(next) if !ended => from = next,
                _ => return Ok(found),
            }
        }
    }
}

/// The keys of a bucket.
fn whole(bucket: u16) -> Span {
    let mut start = Key([0; 32]);
    start.0[..2].copy_from_slice(&bucket.to_be_bytes());
    Span::of_prefix(start, 16)
}

fn bucket_of(key: &Key) -> u16 {
    u16::from_be_bytes([key.0[0], key.0[1]])
}

/// Rows of a common range, at the time of each question.
#[derive(Debug)]
pub struct InRange<'a> {
    wanted: &'a Wanted,
    common: &'a Common,
    side: Side,
    rows: RefCell<BTreeMap<u16, Rc<Vec<Found>>>>,
    /// What could not be read: all answers since are worth nothing.
    failed: RefCell<Option<StoreError>>,
}

impl InRange<'_> {
    /// Fails where any question before did.
    ///
    /// # Errors
    /// The first failure of the index since the set was made.
    pub fn check(self) -> Result<(), StoreError> {
        self.failed.into_inner().map_or(Ok(()), Err)
    }

    /// The chunk with so many before it.
    pub fn pick(&self, skip: usize) -> Option<Entry> {
        let id = self.nth(&(Bound::START..Bound::End), skip)?;
        self.wanted.row(&Key(id)).ok().flatten().map(|row| row.entry)
    }

    /// Whether one of its keys is in it.
    pub fn contains(&self, key: &Key) -> bool {
        let row = self.wanted.row(key).ok().flatten();
        row.is_some_and(|row| row.is_wanted() && self.common.contains(key, row.copies()))
    }

    fn is_meant(&self, asked: &Span, found: &Found) -> bool {
        let here = self.side == Side::Wanted || found.held;
        here && asked.contains(&found.key) && self.common.contains(&found.key, found.copies)
    }

    fn rows(&self, bucket: u16) -> Result<Rc<Vec<Found>>, StoreError> {
        let mut rows = self.rows.borrow_mut();
        if let Some(known) = rows.get(&bucket) {
            return Ok(Rc::clone(known));
        }
        if rows.len() >= REMEMBERED {
            rows.clear();
        }
        let found = Rc::new(self.wanted.rows_of(bucket)?);
        rows.insert(bucket, Rc::clone(&found));
        Ok(found)
    }

    /// What of a bucket is meant.
    fn sum(&self, sums: &mut Sums, bucket: u16, asked: &Span) -> Result<Sum, StoreError> {
        let at = usize::from(bucket);
        if std::mem::take(&mut sums.stale[at]) {
            sums.buckets[at] = match self.wanted.rows_of(bucket) {
                Ok(rows) => parts(&rows),
                Err(error) => {
                    sums.stale[at] = true;
                    return Err(error);
                }
            };
        }
        let parts = &sums.buckets[at];
        if parts.is_empty() {
            return Ok(Sum::default());
        }
        let span = whole(bucket);
        let ends_inside = asked.to.is_none_or(|end| span.to.is_some_and(|to| to <= end));
        let inside = asked.from <= span.from && ends_inside;
        let covers = |part: &Part| self.common.of(part.copies).and_then(|spans| spans.covers(&span));
        let mut sum = Sum::default();
        if inside && parts.iter().all(|part| covers(part) != Some(false)) {
            for part in parts.iter().filter(|part| covers(part) == Some(true)) {
                sum.join(if self.side == Side::Wanted { &part.wanted } else { &part.held });
            }
        } else {
            let rows = self.rows(bucket)?;
            rows.iter().filter(|found| self.is_meant(asked, found)).for_each(|found| sum.add(&found.key.0));
        }
        Ok(sum)
    }

    /// Goes through the buckets of a span that have something in it, until told to stop.
    fn walk(&self, asked: &reconcile::Span, mut visit: impl FnMut(u16, &Span, &Sum) -> Result<bool, StoreError>) {
        let Bound::At(from) = asked.start else { return };
        let (to, last) = match asked.end {
            Bound::End => (None, u16::MAX),
            Bound::At(to) => match span::before(&Key(to)) {
                Some(last) if last.0 >= from => (Some(Key(to)), bucket_of(&last)),
                _ => return,
            },
        };
        let asked = Span { from: Key(from), to };
        let mut through = || {
            let mut sums = self.wanted.sums();
            for prefix in self.wanted.inner.keys.take_changed()? {
                sums.stale[usize::from(prefix)] = true;
            }
            for bucket in bucket_of(&asked.from)..=last {
                let sum = self.sum(&mut sums, bucket, &asked)?;
                if sum.count() > 0 && !visit(bucket, &asked, &sum)? {
                    break;
                }
            }
            Ok(())
        };
        if let Err(error) = through() {
            self.failed.borrow_mut().get_or_insert(error);
        }
    }
}

fn parts(rows: &[Found]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for found in rows {
        let at = parts.iter().position(|part| part.copies == found.copies).unwrap_or_else(|| {
            parts.push(Part { copies: found.copies, ..Part::default() });
            parts.len() - 1
        });
        parts[at].wanted.add(&found.key.0);
        if found.held {
            parts[at].held.add(&found.key.0);
        }
    }
    parts
}

impl IdRanges for InRange<'_> {
    fn count(&self, span: &reconcile::Span) -> usize {
        let mut count = 0;
        self.walk(span, |_, _, sum| {
            count += sum.count();
            Ok(true)
        });
        // A node has fewer chunks than this machine has addresses.
        count as usize
    }

    fn fingerprint(&self, span: &reconcile::Span) -> Fingerprint {
        let mut all = Sum::default();
        self.walk(span, |_, _, sum| {
            all.join(sum);
            Ok(true)
        });
        all.fingerprint()
    }

    fn ids(&self, span: &reconcile::Span, limit: usize) -> Vec<Id> {
        let mut ids = Vec::new();
        self.walk(span, |bucket, asked, _| {
            let rows = self.rows(bucket)?;
            let room = limit - ids.len();
            ids.extend(rows.iter().filter(|found| self.is_meant(asked, found)).take(room).map(|found| found.key.0));
            Ok(ids.len() < limit)
        });
        ids
    }

    fn nth(&self, span: &reconcile::Span, skip: usize) -> Option<Id> {
        let (mut left, mut id) = (skip, None);
        self.walk(span, |bucket, asked, sum| {
            // As in `count`.
            let here = sum.count() as usize;
            if left >= here {
                left -= here;
                return Ok(true);
            }
            let rows = self.rows(bucket)?;
            id = rows.iter().filter(|found| self.is_meant(asked, found)).nth(left).map(|found| found.key.0);
            Ok(false)
        });
        id
    }
}

#[cfg(test)]
#[path = "sums_tests.rs"]
mod tests;
