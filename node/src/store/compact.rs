//! Compaction: the live records of a segment that is mostly dead are copied to the head, and the segment is removed
//! once the copies are on disk and indexed. A thread of its own reads; the writer appends, between other batches.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc::Receiver},
    time::{Duration, Instant},
};

use bytes::Bytes;
use p2p_protocol::{Chunk, Key, Multihash};

use super::{
    StoreError,
    disk::Disk,
    log::{Sealed, failed},
    record::{HEAD_BYTES, Head, Record, body_checksum},
    segment::{self, Location, SEGMENT_HEAD_BYTES, Step, Walk},
    shared::{Read, ReadValue, Shared},
    writer::Request,
};

/// Live bytes in a hundred under which a segment is compacted.
pub(super) const LIVE_PERCENT: u64 = 75;
/// What is copied at once: two chunks of the greatest size, so that a put never waits for more.
const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Records that are copied at once.
const STEP_RECORDS: usize = 64;
/// The longest rest between two steps.
const MAX_REST: Duration = Duration::from_millis(200);
/// Index entries read at once when a damaged segment's survivors are looked for.
const PAGE: usize = 1024;

/// Steps of a sweep before whoever waits for the thread has its turn: some seconds.
const SWEEP_STEPS: usize = 512;
/// Entries of the key table that a step of a sweep removes: what one batch of the index takes.
const SWEEP_ENTRIES: usize = 64;

/// What the thread does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    /// Compact this segment.
    Segment(u32, Sealed),
    /// Remove a part of what does not count any more of the key table.
    Sweep,
}

