//! Catalogues that are full, flooded or large, with real processes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p::identity::Keypair;
use p2p_protocol::{
    Cid, Codec,
    catalogue::{Kind, Publication, SignedPublication},
    manifest::{Entry, Listing},
    wire::{
        sync::{Frame, pack},
        turns::Turn as _,
        version::Hello,
    },
};
use p2p_tests::process::{
    Cluster, Daemon, LONG, Program, Scratch,
    evil::{Evil, Tactic},
    forge::Chunks,
    text, until, utf8,
    wait::check,
};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

/// Longer than any flood takes, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(300);

/// What `keypair` says under a name of its own of a file of 8 bytes.
fn forge(keypair: &Keypair, number: u64, content: &[u8; 8]) -> Bytes {
    let root = Cid::of(Codec::Raw, content);
    let publication = Publication {
        publisher: keypair.public().to_peer_id(),
        name: Some(format!("file {number}")),
        label: format!("file {number}"),
        root,
        kind: Kind::File,
        size: 8,
        replicas: 1,
        chunks: 1,
        listing: Listing::Inline(vec![Entry { cid: root, length: 8 }]),
        version: 1,
        floor: 1,
        time_milliseconds: 1_700_000_000_000,
        removed: false,
    };
    let signed = SignedPublication::sign(keypair, "main", publication).expect("it is valid");
    Bytes::copy_from_slice(signed.bytes())
}

/// Gives a daemon publications in the way of catch-up; how many it says to have kept.
fn push(evil: &Evil, to: &Daemon, publications: impl IntoIterator<Item = Bytes>) -> u64 {
    let mut said = Frame::Greeting(Hello { version: 1, features: 0 }).encode(0);
    let (mut entries, mut packed, mut request) = (Vec::new(), 0, 0);
    let mut frame = |entries: &mut Vec<Bytes>| {
        request += 1;
        said.extend(Frame::Push(std::mem::take(entries)).encode(request));
    };
    for publication in publications {
        if !pack(&mut packed, publication.len()) {
            frame(&mut entries);
            packed = 0;
            assert!(pack(&mut packed, publication.len()), "one fits");
        }
        entries.push(publication);
    }
    frame(&mut entries);
    // A byte as the stream is taken, the greeting, and how many were kept of each frame.
    const BEFORE: usize = 1 + 18;
    let heard = evil.exchange(to, "catalogue", said, BEFORE + 11 * request as usize, PATIENCE);
    let kept = heard.get(BEFORE..).unwrap_or_default().chunks_exact(11);
    let taken = |frame: &[u8]| match Frame::decode(frame[0], Bytes::copy_from_slice(&frame[9..])) {
        Ok(Frame::Taken(count)) => u64::from(count),
        other => panic!("{other:?}: it says what it took"),
    };
    kept.map(taken).sum()
}

fn history(node: &Daemon, name: &str) -> usize {
    node.json_lines(["history", name]).len()
}

#[test]
fn a_flood_of_free_keys_pushes_out_nobody_who_is_known() {
    const FLOOD: u64 = 65_700;
    let cluster = Cluster::start(NODE, 3);
    let work = Scratch::new("flood");
    let file = work.join("file");
    // Several of each: whoever has most gives way first, among strangers.
    let publish = |content: &str| {
        for (place, node) in cluster.nodes.iter().enumerate() {
            fs::write(&file, format!("{content} {place}")).expect("it is ours");
            node.json(["add", utf8(&file), "--name", &format!("of {place}")]);
        }
    };
    let everywhere = |versions: usize| {
        for node in &cluster.nodes {
            for place in 0..cluster.nodes.len() {
                until("what honest nodes published stands", LONG, || {
                    let found = history(node, &format!("of {place}"));
                    check(found == versions, format!("{found} of {versions} versions of {place}"))
                });
            }
        }
    };
    publish("one");
    publish("two");
    everywhere(2);

    let evil = Evil::start("main", &[&cluster[0]], Tactic::Serve, Chunks::new());
    evil.wait_until_trusted_by(&cluster[0], 2);
    let keys = (0..FLOOD).map(|number| {
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&number.to_be_bytes());
        forge(&Keypair::ed25519_from_bytes(seed).expect("32 bytes are a key"), number, &number.to_be_bytes())
    });
    let kept = push(&evil, &cluster[0], keys);
    assert!(kept > 60_000, "{kept}: the flood is not what it says");
    // Honest nodes pass on what they have: it is at everybody's limit.
    for node in &cluster.nodes {
        until("the flood is everywhere", PATIENCE, || {
            let lines = node.json_lines(["ls"]).len();
            check(lines > 60_000, format!("{lines} entries"))
        });
    }
    everywhere(2);
    publish("three");
    everywhere(3);
    // And what is there can be read.
    let content = cluster[2].run(["cat", "of 0"]).ok().text();
    assert_eq!(content, "three 0");
}

