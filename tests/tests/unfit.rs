//! Input that cannot be taken: each is named, each has its exit code, and nothing comes of it.
//!
//! What needs root or a tool that is not there is reported as ignored, with the reason.

use std::{
    fs,
    io::Write,
    os::unix::{ffi::OsStrExt, fs::symlink},
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use p2p_tests::process::{Daemon, LONG, Program, Scratch, reaper, text, tree, until, utf8, wait::check};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(4).min(4));
    let trials = vec![
        Trial::ignorable_test("an_unreadable_file_is_named_and_nothing_is_published", unreadable),
        always("what_cannot_be_stored_is_named_and_nothing_is_published", unfit_input),
        always("a_name_that_is_no_text_is_refused_wherever_it_stands", no_text),
        always("a_file_that_changes_while_it_is_read_is_not_published", a_changing_file),
        always("references_that_lead_nowhere", bad_references),
        always("outputs_that_cannot_be_written", bad_outputs),
        always("an_add_that_is_cut_off_publishes_nothing", a_cut_add),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn always(name: &str, body: fn()) -> Trial {
    Trial::test(name, move || -> Result<(), Failed> {
        body();
        Ok(())
    })
}

/// Nothing was published, and the node goes on.
#[track_caller]
fn nothing_came_of_it(node: &Daemon) {
    assert!(node.json_lines(["ls"]).is_empty(), "something was published");
    assert_eq!(node.status()["peer_id"], node.peer_id());
}

fn unreadable() -> Result<Completion, Failed> {
    use std::os::unix::fs::PermissionsExt;
    let work = Scratch::new("unreadable");
    let directory = work.join("tree");
    tree::grow(&directory, 261, 3);
    for name in ["exact", ".hidden"] {
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o000)).expect("it is ours");
    }
    // Root reads everything, unless it gives that right up.
    let mut options = NODE.daemon();
    if rustix::process::geteuid().is_root() {
        let prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"];
        let tried = Command::new(prefix[0]).args(&prefix[1..]).arg("cat").arg(directory.join("exact")).output();
        match tried {
            Ok(output) if !output.status.success() && !output.stderr.is_empty() => options = options.prefix(prefix),
            _ => return Ok(Completion::ignored_with("root reads everything, and setpriv cannot take that away here")),
        }
    }
    let node = options.start();
    let message = node.run_json(["add", utf8(&directory)]).failure(1, "failed");
    // All are reported, not only the first.
    for name in ["exact", ".hidden"] {
        assert!(message.contains(name), "{name} is not named: {message}");
    }
    nothing_came_of_it(&node);
    // So that everybody can remove it.
    fs::set_permissions(directory.join(".hidden"), fs::Permissions::from_mode(0o700)).expect("it is ours");
    Ok(Completion::Completed)
}

fn unfit_input() {
    let node = NODE.daemon().start();
    let work = Scratch::new("unfit");

    let missing = work.join("missing");
    let message = node.run_json(["add", utf8(&missing)]).failure(1, "failed");
    assert!(message.contains(utf8(&missing)), "{message}");

    // A name that is not UTF-8, and a pipe that nobody writes: both are named, and nothing hangs.
    let directory = work.join("names");
    fs::create_dir(&directory).expect("fresh");
    fs::write(directory.join("fine"), "fine").expect("fresh");
    fs::write(directory.join(std::ffi::OsStr::from_bytes(b"b\xffd")), "bad").expect("fresh");
    let fifo = directory.join("pipe");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("coreutils").success());
    let message = node.run_json(["add", utf8(&directory)]).failure(1, "failed");
    assert!(message.contains("pipe"), "{message}");
    assert!(message.contains("UTF-8") || message.contains("b\\xffd") || message.contains("b\u{fffd}d"), "{message}");
    nothing_came_of_it(&node);
    node.run_json(["add", utf8(&fifo)]).failure(1, "failed");

    // The node's own directory grows while it is read.
    let message = node.run_json(["add".as_ref(), node.data_dir().as_os_str()]);
    assert!(matches!(message.code, 1 | 2 | 6), "{message}");
    assert!(message.stderr.contains(utf8(node.data_dir())), "{message}");
    let parent = node.data_dir().parent().expect("it is in a scratch directory");
    let message = node.run_json(["add".as_ref(), parent.as_os_str()]);
    assert!(matches!(message.code, 1 | 2 | 6), "{message}");
    assert!(message.stderr.contains(utf8(node.data_dir())), "{message}");
    nothing_came_of_it(&node);

    // Two paths of which one is wrong: the good one is added, and the end is a failure all the same.
    let good = work.join("good");
    fs::write(&good, "good").expect("fresh");
    let output = node.run_json(["add", utf8(&good), utf8(&missing)]);
    assert_eq!(output.code, 1, "{output}");
    assert!(output.stderr.contains(utf8(&missing)), "{output}");

    // Links that lead round in a circle are links.
    let circle = work.join("circle");
    fs::create_dir_all(circle.join("inside")).expect("fresh");
    symlink("b", circle.join("a")).expect("fresh");
    symlink("a", circle.join("b")).expect("fresh");
    symlink("../..", circle.join("inside/up")).expect("fresh");
    let root = text(&node.add(&circle)["cid"]);
    node.gives(&root, &circle);
}

