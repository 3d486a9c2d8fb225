//! Versions, removals and what is told of them; what is on disk; who confirms.

use p2p_protocol::catalogue::{Class, EntryKey};

use super::{ledger::Next, *};

fn named(content: &str, keep: u64) -> Draft {
    Draft { name: Some("site".to_owned()), keep, ..draft(content) }
}

fn site(node: &Node) -> EntryKey {
    EntryKey::named(&node.peer, "site")
}

/// The versions that stand under the name on `at`, as `of` published them.
fn versions(at: &Node, of: &Node) -> Vec<u64> {
    at.catalogue.history(&of.peer, &site(of)).iter().map(|version| version.version).collect()
}

#[tokio::test]
async fn as_many_versions_are_kept_as_is_said() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    hub.connect(a.peer, b.peer);
    for (content, keep, expected) in [
        ("one", 2, vec![1]),
        ("two", 2, vec![2, 1]),
        ("three", 2, vec![3, 2]),
        ("four", 0, vec![4, 3, 2]),
        ("five", 10, vec![5, 4, 3, 2]),
        // Unchanged, and nothing of it is to go.
        ("five", 10, vec![5, 4, 3, 2]),
        // Unchanged, but fewer are to stay: that is said by a version.
        ("five", 1, vec![6]),
        ("five", 1, vec![6]),
    ] {
        a.catalogue.publish(named(content, keep)).await.expect("it is kept");
        assert_eq!(versions(&a, &a), expected, "{content}");
        eventually("the same there", || versions(&b, &a) == expected).await;
        a.catalogue.ledger.flushed().await.expect("it is on disk");
        assert_eq!(records(&a.store).len(), expected.len(), "what does not stand is not on disk");
    }
    // Without a name there is nothing to keep.
    a.catalogue.publish(draft("x")).await.expect("it is kept");
    let second = a.catalogue.publish(Draft { replicas: 4, ..draft("x") }).await.expect("it is kept");
    assert_eq!((second.version, a.catalogue.history(&a.peer, &second.key()).len()), (2, 1));
}

#[tokio::test]
async fn what_is_removed_is_gone_everywhere_until_it_is_restored() {
    let hub = Fabric::sparse();
    let (a, b, c) = (node(&hub, 1).await, node(&hub, 2).await, node(&hub, 3).await);
    hub.connect(a.peer, b.peer);
    a.catalogue.publish(named("one", 10)).await.expect("it is kept");
    let two = a.catalogue.publish(named("two", 10)).await.expect("it is kept");
    become_equal(&a, &b, 2).await;
    let mut changes = b.catalogue.changes(None).await.expect("it is told");
    let removed = a.catalogue.withdraw(site(&a)).await.expect("it is kept");
    assert_eq!((removed.version, removed.floor, removed.removed, removed.root), (3, 3, true, two.root));
    let change = next(&mut changes).await;
    assert_eq!((change.event, &change.publication), (Event::Removed, &removed));
    assert_eq!((entries(&b), b.catalogue.by_root(&two.root)), (vec![], vec![]));
    assert_eq!((versions(&b, &a), versions(&a, &a)), (vec![3], vec![3]));
    assert!(matches!(a.catalogue.withdraw(site(&a)).await, Err(PublishError::Nothing)));
    assert!(matches!(a.catalogue.restore(site(&a), Some(2)).await, Err(PublishError::Nothing)));
    // Who was away is told of the removal, and never of what it removed.
    hub.connect(b.peer, c.peer);
    eventually("it caught up", || versions(&c, &a) == [3]).await;
    assert_eq!(entries(&c), vec![]);

    let restored = a.catalogue.restore(site(&a), None).await.expect("it is kept");
    assert_eq!((restored.version, restored.root, restored.removed), (4, two.root, false));
    let change = next(&mut changes).await;
    assert_eq!((change.event, change.publication), (Event::Added, restored.clone()));
    for node in [&a, &b, &c] {
        eventually("it is back", || node.catalogue.by_name("site") == std::slice::from_ref(&restored)).await;
    }
    assert!(matches!(a.catalogue.restore(site(&a), None).await, Err(PublishError::Stands(_))));
}

