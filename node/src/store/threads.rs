//! The writer's thread: it gathers operations into batches, waiting only where that pays.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    compact::{Job, LIVE_PERCENT, Stop},
    layout::Layout,
    writer::{Answer, Operation, Request, Writer},
};

/// Operations in a batch: an index batch has as many entries.
const BATCH_OPERATIONS: usize = 64;
/// Payload bytes in a batch: half of what the queue takes, so that the other half arrives while it is synced.
pub(super) const BATCH_BYTES: u64 = 16 * 1024 * 1024;
/// How long a batch waits for those who were in the one before: less than a sync.
const LINGER: Duration = Duration::from_millis(2);

/// What the thread has.
pub(super) struct WriterThread {
    pub(super) writer: Writer,
    pub(super) receiver: Receiver<Operation>,
    pub(super) jobs: SyncSender<Job>,
    /// The compaction has something to do.
    pub(super) compacting: bool,
    /// Segments whose compaction failed: tried again after the next start.
    pub(super) stuck: BTreeSet<u32>,
    pub(super) stop: Arc<Stop>,
    pub(super) compaction: JoinHandle<()>,
    /// Holds the lock.
    pub(super) layout: Layout,
}

impl WriterThread {
    /// Commits until it is told to close, or every handle is gone.
    pub(super) fn run(mut self) {
        let mut last = 0;
        self.propose();
        let close = loop {
            let Ok(first) = self.receiver.recv() else { break None };
            let (batch, barrier) = self.gather(first, last);
            last = batch.len();
            self.writer.commit(batch);
            match barrier {
                Some(operation) if matches!(operation.request, Request::Close) => break Some(operation),
                Some(Operation { request: Request::Retire(number), reply, .. }) => {
                    let _ = reply.send(self.writer.retire(number));
                }
                Some(Operation { request: Request::Compacted { stuck }, reply, .. }) => {
                    self.compacting = false;
                    self.stuck.extend(stuck);
                    let _ = reply.send(Ok(Answer::Done));
                }
                _ => {}
            }
            self.propose();
        };
        let Self { mut writer, receiver, jobs, stop, compaction, layout, .. } = self;
        // Whoever still waits learns that the store is closed; the compaction too, wherever it is.
        drop(receiver);
        drop(jobs);
        stop.stop();
        if compaction.join().is_err() {
            tracing::warn!("the compaction had failed");
        }
        writer.close();
        drop(writer);
        drop(layout);
        if let Some(operation) = close {
            let _ = operation.reply.send(Ok(Answer::Done));
        }
    }

    /// A batch that begins with `first`, and the operation that ended it, if one must come after it.
    fn gather(&self, first: Operation, last: usize) -> (Vec<Operation>, Option<Operation>) {
        let mut batch = Vec::with_capacity(BATCH_OPERATIONS);
        let mut bytes = 0;
        let mut next = Some(first);
        let deadline = Instant::now() + LINGER;
        loop {
            if let Some(operation) = next.take() {
                bytes += match &operation.request {
                    Request::Retire(_) | Request::Compacted { .. } | Request::Close => return (batch, Some(operation)),
                    // Big already, and paced: nobody waits behind more than one.
                    Request::Relocate(_) => BATCH_BYTES,
                    Request::Put(chunk) | Request::PutWith(chunk, _) => chunk.len() as u64,
                    _ => 0,
                };
                batch.push(operation);
            }
            if batch.len() >= BATCH_OPERATIONS || bytes >= BATCH_BYTES {
                return (batch, None);
            }
            match self.receiver.try_recv() {
                Ok(operation) => next = Some(operation),
                // Those who were in the last batch have just been answered and are about to come again.
                Err(_) if batch.len() < last => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    match self.receiver.recv_timeout(left) {
                        Ok(operation) => next = Some(operation),
                        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return (batch, None),
                    }
                }
                Err(_) => return (batch, None),
            }
        }
    }

    /// Gives the compaction its next segment, if it is idle and one is worth it, or what is to be swept.
    fn propose(&mut self) {
        if self.compacting {
            return;
        }
        let segment = self.writer.worth_compacting(LIVE_PERCENT, &self.stuck);
        let job = segment.map(|(number, sealed)| Job::Segment(number, sealed));
        if let Some(job) = job.or_else(|| self.writer.has_garbage().then_some(Job::Sweep)) {
            self.compacting = self.jobs.try_send(job).is_ok();
        }
    }
}
