//! A pass over the whole store: it reads every chunk, finds what is damaged, goes on where it was, and is not outrun by
//! a compaction.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::FutureExt as _;
use p2p_protocol::{Chunk, Cid};
use rand::{SeedableRng, rngs::StdRng};

use super::{
    super::*,
    all, chunk,
    disk::{Fault, Leaves, TestDisk},
    power::{self, batch, compact},
};
use crate::store::{index::table::Held, record::HEAD_BYTES};

const ROOT: &str = "/store";

fn reopen(disk: &TestDisk) -> Store {
    power::open(&(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT)).expect("it opens")
}

fn held(store: &Store, chunk: &Chunk) -> Held {
    let key = Key::from(&chunk.cid().hash);
    store.with(|table| table.chunk(&key)).expect("it reads").expect("it is here")
}

fn segment(number: u32, extension: &str) -> PathBuf {
    Path::new(ROOT).join(format!("segments/{number:08}.{extension}"))
}

/// Changes a byte of a chunk's payload on the disk.
fn damage(disk: &TestDisk, store: &Store, chunk: &Chunk) {
    let location = held(store, chunk).location;
    disk.tamper(&segment(location.segment, "seg"), |bytes| bytes[location.offset as usize + HEAD_BYTES + 7] ^= 1);
}

fn put(store: &Store, chunks: &[Chunk]) {
    // Three to a segment.
    for three in chunks.chunks(3) {
        let puts = three.iter().map(|chunk| Request::Put(chunk.clone())).collect();
        assert!(batch(store, puts).iter().all(Result::is_ok));
    }
}

/// A step; the position is kept as bytes between.
fn step(store: &Store, position: &mut Option<[u8; 24]>, bytes: u64) -> Pass {
    let from = position.map(|bytes| PassPosition::from_bytes(&bytes).expect("it has its length"));
    let pass = store.read_pass(from, bytes).now_or_never().expect("it does not wait").expect("it reads");
    *position = pass.next.map(|next| next.to_bytes());
    pass
}

/// Steps to the end: how many chunks were read, and which are damaged.
fn finish(store: &Store, position: &mut Option<[u8; 24]>, bytes: u64) -> (u64, BTreeSet<Cid>) {
    let (mut chunks, mut damaged) = (0, BTreeSet::new());
    loop {
        let pass = step(store, position, bytes);
        assert!(pass.bytes < bytes + 2000, "a step is bounded: {pass:?}");
        chunks += pass.chunks;
        damaged.extend(pass.damaged.iter().map(|entry| entry.cid));
        if position.is_none() {
            return (chunks, damaged);
        }
    }
}

#[test]
fn a_pass_reads_every_chunk_once_and_sets_aside_what_is_damaged() {
    for bytes in [1, 2500, 1 << 30] {
        let disk = TestDisk::new();
        let mut store = reopen(&disk);
        let chunks: Vec<_> = (0..8).map(|seed| chunk(seed, 1500)).collect();
        put(&store, &chunks);
        batch(&store, vec![Request::Remove(vec![chunks[0].cid().hash])]);
        assert_eq!(finish(&store, &mut None, bytes), (7, BTreeSet::new()), "what is not here is not read");
        for number in [3, 7] {
            damage(&disk, &store, &chunks[number]);
        }
        // A header too: its chunk is only known to the index, and its bytes are good.
        let location = held(&store, &chunks[5]).location;
        disk.tamper(&segment(location.segment, "seg"), |found| found[location.offset as usize] ^= 1);
        let mut position = None;
        let mut first = step(&store, &mut position, bytes);
        if bytes == 1 {
            assert_eq!((first.chunks, first.bytes), (0, 0), "what is not here takes a step too");
            first = step(&store, &mut position, bytes);
            assert_eq!((first.chunks, first.bytes), (1, 1500), "no more than was asked for");
        }
        // It goes on after a restart.
        drop(store);
        store = reopen(&disk);
        let (mut read, mut damaged) =
            (first.chunks, first.damaged.iter().map(|entry| entry.cid).collect::<BTreeSet<_>>());
        if position.is_some() {
            let (more, others) = finish(&store, &mut position, bytes);
            read += more;
            damaged.extend(others);
        }
        assert_eq!((read, damaged), (7, [3, 7].map(|number| *chunks[number].cid()).into()));
        assert_eq!(all(&store).len(), 5, "they are not here any more");
        let marked = store.damaged(None, 9).expect("it reads").into_iter().map(|entry| entry.cid);
        assert_eq!(marked.collect::<BTreeSet<_>>(), [3, 7].map(|number| *chunks[number].cid()).into());
        assert_eq!(finish(&store, &mut None, bytes), (5, BTreeSet::new()), "nor in the next pass");
        // And come back like any that is missing.
        put(&store, &chunks[7..]);
        assert_eq!(finish(&store, &mut None, bytes), (6, BTreeSet::new()));
    }
}

