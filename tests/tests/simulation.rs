//! Fifty nodes of the real services in one process, on the simulated network and a paused clock. Every test prints its
//! seed when it fails; `P2P_TEST_SEED` runs another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use libp2p::PeerId;
use p2p_node::{
    net::{
        Network,
        simulated::{Fabric, Link, Topology, eventually, keypair, truth},
    },
    node::{Rooms, Site},
    service::{catalogue::Draft, ingest::ReadOptions, progress::Progress, replicate::Wish},
    store::Store,
};
use p2p_protocol::{
    Chunk, Codec, Multihash,
    catalogue::{Kind, Publication},
    chunker::ChunkerKind,
    duty,
    manifest::{Entry, Listing},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::time::Instant;

const K: u8 = 3;
const MIB: u64 = 1024 * 1024;
/// Of simulated time: these are bounds on how long the network takes, not on how long the machine does.
const SOON: Duration = Duration::from_secs(120);

/// The scenarios, each run under several seeds, one after the other.
macro_rules! under_seeds {
    ($($scenario:ident)+) => {
        mod seeded {
            $(
                #[tokio::test(start_paused = true)]
                async fn $scenario() {
                    for seed in super::seeds() {
                        let _says = super::Says { scenario: stringify!($scenario), seed };
                        super::$scenario(seed).await;
                    }
                }
            )+
        }
    };
}

under_seeds! {
    every_chunk_is_on_exactly_its_k_closest_and_outlives_its_adder
    any_two_machines_may_die
    copies_that_could_not_be_made_are_made_as_peers_join_even_without_the_adder
    what_is_added_locally_is_fetched_by_those_who_should_hold_it
    a_network_too_large_to_be_known_whole_places_by_lookup
    all_catalogues_are_equal_after_quiet_whatever_was_cut
    a_full_peer_is_passed_over_for_the_next_nearest
    what_a_lost_machine_held_is_made_again_by_exactly_one_other_each
    what_is_removed_is_freed_everywhere_once_its_grace_is_over
    an_add_that_outlasts_the_grace_is_whole_and_what_a_dropped_one_left_is_freed
    rooms_end_from_the_top_and_can_be_built_again_on_the_same_network_and_store
    what_is_kept_on_outlives_its_grace_and_what_nobody_has_is_named
}

/// Those of a usual run, or the one that `P2P_TEST_SEED` names.
fn seeds() -> Vec<u64> {
    let named = std::env::var("P2P_TEST_SEED").ok().and_then(|text| text.parse().ok());
    named.map_or_else(|| (20_261_123..20_261_127).collect(), |seed| vec![seed])
}

/// Says how to run a seed again when the test that holds it panics.
struct Says {
    scenario: &'static str,
    seed: u64,
}

impl Drop for Says {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { scenario, seed } = self;
            eprintln!(
                "to run it again: P2P_TEST_SEED={seed} cargo test -p p2p-tests --test simulation -- --exact seeded::{scenario}"
            );
        }
    }
}

struct Simulation {
    fabric: Fabric,
    nodes: BTreeMap<PeerId, Rooms>,
    order: Vec<PeerId>,
    capacity: u64,
    grace: Duration,
}

impl Simulation {
    fn new(seed: u64, topology: Topology, link: Link) -> Self {
        Self {
            fabric: Fabric::new(seed, topology, link),
            nodes: BTreeMap::new(),
            order: Vec::new(),
            capacity: 64 * MIB,
            grace: duty::Settings::default().grace,
        }
    }

    /// The same with a grace of so many hours: a day takes long, also where nothing happens.
    fn with_grace(self, hours: u64) -> Self {
        Self { grace: Duration::from_secs(hours * 3600), ..self }
    }

