//! The table looked through, page by page: chunks that are held and have no row, and what its rows name.
//!
//! Nothing of this is needed as long as nothing goes wrong. A chunk that is put while the table is made has no row; a
//! node that is killed half-way through a manifest, and is down while its publication is removed, keeps references of
//! which nobody will tell it that they are gone.

use p2p_protocol::{
    Key,
    duty::{Scanned, Span, span, wanted::Change},
    manifest::Entry,
};

use super::{PAGE, Wanted};
use crate::store::StoreError;

/// A part of the rows, in key order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rows {
    /// At most [`SCAN_ROWS`](p2p_protocol::duty::SCAN_ROWS).
    pub rows: Vec<Scanned>,
    /// What is behind them; `None`: nothing.
    pub rest: Option<Span>,
}

impl Wanted {
    /// Makes the rows that are missing of the next chunks that are held, in key order and strictly after `after`, each as
    /// if its chunk had come now. Gives how many, and where to go on; `None`: those were all. Blocks.
    pub fn complete(&self, after: Option<Key>) -> Result<(u64, Option<Key>), StoreError> {
        let page = self.inner.store.scan(after, PAGE)?;
        let now = self.moment();
        let mut made = Vec::new();
        for held in &page {
            let key = Key::from(&held.cid.hash);
            // A row whose bytes cannot be read is none.
            if self.row(&key)?.is_none() {
                made.push((key, Change::Renew(Entry { cid: held.cid, length: held.length }, now)));
            }
        }
        let count = made.len() as u64;
        self.apply_all(made.into_iter())?;
        let last = page.last().filter(|_| page.len() == PAGE);
        Ok((count, last.map(|held| Key::from(&held.cid.hash))))
    }

    /// The next rows of a span. Blocks.
    pub fn rows(&self, span: &Span) -> Result<Rows, StoreError> {
        let (rows, ended) = self.scan(span)?;
        let from = rows.last().filter(|_| !ended).and_then(|last| span::after(&last.key));
        Ok(Rows { rows, rest: from.map(|from| Span { from, to: span.to }) })
    }
}
