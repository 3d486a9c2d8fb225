//! The census: a start believes it only while nothing has changed, and is then as one that has counted everything.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use futures::FutureExt as _;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    super::*,
    all, chunk, directory,
    disk::{Fault, Leaves, State, TestDisk},
    power::{self, Step, batch, compact},
    run,
};
use crate::store::index::table;

const ROOT: &str = "/store";

fn reopen(disk: &TestDisk) -> Store {
    power::open(&(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT)).expect("it opens")
}

fn census() -> std::path::PathBuf {
    Path::new(ROOT).join("census")
}

fn close(store: &Store) {
    store.close().now_or_never().expect("it does not wait").expect("it closes");
}

/// All that is counted.
fn counts(store: &Store) -> (Counters, BTreeMap<u32, u64>, BTreeMap<u32, u64>) {
    let writer = power::writer(store);
    let writer = writer.as_ref().expect("it is open");
    let some = |of: &BTreeMap<u32, u64>| of.iter().map(|(n, bytes)| (*n, *bytes)).filter(|(_, b)| *b > 0).collect();
    (*store.inner.shared.counters(), some(&writer.live), some(&writer.kept))
}

/// Takes an entry out of the index behind the store's back.
fn take_out(store: &Store, chunk: &Chunk) {
    let key = table::chunk_key(&Key::from(&chunk.cid().hash));
    store.with(|table| table.index().apply(vec![(key.clone(), None)])).expect("it writes");
}

#[test]
fn a_start_that_believes_it_is_as_one_that_counted() {
    for seed in power::seeds() {
        let (disk, mut random) = (TestDisk::new(), StdRng::seed_from_u64(seed));
        let mut store = reopen(&disk);
        for _ in 0..12 {
            for _ in 0..random.random_range(0..4) {
                let steps: Vec<Step> = (0..random.random_range(1..6)).map(|_| Step::random(&mut random)).collect();
                batch(&store, steps.iter().map(Step::request).collect());
            }
            if random.random_bool(0.3) {
                compact(&store, &(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT)).expect("it compacts");
            }
            let before = (all(&store), counts(&store));
            close(&store);
            assert!(disk.exists(&census()));
            let uncounted = TestDisk::killed(&disk.state());
            uncounted.remove(&census()).expect("it is there");
            let counted = reopen(&uncounted);
            store = reopen(&disk);
            assert!(!disk.exists(&census()), "it counts once");
            assert_eq!((all(&store), counts(&store)), before);
            let (entries, (counters, live, _)) = before;
            assert_eq!((all(&counted), counts(&counted)), (entries, (counters, live, BTreeMap::new())));
        }
    }
}

#[test]
fn an_index_is_looked_through_unless_it_was_closed_in_good_order() {
    run(async {
        for orderly in [true, false] {
            let directory = directory();
            let store = super::open(directory.path());
            for seed in 0..9 {
                store.put(chunk(seed, 100)).await.expect("there is room");
            }
            take_out(&store, &chunk(4, 100));
            store.close().await.expect("it closes");
            if !orderly {
                super::unclean(directory.path());
            }
            let store = super::open(directory.path());
            assert_eq!(store.entry(&chunk(4, 100).cid().hash).expect("it reads").is_some(), !orderly);
            assert_eq!(directory.path().join("index.aside").exists(), !orderly, "it does not hold what it was given");
            assert_eq!(store.usage().chunks, 9);
            store.close().await.expect("it closes");
        }
    });
}

#[test]
fn an_index_of_an_earlier_moment_is_looked_through() {
    run(async {
        let directory = directory();
        let (index, older) = (directory.path().join("index"), directory.path().join("older"));
        let store = super::open(directory.path());
        for seed in 0..9 {
            store.put(chunk(seed, 100)).await.expect("there is room");
        }
        take_out(&store, &chunk(4, 100));
        store.close().await.expect("it closes");
        super::damage::copy(&index, &older);
        let store = super::open(directory.path());
        store.put(chunk(9, 100)).await.expect("there is room");
        store.close().await.expect("it closes");
        std::fs::remove_dir_all(&index).expect("it is there");
        super::damage::copy(&older, &index);
        let store = super::open(directory.path());
        assert_eq!((store.usage().chunks, all(&store).len()), (10, 10));
        store.close().await.expect("it closes");
    });
}

