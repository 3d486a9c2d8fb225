//! Whole copies that a user has one machine keep: there when everybody else is dead, through kills, later versions and
//! removals, and given back when they are unpinned.

use std::{collections::BTreeSet, path::Path, time::Duration};

use p2p_tests::process::{Cluster, Daemon, Options, Program, Scratch, placement, text, tree, until, utf8, wait::check};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
/// Graces, looks at everything and copies, one after the other.
const PATIENCE: Duration = Duration::from_secs(240);
const MIB: u64 = 1 << 20;

/// Of machines that keep two copies of what they add.
fn settings(more: &'static [&'static str]) -> impl Fn(usize, Options) -> Options {
    move |_, options| options.arguments(["--replicas", "2"]).arguments(more.iter().copied())
}

fn held(node: &Daemon) -> BTreeSet<String> {
    placement::held(node).into_keys().collect()
}

/// Those of `chunks` that a machine does not have.
fn lacking(node: &Daemon, chunks: &[String]) -> Vec<String> {
    let held = held(node);
    chunks.iter().filter(|chunk| !held.contains(*chunk)).cloned().collect()
}

#[track_caller]
fn has_all(node: &Daemon, chunks: &[String]) {
    until("all of it is there", PATIENCE, || {
        let lacking = lacking(node, chunks);
        check(lacking.is_empty(), format!("{} of {} are not", lacking.len(), chunks.len()))
    });
}

#[track_caller]
fn has_none(node: &Daemon, chunks: &[String]) {
    until("nothing of it is there", PATIENCE, || {
        let held = held(node);
        let left = chunks.iter().filter(|chunk| held.contains(*chunk)).count();
        check(left == 0, format!("{left} of {} are", chunks.len()))
    });
}

/// What is pinned on a machine: CID, and `name` or `cid`.
fn pinned(node: &Daemon) -> Vec<(String, String)> {
    let lines = node.json_lines(["ls", "--pinned"]);
    lines.iter().map(|line| (text(&line["cid"]), text(&line["pinned"]))).collect()
}

fn add_named(node: &Daemon, name: &str, file: &Path) -> String {
    text(&node.json(["add", "--name", name, "--keep", "1", utf8(file)])["cid"])
}

#[test]
fn what_is_pinned_is_read_with_every_other_machine_dead() {
    let mut cluster = Cluster::start_with(NODE, 5, settings(&[]));
    let work = Scratch::new("pinned");
    let (file, directory) = (work.join("film"), work.join("tree"));
    let film = cluster[0].keep(&file, 901, 20 * MIB + 77);
    tree::grow(&directory, 902, 60);
    let root = text(&cluster[1].json(["add", "--name", "tree", utf8(&directory)])["cid"]);
    let all: Vec<Vec<String>> = [&film, &root].iter().map(|root| placement::chunks(&cluster[0], root)).collect();
    assert!(!lacking(&cluster[4], &all[0]).is_empty() && !lacking(&cluster[4], &all[1]).is_empty());

    let node = &cluster[4];
    assert_eq!(node.run(["pin", &film]).ok().text(), format!("{film}\n"));
    let line = node.json(["pin", "tree"]);
    assert_eq!((text(&line["cid"]), text(&line["pinned"])), (root.clone(), "name".to_owned()), "{line}");
    let again = node.json(["pin", &film]);
    assert!(again["chunks"].as_u64().is_some_and(|chunks| chunks as usize > all[0].len()), "the manifest too: {again}");
    // All of it was here when it said so, and is this machine's to hold.
    let roles = placement::held(node);
    for chunk in all.iter().flatten() {
        assert_eq!(roles.get(chunk).map(String::as_str), Some("replica"), "{chunk}");
    }
    assert_eq!(pinned(node), [(film.clone(), "cid".to_owned()), (root.clone(), "name".to_owned())]);
    let shown = node.run(["ls", "--pinned"]).ok().text();
    assert!(shown.contains(&film) && shown.contains("film") && shown.lines().count() == 2, "{shown}");
    assert_eq!(pinned(&cluster[0]), [], "nobody else's");
    // `status` counts it from then on, and not only after the next look at everything.
    until("the node's duty is what it holds as its own", PATIENCE, || {
        let replicas = placement::held(node).values().filter(|role| *role == "replica").count();
        let replication = node.status()["replication"].take();
        check(replication["duty"] == replicas && replication["missing"] == 0, format!("{replicas}: {replication}"))
    });
    // It is no copy that counts, and none of theirs goes for it.
    let stat = cluster[0].json(["stat", &film]);
    assert_eq!((&stat["replicas"]["wanted"], &stat["replicas"]["min"]), (&2.into(), &2.into()), "{stat}");
    cluster.nodes[..4].iter_mut().for_each(Daemon::kill);
    let node = &cluster[4];
    node.gives(&film, &file);
    node.gives("tree", &directory);
    let bytes = tree::noise(901, (20 * MIB + 77) as usize);
    let cat = node.run(["cat", &film, "--offset", "19000000", "--length", "70"]).ok();
    assert_eq!(cat.stdout, bytes[19_000_000..19_000_070]);
}

