//! The keyspace that peers and chunks share: libp2p Kademlia's (Maymounkov and Mazières, 2002; libp2p kad-dht spec).

use std::fmt;

use libp2p_identity::PeerId;
use sha2::{Digest as _, Sha256};

use crate::cid::Multihash;

/// A point of the keyspace: SHA-256 of a multihash's or a peer id's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// Where something with these bytes lies: SHA-256 of them.
    pub fn of(preimage: &[u8]) -> Self {
        Self(Sha256::digest(preimage).into())
    }

    /// The XOR distance to `other`.
    pub fn distance(&self, other: &Self) -> Distance {
        let mut out = [0; 32];
        for (out, (a, b)) in out.iter_mut().zip(self.0.iter().zip(&other.0)) {
            *out = a ^ b;
        }
        Distance(out)
    }

    /// Whether bit `at` is set, bit 0 being the most significant; there are none from 256 on.
    pub fn bit(&self, at: u32) -> bool {
        self.0.get(at as usize / 8).is_some_and(|byte| byte & (0x80 >> (at % 8)) != 0)
    }

    /// How many leading bits it shares with `other`, 0 to 256.
    pub fn common_prefix_bits(&self, other: &Self) -> u32 {
        let mut bits = 0;
        for byte in self.distance(other).0 {
            bits += byte.leading_zeros();
            if byte != 0 {
                break;
            }
        }
        bits
    }
}

impl From<&Multihash> for Key {
    fn from(hash: &Multihash) -> Self {
        Self::of(&hash.to_bytes())
    }
}

impl From<&PeerId> for Key {
    fn from(peer: &PeerId) -> Self {
        Self::of(&peer.to_bytes())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How far two keys are apart: their XOR, ordered as a big-endian number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Distance(pub [u8; 32]);
