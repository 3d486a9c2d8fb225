//! One want: whom it may ask next, round by round, and what it has in flight.

use std::{collections::BTreeMap, time::Instant};

use super::{CANDIDATES_TIMEOUT, peer::Peer};
use crate::{PeerId, placement::EXTRA_CANDIDATES};

/// An ask in flight.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) asked_at: Instant,
    /// When it is looked at (again) as late.
    pub(super) late_at: Instant,
    pub(super) late: bool,
    pub(super) hedge: bool,
    pub(super) bytes: u32,
}

/// Where a want stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Waits for its ranked candidates, of which it will ask the first `reach`.
    Locating { until: Instant, reach: usize },
    /// Asks the first `reach` of them.
    Ranked { reach: usize },
    /// Waits for publishers and providers.
    Widening { until: Instant },
    /// Asks those.
    Widened,
    /// Asks once more those whose session broke.
    Retrying,
}

/// What a want does next.
pub(super) enum Next {
    Ask(PeerId),
    Wait,
    /// More candidates are needed: so many in all.
    Locate {
        most: usize,
    },
    Widen,
    /// The stage changed: look again.
    Again,
    NotFound {
        asked: usize,
    },
}

/// One want.
#[derive(Debug)]
pub(super) struct Want {
    bytes: u32,
    stage: Stage,
    /// Ranked candidates not asked yet, those within reach first.
    untried: Vec<PeerId>,
    /// How many of the ranked were taken out of `untried` so far.
    tried: usize,
    /// How many ranked candidates it asked for; `None`: there are no more than came.
    most: Option<usize>,
    /// Asked, but their session broke: they get a second chance at the very end.
    broken: Vec<PeerId>,
    seen: Vec<PeerId>,
    asked: usize,
    attempts: Vec<(PeerId, Attempt)>,
}

impl Want {
    pub(super) fn new(bytes: u32, replicas: usize, until: Instant) -> Self {
        Self {
            bytes,
            stage: Stage::Locating { until, reach: replicas },
            untried: Vec::new(),
            tried: 0,
            // The first two rounds.
            most: Some(replicas + EXTRA_CANDIDATES),
            broken: Vec::new(),
            seen: Vec::new(),
            asked: 0,
            attempts: Vec::new(),
        }
    }

    /// How many candidates it has asked for.
    pub(super) fn most(&self) -> usize {
        self.most.unwrap_or(usize::MAX)
    }

    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Whether it waits for a peer to be asked, with nothing in flight.
    pub(super) fn needs_ask(&self) -> bool {
        self.attempts.is_empty() && !matches!(self.stage, Stage::Locating { .. } | Stage::Widening { .. })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.attempts.len()
    }

