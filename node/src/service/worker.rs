//! The one kind of background work: named, asked to end, and waited for.
//!
//! Whoever builds the rooms owns [`Workers`]. Each room gets a [`Layer`] of it, in the order in which they are built, and
//! starts all of its tasks there; [`Workers::stop`] ends the layers in the reverse order, so that nothing is stopped
//! while something above still uses it. A task ends in one of two ways: it is dropped where it waits ([`Layer::spawn`],
//! [`Layer::task`]), or, where dropping it would leave something half done, it comes to its own end
//! ([`Layer::carry_through`]), but for one that takes too long, which is then dropped as well.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a task that is dropped may take to come to a place where it waits.
const DROPPING: Duration = Duration::from_millis(500);

/// What a worker is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Nothing is to be done.
    Idle,
    /// Something is.
    Working {
        /// How much of it is done, in the worker's own unit.
        done: u64,
        /// Of how much, where that is known.
        total: Option<u64>,
    },
    /// Nothing before this instant, unless something happens.
    Waiting {
        /// Until when.
        until: Instant,
    },
    /// It ended by a panic: what it did is not done any more. A bug.
    Failed,
}

/// A worker and what it is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub state: State,
    /// Since when it is in this kind of state.
    pub since: Instant,
}

impl Standing {
    /// How much is done a second, while it works and something is done.
    pub fn rate(&self) -> Option<f64> {
        let State::Working { done, .. } = self.state else { return None };
        let seconds = self.since.elapsed().as_secs_f64();
        (done > 0 && seconds > 0.0).then(|| done as f64 / seconds)
    }
}

/// Everything that runs in the background of a node. Dropped, it cuts off what still runs.
#[derive(Default)]
pub struct Workers {
    layers: Mutex<Vec<Layer>>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("list", &self.list()).finish()
    }
}

impl Workers {
    /// A layer that ends before all that were made earlier.
    pub fn layer(&self) -> Layer {
        let layer = Layer { inner: Arc::default() };
        lock(&self.layers).push(layer.clone());
        layer
    }

    /// Every worker, in the order in which their layers were made, then of their start.
    pub fn list(&self) -> Vec<Standing> {
        let layers = lock(&self.layers).clone();
        layers.iter().flat_map(|layer| lock(&layer.inner.standings).values().cloned().collect::<Vec<_>>()).collect()
    }

    /// Ends the layers, the last made first: each is told, waited for, and cut off where the time is over. `within` is
    /// for all of them together. Returns whether all ended in time; nothing runs any more in either case, but for what
    /// blocks its thread.
    pub async fn stop(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut in_time = true;
        let layers = lock(&self.layers).clone();
        for layer in layers.iter().rev() {
            let Inner { tasks, stopping, cut, .. } = &*layer.inner;
            stopping.cancel();
            tasks.close();
            if timeout_at(deadline, tasks.wait()).await.is_err() {
                in_time = false;
                let names: Vec<_> = lock(&layer.inner.standings).values().map(|standing| standing.name).collect();
                tracing::warn!(?names, tasks = tasks.len(), "background work did not end in time and is cut off");
            }
            cut.cancel();
            // What is left then blocks its thread: there is no way to end it.
            let _ = timeout_at(deadline.max(Instant::now() + DROPPING), tasks.wait()).await;
        }
        in_time
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for layer in lock(&self.layers).iter().rev() {
            layer.inner.stopping.cancel();
            layer.inner.cut.cancel();
        }
    }
}

/// The tasks of one room, which end together. Clone it freely.
#[derive(Clone)]
pub struct Layer {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    tasks: TaskTracker,
    /// Every task is to end.
    stopping: CancellationToken,
    /// Those that end by themselves have had their time.
    cut: CancellationToken,
    standings: Mutex<BTreeMap<u64, Standing>>,
    next: AtomicU64,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer").field("tasks", &self.inner.tasks.len()).finish_non_exhaustive()
    }
}

impl Layer {
    /// Starts a worker that may be dropped wherever it waits.
    pub fn spawn<F>(&self, name: &'static str, work: impl FnOnce(Work) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let work = work(self.listed(name));
        self.inner.tasks.spawn(self.inner.stopping.clone().run_until_cancelled_owned(work));
    }

    /// Starts a piece of work, of which there are many and which no list names, that may be dropped wherever it waits.
    /// Its handle gives `None` if it was.
    pub fn task<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<Option<T>> {
        self.inner.tasks.spawn(self.inner.stopping.clone().run_until_cancelled_owned(work))
    }

