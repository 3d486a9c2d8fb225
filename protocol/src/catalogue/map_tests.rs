//! The laws of the map, within its limits and at them.

use proptest::prelude::*;

use super::{
    signed::tests::{keypair, publication},
    *,
};
use crate::{Codec, reconcile::IdRanges as _};

/// One of a small space of publications, so that keys and versions collide often.
fn sign(publisher: u8, name: Option<u8>, root: u8, version: u64, removed: bool) -> SignedPublication {
    let publication = Publication {
        name: name.map(|name| format!("name {name}")),
        root: Cid::of(Codec::Raw, &[root]),
        version,
        removed,
        ..publication(publisher)
    };
    SignedPublication::sign(&keypair(publisher), "main", publication).expect("it is valid")
}

fn some() -> impl Strategy<Value = SignedPublication> {
    (0u8..5, prop::option::of(0u8..4), 0u8..4, 1u64..4, any::<bool>())
        .prop_map(|(publisher, name, root, version, removed)| sign(publisher, name, root, version, removed))
}

fn small() -> Limits {
    Limits { entries: 6, entries_per_publisher: 3 }
}

fn merged(limits: Limits, publications: &[SignedPublication]) -> Catalogue {
    let mut catalogue = Catalogue::with_limits(limits);
    for publication in publications {
        catalogue.merge(publication.clone());
        check_consistent(&catalogue, limits);
    }
    catalogue
}

/// All views show the same entries, within the limits.
fn check_consistent(catalogue: &Catalogue, limits: Limits) {
    assert!(catalogue.len() <= limits.entries);
    assert_eq!(catalogue.len(), catalogue.ids().len());
    for id in catalogue.ids().iter() {
        let bytes = catalogue.signed_bytes(id).expect("every id has its bytes");
        let publication = SignedPublication::decode("main", bytes).expect("they are as they came").into_parts().0;
        assert_eq!(catalogue.get(&publication.publisher, &publication.key()).as_ref(), Some(&publication));
        assert_eq!(catalogue.by_root(&publication.root).any(|other| other == publication), !publication.removed);
        assert_eq!(catalogue.publications().any(|other| other == publication), !publication.removed);
        if let Some(name) = &publication.name {
            assert_eq!(catalogue.by_name(name).any(|other| other == publication), !publication.removed);
        }
    }
}

#[test]
fn the_higher_version_stands() {
    let mut catalogue = Catalogue::default();
    let (first, second, gone) =
        (sign(1, Some(0), 0, 1, false), sign(1, Some(0), 1, 2, false), sign(1, Some(0), 1, 3, true));
    assert_eq!(catalogue.merge(first.clone()).outcome, Outcome::Taken { previous: None });
    assert_eq!(catalogue.merge(first.clone()).outcome, Outcome::Known);
    let previous = Some(first.publication().clone());
    assert_eq!(catalogue.merge(second.clone()).outcome, Outcome::Taken { previous });
    assert_eq!(catalogue.merge(first.clone()).outcome, Outcome::Older);
    assert_eq!(catalogue.by_root(&first.publication().root).count(), 0);
    assert_eq!(catalogue.by_name("name 0").count(), 1);
    let previous = Some(second.publication().clone());
    assert_eq!(catalogue.merge(gone).outcome, Outcome::Taken { previous });
    assert_eq!((catalogue.publications().count(), catalogue.len()), (0, 1));
    assert_eq!(catalogue.merge(second).outcome, Outcome::Older);
}

#[test]
fn a_name_a_root_and_a_publisher_are_places_of_their_own() {
    let mut catalogue = Catalogue::default();
    for publication in [
        sign(1, None, 0, 1, false),
        sign(1, None, 1, 1, false),
        sign(1, Some(0), 0, 1, false),
        sign(2, None, 0, 1, false),
        sign(2, Some(0), 0, 1, false),
    ] {
        assert_eq!(catalogue.merge(publication).outcome, Outcome::Taken { previous: None });
    }
    assert_eq!(catalogue.by_root(&Cid::of(Codec::Raw, &[0])).count(), 4);
    assert_eq!(catalogue.by_name("name 0").count(), 2);
}

