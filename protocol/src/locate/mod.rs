//! Which peers there are, what they said of themselves, and which storing ones are nearest to a key.
//!
//! [`Table`] is who is known; [`greeter::Greeter`] decides who is greeted when. Both are pure: whoever does the greeting
//! says when a peer came, what it said, and what time it is.

pub mod greeter;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{
    duty::Said,
    key::Key,
    label::Label,
    placement::{Candidate, EXTRA_CANDIDATES, Region, Regions},
    ranking::Ranking,
};

/// How long a storing peer that left still counts as one of the network.
pub const SEEN: Duration = Duration::from_secs(3600);
/// After a lookup that failed the known peers are ranked for so long.
const LOOKUP_AGAIN: Duration = Duration::from_secs(5);
/// Peers that are remembered: far more than are ever connected; those that left longest ago go first.
const KNOWN: usize = 8192;
/// A region has at least as many peers as are asked for a chunk of the usual three copies. (One with more copies is
/// placed with what lookups for its neighbours found too; a lookup names 20 peers, so no region could promise 16 + 4.)
const REGION_PEERS: usize = 3 + EXTRA_CANDIDATES;
/// What a lookup names where there are as many (Kademlia's k).
const ANSWER: usize = 20;

/// What is known of a peer that was greeted.
#[derive(Clone, Debug)]
struct Known {
    key: Key,
    said: Said,
    label: Label,
    /// Which of its connections it was greeted on; `None`: on one of an earlier run.
    epoch: Option<u64>,
    connected: bool,
    /// When it was last seen connected.
    seen: Instant,
}

impl Known {
    fn is_seen(&self, now: Instant) -> bool {
        self.connected || now.saturating_duration_since(self.seen) < SEEN
    }
}

/// Who is known. Its size is bounded (8,192 peers, and the regions of [`Regions`]).
#[derive(Debug)]
pub struct Table {
    local: Option<Candidate>,
    known: BTreeMap<PeerId, Known>,
    /// Connected storing peers that stay, and this node if it is one.
    ranking: Arc<Ranking>,
    /// With those that leave.
    sources: Arc<Ranking>,
    leaving: bool,
    regions: Regions,
    lookup_failed: Option<Instant>,
}

impl Table {
    /// Nobody but this node, which is a candidate if it stores.
    pub fn new(local: PeerId, storing: bool) -> Self {
        let local = storing.then(|| Candidate::from(local));
        let ranking = Arc::new(Ranking::new(local));
        let sources = ranking.clone();
        let (known, regions) = (BTreeMap::new(), Regions::default());
        Self { local, known, ranking, sources, leaving: false, regions, lookup_failed: None }
    }

    /// Takes what a peer said of itself, and on which of its connections it said so. Returns whether a storing peer came,
    /// connected anew or counts otherwise now: one that connected anew may have lost what it had.
    pub fn greeted(
        &mut self,
        now: Instant,
        (peer, label): (PeerId, Label),
        epoch: u64,
        connected: bool,
        said: Said,
    ) -> bool {
        let key = Key::from(&peer);
        let known = Known { key, said, label, epoch: Some(epoch), connected, seen: now };
        let before = self.known.insert(peer, known);
        let same = |before: &Known| before.epoch == Some(epoch) && before.said == said;
        let anew = said.storing && !before.as_ref().is_some_and(same);
        if before.is_none_or(|before| before.epoch.is_none()) {
            self.regions.forget(&key);
        }
        if self.known.len() > KNOWN
            && let Some(oldest) = self.known.iter().filter(|(_, known)| !known.connected).min_by_key(|(_, k)| k.seen)
        {
            let oldest = *oldest.0;
            self.known.remove(&oldest);
        }
        self.rank() || anew
    }

    /// Takes in who is connected now. Returns whether a storing peer came or went.
    pub fn follow(&mut self, now: Instant, connected: impl Fn(&PeerId) -> bool) -> bool {
        let mut came_or_went = Vec::new();
        self.known.retain(|peer, known| {
            // What it said to an earlier run is not what it says now.
            let connected = known.epoch.is_some() && connected(peer);
            if known.connected != connected {
                came_or_went.push(known.key);
            }
            if known.connected || connected {
                known.seen = now;
            }
            known.connected = connected;
            known.is_seen(now)
        });
        // Nearly every look finds nobody new: a pong is a change of the table too.
        if came_or_went.is_empty() {
            return false;
        }
        for key in came_or_went {
            self.regions.forget(&key);
        }
        self.rank()
    }

    /// Storing peers that an earlier run saw, and how long ago: they count as [`seen`](Self::seen) until that is an hour.
    /// Older ones are left out.
    pub fn recall(&mut self, now: Instant, storing: impl IntoIterator<Item = (PeerId, Duration)>) {
        for (peer, ago) in storing.into_iter().filter(|(_, ago)| *ago < SEEN).take(KNOWN) {
            // A machine that was started since may have no such instant.
            let seen = now.checked_sub(ago).unwrap_or(now);
            let said = Said { storing: true, full: false, leaving: false };
            let (key, label) = (Key::from(&peer), Label::default());
            let known = Known { key, said, label, epoch: None, connected: false, seen };
            self.known.entry(peer).or_insert(known);
        }
    }

