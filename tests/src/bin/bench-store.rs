//! The store at scale, by hand: what a million chunks cost in time, memory and disk. Each word is a run of its own, so
//! that its memory is its own; each prints `name=value` lines, seconds and MiB.
//!
//! ```text
//! bench-store fill DIR CHUNKS BYTES     puts CHUNKS chunks of BYTES, 256 under way
//! bench-store again DIR CHUNKS BYTES    the same once more: all are known, and read
//! bench-store open DIR                  opens it twice, with an orderly end between
//! ```

use std::{error::Error, fs, path::Path, process::ExitCode, time::Instant};

use futures::StreamExt as _;
use p2p_node::store::{Put, Role, Store, Terms};
use p2p_protocol::{Chunk, Codec};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Puts under way at once: more than a batch takes, as in an add of many small files.
const UNDER_WAY: usize = 256;
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
        _ => Err("usage: bench-store fill|again|open DIR …".into()),
    }
}

fn chunk(number: u64, bytes: usize) -> Outcome<Chunk> {
    let mut payload = vec![0; bytes];
    blake3::Hasher::new().update(&number.to_be_bytes()).finalize_xof().fill(&mut payload);
    Ok(Chunk::new(Codec::Raw, payload)?)
}

const TERMS: Terms = Terms { role: Role::Replica, wanted: 3, owed: false, root: None };

async fn fill(directory: &Path, chunks: u64, bytes: usize, expected: Put) -> Outcome {
    let started = Instant::now();
    let store = Store::open(directory, CAPACITY)?;
    print("open_s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let puts = futures::stream::iter(0..chunks).map(|number| {
        let store = store.clone();
        async move { Ok::<_, Box<dyn Error>>(store.put(chunk(number, bytes)?, TERMS).await?) }
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
