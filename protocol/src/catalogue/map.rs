//! The map of publications: bounded, and the same whatever the order of arrival.

use std::{cmp::Ordering, collections::BTreeSet};

use super::{
    Class, EntryKey, Limits, Merged, Publication, PublicationId, SignedPublication, Standing, Versions, body,
    shares::Shares, signed,
};
use crate::{Cid, PeerId, reconcile::IdSet};

/// The publications that stand: for each [`EntryKey`] its [`Versions`].
///
/// # Laws
///
/// [`merge`](Self::merge) is the least upper bound of a semilattice, as [`Versions::merge`] is for each key: two nodes that
/// were given the same publications hold the same entries, whatever the order, the number of deliveries and the way. A
/// removal is a publication like any other, and stays, so that it goes on winning over what it removed.
///
/// # Which are live
///
/// Each that stands and is no removal: the current version, and those before it that are kept. Whoever holds chunks for
/// live publications learns of each change from what [`merge`](Self::merge) gives: the publication that was
/// [taken](Outcome::Taken), if it is no removal, became live, and those that were [dropped](Merge::dropped), as far as they
/// are no removals, ceased to be.
///
/// # Bounds
///
/// Each version counts as an entry. What gives way does so by what came, not by when it came, as long as no floor rises
/// meanwhile:
///
/// - A publisher over its share loses the entries of its greatest keys (keys are hashes: its arbitrary ones), there the
///   lowest versions first.
/// - Over the bound in all, [strangers](Class::Stranger) give way, and only where there are none,
///   [storing peers that are known](Class::Known). The shares of a class shrink together, to the greatest share with which
///   all fit: whoever has most gives way first, and who has little is not touched. Where there are more publishers than
///   room for entries, those with the greatest public keys give way. This node's [own](Class::Own) never do.
///
/// Shares do not grow again while the catalogue lives, so that what gave way does not come and go. After a restart it may
/// come back, where there is room by then.
///
/// # Costs
///
/// `merge` is O(log n) and one BLAKE3 of the signed bytes, and beyond that O(versions of the key); over the bounds
/// O(publishers that have most). Reading a publication decodes it from its bytes (no signature check): that is slower than
/// keeping it decoded, and takes half the memory.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// Entries by handle; freed handles are used again.
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    shares: Shares,
    ids: IdSet,
    /// Handles by the first 64 bits of what they are looked up by; whoever looks compares the whole.
    by_id: BTreeSet<(u64, u32)>,
    by_root: BTreeSet<(u64, u32)>,
    by_name: BTreeSet<(u64, u32)>,
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
    /// Others that stood before and do not any more.
    pub dropped: Vec<Dropped>,
}

/// A publication that ceased to stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dropped {
    /// What it said.
    pub publication: Publication,
    /// Its signed bytes' name.
    pub id: PublicationId,
    /// Nobody superseded it: there was no room.
    pub for_room: bool,
}

/// What became of a publication that was merged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It stands now.
    Taken {
        /// It is the current version, and not one of those before it.
        current: bool,
        /// What was current before, if anything stood there.
        previous: Option<Box<Publication>>,
    },
    /// These very bytes stood already.
    Known,
    /// It is under the floor, or less than what stands as its version.
    Older,
    /// There is no room for it.
    Beyond,
}

impl Catalogue {
    /// An empty catalogue with other limits than the default ones (each is at least 1).
    pub fn with_limits(limits: Limits) -> Self {
        Self { shares: Shares::new(limits), ..Self::default() }
    }

    /// Says what a publisher is to this node. What gave way before does not come back by it.
    pub fn set_class(&mut self, publisher: &PeerId, class: Class) {
        // Nobody else can publish.
        if let Ok(publisher) = body::public_key_bytes(publisher) {
            self.shares.set_class(publisher, class);
        }
    }

    /// What a publisher is to this node.
    pub fn class(&self, publisher: &PeerId) -> Class {
        body::public_key_bytes(publisher).map_or(Class::Stranger, |publisher| self.shares.class(&publisher))
    }

