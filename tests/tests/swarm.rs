//! Real swarms: discovery, streams, gossip, the DHT, and bad company, in memory and on 127.0.0.1.

use p2p_tests::{
    contract,
    swarm::{Options, mesh, networks},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_on_tcp_and_quic_keep_the_contract() {
    let swarms = mesh(2, &Options::default().on_loopback(true, true)).await;
    contract::all(&networks(&swarms)).await;
    contract::ban(&networks(&swarms)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twelve_nodes_meet_through_one_and_keep_the_contract() {
    let swarms = mesh(12, &Options::default()).await;
    for swarm in &swarms {
        swarm.until("the first round over", |table| table.discovered && table.complete).await;
    }
    contract::all(&networks(&swarms)).await;
    contract::ban(&networks(&swarms)).await;
}
