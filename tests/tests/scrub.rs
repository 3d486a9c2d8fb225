//! Every chunk is read again: what a disk damaged is found, never given to anybody, and comes back from who has it.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use p2p_tests::process::{Cluster, Daemon, LONG, Program, Scratch, placement, text, tree, until, utf8, wait::check};
use serde_json::Value;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
const MIB: u64 = 1 << 20;
/// A pass by itself comes when its time has come.
const PATIENCE: Duration = Duration::from_secs(240);

/// Turns one bit over in each of these chunks of a file, which begin at these places in it, in the segments of a node.
#[track_caller]
fn flip(node: &Daemon, file: &Path, places: &[u64]) {
    let bytes = fs::read(file).expect("it is ours");
    for place in places {
        let needle = &bytes[*place as usize..][..64];
        let (segment, offset) = find(node, needle);
        let mut segment = fs::OpenOptions::new().read(true).write(true).open(segment).expect("it is ours");
        let mut byte = [0];
        segment.seek(SeekFrom::Start(offset + 20)).expect("it is a file");
        segment.read_exact(&mut byte).expect("it is as long as that");
        segment.seek(SeekFrom::Start(offset + 20)).expect("it is a file");
        segment.write_all(&[byte[0] ^ 0x10]).expect("it is ours");
    }
}

/// The segment in which these bytes stand, and where; `None`: no segment has them.
#[track_caller]
fn look_for(node: &Daemon, needle: &[u8]) -> Option<(PathBuf, u64)> {
    let segments = node.data_dir().join("segments");
    for entry in fs::read_dir(&segments).unwrap_or_else(|error| panic!("{}: {error}", segments.display())) {
        let path = entry.expect("a directory that opened lists").path();
        let bytes = fs::read(&path).expect("it reads");
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            return Some((path, at as u64));
        }
    }
    None
}

#[track_caller]
fn find(node: &Daemon, needle: &[u8]) -> (PathBuf, u64) {
    look_for(node, needle).expect("a segment has these bytes")
}

#[track_caller]
fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// Damaged, repaired, missing.
#[track_caller]
fn found(verified: &Value) -> (u64, u64, u64) {
    assert!(verified["seconds"].as_f64().is_some_and(|seconds| seconds >= 0.0), "{verified}");
    (number(verified, "damaged"), number(verified, "repaired"), number(verified, "missing"))
}

/// The number behind `name=` in the last line of a log that says `what`, if there is one.
fn logged(log: &str, what: &str, name: &str) -> Option<u64> {
    let line = log.lines().rfind(|line| line.contains(what))?;
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    value.parse().ok()
}

#[test]
fn verify_finds_what_is_damaged_and_it_comes_back_from_who_has_it() {
    let mut cluster = Cluster::start_with(NODE, 3, |_, options| options.arguments(["--scrub-period", "0"]));
    let work = Scratch::new("verify");
    let file = work.join("file");
    let root = cluster[0].keep(&file, 801, 5 * MIB);
    let held = placement::held(&cluster[1]).len() as u64;
    let clean = cluster[1].json(["verify"]);
    assert_eq!((number(&clean, "chunks"), found(&clean)), (held, (0, 0, 0)));
    let status = cluster[1].status();
    assert_eq!(number(&clean, "bytes"), number(&status, "bytes"), "it read everything");

    flip(&cluster[1], &file, &[2 * MIB]);
    // Whoever reads meanwhile, of whomever: right bytes.
    cluster.nodes.iter().for_each(|node| node.gives(&root, &file));
    flip(&cluster[1], &file, &[0, 4 * MIB]);
    let verified = cluster[1].json(["verify"]);
    let (damaged, repaired, missing) = found(&verified);
    // The first was met by those who read, and may be whole again by now.
    assert!((2..=3).contains(&damaged) && repaired == damaged && missing == 0, "{verified}");
    assert_eq!(placement::held(&cluster[1]).len() as u64, held);
    assert_eq!(cluster[1].status()["damaged"], 0);
    let log = cluster[1].log();
    // An audit may have met one of the two before it came there.
    assert!(logged(&log, "every chunk was read again", "damaged") >= Some(1), "{log}");

    flip(&cluster[2], &file, &[MIB]);
    let page = cluster[2].run(["verify"]).ok().text();
    assert!(page.contains("1, of which 1 made good"), "{page}");
    // Alone, it has all of it.
    cluster[0].kill();
    cluster[1].kill();
    cluster[2].gives(&root, &file);
}

