//! Frames: golden bytes, round trips, and what is refused before it is allocated.

use proptest::prelude::*;

use super::*;
use crate::{
    HashCode,
    wire::{
        frame::{FrameError, Header},
        turns::{decode_whole, is_total},
    },
};

#[test]
fn the_frames_are_the_specification() {
    let hash = Multihash { code: HashCode::Blake3, digest: [0x22; 32] };
    let prints = [[0x33; 16], [0x44; 16]].concat();
    let head = |kind: u8, length: u8| vec![kind, 0, 0, 0, 7, 0, 0, 0, length];
    let cases: [(Frame, Vec<u8>); 7] = [
        (Frame::Greeting(Hello { version: 1, features: 2 }), [head(1, 9), vec![1, 0, 0, 0, 0, 0, 0, 0, 2]].concat()),
        (
            Frame::Compare {
                catalogue: Fingerprint([0x33; 16]),
                range: Fingerprint([0x44; 16]),
                message: Bytes::from_static(&[0xff, 2, 0, 0]),
            },
            [head(0x10, 36), prints, vec![0xff, 2, 0, 0]].concat(),
        ),
        (
            Frame::Compared { missing: 258, message: Some(Bytes::from_static(&[0xff, 0])) },
            [head(0x11, 7), vec![0, 0, 0, 1, 2, 0xff, 0]].concat(),
        ),
        (Frame::Compared { missing: 0, message: None }, [head(0x11, 5), vec![1, 0, 0, 0, 0]].concat()),
        (
            Frame::Prove { nonce: [0x11; 32], hashes: vec![hash] },
            [head(0x20, 66), vec![0x11; 32], vec![0x1e, 0x20], vec![0x22; 32]].concat(),
        ),
        (Frame::Proofs(vec![Some([0x55; 16]), None]), [head(0x21, 34), vec![1], vec![0x55; 16], vec![0; 17]].concat()),
        (Frame::Unsupported, head(0x7f, 0)),
    ];
    for (frame, golden) in cases {
        assert_eq!(frame.encode(7), golden);
        assert_eq!(decode_whole(&golden), Ok(frame));
    }
}

#[test]
fn a_claim_over_the_bound_is_refused_by_its_header() {
    // The last one is a kind that is not known.
    for (kind, most) in
        [(0x10, 8_224), (0x11, 8_197), (0x20, 34_848), (0x21, 17_408), (0x01, 256), (0x7f, 256), (9, 65_536)]
    {
        let header = |length| Header::decode(&Header { kind, request: 1, length }.encode(), Frame::limit);
        assert_eq!(header(most), Ok(Header { kind, request: 1, length: most }));
        for length in [most + 1, u32::MAX] {
            assert_eq!(header(length), Err(FrameError::TooLong { kind, length, limit: most }));
        }
    }
}

#[test]
fn a_kind_that_is_not_known_is_unsupported_and_what_is_malformed_is_refused() {
    for kind in [0, 7, 0x40, 255] {
        assert_eq!(Frame::decode(kind, Bytes::from_static(b"whatever")), Err(TurnError::Unsupported(kind)));
    }
    assert_eq!(Frame::decode(0x7f, Bytes::from_static(b"why")), Ok(Frame::Unsupported));
    let cases: [(u8, Vec<u8>); 12] = [
        (1, vec![0; 9]),
        (0x10, vec![0; 31]),
        (0x11, vec![0; 4]),
        (0x11, vec![1, 0, 0, 0, 0, 9]),
        (0x11, vec![2, 0, 0, 0, 0]),
        (0x20, vec![0; 32]),
        (0x20, [vec![0; 32], vec![0x1e]].concat()),
        (0x20, vec![0; 66]),
        (0x21, vec![]),
        (0x21, vec![1; 18]),
        (0x21, vec![2; 17]),
        (0x21, [vec![0], vec![1; 16]].concat()),
    ];
    for (kind, payload) in cases {
        let read = Frame::decode(kind, payload.clone().into());
        assert!(matches!(read, Err(TurnError::Malformed(_))), "{kind} {payload:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..0x80) {
        prop_assert!(is_total::<Frame>(kind, &bytes));
    }
}
