//! The store at scale, by hand: what a million chunks cost in time, memory and disk. Each word is a run of its own, so
//! that its memory is its own; each prints `name=value` lines, seconds and MiB.
//!
//! ```text
//! bench-store fill DIR CHUNKS BYTES     puts CHUNKS chunks of BYTES, 256 under way
//! bench-store again DIR CHUNKS BYTES    the same once more: all are known, and read
//! bench-store open DIR                  opens it twice, with an orderly end between
//! bench-store remove DIR CHUNKS BYTES EVERY   puts others for 5 s alone, then while every EVERYth of those that
//!                                       `fill` put is removed, then waits for the disk to have its room back
//! bench-store table DIR ENTRIES         makes a key table, changes it, scans it, makes it again
//! bench-store records DIR RECORDS       keeps, reads and removes records of 600 bytes
//! bench-store pass DIR                  reads every chunk
//! ```

use std::{error::Error, fs, path::Path, process::ExitCode, time::Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use p2p_node::store::{Edit, Merge, Put, Store, TableChange};
use p2p_protocol::{Chunk, Codec, Key};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Puts under way at once: more than a batch takes, as in an add of many small files.
const UNDER_WAY: usize = 256;
/// How long puts go on alone, to be compared with.
const ALONE: std::time::Duration = std::time::Duration::from_secs(5);
/// How long nothing changes once all is done: longer than two steps of a compaction are apart.
const QUIET: std::time::Duration = std::time::Duration::from_secs(3);
/// Nothing here is about capacity.
const CAPACITY: Option<u64> = Some(1 << 50);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&words)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-store: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String]) -> Outcome {
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fill", directory, chunks, bytes] => {
            fill(Path::new(directory), chunks.parse()?, bytes.parse()?, Put::New).await
        }
        ["again", directory, chunks, bytes] => {
            fill(Path::new(directory), chunks.parse()?, bytes.parse()?, Put::Known).await
        }
        ["open", directory] => open(Path::new(directory)).await,
        ["remove", directory, chunks, bytes, every] => {
            remove(Path::new(directory), chunks.parse()?, bytes.parse()?, every.parse()?).await
        }
        ["table", directory, entries] => table(Path::new(directory), entries.parse()?).await,
        ["records", directory, count] => records(Path::new(directory), count.parse()?).await,
        ["pass", directory] => pass(Path::new(directory)).await,
        _ => Err("usage: bench-store fill|again|open|remove|table|records|pass DIR …".into()),
    }
}

fn chunk(number: u64, bytes: usize) -> Outcome<Chunk> {
    let mut payload = vec![0; bytes];
    blake3::Hasher::new().update(&number.to_be_bytes()).finalize_xof().fill(&mut payload);
    Ok(Chunk::new(Codec::Raw, payload)?)
}

async fn fill(directory: &Path, chunks: u64, bytes: usize, expected: Put) -> Outcome {
    let started = Instant::now();
    let store = Store::open(directory, CAPACITY)?;
    print("open_s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let puts = futures::stream::iter(0..chunks).map(|number| {
        let store = store.clone();
        async move { Ok::<_, Box<dyn Error>>(store.put(chunk(number, bytes)?).await?) }
    });
    let mut puts = puts.buffer_unordered(UNDER_WAY);
    while let Some(put) = puts.next().await {
        if put? != expected {
            return Err("it was here, or was not, against what was said".into());
        }
    }
    print("put_s", started.elapsed().as_secs_f64());
    print("peak_mib", memory("VmHWM")?);
    print("resident_mib", memory("VmRSS")?);
    let started = Instant::now();
    store.close().await?;
    print("close_s", started.elapsed().as_secs_f64());
    print("index_mib", size(&directory.join("index"))?);
    Ok(())
}

async fn open(directory: &Path) -> Outcome {
    for round in ["first", "second"] {
        let started = Instant::now();
        let store = Store::open(directory, CAPACITY)?;
        print(&format!("{round}_open_s"), started.elapsed().as_secs_f64());
        print(&format!("{round}_resident_mib"), memory("VmRSS")?);
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        print(&format!("{round}_at_rest_mib"), memory("VmRSS")?);
        println!("{round}_chunks={}", store.usage().chunks);
        let started = Instant::now();
        store.close().await?;
        print(&format!("{round}_close_s"), started.elapsed().as_secs_f64());
    }
    print("peak_mib", memory("VmHWM")?);
    Ok(())
}

