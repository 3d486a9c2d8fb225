//! What the store promises, tried: against a model, through damage, crashes, full disks and compaction.

mod capacity;
mod census;
mod crash;
mod damage;
mod disk;
mod golden;
mod images;
mod key_table;
mod lost;
mod model;
mod power;
mod records;
mod scrub;
mod speed;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use p2p_protocol::{Chunk, Codec};

use super::{Entry, Store, Tuning};

/// Small segments, so that tests roll and compact; no reserve, so that they run on any disk.
const SMALL: Tuning = Tuning { segment_bytes: 16 * 1024, reserve_bytes: 0 };

/// A chunk of `length` bytes that `seed` determines.
fn chunk(seed: u64, length: usize) -> Chunk {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    let mark = seed.to_be_bytes();
    let marked = length.min(8);
    bytes[..marked].copy_from_slice(&mark[8 - marked..]);
    Chunk::new(Codec::Raw, bytes).expect("tests make short ones")
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

fn open(path: &Path) -> Store {
    Store::open_on(std::sync::Arc::new(super::disk::SystemDisk), path, Some(1 << 40), SMALL).expect("the store opens")
}

fn all(store: &Store) -> Vec<Entry> {
    let mut entries = Vec::new();
    loop {
        let after = entries.last().map(|entry: &Entry| (&entry.cid.hash).into());
        let page = store.scan(after, 7).expect("the index reads");
        if page.is_empty() {
            return entries;
        }
        entries.extend(page);
    }
}

fn segment_files(path: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(path.join("segments")).expect("it is there");
    let mut files: Vec<_> = files.map(|file| file.expect("it is listed").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    files.sort();
    files
}

/// Makes it look as if the last run had not ended in good order.
fn unclean(path: &Path) {
    std::fs::remove_file(path.join("census")).expect("it was closed in good order");
}

/// Waits until `done`, with a bound that only a failure reaches.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: it did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A runtime like the daemon's.
fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made")
        .block_on(future)
}
