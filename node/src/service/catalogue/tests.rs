//! Gossip and catch-up between nodes of the simulated network.

mod hostile;
mod large;
mod versions;

use std::time::Duration;

use bytes::Bytes;
use libp2p::{PeerId, identity::Keypair};
use p2p_protocol::{
    Cid, Codec,
    catalogue::{Kind, Publication, SignedPublication},
    manifest::{Entry, Listing},
    wire::announce,
};
use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::{
    net::{Inbound, Stream, simulated::Fabric},
    service::{
        blocking::Blocking,
        rig::{NETWORK, eventually, keypair},
        sync::{self, Sync},
        worker::Workers,
    },
};

const TOPIC: &str = "/p2p-node/test/catalogue/1";
/// Longer than anything here takes, on a busy machine too.
const LONG: Duration = Duration::from_secs(60);

struct Node {
    peer: PeerId,
    keypair: Keypair,
    store: Store,
    catalogue: Catalogue,
    sync: Sync,
    workers: Workers,
}

async fn node(hub: &Fabric, seed: u8) -> Node {
    start(hub, keypair(seed), Store::in_memory(1 << 20)).await
}

async fn start(hub: &Fabric, keypair: Keypair, store: Store) -> Node {
    start_with(hub, keypair, store, Limits::default()).await
}

async fn start_with(hub: &Fabric, keypair: Keypair, store: Store, limits: Limits) -> Node {
    let peer = keypair.public().to_peer_id();
    let network = hub.join(peer);
    let workers = Workers::default();
    let started = Catalogue::start(network.clone(), store.clone(), keypair.clone(), NETWORK, limits, &workers).await;
    let catalogue = started.expect("it starts");
    let sync =
        sync::start(network, &catalogue, Blocking::new(workers.layer()), 1, &workers.layer()).await.expect("it starts");
    Node { peer, keypair, store, catalogue, sync, workers }
}

fn draft(name: &str) -> Draft {
    let root = Cid::of(Codec::Raw, name.as_bytes());
    Draft {
        name: None,
        label: name.to_owned(),
        root,
        kind: Kind::File,
        size: name.len() as u64,
        replicas: 3,
        chunks: 1,
        listing: Listing::Inline(vec![Entry { cid: root, length: name.len() as u32 }]),
        keep: 10,
    }
}

/// One that keeps no version before itself.
fn publication(seed: u8, name: &str, version: u64) -> Publication {
    let publication = draft(name).into_publication(keypair(seed).public().to_peer_id());
    Publication { version, floor: version, time_milliseconds: 1, ..publication }
}

/// All that are live, in the order of their ids.
fn live(node: &Node) -> Vec<Publication> {
    let ids: Vec<_> = node.catalogue.ledger.map().ids().iter().copied().collect();
    let read = |id| SignedPublication::decode(NETWORK, &node.catalogue.ledger.signed_bytes(&id).expect("it stands"));
    let all = ids.into_iter().map(|id| read(id).expect("it was checked").into_parts().0);
    all.filter(|publication| !publication.removed).collect()
}

/// All that are current, removals left out, by label.
fn entries(node: &Node) -> Vec<Publication> {
    let current = |entry: &Publication| node.catalogue.current(&entry.publisher, &entry.key()).as_ref() == Some(entry);
    let mut entries: Vec<_> = live(node).into_iter().filter(current).collect();
    entries.sort_by(|a, b| a.label.cmp(&b.label));
    entries
}

/// Every record of the catalogue.
fn records(store: &Store) -> Vec<(Bytes, Bytes)> {
    store.records(records::PREFIX, None, usize::MAX).expect("they are read")
}

fn signed(seed: u8, network: &str, publication: Publication) -> SignedPublication {
    SignedPublication::sign(&keypair(seed), network, publication).expect("it is valid")
}

/// Puts entries of a stranger into a node's catalogue, as catch-up does.
async fn fill(node: &Node, seed: u8, names: impl IntoIterator<Item = String>) {
    for name in names {
        let outcome = node.catalogue.ledger.take(signed(seed, NETWORK, publication(seed, &name, 1))).await;
        assert_eq!(outcome, Outcome::Taken { current: true, previous: None });
    }
}

