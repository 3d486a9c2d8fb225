//! Whom discovery dials, when, and when its first round is over.

use super::*;

pub(super) const SETTINGS: Settings = Settings {
    full_mesh: 64,
    mdns_first: None,
    first_round: Duration::from_secs(10),
    redial_least: Duration::from_secs(1),
    redial_most: Duration::from_secs(60),
};
const LATER: Duration = Duration::from_secs(1);

type Machine = Discovery<u16>;

/// A machine that knows nobody but `bootstrap`.
fn lone(bootstrap: &[(u16, Option<PeerId>)], settings: Settings, now: Instant) -> Machine {
    Discovery::new(PeerId::random(), bootstrap.to_vec(), Vec::new(), settings, Chance::new(1), now)
}

pub(super) fn drain(machine: &mut Machine) -> Vec<Output<u16>> {
    std::iter::from_fn(|| machine.poll_output()).collect()
}

/// What is done by `now`, if time passes and nothing happens.
fn at(machine: &mut Machine, now: Instant) -> Vec<Output<u16>> {
    machine.handle_timeout(now);
    drain(machine)
}

fn learn(machine: &mut Machine, peer: PeerId, address: u16, source: Source, now: Instant) {
    machine.handle(now, Input::Learnt { peer, addresses: vec![address], source });
}

fn connect(machine: &mut Machine, peer: PeerId, addresses: &[u16], now: Instant) {
    machine.handle(now, Input::Connected { peer, addresses: addresses.to_vec(), source: Source::Incoming });
}

#[test]
fn the_first_round_of_a_lone_node_is_over_at_once_and_of_others_when_all_was_tried() {
    let now = Instant::now();
    assert!(lone(&[], SETTINGS, now).discovered());

    let mut joining = lone(&[(1, None)], SETTINGS, now);
    assert!(!joining.discovered());
    assert_eq!(drain(&mut joining), [Output::DialBootstrap { attempt: 0, address: 1 }]);
    assert_eq!(at(&mut joining, now + LATER), [], "one attempt at once");
    let peer = PeerId::random();
    joining.handle(now, Input::Established { attempt: 0, peer });
    assert_eq!(joining.source(&peer), Some(Source::Bootstrap));
    joining.handle(now, Input::Connected { peer, addresses: vec![1], source: Source::Bootstrap });
    assert!(!joining.discovered(), "nobody looked around yet");
    let outputs = drain(&mut joining);
    let [Output::LookAround { targets }] = outputs.as_slice() else { panic!("{outputs:?}") };
    let other = PeerId::random();
    learn(&mut joining, other, 2, Source::Kademlia, now);
    for _ in targets {
        joining.handle(now, Input::Looked);
    }
    assert!(!joining.discovered(), "a peer that was found was not tried yet");
    assert_eq!(at(&mut joining, now + LATER), [Output::DialPeer { attempt: 1, peer: other, addresses: vec![2] }]);
    joining.handle(now + LATER, Input::Failed { attempt: 1, why: Failure::Unreachable });
    assert!(joining.discovered());
}

#[test]
fn the_first_round_ends_in_time_whatever_happens() {
    let now = Instant::now();
    let mut joining = lone(&[(1, None)], SETTINGS, now);
    assert_eq!(joining.poll_timeout(), Some((now + SETTINGS.first_round, "the end of the first round")));
    joining.handle_timeout(now + Duration::from_secs(9));
    assert!(!joining.discovered());
    joining.handle_timeout(now + Duration::from_secs(10));
    assert!(joining.discovered());
    assert_eq!(joining.poll_timeout(), None);
}

#[test]
fn multicast_has_its_time_before_the_first_round_is_over() {
    let (now, first) = (Instant::now(), Duration::from_millis(1500));
    let mut alone = lone(&[], Settings { mdns_first: Some(first), ..SETTINGS }, now);
    assert!(!alone.discovered());
    assert_eq!(alone.poll_timeout().map(|(at, _)| at), Some(now + first));
    alone.handle_timeout(now + first);
    assert!(alone.discovered());
}

