//! Machines that meet with nothing configured: daemons in network namespaces joined by cables, mDNS on.
//!
//! Needs root and iproute2; where they are missing every test is reported as ignored, with the reason.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, time::Duration};

use libtest_mimic::Arguments;
use p2p_tests::process::{
    Daemon, LONG, Program, Scratch,
    namespace::{Addresses, Lan, trial},
    placement, text, tree, until, utf8,
    wait::check,
};
use serde_json::Value;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A dozen daemons and their cables at once, which mostly wait, are enough for a small machine.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(4).min(4));
    let trials = vec![
        trial("three_machines_meet_and_share_with_nothing_configured", || meet_and_share(Addresses::V4)),
        trial("machines_with_ipv6_only_meet_and_share", || meet_and_share(Addresses::V6)),
        trial("a_machine_that_was_cut_off_catches_up", cut_and_heal),
        trial("both_sides_of_a_partition_go_on_and_heal_without_copying_what_was_there", two_halves),
        trial("networks_of_different_names_on_one_cable_never_mix", different_networks),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A daemon as a user starts it: no listen address, no peer named. Only the capacity is bounded.
fn start(lan: &Lan, place: usize, more: &[&str]) -> Daemon {
    let options = NODE.daemon().listen::<String>([]).mdns().arguments(more.iter().copied());
    lan.on(place, options).start()
}

fn meet_and_share(addresses: Addresses) {
    let lan = Lan::new(3, addresses);
    let nodes: Vec<_> = (0..3).map(|place| start(&lan, place, &[])).collect();
    for node in &nodes {
        // Within seconds, on a machine that is not busy; a test asserts that it happens, not how fast.
        node.wait_for_peers(2);
        let sources: Vec<_> = node.json_lines(["peers"]);
        assert!(sources.iter().any(|peer| peer["source"] == "mdns" || peer["source"] == "incoming"), "{sources:?}");
        let prefix = if addresses == Addresses::V4 { "/ip4/10.94.0." } else { "/ip6/fd94::" };
        assert!(node.listen().iter().any(|address| address.starts_with(prefix)), "{:?}", node.listen());
    }
    let sources: Vec<_> = nodes.iter().flat_map(|node| node.json_lines(["peers"])).collect();
    assert!(sources.iter().any(|peer| peer["source"] == "mdns"), "nobody was found by mDNS: {sources:?}");

    let work = Scratch::new("namespaces");
    let source = work.join("tree");
    tree::grow(&source, 1, 20);
    let added = nodes[0].add(&source);
    assert_eq!(added["replicas"]["min"], 3, "{added}");
    let cid = added["cid"].as_str().expect("a root");
    for (place, node) in nodes.iter().enumerate().skip(1) {
        let copy = work.join(format!("copy-{place}"));
        node.get(cid, &copy);
        tree::assert_same(&source, &copy);
    }
}

fn cut_and_heal() {
    let lan = Lan::new(3, Addresses::V4);
    let nodes: Vec<_> = (0..3).map(|place| start(&lan, place, &[])).collect();
    nodes.iter().for_each(|node| node.wait_for_peers(2));

    lan.cut(2);
    let work = Scratch::new("cut");
    let file = work.join("while-away");
    tree::noise_file(&file, 7, 3 << 20);
    let output = nodes[0].run_json(["add".as_ref(), file.as_os_str()]);
    // Three storing peers were seen within the hour and one of them is away: kept, but short of what was asked.
    let lines = output.expect(5).json_lines();
    let added = lines.iter().find(|line| line.get("cid").is_some()).expect("what was kept is reported").clone();
    let cid = added["cid"].as_str().expect("a root").to_owned();
    // Nothing that was said to it was answered, so that it is known to be away; so it is on its own side, where it looks
    // for somebody to compare catalogues with.
    nodes[0].wait_for_peers(1);
    nodes[2].wait_for_peers(0);

    lan.heal(2);
    nodes.iter().for_each(|node| node.wait_for_peers(2));
    until("the machine that was away knows of the file", LONG, || {
        let lines = nodes[2].json_lines(["ls"]);
        check(lines.iter().any(|line| line["cid"] == cid.as_str()), format!("{lines:?}"))
    });
    until("the missing copies are made", LONG, || {
        let stat = nodes[1].json(["stat", &cid]);
        check(stat["replicas"]["min"] == 3, stat)
    });
    let copy = work.join("copy");
    nodes[2].get(&cid, &copy);
    tree::assert_same(&file, &copy);
}

/// What each side of a partition did, and what is left of it.
struct Side {
    /// What it added meanwhile.
    root: String,
    file: PathBuf,
    /// What it removed meanwhile.
    removed: Vec<String>,
}

fn two_halves() {
    const NODES: usize = 6;
    let lan = Lan::new(NODES, Addresses::V4);
    // Within the delay, so that what moves afterwards is only what is missing. The grace is longer than an add takes that
    // asks who is away.
    let settings = ["--repair-delay", "5m", "--gc-grace", "30s"];
    let nodes: Vec<_> = (0..NODES).map(|place| start(&lan, place, &settings)).collect();
    nodes.iter().for_each(|node| node.wait_for_peers(NODES - 1));
    let work = Scratch::new("halves");
    let before = work.join("before");
    tree::noise_file(&before, 21, 6 << 20);
    // Four copies of six: each half has some of each chunk.
    let four = ["add", utf8(&before), "--replicas", "4"];
    let common = text(&nodes[0].json(four)["cid"]);
    let doomed: Vec<_> = [0, 3]
        .into_iter()
        .map(|place| nodes[place].keep(&work.join(format!("doomed-{place}")), 22 + place as u64, 2 << 20))
        .collect();
    let doomed_chunks: Vec<_> = doomed.iter().map(|root| placement::chunks(&nodes[1], root)).collect();
    nodes.iter().for_each(|node| knows(node, &common, true));

    lan.split(&[3, 4, 5]);
    let sides: Vec<Side> = [0, 3]
        .into_iter()
        .map(|first| {
            let file = work.join(format!("while-apart-{first}"));
            // All of this side keep it: who is away is asked first, and others make up for it.
            let root = nodes[first].keep_wherever(&file, 30 + first as u64, 4 << 20);
            nodes[first].wait_for_peers(2);
            nodes[first + 1].gives(&root, &file);
            nodes[first + 2].gives(&common, &before);
            let output = nodes[first].run(["rm", &doomed[first / 3]]);
            assert!(matches!(output.code, 0 | 5), "{output}");
            nodes[first..first + 3].iter().for_each(|node| knows(node, &doomed[first / 3], false));
            Side { root, file, removed: doomed_chunks[first / 3].clone() }
        })
        .collect();
    // The other side knows nothing of it.
    knows(&nodes[0], &sides[1].root, false);
    knows(&nodes[3], &doomed[0], true);

    let expected = [(common.as_str(), 4), (&sides[0].root, 3), (&sides[1].root, 3)];
    let chunks: Vec<(Value, usize)> = expected
        .iter()
        .zip([0, 0, 3])
        .flat_map(|((root, copies), at)| {
            let placement = nodes[at].json(["stat", root])["placement"].as_array().cloned().unwrap_or_default();
            placement.into_iter().map(|row| (row, *copies))
        })
        .collect();
    assert_eq!(chunks.len(), 7 + 5 + 5);
    let ids: Vec<&str> = nodes.iter().map(Daemon::peer_id).collect();
    let stores: Vec<_> = nodes.iter().map(placement::held).collect();
    let lacking = |row: &Value, copies| {
        let cid = text(&row["cid"]);
        let belongs = placement::closest(&cid, ids.iter().copied(), copies);
        (0..NODES).filter(|place| belongs.contains(&ids[*place]) && !stores[*place].contains_key(&cid)).count() as u64
    };
    let missing: u64 =
        chunks.iter().map(|(row, copies)| lacking(row, *copies) * row["size"].as_u64().expect("a size")).sum();
    let received =
        || nodes.iter().map(|node| node.status()["transfers"]["received_bytes"].as_u64().expect("bytes")).sum();
    let then: u64 = received();

    lan.join(&[3, 4, 5]);
    nodes.iter().for_each(|node| node.wait_for_peers(NODES - 1));
    until("the catalogues are one", LONG * 3, || {
        let all: Vec<BTreeSet<String>> = nodes.iter().map(entries).collect();
        check(all.iter().all(|entries| *entries == all[0] && entries.len() == 3), format!("{all:?}"))
    });
    for (copies, cids) in [(4, &chunks[..7]), (3, &chunks[7..])] {
        let cids: Vec<String> = cids.iter().map(|(row, _)| text(&row["cid"])).collect();
        until("every copy is where it belongs", LONG * 3, || {
            let wrong = placement::misplaced(&nodes, &cids, copies);
            check(wrong.is_empty(), format!("{wrong:?}"))
        });
    }
    until("what either side removed is gone from both", LONG * 3, || {
        let left = nodes.iter().map(placement::held).enumerate().find_map(|(place, held)| {
            let gone = sides.iter().flat_map(|side| &side.removed);
            gone.into_iter().find(|chunk| held.contains_key(*chunk)).map(|chunk| format!("{chunk} is at {place}"))
        });
        check(left.is_none(), format!("{left:?}"))
    });
    let moved: u64 = received() - then;
    println!("two_halves: missing={missing} moved={moved}");
    assert!(missing > 0, "each side has what the other should have");
    // Greetings, questions and offers beside the payload.
    assert!(moved < missing + missing / 20 + 200_000, "{moved} bytes for {missing} that were missing");
    for node in &nodes {
        node.gives(&common, &before);
        sides.iter().for_each(|side| node.gives(&side.root, &side.file));
    }
}

fn entries(node: &Daemon) -> BTreeSet<String> {
    node.json_lines(["ls"])
        .iter()
        .map(|line| format!("{} {} {}", line["cid"], line["publisher"], line["version"]))
        .collect()
}

/// Waits until a node lists a root, or lists it no more.
#[track_caller]
fn knows(node: &Daemon, root: &str, listed: bool) {
    until("the catalogue has come so far", LONG, || {
        let entries = entries(node);
        check(entries.iter().any(|entry| entry.contains(root)) == listed, format!("{entries:?}"))
    });
}

fn different_networks() {
    let lan = Lan::new(3, Addresses::V4);
    let one = start(&lan, 0, &["--network", "one"]);
    let two = start(&lan, 1, &["--network", "two"]);
    let other_one = start(&lan, 2, &["--network", "one"]);
    one.wait_for_peers(1);
    other_one.wait_for_peers(1);
    // The two of one network have met, so whoever was to be met was; the third was heard and left alone.
    for node in [&one, &other_one] {
        assert!(node.json_lines(["peers"]).iter().all(|peer| peer["peer_id"] != two.peer_id()));
    }
    until("the other network stays alone", Duration::from_secs(10), || {
        let status = two.status();
        check(status["known_peers"] == 0 && status["peers"] == 0, status)
    });
}
