//! Writing DAGs that a map holds into real directories.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
};

use futures::TryStreamExt as _;
use p2p_protocol::{
    Codec,
    chunker::ChunkerKind,
    dag::{self, DirectoryBuilder, Link},
};
use proptest::prelude::*;

use super::*;
use crate::{
    error::{Error, Kind, Result},
    service::{fetch::memory::Memory, ingest::ReadOptions, inspect::resolved, worker::Layer},
};

/// Entries of the largest tree that is written here.
const MOST: u64 = 10_000;

struct Place {
    directory: tempfile::TempDir,
    memory: Memory,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().expect("a directory"), memory: Memory::default() };
        fs::create_dir(place.out()).expect("a directory");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where results go: nothing else is ever in there.
    fn out(&self) -> PathBuf {
        self.path("out")
    }

    fn options(&self) -> GetOptions {
        GetOptions { reference: "it".to_owned(), output: None, directory: self.out(), force: false }
    }

    fn add(&self, name: &str, options: ReadOptions) -> Cid {
        self.memory.add(&self.path(name), options).expect("it can be read")
    }

    async fn get_with(&self, root: Cid, label: &str, options: GetOptions) -> Result<Written> {
        let found = resolved(root, &[], label, self.memory.clone()).await?;
        let (progress, _) = watch::channel(Progress::default());
        write(found, options, &self.path("tmp"), MOST, &progress, &Blocking::new(Layer::alone()))
            .await
            .map_err(Error::from)
    }

    async fn get(&self, root: Cid, label: &str) -> Result<Written> {
        self.get_with(root, label, self.options()).await
    }

    /// The names in the directory of results.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.out())
            .expect("it is there")
            .map(|entry| entry.expect("it can be read").file_name().into_string().expect("names here are UTF-8"))
            .collect();
        names.sort();
        names
    }
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new_keyed(&[7; 32]).update(&seed.to_be_bytes()).finalize_xof().fill(&mut out);
    out
}

/// What a tree holds, as text, without following anything.
fn describe(path: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut stack = vec![path.to_owned()];
    while let Some(at) = stack.pop() {
        let found = fs::symlink_metadata(&at).expect("it is there");
        let name = at.strip_prefix(path).expect("it is below").display().to_string();
        if found.is_dir() {
            lines.push(format!("{name}/"));
            stack.extend(fs::read_dir(&at).expect("it can be read").map(|entry| entry.expect("it can be read").path()));
        } else if found.is_symlink() {
            lines.push(format!("{name} -> {}", fs::read_link(&at).expect("it is a link").display()));
        } else {
            let bytes = fs::read(&at).expect("it can be read");
            lines.push(format!("{name} {} {}", bytes.len(), blake3::hash(&bytes)));
        }
    }
    lines.sort();
    lines
}

#[tokio::test]
async fn a_file_comes_back_byte_for_byte_and_its_sources_are_told() {
    let place = Place::new();
    let bytes = noise((5 << 20) + 17, 1);
    fs::write(place.path("file"), &bytes).expect("a file");
    let root = place.add("file", ReadOptions::default());
    let got = place.get(root, "film.mkv").await.expect("all of it is there");
    assert_eq!(got.path, place.out().join("film.mkv"));
    assert_eq!(fs::read(&got.path).expect("it was written"), bytes);
    assert_eq!((got.size, got.chunks, got.root), (bytes.len() as u64, 7, root));
    let sent: u64 = place.memory.cids().iter().map(|cid| place.memory.chunk_now(cid).len() as u64).sum();
    assert_eq!(got.from.values().sum::<u64>(), sent);
    assert_eq!(place.names(), ["film.mkv"]);
}

