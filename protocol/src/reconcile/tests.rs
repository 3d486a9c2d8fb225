//! Reconciliation finds exactly the symmetric difference, in few rounds, and withstands any bytes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn id(number: u64) -> Id {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

fn set(numbers: impl IntoIterator<Item = u64>) -> IdSet {
    numbers.into_iter().map(id).collect()
}

struct Session {
    need: BTreeSet<Id>,
    have: BTreeSet<Id>,
    rounds: usize,
    bytes: usize,
}

fn reconcile(mine: &IdSet, theirs: &IdSet, message_bytes: usize) -> Session {
    let mut initiator = Initiator::new(ReconcileLimits { message_bytes, ..ReconcileLimits::default() });
    let mut message = initiator.initiate(mine);
    let mut bytes = 0;
    loop {
        assert!(message.len() <= message_bytes);
        let response = respond(theirs, &message, message_bytes).expect("an honest message");
        assert!(response.len() <= message_bytes);
        bytes += message.len() + response.len();
        match initiator.handle(mine, &response).expect("an honest response") {
            Step::Send(next) => message = next,
            Step::Done => break,
        }
    }
    let unique = |ids: &[Id]| {
        let set: BTreeSet<_> = ids.iter().copied().collect();
        assert_eq!(set.len(), ids.len(), "an id is reported once");
        set
    };
    Session { need: unique(initiator.need()), have: unique(initiator.have()), rounds: initiator.rounds(), bytes }
}

fn check(mine: &IdSet, theirs: &IdSet, message_bytes: usize) -> Session {
    let session = reconcile(mine, theirs, message_bytes);
    let (left, right): (BTreeSet<_>, BTreeSet<_>) = (mine.iter().copied().collect(), theirs.iter().copied().collect());
    assert_eq!(session.need, &right - &left);
    assert_eq!(session.have, &left - &right);
    session
}

const FULL: usize = 64 * 1024;

#[test]
fn equal_sets_cost_one_round_trip_and_few_bytes() {
    for count in [0, 1, 33, 5000] {
        let set = set(0..count);
        let session = check(&set, &set.clone(), FULL);
        assert_eq!(session.rounds, 1);
        assert!(session.bytes <= 20, "{} bytes for {count}", session.bytes);
    }
}

#[test]
fn the_rounds_grow_with_the_logarithm() {
    for (count, rounds) in [(10, 2), (500, 3), (8_000, 3), (100_000, 4)] {
        let theirs = set(0..count);
        let mut mine = theirs.clone();
        assert!(mine.remove(&id(count / 2)));
        assert!(mine.insert(id(u64::MAX)));
        let session = check(&mine, &theirs, FULL);
        assert!(session.rounds <= rounds, "{} rounds for {count}", session.rounds);
        assert!(session.bytes < 6_000, "{} bytes for {count}", session.bytes);
    }
}

#[test]
fn what_does_not_fit_one_message_takes_more() {
    let (empty, large) = (set([]), set(0..5_000));
    assert_eq!(check(&empty, &large, FULL).rounds, 3);
    assert!(check(&large, &empty, FULL).rounds <= 2);
    check(&set(0..3_000), &set(3_000..6_000), FULL);
    // As narrow as can be, and sets that have every second id in common.
    let halves = (set((0..2_000).filter(|n| n % 3 != 0)), set((0..2_000).filter(|n| n % 3 != 1)));
    check(&halves.0, &halves.1, MIN_MESSAGE_BYTES);
    check(&empty, &large, MIN_MESSAGE_BYTES);
    check(&large, &empty, MIN_MESSAGE_BYTES);
}

#[test]
fn the_extreme_ids_are_ids_too() {
    let low = [0; 32];
    let high = [0xff; 32];
    let (with, without): (IdSet, IdSet) = ([low, high].into_iter().collect(), set(0..100));
    check(&with, &without, FULL);
    check(&without, &with, FULL);
    let mut near = low;
    near[31] = 1;
    check(&[low, near].into_iter().collect(), &[near].into_iter().collect(), FULL);
}

#[test]
fn a_hostile_responder_ends_the_session() {
    let mine = set(0..1_000);
    let limits = ReconcileLimits { rounds: 5, ..ReconcileLimits::default() };
    let start = || {
        let mut initiator = Initiator::new(limits);
        initiator.initiate(&mine);
        initiator
    };
    assert_eq!(start().handle(&mine, &[]), Err(ReconcileError::NoProgress));
    assert_eq!(start().handle(&mine, &[0xff, 9]), Err(ReconcileError::Malformed("an unknown mode")));
    assert_eq!(start().handle(&mine, &[0]), Err(ReconcileError::Malformed("bounds that do not ascend")));
    // A list that claims 65,535 ids.
    assert_eq!(start().handle(&mine, &[0xff, 2, 0xff, 0xff]), Err(ReconcileError::Malformed("fewer ids than it says")));
    // What never agrees runs into the limit of rounds.
    let mut initiator = start();
    let mut never = vec![0xff, 1];
    never.extend([7; 16]);
    let end = loop {
        // Asked in parts, it is not one range any more; then it is about something that was not asked.
        if let Err(error) = initiator.handle(&mine, &never) {
            break error;
        }
    };
    assert_eq!(end, ReconcileError::Unasked);
    // A responder that answers every range with a fingerprint that differs, whatever is asked, for ever.
    let other = set(5_000..6_000);
    let mut initiator = Initiator::new(ReconcileLimits { rounds: 1, ..limits });
    let message = initiator.initiate(&mine);
    let response = respond(&other, &message, FULL).expect("honest");
    let Ok(Step::Send(message)) = initiator.handle(&mine, &response) else { panic!("one round is not enough") };
    let response = respond(&other, &message, FULL).expect("honest");
    assert_eq!(initiator.handle(&mine, &response), Err(ReconcileError::TooMuch("rounds")));
    // More ids than it wants to keep.
    let mut initiator = Initiator::new(ReconcileLimits { ids: 10, ..limits });
    let empty = set([]);
    let message = initiator.initiate(&empty);
    let response = respond(&mine, &message, FULL).expect("honest");
    assert_eq!(initiator.handle(&empty, &response), Err(ReconcileError::TooMuch("ids")));
}

