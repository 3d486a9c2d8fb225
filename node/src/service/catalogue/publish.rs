//! What this node publishes, removes and restores.

use std::time::{SystemTime, UNIX_EPOCH};

use p2p_protocol::{
    Cid, PeerId,
    catalogue::{EntryKey, Kind, MAX_TIME_MILLISECONDS, Publication, label_from},
    manifest::Listing,
};

use super::{Catalogue, ledger::Next, same_content};
use crate::store::StoreError;

/// What an add publishes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draft {
    /// The name, or none. Checked with [`p2p_protocol::catalogue::check_name`].
    pub name: Option<String>,
    /// The file's name; what no label may contain is replaced.
    pub label: String,
    /// The root.
    pub root: Cid,
    /// What it is.
    pub kind: Kind,
    /// Content bytes.
    pub size: u64,
    /// Copies wanted.
    pub replicas: u8,
    /// Distinct chunks.
    pub chunks: u64,
    /// Which they are.
    pub listing: Listing,
    /// Versions of the name that are kept, this one included; 0: all. What has no name keeps one.
    pub keep: u64,
}

/// Why something is not published.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// It has as many publications as the catalogue keeps of one publisher.
    #[error("this node has published {0} versions, and the catalogue keeps no more of one publisher")]
    Share(usize),
    /// It cannot be signed.
    #[error("cannot publish {what}: {why}")]
    Invalid {
        /// Its name or label.
        what: String,
        /// Why.
        why: String,
    },
    /// Nothing is published there.
    #[error("nothing is published there any more")]
    Nothing,
    /// It was not removed.
    #[error("{0} was not removed")]
    Stands(String),
    /// The store's log.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PublishError {
    pub(super) fn invalid(publication: &Publication, why: String) -> Self {
        Self::Invalid { what: shown(publication), why }
    }
}

type Result<T, E = PublishError> = std::result::Result<T, E>;

impl Catalogue {
    /// Whether a version more of a name (or something without one) would find room; for who is about to do much work
    /// before it publishes.
    ///
    /// # Errors
    ///
    /// [`PublishError::Share`] where it would not.
    pub fn check_room(&self, name: Option<&str>, keep: u64) -> Result<()> {
        let (local, map) = (self.ledger.local(), self.ledger.map());
        // Without a name nobody knows the root yet: any other key will do.
        let key = EntryKey::named(&local, name.unwrap_or(""));
        let version = map.current(&local, &key).unwrap_or(0).saturating_add(1);
        if map.has_room(&local, &key, version, floor(version, keep, map.floor(&local, &key))) {
            Ok(())
        } else {
            Err(PublishError::Share(map.limits().entries_per_publisher))
        }
    }

    /// Signs, keeps durably, gossips. Publishing what already stands unchanged makes no new version, unless one of the
    /// versions before it is no longer to be kept.
    ///
    /// The version is one more than the highest known here for that name or root, whether it is from this node's log
    /// or was heard. Once begun it is carried through even if the caller goes away.
    ///
    /// # Errors
    ///
    /// [`PublishError::Share`] where this node has as many publications as the catalogue keeps of one publisher;
    /// [`PublishError::Invalid`] for a name or a number of replicas that cannot be; else what the store's log says.
    pub async fn publish(&self, draft: Draft) -> Result<Publication> {
        let (local, keep) = (self.ledger.local(), if draft.name.is_some() { draft.keep } else { 1 });
        let publication = draft.into_publication(local);
        let (key, ledger) = (publication.key(), self.ledger.clone());
        let lowest = self.history(&local, &key).last().map_or(0, |lowest| lowest.version);
        let next = move |current: Option<Publication>, in_force| {
            if let Some(current) = &current
                && same_content(current, &publication)
                && lowest >= floor(current.version, keep, in_force)
            {
                return Ok(Next::Stands(current.clone()));
            }
            let version = version_after(current.as_ref(), &publication)?;
            Ok(Next::Publish(Publication { version, floor: floor(version, keep, in_force), ..publication }))
        };
        self.carry(async move { ledger.publish(key, next).await }).await
    }

