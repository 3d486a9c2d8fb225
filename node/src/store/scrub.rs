//! Reading every chunk again, in the order of the log: sequential on the disk, in steps, resumable.
//!
//! A pass goes from the first segment to where the log ended when it began. A chunk that is in the store all the while
//! is read at its place, or a compaction moved it away before the pass came there: then the compaction read and
//! verified it meanwhile, and its copy may be read again where that is before the end. Places in the log only grow, so
//! that nothing can move to where the pass has been. What is put while it goes on is for the next one.
//!
//! What it meets of chunks that are not here any more it overwrites (`erase.rs`).

use std::{io, ops::Range, path::Path, sync::Arc};

use p2p_protocol::{Key, Multihash};
use tokio::task;

use super::{
    Door, Entry, Store, StoreError,
    disk::Disk,
    erase::{Eraser, is_erased},
    log::failed,
    record::{HEAD_BYTES, Head, array},
    segment::{self, Location, SEGMENT_HEAD_BYTES, SegmentHead, Step, Walk},
    shared::Shared,
};

/// Records that one step looks at, at most: about a tenth of a second where they are small.
const STEP_RECORDS: usize = 16 * 1024;
/// Index entries read at once where a stretch of a segment cannot be walked.
const PAGE: usize = 1024;

/// How far a pass has got, and where it ends: 24 bytes to be kept anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PassPosition {
    next: Location,
    end: Location,
}

impl PassPosition {
    /// As it is kept.
    pub fn to_bytes(&self) -> [u8; 24] {
        let mut out = [0; 24];
        for (at, location) in [(0, self.next), (12, self.end)] {
            out[at..at + 4].copy_from_slice(&location.segment.to_be_bytes());
            out[at + 4..at + 12].copy_from_slice(&location.offset.to_be_bytes());
        }
        out
    }

    /// `None` where it has another length. One of another store leads through a part of this one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let location = |at| {
            let (segment, offset) = (array(bytes, at)?, array(bytes, at + 4)?);
            Some(Location { segment: u32::from_be_bytes(segment), offset: u64::from_be_bytes(offset) })
        };
        if bytes.len() == 24 { Some(Self { next: location(0)?, end: location(12)? }) } else { None }
    }
}

/// What a step of a pass did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pass {
    /// Where the next step begins; `None`: the pass is over.
    pub next: Option<PassPosition>,
    /// Chunks that were read.
    pub chunks: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Those of them that are damaged: set aside, said in the log, and not here any more.
    pub damaged: Vec<Entry>,
    /// Payload bytes of chunks that are not here any more that were overwritten.
    pub erased: u64,
}

/// What a step found, before anything is done about it.
#[derive(Default)]
struct Found {
    pass: Pass,
    /// Chunks that did not read well where they were; they may have moved.
    suspects: Vec<Entry>,
}

impl Store {
    /// Whether a chunk is one of those that were [damaged](Self::damaged) and have not been put again.
    pub fn is_damaged(&self, hash: &Multihash) -> Result<bool, StoreError> {
        Ok(self.with(|table| table.damaged(&Key::from(hash)))?.is_some())
    }

    /// Reads and verifies the chunks from `position` on (`None`: a new pass begins), about `bytes` of them and of those
    /// that are not here any more, which it overwrites: at least one of either. Whoever calls it sets the pace. A store in
    /// memory has nothing to be read.
    pub async fn read_pass(&self, position: Option<PassPosition>, bytes: u64) -> Result<Pass, StoreError> {
        let shared = Arc::clone(&self.inner.shared);
        let step = move || {
            Reading { shared: &shared, least: bytes, found: Found::default(), payload: Vec::new(), gone: 0 }
                .run(position)
        };
        let found = match &self.inner.door {
            Door::Inline(_) => step(),
            Door::Thread { .. } => task::spawn_blocking(step).await.map_err(|_| StoreError::Closed)?,
        };
        let Found { mut pass, suspects } = self.healing(found)?;
        for entry in suspects {
            // Read once more, and set aside where it is still bad.
            let hash = entry.cid.hash;
            if self.get(&hash).await?.is_none() && self.with(|table| table.damaged(&Key::from(&hash)))?.is_some() {
                pass.damaged.push(entry);
            }
        }
        Ok(pass)
    }
}

/// One step.
struct Reading<'a> {
    shared: &'a Shared,
    /// Payload bytes after which it ends.
    least: u64,
    found: Found,
    /// The payload that is read, one after the other.
    payload: Vec<u8>,
    /// Payload bytes that were read of chunks that are not here any more: they take time as well.
    gone: u64,
}

