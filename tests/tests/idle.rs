//! What a network costs that nobody uses, what a restart costs the others, and that a machine which vanished is noticed all
//! the same. `scripts/idle.sh` measures the first two at the size and for the time that count.
//!
//! Needs root and iproute2; where they are missing every test is reported as ignored, with the reason.

use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use libtest_mimic::Arguments;
use p2p_tests::process::{
    Daemon, Program, Scratch,
    namespace::{Addresses, Lan, trial},
    tree, until,
    wait::check,
};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each has a network of its own, and mostly waits.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2).min(2));
    let trials = vec![
        trial("a_network_at_rest_says_next_to_nothing_and_a_restart_is_cheap", at_rest),
        trial("a_machine_that_vanished_is_noticed_when_it_is_used", vanished),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Six daemons on the loopback of one namespace, whose only traffic is theirs.
fn at_rest() {
    const NODES: usize = 6;
    let lan = Lan::new(1, Addresses::V4);
    let mut nodes: Vec<Daemon> = Vec::new();
    for _ in 0..NODES {
        let mut options = lan.on(0, NODE.daemon());
        if let Some(first) = nodes.first() {
            options = options.bootstrap(first);
        }
        nodes.push(options.start());
    }
    nodes.iter().for_each(|node| node.wait_for_peers(NODES - 1));
    // Catch-up, and all looks around of the first minutes but one, are over then.
    sleep(Duration::from_secs(15));

    let window = Duration::from_secs(30);
    let sent = || lan.sent_bytes(0, "lo");
    let before = sent();
    sleep(window);
    let rest = sent() - before;
    // A comparison of catalogues a minute and node, 1.5 KB each, and one look around at the most: 15 KB. Pings every five
    // seconds alone were 150.
    assert!(rest < 30_000, "{rest} bytes in {window:?}");

    // Two nodes may dial each other at the same moment, which costs a handshake more; so the best of three. All headers are
    // counted, the fourteen bytes of each packet's link too.
    let mut costs = Vec::new();
    for round in 0..3 {
        let node = &mut nodes[1 + round];
        node.stay_put();
        let before = sent();
        node.restart();
        node.wait_for_peers(NODES - 1);
        sleep(Duration::from_secs(8));
        costs.push((sent() - before) / (NODES as u64 - 1));
    }
    let least = costs.iter().min().copied().unwrap_or_default();
    assert!(least < 10_000, "bytes a neighbour of each restart: {costs:?}");
}

/// A cable is pulled, which no packet tells anybody.
fn vanished() {
    let lan = Lan::new(4, Addresses::V4);
    let nodes: Vec<_> = (0..4)
        .map(|place| lan.on(place, NODE.daemon().listen::<String>([]).mdns().arguments(["--replicas", "2"])).start())
        .collect();
    nodes.iter().for_each(|node| node.wait_for_peers(3));
    let work = Scratch::new("vanished");
    let file = work.join("file");
    let cid = nodes[0].keep(&file, 3, 12 << 20);
    let stat = nodes[0].json(["stat", &cid]);
    let holds = |node: &Daemon| stat["holders"][node.peer_id()].as_u64().unwrap_or_default();
    // Whoever adds has a copy of all; of the others, the one that holds most vanishes, and another reads.
    let gone = (1..4).max_by_key(|place| holds(&nodes[*place])).expect("there are three");
    assert!(holds(&nodes[gone]) > 0, "{stat}");
    let reader = (1..4).find(|place| *place != gone).expect("there are two");

    lan.cut(gone);
    let began = Instant::now();
    let copy = work.join("copy");
    nodes[reader].get(&cid, &copy);
    tree::assert_same(&file, &copy);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}, though others have it all");
    until("the reader no longer counts it as connected", Duration::from_secs(60), || {
        let peers = nodes[reader].json_lines(["peers"]);
        check(peers.iter().all(|peer| peer["peer_id"] != nodes[gone].peer_id()), format!("{peers:?}"))
    });
}