    async fn join(&mut self, count: usize) {
        for _ in 0..count {
            let keypair = keypair(self.order.len() as u64);
            let peer = keypair.public().to_peer_id();
            let network: Network = self.fabric.join(peer);
            let store = Store::in_memory(self.capacity);
            let rooms = Rooms::build(network, store, keypair, self.site()).await.expect("the rooms stand");
            self.nodes.insert(peer, rooms);
            self.order.push(peer);
        }
    }

    fn site(&self) -> Site<'static> {
        let duty = duty::Settings { grace: self.grace, ..Default::default() };
        Site { replicas: K, duty, ..Site::new("simulation", self.order.len() as u64) }
    }

    /// Waits until every node has been greeted by so many others.
    async fn acquainted(&self, others: usize) {
        eventually("the nodes greet each other", SOON, || {
            self.nodes.values().all(|node| node.locate.reachable() >= others)
        })
        .await;
    }

    fn node(&self, number: usize) -> &Rooms {
        &self.nodes[&self.order[number]]
    }

    fn kill(&mut self, number: usize) {
        let peer = self.order[number];
        self.fabric.kill(peer);
        self.nodes.remove(&peer);
    }

    fn alive(&self) -> Vec<PeerId> {
        self.nodes.keys().copied().collect()
    }

    /// Who has a chunk, read from each node's own store.
    fn having(&self, hash: &Multihash) -> BTreeSet<PeerId> {
        let has = |node: &Rooms| node.store.entry(hash).expect("readable").is_some();
        self.nodes.iter().filter(|(_, node)| has(node)).map(|(peer, _)| *peer).collect()
    }

    /// Chunk bytes that all nodes took so far.
    fn received(&self) -> u64 {
        self.nodes.values().map(|node| node.transfer.transferred().1).sum()
    }
}

fn chunks(random: &mut StdRng, count: usize) -> Vec<Chunk> {
    (0..count)
        .map(|_| {
            let mut bytes = vec![0; random.random_range(1..40_000)];
            random.fill(&mut bytes[..]);
            Chunk::new(Codec::Raw, Bytes::from(bytes)).expect("short enough")
        })
        .collect()
}

fn draft(root: &Chunk, name: &str) -> Draft {
    Draft {
        name: Some(name.to_owned()),
        label: name.to_owned(),
        root: *root.cid(),
        kind: Kind::File,
        size: root.len() as u64,
        replicas: K,
        chunks: 1,
        listing: Listing::Inline(vec![Entry { cid: *root.cid(), length: root.len() as u32 }]),
        keep: 10,
    }
}

/// The k closest to a chunk, and whoever added it.
fn closest_and(hash: &Multihash, everybody: &[PeerId], adder: PeerId) -> BTreeSet<PeerId> {
    let mut expected = truth(hash, everybody, usize::from(K));
    expected.insert(adder);
    expected
}

async fn every_chunk_is_on_exactly_its_k_closest_and_outlives_its_adder(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::LAN);
    net.join(50).await;
    net.acquainted(49).await;
    let everybody = net.alive();

    let added = chunks(&mut random, 200);
    let job = net.node(0).replicate.begin(Wish { wanted: K, wait: None, local: false }).await;
    for chunk in &added {
        job.submit(chunk.clone()).await.expect("kept");
    }
    let report = job.finish().await.expect("finished");
    assert_eq!((report.min, &report.failures), (K, &Vec::new()));
    for chunk in &added {
        assert_eq!(net.having(&chunk.cid().hash), closest_and(&chunk.cid().hash, &everybody, net.order[0]));
    }

    net.kill(0);
    let root = *added[0].cid();
    let reader = net.node(17).fetch.begin(root, Vec::new(), K);
    for chunk in &added {
        let (got, _) = reader.chunk(*chunk.cid()).await.expect("found without its adder");
        assert_eq!(got.bytes(), chunk.bytes());
    }
}

