//! Room on disks: what is over is freed, and a machine that leaves for good hands over what it has.

use std::{collections::BTreeSet, time::Duration};

use p2p_tests::process::{Cluster, Daemon, Program, Scratch, placement, text, tree, until, utf8, wait::check};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
const K: usize = 3;
/// Healing waits for delays and for looks at everything, one after the other.
const PATIENCE: Duration = Duration::from_secs(400);

fn received(node: &Daemon) -> u64 {
    node.status()["transfers"]["received_bytes"].as_u64().expect("a number")
}

/// The chunks of `all` that are not on their `copies` closest of `nodes`.
fn lacking(nodes: &[Daemon], all: &[String], copies: usize) -> Vec<String> {
    let ids: Vec<&str> = nodes.iter().map(Daemon::peer_id).collect();
    let held: Vec<BTreeSet<String>> = nodes.iter().map(|node| placement::held(node).into_keys().collect()).collect();
    let there = |chunk: &&String| {
        let closest = placement::closest(chunk, ids.iter().copied(), copies);
        nodes.iter().zip(&held).all(|(node, held)| !closest.contains(&node.peer_id()) || held.contains(*chunk))
    };
    all.iter().filter(|chunk| !there(chunk)).cloned().collect()
}

#[track_caller]
fn placed(nodes: &[Daemon], all: &[String], copies: usize) {
    until("every chunk is on its closest", PATIENCE, || {
        let lacking = lacking(nodes, all, copies);
        check(lacking.is_empty(), format!("{} chunks are not, such as {:?}", lacking.len(), lacking.first()))
    });
}

#[test]
fn machines_are_called_by_their_labels() {
    let labels = ["laptop", "Ann's NAS"];
    let cluster = Cluster::start_with(NODE, 2, |place, options| options.arguments(["--label", labels[place]]));
    let work = Scratch::new("labels");
    let root = cluster[0].keep(&work.join("file"), 1, 1000);
    until("the other is called by its name", PATIENCE, || {
        let peers = cluster[1].json_lines(["peers"]);
        check(peers.iter().any(|peer| peer["label"] == labels[0]), format!("{peers:?}"))
    });
    until("so is what it published", PATIENCE, || {
        let lines = cluster[1].json_lines(["ls"]);
        check(lines.iter().any(|line| line["publisher_label"] == labels[0]), format!("{lines:?}"))
    });
    let id = cluster[0].peer_id();
    assert_eq!(cluster[1].json(["stat", &root])["labels"][id], labels[0]);
    assert_eq!(cluster[1].status()["label"], labels[1]);
    assert!(cluster[1].run(["history", &root]).ok().text().contains(&format!("laptop ({id})")));
    assert!(cluster[1].run(["peers"]).ok().text().contains("laptop"));
    let refused = NODE.run(["daemon", "--label", "a\nb"]);
    assert_eq!(refused.code, 2, "{refused}");
}

#[test]
fn gc_frees_what_is_over_and_says_what_is_not() {
    let settings = |grace| move |_, options: p2p_tests::process::Options| options.arguments(["--gc-grace", grace]);
    let work = Scratch::new("gc");
    {
        let cluster = Cluster::start_with(NODE, 3, settings("1h"));
        let root = cluster[0].keep(&work.join("waits"), 2, 5 << 20);
        let all = placement::chunks(&cluster[0], &root);
        placed(&cluster.nodes, &all, K);
        let stays = cluster[1].json(["gc"]);
        assert_eq!((stays["chunks_freed"].as_u64(), stays["kept_in_grace"].as_u64()), (Some(0), Some(0)), "{stays}");
        cluster[0].run(["rm", &root]).ok();
        until("the removal is known, and its grace runs", PATIENCE, || {
            let waits = cluster[1].json(["gc"]);
            assert_eq!((waits["chunks_freed"].as_u64(), waits["bytes_freed"].as_u64()), (Some(0), Some(0)), "{waits}");
            assert!(waits["seconds"].is_number());
            check(waits["kept_in_grace"] == all.len(), waits)
        });
        assert!(lacking(&cluster.nodes, &all, K).is_empty(), "nothing went before its time");
    }
    let cluster = Cluster::start_with(NODE, 3, settings("1s"));
    let kept = cluster[0].keep(&work.join("kept"), 3, 3 << 20);
    let root = cluster[0].keep(&work.join("goes"), 4, 5 << 20);
    cluster[0].run(["rm", &root]).ok();
    let all: BTreeSet<String> = placement::chunks(&cluster[0], &kept).into_iter().collect();
    until("gc leaves only what is listed", PATIENCE, || {
        let left = cluster[2].json(["gc"]);
        let held: BTreeSet<String> = placement::held(&cluster[2]).into_keys().collect();
        check(left["kept_in_grace"] == 0 && held == all, format!("{left}, {} of {}", held.len(), all.len()))
    });
    cluster[2].gives(&kept, &work.join("kept"));
}

