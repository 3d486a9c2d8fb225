//! What the verbs answer: the JSON of the contract, field by field, and what a verb is asked.
//!
//! The daemon sends these over its socket and the command line prints them. Sizes are bytes, durations seconds,
//! times RFC 3339 UTC, peers base58, addresses CIDv1 in base32. Fields may be added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What kind of thing a root or an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// How content is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChunkerChoice {
    /// Every so many bytes: 1 KiB to 2 MiB.
    Size(u32),
    /// By content.
    Fastcdc,
}

impl Default for ChunkerChoice {
    fn default() -> Self {
        Self::Size(1 << 20)
    }
}

/// What `add` is asked, for each of its paths.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AddOptions {
    /// Publish under this name.
    pub name: Option<String>,
    /// Copies wanted, 1 to 16; `None`: the daemon's setting.
    pub replicas: Option<u8>,
    /// How to cut.
    pub chunker: ChunkerChoice,
    /// Keep modes and modification times.
    pub preserve: bool,
    /// Store here, replicate later in the background.
    pub local: bool,
    /// Return once every chunk is safe on so many peers of its replica set.
    pub wait: Option<u8>,
    /// Versions of the name that stay, this one included; 0: all; `None`: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u64>,
}

/// Copies: what was asked and what there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Copies {
    /// How many were asked for.
    pub wanted: u8,
    /// The smallest number of peers that confirmed any one chunk.
    pub min: u8,
}

/// `add --json`, a line for each path.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Added {
    /// The root.
    pub cid: String,
    /// The path as the caller gave it, `-` for standard input.
    pub path: String,
    /// Content bytes.
    pub size: u64,
    /// Every distinct block of the DAG.
    pub chunks: u64,
    /// Those that this node did not have before.
    pub chunks_new: u64,
    /// Copies.
    pub replicas: Copies,
    /// How long it took.
    pub seconds: f64,
    /// What the caller is to be told on stderr: fewer copies than wanted, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Set where peers that should have taken a copy did not: the exit code is then 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short: Option<String>,
}

/// How far an `add` or a `get` is; counters only grow.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Content bytes that were read (`add`) or written (`get`).
    pub bytes: u64,
    /// Content bytes in all, where that is known.
    pub total_bytes: Option<u64>,
    /// Chunks that are done.
    pub chunks: u64,
    /// Copies on other peers that were acknowledged.
    pub copies: u64,
    /// What is being worked on.
    pub current: Option<String>,
}

impl Progress {
    /// As it is told.
    pub fn of(now: &crate::service::progress::Progress) -> Self {
        let crate::service::progress::Progress { bytes, total_bytes, chunks, copies, current } = now.clone();
        Self { bytes, total_bytes, chunks, copies, current }
    }
}

/// `get --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Got {
    /// What was fetched (the CID behind the path, where one was given).
    pub cid: String,
    /// Where it was written.
    pub path: String,
    /// Content bytes.
    pub size: u64,
    /// How long it took.
    pub seconds: f64,
    /// Distinct chunks of it.
    pub chunks: u64,
    /// Bytes by the peer that sent them; this node's own store is under its own id.
    pub from: BTreeMap<String, u64>,
    /// What people call those of them that have a label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// `verify --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Verified {
    /// Chunks that were looked at.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are damaged here: found now, or earlier and not made good yet.
    pub damaged: u64,
    /// Of those: fetched again, or not needed here.
    pub repaired: u64,
    /// Chunks that should be here, and are not at the end.
    pub missing: u64,
    /// How long it took.
    pub seconds: f64,
    /// Of a reference alone.
    #[serde(flatten)]
    pub dag: Option<VerifiedDag>,
}

