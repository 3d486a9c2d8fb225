//! Renewals among nodes whose tables say when each chunk was acknowledged last.

use std::time::Duration;

use p2p_protocol::{Codec, duty::Moment};

use super::{
    super::{Replicate, Wish},
    *,
};
use crate::{
    net::simulated::{Fabric, Link, Topology, eventually},
    service::{
        locate::Locate,
        rig::{NETWORK, ROOMY, peer},
        transfer::Transfer,
        wanted::Wanted,
        worker::Layer,
    },
    store::Store,
};

const TWO: Wish = Wish { wanted: 2, wait: None, local: false };
/// Until all have met, however late bytes arrive.
const SOON: Duration = Duration::from_secs(120);

/// The rooms of a node that an add needs.
struct Node {
    store: Store,
    wanted: Wanted,
    locate: Locate,
    replicate: Replicate,
}

impl Node {
    async fn new(fabric: &Fabric, seed: u8, grace: Duration) -> Self {
        let (network, store, alone) = (fabric.join(peer(seed)), Store::in_memory(ROOMY), Layer::alone());
        let wanted = Wanted::open_with(store.clone(), grace).expect("it opens");
        assert!(wanted.make().expect("it is made"));
        let transfer = Transfer::start(network.clone(), store.clone(), wanted.clone(), NETWORK, true, &alone).await;
        let transfer = transfer.expect("the network accepts streams");
        let locate = Locate::start(network, transfer.clone(), true, &alone);
        let scratch = std::env::temp_dir();
        let (kept, found) = (wanted.clone(), locate.clone());
        let replicate = Replicate::new(store.clone(), kept, found, transfer, grace, scratch, &alone);
        Self { store, wanted, locate, replicate }
    }

    /// When a chunk was acknowledged here last.
    fn renewed(&self, chunk: &Chunk) -> Option<Moment> {
        let row = self.wanted.row(&p2p_protocol::Key::from(&chunk.cid().hash)).expect("it reads");
        row.and_then(|row| row.grace_ends(Duration::ZERO))
    }
}

/// Two nodes that both keep all that is added.
async fn pair(latency: Duration, grace: Duration) -> (Fabric, [Node; 2]) {
    let fabric = Fabric::new(1, Topology::Full, Link { latency, ..Link::LAN });
    let nodes = [Node::new(&fabric, 1, grace).await, Node::new(&fabric, 2, grace).await];
    eventually("both have met", SOON, || nodes.iter().all(|node| node.locate.reachable() == 1)).await;
    (fabric, nodes)
}

fn chunks(count: u32) -> Vec<Chunk> {
    let chunk = |number: u32| Chunk::new(Codec::Raw, number.to_be_bytes().repeat(500)).expect("it is short");
    (0..count).map(chunk).collect()
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_is_renewed_when_it_is_a_quarter_of_the_grace_old_and_not_before() {
    let grace = Duration::from_secs(4000);
    let (_fabric, nodes) = pair(Duration::from_millis(1), grace).await;
    let job = nodes[0].replicate.begin(TWO).await;
    let chunks = chunks(20);
    for chunk in &chunks {
        job.submit(chunk.clone()).await.expect("there is room");
    }
    eventually("they have their copies", SOON, || job.copies() == 20).await;
    let began = nodes.each_ref().map(|node| node.wanted.moment().0);
    // Later than what was renewed then: that much is the network's.
    let seconds = 20;
    for step in 1..=40 {
        tokio::time::sleep(Duration::from_secs(200)).await;
        for (node, began) in nodes.iter().zip(began) {
            let ages: BTreeSet<u64> = chunks
                .iter()
                .map(|chunk| node.wanted.moment().0 - node.renewed(chunk).expect("it is kept").0)
                .collect();
            let oldest = *ages.last().expect("twenty");
            assert!(oldest <= 1000 + seconds, "{oldest} s, in step {step}");
            let since = node.wanted.moment().0 - began;
            assert!(since >= 1000 || oldest + seconds >= since, "renewed after {} s", since - oldest);
        }
    }
    assert_eq!(job.finish().await.expect("all is there").min, 2);
}

/// A peer that answers late has renewed long before: what it keeps is as old as the question.
#[tokio::test(start_paused = true)]
async fn what_is_renewed_is_due_again_a_quarter_of_the_grace_after_its_round_began_however_late_it_is_answered() {
    let (latency, grace) = (Duration::from_secs(3), Duration::from_secs(4000));
    let (_fabric, nodes) = pair(latency, grace).await;
    let (job, chunks) = (nodes[0].replicate.begin(TWO).await, chunks(20));
    for chunk in &chunks {
        job.submit(chunk.clone()).await.expect("there is room");
    }
    eventually("they have their copies", SOON, || job.copies() == 20).await;
    let mut seen: BTreeMap<(usize, &Multihash), Vec<u64>> = BTreeMap::new();
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(100)).await;
        for (at, node) in nodes.iter().enumerate() {
            for chunk in &chunks {
                seen.entry((at, &chunk.cid().hash)).or_default().push(node.renewed(chunk).expect("it is kept").0);
            }
        }
    }
    for ((at, _), mut times) in seen {
        times.dedup();
        assert!(times.len() >= 6, "{times:?}");
        // Whole seconds, and less than an answer takes.
        assert!(times.windows(2).all(|two| two[1] - two[0] <= 1002), "at {at}: {times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_add_waits_for_the_round_that_is_under_way_and_fails_where_something_is_gone_everywhere() {
    let grace = Duration::from_secs(4000);
    let (_fabric, nodes) = pair(Duration::from_secs(3), grace).await;
    let (job, began, chunks) = (nodes[0].replicate.begin(TWO).await, Instant::now(), chunks(20));
    for chunk in &chunks {
        job.submit(chunk.clone()).await.expect("there is room");
    }
    eventually("they have their copies", SOON, || job.copies() == 20).await;
    let lost = chunks[7].cid();
    for node in &nodes {
        node.store.remove(vec![lost.hash]).await.expect("it writes");
    }
    // A round begins when it is a quarter of the grace old, and takes six seconds at least.
    sleep_until(began + grace / 4 + Duration::from_secs(1)).await;
    let why = job.finish().await.expect_err("nobody has it").to_string();
    assert!(why.contains(&lost.to_string()), "{why}");
}
