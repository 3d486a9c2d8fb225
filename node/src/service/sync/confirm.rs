//! Having a publication kept by those peers that are to answer for it, before anybody is told that it is safe.
//!
//! It is gossiped to all, but nobody says of gossip that it is on disk. A push is answered only then. A name is also
//! *settled*: by so many that a fresh read anywhere finds it ([`p2p_protocol::fresh`]).

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use libp2p::PeerId;
use p2p_protocol::{catalogue::Publication, fresh::Settling, wire::sync_fresh::Told};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{SessionError, Sync, capable, hello, session};
use crate::net::BAN;

/// A peer may take so long to answer for a publication: a batch of its disk and a slow link's round trips, many times
/// over.
const ONE: Duration = Duration::from_secs(5);
/// All together may take so long; who has not answered then has not confirmed.
const ALL: Duration = Duration::from_secs(12);
/// Right after a start, peers that took it may not be complete yet: they are asked again so often ...
const AGAIN: Duration = Duration::from_millis(500);
/// ... for so long. Introductions take a few round trips.
const COMPLETING: Duration = Duration::from_secs(5);
/// The most failures that are told.
const TOLD: usize = 16;

/// How a publication was confirmed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Confirmed {
    /// Peers that have it on disk, this node counted where it is one of those asked.
    pub copies: u8,
    /// Who was asked and does not have it, and why (at most 16).
    pub failures: Vec<(PeerId, String)>,
    /// Acknowledgements that are missing before each fresh read of its name finds it; 0 for what has no name.
    pub unsettled: usize,
}

impl Sync {
    /// Has the first `copies` of `candidates` (nearest first) keep `publication`, which stands here and is on disk; for
    /// each that fails, the next. Of a name, so many more that it is settled, if there are so many. Takes 17 s at the
    /// most. Cancel-safe: those that took it keep it.
    pub async fn confirm(&self, publication: &Publication, candidates: Vec<PeerId>, copies: u8) -> Confirmed {
        let deadline = Instant::now() + ALL;
        let settles = publication.name.is_some();
        let current = || self.ledger.map().current(&publication.publisher, &publication.key());
        let bytes = self.ledger.bytes_of(publication);
        // Superseded already: whoever did that answers for what stands now.
        let Some(bytes) = bytes.filter(|_| !settles || current() == Some(publication.version)) else {
            return Confirmed { copies, failures: Vec::new(), unsettled: usize::from(settles) };
        };
        let (mut settling, had_own) = {
            let members = self.circle.members();
            (Settling::begin(&members), members.has_own())
        };
        let missing = |settling: &Settling| match settles {
            false => 0,
            // Whoever lost what it had published may have made a version that is below one that it has forgotten.
            true if !had_own => 1,
            true => settling.missing(&self.circle.members()),
        };
        let mut confirmed = Confirmed::default();
        let mut candidates: VecDeque<PeerId> = candidates.into();
        let mut tried = BTreeSet::new();
        // This node may be complete a moment later too.
        let mut incomplete: BTreeSet<PeerId> = {
            let members = self.circle.members();
            (members.stores() && !members.is_complete()).then_some(self.ledger.local()).into_iter().collect()
        };
        let mut asked = FuturesUnordered::new();
        loop {
            let wanted = usize::from(copies.saturating_sub(confirmed.copies)).max(missing(&settling));
            while asked.len() < wanted {
                let Some(peer) = candidates.pop_front().or_else(|| self.next_member(settles, &tried)) else { break };
                if tried.insert(peer) {
                    let bytes = bytes.clone();
                    asked.push(async move { (peer, self.hand(peer, bytes, settles).await) });
                }
            }
            match timeout_at(deadline, asked.next()).await {
                Ok(Some((peer, Ok(told)))) => {
                    confirmed.copies = confirmed.copies.saturating_add(1);
                    let complete = told.is_some_and(|told| told.complete);
                    settling.acknowledged(peer, complete);
                    if !complete {
                        incomplete.insert(peer);
                    }
                }
                Ok(Some((peer, Err(why)))) => {
                    tracing::debug!(%peer, why, "a peer did not confirm a publication");
                    confirmed.failures.push((peer, why));
                }
                Ok(None) | Err(_) => break,
            }
        }
        confirmed.copies = confirmed.copies.min(copies);
        confirmed.failures.truncate(TOLD);
        let until = deadline.min(Instant::now() + COMPLETING);
        while missing(&settling) > 0 && had_own && !incomplete.is_empty() && Instant::now() < until {
            sleep_until((Instant::now() + AGAIN).min(until)).await;
            let own = self.circle.members().is_complete();
            for peer in incomplete.clone() {
                let complete = match peer == self.ledger.local() {
                    true => own,
                    false => self.ask(peer, None).await.is_ok_and(|told| told.complete),
                };
                if complete {
                    incomplete.remove(&peer);
                    settling.acknowledged(peer, true);
                }
            }
        }
        confirmed.unsettled = missing(&settling);
        confirmed
    }

    /// A member that is connected and was not tried.
    fn next_member(&self, settles: bool, tried: &BTreeSet<PeerId>) -> Option<PeerId> {
        let connected = capable(&self.network.peers().borrow(), &self.protocol);
        let members = self.circle.members();
        let mut here = connected.into_iter().map(|(peer, _)| peer).filter(|peer| members.get(peer).is_some());
        here.find(|peer| settles && !tried.contains(peer))
    }

    /// One peer, this node among them; what it then says of itself and others, if it is `asked`.
    async fn hand(&self, peer: PeerId, bytes: Bytes, asked: bool) -> Result<Option<Told>, String> {
        if peer == self.ledger.local() {
            let complete = self.circle.members().is_complete();
            return Ok(Some(Told { complete, ..Told::default() }));
        }
        let handing = async {
            let (_, stream) = self.network.open_spoken(peer, &self.protocol).await?;
            session::hand(hello(&self.network), stream, bytes, asked.then(|| self.circle.ask(None))).await
        };
        match timeout(ONE, handing).await.unwrap_or(Err(SessionError::Timeout)) {
            Ok((true, Some(told))) => match self.circle.heard(peer, &told).await {
                Ok(()) => Ok(Some(told)),
                Err(error) => Err(error.to_string()),
            },
            Ok((true, None)) => Ok(None),
            Ok((false, _)) => Err("it did not take the publication".to_owned()),
            Err(SessionError::Hostile(reason)) => {
                self.network.ban(peer, BAN, reason.clone()).await;
                Err(reason)
            }
            Err(error) => Err(error.to_string()),
        }
    }
}