async fn any_two_machines_may_die(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::WAN);
    net.join(12).await;
    net.acquainted(11).await;
    let added = chunks(&mut random, 60);
    let job = net.node(3).replicate.begin(Wish { wanted: K, wait: None, local: false }).await;
    for chunk in &added {
        job.submit(chunk.clone()).await.expect("kept");
    }
    assert_eq!(job.finish().await.expect("finished").min, K);
    net.kill(3);
    let others: Vec<usize> = (0..12).filter(|number| *number != 3).collect();
    let victim = *others.choose(&mut random).expect("eleven");
    net.kill(victim);
    let survivor = *others.iter().find(|number| **number != victim).expect("ten");
    let reader = net.node(survivor).fetch.begin(*added[0].cid(), Vec::new(), K);
    for chunk in &added {
        assert_eq!(reader.chunk(*chunk.cid()).await.expect("one copy of three is left").0.bytes(), chunk.bytes());
    }
}

async fn copies_that_could_not_be_made_are_made_as_peers_join_even_without_the_adder(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::LAN);
    net.join(2).await;
    net.acquainted(1).await;
    let (_, hashes) = add_file(&net, 0, &mut random, 60 * 1024).await;
    assert!(hashes.iter().all(|hash| net.having(hash).len() == 2), "there are two machines");

    net.kill(0);
    net.join(6).await;
    eventually("the k closest have fetched it from the one that lives", SOON * 10, || placed(&net, &hashes)).await;
}

async fn what_is_added_locally_is_fetched_by_those_who_should_hold_it(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::LAN);
    net.join(6).await;
    net.acquainted(5).await;
    let (_, hashes, min) = add(&net, 0, &mut random, 60 * 1024, true).await;
    assert!(min <= 1);
    eventually("the k closest have fetched it", SOON * 10, || placed(&net, &hashes)).await;
    // Each of them once, and nobody else did.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let alive = net.alive();
    for hash in &hashes {
        assert_eq!(net.having(hash), closest_and(hash, &alive, net.order[0]));
    }
}

async fn a_network_too_large_to_be_known_whole_places_by_lookup(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Partial { degree: 8 }, Link::LAN);
    net.join(50).await;
    net.acquainted(1).await;
    let everybody = net.alive();
    let added = chunks(&mut random, 100);
    let job = net.node(20).replicate.begin(Wish { wanted: K, wait: None, local: false }).await;
    for chunk in &added {
        job.submit(chunk.clone()).await.expect("kept");
    }
    assert_eq!(job.finish().await.expect("finished").min, K);
    for chunk in &added {
        assert_eq!(net.having(&chunk.cid().hash), closest_and(&chunk.cid().hash, &everybody, net.order[20]));
    }
    let reader = net.node(41).fetch.begin(*added[0].cid(), Vec::new(), K);
    for chunk in &added {
        assert_eq!(reader.chunk(*chunk.cid()).await.expect("found by lookup").0.bytes(), chunk.bytes());
    }
}

async fn all_catalogues_are_equal_after_quiet_whatever_was_cut(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::WAN);
    net.join(30).await;
    net.acquainted(29).await;

    // Two halves that cannot hear each other, each publishing, some of it under one name.
    let (left, right) = net.order.split_at(15);
    for a in left {
        for b in right {
            net.fabric.sever(*a, *b);
        }
    }
    let mut published = 0;
    for round in 0..4 {
        for root in chunks(&mut random, 5) {
            let number = random.random_range(0..30);
            net.node(number).catalogue.publish(draft(&root, &format!("round-{round}"))).await.expect("published");
            published += 1;
        }
    }
    assert_eq!(published, 20);
    for a in left {
        for b in right {
            net.fabric.connect(*a, *b);
        }
    }
    let equal = || {
        let first = net.node(0).catalogue.standing();
        first.0 > 0 && net.nodes.values().all(|node| node.catalogue.standing() == first)
    };
    eventually("the catalogues become equal", SOON * 5, equal).await;

    // A newcomer has it all soon, and a last publication reaches everybody.
    net.join(1).await;
    let root = chunks(&mut random, 1).remove(0);
    net.node(30).catalogue.publish(draft(&root, "last")).await.expect("published");
    let all_have_it = || net.nodes.values().all(|node| !node.catalogue.by_root(root.cid()).is_empty());
    eventually("everybody hears of the last one", SOON, all_have_it).await;
    let equal = || net.nodes.values().all(|node| node.catalogue.standing() == net.node(0).catalogue.standing());
    eventually("the newcomer has what it missed", SOON, equal).await;
}

