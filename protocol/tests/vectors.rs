//! The golden vectors of the `unixfs-v1-2025` profile, made by another UnixFS implementation: each is built, streamed, and
//! read back, with BLAKE3 and with SHA2-256. And those of manifests, which are files of it too.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use chacha20::cipher::{KeyIvInit as _, StreamCipher as _};
use p2p_protocol::{
    Chunk, Cid, Codec, HashCode, Multihash,
    chunker::{Chunker, ChunkerKind},
    dag::{
        DirectoryBuilder, DirectoryWalker, Entry, FileBuilder, FileWalker, Link, Lookup, Metadata, NameLookup, Node,
        Profile, Step, check_leaf, decode, links, symlink_with_profile,
    },
    manifest,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

const VECTORS: &str = include_str!("../../tests/vectors/unixfs-blake3.json");

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    generator: Generator,
    content_bytes: u64,
    cid: String,
    codec: String,
    root_links: usize,
    leaf_refs: u64,
    depth: u64,
    unique_raw_blocks: usize,
    unique_dagpb_blocks: usize,
    dag_size: u64,
    stored_bytes: u64,
    cid_sha2_256: String,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Generator {
    Hex { hex: String },
    Repeat { byte: u8, len: usize },
    Affine { a: u64, b: u64, m: u64, len: u64 },
    Dir { entries: Vec<DirEntry> },
    KuboHamtDir { seed: String, files: usize, name_len: usize, last_name_len: usize, alphabet: String },
}

#[derive(Deserialize)]
struct DirEntry {
    path: String,
    file: Option<Generator>,
    #[serde(default)]
    dir: bool,
    symlink: Option<String>,
}

/// What a generator describes.
enum Tree {
    File(Content),
    Directory(BTreeMap<String, Tree>),
    Symlink(String),
}

/// A file's bytes: one period of them, repeated, with room for any slice of a chunk.
struct Content {
    period: u64,
    tile: Bytes,
    length: u64,
}

impl Content {
    fn plain(bytes: Vec<u8>) -> Self {
        Self { period: bytes.len().max(1) as u64, length: bytes.len() as u64, tile: bytes.into() }
    }

    /// At most a chunk of bytes from `offset` on.
    fn slice(&self, offset: u64, length: u64) -> Bytes {
        let start = (offset % self.period) as usize;
        self.tile.slice(start..start + length as usize)
    }
}

fn tree(generator: &Generator) -> Tree {
    match generator {
        Generator::Hex { hex } => {
            let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("hex is ASCII"));
            Tree::File(Content::plain(
                digits.map(|digits| u8::from_str_radix(digits, 16).expect("a hex byte")).collect(),
            ))
        }
        Generator::Repeat { byte, len } => Tree::File(Content::plain(vec![*byte; *len])),
        Generator::Affine { a, b, m, len } => {
            let tile: Vec<u8> =
                (0..m + p2p_protocol::MAX_CHUNK_BYTES as u64).map(|i| ((a * i + b) % m) as u8).collect();
            Tree::File(Content { period: *m, tile: tile.into(), length: *len })
        }
        Generator::Dir { entries } => {
            let mut root = BTreeMap::new();
            for entry in entries {
                let made = match (&entry.file, entry.dir, &entry.symlink) {
                    (Some(file), false, None) => tree(file),
                    (None, true, None) => Tree::Directory(BTreeMap::new()),
                    (None, false, Some(target)) => Tree::Symlink(target.clone()),
                    _ => panic!("{} is not one of a file, a directory and a symbolic link", entry.path),
                };
                assert!(!entry.path.contains('/'), "no vector has a directory in a directory that is not empty");
                root.insert(entry.path.clone(), made);
            }
            Tree::Directory(root)
        }
        Generator::KuboHamtDir { seed, files, name_len, last_name_len, alphabet } => {
            let mut stream = chacha20::ChaCha20::new(&Sha256::digest(seed), &[0; 12].into());
            let alphabet = alphabet.as_bytes();
            let mut name = |length| {
                let mut bytes = vec![0; length];
                stream.apply_keystream(&mut bytes);
                bytes.iter().map(|byte| char::from(alphabet[usize::from(*byte) % alphabet.len()])).collect::<String>()
            };
            let lengths = (1..=*files).map(|file| if file == *files { *last_name_len } else { *name_len });
            let file = || Tree::File(Content::plain(b"x".to_vec()));
            Tree::Directory(lengths.map(|length| (name(length), file())).collect())
        }
    }
}

