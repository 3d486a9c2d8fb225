//! The daemon by itself: its start and its end, its identity, its files, and who may be its peer.

use std::{
    io,
    net::{TcpListener, TcpStream},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    thread,
    time::Duration,
};

use p2p_tests::process::{Cluster, LONG, Program, Scratch, tree, until, wait::check};
use rustix::process::Signal;

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

#[test]
fn the_ready_line_says_who_and_where() {
    let plain = NODE.daemon().start();
    let words: Vec<_> = plain.ready_line().split(' ').collect();
    assert_eq!(words.len(), 3, "{}", plain.ready_line());
    assert_eq!(words[0], "ready");
    assert_eq!(words[1], format!("peer={}", plain.peer_id()));
    assert!(words[2].starts_with("listen=/ip4/127.0.0.1/tcp/"), "{}", words[2]);
    assert_ne!(plain.tcp_port(), 0);

    let json = NODE.daemon().arguments(["--json"]).start();
    let ready: serde_json::Value = serde_json::from_str(json.ready_line()).expect("one JSON object");
    assert_eq!(ready["event"], "ready");
    assert_eq!(ready["peer_id"], json.peer_id());
    assert_eq!(Path::new(ready["data_dir"].as_str().expect("a path")), json.data_dir());
    for address in json.listen() {
        assert!(address.ends_with(&format!("/p2p/{}", json.peer_id())), "{address}");
    }
    // What is printed is where it answers.
    let id = plain.json(["connect", &json.listen()[0]]);
    assert_eq!(id["peer_id"], json.peer_id());
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let first = NODE.daemon().start();
    let (status, log) = NODE.daemon().data_dir(first.data_dir()).try_start().expect_err("it is taken");
    assert!(status.contains("exit status: 1"), "{status}: {log}");
    assert!(log.contains("already run"), "{log}");
    assert!(log.contains(&first.data_dir().display().to_string()), "{log}");
    assert_eq!(first.status()["peer_id"], first.peer_id());
}

#[test]
fn a_signal_ends_it_cleanly_and_in_time() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut node = NODE.daemon().start();
        let work = Scratch::new("stop");
        let file = work.join("file");
        tree::noise_file(&file, 3, 5 << 20);
        let cid = node.add(&file)["cid"].as_str().expect("a root").to_owned();
        let (status, took) = node.stop(signal);
        assert_eq!(status.code(), Some(0), "{}", node.log());
        assert!(took < Duration::from_secs(10), "the contract gives it 10 s; it took {took:?}");
        node.run(["status"]).failure(3, "no_daemon");
        node.restart();
        let copy = work.join("copy");
        node.get(&cid, &copy);
        tree::assert_same(&file, &copy);
    }
}

#[test]
fn a_named_port_that_is_taken_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    let address = format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().expect("it is bound").port());
    let (status, log) = NODE.daemon().listen([&address]).try_start().expect_err("the port is taken");
    assert!(status.contains("exit status: 1"), "{status}: {log}");
    assert!(log.contains(&address), "{log}");

    // Another daemon's port is as taken as anybody's, although libp2p would share it.
    let first = NODE.daemon().start();
    let address = format!("/ip4/127.0.0.1/tcp/{}", first.tcp_port());
    let (status, log) = NODE.daemon().listen([&address]).try_start().expect_err("the port is taken");
    assert!(status.contains("exit status: 1"), "{status}: {log}");
}

#[test]
fn without_a_daemon_each_verb_says_so() {
    let nowhere = Scratch::new("nowhere");
    let file = nowhere.join("file");
    std::fs::write(&file, "content").expect("a fresh directory takes a file");
    let cid = "bafkr4ig4ljhnxasawambeqcsymycobuw7ftxdjr3iusquxax2maa5artku";
    let path = file.to_str().expect("a temporary path is text");
    let verbs: [&[&str]; 9] = [
        &["status"],
        &["peers"],
        &["ls"],
        &["stat", cid],
        &["get", cid],
        &["cat", cid],
        &["add", path],
        &["watch"],
        &["connect", "/ip4/127.0.0.1/tcp/1"],
    ];
    for verb in verbs {
        let mut json = verb.to_vec();
        json.push("--json");
        let message = NODE.run_on(&nowhere.join("d"), &json).failure(3, "no_daemon");
        assert!(message.contains(&nowhere.join("d").display().to_string()), "{message}");
        NODE.run_on(&nowhere.join("d"), verb).failure(3, "no_daemon");
    }
    assert!(!nowhere.join("d").exists(), "asking made a data directory");

    // What a daemon leaves that was killed is no daemon either.
    let mut node = NODE.daemon().start();
    node.kill();
    node.run(["status"]).failure(3, "no_daemon");
}

