//! Peers that mean harm, and input from outside that was made to do harm.
//!
//! Whatever comes: honest daemons go on serving right bytes, their memory stays bounded, and a `get` that cannot
//! succeed says so and leaves nothing under the name that was asked for.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use p2p_tests::process::{
    Cluster, Daemon, LONG, Program, Scratch,
    evil::{self, Evil, Tactic},
    forge::{self, Chunks, Link, Made},
    text, tree, until, utf8,
    wait::check,
};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));

/// What a daemon may have resident at its worst, by the project's own bound.
const MEMORY: u64 = 256 << 20;

/// The cluster is as well as before: alive, within its memory, and giving back what it was given.
#[track_caller]
fn is_well(nodes: &mut [Daemon], root: &str, source: &Path) {
    for node in nodes {
        assert!(node.is_alive(), "{} died: {}", node.peer_id(), node.log());
        let peak = node.peak_memory();
        assert!(peak < MEMORY, "{} had {} MiB resident", node.peer_id(), peak >> 20);
        assert!(!node.log().contains("panicked"), "{}", node.log());
        node.gives(root, source);
    }
}

#[test]
fn garbage_and_half_handshakes_on_the_port_harm_nobody() {
    let mut cluster = Cluster::start(NODE, 2);
    let work = Scratch::new("garbage");
    let file = work.join("file");
    let root = cluster[0].keep(&file, 301, 2 << 20);
    let address = ("127.0.0.1", cluster[0].tcp_port());
    let multistream = b"\x13/multistream/1.0.0\n";
    let openings: [Vec<u8>; 7] = [
        tree::noise(302, 100_000),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        multistream.to_vec(),
        [&multistream[..], b"\x07/noise\n", &[0, 32], &[9; 10]].concat(),
        [&multistream[..], b"\x0b/tls/1.0.0\n", &[22, 3, 1, 0xff, 0xff], &[1; 100]].concat(),
        vec![0xff; 10_000],
        Vec::new(),
    ];
    for opening in &openings {
        for _ in 0..5 {
            let mut stream = TcpStream::connect(address).expect("it listens");
            stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a duration");
            // It may close in the middle.
            let _ = stream.write_all(opening);
            let _ = stream.read(&mut [0; 1000]);
        }
    }
    // Open and silent, as many as a machine's limits for one process allow and a little sense.
    let mut silent: Vec<TcpStream> = Vec::new();
    for place in 0..3000 {
        let Ok(mut stream) = TcpStream::connect(address) else { break };
        let _ = stream.write_all(&openings[place % openings.len()][..openings[place % openings.len()].len().min(30)]);
        silent.push(stream);
    }
    assert!(silent.len() > 500, "only {} connections could be opened: this shows nothing", silent.len());
    let files = fs::read_dir(format!("/proc/{}/fd", cluster[0].pid())).expect("it is ours").count();
    assert!(files < 2500, "{files} files are open for connections that never said anything");
    is_well(&mut cluster.nodes, &root, &file);
    // The crowd is still there and a real peer comes all the same.
    let late = NODE.daemon().bootstrap(&cluster[0]).bootstrap(&cluster[1]).start();
    until("a real peer gets in", LONG, || check(late.known_peers() > 0, "not yet"));
    drop(silent);
    late.wait_for_peers(2);
    late.gives(&root, &file);
}

#[test]
fn a_peer_that_lies_about_chunks_is_dropped_and_costs_nobody_anything() {
    let mut cluster = Cluster::start(NODE, 3);
    let work = Scratch::new("liar");
    let kept = work.join("kept");
    let root = cluster[0].keep(&kept, 311, 3 << 20);
    let nobodys = "bafkr4ig4ljhnxasawambeqcsymycobuw7ftxdjr3iusquxax2maa5artku";
    let tactics =
        [Tactic::WrongBytes, Tactic::HugeFrame, Tactic::Noise, Tactic::Truncate, Tactic::Flood, Tactic::Silence];
    for (place, tactic) in tactics.into_iter().enumerate() {
        let honest: Vec<_> = cluster.nodes.iter().collect();
        let evil = Evil::start("main", &honest, tactic, Chunks::new());
        evil.wait_until_trusted_by(&cluster[0], 2);

        // It is asked for what only it claims to have.
        let target = work.join(format!("nobodys-{place}"));
        cluster[0].run_json(["get", nobodys, "-o", utf8(&target)]).failure(4, "not_found");
        assert!(!target.exists(), "{tactic:?}");
        if matches!(tactic, Tactic::WrongBytes | Tactic::HugeFrame | Tactic::Noise | Tactic::Flood) {
            evil.wait_until_dropped_by(&cluster[0]);
        }
        // It is of some chunks' replica sets, as far as the others know: they put them elsewhere, or say what is short.
        let file = work.join(format!("file-{place}"));
        tree::noise_file(&file, 320 + place as u64, 6 << 20);
        let output = cluster[1].run_json(["add", utf8(&file)]);
        assert!(matches!(output.code, 0 | 5), "{tactic:?}: {output}");
        let line = output.json_lines().into_iter().find(|line| line.get("cid").is_some());
        let line = line.unwrap_or_else(|| panic!("{tactic:?}: {output}"));
        assert!(line["replicas"]["min"].as_u64().expect("a number") >= 2, "{tactic:?}: {line}");
        is_well(&mut cluster.nodes, &text(&line["cid"]), &file);
        is_well(&mut cluster.nodes, &root, &kept);
        drop(evil);
        for node in &cluster.nodes {
            until("the evil peer is gone", LONG, || {
                let known = node.known_peers();
                check(known == 2, format!("{tactic:?}: {known} storing peers are known"))
            });
        }
    }
}

