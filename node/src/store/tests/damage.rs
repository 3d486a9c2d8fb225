//! Torn ends, flipped bits, and an index that is missing, garbage or of an older moment.

use std::fs;

use bytes::Bytes;
use p2p_protocol::Chunk;

use super::{super::*, all, chunk, directory, open, run, segment_files};

/// Copies a directory that holds files and directories.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it can be made");
    for found in fs::read_dir(from).expect("it is there") {
        let found = found.expect("it is listed").path();
        let target = to.join(found.file_name().expect("it has one"));
        if found.is_dir() {
            copy(&found, &target)
        } else {
            let _ = fs::copy(&found, &target).expect("it is copied");
        }
    }
}

fn again(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    copy(from, to);
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("it is there");
    bytes[at] ^= 1 << (at % 8);
    fs::write(path, bytes).expect("it can be written");
}

/// A store with `count` small chunks and two records, closed.
async fn made(path: &Path, count: u64) -> Vec<Chunk> {
    let store = open(path);
    let chunks: Vec<_> = (0..count).map(|seed| chunk(seed, 40 + seed as usize)).collect();
    for chunk in &chunks {
        store.put(chunk.clone()).await.expect("there is room");
    }
    for key in [&b"a"[..], b"b"] {
        store.put_record(Bytes::from_static(key), Bytes::from_static(b"kept")).await.expect("it writes");
    }
    store.close().await.expect("it closes");
    chunks
}

#[test]
fn a_torn_end_is_cut_off_at_whatever_byte_it_is() {
    run(async {
        let (whole, tried) = (directory(), directory());
        let tried = tried.path().join("tried");
        let mut chunks = made(whole.path(), 3).await;
        let kept = chunks.clone();
        let (segment, start) = {
            let file = segment_files(whole.path()).pop().expect("there is one");
            let start = fs::metadata(&file).expect("it is there").len();
            (file, start)
        };
        // The index as it was before the last record, as a crash leaves it.
        let index = directory();
        copy(&whole.path().join("index"), index.path());
        let store = open(whole.path());
        let last = chunk(77, 10);
        store.put(last.clone()).await.expect("there is room");
        store.close().await.expect("it closes");
        chunks.push(last.clone());
        let end = fs::metadata(&segment).expect("it is there").len();
        again(index.path(), &whole.path().join("index"));
        for cut in start..=end {
            again(whole.path(), &tried);
            let file = segment_files(&tried).pop().expect("there is one");
            let opened = fs::OpenOptions::new().write(true).open(&file).expect("it is there");
            opened.set_len(cut).expect("it can be cut");
            if cut % 2 == 1 {
                // Not only too short: pages that never came are zeros.
                opened.set_len(end).expect("it can grow");
            }
            let store = open(&tried);
            for chunk in &kept {
                assert_eq!(store.get(&chunk.cid().hash).await.expect("it reads").as_ref(), Some(chunk), "cut at {cut}");
            }
            let whole_again = cut == end || store.entry(&last.cid().hash).expect("it reads").is_some();
            assert_eq!(store.get(&last.cid().hash).await.expect("it reads"), whole_again.then(|| last.clone()));
            assert_eq!(store.put(last.clone()).await.expect("it writes") == Put::Known, whole_again);
            store.close().await.expect("it closes");
            let store = open(&tried);
            assert_eq!(store.get(&last.cid().hash).await.expect("it reads").as_ref(), Some(&last), "cut at {cut}");
            assert_eq!(all(&store).len(), 4);
            store.close().await.expect("it closes");
        }
    });
}

