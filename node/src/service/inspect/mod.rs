//! Looking into a DAG: what a reference means, what a directory holds, and where the copies of a chunk are.

mod check;
mod error;
mod label;
mod listed;
mod measure;
mod own;
mod pin;
mod placement;
mod resolve;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use futures::{StreamExt as _, stream};
use p2p_protocol::{
    Cid, Codec, PeerId,
    catalogue::Kind,
    dag::{DirectoryWalker, Entry, Node, decode},
};

pub(crate) use self::error::{dag_error, fetch_error};
#[cfg(test)]
pub(crate) use self::resolve::resolved;
pub use self::{
    check::{Agreement, Checked},
    error::ReadError,
    listed::Through,
    own::Named,
    pin::{Keepable, Naming, Walked},
    placement::{Copies, Survey},
    resolve::Resolved,
};
use super::{
    blocking::Blocking,
    catalogue::Catalogue,
    fetch::{ChunkSource, Fetch},
    locate::Locate,
    progress::Progress,
    sync::{Short, Sync},
    transfer::Transfer,
};
use tokio::sync::watch::Sender;

use crate::{net::Network, store::Store};

/// Chunks that are fetched at once while a DAG is looked at: inner nodes are small (a quarter MiB at the most in the
/// layout made here), and sixteen hide the delay of any link.
const AT_ONCE: usize = 16;
/// Entries of one directory that are listed: the answer is held and sorted in memory, at about 300 bytes each.
const MAX_LISTED: usize = 200_000;

type Result<T, E = ReadError> = std::result::Result<T, E>;

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its address.
    pub cid: Cid,
    /// What it is.
    pub kind: Kind,
    /// Content bytes.
    pub size: u64,
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Inspect {
    network: Network,
    store: Store,
    transfer: Transfer,
    locate: Locate,
    fetch: Fetch,
    catalogue: Catalogue,
    sync: Sync,
    /// Copies that are looked for first where no publication says how many there are.
    replicas: u8,
    scratch: PathBuf,
    blocking: Blocking,
}

impl Inspect {
    /// Looks through these rooms. `replicas` is the node's setting; `scratch` a directory for what does not fit into
    /// memory.
    #[allow(clippy::too_many_arguments)] // They are rooms, each of another type.
    pub fn new(
        network: Network,
        store: Store,
        transfer: Transfer,
        locate: Locate,
        fetch: Fetch,
        catalogue: Catalogue,
        sync: Sync,
        replicas: u8,
        scratch: PathBuf,
        blocking: Blocking,
    ) -> Self {
        Self { network, store, transfer, locate, fetch, catalogue, sync, replicas, scratch, blocking }
    }

    /// What stands behind a reference: `CID`, `NAME`, `PEER/NAME`, `NAME@VERSION`, each with a path inside where there is
    /// one. What reads as a CID or a peer id is one; no name does. Cancel-safe.
    ///
    /// # Errors
    ///
    /// A malformed reference or CID; a name of several publishers or of none; no such path; nobody has the chunks on its
    /// way.
    pub async fn resolve(&self, reference: &str) -> Result<Resolved> {
        let meaning = match resolve::mean(reference, &self.catalogue) {
            Err(ReadError::UnknownName(_) | ReadError::NoVersion { .. }) => {
                self.settled().await;
                match resolve::mean(reference, &self.catalogue) {
                    Ok(meant) => meant,
                    Err(why) => return Err(self.labelled(reference, self.found_nothing(reference, why)).await),
                }
            }
            meant => meant?,
        };
        let replicas = meaning.wanted.unwrap_or(self.replicas);
        let job = self.fetch.begin(meaning.root, meaning.publishers.clone(), replicas);
        resolve::follow(reference, meaning, job).await
    }

    /// Makes sure that the catalogue here has the newest version of the name that `reference` begins with: each one whose
    /// publishing returned before this was called, as far as it was settled ([`p2p_protocol::fresh`]). Cancel-safe.
    ///
    /// # Errors
    ///
    /// A malformed reference; one that begins with a CID; too few peers that can tell have answered.
    pub async fn freshen(&self, reference: &str) -> Result<()> {
        let (peer, text) = match resolve::parse(reference)?.what {
            resolve::What::Root(_) => return Err(ReadError::FreshRoot(reference.to_owned())),
            resolve::What::Name { peer, text } => (peer, text),
        };
        // Before the first round of discovery is over, a node that is new may think itself alone.
        self.settled().await;
        let versioned = resolve::versioned(&text).map(|(name, _)| name);
        for name in [text.as_str()].into_iter().chain(versioned) {
            self.sync.fresh(peer, name).await.map_err(|Short { answered, needed, silent }| ReadError::NotFresh {
                name: name.to_owned(),
                answered,
                needed,
                silent: silent.iter().map(|peer| self.shown(peer)).collect(),
            })?;
        }
        Ok(())
    }

