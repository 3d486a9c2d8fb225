//! Cutting a stream of bytes into leaves: at fixed sizes, or by content (FastCDC 2020; Xia et al., IEEE TPDS 31(9)).
//!
//! The caller reads straight into the chunker's [`spare`](Chunker::spare) room and takes the leaves out as slices of
//! the same memory, so that a byte of a large file is written once by the reader and never copied by a fixed-size
//! chunker; the content-defined one copies what stands behind the last cut when its buffer is full, each byte at most
//! once. Where the cuts fall depends on the bytes alone, never on the sizes of the reads.

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::{self, Normalization};

use crate::chunk::MAX_CHUNK_BYTES;

/// The leaf size of the `unixfs-v1-2025` profile (IPIP-499): 1 MiB.
pub const STANDARD_CHUNK_BYTES: u32 = 1024 * 1024;
/// The smallest fixed size: 1 KiB. Below it the links would weigh more than a twentieth of the content.
pub const MIN_FIXED_BYTES: u32 = 1024;
/// The largest fixed size: what a chunk may have.
pub const MAX_FIXED_BYTES: u32 = MAX_CHUNK_BYTES as u32;
/// FastCDC: no cut before so many bytes, except at the end.
pub const FASTCDC_MIN_BYTES: usize = 256 * 1024;
/// FastCDC: the size that cuts gather around.
pub const FASTCDC_AVERAGE_BYTES: usize = 1024 * 1024;
/// FastCDC: a cut at the latest here.
pub const FASTCDC_MAX_BYTES: usize = MAX_CHUNK_BYTES;

/// The buffer of the content-defined chunker: twice the largest chunk, so that at least half of it has been cut off
/// when the rest has to move, and no byte moves twice.
const FASTCDC_BUFFER_BYTES: usize = 2 * FASTCDC_MAX_BYTES;

/// Where to cut.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ChunkerKind {
    /// Every so many bytes.
    Fixed {
        /// [`MIN_FIXED_BYTES`] to [`MAX_FIXED_BYTES`].
        bytes: u32,
    },
    /// By content, so that versions of a file share most of their chunks. The parameters are fixed (SPEC.md), or equal
    /// files would have different addresses on different nodes.
    FastCdc,
}

impl Default for ChunkerKind {
    /// Fixed chunks of [`STANDARD_CHUNK_BYTES`].
    fn default() -> Self {
        Self::Fixed { bytes: STANDARD_CHUNK_BYTES }
    }
}

/// Cuts one stream of bytes after another. Holds at most 2 MiB (fixed sizes) or 4 MiB (FastCDC).
///
/// ```
/// # use p2p_protocol::chunker::{Chunker, ChunkerError, ChunkerKind};
/// # fn main() -> Result<(), ChunkerError> {
/// let mut file: &[u8] = &[7; 5000];
/// let mut leaves = Vec::new();
/// let mut chunker = Chunker::new(ChunkerKind::Fixed { bytes: 2048 })?;
/// loop {
///     let read = std::io::Read::read(&mut file, chunker.spare()).expect("a slice never fails");
///     if read == 0 {
///         break;
///     }
///     chunker.advance(read);
///     while let Some(leaf) = chunker.next_chunk() {
///         leaves.push(leaf);
///     }
/// }
/// leaves.extend(chunker.finish());
/// assert_eq!(leaves.iter().map(|leaf| leaf.len()).collect::<Vec<_>>(), [2048, 2048, 904]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Chunker {
    cut: Cut,
    /// Its whole length is initialised; the first `filled` bytes are the stream's, not yet cut.
    buffer: BytesMut,
    filled: usize,
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    Fixed(usize),
    FastCdc { mask_s: u64, mask_l: u64 },
}

impl Cut {
    /// With so many bytes at hand a cut is certain, and the same as with any more.
    fn window(self) -> usize {
        match self {
            Self::Fixed(bytes) => bytes,
            Self::FastCdc { .. } => FASTCDC_MAX_BYTES,
        }
    }

    fn buffer(self) -> usize {
        match self {
            Self::Fixed(bytes) => bytes,
            Self::FastCdc { .. } => FASTCDC_BUFFER_BYTES,
        }
    }

