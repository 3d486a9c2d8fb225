//! What is asked for and how it comes back: names, paths, ranges, outputs, resumption, metadata, chunkers.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use p2p_tests::process::{
    Cluster, LONG, Output, Program, Scratch, reaper, text, tree, until, utf8,
    wait::{check, until_watching},
};
use rustix::process::Signal;
use serde_json::Value;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

#[test]
fn names_have_versions_and_files_without_one_never_supersede_each_other() {
    let cluster = Cluster::start(NODE, 3);
    let work = Scratch::new("names");
    let directory = work.join("docs");
    tree::grow(&directory, 81, 3);
    let first = cluster[0].json(["add", utf8(&directory), "--name", "docs"]);
    fs::write(directory.join("new"), "second").expect("it is ours");
    let second = cluster[0].json(["add", utf8(&directory), "--name", "docs"]);
    assert_ne!(first["cid"], second["cid"]);
    until("the second version is known", LONG, || {
        let lines = cluster[2].json_lines(["ls"]);
        let [line] = &lines[..] else { return Err(format!("{lines:?}")) };
        check(line["version"] == 2 && line["name"] == "docs" && line["cid"] == second["cid"], line)
    });
    let copy = work.join("by-name");
    assert_eq!(cluster[2].get("docs", &copy)["cid"], second["cid"]);
    tree::assert_same(&directory, &copy);
    let qualified = format!("{}/docs", cluster[0].peer_id());
    assert_eq!(cluster[1].json(["stat", &qualified])["cid"], second["cid"]);
    assert_eq!(cluster[1].run(["cat", "docs/new"]).ok().text(), "second");
    assert_eq!(cluster[1].run(["cat", &format!("{qualified}/new")]).ok().text(), "second");
    // What a name was is still there under its address.
    cluster[1].json(["stat", &text(&first["cid"])]);

    // Two publishers of one name: it must be said whose.
    let other = work.join("other");
    fs::write(&other, "other").expect("fresh");
    cluster[1].json(["add", utf8(&other), "--name", "docs"]);
    until("both are known", LONG, || {
        check(cluster[2].json_lines(["ls"]).len() == 2, format!("{:?}", cluster[2].json_lines(["ls"])))
    });
    let output = cluster[2].run_json(["cat", "docs"]);
    assert!(matches!(output.code, 1 | 2), "{output}");
    assert!(output.stderr.contains(cluster[0].peer_id()) && output.stderr.contains(cluster[1].peer_id()), "{output}");
    assert_eq!(cluster[2].run(["cat", &format!("{}/docs", cluster[1].peer_id())]).ok().text(), "other");

    // Labels are no names.
    for (place, content) in [(0, "mine"), (0, "yours")] {
        let report = work.join(format!("{content}/report.txt"));
        fs::create_dir(work.join(content)).expect("fresh");
        fs::write(&report, content).expect("fresh");
        cluster[place].add(&report);
    }
    until("both reports stand", LONG, || {
        let lines = cluster[1].json_lines(["ls"]);
        let reports = lines.iter().filter(|line| line["name"] == "report.txt").count();
        check(reports == 2, format!("{lines:?}"))
    });
    cluster[1].run_json(["cat", "report.txt"]).failure(4, "not_found");
    cluster[1].run_json(["cat", "no-such-name"]).failure(4, "not_found");
    cluster[1].run_json(["add", utf8(&other), "--name", "a/b"]).failure(2, "usage");
    cluster[1].run_json(["add", utf8(&other), "--name", ""]).failure(2, "usage");
}

