//! Laws and golden vectors of the transfer messages. A vector is kept for ever: changing one breaks the protocol.

use proptest::{collection::vec, option, prelude::*};

use super::*;

fn bytes_of(message: &Message, request: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let payload = message.encode(request, &mut out);
    out.extend_from_slice(&payload);
    out
}

fn read(bytes: &[u8]) -> Result<(u32, Message), WireError> {
    let (head, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(WireError::Truncated)?;
    let header = Header::decode(head, limit)?;
    if header.length as usize != body.len() {
        return Err(WireError::Truncated);
    }
    Ok((header.request, Message::decode(header.kind, Bytes::copy_from_slice(body))?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_vectors() {
    let cid = Cid::of(Codec::Raw, b"hello world\n");
    let hash = "1e20dc5a4edb8240b018124052c330270696f96771a63b45250a5c17d3000e823355";
    let root = Cid::of(Codec::DagPb, b"");
    let empty = "1e20af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
    let hello = Hello { version: 1, features: 0xf0 };
    let greeting = Greeting {
        hello,
        storing: true,
        full: false,
        leaving: false,
        capacity_bytes: 0x0102_0304_0506_0708,
        free_bytes: 1,
        label: Label::default(),
    };
    let leaving = Greeting { full: true, leaving: true, label: Label::new("nas ü"), ..greeting.clone() };
    let held = Some(Held { length: 12 });
    let longest = Some(Held { length: 2 << 20 });
    let vectors: Vec<(Message, String)> = vec![
        (
            Message::Greeting(greeting),
            "01000000070000001b 01 00000000000000f0 01 0102030405060708 0000000000000001 00".replace(' ', ""),
        ),
        (
            Message::Greeting(leaving),
            "010000000700000021 01 00000000000000f0 07 0102030405060708 0000000000000001 06 6e617320c3bc"
                .replace(' ', ""),
        ),
        (Message::Greet, "020000000700000000".into()),
        (Message::Want(vec![cid.hash, root.hash]), format!("100000000700000044{hash}{empty}")),
        (Message::Chunk(Bytes::from_static(b"hello world\n")), "11000000070000000c68656c6c6f20776f726c640a".into()),
        (Message::Missing, "120000000700000000".into()),
        (Message::Have(vec![cid.hash]), format!("200000000700000022{hash}")),
        (
            Message::Holdings(vec![held, None, longest]),
            "210000000700000018 010000000000000c 0000000000000000 0100000000200000".replace(' ', ""),
        ),
        (
            Message::Offer(vec![Offer { cid, length: 12 }, Offer { cid: root, length: 0 }]),
            format!("300000000700000050 0155{hash}0000000c 0170{empty}00000000").replace(' ', ""),
        ),
        (
            Message::Put(cid, Bytes::from_static(b"hello world\n")),
            format!("310000000700000030 0155{hash} 68656c6c6f20776f726c640a").replace(' ', ""),
        ),
        (Message::Kept, "320000000700000000".into()),
        (Message::Send, "330000000700000000".into()),
        (Message::NoSpace, "340000000700000000".into()),
        (Message::Refused("no".into()), "3500000007000000026e6f".into()),
        (Message::Renew(vec![cid.hash, root.hash]), format!("360000000700000044{hash}{empty}")),
        (Message::Renewed(vec![true, false]), "3700000007000000020100".into()),
        (Message::Unsupported, "7f0000000700000000".into()),
    ];
    for (message, expected) in vectors {
        let bytes = bytes_of(&message, 7);
        assert_eq!(hex(&bytes), expected, "{message:?}");
        assert_eq!(read(&bytes), Ok((7, message)));
    }
}

#[test]
fn every_kind_has_a_limit_that_its_longest_message_meets() {
    for kind in 0..=255_u8 {
        let Some(most) = limit(kind) else {
            let unknown = Err(WireError::Unsupported { what: "frame kind", value: kind });
            assert_eq!(Message::decode(kind, Bytes::new()), unknown);
            continue;
        };
        assert!(most as usize <= MAX_CHUNK_BYTES + CID_BYTES);
        let body = Bytes::from(vec![0; most as usize + 1]);
        assert!(matches!(Message::decode(kind, body), Err(WireError::Frame(FrameError::TooLong { .. }))));
        let claim = Header { kind, request: 0, length: u32::MAX }.encode();
        assert!(matches!(Header::decode(&claim, limit), Err(FrameError::TooLong { .. })), "kind {kind:#x}");
    }
    let cid = Cid::of(Codec::Raw, b"");
    for message in [
        Message::Put(cid, vec![7; MAX_CHUNK_BYTES].into()),
        Message::Chunk(vec![7; MAX_CHUNK_BYTES].into()),
        Message::Want(vec![cid.hash; MAX_WANTS]),
        Message::Have(vec![cid.hash; MAX_HAVES]),
        Message::Offer(vec![Offer { cid, length: 0 }; MAX_OFFERS]),
        Message::Holdings(vec![None; MAX_HAVES]),
        Message::Renew(vec![cid.hash; MAX_RENEWALS]),
        Message::Renewed(vec![true; MAX_RENEWALS]),
    ] {
        assert_eq!(read(&bytes_of(&message, 1)), Ok((1, message)));
    }
}

#[test]
fn what_breaks_the_rules_is_refused() {
    let cid = Cid::of(Codec::Raw, b"");
    let bytes = bytes_of(&Message::Put(cid, vec![0; MAX_CHUNK_BYTES + 1].into()), 1);
    assert!(matches!(read(&bytes), Err(WireError::Frame(FrameError::TooLong { .. }))));
    for message in [
        Message::Offer(vec![Offer { cid, length: 2 * 1024 * 1024 + 1 }]),
        Message::Holdings(vec![Some(Held { length: 2 * 1024 * 1024 + 1 })]),
    ] {
        assert!(matches!(read(&bytes_of(&message, 1)), Err(WireError::Value { field: "chunk length", .. })));
    }
    let mut holding = bytes_of(&Message::Holdings(vec![Some(Held { length: 1 })]), 1);
    holding[HEADER_BYTES] = 2;
    assert_eq!(read(&holding), Err(WireError::Value { field: "holding", value: 2 }));
    // What has no meaning yet is read over.
    holding[HEADER_BYTES..][..4].copy_from_slice(&[1, 9, 9, 9]);
    assert_eq!(read(&holding), Ok((1, Message::Holdings(vec![Some(Held { length: 1 })]))));
    assert_eq!(
        Message::decode(RENEWED, Bytes::from_static(&[1, 2])),
        Err(WireError::Value { field: "renewal", value: 2 })
    );
    assert_eq!(Message::decode(RENEW, Bytes::new()), Err(WireError::Empty));
    assert_eq!(Message::decode(WANT, Bytes::new()), Err(WireError::Empty));
    assert_eq!(Message::decode(OFFER, Bytes::new()), Err(WireError::Empty));
    assert_eq!(Message::decode(WANT, Bytes::from_static(&[0x1e])), Err(WireError::Truncated));
    let offers = vec![Offer { cid, length: 0 }; MAX_OFFERS + 1];
    assert!(matches!(read(&bytes_of(&Message::Offer(offers), 1)), Err(WireError::Frame(FrameError::TooLong { .. }))));
    let long = "é".repeat(200);
    assert!(matches!(read(&bytes_of(&Message::Refused(long), 1)), Ok((1, Message::Refused(_)))));
}

#[test]
fn a_newer_greeting_is_read_as_far_as_it_is_known() {
    let hello = Hello { version: 9, features: u64::MAX };
    let label = Label::new("nas");
    let (storing, full, leaving) = (true, false, false);
    let greeting = Greeting { hello, storing, full, leaving, capacity_bytes: 2, free_bytes: 1, label };
    let newer = Message::Greeting(greeting.clone());
    let mut out = Vec::new();
    let _ = newer.encode(0, &mut out);
    let mut body = out.split_off(HEADER_BYTES);
    body.resize(256, 0xff);
    assert_eq!(Message::decode(GREETING, body.clone().into()), Ok(newer));
    assert_eq!(Message::decode(UNSUPPORTED, body.clone().into()), Ok(Message::Unsupported));
    // Within bounds, and no version 0.
    body.push(0xff);
    assert!(matches!(Message::decode(GREETING, body.clone().into()), Err(WireError::Frame(_))));
    // One without a label, and one whose label is not fit to be shown, too long, or cut short.
    let decode = |body: &[u8]| Message::decode(GREETING, Bytes::copy_from_slice(body));
    let plain = |label| Ok(Message::Greeting(Greeting { label: Label::new(label), ..greeting.clone() }));
    assert_eq!(decode(&body[..26]), plain(""));
    assert_eq!(decode(&[&body[..26], b"\x05a\x1b\xff\n "].concat()), plain("a\u{fffd}"));
    let long = Err(WireError::Value { field: "label length", value: 65 });
    assert_eq!(decode(&[&body[..26], &[65; 66]].concat()), long);
    assert_eq!(decode(&body[..29]), Err(WireError::Truncated));
    body.truncate(26);
    body[0] = 0;
    assert_eq!(decode(&body), Err(WireError::Value { field: "version", value: 0 }));
}

fn a_cid() -> impl Strategy<Value = Cid> {
    (any::<bool>(), any::<bool>(), any::<[u8; 32]>()).prop_map(|(raw, blake, digest)| Cid {
        codec: if raw { Codec::Raw } else { Codec::DagPb },
        hash: Multihash { code: if blake { crate::HashCode::Blake3 } else { crate::HashCode::Sha2_256 }, digest },
    })
}

fn a_length() -> impl Strategy<Value = u32> {
    0..=2 * 1024 * 1024_u32
}

fn a_message() -> impl Strategy<Value = Message> {
    let payload = || vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let held = a_length().prop_map(|length| Held { length });
    let offer = (a_cid(), a_length()).prop_map(|(cid, length)| Offer { cid, length });
    prop_oneof![
        (1..=u8::MAX, any::<[u64; 3]>(), any::<[bool; 3]>(), "[a-z é]{0,40}").prop_map(
            |(version, numbers, [storing, full, leaving], label)| {
                let [features, capacity_bytes, free_bytes] = numbers;
                let (hello, label) = (Hello { version, features }, Label::new(&label));
                Message::Greeting(Greeting { hello, storing, full, leaving, capacity_bytes, free_bytes, label })
            }
        ),
        Just(Message::Unsupported),
        Just(Message::Greet),
        vec(a_cid().prop_map(|cid| cid.hash), 1..20).prop_map(Message::Want),
        payload().prop_map(Message::Chunk),
        Just(Message::Missing),
        vec(a_cid().prop_map(|cid| cid.hash), 1..20).prop_map(Message::Have),
        vec(option::of(held), 0..20).prop_map(Message::Holdings),
        vec(offer, 1..20).prop_map(Message::Offer),
        vec(a_cid().prop_map(|cid| cid.hash), 1..20).prop_map(Message::Renew),
        vec(any::<bool>(), 0..20).prop_map(Message::Renewed),
        (a_cid(), payload()).prop_map(|(cid, bytes)| Message::Put(cid, bytes)),
        Just(Message::Kept),
        Just(Message::Send),
        Just(Message::NoSpace),
        "[a-z é]{0,60}".prop_map(Message::Refused),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in a_message(), request: u32) {
        prop_assert_eq!(read(&bytes_of(&message, request)), Ok((request, message)));
    }

    #[test]
    fn reading_never_panics_and_reads_only_what_would_be_written(kind in 0..0x80_u8, body in vec(any::<u8>(), 0..400)) {
        let Ok(message) = Message::decode(kind, Bytes::from(body.clone())) else { return Ok(()) };
        // A greeting and UNSUPPORTED may carry more than this version reads, a reason's bytes are made fit to show, and
        // what is not held has no fields.
        use Message::{Greeting, Holdings, Refused, Unsupported};
        if !matches!(message, Greeting(_) | Unsupported | Refused(_) | Holdings(_)) {
            prop_assert_eq!(&bytes_of(&message, 0)[HEADER_BYTES..], &body[..]);
        }
    }

    #[test]
    fn a_message_cut_or_bent_anywhere_never_panics(message in a_message(), cut: prop::sample::Index, bit: prop::sample::Index) {
        let mut bytes = bytes_of(&message, 1);
        let _ = read(&bytes[..cut.index(bytes.len())]);
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = read(&bytes);
    }
}