#[test]
fn the_identity_stays_and_its_files_are_the_owners() {
    let mut node = NODE.daemon().start();
    let peer = node.peer_id().to_owned();
    let mode = |name: &str| {
        let path = node.data_dir().join(name);
        let kind = std::fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (kind.permissions().mode() & 0o777, kind.file_type())
    };
    assert_eq!(mode("identity.key").0, 0o600);
    assert_eq!(mode("").0, 0o700);
    let (permissions, kind) = mode("socket");
    assert!(kind.is_socket());
    assert_eq!(permissions, 0o600);
    node.restart();
    assert_eq!(node.peer_id(), peer);
    assert!(node.terminate().0.success());
    node.restart();
    assert_eq!(node.peer_id(), peer);
}

#[test]
fn a_data_directory_whose_path_is_too_long_for_a_socket_works() {
    let scratch = Scratch::new("long");
    let mut path = scratch.path().to_owned();
    while path.as_os_str().len() < 200 {
        path.push("a-rather-long-name-of-a-directory");
    }
    let mut node = NODE.daemon().data_dir(&path).start();
    assert_eq!(node.status()["peer_id"], node.peer_id());
    // Two such directories do not get in each other's way.
    let other = NODE.daemon().data_dir(path.join("other")).start();
    assert_eq!(other.status()["peer_id"], other.peer_id());
    assert_eq!(node.status()["peer_id"], node.peer_id());
    assert!(node.terminate().0.success());
    node.run(["status"]).failure(3, "no_daemon");
}

#[test]
fn status_peers_and_connect_have_the_contracts_fields() {
    let one = NODE.daemon().capacity("64MiB").start();
    let two = NODE.daemon().arguments(["--replicas", "2"]).start();
    let connected = one.json(["connect", &two.listen()[0]]);
    assert_eq!(connected["peer_id"], two.peer_id());
    assert_eq!(one.run(["connect", &two.listen()[0]]).ok().text().trim(), two.peer_id());
    one.wait_for_peers(1);
    two.wait_for_peers(1);

    let status = one.status();
    assert_eq!(status["peer_id"], one.peer_id());
    assert_eq!(status["network"], "main");
    assert!(!status["version"].as_str().expect("a version").is_empty());
    assert!(status["uptime"].as_f64().expect("seconds") > 0.0);
    assert_eq!(status["peers"], 1);
    assert_eq!(status["chunks"], 0);
    assert_eq!(status["bytes"], 0);
    assert_eq!(status["capacity"], 64 << 20);
    assert_eq!(status["replication"]["factor"], 3);
    assert_eq!(two.status()["replication"]["factor"], 2);
    assert_eq!(status["replication"]["under_replicated"], 0);
    assert_eq!(status["replication"]["in_flight"], 0);
    assert!(status["transfers"]["sent_bytes"].is_u64() && status["transfers"]["received_bytes"].is_u64());
    let listen = status["listen"].as_array().expect("a list");
    assert!(listen.iter().any(|address| address == one.listen()[0].as_str()), "{status}");
    assert!(!one.run(["status"]).ok().text().trim().is_empty());

    let peers = one.json_lines(["peers"]);
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0]["peer_id"], two.peer_id());
    assert_eq!(peers[0]["source"], "manual");
    assert!(peers[0]["agent"].as_str().expect("an agent").contains("p2p-node"));
    assert!(!peers[0]["addresses"].as_array().expect("a list").is_empty());
    assert_eq!(two.json_lines(["peers"])[0]["source"], "incoming");
    until("the round trip is measured", LONG, || {
        let peers = one.json_lines(["peers"]);
        check(peers[0]["latency"].as_f64().is_some_and(|seconds| seconds > 0.0), format!("{peers:?}"))
    });

    // Nobody there, nobody of ours there, and no address at all.
    let silent = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    let port = silent.local_addr().expect("it is bound").port();
    drop(silent);
    let message = one.run_json(["connect", &format!("/ip4/127.0.0.1/tcp/{port}")]).failure(1, "failed");
    assert!(message.contains(&port.to_string()), "{message}");
    one.run_json(["connect", "127.0.0.1:4242"]).failure(2, "usage");
    let wrong = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", two.tcp_port(), one.peer_id());
    assert_ne!(one.run_json(["connect", &wrong]).code, 0, "nobody connects to itself");
}

