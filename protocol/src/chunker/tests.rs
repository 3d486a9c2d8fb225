//! Laws of the chunker, and the cuts that must never move.

use chacha20::cipher::{KeyIvInit as _, StreamCipher as _};
use proptest::prelude::*;

use super::*;

/// Bytes that do not repeat: a ChaCha20 key stream.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    chacha20::ChaCha20::new(&[seed; 32].into(), &[0; 12].into()).apply_keystream(&mut bytes);
    bytes
}

/// Cuts `bytes` as they come in pieces of these lengths, over and over; pushed or read into the spare room.
fn cut(chunker: &mut Chunker, mut bytes: &[u8], pieces: &[usize], push: bool) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    for piece in pieces.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let mut next = &bytes[..bytes.len().min(*piece)];
        bytes = &bytes[next.len()..];
        while !next.is_empty() {
            let taken = if push {
                chunker.push(next)
            } else {
                let read = std::io::Read::read(&mut &*next, chunker.spare()).expect("a slice never fails");
                chunker.advance(read);
                read
            };
            next = &next[taken..];
            chunks.extend(std::iter::from_fn(|| chunker.next_chunk()));
        }
    }
    chunks.extend(chunker.finish());
    chunks
}

fn lengths(chunks: &[Bytes]) -> Vec<usize> {
    chunks.iter().map(Bytes::len).collect()
}

#[test]
fn sizes_out_of_range_are_refused() {
    for bytes in [0, MIN_FIXED_BYTES - 1, MAX_FIXED_BYTES + 1, u32::MAX] {
        let refused = Chunker::new(ChunkerKind::Fixed { bytes });
        assert_eq!(refused.err(), Some(ChunkerError::Size { bytes }));
    }
    for bytes in [MIN_FIXED_BYTES, STANDARD_CHUNK_BYTES, MAX_FIXED_BYTES] {
        assert!(Chunker::new(ChunkerKind::Fixed { bytes }).is_ok());
    }
}

/// The cuts as SPEC.md words them, a byte at a time.
fn cut_by_the_spec(mut bytes: &[u8]) -> Vec<usize> {
    let (gear, _) = v2020::get_gear_with_seed(0);
    let mut lengths = Vec::new();
    while !bytes.is_empty() {
        let window = bytes.len().min(2_097_152);
        // The last byte of an odd window is not looked at.
        let looked_at = (window - window % 2).max(262_144.min(window));
        let mut hash = 0_u64;
        let cut = (262_144..looked_at).find(|position| {
            hash = (hash << 1).wrapping_add(gear[usize::from(bytes[*position])]);
            let mask = if *position < 1_048_576 { 0xd917_6753_7000 } else { 0xd917_0753_7000 };
            hash & mask == 0
        });
        let length = cut.unwrap_or(window);
        lengths.push(length);
        bytes = &bytes[length..];
    }
    lengths
}

#[test]
fn the_content_defined_cuts_never_move() {
    let bytes = noise(1, 12 << 20);
    let mut chunker = Chunker::new(ChunkerKind::FastCdc).expect("fixed parameters");
    let chunks = cut(&mut chunker, &bytes, &[1 << 20], true);
    assert_eq!(lengths(&chunks), cut_by_the_spec(&bytes));
    // Written down once: a release of the library that cut elsewhere would change the addresses of users' files.
    assert_eq!(lengths(&chunks), GOLDEN_CUTS);
}

const GOLDEN_CUTS: &[usize] =
    &[1053206, 354496, 939408, 2097152, 1281767, 1288987, 1415747, 447627, 1165369, 1789198, 749955];

#[test]
fn an_edit_leaves_most_content_defined_chunks_as_they_were() {
    let before = noise(2, 12 << 20);
    let mut after = before.clone();
    after.splice(5 << 20..5 << 20, *b"inserted");
    let mut chunker = Chunker::new(ChunkerKind::FastCdc).expect("fixed parameters");
    let before = cut(&mut chunker, &before, &[1 << 20], false);
    let after = cut(&mut chunker, &after, &[1 << 20], false);
    let shared = after.iter().filter(|chunk| before.contains(chunk)).count();
    assert!(shared + 3 >= before.len(), "{shared} of {}", before.len());
}

#[test]
fn a_small_file_keeps_the_buffer_and_holds_no_more_than_its_bytes() {
    let mut chunker = Chunker::new(ChunkerKind::default()).expect("the default size");
    assert_eq!(chunker.push(b"small"), 5);
    assert_eq!(chunker.finish(), ["small"]);
    assert_eq!((chunker.buffer.len(), chunker.filled), (1 << 20, 0));
    assert_eq!(chunker.finish(), [""; 0], "an empty file has no chunks here");
    assert_eq!(chunker.push(b"next"), 4);
    assert_eq!(chunker.finish(), ["next"]);
    let room = chunker.spare().len();
    chunker.advance(room.min(700_000));
    assert_eq!(lengths(&chunker.finish()), [700_000]);
    assert_eq!(chunker.buffer.len(), 0, "a large rest takes the buffer along");
}

#[test]
fn a_chunk_that_is_due_stops_the_stream_until_it_is_taken() {
    let mut chunker = Chunker::new(ChunkerKind::Fixed { bytes: 1024 }).expect("in range");
    assert_eq!(chunker.push(&[1; 3000]), 1024);
    assert_eq!((chunker.push(&[1; 3000]), chunker.spare().len()), (0, 0));
    assert_eq!(chunker.next_chunk().map(|chunk| chunk.len()), Some(1024));
    assert_eq!(chunker.push(&[1; 3000]), 1024);
    chunker.advance(usize::MAX);
    assert_eq!(lengths(&chunker.finish()), [1024]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn fixed_cuts_depend_on_the_bytes_alone(
        size in MIN_FIXED_BYTES..5000,
        length in 0_usize..40_000,
        pieces in prop::collection::vec(1_usize..9000, 1..8),
        push: bool,
    ) {
        let bytes = noise(3, length);
        let mut chunker = Chunker::new(ChunkerKind::Fixed { bytes: size }).expect("in range");
        let chunks = cut(&mut chunker, &bytes, &pieces, push);
        let expected: Vec<&[u8]> = bytes.chunks(size as usize).collect();
        prop_assert_eq!(&chunks, &expected);
        prop_assert_eq!(cut(&mut chunker, &bytes, &[length.max(1)], !push), expected, "used again");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn content_defined_cuts_depend_on_the_bytes_alone(
        seed: u8,
        // Zeros are never cut before the largest size.
        zeros in 0_usize..5 << 20,
        length in 0_usize..5 << 20,
        pieces in prop::collection::vec(1_usize..3 << 20, 1..6),
        push: bool,
    ) {
        let mut bytes = noise(seed, length);
        bytes.resize(length + zeros, 0);
        let mut chunker = Chunker::new(ChunkerKind::FastCdc).expect("fixed parameters");
        let chunks = cut(&mut chunker, &bytes, &pieces, push);
        prop_assert_eq!(lengths(&chunks), cut_by_the_spec(&bytes));
        prop_assert!(chunks.concat() == bytes);
        prop_assert!(chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= FASTCDC_MAX_BYTES));
        prop_assert!(chunker.buffer.len() <= FASTCDC_BUFFER_BYTES);
    }
}