/// Builds trees and keeps their chunks.
struct Built {
    hash: HashCode,
    chunks: HashMap<Cid, Chunk>,
}

impl Built {
    fn profile(&self) -> Profile {
        Profile::STANDARD.with_hash(self.hash)
    }

    fn keep(&mut self, chunks: Vec<Chunk>) {
        self.chunks.extend(chunks.into_iter().map(|chunk| (*chunk.cid(), chunk)));
    }

    fn build(&mut self, tree: &Tree) -> Link {
        match tree {
            Tree::File(content) => self.file(content),
            Tree::Directory(entries) => {
                let mut builder = DirectoryBuilder::with_profile(Metadata::default(), self.profile());
                for (name, entry) in entries {
                    let link = self.build(entry);
                    builder.entry(name.clone(), link).expect("a good name");
                }
                let mut out = Vec::new();
                let link = builder.finish(&mut |chunk| out.push(chunk)).expect("distinct names");
                self.keep(out);
                link
            }
            Tree::Symlink(target) => {
                let made = symlink_with_profile(target.as_bytes(), Metadata::default(), self.profile());
                let (chunk, link) = made.expect("a good target");
                self.keep(vec![chunk]);
                link
            }
        }
    }

    fn file(&mut self, content: &Content) -> Link {
        let mut chunker = Chunker::new(ChunkerKind::default()).expect("the default size");
        let mut builder = FileBuilder::with_profile(Metadata::default(), self.profile());
        // Content repeats itself: each distinct leaf is hashed once, which makes a GiB quick.
        let mut known: HashMap<(u64, usize), Chunk> = HashMap::new();
        let mut out = Vec::new();
        let (mut read, mut cut) = (0, 0);
        loop {
            // Reads that divide no chunk evenly.
            let length = (content.length - read).min(700_001);
            let bytes = content.slice(read, length);
            let taken = chunker.push(&bytes) as u64;
            read += taken;
            let leaves: Vec<Bytes> =
                if length == 0 { chunker.finish() } else { std::iter::from_fn(|| chunker.next_chunk()).collect() };
            for leaf in leaves {
                let same = content.slice(cut, leaf.len() as u64);
                assert_eq!(leaf, same, "the chunker gives the bytes that it was given");
                let chunk = known.entry((cut % content.period, leaf.len())).or_insert_with(|| {
                    let cid = Cid { codec: Codec::Raw, hash: Multihash::of(self.hash, &same) };
                    Chunk::verify(cid, same).expect("it was just hashed")
                });
                cut += leaf.len() as u64;
                builder.leaf(Link::leaf(chunk), &mut out);
                self.keep(std::mem::take(&mut out));
            }
            if length == 0 {
                break;
            }
        }
        self.keep(known.into_values().collect());
        let link = builder.finish(&mut out);
        self.keep(out);
        link
    }

    fn check(&self, vector: &Vector, tree: &Tree, root: Link) {
        let name = &vector.name;
        assert_eq!(root.size, vector.content_bytes, "{name}: content bytes");
        assert_eq!(root.tsize, vector.dag_size, "{name}: Tsize of the root");
        let chunk = &self.chunks[&root.cid];
        let children = links(chunk).expect("a valid node");
        assert_eq!(children.len(), vector.root_links, "{name}: links of the root");
        let dag_size = chunk.len() as u64 + children.iter().map(|link| link.tsize).sum::<u64>();
        assert_eq!(dag_size, vector.dag_size, "{name}: DAG size");
        let mut seen = HashMap::new();
        assert_eq!(self.measure(root.cid, &mut seen), (vector.leaf_refs, vector.depth), "{name}: leaves and depth");
        assert_eq!(seen.len(), self.chunks.len(), "{name}: no chunk that the root does not reach");
        let raw = seen.keys().filter(|cid| cid.codec == Codec::Raw).count();
        assert_eq!((raw, seen.len() - raw), (vector.unique_raw_blocks, vector.unique_dagpb_blocks), "{name}: chunks");
        let stored = self.chunks.values().map(|chunk| chunk.len() as u64).sum::<u64>();
        assert_eq!(stored, vector.stored_bytes, "{name}: stored bytes");
        self.read(root.cid, tree);
    }

