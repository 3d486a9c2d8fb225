//! The chunks that are held looked through, page by page, for those that have no row.
//!
//! It is needed after a table was made, which misses what is put meanwhile, and where something went wrong.

use p2p_protocol::{Key, duty::wanted::Change, manifest::Entry};

use super::{PAGE, Wanted};
use crate::store::StoreError;

impl Wanted {
    /// Makes the rows that are missing of the next chunks that are held, in key order and strictly after `after`, each as
    /// if its chunk had come now. Gives how many, and where to go on; `None`: those were all. Blocks.
    ///
    /// # Errors
    /// Where the index cannot be read or written.
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
}
