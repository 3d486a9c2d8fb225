//! Removal, versions and updates of the catalogue, with real processes.

use std::{fs, path::Path};

use p2p_tests::process::{Cluster, Daemon, LONG, Program, Scratch, Watching, text, until, utf8, wait::check};
use serde_json::Value;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

/// Adds `content` under a name, with more arguments.
#[track_caller]
fn publish(node: &Daemon, file: &Path, content: &str, arguments: &[&str]) -> Value {
    fs::write(file, content).expect("it is ours");
    node.json(["add", utf8(file)].into_iter().chain(arguments.iter().copied()))
}

#[track_caller]
fn lists(node: &Daemon, names: &[&str]) {
    until("the catalogue is as it should be", LONG, || {
        let lines = node.json_lines(["ls"]);
        let mut listed: Vec<_> = lines.iter().map(|line| text(&line["name"])).collect();
        listed.sort();
        check(listed == names, format!("{listed:?}"))
    });
}

fn versions(node: &Daemon, name: &str) -> Vec<u64> {
    let lines = node.json_lines(["history", name]);
    lines.iter().map(|line| line["version"].as_u64().expect("a version")).collect()
}

#[test]
fn what_is_removed_is_gone_on_every_node_until_it_is_restored() {
    let mut cluster = Cluster::start(NODE, 4);
    let work = Scratch::new("removed");
    let file = work.join("file");
    let site = publish(&cluster[0], &file, "site", &["--name", "site"]);
    let plain = publish(&cluster[0], &file, "plain", &[]);
    publish(&cluster[1], &work.join("other"), "other", &["--name", "other"]);
    for node in &cluster.nodes {
        lists(node, &["file", "other", "site"]);
    }
    // One is away while it happens.
    assert!(cluster[3].terminate().0.success());
    let removed = cluster[0].json_lines(["rm", "site", &text(&plain["cid"])]);
    assert_eq!(removed.len(), 2);
    assert_eq!(
        (&removed[0]["cid"], &removed[0]["name"], &removed[0]["version"]),
        (&site["cid"], &"site".into(), &2.into())
    );
    assert_eq!((&removed[1]["cid"], &removed[1]["name"]), (&plain["cid"], &"file".into()));
    for node in &cluster.nodes[..3] {
        lists(node, &["other"]);
        node.run_json(["cat", "site"]).failure(4, "not_found");
    }
    cluster[3].restart();
    lists(&cluster[3], &["other"]);
    let history = cluster[3].json_lines(["history", "site"]);
    assert_eq!((history.len(), &history[0]["removed"], &history[0]["version"]), (1, &true.into(), &2.into()));

    // What cannot be removed, and what to do instead.
    let message = cluster[0].run_json(["rm", "other"]).failure(6, "refused");
    assert!(message.contains(cluster[1].peer_id()), "{message}");
    cluster[0].run_json(["rm", "site"]).failure(4, "not_found");
    cluster[0].run_json(["rm", "no-such-name"]).failure(4, "not_found");
    let unknown = "bafkr4ig4ljhnxasawambeqcsymycobuw7ftxdjr3iusquxax2maa5artku";
    for verb in ["rm", "restore", "history"] {
        let message = cluster[0].run_json([verb, unknown]).failure(4, "not_found");
        assert!(message.contains("has the root") && !message.contains("name"), "{verb}: {message}");
    }
    cluster[1].run_json(["rm", "other/inside"]).failure(2, "usage");
    cluster[1].run_json(["rm", "other@1"]).failure(2, "usage");
    // Where one cannot be, none is.
    cluster[1].run_json(["rm", "other", "no-such-name"]).failure(4, "not_found");
    cluster[0].run_json(["restore", "other"]).failure(6, "refused");
    cluster[1].run_json(["restore", "other"]).failure(2, "usage");
    cluster[1].run_json(["restore", "no-such-name"]).failure(4, "not_found");
    for node in &cluster.nodes {
        lists(node, &["other"]);
    }

    let restored = cluster[0].json(["restore", "site"]);
    assert_eq!((&restored["cid"], &restored["version"]), (&site["cid"], &3.into()));
    assert_eq!(cluster[0].run(["restore", &text(&plain["cid"])]).ok().text(), format!("{}\n", text(&plain["cid"])));
    for node in &cluster.nodes {
        lists(node, &["file", "other", "site"]);
        assert_eq!(node.run(["cat", "site"]).ok().text(), "site");
        // What was removed is in the history, and no version to be read.
        let message = node.run_json(["cat", "site@2"]).failure(4, "not_found");
        assert!(message.contains("removal"), "{message}");
        let message = node.run_json(["cat", "site@1"]).failure(4, "not_found");
        assert!(message.contains(": 3 is kept"), "{message}");
    }
    // A CID stands for each entry of it.
    publish(&cluster[0], &file, "site", &[]);
    assert_eq!(cluster[0].json_lines(["rm", &text(&site["cid"])]).len(), 2);
    lists(&cluster[2], &["file", "other"]);
}

