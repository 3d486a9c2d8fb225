//! The simulated network keeps the same contract as real swarms do (those are in `swarm.rs`).

use p2p_node::net::{
    Network,
    simulated::{Fabric, Link, Topology, keypair},
};
use p2p_tests::contract;

#[tokio::test(start_paused = true)]
async fn the_simulated_network_keeps_the_contract_of_the_real_one() {
    let fabric = Fabric::new(1, Topology::Full, Link::LAN);
    let nodes: Vec<Network> = (0..12).map(|number| fabric.join(keypair(number).public().to_peer_id())).collect();
    contract::all(&nodes).await;
    contract::ban(&nodes).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_simulated_node_rejects_goes_no_further() {
    let fabric = Fabric::new(1, Topology::Full, Link::LAN);
    let nodes: Vec<Network> = (0..3).map(|number| fabric.join(keypair(number).public().to_peer_id())).collect();
    contract::rejected(&nodes).await;
}
