//! Sessions between nodes in memory, and against peers that lie, are silent or send garbage.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, future::join_all};
use p2p_protocol::{
    Chunk, Cid, Codec, Label, Multihash, PeerId,
    wire::{
        frame::{HEADER_BYTES, Header},
        transfer::{Greeting, Message, limit},
        version::{Dialect, Hello, Versions},
    },
};
use tokio::time::timeout;

use super::*;
use crate::{
    net::{Stream, simulated::Fabric},
    service::rig::{NETWORK, ROOMY, Serve as _, eventually, peer, transfer_protocol},
};

fn chunk(seed: u32, length: usize) -> Chunk {
    let mut bytes = vec![0; length];
    let mut reader = blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof();
    reader.fill(&mut bytes);
    Chunk::new(Codec::Raw, bytes).expect("tests keep to two mebibytes")
}

/// What a message takes on the wire.
fn frame(message: &Message) -> u64 {
    let mut head = Vec::new();
    let payload = message.encode(0, &mut head);
    (head.len() + payload.len()) as u64
}

async fn write(stream: &mut Stream, request: u32, message: &Message) {
    let mut out = Vec::new();
    let payload = message.encode(request, &mut out);
    out.extend_from_slice(&payload);
    stream.write_all(&out).await.expect("the other side reads");
}

async fn read(stream: &mut Stream) -> Option<(u32, Message)> {
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head).await.ok()?;
    let header = Header::decode(&head, limit).expect("nodes write headers that they would read");
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).await.ok()?;
    Some((header.request, Message::decode(header.kind, Bytes::from(body)).expect("nodes write what they would read")))
}

fn greeting() -> Message {
    let hello = Hello { version: 1, features: 0 };
    let (storing, full, leaving) = (true, false, false);
    let label = Label::new("played by a test");
    Message::Greeting(Greeting { hello, storing, full, leaving, capacity_bytes: 1, free_bytes: 1, label })
}

/// A stream to a node's transfer service from a peer that the test plays, greetings over.
async fn raw(fabric: &Fabric, seed: u8, to: PeerId) -> Stream {
    let network = fabric.join(peer(seed));
    let mut stream = network.open_stream(to, transfer_protocol()).await.expect("it accepts");
    write(&mut stream, 0, &greeting()).await;
    assert!(matches!(read(&mut stream).await, Some((0, Message::Greeting(_)))));
    stream
}

/// A peer whose answers the test writes: its first inbound stream, greetings over.
async fn played(fabric: &Fabric, seed: u8) -> tokio::task::JoinHandle<Stream> {
    let network = fabric.join(peer(seed));
    let mut inbound = network.accept_streams(transfer_protocol(), 4).await.expect("the fabric accepts");
    tokio::spawn(async move {
        let (_, mut stream) = inbound.recv().await.expect("somebody opens a stream");
        write(&mut stream, 0, &greeting()).await;
        assert!(matches!(read(&mut stream).await, Some((0, Message::Greeting(_)))));
        // Later streams wait for ever: the acceptor stays.
        std::mem::forget((inbound, network));
        stream
    })
}

async fn is_over(mut stream: Stream) {
    let rest = timeout(Duration::from_secs(60), async { while read(&mut stream).await.is_some() {} });
    assert!(rest.await.is_ok(), "the session was not closed");
}