#[test]
fn one_that_does_not_describe_what_is_there_is_not_believed() {
    let disk = TestDisk::new();
    let put = |store: &Store, seeds: std::ops::Range<u64>| {
        let puts = seeds.map(|seed| Request::Put(chunk(seed, 900))).collect();
        assert!(batch(store, puts).iter().all(Result::is_ok));
    };
    let store = reopen(&disk);
    put(&store, 0..5);
    put(&store, 5..10);
    close(&store);
    let older = TestDisk::killed(&disk.state());
    let mut bytes = Vec::new();
    disk.tamper(&census(), |found| bytes.clone_from(found));
    let restore = |disk: &TestDisk, bytes: Vec<u8>| {
        drop(disk.create(&census()).expect("it can be made"));
        disk.tamper(&census(), |found| *found = bytes);
    };
    // Of an earlier moment, and of another store.
    let store = reopen(&disk);
    put(&store, 10..12);
    batch(&store, vec![Request::Remove(vec![chunk(0, 900).cid().hash])]);
    drop(store);
    restore(&disk, bytes.clone());
    let store = reopen(&disk);
    assert_eq!((store.usage().chunks, all(&store).len()), (11, 11));
    close(&store);
    let other = TestDisk::new();
    drop(reopen(&other));
    restore(&other, bytes.clone());
    assert_eq!(reopen(&other).usage().chunks, 0);
    // Damaged at any byte, cut off, or longer: counted all the same, whatever it says.
    for at in 0..bytes.len() {
        for damage in 0..3 {
            let disk = TestDisk::killed(&older.state());
            disk.tamper(&census(), |found| match damage {
                0 => found[at] ^= 1 << (at % 8),
                1 => found.truncate(at),
                _ => found.insert(at, 0),
            });
            let store = reopen(&disk);
            assert_eq!((store.usage().chunks, store.usage().bytes), (10, 9000), "byte {at}, damage {damage}");
        }
    }
    // A segment that is missing, though the index is as it was.
    let disk = TestDisk::killed(&older.state());
    disk.remove(&Path::new(ROOT).join("segments/00000001.seg")).expect("it is there");
    let store = reopen(&disk);
    assert_eq!(store.usage().chunks + store.damaged(None, 9).expect("it reads").len() as u64, 10);
    assert!((1..10).contains(&store.usage().chunks), "what was in it is damaged");
}

#[test]
fn what_a_killed_process_left_in_the_cache_alone_is_not_believed() {
    let disk = TestDisk::new();
    let store = reopen(&disk);
    let states: Arc<Mutex<Vec<State>>> = Arc::default();
    let seen = Arc::clone(&states);
    disk.watch(move |state| seen.lock().expect("nothing panics under it").push(state.clone()));
    disk.fail(Fault::IndexSync, 0);
    batch(&store, vec![Request::Put(chunk(1, 900))]);
    let states = std::mem::take(&mut *states.lock().expect("nothing panics under it"));
    let mut known = 0;
    for state in states {
        // Killed just then; the next run says that the chunk is known, commits, and ends in good order.
        let disk = TestDisk::killed(&state);
        let store = reopen(&disk);
        let put = batch(&store, vec![Request::Put(chunk(1, 900))]).remove(0).expect("there is room");
        known += usize::from(put == Answer::Put(Put::Known));
        batch(&store, vec![Request::Put(chunk(2, 900))]);
        close(&store);
        // Then the power goes.
        let store = reopen(&disk.state().cut(Leaves::Nothing, &mut StdRng::seed_from_u64(1)));
        for seed in [1, 2] {
            assert!(store.entry(&chunk(seed, 900).cid().hash).expect("it reads").is_some(), "chunk {seed} is lost");
        }
    }
    assert!(known > 0, "this shows nothing");
}
