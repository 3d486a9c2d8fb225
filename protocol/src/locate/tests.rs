//! The table and the greeter, each with a schedule of its own.

use libp2p_identity::Keypair;
use proptest::{collection::vec, prelude::*};

use super::{
    greeter::{COURTESY, GREETINGS, Greet, Greeter, Input},
    *,
};
use crate::machine::StateMachine as _;

const MINUTE: Duration = Duration::from_secs(60);

fn peer(seed: u8) -> PeerId {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id()
}

const HERE: Said = Said { storing: true, full: false, leaving: false };
const CLIENT: Said = Said { storing: false, ..HERE };

fn named(peer: PeerId) -> (PeerId, Label) {
    (peer, Label::default())
}

#[test]
fn storing_peers_count_while_they_are_here_and_for_an_hour_after() {
    let (mut now, mut table) = (Instant::now(), Table::new(peer(1), true));
    assert!(table.greeted(now, named(peer(2)), 1, true, HERE), "a storing peer came");
    assert!(!table.greeted(now, named(peer(3)), 1, true, CLIENT), "a client is none");
    assert!(!table.greeted(now, named(peer(2)), 1, true, HERE), "the same connection again is no news");
    assert!(table.greeted(now, named(peer(2)), 2, true, HERE), "it may have lost what it had");
    assert_eq!((table.reachable(), table.seen(now), table.missing(now)), (1, 2, vec![]));
    assert!(table.follow(now, |other| *other != peer(2)), "it left");
    now += MINUTE * 59;
    assert!(!table.follow(now, |other| *other != peer(2)));
    assert_eq!((table.reachable(), table.seen(now), table.missing(now)), (0, 2, vec![peer(2)]));
    assert_eq!(table.met(now), BTreeMap::from([(peer(2), MINUTE * 59)]));
    now += MINUTE;
    assert_eq!((table.seen(now), table.missing(now)), (1, vec![]));
}

#[test]
fn peers_of_an_earlier_run_count_but_cannot_take_a_chunk() {
    let (now, mut table) = (Instant::now(), Table::new(peer(1), true));
    table.recall(now, [(peer(2), Duration::ZERO), (peer(3), MINUTE * 61)]);
    table.follow(now, |_| true);
    assert_eq!((table.reachable(), table.seen(now), table.met(now).len()), (0, 2, 0));
    table.greeted(now, named(peer(2)), 1, true, CLIENT);
    assert_eq!((table.missing(now), table.seen(now)), (vec![], 1), "what it says now counts");
}

#[test]
fn who_leaves_can_be_asked_and_takes_nothing_more() {
    let (now, mut table) = (Instant::now(), Table::new(peer(1), true));
    let away = Said { leaving: true, ..HERE };
    table.greeted(now, (peer(2), Label::new("nas")), 1, true, HERE);
    table.greeted(now, named(peer(3)), 1, true, HERE);
    assert!(table.greeted(now, (peer(2), Label::new("nas")), 1, true, Said { full: true, ..HERE }), "it filled up");
    assert_eq!((table.reachable(), table.ranking().len(), table.seen(now)), (2, 3, 3));
    assert!(table.greeted(now, (peer(2), Label::new("nas")), 1, true, away));
    assert!(!table.greeted(now, (peer(2), Label::new("nas")), 1, true, away), "that is no news");
    assert_eq!((table.reachable(), table.seen(now), table.sources().len()), (1, 2, 3));
    assert!(table.all_storing().any(|known| known == (peer(2), true, away)));
    assert_eq!((table.label(&peer(2)), table.label(&peer(3))), (Some(Label::new("nas")), None));
    table.follow(now, |other| *other == peer(3));
    assert_eq!((table.missing(now), table.sources().len()), (vec![], 2), "it is not waited for");
    // This node itself.
    assert!(table.leave(true) && !table.leave(true));
    assert_eq!((table.reachable(), table.seen(now)), (1, 1));
    assert_eq!(table.ranking().nearest(&Key([0; 32]), 9), [peer(3)]);
    assert!(table.leave(false));
    assert_eq!((table.reachable(), table.seen(now), table.ranking().len()), (1, 2, 2));
}

#[test]
fn what_is_remembered_is_bounded_and_a_failed_lookup_is_not_repeated_at_once() {
    let (now, mut table) = (Instant::now(), Table::new(peer(1), true));
    for number in 0..KNOWN + 10 {
        let seed = *blake3::hash(&number.to_be_bytes()).as_bytes();
        let other = Keypair::ed25519_from_bytes(seed).expect("32 bytes are a key").public().to_peer_id();
        table.greeted(now, named(other), 1, false, HERE);
    }
    assert_eq!(table.known.len(), KNOWN);
    let key = Key([7; 32]);
    assert!(!table.covers(now, &key));
    table.looked_up(now, &key, &[]);
    assert!(table.covers(now, &key) && !table.covers(now + LOOKUP_AGAIN, &key));
}

/// Peer ids, one below that of peer 50 and one above.
fn pair() -> [PeerId; 2] {
    let find = |wanted: fn(&PeerId) -> bool| (60..).map(peer).find(wanted).expect("ids are spread");
    [find(|id| *id < peer(50)), find(|id| *id > peer(50))]
}

