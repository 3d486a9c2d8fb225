//! The machine against a model of a network: every want ends once, rightly, whatever happens in whatever order.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use libp2p_identity::Keypair;
use proptest::prelude::*;

use super::*;

fn peers(count: usize) -> Vec<PeerId> {
    (0..count).map(|seed| peer(u8::try_from(seed).expect("few"))).collect()
}

fn peer(seed: u8) -> PeerId {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id()
}

fn drain(machine: &mut Fetch) -> Vec<Output> {
    std::iter::from_fn(|| machine.poll_output()).collect()
}

/// How a peer of the model answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Temper {
    Has,
    Lacks,
    Breaks,
    BreaksOnce,
    Lies,
    Silent,
}

/// A small generator (Steele et al., SplitMix64): the model needs no quality, only the seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).expect("below a usize")
    }
}

#[derive(Default)]
struct Seen {
    ended: BTreeMap<WantId, Option<PeerId>>,
    in_flight: BTreeSet<(WantId, PeerId)>,
    banned: BTreeSet<PeerId>,
    broke: BTreeSet<(WantId, PeerId)>,
}

/// Runs `wants` wants against peers of these tempers until all is quiet, in an order that `seed` decides. Unless
/// `prompt`, lookups are lost now and then, and time runs out while answers are on their way.
fn run(tempers: &[Temper], extra: &[Temper], wants: u64, replicas: u8, seed: u64, prompt: bool) -> Seen {
    let ids = peers(tempers.len() + extra.len());
    let (ranked, more) = ids.split_at(tempers.len());
    let temper: BTreeMap<PeerId, Temper> = ids.iter().copied().zip(tempers.iter().chain(extra).copied()).collect();
    let mut dice = Dice(seed);
    let mut machine = Fetch::new(replicas);
    let mut now = Instant::now();
    let mut seen = Seen::default();
    let mut pending: Vec<Input> = (0..wants).map(|want| Input::Want { want, bytes: 1 << 20 }).collect();
    for _ in 0..200_000 {
        while let Some(output) = machine.poll_output() {
            match output {
                Output::Locate { want, most } => {
                    if prompt || dice.roll(20) > 0 {
                        let peers = ranked.iter().take(most).copied().collect();
                        pending.push(Input::Candidates { want, peers });
                    }
                }
                Output::Widen { want } => {
                    if prompt || dice.roll(20) > 0 {
                        let mut peers = more.to_vec();
                        peers.extend(ranked.first());
                        pending.push(Input::More { want, peers });
                    }
                }
                Output::Ask { want, peer } => {
                    assert!(!seen.ended.contains_key(&want), "want {want} is over and still asks");
                    assert!(!seen.banned.contains(&peer), "a liar is asked again");
                    assert!(seen.in_flight.insert((want, peer)), "asked twice at once");
                    assert!(seen.in_flight.iter().filter(|(of, _)| *of == want).count() <= MAX_ASKS);
                    assert!(seen.in_flight.iter().filter(|(_, of)| *of == peer).count() <= 64);
                    match temper[&peer] {
                        Temper::Has => pending.push(Input::Delivered { want, peer }),
                        Temper::Lacks => pending.push(Input::Missing { want, peer }),
                        Temper::Breaks => pending.push(Input::Failed { want, peer }),
                        Temper::BreaksOnce if seen.broke.insert((want, peer)) => {
                            pending.push(Input::Failed { want, peer });
                        }
                        Temper::BreaksOnce => pending.push(Input::Delivered { want, peer }),
                        Temper::Lies => pending.push(Input::Wrong { want, peer }),
                        Temper::Silent => {}
                    }
                }
                Output::Abandon { want, peer } => {
                    assert!(seen.in_flight.remove(&(want, peer)), "abandons what is not in flight");
                    // The answer can be on its way all the same: it stays in `pending`.
                }
                Output::Found { want, peer } => {
                    assert!(seen.ended.insert(want, Some(peer)).is_none(), "want {want} ended twice");
                }
                Output::NotFound { want, .. } => {
                    assert!(seen.ended.insert(want, None).is_none(), "want {want} ended twice");
                }
            }
        }
        if pending.is_empty() || (!prompt && dice.roll(8) == 0) {
            let Some((at, _)) = machine.poll_timeout() else {
                if pending.is_empty() {
                    break;
                }
                continue;
            };
            now = now.max(at);
            machine.handle_timeout(now);
        } else {
            let input = pending.swap_remove(dice.roll(pending.len()));
            match &input {
                Input::Delivered { want, peer } | Input::Missing { want, peer } | Input::Failed { want, peer } => {
                    seen.in_flight.remove(&(*want, *peer));
                }
                Input::Wrong { want, peer } => {
                    seen.in_flight.remove(&(*want, *peer));
                    seen.banned.insert(*peer);
                }
                _ => {}
            }
            now += Duration::from_millis(dice.roll(200) as u64);
            machine.handle(now, input);
        }
    }
    assert_eq!(machine.open(), 0, "some want never ended");
    assert_eq!((machine.asks, machine.hedges), (0, 0), "the counters of what is in flight drifted");
    assert!(seen.in_flight.is_empty());
    seen
}

