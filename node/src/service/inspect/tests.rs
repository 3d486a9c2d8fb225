//! Listing and following paths in DAGs that a map holds.

use std::fs;

use p2p_protocol::dag::{self, DirectoryBuilder, Link, Metadata};

use super::*;
use crate::{
    error::{Error, Kind as ErrorKind},
    service::{fetch::memory::Memory, ingest::ReadOptions},
};

fn options() -> ReadOptions {
    ReadOptions::default()
}

#[tokio::test]
async fn paths_lead_through_flat_and_sharded_directories() {
    let directory = tempfile::tempdir().expect("a directory");
    let many = directory.path().join("tree/many");
    fs::create_dir_all(&many).expect("a directory");
    for number in 0..5000 {
        fs::write(many.join(format!("a rather long name of a file {number}")), format!("{number}")).expect("a file");
    }
    fs::write(directory.path().join("tree/plain"), b"plain").expect("a file");
    std::os::unix::fs::symlink("plain", directory.path().join("tree/link")).expect("a link");
    let memory = Memory::default();
    let root = memory.add(&directory.path().join("tree"), options()).expect("it can be read");
    memory.take_asked();
    let found =
        resolved(root, &["many", "a rather long name of a file 4321"], "x", memory.clone()).await.expect("it is there");
    assert_eq!(found.chunk.bytes().as_ref(), b"4321");
    assert_eq!(found.label, "a rather long name of a file 4321");
    assert!(memory.take_asked().len() < 8, "only the shards on its path were fetched");
    for path in [&["none"][..], &["many", "none"], &["plain", "below"], &["link", "below"]] {
        let error = resolved(root, path, "x", memory.clone()).await.expect_err("there is no such path");
        assert_eq!(Error::from(error.clone()).kind, ErrorKind::NotFound, "{error}");
    }
    let found = resolved(root, &["many"], "x", memory.clone()).await.expect("it is there");
    memory.take_asked();
    let lines = list(&found, "it").await.expect("it can be listed");
    assert_eq!(lines.len(), 5000);
    assert!(lines.is_sorted_by(|a, b| a.name < b.name));
    assert!(memory.take_asked().iter().all(|cid| cid.codec == Codec::DagPb), "no leaf is fetched to be listed");
    let found = resolved(root, &[], "x", memory.clone()).await.expect("it is there");
    let lines = list(&found, "it").await.expect("it can be listed");
    let shown: Vec<_> = lines.iter().map(|line| (line.name.as_str(), line.kind, line.size)).collect();
    let digits = (0..5000).map(|number: u64| number.to_string().len() as u64).sum();
    let wanted = [("link", Kind::Symlink, 0), ("many", Kind::Directory, digits), ("plain", Kind::File, 5)];
    assert_eq!(shown, wanted);
    let found = resolved(root, &["plain"], "x", memory.clone()).await.expect("it is there");
    assert_eq!(list(&found, "it").await.expect("one line")[0].name, "plain");
}

#[tokio::test]
async fn a_small_dag_that_unfolds_enormously_is_measured_at_once() {
    let memory = Memory::default();
    let leaf = p2p_protocol::Chunk::new(Codec::Raw, &b"x"[..]).expect("it is short");
    let mut link = Link::leaf(&leaf);
    memory.insert(leaf);
    for _ in 0..60 {
        let mut builder = DirectoryBuilder::new(Metadata::default());
        builder.entry("a".to_owned(), link).expect("a good name");
        builder.entry("b".to_owned(), link).expect("a good name");
        link = builder
            .finish(&mut |chunk| {
                memory.insert(chunk);
            })
            .expect("two names");
    }
    let mut seen = 0;
    let size = measure::walk(&memory, link.cid, "it", true, |_, _| {
        seen += 1;
        Ok(())
    })
    .await
    .expect("it is honest");
    assert_eq!(size, 1 << 60);
    assert!(seen < 200, "each node is read once: {seen}");
}

#[tokio::test]
async fn every_chunk_is_seen_and_content_counts_with_repeats() {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = directory.path().join("tree");
    fs::create_dir_all(tree.join("below")).expect("a directory");
    fs::write(tree.join("zeros"), vec![0; 3 << 20]).expect("a file");
    fs::write(tree.join("below/zeros"), vec![0; 3 << 20]).expect("a file");
    fs::write(tree.join("small"), b"small").expect("a file");
    let memory = Memory::default();
    let root = memory.add(&tree, options()).expect("it can be read");
    let mut seen = std::collections::BTreeMap::new();
    let size = measure::walk(&memory, root, "it", true, |cid, bytes| {
        seen.insert(cid, bytes);
        Ok(())
    })
    .await
    .expect("it is honest");
    assert_eq!(size, (6 << 20) + 5);
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), memory.cids());
    assert!(seen.iter().all(|(cid, bytes)| memory.chunk_now(cid).len() as u64 == *bytes));
    assert_eq!(measure::content_bytes(&memory, root, "it").await, Ok(size));
}

#[tokio::test]
async fn what_nobody_has_and_what_is_no_dag_are_told_apart() {
    let memory = Memory::default();
    let (link, _) = dag::symlink(b"there", Metadata::default()).expect("a good target");
    let gone = *link.cid();
    let error = resolved(gone, &[], "x", memory.clone()).await.expect_err("nobody has it");
    assert_eq!(Error::from(error.clone()).kind, ErrorKind::NotFound);
    let garbage = p2p_protocol::Chunk::new(Codec::DagPb, &b"\xff\xff garbage"[..]).expect("it is short");
    let root = memory.insert(garbage);
    let error = resolved(root, &[], "x", memory.clone()).await.expect_err("it is no DAG");
    assert_eq!(Error::from(error.clone()).kind, ErrorKind::Failed);
}
