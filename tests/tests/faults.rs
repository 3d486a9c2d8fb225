//! What goes wrong by itself: processes killed at any moment, damaged files, full disks.
//!
//! What needs root or a tool that is not there is reported as ignored, with the reason.

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use p2p_tests::process::{
    Cluster, Daemon, LONG, Output, Program, Scratch,
    mounts::SmallDisk,
    placement, text, tree, until, utf8,
    wait::{any_moment, check},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

/// Rounds of killing: each is an add, a kill, a restart and a look at everything that was acknowledged.
const ROUNDS: usize = 15;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(4).min(4));
    let trials = vec![
        always("killed_at_any_moment_a_node_has_all_that_was_acknowledged", killed_at_any_moment),
        always("a_lost_index_is_built_again", a_lost_index),
        always("damaged_bytes_are_noticed_never_served_and_come_back", damaged_bytes),
        always("a_damaged_file_is_not_whole_where_nobody_else_has_it", damaged_and_alone),
        always("a_damaged_copy_is_written_anew_when_its_file_is_added_again", added_again),
        Trial::ignorable_test("a_power_cut_of_a_real_file_system_loses_nothing_that_was_acknowledged", a_power_cut),
        always("a_torn_end_of_the_log_costs_nothing_that_was_acknowledged", a_torn_tail),
        Trial::ignorable_test("a_full_disk_is_exit_code_6_and_the_daemon_goes_on", a_full_disk),
        Trial::ignorable_test("an_output_on_a_full_disk_leaves_nothing_under_its_name", a_full_output),
        always("a_full_store_is_exit_code_6_and_the_next_nearest_takes_the_copy", a_full_store),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn always(name: &str, body: fn()) -> Trial {
    Trial::test(name, move || -> Result<(), Failed> {
        body();
        Ok(())
    })
}

// --- Killing.

fn killed_at_any_moment() {
    let seed = rand::random::<u64>();
    let seed = std::env::var("P2P_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(seed);
    println!("killed_at_any_moment: P2P_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(NODE, 3);
    // Where others look for it: nodes that are killed again and again before they could say that they moved cannot be found.
    cluster.nodes.iter_mut().for_each(Daemon::stay_put);
    let work = Scratch::new("killing");
    let mut acknowledged: Vec<(PathBuf, String, u64)> = Vec::new();
    for round in 0..ROUNDS {
        let file = work.join(format!("file-{round}"));
        tree::noise_file(&file, seed ^ round as u64, random.random_range(1..5 << 20));
        let (adder, victim) = (random.random_range(0..3), random.random_range(0..3));
        let command = {
            let mut command = cluster[adder].command(["add", utf8(&file), "--json"]);
            command.env("P2P_TEST_ROUND", round.to_string());
            command
        };
        let adding = std::thread::spawn(move || Output::of(command));
        any_moment(&mut random, Duration::from_millis(500));
        cluster[victim].kill();
        let output = adding.join().expect("running a command does not panic");
        // Done, cut off by the death of its daemon, or short of a copy by the death of a peer: nothing else.
        assert!(matches!(output.code, 0 | 1 | 3 | 5), "round {round}: {output}");
        if let Some(line) = output.json_lines().into_iter().find(|line| line.get("cid").is_some()) {
            let copies = line["replicas"]["min"].as_u64().expect("a number");
            acknowledged.push((file, text(&line["cid"]), copies));
        }
        cluster[victim].restart();
        cluster.meet();
        for (file, root, copies) in &acknowledged {
            let asked = random.random_range(0..3);
            let stat = cluster[asked].json(["stat", root]);
            let min = stat["replicas"]["min"].as_u64().expect("a number");
            assert!(min >= *copies, "round {round}: {copies} copies were acknowledged and {min} are there: {stat}");
            if random.random_range(0..3) == 0 {
                cluster[asked].gives(root, file);
            }
        }
    }
    assert!(!acknowledged.is_empty(), "no add was ever acknowledged: this shows nothing");
    for (file, root, _) in &acknowledged {
        cluster.nodes.iter().for_each(|node| node.gives(root, file));
    }
}

// --- Damage.

/// Files below a data directory, the largest first.
fn files(directory: &Path) -> Vec<(u64, PathBuf)> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let entry = entry.expect("a directory that opened lists");
            let kind = entry.metadata().expect("it was listed");
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                found.push((kind.len(), entry.path()));
            }
        }
    }
    found.sort();
    found.reverse();
    found
}

/// The directory of the index: sled's, which has a file named `db`.
fn index(node: &Daemon) -> PathBuf {
    let found = files(node.data_dir()).into_iter().find(|(_, path)| path.file_name().is_some_and(|name| name == "db"));
    let (_, db) = found.expect("a store has an index");
    db.parent().expect("a file is in a directory").to_owned()
}

/// The file in which `needle` stands outside the index, and where.
fn find(node: &Daemon, needle: &[u8]) -> (PathBuf, u64) {
    let index = index(node);
    for (_, path) in files(node.data_dir()) {
        if path.starts_with(&index) {
            continue;
        }
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            return (path, at as u64);
        }
    }
    panic!("no file of the store has these bytes");
}

