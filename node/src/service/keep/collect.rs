//! Freeing now what is over, for whoever asks: the keeper does the same by itself, a little later.
//!
//! The rows are read page by page, whatever their number, and each page is freed by the rule and the last look that the
//! keeper frees by. Nothing waits for it but what is freed.

use std::time::Duration;

use p2p_protocol::duty::{Moment, Span};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{Keep, KeepError, role::Question};
use crate::{
    runner::now,
    service::{progress::Progress, wanted::Rows},
};

/// How long catalogues may take to be compared before what waits for that is left to the keeper (a guess).
const COMPARING: Duration = Duration::from_secs(10);
/// Between looks at whether they were.
const LOOK: Duration = Duration::from_millis(100);

/// What was freed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Collected {
    /// Chunks that are gone.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks here that nothing lists and that stay: their grace runs, or a peer that was seen lately has not compared
    /// catalogues since.
    pub kept: u64,
}

impl Keep {
    /// Frees what nothing lists and whose grace is over. Cancel-safe: what is freed is freed.
    ///
    /// # Errors
    /// Of the store; and where the table is being made.
    pub async fn collect(&self, progress: &watch::Sender<Progress>) -> Result<Collected, KeepError> {
        let (around, grace) = (&self.around, self.settings.grace);
        let barrier = self.barrier().await?;
        let mut collected = Collected::default();
        let (mut looked, mut next) = (0, Some(Span::ALL));
        while let Some(span) = next {
            let Rows { rows, rest } = around.rows(span).await?;
            let moment = around.wanted.moment();
            let unlisted = rows.iter().filter(|scanned| scanned.held && !scanned.row.is_needed());
            let (over, kept): (Vec<_>, Vec<_>) = unlisted.partition(|scanned| {
                let ended = scanned.row.grace_ends(grace).is_some_and(|ends| ends <= moment);
                ended && scanned.row.unlisted() < barrier
            });
            collected.kept += kept.len() as u64;
            if !over.is_empty() {
                let entries: Vec<_> = over.iter().map(|scanned| scanned.row.entry).collect();
                around.wanted.free(&entries, grace).await?;
                for entry in &entries {
                    if around.wanted.holds(entry)? {
                        // It was acknowledged, or listed, a moment ago.
                        collected.kept += 1;
                    } else {
                        collected.chunks += 1;
                        collected.bytes += u64::from(entry.length);
                    }
                }
            }
            looked += rows.iter().filter(|scanned| scanned.held).count() as u64;
            progress.send_modify(|now| (now.bytes, now.chunks) = (collected.bytes, looked));
            next = rest;
        }
        Ok(collected)
    }

    /// What was unlisted before this may be freed, after catalogues were compared with everybody who is here.
    async fn barrier(&self) -> Result<Option<Moment>, KeepError> {
        let (begun, began) = (self.around.wanted.moment(), Instant::now());
        let mut compared = self.around.sync.compared();
        let mut waiting: Vec<_> = self.around.locate.storing();
        waiting.retain(|(_, connected, _)| *connected);
        let asked = now();
        waiting.iter().for_each(|(peer, ..)| self.around.sync.compare(*peer));
        let comparing = async {
            while !waiting.is_empty()
                && let Ok(done) = compared.recv().await
            {
                waiting.retain(|(peer, ..)| *peer != done.peer || done.begun < asked);
            }
        };
        // Who does not answer is waited for by what waits for it.
        let _ = timeout(COMPARING, comparing).await;
        loop {
            let barrier = self.ask(Question::Freeable).await?;
            // What was told by the comparisons reaches the keeper within moments.
            let known = barrier.is_none_or(|barrier| barrier >= begun);
            if known || began.elapsed() >= COMPARING || !waiting.is_empty() || !self.all_here() {
                return Ok(barrier);
            }
            sleep(LOOK).await;
        }
    }

    /// Whether every storing peer that is remembered is connected.
    fn all_here(&self) -> bool {
        self.around.locate.storing().iter().all(|(_, connected, _)| *connected)
    }
}
