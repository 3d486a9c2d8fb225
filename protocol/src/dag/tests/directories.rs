//! Directories and symbolic links: built, listed and searched.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn build(names: &BTreeSet<String>, metadata: Metadata, flat_bytes: usize) -> (Source, Link, Vec<Chunk>) {
    let mut source = Source::default();
    let mut builder = DirectoryBuilder::with_profile(metadata, Profile::STANDARD.with_flat_bytes(flat_bytes));
    // The order in which entries come must not matter.
    for name in names.iter().rev() {
        let link = source.raw(name.as_bytes());
        builder.entry(name.clone(), link).expect("a good name");
    }
    let mut out = Vec::new();
    let root = builder.finish(&mut |chunk| out.push(chunk)).expect("distinct names");
    for chunk in &out {
        source.keep(chunk.clone());
    }
    (source, root, out)
}

fn expected(names: &BTreeSet<String>) -> Vec<Entry> {
    let entry = |name: &String| Entry {
        name: name.clone(),
        cid: Cid::of(Codec::Raw, name.as_bytes()),
        tsize: name.len() as u64,
    };
    names.iter().map(entry).collect()
}

fn names(count: usize) -> BTreeSet<String> {
    (0..count).map(|number| format!("name-{number}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_built_is_listed_and_found(
        names in prop::collection::btree_set("[a-zé]{1,3}", 0..400),
        others in prop::collection::btree_set("[a-zé]{1,3}", 0..50),
        sharded: bool,
        lifo: bool,
    ) {
        let kept = Metadata { mode: Some(0o755), mtime: Some((7, 8)) };
        let (source, root, out) = build(&names, kept, if sharded { 0 } else { usize::MAX });
        prop_assert_eq!(out.last().map(Chunk::cid), Some(&root.cid), "the root comes last");
        let node = decode(source.get(&root.cid)).expect("valid");
        prop_assert_eq!((node.metadata(), node.is_directory()), (kept, true));
        prop_assert_eq!(matches!(node, Node::Shard { .. }), sharded);
        prop_assert_eq!(root.size, names.iter().map(|name| name.len() as u64).sum::<u64>());
        let mut listed = source.list(&root.cid, lifo).expect("valid");
        listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        prop_assert_eq!(&listed, &expected(&names));
        for entry in listed {
            prop_assert_eq!(source.look_up(&root.cid, &entry.name), Ok(Some(entry)));
        }
        for other in others.difference(&names) {
            prop_assert_eq!(source.look_up(&root.cid, other), Ok(None));
        }
    }
}

#[test]
fn a_directory_is_sharded_when_its_exact_block_is_too_long() {
    let names = names(50);
    let (source, flat, _) = build(&names, Metadata::default(), 1 << 20);
    let length = source.get(&flat.cid).len();
    let kind = |flat_bytes| {
        let (source, root, _) = build(&names, Metadata::default(), flat_bytes);
        matches!(decode(source.get(&root.cid)), Ok(Node::Shard { .. }))
    };
    assert!(!kind(length));
    assert!(kind(length - 1));
}

#[test]
fn a_lookup_asks_only_for_the_shards_on_its_path() {
    let names = names(3000);
    let (source, root, out) = build(&names, Metadata::default(), 0);
    assert!(out.len() > 200, "{} shards", out.len());
    let mut lookup = NameLookup::new(source.get(&root.cid), "name-77").expect("a directory");
    let mut asked = 0;
    while let Lookup::Wanted(cid) = *lookup.state() {
        assert_eq!(lookup.supply(source.get(&root.cid)), Err(DagError::Unasked(root.cid)));
        lookup.supply(source.get(&cid)).expect("valid");
        asked += 1;
    }
    assert!(matches!(lookup.state(), Lookup::Found(entry) if entry.name == "name-77"));
    assert!((1..=7).contains(&asked), "{asked} shards");
}

#[test]
fn bad_names_and_repeats_are_refused() {
    let link = Link::leaf(&Chunk::new(Codec::Raw, &b""[..]).expect("short"));
    let mut builder = DirectoryBuilder::new(Metadata::default());
    for name in ["", ".", "..", "a/b", "/", "../x", "nul\0"] {
        assert!(matches!(builder.entry(name.to_owned(), link), Err(DagError::Name { .. })), "{name:?}");
    }
    assert!(builder.entry("é".repeat(MAX_NAME_BYTES / 2), link).is_ok());
    assert!(matches!(builder.entry("é".repeat(MAX_NAME_BYTES / 2 + 1), link), Err(DagError::Name { .. })));
    for name in ["...", " ", "\\", "twice", "twice"] {
        assert_eq!(builder.entry(name.to_owned(), link), Ok(()));
    }
    let finished = builder.finish(&mut |_| panic!("nothing is given out"));
    assert_eq!(finished, Err(DagError::DuplicateName { name: "twice".to_owned() }));
}

#[test]
fn a_symbolic_link_keeps_its_target() {
    let kept = Metadata { mode: None, mtime: Some((-5, 0)) };
    let (chunk, link) = symlink(b"../\xff", kept).expect("a good target");
    assert_eq!((link.size, link.tsize), (0, chunk.len() as u64));
    assert_eq!(decode(&chunk), Ok(Node::Symlink { target: Bytes::from_static(b"../\xff"), metadata: kept }));
    assert_eq!(symlink(b"", kept), Err(DagError::Target { length: 0 }));
    assert_eq!(symlink(&[b'x'; MAX_TARGET_BYTES + 1], kept), Err(DagError::Target { length: MAX_TARGET_BYTES + 1 }));
}
