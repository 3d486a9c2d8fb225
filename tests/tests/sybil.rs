//! Peers that join nearest to a chunk, say that they keep it and keep nothing: no honest copy goes by their word, in
//! whatever way they give it.

use std::{collections::BTreeSet, ffi::OsStr, path::Path, time::Duration};

use p2p_tests::process::{
    Cluster, Daemon, Program, Scratch,
    evil::{Evil, Tactic},
    forge::Chunks,
    placement, sybil, text, tree, until, utf8,
    wait::{check, until_watching},
};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
const K: usize = 3;
const MIB: u64 = 1 << 20;
/// Graces, delays and looks at everything come one after the other.
const PATIENCE: Duration = Duration::from_secs(400);

/// So many honest machines that wait for nothing long.
fn hasty(count: usize, arguments: &[&str], capacity: &str) -> Cluster {
    Cluster::start_with(NODE, count, |_, options| {
        options
            .arguments(["--repair-delay", "3s", "--gc-grace", "4s"])
            .arguments(arguments.iter().copied())
            .environment("P2P_NODE_PROBATION", "1s")
            .capacity(capacity)
    })
}

/// What each has.
fn held(nodes: &[Daemon]) -> Vec<BTreeSet<String>> {
    nodes.iter().map(|node| placement::held(node).into_keys().collect()).collect()
}

/// Adds a file in small chunks, wherever its copies are; gives its root and its chunks.
#[track_caller]
fn add(node: &Daemon, asked: &Daemon, file: &Path, seed: u64, length: u64) -> (String, Vec<String>) {
    tree::noise_file(file, seed, length);
    let words = ["add", utf8(file), "--chunker", "size-65536"];
    let output = node.run_json(words.map(OsStr::new));
    assert!(matches!(output.code, 0 | 5), "{output}");
    let lines = output.json_lines();
    let root = text(&lines.iter().find(|line| line.get("cid").is_some()).expect("it is kept")["cid"]);
    let chunks = placement::chunks(asked, &root);
    (root, chunks)
}

/// Something is removed and freed on every disk: by then each node has looked at everything that it has.
#[track_caller]
fn everybody_looked_at_everything(cluster: &Cluster, work: &Scratch, seed: u64) {
    let (root, chunks) = add(&cluster[0], &cluster[0], &work.join(format!("decoy-{seed}")), seed, 2 << 16);
    cluster[0].run(["rm", &root]).ok();
    until("what was removed is freed", PATIENCE, || {
        let held = held(&cluster.nodes);
        check(chunks.iter().all(|chunk| held.iter().all(|held| !held.contains(chunk))), "it is still there")
    });
}

/// So many peers that agree to everything, nearer to `chunk` than every honest machine, and known to all.
#[track_caller]
fn join(cluster: &Cluster, chunk: &str, count: usize) -> Vec<Evil> {
    let honest: Vec<&Daemon> = cluster.nodes.iter().collect();
    let ids: Vec<&str> = honest.iter().map(|node| node.peer_id()).collect();
    let keys = sybil::nearest(&[chunk], &ids, count);
    let start = |key| Evil::start_as(key, "main", &honest, Tactic::Acknowledge, Chunks::new());
    let sybils = keys.into_iter().map(start).collect();
    for node in honest {
        node.wait_for_peers(cluster.nodes.len() - 1 + count);
    }
    sybils
}

/// Of these chunks, those to which nobody honest is among the k nearest.
fn surrounded<'a>(cluster: &Cluster, sybils: &[Evil], chunks: &'a [String]) -> Vec<&'a String> {
    let sybils: Vec<String> = sybils.iter().map(Evil::peer_id).collect();
    let all = || cluster.nodes.iter().map(Daemon::peer_id).chain(sybils.iter().map(String::as_str));
    let lost =
        |chunk: &&String| placement::closest(chunk, all(), K).iter().all(|peer| sybils.iter().any(|one| one == peer));
    chunks.iter().filter(lost).collect()
}