#[test]
fn a_bootstrap_peer_is_tried_for_ever_with_longer_waits() {
    let start = Instant::now();
    let mut joining = lone(&[(1, None)], SETTINGS, start);
    let (mut now, mut attempts) = (start, 0);
    while now < start + Duration::from_secs(3600) {
        for output in drain(&mut joining) {
            let Output::DialBootstrap { attempt, .. } = output else { panic!("{output:?}") };
            joining.handle(now, Input::Failed { attempt, why: Failure::Unreachable });
            attempts += 1;
        }
        now = joining.poll_timeout().expect("it is tried again").0;
        joining.handle_timeout(now);
    }
    assert!((50..100).contains(&attempts), "{attempts} attempts in an hour");
}

#[test]
fn of_two_that_find_each_other_at_once_the_one_with_the_greater_id_waits_a_moment() {
    let now = Instant::now();
    let mut discovery = lone(&[], SETTINGS, now);
    let local = discovery.local;
    let mut others = std::iter::repeat_with(PeerId::random);
    let (greater, less) = (others.find(|peer| *peer > local), others.find(|peer| *peer < local));
    let dialled = |outputs: Vec<Output<u16>>| {
        let peer = |output: Output<u16>| match output {
            Output::DialPeer { peer, .. } => Some(peer),
            _ => None,
        };
        outputs.into_iter().find_map(peer)
    };
    for (address, other) in (1..).zip([greater, less]) {
        learn(&mut discovery, other.expect("ids are spread"), address, Source::Mdns, now);
    }
    assert_eq!(dialled(drain(&mut discovery)), greater);
    assert_eq!(dialled(at(&mut discovery, now + POLITENESS / 2)), None, "the other one dials");
    assert_eq!(dialled(at(&mut discovery, now + POLITENESS)), less);
}

#[test]
fn a_dropped_peer_is_dialled_again_for_an_hour() {
    let now = Instant::now();
    let mut discovery = lone(&[], SETTINGS, now);
    let peer = PeerId::random();
    connect(&mut discovery, peer, &[1], now);
    assert!(matches!(drain(&mut discovery).as_slice(), [Output::LookAround { .. }]));
    discovery.handle(now, Input::Lost { peer });
    assert_eq!(drain(&mut discovery), [], "not in the same moment");
    let (soon, _) = discovery.poll_timeout().expect("it is dialled again");
    assert!(soon >= now + SETTINGS.redial_least && soon <= now + SETTINGS.redial_least + POLITENESS);
    assert_eq!(at(&mut discovery, soon), [Output::DialPeer { attempt: 0, peer, addresses: vec![1] }]);
    discovery.handle(soon, Input::Failed { attempt: 0, why: Failure::Unreachable });
    // It may be starting, and dials whom it remembers then: one connection is enough.
    let dials = |outputs: Vec<Output<u16>>| outputs.iter().any(|output| matches!(output, Output::DialPeer { .. }));
    assert!(!dials(at(&mut discovery, soon + SETTINGS.redial_least * (ABSENT - 2))), "too soon");
    assert!(dials(at(&mut discovery, soon + SETTINGS.redial_least * (ABSENT + 2))), "nobody dials it");
    discovery.handle_timeout(now + Duration::from_secs(3599));
    assert_eq!(discovery.known(), 1);
    discovery.handle_timeout(now + Duration::from_secs(3600));
    assert_eq!(discovery.known(), 0);
}

