//! `simulate`: a large network through days of churn, and what it cost.

use clap::Parser;
use p2p_simulator::churn::{Plan, run};

/// Runs the repair loop of a large network through days of churn, on simulated time, and prints what it cost.
#[derive(Parser)]
struct Options {
    /// Nodes at the beginning; of more than 2,000 audits are counted in closed form
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Days that are counted
    #[arg(long, default_value_t = 7)]
    days: u32,
    /// The same seed prints the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Copies of each chunk
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    replicas: u8,
    /// Distinct chunks of 1 MiB in all [default: 100,000 a node]
    #[arg(long)]
    chunks: Option<u64>,
    /// Mean chunks a file; sizes are log-normal
    #[arg(long, default_value_t = 1000)]
    files_of: u64,
    /// Departures for good and joins, a day [default: a twenty-fifth of the nodes]
    #[arg(long)]
    departures_a_day: Option<f64>,
    /// The share of those that are joins
    #[arg(long, default_value_t = 0.5)]
    joins: f64,
    /// Restarts within the repair delay, a day [default: each node once a week]
    #[arg(long)]
    restarts_a_day: Option<f64>,
    /// The share of nodes that sleep each night
    #[arg(long, default_value_t = 0.1)]
    sleepers: f64,
    /// Disks that are lost while the identity is kept, a day [default: of a five-hundredth of the nodes]
    #[arg(long)]
    wipes_a_day: Option<f64>,
    /// Disks that are full for half a day, a day [default: of a five-hundredth of the nodes]
    #[arg(long)]
    full_a_day: Option<f64>,
    /// Files that are added a day, half as many being removed [default: a tenth of the nodes, at most 100]
    #[arg(long)]
    adds_a_day: Option<f64>,
}

fn main() {
    let options = Options::parse();
    let usual = Plan::new(options.nodes.max(1));
    let plan = Plan {
        days: options.days.max(1),
        seed: options.seed,
        replicas: options.replicas,
        chunks: options.chunks.unwrap_or(usual.chunks),
        files_of: options.files_of.max(1),
        departures_a_day: options.departures_a_day.unwrap_or(usual.departures_a_day),
        joins: options.joins.clamp(0.0, 1.0),
        restarts_a_day: options.restarts_a_day.unwrap_or(usual.restarts_a_day),
        sleepers: options.sleepers.clamp(0.0, 1.0),
        wipes_a_day: options.wipes_a_day.unwrap_or(usual.wipes_a_day),
        full_a_day: options.full_a_day.unwrap_or(usual.full_a_day),
        adds_a_day: options.adds_a_day.unwrap_or(usual.adds_a_day),
        ..usual
    };
    print!("{}", run(&plan));
}