#[test]
fn what_was_removed_is_overwritten_where_it_shares_a_segment_with_what_stays() {
    let settings = ["--scrub-period", "0", "--gc-grace", "1s"];
    let mut cluster = Cluster::start_with(NODE, 2, |_, options| options.arguments(settings));
    let work = Scratch::new("erased");
    let (gone, stays) = (work.join("gone"), work.join("stays"));
    let root = cluster[0].keep(&gone, 803, MIB + 1000);
    let kept = cluster[0].keep(&stays, 804, 6 * MIB);
    let bytes = fs::read(&gone).expect("it is ours");
    // Of its first chunk and of its second.
    let needles = [&bytes[500_000..500_064], &bytes[MIB as usize + 500..][..64]];
    let left = |node: &Daemon| needles.iter().filter(|needle| look_for(node, needle).is_some()).count();
    assert_eq!(left(&cluster[1]), 2, "it is on both");
    cluster[0].run(["rm", &root]).ok();
    let all: BTreeSet<String> = placement::chunks(&cluster[0], &kept).into_iter().collect();
    until("it is freed", PATIENCE, || {
        cluster[1].run(["gc"]).ok();
        let held: BTreeSet<String> = placement::held(&cluster[1]).into_keys().collect();
        check(held == all, format!("{} of {}", held.len(), all.len()))
    });
    assert_eq!(left(&cluster[1]), 2, "what is freed is not gone yet: else this shows nothing");
    assert_eq!(found(&cluster[1].json(["verify"])), (0, 0, 0));
    assert_eq!(left(&cluster[1]), 0, "nobody reads it from the disk");
    // Also where the index is made again from the log, and alone.
    cluster[1].kill();
    fs::remove_dir_all(cluster[1].data_dir().join("index")).expect("it is there");
    cluster[1].restart();
    cluster[1].gives(&kept, &stays);
    let log = cluster[1].log();
    assert!(log.contains("the index is missing") && !log.contains("do not match"), "it is no damage: {log}");
    assert_eq!(found(&cluster[1].json(["verify"])), (0, 0, 0));
    cluster[0].kill();
    cluster[1].gives(&kept, &stays);
}

#[test]
fn what_nobody_has_any_more_is_said_with_what_to_do_and_comes_when_they_are_back() {
    let mut cluster = Cluster::start_with(NODE, 2, |_, options| options.arguments(["--scrub-period", "0"]));
    let work = Scratch::new("alone");
    let file = work.join("file");
    let root = cluster[0].keep(&file, 802, 3 * MIB);
    cluster.nodes.iter_mut().for_each(Daemon::stay_put);
    cluster[0].kill();
    flip(&cluster[1], &file, &[MIB + 500]);
    let output = cluster[1].run_json(["verify"]).expect(1);
    assert_eq!(found(&output.json()), (1, 0, 1), "{output}");
    for says in ["1 chunk is damaged here", "1 chunk is missing that should be here", "p2p-node peers"] {
        assert!(output.stderr.contains(says), "it does not say {says:?}: {output}");
    }
    // No wrong byte is given.
    let copy = work.join("copy");
    assert_eq!(cluster[1].run(["get", &root, "-o", utf8(&copy)]).code, 4);
    assert!(!copy.exists());
    assert_eq!(cluster[1].status()["damaged"], 1);
    cluster[0].restart();
    cluster.meet();
    let verified = cluster[1].json(["verify"]);
    let (damaged, repaired, missing) = found(&verified);
    // It may have come before anybody asked.
    assert!(damaged <= 1 && repaired == damaged && missing == 0, "{verified}");
    cluster[0].kill();
    cluster[1].gives(&root, &file);
}

