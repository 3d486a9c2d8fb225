//! Honest manifests of any set: what was written is read, in every range, and little else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use proptest::prelude::*;

use super::{super::*, *};
use crate::MAX_CHUNK_BYTES;

/// Whole numbers around every edge of the layout that a test can afford.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![1_u64..300, prop::sample::select(vec![1, 8, 9, 127, 128, 129, 255, 256, 257]), 300_u64..3000]
}

/// Made once: there are enough of them in every corner of the keyspace.
static MANY: LazyLock<Vec<(Key, Entry)>> = LazyLock::new(|| entries(0..40_000));

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read_in_every_range(count in count(), seed: u32, ranges: [(u16, u16); 4], ends: [prop::sample::Index; 2]) {
        let written = entries((0..count).map(|number| u64::from(seed) << 32 | number));
        let mut source = Source::default();
        let manifest = source.write(&written);
        prop_assert_eq!(manifest.entries, count);
        let [a, b] = ends.map(|end| end.get(&written).0);
        let mut wanted = vec![(START, None), (a, Some(b)), (b, None), (a, Some(a)), (Key([0xff; 32]), None)];
        wanted.extend(ranges.map(|(from, to)| (at(from), Some(at(to)))));
        for (from, to) in wanted {
            let seen = source.read(&manifest, from, to);
            prop_assert_eq!(&seen.listed, &within(&written, from, to));
            prop_assert!(seen.malformed.is_empty());
            prop_assert!(to.is_none_or(|to| to > from) || seen.wants.is_empty(), "nothing is read for nothing");
        }
    }

    #[test]
    fn one_set_has_one_manifest(numbers in prop::collection::btree_set(0_u64..5000, 1..700)) {
        // The set gives its numbers ascending, which is neither this order nor that of the keys.
        let reversed = entries(numbers.iter().rev().copied());
        let mut source = Source::default();
        let manifest = source.write(&reversed);
        prop_assert_eq!(source.write(&entries(numbers.iter().copied())), manifest);
        let mut out = Vec::new();
        let listing = Listing::of(reversed.iter().map(|(_, entry)| *entry), &mut out).expect("they ascend");
        if numbers.len() <= MAX_INLINE_ENTRIES {
            prop_assert_eq!(listing, Listing::inline(reversed.iter().map(|(_, entry)| *entry).collect()).expect("few"));
            prop_assert!(out.is_empty());
        } else {
            prop_assert_eq!(listing, Listing::Manifest(manifest.root));
            prop_assert!(out.iter().any(|chunk| *chunk.cid() == manifest.root));
            let mut fewer = numbers.clone();
            fewer.pop_last();
            prop_assert_ne!(source.write(&entries(fewer)).root, manifest.root);
        }
    }

    /// Chunks whose keys were chosen: most of them in one corner of the keyspace.
    #[test]
    fn clustered_keys_are_found_like_others(corner in 0_u8..255, others in 0_usize..200, from: u16, near: u16) {
        let mut written = MANY.clone();
        let stranger = written.len() / (others + 1);
        let keep: BTreeSet<Key> = written.iter().step_by(stranger.max(1)).map(|(key, _)| *key).collect();
        written.retain(|(key, _)| (corner..=corner.saturating_add(12)).contains(&key.0[0]) || keep.contains(key));
        let mut source = Source::default();
        let manifest = source.write(&written);
        let leaves = written.len().div_ceil(LEAF_ENTRIES);
        for from in [at(from), at(u16::from(corner) << 8 | near & 0xff)] {
            let mut end = from;
            end.0[1] = end.0[1].saturating_add(1);
            let seen = source.read(&manifest, from, Some(end));
            prop_assert_eq!(&seen.listed, &within(&written, from, Some(end)));
            let needed = seen.listed.len() / LEAF_ENTRIES + 2;
            prop_assert!(seen.leaves() <= needed + 4 + 2 * leaves.ilog2() as usize, "{} of {}", seen.leaves(), leaves);
        }
    }

    #[test]
    fn a_leaf_is_all_valid_or_nothing(count in 1_u64..=128, bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3), cut: prop::sample::Index) {
        let written = entries(0..count);
        let whole = bytes_of(&written);
        prop_assert_eq!(Leaf::decode(&whole).map(Leaf::into_entries), Ok(written));
        let mut changed = whole.clone();
        bytes.iter().for_each(|(at, byte)| changed[at.index(whole.len())] ^= byte);
        if let Ok(leaf) = Leaf::decode(&changed) {
            prop_assert_eq!(bytes_of(leaf.entries()), changed);
            prop_assert!(leaf.entries().is_sorted_by(|a, b| a.0 < b.0));
            prop_assert!(leaf.entries().iter().all(|(key, entry)| entry.key() == *key && entry.length as usize <= MAX_CHUNK_BYTES));
        }
        let cut = cut.index(whole.len());
        prop_assert_eq!(Leaf::decode(&whole[..cut]).is_ok(), cut > 0 && cut % ENTRY_BYTES == 0);
    }
}