async fn next(changes: &mut Changes) -> Change {
    let change = timeout(LONG, changes.next()).await.expect("it comes");
    change.expect("the catalogue is there").expect("the log is read")
}

async fn become_equal(a: &Node, b: &Node, count: usize) {
    eventually("equal catalogues", || {
        // One after the other: two guards at once could wait for each other.
        let ids = a.catalogue.ledger.map().ids().clone();
        ids.len() == count && *b.catalogue.ledger.map().ids() == ids
    })
    .await;
}

#[tokio::test]
async fn what_is_published_is_gossiped_and_told() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    hub.connect(a.peer, b.peer);
    let mut changes = b.catalogue.changes(None).await.expect("it is told");
    let published = a.catalogue.publish(draft("x")).await.expect("it is kept");
    assert_eq!((published.version, published.publisher), (1, a.peer));
    let change = next(&mut changes).await;
    assert_eq!(change, Change { position: 1, event: Event::Added, publication: published.clone() });
    assert_eq!(entries(&b), std::slice::from_ref(&published));
    assert_eq!(b.catalogue.by_root(&published.root), std::slice::from_ref(&published));
    // Unchanged, it makes no new version; changed, it does.
    assert_eq!(a.catalogue.publish(draft("x")).await.expect("it stands"), published);
    let again = a.catalogue.publish(Draft { replicas: 4, ..draft("x") }).await.expect("it is kept");
    assert_eq!(again.version, 2);
    let change = next(&mut changes).await;
    assert_eq!(change, Change { position: 2, event: Event::Updated, publication: again });
}

#[tokio::test]
async fn names_are_versions_of_one_entry_and_labels_are_not() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    hub.connect(a.peer, b.peer);
    let named = |content: &str| Draft { name: Some("site".to_owned()), ..draft(content) };
    let first = a.catalogue.publish(named("one")).await.expect("it is kept");
    let second = a.catalogue.publish(named("two")).await.expect("it is kept");
    let other = b.catalogue.publish(named("three")).await.expect("it is kept");
    assert_eq!((first.version, second.version, other.version), (1, 2, 1));
    for node in [&a, &b] {
        eventually("both names", || node.catalogue.by_name("site").len() == 2).await;
    }
    // One's own first.
    assert_eq!(a.catalogue.by_name("site"), [second.clone(), other.clone()]);
    assert_eq!(b.catalogue.by_name("site"), [other, second]);
    // The earlier version is kept, and so is whoever has its chunks.
    assert_eq!(a.catalogue.by_root(&first.root), [first]);
    let label = Draft { label: "site".to_owned(), ..draft("four") };
    a.catalogue.publish(label).await.expect("it is kept");
    assert_eq!(a.catalogue.by_name("site").len(), 2);
}

#[tokio::test]
async fn what_cannot_be_published_is_refused() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    for bad in [
        Draft { name: Some("a/b".to_owned()), ..draft("x") },
        Draft { name: Some(a.peer.to_string()), ..draft("x") },
        Draft { replicas: 0, ..draft("x") },
    ] {
        assert!(matches!(a.catalogue.publish(bad).await, Err(PublishError::Invalid { .. })));
    }
    assert_eq!((entries(&a), records(&a.store)), (vec![], vec![]));
    // Any file name makes a label.
    let odd = a.catalogue.publish(Draft { label: "a\nb".to_owned(), ..draft("x") }).await.expect("it is kept");
    assert_eq!(odd.label, "a_b");
}

