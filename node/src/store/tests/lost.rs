//! Parts of the log that are lost whole, records of newer versions, what a rebuild reads, and what is known but damaged.

use std::{io::IoSlice, path::Path};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use p2p_protocol::{Chunk, Key};

use super::{super::*, SMALL, all, chunk, directory, disk::TestDisk, run};
use crate::store::{
    index::table,
    record::{HEAD_BYTES, Head, MAGIC},
    segment::{SEGMENT_HEAD_BYTES, SegmentHead},
};

fn open(disk: &TestDisk, path: &Path) -> Store {
    Store::open_on(Arc::new(disk.clone()), path, Some(1 << 40), SMALL).expect("the store opens")
}

/// A store of some segments with a value in the first and one in the second, whose last version the first has; closed.
async fn made(disk: &TestDisk, path: &Path) -> Vec<Chunk> {
    let store = open(disk, path);
    for (key, value) in [("a", "kept"), ("b", "superseded")] {
        store
            .put_record(Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()))
            .await
            .expect("it writes");
    }
    let chunks: Vec<_> = (0..60).map(|seed| chunk(seed, 900)).collect();
    for (number, chunk) in chunks.iter().enumerate() {
        if number == 24 {
            // In the second segment.
            store.put_record(Bytes::from_static(b"b"), Bytes::from_static(b"kept")).await.expect("it writes");
        }
        store.put(chunk.clone()).await.expect("there is room");
    }
    store.close().await.expect("it closes");
    chunks
}

/// Every chunk is there and intact, or damaged and said to be, and there are `values`; gives how many are damaged.
async fn accounted(store: &Store, chunks: &[Chunk], values: usize) -> usize {
    let damaged = store.damaged(None, 99).expect("it reads");
    for chunk in chunks {
        let found = store.get(&chunk.cid().hash).await.expect("it reads");
        let lost = damaged.iter().any(|entry| entry.cid == *chunk.cid());
        assert_eq!(found.as_ref(), (!lost).then_some(chunk), "lost: {lost}");
    }
    assert_eq!(all(store).len() + damaged.len(), chunks.len());
    let found = store.records(b"", None, usize::MAX).expect("it reads");
    assert_eq!(found.len(), values);
    assert!(found.iter().all(|(_, value)| value == "kept"), "what was superseded does not come back");
    damaged.len()
}

#[test]
fn a_segment_whose_header_is_damaged_is_read_with_the_copy() {
    run(async {
        for rebuilt in [false, true] {
            let (directory, disk) = (directory(), TestDisk::new());
            let chunks = made(&disk, directory.path()).await;
            for name in disk.names(&directory.path().join("segments")).expect("it is there") {
                if name.ends_with(".seg") {
                    disk.tamper(&directory.path().join("segments").join(name), |bytes| bytes[..512].fill(0xa5));
                }
            }
            if rebuilt {
                disk.remove_directory(&directory.path().join("index")).expect("it is there");
            }
            let store = open(&disk, directory.path());
            // The sector had the first record of each segment too.
            let mut lost = 0;
            for chunk in &chunks {
                lost += usize::from(store.get(&chunk.cid().hash).await.expect("it reads").is_none());
            }
            assert!((1..=6).contains(&lost), "{lost} lost");
            store.close().await.expect("it closes");
        }
    });
}

#[test]
fn what_only_the_old_index_knew_is_damaged_or_written_again() {
    run(async {
        for (number, gone) in [(1, true), (1, false), (2, true), (2, false), (4, true), (4, false)] {
            let (directory, disk) = (directory(), TestDisk::new());
            let chunks = made(&disk, directory.path()).await;
            let segment = directory.path().join(format!("segments/{number:08}.seg"));
            let side = directory.path().join(format!("segments/{number:08}.head"));
            if gone {
                disk.remove(&segment).expect("it is there");
            } else {
                disk.tamper(&segment, |bytes| bytes[..64].fill(0));
                disk.tamper(&side, |bytes| bytes.fill(0));
            }
            let store = open(&disk, directory.path());
            // Without its headers its bytes are still good, and the index knows where they are.
            let values = 2 - usize::from(gone && number < 3);
            let damaged = accounted(&store, &chunks, values).await;
            assert_eq!(damaged > 0, gone, "segment {number}, gone {gone}: {damaged} damaged");
            store.close().await.expect("it closes");
            let store = open(&disk, directory.path());
            assert_eq!(accounted(&store, &chunks, values).await, damaged, "and again");
            store.close().await.expect("it closes");
        }
    });
}

