//! Replaying the log into the index: the tail that it has not followed yet, or all of it.

use std::path::Path;

use p2p_protocol::Key;

use super::{
    disk::DiskFile,
    draft::{At, Draft},
    erase::is_erased,
    index::table::{Content, Position, Table},
    log::{Log as _, SegmentLog, failed},
    record::{Gone, HEAD_BYTES, Head, Salt, body_checksum},
    recover::Unfit,
    segment::{self, Location, SEGMENT_HEAD_BYTES, Step, Walk},
};

/// Records whose changes are applied at once: a few batches of the index.
const REPLAY_BATCH: usize = 64;

/// Applies what the log says from `from` on, or all of it, and cuts off the head's torn tail.
pub(super) fn replay(table: &Table, log: &mut SegmentLog, from: Option<Position>) -> Result<(), Unfit> {
    let segments = log.all();
    let directory = log.directory().to_owned();
    if let Some((number, ..)) = segments.last() {
        // What the index learns of is on disk: it will be called known, and so acknowledged, without another sync.
        log.settle(from.filter(|from| from.segment == *number).map_or(SEGMENT_HEAD_BYTES, |from| from.offset))?;
    }
    let mut changed = from.is_none();
    for (place, (number, salt, length)) in segments.iter().copied().enumerate() {
        let head = place + 1 == segments.len();
        let start = match from {
            Some(position) if number < position.segment => continue,
            Some(position) if number == position.segment => position.offset,
            _ => SEGMENT_HEAD_BYTES,
        };
        let path = segment::path(&directory, number);
        let Some(salt) = salt else {
            tracing::warn!(segment = %path.display(), "the header of a segment is damaged: its records are not found again");
            continue;
        };
        if start >= length {
            continue;
        }
        let file = log.disk().open(&path, false).map_err(|e| failed("opening", &path, e))?;
        let mut part = Part { table, number, salt, path: &path, verify: head, end: start, replayed: 0 };
        part.replay(&*file, length)?;
        changed |= part.replayed > 0;
        if head && part.end < length {
            let torn = length - part.end;
            tracing::warn!(segment = %path.display(), bytes = torn, "a torn end of the log was cut off");
            log.truncate(part.end)?;
        }
    }
    if changed {
        // The position is the end of the log now, also where the log is empty.
        let draft = Draft::replay(table);
        apply(table, draft, &[], &log.position())?;
    }
    // Also where nothing was replayed: whoever wrote to it may have been killed before it was synced, and a segment that
    // its position is in must not go before that.
    table.index().sync()?;
    Ok(())
}

/// The replay of one segment.
struct Part<'a> {
    table: &'a Table,
    number: u32,
    salt: Salt,
    path: &'a Path,
    /// Whether payloads are hashed: of the head, whose last batch may have been interrupted by a power cut.
    verify: bool,
    /// The end of the last record that is good.
    end: u64,
    replayed: u64,
}

impl Part<'_> {
    fn replay(&mut self, file: &dyn DiskFile, length: u64) -> Result<(), Unfit> {
        let mut walk = Walk::new(file, self.salt, self.end, length);
        let mut draft = Draft::replay(self.table);
        loop {
            let step = walk.step().map_err(|e| failed("reading", self.path, e))?;
            match step {
                Step::Record { offset, head } => {
                    let end = offset + head.head_bytes() + head.body_bytes();
                    if self.take(&walk, &mut draft, offset, head)? {
                        self.end = end;
                        self.replayed += 1;
                    } else {
                        tracing::warn!(segment = %self.path.display(), offset, "a record's bytes do not match its header; it is left out");
                    }
                }
                Step::Damage { offset, length } => {
                    tracing::warn!(segment = %self.path.display(), offset, bytes = length, "a damaged part of a segment is left out");
                }
                Step::Torn { offset } => {
                    if !self.verify {
                        tracing::warn!(segment = %self.path.display(), offset, bytes = length - offset, "the damaged end of a segment is left out");
                    }
                    break;
                }
                Step::End => break,
            }
            if draft.len() >= REPLAY_BATCH {
                let full = std::mem::replace(&mut draft, Draft::replay(self.table));
                apply(self.table, full, &[], &self.position())?;
            }
        }
        apply(self.table, draft, &[], &self.position())
    }

    fn position(&self) -> Position {
        Position { segment: self.number, salt: self.salt, offset: self.end }
    }

    /// Takes a record into the draft; false if its body is damaged.
    fn take(&self, walk: &Walk<'_>, draft: &mut Draft<'_>, offset: u64, head: Head) -> Result<bool, Unfit> {
        let location = Location { segment: self.number, offset };
        let body = |from: u64| walk.read(offset + from, head.body_bytes()).map_err(|e| failed("reading", self.path, e));
        match head {
            Head::Chunk(entry) => {
                if self.verify {
                    let payload = body(HEAD_BYTES as u64)?;
                    if entry.cid.hash.code.digest(&payload) != entry.cid.hash.digest {
                        // What a later record removed or moved, and what was then overwritten, is no damage.
                        return Ok(is_erased(&payload));
                    }
                }
                draft.keep(Key::from(&entry.cid.hash), entry, At::Log(location))?;
            }
            Head::Deletion(entry, gone, _) => {
                draft.drop_chunk(Key::from(&entry.cid.hash), (gone == Gone::Damaged).then_some(entry))?;
            }
            Head::Unset { checksum, .. } => {
                let key = body(head.head_bytes())?;
                if body_checksum(&key, &[]) != checksum {
                    return Ok(false);
                }
                draft.drop_value(key.into())?;
            }
            // Of a newer version: nobody here knows what it says, and the compaction leaves it where it is.
            Head::Unknown { .. } => {}
            Head::Value { key, checksum, .. } => {
                let body = body(head.head_bytes())?;
                let (key, value) = body.split_at(key);
                if body_checksum(key, value) != checksum {
                    return Ok(false);
                }
                let content = Content { length: value.len() as u32, checksum };
                draft.keep_value(key.to_vec().into(), content, At::Log(location))?;
            }
        }
        Ok(true)
    }
}

/// Applies what a draft changes, whose records are at `locations` if they were not in the log before.
pub(super) fn apply(table: &Table, draft: Draft<'_>, locations: &[Location], position: &Position) -> Result<(), Unfit> {
    let (batches, _) = draft.finish(locations, position)?;
    for batch in batches {
        table.index().apply(batch)?;
    }
    Ok(())
}