#[test]
fn a_full_share_is_refused_before_the_add_begins() {
    let node = NODE.daemon().arguments(["--catalogue-entries", "16"]).start();
    let work = Scratch::new("share");
    let add = |name: &str, more: &[&str]| {
        let file = work.join(name);
        fs::write(&file, name).expect("it is ours");
        node.run_json(["add", utf8(&file)].into_iter().chain(more.iter().copied()))
    };
    for number in 0..8 {
        add(&format!("file {number}"), &[]).ok();
    }
    let chunks = node.json(["status"])["chunks"].clone();
    for more in [&[][..], &["--name", "site"]] {
        let message = add("one more", more).failure(6, "refused");
        assert!(message.contains("8 versions") && message.contains("p2p-node rm"), "{message}");
    }
    assert_eq!(node.json(["status"])["chunks"], chunks, "nothing of it was kept");
    assert_eq!(node.json_lines(["ls"]).len(), 8, "nothing vanished");
    // What is removed and its floor rises make no room; a new version that keeps none does without.
    let listed = node.json_lines(["ls"]);
    assert!(listed.is_sorted_by_key(|line| text(&line["name"])));
    node.run(["rm", &text(&listed[0]["cid"])]).ok();
    add("one more", &[]).failure(6, "refused");
    let message = NODE.daemon().arguments(["--catalogue-entries", "3"]).try_start().expect_err("so few are refused").1;
    assert!(message.contains("--catalogue-entries") && message.contains("16"), "{message}");
}

#[test]
fn a_catalogue_that_has_no_room_for_what_others_publish_says_so() {
    let small = NODE.daemon().arguments(["--catalogue-entries", "16"]).start();
    let other = NODE.daemon().bootstrap(&small).start();
    let work = Scratch::new("no-room");
    let listed = |count: usize| {
        until("the small one lists what it has room for", PATIENCE, || {
            let listed = small.json_lines(["ls"]).len();
            check(listed == count, format!("{listed} entries"))
        });
    };
    for number in 0..9 {
        if number == 8 {
            listed(8);
            assert!(small.json(["status"])["catalogue_full"].is_null());
            assert!(!small.run(["status"]).ok().text().contains("Catalogue"));
        }
        let file = work.join(format!("file {number}"));
        fs::write(&file, format!("file {number}")).expect("it is ours");
        // The small one does not confirm the last of them.
        other.run_json(["add", utf8(&file)]);
    }
    until("it has met one that it cannot list", PATIENCE, || {
        let status = small.json(["status"]);
        check(status["catalogue_full"] == true, format!("{status}"))
    });
    listed(8);
    assert!(small.run(["status"]).ok().text().contains("Catalogue   full: some of what others publish"));
    assert!(small.log().contains("no room for all that is published"), "{}", small.log());
    assert!(other.json(["status"])["catalogue_full"].is_null());
}

/// What the many publications of [`a_million_entries`] are of.
const CONTENT: &[u8; 8] = b"constant";

/// A figure of a daemon's memory in MiB.
fn memory(node: &Daemon, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("it is there");
    let kib: f64 = line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
    kib / 1024.0
}

fn print(name: &str, figure: f64) {
    println!("{name}={figure:.3}");
}

