//! The answering side: keeps nothing between two questions, and bounds what a peer can have it compute and read.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use p2p_protocol::{
    Multihash, PeerId,
    audit::{Challenge, PROOF_BYTES},
    bucket::Bucket,
    reconcile::{Fingerprint, respond},
    wire::audit::{AuditError, Frame, MAX_MESSAGE_BYTES, PROVED_BYTES},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Shared,
    dialogue::{FRAME, SessionError, greeted, out_of_turn, read, write},
    lock,
};
use crate::{
    net::{Acceptor, BAN, Stream},
    runner::now,
    service::{
        wanted::{InRange, Side},
        worker::Work,
    },
};

/// Inbound streams that may wait for their turn.
pub(super) const WAITING: usize = 16;
/// Sessions that are served at once: each holds two frames of 64 KiB at most, 2 MiB together, and one chunk.
const INBOUND: usize = 16;
/// Sessions that are served at once to one peer: a comparison, and proofs for what it would give up.
const INBOUND_PER_PEER: usize = 2;
/// Peers whose budgets are remembered; a full budget is the same as none, so only busy peers count.
const BUDGETS: usize = 1024;
/// The most frames of one session: what a comparison takes that finds all of a large part to be lacking.
const FRAMES: usize = 2048;
/// How long a session may take in all.
const SESSION: Duration = Duration::from_secs(300);
/// Milliseconds of comparing that a peer may have at once, and that come back in a second: a tenth of a processor.
const THINKING_MS: u32 = 2_000;
const THINKING_MS_PER_SECOND: u32 = 100;
/// Chunk bytes that a peer may have read at once, and that come back in a second: two answers, and a tenth of what a
/// slow disk reads.
const READING_BYTES: u32 = 16 << 20;
const READING_BYTES_PER_SECOND: u32 = 8 << 20;
/// The same for all peers together: what is read for proofs leaves the disk to whoever is served.
const NODE_READING_BYTES: u32 = 64 << 20;
const NODE_READING_BYTES_PER_SECOND: u32 = 32 << 20;
/// What looking for a chunk that is not here counts as.
const LOOKUP_BYTES: u32 = 4096;

/// What one peer may ask of this node.
struct Budget {
    thinking: Mutex<Bucket>,
    reading: Mutex<Bucket>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            thinking: Mutex::new(Bucket::new(now(), THINKING_MS, THINKING_MS_PER_SECOND)),
            reading: Mutex::new(Bucket::new(now(), READING_BYTES, READING_BYTES_PER_SECOND)),
        }
    }
}

impl Budget {
    fn is_full(&self) -> bool {
        lock(&self.thinking).is_full(now()) && lock(&self.reading).is_full(now())
    }
}

/// Serves others' sessions, until the network is gone.
pub(super) async fn run(shared: Arc<Shared>, mut inbound: Acceptor, work: Work) {
    let mut sessions: JoinSet<(PeerId, Result<(), SessionError>)> = JoinSet::new();
    let mut running: HashMap<PeerId, usize> = HashMap::new();
    let mut budgets: HashMap<PeerId, Arc<Budget>> = HashMap::new();
    let node = Arc::new(Mutex::new(Bucket::new(now(), NODE_READING_BYTES, NODE_READING_BYTES_PER_SECOND)));
    let mut ended = 0;
    loop {
        match sessions.len() as u64 {
            0 => work.idle(),
            running => work.working(ended, Some(ended + running)),
        }
        tokio::select! {
            arrived = inbound.recv(), if sessions.len() < INBOUND => {
                let Some((_version, peer, stream)) = arrived else { return };
                let Some(budget) = budget_of(&mut budgets, peer) else { continue };
                let count = running.entry(peer).or_default();
                // Dropping the stream closes it; the peer tries again later.
                if *count >= INBOUND_PER_PEER {
                    tracing::debug!(%peer, "too many audit sessions of one peer");
                    continue;
                }
                *count += 1;
                let (shared, node) = (shared.clone(), node.clone());
                sessions.spawn(async move {
                    let session = timeout(SESSION, serve(&shared, peer, stream, &budget, &node)).await;
                    (peer, session.unwrap_or(Err(SessionError::Timeout)))
                });
            }
            Some(done) = sessions.join_next(), if !sessions.is_empty() => {
                ended += 1;
                // Only a panic ends a session otherwise.
                let Ok((peer, outcome)) = done else { continue };
                if let Some(count) = running.get_mut(&peer) {
                    *count -= 1;
                    if *count == 0 {
                        running.remove(&peer);
                    }
                }
                match outcome {
                    Ok(()) => {}
                    Err(SessionError::Hostile(reason)) => {
                        tracing::warn!(%peer, reason, "a peer broke the rules of audits");
                        shared.network.ban(peer, BAN, reason).await;
                    }
                    Err(error) => tracing::debug!(%peer, %error, "a session of audits broke"),
                }
            }
        }
    }
}