#[tokio::test]
async fn an_earlier_version_comes_back_as_the_newest() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    let one = a.catalogue.publish(named("one", 10)).await.expect("it is kept");
    a.catalogue.publish(named("two", 10)).await.expect("it is kept");
    let again = a.catalogue.restore(site(&a), Some(1)).await.expect("it is kept");
    assert_eq!((again.version, again.root, versions(&a, &a)), (3, one.root, vec![3, 2, 1]));
    // It is the newest already.
    assert_eq!(a.catalogue.restore(site(&a), Some(3)).await.expect("it stands").version, 3);
    assert!(matches!(a.catalogue.restore(site(&a), Some(9)).await, Err(PublishError::Nothing)));
}

#[tokio::test]
async fn changes_are_told_from_a_position_on_over_a_restart() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    for content in ["one", "two"] {
        a.catalogue.publish(named(content, 1)).await.expect("it is kept");
    }
    a.catalogue.publish(draft("x")).await.expect("it is kept");
    fill(&a, 3, ["y".to_owned()]).await;
    a.catalogue.publish(Draft { name: Some("gone".to_owned()), ..draft("z") }).await.expect("it is kept");
    a.catalogue.withdraw(EntryKey::named(&a.peer, "gone")).await.expect("it is kept");
    let told = async |node: &Node, since: u64, count: usize| {
        let mut changes = node.catalogue.changes(Some(since)).await.expect("it was there");
        let mut told = Vec::new();
        for _ in 0..count {
            let change = next(&mut changes).await;
            told.push((change.position, change.event, change.publication.label));
        }
        told
    };
    let label = |label: &str| label.to_owned();
    let all = [
        (2, Event::Updated, label("two")),
        (3, Event::Added, label("x")),
        (4, Event::Added, label("y")),
        (6, Event::Removed, label("z")),
    ];
    assert_eq!(told(&a, 0, 4).await, all);
    assert_eq!(told(&a, 3, 2).await, all[2..]);
    assert!(matches!(a.catalogue.changes(Some(7)).await, Err(SinceError::Ahead { asked: 7, last: 6 })));
    assert!(a.workers.stop(LONG).await);

    let a = start(&hub, a.keypair, a.store).await;
    assert_eq!(told(&a, 0, 4).await, all);
    // What comes now goes on after the last, and after the past.
    let mut changes = a.catalogue.changes(Some(4)).await.expect("it was there");
    a.catalogue.publish(draft("new")).await.expect("it is kept");
    assert_eq!(next(&mut changes).await.position, 6);
    let change = next(&mut changes).await;
    assert_eq!((change.position, change.publication.label.as_str()), (7, "new"));
}

#[tokio::test]
async fn what_is_being_written_when_the_past_is_asked_for_is_told_once() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    // Nothing of this is on disk yet: nobody else had a turn.
    fill(&a, 3, (0..3).map(|number| number.to_string())).await;
    assert_eq!(records(&a.store), []);
    let mut changes = a.catalogue.changes(Some(0)).await.expect("it was there");
    a.catalogue.publish(draft("new")).await.expect("it is kept");
    for position in 1..=4 {
        assert_eq!(next(&mut changes).await.position, position);
    }
}

#[tokio::test]
async fn who_takes_changes_too_slowly_misses_none_that_stands() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    fill(&a, 3, ["before".to_owned()]).await;
    let mut changes = a.catalogue.changes(None).await.expect("it is told");
    // More than wait for a slow receiver.
    fill(&a, 3, (0..1500).map(|number| number.to_string())).await;
    a.catalogue.publish(draft("last")).await.expect("it is kept");
    for position in 2..=1502 {
        assert_eq!(next(&mut changes).await.position, position);
    }
    a.catalogue.publish(draft("live")).await.expect("it is kept");
    assert_eq!(next(&mut changes).await.position, 1503);
}