    /// This node leaves, or does not any more. Returns whether that is news.
    pub fn leave(&mut self, leaving: bool) -> bool {
        let news = self.leaving != leaving;
        self.leaving = leaving;
        self.rank();
        news
    }

    /// Sorts the candidates anew, if they changed.
    fn rank(&mut self) -> bool {
        let connected = |(peer, known): (&PeerId, &Known)| {
            let candidate = Candidate { peer: *peer, key: known.key };
            (known.said.storing && known.connected).then_some((candidate, known.said.leaving))
        };
        let own = self.local.map(|local| (local, self.leaving));
        let all: Vec<_> = self.known.iter().filter_map(connected).chain(own).collect();
        let staying = all.iter().filter(|(_, leaving)| !leaving).map(|(candidate, _)| *candidate);
        let ranking = Ranking::new(staying);
        let sources = Ranking::new(all.iter().map(|(candidate, _)| *candidate));
        if *self.sources != sources {
            self.sources = Arc::new(sources);
        }
        let changed = *self.ranking != ranking;
        if changed {
            self.ranking = Arc::new(ranking);
        }
        changed
    }

    /// Those that store and stay.
    fn storing(&self) -> impl Iterator<Item = (&PeerId, &Known)> {
        self.known.iter().filter(|(_, known)| known.said.storing && !known.said.leaving)
    }

    /// Those that can take a chunk now: greeted, connected, storing, not leaving; this node among them if it is such a one.
    pub fn ranking(&self) -> Arc<Ranking> {
        self.ranking.clone()
    }

    /// Those that can be asked for a chunk now: with those that leave.
    pub fn sources(&self) -> Arc<Ranking> {
        self.sources.clone()
    }

    /// What people call a peer, if it said so.
    pub fn label(&self, peer: &PeerId) -> Option<Label> {
        self.known.get(peer).map(|known| &known.label).filter(|label| !label.is_empty()).cloned()
    }

    /// Whether a peer was greeted and is connected.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.known.get(peer).is_some_and(|known| known.connected)
    }

    /// Storing peers connected now, this node not counted.
    pub fn reachable(&self) -> usize {
        self.ranking.len() - usize::from(self.counts_itself())
    }

    fn counts_itself(&self) -> bool {
        self.local.is_some() && !self.leaving
    }

    /// Storing peers seen within [`SEEN`], reachable or not, this node included if it is one; none that leave.
    pub fn seen(&self, now: Instant) -> usize {
        self.storing().filter(|(_, known)| known.is_seen(now)).count() + usize::from(self.counts_itself())
    }

    /// Storing peers seen within [`SEEN`] that are not reachable now.
    pub fn missing(&self, now: Instant) -> Vec<PeerId> {
        let missing = self.storing().filter(|(_, known)| !known.connected && known.is_seen(now));
        missing.map(|(peer, _)| *peer).collect()
    }

    /// Every storing peer that is remembered, those that leave too: whether it is connected, and what it said of itself.
    pub fn all_storing(&self) -> impl Iterator<Item = (PeerId, bool, Said)> + '_ {
        let storing = self.known.iter().filter(|(_, known)| known.said.storing);
        storing.map(|(peer, known)| (*peer, known.connected, known.said))
    }

    /// Storing peers that this run met within [`SEEN`], and how long ago each was last seen.
    pub fn met(&self, now: Instant) -> BTreeMap<PeerId, Duration> {
        let met = self.storing().filter(|(_, known)| known.epoch.is_some() && known.is_seen(now));
        let ago = |known: &Known| now.saturating_duration_since(if known.connected { now } else { known.seen });
        met.map(|(peer, known)| (*peer, ago(known))).collect()
    }

    /// Whether the peers nearest to `key` are known as well as they can be now: a lookup has told of its region, or one
    /// failed a moment ago.
    pub fn covers(&self, now: Instant, key: &Key) -> bool {
        let lately = self.lookup_failed.is_some_and(|at| now.saturating_duration_since(at) < LOOKUP_AGAIN);
        lately || self.regions.covers(key, now)
    }

    /// Takes the answer of a lookup of `key`, whose peers have been greeted as far as they could be; an empty one is a
    /// failure.
    pub fn looked_up(&mut self, now: Instant, key: &Key, answer: &[PeerId]) {
        self.lookup_failed = answer.is_empty().then_some(now);
        if !answer.is_empty() {
            let all = answer.len() < ANSWER && self.known.len() <= answer.len();
            self.regions.learn(Region::of_answer(key, answer, REGION_PEERS, all), now);
        }
    }
}