#[test]
fn a_drained_machine_is_switched_off_and_nothing_moves() {
    let settings = ["--repair-delay", "3s", "--label", "one of five"];
    let mut cluster = Cluster::start_with(NODE, 5, |_, options| options.arguments(settings));
    let work = Scratch::new("drained");
    let (directory, lonely) = (work.join("tree"), work.join("lonely"));
    tree::grow(&directory, 81, 150);
    tree::noise_file(&lonely, 82, 6 << 20);
    let root = text(&cluster[0].add(&directory)["cid"]);
    let one = text(&cluster[4].json(["add", "--replicas", "1", utf8(&lonely)])["cid"]);
    let all = placement::chunks(&cluster[4], &root);
    let singles = placement::chunks(&cluster[4], &one);
    placed(&cluster.nodes, &all, K);

    let drained = cluster[4].json(["drain"]);
    assert_eq!(drained["draining"], true);
    assert!(drained["chunks"].as_u64().is_some_and(|chunks| chunks > 0) && drained["bytes"].is_number(), "{drained}");
    // At once, for that is what it said.
    assert_eq!(lacking(&cluster.nodes[..4], &all, K), [""; 0]);
    assert_eq!(lacking(&cluster.nodes[..4], &singles, 1), [""; 0], "what had one copy only");
    assert_eq!(cluster[4].status()["draining"], true);
    assert!(cluster[4].run(["status"]).ok().text().contains("Draining"));
    until("nobody counts on it", PATIENCE, || {
        let known: Vec<u64> = cluster.nodes[..4].iter().map(Daemon::known_peers).collect();
        check(known == [3; 4], format!("{known:?}"))
    });

    let before: Vec<u64> = cluster.nodes[..4].iter().map(received).collect();
    cluster.lose(4);
    let uptime = |node: &Daemon| node.status()["uptime"].as_f64().expect("a number");
    let begun = uptime(&cluster[0]);
    until("the repair delay is long over", PATIENCE, || {
        let now = uptime(&cluster[0]);
        check(now > begun + 10.0, now)
    });
    for (node, before) in cluster.nodes.iter().zip(before) {
        assert!(received(node) - before < 4096, "{} bytes moved for nothing", received(node) - before);
    }
    for node in &cluster.nodes {
        node.gives(&root, &directory);
        node.gives(&one, &lonely);
    }
}

#[test]
fn a_node_remembers_that_it_leaves_until_it_is_told_to_stay() {
    let mut cluster = Cluster::start_with(NODE, 4, |_, options| options.arguments(["--repair-delay", "3s"]));
    let work = Scratch::new("stays");
    let first = cluster[0].keep(&work.join("first"), 83, 8 << 20);
    let all = placement::chunks(&cluster[0], &first);
    placed(&cluster.nodes, &all, K);
    cluster[3].json(["drain"]);
    let node = &mut cluster.nodes[3];
    node.stay_put();
    node.kill();
    node.restart();
    assert_eq!(cluster[3].status()["draining"], true);
    until("the others know it again", PATIENCE, || {
        let known: Vec<u64> = cluster.nodes.iter().map(Daemon::known_peers).collect();
        check(known == [2, 2, 2, 3], format!("{known:?}"))
    });
    // It can be added from, and takes no share of it.
    let second = cluster[3].json(["add", utf8(&work.join("first")), "--chunker", "size-65536"]);
    assert_eq!(second["replicas"]["min"], 3, "{second}");
    let third = cluster[0].keep(&work.join("third"), 84, 5 << 20);
    let of_third = placement::chunks(&cluster[0], &third);
    let held = placement::held(&cluster[3]);
    assert!(of_third.iter().all(|chunk| !held.contains_key(chunk)), "it took something");
    cluster[3].gives(&third, &work.join("third"));

    let stays = cluster[3].json(["drain", "--cancel"]);
    assert_eq!(stays["draining"], false);
    assert!(cluster[3].status().get("draining").is_none());
    placed(&cluster.nodes, &of_third, K);
    let node = &mut cluster.nodes[3];
    node.kill();
    node.restart();
    assert!(cluster[3].status().get("draining").is_none(), "it stays, and that is remembered too");
}

#[test]
fn whoever_is_alone_has_nobody_to_hand_over_to() {
    let node = NODE.daemon().start();
    let work = Scratch::new("alone");
    let root = node.keep(&work.join("file"), 85, 1 << 20);
    let refused = node.run_json(["drain"]);
    assert_eq!(refused.code, 1, "{refused}");
    assert!(refused.text().contains("nobody to hand over to"), "{refused}");
    node.gives(&root, &work.join("file"));
    node.json(["drain", "--cancel"]);
}
