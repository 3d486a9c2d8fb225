//! Chunks and UnixFS nodes written by hand, so that they may say what the product would never write.
//!
//! dag-pb: `PBNode { Links = 2 { Hash = 1, Name = 2, Tsize = 3 }, Data = 1 }`, links first; UnixFS `Data { Type = 1, Data = 2,
//! filesize = 3, blocksizes = 4 }` (ipld.io/specs/codecs/dag-pb, specs.ipfs.tech/unixfs).

use std::collections::HashMap;

/// A multihash, 34 bytes.
pub type Hash = [u8; 34];

/// Chunks by multihash: what a forger serves.
pub type Chunks = HashMap<Hash, Vec<u8>>;

/// A link as it stands in a node.
#[derive(Clone, Debug)]
pub struct Link {
    /// The name, any bytes.
    pub name: Vec<u8>,
    /// The binary CID of what it leads to.
    pub cid: Vec<u8>,
    /// The claimed size.
    pub size: u64,
}

/// A chunk that was made, and what is needed to link to it.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its binary CID.
    pub cid: Vec<u8>,
    /// Content bytes that it claims.
    pub size: u64,
}

impl Made {
    /// Its CID as text.
    pub fn text(&self) -> String {
        base32(&self.cid)
    }

    /// A link to it.
    pub fn named(&self, name: impl AsRef<[u8]>) -> Link {
        Link { name: name.as_ref().to_vec(), cid: self.cid.clone(), size: self.size }
    }
}

/// Keeps a raw chunk.
pub fn raw(chunks: &mut Chunks, bytes: &[u8]) -> Made {
    keep(chunks, 0x55, bytes.to_vec(), bytes.len() as u64)
}

/// Keeps a directory with these entries, in this order.
pub fn directory(chunks: &mut Chunks, entries: &[Link]) -> Made {
    let size = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size));
    node(chunks, entries, &unixfs(1, None, None, &[]), size)
}

/// Keeps a symbolic link.
pub fn symlink(chunks: &mut Chunks, target: &str) -> Made {
    node(chunks, &[], &unixfs(4, Some(target.as_bytes()), None, &[]), target.len() as u64)
}

/// Keeps a file of parts, which claims these sizes, whatever the parts have.
pub fn file(chunks: &mut Chunks, parts: &[(Made, u64)]) -> Made {
    let links: Vec<_> = parts.iter().map(|(part, _)| part.named("")).collect();
    let sizes: Vec<_> = parts.iter().map(|(_, size)| *size).collect();
    let size = sizes.iter().fold(0_u64, |sum, size| sum.saturating_add(*size));
    node(chunks, &links, &unixfs(2, None, Some(size), &sizes), size)
}

/// Keeps a dag-pb node of these links and this UnixFS message.
pub fn node(chunks: &mut Chunks, links: &[Link], data: &[u8], size: u64) -> Made {
    let mut bytes = Vec::new();
    for link in links {
        let mut inner = Vec::new();
        field(&mut inner, 1, &link.cid);
        field(&mut inner, 2, &link.name);
        number(&mut inner, 3, link.size);
        field(&mut bytes, 2, &inner);
    }
    field(&mut bytes, 1, data);
    keep(chunks, 0x70, bytes, size)
}

/// A UnixFS message.
pub fn unixfs(kind: u64, data: Option<&[u8]>, filesize: Option<u64>, blocksizes: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    number(&mut bytes, 1, kind);
    if let Some(data) = data {
        field(&mut bytes, 2, data);
    }
    if let Some(filesize) = filesize {
        number(&mut bytes, 3, filesize);
    }
    for size in blocksizes {
        number(&mut bytes, 4, *size);
    }
    bytes
}

/// Keeps bytes under their BLAKE3 and this codec, whatever they are.
pub fn keep(chunks: &mut Chunks, codec: u8, bytes: Vec<u8>, size: u64) -> Made {
    let mut hash = [0; 34];
    hash[..2].copy_from_slice(&[0x1e, 32]);
    hash[2..].copy_from_slice(blake3::hash(&bytes).as_bytes());
    chunks.insert(hash, bytes);
    let mut cid = vec![1, codec];
    cid.extend_from_slice(&hash);
    Made { cid, size }
}

fn field(out: &mut Vec<u8>, place: u64, bytes: &[u8]) {
    varint(out, place << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn number(out: &mut Vec<u8>, place: u64, value: u64) {
    varint(out, place << 3);
    varint(out, value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Multibase base32, lower case.
pub fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::from("b");
    let (mut bits, mut held) = (0_u32, 0);
    for byte in bytes {
        bits = (bits << 8) | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(DIGITS[(bits >> held & 31) as usize] as char);
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        text.push(DIGITS[(bits << (5 - held) & 31) as usize] as char);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_is_the_one_that_everybody_knows() {
        let mut chunks = Chunks::new();
        let made = directory(&mut chunks, &[]);
        // The empty UnixFS directory is these four bytes in every implementation.
        assert_eq!(chunks.into_values().next(), Some(vec![0x0a, 0x02, 0x08, 0x01]));
        assert_eq!(crate::process::placement::base32(&made.text()), made.cid);
    }
}
