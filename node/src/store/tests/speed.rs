//! How fast it is beside the disk itself, in one run; figures to read, not to assert.
//!
//! `cargo test --release -p p2p-node --lib store::tests::speed -- --ignored --nocapture`

use std::{
    fs::{self, File},
    io::Write as _,
    time::Instant,
};

use p2p_protocol::{Chunk, Codec};

use super::{super::*, chunk, directory, run};

const CHUNKS: usize = 1024;
const SMALL_FILES: u64 = 20_000;

#[test]
#[ignore = "a measurement: 1 GiB to disk, three times"]
fn beside_the_disk() {
    run(async {
        let directory = directory();
        let bytes: Vec<Chunk> = (0..64).map(|seed| chunk(seed, 1 << 20)).collect();
        for round in 0..3 {
            let started = Instant::now();
            let path = directory.path().join("plain");
            let mut file = File::create(&path).expect("it can be made");
            for number in 0..CHUNKS {
                file.write_all(bytes[number % 64].bytes()).expect("there is room");
                if number % 64 == 63 {
                    file.sync_data().expect("it syncs");
                }
            }
            let plain = started.elapsed().as_secs_f64();
            fs::remove_file(&path).expect("it is there");

            // Hashed beforehand: the store does not hash what it is given.
            let root = directory.path().join(format!("store-{round}"));
            let store = Store::open(&root, Some(1 << 40)).expect("it opens");
            let chunks: Vec<_> = (0..CHUNKS as u64).map(|seed| chunk(10_000 + seed, 1 << 20)).collect();
            let started = Instant::now();
            let puts = chunks.iter().map(|chunk| store.put(chunk.clone()));
            let puts = futures::StreamExt::buffer_unordered(futures::stream::iter(puts), 64);
            let done: Vec<_> = futures::StreamExt::collect(puts).await;
            let put = started.elapsed().as_secs_f64();
            assert!(done.iter().all(Result::is_ok));
            let started = Instant::now();
            for chunk in &chunks {
                assert!(store.get(&chunk.cid().hash).await.expect("it reads").is_some());
            }
            let get = started.elapsed().as_secs_f64();
            println!("{} batches", store.inner.shared.batches.load(Ordering::SeqCst));
            println!("1 GiB: plain {plain:.2} s, put {put:.2} s (ratio {:.2}), get {get:.2} s", put / plain);

            let small: Vec<_> = (0..SMALL_FILES)
                .map(|seed| Chunk::new(Codec::Raw, format!("{seed} of a small file").repeat(50)).expect("it is short"))
                .collect();
            let before = store.inner.shared.batches.load(Ordering::SeqCst);
            let started = Instant::now();
            let puts = small.into_iter().map(|chunk| store.put(chunk));
            let puts = futures::StreamExt::buffer_unordered(futures::stream::iter(puts), 256);
            let done: Vec<_> = futures::StreamExt::collect(puts).await;
            assert!(done.iter().all(Result::is_ok));
            let batches = store.inner.shared.batches.load(Ordering::SeqCst) - before;
            println!("{SMALL_FILES} small: {:.2} s in {batches} batches", started.elapsed().as_secs_f64());
            store.close().await.expect("it closes");
            let started = Instant::now();
            let store = Store::open(&root, Some(1 << 40)).expect("it opens");
            println!("reopen: {:.3} s", started.elapsed().as_secs_f64());
            store.close().await.expect("it closes");
            fs::remove_dir_all(root.join("index")).expect("it is there");
            let started = Instant::now();
            let store = Store::open(&root, Some(1 << 40)).expect("it opens");
            println!("rebuild: {:.3} s", started.elapsed().as_secs_f64());
            store.close().await.expect("it closes");
            fs::remove_dir_all(&root).expect("it is there");
        }
    });
}