#[test]
fn a_damaged_chunk_that_nobody_needs_is_forgotten_for_good() {
    let disk = TestDisk::new();
    let mut store = reopen(&disk);
    let chunks: Vec<_> = (0..5).map(|seed| chunk(seed, 1500)).collect();
    put(&store, &chunks);
    for number in [1, 2] {
        damage(&disk, &store, &chunks[number]);
    }
    finish(&store, &mut None, 1 << 30);
    let marked = |store: &Store| [1, 2, 3].map(|at| store.is_damaged(&chunks[at].cid().hash).expect("it reads"));
    assert_eq!(marked(&store), [true, true, false]);
    batch(&store, vec![Request::Remove(vec![chunks[1].cid().hash])]);
    assert_eq!(marked(&store), [false, true, false]);
    for lose in [false, true] {
        drop(store);
        if lose {
            // The log says it too.
            disk.remove_directory(&Path::new(ROOT).join("index")).expect("it is there");
        }
        store = reopen(&disk);
        assert_eq!(marked(&store), [false, true, false]);
        assert_eq!(store.usage().chunks, 3);
    }
}

#[test]
fn a_segment_without_a_header_is_read_by_the_index() {
    let disk = TestDisk::new();
    let store = reopen(&disk);
    let chunks: Vec<_> = (0..8).map(|seed| chunk(seed, 1500)).collect();
    put(&store, &chunks);
    damage(&disk, &store, &chunks[1]);
    disk.tamper(&segment(1, "seg"), |bytes| bytes[..64].fill(0));
    disk.tamper(&segment(1, "head"), |bytes| bytes.fill(0));
    assert_eq!(finish(&store, &mut None, 1 << 30), (8, [*chunks[1].cid()].into()));
}

#[test]
fn what_a_compaction_moves_under_a_pass_is_read_all_the_same() {
    let disk = TestDisk::new();
    let store = reopen(&disk);
    // Of each segment's three chunks the first stays.
    let chunks: Vec<_> = (0..8).map(|seed| chunk(seed, 1500)).collect();
    put(&store, &chunks);
    let mut position = None;
    assert_eq!(step(&store, &mut position, 1).chunks, 1);
    // What is ahead of the pass is damaged, and moved behind it or before it; so is what it has read.
    damage(&disk, &store, &chunks[6]);
    batch(&store, vec![Request::Remove([1, 2, 4, 5].map(|number| chunks[number].cid().hash).into())]);
    damage(&disk, &store, &chunks[3]);
    let before = held(&store, &chunks[0]).location;
    compact(&store, &(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT)).expect("it compacts");
    assert_ne!(held(&store, &chunks[0]).location, before, "it was moved");
    let (_, damaged) = finish(&store, &mut position, 1);
    // The one by the compaction, which read it to move it, the other by the pass.
    assert_eq!(damaged, [*chunks[6].cid()].into());
    let marked = store.damaged(None, 9).expect("it reads").into_iter().map(|entry| entry.cid);
    assert_eq!(marked.collect::<BTreeSet<_>>(), [3, 6].map(|number| *chunks[number].cid()).into());
    for number in [0, 7] {
        let read = store.get(&chunks[number].cid().hash).now_or_never().expect("it does not wait");
        assert_eq!(read.expect("it reads").as_ref(), Some(&chunks[number]));
    }
}