#[tokio::test(start_paused = true)]
async fn chunks_of_every_size_go_there_and_come_back() {
    let fabric = Fabric::default();
    let (_, _, a) = fabric.serve(1, ROOMY).await;
    let (_, store, b) = fabric.serve(2, ROOMY).await;
    let sizes = [0, 1, 4096, 16 * 1024, 16 * 1024 + 1, 100_000, 1 << 20, 2 << 20];
    let chunks: Vec<Chunk> = (0..).zip(sizes).map(|(seed, size)| chunk(seed, size)).collect();
    let stored = join_all(chunks.iter().map(|chunk| a.store(peer(2), chunk.clone()))).await;
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    for chunk in &chunks {
        assert_eq!(store.get(&chunk.cid().hash).await.expect("it reads"), Some(chunk.clone()));
    }
    let fetched = join_all(chunks.iter().map(|chunk| a.fetch(peer(2), *chunk.cid()))).await;
    for (fetched, chunk) in fetched.into_iter().zip(&chunks) {
        assert_eq!(fetched, Ok(Some(chunk.clone())));
    }
    let bytes: u64 = sizes.iter().map(|size| *size as u64).sum();
    let (sent, received) = a.transferred();
    let put = |bytes: u64, chunks: u64| bytes + chunks * HEADER_BYTES as u64;
    assert!(sent > put(bytes, 8) && sent < put(bytes, 8) + 2048, "{sent} sent of {bytes}");
    assert!(received > put(bytes, 8) && received < put(bytes, 8) + 1024, "{received} received of {bytes}");
    assert_eq!(b.transferred(), (received, sent), "what one sends the other gets");
    let absent = chunk(99, 10);
    assert_eq!(a.fetch(peer(2), *absent.cid()).await, Ok(None));
    let mut hashes: Vec<Multihash> = chunks.iter().map(|chunk| chunk.cid().hash).collect();
    hashes.insert(1, absent.cid().hash);
    let holdings = a.holdings(peer(2), hashes).await.expect("it answers");
    assert_eq!(holdings[1], None);
    assert_eq!(holdings[8], Some(Held { length: 2 << 20 }));
    let many = vec![absent.cid().hash; 2500];
    assert_eq!(a.holdings(peer(2), many).await, Ok(vec![None; 2500]));
}

