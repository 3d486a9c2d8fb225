//! Making this node's part of the catalogue true: what it should hold is fetched, what nothing lists any more is freed.
//!
//! The decisions are [`p2p_protocol::duty`]'s. Two machines run here over the same table ([`Wanted`]): the lister
//! (`lists.rs`) reads manifests as publications come and go, so that the rows say what the catalogue does; the keeper
//! (`upkeep.rs`) compares rows, store and peers, and has its outputs carried out. A table that is lost is made again,
//! and both begin anew.

pub mod collect;
mod compare;
pub mod drain;
mod lists;
pub mod pins;
mod read;
mod role;
mod upkeep;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use p2p_protocol::{
    PeerId,
    chance::Chance,
    duty::{self, Keeper, Settings, Span, lister::Lister},
    machine::StateMachine as _,
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::Duration,
};

use self::{compare::Ears, lists::Lists, role::Question, upkeep::Upkeep};
pub use self::{
    compare::{Drift, Lacking},
    role::Part,
};
use super::{
    audit::Audit,
    blocking::Blocking,
    catalogue::Catalogue,
    fetch::Fetch,
    locate::Locate,
    sync::Sync,
    transfer::Transfer,
    wanted::{Rows, Wanted},
    worker::{Layer, Work},
};
use crate::{
    runner::{self, now},
    store::{Store, StoreError},
};

/// Inputs of the keeper that may wait: each is small, and whoever has one waits.
const INPUTS: usize = 256;
/// Questions that may wait: a person asks one at a time, and one is about a page of rows at the most.
const QUESTIONS: usize = 8;
/// After a failure of the store the table is opened again.
const AGAIN: Duration = Duration::from_secs(5);
/// Longer than it ever takes until everything that is live was told.
const UNTOLD: Duration = Duration::from_secs(365 * 86_400);

/// What a node knows of its own part, for people.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Health {
    /// Chunks that this node should hold, here or not.
    pub duty: u64,
    /// Chunks that are missing here and being looked for.
    pub wanting: usize,
    /// Of those, being fetched.
    pub fetching: usize,
    /// Chunks that a peer which should hold them was found to lack.
    pub lacking: usize,
    /// Over a third of the storing peers are away at once, so that they are waited for eight times as long.
    pub cautious: bool,
}

/// The handle: clone it freely.
#[derive(Clone, Debug)]
pub struct Keep {
    health: Arc<Mutex<Health>>,
    around: Around,
    settings: Settings,
    questions: mpsc::Sender<Question>,
    /// While the loop runs.
    ears: Arc<Mutex<Option<Ears>>>,
    /// Counts changes of the pins' records.
    pins: Arc<watch::Sender<u64>>,
}

/// Why this node's part cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The index was lost, and the table is being made.
    #[error("the table of what this node should hold is being made anew")]
    NoTable,
    /// Nobody else stores.
    #[error("no other peer that stores chunks is connected: there is nobody to hand over to")]
    Alone,
    /// It was told to stay.
    #[error("this node was told to stay")]
    Stays,
    /// There is no room for one more.
    #[error("{} pins are there already, and no node has more", pins::MOST_PINS)]
    TooManyPins,
    /// What is to be pinned is nothing that could be published.
    #[error("this content cannot be pinned: what is known of it is not valid")]
    Unpinnable,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the loop works on.
#[derive(Clone, Debug)]
pub struct Around {
    /// The chunks of this node.
    pub store: Store,
    /// Its rows.
    pub wanted: Wanted,
    /// Who stores.
    pub locate: Locate,
    /// Sessions with peers.
    pub transfer: Transfer,
    /// Getting chunks.
    pub fetch: Fetch,
    /// What is listed.
    pub catalogue: Catalogue,
    /// Comparing catalogues.
    pub sync: Sync,
    /// Comparing with neighbours, and proofs.
    pub audit: Audit,
    /// Steps that block.
    pub blocking: Blocking,
}

impl Around {
    /// The next rows of a part of the keyspace.
    async fn rows(&self, span: Span) -> Result<Rows, StoreError> {
        let wanted = self.wanted.clone();
        self.blocking.run(move || wanted.rows(&span)).await?
    }
}

