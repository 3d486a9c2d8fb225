//! The format byte by byte, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::{
    Cid, Codec, HashCode, Multihash,
    catalogue::{
        FORMAT_VERSION, Kind, MAX_CHUNKS, MAX_SIZE_BYTES, MAX_TIME_MILLISECONDS, NameError,
        body::{decode, encode},
    },
    manifest::{Entry, Listing},
    wire::announce,
};

pub(in crate::catalogue) fn keypair(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key")
}

pub(in crate::catalogue) fn publication(seed: u8) -> Publication {
    Publication {
        publisher: keypair(seed).public().to_peer_id(),
        name: Some("report".to_owned()),
        label: "report.txt".to_owned(),
        root: Cid::of(Codec::Raw, b"hello world\n"),
        kind: Kind::File,
        size: 12,
        replicas: 3,
        chunks: 1,
        listing: Listing::Inline(vec![Entry { cid: Cid::of(Codec::Raw, b"hello world\n"), length: 12 }]),
        version: 7,
        floor: 2,
        time_milliseconds: 1_700_000_000_123,
        removed: false,
    }
}

/// The same publication of a root, which is its one chunk.
pub(in crate::catalogue) fn with_root(root: Cid, publication: Publication) -> Publication {
    let listing = Listing::Inline(vec![Entry { cid: root, length: 12 }]);
    Publication { root, chunks: 1, listing, ..publication }
}

/// The root and as many chunks beside it as make `chunks`, in order.
fn entries(root: Cid, chunks: u64) -> Vec<Entry> {
    let others = (1..chunks).map(|number| Cid::of(Codec::Raw, &number.to_be_bytes()));
    let mut entries: Vec<_> = [root].into_iter().chain(others).map(|cid| Entry { cid, length: 9 }).collect();
    entries.sort_by_key(Entry::key);
    entries
}

/// A manifest's address for so many chunks.
fn manifest(chunks: u64) -> Listing {
    Listing::Manifest(Cid::of(if chunks <= 128 { Codec::Raw } else { Codec::DagPb }, b"a manifest"))
}

/// What is signed without regard to whether it is valid.
fn sign_anything(body: &[u8]) -> Vec<u8> {
    let signature = keypair(1).sign(&signed_message("main", body)).expect("ed25519 signs");
    [body, &signature].concat()
}