#[test]
fn whoever_is_nearest_and_acknowledges_what_it_does_not_keep_makes_no_honest_copy_go() {
    // So full that cached copies are given up, and not full; audits would find the liars out before they are asked to prove.
    let cluster = hasty(3, &["--audit-interval", "6h"], "8MiB");
    let work = Scratch::new("sybils");
    let file = work.join("file");
    let (root, chunks) = add(&cluster[0], &cluster[1], &file, 71, 7 * MIB + MIB / 4);
    let holds_all = |what: &str| {
        for (place, held) in held(&cluster.nodes).iter().enumerate() {
            let gone: Vec<_> = chunks.iter().filter(|chunk| !held.contains(*chunk)).collect();
            assert!(gone.is_empty(), "{what}, machine {place} has {} chunks less, as {}", gone.len(), gone[0]);
        }
    };
    until("each has all of it", PATIENCE, || {
        let held = held(&cluster.nodes);
        check(chunks.iter().all(|chunk| held.iter().all(|held| held.contains(chunk))), "not yet")
    });
    for node in &cluster.nodes {
        let status = node.status();
        let share = status["bytes"].as_f64().expect("a number") / status["capacity"].as_f64().expect("a number");
        assert!((0.90..0.95).contains(&share), "{share}");
    }
    let sybils = join(&cluster, &root, K);
    let surrounded = surrounded(&cluster, &sybils, &chunks);
    assert!(surrounded.contains(&&root));
    // What one of them could not prove is asked of no other: where it is met before they are, it is alone.
    until("everybody has some of them prove what they claim", PATIENCE, || {
        let proved = |node: &Daemon| sybils.iter().map(|sybil| sybil.asked().by(node.peer_id()).proved).sum::<u64>();
        let without = cluster.nodes.iter().find(|node| proved(node) < surrounded.len() as u64);
        check(without.is_none(), format!("{:?} did not ask", without.map(Daemon::peer_id)))
    });
    everybody_looked_at_everything(&cluster, &work, 72);
    holds_all("after all was asked for");

    // What is added now is acknowledged by them too; a copy that counts is somewhere.
    let late = work.join("late");
    let (late_root, late_chunks) = add(&cluster[2], &cluster[1], &late, 73, 2 << 16);
    for node in &cluster.nodes {
        node.gives(&root, &file);
        node.gives(&late_root, &late);
    }
    drop(sybils);
    until("all copies are with those that keep them", PATIENCE, || {
        let wrong = placement::misplaced(&cluster.nodes, &[&chunks[..], &late_chunks].concat(), K);
        check(wrong.is_empty(), format!("{wrong:?}"))
    });
    holds_all("when the sybils are gone");
}

/// Says in audits that it has what it should, and nothing else that is true.
#[test]
fn a_liar_in_audits_is_found_told_of_and_not_counted_as_a_copy() {
    let cluster = hasty(4, &["--audit-interval", "1s"], "2GiB");
    let work = Scratch::new("liar");
    let first = work.join("first");
    let (_, anchor) = add(&cluster[0], &cluster[1], &first, 74, MIB);
    let liars = join(&cluster, &anchor[0], 1);
    let liar = liars[0].peer_id();
    let file = work.join("file");
    let (root, chunks) = add(&cluster[0], &cluster[1], &file, 75, 4 * MIB);
    let kept = liars[0].asked().by(cluster[0].peer_id()).kept;
    assert!(kept > chunks.len() as u64 / 4, "it was given {kept} of {} chunks", chunks.len());
    until("somebody found it out, and says so", PATIENCE, || {
        let told = |node: &Daemon| {
            let log = node.log();
            log.lines().any(|line| line.contains("claims chunks that it has not") && line.contains(&liar))
        };
        check(cluster.nodes.iter().any(told), "nobody did")
    });
    until_watching("it can be seen that copies are missing", PATIENCE, Duration::from_millis(10), || {
        let missing = |node: &Daemon| node.status()["replication"]["under_replicated"].as_u64().expect("a number");
        let missing: Vec<u64> = cluster.nodes.iter().map(missing).collect();
        check(missing.iter().any(|missing| *missing > 0), format!("{missing:?}"))
    });
    until("the k honest machines nearest to each chunk have it", PATIENCE, || {
        let held = held(&cluster.nodes);
        let lacking = chunks.iter().find(|chunk| {
            let nearest = placement::closest(chunk, cluster.nodes.iter().map(Daemon::peer_id), K);
            cluster
                .nodes
                .iter()
                .zip(&held)
                .any(|(node, held)| nearest.contains(&node.peer_id()) && !held.contains(*chunk))
        });
        check(lacking.is_none(), format!("{lacking:?}"))
    });
    // It says that it has all of it, and is not believed.
    for node in &cluster.nodes {
        node.gives(&root, &file);
    }
}