/// Enough for several threads to look through.
#[test]
fn of_many_chunks_what_is_counted_is_what_is_there_and_nothing_that_is_lost_is_missed() {
    run(async {
        let (directory, disk) = (directory(), TestDisk::new());
        let root = directory.path();
        // As after a kill: it is looked through.
        let reopened = || {
            disk.remove(&root.join("census")).expect("it was closed in good order");
            open(&disk, root)
        };
        let store = open(&disk, root);
        let chunks: Vec<_> = (0..4000).map(|seed| chunk(seed, 20)).collect();
        let puts = stream::iter(&chunks).map(|chunk| store.put(chunk.clone())).buffer_unordered(256);
        puts.for_each(async |put| assert_eq!(put.expect("there is room"), Put::New)).await;
        let counts = |store: &Store| (store.usage().chunks, store.usage().bytes);
        let before = (all(&store), counts(&store));
        assert_eq!(before.1, (4000, 80_000));
        store.close().await.expect("it closes");
        let mut store = reopened();
        assert_eq!((all(&store), counts(&store)), before);
        // An index that lost one at either end of a part that a thread looks at is made again.
        for at in [0, 7, 8, 127, 128, 247, 248, 255] {
            let first = |entry: &&Entry| Key::from(&entry.cid.hash).0[0] == at;
            let lost = Key::from(&before.0.iter().find(first).expect("keys are hashes").cid.hash);
            store.with(|table| table.index().apply(vec![(table::chunk_key(&lost), None)])).expect("it writes");
            store.close().await.expect("it closes");
            store = reopened();
            assert_eq!((all(&store), counts(&store)), before, "{at}");
        }
        store.close().await.expect("it closes");
        disk.remove(&root.join("segments/00000003.seg")).expect("it is there");
        let store = reopened();
        let lost = store.damaged(None, 4000).expect("it reads");
        let mut accounted = all(&store);
        assert_eq!(counts(&store).0, accounted.len() as u64);
        accounted.extend(&lost);
        accounted.sort_unstable_by_key(|entry| Key::from(&entry.cid.hash));
        assert_eq!(accounted, before.0);
        let half = lost.iter().filter(|entry| Key::from(&entry.cid.hash).0[0] < 128).count();
        assert!(0 < half && half < lost.len());
        store.close().await.expect("it closes");
    });
}

