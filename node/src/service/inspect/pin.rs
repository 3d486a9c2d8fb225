//! What a reference would have a node keep a whole copy of, and what that is called when it ends.

use std::time::{SystemTime, UNIX_EPOCH};

use p2p_protocol::{
    Cid, PeerId,
    catalogue::{MAX_SIZE_BYTES, MAX_TIME_MILLISECONDS, MIN_REPLICAS, Publication},
    manifest::Listing,
};

use super::{
    Inspect, ReadError, Resolved, Result, kind,
    measure::walk,
    resolve::{What, named, parse},
};
use crate::service::{
    distinct::{Distinct, Sorted},
    reason::reason,
};

/// What a reference means to whoever would keep all of it.
#[derive(Debug)]
pub enum Keepable {
    /// The newest version of a publisher's name, whichever that is.
    Name(Box<Publication>),
    /// What was published so, be it an earlier version or removed lately.
    Published(Box<Publication>),
    /// Nobody published it as such: its own links say what it has.
    Walked(Box<Walked>),
}

/// A DAG whose links were followed.
#[derive(Debug)]
pub struct Walked {
    /// What is to be said of it, but for its listing and the number of its chunks.
    pub content: Publication,
    /// Its distinct chunks.
    pub sorted: Sorted,
}

/// What a reference names, without a look at what there is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Naming {
    /// A root.
    Root(Cid),
    /// A name as it was written, perhaps with a version, and whose.
    Name(Option<PeerId>, String),
    /// Something inside.
    Inside,
}

impl Inspect {
    /// What a reference names.
    ///
    /// # Errors
    /// A malformed reference.
    pub fn naming(&self, reference: &str) -> Result<Naming> {
        let parsed = parse(reference)?;
        Ok(match parsed.what {
            _ if !parsed.path.is_empty() => Naming::Inside,
            What::Root(root) => Naming::Root(root),
            What::Name { peer, text } => Naming::Name(peer, text),
        })
    }

    /// What would be kept of a reference: a name with its later versions, else content. What nobody published is walked,
    /// for which its inner nodes are fetched. Cancel-safe.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve); of what is walked, too wide or too deep a DAG, and no room for the list of its chunks.
    pub async fn keepable(&self, reference: &str) -> Result<Keepable> {
        if let Some(found) = self.published(reference) {
            return found;
        }
        self.settled().await;
        match self.published(reference) {
            Some(found) => found,
            None => Ok(Keepable::Walked(Box::new(self.walked(reference).await?))),
        }
    }

    /// `None`: nobody published it, or not that this node knew.
    fn published(&self, reference: &str) -> Option<Result<Keepable>> {
        let parsed = match parse(reference) {
            Ok(parsed) => parsed,
            Err(why) => return Some(Err(why)),
        };
        if !parsed.path.is_empty() {
            return None;
        }
        let published = |content: Publication| Keepable::Published(Box::new(content));
        match parsed.what {
            What::Root(root) => {
                let live = self.catalogue.by_root(&root).into_iter().next();
                // A removal says what it removed.
                let found = live.or_else(|| self.catalogue.standing_with_root(&root).into_iter().next());
                found.map(|found| Ok(published(found)))
            }
            What::Name { peer, text } => match named(peer, &text, &self.catalogue) {
                Ok(found) if found.name.as_deref() == Some(&text) => Some(Ok(Keepable::Name(Box::new(found)))),
                Ok(found) => Some(Ok(published(found))),
                Err(ReadError::UnknownName(_) | ReadError::NoVersion { .. }) => None,
                Err(why) => Some(Err(why)),
            },
        }
    }

    async fn walked(&self, reference: &str) -> Result<Walked> {
        // Of a name that nobody has this is the failure that says so.
        let found = self.resolve(reference).await?;
        let scratch_error = |why: std::io::Error| ReadError::Scratch {
            directory: self.scratch.display().to_string(),
            why: reason(&why),
        };
        let root = *found.chunk.cid();
        let mut distinct = Distinct::new(&self.scratch);
        let size = walk(&found.source, root, reference, true, |cid, bytes| {
            // Up to 65,536 chunks this touches no disk, and then once in so many.
            distinct.push(&cid, u32::try_from(bytes).unwrap_or(u32::MAX)).map_err(scratch_error)
        })
        .await?;
        let sorted = self.blocking.run(move || distinct.sorted()).await?.map_err(scratch_error)?;
        Ok(Walked { content: self.described(&found, size), sorted })
    }

    fn described(&self, found: &Resolved, size: u64) -> Publication {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Publication {
            publisher: self.network.local(),
            name: None,
            label: found.label.clone(),
            root: *found.chunk.cid(),
            kind: kind(found.node()),
            size: size.min(MAX_SIZE_BYTES),
            replicas: MIN_REPLICAS,
            chunks: 0,
            listing: Listing::Inline(Vec::new()),
            version: 1,
            floor: 1,
            time_milliseconds: u64::try_from(now).unwrap_or(u64::MAX).min(MAX_TIME_MILLISECONDS),
            removed: false,
        }
    }
}