#[test]
fn a_position_of_another_length_is_none() {
    assert_eq!(PassPosition::from_bytes(&[0; 23]), None);
    assert_eq!(PassPosition::from_bytes(&[0; 25]), None);
    assert!(PassPosition::from_bytes(&[7; 24]).is_some_and(|position| position.to_bytes() == [7; 24]));
}

/// Whether any file of the segments has a part of the payload.
fn has_bytes(disk: &TestDisk, chunk: &Chunk) -> bool {
    let names = disk.names(&Path::new(ROOT).join("segments")).expect("it is there");
    names.iter().any(|name| {
        let mut found = false;
        disk.tamper(&Path::new(ROOT).join("segments").join(name), |bytes| {
            found = bytes.windows(64).any(|part| part == &chunk.bytes()[1000..1064]);
        });
        found
    })
}

#[test]
fn a_pass_overwrites_what_was_removed_and_nothing_else() {
    for bytes in [1, 2500, 1 << 30] {
        let disk = TestDisk::new();
        let mut store = reopen(&disk);
        let chunks: Vec<_> = (0..8).map(|seed| chunk(seed, 1500)).collect();
        put(&store, &chunks);
        // One of a segment that is closed, one of the head; one that is put again, and one that comes after the removal.
        let [gone, last, again] = [0, 7, 4].map(|number| &chunks[number]);
        batch(&store, vec![Request::Remove([gone, last, again].map(|chunk| chunk.cid().hash).into())]);
        let late = chunk(8, 1500);
        put(&store, &[again.clone(), late.clone()]);
        assert!(has_bytes(&disk, gone) && has_bytes(&disk, last), "a removal alone leaves them");
        let erased = |store: &Store| {
            let (mut position, mut erased) = (None, 0);
            loop {
                erased += step(store, &mut position, bytes).erased;
                if position.is_none() {
                    return erased;
                }
            }
        };
        assert_eq!(erased(&store), 3 * 1500, "of the one that was put again, where it was before");
        assert_eq!(erased(&store), 0, "once");
        let cut = disk.state().cut(Leaves::Nothing, &mut StdRng::seed_from_u64(1));
        // Through a power cut, and where the index is made again from the log.
        for lose in [false, true] {
            let disk = TestDisk::killed(&cut.state());
            if lose {
                disk.remove_directory(&Path::new(ROOT).join("index")).expect("it is there");
            }
            store = reopen(&disk);
            assert!(!has_bytes(&disk, gone) && !has_bytes(&disk, last), "they are gone from the disk");
            for (number, chunk) in chunks.iter().chain([&late]).enumerate() {
                let found = store.get(&chunk.cid().hash).now_or_never().expect("it does not wait").expect("it reads");
                assert_eq!(found.as_ref(), (![0, 7].contains(&number)).then_some(chunk), "chunk {number}");
            }
            assert_eq!(store.damaged(None, 9).expect("it reads"), [], "what was removed is not damaged");
        }
    }
}

#[test]
fn what_cannot_be_overwritten_ends_no_pass_and_is_tried_again() {
    let disk = TestDisk::new();
    let store = reopen(&disk);
    let chunks: Vec<_> = (0..8).map(|seed| chunk(seed, 1500)).collect();
    put(&store, &chunks);
    batch(&store, vec![Request::Remove(vec![chunks[0].cid().hash])]);
    disk.fail(Fault::Write, 0);
    assert_eq!(finish(&store, &mut None, 1), (7, BTreeSet::new()));
    assert!(has_bytes(&disk, &chunks[0]));
    assert_eq!(finish(&store, &mut None, 1), (7, BTreeSet::new()));
    assert!(!has_bytes(&disk, &chunks[0]));
}
