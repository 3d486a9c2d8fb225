//! The payloads of ASK and TOLD: what a node has of a name, and which storing peers it knows of (`SPEC.md`, "Fresh
//! names"). What they are for and why it is enough stands in [`crate::fresh`].

use bytes::Bytes;
use libp2p_identity::PeerId;

use super::{
    sync::{MAX_PAYLOAD_BYTES, put_entries, take_entries},
    turns::TurnError,
};
use crate::{
    catalogue::{MAX_ENTRY_BYTES, MAX_NAME_BYTES},
    fresh::{MAX_MEMBERS, Member},
};

/// A peer id of an ed25519 key, the only ones that publish or join here.
const PEER_BYTES: usize = 38;
/// Peer, seconds, flags.
const MEMBER_BYTES: usize = PEER_BYTES + 4 + 1;

/// Of an ASK: the asker stores.
const STORES: u8 = 1;
/// Of a member: it was complete once.
const COMPLETE: u8 = 1;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ask {
    /// The asker is a storing peer: whoever answers counts it as one from then on.
    pub stores: bool,
    /// Storing peers that the asker knows of, itself left out; at most [`MAX_MEMBERS`].
    pub members: Vec<Member>,
    /// Which entries it wants; `None`: none.
    pub name: Option<AskName>,
}

/// A name that is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AskName {
    /// Whose; `None`: everybody's.
    pub publisher: Option<PeerId>,
    /// 1 to 255 bytes.
    pub name: String,
}

/// What a node says of itself, of others, and of a name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// It is complete ([`crate::fresh`]), counted after the asker's members.
    pub complete: bool,
    /// It has all that it ever published itself.
    pub own: bool,
    /// It is a storing peer.
    pub stores: bool,
    /// Not all entries that were asked for fit: what is told is no answer.
    pub cut: bool,
    /// Storing peers that it knows of, itself left out; at most [`MAX_MEMBERS`].
    pub members: Vec<Member>,
    /// Signed publications, unchecked: what is current, removals too, then earlier versions as far as they fit.
    pub entries: Vec<Bytes>,
}

impl Ask {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(if self.stores { STORES } else { 0 });
        put_members(out, &self.members);
        match &self.name {
            None => out.push(0),
            Some(AskName { publisher: None, name }) => {
                out.push(1);
                put_name(out, name);
            }
            Some(AskName { publisher: Some(publisher), name }) => {
                out.push(2);
                out.extend_from_slice(&publisher.to_bytes());
                put_name(out, name);
            }
        }
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, TurnError> {
        let mut rest = payload;
        let stores = match take(&mut rest, 1)? {
            [0] => false,
            [STORES] => true,
            _ => return Err(TurnError::Malformed("flags that are not known")),
        };
        let members = take_members(&mut rest)?;
        let name = match take(&mut rest, 1)? {
            [0] => None,
            [1] => Some(AskName { publisher: None, name: take_name(&mut rest)? }),
            [2] => {
                let publisher = Some(take_peer(&mut rest)?);
                Some(AskName { publisher, name: take_name(&mut rest)? })
            }
            _ => return Err(TurnError::Malformed("a question that is not known")),
        };
        if rest.is_empty() { Ok(Self { stores, members, name }) } else { Err(TRAILING) }
    }
}

impl Told {
    /// Bytes of a payload that has so many members and no entry.
    pub const fn bytes_before_entries(members: usize) -> usize {
        1 + 2 + members * MEMBER_BYTES
    }

    /// Adds an entry if it still fits into a frame that has `bytes` so far; counts it if so.
    pub fn add(&mut self, bytes: &mut usize, entry: &[u8]) -> bool {
        let fits = entry.len() <= MAX_ENTRY_BYTES && *bytes + 2 + entry.len() <= MAX_PAYLOAD_BYTES;
        if fits {
            *bytes += 2 + entry.len();
            self.entries.push(Bytes::copy_from_slice(entry));
        }
        fits
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let bits = [self.complete, self.own, self.stores, self.cut];
        out.push(bits.iter().enumerate().map(|(bit, set)| u8::from(*set) << bit).sum());
        put_members(out, &self.members);
        put_entries(out, &self.entries);
    }

