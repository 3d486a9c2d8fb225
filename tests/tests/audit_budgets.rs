//! What one peer, and all of them together, can have a node compute, read and hold open by asking in the audit protocol,
//! and what a node bears of whom it asks itself: one side is written by hand, the other one is the real service, on the
//! simulated network and a paused clock. Each bound is shown by itself, and that there is no less than it says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use libp2p::PeerId;
use p2p_node::{
    net::{
        Network, Stream,
        simulated::{Fabric, Link, Topology, eventually, keypair},
    },
    node::{Rooms, Site},
    service::catalogue::Draft,
    store::Store,
};
use p2p_protocol::{
    Chunk, Cid, Codec, Multihash,
    audit::Challenge,
    catalogue::Kind,
    duty::Audited,
    manifest::{Entry, Listing},
    reconcile::Fingerprint,
    wire::{
        audit::{Frame, MAX_PROVED},
        version::{Hello, Spoken, Versions},
    },
};
use p2p_tests::turns::{hear, say};
use tokio::time::{Instant, sleep, timeout};

const NETWORK: &str = "audits";
const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// How long a greedy peer goes on.
const GREED: Duration = Duration::from_secs(10);

/// One honest node, and peers that are handles of the network and nothing else.
struct World {
    fabric: Fabric,
    node: Rooms,
    peers: u64,
}

impl World {
    async fn new() -> Self {
        let fabric = Fabric::new(1, Topology::Full, Link::LAN);
        let keypair = keypair(0);
        let network = fabric.join(keypair.public().to_peer_id());
        let site = Site::new(NETWORK, 0);
        let node = Rooms::build(network, Store::in_memory(1 << 30), keypair, site).await.expect("the rooms stand");
        eventually("it knows who is in view", 5 * MINUTE, || node.audit.standing().is_some()).await;
        Self { fabric, node, peers: 0 }
    }

    fn local(&self) -> PeerId {
        self.node.network.local()
    }

    fn peer(&mut self) -> (PeerId, Network) {
        self.peers += 1;
        let peer = keypair(self.peers).public().to_peer_id();
        (peer, self.fabric.join(peer))
    }

    /// Whether the node refuses a peer.
    fn refuses(&self, peer: PeerId) -> bool {
        self.fabric.bans().iter().any(|ban| ban.by == self.local() && ban.peer == peer)
    }
}

fn spoken() -> Spoken {
    Spoken::new(NETWORK, "audit", Versions::up_to(1))
}

fn greeting() -> Frame {
    Frame::Greeting(Hello { version: 1, features: 0 })
}

/// The asking side of a session.
struct Session(Stream);

impl Session {
    /// `None` where the other side ends it before its greeting.
    async fn open(network: &Network, peer: PeerId) -> Option<Self> {
        let (_, mut stream) = network.open_spoken(peer, &spoken()).await.ok()?;
        say(&mut stream, 0, &greeting()).await.ok()?;
        let (_, frame) = hear(&mut stream).await.ok()?;
        assert!(matches!(frame, Frame::Greeting(_)), "{frame:?}");
        Some(Self(stream))
    }

    /// The answer; `None` where the other side ended the session.
    async fn ask(&mut self, frame: &Frame) -> Option<Frame> {
        say(&mut self.0, 1, frame).await.ok()?;
        hear(&mut self.0).await.ok().map(|(_, frame)| frame)
    }
}

/// A question about a catalogue that nobody has.
fn comparison() -> Frame {
    let print = Fingerprint([7; 16]);
    Frame::Compare { catalogue: print, range: print, message: Bytes::from_static(&[0xff, 0]) }
}

/// As much as one question may ask for, of one chunk.
fn proof_of(hash: Multihash) -> Frame {
    Frame::Prove { nonce: [1; 32], hashes: vec![hash; MAX_PROVED] }
}

/// What a greedy peer got: answers, proofs in them, and the most proofs in one.
#[derive(Clone, Copy, Default, Debug)]
struct Got {
    answers: u64,
    proofs: u64,
    most: usize,
}

/// Asks the same all the time, in one session after the other.
async fn greedy(network: &Network, peer: PeerId, question: &Frame, time: Duration) -> (Got, Duration) {
    let (began, mut got, mut session) = (Instant::now(), Got::default(), None);
    while began.elapsed() < time {
        let Some(open) = &mut session else {
            session = Session::open(network, peer).await;
            continue;
        };
        match open.ask(question).await {
            Some(Frame::Proofs(proofs)) => {
                got.answers += 1;
                got.proofs += proofs.iter().flatten().count() as u64;
                got.most = got.most.max(proofs.len());
            }
            Some(_) => got.answers += 1,
            None => session = None,
        }
    }
    (got, began.elapsed())
}

