//! Records: how long their deletions are kept, how they are paged, and that many share their syncs.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use rand::{SeedableRng, rngs::StdRng};

use super::{
    super::*,
    chunk, directory,
    disk::{Leaves, TestDisk},
    power::{batch, compact, open},
    run,
};
use crate::store::{
    record::Head,
    segment::{SEGMENT_HEAD_BYTES, SegmentHead, Step, Walk, number, path},
};

const ROOT: &str = "/store";

fn reopen(disk: &TestDisk) -> Store {
    open(&(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT)).expect("it opens")
}

fn compact_all(store: &Store, disk: &TestDisk) {
    compact(store, &(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT)).expect("it compacts");
}

/// The segments that have a record of which `is` is true.
fn holding(disk: &TestDisk, is: impl Fn(&Head) -> bool) -> Vec<u32> {
    let directory = Path::new(ROOT).join("segments");
    let names = disk.names(&directory).expect("it is there");
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| number(name, ".seg")).collect();
    numbers.retain(|segment| {
        let file = disk.open(&path(&directory, *segment), false).expect("it is there");
        let salt = SegmentHead::read(&*file, *segment).expect("it reads").expect("it is whole").salt;
        let mut walk = Walk::new(&*file, salt, SEGMENT_HEAD_BYTES, file.length().expect("it is open"));
        let steps = std::iter::from_fn(|| Some(walk.step().expect("it reads")));
        let mut records = steps.take_while(|step| matches!(step, Step::Record { .. }));
        records.any(|step| matches!(step, Step::Record { head, .. } if is(&head)))
    });
    numbers.sort_unstable();
    numbers
}

fn put(seed: u64, bytes: usize) -> Request {
    Request::Put(chunk(seed, bytes))
}

fn removal(seeds: impl IntoIterator<Item = u64>, bytes: usize) -> Request {
    Request::Remove(seeds.into_iter().map(|seed| chunk(seed, bytes).cid().hash).collect())
}

#[test]
fn a_deletion_is_kept_exactly_as_long_as_an_older_segment_may_hold_what_it_deletes() {
    let disk = TestDisk::new();
    let store = reopen(&disk);
    let key = Bytes::from_static(b"key");
    let done = |requests: Vec<Request>| assert!(batch(&store, requests).iter().all(Result::is_ok));
    // The first segment has a value, a chunk, and what stays; the second their deletions and what goes.
    done(vec![Request::Values(vec![(key.clone(), Some(vec![7; 200].into()))]), put(1, 300)]);
    done((10..14).map(|seed| put(seed, 1200)).collect());
    done(vec![Request::Values(vec![(key.clone(), None)]), removal([1], 300), put(20, 1500), put(21, 1500)]);
    done(vec![put(22, 1500)]);
    done(vec![put(30, 1200), put(31, 1200)]);
    let unset = |head: &Head| matches!(head, Head::Unset { .. });
    let removed = |head: &Head| matches!(head, Head::Deletion(entry, ..) if entry.length == 300);
    assert_eq!((holding(&disk, unset), holding(&disk, removed)), (vec![2], vec![2]));
    // The second goes: both deletions move on, for the first is still there.
    done(vec![removal(20..23, 1500)]);
    compact_all(&store, &disk);
    assert_eq!((holding(&disk, unset), holding(&disk, removed)), (vec![3], vec![3]));
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..50 {
        let cut = disk.state().cut(Leaves::Some, &mut random);
        cut.remove_directory(&Path::new(ROOT).join("index")).expect("it is there");
        let store = reopen(&cut);
        assert_eq!(store.record(&key).expect("it reads"), None, "the first segment's value came back");
        assert_eq!(store.entry(&chunk(1, 300).cid().hash).expect("it reads"), None, "its chunk came back");
    }
    // The first goes too. What was deleted is nowhere any more: the deletions end with the segment that they are in.
    done(vec![removal(10..14, 1200)]);
    compact_all(&store, &disk);
    done(vec![put(40, 1500), put(41, 1500), put(42, 1500)]);
    done(vec![put(50, 1500), put(51, 1500), put(52, 1500)]);
    done(vec![removal([30, 31], 1200)]);
    compact_all(&store, &disk);
    assert_eq!((holding(&disk, unset), holding(&disk, removed)), (vec![], vec![]));
}