#[test]
fn a_record_of_an_unknown_kind_is_stepped_over_and_kept() {
    run(async {
        let (directory, disk) = (directory(), TestDisk::new());
        let chunks = made(&disk, directory.path()).await;
        let segments = directory.path().join("segments");
        let path = segments.join("00000001.seg");
        // A newer version's: kind 9, 48 bytes of header, a body that looks like records.
        let file = disk.open(&path, true).expect("it is there");
        let salt = SegmentHead::read(&*file, 1).expect("it reads").expect("it is whole").salt;
        let mut head = [&MAGIC[..], &[9, 0, 0, 48], &100_u32.to_be_bytes(), &[0; 36]].concat();
        let sum = |head: &[u8]| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&salt.0).update(&SEGMENT_HEAD_BYTES.to_be_bytes()).update(&head[..16]).update(&head[24..]);
            hasher.finalize().as_bytes()[..8].to_vec()
        };
        let sum = sum(&head);
        head[16..24].copy_from_slice(&sum);
        assert_eq!(Head::decode(&head, salt, SEGMENT_HEAD_BYTES), Some(Head::Unknown { head: 48, body: 100 }));
        // A segment of that record alone, as the first; the store's own follow it.
        let body = MAGIC.repeat(25);
        file.set_length(SEGMENT_HEAD_BYTES).expect("it writes");
        file.write_at(&mut [IoSlice::new(&head), IoSlice::new(&body)], SEGMENT_HEAD_BYTES).expect("it writes");
        file.sync().expect("it syncs");
        disk.open(&segments.join("00000001.head"), true)
            .and_then(|_| SegmentHead { salt, end: 0 }.write_side(&disk, &segments, 1))
            .expect("it writes");
        for rebuilt in [false, true] {
            if rebuilt {
                disk.remove_directory(&directory.path().join("index")).expect("it is there");
            }
            let store = open(&disk, directory.path());
            // Nothing that it has is live, yet the compaction leaves it.
            store.remove(vec![chunks[59].cid().hash]).await.expect("it writes");
            store.put(chunks[59].clone()).await.expect("there is room");
            store.close().await.expect("it closes");
            let found = disk.open(&path, false).expect("the segment stays").length().expect("it is open");
            assert_eq!(found, SEGMENT_HEAD_BYTES + 148);
        }
    });
}

#[test]
fn a_rebuild_reads_a_page_a_chunk_and_not_its_bytes() {
    run(async {
        let (directory, disk) = (directory(), TestDisk::new());
        let tuning = Tuning { segment_bytes: 4 << 20, reserve_bytes: 0 };
        let open = || Store::open_on(Arc::new(disk.clone()), directory.path(), Some(1 << 40), tuning);
        let store = open().expect("it opens");
        for seed in 0..61 {
            store.put(chunk(seed, 256 * 1024)).await.expect("there is room");
        }
        store.close().await.expect("it closes");
        disk.remove_directory(&directory.path().join("index")).expect("it is there");
        let before = disk.state().read_bytes;
        let store = open().expect("it opens");
        let read = disk.state().read_bytes - before;
        assert_eq!(store.usage().chunks, 61);
        // The head has one chunk, which is read whole: to be hashed and to be written again.
        assert!(read < 61 * 8192 + 3 * 256 * 1024, "{read} bytes");
        store.close().await.expect("it closes");
    });
}

#[test]
fn a_chunk_that_is_known_but_damaged_is_written_anew() {
    run(async {
        let (directory, disk) = (directory(), TestDisk::new());
        let chunks = made(&disk, directory.path()).await;
        disk.tamper(&directory.path().join("segments/00000002.seg"), |bytes| {
            bytes[SEGMENT_HEAD_BYTES as usize + HEAD_BYTES + 5] ^= 1;
        });
        let store = open(&disk, directory.path());
        let mut new = Vec::new();
        for chunk in &chunks {
            let hash = chunk.cid().hash;
            assert!(store.entry(&hash).expect("it reads").is_some(), "the index cannot know");
            if store.put(chunk.clone()).await.expect("there is room") == Put::New {
                new.push(hash);
            }
            assert_eq!(store.verify(&hash).await.expect("it reads").map(|entry| entry.cid), Some(*chunk.cid()));
        }
        assert_eq!(new.len(), 1, "the damaged one is written anew, and no other");
        assert_eq!(accounted(&store, &chunks, 2).await, 0);
        // Asked for others, before anything is put.
        let hash = new[0];
        store.close().await.expect("it closes");
        let segments = directory.path().join("segments");
        let head = disk.names(&segments).expect("it is there").into_iter().filter(|name| name.ends_with(".seg")).max();
        disk.tamper(&segments.join(head.expect("there is one")), |bytes| {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        });
        let store = open(&disk, directory.path());
        assert_eq!(store.verify(&hash).await.expect("it reads"), None);
        assert_eq!(store.damaged(None, 9).expect("it reads").len(), 1);
        store.close().await.expect("it closes");
    });
}