#[test]
fn equal_versions_are_settled_by_the_root() {
    let (a, b) = (sign(1, Some(0), 0, 1, false), sign(1, Some(0), 1, 1, false));
    let greater = if a.publication().root.to_bytes() > b.publication().root.to_bytes() { &a } else { &b };
    for order in [[&a, &b], [&b, &a]] {
        let catalogue = merged(Limits::default(), &order.map(Clone::clone));
        assert_eq!(catalogue.publications().collect::<Vec<_>>(), [greater.publication().clone()]);
    }
}

#[test]
fn who_has_most_gives_way_first() {
    let limits = Limits { entries: 6, entries_per_publisher: 5 };
    let mut catalogue = Catalogue::with_limits(limits);
    for root in 0..5 {
        assert!(catalogue.has_room(&publication(1).publisher));
        catalogue.merge(sign(1, None, root, 1, false));
    }
    assert!(!catalogue.has_room(&publication(1).publisher));
    let full = catalogue.merge(sign(1, None, 5, 1, false));
    assert!(full.outcome == Outcome::Beyond || full.dropped.len() == 1);
    catalogue.merge(sign(2, None, 0, 1, false));
    let third = catalogue.merge(sign(3, None, 0, 1, false));
    assert_eq!((third.outcome, third.dropped.len()), (Outcome::Taken { previous: None }, 1));
    let count = |publisher: u8| {
        let publisher = publication(publisher).publisher;
        catalogue.publications().filter(|entry| entry.publisher == publisher).count()
    };
    assert_eq!((count(1), count(2), count(3)), (4, 1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_does_not_matter(
        publications in prop::collection::vec(some(), 0..24),
        limits in prop::sample::select(vec![Limits::default(), small()]),
        seed in any::<u64>(),
    ) {
        let forward = merged(limits, &publications);
        let mut shuffled = publications.clone();
        shuffled.sort_by_key(|publication| *blake3::keyed_hash(
            blake3::hash(&seed.to_le_bytes()).as_bytes(), publication.bytes(),
        ).as_bytes());
        prop_assert_eq!(&merged(limits, &shuffled), &forward);
        shuffled.reverse();
        prop_assert_eq!(&merged(limits, &shuffled), &forward);
    }

    #[test]
    fn what_comes_again_changes_nothing(
        publications in prop::collection::vec(some(), 1..16),
        limits in prop::sample::select(vec![Limits::default(), small()]),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..16),
    ) {
        let mut catalogue = merged(limits, &publications);
        let before = catalogue.clone();
        for index in again {
            let merge = catalogue.merge(index.get(&publications).clone());
            prop_assert!(!matches!(merge.outcome, Outcome::Taken { .. }), "{:?}", merge);
            prop_assert!(merge.dropped.is_empty());
        }
        prop_assert_eq!(catalogue, before);
    }

    #[test]
    fn catch_ups_may_be_grouped_in_any_way(
        a in prop::collection::vec(some(), 0..10),
        b in prop::collection::vec(some(), 0..10),
        c in prop::collection::vec(some(), 0..10),
        limits in prop::sample::select(vec![Limits::default(), small()]),
    ) {
        // What one node passes on is what stands there, not all that it ever saw.
        let join = |left: &Catalogue, right: &Catalogue| {
            let mut joined = left.clone();
            for id in right.ids().ids(&(crate::reconcile::Bound::START..crate::reconcile::Bound::End), usize::MAX) {
                let bytes = right.signed_bytes(&id).expect("it stands");
                joined.merge(SignedPublication::decode("main", bytes).expect("it is valid"));
            }
            joined
        };
        let [a, b, c] = [a, b, c].map(|part| merged(limits, &part));
        if limits == Limits::default() {
            prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
            prop_assert_eq!(join(&a, &b), join(&b, &a));
            prop_assert_eq!(join(&a, &a), a);
        } else {
            // At the limits a node that joined late does not know how far the shares shrank elsewhere; once each
            // heard from the other, what one has the other has, or it has no room for it.
            let (left, right) = (join(&a, &b), join(&b, &a));
            let (again, other) = (join(&left, &right), join(&right, &left));
            check_consistent(&again, limits);
            check_consistent(&other, limits);
        }
    }
}
