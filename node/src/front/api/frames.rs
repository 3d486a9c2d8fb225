//! Bytes with an outcome: `cat`'s answer, in frames of `[kind u8][length u32 BE][bytes]`.
//!
//! A plain body could only be cut off when something fails after the first byte; here the failure is said.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::error::{Error, Result};

/// Content.
const BYTES: u8 = 0;
/// That was all of it; no bytes.
const END: u8 = 1;
/// An [`Error`] as JSON.
const ERROR: u8 = 2;

/// Bytes before each frame's payload.
const HEADER_BYTES: usize = 5;
/// The longest payload that is read: a chunk is at most 2 MiB.
const MAX_PAYLOAD_BYTES: u32 = 2 * 1024 * 1024;
/// The longest error that is read.
const MAX_ERROR_BYTES: u32 = 64 * 1024;

fn header(kind: u8, length: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES);
    out.put_u8(kind);
    // Callers split payloads at MAX_PAYLOAD_BYTES, so the length always fits.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out.freeze()
}

/// The frames of `content`: a header and a payload in turn, without copying.
pub fn content(mut content: Bytes) -> Vec<Bytes> {
    let mut out = Vec::with_capacity(2);
    while !content.is_empty() {
        let payload = content.split_to(content.len().min(MAX_PAYLOAD_BYTES as usize));
        out.push(header(BYTES, payload.len()));
        out.push(payload);
    }
    out
}

/// A frame without content.
pub fn nothing() -> Bytes {
    header(BYTES, 0)
}

/// The frame that ends what is whole.
pub fn end() -> Bytes {
    header(END, 0)
}

/// The frames that end what failed.
pub fn error(error: &Error) -> Vec<Bytes> {
    let mut text = serde_json::to_vec(error).unwrap_or_default();
    if text.len() > MAX_ERROR_BYTES as usize {
        text.clear();
    }
    vec![header(ERROR, text.len()), Bytes::from(text)]
}

/// What a reader finds next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Content, in order.
    Bytes(Bytes),
    /// That was all of it.
    End,
    /// More input is needed.
    Starved,
}

/// Reads frames from pieces of any size, without copying content.
#[derive(Debug, Default)]
pub struct Reader {
    input: Bytes,
    /// Content bytes of the current frame that are still to come.
    left: usize,
    ended: bool,
}

impl Reader {
    /// Takes in a piece. Call it only when [`Reader::next`] says that it is starved, so that at most one piece and one
    /// header (or error) are held.
    pub fn push(&mut self, piece: Bytes) {
        if self.input.is_empty() {
            self.input = piece;
        } else {
            // What is left is the start of a header or of an error: this is rare.
            let mut both = BytesMut::with_capacity(self.input.len() + piece.len());
            both.extend_from_slice(&self.input);
            both.extend_from_slice(&piece);
            self.input = both.freeze();
        }
    }

    /// The next content, or how it ended; fails with what the other side said, or when this is not a stream of frames.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Next> {
        if self.ended {
            return Ok(Next::End);
        }
        if self.left == 0 {
            let Some((header, _)) = self.input.split_first_chunk::<HEADER_BYTES>() else { return Ok(Next::Starved) };
            let [kind, a, b, c, d] = *header;
            let length = u32::from_be_bytes([a, b, c, d]);
            match kind {
                BYTES if length <= MAX_PAYLOAD_BYTES => {
                    self.input.advance(HEADER_BYTES);
                    self.left = length as usize;
                    if length == 0 {
                        return Ok(Next::Bytes(Bytes::new()));
                    }
                }
                END => {
                    self.ended = true;
                    return Ok(Next::End);
                }
                ERROR if length <= MAX_ERROR_BYTES => {
                    let Some(text) = self.input.get(HEADER_BYTES..HEADER_BYTES + length as usize) else {
                        return Ok(Next::Starved);
                    };
                    let failed = || Error::failed("The daemon failed and could not say why; its log may");
                    return Err(serde_json::from_slice(text).unwrap_or_else(|_| failed()));
                }
                _ => return Err(Error::failed("The daemon's answer cannot be read: it is not made of frames")),
            }
        }
        if self.input.is_empty() {
            return Ok(Next::Starved);
        }
        let bytes = self.input.split_to(self.left.min(self.input.len()));
        self.left -= bytes.len();
        Ok(Next::Bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `wire` in pieces of `piece` bytes and gives the content and how it ended.
    fn read(wire: &[u8], piece: usize) -> (Vec<u8>, Result<bool>) {
        let mut reader = Reader::default();
        let mut pieces = wire.chunks(piece);
        let mut out = Vec::new();
        loop {
            match reader.next() {
                Ok(Next::Bytes(bytes)) => out.extend_from_slice(&bytes),
                Ok(Next::End) => return (out, Ok(true)),
                Ok(Next::Starved) => match pieces.next() {
                    Some(piece) => reader.push(Bytes::copy_from_slice(piece)),
                    None => return (out, Ok(false)),
                },
                Err(error) => return (out, Err(error)),
            }
        }
    }

    proptest! {
        #[test]
        fn content_comes_back_whatever_the_pieces(bytes: Vec<u8>, more: Vec<u8>, piece in 1_usize..64) {
            let mut wire: Vec<u8> = content(bytes.clone().into()).concat();
            wire.extend(content(more.clone().into()).concat());
            let whole = [bytes, more].concat();
            prop_assert_eq!(read(&wire, piece), (whole.clone(), Ok(false)), "an end that is not said is no end");
            wire.extend(end());
            prop_assert_eq!(read(&wire, piece), (whole, Ok(true)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(wire: Vec<u8>, piece in 1_usize..64) {
            let _outcome = read(&wire, piece);
        }
    }

    #[test]
    fn a_failure_after_the_first_byte_is_said() {
        let failure = Error::not_found("nobody has it").hint("wait");
        let mut wire = content(Bytes::from_static(b"some")).concat();
        wire.extend(error(&failure).concat());
        assert_eq!(read(&wire, 3), (b"some".to_vec(), Err(failure)));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_waited_for() {
        for wire in [[0, 0xff, 0xff, 0xff, 0xff], [2, 0, 2, 0, 0], [9, 0, 0, 0, 0]] {
            assert!(read(&wire, 5).1.is_err());
        }
    }

    #[test]
    fn big_content_is_split() {
        let big = Bytes::from(vec![7; 5 << 20]);
        assert_eq!(content(big.clone()).len(), 6);
        let wire = [content(big.clone()).concat(), end().to_vec()].concat();
        assert_eq!(read(&wire, 1 << 16), (big.to_vec(), Ok(true)));
    }
}
