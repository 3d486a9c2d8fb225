//! What discovery is told, and what it has its driver do.

use std::time::Duration;

#[cfg(doc)]
use super::MAX_ADDRESSES;
use crate::PeerId;

/// How a peer came to be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Multicast on the local network.
    Mdns,
    /// A lookup or another peer's routing table.
    Kademlia,
    /// `--bootstrap`, or remembered from an earlier run.
    Bootstrap,
    /// It dialled this node.
    Incoming,
    /// `connect`.
    Manual,
}

/// Times and sizes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Up to so many known peers, every one of them is connected; beyond, the nearest.
    pub full_mesh: usize,
    /// How long the first look around by multicast takes; `None`: there is no multicast.
    pub mdns_first: Option<Duration>,
    /// The longest that the first round may take.
    pub first_round: Duration,
    /// The first wait before a peer that dropped is dialled again; it doubles up to `redial_most`.
    pub redial_least: Duration,
    /// The longest wait between two attempts at a peer that answered once, or at a bootstrap address.
    pub redial_most: Duration,
}

/// The name of an attempt to reach somebody, never used twice.
pub type AttemptId = u64;

/// Why an attempt brought no connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The peer is connected, or being dialled, for somebody else.
    Busy,
    /// It could not begin.
    Refused,
    /// The address is this node's own.
    OwnAddress,
    /// Nobody answered, or another than the one who was meant.
    Unreachable,
}

/// What happened outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input<A> {
    /// Somebody named a peer and where it is.
    Learnt {
        /// The peer.
        peer: PeerId,
        /// Where it can be dialled.
        addresses: Vec<A>,
        /// Who named it.
        source: Source,
    },
    /// An attempt brought a connection. [`Input::Connected`], [`Input::Foreign`] or [`Input::Lost`] follows, unless the
    /// peer is connected already.
    Established {
        /// The attempt, which is over.
        attempt: AttemptId,
        /// Who answered.
        peer: PeerId,
    },
    /// An attempt brought none.
    Failed {
        /// The attempt, which is over.
        attempt: AttemptId,
        /// Why.
        why: Failure,
    },
    /// Another peer answers at an address of `peer`'s.
    WrongAddress {
        /// The peer that was meant.
        peer: PeerId,
        /// Not its address any more.
        address: A,
    },
    /// A peer is connected and of this network; whoever dialled.
    Connected {
        /// The peer.
        peer: PeerId,
        /// Where it says that it can be dialled; may be empty.
        addresses: Vec<A>,
        /// How it was found.
        source: Source,
    },
    /// The last connection of a peer is gone.
    Lost {
        /// The peer.
        peer: PeerId,
    },
    /// A peer is of another network: it is forgotten, and left alone for a while. One that the user named as a
    /// bootstrap peer is tried again.
    Foreign {
        /// The peer.
        peer: PeerId,
    },
    /// A peer broke the rules: it is forgotten, and not dialled for so long.
    Banned {
        /// The peer.
        peer: PeerId,
        /// From now on.
        lasts: Duration,
    },
    /// The lookup of one target of [`Output::LookAround`] is over.
    Looked,
}

/// What the driver is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output<A> {
    /// Dial a peer; [`Input::Established`] or [`Input::Failed`] is the answer.
    DialPeer {
        /// The attempt.
        attempt: AttemptId,
        /// The peer.
        peer: PeerId,
        /// Where it may be, at most [`MAX_ADDRESSES`].
        addresses: Vec<A>,
    },
    /// Dial an address of which the peer is not known; the answer is as above.
    DialBootstrap {
        /// The attempt.
        attempt: AttemptId,
        /// The address.
        address: A,
    },
    /// Take a peer out of the routing table: it is away.
    Unroute {
        /// The peer.
        peer: PeerId,
    },
    /// Look up the peers nearest to each of these in the DHT; [`Input::Looked`] for each is the answer.
    LookAround {
        /// Preimages of places in the keyspace.
        targets: Vec<Vec<u8>>,
    },
}
