//! What befalls a store one thing at a time, with exact figures.

mod steps;

use std::{collections::BTreeSet, time::Duration};

use p2p_protocol::{Key, duty::Settings};
use p2p_simulator::{node::NodeId, trace::Happening, world::World, world::quick_settings};
use steps::{HOUR, MINUTE, happen, held, network, wait};

fn add(world: &mut World, node: NodeId, chunks: usize, copies: u8) {
    happen(world, Happening::Add(node, chunks, copies, Duration::ZERO));
    wait(world, MINUTE);
}

/// Live chunks that a node is one of the k nearest for.
fn share(world: &World, node: NodeId) -> BTreeSet<Key> {
    let live = world.model.live();
    live.filter(|(key, copies)| world.nearest(key, usize::from(*copies)).contains(&node)).map(|(key, _)| *key).collect()
}

/// Copies that are missing where they should be.
fn missing(world: &World) -> usize {
    let live = world.model.live();
    let nearest =
        live.flat_map(|(key, copies)| world.nearest(key, usize::from(copies)).into_iter().map(|node| (*key, node)));
    nearest.filter(|(key, node)| !world.nodes[*node].disk.holds(key)).count()
}

#[test]
fn restarts_within_the_delay_move_nothing() {
    let mut world = network(10, 1, quick_settings());
    add(&mut world, 0, 300, 3);
    wait(&mut world, HOUR);
    for node in (0..10).chain(0..10) {
        happen(&mut world, Happening::Stop(node));
        wait(&mut world, 10 * MINUTE);
        happen(&mut world, Happening::Start(node));
        wait(&mut world, 10 * MINUTE);
    }
    wait(&mut world, 24 * HOUR);
    assert_eq!((world.figures.pulls, missing(&world)), (0, 0));
    assert_eq!(world.figures.restarts, 20);
    assert!(world.figures.restart_bytes < 20 * 9 * 10_000, "{} bytes", world.figures.restart_bytes);
}

#[test]
fn a_power_cut_of_four_of_ten_moves_nothing() {
    let mut world = network(10, 13, quick_settings());
    add(&mut world, 0, 300, 3);
    wait(&mut world, HOUR);
    (4..8).for_each(|node| happen(&mut world, Happening::Stop(node)));
    // Four repair delays: so many do not fail one by one.
    wait(&mut world, HOUR);
    (4..8).for_each(|node| happen(&mut world, Happening::Start(node)));
    wait(&mut world, 12 * HOUR);
    assert_eq!((world.figures.pulls, missing(&world)), (0, 0));
}

#[test]
fn what_one_of_ten_had_is_made_again_once() {
    let settings = Settings { repair_bytes_per_second: 1 << 20, ..quick_settings() };
    let mut world = network(10, 2, settings);
    // The node that added it all is the one that goes, so that no cached copies are left.
    add(&mut world, 0, 400, 3);
    wait(&mut world, HOUR);
    let (lost, before) = (share(&world, 0), (1..10).map(|node| held(&world, node)).collect::<Vec<_>>());
    happen(&mut world, Happening::Depart(0));
    wait(&mut world, 24 * HOUR);
    assert!(lost.len() > 50, "{}", lost.len());
    assert_eq!((world.figures.pulls as usize, missing(&world)), (lost.len(), 0));
    let came = (1..10).flat_map(|node| held(&world, node).difference(&before[node - 1]).copied().collect::<Vec<_>>());
    let came: Vec<Key> = came.collect();
    assert_eq!((came.len(), came.into_iter().collect::<BTreeSet<_>>()), (lost.len(), lost.clone()), "each by one");
    let bound = settings.repair_delay + Duration::from_secs(lost.len() as u64).mul_f64(1.3);
    assert_eq!(world.figures.repairs.len(), lost.len());
    let slowest = world.figures.repairs.iter().max().copied().unwrap_or_default();
    assert!(slowest <= bound, "{slowest:?} of {bound:?}");
    assert!(slowest > settings.repair_delay, "nothing moves before");
}

#[test]
fn four_of_seven_go_one_after_another() {
    let mut world = network(7, 3, quick_settings());
    add(&mut world, 0, 300, 3);
    wait(&mut world, HOUR);
    for node in 0..4 {
        happen(&mut world, Happening::Depart(node));
        assert!(world.nodes[node].departed);
        // Two of five that are away at once would make the rest wait eight times as long.
        wait(&mut world, 3 * HOUR);
        assert_eq!((world.figures.lost, missing(&world)), (0, 0), "after {node}");
    }
    assert!(world.model.live().count() > 300 && world.model.live().all(|(key, _)| world.model.copies(key) == 3));
}