#[test]
fn streams_full_of_garbage_are_closed_and_memory_stays_bounded() {
    let mut cluster = Cluster::start(NODE, 2);
    let work = Scratch::new("streams");
    let file = work.join("file");
    let root = cluster[0].keep(&file, 331, 3 << 20);
    let throws = |protocol: &str| -> Vec<Vec<u8>> {
        let greeted = |frame: Vec<u8>| [evil::greeting(), frame].concat();
        let asked = |frame: Vec<u8>| [evil::hello(), frame].concat();
        let mut cid = vec![1, 0x55, 0x1e, 32];
        cid.extend_from_slice(&[7; 32]);
        if protocol == "catalogue" {
            return vec![
                tree::noise(332, 100_000),
                evil::claim(1, 0),
                asked(evil::claim(0x10, 1)),
                asked(evil::claim(0x77, 1)),
                asked(evil::frame(0x10, 1, &tree::noise(333, 65_536))),
                asked(evil::frame(0x20, 1, &tree::noise(334, 0x4000))),
                asked(evil::frame(0x30, 1, &tree::noise(335, 1024))),
                vec![9; 9],
            ];
        }
        vec![
            tree::noise(336, 100_000),
            evil::claim(1, 0),
            greeted(evil::claim(0x31, 1)),
            greeted(evil::claim(0x77, 1)),
            greeted(evil::frame(0x10, 1, &[])),
            greeted(evil::frame(0x10, 1, &[0x1e, 33])),
            greeted(evil::frame(0x10, 1, &tree::noise(337, 340))),
            // Bytes that are not what their address says; terms that cannot be.
            greeted(evil::frame(0x31, 1, &[&cid[..], &[3, 0], &tree::noise(338, 1 << 20)].concat())),
            greeted(evil::frame(0x31, 1, &[&cid[..], &[200, 0xff], b"x"].concat())),
            greeted(evil::frame(0x30, 1, &[&cid[..], &u32::MAX.to_be_bytes(), &[3, 0]].concat())),
            // An answer where a request belongs.
            greeted(evil::frame(0x11, 1, &[0; 1000])),
            Vec::new(),
        ]
    };
    for protocol in ["transfer", "catalogue"] {
        for bytes in throws(protocol) {
            // A new peer for each: one that broke the rules is not let in again.
            let evil = Evil::start("main", &[&cluster[0]], Tactic::Silence, Chunks::new());
            evil.wait_until_trusted_by(&cluster[0], 1);
            evil.throw(&cluster[0], protocol, bytes, Duration::from_secs(2));
            drop(evil);
            cluster[0].wait_for_peers(1);
        }
    }
    is_well(&mut cluster.nodes, &root, &file);
    assert!(cluster[0].status()["chunks"].as_u64().expect("a number") >= 4);

    // Questions without end, from a peer that reads no answer: what waits for it is bounded.
    let stat = cluster[0].json(["stat", &root]);
    let mut wants = Vec::new();
    for row in stat["placement"].as_array().expect("rows") {
        wants.extend_from_slice(&p2p_tests::process::placement::base32(&text(&row["cid"]))[2..]);
    }
    let mut questions = evil::greeting();
    for request in 0..2000_u32 {
        questions.extend(evil::frame(0x10, request * 16, &wants));
    }
    for protocol in ["transfer", "catalogue", "kad", "gossip"] {
        let evil = Evil::start("main", &[&cluster[0]], Tactic::Silence, Chunks::new());
        evil.wait_until_trusted_by(&cluster[0], 1);
        evil.hang(&cluster[0], protocol, if protocol == "transfer" { &questions } else { &[1] }, 300);
        for _ in 0..20 {
            is_well(&mut cluster.nodes, &root, &file);
        }
        drop(evil);
        cluster[0].wait_for_peers(1);
    }
}

