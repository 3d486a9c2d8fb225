//! What the table notes beside its rows: what was read over which parts of the keyspace.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use p2p_protocol::duty::Spans;

use super::{Note, Wanted};
use crate::store::{MAX_NOTE_BYTES, StoreError};

/// The notes of what each publication, or pin, was read over that has a manifest, by its eight bytes.
const COVERED: &[u8] = b"covered/";
/// The notes of the parts of the keyspace whose rows are kept, by the copies wanted.
const PARTS: &[u8] = b"part/";
/// Notes that are read at once.
const NOTES: usize = 256;

impl Wanted {
    /// What publications were read over, by what rows know them as: some 24 bytes each, because nearly all were read over
    /// the same, which is here once.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn covered(&self) -> Result<BTreeMap<u64, Arc<Spans>>, StoreError> {
        let mut shared: BTreeMap<Bytes, Arc<Spans>> = BTreeMap::new();
        self.notes(COVERED, |name, value| {
            let publication = u64::from_be_bytes(name.try_into().ok()?);
            let spans = match shared.get(value) {
                Some(spans) => spans.clone(),
                None => {
                    let spans = Arc::new(Spans::from_bytes(value)?);
                    shared.insert(Bytes::copy_from_slice(value), spans.clone());
                    spans
                }
            };
            Some((publication, spans))
        })
    }

    /// The parts of the keyspace whose rows are kept, by copies.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn parts(&self) -> Result<BTreeMap<u8, Spans>, StoreError> {
        self.notes(PARTS, |name, value| Some((*name.first()?, Spans::from_bytes(value)?)))
    }

    /// Writes down what a publication was read over, after all that was changed before; `None`: no row names it. Blocks.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub fn set_covered(&self, publication: u64, covered: Option<&Spans>) -> Result<(), StoreError> {
        self.apply(Vec::new(), vec![covered_note(publication, covered)])
    }

    /// Writes down a part. Blocks.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
    pub fn set_part(&self, copies: u8, part: &Spans) -> Result<(), StoreError> {
        self.before_moving()?;
        self.apply(Vec::new(), vec![note([PARTS, &[copies]].concat(), Some(part))])
    }

    fn notes<K: Ord, V>(
        &self,
        prefix: &[u8],
        mut read: impl FnMut(&[u8], &[u8]) -> Option<(K, V)>,
    ) -> Result<BTreeMap<K, V>, StoreError> {
        let mut found = BTreeMap::new();
        let mut after: Option<Bytes> = None;
        loop {
            let page = self.inner.keys.notes(after.as_deref().or(Some(prefix)), NOTES)?;
            let ended = page.len() < NOTES;
            for (name, value) in page {
                let Some(rest) = name.strip_prefix(prefix) else { return Ok(found) };
                found.extend(read(rest, &value));
                after = Some(name);
            }
            if ended {
                return Ok(found);
            }
        }
    }
}

/// The note of what a publication was read over.
pub(super) fn covered_note(publication: u64, covered: Option<&Spans>) -> Note {
    note(covered_name(publication), covered)
}

fn note(name: Vec<u8>, spans: Option<&Spans>) -> Note {
    // What does not fit is read again after the next start: nothing is what it covers until then.
    let fits = |bytes: Vec<u8>| if bytes.len() <= MAX_NOTE_BYTES { bytes } else { Spans::new().to_bytes() };
    (name.into(), spans.map(Spans::to_bytes).map(fits).map(Bytes::from))
}

/// The name of the note of what a publication was read over.
pub(super) fn covered_name(publication: u64) -> Vec<u8> {
    [COVERED, &publication.to_be_bytes()].concat()
}
