//! Machines are upgraded one at a time: a node of the next version and one of this meet, share files, catch up with each
//! other, and nobody is banned. Real swarms, in both directions (`protocol/SPEC.md`, "How this may change").

use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::{PeerId, identity::Keypair};
use p2p_node::{
    net::{Driver, Network, protocol_name},
    node::{Rooms, Site},
    service::{catalogue::Draft, replicate::Wish},
    store::Store,
};
use p2p_protocol::{
    Chunk, Cid, Codec,
    catalogue::{Kind, Publication, SignedPublication},
    manifest::{Entry, Listing},
    wire::{
        announce,
        frame::{HEADER_BYTES, Header, UNSUPPORTED},
        sync::Frame,
        transfer::Message,
        turns::Turn as _,
        version::{Dialect, Hello, Versions},
    },
};
use p2p_tests::swarm::{LIMIT, Options, meet};
use tokio::time::{Instant, sleep};

const NETWORK: &str = "test";

/// What the next version speaks, with feature bits that this one does not know.
fn next() -> Dialect {
    let now = Dialect::default();
    let after = |versions: Versions| Versions::up_to(versions.newest() + 1);
    Dialect {
        transfer: after(now.transfer),
        catalogue: after(now.catalogue),
        audit: after(now.audit),
        features: u64::MAX,
    }
}

struct Node {
    rooms: Rooms,
    network: Network,
    keypair: Keypair,
    _driver: Driver,
}

/// A node of this version and one of the next, connected; `first` says which starts first.
async fn two(first: Dialect, second: Dialect) -> [Node; 2] {
    let options = Options { network: NETWORK.to_owned(), ..Options::default() };
    let one = options.clone().start().await;
    let other = options.through(&one).start().await;
    let swarms = [one, other];
    meet(&swarms).await;
    let mut nodes = Vec::new();
    for (swarm, dialect) in swarms.into_iter().zip([first, second]) {
        let network = swarm.network.clone().speaking(dialect);
        let site = Site { replicas: 2, ..Site::new(NETWORK, 1) };
        let store = Store::in_memory(64 << 20);
        let rooms = Rooms::build(network.clone(), store, swarm.keypair(), site).await.expect("the rooms stand");
        nodes.push(Node { rooms, network, keypair: swarm.keypair(), _driver: swarm.driver });
    }
    nodes.try_into().unwrap_or_else(|_| panic!("there are two"))
}

impl Node {
    fn id(&self) -> PeerId {
        self.network.local()
    }

    fn has(&self, publication: &Publication) -> bool {
        self.rooms.catalogue.current(&publication.publisher, &publication.key()).as_ref() == Some(publication)
    }

    /// Keeps a chunk on both, publishes it, and gives what was published.
    async fn add(&self, content: &str) -> (Chunk, Publication) {
        let chunk = Chunk::new(Codec::Raw, content.repeat(5000).into_bytes()).expect("short");
        let job = self.rooms.replicate.begin(Wish { wanted: 2, wait: None, local: false }).await;
        job.submit(chunk.clone()).await.expect("it is kept");
        let report = job.finish().await.expect("it is kept");
        assert_eq!((report.min, &report.failures), (2, &Vec::new()), "{content}");
        let published = self.rooms.catalogue.publish(draft(content, &chunk)).await.expect("it is published");
        (chunk, published)
    }

    fn epoch(&self, other: &Self) -> Option<u64> {
        let peers = self.network.peers();
        let table = peers.borrow();
        table.peers.get(&other.id()).filter(|row| row.connected).map(|row| row.epoch)
    }
}

fn draft(name: &str, chunk: &Chunk) -> Draft {
    Draft {
        name: Some(name.to_owned()),
        label: name.to_owned(),
        root: *chunk.cid(),
        kind: Kind::File,
        size: chunk.len() as u64,
        replicas: 2,
        chunks: 1,
        listing: listing(*chunk.cid(), chunk.len() as u32),
        keep: 10,
    }
}

fn listing(cid: Cid, length: u32) -> Listing {
    Listing::Inline(vec![Entry { cid, length }])
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "it never came to this: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What a later version writes: one with an extension, and one of a format that is not known.
fn written_later(by: &Node) -> (SignedPublication, Vec<u8>) {
    let publication = |name: &str| Publication {
        publisher: by.id(),
        name: Some(name.to_owned()),
        label: name.to_owned(),
        root: Cid::of(Codec::Raw, name.as_bytes()),
        kind: Kind::File,
        size: 1,
        replicas: 2,
        chunks: 1,
        listing: listing(Cid::of(Codec::Raw, name.as_bytes()), 1),
        version: 1,
        floor: 1,
        time_milliseconds: 1,
        removed: false,
    };
    let sign = |name| SignedPublication::sign_extended(&by.keypair, NETWORK, publication(name), b"from the future");
    let mut unknown = sign("of another format").expect("it is valid").bytes().to_vec();
    unknown[0] = 3;
    unknown.resize(3000, 7);
    (sign("with an extension").expect("it is valid"), unknown)
}

/// Says `bytes` on a new stream of `protocol`, and reads `length` bytes.
async fn ask(from: &Node, to: &Node, protocol: &str, bytes: &[u8], length: usize) -> Vec<u8> {
    let name = protocol_name(NETWORK, protocol, 1);
    let mut stream = from.network.open_stream(to.id(), name).await.expect("it accepts");
    stream.write_all(bytes).await.expect("it is read");
    stream.flush().await.expect("it is read");
    let mut answer = vec![0; length];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut answer)).await.expect("it answers").expect("all of it");
    answer
}