    /// Starts a piece of work that is not dropped half done, whoever waits for it: it ends by itself within moments.
    /// `None` where the layer ended before it could.
    pub fn carry_through<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<Option<T>> {
        self.inner.tasks.spawn(self.inner.cut.clone().run_until_cancelled_owned(work))
    }

    /// A layer that nobody stops, for the tests of one room.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self { inner: Arc::default() }
    }

    fn listed(&self, name: &'static str) -> Work {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let standing = Standing { name, state: State::Idle, since: Instant::now() };
        lock(&self.inner.standings).insert(id, standing);
        Work { inner: self.inner.clone(), id }
    }
}

/// A worker's own place in the list; it leaves the list with it, unless by a panic.
pub struct Work {
    inner: Arc<Inner>,
    id: u64,
}

impl Work {
    /// Nothing is to be done.
    pub fn idle(&self) {
        self.set(State::Idle);
    }

    /// So much of it is done.
    pub fn working(&self, done: u64, total: Option<u64>) {
        self.set(State::Working { done, total });
    }

    /// Nothing before `until`, unless something happens.
    pub fn waiting(&self, until: Instant) {
        self.set(State::Waiting { until });
    }

    fn set(&self, state: State) {
        if let Some(standing) = lock(&self.inner.standings).get_mut(&self.id) {
            if std::mem::discriminant(&standing.state) != std::mem::discriminant(&state) {
                standing.since = Instant::now();
            }
            standing.state = state;
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.set(State::Failed);
        } else {
            lock(&self.inner.standings).remove(&self.id);
        }
    }
}

/// No code under these locks panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::mpsc;

    use super::*;

    /// Says its name when it is dropped.
    struct Said(&'static str, mpsc::UnboundedSender<&'static str>);

    impl Drop for Said {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn layers_end_from_the_top_and_nothing_is_left() {
        let workers = Workers::default();
        let (below, above) = (workers.layer(), workers.layer());
        let (ends, mut ended) = mpsc::unbounded_channel();
        let said = Said("below", ends.clone());
        below.spawn("below", |work| async move {
            let _both = (work, said);
            pending().await
        });
        let said = Said("above", ends.clone());
        drop(above.carry_through(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(said);
        }));
        above.spawn("idle", |work| async move {
            let _listed = work;
            pending().await
        });
        let said = Said("task", ends.clone());
        above.task(async move {
            let _until_dropped = said;
            pending::<()>().await
        });
        assert_eq!(workers.list().iter().map(|standing| standing.name).collect::<Vec<_>>(), ["below", "idle"]);
        assert!(workers.stop(Duration::from_secs(4)).await);
        assert_eq!(
            [ended.recv().await, ended.recv().await, ended.recv().await],
            [Some("task"), Some("above"), Some("below")]
        );
        assert!(workers.list().is_empty());
        // What is started too late never runs.
        let late = below.task(async { unreachable!("the layer has ended") });
        assert_eq!(late.await.ok(), Some(None::<()>));
        assert_eq!(below.carry_through(async {}).await.ok(), Some(None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_in_time_is_cut_off() {
        let workers = Workers::default();
        let layer = workers.layer();
        drop(layer.carry_through(pending::<()>()));
        let began = Instant::now();
        assert!(!workers.stop(Duration::from_secs(4)).await);
        assert!(began.elapsed() < Duration::from_secs(5) && workers.list().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_begun_is_carried_through_when_nobody_waits_for_it() {
        let workers = Workers::default();
        let layer = workers.layer();
        let (done, mut was_done) = mpsc::unbounded_channel();
        drop(layer.carry_through(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = done.send(());
        }));
        assert!(workers.stop(Duration::from_secs(4)).await);
        assert!(was_done.try_recv().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_says_what_it_does_and_how_fast() {
        let workers = Workers::default();
        let work = workers.layer().listed("counting");
        work.working(0, Some(100));
        tokio::time::advance(Duration::from_secs(2)).await;
        work.working(50, Some(100));
        let [standing] = &workers.list()[..] else { panic!("one worker") };
        assert_eq!((standing.state, standing.rate()), (State::Working { done: 50, total: Some(100) }, Some(25.0)));
        work.idle();
        assert_eq!((workers.list()[0].state, workers.list()[0].rate()), (State::Idle, None));
    }

    #[tokio::test]
    async fn a_worker_that_panicked_is_seen_and_holds_up_nobody() {
        let workers = Workers::default();
        workers.layer().spawn("broken", |work| async move {
            let _listed = work;
            panic!("as the test wants it");
        });
        while workers.list().iter().all(|standing| standing.state != State::Failed) {
            tokio::task::yield_now().await;
        }
        assert!(workers.stop(Duration::from_secs(4)).await);
    }
}
