//! The laws of the map within its limits, and what it shows.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

use super::{
    signed::tests::{keypair, publication, with_root},
    *,
};
use crate::{
    Codec,
    reconcile::{Bound, IdMap, IdRanges as _},
};

/// A catalogue and the bytes of what stands in it, kept as whoever has one keeps them.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    map: Catalogue,
    kept: BTreeMap<VersionKey, Bytes>,
}

impl Whole {
    pub(super) fn with_limits(limits: Limits) -> Self {
        Self { map: Catalogue::with_limits(limits), ..Self::default() }
    }

    pub(super) fn merge(&mut self, signed: SignedPublication) -> Merge {
        let merge = self.map.merge(&signed, &self.kept);
        for dropped in &merge.dropped {
            let kept = self.kept.remove(&dropped.key).expect("what is dropped stood");
            assert_eq!(dropped.publication, signed::read_checked(&kept).ok());
        }
        if merge.outcome.is_taken() {
            let before = self.kept.insert(signed.publication().version_key(), Bytes::copy_from_slice(signed.bytes()));
            assert_eq!(before, None, "what is overwritten is dropped first");
        }
        merge
    }

    pub(super) fn set_class(&mut self, publisher: &PeerId, class: Class) {
        self.map.set_class(publisher, class);
    }

    pub(super) fn has_room(&self, publisher: &PeerId, key: &EntryKey, version: u64, floor: u64) -> bool {
        self.map.has_room(publisher, key, version, floor)
    }

    pub(super) fn has_overflowed(&self) -> bool {
        self.map.has_overflowed()
    }

    pub(super) fn get(&self, publisher: &PeerId, key: &EntryKey) -> Option<Publication> {
        self.map.get(publisher, key, &self.kept)
    }

    pub(super) fn ids(&self) -> &IdMap<u32> {
        self.map.ids()
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn signed_bytes(&self, id: &PublicationId) -> Option<Bytes> {
        self.map.signed_bytes(id, &self.kept)
    }

    /// All that are live, current and kept.
    pub(super) fn live(&self) -> impl Iterator<Item = Publication> + '_ {
        let all = self.kept.values().map(|bytes| signed::read_checked(bytes).expect("it was signed"));
        all.filter(|publication| !publication.removed)
    }

    /// All that are current, removals left out.
    pub(super) fn publications(&self) -> impl Iterator<Item = Publication> + '_ {
        let current = |entry: &Publication| self.map.current(&entry.publisher, &entry.key());
        self.live().filter(move |entry| current(entry) == Some(entry.version))
    }

    pub(super) fn by_root(&self, root: &Cid) -> Vec<Publication> {
        let standing = self.map.standing_with_root(root, &self.kept);
        standing.into_iter().filter(|publication| !publication.removed).collect()
    }

    pub(super) fn by_name(&self, name: &str) -> Vec<Publication> {
        let current = self.map.current_with_name(name, &self.kept);
        current.into_iter().filter(|publication| !publication.removed).collect()
    }
}

impl PartialEq for Whole {
    fn eq(&self, other: &Self) -> bool {
        self.map == other.map && self.kept == other.kept
    }
}

/// One of a small space of publications, so that keys and versions collide often.
pub(super) fn sign(publisher: u8, name: Option<u8>, root: u8, version: u64, floor: u64) -> SignedPublication {
    signed(publisher, name, root, version, floor, false)
}

pub(super) fn removal(publisher: u8, name: Option<u8>, root: u8, version: u64) -> SignedPublication {
    signed(publisher, name, root, version, version, true)
}

fn signed(publisher: u8, name: Option<u8>, root: u8, version: u64, floor: u64, removed: bool) -> SignedPublication {
    let publication = Publication {
        name: name.map(|name| format!("name {name}")),
        version,
        floor,
        removed,
        ..with_root(Cid::of(Codec::Raw, &[root]), publication(publisher))
    };
    SignedPublication::sign(&keypair(publisher), "main", publication).expect("it is valid")
}

/// What a hostile publisher may sign: any floor up to the version.
fn some() -> impl Strategy<Value = SignedPublication> {
    (0u8..3, prop::option::of(0u8..2), 0u8..3, (1u64..6).prop_flat_map(|version| (Just(version), 1..=version)), 0u8..4)
        .prop_map(|(publisher, name, root, (version, floor), removed)| match removed {
            0 => removal(publisher, name, root, version),
            _ => sign(publisher, name, root, version, floor),
        })
}

