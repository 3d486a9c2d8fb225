//! What a command gave: exit code, standard output, standard error; and what the contract says of every one.

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{reaper, wait::until};

/// A command that does not end by itself in this time is killed and fails the test.
const PATIENCE: Duration = Duration::from_secs(180);

/// A command that ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

impl Output {
    /// Runs `command` to its end.
    pub fn of(command: Command) -> Self {
        Self::fed(command, None)
    }

    /// Runs `command` to its end with `input` on its standard input.
    pub fn fed(mut command: Command, input: Option<Vec<u8>>) -> Self {
        let shown = show(&command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {shown}: {error}"));
        reaper::born(child.id());
        let writer = child.stdin.take().zip(input).map(|(mut pipe, bytes)| {
            thread::spawn(move || {
                // A command that fails early closes its end: its exit code is what the test looks at.
                let _ = std::io::Write::write_all(&mut pipe, &bytes);
            })
        });
        let stdout = child.stdout.take().map(drain);
        let stderr = child.stderr.take().map(drain);
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the command ended", PATIENCE, || match child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err(shown.clone()),
                Err(error) => panic!("{error}"),
            })
        }));
        if waited.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        reaper::ended(child.id());
        let collect = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
            reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (collect(stdout), collect(stderr));
        if let Some(writer) = writer {
            let _ = writer.join();
        }
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let status = waited.unwrap_or_else(|_| panic!("{shown} did not end; it said:\n{stderr}"));
        let output = Self { command: shown, code: status.code().unwrap_or(-1), stdout, stderr };
        output.is_fit_for_a_user();
        output
    }

    /// Whatever happened, no panic and no backtrace reaches a user.
    #[track_caller]
    fn is_fit_for_a_user(&self) {
        for trace in ["panicked at", "RUST_BACKTRACE", "stack backtrace"] {
            assert!(!self.stderr.contains(trace), "a user is shown {trace:?}: {self}");
        }
    }

    /// This output, if the exit code is `code`.
    ///
    /// # Panics
    /// If it is another.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// This output, if the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect(0)
    }

    /// The failure of `kind`, told as the contract has it: the exit code, a sentence on standard error and, with `--json`,
    /// `{"error":…}` on standard output with the same message. Gives the message.
    #[track_caller]
    pub fn failure(self, code: i32, kind: &str) -> String {
        assert_eq!(self.code, code, "{self}");
        assert!(!self.stderr.trim().is_empty(), "a failure without a sentence: {self}");
        if !self.command.contains("--json") {
            return self.stderr;
        }
        let error = self.json_lines().into_iter().rfind(|line| line.get("error").is_some());
        let error = error.unwrap_or_else(|| panic!("no error object: {self}"));
        assert_eq!(error["error"]["kind"], kind, "{self}");
        let message = error["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(!message.is_empty(), "{self}");
        assert!(self.stderr.contains(&message), "standard error tells another story: {self}");
        message
    }

    /// Standard output as text.
    #[track_caller]
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap_or_else(|_| panic!("not text: {self}"))
    }

    /// Standard output as the one JSON object that it is.
    #[track_caller]
    pub fn json(&self) -> Value {
        let mut lines = self.json_lines();
        assert_eq!(lines.len(), 1, "one object was expected: {self}");
        lines.remove(0)
    }

    /// Standard output as a JSON object a line.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}: {self}")))
            .collect()
    }
}

/// A JSON string.
///
/// # Panics
/// If it is none.
#[track_caller]
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// A path as an argument.
///
/// # Panics
/// If it is not UTF-8.
#[track_caller]
pub fn utf8(path: &Path) -> &str {
    path.to_str().unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout);
        let stdout: String = stdout.chars().take(4000).collect();
        write!(f, "\n$ {}\nexit {}\nstdout: {stdout}\nstderr: {}", self.command, self.code, self.stderr)
    }
}

/// Reads a pipe to its end on a thread, so that neither side waits for the other.
fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what there is.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn show(command: &Command) -> String {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    format!("p2p-node {}", words.join(" "))
}
