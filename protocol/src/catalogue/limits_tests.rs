//! The catalogue at its limits: who gives way, and who never does.

use proptest::{collection::vec, prelude::*};

use super::{
    map_tests::{Whole, check_consistent, removal, shuffle, sign},
    signed::tests::{publication, with_root},
    *,
};
use crate::Codec;

fn peer(seed: u8) -> PeerId {
    publication(seed).publisher
}

fn count(catalogue: &Whole, publisher: u8) -> usize {
    catalogue.live().filter(|entry| entry.publisher == peer(publisher)).count()
}

#[test]
fn who_has_most_gives_way_first() {
    let mut catalogue = Whole::with_limits(Limits { entries: 6, entries_per_publisher: 5 });
    let room = |catalogue: &Whole, root| {
        let publication = sign(1, None, root, 1, 1).into_parts().0;
        catalogue.has_room(&publication.publisher, &publication.key(), 1, 1)
    };
    for root in 0..5 {
        assert!(room(&catalogue, root));
        catalogue.merge(sign(1, None, root, 1, 1));
    }
    assert!(!room(&catalogue, 5) && !catalogue.has_overflowed());
    let full = catalogue.merge(sign(1, None, 5, 1, 1));
    assert!(full.outcome == Outcome::Beyond || full.dropped.len() == 1 && full.dropped[0].for_room);
    assert!(catalogue.has_overflowed());
    catalogue.merge(sign(2, None, 0, 1, 1));
    let third = catalogue.merge(sign(3, None, 0, 1, 1));
    assert_eq!((third.outcome, third.dropped.len()), (Outcome::Taken { current: true, previous: None }, 1));
    assert_eq!([1, 2, 3].map(|publisher| count(&catalogue, publisher)), [4, 1, 1]);
}

#[test]
fn versions_count_and_a_removal_always_finds_room() {
    let limits = Limits { entries: 100, entries_per_publisher: 4 };
    let mut catalogue = Whole::with_limits(limits);
    for version in 1..=4 {
        catalogue.merge(sign(1, Some(0), 0, version, 1));
    }
    let key = sign(1, Some(0), 0, 1, 1).publication().key();
    let room = |catalogue: &Whole, version, floor| catalogue.has_room(&peer(1), &key, version, floor);
    assert_eq!((room(&catalogue, 5, 1), room(&catalogue, 5, 2), room(&catalogue, 5, 5)), (false, true, true));
    // Too many: the lowest version gives way, and it is said so.
    let merge = catalogue.merge(sign(1, Some(0), 0, 5, 1));
    assert_eq!(merge.dropped.iter().map(|gone| (gone.key.version, gone.for_room)).collect::<Vec<_>>(), [(1, true)]);
    assert!(catalogue.merge(removal(1, Some(0), 0, 6)).outcome.is_taken());
    assert_eq!((catalogue.len(), catalogue.live().count()), (1, 0));
}

