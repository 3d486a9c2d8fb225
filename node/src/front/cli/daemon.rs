//! `daemon`: settings, the node, the local API, signals.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, builder::BoolishValueParser};
use libp2p::Multiaddr;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    args::Global,
    data_dir,
    output::{self, Failure, Output},
};
use crate::{
    error::{Error, Result},
    front::api::{
        server::{Stop, serve},
        socket::Socket,
    },
    node::{Node, Ready},
    settings::{
        MAX_REPLICAS, Partial, Settings, multiaddr,
        units::{parse_duration, parse_period, parse_size},
    },
};

/// What verbs that are under way get to end in. With what the node gets, it stays under the 10 s of the contract.
const VERBS_GRACE: Duration = Duration::from_secs(3);
/// What the node gets to stop in.
const NODE_GRACE: Duration = Duration::from_secs(5);
/// What tasks that are left get.
const TASKS_GRACE: Duration = Duration::from_millis(500);

/// Arguments of `daemon`.
#[derive(Args, Clone, Debug)]
pub struct Daemon {
    /// Where peers reach this node, such as /ip4/0.0.0.0/tcp/4242; port 0 is any free one; may be repeated [default: TCP and QUIC on port 4242 of every address, or a free port, which is remembered, if it is taken]
    #[arg(long, value_name = "MULTIADDR", value_parser = multiaddr)]
    pub listen: Vec<Multiaddr>,
    /// A peer to join through, such as /ip4/192.0.2.1/tcp/4242; /p2p/PEER at the end is optional; may be repeated
    #[arg(long, value_name = "MULTIADDR", value_parser = multiaddr)]
    pub bootstrap: Vec<Multiaddr>,
    /// Do not look for peers on the local network (mDNS)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_parser = BoolishValueParser::new())]
    pub no_mdns: Option<bool>,
    /// Copies of each chunk that this node asks for when it adds, 1 to 16 [default: 3]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_REPLICAS)))]
    pub replicas: Option<u8>,
    /// The most that chunks may take on this disk [default: 80 % of the free space at the first start]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub capacity: Option<u64>,
    /// How long a peer is away before its share is made again elsewhere [default: 15m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub repair_delay: Option<Duration>,
    /// Bytes a second that repair fetches at most [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub repair_rate: Option<u64>,
    /// How often this node compares with each neighbour what that one should hold; it doubles up to 6h while nothing changes [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub audit_interval: Option<Duration>,
    /// How long a chunk is kept after the last publication that lists it went [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub gc_grace: Option<Duration>,
    /// Within which every chunk here is read again, to find what the disk lost; 0 is never [default: 30d]
    #[arg(long, value_name = "DURATION", value_parser = parse_period)]
    pub scrub_period: Option<Duration>,
    /// What people call this machine, up to 64 bytes [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub label: Option<String>,
    /// The most entries that the catalogue keeps, half of them of one publisher; raise it on every node of a network whose members you trust [default: 65536]
    #[arg(long, value_name = "N")]
    pub catalogue_entries: Option<usize>,
    /// The network's name; nodes of different networks never mix [default: main, which is open to all who can reach it]
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// The same settings in TOML [default: config.toml in the data directory]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

impl Daemon {
    /// What the flags say.
    pub fn partial(&self) -> Partial {
        let given = |list: &Vec<Multiaddr>| (!list.is_empty()).then(|| list.clone());
        Partial {
            listen: given(&self.listen),
            bootstrap: given(&self.bootstrap),
            mdns: self.no_mdns.map(|off| !off),
            replicas: self.replicas,
            repair_delay: self.repair_delay,
            repair_rate: self.repair_rate,
            audit_interval: self.audit_interval,
            gc_grace: self.gc_grace,
            probation: None,
            scrub_period: self.scrub_period,
            capacity_bytes: self.capacity,
            catalogue_entries: self.catalogue_entries,
            network: self.network.clone(),
            label: self.label.clone(),
        }
    }
}

/// The ready line as JSON.
#[derive(Serialize)]
struct ReadyLine<'a> {
    event: &'static str,
    peer_id: &'a str,
    listen: &'a [String],
    data_dir: String,
}

/// Threads for what blocks, which all comes to its end by itself: what does not find one waits. A runtime makes a new one
/// whenever none is idle at that moment, which steps of microseconds drive to a hundred, and each keeps a MiB or two of what
/// the index allocates: with 98 a catalogue of 150,000 entries took 300 MiB, with 24 it took 209, and no longer.
const BLOCKING_THREADS: usize = 16;

/// Serves until a signal comes.
pub(super) fn run(verb: Daemon, global: &Global) -> Result<(), Failure> {
    let settings =
        Settings::load(&data_dir(global)?, verb.config.as_deref(), verb.partial(), |name| std::env::var_os(name))?;
    make_private(&settings.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Error::failed(format!("The system gives this program no threads: {error}")))?;
    let outcome = runtime.block_on(supervise(settings, global.json));
    runtime.shutdown_timeout(TASKS_GRACE);
    outcome
}