fn merged<'a>(publications: impl IntoIterator<Item = &'a SignedPublication>) -> Whole {
    let mut catalogue = Whole::default();
    for publication in publications {
        catalogue.merge(publication.clone());
    }
    check_consistent(&catalogue, Limits::default());
    catalogue
}

/// All views show the same entries, within the limits.
pub(super) fn check_consistent(catalogue: &Whole, limits: Limits) {
    assert!(catalogue.len() <= limits.entries);
    assert_eq!(catalogue.len(), catalogue.ids().len());
    let mut live = 0;
    for id in catalogue.ids().iter() {
        let bytes = catalogue.signed_bytes(id).expect("every id has its bytes");
        let publication = SignedPublication::decode("main", &bytes).expect("they are as they came").into_parts().0;
        let current = catalogue.get(&publication.publisher, &publication.key()).expect("something is current");
        let Whole { map, kept } = catalogue;
        let history = map.history(&publication.publisher, &publication.key(), kept);
        assert!(history.is_sorted_by(|a, b| a.version > b.version), "the current one first");
        assert_eq!(history.first(), Some(&current));
        assert!(history.contains(&publication) && history.iter().all(|other| publication.version >= other.floor));
        assert!(!current.removed || history.len() == 1, "nothing stands below a removal");
        live += usize::from(!publication.removed);
        let (publisher, key) = (&publication.publisher, publication.key());
        assert_eq!(map.version(publisher, &key, publication.version, kept).as_ref(), Some(&publication));
        assert_eq!(map.current(publisher, &key), Some(current.version));
        assert!(map.stands(publisher, &key, publication.version) && !map.stands(publisher, &key, u64::MAX));
        assert_eq!(map.key_of(id), Some(publication.version_key()));
        assert_eq!(map.floor(publisher, &key), history.iter().map(|other| other.floor).max().expect("one"));
        assert!(map.standing_with_root(&publication.root, kept).contains(&publication));
        assert_eq!(catalogue.by_root(&publication.root).contains(&publication), !publication.removed);
        let listed = publication == current && !publication.removed;
        assert_eq!(catalogue.publications().any(|other| other == publication), listed);
        if let Some(name) = &publication.name {
            assert_eq!(catalogue.by_name(name).contains(&publication), listed);
            let shown = map.current_with_name(name, kept).contains(&publication);
            assert_eq!(shown, publication == current);
            let of_all = map.keys_with_name(None, name);
            let of_one = map.keys_with_name(Some(publisher), name);
            assert_eq!(of_one.0, [current.version_key()]);
            let before: Vec<_> = history.iter().skip(1).map(Publication::version_key).collect();
            assert_eq!(of_one.1, before);
            assert!(
                of_one.0.iter().all(|key| of_all.0.contains(key)) && of_one.1.iter().all(|key| of_all.1.contains(key))
            );
            let named = |key: &VersionKey| {
                kept.get(key).is_some_and(|bytes| {
                    signed::read_checked(bytes).is_ok_and(|entry| entry.name.as_deref() == Some(name.as_str()))
                })
            };
            assert!(of_all.0.iter().chain(&of_all.1).all(named));
        }
    }
    assert_eq!(catalogue.live().count(), live);
}

fn versions(catalogue: &Whole, of: &SignedPublication) -> Vec<u64> {
    let (of, Whole { map, kept }) = (of.publication(), catalogue);
    map.history(&of.publisher, &of.key(), kept).iter().map(|publication| publication.version).collect()
}

fn dropped(merge: &Merge) -> Vec<u64> {
    merge.dropped.iter().map(|dropped| dropped.key.version).collect()
}

