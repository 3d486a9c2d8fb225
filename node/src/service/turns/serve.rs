//! Taking on others' sessions: so many at once, few of one peer, each peer within what it may ask.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use libp2p::PeerId;
use tokio::{
    task::{Id, JoinSet},
    time::timeout,
};

use super::SessionError;
use crate::{
    net::{Acceptor, Stream},
    runner::now,
    service::worker::Work,
};

/// Inbound streams that may wait for their turn.
pub(in crate::service) const WAITING: usize = 16;
/// Sessions that are served at once: each holds two frames of 64 KiB at most, 2 MiB together, and what answers it.
const AT_ONCE: usize = 16;
/// Sessions that are served at once to one peer: what it opens for two reasons at the same time, or one and one that it
/// has given up.
const OF_ONE_PEER: usize = 2;
/// Peers whose budgets are remembered; a full budget is the same as none, so only busy peers count.
const BUDGETS: usize = 1024;
/// How long a session may take in all.
pub(in crate::service) const SESSION: Duration = Duration::from_secs(300);

/// What is served, and what becomes of it.
pub(in crate::service) trait Service: Send + 'static {
    /// What one peer may ask; made full when it is first needed.
    type Budget: Budget;
    /// What a session gives that came to its end.
    type Done: Send + 'static;

    /// One session, until its opener closes; it is dropped after [`SESSION`].
    fn session(
        &self,
        peer: PeerId,
        stream: Stream,
        budget: Arc<Self::Budget>,
    ) -> BoxFuture<'static, Result<Self::Done, SessionError>>;

    /// One that was begun at `begun` ended. Nothing else is taken on before this is done.
    fn ended(
        &mut self,
        peer: PeerId,
        begun: Instant,
        outcome: Result<Self::Done, SessionError>,
    ) -> impl Future<Output = ()> + Send;
}

/// What one peer may ask of this node.
pub(in crate::service) trait Budget: Default + Send + Sync + 'static {
    /// Pays for opening a session; false where there is not enough.
    fn open(&self) -> bool {
        true
    }

    /// Whether it is as good as new.
    fn is_full(&self) -> bool;
}

/// Serves others' sessions, until the network is gone.
pub(in crate::service) async fn run<S: Service>(mut service: S, mut inbound: Acceptor, work: Work) {
    let mut sessions: JoinSet<(PeerId, Instant, Result<S::Done, SessionError>)> = JoinSet::new();
    let mut running: HashMap<Id, PeerId> = HashMap::new();
    let mut budgets: HashMap<PeerId, Arc<S::Budget>> = HashMap::new();
    let mut over = 0;
    loop {
        match sessions.len() as u64 {
            0 => work.idle(),
            running => work.working(over, Some(over + running)),
        }
        tokio::select! {
            arrived = inbound.recv(), if sessions.len() < AT_ONCE => {
                let Some((_version, peer, stream)) = arrived else { return };
                let Some(budget) = budget_of(&mut budgets, peer) else { continue };
                // Dropping the stream closes it; the peer tries again later.
                if running.values().filter(|other| **other == peer).count() >= OF_ONE_PEER || !budget.open() {
                    tracing::debug!(%peer, "too many sessions of one peer");
                    continue;
                }
                let (session, begun) = (service.session(peer, stream, budget), now());
                let task = sessions.spawn(async move {
                    let outcome = timeout(SESSION, session).await;
                    (peer, begun, outcome.unwrap_or(Err(SessionError::Timeout)))
                });
                running.insert(task.id(), peer);
            }
            Some(done) = sessions.join_next_with_id(), if !sessions.is_empty() => {
                over += 1;
                match done {
                    Ok((task, (peer, begun, outcome))) => {
                        running.remove(&task);
                        service.ended(peer, begun, outcome).await;
                    }
                    // Only a panic ends a session otherwise.
                    Err(panicked) => drop(running.remove(&panicked.id())),
                }
            }
        }
    }
}

/// The peer's budget, made full if there is none. `None` where too many peers are busy at once.
fn budget_of<B: Budget>(budgets: &mut HashMap<PeerId, Arc<B>>, peer: PeerId) -> Option<Arc<B>> {
    if !budgets.contains_key(&peer) && budgets.len() >= BUDGETS {
        budgets.retain(|_, budget| Arc::strong_count(budget) > 1 || !budget.is_full());
        if budgets.len() >= BUDGETS {
            return None;
        }
    }
    Some(budgets.entry(peer).or_default().clone())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    struct Debt(AtomicBool);

    impl Budget for Debt {
        fn is_full(&self) -> bool {
            !self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn so_many_busy_peers_have_a_budget_and_one_that_owes_nothing_gives_way_unless_it_is_served() {
        let mut budgets: HashMap<PeerId, Arc<Debt>> = HashMap::new();
        let busy: Vec<PeerId> = (0..BUDGETS).map(|_| PeerId::random()).collect();
        let owe = |budgets: &HashMap<PeerId, Arc<Debt>>, owes| {
            budgets.values().for_each(|budget| budget.0.store(owes, Ordering::Relaxed));
        };
        for peer in &busy {
            budget_of(&mut budgets, *peer).expect("there is room");
        }
        owe(&budgets, true);
        assert!(budget_of(&mut budgets, PeerId::random()).is_none(), "all of them owe something");
        let served = budget_of(&mut budgets, busy[7]).expect("it is known");
        owe(&budgets, false);
        assert!(budget_of(&mut budgets, PeerId::random()).is_some());
        assert_eq!(budgets.len(), 2, "what is as good as new is forgotten");
        let again = budget_of(&mut budgets, busy[7]).expect("it is known");
        assert!(Arc::ptr_eq(&served, &again), "two sessions of one peer have one budget");
    }
}