/// Tells the thread to end, also while it rests.
#[derive(Debug, Default)]
pub(super) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// From now on.
    pub(super) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Rests for `time`; true if it is to end.
    fn rest(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(stopped, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What the thread has.
pub(super) struct Compaction {
    pub(super) shared: Arc<Shared>,
    pub(super) directory: std::path::PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    /// Asks the writer, and waits for its answer.
    pub(super) ask: Box<dyn Fn(Request) -> Result<(), StoreError> + Send>,
    pub(super) stop: Arc<Stop>,
}

impl Compaction {
    /// Compacts what comes through `jobs` until the other end is gone.
    pub(super) fn run(&self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let (outcome, number) = match job {
                Job::Segment(number, sealed) => (self.compact(number, sealed), Some(number)),
                Job::Sweep => (self.sweep().map(|()| true), None),
            };
            let done = match outcome {
                Ok(done) => done,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::warn!(segment = number, %error, "a segment was not compacted");
                    false
                }
            };
            let stuck = number.filter(|_| !done);
            if (self.ask)(Request::Compacted { stuck }).is_err() {
                return;
            }
        }
    }

    /// Removes a part of what does not count any more of the key table.
    fn sweep(&self) -> Result<(), StoreError> {
        for _ in 0..SWEEP_STEPS {
            let started = Instant::now();
            match self.shared.with(|table| table.keys().sweep(SWEEP_ENTRIES)) {
                Ok(true) => {}
                // Of an index that failed nothing is left, and the writer makes it again.
                Ok(false) | Err(StoreError::Index(_)) => break,
                Err(error) => return Err(error),
            }
            if self.stop.rest(started.elapsed().min(MAX_REST)) {
                return Err(StoreError::Closed);
            }
        }
        Ok(())
    }

    /// Empties and removes a segment; `false`: it has to stay.
    pub(super) fn compact(&self, number: u32, sealed: Sealed) -> Result<bool, StoreError> {
        let Some(salt) = sealed.salt else { return Ok(false) };
        let path = segment::path(&self.directory, number);
        let file = self.disk.open(&path, false).map_err(|e| failed("opening", &path, e))?;
        let mut damaged = false;
        let mut moved = Vec::new();
        let mut bytes = 0;
        let mut walk = Walk::new(&*file, salt, SEGMENT_HEAD_BYTES, sealed.length);
        let mut started = Instant::now();
        loop {
            match walk.step().map_err(|e| failed("reading", &path, e))? {
                Step::Record { head: Head::Unknown { .. }, .. } => {
                    tracing::warn!(segment = %path.display(), "a segment has records that only a newer version knows; it stays as it is");
                    return Ok(false);
                }
                Step::Record { offset, head } => match self.read(&walk, Location { segment: number, offset }, head)? {
                    Found::Live(record) => {
                        bytes += record.total_bytes();
                        moved.push((Location { segment: number, offset }, record));
                    }
                    Found::Dead => {}
                    Found::Damaged => damaged = true,
                },
                Step::Damage { .. } => damaged = true,
                Step::Torn { .. } => {
                    damaged = true;
                    break;
                }
                Step::End => break,
            }
            if bytes >= STEP_BYTES || moved.len() >= STEP_RECORDS {
                self.relocate(&mut moved, started)?;
                bytes = 0;
                started = Instant::now();
            }
        }
        self.relocate(&mut moved, started)?;
        if damaged {
            self.rescue(number)?;
        }
        (self.ask)(Request::Retire(number)).map(|()| true)
    }

    fn read(&self, walk: &Walk<'_>, location: Location, head: Head) -> Result<Found, StoreError> {
        let record = match head {
            Head::Chunk(entry) => {
                let held = self.shared.with(|table| table.chunk(&Key::from(&entry.cid.hash)))?;
                if held.is_none_or(|held| held.location != location) {
                    return Ok(Found::Dead);
                }
                let payload = walk.read(location.offset + HEAD_BYTES as u64, u64::from(entry.length));
                match payload.map(|payload| Chunk::verify(entry.cid, payload)) {
                    Ok(Ok(chunk)) => Record::Chunk(entry, chunk.into_bytes()),
                    Ok(Err(_)) | Err(_) => return Ok(Found::Damaged),
                }
            }
            // `compact` went no further.
            Head::Unknown { .. } => return Ok(Found::Dead),
            Head::Deletion(entry, gone, origin) => Record::Deletion(entry, gone, origin),
            Head::Unset { checksum, origin, .. } => {
                match walk.read(location.offset + head.head_bytes(), head.body_bytes()) {
                    Ok(key) if body_checksum(&key, &[]) == checksum => Record::Unset(key.into(), origin),
                    _ => return Ok(Found::Damaged),
                }
            }
            Head::Value { key, checksum, .. } => {
                let Ok(body) = walk.read(location.offset + head.head_bytes(), head.body_bytes()) else {
                    return Ok(Found::Damaged);
                };
                let body = Bytes::from(body);
                let (key, value) = (body.slice(..key), body.slice(key..));
                if body_checksum(&key, &value) != checksum {
                    return Ok(Found::Damaged);
                }
                Record::Value(key, value)
            }
        };
        Ok(Found::Live(record))
    }

    fn relocate(&self, moved: &mut Vec<(Location, Record)>, started: Instant) -> Result<(), StoreError> {
        if !moved.is_empty() {
            (self.ask)(Request::Relocate(std::mem::take(moved)))?;
        }
        // As long as it took: half of the disk's time at most.
        if self.stop.rest(started.elapsed().min(MAX_REST)) { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// What only the index knows to be in a segment whose headers are damaged.
    fn rescue(&self, number: u32) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let page = self.shared.with(|table| table.chunks(after, PAGE))?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (_, held) in page.iter().filter(|(_, held)| held.location.segment == number) {
                self.rescue_chunk(&held.entry.cid.hash, held.location)?;
            }
        }
        let mut after: Option<Bytes> = None;
        loop {
            let page = self.shared.with(|table| table.values(&[], after.as_deref(), PAGE))?;
            let Some((last, ..)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (key, held) in page.into_iter().filter(|(_, held)| held.location.segment == number) {
                match self.shared.read_value(&key, held)? {
                    ReadValue::Value(value) => {
                        (self.ask)(Request::Relocate(vec![(held.location, Record::Value(key, value))]))?;
                    }
                    ReadValue::Missing => {}
                    ReadValue::Damaged(held) => (self.ask)(Request::DamagedValue(key, held.location))?,
                }
            }
        }
    }

    fn rescue_chunk(&self, hash: &Multihash, location: Location) -> Result<(), StoreError> {
        match self.shared.read(hash)? {
            Read::Chunk(chunk) => {
                let Some(entry) = self.shared.entry(&Key::from(hash))? else { return Ok(()) };
                (self.ask)(Request::Relocate(vec![(location, Record::Chunk(entry, chunk.into_bytes()))]))
            }
            Read::Missing => Ok(()),
            Read::Damaged(held) => {
                self.shared.set_aside(&held);
                (self.ask)(Request::Damaged(*hash, held.location))
            }
        }
    }
}

/// What stands in a segment at one place.
enum Found {
    Live(Record),
    Dead,
    Damaged,
}