#[tokio::test]
async fn what_is_there_is_never_overwritten_without_force() {
    let place = Place::new();
    fs::write(place.path("file"), b"new").expect("a file");
    let root = place.add("file", ReadOptions::default());
    fs::write(place.out().join("x"), b"old").expect("a file");
    let error = place.get(root, "x").await.expect_err("it is there");
    assert_eq!(error.kind, Kind::Failed);
    assert_eq!(fs::read(place.out().join("x")).expect("it is there"), b"old");
    assert_eq!(place.names(), ["x"]);
    let force = |output: Option<PathBuf>| GetOptions { force: true, output, ..place.options() };
    place.get_with(root, "x", force(None)).await.expect("it may be replaced");
    assert_eq!(fs::read(place.out().join("x")).expect("it is there"), b"new");
    fs::create_dir_all(place.out().join("d/file/below")).expect("a directory");
    place.get_with(root, "file", force(Some(place.out().join("d")))).await.expect("a directory gives way");
    assert_eq!(fs::read(place.out().join("d/file")).expect("it is there"), b"new");
    symlink("nowhere", place.out().join("dangling")).expect("a link");
    let named = GetOptions { output: Some(place.out().join("dangling")), ..place.options() };
    assert_eq!(place.get_with(root, "file", named).await.expect_err("a link is there").kind, Kind::Failed);
    fs::create_dir(place.path("tree")).expect("a directory");
    fs::write(place.path("tree/a"), b"a").expect("a file");
    let tree = place.add("tree", ReadOptions::default());
    fs::create_dir_all(place.out().join("d/old/deep")).expect("a directory");
    place.get_with(tree, "old", force(Some(place.out().join("d")))).await.expect("a tree gives way to a tree");
    assert_eq!(
        describe(&place.out().join("d/old")),
        ["/", "a 1 17762fddd969a453925d65717ac3eea21320b66b54342fde15128d6caf21215f"]
    );
    assert_eq!(fs::read_dir(place.out().join("d")).expect("it is there").count(), 2, "nothing is left over");
}

#[tokio::test]
async fn an_output_that_is_a_directory_takes_the_result_inside_and_a_missing_one_is_told() {
    let place = Place::new();
    fs::write(place.path("file"), b"bytes").expect("a file");
    let root = place.add("file", ReadOptions::default());
    let to = |output: PathBuf| GetOptions { output: Some(output), ..place.options() };
    let got = place.get_with(root, "label", to(place.out())).await.expect("it is there");
    assert_eq!(got.path, place.out().join("label").display().to_string());
    place.get_with(root, "label", to(place.out().join("other"))).await.expect("it is there");
    assert_eq!(place.names(), ["label", "other"]);
    let error = place.get_with(root, "label", to(place.out().join("no/such"))).await.expect_err("no directory");
    assert_eq!(error.kind, Kind::Failed);
    let error = place.get_with(root, "label", to(place.out().join("no/"))).await.expect_err("no directory");
    assert_eq!(error.kind, Kind::Failed);
    let got = place.get(root, "../../escape").await.expect("a bad label is not used");
    assert_eq!(got.path, place.out().join(root.to_string()).display().to_string());
}

#[tokio::test]
async fn what_an_earlier_get_left_is_used_and_what_is_damaged_is_not() {
    let place = Place::new();
    let bytes = noise(12 << 20, 2);
    fs::write(place.path("file"), &bytes).expect("a file");
    let root = place.add("file", ReadOptions::default());
    place.memory.answer_only(7);
    let error = place.get(root, "file").await.expect_err("not all of it came");
    assert_eq!(error.kind, Kind::NotFound);
    let [partial] = &place.names()[..] else { panic!("the partial is all there is: {:?}", place.names()) };
    assert!(partial.starts_with(".file.") && partial.ends_with(".p2p-partial"), "{partial}");
    assert!(error.to_string().contains(partial), "the hint names it: {error}");
    place.memory.find_again();
    place.memory.take_asked();
    place.get(root, "file").await.expect("the rest came");
    let again = place.memory.take_asked().len();
    assert!(again < 12, "{again} chunks were fetched again");
    assert_eq!(fs::read(place.out().join("file")).expect("it is there"), bytes);
    // A partial that is longer than the file, and wrong from end to end.
    fs::remove_file(place.out().join("file")).expect("it is ours");
    fs::write(place.out().join(partial), noise(13 << 20, 3)).expect("a file");
    place.get(root, "file").await.expect("all of it came");
    assert_eq!(fs::read(place.out().join("file")).expect("it is there"), bytes);
    assert_eq!(place.names(), ["file"]);
}

