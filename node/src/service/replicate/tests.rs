//! Adds and owed copies among nodes in memory: who ends up holding what, computed here independently.

use std::{collections::BTreeSet, time::Duration};

use p2p_protocol::{Codec, Key, Multihash};

use super::*;
use crate::{
    net::simulated::Fabric,
    service::rig::{ROOMY, Serve as _, eventually, peer},
    store::{Put, Role, Terms},
};

const THREE: Wish = Wish { wanted: 3, wait: None, local: false };

/// All rooms of a node.
struct Node {
    seed: u8,
    store: Store,
    locate: Locate,
    replicate: Replicate,
}

impl Node {
    async fn new(fabric: &Fabric, seed: u8, capacity_bytes: u64) -> Self {
        let (network, store, transfer) = fabric.serve(seed, capacity_bytes).await;
        let locate = Locate::start(network, transfer.clone(), capacity_bytes > 0, &Layer::alone());
        let replicate = Replicate::start(
            store.clone(),
            Wanted::open(store.clone()).expect("it opens"),
            locate.clone(),
            transfer,
            &Layer::alone(),
        );
        Self { seed, store, locate, replicate }
    }

    fn role(&self, chunk: &Chunk) -> Option<Role> {
        self.store.entry(&chunk.cid().hash).expect("it reads").map(|entry| entry.terms.role)
    }

    fn owes(&self, chunk: &Chunk) -> bool {
        self.store.entry(&chunk.cid().hash).expect("it reads").is_some_and(|entry| entry.terms.owed)
    }

    async fn add(&self, chunks: &[Chunk], wish: Wish) -> Report {
        let job = self.replicate.begin(wish).await;
        for chunk in chunks {
            job.submit(chunk.clone()).await.expect("there is room");
        }
        job.finish().await.expect("there is room")
    }
}

async fn nodes(fabric: &Fabric, seeds: std::ops::Range<u8>) -> Vec<Node> {
    let mut nodes = Vec::new();
    for seed in seeds {
        nodes.push(Node::new(fabric, seed, ROOMY).await);
    }
    let others = nodes.len() - 1;
    eventually("all know all", || nodes.iter().all(|node| node.locate.reachable() == others)).await;
    nodes
}

fn chunks(count: u32, length: usize) -> Vec<Chunk> {
    (0..count)
        .map(|seed| {
            let mut bytes = vec![0; length];
            blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
            Chunk::new(Codec::Raw, bytes).expect("it is short")
        })
        .collect()
}

/// The seeds of the k nodes nearest to a chunk, by arithmetic that shares nothing with the node's.
fn nearest(nodes: &[Node], hash: &Multihash, k: usize) -> BTreeSet<u8> {
    let key = Key::from(hash).0;
    let mut by_distance: Vec<(Vec<u8>, u8)> = nodes
        .iter()
        .map(|node| {
            let own = Key::from(&peer(node.seed)).0;
            (key.iter().zip(own).map(|(a, b)| a ^ b).collect(), node.seed)
        })
        .collect();
    by_distance.sort();
    by_distance.into_iter().take(k).map(|(_, seed)| seed).collect()
}

fn holders(nodes: &[Node], chunk: &Chunk) -> BTreeSet<u8> {
    nodes.iter().filter(|node| node.role(chunk) == Some(Role::Replica)).map(|node| node.seed).collect()
}

