//! Writes valid inputs of every decoder into `fuzz/corpus`, for fuzzing to start from: `cargo run -p p2p-protocol --example seeds`.

use std::{fs, io, path::Path};

use bytes::Bytes;
use libp2p_identity::Keypair;
use p2p_protocol::{
    Chunk, Cid, Codec, HashCode, Label, Multihash,
    catalogue::{Kind, Publication, SignedPublication},
    dag::{DirectoryBuilder, FileBuilder, Link, Metadata, Profile, symlink},
    decoders::{DECODERS, NETWORK, own_id, own_ids, placeholder},
    fresh::Member,
    manifest::{ENTRY_BYTES, Entry, LEAF_BYTES, Listing, Writer},
    reconcile::{Fingerprint, IdSet, Initiator, MIN_MESSAGE_BYTES, ReconcileLimits, Step, respond},
    wire::{
        announce,
        audit::{
            self as auditing,
            Frame::{Compare, Compared, Proofs, Prove},
        },
        sync::Frame,
        sync_fresh::{Ask, AskName, Told},
        transfer::{Greeting, Held, Message, Offer},
        turns::Turn as _,
        version::Hello,
    },
};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, decoder) in DECODERS {
        let folder = corpus.join(name);
        fs::create_dir_all(&folder)?;
        let inputs = match name {
            "address" => addresses(),
            "dag" => dags(),
            "manifest" => manifests(),
            "transfer" => transfers(),
            "publication" => publications(),
            "catalogue_sync" => catch_ups(),
            "reconcile" => sessions(),
            "audit" => audits(),
            other => return Err(io::Error::other(format!("{other} has no seeds"))),
        };
        for (number, input) in inputs.iter().enumerate() {
            decoder(input);
            fs::write(folder.join(format!("seed-{number:02}")), input)?;
        }
    }
    Ok(())
}

fn addresses() -> Vec<Vec<u8>> {
    let sha = Cid { codec: Codec::DagPb, hash: Multihash::of(HashCode::Sha2_256, b"") };
    let cids = [Cid::of(Codec::Raw, b""), Cid::of(Codec::DagPb, b""), sha];
    let mut out: Vec<Vec<u8>> = cids.iter().map(|cid| cid.to_bytes().to_vec()).collect();
    out.extend(cids.iter().map(|cid| cid.to_string().into_bytes()));
    // Multihashes, one of which is a CIDv0.
    out.extend([cids[0].hash.to_bytes().to_vec(), sha.hash.to_bytes().to_vec()]);
    // The same address in base 58, 36, 16 and as CIDv0.
    for text in [
        "zdj7WbTaiJT1fgatdet9Ei9iDB5hdCxkbVyhyh8YTUnXMiwYi",
        "k2jmtxtdtrzr7cpc7k0jkzlusfp7tpmuyxahbrgyo7wjnxtjqxxq8cvv",
        "f01701220e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n",
    ] {
        out.push(text.as_bytes().to_vec());
    }
    out
}

/// The input of the `dag` decoder for these chunks, children first and the root last.
fn dag(chunks: &[Chunk]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, chunk) in chunks.iter().enumerate() {
        let mut bytes = chunk.bytes().to_vec();
        for (number, before) in chunks[..number].iter().enumerate() {
            let (hash, instead) = (before.cid().hash.to_bytes(), placeholder(number as u8).to_bytes());
            while let Some(at) = bytes.windows(hash.len()).position(|window| window == hash) {
                bytes[at..at + hash.len()].copy_from_slice(&instead);
            }
        }
        if number + 1 < chunks.len() {
            out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        } else if number == 0 && bytes.len() >= 2 {
            // The root alone: a length that leaves nothing for a root would be read, one that is too long is not.
            assert!(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) + 2 > bytes.len(), "it begins with a chunk");
        }
        out.extend_from_slice(&bytes);
    }
    out
}

fn raw(bytes: &[u8]) -> Chunk {
    Chunk::new(Codec::Raw, bytes.to_vec()).expect("short")
}