/// The regression: in a directory where everybody may write, another user's file under the partial's name was gone on with,
/// and one with a second name was written through it.
#[tokio::test]
async fn a_partial_that_others_have_a_hand_in_is_refused_and_left_alone() {
    let place = Place::new();
    fs::write(place.path("file"), noise(3 << 20, 8)).expect("a file");
    fs::create_dir(place.path("tree")).expect("a directory");
    fs::write(place.path("tree/a"), b"a").expect("a file");
    for (name, root) in ["file", "tree"].map(|name| (name, place.add(name, ReadOptions::default()))) {
        let partial = place.out().join(format!(".x.{}.p2p-partial", &root.to_string()[root.to_string().len() - 12..]));
        let refused = async |what: &str| {
            let error = place.get(root, "x").await.expect_err(what);
            assert!(error.message.contains("something else than what an earlier get left"), "{what}: {error}");
            assert!(!place.out().join("x").exists(), "{what}");
        };
        if name == "file" {
            fs::write(place.path("victim"), b"victim").expect("a file");
            fs::hard_link(place.path("victim"), &partial).expect("a link");
            refused("it has a second name").await;
            assert_eq!(fs::read(place.path("victim")).expect("it is there"), b"victim");
            fs::remove_file(&partial).expect("it is ours");
            fs::write(&partial, b"").expect("a file");
        } else {
            fs::create_dir(&partial).expect("a directory");
        }
        let mode = |bits| fs::set_permissions(&partial, fs::Permissions::from_mode(bits)).expect("it is ours");
        mode(0o777);
        refused("everybody may write into it").await;
        mode(0o755);
        // Only the superuser can give files away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&partial, Some(12345), None).expect("the superuser may");
            refused("it is another user's").await;
            std::os::unix::fs::chown(&partial, Some(0), None).expect("the superuser may");
        }
        let got = place.get(root, "x").await.expect("it is this user's alone");
        assert_eq!(describe(&got.path), describe(&place.path(name)));
        fs::rename(&got.path, place.path(&format!("got {name}"))).expect("out of the way");
    }
}

#[tokio::test]
async fn what_nobody_has_leaves_nothing() {
    let place = Place::new();
    fs::write(place.path("file"), noise(3 << 20, 4)).expect("a file");
    let root = place.add("file", ReadOptions::default());
    place.memory.lose(root);
    assert_eq!(place.get(root, "x").await.expect_err("nobody has it").kind, Kind::NotFound);
    assert!(place.names().is_empty());
    place.memory.find_again();
    place.memory.cids().into_iter().filter(|cid| *cid != root).for_each(|cid| place.memory.lose(cid));
    assert_eq!(place.get(root, "x").await.expect_err("no leaf is there").kind, Kind::NotFound);
    assert!(place.names().is_empty(), "an empty partial does not stay: {:?}", place.names());
    fs::create_dir(place.path("tree")).expect("a directory");
    fs::write(place.path("tree/a"), b"a").expect("a file");
    let tree = place.add("tree", ReadOptions::default());
    place.memory.lose(Cid::of(Codec::Raw, b"a"));
    assert_eq!(place.get(tree, "x").await.expect_err("its file is lost").kind, Kind::NotFound);
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[tokio::test]
async fn a_tree_comes_back_whole_and_resumes() {
    let place = Place::new();
    let tree = place.path("tree");
    for number in 0..2000 {
        let directory = tree.join(format!("d{}/e{}", number % 17, number % 5));
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join(format!("file {number}")), noise(number * 3, number as u64)).expect("a file");
    }
    fs::write(tree.join("large"), noise(4 << 20, 9)).expect("a file");
    fs::create_dir(tree.join("empty")).expect("a directory");
    fs::write(tree.join("nothing"), b"").expect("a file");
    symlink("/etc/passwd", tree.join(".link")).expect("a link");
    let root = place.add("tree", ReadOptions { chunker: ChunkerKind::Fixed { bytes: 4096 }, preserve: false });
    let leaves = |asked: Vec<Cid>| asked.into_iter().filter(|cid| cid.codec == Codec::Raw).count();
    let all = leaves(place.memory.cids());
    place.memory.answer_only(900);
    assert_eq!(place.get(root, "copy").await.expect_err("not all of it came").kind, Kind::NotFound);
    assert_eq!(place.names().len(), 1, "nothing but the partial");
    place.memory.find_again();
    place.memory.take_asked();
    let got = place.get(root, "copy").await.expect("the rest came");
    assert_eq!(describe(&place.out().join("copy")), describe(&tree));
    assert_eq!(place.names(), ["copy"]);
    assert_eq!(got.chunks, place.memory.cids().len() as u64);
    let content: usize = (0..2000).map(|number| number * 3).sum();
    assert_eq!(got.size, content as u64 + (4 << 20));
    let again = leaves(place.memory.take_asked());
    assert!(again + 400 < all, "{again} of {all} leaves were fetched again");
}

