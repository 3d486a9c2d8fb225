//! What every network below a [`Network`] handle must do, real swarms and the simulated network alike.
//!
//! Each function takes the handles of nodes that are all connected with each other, two at least, and panics where
//! an expectation is not met. They use protocols and topics of their own names, so they can run one after another.
//! Waiting is for conditions, by tokio's clock, which may be paused.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::PeerId;
use p2p_node::net::{GossipMessage, Inbound, NetError, Network, PeerTable, Source, Verdict};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// How long anything may take before an expectation counts as not met.
const LIMIT: Duration = Duration::from_secs(60);
/// After so long without a message none is expected any more.
const QUIET: Duration = Duration::from_millis(1500);

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match timeout(LIMIT, work).await {
        Ok(done) => done,
        Err(_) => panic!("not within {LIMIT:?}: {what}"),
    }
}

async fn until(network: &Network, what: &str, mut condition: impl FnMut(&PeerTable) -> bool) {
    let mut peers = network.peers();
    within(what, peers.wait_for(|table| condition(table))).await.expect("the node runs");
}

/// Opens a stream; a protocol that was just announced may not be known to the peer yet.
async fn open(from: &Network, to: PeerId, protocol: &str) -> p2p_node::net::Stream {
    let start = Instant::now();
    loop {
        match from.open_stream(to, protocol).await {
            Ok(stream) => return stream,
            Err(NetError::Unsupported { .. }) if start.elapsed() < LIMIT => sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("no stream to {to}: {error}"),
        }
    }
}

/// All of it, on nodes that are all connected.
pub async fn all(nodes: &[Network]) {
    tables(nodes).await;
    closest(nodes).await;
    streams(nodes).await;
    crowd(nodes).await;
    backpressure(nodes).await;
    gossip(nodes).await;
    strangers(nodes).await;
    providers(nodes).await;
}

/// Every node's table has all others: connected, with an address, an agent, and a first epoch; never itself.
pub async fn tables(nodes: &[Network]) {
    for node in nodes {
        until(node, "a table of all others", |table| {
            nodes.iter().filter(|other| other.local() != node.local()).all(|other| {
                table.peers.get(&other.local()).is_some_and(|peer| {
                    peer.connected && !peer.addresses.is_empty() && peer.agent.is_some() && peer.epoch > 0
                })
            })
        })
        .await;
        assert!(!node.peers().borrow().peers.contains_key(&node.local()), "a node is not its own peer");
        let other = nodes.iter().find(|other| other.local() != node.local()).expect("two nodes");
        within("dialling a connected peer", node.dial_peer(other.local())).await.expect("it is connected");
    }
}

/// `closest_peers` gives the true nearest, in order, without the asking node; with it, the truth of the whole network.
pub async fn closest(nodes: &[Network]) {
    for (place, node) in nodes.iter().enumerate() {
        for number in 0..4_u8 {
            let preimage = vec![number, u8::try_from(place % 256).unwrap_or(0)];
            let target: [u8; 32] = Sha256::digest(&preimage).into();
            let mut truth: Vec<([u8; 32], PeerId)> = nodes
                .iter()
                .filter(|other| other.local() != node.local())
                .map(|other| {
                    let key: [u8; 32] = Sha256::digest(other.local().to_bytes()).into();
                    (std::array::from_fn(|place| key[place] ^ target[place]), other.local())
                })
                .collect();
            truth.sort_unstable();
            let truth: Vec<PeerId> = truth.into_iter().map(|(_, peer)| peer).take(20).collect();
            let found = within("a lookup", node.closest_peers(preimage)).await.expect("a lookup that ends");
            assert_eq!(found, truth, "the nearest as {} sees them", node.local());
        }
    }
}

/// Bytes go both ways over a stream, in order, and its end is seen; the acceptor learns who opened it.
pub async fn streams(nodes: &[Network]) {
    let (opener, acceptor) = (&nodes[0], &nodes[1]);
    let protocol = "/p2p-node/test/contract-echo/1";
    let mut inbound = acceptor.accept_streams(protocol, 4).await.expect("a free protocol");
    let echo = tokio::spawn(async move {
        let (peer, stream) = inbound.recv().await.expect("a stream");
        let (mut reading, mut writing) = futures::AsyncReadExt::split(stream);
        futures::io::copy(&mut reading, &mut writing).await.expect("an echo");
        writing.close().await.expect("a clean end");
        peer
    });
    let stream = within("a stream", open(opener, acceptor.local(), protocol)).await;
    let (mut reading, mut writing) = futures::AsyncReadExt::split(stream);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let mut back = Vec::new();
    let to_send = sent.clone();
    let (wrote, read) = within("an echo", async {
        tokio::join!(
            async {
                writing.write_all(&to_send).await?;
                writing.close().await
            },
            reading.read_to_end(&mut back)
        )
    })
    .await;
    wrote.expect("all written");
    read.expect("all read");
    assert_eq!(back.len(), sent.len());
    assert!(back == sent, "the bytes came back changed");
    assert_eq!(within("the echo's end", echo).await.expect("no panic"), opener.local());
}

