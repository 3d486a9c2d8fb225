//! Every decoder of bytes from outside, by name, for the fuzz targets and for the replay of their corpora.
//!
//! Each takes any bytes and never panics for what it reads; it panics where what it reads breaks a law: what is
//! accepted is written back the same, a walk goes through a file without gaps, a session gets on.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use libp2p_identity::Keypair;

use crate::{
    Chunk, Cid, Codec, HashCode, Key, MAX_CHUNK_BYTES, Multihash,
    catalogue::{Catalogue, InvalidPublication, Outcome, SignedPublication, read_unsigned},
    cid::MULTIHASH_BYTES,
    dag::{
        self, DirectoryWalker, Entry, FileBuilder, FileWalker, Link, Lookup, MAX_WANTED, Metadata, NameLookup, Step,
        check_leaf,
    },
    manifest::{ENTRY_BYTES, LEAF_BYTES, Leaf, MAX_ENTRIES, Manifest, OwnChunks, Place, RangeReader, Shape},
    manifest::{Step as Told, Unasked},
    reconcile::{IdSet, Initiator, MIN_MESSAGE_BYTES, ReconcileLimits, Step as Turn, respond},
    wire::{announce, audit as auditing, frame, sync, transfer, turns},
};

/// A decoder's name, which is also its fuzz target's and its corpus folder's, and the decoder.
pub type Decoder = (&'static str, fn(&[u8]));

/// All of them.
pub const DECODERS: [Decoder; 8] = [
    ("address", address),
    ("dag", dag),
    ("manifest", manifest),
    ("transfer", transfer),
    ("publication", publication),
    ("catalogue_sync", catalogue_sync),
    ("reconcile", reconcile),
    ("audit", audit),
];

/// The network that publications are read for.
pub const NETWORK: &str = "main";

/// The most chunks of one input's DAG: enough for every shape, and a placeholder's number fits a byte.
const MAX_BLOCKS: usize = 16;
/// The most steps of one walk. A walk ends by itself, but a few nodes that link to each other many times are a large
/// file; this only keeps a run short.
const MAX_STEPS: usize = 512;
/// The most entries of a directory that are looked up one by one, for the same reason.
const MAX_LOOKUPS: usize = 8;
/// The most messages of one session, for the same reason.
const MAX_TURNS: usize = 32;

/// CIDs and multihashes, binary and text: what is read is written back the same.
pub fn address(bytes: &[u8]) {
    if let Ok(cid) = Cid::from_bytes(bytes) {
        match bytes.strip_prefix(&[1]) {
            Some(_) => assert_eq!(cid.to_bytes(), bytes),
            // A CIDv0 is a bare multihash.
            None => assert_eq!((cid.codec, &cid.hash.to_bytes()[..]), (Codec::DagPb, bytes)),
        }
        assert_eq!(Cid::from_bytes(&cid.to_bytes()), Ok(cid));
    }
    if let Ok(hash) = Multihash::from_bytes(bytes) {
        assert_eq!(hash.to_bytes(), bytes);
    }
    if let Some(cid) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Cid>().ok()) {
        assert_eq!(cid.to_string().parse(), Ok(cid));
    }
}

/// A DAG of up to 16 chunks, read and walked in every way that one is.
///
/// The bytes are `[length u16][chunk]` each, the last chunk, which is the root, without a length. No input could contain the
/// addresses of its own chunks, so a multihash of BLAKE3 whose digest is a chunk's number and 31 zero bytes
/// ([`placeholder`]) becomes the multihash of that earlier chunk.
pub fn dag(bytes: &[u8]) {
    let mut chunks = Source::default();
    let mut numbered = Vec::new();
    let mut rest = bytes;
    while numbered.len() + 1 < MAX_BLOCKS {
        let Some((length, tail)) = rest.split_first_chunk() else { break };
        let Some((block, tail)) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length))) else { break };
        let block = filled_in(block, &numbered);
        let hash = Multihash::of(HashCode::Blake3, &block);
        chunks.0.insert(hash, block);
        numbered.push(hash);
        rest = tail;
    }
    let Ok(root) = Chunk::new(Codec::DagPb, filled_in(rest, &numbered)) else {
        assert!(rest.len() > MAX_CHUNK_BYTES);
        return;
    };
    let decoded = dag::decode(&root);
    let links = dag::links(&root);
    assert!(decoded.is_err() || links.is_ok(), "what is UnixFS is DAG-PB");
    if let Ok(size) = decoded.map(|node| node.file_size()) {
        assert_eq!(size.is_some(), FileWalker::new(&root, 0..u64::MAX).is_ok());
        let size = size.unwrap_or_default();
        chunks.walk_file(&root, 0..u64::MAX);
        chunks.walk_file(&root, size / 3..size - size / 3);
        chunks.walk_directory(&root);
    }
}