/// Runs a greeter until `end`; `answer` says what a greeting comes to. Gives all that was greeted and when.
fn greet(
    greeter: &mut Greeter,
    mut now: Instant,
    end: Instant,
    mut answer: impl FnMut(Greet) -> bool,
) -> Vec<(Instant, Greet)> {
    let mut made = Vec::new();
    loop {
        while let Some(greet) = greeter.poll_output() {
            made.push((now, greet));
            let Greet { peer, epoch, .. } = greet;
            let input = if answer(greet) { Input::Greeted { peer, epoch } } else { Input::Failed { peer, epoch } };
            greeter.handle(now, input);
        }
        match greeter.poll_timeout() {
            Some((at, _)) if at <= end => now = now.max(at),
            _ => return made,
        }
        greeter.handle_timeout(now);
    }
}

#[test]
fn everybody_is_greeted_once_a_connection_and_refreshed_however_many_there_are() {
    let (now, mut greeter) = (Instant::now(), Greeter::new(peer(99)));
    let connected: Vec<_> = (0..50).map(|seed| (peer(seed), 1)).collect();
    greeter.handle(now, Input::Peers { connected: connected.clone(), discovered: false });
    let made = greet(&mut greeter, now, now + MINUTE, |_| true);
    assert_eq!(made.iter().filter(|(_, greet)| !greet.anew).count(), 50);
    assert_eq!((made.len(), greeter.is_settled(), greeter.counts()), (50, false, (50, 50)));
    greeter.handle(now, Input::Peers { connected: connected.clone(), discovered: true });
    assert!(greeter.is_settled());
    let refreshed = greet(&mut greeter, now, now + MINUTE * 61, |_| true);
    assert!(refreshed.iter().all(|(_, greet)| greet.anew));
    assert_eq!(refreshed.len(), 50, "not only the first few of them");
    let anew: Vec<_> = connected.iter().map(|(peer, _)| (*peer, 2)).take(1).collect();
    greeter.handle(now, Input::Peers { connected: anew, discovered: true });
    assert_eq!(greet(&mut greeter, now, now + COURTESY, |_| true).len(), 1);
}

#[test]
fn of_a_pair_the_one_with_the_greater_id_is_silent_for_a_moment_and_then_for_good_if_it_heard_the_other() {
    let now = Instant::now();
    let ([low, high], waits) = (pair(), Input::Peers { connected: vec![(peer(50), 1)], discovered: true });
    let mut first = Greeter::new(low);
    first.handle(now, waits.clone());
    assert_eq!(greet(&mut first, now, now, |_| true).len(), 1);

    let mut second = Greeter::new(high);
    second.handle(now, waits.clone());
    assert!(greet(&mut second, now, now + COURTESY / 2, |_| true).is_empty() && !second.is_settled());
    second.handle(now + COURTESY / 2, Input::Heard { peer: peer(50), epoch: 0 });
    assert!(!second.is_settled(), "that was another connection");
    second.handle(now + COURTESY / 2, Input::Heard { peer: peer(50), epoch: 1 });
    assert!(second.is_settled() && greet(&mut second, now, now + MINUTE * 59, |_| true).is_empty());

    let mut unheard = Greeter::new(high);
    unheard.handle(now, waits);
    assert_eq!(greet(&mut unheard, now, now + COURTESY, |_| true).len(), 1);
}

#[test]
fn who_cannot_be_greeted_is_tried_ever_later_and_holds_up_nobody() {
    let (now, mut greeter) = (Instant::now(), Greeter::new(peer(99)));
    greeter.handle(now, Input::Peers { connected: vec![(peer(1), 1), (peer(2), 1)], discovered: true });
    let made = greet(&mut greeter, now, now + MINUTE * 10, |greet| greet.peer == peer(2));
    assert!(greeter.is_settled(), "a failure is an answer too");
    let failed: Vec<_> = made.iter().filter(|(_, greet)| greet.peer == peer(1)).map(|(at, _)| *at - now).collect();
    assert!((10..25).contains(&failed.len()), "{failed:?}");
    assert!(failed.windows(2).all(|pair| pair[1] - pair[0] <= MINUTE));
}

proptest! {
    /// Whatever comes and goes in whatever order: never more than so many at once, never one peer twice at once, and
    /// with answers that come, everybody who is connected is greeted.
    #[test]
    fn a_greeter_keeps_its_laws(steps in vec((0..30_u8, 0..3_u64, any::<bool>(), 0..2000_u64), 1..120)) {
        let (mut now, mut greeter) = (Instant::now(), Greeter::new(peer(15)));
        let (mut connected, mut open) = (BTreeMap::new(), Vec::<Greet>::new());
        for (seed, epoch, here, wait) in steps {
            now += Duration::from_millis(wait);
            if here { connected.insert(peer(seed), epoch); } else { connected.remove(&peer(seed)); }
            let all = connected.iter().map(|(peer, epoch)| (*peer, *epoch)).collect();
            greeter.handle(now, Input::Peers { connected: all, discovered: true });
            greeter.handle_timeout(now);
            open.extend(std::iter::from_fn(|| greeter.poll_output()));
            prop_assert!(open.len() <= GREETINGS);
            prop_assert!(open.iter().all(|one| open.iter().filter(|other| other.peer == one.peer).count() == 1));
            if wait % 3 == 0 && !open.is_empty() {
                let Greet { peer, epoch, .. } = open.swap_remove(usize::try_from(wait).expect("small") % open.len());
                greeter.handle(now, if here { Input::Greeted { peer, epoch } } else { Input::Failed { peer, epoch } });
            }
        }
        for Greet { peer, epoch, .. } in open {
            greeter.handle(now, Input::Greeted { peer, epoch });
        }
        greet(&mut greeter, now, now + MINUTE * 2, |_| true);
        prop_assert_eq!(greeter.counts(), (connected.len(), connected.len()));
        prop_assert!(greeter.is_settled());
    }
}