#[tokio::test]
async fn a_position_is_never_given_twice() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    // Kept versions below the current one have positions too, and this one is pushed out by its successor's floor.
    let take = async |version: u64, floor: u64| {
        let publication = Publication { floor, ..publication(3, "x", version) };
        a.catalogue.ledger.take(signed(3, NETWORK, publication)).await
    };
    take(5, 2).await;
    take(3, 1).await;
    take(6, 6).await;
    a.catalogue.ledger.flushed().await.expect("it is on disk");
    assert!(a.workers.stop(LONG).await);
    // As if the last one had been pushed out for want of room.
    let last = records::key(&publication(3, "x", 6).version_key());
    a.store.remove_record(last).await.expect("it is removed");
    let a = start(&hub, a.keypair, a.store).await;
    let mut changes = a.catalogue.changes(None).await.expect("it is told");
    a.catalogue.publish(draft("new")).await.expect("it is kept");
    assert_eq!(next(&mut changes).await.position, 4);
}

#[tokio::test]
async fn what_a_crash_left_over_is_removed_at_the_start() {
    let hub = Fabric::sparse();
    let store = Store::in_memory(1 << 20);
    for (version, floor) in [(1, 1), (2, 1), (3, 3)] {
        let signed = signed(3, NETWORK, Publication { floor, ..publication(3, "x", version) });
        let signed_bytes = Bytes::copy_from_slice(signed.bytes());
        let network = records::network_tag(NETWORK);
        let value = records::Value { position: version, event: Some(Event::Added), network, signed_bytes };
        store.put_record(records::key(&signed.publication().version_key()), value.encode()).await.expect("it is kept");
    }
    let a = start(&hub, keypair(1), store).await;
    assert_eq!((entries(&a).len(), records(&a.store).len()), (1, 1));
}

#[tokio::test]
async fn who_confirms_has_it_on_disk() {
    let hub = Fabric::sparse();
    let (a, b, c) = (node(&hub, 1).await, node(&hub, 2).await, node(&hub, 3).await);
    for node in [&a, &b, &c] {
        hub.mute(node.peer);
    }
    hub.connect(a.peer, b.peer);
    hub.connect(a.peer, c.peer);
    let published = a.catalogue.publish(draft("x")).await.expect("it is kept");
    let away = keypair(9).public().to_peer_id();
    let confirmed = a.sync.confirm(&published, vec![b.peer, away, a.peer, c.peer], 3).await;
    assert_eq!((confirmed.copies, confirmed.failures.len(), confirmed.failures[0].0), (3, 1, away));
    for node in [&b, &c] {
        assert_eq!(records(&node.store).len(), 1, "it is on disk before that is said");
        assert_eq!(entries(node), std::slice::from_ref(&published));
    }
    // Who has it already says so too, and no more are asked than there are to be.
    let again = a.sync.confirm(&published, vec![b.peer, c.peer, away], 2).await;
    assert_eq!((again.copies, again.failures), (2, vec![]));
    let short = a.sync.confirm(&published, vec![away, b.peer], 2).await;
    assert_eq!((short.copies, short.failures.len()), (1, 1));
    // It stands in memory where the disk fails, and is not confirmed.
    b.store.close().await.expect("it closes");
    let second = a.catalogue.publish(draft("y")).await.expect("it is kept");
    let confirmed = a.sync.confirm(&second, vec![b.peer], 1).await;
    assert_eq!((confirmed.copies, confirmed.failures.len(), b.catalogue.ledger.map().len()), (0, 1, 2));
}

#[tokio::test]
async fn what_could_not_be_written_is_tried_again_in_its_order_and_own_publications_are_given_up() {
    let hub = Fabric::sparse();
    let a = node(&hub, 1).await;
    // Nobody writes any more.
    assert!(a.workers.stop(LONG).await);
    let ledger = a.catalogue.ledger.clone();
    fill(&a, 3, ["x".to_owned()]).await;
    let own = draft("own").into_publication(a.peer);
    let own = Publication { version: 1, floor: 1, ..own };
    let publishing = ledger.clone();
    let publishing = tokio::spawn(async move { publishing.publish(own.key(), |_, _| Ok(Next::Publish(own))).await });
    eventually("it waits to be written", || ledger.position() == 2).await;
    fill(&a, 3, ["y".to_owned()]).await;
    let (done, progress) = watch::channel(keep::Progress::default());
    let items = ledger.state().queue.take();
    assert_eq!(items.len(), 3);
    keep::fail(&ledger, items, StoreError::Closed, &done);
    let refused = publishing.await.expect("it ends");
    assert!(matches!(refused, Err(PublishError::Store(StoreError::Closed))), "{refused:?}");
    assert!(progress.has_changed().expect("it is there"));
    let again: Vec<u64> = ledger.state().queue.take().iter().map(|(_, item)| item.position).collect();
    assert_eq!((again, entries(&a).len()), (vec![1, 3], 2), "what nobody can keep does not stand");
}

