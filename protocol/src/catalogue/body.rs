//! The body of a publication: its bytes, and what is valid in it (`SPEC.md`, "Publications").
//!
//! The encoding is canonical: one publication has one body, so that equal content has equal bytes everywhere. How the
//! chunks are listed follows from their number.

use libp2p_identity::PeerId;

use super::{InvalidPublication, Kind, MAX_REPLICAS, MIN_REPLICAS, Publication, check_label, check_name};
use crate::{
    Cid, Codec, HashCode, Key,
    cid::CID_BYTES,
    manifest::{self, ENTRY_BYTES, Entry, LEAF_ENTRIES, Listing, MAX_INLINE_ENTRIES},
};

/// The first byte of a body: this format.
pub const FORMAT_VERSION: u8 = 2;
/// The latest time that a publication may carry, 9999-12-30T22:00:00Z: the last that RFC 3339 and the time
/// libraries behind it can write in every time zone.
pub const MAX_TIME_MILLISECONDS: u64 = 253_402_207_200_000;
/// The most content bytes that a publication may claim: sums of a few of them stay below 2^64, and signed 64-bit
/// readers understand each.
pub const MAX_SIZE_BYTES: u64 = i64::MAX as u64;
/// The most distinct chunks that a publication may claim: what a manifest may list.
pub const MAX_CHUNKS: u64 = manifest::MAX_ENTRIES;
/// The most bytes of the extension area: a dozen addresses, and a full catalogue of the longest still takes about
/// 100 MiB (a guess at what will be wanted).
pub const MAX_EXTENSION_BYTES: usize = 512;
/// The longest body without name, label and extension: what has one length, and a full list of chunks.
pub(super) const LONGEST_FIXED_BYTES: usize = FIXED_BYTES + MAX_INLINE_ENTRIES * ENTRY_BYTES;

/// An ed25519 peer id: the identity multihash of the protobuf of the public key, which therefore is inside it.
const PEER_BYTES: usize = 38;
const PEER_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
const REMOVED: u8 = 1;
/// Format, flags, kind, copies, publisher, root, and size, version, floor, time and chunks.
const FIXED_BYTES: usize = 4 + PEER_BYTES + CID_BYTES + 5 * 8;

/// The 32 bytes of the public key inside an ed25519 peer id.
pub(crate) fn public_key_bytes(peer: &PeerId) -> Result<[u8; 32], InvalidPublication> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&PEER_PREFIX).ok_or(InvalidPublication::Publisher)?;
    key.try_into().map_err(|_| InvalidPublication::Publisher)
}

/// Whether a publication can be signed, and is valid where it was.
pub(super) fn check(publication: &Publication) -> Result<(), InvalidPublication> {
    if let Some(name) = &publication.name {
        check_name(name).map_err(InvalidPublication::Name)?;
    }
    check_label(&publication.label).map_err(InvalidPublication::Label)?;
    if !(MIN_REPLICAS..=MAX_REPLICAS).contains(&publication.replicas) {
        return Err(InvalidPublication::Replicas(publication.replicas));
    }
    let (version, floor) = (publication.version, publication.floor);
    if version == 0 {
        return Err(InvalidPublication::Version);
    }
    let floors = if publication.removed { version..=version } else { 1..=version };
    if !floors.contains(&floor) {
        return Err(InvalidPublication::Floor { floor, version });
    }
    if publication.size > MAX_SIZE_BYTES {
        return Err(InvalidPublication::Size(publication.size));
    }
    if publication.time_milliseconds > MAX_TIME_MILLISECONDS {
        return Err(InvalidPublication::Time(publication.time_milliseconds));
    }
    check_listing(publication)
}

fn check_listing(publication: &Publication) -> Result<(), InvalidPublication> {
    let chunks = publication.chunks;
    if !(1..=MAX_CHUNKS).contains(&chunks) {
        return Err(InvalidPublication::Chunks(chunks));
    }
    let wrong = |what| Err(InvalidPublication::Listing(what));
    match &publication.listing {
        Listing::Inline(entries) => {
            if chunks > MAX_INLINE_ENTRIES as u64 || entries.len() as u64 != chunks {
                return wrong("their number is another");
            }
            if entries.iter().any(|entry| Entry::from_bytes(&entry.to_bytes()) != Some(*entry)) {
                return wrong("one of them is too long");
            }
            let keys: Vec<Key> = entries.iter().map(Entry::key).collect();
            if !keys.is_sorted_by(|a, b| a < b) {
                return wrong("they are not in order");
            }
            // A chunk is one whatever the codec of the addresses that lead to it.
            if entries.iter().all(|entry| entry.cid.hash != publication.root.hash) {
                return wrong("the root is not among them");
            }
        }
        Listing::Manifest(manifest) => {
            if chunks <= MAX_INLINE_ENTRIES as u64 {
                return wrong("so few stand in the publication itself");
            }
            // A manifest of one leaf is that leaf.
            let codec = if chunks <= LEAF_ENTRIES as u64 { Codec::Raw } else { Codec::DagPb };
            if (manifest.codec, manifest.hash.code) != (codec, HashCode::Blake3) {
                return wrong("a manifest of so many has another kind of address");
            }
        }
    }
    Ok(())
}

