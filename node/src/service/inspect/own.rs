//! Which entries of the catalogue a reference names as a whole: those that are removed and restored, and those whose
//! versions are listed.

use p2p_protocol::{
    PeerId,
    catalogue::{EntryKey, Publication},
};

use super::{
    Inspect, ReadError, Result,
    resolve::{Reference, What, parse, versioned},
};

/// A place in the catalogue that was named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// What is current there.
    pub current: Publication,
    /// The version that was named.
    pub version: Option<u64>,
}

impl Named {
    /// Where it is.
    pub fn key(&self) -> EntryKey {
        self.current.key()
    }
}

impl Inspect {
    /// What of this node a reference would remove: what it has under a name, or each of its entries whose current root is
    /// the CID. Never nothing.
    ///
    /// # Errors
    ///
    /// A malformed reference, one with a path or a version; nothing of that name or root; or only of others.
    pub fn to_remove(&self, reference: &str) -> Result<Vec<Named>> {
        let what = whole(reference)?;
        let found = self.find(&what);
        if found.is_empty() && matches!(&what, What::Name { text, .. } if versioned(text).is_some()) {
            return Err(ReadError::OneVersion(reference.to_owned()));
        }
        let live: Vec<_> = found.into_iter().filter(|entry| !entry.removed).collect();
        let own = self.own(reference, &what, live)?;
        let (current, earlier): (Vec<_>, Vec<_>) = own.into_iter().partition(|entry| self.is_current(entry));
        if current.is_empty() {
            let shown = |entry: &Publication| match &entry.name {
                Some(name) => format!("version {} of {name}", entry.version),
                None => format!("version {} of {}", entry.version, entry.label),
            };
            return Err(ReadError::OnlyEarlier {
                reference: reference.to_owned(),
                earlier: earlier.iter().map(shown).collect(),
            });
        }
        Ok(current.into_iter().map(|current| Named { current, version: None }).collect())
    }

    /// What of this node a reference would bring back: what was removed under a name or with the root that the CID is, or
    /// the earlier version that it names. Never nothing.
    ///
    /// # Errors
    ///
    /// A malformed reference, one with a path; nothing of that name, root or version; or only of others.
    pub fn to_restore(&self, reference: &str) -> Result<Vec<Named>> {
        let what = whole(reference)?;
        let found = self.find(&what);
        if let (What::Name { peer, text }, true) = (&what, found.is_empty())
            && let Some((name, version)) = versioned(text)
        {
            let found = self.find(&What::Name { peer: *peer, text: name.to_owned() });
            let current = self.own(reference, &what, found)?;
            let named = current.into_iter().map(|current| self.with_version(current, version));
            return named.collect();
        }
        let own = self.own(reference, &what, found)?;
        // Of a root it is the removed ones that are meant; where there are none, the caller says so of any.
        let removed: Vec<_> = own.iter().filter(|entry| entry.removed).cloned().collect();
        let meant = if removed.is_empty() { own.into_iter().take(1).collect() } else { removed };
        Ok(meant.into_iter().map(|current| Named { current, version: None }).collect())
    }

    /// The versions that are kept of a name, newest first, a removal too; or those of the entry that a CID names, where
    /// it has no name.
    ///
    /// # Errors
    ///
    /// A malformed reference, one with a path or a version; nothing of that name or root; several publishers.
    pub fn history(&self, reference: &str) -> Result<Vec<Publication>> {
        let what = whole(reference)?;
        let mut found = self.find(&what);
        // Who removed it leaves the name to those that have it.
        if found.iter().any(|entry| !entry.removed) {
            found.retain(|entry| !entry.removed);
        }
        if let (What::Name { peer, text }, true) = (&what, found.is_empty())
            && let Some((name, _)) = versioned(text)
            && !self.find(&What::Name { peer: *peer, text: name.to_owned() }).is_empty()
        {
            let name = peer.map_or_else(|| name.to_owned(), |peer| format!("{peer}/{name}"));
            return Err(ReadError::OneOfHistory { reference: reference.to_owned(), name });
        }
        match (found.as_slice(), what) {
            ([], what) => Err(self.found_nothing(reference, unknown(reference, &what))),
            ([one], _) => Ok(self.catalogue.history(&one.publisher, &one.key())),
            (several, What::Name { text, .. }) => Err(ReadError::Ambiguous {
                choices: several.iter().map(|entry| format!("{}/{text}", entry.publisher)).collect(),
                name: text,
            }),
            (several, What::Root(_)) => {
                let own = several.iter().find(|entry| entry.publisher == self.network.local()).unwrap_or(&several[0]);
                Ok(self.catalogue.history(&own.publisher, &own.key()))
            }
        }
    }

    /// Entries of everybody, removals too: what is current under a name, every version with a root.
    fn find(&self, what: &What) -> Vec<Publication> {
        match what {
            What::Root(root) => self.catalogue.standing_with_root(root),
            What::Name { peer, text } => {
                let mut found = self.catalogue.current_with_name(text);
                found.retain(|entry| peer.is_none_or(|peer| entry.publisher == peer));
                found
            }
        }
    }

    /// Those of this node.
    fn own(&self, reference: &str, what: &What, found: Vec<Publication>) -> Result<Vec<Publication>> {
        let local = self.network.local();
        let (own, foreign): (Vec<_>, Vec<_>) = found.into_iter().partition(|entry| entry.publisher == local);
        if !own.is_empty() {
            return Ok(own);
        }
        let mut publishers: Vec<PeerId> =
            foreign.iter().filter(|entry| !entry.removed).map(|entry| entry.publisher).collect();
        if publishers.is_empty() {
            return Err(self.found_nothing(reference, unknown(reference, what)));
        }
        publishers.sort();
        publishers.dedup();
        let publishers = publishers.iter().map(PeerId::to_string).collect();
        Err(ReadError::Foreign { reference: reference.to_owned(), publishers })
    }

    fn is_current(&self, entry: &Publication) -> bool {
        let current = self.catalogue.current(&entry.publisher, &entry.key());
        current.is_some_and(|current| current.version == entry.version)
    }

    fn with_version(&self, current: Publication, version: u64) -> Result<Named> {
        let kept = self.catalogue.history(&current.publisher, &current.key());
        if kept.iter().any(|entry| entry.version == version && !entry.removed) {
            return Ok(Named { current, version: Some(version) });
        }
        let mut kept: Vec<u64> = kept.iter().filter(|entry| !entry.removed).map(|entry| entry.version).collect();
        kept.sort_unstable();
        let name = current.name.unwrap_or(current.label);
        Err(ReadError::NoVersion { name, version, kept })
    }
}

/// Nothing in the catalogue is what a reference names.
fn unknown(reference: &str, what: &What) -> ReadError {
    match what {
        What::Root(root) => ReadError::UnknownRoot(*root),
        What::Name { .. } => ReadError::UnknownName(reference.to_owned()),
    }
}

/// What a reference without a path names.
fn whole(reference: &str) -> Result<What> {
    let Reference { what, path } = parse(reference)?;
    if path.is_empty() { Ok(what) } else { Err(ReadError::Inside(reference.to_owned())) }
}
