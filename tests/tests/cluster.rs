//! Several daemons as one store: placement, loss, copies that could not be made, the catalogue.
//!
//! What is checked is checked from outside: exit codes, JSON, files on disk, and placement computed a second time.

use std::{collections::BTreeMap, fs};

use p2p_tests::process::{
    Cluster, Daemon, LONG, Output, Program, Scratch, Watching, placement, text, tree, until, utf8, wait::check,
};
use serde_json::Value;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

/// The line of an `add` that reported something, among what else it printed.
fn added(output: &Output) -> Value {
    output.json_lines().into_iter().find(|line| line.get("cid").is_some()).unwrap_or_else(|| panic!("no CID: {output}"))
}

/// The catalogue as one node tells it, without the order.
fn catalogue(node: &Daemon) -> Vec<String> {
    let mut lines: Vec<_> = node.json_lines(["ls"]).iter().map(Value::to_string).collect();
    lines.sort();
    lines
}

#[track_caller]
fn catalogues_become_equal(nodes: &[Daemon], entries: usize) {
    until("all catalogues are equal", LONG, || {
        let all: Vec<_> = nodes.iter().map(catalogue).collect();
        check(all.iter().all(|one| *one == all[0] && one.len() == entries), format!("{all:#?}"))
    });
}

#[test]
fn what_one_node_is_given_every_other_gives_back() {
    let cluster = Cluster::start(NODE, 5);
    let work = Scratch::new("given");
    let directory = work.join("tree");
    tree::grow(&directory, 11, 30);
    let file = work.join("file.bin");
    tree::noise_file(&file, 5012, (5 << 20) + 77);
    let piped = tree::noise(5013, 2_500_000);

    let of_directory = cluster[0].add(&directory);
    let of_file = cluster[1].add(&file);
    let of_pipe = Output::fed(cluster[2].command(["add", "-", "--json"]), Some(piped.clone())).ok().json();
    for (line, from) in [(&of_directory, utf8(&directory)), (&of_file, utf8(&file)), (&of_pipe, "-")] {
        assert_eq!(line["path"], from);
        assert_eq!(line["replicas"]["wanted"], 3);
        assert_eq!(line["replicas"]["min"], 3, "{line}");
        assert!(line["seconds"].as_f64().expect("seconds") >= 0.0);
    }
    assert_eq!(of_file["size"], (5 << 20) + 77);
    // Six leaves and the node that links them.
    assert_eq!((&of_file["chunks"], &of_file["chunks_new"]), (&7.into(), &7.into()));
    assert_eq!(of_pipe["size"], piped.len());

    // A second time costs nothing new, and says so.
    let again = cluster[1].add(&file);
    assert_eq!((&again["cid"], &again["chunks"], &again["chunks_new"]), (&of_file["cid"], &7.into(), &0.into()));
    // Several paths are a line each; without --json only the roots.
    let both = cluster[3].run(["add", utf8(&file), utf8(&directory)]).ok();
    assert_eq!(both.text(), format!("{}\n{}\n", text(&of_file["cid"]), text(&of_directory["cid"])));

    for (place, node) in cluster.nodes.iter().enumerate() {
        let before = placement::held(node);
        let copy = work.join(format!("tree-{place}"));
        let got = node.get(&text(&of_directory["cid"]), &copy);
        tree::assert_same(&directory, &copy);
        assert_eq!(got["path"], utf8(&copy));
        assert_eq!(got["cid"], of_directory["cid"]);
        assert_eq!(got["size"], of_directory["size"]);
        assert_eq!(got["chunks"], of_directory["chunks"]);
        let sent: u64 = got["from"].as_object().expect("by peer").values().filter_map(Value::as_u64).sum();
        assert!(sent >= got["size"].as_u64().expect("bytes"), "{got}");

        let copy = work.join(format!("file-{place}"));
        node.get(&text(&of_file["cid"]), &copy);
        tree::assert_same(&file, &copy);
        assert_eq!(node.run(["cat", &text(&of_pipe["cid"])]).ok().stdout, piped);
        assert_eq!(placement::held(node), before, "reading left something in the store");
    }
    let names = ["tree", "file.bin"];
    let copies: Vec<_> = (0..5).flat_map(|place| [format!("tree-{place}"), format!("file-{place}")]).collect();
    let expected: Vec<_> = names.into_iter().chain(copies.iter().map(String::as_str)).collect();
    assert!(tree::strangers(work.path(), &expected).is_empty(), "partial files were left");
}

