//! Adds that take longer than what nothing lists is protected, and adds that never came to their end.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Child, Stdio},
    time::Duration,
};

use p2p_tests::process::{Cluster, Daemon, Program, Scratch, placement, text, tree, until, wait::check};
use rustix::process::Signal;
use serde_json::Value;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
const K: usize = 3;
/// Graces, comparisons of catalogues and looks at everything come one after the other.
const PATIENCE: Duration = Duration::from_secs(400);

fn hasty(count: usize) -> Cluster {
    with_grace(count, "12s")
}

fn with_grace(count: usize, grace: &'static str) -> Cluster {
    Cluster::start_with(NODE, count, |_, options| options.arguments(["--repair-delay", "3s", "--gc-grace", grace]))
}

/// Adds something on a node, removes it, and waits until all of `nodes` freed it: by then its grace is over, and whoever is
/// seen has compared catalogues since, or seven graces are over.
#[track_caller]
fn until_another_is_freed(nodes: &[&Daemon], work: &Scratch, seed: u64) {
    let decoy = work.join(format!("decoy-{seed}"));
    let gone = nodes[0].keep_wherever(&decoy, seed, 3 << 20);
    let its = placement::chunks(nodes[0], &gone);
    nodes[0].run(["rm", &gone]);
    until("what was removed is freed", PATIENCE, || {
        let held: Vec<BTreeSet<String>> =
            nodes.iter().map(|node| placement::held(node).into_keys().collect()).collect();
        let left: Vec<_> = its.iter().filter(|chunk| held.iter().any(|held| held.contains(*chunk))).collect();
        check(left.is_empty(), format!("{left:?}"))
    });
}

/// `add -` on a node, whose content the test writes.
fn adding(node: &Daemon) -> Child {
    let mut command = node.command(["add", "-", "--json"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary runs")
}

fn write(adding: &mut Child, bytes: &[u8]) {
    let input = adding.stdin.as_mut().expect("it is piped");
    input.write_all(bytes).and_then(|()| input.flush()).expect("it is read");
}

/// What each node has.
fn held(nodes: &[Daemon]) -> Vec<BTreeSet<String>> {
    nodes.iter().map(|node| placement::held(node).into_keys().collect()).collect()
}

/// Waits until so many chunks have their copies.
#[track_caller]
fn until_copied(nodes: &[Daemon], chunks: usize) {
    until("what was written has its copies", PATIENCE, || {
        let held: usize = held(nodes).iter().map(BTreeSet::len).sum();
        check(held >= K * chunks, format!("{held} copies"))
    });
}

#[test]
fn an_add_that_lasts_longer_than_the_grace_is_whole_at_its_end() {
    let cluster = hasty(5);
    let work = Scratch::new("long-add");
    let content = tree::noise(81, (12 << 20) + 99);
    let (first, rest) = content.split_at(9 << 20);
    let mut child = adding(&cluster[0]);
    write(&mut child, first);
    // Content is read by 8 MiB: the rest waits for more.
    until_copied(&cluster.nodes, 8);
    let sent: BTreeSet<String> = held(&cluster.nodes).into_iter().flatten().collect();

    // Something else is removed meanwhile: when it is freed, the grace is over, and everything was looked at.
    until_another_is_freed(&[1, 2, 3, 4, 0].map(|place| &cluster[place]), &work, 82);
    let still: BTreeSet<String> = held(&cluster.nodes).into_iter().flatten().collect();
    assert!(still.is_superset(&sent), "what the add had sent was freed under it");

    write(&mut child, rest);
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text_out = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let lines = text_out.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let line = lines.into_iter().find(|line| line.get("cid").is_some()).expect("it says what was added");
    assert_eq!(line["replicas"], serde_json::json!({"wanted": 3, "min": 3}), "{line}");
    let root = text(&line["cid"]);
    let wrong = placement::misplaced(&cluster.nodes, &placement::chunks(&cluster[3], &root), K);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(cluster[4].run(["cat", &root]).ok().stdout, content);
}

#[test]
fn an_add_over_several_graces_with_a_peer_that_stands_still_is_whole_at_its_end() {
    let cluster = with_grace(5, "8s");
    let work = Scratch::new("stopped");
    let content = tree::noise(85, (12 << 20) + 99);
    let (first, rest) = content.split_at(9 << 20);
    let mut child = adding(&cluster[0]);
    write(&mut child, first);
    until_copied(&cluster.nodes, 8);
    // All have compared catalogues since: what the add sent is freed once nobody renews it.
    until_another_is_freed(&[1, 2, 3, 4, 0].map(|place| &cluster[place]), &work, 86);
    let awake = [0, 1, 2, 3].map(|place| &cluster[place]);
    let held = || -> BTreeSet<String> { awake.iter().flat_map(|node| placement::held(node).into_keys()).collect() };
    let sent = held();
    cluster[4].signal(Signal::STOP);
    // It says nothing and is waited for by nobody, for seven graces.
    until_another_is_freed(&awake, &work, 87);
    assert!(held().is_superset(&sent), "what the add had sent was freed under it");

    write(&mut child, rest);
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 5)), "{said}");
    let text_out = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let mut lines = text_out.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let line = lines.find(|line| line.get("cid").is_some()).expect("it says what was added");
    let root = text(&line["cid"]);
    for node in awake {
        assert_eq!(node.run(["cat", &root]).ok().stdout, content);
    }
    cluster[4].signal(Signal::CONT);
    cluster.meet();
    assert_eq!(cluster[4].run(["cat", &root]).ok().stdout, content);
    until("every copy is where it belongs", PATIENCE, || {
        let wrong = placement::misplaced(&cluster.nodes, &placement::chunks(&cluster[3], &root), K);
        check(wrong.is_empty(), format!("{wrong:?}"))
    });
}

#[test]
fn what_an_add_left_that_was_killed_is_freed_on_every_node() {
    let mut cluster = hasty(4);
    let work = Scratch::new("died-add");
    let kept = work.join("kept");
    let root = cluster[1].keep(&kept, 83, 1 << 20);
    let before: usize = held(&cluster.nodes).iter().map(BTreeSet::len).sum();
    let mut child = adding(&cluster[0]);
    write(&mut child, &tree::noise(84, 8 << 20));
    until("most of it has its copies", PATIENCE, || {
        let held: usize = held(&cluster.nodes).iter().map(BTreeSet::len).sum();
        check(held >= before + K * 7, format!("{held} copies"))
    });
    cluster[0].stay_put();
    cluster[0].kill();
    let code = child.wait_with_output().expect("it ends").status.code();
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    cluster[0].restart();
    cluster.meet();
    let wanted: BTreeSet<String> = placement::chunks(&cluster[1], &root).into_iter().collect();
    until("only what is listed is on the disks", PATIENCE, || {
        let left: Vec<usize> = held(&cluster.nodes).iter().map(|held| held.difference(&wanted).count()).collect();
        check(left.iter().all(|left| *left == 0), format!("{left:?}"))
    });
    for node in &cluster.nodes {
        node.gives(&root, &kept);
    }
}
