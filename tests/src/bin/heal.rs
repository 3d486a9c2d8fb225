//! What healing and removing cost (`scripts/heal.sh`): real daemons on the loopback, a `name=value` a line.
//!
//! ```text
//! heal lost NODES MEBIBYTES RATE_MEBIBYTES   one of them goes for good: what is moved for what was lost, and how long it
//!                                            takes beside the delay and the bytes at the repair rate
//! heal removed NODES MEBIBYTES GRACE         a tree is removed: when its room is back on every disk, and how fast adds and
//!                                            gets are meanwhile, beside the same before
//! ```
//!
//! Exit codes: 0 within the bounds that are printed, 1 not, 2 usage.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use p2p_tests::process::{Cluster, Daemon, Program, Scratch, placement, text, tree, until, wait::check};

const K: usize = 3;
const DELAY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(3600);
const MIB: u64 = 1 << 20;
/// What is moved for a byte that was lost, and how long it takes beside what it must.
const MOST_MOVED: f64 = 1.05;
const MOST_TIME: f64 = 1.3;
/// How fast adds and gets go on while a removal is carried out, and how long that takes after the grace.
const LEAST_SPEED: f64 = 0.8;
const FREED_AFTER: Duration = Duration::from_secs(120);
/// A file of the load beside a removal, and how long the load alone is measured.
const LOAD_BYTES: u64 = 8 * MIB;
const ALONE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u64> = words.iter().skip(1).filter_map(|word| word.parse().ok()).collect();
    let own = std::env::current_exe().unwrap_or_default().with_file_name("p2p-node-tested");
    // Lives as long as the process, which runs one measurement.
    let program = Program(Box::leak(own.to_string_lossy().into_owned().into_boxed_str()));
    let good = match (words.first().map(String::as_str), &numbers[..]) {
        (Some("lost"), [nodes @ 5..=50, mebibytes @ 1..=1_000_000, rate @ 1..=1_000_000]) => {
            lost(program, *nodes as usize, mebibytes * MIB, rate * MIB)
        }
        (Some("removed"), [nodes @ 4..=50, mebibytes @ 1..=1_000_000, grace @ 1..=1_000_000]) => {
            removed(program, *nodes as usize, mebibytes * MIB, Duration::from_secs(*grace))
        }
        _ => {
            eprintln!("usage: heal lost NODES MEBIBYTES RATE_MEBIBYTES | heal removed NODES MEBIBYTES GRACE_SECONDS");
            return ExitCode::from(2);
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Bytes of the transfer protocol that came to a node: payload, and what is said beside it.
fn received(node: &Daemon) -> u64 {
    node.status()["transfers"]["received_bytes"].as_u64().unwrap_or_default()
}

fn lost(program: Program, nodes: usize, bytes: u64, rate: u64) -> bool {
    let settings =
        ["--repair-delay".to_owned(), format!("{}s", DELAY.as_secs()), "--repair-rate".to_owned(), rate.to_string()];
    let mut cluster =
        Cluster::start_with(program, nodes, |_, options| options.capacity("20GiB").arguments(settings.clone()));
    let work = Scratch::new("heal");
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    let file = work.join("file");
    // Several files from several nodes; the one that goes adds nothing, so that it has no cached copies either.
    let piece = (64 * MIB).min(bytes);
    for number in 0..bytes.div_ceil(piece) {
        let adder = number as usize % (nodes - 1);
        tree::noise_file(&file, 900 + number, piece);
        let root = text(&cluster[adder].add(&file)["cid"]);
        let stat = cluster[adder].json(["stat", &root]);
        for row in stat["placement"].as_array().into_iter().flatten() {
            sizes.insert(text(&row["cid"]), row["size"].as_u64().unwrap_or_default());
        }
    }
    let chunks: Vec<String> = sizes.keys().cloned().collect();
    until("all is in its place", PATIENCE, || {
        let wrong = placement::misplaced(&cluster.nodes, &chunks, K);
        check(wrong.is_empty(), wrong.len())
    });
    let held = |nodes: &[Daemon]| -> Vec<BTreeSet<String>> {
        nodes.iter().map(|node| placement::held(node).into_keys().collect()).collect()
    };
    let (before, then): (Vec<_>, Vec<u64>) = (held(&cluster.nodes), cluster.nodes.iter().map(received).collect());
    let ids = cluster.peer_ids();
    let gone = nodes - 1;
    let lost_bytes: u64 = chunks.iter().filter(|cid| before[gone].contains(*cid)).map(|cid| sizes[cid]).sum();
    // Who takes which of it, and has it not: the largest share at the rate is how long it must take.
    let rest: Vec<&str> = ids[..gone].iter().map(String::as_str).collect();
    let mut shares = vec![0_u64; gone];
    for cid in chunks.iter().filter(|cid| before[gone].contains(*cid)) {
        let nearest = placement::closest(cid, rest.iter().copied(), K);
        for place in (0..gone).filter(|place| nearest.contains(&rest[*place]) && !before[*place].contains(cid)) {
            shares[place] += sizes[cid];
        }
    }
    let began = Instant::now();
    cluster.lose(gone);
    until("every chunk is on its k closest", PATIENCE, || {
        let stores = held(&cluster.nodes);
        let lacking = chunks.iter().find(|cid| {
            let nearest = placement::closest(cid, rest.iter().copied(), K);
            (0..gone).any(|place| nearest.contains(&rest[place]) && !stores[place].contains(*cid))
        });
        check(lacking.is_none(), format!("{lacking:?}"))
    });
    let took = began.elapsed().as_secs_f64();
    let moved: u64 = cluster.nodes.iter().zip(&then).map(|(node, then)| received(node) - then).sum();
    let largest = shares.iter().max().copied().unwrap_or_default();
    let must = largest as f64 / rate as f64;
    let share_of_lost = moved as f64 / lost_bytes as f64;
    let beside = (took - DELAY.as_secs_f64()) / must;
    println!("nodes={nodes}\nlost_bytes={lost_bytes}\nmoved_bytes={moved}\nmoved_per_lost={share_of_lost:.4}");
    println!("repair_delay_s={}\nlargest_share_bytes={largest}\nrepair_rate_bytes={rate}", DELAY.as_secs());
    println!("repair_s={took:.1}\nrepair_s_after_delay_per_share_at_rate={beside:.3}");
    println!("all_lost_at_rate_s={:.1}", lost_bytes as f64 / rate as f64);
    share_of_lost <= MOST_MOVED && beside <= MOST_TIME
}

/// Adds and gets one file after another until `done`: seconds a round, the middle one.
fn load(cluster: &Cluster, work: &Scratch, first: u64, mut done: impl FnMut() -> bool) -> Vec<(f64, f64)> {
    let mut rounds = Vec::new();
    let (file, copy) = (work.join("load"), work.join("load-copy"));
    for number in first.. {
        if done() {
            break;
        }
        tree::noise_file(&file, number, LOAD_BYTES);
        let began = Instant::now();
        let root = text(&cluster[0].add(&file)["cid"]);
        let added = began.elapsed().as_secs_f64();
        let began = Instant::now();
        cluster[1].get(&root, &copy);
        let got = began.elapsed().as_secs_f64();
        gone(&copy);
        rounds.push((added, got));
    }
    rounds
}

fn gone(path: &Path) {
    fs::remove_file(path).expect("what was written can be removed");
}

fn mean(seconds: impl Iterator<Item = f64>) -> f64 {
    let all: Vec<f64> = seconds.collect();
    all.iter().sum::<f64>() / all.len().max(1) as f64
}

fn removed(program: Program, nodes: usize, bytes: u64, grace: Duration) -> bool {
    let settings = ["--gc-grace".to_owned(), format!("{}s", grace.as_secs())];
    let cluster =
        Cluster::start_with(program, nodes, |_, options| options.capacity("40GiB").arguments(settings.clone()));
    let work = Scratch::new("removed");
    let (directory, mut number) = (work.join("tree"), 0);
    let piece = (16 * MIB).min(bytes);
    for place in 0..bytes.div_ceil(piece) {
        fs::create_dir_all(&directory).expect("a fresh directory takes another");
        tree::noise_file(&directory.join(place.to_string()), 10_000 + place, piece);
    }
    let root = text(&cluster[2].add(&directory)["cid"]);
    fs::remove_dir_all(&directory).expect("what was written can be removed");
    let disks = || -> u64 { cluster.nodes.iter().map(|node| on_disk(&node.data_dir().join("segments"))).sum() };
    let full = disks();

    let began = Instant::now();
    let alone = load(&cluster, &work, 20_000, || began.elapsed() >= ALONE);
    let with_load = disks();
    cluster[2].run(["rm", &root]).ok();
    let began = Instant::now();
    // What the load adds meanwhile is not freed: all but a twentieth of the tree's room, beyond what came.
    let copies = K as u64;
    let mut took = None;
    let beside = load(&cluster, &work, 30_000, || {
        number += 1;
        let expected = with_load + number * LOAD_BYTES * (copies + 1);
        let goal = expected.saturating_sub(bytes * copies * 19 / 20);
        let freed = disks() <= goal;
        if freed {
            took = Some(began.elapsed());
        }
        freed || began.elapsed() > grace + FREED_AFTER * 3
    });
    // The rounds of the grace are as those before.
    let adds = mean(alone.iter().map(|round| round.0)) / mean(beside.iter().map(|round| round.0));
    let gets = mean(alone.iter().map(|round| round.1)) / mean(beside.iter().map(|round| round.1));
    println!("nodes={nodes}\ntree_bytes={bytes}\ndisks_with_tree_bytes={full}\ndisks_afterwards_bytes={}", disks());
    println!("grace_s={}\nfreed_s={:.1}", grace.as_secs(), took.map_or(f64::INFINITY, |took| took.as_secs_f64()));
    println!("rounds_alone={}\nrounds_meanwhile={}", alone.len(), beside.len());
    println!("add_speed_of_alone={adds:.3}\nget_speed_of_alone={gets:.3}");
    took.is_some_and(|took| took <= grace + FREED_AFTER) && adds >= LEAST_SPEED && gets >= LEAST_SPEED
}

/// Bytes that the files of a directory take.
fn on_disk(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|kind| kind.len()).sum()
}