impl Reading<'_> {
    /// It has read as much as a step does.
    fn is_enough(&self) -> bool {
        self.found.pass.bytes + self.gone >= self.least
    }

    fn run(mut self, position: Option<PassPosition>) -> Result<Found, StoreError> {
        let Some((disk, directory, _)) = &self.shared.disk else { return Ok(self.found) };
        let position = match position {
            Some(position) => position,
            None => {
                let Some(end) = self.shared.with(|table| table.position())? else { return Ok(self.found) };
                let end = Location { segment: end.segment, offset: end.offset };
                PassPosition { next: Location { segment: 0, offset: 0 }, end }
            }
        };
        let names = disk.names(directory).map_err(|e| failed("listing", directory, e))?;
        let mut numbers: Vec<u32> = names.iter().filter_map(|name| segment::number(name, ".seg")).collect();
        numbers.sort_unstable();
        let PassPosition { mut next, end } = position;
        numbers.retain(|number| (next.segment..=end.segment).contains(number));
        for number in numbers {
            if number > next.segment {
                next = Location { segment: number, offset: SEGMENT_HEAD_BYTES };
            }
            let limit = if number == end.segment { end.offset } else { u64::MAX };
            next = match self.segment(&**disk, directory, next, limit)? {
                Some(offset) => Location { segment: number, offset },
                None => Location { segment: number + 1, offset: SEGMENT_HEAD_BYTES },
            };
            if next.segment == number || (self.is_enough() && next.segment <= end.segment) {
                self.found.pass.next = Some(PassPosition { next, end });
                return Ok(self.found);
            }
        }
        Ok(self.found)
    }

    /// Reads a segment from `from` to `limit`; gives where to go on if the step ends before that.
    fn segment(
        &mut self,
        disk: &dyn Disk,
        directory: &Path,
        from: Location,
        limit: u64,
    ) -> Result<Option<u64>, StoreError> {
        let number = from.segment;
        let path = segment::path(directory, number);
        let file = match disk.open(&path, false) {
            Ok(file) => file,
            // Compacted just now: what was live in it has been read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("opening", &path, error)),
        };
        let reading = |error| failed("reading", &path, error);
        let own = SegmentHead::read(&*file, number).map_err(reading)?;
        let side = SegmentHead::read_side(disk, directory, number).map_err(reading)?;
        let length = file.length().map_err(reading)?.min(limit);
        let Some(head) = side.or(own) else {
            // Only the index knows what is in it.
            self.unwalkable(number, 0..u64::MAX)?;
            return Ok(None);
        };
        let end = if head.end == 0 { length } else { length.min(head.end) };
        let mut walk = Walk::new(&*file, head.salt, from.offset, end);
        let mut eraser = Eraser::new(disk, &path);
        let next = self.records(&mut walk, number, &path, &mut eraser);
        eraser.finish();
        next
    }

    /// Goes on by the records of segment `number`, in the file `path`; gives where to go on if the step ends before that.
    fn records(
        &mut self,
        walk: &mut Walk<'_>,
        number: u32,
        path: &Path,
        eraser: &mut Eraser<'_>,
    ) -> Result<Option<u64>, StoreError> {
        for _ in 0..STEP_RECORDS {
            match walk.step().map_err(|error| failed("reading", path, error))? {
                Step::Record { offset, head: Head::Chunk(entry) } => {
                    self.chunk(walk, Location { segment: number, offset }, entry, eraser)?;
                }
                Step::Record { .. } => {}
                Step::Damage { offset, length } => self.unwalkable(number, offset..offset + length)?,
                Step::Torn { offset } => {
                    self.unwalkable(number, offset..u64::MAX)?;
                    return Ok(None);
                }
                Step::End => return Ok(None),
            }
            if self.is_enough() {
                break;
            }
        }
        Ok(Some(walk.offset()))
    }

    /// Verifies a chunk, if the index has it there, and overwrites it if it does not.
    fn chunk(
        &mut self,
        walk: &Walk<'_>,
        location: Location,
        entry: Entry,
        eraser: &mut Eraser<'_>,
    ) -> Result<(), StoreError> {
        let held = self.shared.with(|table| table.chunk(&Key::from(&entry.cid.hash)))?;
        // The header bounds it.
        self.payload.resize(entry.length as usize, 0);
        let at = location.offset + HEAD_BYTES as u64;
        let read = walk.read_into(at, &mut self.payload);
        let Some(held) = held.filter(|held| held.location == location) else {
            self.gone += u64::from(entry.length);
            // What cannot be read is overwritten all the same, if it can be.
            if read.is_err() || !is_erased(&self.payload) {
                self.found.pass.erased += eraser.erase(at, self.payload.len());
            }
            return Ok(());
        };
        let Multihash { code, digest } = held.entry.cid.hash;
        self.found.pass.chunks += 1;
        self.found.pass.bytes += u64::from(entry.length);
        if read.is_err() || code.digest(&self.payload) != digest {
            self.found.suspects.push(held.entry);
        }
        Ok(())
    }

    /// Takes what the index has in a stretch of a segment that no walk leads through for suspect. Looks through all of
    /// the index, once for each such stretch.
    fn unwalkable(&mut self, number: u32, stretch: Range<u64>) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let page = self.shared.with(|table| table.chunks(after, PAGE))?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(*last);
            let inside = page
                .iter()
                .map(|(_, held)| held)
                .filter(|held| held.location.segment == number && stretch.contains(&held.location.offset));
            for held in inside {
                self.found.pass.chunks += 1;
                self.found.pass.bytes += u64::from(held.entry.length);
                self.found.suspects.push(held.entry);
            }
        }
    }
}
