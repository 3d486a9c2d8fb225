//! What is pinned on this node: records of its log, and what the lister is told of them.
//!
//! A pin is a record first. The lister lists what it stands for like one more publication, over all of the keyspace, so
//! that the keeper fetches it and nobody frees it; whatever comes between is made good by the next start, which reads the
//! records again.

use std::collections::BTreeMap;

use bytes::Bytes;
use p2p_protocol::{
    Chunk, Cid, PeerId,
    catalogue::{EntryKey, Publication},
    duty::{PIN, lister::Listed},
    manifest::Entry,
};

use super::{Keep, KeepError, lists::known_as};
use crate::{
    service::catalogue::Catalogue,
    store::{Put, Store, StoreError},
};

/// The most pins of a node: each is read when one changes and at each start, and takes under a kilobyte. Who wants more
/// pins a directory, or has the network keep more copies.
pub const MOST_PINS: usize = 4096;

/// The keys of the records: behind it, the CID of a root, or a publisher's peer id and a name.
const ROOTS: &[u8] = b"pin/root/";
const NAMES: &[u8] = b"pin/name/";
const BOTH: &[u8] = b"pin/";

/// What a pin stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// This content, until it is unpinned: as it was published, or found, when it was pinned.
    Root(Box<Publication>),
    /// Whatever is the newest version of a name, until the name is removed: as it stood when it was pinned. It has a name.
    Name(Box<Publication>),
}

impl Target {
    /// The key of its record: what is pinned twice is pinned once.
    pub fn key(&self) -> Bytes {
        match self {
            Self::Root(content) => Self::key_of_root(&content.root),
            Self::Name(content) => [NAMES, &content.publisher.to_bytes(), name_of(content).as_bytes()].concat().into(),
        }
    }

    /// The key of the record of a root.
    fn key_of_root(root: &Cid) -> Bytes {
        [ROOTS, &root.to_bytes()].concat().into()
    }

    /// `None`: it is not valid content.
    fn value(&self) -> Option<Bytes> {
        self.pinned().to_unsigned_bytes().ok().map(Bytes::from)
    }

    /// What it stood for when it was pinned.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn pinned(&self) -> &Publication {
        match self {
            Self::Root(content) | Self::Name(content) => content,
        }
    }

    /// The name, and whose, if that is what is pinned.
    pub fn name(&self) -> Option<(&PeerId, &str)> {
        match self {
            Self::Root(_) => None,
            Self::Name(content) => Some((&content.publisher, name_of(content))),
        }
    }

    fn read(key: &[u8], value: &[u8]) -> Option<Self> {
        let content = Box::new(Publication::from_unsigned_bytes(value).ok()?);
        let target = if key.starts_with(ROOTS) {
            Self::Root(content)
        } else {
            content.name.as_ref()?;
            Self::Name(content)
        };
        // One under another's key is none.
        (target.key() == key).then_some(target)
    }

    /// What it has this node keep now.
    pub fn content(&self, catalogue: &Catalogue) -> Content {
        match self {
            Self::Root(content) => Content::Is(content.clone()),
            Self::Name(content) => {
                let publisher = &content.publisher;
                match catalogue.current(publisher, &EntryKey::named(publisher, name_of(content))) {
                    Some(current) if current.removed => Content::Removed,
                    Some(current) => Content::Is(Box::new(current)),
                    None => Content::Unknown,
                }
            }
        }
    }

    fn follows(&self, publication: &Publication) -> bool {
        matches!(self, Self::Name(content)
            if content.publisher == publication.publisher && content.name == publication.name)
    }
}

/// Of content that is pinned by its name.
fn name_of(content: &Publication) -> &str {
    content.name.as_deref().unwrap_or_default()
}

/// What a pin stands for now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// This.
    Is(Box<Publication>),
    /// The name was removed: the pin is over.
    Removed,
    /// The name is not in the catalogue, which has no room for all, or has not heard of it again: what was kept for it is
    /// kept on, after a start what it was when it was pinned.
    Unknown,
}