#[test]
fn a_removal_leaves_what_is_pinned_by_its_root_and_unpinning_gives_it_back() {
    let cluster = Cluster::start_with(NODE, 4, settings(&["--gc-grace", "2s", "--audit-interval", "2s"]));
    let work = Scratch::new("unpinned");
    let (goes, stays) = (work.join("goes"), work.join("stays"));
    let gone = cluster[0].keep(&goes, 911, 14 * MIB);
    let kept = cluster[0].keep(&stays, 912, 5 * MIB);
    let of = |root: &str| placement::chunks(&cluster[0], root);
    let (gone_chunks, kept_chunks) = (of(&gone), of(&kept));
    let node = &cluster[3];
    for root in [&gone, &kept] {
        node.json(["pin", root]);
    }
    cluster[0].run(["rm", &gone]).ok();
    cluster.nodes[..3].iter().for_each(|other| has_none(other, &gone_chunks));
    // Neither a look at everything, nor what nothing lists being freed, takes it.
    node.run(["verify"]).ok();
    let freed = node.json(["gc"]);
    assert_eq!((&freed["chunks_freed"], &freed["kept_in_grace"]), (&0.into(), &0.into()), "{freed}");
    assert_eq!(lacking(node, &gone_chunks), [""; 0]);
    node.gives(&gone, &goes);
    cluster[1].gives(&gone, &goes);
    assert_eq!(pinned(node).len(), 2);

    assert_eq!(node.run(["unpin", &gone]).ok().text(), format!("{gone}\n"));
    assert_eq!(pinned(node), [(kept.clone(), "cid".to_owned())]);
    has_none(node, &gone_chunks);
    assert_eq!(cluster[1].run(["get", &gone, "-o", utf8(&work.join("nothing"))]).code, 4);
    let refused = node.run_json(["unpin", &gone]).failure(4, "not_found");
    assert!(refused.contains("is not pinned on this node"), "{refused}");
    // What others are to hold is a cached copy from then on: published as it is, nobody frees it.
    node.json(["unpin", &kept]);
    let nearest = |chunk: &String| placement::closest(chunk, cluster.nodes.iter().map(Daemon::peer_id), 2);
    until("it is what it would be without the pin", PATIENCE, || {
        let roles = placement::held(node);
        let wrong: Vec<_> = kept_chunks
            .iter()
            .filter(|chunk| {
                let expected = if nearest(chunk).contains(&node.peer_id()) { "replica" } else { "cache" };
                roles.get(*chunk).map(String::as_str) != Some(expected)
            })
            .collect();
        check(wrong.is_empty(), format!("{wrong:?}"))
    });
    assert!(
        placement::misplaced(&cluster.nodes, &kept_chunks, 2).is_empty(),
        "the copies that count are where they were"
    );
    cluster[1].gives(&kept, &stays);
}