#[tokio::test(start_paused = true)]
async fn what_the_peer_has_is_acknowledged_without_sending_it() {
    let fabric = Fabric::default();
    let (_, _, a) = fabric.serve(1, ROOMY).await;
    let (_, store, b) = fabric.serve(2, ROOMY).await;
    let chunk = chunk(1, 1 << 20);
    store.put(chunk.clone()).await.expect("there is room");
    a.store(peer(2), chunk.clone()).await.expect("it keeps it");
    let offer = Message::Offer(vec![Offer { cid: *chunk.cid(), length: 1 << 20 }]);
    let (asked, answered) = (frame(&offer), frame(&Message::Kept));
    let (own, other) = (Message::Greeting(a.own_greeting()), Message::Greeting(b.own_greeting()));
    assert_eq!(a.transferred(), (frame(&own) + asked, frame(&other) + answered), "the frames, and no chunk");
    assert_eq!(a.offer(peer(2), *chunk.cid(), 1 << 20).await, Ok(Offered::Kept));
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_requests_share_one_session() {
    let fabric = Fabric::default();
    let (_, store, _a) = fabric.serve(1, ROOMY).await;
    let (_, _, b) = fabric.serve(2, ROOMY).await;
    let chunks: Vec<Chunk> = (0..700).map(|seed| chunk(seed, if seed % 20 == 0 { 1 << 20 } else { 3000 })).collect();
    for chunk in &chunks {
        store.put(chunk.clone()).await.expect("there is room");
    }
    let fetched = join_all(chunks.iter().map(|chunk| b.fetch(peer(1), *chunk.cid()))).await;
    assert!(fetched.iter().zip(&chunks).all(|(fetched, chunk)| *fetched == Ok(Some(chunk.clone()))));
    assert_eq!(lock(&b.shared.slots).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_is_forgotten_and_the_session_goes_on() {
    let fabric = Fabric::default();
    let (_, store, _a) = fabric.serve(1, ROOMY).await;
    let (_, _, b) = fabric.serve(2, ROOMY).await;
    let chunks: Vec<Chunk> = (0..64).map(|seed| chunk(seed, 300_000)).collect();
    for chunk in &chunks {
        store.put(chunk.clone()).await.expect("there is room");
    }
    for round in 0..20_u64 {
        let all = join_all(chunks.iter().map(|chunk| b.fetch(peer(1), *chunk.cid())));
        tokio::select! {
            biased;
            () = async { for _ in 0..round { tokio::task::yield_now().await } } => {}
            _ = all => {}
        }
    }
    for chunk in &chunks {
        assert_eq!(b.fetch(peer(1), *chunk.cid()).await, Ok(Some(chunk.clone())));
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_serves_wrong_bytes_is_banned_and_its_chunk_refused() {
    let fabric = Fabric::default();
    let (_, _, a) = fabric.serve(1, ROOMY).await;
    let liar = played(&fabric, 2).await;
    tokio::spawn(async move {
        let mut stream = liar.await.expect("it is played");
        while let Some((request, Message::Want(hashes))) = read(&mut stream).await {
            for at in 0..hashes.len() as u32 {
                write(&mut stream, request + at, &Message::Chunk(vec![7; 100_000].into())).await;
            }
        }
    });
    let refused = a.fetch(peer(2), *chunk(1, 100_000).cid()).await;
    assert!(matches!(&refused, Err(TransferError::Violation { peer: liar, .. }) if *liar == peer(2)), "{refused:?}");
    eventually("the liar is banned", || fabric.bans().iter().any(|ban| (ban.by, ban.peer) == (peer(1), peer(2)))).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_what_was_not_asked_is_banned() {
    let wanted = chunk(1, 10);
    for answer in [Message::Chunk(vec![0; 2 << 20].into()), Message::Kept, Message::Holdings(vec![None])] {
        let fabric = Fabric::default();
        let (_, _, a) = fabric.serve(1, ROOMY).await;
        let liar = played(&fabric, 2).await;
        tokio::spawn(async move {
            let mut stream = liar.await.expect("it is played");
            let (request, _) = read(&mut stream).await.expect("it is asked");
            write(&mut stream, request + 7, &answer).await;
            while read(&mut stream).await.is_some() {}
        });
        let refused = a.fetch(peer(2), *wanted.cid()).await;
        assert!(matches!(refused, Err(TransferError::Violation { .. })), "{refused:?}");
        eventually("it is banned", || fabric.bans().len() == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_handed_over_are_refused_and_their_sender_banned() {
    for length in [100, 200_000] {
        let fabric = Fabric::default();
        let (_, store, _a) = fabric.serve(1, ROOMY).await;
        let mut stream = raw(&fabric, 2, peer(1)).await;
        let promised = *chunk(1, length).cid();
        write(&mut stream, 1, &Message::Put(promised, vec![1; length].into())).await;
        is_over(stream).await;
        eventually("the sender is banned", || fabric.bans().iter().any(|ban| ban.peer == peer(2))).await;
        assert_eq!(store.usage().chunks, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_claims_four_gibibytes_and_garbage_are_refused_at_their_header() {
    let cid = *chunk(1, 10).cid();
    let mut put = Vec::new();
    let _ = Message::Put(cid, Bytes::new()).encode(1, &mut put);
    let claim = Header { kind: put[0], request: 1, length: u32::MAX }.encode();
    for bytes in [claim.to_vec(), vec![0xff; 64], b"GET / HTTP/1.1\r\n\r\n".to_vec(), Message::Kept.encoded()] {
        let fabric = Fabric::default();
        let (_, _, _a) = fabric.serve(1, ROOMY).await;
        let mut stream = raw(&fabric, 2, peer(1)).await;
        stream.write_all(&bytes).await.expect("it is read");
        is_over(stream).await;
        eventually("it is banned", || fabric.bans().iter().any(|ban| ban.peer == peer(2))).await;
    }
}

trait Encoded {
    fn encoded(&self) -> Vec<u8>;
}

impl Encoded for Message {
    fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let payload = self.encode(1, &mut out);
        out.extend_from_slice(&payload);
        out
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_greet_or_stops_in_a_frame_is_given_up() {
    let fabric = Fabric::default();
    let (_, _, _a) = fabric.serve(1, ROOMY).await;
    let network = fabric.join(peer(2));
    let silent = network.open_stream(peer(1), transfer_protocol()).await.expect("it accepts");
    is_over(silent).await;
    let mut half = raw(&fabric, 3, peer(1)).await;
    half.write_all(&Message::Want(vec![chunk(1, 1).cid().hash]).encoded()[..20]).await.expect("it is read");
    is_over(half).await;
    assert!(fabric.bans().is_empty(), "slow is not hostile");
}

#[tokio::test(start_paused = true)]
async fn silence_while_requests_are_open_ends_the_session() {
    let fabric = Fabric::default();
    let (_, _, a) = fabric.serve(1, ROOMY).await;
    let silent = played(&fabric, 2).await;
    let began = tokio::time::Instant::now();
    let (one, two) = tokio::join!(a.fetch(peer(2), *chunk(1, 1).cid()), a.store(peer(2), chunk(2, 9)));
    assert_eq!(one, Err(TransferError::Timeout { peer: peer(2) }));
    assert_eq!(two, Err(TransferError::Timeout { peer: peer(2) }));
    assert!(began.elapsed() >= Duration::from_secs(20));
    drop(silent.await);
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_stays() {
    let fabric = Fabric::default();
    let (_, store, _a) = fabric.serve(1, ROOMY).await;
    let (_, _, b) = fabric.serve(2, ROOMY).await;
    let chunk = chunk(1, 5);
    store.put(chunk.clone()).await.expect("there is room");
    assert!(b.fetch(peer(1), *chunk.cid()).await.is_ok());
    let session = b.shared.session(peer(1)).await.expect("it is open");
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(b.fetch(peer(1), *chunk.cid()).await, Ok(Some(chunk)));
    assert!(Arc::ptr_eq(&session, &b.shared.session(peer(1)).await.expect("it is open")));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_breaks_fails_its_requests_and_a_new_one_is_opened() {
    let fabric = Fabric::default();
    let (_, _, a) = fabric.serve(1, ROOMY).await;
    let silent = played(&fabric, 2).await;
    let wanted = *chunk(1, 1).cid();
    let asking = tokio::spawn({
        let a = a.clone();
        async move { a.fetch(peer(2), wanted).await }
    });
    let stream = silent.await.expect("it is played");
    fabric.leave(peer(2));
    let failed = asking.await.expect("it does not panic");
    assert!(matches!(failed, Err(TransferError::Net(_))), "{failed:?}");
    drop(stream);
    assert!(matches!(a.fetch(peer(2), wanted).await, Err(TransferError::Net(_))));
    let (_, store, _b) = fabric.serve(2, ROOMY).await;
    store.put(chunk(1, 1)).await.expect("there is room");
    fabric.back(peer(2));
    assert_eq!(a.fetch(peer(2), wanted).await, Ok(Some(chunk(1, 1))));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_one_session_share_its_failure() {
    let fabric = Fabric::default();
    let (_, _, a) = fabric.serve(1, ROOMY).await;
    let network = fabric.join(peer(2));
    let _inbound = network.accept_streams(transfer_protocol(), 64).await.expect("the fabric accepts");
    let began = tokio::time::Instant::now();
    let cid = *chunk(1, 1).cid();
    let all = join_all((0..50).map(|_| a.fetch(peer(2), cid))).await;
    assert!(all.iter().all(Result::is_err));
    assert!(began.elapsed() < Duration::from_secs(30), "fifty waits one after the other: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_takes_no_chunks_refuses_and_who_is_full_says_so() {
    let fabric = Fabric::default();
    let (_, _, a) = fabric.serve(1, ROOMY).await;
    let (_, _, _client) = fabric.serve(2, 0).await;
    let (_, _, _full) = fabric.serve(3, 50_000).await;
    assert!(!a.greeting(peer(2)).await.expect("it greets").storing);
    assert!(a.greeting(peer(3)).await.expect("it greets").storing);
    for length in [10, 100_000] {
        let refused = a.store(peer(2), chunk(1, length)).await;
        assert!(matches!(refused, Err(TransferError::Refused { .. })), "{refused:?}");
    }
    assert_eq!(a.store(peer(3), chunk(1, 100_000)).await, Err(TransferError::NoSpace { peer: peer(3) }));
    assert_eq!(a.put(peer(3), chunk(1, 100_000)).await, Err(TransferError::NoSpace { peer: peer(3) }));
    assert_eq!(a.store(peer(3), chunk(1, 10_000)).await, Ok(()));
    let free = a.refresh(peer(3)).await.expect("it answers").free_bytes;
    assert!(free <= 40_000, "{free}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_requests_is_slowed_and_not_banned() {
    let fabric = Fabric::default();
    let (_, _, _a) = fabric.serve(1, ROOMY).await;
    let mut stream = raw(&fabric, 2, peer(1)).await;
    let began = tokio::time::Instant::now();
    let (mut asked, mut answered) = (0, HashMap::new());
    while asked < 30_000_u32 {
        write(&mut stream, asked, &Message::Want(vec![chunk(1, 1).cid().hash; 250])).await;
        for _ in 0..250 {
            let (request, message) = read(&mut stream).await.expect("it goes on");
            assert_eq!(message, Message::Missing);
            answered.insert(request, ());
        }
        asked += 250;
    }
    assert_eq!(answered.len(), 30_000);
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert!(fabric.bans().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_peer_has_two_inbound_sessions_and_the_newest_count() {
    let fabric = Fabric::default();
    let (_, _, a) = fabric.serve(1, ROOMY).await;
    let network = fabric.join(peer(2));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = network.open_stream(peer(1), transfer_protocol()).await.expect("it accepts");
        write(&mut stream, 0, &greeting()).await;
        assert!(matches!(read(&mut stream).await, Some((0, Message::Greeting(_)))));
        streams.push(stream);
    }
    let mut newest = streams.pop().expect("three were opened");
    is_over(streams.remove(0)).await;
    write(&mut newest, 5, &Message::Greet).await;
    assert!(matches!(read(&mut newest).await, Some((5, Message::Greeting(_)))));
    assert_eq!(lock(&a.shared.inbound)[&peer(2)].len(), 2);
    let _: Cid = *chunk(1, 1).cid();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_kind_is_answered_unsupported_and_nobody_is_banned() {
    let fabric = Fabric::default();
    let (_, store, _a) = fabric.serve(1, ROOMY).await;
    let network = fabric.join(peer(2));
    let mut stream = network.open_stream(peer(1), transfer_protocol()).await.expect("it accepts");
    // A greeting of a later version: every feature, and more than is known.
    let mut newer = Header { kind: 1, request: 0, length: 200 }.encode().to_vec();
    newer.resize(HEADER_BYTES + 26, 0xff);
    newer.push(0);
    newer.resize(HEADER_BYTES + 200, 0xff);
    stream.write_all(&newer).await.expect("it is read");
    assert!(matches!(read(&mut stream).await, Some((0, Message::Greeting(_)))));

    let other = chunk(2, 10);
    for length in [0, 1, 65_536] {
        let mut unknown = Header { kind: 0x40, request: 7, length }.encode().to_vec();
        unknown.resize(HEADER_BYTES + length as usize, 0x31);
        stream.write_all(&unknown).await.expect("it is read");
        assert_eq!(read(&mut stream).await, Some((7, Message::Unsupported)));
    }
    // The session goes on.
    write(&mut stream, 8, &Message::Put(*other.cid(), other.clone().into_bytes())).await;
    assert_eq!(read(&mut stream).await, Some((8, Message::Kept)));
    assert_eq!((store.usage().chunks, fabric.bans()), (1, Vec::new()));
    // One byte more than an unknown kind may have is a broken rule.
    stream.write_all(&Header { kind: 0x40, request: 9, length: 65_537 }.encode()).await.expect("it is read");
    is_over(stream).await;
    eventually("it is banned", || fabric.bans().len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn unknown_kinds_are_paid_for_from_the_budget_of_requests() {
    let fabric = Fabric::default();
    let (_, _, _a) = fabric.serve(1, ROOMY).await;
    let mut stream = raw(&fabric, 2, peer(1)).await;
    let began = tokio::time::Instant::now();
    for _ in 0..300 {
        let frames: Vec<u8> = (0..100).flat_map(|request| Header { kind: 0x40, request, length: 0 }.encode()).collect();
        stream.write_all(&frames).await.expect("it is read");
        for request in 0..100 {
            assert_eq!(read(&mut stream).await, Some((request, Message::Unsupported)));
        }
    }
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_understood_fails_its_request_and_not_the_session() {
    let fabric = Fabric::default();
    let (_, _, a) = fabric.serve(1, ROOMY).await;
    let later = played(&fabric, 2).await;
    let kept = chunk(3, 100);
    let given = kept.clone();
    tokio::spawn(async move {
        let mut stream = later.await.expect("it is played");
        while let Some((request, message)) = read(&mut stream).await {
            match message {
                // One answer for the whole frame.
                Message::Offer(_) => write(&mut stream, request, &Message::Unsupported).await,
                Message::Want(hashes) if hashes.contains(&given.cid().hash) => {
                    write(&mut stream, request, &Message::Chunk(given.clone().into_bytes())).await;
                }
                _ => {
                    let mut unknown = Header { kind: 0x60, request, length: 60_000 }.encode().to_vec();
                    unknown.resize(HEADER_BYTES + 60_000, 9);
                    stream.write_all(&unknown).await.expect("it is read");
                }
            }
        }
    });
    let unsupported = TransferError::Unsupported { peer: peer(2) };
    let began = tokio::time::Instant::now();
    let offers = join_all((0..50).map(|seed| a.offer(peer(2), *chunk(seed, 10).cid(), 10))).await;
    assert!(offers.iter().all(|offer| *offer == Err(unsupported.clone())), "{offers:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "some waited until they were given up");
    assert_eq!(a.fetch(peer(2), *chunk(1, 10).cid()).await, Err(unsupported.clone()));
    assert_eq!(a.put(peer(2), chunk(2, 10)).await, Err(unsupported.clone()));
    assert_eq!(a.holdings(peer(2), vec![kept.cid().hash]).await, Err(unsupported));
    let session = a.shared.session(peer(2)).await.expect("it is open");
    assert_eq!(a.fetch(peer(2), *kept.cid()).await, Ok(Some(kept)));
    assert!(Arc::ptr_eq(&session, &a.shared.session(peer(2)).await.expect("it is open")));
    assert!(fabric.bans().is_empty());
}

/// A node whose newest version is `newest`, over the fabric.
async fn speaking(fabric: &Fabric, seed: u8, newest: u8) -> Transfer {
    let dialect = Dialect { transfer: Versions::up_to(newest), features: u64::MAX, ..Dialect::default() };
    let (network, store) = (fabric.join(peer(seed)).speaking(dialect), Store::in_memory(ROOMY));
    let wanted = Wanted::open(store.clone()).expect("it opens");
    Transfer::start(network, store, wanted, NETWORK, true, &Layer::alone()).await.expect("the fabric accepts")
}

#[tokio::test(start_paused = true)]
async fn nodes_one_version_apart_exchange_chunks_and_nodes_two_apart_say_that_they_cannot() {
    let fabric = Fabric::default();
    let [one, two, three] = [1, 2, 3].map(|newest| speaking(&fabric, newest, newest));
    let nodes = [one.await, two.await, three.await];
    for (from, to) in [(1, 2), (2, 1), (2, 3), (3, 2)] {
        let chunk = chunk(from * 16 + to, 50_000);
        let node = &nodes[from as usize - 1];
        node.store(peer(to as u8), chunk.clone()).await.expect("it is kept");
        assert_eq!(node.fetch(peer(to as u8), *chunk.cid()).await, Ok(Some(chunk)));
        let hello = node.greeting(peer(to as u8)).await.expect("it greets").hello;
        assert_eq!(hello, Hello { version: to as u8, features: u64::MAX });
    }
    for (from, to) in [(1, 3), (3, 1)] {
        let refused = nodes[from - 1].greeting(peer(to)).await;
        assert!(matches!(refused, Err(TransferError::Net(NetError::Unsupported { .. }))), "{refused:?}");
    }
    assert!(fabric.bans().is_empty());
}
