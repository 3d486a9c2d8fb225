//! The format byte by byte, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::{Codec, wire::announce};

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
        version: 7,
        time_milliseconds: 1_700_000_000_123,
        removed: false,
    }
}

fn signed() -> SignedPublication {
    SignedPublication::sign(&keypair(1), "main", publication(1)).expect("it is valid")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_are_the_specification() {
    let golden = concat!(
        "01000003",
        "0024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c",
        "01551e20dc5a4edb8240b018124052c330270696f96771a63b45250a5c17d3000e823355",
        "000000000000000c",
        "0000000000000007",
        "0000018bcfe5687b",
        "067265706f7274",
        "0a7265706f72742e747874",
        "0000",
    );
    let signed = signed();
    let (body, signature) = signed.bytes().split_at(signed.bytes().len() - SIGNATURE_BYTES);
    assert_eq!(hex(body), golden);
    assert_eq!(signature, signed.signature());
    // What is signed, spelled out.
    let message = [b"p2p-node publication\0\x04main".as_slice(), body].concat();
    assert!(keypair(1).public().verify(&message, signature));
    assert_eq!(hex(signature), GOLDEN_SIGNATURE);
    assert_eq!(hex(&signed.id()), GOLDEN_ID);
    assert_eq!(hex(&signed.publication().key().0), GOLDEN_KEY);
    let payload = announce::encode(&signed);
    assert_eq!(hex(&payload), format!("01{golden}{GOLDEN_SIGNATURE}"));
    assert_eq!(announce::decode("main", &payload), Ok(signed));
}

const GOLDEN_SIGNATURE: &str = concat!(
    "0bc2e21cec64d7b8c382642247c18286f2b28117d91559f948732c01323c7ef2",
    "dc17665dcae151b41b66ac956aa4be37893f1727166307110b0f938d5bc9c200",
);
const GOLDEN_ID: &str = "6548fc2fb253ac5468ce3099159b31dd25a9559c8646198cf9fa53195b89bc2c";
const GOLDEN_KEY: &str = "d39fd687a865d04fb7c617e0ebbf6700c4164066a87f2f04c133ed0ec78ad2ed";

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
    let mut bytes = encode_body(&other, &[]).expect("it is valid");
    let signature = keypair(1).sign(&signed_message("main", &bytes)).expect("ed25519 signs");
    bytes.extend(signature);
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
        (Publication { size: 1 << 63, ..publication(1) }, InvalidPublication::Size(1 << 63)),
        (
            Publication { time_milliseconds: MAX_TIME_MILLISECONDS + 1, ..publication(1) },
            InvalidPublication::Time(MAX_TIME_MILLISECONDS + 1),
        ),
    ];
    for (publication, error) in cases {
        assert_eq!(SignedPublication::sign(&keypair(1), "main", publication.clone()), Err(error.clone()));
        let mut bytes = encode_body(&publication, &[]).expect("the publisher is an ed25519 peer");
        let signature = keypair(1).sign(&signed_message("main", &bytes)).expect("ed25519 signs");
        bytes.extend(signature);
        assert_eq!(SignedPublication::decode("main", &bytes), Err(error));
    }
    let long = "x".repeat(256);
    let refused = SignedPublication::sign(&keypair(1), "main", name(&long));
    assert_eq!(refused, Err(InvalidPublication::Name(NameError::TooLong { bytes: 256 })));
}

#[test]
fn the_longest_is_as_long_as_it_says() {
    let longest = Publication { name: Some("n".repeat(255)), label: "l".repeat(255), ..publication(1) };
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
    let mut long = encode_body(&publication(1), &[0; MAX_EXTENSION_BYTES]).expect("it is valid");
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
    for unknown in [changed(0, 0), changed(0, 2), changed(0, 255), changed(1, 2), changed(1, 0x81)] {
        assert!(unknown.is_unknown(), "{unknown}");
    }
    // Whatever follows, and however long it is.
    for length in [2, 64, MAX_SIGNED_BYTES + 1, MAX_ENTRY_BYTES] {
        let later = [&[2][..], &vec![0; length - 1]].concat();
        assert_eq!(SignedPublication::decode("main", &later), Err(InvalidPublication::Format(2)));
        assert_eq!(announce::decode("main", &[&[1][..], &later].concat()), Err(InvalidPublication::Format(2)));
    }
    for wrong in [changed(2, 3), changed(3, 0), changed(4, 1), changed(50, 9), changed(180, 1)] {
        assert!(!wrong.is_unknown(), "{wrong}");
    }
    for short in [&[][..], &[1], &[1, 0], &[1; 64]] {
        assert_eq!(SignedPublication::decode("main", short), Err(InvalidPublication::Length), "{short:?}");
    }
}

fn any_publication() -> impl Strategy<Value = Publication> {
    (
        prop::option::of("[^/\\p{Cc}]{1,20}"),
        "[^/\\p{Cc}]{1,20}",
        any::<[u8; 32]>(),
        0u8..3,
        0..=MAX_SIZE_BYTES,
        1u8..=16,
        1u64..,
        0..=MAX_TIME_MILLISECONDS,
        any::<bool>(),
    )
        .prop_filter("dots are no names", |fields| {
            let dots = |name: &str| matches!(name, "." | "..");
            !dots(&fields.1) && !fields.0.as_deref().is_some_and(dots)
        })
        .prop_map(|(name, label, content, kind, size, replicas, version, time_milliseconds, removed)| {
            Publication {
                publisher: keypair(9).public().to_peer_id(),
                name,
                label,
                root: Cid::of(if removed { Codec::Raw } else { Codec::DagPb }, &content),
                kind: Kind::from_code(kind).expect("0 to 2"),
                size,
                replicas,
                version,
                time_milliseconds,
                removed,
            }
        })
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
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..800)) {
        let _ = SignedPublication::decode("main", &bytes);
        let _ = announce::decode("main", &bytes);
    }

    #[test]
    fn a_body_has_one_form(at in 0usize..150, byte in any::<u8>()) {
        let mut body = encode_body(&publication(1), b"ext").expect("it is valid");
        let at = at % body.len();
        body[at] = byte;
        if let Ok((publication, extension)) = decode_body(&body)
            && body[..2] == [FORMAT_VERSION, 0]
        {
            prop_assert_eq!(encode_body(&publication, extension), Ok(body.clone()));
        }
    }
}
