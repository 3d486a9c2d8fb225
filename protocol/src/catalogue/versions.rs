//! Which versions of one place stand: the rules, whatever holds the bytes.

use std::cmp::Ordering;

/// The most versions of one place that stand: whoever merges one looks at all of them, and a history of so many fills
/// many a screen (a guess at what anybody would keep).
pub const MAX_VERSIONS: usize = 1024;

/// The standing versions of one place (a publisher's name, or its root).
///
/// `T` is what stands for a publication: a handle, a record, the publication itself. Only its order among those of one
/// version and floor is asked for.
///
/// # Which stand
///
/// Of all publications of the place that were ever merged:
///
/// 1. The *floor* is the greatest that any of them has.
/// 2. Of each version the greatest by (floor, root CID's bytes, signed bytes) counts.
/// 3. Of these, the versions from the floor on stand, and of them the `MOST` greatest.
///
/// The greatest that stands is the *current* one. Those below it are kept for whoever wants them back. Below a removal
/// nothing stands, because its floor is its own version; but one may stand below a later version.
///
/// # Laws
///
/// [`merge`](Self::merge) is the least upper bound of a semilattice: commutative, associative, idempotent. What stands is
/// a function of the set that was merged, and what stands can be merged in place of all that was. For
///
/// - The publication with the greatest floor stands itself, or `MOST` greater versions do. For a version is never below its
///   own floor; and in a tie the greater floor counts, so that nobody with a lower one takes its place. (Were a tie
///   settled by the root alone, its loser's floor would be forgotten by one node, and be in force on another that had
///   dropped versions for it.)
/// - Where `MOST` greater versions stand, nothing below them does, whatever the floor: so one that gave way because of
///   their number needs no memory either.
///
/// A publisher that signs a higher version with a lower floor therefore brings nothing back, and one that signs two
/// publications of one version gets one of them everywhere.
///
/// # Costs
///
/// O(versions) a merge, 24 bytes each with a `T` of 4.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versions<T, const MOST: usize = MAX_VERSIONS> {
    /// Ascending by version.
    standing: Vec<Standing<T>>,
}

/// A version that stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing<T> {
    /// Which it is.
    pub version: u64,
    /// The lowest version that its publisher keeps.
    pub floor: u64,
    /// Its publication.
    pub held: T,
}

/// What a merge did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Merged<T> {
    /// It stands now, and these do not any more.
    Taken(Vec<Standing<T>>),
    /// It stood already.
    Known,
    /// It does not stand beside what does.
    Older,
}

impl<T, const MOST: usize> Default for Versions<T, MOST> {
    fn default() -> Self {
        Self { standing: Vec::new() }
    }
}

impl<T, const MOST: usize> Versions<T, MOST> {
    /// Those that stand, ascending by version, as [`iter`](Self::iter) gives them.
    pub(crate) fn of(standing: Vec<Standing<T>>) -> Self {
        Self { standing }
    }

    /// Takes a publication in. `order` compares it with one that stands, by root CID's bytes and then signed bytes; it is
    /// asked only about one of the same version and floor.
    pub fn merge(&mut self, new: Standing<T>, order: impl FnOnce(&T) -> Ordering) -> Merged<T> {
        if new.version < self.floor() {
            return Merged::Older;
        }
        // What stands is not under the floor that is in force.
        let floor = new.floor;
        let mut dropped = Vec::new();
        match self.standing.binary_search_by_key(&new.version, |standing| standing.version) {
            Ok(at) => {
                let Some(standing) = self.standing.get_mut(at) else { return Merged::Older };
                match new.floor.cmp(&standing.floor).then_with(|| order(&standing.held)) {
                    Ordering::Less => return Merged::Older,
                    Ordering::Equal => return Merged::Known,
                    Ordering::Greater => dropped.push(std::mem::replace(standing, new)),
                }
            }
            Err(0) if self.standing.len() >= MOST => return Merged::Older,
            Err(at) => self.standing.insert(at, new),
        }
        let below = self.standing.partition_point(|standing| standing.version < floor);
        let over = self.standing.len().saturating_sub(MOST);
        dropped.extend(self.standing.drain(..below.max(over)));
        Merged::Taken(dropped)
    }