impl Keep {
    /// Starts the loop, by the chance of `seed`. `storing`: this node takes chunks.
    pub fn start(around: Around, settings: Settings, storing: bool, seed: u64, workers: &Layer) -> Self {
        let health = Arc::<Mutex<Health>>::default();
        let (shown, running) = (health.clone(), around.clone());
        let (questions, mut asked) = mpsc::channel(QUESTIONS);
        let ears = Arc::<Mutex<Option<Ears>>>::default();
        let hearing = ears.clone();
        let pins = Arc::new(watch::Sender::new(0));
        let pinning = pins.clone();
        workers.spawn("upkeep", |work| async move {
            let (around, mut chance) = (running, Chance::new(seed));
            loop {
                let told = (&shown, &*hearing, &*pinning);
                let ended = once(&around, settings, storing, &mut chance, told, &mut asked, &work).await;
                if let Err(error) = ended {
                    tracing::warn!(%error, "what this node should hold cannot be compared; trying again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        });
        Self { health, around, settings, questions, ears, pins }
    }

    /// How long it takes to fetch so many bytes at the pace that is allowed.
    pub fn time_for(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.settings.repair_bytes_per_second as f64)
    }

    fn ears(&self) -> Option<Ears> {
        self.ears.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is known now.
    pub fn health(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These were storing peers in an earlier run, and for long: what they put here is not bounded as what strangers do.
    pub fn met(&self, peers: impl IntoIterator<Item = PeerId>) {
        self.around.wanted.met(peers);
    }
}

/// Runs both machines until the table is lost.
async fn once(
    around: &Around,
    settings: Settings,
    storing: bool,
    chance: &mut Chance,
    (health, ears, pins): (&Arc<Mutex<Health>>, &Mutex<Option<Ears>>, &watch::Sender<u64>),
    questions: &mut mpsc::Receiver<Question>,
    work: &Work,
) -> Result<(), StoreError> {
    let Around { wanted, locate, catalogue, blocking, .. } = around;
    if !wanted.is_made() {
        tracing::info!("the table of what is wanted is made anew");
        let making = wanted.clone();
        if !blocking.run(move || making.make()).await?? {
            // Without one nothing would be compared: it is made once the index is there again.
            tokio::time::sleep(AGAIN).await;
            return Ok(());
        }
        // What was put meanwhile.
        compare::complete(wanted, blocking).await?;
    }
    let (local, moment) = (locate.local(), wanted.moment());
    let mut keeper = Keeper::new(local, storing, settings, now(), moment, Chance::new(chance.number()));
    // What is live was not told yet, and may list what has no row that says so: the lister says when all of it was read.
    keeper.handle(now(), duty::Input::Unread(Some(now() + UNTOLD)));
    let parts: BTreeMap<_, _> = wanted.parts()?.into_iter().map(|(copies, part)| (copies, Arc::new(part))).collect();
    let earlier = wanted.roll()?.map(|noted| lists::Earlier { noted, parts: parts.clone() });
    let salt = earlier.as_ref().map_or_else(|| chance.number(), |earlier| earlier.noted.roll.salt());
    let lister = Lister::new(settings.grace, parts).salted(salt);
    let (inputs, incoming) = mpsc::channel(INPUTS);
    let (reach, reaches) = watch::channel(None);
    // First of all: what changes while the catalogue is read is told by this.
    let liveness: broadcast::Receiver<_> = catalogue.liveness();
    let (lister_ear, comparisons) = mpsc::channel(compare::COMPARISONS);
    *ears.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ears { keeper: inputs.clone(), lister: lister_ear });
    let heard = lists::Heard { liveness, reaches, comparisons, pins: pins.subscribe() };
    let lists = Lists::new(around.clone(), inputs.clone(), heard, earlier)?;
    let told = (inputs, incoming);
    let upkeep = Upkeep::new(around.clone(), settings, told, reach, health.clone(), questions, work);
    // Both are dropped together where one ends: the keeper's channel is open as long as the lister is there.
    tokio::select! {
        () = runner::run(lister, lists) => {}
        () = runner::run(keeper, upkeep) => {}
        () = wanted.lost() => tracing::info!("the table of what is wanted is lost"),
    }
    Ok(())
}