#[tokio::test]
async fn gossip_is_judged() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    let judge = |data: Vec<u8>| {
        let judged = hub.say(b.peer, a.peer, TOPIC, data.into());
        async move { timeout(LONG, judged).await.expect("it is judged").expect("not dropped") }
    };
    let say = |version| announce::encode(&signed(3, NETWORK, publication(3, "x", version)));
    assert_eq!(judge(say(2)).await, Verdict::Accept);
    assert_eq!(judge(say(2)).await, Verdict::Ignore);
    assert_eq!(judge(say(1)).await, Verdict::Ignore);
    assert_eq!(judge(say(3)).await, Verdict::Accept);
    for at in 0..say(4).len() {
        let mut tampered = say(4);
        tampered[at] ^= 4;
        // The first three are the formats and the flags: then only a later version can tell whether it is valid.
        let verdict = if at < 3 { Verdict::Ignore } else { Verdict::Reject };
        assert_eq!(judge(tampered).await, verdict, "byte {at}");
    }
    assert_eq!(judge(announce::encode(&signed(3, "other", publication(3, "x", 9)))).await, Verdict::Reject);
    assert_eq!(judge(vec![]).await, Verdict::Reject);
    assert_eq!(judge(vec![7; 60_000]).await, Verdict::Ignore);
    assert_eq!(judge(vec![1; 60_000]).await, Verdict::Ignore);
    assert_eq!(judge([&[1, 2, 0, 0, 3][..], &[0; 60_000]].concat()).await, Verdict::Reject);
    assert_eq!(entries(&a), [publication(3, "x", 3)]);
}

#[tokio::test]
async fn disjoint_catalogues_become_equal() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    fill(&a, 3, (0..200).map(|n| format!("a {n}"))).await;
    fill(&b, 4, (0..300).map(|n| format!("b {n}"))).await;
    for (node, seed) in [(&a, 5), (&b, 5)] {
        fill(node, seed, (0..50).map(|n| format!("both {n}"))).await;
    }
    hub.connect(a.peer, b.peer);
    become_equal(&a, &b, 550).await;
    assert_eq!(entries(&a), entries(&b));
}

#[tokio::test]
async fn who_was_away_gets_all_whichever_side_it_is() {
    for (full, empty) in [(1, 2), (2, 1)] {
        let hub = Fabric::sparse();
        let (a, b) = (node(&hub, full).await, node(&hub, empty).await);
        fill(&a, 3, (0..5_000).map(|n| format!("a {n}"))).await;
        let mut changes = b.catalogue.changes(None).await.expect("it is told");
        hub.connect(a.peer, b.peer);
        become_equal(&a, &b, 5_000).await;
        // Who looks only now is told all of them, though so many do not wait for anybody.
        for position in 1..=5_000 {
            assert_eq!(next(&mut changes).await.position, position);
        }
    }
}

#[tokio::test]
async fn each_version_and_removal_wins_in_catch_up() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    let put = async |node: &Node, publication| node.catalogue.ledger.take(signed(3, NETWORK, publication)).await;
    put(&a, publication(3, "x", 1)).await;
    put(&b, publication(3, "x", 2)).await;
    put(&a, Publication { removed: true, ..publication(3, "y", 2) }).await;
    put(&b, publication(3, "y", 1)).await;
    hub.connect(a.peer, b.peer);
    become_equal(&a, &b, 2).await;
    assert_eq!(entries(&a), [publication(3, "x", 2)]);
}

#[tokio::test]
async fn what_gossip_loses_comes_within_seconds() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    hub.connect(a.peer, b.peer);
    a.catalogue.publish(draft("heard")).await.expect("it is kept");
    become_equal(&a, &b, 1).await;
    hub.mute(a.peer);
    a.catalogue.publish(draft("lost")).await.expect("it is kept");
    become_equal(&a, &b, 2).await;
}

#[tokio::test]
async fn it_spreads_along_a_chain_without_gossip() {
    let hub = Fabric::sparse();
    let (a, b, c) = (node(&hub, 1).await, node(&hub, 2).await, node(&hub, 3).await);
    hub.connect(b.peer, c.peer);
    hub.connect(a.peer, b.peer);
    for node in [&a, &b, &c] {
        hub.mute(node.peer);
    }
    a.catalogue.publish(draft("x")).await.expect("it is kept");
    become_equal(&a, &c, 1).await;
}