#[test]
fn a_writer_takes_only_what_ascends() {
    let written = entries(0..3);
    let (mut writer, mut out) = (Writer::new(), Vec::new());
    writer.push(written[1].1, &mut out).expect("the first");
    for wrong in [written[1].1, written[0].1] {
        assert_eq!(writer.push(wrong, &mut out), Err(WriteError::Disorder));
    }
    let other_codec = Entry { cid: Cid { codec: Codec::DagPb, ..written[1].1.cid }, length: 8 };
    assert_eq!(writer.push(other_codec, &mut out), Err(WriteError::Disorder), "one multihash stands once");
    let length = MAX_CHUNK_BYTES as u32 + 1;
    assert_eq!(writer.push(Entry { length, ..written[2].1 }, &mut out), Err(WriteError::TooLong(length)));
    writer.push(written[2].1, &mut out).expect("what failed was not taken");
    let manifest = writer.finish(&mut out).expect("there are two");
    assert_eq!(manifest, Source::default().write(&written[1..]));
    assert_eq!(Writer::new().finish(&mut out), None);
    assert_eq!(Listing::of([], &mut out), Ok(Listing::Inline(Vec::new())));
    let listed = |count| Listing::of(entries(0..count).into_iter().map(|(_, entry)| entry), &mut Vec::new());
    assert!(
        matches!(listed(8), Ok(Listing::Inline(few)) if few.len() == 8)
            && matches!(listed(9), Ok(Listing::Manifest(_)))
    );
    let inline = |entries: &[(Key, Entry)]| Listing::inline(entries.iter().map(|(_, entry)| *entry).collect());
    assert!(inline(&written).is_some() && inline(&entries(0..8)).is_some());
    assert_eq!(inline(&entries(0..9)), None);
    assert_eq!(inline(&[written[1], written[0]]), None);
    assert_eq!(inline(&[written[0], written[0]]), None);
}

/// The writer holds one leaf and one node's links a level, and gives chunks out as they are complete.
#[test]
fn a_manifest_comes_out_bit_by_bit() {
    let (mut writer, mut out) = (Writer::new(), Vec::new());
    let (mut leaves, mut most) = (0, 0);
    for (at, (_, entry)) in entries(0..2000).into_iter().enumerate() {
        writer.push(entry, &mut out).expect("they ascend");
        leaves += out.len();
        most = most.max(out.len());
        out.clear();
        assert_eq!(leaves, (at + 1) / LEAF_ENTRIES);
    }
    assert_eq!(most, 1);
    writer.finish(&mut out);
    assert_eq!(out.len(), 2, "the last leaf and the root");
}

