//! The listing of what was added: its few chunks, or a manifest that is kept like any other chunks.

use futures::future::try_join_all;
use p2p_protocol::{
    Chunk,
    manifest::{LEAF_ENTRIES, Listing, WriteError, Writer},
};

use super::{AddError, ChunkSink, Result, count_error, store_error};
use crate::service::{
    blocking::Blocking,
    distinct::{Distinct, Sorted},
};

/// Entries of a step: 64 leaves, 320 KiB of chunks, so that a manifest of any size is made in bounded memory and no step
/// holds its thread for long.
const STEP_ENTRIES: usize = 64 * LEAF_ENTRIES;

/// A manifest that is being made.
struct Making {
    sorted: Sorted,
    writer: Writer,
}

enum Made {
    More(Box<Making>),
    /// And the number of entries.
    All(Listing, u64),
}

/// Makes the listing of the chunks that were gathered, has its manifest's own chunks kept by `sink`, if it has one, and
/// also gives the number of chunks that it lists.
pub(super) async fn list<S: ChunkSink>(
    distinct: Distinct,
    sink: &S,
    shown: &str,
    blocking: &Blocking,
) -> Result<(Listing, u64)> {
    let sorted = blocking.run(move || distinct.sorted()).await?.map_err(|why| count_error(&why))?;
    let mut making = Box::new(Making { sorted, writer: Writer::new() });
    loop {
        let shown_there = shown.to_owned();
        let (made, chunks) = blocking.run(move || making.step(&shown_there)).await??;
        // Together, so that one batch of the store takes them.
        try_join_all(chunks.into_iter().map(|chunk| sink.submit(chunk)))
            .await
            .map_err(|why| store_error(shown, &why))?;
        match made {
            Made::More(more) => making = more,
            Made::All(listing, entries) => return Ok((listing, entries)),
        }
    }
}

impl Making {
    fn step(mut self: Box<Self>, shown: &str) -> Result<(Made, Vec<Chunk>)> {
        let mut chunks = Vec::new();
        let entries = self.sorted.take(STEP_ENTRIES).map_err(|why| count_error(&why))?;
        if entries.is_empty() {
            let count = self.writer.entries();
            return Ok((Made::All(self.writer.finish_listing(&mut chunks), count), chunks));
        }
        for entry in entries {
            self.writer.push(entry, &mut chunks).map_err(|why| unlisted(shown, why))?;
        }
        Ok((Made::More(self), chunks))
    }
}

fn unlisted(shown: &str, why: WriteError) -> AddError {
    AddError::Failed { shown: shown.to_owned(), why: why.to_string() }
}
