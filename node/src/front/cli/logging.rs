//! The log: to stderr, little of it unless asked for.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use super::args::Global;

/// What is logged: `RUST_LOG` if it is set, else by `-v` and `-q`.
fn filter(global: &Global, daemon: bool) -> String {
    let level = i16::from(global.verbose) - i16::from(global.quiet);
    let chosen = match (level, daemon) {
        (..=-2, _) => "off",
        (-1, _) => "error",
        // A node that starts alone has nobody to look itself up with, and one end of a connection closes it first: libp2p
        // warns of what is no news.
        (0, true) => "warn,libp2p_kad=error,yamux=error,p2p_node=info,p2p_protocol=info",
        (0, false) => "error",
        (1, true) => "info,p2p_node=debug,p2p_protocol=debug",
        (1, false) => "warn,p2p_node=info",
        (2, _) => "debug,p2p_node=trace,p2p_protocol=trace",
        (3.., _) => "trace",
    };
    chosen.to_owned()
}

/// Starts the log of this process.
pub(super) fn start(global: &Global, daemon: bool) {
    let environment = std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty());
    let mut ignored = None;
    let chosen = match environment.map(|text| (EnvFilter::try_new(&text), text)) {
        Some((Ok(filter), _)) => filter,
        Some((Err(error), text)) => {
            ignored = Some((text, error));
            EnvFilter::new(filter(global, daemon))
        }
        None => EnvFilter::new(filter(global, daemon)),
    };
    // Refused only if this process has a log already: then that one serves.
    let _kept = tracing_subscriber::fmt()
        .with_env_filter(chosen)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(global.verbose > 0)
        // It would print, and printing to a closed stderr panics.
        .log_internal_errors(false)
        .try_init();
    if let Some((text, error)) = ignored {
        super::output::warn(&format!("RUST_LOG=\"{text}\" is not understood ({error}) and is left out"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_is_one() {
        for (verbose, quiet) in [(0, 0), (1, 0), (2, 0), (9, 0), (0, 1), (0, 2), (0, 9)] {
            for daemon in [true, false] {
                let global = Global { verbose, quiet, ..Global::default() };
                assert!(EnvFilter::try_new(filter(&global, daemon)).is_ok());
            }
        }
    }
}
