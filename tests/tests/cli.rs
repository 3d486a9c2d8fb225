//! The command line as users and scripts meet it: help, usage errors, where output goes, exit codes, completions.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use p2p_tests::process::{Cluster, LONG, Output, Program, Scratch, reaper, text, tree, until, utf8, wait::check};
use rustix::process::{Pid, Signal};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

const VERBS: [&str; 18] = [
    "daemon", "gc", "drain", "verify", "add", "get", "cat", "ls", "stat", "rm", "restore", "history", "watch", "peers",
    "connect", "status", "pin", "unpin",
];

#[test]
fn help_is_there_for_every_verb_and_says_what_exit_codes_mean() {
    let help = NODE.run(["--help"]).ok();
    assert!(help.text().contains("completions"));
    for verb in VERBS {
        assert!(help.text().contains(verb), "{verb} is not in --help");
        let own = NODE.run([verb, "--help"]).ok().text();
        assert!(own.to_lowercase().contains("exit code"), "{verb} --help says nothing of exit codes");
        assert!(own.contains("--data-dir") && own.contains("--json"), "{verb} --help lacks the global options");
    }
    assert!(help.text().contains("open to all"), "it does not say that the network is open");
    assert!(NODE.run(["--version"]).ok().text().contains(env!("CARGO_PKG_VERSION")));
    // What is not there yet is not half there.
    for verb in ["network", "web", "export", "import"] {
        NODE.run([verb]).expect(2);
    }
}

#[test]
fn the_help_of_the_daemon_names_the_variable_of_each_option() {
    let help = NODE.run(["daemon", "--help"]).ok().text();
    let options = help.lines().filter_map(|line| line.strip_prefix("      --")?.split_whitespace().next());
    // Those that every verb takes are said elsewhere.
    let own: Vec<&str> = options.filter(|option| !["data-dir", "json"].contains(option)).collect();
    assert!(own.len() > 10, "{help}");
    for option in own {
        let option = option.split('[').next().expect("there is a first part");
        let variable = format!("P2P_NODE_{}", option.to_uppercase().replace('-', "_"));
        assert!(help.contains(&variable), "{variable} is not in the help");
    }
}

#[test]
fn usage_errors_are_exit_code_2_on_every_verb() {
    let wrong: [&[&str]; 14] = [
        &[],
        &["no-such-verb"],
        &["add"],
        &["get"],
        &["cat"],
        &["connect"],
        &["connect", "localhost"],
        &["status", "--no-such-flag"],
        &["add", "x", "--replicas", "17"],
        &["add", "-", "-"],
        &["daemon", "--listen", "127.0.0.1"],
        &["daemon", "--capacity", "much"],
        &["daemon", "--replicas", "0"],
        &["daemon", "--network", "a/b"],
    ];
    for arguments in wrong {
        let output = NODE.run(arguments).expect(2);
        assert!(output.stdout.is_empty(), "{output}");
        assert!(!output.stderr.trim().is_empty(), "{output}");
        assert!(!output.stderr.contains("Error {") && !output.stderr.contains("Err("), "Debug output: {output}");
    }
    let mut json = Vec::from(["get", "--json"]);
    NODE.run(&json).failure(2, "usage");
    json.push("--no-such-flag");
    NODE.run(&json).failure(2, "usage");
}

#[test]
fn global_options_stand_before_or_after_the_verb_and_the_environment_names_the_directory() {
    let node = NODE.daemon().start();
    let directory = utf8(node.data_dir());
    for arguments in [
        ["--data-dir", directory, "--json", "status"],
        ["status", "--json", "--data-dir", directory],
        ["--json", "status", "--data-dir", directory],
    ] {
        assert_eq!(NODE.run(arguments).ok().json()["peer_id"], node.peer_id());
    }
    let mut command = NODE.command(["status", "--json"]);
    command.env("P2P_NODE_DATA_DIR", directory);
    assert_eq!(Output::of(command).ok().json()["peer_id"], node.peer_id());
    // A relative directory is the caller's.
    let mut command = NODE.command(["status", "--json", "--data-dir", "d"]);
    command.current_dir(node.data_dir().parent().expect("it is in a scratch directory"));
    assert_eq!(Output::of(command).ok().json()["peer_id"], node.peer_id());
    // None named: the platform's, where nobody runs.
    let message = NODE.run(["status"]).failure(3, "no_daemon");
    assert!(message.contains("p2p-node daemon"), "it does not say what to do: {message}");
}

