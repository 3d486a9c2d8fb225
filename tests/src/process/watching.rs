//! A `watch --json` that runs, and what it tells.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{Daemon, LONG, reaper};

/// How long an update that was just caused may take; then it is caused once more.
const SOON: Duration = Duration::from_millis(500);

/// It runs until it is dropped.
#[derive(Debug)]
pub struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    /// Watches `node`, from a position on or from some moment after this on.
    ///
    /// # Panics
    /// If it cannot be run.
    #[track_caller]
    pub fn start(node: &Daemon, since: Option<u64>) -> Self {
        let mut command = node.command(["watch", "--json"]);
        if let Some(since) = since {
            command.arg("--since").arg(since.to_string());
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary runs");
        reaper::born(child.id());
        let pipe = child.stdout.take().expect("it is piped");
        let (told, lines) = mpsc::channel();
        thread::spawn(move || BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        Self { child, lines }
    }

    /// The next update, if it comes soon.
    #[track_caller]
    pub fn soon(&self) -> Option<Value> {
        self.lines.recv_timeout(SOON).ok().map(|line| parse(&line))
    }

    /// The next `count` updates.
    #[track_caller]
    pub fn next(&self, count: usize) -> Vec<Value> {
        self.others(count, "")
    }

    /// The next `count` updates that are not of `name`.
    ///
    /// # Panics
    /// If they do not come.
    #[track_caller]
    pub fn others(&self, count: usize, name: &str) -> Vec<Value> {
        let events = std::iter::repeat_with(|| parse(&self.lines.recv_timeout(LONG).expect("an update is told")));
        events.filter(|event| event["name"] != name).take(count).collect()
    }
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        reaper::ended(self.child.id());
    }
}