fn frame(kind: u8, request: u32, body: &[u8]) -> Vec<u8> {
    [&Header { kind, request, length: body.len() as u32 }.encode(), body].concat()
}

async fn live_together(first: Dialect, second: Dialect) {
    let [one, other] = two(first, second).await;
    let (newer, older) = if first == next() { (&one, &other) } else { (&other, &one) };
    eventually("they greet each other", || newer.rooms.locate.reachable() == 1 && older.rooms.locate.reachable() == 1)
        .await;
    let names = |newest: u8| ["transfer", "catalogue"].map(|protocol| protocol_name(NETWORK, protocol, newest));
    // Identify tells of a protocol that came after the connection.
    eventually("all versions are listed", || {
        let peers = older.network.peers();
        let listed = &peers.borrow().peers[&newer.id()].protocols;
        names(2).iter().chain(&names(1)).all(|name| listed.contains(name))
    })
    .await;
    let hello = older.rooms.transfer.greeting(newer.id()).await.expect("it greets").hello;
    assert_eq!(hello, Hello { version: 2, features: u64::MAX });
    let epochs = (newer.epoch(older), older.epoch(newer));

    // A file each way: kept on both, published, and read from the other.
    for (from, to, content) in [(newer, older, "newer"), (older, newer, "older")] {
        let (chunk, published) = from.add(content).await;
        let read = to.rooms.transfer.fetch(from.id(), *chunk.cid()).await.expect("it answers");
        assert_eq!(read, Some(chunk.clone()));
        let reader = to.rooms.fetch.begin(*chunk.cid(), vec![from.id()], 2);
        assert_eq!(reader.chunk(*chunk.cid()).await.expect("it is there").0, chunk);
        eventually("the publication is there too", || to.has(&published)).await;
    }

    // What only a later version says: a greeting with more in it, and a kind that is not known.
    let greeting = frame(1, 0, &[2; 200]);
    let own = older.rooms.transfer.own_greeting();
    let asked = [greeting.clone(), frame(0x55, 1, &[9; 5000])].concat();
    let mut greeted = Vec::new();
    Message::Greeting(own.clone()).encode(0, &mut greeted);
    let answer = ask(newer, older, "transfer", &asked, greeted.len() + HEADER_BYTES).await;
    assert_eq!((answer[0], answer[HEADER_BYTES], own.hello.version), (1, 1, 1));
    assert_eq!(answer[greeted.len()..], frame(UNSUPPORTED, 1, &[]));

    // In catch-up too, where an entry of another format is skipped, and what stands beside it is taken.
    let (extended, unknown) = written_later(newer);
    let push = Frame::Push(vec![Bytes::from(unknown.clone()), Bytes::copy_from_slice(extended.bytes())]);
    let asked = [greeting, frame(0x55, 1, &[9; 5000]), push.encode(2)].concat();
    let answer = ask(newer, older, "catalogue", &asked, 3 * HEADER_BYTES + 9 + 2).await;
    let expected = [frame(UNSUPPORTED, 1, &[]), Frame::Taken(1).encode(2)].concat();
    assert_eq!(answer[HEADER_BYTES + 9..], expected);
    assert!(older.has(extended.publication()));
    // The older one passes it on, by catch-up, as it came.
    eventually("the extension comes back", || newer.has(extended.publication())).await;

    // Gossip of another format, twice as much as would be held against who sends what is not valid.
    let topic = protocol_name(NETWORK, "catalogue", 1);
    for seed in 0..40_u8 {
        let message = [&[1], &unknown[..], &[seed]].concat();
        newer.network.publish(&topic, message.into()).await.expect("it is said");
    }
    newer.network.publish(&topic, announce::encode(&extended).into()).await.expect("it is said");
    let (_, published) = newer.add("after all of it").await;
    eventually("gossip goes on", || older.has(&published)).await;

    assert_eq!((newer.epoch(older), older.epoch(newer)), epochs, "nobody was dropped");
    for (from, to) in [(newer, older), (older, newer)] {
        from.network.dial_peer(to.id()).await.expect("nobody is banned");
        assert!(from.rooms.transfer.refresh(to.id()).await.is_ok());
    }
    for node in [newer, older] {
        assert_eq!(node.rooms.catalogue.standing().0, 4);
        node.rooms.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_the_next_version_joins_one_of_this_and_they_share_files() {
    live_together(Dialect::default(), next()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_this_version_joins_one_of_the_next_and_they_share_files() {
    live_together(next(), Dialect::default()).await;
}
