//! `completions SHELL`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{
    args::Cli,
    output::{Failure, Output},
};

/// Arguments of `completions`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// Prints the script.
pub(super) fn run(verb: Completions, output: &mut Output) -> Result<(), Failure> {
    // Into memory first: the generator panics on a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(verb.shell, &mut Cli::command(), "p2p-node", &mut script);
    output.bytes(&script)?;
    output.flush()
}
