//! One daemon: started on a fresh directory, waited for, asked, stopped, killed, started again.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::{
    LONG, Program, isolate,
    reaper::{self, Scratch},
    until,
};

/// What is kept of a daemon's log: enough for every test here, and bounded should one write without end.
const LOG_BYTES: usize = 4 << 20;

/// How much of its end is shown where a test fails.
const LOG_SHOWN: usize = 20_000;

/// How a daemon is started.
#[derive(Clone, Debug)]
pub struct Options {
    program: Program,
    data_dir: Option<PathBuf>,
    listen: Vec<String>,
    bootstrap: Vec<String>,
    mdns: bool,
    capacity: Option<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    prefix: Vec<OsString>,
}

impl Options {
    /// On a fresh directory and a free TCP port of the loopback, with 2 GiB at the most and no mDNS.
    pub fn new(program: Program) -> Self {
        Self {
            program,
            data_dir: None,
            listen: vec!["/ip4/127.0.0.1/tcp/0".into()],
            bootstrap: Vec::new(),
            mdns: false,
            capacity: Some("2GiB".into()),
            arguments: Vec::new(),
            environment: Vec::new(),
            prefix: Vec::new(),
        }
    }

    /// On this directory, which the daemon makes and nobody here removes.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// Only at `addresses`; none: wherever the daemon listens by default.
    #[must_use]
    pub fn listen<S: Into<String>>(mut self, addresses: impl IntoIterator<Item = S>) -> Self {
        self.listen = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// Joining through `daemon` too.
    #[must_use]
    pub fn bootstrap(mut self, daemon: &Daemon) -> Self {
        self.bootstrap.extend(daemon.listen().iter().cloned());
        self
    }

    /// Joining through `address` too.
    #[must_use]
    pub fn bootstrap_address(mut self, address: impl Into<String>) -> Self {
        self.bootstrap.push(address.into());
        self
    }

    /// With discovery on the local network.
    #[must_use]
    pub fn mdns(mut self) -> Self {
        self.mdns = true;
        self
    }

    /// With this capacity.
    #[must_use]
    pub fn capacity(mut self, size: &str) -> Self {
        self.capacity = Some(size.into());
        self
    }

    /// In this network.
    #[must_use]
    pub fn network(self, name: &str) -> Self {
        self.arguments(["--network", name])
    }

    /// With more arguments.
    #[must_use]
    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Run, and asked, through a program that executes its arguments in its own place (`ip netns exec NAME`).
    #[must_use]
    pub fn prefix<S: Into<OsString>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.prefix = words.into_iter().map(Into::into).collect();
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it ends, or is not ready in time; its log is in the message.
    #[track_caller]
    pub fn start(self) -> Daemon {
        self.try_start().unwrap_or_else(|(status, log)| panic!("the daemon did not become ready ({status}): {log}"))
    }

    /// Starts it where that may fail: how it ended, and all that it said.
    pub fn try_start(self) -> Result<Daemon, (String, String)> {
        let scratch = self.data_dir.is_none().then(|| Scratch::new("node"));
        let data_dir = match (&self.data_dir, &scratch) {
            (Some(path), _) => path.clone(),
            // The daemon makes it by itself, as it would for a user.
            (None, Some(scratch)) => scratch.join("d"),
            (None, None) => unreachable!("a scratch directory is made where none was named"),
        };
        let mut daemon = Daemon {
            options: self,
            data_dir,
            _scratch: scratch,
            child: None,
            peer_id: String::new(),
            listen: Vec::new(),
            ready_line: String::new(),
            log: Arc::default(),
        };
        daemon.launch()?;
        Ok(daemon)
    }
}

/// A daemon, running or not; killed when dropped, its fresh directory removed.
#[derive(Debug)]
pub struct Daemon {
    options: Options,
    data_dir: PathBuf,
    child: Option<Child>,
    peer_id: String,
    listen: Vec<String>,
    ready_line: String,
    log: Arc<Mutex<Vec<u8>>>,
    // Dropped after the process is killed: fields go after `Drop::drop`.
    _scratch: Option<Scratch>,
}

impl Daemon {
    /// Its peer id, base58.
    pub fn peer_id(&self) -> &str {
        &self.peer_id
    }

    /// Where it listens: real ports, `/p2p/…` at the end.
    pub fn listen(&self) -> &[String] {
        &self.listen
    }

    /// The TCP port of its first address.
    ///
    /// # Panics
    /// If it listens on none.
    pub fn tcp_port(&self) -> u16 {
        self.listen
            .iter()
            .find_map(|address| address.split_once("/tcp/")?.1.split('/').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no TCP port in {:?}", self.listen))
    }

    /// The line that it printed when it was ready.
    pub fn ready_line(&self) -> &str {
        &self.ready_line
    }

    /// Its state on disk.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The number of its process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// Whether its process is still there.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What it logged, since the first start.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)).into_owned()
    }