#[test]
fn paths_ranges_and_listings() {
    let cluster = Cluster::start(NODE, 3);
    let work = Scratch::new("paths");
    let directory = work.join("tree");
    tree::grow(&directory, 91, 5);
    let root = text(&cluster[0].add(&directory)["cid"]);
    let reader = &cluster[1];

    let lines = reader.json_lines(["ls", &root]);
    let names: Vec<_> = lines.iter().map(|line| text(&line["name"])).collect();
    for (name, kind, size) in
        [("exact", "file", 1 << 20), (".hidden", "directory", 10), ("nothing", "file", 0), ("one byte", "file", 1)]
    {
        let line = &lines[names.iter().position(|found| found == name).unwrap_or_else(|| panic!("{names:?}"))];
        assert_eq!((&line["kind"], &line["size"]), (&kind.into(), &size.into()), "{line}");
        // What a listing says can be had under its own address.
        assert_eq!(reader.json(["stat", &text(&line["cid"])])["kind"], kind);
    }
    let dangling = lines.iter().find(|line| line["name"] == "dangling").expect("links are listed");
    assert_eq!(dangling["kind"], "symlink");
    assert_eq!(reader.json_lines(["ls", &format!("{root}/.hidden")]).len(), 1);

    let inside = format!("{root}/больше/日本語 ünïcode");
    let whole = tree::noise(91 + 3, 3_500_000);
    assert_eq!(reader.run(["cat", &inside]).ok().stdout, whole);
    let size = whole.len() as u64;
    for (offset, length) in [
        (0, 1),
        (1_048_575, 2),
        (1_048_576, 1_048_576),
        (3_000_000, 500_000),
        (3_499_999, 10),
        (3_500_000, 1),
        (9_999_999, 5),
        (5, 0),
    ] {
        let (from, to) = (offset.min(size) as usize, (offset + length).min(size) as usize);
        let (offset, length) = (offset.to_string(), length.to_string());
        let part = reader.run(["cat", &inside, "--offset", &offset, "--length", &length]).ok().stdout;
        assert!(part == whole[from..to], "--offset {offset} --length {length} gave {} bytes", part.len());
    }
    assert!(reader.run(["cat", &inside, "--offset", "3400000"]).ok().stdout == whole[3_400_000..]);
    reader.run_json(["cat", &root]).failure(1, "failed");
    reader.run_json(["cat", &format!("{root}/no/such/thing")]).failure(4, "not_found");
    reader.run_json(["stat", &format!("{root}/exact/inside-a-file")]).failure(4, "not_found");

    // One file out of a tree; a sub-tree; a link as a link.
    let out = work.join("out");
    fs::create_dir(&out).expect("fresh");
    let mut command = reader.command(["get", &format!("{root}/.hidden")]);
    command.current_dir(&out);
    assert_eq!(Output::of(command).ok().text().trim_end(), utf8(&out.join(".hidden")));
    tree::assert_same(&directory.join(".hidden"), &out.join(".hidden"));
    reader.get(&format!("{root}/link"), &out.join("link"));
    assert_eq!(fs::read_link(out.join("link")).expect("a link"), Path::new("exact"));
    // Into an existing directory, under the entry's name.
    let got = reader.get(&format!("{root}/over"), &out);
    assert_eq!(got["path"], utf8(&out.join("over")));
    tree::assert_same(&directory.join("over"), &out.join("over"));
    // Under the label that it was published with; of a bare address that nobody published, under the address.
    let labelled = work.join("labelled");
    fs::create_dir(&labelled).expect("fresh");
    reader.get(&root, &labelled);
    tree::assert_same(&directory, &labelled.join("tree"));
    let hidden = text(&lines.iter().find(|line| line["name"] == ".hidden").expect("listed")["cid"]);
    reader.get(&hidden, &labelled);
    tree::assert_same(&directory.join(".hidden"), &labelled.join(&hidden));
}

#[test]
fn get_never_overwrites_unless_forced() {
    let cluster = Cluster::start(NODE, 2);
    let work = Scratch::new("force");
    let file = work.join("file");
    tree::noise_file(&file, 101, 2 << 20);
    let root = text(&cluster[0].add(&file)["cid"]);
    let target = work.join("target");
    fs::write(&target, "precious").expect("fresh");
    let message = cluster[1].run_json(["get", &root, "-o", utf8(&target)]).failure(1, "failed");
    assert!(message.contains(utf8(&target)) && message.contains("--force"), "{message}");
    assert_eq!(fs::read(&target).expect("it is there"), b"precious");
    cluster[1].run_json(["get", &root, "-o", utf8(&target), "--force"]).ok();
    tree::assert_same(&file, &target);

    let directory = work.join("tree");
    tree::grow(&directory, 102, 3);
    let root = text(&cluster[0].add(&directory)["cid"]);
    let into = work.join("into");
    fs::create_dir_all(into.join("tree/src")).expect("fresh");
    fs::write(into.join("tree/exact"), "precious").expect("fresh");
    cluster[1].run_json(["get", &root, "-o", utf8(&into)]).failure(1, "failed");
    assert_eq!(fs::read(into.join("tree/exact")).expect("it is there"), b"precious");
    cluster[1].run_json(["get", &root, "-o", utf8(&into), "--force"]).ok();
    assert_eq!(fs::read(into.join("tree/exact")).expect("it is there"), tree::noise(103, 1 << 20));
    assert!(tree::strangers(&into, &["tree"]).is_empty(), "partial files were left");
}

