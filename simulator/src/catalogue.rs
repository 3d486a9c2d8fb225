//! What each node knows of the publications: for each key the greatest version.
//!
//! The rule is the catalogue's (greatest version wins, a removal is a version); signatures, names and limits are left
//! out, because nothing here turns on them.

use std::collections::BTreeMap;

/// Which publication of the trace.
pub type PublicationKey = u32;

/// One version of a publication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// From 1.
    pub version: u64,
    /// It is a removal.
    pub removed: bool,
}

impl Version {
    /// What rows know it as; a removal lists nothing.
    pub fn id(self, key: PublicationKey) -> u64 {
        u64::from(key) << 32 | self.version
    }
}

/// What one node knows.
#[derive(Clone, Default, Debug)]
pub struct Catalogue {
    entries: BTreeMap<PublicationKey, Version>,
    fingerprint: u64,
}

impl Catalogue {
    /// Takes a version in; gives what stood there before if it is new.
    pub fn merge(&mut self, key: PublicationKey, version: Version) -> Option<Option<Version>> {
        let before = self.entries.get(&key).copied();
        if before.is_some_and(|before| before.version >= version.version) {
            return None;
        }
        self.entries.insert(key, version);
        self.fingerprint ^= before.map_or(0, |before| mix(before.id(key))) ^ mix(version.id(key));
        Some(before)
    }

    /// All that stand.
    pub fn entries(&self) -> impl Iterator<Item = (PublicationKey, Version)> + '_ {
        self.entries.iter().map(|(key, version)| (*key, *version))
    }

    /// What stands under a key.
    pub fn get(&self, key: PublicationKey) -> Option<Version> {
        self.entries.get(&key).copied()
    }

    /// Equal for equal catalogues.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// Spreads the bits of a number (splitmix64's finisher, Steele et al. 2014).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