/// Many streams opened at once by every node all arrive, though the acceptor is slow.
pub async fn crowd(nodes: &[Network]) {
    let acceptor = &nodes[0];
    let protocol = "/p2p-node/test/contract-crowd/1";
    let mut inbound: mpsc::Receiver<Inbound> = acceptor.accept_streams(protocol, 8).await.expect("a free protocol");
    let each = 8_u8;
    let mut openers = tokio::task::JoinSet::new();
    for (number, node) in nodes.iter().enumerate().skip(1).take(8) {
        for count in 0..each {
            let (node, to) = (node.clone(), acceptor.local());
            openers.spawn(async move {
                let mut stream = open(&node, to, protocol).await;
                stream.write_all(&[u8::try_from(number).unwrap_or(0), count]).await.expect("a written stream");
                stream.close().await.expect("a closed stream");
                stream.read_to_end(&mut Vec::new()).await.expect("the end of the other side");
            });
        }
    }
    let expected = openers.len();
    let mut seen = HashSet::new();
    while seen.len() < expected {
        let (_, mut stream) = within("all streams", inbound.recv()).await.expect("the acceptor lives");
        let mut said = Vec::new();
        within("a stream's bytes", stream.read_to_end(&mut said)).await.expect("a readable stream");
        assert!(seen.insert(said), "a stream came twice");
        stream.close().await.expect("a clean end");
    }
    while let Some(done) = within("all openers", openers.join_next()).await {
        done.expect("an opener that succeeds");
    }
}

/// A reader that does not read stops the writer: nothing between them takes bytes without end.
pub async fn backpressure(nodes: &[Network]) {
    let (opener, acceptor) = (&nodes[0], &nodes[1]);
    let protocol = "/p2p-node/test/contract-pressure/1";
    let mut inbound = acceptor.accept_streams(protocol, 1).await.expect("a free protocol");
    let mut writing = within("a stream", open(opener, acceptor.local(), protocol)).await;
    let (_, mut reading) = within("the stream", inbound.recv()).await.expect("a stream");
    let piece = vec![7_u8; 256 * 1024];
    let mut written = 0_usize;
    let mut torn = 0_usize;
    while let Ok(result) = timeout(Duration::from_secs(2), writing.write(&piece)).await {
        written += result.expect("an open stream");
        assert!(written < 512 * 1024 * 1024, "half a GiB was taken without a reader");
        torn = written;
    }
    assert!(torn > 0, "nothing could be written at all");
    let mut left = torn;
    let mut buffer = vec![0; 256 * 1024];
    while left > 0 {
        let read = within("what was written", reading.read(&mut buffer)).await.expect("an open stream");
        assert!(read > 0 && buffer[..read].iter().all(|byte| *byte == 7));
        left -= read;
    }
}

fn judge(mut messages: mpsc::Receiver<GossipMessage>, verdict: Verdict) -> mpsc::UnboundedReceiver<(PeerId, Bytes)> {
    // Unbounded: a test's handful of messages.
    let (heard, hearing) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            let _ = message.verdict.send(verdict);
            let _ = heard.send((message.from, message.data));
        }
    });
    hearing
}

/// What one node says reaches every other that accepts it, once each, and not itself.
pub async fn gossip(nodes: &[Network]) {
    let topic = "/p2p-node/test/contract-gossip/1";
    let mut ears = Vec::new();
    for node in nodes {
        ears.push(judge(node.subscribe(topic, 64).await.expect("a free topic"), Verdict::Accept));
    }
    // Said at once: subscriptions may still be on their way.
    let count = nodes.len().min(4);
    for (number, node) in nodes.iter().take(count).enumerate() {
        node.publish(topic, Bytes::from(format!("message {number}"))).await.expect("a message that is taken");
    }
    for (place, ear) in ears.iter_mut().enumerate() {
        let expected: BTreeSet<Bytes> =
            (0..count).filter(|number| *number != place).map(|n| Bytes::from(format!("message {n}"))).collect();
        let mut heard = BTreeSet::new();
        while heard.len() < expected.len() {
            let (_, data) = within("the messages of all", ear.recv()).await.expect("a node that listens");
            assert!(heard.insert(data.clone()), "{data:?} came twice");
        }
        assert_eq!(heard, expected);
    }
    sleep(QUIET).await;
    for ear in &mut ears {
        assert!(ear.try_recv().is_err(), "a message came twice");
    }
}