#[test]
fn a_get_that_was_cut_off_goes_on_where_it_was() {
    const SIZE: u64 = 96 << 20;
    let source = NODE.daemon().start();
    let work = Scratch::new("resume");
    let file = work.join("large");
    tree::noise_file(&file, 111, SIZE);
    // One copy, wanted once, while nobody else is there: all of it stays on this node.
    let line = source.json(["add", utf8(&file), "--replicas", "1"]);
    let root = text(&line["cid"]);
    let mut reader = NODE.daemon().bootstrap(&source).start();
    reader.wait_for_peers(1);

    let out = Scratch::new("resumed");
    let target = out.join("copy");
    let mut command = reader.command(["get", &root, "-o", utf8(&target)]);
    let mut getting = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs");
    reaper::born(getting.id());
    until_watching("some of it has arrived", LONG, Duration::from_millis(1), || {
        let Some(partial) = tree::strangers(out.path(), &[]).pop() else { return Err("no partial file".to_owned()) };
        let written = allocated(&out.join(&partial));
        check(written > 8 << 20, format!("{written} bytes in {partial}"))
    });
    // Its source stands still, so that it cannot end before it is killed.
    source.signal(Signal::STOP);
    reader.kill();
    let code = getting.wait().expect("it is a child").code();
    reaper::ended(getting.id());
    assert!(!target.exists(), "nothing stands under the name before it is whole");
    assert!(matches!(code, Some(1 | 3)), "the daemon went away under the command: {code:?}");
    source.signal(Signal::CONT);

    reader.restart();
    reader.wait_for_peers(1);
    let got = reader.get(&root, &target);
    tree::assert_same(&file, &target);
    let sent: u64 = got["from"].as_object().expect("by peer").values().filter_map(Value::as_u64).sum();
    assert!(sent <= SIZE - (1 << 20), "{sent} of {SIZE} bytes were fetched once more");
    assert!(tree::strangers(out.path(), &["copy"]).is_empty(), "the partial file is still there");
}

/// Bytes of a file that are on disk: a partial file may be long and hollow.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or(0, |kind| kind.blocks() * 512)
}

#[test]
fn preserved_modes_and_times_come_back() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::start(NODE, 2);
    let work = Scratch::new("preserve");
    let directory = work.join("tree");
    tree::grow(&directory, 121, 2);
    fs::set_permissions(directory.join("exact"), fs::Permissions::from_mode(0o750)).expect("it is ours");
    fs::set_permissions(directory.join("empty"), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for name in ["over", "one byte", ".hidden", ""] {
        let file = fs::File::open(directory.join(name)).expect("it is there");
        file.set_modified(old).expect("it is ours");
    }
    let plain = cluster[0].add(&directory);
    let kept = cluster[0].json(["add", utf8(&directory), "--preserve"]);
    assert_ne!(plain["cid"], kept["cid"], "metadata is part of what is addressed");
    let copy = work.join("copy");
    cluster[1].get(&text(&kept["cid"]), &copy);
    tree::assert_same(&directory, &copy);
    assert_eq!(tree::modes(&directory), tree::modes(&copy));
}

#[test]
fn chunkers_and_only_hash_agree() {
    let cluster = Cluster::start(NODE, 2);
    let work = Scratch::new("chunkers");
    let file = work.join("file");
    let mut bytes = tree::noise(131, 6 << 20);
    fs::write(&file, &bytes).expect("fresh");
    for chunker in ["size-1048576", "size-65536", "fastcdc"] {
        let line = cluster[0].json(["add", utf8(&file), "--chunker", chunker]);
        // Needs no daemon, and stores nothing.
        let hashed = NODE.run(["add", utf8(&file), "--chunker", chunker, "--only-hash"]).ok();
        assert_eq!(hashed.text().trim_end(), text(&line["cid"]), "{chunker}");
        let copy = work.join(chunker);
        cluster[1].get(&text(&line["cid"]), &copy);
        tree::assert_same(&file, &copy);
    }
    // A byte at the front moves every fixed cut and few of those made by content.
    bytes.insert(0, 7);
    fs::write(&file, &bytes).expect("fresh");
    let line = cluster[0].json(["add", utf8(&file), "--chunker", "fastcdc"]);
    let (chunks, new) = (line["chunks"].as_u64().expect("a number"), line["chunks_new"].as_u64().expect("a number"));
    assert!(new * 2 <= chunks, "{new} of {chunks} chunks are new");
    for chunker in ["size-1023", "size-2097153", "size-", "rabin", ""] {
        cluster[0].run_json(["add", utf8(&file), "--chunker", chunker]).failure(2, "usage");
    }
    for (option, value) in [("--replicas", "0"), ("--replicas", "17"), ("--wait", "0"), ("--replicas", "x")] {
        cluster[0].run_json(["add", utf8(&file), option, value]).failure(2, "usage");
    }
}

#[test]
fn relative_paths_are_the_callers() {
    let cluster = Cluster::start(NODE, 1);
    let work = Scratch::new("relative");
    fs::create_dir(work.join("inside")).expect("fresh");
    fs::write(work.join("inside/file"), "relative").expect("fresh");
    let run = |words: &[&str]| {
        let mut command: Command = cluster[0].command(words.iter().copied());
        command.current_dir(work.join("inside"));
        Output::of(command).ok()
    };
    let line = run(&["add", "file", "--json"]).json();
    assert_eq!(line["path"], "file");
    run(&["get", &text(&line["cid"]), "-o", "../copy"]);
    assert_eq!(fs::read(work.join("copy")).expect("it is there"), b"relative");
    let line = run(&["add", ".", "--json"]).json();
    assert_eq!(cluster[0].json_lines(["ls", &text(&line["cid"])])[0]["name"], "file");
}