    /// The options of the next start.
    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Kills it without a word, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Already gone is as good.
            let _ = child.kill();
            let _ = child.wait();
            reaper::ended(child.id());
        }
    }

    /// Asks it to stop, as the system does, and waits: how it ended, and after how long.
    ///
    /// # Panics
    /// If it is still there long after the 10 s that it may take.
    #[track_caller]
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        self.stop(Signal::TERM)
    }

    /// The same with another signal.
    #[track_caller]
    pub fn stop(&mut self, signal: Signal) -> (ExitStatus, Duration) {
        let began = Instant::now();
        self.signal(signal);
        let mut child = self.child.take().expect("the daemon runs");
        let status = until("the daemon stopped", LONG, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running"),
            Err(error) => panic!("{error}"),
        });
        reaper::ended(child.id());
        (status, began.elapsed())
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process has a positive number");
        rustix::process::kill_process(pid, signal).expect("it is this process's own child");
    }

    /// Starts it again on the same directory.
    #[track_caller]
    pub fn restart(&mut self) {
        self.try_restart().unwrap_or_else(|(status, log)| panic!("the daemon did not come back ({status}): {log}"));
    }

    /// Has it listen at the addresses that it has now when it is started again, as a daemon does that is found there.
    pub fn stay_put(&mut self) {
        let addresses = self.listen.iter().map(|address| address.split("/p2p/").next().unwrap_or(address).to_owned());
        self.options.listen = addresses.collect();
    }

    /// Starts it again on the same directory, where that may fail.
    pub fn try_restart(&mut self) -> Result<(), (String, String)> {
        self.kill();
        self.launch()
    }

    /// The most memory that it ever had resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory that it has resident now, in bytes.
    pub fn memory_now(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
        kib.map_or(0, |kib| kib * 1024)
    }

    pub(super) fn prefixed(&self) -> Command {
        let program = OsString::from(self.options.program.0);
        let mut words = self.options.prefix.iter().cloned().chain([program]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        isolate(&mut command);
        command
    }

    fn launch(&mut self) -> Result<(), (String, String)> {
        let options = &self.options;
        let mut command = self.prefixed();
        command.arg("--data-dir").arg(&self.data_dir).arg("daemon");
        for address in &options.listen {
            command.args(["--listen", address]);
        }
        for address in &options.bootstrap {
            command.args(["--bootstrap", address]);
        }
        if !options.mdns {
            command.arg("--no-mdns");
        }
        if let Some(capacity) = &options.capacity {
            command.args(["--capacity", capacity]);
        }
        command.args(&options.arguments).envs(options.environment.iter().map(|(name, value)| (name, value)));
        // For whoever hunts a failure: what the daemons log, as RUST_LOG has it.
        if let Some(log) = std::env::var_os("P2P_TEST_LOG") {
            command.env("RUST_LOG", log);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| ("not started".to_owned(), error.to_string()))?;
        reaper::born(child.id());

        let pipe = child.stderr.take();
        let log = Arc::clone(&self.log);
        let logging = thread::spawn(move || pipe.map(|pipe| keep(pipe, &log)));
        let pipe = child.stdout.take();
        let (first_line, ready) = mpsc::channel();
        thread::spawn(move || {
            let Some(pipe) = pipe else { return };
            let mut lines = BufReader::new(pipe);
            let mut line = String::new();
            // No line at all is told by the sender's end.
            if lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                let _ = first_line.send(line);
            }
            let _ = std::io::copy(&mut lines, &mut std::io::sink());
        });
        match ready.recv_timeout(LONG) {
            Ok(line) => {
                self.child = Some(child);
                self.understand(line.trim_end());
                Ok(())
            }
            Err(reason) => {
                if matches!(reason, mpsc::RecvTimeoutError::Timeout) {
                    let _ = child.kill();
                }
                let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                reaper::ended(child.id());
                let _ = logging.join();
                Err((status, self.log()))
            }
        }
    }

    fn understand(&mut self, line: &str) {
        self.ready_line = line.to_owned();
        if let Ok(event) = serde_json::from_str::<Value>(line) {
            self.peer_id = event["peer_id"].as_str().unwrap_or_default().to_owned();
            let listen = event["listen"].as_array().cloned().unwrap_or_default();
            self.listen = listen.iter().filter_map(|address| address.as_str().map(str::to_owned)).collect();
            return;
        }
        for word in line.split_whitespace() {
            if let Some(peer) = word.strip_prefix("peer=") {
                self.peer_id = peer.to_owned();
            }
            if let Some(listen) = word.strip_prefix("listen=") {
                self.listen = listen.split(',').map(str::to_owned).collect();
            }
        }
        assert!(line.starts_with("ready "), "the daemon said {line:?}");
        let peer = self.peer_id.clone();
        for address in &mut self.listen {
            if !address.contains("/p2p/") {
                address.push_str("/p2p/");
                address.push_str(&peer);
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let tail = log.char_indices().rev().nth(LOG_SHOWN).map_or(log.as_str(), |(start, _)| &log[start..]);
            eprintln!("--- {} on {} said:\n{tail}", self.peer_id, self.data_dir.display());
        }
    }
}

/// Collects a daemon's log until its end, the beginning of what is too long.
fn keep(mut pipe: impl Read, log: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = pipe.read(&mut buffer) {
        let mut log = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let room = LOG_BYTES.saturating_sub(log.len());
        log.extend_from_slice(&buffer[..read.min(room)]);
    }
}
