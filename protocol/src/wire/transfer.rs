//! Moving chunks: the messages of `/p2p-node/<network>/transfer/1`. `SPEC.md`, "Chunk transfer", has the tables.
//!
//! The opener of a stream asks, the acceptor answers; both begin with a [`Greeting`]. A batch of n takes the request
//! ids `request .. request + n` (they wrap), and each is answered by itself, in any order.

use bytes::{BufMut as _, Bytes};

use super::{
    frame::{FrameError, GREETING, GROWING_LIMIT, HEADER_BYTES, Header, UNSUPPORTED},
    version::Hello,
};
use crate::{
    Cid, CidError, Codec, Label, MAX_CHUNK_BYTES, Multihash,
    cid::{CID_BYTES, MULTIHASH_BYTES},
    label::MAX_LABEL_BYTES,
};

/// The most chunks that one [`Message::Want`] asks for: enough that small chunks share a frame, few enough that a
/// server's queue stays short.
pub const MAX_WANTS: usize = 256;
/// The most chunks that one [`Message::Have`] asks about.
pub const MAX_HAVES: usize = 1024;
/// The most chunks that one [`Message::Offer`] offers.
pub const MAX_OFFERS: usize = 256;
/// The most chunks that one [`Message::Renew`] is about: a page of what an add has sent.
pub const MAX_RENEWALS: usize = 1024;
/// The most bytes of a reason in [`Message::Refused`].
pub const MAX_REASON_BYTES: usize = 256;

const GREET: u8 = 0x02;
const WANT: u8 = 0x10;
const CHUNK: u8 = 0x11;
const MISSING: u8 = 0x12;
const HAVE: u8 = 0x20;
const HOLDINGS: u8 = 0x21;
const OFFER: u8 = 0x30;
const PUT: u8 = 0x31;
const KEPT: u8 = 0x32;
const SEND: u8 = 0x33;
const NO_SPACE: u8 = 0x34;
const REFUSED: u8 = 0x35;
const RENEW: u8 = 0x36;
const RENEWED: u8 = 0x37;

/// Of these, three say nothing yet.
const HELD_BYTES: usize = 8;
const OFFER_BYTES: usize = CID_BYTES + 4;

const FLAG_STORING: u8 = 1;
const FLAG_FULL: u8 = 2;
const FLAG_LEAVING: u8 = 4;

/// What a peer says of itself when a session begins, and again when it changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// What it speaks.
    pub hello: Hello,
    /// Whether it takes chunks.
    pub storing: bool,
    /// It has no room: over 95 % of its capacity were used, and have not been under 85 % since.
    pub full: bool,
    /// It hands over what it holds, to be switched off for good: what it has is to be had, and not to be counted on.
    pub leaving: bool,
    /// The most that it keeps.
    pub capacity_bytes: u64,
    /// What it still has room for.
    pub free_bytes: u64,
    /// What people call it.
    pub label: Label,
}

/// A chunk that a peer is asked to keep, before its bytes are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The chunk.
    pub cid: Cid,
    /// Its bytes, at most 2 MiB.
    pub length: u32,
}

/// A chunk that the answering peer holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its bytes, at most 2 MiB.
    pub length: u32,
}

/// A message of either side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// The first frame of both sides (request 0); later the answer to [`Greet`](Self::Greet), and what the opener says
    /// unasked when it changes, which has no answer.
    Greeting(Greeting),
    /// Asks for a fresh greeting.
    Greet,
    /// Asks for chunks, 1 to [`MAX_WANTS`]; each is answered by `Chunk` or `Missing`.
    Want(Vec<Multihash>),
    /// The bytes of one.
    Chunk(Bytes),
    /// It is not here.
    Missing,
    /// Asks what is held of these, 1 to [`MAX_HAVES`]; one answer, `Holdings`.
    Have(Vec<Multihash>),
    /// As many as were asked about, in that order.
    Holdings(Vec<Option<Held>>),
    /// Offers chunks, 1 to [`MAX_OFFERS`]; each is answered by `Kept`, `Send`, `NoSpace` or `Refused`.
    Offer(Vec<Offer>),
    /// Hands over a chunk; answered by `Kept`, `NoSpace` or `Refused`.
    Put(Cid, Bytes),
    /// It is on disk.
    Kept,
    /// It is not here: send it.
    Send,
    /// There is no room for it.
    NoSpace,
    /// It is not taken, for this reason.
    Refused(String),
    /// Asks for these, 1 to [`MAX_RENEWALS`], to be kept as if they had been put now; one answer, `Renewed`.
    Renew(Vec<Multihash>),
    /// As many as were asked about, in that order: whether it is here, and was noted on disk.
    Renewed(Vec<bool>),
    /// The frame that began with this request is not understood, and all of it not done.
    Unsupported,
}

