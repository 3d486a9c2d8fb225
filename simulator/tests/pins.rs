//! What users pin, one thing at a time: whole copies that are no replicas, and what becomes of them.

mod steps;

use std::{collections::BTreeSet, time::Duration};

use p2p_protocol::Key;
use p2p_simulator::{
    node::NodeId,
    trace::{CHUNK_BYTES, Happening},
    world::{World, quick_settings},
};
use steps::{HOUR, MINUTE, happen, held, wait};

/// Chunks of what is added: with a manifest of two leaves and their node.
const CHUNKS: usize = 200;

/// So many nodes that met, and a publication of the first, in one copy each.
fn network(nodes: usize, seed: u64) -> World {
    let mut world = steps::network(nodes, seed, quick_settings());
    happen(&mut world, Happening::Add(0, CHUNKS, 1, Duration::ZERO));
    wait(&mut world, HOUR);
    world
}

fn pinned(world: &World, node: NodeId) -> usize {
    world.nodes[node].disk.rows.values().filter(|kept| kept.held && kept.row.is_pinned()).count()
}

/// All that is promised.
fn live(world: &World) -> BTreeSet<Key> {
    world.model.live().map(|(key, _)| *key).collect()
}

/// Long enough for all that ends after a grace, and for what is compared before.
fn rest(world: &mut World) {
    wait(world, quick_settings().grace * 10);
    world.check_settled();
    assert_eq!(world.model.violation, None);
}

#[test]
fn a_pin_fetches_each_chunk_once_and_takes_no_copy_from_anybody() {
    // So many that most of the keyspace is not a node's part, nor near to it.
    const COUNT: usize = 40;
    let mut world = network(COUNT, 61);
    let (all, before) = (live(&world), world.figures.pulls);
    let had = held(&world, 7).len();
    assert!(had < all.len() / 2, "it has its share");
    let others: Vec<_> = (0..COUNT).filter(|node| *node != 7).map(|node| held(&world, node)).collect();
    happen(&mut world, Happening::Pin(7, 0, false));
    happen(&mut world, Happening::Pin(7, 0, false));
    wait(&mut world, HOUR);
    assert_eq!((pinned(&world, 7), held(&world, 7)), (all.len(), all.clone()));
    assert_eq!(world.figures.pulls - before, (all.len() - had) as u64);
    rest(&mut world);
    let after: Vec<_> = (0..COUNT).filter(|node| *node != 7).map(|node| held(&world, node)).collect();
    assert_eq!((others, world.figures.given_up), (after, 0));
    // A restart, also a long one, moves nothing of it.
    for time in [5 * MINUTE, 2 * HOUR] {
        happen(&mut world, Happening::Stop(7));
        wait(&mut world, time);
        happen(&mut world, Happening::Start(7));
        wait(&mut world, HOUR);
        assert_eq!(pinned(&world, 7), all.len());
    }
}

#[test]
fn a_pin_by_root_outlives_the_removal_and_its_end_frees_what_nothing_lists() {
    let mut world = network(8, 62);
    let all = live(&world);
    happen(&mut world, Happening::Pin(5, 0, false));
    wait(&mut world, HOUR);
    happen(&mut world, Happening::Remove(0));
    rest(&mut world);
    assert_eq!(held(&world, 5), all);
    assert!((0..8).all(|node| node == 5 || held(&world, node).is_empty()), "everybody else's is freed");
    happen(&mut world, Happening::Unpin(5, 0));
    rest(&mut world);
    assert!(held(&world, 5).is_empty() && pinned(&world, 5) == 0);
}

#[test]
fn what_is_unpinned_and_published_still_is_cached_and_not_freed() {
    // So many that most of it is not of its part, where rows name only what was read while its chunks were there.
    let mut world = network(40, 63);
    let all = live(&world);
    happen(&mut world, Happening::Pin(5, 0, false));
    wait(&mut world, HOUR);
    happen(&mut world, Happening::Unpin(5, 0));
    rest(&mut world);
    assert_eq!((pinned(&world, 5), held(&world, 5), world.figures.freed), (0, all.clone(), 0));
    // So that it makes good for what everybody else loses.
    world.gated = false;
    for node in (0..40).filter(|node| *node != 5) {
        happen(&mut world, Happening::Wipe(node));
    }
    rest(&mut world);
    assert_eq!((world.figures.lost, live(&world)), (0, all));
}

#[test]
fn a_pinned_name_follows_its_versions_and_ends_with_it() {
    let mut world = network(8, 64);
    let first = live(&world);
    happen(&mut world, Happening::Pin(5, 0, true));
    happen(&mut world, Happening::Pin(6, 0, false));
    wait(&mut world, HOUR);
    assert_eq!((pinned(&world, 5), pinned(&world, 6)), (first.len(), first.len()));
    // Also one that was published while it was away.
    for away in [false, true] {
        if away {
            happen(&mut world, Happening::Stop(5));
        }
        happen(&mut world, Happening::Update(0, CHUNKS, Duration::ZERO));
        wait(&mut world, HOUR);
        if away {
            happen(&mut world, Happening::Start(5));
        }
        rest(&mut world);
        let now = live(&world);
        assert!(now.is_disjoint(&first), "it is another root");
        assert_eq!(held(&world, 5), now, "the versions before are freed");
        assert!(held(&world, 6).is_superset(&first), "a root stays as it is");
    }
    happen(&mut world, Happening::Remove(0));
    rest(&mut world);
    assert!(held(&world, 5).is_empty() && world.nodes[5].disk.pins.is_empty());
    assert_eq!(held(&world, 6), first);
    // What comes back under the name is not pinned.
    happen(&mut world, Happening::Add(0, CHUNKS, 1, Duration::ZERO));
    rest(&mut world);
    assert_eq!(pinned(&world, 5), 0);
}

#[test]
fn a_full_disk_takes_the_rest_when_it_has_room_and_gives_nothing_pinned_up() {
    let mut world = network(6, 65);
    let all = live(&world);
    happen(&mut world, Happening::Fill(4, 50));
    happen(&mut world, Happening::Pin(4, 0, false));
    wait(&mut world, 48 * HOUR);
    let some = pinned(&world, 4);
    assert!(some < all.len() && world.nodes[4].disk.used <= world.nodes[4].disk.capacity);
    happen(&mut world, Happening::Grow(4));
    wait(&mut world, HOUR);
    assert_eq!(pinned(&world, 4), all.len());
    // Hardly any room: what is cached goes, what is pinned does not.
    happen(&mut world, Happening::Fill(4, 1));
    wait(&mut world, 48 * HOUR);
    assert_eq!((pinned(&world, 4), world.figures.given_up), (all.len(), 0));
    assert!(world.nodes[4].disk.used > 100 * u64::from(CHUNK_BYTES));
}