    /// Takes a publication in, where it stands beside those that are here and there is room.
    pub fn merge(&mut self, signed: SignedPublication) -> Merge {
        let id = signed.id();
        let (publication, signed_bytes) = signed.into_parts();
        // A signed publication's publisher always embeds its key.
        let Ok(publisher) = body::public_key_bytes(&publication.publisher) else { return Outcome::Beyond.alone() };
        if self.shares.is_out(&publisher) {
            return Outcome::Beyond.alone();
        }
        let key = publication.key();
        let previous = self.shares.versions(&publisher, &key).and_then(Versions::current).map(|current| current.held);
        let previous = previous.and_then(|handle| self.read(handle));
        // Entries are at most `Limits::entries` and one; a process cannot hold 2^32 of them.
        let handle = self.free.last().copied().unwrap_or(self.entries.len() as u32);
        let new = Standing { version: publication.version, floor: publication.floor, held: handle };
        let Self { shares, entries, .. } = self;
        let merged = shares.merge(publisher, key, new, |&standing| match entries.get(standing as usize) {
            // What stands was decoded before, so it decodes.
            Some(Some(entry)) => signed::read_checked(&entry.signed_bytes).map_or(Ordering::Greater, |standing| {
                rank(&publication, &signed_bytes).cmp(&rank(&standing, &entry.signed_bytes))
            }),
            _ => Ordering::Greater,
        });
        let superseded = match merged {
            Merged::Taken(superseded) => superseded,
            Merged::Known => return Outcome::Known.alone(),
            Merged::Older => return Outcome::Older.alone(),
        };
        if self.free.pop().is_none() {
            self.entries.push(None);
        }
        self.link(handle, Entry { signed_bytes, id }, &publication);
        let mut dropped: Vec<_> =
            superseded.into_iter().filter_map(|standing| self.unlink(standing.held, false)).collect();
        let gone = self.shares.make_room(publisher);
        let stands = !gone.contains(&handle);
        dropped.extend(gone.into_iter().filter_map(|gone| self.unlink(gone, true)));
        let outcome = if stands {
            let current = previous.as_ref().is_none_or(|previous| publication.version >= previous.version);
            let previous = previous.map(Box::new);
            Outcome::Taken { current, previous }
        } else {
            dropped.retain(|other| other.id != id);
            Outcome::Beyond
        };
        Merge { outcome, dropped }
    }

    /// Whether a publication of `version` and `floor` under a key is within the share of its publisher, so that none of the
    /// publisher's others gives way to it.
    pub fn has_room(&self, publisher: &PeerId, key: &EntryKey, version: u64, floor: u64) -> bool {
        body::public_key_bytes(publisher).is_ok_and(|publisher| self.shares.has_room(&publisher, key, version, floor))
    }

    /// What is current under a key, a removal too.
    pub fn get(&self, publisher: &PeerId, key: &EntryKey) -> Option<Publication> {
        self.versions_of(publisher, key)?.current().and_then(|current| self.read(current.held))
    }

    /// The floor that is in force under a key: the lowest version that can stand there. 0: nothing stands.
    pub fn floor(&self, publisher: &PeerId, key: &EntryKey) -> u64 {
        self.versions_of(publisher, key).map_or(0, Versions::floor)
    }

    /// One of the versions that stand under a key.
    pub fn version(&self, publisher: &PeerId, key: &EntryKey, version: u64) -> Option<Publication> {
        self.versions_of(publisher, key)?.get(version).and_then(|standing| self.read(standing.held))
    }

    /// The signed bytes of one of the versions that stand under a key.
    pub fn version_bytes(&self, publisher: &PeerId, key: &EntryKey, version: u64) -> Option<&[u8]> {
        let standing = self.versions_of(publisher, key)?.get(version)?;
        self.entry(standing.held).map(|entry| &*entry.signed_bytes)
    }

