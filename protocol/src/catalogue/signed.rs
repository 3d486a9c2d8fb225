//! A publication's signature (`SPEC.md`, "Publications").
//!
//! What is signed is not the [body] alone but a domain string, the network's name and the body (which starts
//! with the format's version): a signature made for one network or one purpose is worth nothing in another.
//!
//! The body ends with an extension area for what later versions have to say: it is skipped here, and still verified, kept
//! and passed on byte for byte. An unknown format, flag or redundancy is
//! [nobody's fault](InvalidPublication::is_unknown).

use libp2p_identity::{Keypair, PeerId, ed25519};

use super::{
    InvalidPublication, MAX_EXTENSION_BYTES, Publication,
    body::{self, LONGEST_FIXED_BYTES, public_key_bytes},
};

/// The most bytes of a network's name: it becomes part of protocol names, which are a line of at most a few hundred.
pub const MAX_NETWORK_BYTES: usize = 255;
/// The longest signed publication: 1,528 bytes.
pub const MAX_SIGNED_BYTES: usize =
    LONGEST_FIXED_BYTES + 2 * (1 + super::MAX_NAME_BYTES) + 2 + MAX_EXTENSION_BYTES + SIGNATURE_BYTES;
/// The longest entry of any format to come, so that what is not known can be skipped: what an index value may have, and
/// far under a gossip message.
pub const MAX_ENTRY_BYTES: usize = 4096;

/// What every signature starts with: no other signature of a peer's key (libp2p's handshakes, say) starts so.
const DOMAIN: &[u8] = b"p2p-node publication\0";
const SIGNATURE_BYTES: usize = 64;

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
        body::check(&publication)?;
        check_network(network)?;
        if keypair.public().to_peer_id() != publication.publisher {
            return Err(InvalidPublication::Publisher);
        }
        let mut bytes = body::encode(&publication, extension, SIGNATURE_BYTES)?;
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
        let publication = body::decode(body)?.0;
        body::check(&publication)?;
        let key = public_key(&publication.publisher)?;
        if !key.verify(&signed_message(network, body), signature) {
            return Err(InvalidPublication::Signature);
        }
        Ok(Self { bytes: bytes.into(), publication })
    }

    /// Reads back from exactly `bytes` what this node kept after it was signed or decoded here: all but the signature is
    /// checked again, which would take some 50 µs. Never for bytes that came from elsewhere, or that are of another network.
    pub fn read_back(bytes: &[u8]) -> Result<Self, InvalidPublication> {
        let publication = read_unsigned(bytes)?.0;
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
    Ok(body::decode(split(signed_bytes)?.0)?.0)
}

/// What bytes say that are a body and 64 bytes more, and its extension area: all but the signature is checked.
pub(crate) fn read_unsigned(bytes: &[u8]) -> Result<(Publication, &[u8]), InvalidPublication> {
    let (publication, extension) = body::decode(split(bytes)?.0)?;
    body::check(&publication)?;
    Ok((publication, extension))
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

/// The body and the signature.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), InvalidPublication> {
    body::check_known(bytes)?;
    if bytes.len() > MAX_SIGNED_BYTES {
        return Err(InvalidPublication::Length);
    }
    let body = bytes.len().checked_sub(SIGNATURE_BYTES).ok_or(InvalidPublication::Length)?;
    Ok(bytes.split_at(body))
}

#[cfg(test)]
#[path = "signed_tests.rs"]
pub(in crate::catalogue) mod tests;
