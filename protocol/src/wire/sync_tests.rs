//! Frames: golden bytes, round trips, and what is refused before it is allocated.

use proptest::prelude::*;

use super::*;

fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    let (header, payload) = bytes.split_first_chunk().ok_or(FrameError::Malformed("no header"))?;
    Frame::decode(Header::decode(*header)?, Bytes::copy_from_slice(payload))
}

#[test]
fn the_frames_are_the_specification() {
    let cases: [(Frame, &[u8]); 6] = [
        (Frame::Reconcile(Bytes::from_static(&[0xff, 2, 0, 0])), &[1, 0, 0, 0, 4, 0xff, 2, 0, 0]),
        (Frame::Difference(Bytes::from_static(&[0xff, 0])), &[2, 0, 0, 0, 2, 0xff, 0]),
        (Frame::Want(vec![]), &[3, 0, 0, 0, 0]),
        (
            Frame::Entries { answered: 258, entries: vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")] },
            &[4, 0, 0, 0, 9, 1, 2, 0, 2, b'a', b'b', 0, 1, b'c'],
        ),
        (Frame::Push(vec![Bytes::from_static(b"ab")]), &[5, 0, 0, 0, 4, 0, 2, b'a', b'b']),
        (Frame::Taken(3), &[6, 0, 0, 0, 2, 0, 3]),
    ];
    for (frame, golden) in cases {
        assert_eq!(frame.encode(), golden);
        assert_eq!(decode(golden), Ok(frame));
    }
    let wanted = Frame::Want(vec![[0x11; 32]]).encode();
    assert_eq!((&wanted[..5], &wanted[5..]), (&[3, 0, 0, 0, 32][..], &[0x11; 32][..]));
}

#[test]
fn a_claim_over_the_bound_is_refused_by_its_header() {
    for (kind, limit) in [(1, 65_536), (2, 65_536), (3, 16_384), (4, 65_536), (5, 65_536), (6, 2)] {
        let header = |length: u32| {
            let mut bytes = [kind; HEADER_BYTES];
            bytes[1..].copy_from_slice(&length.to_be_bytes());
            Header::decode(bytes)
        };
        assert_eq!(header(limit).map(|header| header.length()), Ok(limit as usize));
        let refused = Err(FrameError::TooLong { kind, limit: limit as usize });
        assert_eq!(header(limit + 1), refused);
        assert_eq!(header(u32::MAX), refused);
    }
    for kind in [0, 7, 255] {
        assert_eq!(Header::decode([kind, 0, 0, 0, 0]), Err(FrameError::Kind(kind)));
    }
}

#[test]
fn malformed_payloads_are_refused() {
    for bytes in [
        &[3, 0, 0, 0, 1, 0][..],
        &[4, 0, 0, 0, 1, 0],
        &[5, 0, 0, 0, 1, 0],
        &[5, 0, 0, 0, 2, 0, 0],
        &[5, 0, 0, 0, 3, 0, 2, 9],
        &[6, 0, 0, 0, 1, 0],
    ] {
        assert!(matches!(decode(bytes), Err(FrameError::Malformed(_))), "{bytes:?}");
    }
    // An entry longer than any signed publication.
    let long = Frame::Push(vec![vec![0; MAX_SIGNED_BYTES + 1].into()]).encode();
    assert!(matches!(decode(&long), Err(FrameError::Malformed(_))));
}

#[test]
fn what_is_packed_fits() {
    let (mut packed, mut entries) = (0, Vec::new());
    while pack(&mut packed, MAX_SIGNED_BYTES) {
        entries.push(Bytes::from(vec![1; MAX_SIGNED_BYTES]));
    }
    assert!(entries.len() > 90);
    assert!(!pack(&mut 0, MAX_SIGNED_BYTES + 1));
    let frame = Frame::Entries { answered: 0, entries };
    assert_eq!(decode(&frame.encode()), Ok(frame));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..8) {
        let _ = decode(&bytes);
        // With a header that fits.
        let mut framed = vec![kind];
        framed.extend((bytes.len() as u32).to_be_bytes());
        framed.extend(&bytes);
        if let Ok(frame) = decode(&framed) {
            prop_assert_eq!(frame.encode(), framed);
        }
    }
}