fn dags() -> Vec<Vec<u8>> {
    let metadata = Metadata { mode: Some(0o644), mtime: Some((1, 2)) };
    let mut out = Vec::new();
    for (leaves, metadata) in [(1, metadata), (2, Metadata::default()), (5, metadata), (8, Metadata::default())] {
        let mut chunks: Vec<Chunk> = (1..=leaves).map(|length| raw(&vec![length; usize::from(length)])).collect();
        let mut builder = FileBuilder::with_profile(metadata, Profile::STANDARD.with_width(3));
        let mut inner = Vec::new();
        chunks.iter().for_each(|chunk| builder.leaf(Link::leaf(chunk), &mut inner));
        builder.finish(&mut inner);
        chunks.append(&mut inner);
        out.push(dag(&chunks));
    }
    let leaf = raw(b"leaf");
    // Flat, and sharded in one level and in two.
    for (flat_bytes, entries) in [(usize::MAX, 0), (usize::MAX, 3), (0, 0), (0, 2), (0, 24)] {
        let mut chunks = vec![leaf.clone()];
        let profile = Profile::STANDARD.with_flat_bytes(flat_bytes);
        let mut directory = DirectoryBuilder::with_profile(metadata, profile);
        (0..entries).for_each(|name| directory.entry(name.to_string(), Link::leaf(&leaf)).expect("a good name"));
        directory.finish(&mut |chunk| chunks.push(chunk)).expect("distinct names");
        out.push(dag(&chunks));
    }
    out.push(dag(&[symlink(b"../target", metadata).expect("a good target").0]));
    // Layouts that are not made here: content inside a node, and beside parts whose sizes are packed.
    let inline = b"\x0a\x0b\x08\x02\x12\x05hello\x18\x05";
    let link = [b"\x12\x28\x0a\x24\x01\x55", &leaf.cid().hash.to_bytes()[..], b"\x18\x04"].concat();
    let beside = [&link[..], b"\x0a\x0b\x08\x02\x12\x02hi\x18\x06\x22\x01\x04"].concat();
    for node in [&inline[..], &beside] {
        let node = Chunk::new(Codec::DagPb, node.to_vec()).expect("short");
        out.push(dag(&[leaf.clone(), node]));
    }
    out
}

fn manifests() -> Vec<Vec<u8>> {
    let entries = |count: u32| {
        let entry = |number: u32| Entry { cid: Cid::of(Codec::Raw, &number.to_be_bytes()), length: 4 };
        let mut entries: Vec<Entry> = (0..count).map(entry).collect();
        entries.sort_by_cached_key(Entry::key);
        entries
    };
    let content = |count| entries(count).iter().flat_map(Entry::to_bytes).collect::<Vec<u8>>();
    let input = |range: [u8; 2], content: &[u8]| [&range[..], content].concat();
    let mut out = vec![input([0, 0], &content(1)), input([0, 0], &content(3)), input([0x40, 0xa0], &content(300))];
    // One leaf whose last two entries are swapped, and two leaves that are.
    let mut swapped = content(300);
    swapped[LEAF_BYTES - 2 * ENTRY_BYTES..LEAF_BYTES].rotate_left(ENTRY_BYTES);
    out.push(input([0, 0], &swapped));
    let mut turned = content(300);
    turned[..2 * LEAF_BYTES].rotate_left(LEAF_BYTES);
    out.push(input([0x80, 0], &turned));
    // Roots: of one level, and of two.
    for count in [129, 140_000] {
        let (mut writer, mut chunks) = (Writer::new(), Vec::new());
        entries(count).into_iter().for_each(|entry| writer.push(entry, &mut chunks).expect("they ascend"));
        writer.finish(&mut chunks);
        let root = chunks.last().expect("the root comes last");
        let said = u64::from(count).to_be_bytes();
        out.push(input([0, 0], &[&said[..], root.bytes()].concat()));
    }
    out
}