#[test]
fn nodes_of_different_networks_never_mix() {
    let one = NODE.daemon().network("one").start();
    let two = NODE.daemon().network("two").bootstrap(&one).start();
    let message = two.run_json(["connect", &one.listen()[0]]).failure(1, "failed");
    assert!(message.contains("network"), "{message}");
    let third = NODE.daemon().network("one").bootstrap(&one).bootstrap(&two).start();
    third.wait_for_peers(1);
    one.wait_for_peers(1);
    let work = Scratch::new("networks");
    let file = work.join("file");
    tree::noise_file(&file, 1, 100_000);
    let cid = one.add(&file)["cid"].as_str().expect("a root").to_owned();
    until("the file is known in its own network", LONG, || {
        check(third.json_lines(["ls"]).iter().any(|line| line["cid"] == cid.as_str()), "not yet")
    });
    for _ in 0..3 {
        assert_eq!(two.known_peers(), 0);
        assert!(two.json_lines(["ls"]).is_empty());
        assert!(two.json_lines(["peers"]).is_empty());
        two.run_json(["get", &cid, "-o", work.join("stolen").to_str().expect("text")]).failure(4, "not_found");
    }
    assert!(!work.join("stolen").exists());
    // Each says that anyone may come.
    for node in [&one, &two, &third] {
        until("the warning is there", LONG, || check(node.log().contains("open to all"), node.log()));
    }
}

#[test]
fn known_peers_are_found_again_after_a_restart_without_bootstrap() {
    let mut cluster = Cluster::start(NODE, 3);
    // Two of three stop; the third, which was only told of the first, finds the second by what it remembers.
    let second = cluster[1].data_dir().to_owned();
    assert!(cluster[2].terminate().0.success());
    let forgetful = cluster[2].data_dir().to_owned();
    cluster[0].wait_for_peers(1);
    let again = NODE.daemon().data_dir(&forgetful).start();
    again.wait_for_peers(2);
    assert!(second.exists());
}

#[test]
fn options_come_from_flags_then_the_environment_then_the_file() {
    let scratch = Scratch::new("config");
    std::fs::create_dir(scratch.join("d")).expect("fresh");
    std::fs::write(scratch.join("d/config.toml"), "replicas = 5\nnetwork = \"file\"\ncapacity = \"5MiB\"\n")
        .expect("fresh");
    let mut node = NODE.daemon().data_dir(scratch.join("d")).capacity("7MiB").start();
    let status = node.status();
    assert_eq!(status["replication"]["factor"], 5);
    assert_eq!(status["network"], "file");
    assert_eq!(status["capacity"], 7 << 20, "the flag beats the file");
    node.kill();

    let node = NODE.daemon().data_dir(scratch.join("d")).environment("P2P_NODE_REPLICAS", "4").start();
    assert_eq!(node.status()["replication"]["factor"], 4, "the environment beats the file");

    let elsewhere = scratch.join("elsewhere.toml");
    std::fs::write(&elsewhere, "replicas = 99\n").expect("fresh");
    let path = elsewhere.to_str().expect("text");
    let (status, log) = NODE.daemon().arguments(["--config", path]).try_start().expect_err("99 is too many");
    assert!(status.contains("exit status: 2"), "{status}: {log}");
    assert!(log.contains("replicas"), "{log}");
}

/// A way to `port` on which the first byte takes a second; its own port. It ends with the test's process.
fn slow_way_to(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    let own = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                // The link's delay, which is what is tested.
                thread::sleep(Duration::from_secs(1));
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { return };
                let pump = |mut from: &TcpStream, mut to: &TcpStream| drop(io::copy(&mut from, &mut to));
                thread::scope(|both| {
                    both.spawn(|| pump(&near, &far));
                    pump(&far, &near);
                });
            });
        }
    });
    own
}

#[test]
fn what_is_asked_right_after_the_ready_line_waits_for_the_first_round_of_discovery() {
    let holder = NODE.daemon().start();
    let work = Scratch::new("early");
    let file = work.join("file");
    tree::noise_file(&file, 7, 3 << 20);
    let added = holder.json(["add", "--name", "early", &file.display().to_string()]);
    let cid = added["cid"].as_str().expect("a root");
    let way = format!("/ip4/127.0.0.1/tcp/{}", slow_way_to(holder.tcp_port()));
    let fresh = || NODE.daemon().bootstrap_address(&way).start();

    fresh().get(cid, &work.join("by cid"));
    tree::assert_same(&file, &work.join("by cid"));
    fresh().get("early", &work.join("by name"));
    tree::assert_same(&file, &work.join("by name"));
    assert_eq!(fresh().run(["cat", cid]).ok().stdout.len(), 3 << 20);
    assert_eq!(fresh().json(["stat", cid])["replicas"]["max"], 1, "the holder is asked");
    assert_eq!(fresh().json_lines(["ls", "early"])[0]["cid"], cid);
}

#[test]
fn what_nobody_has_is_not_found_once_discovery_is_over() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    let port = nobody.local_addr().expect("it is bound").port();
    drop(nobody);
    let alone = NODE.daemon().bootstrap_address(format!("/ip4/127.0.0.1/tcp/{port}")).start();
    alone.run(["get", "no such name"]).failure(4, "not_found");
    alone.run(["cat", "bafkr4ihc4xdzmpsbdnvhngt7nqpexfbhbbx7l7ikhfhcuwwsqoc7gqhzge"]).failure(4, "not_found");
}