#[tokio::test]
async fn modes_and_times_come_back_without_the_dangerous_bits() {
    let place = Place::new();
    let tree = place.path("tree");
    fs::create_dir_all(tree.join("locked")).expect("a directory");
    fs::write(tree.join("locked/file"), b"bytes").expect("a file");
    fs::write(tree.join("suid"), noise(3000, 5)).expect("a file");
    let mode = |path: &str, mode| fs::set_permissions(tree.join(path), fs::Permissions::from_mode(mode)).expect("ours");
    mode("locked/file", 0o400);
    mode("suid", 0o6755);
    let past = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: 1_000_000_007, tv_nsec: 123_456_789 },
    };
    for path in ["locked/file", "locked", "suid"] {
        rustix::fs::utimensat(rustix::fs::CWD, tree.join(path), &past, AtFlags::empty()).expect("ours");
    }
    mode("locked", 0o555);
    let root = place.add("tree", ReadOptions { chunker: ChunkerKind::Fixed { bytes: 1024 }, preserve: true });
    place.get(root, "copy").await.expect("all of it is there");
    mode("locked", 0o755);
    let is = |path: &str| {
        let found = fs::metadata(place.out().join("copy").join(path)).expect("it is there");
        (found.mode() & 0o7777, found.mtime(), found.mtime_nsec())
    };
    assert_eq!(is("locked"), (0o555, 1_000_000_007, 123_456_789));
    assert_eq!(is("locked/file"), (0o400, 1_000_000_007, 123_456_789));
    assert_eq!(is("suid"), (0o755, 1_000_000_007, 123_456_789));
    fs::set_permissions(place.out().join("copy/locked"), fs::Permissions::from_mode(0o755)).expect("ours");
}

#[tokio::test]
async fn nothing_is_written_outside_of_the_partial() {
    let place = Place::new();
    fs::create_dir(place.path("outside")).expect("a directory");
    fs::write(place.path("outside/victim"), b"victim").expect("a file");
    fs::create_dir_all(place.path("tree/a")).expect("a directory");
    fs::write(place.path("tree/a/victim"), b"attack").expect("a file");
    fs::write(place.path("tree/b"), b"attack").expect("a file");
    let root = place.add("tree", ReadOptions::default());
    // Whoever can write beside the target planted links in a partial of an earlier attempt.
    let partial = place.out().join(format!(".copy.{}.p2p-partial", &root.to_string()[root.to_string().len() - 12..]));
    fs::create_dir(&partial).expect("a directory");
    symlink(place.path("outside"), partial.join("a")).expect("a link");
    let error = place.get(root, "copy").await.expect_err("a link is where a directory is to be");
    assert_eq!(error.kind, Kind::Failed);
    fs::remove_file(partial.join("a")).expect("it is ours");
    // Entries are fetched side by side: this one may have been written before the other failed.
    let _ = fs::remove_file(partial.join("b"));
    symlink(place.path("outside/victim"), partial.join("b")).expect("a link");
    fs::create_dir(partial.join("a")).expect("a directory");
    fs::hard_link(place.path("outside/victim"), partial.join("a/victim")).expect("a link");
    place.get(root, "copy").await.expect("links to files are replaced");
    assert_eq!(fs::read(place.path("outside/victim")).expect("it is there"), b"victim");
    assert_eq!(describe(&place.out().join("copy")), describe(&place.path("tree")));
    // The partial itself is a link.
    symlink(place.path("outside/victim"), &partial).expect("a link");
    fs::remove_dir_all(place.out().join("copy")).expect("it is ours");
    assert_eq!(place.get(root, "copy").await.expect_err("it is no directory").kind, Kind::Failed);
}