    /// The versions that stand under a key, the current one first, removals too.
    pub fn history<'a>(&'a self, publisher: &PeerId, key: &EntryKey) -> impl Iterator<Item = Publication> + use<'a> {
        let standing = self.versions_of(publisher, key).into_iter().flat_map(|versions| versions.iter().rev());
        standing.filter_map(|standing| self.read(standing.held))
    }

    /// The signed bytes of what stands, by their id.
    pub fn signed_bytes(&self, id: &PublicationId) -> Option<&[u8]> {
        candidates(&self.by_id, prefix(id))
            .filter_map(|handle| self.entry(handle))
            .find(|entry| entry.id == *id)
            .map(|entry| &*entry.signed_bytes)
    }

    /// All that are current, removals left out, in no particular order.
    pub fn publications(&self) -> impl Iterator<Item = Publication> + '_ {
        let current = self.shares.iter().filter_map(|versions| versions.current());
        current.filter_map(|current| self.read(current.held)).filter(|publication| !publication.removed)
    }

    /// All that are live, in no particular order: current and kept, removals left out.
    pub fn live(&self) -> impl Iterator<Item = Publication> + '_ {
        let entries = self.entries.iter().flatten();
        let publications = entries.filter_map(|entry| signed::read_checked(&entry.signed_bytes).ok());
        publications.filter(|publication| !publication.removed)
    }

    /// Those of a root that stand, in no particular order: current and kept, removals too.
    pub fn standing_with_root<'a>(&'a self, root: &'a Cid) -> impl Iterator<Item = Publication> + 'a {
        candidates(&self.by_root, root_prefix(root))
            .filter_map(|handle| self.read(handle))
            .filter(move |publication| publication.root == *root)
    }

    /// What is current under a name (not a label), one a publisher, removals too.
    pub fn current_with_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Publication> + 'a {
        candidates(&self.by_name, name_prefix(name))
            .filter_map(|handle| self.read(handle))
            .filter(move |publication| publication.name.as_deref() == Some(name))
            .filter(|publication| {
                let current = self.versions_of(&publication.publisher, &publication.key()).and_then(Versions::current);
                current.is_some_and(|current| current.version == publication.version)
            })
    }

    /// Those of a root that are live.
    pub fn by_root<'a>(&'a self, root: &'a Cid) -> impl Iterator<Item = Publication> + 'a {
        self.standing_with_root(root).filter(|publication| !publication.removed)
    }

    /// What is current under a name (not a label), one a publisher, removals left out.
    pub fn by_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Publication> + 'a {
        self.current_with_name(name).filter(|publication| !publication.removed)
    }

    /// The ids of all that stand, removals too: what catch-up compares.
    pub fn ids(&self) -> &IdSet {
        &self.ids
    }

    /// How many entries stand, removals too.
    pub fn len(&self) -> usize {
        self.shares.len()
    }

    /// Whether none stands.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn versions_of(&self, publisher: &PeerId, key: &EntryKey) -> Option<&Versions<u32>> {
        self.shares.versions(&body::public_key_bytes(publisher).ok()?, key)
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

    /// Forgets what does not stand any more, and frees its handle.
    fn unlink(&mut self, handle: u32, for_room: bool) -> Option<Dropped> {
        let entry = self.entries.get_mut(handle as usize).and_then(Option::take)?;
        self.free.push(handle);
        self.ids.remove(&entry.id);
        self.by_id.remove(&(prefix(&entry.id), handle));
        // What stands was decoded before, so it decodes.
        let publication = signed::read_checked(&entry.signed_bytes).ok()?;
        self.by_root.remove(&(root_prefix(&publication.root), handle));
        if let Some(name) = &publication.name {
            self.by_name.remove(&(name_prefix(name), handle));
        }
        Some(Dropped { publication, id: entry.id, for_room })
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

    /// Whether it stands now and did not before.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Taken { .. })
    }
}

/// The order among the publications of one key, version and floor.
fn rank<'a>(publication: &Publication, signed_bytes: &'a [u8]) -> ([u8; crate::cid::CID_BYTES], &'a [u8]) {
    (publication.root.to_bytes(), signed_bytes)
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
