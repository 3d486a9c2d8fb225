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

/// What the other machine is asked, in chunks, while a few small files are added: each may be seen to renew, look for or
/// offer again what was there before.
#[track_caller]
fn asked(node: &Daemon, other: &Evil, directory: &Path, seed: u64) -> u64 {
    let before = other.asked().by(node.peer_id());
    for number in 0..4 {
        let file = directory.join(format!("{seed}-{number}"));
        fs::write(&file, tree::noise(seed + number, 20_000)).expect("it is written");
        let added = node.add(&file);
        assert_eq!(added["replicas"], serde_json::json!({"wanted": 3, "min": 2}), "{added}");
    }
    let after = other.asked().by(node.peer_id());
    after.kept + after.renewed + after.looked_for - before.kept - before.renewed - before.looked_for
}

#[test]
fn one_more_file_costs_the_same_with_four_chunks_and_with_four_thousand() {
    let node = NODE.daemon().start();
    // It takes all that it is given, and counts.
    let other = Evil::start("main", &[&node], Tactic::Acknowledge, Chunks::new());
    other.wait_until_trusted_by(&node, 0);
    let work = Scratch::new("few-peers");
    let first = asked(&node, &other, work.path(), 510);
    let many = work.join("many");
    tree::noise_file(&many, 502, MANY as u64 * 1024);
    let added = node.json(["add", utf8(&many), "--chunker", "size-1024"]);
    assert!(added["chunks"].as_u64().expect("a number") > MANY as u64, "{added}");
    assert!(other.asked().by(node.peer_id()).kept > MANY as u64, "each was sent");
    let then = asked(&node, &other, work.path(), 520);
    println!("{first} chunks asked about with nothing, {then} with {MANY}");
    assert!((4..=8).contains(&first) && then <= first, "{then} chunks, and {first} before there was anything");
}
