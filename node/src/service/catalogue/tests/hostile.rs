//! Peers that break the rules of catch-up, and what they get for it.

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use p2p_protocol::{
    reconcile::{IdSet, Initiator, ReconcileLimits, respond},
    wire::{frame::HEADER_BYTES, sync::Frame, turns::Turn as _, version::Hello},
};

use super::*;

/// A peer that is no node: its streams are the test's.
struct Stranger {
    peer: PeerId,
    network: Network,
    inbound: mpsc::Receiver<Inbound>,
}

async fn stranger(hub: &Fabric, seed: u8) -> Stranger {
    stranger_with(hub, seed, 4).await
}

/// So many streams wait for it, and no more open.
async fn stranger_with(hub: &Fabric, seed: u8, waiting: usize) -> Stranger {
    let peer = keypair(seed).public().to_peer_id();
    let network = hub.join(peer);
    let inbound = network.accept_streams(TOPIC, waiting).await.expect("the hub takes it");
    Stranger { peer, network, inbound }
}

fn hello() -> Vec<u8> {
    Frame::Greeting(Hello { version: 1, features: 0 }).encode(0)
}

/// Opens a session and says `frames`, with the ids 1, 2, …
async fn say(stranger: &Stranger, to: &Node, frames: &[Frame]) -> Stream {
    let mut stream = stranger.network.open_stream(to.peer, TOPIC).await.expect("it opens");
    let said: Vec<u8> = (1..).zip(frames).flat_map(|(request, frame)| frame.encode(request)).collect();
    // Perhaps there is no room for it.
    let _ = stream.write_all(&[hello(), said].concat()).await;
    stream
}

/// The next frame that is said: its kind, request and payload.
pub(super) async fn hear(stream: &mut Stream) -> (u8, u32, Vec<u8>) {
    let mut header = [0; HEADER_BYTES];
    timeout(LONG, stream.read_exact(&mut header)).await.expect("it answers").expect("all of it");
    let [kind, a, b, c, d, e, f, g, h] = header;
    let mut payload = vec![0; u32::from_be_bytes([e, f, g, h]) as usize];
    stream.read_exact(&mut payload).await.expect("all of it");
    (kind, u32::from_be_bytes([a, b, c, d]), payload)
}

/// The next session in which catalogues are compared, greeted, and its first frame. What it asks besides, in sessions of
/// their own that may come first, is not understood.
pub(super) async fn compared(inbound: &mut mpsc::Receiver<Inbound>) -> (Stream, (u8, u32, Vec<u8>)) {
    loop {
        let (_, mut stream) = timeout(LONG, inbound.recv()).await.expect("it asks").expect("it is there");
        stream.write_all(&hello()).await.expect("it is sent");
        assert_eq!(hear(&mut stream).await.0, 1);
        let first = hear(&mut stream).await;
        if first.0 == 0x10 {
            return (stream, first);
        }
        stream.write_all(&Frame::Unsupported.encode(first.1)).await.expect("it is sent");
    }
}

/// The greeting, then the answer to request 1.
async fn answer(stream: &mut Stream) -> (u8, Vec<u8>) {
    assert_eq!(hear(stream).await, (1, 0, vec![1, 0, 0, 0, 0, 0, 0, 0, 0]));
    let (kind, request, payload) = hear(stream).await;
    assert_eq!(request, 1);
    (kind, payload)
}

async fn is_banned(hub: &Fabric, by: &Node, peer: PeerId) {
    eventually("a ban", || hub.bans().iter().any(|ban| (ban.by, ban.peer) == (by.peer, peer))).await;
}