#[test]
fn a_peer_that_is_away_is_taken_out_of_the_routing_table_but_not_for_this_nodes_own_limits() {
    let mut now = Instant::now();
    let mut discovery = lone(&[], SETTINGS, now);
    let peer = PeerId::random();
    learn(&mut discovery, peer, 1, Source::Mdns, now);
    let mut outputs = drain(&mut discovery);
    let failures = [Failure::Unreachable, Failure::Unreachable, Failure::Refused, Failure::Unreachable];
    for (attempt, why) in (0..).zip(failures) {
        if outputs.is_empty() {
            now = discovery.poll_timeout().expect("it is tried again").0;
            outputs = at(&mut discovery, now);
        }
        assert_eq!(outputs, [Output::DialPeer { attempt, peer, addresses: vec![1] }]);
        discovery.handle(now, Input::Failed { attempt, why });
        outputs = drain(&mut discovery);
        let expected: Vec<_> = (attempt == 3).then_some(Output::Unroute { peer }).into_iter().collect();
        assert_eq!(outputs, expected);
    }
}

#[test]
fn a_peer_of_another_network_is_forgotten_and_left_alone() {
    let now = Instant::now();
    let mut discovery = lone(&[], SETTINGS, now);
    let peer = PeerId::random();
    learn(&mut discovery, peer, 1, Source::Mdns, now);
    assert_eq!(discovery.known(), 1);
    discovery.handle(now, Input::Foreign { peer });
    learn(&mut discovery, peer, 1, Source::Mdns, now);
    assert_eq!(discovery.known(), 0);
    discovery.handle_timeout(now + FOREIGN_FOR);
    learn(&mut discovery, peer, 1, Source::Mdns, now + FOREIGN_FOR);
    assert_eq!(discovery.known(), 1);
}

#[test]
fn a_banned_peer_is_left_alone_until_its_ban_is_over_though_the_user_named_it() {
    let now = Instant::now();
    let (named, ban) = (PeerId::random(), Duration::from_secs(600));
    let mut discovery = lone(&[(1, Some(named))], SETTINGS, now);
    assert_eq!(drain(&mut discovery).len(), 1);
    discovery.handle(now, Input::Established { attempt: 0, peer: named });
    connect(&mut discovery, named, &[1], now);
    discovery.handle(now, Input::Banned { peer: named, lasts: ban });
    discovery.handle(now, Input::Lost { peer: named });
    drain(&mut discovery);
    learn(&mut discovery, named, 1, Source::Mdns, now);
    let dials = |outputs: Vec<Output<u16>>| outputs.iter().filter(|o| matches!(o, Output::DialPeer { .. })).count();
    assert_eq!((discovery.known(), dials(at(&mut discovery, now + ban - LATER))), (0, 0));
    assert_eq!(dials(at(&mut discovery, now + ban)), 1);
}

#[test]
fn those_who_are_left_alone_are_bounded_and_the_first_to_be_free_goes_first() {
    let now = Instant::now();
    let mut alone = LeftAlone::new(2);
    let [a, b, c] = [(); 3].map(|()| PeerId::random());
    alone.add(a, 2 * LATER, now);
    alone.add(a, LATER, now);
    alone.add(b, 3 * LATER, now);
    alone.expire(now + LATER);
    assert!(alone.contains(&a) && alone.contains(&b), "the longer time stands");
    alone.add(c, Duration::MAX, now);
    assert!(!alone.contains(&a) && alone.contains(&b) && alone.contains(&c));
    assert_eq!(alone.next(), Some(now + 3 * LATER));
}

