//! A disk for tests, in memory: it keeps what was synced, and at a power cut loses, tears and reorders the rest.
//!
//! What is written is seen at once, as in a page cache, and survives a killed process. A cut applies a part of the writes
//! of each file by sectors, and of the changes of each directory, in any order. A sync that fails writes some and forgets
//! the rest, as Linux does: it is still read, and no later sync writes it.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, IoSlice},
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::store::{
    StoreError,
    disk::{Disk, DiskFile},
    index::{Index, Pair, Write},
};

/// What a power cut leaves of what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leaves {
    Nothing,
    /// A random part; sectors have 512 bytes or 4 KiB.
    Some,
}

/// What is to fail next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// A file's sync, with EIO.
    Sync,
    /// A write, with ENOSPC, half of it done.
    Write,
    /// The sync of the index.
    IndexSync,
}

#[derive(Clone, Debug)]
enum Change {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

#[derive(Clone, Debug, Default)]
struct FileNode {
    cached: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

type Map = BTreeMap<Vec<u8>, Bytes>;

#[derive(Clone, Debug, Default)]
struct IndexNode {
    cached: Map,
    durable: Map,
    pending: Vec<Vec<Write>>,
    /// Its own directory was synced since it was made.
    made: bool,
}

#[derive(Clone, Debug)]
enum Node {
    File(FileNode),
    Index(IndexNode),
}

#[derive(Clone, Debug)]
enum Move {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

#[derive(Clone, Debug, Default)]
struct Directory {
    cached: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<Move>,
}

/// All that a disk holds, and what its cache does.
#[derive(Clone, Debug)]
pub(super) struct State {
    nodes: BTreeMap<u64, Node>,
    directories: BTreeMap<PathBuf, Directory>,
    next: u64,
    fault: Option<(Fault, u32)>,
    /// The most bytes that a file may have.
    pub(super) full_at: u64,
    /// What it says is free.
    pub(super) free_bytes: u64,
    /// Bytes that were read from files.
    pub(super) read_bytes: u64,
}

type Hook = Box<dyn FnMut(&State) + Send>;

/// See the module's text; clone it freely.
#[derive(Clone)]
pub(super) struct TestDisk {
    state: Arc<Mutex<State>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl fmt::Debug for TestDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestDisk")
    }
}

impl Directory {
    fn apply(entries: &mut BTreeMap<String, u64>, change: &Move) {
        match change {
            Move::Link(name, node) => drop(entries.insert(name.clone(), *node)),
            Move::Unlink(name) => drop(entries.remove(name)),
            Move::Rename(from, to) => {
                if let Some(node) = entries.remove(from) {
                    entries.insert(to.clone(), node);
                }
            }
        }
    }

    fn change(&mut self, change: Move) {
        Self::apply(&mut self.cached, &change);
        self.pending.push(change);
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length as usize, 0),
            Self::Bytes(offset, written) => {
                let start = *offset as usize;
                bytes.resize(bytes.len().max(start + written.len()), 0);
                bytes[start..start + written.len()].copy_from_slice(written);
            }
        }
    }

    /// Applies a random part of it.
    fn tear(&self, bytes: &mut Vec<u8>, random: &mut StdRng, sector: u64, share: f64) {
        match self {
            Self::Length(_) => {
                if random.random_bool(share) {
                    self.apply(bytes);
                }
            }
            Self::Bytes(offset, written) => {
                let mut at = 0;
                while at < written.len() {
                    let from = offset + at as u64;
                    let length = ((sector - from % sector) as usize).min(written.len() - at);
                    if random.random_bool(share) {
                        Self::Bytes(from, written[at..at + length].to_vec()).apply(bytes);
                    }
                    at += length;
                }
                // The length is another thing than the bytes: a file may end in zeros that nobody wrote.
                if random.random_bool(share / 2.0) {
                    bytes.resize(bytes.len().max(*offset as usize + written.len()), 0);
                }
            }
        }
    }
}

fn write_to(map: &mut Map, writes: &[Write]) {
    for (key, value) in writes {
        match value {
            Some(value) => drop(map.insert(key.clone(), value.clone().into())),
            None => drop(map.remove(key)),
        }
    }
}

impl State {
    fn directory(&mut self, path: &Path) -> (&mut Directory, String) {
        let parent = path.parent().expect("no test uses the root").to_owned();
        let name = path.file_name().expect("it has one").to_string_lossy().into_owned();
        (self.directories.entry(parent).or_default(), name)
    }