#[test]
fn a_laptop_that_sleeps_every_night_moves_its_share_once() {
    let mut world = network(10, 4, quick_settings());
    add(&mut world, 0, 300, 3);
    wait(&mut world, HOUR);
    let mut moved = Vec::new();
    for _ in 0..7 {
        happen(&mut world, Happening::Stop(5));
        wait(&mut world, 9 * HOUR);
        happen(&mut world, Happening::Start(5));
        wait(&mut world, 15 * HOUR);
        moved.push(world.figures.pulls);
    }
    let others = share(&world, 5);
    assert!(moved[0] > 50 && moved[0] as usize <= others.len(), "{moved:?} of {}", others.len());
    assert!(moved.iter().all(|pulls| *pulls == moved[0]), "{moved:?}");
}

#[test]
fn a_full_peers_share_has_an_owner_and_it_is_left_alone() {
    let mut world = network(10, 5, quick_settings());
    happen(&mut world, Happening::Fill(5, 0));
    add(&mut world, 0, 300, 3);
    wait(&mut world, 2 * HOUR);
    let share = share(&world, 5);
    assert!(share.len() > 50 && held(&world, 5).is_empty());
    assert!(world.model.live().all(|(key, _)| world.model.holders(key).filter(|node| *node != 0).count() >= 2));
    assert!(share.iter().all(|key| world.model.copies(key) >= 3), "others have what it should");
    let (pulls, full) = (world.figures.pulls, world.figures.asks_of_full);
    wait(&mut world, 48 * HOUR);
    assert_eq!((world.figures.pulls, world.figures.asks_of_full), (pulls, full), "quiet");
    happen(&mut world, Happening::Grow(5));
    wait(&mut world, HOUR);
    assert_eq!((missing(&world), world.figures.pulls as usize), (0, pulls as usize + share.len()));
}

#[test]
fn behind_a_full_peer_the_next_one_takes_over_at_once() {
    let settings = quick_settings();
    let mut world = network(10, 14, settings);
    add(&mut world, 0, 400, 3);
    wait(&mut world, HOUR);
    happen(&mut world, Happening::Fill(5, 0));
    happen(&mut world, Happening::Depart(0));
    wait(&mut world, settings.repair_delay + MINUTE);
    assert!(world.figures.pulls > 50 && missing(&world) > 5, "some of it was to be the full one's");
    assert!(world.model.live().all(|(key, _)| world.model.copies(key) == 3));
}

#[test]
fn a_disk_that_refuses_below_its_capacity_makes_no_storm() {
    let mut world = network(4, 6, quick_settings());
    add(&mut world, 0, 2, 4);
    // No chunk fits any more, and by its capacity a third of the disk is free.
    let disk = &mut world.nodes[3].disk;
    disk.capacity = disk.used + (900 << 10);
    assert!(disk.used > 0 && disk.used * 10 < disk.capacity * 8);
    add(&mut world, 0, 60, 4);
    let asks = world.figures.asks;
    wait(&mut world, 24 * HOUR);
    // It looks again every ten minutes, at three others.
    let asked = world.figures.asks - asks;
    assert!(asked > 24 && asked < 24 * 6 * 3 * 2, "{asked} questions");
}

#[test]
fn a_partition_longer_than_the_grace_costs_only_what_was_added_in_it() {
    let settings = quick_settings();
    let mut world = network(10, 7, settings);
    add(&mut world, 0, 200, 3);
    add(&mut world, 9, 50, 3);
    wait(&mut world, HOUR);
    happen(&mut world, Happening::Part((0..5).collect()));
    wait(&mut world, HOUR);
    add(&mut world, 1, 40, 3);
    add(&mut world, 8, 40, 3);
    // One side removes what the other side goes on with.
    happen(&mut world, Happening::Remove(1));
    wait(&mut world, settings.grace * 3);
    assert!(world.model.live().all(|(key, _)| world.model.copies(key) >= 3));
    let live: BTreeSet<Key> = world.model.live().map(|(key, _)| *key).collect();
    let kept = (5..10).filter(|node| !held(&world, *node).is_subset(&live)).count();
    assert_eq!(kept, 5, "what one side removed, the other may have published again: it stays until they have met");
    happen(&mut world, Happening::Heal);
    let (before, lacking) = (world.figures.pulls, missing(&world));
    assert!(lacking > 0, "what one side added, the other lacks");
    wait(&mut world, settings.grace * 2);
    assert_eq!((world.figures.pulls - before) as usize, lacking, "nothing that was there is copied");
    let catalogues = world.nodes.iter().map(|node| node.disk.catalogue.fingerprint()).collect::<BTreeSet<_>>();
    assert_eq!((missing(&world), catalogues.len(), world.figures.lost), (0, 1, 0));
    let live: BTreeSet<Key> = world.model.live().map(|(key, _)| *key).collect();
    assert!((0..10).all(|node| held(&world, node).is_subset(&live)), "what was removed is gone on both sides");
}