    pub(super) fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().map(|(_, attempt)| attempt)
    }

    pub(super) fn attempts_mut(&mut self) -> impl Iterator<Item = (&PeerId, &mut Attempt)> {
        self.attempts.iter_mut().map(|(peer, attempt)| (&*peer, attempt))
    }

    pub(super) fn attempt_mut(&mut self, peer: &PeerId) -> Option<&mut Attempt> {
        self.attempts.iter_mut().find(|(of, _)| of == peer).map(|(_, attempt)| attempt)
    }

    pub(super) fn take_attempt(&mut self, peer: &PeerId) -> Option<Attempt> {
        let at = self.attempts.iter().position(|(of, _)| of == peer)?;
        Some(self.attempts.swap_remove(at).1)
    }

    pub(super) fn take_attempts(&mut self) -> Vec<(PeerId, Attempt)> {
        std::mem::take(&mut self.attempts)
    }

    pub(super) fn candidates(&mut self, peers: Vec<PeerId>) {
        if let Stage::Locating { reach, .. } = self.stage {
            self.most = self.most.filter(|most| peers.len() >= *most);
            self.take_in(peers);
            self.stage = Stage::Ranked { reach };
        }
    }

    pub(super) fn more(&mut self, peers: Vec<PeerId>) {
        if matches!(self.stage, Stage::Widening { .. }) {
            self.take_in(peers);
            self.stage = Stage::Widened;
        }
    }

    /// Adds peers that were not named before: nobody is asked twice because it was named twice.
    fn take_in(&mut self, peers: Vec<PeerId>) {
        for peer in peers {
            if let Err(at) = self.seen.binary_search(&peer) {
                self.seen.insert(at, peer);
                self.untried.push(peer);
            }
        }
    }

    /// When it stops to wait for candidates.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Locating { until, .. } | Stage::Widening { until } => Some(until),
            Stage::Ranked { .. } | Stage::Widened | Stage::Retrying => None,
        }
    }

    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        match self.stage {
            Stage::Locating { until, reach } if now >= until => {
                self.most = None;
                self.stage = Stage::Ranked { reach };
            }
            Stage::Widening { until } if now >= until => self.stage = Stage::Widened,
            _ => {}
        }
    }

    /// Those that may be asked in this stage.
    fn in_reach(&self) -> &[PeerId] {
        let reach = match self.stage {
            Stage::Ranked { reach } => reach.saturating_sub(self.tried).min(self.untried.len()),
            Stage::Widened | Stage::Retrying => self.untried.len(),
            Stage::Locating { .. } | Stage::Widening { .. } => 0,
        };
        &self.untried[..reach]
    }

    /// The one of those in reach that has room and will answer first; the nearer where that is equal.
    fn best(&self, peers: &BTreeMap<PeerId, Peer>) -> Option<PeerId> {
        let unknown = Peer::default();
        self.in_reach()
            .iter()
            .map(|id| (id, peers.get(id).unwrap_or(&unknown)))
            .filter(|(_, peer)| !peer.banned() && peer.put_off_until().is_none() && peer.has_room(self.bytes))
            .min_by_key(|(_, peer)| peer.expected())
            .map(|(id, _)| *id)
    }

    /// What to do next when nothing is in flight.
    pub(super) fn next(&mut self, now: Instant, peers: &BTreeMap<PeerId, Peer>, replicas: usize) -> Next {
        self.drop_banned(peers);
        if let Some(peer) = self.best(peers) {
            return Next::Ask(peer);
        }
        // Busy peers of this round are waited for; those put off are not, where there is somebody else to ask.
        let busy = self.in_reach().iter().any(|id| peers.get(id).is_none_or(|peer| peer.put_off_until().is_none()));
        if busy {
            return Next::Wait;
        }
        match self.stage {
            Stage::Locating { .. } | Stage::Widening { .. } => Next::Wait,
            Stage::Ranked { reach } if self.most.is_some() || self.in_reach().len() < self.untried.len() => {
                let reach = if reach < replicas + EXTRA_CANDIDATES { replicas + EXTRA_CANDIDATES } else { reach * 2 };
                match self.most {
                    Some(most) if most < reach => {
                        self.most = Some(reach);
                        self.stage = Stage::Locating { until: now + CANDIDATES_TIMEOUT, reach };
                        Next::Locate { most: reach }
                    }
                    _ => {
                        self.stage = Stage::Ranked { reach };
                        Next::Again
                    }
                }
            }
            Stage::Ranked { .. } => {
                self.stage = Stage::Widening { until: now + CANDIDATES_TIMEOUT };
                Next::Widen
            }
            // Everybody else was asked: whoever is put off is now worth the wait.
            Stage::Widened | Stage::Retrying if !self.untried.is_empty() => Next::Wait,
            Stage::Widened => {
                self.untried = std::mem::take(&mut self.broken);
                self.stage = Stage::Retrying;
                Next::Again
            }
            Stage::Retrying => Next::NotFound { asked: self.asked },
        }
    }

    /// A second peer to ask while the first is late: of this round, or else of the next.
    pub(super) fn second(&mut self, peers: &BTreeMap<PeerId, Peer>) -> Option<PeerId> {
        self.drop_banned(peers);
        if let Some(peer) = self.best(peers) {
            return Some(peer);
        }
        if let Stage::Ranked { reach } = self.stage
            && self.in_reach().is_empty()
            && !self.untried.is_empty()
        {
            self.stage = Stage::Ranked { reach: reach + EXTRA_CANDIDATES };
            return self.best(peers);
        }
        None
    }

    fn drop_banned(&mut self, peers: &BTreeMap<PeerId, Peer>) {
        let before = self.untried.len();
        self.untried.retain(|id| peers.get(id).is_none_or(|peer| !peer.banned()));
        self.tried += before - self.untried.len();
    }

    /// When the first of those that it waits for is no longer put off.
    pub(super) fn put_off_until(&self, peers: &BTreeMap<PeerId, Peer>) -> Option<Instant> {
        self.in_reach().iter().filter_map(|id| peers.get(id)?.put_off_until()).min()
    }

    /// Records that `peer` is asked now.
    pub(super) fn begin(&mut self, peer: PeerId, attempt: Attempt) {
        if let Some(at) = self.untried.iter().position(|id| *id == peer) {
            self.untried.remove(at);
            self.tried += 1;
        }
        if self.stage != Stage::Retrying {
            self.asked += 1;
        }
        self.attempts.push((peer, attempt));
    }

    /// The session to `peer` broke: it gets one more chance if it is one that was reachable when it was ranked.
    pub(super) fn failed(&mut self, peer: PeerId) {
        if matches!(self.stage, Stage::Ranked { .. }) && !self.broken.contains(&peer) {
            self.broken.push(peer);
        }
    }
}