#[tokio::test]
async fn a_full_share_is_said_and_nothing_vanishes() {
    const MOST: usize = 40;
    let has_room = |node: &Node, name: Option<&str>, keep| match node.catalogue.check_room(name, keep) {
        Ok(()) => true,
        Err(PublishError::Share(MOST)) => false,
        Err(error) => panic!("{error}"),
    };
    let hub = Fabric::sparse();
    let a = start_with(&hub, keypair(1), Store::in_memory(1 << 20), Limits::of(2 * MOST)).await;
    // Its own entries, as they come from the network: all that one may have.
    for number in 0..MOST - 1 {
        let publication = publication(1, &number.to_string(), 1);
        assert!(a.catalogue.ledger.take(signed(1, NETWORK, publication)).await.is_taken());
    }
    assert!(has_room(&a, None, 10) && has_room(&a, Some("site"), 10));
    a.catalogue.publish(named("one", 10)).await.expect("the last one");
    assert!(!has_room(&a, None, 10) && !has_room(&a, Some("site"), 10));
    let count = live(&a).len();
    assert!(matches!(a.catalogue.publish(draft("x")).await, Err(PublishError::Share(MOST))));
    assert!(matches!(a.catalogue.publish(named("two", 10)).await, Err(PublishError::Share(MOST))));
    assert_eq!((count, live(&a).len()), (MOST, MOST));
    // What takes no more room is published, and what is removed makes some.
    assert!(has_room(&a, Some("site"), 1));
    a.catalogue.publish(named("two", 1)).await.expect("it takes the place of the first");
    a.catalogue.withdraw(site(&a)).await.expect("it takes no more room");
    assert_eq!(live(&a).len(), MOST - 1);
}

#[tokio::test]
async fn storing_peers_that_are_known_are_no_strangers() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    let class = |peer: &PeerId| a.catalogue.ledger.map().class(peer);
    assert_eq!((class(&a.peer), class(&b.peer)), (Class::Own, Class::Stranger));
    a.catalogue.know([b.peer, a.peer]);
    assert_eq!((class(&a.peer), class(&b.peer)), (Class::Own, Class::Known));
}

#[tokio::test]
async fn whoever_keeps_chunks_is_told_what_became_live_and_what_ceased_to_be() {
    let hub = Fabric::sparse();
    let (a, b) = (node(&hub, 1).await, node(&hub, 2).await);
    hub.connect(a.peer, b.peer);
    let mut told = [a.catalogue.liveness(), b.catalogue.liveness()];
    let mut live: [Vec<Publication>; 2] = Default::default();
    for content in ["one", "two", "three"] {
        a.catalogue.publish(named(content, 2)).await.expect("it is kept");
    }
    a.catalogue.publish(draft("plain")).await.expect("it is kept");
    a.catalogue.withdraw(site(&a)).await.expect("it is kept");
    a.catalogue.restore(site(&a), None).await.expect("it is kept");
    // Three versions, of which one made room for the third; one without a name; the removal of two; and one again.
    for (node, (told, live)) in [&a, &b].into_iter().zip(told.iter_mut().zip(&mut live)) {
        for _ in 0..8 {
            match timeout(LONG, told.recv()).await.expect("it comes").expect("nobody lags") {
                Live::Became(publication) => live.push(publication),
                Live::Ceased(publication) => {
                    let at = live.iter().position(|other| *other == publication);
                    live.remove(at.expect("only what was live ceases to be"));
                }
            }
        }
        let mut stand = super::live(node);
        stand.sort_by_key(|publication| (publication.name.clone(), publication.version));
        live.sort_by_key(|publication| (publication.name.clone(), publication.version));
        assert_eq!((&stand, stand.len()), (&*live, 2));
        assert!(told.try_recv().is_err(), "nothing else is told");
    }
}
