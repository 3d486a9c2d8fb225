//! Peers that break the rules of catch-up, and what they get for it.

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use p2p_protocol::{
    reconcile::{IdSet, Initiator, ReconcileLimits, respond},
    wire::sync::Frame,
};

use super::*;

/// A peer that is no node: its streams are the test's.
struct Stranger {
    peer: PeerId,
    network: Network,
    inbound: mpsc::Receiver<Inbound>,
}

async fn stranger(hub: &Hub, seed: u8) -> Stranger {
    let peer = keypair(seed).public().to_peer_id();
    let network = hub.join(peer);
    let inbound = network.accept_streams(TOPIC, 4).await.expect("the hub takes it");
    Stranger { peer, network, inbound }
}

async fn is_banned(hub: &Hub, by: &Node, peer: PeerId) {
    eventually("a ban", || hub.with(by.peer, |end| end.banned.contains(&peer))).await;
}

#[tokio::test]
async fn whoever_asks_with_hostile_bytes_is_banned() {
    let invalid = signed(3, "other", publication(3, "x", 1));
    let mut tampered = signed(3, NETWORK, publication(3, "x", 1)).bytes().to_vec();
    tampered[100] ^= 1;
    // Another's name on what one signed oneself.
    let mut mismatch = signed(3, NETWORK, publication(3, "x", 1)).bytes().to_vec();
    mismatch[4..42].copy_from_slice(&keypair(4).public().to_peer_id().to_bytes());
    let push = |bytes: &[u8]| Frame::Push(vec![Bytes::copy_from_slice(bytes)]).encode();
    let cases = [
        vec![9, 0, 0, 0, 0],
        vec![1, 0xff, 0xff, 0xff, 0xff],
        vec![3, 0, 0, 0, 1, 0],
        Frame::Reconcile(Bytes::from_static(&[0xff, 7])).encode(),
        Frame::Taken(1).encode(),
        Frame::Difference(Bytes::new()).encode(),
        push(invalid.bytes()),
        push(&tampered),
        push(&mismatch),
        push(b"noise"),
    ];
    for bytes in cases {
        let hub = Hub::default();
        let (a, stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
        hub.connect(a.peer, stranger.peer);
        let mut stream = stranger.network.open_stream(a.peer, TOPIC).await.expect("it opens");
        stream.write_all(&bytes).await.expect("it is sent");
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
    let listing = Frame::Difference(listing.into()).encode();
    let unwanted = signed(3, NETWORK, publication(3, "x", 1));
    let entries = vec![Bytes::copy_from_slice(unwanted.bytes())];
    let cases = [
        vec![vec![2, 0, 0, 0, 0]],
        vec![vec![2, 0, 1, 0, 1]],
        vec![Frame::Taken(0).encode()],
        vec![listing.clone(), Frame::Entries { answered: 0, entries: vec![] }.encode()],
        vec![listing.clone(), Frame::Entries { answered: 2, entries: vec![] }.encode()],
        vec![listing, Frame::Entries { answered: 1, entries }.encode()],
    ];
    for answers in cases {
        let hub = Hub::default();
        let (a, mut stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
        hub.connect(a.peer, stranger.peer);
        let (_, mut stream) = timeout(LONG, stranger.inbound.recv()).await.expect("it asks").expect("it is there");
        let mut buffer = [0; 4096];
        for answer in answers {
            assert!(stream.read(&mut buffer).await.expect("it asks") > 0);
            stream.write_all(&answer).await.expect("it is sent");
        }
        is_banned(&hub, &a, stranger.peer).await;
        assert_eq!(a.catalogue.ledger.map().len(), 0);
    }
}

#[tokio::test]
async fn a_broken_stream_is_nobodys_fault_and_tried_again() {
    let hub = Hub::default();
    let (a, mut stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
    hub.connect(a.peer, stranger.peer);
    for _ in 0..2 {
        let (_, mut stream) = timeout(LONG, stranger.inbound.recv()).await.expect("it asks").expect("it is there");
        stream.write_all(&[2, 0, 0]).await.expect("it is sent");
        drop(stream);
    }
    assert!(hub.with(a.peer, |end| end.banned.is_empty()));
}

#[tokio::test]
async fn a_replayed_older_version_is_ignored() {
    let hub = Hub::default();
    let (a, stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
    hub.connect(a.peer, stranger.peer);
    a.catalogue.ledger.take(signed(3, NETWORK, publication(3, "x", 2))).await;
    let mut stream = stranger.network.open_stream(a.peer, TOPIC).await.expect("it opens");
    let old = signed(3, NETWORK, publication(3, "x", 1));
    stream.write_all(&Frame::Push(vec![Bytes::copy_from_slice(old.bytes())]).encode()).await.expect("it is sent");
    let mut answer = [0; 7];
    timeout(LONG, stream.read_exact(&mut answer)).await.expect("it answers").expect("all of it");
    assert_eq!(answer[..], Frame::Taken(0).encode());
    assert_eq!(a.catalogue.entries(), [publication(3, "x", 2)]);
    assert!(hub.with(a.peer, |end| end.banned.is_empty()));
}

#[tokio::test]
async fn one_peer_has_few_sessions_at_once() {
    let hub = Hub::default();
    let (a, stranger) = (node(&hub, 1).await, stranger(&hub, 9).await);
    hub.connect(a.peer, stranger.peer);
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(stranger.network.open_stream(a.peer, TOPIC).await.expect("it opens"));
    }
    // The third is closed without an answer; the first two are served.
    let mut byte = [0];
    assert_eq!(timeout(LONG, streams[2].read(&mut byte)).await.expect("it closes").ok().unwrap_or(0), 0);
    streams[0].write_all(&Frame::Push(vec![]).encode()).await.expect("it is sent");
    let mut answer = [0; 7];
    timeout(LONG, streams[0].read_exact(&mut answer)).await.expect("it answers").expect("all of it");
    assert_eq!(answer[..], Frame::Taken(0).encode());
}