async fn a_full_peer_is_passed_over_for_the_next_nearest(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::LAN);
    net.join(5).await;
    net.capacity = 200_000;
    net.join(2).await;
    net.acquainted(6).await;
    let added = chunks(&mut random, 120);
    let job = net.node(0).replicate.begin(Wish { wanted: K, wait: None, local: false }).await;
    for chunk in &added {
        job.submit(chunk.clone()).await.expect("kept");
    }
    let report = job.finish().await.expect("finished");
    assert_eq!(report.min, K, "five roomy peers are enough for three copies: {:?}", report.failures);
    for number in [5, 6] {
        let usage = net.node(number).store.usage();
        assert!(usage.bytes <= usage.capacity_bytes, "{usage:?}");
    }
}

async fn an_add_that_outlasts_the_grace_is_whole_and_what_a_dropped_one_left_is_freed(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::LAN).with_grace(2);
    net.join(7).await;
    net.acquainted(6).await;
    let wish = Wish { wanted: K, wait: None, local: false };
    let (sent, dropped) = (chunks(&mut random, 30), chunks(&mut random, 30));
    let job = net.node(0).replicate.begin(wish).await;
    let other = net.node(1).replicate.begin(wish).await;
    for (one, another) in sent.iter().zip(&dropped) {
        job.submit(one.clone()).await.expect("kept");
        other.submit(another.clone()).await.expect("kept");
    }
    eventually("both have their copies", SOON, || {
        let whole = |chunk: &Chunk| net.having(&chunk.cid().hash).len() >= usize::from(K);
        sent.iter().chain(&dropped).all(whole)
    })
    .await;
    drop(other);
    let minutes = |count: u64| Duration::from_secs(count * 60);
    tokio::time::sleep(minutes(150)).await;
    // Somebody loses what it was given, and so does the adder itself.
    for (number, chunk) in sent.iter().enumerate().take(6) {
        let holders: Vec<PeerId> = net.having(&chunk.cid().hash).into_iter().collect();
        let loser = if number % 2 == 0 { holders[number % holders.len()] } else { net.order[0] };
        net.nodes[&loser].store.remove(vec![chunk.cid().hash]).await.expect("removed");
    }
    tokio::time::sleep(minutes(150)).await;
    let alive = net.alive();
    for chunk in &sent {
        assert!(net.having(&chunk.cid().hash).is_superset(&closest_and(&chunk.cid().hash, &alive, net.order[0])));
    }
    for chunk in &dropped {
        assert_eq!(net.having(&chunk.cid().hash), BTreeSet::new(), "nobody lists it, and nobody renews it");
    }
    // What is gone just before the end is sent again before anything is published.
    tokio::time::sleep(minutes(25)).await;
    let others = |hash: &Multihash| !truth(hash, &alive, usize::from(K)).contains(&net.order[0]);
    let hash = sent.iter().map(|chunk| chunk.cid().hash).find(others).expect("some are not the adder's");
    for peer in truth(&hash, &alive, usize::from(K)) {
        net.nodes[&peer].store.remove(vec![hash]).await.expect("removed");
    }
    tokio::time::sleep(minutes(35)).await;
    let report = job.finish().await.expect("finished");
    assert_eq!(report.min, K, "{report:?}");
    assert!(net.having(&hash).is_superset(&truth(&hash, &alive, usize::from(K))));
}

