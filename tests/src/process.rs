//! Real processes: daemons and their command line, started, watched, broken and removed by a test.
//!
//! A suite names the binary once, `const NODE: Program = Program(env!("CARGO_BIN_EXE_p2p-node-tested"));`, and
//! starts from there: [`Program::daemon`], [`Program::cluster`], [`Program::run`]. Everything is safe to run side by
//! side: directories are fresh, ports are the system's, and nothing of a run outlives it, not even when it is
//! killed ([`reaper`]).

pub mod cluster;
pub mod daemon;
pub mod evil;
pub mod forge;
pub mod mounts;
pub mod namespace;
pub mod output;
pub mod placement;
pub mod reaper;
pub mod sybil;
pub mod tree;
mod verbs;
pub mod wait;
mod watching;

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, Stdio},
};

pub use cluster::Cluster;
pub use daemon::{Daemon, Options};
pub use output::{Output, text, utf8};
pub use reaper::Scratch;
pub use wait::{LONG, until};
pub use watching::Watching;

/// The binary that the tests run.
#[derive(Clone, Copy, Debug)]
pub struct Program(pub &'static str);

impl Program {
    /// How a daemon is started; nothing is until [`Options::start`].
    pub fn daemon(self) -> Options {
        Options::new(self)
    }

    /// `nodes` daemons that know each other.
    pub fn cluster(self, nodes: usize) -> Cluster {
        Cluster::start(self, nodes)
    }

    /// The command `args`, with no data directory named and none to be found by default.
    pub fn command<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.0);
        command.args(args);
        isolate(&mut command);
        command
    }

    /// Runs `args` to the end against the daemon of `data_dir`.
    pub fn run_on<S: AsRef<OsStr>>(self, data_dir: &Path, args: impl IntoIterator<Item = S>) -> Output {
        let mut command = self.command([OsStr::new("--data-dir"), data_dir.as_os_str()]);
        command.args(args);
        Output::of(command)
    }

    /// Runs `args` to the end, with no data directory named.
    pub fn run<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Output {
        Output::of(self.command(args))
    }
}

/// Takes away what a developer's environment would change, and gives a home that belongs to the run.
pub fn isolate(command: &mut Command) {
    let home = reaper::root();
    command
        .env("HOME", home)
        .env("XDG_DATA_HOME", home.join("share"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_RUNTIME_DIR", home)
        .stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let ours = name.to_string_lossy().starts_with("P2P_NODE_");
        if ours || name == "RUST_LOG" || name == "RUST_BACKTRACE" || name == "SSLKEYLOGFILE" {
            command.env_remove(name);
        }
    }
}
