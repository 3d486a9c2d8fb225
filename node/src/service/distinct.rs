//! The distinct chunks of a DAG, counted exactly and listed once in the order of a manifest, in memory that does not
//! grow: an external merge sort.
//!
//! Records gather in memory; each full buffer is sorted and appended as a run to a file that has no name (it goes with
//! the process, however that ends). At the end the runs are merged, and equal neighbours counted once
//! (Knuth, The Art of Computer Programming, volume 3, section 5.4).

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use p2p_protocol::{Cid, Codec, HashCode, Key, Multihash, manifest::Entry};

/// Bytes of a record: key, codec, hash function, digest, length. Records sort by key first, and of one multihash the
/// lower codec comes first: the order of a manifest. The key is kept, not made again from the digest: comparisons would
/// cost far more hashes than the 32 bytes do time.
const RECORD_BYTES: usize = KEY_BYTES + 1 + 1 + 32 + 4;
const KEY_BYTES: usize = 32;
/// Records that are held in memory: 4.4 MiB of them, a run on disk. Up to so many nothing is written at all.
const RUN_RECORDS: usize = 64 * 1024;
/// What the merge reads ahead for all runs together, so that it takes no more than gathering did.
const MERGE_BYTES: usize = 4 << 20;

type Record = [u8; RECORD_BYTES];

/// Whether two records are of one chunk.
fn same(a: &Record, b: &Record) -> bool {
    a[..KEY_BYTES] == b[..KEY_BYTES]
}

/// A set of chunks that is being gathered. Blocks now and then (a run is written): keep it off async tasks.
#[derive(Debug)]
pub struct Distinct {
    directory: PathBuf,
    run_records: usize,
    buffer: Vec<Record>,
    spilled: Option<Spilled>,
}

#[derive(Debug)]
struct Spilled {
    file: File,
    /// Where each run ends, in records.
    ends: Vec<u64>,
}

impl Distinct {
    /// An empty set whose runs go to `directory` (the node's `tmp`), which is made when it is needed.
    pub fn new(directory: &Path) -> Self {
        Self::with_run(directory, RUN_RECORDS)
    }

    /// With runs of another number of records.
    pub(super) fn with_run(directory: &Path, run_records: usize) -> Self {
        Self { directory: directory.to_owned(), run_records, buffer: Vec::new(), spilled: None }
    }

    /// Takes one chunk, new or not, and its length.
    pub fn push(&mut self, cid: &Cid, bytes: u32) -> io::Result<()> {
        let mut record = [0; RECORD_BYTES];
        record[..32].copy_from_slice(&Key::from(&cid.hash).0);
        record[32] = cid.codec.code();
        record[33] = cid.hash.code.code();
        record[34..66].copy_from_slice(&cid.hash.digest);
        record[66..].copy_from_slice(&bytes.to_be_bytes());
        self.buffer.push(record);
        if self.buffer.len() >= self.run_records { self.spill() } else { Ok(()) }
    }

    /// How many distinct ones there were.
    pub fn count(self) -> io::Result<u64> {
        let mut sorted = self.sorted()?;
        let mut count = 0;
        while sorted.next_record()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Each multihash once, in the order of the keys; of two codecs the lower.
    pub fn sorted(mut self) -> io::Result<Sorted> {
        let Some(_) = &self.spilled else {
            self.tidy();
            return Ok(Sorted { last: None, source: Source::Memory(self.buffer.into_iter()) });
        };
        self.spill()?;
        // The buffer's memory is the merge's now.
        self.buffer = Vec::new();
        let Some(spilled) = self.spilled.take() else { return Err(io::ErrorKind::Other.into()) };
        Ok(Sorted { last: None, source: Source::Disk(Merge::new(spilled)?) })
    }

    fn tidy(&mut self) {
        self.buffer.sort_unstable();
        self.buffer.dedup_by(|a, b| same(a, b));
    }

    fn spill(&mut self) -> io::Result<()> {
        self.tidy();
        if self.buffer.is_empty() || self.buffer.len() < self.run_records / 2 && self.spilled.is_none() {
            // Mostly repeats: there is room again.
            return Ok(());
        }
        let spilled = match &mut self.spilled {
            Some(spilled) => spilled,
            None => {
                std::fs::create_dir_all(&self.directory)?;
                let file = tempfile::tempfile_in(&self.directory)?;
                self.spilled.insert(Spilled { file, ends: Vec::new() })
            }
        };
        let start = spilled.ends.last().copied().unwrap_or(0);
        spilled.file.write_all_at(self.buffer.as_flattened(), start * RECORD_BYTES as u64)?;
        spilled.ends.push(start + self.buffer.len() as u64);
        self.buffer.clear();
        Ok(())
    }
}

/// Distinct chunks in the order of a manifest. Reading blocks.
#[derive(Debug)]
pub struct Sorted {
    last: Option<Record>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Memory(std::vec::IntoIter<Record>),
    Disk(Merge),
}

impl Sorted {
    /// Up to `limit` more; none at the end. Lengths are as they were pushed: those of chunks that were only heard of may be
    /// more than a chunk can have.
    pub fn take(&mut self, limit: usize) -> io::Result<Vec<Entry>> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(record) = self.next_record()?
        {
            taken.push(read(&record));
        }
        Ok(taken)
    }

    fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            let next = match &mut self.source {
                Source::Memory(records) => records.next(),
                Source::Disk(merge) => merge.next()?,
            };
            let Some(record) = next else { return Ok(None) };
            if !self.last.is_some_and(|last| same(&last, &record)) {
                self.last = Some(record);
                return Ok(Some(record));
            }
        }
    }
}

fn read(record: &Record) -> Entry {
    let mut digest = [0; 32];
    digest.copy_from_slice(&record[34..66]);
    let length = u32::from_be_bytes([record[66], record[67], record[68], record[69]]);
    // Both codes were written by `push`, from types that have no others.
    let codec = Codec::from_code(u64::from(record[32])).unwrap_or(Codec::Raw);
    let code = HashCode::from_code(u64::from(record[33])).unwrap_or(HashCode::Blake3);
    Entry { cid: Cid { codec, hash: Multihash { code, digest } }, length }
}

#[derive(Debug)]
struct Merge {
    file: File,
    runs: Vec<Run>,
    heads: BinaryHeap<Reverse<(Record, usize)>>,
}

impl Merge {
    fn new(Spilled { file, ends }: Spilled) -> io::Result<Self> {
        let ahead = (MERGE_BYTES / RECORD_BYTES / ends.len().max(1)).max(16);
        let mut merge = Self { file, runs: Vec::with_capacity(ends.len()), heads: BinaryHeap::new() };
        let mut start = 0;
        for (index, end) in ends.into_iter().enumerate() {
            merge.runs.push(Run { next: start, end, ahead, buffer: Vec::new(), at: 0 });
            start = end;
            merge.pull(index)?;
        }
        Ok(merge)
    }

    fn next(&mut self) -> io::Result<Option<Record>> {
        let Some(Reverse((record, index))) = self.heads.pop() else { return Ok(None) };
        self.pull(index)?;
        Ok(Some(record))
    }

    fn pull(&mut self, index: usize) -> io::Result<()> {
        let next = self.runs[index].pop(&self.file)?;
        self.heads.extend(next.map(|record| Reverse((record, index))));
        Ok(())
    }
}

/// A sorted run that is being read.
#[derive(Debug)]
struct Run {
    next: u64,
    end: u64,
    ahead: usize,
    buffer: Vec<Record>,
    at: usize,
}

impl Run {
    fn pop(&mut self, file: &File) -> io::Result<Option<Record>> {
        if self.at == self.buffer.len() {
            let records = usize::try_from(self.end - self.next).unwrap_or(usize::MAX).min(self.ahead);
            if records == 0 {
                return Ok(None);
            }
            self.buffer.resize(records, [0; RECORD_BYTES]);
            file.read_exact_at(self.buffer.as_flattened_mut(), self.next * RECORD_BYTES as u64)?;
            self.next += records as u64;
            self.at = 0;
        }
        self.at += 1;
        Ok(Some(self.buffer[self.at - 1]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn cid(number: u32) -> Cid {
        Cid::of(Codec::Raw, &number.to_be_bytes())
    }

    fn all(mut sorted: Sorted) -> Vec<Entry> {
        let mut taken = Vec::new();
        loop {
            let next = sorted.take(7).expect("it can be read");
            if next.is_empty() {
                return taken;
            }
            taken.extend(next);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn it_counts_like_a_set_and_gives_the_order_of_a_manifest(
            numbers in prop::collection::vec((0_u32..400, any::<bool>()), 0..2000),
            run in 1_usize..300,
        ) {
            let directory = tempfile::tempdir().expect("a directory");
            let mut distinct = Distinct::with_run(&directory.path().join("tmp"), run);
            let mut set = BTreeMap::new();
            for (number, node) in numbers {
                // One multihash under both codecs is one chunk.
                let codec = if node { Codec::DagPb } else { Codec::Raw };
                let cid = Cid { codec, ..cid(number) };
                distinct.push(&cid, number).expect("there is room");
                let entry = Entry { cid, length: number };
                let lower = set.entry(entry.key()).or_insert(entry);
                lower.cid = lower.cid.min(cid);
            }
            let taken = all(distinct.sorted().expect("it can be read"));
            prop_assert!(taken.iter().eq(set.values()));
        }
    }

    #[test]
    fn few_chunks_write_nothing_and_many_leave_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let tmp = directory.path().join("tmp");
        let mut distinct = Distinct::with_run(&tmp, 100);
        (0..99).for_each(|number| distinct.push(&cid(number), 4).expect("no disk is needed"));
        assert!(!tmp.exists());
        (0..1000).for_each(|number| distinct.push(&cid(number), 4).expect("there is room"));
        assert!(distinct.spilled.is_some());
        assert_eq!(std::fs::read_dir(&tmp).expect("it was made").count(), 0, "the file has no name");
        assert_eq!(distinct.count().expect("it can be read"), 1000);
    }
}
