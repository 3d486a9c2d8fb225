//! What a peer puts and nothing lists: it fills that peer's share and no more, whoever it is, and renewals keep nothing
//! for ever that was withdrawn.

use std::{collections::BTreeSet, time::Duration};

use p2p_tests::process::{
    Cluster, Daemon, Program, Scratch,
    evil::{self, Evil, Tactic},
    forge::{self, Chunks},
    placement, text, tree, until,
    wait::check,
};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
const PATIENCE: Duration = Duration::from_secs(400);
const MIB: u64 = 1 << 20;
const OFFER: u8 = 0x30;
const PUT: u8 = 0x31;
const KEPT: u8 = 0x32;
const NO_SPACE: u8 = 0x34;
const RENEW: u8 = 0x36;
/// Bytes of a chunk that strangers bring.
const LENGTH: usize = 256 << 10;

fn held(node: &Daemon) -> BTreeSet<String> {
    placement::held(node).into_keys().collect()
}

/// Puts of so many chunks of noise, and what they are.
fn puts(seed: u64, count: u32) -> (Vec<Vec<u8>>, Vec<forge::Made>) {
    let made: Vec<_> = (0..count)
        .map(|place| {
            let bytes = tree::noise(seed * 1000 + u64::from(place), LENGTH);
            (bytes.clone(), forge::raw(&mut Chunks::new(), &bytes))
        })
        .collect();
    let put = |(place, (bytes, made)): (u32, &(Vec<u8>, forge::Made))| {
        evil::frame(PUT, 1 + place, &[&made.cid[..], bytes].concat())
    };
    ((0..).zip(&made).map(put).collect(), made.into_iter().map(|(_, made)| made).collect())
}

/// Has a stranger put so many chunks; how many were kept. All others were refused for want of room.
#[track_caller]
fn fill(stranger: &Evil, node: &Daemon, seed: u64, count: u32) -> u64 {
    let answers = stranger.ask(node, &puts(seed, count).0, count as usize);
    assert!(answers.values().all(|kind| [KEPT, NO_SPACE].contains(kind)), "{answers:?}");
    answers.values().filter(|kind| **kind == KEPT).count() as u64
}

#[test]
fn strangers_fill_their_share_with_what_nothing_lists_and_honest_adds_go_on() {
    // Whoever stores is known at once; who only puts never is.
    let mut cluster =
        Cluster::start_with(NODE, 3, |_, options| options.capacity("32MiB").environment("P2P_NODE_PROBATION", "1ms"));
    let honest: Vec<&Daemon> = cluster.nodes.iter().collect();
    let start = |_| Evil::start("main", &honest, Tactic::Put, Chunks::new());
    let strangers: Vec<Evil> = (0..4).map(start).collect();
    strangers.iter().for_each(|stranger| stranger.wait_until_met_by(honest[0]));
    let kept = fill(&strangers[0], honest[0], 1, 80) * LENGTH as u64;
    assert!((14 * MIB..=16 * MIB).contains(&kept), "{kept} bytes of a stranger, half of 32 MiB at the most");
    let offered = forge::raw(&mut Chunks::new(), &tree::noise(99, LENGTH));
    let offer = evil::frame(OFFER, 1, &[&offered.cid[..], &(LENGTH as u32).to_be_bytes()].concat());
    assert_eq!(strangers[0].ask(honest[0], &[offer], 1)[&1], NO_SPACE, "refused before its bytes are sent");
    let more: u64 = (2..5).zip(&strangers[1..]).map(|(seed, one)| fill(one, honest[0], seed, 40)).sum();
    let all = kept + more * LENGTH as u64;
    assert!(all <= 16 * MIB, "{all} bytes of four strangers, who have no more than one");

    // What is full for them is not for the others.
    let work = Scratch::new("put-space");
    let file = work.join("file");
    tree::noise_file(&file, 601, 10 * MIB);
    let added = cluster[1].add(&file);
    assert_eq!(added["replicas"], serde_json::json!({"wanted": 3, "min": 3}), "{added}");
    let root = text(&added["cid"]);
    assert!(placement::chunks(&cluster[2], &root).iter().all(|chunk| held(&cluster[0]).contains(chunk)));

    // Who brought what is found again after a start.
    drop(strangers);
    cluster[0].kill();
    cluster[0].restart();
    let another = Evil::start("main", &[&cluster[0]], Tactic::Put, Chunks::new());
    another.wait_until_met_by(&cluster[0]);
    assert!(fill(&another, &cluster[0], 7, 8) < 2);
    for node in &cluster.nodes {
        node.gives(&root, &file);
    }
}

#[test]
fn who_has_stored_for_long_is_no_stranger_right_after_a_restart() {
    let mut node = NODE.daemon().capacity("32MiB").environment("P2P_NODE_PROBATION", "10s").start();
    let machine = Evil::start("main", &[&node], Tactic::Acknowledge, Chunks::new());
    machine.wait_until_trusted_by(&node, 0);
    let uptime = || node.status()["uptime"].as_f64().expect("a number");
    let met = uptime();
    until("it has stored for long", PATIENCE, || {
        let now = uptime();
        check(now > met + 12.0, now)
    });
    node.stay_put();
    node.kill();
    node.restart();
    machine.wait_until_trusted_by(&node, 0);
    let kept = fill(&machine, &node, 8, 80);
    assert_eq!(kept, 80, "of 20 MiB: a stranger would have half of 32 MiB at the most");
}

#[test]
fn no_renewal_keeps_for_ever_what_was_withdrawn() {
    let hasty = ["--repair-delay", "3s", "--gc-grace", "4s"];
    let cluster = Cluster::start_with(NODE, 3, |_, options| options.arguments(hasty));
    let work = Scratch::new("renewed-for-ever");
    let root = cluster[0].keep(&work.join("file"), 611, 3 * MIB);
    let chunks = placement::chunks(&cluster[1], &root);
    // It says that its catalogue is equal: nobody waits for that.
    let honest: Vec<&Daemon> = cluster.nodes.iter().collect();
    let stranger = Evil::start("main", &honest, Tactic::Acknowledge, Chunks::new());
    let hash = |cid: &String| placement::base32(cid)[2..].to_vec();
    let renewal = evil::frame(RENEW, 1, &chunks.iter().flat_map(hash).collect::<Vec<_>>());
    let offer = |cid: &String| [placement::base32(cid), (MIB as u32).to_be_bytes().to_vec()].concat();
    let offers = evil::frame(OFFER, 2, &chunks.iter().flat_map(offer).collect::<Vec<_>>());
    let asked = [renewal, offers];
    cluster[0].run(["rm", &root]).ok();
    until("it is freed all the same", PATIENCE, || {
        for node in &cluster.nodes {
            stranger.ask(node, &asked, 1 + chunks.len());
        }
        let left: Vec<usize> = cluster
            .nodes
            .iter()
            .map(|node| chunks.iter().filter(|chunk| held(node).contains(*chunk)).count())
            .collect();
        check(left.iter().all(|left| *left == 0), format!("{left:?} of {} chunks are left", chunks.len()))
    });
}
