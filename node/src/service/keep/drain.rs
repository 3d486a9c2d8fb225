//! Leaving for good: others take this node's share over while it is still there to be asked.
//!
//! A node that leaves says so. Its peers count on it no more, as if it were gone, and each of them fetches what is its
//! duty from then on, at its own pace; nothing is pushed. This node only looks whether they have done it, and remembers
//! that it leaves until it is told otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use p2p_protocol::{
    Key, Multihash, PeerId,
    duty::{EXTRA, Scanned, Span},
};
use tokio::{sync::watch, time::sleep};

use super::{Keep, KeepError};
use crate::{
    service::{progress::Progress, wanted::Rows},
    store::{Store, StoreError},
};

/// The log record that remembers it.
const RECORD: &[u8] = b"setting/draining";
/// Between looks at what others still lack; it grows to the longest.
const LOOK: Duration = Duration::from_millis(500);
const LONGEST_LOOK: Duration = Duration::from_secs(8);
/// Peers that are asked at once.
const ASKED_AT_ONCE: usize = 8;

/// What others have of what this node holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HandedOver {
    /// Chunks that something lists.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Whether an earlier run was told to leave.
///
/// # Errors
/// Where the log's records cannot be read.
pub fn remembered(store: &Store) -> Result<bool, StoreError> {
    Ok(store.record(RECORD)?.is_some())
}

impl Keep {
    /// This node leaves from now on, or stays; durable on return.
    ///
    /// # Errors
    /// Where it cannot be written down: then nothing is different.
    pub async fn leave(&self, leaving: bool) -> Result<(), StoreError> {
        let key = Bytes::from_static(RECORD);
        if leaving {
            self.around.store.put_record(key, Bytes::from_static(b"yes")).await?;
        } else {
            self.around.store.remove_record(key).await?;
        }
        self.around.locate.leave(leaving);
        Ok(())
    }

    /// Whether it leaves.
    pub fn is_leaving(&self) -> bool {
        self.around.transfer.is_leaving()
    }

    /// Returns when each of the nearest others has its copy of every chunk that is here and that something lists, as each
    /// of them says itself. Cancel-safe.
    ///
    /// # Errors
    /// Where there is nobody else, or it was told to stay meanwhile; of the store.
    pub async fn hand_over(&self, progress: &watch::Sender<Progress>) -> Result<HandedOver, KeepError> {
        let around = &self.around;
        loop {
            let others = self.others();
            if others.is_empty() {
                return Err(KeepError::Alone);
            }
            let total = around.store.usage().bytes;
            let (mut done, mut next) = (HandedOver::default(), Some(Span::ALL));
            while let Some(span) = next {
                let Rows { mut rows, rest } = around.rows(span).await?;
                rows.retain(|scanned| scanned.held && scanned.row.copies() > 0);
                self.until_copied(rows, |scanned| {
                    done.chunks += 1;
                    done.bytes += u64::from(scanned.row.entry.length);
                    progress.send_modify(|now| {
                        (now.bytes, now.total_bytes, now.chunks) = (done.bytes, Some(total), done.chunks);
                    });
                })
                .await?;
                next = rest;
            }
            // Whoever came or went meanwhile may be nearer to what was looked at before.
            if self.others() == others {
                return Ok(done);
            }
        }
    }

    /// Who takes over: the storing peers that stay, and whether each is full.
    fn others(&self) -> BTreeMap<PeerId, bool> {
        let storing = self.around.locate.storing().into_iter();
        let staying = storing.filter(|(_, connected, said)| *connected && !said.leaving);
        staying.map(|(peer, _, said)| (peer, said.full)).collect()
    }