    /// Leaves under a chunk, repeats counted, and the longest path down from it.
    fn measure(&self, cid: Cid, seen: &mut HashMap<Cid, (u64, u64)>) -> (u64, u64) {
        if let Some(known) = seen.get(&cid) {
            return *known;
        }
        let children = links(&self.chunks[&cid]).expect("a valid node");
        let mut measured = (u64::from(cid.codec == Codec::Raw), 0);
        for child in children {
            let (leaves, depth) = self.measure(child.cid, seen);
            measured = (measured.0 + leaves, measured.1.max(depth + 1));
        }
        seen.insert(cid, measured);
        measured
    }

    /// Reads a tree back and compares it with what it was made from.
    fn read(&self, root: Cid, tree: &Tree) {
        let chunk = &self.chunks[&root];
        match tree {
            Tree::File(content) => self.read_file(chunk, content),
            Tree::Directory(entries) => self.read_directory(chunk, entries),
            Tree::Symlink(target) => {
                let Ok(Node::Symlink { target: read, .. }) = decode(chunk) else { panic!("not a symbolic link") };
                assert_eq!(read, target.as_bytes());
            }
        }
    }

    fn read_file(&self, root: &Chunk, content: &Content) {
        let mut walker = FileWalker::new(root, 0..u64::MAX).expect("a file");
        assert_eq!(walker.size(), content.length);
        let mut at = 0;
        while let Some(step) = walker.next_step() {
            let bytes = match step {
                Step::Inner(cid) => {
                    walker.expand(&self.chunks[&cid]).expect("a valid node");
                    continue;
                }
                Step::Leaf { cid, offset, length, skip, take } => {
                    assert_eq!((offset, skip, take), (at, 0, length));
                    check_leaf(&self.chunks[&cid], length).expect("a leaf as long as its parent says")
                }
                Step::Bytes { offset, bytes } => {
                    assert_eq!(offset, at);
                    bytes
                }
            };
            assert_eq!(bytes, content.slice(at, bytes.len() as u64));
            at += bytes.len() as u64;
        }
        assert_eq!(at, content.length);
    }

    fn read_directory(&self, root: &Chunk, expected: &BTreeMap<String, Tree>) {
        let mut walker = DirectoryWalker::new(root).expect("a directory");
        let mut read = BTreeMap::new();
        while !walker.done() {
            for entry in walker.take_entries() {
                read.insert(entry.name.clone(), entry);
            }
            for cid in walker.wanted() {
                walker.supply(&self.chunks[&cid]).expect("a valid shard");
            }
        }
        assert!(read.keys().eq(expected.keys()), "the names that were put in");
        // Each lookup reads the root again, which takes long where all entries stand in it.
        let every = if links(root).expect("a valid node").len() > 1000 { 50 } else { 1 };
        for (index, (name, tree)) in expected.iter().enumerate() {
            self.read(read[name].cid, tree);
            if index % every != 0 {
                continue;
            }
            assert_eq!(self.look_up(root, name).as_ref(), Some(&read[name]));
            assert_eq!(self.look_up(root, &format!("{name}?")), None);
        }
    }

    fn look_up(&self, root: &Chunk, name: &str) -> Option<Entry> {
        let mut lookup = NameLookup::new(root, name).expect("a directory");
        loop {
            match lookup.state().clone() {
                Lookup::Wanted(cid) => lookup.supply(&self.chunks[&cid]).expect("a valid shard"),
                Lookup::Found(entry) => return Some(entry),
                Lookup::Absent => return None,
            }
        }
    }
}

fn check_all(hash: HashCode, expected: impl Fn(&Vector) -> &str) {
    let vectors: Vectors = serde_json::from_str(VECTORS).expect("the vectors are JSON");
    assert_eq!(vectors.vectors.len(), 16, "none was lost");
    for vector in &vectors.vectors {
        let tree = tree(&vector.generator);
        let mut built = Built { hash, chunks: HashMap::new() };
        let root = built.build(&tree);
        assert_eq!(root.cid.to_string(), expected(vector), "{}", vector.name);
        assert_eq!(root.cid.codec == Codec::Raw, vector.codec == "raw", "{}", vector.name);
        built.check(vector, &tree, root);
    }
}

