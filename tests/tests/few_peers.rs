//! Fewer machines than copies are wanted: nothing is owed to anybody, so that one more file costs the same however much
//! there is.

use std::{fs, path::Path};

use p2p_tests::process::{
    Daemon, Program, Scratch,
    evil::{Evil, Tactic},
    forge::Chunks,
    tree, utf8,
};

const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));
/// Chunks of the file after which it has to cost the same.
const MANY: usize = 4000;
/// Bytes of a small file: a chunk that is sent without being offered first.
const FILE: usize = 10_000;

/// What a few small files of the same size cost: what the other machine is asked, in chunks (each may be seen to renew,
/// look for or offer again what was there before), and the bytes that went there and came back.
#[track_caller]
fn cost(node: &Daemon, other: &Evil, directory: &Path, seed: u64) -> (u64, u64) {
    let bytes = || {
        let transfers = node.status()["transfers"].take();
        ["sent_bytes", "received_bytes"].map(|way| transfers[way].as_u64().expect("a number")).iter().sum::<u64>()
    };
    let (before, bytes_before) = (other.asked().by(node.peer_id()), bytes());
    for number in 0..4 {
        let file = directory.join(format!("{seed}-{number}"));
        fs::write(&file, tree::noise(seed + number, FILE)).expect("it is written");
        let added = node.add(&file);
        assert_eq!(added["replicas"], serde_json::json!({"wanted": 3, "min": 2}), "{added}");
    }
    let after = other.asked().by(node.peer_id());
    let asked = after.kept + after.renewed + after.looked_for - before.kept - before.renewed - before.looked_for;
    (asked, bytes() - bytes_before)
}

#[test]
fn one_more_file_costs_the_same_with_four_chunks_and_with_four_thousand() {
    let node = NODE.daemon().start();
    // It takes all that it is given, and counts.
    let other = Evil::start("main", &[&node], Tactic::Acknowledge, Chunks::new());
    other.wait_until_trusted_by(&node, 0);
    let work = Scratch::new("few-peers");
    let (first, first_bytes) = cost(&node, &other, work.path(), 510);
    let many = work.join("many");
    tree::noise_file(&many, 502, MANY as u64 * 1024);
    let added = node.json(["add", utf8(&many), "--chunker", "size-1024"]);
    assert!(added["chunks"].as_u64().expect("a number") > MANY as u64, "{added}");
    assert!(other.asked().by(node.peer_id()).kept > MANY as u64, "each was sent");
    let (then, then_bytes) = cost(&node, &other, work.path(), 520);
    println!("{first} chunks asked about and {first_bytes} bytes with nothing, {then} and {then_bytes} with {MANY}");
    assert!((4..=8).contains(&first) && then <= first, "{then} chunks, and {first} before there was anything");
    // All that passes counts: four files, and frames around them; a greeting more may fall into it.
    assert!(first_bytes > 4 * FILE as u64 && then_bytes <= first_bytes + 1000, "{then_bytes} bytes, and {first_bytes}");
}