#[test]
fn a_pin_that_was_cut_off_goes_on_after_a_restart() {
    let slow = |place: usize, options: Options| {
        let options = options.arguments(["--replicas", "2"]);
        if place == 3 { options.arguments(["--repair-rate", "2MiB"]) } else { options }
    };
    let mut cluster = Cluster::start_with(NODE, 4, slow);
    let work = Scratch::new("cut-off");
    let file = work.join("file");
    let root = cluster[0].keep(&file, 921, 40 * MIB);
    let chunks = placement::chunks(&cluster[0], &root);
    let before = lacking(&cluster[3], &chunks).len();
    assert!(before > 4, "{before}");
    let mut waiting = cluster[3].command(["pin", &root]).spawn().expect("it starts");
    until("some of it came", PATIENCE, || {
        let left = lacking(&cluster[3], &chunks).len();
        check(left < before, left)
    });
    let node = &mut cluster.nodes[3];
    node.stay_put();
    node.kill();
    assert!(!waiting.wait().expect("it ends").success(), "nobody told it that all was there");
    node.restart();
    let node = &cluster[3];
    assert_eq!(pinned(node), [(root.clone(), "cid".to_owned())]);
    has_all(node, &chunks);
    // Whoever pins it again is told when the manifest is there too.
    node.json(["pin", &root]);
    cluster.nodes[..3].iter_mut().for_each(Daemon::kill);
    cluster[3].gives(&root, &file);
}

#[test]
fn a_pinned_name_follows_its_versions_and_ends_with_it() {
    let mut cluster = Cluster::start_with(NODE, 4, settings(&["--gc-grace", "2s", "--audit-interval", "2s"]));
    let work = Scratch::new("followed");
    let files: Vec<_> = (0..3).map(|version| work.join(format!("version-{version}"))).collect();
    for (seed, file) in (931..).zip(&files) {
        tree::noise_file(file, seed, 10 * MIB);
    }
    let first = add_named(&cluster[0], "site", &files[0]);
    let of_first = placement::chunks(&cluster[0], &first);
    assert_eq!(cluster[3].run(["pin", "site"]).ok().text(), format!("{first}\n"));
    assert_eq!(lacking(&cluster[3], &of_first), [""; 0]);

    let second = add_named(&cluster[0], "site", &files[1]);
    let of_second = placement::chunks(&cluster[0], &second);
    has_all(&cluster[3], &of_second);
    has_none(&cluster[3], &of_first);
    assert_eq!(pinned(&cluster[3]), [(second.clone(), "name".to_owned())]);
    let refused = cluster[3].run_json(["unpin", &second]).failure(4, "not_found");
    assert!(refused.contains("pinned by its name: site"), "{refused}");

    // One that was published while this machine was off, and a restart with everybody else.
    let node = &mut cluster.nodes[3];
    node.stay_put();
    node.kill();
    let third =
        text(&cluster[0].run_json(["add", "--name", "site", "--keep", "1", utf8(&files[2])]).json_lines()[0]["cid"]);
    let of_third = placement::chunks(&cluster[0], &third);
    cluster.nodes[3].restart();
    has_all(&cluster[3], &of_third);
    has_none(&cluster[3], &of_second);

    cluster[0].run(["rm", "site"]).ok();
    until("the pin is over", PATIENCE, || {
        let pins = pinned(&cluster[3]);
        check(pins.is_empty(), format!("{pins:?}"))
    });
    has_none(&cluster[3], &of_third);
    assert_eq!(cluster[3].run(["unpin", "site"]).code, 4);
    // The name again is another one's: nobody pinned that.
    add_named(&cluster[0], "site", &files[0]);
    assert_eq!(pinned(&cluster[3]), []);
}

#[test]
fn what_nobody_published_as_such_is_pinned_by_its_links() {
    let mut cluster = Cluster::start_with(NODE, 4, settings(&["--gc-grace", "2s"]));
    let work = Scratch::new("inside");
    let directory = work.join("tree");
    std::fs::create_dir_all(directory.join("sub/deep")).expect("it is made");
    tree::noise_file(&directory.join("sub/deep/file"), 941, 12 * MIB);
    tree::noise_file(&directory.join("other"), 942, 2 * MIB);
    let root = text(&cluster[0].add(&directory)["cid"]);
    let inside = format!("{root}/sub/deep/file");
    let file = text(&cluster[0].json(["stat", &inside])["cid"]);
    let chunks = placement::chunks(&cluster[0], &inside);
    let node = &cluster[3];
    assert_eq!(node.run(["pin", &inside]).ok().text(), format!("{file}\n"));
    assert_eq!(pinned(node), [(file.clone(), "cid".to_owned())]);
    assert_eq!(node.json_lines(["ls", "--pinned"])[0]["name"], "file");
    // Also when the tree around it is gone, and a table that is looked through says so.
    cluster[0].run(["rm", &root]).ok();
    cluster.nodes[..3].iter().for_each(|other| has_none(other, &chunks));
    assert_eq!(lacking(node, &chunks), [""; 0]);
    cluster.nodes[..3].iter_mut().for_each(Daemon::kill);
    let node = &cluster[3];
    node.gives(&file, &directory.join("sub/deep/file"));
    node.run(["unpin", &file]).ok();
    assert_eq!(pinned(node), []);
}

