//! Leaves and nodes that somebody made up, or that nobody has any more.

use std::collections::BTreeSet;

use super::{super::*, *};
use crate::{HashCode, MAX_CHUNK_BYTES, Multihash, dag::Profile};

#[test]
fn every_bit_of_a_leaf_counts() {
    let written = entries(0..5);
    let whole = bytes_of(&written);
    let mut accepted = 0;
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let Ok(leaf) = Leaf::decode(&flipped) else { continue };
        // Another digest or length can be valid; it then lists that, in order.
        assert_eq!(bytes_of(leaf.entries()), flipped);
        assert!(leaf.entries().is_sorted_by(|a, b| a.0 < b.0));
        assert!((2..39).contains(&(bit / 8 % ENTRY_BYTES)), "codec, function and spare have one value each");
        accepted += 1;
    }
    assert!(accepted > 0);
}

#[test]
fn a_leaf_out_of_bounds_is_malformed() {
    let written = entries(0..129);
    assert!(Leaf::decode(&bytes_of(&written)).is_err(), "129 entries");
    assert!(Leaf::decode(&[]).is_err());
    let two = bytes_of(&written[..2]);
    assert!(Leaf::decode(&[&two[40..], &two[..40]].concat()).is_err(), "descending");
    assert!(Leaf::decode(&[&two[..40], &two[..40]].concat()).is_err(), "twice");
    let too_long = Entry { length: MAX_CHUNK_BYTES as u32 + 1, ..written[0].1 };
    assert!(Leaf::decode(&too_long.to_bytes()).is_err());
    let mut spare = written[0].1.to_bytes();
    spare[39] = 1;
    assert!(Leaf::decode(&spare).is_err());
    let leaf = Leaf::decode(&bytes_of(&written[1..3])).expect("two of them");
    let key = |at: usize| Some(&written[at].0);
    assert!(leaf.check_between(key(0), key(3)).is_ok() && leaf.check_between(None, None).is_ok());
    assert!(leaf.check_between(key(1), None).is_err() && leaf.check_between(None, key(2)).is_err());
}

/// A leaf that is malformed lists nothing, wherever it stands, and hides nothing of the others.
#[test]
fn malformed_leaves_list_nothing_and_stop_nobody() {
    let written = entries(0..2000);
    let leaves: Vec<Vec<u8>> = written.chunks(LEAF_ENTRIES).map(bytes_of).collect();
    for bad in 0..leaves.len() {
        let mut forged = leaves.clone();
        // Valid entries, the last two in the wrong order; and a leaf that stands where another should.
        let swapped = forged[bad].len() - 2 * ENTRY_BYTES;
        forged[bad][swapped..].rotate_left(ENTRY_BYTES);
        let mut source = Source::default();
        let manifest = source.forge(&forged);
        let rest: Vec<_> = written.chunks(LEAF_ENTRIES).enumerate().filter(|(at, _)| *at != bad).collect();
        let rest: Vec<_> = rest.into_iter().flat_map(|(_, leaf)| leaf.to_vec()).collect();
        let seen = source.read(&manifest, START, None);
        assert_eq!((seen.listed, seen.malformed), (rest.clone(), vec![Place { level: 0, index: bad as u64 }]));
        for range in 0..16_u16 {
            let (from, to) = (at(range << 12), Some(at((range << 12) + 0x0fff)));
            let seen = source.read(&manifest, from, to);
            assert_eq!(seen.listed, within(&rest, from, to), "range {range}, leaf {bad}");
        }
    }
}

#[test]
fn leaves_in_another_order_list_nothing_twice_and_end() {
    let written = entries(0..2000);
    let leaves: Vec<Vec<u8>> = written.chunks(LEAF_ENTRIES).take(15).map(bytes_of).collect();
    let mut source = Source::default();
    let mut turned = leaves.clone();
    turned.reverse();
    let manifest = source.forge(&turned);
    let seen = source.read(&manifest, START, None);
    assert_eq!((seen.listed, seen.malformed.len()), (written[14 * 128..15 * 128].to_vec(), 14));
    let mut swapped = leaves;
    swapped.swap(4, 9);
    let manifest = source.forge(&swapped);
    for range in 0..16_u16 {
        let (from, to) = (at(range << 12), Some(at((range << 12) + 0x0fff)));
        let seen = source.read(&manifest, from, to);
        let valid: BTreeSet<Key> = within(&written, from, to).iter().map(|(key, _)| *key).collect();
        assert!(seen.listed.iter().all(|(key, _)| valid.contains(key)));
    }
}