#[test]
fn a_flipped_bit_in_a_segment_costs_at_most_the_record_that_it_is_in() {
    run(async {
        let (whole, tried) = (directory(), directory());
        let tried = tried.path().join("tried");
        let chunks = made(whole.path(), 6).await;
        let length = fs::metadata(&segment_files(whole.path())[0]).expect("it is there").len() as usize;
        for at in (0..length).step_by(11) {
            for rebuilt in [false, true] {
                again(whole.path(), &tried);
                flip(&segment_files(&tried)[0], at);
                if rebuilt {
                    fs::remove_dir_all(tried.join("index")).expect("it is there");
                }
                let store = open(&tried);
                let mut lost = Vec::new();
                for chunk in &chunks {
                    match store.get(&chunk.cid().hash).await.expect("it reads") {
                        Some(found) => assert_eq!(&found, chunk),
                        None => lost.push(chunk.clone()),
                    }
                }
                let records = store.records(b"", None, usize::MAX).expect("it reads").len();
                assert!(lost.len() + (2 - records) <= 1, "byte {at}, rebuilt {rebuilt}: {lost:?}, {records} records");
                if !rebuilt {
                    // What was found damaged is forgotten, not looked for again.
                    let again = store.records(b"", None, usize::MAX).expect("it reads").len();
                    assert_eq!(again, records, "byte {at}");
                    let damaged = store.damaged(None, 9).expect("it reads");
                    assert_eq!(
                        damaged.iter().map(|entry| entry.cid).collect::<Vec<_>>(),
                        lost.iter().map(|c| *c.cid()).collect::<Vec<_>>()
                    );
                    let kept = fs::read_dir(tried.join("quarantine")).expect("it is there").count();
                    assert_eq!(kept, lost.len(), "what is damaged is set aside");
                }
                for chunk in &lost {
                    assert_eq!(store.entry(&chunk.cid().hash).expect("it reads"), None);
                    assert_eq!(store.put(chunk.clone()).await.expect("it writes"), Put::New);
                    assert_eq!(store.get(&chunk.cid().hash).await.expect("it reads").as_ref(), Some(chunk));
                }
                assert_eq!(store.damaged(None, 9).expect("it reads"), [], "it is here again");
                store.close().await.expect("it closes");
            }
        }
    });
}

#[test]
fn what_is_damaged_is_remembered_over_a_rebuild() {
    run(async {
        let directory = directory();
        let chunks = made(directory.path(), 3).await;
        let length = fs::metadata(&segment_files(directory.path())[0]).expect("it is there").len() as usize;
        // The last chunk's payload: before the two records of 40 + 1 + 4 bytes.
        flip(&segment_files(directory.path())[0], length - 2 * 45 - 1);
        let store = open(directory.path());
        assert_eq!(store.get(&chunks[2].cid().hash).await.expect("it reads"), None);
        let damaged = store.damaged(None, 9).expect("it reads");
        assert_eq!(damaged, [Entry { cid: *chunks[2].cid(), length: 42 }]);
        store.close().await.expect("it closes");
        fs::remove_dir_all(directory.path().join("index")).expect("it is there");
        let store = open(directory.path());
        assert_eq!(store.damaged(None, 9).expect("it reads"), damaged);
        store.close().await.expect("it closes");
    });
}

