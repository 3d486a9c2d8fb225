//! A publication's bytes and its signature (`SPEC.md`, "Publications").
//!
//! The encoding is canonical: one publication has one body, so that equal content has equal bytes everywhere. What
//! is signed is not the body alone but a domain string, the network's name and the body (which starts with the
//! format's version): a signature made for one network or one purpose is worth nothing in another.
//!
//! The body ends with an extension area for what later versions have to say: it is skipped here, and still verified, kept
//! and passed on byte for byte. An unknown format or flag is [nobody's fault](InvalidPublication::is_unknown).

use libp2p_identity::{Keypair, PeerId, ed25519};

use super::{Kind, MAX_REPLICAS, MIN_REPLICAS, NameError, Publication, check_label, check_name};
use crate::{Cid, cid::CID_BYTES};

/// The first byte of a body: this format.
pub const FORMAT_VERSION: u8 = 1;
/// The most bytes of a network's name: it becomes part of protocol names, which are a line of at most a few hundred.
pub const MAX_NETWORK_BYTES: usize = 255;
/// The latest time that a publication may carry, 9999-12-30T22:00:00Z: the last that RFC 3339 and the time
/// libraries behind it can write in every time zone.
pub const MAX_TIME_MILLISECONDS: u64 = 253_402_207_200_000;
/// The most content bytes that a publication may claim: sums of a few of them stay below 2^64, and signed 64-bit
/// readers understand each.
pub const MAX_SIZE_BYTES: u64 = i64::MAX as u64;

/// What every signature starts with: no other signature of a peer's key (libp2p's handshakes, say) starts so.
const DOMAIN: &[u8] = b"p2p-node publication\0";
/// An ed25519 peer id: the identity multihash of the protobuf of the public key, which therefore is inside it.
const PEER_BYTES: usize = 38;
const PEER_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
const SIGNATURE_BYTES: usize = 64;
const REMOVED: u8 = 1;
/// Format version, flags, kind, replicas, publisher, root, size, version, time.
const FIXED_BYTES: usize = 4 + PEER_BYTES + CID_BYTES + 3 * 8;
/// The most bytes of the extension area: a dozen addresses, and a full catalogue of the longest still takes under
/// 80 MiB (a guess at what will be wanted).
pub const MAX_EXTENSION_BYTES: usize = 512;
/// The longest signed publication: 1,192 bytes.
pub const MAX_SIGNED_BYTES: usize =
    FIXED_BYTES + 2 * (1 + super::MAX_NAME_BYTES) + 2 + MAX_EXTENSION_BYTES + SIGNATURE_BYTES;
/// The longest entry of any format to come, so that what is not known can be skipped: what an index value may have, and
/// far under a gossip message.
pub const MAX_ENTRY_BYTES: usize = 4096;

/// Names one signed publication: BLAKE3 of its signed bytes. What peers compare when they catch up.
pub type PublicationId = [u8; 32];

/// A publication whose signature was made or checked here, for the network that it was made or decoded with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedPublication {
    /// The body, then the signature.
    bytes: Box<[u8]>,
    publication: Publication,
}

impl SignedPublication {
    /// Signs `publication` for `network`. The key must be the publisher's, an ed25519 one, and the publication valid.
    pub fn sign(keypair: &Keypair, network: &str, publication: Publication) -> Result<Self, InvalidPublication> {
        Self::sign_extended(keypair, network, publication, &[])
    }

    /// The same with an extension area, of [`MAX_EXTENSION_BYTES`] at most. Nothing here has anything to say in one yet.
    pub fn sign_extended(
        keypair: &Keypair,
        network: &str,
        publication: Publication,
        extension: &[u8],
    ) -> Result<Self, InvalidPublication> {
        check(&publication)?;
        check_network(network)?;
        if keypair.public().to_peer_id() != publication.publisher {
            return Err(InvalidPublication::Publisher);
        }
        let mut bytes = encode_body(&publication, extension)?;
        let signature = keypair.sign(&signed_message(network, &bytes)).map_err(|_| InvalidPublication::Signature)?;
        if signature.len() != SIGNATURE_BYTES {
            return Err(InvalidPublication::Publisher);
        }
        bytes.extend_from_slice(&signature);
        Ok(Self { bytes: bytes.into(), publication })
    }