/// A leaf that nobody has any more is left out by every reader; the others are listed.
#[test]
fn what_cannot_be_had_is_left_out() {
    let written = entries(0..2000);
    for lost in 0..16_usize {
        let mut source = Source::default();
        let manifest = source.write(&written);
        let leaf = &written[lost * LEAF_ENTRIES..written.len().min((lost + 1) * LEAF_ENTRIES)];
        source.0.remove(&Cid::of(Codec::Raw, &bytes_of(leaf)));
        let rest: Vec<_> = written.iter().filter(|entry| !leaf.contains(entry)).copied().collect();
        // What begins a little before is looked for in the leaf that is lost.
        let before = written[..lost * LEAF_ENTRIES].iter().rev().take(30).map(|(key, _)| (*key, None));
        for (from, to) in
            [(START, None), (leaf[0].0, None), (at(0x3000), Some(at(0x6000))), (leaf[1].0, Some(leaf[9].0))]
                .into_iter()
                .chain(before)
        {
            let seen = source.read(&manifest, from, to);
            assert_eq!((seen.listed, seen.malformed), (within(&rest, from, to), Vec::new()));
        }
    }
}

#[test]
fn a_lower_node_that_is_forged_or_lost_leaves_the_others() {
    let written = entries(0..140_000);
    let mut source = Source::default();
    let manifest = source.write(&written);
    let shape = Shape::new(manifest.entries).expect("it is not too large");
    let root = &source.0[&manifest.root];
    let lower = shape.children(shape.root(), root).expect("it was made here");
    let kept = source.0.remove(&lower[0].entry.cid).expect("it was made here");
    let seen = source.read(&manifest, START, None);
    assert_eq!((seen.listed, seen.malformed), (written[131_072..].to_vec(), Vec::new()));
    let own = source.own(&manifest, START, None);
    assert_eq!(own.listed.len(), 3 + 70, "the root, what it links to, and the leaves of the second");
    source.0.insert(*kept.cid(), kept);

    // A root that links to a file of the right size that is no manifest's node: another layout of the same bytes.
    let (mut builder, mut out) =
        (FileBuilder::with_profile(Metadata::default(), Profile::STANDARD.with_width(512)), Vec::new());
    let leaves: Vec<Chunk> = written[..131_072]
        .chunks(LEAF_ENTRIES)
        .map(|leaf| Chunk::new(Codec::Raw, bytes_of(leaf)).expect("short"))
        .collect();
    leaves.iter().for_each(|leaf| builder.leaf(Link::leaf(leaf), &mut out));
    let deeper = builder.finish(&mut out);
    source.keep(out);
    let mut links: Vec<Link> = lower.iter().map(|child| Link { cid: child.entry.cid, size: 0, tsize: 0 }).collect();
    links[0] = Link { tsize: 131_072 * 40 + u64::from(lower[0].entry.length), ..deeper };
    links[1] = Link { size: 8928 * 40, tsize: 8928 * 40 + u64::from(lower[1].entry.length), ..links[1] };
    let forged = Chunk::new(Codec::DagPb, crate::dag::node_bytes(&links, Metadata::default())).expect("short");
    let manifest = Manifest { root: *forged.cid(), entries: 140_000 };
    assert!(shape.children(shape.root(), &forged).is_ok(), "nothing is wrong with the root itself");
    source.keep(vec![forged]);
    let seen = source.read(&manifest, START, None);
    assert_eq!((seen.listed, seen.malformed), (written[131_072..].to_vec(), vec![Place { level: 1, index: 0 }]));
    assert_eq!(source.own(&manifest, START, None).malformed, [Place { level: 1, index: 0 }]);
}