/// The peer's budget, made full if there is none. `None` where too many peers are busy at once.
fn budget_of(budgets: &mut HashMap<PeerId, Arc<Budget>>, peer: PeerId) -> Option<Arc<Budget>> {
    if !budgets.contains_key(&peer) && budgets.len() >= BUDGETS {
        budgets.retain(|_, budget| Arc::strong_count(budget) > 1 || !budget.is_full());
        if budgets.len() >= BUDGETS {
            return None;
        }
    }
    Some(budgets.entry(peer).or_default().clone())
}

/// Answers until the opener closes.
async fn serve(
    shared: &Arc<Shared>,
    peer: PeerId,
    mut stream: Stream,
    budget: &Budget,
    node: &Mutex<Bucket>,
) -> Result<(), SessionError> {
    write(&mut stream, 0, &Frame::Greeting(shared.hello())).await?;
    match timeout(FRAME, read(&mut stream)).await.map_err(|_| SessionError::Timeout)?? {
        None => return Ok(()),
        begun => drop(greeted(begun)?),
    }
    for _ in 0..FRAMES {
        let heard = timeout(FRAME, read(&mut stream)).await.map_err(|_| SessionError::Timeout)??;
        let Some((request, frame, _)) = heard else { return Ok(()) };
        let answer = match frame {
            Ok(Frame::Compare { catalogue, range, message }) => {
                let began = Instant::now();
                let answer = compared(shared, peer, catalogue, range, &message).await?;
                // It pays afterwards, by what it took: whoever owes waits for its next answer.
                let owed = lock(&budget.thinking).take(now(), Shared::spent(began));
                wait(owed).await;
                answer
            }
            Ok(Frame::Prove { nonce, hashes }) => {
                let challenge = Challenge { nonce, asker: peer };
                Frame::Proofs(proofs(shared, challenge, &hashes, budget, node).await?)
            }
            Err(AuditError::Unsupported(_)) => Frame::Unsupported,
            Ok(_) => return Err(out_of_turn()),
            Err(error) => return Err(error.into()),
        };
        write(&mut stream, request, &answer).await?;
    }
    Err(SessionError::TooMuch("frames"))
}

async fn compared(
    shared: &Arc<Shared>,
    peer: PeerId,
    catalogue: Fingerprint,
    range: Fingerprint,
    message: &bytes::Bytes,
) -> Result<Frame, SessionError> {
    let missing = shared.missing.load(std::sync::atomic::Ordering::Relaxed);
    let apart = Frame::Compared { missing, message: None };
    let Some(standing) = shared.standing() else { return Ok(apart) };
    let common = Arc::new(standing.common(&peer, &shared.network.local()));
    if shared.catalogue_print() != catalogue || common.fingerprint() != range {
        return Ok(apart);
    }
    let message = message.clone();
    let answer = move |set: &InRange<'_>| respond(set, &message, MAX_MESSAGE_BYTES);
    let response = shared.within(&common, Side::Held, answer).await??;
    Ok(Frame::Compared { missing, message: Some(response.into()) })
}

/// Proofs of the first of these, as many as one answer may read.
async fn proofs(
    shared: &Arc<Shared>,
    challenge: Challenge,
    hashes: &[Multihash],
    budget: &Budget,
    node: &Mutex<Bucket>,
) -> Result<Vec<Option<[u8; PROOF_BYTES]>>, SessionError> {
    let (mut proofs, mut bytes) = (Vec::new(), 0);
    for hash in hashes {
        let length = shared.store.entry(hash)?.map(|entry| entry.length);
        bytes += u64::from(length.unwrap_or(0));
        if bytes > PROVED_BYTES && !proofs.is_empty() {
            break;
        }
        let cost = length.unwrap_or(0).max(LOOKUP_BYTES);
        let waits = [&budget.reading, node].map(|bucket| lock(bucket).take(now(), cost));
        wait(waits[0].max(waits[1])).await;
        proofs.push(match length {
            Some(_) => shared.own_proof(challenge, hash).await?,
            None => None,
        });
    }
    Ok(proofs)
}

async fn wait(time: Duration) {
    // No time at all would still take a tick of the timer.
    if !time.is_zero() {
        sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_busy_peers_have_a_budget_and_one_that_owes_nothing_gives_way_unless_it_is_served() {
        let mut budgets = HashMap::new();
        let busy: Vec<PeerId> = (0..BUDGETS).map(|_| PeerId::random()).collect();
        for peer in &busy {
            let budget = budget_of(&mut budgets, *peer).expect("there is room");
            lock(&budget.reading).take(now(), READING_BYTES);
        }
        assert!(budget_of(&mut budgets, PeerId::random()).is_none(), "all of them owe something");
        let served = budget_of(&mut budgets, busy[7]).expect("it is known");
        sleep(Duration::from_secs(60)).await;
        assert!(budget_of(&mut budgets, PeerId::random()).is_some());
        assert_eq!(budgets.len(), 2, "what came back in full is forgotten");
        let again = budget_of(&mut budgets, busy[7]).expect("it is known");
        assert!(Arc::ptr_eq(&served, &again), "two sessions of one peer have one budget");
    }
}