/// A manifest that somebody made up: what is listed is in the range and ascends, and of an honest one all of it is.
///
/// The bytes are `[from u8][to u8]`, the first byte of the range's keys and of its end (0: none), then the leaves one after
/// the other, 5,120 bytes each but the last. The root above them is made here, since no input could contain its address.
/// The same bytes behind the first two are read as a root too: `[entries u64][node]`.
pub fn manifest(bytes: &[u8]) {
    let Some(([from, to], content)) = bytes.split_first_chunk() else { return };
    let read: Vec<_> = content.chunks(LEAF_BYTES).take(MAX_LEAVES).map(Leaf::decode).collect();
    for (leaf, bytes) in read.iter().zip(content.chunks(LEAF_BYTES)) {
        let Ok(leaf) = leaf else { continue };
        let written: Vec<u8> = leaf.entries().iter().flat_map(|(_, entry)| entry.to_bytes()).collect();
        assert_eq!(written, bytes);
        assert!(leaf.entries().is_sorted_by(|(a, _), (b, _)| a < b), "a leaf ascends");
    }
    made_up_root(content);
    let content = &content[..content.len().min(MAX_LEAVES * LEAF_BYTES)];
    let mut chunks = Source::default();
    let mut keep = |chunk: Chunk| chunks.0.insert(chunk.cid().hash, chunk.into_bytes());
    let (mut builder, mut inner) = (FileBuilder::new(Metadata::default()), Vec::new());
    for leaf in content.chunks(LEAF_BYTES) {
        let leaf = Chunk::new(Codec::Raw, leaf.to_vec()).expect("a leaf is short");
        builder.leaf(Link::leaf(&leaf), &mut inner);
        keep(leaf);
    }
    let root = builder.finish(&mut inner).cid;
    inner.into_iter().for_each(|chunk| drop(keep(chunk)));
    let manifest = Manifest { root, entries: (content.len() / ENTRY_BYTES) as u64 };
    let key = |first: u8| Key(std::array::from_fn(|at| if at == 0 { first } else { 0 }));
    let (from, to) = (key(*from), (*to > 0).then(|| key(*to)));
    let Ok(mut reader) = RangeReader::new(&manifest, from, to) else { return };
    let (mut listed, mut malformed) = (Vec::new(), 0);
    loop {
        match reader.next_step() {
            Told::Want(entry) => {
                assert!(reader.ahead(MAX_LEAVES).iter().all(|ahead| ahead.cid != entry.cid));
                chunks.give(entry.cid, |chunk| reader.supply(chunk));
            }
            Told::Listed(entries) => listed.extend(entries),
            Told::Malformed(_) => malformed += 1,
            Told::Done => break,
        }
    }
    assert!(listed.iter().all(|(key, _)| *key >= from && to.is_none_or(|to| *key < to)));
    assert!(listed.is_sorted_by(|(a, _), (b, _)| a < b));
    let leaves: Vec<&Leaf> = read.iter().flatten().collect();
    if leaves.len() == read.len()
        && leaves.is_sorted_by(|a, b| a.last() < b.first())
        && content.len().is_multiple_of(ENTRY_BYTES)
    {
        let all = leaves.iter().flat_map(|leaf| leaf.entries());
        let within = all.filter(|(key, _)| *key >= from && to.is_none_or(|to| *key < to));
        assert!(within.eq(&listed) && malformed == 0, "an honest manifest lists all of its range");
    }
    let mut own = OwnChunks::new(&manifest, key(0), None).expect("its root was taken before");
    loop {
        match own.next_step() {
            Told::Want(entry) => chunks.give(entry.cid, |chunk| own.supply(chunk)),
            Told::Listed(entries) => assert!(entries.iter().all(|(_, entry)| chunks.0.contains_key(&entry.cid.hash))),
            Told::Malformed(_) => {}
            Told::Done => break,
        }
    }
}