/// Every other file, deeper, of another size, or written otherwise, is no manifest.
#[test]
fn forged_roots_are_refused() {
    let written = entries(0..1000);
    let mut source = Source::default();
    let manifest = source.write(&written);
    let shape = Shape::new(1000).expect("it is not too large");
    let root = source.0[&manifest.root].clone();
    let children = shape.children(shape.root(), &root).expect("it was made here");
    assert_eq!(children.len(), 8);
    let links: Vec<Link> = children
        .iter()
        .map(|child| {
            let length = u64::from(child.entry.length);
            Link { cid: child.entry.cid, size: length, tsize: length }
        })
        .collect();
    let node =
        |links: &[Link], metadata| Chunk::new(Codec::DagPb, crate::dag::node_bytes(links, metadata)).expect("short");
    assert_eq!(node(&links, Metadata::default()), root);
    let with = |at: usize, change: &dyn Fn(&mut Link)| {
        let mut changed = links.clone();
        change(&mut changed[at]);
        node(&changed, Metadata::default())
    };
    let sha = Multihash::of(HashCode::Sha2_256, b"");
    // Every byte of a node that does not belong to an address has one value.
    let free: BTreeSet<usize> = links
        .iter()
        .flat_map(|link| {
            let digest = link.cid.hash.digest;
            let at = root.bytes().windows(32).position(|window| *window == digest).expect("it is linked");
            at..at + 32
        })
        .collect();
    for at in 0..root.len() {
        let mut bytes = root.bytes().to_vec();
        bytes[at] ^= 1;
        let changed = Chunk::new(Codec::DagPb, bytes).expect("short");
        assert_eq!(shape.children(shape.root(), &changed).is_ok(), free.contains(&at), "byte {at}");
    }
    let forged = [
        node(&links[..7], Metadata::default()),
        node(&[&links[..], &links[..1]].concat(), Metadata::default()),
        node(&links, Metadata { mode: Some(0o644), mtime: None }),
        with(3, &|link| link.size -= 40),
        with(3, &|link| link.tsize += 1),
        with(3, &|link| link.cid.codec = Codec::DagPb),
        with(3, &|link| link.cid.hash = sha),
        with(3, &|link| link.cid = links[2].cid),
        Chunk::new(Codec::Raw, root.bytes().clone()).expect("short"),
        Chunk::new(Codec::DagPb, [&root.bytes()[..], &[0x0a, 0]].concat()).expect("short"),
        Chunk::new(Codec::DagPb, Vec::new()).expect("short"),
    ];
    for (at, forged) in forged.into_iter().enumerate() {
        assert!(shape.children(shape.root(), &forged).is_err(), "forged root {at}");
        if forged.cid().codec == Codec::DagPb {
            let manifest = Manifest { root: *forged.cid(), ..manifest };
            source.keep(vec![forged]);
            let seen = source.read(&manifest, START, None);
            assert_eq!((seen.listed, seen.malformed), (Vec::new(), vec![shape.root()]), "forged root {at}");
        }
    }
    for entries in [1001, 999, 1, 128, 140_000] {
        let claimed = Manifest { entries, ..manifest };
        // One leaf is raw, and this root is not.
        let Ok(shape) = Shape::new(entries).and_then(|shape| shape.root_of(&claimed).map(|_| shape)) else { continue };
        assert!(entries > 128);
        let seen = source.read(&claimed, START, None);
        assert_eq!((seen.listed, seen.malformed), (Vec::new(), vec![shape.root()]), "{entries} entries claimed");
    }
    let leaf = children[0].entry.cid;
    assert!(RangeReader::new(&Manifest { root: leaf, entries: 1000 }, START, None).is_err());
    assert!(RangeReader::new(&Manifest { root: leaf, entries: 0 }, START, None).is_err());
    assert!(OwnChunks::new(&Manifest { root: leaf, entries: MAX_ENTRIES + 1 }, START, None).is_err());
    assert_eq!(Shape::new(MAX_ENTRIES).map(|shape| (shape.leaves(), shape.root().level)), Ok((1 << 25, 3)));
    assert!(Shape::new(MAX_ENTRIES + 1).is_err() && Shape::new(0).is_err() && Shape::new(u64::MAX).is_err());
    let short = source.read(&Manifest { root: leaf, entries: 127 }, START, None);
    assert_eq!((short.listed, short.malformed), (Vec::new(), vec![Place { level: 0, index: 0 }]), "a leaf of 128");
    for (place, why) in [
        (Place { level: 0, index: 0 }, "a leaf has no children"),
        (Place { level: 2, index: 0 }, "above the root"),
        (Place { level: 1, index: 1 }, "beside the root"),
        (Place { level: 255, index: u64::MAX }, "anywhere"),
    ] {
        assert!(shape.children(place, &root).is_err(), "{why}");
        assert!(place.level == 0 || shape.leaves_under(place).is_empty() || place.level == 2);
    }
}

