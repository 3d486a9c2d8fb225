//! What a publication lists, in the order of keys, a little at a time.

use std::collections::VecDeque;

use p2p_protocol::{
    Cid, Key,
    catalogue::Publication,
    manifest::{Entry, Listing, Manifest, OwnChunks, RangeReader, Step},
};

use super::{ReadError, fetch_error};
use crate::service::fetch::{FetchError, FetchJob};

/// The first key.
const START: Key = Key([0; 32]);

/// One listing that is being read.
#[derive(Debug)]
pub(super) struct Listed<'a> {
    job: &'a FetchJob,
    manifest: Option<Manifest>,
    /// `None`: nothing is to be read, or not any more.
    reader: Option<RangeReader>,
    /// Listed and not taken yet.
    waiting: VecDeque<(Key, Entry)>,
    unreadable: bool,
}

/// All that a publication lists, the chunks of its manifest first, a batch at a time.
#[derive(Debug)]
pub struct Through<'a> {
    listed: Listed<'a>,
    /// Of the manifest; `None`: not read yet.
    own: Option<VecDeque<Entry>>,
    reference: String,
    root: Cid,
}

impl<'a> Through<'a> {
    /// `job` is one for the publication's root.
    pub fn new(publication: &Publication, reference: &str, job: &'a FetchJob) -> Self {
        let root = match &publication.listing {
            Listing::Inline(_) => publication.root,
            Listing::Manifest(root) => *root,
        };
        let listed = Listed::new(&publication.listing, publication.chunks, job);
        Self { listed, own: None, reference: reference.to_owned(), root }
    }

    /// The next of it, at most `most`; empty: that was all.
    ///
    /// # Errors
    ///
    /// Where part of the manifest cannot be had, or is malformed.
    pub async fn next(&mut self, most: usize) -> Result<Vec<Entry>, ReadError> {
        let failed = |why| fetch_error(&self.reference, &why);
        if self.own.is_none() {
            self.own = Some(self.listed.own().await.map_err(failed)?.into());
        }
        if let Some(own) = self.own.as_mut().filter(|own| !own.is_empty()) {
            return Ok(own.drain(..own.len().min(most)).collect());
        }
        self.listed.fill(most).await.map_err(failed)?;
        if self.listed.is_unreadable() {
            return Err(ReadError::Missing { reference: self.reference.clone(), cid: self.root, asked: 0 });
        }
        let count = self.listed.waiting.len().min(most);
        Ok(self.listed.waiting.drain(..count).map(|(_, entry)| entry).collect())
    }
}

impl<'a> Listed<'a> {
    /// Of a publication of so many chunks.
    pub(super) fn new(listing: &Listing, chunks: u64, job: &'a FetchJob) -> Self {
        let mut listed = Self { job, manifest: None, reader: None, waiting: VecDeque::new(), unreadable: false };
        match listing {
            Listing::Inline(entries) => listed.waiting = entries.iter().map(|entry| (entry.key(), *entry)).collect(),
            Listing::Manifest(root) => {
                let manifest = Manifest { root: *root, entries: chunks };
                listed.manifest = Some(manifest);
                match RangeReader::new(&manifest, START, None) {
                    Ok(reader) => listed.reader = Some(reader),
                    Err(_) => listed.unreadable = true,
                }
            }
        }
        listed
    }

    /// Reads until so many wait, or all were read. What cannot be had is left out.
    pub(super) async fn fill(&mut self, least: usize) -> Result<(), FetchError> {
        while self.waiting.len() < least
            && let Some(reader) = &mut self.reader
        {
            match reader.next_step() {
                Step::Want(entry) => match self.job.sized_chunk(entry.cid, entry.length.into()).await {
                    // It is the one that was asked for.
                    Ok((chunk, _)) => drop(reader.supply(&chunk)),
                    Err(FetchError::NotFound { .. }) => {
                        self.unreadable = true;
                        reader.lacking();
                    }
                    Err(why) => return Err(why),
                },
                Step::Listed(entries) => self.waiting.extend(entries),
                Step::Malformed(_) => self.unreadable = true,
                Step::Done => self.reader = None,
            }
        }
        Ok(())
    }

    /// The last key that waits; `None`: nothing will come any more, or nothing waits.
    pub(super) fn horizon(&self) -> Option<Key> {
        self.waiting.back().filter(|_| self.reader.is_some()).map(|(key, _)| *key)
    }

    /// Takes those up to a key, itself included; `None`: all.
    pub(super) fn take(&mut self, horizon: Option<&Key>) -> Vec<(Key, Entry)> {
        let count = self.waiting.partition_point(|(key, _)| horizon.is_none_or(|horizon| key <= horizon));
        self.waiting.drain(..count).collect()
    }

    /// Whether part of it is malformed, or could not be had.
    pub(super) fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// The chunks that a manifest is made of, as far as its inner nodes can be had: 40 bytes for each 128 that it lists.
    pub(super) async fn own(&mut self) -> Result<Vec<Entry>, FetchError> {
        let mut own = Vec::new();
        let Some(mut reader) = self.manifest.as_ref().and_then(|manifest| OwnChunks::new(manifest, START, None).ok())
        else {
            return Ok(own);
        };
        loop {
            match reader.next_step() {
                Step::Want(entry) => match self.job.sized_chunk(entry.cid, entry.length.into()).await {
                    Ok((chunk, _)) => drop(reader.supply(&chunk)),
                    Err(FetchError::NotFound { .. }) => reader.lacking(),
                    Err(why) => return Err(why),
                },
                Step::Listed(entries) => own.extend(entries.into_iter().map(|(_, entry)| entry)),
                Step::Malformed(_) => self.unreadable = true,
                Step::Done => return Ok(own),
            }
        }
    }
}