#[test]
fn the_messages_are_the_specification() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let two: IdSet = [[0x11; 32], [0x22; 32]].into_iter().collect();
    assert_eq!(hex(&Initiator::new(ReconcileLimits::default()).initiate(&set([]))), "ff020000");
    let request = Initiator::new(ReconcileLimits::default()).initiate(&two);
    assert_eq!(hex(&request), "ff01e3a4c80c8ce5728fb8740fbc0db932d7");
    // The fingerprint, spelled out: the sum of both and their number, little-endian, hashed and cut.
    let input = [[0x33; 32].as_slice(), &2u64.to_le_bytes()].concat();
    assert_eq!(request[2..], blake3::hash(&input).as_bytes()[..16]);
    assert_eq!(hex(&respond(&two, &request, FULL).expect("honest")), "ff00");
    let one: IdSet = [[0x11; 32]].into_iter().collect();
    assert_eq!(hex(&respond(&one, &request, FULL).expect("honest")), format!("ff020001{}", "11".repeat(32)));
    // A bound is written as short as it can be.
    let mut writer = message::Writer::new(FULL);
    let mut at = [0; 32];
    at[0] = 0xab;
    writer.skip(Bound::At(at));
    writer.ids(Bound::End, &[]);
    assert_eq!(hex(&writer.finish()), "01ab00ff020000");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_finds_exactly_the_symmetric_difference(
        common in 0u64..3_000,
        mine in prop::collection::btree_set(10_000u64..20_000, 0..600),
        theirs in prop::collection::btree_set(10_000u64..20_000, 0..600),
        message_bytes in prop::sample::select(vec![MIN_MESSAGE_BYTES, 5_000, FULL]),
    ) {
        let left = set((0..common).chain(mine));
        let right = set((0..common).chain(theirs));
        check(&left, &right, message_bytes);
    }

    #[test]
    fn a_set_is_what_was_put_in(
        numbers in prop::collection::vec((any::<bool>(), 0u64..2_000), 0..4_000),
        from in 0u64..2_000, to in 0u64..2_000, skip in 0usize..50,
    ) {
        let (mut ids, mut model) = (IdSet::default(), BTreeSet::new());
        for (add, number) in numbers {
            let id = id(number);
            if add {
                prop_assert_eq!(ids.insert(id), model.insert(id));
            } else {
                prop_assert_eq!(ids.remove(&id), model.remove(&id));
            }
        }
        prop_assert_eq!(ids.len(), model.len());
        prop_assert!(ids.iter().eq(&model));
        prop_assert_eq!(&ids, &model.iter().copied().collect::<IdSet>());
        let (from, to) = (id(from).min(id(to)), id(from).max(id(to)));
        let span = Bound::At(from)..Bound::At(to);
        let inside: Vec<_> = model.range(from..to).copied().collect();
        prop_assert_eq!(ids.count(&span), inside.len());
        prop_assert_eq!(ids.ids(&span, usize::MAX), &inside[..]);
        prop_assert_eq!(ids.nth(&span, skip), inside.get(skip).copied());
        let mut sum = Sum::default();
        inside.iter().for_each(|id| sum.add(id));
        prop_assert_eq!(ids.fingerprint(&span), sum.fingerprint());
        prop_assert_eq!(ids.count(&(Bound::START..Bound::End)), model.len());
    }

    #[test]
    fn sums_join_and_come_apart(ids in prop::collection::vec(any::<[u8; 32]>(), 0..20), cut in 0usize..20) {
        let sum = |ids: &[Id]| {
            let mut sum = Sum::default();
            ids.iter().for_each(|id| sum.add(id));
            sum
        };
        let cut = cut.min(ids.len());
        let (mut first, second) = (sum(&ids[..cut]), sum(&ids[cut..]));
        first.join(&second);
        prop_assert_eq!(first, sum(&ids));
        ids[cut..].iter().for_each(|id| first.subtract(id));
        prop_assert_eq!(first, sum(&ids[..cut]));
    }

    #[test]
    fn any_bytes_are_answered_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), count in 0u64..200) {
        let set = set(0..count);
        if let Ok(response) = respond(&set, &bytes, MIN_MESSAGE_BYTES) {
            prop_assert!(response.len() <= MIN_MESSAGE_BYTES);
        }
        let mut initiator = Initiator::new(ReconcileLimits::default());
        initiator.initiate(&set);
        let _ = initiator.handle(&set, &bytes);
    }

    #[test]
    fn a_tampered_message_is_answered_or_refused(
        at in any::<prop::sample::Index>(), flip in 1u8.., mine in 0u64..800, theirs in 0u64..800,
    ) {
        let (left, right) = (set(0..mine), set(400..400 + theirs));
        let mut initiator = Initiator::new(ReconcileLimits { rounds: 20, ..ReconcileLimits::default() });
        let mut message = initiator.initiate(&left);
        // Every round but the first is tampered with.
        while let Ok(mut response) = respond(&right, &message, FULL) {
            if initiator.rounds() > 0 && !response.is_empty() {
                let at = at.index(response.len());
                response[at] ^= flip;
            }
            match initiator.handle(&left, &response) {
                Ok(Step::Send(next)) => message = next,
                Ok(Step::Done) | Err(_) => break,
            }
        }
        prop_assert!(initiator.rounds() <= 21);
    }
}