#[test]
fn a_sybil_that_keeps_nothing_makes_no_honest_copy_go() {
    let mut world = network(8, 8, quick_settings());
    happen(&mut world, Happening::Lie(7));
    add(&mut world, 0, 200, 3);
    // The adding node has no room left for its cached copies.
    happen(&mut world, Happening::Fill(0, 0));
    let claimed = |world: &World, key: &Key, copies: u8| {
        let mut near: Vec<_> = (0..8).map(|node| (world.nodes[node].key.distance(key), node)).collect();
        near.sort_unstable();
        near.iter().take(usize::from(copies)).any(|(_, node)| *node == 7)
    };
    let live: Vec<(Key, u8)> = world.model.live().map(|(key, copies)| (*key, copies)).collect();
    let kept: Vec<Key> =
        live.iter().filter(|(key, copies)| claimed(&world, key, *copies)).map(|(key, _)| *key).collect();
    let before = held(&world, 0);
    wait(&mut world, 72 * HOUR);
    let after = held(&world, 0);
    assert!(world.figures.given_up > 0, "others proved what they have");
    assert!(kept.len() > 50 && kept.iter().all(|key| after.contains(key)), "the sybil proved nothing");
    assert!(before.len() > after.len());
    assert!(
        live.iter().all(|(key, copies)| world.model.copies(key) >= usize::from(*copies)),
        "and others took its share"
    );
}

#[test]
fn a_cached_copy_stays_where_the_holders_lost_theirs_and_nobody_knows() {
    let mut world = network(10, 15, quick_settings());
    add(&mut world, 0, 300, 3);
    // Each of the holders has been here for a day.
    wait(&mut world, 25 * HOUR);
    let share = share(&world, 0);
    let cached: Vec<Key> = held(&world, 0).difference(&share).copied().collect();
    let (rotten, sound) = cached.split_at(30);
    for node in 1..10 {
        for key in rotten {
            if let Some(kept) = world.nodes[node].disk.rows.get_mut(key) {
                kept.held = false;
            }
        }
    }
    happen(&mut world, Happening::Fill(0, 0));
    wait(&mut world, Duration::from_secs(10));
    let after = held(&world, 0);
    assert!(rotten.iter().all(|key| after.contains(key)), "nobody could prove that it has them");
    assert!(sound.iter().all(|key| !after.contains(key)), "the others are proved");
}

#[test]
fn a_wiped_node_fills_up_again_and_nobody_does_it_for_it() {
    let chunks = 1000;
    // It takes about an hour and a half, six repair delays.
    let settings = Settings { repair_bytes_per_second: 60 << 10, ..quick_settings() };
    let mut world = network(10, 9, settings);
    add(&mut world, 0, chunks, 3);
    // Neighbours still compare often: they find at once what it lacks.
    wait(&mut world, 10 * MINUTE);
    let before: Vec<_> = (0..10).map(|node| held(&world, node)).collect();
    happen(&mut world, Happening::Wipe(4));
    wait(&mut world, HOUR);
    assert!(missing(&world) > 20, "it is still at it");
    wait(&mut world, 24 * HOUR);
    assert!((0..10).all(|node| held(&world, node) == before[node]), "all is as it was");
    assert_eq!(world.figures.pulls as usize, before[4].len());
}

#[test]
fn what_is_removed_is_freed_everywhere_within_the_grace_and_two_minutes() {
    let settings = quick_settings();
    let mut world = network(10, 10, settings);
    add(&mut world, 0, 300, 3);
    add(&mut world, 1, 30, 3);
    wait(&mut world, HOUR);
    happen(&mut world, Happening::Remove(0));
    wait(&mut world, settings.grace - MINUTE);
    let live: BTreeSet<Key> = world.model.live().map(|(key, _)| *key).collect();
    assert!((0..10).any(|node| !held(&world, node).is_subset(&live)), "the grace is not over");
    wait(&mut world, 3 * MINUTE);
    assert!((0..10).all(|node| held(&world, node).is_subset(&live)));
    assert_eq!((missing(&world), world.figures.pulls), (0, 0));
}

#[test]
fn an_add_that_died_leaves_nothing_after_the_grace() {
    let settings = quick_settings();
    let mut world = network(10, 11, settings);
    happen(&mut world, Happening::Add(0, 200, 3, 2 * HOUR));
    wait(&mut world, HOUR);
    happen(&mut world, Happening::Stop(0));
    assert!((1..10).filter(|node| !held(&world, *node).is_empty()).count() >= 3);
    wait(&mut world, MINUTE);
    happen(&mut world, Happening::Start(0));
    wait(&mut world, settings.grace + 2 * MINUTE);
    assert!((0..10).all(|node| held(&world, node).is_empty()));
}

