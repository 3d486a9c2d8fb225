//! What the program does by itself, without a daemon: usage, settings, `--only-hash`, completions, its output streams.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
    process::{Command, Stdio},
};

use p2p_tests::process::{Output, Program, Scratch, utf8};
use serde_json::Value;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

#[test]
fn usage_errors_have_code_2_and_are_told_twice_with_json() {
    let cases: [&[&str]; 12] = [
        &["nonsense"],
        &["rm"],
        &["add"],
        &["add", "x", "--replicas", "0"],
        &["add", "x", "--replicas", "17"],
        &["add", "x", "--chunker", "size-1"],
        &["add", "x", "--local", "--wait", "1"],
        &["add", "a", "b", "--name", "n"],
        &["add", "-", "-"],
        &["cat", "x", "--offset", "1MB"],
        &["connect", "127.0.0.1:4242"],
        &["connect", "/ip4/127.0.0.1"],
    ];
    for case in cases {
        let plain = NODE.run(case);
        plain.failure(2, "usage");
        for json in [[&["--json"], case].concat(), [case, &["--json"]].concat()] {
            let output = NODE.run(&json);
            assert_eq!(output.json_lines().len(), 1, "{output}");
            output.failure(2, "usage");
        }
    }
    assert!(NODE.run(["nonsense"]).expect(2).stdout.is_empty());
    // What stands after `--` is a path, not an option.
    assert!(NODE.run(["add", "--only-hash", "--", "--json"]).expect(1).stdout.is_empty());
}

#[test]
fn help_and_version_go_to_standard_output() {
    for case in [&["--help"][..], &["-h"], &["add", "--help"], &["--json", "daemon", "--help"]] {
        let text = NODE.run(case).ok().text();
        assert!(text.contains("Exit codes:") && text.contains("Usage: p2p-node"), "{text}");
    }
    assert!(NODE.run(["--version"]).ok().text().starts_with("p2p-node "));
    let bare = NODE.run::<&str>([]).expect(2);
    assert!(bare.stdout.is_empty() && bare.stderr.contains("daemon"), "{bare}");
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = NODE.run(["completions", shell]).ok().text();
        for word in ["daemon", "only-hash", "no-placement", "data-dir"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    NODE.run(["completions", "tcsh"]).failure(2, "usage");
}

/// The bytes of a generator of the vectors; `None`: it is no file's, or too long for a test in a debug build.
fn bytes(generator: &Value) -> Option<Vec<u8>> {
    let number = |name: &str| generator[name].as_u64();
    match generator["type"].as_str()? {
        "hex" => {
            let hex = generator["hex"].as_str()?;
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
        }
        "repeat" => Some(vec![number("byte")? as u8; number("len")? as usize]),
        "affine" if number("len")? <= 8 << 20 => {
            let (a, b, m) = (number("a")?, number("b")?, number("m")?);
            Some((0..number("len")?).map(|i| ((a * i + b) % m) as u8).collect())
        }
        _ => None,
    }
}

/// Makes what a vector describes at `path`; `false` if it cannot be made here.
fn make(path: &Path, generator: &Value) -> bool {
    if let Some(bytes) = bytes(generator) {
        fs::write(path, bytes).expect("a fresh directory takes a file");
        return true;
    }
    let Some(entries) = generator["entries"].as_array() else { return false };
    fs::create_dir(path).expect("it is fresh");
    entries.iter().all(|entry| {
        let at = path.join(entry["path"].as_str().expect("every entry has a path"));
        if let Some(target) = entry["symlink"].as_str() {
            return symlink(target, at).is_ok();
        }
        if entry["dir"] == true { fs::create_dir(at).is_ok() } else { make(&at, &entry["file"]) }
    })
}

#[test]
fn only_hash_gives_the_roots_of_other_implementations_without_a_daemon() {
    let work = Scratch::new("vectors");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/unixfs-blake3.json");
    let text = fs::read_to_string(file).expect("the vectors are part of the project");
    let all: Value = serde_json::from_str(&text).expect("they are JSON");
    let mut paths = Vec::new();
    let mut roots = Vec::new();
    for vector in all["vectors"].as_array().expect("a list") {
        let path = work.join(vector["name"].as_str().expect("a name"));
        if make(&path, &vector["generator"]) {
            roots.push(vector["cid"].as_str().expect("a root").to_owned());
            paths.push(path);
        }
    }
    assert!(roots.len() >= 12, "only {} of the vectors could be made", roots.len());
    let paths: Vec<&str> = paths.iter().map(|path| utf8(path)).collect();
    let plain = NODE.run([&["add", "--only-hash"], &paths[..]].concat()).ok();
    assert_eq!(plain.text().lines().collect::<Vec<_>>(), roots, "a line a path, in their order");
    let lines = NODE.run([&["add", "--only-hash", "--json"], &paths[..]].concat()).ok().json_lines();
    for ((line, root), path) in lines.iter().zip(&roots).zip(&paths) {
        assert_eq!((line["cid"].as_str(), line["path"].as_str()), (Some(root.as_str()), Some(*path)));
    }
    assert_eq!(lines.len(), roots.len());
}

#[test]
fn only_hash_reads_standard_input() {
    let hash = |input: Vec<u8>, more: &[&str]| {
        let command = NODE.command([&["add", "--only-hash", "-"], more].concat());
        Output::fed(command, Some(input)).ok().text().trim_end().to_owned()
    };
    let hello = "bafkr4ig4ljhnxasawambeqcsymycobuw7ftxdjr3iusquxax2maa5artku";
    assert_eq!(hash(b"hello world\n".to_vec(), &[]), hello);
    let long: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let work = Scratch::new("stdin");
    fs::write(work.join("long"), &long).expect("fresh");
    for chunker in ["size-1048576", "size-1KiB", "fastcdc"] {
        let file = work.join("long");
        let of_file = NODE.run(["add", "--only-hash", "--chunker", chunker, utf8(&file)]).ok().text();
        assert_eq!(hash(long.clone(), &["--chunker", chunker]), of_file.trim_end(), "{chunker}");
    }
}

#[test]
fn a_path_that_fails_does_not_stop_the_others() {
    let work = Scratch::new("several");
    let (first, last) = (work.join("first"), work.join("last"));
    for path in [&first, &last] {
        fs::write(path, "hello world\n").expect("fresh");
    }
    let missing = work.join("missing");
    let paths = [utf8(&first), utf8(&missing), utf8(&last)];
    let plain = NODE.run([&["add", "--only-hash"], &paths[..]].concat()).expect(1);
    assert_eq!(plain.text().lines().count(), 2, "{plain}");
    assert!(plain.stderr.contains("missing"), "{plain}");
    let json = NODE.run([&["--json", "add", "--only-hash"], &paths[..]].concat()).expect(1);
    let lines = json.json_lines();
    assert_eq!(lines.len(), 3, "{json}");
    assert!(lines[0].get("cid").is_some() && lines[2].get("cid").is_some(), "{json}");
    assert_eq!(lines[1]["error"]["kind"], "failed");
}

#[test]
fn names_cannot_drive_the_terminal() {
    let work = Scratch::new("hostile");
    for name in [&b"\x1b[2Jgone"[..], b"\xff\x07"] {
        let path = work.join(std::ffi::OsStr::from_bytes(name));
        let output = NODE.run([Path::new("add"), Path::new("--only-hash"), Path::new("--json"), &path]);
        assert!(!output.stderr.contains(['\u{1b}', '\u{7}']), "{output:?}");
        assert!(!output.stdout.iter().any(|byte| *byte < b' ' && *byte != b'\n'), "{output:?}");
        output.failure(1, "failed");
    }
}

#[test]
fn settings_that_cannot_work_stop_the_daemon_before_it_starts() {
    let work = Scratch::new("settings");
    let run = |dir: &Path, variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = NODE.command(["daemon", "--json", "--data-dir", utf8(dir)]);
        command.args(arguments).envs(variables.iter().copied());
        Output::of(command)
    };
    let fresh = work.join("fresh");
    for (variables, arguments, says) in [
        (&[][..], &["--listen", "/ip4/127.0.0.1"][..], "/ip4/127.0.0.1"),
        (&[], &["--network", "a/b"], "a/b"),
        (&[], &["--capacity", "10GB"], "10GB"),
        (&[], &["--config", "/nowhere.toml"], "/nowhere.toml"),
        (&[("P2P_NODE_REPLICAS", "many")], &[], "P2P_NODE_REPLICAS"),
        (&[("P2P_NODE_BOOTSTRAP", "localhost")], &[], "P2P_NODE_BOOTSTRAP"),
    ] {
        let message = run(&fresh, variables, arguments).failure(2, "usage");
        assert!(message.contains(says), "{message}");
    }
    assert!(!fresh.exists(), "a daemon that does not start leaves nothing");
    let dir = work.join("with-a-file");
    fs::create_dir(&dir).expect("fresh");
    fs::write(dir.join("config.toml"), "replicas = 2\nreplica = 3\n").expect("fresh");
    let message = run(&dir, &[], &[]).failure(2, "usage");
    for part in ["config.toml", "line 2", "`replica`"] {
        assert!(message.contains(part), "{message}");
    }
    fs::write(work.join("plain-file"), "").expect("fresh");
    run(&work.join("plain-file"), &[], &[]).failure(1, "failed");
}