#[test]
fn results_go_to_stdout_and_nothing_else_does() {
    let cluster = Cluster::start(NODE, 2);
    let work = Scratch::new("stdout");
    let file = work.join("file");
    tree::noise_file(&file, 401, 3 << 20);
    let added = cluster[0].run(["add", utf8(&file)]).ok();
    let root = added.text().trim_end().to_owned();
    assert_eq!(added.text(), format!("{root}\n"));
    let target = work.join("target");
    let got = cluster[1].run(["get", &root, "-o", utf8(&target)]).ok();
    assert_eq!(got.text(), format!("{}\n", utf8(&target)));
    assert!(cluster[1].run(["cat", &root]).ok().stdout == fs::read(&file).expect("it is ours"));
    for output in [&added, &got] {
        // Not a terminal: no bars, no colours.
        assert!(!output.stderr.contains('\x1b') && !output.stderr.contains('\r'), "{output}");
    }
    // Two copies where three are wanted: said, unless quiet is asked for, and never on stdout.
    assert!(!added.stderr.trim().is_empty(), "no warning: {added}");
    for (verb, columns) in [("peers", 3), ("ls", 3)] {
        let text = cluster[0].run([verb]).ok().text();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.split_whitespace().count() >= columns, "{text}");
    }
    assert!(cluster[0].run(["stat", &root]).ok().text().contains(cluster[0].peer_id()));
    assert!(cluster[0].run(["status"]).ok().text().contains(cluster[0].peer_id()));
    let lines = cluster[0].json_lines(["stat", "--local"]);
    assert_eq!(lines.len(), 4);
    for line in &lines {
        assert!(line["cid"].is_string() && line["size"].is_u64() && line["wanted"] == 3, "{line}");
        assert!(line["role"] == "replica" || line["role"] == "cache", "{line}");
    }
}

#[test]
fn a_reader_that_goes_away_is_not_a_failure_to_shout_about() {
    let node = NODE.daemon().start();
    let work = Scratch::new("pipe");
    let root = node.keep(&work.join("file"), 411, 8 << 20);
    let mut command = node.command(["cat", &root]);
    let mut reading = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    reaper::born(reading.id());
    let mut pipe = reading.stdout.take().expect("it is piped");
    std::io::Read::read_exact(&mut pipe, &mut [0; 10]).expect("there are ten bytes");
    drop(pipe);
    let ended = reading.wait_with_output().expect("it is a child");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!said.contains("panicked"), "{said}");
    node.gives(&root, &work.join("file"));
}

#[test]
fn an_interrupted_get_leaves_nothing_under_the_name_and_the_daemon_stops_working_on_it() {
    let source = NODE.daemon().start();
    let work = Scratch::new("interrupt");
    let file = work.join("file");
    tree::noise_file(&file, 421, 64 << 20);
    let root = text(&source.json(["add", utf8(&file), "--replicas", "1"])["cid"]);
    let reader = NODE.daemon().bootstrap(&source).start();
    reader.wait_for_peers(1);
    // Its source stands still, so that it cannot be done first.
    source.signal(Signal::STOP);
    let out = Scratch::new("interrupted");
    let mut command = reader.command(["get", &root, "-o", utf8(&out.join("target"))]);
    let mut getting = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs");
    reaper::born(getting.id());
    assert!(matches!(getting.try_wait(), Ok(None)));
    let pid = i32::try_from(getting.id()).ok().and_then(Pid::from_raw).expect("a process has a positive number");
    rustix::process::kill_process(pid, Signal::INT).expect("it is a child");
    let status = until("the command ended", LONG, || match getting.try_wait() {
        Ok(Some(status)) => Ok(status),
        _ => Err("it still runs"),
    });
    reaper::ended(getting.id());
    assert!(!status.success());
    source.signal(Signal::CONT);
    assert!(!out.join("target").exists());
    reader.wait_for_peers(1);
    reader.get(&root, &out.join("target"));
    tree::assert_same(&file, &out.join("target"));
}

#[test]
fn watch_ends_when_its_daemon_does() {
    let mut node = NODE.daemon().start();
    let mut command = node.command(["watch", "--json"]);
    let mut watching = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs");
    reaper::born(watching.id());
    assert_eq!(node.status()["peer_id"], node.peer_id());
    let (status, took) = node.terminate();
    assert!(status.success() && took.as_secs() < 10, "a watcher holds the daemon up: {status}, {took:?}");
    until("the watch ended", LONG, || check(matches!(watching.try_wait(), Ok(Some(_))), "it still runs"));
    reaper::ended(watching.id());
}

#[test]
fn completions_are_scripts_of_their_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = NODE.run(["completions", shell]).ok().text();
        for verb in VERBS {
            assert!(script.contains(verb), "{shell} does not know {verb}");
        }
    }
    NODE.run(["completions", "no-such-shell"]).expect(2);
    // The one shell that is everywhere here reads its script.
    let script = NODE.run(["completions", "bash"]).ok().stdout;
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().expect("the scripts here need bash");
    bash.stdin.take().expect("it is piped").write_all(&script).expect("it reads");
    assert!(bash.wait().expect("it is a child").success());
}

#[test]
fn only_hash_gives_known_roots_without_a_daemon() {
    let work = Scratch::new("hash");
    fs::write(work.join("hello"), "hello world\n").expect("fresh");
    let known = "bafkr4ig4ljhnxasawambeqcsymycobuw7ftxdjr3iusquxax2maa5artku";
    let output = NODE.run(["add", utf8(&work.join("hello")), "--only-hash"]).ok();
    assert_eq!(output.text(), format!("{known}\n"));
    let piped = Output::fed(NODE.command(["add", "-", "--only-hash"]), Some(b"hello world\n".to_vec())).ok();
    assert_eq!(piped.text(), format!("{known}\n"));
    let json = NODE.run(["add", utf8(&work.join("hello")), "--only-hash", "--json"]).ok().json();
    assert_eq!(json["cid"], known);
    NODE.run(["add", utf8(&work.join("missing")), "--only-hash"]).expect(1);
}
