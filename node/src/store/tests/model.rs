//! Random operations against a model, for both implementations.

use std::collections::BTreeMap;

use bytes::Bytes;
use p2p_protocol::{Chunk, Key};
use proptest::prelude::*;

use super::{super::*, all, chunk, directory, open, run, until};

/// What a test does; chunks are named by a small number, which gives their bytes.
#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>),
    Remove(Vec<u8>),
    Value(u8, u8),
    Unset(Vec<u8>),
    Meta(u8, Option<u8>),
    Reopen,
    /// Reopen without the index.
    Rebuild,
}

fn named(name: u8) -> Chunk {
    // From empty to several segments' worth of a few chunks.
    chunk(u64::from(name), usize::from(name) * 61 % 4096)
}

fn step() -> impl Strategy<Value = Step> {
    let names = || proptest::collection::vec(0..40u8, 1..6);
    prop_oneof![
        6 => proptest::collection::vec(0..40u8, 1..12).prop_map(Step::Put),
        3 => names().prop_map(Step::Remove),
        2 => (0..5u8, any::<u8>()).prop_map(|(key, value)| Step::Value(key, value)),
        1 => proptest::collection::btree_set(0..5u8, 1..4).prop_map(|keys| Step::Unset(keys.into_iter().collect())),
        1 => (0..5u8, any::<Option<u8>>()).prop_map(|(key, value)| Step::Meta(key, value)),
        1 => Just(Step::Reopen),
        1 => Just(Step::Rebuild),
    ]
}

#[derive(Default)]
struct Model {
    chunks: BTreeMap<Key, Chunk>,
    values: BTreeMap<Bytes, Bytes>,
    meta: BTreeMap<Bytes, Bytes>,
}

impl Model {
    fn put(&mut self, name: u8) -> Put {
        let chunk = named(name);
        let known = self.chunks.insert(Key::from(&chunk.cid().hash), chunk);
        if known.is_some() { Put::Known } else { Put::New }
    }

    fn entries(&self) -> Vec<Entry> {
        self.chunks.values().map(|chunk| Entry { cid: *chunk.cid(), length: chunk.len() as u32 }).collect()
    }
}

async fn compare(store: &Store, model: &Model) {
    let entries = model.entries();
    assert_eq!(all(store), entries);
    let values: Vec<_> = model.values.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    assert_eq!(store.records(b"", None, usize::MAX).expect("it reads"), values);
    for key in 0..5u8 {
        let key = [key; 9];
        assert_eq!(store.record(&key).expect("it reads").as_ref(), model.values.get(&key[..]));
        let one = store.records(&key[..4], None, 2).expect("it reads").into_iter().map(|(_, value)| value);
        assert_eq!(one.collect::<Vec<_>>(), model.values.get(&key[..]).cloned().into_iter().collect::<Vec<_>>());
        let next = store.records(b"", Some(&key), 1).expect("it reads").pop();
        assert_eq!(next, values.iter().find(|(found, _)| found[..] > key[..]).cloned());
    }
    let meta: Vec<_> = model.meta.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    assert_eq!(store.meta("tree").expect("it reads"), meta);
    let usage = store.usage();
    let bytes = entries.iter().map(|entry| u64::from(entry.length)).sum();
    assert_eq!((usage.chunks, usage.bytes), (entries.len() as u64, bytes));
    for chunk in model.chunks.values() {
        assert_eq!(store.get(&chunk.cid().hash).await.expect("it reads").as_ref(), Some(chunk));
    }
    assert_eq!(store.damaged(None, 100).expect("it reads"), []);
}

async fn play(path: Option<&Path>, steps: &[Step]) {
    let mut model = Model::default();
    let mut store = path.map_or_else(|| Store::in_memory(1 << 40), open);
    for step in steps {
        match step {
            Step::Put(puts) => {
                // At once, so that they share a batch; of one chunk only one, for they are done in any order.
                let mut seen = std::collections::BTreeSet::new();
                let puts: Vec<_> = puts.iter().filter(|name| seen.insert(**name)).collect();
                let puts_here = puts.iter().map(|name| store.put(named(**name)));
                let done = futures::future::join_all(puts_here).await;
                for (name, put) in puts.iter().zip(done) {
                    assert_eq!(put.expect("there is room"), model.put(**name));
                }
            }
            Step::Remove(names) => {
                let hashes: Vec<_> = names.iter().map(|name| named(*name).cid().hash).collect();
                hashes.iter().for_each(|hash| drop(model.chunks.remove(&Key::from(hash))));
                store.remove(hashes).await.expect("it writes");
            }
            Step::Value(key, value) => {
                let (key, value) = (Bytes::from(vec![*key; 9]), Bytes::from(vec![*value; usize::from(*value)]));
                store.put_record(key.clone(), value.clone()).await.expect("it writes");
                model.values.insert(key, value);
            }
            Step::Unset(keys) => {
                let keys: Vec<_> = keys.iter().map(|key| Bytes::from(vec![*key; 9])).collect();
                keys.iter().for_each(|key| drop(model.values.remove(key)));
                let changes = keys.into_iter().map(|key| (key, None)).collect();
                store.change_records(changes).await.expect("it writes");
            }
            Step::Meta(key, Some(value)) => {
                store.set_meta("tree", &[*key], &[*value]).expect("it writes");
                store.set_meta("tres", &[*key], b"of another tree").expect("it writes");
                model.meta.insert(vec![*key].into(), vec![*value].into());
            }
            Step::Meta(key, None) => {
                store.remove_meta("tree", &[*key]).expect("it writes");
                model.meta.remove(&[*key][..]);
            }
            Step::Reopen | Step::Rebuild => {
                let Some(path) = path else { continue };
                store.close().await.expect("it closes");
                assert!(matches!(store.entry(&named(1).cid().hash), Err(StoreError::Closed)));
                if matches!(step, Step::Rebuild) {
                    std::fs::remove_dir_all(path.join("index")).expect("it is there");
                    model.meta.clear();
                }
                store = open(path);
            }
        }
        compare(&store, &model).await;
    }
    store.close().await.expect("it closes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn both_stores_do_what_the_model_does(steps in proptest::collection::vec(step(), 1..40)) {
        run(async {
            play(None, &steps).await;
            let directory = directory();
            play(Some(directory.path()), &steps).await;
        });
    }
}