/// 65,700 publications of as many keys, which cost nobody anything, in every order with honest ones.
#[test]
fn a_flood_of_free_keys_pushes_nobody_out_who_is_known() {
    const FLOOD: u32 = 65_700;
    let keypair = |number: u32| {
        let mut seed = [9; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        libp2p_identity::Keypair::ed25519_from_bytes(seed).expect("32 bytes are a key")
    };
    let root = Cid::of(Codec::Raw, b"flood");
    let mut catalogue = Whole::default();
    catalogue.set_class(&peer(1), Class::Own);
    catalogue.set_class(&peer(2), Class::Known);
    let mut honest = Vec::new();
    let mut merge = |catalogue: &mut Whole, publisher: u8, root: u8| {
        let signed = sign(publisher, None, root, 1, 1);
        assert!(catalogue.merge(signed.clone()).outcome.is_taken());
        honest.push(signed.id());
    };
    for number in 0..FLOOD {
        let keypair = keypair(number);
        let publication =
            Publication { publisher: keypair.public().to_peer_id(), name: None, ..with_root(root, publication(1)) };
        let signed = SignedPublication::sign(&keypair, "main", publication).expect("it is valid");
        catalogue.merge(signed);
        // Honest ones before, amid and after the flood.
        if number % (FLOOD / 50) == 0 {
            merge(&mut catalogue, 1, (number / (FLOOD / 50)) as u8);
            merge(&mut catalogue, 2, (number / (FLOOD / 50)) as u8);
        }
    }
    merge(&mut catalogue, 1, 200);
    merge(&mut catalogue, 2, 200);
    assert_eq!(catalogue.len(), MAX_ENTRIES);
    assert!(honest.iter().all(|id| catalogue.ids().contains(id)));
    assert_eq!((count(&catalogue, 1), count(&catalogue, 2)), (51, 51));
}

#[test]
fn known_peers_give_way_to_their_like_once_no_stranger_is_left() {
    let limits = Limits { entries: 6, entries_per_publisher: 6 };
    let mut catalogue = Whole::with_limits(limits);
    catalogue.set_class(&peer(1), Class::Own);
    for publisher in [2, 3] {
        catalogue.set_class(&peer(publisher), Class::Known);
    }
    catalogue.merge(sign(4, None, 0, 1, 1));
    for root in 0..4 {
        catalogue.merge(sign(2, None, root, 1, 1));
    }
    catalogue.merge(sign(1, None, 0, 1, 1));
    catalogue.merge(sign(3, None, 0, 1, 1));
    assert_eq!([1, 2, 3, 4].map(|publisher| count(&catalogue, publisher)), [1, 4, 1, 0]);
    for root in 1..4 {
        catalogue.merge(sign(1, None, root, 1, 1));
    }
    assert_eq!([1, 2, 3, 4].map(|publisher| count(&catalogue, publisher)), [4, 1, 1, 0]);
    // A stranger finds no room, and takes none.
    let public_key = |seed| body::public_key_bytes(&peer(seed)).expect("an ed25519 peer");
    let above = (5..).find(|seed| public_key(*seed) > public_key(4)).expect("half of all are");
    let key = sign(above, None, 0, 1, 1).publication().key();
    assert!(!catalogue.has_room(&peer(above), &key, 1, 1), "those from the one on that gave way are out for good");
    let late = catalogue.merge(sign(5, None, 0, 1, 1));
    assert_eq!((late.outcome, late.dropped), (Outcome::Beyond, vec![]));
    // One that is no longer known is a stranger.
    catalogue.set_class(&peer(3), Class::Stranger);
    catalogue.merge(sign(1, None, 4, 1, 1));
    assert_eq!([1, 2, 3].map(|publisher| count(&catalogue, publisher)), [5, 1, 0]);
    check_consistent(&catalogue, limits);
}

/// Publications whose floors never rise.
fn some() -> impl Strategy<Value = SignedPublication> {
    (0u8..5, prop::option::of(0u8..3), 0u8..3, 1u64..4)
        .prop_map(|(publisher, name, root, version)| sign(publisher, name, root, version, 1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_gives_way_depends_on_what_came_and_not_on_when(publications in vec(some(), 0..30), seed in any::<u64>()) {
        let limits = Limits { entries: 8, entries_per_publisher: 5 };
        let merged = |publications: &[SignedPublication]| {
            let mut catalogue = Whole::with_limits(limits);
            catalogue.set_class(&peer(0), Class::Own);
            catalogue.set_class(&peer(1), Class::Known);
            for publication in publications {
                catalogue.merge(publication.clone());
                check_consistent(&catalogue, limits);
            }
            catalogue
        };
        let forward = merged(&publications);
        let mut shuffled = publications;
        shuffle(&mut shuffled, seed);
        prop_assert_eq!(&merged(&shuffled), &forward);
        shuffled.reverse();
        prop_assert_eq!(&merged(&shuffled), &forward);
    }
}