/// The figures that the layout was chosen for.
#[test]
fn a_thousandth_of_a_large_manifest_is_read_in_three_leaves() {
    let written = entries(0..100_000);
    let mut source = Source::default();
    let manifest = source.write(&written);
    let root = source.0[&manifest.root].len() as u64;
    let (mut leaves, mut most) = (0, 0);
    let ranges = 400_u16;
    for range in 0..ranges {
        let from = at(range * 163);
        let to = at(range * 163 + 66);
        let seen = source.read(&manifest, from, Some(to));
        assert_eq!(seen.listed, within(&written, from, Some(to)));
        assert_eq!(seen.wants.len() - seen.leaves(), 1, "the only inner node is the root");
        let bytes: u64 = seen.wants.iter().map(|entry| u64::from(entry.length)).sum();
        assert!(bytes <= root + 6 * LEAF_BYTES as u64, "{bytes}");
        leaves += seen.leaves();
        most = most.max(seen.leaves());
    }
    // About one and a half hold the range, one tells that it has ended, one is the wrong guess.
    assert!(leaves <= 3 * usize::from(ranges) && most <= 6, "{leaves} leaves in {ranges} ranges, {most} at most");
    let whole = source.read(&manifest, START, None);
    assert_eq!((whole.listed.len(), whole.leaves()), (100_000, 782), "each leaf once");
}

/// Two inner levels: from 131,072 entries on. Also what is fetched ahead is what is wanted.
#[test]
fn a_manifest_of_two_inner_levels_is_read_and_its_own_chunks_are_found() {
    let written = entries(0..140_000);
    let mut source = Source::default();
    let manifest = source.write(&written);
    let shape = Shape::new(manifest.entries).expect("it is not too large");
    assert_eq!((shape.leaves(), shape.root().level), (1094, 2));
    assert_eq!(source.read(&manifest, START, None).listed, written);
    // Across the edge between the two lower nodes, which stands at 1024 of 1094 leaves.
    let (from, to) = (written[130_900].0, written[131_300].0);
    let seen = source.read(&manifest, from, Some(to));
    assert_eq!(seen.listed, written[130_900..131_300]);
    assert!(seen.leaves() <= 8 && seen.wants.len() - seen.leaves() == 3, "{}", seen.wants.len());

    let all: BTreeMap<Key, Entry> = source
        .0
        .values()
        .map(|chunk| Entry { cid: *chunk.cid(), length: chunk.len() as u32 })
        .map(|entry| (entry.key(), entry))
        .collect();
    assert_eq!(all.len(), 1094 + 3);
    for (from, to) in [(START, None), (at(0x4000), Some(at(0x8000))), (at(5), Some(at(5)))] {
        let seen = source.own(&manifest, from, to);
        let expected: Vec<_> = all.iter().map(|(key, entry)| (*key, *entry)).collect();
        let found: BTreeMap<Key, Entry> = seen.listed.iter().copied().collect();
        assert_eq!(found.len(), seen.listed.len(), "each once");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), within(&expected, from, to));
        assert_eq!((seen.wants.len(), seen.leaves()), (3, 0), "all inner nodes and no leaf");
    }
    let small = source.write(&written[..128]);
    let alone = source.own(&small, START, None);
    assert_eq!((alone.listed.len(), alone.wants.len()), (1, 0), "one leaf is its own root");
}

#[test]
fn what_is_fetched_ahead_is_wanted_later() {
    let written = entries(0..5000);
    let mut source = Source::default();
    let manifest = source.write(&written);
    let (mut ahead, mut wanted) = (BTreeSet::new(), Vec::new());
    let (from, to) = (at(0x2000), at(0xa000));
    let mut reader = RangeReader::new(&manifest, from, Some(to)).expect("it has the right root");
    loop {
        ahead.extend(reader.ahead(4).into_iter().map(|entry| entry.cid));
        assert!(reader.ahead(4).len() <= 4);
        match reader.next_step() {
            Step::Want(entry) => {
                wanted.push(entry.cid);
                assert!(reader.supply(&Chunk::new(Codec::Raw, &b"another"[..]).expect("short")).is_err());
                reader.supply(&source.0[&entry.cid]).expect("it was asked for");
                assert!(reader.supply(&source.0[&entry.cid]).is_err(), "once");
            }
            Step::Done => break,
            step => assert!(matches!(step, Step::Listed(_)), "{step:?}"),
        }
    }
    let for_nothing = ahead.iter().filter(|cid| !wanted.contains(cid)).count();
    assert!(ahead.len() > wanted.len() / 2 && for_nothing <= 2, "{} of {}", for_nothing, ahead.len());
}