#[tokio::test]
async fn after_a_restart_all_is_there_and_a_lost_log_is_filled_again() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    let own = a.catalogue.publish(Draft { replicas: 2, ..draft("own") }).await.expect("it is kept");
    let own = Publication { version: 2, floor: 2, replicas: 3, ..own };
    let second = a.catalogue.publish(draft("own")).await.expect("it is kept");
    assert_eq!(Publication { time_milliseconds: own.time_milliseconds, ..second }, own);
    fill(&a, 3, (0..20).map(|n| format!("a {n}"))).await;
    let before = entries(&a);
    a.catalogue.ledger.flushed().await.expect("it is on disk");
    assert!(a.workers.stop(LONG).await);

    // Others' too: they are in the log, and nobody else has to have them.
    let a = start(&hub, a.keypair, a.store).await;
    assert_eq!(entries(&a), before);
    hub.connect(a.peer, b.peer);
    become_equal(&a, &b, 21).await;
    assert!(a.workers.stop(LONG).await);

    let lost = records(&a.store).into_iter().map(|(key, _)| (key, None)).collect();
    a.store.change_records(lost).await.expect("they are removed");
    let a = start(&hub, a.keypair, a.store).await;
    assert_eq!(entries(&a).len(), 0);
    hub.connect(a.peer, b.peer);
    become_equal(&a, &b, 21).await;
    assert_eq!(entries(&a), before);
}

#[tokio::test]
async fn entries_of_another_network_are_left_out_when_loading() {
    let hub = Fabric::sparse();
    let store = Store::in_memory(1 << 20);
    let keep = async |key: Bytes, network: &str, bytes: &[u8]| {
        let signed_bytes = Bytes::copy_from_slice(bytes);
        let network = records::network_tag(network);
        let value = records::Value { position: 1, event: Some(Event::Added), network, signed_bytes };
        store.put_record(key, value.encode()).await.expect("it is kept");
    };
    let foreign = signed(3, "other", publication(3, "x", 1));
    keep(records::key(&foreign.publication().version_key()), "other", foreign.bytes()).await;
    keep(Bytes::from_static(b"publication/noise"), NETWORK, b"\x02\x00noise").await;
    // What a later version wrote stays for it to read again.
    keep(Bytes::from_static(b"publication/later"), NETWORK, b"\x03later").await;
    // One that stands elsewhere than its key says is none.
    let good = signed(3, NETWORK, publication(3, "y", 1));
    keep(Bytes::from_static(b"publication/astray"), NETWORK, good.bytes()).await;
    let before = records(&store).len();
    let a = start(&hub, keypair(1), store.clone()).await;
    assert_eq!((entries(&a), before, records(&a.store).len()), (vec![], 4, 3));
}

#[tokio::test]
async fn a_lost_log_never_makes_a_version_twice() {
    let hub = Fabric::sparse();
    let b = node(&hub, 2).await;
    // The network remembers version 7 of what a node with an empty disk publishes anew before it is connected.
    let old = Publication { name: Some("site".to_owned()), ..publication(1, "old", 7) };
    b.catalogue.ledger.take(signed(1, NETWORK, old)).await;
    let a = node(&hub, 1).await;
    let new = Draft { name: Some("site".to_owned()), ..draft("new") };
    assert_eq!(a.catalogue.publish(new).await.expect("it is kept").version, 1);
    hub.connect(a.peer, b.peer);
    let root = draft("new").root;
    for node in [&a, &b] {
        eventually("the later word", || {
            node.catalogue.by_name("site").first().is_some_and(|entry| entry.version == 8 && entry.root == root)
        })
        .await;
    }
    // And it is in the log again.
    a.catalogue.ledger.flushed().await.expect("it is on disk");
    let current = a.catalogue.by_name("site").remove(0);
    let record = a.store.record(&records::key(&current.version_key())).expect("it is read").expect("it is in the log");
    let value = records::Value::decode(&record).expect("it is a publication");
    assert_eq!(SignedPublication::decode(NETWORK, &value.signed_bytes).expect("it is valid").publication(), &current);
}

#[tokio::test]
async fn it_stops() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    hub.connect(a.peer, b.peer);
    assert!(a.workers.stop(LONG).await, "it stops");
    assert_eq!(entries(&a), []);
}
