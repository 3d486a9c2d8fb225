//! The storing peers that a node counts, whom of them it was introduced to, and whether that makes it complete.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_identity::PeerId;

use super::{MAX_MEMBERS, Member, REMEMBERED, introductions, witnesses};

/// By so much later somebody was seen that it is news: less is lost in rounding, and would make two nodes tell each other
/// ever later times of one that is gone.
const NEWS_SECONDS: u64 = 60 * 60;

/// What a node remembers of a member, on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Row {
    /// Unix seconds, by this node's clock, of when anybody last saw it.
    pub seen: u64,
    /// It was complete once.
    pub complete: bool,
    /// This node was introduced to it; whether it was complete then.
    pub introduced: Option<bool>,
}

/// What a node's log began with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// An identity that was there before: what was published under it may have been lost.
    Lost,
    /// An identity that was made with it, in a network of others.
    Joining,
    /// An identity that was made with it, and nobody to join.
    Founding,
}

/// Whose row is to be written down.
pub type Changed = Vec<PeerId>;

/// The members that one node counts.
#[derive(Clone, Debug)]
pub struct Members {
    local: PeerId,
    stores: bool,
    begun: Begun,
    /// It was complete once, and has its log since.
    completed: bool,
    rows: BTreeMap<PeerId, Row>,
    /// There are more than are counted.
    crowded: bool,
    /// It looked for others for so long that there is nobody who began before.
    waited: bool,
}

impl Members {
    /// What a node begins with: its rows from disk, its own among them once it was complete.
    pub fn new(local: PeerId, stores: bool, begun: Begun, rows: impl IntoIterator<Item = (PeerId, Row)>) -> Self {
        let mut members =
            Self { local, stores, begun, completed: false, rows: BTreeMap::new(), crowded: false, waited: false };
        for (peer, row) in rows {
            members.completed |= peer == local && row.complete;
            if let Some(kept) = members.row(peer) {
                *kept = row;
            }
        }
        members
    }

    /// This node.
    pub fn local(&self) -> PeerId {
        self.local
    }

    /// Whether this node is one of them.
    pub fn stores(&self) -> bool {
        self.stores
    }

    /// The row of another, made where there is room.
    fn row(&mut self, peer: PeerId) -> Option<&mut Row> {
        if peer == self.local {
            return None;
        }
        if !self.rows.contains_key(&peer) && self.rows.len() >= MAX_MEMBERS {
            self.crowded = true;
            return None;
        }
        Some(self.rows.entry(peer).or_default())
    }

    /// Forgets who was not seen for [`REMEMBERED`]; who that is, for its row to be removed.
    pub fn forget(&mut self, now: u64) -> Changed {
        let oldest = now.saturating_sub(REMEMBERED.as_secs());
        let gone: Changed = self.rows.iter().filter(|(_, row)| row.seen < oldest).map(|(peer, _)| *peer).collect();
        self.rows.retain(|_, row| row.seen >= oldest);
        self.crowded &= gone.is_empty();
        gone
    }

    /// Takes in whom another node knows of.
    pub fn learn(&mut self, now: u64, told: &[Member]) -> Changed {
        let mut changed = Vec::new();
        for member in told {
            let ago = u64::from(member.ago_seconds);
            if ago <= REMEMBERED.as_secs() && self.saw(now.saturating_sub(ago), member.peer, member.complete) {
                changed.push(member.peer);
            }
        }
        changed
    }

    /// A member was seen at `seen`; whether its row changed.
    pub fn saw(&mut self, seen: u64, peer: PeerId, complete: bool) -> bool {
        let known = self.rows.contains_key(&peer);
        let Some(row) = self.row(peer) else { return false };
        let news = !known || seen > row.seen.saturating_add(NEWS_SECONDS);
        if news {
            row.seen = seen;
        }
        let completed = complete && !row.complete;
        row.complete |= complete;
        news || completed
    }

    /// This node was introduced to a member that was (not) complete then; whether its row changed.
    pub fn introduced(&mut self, peer: PeerId, complete: bool) -> bool {
        let Some(row) = self.rows.get_mut(&peer) else { return false };
        let before = *row;
        // It may have lost its disk since; what it had when it was complete is here all the same.
        row.introduced = Some(complete || row.introduced == Some(true));
        row.complete |= complete;
        *row != before
    }

    /// What is remembered of a member.
    pub fn get(&self, peer: &PeerId) -> Option<Row> {
        self.rows.get(peer).copied()
    }

    /// All but this node, ascending.
    pub fn others(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.rows.keys().copied()
    }