/// Named itself or in a directory, file, link or directory, to be stored or only hashed: the same words and exit code.
fn no_text() {
    let node = NODE.daemon().start();
    let work = Scratch::new("no-text");
    let named = |name: &[u8]| std::ffi::OsStr::from_bytes(name).to_owned();
    let directory = work.join("inside");
    fs::create_dir(&directory).expect("fresh");
    fs::write(directory.join(named(b"b\xffd")), "bad").expect("fresh");
    let (file, link, tree) =
        (work.join(named(b"b\xffd")), work.join(named(b"l\xffnk")), work.join(named(b"tr\xff\xff")));
    fs::write(&file, "bad").expect("fresh");
    symlink("b", &link).expect("fresh");
    fs::create_dir(&tree).expect("fresh");
    fs::write(tree.join(named(b"\xff")), "bad").expect("fresh");
    for (path, at) in [(&directory, "b\u{fffd}d"), (&file, "b\u{fffd}d"), (&link, "l\u{fffd}nk")] {
        for hash in [None, Some("--only-hash")] {
            let add = ["add".as_ref(), path.as_os_str()].into_iter().chain(hash.map(std::ffi::OsStr::new));
            let message = node.run_json(add).failure(1, "failed");
            assert!(message.contains(&format!("{at}: its name is not UTF-8; rename it; nothing was")), "{message}");
        }
    }
    // A directory is read all the same, for what is wrong in it.
    let message = node.run_json(["add".as_ref(), tree.as_os_str()]).failure(1, "failed");
    assert!(message.contains("2 things in ") && message.matches("its name is not UTF-8").count() == 2, "{message}");
    nothing_came_of_it(&node);
    // Only its own name counts, which a directory above it does not change; and bytes can be added without any.
    let below = tree.join("fine");
    fs::write(&below, "fine").expect("fresh");
    node.run_json(["add".as_ref(), below.as_os_str()]).ok();
    let names: Vec<String> = node.json_lines(["ls"]).iter().map(|line| text(&line["name"])).collect();
    assert_eq!(names, ["fine"]);
}

fn a_changing_file() {
    let node = NODE.daemon().start();
    let work = Scratch::new("changing");
    let file = work.join("log");
    tree::noise_file(&file, 271, 48 << 20);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, file) = (Arc::clone(&stop), file.clone());
        std::thread::spawn(move || {
            let mut file = fs::OpenOptions::new().append(true).open(file).expect("it is ours");
            // Bounded: a test that hangs does not fill the disk.
            for line in 0..2_000_000 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                writeln!(file, "line {line}").expect("it is ours");
            }
        })
    };
    let message = node.run_json(["add", utf8(&file)]).failure(1, "failed");
    assert!(message.contains("chang") && message.contains(utf8(&file)), "{message}");
    nothing_came_of_it(&node);
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("it does not panic");
    let root = text(&node.add(&file)["cid"]);
    node.gives(&root, &file);
}

fn bad_references() {
    let node = NODE.daemon().start();
    let work = Scratch::new("references");
    let target = work.join("target");
    let unknown = "bafkr4ig4ljhnxasawambeqcsymycobuw7ftxdjr3iusquxax2maa5artku";
    for verb in [&["get", unknown, "-o", utf8(&target)][..], &["cat", unknown], &["stat", unknown], &["ls", unknown]] {
        node.run_json(verb).failure(4, "not_found");
    }
    // dag-cbor: a CID, and not one that is stored here.
    let cbor = "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    for verb in [&["get", cbor, "-o", utf8(&target)][..], &["cat", cbor], &["stat", cbor], &["ls", cbor]] {
        node.run_json(verb).failure(2, "usage");
    }
    // A letter short: neither a CID nor a name that anybody published.
    let output = node.run_json(["get", &unknown[..unknown.len() - 1], "-o", utf8(&target)]);
    assert!(matches!(output.code, 2 | 4), "{output}");
    node.run_json(["get", ""]).failure(2, "usage");
    node.run(["no-such-verb"]).expect(2);
    node.run(["get", "--no-such-flag", unknown]).expect(2);
    assert!(!target.exists());
}

fn bad_outputs() {
    let node = NODE.daemon().start();
    let work = Scratch::new("outputs");
    let file = work.join("file");
    let root = node.keep(&file, 281, 1 << 20);
    let missing = work.join("no/such/directory/target");
    let message = node.run_json(["get", &root, "-o", utf8(&missing)]).failure(1, "failed");
    assert!(message.contains("directory"), "{message}");
    let message = node.run_json(["get", &root, "-o", utf8(&file.join("below-a-file"))]).failure(1, "failed");
    assert!(message.contains(utf8(&file)), "{message}");
    let output = node.run_json(["get", &root, "-o", "/proc/target"]);
    assert!(matches!(output.code, 1 | 6), "{output}");
    assert!(tree::strangers(work.path(), &["file"]).is_empty());
    node.gives(&root, &file);
}

fn a_cut_add() {
    use std::process::Stdio;
    let node = NODE.daemon().start();
    let mut command = node.command(["add", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut adding = command.spawn().expect("the binary runs");
    reaper::born(adding.id());
    let mut pipe = adding.stdin.take().expect("it is piped");
    // More than is gathered before it is stored.
    pipe.write_all(&tree::noise(291, 40 << 20)).expect("the daemon reads");
    until("some of it is stored", LONG, || {
        let status = node.status();
        check(status["chunks"].as_u64().is_some_and(|chunks| chunks > 0), status)
    });
    adding.kill().expect("it runs");
    adding.wait().expect("it is a child");
    reaper::ended(adding.id());
    drop(pipe);
    nothing_came_of_it(&node);
    // The daemon has let go of it: it stops at once.
    let work = Scratch::new("after");
    let file = work.join("file");
    let root = node.keep(&file, 292, 1 << 20);
    node.gives(&root, &file);
    assert_eq!(node.json_lines(["ls"]).len(), 1);
}
