//! The gossip payload: one signed publication (`SPEC.md`, "Gossip").

use crate::catalogue::{InvalidPublication, SignedPublication};

/// The first byte: this format.
const FORMAT: u8 = 1;

/// The payload that announces `publication`.
pub fn encode(publication: &SignedPublication) -> Vec<u8> {
    let mut payload = Vec::with_capacity(1 + publication.bytes().len());
    payload.push(FORMAT);
    payload.extend_from_slice(publication.bytes());
    payload
}

/// The signed bytes in a payload, unchecked: for a look whether they are known already.
pub fn signed_bytes(payload: &[u8]) -> Result<&[u8], InvalidPublication> {
    match payload {
        [FORMAT, signed @ ..] => Ok(signed),
        [] => Err(InvalidPublication::Length),
        [format, ..] => Err(InvalidPublication::Format(*format)),
    }
}

/// Reads a payload of `network`, checking all of it. Total.
pub fn decode(network: &str, payload: &[u8]) -> Result<SignedPublication, InvalidPublication> {
    SignedPublication::decode(network, signed_bytes(payload)?)
}
