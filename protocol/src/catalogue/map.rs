//! The map of publications: a bounded, last-writer-wins CRDT.

use std::collections::{BTreeMap, BTreeSet};

use super::{EntryKey, Publication, PublicationId, SignedPublication, signed};
use crate::{Cid, PeerId, reconcile::IdSet};

/// The most entries, removals included: at some 500 bytes each (the signed bytes are about 250, the indexes the
/// rest) 32 MiB, half of what an idle daemon may take.
pub const MAX_ENTRIES: usize = 65_536;
/// The most entries of one publisher: half of all, so that one alone never fills the catalogue.
pub const MAX_ENTRIES_PER_PUBLISHER: usize = 32_768;

/// How much a [`Catalogue`] holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The most entries in all, at least 1.
    pub entries: usize,
    /// The most entries of one publisher, at least 1.
    pub entries_per_publisher: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: MAX_ENTRIES, entries_per_publisher: MAX_ENTRIES_PER_PUBLISHER }
    }
}

/// The publications that stand, one for each [`EntryKey`].
///
/// # Laws
///
/// [`merge`](Self::merge) is the least upper bound of a semilattice, so for any publications *a*, *b*, *c*:
///
/// - *commutative*: merging *a* then *b* gives the same catalogue as *b* then *a*;
/// - *associative*: it does not matter how merges are grouped into catch-ups;
/// - *idempotent*: merging *a* again changes nothing.
///
/// Hence two nodes that were given the same publications hold the same entries, whatever the order, the number of
/// deliveries and the way. Per key the greatest by (version, root CID's bytes, signed bytes) stands: a total order
/// on signed publications. A removal is a publication like any other, and stays, so that it goes on winning over
/// what it removed.
///
/// # Bounds
///
/// The laws hold at the bounds too, because what gives way depends on what came and never on when:
///
/// - A publisher over its share loses its greatest keys (keys are hashes: its arbitrary ones).
/// - Over the bound in all, the shares of all publishers shrink together, to the greatest share with which all fit:
///   whoever has most gives way first, and who has little is not touched. Where there are more publishers than room
///   for entries, those with the greatest public keys give way.
///
/// What gave way does not come back while the catalogue lives (it would need the shares to grow again); after a
/// restart it may, where there is room by then.
///
/// # Costs
///
/// `merge` is O(log n) and one BLAKE3 of the signed bytes; over the bounds O(publishers). Reading a publication
/// decodes it from its bytes (no signature check): that is slower than keeping it decoded, and takes half the memory.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    limits: Limits,
    /// Entries by handle; freed handles are used again.
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    publishers: BTreeMap<[u8; 32], BTreeMap<EntryKey, u32>>,
    len: usize,
    ids: IdSet,
    /// Handles by the first 64 bits of what they are looked up by; whoever looks compares the whole.
    by_id: BTreeSet<(u64, u32)>,
    by_root: BTreeSet<(u64, u32)>,
    by_name: BTreeSet<(u64, u32)>,
    /// What a publisher may have while the catalogue overflows or once did; never grows. `None`: the limit.
    share: Option<usize>,
    /// Publishers from this key on have given way; never grows. `None`: none has.
    ceiling: Option<[u8; 32]>,
}

#[derive(Clone, Debug)]
struct Entry {
    signed_bytes: Box<[u8]>,
    id: PublicationId,
}

/// What a merge did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge {
    /// What became of the publication itself.
    pub outcome: Outcome,
    /// The keys of other entries that gave way to it. Nobody removed them: there was no room.
    pub dropped: Vec<EntryKey>,
}

/// What became of a publication that was merged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It stands now.
    Taken {
        /// What stood there before.
        previous: Option<Publication>,
    },
    /// These very bytes stood already.
    Known,
    /// What stands is greater.
    Older,
    /// There is no room for it.
    Beyond,
}

impl Catalogue {
    /// An empty catalogue with other limits than the default ones (each is at least 1).
    pub fn with_limits(limits: Limits) -> Self {
        let limits =
            Limits { entries: limits.entries.max(1), entries_per_publisher: limits.entries_per_publisher.max(1) };
        Self { limits, ..Self::default() }
    }