/// The most leaves of one input's manifest: a search among them takes every turn that there is.
const MAX_LEAVES: usize = 8;

/// Reads `[entries u64][node]` as the root of a manifest: its children lie one behind the other and end with the leaves.
fn made_up_root(bytes: &[u8]) {
    let Some((entries, node)) = bytes.split_first_chunk() else { return };
    let entries = u64::from_be_bytes(*entries);
    let Ok(shape) = Shape::new(entries) else {
        assert!(entries == 0 || entries > MAX_ENTRIES);
        return;
    };
    let Ok(node) = Chunk::new(Codec::DagPb, node.to_vec()) else { return };
    let Ok(children) = shape.children(shape.root(), &node) else { return };
    let leaves = children.iter().map(|child| shape.leaves_under(child.place));
    let end = leaves.fold(0, |end, leaves| {
        assert!(leaves.start == end && leaves.end > end, "the children lie one behind the other");
        leaves.end
    });
    assert_eq!(end, shape.leaves());
    assert_eq!(shape.leaves_under(Place { level: 0, index: end }), end..end);
    assert_eq!(dag::links(&node).map(|links| links.len()), Ok(children.len()));
}

/// The multihash that [`dag()`] replaces by that of chunk `number`.
pub fn placeholder(number: u8) -> Multihash {
    let mut digest = [0; 32];
    digest[0] = number;
    Multihash { code: HashCode::Blake3, digest }
}

/// `block` with the addresses of the chunks before it.
fn filled_in(block: &[u8], numbered: &[Multihash]) -> Bytes {
    let mut out = block.to_vec();
    let mut at = 0;
    while let Some(window) = out.get_mut(at..at + MULTIHASH_BYTES) {
        let number = window[2];
        match numbered.get(usize::from(number)) {
            Some(hash) if *window == placeholder(number).to_bytes() => {
                window.copy_from_slice(&hash.to_bytes());
                at += MULTIHASH_BYTES;
            }
            _ => at += 1,
        }
    }
    out.into()
}

/// Blocks by their addresses.
#[derive(Default)]
struct Source(HashMap<Multihash, Bytes>);

impl Source {
    fn get(&self, cid: Cid) -> Option<Chunk> {
        Chunk::verify(cid, self.0.get(&cid.hash)?.clone()).ok()
    }

    /// Answers what a reader of a manifest wants, which is always here.
    fn give(&self, cid: Cid, supply: impl FnOnce(&Chunk) -> Result<(), Unasked>) {
        let chunk = self.get(cid).expect("a manifest's reader wants what the manifest links to");
        supply(&chunk).expect("it was asked for");
    }

    /// Reads a range of a file until a chunk is missing or wrong.
    fn walk_file(&self, root: &Chunk, range: std::ops::Range<u64>) {
        let Ok(mut walker) = FileWalker::new(root, range) else { return };
        let range = walker.range();
        assert!(range.is_empty() || range.end <= walker.size());
        let mut at = range.start;
        for _ in 0..MAX_STEPS {
            match walker.next_step() {
                None => {
                    assert_eq!(at, range.end.max(range.start), "a walk that ends has gone through the range");
                    return;
                }
                Some(Step::Inner(cid)) => {
                    assert_eq!(walker.upcoming_inner(1), [cid]);
                    assert!(walker.expand(root).is_err(), "no chunk can link to itself");
                    let Some(chunk) = self.get(cid) else { return };
                    if walker.expand(&chunk).is_err() {
                        return;
                    }
                }
                Some(Step::Leaf { cid, offset, length, skip, take }) => {
                    assert!(take > 0 && skip + take <= length && offset + skip == at);
                    if let Some(content) = self.get(cid).and_then(|chunk| check_leaf(&chunk, length).ok()) {
                        assert_eq!(content.len() as u64, length);
                    }
                    at += take;
                }
                Some(Step::Bytes { offset, bytes }) => {
                    assert!(!bytes.is_empty() && offset == at);
                    at += bytes.len() as u64;
                }
            }
        }
    }