/// The most bytes that a frame of `kind` may have; `None`: it is not known here.
pub const fn limit(kind: u8) -> Option<u32> {
    let bytes = match kind {
        GREETING | UNSUPPORTED => GROWING_LIMIT as usize,
        GREET | MISSING | KEPT | SEND | NO_SPACE => 0,
        WANT => MAX_WANTS * MULTIHASH_BYTES,
        CHUNK => MAX_CHUNK_BYTES,
        HAVE => MAX_HAVES * MULTIHASH_BYTES,
        HOLDINGS => MAX_HAVES * HELD_BYTES,
        OFFER => MAX_OFFERS * OFFER_BYTES,
        PUT => CID_BYTES + MAX_CHUNK_BYTES,
        REFUSED => MAX_REASON_BYTES,
        RENEW => MAX_RENEWALS * MULTIHASH_BYTES,
        RENEWED => MAX_RENEWALS,
        _ => return None,
    };
    // Every limit above is a few MiB.
    Some(bytes as u32)
}

/// Whether a frame of `kind` carries a chunk's bytes.
pub const fn carries_chunk(kind: u8) -> bool {
    matches!(kind, CHUNK | PUT)
}

/// Whether the opener of a stream may send a frame of `kind` after its greeting.
pub const fn is_request(kind: u8) -> bool {
    matches!(kind, GREETING | GREET | WANT | HAVE | OFFER | PUT | RENEW)
}

/// Whether the acceptor of a stream may send a frame of `kind`.
pub const fn is_answer(kind: u8) -> bool {
    matches!(kind, GREETING | CHUNK | MISSING | HOLDINGS | KEPT | SEND | NO_SPACE | REFUSED | RENEWED | UNSUPPORTED)
}