/// Seconds to the first line of `ls` and to its end, and the lines.
fn list(program: Program, node: &Daemon) -> (f64, f64, usize) {
    let started = Instant::now();
    let mut command = program.command(["--data-dir", utf8(node.data_dir()), "--json", "ls"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    lines.next().expect("there is one").expect("it is read");
    let first = started.elapsed().as_secs_f64();
    let count = 1 + lines.count();
    assert!(child.wait().expect("it ends").success());
    (first, started.elapsed().as_secs_f64(), count)
}

/// The median of some adds of small files, in seconds.
fn adds(node: &Daemon, work: &Scratch, round: &str) -> f64 {
    let mut times: Vec<f64> = (0..9)
        .map(|number| {
            let file = work.join(format!("{round} {number}"));
            fs::write(&file, format!("{round} {number}")).expect("it is ours");
            let started = Instant::now();
            node.json(["add", utf8(&file)]);
            started.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[4]
}

/// By hand: `P2P_NODE=target/release/p2p-node ENTRIES=1000000 cargo test -p p2p-tests --test large_catalogue million --
/// --ignored --nocapture`.
#[test]
#[ignore = "minutes; prints figures"]
fn a_million_entries() {
    let count: u64 = std::env::var("ENTRIES").ok().and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let program = match std::env::var("P2P_NODE") {
        Ok(path) => Program(Box::leak(path.into_boxed_str())),
        Err(_) => NODE,
    };
    let options = || {
        let limit = (2 * count + 100_000).to_string();
        // One copy: the peer that brings them all stores nothing, and is gone when the adds are timed.
        let options = program.daemon().arguments(["--catalogue-entries", &limit, "--replicas", "1"]);
        options.environment("RUST_LOG", "info,p2p_node::service::sync=debug")
    };
    let work = Scratch::new("million");
    let mut first = options().start();
    print("memory_empty_mib", memory(&first, "VmRSS"));
    // All of them list one chunk, which is there: what the network holds is not what is measured.
    fs::write(work.join("content"), CONTENT).expect("it is ours");
    first.json(["add", utf8(&work.join("content"))]);
    let few = adds(&first, &work, "few");
    print("ls_of_few_first_s", list(program, &first).0);
    let evil = Evil::start("main", &[&first], Tactic::Serve, Chunks::new());
    evil.wait_until_trusted_by(&first, 0);
    let keypair = Keypair::ed25519_from_bytes([7; 32]).expect("32 bytes are a key");
    let started = Instant::now();
    for part in 0..count.div_ceil(50_000) {
        let numbers = part * 50_000..count.min((part + 1) * 50_000);
        let expected = numbers.end - numbers.start;
        assert_eq!(push(&evil, &first, numbers.map(|number| forge(&keypair, number, CONTENT))), expected);
    }
    print("pushed_s", started.elapsed().as_secs_f64());
    drop(evil);
    print("memory_mib", memory(&first, "VmRSS"));
    print("memory_peak_mib", memory(&first, "VmHWM"));
    let (line, all, lines) = list(program, &first);
    print("ls_first_line_s", line);
    print("ls_all_s", all);
    println!("ls_lines={lines}");
    print("memory_after_ls_mib", memory(&first, "VmRSS"));
    let many = adds(&first, &work, "many");
    print("add_of_few_s", few);
    print("add_of_many_s", many);
    print("add_ratio", many / few);
    let started = Instant::now();
    first.restart();
    print("restart_s", started.elapsed().as_secs_f64());
    print("memory_restarted_mib", memory(&first, "VmRSS"));
    let started = Instant::now();
    let newcomer = options().bootstrap(&first).start();
    until("the newcomer has all of it", PATIENCE, || check(newcomer.log().contains("caught up"), newcomer.log()));
    print("newcomer_s", started.elapsed().as_secs_f64());
    print("newcomer_memory_mib", memory(&newcomer, "VmRSS"));
    print("newcomer_memory_peak_mib", memory(&newcomer, "VmHWM"));
    print("server_memory_peak_mib", memory(&first, "VmHWM"));
    let (line, _, lines) = list(program, &newcomer);
    print("newcomer_ls_first_line_s", line);
    assert_eq!(lines as u64, count + 19);
}
