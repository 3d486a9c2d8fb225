//! Neighbours compare what they should hold, liars are found out, and a cached copy goes only once it was proved elsewhere:
//! the real services on the simulated network and a paused clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::PeerId;
use p2p_node::{
    net::{
        Network, Stream,
        simulated::{Fabric, Link, Topology, eventually, keypair, truth},
    },
    node::{Rooms, Site},
    service::{catalogue::Draft, ingest::ReadOptions, progress::Progress, replicate::Wish},
    store::Store,
};
use p2p_protocol::{
    Chunk, Cid, Codec, Key, Multihash,
    audit::{Challenge, NONCE_BYTES, PROOF_BYTES},
    catalogue::{Kind, Limits},
    chunker::ChunkerKind,
    duty::{self, Audited},
    manifest::Entry,
    wire::{
        audit::Frame,
        frame::{HEADER_BYTES, Header},
        turns::Turn as _,
        version::{Dialect, Hello, Spoken, Versions},
    },
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

const K: usize = 3;
const NETWORK: &str = "audits";
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// What a node has room for where that does not matter.
const ROOMY: u64 = 64 << 20;
/// Bytes of the file that is added: three hundred chunks of 4 KiB; with its inner node and manifest some 1.26 MB.
const FILE: usize = 1200 << 10;
/// Room for that, of which it takes over nine tenths.
const SMALL: u64 = 1_380_000;

struct Net {
    fabric: Fabric,
    settings: duty::Settings,
    /// Of the catalogues of those that join from now on.
    limits: Limits,
    nodes: BTreeMap<PeerId, Rooms>,
    order: Vec<PeerId>,
}

impl Net {
    fn new(seed: u64, settings: duty::Settings) -> Self {
        let fabric = Fabric::new(seed, Topology::Full, Link::LAN);
        Self { fabric, settings, limits: Limits::default(), nodes: BTreeMap::new(), order: Vec::new() }
    }

    /// One more node; `change`: what becomes of its network's handle.
    async fn join_as(&mut self, capacity: u64, change: impl FnOnce(Network) -> Network) -> PeerId {
        let number = self.order.len() as u64;
        let keypair = keypair(number);
        let peer = keypair.public().to_peer_id();
        let network = change(self.fabric.join(peer));
        let site = Site { replicas: K as u8, duty: self.settings, limits: self.limits, ..Site::new(NETWORK, number) };
        let rooms = Rooms::build(network, Store::in_memory(capacity), keypair, site).await.expect("the rooms stand");
        self.nodes.insert(peer, rooms);
        self.order.push(peer);
        peer
    }

    async fn join(&mut self, count: usize) {
        for _ in 0..count {
            self.join_as(ROOMY, |network| network).await;
        }
    }

    async fn acquainted(&self) {
        let others = self.nodes.len() - 1;
        eventually("the nodes greet each other", 2 * MINUTE, || {
            self.nodes.values().all(|node| node.locate.reachable() >= others)
        })
        .await;
    }

    fn holds(&self, peer: &PeerId, hash: &Multihash) -> bool {
        self.nodes[peer].store.entry(hash).expect("it reads").is_some()
    }

    fn all(&self) -> Vec<PeerId> {
        self.order.clone()
    }

    /// Each chunk is on the k closest of `peers`.
    fn placed(&self, hashes: &[Multihash], peers: &[PeerId]) -> bool {
        hashes.iter().all(|hash| truth(hash, peers, K).iter().all(|peer| self.holds(peer, hash)))
    }

    /// Comparisons, those that found nothing, bytes of all of them, chunks that were read for proofs, and parts of the tables,
    /// over all nodes.
    fn figures(&self) -> [u64; 5] {
        self.nodes.values().map(|node| node.audit.figures()).fold([0; 5], |sum, one| {
            let one = [one.compared, one.equal, one.compared_bytes, one.chunks_read, one.parts_read];
            std::array::from_fn(|at| sum[at] + one[at])
        })
    }
}

/// A file of random bytes, added and published by a node: the chunks of its DAG and of its manifest.
async fn add_file(node: &Rooms, random: &mut StdRng) -> Vec<Multihash> {
    let mut content = vec![0; FILE];
    random.fill(&mut content[..]);
    add(node, content).await;
    node.store.scan(None, 10_000).expect("it reads").iter().map(|entry| entry.cid.hash).collect()
}

/// Adds and publishes this as a file, each of whose chunks has its copies by then.
async fn add(node: &Rooms, content: Vec<u8>) {
    let wish = Wish { wanted: K as u8, wait: None, local: false };
    let options = ReadOptions { chunker: ChunkerKind::Fixed { bytes: 4096 }, ..ReadOptions::default() };
    let progress = tokio::sync::watch::Sender::new(Progress::default());
    let reader = Box::new(std::io::Cursor::new(content));
    let added = node.ingest.add_stream(reader, wish, options, &progress).await.expect("it is added");
    assert_eq!(usize::from(added.report.min), K.min(node.locate.reachable() + 1));
    let draft = Draft {
        name: None,
        label: "a file".to_owned(),
        root: added.root,
        kind: Kind::File,
        size: added.size,
        replicas: K as u8,
        chunks: added.chunks,
        listing: added.listing,
        keep: 10,
    };
    node.catalogue.publish(draft).await.expect("it is published");
}

#[tokio::test(start_paused = true)]
async fn honest_neighbours_are_equal_for_under_200_bytes_and_read_only_what_is_proved() {
    let mut net = Net::new(1, duty::Settings { audit_interval: 10 * MINUTE, ..Default::default() });
    net.join(6).await;
    net.acquainted().await;
    let hashes = add_file(&net.nodes[&net.order[0]], &mut StdRng::seed_from_u64(1)).await;
    assert!(hashes.len() > 300 && net.placed(&hashes, &net.all()));
    // Everybody has read the manifest, and the views agree.
    sleep(HOUR).await;
    let before = net.figures();
    sleep(24 * HOUR).await;
    let [compared, equal, bytes, read, parts] = {
        let after = net.figures();
        std::array::from_fn(|at| after[at] - before[at])
    };
    assert!(compared >= 6 * 5 * 4, "each with each other, every six hours: {compared}");
    assert!(compared <= 6 * 5 * 12, "less often where nothing is found: {compared}");
    assert_eq!(equal, compared);
    assert!(bytes < 200 * compared, "{bytes} bytes for {compared} audits of {} chunks", hashes.len());
    // Eight chunks are proved: read by who proves, and by who asked or another holder.
    assert!(read > compared && read <= 16 * compared, "{read} chunks were read for {compared} audits");
    // A part for each chunk that is picked, and those at the ends of a range: nobody reads the table from end to end, nor
    // the some three hundred parts that have a row.
    assert!(parts <= 60 * compared, "{parts} parts of the tables were read for {compared} audits");
    println!("parts_read_per_audit={}", parts as f64 / compared as f64);
    println!("bytes_per_equal_audit={} chunks_read_per_audit={}", bytes / compared, read as f64 / compared as f64);
}

#[tokio::test(start_paused = true)]
async fn what_a_neighbour_lost_unnoticed_is_found_by_the_others_and_made_again() {
    let mut net = Net::new(2, duty::Settings::default());
    net.join(6).await;
    net.acquainted().await;
    let hashes = add_file(&net.nodes[&net.order[0]], &mut StdRng::seed_from_u64(2)).await;
    sleep(HOUR).await;
    // It looks at everything every six hours itself.
    let victim = net.order[3];
    let lost: Vec<Multihash> = hashes.iter().copied().filter(|hash| net.holds(&victim, hash)).step_by(7).collect();
    assert!(lost.len() > 10);
    net.nodes[&victim].store.remove(lost.clone()).await.expect("they are removed");
    let others =
        |net: &Net, hash: &Multihash| net.all().iter().filter(|peer| **peer != victim && net.holds(peer, hash)).count();
    let copies = |net: &Net| {
        let spared = hashes.iter().filter(|hash| !lost.contains(hash));
        spared.map(|hash| others(net, hash)).collect::<Vec<_>>()
    };
    let before = copies(&net);
    eventually("the next in line has a copy of each", 3 * HOUR, || lost.iter().all(|hash| others(&net, hash) >= K))
        .await;
    assert!(!lost.iter().any(|hash| net.holds(&victim, hash)), "nobody told the victim");
    assert_eq!(copies(&net), before, "it is still counted on for what it has, and was not taken for a liar");
    let lacking = |net: &Net| net.nodes.values().map(|node| node.keep.health().lacking).max();
    assert!(lacking(&net) > Some(10), "it can be seen that copies are missing");
    eventually("it looks at everything", 8 * HOUR, || net.placed(&hashes, &net.all())).await;
    eventually("the next audits find nothing missing", 8 * HOUR, || lacking(&net) == Some(0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cached_copy_is_given_up_only_when_room_is_needed_and_the_k_proved_theirs() {
    let settings = duty::Settings { probation: HOUR, audit_interval: 6 * HOUR, ..Default::default() };
    let mut net = Net::new(3, settings);
    net.join(6).await;
    let small = net.join_as(SMALL, |network| network).await;
    net.acquainted().await;
    let hashes = add_file(&net.nodes[&small], &mut StdRng::seed_from_u64(3)).await;
    let all = net.all();
    let cached: Vec<Multihash> = hashes.iter().copied().filter(|hash| !truth(hash, &all, K).contains(&small)).collect();
    assert!(cached.len() > 50 && cached.iter().all(|hash| net.holds(&small, hash)));
    sleep(50 * MINUTE).await;
    assert!(cached.iter().all(|hash| net.holds(&small, hash)), "the others have not been in view for long enough");
    // One of the k of each of these has lost its copy, and nobody knows.
    let kept: BTreeSet<Multihash> = cached.iter().copied().step_by(5).collect();
    for hash in &kept {
        let holder = *truth(hash, &all, K).first().expect("three");
        net.nodes[&holder].store.remove(vec![*hash]).await.expect("it is removed");
    }
    let gone = |net: &Net| cached.iter().filter(|hash| !net.holds(&small, hash)).count();
    eventually("what was proved goes", HOUR, || gone(&net) == cached.len() - kept.len()).await;
    for _ in 0..60 {
        sleep(MINUTE).await;
        let lost = kept.iter().find(|hash| {
            let missing = !truth(hash, &all, K).iter().all(|peer| net.holds(peer, hash));
            missing && !net.holds(&small, hash)
        });
        assert_eq!(lost, None, "a copy went that one of the k could not prove");
    }
    assert!(hashes.iter().filter(|hash| truth(hash, &all, K).contains(&small)).all(|hash| net.holds(&small, hash)));
}

#[tokio::test(start_paused = true)]
async fn neighbours_compare_though_one_has_no_room_to_list_all_and_others_hold_what_it_does_not_keep() {
    let mut net = Net::new(7, duty::Settings { grace: HOUR, ..Default::default() });
    net.join(5).await;
    net.limits = Limits::of(16);
    net.join(1).await;
    net.acquainted().await;
    let (adder, small) = (&net.nodes[&net.order[0]], net.order[5]);
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..12 {
        let mut content = vec![0; FILE / 20];
        random.fill(&mut content[..]);
        add(adder, content).await;
    }
    let hashes: Vec<Multihash> =
        adder.store.scan(None, 10_000).expect("it reads").iter().map(|entry| entry.cid.hash).collect();
    let (all, others) = (net.all(), net.order[..5].to_vec());
    assert!(net.placed(&hashes, &all));
    let lists = |peer: &PeerId| net.nodes[peer].catalogue.standing();
    eventually("it lists what it has room for", HOUR, || lists(&small).0 == 8 && lists(&others[1]).0 == 12).await;
    // What it does not list it was given all the same, and frees after the grace.
    let share: Vec<Multihash> = hashes.iter().copied().filter(|hash| truth(hash, &all, K).contains(&small)).collect();
    let lost =
        |net: &Net| -> Vec<Multihash> { share.iter().copied().filter(|hash| !net.holds(&small, hash)).collect() };
    eventually("it frees what it does not list", 3 * HOUR, || lost(&net).len() > 20).await;
    let lost = lost(&net);
    assert!(lost.len() < share.len(), "and keeps what it lists");
    let next: Vec<(Multihash, BTreeSet<PeerId>)> = lost.iter().map(|hash| (*hash, truth(hash, &others, K))).collect();
    let made = |net: &Net| next.iter().all(|(hash, peers)| peers.iter().all(|peer| net.holds(peer, hash)));
    eventually("the next in line have a copy of each", 3 * HOUR, || made(&net)).await;
    // All of them compare with it, and it with them.
    let compared = |net: &Net, peer: &PeerId| net.nodes[peer].audit.figures().compared;
    let before: Vec<u64> = all.iter().map(|peer| compared(&net, peer)).collect();
    net.nodes.iter().filter(|(peer, _)| **peer != small).for_each(|(peer, _)| assert!(compared(&net, peer) > 0));
    sleep(7 * HOUR).await;
    let gained: Vec<u64> = all.iter().zip(&before).map(|(peer, before)| compared(&net, peer) - before).collect();
    assert!(gained.iter().all(|gained| *gained >= 5), "each with each other within six hours: {gained:?}");
}

/// What a liar says for proofs: by the nonce, for so many chunks.
type Proofs = dyn Fn([u8; NONCE_BYTES], usize) -> Vec<Option<[u8; PROOF_BYTES]>> + Send + Sync;

/// What a liar says in an audit: that it has all, and something for a proof.
async fn lie(mut stream: Stream, proofs: Arc<Proofs>) -> std::io::Result<()> {
    let mut greeting = Frame::Greeting(Hello { version: 1, features: 0 }).encode(0);
    loop {
        stream.write_all(&greeting).await?;
        stream.flush().await?;
        let (request, frame) = loop {
            let mut header = [0; HEADER_BYTES];
            stream.read_exact(&mut header).await?;
            let header = Header::decode(&header, Frame::limit).expect("honest peers keep to the bounds");
            let mut payload = vec![0; header.length as usize];
            stream.read_exact(&mut payload).await?;
            match Frame::decode(header.kind, payload.into()).expect("honest peers speak well") {
                Frame::Greeting(_) => {}
                frame => break (header.request, frame),
            }
        };
        let answer = match frame {
            // Equal everywhere: a skip of all.
            Frame::Compare { .. } => Frame::Compared { missing: 0, message: Some(vec![0xff, 0].into()) },
            Frame::Prove { nonce, hashes } => Frame::Proofs(proofs(nonce, hashes.len())),
            other => panic!("{other:?} is no question"),
        };
        greeting = answer.encode(request);
    }
}

/// A storing peer that acknowledges what it is given, throws it away, and claims in audits to have it.
async fn join_liar(net: &mut Net) -> PeerId {
    join_liar_that(net, |_, count| vec![Some([7; PROOF_BYTES]); count]).await
}

/// The same with proofs of its own.
async fn join_liar_that(
    net: &mut Net,
    proofs: impl Fn([u8; NONCE_BYTES], usize) -> Vec<Option<[u8; PROOF_BYTES]>> + Send + Sync + 'static,
) -> PeerId {
    let proofs: Arc<Proofs> = Arc::new(proofs);
    let later = Dialect { audit: Versions::up_to(3), ..Dialect::default() };
    // Its own services speak later versions alone, so that others hear the liar below.
    let mut handle = None;
    let peer = net
        .join_as(ROOMY, |network| {
            handle = Some(network.clone());
            network.speaking(later)
        })
        .await;
    let spoken = Spoken::new(NETWORK, "audit", Versions::up_to(1));
    let network = handle.expect("it joined");
    let mut inbound = network.accept_spoken(&spoken, 16).await.expect("nobody else takes it");
    tokio::spawn(async move {
        while let Some((_, _, stream)) = inbound.recv().await {
            // It ends when the other side closes.
            tokio::spawn(lie(stream, proofs.clone()));
        }
    });
    peer
}

/// It throws all away, again and again.
async fn forget(net: &Net, liar: &PeerId) {
    let store = &net.nodes[liar].store;
    let all = store.scan(None, 10_000).expect("it reads").iter().map(|entry| entry.cid.hash).collect();
    store.remove(all).await.expect("they are removed");
}

#[tokio::test(start_paused = true)]
async fn a_liar_is_found_by_an_audit_and_an_honest_node_makes_the_copy_that_it_does_not_count_as() {
    let mut net = Net::new(4, duty::Settings::default());
    net.join(6).await;
    let liar = join_liar(&mut net).await;
    net.acquainted().await;
    let hashes = add_file(&net.nodes[&net.order[0]], &mut StdRng::seed_from_u64(4)).await;
    let all = net.all();
    let honest: Vec<PeerId> = all.iter().copied().filter(|peer| *peer != liar).collect();
    let share = hashes.iter().filter(|hash| truth(hash, &all, K).contains(&liar)).count();
    assert!(share > 30, "it is among the nearest");
    forget(&net, &liar).await;
    assert!(!net.placed(&hashes, &honest));
    for _ in 0..120 {
        sleep(MINUTE).await;
        forget(&net, &liar).await;
        if net.placed(&hashes, &honest) {
            return;
        }
    }
    panic!("some chunk has no copy in the place of the liar's");
}

#[tokio::test(start_paused = true)]
async fn no_honest_copy_goes_by_the_word_of_a_liar_that_no_audit_has_found() {
    let settings = duty::Settings { probation: 10 * MINUTE, audit_interval: 6 * HOUR, ..Default::default() };
    let mut net = Net::new(5, settings);
    net.join(5).await;
    let liar = join_liar(&mut net).await;
    let small = net.join_as(SMALL, |network| network).await;
    net.acquainted().await;
    let hashes = add_file(&net.nodes[&small], &mut StdRng::seed_from_u64(5)).await;
    let all = net.all();
    let cached: Vec<Multihash> = hashes.iter().copied().filter(|hash| !truth(hash, &all, K).contains(&small)).collect();
    let (lied, true_ones): (Vec<Multihash>, Vec<Multihash>) =
        cached.into_iter().partition(|hash| truth(hash, &all, K).contains(&liar));
    assert!(lied.len() > 20 && true_ones.len() > 20);
    for _ in 0..40 {
        forget(&net, &liar).await;
        sleep(MINUTE).await;
        let gone = lied.iter().find(|hash| !net.holds(&small, hash));
        assert_eq!(gone, None, "a copy went that the liar could not prove");
    }
    assert!(true_ones.iter().all(|hash| !net.holds(&small, hash)), "what was proved went");
}

#[tokio::test(start_paused = true)]
async fn what_proved_a_copy_once_proves_nothing_the_next_time() {
    let mut net = Net::new(6, duty::Settings::default());
    net.join(1).await;
    let chunk = Chunk::new(Codec::Raw, b"which it had once".to_vec()).expect("it is short");
    let entry = Entry { cid: *chunk.cid(), length: chunk.len() as u32 };
    let asker = net.order[0];
    net.nodes[&asker].store.put(chunk.clone()).await.expect("there is room");
    // It has the bytes when it is asked first, and only what it said then afterwards: one proof in each answer.
    let first = OnceLock::new();
    let liar = join_liar_that(&mut net, move |nonce, _| {
        vec![Some(*first.get_or_init(|| Challenge { nonce, asker }.proof(chunk.bytes())))]
    })
    .await;
    net.acquainted().await;
    let audit = &net.nodes[&asker].audit;
    assert_eq!(audit.prove(liar, &[entry; 2]).await, Some(vec![true, false]));
    assert_eq!(audit.prove(liar, &[entry]).await, Some(vec![false]));
}

/// Audits fall hours apart: nobody asks but who is told to.
fn seldom() -> duty::Settings {
    duty::Settings { audit_interval: 6 * HOUR, ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn what_was_proved_in_an_audit_proves_nothing_in_the_next() {
    let mut net = Net::new(7, seldom());
    net.join(1).await;
    let (asker, content) = (net.order[0], b"which it had for the first audit".to_vec());
    let (key, bytes, first) = (Key::from(&Cid::of(Codec::Raw, &content).hash), content.clone(), OnceLock::new());
    let liar = join_liar_that(&mut net, move |nonce, count| {
        vec![Some(*first.get_or_init(|| Challenge { nonce, asker }.proof(&bytes))); count]
    })
    .await;
    net.acquainted().await;
    add(&net.nodes[&asker], content).await;
    sleep(2 * MINUTE).await;
    let audit = &net.nodes[&asker].audit;
    assert_eq!(audit.compare(liar).await, Audited::Equal);
    assert_eq!(audit.compare(liar).await, Audited::Lied(vec![key]));
}

#[tokio::test(start_paused = true)]
async fn who_has_no_copy_tells_a_liar_from_an_honest_peer_by_asking_other_holders_one_of_whom_lies() {
    let mut net = Net::new(8, seldom());
    net.join(5).await;
    let liar = join_liar(&mut net).await;
    net.acquainted().await;
    let all = net.all();
    // The liar is the nearest to it, and so the first that is asked about the others.
    let is_nearest = |content: &Vec<u8>| truth(&Cid::of(Codec::Raw, content).hash, &all, 1).contains(&liar);
    let content = (0_u64..).map(|number| number.to_be_bytes().to_vec()).find(is_nearest).expect("one in six");
    let hash = Cid::of(Codec::Raw, &content).hash;
    let place = |at: usize| *truth(&hash, &all, at + 1).difference(&truth(&hash, &all, at)).next().expect("one more");
    let (first, second, next) = (place(1), place(2), place(3));
    add(&net.nodes[&first], content).await;
    sleep(2 * MINUTE).await;
    let remove = async |peer: &PeerId| net.nodes[peer].store.remove(vec![hash]).await.expect("it is removed");
    let audit = &net.nodes[&next].audit;
    assert!(!net.holds(&next, &hash) && [liar, first, second].iter().all(|peer| net.holds(peer, &hash)));
    assert_eq!(audit.compare(first).await, Audited::Equal, "the liar's chunk shows that its proof is the wrong one");
    remove(&liar).await;
    assert_eq!(audit.compare(first).await, Audited::Equal, "it has none to show, and the second proves the same");
    let lied = Audited::Lied(vec![Key::from(&hash)]);
    assert_eq!(audit.compare(liar).await, lied);
    remove(&first).await;
    assert_eq!(audit.compare(liar).await, lied, "the first has none any more, and the second does");
    remove(&second).await;
    assert_eq!(audit.compare(liar).await, Audited::Equal, "nothing follows where nobody is left to ask");
    assert!(!net.holds(&next, &hash), "it asked, and kept nothing");
}
