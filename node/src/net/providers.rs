//! The provider records that Kademlia keeps on this node: bounded, and nothing but them.
//!
//! libp2p's own memory store reserves room for twenty providers a key and stops at 1,024 keys; this one takes what
//! it needs. Value records are refused: chunks and publications never go into the DHT.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
};

use libp2p::{
    PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};

/// Records in all: about 300 bytes each, so 10 MiB at the worst.
const MAX_RECORDS: usize = 32_768;
/// Of these, records from one peer, so that one peer cannot fill the store.
const MAX_RECORDS_OF_PEER: usize = 8_192;
/// Providers of one key: Kademlia's k.
const MAX_PROVIDERS: usize = 20;
/// Bytes of a key: a multihash is 34, and a hostile one is no longer than this.
const MAX_KEY_BYTES: usize = 128;

/// Provider records, by key.
#[derive(Debug)]
pub(super) struct Providers {
    local: PeerId,
    records: HashMap<RecordKey, Vec<ProviderRecord>>,
    counts: HashMap<PeerId, usize>,
    total: usize,
    own: BTreeSet<Vec<u8>>,
}

impl Providers {
    /// An empty store of the node `local`.
    pub fn new(local: PeerId) -> Self {
        Self { local, records: HashMap::new(), counts: HashMap::new(), total: 0, own: BTreeSet::new() }
    }

    fn forget(&mut self, peer: &PeerId) {
        self.total -= 1;
        if let Some(count) = self.counts.get_mut(peer) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(peer);
            }
        }
    }
}

impl RecordStore for Providers {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::vec::IntoIter<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Result<()> {
        if record.key.as_ref().len() > MAX_KEY_BYTES {
            return Err(Error::ValueTooLarge);
        }
        record.addresses.truncate(super::address::MAX_ADDRESSES);
        if let Some(known) = self.records.get_mut(&record.key) {
            if let Some(old) = known.iter_mut().find(|old| old.provider == record.provider) {
                *old = record;
                return Ok(());
            }
            if known.len() >= MAX_PROVIDERS && record.provider != self.local {
                return Ok(());
            }
        }
        let own = record.provider == self.local;
        let count = self.counts.get(&record.provider).copied().unwrap_or(0);
        if self.total >= MAX_RECORDS || (count >= MAX_RECORDS_OF_PEER && !own) {
            return Err(Error::MaxProvidedKeys);
        }
        if own {
            self.own.insert(record.key.to_vec());
        }
        *self.counts.entry(record.provider).or_default() += 1;
        self.total += 1;
        self.records.entry(record.key.clone()).or_default().push(record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        self.records.get(key).cloned().unwrap_or_default()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        let own: Vec<_> = self
            .own
            .iter()
            .filter_map(|key| self.records.get(&RecordKey::new(key)))
            .filter_map(|records| records.iter().find(|record| record.provider == self.local))
            .map(Cow::Borrowed)
            .collect();
        own.into_iter()
    }

    fn remove_provider(&mut self, key: &RecordKey, peer: &PeerId) {
        let Some(records) = self.records.get_mut(key) else { return };
        let Some(place) = records.iter().position(|record| record.provider == *peer) else { return };
        records.swap_remove(place);
        if records.is_empty() {
            self.records.remove(key);
        }
        if *peer == self.local {
            self.own.remove(key.as_ref());
        }
        self.forget(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: u32, peer: PeerId) -> ProviderRecord {
        ProviderRecord::new(RecordKey::new(&key.to_be_bytes()), peer, Vec::new())
    }

    #[test]
    fn one_peer_cannot_fill_the_store() {
        let local = PeerId::random();
        let mut store = Providers::new(local);
        let hostile = PeerId::random();
        let taken = (0..20_000).filter(|key| store.add_provider(record(*key, hostile)).is_ok()).count();
        assert_eq!(taken, MAX_RECORDS_OF_PEER);
        assert!(store.add_provider(record(1, PeerId::random())).is_ok());
        assert!(store.add_provider(record(30_000, local)).is_ok());
        assert_eq!(store.provided().count(), 1);
    }

    #[test]
    fn what_is_removed_makes_room() {
        let local = PeerId::random();
        let mut store = Providers::new(local);
        for key in 0..10 {
            store.add_provider(record(key, local)).expect("room");
            store.add_provider(record(key, local)).expect("the same again");
        }
        assert_eq!((store.total, store.provided().count()), (10, 10));
        for key in 0..10_u32 {
            store.remove_provider(&RecordKey::new(&key.to_be_bytes()), &local);
        }
        assert_eq!((store.total, store.provided().count(), store.counts.len()), (0, 0, 0));
    }

    #[test]
    fn values_are_refused() {
        let mut store = Providers::new(PeerId::random());
        assert!(store.put(Record::new(RecordKey::new(b"key"), b"value".to_vec())).is_err());
        assert!(store.add_provider(ProviderRecord::new(vec![0; 1000], PeerId::random(), Vec::new())).is_err());
    }
}
