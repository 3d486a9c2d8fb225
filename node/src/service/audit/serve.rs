//! The answering side: keeps nothing between two questions, and bounds what a peer can have it compute and read.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use p2p_protocol::{
    Multihash, PeerId,
    audit::{Challenge, PROOF_BYTES, is_comparable},
    bucket::Bucket,
    reconcile::{Fingerprint, respond},
    wire::{
        audit::{Frame, MAX_MESSAGE_BYTES, PROVED_BYTES},
        turns::TurnError,
    },
};
use tokio::time::{Instant, sleep};

use super::{FRAME, Shared, lock};
use crate::{
    net::{BAN, Stream},
    runner::now,
    service::{
        turns::{
            Answerer, SessionError, out_of_turn,
            serve::{self, Service},
        },
        wanted::{InRange, Side},
    },
};

/// The most frames of one session: what a comparison takes that finds all of a large part to be lacking.
const FRAMES: usize = 2048;
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
pub(super) struct Budget {
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

impl serve::Budget for Budget {
    fn is_full(&self) -> bool {
        lock(&self.thinking).is_full(now()) && lock(&self.reading).is_full(now())
    }
}

/// What answers others' sessions.
pub(super) struct Serving {
    shared: Arc<Shared>,
    /// What is read for all of them.
    reading: Arc<Mutex<Bucket>>,
}

impl Serving {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let reading = Bucket::new(now(), NODE_READING_BYTES, NODE_READING_BYTES_PER_SECOND);
        Self { shared, reading: Arc::new(Mutex::new(reading)) }
    }
}

impl Service for Serving {
    type Budget = Budget;
    type Done = ();

    fn session(
        &self,
        peer: PeerId,
        stream: Stream,
        budget: Arc<Budget>,
    ) -> BoxFuture<'static, Result<(), SessionError>> {
        let (shared, reading) = (self.shared.clone(), self.reading.clone());
        async move { answer(&shared, peer, stream, &budget, &reading).await }.boxed()
    }

    async fn ended(&mut self, peer: PeerId, _begun: std::time::Instant, outcome: Result<(), SessionError>) {
        match outcome {
            Ok(()) => {}
            Err(SessionError::Hostile(reason)) => {
                tracing::warn!(%peer, reason, "a peer broke the rules of audits");
                self.shared.network.ban(peer, BAN, reason).await;
            }
            Err(error) => tracing::debug!(%peer, %error, "a session of audits broke"),
        }
    }
}

/// Answers until the opener closes.
async fn answer(
    shared: &Arc<Shared>,
    peer: PeerId,
    stream: Stream,
    budget: &Budget,
    node: &Mutex<Bucket>,
) -> Result<(), SessionError> {
    let Some(mut answerer) = Answerer::begin(stream, shared.hello(), FRAME, FRAMES).await? else { return Ok(()) };
    while let Some(asked) = answerer.next().await? {
        let answer = match asked {
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
            Err(TurnError::Unsupported(_)) => Frame::Unsupported,
            Ok(_) => return Err(out_of_turn()),
            Err(error) => return Err(error.into()),
        };
        answerer.answer(&answer).await?;
    }
    Ok(())
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
    if !is_comparable(shared.catalogue_print(), catalogue) || common.fingerprint() != range {
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
