//! Counting distinct chunks exactly, in memory that does not grow: an external merge sort.
//!
//! Digests gather in memory; each full buffer is sorted and appended as a run to a file that has no name (it goes with
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

use p2p_protocol::Multihash;

/// Bytes of a digest.
const KEY_BYTES: usize = 32;
/// Digests that are held in memory: 4 MiB of them, a run on disk. Up to so many nothing is written at all.
const RUN_KEYS: usize = 128 * 1024;
/// What the merge reads ahead for all runs together, so that it takes no more than gathering did.
const MERGE_BYTES: usize = 4 << 20;

type Key = [u8; KEY_BYTES];

/// A count of distinct chunks that is under way. Blocks now and then (a run is written): keep it off async tasks.
#[derive(Debug)]
pub struct Distinct {
    directory: PathBuf,
    run_keys: usize,
    buffer: Vec<Key>,
    spilled: Option<Spilled>,
}

#[derive(Debug)]
struct Spilled {
    file: File,
    /// Where each run ends, in keys.
    ends: Vec<u64>,
}

impl Distinct {
    /// A count whose runs go to `directory` (the node's `tmp`), which is made when it is needed.
    pub fn new(directory: &Path) -> Self {
        Self::with_run(directory, RUN_KEYS)
    }

    fn with_run(directory: &Path, run_keys: usize) -> Self {
        Self { directory: directory.to_owned(), run_keys, buffer: Vec::new(), spilled: None }
    }

    /// Takes one chunk's hash, new or not.
    pub fn push(&mut self, hash: &Multihash) -> io::Result<()> {
        self.buffer.push(hash.digest);
        if self.buffer.len() >= self.run_keys { self.spill() } else { Ok(()) }
    }

    /// How many distinct ones there were.
    pub fn count(mut self) -> io::Result<u64> {
        self.buffer.sort_unstable();
        self.buffer.dedup();
        if self.spilled.is_none() {
            return Ok(self.buffer.len() as u64);
        }
        self.spill()?;
        let Some(spilled) = self.spilled.take() else { return Ok(0) };
        // The buffer's memory is the merge's now.
        self.buffer = Vec::new();
        spilled.merge()
    }

    fn spill(&mut self) -> io::Result<()> {
        self.buffer.sort_unstable();
        self.buffer.dedup();
        if self.buffer.is_empty() || self.buffer.len() < self.run_keys / 2 && self.spilled.is_none() {
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
        spilled.file.write_all_at(self.buffer.as_flattened(), start * KEY_BYTES as u64)?;
        spilled.ends.push(start + self.buffer.len() as u64);
        self.buffer.clear();
        Ok(())
    }
}

impl Spilled {
    fn merge(self) -> io::Result<u64> {
        let ahead = (MERGE_BYTES / KEY_BYTES / self.ends.len().max(1)).max(16);
        let mut runs = Vec::with_capacity(self.ends.len());
        let mut start = 0;
        for end in &self.ends {
            runs.push(Run { next: start, end: *end, ahead, buffer: Vec::new(), at: 0 });
            start = *end;
        }
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (index, run) in runs.iter_mut().enumerate() {
            heads.extend(run.pop(&self.file)?.map(|key| Reverse((key, index))));
        }
        let mut count = 0;
        let mut last = None;
        while let Some(Reverse((key, index))) = heads.pop() {
            if last != Some(key) {
                count += 1;
                last = Some(key);
            }
            heads.extend(runs[index].pop(&self.file)?.map(|key| Reverse((key, index))));
        }
        Ok(count)
    }
}

/// A sorted run that is being read.
struct Run {
    next: u64,
    end: u64,
    ahead: usize,
    buffer: Vec<Key>,
    at: usize,
}

impl Run {
    fn pop(&mut self, file: &File) -> io::Result<Option<Key>> {
        if self.at == self.buffer.len() {
            let keys = usize::try_from(self.end - self.next).unwrap_or(usize::MAX).min(self.ahead);
            if keys == 0 {
                return Ok(None);
            }
            self.buffer.resize(keys, [0; KEY_BYTES]);
            file.read_exact_at(self.buffer.as_flattened_mut(), self.next * KEY_BYTES as u64)?;
            self.next += keys as u64;
            self.at = 0;
        }
        self.at += 1;
        Ok(Some(self.buffer[self.at - 1]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use p2p_protocol::HashCode;
    use proptest::prelude::*;

    use super::*;

    fn hash(number: u32) -> Multihash {
        Multihash::of(HashCode::Blake3, &number.to_be_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn it_counts_like_a_set(numbers in prop::collection::vec(0_u32..400, 0..2000), run in 1_usize..300) {
            let directory = tempfile::tempdir().expect("a directory");
            let mut distinct = Distinct::with_run(&directory.path().join("tmp"), run);
            for number in &numbers {
                distinct.push(&hash(*number)).expect("there is room");
            }
            let set: HashSet<_> = numbers.iter().collect();
            prop_assert_eq!(distinct.count().expect("it can be read"), set.len() as u64);
        }
    }

    #[test]
    fn few_chunks_write_nothing_and_many_leave_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let tmp = directory.path().join("tmp");
        let mut distinct = Distinct::with_run(&tmp, 100);
        (0..99).for_each(|number| distinct.push(&hash(number)).expect("no disk is needed"));
        assert!(!tmp.exists());
        (0..1000).for_each(|number| distinct.push(&hash(number)).expect("there is room"));
        assert!(distinct.spilled.is_some());
        assert_eq!(std::fs::read_dir(&tmp).expect("it was made").count(), 0, "the file has no name");
        assert_eq!(distinct.count().expect("it can be read"), 1000);
    }
}