    /// Where the first chunk of `bytes` ends: from 1 to their number, if there are any.
    fn first(self, bytes: &[u8]) -> usize {
        match self {
            Self::Fixed(size) => size.min(bytes.len()),
            Self::FastCdc { mask_s, mask_l } => {
                let (_, end) = v2020::cut(
                    bytes,
                    FASTCDC_MIN_BYTES,
                    FASTCDC_AVERAGE_BYTES,
                    FASTCDC_MAX_BYTES,
                    mask_s,
                    mask_l,
                    mask_s << 1,
                    mask_l << 1,
                );
                end
            }
        }
    }
}

impl Chunker {
    /// A chunker with no bytes yet; its buffer is made at the first [`spare`](Self::spare).
    pub fn new(kind: ChunkerKind) -> Result<Self, ChunkerError> {
        let cut = match kind {
            ChunkerKind::Fixed { bytes } if (MIN_FIXED_BYTES..=MAX_FIXED_BYTES).contains(&bytes) => {
                Cut::Fixed(bytes as usize)
            }
            ChunkerKind::Fixed { bytes } => return Err(ChunkerError::Size { bytes }),
            ChunkerKind::FastCdc => {
                let (mask_s, mask_l) = v2020::select_masks(FASTCDC_AVERAGE_BYTES, Normalization::Level1);
                Cut::FastCdc { mask_s, mask_l }
            }
        };
        Ok(Self { cut, buffer: BytesMut::new(), filled: 0 })
    }

    /// Room to read into; tell [`advance`](Self::advance) how much of it was used. Empty only while a chunk is due
    /// that [`next_chunk`](Self::next_chunk) was not asked for.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.buffer.len() == self.filled && self.filled < self.cut.window() {
            let mut next = BytesMut::zeroed(self.cut.buffer());
            next[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
            self.buffer = next;
        }
        &mut self.buffer[self.filled..]
    }

    /// Says that the first `bytes` bytes of the last [`spare`](Self::spare) are now the stream's next ones. More than
    /// were spare counts as all of them.
    pub fn advance(&mut self, bytes: usize) {
        self.filled = self.filled.saturating_add(bytes).min(self.buffer.len());
    }

    /// Copies bytes in, for who has them in memory already, and says how many it took: fewer than all when a chunk is
    /// due first ([`next_chunk`](Self::next_chunk)), so that memory stays bounded.
    #[must_use = "what was not taken is to be pushed again after next_chunk"]
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let spare = self.spare();
        let taken = spare.len().min(bytes.len());
        spare[..taken].copy_from_slice(&bytes[..taken]);
        self.advance(taken);
        taken
    }

    /// The next chunk, if the bytes so far settle where it ends. Ask until it gives `None`.
    pub fn next_chunk(&mut self) -> Option<Bytes> {
        let window = self.cut.window();
        if self.filled < window {
            return None;
        }
        let end = self.cut.first(&self.buffer[..window]);
        Some(self.split(end))
    }

    /// What is left at the end of the stream, in order: none, one, or (FastCDC) up to nine chunks. The chunker is then
    /// as new and can be used for the next file; its buffer stays if the rest was small, so that many small files cost
    /// no allocation but their own bytes'.
    #[must_use = "these are the last bytes of the stream"]
    pub fn finish(&mut self) -> Vec<Bytes> {
        // A small rest is copied: a slice would keep the whole buffer alive for its few bytes. A large one takes the
        // buffer along.
        let copy = self.filled <= self.cut.buffer() / 4;
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < self.filled {
            let length = self.cut.first(&self.buffer[start..self.filled]);
            if copy {
                chunks.push(Bytes::copy_from_slice(&self.buffer[start..start + length]));
                start += length;
            } else {
                chunks.push(self.split(length));
            }
        }
        if !copy {
            self.buffer = BytesMut::new();
        }
        self.filled = 0;
        chunks
    }

    fn split(&mut self, bytes: usize) -> Bytes {
        self.filled -= bytes;
        self.buffer.split_to(bytes).freeze()
    }
}

/// Why there is no such chunker.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChunkerError {
    /// The fixed size is out of range.
    #[error("chunks of {bytes} bytes cannot be made: the size is from {MIN_FIXED_BYTES} to {MAX_FIXED_BYTES} bytes")]
    Size {
        /// What was asked for.
        bytes: u32,
    },
}

#[cfg(test)]
mod tests;