async fn chunk_of_a_mebibyte(node: &Rooms) -> Multihash {
    let chunk = Chunk::new(Codec::Raw, vec![5; MIB as usize]).expect("it is short enough");
    let hash = chunk.cid().hash;
    node.store.put(chunk).await.expect("there is room");
    hash
}

#[tokio::test(start_paused = true)]
async fn comparisons_for_one_peer_take_a_tenth_of_a_processor_and_a_session_of_2048_frames() {
    let mut world = World::new().await;
    let (_, network) = world.peer();
    let mut session = Session::open(&network, world.local()).await.expect("it is greeted");
    let mut answers = 0;
    while session.ask(&comparison()).await.is_some() {
        answers += 1;
    }
    assert_eq!(answers, 2048);
    // Another peer has a budget of its own: two seconds of thinking, each answer a millisecond at least, and a tenth of
    // the time that passes.
    let (_, network) = world.peer();
    let (got, took) = greedy(&network, world.local(), &comparison(), GREED).await;
    let most = 2000 + took.as_millis() as u64 / 10;
    assert!((2000..=most + 1).contains(&got.answers), "{got:?} in {took:?}");
}

#[tokio::test(start_paused = true)]
async fn proofs_for_one_peer_read_no_more_than_its_share_and_one_answer_no_more_than_it_may() {
    let mut world = World::new().await;
    let hash = chunk_of_a_mebibyte(&world.node).await;
    let (_, network) = world.peer();
    let (got, took) = greedy(&network, world.local(), &proof_of(hash), GREED).await;
    assert_eq!(got.most, 8, "an answer of eight MiB: {got:?}");
    let most = 16 + (8.0 * took.as_secs_f64()).ceil() as u64;
    assert!((16..=most).contains(&got.proofs), "{got:?} in {took:?}");
    // What is not here costs a look.
    let nowhere = Cid::of(Codec::Raw, b"nobody has it").hash;
    let (_, network) = world.peer();
    let (got, took) = greedy(&network, world.local(), &proof_of(nowhere), GREED).await;
    assert_eq!((got.proofs, got.most), (0, MAX_PROVED));
    let most = (16.0 + 8.0 * took.as_secs_f64()).ceil() as u64 / (4096 * MAX_PROVED as u64 / MIB);
    assert!((4..=most).contains(&got.answers), "{got:?} in {took:?}");
}

#[tokio::test(start_paused = true)]
async fn proofs_for_all_peers_together_leave_the_disk_to_others() {
    let mut world = World::new().await;
    let hash = chunk_of_a_mebibyte(&world.node).await;
    let networks: Vec<Network> = (0..7).map(|_| world.peer().1).collect();
    let (question, local) = (proof_of(hash), world.local());
    let began = Instant::now();
    let all = join_all(networks.iter().map(|network| greedy(network, local, &question, GREED))).await;
    let (proofs, took) = (all.iter().map(|(got, _)| got.proofs).sum::<u64>(), began.elapsed());
    let most = 64 + (32.0 * took.as_secs_f64()).ceil() as u64;
    assert!((64..=most).contains(&proofs), "{proofs} in {took:?}");
    assert!(all.iter().all(|(got, _)| got.proofs > 0), "nobody is left out: {all:?}");
}