    fn find(&self, path: &Path) -> Option<u64> {
        let directory = self.directories.get(path.parent()?)?;
        directory.cached.get(path.file_name()?.to_str()?).copied()
    }

    fn file(&mut self, node: u64) -> &mut FileNode {
        match self.nodes.get_mut(&node) {
            Some(Node::File(file)) => file,
            other => panic!("no file: {other:?}"),
        }
    }

    fn index(&mut self, node: u64) -> &mut IndexNode {
        match self.nodes.get_mut(&node) {
            Some(Node::Index(index)) => index,
            other => panic!("no index: {other:?}"),
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> u64 {
        self.next += 1;
        let number = self.next;
        self.nodes.insert(number, node);
        let (directory, name) = self.directory(path);
        directory.change(Move::Link(name, number));
        number
    }

    fn fails(&mut self, now: Fault) -> bool {
        match &mut self.fault {
            Some((fault, 0)) if *fault == now => {
                self.fault = None;
                true
            }
            Some((fault, left)) if *fault == now => {
                *left -= 1;
                false
            }
            _ => false,
        }
    }

    /// Nothing is left that is to fail.
    pub(super) fn faultless(&self) -> bool {
        self.fault.is_none()
    }

    /// The disk as a power cut leaves it.
    pub(super) fn cut(&self, leaves: Leaves, random: &mut StdRng) -> TestDisk {
        let mut state = self.clone();
        state.fault = None;
        let sector = if random.random() { 512 } else { 4096 };
        let share = if leaves == Leaves::Nothing { 0.0 } else { random.random_range(0.0..=1.0) };
        for directory in state.directories.values_mut() {
            for change in std::mem::take(&mut directory.pending) {
                if random.random_bool(share) {
                    Directory::apply(&mut directory.durable, &change);
                }
            }
            directory.cached = directory.durable.clone();
        }
        for node in state.nodes.values_mut() {
            match node {
                Node::File(file) => {
                    for change in std::mem::take(&mut file.pending) {
                        change.tear(&mut file.durable, random, sector, share);
                    }
                    file.cached = file.durable.clone();
                }
                Node::Index(index) => {
                    // It is a log itself: of what was not synced a first part is there, by batches.
                    let pending = std::mem::take(&mut index.pending);
                    let kept = (pending.len() as f64 * share) as usize;
                    pending[..kept].iter().for_each(|writes| write_to(&mut index.durable, writes));
                    if !index.made && !random.random_bool(share) {
                        index.durable.clear();
                    }
                    index.cached = index.durable.clone();
                }
            }
        }
        TestDisk::of(state)
    }
}

impl TestDisk {
    pub(super) fn new() -> Self {
        Self::of(State {
            nodes: BTreeMap::new(),
            directories: BTreeMap::new(),
            next: 0,
            fault: None,
            full_at: u64::MAX,
            free_bytes: 1 << 40,
            read_bytes: 0,
        })
    }

    fn of(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)), hook: Arc::default() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under it")
    }

    /// A disk that holds the same, with the same things synced: what a killed process leaves.
    pub(super) fn killed(state: &State) -> Self {
        Self::of(State { fault: None, ..state.clone() })
    }

    /// `hook` sees the disk before each change.
    pub(super) fn watch(&self, hook: impl FnMut(&State) + Send + 'static) {
        *self.hook.lock().expect("nothing panics under it") = Some(Box::new(hook));
    }

    /// The next such operation but `skip` fails.
    pub(super) fn fail(&self, fault: Fault, skip: u32) {
        self.state().fault = Some((fault, skip));
    }

    /// Which index is in the data directory: another one has another number.
    pub(super) fn index_node(&self, root: &Path) -> Option<u64> {
        self.state().find(&root.join("index"))
    }

    /// The bytes of a file, to be looked at and changed behind the store's back; on the disk at once.
    pub(super) fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let node = state.find(path).expect("it is there");
        let file = state.file(node);
        change(&mut file.cached);
        file.durable = file.cached.clone();
        file.pending.clear();
    }

    fn step(&self) {
        // A copy, so that the hook may open it; and none of its own changes are watched.
        let Some(mut hook) = self.hook.lock().expect("nothing panics under it").take() else { return };
        let state = self.state().clone();
        hook(&state);
        *self.hook.lock().expect("nothing panics under it") = Some(hook);
    }
}

#[derive(Debug)]
struct Open {
    disk: TestDisk,
    node: u64,
}

