//! The look through the whole index, on as many threads as there are: what a start after a kill waits for.
//!
//! It counts what the index holds and adds it up, so that an index that is not what its sum says is found out. The
//! keyspace is cut into parts, and each thread takes the next part that nobody has: a thread that the system gives less
//! time does less of it.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicU16, Ordering},
    thread,
};

use bytes::Bytes;
use p2p_protocol::Key;

use super::{
    Entry, StoreError,
    draft::{Counters, cost},
    index::{
        keys::Tally,
        table::{HeldValue, Table, value_print},
    },
    segment::Location,
};

/// First bytes of keys in a part. Keys are hashes, so that parts are about equal: with 32 of them the last one that is
/// waited for is a small part of the whole, and a store that has nothing is not asked more than that.
const PART_BYTES: u16 = 8;
/// Threads that look at once (guess: more would wait for one another in the index).
const MOST_THREADS: usize = 8;

/// What was counted.
#[derive(Default)]
pub(super) struct Counted {
    /// What all chunks and values add up to.
    pub(super) sum: u64,
    pub(super) counters: Counters,
    /// Bytes of the live chunks and values of each segment.
    pub(super) live: BTreeMap<u32, u64>,
    /// Chunks that are nowhere: of segments that are lost, some 45 bytes each.
    pub(super) lost: Vec<Entry>,
    /// Keys of the values that are nowhere.
    pub(super) lost_values: Vec<Bytes>,
    /// What the entries of the key table add up to.
    pub(super) keys: Tally,
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.sum ^= other.sum;
        self.counters.chunks += other.counters.chunks;
        self.counters.payload_bytes += other.counters.payload_bytes;
        other.live.iter().for_each(|(segment, bytes)| *self.live.entry(*segment).or_default() += bytes);
        self.lost.extend(other.lost);
        self.lost_values.extend(other.lost_values);
        self.keys.add(other.keys);
    }

    /// Counts a record in, if the segments, with their lengths, have it.
    fn place(&mut self, segments: &BTreeMap<u32, u64>, location: Location, bytes: u64) -> bool {
        let inside = segments.get(&location.segment).is_some_and(|length| location.offset + bytes <= *length);
        if inside {
            *self.live.entry(location.segment).or_default() += bytes;
        }
        inside
    }
}

/// Looks at every chunk, every value and every entry of the key table that counts. `segments`: how long each is.
pub(super) fn look_through(table: &Table, segments: BTreeMap<u32, u64>) -> Result<Counted, StoreError> {
    let next = AtomicU16::new(0);
    let work = || {
        let mut counted = Counted::default();
        loop {
            let start = next.fetch_add(PART_BYTES, Ordering::Relaxed);
            if start >= 256 {
                return Ok::<_, StoreError>(counted);
            }
            let part = start..start + PART_BYTES;
            look_at_chunks(table, &segments, &part, &mut counted)?;
            counted.keys.add(table.keys().count(&part)?);
        }
    };
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get().min(MOST_THREADS));
    let mut all = Counted::default();
    thread::scope(|scope| {
        // One that cannot be started leaves its parts to the others.
        let others = (1..threads).map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok());
        let others: Vec<_> = others.collect();
        all.add(work()?);
        for other in others {
            // What an index panics with is caught where it is asked.
            all.add(other.join().map_err(|_| StoreError::Index("a look at it failed".into()))??);
        }
        Ok::<_, StoreError>(())
    })?;
    // They are few beside the chunks, and their keys are no hashes.
    table.walk_values(|key, HeldValue { location, content }| {
        all.sum ^= value_print(key, location);
        if !all.place(&segments, location, content.record_bytes(key)) {
            all.lost_values.push(Bytes::copy_from_slice(key));
        }
        Ok(())
    })?;
    Ok(all)
}

fn look_at_chunks(
    table: &Table,
    segments: &BTreeMap<u32, u64>,
    part: &Range<u16>,
    counted: &mut Counted,
) -> Result<(), StoreError> {
    table.walk_chunks(part, |key, held, print| {
        if Key::from(&held.entry.cid.hash) != key {
            return Err(StoreError::Index("an entry of it is under a key that is not its own".into()));
        }
        counted.sum ^= print;
        if counted.place(segments, held.location, cost(&held.entry)) {
            counted.counters.add(&held.entry);
        } else {
            counted.lost.push(held.entry);
        }
        Ok(())
    })
}
