//! The frame that every binary protocol here uses: `[kind u8][request u32][length u32][bytes]`, big-endian.
//!
//! A header is judged before anything is allocated for what it announces: nine bytes are enough to refuse 4 GiB. A
//! kind that is not known here is no broken rule: its frame is skipped, and answered by [`UNSUPPORTED`].

/// Bytes of a header.
pub const HEADER_BYTES: usize = 9;
/// The first frame of both sides in every protocol; its body begins with a [`Hello`](super::version::Hello).
pub const GREETING: u8 = 0x01;
/// The answer of every protocol to a frame that is not understood, named by its (first) request.
pub const UNSUPPORTED: u8 = 0x7f;
/// The most bytes of a greeting or an UNSUPPORTED: what a later version appends is ignored.
pub const GROWING_LIMIT: u32 = 256;
/// The most bytes of a frame whose kind is not known here: as long as a frame of catch-up, and quickly skipped.
pub const UNKNOWN_LIMIT: u32 = 64 * 1024;

/// What stands before a frame's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the bytes are; each protocol has its own kinds.
    pub kind: u8,
    /// The request that it makes or answers; ids are the requester's, and wrap.
    pub request: u32,
    /// How many bytes follow.
    pub length: u32,
}

impl Header {
    /// The nine bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = self.kind;
        out[1..5].copy_from_slice(&self.request.to_be_bytes());
        out[5..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Reads nine bytes; `limit` gives the most bytes that a kind may have, `None` where it is not known here: then they
    /// are [`UNKNOWN_LIMIT`].
    pub fn decode(bytes: &[u8; HEADER_BYTES], limit: impl Fn(u8) -> Option<u32>) -> Result<Self, FrameError> {
        let [kind, a, b, c, d, e, f, g, h] = *bytes;
        let request = u32::from_be_bytes([a, b, c, d]);
        let length = u32::from_be_bytes([e, f, g, h]);
        let limit = limit(kind).unwrap_or(UNKNOWN_LIMIT);
        if length > limit {
            return Err(FrameError::TooLong { kind, length, limit });
        }
        Ok(Self { kind, request, length })
    }
}

/// Why a header was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// More bytes than its kind may have.
    #[error("a frame of kind 0x{kind:02x} claims {length} bytes, and may have {limit}")]
    TooLong {
        /// The kind.
        kind: u8,
        /// What it claims.
        length: u32,
        /// What it may have.
        limit: u32,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_that_claims_four_gibibytes_is_refused_by_its_header() {
        let bytes = Header { kind: 7, request: 1, length: u32::MAX }.encode();
        let refused = FrameError::TooLong { kind: 7, length: u32::MAX, limit: 100 };
        assert_eq!(Header::decode(&bytes, |_| Some(100)), Err(refused));
        let refused = FrameError::TooLong { kind: 7, length: u32::MAX, limit: UNKNOWN_LIMIT };
        assert_eq!(Header::decode(&bytes, |_| None), Err(refused));
    }

    #[test]
    fn the_header_is_nine_bytes_in_network_order() {
        let header = Header { kind: 0x11, request: 0x0102_0304, length: 0x0a0b };
        assert_eq!(header.encode(), [0x11, 1, 2, 3, 4, 0, 0, 0x0a, 0x0b]);
    }

    proptest! {
        #[test]
        fn any_nine_bytes_are_a_header_or_refused(bytes: [u8; HEADER_BYTES], limit: u32) {
            let most = |kind| if kind < 128 { limit } else { UNKNOWN_LIMIT };
            match Header::decode(&bytes, |kind| (kind < 128).then_some(limit)) {
                Ok(header) => {
                    prop_assert!(header.length <= most(header.kind));
                    prop_assert_eq!(header.encode(), bytes);
                }
                Err(FrameError::TooLong { kind, length, .. }) => prop_assert!(length > most(kind)),
            }
        }
    }
}