#[test]
fn replicas_are_on_exactly_the_k_closest() {
    let cluster = Cluster::start(NODE, 6);
    let work = Scratch::new("placement");
    let directory = work.join("tree");
    tree::grow(&directory, 21, 60);
    for (place, copies) in [(0, 3), (4, 2)] {
        let file = work.join(format!("k-{copies}"));
        tree::noise_file(&file, 5022 + copies as u64, 6 << 20);
        for source in [&file, &directory] {
            let output = cluster[place].run_json(["add", utf8(source), "--replicas", &copies.to_string()]).ok();
            let root = text(&output.json()["cid"]);
            // The directory is asked for thrice first: what was wanted more of stays wanted.
            let copies = if source == &directory { 3 } else { copies };
            let chunks = placement::chunks(&cluster[place], &root);
            assert_eq!(chunks.len() as u64, output.json()["chunks"].as_u64().expect("a number"));
            let wrong = placement::misplaced(&cluster.nodes, &chunks, copies);
            assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), chunks.len());
            the_network_agrees(&cluster, &root, copies);
        }
    }
}

/// `stat` from every node tells the same, and tells what the stores hold.
#[track_caller]
fn the_network_agrees(cluster: &Cluster, root: &str, copies: usize) {
    let mut truth: BTreeMap<String, u64> = BTreeMap::new();
    let first = cluster[0].json(["stat", root]);
    for row in first["placement"].as_array().expect("rows") {
        let mut holders: Vec<_> = row["holders"].as_array().expect("peers").iter().map(text).collect();
        holders.sort();
        let ids = cluster.peer_ids();
        assert_eq!(holders, placement::closest(&text(&row["cid"]), ids.iter().map(String::as_str), copies));
        for holder in holders {
            *truth.entry(holder).or_default() += 1;
        }
    }
    for node in &cluster.nodes {
        let stat = node.json(["stat", root]);
        let holders: BTreeMap<String, u64> = serde_json::from_value(stat["holders"].clone()).expect("by peer");
        assert_eq!(holders, truth, "{}", node.peer_id());
        assert_eq!((&stat["replicas"]["min"], &stat["replicas"]["max"]), (&copies.into(), &copies.into()), "{stat}");
        for field in ["cid", "kind", "size", "chunks"] {
            assert_eq!(stat[field], first[field]);
        }
        let short = node.json(["stat", root, "--no-placement"]);
        assert!(short.get("placement").is_none() && short["replicas"] == stat["replicas"]);
    }
}

#[test]
fn the_node_that_added_may_die_for_good() {
    let mut cluster = Cluster::start(NODE, 5);
    let work = Scratch::new("death");
    let directory = work.join("tree");
    tree::grow(&directory, 31, 40);
    let line = cluster[2].add(&directory);
    assert_eq!(line["replicas"]["min"], 3);
    let root = text(&line["cid"]);
    let disk = cluster[2].data_dir().to_owned();
    cluster.lose(2);
    assert!(!disk.exists());
    for (place, node) in cluster.nodes.iter().enumerate() {
        let copy = work.join(format!("copy-{place}"));
        node.get(&root, &copy);
        tree::assert_same(&directory, &copy);
        let entry = node.json_lines(["ls"]);
        assert!(entry.iter().any(|line| line["cid"] == root.as_str()), "{entry:?}");
    }
    // And one more of those that were left: three copies bear the loss of two.
    cluster.lose(0);
    let copy = work.join("after-two");
    cluster[1].get(&root, &copy);
    tree::assert_same(&directory, &copy);
}