#[test]
fn versions_are_kept_read_and_brought_back() {
    let cluster = Cluster::start(NODE, 3);
    let work = Scratch::new("versions");
    let file = work.join("notes");
    for content in ["one", "two", "three"] {
        publish(&cluster[0], &file, content, &["--name", "notes", "--keep", "2"]);
    }
    for node in &cluster.nodes {
        until("all have what is kept", LONG, || {
            let kept = versions(node, "notes");
            check(kept == [3, 2], format!("{kept:?}"))
        });
        assert_eq!(node.run(["cat", "notes"]).ok().text(), "three");
        assert_eq!(node.run(["cat", "notes@2"]).ok().text(), "two");
        let message = node.run_json(["cat", "notes@1"]).failure(4, "not_found");
        assert!(message.contains("2 to 3"), "it does not say what is kept: {message}");
    }
    let qualified = format!("{}/notes@2", cluster[0].peer_id());
    let copy = work.join("copy");
    cluster[1].get(&qualified, &copy);
    assert_eq!(fs::read_to_string(&copy).expect("it was written"), "two");
    let line = &cluster[2].json_lines(["history", "notes"])[1];
    for field in ["name", "version", "cid", "kind", "size", "publisher", "time"] {
        assert!(!line[field].is_null(), "no {field} in {line}");
    }
    assert_eq!(cluster[2].run(["history", "notes"]).ok().text().lines().count(), 2);

    let restored = cluster[0].json(["restore", "notes@2"]);
    assert_eq!(restored["version"], 4);
    until("the earlier one is the newest", LONG, || {
        let now = cluster[2].run(["cat", "notes"]).ok().text();
        check(now == "two", now)
    });
    // All from now on; and then only the last.
    publish(&cluster[0], &file, "five", &["--name", "notes", "--keep", "0"]);
    assert_eq!(versions(&cluster[0], "notes"), [5, 4, 3, 2]);
    publish(&cluster[0], &file, "five", &["--name", "notes", "--keep", "1"]);
    assert_eq!(versions(&cluster[0], "notes"), [6]);
    cluster[1].run_json(["history", "no-such-name"]).failure(4, "not_found");

    // One version has no history of its own.
    let (name, peer) = ("notes".to_owned(), cluster[0].peer_id());
    for (reference, whole) in
        [("notes@6".to_owned(), name.clone()), (format!("{peer}/notes@1"), format!("{peer}/notes"))]
    {
        let output = cluster[1].run_json(["history", &reference]);
        assert!(output.stderr.contains(&format!("p2p-node history {whole}`")), "{output}");
        assert!(output.failure(2, "usage").contains(&reference));
    }
    cluster[1].run_json(["history", "no-such-name@1"]).failure(4, "not_found");
}

