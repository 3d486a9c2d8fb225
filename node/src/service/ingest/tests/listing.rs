//! What an add says that it added: inline, or in a manifest that lists exactly the DAG's chunks and is kept beside them.

use std::{collections::BTreeSet, time::Duration};

use p2p_protocol::{
    Key,
    manifest::{Entry, Manifest, OwnChunks, RangeReader, Step, Unasked},
};

use super::*;
use crate::service::wanted::Wanted;
use crate::{
    net::simulated::Fabric,
    service::{
        locate::Locate,
        rig::{ROOMY, Serve as _, eventually, peer},
    },
};

const SMALL: ReadOptions = ReadOptions { chunker: ChunkerKind::Fixed { bytes: 1024 }, preserve: false };
const START: Key = Key([0; 32]);

fn key(first: u8) -> Key {
    Key(std::array::from_fn(|at| if at == 0 { first } else { 0 }))
}

/// Drives a manifest's reader, whose chunks are all here.
fn drive<R>(
    reader: &mut R,
    next: impl Fn(&mut R) -> Step,
    supply: impl Fn(&mut R, &Chunk) -> Result<(), Unasked>,
    source: impl Fn(&Cid) -> Chunk,
) -> Vec<Entry> {
    let mut listed = Vec::new();
    loop {
        match next(reader) {
            Step::Want(entry) => supply(reader, &source(&entry.cid)).expect("it was asked for"),
            Step::Listed(entries) => listed.extend(entries.into_iter().map(|(_, entry)| entry)),
            Step::Malformed(place) => panic!("{place:?} was made here"),
            Step::Done => return listed,
        }
    }
}

fn read(manifest: &Manifest, from: Key, to: Option<Key>, source: impl Fn(&Cid) -> Chunk) -> Vec<Entry> {
    let mut reader = RangeReader::new(manifest, from, to).expect("it was made here");
    drive(&mut reader, RangeReader::next_step, RangeReader::supply, source)
}

fn own(manifest: &Manifest, source: impl Fn(&Cid) -> Chunk) -> Vec<Entry> {
    let mut own = OwnChunks::new(manifest, START, None).expect("it was made here");
    drive(&mut own, OwnChunks::next_step, OwnChunks::supply, source)
}

fn manifest(listing: &Listing, entries: u64) -> Manifest {
    let Listing::Manifest(root) = listing else { panic!("{entries} entries are too many for {listing:?}") };
    Manifest { root: *root, entries }
}

/// The distinct chunks of a tree, in the order of their keys.
fn distinct(path: &Path, options: ReadOptions) -> Vec<Entry> {
    let mut chunks = BTreeMap::new();
    chunks_of(path, options, |chunk| {
        let entry = Entry { cid: *chunk.cid(), length: u32::try_from(chunk.len()).expect("it is a chunk") };
        chunks.insert(entry.key(), entry);
    })
    .expect("it can be read");
    chunks.into_values().collect()
}

/// Files with and without repeats, long ones and many small ones.
fn grow(tree: &Tree) {
    let long: Vec<u8> = (0..400_000_u32).flat_map(|at| (at / 7).to_be_bytes()).collect();
    tree.write("long", &long);
    tree.write("again/long", &long);
    tree.write("again/half", &long[..500_000]);
    (0..300_u32).for_each(|number| tree.write(&format!("small/{number}"), &number_bytes(number / 2)));
}

