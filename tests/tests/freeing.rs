//! What may go and what may not: freed only when nobody can list it any more, handed over before its machine goes, and
//! kept where a pin ends: the real services on the simulated network and a paused clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::PeerId;
use p2p_node::{
    net::simulated::{Fabric, Link, Topology, eventually, keypair, truth},
    node::{Rooms, Site},
    service::{
        catalogue::Draft,
        ingest::ReadOptions,
        keep::{Keep, KeepError, collect::Collected, drain::HandedOver},
        progress::Progress,
        replicate::Wish,
    },
    store::Store,
};
use p2p_protocol::{
    Cid, Codec, Multihash,
    catalogue::{Kind, Publication},
    chunker::ChunkerKind,
    duty,
    manifest::Listing,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, time::sleep};

const MINUTE: Duration = Duration::from_secs(60);
/// Short: of twenty nodes an hour takes long, also where nothing happens.
const GRACE: Duration = Duration::from_secs(600);
/// Of simulated time: how long the network may take, not how long the machine does.
const SOON: Duration = Duration::from_secs(120);
/// Bytes of a chunk of what is added.
const CHUNK: usize = 1024;

struct Net {
    fabric: Fabric,
    copies: u8,
    settings: duty::Settings,
    nodes: BTreeMap<PeerId, Rooms>,
    order: Vec<PeerId>,
}

impl Net {
    /// So many nodes on one LAN that met, which keep so many copies.
    async fn of(seed: u64, count: usize, copies: u8, change: impl FnOnce(&mut duty::Settings)) -> Self {
        Self::on(Fabric::new(seed, Topology::Full, Link::LAN), count, copies, change).await
    }

    async fn on(fabric: Fabric, count: usize, copies: u8, change: impl FnOnce(&mut duty::Settings)) -> Self {
        let mut settings = duty::Settings { grace: GRACE, ..Default::default() };
        change(&mut settings);
        let mut net = Self { fabric, copies, settings, nodes: BTreeMap::new(), order: Vec::new() };
        for _ in 0..count {
            net.join().await;
        }
        net.meet().await;
        net
    }

    async fn join(&mut self) {
        self.join_with(64 << 20).await;
    }

    /// One more node, with room for so many bytes.
    async fn join_with(&mut self, capacity: u64) {
        let number = self.order.len() as u64;
        let keypair = keypair(number);
        let peer = keypair.public().to_peer_id();
        let site = Site { replicas: self.copies, duty: self.settings, ..Site::new("freeing", number) };
        let rooms = Rooms::build(self.fabric.join(peer), Store::in_memory(capacity), keypair, site);
        self.nodes.insert(peer, rooms.await.expect("the rooms stand"));
        self.order.push(peer);
    }

    async fn meet(&self) {
        let others = self.nodes.len() - 1;
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

    fn holds(&self, peer: &PeerId, hash: &Multihash) -> bool {
        self.nodes[peer].store.entry(hash).expect("it reads").is_some()
    }

    /// Copies of these on all disks.
    fn held(&self, hashes: &[Multihash]) -> usize {
        hashes.iter().map(|hash| self.nodes.keys().filter(|peer| self.holds(peer, hash)).count()).sum()
    }

    /// Those of these that are not on the nearest of `peers`.
    fn misplaced(&self, hashes: &[Multihash], peers: &[PeerId]) -> usize {
        let placed =
            |hash: &&Multihash| truth(hash, peers, self.copies.into()).iter().all(|peer| self.holds(peer, hash));
        hashes.len() - hashes.iter().filter(placed).count()
    }

    /// A file of so many random chunks, added and published by a node: the publication, and all chunks that it lists.
    async fn add(&self, number: usize, chunks: usize) -> (Publication, Vec<Multihash>) {
        let node = self.node(number);
        let mut content = vec![0; chunks * CHUNK];
        StdRng::seed_from_u64(number as u64).fill(&mut content[..]);
        let before: BTreeSet<Multihash> = all(node).collect();
        let wish = Wish { wanted: self.copies, wait: None, local: false };
        let options = ReadOptions { chunker: ChunkerKind::Fixed { bytes: CHUNK as u32 }, ..ReadOptions::default() };
        let reader = Box::new(std::io::Cursor::new(content));
        let added = node.ingest.add_stream(reader, wish, options, &progress()).await.expect("it is added");
        assert_eq!(added.report.min, self.copies);
        let publication = publish(node, added.root, added.chunks, added.listing, self.copies).await;
        (publication, all(node).filter(|hash| !before.contains(hash)).collect())
    }

    async fn gc(&self, number: usize) -> Collected {
        self.node(number).keep.collect(&progress()).await.expect("there is a table")
    }
}

fn progress() -> watch::Sender<Progress> {
    watch::Sender::new(Progress::default())
}

/// Begins to drain a node, and gives what goes on once over so many chunks are handed over: it does not end by itself.
async fn draining<'a>(
    keep: &'a Keep,
    watched: &'a watch::Sender<Progress>,
    over: u64,
) -> BoxFuture<'a, Result<HandedOver, KeepError>> {
    keep.leave(true).await.expect("it writes");
    let mut draining = keep.hand_over(watched).boxed();
    tokio::select! {
        biased;
        _ = &mut draining => panic!("not all of it can have its copies"),
        () = eventually("some of it is handed over", GRACE, || watched.borrow().chunks > over) => {}
    }
    draining
}

