//! Peers that ask others to keep chunks in whatever words a frame has for it: how many copies there are follows from the
//! publications alone.

use std::{collections::BTreeSet, time::Duration};

use p2p_tests::process::{
    Cluster, Daemon, Program, Scratch,
    evil::{self, Evil, Tactic},
    forge::Chunks,
    placement, text, tree, until,
    wait::check,
};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
const K: usize = 3;
const PATIENCE: Duration = Duration::from_secs(400);
const OFFER: u8 = 0x30;

fn hasty(count: usize) -> Cluster {
    Cluster::start_with(NODE, count, |_, options| options.arguments(["--repair-delay", "3s", "--gc-grace", "4s"]))
}

fn held(nodes: &[Daemon]) -> Vec<BTreeSet<String>> {
    nodes.iter().map(|node| placement::held(node).into_keys().collect()).collect()
}

/// Offers of chunks of a MiB, in frames of this version.
fn offers(chunks: &[String]) -> Vec<u8> {
    let offer = |cid: &String| [placement::base32(cid), (1_u32 << 20).to_be_bytes().to_vec()].concat();
    frames(chunks, offer)
}

/// Offers that also say how many copies there should be, that they are owed, and of which root they are.
fn demanding_offers(chunks: &[String], copies: u8, flags: u8) -> Vec<u8> {
    let root = placement::base32(&chunks[0]);
    let offer = |cid: &String| {
        let length = (1_u32 << 20).to_be_bytes();
        let root = if flags & 2 == 0 { &[][..] } else { &root };
        [&placement::base32(cid)[..], &length, &[copies, flags], root].concat()
    };
    frames(chunks, offer)
}

fn frames(chunks: &[String], offer: impl Fn(&String) -> Vec<u8>) -> Vec<u8> {
    let mut out = evil::greeting();
    for (place, part) in chunks.chunks(200).enumerate() {
        let body: Vec<u8> = part.iter().flat_map(&offer).collect();
        out.extend(evil::frame(OFFER, 1 + 200 * place as u32, &body));
    }
    out
}

/// Something is removed and freed on every disk: by then each node has looked at everything it has, graces and delays later.
#[track_caller]
fn everybody_looked_at_everything(cluster: &Cluster, work: &Scratch, name: &str) {
    let file = work.join(name);
    tree::noise_file(&file, 95, 2 << 20);
    let output = cluster[0].run_json(["add".as_ref(), file.as_os_str()]);
    // Peers that lie may have been asked for a copy.
    assert!(matches!(output.code, 0 | 5), "{output}");
    let lines = output.json_lines();
    let gone = text(&lines.iter().find(|line| line.get("cid").is_some()).expect("it is kept")["cid"]);
    let its = placement::chunks(&cluster[0], &gone);
    cluster[0].run(["rm", &gone]).ok();
    until("what was removed is freed", PATIENCE, || {
        let held = held(&cluster.nodes);
        check(its.iter().all(|chunk| held.iter().all(|held| !held.contains(chunk))), "it is still there")
    });
}

#[test]
fn no_frame_can_raise_the_copies_of_a_chunk() {
    let cluster = hasty(8);
    let work = Scratch::new("raised");
    let file = work.join("file");
    let root = cluster[0].keep(&file, 93, 12 << 20);
    let chunks = placement::chunks(&cluster[1], &root);
    let honest: Vec<_> = cluster.nodes.iter().collect();
    for flags in [None, Some(1), Some(3)] {
        // A new one each time: whoever sends what no frame may have is dropped.
        let stranger = Evil::start("main", &honest, Tactic::Serve, Chunks::new());
        stranger.wait_until_trusted_by(&cluster[0], 7);
        for node in &cluster.nodes {
            let asked = flags.map_or_else(|| offers(&chunks), |flags| demanding_offers(&chunks, 16, flags));
            stranger.throw(node, "transfer", asked, Duration::from_secs(1));
        }
    }
    everybody_looked_at_everything(&cluster, &work, "decoy");
    let held = held(&cluster.nodes);
    for chunk in &chunks {
        let copies = held.iter().filter(|held| held.contains(chunk)).count();
        // The k closest and the adder, and one more each while a stranger was among the closest and took none.
        assert!((K..=K + 4).contains(&copies) && copies < 8, "{copies} copies of {chunk}");
    }
}