fn any_temper() -> impl Strategy<Value = Temper> {
    prop_oneof![
        Just(Temper::Has),
        Just(Temper::Lacks),
        Just(Temper::Breaks),
        Just(Temper::BreaksOnce),
        Just(Temper::Lies),
        Just(Temper::Silent)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn every_want_ends_once_and_rightly(
        tempers in prop::collection::vec(any_temper(), 0..12),
        extra in prop::collection::vec(any_temper(), 0..3),
        wants in 1_u64..40,
        replicas in 1_u8..6,
        seed in any::<u64>(),
    ) {
        let seen = run(&tempers, &extra, wants, replicas, seed, false);
        prop_assert_eq!(seen.ended.len() as u64, wants);
        let ids = peers(tempers.len() + extra.len());
        let giving: BTreeSet<PeerId> = ids
            .iter()
            .zip(tempers.iter().chain(&extra))
            .filter(|(_, temper)| matches!(temper, Temper::Has | Temper::BreaksOnce))
            .map(|(id, _)| *id)
            .collect();
        for (want, end) in &seen.ended {
            if let Some(peer) = end {
                prop_assert!(giving.contains(peer), "want {} came from a peer that does not have it", want);
            }
        }
        if giving.is_empty() {
            prop_assert!(seen.ended.values().all(Option::is_none));
        }
    }

    #[test]
    fn what_an_honest_peer_has_is_found(
        mut tempers in prop::collection::vec(
            prop_oneof![Just(Temper::Lacks), Just(Temper::Lies), Just(Temper::Breaks), Just(Temper::Silent)], 0..9),
        at in any::<prop::sample::Index>(),
        wants in 1_u64..20,
        seed in any::<u64>(),
    ) {
        let place = at.index(tempers.len() + 1);
        tempers.insert(place, Temper::Has);
        let seen = run(&tempers, &[], wants, 3, seed, true);
        prop_assert!(seen.ended.values().all(Option::is_some), "{:?}", seen.ended);
    }
}

#[test]
fn the_rounds_widen_from_the_closest_to_all_and_then_beyond() {
    let ids = peers(20);
    let mut machine = Fetch::new(3);
    let now = Instant::now();
    machine.handle(now, Input::Want { want: 1, bytes: 100 });
    let (mut asked, mut located) = (Vec::new(), Vec::new());
    loop {
        let outputs = drain(&mut machine);
        match outputs.as_slice() {
            [Output::Locate { want: 1, most }] => {
                located.push((*most, asked.len()));
                let peers = ids[..18].iter().take(*most).copied().collect();
                machine.handle(now, Input::Candidates { want: 1, peers });
            }
            [Output::Ask { want: 1, peer }] => {
                asked.push(*peer);
                machine.handle(now, Input::Missing { want: 1, peer: *peer });
            }
            [Output::Widen { want: 1 }] => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, ids[..18], "nearest first, each once");
    assert_eq!(located, [(7, 0), (14, 7), (28, 14)], "more are ranked only when those before were asked");
    machine.handle(now, Input::More { want: 1, peers: vec![ids[0], ids[19]] });
    assert_eq!(drain(&mut machine), [Output::Ask { want: 1, peer: ids[19] }], "who was asked is not asked again");
    machine.handle(now, Input::Missing { want: 1, peer: ids[19] });
    assert_eq!(drain(&mut machine), [Output::NotFound { want: 1, asked: 19 }]);
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn what_is_late_is_asked_of_a_second_peer_and_the_first_answer_wins() {
    let ids = peers(3);
    let mut machine = Fetch::new(3);
    let start = Instant::now();
    machine.handle(start, Input::Want { want: 7, bytes: 100 });
    machine.handle(start, Input::Candidates { want: 7, peers: ids.clone() });
    drain(&mut machine);
    let (late, _) = machine.poll_timeout().expect("an ask is in flight");
    machine.handle_timeout(late);
    assert_eq!(drain(&mut machine), [Output::Ask { want: 7, peer: ids[1] }]);
    machine.handle(late, Input::Delivered { want: 7, peer: ids[1] });
    assert_eq!(
        drain(&mut machine),
        [Output::Abandon { want: 7, peer: ids[0] }, Output::Found { want: 7, peer: ids[1] }]
    );
    machine.handle(late, Input::Delivered { want: 7, peer: ids[0] });
    assert_eq!(drain(&mut machine), []);
}

#[test]
fn windows_grow_with_what_is_delivered_and_shrink_with_trouble() {
    let ids = peers(1);
    let mut machine = Fetch::new(1);
    let mut now = Instant::now();
    let mut next = 0;
    let mut in_flight = VecDeque::new();
    let want = |machine: &mut Fetch, now, next: &mut u64| {
        machine.handle(now, Input::Want { want: *next, bytes: 1024 });
        machine.handle(now, Input::Candidates { want: *next, peers: ids.clone() });
        *next += 1;
    };
    for _ in 0..200 {
        want(&mut machine, now, &mut next);
    }
    for _ in 0..150 {
        in_flight.extend(drain(&mut machine).into_iter().filter_map(|output| match output {
            Output::Ask { want, .. } => Some(want),
            _ => None,
        }));
        let want = in_flight.pop_front().expect("something is in flight");
        now += Duration::from_millis(1);
        machine.handle(now, Input::Delivered { want, peer: ids[0] });
    }
    assert_eq!(machine.window(&ids[0]), 64);
    drain(&mut machine);
    let want = in_flight.pop_front().expect("something is in flight");
    machine.handle(now, Input::Failed { want, peer: ids[0] });
    assert_eq!(machine.window(&ids[0]), 32);
}

#[test]
fn each_peer_is_given_as_much_as_it_delivers() {
    let ids = peers(2);
    let mut machine = Fetch::new(2);
    let start = Instant::now();
    let (wants, step) = (400_u64, Duration::from_millis(1));
    let mut given = BTreeMap::<PeerId, u64>::new();
    // A link that takes a fixed time for each chunk, one after the other: the second is five times as slow.
    let pace = [Duration::from_millis(2), Duration::from_millis(10)];
    let mut pipes = [VecDeque::<WantId>::new(), VecDeque::new()];
    let mut ready = [start; 2];
    let (mut now, mut asked, mut done) = (start, 0, 0);
    while done < wants {
        while asked < wants && machine.open() < 32 {
            machine.handle(now, Input::Want { want: asked, bytes: 1 << 20 });
            machine.handle(now, Input::Candidates { want: asked, peers: ids.clone() });
            asked += 1;
        }
        for output in drain(&mut machine) {
            match output {
                Output::Ask { want, peer } => {
                    let at = usize::from(peer == ids[1]);
                    if pipes[at].is_empty() {
                        ready[at] = now + pace[at];
                    }
                    pipes[at].push_back(want);
                }
                Output::Abandon { want, peer } => pipes[usize::from(peer == ids[1])].retain(|of| *of != want),
                Output::Found { peer, .. } => {
                    *given.entry(peer).or_default() += 1;
                    done += 1;
                }
                other => assert!(matches!(other, Output::Locate { .. }), "{other:?}"),
            }
        }
        now += step;
        for at in 0..2 {
            if now >= ready[at]
                && let Some(want) = pipes[at].pop_front()
            {
                ready[at] = now + pace[at];
                machine.handle(now, Input::Delivered { want, peer: ids[at] });
            }
        }
        if machine.poll_timeout().is_some_and(|(due, _)| due <= now) {
            machine.handle_timeout(now);
        }
    }
    let (fast, slow) = (given[&ids[0]], given[&ids[1]]);
    assert!(fast > 3 * slow && slow > wants / 20, "the fast gave {fast}, the slow {slow}");
}

#[test]
fn a_cancelled_want_leaves_nothing_behind() {
    let ids = peers(2);
    let mut machine = Fetch::new(2);
    let now = Instant::now();
    machine.handle(now, Input::Want { want: 1, bytes: 1 });
    machine.handle(now, Input::Candidates { want: 1, peers: ids.clone() });
    drain(&mut machine);
    machine.handle(now, Input::Cancel { want: 1 });
    assert_eq!(drain(&mut machine), [Output::Abandon { want: 1, peer: ids[0] }]);
    assert_eq!((machine.open(), machine.asks, machine.poll_timeout()), (0, 0, None));
    machine.handle(now, Input::Delivered { want: 1, peer: ids[0] });
    assert_eq!(drain(&mut machine), []);
}
