//! The bytes of every kind of record, kept for ever: `golden-2.txt` is a whole segment of format 2, a part a line.

use bytes::Bytes;
use p2p_protocol::{Chunk, Codec};

use super::{super::*, all, directory, open, run};
use crate::store::{
    record::{Gone, Head, Record, Salt},
    segment,
};

const SALT: Salt = Salt(*b"0123456789abcdef");

/// The parts of the segment: their names, and the records.
fn records() -> Vec<(&'static str, Record)> {
    let one = Chunk::new(Codec::Raw, &b"hello world\n"[..]).expect("it is short");
    let two = Chunk::new(Codec::DagPb, &b"\x0a\x02\x08\x01"[..]).expect("it is short");
    let three = Chunk::new(Codec::Raw, &b""[..]).expect("it is short");
    let entry = |chunk: &Chunk| Entry { cid: *chunk.cid(), length: chunk.len() as u32 };
    vec![
        ("chunk", Record::Chunk(entry(&one), one.bytes().clone())),
        ("chunk", Record::Chunk(entry(&two), two.bytes().clone())),
        ("chunk", Record::Chunk(entry(&three), three.bytes().clone())),
        ("deletion removed", Record::Deletion(entry(&two), Gone::Removed, None)),
        ("deletion damaged", Record::Deletion(entry(&three), Gone::Damaged, None)),
        ("deletion removed, copied", Record::Deletion(entry(&two), Gone::Removed, Some(1))),
        ("value", Record::Value(Bytes::from_static(b"key"), Bytes::from_static(b"value"))),
        ("value", Record::Value(Bytes::from_static(b"gone"), Bytes::from_static(b""))),
        ("value removed", Record::Unset(Bytes::from_static(b"gone"), None)),
        ("value removed, copied", Record::Unset(Bytes::from_static(b"gone"), Some(1))),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn golden() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/tests/golden-2.txt");
    std::fs::read_to_string(path).expect("it is in the repository")
}

#[test]
fn records_are_written_and_read_as_ever() {
    let header = segment::SegmentHead { salt: SALT, end: 0 };
    let mut lines = vec![format!("header: {}", hex(&header.encode(1)))];
    let mut offset = segment::SEGMENT_HEAD_BYTES;
    for (name, record) in records() {
        let mut bytes = Vec::new();
        record.encode_head(SALT, offset, &mut bytes);
        let head = Head::decode(&bytes, SALT, offset).expect("it was just made");
        assert_eq!(
            (head.head_bytes(), head.head_bytes() + head.body_bytes()),
            (bytes.len() as u64, record.total_bytes())
        );
        assert_eq!(Head::decode(&bytes, SALT, offset + 1), None, "a record is only valid where it was written");
        assert_eq!(Head::decode(&bytes, Salt([1; 16]), offset), None, "and only in its segment");
        record.body().iter().for_each(|part| bytes.extend_from_slice(part));
        offset += record.total_bytes();
        lines.push(format!("{name}: {}", hex(&bytes)));
    }
    assert_eq!(golden().lines().collect::<Vec<_>>(), lines);
}

#[test]
fn a_store_of_format_2_opens() {
    let bytes: Vec<u8> = golden()
        .lines()
        .flat_map(|line| {
            let hex = line.rsplit(' ').next().expect("there is one");
            let bytes = (0..hex.len()).step_by(2);
            bytes.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("it is hex")).collect::<Vec<_>>()
        })
        .collect();
    run(async {
        let directory = directory();
        std::fs::create_dir(directory.path().join("segments")).expect("it can be made");
        std::fs::write(directory.path().join("segments/00000001.seg"), &bytes).expect("it can be written");
        std::fs::write(directory.path().join("format"), "2\n").expect("it can be written");
        let store = open(directory.path());
        let one = Chunk::new(Codec::Raw, &b"hello world\n"[..]).expect("it is short");
        assert_eq!(all(&store), [Entry { cid: *one.cid(), length: 12 }]);
        assert_eq!(store.get(&one.cid().hash).await.expect("it reads"), Some(one));
        assert_eq!(store.damaged(None, 9).expect("it reads").len(), 1);
        let record = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        assert_eq!(store.records(b"", None, usize::MAX).expect("it reads"), [record]);
        store.close().await.expect("it closes");
    });
}

#[test]
fn a_newer_format_is_refused_an_older_one_and_a_senseless_one_too() {
    let directory = directory();
    let open_as = |format: &str| {
        std::fs::write(directory.path().join("format"), format).expect("it can be written");
        Store::open(directory.path(), None)
    };
    let opened = open_as("3\n");
    assert!(matches!(opened, Err(StoreError::TooNew { found: 3, known: 2 })), "{opened:?}");
    let opened = open_as("1\n");
    assert!(matches!(opened, Err(StoreError::TooOld { found: 1, known: 2 })), "{opened:?}");
    for senseless in ["", "0\n", "one\n"] {
        let opened = open_as(senseless);
        assert!(matches!(&opened, Err(StoreError::Io { doing, .. }) if doing.contains("format")), "{opened:?}");
    }
}