impl Message {
    /// Its kind.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Greeting(_) => GREETING,
            Self::Greet => GREET,
            Self::Want(_) => WANT,
            Self::Chunk(_) => CHUNK,
            Self::Missing => MISSING,
            Self::Have(_) => HAVE,
            Self::Holdings(_) => HOLDINGS,
            Self::Offer(_) => OFFER,
            Self::Put(..) => PUT,
            Self::Kept => KEPT,
            Self::Send => SEND,
            Self::NoSpace => NO_SPACE,
            Self::Refused(_) => REFUSED,
            Self::Renew(_) => RENEW,
            Self::Renewed(_) => RENEWED,
            Self::Unsupported => UNSUPPORTED,
        }
    }

    /// Appends the frame to `out`, all but a chunk's bytes, which it returns to be written after it uncopied.
    pub fn encode(&self, request: u32, out: &mut Vec<u8>) -> Bytes {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        let mut payload = Bytes::new();
        match self {
            Self::Greeting(greeting) => {
                greeting.hello.encode(out);
                let flag = |set: bool, flag: u8| if set { flag } else { 0 };
                let (full, leaving) = (flag(greeting.full, FLAG_FULL), flag(greeting.leaving, FLAG_LEAVING));
                out.put_u8(flag(greeting.storing, FLAG_STORING) | full | leaving);
                out.put_u64(greeting.capacity_bytes);
                out.put_u64(greeting.free_bytes);
                // A label has 64 bytes at the most.
                out.put_u8(greeting.label.as_str().len() as u8);
                out.extend_from_slice(greeting.label.as_str().as_bytes());
            }
            Self::Greet | Self::Missing | Self::Kept | Self::Send | Self::NoSpace | Self::Unsupported => {}
            Self::Want(hashes) | Self::Have(hashes) | Self::Renew(hashes) => {
                hashes.iter().for_each(|hash| out.extend_from_slice(&hash.to_bytes()));
            }
            Self::Chunk(bytes) => payload = bytes.clone(),
            Self::Holdings(holdings) => holdings.iter().for_each(|held| encode_held(*held, out)),
            Self::Offer(offers) => {
                for offer in offers {
                    out.extend_from_slice(&offer.cid.to_bytes());
                    out.put_u32(offer.length);
                }
            }
            Self::Put(cid, bytes) => {
                out.extend_from_slice(&cid.to_bytes());
                payload = bytes.clone();
            }
            Self::Renewed(renewed) => out.extend(renewed.iter().map(|renewed| u8::from(*renewed))),
            Self::Refused(reason) => out.extend_from_slice(shortened(reason, MAX_REASON_BYTES).as_bytes()),
        }
        let length = out.len() - start - HEADER_BYTES + payload.len();
        // Whoever builds a message keeps to the limits above, far under 4 GiB; one that does not is refused by its receiver.
        let header = Header { kind: self.kind(), request, length: u32::try_from(length).unwrap_or(u32::MAX) };
        out[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
        payload
    }

    /// Reads the bytes of a frame of `kind`. A chunk's bytes are a slice of `body`, not a copy, and not yet verified.
    pub fn decode(kind: u8, body: Bytes) -> Result<Self, WireError> {
        let most = limit(kind).ok_or(WireError::Unsupported { what: "frame kind", value: kind })?;
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        if length > most {
            return Err(FrameError::TooLong { kind, length, limit: most }.into());
        }
        Ok(match kind {
            GREETING => Self::Greeting(decode_greeting(&body)?),
            GREET => Self::Greet,
            WANT => Self::Want(decode_hashes(&body)?),
            CHUNK => Self::Chunk(body),
            MISSING => Self::Missing,
            HAVE => Self::Have(decode_hashes(&body)?),
            HOLDINGS => Self::Holdings(decode_holdings(&body)?),
            OFFER => Self::Offer(decode_offers(&body)?),
            PUT => decode_put(body)?,
            KEPT => Self::Kept,
            SEND => Self::Send,
            NO_SPACE => Self::NoSpace,
            REFUSED => Self::Refused(decode_reason(&body)),
            RENEW => Self::Renew(decode_hashes(&body)?),
            RENEWED => Self::Renewed(decode_renewed(&body)?),
            UNSUPPORTED => Self::Unsupported,
            kind => return Err(WireError::Unsupported { what: "frame kind", value: kind }),
        })
    }
}

fn encode_held(held: Option<Held>, out: &mut Vec<u8>) {
    match held {
        None => out.extend_from_slice(&[0; HELD_BYTES]),
        Some(held) => {
            out.extend_from_slice(&[1, 0, 0, 0]);
            out.put_u32(held.length);
        }
    }
}

fn decode_greeting(mut rest: &[u8]) -> Result<Greeting, WireError> {
    let hello = Hello::decode(take(&mut rest)?).ok_or(WireError::Value { field: "version", value: 0 })?;
    let [flags] = take(&mut rest)?;
    let capacity_bytes = u64::from_be_bytes(take(&mut rest)?);
    let free_bytes = u64::from_be_bytes(take(&mut rest)?);
    // One that ends here has no label. What people are shown is made fit to be, whatever was sent.
    let label = match rest.split_first() {
        None => Label::default(),
        Some((length, rest)) if usize::from(*length) <= MAX_LABEL_BYTES => {
            let bytes = rest.get(..usize::from(*length)).ok_or(WireError::Truncated)?;
            Label::new(&String::from_utf8_lossy(bytes))
        }
        Some((length, _)) => return Err(WireError::Value { field: "label length", value: u32::from(*length) }),
    };
    let is = |flag: u8| flags & flag != 0;
    let (storing, full, leaving) = (is(FLAG_STORING), is(FLAG_FULL), is(FLAG_LEAVING));
    Ok(Greeting { hello, storing, full, leaving, capacity_bytes, free_bytes, label })
}