impl Keep {
    /// Pins it from now on, durable on return. What is pinned already stays as it is.
    ///
    /// # Errors
    /// Of the store; there are too many; the content is not valid.
    pub async fn pin(&self, target: &Target) -> Result<(), KeepError> {
        let store = &self.around.store;
        let key = target.key();
        if store.record(&key)?.is_none() {
            if store.records(BOTH, None, MOST_PINS)?.len() >= MOST_PINS {
                return Err(KeepError::TooManyPins);
            }
            store.put_record(key, target.value().ok_or(KeepError::Unpinnable)?).await?;
        }
        // Also where the record was there: whoever pinned it may have been cut off before this.
        self.pins.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// Ends a pin, durable on return. What it kept stays until its grace is over, or as a cached copy.
    ///
    /// # Errors
    /// Where the record cannot be removed: then it is pinned still.
    pub async fn unpin(&self, target: &Target) -> Result<(), KeepError> {
        self.around.store.remove_record(target.key()).await?;
        self.pins.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// Everything that is pinned.
    pub fn pinned(&self) -> Result<Vec<Target>, StoreError> {
        all(&self.around.store)
    }

    /// Whether it is pinned.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn is_pinned(&self, target: &Target) -> Result<bool, StoreError> {
        Ok(self.around.store.record(&target.key())?.is_some())
    }

    /// What a pin stands for now.
    pub fn content(&self, target: &Target) -> Content {
        target.content(&self.around.catalogue)
    }

    /// Which of these are not here, or not held by any pin yet. What is, stays: nothing is given up or freed between the
    /// look and the answer.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub async fn not_kept(&self, entries: &[Entry]) -> Result<NotKept, StoreError> {
        let (missing, unpinned) = self.around.wanted.not_pinned(entries).await?;
        Ok(NotKept { missing, unpinned })
    }

    /// Keeps a chunk that somebody fetched. It is protected for a grace, and then by what lists it.
    ///
    /// # Errors
    /// Where the store fails, or has no room.
    pub async fn put(&self, chunk: Chunk) -> Result<Put, StoreError> {
        self.around.wanted.put(chunk).await
    }
}

/// What is not kept yet of some chunks.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NotKept {
    /// Those that are not here.
    pub missing: Vec<Entry>,
    /// How many are here, and named by no pin.
    pub unpinned: usize,
}

fn all(store: &Store) -> Result<Vec<Target>, StoreError> {
    let records = store.records(BOTH, None, MOST_PINS)?;
    Ok(records.into_iter().filter_map(|(key, value)| Target::read(&key, &value)).collect())
}

/// What the lister is to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// This is to be kept.
    Live(Listed),
    /// It is not any more; and its root, whose publications list its chunks still.
    Gone(u64, Cid),
    /// The name was removed: the record is to go.
    Over(Target),
}

/// The pins, as the lister was told of them.
#[derive(Debug, Default)]
pub(super) struct Pins {
    known: BTreeMap<Bytes, Known>,
}

#[derive(Debug)]
struct Known {
    target: Target,
    told: Option<Told>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Told {
    id: u64,
    root: Cid,
}

impl Pins {
    /// Compares all with the records and the catalogue.
    pub(super) fn look(&mut self, store: &Store, catalogue: &Catalogue) -> Result<Vec<Change>, StoreError> {
        let mut targets: BTreeMap<Bytes, Target> =
            all(store)?.into_iter().map(|target| (target.key(), target)).collect();
        let mut changes = Vec::new();
        self.known.retain(|key, known| {
            let stays = targets.contains_key(key);
            if !stays {
                changes.extend(known.told.map(|told| Change::Gone(told.id, told.root)));
            }
            stays
        });
        targets.retain(|key, _| !self.known.contains_key(key));
        self.known.extend(targets.into_iter().map(|(key, target)| (key, Known { target, told: None })));
        self.known.retain(|_, known| known.follow(catalogue, &mut changes));
        Ok(changes)
    }