#[test]
fn floods_of_what_is_not_known_are_answered_and_cost_neither_memory_nor_a_ban() {
    let mut cluster = Cluster::start(NODE, 2);
    let work = Scratch::new("unknown");
    let file = work.join("file");
    let root = cluster[0].keep(&file, 381, 1 << 20);
    let evil = Evil::start("main", &[&cluster[0]], Tactic::Serve, Chunks::new());
    evil.wait_until_trusted_by(&cluster[0], 1);
    for (protocol, greeting) in [("transfer", evil::greeting()), ("catalogue", evil::hello())] {
        // Ten of the longest, whose answers are read …
        let mut few = greeting.clone();
        for request in 1..=10 {
            few.extend(evil::frame(0x42, request, &[9; 65_536]));
        }
        let said = evil.throw(&cluster[0], protocol, few, Duration::from_secs(3));
        let answers: Vec<u8> = (1..=10).flat_map(|request| evil::frame(0x7f, request, &[])).collect();
        assert!(said.ends_with(&answers), "{protocol}: {said:?}");
        // … and a hundred thousand, whose answers are not.
        let mut many = greeting;
        for request in 0..100_000 {
            many.extend(evil::frame(0x42, request, &[]));
        }
        evil.hang(&cluster[0], protocol, &many, 2);
    }
    // Messages and publications of formats to come.
    evil.gossip((0..200_u8).map(|seed| [&[1 + seed % 2, 2 + seed / 2][..], &[seed; 2000]].concat()).collect());
    is_well(&mut cluster.nodes, &root, &file);
    assert_eq!(cluster[1].known_peers(), 2, "what nobody knows was passed on, or its sender dropped");
    assert_eq!(cluster[0].known_peers(), 2, "{}", cluster[0].log());
    assert_eq!(cluster[0].json_lines(["ls"]).len(), 1);
    let log = cluster[0].log();
    assert!(!log.contains("broke the rules"), "{log}");
}

#[test]
fn gossip_that_nobody_signed_is_neither_kept_nor_passed_on() {
    let mut cluster = Cluster::start(NODE, 3);
    let work = Scratch::new("gossip");
    let file = work.join("file");
    let root = cluster[0].keep(&file, 341, 1 << 20);
    let honest: Vec<_> = cluster.nodes.iter().collect();
    let evil = Evil::start("main", &honest, Tactic::Serve, Chunks::new());
    evil.wait_until_trusted_by(&cluster[2], 2);
    // First what is of a known format and invalid; then noise, most of which a later version might have said.
    let invalid = |seed: u8| [&[1, 2, 0, 0, 3][..], &tree::noise(u64::from(seed) + 700, 400)].concat();
    let mut messages: Vec<Vec<u8>> = (0..100).map(invalid).collect();
    messages.extend((0..200).map(|seed| tree::noise(350 + seed, 300)));
    messages.extend((0..100_u8).map(|seed| [&[1][..], &tree::noise(u64::from(seed) + 600, 400)].concat()));
    messages.extend([Vec::new(), vec![1], vec![0xff; 60_000], vec![1; 679]]);
    evil.gossip(messages);
    // Whoever said it is dropped by those that heard it; nothing of it stands anywhere.
    evil.wait_until_dropped_by(&cluster[0]);
    for node in &cluster.nodes {
        assert_eq!(node.json_lines(["ls"]).len(), 1, "{:?}", node.json_lines(["ls"]));
    }
    // Gossip works as before.
    let second = work.join("second");
    let second_root = cluster[1].keep(&second, 342, 1 << 20);
    for node in &cluster.nodes {
        until("the next publication is everywhere", LONG, || {
            let lines = node.json_lines(["ls"]);
            check(
                lines.len() == 2 && lines.iter().any(|line| line["cid"] == second_root.as_str()),
                format!("{lines:?}"),
            )
        });
    }
    is_well(&mut cluster.nodes, &root, &file);
    drop(evil);

    // The same in the catch-up of catalogues, which each connection begins with.
    for (place, tactic) in
        [Tactic::CatalogueNoise, Tactic::CatalogueHuge, Tactic::CatalogueTruncate, Tactic::CatalogueSilence]
            .into_iter()
            .enumerate()
    {
        let honest: Vec<_> = cluster.nodes.iter().collect();
        let evil = Evil::start("main", &honest, tactic, Chunks::new());
        if matches!(tactic, Tactic::CatalogueNoise | Tactic::CatalogueHuge) {
            until("those that broke the rules are refused", LONG, || {
                let log = cluster[0].log();
                check(log.contains(&evil.peer_id()), format!("{tactic:?}: {log}"))
            });
            evil.wait_until_dropped_by(&cluster[0]);
        }
        let name = format!("catalogue-{place}");
        let next = work.join(&name);
        let next_root = cluster[place % 3].keep_wherever(&next, 343 + place as u64, 100_000);
        for node in &cluster.nodes {
            until("the next publication is everywhere", LONG, || {
                let lines = node.json_lines(["ls"]);
                check(lines.len() == 3 + place, format!("{tactic:?}: {lines:?}"))
            });
        }
        is_well(&mut cluster.nodes, &next_root, &next);
    }
}

