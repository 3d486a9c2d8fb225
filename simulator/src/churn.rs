//! A large network through days of churn, and what it cost.
//!
//! The machines are the real ones, and each node runs its own; what they hold is sampled: each simulated chunk stands for
//! many, its length scaled, so that the pace of repair is that of all the bytes; and each root for many files of its
//! size, so that manifests cost what those of all of them do. Figures are those of the whole.

use std::{fmt::Write as _, time::Duration};

use p2p_protocol::{chance::Chance, duty::Settings};

use crate::{content::Sample, node::NodeId, sampled, world::World};

/// Bytes of a chunk.
const CHUNK: u64 = 1 << 20;
/// Simulated chunks for each node, and roots.
const SAMPLES: u64 = 50;
const ROOTS: usize = 500;
/// Networks of more nodes have fewer, and audits in closed form.
const MOST_IN_FULL: usize = 2000;
const FEWER_SAMPLES: u64 = 30;
const FEWER_ROOTS: usize = 100;
/// The most bytes that a simulated chunk stands for: lengths are of 32 bits, and a pull of more takes too long a step.
const MOST_BYTES: u64 = 3 << 30;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long everything is left alone before it is counted.
const SETTLING: Duration = Duration::from_secs(12 * 3600);
/// How long it goes on after the last that happens, so that what was lost last is made again too.
const AFTER: Duration = Duration::from_secs(3 * 3600);
/// How long a restart takes.
const RESTART: Duration = Duration::from_secs(120);

/// What is run.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Nodes at the beginning.
    pub nodes: usize,
    /// Days that are counted.
    pub days: u32,
    /// Of everything.
    pub seed: u64,
    /// Copies of each chunk.
    pub replicas: u8,
    /// Distinct chunks in all, of 1 MiB.
    pub chunks: u64,
    /// The mean of the chunks of a file.
    pub files_of: u64,
    /// Departures for good and joins, a day.
    pub departures_a_day: f64,
    /// The share of those that are joins.
    pub joins: f64,
    /// Restarts within the repair delay, a day.
    pub restarts_a_day: f64,
    /// The share of nodes that sleep each night.
    pub sleepers: f64,
    /// Disks that are lost while the identity is kept, a day.
    pub wipes_a_day: f64,
    /// Disks that are full for half a day, a day.
    pub full_a_day: f64,
    /// Files that are added a day; half as many of those are removed.
    pub adds_a_day: f64,
}

