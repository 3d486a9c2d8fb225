//! Fresh reads of names, with real processes: the newest version whoever was cut off from it, or exit code 4.

use std::{fs, path::Path};

use p2p_tests::process::{Cluster, Daemon, LONG, Program, Scratch, text, until, utf8};
use rustix::process::Signal;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

/// Adds `content` under the name `site`; what was said on standard error.
#[track_caller]
fn publish(node: &Daemon, file: &Path, content: &str) -> String {
    fs::write(file, content).expect("it is ours");
    let output = node.run(["add", utf8(file), "--name", "site"]).ok();
    output.stderr
}

/// Waits until a node reads its own catalogue of the name as `content`.
#[track_caller]
fn reads(node: &Daemon, content: &str) {
    until("the name is read", LONG, || {
        let output = node.run(["cat", "site"]);
        if output.code == 0 && output.text() == content { Ok(()) } else { Err(output.to_string()) }
    });
}

/// Waits until a node reads what is newest, which must be `content`: right after a start it may not know enough others.
#[track_caller]
fn reads_fresh(node: &Daemon, content: &str) {
    let output = until("enough others answer", LONG, || {
        let output = node.run(["cat", "site", "--fresh"]);
        if output.code == 4 { Err(output.to_string()) } else { Ok(output) }
    });
    assert_eq!(output.ok().text(), content);
}

/// The newest version of the name in a node's own catalogue, nobody being asked.
fn newest(node: &Daemon) -> u64 {
    node.json_lines(["history", "site"])[0]["version"].as_u64().expect("a version")
}

/// Waits until each node can answer for what is newest: until then an add says that it is not settled.
#[track_caller]
fn settle(cluster: &Cluster, file: &Path) {
    until("an add is settled at once", LONG, || {
        let said = publish(&cluster[0], file, "first");
        if said.contains("--fresh") { Err(said) } else { Ok(()) }
    });
}

/// Stops a process where it stands, so that it hears nothing; goes on when dropped, so that it can end.
struct Paused<'a>(&'a Daemon);

impl<'a> Paused<'a> {
    fn pause(node: &'a Daemon) -> Self {
        node.signal(Signal::STOP);
        Self(node)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

#[test]
fn who_was_away_reads_what_is_newest_or_nothing() {
    let mut cluster = Cluster::start(NODE, 5);
    let work = Scratch::new("fresh");
    let file = work.join("file");
    settle(&cluster, &file);
    for node in &cluster.nodes {
        reads(node, "first");
    }

    let version = newest(&cluster[4]);

    // A node is away while a version is published, and the publisher and one more are gone when it is back.
    assert!(cluster[4].terminate().0.success());
    let said = publish(&cluster[0], &file, "second");
    assert!(!said.contains("--fresh"), "four of five are enough to settle it: {said}");
    assert!(cluster[0].terminate().0.success());
    {
        // Nobody says a word: what is known here is old, and that is not told for new.
        let (others, back) = cluster.nodes.split_at_mut(4);
        let _silent: Vec<Paused> = others[1..].iter().map(Paused::pause).collect();
        back[0].restart();
        assert_eq!(newest(&back[0]), version);
        back[0].run_json(["cat", "site", "--fresh"]).failure(4, "not_found");
    }
    reads_fresh(&cluster[4], "second");
    assert_eq!(newest(&cluster[4]), version + 1);

    // Three of five answer, and it takes three; two do not tell.
    let publisher = cluster[0].peer_id().to_owned();
    assert!(cluster[1].terminate().0.success());
    reads_fresh(&cluster[4], "second");
    assert_eq!(cluster[4].json(["stat", "site", "--fresh"])["size"], 6);
    assert_eq!(cluster[4].json_lines(["ls", "site", "--fresh"])[0]["size"], 6);
    assert!(cluster[2].terminate().0.success());
    for verb in [&["cat", "site", "--fresh"][..], &["stat", "site", "--fresh"], &["ls", "site", "--fresh"]] {
        let message = cluster[4].run_json(verb).failure(4, "not_found");
        for silent in [&publisher, cluster[1].peer_id(), cluster[2].peer_id()] {
            assert!(message.contains(silent) && message.contains("2 of 3"), "{verb:?}: {message}");
        }
    }
    // What is known here is told all the same.
    assert_eq!(newest(&cluster[4]), version + 1);

    // The publisher alone is enough, for its own name.
    cluster[0].restart();
    cluster[4].wait_for_peers(2);
    assert!(cluster[3].terminate().0.success());
    cluster[4].run_json(["cat", "site", "--fresh"]).failure(4, "not_found");
    let own = format!("{publisher}/site");
    let target = work.join("got");
    cluster[4].run(["get", &own, "--fresh", "-o", utf8(&target)]).ok();
    assert_eq!(fs::read_to_string(&target).expect("it was written"), "second");
}

#[test]
fn a_node_that_gossip_does_not_reach_reads_what_is_newest() {
    let cluster = Cluster::start(NODE, 4);
    let work = Scratch::new("paused");
    let file = work.join("file");
    settle(&cluster, &file);
    reads(&cluster[3], "first");

    let reader = Paused::pause(&cluster[3]);
    let said = publish(&cluster[0], &file, "second");
    assert!(!said.contains("--fresh"), "three of four settle it: {said}");
    drop(reader);
    reads_fresh(&cluster[3], "second");
}

#[test]
fn what_a_cid_names_is_never_fresh() {
    let node = NODE.daemon().start();
    let work = Scratch::new("usage");
    let file = work.join("file");
    let root = node.keep(&file, 1, 1000);
    for verb in ["cat", "stat", "ls", "get"] {
        node.run_json([verb, &root, "--fresh"]).failure(2, "usage");
    }
    node.run_json(["ls", "--fresh"]).failure(2, "usage");
    node.run_json(["cat", "no-such-name", "--fresh"]).failure(4, "not_found");
    // Alone, a node knows all that there is.
    let said = publish(&node, &file, "alone");
    assert!(!said.contains("--fresh"), "{said}");
    assert_eq!(node.run(["cat", "site", "--fresh"]).ok().text(), "alone");
    assert_eq!(text(&node.json(["stat", "site", "--fresh"])["kind"]), "file");
    assert_eq!(node.json(["status"])["complete"], true);
    // One that was told of others, and meets nobody, may lack whatever they know.
    let apart = NODE.daemon().arguments(["--bootstrap", "/ip4/127.0.0.1/tcp/1"]).start();
    assert_eq!(apart.json(["status"])["complete"], false);
    assert!(apart.run(["status"]).ok().text().contains("--fresh"));
    let joining = NODE.daemon().bootstrap(&node).start();
    until("it was introduced to all there are", LONG, || {
        let status = joining.json(["status"]);
        if status["complete"] == true { Ok(()) } else { Err(status.to_string()) }
    });
}