/// Serves hand-made chunks to a lone daemon, and gives both.
fn forger(chunks: Chunks) -> (Daemon, Evil) {
    let node = NODE.daemon().start();
    let evil = Evil::start("main", &[&node], Tactic::Serve, chunks);
    evil.wait_until_trusted_by(&node, 0);
    (node, evil)
}

/// `get` of it fails, and nothing is where it was to be, or anywhere around.
#[track_caller]
fn is_refused(node: &mut Daemon, what: &str, made: &Made) {
    let work = Scratch::new("refused");
    let target = work.join("inner/target");
    fs::create_dir(work.join("inner")).expect("fresh");
    // What is refused here is refused for what it is, not because nobody serves it.
    assert_eq!(node.known_peers(), 1, "{what}: {}", node.log());
    let output = node.run_json(["get", &made.text(), "-o", utf8(&target)]);
    assert!(matches!(output.code, 1 | 4 | 6), "{what}: {output}");
    assert!(!output.stderr.trim().is_empty(), "{what}: {output}");
    assert!(fs::symlink_metadata(&target).is_err(), "{what}: something is under the name");
    assert!(tree::strangers(work.path(), &["inner"]).is_empty(), "{what}: something was written outside");
    assert!(node.is_alive(), "{what}: {}", node.log());
    assert!(node.peak_memory() < MEMORY, "{what}: {} MiB resident", node.peak_memory() >> 20);
    assert_eq!(node.status()["peer_id"], node.peer_id());
}

#[test]
fn names_that_would_escape_are_refused() {
    let outside = Scratch::new("outside");
    let mut chunks = Chunks::new();
    let content = forge::raw(&mut chunks, b"escaped");
    let mut made = Vec::new();
    let absolute = outside.join("absolute");
    let names: [&[u8]; 10] = [
        b"../x",
        b"..",
        b".",
        b"",
        b"a/b",
        b"/etc/x",
        utf8(&absolute).as_bytes(),
        b"nul\0inside",
        b"../../../../../../../../tmp/x",
        b"bad\xff",
    ];
    for name in names {
        let directory = forge::directory(&mut chunks, &[content.named("fine"), content.named(name)]);
        made.push((String::from_utf8_lossy(name).into_owned(), directory));
    }
    let nested = forge::directory(&mut chunks, &[content.named("../../x")]);
    made.push(("nested".into(), forge::directory(&mut chunks, &[nested.named("fine")])));
    // A link that leads away, and then the same name as a directory through which something is written.
    let away = forge::symlink(&mut chunks, utf8(outside.path()));
    let through = forge::directory(&mut chunks, &[content.named("escaped")]);
    for entries in [[away.named("s"), through.named("s")], [through.named("s"), away.named("s")]] {
        made.push(("a link and a directory of one name".into(), forge::directory(&mut chunks, &entries)));
    }
    made.push(("one name twice".into(), forge::directory(&mut chunks, &[content.named("a"), content.named("a")])));
    let long = vec![b'n'; 100_000];
    made.push(("a very long name".into(), forge::directory(&mut chunks, &[content.named(long)])));
    // Nonsense where a node should be.
    made.push(("noise as dag-pb".into(), forge::keep(&mut chunks, 0x70, tree::noise(361, 5000), 1)));
    let data = forge::unixfs(99, None, None, &[]);
    made.push(("an unknown type".into(), forge::node(&mut chunks, &[], &data, 1)));
    let link = Link { name: b"x".to_vec(), cid: vec![1, 0x71, 0x1e, 2, 0, 0], size: 1 };
    made.push(("a link to nothing known".into(), forge::directory(&mut chunks, &[link])));
    let empty = forge::symlink(&mut chunks, "");
    made.push(("a link without a target".into(), forge::directory(&mut chunks, &[empty.named("s")])));

    let good = forge::directory(&mut chunks, &[content.named("fine"), away.named("link")]);
    let (mut node, _evil) = forger(chunks);
    for (what, made) in &made {
        is_refused(&mut node, what, made);
    }
    assert_eq!(fs::read_dir(outside.path()).expect("it is ours").count(), 0, "something came through the link");
    // What only looks like it is written as it is: a link that leads away is a link, and nothing is written through it.
    let work = Scratch::new("good");
    node.get(&good.text(), &work.join("good"));
    assert_eq!(fs::read(work.join("good/fine")).expect("it is there"), b"escaped");
    assert_eq!(fs::read_link(work.join("good/link")).expect("a link"), outside.path());
}