    /// Reads a signed publication of `network` from exactly `bytes`, checking every field and the signature.
    ///
    /// Total: any bytes give a value or an error. Copies what it keeps, so a frame that `bytes` is part of can go.
    pub fn decode(network: &str, bytes: &[u8]) -> Result<Self, InvalidPublication> {
        check_network(network)?;
        let (body, signature) = split(bytes)?;
        let publication = decode_body(body)?.0;
        let key = public_key(&publication.publisher)?;
        if !key.verify(&signed_message(network, body), signature) {
            return Err(InvalidPublication::Signature);
        }
        Ok(Self { bytes: bytes.into(), publication })
    }

    /// The body and the signature, as they are sent and kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The signature, 64 bytes.
    pub fn signature(&self) -> &[u8] {
        &self.bytes[self.bytes.len() - SIGNATURE_BYTES..]
    }

    /// What it says.
    pub fn publication(&self) -> &Publication {
        &self.publication
    }

    /// What it says, and its bytes.
    pub fn into_parts(self) -> (Publication, Box<[u8]>) {
        (self.publication, self.bytes)
    }

    /// Its name among all signed publications.
    pub fn id(&self) -> PublicationId {
        publication_id(&self.bytes)
    }
}

/// The name of what `signed_bytes` are, checked or not.
pub(crate) fn publication_id(signed_bytes: &[u8]) -> PublicationId {
    *blake3::hash(signed_bytes).as_bytes()
}

/// What signed bytes say, without a look at the signature: for bytes that were checked when they came.
pub(crate) fn read_checked(signed_bytes: &[u8]) -> Result<Publication, InvalidPublication> {
    Ok(decode_body(split(signed_bytes)?.0)?.0)
}

/// The extension area of a body that can be read.
pub(crate) fn extension(body: &[u8]) -> Result<&[u8], InvalidPublication> {
    Ok(decode_body(body)?.1)
}

/// The 32 bytes of the public key inside an ed25519 peer id.
pub(crate) fn public_key_bytes(peer: &PeerId) -> Result<[u8; 32], InvalidPublication> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&PEER_PREFIX).ok_or(InvalidPublication::Publisher)?;
    key.try_into().map_err(|_| InvalidPublication::Publisher)
}

fn public_key(peer: &PeerId) -> Result<ed25519::PublicKey, InvalidPublication> {
    ed25519::PublicKey::try_from_bytes(&public_key_bytes(peer)?).map_err(|_| InvalidPublication::Publisher)
}

fn signed_message(network: &str, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(DOMAIN.len() + 1 + network.len() + body.len());
    message.extend_from_slice(DOMAIN);
    // `check_network` keeps the length within a byte.
    message.push(network.len() as u8);
    message.extend_from_slice(network.as_bytes());
    message.extend_from_slice(body);
    message
}

fn check_network(network: &str) -> Result<(), InvalidPublication> {
    if network.len() > MAX_NETWORK_BYTES {
        return Err(InvalidPublication::Network { bytes: network.len() });
    }
    Ok(())
}

fn check(publication: &Publication) -> Result<(), InvalidPublication> {
    if let Some(name) = &publication.name {
        check_name(name).map_err(InvalidPublication::Name)?;
    }
    check_label(&publication.label).map_err(InvalidPublication::Label)?;
    if !(MIN_REPLICAS..=MAX_REPLICAS).contains(&publication.replicas) {
        return Err(InvalidPublication::Replicas(publication.replicas));
    }
    if publication.version == 0 {
        return Err(InvalidPublication::Version);
    }
    if publication.size > MAX_SIZE_BYTES {
        return Err(InvalidPublication::Size(publication.size));
    }
    if publication.time_milliseconds > MAX_TIME_MILLISECONDS {
        return Err(InvalidPublication::Time(publication.time_milliseconds));
    }
    Ok(())
}

