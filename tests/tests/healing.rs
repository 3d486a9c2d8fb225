//! A network that heals itself: machines are lost, wiped and restarted, and files are removed.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use p2p_tests::process::{Cluster, Daemon, Program, Scratch, placement, text, tree, until, utf8, wait::check};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
const K: usize = 3;
/// Healing waits for delays, graces and looks at everything, one after the other.
const PATIENCE: Duration = Duration::from_secs(400);
/// What the identity's file is called.
const IDENTITY: &str = "identity.key";

/// A cluster that does not wait for long.
fn hasty(count: usize) -> Cluster {
    let settings = ["--repair-delay", "3s", "--gc-grace", "5s"];
    Cluster::start_with(NODE, count, |_, options| options.arguments(settings))
}

/// The chunks of a root and of its manifest: all that a node has of it that has it whole.
fn chunks(node: &Daemon, root: &str) -> Vec<String> {
    placement::chunks(node, root)
}

/// Each chunk is on its k closest, as far as there are so many.
#[track_caller]
fn placed(nodes: &[Daemon], chunks: &[String]) {
    let ids: Vec<&str> = nodes.iter().map(Daemon::peer_id).collect();
    until("every chunk is on its k closest", PATIENCE, || {
        let held: Vec<BTreeSet<String>> =
            nodes.iter().map(|node| placement::held(node).into_keys().collect()).collect();
        let missing = chunks.iter().find(|chunk| {
            let closest = placement::closest(chunk, ids.iter().copied(), K);
            !nodes.iter().zip(&held).all(|(node, held)| !closest.contains(&node.peer_id()) || held.contains(*chunk))
        });
        check(missing.is_none(), format!("{missing:?}"))
    });
}

#[track_caller]
fn gives_back(node: &Daemon, root: &str, original: &Path, work: &Scratch, name: &str) {
    let copy = work.join(name);
    node.get(root, &copy);
    tree::assert_same(original, &copy);
}

#[test]
fn four_of_seven_machines_are_lost_one_after_another_and_everything_is_there() {
    let mut cluster = hasty(7);
    let work = Scratch::new("four-lost");
    let (directory, file) = (work.join("tree"), work.join("file.bin"));
    tree::grow(&directory, 71, 200);
    tree::noise_file(&file, 72, (9 << 20) + 1);
    let roots = [text(&cluster[0].add(&directory)["cid"]), text(&cluster[1].add(&file)["cid"])];
    let all: Vec<String> = roots.iter().flat_map(|root| chunks(&cluster[2], root)).collect();
    for lost in 0..4 {
        // The adders first: nobody else has a copy of everything.
        cluster.lose(0);
        placed(&cluster.nodes, &all);
        gives_back(&cluster[1], &roots[0], &directory, &work, &format!("tree-{lost}"));
    }
    assert_eq!(cluster.nodes.len(), K);
    gives_back(&cluster[0], &roots[1], &file, &work, "file");
}

#[test]
fn a_machine_whose_disk_was_wiped_gets_its_share_back() {
    let mut cluster = hasty(5);
    let work = Scratch::new("wiped");
    let directory = work.join("tree");
    tree::grow(&directory, 73, 150);
    let root = text(&cluster[0].add(&directory)["cid"]);
    let all = chunks(&cluster[0], &root);
    placed(&cluster.nodes, &all);
    let node = &mut cluster.nodes[3];
    node.stay_put();
    node.kill();
    for entry in fs::read_dir(node.data_dir()).expect("it is there") {
        let path = entry.expect("it reads").path();
        if path.file_name().is_some_and(|name| name != IDENTITY) {
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("it can be removed");
        }
    }
    node.restart();
    placed(&cluster.nodes, &all);
}

#[test]
fn what_is_removed_is_freed_from_every_disk_and_the_rest_stays() {
    let cluster = hasty(5);
    let work = Scratch::new("freed");
    let (kept, removed) = (work.join("kept"), work.join("removed"));
    tree::grow(&kept, 74, 150);
    tree::grow(&removed, 75, 300);
    let root = text(&cluster[1].add(&kept)["cid"]);
    let all = chunks(&cluster[0], &root);
    // What a node has of what stays, its manifest included.
    placed(&cluster.nodes, &all);
    let before: Vec<BTreeSet<String>> = held(&cluster);
    let gone = text(&cluster[2].add(&removed)["cid"]);
    cluster[2].run(["rm", &gone]).ok();
    // Some chunks are in both trees: the adder's own copies of those may stay.
    until("only what stays is on the disks", PATIENCE, || {
        let now: Vec<_> = cluster.nodes.iter().map(placement::held).collect();
        let left: Vec<_> = now
            .iter()
            .zip(&before)
            .map(|(now, before)| {
                now.iter()
                    .filter(|(chunk, _)| !before.contains(*chunk) && !all.contains(chunk))
                    .take(8)
                    .collect::<Vec<_>>()
            })
            .collect();
        let gone = now.iter().zip(&before).any(|(now, before)| before.iter().any(|chunk| !now.contains_key(chunk)));
        check(!gone && left.iter().all(Vec::is_empty), format!("left: {left:?}, something else is gone: {gone}"))
    });
    gives_back(&cluster[4], &root, &kept, &work, "copy");
    assert_eq!(cluster[4].run(["get", &gone, "-o", utf8(&work.join("nothing"))]).code, 4);
    let message = cluster[2].run_json(["restore", &gone]).failure(4, "not_found");
    assert!(message.contains("--gc-grace"), "it does not say why: {message}");
}

fn held(cluster: &Cluster) -> Vec<BTreeSet<String>> {
    cluster.nodes.iter().map(|node| placement::held(node).into_keys().collect()).collect()
}

#[test]
fn a_node_that_misses_over_a_third_of_the_others_at_once_says_that_it_waits_longer() {
    let mut cluster = Cluster::start(NODE, 4);
    let says = |node: &Daemon, cautious: bool| {
        until("its status says so", PATIENCE, || {
            let status = node.status();
            check(status["cautious"].as_bool().unwrap_or_default() == cautious, status.to_string())
        });
        assert_eq!(node.run(["status"]).ok().text().contains("over a third"), cautious);
    };
    says(&cluster[0], false);
    // One of three is a third.
    cluster.nodes[1].stay_put();
    cluster.nodes[1].kill();
    until("it is gone", PATIENCE, || {
        let peers = cluster[0].status()["peers"].as_u64();
        check(peers == Some(2), format!("{peers:?}"))
    });
    says(&cluster[0], false);
    cluster.nodes[2].kill();
    says(&cluster[0], true);
    cluster.nodes[1].restart();
    says(&cluster[0], false);
}

#[test]
fn a_restart_within_the_delay_moves_nothing() {
    let mut cluster = Cluster::start(NODE, 5);
    let work = Scratch::new("restarted");
    let file = work.join("file.bin");
    tree::noise_file(&file, 76, 20 << 20);
    let root = text(&cluster[0].add(&file)["cid"]);
    placed(&cluster.nodes, &chunks(&cluster[0], &root));
    let before = held(&cluster);
    let received = |node: &Daemon| node.json(["status"])["transfers"]["received_bytes"].as_u64().expect("a number");
    let taken: Vec<u64> = cluster.nodes[..4].iter().map(received).collect();
    let node = &mut cluster.nodes[4];
    node.stay_put();
    node.kill();
    node.restart();
    cluster.meet();
    assert_eq!(held(&cluster), before);
    for (node, taken) in cluster.nodes[..4].iter().zip(taken) {
        assert!(received(node) - taken < 10_000, "{} bytes for a restart", received(node) - taken);
    }
}
