//! A daemon's command line: run against it, its answers taken apart.

use std::{ffi::OsStr, path::Path, process::Command};

use serde_json::Value;

use super::{Daemon, LONG, Output, Scratch, text, tree, until};

impl Daemon {
    /// The command line `args` on this daemon's data directory, not run yet.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.prefixed();
        command.arg("--data-dir").arg(self.data_dir()).args(args);
        command
    }

    /// Runs `args` to the end against this daemon.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        Output::of(self.command(args))
    }

    /// Runs `args --json`, which must succeed with one object.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        self.run_json(args).ok().json()
    }

    /// Runs `args --json`, which must succeed with an object a line.
    #[track_caller]
    pub fn json_lines<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Vec<Value> {
        self.run_json(args).ok().json_lines()
    }

    /// Runs `args --json`.
    pub fn run_json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        let mut command = self.command(args);
        command.arg("--json");
        Output::of(command)
    }

    /// `add PATH --json`, which must succeed: its one line.
    #[track_caller]
    pub fn add(&self, path: &Path) -> Value {
        self.json([OsStr::new("add"), path.as_os_str()])
    }

    /// `get REFERENCE -o OUTPUT --json`, which must succeed.
    #[track_caller]
    pub fn get(&self, reference: &str, output: &Path) -> Value {
        self.json([OsStr::new("get"), OsStr::new(reference), OsStr::new("-o"), output.as_os_str()])
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json(["status"])
    }

    /// The storing peers that it could place a chunk on.
    #[track_caller]
    pub fn known_peers(&self) -> u64 {
        self.status()["known_peers"].as_u64().expect("the contract has known_peers")
    }

    /// Waits until it knows exactly `count` storing peers.
    #[track_caller]
    pub fn wait_for_peers(&self, count: usize) {
        until("the storing peers are known", LONG, || {
            let known = self.known_peers();
            if known == count as u64 {
                return Ok(());
            }
            Err(format!("{} knows {known} of {count}; connected:\n{}", self.peer_id(), self.run(["peers"]).text()))
        });
    }

    /// Adds a file of noise, which must succeed, and gives its root.
    #[track_caller]
    pub fn keep(&self, file: &Path, seed: u64, length: u64) -> String {
        tree::noise_file(file, seed, length);
        text(&self.add(file)["cid"])
    }

    /// The same where a copy may be missing: peers that should take one are dead or worse.
    #[track_caller]
    pub fn keep_wherever(&self, file: &Path, seed: u64, length: u64) -> String {
        tree::noise_file(file, seed, length);
        let output = self.run_json([OsStr::new("add"), file.as_os_str()]);
        assert!(matches!(output.code, 0 | 5), "{output}");
        let line = output.json_lines().into_iter().find(|line| line.get("cid").is_some());
        text(&line.unwrap_or_else(|| panic!("no CID: {output}"))["cid"])
    }

    /// Gets `root` and compares it with `source`.
    #[track_caller]
    pub fn gives(&self, root: &str, source: &Path) {
        let copy = Scratch::new("copy");
        self.get(root, &copy.join("it"));
        tree::assert_same(source, &copy.join("it"));
    }
}
