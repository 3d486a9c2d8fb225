//! What it costs to compare what a node holds with what it should hold, at scale, by hand.
//!
//! ```text
//! bench-compare DIR CHUNKS PEERS
//! ```
//!
//! A store of CHUNKS chunks of 1 KiB that one publication lists with three copies, and the loop of a node of a network
//! of PEERS others, over the real table: a look at everything, and the comparison after each of three peers left. Prints
//! `name=value` lines: rows that were looked at, and seconds of CPU of the whole process. A second run in the same
//! directory finds it filled.

use std::{collections::BTreeSet, error::Error, path::Path, process::ExitCode, time::Instant};

use futures::{StreamExt as _, stream};
use libp2p::{PeerId, identity::Keypair};
use p2p_node::{service::wanted::Wanted, store::Store};
use p2p_protocol::{
    Chunk, Codec, Key,
    chance::Chance,
    duty::{Input, Keeper, Output, Reference, Said, Settings},
    machine::StateMachine as _,
    manifest::Entry,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Puts under way at once: more than a batch takes.
const UNDER_WAY: usize = 256;
const CHUNK_BYTES: usize = 1024;
const COPIES: u8 = 3;
/// Rows that are listed at once.
const PAGE: usize = 4096;
const HERE: Said = Said { storing: true, full: false, leaving: false };

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&words)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-compare: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String]) -> Outcome {
    let [directory, chunks, peers] = words else { return Err("usage: bench-compare DIR CHUNKS PEERS".into()) };
    let (chunks, peers): (u64, u8) = (chunks.parse()?, peers.parse()?);
    let store = Store::open(Path::new(directory), Some(1 << 50))?;
    let wanted = Wanted::open(store.clone())?;
    if !wanted.is_made() {
        wanted.make()?;
    }
    if store.usage().chunks < chunks {
        fill(&store, &wanted, chunks).await?;
    }
    let peers: Vec<PeerId> = (0..=peers).map(peer).collect::<Outcome<_>>()?;
    compare(&wanted, &peers)?;
    Ok(store.close().await?)
}

/// Distinct peers, the same in each run; any 32 bytes are an ed25519 secret key.
fn peer(seed: u8) -> Outcome<PeerId> {
    Ok(Keypair::ed25519_from_bytes([seed; 32])?.public().to_peer_id())
}

async fn fill(store: &Store, wanted: &Wanted, chunks: u64) -> Outcome {
    let began = (Instant::now(), cpu()?);
    let chunk = |number: u64| {
        let mut payload = vec![0; CHUNK_BYTES];
        blake3::Hasher::new().update(&number.to_be_bytes()).finalize_xof().fill(&mut payload);
        Chunk::new(Codec::Raw, payload)
    };
    let put = |number| async move { Ok::<_, Box<dyn Error>>(wanted.put(chunk(number)?).await?) };
    let mut puts = stream::iter(0..chunks).map(put).buffer_unordered(UNDER_WAY);
    while let Some(put) = puts.next().await {
        put?;
    }
    print("put_s", began.0.elapsed().as_secs_f64());
    print("put_cpu_s", cpu()? - began.1);
    let began = (Instant::now(), cpu()?);
    let mut after = None;
    loop {
        let page = store.scan(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(Key::from(&last.cid.hash));
        let entry = |cid, length| {
            let entry = Entry { cid, length };
            (entry.key(), entry)
        };
        let entries: Vec<_> = page.iter().map(|held| entry(held.cid, held.length)).collect();
        wanted.list(Reference { publication: 1, copies: COPIES }, &entries)?;
    }
    print("list_s", began.0.elapsed().as_secs_f64());
    print("list_cpu_s", cpu()? - began.1);
    Ok(())
}

fn compare(wanted: &Wanted, peers: &[PeerId]) -> Outcome {
    let [local, others @ ..] = peers else { return Err("there is nobody".into()) };
    // The machine's own time, so that delays cost nothing here.
    let mut now = Instant::now();
    let mut keeper = Keeper::new(*local, true, Settings::default(), now, wanted.moment(), Chance::new(1));
    keeper.handle(now, Input::MostCopies(COPIES));
    keeper.handle(now, Input::Space { used: 1, capacity: 1 << 40 });
    for peer in others {
        keeper.handle(now, Input::Heard(*peer));
        keeper.handle(now, Input::Said(*peer, HERE));
    }
    look("everything", wanted, &mut keeper, now)?;
    for (place, peer) in others.iter().take(3).enumerate() {
        keeper.handle(now, Input::Left(*peer, now));
        now += Settings::default().repair_delay * 9;
        // Those that are still here were heard meanwhile.
        others.iter().skip(place + 1).for_each(|peer| keeper.handle(now, Input::Heard(*peer)));
        keeper.handle_timeout(now);
        look(&format!("peer_{}_left", place + 1), wanted, &mut keeper, now)?;
    }
    Ok(())
}

/// Answers what the machine scans until it wants no more; all else is left unanswered.
fn look(what: &str, wanted: &Wanted, keeper: &mut Keeper, now: Instant) -> Outcome {
    let (began, started) = (cpu()?, Instant::now());
    let (mut rows, mut asked) = (0, BTreeSet::new());
    loop {
        while let Some(output) = keeper.poll_output() {
            match output {
                Output::Scan { scan, span } => {
                    let (found, ended) = wanted.scan(&span)?;
                    rows += found.len();
                    keeper.handle(now, Input::Rows { scan, rows: found, ended });
                }
                Output::Ask { request, entries, .. } => {
                    asked.extend(entries.iter().map(Entry::key));
                    let has = Some(vec![true; entries.len()]);
                    keeper.handle(now, Input::Holdings { request, has });
                }
                _ => {}
            }
        }
        match keeper.poll_timeout() {
            Some((at, _)) if at <= now => keeper.handle_timeout(now),
            _ => break,
        }
    }
    println!("{what}_rows={rows}");
    println!("{what}_asked={}", asked.len());
    print(&format!("{what}_cpu_s"), cpu()? - began);
    print(&format!("{what}_s"), started.elapsed().as_secs_f64());
    Ok(())
}

fn print(name: &str, figure: f64) {
    println!("{name}={figure:.3}");
}

/// Seconds of CPU that this process has taken, to a hundredth (proc_pid_stat(5): user and system time, in ticks of which
/// Linux has a hundred a second).
fn cpu() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in the line")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / 100.0)
}
