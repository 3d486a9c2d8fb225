//! The index: an ordered map of bytes behind a small trait, so that another can be put in its place.
//!
//! What its keys and values mean is in `table.rs`; what it holds can be thrown away and made again from the segments.

pub(super) mod keys;
pub(super) mod memory;
pub(super) mod sled;
pub(super) mod table;
pub(super) mod watch;

use bytes::Bytes;

use super::StoreError;

/// The most writes that go into one batch: sled keeps a batch in memory several times over (measured:
/// 323 MiB at the peak with 64, 3.2 GiB with 10,000).
pub(super) const MAX_BATCH: usize = 64;

/// A key and its new value, or `None` to remove it.
pub(super) type Write = (Vec<u8>, Option<Vec<u8>>);

/// A key and its value.
pub(super) type Pair = (Bytes, Bytes);

/// What is shown each pair of a walk; an error of it ends the walk.
pub(super) type Look<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError> + 'a;

/// Pairs that a walk reads at once where an index has none of its own.
const PAGE: usize = 1024;

/// An ordered map of bytes.
pub(super) trait Index: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
    /// Up to `limit` pairs from `start` on and before `end`, in key order.
    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError>;
    /// Shows `look` every pair from `start` on and before `end`, in key order, without a copy of it. A panic of `look`
    /// may be taken for one of the index.
    fn walk(&self, start: &[u8], end: &[u8], look: &mut Look<'_>) -> Result<(), StoreError> {
        let mut start = start.to_vec();
        loop {
            let page = self.range(&start, end, PAGE)?;
            page.iter().try_for_each(|(key, value)| look(key, value))?;
            match page.last() {
                Some((last, _)) if page.len() == PAGE => start = [&last[..], &[0]].concat(),
                _ => return Ok(()),
            }
        }
    }
    /// Makes all of `writes`, [`MAX_BATCH`] and a head of them at most, or none of them; readers see them on return.
    fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError>;
    /// Returns when everything applied is on disk.
    fn sync(&self) -> Result<(), StoreError>;
}
