//! The bytes of what stands: in the log, or on their way into it.

use std::collections::HashMap;

use bytes::Bytes;
use p2p_protocol::catalogue::{Kept, VersionKey};

use super::records::{self, NetworkTag, Value};
use crate::store::{Store, StoreError};

/// Publications that were merged and are not on disk yet, by which of the changes brought them. As many as may wait and
/// are being written.
#[derive(Debug, Default)]
pub(super) struct Pending(HashMap<VersionKey, (u64, Bytes)>);

impl Pending {
    /// The change `number` is to write these bytes.
    pub(super) fn put(&mut self, key: VersionKey, number: u64, signed_bytes: Bytes) {
        self.0.insert(key, (number, signed_bytes));
    }

    /// The change `number` is on disk: what a later one writes stays.
    pub(super) fn written(&mut self, key: &VersionKey, number: u64) {
        if self.0.get(key).is_some_and(|(latest, _)| *latest == number) {
            self.0.remove(key);
            // A burst leaves no room behind it.
            if self.0.is_empty() {
                self.0.shrink_to_fit();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, key: &VersionKey) -> Option<Bytes> {
        self.0.get(key).map(|(_, bytes)| bytes.clone())
    }
}

/// Where the map finds bytes.
pub(in crate::service) struct Lookup<'a> {
    pub(super) pending: &'a Pending,
    pub(super) store: &'a Store,
    pub(super) network: NetworkTag,
}

impl Kept for Lookup<'_> {
    fn signed_bytes(&self, key: &VersionKey) -> Option<Bytes> {
        self.pending.get(key).or_else(|| match read(self.store, self.network, key) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "a publication could not be read");
                None
            }
        })
    }
}

/// What the log has under `key`. Blocks, for a read of the disk.
pub(super) fn read(store: &Store, network: NetworkTag, key: &VersionKey) -> Result<Option<Bytes>, StoreError> {
    let value = store.record(&records::key(key))?.and_then(|value| Value::decode(&value));
    Ok(value.filter(|value| value.network == network).map(|value| value.signed_bytes))
}
