//! Chaos: real daemons that are killed, wiped, cut off, filled up and damaged at random while people add, read and remove;
//! at the end the network must have kept its promise.
//!
//! [`run`] starts the machines ([`field`]), sets writers, readers and removers to work ([`work`]), does harm ([`harm`]) as
//! far as the [`model`] allows, never more than k − 1 copies' worth within one repair, and judges ([`judge`]). What
//! happened and what was found is in the [`log`]. All chance comes from the seed; what processes do in which order does
//! not, so that the same seed decides the same as long as the machines answer the same.

pub mod field;
pub mod harm;
pub mod judge;
pub mod log;
pub mod model;
pub mod verdict;
pub mod work;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};

use self::{field::Field, log::Log, model::Model};
use crate::process::{Program, Scratch};

/// Copies of each chunk: the default of a node.
pub const COPIES: usize = 3;
/// How long a removed chunk stays.
pub const GRACE: Duration = Duration::from_secs(20);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The daemon.
    pub program: Program,
    /// How many of them, at least five: k, one to be cut off, one to be wiped.
    pub nodes: usize,
    /// For how long harm is done.
    pub time: Duration,
    /// Of all chance.
    pub seed: u64,
    /// All copies of a chunk are destroyed at the end, which must be found.
    pub sabotage: bool,
    /// Events are told as they come.
    pub aloud: bool,
    /// Where the logs of the daemons are kept, a file each, as `P2P_TEST_LOG` has them logged.
    pub logs: Option<PathBuf>,
    /// Arguments of each daemon.
    pub settings: Vec<String>,
}

impl Plan {
    /// Daemons that do not wait for long.
    pub fn new(program: Program) -> Self {
        let grace = format!("{}s", GRACE.as_secs());
        let settings = ["--repair-delay", "5s", "--gc-grace", &grace].map(str::to_owned).to_vec();
        let time = Duration::from_secs(60);
        Self { program, nodes: 6, time, seed: 1, sabotage: false, aloud: false, logs: None, settings }
    }
}

/// What everybody at work shares.
#[derive(Debug)]
pub struct Scene {
    /// What is to be done.
    pub plan: Plan,
    /// The machines.
    pub field: Field,
    /// What happened.
    pub log: Log,
    /// What is known.
    model: Mutex<Model>,
    /// Where sources and copies lie.
    pub scratch: Scratch,
}

impl Scene {
    /// What is known; held for moments only.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chance of its own for whoever is `actor`.
    pub fn chance(&self, actor: u64) -> StdRng {
        StdRng::seed_from_u64(self.plan.seed.wrapping_mul(1000).wrapping_add(actor))
    }
}

/// Does it all; what happened and was found is in the answer.
pub fn run(plan: Plan) -> Scene {
    let log = Log::new(plan.aloud);
    log.event(format!("seed {}, {} machines, {} s", plan.seed, plan.nodes, plan.time.as_secs()));
    for name in ["kills", "restarts", "wipes", "cuts", "fills", "flips", "adds", "removals", "reads"] {
        log.add(name, 0);
    }
    for name in ["lost", "left", "misplaced", "unequal", "damaged", "broken"] {
        log.add(name, 0);
    }
    let field = Field::start(&plan, |what| log.event(what));
    log.add("cables", field.has_cables().into());
    log.add("small_disk", field.has_small_disk().into());
    let model = Mutex::new(Model::new(COPIES));
    let scene = Scene { plan, field, log, model, scratch: Scratch::new("chaos-work") };
    thread::scope(|scope| {
        for (name, actor, job) in work::all() {
            let scene = &scene;
            let guarded = move || watched(scene, name, || job(scene, scene.chance(actor)));
            scope.spawn(guarded);
        }
        watched(&scene, "harm", || harm::run(&scene));
        scene.log.end();
    });
    if scene.log.all_found().is_empty() {
        watched(&scene, "judge", || judge::run(&scene));
    }
    if let Some(Err(error)) = scene.plan.logs.as_deref().map(|directory| scene.field.keep_logs(directory)) {
        scene.log.event(format!("the logs of the daemons are not kept: {error}"));
    }
    scene
}

/// Runs what must not panic: a harness that gives up, or a daemon that says what it must not, is found like a loss.
fn watched(scene: &Scene, name: &str, job: impl FnOnce()) {
    if let Err(cause) = catch_unwind(AssertUnwindSafe(job)) {
        scene.log.found("broken", format!("{name}: {}", told(cause.as_ref())));
    }
}

fn told(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().cloned();
    text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
