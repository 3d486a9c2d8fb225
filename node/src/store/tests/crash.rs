//! A process that is killed while it acknowledges: everything acknowledged is there.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use super::{chunk, directory, open, run};

const DIRECTORY: &str = "P2P_NODE_TEST_CRASH_DIRECTORY";
const FIRST: &str = "P2P_NODE_TEST_CRASH_FIRST";
const ROUNDS: u64 = 20;

/// Says a line at once, so that the parent has it when this process dies.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent may have gone; then nobody counts.
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Not a test: the process that is killed. It does nothing unless its parent started it.
#[test]
#[ignore = "started by acknowledged_chunks_survive_kill_9"]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let first: u64 = std::env::var(FIRST).expect("both are set").parse().expect("a number");
    run(async {
        let store = open(directory.as_ref());
        // Far more than it lives to do.
        for start in (first..first + 1_000_000).step_by(8) {
            let puts = (start..start + 8).map(|seed| {
                let store = store.clone();
                async move {
                    store.put(chunk(seed, (seed % 2000) as usize + 8)).await.expect("there is room");
                    say(&format!("+{seed}"));
                }
            });
            futures::future::join_all(puts).await;
            // Some go again, so that there is compaction too: announced, done, confirmed.
            let gone: Vec<_> = (start..start + 6).collect();
            gone.iter().for_each(|seed| say(&format!("~{seed}")));
            let hashes = gone.iter().map(|seed| chunk(*seed, (seed % 2000) as usize + 8).cid().hash).collect();
            store.remove(hashes).await.expect("it writes");
            gone.iter().for_each(|seed| say(&format!("-{seed}")));
        }
    });
}

#[test]
fn acknowledged_chunks_survive_kill_9() {
    let directory = directory();
    let (mut here, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..ROUNDS {
        let first = round * 10_000_000;
        let mut child = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", "store::tests::crash::child", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .env(FIRST, first.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the test binary starts");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        // A different number of acknowledgements each round; what was still said before the kill counts too.
        let until = 20 + (round * 37) % 200;
        let mut said = 0;
        for line in out.lines() {
            let line = line.expect("it is text");
            // The test harness writes lines of its own, and a name before the first of ours.
            let Some(at) = line.rfind(['+', '~', '-']) else { continue };
            let Ok(seed) = line[at + 1..].parse::<u64>() else { continue };
            said += 1;
            match &line[at..=at] {
                "+" => drop(here.insert(seed)),
                "~" => drop(here.remove(&seed)),
                _ => drop(gone.insert(seed)),
            }
            if said == until {
                child.kill().expect("it is ours");
            }
        }
        child.wait().expect("it is ours");
        assert!(said >= until, "round {round}: it ended by itself after {said}");
        run(async {
            let store = open(directory.path());
            for seed in &here {
                let chunk = chunk(*seed, (seed % 2000) as usize + 8);
                let found = store.get(&chunk.cid().hash).await.expect("it reads");
                assert_eq!(found, Some(chunk), "round {round}: {seed} was acknowledged");
            }
            for seed in &gone {
                let chunk = chunk(*seed, (seed % 2000) as usize + 8);
                assert_eq!(
                    store.entry(&chunk.cid().hash).expect("it reads"),
                    None,
                    "round {round}: {seed} was removed"
                );
            }
            store.close().await.expect("it closes");
        });
    }
    assert!(here.len() > 100, "{}", here.len());
}