async fn rooms_end_from_the_top_and_can_be_built_again_on_the_same_network_and_store(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::LAN);
    net.join(5).await;
    net.acquainted(4).await;
    let added = chunks(&mut random, 20);
    for round in 0..3 {
        let rooms = net.node(0).clone();
        let names: Vec<_> = rooms.workers.list().iter().map(|worker| worker.name).collect();
        assert!(names.contains(&"greeting") && names.contains(&"catch-up"), "{names:?}");
        let job = rooms.replicate.begin(Wish { wanted: K, wait: None, local: false }).await;
        for chunk in &added {
            job.submit(chunk.clone()).await.expect("kept");
        }
        assert_eq!(job.finish().await.expect("finished").min, K);
        rooms.catalogue.publish(draft(&added[0], &format!("round {round}"))).await.expect("published");

        let began = Instant::now();
        rooms.stop(Duration::from_secs(2)).await;
        assert!(began.elapsed() < Duration::from_secs(2), "nothing had to be cut off");
        assert!(rooms.workers.list().is_empty());
        let late = rooms.catalogue.publish(draft(&added[1], "late")).await;
        assert!(late.is_err(), "nothing is begun any more");

        let again = Rooms::build(rooms.network.clone(), rooms.store.clone(), keypair(0), net.site());
        net.nodes.insert(net.order[0], again.await.expect("the rooms stand"));
        net.acquainted(4).await;
        eventually("the others have it", SOON, || {
            net.nodes.values().all(|node| !node.catalogue.by_name(&format!("round {round}")).is_empty())
        })
        .await;
    }
}

async fn what_is_kept_on_outlives_its_grace_and_what_nobody_has_is_named(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::LAN).with_grace(2);
    net.join(7).await;
    net.acquainted(6).await;
    let added = chunks(&mut random, 30);
    let job = net.node(0).replicate.begin(Wish { wanted: K, wait: None, local: false }).await;
    for chunk in &added {
        job.submit(chunk.clone()).await.expect("kept");
    }
    assert_eq!(job.finish().await.expect("finished").min, K);
    // Nothing lists them. Shortly before the grace is over they are wanted again, by a node that added none of it.
    let minutes = |count: u64| Duration::from_secs(count * 60);
    tokio::time::sleep(minutes(100)).await;
    let (lost, left) = added.split_first().expect("thirty");
    for peer in net.having(&lost.cid().hash) {
        net.nodes[&peer].store.remove(vec![lost.cid().hash]).await.expect("removed");
    }
    // One of the k closest has lost a copy of another: it is made again.
    let alive = net.alive();
    let loser = *truth(&left[0].cid().hash, &alive, usize::from(K)).first().expect("three");
    net.nodes[&loser].store.remove(vec![left[0].cid().hash]).await.expect("removed");
    let again = net.node(3).replicate.begin_again(K).await;
    let entry = |chunk: &Chunk| Entry { cid: *chunk.cid(), length: chunk.len() as u32 };
    let entries: Vec<Entry> = added.iter().map(entry).collect();
    assert_eq!(again.keep_on(&entries).await.expect("it is kept on"), [entry(lost)]);
    // A long look at the rest renews what was looked at first.
    tokio::time::sleep(minutes(200)).await;
    for chunk in left {
        let hash = &chunk.cid().hash;
        assert_eq!(net.having(hash), truth(hash, &alive, usize::from(K)), "the k closest, and not the adder");
    }
    drop(again);
    tokio::time::sleep(minutes(150)).await;
    assert!(added.iter().all(|chunk| net.having(&chunk.cid().hash).is_empty()), "nobody renews it any more");
}

/// A file of random bytes, added and published by a node: its publication, and the chunks that it lists.
async fn add_file(net: &Simulation, number: usize, random: &mut StdRng, bytes: usize) -> (Publication, Vec<Multihash>) {
    let (publication, hashes, min) = add(net, number, random, bytes, false).await;
    assert_eq!(min, K.min(net.nodes.len() as u8));
    (publication, hashes)
}