#[test]
fn copies_that_could_not_be_made_are_made_as_peers_join() {
    // What is short is seen by audits; who is gone has its share made again soon.
    let audited = ["--audit-interval", "2s", "--repair-delay", "2s"];
    let mut cluster = Cluster::start_with(NODE, 2, |_, options| options.arguments(audited));
    let work = Scratch::new("few");
    let file = work.join("file");
    tree::noise_file(&file, 41, 4 << 20);
    let output = cluster[0].run_json(["add".as_ref(), file.as_os_str()]).ok();
    let root = text(&output.json()["cid"]);
    assert_eq!(output.json()["replicas"], serde_json::json!({"wanted": 3, "min": 2}));
    assert!(output.stderr.contains('2') && output.stderr.contains('3'), "no warning: {}", output.stderr);
    assert!(cluster[0].status()["replication"]["under_replicated"].as_u64().expect("a number") > 0);

    // The one that was asked dies before anybody comes; whoever lives makes the copies.
    cluster.lose(0);
    let second = NODE.daemon().arguments(audited).bootstrap(&cluster[0]).start();
    let third = NODE.daemon().arguments(audited).bootstrap(&cluster[0]).start();
    cluster.nodes.extend([second, third]);
    cluster.meet();
    until("three copies of each chunk are there", LONG, || {
        let stat = cluster[1].json(["stat", &root]);
        check(stat["replicas"]["min"] == 3, stat)
    });
    let chunks = placement::chunks(&cluster[0], &root);
    until("they are the duty of the three that are left", LONG, || {
        let wrong = placement::misplaced(&cluster.nodes, &chunks, 3);
        check(wrong.is_empty(), format!("{wrong:#?}"))
    });
    until("nothing is short of copies any more", LONG, || {
        let short: Vec<_> =
            cluster.nodes.iter().map(|node| node.status()["replication"]["under_replicated"].clone()).collect();
        check(short.iter().all(|count| *count == 0), format!("{short:?}"))
    });

    // With the copies made, the last of the first two may go as well.
    cluster.lose(0);
    let copy = work.join("copy");
    cluster[1].get(&root, &copy);
    tree::assert_same(&file, &copy);
}

#[test]
fn what_a_lone_node_has_goes_to_the_k_closest_of_those_who_come() {
    let mut cluster = Cluster::start(NODE, 1);
    let work = Scratch::new("lone");
    let file = work.join("file");
    tree::noise_file(&file, 45, 6 << 20);
    let output = cluster[0].run_json(["add".as_ref(), file.as_os_str()]).ok();
    let root = text(&output.json()["cid"]);
    assert_eq!(output.json()["replicas"]["min"], 1);
    for _ in 0..3 {
        let next = NODE.daemon().bootstrap(&cluster[0]).start();
        cluster.nodes.push(next);
    }
    cluster.meet();
    // With four nodes the first is of about three quarters of the replica sets; of the rest it keeps a cache.
    until("three copies of each chunk are there", LONG, || {
        let stat = cluster[3].json(["stat", &root]);
        check(stat["replicas"]["min"] == 3, stat)
    });
    let copy = work.join("copy");
    cluster[2].get(&root, &copy);
    tree::assert_same(&file, &copy);
}

#[test]
fn a_copy_that_a_peer_did_not_take_is_exit_code_5() {
    let mut cluster = Cluster::start(NODE, 3);
    let work = Scratch::new("short");
    let file = work.join("more-than-there-are");
    tree::noise_file(&file, 51, 1 << 20);
    let arguments = ["add", utf8(&file), "--replicas", "5", "--wait", "5"];
    let output = cluster[0].run_json(arguments);
    let line = added(&output);
    assert_eq!(line["replicas"], serde_json::json!({"wanted": 5, "min": 3}));
    output.failure(5, "under_replicated");
    assert_eq!(cluster[0].run(arguments).expect(5).text().trim(), text(&line["cid"]), "what is stored stays");

    // Five are wanted, all three that there are took it: that is enough unless told to wait.
    let output = cluster[0].run_json(["add", utf8(&file), "--replicas", "5"]).ok();
    assert_eq!(added(&output)["replicas"]["min"], 3);
    // More than are made, of so many as there are.
    let output = cluster[0].run_json(["add", utf8(&file), "--replicas", "2", "--wait", "3"]);
    assert_eq!(added(&output)["replicas"], serde_json::json!({"wanted": 2, "min": 2}));
    let message = output.failure(5, "under_replicated");
    assert!(message.contains("--replicas 3"), "it does not say why: {message}");
    // Two are waited for although three are wanted; the third comes all the same.
    cluster[0].run_json(["add", utf8(&file), "--wait", "2"]).ok();

    // A storing peer that was seen a moment ago and is dead.
    let dead = cluster[1].peer_id().to_owned();
    cluster[1].kill();
    let file = work.join("while-one-is-dead");
    tree::noise_file(&file, 52, 1 << 20);
    let output = cluster[0].run_json(["add", utf8(&file)]);
    let line = added(&output);
    assert_eq!(line["replicas"]["min"], 2);
    let message = output.failure(5, "under_replicated");
    assert!(message.contains(&dead), "it does not say who: {message}");
    // Nor does the adder forget it when it is started anew.
    cluster[0].stay_put();
    cluster[0].terminate();
    cluster[0].restart();
    let file = work.join("while-one-is-still-dead");
    tree::noise_file(&file, 53, 1 << 20);
    let output = cluster[0].run_json(["add", utf8(&file)]);
    let later = added(&output);
    let message = output.failure(5, "under_replicated");
    assert!(message.contains(&dead), "it does not say who: {message}");
    cluster[1].restart();
    until("the missing copies are made when it is back", LONG, || {
        let stats = [&line, &later].map(|line| cluster[2].json(["stat", &text(&line["cid"])]));
        check(stats.iter().all(|stat| stat["replicas"]["min"] == 3), format!("{stats:?}"))
    });
}

