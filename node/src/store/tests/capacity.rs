//! Capacity, full disks, and many small chunks in few batches.

use std::sync::{Arc, atomic::Ordering};

use super::{super::*, SMALL, all, chunk, directory, disk::TestDisk, run};
use crate::store::{record::HEAD_BYTES, writer::blamed};

/// What a chunk of a thousand bytes takes.
const COST: u64 = 1000 + HEAD_BYTES as u64;

/// Runs `test` on a store in memory and on one on disk, with room for `chunks` chunks of a thousand bytes.
fn both<F: Future<Output = ()>>(chunks: u64, test: impl Fn(Store) -> F) {
    run(async {
        test(Store::in_memory(chunks * COST)).await;
        let directory = directory();
        let store =
            Store::open_on(Arc::new(SystemDisk), directory.path(), Some(chunks * COST), SMALL).expect("it opens");
        test(store.clone()).await;
        let before = all(&store);
        store.close().await.expect("it closes");
        std::fs::remove_dir_all(directory.path().join("index")).expect("it is there");
        let store = super::open(directory.path());
        assert_eq!(all(&store), before, "removals are in the log");
        store.close().await.expect("it closes");
    });
}

#[test]
fn an_index_that_fails_where_the_disk_has_no_room_says_that_the_disk_is_full() {
    let failed = || StoreError::Index("its file cannot be synced".into());
    let io = |kind: std::io::ErrorKind| StoreError::Io { doing: "writing".into(), source: Arc::new(kind.into()) };
    let full = |error, free_bytes| matches!(blamed(error, 7, free_bytes), StoreError::NoSpace { needed: 7, .. });
    assert!(full(failed(), 0) && !full(failed(), 1), "with room it failed for something else");
    assert!(full(io(std::io::ErrorKind::StorageFull), 1) && !full(io(std::io::ErrorKind::NotFound), 0));
    assert!(matches!(blamed(StoreError::Closed, 7, 0), StoreError::Closed));
}

#[test]
fn a_read_of_an_index_that_failed_says_whether_the_disk_is_full() {
    run(async {
        let (directory, disk) = (directory(), TestDisk::new());
        let store = Store::open_on(Arc::new(disk.clone()), directory.path(), Some(1 << 40), SMALL).expect("it opens");
        let hash = chunk(0, 1000).cid().hash;
        store.put(chunk(0, 1000)).await.expect("there is room");
        disk.state().free_bytes = 0;
        store.inner.shared.fail("a test");
        let full = store.entry(&hash);
        assert!(matches!(&full, Err(StoreError::NoSpace { needed: 0, .. })), "{full:?}");
        assert_eq!(full.expect_err("it failed").to_string(), "the disk is full (the index failed: a test)");
        super::until("healing", || store.check().is_ok()).await;
        // Of a chunk and of a record, too.
        store.inner.shared.fail("a test");
        assert!(matches!(store.get(&hash).await, Err(StoreError::NoSpace { .. })));
        super::until("healing", || store.check().is_ok()).await;
        store.inner.shared.fail("a test");
        assert!(matches!(store.record(b"a key"), Err(StoreError::NoSpace { .. })));
        super::until("healing", || store.check().is_ok()).await;
        disk.state().free_bytes = 1 << 40;
        store.inner.shared.fail("a test");
        assert!(matches!(store.entry(&hash), Err(StoreError::Index(_))), "it failed for something else");
        super::until("healing", || store.entry(&hash).is_ok()).await;
        store.close().await.expect("it closes");
    });
}

fn there(store: &Store, seeds: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let here = |seed: &u64| store.entry(&chunk(*seed, 1000).cid().hash).expect("it reads").is_some();
    seeds.into_iter().filter(here).collect()
}

#[test]
fn a_store_at_its_capacity_takes_no_more_and_drops_nothing() {
    both(4, async |store| {
        for seed in 0..4 {
            assert_eq!(store.put(chunk(seed, 1000)).await.expect("there is room"), Put::New);
        }
        assert_eq!(store.usage().free_bytes, 0);
        for _ in 0..3 {
            assert!(matches!(store.put(chunk(9, 1000)).await, Err(StoreError::NoSpace { needed: COST, .. })));
        }
        // One that is known needs no room.
        assert_eq!(store.put(chunk(1, 1000)).await.expect("it is there"), Put::Known);
        assert_eq!(there(&store, 0..10), [0, 1, 2, 3]);
        // What is removed makes room, for as much as was removed.
        store.remove(vec![chunk(3, 1000).cid().hash]).await.expect("it writes");
        assert_eq!(store.usage().free_bytes, COST);
        assert!(matches!(store.put(chunk(7, 3000)).await, Err(StoreError::NoSpace { .. })));
        store.put(chunk(8, 1000)).await.expect("there is room");
        assert_eq!(there(&store, 0..10), [0, 1, 2, 8]);
        assert_eq!((store.usage().chunks, store.usage().bytes), (4, 4000));
    });
}