#[test]
fn an_add_longer_than_three_graces_is_whole() {
    let settings = quick_settings();
    let mut world = network(10, 12, settings);
    happen(&mut world, Happening::Add(0, 200, 3, settings.grace.mul_f64(3.2)));
    wait(&mut world, settings.grace * 3);
    assert_eq!(world.model.live().count(), 0);
    wait(&mut world, settings.grace);
    assert!(world.model.live().count() > 200);
    assert_eq!((missing(&world), world.figures.lost), (0, 0));
    wait(&mut world, settings.grace * 2);
    assert_eq!((missing(&world), world.figures.freed), (0, 0));
}

#[test]
fn a_node_that_is_drained_leaves_nothing_to_be_made_again() {
    let mut world = network(10, 16, quick_settings());
    add(&mut world, 0, 300, 3);
    wait(&mut world, HOUR);
    let (share, before) = (share(&world, 5), held(&world, 5));
    happen(&mut world, Happening::Drain(5));
    wait(&mut world, 2 * MINUTE);
    assert!(share.len() > 50);
    // One other takes each chunk of its share, but for those of which the adding node's cached copy will do.
    let cached = share.iter().filter(|key| world.nearest(key, 3).contains(&0) && before.contains(key)).count();
    let pulls = world.figures.pulls as usize;
    assert!(pulls <= share.len() && pulls + cached >= share.len(), "{pulls} and {cached} of {}", share.len());
    assert_eq!(missing(&world), 0, "at once, and not after the repair delay");
    // What is added meanwhile is not for it.
    add(&mut world, 1, 100, 3);
    wait(&mut world, HOUR);
    assert_eq!((held(&world, 5), missing(&world)), (before, 0));
    let pulls = world.figures.pulls;
    happen(&mut world, Happening::Depart(5));
    wait(&mut world, 48 * HOUR);
    assert_eq!((world.figures.pulls, missing(&world), world.figures.lost), (pulls, 0, 0), "nothing moves any more");
}

#[test]
fn a_node_that_stays_after_all_has_its_share_again() {
    let mut world = network(10, 17, quick_settings());
    add(&mut world, 0, 300, 3);
    wait(&mut world, HOUR);
    let before = world.figures.pulls;
    happen(&mut world, Happening::Drain(5));
    wait(&mut world, HOUR);
    let drained = world.figures.pulls;
    assert!(drained > before + 50);
    happen(&mut world, Happening::Stop(5));
    wait(&mut world, MINUTE);
    happen(&mut world, Happening::Start(5));
    wait(&mut world, HOUR);
    assert_eq!(world.figures.pulls, drained, "it still leaves");
    happen(&mut world, Happening::Stay(5));
    wait(&mut world, HOUR);
    assert_eq!((world.figures.pulls, missing(&world)), (drained, 0), "it had kept all of it");
}

#[test]
fn what_is_restored_as_the_grace_ends_is_whole_or_was_refused() {
    let settings = quick_settings();
    let (mut whole, mut refused) = (0, 0);
    for step in 0..40 {
        let mut world = network(10, 18, settings);
        add(&mut world, 0, 20, 3);
        wait(&mut world, HOUR);
        // Whoever restores it has no copies of its own that would be listed again at once.
        happen(&mut world, Happening::Wipe(0));
        wait(&mut world, HOUR);
        happen(&mut world, Happening::Remove(0));
        wait(&mut world, settings.grace - 3 * MINUTE + Duration::from_secs(6) * step);
        happen(&mut world, Happening::Restore(0, 2 * MINUTE));
        wait(&mut world, 3 * MINUTE);
        let promised = world.model.live().count();
        wait(&mut world, 2 * HOUR);
        assert_eq!((missing(&world), world.model.live().count()), (0, promised), "{step}");
        whole += usize::from(promised > 0);
        refused += usize::from(promised == 0);
    }
    assert!(whole > 5 && refused > 5, "{whole} were in time, {refused} were not");
}

#[test]
fn what_is_added_again_as_it_is_freed_stays() {
    let settings = quick_settings();
    let (mut kept, mut freed) = (0, 0);
    for step in 0..100 {
        let mut world = network(6, 19, settings);
        add(&mut world, 0, 30, 3);
        happen(&mut world, Happening::Remove(0));
        // All have looked again and freed it some twenty seconds after the grace.
        wait(&mut world, settings.grace + Duration::from_secs(19) + Duration::from_millis(20) * step);
        let before = world.figures.freed;
        happen(&mut world, Happening::Again(1, 0));
        wait(&mut world, 2 * HOUR);
        assert_eq!((world.figures.pulls, missing(&world)), (0, 0), "{step}: what was acknowledged was freed");
        kept += usize::from(before == 0);
        freed += usize::from(before > 0);
    }
    assert!(kept > 5 && freed > 5, "{kept} were in time, {freed} were not");
}
