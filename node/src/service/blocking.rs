//! Steps that block a thread, away from the async tasks: a bounded number at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::worker::Layer;
use crate::store::StoreError;

/// Steps that run at once, of all adds and gets of a node: more than any disk has use for, and each thread costs memory.
const AT_ONCE: usize = 16;

/// A step did not end: it panicked, or the runtime is going away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an internal step did not end; the daemon's log says more")]
pub struct Unfinished;

/// A step of the store that did not end: nothing of it is known to be done.
impl From<Unfinished> for StoreError {
    fn from(_: Unfinished) -> Self {
        Self::Closed
    }
}

/// The places of one node's blocking steps: clone it freely.
#[derive(Clone, Debug)]
pub struct Blocking {
    places: Arc<Semaphore>,
    tasks: Layer,
}

impl Blocking {
    /// All places are free; what queues for one does so in tasks of the layer `tasks`.
    pub fn new(tasks: Layer) -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), tasks }
    }

    /// Runs what blocks. The work must not wait for any async task.
    ///
    /// Whoever calls it may stop polling it at any time: no place is held by a future that only its caller can move on.
    /// (A fair semaphore gives its permits to those who wait, polled or not: a task that waited here for one thing while
    /// others of its own stood in the queue before it would wait for ever, and everyone behind it.) What has begun runs to
    /// its end, even if nobody waits for it any more.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unfinished> {
        let done = match self.places.clone().try_acquire_owned() {
            Ok(permit) => tokio::task::spawn_blocking(with(Some(permit), work)).await,
            Err(_) => {
                let places = self.places.clone();
                let queued = self.tasks.task(async move {
                    // It is never closed; if it were, the work would only run unbounded.
                    let permit = places.acquire_owned().await.ok();
                    tokio::task::spawn_blocking(with(permit, work)).await
                });
                match AbortOnDropHandle::new(queued).await {
                    Ok(Some(done)) => done,
                    Ok(None) => return Err(Unfinished),
                    Err(why) => Err(why),
                }
            }
        };
        done.map_err(|why| {
            if why.is_panic() {
                tracing::error!("a blocking step panicked: {why}");
            }
            Unfinished
        })
    }
}

/// The work, with its permit until its end.
fn with<T>(permit: Option<OwnedSemaphorePermit>, work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    move || {
        let _permit = permit;
        work()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};

    use super::*;

    /// The regression: a `get` that waited for one blocking step while others of its own stood in the queue never went on.
    #[tokio::test]
    async fn blocking_steps_that_nobody_polls_hold_up_nobody() {
        let blocking = Blocking::new(Layer::alone());
        // Polled once, so that all of them wait, far more than run at once.
        let mut begun: FuturesUnordered<_> = (0..200).map(|at| blocking.run(move || at)).collect();
        let first = begun.next().now_or_never();
        let inline = tokio::time::timeout(Duration::from_secs(120), blocking.run(|| "done"));
        assert_eq!(inline.await.expect("it is not behind them"), Ok("done"));
        let mut rest: Vec<_> = begun.map(|done| done.expect("it ends")).collect().await;
        rest.extend(first.flatten().map(|done| done.expect("it ends")));
        rest.sort_unstable();
        assert_eq!(rest, (0..200).collect::<Vec<_>>());
    }
}
