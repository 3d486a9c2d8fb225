//! What nobody may make: each is refused with an error, in bounded time and memory.

use proptest::prelude::*;

use super::{
    unixfs::{Message, Type},
    *,
};

/// Everything that reads one chunk, on this chunk: nothing may panic.
fn read_all(chunk: &Chunk) {
    let _ = links(chunk);
    let _ = check_leaf(chunk, 5);
    let _ = NameLookup::new(chunk, "name");
    if let Ok(mut walker) = FileWalker::new(chunk, 3..u64::MAX) {
        let _ = walker.expand(chunk);
        let _ = walker.upcoming_inner(9);
        // A file of one chunk has no more steps than that has bytes.
        for _ in 0..=chunk.len() {
            let Some(step) = walker.next_step() else { break };
            if matches!(step, Step::Inner(_)) {
                break;
            }
        }
    }
    if let Ok(mut walker) = DirectoryWalker::new(chunk) {
        assert!(walker.wanted().len() <= MAX_WANTED);
        for entry in walker.take_entries() {
            assert_eq!(check_name(entry.name.as_bytes()), Ok(&*entry.name));
        }
    }
}

/// Valid nodes of every type.
fn seeds() -> Vec<Vec<u8>> {
    let metadata = Metadata { mode: Some(0o644), mtime: Some((1, 2)) };
    let leaf = Link::leaf(&Chunk::new(Codec::Raw, &b"leaf"[..]).expect("short"));
    let mut out = Vec::new();
    let mut file = FileBuilder::with_profile(metadata, Profile::STANDARD.with_width(3));
    (0..8).for_each(|_| file.leaf(leaf, &mut out));
    file.finish(&mut out);
    for flat_bytes in [0, usize::MAX] {
        let profile = Profile::STANDARD.with_flat_bytes(flat_bytes);
        let mut directory = DirectoryBuilder::with_profile(metadata, profile);
        (0..40).for_each(|name| directory.entry(name.to_string(), leaf).expect("a good name"));
        directory.finish(&mut |chunk| out.push(chunk)).expect("distinct names");
    }
    out.push(symlink(b"target", metadata).expect("a good target").0);
    out.into_iter().map(|chunk| chunk.bytes().to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(&Chunk::new(Codec::DagPb, bytes.clone()).expect("short"));
        let mut inside = Vec::new();
        pb::put_data(&mut inside, &bytes);
        read_all(&Chunk::new(Codec::DagPb, inside).expect("short"));
    }

    #[test]
    fn broken_nodes_are_read_without_a_panic(
        seed in prop::sample::select(seeds()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        keep in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = seed;
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        read_all(&Chunk::new(Codec::DagPb, bytes).expect("short"));
    }
}

#[test]
fn sizes_that_do_not_add_up_are_refused() {
    let cid = Cid::of(Codec::Raw, b"x");
    let file = |links: usize, file_size, block_sizes: &[u64]| {
        let message = Message { file_size, block_sizes: block_sizes.to_vec(), ..Message::new(Type::File) };
        decode(&node(&vec![(cid, "", 1); links], &message))
    };
    assert!(file(2, Some(3), &[1, 2]).is_ok());
    assert!(file(2, None, &[1, 2]).is_ok(), "a file without a size has that of its parts");
    assert!(matches!(file(2, Some(4), &[1, 2]), Err(DagError::Sizes(_))));
    assert!(matches!(file(2, Some(3), &[3]), Err(DagError::Sizes(_))));
    assert!(matches!(file(1, Some(3), &[1, 2]), Err(DagError::Sizes(_))));
    assert!(matches!(file(2, Some(0), &[u64::MAX, 1]), Err(DagError::Sizes(_))));
    assert!(matches!(file(0, Some(1), &[]), Err(DagError::Sizes(_))));
}

#[test]
fn a_child_of_another_length_than_its_parent_says_is_refused() {
    let mut source = Source::default();
    let short = source.raw(b"short");
    let message = |size| Message { file_size: Some(size), block_sizes: vec![size], ..Message::new(Type::File) };
    let inner = source.keep(node(&[(short.cid, "", 5)], &message(6)));
    let expected = DagError::Length { cid: short.cid, expected: 6, found: 5 };
    assert_eq!(source.read(&inner.cid, 0..9), Err(expected));
    let root = source.keep(node(&[(inner.cid, "", 5)], &message(7)));
    let expected = DagError::Length { cid: inner.cid, expected: 7, found: 6 };
    assert_eq!(source.read(&root.cid, 0..9), Err(expected));
    let directory = source.keep(node(&[], &Message::new(Type::Directory)));
    let root = source.keep(node(&[(directory.cid, "", 5)], &message(7)));
    assert_eq!(source.read(&root.cid, 0..9), Err(DagError::NotAFile(directory.cid)));
}

#[test]
fn a_file_that_is_too_deep_or_too_wide_is_refused() {
    let mut source = Source::default();
    let mut link = source.raw(b"x");
    let message = Message { file_size: Some(1), block_sizes: vec![1], ..Message::new(Type::File) };
    for _ in 0..=MAX_DEPTH {
        link = source.keep(node(&[(link.cid, "", 1)], &message));
    }
    assert_eq!(source.read(&link.cid, 0..1), Ok(b"x".to_vec()));
    for _ in 0..2 {
        link = source.keep(node(&[(link.cid, "", 1)], &message));
    }
    assert_eq!(source.read(&link.cid, 0..1), Err(DagError::TooDeep(MAX_DEPTH)));

    // Each level claims forty thousand times the bytes of the one below.
    const WIDE: usize = 40_000;
    let (mut cid, mut size) = (Cid::of(Codec::Raw, b"x"), 1);
    for _ in 0..4 {
        let message = Message { block_sizes: vec![size; WIDE], ..Message::new(Type::File) };
        cid = source.keep(node(&vec![(cid, "", 0); WIDE], &message)).cid;
        size *= WIDE as u64;
    }
    assert_eq!(source.read(&cid, 0..u64::MAX), Err(DagError::TooWide(MAX_WAITING)));
}

fn shard(links: &[(usize, &str, Cid)]) -> Chunk {
    let fanout = hamt::STANDARD;
    let message = Message {
        data: Some(fanout.bitfield(links.iter().map(|(place, ..)| *place)).into()),
        hash_type: Some(unixfs::MURMUR3_X64_64),
        fanout: Some(256),
        ..Message::new(Type::HamtShard)
    };
    let names: Vec<String> = links.iter().map(|(place, name, _)| format!("{}{name}", fanout.prefix(*place))).collect();
    let links: Vec<_> = links.iter().zip(&names).map(|((_, _, cid), name)| (*cid, name.as_str(), 1)).collect();
    node(&links, &message)
}

#[test]
fn shards_that_break_the_rules_are_refused() {
    let cid = Cid::of(Codec::Raw, b"x");
    let place = hamt::STANDARD.place(hamt::hash("name"), 0);
    let mut source = Source::default();
    let good = source.keep(shard(&[(place, "name", cid)])).cid;
    assert!(source.list(&good, false).is_ok());
    let misplaced = source.keep(shard(&[(place ^ 1, "name", cid)])).cid;
    assert!(matches!(source.list(&misplaced, false), Err(DagError::Shard(_))));
    let escaping = source.keep(shard(&[(place, "../x", cid)])).cid;
    assert!(matches!(source.list(&escaping, false), Err(DagError::Name { .. })));

    let with = |change: &dyn Fn(&mut Message), name: &str| {
        let mut message = Message {
            data: Some(hamt::STANDARD.bitfield([place].into_iter()).into()),
            hash_type: Some(unixfs::MURMUR3_X64_64),
            fanout: Some(256),
            ..Message::new(Type::HamtShard)
        };
        change(&mut message);
        decode(&node(&[(cid, name, 1)], &message))
    };
    let name = format!("{}name", hamt::STANDARD.prefix(place));
    assert!(with(&|_| {}, &name).is_ok());
    assert!(matches!(with(&|_| {}, "ZZname"), Err(DagError::Shard(_))), "the prefix of no place");
    assert!(matches!(with(&|_| {}, "0"), Err(DagError::Shard(_))), "half a prefix");
    let broken: [&dyn Fn(&mut Message); 5] = [
        &|message| message.data = None,
        &|message| message.data = Some(Bytes::from_static(&[0xff; 33])),
        &|message| message.hash_type = Some(0x12),
        &|message| message.fanout = None,
        &|message| message.fanout = Some(1 << 40),
    ];
    for change in broken {
        assert!(matches!(with(change, &name), Err(DagError::Shard(_))));
    }
}

#[test]
fn a_sharded_directory_that_repeats_or_contains_itself_ends_in_an_error() {
    let mut source = Source::default();
    let cid = Cid::of(Codec::Raw, b"x");
    let place = hamt::STANDARD.place(hamt::hash("name"), 0);
    let mut below = source.keep(shard(&[(place, "name", cid)])).cid;
    for _ in 0..3 {
        let same: Vec<_> = (0..256).map(|place| (place, "", below)).collect();
        below = source.keep(shard(&same)).cid;
        assert!(matches!(source.list(&below, true), Err(DagError::Shard(_))), "sixteen million paths to one name");
    }
    for _ in 0..6 {
        below = source.keep(shard(&[(0, "", below)])).cid;
    }
    assert_eq!(source.list(&below, false), Err(DagError::TooDeep(8)));
    // The lookup of a name whose hash begins with zeros would go the same way; others end at once.
    assert_eq!(source.look_up(&below, "name"), Ok(None));
    let empty = source.keep(shard(&[])).cid;
    assert_eq!(source.list(&empty, false), Ok(vec![]), "an empty root is an empty directory");
    let above = source.keep(shard(&[(0, "", empty)])).cid;
    assert!(matches!(source.list(&above, false), Err(DagError::Shard(_))));
    let file = source.keep(shard(&[(0, "", cid)])).cid;
    source.raw(b"x");
    assert!(matches!(source.list(&file, false), Err(DagError::Shard(_))));
}

#[test]
fn directories_with_names_that_escape_or_repeat_are_refused() {
    let cid = Cid::of(Codec::Raw, b"x");
    let directory = |names: &[&str]| {
        let links: Vec<_> = names.iter().map(|name| (cid, *name, 1)).collect();
        decode(&node(&links, &Message::new(Type::Directory)))
    };
    assert!(directory(&["a", "b"]).is_ok());
    for name in ["../x", "..", ".", "", "/etc", "a/b", "a\0b"] {
        assert!(matches!(directory(&[name]), Err(DagError::Name { .. })), "{name:?}");
    }
    assert_eq!(directory(&["a", "b", "a"]), Err(DagError::DuplicateName { name: "a".to_owned() }));
    assert!(matches!(check_name(b"\xff\xfe"), Err(DagError::Name { .. })));
}

#[test]
fn what_is_no_directory_or_file_is_told_apart() {
    let raw = Chunk::new(Codec::Raw, &b"x"[..]).expect("short");
    assert_eq!(DirectoryWalker::new(&raw).err(), Some(DagError::NotADirectory(*raw.cid())));
    assert_eq!(NameLookup::new(&raw, "x").err(), Some(DagError::NotADirectory(*raw.cid())));
    let (symlink, _) = symlink(b"x", Metadata::default()).expect("a good target");
    assert_eq!(FileWalker::new(&symlink, 0..1).err(), Some(DagError::NotAFile(*symlink.cid())));
    let links =
        node(&[(*raw.cid(), "", 1)], &Message { data: Some(Bytes::from_static(b"x")), ..Message::new(Type::Symlink) });
    assert!(decode(&links).is_err(), "a symbolic link with links");
    let loops = node(&[], &Message { data: None, ..Message::new(Type::Symlink) });
    assert_eq!(decode(&loops), Err(DagError::Target { length: 0 }));
}