#[test]
fn what_cannot_be_kept_whole_is_not_pinned() {
    let mut cluster = Cluster::start_with(NODE, 3, |place, options| {
        if place == 2 { options.capacity("8MiB") } else { options }.arguments(["--replicas", "1"])
    });
    let work = Scratch::new("refused");
    let root = cluster[0].keep(&work.join("large"), 951, 30 * MIB);
    let refused = cluster[2].run_json(["pin", &root]).failure(6, "refused");
    assert!(refused.contains("room for"), "{refused}");
    assert_eq!(pinned(&cluster[2]), []);
    assert_eq!(cluster[2].run(["pin", "no-such-name"]).code, 4);
    assert_eq!(cluster[2].run(["pin", "bafynotacid"]).code, 2);
    // Only the dead one has all of it.
    let lonely = cluster[1].json(["add", "--local", utf8(&work.join("large")), "--chunker", "size-65536"]);
    cluster.nodes[1].kill();
    let missing = cluster[0].run(["pin", &text(&lonely["cid"])]);
    assert_eq!(missing.code, 4, "{missing}");
}

#[test]
fn what_a_full_catalogue_pushed_out_stays_pinned_and_listed() {
    const NAMES: usize = 6;
    let few = |place: usize, options: Options| {
        if place == 0 { options.arguments(["--catalogue-entries", "16"]) } else { options }
    };
    let mut cluster = Cluster::start_with(NODE, 2, few);
    let work = Scratch::new("pushed-out");
    let add = |node: &Daemon, number: usize| {
        let file = work.join(format!("{number}"));
        tree::noise_file(&file, 940 + number as u64, 10_000);
        add_named(node, &format!("name {number}"), &file)
    };
    let mut expected: Vec<_> = (0..NAMES).map(|number| (add(&cluster[1], number), "name".to_owned())).collect();
    for number in 0..NAMES {
        // Not before it is known there.
        until("it is pinned", PATIENCE, || {
            let output = cluster[0].run(["pin", &format!("name {number}")]);
            check(output.code == 0, output)
        });
    }
    assert_eq!(pinned(&cluster[0]), expected);
    for number in NAMES..40 {
        let file = work.join(format!("{number}"));
        tree::noise_file(&file, 940 + number as u64, 10_000);
        // The other one may have no room for the entry.
        let output = cluster[1].run(["add", "--name", &format!("name {number}"), utf8(&file)]);
        assert!(matches!(output.code, 0 | 5), "{output}");
    }
    let listed = |node: &Daemon| -> BTreeSet<String> {
        node.json_lines(["ls"]).iter().map(|line| text(&line["name"])).collect()
    };
    let out = |node: &Daemon| {
        let listed = listed(node);
        (0..NAMES).find(|number| !listed.contains(&format!("name {number}")))
    };
    until("one that is pinned was pushed out", PATIENCE, || {
        check(out(&cluster[0]).is_some(), format!("{:?}", listed(&cluster[0])))
    });
    let lines = cluster[0].json_lines(["ls", "--pinned"]);
    assert_eq!(pinned(&cluster[0]), expected, "{lines:?}");
    assert!(lines.iter().all(|line| line["size"] == 10_000 && line["publisher"] == cluster[1].peer_id()), "{lines:?}");

    // It is kept with everybody else gone, also after a start.
    cluster[1].kill();
    cluster[0].kill();
    cluster[0].restart();
    assert_eq!(pinned(&cluster[0]), expected);
    cluster[0].run(["verify"]).ok();
    let at = out(&cluster[0]).expect("it is still full");
    let cat = cluster[0].run(["cat", &expected[at].0]).ok();
    assert_eq!(cat.stdout, tree::noise(940 + at as u64, 10_000));
    cluster[0].run(["unpin", &format!("name {at}")]).ok();
    expected.remove(at);
    assert_eq!(pinned(&cluster[0]), expected);
}
