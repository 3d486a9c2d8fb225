//! Reading what a publication lists over parts of the keyspace, and putting it into the rows.

use std::sync::Arc;

use p2p_protocol::{
    Cid, Key,
    duty::{PIN, Reference, Span, Spans, lister::Listed},
    manifest::{Entry, Manifest, OwnChunks, RangeReader, Step},
};

use super::Around;
use crate::{
    service::{
        fetch::FetchJob,
        wanted::{Few, Wanted},
    },
    store::StoreError,
};

/// Chunks of a manifest that are fetched ahead.
const AHEAD: usize = 16;

/// Peers that are asked first for the manifest of what is pinned, whatever copies its publication wants: as many as most
/// content has.
const PINNED_HOLDERS: u8 = 3;

/// What is done with what is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    List,
    /// List what is not listed though it should be.
    Compare,
    Unlist,
}

/// The rows that a reading changed, as long as they are few: those alone are compared again then, and not the whole part,
/// which a newcomer would otherwise look at once for each publication.
#[derive(Debug, Default)]
pub(super) struct Touched {
    keys: Vec<Key>,
    many: bool,
}

/// Rows that are compared one by one.
const FEW: usize = 256;

impl Touched {
    fn note(&mut self, entries: &[(Key, Entry)]) {
        self.many |= self.keys.len() + entries.len() > FEW;
        if !self.many {
            self.keys.extend(entries.iter().map(|(key, _)| *key));
        }
    }

    /// What is to be compared again, of what was read over `spans`.
    pub(super) fn changed(&self, spans: &Spans) -> Spans {
        if self.many { spans.clone() } else { self.keys.iter().copied().map(Span::of).collect() }
    }
}

/// One reading of what a publication lists by its manifest.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    pub(super) around: &'a Around,
    pub(super) listed: &'a Listed,
    /// Of the manifest.
    pub(super) root: Cid,
    /// Over which parts of the keyspace; what is held outside of them counts too.
    pub(super) spans: &'a Spans,
    pub(super) purpose: Purpose,
    pub(super) touched: Touched,
}

impl Reading<'_> {
    /// Reads, and lists or unlists. `false`: not all of it could be had.
    pub(super) async fn run(&mut self) -> Result<bool, StoreError> {
        let manifest = Manifest { root: self.root, entries: self.listed.chunks };
        let root = self.root;
        let holders = if self.listed.copies == PIN { PINNED_HOLDERS } else { self.listed.copies };
        let job = self.around.fetch.begin(root, self.listed.publisher.into_iter().collect(), holders);
        let strays = self.around.wanted.strays(self.spans)?;
        let spans = self.spans.iter().chain(strays.iter());
        let mut complete = true;
        for span in spans.collect::<Vec<_>>() {
            complete &= self.range(&manifest, &job, span).await?;
            complete &= self.own(&manifest, &job, span).await?;
        }
        Ok(complete)
    }

    /// The chunks that the manifest lists in a span.
    async fn range(&mut self, manifest: &Manifest, job: &FetchJob, span: Span) -> Result<bool, StoreError> {
        // No manifest has such a root or so many entries: it lists nothing, and reading again would change nothing.
        let Ok(mut reader) = RangeReader::new(manifest, span.from, span.to) else { return Ok(true) };
        let mut complete = true;
        loop {
            match reader.next_step() {
                Step::Want(entry) => {
                    let ahead = reader.ahead(AHEAD);
                    let fetching = ahead.iter().map(|ahead| job.sized_chunk(ahead.cid, ahead.length.into()));
                    // What comes of those ahead stays with the fetcher's peers: they are small, and asked for again in turn.
                    let (wanted, _) = tokio::join!(
                        job.sized_chunk(entry.cid, entry.length.into()),
                        futures::future::join_all(fetching)
                    );
                    match wanted {
                        // It is the one that was asked for.
                        Ok((chunk, _)) => drop(reader.supply(&chunk)),
                        Err(error) => {
                            tracing::debug!(%error, "a part of a manifest cannot be had");
                            complete = false;
                            reader.lacking();
                        }
                    }
                }
                Step::Listed(entries) => self.note(entries).await?,
                Step::Malformed(_) => {
                    tracing::warn!(root = %manifest.root, "a part of a manifest is malformed and lists nothing");
                }
                Step::Done => return Ok(complete),
            }
        }
    }

    /// The manifest's own chunks in a span.
    async fn own(&mut self, manifest: &Manifest, job: &FetchJob, span: Span) -> Result<bool, StoreError> {
        let Ok(mut reader) = OwnChunks::new(manifest, span.from, span.to) else { return Ok(true) };
        let mut complete = true;
        loop {
            match reader.next_step() {
                Step::Want(entry) => match job.sized_chunk(entry.cid, entry.length.into()).await {
                    Ok((chunk, _)) => drop(reader.supply(&chunk)),
                    Err(_) => {
                        complete = false;
                        reader.lacking();
                    }
                },
                Step::Listed(entries) => self.note(entries).await?,
                Step::Malformed(_) => {}
                Step::Done => return Ok(complete),
            }
        }
    }

    /// Puts what was read into the rows: all within the spans, and outside of them what is held here.
    async fn note(&mut self, entries: Vec<(Key, Entry)>) -> Result<(), StoreError> {
        let (wanted, spans, purpose) = (self.around.wanted.clone(), self.spans.clone(), self.purpose);
        let reference = Reference { publication: self.listed.publication, copies: self.listed.copies };
        let step = move || {
            let kept = chosen(&wanted, reference, &spans, purpose, entries)?;
            match purpose {
                Purpose::List | Purpose::Compare => wanted.list(reference, &kept)?,
                Purpose::Unlist => wanted.unlist(reference.publication, kept.iter().map(|(key, _)| *key))?,
            }
            Ok::<_, StoreError>(kept)
        };
        let kept = self.around.blocking.run(step).await??;
        self.touched.note(&kept);
        Ok(())
    }
}