#[test]
fn a_copied_deletion_does_not_wait_for_segments_that_came_after_it_was_first_made() {
    let disk = TestDisk::new();
    let store = reopen(&disk);
    let key = Bytes::from_static(b"key");
    let done = |requests: Vec<Request>| assert!(batch(&store, requests).iter().all(Result::is_ok));
    let unset = |head: &Head| matches!(head, Head::Unset { .. });
    let removed = |head: &Head| matches!(head, Head::Deletion(entry, ..) if entry.length == 300);
    // A value and a chunk are in the first segment, their deletions in the second; the third stays for ever.
    done(vec![
        Request::Values(vec![(key.clone(), Some(vec![7; 200].into()))]),
        put(60, 300),
        put(1, 1500),
        put(2, 1500),
    ]);
    done(vec![
        Request::Values(vec![(key.clone(), None)]),
        removal([60], 300),
        put(4, 1500),
        put(5, 1500),
        put(6, 1500),
    ]);
    done(vec![put(10, 1500), put(11, 1500), put(12, 1500)]);
    // The second goes first, so that its deletion is copied behind the third.
    done(vec![removal(4..7, 1500), put(13, 1500), put(14, 1500)]);
    compact_all(&store, &disk);
    let copied = holding(&disk, unset);
    assert_eq!(copied, holding(&disk, removed));
    assert!(copied.len() == 1 && copied[0] > 3, "{copied:?}");
    // Then the first. The third is older than the copy, and cannot hold what was deleted before it was begun.
    done(vec![removal(1..3, 1500)]);
    compact_all(&store, &disk);
    done(vec![removal(13..15, 1500), put(20, 1500), put(21, 1500), put(22, 1500)]);
    done(vec![put(23, 1500), put(24, 1500)]);
    compact_all(&store, &disk);
    let names = disk.names(&Path::new(ROOT).join("segments")).expect("it is there");
    assert!(names.iter().any(|name| name == "00000003.seg"), "the third stays: {names:?}");
    assert_eq!((holding(&disk, unset), holding(&disk, removed)), (vec![], vec![]), "{copied:?}");
}

#[test]
fn pages_of_a_prefix_are_in_key_order_and_miss_nothing() {
    run(async {
        let directory = directory();
        let store = super::open(directory.path());
        // Around the prefix, up to its greatest byte.
        let names = [&b"a"[..], b"e", b"e\x00", b"e\xff", b"e\xff\xff", b"f", b"\xff"];
        let changes = names.map(|name| (Bytes::from_static(name), Some(Bytes::from_static(name))));
        store.change_records(changes.to_vec()).await.expect("it writes");
        for (prefix, expected) in [(&b""[..], &names[..]), (b"e", &names[1..5]), (b"e\xff", &names[3..5]), (b"g", &[])]
        {
            for limit in 1..4 {
                let mut found: Vec<Bytes> = Vec::new();
                loop {
                    let page = store.records(prefix, found.last().map(|key| &key[..]), limit).expect("it reads");
                    assert!(page.len() <= limit && page.iter().all(|(key, value)| key == value));
                    if page.is_empty() {
                        break;
                    }
                    found.extend(page.into_iter().map(|(key, _)| key));
                }
                assert_eq!(found, expected, "{prefix:?}, {limit} at once");
            }
        }
        let long = vec![0; MAX_KEY_BYTES + 1].into();
        assert!(matches!(store.change_records(vec![(long, None)]).await, Err(StoreError::Io { .. })));
        store.close().await.expect("it closes");
    });
}