/// Runs the daemon until the first signal; a second one ends it at once.
async fn supervise(settings: Settings, json: bool) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Error::failed(format!("Signals cannot be listened for: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let stop = Stop::default();
    let mut daemon = std::pin::pin!(daemon(settings, json, stop.clone()));
    tokio::select! {
        outcome = daemon.as_mut() => return outcome,
        () = either(&mut interrupt, &mut terminate) => tracing::info!("stopping"),
    }
    stop.stopping.cancel();
    tokio::select! {
        outcome = daemon => outcome,
        () = either(&mut interrupt, &mut terminate) => {
            Err(Error::failed("The daemon was stopped at once, by a second signal").into())
        }
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// Starts, serves until `stop.stopping`, stops.
async fn daemon(settings: Settings, json: bool, stop: Stop) -> Result<(), Failure> {
    let data_dir = settings.data_dir.clone();
    output::warn(&format!(
        "the network \"{}\" is open to all who can reach it: whoever can reach this node can read what it holds, and store here",
        settings.network
    ));
    let node = tokio::select! {
        node = Node::start(settings) => node.map_err(Error::from)?,
        // Nothing is acknowledged yet, so nothing is lost by leaving.
        () = stop.stopping.cancelled() => return Ok(()),
    };
    let outcome = match Socket::bind(&data_dir).await {
        Ok(socket) => {
            say_ready(&node.ready(), &data_dir, json);
            serve(socket, node.clone(), stop, VERBS_GRACE).await;
            Ok(())
        }
        Err(error) => Err(error.into()),
    };
    match tokio::time::timeout(NODE_GRACE, node.stop()).await {
        Ok(Ok(())) => tracing::info!("stopped"),
        Ok(Err(error)) => output::warn(&format!("the node did not stop cleanly: {}", Error::from(error))),
        Err(_) => output::warn("the node did not stop in time; what was acknowledged is on disk"),
    }
    outcome
}

/// The line that says that the node serves.
fn say_ready(ready: &Ready, data_dir: &Path, json: bool) {
    let mut output = Output::new(json);
    let line = if json {
        let line = ReadyLine {
            event: "ready",
            peer_id: &ready.peer_id,
            listen: &ready.listen,
            data_dir: data_dir.display().to_string(),
        };
        output.json(&line)
    } else {
        output.line(&format!("ready peer={} listen={}", ready.peer_id, ready.listen.join(",")))
    };
    if let Err(Failure::Error(error)) = line.and_then(|()| output.flush()) {
        // A daemon whose output nobody reads still serves.
        output::warn(&error.to_string());
    }
}

/// Makes the data directory, for its owner only. One that is there and still empty is made so; of one with something in it
/// the permissions are the user's own choice.
fn make_private(dir: &Path) -> Result<()> {
    let cannot = |error: std::io::Error| {
        Error::failed(format!("The data directory {} cannot be used: {error}", dir.display()))
            .hint("choose another with --data-dir, or make this one writable")
    };
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(cannot)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(cannot(error)),
    }
    let empty = fs::read_dir(dir).map_err(cannot)?.next().is_none();
    let meta = fs::metadata(dir).map_err(cannot)?;
    if empty && meta.mode() & 0o077 != 0 && meta.uid() == rustix::process::geteuid().as_raw() {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(cannot)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_the_contracts() {
        let listen = ["/ip4/127.0.0.1/tcp/1/p2p/12D3".to_owned()];
        let line = ReadyLine { event: "ready", peer_id: "12D3", listen: &listen, data_dir: "/d".to_owned() };
        assert_eq!(
            serde_json::to_string(&line).expect("it encodes"),
            r#"{"event":"ready","peer_id":"12D3","listen":["/ip4/127.0.0.1/tcp/1/p2p/12D3"],"data_dir":"/d"}"#
        );
    }

    #[test]
    fn a_new_or_empty_data_directory_is_its_owners() -> std::io::Result<()> {
        let mode = |dir: &Path| fs::metadata(dir).map(|meta| meta.mode() & 0o777);
        let dir = tempfile::tempdir()?;
        let made = dir.path().join("a/b");
        make_private(&made).map_err(std::io::Error::other)?;
        assert_eq!(mode(&made)?, 0o700);
        let empty = dir.path().join("empty");
        fs::create_dir(&empty)?;
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o755))?;
        make_private(&empty).map_err(std::io::Error::other)?;
        assert_eq!(mode(&empty)?, 0o700);
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o755))?;
        fs::write(empty.join("file"), "")?;
        make_private(&empty).map_err(std::io::Error::other)?;
        assert_eq!(mode(&empty)?, 0o755);
        fs::write(dir.path().join("f"), "")?;
        assert!(make_private(&dir.path().join("f")).is_err());
        Ok(())
    }
}
