//! Peers that broke the rules: disconnected, and refused for a while.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{
    PeerId,
    allow_block_list::{self, BlockedPeers},
};

/// How long a peer that broke the rules or sent wrong bytes is refused: a broken disk or program is not mended sooner.
pub const BAN: Duration = Duration::from_secs(3600);
/// Bans at once: more hostile identities than this are a flood that bans cannot stop anyway (a guess).
const MAX_BANS: usize = 4096;
/// The longest ban, so that a clock's sum cannot overflow.
const MAX_BAN: Duration = Duration::from_secs(30 * 24 * 60 * 60);

type Behaviour = allow_block_list::Behaviour<BlockedPeers>;

/// Who is banned, and until when.
#[derive(Debug, Default)]
pub(super) struct Bans {
    until: HashMap<PeerId, Instant>,
}

impl Bans {
    /// Closes the peer's connections and refuses new ones for `duration`. A longer ban stands.
    pub fn ban(&mut self, behaviour: &mut Behaviour, peer: PeerId, duration: Duration, now: Instant) {
        let until = now + duration.min(MAX_BAN);
        let known = self.until.contains_key(&peer);
        if !known
            && self.until.len() >= MAX_BANS
            && let Some(soonest) = self.until.iter().min_by_key(|(_, until)| **until).map(|(peer, _)| *peer)
        {
            self.until.remove(&soonest);
            behaviour.unblock_peer(soonest);
        }
        let entry = self.until.entry(peer).or_insert(until);
        *entry = (*entry).max(until);
        behaviour.block_peer(peer);
    }

    /// Whether the peer is refused.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.until.contains_key(peer)
    }

    /// Ends the bans whose time is over.
    pub fn tick(&mut self, behaviour: &mut Behaviour, now: Instant) {
        self.until.retain(|peer, until| {
            let stands = *until > now;
            if !stands {
                behaviour.unblock_peer(*peer);
            }
            stands
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_ends_and_a_longer_one_stands() {
        let (mut bans, mut behaviour, peer) = (Bans::default(), Behaviour::default(), PeerId::random());
        let now = Instant::now();
        bans.ban(&mut behaviour, peer, Duration::from_secs(60), now);
        bans.ban(&mut behaviour, peer, Duration::from_secs(1), now);
        bans.tick(&mut behaviour, now + Duration::from_secs(30));
        assert!(bans.contains(&peer) && behaviour.blocked_peers().contains(&peer));
        bans.tick(&mut behaviour, now + Duration::from_secs(61));
        assert!(!bans.contains(&peer) && !behaviour.blocked_peers().contains(&peer));
    }

    #[test]
    fn bans_are_bounded() {
        let (mut bans, mut behaviour) = (Bans::default(), Behaviour::default());
        for _ in 0..MAX_BANS + 10 {
            bans.ban(&mut behaviour, PeerId::random(), Duration::MAX, Instant::now());
        }
        assert_eq!(bans.until.len(), MAX_BANS);
        assert_eq!(behaviour.blocked_peers().len(), MAX_BANS);
    }
}
