//! Files: built and walked.

use proptest::prelude::*;

use super::*;

/// Builds a file of these leaves.
fn build(leaves: &[Vec<u8>], metadata: Metadata, width: usize) -> (Source, Link) {
    let mut source = Source::default();
    let mut builder = FileBuilder::with_profile(metadata, Profile::STANDARD.with_width(width));
    let mut out = Vec::new();
    for leaf in leaves {
        let link = source.raw(leaf);
        builder.leaf(link, &mut out);
    }
    let root = builder.finish(&mut out);
    for chunk in out {
        source.keep(chunk);
    }
    (source, root)
}

/// Depths of all leaves under a chunk.
fn depths(source: &Source, cid: &Cid, depth: usize, out: &mut Vec<usize>) {
    match links(source.get(cid)).expect("a valid node") {
        below if below.is_empty() => out.push(depth),
        below => below.iter().for_each(|link| depths(source, &link.cid, depth + 1, out)),
    }
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let mode = prop::option::of(0_u32..=0o7777);
    let mtime = prop::option::of((any::<i64>(), 0_u32..1_000_000_000));
    (mode, mtime).prop_map(|(mode, mtime)| Metadata { mode, mtime })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_built_is_walked(
        leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..9), 0..150),
        metadata in metadata(),
        width in 2_usize..6,
        ranges in prop::collection::vec((0_u64..1000, 0_u64..1000), 4),
    ) {
        let (source, root) = build(&leaves, metadata, width);
        let content = leaves.concat();
        prop_assert_eq!(root.size, content.len() as u64);
        prop_assert_eq!(source.read(&root.cid, 0..u64::MAX), Ok(content.clone()));
        for (start, end) in ranges {
            let part = content.get(start as usize..(end as usize).min(content.len())).unwrap_or_default();
            prop_assert_eq!(source.read(&root.cid, start..end), Ok(part.to_vec()));
        }
        let node = decode(source.get(&root.cid)).expect("valid");
        prop_assert_eq!((node.metadata(), node.file_size()), (metadata, Some(root.size)));
    }

    #[test]
    fn all_leaves_are_equally_deep_and_no_deeper_than_they_must(count in 1_usize..200, width in 2_usize..6) {
        let leaves: Vec<Vec<u8>> = (0..count).map(|leaf| vec![leaf as u8; 3]).collect();
        let (source, root) = build(&leaves, Metadata::default(), width);
        let mut found = Vec::new();
        depths(&source, &root.cid, 0, &mut found);
        let depth = (0..).find(|depth| width.pow(*depth) >= count).expect("some power is larger");
        prop_assert_eq!(found, vec![depth as usize; count]);
        let stored: u64 = root.tsize;
        let below: u64 = links(source.get(&root.cid)).expect("valid").iter().map(|link| link.tsize).sum();
        prop_assert_eq!(stored, below + source.get(&root.cid).len() as u64);
    }
}

#[test]
fn a_file_of_one_leaf_is_that_leaf_unless_it_carries_metadata() {
    let (_, plain) = build(&[b"x".to_vec()], Metadata::default(), 1024);
    assert_eq!(plain.cid, Cid::of(Codec::Raw, b"x"));
    let kept = Metadata { mode: Some(0o644), mtime: None };
    let (source, root) = build(&[b"x".to_vec()], kept, 1024);
    assert_eq!(root.cid.codec, Codec::DagPb);
    assert_eq!(links(source.get(&root.cid)).map(|links| links[0].cid), Ok(plain.cid));
    let (source, empty) = build(&[], kept, 1024);
    assert_eq!(source.read(&empty.cid, 0..9), Ok(vec![]));
    assert_eq!(source.0.len(), 1, "nothing but the root");
}

#[test]
fn inner_nodes_come_out_while_leaves_go_in() {
    let mut builder = FileBuilder::with_profile(Metadata::default(), Profile::STANDARD.with_width(2));
    let leaf = Link::leaf(&Chunk::new(Codec::Raw, &b"leaf"[..]).expect("short"));
    let mut out = Vec::new();
    let made: Vec<usize> = (0..9)
        .map(|_| {
            builder.leaf(leaf, &mut out);
            std::mem::take(&mut out).len()
        })
        .collect();
    assert_eq!(made, [0, 0, 1, 0, 1, 0, 2, 0, 1]);
}

#[test]
fn inner_nodes_can_be_fetched_ahead() {
    let leaves: Vec<Vec<u8>> = (0..16).map(|leaf| vec![leaf; 2]).collect();
    let (source, root) = build(&leaves, Metadata::default(), 4);
    let inner: Vec<Cid> = links(source.get(&root.cid)).expect("valid").iter().map(|link| link.cid).collect();
    let mut walker = FileWalker::new(source.get(&root.cid), 9..32).expect("a file");
    assert_eq!(walker.upcoming_inner(9), inner[1..], "not what is before the range");
    assert_eq!(walker.upcoming_inner(2), inner[1..3]);
    assert_eq!(walker.expand(source.get(&inner[2])), Err(DagError::Unasked(inner[2])), "not in its turn");
    assert_eq!(walker.expand(source.get(&inner[1])), Ok(()));
    assert!(matches!(walker.next_step(), Some(Step::Leaf { offset: 8, skip: 1, take: 1, length: 2, .. })));
    assert_eq!(walker.upcoming_inner(9), inner[2..]);
}