#[tokio::test]
async fn a_manifest_lists_exactly_the_distinct_chunks_of_the_dag() {
    let tree = Tree::new();
    grow(&tree);
    let added = tree.add_at(&tree.path(), SMALL).await.expect("it can be read");
    let expected = distinct(&tree.path(), SMALL);
    assert!(expected.len() > 10 * 128, "{}", expected.len());
    assert_eq!((added.chunks, added.chunks_new), (expected.len() as u64, expected.len() as u64));
    let listed = manifest(&added.listing, added.chunks);
    let source = |cid: &Cid| tree.chunk(cid);
    assert_eq!(read(&listed, START, None, source), expected);
    for first in (0..=240).step_by(16) {
        let (from, to) = (key(first), Some(key(first + 11)));
        let within = expected.iter().filter(|entry| (from..key(first + 11)).contains(&entry.key()));
        assert_eq!(read(&listed, from, to, source), within.copied().collect::<Vec<_>>());
    }
    // Its own chunks are kept too, and nothing else is.
    let own: BTreeSet<Cid> = own(&listed, source).into_iter().map(|entry| entry.cid).collect();
    let kept: BTreeSet<Cid> = tree.kept.0.lock().expect("all is quiet").keys().copied().collect();
    let all: BTreeSet<Cid> = expected.iter().map(|entry| entry.cid).chain(own).collect();
    assert_eq!(kept, all);
    let again = tree.add_at(&tree.path(), SMALL).await.expect("it can be read again");
    assert_eq!((again.listing, again.chunks, again.chunks_new), (added.listing, added.chunks, 0));
    assert_eq!(tree.kept.0.lock().expect("all is quiet").len(), all.len(), "the same manifest");
}

#[tokio::test]
async fn up_to_eight_chunks_are_listed_inline() {
    let tree = Tree::new();
    // Leaves of their own, and a root above them where there is more than one.
    for (leaves, inline) in [(1_u8, true), (7, true), (8, false)] {
        let path = tree.path().join(format!("{leaves}"));
        let bytes: Vec<u8> = (0..leaves).flat_map(|leaf| [leaf; 1024]).collect();
        tree.write(&format!("{leaves}"), &bytes);
        let before = tree.kept.0.lock().expect("all is quiet").len();
        let added = tree.add_at(&path, SMALL).await.expect("it can be read");
        let expected = distinct(&path, SMALL);
        assert_eq!((added.chunks, expected.len()), (u64::from(leaves) + u64::from(leaves > 1), expected.len()));
        assert_eq!(expected.len() as u64, added.chunks);
        let kept = tree.kept.0.lock().expect("all is quiet").len() - before;
        if inline {
            assert_eq!(added.listing, Listing::Inline(expected));
            assert_eq!(kept as u64, added.chunks_new, "nothing but the file is kept");
        } else {
            let listed = manifest(&added.listing, added.chunks);
            assert_eq!(read(&listed, START, None, |cid| tree.chunk(cid)), expected);
            assert_eq!(kept as u64, added.chunks_new + 1, "its manifest is one leaf, which is not counted");
        }
    }
}

#[tokio::test]
async fn a_stream_has_the_manifest_of_the_file_of_its_bytes() {
    let tree = Tree::new();
    grow(&tree);
    let path = tree.path().join("long");
    let bytes = fs::read(&path).expect("it was written");
    let reader = StreamReader::new(Box::new(io::Cursor::new(bytes)), SMALL).expect("a good chunker");
    let (progress, _) = watch::channel(Progress::default());
    let gathered = Distinct::new(&tree.directory.path().join("tmp"));
    let blocking = Blocking::new(Layer::alone());
    let added = pump(reader, &tree.kept, gathered, "-", &progress, &blocking).await.expect("it can be read");
    let listed = manifest(&added.listing, added.chunks);
    assert_eq!(read(&listed, START, None, |cid| tree.chunk(cid)), distinct(&path, SMALL));
    let file = tree.add_at(&path, SMALL).await.expect("it can be read");
    assert_eq!((file.listing, file.chunks), (added.listing, added.chunks));
}

/// Has room for so many chunks.
struct Filling {
    kept: Mutex<BTreeSet<Cid>>,
    room: usize,
}

impl ChunkSink for Filling {
    async fn submit(&self, chunk: Chunk) -> Result<Put, StoreError> {
        let mut kept = self.kept.lock().expect("no test panics with it");
        if kept.contains(chunk.cid()) {
            return Ok(Put::Known);
        }
        if kept.len() == self.room {
            return Err(StoreError::NoSpace { needed: chunk.len() as u64, reason: "it is full".to_owned() });
        }
        kept.insert(*chunk.cid());
        Ok(Put::New)
    }

    fn copies(&self) -> u64 {
        0
    }
}