#[test]
fn it_is_full_from_95_percent_until_85_are_left() {
    both(100, async |store| {
        let put = async |seeds: std::ops::Range<u64>| {
            for seed in seeds {
                store.put(chunk(seed, 1000)).await.expect("there is room");
            }
            store.usage().full
        };
        let remove = async |seeds: std::ops::Range<u64>| {
            let hashes = seeds.map(|seed| chunk(seed, 1000).cid().hash).collect();
            (store.remove(hashes).await.expect("it writes"), store.usage().full)
        };
        assert!(!put(0..94).await);
        assert!(put(94..95).await);
        let (removed, full) = remove(0..10).await;
        assert_eq!(removed, Removed { chunks: 10, bytes: 10 * COST });
        assert!(full, "85 of 100 are still too many");
        assert!(!remove(10..11).await.1, "84 are not");
        assert_eq!(remove(0..11).await, (Removed::default(), false), "what is not here frees nothing");
        assert!(!put(300..310).await, "nor is it full again at 94");
        assert!(put(310..311).await);
    });
}

#[test]
fn a_disk_that_others_fill_is_full_too() {
    // Of a store that keeps 80 and could keep 920 more by its capacity, on disks with so much room.
    let full = |was, room| crate::store::usage::is_full(was, 80, room);
    assert!(!full(false, 920));
    assert!(!full(false, 5), "80 of 85");
    assert!(full(false, 4), "80 of 84");
    assert!(full(true, 14), "80 of 94");
    assert!(!full(true, 15), "80 of 95");
    assert!(crate::store::usage::is_full(false, 0, 0), "nothing at all fits");
    assert!(!crate::store::usage::is_full(true, u64::MAX / 2, u64::MAX), "no number is too great");
}

#[test]
fn one_that_does_not_fit_does_not_harm_the_others_of_its_batch() {
    both(10, async |store| {
        let puts = (0..12).map(|seed| {
            let length = if seed % 4 == 1 { 20_000 } else { 1000 };
            store.put(chunk(seed, length))
        });
        let done = futures::future::join_all(puts).await;
        for (seed, put) in done.into_iter().enumerate() {
            assert_eq!(put.is_ok(), seed % 4 != 1, "{seed}");
        }
        assert_eq!(store.usage().chunks, 9);
    });
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_serves_on() {
    run(async {
        let directory = directory();
        let disk = TestDisk::new();
        let tuning = Tuning { segment_bytes: 1 << 20, ..SMALL };
        let store = Store::open_on(Arc::new(disk.clone()), directory.path(), Some(1 << 40), tuning).expect("it opens");
        store.put(chunk(0, 1000)).await.expect("there is room");
        // Room for two more of a thousand bytes.
        disk.state().full_at = 64 + 3 * COST + 50;
        let puts = [chunk(1, 1000), chunk(2, 30_000), chunk(3, 1000), chunk(4, 1000), chunk(5, 1000)];
        let done = futures::future::join_all(puts.map(|chunk| store.put(chunk))).await;
        let kept: Vec<_> = done.iter().map(Result::is_ok).collect();
        assert_eq!(kept, [true, false, true, false, false]);
        assert!(matches!(&done[1], Err(StoreError::NoSpace { reason, .. }) if reason == "the disk is full"));
        assert_eq!(there(&store, 0..6), [0, 1, 3]);
        assert!(store.get(&chunk(1, 1000).cid().hash).await.expect("it reads").is_some());
        let segment = disk.open(&directory.path().join("segments/00000001.seg"), false).expect("it is there");
        assert_eq!(segment.length().expect("it is open"), 64 + 3 * COST, "what was half appended is taken back");
        disk.state().full_at = u64::MAX;
        store.put(chunk(4, 1000)).await.expect("there is room again");
        store.close().await.expect("it closes");
        let store = Store::open_on(Arc::new(disk), directory.path(), Some(1 << 40), tuning).expect("it opens");
        assert_eq!(there(&store, 0..6), [0, 1, 3, 4]);
        store.close().await.expect("it closes");
    });
}

#[test]
fn many_small_chunks_share_their_syncs() {
    run(async {
        let directory = directory();
        let store = Store::open(directory.path(), Some(1 << 40)).expect("it opens");
        let before = store.inner.shared.batches.load(Ordering::SeqCst);
        // As an adder does: many under way at once, the next as one is done.
        let puts = futures::stream::iter((0..5000).map(|seed| store.put(chunk(seed, 300))));
        let done: Vec<_> = futures::StreamExt::collect(futures::StreamExt::buffer_unordered(puts, 128)).await;
        assert!(done.iter().all(|put| matches!(put, Ok(Put::New))));
        let batches = store.inner.shared.batches.load(Ordering::SeqCst) - before;
        // 79 if every batch were full.
        assert!(batches < 400, "{batches} batches");
        store.close().await.expect("it closes");
    });
}
