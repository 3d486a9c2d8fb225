//! Reading real files and trees into a sink of a test.

mod listing;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    sync::Mutex,
};

use p2p_protocol::dag::{self, Node};

use super::*;
use crate::{
    error::{Error, Kind as ErrorKind},
    service::worker::Layer,
};

/// Keeps chunks in a map, each a moment after it came, in an order that differs from that of their coming.
#[derive(Default)]
struct Kept(Mutex<BTreeMap<Cid, Chunk>>);

impl ChunkSink for Kept {
    async fn submit(&self, chunk: Chunk) -> Result<Put, StoreError> {
        for _ in 0..chunk.cid().hash.digest[0] % 4 {
            tokio::task::yield_now().await;
        }
        let known = self.0.lock().expect("no test panics with it").insert(*chunk.cid(), chunk).is_some();
        Ok(if known { Put::Known } else { Put::New })
    }

    fn copies(&self) -> u64 {
        0
    }
}

struct Tree {
    directory: tempfile::TempDir,
    kept: Kept,
}

impl Tree {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory"), kept: Kept::default() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("tree/data")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("it is below the tree")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }

    async fn add_at(&self, path: &Path, options: ReadOptions) -> Result<Read> {
        let reader = TreeReader::open(path, "tree", options, Some(&self.data()))?;
        let (progress, _) = watch::channel(Progress::default());
        pump(
            reader,
            &self.kept,
            Distinct::new(&self.directory.path().join("tmp")),
            "tree",
            &progress,
            &Blocking::new(Layer::alone()),
        )
        .await
    }

    async fn add(&self) -> Result<Read> {
        self.add_at(&self.path(), ReadOptions::default()).await
    }

    fn chunk(&self, cid: &Cid) -> Chunk {
        self.kept.0.lock().expect("no test panics with it")[cid].clone()
    }

    /// The names under a directory's root.
    fn names(&self, cid: &Cid) -> BTreeMap<String, Cid> {
        let Ok(Node::Directory { entries, .. }) = dag::decode(&self.chunk(cid)) else {
            panic!("{cid} is no directory")
        };
        entries.into_iter().map(|entry| (entry.name, entry.cid)).collect()
    }
}

#[tokio::test]
async fn a_tree_is_added_whole() {
    let tree = Tree::new();
    tree.write("one", b"first");
    tree.write(".hidden/two", b"second");
    tree.write("big", &vec![7; 5 << 20]);
    fs::create_dir(tree.path().join("empty")).expect("a directory");
    symlink("..", tree.path().join(".hidden/loop")).expect("a link");
    let read = tree.add().await.expect("it can be read");
    assert_eq!((read.kind, read.link.size), (Kind::Directory, 11 + (5 << 20)));
    let names = tree.names(&read.link.cid);
    assert_eq!(names.keys().collect::<Vec<_>>(), [".hidden", "big", "empty", "one"]);
    let hidden = tree.names(&names[".hidden"]);
    let target = dag::decode(&tree.chunk(&hidden["loop"])).expect("it was made here");
    assert!(matches!(target, Node::Symlink { target, .. } if &*target == b".."));
    // Two small leaves, one repeated large one and its root, a link, three directories.
    assert_eq!((read.chunks, read.chunks_new), (8, 8));
    assert_eq!(tree.kept.0.lock().expect("all is quiet").len(), 8);
    let again = tree.add().await.expect("it can be read again");
    assert_eq!((again.link, again.chunks, again.chunks_new), (read.link, 8, 0));
    assert_eq!(hash_only(&tree.path(), "tree", ReadOptions::default()), Ok(read.link.cid));
}

#[tokio::test]
async fn two_thousand_small_files_and_a_sharded_directory() {
    let tree = Tree::new();
    for number in 0..6000 {
        tree.write(&format!("a directory with a rather long name/file number {number}"), &number_bytes(number));
    }
    let read = tree.add().await.expect("it can be read");
    assert_eq!(read.link.size, 6000 * 4);
    // Beside them, the manifest: a root and its leaves of 128 entries.
    let kept = tree.kept.0.lock().expect("all is quiet").len() as u64;
    assert_eq!(kept, read.chunks + 1 + read.chunks.div_ceil(128));
    assert!(read.chunks > 6002, "the directory is over 256 KiB and sharded");
}

