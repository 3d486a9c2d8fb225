//! What a batch changes, before it is in the log and in the index: the writer and the replay of the log both use it.

use std::collections::HashMap;

use bytes::Bytes;
use p2p_protocol::Key;

use super::{
    Entry, StoreError,
    index::{
        MAX_BATCH, Write,
        table::{self, Content, Held, HeldValue, Position, Table},
    },
    record::HEAD_BYTES,
    segment::Location,
};

/// Where a record is, or will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum At {
    /// In the log.
    Log(Location),
    /// The batch's record of this number, which is not appended yet.
    Batch(usize),
}

#[derive(Clone, Copy)]
struct Slot {
    before: Option<Held>,
    after: Option<(Entry, At)>,
    /// What is remembered of it if it is gone because it was damaged.
    damaged: Option<Entry>,
}

struct ValueSlot {
    /// The record that held so far.
    before: Option<HeldValue>,
    /// The one that holds from now on; `None`: there is none.
    after: Option<(At, Content)>,
}

/// The store's counters, kept as the batches go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counters {
    /// Chunks.
    pub(super) chunks: u64,
    /// Their payload bytes.
    pub(super) payload_bytes: u64,
}

impl Counters {
    /// What counts against the capacity: payloads and the headers of their records.
    pub(super) fn used_bytes(&self) -> u64 {
        self.payload_bytes + self.chunks * HEAD_BYTES as u64
    }

    /// Counts `entry` in.
    pub(super) fn add(&mut self, entry: &Entry) {
        self.chunks += 1;
        self.payload_bytes += u64::from(entry.length);
    }

    /// Counts `entry` out.
    pub(super) fn subtract(&mut self, entry: &Entry) {
        self.chunks -= 1;
        self.payload_bytes -= u64::from(entry.length);
    }
}

/// What a chunk takes of the capacity.
pub(super) fn cost(entry: &Entry) -> u64 {
    u64::from(entry.length) + HEAD_BYTES as u64
}

/// Changes over an index.
pub(super) struct Draft<'a> {
    table: &'a Table,
    slots: HashMap<Key, Slot>,
    values: HashMap<Bytes, ValueSlot>,
    /// The counters as they will be; `None` in a replay, after which everything is counted anew.
    counters: Option<Counters>,
}

/// A record that is not live any more, or has become so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shift {
    pub(super) location: Location,
    pub(super) bytes: u64,
    pub(super) live: bool,
}

impl<'a> Draft<'a> {
    /// Changes that are counted on top of `counters`.
    pub(super) fn new(table: &'a Table, counters: Counters) -> Self {
        Self { counters: Some(counters), ..Self::replay(table) }
    }

    /// Changes that are not counted.
    pub(super) fn replay(table: &'a Table) -> Self {
        Self { table, slots: HashMap::new(), values: HashMap::new(), counters: None }
    }

    /// The counters as they will be.
    pub(super) fn counters(&self) -> Counters {
        self.counters.unwrap_or_default()
    }

    /// How many keys it changes.
    pub(super) fn len(&self) -> usize {
        self.slots.len() + self.values.len()
    }

    /// The chunk as the batch sees it.
    pub(super) fn chunk(&mut self, key: &Key) -> Result<Option<(Entry, At)>, StoreError> {
        if let Some(slot) = self.slots.get(key) {
            return Ok(slot.after);
        }
        Ok(self.table.chunk(key)?.map(|held| (held.entry, At::Log(held.location))))
    }

    /// The chunk is here from now on.
    pub(super) fn keep(&mut self, key: Key, entry: Entry, at: At) -> Result<(), StoreError> {
        self.set(key, Some((entry, at)), None)
    }

    /// The chunk is gone from now on; `damaged`: what to fetch again.
    pub(super) fn drop_chunk(&mut self, key: Key, damaged: Option<Entry>) -> Result<(), StoreError> {
        self.set(key, None, damaged)
    }

    /// What is remembered of a damaged chunk.
    pub(super) fn damaged(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        match self.slots.get(key) {
            Some(slot) => Ok(slot.damaged),
            None => self.table.damaged(key),
        }
    }