#[test]
fn many_changes_of_records_share_their_syncs() {
    run(async {
        let directory = directory();
        let store = Store::open(directory.path(), Some(1 << 40)).expect("it opens");
        let key = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
        let batches = || store.inner.shared.batches.load(Ordering::SeqCst);
        let before = batches();
        let changes = (0..8192).map(|number| (key(number), Some(key(number)))).collect();
        store.change_records(changes).await.expect("it writes");
        // Two, if the writer did not begin before all was there.
        let at_once = batches() - before;
        assert!(at_once < 60, "{at_once} batches");
        let removals = futures::stream::iter((0..5000).map(|number| store.remove_record(key(number))));
        let done: Vec<_> = futures::StreamExt::collect(futures::StreamExt::buffer_unordered(removals, 128)).await;
        assert!(done.iter().all(Result::is_ok));
        let alone = batches() - before - at_once;
        assert!(alone < 400, "{alone} batches");
        let left: BTreeMap<_, _> = store.records(b"", None, usize::MAX).expect("it reads").into_iter().collect();
        assert_eq!(left, (5000..8192).map(|number| (key(number), key(number))).collect());
        store.close().await.expect("it closes");
    });
}

#[test]
fn the_index_keeps_the_place_of_a_record_and_not_its_bytes() {
    run(async {
        let directory = directory();
        let store = super::open(directory.path());
        let value = |number: u8| Bytes::from(vec![number; 3000]);
        let changes = (0..20).map(|number| (Bytes::from(vec![number]), Some(value(number))));
        store.change_records(changes.collect()).await.expect("it writes");
        // Values that are read while the segments that they are in are compacted are found where they are by then.
        for round in 0..3 {
            let replaced = (0..20).filter(|number| number % 3 == round);
            let changes = replaced.map(|number| (Bytes::from(vec![number]), Some(value(number))));
            store.change_records(changes.collect()).await.expect("it writes");
            let all = store.records(b"", None, usize::MAX).expect("it reads");
            assert_eq!(all, (0..20).map(|number| (Bytes::from(vec![number]), value(number))).collect::<Vec<_>>());
        }
        let held = store.inner.shared.with(|table| table.index().range(&[5], &[6], usize::MAX)).expect("it reads");
        assert_eq!(held.len(), 20);
        assert!(held.iter().all(|(_, held)| held.len() == 24), "its place and what it is checked by");
        store.close().await.expect("it closes");
    });
}

#[test]
fn a_damaged_record_is_left_out_and_ends_no_page() {
    run(async {
        let (directory, disk) = (directory(), TestDisk::new());
        let open = || Store::open_on(Arc::new(disk.clone()), directory.path(), Some(1 << 40), super::SMALL);
        let store = open().expect("it opens");
        let changes = (0..9u8).map(|number| (Bytes::from(vec![number]), Some(Bytes::from(vec![0xab, number]))));
        store.change_records(changes.collect()).await.expect("it writes");
        store.close().await.expect("it closes");
        disk.tamper(&directory.path().join("segments/00000001.seg"), |bytes| {
            for at in 0..bytes.len() - 1 {
                if bytes[at] == 0xab && (3..6).contains(&bytes[at + 1]) {
                    bytes[at] ^= 1;
                }
            }
        });
        let store = open().expect("it opens");
        let keys = |after: Option<&[u8]>, limit| {
            let page = store.records(b"", after, limit).expect("it reads");
            page.into_iter().map(|(key, _)| key[0]).collect::<Vec<_>>()
        };
        assert_eq!(keys(Some(&[1]), 2), [2, 6], "the page goes on behind them");
        assert_eq!(keys(Some(&[2]), 1), [6], "it is not empty either");
        assert_eq!(keys(None, 99), [0, 1, 2, 6, 7, 8]);
        assert_eq!(store.record(&[3]).expect("it reads"), None);
        // They are forgotten behind the reads, and can be kept again.
        store.put_record(Bytes::from_static(&[4]), Bytes::from_static(b"new")).await.expect("it writes");
        assert_eq!(store.record(&[4]).expect("it reads").as_deref(), Some(&b"new"[..]));
        let held = store.inner.shared.with(|table| table.values(b"", None, 99)).expect("it reads");
        assert_eq!(held.len(), 7, "the index has nothing of what is forgotten");
        store.close().await.expect("it closes");
    });
}