fn encode_body(publication: &Publication, extension: &[u8]) -> Result<Vec<u8>, InvalidPublication> {
    let extension_bytes = u16::try_from(extension.len()).map_err(|_| InvalidPublication::Length)?;
    if extension.len() > MAX_EXTENSION_BYTES {
        return Err(InvalidPublication::Length);
    }
    let name = publication.name.as_deref().unwrap_or("");
    let texts = 2 + name.len() + publication.label.len();
    let mut body = Vec::with_capacity(FIXED_BYTES + texts + 2 + extension.len() + SIGNATURE_BYTES);
    body.extend_from_slice(&[
        FORMAT_VERSION,
        if publication.removed { REMOVED } else { 0 },
        publication.kind.code(),
        publication.replicas,
    ]);
    body.extend_from_slice(&PEER_PREFIX);
    body.extend_from_slice(&public_key_bytes(&publication.publisher)?);
    body.extend_from_slice(&publication.root.to_bytes());
    body.extend_from_slice(&publication.size.to_be_bytes());
    body.extend_from_slice(&publication.version.to_be_bytes());
    body.extend_from_slice(&publication.time_milliseconds.to_be_bytes());
    for text in [name, &publication.label] {
        // `check` keeps both within 255 bytes; an empty name is none.
        body.push(text.len() as u8);
        body.extend_from_slice(text.as_bytes());
    }
    body.extend_from_slice(&extension_bytes.to_be_bytes());
    body.extend_from_slice(extension);
    Ok(body)
}

/// The body and the signature. What is not known here is told from what is wrong first: it may be longer or shorter.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), InvalidPublication> {
    match bytes {
        [FORMAT_VERSION, flags, ..] if flags & !REMOVED != 0 => return Err(InvalidPublication::Flags(*flags)),
        [FORMAT_VERSION, ..] | [] => {}
        [format, ..] => return Err(InvalidPublication::Format(*format)),
    }
    if bytes.len() > MAX_SIGNED_BYTES {
        return Err(InvalidPublication::Length);
    }
    let body = bytes.len().checked_sub(SIGNATURE_BYTES).ok_or(InvalidPublication::Length)?;
    Ok(bytes.split_at(body))
}

/// What a body that [`split`] gave says, and its extension area.
fn decode_body(body: &[u8]) -> Result<(Publication, &[u8]), InvalidPublication> {
    let rest = &mut &*body;
    let [_version, flags, kind, replicas] = take(rest)?;
    let kind = Kind::from_code(kind).ok_or(InvalidPublication::Kind(kind))?;
    let publisher: [u8; PEER_BYTES] = take(rest)?;
    if !publisher.starts_with(&PEER_PREFIX) {
        return Err(InvalidPublication::Publisher);
    }
    let publisher = PeerId::from_bytes(&publisher).map_err(|_| InvalidPublication::Publisher)?;
    let root_bytes: [u8; CID_BYTES] = take(rest)?;
    let root = Cid::from_bytes(&root_bytes).map_err(|_| InvalidPublication::Root)?;
    if root.to_bytes() != root_bytes {
        return Err(InvalidPublication::Root);
    }
    let size = u64::from_be_bytes(take(rest)?);
    let version = u64::from_be_bytes(take(rest)?);
    let time_milliseconds = u64::from_be_bytes(take(rest)?);
    let name = take_text(rest)?;
    let label = take_text(rest)?;
    let extension_bytes = usize::from(u16::from_be_bytes(take(rest)?));
    let extension = *rest;
    if extension.len() != extension_bytes || extension_bytes > MAX_EXTENSION_BYTES {
        return Err(InvalidPublication::Length);
    }
    let publication = Publication {
        publisher,
        name: if name.is_empty() { None } else { Some(name.to_owned()) },
        label: label.to_owned(),
        root,
        kind,
        size,
        replicas,
        version,
        time_milliseconds,
        removed: flags & REMOVED != 0,
    };
    check(&publication)?;
    Ok((publication, extension))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], InvalidPublication> {
    let (head, tail) = rest.split_first_chunk().ok_or(InvalidPublication::Length)?;
    *rest = tail;
    Ok(*head)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, InvalidPublication> {
    let [length] = take(rest)?;
    let (text, tail) = rest.split_at_checked(usize::from(length)).ok_or(InvalidPublication::Length)?;
    *rest = tail;
    std::str::from_utf8(text).map_err(|_| InvalidPublication::Text)
}

impl InvalidPublication {
    /// Whether it may well be valid, and only a later version can tell: who sent it is not at fault.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Format(_) | Self::Flags(_))
    }
}

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
    /// Copies outside 1 to 16.
    #[error("{0} copies: a publication asks for 1 to 16")]
    Replicas(u8),
    /// Versions start from 1.
    #[error("the publication's version is 0")]
    Version,
    /// More bytes than any content has.
    #[error("the publication's size {0} is out of range")]
    Size(u64),
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

#[cfg(test)]
#[path = "signed_tests.rs"]
pub(in crate::catalogue) mod tests;
