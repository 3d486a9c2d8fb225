//! The catalogue's records in the store's log (`protocol/SPEC.md`, "On disk"): one for each publication that stands.

use bytes::Bytes;
use p2p_protocol::catalogue::{Publication, VersionKey};

use super::Event;

/// What the keys of publications' records begin with; then come the entry's place and the version.
pub(super) const PREFIX: &[u8] = b"publication/";
/// The record of the last position that was given, where no publication that stands may have it.
pub(super) const POSITION: &[u8] = b"catalogue/position";
/// Position, event and network.
const HEAD_BYTES: usize = 8 + 1 + 8;

/// What a record says of the network that its publication was signed for: the first bytes of the BLAKE3 hash of its name.
pub(super) type NetworkTag = [u8; 8];

/// See [`NetworkTag`].
pub(super) fn network_tag(name: &str) -> NetworkTag {
    let mut tag = NetworkTag::default();
    tag.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
    tag
}

/// The record's key of one version: its bytes sort by entry and then by version.
pub(super) fn key(VersionKey { place, version }: &VersionKey) -> Bytes {
    [PREFIX, place, &version.to_be_bytes()].concat().into()
}

/// Whether a record's key is that of `publication`.
pub(super) fn is_key_of(record: &[u8], publication: &Publication) -> bool {
    record == key(&publication.version_key())
}

/// What a record's value says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Value {
    /// Which of this node's changes it was, from 1.
    pub(super) position: u64,
    /// How the change is told; `None`: it is not, because something later was current.
    pub(super) event: Option<Event>,
    /// In which network it stands: a data directory may have been used in another one.
    pub(super) network: NetworkTag,
    /// The publication, which was checked for that network before it was written.
    pub(super) signed_bytes: Bytes,
}

impl Value {
    pub(super) fn encode(&self) -> Bytes {
        let event = match self.event {
            None => 0,
            Some(Event::Added) => 1,
            Some(Event::Updated) => 2,
            Some(Event::Removed) => 3,
        };
        [&self.position.to_be_bytes()[..], &[event], &self.network, &self.signed_bytes].concat().into()
    }

    pub(super) fn decode(value: &Bytes) -> Option<Self> {
        let (position, rest) = value.split_first_chunk()?;
        let (event, rest) = rest.split_first()?;
        let (network, _) = rest.split_first_chunk()?;
        let event = match event {
            0 => None,
            1 => Some(Event::Added),
            2 => Some(Event::Updated),
            3 => Some(Event::Removed),
            _ => return None,
        };
        Some(Self {
            position: u64::from_be_bytes(*position),
            event,
            network: *network,
            signed_bytes: value.slice(HEAD_BYTES..),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_specification() {
        for (event, code) in [(None, 0), (Some(Event::Added), 1), (Some(Event::Updated), 2), (Some(Event::Removed), 3)]
        {
            let network = network_tag("main");
            let value = Value { position: 258, event, network, signed_bytes: Bytes::from_static(b"signed") };
            let tag = [0xe7, 0x26, 0x31, 0x8b, 0xbc, 0x3f, 0xd7, 0x5a];
            let bytes = Bytes::from([&[0, 0, 0, 0, 0, 0, 1, 2, code][..], &tag, b"signed"].concat());
            assert_eq!(value.encode(), bytes);
            assert_eq!(Value::decode(&bytes), Some(value));
        }
        for bad in [&[][..], &[0; 8], &[0; 16], &[4; 20]] {
            assert_eq!(Value::decode(&Bytes::from_static(bad)), None);
        }
    }
}