fn all(node: &Rooms) -> impl Iterator<Item = Multihash> + use<> {
    node.store.scan(None, 10_000).expect("it reads").into_iter().map(|entry| entry.cid.hash)
}

async fn publish(node: &Rooms, root: Cid, chunks: u64, listing: Listing, replicas: u8) -> Publication {
    let label = "a file".to_owned();
    let size = chunks * CHUNK as u64;
    let draft = Draft { name: None, label, root, kind: Kind::File, size, replicas, chunks, listing, keep: 10 };
    node.catalogue.publish(draft).await.expect("it is published")
}

#[tokio::test(start_paused = true)]
async fn neither_the_loop_nor_gc_frees_what_a_machine_that_is_away_may_still_list() {
    let mut net = Net::of(1, 4, 3, |_| {}).await;
    let (removed, hashes) = net.add(0, 40).await;
    sleep(MINUTE).await;
    net.kill(3);
    sleep(MINUTE).await;
    net.node(0).catalogue.withdraw(removed.key()).await.expect("it is withdrawn");
    sleep(2 * GRACE).await;
    let held = net.held(&hashes);
    assert!(held >= 3 * hashes.len() - 40, "{held} copies");
    let here = net.node(1).store.usage().chunks;
    assert_eq!(net.gc(1).await, Collected { chunks: 0, bytes: 0, kept: here });
    assert_eq!(net.held(&hashes), held);
    // Seven graces after it was seen it is waited for no more, by whoever asks and by the loop.
    sleep(5 * GRACE).await;
    assert_eq!((net.gc(1).await.kept, net.node(1).store.usage().chunks), (0, 0));
    eventually("it is gone everywhere", 2 * GRACE, || net.held(&hashes) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_comparison_of_catalogues_counts_from_its_beginning_on_both_sides() {
    let latency = Duration::from_secs(1);
    let net = Net::on(Fabric::new(5, Topology::Full, Link { latency, ..Link::LAN }), 2, 2, |_| {}).await;
    sleep(2 * MINUTE).await;
    let (own, other) = (net.node(0), net.node(1));
    let now = || tokio::time::Instant::now().into_std();
    let (mut opened, mut served, asked) = (own.sync.compared(), other.sync.compared(), now());
    own.sync.compare(net.order[1]);
    for told in [&mut opened, &mut served] {
        // One may have been under way.
        let begun = loop {
            let begun = told.recv().await.expect("it is told").begun;
            if begun >= asked {
                break begun;
            }
        };
        // What the other learned while it went on may not have been compared.
        assert!(now() - begun >= 2 * latency, "it took {:?}", now() - begun);
    }
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_cannot_be_read_protects_everything_for_seven_graces() {
    let net = Net::of(2, 4, 3, |_| {}).await;
    let (removed, hashes) = net.add(0, 40).await;
    // What it lists nobody knows: it may be the same.
    let nowhere = |name: &[u8]| Cid::of(Codec::Raw, name);
    let listing = Listing::Manifest(nowhere(b"a manifest that nobody has"));
    let seen = tokio::time::Instant::now();
    publish(net.node(1), nowhere(b"a root that nobody has"), 100, listing, 3).await;
    net.node(0).catalogue.withdraw(removed.key()).await.expect("it is withdrawn");
    sleep(3 * GRACE).await;
    let held = net.held(&hashes);
    assert!(held >= 3 * hashes.len(), "{held} copies");
    let gc = net.gc(2).await;
    assert_eq!((gc.chunks, gc.kept), (0, net.node(2).store.usage().chunks));
    tokio::time::sleep_until(seen + 7 * GRACE - MINUTE).await;
    assert_eq!(net.held(&hashes), held);
    eventually("it is waited for no more", 2 * GRACE, || net.held(&hashes) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_unpinned_far_from_its_place_and_published_still_is_not_freed() {
    // Rows are kept of the thirteen nearest: of some of what this node pins it knew nothing before.
    let grace = Duration::from_secs(180);
    let net = Net::of(3, 17, 1, |settings| settings.grace = grace).await;
    let (publication, hashes) = net.add(0, 60).await;
    sleep(2 * MINUTE).await;
    let node = net.node(7);
    let reference = publication.root.to_string();
    let far = hashes.iter().filter(|hash| !truth(hash, &net.order, 13).contains(&net.order[7])).count();
    assert!(far > 5, "{far} of {}", hashes.len());
    let whole = node.pin.pin(&reference, &progress()).await.expect("it is pinned");
    assert_eq!(whole.chunks as usize, hashes.len());
    sleep(2 * MINUTE).await;
    node.pin.unpin(&reference).await.expect("it was pinned");
    sleep(3 * grace).await;
    assert!(hashes.iter().all(|hash| net.holds(&net.order[7], hash)), "it may be the last copy");
    let gc = net.gc(7).await;
    assert_eq!((gc.chunks, gc.kept), (0, 0));
    // Its rows name what lists them: they go with it.
    net.node(0).catalogue.withdraw(publication.key()).await.expect("it is withdrawn");
    eventually("it is gone everywhere", 3 * grace, || net.held(&hashes) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn who_is_drained_waits_for_each_copy_also_of_what_another_that_leaves_had_taken_over() {
    // A chunk takes a peer a second, so that a share takes a while.
    let net = Net::of(4, 6, 3, |settings| settings.repair_bytes_per_second = CHUNK as u64).await;
    let (_, hashes) = net.add(5, 200).await;
    sleep(2 * MINUTE).await;
    let leaving = net.node(5);
    leaving.keep.leave(true).await.expect("it writes");
    let watched = progress();
    let mut draining = Box::pin(leaving.keep.hand_over(&watched));
    // Most of it is handed over when another one leaves, and much of that to the other.
    let some = |watched: &watch::Sender<Progress>| watched.borrow().chunks as usize > hashes.len() * 3 / 4;
    tokio::select! {
        biased;
        _ = &mut draining => panic!("not all of it can have its copies"),
        () = eventually("most of it is handed over", GRACE, || some(&watched)) => {}
    }
    net.node(4).keep.leave(true).await.expect("it writes");
    let handed = draining.await.expect("there are others");
    let staying = &net.order[..4];
    assert_eq!((net.misplaced(&hashes, staying), handed.chunks as usize), (0, hashes.len()));
    // Neither takes on anything new.
    let before: Vec<u64> = [4, 5].map(|number| net.node(number).store.usage().chunks).into();
    let (_, more) = net.add(0, 60).await;
    sleep(2 * MINUTE).await;
    assert_eq!(net.misplaced(&more, staying), 0);
    let after: Vec<u64> = [4, 5].map(|number| net.node(number).store.usage().chunks).into();
    assert_eq!(after, before);
}

#[tokio::test(start_paused = true)]
async fn who_is_drained_waits_for_the_copies_of_one_that_comes_meanwhile() {
    let mut net = Net::of(6, 5, 3, |settings| settings.repair_bytes_per_second = CHUNK as u64).await;
    let (_, hashes) = net.add(4, 200).await;
    sleep(2 * MINUTE).await;
    let (leaving, watched) = (net.node(4).keep.clone(), progress());
    let draining = draining(&leaving, &watched, hashes.len() as u64 * 3 / 4).await;
    net.join().await;
    let handed = draining.await.expect("there are others");
    let staying = [&net.order[..4], &net.order[5..]].concat();
    let newcomers = hashes.iter().filter(|hash| truth(hash, &staying, 3).contains(&net.order[5])).count();
    assert!(newcomers > hashes.len() / 4, "{newcomers} are the newcomer's");
    assert_eq!((net.misplaced(&hashes, &staying), handed.chunks as usize), (0, hashes.len()));
}

#[tokio::test(start_paused = true)]
async fn who_is_drained_waits_for_no_copy_of_what_is_removed_meanwhile() {
    let net = Net::of(9, 5, 3, |settings| settings.repair_bytes_per_second = CHUNK as u64).await;
    let (removed, hashes) = net.add(4, 200).await;
    sleep(2 * MINUTE).await;
    let keep = &net.node(4).keep;
    let watched = progress();
    let draining = draining(keep, &watched, 0).await;
    net.node(4).catalogue.withdraw(removed.key()).await.expect("it is withdrawn");
    let handed = tokio::time::timeout(SOON, draining).await.expect("it ends").expect("there are others");
    assert!((handed.chunks as usize) < hashes.len(), "{handed:?}");
    assert!(net.misplaced(&hashes, &net.order[..4]) > 0, "nobody fetches it any more");
}

#[tokio::test(start_paused = true)]
async fn who_is_drained_counts_on_the_next_in_the_place_of_one_that_is_full() {
    let mut net = Net::of(10, 5, 3, |_| {}).await;
    net.join_with(30 << 10).await;
    net.meet().await;
    let (_, hashes) = net.add(4, 120).await;
    sleep(2 * MINUTE).await;
    let (full, staying) = (net.order[5], [&net.order[..4], &net.order[5..]].concat());
    let keep = &net.node(4).keep;
    keep.leave(true).await.expect("it writes");
    let watched = progress();
    let draining = tokio::time::timeout(GRACE, keep.hand_over(&watched));
    let handed = draining.await.expect("it ends").expect("there are others");
    assert_eq!(handed.chunks as usize, hashes.len());
    let lacks = |hash: &&Multihash| truth(hash, &staying, 3).contains(&full) && !net.holds(&full, hash);
    assert!(hashes.iter().filter(lacks).count() > 20, "it has no room for all of its share");
    let copies = |hash: &Multihash| staying.iter().filter(|peer| net.holds(peer, hash)).count();
    assert!(hashes.iter().all(|hash| copies(hash) >= 3), "somebody else has each");
}

#[tokio::test(start_paused = true)]
async fn who_is_told_to_stay_waits_for_no_more_copies() {
    let net = Net::of(7, 5, 3, |settings| settings.repair_bytes_per_second = CHUNK as u64).await;
    net.add(4, 200).await;
    sleep(2 * MINUTE).await;
    let keep = &net.node(4).keep;
    let watched = progress();
    let draining = draining(keep, &watched, 0).await;
    keep.leave(false).await.expect("it writes");
    let told = tokio::time::timeout(SOON, draining).await.expect("it ends");
    assert!(matches!(told, Err(KeepError::Stays)), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_added_again_while_its_cached_copies_go_is_with_the_k_when_that_is_said() {
    let chunks = 120;
    // So much room that the file takes over nine tenths of it.
    let alone = Net::of(8, 1, 1, |_| {}).await;
    alone.add(0, chunks).await;
    let capacity = alone.node(0).store.usage().bytes * 100 / 92;
    // An add takes a while, as giving up does.
    let fabric = Fabric::new(8, Topology::Full, Link { latency: Duration::from_secs(1), ..Link::LAN });
    let seldom = |settings: &mut duty::Settings| {
        (settings.probation, settings.audit_interval) = (10 * MINUTE, 360 * MINUTE);
    };
    let mut net = Net::on(fabric, 6, 3, seldom).await;
    net.join_with(capacity).await;
    net.meet().await;
    let (_, hashes) = net.add(6, chunks).await;
    let is_cached = |hash: &&Multihash| !truth(hash, &net.order, 3).contains(&net.order[6]);
    let cached: Vec<Multihash> = hashes.iter().filter(is_cached).copied().collect();
    assert!(cached.len() > 40 && net.held(&cached) == 4 * cached.len());
    sleep(11 * MINUTE).await;
    let mut went = 0;
    for round in 0..12 {
        // One of the k of each of these has lost its copy, and nobody knows.
        for hash in cached.iter().skip(round).step_by(12) {
            let holder = *truth(hash, &net.order, 3).first().expect("three");
            net.nodes[&holder].store.remove(vec![*hash]).await.expect("it is removed");
        }
        net.add(6, chunks).await;
        // What is not here any more went since it was put, a moment ago.
        went += cached.iter().filter(|hash| !net.holds(&net.order[6], hash)).count();
        assert_eq!(net.misplaced(&hashes, &net.order), 0, "in round {round}");
    }
    assert!(went > 0, "no copy went meanwhile");
}