#[tokio::test(start_paused = true)]
async fn sessions_are_two_for_a_peer_and_sixteen_in_all_and_who_says_nothing_is_let_go() {
    let mut world = World::new().await;
    let (local, (_, first)) = (world.local(), world.peer());
    let open = [Session::open(&first, local).await, Session::open(&first, local).await];
    assert!(open.iter().all(Option::is_some));
    assert!(Session::open(&first, local).await.is_none(), "a third session of one peer");
    // Each of these greets and says no more; twenty greet not even.
    let (greeted, opened) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    for _ in 0..40 {
        let ((_, network), greeted, opened) = (world.peer(), greeted.clone(), opened.clone());
        tokio::spawn(async move {
            let (_, mut stream) = network.open_spoken(local, &spoken()).await.expect("it waits for its turn");
            opened.fetch_add(1, Ordering::Relaxed);
            if hear::<Frame>(&mut stream).await.is_ok() {
                let turn = greeted.fetch_add(1, Ordering::Relaxed);
                if turn % 2 == 0 {
                    say(&mut stream, 0, &greeting()).await.expect("it is heard");
                }
                assert!(hear::<Frame>(&mut stream).await.is_err(), "it was not asked anything");
            }
        });
    }
    sleep(10 * SECOND).await;
    assert_eq!(count(&greeted), 14, "sixteen sessions");
    assert!(count(&opened) <= 16 + 16, "sixteen more wait at the most: {}", count(&opened));
    drop(open);
    sleep(SECOND).await;
    assert_eq!(count(&greeted), 16, "the next two");
    sleep(3 * MINUTE).await;
    assert_eq!(count(&greeted), 40, "whoever said nothing made room");
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_after_five_minutes_however_slowly_it_goes_on() {
    let mut world = World::new().await;
    let (local, (_, network)) = (world.local(), world.peer());
    let mut session = Session::open(&network, local).await.expect("it is greeted");
    let began = Instant::now();
    while session.ask(&comparison()).await.is_some() {
        sleep(35 * SECOND).await;
        assert!(began.elapsed() < 6 * MINUTE, "it goes on");
    }
    assert!(began.elapsed() >= 5 * MINUTE, "after {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_answers_without_being_asked_is_refused() {
    let mut world = World::new().await;
    let (local, (peer, network)) = (world.local(), world.peer());
    let mut session = Session::open(&network, local).await.expect("it is greeted");
    assert_eq!(session.ask(&Frame::Proofs(vec![None])).await, None);
    eventually("it is refused", MINUTE, || world.refuses(peer)).await;
}

/// A peer that takes sessions of audits; `answer`: after how long, and what. `None`: it says nothing. Counts sessions.
async fn answering(
    network: &Network,
    answer: impl Fn(Frame) -> Option<(Duration, Frame)> + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let (sessions, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
    let mut inbound = network.accept_spoken(&spoken(), 16).await.expect("nobody else takes it");
    let counted = sessions.clone();
    tokio::spawn(async move {
        while let Some((_, _, mut stream)) = inbound.recv().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut greeted = false;
                // It ends when the other side closes.
                while let Ok((request, frame)) = hear(&mut stream).await {
                    if matches!(frame, Frame::Greeting(_)) {
                        continue;
                    }
                    let Some((after, frame)) = answer(frame) else { continue };
                    sleep(after).await;
                    let begun = if greeted { Ok(()) } else { say(&mut stream, 0, &greeting()).await };
                    greeted = true;
                    if begun.is_err() || say(&mut stream, request, &frame).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    sessions
}

type Proof = Option<[u8; 16]>;

/// Says that it has all of what is compared; `prove`: the proofs that it then gives, each answer `after` a while.
fn claiming(
    after: Duration,
    prove: impl Fn([u8; 32], &[Multihash]) -> Vec<Proof>,
) -> impl Fn(Frame) -> Option<(Duration, Frame)> {
    move |frame| match frame {
        Frame::Compare { .. } => Some((Duration::ZERO, equal())),
        Frame::Prove { nonce, hashes } => Some((after, Frame::Proofs(prove(nonce, &hashes)))),
        other => panic!("{other:?} is no question"),
    }
}

/// Equal everywhere: a skip of all.
fn equal() -> Frame {
    Frame::Compared { missing: 0, message: Some(vec![0xff, 0].into()) }
}

/// Eight chunks.
fn content() -> BTreeMap<Multihash, Vec<u8>> {
    let bytes = (0..8_u8).map(|number| vec![number; 100]);
    bytes.map(|bytes| (Cid::of(Codec::Raw, &bytes).hash, bytes)).collect()
}

/// They are at the node, and a publication of its own lists them.
async fn listed(node: &Rooms) -> Vec<Entry> {
    let mut entries = Vec::new();
    for bytes in content().into_values() {
        let chunk = Chunk::new(Codec::Raw, bytes).expect("it is short enough");
        entries.push(Entry { cid: *chunk.cid(), length: 100 });
        node.store.put(chunk).await.expect("there is room");
    }
    entries.sort_by_key(Entry::key);
    let draft = Draft {
        name: None,
        label: "eight".to_owned(),
        root: entries[0].cid,
        kind: Kind::File,
        size: 800,
        replicas: 3,
        chunks: 8,
        listing: Listing::Inline(entries.clone()),
        keep: 10,
    };
    node.catalogue.publish(draft).await.expect("it is published");
    // It is listed by then.
    sleep(2 * MINUTE).await;
    entries
}

#[tokio::test(start_paused = true)]
async fn a_node_asks_four_at_once_and_waits_for_nobody_for_ever() {
    let mut world = World::new().await;
    let mut sessions = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..8 {
        let (peer, network) = world.peer();
        sessions.push(answering(&network, |_| None).await);
        peers.push((peer, network));
    }
    let asked = || sessions.iter().map(|one| one.load(Ordering::Relaxed)).sum::<usize>();
    let all = join_all(peers.iter().map(|(peer, _)| world.node.audit.compare(*peer)));
    let watched = async {
        sleep(10 * SECOND).await;
        let first = asked();
        sleep(MINUTE).await;
        (first, asked())
    };
    let (outcomes, seen) = timeout(5 * MINUTE, async { tokio::join!(all, watched) }).await.expect("they end");
    assert_eq!(seen, (4, 8));
    assert!(outcomes.iter().all(|outcome| *outcome == Audited::Failed), "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_to_whom_no_stream_opens_is_given_up_after_fifteen_seconds() {
    let mut world = World::new().await;
    let entries = listed(&world.node).await;
    let ((peer, network), (_, other)) = (world.peer(), world.peer());
    // One stream may wait for it, and does.
    let _never_taken = network.accept_spoken(&spoken(), 1).await.expect("nobody else takes it");
    let _waiting = other.open_spoken(peer, &spoken()).await.expect("the first one opens");
    for proves in [false, true] {
        let began = Instant::now();
        if proves {
            assert_eq!(world.node.audit.prove(peer, &entries).await, None);
        } else {
            assert_eq!(world.node.audit.compare(peer).await, Audited::Failed);
        }
        assert!((14 * SECOND..=16 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_proves_one_chunk_in_half_a_minute_is_given_up() {
    let mut world = World::new().await;
    let entries = listed(&world.node).await;
    let (peer, network) = world.peer();
    answering(&network, claiming(30 * SECOND, |_, _| vec![None])).await;
    let began = Instant::now();
    assert_eq!(world.node.audit.compare(peer).await, Audited::Failed);
    assert!(began.elapsed() <= 101 * SECOND, "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(world.node.audit.prove(peer, &entries).await, None);
    assert!(began.elapsed() <= 101 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_proves_more_than_was_asked_for_is_refused() {
    let mut world = World::new().await;
    let entries = listed(&world.node).await;
    let (peer, network) = world.peer();
    answering(&network, claiming(Duration::ZERO, |_, asked| vec![Some([1; 16]); asked.len() + 1])).await;
    assert_eq!(world.node.audit.prove(peer, &entries).await, None);
    eventually("it is refused", MINUTE, || world.refuses(peer)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_claimed_a_moment_ago_and_is_not_here_is_a_lie_only_if_it_is_over_half_of_what_was_asked() {
    let mut world = World::new().await;
    let (entries, local) = (listed(&world.node).await, world.local());
    for (lost, lies) in [(8, true), (2, false)] {
        let gone: Vec<Multihash> = entries[..lost].iter().map(|entry| entry.cid.hash).collect();
        let (store, compared) = (content(), AtomicUsize::new(0));
        let prove = move |nonce, hashes: &[Multihash]| -> Vec<Proof> {
            let challenge = Challenge { nonce, asker: local };
            let proof = |hash: &Multihash| (!gone.contains(hash)).then(|| challenge.proof(&store[hash]));
            hashes.iter().map(proof).collect()
        };
        // When it is asked again, its catalogue is another one: what it has not may have been freed by right.
        let answer = move |frame: Frame| match frame {
            Frame::Compare { .. } if compared.fetch_add(1, Ordering::Relaxed) > 0 => {
                Some((Duration::ZERO, Frame::Compared { missing: 0, message: None }))
            }
            frame => claiming(Duration::ZERO, &prove)(frame),
        };
        let (peer, network) = world.peer();
        answering(&network, answer).await;
        let outcome = world.node.audit.compare(peer).await;
        assert_eq!(matches!(outcome, Audited::Lied(_)), lies, "{lost} of eight: {outcome:?}");
    }
}
