//! Small networks, shaken: two hundred seeds, each a few dozen things that happen in three days.

use std::ops::Range;

use p2p_simulator::{trace::Trace, world::quick_settings};

/// One seed alone: `P2P_TEST_SEED=… cargo test -p p2p-simulator --test small first`.
fn seed_of_environment() -> Option<u64> {
    std::env::var("P2P_TEST_SEED").ok().and_then(|seed| seed.parse().ok())
}

/// Nothing promised is lost, nothing removed stays, and there is quiet after all that changes.
fn run(seeds: Range<u64>) {
    for seed in seed_of_environment().map_or(seeds, |seed| seed..seed + 1) {
        let settings = quick_settings();
        let trace = Trace::small(seed, &settings);
        if let Some(violation) = trace.run(settings, false).violation {
            let shrunk = trace.shrink(settings);
            let outcome = shrunk.run(settings, true);
            panic!(
                "seed {seed}: {violation}\nsmaller: {} nodes, {:#?}\n{}\n{}",
                shrunk.nodes,
                shrunk.happenings,
                outcome.violation.unwrap_or_default(),
                outcome.log.join("\n")
            );
        }
    }
}

// Four tests, so that the cores of a machine share them.

#[test]
fn the_first_fifty_seeds() {
    run(0..50);
}

#[test]
fn the_second_fifty_seeds() {
    run(50..100);
}

#[test]
fn the_third_fifty_seeds() {
    run(100..150);
}

#[test]
fn the_fourth_fifty_seeds() {
    run(150..200);
}

#[test]
#[ignore = "prints what each of many seeds does; by hand"]
fn survey() {
    for seed in seed_of_environment().map_or(0..200, |seed| seed..seed + 1) {
        let settings = quick_settings();
        let trace = Trace::small(seed, &settings);
        let started = std::time::Instant::now();
        let outcome = trace.run(settings, false);
        println!("{seed} {:?} {}", started.elapsed(), outcome.violation.unwrap_or_default());
    }
}
