//! Adds among nodes in memory: who ends up holding what, computed here independently.

use std::{collections::BTreeSet, time::Duration};

use futures::AsyncWriteExt as _;
use p2p_protocol::{
    Codec, Key, Label, Multihash,
    wire::{
        transfer::{Greeting, Message},
        version::Hello,
    },
};

use super::*;
use crate::{
    net::simulated::Fabric,
    service::rig::{ROOMY, Serve as _, eventually, peer},
    store::Put,
};

const GRACE: Duration = Duration::from_secs(3600);
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
        let replicate = Replicate::new(
            store.clone(),
            Wanted::open(store.clone()).expect("it opens"),
            locate.clone(),
            transfer,
            GRACE,
            std::env::temp_dir(),
            &Layer::alone(),
        );
        Self { seed, store, locate, replicate }
    }

    fn holds(&self, chunk: &Chunk) -> bool {
        self.store.entry(&chunk.cid().hash).expect("it reads").is_some()
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

/// Who has a chunk.
fn holders(nodes: &[Node], chunk: &Chunk) -> BTreeSet<u8> {
    nodes.iter().filter(|node| node.holds(chunk)).map(|node| node.seed).collect()
}

/// Those nearest to a chunk, and whoever added it.
fn nearest_and(nodes: &[Node], chunk: &Chunk, k: usize, adder: u8) -> BTreeSet<u8> {
    let mut expected = nearest(nodes, &chunk.cid().hash, k);
    expected.insert(adder);
    expected
}

#[tokio::test(start_paused = true)]
async fn an_add_puts_every_chunk_on_exactly_its_k_closest() {
    let fabric = Fabric::default();
    let nodes = nodes(&fabric, 1..9).await;
    let chunks: Vec<Chunk> = chunks(60, 3_000).into_iter().chain(self::chunks(20, 300_000)).collect();
    let report = nodes[0].add(&chunks, THREE).await;
    assert_eq!(report, Report { min: 3, seen: 8, failures: Vec::new() });
    for chunk in &chunks {
        assert_eq!(holders(&nodes, chunk), nearest_and(&nodes, chunk, 3, 1));
    }
    assert!(
        chunks.iter().any(|chunk| holders(&nodes, chunk).len() == 4),
        "the adder has some that it does not have to"
    );
    assert_eq!(nodes[0].replicate.in_flight(), 0);
    // Again, from another node: nothing moves between the others, the same is true.
    let again = nodes[3].add(&chunks, THREE).await;
    assert_eq!((again.min, again.failures.len()), (3, 0));
    for chunk in &chunks {
        let mut expected = nearest_and(&nodes, chunk, 3, 1);
        expected.insert(4);
        assert_eq!(holders(&nodes, chunk), expected);
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
        let mut expected = nearest_and(&all, chunk, 4, 1);
        if nearest(&all, &chunk.cid().hash, 3).contains(&3) {
            expected.remove(&3);
            displaced += 1;
        } else {
            expected = nearest_and(&all, chunk, 3, 1);
        }
        assert_eq!(holders(&all, chunk), expected);
    }
    assert!(displaced > 5, "{displaced}");
}

#[tokio::test(start_paused = true)]
async fn a_local_add_keeps_what_it_is_given_and_asks_nobody() {
    let fabric = Fabric::default();
    let nodes = nodes(&fabric, 1..6).await;
    let chunks = chunks(20, 2_000);
    let report = nodes[0].add(&chunks, Wish { local: true, ..THREE }).await;
    assert!(report.min <= 1 && report.failures.is_empty(), "{report:?}");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(chunks.iter().all(|chunk| holders(&nodes, chunk) == BTreeSet::from([1])), "nothing is published yet");
    assert!(nodes.iter().all(|node| node.replicate.in_flight() == 0));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_dies_is_reported_and_the_others_have_all() {
    let fabric = Fabric::default();
    let nodes = nodes(&fabric, 1..4).await;
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
}

/// A peer that says that it stores chunks, and nothing from then on.
async fn greets_and_is_silent(fabric: &Fabric, seed: u8) {
    let network = fabric.join(peer(seed));
    let mut inbound =
        network.accept_streams(crate::service::rig::transfer_protocol(), 64).await.expect("the fabric accepts");
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Some((_, mut stream)) = inbound.recv().await {
            let hello = Hello { version: 1, features: 0 };
            let (storing, full, leaving, label) = (true, false, false, Label::new("silent"));
            let greeting = Greeting { hello, storing, full, leaving, capacity_bytes: ROOMY, free_bytes: ROOMY, label };
            let mut out = Vec::new();
            Message::Greeting(greeting).encode(0, &mut out);
            stream.write_all(&out).await.expect("the other side reads");
            open.push(stream);
        }
        drop(network);
    });
}

#[tokio::test(start_paused = true)]
async fn to_wait_for_fewer_does_not_wait_for_who_is_silent() {
    let fabric = Fabric::default();
    let nodes = nodes(&fabric, 1..3).await;
    greets_and_is_silent(&fabric, 9).await;
    eventually("it is known", || nodes[0].locate.reachable() == 2).await;
    let report = nodes[0].add(&chunks(10, 40_000), Wish { wait: Some(2), ..THREE }).await;
    assert_eq!((report.min, report.seen), (2, 3));
    assert!(nodes[0].replicate.in_flight() > 0, "the third copies are still waited for");
    let report = nodes[0].add(&chunks(10, 40_000), THREE).await;
    assert_eq!((report.min, report.failures.len()), (2, 1));
    assert_eq!(report.failures[0].0, peer(9));
}

#[tokio::test(start_paused = true)]
async fn an_add_that_is_given_up_sends_no_more() {
    let fabric = Fabric::default();
    let nodes = nodes(&fabric, 1..4).await;
    let chunks = chunks(60, 200_000);
    let job = nodes[0].replicate.begin(THREE).await;
    for chunk in &chunks {
        job.submit(chunk.clone()).await.expect("there is room");
    }
    eventually("it has begun", || job.copies() > 0).await;
    drop(job);
    eventually("nothing is under way", || nodes[0].replicate.in_flight() == 0).await;
    let there = |node: &Node| node.store.usage().chunks;
    let before: Vec<u64> = nodes.iter().map(there).collect();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(nodes.iter().map(there).collect::<Vec<_>>(), before);
    assert!(before[1] < 60, "it was given up before its end: {before:?}");
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
    eventually("all copies are made", || {
        chunks.iter().all(|chunk| holders(&nodes, chunk) == nearest_and(&nodes, chunk, 3, 1))
    })
    .await;
}