    /// How many there are, this node counted if it stores.
    pub fn count(&self) -> usize {
        self.rows.len() + usize::from(self.stores)
    }

    /// Whether there are more than are counted: nothing can be told by counting then.
    pub fn is_crowded(&self) -> bool {
        self.crowded
    }

    /// Whether this node has each write that was settled without it, unless others that it knows of can tell.
    pub fn is_complete(&self) -> bool {
        if self.crowded {
            return false;
        }
        let complete = self.rows.values().filter(|row| row.complete).count();
        let introduced = self.rows.values().filter(|row| row.introduced == Some(true)).count();
        let all = !self.rows.is_empty() && self.rows.values().all(|row| row.introduced.is_some());
        // Any that was heard of may be complete by now, and count for others, which whoever becomes complete has to take
        // into account. Later ones have been introduced to enough of those who were there: only such as are known to have
        // been complete in a network of their own still have to be met.
        let others = if self.completed { complete } else { self.rows.len() };
        match complete {
            0 => self.completed || self.begun == Begun::Founding || (all && self.waited),
            _ => all || introduced >= introductions(others),
        }
    }

    /// Notes that this node is complete, if it is for the first time: its own row, to be written down.
    pub fn complete(&mut self, now: u64) -> Option<(PeerId, Row)> {
        if self.completed || !self.is_complete() {
            return None;
        }
        self.completed = true;
        Some((self.local, Row { seen: now, complete: true, introduced: None }))
    }

    /// This node runs for [`FOUNDING`](super::FOUNDING): if nobody that it knows of was ever complete, those who are here
    /// begin the network together. Returns whether that changed anything.
    pub fn waited(&mut self) -> bool {
        !std::mem::replace(&mut self.waited, true)
    }

    /// Whether this node has all that it ever published.
    pub fn has_own(&self) -> bool {
        self.begun != Begun::Lost || self.is_complete()
    }

    /// Those that this node should still be introduced to.
    pub fn strangers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.rows.iter().filter(|(_, row)| row.introduced != Some(true)).map(|(peer, _)| *peer)
    }

    /// What others are told: everybody but this node. `here`: who is connected, and so seen now.
    pub fn told(&self, now: u64, here: impl Fn(&PeerId) -> bool) -> Vec<Member> {
        let member = |(peer, row): (&PeerId, &Row)| {
            // Up to a second of it is lost on the way.
            let ago = if here(peer) { 0 } else { now.saturating_sub(row.seen).saturating_add(1) };
            Member { peer: *peer, ago_seconds: u32::try_from(ago).unwrap_or(u32::MAX), complete: row.complete }
        };
        self.rows.iter().map(member).collect()
    }
}

/// Whether a write is settled: who has it on disk and was complete when it said so.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settling {
    acknowledged: BTreeSet<PeerId>,
}

impl Settling {
    /// The write stands in this node's own log.
    pub fn begin(members: &Members) -> Self {
        let own = (members.stores && members.is_complete()).then_some(members.local);
        Self { acknowledged: own.into_iter().collect() }
    }

    /// A peer acknowledged, and then said that it is (not) complete. What it knows of others was
    /// [learned](Members::learn) before.
    pub fn acknowledged(&mut self, peer: PeerId, complete: bool) {
        if complete {
            self.acknowledged.insert(peer);
        }
    }

    /// How many acknowledgements are missing, looking at `members` as they are after all of them; 0: it is settled.
    pub fn missing(&self, members: &Members) -> usize {
        if members.crowded {
            return 0;
        }
        witnesses(members.count()).saturating_sub(self.acknowledged.len())
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id()
    }

    fn members(begun: Begun, others: impl IntoIterator<Item = (u8, bool, Option<bool>)>) -> Members {
        let row = |(seed, complete, introduced)| (peer(seed), Row { seen: NOW, complete, introduced });
        Members::new(peer(0), true, begun, others.into_iter().map(row))
    }