#[tokio::test]
async fn names_that_would_escape_and_names_that_come_twice_are_refused() {
    let place = Place::new();
    let leaf = Chunk::new(Codec::Raw, &b"x"[..]).expect("it is short");
    let link = Link::leaf(&leaf);
    place.memory.insert(leaf);
    // A directory of one entry, its name then replaced by another of the same length.
    let forge = |name: &str, evil: &[u8]| {
        let mut made = None;
        let mut builder = DirectoryBuilder::new(dag::Metadata::default());
        builder.entry(name.to_owned(), link).expect("a good name");
        builder.entry("zz".to_owned(), link).expect("a good name");
        builder.finish(&mut |chunk| made = Some(chunk)).expect("two names");
        let mut bytes = made.expect("it has a root").bytes().to_vec();
        let at = bytes.windows(name.len()).position(|part| part == name.as_bytes()).expect("the name is in it");
        bytes[at..at + name.len()].copy_from_slice(evil);
        place.memory.insert(Chunk::new(Codec::DagPb, bytes).expect("it is short"))
    };
    for (name, evil) in
        [("qq", &b".."[..]), ("qqqq", b"../x"), ("q", b"."), ("qqqq", b"/etc"), ("qq", b"zz"), ("qq", b"\xff\xfe")]
    {
        let root = forge(name, evil);
        let error = place.get(root, "copy").await.expect_err("no such name is written");
        assert_eq!(error.kind, Kind::Failed, "{evil:?}: {error}");
        assert!(place.names().is_empty(), "{:?}", place.names());
    }
}

#[tokio::test]
async fn a_symbolic_link_is_written_as_one() {
    let place = Place::new();
    symlink("over/there", place.path("link")).expect("a link");
    let root = place.add("link", ReadOptions { preserve: true, ..ReadOptions::default() });
    let got = place.get(root, "link").await.expect("it is there");
    assert_eq!(fs::read_link(got.path).expect("it is a link"), Path::new("over/there"));
    assert_eq!((got.size, got.chunks), (0, 1));
    assert_eq!(place.names(), ["link"]);
}

#[tokio::test]
async fn a_second_get_of_the_same_waits_for_nobody() {
    let place = Place::new();
    fs::write(place.path("file"), noise(100, 6)).expect("a file");
    let root = place.add("file", ReadOptions::default());
    let wanted = Wanted { label: "x".to_owned(), root, directory: false, link: false };
    let target = Target::open(&wanted, &place.options()).expect("nothing is in the way");
    let error = place.get(root, "x").await.expect_err("another get has it");
    assert!(error.message.contains("another get"), "{error}");
    target.leave();
    place.get(root, "x").await.expect("it is free now");
}

#[tokio::test]
async fn a_deep_tree_is_written_with_few_files_open() {
    let place = Place::new();
    let mut link = {
        let leaf = Chunk::new(Codec::Raw, &b"deep"[..]).expect("it is short");
        let link = Link::leaf(&leaf);
        place.memory.insert(leaf);
        link
    };
    for _ in 0..1200 {
        let mut builder = DirectoryBuilder::new(dag::Metadata { mode: Some(0o755), mtime: None });
        builder.entry("d".to_owned(), link).expect("a good name");
        link = builder
            .finish(&mut |chunk| {
                place.memory.insert(chunk);
            })
            .expect("one name");
    }
    let got = place.get(link.cid, "deep").await.expect("it fits");
    assert_eq!((got.size, got.chunks), (4, 1201));
    fs::remove_dir_all(place.out().join("deep")).expect("it is ours");
}

/// A tree of two entries a directory, both the same, with `2^levels` small files in the end.
fn doubling(place: &Place, levels: usize) -> Cid {
    let leaf = Chunk::new(Codec::Raw, &b"x"[..]).expect("it is short");
    let mut link = Link::leaf(&leaf);
    place.memory.insert(leaf);
    for _ in 0..levels {
        let mut builder = DirectoryBuilder::new(dag::Metadata::default());
        for name in ["a", "b"] {
            builder.entry(name.to_owned(), link).expect("a good name");
        }
        let mut keep = |chunk| {
            place.memory.insert(chunk);
        };
        link = builder.finish(&mut keep).expect("two names");
    }
    link.cid
}

#[tokio::test]
async fn a_small_dag_that_unfolds_enormously_is_not_written_without_end() {
    let place = Place::new();
    let error = place.get(doubling(&place, 50), "bomb").await.expect_err("a disk has no room for 2^50 files");
    assert_eq!(error.kind, Kind::Refused, "{error:?}");
    assert!(error.hint.is_some_and(|hint| hint.contains("remove")));
    assert!(!place.out().join("bomb").exists(), "nothing stands under the name");
    // 512 files in 510 directories are fewer.
    let got = place.get(doubling(&place, 9), "small").await.expect("that many are written");
    assert_eq!((got.size, got.chunks), (512, 10));
}