    /// Waits until others have all of these, and tells of each.
    async fn until_copied(&self, mut rows: Vec<Scanned>, mut copied: impl FnMut(&Scanned)) -> Result<(), KeepError> {
        let mut wait = LOOK;
        loop {
            if !self.is_leaving() {
                return Err(KeepError::Stays);
            }
            let lacking = self.without_copies(&rows).await;
            rows.iter().filter(|row| !lacking.contains(&row.key)).for_each(&mut copied);
            rows.retain(|row| lacking.contains(&row.key));
            // What was removed meanwhile is fetched by nobody.
            let mut still = Vec::with_capacity(rows.len());
            for row in rows {
                let now = self.around.wanted.row(&row.key)?;
                if now.is_some_and(|now| now.copies() > 0) && self.around.wanted.holds(&row.row.entry)? {
                    still.push(row);
                }
            }
            rows = still;
            if rows.is_empty() {
                return Ok(());
            }
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_LOOK);
        }
    }

    /// Which of these do not have their copies elsewhere, by the word of each who should have one.
    async fn without_copies(&self, rows: &[Scanned]) -> BTreeSet<Key> {
        let others = self.others();
        let mut questions: BTreeMap<PeerId, Vec<(Key, Multihash)>> = BTreeMap::new();
        let mut members: BTreeMap<Key, Vec<PeerId>> = BTreeMap::new();
        for Scanned { key, row, .. } in rows {
            let k = usize::from(row.copies());
            // In the place of one that is full stands the next.
            let (mut asked, mut roomy) = (Vec::new(), 0);
            for peer in self.around.locate.known(key, k + EXTRA) {
                if roomy == k {
                    break;
                }
                let Some(full) = others.get(&peer) else { continue };
                roomy += usize::from(!full);
                asked.push(peer);
                questions.entry(peer).or_default().push((*key, row.entry.cid.hash));
            }
            members.insert(*key, asked);
        }
        let answers = stream::iter(questions).map(|(peer, asked)| async move {
            let hashes = asked.iter().map(|(_, hash)| *hash).collect();
            let held = self.around.transfer.holdings(peer, hashes).await.unwrap_or_default();
            let has = asked.into_iter().zip(held).filter(|(_, held)| held.is_some());
            has.map(|((key, _), _)| (key, peer)).collect::<Vec<_>>()
        });
        let has: BTreeSet<(Key, PeerId)> =
            answers.buffer_unordered(ASKED_AT_ONCE).flat_map(stream::iter).collect().await;
        let copied = |scanned: &&Scanned| {
            let asked = members.get(&scanned.key).map(Vec::as_slice).unwrap_or_default();
            is_copied(asked, usize::from(scanned.row.copies()), others.len(), |peer| {
                (has.contains(&(scanned.key, *peer)), others.get(peer).copied().unwrap_or(false))
            })
        };
        rows.iter().filter(|row| !copied(row)).map(|scanned| scanned.key).collect()
    }
}

/// Whether the nearest of `asked` (nearest first) have `k` copies, or as many as there are others: none is passed over
/// but those that are full and have none. `knows` says whether a peer has it, and whether it is full.
fn is_copied(asked: &[PeerId], k: usize, others: usize, knows: impl Fn(&PeerId) -> (bool, bool)) -> bool {
    let mut copies = 0;
    for peer in asked {
        match knows(peer) {
            (true, _) => copies += 1,
            (false, true) => {}
            (false, false) => return false,
        }
        if copies == k {
            return true;
        }
    }
    // All others were asked.
    copies > 0 && asked.len() >= others
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::rig::peer;

    #[test]
    fn a_chunk_is_handed_over_once_each_of_the_nearest_that_has_room_has_it() {
        let all: Vec<PeerId> = (1..=5).map(peer).collect();
        let copied = |k, others: usize, has: &[u8], full: &[u8]| {
            let one_of = |peers: &[u8], one: &PeerId| peers.iter().any(|seed| peer(*seed) == *one);
            is_copied(&all[..others.min(5)], k, others, |one| (one_of(has, one), one_of(full, one)))
        };
        assert!(copied(3, 5, &[1, 2, 3], &[]));
        assert!(!copied(3, 5, &[1, 2, 4, 5], &[]), "the third nearest lacks it");
        assert!(copied(3, 5, &[1, 2, 4], &[3]), "it has no room");
        assert!(copied(3, 5, &[1, 2, 3], &[1, 2, 3]), "full ones that have it");
        assert!(!copied(3, 5, &[1, 4], &[2, 3]), "there are more who could take it");
        assert!(copied(3, 2, &[1, 2], &[]), "as many as there are");
        assert!(!copied(3, 2, &[1], &[]) && !copied(3, 2, &[], &[1, 2]));
    }
}
