//! `add`: reads, stores, has copies made, publishes.

use futures::{FutureExt as _, future::ready};
use libp2p::PeerId;
use p2p_protocol::{Cid, catalogue::check_name, chunker::ChunkerKind};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Answering, Call, Verb, one, publish};
use crate::{
    error::{Error, Result},
    front::api::wire::WirePath,
    node::{Node, Rooms},
    report::{AddOptions, Added, ChunkerChoice, Copies},
    service::{
        catalogue::Draft,
        ingest::{Ingested, ReadOptions},
        replicate::{Report, Wish},
    },
};

/// Versions of a name that stay, where the caller does not say.
const KEEP: u64 = 10;

/// `add PATH`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddRequest {
    /// Absolute.
    pub path: WirePath,
    /// As the caller wrote it.
    pub shown: String,
    /// How.
    pub options: AddOptions,
}

impl Verb for AddRequest {
    const PATH: &'static str = "add";
    type Answer = Added;

    fn answer(self, node: Node, call: Call) -> Answering<Added> {
        let Self { path: WirePath(path), shown, options } = self;
        async move {
            let (rooms, began) = (node.rooms(), Instant::now());
            check(rooms, &options)?;
            // A name that is no text is refused when it is read.
            let label = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let read = read_options(options.chunker, options.preserve);
            let ingested = rooms.ingest.add_path(&path, &shown, wish(rooms, &options), read, &call.progress).await?;
            Ok(one(conclude(rooms, ingested, &options, label, shown, began).await?))
        }
        .boxed()
    }
}

/// `add -`, whose content follows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AddStreamRequest {
    /// How.
    pub options: AddOptions,
}

impl Verb for AddStreamRequest {
    const PATH: &'static str = "add-stream";
    const SENDS_CONTENT: bool = true;
    type Answer = Added;

    fn answer(self, node: Node, call: Call) -> Answering<Added> {
        let options = self.options;
        let Some(content) = call.content else { return ready(Err(Error::failed("nothing was sent"))).boxed() };
        async move {
            let (rooms, began) = (node.rooms(), Instant::now());
            check(rooms, &options)?;
            let read = read_options(options.chunker, options.preserve);
            let ingested = rooms.ingest.add_stream(content, wish(rooms, &options), read, &call.progress).await?;
            Ok(one(conclude(rooms, ingested, &options, String::new(), "-".to_owned(), began).await?))
        }
        .boxed()
    }
}

/// How content is read, from what the user asked for.
pub(in crate::front) fn read_options(chunker: ChunkerChoice, preserve: bool) -> ReadOptions {
    let chunker = match chunker {
        ChunkerChoice::Size(bytes) => ChunkerKind::Fixed { bytes },
        ChunkerChoice::Fastcdc => ChunkerKind::FastCdc,
    };
    ReadOptions { chunker, preserve }
}

/// What could not be published is refused before anything is read.
fn check(rooms: &Rooms, options: &AddOptions) -> Result<()> {
    if let Some(name) = &options.name {
        check_name(name).map_err(|error| Error::usage(format!("the name {name:?} cannot be published: {error}")))?;
    }
    Ok(rooms.catalogue.check_room(options.name.as_deref(), keep(options))?)
}

fn keep(options: &AddOptions) -> u64 {
    options.keep.unwrap_or(KEEP)
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
        kind: ingested.kind,
        size: ingested.size,
        replicas: wanted,
        chunks: ingested.chunks,
        listing: ingested.listing,
        keep: keep(options),
    };
    let publication = rooms.catalogue.publish(draft).await?;
    let unconfirmed = if options.local {
        publish::Told::default()
    } else {
        publish::confirm(rooms, &publication, options.wait.map_or(wanted, |wait| wait.min(wanted))).await
    };
    // A provider record helps readers of other networks' sizes find the publisher; it is a hint, not a promise, and
    // a lone node has nobody to tell.
    let network = rooms.network.clone();
    drop(rooms.top.task(async move {
        if let Err(error) = network.provide(root.hash.to_bytes().to_vec()).await {
            tracing::debug!(%root, %error, "the root was not announced as a provider record");
        }
    }));
    let missing = rooms.locate.missing();
    let (mut warnings, short) = assess(&ingested.report, &missing, wanted, options);
    let short = short.or(unconfirmed.short);
    warnings.extend(unconfirmed.warning);
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
    let because = publish::because(&report.failures, missing);
    let min = report.min;
    if options.wait.is_some_and(|wait| wait > there) {
        let short = format!(
            "--wait {asked} asks for more copies than there are storing peers ({there}): {min} of {asked} were confirmed{because}"
        );
        return (Vec::new(), Some(short));
    }
    if options.wait.is_some_and(|wait| wait > wanted) {
        // Confirmed copies beyond those that anybody would keep are none.
        let short = format!(
            "--wait {asked} asks for more copies than are made ({wanted}; --replicas {asked} makes as many): {min} of {asked} were confirmed{because}"
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
        let short = assess(&report(3, 5), &[], 3, &waiting(4)).1.expect("nobody makes four");
        assert!(short.contains("--replicas 4") && !short.contains("did not take"), "{short}");
        let short = assess(&report(3, 5), &[], 3, &waiting(9)).1.expect("there are five");
        assert!(short.contains("storing peers (5)"), "{short}");
    }
}
