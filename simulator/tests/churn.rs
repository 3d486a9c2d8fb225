//! Larger networks, sampled: what is printed is the same for a seed, and means what it says.

use p2p_simulator::churn::{Plan, expected_losses, run};

fn value(printed: &str, name: &str) -> f64 {
    let line = printed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in:\n{printed}"))
}

/// A hundred and forty nodes, so that each knows only some of the others.
fn plan() -> Plan {
    Plan { days: 1, chunks: 140_000, ..Plan::new(140) }
}

#[test]
fn the_same_seed_prints_the_same_and_another_another() {
    let plan = Plan { nodes: 40, chunks: 400_000, adds_a_day: 20.0, ..plan() };
    let printed = run(&plan);
    assert_eq!(printed, run(&plan));
    assert_ne!(printed, run(&Plan { seed: 2, ..plan.clone() }));
    let first: Vec<&str> = printed.lines().filter_map(|line| line.split('=').next()).take(10).collect();
    let names = [
        "lost",
        "lost_expected",
        "repair_p50_s",
        "repair_p99_s",
        "moved_per_lost",
        "restart_bytes",
        "manifest_bytes_per_node_day",
        "audit_bytes_per_node_day",
        "gossip_bytes_per_node_day",
        "lookups_per_node_day",
    ];
    assert_eq!(first, names);
    assert_eq!(value(&printed, "lost"), 0.0);
    assert!(value(&printed, "manifest_bytes_per_node_day") > 0.0 && value(&printed, "audit_bytes_per_node_day") > 0.0);
}

#[test]
fn departures_alone_move_what_was_lost() {
    let quiet =
        Plan { restarts_a_day: 0.0, sleepers: 0.0, wipes_a_day: 0.0, full_a_day: 0.0, adds_a_day: 0.0, ..plan() };
    let printed = run(&Plan { departures_a_day: 6.0, joins: 0.0, ..quiet });
    assert_eq!((value(&printed, "departed"), value(&printed, "lost")), (6.0, 0.0));
    let moved = value(&printed, "moved_per_lost");
    assert!((0.95..=1.05).contains(&moved), "{printed}");
    assert_eq!(value(&printed, "moved_to_joiners_gib") + value(&printed, "moved_for_absences_gib"), 0.0);
    assert!(value(&printed, "repair_p50_s") >= 900.0);
}

#[test]
fn theory_is_the_chain_of_copies() {
    // One failure in ten days, repair takes a tenth of a day, three copies: 3 × 0.1 × 0.01².
    let expected = expected_losses(1e6, 10.0, 3, 0.1, 0.1);
    assert!((expected / (1e7 * 3.0 * 0.1 * 1e-4) - 1.0).abs() < 1e-9, "{expected}");
    assert_eq!(expected_losses(10.0, 1.0, 1, 0.5, 7.0), 5.0, "one copy goes with its node");
}
