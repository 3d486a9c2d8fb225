//! The command line: a file a verb, and what they share.
//!
//! [`args`] is the whole grammar, [`output`] writes results to stdout and failures to stderr, [`progress`] draws bars,
//! [`text`] shows what came from peers, [`logging`] and [`mod@panic`] are what a user sees of what goes on inside.

pub mod args;
mod logging;
mod output;
mod panic;
mod progress;
mod text;

mod add;
mod cat;
mod completions;
mod connect;
mod daemon;
mod drain;
mod gc;
mod get;
mod history;
mod ls;
mod peers;
mod pin;
mod rm;
mod stat;
mod status;
mod verify;
mod watch;

use std::{ffi::OsString, panic::AssertUnwindSafe, path::PathBuf, process::ExitCode};

use clap::Parser as _;

use self::{
    args::{Cli, Command, Global},
    output::{Failure, Output},
};
use crate::{
    error::{Error, Kind, Result},
    front::api::client::Client,
    settings::DATA_DIR_VARIABLE,
};

/// Runs the command line of this process and gives its exit code.
pub fn main() -> ExitCode {
    panic::install();
    let args: Vec<OsString> = std::env::args_os().collect();
    let json = wants_json(&args);
    let code = std::panic::catch_unwind(AssertUnwindSafe(|| run(&args))).unwrap_or_else(|_| {
        let error = Error::failed("The program failed in an unexpected way")
            .hint("this is a bug: please report it with what you did and what the log says");
        // Standard output may be in any state here: only say it.
        output::report(json, &error)
    });
    ExitCode::from(code)
}

fn run(args: &[OsString]) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error, wants_json(args)),
    };
    logging::start(&cli.global, matches!(cli.command, Command::Daemon(_)));
    let json = cli.global.json;
    let outcome = match cli.command {
        Command::Completions(verb) => completions::run(verb, &mut Output::new(json)),
        Command::Daemon(verb) => daemon::run(*verb, &cli.global),
        command => talk(command, &cli.global),
    };
    match outcome {
        Ok(()) | Err(Failure::StdoutClosed) => 0,
        Err(Failure::Reported(kind)) => kind.exit_code(),
        Err(Failure::Error(error)) => output::report(json, &error),
    }
}

/// Runs a verb that asks the daemon (or, with `--only-hash`, nobody).
fn talk(command: Command, global: &Global) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Error::failed(format!("The system gives this program no threads: {error}")))?;
    let outcome = runtime.block_on(async {
        let mut output = Output::new(global.json);
        let client = || data_dir(global).map(|dir| Client::new(&dir));
        let outcome = match command {
            Command::Add(verb) => add::run(verb, client, global, &mut output).await,
            Command::Get(verb) => get::run(verb, &client()?, global, &mut output).await,
            Command::Cat(verb) => cat::run(verb, &client()?).await,
            Command::Ls(verb) => ls::run(verb, &client()?, &mut output).await,
            Command::Stat(verb) => stat::run(verb, &client()?, &mut output).await,
            Command::Rm(verb) => rm::run(verb, &client()?, &mut output).await,
            Command::Restore(verb) => rm::restore(verb, &client()?, &mut output).await,
            Command::History(verb) => history::run(verb, &client()?, &mut output).await,
            Command::Pin(verb) => pin::run(verb, &client()?, global, &mut output).await,
            Command::Unpin(verb) => pin::unpin(verb, &client()?, &mut output).await,
            Command::Gc(_) => gc::run(&client()?, global, &mut output).await,
            Command::Drain(verb) => drain::run(verb, &client()?, global, &mut output).await,
            Command::Watch(verb) => watch::run(&verb, &client()?, &mut output).await,
            Command::Peers(_) => peers::run(&client()?, &mut output).await,
            Command::Connect(verb) => connect::run(&verb, &client()?, &mut output).await,
            Command::Verify(verb) => verify::run(verb, &client()?, global, &mut output).await,
            Command::Status(_) => status::run(&client()?, &mut output).await,
            Command::Daemon(_) | Command::Completions(_) => Ok(()),
        };
        // What was said before a failure stands before it, and a result that cannot be written is a failure.
        let written = output.flush();
        outcome.and(written)
    });
    // A read of standard input that will never end must not hold the exit.
    runtime.shutdown_background();
    outcome
}

/// The data directory: the option, the environment, the platform's; absolute.
fn data_dir(global: &Global) -> Result<PathBuf> {
    let named = global
        .data_dir
        .clone()
        .or_else(|| std::env::var_os(DATA_DIR_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from));
    let dir = match named {
        Some(dir) => dir,
        None => directories::BaseDirs::new()
            .ok_or_else(|| {
                Error::usage("This user has no home directory, so there is no default data directory")
                    .hint(format!("give --data-dir, or set {DATA_DIR_VARIABLE}"))
            })?
            .data_dir()
            .join("p2p-node"),
    };
    absolute(&dir)
}

/// A path as the daemon, which has a current directory of its own, needs it; its last symlink is not followed.
fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| {
        Error::new(Kind::Usage, format!("The path \"{}\" cannot be used: {error}", text::path(path)))
            .hint("give one that is not empty, in a directory that still exists")
    })
}

/// Whether `--json` was given, for failures before or without parsing.
fn wants_json(args: &[OsString]) -> bool {
    args.iter().skip(1).take_while(|arg| *arg != "--").any(|arg| arg == "--json")
}