fn transfers() -> Vec<Vec<u8>> {
    let cid = Cid::of(Codec::DagPb, b"root");
    let offer = Offer { cid, length: 5 };
    let held = |length| Some(Held { length });
    let hello = Hello { version: 1, features: 0 };
    let greeting = Greeting {
        hello,
        storing: true,
        full: false,
        leaving: false,
        capacity_bytes: 1 << 40,
        free_bytes: 1 << 30,
        label: Label::default(),
    };
    let leaving =
        Message::Greeting(Greeting { full: true, leaving: true, label: Label::new("nas"), ..greeting.clone() });
    let greeting = Message::Greeting(greeting);
    let content = Bytes::from_static(b"bytes");
    let dialogues = [
        vec![greeting, Message::Greet, leaving],
        vec![Message::Want(vec![cid.hash; 2]), Message::Chunk(content.clone()), Message::Missing],
        vec![Message::Have(vec![cid.hash; 3]), Message::Holdings(vec![held(5), None, held(0)])],
        vec![Message::Offer(vec![offer; 2]), Message::Send, Message::Kept],
        vec![Message::Put(cid, content.clone()), Message::NoSpace, Message::Unsupported],
        vec![Message::Renew(vec![cid.hash; 2]), Message::Renewed(vec![true, false])],
        vec![Message::Put(cid, content), Message::Refused("not today, änd nöt tomorrow".to_owned())],
    ];
    let frames = |messages: &Vec<Message>| {
        let mut out = Vec::new();
        for (request, message) in messages.iter().enumerate() {
            let payload = message.encode(request as u32, &mut out);
            out.extend_from_slice(&payload);
        }
        out
    };
    dialogues.iter().map(frames).collect()
}

fn signed() -> Vec<SignedPublication> {
    let keypair = Keypair::ed25519_from_bytes([1; 32]).expect("32 bytes");
    let named = Publication {
        publisher: keypair.public().to_peer_id(),
        name: Some("report".to_owned()),
        label: "report.txt".to_owned(),
        root: Cid::of(Codec::Raw, b"hello world\n"),
        kind: Kind::File,
        size: 12,
        replicas: 3,
        chunks: 1,
        listing: few(&[Cid::of(Codec::Raw, b"hello world\n")]),
        version: 7,
        floor: 2,
        time_milliseconds: 1_700_000_000_123,
        removed: false,
    };
    let address = "bafkr4ig4ljhnxasawambeqcsymycobuw7ftxdjr3iusquxax2maa5artku".to_owned();
    let unnamed = Publication { name: None, label: address, kind: Kind::Symlink, ..named.clone() };
    let root = Cid { codec: Codec::DagPb, hash: Multihash::of(HashCode::Sha2_256, b"") };
    let listing = few(&[Cid::of(Codec::Raw, b"one"), root, Cid::of(Codec::Raw, b"two")]);
    let several = Publication { root, kind: Kind::Directory, chunks: 3, listing, ..named.clone() };
    let removed = Publication { removed: true, floor: 7, label: "é".repeat(20), ..several.clone() };
    let large = |chunks, codec| {
        let listing = Listing::Manifest(Cid::of(codec, b"a manifest"));
        Publication { chunks, listing, ..several.clone() }
    };
    let (leaf, tree) = (large(9, Codec::Raw), large(129, Codec::DagPb));
    let sign = |(publication, extension): (_, &[u8])| {
        SignedPublication::sign_extended(&keypair, NETWORK, publication, extension).expect("it is valid")
    };
    let all =
        [(named, &[][..]), (unnamed, b"from the future"), (removed, &[]), (several, &[]), (leaf, &[]), (tree, &[])];
    all.map(sign).into()
}

/// A list of a few chunks, in order.
fn few(cids: &[Cid]) -> Listing {
    let mut entries: Vec<_> = cids.iter().map(|&cid| Entry { cid, length: 12 }).collect();
    entries.sort_by_key(Entry::key);
    Listing::Inline(entries)
}

fn publications() -> Vec<Vec<u8>> {
    // As they are gossiped, and the bodies alone.
    let gossiped = signed().iter().map(announce::encode).collect::<Vec<_>>();
    let bodies = signed().into_iter().map(|signed| signed.bytes()[..signed.bytes().len() - 64].to_vec());
    gossiped.into_iter().chain(bodies).collect()
}