    pub(super) fn decode(payload: &Bytes) -> Result<Self, TurnError> {
        let mut rest = &payload[..];
        let bits = take(&mut rest, 1)?[0];
        if bits > 0xf {
            return Err(TurnError::Malformed("flags that are not known"));
        }
        let set = |bit: u8| bits & (1 << bit) != 0;
        let members = take_members(&mut rest)?;
        let entries = take_entries(payload.slice(payload.len() - rest.len()..))?;
        Ok(Self { complete: set(0), own: set(1), stores: set(2), cut: set(3), members, entries })
    }
}

const TRAILING: TurnError = TurnError::Malformed("more than was announced");

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], TurnError> {
    let (taken, after) = rest.split_at_checked(bytes).ok_or(TurnError::Malformed("a field that is cut off"))?;
    *rest = after;
    Ok(taken)
}

fn take_peer(rest: &mut &[u8]) -> Result<PeerId, TurnError> {
    let bytes = take(rest, PEER_BYTES)?;
    let peer = PeerId::from_bytes(bytes).ok().filter(|peer| peer.to_bytes() == bytes);
    peer.ok_or(TurnError::Malformed("a peer id that is none"))
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    // `check_name` lets nothing through that is longer than a byte can say.
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

fn take_name(rest: &mut &[u8]) -> Result<String, TurnError> {
    let length = usize::from(take(rest, 1)?[0]);
    let name = std::str::from_utf8(take(rest, length)?).map_err(|_| TurnError::Malformed("a name that is no text"))?;
    if (1..=MAX_NAME_BYTES).contains(&length) {
        Ok(name.to_owned())
    } else {
        Err(TurnError::Malformed("a name of an impossible length"))
    }
}

fn put_members(out: &mut Vec<u8>, members: &[Member]) {
    let members = &members[..members.len().min(MAX_MEMBERS)];
    out.extend_from_slice(&(members.len() as u16).to_be_bytes());
    for member in members {
        out.extend_from_slice(&member.peer.to_bytes());
        out.extend_from_slice(&member.ago_seconds.to_be_bytes());
        out.push(if member.complete { COMPLETE } else { 0 });
    }
}

fn take_members(rest: &mut &[u8]) -> Result<Vec<Member>, TurnError> {
    let count = take(rest, 2)?;
    let count = usize::from(u16::from_be_bytes([count[0], count[1]]));
    if count > MAX_MEMBERS {
        return Err(TurnError::Malformed("more peers than a node counts"));
    }
    // Bounded by the bytes that are there, not by what is announced.
    let bytes = take(rest, count * MEMBER_BYTES)?;
    let member = |mut bytes: &[u8]| {
        let peer = take_peer(&mut bytes)?;
        let ago = take(&mut bytes, 4)?;
        let complete = match bytes {
            [0] => false,
            [COMPLETE] => true,
            _ => return Err(TurnError::Malformed("flags that are not known")),
        };
        Ok(Member { peer, ago_seconds: u32::from_be_bytes([ago[0], ago[1], ago[2], ago[3]]), complete })
    };
    bytes.chunks_exact(MEMBER_BYTES).map(member).collect()
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::wire::{frame::HEADER_BYTES, sync::Frame, turns::Turn as _};

    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id()
    }

    fn member(seed: u8, ago_seconds: u32, complete: bool) -> Member {
        Member { peer: peer(seed), ago_seconds, complete }
    }

    #[test]
    fn asking_and_telling_are_the_specification() {
        let id = |seed| peer(seed).to_bytes();
        let asks = [
            (Ask::default(), vec![0, 0, 0, 0]),
            (
                Ask {
                    stores: true,
                    members: vec![member(1, 258, true)],
                    name: Some(AskName { publisher: None, name: "ab".to_owned() }),
                },
                [&[1, 0, 1][..], &id(1), &[0, 0, 1, 2, 1, 1, 2, b'a', b'b']].concat(),
            ),
            (
                Ask {
                    stores: false,
                    members: vec![],
                    name: Some(AskName { publisher: Some(peer(2)), name: "ä".to_owned() }),
                },
                [&[0, 0, 0, 2][..], &id(2), &[2, 0xc3, 0xa4]].concat(),
            ),
        ];
        for (ask, golden) in asks {
            let frame = Frame::Ask(ask);
            assert_eq!(&frame.encode(7)[HEADER_BYTES..], golden);
            assert_eq!(frame.encode(7)[0], 0x40);
            assert_eq!(Frame::decode(0x40, golden.into()), Ok(frame));
        }
        let told = Told {
            complete: true,
            own: false,
            stores: true,
            cut: false,
            members: vec![member(3, 0, false)],
            entries: vec![Bytes::from_static(b"xyz")],
        };
        let golden = [&[5, 0, 1][..], &id(3), &[0, 0, 0, 0, 0, 0, 3, b'x', b'y', b'z']].concat();
        let frame = Frame::Told(told);
        assert_eq!((frame.encode(7)[0], &frame.encode(7)[HEADER_BYTES..]), (0x41, &golden[..]));
        assert_eq!(Frame::decode(0x41, golden.into()), Ok(frame));
        assert_eq!((Frame::limit(0x40), Frame::limit(0x41)), (Some(65_536), Some(65_536)));
        // One bit each, in this order.
        for (bit, told) in [
            (1, Told { complete: true, ..Told::default() }),
            (2, Told { own: true, ..Told::default() }),
            (4, Told { stores: true, ..Told::default() }),
            (8, Told { cut: true, ..Told::default() }),
        ] {
            assert_eq!(&Frame::Told(told).encode(0)[HEADER_BYTES..], [bit, 0, 0]);
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let id = peer(1).to_bytes();
        let bad = [
            (0x40, vec![]),
            (0x40, vec![2, 0, 0, 0]),
            (0x40, vec![0, 0, 0, 3]),
            (0x40, vec![0, 0, 0, 0, 0]),
            (0x40, vec![0, 0, 0, 1, 0]),
            (0x40, vec![0, 0, 0, 1, 2, b'a']),
            (0x40, vec![0, 0, 0, 1, 1, 0xff]),
            (0x40, [&[0, 0, 1][..], &id, &[0, 0, 0, 0, 2, 0]].concat()),
            (0x40, [&[0, 0, 2][..], &id, &[0, 0, 0, 0, 0, 0]].concat()),
            (0x40, [&[0, 0, 1][..], &[7; 38], &[0, 0, 0, 0, 0, 0]].concat()),
            // More than a node counts, though all of it is there.
            (0x40, [&[0, 4, 1][..], &[&id[..], &[0; 5]].concat().repeat(1025), &[0]].concat()),
            (0x41, vec![16, 0, 0]),
            (0x41, vec![0, 0]),
            (0x41, vec![0, 0, 0, 0]),
        ];
        for (kind, payload) in bad {
            let read = Frame::decode(kind, payload.clone().into());
            assert!(matches!(read, Err(TurnError::Malformed(_))), "{kind:x} {payload:?}: {read:?}");
        }
    }

    #[test]
    fn entries_are_added_as_long_as_they_fit() {
        let mut told = Told { members: vec![member(1, 0, true); MAX_MEMBERS], ..Told::default() };
        let mut bytes = Told::bytes_before_entries(told.members.len());
        while told.add(&mut bytes, &[1; 1500]) {}
        assert!(told.entries.len() > 10 && !told.add(&mut 0, &[1; MAX_ENTRY_BYTES + 1]));
        let encoded = Frame::Told(told.clone()).encode(0);
        assert!(encoded.len() - HEADER_BYTES == bytes && bytes <= MAX_PAYLOAD_BYTES);
        let read = Frame::decode(0x41, Bytes::copy_from_slice(&encoded[HEADER_BYTES..]));
        assert_eq!(read, Ok(Frame::Told(told)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in vec(0..4_u8, 0..120), kind in 0x40_u8..0x42) {
            if let Ok(frame) = Frame::decode(kind, bytes.clone().into()) {
                prop_assert_eq!(&frame.encode(7)[HEADER_BYTES..], bytes);
            }
        }
    }
}