fn decode_hashes(body: &[u8]) -> Result<Vec<Multihash>, WireError> {
    if body.is_empty() {
        return Err(WireError::Empty);
    }
    let (hashes, rest) = body.as_chunks::<MULTIHASH_BYTES>();
    if !rest.is_empty() {
        return Err(WireError::Truncated);
    }
    hashes.iter().map(|hash| Multihash::from_bytes(hash).map_err(WireError::Address)).collect()
}

fn decode_holdings(body: &[u8]) -> Result<Vec<Option<Held>>, WireError> {
    let (rows, rest) = body.as_chunks::<HELD_BYTES>();
    if !rest.is_empty() {
        return Err(WireError::Truncated);
    }
    rows.iter()
        .map(|&[state, _, _, _, a, b, c, d]| match state {
            0 => Ok(None),
            1 => Ok(Some(Held { length: check_length(u32::from_be_bytes([a, b, c, d]))? })),
            other => Err(WireError::Value { field: "holding", value: u32::from(other) }),
        })
        .collect()
}

fn decode_renewed(body: &[u8]) -> Result<Vec<bool>, WireError> {
    let state = |byte: &u8| match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(WireError::Value { field: "renewal", value: u32::from(*other) }),
    };
    body.iter().map(state).collect()
}

fn decode_offers(body: &[u8]) -> Result<Vec<Offer>, WireError> {
    if body.is_empty() {
        return Err(WireError::Empty);
    }
    let (offers, rest) = body.as_chunks::<OFFER_BYTES>();
    if !rest.is_empty() {
        return Err(WireError::Truncated);
    }
    let offer = |mut bytes: &[u8]| {
        let cid = take_cid(&mut bytes)?;
        Ok(Offer { cid, length: check_length(u32::from_be_bytes(take(&mut bytes)?))? })
    };
    offers.iter().map(|bytes| offer(bytes)).collect()
}

fn decode_put(mut body: Bytes) -> Result<Message, WireError> {
    let mut rest = &body[..];
    let cid = take_cid(&mut rest)?;
    // The limit of the frame bounds it.
    let payload = body.split_off(body.len() - rest.len());
    Ok(Message::Put(cid, payload))
}

/// What a peer gives as a reason is shown to people: without control characters, whatever it sent.
fn decode_reason(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
    *rest = tail;
    Ok(*head)
}

/// Exactly the 36 bytes of a CIDv1 as [`Cid::to_bytes`] writes them: one address has one form on the wire.
fn take_cid(rest: &mut &[u8]) -> Result<Cid, WireError> {
    let [version, codec, hash @ ..] = take::<CID_BYTES>(rest)?;
    if version != 1 {
        return Err(WireError::Address(CidError::Malformed));
    }
    let code = u64::from(codec);
    let codec = Codec::from_code(code).ok_or(WireError::Address(CidError::Codec(code)))?;
    Ok(Cid { codec, hash: Multihash::from_bytes(&hash).map_err(WireError::Address)? })
}

fn check_length(length: u32) -> Result<u32, WireError> {
    if usize::try_from(length).is_ok_and(|length| length <= MAX_CHUNK_BYTES) {
        Ok(length)
    } else {
        Err(WireError::Value { field: "chunk length", value: length })
    }
}

fn shortened(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Why bytes are no message; all but [`Unsupported`](Self::Unsupported) is the sender's fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// The header.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It ends in the middle of a field, or has bytes left over.
    #[error("a message is cut short")]
    Truncated,
    /// A batch of none.
    #[error("a batch has no entries")]
    Empty,
    /// A field has a value that it cannot have.
    #[error("{field} cannot be {value}")]
    Value {
        /// Which.
        field: &'static str,
        /// What it was.
        value: u32,
    },
    /// An address that is not stored here.
    #[error("an address is wrong: {0}")]
    Address(CidError),
    /// A kind that is not known here: nobody's fault, and answered by [`Message::Unsupported`].
    #[error("{what} 0x{value:02x} is not known here")]
    Unsupported {
        /// Of what.
        what: &'static str,
        /// Which.
        value: u8,
    },
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
