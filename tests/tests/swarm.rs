//! Real swarms: discovery, streams, gossip, the DHT, and bad company, in memory and on 127.0.0.1.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use bytes::Bytes;
use libp2p::identity::Keypair;
use p2p_node::net::{self, Listen, NetError, Source, TransportKind, Tuning};
use p2p_tests::{
    contract,
    swarm::{LIMIT, Options, Swarm, meet, mesh, multiaddr, networks},
};
use tokio::time::{Instant, sleep, timeout};

fn tcp() -> Options {
    Options::default().on_loopback(true, false)
}

fn tcp_port(swarm: &Swarm) -> u16 {
    swarm.listen().iter().find(|a| !net::address::is_udp(a)).and_then(net::address::port).expect("a TCP port")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_on_tcp_and_quic_keep_the_contract() {
    let swarms = mesh(2, &Options::default().on_loopback(true, true)).await;
    contract::all(&networks(&swarms)).await;
    contract::ban(&networks(&swarms)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_on_quic_alone_keep_the_contract() {
    let swarms = mesh(2, &Options::default().on_loopback(false, true)).await;
    contract::all(&networks(&swarms)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twelve_nodes_meet_through_one_and_keep_the_contract() {
    let swarms = mesh(12, &Options::default()).await;
    for swarm in &swarms {
        swarm.until("the first round over", |table| table.discovered && table.complete).await;
    }
    contract::all(&networks(&swarms)).await;
    contract::ban(&networks(&swarms)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_network_too_large_to_be_known_whole_lookups_still_find_the_nearest() {
    // Four is "too large" here, so the lookups are Kademlia's own.
    let tuning = Tuning { full_mesh: 4, ..Options::default().tuning };
    let options = Options { tuning, ..Options::default() };
    let mut swarms = vec![options.clone().start().await];
    for _ in 1..10 {
        swarms.push(options.clone().through(&swarms[0]).start().await);
    }
    for swarm in &swarms {
        swarm.until("some peers, not known whole", |table| table.discovered && !table.complete).await;
    }
    let start = Instant::now();
    // Until each has met its neighbours a lookup may miss one.
    loop {
        let (node, preimage) = (&swarms[9], b"a chunk".to_vec());
        let found = node.network.closest_peers(preimage).await.expect("a lookup that ends");
        assert!(!found.contains(&node.id()));
        if found.len() == 9 {
            break;
        }
        assert!(start.elapsed() < LIMIT, "only {} were found", found.len());
        sleep(Duration::from_millis(200)).await;
    }
    contract::closest(&networks(&swarms)).await;
}

#[tokio::test]
async fn a_lone_node_is_soon_done_looking_around() {
    let lone = Options::default().start().await;
    lone.until("the first round over", |table| table.discovered && table.complete && table.peers.is_empty()).await;

    // Nobody answers there.
    let options = Options { bootstrap: vec![multiaddr("/ip4/127.0.0.1/tcp/1")], ..tcp() };
    let lone = options.start().await;
    lone.until("the first round over", |table| table.discovered).await;
}

#[tokio::test]
async fn a_bootstrap_peer_that_comes_up_later_is_found_with_or_without_its_id() {
    let absent = tcp().start().await;
    let (addresses, bare, keypair) = (absent.addresses(), absent.listen(), absent.keypair());
    absent.driver.stop().await;
    let named = Options { bootstrap: addresses, ..tcp() }.start().await;
    let unnamed = Options { bootstrap: bare.clone(), ..tcp() }.start().await;
    for swarm in [&named, &unnamed] {
        swarm.until("the first round over", |table| table.discovered).await;
    }
    let back = Options { keypair: Some(keypair), listen: Listen::Exact(bare), ..tcp() }.restart().await;
    meet(&[back, named, unnamed]).await;
}

#[tokio::test]
async fn remembered_peers_are_tried_at_the_start() {
    let old = Options::default().start().await;
    let known = vec![(old.id(), old.listen())];
    let new = Options { known, ..Options::default() }.start().await;
    meet(&[old, new]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_dies_is_noticed_and_comes_back_with_a_new_epoch() {
    for options in [Options::default(), tcp(), Options::default().on_loopback(false, true)] {
        let mut swarms = mesh(3, &options).await;
        let dying = swarms.pop().expect("three");
        let (id, keypair, listen) = (dying.id(), dying.keypair(), dying.listen());
        let before = swarms[0].network.peers().borrow().peers[&id].epoch;
        // Dropped without a farewell, as by a kill.
        drop(dying);
        for swarm in &swarms {
            swarm.until("the dead one gone", |table| !table.peers[&id].connected).await;
        }
        let reached = swarms[0].network.dial_peer(id).await;
        assert!(matches!(reached, Err(NetError::Unreachable { .. })), "{reached:?}");
        // On sockets it comes back where it was and knows nobody: the others find it again by themselves. In memory a
        // place that was not given back stays taken, so there it comes back elsewhere and finds them.
        let back = if options.transport == TransportKind::Real {
            Options { keypair: Some(keypair), listen: Listen::Exact(listen), ..options }.restart().await
        } else {
            Options { keypair: Some(keypair), ..options }.through(&swarms[0]).start().await
        };
        for swarm in &swarms {
            swarm.until("it is back", |table| table.peers[&id].connected).await;
        }
        assert!(swarms[0].network.peers().borrow().peers[&id].epoch > before);
        drop(back);
    }
}

#[tokio::test]
async fn a_node_that_stops_says_farewell_and_answers_nobody() {
    let swarms = mesh(2, &tcp()).await;
    let [stays, leaves] = <[Swarm; 2]>::try_from(swarms).unwrap_or_else(|_| panic!("two"));
    let id = leaves.id();
    let handle = leaves.network.clone();
    timeout(Duration::from_secs(10), leaves.driver.stop()).await.expect("an end");
    stays.until("the other gone", |table| !table.peers[&id].connected).await;
    assert_eq!(handle.dial_peer(stays.id()).await, Err(NetError::Stopped));
    assert!(TcpStream::connect(("127.0.0.1", tcp_port(&stays))).is_ok());
}

#[tokio::test]
async fn nodes_of_different_networks_never_mix() {
    let other = Options { network: "other".to_owned(), ..Options::default() }.start().await;
    let ours = Options::default().start().await;
    for address in other.listen().into_iter().chain(other.addresses()) {
        let dialled = ours.network.dial(address, Source::Manual).await;
        assert!(
            matches!(&dialled, Err(NetError::WrongNetwork { reason, .. }) if reason.contains("other")),
            "{dialled:?}"
        );
    }
    // As a bootstrap peer it is no better.
    let joining = Options::default().through(&other).start().await;
    joining.until("the first round over", |table| table.discovered).await;
    for swarm in [&ours, &other, &joining] {
        assert!(swarm.network.peers().borrow().peers.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_dial_each_other_at_once_end_up_connected() {
    for options in [Options::default(), tcp()] {
        let (a, b) = (options.clone().start().await, options.start().await);
        let (to_b, to_a) = (b.addresses().remove(0), a.addresses().remove(0));
        let (first, second) = tokio::join!(a.network.dial(to_b, Source::Manual), b.network.dial(to_a, Source::Manual));
        assert_eq!((first, second), (Ok(b.id()), Ok(a.id())));
        contract::streams(&[a.network.clone(), b.network.clone()]).await;
        meet(&[a, b]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_message_goes_no_further_and_an_accepted_one_does() {
    let swarms = mesh(3, &Options::default()).await;
    contract::rejected(&networks(&swarms)).await;
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_where_it_is_said() {
    let lone = Options::default().start().await;
    let said = lone.network.publish("a topic", Bytes::from(vec![0; 64 * 1024 + 1])).await;
    assert!(matches!(said, Err(NetError::Unreachable { .. })), "{said:?}");
    lone.network.publish("a topic", Bytes::from(vec![0; 64 * 1024])).await.expect("taken, though nobody listens");
}

#[tokio::test]
async fn a_protocol_and_a_topic_have_one_taker_at_a_time() {
    let lone = Options::default().start().await;
    let protocol = "/p2p-node/test/once/1";
    let first = lone.network.accept_streams(protocol, 1).await.expect("free");
    assert!(lone.network.accept_streams(protocol, 1).await.is_err());
    drop(first);
    let start = Instant::now();
    while lone.network.accept_streams(protocol, 1).await.is_err() {
        assert!(start.elapsed() < LIMIT, "the protocol was not given up");
        sleep(Duration::from_millis(10)).await;
    }
    let first = lone.network.subscribe("a topic", 1).await.expect("free");
    assert!(lone.network.subscribe("a topic", 1).await.is_err());
    drop(first);
    lone.network.subscribe("a topic", 1).await.expect("free again");
}

#[tokio::test]
async fn a_taken_port_is_an_error_and_by_default_another_is_taken() {
    let first = Options::default().on_loopback(true, true).start().await;
    for address in first.listen() {
        let second = Options { listen: Listen::Exact(vec![address.clone()]), ..tcp() }.try_start().await;
        let error = second.err().expect("the port is taken");
        assert!(matches!(&error, NetError::Listen { address: named, .. } if *named == address), "{error}");
        assert!(error.to_string().contains("in use"), "{error}");
    }
    let port = tcp_port(&first);
    let default = Options { listen: Listen::Default { port }, ..tcp() }.start().await;
    let ports: Vec<_> = default.listen().iter().filter_map(net::address::port).collect();
    assert!(ports.len() >= 2 && ports.iter().all(|p| *p == ports[0] && *p != port), "{:?}", default.listen());
    let nonsense = Options { listen: Listen::Exact(vec![multiaddr("/ip4/127.0.0.1/sctp/1")]), ..tcp() };
    assert!(matches!(nonsense.try_start().await, Err(NetError::Listen { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_half_handshakes_hold_nothing() {
    let tuning = Tuning { handshake: Duration::from_secs(1), ..Options::default().tuning };
    let victim = Options { tuning, ..tcp() }.start().await;
    let port = tcp_port(&victim);
    let first_lines: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 4096],
        b"\x13/multistream/1.0.0\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n",
    ];
    // More than may be pending at once, so that some are turned away at the door.
    let mut raw = Vec::new();
    for number in 0..160_usize {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a listener");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket");
        // One that was turned away may be closed already.
        let _ = stream.write_all(first_lines[number % first_lines.len()]);
        raw.push(stream);
    }
    // Each is closed by the node in the end.
    let closed = tokio::task::spawn_blocking(move || {
        raw.into_iter().all(|mut stream| {
            let mut said = Vec::new();
            // A reset is an end too; only a timeout is not.
            !matches!(stream.read_to_end(&mut said), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        })
    });
    assert!(closed.await.expect("no panic"), "a half-open connection was held");
    let friend = tcp().through(&victim).start().await;
    let swarms = [victim, friend];
    meet(&swarms).await;
    contract::streams(&networks(&swarms)).await;
}

#[tokio::test]
async fn a_dial_fails_with_a_sentence() {
    let node = tcp().start().await;
    let refused = node.network.dial(multiaddr("/ip4/127.0.0.1/tcp/1"), Source::Manual).await.expect_err("nobody");
    assert!(refused.to_string().contains("refused"), "{refused}");
    let own = node.network.dial(node.listen().remove(0), Source::Manual).await.expect_err("itself");
    assert!(own.to_string().contains("this node itself"), "{own}");
    let other = tcp().start().await;
    let wrong = Keypair::generate_ed25519().public().to_peer_id();
    let address = other.listen().remove(0).with_p2p(wrong).expect("no other peer id");
    let wrong = node.network.dial(address, Source::Manual).await.expect_err("another peer");
    assert!(wrong.to_string().contains("another peer"), "{wrong}");
    assert!(node.network.dial(multiaddr("/ip4/127.0.0.1/tcp/1/ws"), Source::Manual).await.is_err());
    let manual = node.network.dial(other.listen().remove(0), Source::Manual).await.expect("reachable");
    node.until("it, found by hand", |table| table.peers.get(&manual).is_some_and(|p| p.source == Source::Manual)).await;
    other
        .until("the caller, who came in", |table| {
            table.peers.get(&node.id()).is_some_and(|p| p.source == Source::Incoming)
        })
        .await;
}