#[test]
fn a_closed_standard_output_ends_it_quietly_and_a_full_one_does_not() {
    let work = Scratch::new("closed");
    let paths: Vec<_> = (0..50)
        .map(|n| {
            let path = work.join(format!("f{n}"));
            fs::write(&path, n.to_string()).expect("fresh");
            path
        })
        .collect();
    for arguments in [vec!["completions", "bash"], vec!["--help"]] {
        let mut child =
            NODE.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    let mut command: Command = NODE.command(["add", "--only-hash"]);
    let mut child = command.args(&paths).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");

    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    if let Ok(full) = full {
        let output = NODE.command(["completions", "bash"]).stdout(full).stderr(Stdio::piped()).output();
        let output = output.expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"), "{output:?}");
    }
}

#[test]
fn the_data_directory_is_found_by_option_environment_and_default() {
    let work = Scratch::new("found");
    let mut by_variable = NODE.command(["status"]);
    by_variable.env("P2P_NODE_DATA_DIR", work.join("variable"));
    assert!(Output::of(by_variable).failure(3, "no_daemon").contains("variable"));
    let mut by_option = NODE.command(["status", "--data-dir", "option"]);
    by_option.env("P2P_NODE_DATA_DIR", work.join("variable")).current_dir(work.path());
    let message = Output::of(by_option).failure(3, "no_daemon");
    assert!(message.contains(utf8(&work.join("option"))), "a relative one is the caller's: {message}");
    let by_default = NODE.run(["status"]).failure(3, "no_daemon");
    assert!(by_default.contains("p2p-node"), "{by_default}");
}
