//! Placement computed a second time, from the specification alone, and what nodes really hold.
//!
//! Nothing here uses the code under test: base32 (RFC 4648, multibase `b`), base58btc, CIDv1, SHA-256 and XOR are
//! written out, so that a mistake in the product cannot hide itself.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Daemon;

/// The bytes of a multibase base32 text.
///
/// # Panics
/// If it is none.
pub fn base32(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix('b').expect("CIDs are written in base32");
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'a'..=b'z' => digit - b'a',
            b'2'..=b'7' => digit - b'2' + 26,
            _ => panic!("{text} is not base32"),
        };
        bits = (bits << 5) | u32::from(value);
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes
}

/// The bytes of a base58btc text.
///
/// # Panics
/// If it is none.
pub fn base58(text: &str) -> Vec<u8> {
    const DIGITS: &str = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let mut bytes: Vec<u8> = Vec::new();
    for digit in text.chars() {
        let mut carry = DIGITS.find(digit).unwrap_or_else(|| panic!("{text} is not base58"));
        for byte in &mut bytes {
            carry += usize::from(*byte) * 58;
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        while carry > 0 {
            bytes.push((carry & 0xff) as u8);
            carry >>= 8;
        }
    }
    bytes.extend(text.chars().take_while(|digit| *digit == '1').map(|_| 0));
    bytes.reverse();
    bytes
}

/// The `count` of `peers` nearest to the chunk `cid`, sorted by name.
///
/// # Panics
/// If `cid` is not a CIDv1 of a codec of one byte.
pub fn closest<'a>(cid: &str, peers: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let bytes = base32(cid);
    assert_eq!(bytes[0], 1, "{cid} is not a CIDv1");
    let key = Sha256::digest(&bytes[2..]);
    let mut ranked: Vec<_> = peers
        .into_iter()
        .map(|peer| {
            let place = Sha256::digest(base58(peer));
            let distance: Vec<u8> = key.iter().zip(place.iter()).map(|(a, b)| a ^ b).collect();
            (distance, peer)
        })
        .collect();
    ranked.sort();
    let mut nearest: Vec<_> = ranked.into_iter().take(count).map(|(_, peer)| peer).collect();
    nearest.sort_unstable();
    nearest
}

/// What a node's own store holds: role (`replica` or `cache`) by chunk.
#[track_caller]
pub fn held(node: &Daemon) -> BTreeMap<String, String> {
    let lines = node.json_lines(["stat", "--local"]);
    lines.iter().map(|line| (field(line, "cid"), field(line, "role"))).collect()
}

/// The chunks of a DAG, as `stat` lists them.
#[track_caller]
pub fn chunks(node: &Daemon, reference: &str) -> Vec<String> {
    let stat = node.json(["stat", reference]);
    let placement = stat["placement"].as_array().unwrap_or_else(|| panic!("no placement in {stat}"));
    placement.iter().map(|row| field(row, "cid")).collect()
}

/// Where the replicas of `chunks` differ from the `copies` nodes closest to them; empty when all is right.
#[track_caller]
pub fn misplaced(nodes: &[Daemon], chunks: &[String], copies: usize) -> Vec<String> {
    let stores: Vec<_> = nodes.iter().map(|node| (node.peer_id(), held(node))).collect();
    let mut wrong = Vec::new();
    for cid in chunks {
        let wanted = closest(cid, nodes.iter().map(Daemon::peer_id), copies);
        let mut found: Vec<_> = stores
            .iter()
            .filter(|(_, store)| store.get(cid).is_some_and(|role| role == "replica"))
            .map(|(peer, _)| *peer)
            .collect();
        found.sort_unstable();
        if found != wanted {
            wrong.push(format!("{cid} belongs to {wanted:?} and is a replica on {found:?}"));
        }
    }
    wrong
}

fn field(line: &Value, name: &str) -> String {
    line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_alphabets_give_known_bytes() {
        // RFC 4648, section 10: "foobar".
        assert_eq!(base32("bmzxw6ytboi"), b"foobar");
        // draft-msporny-base58, test vectors.
        assert_eq!(base58("2NEpo7TZRRrLZSi2U"), b"Hello World!");
        assert_eq!(base58("111233QC4"), [0, 0, 0, 0x28, 0x7f, 0xb4, 0xcd]);
    }
}