#[tokio::test]
async fn an_add_whose_manifest_finds_no_room_fails() {
    let tree = Tree::new();
    grow(&tree);
    let expected: BTreeSet<Cid> = distinct(&tree.path(), SMALL).iter().map(|entry| entry.cid).collect();
    let chunks = expected.len();
    let (progress, _) = watch::channel(Progress::default());
    let blocking = Blocking::new(Layer::alone());
    // Room for the DAG alone, and for all but the manifest's root.
    for room in [chunks, chunks + chunks.div_ceil(128)] {
        let sink = Filling { kept: Mutex::default(), room };
        let reader = TreeReader::open(&tree.path(), "tree", SMALL, None).expect("it is there");
        let gathered = Distinct::new(&tree.directory.path().join("tmp"));
        let error = pump(reader, &sink, gathered, "tree", &progress, &blocking).await.expect_err("it is full");
        assert!(matches!(error, AddError::Full { .. }), "{error}");
        let kept = sink.kept.lock().expect("all is quiet");
        assert!(kept.len() == room && expected.is_subset(&kept), "the DAG is kept");
    }
}

#[tokio::test]
async fn a_scratch_directory_that_takes_nothing_fails_the_add() {
    let tree = Tree::new();
    grow(&tree);
    // A file stands where the directory should be; runs are far smaller than the tree.
    tree.write("in the way", b"");
    let scratch = tree.path().join("in the way/tmp");
    let (progress, _) = watch::channel(Progress::default());
    for run in [100, 1_000] {
        let reader = TreeReader::open(&tree.path(), "tree", SMALL, None).expect("it is there");
        let gathered = Distinct::with_run(&scratch, run);
        let blocking = Blocking::new(Layer::alone());
        let error = pump(reader, &tree.kept, gathered, "tree", &progress, &blocking).await.expect_err("no disk");
        assert!(matches!(error, AddError::Scratch(_)), "{error}");
    }
}

/// Of a real add among nodes: what it lists, and the manifest itself, is on k of them when it returns.
#[tokio::test(start_paused = true)]
async fn a_manifest_is_placed_like_any_chunks() {
    let fabric = Fabric::default();
    let mut nodes = Vec::new();
    for seed in 1..6 {
        let (network, store, transfer) = fabric.serve(seed, ROOMY).await;
        let locate = Locate::start(network, transfer.clone(), true, &Layer::alone());
        let replicate = Replicate::new(
            store.clone(),
            Wanted::open(store.clone()).expect("it opens"),
            locate.clone(),
            transfer,
            Duration::from_secs(24 * 3600),
            std::env::temp_dir(),
            &Layer::alone(),
        );
        nodes.push((store, locate, replicate));
    }
    eventually("all know all", || nodes.iter().all(|(_, locate, _)| locate.reachable() == 4)).await;
    let tree = Tree::new();
    grow(&tree);
    let ingest =
        Ingest::new(nodes[0].2.clone(), Some(tree.directory.path().join("data")), Blocking::new(Layer::alone()));
    let wish = Wish { wanted: 3, wait: None, local: false };
    let (progress, _) = watch::channel(Progress::default());
    let added = ingest.add_path(&tree.path(), "tree", wish, SMALL, &progress).await.expect("there is room");
    assert_eq!((added.report.min, added.report.failures.len()), (3, 0));
    let expected = distinct(&tree.path(), SMALL);
    let listed = manifest(&added.listing, added.chunks);
    // The adder keeps a copy of all that it made.
    let mut kept = BTreeMap::new();
    for entry in nodes[0].0.scan(None, usize::MAX).expect("it reads") {
        let chunk = nodes[0].0.get(&entry.cid.hash).await.expect("it reads").expect("it is here");
        kept.insert(entry.cid, chunk);
    }
    let source = |cid: &Cid| kept[cid].clone();
    assert_eq!(read(&listed, START, None, source), expected);
    let own = own(&listed, source);
    assert_eq!(own.len(), expected.len().div_ceil(128) + 1);
    for entry in own.iter().chain(&expected) {
        let mut nearest: Vec<u8> = (1..6).collect();
        nearest.sort_by_key(|seed| Key::from(&peer(*seed)).distance(&entry.key()));
        for seed in &nearest[..3] {
            let held = nodes[usize::from(*seed) - 1].0.entry(&entry.cid.hash).expect("it reads");
            assert!(held.is_some_and(|held| held.length == entry.length), "{} is not on {seed}", entry.cid);
        }
    }
}
