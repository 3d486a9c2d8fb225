//! The chaos run (`scripts/chaos.sh`): what it did and found, a `name=value` a line.
//!
//! Exit codes: 0 the network kept its promise, 1 it did not (the seed and all events are on standard error), 2 usage.

use std::{process::ExitCode, time::Duration};

use p2p_tests::{
    chaos::{self, Plan},
    process::Program,
};

const USAGE: &str = "chaos [--minutes M] [--seed S] [-n N] [--sabotage] [--aloud] [--logs DIR]";

fn main() -> ExitCode {
    let plan = match plan(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(reason) => {
            eprintln!("chaos: {reason}\nusage: {USAGE}");
            return ExitCode::from(2);
        }
    };
    let (seed, aloud) = (plan.seed, plan.aloud);
    let scene = chaos::run(plan);
    println!("seed={seed}");
    println!("seconds={}", scene.log.elapsed().as_secs());
    for (name, value) in scene.log.counts() {
        println!("{name}={value}");
    }
    let found = scene.log.all_found();
    if found.is_empty() {
        return ExitCode::SUCCESS;
    }
    if !aloud {
        scene.log.events().iter().for_each(|event| eprintln!("{event}"));
    }
    for what in found {
        eprintln!("chaos: {what}");
    }
    eprintln!("chaos: failed with --seed {seed}");
    ExitCode::FAILURE
}

fn plan(mut words: impl Iterator<Item = String>) -> Result<Plan, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let program = own.with_file_name("p2p-node-tested");
    if !program.exists() {
        return Err(format!("{} is not built", program.display()));
    }
    // Lives as long as the process, which runs one plan.
    let mut plan = Plan::new(Program(Box::leak(program.to_string_lossy().into_owned().into_boxed_str())));
    while let Some(word) = words.next() {
        let mut number = |least: f64, most: f64| {
            let value = words.next().and_then(|text| text.parse().ok());
            let value = value.filter(|value: &f64| (least..=most).contains(value));
            value.ok_or(format!("{word} takes a number from {least} to {most}"))
        };
        match word.as_str() {
            "--logs" => plan.logs = Some(words.next().ok_or("--logs takes a directory")?.into()),
            "--minutes" => plan.time = Duration::from_secs_f64(number(0.0, 100_000.0)? * 60.0),
            "--seed" => plan.seed = number(0.0, f64::from(u32::MAX))? as u64,
            "-n" => plan.nodes = number(5.0, 50.0)? as usize,
            "--sabotage" => plan.sabotage = true,
            "--aloud" => plan.aloud = true,
            _ => return Err(format!("{word} is not known")),
        }
    }
    Ok(plan)
}
