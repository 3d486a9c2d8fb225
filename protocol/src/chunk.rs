//! A chunk that exists only because its bytes were hashed and compared.

use bytes::Bytes;

use crate::cid::{Cid, Codec};

/// The most bytes that a chunk may have: 2 MiB, what other implementations accept for a block.
pub const MAX_CHUNK_BYTES: usize = 2 * 1024 * 1024;

/// Content-addressed bytes. Every constructor hashes, so holding one is the proof that they match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    cid: Cid,
    bytes: Bytes,
}

impl Chunk {
    /// Hashes `bytes` with BLAKE3 into a chunk of their own address. At most [`MAX_CHUNK_BYTES`].
    pub fn new(codec: Codec, bytes: impl Into<Bytes>) -> Result<Self, ChunkError> {
        let bytes = bytes.into();
        check_length(&bytes)?;
        Ok(Self { cid: Cid::of(codec, &bytes), bytes })
    }

    /// Hashes `bytes` and compares them with the address they came under.
    pub fn verify(cid: Cid, bytes: impl Into<Bytes>) -> Result<Self, ChunkError> {
        let bytes = bytes.into();
        check_length(&bytes)?;
        if cid.hash.code.digest(&bytes) != cid.hash.digest {
            return Err(ChunkError::Mismatch { cid });
        }
        Ok(Self { cid, bytes })
    }

    /// The address.
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The bytes, given away.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

fn check_length(bytes: &Bytes) -> Result<(), ChunkError> {
    if bytes.len() > MAX_CHUNK_BYTES {
        return Err(ChunkError::TooLong { length: bytes.len() });
    }
    Ok(())
}

/// Why bytes did not become a chunk.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChunkError {
    /// Over [`MAX_CHUNK_BYTES`].
    #[error("{length} bytes are over the {MAX_CHUNK_BYTES} bytes that a chunk may have")]
    TooLong {
        /// How many there were.
        length: usize,
    },
    /// The bytes are not what the address says.
    #[error("the bytes do not match their address {cid}")]
    Mismatch {
        /// The address they came under.
        cid: Cid,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bytes_never_become_a_chunk() {
        let chunk = Chunk::new(Codec::Raw, &b"right"[..]).expect("it is short");
        assert_eq!(Chunk::verify(*chunk.cid(), &b"right"[..]), Ok(chunk.clone()));
        assert_eq!(Chunk::verify(*chunk.cid(), &b"wrong"[..]), Err(ChunkError::Mismatch { cid: *chunk.cid() }));
    }

    #[test]
    fn a_chunk_has_at_most_two_mebibytes() {
        assert!(Chunk::new(Codec::Raw, vec![0; MAX_CHUNK_BYTES]).is_ok());
        let length = MAX_CHUNK_BYTES + 1;
        assert_eq!(Chunk::new(Codec::Raw, vec![0; length]), Err(ChunkError::TooLong { length }));
    }
}