impl Plan {
    /// What is usual for so many nodes.
    pub fn new(nodes: usize) -> Self {
        let all = nodes as f64;
        Self {
            nodes,
            days: 7,
            seed: 1,
            replicas: 3,
            chunks: 100_000 * nodes as u64,
            files_of: 1000,
            departures_a_day: all / 25.0,
            joins: 0.5,
            restarts_a_day: all / 7.0,
            sleepers: 0.1,
            wipes_a_day: all / 500.0,
            full_a_day: all / 500.0,
            adds_a_day: (all / 10.0).min(100.0),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Join,
    Depart,
    Restart,
    Wipe,
    Fill,
    Add,
    Remove,
    Sleep(NodeId),
    Start(NodeId),
    Grow(NodeId),
}

/// Runs a plan; gives what is printed: one `name=value` a line, the same for the same plan.
pub fn run(plan: &Plan) -> String {
    let mut chance = Chance::new(plan.seed);
    let mut world = World::new(chance.number(), Settings::default());
    (world.gated, world.closed_form_audits) = (false, plan.nodes > MOST_IN_FULL);
    let scale = settle(&mut world, plan, &mut chance);
    let began = world.now();
    world.figures = crate::figures::Figures { since: began, ..Default::default() };
    let mut schedule = schedule(plan, &mut chance);
    let mut added = Vec::new();
    while let Some((at, happens)) = schedule.pop() {
        world.run(began + at);
        let mut later = |wait: Duration, happens| {
            let place = schedule.partition_point(|(other, _)| *other > at + wait);
            schedule.insert(place, (at + wait, happens));
        };
        let up: Vec<NodeId> = (0..world.nodes.len()).filter(|node| world.nodes[*node].is_up()).collect();
        let Some(&node) = up.get(chance.below(up.len())) else { break };
        match happens {
            Happens::Join => {
                world.join();
            }
            Happens::Depart => world.depart(node),
            Happens::Restart => {
                world.stop(node);
                later(RESTART, Happens::Start(node));
            }
            Happens::Wipe => world.wipe(node),
            Happens::Fill => {
                world.set_capacity(node, world.nodes[node].disk.used);
                later(DAY / 2, Happens::Grow(node));
            }
            Happens::Grow(node) => world.set_capacity(node, u64::MAX),
            Happens::Add => {
                let chunks = sampled::sizes(&mut chance, 64, plan.files_of as f64)[0];
                let samples = (chunks * CHUNK).div_ceil(scale * CHUNK);
                let length = chunks * CHUNK / samples;
                let sample = Sample { files: 1, chunks };
                let root = world.make_sample(samples as usize, length as u32, sample);
                added.push(world.publications.len());
                world.begin_add(node, root, plan.replicas, Duration::from_secs(60));
            }
            Happens::Remove if !added.is_empty() => {
                let publication = added.swap_remove(chance.below(added.len()));
                world.withdraw(publication as u32);
            }
            Happens::Remove => {}
            Happens::Sleep(node) if world.nodes[node].is_up() => {
                world.stop(node);
                let night = Duration::from_secs(8 * 3600);
                later(chance.around(night, 0.2), Happens::Start(node));
            }
            Happens::Sleep(_) => {}
            Happens::Start(node) => world.start(node),
        }
    }
    world.run(began + DAY * plan.days + AFTER);
    report(&mut world, plan, scale)
}

/// Everybody joins, everything is placed as it should be, and all of it is read. Gives how many chunks one stands for.
fn settle(world: &mut World, plan: &Plan, chance: &mut Chance) -> u64 {
    for _ in 0..plan.nodes {
        world.join();
    }
    world.run(Duration::from_secs(30));
    let (samples, roots) = if plan.nodes > MOST_IN_FULL { (FEWER_SAMPLES, FEWER_ROOTS) } else { (SAMPLES, ROOTS) };
    let files = (plan.chunks / plan.files_of.max(1)).max(1);
    let roots = roots.min(files as usize);
    let scale = plan.chunks.div_ceil(samples * plan.nodes as u64).clamp(1, MOST_BYTES / CHUNK);
    for chunks in sampled::sizes(chance, roots, plan.files_of as f64) {
        let sample = Sample { files: files / roots as u64, chunks };
        let all = sample.files * chunks;
        let samples = all.div_ceil(scale);
        let root = world.make_sample(samples as usize, (all * CHUNK / samples) as u32, sample);
        world.place(chance.below(plan.nodes), root, plan.replicas);
    }
    world.run(SETTLING);
    scale
}

/// What happens when, the first last.
fn schedule(plan: &Plan, chance: &mut Chance) -> Vec<(Duration, Happens)> {
    let all = DAY * plan.days;
    let mut schedule = Vec::new();
    let rates = [
        (plan.departures_a_day * (1.0 - plan.joins), Happens::Depart),
        (plan.departures_a_day * plan.joins, Happens::Join),
        (plan.restarts_a_day, Happens::Restart),
        (plan.wipes_a_day, Happens::Wipe),
        (plan.full_a_day, Happens::Fill),
        (plan.adds_a_day, Happens::Add),
        (plan.adds_a_day / 2.0, Happens::Remove),
    ];
    for (rate, happens) in rates {
        let count = (rate * f64::from(plan.days)).round() as u64;
        schedule.extend((0..count).map(|_| (chance.part(all), happens)));
    }
    let sleepers = (plan.sleepers * plan.nodes as f64).round() as usize;
    for _ in 0..sleepers {
        let node = chance.below(plan.nodes);
        for day in 0..plan.days {
            // They go to bed within three hours of each other.
            let bed = Duration::from_secs(12 * 3600) + chance.part(Duration::from_secs(3 * 3600));
            schedule.push((DAY * day + bed, Happens::Sleep(node)));
        }
    }
    schedule.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    schedule
}

/// Chunks of which theory expects the last copy to be lost.
///
/// A Markov chain whose states are the copies left, each of k failing at rate λ and each lost one made again at rate μ:
/// all but one are lost for the share k (λ/μ)^(k-1) of the time, and the last one fails at rate λ then (Ramabhadran and
/// Pasquale, "Analysis of long-running replicated systems", 2006, for λ far below μ).
pub fn expected_losses(chunks: f64, days: f64, copies: u8, failures_a_day: f64, repair_days: f64) -> f64 {
    let k = f64::from(copies);
    chunks * days * k * failures_a_day * (failures_a_day * repair_days).powi(i32::from(copies) - 1)
}

fn report(world: &mut World, plan: &Plan, scale: u64) -> String {
    let days = f64::from(plan.days);
    let counted = world.now().saturating_sub(world.figures.since);
    let node_days = counted.as_secs_f64() / DAY.as_secs_f64() * plan.nodes as f64;
    let failures = (plan.departures_a_day * (1.0 - plan.joins) + plan.wipes_a_day) / plan.nodes as f64;
    let repair_days = world.figures.repair_mean() / DAY.as_secs_f64();
    let expected = expected_losses(plan.chunks as f64, days, plan.replicas, failures, repair_days);
    let (half, slow) = (world.figures.repair_percentile(50), world.figures.repair_percentile(99));
    let figures = &world.figures;
    let a_day = |all: u64| (all as f64 / node_days).round();
    let ratio = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name}={value}");
    };
    line("lost", (figures.lost_bytes / CHUNK).to_string());
    line("lost_expected", format!("{expected:.3}"));
    line("repair_p50_s", format!("{half:.0}"));
    line("repair_p99_s", format!("{slow:.0}"));
    line("moved_per_lost", format!("{:.3}", ratio(figures.moved_for_losses(), figures.lost_copy_bytes)));
    line("restart_bytes", format!("{:.0}", ratio(figures.restart_bytes, figures.restarts)));
    line("manifest_bytes_per_node_day", a_day(figures.manifest_bytes).to_string());
    line("audit_bytes_per_node_day", a_day(figures.audit_bytes).to_string());
    line("gossip_bytes_per_node_day", a_day(figures.gossip_bytes).to_string());
    line("lookups_per_node_day", a_day(figures.lookups).to_string());
    line("manifest_bytes_per_node_day_with_leaves_of_1024", a_day(figures.wide_manifest_bytes).to_string());
    line("nodes", plan.nodes.to_string());
    line("days", plan.days.to_string());
    line("seed", plan.seed.to_string());
    line("replicas", plan.replicas.to_string());
    line("chunks", plan.chunks.to_string());
    line("chunks_a_sample", scale.to_string());
    line("repair_mean_s", format!("{:.0}", figures.repair_mean()));
    line("copies_lost_gib", (figures.lost_copy_bytes >> 30).to_string());
    line("moved_for_losses_gib", (figures.moved_for_losses() >> 30).to_string());
    line("moved_to_joiners_gib", (figures.joined_bytes >> 30).to_string());
    line("moved_for_absences_gib", (figures.absent_bytes >> 30).to_string());
    line("restarts", figures.restarts.to_string());
    line("audits_per_node_day", a_day(figures.audits).to_string());
    let joined = world.nodes.iter().filter(|node| node.joined > figures.since).count();
    line("joined", joined.to_string());
    line("departed", world.nodes.iter().filter(|node| node.departed).count().to_string());
    out
}

impl World {
    /// A root is where it should be, and its publication known to all.
    fn place(&mut self, publisher: NodeId, root: usize, copies: u8) {
        let key = self.publications.len() as u32;
        self.publications.push(crate::world::Publication::new(root, publisher, copies));
        let entries = self.roots[root].entries.clone();
        for (chunk, entry) in &entries {
            for holder in self.nearest(chunk, usize::from(copies)) {
                self.store(holder, *chunk, *entry);
            }
        }
        self.model.acknowledged(key, entries.into_iter().map(|(chunk, _)| chunk).collect(), copies);
        let version = crate::catalogue::Version { version: 1, removed: false };
        (0..self.nodes.len()).for_each(|node| self.learn(node, key, version));
    }
}