#[test]
fn damage_is_found_and_made_good_without_anybody_asking() {
    let mut cluster = Cluster::start_with(NODE, 3, |place, options| {
        // The one that is damaged reads by itself.
        options.arguments(["--scrub-period", if place == 1 { "6s" } else { "0" }])
    });
    let work = Scratch::new("unasked");
    let file = work.join("file");
    let root = cluster[0].keep(&file, 803, 4 * MIB);
    until("a pass read everything", PATIENCE, || {
        let log = cluster[1].log();
        check(logged(&log, "every chunk was read again", "chunks") >= Some(5), log)
    });
    // An audit may meet one before the pass comes there, and rarely both: what is asked is that a pass finds any.
    let by_pass = (1..=8).find(|round| {
        flip(&cluster[1], &file, &[0, 3 * MIB]);
        until("both are found and whole again", PATIENCE, || {
            let (log, status) = (cluster[1].log(), cluster[1].status());
            let met = log.matches("a chunk is damaged and was set aside").count();
            let whole = status["damaged"] == 0 && status["replication"]["missing"] == 0;
            check(met >= 2 * round && whole, format!("{status}\n{log}"))
        });
        let log = cluster[1].log();
        let passes = log.lines().filter(|line| line.contains("every chunk was read again"));
        passes.filter_map(|line| logged(line, "every", "damaged")).sum::<u64>() > 0
    });
    assert!(by_pass.is_some(), "no pass found any: {}", cluster[1].log());
    cluster[0].kill();
    cluster[2].kill();
    cluster[1].gives(&root, &file);
}

#[test]
fn a_pass_goes_on_after_a_kill_where_it_was() {
    let mut node = NODE.daemon().environment("P2P_NODE_SCRUB_PERIOD", "0").start();
    let work = Scratch::new("resumed");
    let file = work.join("file");
    node.keep(&file, 804, 14 * MIB);
    let all = placement::held(&node).len() as u64;
    assert_eq!(logged(&node.log(), "read again", "chunks"), None, "never is never");
    // A pass with half a month for it reads a MiB a second.
    node.terminate();
    *node.options() = node.options().clone().environment("P2P_NODE_SCRUB_PERIOD", "30d");
    node.restart();
    let done = |node: &Daemon| {
        let status = node.status();
        let work = status["work"].as_array().cloned().unwrap_or_default();
        work.iter().find(|work| work["name"] == "scrub" && work["state"] == "working").map(|work| number(work, "done"))
    };
    until("more than half of it is read", PATIENCE, || {
        let done = done(&node);
        check(done >= Some(9 * MIB), format!("{done:?}"))
    });
    node.kill();
    let before = node.log().len();
    node.restart();
    until("the pass is over", PATIENCE, || {
        let log = node.log()[before..].to_owned();
        check(log.contains("every chunk was read again"), log)
    });
    let log = node.log()[before..].to_owned();
    let resumed = logged(&log, "goes on where it was", "chunks").unwrap_or_else(|| panic!("it began anew: {log}"));
    assert!((1..all).contains(&resumed), "{resumed} of {all}");
    assert_eq!(logged(&log, "every chunk was read again", "chunks"), Some(all), "each once: {log}");
    assert_eq!(number(&node.json(["verify"]), "chunks"), all);
}

#[test]
fn verify_of_a_reference_says_who_has_it_and_that_its_manifest_lists_it() {
    let cluster = Cluster::start_with(NODE, 4, |_, options| options.arguments(["--scrub-period", "0"]));
    let work = Scratch::new("reference");
    let (directory, file) = (work.join("tree"), work.join("tree").join("large"));
    tree::grow(&directory, 805, 40);
    tree::noise_file(&file, 806, 4 * MIB);
    let added = cluster[0].json(["add", utf8(&directory), "--name", "kept"]);
    let root = text(&added["cid"]);
    let stat = cluster[3].json(["stat", "kept"]);
    for node in &cluster.nodes {
        let verified = node.json(["verify", "kept"]);
        assert_eq!(
            (text(&verified["cid"]), &verified["manifest"]),
            (root.clone(), &Value::from("equal")),
            "{verified}"
        );
        assert_eq!((number(&verified, "chunks"), found(&verified)), (number(&stat, "chunks"), (0, 0, 0)));
        assert_eq!((number(&verified, "under_replicated"), number(&verified, "wanted")), (0, 3), "{verified}");
        let holders: u64 = cluster.nodes.iter().filter_map(|node| verified["holders"][node.peer_id()].as_u64()).sum();
        assert!(holders >= 3 * number(&stat, "chunks"), "{verified}");
    }
    // Part of it, which nobody published as such.
    let part = cluster[1].json(["verify", &format!("{root}/large")]);
    assert_eq!((number(&part, "chunks"), &part["manifest"]), (5, &Value::from("none")), "{part}");

    let holder = (0..4).find(|at| is_held(&cluster[*at], &file, 2 * MIB)).expect("somebody has it");
    flip(&cluster[holder], &file, &[2 * MIB]);
    let verified = cluster[holder].json(["verify", &root]);
    assert_eq!(found(&verified), (1, 1, 0), "{verified}");
    let page = cluster[holder].run(["verify", &root]).ok().text();
    assert!(page.contains("all of it, and nothing else") && page.contains(cluster[holder].peer_id()), "{page}");
    cluster[holder].run(["verify", "nothing-has-this-name"]).expect(4);
    cluster[holder].run(["verify", "bafk"]).expect(2);
}

