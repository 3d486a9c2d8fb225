//! Why something cannot be read.

use p2p_protocol::{Cid, dag::DagError};

use crate::service::{blocking::Unfinished, fetch::FetchError};

/// What a reference names cannot be read. `reference` is as its asker wrote it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)] // The sentences say it.
pub enum ReadError {
    #[error("{0:?} is no reference: it names nothing")]
    NamesNothing(String),
    #[error("{text} cannot be read: {why}")]
    BadCid { text: String, why: String },
    #[error("{0} is not a valid CID, and nothing has that name")]
    NoCid(String),
    #[error("{0} is a peer, and names no content of it")]
    OnlyPeer(String),
    #[error("{reference} is no reference: a path inside has no {part:?}")]
    Dots { reference: String, part: String },
    #[error("{} publishers use the name {name}: {}", choices.len(), choices.join(", "))]
    Ambiguous { name: String, choices: Vec<String> },
    #[error("nothing is published under the name {0}")]
    UnknownName(String),
    #[error("nothing is published under the name {name}: it is only the label of {}", told(roots, *more))]
    OnlyLabel { name: String, roots: Vec<Cid>, more: usize },
    #[error("nothing that is published has the root {0}")]
    UnknownRoot(Cid),
    #[error("version {version} of {name} is its removal, and has no content")]
    Removal { name: String, version: u64 },
    #[error("{name} has no version {version}: {} kept", kept_versions(kept))]
    NoVersion { name: String, version: u64, kept: Vec<u64> },
    #[error("{0} is a CID, and what a CID names never changes: only a name has a newest version")]
    FreshRoot(String),
    #[error("cannot tell the newest version of {name}: {}", short_of_answers(*answered, *needed, silent))]
    NotFresh { name: String, answered: usize, needed: usize, silent: Vec<String> },
    #[error("{0} names something inside of what was published, and only all of it can be removed or restored")]
    Inside(String),
    #[error("{0} names one version, and a name is removed as a whole")]
    OneVersion(String),
    #[error("{reference} names one version, and a history is that of all which are kept")]
    OneOfHistory { reference: String, name: String },
    #[error("{reference} was published by {}: nobody else can change it", publishers.join(", "))]
    Foreign { reference: String, publishers: Vec<String> },
    #[error("nothing of this node is current under {reference}: it has it only as {}", earlier.join(", "))]
    OnlyEarlier { reference: String, earlier: Vec<String> },
    #[error("there is no {name} in {above}")]
    NoEntry { name: String, above: String },
    #[error("there is no {name} in {above}: that is a file")]
    InFile { name: String, above: String },
    #[error("there is no {name} in {above}: that is a symbolic link, and paths do not go through links")]
    ThroughLink { name: String, above: String },
    #[error("cannot read {reference}: no reachable peer has its chunk {cid} ({asked} asked)")]
    Missing { reference: String, cid: Cid, asked: usize },
    #[error("cannot read {reference}: the own store failed: {why}")]
    Store { reference: String, why: String },
    #[error("cannot read {reference}: {why}")]
    NoSpace { reference: String, why: String },
    #[error("cannot read {0}: the node is stopping")]
    Stopped(String),
    #[error("cannot read {reference}: its DAG is refused: {why}")]
    Refused { reference: String, why: DagError },
    #[error("cannot read {reference}: it is over {most} levels deep")]
    TooDeep { reference: String, most: usize },
    #[error("cannot read {reference} as a whole: over {most} directories or large files stand side by side")]
    TooWide { reference: String, most: usize },
    #[error("{reference} has over {most} entries, more than are listed at once")]
    TooManyEntries { reference: String, most: usize },
    #[error("{reference} has over {most} chunks, too many to list each")]
    TooManyChunks { reference: String, most: usize },
    #[error("cannot count chunks in {directory}: {why}")]
    Scratch { directory: String, why: String },
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
}

/// Peers that did not answer which are named at the most.
const MOST_NAMED: usize = 16;

/// How many answered of how many that it takes, and who did not.
fn short_of_answers(answered: usize, needed: usize, silent: &[String]) -> String {
    let peers = if needed == 1 {
        "1 storing peer that has to tell did".to_owned()
    } else {
        format!("{needed} storing peers that have to tell did")
    };
    let named = silent.iter().take(MOST_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = silent.len().saturating_sub(MOST_NAMED);
    match (silent.len(), more) {
        (0, _) => format!("{answered} of {peers}"),
        (_, 0) => format!("{answered} of {peers}; no certain answer from {named}"),
        _ => format!("{answered} of {peers}; no certain answer from {named} and {more} more"),
    }
}

/// Some roots, and how many there are beside them.
fn told(roots: &[Cid], more: usize) -> String {
    let named = roots.iter().map(Cid::to_string).collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

/// The versions that are kept, as a sentence begins with them.
fn kept_versions(kept: &[u64]) -> String {
    match kept {
        [] => "none is".to_owned(),
        [one] => format!("{one} is"),
        [first, .., last] if last - first == kept.len() as u64 - 1 => format!("{first} to {last} are"),
        [first, .., last] => format!("{} between {first} and {last} are", kept.len()),
    }
}

/// A chunk of `reference` could not be had.
pub(crate) fn fetch_error(reference: &str, why: &FetchError) -> ReadError {
    let reference = reference.to_owned();
    match why {
        FetchError::NotFound { cid, asked } => ReadError::Missing { reference, cid: *cid, asked: *asked },
        FetchError::Store(why) => ReadError::Store { reference, why: why.clone() },
        FetchError::NoSpace(why) => ReadError::NoSpace { reference, why: why.clone() },
        FetchError::Stopped => ReadError::Stopped(reference),
    }
}

/// The DAG behind `reference` is not one that can be read.
pub(crate) fn dag_error(reference: &str, why: DagError) -> ReadError {
    ReadError::Refused { reference: reference.to_owned(), why }
}