    fn set(&mut self, key: Key, after: Option<(Entry, At)>, damaged: Option<Entry>) -> Result<(), StoreError> {
        let before = match self.slots.get(&key) {
            Some(slot) => slot.before,
            None => self.table.chunk(&key)?,
        };
        let current = match self.slots.get(&key) {
            Some(slot) => slot.after.map(|(entry, _)| entry),
            None => before.map(|held| held.entry),
        };
        if let Some(counters) = &mut self.counters {
            if let Some(entry) = current {
                counters.subtract(&entry);
            }
            if let Some((entry, _)) = &after {
                counters.add(entry);
            }
        }
        self.slots.insert(key, Slot { before, after, damaged });
        Ok(())
    }

    /// Where the record of a value is.
    pub(super) fn value(&self, key: &Bytes) -> Result<Option<At>, StoreError> {
        match self.values.get(key) {
            Some(slot) => Ok(slot.after.map(|(at, _)| at)),
            None => Ok(self.table.value(key)?.map(|held| At::Log(held.location))),
        }
    }

    /// What `key` has as its value from now on.
    pub(super) fn keep_value(&mut self, key: Bytes, content: Content, at: At) -> Result<(), StoreError> {
        self.set_value(key, Some((at, content)))
    }

    /// The key has no value from now on.
    pub(super) fn drop_value(&mut self, key: Bytes) -> Result<(), StoreError> {
        self.set_value(key, None)
    }

    fn set_value(&mut self, key: Bytes, after: Option<(At, Content)>) -> Result<(), StoreError> {
        let before = match self.values.get(&key) {
            Some(slot) => slot.before,
            None => self.table.value(&key)?,
        };
        self.values.insert(key, ValueSlot { before, after });
        Ok(())
    }

    /// The batches to apply, in order, and which records stopped or began to be live. `locations` are those of the
    /// batch's records; `position` goes into the last batch, and a key's writes are never split over two.
    pub(super) fn finish(
        self,
        locations: &[Location],
        position: &Position,
    ) -> Result<(Vec<Vec<Write>>, Vec<Shift>), StoreError> {
        let place = |at: At| match at {
            At::Log(location) => location,
            At::Batch(number) => locations[number],
        };
        let mut sum = self.table.sum()?;
        let mut batches = Vec::new();
        let mut shifts = Vec::new();
        for (key, slot) in self.slots {
            let after = slot.after.map(|(entry, at)| Held { entry, location: place(at) });
            let mut writes = Vec::new();
            if after != slot.before {
                writes.push((table::chunk_key(&key), after.as_ref().map(table::encode_held)));
            }
            if let Some(entry) = slot.damaged {
                // Only the entry counts there: it is nowhere in the log that it could be read from.
                let held = Held { entry, location: Location { segment: 0, offset: 0 } };
                writes.push((table::damaged_key(&key), Some(table::encode_held(&held))));
            } else if slot.before.is_none() && self.table.damaged(&key)?.is_some() {
                writes.push((table::damaged_key(&key), None));
            }
            for held in [slot.before, after].into_iter().flatten() {
                sum ^= table::chunk_print(&key, &held);
            }
            push(&mut batches, writes, sum);
            let locations = (slot.before.map(|held| held.location), after.map(|held| held.location));
            if locations.0 != locations.1 {
                for (held, live) in [(slot.before, false), (after, true)] {
                    shifts.extend(held.map(|h| Shift { location: h.location, bytes: cost(&h.entry), live }));
                }
            }
        }
        for (key, ValueSlot { before, after }) in self.values {
            let after = after.map(|(at, content)| HeldValue { location: place(at), content });
            if before.is_none() && after.is_none() {
                continue;
            }
            for (held, live) in [(before, false), (after, true)] {
                let Some(HeldValue { location, content }) = held else { continue };
                shifts.push(Shift { location, bytes: content.record_bytes(&key), live });
                sum ^= table::value_print(&key, location);
            }
            push(&mut batches, vec![table::value_write(&key, after)], sum);
        }
        push(&mut batches, vec![table::position_write(position)], sum);
        Ok((batches, shifts))
    }
}

/// Adds writes after which the index's sum is `sum`; the first write of a batch records the sum at its end.
fn push(batches: &mut Vec<Vec<Write>>, writes: Vec<Write>, sum: u64) {
    match batches.last_mut() {
        Some(last) if last.len() + writes.len() <= MAX_BATCH => {
            last[0] = table::sum_write(sum);
            last.extend(writes);
        }
        _ => batches.push([vec![table::sum_write(sum)], writes].concat()),
    }
}