    /// Takes a publication in, where it is greater than what stands in its place and there is room.
    pub fn merge(&mut self, signed: SignedPublication) -> Merge {
        let id = signed.id();
        let (publication, signed_bytes) = signed.into_parts();
        // A signed publication's publisher always embeds its key.
        let Ok(publisher) = signed::public_key_bytes(&publication.publisher) else {
            return Outcome::Beyond.alone();
        };
        if self.ceiling.is_some_and(|ceiling| publisher >= ceiling) {
            return Outcome::Beyond.alone();
        }
        let key = publication.key();
        let entry = Entry { signed_bytes, id };
        let standing = self.publishers.get(&publisher).and_then(|keys| keys.get(&key)).copied();
        if let Some((handle, current)) = standing.and_then(|handle| Some((handle, self.entry(handle)?))) {
            if current.id == id {
                return Outcome::Known.alone();
            }
            // What stands was decoded before, so it decodes.
            let Ok(previous) = signed::read_checked(&current.signed_bytes) else { return Outcome::Older.alone() };
            if rank(&publication, &entry) <= rank(&previous, current) {
                return Outcome::Older.alone();
            }
            self.unlink(handle, &previous);
            self.link(handle, entry, &publication);
            return Outcome::Taken { previous: Some(previous) }.alone();
        }
        let handle = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            // MAX_ENTRIES + 1 fits 32 bits.
            (self.entries.len() - 1) as u32
        });
        self.link(handle, entry, &publication);
        self.publishers.entry(publisher).or_default().insert(key, handle);
        self.len += 1;
        let mut dropped = self.make_room(publisher);
        let before = dropped.len();
        dropped.retain(|other| *other != key);
        let outcome = if dropped.len() == before { Outcome::Taken { previous: None } } else { Outcome::Beyond };
        Merge { outcome, dropped }
    }

    /// Whether a new entry of `publisher` would find room without pushing one of its own out.
    pub fn has_room(&self, publisher: &PeerId) -> bool {
        let Ok(publisher) = signed::public_key_bytes(publisher) else { return false };
        self.ceiling.is_none_or(|ceiling| publisher < ceiling)
            && self.publishers.get(&publisher).map_or(0, BTreeMap::len) < self.share()
    }

    /// What stands under a key, a removal too.
    pub fn get(&self, publisher: &PeerId, key: &EntryKey) -> Option<Publication> {
        let publisher = signed::public_key_bytes(publisher).ok()?;
        self.publishers.get(&publisher)?.get(key).and_then(|&handle| self.read(handle))
    }

    /// The signed bytes of what stands, by their id.
    pub fn signed_bytes(&self, id: &PublicationId) -> Option<&[u8]> {
        candidates(&self.by_id, prefix(id))
            .filter_map(|handle| self.entry(handle))
            .find(|entry| entry.id == *id)
            .map(|entry| &*entry.signed_bytes)
    }

    /// All that stand, removals left out, in no particular order.
    pub fn publications(&self) -> impl Iterator<Item = Publication> + '_ {
        self.entries
            .iter()
            .flatten()
            .filter_map(|entry| signed::read_checked(&entry.signed_bytes).ok())
            .filter(|publication| !publication.removed)
    }

    /// Those of a root, removals left out.
    pub fn by_root<'a>(&'a self, root: &'a Cid) -> impl Iterator<Item = Publication> + 'a {
        candidates(&self.by_root, root_prefix(root))
            .filter_map(|handle| self.read(handle))
            .filter(move |publication| publication.root == *root && !publication.removed)
    }

    /// Those under a name (not a label), one a publisher, removals left out.
    pub fn by_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Publication> + 'a {
        candidates(&self.by_name, name_prefix(name))
            .filter_map(|handle| self.read(handle))
            .filter(move |publication| publication.name.as_deref() == Some(name) && !publication.removed)
    }

    /// The ids of all that stand, removals too: what catch-up compares.
    pub fn ids(&self) -> &IdSet {
        &self.ids
    }

    /// How many entries stand, removals too.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none stands.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn share(&self) -> usize {
        self.share.unwrap_or(self.limits.entries_per_publisher)
    }

    fn entry(&self, handle: u32) -> Option<&Entry> {
        self.entries.get(handle as usize)?.as_ref()
    }

    fn read(&self, handle: u32) -> Option<Publication> {
        signed::read_checked(&self.entry(handle)?.signed_bytes).ok()
    }

    fn link(&mut self, handle: u32, entry: Entry, publication: &Publication) {
        self.ids.insert(entry.id);
        self.by_id.insert((prefix(&entry.id), handle));
        self.by_root.insert((root_prefix(&publication.root), handle));
        if let Some(name) = &publication.name {
            self.by_name.insert((name_prefix(name), handle));
        }
        if let Some(place) = self.entries.get_mut(handle as usize) {
            *place = Some(entry);
        }
    }

    fn unlink(&mut self, handle: u32, publication: &Publication) {
        let Some(entry) = self.entries.get_mut(handle as usize).and_then(Option::take) else { return };
        self.ids.remove(&entry.id);
        self.by_id.remove(&(prefix(&entry.id), handle));
        self.by_root.remove(&(root_prefix(&publication.root), handle));
        if let Some(name) = &publication.name {
            self.by_name.remove(&(name_prefix(name), handle));
        }
    }

    /// Brings the catalogue back within its limits after `publisher` got one entry more; gives the keys that went.
    fn make_room(&mut self, publisher: [u8; 32]) -> Vec<EntryKey> {
        let mut dropped = Vec::new();
        self.shrink(publisher, self.share(), &mut dropped);
        while self.len > self.limits.entries {
            let largest = self.publishers.values().map(BTreeMap::len).max().unwrap_or(0);
            if largest > 1 {
                // One entry too many, so a share of `largest` is too much, and one less is enough.
                let share = largest - 1;
                self.share = Some(share);
                let over: Vec<_> =
                    self.publishers.iter().filter(|(_, keys)| keys.len() > share).map(|(key, _)| *key).collect();
                for publisher in over {
                    self.shrink(publisher, share, &mut dropped);
                }
            } else {
                let Some((&last, _)) = self.publishers.last_key_value() else { break };
                self.ceiling = Some(last);
                self.shrink(last, 0, &mut dropped);
            }
        }
        dropped
    }

    /// Drops a publisher's greatest keys until it has `share` at most.
    fn shrink(&mut self, publisher: [u8; 32], share: usize, dropped: &mut Vec<EntryKey>) {
        let Some(keys) = self.publishers.get_mut(&publisher) else { return };
        let mut gone = Vec::new();
        while keys.len() > share
            && let Some((key, handle)) = keys.pop_last()
        {
            gone.push((key, handle));
        }
        if keys.is_empty() {
            self.publishers.remove(&publisher);
        }
        for (key, handle) in gone {
            if let Some(publication) = self.read(handle) {
                self.unlink(handle, &publication);
            }
            self.free.push(handle);
            self.len -= 1;
            dropped.push(key);
        }
    }
}

impl PartialEq for Catalogue {
    /// Equal entries; limits and what happened on the way do not count.
    fn eq(&self, other: &Self) -> bool {
        self.ids == other.ids
    }
}

impl Eq for Catalogue {}

impl Outcome {
    fn alone(self) -> Merge {
        Merge { outcome: self, dropped: Vec::new() }
    }
}

/// The order among the publications of one key.
fn rank<'a>(publication: &Publication, entry: &'a Entry) -> (u64, [u8; crate::cid::CID_BYTES], &'a [u8]) {
    (publication.version, publication.root.to_bytes(), &entry.signed_bytes)
}

fn candidates(index: &BTreeSet<(u64, u32)>, prefix: u64) -> impl Iterator<Item = u32> + '_ {
    index.range((prefix, 0)..=(prefix, u32::MAX)).map(|&(_, handle)| handle)
}

fn prefix(hash: &[u8; 32]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(first)
}

fn root_prefix(root: &Cid) -> u64 {
    prefix(&root.hash.digest)
}

fn name_prefix(name: &str) -> u64 {
    prefix(blake3::hash(name.as_bytes()).as_bytes())
}
