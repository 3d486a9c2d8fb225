//! Changes of chunks' terms, gathered: one sync serves all that came while the last one ran.

use p2p_protocol::Multihash;
use tokio::sync::{mpsc, oneshot};

use crate::{
    service::worker::{Layer, Work},
    store::{Amendment, Store},
};

/// Changes that wait: some batches ahead of the store.
const WAITING: usize = 4096;
/// Changes of one batch.
const BATCH: usize = 1024;

/// What the task is given.
#[derive(Debug)]
pub(super) enum Change {
    /// New terms for a chunk.
    Amend(Multihash, Amendment),
    /// Answered when all that came before is on disk.
    Settled(oneshot::Sender<()>),
}

/// Starts the worker. A change that it was given and that is not written when it ends leaves a mark, which costs a
/// question to peers and loses nothing.
pub(super) fn start(store: Store, workers: &Layer) -> mpsc::Sender<Change> {
    let (sender, changes) = mpsc::channel(WAITING);
    workers.spawn("marks of copies", |work| run(store, changes, work));
    sender
}

async fn run(store: Store, mut changes: mpsc::Receiver<Change>, work: Work) {
    let mut gathered = Vec::new();
    while changes.recv_many(&mut gathered, BATCH).await > 0 {
        work.working(0, Some(gathered.len() as u64));
        let mut groups: Vec<(Amendment, Vec<Multihash>)> = Vec::new();
        let mut waiting = Vec::new();
        for change in gathered.drain(..) {
            match change {
                Change::Settled(done) => waiting.push(done),
                // Few kinds of changes are made, so a list is searched fast.
                Change::Amend(hash, change) => match groups.iter_mut().find(|(known, _)| *known == change) {
                    Some((_, hashes)) => hashes.push(hash),
                    None => groups.push((change, vec![hash])),
                },
            }
        }
        for (change, hashes) in groups {
            if let Err(error) = store.amend(hashes, change).await {
                // A mark that stays costs a question to peers that have the chunk already, never a chunk.
                tracing::warn!(%error, "the terms of chunks could not be changed; their copies will be checked again");
            }
        }
        for done in waiting {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
        work.idle();
    }
}
