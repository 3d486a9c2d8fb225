//! A catalogue that is read from the log: whole and in pieces, moved in bounded steps, and what is lost of it on the disk.

use std::collections::BTreeSet;

use futures::{AsyncWriteExt as _, StreamExt as _};
use p2p_protocol::{
    reconcile::{IdSet, MIN_MESSAGE_BYTES, respond},
    wire::{sync::Frame, turns::Turn as _},
};

use super::*;

/// More than is sorted before it is shown, than may wait to be written, and than a comparison's answer lists.
const MANY: usize = 20_000;

async fn listed(node: &Node) -> Vec<Publication> {
    node.catalogue.list().map(|entry| entry.expect("it is read")).collect().await
}

#[tokio::test]
async fn twenty_thousand_are_moved_in_pieces_and_the_rest_after_a_cut() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    fill(&a, 3, (0..MANY).map(|number| number.to_string())).await;
    hub.connect(a.peer, b.peer);
    eventually("a part of it", || b.catalogue.ledger.map().len() >= MANY / 4).await;
    hub.sever(a.peer, b.peer);
    eventually("the session is over", || b.catalogue.ledger.state().queue.is_empty()).await;
    let at_the_cut = b.catalogue.ledger.map().len();
    assert!((MANY / 4..MANY).contains(&at_the_cut), "{at_the_cut}: what was moved before the cut stays");
    hub.connect(a.peer, b.peer);
    become_equal(&a, &b, MANY).await;
    assert_eq!(b.catalogue.ledger.position(), MANY as u64, "each was taken once");
    b.catalogue.ledger.flushed().await.expect("it is on disk");
    assert!(b.catalogue.ledger.state().is_settled(), "nothing is held in memory that is on disk");

    // All of it is shown, each once, and a restart finds all of it.
    let names = |entries: &[Publication]| entries.iter().map(|entry| entry.label.clone()).collect::<BTreeSet<_>>();
    let all = listed(&b).await;
    assert_eq!((all.len(), names(&all).len()), (MANY, MANY));
    assert!(!all.is_sorted_by_key(|entry| &entry.label), "so many are not sorted: that would hold all of them");
    let mut pages = b.catalogue.live_pages();
    let mut live = 0;
    while let Some(page) = pages.next().await {
        let page = page.expect("it is read");
        assert!(page.len() <= 512);
        live += page.len();
    }
    assert_eq!(live, MANY);
    assert!(b.workers.stop(LONG).await);
    let b = start(&hub, b.keypair, b.store).await;
    assert_eq!(b.catalogue.ledger.map().ids(), a.catalogue.ledger.map().ids());
}

#[tokio::test]
async fn few_are_shown_by_name_and_none_that_was_superseded_or_removed() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    fill(&a, 3, ["b", "d", "a", "c"].map(str::to_owned)).await;
    let take = async |publication| a.catalogue.ledger.take(signed(3, NETWORK, publication)).await;
    take(Publication { floor: 1, ..publication(3, "d", 2) }).await;
    take(Publication { removed: true, ..publication(3, "b", 2) }).await;
    let shown = listed(&a).await;
    let shown: Vec<_> = shown.iter().map(|entry| (entry.label.as_str(), entry.version)).collect();
    assert_eq!(shown, [("a", 1), ("c", 1), ("d", 2)]);
    let pages: Vec<_> = a.catalogue.live_pages().collect().await;
    let live: usize = pages.into_iter().map(|page| page.expect("it is read").len()).sum();
    assert_eq!(live, 4, "what is kept of d is live too");
}

/// What it has, whoever asks is told before the disk has it.
#[tokio::test]
async fn what_waits_to_be_written_is_found_and_superseded_in_memory() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    // Nobody writes any more.
    assert!(a.workers.stop(LONG).await);
    let mut told = a.catalogue.liveness();
    let (first, second) = (publication(3, "x", 1), publication(3, "x", 2));
    for publication in [&first, &second] {
        a.catalogue.ledger.take(signed(3, NETWORK, publication.clone())).await;
        assert_eq!(a.catalogue.current(&publication.publisher, &publication.key()).as_ref(), Some(publication));
        assert_eq!(a.catalogue.by_root(&publication.root), std::slice::from_ref(publication));
    }
    assert_eq!(records(&a.store), []);
    let live: Vec<_> = a.catalogue.ledger.state().queue.take().into_iter().flat_map(|(_, item)| item.live).collect();
    assert_eq!(live, [Live::Became(first.clone()), Live::Became(second), Live::Ceased(first)]);
    assert!(told.try_recv().is_err(), "nobody is told before it is on disk");
}

#[tokio::test]
async fn what_is_lost_on_the_disk_is_forgotten_when_it_is_asked_for_and_comes_again() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    fill(&a, 3, ["x", "y"].map(str::to_owned)).await;
    hub.connect(a.peer, b.peer);
    become_equal(&a, &b, 2).await;
    hub.sever(a.peer, b.peer);
    for node in [&a, &b] {
        node.catalogue.ledger.flushed().await.expect("it is on disk");
    }
    let lost = signed(3, NETWORK, publication(3, "x", 1));
    a.store.remove_record(records::key(&lost.publication().version_key())).await.expect("it is removed");
    assert_eq!(a.catalogue.ledger.signed_bytes(&lost.id()), None);
    assert_eq!(a.catalogue.ledger.map().len(), 1, "it does not stand any more, so that it is asked for");
    hub.connect(a.peer, b.peer);
    become_equal(&a, &b, 2).await;
    assert_eq!(a.catalogue.ledger.signed_bytes(&lost.id()).as_deref(), Some(lost.bytes()));
}

/// A comparison of a million ids is not held in memory, and what it has shown is not lost with its session.
#[tokio::test]
async fn what_an_answer_shows_is_fetched_before_more_is_asked() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    let peer = keypair(9).public().to_peer_id();
    let network = hub.join(peer);
    let mut inbound = network.accept_streams(TOPIC, 4).await.expect("the hub takes it");
    hub.connect(a.peer, peer);
    let (mut stream, (_, request, asked)) = hostile::compared(&mut inbound).await;
    // As much of what it has as a short answer lists.
    let set: IdSet = (0u32..500).map(|number| *blake3::hash(&number.to_be_bytes()).as_bytes()).collect();
    let shown = respond(&set, &asked, MIN_MESSAGE_BYTES).expect("an honest message");
    stream.write_all(&Frame::Difference(shown.into()).encode(request)).await.expect("it is sent");
    let (kind, request, wanted) = hostile::hear(&mut stream).await;
    assert_eq!(kind, 0x20, "it wants them first");
    let count = wanted.len() / 32;
    assert!((10..100).contains(&count), "{count}");
    // None stands any more; only then it asks for the rest.
    let none = Frame::Entries { answered: count as u16, entries: vec![] };
    stream.write_all(&none.encode(request)).await.expect("it is sent");
    assert_eq!(hostile::hear(&mut stream).await.0, 0x10);
}
