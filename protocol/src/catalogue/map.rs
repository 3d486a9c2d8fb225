//! The map of publications: bounded, and the same whatever the order of arrival.

use std::{cmp::Ordering, collections::BTreeMap};

use bytes::Bytes;

use super::{
    Class, EntryKey, Limits, Merged, Publication, PublicationId, SignedPublication, Standing, VersionKey, Versions,
    body,
    entries::{Entries, Entry},
    shares::{Publisher, Shares},
    signed,
};
use crate::{Cid, PeerId, reconcile::IdMap};

/// Where the signed bytes of what stands are: not in the map, which is in memory.
pub trait Kept {
    /// Those of a version that stands. `None` where they are lost: the map goes on without them, and whoever is asked for
    /// them says that it does not have them.
    fn signed_bytes(&self, key: &VersionKey) -> Option<Bytes>;
}

impl Kept for BTreeMap<VersionKey, Bytes> {
    fn signed_bytes(&self, key: &VersionKey) -> Option<Bytes> {
        self.get(key).cloned()
    }
}

/// The publications that stand: for each [`EntryKey`] its [`Versions`].
///
/// The map has what a merge and a comparison need of each; their bytes are [kept](Kept) elsewhere, under their
/// [`VersionKey`]: before a publication that was [taken](Outcome::Taken) is asked for, and until one is
/// [dropped](Merge::dropped).
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
/// Some 105 bytes an entry. `merge` is O(log n) and one BLAKE3 of the signed bytes, and beyond that O(versions of the key);
/// it reads bytes only of what it drops, and of what ties with it. Over the bounds O(publishers that have most).
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    entries: Entries,
    shares: Shares,
    /// The ids of all, and their handles.
    ids: IdMap<u32>,
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
    /// Which.
    pub key: VersionKey,
    /// What it said; `None` where its bytes are lost.
    pub publication: Option<Publication>,
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
        /// The version that was current before, if anything stood there.
        previous: Option<u64>,
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

    /// How much it holds.
    pub fn limits(&self) -> Limits {
        self.shares.limits()
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

    /// Takes a publication in, where it stands beside those that are here and there is room. `kept` has what stood before,
    /// and does not need to have this one.
    pub fn merge(&mut self, signed: &SignedPublication, kept: &impl Kept) -> Merge {
        let (id, publication) = (signed.id(), signed.publication());
        if self.ids.contains(&id) {
            return Outcome::Known.alone();
        }
        // A signed publication's publisher always embeds its key.
        let Ok(publisher) = body::public_key_bytes(&publication.publisher) else { return Outcome::Beyond.alone() };
        if self.shares.is_out(&publisher) {
            return Outcome::Beyond.alone();
        }
        let mut versions = self.versions_of(&publisher, &publication.key());
        let previous = versions.current().map(|current| current.version);
        // Its handle is not known yet, and not asked for.
        let new = Standing { version: publication.version, floor: publication.floor, held: u32::MAX };
        let merged = versions.merge(new, |_| match kept.signed_bytes(&publication.version_key()) {
            // What stands was decoded before, so it decodes.
            Some(bytes) => signed::read_checked(&bytes)
                .map_or(Ordering::Greater, |standing| rank(publication, signed.bytes()).cmp(&rank(&standing, &bytes))),
            // Nobody can say any more what stood there.
            None => Ordering::Greater,
        });
        let superseded = match merged {
            Merged::Taken(superseded) => superseded,
            Merged::Known => return Outcome::Known.alone(),
            Merged::Older => return Outcome::Older.alone(),
        };
        let number = self.shares.add(publisher);
        self.shares.subtract(publisher, superseded.len());
        let mut dropped: Vec<_> =
            superseded.into_iter().filter_map(|standing| self.unlink(standing.held, false, kept)).collect();
        let handle = self.entries.add(Entry::of(publication, number));
        self.ids.put(id, handle);
        let mut stands = true;
        for (number, gone) in self.shares.make_room(publisher) {
            for _ in 0..gone {
                match self.entries.greatest(number) {
                    Some(greatest) if greatest == handle => {
                        self.ids.take(&id);
                        self.entries.remove(handle);
                        stands = false;
                    }
                    Some(greatest) => dropped.extend(self.unlink(greatest, true, kept)),
                    None => break,
                }
            }
        }
        let outcome = if stands {
            let current = previous.is_none_or(|previous| publication.version >= previous);
            Outcome::Taken { current, previous }
        } else {
            Outcome::Beyond
        };
        Merge { outcome, dropped }
    }

    /// Forgets what stands under a key, whose bytes are lost: whoever has them is asked for them again.
    pub fn forget(&mut self, publisher: &PeerId, key: &EntryKey, version: u64) {
        let Ok(publisher) = body::public_key_bytes(publisher) else { return };
        if let Some(held) = self.versions_of(&publisher, key).get(version).map(|standing| standing.held) {
            self.forget_handle(held, publisher);
        }
    }

    /// Forgets what stands by an id, whose bytes are lost, as [`forget`](Self::forget) does.
    pub fn forget_id(&mut self, id: &PublicationId) {
        let Some(handle) = self.ids.get(id) else { return };
        let Some(number) = self.entries.get(handle).map(|entry| entry.publisher) else { return };
        if let Some(publisher) = self.shares.publisher(number) {
            self.forget_handle(handle, publisher);
        }
    }

    fn forget_handle(&mut self, handle: u32, publisher: Publisher) {
        if let Some(id) = self.ids.find(|held| held == handle) {
            self.ids.take(&id);
        }
        self.entries.remove(handle);
        self.shares.subtract(publisher, 1);
    }

    /// Whether something gave way or was refused for want of room since the start: then it differs for good from the
    /// catalogues of those that have more room, or other entries that never give way.
    pub fn has_overflowed(&self) -> bool {
        self.shares.have_overflowed()
    }

    /// Whether a publication of `version` and `floor` under a key is within the share of its publisher, so that none of the
    /// publisher's others gives way to it.
    pub fn has_room(&self, publisher: &PeerId, key: &EntryKey, version: u64, floor: u64) -> bool {
        body::public_key_bytes(publisher).is_ok_and(|publisher| {
            self.shares.has_room(&publisher, self.versions_of(&publisher, key).growth(version, floor))
        })
    }

    /// The version that is current under a key.
    pub fn current(&self, publisher: &PeerId, key: &EntryKey) -> Option<u64> {
        Some(self.versions(publisher, key)?.current()?.version)
    }

    /// Whether a version stands under a key.
    pub fn stands(&self, publisher: &PeerId, key: &EntryKey, version: u64) -> bool {
        self.versions(publisher, key).is_some_and(|versions| versions.get(version).is_some())
    }

    /// What is current under a key, a removal too.
    pub fn get(&self, publisher: &PeerId, key: &EntryKey, kept: &impl Kept) -> Option<Publication> {
        let current = *self.versions(publisher, key)?.current()?;
        self.read(current.held, kept)
    }

    /// The floor that is in force under a key: the lowest version that can stand there. 0: nothing stands.
    pub fn floor(&self, publisher: &PeerId, key: &EntryKey) -> u64 {
        self.versions(publisher, key).map_or(0, |versions| versions.floor())
    }

    /// One of the versions that stand under a key.
    pub fn version(&self, publisher: &PeerId, key: &EntryKey, version: u64, kept: &impl Kept) -> Option<Publication> {
        let standing = *self.versions(publisher, key)?.get(version)?;
        self.read(standing.held, kept)
    }

    /// The versions that stand under a key, the current one first, removals too.
    pub fn history(&self, publisher: &PeerId, key: &EntryKey, kept: &impl Kept) -> Vec<Publication> {
        let versions = self.versions(publisher, key).unwrap_or_default();
        versions.iter().rev().filter_map(|standing| self.read(standing.held, kept)).collect()
    }

    /// What stands by an id: under which key its bytes are kept.
    pub fn key_of(&self, id: &PublicationId) -> Option<VersionKey> {
        self.ids.get(id).and_then(|handle| self.entries.get(handle)).map(Entry::key)
    }

    /// The signed bytes of what stands, by their id.
    pub fn signed_bytes(&self, id: &PublicationId, kept: &impl Kept) -> Option<Bytes> {
        kept.signed_bytes(&self.key_of(id)?).filter(|bytes| signed::publication_id(bytes) == *id)
    }

    /// Those of a root that stand, in no particular order: current and kept, removals too.
    pub fn standing_with_root(&self, root: &Cid, kept: &impl Kept) -> Vec<Publication> {
        let found = self.entries.with_root(root).filter_map(|handle| self.read(handle, kept));
        found.filter(|publication| publication.root == *root).collect()
    }

    /// What is current under a name (not a label), one a publisher, removals too.
    pub fn current_with_name(&self, name: &str, kept: &impl Kept) -> Vec<Publication> {
        let found = self.entries.with_name(name).filter_map(|handle| self.read(handle, kept));
        let named = found.filter(|publication| publication.name.as_deref() == Some(name));
        named.filter(|entry| self.current(&entry.publisher, &entry.key()) == Some(entry.version)).collect()
    }

    /// Under which keys the bytes of what may have a name are kept, one publisher's or everybody's: those of what is
    /// current, then those of the versions before it, removals too. Whoever looks compares the name: among everybody's may
    /// be some of another whose hash begins alike.
    pub fn keys_with_name(&self, publisher: Option<&PeerId>, name: &str) -> (Vec<VersionKey>, Vec<VersionKey>) {
        let handles: Vec<u32> = match publisher {
            Some(publisher) => {
                let versions = self.versions(publisher, &EntryKey::named(publisher, name)).unwrap_or_default();
                versions.iter().map(|standing| standing.held).collect()
            }
            None => self.entries.with_name(name).collect(),
        };
        let mut keys: Vec<_> =
            handles.into_iter().filter_map(|handle| self.entries.get(handle)).map(Entry::key).collect();
        // Each place's together, the current one first.
        keys.sort_unstable_by(|a, b| b.cmp(a));
        let places = keys.chunk_by(|a, b| a.place == b.place).filter_map(<[VersionKey]>::split_first);
        let (current, earlier): (Vec<_>, Vec<_>) = places.unzip();
        (current.into_iter().copied().collect(), earlier.concat())
    }

    /// The ids of all that stand, removals too: what catch-up compares.
    pub fn ids(&self) -> &IdMap<u32> {
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

    fn versions(&self, publisher: &PeerId, key: &EntryKey) -> Option<Versions<u32>> {
        Some(self.versions_of(&body::public_key_bytes(publisher).ok()?, key))
    }

    fn versions_of(&self, publisher: &Publisher, key: &EntryKey) -> Versions<u32> {
        self.shares.number(publisher).map(|number| self.entries.versions(number, key)).unwrap_or_default()
    }

    fn read(&self, handle: u32, kept: &impl Kept) -> Option<Publication> {
        let bytes = kept.signed_bytes(&self.entries.get(handle)?.key())?;
        signed::read_checked(&bytes).ok()
    }

    /// Forgets what does not stand any more, and frees its handle; it is counted out already.
    fn unlink(&mut self, handle: u32, for_room: bool, kept: &impl Kept) -> Option<Dropped> {
        let key = self.entries.remove(handle)?.key();
        let bytes = kept.signed_bytes(&key);
        let id =
            bytes.as_ref().map(|bytes| signed::publication_id(bytes)).filter(|id| self.ids.get(id) == Some(handle));
        // Where nobody knows its bytes any more, it is looked for.
        if let Some(id) = id.or_else(|| self.ids.find(|held| held == handle)) {
            self.ids.take(&id);
        }
        let publication = bytes.and_then(|bytes| signed::read_checked(&bytes).ok());
        Some(Dropped { key, publication, for_room })
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