/// Puts chunks that nobody has until `done`; gives how many a second.
async fn put_until(store: &Store, from: u64, bytes: usize, done: impl Fn() -> bool) -> Outcome<f64> {
    let started = Instant::now();
    let numbers = (from..).take_while(|_| !done());
    let puts = futures::stream::iter(numbers)
        .map(|number| async move { Ok::<_, Box<dyn Error>>(store.put(chunk(number, bytes)?).await?) });
    let mut puts = puts.buffer_unordered(UNDER_WAY);
    let mut count = 0;
    while let Some(put) = puts.next().await {
        put?;
        count += 1;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

async fn remove(directory: &Path, chunks: u64, bytes: usize, every: usize) -> Outcome {
    let store = Store::open(directory, CAPACITY)?;
    let hashes =
        (0..chunks).step_by(every).map(|number| Ok(chunk(number, bytes)?.cid().hash)).collect::<Outcome<Vec<_>>>()?;
    let before = memory("VmRSS")?;
    let started = Instant::now();
    print("puts_alone_per_s", put_until(&store, chunks, bytes, || started.elapsed() >= ALONE).await?);
    print("segments_before_mib", size(&directory.join("segments"))?);
    let removed = std::sync::atomic::AtomicBool::new(false);
    let started = Instant::now();
    let removing = async {
        let outcome = store.remove(hashes).await;
        removed.store(true, std::sync::atomic::Ordering::SeqCst);
        outcome
    };
    let done = || removed.load(std::sync::atomic::Ordering::SeqCst);
    let (outcome, puts) = tokio::join!(removing, put_until(&store, 2 * chunks + (1 << 32), bytes, done));
    let outcome = outcome?;
    print("remove_s", started.elapsed().as_secs_f64());
    print("puts_beside_per_s", puts?);
    print("freed_mib", outcome.bytes as f64 / f64::from(1 << 20));
    print("memory_mib", memory("VmHWM")? - before);
    let (started, mut changed) = (Instant::now(), Instant::now());
    let mut last = size(&directory.join("segments"))?;
    // Until the compaction has found nothing more to do for a while.
    while changed.elapsed() < QUIET {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = size(&directory.join("segments"))?;
        if (now - last).abs() > 1.0 {
            (last, changed) = (now, Instant::now());
        }
    }
    print("room_back_s", (changed - started).as_secs_f64());
    print("live_mib", store.usage().bytes as f64 / f64::from(1 << 20));
    print("segments_mib", size(&directory.join("segments"))?);
    Ok(store.close().await?)
}

async fn table(directory: &Path, entries: u64) -> Outcome {
    let store = Store::open(directory, CAPACITY)?;
    let table = store.key_table();
    let mut keys: Vec<Key> = (0..entries).map(|number| Key(*blake3::hash(&number.to_be_bytes()).as_bytes())).collect();
    keys.sort_unstable();
    let value = Bytes::from(vec![7; 24]);
    for round in ["first", "second"] {
        let started = Instant::now();
        let mut rebuild = table.rebuild()?;
        for key in &keys {
            rebuild.push(*key, value.clone())?;
        }
        rebuild.finish(&[])?;
        print(&format!("{round}_rebuild_s"), started.elapsed().as_secs_f64());
    }
    let generation = table.generation()?.ok_or("it was just made")?;
    let started = Instant::now();
    for part in keys.chunks(1024).step_by(16).flat_map(|leaf| leaf.chunks(32)) {
        let add: Merge = |current, operand| current.map(|current| [&current[..23], operand].concat());
        let entries = part.iter().map(|key| (*key, Edit::Merge(add, Bytes::from_static(&[1])))).collect();
        let notes = vec![(Bytes::from_static(b"progress"), Some(Bytes::from_static(b"here")))];
        table.apply(&TableChange { generation, entries, notes })?;
    }
    table.flush().await?;
    print("change_a_sixteenth_s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let (mut after, mut found) = (std::ops::Bound::Unbounded, 0);
    loop {
        let page = table.range((after, std::ops::Bound::Unbounded), 1024)?;
        let Some((last, _)) = page.last() else { break };
        after = std::ops::Bound::Excluded(*last);
        found += page.len();
    }
    print("scan_s", started.elapsed().as_secs_f64());
    println!("entries={found}");
    print("peak_mib", memory("VmHWM")?);
    store.close().await?;
    print("index_mib", size(&directory.join("index"))?);
    Ok(())
}

async fn records(directory: &Path, count: u64) -> Outcome {
    let store = Store::open(directory, CAPACITY)?;
    let key = |number: u64| Bytes::copy_from_slice(blake3::hash(&number.to_be_bytes()).as_bytes());
    for (word, value) in [("put", Some(Bytes::from(vec![7; 600]))), ("remove", None)] {
        let started = Instant::now();
        for first in (0..count).step_by(4096) {
            let part = (first..count.min(first + 4096)).map(|number| (key(number), value.clone())).collect();
            store.change_records(part).await?;
        }
        print(&format!("{word}_s"), started.elapsed().as_secs_f64());
        let started = Instant::now();
        let (mut after, mut found): (Option<Bytes>, _) = (None, 0);
        loop {
            let page = store.records(b"", after.as_deref(), 256)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            found += page.len();
        }
        print(&format!("scan_after_{word}_s"), started.elapsed().as_secs_f64());
        println!("records_after_{word}={found}");
        print("peak_mib", memory("VmHWM")?);
    }
    store.close().await?;
    print("index_mib", size(&directory.join("index"))?);
    Ok(())
}

async fn pass(directory: &Path) -> Outcome {
    let store = Store::open(directory, CAPACITY)?;
    let before = memory("VmRSS")?;
    let started = Instant::now();
    let (mut position, mut chunks, mut bytes) = (None, 0, 0);
    loop {
        let step = store.read_pass(position, 4 << 20).await?;
        chunks += step.chunks;
        bytes += step.bytes;
        position = step.next;
        if position.is_none() {
            break;
        }
    }
    print("pass_s", started.elapsed().as_secs_f64());
    println!("chunks={chunks}");
    print("mib", bytes as f64 / f64::from(1 << 20));
    print("memory_mib", memory("VmHWM")? - before);
    Ok(store.close().await?)
}

fn print(name: &str, figure: f64) {
    println!("{name}={figure:.3}");
}

/// A figure of this process's memory, in MiB: `VmRSS` is now, `VmHWM` the most so far.
fn memory(name: &str) -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()).ok_or("no such line")?.parse()?;
    Ok(kib / 1024.0)
}

/// MiB of the files in a directory and those below it.
fn size(directory: &Path) -> Outcome<f64> {
    let mut total = 0.0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        total += match entry.metadata()? {
            found if found.is_dir() => size(&entry.path())?,
            found => found.len() as f64 / f64::from(1 << 20),
        };
    }
    Ok(total)
}
