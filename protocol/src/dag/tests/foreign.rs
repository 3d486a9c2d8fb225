//! Layouts that other implementations make and this one only reads.

use super::{
    unixfs::{Message, Type},
    *,
};
use crate::HashCode;

/// The address of a chunk's bytes under SHA2-256, with the chunk verified by it.
fn sha2(codec: Codec, chunk: &Chunk) -> Chunk {
    let cid = Cid { codec, hash: Multihash::of(HashCode::Sha2_256, chunk.bytes()) };
    Chunk::verify(cid, chunk.bytes().clone()).expect("it was just hashed")
}

fn wrapped(kind: Type, content: &'static [u8]) -> Message {
    let data = Some(Bytes::from_static(content));
    Message { data, file_size: Some(content.len() as u64), ..Message::new(kind) }
}

#[test]
fn leaves_wrapped_in_dag_pb_are_read_with_sha2_256_links_and_inline_content() {
    let mut source = Source::default();
    let first = source.keep(sha2(Codec::DagPb, &node(&[], &wrapped(Type::Raw, b"one-"))));
    let second = source.keep(sha2(Codec::DagPb, &node(&[], &wrapped(Type::File, b"two-"))));
    let third = source.keep(sha2(Codec::Raw, &Chunk::new(Codec::Raw, &b"three"[..]).expect("short")));
    let message = Message {
        data: Some(Bytes::from_static(b"zero-")),
        file_size: Some(18),
        block_sizes: vec![4, 4, 0, 5],
        ..Message::new(Type::File)
    };
    let nothing = Cid::of(Codec::DagPb, b"never fetched");
    let links = [(first.cid, "", 1), (second.cid, "", 1), (nothing, "", 0), (third.cid, "", 1)];
    let root = source.keep(node(&links, &message));
    assert_eq!(source.read(&root.cid, 0..99), Ok(b"zero-one-two-three".to_vec()));
    for start in 0..18 {
        for end in start..=18 {
            let part = b"zero-one-two-three"[start..end].to_vec();
            assert_eq!(source.read(&root.cid, start as u64..end as u64), Ok(part), "{start}..{end}");
        }
    }
    assert_eq!(check_leaf(source.get(&first.cid), 4), Ok(Bytes::from_static(b"one-")));
    assert_eq!(source.read(&first.cid, 1..3), Ok(b"ne".to_vec()), "a wrapped leaf as a root");
}

#[test]
fn a_directory_in_any_order_of_names_and_with_data_first_is_read() {
    let cid = Cid::of(Codec::Raw, b"x");
    let mut bytes = Vec::new();
    pb::put_data(&mut bytes, &Message::new(Type::Directory).encode());
    pb::put_link(&mut bytes, &cid, &["z"], 1);
    pb::put_link(&mut bytes, &cid, &["a"], 1);
    let chunk = Chunk::new(Codec::DagPb, bytes).expect("short");
    let entries = ["z", "a"].map(|name| Entry { name: name.to_owned(), cid, tsize: 1 });
    assert_eq!(decode(&chunk), Ok(Node::Directory { entries: entries.to_vec(), metadata: Metadata::default() }));
}

#[test]
fn a_shard_of_another_fanout_is_read() {
    let fanout = hamt::Fanout::new(16).expect("a power of two");
    let cid = Cid::of(Codec::Raw, b"x");
    let place = fanout.place(hamt::hash("name"), 0);
    let message = Message {
        data: Some(fanout.bitfield([place].into_iter()).into()),
        hash_type: Some(unixfs::MURMUR3_X64_64),
        fanout: Some(16),
        ..Message::new(Type::HamtShard)
    };
    let mut source = Source::default();
    let root = source.keep(node(&[(cid, &format!("{place:X}name"), 1)], &message));
    let entry = Entry { name: "name".to_owned(), cid, tsize: 1 };
    assert_eq!(source.list(&root.cid, false), Ok(vec![entry.clone()]));
    assert_eq!(source.look_up(&root.cid, "name"), Ok(Some(entry)));
}

#[test]
fn dag_pb_that_is_not_unixfs_still_lists_its_links() {
    let cid = Cid::of(Codec::Raw, b"x");
    let mut bytes = Vec::new();
    pb::put_link(&mut bytes, &cid, &["../anything"], 7);
    let chunk = Chunk::new(Codec::DagPb, bytes).expect("short");
    assert_eq!(links(&chunk), Ok(vec![ChildLink { cid, tsize: 7 }]));
    assert_eq!(decode(&chunk), Err(DagError::UnixFs("it has no data")));
}