/// What `verify REF` says beside: `missing` is what nobody who answers has then.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VerifiedDag {
    /// What was looked at.
    pub cid: String,
    /// Chunks with fewer copies than wanted, though with one.
    pub under_replicated: u64,
    /// Copies that are wanted.
    pub wanted: u8,
    /// Chunks by who has them, this node included.
    pub holders: BTreeMap<String, u64>,
    /// What people call those of them that have a label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether what its publications list is what it has.
    pub manifest: Manifest,
    /// Chunks of it that a publication does not list.
    pub unlisted: u64,
    /// Chunks that a publication lists, and that it does not have.
    pub surplus: u64,
}

/// What publications list of a DAG.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manifest {
    /// It is nothing that was published as such.
    None,
    /// Exactly its chunks.
    Equal,
    /// Others.
    Differs,
    /// Not all of it can be read.
    Unreadable,
}

/// `stat REF --json`: what the network says now.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Stat {
    /// What was asked about.
    pub cid: String,
    /// What it is.
    pub kind: EntryKind,
    /// Content bytes.
    pub size: u64,
    /// Distinct blocks.
    pub chunks: u64,
    /// Copies that count.
    pub replicas: StatCopies,
    /// Chunks held as replicas, by peer.
    pub holders: BTreeMap<String, u64>,
    /// What people call the peers that are named here, those that have a label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// A row a chunk; left out with `--no-placement`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Vec<Placement>>,
}

/// Copies of the chunks of one DAG.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatCopies {
    /// How many are wanted.
    pub wanted: u8,
    /// Those of the chunk with the fewest.
    pub min: u8,
    /// Those of the chunk with the most.
    pub max: u8,
}

/// Where one chunk is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// The chunk.
    pub cid: String,
    /// Its bytes.
    pub size: u64,
    /// Who keeps it because it is of the replica set.
    pub holders: Vec<String>,
    /// Who happens to keep it.
    pub cached: Vec<String>,
}

/// `stat --local --json`, a line a chunk of this node's own store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LocalChunk {
    /// The chunk.
    pub cid: String,
    /// Its bytes.
    pub size: u64,
    /// `replica` or `cache`.
    pub role: String,
    /// Copies wanted.
    pub wanted: u8,
}

/// `status --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub peer_id: String,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Where it is reached, `/p2p/…` at the end.
    pub listen: Vec<String>,
    /// The network's name.
    pub network: String,
    /// The program's version.
    pub version: String,
    /// Seconds since it started.
    pub uptime: f64,
    /// Connected peers.
    pub peers: usize,
    /// Storing peers that a chunk could be placed on now, this node not counted.
    pub known_peers: usize,
    /// Chunks here, replicas and caches.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The most that they may take.
    pub capacity: u64,
    /// How replication is doing.
    pub replication: Replication,
    /// Chunks that were found damaged here and have not come again.
    pub damaged: u64,
    /// What went over the wire as chunks.
    pub transfers: Transfers,
    /// What works in the background.
    pub work: Vec<Work>,
    /// It hands its share over, and takes nothing more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// Over a third of the storing peers are away at once: before others take over what these hold, they are waited for
    /// eight times as long as the repair delay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cautious: bool,
    /// The catalogue has no room for all that is published: what it refused is not listed here, and its chunks are not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub catalogue_full: bool,
    /// It has all that was settled under names without it, so that what it says counts for `--fresh`.
    #[serde(default)]
    pub complete: bool,
}

/// A piece of background work.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Work {
    /// What it is called.
    pub name: String,
    /// `idle`, `working`, `waiting` or `failed`.
    pub state: String,
    /// How much of what it does now is done, in a unit of its own.
    pub done: u64,
    /// Of how much, where that is known.
    pub total: Option<u64>,
    /// How much is done a second, where something is.
    pub rate: Option<f64>,
}

/// How replication is doing.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Replication {
    /// Copies that this node asks for.
    pub factor: u8,
    /// Chunks that this node should hold.
    pub duty: u64,
    /// Of those, not here yet.
    pub missing: u64,
    /// Chunks of this node's part that are known to have fewer copies than wanted.
    pub under_replicated: u64,
    /// Copies that are being made now.
    pub in_flight: u64,
    /// How long what is missing takes at the pace that is allowed, at least; `null`: nothing is.
    pub eta_seconds: Option<f64>,
}

