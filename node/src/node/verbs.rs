//! The verbs, as thin as they can be: ask the rooms, and put the answer into the contract's words.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use libp2p::{Multiaddr, PeerId};
use p2p_protocol::{
    Cid,
    catalogue::{Kind as RootKind, Publication, check_name},
};
use tokio::{
    io::AsyncRead,
    sync::{broadcast::error::RecvError, watch},
    time::Instant,
};

use super::{Node, Rooms};
use crate::{
    error::{Error, Result},
    net::Source,
    report::{
        AddOptions, Added, CatalogueLine, Copies, DirectoryLine, EntryKind, GetOptions, Got, LocalChunk, PeerLine,
        Progress, Replication, Stat, Status, Transfers, Update, Work,
    },
    service::{
        catalogue::{Change, Draft},
        ingest::{Ingested, ReadOptions},
        replicate::{Report, Wish},
        worker::{Standing, State},
    },
    store::Role,
};

/// Entries of the index that are read at a time: a page is a few hundred KiB at most.
const PAGE: usize = 1024;
/// Peers that a message names at the most.
const MAX_NAMED: usize = 16;

impl Node {
    /// `add PATH`: `path` absolute, `shown` as the caller wrote it.
    pub async fn add_path(
        &self,
        path: PathBuf,
        shown: String,
        options: AddOptions,
        progress: watch::Sender<Progress>,
    ) -> Result<Added> {
        let rooms = &self.inner.rooms;
        self.run(async {
            check(&options)?;
            let began = Instant::now();
            let label = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let read = ReadOptions::new(options.chunker, options.preserve);
            let ingested = rooms.ingest.add_path(&path, &shown, wish(rooms, &options), read, &progress).await?;
            conclude(rooms, ingested, &options, label, shown, began).await
        })
        .await
    }

    /// `add -`.
    pub async fn add_stream(
        &self,
        reader: Box<dyn AsyncRead + Send + Unpin>,
        options: AddOptions,
        progress: watch::Sender<Progress>,
    ) -> Result<Added> {
        let rooms = &self.inner.rooms;
        self.run(async {
            check(&options)?;
            let began = Instant::now();
            let read = ReadOptions::new(options.chunker, options.preserve);
            let ingested = rooms.ingest.add_stream(reader, wish(rooms, &options), read, &progress).await?;
            conclude(rooms, ingested, &options, String::new(), "-".to_owned(), began).await
        })
        .await
    }

    /// `get`.
    pub async fn get(&self, options: GetOptions, progress: watch::Sender<Progress>) -> Result<Got> {
        self.run(self.inner.rooms.export.get(options, &progress)).await
    }

    /// `cat`: the bytes in order; the outer error is what is known before the first byte.
    pub async fn cat(
        &self,
        reference: String,
        offset: u64,
        length: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let bytes = self.run(self.inner.rooms.export.cat(&reference, offset, length)).await?;
        let stopping = self.inner.stopping.clone();
        let stopped = stream::once(async move {
            stopping.cancelled().await;
            Err(Error::failed("the daemon is stopping").hint("start it again and repeat the command"))
        });
        // Whatever comes first: the next bytes, or the end of the node; the first failure is the last item.
        let ended = stream::once(async { Ok(None) });
        let bytes = bytes.map(|item| item.map(Some)).chain(ended);
        let merged = stream::select(bytes, stopped.map(|item: Result<Bytes>| item.map(Some)));
        Ok(merged
            .scan(false, |failed, item| {
                let next = match item {
                    _ if *failed => None,
                    Ok(None) => None,
                    Ok(Some(bytes)) => Some(Ok(bytes)),
                    Err(error) => {
                        *failed = true;
                        Some(Err(error))
                    }
                };
                std::future::ready(next)
            })
            .boxed())
    }

    /// `ls`.
    pub async fn ls(&self) -> Vec<CatalogueLine> {
        self.inner.rooms.catalogue.entries().iter().map(catalogue_line).collect()
    }