/// The same, perhaps kept here alone until it is published; last the copies of the chunk that had the fewest then.
async fn add(
    net: &Simulation,
    number: usize,
    random: &mut StdRng,
    bytes: usize,
    local: bool,
) -> (Publication, Vec<Multihash>, u8) {
    let mut content = vec![0; bytes];
    random.fill(&mut content[..]);
    let node = net.node(number);
    let wish = Wish { wanted: K, wait: None, local };
    let options = ReadOptions { chunker: ChunkerKind::Fixed { bytes: 1024 }, ..ReadOptions::default() };
    let progress = tokio::sync::watch::Sender::new(Progress::default());
    let reader = Box::new(std::io::Cursor::new(content));
    let added = node.ingest.add_stream(reader, wish, options, &progress).await.expect("it is added");
    let draft = Draft {
        name: None,
        label: "a file".to_owned(),
        root: added.root,
        kind: Kind::File,
        size: added.size,
        replicas: K,
        chunks: added.chunks,
        listing: added.listing,
        keep: 10,
    };
    let publication = node.catalogue.publish(draft).await.expect("it is published");
    let hashes = node.store.scan(None, 10_000).expect("it reads").iter().map(|entry| entry.cid.hash).collect();
    (publication, hashes, added.report.min)
}

/// Every one of these chunks is on its k closest.
fn placed(net: &Simulation, hashes: &[Multihash]) -> bool {
    let alive = net.alive();
    hashes.iter().all(|hash| net.having(hash).is_superset(&truth(hash, &alive, usize::from(K))))
}

async fn what_a_lost_machine_held_is_made_again_by_exactly_one_other_each(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::LAN);
    net.join(10).await;
    net.acquainted(9).await;
    let (publication, hashes) = add_file(&net, 0, &mut random, 300 * 1024).await;
    assert!(matches!(publication.listing, Listing::Manifest(_)) && placed(&net, &hashes));
    let copies = |net: &Simulation| hashes.iter().map(|hash| net.having(hash).len()).sum::<usize>();
    let (lost, before) = (net.node(3).store.scan(None, 10_000).expect("it reads").len(), copies(&net));
    // Everybody has read the manifest by then.
    tokio::time::sleep(Duration::from_secs(120)).await;
    net.kill(3);
    let received = net.received();
    // Within the delay nothing moves.
    tokio::time::sleep(Duration::from_secs(10 * 60)).await;
    assert_eq!(net.received(), received, "a peer that may come back");
    eventually("every chunk has its copies again", Duration::from_secs(1200), || placed(&net, &hashes)).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(placed(&net, &hashes));
    // What the adder had already, as a copy of its own, was not copied.
    let made = copies(&net) + lost - before;
    assert!(made <= lost && made > lost / 2, "{made} copies were made for {lost}");
}

async fn what_is_removed_is_freed_everywhere_once_its_grace_is_over(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut net = Simulation::new(seed, Topology::Full, Link::LAN).with_grace(2);
    net.join(6).await;
    net.acquainted(5).await;
    let (kept, kept_hashes) = add_file(&net, 1, &mut random, 20 * 1024).await;
    let (removed, _) = add_file(&net, 2, &mut random, 300 * 1024).await;
    net.node(2).catalogue.withdraw(removed.key()).await.expect("it is withdrawn");
    tokio::time::sleep(Duration::from_secs(110 * 60)).await;
    let held = |net: &Simulation| net.nodes.values().map(|node| node.store.usage().chunks).sum::<u64>();
    assert!(held(&net) > 3 * 300, "the grace runs");
    let all: BTreeSet<Multihash> = kept_hashes.iter().copied().collect();
    let only = |node: &Rooms| {
        node.store.scan(None, 10_000).expect("it reads").iter().all(|entry| all.contains(&entry.cid.hash))
    };
    eventually("what was removed is gone from every disk", Duration::from_secs(600 + 120), || {
        net.nodes.values().all(only)
    })
    .await;
    assert!(placed(&net, &kept_hashes), "{} stays", kept.root);
}
