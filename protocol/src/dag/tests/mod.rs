//! Laws of the builders and the walkers: what is built is read back, and what nobody may make is refused.

mod directories;
mod files;
mod foreign;
mod hostile;

use std::collections::HashMap;

use super::*;

/// Chunks by their addresses.
#[derive(Default)]
struct Source(HashMap<Cid, Chunk>);

impl Source {
    fn keep(&mut self, chunk: Chunk) -> Link {
        let link = Link::leaf(&chunk);
        self.0.insert(link.cid, chunk);
        link
    }

    fn raw(&mut self, bytes: &[u8]) -> Link {
        self.keep(Chunk::new(Codec::Raw, bytes.to_vec()).expect("short"))
    }

    fn get(&self, cid: &Cid) -> &Chunk {
        &self.0[cid]
    }

    /// Reads a file, or a range of it, as exporting does.
    fn read(&self, root: &Cid, range: std::ops::Range<u64>) -> Result<Vec<u8>, DagError> {
        let mut walker = FileWalker::new(self.get(root), range)?;
        let mut content = Vec::new();
        let start = walker.range().start;
        while let Some(step) = walker.next_step() {
            match step {
                Step::Leaf { cid, offset, length, skip, take } => {
                    assert_eq!(offset + skip, start + content.len() as u64, "in order, without gaps");
                    assert!(take > 0 && skip + take <= length);
                    let bytes = check_leaf(self.get(&cid), length)?;
                    content.extend_from_slice(&bytes[skip as usize..(skip + take) as usize]);
                }
                Step::Inner(cid) => {
                    assert_eq!(walker.upcoming_inner(1), [cid]);
                    assert_eq!(walker.next_step(), Some(Step::Inner(cid)), "until it is answered");
                    walker.expand(self.get(&cid))?;
                }
                Step::Bytes { offset, bytes } => {
                    assert_eq!(offset, start + content.len() as u64);
                    content.extend_from_slice(&bytes);
                }
            }
        }
        Ok(content)
    }

    /// Lists a directory; `lifo` supplies what is wanted in the other order.
    fn list(&self, root: &Cid, lifo: bool) -> Result<Vec<Entry>, DagError> {
        let mut walker = DirectoryWalker::new(self.get(root))?;
        let mut entries = Vec::new();
        let mut wanted = Vec::new();
        while !walker.done() {
            entries.extend(walker.take_entries());
            wanted.extend(walker.wanted());
            assert!(wanted.len() <= MAX_WANTED);
            let next = if lifo { wanted.pop() } else { (!wanted.is_empty()).then(|| wanted.remove(0)) };
            if let Some(cid) = next {
                walker.supply(self.get(&cid))?;
            }
        }
        Ok(entries)
    }

    fn look_up(&self, root: &Cid, name: &str) -> Result<Option<Entry>, DagError> {
        let mut lookup = NameLookup::new(self.get(root), name)?;
        loop {
            match lookup.state().clone() {
                Lookup::Wanted(cid) => lookup.supply(self.get(&cid))?,
                Lookup::Found(entry) => return Ok(Some(entry)),
                Lookup::Absent => return Ok(None),
            }
        }
    }
}

/// A DAG-PB chunk with a UnixFS message in it, as the test likes it.
fn node(links: &[(Cid, &str, u64)], message: &unixfs::Message) -> Chunk {
    let mut bytes = Vec::new();
    for (cid, name, tsize) in links {
        pb::put_link(&mut bytes, cid, &[name], *tsize);
    }
    pb::put_data(&mut bytes, &message.encode());
    Chunk::new(Codec::DagPb, bytes).expect("short")
}