#[test]
fn an_index_of_any_kind_is_made_to_fit() {
    run(async {
        let (whole, older, tried) = (directory(), directory(), directory());
        let tried = tried.path().join("tried");
        made(whole.path(), 20).await;
        copy(&whole.path().join("index"), &older.path().join("index"));
        let store = open(whole.path());
        for seed in 100..160 {
            store.put(chunk(seed, 700)).await.expect("there is room");
        }
        store
            .remove((0..10).map(|seed| chunk(seed, 40 + seed as usize).cid().hash).collect())
            .await
            .expect("it writes");
        let expected = all(&store);
        store.close().await.expect("it closes");
        assert!(segment_files(whole.path()).len() > 2, "there is more than one segment to follow");
        let check = async |what: &str| {
            let store = open(&tried);
            assert_eq!(all(&store), expected, "{what}");
            assert_eq!(store.records(b"", None, usize::MAX).expect("it reads").len(), 2, "{what}");
            for entry in &expected {
                assert!(store.get(&entry.cid.hash).await.expect("it reads").is_some(), "{what}");
            }
            store.put(chunk(9000, 10)).await.expect("there is room");
            store.close().await.expect("it closes");
        };
        again(whole.path(), &tried);
        fs::remove_dir_all(tried.join("index")).expect("it is there");
        check("missing").await;
        for fresh in [whole.path(), &tried] {
            assert!(!fresh.join("index.aside").exists(), "an index that was not there is not kept either");
        }
        again(whole.path(), &tried);
        again(&older.path().join("index"), &tried.join("index"));
        check("of an older moment").await;
        // One of another store altogether.
        let other = directory();
        made(other.path(), 5).await;
        again(whole.path(), &tried);
        again(&other.path().join("index"), &tried.join("index"));
        check("of another store").await;
        assert!(tried.join("index.aside").exists());
        again(whole.path(), &tried);
        let files: Vec<_> = fs::read_dir(tried.join("index"))
            .expect("it is there")
            .map(|file| file.expect("it is listed").path())
            .filter(|path| path.is_file())
            .collect();
        assert!(files.len() >= 2, "sled's data and its settings");
        for file in files {
            let name = file.file_name().expect("it has one").to_string_lossy().into_owned();
            // What an earlier round left may have another snapshot.
            again(whole.path(), &tried);
            let length = fs::metadata(&file).expect("it is there").len() as usize;
            for (what, bytes) in [("empty", Vec::new()), ("garbage", vec![0xa5; length]), ("zeros", vec![0; length])] {
                again(whole.path(), &tried);
                fs::write(&file, bytes).expect("it can be written");
                check(&format!("{name}: {what}")).await;
            }
            for at in (0..length).step_by((length / 24).max(1)) {
                again(whole.path(), &tried);
                flip(&file, at);
                check(&format!("{name}: bit of byte {at}")).await;
            }
        }
    });
}

#[test]
fn a_record_inside_a_payload_stays_a_payload() {
    run(async {
        let (directory, other) = (directory(), directory());
        // A segment of another store, with deletions in it, kept as a chunk of this one.
        let chunks = made(other.path(), 4).await;
        let store = open(other.path());
        store.remove(chunks.iter().map(|chunk| chunk.cid().hash).collect()).await.expect("it writes");
        store.close().await.expect("it closes");
        let bytes = fs::read(&segment_files(other.path())[0]).expect("it is there");
        made(directory.path(), 4).await;
        let store = open(directory.path());
        let inner = Chunk::new(p2p_protocol::Codec::Raw, bytes).expect("it is short");
        store.put(inner.clone()).await.expect("there is room");
        store.put(chunk(50, 10)).await.expect("there is room");
        store.close().await.expect("it closes");
        // Its own header is damaged, so that its payload is searched for records.
        let segment = segment_files(directory.path()).pop().expect("there is one");
        let whole = fs::read(&segment).expect("it is there");
        let at = whole.windows(128).rposition(|window| window == &inner.bytes()[..128]).expect("it is in there");
        // In the root's place, where a flag says that there is none: only the checksum knows.
        flip(&segment, at - 30);
        fs::remove_dir_all(directory.path().join("index")).expect("it is there");
        let store = open(directory.path());
        for chunk in &chunks {
            assert!(store.entry(&chunk.cid().hash).expect("it reads").is_some(), "nothing inside of it was believed");
        }
        assert!(store.entry(&chunk(50, 10).cid().hash).expect("it reads").is_some());
        assert_eq!(store.entry(&inner.cid().hash).expect("it reads"), None);
        store.close().await.expect("it closes");
    });
}

#[test]
fn an_index_that_fails_while_it_is_used_is_made_again() {
    run(async {
        let directory = directory();
        let chunks = made(directory.path(), 20).await;
        let store = open(directory.path());
        let expected = all(&store);
        // As a damaged sled does: from now on every read of it fails.
        store.inner.shared.fail("a test");
        assert!(matches!(store.entry(&chunks[0].cid().hash), Err(StoreError::Index(_))));
        // A failed read was enough to have it made again.
        super::until("healing", || store.entry(&chunks[0].cid().hash).is_ok()).await;
        assert_eq!(all(&store), expected);
        // So is a put, which does not even notice.
        store.inner.shared.fail("a test");
        store.put(chunk(500, 10)).await.expect("it is healed first");
        store.remove(vec![chunks[0].cid().hash]).await.expect("it writes");
        assert_eq!((all(&store).len(), store.usage().chunks), (20, 20));
        store.close().await.expect("it closes");
    });
}