    /// Lists a directory until a shard is missing or wrong, and looks up what it has.
    fn walk_directory(&self, root: &Chunk) {
        let Ok(mut walker) = DirectoryWalker::new(root) else { return };
        let mut names = HashSet::new();
        let mut wanted = Vec::new();
        for _ in 0..MAX_STEPS {
            for entry in walker.take_entries() {
                assert!(!matches!(&*entry.name, "" | "." | "..") && !entry.name.contains(['/', '\0']));
                if names.len() < MAX_LOOKUPS {
                    self.look_up(root, &entry);
                }
                assert!(names.insert(entry.name), "a name stands in one place");
            }
            wanted.extend(walker.wanted());
            assert!(wanted.len() <= MAX_WANTED);
            let Some(cid) = wanted.pop() else {
                assert!(walker.done());
                return;
            };
            let Some(chunk) = self.get(cid) else { return };
            if walker.supply(&chunk).is_err() {
                return;
            }
        }
    }

    /// Finds an entry that a listing has: its shards were all there and right.
    fn look_up(&self, root: &Chunk, entry: &Entry) {
        let mut lookup = NameLookup::new(root, &entry.name).expect("what is listed can be looked into");
        while let Lookup::Wanted(cid) = *lookup.state() {
            let chunk = self.get(cid).expect("it was listed");
            lookup.supply(&chunk).expect("it was listed");
        }
        assert_eq!(*lookup.state(), Lookup::Found(entry.clone()));
    }
}

/// Frames of the transfer protocol, one after the other: what is read is written back the same.
pub fn transfer(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_first_chunk::<{ frame::HEADER_BYTES }>() {
        let Ok(header) = frame::Header::decode(head, transfer::limit) else { return };
        assert_eq!(header.encode(), *head);
        // The last frame may be shorter than it says.
        let (body, next) = after.split_at(after.len().min(header.length as usize));
        transfer_frame(header, body);
        rest = next;
    }
}

fn transfer_frame(header: frame::Header, body: &[u8]) {
    let Ok(message) = transfer::Message::decode(header.kind, Bytes::copy_from_slice(body)) else { return };
    assert_eq!(message.kind(), header.kind);
    let mut out = Vec::new();
    let payload = message.encode(header.request, &mut out);
    out.extend_from_slice(&payload);
    let (again, written) = out.split_first_chunk().expect("a frame has a header");
    let again = frame::Header::decode(again, transfer::limit).expect("what is written keeps to its bounds");
    assert_eq!((again.kind, again.request, again.length as usize), (header.kind, header.request, written.len()));
    let reread = transfer::Message::decode(again.kind, Bytes::copy_from_slice(written));
    match (&message, reread) {
        // A reason is cut to its bound when it is written, and may have become longer when it was made fit to show.
        (transfer::Message::Refused(reason), Ok(transfer::Message::Refused(shown))) => {
            assert!(reason.starts_with(&shown) && !reason.contains(char::is_control));
        }
        (_, reread) => assert_eq!(reread.as_ref(), Ok(&message)),
    }
    // A greeting and UNSUPPORTED may carry more than this version reads, a reason is made fit to show, and what is not
    // held has no fields.
    use transfer::Message::{Greeting, Holdings, Refused, Unsupported};
    if !matches!(message, Greeting(_) | Unsupported | Refused(_) | Holdings(_)) {
        assert_eq!(written, body);
    }
}

/// Gossiped publications; and the same bytes as the body of one whose signature is valid.
pub fn publication(bytes: &[u8]) {
    if let Ok(signed) = announce::decode(NETWORK, bytes) {
        assert_eq!(announce::encode(&signed), bytes);
        assert!(announce::decode("another", bytes).is_err(), "it was signed for one network");
    }
    let _ = SignedPublication::decode(NETWORK, bytes);
    // No input could contain its own signature: its fields are read, and signed anew by a key that is known.
    let unsigned = [bytes, &[0; 64]].concat();
    let Ok((mut publication, extension)) = read_unsigned(&unsigned) else { return };
    let keypair = Keypair::ed25519_from_bytes([1; 32]).expect("any 32 bytes are a key");
    publication.publisher = keypair.public().to_peer_id();
    let signed = SignedPublication::sign_extended(&keypair, NETWORK, publication.clone(), extension)
        .expect("what is read can be signed");
    let body = &signed.bytes()[..bytes.len()];
    // The publisher stands behind the four bytes of version, flags, kind and copies, and has 38.
    assert_eq!((&body[..4], &body[42..]), (&bytes[..4], &bytes[42..]), "one publication has one body");
    assert_eq!(SignedPublication::decode(NETWORK, signed.bytes()).as_ref(), Ok(&signed));
    assert_eq!(SignedPublication::decode("another", signed.bytes()), Err(InvalidPublication::Signature));
    let (mut catalogue, mut kept) = (Catalogue::default(), BTreeMap::new());
    let key = publication.key();
    assert_eq!(catalogue.merge(&signed, &kept).outcome, Outcome::Taken { current: true, previous: None });
    kept.insert(publication.version_key(), Bytes::copy_from_slice(signed.bytes()));
    assert_eq!(catalogue.signed_bytes(&signed.id(), &kept).as_deref(), Some(signed.bytes()));
    assert_eq!(catalogue.get(&publication.publisher, &key, &kept), Some(publication));
}