fn number_bytes(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

#[tokio::test]
async fn every_fault_is_told_and_nothing_comes_of_the_rest() {
    let tree = Tree::new();
    tree.write("good", b"good");
    tree.write("below/also good", b"good");
    let bad = tree.path().join(std::ffi::OsStr::from_bytes(b"b\xffd"));
    fs::write(bad, b"bytes").expect("a file");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.path().join("below/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a pipe");
    fs::create_dir(tree.data()).expect("a directory");
    let error = tree.add().await.expect_err("three things are wrong");
    assert_eq!(Error::from(error.clone()).kind, ErrorKind::Failed);
    for part in
        ["3 things in tree", "tree/b\u{fffd}d: its name", "tree/below/pipe: it is a named pipe", "tree/data: it is"]
    {
        assert!(error.to_string().contains(part), "{part} is not in: {error}");
    }
    assert!(matches!(hash_only(&tree.path(), "tree", ReadOptions::default()), Err(AddError::Faults(_))));
}

#[tokio::test]
async fn a_path_that_is_not_there_or_is_this_nodes_own_is_refused() {
    let tree = Tree::new();
    let error = tree.add().await.expect_err("nothing is there");
    assert_eq!(Error::from(error.clone()).kind, ErrorKind::Failed);
    assert!(error.to_string().contains("there is no such file"), "{error}");
    tree.write("data/segments/0", b"chunks");
    let error = tree.add_at(&tree.data().join("segments"), ReadOptions::default()).await.expect_err("it is the store");
    assert!(error.to_string().contains("own data directory"), "{error}");
    let error = tree.add_at(&tree.data(), ReadOptions::default()).await.expect_err("it is the store");
    assert!(error.to_string().contains("own data directory"), "{error}");
}

#[tokio::test]
async fn a_named_link_is_a_link_and_with_a_slash_what_it_points_to() {
    let tree = Tree::new();
    tree.write("there/file", b"bytes");
    let link = tree.path().join("link");
    symlink("there", &link).expect("a link");
    let read = tree.add_at(&link, ReadOptions::default()).await.expect("a link can be added");
    assert_eq!(read.kind, Kind::Symlink);
    let followed = tree.add_at(&tree.path().join("link/"), ReadOptions::default()).await.expect("a directory");
    let direct = tree.add_at(&tree.path().join("there"), ReadOptions::default()).await.expect("a directory");
    assert_eq!((followed.kind, followed.link), (Kind::Directory, direct.link));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_a_fault() {
    let tree = Tree::new();
    tree.write("growing", &vec![1; 12 << 20]);
    let path = tree.path().join("growing");
    for change in ["longer", "shorter"] {
        let mut reader = TreeReader::open(&path, "growing", ReadOptions::default(), None).expect("it is there");
        let mut batch = Batch::default();
        reader.read(&mut batch);
        assert!(!reader.done(), "a batch is smaller than the file");
        let file = fs::File::options().write(true).open(&path).expect("it is ours");
        file.set_len(if change == "longer" { 13 << 20 } else { 9 << 20 }).expect("there is room");
        while !reader.done() {
            reader.read(&mut Batch::default());
        }
        let error = reader.outcome().expect_err("it changed");
        assert!(error.to_string().starts_with("growing: it changed while it was read"), "{error}");
    }
}

#[test]
fn modes_and_times_are_kept_on_demand() {
    let tree = Tree::new();
    tree.write("file", b"bytes");
    let plain = hash_only(&tree.path(), "tree", ReadOptions::default()).expect("it can be read");
    let preserve = ReadOptions { preserve: true, ..ReadOptions::default() };
    let mut reader = TreeReader::open(&tree.path().join("file"), "file", preserve, None).expect("it is there");
    let mut batch = Batch::default();
    reader.read(&mut batch);
    let root = batch.chunks.last().expect("a root");
    let metadata = dag::decode(root).expect("it was made here").metadata();
    assert!(metadata.mode.is_some() && metadata.mtime.is_some());
    assert_ne!(hash_only(&tree.path(), "tree", preserve).expect("it can be read"), plain);
}

#[test]
fn a_deep_tree_is_read_with_few_files_open() {
    let tree = Tree::new();
    let mut path = tree.path();
    fs::create_dir(&path).expect("a directory");
    let depth = 1500;
    for _ in 0..depth {
        path.push("d");
        fs::create_dir(&path).expect("a directory");
    }
    fs::write(path.join("x"), b"deep").expect("a file");
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert!(limit.current.is_none_or(|files| files > OPEN as u64));
    // Of this tree: other tests of this process have files open, too.
    let root = tree.path().canonicalize().expect("it is there");
    let opened = || {
        let files = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        files.filter(|file| fs::read_link(file.path()).is_ok_and(|target| target.starts_with(&root))).count()
    };
    let mut reader = TreeReader::open(&tree.path(), "tree", ReadOptions::default(), None).expect("it is there");
    let mut chunks = 0;
    let mut most = 0;
    while !reader.done() {
        let mut batch = Batch::default();
        reader.read(&mut batch);
        chunks += batch.chunks.len();
        most = most.max(opened());
    }
    assert_eq!(chunks, depth + 2);
    assert!(most < 400, "{most} of its files are open");
    assert!(most > 0 || cfg!(not(target_os = "linux")), "they were not seen");
    assert!(reader.outcome().is_ok());
}

const OPEN: usize = 64;

#[tokio::test]
async fn a_stream_is_the_file_of_its_bytes() {
    let tree = Tree::new();
    let bytes: Vec<u8> = (0..(20_u32 << 20)).map(|at| (at % 251) as u8).collect();
    for chunker in [ChunkerKind::default(), ChunkerKind::FastCdc, ChunkerKind::Fixed { bytes: 1024 }] {
        let options = ReadOptions { chunker, preserve: false };
        tree.write("file", &bytes);
        let reader = StreamReader::new(Box::new(io::Cursor::new(bytes.clone())), options).expect("a good chunker");
        let (progress, seen) = watch::channel(Progress::default());
        let distinct = Distinct::new(&tree.directory.path().join("tmp"));
        let read = pump(reader, &tree.kept, distinct, "-", &progress, &Blocking::new(Layer::alone()))
            .await
            .expect("it can be read");
        assert_eq!(hash_only(&tree.path().join("file"), "file", options), Ok(read.link.cid));
        assert_eq!(hash_only_stream(&mut bytes.as_slice(), options), Ok(read.link.cid));
        assert_eq!((read.link.size, seen.borrow().bytes), (bytes.len() as u64, bytes.len() as u64));
    }
}