impl Disk for TestDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.step();
        let mut state = self.state();
        let node = match state.find(path) {
            Some(node) => {
                let file = state.file(node);
                file.cached.clear();
                file.pending.push(Change::Length(0));
                node
            }
            None => state.add(path, Node::File(FileNode::default())),
        };
        Ok(Arc::new(Open { disk: self.clone(), node }))
    }

    fn open(&self, path: &Path, _: bool) -> io::Result<Arc<dyn DiskFile>> {
        let node = self.state().find(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Open { disk: self.clone(), node }))
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        Ok(state.directories.get(directory).map_or_else(Vec::new, |found| found.cached.keys().cloned().collect()))
    }

    fn exists(&self, path: &Path) -> bool {
        self.state().find(path).is_some()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step();
        assert_eq!(from.parent(), to.parent());
        let (_, to) = self.state().directory(to);
        let mut state = self.state();
        let (directory, from) = state.directory(from);
        directory.change(Move::Rename(from, to));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step();
        let mut state = self.state();
        state.find(path).ok_or(io::ErrorKind::NotFound)?;
        let (directory, name) = state.directory(path);
        directory.change(Move::Unlink(name));
        Ok(())
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        if self.exists(path) {
            return Ok(());
        }
        self.step();
        self.state().add(path, Node::Index(IndexNode::default()));
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        if self.exists(path) { self.remove(path) } else { Ok(()) }
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step();
        let mut state = self.state();
        if let Some(node) = state.find(path) {
            state.index(node).made = true;
        } else if let Some(directory) = state.directories.get_mut(path) {
            directory.pending.clear();
            directory.durable = directory.cached.clone();
        }
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.state().free_bytes)
    }

    fn forget(&self, directory: &Path) -> io::Result<()> {
        self.step();
        let mut state = self.state();
        let Some(node) = state.find(directory) else { return Ok(()) };
        let failed = state.fails(Fault::IndexSync);
        let index = state.index(node);
        let pending = std::mem::take(&mut index.pending);
        if failed {
            return Err(io::Error::from_raw_os_error(5));
        }
        pending.iter().for_each(|writes| write_to(&mut index.durable, writes));
        index.cached = index.durable.clone();
        Ok(())
    }

    fn index(&self, directory: &Path) -> Result<Arc<dyn Index>, StoreError> {
        let node = self.state().find(directory).expect("it was made");
        Ok(Arc::new(Open { disk: self.clone(), node }))
    }
}

impl DiskFile for Open {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.state().file(self.node).cached.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.read_bytes += bytes.len() as u64;
        let start = offset as usize;
        let found = state.file(self.node).cached.get(start..start + bytes.len());
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.disk.step();
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let mut state = self.disk.state();
        let limit = state.full_at.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let room = if state.fails(Fault::Write) { bytes.len() / 2 } else { limit };
        let change = Change::Bytes(offset, bytes[..room].to_vec());
        let file = state.file(self.node);
        change.apply(&mut file.cached);
        file.pending.push(change);
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.disk.step();
        let mut state = self.disk.state();
        let file = state.file(self.node);
        let change = Change::Length(length);
        change.apply(&mut file.cached);
        file.pending.push(change);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step();
        let mut state = self.disk.state();
        let failed = state.fails(Fault::Sync);
        let file = state.file(self.node);
        let pending = std::mem::take(&mut file.pending);
        if failed {
            let mut random = StdRng::seed_from_u64(file.cached.len() as u64);
            pending.iter().for_each(|change| change.tear(&mut file.durable, &mut random, 512, 0.5));
            return Err(io::Error::from_raw_os_error(5));
        }
        pending.iter().for_each(|change| change.apply(&mut file.durable));
        Ok(())
    }
}

impl Index for Open {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.disk.state().index(self.node).cached.get(key).cloned())
    }

    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        let mut state = self.disk.state();
        let range = state.index(self.node).cached.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)));
        Ok(range.take(limit).map(|(key, value)| (Bytes::copy_from_slice(key), value.clone())).collect())
    }

    fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.disk.step();
        let mut state = self.disk.state();
        let index = state.index(self.node);
        write_to(&mut index.cached, &writes);
        index.pending.push(writes);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.disk.step();
        let mut state = self.disk.state();
        let failed = state.fails(Fault::IndexSync);
        let index = state.index(self.node);
        let pending = std::mem::take(&mut index.pending);
        if failed {
            return Err(StoreError::Index("its file cannot be synced".into()));
        }
        pending.iter().for_each(|writes| write_to(&mut index.durable, writes));
        Ok(())
    }
}
