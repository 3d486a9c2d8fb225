//! Addresses: CIDv1 over BLAKE3-256 or SHA2-256 (multiformats/cid, multiformats/multihash).
//!
//! Only what the network stores can be expressed: two codecs, two hash functions, 32-byte digests.
//! Anything else is refused when it is parsed, so no code behind this module meets it.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

/// Bytes of a binary [`Multihash`]: code, digest length, digest.
pub const MULTIHASH_BYTES: usize = 34;
/// Bytes of a binary [`Cid`]: version, codec, multihash.
pub const CID_BYTES: usize = 2 + MULTIHASH_BYTES;
/// Longer text is no address, and is refused before it is decoded: the bases that are no power of two cost the square
/// of its length. An address in base 2 (its prefix, and eight digits a byte) has 289 characters, one with a hash of
/// 64 bytes, which is refused for its hash, fewer than 600.
const MAX_TEXT_BYTES: usize = 1024;

/// What the bytes behind an address are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Codec {
    /// Bytes of a file, as they are (`raw`, 0x55).
    Raw,
    /// A UnixFS node in DAG-PB (`dag-pb`, 0x70).
    DagPb,
}

impl Codec {
    /// The multicodec code, which fits one varint byte.
    pub const fn code(self) -> u8 {
        match self {
            Self::Raw => 0x55,
            Self::DagPb => 0x70,
        }
    }

    /// The codec of a multicodec code.
    pub const fn from_code(code: u64) -> Option<Self> {
        match code {
            0x55 => Some(Self::Raw),
            0x70 => Some(Self::DagPb),
            _ => None,
        }
    }
}

/// The hash function of an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum HashCode {
    /// SHA2-256 (0x12): stored and served, never made here.
    Sha2_256,
    /// BLAKE3-256 (0x1e): what this node makes.
    Blake3,
}

impl HashCode {
    /// The multicodec code, which fits one varint byte.
    pub const fn code(self) -> u8 {
        match self {
            Self::Sha2_256 => 0x12,
            Self::Blake3 => 0x1e,
        }
    }

    /// The hash function of a multicodec code.
    pub const fn from_code(code: u64) -> Option<Self> {
        match code {
            0x12 => Some(Self::Sha2_256),
            0x1e => Some(Self::Blake3),
            _ => None,
        }
    }

    /// The 32-byte digest of `bytes`.
    pub fn digest(self, bytes: &[u8]) -> [u8; 32] {
        match self {
            Self::Sha2_256 => Sha256::digest(bytes).into(),
            Self::Blake3 => *blake3::hash(bytes).as_bytes(),
        }
    }
}

/// A hash function and its 32-byte digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Multihash {
    /// The function.
    pub code: HashCode,
    /// What it gave.
    pub digest: [u8; 32],
}

impl Multihash {
    /// Hashes `bytes` with `code`.
    pub fn of(code: HashCode, bytes: &[u8]) -> Self {
        Self { code, digest: code.digest(bytes) }
    }

    /// The binary form, 34 bytes.
    pub fn to_bytes(&self) -> [u8; MULTIHASH_BYTES] {
        let mut out = [0; MULTIHASH_BYTES];
        out[0] = self.code.code();
        out[1] = 32;
        out[2..].copy_from_slice(&self.digest);
        out
    }

    /// Reads the binary form; `bytes` holds exactly it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CidError> {
        let [code, length, digest @ ..] = bytes else { return Err(CidError::Length) };
        let code = HashCode::from_code(u64::from(*code)).ok_or(CidError::Hash(u64::from(*code)))?;
        if *length != 32 {
            return Err(CidError::Length);
        }
        let digest = digest.try_into().map_err(|_| CidError::Length)?;
        Ok(Self { code, digest })
    }
}

/// The address of a chunk: a CIDv1 of the codecs and hash functions that the network stores.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid {
    /// What the bytes are.
    pub codec: Codec,
    /// The hash of the bytes.
    pub hash: Multihash,
}

impl Cid {
    /// The address of `bytes` under BLAKE3.
    pub fn of(codec: Codec, bytes: &[u8]) -> Self {
        Self { codec, hash: Multihash::of(HashCode::Blake3, bytes) }
    }

    /// The binary form, 36 bytes.
    pub fn to_bytes(&self) -> [u8; CID_BYTES] {
        let mut out = [0; CID_BYTES];
        out[0] = 1;
        out[1] = self.codec.code();
        out[2..].copy_from_slice(&self.hash.to_bytes());
        out
    }