#[test]
fn versions_stand_beside_each_other_until_a_floor_rises() {
    let mut catalogue = Whole::default();
    let (first, second, third) = (sign(1, Some(0), 0, 1, 1), sign(1, Some(0), 1, 2, 1), sign(1, Some(0), 2, 3, 2));
    let taken = |current, previous: Option<&SignedPublication>| Outcome::Taken {
        current,
        previous: previous.map(|signed| signed.publication().version),
    };
    assert_eq!(catalogue.merge(second.clone()).outcome, taken(true, None));
    assert_eq!(catalogue.merge(second.clone()).outcome, Outcome::Known);
    assert_eq!(catalogue.merge(first.clone()).outcome, taken(false, Some(&second)));
    assert_eq!(versions(&catalogue, &first), [2, 1]);
    assert_eq!((catalogue.publications().count(), catalogue.live().count(), catalogue.len()), (1, 2, 2));
    assert_eq!(catalogue.by_root(&first.publication().root).len(), 1, "what is kept is still somebody's");
    let merge = catalogue.merge(third.clone());
    assert_eq!((&merge.outcome, dropped(&merge)), (&taken(true, Some(&second)), vec![1]));
    assert!(!merge.dropped[0].for_room && merge.dropped[0].publication.as_ref() == Some(first.publication()));
    assert_eq!(catalogue.by_root(&first.publication().root).len(), 0);
    assert_eq!(catalogue.merge(first.clone()).outcome, Outcome::Older);
    let merge = catalogue.merge(removal(1, Some(0), 2, 4));
    assert_eq!((&merge.outcome, dropped(&merge)), (&taken(true, Some(&third)), vec![2, 3]));
    assert_eq!((catalogue.publications().count(), catalogue.live().count(), catalogue.len()), (0, 0, 1));
    assert!(catalogue.get(&third.publication().publisher, &third.publication().key()).is_some_and(|it| it.removed));
    assert_eq!(catalogue.merge(third).outcome, Outcome::Older);
    // What was removed is published again above the removal.
    assert!(catalogue.merge(sign(1, Some(0), 2, 5, 1)).outcome.is_taken());
    assert_eq!((catalogue.publications().count(), catalogue.live().count(), catalogue.len()), (1, 1, 2));
    check_consistent(&catalogue, Limits::default());
}

#[test]
fn a_name_a_root_and_a_publisher_are_places_of_their_own() {
    let mut catalogue = Whole::default();
    for publication in [
        sign(1, None, 0, 1, 1),
        sign(1, None, 1, 1, 1),
        sign(1, Some(0), 0, 1, 1),
        sign(2, None, 0, 1, 1),
        sign(2, Some(0), 0, 1, 1),
    ] {
        assert_eq!(catalogue.merge(publication).outcome, Outcome::Taken { current: true, previous: None });
    }
    assert_eq!(catalogue.by_root(&Cid::of(Codec::Raw, &[0])).len(), 4);
    assert_eq!(catalogue.by_name("name 0").len(), 2);
}