    #[test]
    fn a_node_is_complete_once_it_was_introduced_to_enough() {
        // The first of a network is; one that has others to join or lost its disk is not, however alone it is.
        assert!(members(Begun::Founding, []).is_complete());
        assert!(!members(Begun::Joining, []).is_complete() && !members(Begun::Lost, []).is_complete());
        assert!(members(Begun::Joining, []).has_own() && !members(Begun::Lost, []).has_own());
        // Somebody comes who has nothing yet: that takes nothing away.
        assert!(members(Begun::Founding, [(1, false, None)]).is_complete());
        // Others who were complete before are heard of.
        assert!(!members(Begun::Founding, [(1, true, None)]).is_complete());
        assert!(members(Begun::Founding, [(1, true, Some(true))]).is_complete());
        // One that was only heard of may be complete meanwhile: whoever begins reckons with it, whoever was complete before
        // need not.
        let heard = || members(Begun::Lost, [(1, true, Some(true)), (2, false, None)]);
        assert!(!heard().is_complete() && heard().complete(NOW).is_none());
        let mut node = members(Begun::Lost, [(1, true, Some(true))]);
        let own = node.complete(NOW).expect("it is complete");
        assert!(node.saw(NOW, peer(2), false) && node.is_complete() && node.complete(NOW).is_none());
        let again = Members::new(peer(0), true, Begun::Lost, heard().rows.into_iter().chain([own]));
        assert!(again.is_complete() && again.count() == 3);
        // Two of three; one that was not complete is none of them.
        let three = |last| members(Begun::Lost, [(1, true, Some(true)), (2, true, last), (3, true, None)]);
        assert!(three(Some(true)).is_complete() && !three(Some(false)).is_complete() && !three(None).is_complete());
        // All of them is enough, whatever they were.
        assert!(members(Begun::Lost, [(1, false, Some(false)), (2, true, Some(false))]).is_complete());
        // Nobody was ever complete: they begin together, but not before they have looked for others.
        let mut beginner = members(Begun::Joining, [(1, false, Some(false)), (2, false, Some(false))]);
        assert!(!beginner.is_complete() && beginner.waited() && beginner.is_complete() && !beginner.waited());
        assert!(!members(Begun::Lost, [(1, false, Some(false)), (2, false, None)]).is_complete());
        // What it published is here if its log began with it.
        assert!(
            members(Begun::Founding, [(1, true, None)]).has_own() && !members(Begun::Lost, [(1, true, None)]).has_own()
        );
    }

    #[test]
    fn members_are_learned_kept_and_forgotten() {
        let mut node = members(Begun::Founding, []);
        let word = |seed, ago_seconds, complete| Member { peer: peer(seed), ago_seconds, complete };
        let month = u32::try_from(REMEMBERED.as_secs()).expect("30 days");
        assert_eq!(node.learn(NOW, &[word(0, 0, true), word(1, 10, false), word(2, month + 1, true)]), [peer(1)]);
        // A few seconds are no news, or two nodes would keep one alive that is gone; a flag is.
        assert_eq!(node.learn(NOW, &[word(1, 0, false)]), []);
        assert_eq!(node.learn(NOW, &[word(1, 0, true)]), [peer(1)]);
        assert_eq!(node.get(&peer(1)).map(|row| (row.seen, row.complete)), Some((NOW - 10, true)));
        assert!(node.saw(NOW + 7200, peer(1), false));
        let told = node.told(NOW + 7300, |_| false);
        assert_eq!(told, [word(1, 101, true)]);
        assert_eq!(node.told(NOW + 7300, |_| true)[0].ago_seconds, 0);
        assert_eq!(node.forget(NOW + 7200 + u64::from(month)), []);
        assert_eq!(node.forget(NOW + 7201 + u64::from(month)), [peer(1)]);
        assert_eq!(node.count(), 1);
    }

    #[test]
    fn more_than_are_counted_make_nobody_complete() {
        let mut node = members(Begun::Founding, []);
        for seed in 1..=MAX_MEMBERS as u64 + 1 {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&seed.to_be_bytes());
            let peer = Keypair::ed25519_from_bytes(bytes).expect("32 bytes are a key").public().to_peer_id();
            node.saw(NOW, peer, false);
        }
        assert!(node.is_crowded() && !node.is_complete() && node.has_own());
        assert_eq!(node.count(), 1 + MAX_MEMBERS);
    }

    #[test]
    fn a_write_is_settled_by_complete_members_as_they_are_in_the_end() {
        let mut node = members(Begun::Founding, [(1, true, Some(true)), (2, true, Some(true))]);
        let mut settling = Settling::begin(&node);
        assert_eq!(settling.missing(&node), 1);
        settling.acknowledged(peer(1), false);
        assert_eq!(settling.missing(&node), 1);
        settling.acknowledged(peer(1), true);
        assert_eq!(settling.missing(&node), 0);
        // The acknowledgement told of one more.
        node.learn(NOW, &[Member { peer: peer(3), ago_seconds: 0, complete: false }]);
        assert_eq!(settling.missing(&node), 1);
        // One that lost its disk is no witness itself.
        let lost = members(Begun::Lost, [(1, true, None)]);
        assert_eq!(Settling::begin(&lost).missing(&lost), 2);
    }
}