/// The search looked at the leaf before; the first that is listed has to follow it too.
#[test]
fn a_first_leaf_that_overlaps_the_one_before_is_malformed() {
    let all = entries(0..4000);
    let between = |from: u16, to: u16| within(&all, at(from), Some(at(to)));
    let low = between(0, 0x2000);
    let (stray, low) = (low[5], [&low[..5], &low[6..129]].concat());
    let middle = [&[stray][..], &between(0x2000, 0x4000)[..127]].concat();
    let high = between(0x8000, 0xffff)[..40].to_vec();
    let mut source = Source::default();
    let manifest = source.forge(&[bytes_of(&low), bytes_of(&middle), bytes_of(&high)]);
    // A guess by the keyspace alone is the first leaf, which ends below.
    let seen = source.read(&manifest, at(0x2400), None);
    assert_eq!((seen.listed, seen.malformed), (high, vec![Place { level: 0, index: 1 }]));
}

/// What a few chunks claim to be in very many places ends after a few of them.
#[test]
fn a_claim_that_repeats_itself_is_given_up() {
    let written = entries(0..128);
    let leaf = bytes_of(&written);
    // Distinct malformed leaves, which a claim of the greatest number repeats in every node.
    let mut links = Vec::new();
    let mut source = Source::default();
    for number in 0..1024_u32 {
        let mut leaf = leaf.clone();
        leaf[2..6].copy_from_slice(&number.to_be_bytes());
        leaf[39] = 1;
        let leaf = Chunk::new(Codec::Raw, leaf).expect("short");
        links.push(Link::leaf(&leaf));
        source.keep(vec![leaf]);
    }
    // 1,024 nodes of the same leaves in another order each, below one root.
    let mut nodes = Vec::new();
    for _ in 0..1024 {
        links.rotate_left(1);
        let node = Chunk::new(Codec::DagPb, crate::dag::node_bytes(&links, Metadata::default())).expect("short");
        let size = 1024 * LEAF_BYTES as u64;
        nodes.push(Link { cid: *node.cid(), size, tsize: size + node.len() as u64 });
        source.keep(vec![node]);
    }
    let root = Chunk::new(Codec::DagPb, crate::dag::node_bytes(&nodes, Metadata::default())).expect("short");
    let manifest = Manifest { root: *root.cid(), entries: 128 << 20 };
    source.keep(vec![root]);
    let seen = source.read(&manifest, at(0x1234), None);
    assert!(seen.listed.is_empty());
    assert_eq!(seen.malformed.last(), Some(&Place { level: 2, index: 0 }), "all the rest is given up");
    assert!(seen.wants.len() < 200, "{}", seen.wants.len());

    // And inner nodes that are none, one for each place.
    for (number, node) in (0_u32..).zip(&mut nodes) {
        let garbage = Chunk::new(Codec::DagPb, number.to_be_bytes().to_vec()).expect("short");
        node.cid = *garbage.cid();
        source.keep(vec![garbage]);
    }
    let root = Chunk::new(Codec::DagPb, crate::dag::node_bytes(&nodes, Metadata::default())).expect("short");
    let manifest = Manifest { root: *root.cid(), ..manifest };
    source.keep(vec![root]);
    let seen = source.own(&manifest, START, None);
    assert_eq!((seen.wants.len(), seen.malformed.len()), (65, 64));
    assert_eq!(seen.malformed.last(), Some(&Place { level: 2, index: 0 }));
}