fn signed() -> SignedPublication {
    SignedPublication::sign(&keypair(1), "main", publication(1)).expect("it is valid")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Body, signature and id, spelled out.
fn check_golden(keypair: &Keypair, publication: Publication, body: &str, signature: &str, id: &str) {
    let signed = SignedPublication::sign(keypair, "main", publication.clone()).expect("it is valid");
    let (bytes, signed_with) = signed.bytes().split_at(signed.bytes().len() - SIGNATURE_BYTES);
    assert_eq!(hex(bytes), body);
    assert_eq!(signed_with, signed.signature());
    // What a node keeps of what it pinned.
    assert_eq!(publication.to_unsigned_bytes().as_deref(), Ok(bytes));
    assert_eq!(Publication::from_unsigned_bytes(bytes), Ok(publication.clone()));
    assert!(Publication::from_unsigned_bytes(&bytes[..bytes.len() - 1]).is_err());
    // What is signed, spelled out.
    let message = [b"p2p-node publication\0\x04main".as_slice(), bytes].concat();
    assert!(keypair.public().verify(&message, signed_with));
    assert_eq!((hex(signed_with), hex(&signed.id())), (signature.to_owned(), id.to_owned()));
    let read = SignedPublication::decode("main", signed.bytes()).expect("it is valid");
    assert_eq!(read.publication(), &publication);
}

#[test]
fn a_key_and_an_announcement_are_the_specification() {
    let signed = signed();
    assert_eq!(hex(&signed.publication().key().0), "d39fd687a865d04fb7c617e0ebbf6700c4164066a87f2f04c133ed0ec78ad2ed");
    let payload = announce::encode(&signed);
    assert_eq!(payload, [&[1][..], signed.bytes()].concat());
    assert_eq!(announce::decode("main", &payload), Ok(signed));
}

#[test]
fn a_small_file_is_the_specification() {
    let body = concat!(
        "02000003",
        "0024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c",
        "01551e20dc5a4edb8240b018124052c330270696f96771a63b45250a5c17d3000e823355",
        "000000000000000c",
        "0000000000000007",
        "0000000000000002",
        "0000018bcfe5687b",
        "0000000000000001",
        "551e20dc5a4edb8240b018124052c330270696f96771a63b45250a5c17d3000e8233550000000c00",
        "067265706f7274",
        "0a7265706f72742e747874",
        "0000",
    );
    check_golden(
        &keypair(1),
        publication(1),
        body,
        concat!(
            "72f04d5a441e29f3cec5fe8ce13fd6f88c9686c291b5d1fb2ccf72b6f960a601",
            "aef0127179b9f29d84be140949d451aa92d3b6db04d5d3d06c14c154ce51d40d",
        ),
        "e28a0621c2299548714be42338e90ce90bfa5563176bb74fa33890e54463d3b4",
    );
}

#[test]
fn a_named_directory_with_a_manifest_is_the_specification() {
    let body = concat!(
        "02000110",
        "0024080112208139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394",
        "01701e20329ee7a633534ff514e19e6880fd8666fc62e72499cafac8c311fbce694e6c5c",
        "0000000040000000",
        "0000000000000001",
        "0000000000000001",
        "0000018bcfe5687b",
        "0000000000000406",
        "01701e20c161acb4065fb456ded857fcc01f61847e2aa4e55872dbe090bc93d1b438bb3d",
        "07686f6c69646179",
        "07686f6c69646179",
        "0000",
    );
    let publication = Publication {
        name: Some("holiday".to_owned()),
        label: "holiday".to_owned(),
        root: Cid::of(Codec::DagPb, b"a directory"),
        kind: Kind::Directory,
        size: 1 << 30,
        replicas: 16,
        chunks: 1030,
        listing: Listing::Manifest(Cid::of(Codec::DagPb, b"a manifest")),
        version: 1,
        floor: 1,
        ..publication(2)
    };
    check_golden(
        &keypair(2),
        publication,
        body,
        concat!(
            "0617c1da5f54ff0f0b2e6947de9baa497aca9987bc6deb3ee18b743d1ed053f2",
            "153c840882b63ae33ff67f65935e169265c4cba7ed64016ebd84b3721533d506",
        ),
        "e6f7656eaa34c497cd3574de625b5385e35becdbbe8615c78e2dfbcf5858aeff",
    );
}

#[test]
fn a_removal_is_the_specification() {
    let body = concat!(
        "02010003",
        "0024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c",
        "01551e20dc5a4edb8240b018124052c330270696f96771a63b45250a5c17d3000e823355",
        "000000000000000c",
        "0000000000000008",
        "0000000000000008",
        "0000018bcfe5687b",
        "0000000000000001",
        "551e20dc5a4edb8240b018124052c330270696f96771a63b45250a5c17d3000e8233550000000c00",
        "00",
        "0a7265706f72742e747874",
        "0000",
    );
    let publication = Publication { version: 8, floor: 8, removed: true, name: None, ..publication(1) };
    check_golden(
        &keypair(1),
        publication,
        body,
        concat!(
            "f97736f207e28b8d8814410690c17679097d5cf38b2897d3f69c4158d9a9e480",
            "cbd6012ef875fbecce1f652e8046c9bfe806295be5f6480a28a00ca512e58c0e",
        ),
        "ce6702bd767113fd86a6a83c949133086cbac244c240a69a40bc6b24957e0b1c",
    );
}

#[test]
fn it_is_worth_nothing_in_another_network() {
    let signed = signed();
    assert_eq!(SignedPublication::decode("main", signed.bytes()), Ok(signed.clone()));
    for network in ["", "mai", "main2", "other"] {
        assert_eq!(SignedPublication::decode(network, signed.bytes()), Err(InvalidPublication::Signature));
    }
}

#[test]
fn every_bit_counts() {
    let signed = signed();
    for at in 0..signed.bytes().len() * 8 {
        let mut bytes = signed.bytes().to_vec();
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(SignedPublication::decode("main", &bytes).is_err(), "bit {at}");
    }
    for length in 0..signed.bytes().len() {
        assert!(SignedPublication::decode("main", &signed.bytes()[..length]).is_err());
    }
    let longer = [signed.bytes(), &[0]].concat();
    assert!(SignedPublication::decode("main", &longer).is_err());
}

#[test]
fn only_the_publisher_can_sign() {
    let other = publication(2);
    let refused = SignedPublication::sign(&keypair(1), "main", other.clone());
    assert_eq!(refused, Err(InvalidPublication::Publisher));
    // And nobody can put another's name on what he signed.
    let bytes = sign_anything(&encode(&other, &[], 0).expect("it is valid"));
    assert_eq!(SignedPublication::decode("main", &bytes), Err(InvalidPublication::Signature));
}

#[test]
fn a_publisher_whose_key_is_not_in_its_id_is_refused() {
    let hashed = PeerId::from_bytes(&[&[0x12, 0x20][..], &[7; 32]].concat()).expect("a sha2-256 peer id");
    let foreign = Publication { publisher: hashed, ..publication(1) };
    assert_eq!(SignedPublication::sign(&keypair(1), "main", foreign), Err(InvalidPublication::Publisher));
}

#[test]
fn fields_out_of_range_are_refused_by_both_sides() {
    let name = |name: &str| Publication { name: Some(name.to_owned()), ..publication(1) };
    let label = |label: &str| Publication { label: label.to_owned(), ..publication(1) };
    let cases = [
        (name("../x"), InvalidPublication::Name(NameError::Character { character: '/' })),
        (name(".."), InvalidPublication::Name(NameError::Dots)),
        (name(&publication(1).root.to_string()), InvalidPublication::Name(NameError::Cid)),
        (name(&publication(1).publisher.to_string()), InvalidPublication::Name(NameError::Peer)),
        (label(""), InvalidPublication::Label(NameError::Empty)),
        (label("a\u{1b}b"), InvalidPublication::Label(NameError::Character { character: '\u{1b}' })),
        (Publication { replicas: 0, ..publication(1) }, InvalidPublication::Replicas(0)),
        (Publication { replicas: 17, ..publication(1) }, InvalidPublication::Replicas(17)),
        (Publication { version: 0, ..publication(1) }, InvalidPublication::Version),
        (Publication { floor: 0, ..publication(1) }, InvalidPublication::Floor { floor: 0, version: 7 }),
        (Publication { floor: 8, ..publication(1) }, InvalidPublication::Floor { floor: 8, version: 7 }),
        (Publication { removed: true, ..publication(1) }, InvalidPublication::Floor { floor: 2, version: 7 }),
        (Publication { size: 1 << 63, ..publication(1) }, InvalidPublication::Size(1 << 63)),
        (
            Publication { time_milliseconds: MAX_TIME_MILLISECONDS + 1, ..publication(1) },
            InvalidPublication::Time(MAX_TIME_MILLISECONDS + 1),
        ),
    ];
    for (publication, error) in cases {
        assert_eq!(SignedPublication::sign(&keypair(1), "main", publication.clone()), Err(error.clone()));
        let bytes = sign_anything(&encode(&publication, &[], 0).expect("the publisher is an ed25519 peer"));
        assert_eq!(SignedPublication::decode("main", &bytes), Err(error));
    }
    let long = "x".repeat(256);
    let refused = SignedPublication::sign(&keypair(1), "main", name(&long));
    assert_eq!(refused, Err(InvalidPublication::Name(NameError::TooLong { bytes: 256 })));
}

/// Every other way to list the chunks than the one that there is for so many.
#[test]
fn chunks_are_listed_in_one_way() {
    let with = |chunks, listing| Publication { chunks, listing, ..publication(1) };
    let root = publication(1).root;
    let sign = |publication: &Publication| SignedPublication::sign(&keypair(1), "main", publication.clone());
    for chunks in 1..=8 {
        let few = with(chunks, Listing::Inline(entries(root, chunks)));
        let signed = sign(&few).expect("it is valid");
        assert_eq!(SignedPublication::decode("main", signed.bytes()), Ok(signed));
    }
    for chunks in [9, 128, 129, 1 << 20, MAX_CHUNKS] {
        let signed = sign(&with(chunks, manifest(chunks))).expect("it is valid");
        assert_eq!(SignedPublication::decode("main", signed.bytes()), Ok(signed));
    }
    let sha = |codec| Listing::Manifest(Cid { codec, hash: Multihash::of(HashCode::Sha2_256, b"a manifest") });
    let three = entries(root, 3);
    let swapped = vec![three[1], three[0], three[2]];
    let twice = vec![three[0], three[0], three[1], three[2]];
    let without = three.iter().filter(|entry| entry.cid != root).copied().collect::<Vec<_>>();
    let long = vec![Entry { cid: root, length: 2 << 20 | 1 }];
    for bad in [
        with(0, Listing::Inline(vec![])),
        with(1, Listing::Inline(vec![])),
        with(2, Listing::Inline(three.clone())),
        with(3, Listing::Inline(swapped)),
        with(4, Listing::Inline(twice)),
        with(2, Listing::Inline(without)),
        with(1, Listing::Inline(long)),
        with(8, manifest(8)),
        with(9, Listing::Inline(entries(root, 9))),
        with(9, manifest(129)),
        with(128, manifest(129)),
        with(129, manifest(128)),
        with(9, sha(Codec::Raw)),
        with(129, sha(Codec::DagPb)),
        with(MAX_CHUNKS + 1, manifest(MAX_CHUNKS)),
    ] {
        assert!(sign(&bad).is_err(), "{bad:?}");
        let bytes = sign_anything(&encode(&bad, &[], 0).expect("the publisher is an ed25519 peer"));
        let refused = SignedPublication::decode("main", &bytes);
        assert!(refused.as_ref().is_err_and(|error| !error.is_unknown()), "{bad:?}: {refused:?}");
    }
    // The root may stand under another codec than the one that it is published with.
    let other = Entry { cid: Cid { codec: Codec::DagPb, ..root }, length: 12 };
    assert!(sign(&with(1, Listing::Inline(vec![other]))).is_ok());
    // The spare byte of an entry is zero.
    let mut body = encode(&publication(1), &[], 0).expect("it is valid");
    let spare = 4 + 38 + 36 + 5 * 8 + 39;
    body[spare] = 1;
    let refused = SignedPublication::decode("main", &sign_anything(&body));
    assert!(matches!(refused, Err(InvalidPublication::Listing(_))), "{refused:?}");
}

#[test]
fn the_longest_is_as_long_as_it_says() {
    let (chunks, listing) = (8, Listing::Inline(entries(publication(1).root, 8)));
    let texts = ("n".repeat(255), "l".repeat(255));
    let longest = Publication { name: Some(texts.0), label: texts.1, chunks, listing, ..publication(1) };
    let sign = |bytes: usize| SignedPublication::sign_extended(&keypair(1), "main", longest.clone(), &vec![7; bytes]);
    let signed = sign(MAX_EXTENSION_BYTES).expect("it is valid");
    assert_eq!(signed.bytes().len(), MAX_SIGNED_BYTES);
    const { assert!(MAX_SIGNED_BYTES <= MAX_ENTRY_BYTES) };
    for bytes in [MAX_EXTENSION_BYTES + 1, 1 << 16] {
        assert_eq!(sign(bytes), Err(InvalidPublication::Length));
    }
    assert_eq!(SignedPublication::decode("main", signed.bytes()), Ok(signed));
}

#[test]
fn an_extension_is_skipped_and_still_signed() {
    let extended =
        SignedPublication::sign_extended(&keypair(1), "main", publication(1), b"from the future").expect("it is valid");
    let read = SignedPublication::decode("main", extended.bytes()).expect("older readers take it");
    assert_eq!((read.publication(), read.bytes()), (&publication(1), extended.bytes()));
    assert_eq!(read_checked(extended.bytes()), Ok(publication(1)));
    let body = extended.bytes().len() - SIGNATURE_BYTES;
    assert_eq!(hex(&extended.bytes()[body - 17..body]), format!("000f{}", hex(b"from the future")));
    // It is not the same as the one without it, and nobody can take it off or change it.
    assert_ne!(read.id(), signed().id());
    let mut bytes = extended.bytes().to_vec();
    bytes[body - 1] ^= 1;
    assert_eq!(SignedPublication::decode("main", &bytes), Err(InvalidPublication::Signature));
    bytes.remove(body - 1);
    assert_eq!(SignedPublication::decode("main", &bytes), Err(InvalidPublication::Length));
    // One byte longer than may be, well signed all the same.
    let mut long = encode(&publication(1), &[0; MAX_EXTENSION_BYTES], 0).expect("it is valid");
    let length = long.len() - MAX_EXTENSION_BYTES - 2;
    long.push(0);
    long[length..length + 2].copy_from_slice(&(MAX_EXTENSION_BYTES as u16 + 1).to_be_bytes());
    long.extend(keypair(1).sign(&signed_message("main", &long)).expect("ed25519 signs"));
    assert_eq!(SignedPublication::decode("main", &long), Err(InvalidPublication::Length));
}

#[test]
fn only_a_format_or_a_flag_that_is_not_known_is_nobodys_fault() {
    let changed = |at: usize, byte: u8| {
        let mut bytes = signed().bytes().to_vec();
        bytes[at] = byte;
        SignedPublication::decode("main", &bytes).expect_err("it is not as it was signed")
    };
    for unknown in [
        changed(0, 0),
        changed(0, 1),
        changed(0, 3),
        changed(0, 255),
        changed(1, 2),
        changed(1, 0x81),
        changed(3, 0),
        changed(3, 17),
        changed(3, 255),
    ] {
        assert!(unknown.is_unknown(), "{unknown}");
    }
    // Whatever follows, and however long it is.
    for length in [2, 64, MAX_SIGNED_BYTES + 1, MAX_ENTRY_BYTES] {
        let later = [&[3][..], &vec![0; length - 1]].concat();
        assert_eq!(SignedPublication::decode("main", &later), Err(InvalidPublication::Format(3)));
        assert_eq!(announce::decode("main", &[&[1][..], &later].concat()), Err(InvalidPublication::Format(3)));
    }
    for wrong in [changed(2, 3), changed(3, 4), changed(4, 1), changed(50, 9), changed(180, 1)] {
        assert!(!wrong.is_unknown(), "{wrong}");
    }
    for short in [&[][..], &[2], &[2, 0], &[2, 0, 0, 3], &[2; 64][..1]] {
        assert_eq!(SignedPublication::decode("main", short), Err(InvalidPublication::Length), "{short:?}");
    }
}

/// Numbers of chunks of every kind of listing.
fn any_chunks() -> impl Strategy<Value = u64> {
    prop_oneof![1u64..=8, 9u64..=128, 129..=MAX_CHUNKS]
}

fn any_publication() -> impl Strategy<Value = Publication> {
    (
        prop::option::of("[^/\\p{Cc}]{1,20}"),
        "[^/\\p{Cc}]{1,20}",
        any::<[u8; 32]>(),
        (0u8..3, 1u8..=16),
        0..=MAX_SIZE_BYTES,
        any_chunks(),
        (1u64..).prop_flat_map(|version| (Just(version), 1..=version)),
        0..=MAX_TIME_MILLISECONDS,
        any::<bool>(),
    )
        .prop_filter("dots are no names", |fields| {
            let dots = |name: &str| matches!(name, "." | "..");
            !dots(&fields.1) && !fields.0.as_deref().is_some_and(dots)
        })
        .prop_map(
            |(name, label, content, (kind, replicas), size, chunks, (version, floor), time_milliseconds, removed)| {
                let root = Cid::of(if removed { Codec::Raw } else { Codec::DagPb }, &content);
                Publication {
                    publisher: keypair(9).public().to_peer_id(),
                    name,
                    label,
                    root,
                    kind: Kind::from_code(kind).expect("0 to 2"),
                    size,
                    replicas,
                    chunks,
                    listing: if chunks <= 8 { Listing::Inline(entries(root, chunks)) } else { manifest(chunks) },
                    version,
                    floor: if removed { version } else { floor },
                    time_milliseconds,
                    removed,
                }
            },
        )
}

proptest! {
    #[test]
    fn what_is_signed_is_read_back(
        publication in any_publication(),
        extension in prop::collection::vec(any::<u8>(), 0..=MAX_EXTENSION_BYTES),
    ) {
        let signed = SignedPublication::sign_extended(&keypair(9), "main", publication.clone(), &extension);
        let signed = signed.expect("it is valid");
        let read = SignedPublication::decode("main", signed.bytes());
        prop_assert_eq!(read.as_ref(), Ok(&signed));
        prop_assert_eq!(signed.publication(), &publication);
        prop_assert_eq!(read_checked(signed.bytes()), Ok(publication));
        prop_assert_eq!(SignedPublication::read_back(signed.bytes()), Ok(signed));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..800)) {
        let _ = SignedPublication::decode("main", &bytes);
        let _ = announce::decode("main", &bytes);
    }

    #[test]
    fn a_body_has_one_form(at in 0usize..250, byte in any::<u8>()) {
        let mut body = encode(&publication(1), b"ext", 0).expect("it is valid");
        let at = at % body.len();
        body[at] = byte;
        if let Ok((publication, extension)) = decode(&body)
            && body::check(&publication).is_ok()
            && body[..2] == [FORMAT_VERSION, 0]
        {
            prop_assert_eq!(encode(&publication, extension, 0), Ok(body.clone()));
        }
    }
}