    /// How many more would stand if one of `version` and `floor` were merged, which is not there yet: negative where more
    /// go than come.
    pub fn growth(&self, version: u64, floor: u64) -> isize {
        let below = self.standing.iter().filter(|standing| standing.version < floor).count();
        let same = self.standing.iter().any(|standing| standing.version == version);
        // Both are at most MOST.
        isize::from(!same) - below as isize
    }

    /// The floor that is in force; 0: nothing stands.
    pub fn floor(&self) -> u64 {
        self.standing.iter().map(|standing| standing.floor).max().unwrap_or(0)
    }

    /// The greatest.
    pub fn current(&self) -> Option<&Standing<T>> {
        self.standing.last()
    }

    /// One of them.
    pub fn get(&self, version: u64) -> Option<&Standing<T>> {
        let at = self.standing.binary_search_by_key(&version, |standing| standing.version).ok()?;
        self.standing.get(at)
    }

    /// All, from the lowest on.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Standing<T>> + ExactSizeIterator {
        self.standing.iter()
    }
    /// How many stand.
    pub fn len(&self) -> usize {
        self.standing.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.standing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Few, so that the bound is met often.
    const MOST: usize = 3;

    /// Version, floor, and in place of root and bytes a number.
    type Said = (u64, u64, u8);

    fn merge(versions: &mut Versions<u8, MOST>, (version, floor, held): Said) -> Merged<u8> {
        versions.merge(Standing { version, floor, held }, |other| held.cmp(other))
    }

    fn merged(said: impl IntoIterator<Item = Said>) -> Versions<u8, MOST> {
        let mut versions = Versions::default();
        for said in said {
            merge(&mut versions, said);
        }
        versions
    }

    fn said(versions: &Versions<u8, MOST>) -> Vec<Said> {
        versions.iter().map(|standing| (standing.version, standing.floor, standing.held)).collect()
    }

    /// The rules as they are written, over all that was ever said.
    fn meant(all: &[Said]) -> Vec<Said> {
        let floor = all.iter().map(|said| said.1).max().unwrap_or(0);
        let mut greatest = BTreeMap::new();
        for &(version, floor, held) in all {
            let standing = greatest.entry(version).or_insert((floor, held));
            *standing = (*standing).max((floor, held));
        }
        let standing = greatest.into_iter().map(|(version, (floor, held))| (version, floor, held));
        let standing: Vec<Said> = standing.filter(|said| said.0 >= floor).collect();
        standing[standing.len().saturating_sub(MOST)..].to_vec()
    }

    /// What a publisher may sign: any floor up to the version, whatever it signed before.
    fn any_said() -> impl Strategy<Value = Said> {
        (1u64..9).prop_flat_map(|version| (Just(version), 1..=version, 0u8..3))
    }

    #[test]
    fn versions_stand_from_the_floor_on() {
        let mut versions = merged([(1, 1, 0), (2, 1, 0), (3, 1, 0)]);
        assert_eq!((versions.len(), versions.floor(), versions.current().map(|v| v.version)), (3, 1, Some(3)));
        assert_eq!(versions.growth(4, 3), -1);
        let taken = merge(&mut versions, (4, 3, 0));
        assert!(matches!(&taken, Merged::Taken(dropped) if dropped.iter().map(|v| v.version).eq([1, 2])), "{taken:?}");
        assert_eq!(merge(&mut versions, (2, 1, 0)), Merged::Older);
        assert_eq!(merge(&mut versions, (4, 3, 0)), Merged::Known);
        // A later version with a lower floor brings nothing back.
        assert_eq!(merge(&mut versions, (5, 1, 0)), Merged::Taken(vec![]));
        assert_eq!(merge(&mut versions, (2, 1, 0)), Merged::Older);
        // A removal is alone.
        assert_eq!(versions.growth(6, 6), -2);
        merge(&mut versions, (6, 6, 0));
        assert_eq!(said(&versions), [(6, 6, 0)]);
        assert_eq!((versions.get(6).is_some(), versions.get(5).is_some()), (true, false));
    }

    #[test]
    fn the_lowest_go_where_too_many_stand() {
        let mut versions = merged([(2, 1, 0), (3, 1, 0), (4, 1, 0)]);
        assert_eq!(merge(&mut versions, (1, 1, 0)), Merged::Older);
        assert!(matches!(merge(&mut versions, (5, 1, 0)), Merged::Taken(dropped) if dropped[0].version == 2));
        assert_eq!(versions.len(), MOST);
    }

    #[test]
    fn a_floor_that_was_seen_stays_in_force_though_its_publication_lost_a_tie() {
        // One node saw (5, floor 4) before (5, floor 1), the other after, the third never had version 1 to 3.
        let all = [(1, 1, 0), (3, 1, 0), (5, 4, 0), (5, 1, 2)];
        let mut backwards = all;
        backwards.reverse();
        assert_eq!(said(&merged(all)), [(5, 4, 0)]);
        assert_eq!(merged(backwards), merged(all));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_stands_is_what_was_meant_in_any_order(all in vec(any_said(), 0..14), swaps in vec((0usize..14, 0usize..14), 0..20)) {
            prop_assert_eq!(said(&merged(all.iter().copied())), meant(&all));
            let mut shuffled = all.clone();
            for (a, b) in swaps {
                if a < shuffled.len() && b < shuffled.len() {
                    shuffled.swap(a, b);
                }
            }
            prop_assert_eq!(said(&merged(shuffled)), meant(&all));
        }

        #[test]
        fn what_comes_again_changes_nothing(all in vec(any_said(), 1..14), again in any::<prop::sample::Index>()) {
            let mut versions = merged(all.iter().copied());
            let before = versions.clone();
            let merge = merge(&mut versions, all[again.index(all.len())]);
            prop_assert!(!matches!(merge, Merged::Taken(_)), "{merge:?}");
            prop_assert_eq!(versions, before);
        }

        /// What stands is all that anybody has to pass on: groups that were merged apart are joined by it.
        #[test]
        fn what_stands_can_be_merged_in_place_of_all(groups in vec(vec(any_said(), 0..8), 1..5)) {
            let mut joined = merged([]);
            for group in &groups {
                for said in said(&merged(group.iter().copied())) {
                    merge(&mut joined, said);
                }
            }
            prop_assert_eq!(said(&joined), meant(&groups.concat()));
        }

        /// Nodes that tell each other parts of what they have, at random, and in the end all of it.
        #[test]
        fn nodes_that_exchange_parts_become_equal(
            heard in vec((0usize..3, any_said()), 0..20),
            exchanges in vec((0usize..3, 0usize..3, any::<u8>(), 0usize..20), 0..20),
        ) {
            let mut nodes = [merged([]), merged([]), merged([])];
            let mut exchanges = exchanges.into_iter().peekable();
            let all: Vec<Said> = heard.iter().map(|heard| heard.1).collect();
            for (at, (node, said_to)) in heard.into_iter().enumerate() {
                merge(&mut nodes[node], said_to);
                while let Some((from, to, part, _)) = exchanges.next_if(|exchange| exchange.3 <= at) {
                    let told = said(&nodes[from]);
                    for (bit, said) in told.into_iter().enumerate() {
                        if part & (1 << bit) != 0 {
                            merge(&mut nodes[to], said);
                        }
                    }
                }
            }
            for (from, to) in [(0, 1), (1, 2), (2, 1), (1, 0)] {
                for said in said(&nodes[from]) {
                    merge(&mut nodes[to], said);
                }
            }
            for node in &nodes {
                prop_assert_eq!(said(node), meant(&all));
            }
        }

        #[test]
        fn growth_is_what_a_merge_will_add(all in vec(any_said(), 0..10), new in any_said()) {
            let mut versions = merged(all);
            let (before, growth) = (versions.len(), versions.growth(new.0, new.1));
            if let Merged::Taken(_) = merge(&mut versions, new) && before < MOST {
                prop_assert_eq!(versions.len() as isize - before as isize, growth);
            }
        }
    }
}
