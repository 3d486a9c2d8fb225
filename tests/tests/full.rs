//! Disks that are full: who has no room refuses before it takes bytes, the next nearest has the copy for as long, and what
//! does not fit is acknowledged by nobody.
//!
//! What needs root is reported as ignored without it, with the reason.

use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use p2p_tests::process::{
    Cluster, Daemon, Program, Scratch, mounts::SmallDisk, placement, text, tree, until, utf8, wait::check,
};
use serde_json::Value;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
const K: usize = 3;
/// The full machine's place in the row.
const FULL: usize = 4;
/// Graces, looks at everything and copies, one after the other.
const PATIENCE: Duration = Duration::from_secs(240);
const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(4).min(4));
    let trials = vec![
        Trial::test("who_is_full_refuses_and_the_next_nearest_has_the_copy_until_there_is_room", || {
            a_full_machine();
            Ok(())
        }),
        Trial::ignorable_test("a_disk_that_others_filled_takes_its_share_once_they_make_room", room_that_others_make),
        Trial::ignorable_test("a_disk_that_fills_up_during_an_add_acknowledges_nothing_of_it", a_disk_that_fills_up),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn received(node: &Daemon) -> u64 {
    node.status()["transfers"]["received_bytes"].as_u64().expect("a number")
}

fn held(nodes: &[Daemon]) -> Vec<BTreeMap<String, String>> {
    nodes.iter().map(placement::held).collect()
}

/// A chunk that is not on each of the k nearest that have room, or have it.
fn lacking(nodes: &[Daemon], chunks: &[String]) -> Option<String> {
    let (ids, stores): (Vec<&str>, _) = (nodes.iter().map(Daemon::peer_id).collect(), held(nodes));
    let nearest = |chunk: &str, count| placement::closest(chunk, ids.iter().copied(), count);
    chunks.iter().find_map(|chunk| {
        let has = |id: &str| (0..ids.len()).any(|place| ids[place] == id && stores[place].contains_key(chunk));
        // Whoever is full and has not got it does not count.
        let instead = nearest(chunk, K).contains(&ids[FULL]) && !has(ids[FULL]);
        let belongs = nearest(chunk, K + usize::from(instead)).into_iter().filter(|id| !instead || *id != ids[FULL]);
        let without: Vec<&str> = belongs.filter(|id| !has(id)).collect();
        (!without.is_empty()).then(|| format!("{chunk} is not at {without:?}"))
    })
}

/// Adds a file in small chunks, so that a disk can be full to the last hundredth.
fn add(node: &Daemon, file: &Path) -> Value {
    node.json(["add", utf8(file), "--chunker", "size-65536"])
}

fn a_full_machine() {
    let settings = ["--repair-delay", "3s", "--gc-grace", "5s"];
    let cluster = Cluster::start_with(NODE, 5, |place, options| {
        let options = options.arguments(settings);
        if place == FULL { options.capacity("8MiB") } else { options }
    });
    let work = Scratch::new("full-machine");
    let (first, second, third) = (work.join("first"), work.join("second"), work.join("third"));
    // Of a chunk in five machines three keep it: this is more than it has room for.
    tree::noise_file(&first, 301, 24 * MIB);
    let added = add(&cluster[0], &first);
    assert_eq!(added["replicas"]["min"], 3, "{added}");
    let root = text(&added["cid"]);
    let bytes = |node: &Daemon| node.status()["bytes"].as_u64().expect("a number");
    // What was put there while nothing listed it fills a share; the rest of its part it fetched.
    until("it is as full as it gets", PATIENCE, || {
        let had = bytes(&cluster[FULL]);
        check(had > 7 * MIB, format!("{had} bytes"))
    });
    let (before, had) = (received(&cluster[FULL]), bytes(&cluster[FULL]));
    assert!(had <= 8 * MIB, "{had}");
    tree::noise_file(&second, 302, 8 * MIB);
    let added = add(&cluster[1], &second);
    assert_eq!(added["replicas"]["min"], 3, "{added}");
    let second_root = text(&added["cid"]);
    let taken = received(&cluster[FULL]) - before;
    assert!(taken < 8 * MIB - had + MIB / 4, "{taken} bytes came to a machine that had {had} of eight MiB");
    let chunks = placement::chunks(&cluster[0], &second_root);
    until("the next nearest have what the full one has not", PATIENCE, || {
        let lacking = lacking(&cluster.nodes, &chunks);
        check(lacking.is_none(), format!("{lacking:?}"))
    });

    // They call it theirs, as `status` does, and not only the k nearest do.
    until("the duty of each is what it holds as its own", PATIENCE, || {
        let others = (0..cluster.nodes.len()).filter(|place| *place != FULL).map(|place| &cluster[place]);
        let (ids, mut stand_ins) = (cluster.peer_ids(), 0);
        for node in others {
            let replicas = placement::held(node).into_iter().filter(|(_, role)| role == "replica");
            let replicas: Vec<String> = replicas.map(|(chunk, _)| chunk).collect();
            let nearest = |chunk: &String| placement::closest(chunk, ids.iter().map(String::as_str), K);
            stand_ins += replicas.iter().filter(|chunk| !nearest(chunk).contains(&node.peer_id())).count();
            let replication = node.status()["replication"].take();
            let same = replication["duty"] == replicas.len() && replication["missing"] == 0;
            check(same, format!("{} replicas, and {replication}", replicas.len()))?;
        }
        check(stand_ins > 0, "nobody stands in for the full one")
    });

    // It stays so, and the full one is left alone, while a grace passes: long enough for something else to be freed.
    let before = received(&cluster[FULL]);
    tree::noise_file(&third, 303, 2 * MIB);
    let third_root = text(&cluster[2].add(&third)["cid"]);
    let third_chunks = placement::chunks(&cluster[0], &third_root);
    cluster[2].run(["rm", &third_root]).ok();
    until("what was removed is freed", PATIENCE, || {
        let left = held(&cluster.nodes)
            .iter()
            .filter(|store| third_chunks.iter().any(|chunk| store.contains_key(chunk)))
            .count();
        check(left == 0, format!("{left} machines have some of it"))
    });
    assert_eq!(lacking(&cluster.nodes, &chunks), None);
    let asked = received(&cluster[FULL]) - before;
    assert!(asked < MIB, "{asked} bytes came to a machine that was known to be full");
    cluster[FULL].gives(&second_root, &second);

    // With room again, it takes its share, and the stand-ins are none any more.
    cluster[0].run(["rm", &root]).ok();
    until("the copies are on the k closest", PATIENCE, || {
        let wrong = placement::misplaced(&cluster.nodes, &chunks, K);
        check(wrong.is_empty(), format!("{wrong:?}"))
    });
    assert!(bytes(&cluster[FULL]) <= 8 * MIB);
    cluster[FULL].gives(&second_root, &second);
}

/// The disk of one of four is full of what is not the store's, while others publish.
fn room_that_others_make() -> Result<Completion, Failed> {
    let disk = match SmallDisk::new(192) {
        Ok(disk) => disk,
        Err(reason) => return Ok(Completion::ignored_with(reason)),
    };
    const SMALL: usize = 3;
    let settings = ["--repair-delay", "3s", "--gc-grace", "5s"];
    let cluster = Cluster::start_with(NODE, 4, |place, options| {
        let options = options.arguments(settings);
        if place == SMALL { disk.on(options) } else { options }
    });
    let work = Scratch::new("others-make-room");
    let (before, file) = (work.join("before"), work.join("file"));
    // A disk that was refused something counts as full until it has more room than ever since: of one that holds nothing,
    // any look would say so.
    tree::noise_file(&before, 322, 4 * MIB);
    let root = text(&add(&cluster[0], &before)["cid"]);
    let chunks = placement::chunks(&cluster[0], &root);
    until("it holds its share", PATIENCE, || {
        let wrong = placement::misplaced(&cluster.nodes, &chunks, K);
        check(wrong.is_empty(), format!("{wrong:?}"))
    });
    disk.shell("dd if=/dev/zero of=ballast bs=1M");
    tree::noise_file(&file, 321, 3 * MIB);
    // Everybody fetches what is theirs, and one has no room for it.
    let root = text(&cluster[0].json(["add", "--local", utf8(&file), "--chunker", "size-65536"])["cid"]);
    let chunks = placement::chunks(&cluster[0], &root);
    until("the others stand in", PATIENCE, || {
        let stores = held(&cluster.nodes);
        let lacking = chunks.iter().find(|chunk| stores[..SMALL].iter().any(|store| !store.contains_key(*chunk)));
        check(lacking.is_none(), format!("{lacking:?} is not on all of them"))
    });
    assert!(!placement::misplaced(&cluster.nodes, &chunks, K).is_empty(), "the disk was not full");
    disk.shell("rm ballast");
    until("the copies are on the k closest", PATIENCE, || {
        let wrong = placement::misplaced(&cluster.nodes, &chunks, K);
        check(wrong.is_empty(), format!("{wrong:?}"))
    });
    Ok(Completion::Completed)
}

/// The disk is filled to its last byte by somebody else while files are added.
fn a_disk_that_fills_up() -> Result<Completion, Failed> {
    let disk = match SmallDisk::new(192) {
        Ok(disk) => disk,
        Err(reason) => return Ok(Completion::ignored_with(reason)),
    };
    let work = Scratch::new("fills-up");
    let mut node = disk.on(NODE.daemon()).start();
    let kept = work.join("kept");
    let root = node.keep(&kept, 311, 3 * MIB);
    for round in 0..4 {
        let spare = node.keep(&work.join(format!("spare-{round}")), 330 + round, MIB);
        let mut withdrawn = false;
        let file = work.join(format!("file-{round}"));
        tree::noise_file(&file, 312 + round, 40 * MIB);
        let begun = AtomicBool::new(false);
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                until("the add has begun", PATIENCE, || check(begun.load(Ordering::Relaxed), "not yet"));
                // Each round fills it in larger steps, so that it is full at other moments; both end where there is no room.
                let step = 1 << round;
                disk.shell(&format!("dd if=/dev/zero of=ballast bs={step}M; dd if=/dev/zero of=rest bs=512")).0
            });
            begun.store(true, Ordering::Relaxed);
            node.run_json(["add", utf8(&file)])
        });
        let listed = node.json_lines(["ls"]).len();
        if output.code == 0 {
            // It was faster.
            let cid = text(&output.json()["cid"]);
            disk.shell("rm -f ballast rest");
            node.gives(&cid, &file);
            node.run(["rm", &cid]).ok();
        } else {
            let message = output.failure(6, "refused");
            assert!(message.to_lowercase().contains("space") || message.contains("full"), "{message}");
            assert_eq!(listed, 2, "what did not fit was published");
            // A removal is a few hundred bytes and a change of the index: there may be room for it yet.
            let removal = node.run_json(["rm", &spare]);
            withdrawn = removal.code == 0;
            if !withdrawn {
                removal.failure(6, "refused");
            }
        }
        assert!(node.is_alive(), "{}", node.log());
        node.gives(&root, &kept);
        // What was acknowledged is on the disk, also where it is full and nobody had time to say goodbye.
        node.kill();
        disk.shell("rm -f ballast rest");
        node.restart();
        node.gives(&root, &kept);
        if !withdrawn {
            node.run(["rm", &spare]).ok();
        }
    }
    let last = work.join("last");
    let last_root = node.keep(&last, 320, 3 * MIB);
    node.gives(&last_root, &last);
    assert!(node.terminate().0.success(), "{}", node.log());
    Ok(Completion::Completed)
}
