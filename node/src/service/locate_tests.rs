//! Following the table, greeting, and finding by region where not everybody is known.

use p2p_protocol::{
    Chunk, Codec,
    placement::{Candidate, closest},
};

use super::*;
use crate::{
    net::simulated::Fabric,
    service::rig::{ROOMY, Serve as _, eventually, peer},
};

fn hash(seed: u32) -> Multihash {
    Chunk::new(Codec::Raw, seed.to_be_bytes().to_vec()).expect("it is short").cid().hash
}

#[tokio::test(start_paused = true)]
async fn storing_peers_are_ranked_and_counted_as_they_come_and_go() {
    let fabric = Fabric::default();
    let (network, _, transfer) = fabric.serve(1, ROOMY).await;
    let locate = Locate::start(network, transfer, true, &Layer::alone());
    locate.discovered().await;
    assert_eq!((locate.reachable(), locate.seen(), locate.missing()), (0, 1, vec![]));
    assert_eq!(locate.ranked(&hash(1), usize::MAX).await, [peer(1)]);
    let mut changes = locate.changes();
    let _two = fabric.serve(2, ROOMY).await;
    let _client = fabric.serve(3, 0).await;
    eventually("the storing one is known", || locate.reachable() == 1).await;
    assert!(changes.has_changed().expect("it lives"));
    changes.mark_unchanged();
    eventually("the client was greeted", || locate.shared.table().is_connected(&peer(3))).await;
    assert_eq!((locate.reachable(), locate.seen()), (1, 2), "a client is not counted");
    for seed in 0..20 {
        let ranked = locate.ranked(&hash(seed), usize::MAX).await;
        let key = Key::from(&hash(seed));
        assert_eq!(ranked.len(), 2);
        assert!(Key::from(&ranked[0]).distance(&key) < Key::from(&ranked[1]).distance(&key));
    }
    fabric.leave(peer(2));
    eventually("it is gone", || locate.reachable() == 0).await;
    assert!(changes.has_changed().expect("it lives"));
    assert_eq!((locate.seen(), locate.missing()), (2, vec![peer(2)]));
    tokio::time::sleep(Duration::from_secs(3590)).await;
    assert_eq!(locate.seen(), 2);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!((locate.seen(), locate.missing()), (1, vec![]));
    fabric.back(peer(2));
    eventually("it is back", || locate.reachable() == 1).await;
    assert_eq!(fabric.lookups(), 0, "everybody is known: no lookup");
}

#[tokio::test(start_paused = true)]
async fn storing_peers_of_an_earlier_run_count_until_an_hour_is_over() {
    let fabric = Fabric::default();
    let (network, _, transfer) = fabric.serve(1, ROOMY).await;
    let locate = Locate::start(network, transfer, true, &Layer::alone());
    let minutes = |count: u64| Duration::from_secs(60 * count);
    locate.recall([(peer(2), minutes(0)), (peer(3), minutes(50)), (peer(4), minutes(61)), (peer(5), minutes(1))]);
    assert_eq!((locate.reachable(), locate.seen(), locate.missing().len()), (0, 4, 3));
    assert_eq!(locate.ranked(&hash(1), usize::MAX).await, [peer(1)], "none of them is here to take a chunk");
    let _two = fabric.serve(2, ROOMY).await;
    let _no_longer = fabric.serve(5, 0).await;
    eventually("both were greeted", || locate.missing() == [peer(3)]).await;
    assert_eq!((locate.met(), locate.seen()), (BTreeMap::from([(peer(2), minutes(0))]), 3));
    tokio::time::sleep(minutes(11)).await;
    assert_eq!((locate.missing(), locate.seen()), (vec![], 2));
}

