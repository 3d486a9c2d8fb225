//! Whom discovery dials, when, and when its first round is over.

use super::*;

fn address(port: u16) -> Multiaddr {
    format!("/ip4/10.0.0.1/tcp/{port}").parse().expect("a multiaddr")
}

fn lone(bootstrap: &[Multiaddr], tuning: Tuning, now: Instant) -> Discovery {
    Discovery::new(PeerId::random(), bootstrap, &[], false, tuning, now)
}

fn dials(intents: &[Intent]) -> usize {
    intents.iter().filter(|intent| !matches!(intent, Intent::Look { .. })).count()
}

const LATER: Duration = Duration::from_secs(1);

#[test]
fn the_first_round_of_a_lone_node_is_over_at_once_and_of_others_when_all_was_tried() {
    let now = Instant::now();
    let mut alone = lone(&[], Tuning::default(), now);
    alone.tick(now);
    assert!(alone.discovered());

    let mut joining = lone(&[address(1)], Tuning::default(), now);
    joining.tick(now);
    assert!(!joining.discovered());
    let intents = joining.intents(now);
    let [intent @ Intent::Bootstrap { .. }] = intents.as_slice() else { panic!("{intents:?}") };
    let (id, peer) = (ConnectionId::new_unchecked(1), PeerId::random());
    joining.on_dialling(intent, id);
    assert!(joining.intents(now + LATER).is_empty(), "one attempt at once");
    joining.on_established(id, peer);
    assert_eq!(joining.source(&peer), Some(Source::Bootstrap));
    joining.on_connected(peer, vec![address(1)], Source::Bootstrap, now);
    joining.tick(now);
    assert!(!joining.discovered(), "nobody looked around yet");
    let intents = joining.intents(now);
    let [Intent::Look { targets }] = intents.as_slice() else { panic!("{intents:?}") };
    let other = PeerId::random();
    joining.learn(other, vec![address(2)], Source::Kademlia, now);
    for _ in targets {
        joining.on_looked();
    }
    joining.tick(now);
    assert!(!joining.discovered(), "a peer that was found was not tried yet");
    let intents = joining.intents(now + LATER);
    assert_eq!(dials(&intents), 1);
    joining.on_dialling(&intents[0], ConnectionId::new_unchecked(2));
    assert_eq!(joining.on_failed(ConnectionId::new_unchecked(2), false, now + LATER), Some((other, 1)));
    joining.tick(now + LATER);
    assert!(joining.discovered());
}

#[test]
fn the_first_round_ends_in_time_whatever_happens() {
    let now = Instant::now();
    let mut joining = lone(&[address(1)], Tuning::default(), now);
    let intents = joining.intents(now);
    joining.on_dialling(&intents[0], ConnectionId::new_unchecked(1));
    joining.tick(now + Duration::from_secs(9));
    assert!(!joining.discovered());
    joining.tick(now + Duration::from_secs(10));
    assert!(joining.discovered());
}

#[test]
fn a_bootstrap_peer_is_tried_for_ever_with_longer_waits() {
    let start = Instant::now();
    let mut joining = lone(&[address(1)], Tuning::default(), start);
    let (mut now, mut attempts, mut id) = (start, 0, 0);
    while now < start + Duration::from_secs(3600) {
        for intent in joining.intents(now) {
            id += 1;
            joining.on_dialling(&intent, ConnectionId::new_unchecked(id));
            joining.on_failed(ConnectionId::new_unchecked(id), false, now);
            attempts += 1;
        }
        now += LATER;
    }
    assert!((50..100).contains(&attempts), "{attempts} attempts in an hour");
}

#[test]
fn a_dropped_peer_is_dialled_again_for_an_hour() {
    let now = Instant::now();
    let mut discovery = lone(&[], Tuning::default(), now);
    let peer = PeerId::random();
    discovery.on_connected(peer, vec![address(1)], Source::Incoming, now);
    assert_eq!(dials(&discovery.intents(now)), 0);
    discovery.on_lost(peer, now);
    assert_eq!(dials(&discovery.intents(now)), 0, "not in the same moment");
    assert_eq!(dials(&discovery.intents(now + Duration::from_secs(3))), 1);
    discovery.tick(now + Duration::from_secs(3601));
    assert_eq!(discovery.len(), 0);
}

#[test]
fn a_peer_of_another_network_is_forgotten_and_left_alone() {
    let now = Instant::now();
    let mut discovery = lone(&[], Tuning::default(), now);
    let peer = PeerId::random();
    assert!(discovery.learn(peer, vec![address(1)], Source::Mdns, now));
    discovery.on_foreign(peer, now);
    assert!(!discovery.learn(peer, vec![address(1)], Source::Mdns, now));
    assert_eq!(discovery.len(), 0);
    assert!(discovery.learn(peer, vec![address(1)], Source::Mdns, now + FOREIGN_FOR + LATER));
}

#[test]
fn in_a_large_network_the_nearest_are_dialled_and_what_is_known_is_bounded() {
    let now = Instant::now();
    let mut discovery = lone(&[], Tuning { full_mesh: 4, ..Tuning::default() }, now);
    for _ in 0..MAX_KNOWN + 100 {
        discovery.learn(PeerId::random(), vec![address(1)], Source::Kademlia, now);
    }
    assert_eq!(discovery.len(), MAX_KNOWN);
    let nearest = discovery.nearest();
    let intents = discovery.intents(now + LATER);
    assert_eq!(intents.len(), 4);
    assert!(intents.iter().all(|i| matches!(i, Intent::Peer { peer, .. } if nearest.contains(peer))));
}

#[test]
fn a_pinned_bootstrap_peer_stays_the_one_that_was_named() {
    let now = Instant::now();
    let named = PeerId::random();
    let pinned = address(1).with_p2p(named).expect("no other peer id");
    let mut discovery = lone(&[pinned], Tuning::default(), now);
    discovery.on_wrong_address(&named, &address(1));
    assert!(matches!(discovery.intents(now).as_slice(), [Intent::Peer { peer, .. }] if *peer == named));
}

#[test]
fn nothing_is_learnt_of_this_node_or_without_a_usable_address() {
    let now = Instant::now();
    let mut discovery = lone(&[], Tuning::default(), now);
    assert!(!discovery.learn(discovery.local, vec![address(1)], Source::Mdns, now));
    let link_local = "/ip6/fe80::1/tcp/4242".parse().expect("a multiaddr");
    assert!(!discovery.learn(PeerId::random(), vec![link_local], Source::Mdns, now));
}