/// The body, with `spare` bytes of room behind it. The publication is one that [`check`] passed.
pub(super) fn encode(publication: &Publication, extension: &[u8], spare: usize) -> Result<Vec<u8>, InvalidPublication> {
    let extension_bytes = u16::try_from(extension.len()).map_err(|_| InvalidPublication::Length)?;
    if extension.len() > MAX_EXTENSION_BYTES {
        return Err(InvalidPublication::Length);
    }
    let name = publication.name.as_deref().unwrap_or("");
    let texts = 2 + name.len() + publication.label.len();
    let mut body = Vec::with_capacity(LONGEST_FIXED_BYTES + texts + 2 + extension.len() + spare);
    body.extend_from_slice(&[
        FORMAT_VERSION,
        if publication.removed { REMOVED } else { 0 },
        publication.kind.code(),
        publication.replicas,
    ]);
    body.extend_from_slice(&PEER_PREFIX);
    body.extend_from_slice(&public_key_bytes(&publication.publisher)?);
    body.extend_from_slice(&publication.root.to_bytes());
    for number in
        [publication.size, publication.version, publication.floor, publication.time_milliseconds, publication.chunks]
    {
        body.extend_from_slice(&number.to_be_bytes());
    }
    match &publication.listing {
        Listing::Inline(entries) => entries.iter().for_each(|entry| body.extend_from_slice(&entry.to_bytes())),
        Listing::Manifest(manifest) => body.extend_from_slice(&manifest.to_bytes()),
    }
    for text in [name, &publication.label] {
        // `check` keeps both within 255 bytes; an empty name is none.
        body.push(text.len() as u8);
        body.extend_from_slice(text.as_bytes());
    }
    body.extend_from_slice(&extension_bytes.to_be_bytes());
    body.extend_from_slice(extension);
    Ok(body)
}

/// Tells what is not known here from what is wrong, by its first bytes alone: it may be longer or shorter than any body
/// of this format.
pub(super) fn check_known(body: &[u8]) -> Result<(), InvalidPublication> {
    match *body {
        [FORMAT_VERSION, flags, ..] if flags & !REMOVED != 0 => Err(InvalidPublication::Flags(flags)),
        [FORMAT_VERSION, _, _, redundancy, ..] if !(MIN_REPLICAS..=MAX_REPLICAS).contains(&redundancy) => {
            Err(InvalidPublication::Replicas(redundancy))
        }
        [FORMAT_VERSION, ..] | [] => Ok(()),
        [format, ..] => Err(InvalidPublication::Format(format)),
    }
}

/// What a body says whose format and flags are known, and its extension area. What it says is not [checked](check).
pub(super) fn decode(body: &[u8]) -> Result<(Publication, &[u8]), InvalidPublication> {
    let rest = &mut &*body;
    let [_version, flags, kind, replicas] = take(rest)?;
    let kind = Kind::from_code(kind).ok_or(InvalidPublication::Kind(kind))?;
    let publisher: [u8; PEER_BYTES] = take(rest)?;
    if !publisher.starts_with(&PEER_PREFIX) {
        return Err(InvalidPublication::Publisher);
    }
    let publisher = PeerId::from_bytes(&publisher).map_err(|_| InvalidPublication::Publisher)?;
    let root = take_cid(rest).ok_or(InvalidPublication::Root)?;
    let mut numbers = [0; 5];
    for number in &mut numbers {
        *number = u64::from_be_bytes(take(rest)?);
    }
    let [size, version, floor, time_milliseconds, chunks] = numbers;
    let listing = take_listing(rest, chunks)?;
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
        listing,
        chunks,
        version,
        floor,
        time_milliseconds,
        removed: flags & REMOVED != 0,
    };
    Ok((publication, extension))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], InvalidPublication> {
    let (head, tail) = rest.split_first_chunk().ok_or(InvalidPublication::Length)?;
    *rest = tail;
    Ok(*head)
}

/// An address in the one form that is written.
fn take_cid(rest: &mut &[u8]) -> Option<Cid> {
    let bytes: [u8; CID_BYTES] = take(rest).ok()?;
    Cid::from_bytes(&bytes).ok().filter(|cid| cid.to_bytes() == bytes)
}

fn take_listing(rest: &mut &[u8], chunks: u64) -> Result<Listing, InvalidPublication> {
    if chunks > MAX_INLINE_ENTRIES as u64 {
        let manifest = take_cid(rest).ok_or(InvalidPublication::Listing("the manifest has no address"))?;
        return Ok(Listing::Manifest(manifest));
    }
    let entries = (0..chunks).map(|_| {
        Entry::from_bytes(&take(rest)?).ok_or(InvalidPublication::Listing("one of them is no entry of a manifest"))
    });
    Ok(Listing::Inline(entries.collect::<Result<_, _>>()?))
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, InvalidPublication> {
    let [length] = take(rest)?;
    let (text, tail) = rest.split_at_checked(usize::from(length)).ok_or(InvalidPublication::Length)?;
    *rest = tail;
    std::str::from_utf8(text).map_err(|_| InvalidPublication::Text)
}
