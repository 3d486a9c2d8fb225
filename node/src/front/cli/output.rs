//! Where results and failures go: results to stdout and nothing else, the rest to stderr, and a closed stdout ends quietly.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    os::fd::AsFd as _,
};

use serde::{Serialize, de::DeserializeOwned};

use super::text;
use crate::{
    error::{Error, Kind, Result},
    front::api::client::Events,
    report::Progress,
};

/// Why a verb ended without success.
#[derive(Debug)]
pub(super) enum Failure {
    /// To be told to the user.
    Error(Error),
    /// The user was told already.
    Reported(Kind),
    /// Whoever read the results has enough of them (`… | head`): no failure.
    StdoutClosed,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Failure {
    /// What a failed write to stdout means.
    pub(super) fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::StdoutClosed;
        }
        Self::Error(Error::failed(format!("The result cannot be written to standard output: {error}")))
    }
}

/// Standard output without Rust's line buffer, so that big writes stay big.
pub(super) fn raw_stdout() -> Result<File, Failure> {
    io::stdout().as_fd().try_clone_to_owned().map(File::from).map_err(Failure::stdout)
}

/// Writes results.
pub(super) struct Output {
    json: bool,
    terminal: bool,
    /// `None`: there is no standard output; said at the first write.
    stdout: Option<BufWriter<File>>,
}

impl Output {
    /// Standard output, results as JSON or for people.
    pub(super) fn new(json: bool) -> Self {
        let stdout = raw_stdout().ok().map(BufWriter::new);
        Self { json, terminal: io::stdout().is_terminal(), stdout }
    }

    /// Whether results are JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match &mut self.stdout {
            Some(stdout) => stdout.write_all(bytes).map_err(Failure::stdout),
            None => Err(Failure::StdoutClosed),
        }
    }

    /// Text without a newline added.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())
    }

    /// A line.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.text(line)?;
        self.bytes(b"\n")?;
        // A person sees each line as it comes; a pipe is filled in big writes.
        if self.terminal { self.flush() } else { Ok(()) }
    }

    /// A path: a script gets it as it is, a terminal only what cannot drive it.
    pub(super) fn path(&mut self, path: &str) -> Result<(), Failure> {
        if self.terminal { self.line(&text::shown(path)) } else { self.line(path) }
    }

    /// `value` as JSON, without a newline.
    pub(super) fn encode(&self, value: &impl Serialize) -> Result<String, Failure> {
        let json = serde_json::to_string(value)
            .map_err(|error| Error::failed(format!("The result cannot be written as JSON: {error}")))?;
        Ok(text::shown_json(&json))
    }

    /// One object on a line.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let line = self.encode(value)?;
        self.line(&line)
    }

    /// Tells of a failure in the middle of a verb, after what was written before it.
    pub(super) fn failure(&mut self, error: &Error) -> Result<(), Failure> {
        say("error", &error.to_string());
        if self.json {
            self.json(&Told::of(error))?;
        }
        self.flush()
    }

    /// Tells of a failure beside a result that says it too: on stderr alone.
    pub(super) fn told(&self, error: &Error) {
        say("error", &error.to_string());
    }

    /// Hands on what was written.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.stdout.as_mut().map_or(Ok(()), BufWriter::flush).map_err(Failure::stdout)
    }
}

/// The one result of `answer`.
pub(super) async fn one<T: DeserializeOwned>(mut answer: Events<T>, mut progress: impl FnMut(&Progress)) -> Result<T> {
    let unread = || Error::failed("The daemon's answer cannot be read: it holds no result");
    let result = answer.next(&mut progress).await?.ok_or_else(unread)?;
    match answer.next(&mut progress).await? {
        None => Ok(result),
        Some(_) => Err(unread()),
    }
}

/// A failure as JSON.
#[derive(Serialize)]
struct Told {
    error: ToldError,
}

#[derive(Serialize)]
struct ToldError {
    kind: Kind,
    message: String,
}

impl Told {
    fn of(error: &Error) -> Self {
        Self {
            error: ToldError {
                kind: error.kind, // As it is shown on stderr, so that both say the same.
                message: text::shown_lines(&error.to_string()),
            },
        }
    }
}

/// Tells of the failure that ends the program, and gives its exit code.
pub(super) fn report(json: bool, error: &Error) -> u8 {
    say("error", &error.to_string());
    if json {
        let mut output = Output::new(true);
        // There is nowhere left to say that this failed.
        let _unread = output.json(&Told::of(error)).and_then(|()| output.flush());
    }
    error.kind.exit_code()
}

/// Tells of arguments that clap refused (or shows its help, which is no failure), and gives the exit code.
pub(super) fn usage(error: &clap::Error, json: bool) -> u8 {
    // Nothing can be done about a stream that is closed.
    let _unread = error.print();
    if !error.use_stderr() {
        return 0;
    }
    if json {
        let message = error.render().to_string();
        let message = message.strip_prefix("error: ").unwrap_or(&message).trim().to_owned();
        let mut output = Output::new(true);
        let _unread = output.json(&Told::of(&Error::usage(message))).and_then(|()| output.flush());
    }
    Kind::Usage.exit_code()
}

/// A warning on stderr.
pub(super) fn warn(message: &str) {
    say("warning", message);
}

/// The warning of two versions, where there is one.
pub(super) fn warn_of_version(difference: Option<String>) {
    if let Some(difference) = difference {
        warn(&difference);
    }
}

fn say(what: &str, message: &str) {
    // A closed stderr leaves nobody to tell.
    let _unread = writeln!(io::stderr(), "{what}: {}", text::shown_lines(message));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_object_with_kind_and_message() {
        let error = Error::not_found("nobody has it").hint("wait");
        let json = serde_json::to_string(&Told::of(&error)).expect("it encodes");
        assert_eq!(json, r#"{"error":{"kind":"not_found","message":"nobody has it; wait"}}"#);
    }
}