    /// `ls REF`; of a file: the one line that it is.
    pub async fn ls_inside(&self, reference: String) -> Result<Vec<DirectoryLine>> {
        self.run(self.inner.rooms.inspect.ls_inside(&reference)).await
    }

    /// `stat REF`.
    pub async fn stat(&self, reference: String, placement: bool) -> Result<Stat> {
        self.run(self.inner.rooms.inspect.stat(&reference, placement)).await
    }

    /// `stat --local`.
    pub fn stat_local(&self) -> BoxStream<'static, Result<LocalChunk>> {
        let store = self.inner.rooms.store.clone();
        let pages = stream::try_unfold((store, None, false), |(store, after, done)| async move {
            if done {
                return Ok::<_, Error>(None);
            }
            let reader = store.clone();
            let page = tokio::task::spawn_blocking(move || reader.scan(after, PAGE))
                .await
                .map_err(|_| Error::failed("reading the index failed"))??;
            let last = page.last().map(|entry| (&entry.cid.hash).into());
            let done = page.len() < PAGE;
            let lines: Vec<_> = page
                .iter()
                .map(|entry| LocalChunk {
                    cid: entry.cid.to_string(),
                    size: u64::from(entry.length),
                    role: match entry.terms.role {
                        Role::Replica => "replica",
                        Role::Cache => "cache",
                    }
                    .to_owned(),
                    wanted: entry.terms.wanted,
                })
                .collect();
            Ok(Some((stream::iter(lines.into_iter().map(Ok)), (store, last, done))))
        });
        stream::StreamExt::flat_map(pages, |page| match page {
            Ok(lines) => lines.left_stream(),
            Err(error) => stream::once(std::future::ready(Err(error))).right_stream(),
        })
        .boxed()
    }

    /// `watch`: from now on, until dropped or the node stops.
    pub fn watch(&self) -> BoxStream<'static, Update> {
        let changes = self.inner.rooms.catalogue.changes();
        let updates = stream::unfold(changes, |mut changes| async move {
            loop {
                match changes.recv().await {
                    Ok(change) => return Some((update(&change), changes)),
                    // A watcher that lags loses the oldest; what stands is in `ls`.
                    Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "a watcher lags behind the catalogue"),
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        updates.take_until(self.inner.stopping.clone().cancelled_owned()).boxed()
    }

    /// `peers`.
    pub fn peers(&self) -> Vec<PeerLine> {
        let table = Arc::clone(&self.inner.rooms.network.peers().borrow());
        let connected = table.peers.iter().filter(|(_, peer)| peer.connected);
        connected
            .map(|(id, peer)| PeerLine {
                peer_id: id.to_string(),
                addresses: peer.addresses.iter().map(ToString::to_string).collect(),
                latency: peer.latency.map(|latency| latency.as_secs_f64()),
                agent: peer.agent.clone(),
                source: match peer.source {
                    Source::Mdns => "mdns",
                    Source::Kademlia => "kademlia",
                    Source::Bootstrap => "bootstrap",
                    Source::Incoming => "incoming",
                    Source::Manual => "manual",
                }
                .to_owned(),
            })
            .collect()
    }

    /// `connect`.
    pub async fn connect(&self, address: Multiaddr) -> Result<String> {
        self.run(async { Ok(self.inner.rooms.network.dial(address, Source::Manual).await?.to_string()) }).await
    }

    /// `status`.
    pub async fn status(&self) -> Status {
        let rooms = &self.inner.rooms;
        let usage = rooms.store.usage();
        let (sent_bytes, received_bytes) = rooms.transfer.transferred();
        let table = Arc::clone(&rooms.network.peers().borrow());
        Status {
            peer_id: rooms.network.local().to_string(),
            listen: self.listen_addresses(),
            network: self.inner.network_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: self.inner.started.elapsed().as_secs_f64(),
            peers: table.peers.values().filter(|peer| peer.connected).count(),
            known_peers: rooms.locate.reachable(),
            chunks: usage.chunks,
            bytes: usage.bytes,
            capacity: usage.capacity_bytes,
            replication: Replication {
                factor: rooms.replicas,
                under_replicated: usage.owed,
                in_flight: rooms.replicate.in_flight(),
            },
            transfers: Transfers { sent_bytes, received_bytes },
            work: rooms.workers.list().iter().map(work).collect(),
        }
    }
}

/// A name that could not be published is refused before anything is read.
fn check(options: &AddOptions) -> Result<()> {
    let Some(name) = &options.name else { return Ok(()) };
    check_name(name).map_err(|error| Error::usage(format!("the name {name:?} cannot be published: {error}")))
}

fn wish(rooms: &Rooms, options: &AddOptions) -> Wish {
    Wish { wanted: options.replicas.unwrap_or(rooms.replicas), wait: options.wait, local: options.local }
}

/// Publishes what is safe now, and says how safe it is.
async fn conclude(
    rooms: &Rooms,
    ingested: Ingested,
    options: &AddOptions,
    label: String,
    shown: String,
    began: Instant,
) -> Result<Added> {
    let wanted = options.replicas.unwrap_or(rooms.replicas);
    let root = ingested.root;
    let label = if label.is_empty() { known_label(rooms, &root) } else { label };
    let draft = Draft {
        name: options.name.clone(),
        label,
        root,
        kind: root_kind(ingested.kind),
        size: ingested.size,
        replicas: wanted,
    };
    rooms.catalogue.publish(draft).await?;
    // A provider record helps readers of other networks' sizes find the publisher; it is a hint, not a promise, and
    // a lone node has nobody to tell.
    let network = rooms.network.clone();
    tokio::spawn(async move {
        if let Err(error) = network.provide(root.hash.to_bytes().to_vec()).await {
            tracing::debug!(%root, %error, "the root was not announced as a provider record");
        }
    });
    let missing = rooms.locate.missing();
    let (warnings, short) = assess(&ingested.report, &missing, wanted, options);
    Ok(Added {
        cid: root.to_string(),
        path: shown,
        size: ingested.size,
        chunks: ingested.chunks,
        chunks_new: ingested.chunks_new,
        replicas: Copies { wanted, min: ingested.report.min },
        seconds: began.elapsed().as_secs_f64(),
        warnings,
        short,
    })
}

/// What standard input is called, which has no name: what this node called these bytes before, or their address.
fn known_label(rooms: &Rooms, root: &Cid) -> String {
    let local = rooms.network.local();
    let own = rooms.catalogue.by_root(root).into_iter().find(|entry| entry.publisher == local && entry.name.is_none());
    own.map_or_else(|| root.to_string(), |entry| entry.label)
}

/// What is to be said of the copies: warnings, or what makes the exit code 5.
/// `missing` are the storing peers seen lately that cannot be reached now.
fn assess(report: &Report, missing: &[PeerId], wanted: u8, options: &AddOptions) -> (Vec<String>, Option<String>) {
    if options.local {
        return (Vec::new(), None);
    }
    let asked = options.wait.unwrap_or(wanted);
    let there = u8::try_from(report.seen).unwrap_or(u8::MAX);
    let failed = report.failures.iter().map(|(peer, reason)| format!("{peer}: {reason}"));
    let away = missing.iter().filter(|peer| report.failures.iter().all(|(failed, _)| failed != *peer));
    let away = away.take(MAX_NAMED).map(|peer| format!("{peer}: seen within the last hour, not reachable now"));
    let reasons: Vec<String> = failed.chain(away).collect();
    let because = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
    let min = report.min;
    if options.wait.is_some_and(|wait| wait > there) {
        let short = format!(
            "--wait {asked} asks for more copies than there are storing peers ({there}): {min} of {asked} were confirmed{because}"
        );
        return (Vec::new(), Some(short));
    }
    if min < asked.min(there) {
        let short =
            format!("only {min} of {asked} copies were confirmed: peers that should hold one did not take it{because}");
        return (Vec::new(), Some(short));
    }
    if min < wanted && options.wait.is_none() {
        let peers = if there == 1 { "1 storing peer".to_owned() } else { format!("{there} storing peers") };
        return (
            vec![format!(
                "there are {min} of {wanted} copies: the network has {peers}; the rest are made by themselves as peers join"
            )],
            None,
        );
    }
    (Vec::new(), None)
}

fn root_kind(kind: EntryKind) -> RootKind {
    match kind {
        EntryKind::File => RootKind::File,
        EntryKind::Directory => RootKind::Directory,
        EntryKind::Symlink => RootKind::Symlink,
    }
}

fn entry_kind(kind: RootKind) -> EntryKind {
    match kind {
        RootKind::File => EntryKind::File,
        RootKind::Directory => EntryKind::Directory,
        RootKind::Symlink => EntryKind::Symlink,
    }
}

fn work(standing: &Standing) -> Work {
    let (state, done, total) = match standing.state {
        State::Idle => ("idle", 0, None),
        State::Working { done, total } => ("working", done, total),
        State::Waiting { .. } => ("waiting", 0, None),
        State::Failed => ("failed", 0, None),
    };
    Work { name: standing.name.to_owned(), state: state.to_owned(), done, total, rate: standing.rate() }
}

fn shown_name(publication: &Publication) -> String {
    publication.name.clone().unwrap_or_else(|| publication.label.clone())
}

/// RFC 3339 in UTC; a time that no calendar has (a publisher may claim any) is the epoch.
fn rfc3339(milliseconds: u64) -> String {
    let timestamp = i64::try_from(milliseconds).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    timestamp.unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

fn catalogue_line(publication: &Publication) -> CatalogueLine {
    CatalogueLine {
        name: shown_name(publication),
        cid: publication.root.to_string(),
        kind: entry_kind(publication.kind),
        size: publication.size,
        publisher: publication.publisher.to_string(),
        version: publication.version,
        updated: rfc3339(publication.time_milliseconds),
    }
}

fn update(change: &Change) -> Update {
    let publication = &change.publication;
    let event = match &change.previous {
        _ if publication.removed => "removed",
        Some(previous) if !previous.removed => "updated",
        _ => "added",
    };
    Update {
        event: event.to_owned(),
        cid: publication.root.to_string(),
        name: shown_name(publication),
        size: publication.size,
        publisher: publication.publisher.to_string(),
        version: publication.version,
        time: rfc3339(publication.time_milliseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(min: u8, seen: usize) -> Report {
        Report { min, seen, failures: Vec::new() }
    }

    #[test]
    fn fewer_peers_than_copies_is_a_warning() {
        let (warnings, short) = assess(&report(1, 1), &[], 3, &AddOptions::default());
        assert_eq!((warnings.len(), short), (1, None));
        assert!(warnings.iter().all(|warning| warning.contains("1 of 3 copies")), "{warnings:?}");
    }

    #[test]
    fn a_peer_that_did_not_take_its_copy_is_exit_code_5() {
        let away = PeerId::random();
        let (warnings, short) = assess(&report(2, 3), &[away], 3, &AddOptions::default());
        assert!(warnings.is_empty());
        assert!(short.is_some_and(|short| short.contains(&away.to_string())), "it says who");
        let enough = assess(&report(3, 5), &[], 3, &AddOptions::default());
        assert_eq!(enough, (Vec::new(), None));
    }

    #[test]
    fn wait_asks_for_what_it_says() {
        let waiting = |wait| AddOptions { wait: Some(wait), ..AddOptions::default() };
        assert!(assess(&report(2, 2), &[], 3, &waiting(4)).1.is_some(), "more than there are");
        assert_eq!(
            assess(&report(2, 5), &[], 3, &waiting(2)),
            (Vec::new(), None),
            "the rest goes on in the background"
        );
        assert!(assess(&report(1, 5), &[], 3, &waiting(2)).1.is_some(), "fewer than asked");
    }

    #[test]
    fn times_are_rfc_3339_and_total() {
        assert_eq!(rfc3339(1_000), "1970-01-01T00:00:01Z");
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }
}
