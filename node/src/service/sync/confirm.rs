//! Having a publication kept by those peers that are to answer for it, before anybody is told that it is safe.
//!
//! It is gossiped to all, but nobody says of gossip that it is on disk. A push is answered only then.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use libp2p::PeerId;
use p2p_protocol::catalogue::Publication;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Sync, hello,
    session::{self, SessionError},
};
use crate::net::BAN;

/// A peer may take so long to answer for a publication: a batch of its disk and a slow link's round trips, many times
/// over.
const ONE: Duration = Duration::from_secs(5);
/// All together may take so long; who has not answered then has not confirmed.
const ALL: Duration = Duration::from_secs(12);
/// The most failures that are told.
const TOLD: usize = 16;

/// How a publication was confirmed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Confirmed {
    /// Peers that have it on disk, this node counted where it is one of those asked.
    pub copies: u8,
    /// Who was asked and does not have it, and why (at most 16).
    pub failures: Vec<(PeerId, String)>,
}

impl Sync {
    /// Has the first `copies` of `candidates` (nearest first) keep `publication`, which stands here and is on disk; for
    /// each that fails, the next. Takes 12 s at the most. Cancel-safe: those that took it keep it.
    pub async fn confirm(&self, publication: &Publication, candidates: Vec<PeerId>, copies: u8) -> Confirmed {
        let deadline = Instant::now() + ALL;
        // Superseded already: whoever did that answers for what stands now.
        let Some(bytes) = self.ledger.bytes_of(publication) else { return Confirmed { copies, failures: Vec::new() } };
        let mut confirmed = Confirmed::default();
        let mut candidates = candidates.into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            let open = copies.saturating_sub(confirmed.copies);
            while asked.len() < usize::from(open)
                && let Some(peer) = candidates.next()
            {
                let bytes = bytes.clone();
                asked.push(async move { (peer, self.hand(peer, bytes).await) });
            }
            match timeout_at(deadline, asked.next()).await {
                Ok(Some((_, Ok(())))) => confirmed.copies += 1,
                Ok(Some((peer, Err(why)))) => {
                    tracing::debug!(%peer, why, "a peer did not confirm a publication");
                    confirmed.failures.push((peer, why));
                }
                Ok(None) | Err(_) => break,
            }
        }
        confirmed.failures.truncate(TOLD);
        confirmed
    }

    /// One peer, this node among them.
    async fn hand(&self, peer: PeerId, bytes: Bytes) -> Result<(), String> {
        if peer == self.ledger.local() {
            return Ok(());
        }
        let handing = async {
            let (_, stream) = self.network.open_spoken(peer, &self.protocol).await?;
            session::hand(hello(&self.network), stream, bytes).await
        };
        match timeout(ONE, handing).await.unwrap_or(Err(SessionError::Timeout)) {
            Ok(true) => Ok(()),
            Ok(false) => Err("it did not take the publication".to_owned()),
            Err(SessionError::Hostile(reason)) => {
                self.network.ban(peer, BAN, reason.clone()).await;
                Err(reason)
            }
            Err(error) => Err(error.to_string()),
        }
    }
}