#[test]
fn a_twentieth_of_the_inodes_is_left_where_they_are_counted() {
    assert!(tree::spares_inodes(1_000_000, 50_000) && !tree::spares_inodes(1_000_000, 49_999));
    assert!(tree::spares_inodes(0, 0) && tree::spares_inodes(1_000_000, 0), "they are not counted here");
}

async fn cat(place: &Place, root: Cid, offset: u64, length: Option<u64>) -> Result<Vec<u8>> {
    let found = resolved(root, &[], "x", place.memory.clone()).await?;
    let pieces: Vec<Bytes> = cat::stream(found, "it", offset, length)?.try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn cat_gives_ranges_in_order() {
    let place = Place::new();
    let bytes = noise(300_000, 8);
    fs::write(place.path("file"), &bytes).expect("a file");
    for chunk in [1024, 4096, 1 << 20] {
        let root = place.add("file", ReadOptions { chunker: ChunkerKind::Fixed { bytes: chunk }, preserve: false });
        for (offset, length) in [
            (0, None),
            (0, Some(0)),
            (1023, Some(2)),
            (5000, Some(123_456)),
            (299_999, None),
            (300_000, None),
            (400_000, Some(5)),
        ] {
            let start = (offset as usize).min(bytes.len());
            let end = length.map_or(bytes.len(), |length: u64| (start + length as usize).min(bytes.len()));
            assert_eq!(cat(&place, root, offset, length).await.expect("it is there"), &bytes[start..end]);
        }
        assert_eq!(cat(&place, root, 7, Some(u64::MAX)).await.expect("it is there"), &bytes[7..]);
    }
    let root = place.add("file", ReadOptions { chunker: ChunkerKind::Fixed { bytes: 1024 }, preserve: false });
    place.memory.lose(Cid::of(Codec::Raw, &bytes[102_400..103_424]));
    assert_eq!(cat(&place, root, 0, None).await.expect_err("a chunk is lost").kind, Kind::NotFound);
    assert_eq!(cat(&place, root, 0, Some(102_400)).await.expect("before it all is well").len(), 102_400);
    fs::create_dir(place.path("tree")).expect("a directory");
    let tree = place.add("tree", ReadOptions::default());
    assert_eq!(cat(&place, tree, 0, None).await.expect_err("a directory").kind, Kind::Failed);
}

#[derive(Clone, Debug)]
enum Item {
    File(u32),
    Link(String),
    Directory(Vec<(String, Item)>),
}

fn item() -> impl Strategy<Value = Item> {
    let leaf = prop_oneof![(0_u32..9000).prop_map(Item::File), "[a-z./]{1,12}".prop_map(Item::Link)];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop::collection::vec(("[a-zé .]{1,6}", inner), 0..6).prop_map(Item::Directory)
    })
}

fn make(path: &Path, item: &Item) {
    match item {
        Item::File(bytes) => fs::write(path, noise(*bytes as usize, u64::from(*bytes))).expect("a file"),
        Item::Link(target) => symlink(target, path).expect("a link"),
        Item::Directory(entries) => {
            fs::create_dir(path).expect("a directory");
            for (name, item) in entries {
                if !matches!(name.as_str(), "." | "..") && fs::symlink_metadata(path.join(name)).is_err() {
                    make(&path.join(name), item);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back_as_it_was(item in item(), preserve in any::<bool>(), cut in 0_usize..40) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let place = Place::new();
        make(&place.path("tree"), &item);
        let root = place.add("tree", ReadOptions { chunker: ChunkerKind::Fixed { bytes: 1024 }, preserve });
        // First interrupted somewhere, then to the end.
        place.memory.answer_only(cut);
        let _ = runtime.block_on(place.get(root, "copy"));
        place.memory.find_again();
        if place.names() != ["copy"] {
            runtime.block_on(place.get(root, "copy")).expect("all of it is there");
        }
        prop_assert_eq!(describe(&place.out().join("copy")), describe(&place.path("tree")));
        prop_assert_eq!(place.names(), ["copy"]);
    }
}