    /// Reads the binary form; `bytes` holds exactly it. CIDv0 (a bare SHA2-256 multihash) is read as DAG-PB.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CidError> {
        let rest = &mut &*bytes;
        let foreign = cid::Cid::read_bytes(&mut *rest).map_err(|_| CidError::Malformed)?;
        // It reads what it needs, and leaves what stands behind.
        if rest.is_empty() { Self::from_foreign(&foreign) } else { Err(CidError::Malformed) }
    }

    fn from_foreign(foreign: &cid::Cid) -> Result<Self, CidError> {
        let codec = Codec::from_code(foreign.codec()).ok_or(CidError::Codec(foreign.codec()))?;
        let hash = foreign.hash();
        let code = HashCode::from_code(hash.code()).ok_or(CidError::Hash(hash.code()))?;
        let digest = hash.digest().try_into().map_err(|_| CidError::Length)?;
        Ok(Self { codec, hash: Multihash { code, digest } })
    }
}

impl FromStr for Cid {
    type Err = CidError;

    /// Reads any multibase form of a CIDv1, and CIDv0; `text` holds exactly it.
    fn from_str(text: &str) -> Result<Self, CidError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(CidError::Malformed);
        }
        let decoded = if cid::Version::is_v0_str(text) {
            cid::multibase::Base::Base58Btc.decode(text)
        } else {
            cid::multibase::decode(text).map(|(_, bytes)| bytes)
        };
        Self::from_bytes(&decoded.map_err(|_| CidError::Malformed)?)
    }
}

impl fmt::Display for Cid {
    /// Base32, lower case, as CIDv1 is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let foreign = cid::Cid::try_from(&self.to_bytes()[..]).map_err(|_| fmt::Error)?;
        fmt::Display::fmt(&foreign, f)
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why an address was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CidError {
    /// Not a CID at all.
    #[error("this is not a CID")]
    Malformed,
    /// A codec other than `raw` and `dag-pb`.
    #[error("codec 0x{0:x} is not stored here: only raw (0x55) and dag-pb (0x70) are")]
    Codec(u64),
    /// A hash function other than BLAKE3 and SHA2-256.
    #[error("hash function 0x{0:x} is not stored here: only blake3 (0x1e) and sha2-256 (0x12) are")]
    Hash(u64),
    /// A digest that is not 32 bytes long.
    #[error("the digest is not 32 bytes long")]
    Length,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_the_vectors() {
        let cid = Cid::of(Codec::Raw, b"hello world\n");
        assert_eq!(cid.to_string(), "bafkr4ig4ljhnxasawambeqcsymycobuw7ftxdjr3iusquxax2maa5artku");
        assert_eq!(cid.to_string().parse::<Cid>(), Ok(cid));
        assert_eq!(Cid::from_bytes(&cid.to_bytes()), Ok(cid));
        assert_eq!(Multihash::from_bytes(&cid.hash.to_bytes()), Ok(cid.hash));
    }

    #[test]
    fn other_codecs_hashes_and_lengths_are_refused() {
        let mut bytes = Cid::of(Codec::Raw, b"").to_bytes();
        bytes[1] = 0x71;
        assert_eq!(Cid::from_bytes(&bytes), Err(CidError::Codec(0x71)));
        bytes[1] = 0x55;
        bytes[2] = 0x16;
        assert_eq!(Cid::from_bytes(&bytes), Err(CidError::Hash(0x16)));
        assert_eq!("notacid".parse::<Cid>(), Err(CidError::Malformed));
        assert_eq!(Multihash::from_bytes(&[0x1e, 31]), Err(CidError::Length));
        assert_eq!(Multihash::from_bytes(&[]), Err(CidError::Length));
    }

    #[test]
    fn an_address_with_more_around_it_is_refused() {
        let cid = Cid::of(Codec::DagPb, b"");
        let longer = [&cid.to_bytes()[..], &[0]].concat();
        assert_eq!(Cid::from_bytes(&longer), Err(CidError::Malformed));
        let text = cid::multibase::encode(cid::multibase::Base::Base32Lower, &longer);
        assert_eq!(text.parse::<Cid>(), Err(CidError::Malformed));
        assert_eq!(format!("{cid}aa").parse::<Cid>(), Err(CidError::Malformed));
        assert_eq!(format!("anything/ipfs/{cid}").parse::<Cid>(), Err(CidError::Malformed));
        assert_eq!(cid::multibase::encode(cid::multibase::Base::Base2, cid.to_bytes()).parse(), Ok(cid));
    }

    #[test]
    fn text_far_longer_than_an_address_is_refused_before_it_is_decoded() {
        // Base 58 of sixteen million digits would be decoded for days.
        let text = format!("z{}", "2".repeat(16 << 20));
        assert_eq!(text.parse::<Cid>(), Err(CidError::Malformed));
    }

    #[test]
    fn a_version_0_address_is_read_as_dag_pb() {
        let cid = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn".parse::<Cid>();
        assert!(matches!(cid, Ok(Cid { codec: Codec::DagPb, hash: Multihash { code: HashCode::Sha2_256, .. } })));
    }
}