#[tokio::test]
async fn whoever_asks_with_hostile_bytes_is_banned() {
    let invalid = signed(3, "other", publication(3, "x", 1));
    let mut tampered = signed(3, NETWORK, publication(3, "x", 1)).bytes().to_vec();
    tampered[100] ^= 1;
    // Another's name on what one signed oneself.
    let mut mismatch = signed(3, NETWORK, publication(3, "x", 1)).bytes().to_vec();
    mismatch[4..42].copy_from_slice(&keypair(4).public().to_peer_id().to_bytes());
    let push = |bytes: &[u8]| Frame::Push(vec![Bytes::copy_from_slice(bytes)]).encode(1);
    let cases = [
        vec![9, 0, 0, 0, 1, 0, 1, 0, 1],
        vec![0x10, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
        vec![0x20, 0, 0, 0, 1, 0, 0, 0, 1, 0],
        hello(),
        Frame::Reconcile(Bytes::from_static(&[0xff, 7])).encode(1),
        Frame::Taken(1).encode(1),
        Frame::Difference(Bytes::new()).encode(1),
        push(invalid.bytes()),
        push(&tampered),
        push(&mismatch),
        push(&[2, 0, 9]),
    ];
    for bytes in cases {
        let hub = Fabric::sparse();
        let (a, stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
        hub.connect(a.peer, stranger.peer);
        let mut stream = stranger.network.open_stream(a.peer, TOPIC).await.expect("it opens");
        // Perhaps it is refused before it is sent to its end.
        let _ = stream.write_all(&[hello(), bytes].concat()).await;
        is_banned(&hub, &a, stranger.peer).await;
        assert_eq!(a.catalogue.ledger.map().len(), 0);
    }
}

#[tokio::test]
async fn whoever_answers_with_hostile_bytes_is_banned() {
    let listing = {
        // What an honest peer with one entry answers to an empty set, the entry never to be had.
        let set = [[5; 32]].into_iter().collect::<IdSet>();
        let empty = IdSet::default();
        let asked = Initiator::new(ReconcileLimits::default()).initiate(&empty);
        respond(&set, &asked, 4096).expect("an honest message")
    };
    let listing = Frame::Difference(listing.into()).encode(1);
    let unwanted = signed(3, NETWORK, publication(3, "x", 1));
    let entries = vec![Bytes::copy_from_slice(unwanted.bytes())];
    let cases = [
        vec![vec![0x11, 0, 0, 0, 1, 0, 0, 0, 0]],
        vec![vec![0x11, 0, 0, 0, 1, 0, 1, 0, 1]],
        // The answer to what was not asked.
        vec![Frame::Difference(Bytes::new()).encode(7)],
        vec![Frame::Taken(0).encode(1)],
        vec![listing.clone(), Frame::Entries { answered: 0, entries: vec![] }.encode(2)],
        vec![listing.clone(), Frame::Entries { answered: 2, entries: vec![] }.encode(2)],
        vec![listing, Frame::Entries { answered: 1, entries }.encode(2)],
    ];
    for answers in cases {
        let hub = Fabric::sparse();
        let (a, mut stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
        hub.connect(a.peer, stranger.peer);
        let (mut stream, _) = compared(&mut stranger.inbound).await;
        let mut answers = answers.into_iter();
        stream.write_all(&answers.next().expect("there is one")).await.expect("it is sent");
        for answer in answers {
            hear(&mut stream).await;
            stream.write_all(&answer).await.expect("it is sent");
        }
        is_banned(&hub, &a, stranger.peer).await;
        assert_eq!(a.catalogue.ledger.map().len(), 0);
    }
}

#[tokio::test]
async fn a_broken_stream_is_nobodys_fault_and_tried_again() {
    let hub = Fabric::sparse();
    let (a, mut stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
    hub.connect(a.peer, stranger.peer);
    for _ in 0..2 {
        let (_, mut stream) = timeout(LONG, stranger.inbound.recv()).await.expect("it asks").expect("it is there");
        stream.write_all(&[0x11, 0, 0]).await.expect("it is sent");
        drop(stream);
    }
    assert!(hub.bans().is_empty());
}

#[tokio::test(start_paused = true)]
async fn peers_to_whom_no_stream_opens_do_not_keep_a_node_from_catching_up_with_another() {
    let hub = Fabric::sparse();
    let (a, filler, mut good) = (node(&hub, 1).await, stranger(&hub, 8).await, stranger(&hub, 9).await);
    // As many as it catches up with at once.
    let mut stuck = Vec::new();
    for seed in 10..14 {
        let stranger = stranger_with(&hub, seed, 1).await;
        stuck.push((filler.network.open_stream(stranger.peer, TOPIC).await.expect("the first one opens"), stranger));
    }
    stuck.iter().for_each(|(_, stranger)| hub.connect(a.peer, stranger.peer));
    // Whoever of a pair goes first, it has asked all of them by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    hub.connect(a.peer, good.peer);
    compared(&mut good.inbound).await;
}

#[tokio::test]
async fn a_replayed_older_version_is_ignored() {
    let hub = Fabric::sparse();
    let (a, stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
    hub.connect(a.peer, stranger.peer);
    a.catalogue.ledger.take(signed(3, NETWORK, publication(3, "x", 2))).await;
    let old = signed(3, NETWORK, publication(3, "x", 1));
    let mut stream = say(&stranger, &a, &[Frame::Push(vec![Bytes::copy_from_slice(old.bytes())])]).await;
    assert_eq!(answer(&mut stream).await, (0x31, vec![0, 0]));
    assert_eq!(entries(&a), [publication(3, "x", 2)]);
    assert!(hub.bans().is_empty());
}

#[tokio::test]
async fn one_peer_has_few_sessions_at_once() {
    let hub = Fabric::sparse();
    let (a, stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
    hub.connect(a.peer, stranger.peer);
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(say(&stranger, &a, &[Frame::Push(vec![])]).await);
    }
    // The third is closed without an answer; the first two are served.
    let mut byte = [0];
    assert_eq!(timeout(LONG, streams[2].read(&mut byte)).await.expect("it closes").ok().unwrap_or(0), 0);
    assert_eq!(answer(&mut streams[0]).await, (0x31, vec![0, 0]));
}

/// What a later version might write: another format, a flag, an extension.
fn later(seed: u8, name: &str) -> [Vec<u8>; 3] {
    let signed = signed(seed, NETWORK, publication(seed, name, 1));
    let [mut format, mut flag] = [signed.bytes().to_vec(), signed.bytes().to_vec()];
    format[0] = 3;
    format.resize(3000, 7);
    flag[1] = 0x80;
    let extended = publication(seed, &format!("{name}, extended"), 1);
    let extended = SignedPublication::sign_extended(&keypair(seed), NETWORK, extended, b"from the future");
    [format, flag, extended.expect("it is valid").bytes().to_vec()]
}

#[tokio::test]
async fn a_frame_of_an_unknown_kind_is_answered_and_the_session_goes_on() {
    let hub = Fabric::sparse();
    let (a, stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
    hub.connect(a.peer, stranger.peer);
    let mut stream = stranger.network.open_stream(a.peer, TOPIC).await.expect("it opens");
    // A newer greeting, then what is not known here, as long as it may be.
    let mut unknown = vec![0x42, 0, 0, 0, 1, 0, 1, 0, 0];
    unknown.resize(HEADER_BYTES + 65_536, 9);
    let greeting = [&[1, 0, 0, 0, 0, 0, 0, 0, 12, 2][..], &[0xff; 11]].concat();
    stream.write_all(&[greeting, unknown, Frame::Push(vec![]).encode(2)].concat()).await.expect("it is sent");
    assert_eq!(answer(&mut stream).await, (0x7f, vec![]));
    assert_eq!(hear(&mut stream).await, (0x31, 2, vec![0, 0]));
    assert!(hub.bans().is_empty());
}

#[tokio::test]
async fn what_a_later_version_pushes_is_skipped_and_the_rest_is_taken() {
    let hub = Fabric::sparse();
    let (a, stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
    hub.connect(a.peer, stranger.peer);
    let [format, flag, extended] = later(3, "x");
    let plain = signed(3, NETWORK, publication(3, "y", 1)).bytes().to_vec();
    let entries = [format, flag, extended.clone(), plain].map(Bytes::from).to_vec();
    let mut stream = say(&stranger, &a, &[Frame::Push(entries)]).await;
    assert_eq!(answer(&mut stream).await, (0x31, vec![0, 2]));
    // The extension is passed on byte for byte.
    let id = *blake3::hash(&extended).as_bytes();
    let mut stream = say(&stranger, &a, &[Frame::Want(vec![id])]).await;
    let length = (extended.len() as u16).to_be_bytes();
    assert_eq!(answer(&mut stream).await, (0x21, [&[0, 1][..], &length, &extended].concat()));
    assert!(hub.bans().is_empty());
}

/// What is said in a session that compares with whoever has `set`, to its end: ids that are wanted, and entries that are
/// pushed, of which none is taken. `entries`: what is given of what is wanted.
async fn moved(inbound: &mut mpsc::Receiver<Inbound>, set: &IdSet, entries: &[Bytes]) -> (usize, usize) {
    let (mut stream, (_, request, message)) = compared(inbound).await;
    let difference = |message: &[u8]| Frame::Difference(respond(set, message, 65_536).expect("it is honest").into());
    stream.write_all(&difference(&message).encode(request)).await.expect("it is sent");
    let (mut wanted, mut pushed) = (0, 0);
    loop {
        let mut first = [0];
        if timeout(LONG, stream.read(&mut first)).await.expect("it goes on").unwrap_or(0) == 0 {
            return (wanted, pushed);
        }
        let mut rest = [0; HEADER_BYTES - 1];
        stream.read_exact(&mut rest).await.expect("all of it");
        let request = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
        let mut payload = vec![0; u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize];
        stream.read_exact(&mut payload).await.expect("all of it");
        let answer = match Frame::decode(first[0], payload.into()).expect("it speaks well") {
            Frame::Reconcile(message) => difference(&message),
            Frame::Want(ids) => {
                wanted += ids.len();
                let is_wanted = |entry: &&Bytes| ids.contains(blake3::hash(entry).as_bytes());
                let mut entries: Vec<Bytes> = entries.iter().filter(is_wanted).cloned().collect();
                entries.sort_by_key(|entry| *blake3::hash(entry).as_bytes());
                Frame::Entries { answered: ids.len() as u16, entries }
            }
            Frame::Push(entries) => {
                pushed += entries.len();
                Frame::Taken(0)
            }
            frame => panic!("it says {frame:?}"),
        };
        stream.write_all(&answer.encode(request)).await.expect("it is sent");
    }
}

fn ids(entries: &[Bytes]) -> IdSet {
    entries.iter().map(|entry| *blake3::hash(entry).as_bytes()).collect()
}

#[tokio::test]
async fn what_a_later_version_has_is_asked_for_once_in_an_hour_and_the_rest_is_taken() {
    let hub = Fabric::sparse();
    let (a, mut stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
    hub.connect(a.peer, stranger.peer);
    let entries = later(3, "x").map(Bytes::from);
    assert_eq!(moved(&mut stranger.inbound, &ids(&entries), &entries).await, (3, 0));
    assert_eq!(a.catalogue.ledger.map().len(), 1);
    let more = signed(4, NETWORK, publication(4, "y", 1));
    let entries = [&entries[..], &[Bytes::copy_from_slice(more.bytes())]].concat();
    a.sync.compare(stranger.peer);
    assert_eq!(moved(&mut stranger.inbound, &ids(&entries), &entries).await, (1, 0), "only what is new");
    assert_eq!(a.catalogue.ledger.map().len(), 2);
    assert!(hub.bans().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_has_no_room_here_or_there_is_moved_once_in_an_hour() {
    let hub = Fabric::sparse();
    let mut stranger = stranger(&hub, 9).await;
    let limits = Limits { entries: 100, entries_per_publisher: 5 };
    let a = start_with(&hub, keypair(1), Store::in_memory(1 << 20), limits).await;
    // Those of three are not taken at the other side.
    fill(&a, 4, ["a", "b", "c"].map(str::to_owned)).await;
    let of_one: Vec<_> = (0..8).map(|number| signed(3, NETWORK, publication(3, &format!("{number}"), 1))).collect();
    let entries: Vec<Bytes> = of_one.iter().map(|signed| Bytes::copy_from_slice(signed.bytes())).collect();
    hub.connect(a.peer, stranger.peer);
    assert_eq!(moved(&mut stranger.inbound, &ids(&entries), &entries).await, (8, 3));
    assert_eq!(a.catalogue.ledger.map().len(), 8, "five have room");
    for _ in 0..3 {
        a.sync.compare(stranger.peer);
        let (wanted, pushed) = moved(&mut stranger.inbound, &ids(&entries), &entries).await;
        // What gave way while others came is not known to have no room, and found out once.
        assert!(wanted <= 3 && pushed == 0, "{wanted} wanted, {pushed} pushed");
    }
    a.sync.compare(stranger.peer);
    assert_eq!(moved(&mut stranger.inbound, &ids(&entries), &entries).await, (0, 0));
    let began = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        a.sync.compare(stranger.peer);
        match moved(&mut stranger.inbound, &ids(&entries), &entries).await {
            (0, 0) => assert!(began.elapsed() < Duration::from_secs(3600), "room may have come"),
            all => break assert_eq!(all, (3, 3)),
        }
    }
    assert!(began.elapsed() > Duration::from_secs(1000), "not before it may have come");
    assert!(hub.bans().is_empty());
}

#[tokio::test]
async fn a_peer_that_does_not_understand_a_question_is_not_at_fault() {
    // It answers everything by UNSUPPORTED, or by a kind that is not known here.
    for kind in [0x7f, 0x42] {
        let hub = Fabric::sparse();
        let (a, mut stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
        hub.connect(a.peer, stranger.peer);
        let (mut stream, (_, request, _)) = compared(&mut stranger.inbound).await;
        stream.write_all(&[&[kind][..], &request.to_be_bytes(), &[0; 4]].concat()).await.expect("it is sent");
        // It closes, and nothing worse.
        assert_eq!(timeout(LONG, stream.read(&mut [0])).await.expect("it closes").unwrap_or(0), 0);
        assert!(hub.bans().is_empty());
    }
}