#[tokio::test(start_paused = true)]
async fn where_not_all_are_known_the_nearest_are_found_with_a_lookup_a_region() {
    let fabric = Fabric::sparse();
    let mut others = Vec::new();
    for seed in 2..62 {
        others.push(fabric.serve(seed, ROOMY).await);
    }
    let (network, _, transfer) = fabric.serve(1, ROOMY).await;
    let locate = Locate::start(network, transfer, true, &Layer::alone());
    let all: Vec<Candidate> = (1..62).map(|seed| Candidate::from(peer(seed))).collect();
    for seed in 0..400 {
        let ranked = locate.ranked(&hash(seed), usize::MAX).await;
        assert_eq!(ranked[..3], closest(&Key::from(&hash(seed)), &all, 3), "chunk {seed}");
    }
    let lookups = fabric.lookups();
    assert!(lookups < 30, "{lookups} lookups for 400 chunks among 61 peers");
    // A region is looked up again when a peer of it goes.
    let nearest = closest(&Key::from(&hash(1)), &all[1..], 1)[0];
    let seed = (2..62).find(|seed| peer(*seed) == nearest).expect("it is one of them");
    fabric.leave(peer(seed));
    eventually("it is gone", || !locate.shared.table().is_connected(&nearest)).await;
    let ranked = locate.ranked(&hash(1), usize::MAX).await;
    assert!(!ranked.contains(&nearest));
    let left: Vec<Candidate> = all.into_iter().filter(|candidate| candidate.peer != nearest).collect();
    assert_eq!(ranked[..3], closest(&Key::from(&hash(1)), &left, 3));
    assert_eq!(fabric.lookups(), lookups + 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_node_says_of_itself_is_heard_at_once_when_it_changes() {
    let fabric = Fabric::default();
    let (network, _, transfer) = fabric.serve(1, ROOMY).await;
    let one = Locate::start(network, transfer, true, &Layer::alone());
    let (network, store, transfer) = fabric.serve(2, 100 * 1024).await;
    transfer.introduce(Label::new("nas"));
    let two = Locate::start(network, transfer.clone(), true, &Layer::alone());
    eventually("they know each other", || (one.reachable(), two.reachable()) == (1, 1)).await;
    assert_eq!(one.label(&peer(2)), Some(Label::new("nas")));
    assert_eq!((two.label(&peer(2)), two.label(&peer(1))), (Some(Label::new("nas")), None));
    let began = Instant::now();
    let said = |full, leaving| vec![(peer(2), true, Said { storing: true, full, leaving })];
    assert_eq!(one.storing(), said(false, false));
    let mut changes = one.changes();
    changes.mark_unchanged();
    for seed in 0..60_u32 {
        let chunk = Chunk::new(Codec::Raw, [seed.to_be_bytes().to_vec(), vec![0; 1600]].concat()).expect("it is short");
        // The last are refused.
        let _ = store.put(chunk).await;
    }
    eventually("it says that it is full", || one.storing() == said(true, false)).await;
    assert!(changes.has_changed().expect("it lives"));
    two.leave(true);
    transfer.introduce(Label::new("old nas"));
    eventually("it says that it leaves", || one.storing() == said(true, true)).await;
    eventually("and its other name", || one.label(&peer(2)) == Some(Label::new("old nas"))).await;
    assert_eq!((one.reachable(), one.seen()), (0, 1), "nobody counts on it");
    assert_eq!(one.ranked(&hash(1), 9).await, [peer(1)]);
    assert_eq!(one.sources(&hash(1), 9).await.len(), 2, "and it is asked all the same");
    assert_eq!(two.ranked(&hash(1), 9).await, [peer(1)], "not even itself");
    two.leave(false);
    eventually("it stays", || one.storing() == said(true, false)).await;
    assert!(began.elapsed() < Duration::from_secs(600), "long before anybody asks again");
}

/// A session that opens between two decisions carries what held in that moment, and nobody asks again for an hour.
#[tokio::test(start_paused = true)]
async fn who_was_greeted_between_two_decisions_hears_the_last() {
    let fabric = Fabric::default();
    let (network, _, transfer) = fabric.serve(2, ROOMY).await;
    let two = Locate::start(network, transfer, true, &Layer::alone());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let decided = Instant::now();
    two.leave(true);
    // It told everybody, which is nobody.
    tokio::time::sleep(Duration::from_millis(50)).await;
    two.leave(false);
    let (network, _, transfer) = fabric.serve(1, ROOMY).await;
    let one = Locate::start(network, transfer, true, &Layer::alone());
    eventually("it was greeted by one that stays", || one.reachable() == 1).await;
    assert!(decided.elapsed() < Duration::from_secs(1), "before anybody is told again");
    two.leave(true);
    eventually("it hears that the other leaves", || one.reachable() == 0).await;
    assert!(decided.elapsed() < Duration::from_secs(600), "long before anybody asks again");
}

/// Whoever follows the table, before it does, and its machine's inputs aside.
async fn following(fabric: &Fabric) -> (Locate, Greetings) {
    let (network, _, transfer) = fabric.serve(1, ROOMY).await;
    let table = Mutex::new(Table::new(network.local(), true));
    let peers = network.peers();
    let (settled, settled_seen) = watch::channel(false);
    let (changes, changes_seen) = watch::channel(0);
    let (started, looking) = (Instant::now(), tokio::sync::Mutex::default());
    let shared = Arc::new(Shared { network, transfer, started, table, looking, changes });
    let locate = Locate { shared: shared.clone(), settled: settled_seen, changes: changes_seen };
    let (sender, heard) = mpsc::channel(1);
    // Nobody says anything through it.
    drop(sender);
    let mut listed = None;
    Layer::alone().spawn("following", |work| {
        listed = Some(work);
        std::future::ready(())
    });
    let (early, inputs, running) = (Vec::new(), VecDeque::new(), FuturesUnordered::new());
    let work = listed.expect("a worker is listed at once");
    (locate, Greetings { shared, peers, heard, early, inputs, running, settled, work })
}

#[tokio::test(start_paused = true)]
async fn the_last_word_of_a_peer_counts_also_where_an_earlier_one_came_before_it_was_known() {
    let fabric = Fabric::default();
    let (locate, mut greetings) = following(&fabric).await;
    let (_network, _, transfer) = fabric.serve(9, ROOMY).await;
    let says = |leaving| Greeting { storing: true, full: false, leaving, ..transfer.own_greeting() };
    let counts = |locate: &Locate, other| {
        let storing = locate.storing();
        storing.iter().find(|(known, ..)| *known == peer(other)).map(|(_, _, said)| !said.leaving)
    };
    // Said before it is known and after, taken in in this order.
    greetings.hear(peer(2), says(false));
    let _two = fabric.serve(2, ROOMY).await;
    eventually("it is connected", || greetings.shared.epoch(&peer(2)).is_some()).await;
    greetings.hear(peer(2), says(true));
    greetings.follow();
    assert_eq!(counts(&locate, 2), Some(false), "it leaves");
    // Both before it is known.
    [false, true].into_iter().for_each(|leaving| greetings.hear(peer(3), says(leaving)));
    assert_eq!(greetings.early.len(), 1, "nobody has more than one");
    let _three = fabric.serve(3, ROOMY).await;
    eventually("it is connected", || greetings.shared.epoch(&peer(3)).is_some()).await;
    greetings.follow();
    assert_eq!(counts(&locate, 3), Some(false), "it leaves");
    // It is asked, and answers, before the early one was looked at again.
    greetings.hear(peer(4), says(true));
    let _four = fabric.serve(4, ROOMY).await;
    eventually("it is connected", || greetings.shared.epoch(&peer(4)).is_some()).await;
    let epoch = greetings.shared.epoch(&peer(4)).expect("it is connected");
    greetings.act(Greet { peer: peer(4), epoch, anew: false });
    let answer = greetings.running.next().await.expect("it is under way");
    greetings.running.push(futures::future::ready(answer).boxed());
    greetings.peers.mark_unchanged();
    greetings.inputs.clear();
    assert!(matches!(greetings.next().await, Some(Input::Greeted { peer: answered, .. }) if answered == peer(4)));
    greetings.follow();
    assert_eq!(counts(&locate, 4), Some(true), "it stays");
}