fn a_lost_index() {
    let mut node = NODE.daemon().start();
    let work = Scratch::new("index");
    let (file, named) = (work.join("file"), work.join("named"));
    let root = node.keep(&file, 201, 5 << 20);
    tree::grow(&named, 202, 20);
    let tree_root = text(&node.json(["add", utf8(&named), "--name", "kept"])["cid"]);
    let before = placement::held(&node);
    for damage in ["removed", "garbage", "truncated"] {
        node.kill();
        let index = index(&node);
        match damage {
            "removed" => fs::remove_dir_all(&index).expect("it is ours"),
            "garbage" => fs::write(index.join("db"), tree::noise(203, 1 << 20)).expect("it is ours"),
            _ => {
                let db = fs::OpenOptions::new().write(true).open(index.join("db")).expect("it is ours");
                let length = db.metadata().expect("it is open").len();
                db.set_len(length / 2).expect("it is ours");
            }
        }
        let said = node.log().len();
        node.restart();
        let log = node.log()[said..].to_owned();
        // Of a file that was cut the index may have lost nothing but room, or what the log's end gives back.
        assert!(log.contains("index") || damage == "truncated", "{damage}: it does not say what it did: {log}");
        assert!(!log.contains("panicked"), "{damage}: {log}");
        // What each is to the node is known again once the catalogue was read.
        until("it holds what it held", LONG, || {
            let held = placement::held(&node);
            check(held == before, format!("{damage}: {held:?}"))
        });
        node.gives(&root, &file);
        node.gives(&tree_root, &named);
        // Its own publications cannot come back from anybody else.
        node.gives("kept", &named);
    }
}

/// Three nodes with a file, two of whose chunks are damaged at the second; the file, and its root.
fn with_damage(work: &Scratch) -> (Cluster, PathBuf, String) {
    let mut cluster = Cluster::start(NODE, 3);
    let file = work.join("file");
    let root = cluster[0].keep(&file, 211, 4 << 20);
    let bytes = fs::read(&file).expect("it is ours");
    cluster[1].kill();
    for at in [100_000, (2 << 20) + 5000] {
        let (segment, offset) = find(&cluster[1], &bytes[at..at + 64]);
        let mut segment = fs::OpenOptions::new().write(true).open(segment).expect("it is ours");
        segment.seek(SeekFrom::Start(offset)).expect("it is a file");
        segment.write_all(b"damaged by a failing disk").expect("it is ours");
    }
    cluster[1].restart();
    cluster.meet();
    (cluster, file, root)
}

fn added_again() {
    let work = Scratch::new("again");
    let (mut cluster, file, root) = with_damage(&work);
    let line = cluster[0].add(&file);
    assert_eq!((text(&line["cid"]), line["replicas"]["min"].as_u64()), (root.clone(), Some(3)), "{line}");
    // Alone, it has all of it.
    cluster[0].kill();
    cluster[2].kill();
    cluster[1].gives(&root, &file);
}

fn a_power_cut() -> Result<Completion, Failed> {
    let work = Scratch::new("power");
    let (image, cut) = (work.join("image"), work.join("cut"));
    fs::File::create(&image).and_then(|file| file.set_len(256 << 20)).expect("it is ours");
    let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).output();
    if !made.is_ok_and(|made| made.status.success()) {
        return Ok(Completion::ignored_with("a file system in a file needs mkfs.ext4"));
    }
    let disk = match SmallDisk::image(&image) {
        Ok(disk) => disk,
        Err(reason) => return Ok(Completion::ignored_with(reason)),
    };
    let mut node = disk.on(NODE.daemon()).start();
    let files: Vec<(PathBuf, String)> = (0..3)
        .map(|number| {
            let file = work.join(format!("file-{number}"));
            let root = node.keep(&file, 260 + number, (3 << 20) + 1000 * number);
            (file, root)
        })
        .collect();
    // What the file system has given to its disk by now; the rest is only in memory.
    fs::copy(&image, &cut).expect("there is room");
    node.kill();
    drop((node, disk));
    let disk = SmallDisk::image(&cut).expect("another could be mounted before");
    let node = disk.on(NODE.daemon()).start();
    for (file, root) in &files {
        node.gives(root, file);
    }
    assert_eq!(node.json_lines(["ls"]).len(), files.len());
    assert!(!node.log().contains("index"), "the index was there, and fits: {}", node.log());
    Ok(Completion::Completed)
}

fn damaged_bytes() {
    let work = Scratch::new("damage");
    let (mut cluster, file, root) = with_damage(&work);
    // Whoever is asked, and whoever is first asked for the chunks, gives the right bytes.
    cluster.nodes.iter().for_each(|node| node.gives(&root, &file));
    let log = cluster[1].log();
    assert!(log.contains("damaged") || log.contains("set aside"), "it does not say so: {log}");
    // What is damaged comes back from a holder, and then it gives everything alone.
    until("nothing is damaged any more", LONG * 3, || {
        let status = cluster[1].status();
        check(status["damaged"] == 0 && status["replication"]["missing"] == 0, status)
    });
    cluster[0].kill();
    cluster[2].kill();
    cluster[1].gives(&root, &file);
}

