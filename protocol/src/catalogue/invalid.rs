//! Why bytes are no publication, or a publication cannot be signed.

use super::{MAX_CHUNKS, MAX_NETWORK_BYTES, NameError};

/// Why a publication was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidPublication {
    /// Too short, too long, or bytes left over.
    #[error("the publication's length is wrong")]
    Length,
    /// A format that is not known here.
    #[error("publication format {0} is not known here")]
    Format(u8),
    /// Flags that are not known here.
    #[error("publication flags 0x{0:02x} are not known here")]
    Flags(u8),
    /// A redundancy other than 1 to 16 copies.
    #[error("redundancy {0} is not known here: a publication asks for 1 to 16 copies")]
    Replicas(u8),
    /// Neither file, directory nor symlink.
    #[error("publication kind {0} is not known here")]
    Kind(u8),
    /// Not an ed25519 peer id, or not the signer's.
    #[error("the publisher is not the ed25519 peer that signed")]
    Publisher,
    /// The root is not an address that the network stores.
    #[error("the publication's root is not a CID that is stored here")]
    Root,
    /// The name cannot be published.
    #[error("the publication's name is refused: {0}")]
    Name(NameError),
    /// The label cannot be published.
    #[error("the publication's label is refused: {0}")]
    Label(NameError),
    /// A name or label that is not UTF-8.
    #[error("the publication's text is not UTF-8")]
    Text,
    /// Versions start from 1.
    #[error("the publication's version is 0")]
    Version,
    /// A floor outside 1 to the version, or below the version of a removal.
    #[error("the publication keeps versions from {floor} on, which does not fit its version {version}")]
    Floor {
        /// The lowest version that is to be kept.
        floor: u64,
        /// Its own.
        version: u64,
    },
    /// More bytes than any content has.
    #[error("the publication's size {0} is out of range")]
    Size(u64),
    /// No chunk, or more than [`MAX_CHUNKS`].
    #[error("the publication's root has {0} chunks: 1 to {MAX_CHUNKS} are possible")]
    Chunks(u64),
    /// The chunks are not listed as so many must be.
    #[error("the publication's chunks are not listed as they must be: {0}")]
    Listing(&'static str),
    /// Beyond the year 9999.
    #[error("the publication's time {0} is out of range")]
    Time(u64),
    /// The network's name is too long to sign for.
    #[error("the network's name has {bytes} bytes, and {MAX_NETWORK_BYTES} are the most")]
    Network {
        /// How many it has.
        bytes: usize,
    },
    /// Not signed by the publisher for this network.
    #[error("the signature is not the publisher's for this network")]
    Signature,
}

impl InvalidPublication {
    /// Whether it may well be valid, and only a later version can tell: who sent it is not at fault.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Format(_) | Self::Flags(_) | Self::Replicas(_))
    }
}