/// Bytes of the transfer protocol since the start: every frame, whatever it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Transfers {
    /// Sent to peers.
    pub sent_bytes: u64,
    /// Received from peers.
    pub received_bytes: u64,
}

/// `peers --json`, a line a connected peer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerLine {
    /// The peer.
    pub peer_id: String,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Where it is.
    pub addresses: Vec<String>,
    /// Round trip in seconds, once measured.
    pub latency: Option<f64>,
    /// What it says it runs.
    pub agent: Option<String>,
    /// `mdns`, `kademlia`, `bootstrap`, `incoming` or `manual`.
    pub source: String,
}

/// `ls --json`, a line an entry of the catalogue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CatalogueLine {
    /// The name or, without one, the label.
    pub name: String,
    /// The root.
    pub cid: String,
    /// What it is.
    pub kind: EntryKind,
    /// Content bytes.
    pub size: u64,
    /// Who published it.
    pub publisher: String,
    /// What people call its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher_label: Option<String>,
    /// Its version, from 1.
    pub version: u64,
    /// When it was published.
    pub updated: String,
    /// Of `ls --pinned`: what has it stay on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<PinnedBy>,
}

/// What has a whole copy stay on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinnedBy {
    /// Its name was pinned: later versions follow.
    Name,
    /// Its root was.
    Cid,
}

/// `pin --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PinnedWhole {
    /// The root.
    pub cid: String,
    /// The name or, without one, the label.
    pub name: String,
    /// What has it stay.
    pub pinned: PinnedBy,
    /// Content bytes.
    pub size: u64,
    /// Chunks of it that are here, with those of its manifest.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// `unpin --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unpinned {
    /// The root.
    pub cid: String,
    /// The name that was pinned; `null`: it was pinned by its root.
    pub name: Option<String>,
}

/// `ls REF --json`, a line an entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirectoryLine {
    /// The entry's name.
    pub name: String,
    /// Its address.
    pub cid: String,
    /// What it is.
    pub kind: EntryKind,
    /// Content bytes.
    pub size: u64,
}

/// `watch --json`, a line an update.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Update {
    /// `added`, `updated` or `removed`.
    pub event: String,
    /// The root.
    pub cid: String,
    /// The name or, without one, the label.
    pub name: String,
    /// Content bytes.
    pub size: u64,
    /// Who published it.
    pub publisher: String,
    /// What people call its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher_label: Option<String>,
    /// Its version.
    pub version: u64,
    /// When it was published.
    pub time: String,
    /// Which of this node's changes it is; `watch` goes on from there.
    pub position: u64,
}

/// `rm --json` and `restore --json`, a line each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// The root.
    pub cid: String,
    /// The name or, without one, the label.
    pub name: String,
    /// The version that says so.
    pub version: u64,
    /// What is to be said of it on standard error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Set where peers that should have it on disk did not take it: the exit code is then 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short: Option<String>,
}

/// `gc --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Freed {
    /// Chunks that are gone.
    pub chunks_freed: u64,
    /// Their bytes.
    pub bytes_freed: u64,
    /// Chunks here that nothing lists and that stay for now.
    pub kept_in_grace: u64,
    /// How long it took.
    pub seconds: f64,
}

/// `drain --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Drained {
    /// Whether the node leaves; it does not after `--cancel`.
    pub draining: bool,
    /// Chunks that were here and have their copies elsewhere.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// `history --json`, a line a version, newest first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionLine {
    /// The name or, without one, the label.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// The root.
    pub cid: String,
    /// What it is.
    pub kind: EntryKind,
    /// Content bytes.
    pub size: u64,
    /// Who published it.
    pub publisher: String,
    /// What people call its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publisher_label: Option<String>,
    /// When it was published.
    pub time: String,
    /// It is a removal: of what stands in this line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}
