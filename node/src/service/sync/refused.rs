//! What has no room, here or at a peer: it differs for good, and is not to be moved again with each session.
//!
//! Sessions find the same difference each time, once a minute and after each publication. What was refused is left out of
//! the next ones for an hour at the most: room may come, where a floor rises or a publisher is met.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use p2p_protocol::{Key, reconcile::Id};

use crate::runner::now;

/// Refusals that are remembered: twice a full catalogue of the default size, some 6 MiB; beyond it the oldest half is
/// forgotten, and moved once more.
const MOST: usize = 131_072;
/// For how long, half of it at least.
const HOUR: Duration = Duration::from_secs(3600);

/// Who refused (the first bytes of its key: two that share them leave something out for an hour), and what.
type Refusal = ([u8; 8], Id);

/// What was refused lately.
#[derive(Debug)]
pub(super) struct Refused(Mutex<Halves>);

/// Two sets, so that what is old goes at once.
#[derive(Debug)]
struct Halves {
    /// When `new` was begun.
    begun: Instant,
    new: HashSet<Refusal>,
    old: HashSet<Refusal>,
}

impl Refused {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Halves { begun: now(), new: HashSet::new(), old: HashSet::new() }))
    }

    /// Notes that `who` has no room for these.
    pub(super) fn note(&self, who: &PeerId, ids: impl IntoIterator<Item = Id>) {
        let mut halves = self.halves();
        for id in ids {
            if halves.new.len() >= MOST / 2 {
                halves.turn();
            }
            halves.new.insert(refusal(who, &id));
        }
    }

    /// Leaves those that `who` did not refuse of late.
    pub(super) fn leave_out(&self, who: &PeerId, ids: &mut Vec<Id>) {
        let halves = self.halves();
        if halves.new.is_empty() && halves.old.is_empty() {
            return;
        }
        ids.retain(|id| {
            let refusal = refusal(who, id);
            !(halves.new.contains(&refusal) || halves.old.contains(&refusal))
        });
    }

    fn halves(&self) -> MutexGuard<'_, Halves> {
        // Nothing under it panics.
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now().saturating_duration_since(halves.begun);
        if age >= HOUR {
            halves.turn();
        }
        if age >= HOUR / 2 {
            halves.turn();
        }
        halves
    }
}

impl Halves {
    fn turn(&mut self) {
        self.old = std::mem::take(&mut self.new);
        self.begun = now();
    }
}

fn refusal(who: &PeerId, id: &Id) -> Refusal {
    let mut first = [0; 8];
    first.copy_from_slice(&Key::from(who).0[..8]);
    (first, *id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::rig::peer;

    /// Which of a hundred ids are left.
    fn left(refused: &Refused, who: u8) -> usize {
        let mut ids = (0..100).map(id).collect();
        refused.leave_out(&peer(who), &mut ids);
        ids.len()
    }

    fn id(number: u32) -> Id {
        *blake3::hash(&number.to_be_bytes()).as_bytes()
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_refused_is_left_out_for_it_alone_and_for_half_an_hour_to_an_hour() {
        let refused = Refused::new();
        refused.note(&peer(1), (0..30).map(id));
        assert_eq!((left(&refused, 1), left(&refused, 2)), (70, 100));
        tokio::time::sleep(HOUR / 2 - Duration::from_secs(1)).await;
        refused.note(&peer(1), (30..40).map(id));
        tokio::time::sleep(HOUR / 2 - Duration::from_secs(2)).await;
        assert_eq!(left(&refused, 1), 60);
        tokio::time::sleep(HOUR / 2).await;
        assert_eq!(left(&refused, 1), 100);
        refused.note(&peer(1), (0..30).map(id));
        tokio::time::sleep(2 * HOUR).await;
        assert_eq!(left(&refused, 1), 100, "nobody asked for long");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_bounded_and_the_oldest_go_first() {
        let refused = Refused::new();
        refused.note(&peer(1), (0..MOST as u32 + 100).map(id));
        let halves = refused.halves();
        assert!(halves.new.len() + halves.old.len() <= MOST);
        assert!(halves.new.contains(&refusal(&peer(1), &id(MOST as u32 + 99))));
        assert!(!halves.old.contains(&refusal(&peer(1), &id(0))));
    }
}