/// Frames of the catch-up protocol.
pub fn catalogue_sync(bytes: &[u8]) {
    by_turns::<sync::Frame>(bytes);
}

/// Frames of the audit protocol.
pub fn audit(bytes: &[u8]) {
    by_turns::<auditing::Frame>(bytes);
}

/// Frames one after the other: what is read is written back the same.
fn by_turns<T: turns::Turn>(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_first_chunk::<{ frame::HEADER_BYTES }>() {
        let Ok(header) = frame::Header::decode(head, T::limit) else { return };
        let Some((payload, next)) = after.split_at_checked(header.length as usize) else { return };
        if let Ok(read) = T::decode(header.kind, Bytes::copy_from_slice(payload)) {
            let written = read.encode(header.request);
            // A greeting and UNSUPPORTED may carry more than this version reads.
            let whole = read.as_greeting().is_none() && read != T::UNSUPPORTED;
            assert!(if whole {
                written[frame::HEADER_BYTES..] == *payload
            } else {
                written.len() <= frame::HEADER_BYTES + payload.len()
            });
        }
        rest = next;
    }
}

/// Messages of set reconciliation, `[length u16][message]` each and the last without a length, to both sides in turn.
pub fn reconcile(bytes: &[u8]) {
    let set = own_ids();
    // A peer's view of the session: a small window, so that messages are cut.
    let limits = ReconcileLimits { message_bytes: MIN_MESSAGE_BYTES, ..ReconcileLimits::default() };
    let mut initiator = Initiator::new(limits);
    assert!(initiator.initiate(&set).len() <= MIN_MESSAGE_BYTES);
    let mut over = false;
    let mut rest = bytes;
    for _ in 0..MAX_TURNS {
        let split = rest
            .split_first_chunk()
            .and_then(|(length, tail)| tail.split_at_checked(usize::from(u16::from_be_bytes(*length))));
        let (message, next) = split.unwrap_or((rest, &[]));
        for limit in [MIN_MESSAGE_BYTES, 2 * MIN_MESSAGE_BYTES] {
            if let Ok(answer) = respond(&set, message, limit) {
                assert!(answer.len() <= limit);
            }
        }
        if !over {
            match initiator.handle(&set, message) {
                Ok(Turn::Send(asked)) => assert!(!asked.is_empty() && asked.len() <= MIN_MESSAGE_BYTES),
                Ok(Turn::Done) | Err(_) => over = true,
            }
        }
        if next.is_empty() {
            break;
        }
        rest = next;
    }
    let need: HashSet<_> = initiator.need().iter().collect();
    let have: HashSet<_> = initiator.have().iter().collect();
    assert_eq!((need.len(), have.len()), (initiator.need().len(), initiator.have().len()), "each is told once");
    assert!(need.iter().all(|id| !set.contains(id)) && have.iter().all(|id| set.contains(id)));
}

/// What the side that is fuzzed has: 600 ids, so that ranges are cut and blocks are split, half of them close together.
pub fn own_ids() -> IdSet {
    (0..600_u16).map(own_id).collect()
}

/// The id with that number: [`own_ids`] has the first 600.
pub fn own_id(number: u16) -> [u8; 32] {
    let mut id = [0; 32];
    let spread = if number.is_multiple_of(2) { number.wrapping_mul(109) } else { 0x8000 };
    id[..2].copy_from_slice(&spread.to_be_bytes());
    id[30..].copy_from_slice(&number.to_be_bytes());
    id
}