/// Which of what a publication lists is noted: all within the spans, and outside of them what is held here. Blocks.
fn chosen(
    wanted: &Wanted,
    reference: Reference,
    spans: &Spans,
    purpose: Purpose,
    entries: Vec<(Key, Entry)>,
) -> Result<Vec<(Key, Entry)>, StoreError> {
    let mut kept = Vec::with_capacity(entries.len());
    for (key, entry) in entries {
        let named = || Ok::<_, StoreError>(wanted.row(&key)?.is_some_and(|row| row.names(reference.publication)));
        if (spans.contains(&key) || wanted.holds(&entry)?) && (purpose != Purpose::Compare || !named()?) {
            kept.push((key, entry));
        }
    }
    if purpose == Purpose::Compare && !kept.is_empty() {
        tracing::info!(chunks = kept.len(), "listed chunks were not in the table of what is wanted");
    }
    Ok(kept)
}

/// A publication that lists its few entries itself, as it is to be read.
#[derive(Debug)]
pub(super) struct Inline {
    pub(super) publication: u64,
    pub(super) copies: u8,
    pub(super) entries: Vec<Entry>,
    pub(super) spans: Arc<Spans>,
    pub(super) purpose: Purpose,
}

impl Inline {
    /// Notes all of these, and gives the keys whose rows changed, ascending. Blocks.
    pub(super) fn note(wanted: &Wanted, all: Vec<Self>) -> Result<Vec<Key>, StoreError> {
        let mut touched = Vec::new();
        let mut few = Vec::with_capacity(all.len());
        for Self { publication, copies, entries, spans, purpose } in all {
            let reference = Reference { publication, copies };
            let keyed = entries.into_iter().map(|entry| (entry.key(), entry)).collect();
            let entries = chosen(wanted, reference, &spans, purpose, keyed)?;
            touched.extend(entries.iter().map(|(key, _)| *key));
            few.push(Few { reference, entries, list: purpose != Purpose::Unlist });
        }
        wanted.note_few(few)?;
        touched.sort_unstable();
        touched.dedup();
        Ok(touched)
    }
}