#[test]
fn every_node_tells_the_same_catalogue() {
    let mut cluster = Cluster::start(NODE, 4);
    let work = Scratch::new("catalogue");
    let watching = Watching::start(&cluster[3], None);
    // It watches from when it is heard: what is added until the first update tells that it is.
    let probe = work.join("probe");
    let mut sent = 0;
    until("the watch tells something", LONG, || {
        sent += 1;
        fs::write(&probe, format!("{sent}")).expect("fresh");
        cluster[3].json(["add", utf8(&probe), "--name", "probe"]);
        watching.soon().ok_or("nothing")
    });
    for place in 0..3 {
        let file = work.join(format!("file-{place}"));
        tree::noise_file(&file, 60 + place as u64, 10_000);
        cluster[place].add(&file);
    }
    // The three and the probe.
    catalogues_become_equal(&cluster.nodes, 4);
    let lines = cluster[1].json_lines(["ls"]);
    let entry = lines.iter().find(|line| line["name"] == "file-0").unwrap_or_else(|| panic!("{lines:?}"));
    for field in ["name", "cid", "kind", "size", "publisher", "version", "updated"] {
        assert!(!entry[field].is_null(), "no {field} in {entry}");
    }
    assert_eq!((&entry["kind"], &entry["size"], &entry["version"]), (&"file".into(), &10_000.into(), &1.into()));
    assert!(text(&entry["updated"]).ends_with('Z'), "times are UTC: {entry}");
    let events = watching.others(3, "probe");
    for event in &events {
        assert_eq!(event["event"], "added");
        for field in ["cid", "name", "size", "publisher", "version", "time", "position"] {
            assert!(!event[field].is_null(), "no {field} in {event}");
        }
    }
    drop(watching);

    // One is away while more is added, by nodes of which one then dies.
    assert!(cluster[2].terminate().0.success());
    for place in [0, 1] {
        let file = work.join(format!("away-{place}"));
        tree::noise_file(&file, 70 + place as u64, 10_000);
        // A peer that was here a moment ago is away: kept, and short of a copy where it was to have one.
        let output = cluster[place].run_json(["add".as_ref(), file.as_os_str()]);
        assert!(matches!(output.code, 0 | 5), "{output}");
    }
    cluster[2].restart();
    catalogues_become_equal(&cluster.nodes, 6);
    cluster[0].kill();
    cluster[0].restart();
    catalogues_become_equal(&cluster.nodes, 6);
    let newcomer = NODE.daemon().bootstrap(&cluster[1]).start();
    cluster.nodes.push(newcomer);
    catalogues_become_equal(&cluster.nodes, 6);
}

#[test]
fn a_local_add_is_replicated_in_the_background() {
    let cluster = Cluster::start(NODE, 4);
    let work = Scratch::new("local");
    let file = work.join("file");
    tree::noise_file(&file, 141, 4 << 20);
    let line = cluster[0].json(["add", utf8(&file), "--local"]);
    let root = text(&line["cid"]);
    assert_eq!(placement::held(&cluster[0]).len() as u64, line["chunks"].as_u64().expect("a number"));
    let copy = work.join("copy");
    cluster[1].get(&root, &copy);
    tree::assert_same(&file, &copy);
    let mut stat = Value::Null;
    until("the copies are made", LONG, || {
        stat = cluster[2].json(["stat", &root]);
        check(stat["replicas"]["min"] == 3, &stat)
    });
    until("replicas are on exactly the k closest", LONG, || {
        let wrong = placement::misplaced(&cluster.nodes, &placement::chunks(&cluster[0], &root), 3);
        check(wrong.is_empty(), format!("{wrong:#?}"))
    });
}
