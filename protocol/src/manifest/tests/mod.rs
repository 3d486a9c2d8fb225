//! Manifests from writer to reader. Here: sets of entries, where chunks are kept, and readers driven to their end.

mod honest;
mod hostile;

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::{
    Codec,
    dag::{FileBuilder, Link, Metadata},
};

/// The entries of these numbers, in the order of their keys.
fn entries(numbers: impl IntoIterator<Item = u64>) -> Vec<(Key, Entry)> {
    let entry = |number: u64| Entry { cid: Cid::of(Codec::Raw, &number.to_be_bytes()), length: 8 };
    let keyed: BTreeMap<Key, Entry> = numbers.into_iter().map(entry).map(|entry| (entry.key(), entry)).collect();
    keyed.into_iter().collect()
}

/// Where manifests' chunks are kept.
#[derive(Default)]
struct Source(HashMap<Cid, Chunk>);

impl Source {
    fn keep(&mut self, chunks: Vec<Chunk>) {
        self.0.extend(chunks.into_iter().map(|chunk| (*chunk.cid(), chunk)));
    }

    fn write(&mut self, entries: &[(Key, Entry)]) -> Manifest {
        let (mut writer, mut out) = (Writer::new(), Vec::new());
        for (_, entry) in entries {
            writer.push(*entry, &mut out).expect("they ascend");
            self.keep(std::mem::take(&mut out));
        }
        assert_eq!(writer.entries(), entries.len() as u64);
        let manifest = writer.finish(&mut out).expect("there are entries");
        self.keep(out);
        manifest
    }

    /// The manifest of these leaves, whatever stands in them; each but the last has the length of a full one.
    fn forge(&mut self, leaves: &[Vec<u8>]) -> Manifest {
        let (mut builder, mut out, mut bytes) = (FileBuilder::new(Metadata::default()), Vec::new(), 0);
        for leaf in leaves {
            let leaf = Chunk::new(Codec::Raw, leaf.clone()).expect("short");
            bytes += leaf.len();
            builder.leaf(Link::leaf(&leaf), &mut out);
            out.push(leaf);
        }
        let root = builder.finish(&mut out).cid;
        self.keep(out);
        Manifest { root, entries: (bytes / ENTRY_BYTES) as u64 }
    }

    fn read(&self, manifest: &Manifest, from: Key, to: Option<Key>) -> Seen {
        let mut reader = RangeReader::new(manifest, from, to).expect("it has the right root");
        let mut seen = Seen::default();
        loop {
            match reader.next_step() {
                Step::Want(entry) => {
                    assert_eq!(reader.next_step(), Step::Want(entry), "it is said until it is answered");
                    seen.wants.push(entry);
                    match self.0.get(&entry.cid) {
                        Some(chunk) => reader.supply(chunk).expect("it was asked for"),
                        None => reader.lacking(),
                    }
                }
                Step::Listed(listed) => {
                    assert!(!listed.is_empty());
                    seen.listed.extend(listed);
                }
                Step::Malformed(place) => seen.malformed.push(place),
                Step::Done => break,
            }
        }
        assert_eq!(reader.next_step(), Step::Done);
        assert!(seen.listed.is_sorted_by(|a, b| a.0 < b.0), "what is listed ascends");
        let known = seen.wants.iter().filter_map(|entry| self.0.get(&entry.cid));
        assert_eq!(reader.bytes_read(), known.map(|chunk| chunk.len() as u64).sum::<u64>());
        seen
    }

    fn own(&self, manifest: &Manifest, from: Key, to: Option<Key>) -> Seen {
        let mut own = OwnChunks::new(manifest, from, to).expect("it has the right root");
        let mut seen = Seen::default();
        loop {
            match own.next_step() {
                Step::Want(entry) => {
                    seen.wants.push(entry);
                    let ahead = own.ahead(2);
                    match self.0.get(&entry.cid) {
                        Some(chunk) => own.supply(chunk).expect("it was asked for"),
                        None => own.lacking(),
                    }
                    assert!(ahead.len() <= 2 && !ahead.contains(&entry));
                }
                Step::Listed(listed) => seen.listed.extend(listed),
                Step::Malformed(place) => seen.malformed.push(place),
                Step::Done => break,
            }
        }
        seen
    }
}

/// What a reader said.
#[derive(Default, PartialEq, Debug)]
struct Seen {
    wants: Vec<Entry>,
    listed: Vec<(Key, Entry)>,
    malformed: Vec<Place>,
}

impl Seen {
    fn leaves(&self) -> usize {
        self.wants.iter().filter(|entry| entry.cid.codec == Codec::Raw).count()
    }
}

const START: Key = Key([0; 32]);

fn within(entries: &[(Key, Entry)], from: Key, to: Option<Key>) -> Vec<(Key, Entry)> {
    entries.iter().filter(|(key, _)| *key >= from && to.is_none_or(|to| *key < to)).copied().collect()
}

/// The key that many 65,536ths into the keyspace.
fn at(place: u16) -> Key {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&place.to_be_bytes());
    Key(key)
}

fn bytes_of(entries: &[(Key, Entry)]) -> Vec<u8> {
    entries.iter().flat_map(|(_, entry)| entry.to_bytes()).collect()
}