    /// Why nothing was found: while the store's index fails, what is published cannot be read either.
    fn found_nothing(&self, reference: &str, why: ReadError) -> ReadError {
        match (why, self.store.check()) {
            (ReadError::UnknownName(_) | ReadError::UnknownRoot(_) | ReadError::NoVersion { .. }, Err(failed)) => {
                fetch_error(reference, &failed.into())
            }
            (why, _) => why,
        }
    }

    /// A peer as people know it: by its label, if it has one, and its id.
    fn shown(&self, peer: &PeerId) -> String {
        self.locate.label(peer).map_or_else(|| peer.to_base58(), |label| format!("{label} ({peer})"))
    }

    /// Waits for the catalogue of the peers that are found: right after a start it may not be here yet.
    pub async fn settled(&self) {
        self.locate.discovered().await;
        self.catalogue.caught_up().await;
    }

    /// The entries of a directory, sorted by name; of a file or a symbolic link, the one line that it is. Cancel-safe.
    pub async fn ls_inside(&self, reference: &str) -> Result<Vec<Line>> {
        let found = self.resolve(reference).await?;
        list(&found, reference).await
    }

    /// Size, chunks, and where the copies are: asked of every reachable storing peer now. Asking stores nothing.
    /// Cancel-safe.
    pub async fn stat(&self, reference: &str, placement: bool) -> Result<Survey> {
        let found = self.resolve(reference).await?;
        self.locate.discovered().await;
        placement::stat(self, &found, reference, placement).await
    }

    /// Whether all of a DAG is there: its links followed, compared with what its publications list, every peer asked that
    /// should have something of it, and this node's own copies read. Cancel-safe.
    pub async fn check(&self, reference: &str, progress: &Sender<Progress>) -> Result<Checked> {
        let found = self.resolve(reference).await?;
        self.locate.discovered().await;
        check::check(self, &found, reference, progress).await
    }
}

/// What a node is, for people.
fn kind(node: &Node) -> Kind {
    match node {
        Node::Leaf(_) | Node::File { .. } => Kind::File,
        Node::Directory { .. } | Node::Shard { .. } => Kind::Directory,
        Node::Symlink { .. } => Kind::Symlink,
    }
}

async fn list<S: ChunkSource>(found: &Resolved<S>, reference: &str) -> Result<Vec<Line>> {
    let node = found.node();
    if !node.is_directory() {
        let size = node.file_size().unwrap_or(0);
        let cid = *found.chunk.cid();
        return Ok(vec![Line { name: found.label.clone(), cid, kind: kind(node), size }]);
    }
    let entries = entries(found, reference).await?;
    let lines = stream::iter(entries).map(|entry| line(&found.source, entry, reference)).buffer_unordered(AT_ONCE);
    let mut lines: Vec<Line> = futures::TryStreamExt::try_collect(lines).await?;
    lines.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(lines)
}

/// All entries of a directory, in no order.
async fn entries<S: ChunkSource>(found: &Resolved<S>, reference: &str) -> Result<Vec<Entry>> {
    let mut walker = DirectoryWalker::new(&found.chunk).map_err(|why| dag_error(reference, why))?;
    let mut entries = walker.take_entries();
    while !walker.done() {
        let shards = walker.wanted().into_iter().map(|cid| found.source.chunk(cid, measure::NODE_BYTES));
        for shard in futures::future::join_all(shards).await {
            let (chunk, _) = shard.map_err(|why| fetch_error(reference, &why))?;
            walker.supply(&chunk).map_err(|why| dag_error(reference, why))?;
        }
        entries.extend(walker.take_entries());
        if entries.len() > MAX_LISTED {
            return Err(ReadError::TooManyEntries { reference: reference.to_owned(), most: MAX_LISTED });
        }
    }
    Ok(entries)
}

async fn line<S: ChunkSource>(source: &S, entry: Entry, reference: &str) -> Result<Line> {
    let Entry { name, cid, tsize } = entry;
    let (kind, size) = measure_entry(source, cid, tsize, reference).await?;
    Ok(Line { name, cid, kind, size })
}

/// Kind and content bytes of an entry; a raw leaf is not fetched for that.
async fn measure_entry<S: ChunkSource>(source: &S, cid: Cid, tsize: u64, reference: &str) -> Result<(Kind, u64)> {
    if cid.codec == Codec::Raw {
        return Ok((Kind::File, tsize));
    }
    let (chunk, _) = source.chunk(cid, measure::NODE_BYTES).await.map_err(|why| fetch_error(reference, &why))?;
    let node = decode(&chunk).map_err(|why| dag_error(reference, why))?;
    let size = match node.file_size() {
        Some(size) => size,
        None if node.is_directory() => measure::content_bytes(source, cid, reference).await?,
        None => 0,
    };
    Ok((kind(&node), size))
}
