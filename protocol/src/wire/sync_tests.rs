//! Frames: golden bytes, round trips, and what is refused before it is allocated.

use proptest::prelude::*;

use super::*;
use crate::wire::{
    frame::{FrameError, Header},
    turns::{decode_whole, is_total},
};

#[test]
fn the_frames_are_the_specification() {
    let hello = Hello { version: 1, features: 2 };
    let cases: [(Frame, &[u8]); 8] = [
        (Frame::Greeting(hello), &[1, 0, 0, 0, 7, 0, 0, 0, 9, 1, 0, 0, 0, 0, 0, 0, 0, 2]),
        (Frame::Reconcile(Bytes::from_static(&[0xff, 2, 0, 0])), &[0x10, 0, 0, 0, 7, 0, 0, 0, 4, 0xff, 2, 0, 0]),
        (Frame::Difference(Bytes::from_static(&[0xff, 0])), &[0x11, 0, 0, 0, 7, 0, 0, 0, 2, 0xff, 0]),
        (Frame::Want(vec![]), &[0x20, 0, 0, 0, 7, 0, 0, 0, 0]),
        (
            Frame::Entries { answered: 258, entries: vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")] },
            &[0x21, 0, 0, 0, 7, 0, 0, 0, 9, 1, 2, 0, 2, b'a', b'b', 0, 1, b'c'],
        ),
        (Frame::Push(vec![Bytes::from_static(b"ab")]), &[0x30, 0, 0, 0, 7, 0, 0, 0, 4, 0, 2, b'a', b'b']),
        (Frame::Taken(3), &[0x31, 0, 0, 0, 7, 0, 0, 0, 2, 0, 3]),
        (Frame::Unsupported, &[0x7f, 0, 0, 0, 7, 0, 0, 0, 0]),
    ];
    for (frame, golden) in cases {
        assert_eq!(frame.encode(7), golden);
        assert_eq!(decode_whole(golden), Ok(frame));
    }
    let wanted = Frame::Want(vec![[0x11; 32]]).encode(0);
    assert_eq!((&wanted[..9], &wanted[9..]), (&[0x20, 0, 0, 0, 0, 0, 0, 0, 32][..], &[0x11; 32][..]));
}

#[test]
fn a_claim_over_the_bound_is_refused_by_its_header() {
    let limits =
        [(0x10, 65_536), (0x11, 65_536), (0x20, 16_384), (0x21, 65_536), (0x30, 65_536), (0x31, 2), (0x01, 256)];
    // The last ones are kinds that are not known.
    for (kind, most) in limits.into_iter().chain([(0, 65_536), (7, 65_536), (255, 65_536)]) {
        let header = |length| Header::decode(&Header { kind, request: 1, length }.encode(), Frame::limit);
        assert_eq!(header(most), Ok(Header { kind, request: 1, length: most }));
        for length in [most + 1, u32::MAX] {
            assert_eq!(header(length), Err(FrameError::TooLong { kind, length, limit: most }));
        }
    }
}

#[test]
fn a_kind_that_is_not_known_is_unsupported_and_a_newer_greeting_is_read() {
    for kind in [0, 7, 0x50, 255] {
        assert_eq!(Frame::decode(kind, Bytes::from_static(b"whatever")), Err(TurnError::Unsupported(kind)));
    }
    let mut newer = vec![9; 256];
    newer[1..9].fill(0xff);
    let hello = Hello { version: 9, features: u64::MAX };
    assert_eq!(Frame::decode(1, newer.into()), Ok(Frame::Greeting(hello)));
    assert_eq!(Frame::decode(0x7f, Bytes::from_static(b"why")), Ok(Frame::Unsupported));
    assert_eq!(Frame::decode(1, vec![0; 9].into()), Err(TurnError::Malformed("no greeting")));
}

#[test]
fn malformed_payloads_are_refused() {
    let cases: [(u8, &[u8]); 7] =
        [(1, &[1]), (0x20, &[0]), (0x21, &[0]), (0x30, &[0]), (0x30, &[0, 0]), (0x30, &[0, 2, 9]), (0x31, &[0])];
    for (kind, payload) in cases {
        let read = Frame::decode(kind, Bytes::copy_from_slice(payload));
        assert!(matches!(read, Err(TurnError::Malformed(_))), "{kind} {payload:?}");
    }
    // An entry longer than one of any format.
    let long = Frame::Push(vec![vec![0; MAX_ENTRY_BYTES + 1].into()]).encode(0);
    assert!(matches!(decode_whole::<Frame>(&long), Err(TurnError::Malformed(_))));
}

#[test]
fn what_is_packed_fits() {
    let (mut packed, mut entries) = (0, Vec::new());
    while pack(&mut packed, MAX_ENTRY_BYTES) {
        entries.push(Bytes::from(vec![1; MAX_ENTRY_BYTES]));
    }
    assert!(entries.len() > 14);
    assert!(!pack(&mut 0, MAX_ENTRY_BYTES + 1));
    let frame = Frame::Entries { answered: 0, entries };
    assert_eq!(decode_whole(&frame.encode(0)), Ok(frame));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..0x80) {
        prop_assert!(is_total::<Frame>(kind, &bytes));
    }
}