#[tokio::test(start_paused = true)]
async fn an_add_puts_every_chunk_on_exactly_its_k_closest() {
    let fabric = Fabric::default();
    let nodes = nodes(&fabric, 1..9).await;
    let chunks: Vec<Chunk> = chunks(60, 3_000).into_iter().chain(self::chunks(20, 300_000)).collect();
    let report = nodes[0].add(&chunks, THREE).await;
    assert_eq!(report, Report { min: 3, seen: 8, failures: Vec::new() });
    for chunk in &chunks {
        assert_eq!(holders(&nodes, chunk), nearest(&nodes, &chunk.cid().hash, 3));
        assert!(nodes.iter().all(|node| !node.owes(chunk)));
        let expected = if nearest(&nodes, &chunk.cid().hash, 3).contains(&1) { Role::Replica } else { Role::Cache };
        assert_eq!(nodes[0].role(chunk), Some(expected));
    }
    assert!(chunks.iter().any(|chunk| nodes[0].role(chunk) == Some(Role::Cache)));
    assert_eq!(nodes[0].store.usage().owed, 0);
    assert_eq!(nodes[0].replicate.in_flight(), 0);
    // Again, from another node: nothing moves, the same is true.
    let again = nodes[3].add(&chunks, THREE).await;
    assert_eq!((again.min, again.failures.len()), (3, 0));
    for chunk in &chunks {
        assert_eq!(holders(&nodes, chunk), nearest(&nodes, &chunk.cid().hash, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn what_repeats_is_sent_once_and_what_was_here_is_known() {
    let fabric = Fabric::default();
    let nodes = nodes(&fabric, 1..4).await;
    let chunk = chunks(1, 100_000).remove(0);
    let job = nodes[0].replicate.begin(THREE).await;
    assert_eq!(job.submit(chunk.clone()).await.expect("there is room"), Put::New);
    for _ in 0..5 {
        assert_eq!(job.submit(chunk.clone()).await.expect("there is room"), Put::Known);
    }
    eventually("both copies are acknowledged", || job.copies() == 2).await;
    assert_eq!(job.finish().await.expect("there is room").min, 3);
    let job = nodes[0].replicate.begin(THREE).await;
    assert_eq!(job.submit(chunk).await.expect("there is room"), Put::Known);
    assert_eq!(job.finish().await.expect("there is room").min, 3);
}

#[tokio::test(start_paused = true)]
async fn a_full_peer_refuses_and_the_next_nearest_takes_the_copy() {
    let fabric = Fabric::default();
    let mut all = Vec::new();
    for seed in 1..7 {
        // The third has room for nothing.
        all.push(Node::new(&fabric, seed, if seed == 3 { 10 } else { ROOMY }).await);
    }
    eventually("all know all", || all.iter().all(|node| node.locate.reachable() == 5)).await;
    let chunks: Vec<Chunk> = chunks(30, 20_000).into_iter().chain(self::chunks(30, 2_000)).collect();
    let report = all[0].add(&chunks, THREE).await;
    assert_eq!(report.min, 3);
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.failures[0].0, peer(3));
    let mut displaced = 0;
    for chunk in &chunks {
        let mut expected = nearest(&all, &chunk.cid().hash, 4);
        if nearest(&all, &chunk.cid().hash, 3).contains(&3) {
            expected.remove(&3);
            displaced += 1;
        } else {
            expected = nearest(&all, &chunk.cid().hash, 3);
        }
        assert_eq!(holders(&all, chunk), expected);
        assert!(!all[0].owes(chunk));
    }
    assert!(displaced > 5, "{displaced}");
}

#[tokio::test(start_paused = true)]
async fn copies_that_nobody_could_take_are_made_as_peers_join_and_then_nobody_owes_them() {
    let fabric = Fabric::default();
    let mut all = vec![Node::new(&fabric, 1, ROOMY).await];
    let chunks = chunks(20, 30_000);
    let report = all[0].add(&chunks, THREE).await;
    assert_eq!(report, Report { min: 1, seen: 1, failures: Vec::new() });
    assert_eq!(all[0].store.usage().owed, 20);
    all.push(Node::new(&fabric, 2, ROOMY).await);
    eventually("the second holds all", || all[1].store.usage().chunks == 20).await;
    assert_eq!((all[0].store.usage().owed, all[1].store.usage().owed), (20, 20), "one copy is still missing");
    for seed in 3..6 {
        all.push(Node::new(&fabric, seed, ROOMY).await);
    }
    eventually("nothing is owed", || all.iter().all(|node| node.store.usage().owed == 0)).await;
    for chunk in &chunks {
        let held = holders(&all, chunk);
        assert!(held.is_superset(&nearest(&all, &chunk.cid().hash, 3)));
        assert!(held.contains(&1), "what was acknowledged stays, whatever others say that they keep");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_left_of_the_holders_makes_the_copies() {
    let fabric = Fabric::default();
    let mut all = nodes(&fabric, 1..3).await;
    let chunks = chunks(20, 30_000);
    assert_eq!(all[0].add(&chunks, THREE).await.min, 2);
    // The adder dies for good.
    fabric.leave(peer(1));
    drop(all.remove(0));
    all.extend([Node::new(&fabric, 3, ROOMY).await, Node::new(&fabric, 4, ROOMY).await]);
    eventually("three hold each", || chunks.iter().all(|chunk| holders(&all, chunk).len() == 3)).await;
    eventually("nothing is owed", || all.iter().all(|node| node.store.usage().owed == 0)).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_run_left_owed_is_taken_up_again() {
    let fabric = Fabric::default();
    let (network, store, transfer) = fabric.serve(1, ROOMY).await;
    let chunks = chunks(300, 1_000);
    for chunk in &chunks {
        let terms = Terms { role: Role::Cache, wanted: 2, owed: true, root: None };
        store.put(chunk.clone(), terms).await.expect("there is room");
    }
    let locate = Locate::start(network, transfer.clone(), true, &Layer::alone());
    let replicate = Replicate::start(
        store.clone(),
        Wanted::open(store.clone()).expect("it opens"),
        locate.clone(),
        transfer,
        &Layer::alone(),
    );
    let mut all = vec![Node { seed: 1, store, locate, replicate }];
    all.extend([Node::new(&fabric, 2, ROOMY).await, Node::new(&fabric, 3, ROOMY).await]);
    eventually("nothing is owed", || all.iter().all(|node| node.store.usage().owed == 0)).await;
    for chunk in &chunks {
        assert_eq!(holders(&all, chunk), nearest(&all, &chunk.cid().hash, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_add_returns_at_once_and_is_replicated_in_the_background() {
    let fabric = Fabric::default();
    let nodes = nodes(&fabric, 1..6).await;
    let chunks = chunks(20, 2_000);
    let report = nodes[0].add(&chunks, Wish { local: true, ..THREE }).await;
    assert!(report.min <= 1);
    assert_eq!(nodes[0].store.usage().owed, 20);
    eventually("nothing is owed", || nodes[0].store.usage().owed == 0).await;
    for chunk in &chunks {
        assert_eq!(holders(&nodes, chunk), nearest(&nodes, &chunk.cid().hash, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_dies_is_reported_and_the_chunk_stays_owed_until_there_is_another() {
    let fabric = Fabric::default();
    let mut nodes = nodes(&fabric, 1..4).await;
    // It is in everybody's table, and its service answers nobody.
    let silent = fabric.join(peer(9));
    let mut inbound =
        silent.accept_streams(crate::service::rig::transfer_protocol(), 64).await.expect("the fabric accepts");
    let chunks = chunks(10, 40_000);
    let report = nodes[0].add(&chunks, THREE).await;
    assert_eq!(report.min, 3, "a peer that never greeted is not placed on");
    inbound.close();
    // One of three is cut off in the middle of an add that wants all three.
    let more: Vec<Chunk> = self::chunks(40, 41_000);
    let job = nodes[0].replicate.begin(THREE).await;
    for (at, chunk) in more.iter().enumerate() {
        if at == 20 {
            fabric.leave(peer(3));
        }
        job.submit(chunk.clone()).await.expect("there is room");
    }
    let report = job.finish().await.expect("there is room");
    assert_eq!((report.min, report.seen), (2, 3));
    assert!(more.iter().all(|chunk| holders(&nodes[..2], chunk).len() == 2), "the two that live have all");
    assert!(nodes[0].store.usage().owed > 0);
    // The adder dies too: its partner knows what is owed.
    fabric.leave(peer(1));
    drop(nodes.remove(0));
    fabric.back(peer(3));
    let others = Node::new(&fabric, 5, ROOMY).await;
    nodes.push(others);
    eventually("nothing is owed", || nodes.iter().all(|node| node.store.usage().owed == 0)).await;
    for chunk in &more {
        assert_eq!(holders(&nodes, chunk).len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn an_add_that_is_given_up_leaves_nothing_owed() {
    let fabric = Fabric::default();
    let node = Node::new(&fabric, 1, ROOMY).await;
    let chunks = chunks(30, 1_000);
    let job = node.replicate.begin(THREE).await;
    for chunk in &chunks {
        job.submit(chunk.clone()).await.expect("there is room");
    }
    eventually("all are kept", || node.store.usage().owed == 30).await;
    drop(job);
    eventually("nothing is owed", || node.store.usage().owed == 0).await;
    // With another add beside it, which may count on them, they stay owed.
    let other = node.replicate.begin(THREE).await;
    let job = node.replicate.begin(THREE).await;
    for chunk in &chunks {
        job.submit(chunk.clone()).await.expect("there is room");
    }
    eventually("all are kept", || node.store.usage().owed == 30).await;
    drop(job);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(node.store.usage().owed, 30);
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn a_store_without_room_fails_the_add_and_says_why() {
    let fabric = Fabric::default();
    let node = Node::new(&fabric, 1, 50_000).await;
    let job = node.replicate.begin(THREE).await;
    let mut failed = None;
    for chunk in chunks(20, 10_000) {
        if let Err(error) = job.submit(chunk).await {
            failed = Some(error);
            break;
        }
    }
    let failed = failed.or(job.finish().await.err());
    assert!(matches!(failed, Some(crate::store::StoreError::NoSpace { .. })), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn to_wait_for_fewer_returns_earlier_and_the_rest_is_still_made() {
    let fabric = Fabric::default();
    let nodes = nodes(&fabric, 1..6).await;
    let chunks = chunks(20, 50_000);
    let report = nodes[0].add(&chunks, Wish { wait: Some(1), ..THREE }).await;
    assert!(report.min >= 1);
    eventually("all copies are made", || chunks.iter().all(|chunk| holders(&nodes, chunk).len() == 3)).await;
    eventually("nothing is owed", || nodes[0].store.usage().owed == 0).await;
}

#[tokio::test(start_paused = true)]
async fn one_copy_here_needs_no_mark() {
    let fabric = Fabric::default();
    let node = Node::new(&fabric, 1, ROOMY).await;
    let report = node.add(&chunks(3, 10), Wish { wanted: 1, ..THREE }).await;
    assert_eq!((report.min, node.store.usage().owed), (1, 0));
}