#[test]
fn whoever_asks_by_a_label_is_told_what_has_it() {
    let cluster = Cluster::start(NODE, 2);
    let work = Scratch::new("labels");
    let plain = publish(&cluster[0], &work.join("report.txt"), "one", &[]);
    let root = text(&plain["cid"]);
    let (copy, full) = (work.join("copy"), format!("{}/report.txt", cluster[0].peer_id()));
    let verbs: [&[&str]; 10] = [
        &["get", "report.txt", "-o", utf8(&copy)],
        &["cat", "report.txt"],
        &["cat", &full],
        &["ls", "report.txt/inside"],
        &["stat", "report.txt"],
        &["rm", "report.txt"],
        &["restore", "report.txt"],
        &["pin", "report.txt"],
        &["history", "report.txt"],
        &["verify", "report.txt"],
    ];
    for verb in verbs {
        for node in &cluster.nodes {
            let message = node.run_json(verb).failure(4, "not_found");
            assert!(message.contains(&root), "{verb:?}: {message}");
        }
    }
    // Of another publisher it is no label, and of several contents each is told.
    let other = format!("{}/report.txt", cluster[1].peer_id());
    let message = cluster[1].run_json(["cat", &other]).failure(4, "not_found");
    assert!(!message.contains(&root), "{message}");
    let second = publish(&cluster[0], &work.join("report.txt"), "two", &[]);
    let message = cluster[1].run_json(["cat", "report.txt"]).failure(4, "not_found");
    assert!(message.contains(&root) && message.contains(&text(&second["cid"])), "{message}");
    // A name goes before any label.
    publish(&cluster[0], &work.join("other"), "three", &["--name", "report.txt"]);
    assert_eq!(cluster[1].run(["cat", "report.txt"]).ok().text(), "three");
}

#[test]
fn a_name_outlives_its_publisher_and_a_power_cut_of_all() {
    let mut cluster = Cluster::start(NODE, 3);
    let work = Scratch::new("outlives");
    publish(&cluster[0], &work.join("file"), "kept", &["--name", "kept"]);
    // The moment that add has returned: the publisher is gone with its disk, and the others lose what is not on theirs.
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    cluster.lose(0);
    cluster.nodes[0].stay_put();
    cluster.nodes[0].restart();
    let other = cluster.nodes[1].options();
    *other = other.clone().bootstrap_address("/ip4/127.0.0.1/tcp/1");
    cluster.nodes[1].restart();
    for node in &cluster.nodes {
        assert_eq!(node.run(["cat", "kept"]).ok().text(), "kept");
    }
}

#[test]
fn a_watcher_that_was_away_is_told_what_it_missed() {
    let mut node = NODE.daemon().start();
    let work = Scratch::new("watch");
    let file = work.join("file");
    publish(&node, &file, "one", &["--name", "site"]);
    publish(&node, &file, "plain", &[]);
    let watching = Watching::start(&node, Some(0));
    let events = watching.next(2);
    drop(watching);
    let position = |event: &Value| event["position"].as_u64().expect("a position");
    assert_eq!(events.iter().map(|event| text(&event["event"])).collect::<Vec<_>>(), ["added", "added"]);
    assert!(position(&events[0]) < position(&events[1]));

    publish(&node, &file, "two", &["--name", "site"]);
    node.json(["rm", "site"]);
    publish(&node, &file, "three", &["--name", "new"]);
    node.kill();
    node.restart();
    let watching = Watching::start(&node, Some(position(&events[1])));
    let missed = watching.next(2);
    // The second version of the site was superseded by its removal.
    let told: Vec<_> = missed.iter().map(|event| (text(&event["event"]), text(&event["name"]))).collect();
    assert_eq!(told, [("removed".to_owned(), "site".to_owned()), ("added".to_owned(), "new".to_owned())]);
    node.json(["rm", "new"]);
    assert_eq!(watching.next(1)[0]["event"], "removed");
    let ahead = format!("{}", position(&missed[1]) + 100);
    node.run_json(["watch", "--since", &ahead]).failure(2, "usage");
}
