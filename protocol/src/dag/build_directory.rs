//! Building directories, flat or sharded, and symbolic links.

use bytes::Bytes;

use super::{
    DagError, Link, MAX_NAME_BYTES, Metadata, Profile, check_name, hamt,
    pb::{framed_data_bytes, framed_link_bytes, put_data, put_link},
    unixfs::{MURMUR3_X64_64, Message, Type},
};
use crate::{Chunk, Cid, Codec};

/// The most entries that are put into one directory: about 100 bytes each are held until it is finished.
pub const MAX_ENTRIES: usize = 1 << 20;
/// The most bytes of a symbolic link's target: what Linux takes (PATH_MAX).
pub const MAX_TARGET_BYTES: usize = 4096;

/// Collects the entries of one directory. Holds them until [`finish`](Self::finish), at most [`MAX_ENTRIES`].
#[derive(Debug)]
pub struct DirectoryBuilder {
    profile: Profile,
    metadata: Metadata,
    entries: Vec<Named>,
    /// Bytes of the links in the flat form.
    flat_links: usize,
}

/// An entry; its size and Tsize are the link's.
#[derive(Debug)]
struct Named {
    name: Box<str>,
    cid: Cid,
    size: u64,
    tsize: u64,
}

impl DirectoryBuilder {
    /// A builder of the standard profile.
    pub fn new(metadata: Metadata) -> Self {
        Self::with_profile(metadata, Profile::STANDARD)
    }

    /// A builder of another profile.
    pub fn with_profile(metadata: Metadata, profile: Profile) -> Self {
        Self { profile, metadata, entries: Vec::new(), flat_links: 0 }
    }

    /// Takes an entry, in any order. An error leaves the builder as it was; a name that comes twice is found by
    /// [`finish`](Self::finish).
    pub fn entry(&mut self, name: String, link: Link) -> Result<(), DagError> {
        check_name(name.as_bytes())?;
        if name.len() > MAX_NAME_BYTES {
            let name = String::from_utf8_lossy(&name.as_bytes()[..MAX_NAME_BYTES]).into_owned();
            return Err(DagError::Name { name, why: "it is over 1024 bytes long" });
        }
        if self.entries.len() == MAX_ENTRIES {
            return Err(DagError::TooManyEntries(MAX_ENTRIES));
        }
        self.flat_links += framed_link_bytes(name.len(), link.tsize);
        self.entries.push(Named { name: name.into(), cid: link.cid, size: link.size, tsize: link.tsize });
        Ok(())
    }

    /// Ends the directory: gives its chunks to `out`, the root last, and returns the root.
    ///
    /// # Errors
    ///
    /// A name that was given twice ([`DagError::DuplicateName`]), before any chunk was given out; and names made so that
    /// their hashes agree in all bits that a sharded directory has ([`DagError::TooDeep`]).
    pub fn finish(mut self, out: &mut dyn FnMut(Chunk)) -> Result<Link, DagError> {
        let message = Message { metadata: self.metadata, ..Message::new(Type::Directory) }.encode();
        self.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = self.entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(DagError::DuplicateName { name: pair[0].name.to_string() });
        }
        let size = self.entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size));
        let (cid, tsize) = if self.flat_links + framed_data_bytes(message.len()) > self.profile.flat_bytes {
            self.entries.sort_by_cached_key(|entry| hamt::hash(&entry.name));
            shard(self.profile, &self.entries, 0, self.metadata, out)?
        } else {
            let mut bytes = Vec::new();
            let mut below = 0_u64;
            for entry in &self.entries {
                put_link(&mut bytes, &entry.cid, &[&entry.name], entry.tsize);
                below = below.saturating_add(entry.tsize);
            }
            put_data(&mut bytes, &message);
            emit(self.profile, bytes, below, out)
        };
        Ok(Link { cid, size, tsize })
    }
}

/// Makes the shard of `entries`, which are sorted by their hash and agree in its first `level` places, and all below it.
/// Recursion ends at the eighth level, where the hash does.
fn shard(
    profile: Profile,
    entries: &[Named],
    level: usize,
    metadata: Metadata,
    out: &mut dyn FnMut(Chunk),
) -> Result<(Cid, u64), DagError> {
    let fanout = hamt::STANDARD;
    if level == fanout.levels() {
        return Err(DagError::TooDeep(level));
    }
    let place = |entry: &Named| fanout.place(hamt::hash(&entry.name), level);
    let mut places = Vec::new();
    let mut bytes = Vec::new();
    let mut below = 0_u64;
    for group in entries.chunk_by(|a, b| place(a) == place(b)) {
        let here = place(&group[0]);
        let prefix = fanout.prefix(here);
        let (cid, tsize, name) = match group {
            [only] => (only.cid, only.tsize, &*only.name),
            _ => {
                let (cid, tsize) = shard(profile, group, level + 1, Metadata::default(), out)?;
                (cid, tsize, "")
            }
        };
        put_link(&mut bytes, &cid, &[&prefix, name], tsize);
        below = below.saturating_add(tsize);
        places.push(here);
    }
    let message = Message {
        data: Some(fanout.bitfield(places.into_iter()).into()),
        hash_type: Some(MURMUR3_X64_64),
        fanout: Some(fanout.places() as u64),
        metadata,
        ..Message::new(Type::HamtShard)
    };
    put_data(&mut bytes, &message.encode());
    Ok(emit(profile, bytes, below, out))
}

fn emit(profile: Profile, bytes: Vec<u8>, below: u64, out: &mut dyn FnMut(Chunk)) -> (Cid, u64) {
    let chunk = profile.chunk(Codec::DagPb, bytes);
    let made = (*chunk.cid(), below.saturating_add(chunk.len() as u64));
    out(chunk);
    made
}

/// A symbolic link: its chunk, and the link to it (whose content size is 0). The target is kept byte for byte and never
/// followed; it has 1 to [`MAX_TARGET_BYTES`] bytes.
pub fn symlink(target: &[u8], metadata: Metadata) -> Result<(Chunk, Link), DagError> {
    symlink_with_profile(target, metadata, Profile::STANDARD)
}

/// [`symlink`] of another profile.
pub fn symlink_with_profile(target: &[u8], metadata: Metadata, profile: Profile) -> Result<(Chunk, Link), DagError> {
    if target.is_empty() || target.len() > MAX_TARGET_BYTES {
        return Err(DagError::Target { length: target.len() });
    }
    let message = Message { data: Some(Bytes::copy_from_slice(target)), metadata, ..Message::new(Type::Symlink) };
    let mut bytes = Vec::new();
    put_data(&mut bytes, &message.encode());
    let chunk = profile.chunk(Codec::DagPb, bytes);
    let link = Link { cid: *chunk.cid(), size: 0, tsize: chunk.len() as u64 };
    Ok((chunk, link))
}