#[test]
fn verify_of_a_reference_says_what_nobody_has() {
    let cluster = Cluster::start_with(NODE, 2, |_, options| options.arguments(["--scrub-period", "0"]));
    let work = Scratch::new("nobody");
    let (file, small) = (work.join("file"), work.join("small"));
    let root = cluster[0].keep(&file, 807, 4 * MIB);
    let leaf = cluster[1].keep(&small, 808, MIB / 2);
    for node in &cluster.nodes {
        flip(node, &file, &[3 * MIB]);
        flip(node, &small, &[0]);
    }
    // Each finds its own, and that the other has none either.
    thread::scope(|scope| {
        for node in &cluster.nodes {
            scope.spawn(|| node.run(["verify"]).expect(1));
        }
    });
    let output = cluster[1].run_json(["verify", &root]).expect(1);
    assert_eq!(found(&output.json()), (1, 0, 1), "{output}");
    assert_eq!((&output.json()["manifest"], number(&output.json(), "chunks")), (&Value::from("equal"), 5), "{output}");
    assert!(output.stderr.contains("nobody who answers has them"), "{output}");
    cluster[1].run_json(["verify", &leaf]).failure(4, "not_found");
}

/// Whether a node has the chunk that begins there in a file.
fn is_held(node: &Daemon, file: &Path, place: u64) -> bool {
    let bytes = fs::read(file).expect("it is ours");
    let needle = &bytes[place as usize..][..64];
    let segments = fs::read_dir(node.data_dir().join("segments")).expect("it is there");
    let mut files = segments.map(|entry| fs::read(entry.expect("it lists").path()).expect("it reads"));
    files.any(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
}

#[test]
fn a_damaged_copy_that_is_not_needed_here_is_forgotten_and_not_fetched() {
    let cluster = Cluster::start_with(NODE, 5, |_, options| options.arguments(["--scrub-period", "0"]));
    let work = Scratch::new("forgotten");
    let files: Vec<PathBuf> = (0..12).map(|number| work.join(format!("file-{number}"))).collect();
    // Each is one chunk.
    let roots: Vec<String> =
        (0..).zip(&files).map(|(number, file)| cluster[0].keep(file, 900 + number, MIB / 4)).collect();
    let role = |root: &str| placement::held(&cluster[0]).remove(root);
    let cached = roots.iter().position(|root| role(root).as_deref() == Some("cache"));
    let own = roots.iter().position(|root| role(root).as_deref() == Some("replica"));
    let (cached, own) = (cached.expect("others are nearer to some"), own.expect("it is near to some"));
    cluster[0].run(["rm", &roots[own]]).ok();
    until("nothing lists it", LONG, || check(role(&roots[own]).as_deref() == Some("pending"), "something does"));
    for at in [cached, own] {
        flip(&cluster[0], &files[at], &[1000]);
    }
    let before = cluster[0].status();
    let verified = cluster[0].json(["verify"]);
    assert_eq!(found(&verified), (2, 2, 0), "{verified}");
    assert_eq!((role(&roots[cached]), role(&roots[own])), (None, None));
    let (received, status) = (|status: &Value| number(&status["transfers"], "received_bytes"), cluster[0].status());
    assert_eq!(number(&status, "damaged"), 0);
    assert!(received(&status) - received(&before) < MIB / 4, "it was fetched again: {before}\n{status}");
    cluster[0].gives(&roots[cached], &files[cached]);
}