#[test]
fn every_vector_is_built_and_read_back_with_blake3() {
    check_all(HashCode::Blake3, |vector| &vector.cid);
}

#[test]
fn every_vector_is_built_and_read_back_with_sha2_256() {
    check_all(HashCode::Sha2_256, |vector| &vector.cid_sha2_256);
}

/// The entries of the numbers below `count`: raw chunks of their four bytes, big-endian.
fn manifest_entries(count: u32) -> Vec<manifest::Entry> {
    let entry = |number: u32| manifest::Entry { cid: Cid::of(Codec::Raw, &number.to_be_bytes()), length: 4 };
    let mut entries: Vec<_> = (0..count).map(entry).collect();
    entries.sort_by_cached_key(manifest::Entry::key);
    entries
}

#[test]
fn the_entry_of_a_manifest_is_the_vectors() {
    let [entry] = manifest_entries(1)[..] else { panic!("there is one") };
    let hex: String = entry.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "551e20ec2bd03bf86b935fa34d71ad7ebb049f1f10f87d343e521511d8f9e6625620cd0000000400");
    assert_eq!(manifest::Entry::from_bytes(&entry.to_bytes()), Some(entry));
    let key: String = entry.key().0.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(key, "8431d119060d13df819915d7be465291900a50e815e7dd2cc6e6905528b15f4f");
}

/// The roots were made by another implementation, from `SPEC.md` alone.
#[test]
fn every_manifest_is_the_vectors() {
    let vectors = [
        (1, "bafkr4ihmhmbl2e3ezp2wdldpzgen7c3w2tlshia4mzvkmdl3uuckqu3acu"),
        (8, "bafkr4idhuzfam4xpubilzyfkfava72ea2ucm7eu4zjqb2dg53rphmyo7vy"),
        (9, "bafkr4id5ylv7qwzyvpqdedxoy7mmze5suvt3cp32ioath5hcx2mo5pifbm"),
        (128, "bafkr4ibyw7qmkqiz26zfqofr76aqq4j344ntmj72wm4cyabwxecoiov554"),
        (129, "bafyb4ibv5ffxynaqcplvswjox6hcss2wl5fk4eamdrxmmococe3ihidhue"),
        (1000, "bafyb4iab3wlknxl2scyj2mwebqdj6p4ttyzdhzjrcsxeboocg5fgfq32ea"),
        (140_000, "bafyb4ifike2txnma63kdizhbhsylm5j33rlb3ebkjjcvrmjxaruxvrc7uu"),
    ];
    for (count, root) in vectors {
        let (mut writer, mut out) = (manifest::Writer::new(), Vec::new());
        for entry in manifest_entries(count) {
            writer.push(entry, &mut out).expect("they ascend");
        }
        let written = writer.finish(&mut out).expect("there are entries");
        assert_eq!(out.last().map(Chunk::cid), Some(&written.root), "the root comes last");
        assert_eq!((written.root.to_string().as_str(), written.entries), (root, u64::from(count)));
        // It is a file like any other: read as one, it is its entries in their order.
        let mut walker = FileWalker::new(&out[out.len() - 1], 0..u64::MAX).expect("it is a file");
        assert_eq!(walker.size(), u64::from(count) * 40);
        let chunks: HashMap<Cid, Chunk> = out.into_iter().map(|chunk| (*chunk.cid(), chunk)).collect();
        let mut bytes = Vec::new();
        while let Some(step) = walker.next_step() {
            match step {
                Step::Inner(cid) => walker.expand(&chunks[&cid]).expect("it was asked for"),
                Step::Leaf { cid, length, .. } => {
                    bytes.extend_from_slice(&check_leaf(&chunks[&cid], length).expect("its length was written"));
                }
                Step::Bytes { bytes: inline, .. } => bytes.extend_from_slice(&inline),
            }
        }
        let expected: Vec<u8> = manifest_entries(count).iter().flat_map(manifest::Entry::to_bytes).collect();
        assert_eq!(bytes, expected);
    }
}