#[test]
fn what_is_removed_gives_its_space_back_and_stays_removed() {
    run(async {
        let directory = directory();
        let store = open(directory.path());
        let chunks: Vec<_> = (0..200).map(|seed| chunk(seed, 1000)).collect();
        for chunk in &chunks {
            store.put(chunk.clone()).await.expect("there is room");
        }
        let disk = || super::segment_files(directory.path()).len();
        let full = disk();
        let (gone, kept) = chunks.split_at(150);
        store.remove(gone.iter().map(|chunk| chunk.cid().hash).collect()).await.expect("it writes");
        until("compaction", || disk() < full / 2).await;
        for chunk in kept {
            assert_eq!(store.get(&chunk.cid().hash).await.expect("it reads").as_ref(), Some(chunk));
        }
        let before = all(&store);
        store.close().await.expect("it closes");
        std::fs::remove_dir_all(directory.path().join("index")).expect("it is there");
        let store = open(directory.path());
        assert_eq!(all(&store), before, "the log alone says what is here after a compaction");
        for chunk in gone {
            assert_eq!(store.entry(&chunk.cid().hash).expect("it reads"), None);
        }
        store.close().await.expect("it closes");
    });
}

#[test]
fn reads_survive_a_compaction_under_them() {
    run(async {
        let directory = directory();
        let store = open(directory.path());
        let kept: Vec<_> = (0..40).map(|seed| chunk(seed, 900)).collect();
        let filler: Vec<_> = (1000..1320).map(|seed| chunk(seed, 900)).collect();
        // Each segment has some of both, so that every one of them is compacted when the filler goes.
        for (kept, filler) in kept.iter().zip(filler.chunks(8)) {
            let puts = filler.iter().chain([kept]).map(|chunk| store.put(chunk.clone()));
            futures::future::try_join_all(puts).await.expect("there is room");
        }
        let first = super::segment_files(directory.path());
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (store, kept, stop) = (store.clone(), kept.clone(), Arc::clone(&stop));
                tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        for chunk in &kept {
                            assert_eq!(store.get(&chunk.cid().hash).await.expect("it reads").as_ref(), Some(chunk));
                        }
                    }
                })
            })
            .collect();
        store.remove(filler.iter().map(|chunk| chunk.cid().hash).collect()).await.expect("it writes");
        until("compaction", || {
            let now = super::segment_files(directory.path());
            first.iter().filter(|path| now.contains(path)).count() <= 1
        })
        .await;
        stop.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.await.expect("every read gave the right bytes");
        }
        store.close().await.expect("it closes");
    });
}

#[test]
fn a_second_opener_is_refused_at_once_and_a_closed_store_opens_again() {
    run(async {
        let directory = directory();
        let store = open(directory.path());
        let second = Store::open(directory.path(), None);
        assert!(matches!(second, Err(StoreError::Locked(path)) if path == directory.path()));
        store.close().await.expect("it closes");
        store.close().await.expect("a second time does nothing");
        assert!(matches!(store.put(named(1)).await, Err(StoreError::Closed)));
        open(directory.path()).close().await.expect("it closes");
    });
}

#[test]
fn the_capacity_of_the_first_start_is_remembered_and_an_explicit_one_is_not() {
    run(async {
        let directory = directory();
        for (explicit, expected) in [(Some(5000), Some(5000)), (None, None), (Some(7000), Some(7000)), (None, None)] {
            let store = Store::open(directory.path(), explicit).expect("it opens");
            let capacity = store.usage().capacity_bytes;
            let text = std::fs::read_to_string(directory.path().join("capacity")).ok();
            let remembered = text.map(|text| text.trim().parse::<u64>().expect("it is a number"));
            match expected {
                Some(expected) => assert_eq!(capacity, expected),
                None => assert_eq!(Some(capacity), remembered),
            }
            store.close().await.expect("it closes");
            std::fs::remove_dir_all(directory.path().join("index")).expect("it is there");
        }
    });
}