    /// A publication became live, or ceased to be: the name that it has may be pinned.
    pub(super) fn changed(&mut self, publication: &Publication, catalogue: &Catalogue) -> Vec<Change> {
        let mut changes = Vec::new();
        self.known.retain(|_, known| !known.target.follows(publication) || known.follow(catalogue, &mut changes));
        changes
    }
}

impl Known {
    /// What it stands for may be another one; `false`: the pin is over.
    fn follow(&mut self, catalogue: &Catalogue, changes: &mut Vec<Change>) -> bool {
        let content = match self.target.content(catalogue) {
            Content::Is(content) => content,
            Content::Unknown if self.told.is_some() => return true,
            Content::Unknown => Box::new(self.target.pinned().clone()),
            Content::Removed => {
                changes.extend(self.told.map(|told| Change::Gone(told.id, told.root)));
                changes.push(Change::Over(self.target.clone()));
                return false;
            }
        };
        let told = Told { id: id(&self.target, &content), root: content.root };
        if self.told == Some(told) {
            return true;
        }
        // The new one first: what both have is listed all the time.
        let Publication { listing, chunks, publisher, .. } = *content;
        let publisher = Some(publisher);
        changes.push(Change::Live(Listed { publication: told.id, listing, chunks, copies: PIN, publisher }));
        changes.extend(self.told.map(|before| Change::Gone(before.id, before.root)));
        self.told = Some(told);
        true
    }
}

/// What rows know it as, by the pin and by what it stands for now.
fn id(target: &Target, content: &Publication) -> u64 {
    let says = [&target.key()[..], &content.version.to_be_bytes(), &content.root.to_bytes()].concat();
    // Other bytes than those of any publication: these begin with "pin/", and no hash does.
    known_as(&says)
}

#[cfg(test)]
mod tests {
    use p2p_protocol::{
        Codec,
        catalogue::Kind,
        manifest::{Entry, Listing},
    };

    use super::*;
    use crate::service::rig::peer;

    fn content(name: Option<&str>) -> Publication {
        let root = Cid::of(Codec::Raw, b"a file");
        Publication {
            publisher: peer(1),
            name: name.map(str::to_owned),
            label: "file.txt".to_owned(),
            root,
            kind: Kind::File,
            size: 6,
            replicas: 3,
            chunks: 1,
            listing: Listing::Inline(vec![Entry { cid: root, length: 6 }]),
            version: 2,
            floor: 1,
            time_milliseconds: 1000,
            removed: false,
        }
    }

    #[test]
    fn records_are_what_the_specification_says_and_are_read_back() {
        let root = Target::Root(Box::new(content(Some("notes"))));
        let name = Target::Name(Box::new(content(Some("notes"))));
        for target in [&root, &name] {
            let (key, value) = (target.key(), target.value().expect("it is valid"));
            assert_eq!(Target::read(&key, &value).as_ref(), Some(target));
            assert_eq!(Target::read(&key, &value[..value.len() - 1]), None);
        }
        assert_eq!(&root.key()[..], [b"pin/root/", &content(None).root.to_bytes()[..]].concat());
        assert_eq!(root.value().expect("it is valid")[0], p2p_protocol::catalogue::FORMAT_VERSION);
        assert_eq!(&name.key()[..], [b"pin/name/", &peer(1).to_bytes()[..], b"notes"].concat());
        assert_eq!(name.value(), root.value());
        assert_eq!(peer(1).to_bytes().len(), 38, "of every publisher");
        // A record under another root's key is none, and neither is one under another name's.
        assert_eq!(Target::read(&Target::key_of_root(&Cid::of(Codec::Raw, b"b")), &root.value().expect("valid")), None);
        let other = Target::Name(Box::new(content(Some("other"))));
        assert_eq!(Target::read(&name.key(), &other.value().expect("valid")), None);
        assert_eq!(Target::read(&name.key(), &Target::Root(Box::new(content(None))).value().expect("valid")), None);
    }

    #[test]
    fn a_name_and_its_root_are_two_pins_and_each_version_is_another_one_in_rows() {
        let root = Target::Root(Box::new(content(Some("notes"))));
        let name = Target::Name(Box::new(content(Some("notes"))));
        let later = Publication { version: 3, ..content(Some("notes")) };
        let ids = [id(&root, &content(Some("notes"))), id(&name, &content(Some("notes"))), id(&name, &later)];
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
        assert!(name.follows(&later) && !root.follows(&later));
        assert!(!name.follows(&Publication { publisher: peer(2), ..later.clone() }));
        assert!(!name.follows(&Publication { name: Some("other".to_owned()), ..later }));
    }
}
