//! What is kept in memory of each publication that stands, by handle, and what it is found by.

use std::cmp::Ordering;

use super::{
    EntryKey, Publication, Standing, VersionKey, Versions,
    handles::{At, Handles},
};
use crate::Cid;

/// Entries of a chunk: the table grows without moving what it has, and without as much again in reserve.
const CHUNK: usize = 4096;

/// 48 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    place: [u8; 16],
    version: u64,
    floor: u64,
    /// The publisher, by its number.
    pub(super) publisher: u32,
    /// The beginning of the hash of its root.
    root: u32,
    /// The same of its name, if it has one.
    name: u32,
    named: bool,
}

impl Entry {
    /// Of a publication whose publisher has this number.
    pub(super) fn of(publication: &Publication, publisher: u32) -> Self {
        let VersionKey { place, version } = publication.version_key();
        Self {
            place,
            version,
            floor: publication.floor,
            publisher,
            root: root_hash(&publication.root),
            name: publication.name.as_deref().map_or(0, name_hash),
            named: publication.name.is_some(),
        }
    }

    pub(super) fn key(&self) -> VersionKey {
        VersionKey { place: self.place, version: self.version }
    }

    /// In the order of publishers, places and versions.
    fn order(&self) -> (u32, [u8; 16], u64) {
        (self.publisher, self.place, self.version)
    }
}

/// All entries. Handles that were freed are used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    /// All but the last are full.
    chunks: Vec<Vec<Option<Entry>>>,
    free: Vec<u32>,
    by_place: Handles,
    /// By the beginning of a hash, then by handle: whoever looks compares the whole.
    by_root: Handles,
    by_name: Handles,
}

impl Entries {
    pub(super) fn get(&self, handle: u32) -> Option<&Entry> {
        let handle = handle as usize;
        self.chunks.get(handle / CHUNK)?.get(handle % CHUNK)?.as_ref()
    }

    /// Adds one; gives its handle.
    pub(super) fn add(&mut self, entry: Entry) -> u32 {
        let handle = match self.free.pop() {
            Some(handle) => handle,
            None => self.grow(),
        };
        if let Some(place) = self.slot(handle) {
            *place = Some(entry);
        }
        let at = self.place(entry.order());
        self.by_place.insert(at, handle);
        let at = self.hashed(&self.by_root, |entry| entry.root, entry.root, handle);
        self.by_root.insert(at, handle);
        if entry.named {
            let at = self.hashed(&self.by_name, |entry| entry.name, entry.name, handle);
            self.by_name.insert(at, handle);
        }
        handle
    }

    /// Takes one out, and frees its handle.
    pub(super) fn remove(&mut self, handle: u32) -> Option<Entry> {
        let entry = *self.get(handle)?;
        let at = self.place(entry.order());
        self.by_place.remove(at);
        let at = self.hashed(&self.by_root, |entry| entry.root, entry.root, handle);
        self.by_root.remove(at);
        if entry.named {
            let at = self.hashed(&self.by_name, |entry| entry.name, entry.name, handle);
            self.by_name.remove(at);
        }
        *self.slot(handle)? = None;
        self.free.push(handle);
        Some(entry)
    }

    /// What stands of a publisher's place, by handle.
    pub(super) fn versions(&self, publisher: u32, place: &EntryKey) -> Versions<u32> {
        let at = self.place((publisher, place.place(), 0));
        let standing = self.by_place.from(at).map_while(|handle| {
            let entry = self.get(handle)?;
            let here = (entry.publisher, entry.place) == (publisher, place.place());
            here.then_some(Standing { version: entry.version, floor: entry.floor, held: handle })
        });
        // At most `MAX_VERSIONS`.
        Versions::of(standing.collect())
    }

    /// The lowest version in the greatest place of a publisher.
    pub(super) fn greatest(&self, publisher: u32) -> Option<u32> {
        let behind = self.by_place.behind(|handle| self.get(handle).is_some_and(|entry| entry.publisher <= publisher));
        let last = self.get(self.by_place.before(behind)?).filter(|last| last.publisher == publisher)?;
        self.by_place.get(self.place((publisher, last.place, 0)))
    }

    /// Those that may have this root.
    pub(super) fn with_root(&self, root: &Cid) -> impl Iterator<Item = u32> + '_ {
        let hash = root_hash(root);
        let at = self.hashed(&self.by_root, |entry| entry.root, hash, 0);
        self.by_root.from(at).take_while(move |handle| self.get(*handle).is_some_and(|entry| entry.root == hash))
    }

    /// Those that may have this name.
    pub(super) fn with_name(&self, name: &str) -> impl Iterator<Item = u32> + '_ {
        let hash = name_hash(name);
        let at = self.hashed(&self.by_name, |entry| entry.name, hash, 0);
        self.by_name.from(at).take_while(move |handle| self.get(*handle).is_some_and(|entry| entry.name == hash))
    }

    fn place(&self, order: (u32, [u8; 16], u64)) -> At {
        self.by_place.behind(|handle| self.get(handle).is_some_and(|entry| entry.order() < order))
    }

    fn hashed(&self, handles: &Handles, hash_of: impl Fn(&Entry) -> u32, hash: u32, handle: u32) -> At {
        handles.behind(|other| {
            let order = self.get(other).map_or(Ordering::Less, |entry| hash_of(entry).cmp(&hash));
            order.then(other.cmp(&handle)).is_lt()
        })
    }

    fn slot(&mut self, handle: u32) -> Option<&mut Option<Entry>> {
        let handle = handle as usize;
        self.chunks.get_mut(handle / CHUNK)?.get_mut(handle % CHUNK)
    }

    /// A handle that nobody had yet. A process cannot hold 2^32 entries.
    fn grow(&mut self) -> u32 {
        if self.chunks.last().is_none_or(|last| last.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(if self.chunks.is_empty() { 0 } else { CHUNK }));
        }
        let full = (self.chunks.len() - 1) * CHUNK;
        let Some(last) = self.chunks.last_mut() else { return 0 };
        last.push(None);
        (full + last.len() - 1) as u32
    }
}

/// Hashed, because a root is what its publisher says: many that begin alike would be found by each of them.
fn root_hash(root: &Cid) -> u32 {
    beginning(&root.to_bytes())
}

fn name_hash(name: &str) -> u32 {
    beginning(name.as_bytes())
}

fn beginning(bytes: &[u8]) -> u32 {
    let mut first = [0; 4];
    first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..4]);
    u32::from_be_bytes(first)
}