#[test]
fn equal_versions_are_settled_by_the_floor_and_then_by_the_root() {
    let root = |signed: &SignedPublication| signed.publication().root.to_bytes();
    let (mut less, mut more) = (sign(1, Some(0), 0, 2, 1), sign(1, Some(0), 1, 2, 1));
    if root(&less) > root(&more) {
        std::mem::swap(&mut less, &mut more);
    }
    // The one with the lesser root, but the greater floor.
    let publication = Publication { floor: 2, ..less.publication().clone() };
    let floor = SignedPublication::sign(&keypair(1), "main", publication).expect("it is valid");
    for (a, b, winner) in
        [(&less, &more, &more), (&more, &less, &more), (&floor, &more, &floor), (&more, &floor, &floor)]
    {
        let mut catalogue = merged([a]);
        let merge = catalogue.merge(b.clone());
        assert_eq!(merge.outcome.is_taken(), b == winner);
        assert_eq!(dropped(&merge).len(), usize::from(b == winner));
        assert_eq!(catalogue.publications().collect::<Vec<_>>(), [winner.publication().clone()]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_does_not_matter(publications in vec(some(), 0..24), seed in any::<u64>()) {
        let forward = merged(&publications);
        let mut shuffled = publications.clone();
        shuffle(&mut shuffled, seed);
        prop_assert_eq!(&merged(&shuffled), &forward);
        shuffled.reverse();
        prop_assert_eq!(&merged(&shuffled), &forward);
    }

    #[test]
    fn what_comes_again_changes_nothing(
        publications in vec(some(), 1..16),
        again in vec(any::<prop::sample::Index>(), 0..16),
    ) {
        let mut catalogue = merged(&publications);
        let before = catalogue.clone();
        for index in again {
            let merge = catalogue.merge(index.get(&publications).clone());
            prop_assert!(!merge.outcome.is_taken() && merge.dropped.is_empty(), "{:?}", merge);
        }
        prop_assert_eq!(catalogue, before);
    }

    /// What one node passes on is what stands there, not all that it ever saw.
    #[test]
    fn catch_ups_may_be_grouped_in_any_way(a in vec(some(), 0..12), b in vec(some(), 0..12), c in vec(some(), 0..12)) {
        let join = |left: &Whole, right: &Whole| {
            let mut joined = left.clone();
            for id in right.ids().ids(&(Bound::START..Bound::End), usize::MAX) {
                let bytes = right.signed_bytes(&id).expect("it stands");
                joined.merge(SignedPublication::decode("main", &bytes).expect("it is valid"));
            }
            joined
        };
        let all = merged(a.iter().chain(&b).chain(&c));
        let [a, b, c] = [a, b, c].map(|part| merged(&part));
        prop_assert_eq!(&join(&join(&a, &b), &c), &all);
        prop_assert_eq!(&join(&a, &join(&b, &c)), &all);
        prop_assert_eq!(join(&a, &b), join(&b, &a));
        prop_assert_eq!(join(&a, &a), a);
    }

    /// Whoever adds up what merges say knows what is live.
    #[test]
    fn merges_say_what_became_live_and_what_ceased_to_be(
        publications in vec(some(), 0..30),
        limits in prop::sample::select(vec![Limits::default(), Limits { entries: 6, entries_per_publisher: 3 }]),
    ) {
        let mut catalogue = Whole::with_limits(limits);
        let mut live: Vec<Publication> = Vec::new();
        for signed in publications {
            let said = signed.publication().clone();
            let merge = catalogue.merge(signed);
            let dropped = merge.dropped.into_iter().filter_map(|gone| gone.publication);
            for gone in dropped.filter(|gone| !gone.removed) {
                let at = live.iter().position(|other| *other == gone);
                live.remove(at.expect("only what was live ceases to be"));
            }
            if merge.outcome.is_taken() && !said.removed {
                live.push(said);
            }
            check_consistent(&catalogue, limits);
            prop_assert_eq!(catalogue.live().count(), live.len());
            prop_assert!(catalogue.live().all(|publication| live.contains(&publication)));
        }
    }
}

pub(super) fn shuffle(publications: &mut [SignedPublication], seed: u64) {
    let key = *blake3::hash(&seed.to_le_bytes()).as_bytes();
    publications.sort_by_key(|publication| *blake3::keyed_hash(&key, publication.bytes()).as_bytes());
}

/// What is lost on the disk costs what it was, and nothing beside it.
#[test]
fn what_has_lost_its_bytes_is_forgotten_and_comes_again() {
    let (first, second, other) = (sign(1, Some(0), 0, 1, 1), sign(1, Some(0), 1, 2, 1), sign(2, None, 0, 1, 1));
    let mut catalogue = merged([&first, &second, &other]);
    let publication = second.publication();
    let (publisher, key) = (&publication.publisher, publication.key());
    // Asked for, it is not there, and its like is.
    catalogue.kept.remove(&publication.version_key());
    assert_eq!((catalogue.signed_bytes(&second.id()), catalogue.get(publisher, &key)), (None, None));
    // It stands until that is said; then it comes again as if it never had been here.
    assert_eq!(catalogue.merge(second.clone()).outcome, Outcome::Known);
    catalogue.map.forget_id(&second.id());
    assert_eq!(catalogue, merged([&first, &other]));
    assert!(catalogue.merge(second.clone()).outcome.is_taken());
    catalogue.kept.remove(&publication.version_key());
    catalogue.map.forget(publisher, &key, 2);
    assert_eq!(catalogue, merged([&first, &other]));
    assert!(catalogue.merge(second.clone()).outcome.is_taken());
    check_consistent(&catalogue, Limits::default());
    // What replaces it does so all the same, and its id goes with it.
    catalogue.kept.remove(&publication.version_key());
    let merge = catalogue.map.merge(&removal(1, Some(0), 1, 3), &catalogue.kept);
    assert!(merge.outcome.is_taken());
    let dropped: Vec<_> = merge.dropped.into_iter().map(|gone| (gone.key.version, gone.publication)).collect();
    assert_eq!(dropped, [(1, Some(first.publication().clone())), (2, None)]);
    assert_eq!((catalogue.ids().len(), catalogue.len()), (2, 2));
    // Nobody can say what stood: what comes takes its place.
    let mut catalogue = merged([&second]);
    catalogue.kept.clear();
    let less = Publication { label: "less".to_owned(), ..publication.clone() };
    let less = SignedPublication::sign(&keypair(1), "main", less).expect("it is valid");
    assert!(catalogue.map.merge(&less, &catalogue.kept).outcome.is_taken());
    assert_eq!(catalogue.ids().iter().copied().collect::<Vec<_>>(), [less.id()]);
}
