//! Building a file: leaves in, inner nodes out, balanced (the layout of the `unixfs-v1-2025` profile).

use super::{
    Link, Metadata, Profile,
    pb::{put_data, put_link},
    unixfs::{Message, Type},
};
use crate::{Chunk, Codec};

/// Builds the inner nodes of one file while its leaves come. Holds one node's links for each level: 1024 links of 56
/// bytes, and three levels lay out a petabyte.
#[derive(Debug)]
pub struct FileBuilder {
    profile: Profile,
    metadata: Metadata,
    /// From the leaves up: what is not under a node yet. A level is folded into the next when it is full and one more
    /// comes, so that a level that is exactly full can still be the root's.
    levels: Vec<Vec<Link>>,
}

impl FileBuilder {
    /// A builder of the standard profile. With metadata the root is always a node that carries it.
    pub fn new(metadata: Metadata) -> Self {
        Self::with_profile(metadata, Profile::STANDARD)
    }

    /// A builder of another profile; the leaves' addresses are the caller's.
    pub fn with_profile(metadata: Metadata, profile: Profile) -> Self {
        Self { profile, metadata, levels: Vec::new() }
    }

    /// Takes the next leaf of the file and appends to `out` the inner nodes that are complete by that: none for most leaves,
    /// one for a level at most.
    pub fn leaf(&mut self, link: Link, out: &mut Vec<Chunk>) {
        self.add(0, link, out);
    }

    fn add(&mut self, level: usize, link: Link, out: &mut Vec<Chunk>) {
        if level == self.levels.len() {
            self.levels.push(Vec::new());
        }
        if self.levels[level].len() == self.profile.width {
            let full = std::mem::take(&mut self.levels[level]);
            let node = self.node(&full, Metadata::default(), out);
            self.add(level + 1, node, out);
        }
        self.levels[level].push(link);
    }

    /// Ends the file: appends the remaining inner nodes to `out`, the root last, and gives the root. A file of one leaf
    /// is that leaf, an empty file is an empty raw leaf (made here), unless there is metadata to carry.
    pub fn finish(mut self, out: &mut Vec<Chunk>) -> Link {
        let metadata = self.metadata;
        let mut level = 0;
        while level + 1 < self.levels.len() {
            let links = std::mem::take(&mut self.levels[level]);
            let node = self.node(&links, Metadata::default(), out);
            self.add(level + 1, node, out);
            level += 1;
        }
        let links = self.levels.pop().unwrap_or_default();
        match links[..] {
            [] if metadata.is_empty() => {
                let empty = self.profile.chunk(Codec::Raw, Vec::new());
                let link = Link::leaf(&empty);
                out.push(empty);
                link
            }
            [only] if metadata.is_empty() => only,
            _ => self.node(&links, metadata, out),
        }
    }

    fn node(&self, links: &[Link], metadata: Metadata, out: &mut Vec<Chunk>) -> Link {
        let size = links.iter().fold(0_u64, |sum, link| sum.saturating_add(link.size));
        let below = links.iter().fold(0_u64, |sum, link| sum.saturating_add(link.tsize));
        let chunk = self.profile.chunk(Codec::DagPb, node_bytes(links, metadata));
        let link = Link { cid: *chunk.cid(), size, tsize: below.saturating_add(chunk.len() as u64) };
        out.push(chunk);
        link
    }
}

/// The bytes of a file's node with these links: the only ones that a builder makes of them.
pub(crate) fn node_bytes(links: &[Link], metadata: Metadata) -> Vec<u8> {
    let message = Message {
        file_size: Some(links.iter().fold(0_u64, |sum, link| sum.saturating_add(link.size))),
        block_sizes: links.iter().map(|link| link.size).collect(),
        metadata,
        ..Message::new(Type::File)
    };
    let mut bytes = Vec::new();
    for link in links {
        put_link(&mut bytes, &link.cid, &[], link.tsize);
    }
    put_data(&mut bytes, &message.encode());
    bytes
}