fn damaged_and_alone() {
    let work = Scratch::new("damage-alone");
    let (mut cluster, _, root) = with_damage(&work);
    let other = work.join("other");
    let other_root = cluster[1].keep(&other, 212, 1 << 20);
    cluster[0].kill();
    cluster[2].kill();
    // Alone it has less, says so, and serves what is whole.
    cluster[1].gives(&other_root, &other);
    let target = work.join("not-whole");
    cluster[1].run_json(["get", &root, "-o", utf8(&target)]).failure(4, "not_found");
    assert!(!target.exists());
    assert!(cluster[1].status()["damaged"].as_u64().expect("a number") > 0);
}

fn a_torn_tail() {
    let mut node = NODE.daemon().start();
    let work = Scratch::new("torn");
    let (first, last) = (work.join("first"), work.join("last"));
    let root = node.keep(&first, 221, 3 << 20);
    node.kill();
    let before = fs::read(&first).expect("it is ours");
    let (segment, _) = find(&node, &before[..64]);
    // What a crash leaves of a batch that was never acknowledged: half a record, or blocks that were never written.
    for rubbish in [tree::noise(222, 5000), vec![0; 70_000], fs::read(&segment).expect("it is ours")[..1000].to_vec()] {
        let mut log = fs::OpenOptions::new().append(true).open(&segment).expect("it is ours");
        log.write_all(&rubbish).expect("it is ours");
        drop(log);
        node.restart();
        node.gives(&root, &first);
        let last_root = node.keep(&last, 223, 1 << 20);
        node.kill();
        node.restart();
        node.gives(&root, &first);
        node.gives(&last_root, &last);
        node.kill();
    }
}

// --- No room.

fn a_full_disk() -> Result<Completion, Failed> {
    // The store leaves 64 MiB to others; half of the rest is taken by a large file before it is too much.
    let disk = match SmallDisk::new(96) {
        Ok(disk) => disk,
        Err(reason) => return Ok(Completion::ignored_with(reason)),
    };
    let work = Scratch::new("full");
    let mut node = disk.on(NODE.daemon()).start();
    let small = work.join("small");
    let kept = node.keep(&small, 231, 2 << 20);
    let large = work.join("large");
    tree::noise_file(&large, 232, 64 << 20);
    let message = node.run_json(["add", utf8(&large)]).failure(6, "refused");
    assert!(message.to_lowercase().contains("space"), "{message}");
    assert!(node.is_alive(), "{}", node.log());
    node.gives(&kept, &small);
    assert_eq!(node.json_lines(["ls"]).len(), 1, "what did not fit was published");
    // Opening needs no more room than there is.
    node.kill();
    node.restart();
    node.gives(&kept, &small);
    assert!(node.terminate().0.success(), "{}", node.log());
    Ok(Completion::Completed)
}

fn a_full_output() -> Result<Completion, Failed> {
    let disk = match SmallDisk::new(8) {
        Ok(disk) => disk,
        Err(reason) => return Ok(Completion::ignored_with(reason)),
    };
    let work = Scratch::new("output");
    let node = disk.seen_by(NODE.daemon()).start();
    let file = work.join("file");
    let root = node.keep(&file, 241, 20 << 20);
    let target = disk.path().join("target");
    let message = node.run_json(["get", &root, "-o", utf8(&target)]).failure(6, "refused");
    assert!(message.to_lowercase().contains("space"), "{message}");
    let (listed, names) = disk.shell("ls");
    assert!(listed && !names.lines().any(|name| name == "target"), "{names}");
    node.gives(&root, &file);
    Ok(Completion::Completed)
}

fn a_full_store() {
    let work = Scratch::new("capacity");
    let node = NODE.daemon().capacity("4MiB").start();
    let small = work.join("small");
    let kept = node.keep(&small, 251, 1 << 20);
    let large = work.join("large");
    tree::noise_file(&large, 252, 12 << 20);
    let message = node.run_json(["add", utf8(&large)]).failure(6, "refused");
    assert!(message.to_lowercase().contains("space") || message.contains("capacity"), "{message}");
    node.gives(&kept, &small);
    assert_eq!(node.json_lines(["ls"]).len(), 1, "what did not fit was published");
    assert!(node.status()["bytes"].as_u64().expect("bytes") <= 4 << 20);
    drop(node);

    // One of four is small: the fourth takes what it refuses.
    let cluster =
        Cluster::start_with(NODE, 4, |place, options| if place == 3 { options.capacity("2MiB") } else { options });
    let line = cluster[0].add(&large);
    assert_eq!(line["replicas"]["min"], 3, "{line}");
    assert!(cluster[3].status()["bytes"].as_u64().expect("bytes") <= 2 << 20);
    cluster[3].gives(&text(&line["cid"]), &large);
}