fn catch_ups() -> Vec<Vec<u8>> {
    let entries: Vec<Bytes> = signed().iter().map(|signed| Bytes::copy_from_slice(signed.bytes())).collect();
    let told = entries[..1].to_vec();
    let hello = Frame::Greeting(Hello { version: 1, features: 0 });
    let request = Initiator::new(ReconcileLimits::default()).initiate(&own_ids());
    let difference = respond(&IdSet::default(), &request, MIN_MESSAGE_BYTES).expect("a good request");
    let dialogues = [
        vec![hello.clone(), hello, Frame::Reconcile(request.into()), Frame::Difference(difference.into())],
        vec![Frame::Want(vec![own_id(1); 3]), Frame::Entries { answered: 3, entries: entries[..1].to_vec() }],
        vec![Frame::Push(entries), Frame::Taken(2), Frame::Unsupported],
        vec![Frame::Want(Vec::new()), Frame::Entries { answered: 0, entries: Vec::new() }, Frame::Push(Vec::new())],
    ];
    let encode = |(request, frame): (u32, &Frame)| frame.encode(request);
    let peer = |seed| Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id();
    let member = |seed| Member { peer: peer(seed), ago_seconds: 60, complete: seed == 1 };
    let members = vec![member(1), member(2)];
    let name = |publisher| Some(AskName { publisher, name: "site".to_owned() });
    let told = Told { complete: true, own: true, stores: true, cut: false, members: members.clone(), entries: told };
    let dialogues = dialogues.into_iter().chain([
        vec![Frame::Ask(Ask { stores: true, members, name: name(Some(peer(1))) }), Frame::Told(told)],
        vec![Frame::Ask(Ask { name: name(None), ..Default::default() }), Frame::Told(Told::default())],
        vec![Frame::Ask(Ask::default())],
    ]);
    let dialogues: Vec<_> = dialogues.collect();
    dialogues.iter().map(|frames| (0..).zip(frames).flat_map(encode).collect()).collect()
}

fn audits() -> Vec<Vec<u8>> {
    let request = Initiator::new(ReconcileLimits::default()).initiate(&own_ids());
    let response = respond(&IdSet::default(), &request, MIN_MESSAGE_BYTES).expect("a good request");
    let prints = Compare { catalogue: Fingerprint([1; 16]), range: Fingerprint([2; 16]), message: request.into() };
    let hashes = [&b"one"[..], b"two"].map(|bytes| Multihash::of(HashCode::Blake3, bytes)).to_vec();
    let dialogues = [
        vec![prints, Compared { missing: 0, message: Some(response.into()) }, Compared { missing: 9, message: None }],
        vec![Prove { nonce: [3; 32], hashes }, Proofs(vec![Some([4; 16]), None]), auditing::Frame::Unsupported],
        vec![auditing::Frame::Greeting(Hello { version: 1, features: 0 })],
    ];
    let encode = |(request, frame): (u32, &auditing::Frame)| frame.encode(request);
    dialogues.iter().map(|frames| (0..).zip(frames).flat_map(encode).collect()).collect()
}

/// One session of each kind in both directions: what the other side says is the input.
fn sessions() -> Vec<Vec<u8>> {
    let limits = ReconcileLimits { message_bytes: MIN_MESSAGE_BYTES, ..ReconcileLimits::default() };
    let own = own_ids();
    let mut lacking = own.clone();
    (7..80).for_each(|number| assert!(lacking.remove(&own_id(number))));
    (600..640).for_each(|number| assert!(lacking.insert(own_id(number))));
    let few = (590..610).map(own_id).collect();
    let mut out = Vec::new();
    for other in [own.clone(), lacking, few, IdSet::default()] {
        for (asking, asked) in [(&own, &other), (&other, &own)] {
            let (mut requests, mut responses) = (Vec::new(), Vec::new());
            let mut initiator = Initiator::new(limits);
            let mut request = initiator.initiate(asking);
            loop {
                let response = respond(asked, &request, MIN_MESSAGE_BYTES).expect("a good request");
                let step = initiator.handle(asking, &response).expect("a good response");
                requests.push(request);
                responses.push(response);
                match step {
                    Step::Send(next) => request = next,
                    Step::Done => break,
                }
            }
            // The first side that asks is the one that is fuzzed; the second is the other, whose requests are the input.
            out.push(in_turn(if std::ptr::eq(asking, &own) { &responses } else { &requests }));
        }
    }
    out
}

fn in_turn(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if index + 1 < messages.len() {
            out.extend_from_slice(&(message.len() as u16).to_be_bytes());
        }
        out.extend_from_slice(message);
    }
    out
}