#[test]
fn dags_that_are_bombs_or_lie_about_their_sizes_are_refused() {
    let mut chunks = Chunks::new();
    let leaf = forge::raw(&mut chunks, &tree::noise(371, 1000));

    // 2^50 bytes out of twenty chunks.
    let mut bomb = leaf.clone();
    for _ in 0..20 {
        let part = (bomb.clone(), bomb.size);
        bomb = forge::file(&mut chunks, &[part.clone(), part.clone(), part.clone(), part]);
    }
    // 2^30 files out of thirty directories.
    let mut forest = forge::directory(&mut chunks, &[leaf.named("leaf")]);
    for _ in 0..30 {
        forest = forge::directory(&mut chunks, &[forest.named("a"), forest.named("b")]);
    }
    let mut deep = forge::directory(&mut chunks, &[leaf.named("leaf")]);
    for _ in 0..5000 {
        deep = forge::directory(&mut chunks, &[deep.named("d")]);
    }
    let mut deep_file = leaf.clone();
    for _ in 0..5000 {
        deep_file = forge::file(&mut chunks, &[(deep_file, 1000)]);
    }
    let short = forge::file(&mut chunks, &[(leaf.clone(), 500), (leaf.clone(), 500)]);
    let long = forge::file(&mut chunks, &[(leaf.clone(), 5000), (leaf.clone(), 1000)]);
    let overflow = forge::file(&mut chunks, &[(leaf.clone(), u64::MAX), (leaf.clone(), u64::MAX)]);
    let inner = forge::directory(&mut chunks, &[leaf.named("x")]);
    let directory_in_file = forge::file(&mut chunks, &[(inner, 1000)]);
    let missing = Made { cid: vec![1, 0x55, 0x1e, 32].into_iter().chain([5; 32]).collect(), size: 10 };
    let incomplete = forge::directory(&mut chunks, &[leaf.named("here"), missing.named("missing")]);

    let (mut node, _evil) = forger(chunks);
    for (what, made) in [
        ("a file of 2^50 bytes", &bomb),
        ("a file without end", &deep_file),
        ("parts longer than claimed", &short),
        ("parts shorter than claimed", &long),
        ("sizes beyond counting", &overflow),
        ("a directory inside a file", &directory_in_file),
        ("a chunk that nobody has", &incomplete),
    ] {
        is_refused(&mut node, what, made);
    }
    // Deeper than a path may be long: written all the same, or refused, and no stack overflows.
    let work = Scratch::new("deep");
    let output = node.run_json(["get", &deep.text(), "-o", utf8(&work.join("deep"))]);
    assert!(matches!(output.code, 0 | 1), "{output}");
    assert_eq!(output.code == 0, work.join("deep").exists(), "{output}");
    assert!(node.is_alive() && node.peak_memory() < MEMORY);

    // Looking costs what there is, not what it claims: as many chunks as were made.
    let stat = node.json(["stat", &bomb.text(), "--no-placement"]);
    assert_eq!(stat["chunks"], 21);
    let stat = node.json(["stat", &forest.text(), "--no-placement"]);
    assert_eq!(stat["chunks"], 32);
    assert_eq!(node.json_lines(["ls", &forest.text()]).len(), 2);
    let part = node.run(["cat", &bomb.text(), "--offset", "1000000000000", "--length", "2500"]).ok().stdout;
    assert!(part == tree::noise(371, 1000).repeat(3)[..2500]);
}