/// What a node in the middle accepts goes on to the next, and what it rejects does not. Of three nodes: the first and the
/// last refuse each other from here on, so that what one says reaches the other only through the middle.
pub async fn rejected(nodes: &[Network]) {
    let [left, middle, right] = nodes else { panic!("a line has three nodes") };
    left.ban(right.local(), LIMIT * 10, "a test").await;
    right.ban(left.local(), LIMIT * 10, "a test").await;
    for (end, other) in [(left, right), (right, left)] {
        let is = |table: &PeerTable, peer: PeerId| table.peers.get(&peer).is_some_and(|entry| entry.connected);
        until(end, "a line", |table| is(table, middle.local()) && !is(table, other.local())).await;
    }
    let topic = "/p2p-node/test/contract-reject/1";
    let mut at_middle = middle.subscribe(topic, 8).await.expect("a free topic");
    let mut at_right = right.subscribe(topic, 8).await.expect("a free topic");
    let start = Instant::now();
    // Until the middle knows that the right one listens, it has nobody to forward to.
    for number in 0_u32.. {
        assert!(start.elapsed() < LIMIT, "nothing was forwarded");
        left.publish(topic, Bytes::from(format!("said {number}"))).await.expect("a message that is taken");
        let heard = within("the message", at_middle.recv()).await.expect("a node that listens");
        assert_eq!(heard.from, left.local());
        heard.verdict.send(Verdict::Accept).expect("it is waited for");
        if let Ok(heard) = timeout(QUIET, at_right.recv()).await {
            assert_eq!(heard.expect("a node that listens").from, middle.local());
            break;
        }
    }
    while timeout(QUIET, at_right.recv()).await.is_ok() {}
    // The way is known to be open: only the verdict keeps this one from it.
    left.publish(topic, Bytes::from_static(b"nonsense")).await.expect("a message that is taken");
    let heard = within("the message", at_middle.recv()).await.expect("a node that listens");
    heard.verdict.send(Verdict::Reject).expect("it is waited for");
    assert!(timeout(2 * QUIET, at_right.recv()).await.is_err(), "what was rejected was forwarded");
}

/// A peer that nobody knows is unreachable, an address where nobody is too, and a protocol that nobody takes is
/// unsupported; a node cannot dial itself.
pub async fn strangers(nodes: &[Network]) {
    let node = &nodes[0];
    let stranger = PeerId::random();
    let dialled = within("a stranger", node.dial_peer(stranger)).await;
    assert!(matches!(dialled, Err(NetError::Unreachable { .. })), "{dialled:?}");
    let opened = within("a stranger", node.open_stream(stranger, "/p2p-node/test/none/1")).await.map(drop);
    assert!(matches!(opened, Err(NetError::Unreachable { .. })), "{opened:?}");
    let nobody = "/memory/18446744073709551615".parse().expect("a multiaddr");
    let dialled = within("nobody's address", node.dial(nobody, Source::Manual)).await;
    assert!(matches!(dialled, Err(NetError::Unreachable { .. })), "{dialled:?}");
    let opened = within("no protocol", node.open_stream(nodes[1].local(), "/p2p-node/test/none/1")).await.map(drop);
    assert!(matches!(opened, Err(NetError::Unsupported { .. })), "{opened:?}");
    let itself = within("itself", node.dial_peer(node.local())).await;
    assert!(itself.is_err(), "a node is not its own peer");
}

/// Who announced a root is found from everywhere; of another root nobody is.
pub async fn providers(nodes: &[Network]) {
    let root = b"contract root".to_vec();
    let announcers: BTreeSet<PeerId> = nodes.iter().take(2).map(Network::local).collect();
    for node in nodes.iter().take(2) {
        within("an announcement", node.provide(root.clone())).await.expect("an announcement that is taken");
    }
    for node in nodes {
        let start = Instant::now();
        loop {
            let found = within("a lookup", node.providers(root.clone())).await.expect("a lookup that ends");
            if found.into_iter().collect::<BTreeSet<_>>() == announcers {
                break;
            }
            assert!(start.elapsed() < LIMIT, "the announcement did not spread");
            sleep(Duration::from_millis(50)).await;
        }
        let none = within("a lookup", node.providers(b"another root".to_vec())).await.expect("a lookup that ends");
        assert!(none.is_empty());
    }
}

/// A node that is refused is disconnected and cannot come back. Ends the connection of the first two nodes for a
/// minute, so it runs last.
pub async fn ban(nodes: &[Network]) {
    let (judge, culprit) = (&nodes[0], &nodes[1]);
    let gone = |table: &PeerTable, peer: PeerId| table.peers.get(&peer).is_none_or(|entry| !entry.connected);
    judge.ban(culprit.local(), Duration::from_secs(60), "a test").await;
    until(judge, "the refused one gone", |table| gone(table, culprit.local())).await;
    until(culprit, "the judge gone", |table| gone(table, judge.local())).await;
    let dialled = within("a refused peer", judge.dial_peer(culprit.local())).await;
    assert!(matches!(dialled, Err(NetError::Unreachable { .. })), "{dialled:?}");
    let dialled = within("the judge", culprit.dial_peer(judge.local())).await;
    assert!(dialled.is_err(), "the refused one came back");
    assert!(gone(&judge.peers().borrow(), culprit.local()));
}