#[test]
fn in_a_large_network_the_nearest_are_dialled_and_what_is_known_is_bounded() {
    let now = Instant::now();
    let mut discovery = lone(&[], Settings { full_mesh: 4, ..SETTINGS }, now);
    let mut peers: Vec<_> = (0..MAX_KNOWN + 100).map(|_| PeerId::random()).collect();
    for peer in &peers {
        discovery.known.insert(Known {
            peer: *peer,
            addresses: vec![1],
            source: Source::Kademlia,
            connected: false,
            seen: None,
            named: now,
            failures: 0,
            next: now,
            tried: false,
        });
    }
    assert_eq!(discovery.known(), MAX_KNOWN);
    let own = crate::Key::from(&discovery.local);
    peers.retain(|peer| discovery.known.get(peer).is_some());
    peers.sort_by_key(|peer| crate::Key::from(peer).distance(&own));
    let outputs = at(&mut discovery, now + LATER);
    let dialled: BTreeSet<_> = outputs
        .iter()
        .map(|output| match output {
            Output::DialPeer { peer, .. } => *peer,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(dialled, peers[..4].iter().copied().collect());
}

#[test]
fn a_pinned_bootstrap_peer_stays_the_one_that_was_named() {
    let now = Instant::now();
    let named = PeerId::random();
    let mut discovery = lone(&[(1, Some(named))], SETTINGS, now);
    assert_eq!(drain(&mut discovery), [Output::DialPeer { attempt: 0, peer: named, addresses: vec![1] }]);
    discovery.handle(now, Input::WrongAddress { peer: named, address: 1 });
    discovery.handle(now, Input::Failed { attempt: 0, why: Failure::Unreachable });
    let (next, _) = discovery.poll_timeout().expect("it is tried again");
    assert_eq!(at(&mut discovery, next), [Output::DialPeer { attempt: 1, peer: named, addresses: vec![1] }]);
}

#[test]
fn a_bootstrap_node_that_comes_back_with_another_identity_is_joined_again() {
    let now = Instant::now();
    let [old, new] = [(); 2].map(|()| PeerId::random());
    let mut discovery = lone(&[(1, None)], SETTINGS, now);
    discovery.handle(now, Input::Established { attempt: 0, peer: old });
    connect(&mut discovery, old, &[1], now);
    discovery.handle(now, Input::Lost { peer: old });
    drain(&mut discovery);
    let again = now + 2 * LATER;
    assert_eq!(at(&mut discovery, again), [Output::DialPeer { attempt: 1, peer: old, addresses: vec![1] }]);
    discovery.handle(again, Input::WrongAddress { peer: old, address: 1 });
    discovery.handle(again, Input::Failed { attempt: 1, why: Failure::Unreachable });
    let outputs = drain(&mut discovery);
    assert_eq!(outputs, [Output::DialBootstrap { attempt: 2, address: 1 }]);
    discovery.handle(again, Input::Established { attempt: 2, peer: new });
    assert_eq!(discovery.source(&new), Some(Source::Bootstrap));
}

#[test]
fn a_second_bootstrap_address_of_a_connected_peer_holds_nothing_up() {
    let now = Instant::now();
    let peer = PeerId::random();
    let mut discovery = lone(&[(1, None), (2, None)], SETTINGS, now);
    assert_eq!(drain(&mut discovery).len(), 2);
    discovery.handle(now, Input::Established { attempt: 0, peer });
    connect(&mut discovery, peer, &[1], now);
    // The other connection comes a moment later; it does not make the peer known anew.
    discovery.handle(now, Input::Established { attempt: 1, peer });
    discovery.handle(now, Input::Looked);
    assert!(discovery.discovered());
    discovery.handle(now, Input::Lost { peer });
    discovery.handle_timeout(now + Duration::from_secs(4000));
    assert_eq!(drain(&mut discovery).iter().filter(|o| matches!(o, Output::DialPeer { .. })).count(), 1);
}

#[test]
fn a_connected_peer_that_nobody_can_dial_is_not_dialled_through_its_bootstrap_address() {
    let now = Instant::now();
    let peer = PeerId::random();
    let mut discovery = lone(&[(1, Some(peer))], SETTINGS, now);
    connect(&mut discovery, peer, &[], now);
    discovery.handle(now, Input::Failed { attempt: 0, why: Failure::Busy });
    drain(&mut discovery);
    discovery.handle(now, Input::Looked);
    let outputs = at(&mut discovery, now + 5 * LATER);
    assert!(outputs.iter().all(|output| matches!(output, Output::LookAround { .. })), "{outputs:?}");
}

/// The lookups of a machine until `end`, and when; each is over at once and names nobody.
fn looks(machine: &mut Machine, mut now: Instant, end: Instant) -> Vec<(Instant, Vec<u8>)> {
    let mut looks = Vec::new();
    loop {
        while let Some(output) = machine.poll_output() {
            match output {
                Output::LookAround { targets } => {
                    for target in targets {
                        looks.push((now, target));
                        machine.handle(now, Input::Looked);
                    }
                }
                Output::DialPeer { attempt, .. } => {
                    machine.handle(now, Input::Failed { attempt, why: Failure::Unreachable });
                }
                _ => {}
            }
        }
        match machine.poll_timeout() {
            Some((at, _)) if at <= end => now = now.max(at),
            _ => return looks,
        }
        machine.handle_timeout(now);
    }
}

#[test]
fn looks_are_wide_while_there_is_news_and_rare_and_narrow_at_rest() {
    let now = Instant::now();
    let day = Duration::from_secs(24 * 60 * 60);
    let mut discovery = lone(&[], SETTINGS, now);
    for address in 0..40 {
        let (peer, source) = (PeerId::random(), Source::Kademlia);
        discovery.handle(now, Input::Connected { peer, addresses: vec![address], source });
    }
    let first = looks(&mut discovery, now, now + Duration::from_secs(100));
    let quarter = |preimage: &[u8]| Key::of(preimage).0[0] >> 6;
    let wide: BTreeSet<_> = first.iter().map(|(_, target)| quarter(target)).collect();
    assert_eq!(wide.len(), 4, "every quarter of the keyspace is looked at");
    let rest = looks(&mut discovery, now + Duration::from_secs(100), now + day * 7);
    assert!((20..=32).contains(&rest.len()), "{} lookups in a week", rest.len());
    let places: BTreeSet<_> = rest.iter().map(|(_, target)| quarter(target)).collect();
    assert_eq!(places.len(), 4, "in turn");

    // Somebody who came by itself looks for the others; one that was found may know some.
    let (later, addresses) = (now + day * 8, vec![77]);
    discovery.handle(later, Input::Connected { peer: PeerId::random(), addresses, source: Source::Incoming });
    let usual = looks(&mut discovery, later, later + Duration::from_secs(100));
    assert!(usual.len() <= 1, "{usual:?}");
    let found = Input::Connected { peer: PeerId::random(), addresses: vec![78], source: Source::Kademlia };
    discovery.handle(later, found);
    assert!(looks(&mut discovery, later, later + Duration::from_secs(100)).len() >= 10);
}

#[test]
fn a_node_that_comes_back_looks_around_only_if_most_of_whom_it_remembers_are_gone() {
    let now = Instant::now();
    for (there, looks_at_once) in [(40, false), (21, false), (20, true), (1, true)] {
        let remembered: Vec<_> = (0..40).map(|address| (PeerId::random(), vec![address])).collect();
        let mut discovery =
            Machine::new(PeerId::random(), Vec::new(), remembered.clone(), SETTINGS, Chance::new(1), now);
        for (peer, addresses) in remembered.iter().take(there) {
            let (peer, addresses, source) = (*peer, addresses.clone(), Source::Bootstrap);
            discovery.handle(now, Input::Connected { peer, addresses, source });
        }
        // Whoever is dialled is not there.
        let soon = looks(&mut discovery, now, now + Duration::from_secs(4 * 60));
        assert_eq!(!soon.is_empty(), looks_at_once, "{there} of 40: {soon:?}");
        assert!(discovery.discovered());
        let later = now + Duration::from_secs(5 * 60);
        assert!(looks_at_once || looks(&mut discovery, later, later + LATER).len() == 1);
        let found = Input::Connected { peer: PeerId::random(), addresses: vec![99], source: Source::Kademlia };
        discovery.handle(later + LATER, found);
        assert!(looks(&mut discovery, later + LATER, later + Duration::from_secs(200)).len() >= 10, "there is news");
    }
}