    /// Withdraws what this node has under `key`: a removal, kept and gossiped like any version.
    ///
    /// # Errors
    ///
    /// [`PublishError::Nothing`] where nothing is published there; else as [`publish`](Self::publish).
    pub async fn withdraw(&self, key: EntryKey) -> Result<Publication> {
        let ledger = self.ledger.clone();
        let next = |current: Option<Publication>, _| {
            let current = current.filter(|current| !current.removed).ok_or(PublishError::Nothing)?;
            let version = version_after(Some(&current), &current)?;
            let time_milliseconds = now_milliseconds();
            Ok(Next::Publish(Publication { version, floor: version, time_milliseconds, removed: true, ..current }))
        };
        self.carry(async move { ledger.publish(key, next).await }).await
    }

    /// Publishes again, as the newest version, what a removal under `key` removed, or an earlier version that is kept.
    ///
    /// # Errors
    ///
    /// [`PublishError::Stands`] where nothing was removed, [`PublishError::Nothing`] where there is no such version; else
    /// as [`publish`](Self::publish).
    pub async fn restore(&self, key: EntryKey, version: Option<u64>) -> Result<Publication> {
        let (ledger, local) = (self.ledger.clone(), self.ledger.local());
        let earlier = version.map(|version| self.version(&local, &key, version));
        let next = move |current: Option<Publication>, in_force| {
            let current = current.ok_or(PublishError::Nothing)?;
            let content = match earlier {
                Some(earlier) => earlier.ok_or(PublishError::Nothing)?,
                None if current.removed => current.clone(),
                None => return Err(PublishError::Stands(shown(&current))),
            };
            if !current.removed && same_content(&current, &content) {
                return Ok(Next::Stands(current));
            }
            let version = version_after(Some(&current), &content)?;
            let time_milliseconds = now_milliseconds();
            Ok(Next::Publish(Publication { version, floor: in_force, time_milliseconds, removed: false, ..content }))
        };
        self.carry(async move { ledger.publish(key, next).await }).await
    }

    /// In a task of its own: between the log and the map there is no place to stop.
    async fn carry(
        &self,
        publishing: impl Future<Output = Result<Publication>> + Send + 'static,
    ) -> Result<Publication> {
        let published = self.workers.carry_through(publishing).await;
        published.ok().flatten().unwrap_or(Err(StoreError::Closed.into()))
    }
}

impl Draft {
    /// What is published, version and floor to be set.
    pub(super) fn into_publication(self, publisher: PeerId) -> Publication {
        Publication {
            publisher,
            label: label_from(&self.label, self.name.as_deref().unwrap_or(&self.root.to_string())),
            name: self.name,
            root: self.root,
            kind: self.kind,
            size: self.size,
            replicas: self.replicas,
            chunks: self.chunks,
            listing: self.listing,
            version: 0,
            floor: 0,
            time_milliseconds: now_milliseconds(),
            removed: false,
        }
    }
}

/// For people: a clock before 1970 or after 9999 shows the nearest time that can be written.
fn now_milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or(u64::MAX).min(MAX_TIME_MILLISECONDS)
}

/// The floor of a version of which `keep` are kept (0: all), where one is in force already.
fn floor(version: u64, keep: u64, in_force: u64) -> u64 {
    let wanted = if keep == 0 { 1 } else { version.saturating_sub(keep - 1) };
    wanted.max(in_force).max(1)
}

fn version_after(current: Option<&Publication>, publication: &Publication) -> Result<u64> {
    let version = current.map_or(0, |current| current.version).checked_add(1);
    version.ok_or_else(|| PublishError::invalid(publication, "its version cannot grow any more".to_owned()))
}

fn shown(publication: &Publication) -> String {
    publication.name.as_ref().unwrap_or(&publication.label).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_keeps_as_many_as_it_says_and_never_falls() {
        for (version, keep, in_force, expected) in [
            (1, 10, 0, 1),
            (10, 10, 1, 1),
            (11, 10, 1, 2),
            (11, 1, 1, 11),
            (11, 0, 1, 1),
            (11, 0, 7, 7),
            (11, 10, 9, 9),
            (u64::MAX, 2, 0, u64::MAX - 1),
            (3, u64::MAX, 0, 1),
        ] {
            assert_eq!(floor(version, keep, in_force), expected, "{version} {keep} {in_force}");
        }
    }
}
