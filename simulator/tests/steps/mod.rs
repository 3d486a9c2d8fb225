//! A network, one step at a time: what the suites share that look at one thing each. Wherever it stands the model must
//! find nothing wrong.

use std::{collections::BTreeSet, time::Duration};

use p2p_protocol::{Key, duty::Settings};
use p2p_simulator::{node::NodeId, trace::Happening, world::World};

pub const HOUR: Duration = Duration::from_secs(3600);
pub const MINUTE: Duration = Duration::from_secs(60);

/// So many nodes that met.
pub fn network(nodes: usize, seed: u64, settings: Settings) -> World {
    let mut world = World::new(seed, settings);
    for _ in 0..nodes {
        world.join();
    }
    wait(&mut world, MINUTE);
    world
}

pub fn wait(world: &mut World, time: Duration) {
    let until = world.now() + time;
    world.run(until);
    assert_eq!(world.model.violation, None);
}

pub fn happen(world: &mut World, happening: Happening) {
    let now = world.now();
    world.happens(now, happening);
    wait(world, Duration::ZERO);
}

/// The chunks on a node's disk.
pub fn held(world: &World, node: NodeId) -> BTreeSet<Key> {
    let rows = world.nodes[node].disk.rows.iter();
    rows.filter(|(_, kept)| kept.held).map(|(key, _)| *key).collect()
}
