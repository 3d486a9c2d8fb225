//! How nodes come to count each other for fresh names: what the argument of `protocol/src/fresh` needs of the order of
//! messages and no random history was ever found to need. The other side is written by hand, on the simulated network and
//! a paused clock.

use std::time::Duration;

use libp2p::PeerId;
use p2p_node::{
    net::{
        Network,
        simulated::{Fabric, Link, Topology, eventually, keypair},
    },
    node::{Rooms, Site},
    service::sync::begins_with,
    store::Store,
};
use p2p_protocol::{
    fresh::Member,
    wire::{
        sync::Frame,
        sync_fresh::{Ask, Told},
        version::{Hello, Spoken, Versions},
    },
};
use p2p_tests::turns::{hear, say};
use tokio::{sync::watch, time::sleep};

const NETWORK: &str = "introductions";
const MINUTE: Duration = Duration::from_secs(60);

fn spoken() -> Spoken {
    Spoken::new(NETWORK, "catalogue", Versions::up_to(1))
}

fn greeting() -> Frame {
    Frame::Greeting(Hello { version: 1, features: 0 })
}

fn peer(number: u64) -> PeerId {
    keypair(number).public().to_peer_id()
}

/// Node 0, whose log begins with its identity, in a network of others.
async fn start(fabric: &Fabric, store: &Store) -> Rooms {
    Rooms::build(fabric.join(peer(0)), store.clone(), keypair(0), Site::new(NETWORK, 0)).await.expect("the rooms stand")
}

/// Asks a node as a storing peer that knows of `members`.
async fn ask(network: &Network, node: PeerId, members: Vec<Member>) -> Told {
    let (_, mut stream) = network.open_spoken(node, &spoken()).await.expect("it takes sessions");
    say(&mut stream, 0, &greeting()).await.expect("it listens");
    say(&mut stream, 1, &Frame::Ask(Ask { stores: true, members, name: None })).await.expect("it listens");
    loop {
        match hear(&mut stream).await.expect("it answers") {
            (_, Frame::Greeting(_)) => {}
            (_, Frame::Told(told)) => return told,
            (_, other) => panic!("{other:?} is no answer"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_counts_who_asks_and_whom_the_asker_counts_before_it_answers_and_after_a_kill() {
    let (fabric, store) = (Fabric::new(1, Topology::Full, Link::LAN), Store::in_memory(64 << 20));
    begins_with(&store, &peer(0), false).await.expect("it is kept");
    let node = start(&fabric, &store).await;
    let network = fabric.join(peer(1));
    // One that is not here, so that nobody else can tell of it.
    let told = ask(&network, peer(0), vec![Member { peer: peer(2), ago_seconds: 0, complete: true }]).await;
    let counted = |told: &Told| {
        let mut peers: Vec<_> = told.members.iter().map(|member| (member.peer, member.complete)).collect();
        peers.sort_unstable();
        peers
    };
    let mut all = vec![(peer(1), false), (peer(2), true)];
    all.sort_unstable();
    assert_eq!(counted(&told), all);
    fabric.kill(peer(0));
    node.stop(Duration::from_secs(2)).await;
    let _node = start(&fabric, &store).await;
    assert_eq!(counted(&ask(&network, peer(0), Vec::new()).await), all, "it was on disk");
}

#[tokio::test(start_paused = true)]
async fn catalogues_are_compared_after_both_count_each_other_before_it_counts_as_an_introduction() {
    let (fabric, store) = (Fabric::new(1, Topology::Full, Link::LAN), Store::in_memory(64 << 20));
    begins_with(&store, &peer(0), false).await.expect("it is kept");
    // The only complete member, which compares at once before it was told of the newcomer, and later only when it may.
    let network = fabric.join(peer(1));
    let mut inbound = network.accept_spoken(&spoken(), 16).await.expect("nobody else takes it");
    let (may, may_seen) = watch::channel(false);
    let (stage, mut staged) = watch::channel("nothing");
    tokio::spawn(async move {
        let mut compared = 0;
        while let Some((_, _, mut stream)) = inbound.recv().await {
            let mut greeted = false;
            // One session after the other: it ends when the newcomer closes.
            while let Ok((request, frame)) = hear(&mut stream).await {
                let answer = match frame {
                    Frame::Greeting(_) => continue,
                    Frame::Reconcile(_) => {
                        if *stage.borrow() == "told" {
                            stage.send_replace("comparing");
                            may_seen.clone().wait_for(|may| *may).await.expect("the test goes on");
                        }
                        compared += 1;
                        // Equal everywhere: a skip of all.
                        Frame::Difference(vec![0xff, 0].into())
                    }
                    Frame::Ask(_) => {
                        assert!(compared > 0, "it has caught up");
                        stage.send_replace("told");
                        Frame::Told(Told { complete: true, own: true, stores: true, ..Told::default() })
                    }
                    other => panic!("{other:?} is no question"),
                };
                let begun = if greeted { Ok(()) } else { say(&mut stream, 0, &greeting()).await };
                greeted = true;
                if begun.is_err() || say(&mut stream, request, &answer).await.is_err() {
                    break;
                }
            }
        }
    });
    let node = start(&fabric, &store).await;
    staged.wait_for(|stage| *stage == "comparing").await.expect("it compares once it is counted");
    for _ in 0..20 {
        assert!(!node.sync.is_complete(), "what was settled between the two is not here");
        sleep(Duration::from_millis(100)).await;
    }
    may.send_replace(true);
    eventually("it is complete", MINUTE, || node.sync.is_complete()).await;
}
