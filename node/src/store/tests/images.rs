//! Power cuts as sled's directory knows them: its files as they were at our last sync of it, with a random part of what
//! was written since, torn and reordered by page. Whatever it loses is made again from the segments; no panic escapes.

use std::{
    collections::BTreeMap,
    fs,
    io::{self},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    super::*,
    directory,
    key_table::{History, edit},
    power::{Expected, Step, batch, compact, open, seeds},
};
use crate::store::{
    disk::DiskFile,
    index::{Index, Pair, Write},
};

/// Batches of one run.
const BATCHES: usize = 20;
/// Images that are tried at each sync.
const IMAGES: usize = 3;
const PAGE: usize = 4096;

type Image = BTreeMap<PathBuf, Vec<u8>>;

/// The files below a directory, by their paths in it.
fn image(directory: &Path) -> Image {
    let mut found = Image::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(below) = waiting.pop() {
        // One that sled removes meanwhile is not there.
        for entry in fs::read_dir(&below).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                let name = path.strip_prefix(directory).expect("it is below").to_owned();
                found.insert(name, bytes);
            }
        }
    }
    found
}

fn write(image: &Image, to: &Path) {
    for (name, bytes) in image {
        let path = to.join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
        fs::write(path, bytes).expect("there is room");
    }
}

/// What may be on disk, if `durable` is and `cached` was written since.
fn torn(durable: &Image, cached: &Image, random: &mut StdRng) -> Image {
    let share = random.random_range(0.0..=1.0);
    let mut out = durable.clone();
    for (name, new) in cached {
        let old = durable.get(name);
        // A file that was made since may not be there at all.
        if old.is_none() && !random.random_bool(share) {
            continue;
        }
        let mut bytes = old.cloned().unwrap_or_default();
        if random.random_bool(share) {
            bytes.resize(new.len(), 0);
        }
        for (number, page) in new.chunks(PAGE).enumerate() {
            let at = number * PAGE;
            if random.random_bool(share) && at < bytes.len() {
                let length = page.len().min(bytes.len() - at);
                bytes[at..at + length].copy_from_slice(&page[..length]);
            }
        }
        out.insert(name.clone(), bytes);
    }
    // And one that was removed since may still be there, or not.
    out.retain(|name, _| cached.contains_key(name) || !random.random_bool(share));
    out
}

type Hook = Box<dyn FnMut(&Image, &Image) + Send>;

/// The system's disk, whose index shows what it had on disk before each sync and what it has now.
#[derive(Clone)]
struct Watched {
    hook: Arc<Mutex<Hook>>,
    durable: Arc<Mutex<Image>>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

struct WatchedIndex {
    sled: Arc<dyn Index>,
    directory: PathBuf,
    disk: Watched,
}

impl Index for WatchedIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.sled.get(key)
    }

    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.sled.range(start, end, limit)
    }

    fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.sled.apply(writes)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.sled.sync()?;
        let cached = image(&self.directory);
        let mut durable = self.disk.durable.lock().expect("nothing panics under it");
        (self.disk.hook.lock().expect("nothing panics under it"))(&durable, &cached);
        *durable = cached;
        Ok(())
    }
}

impl Disk for Watched {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.create(path)
    }

    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.open(path, writable)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        SystemDisk.names(directory)
    }

    fn exists(&self, path: &Path) -> bool {
        SystemDisk.exists(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        SystemDisk.make_directory(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove_directory(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        SystemDisk.sync_directory(directory)
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        SystemDisk.free_bytes(directory)
    }

    fn forget(&self, directory: &Path) -> io::Result<()> {
        SystemDisk.forget(directory)
    }

    fn index(&self, directory: &Path) -> Result<Arc<dyn Index>, StoreError> {
        let sled = SystemDisk.index(directory)?;
        Ok(Arc::new(WatchedIndex { sled, directory: directory.to_owned(), disk: self.clone() }))
    }
}

fn made_again(root: &Path) -> bool {
    root.join("index.aside").exists()
}

/// Makes the key table, which is lost or made meanwhile.
fn rebuild(store: &Store, seen: &Mutex<(Expected, History)>) -> Result<bool, StoreError> {
    let now = || seen.lock().expect("nothing panics under it");
    now().1.adopt(store);
    let rebuild = store.key_table().rebuild()?;
    now().1.expect_made(rebuild.generation());
    let made = rebuild.finish(&[]);
    now().1.settle();
    made
}

#[test]
fn a_sled_that_is_cut_torn_and_reordered_costs_nothing_that_was_acknowledged() {
    for seed in seeds().into_iter().take(2) {
        let root = directory();
        fs::create_dir(root.path().join("segments")).expect("it can be made");
        let expected = Arc::new(Mutex::new((Expected::default(), History::lost())));
        let mut random = StdRng::seed_from_u64(seed ^ 2);
        let (seen, segments) = (Arc::clone(&expected), root.path().join("segments"));
        let tried = Arc::new(Mutex::new((0, 0)));
        let counts = Arc::clone(&tried);
        let hook = move |durable: &Image, cached: &Image| {
            let (expected, history) = seen.lock().expect("nothing panics under it").clone();
            for number in 0..IMAGES {
                let cut = directory();
                write(&image(&segments), &cut.path().join("segments"));
                fs::create_dir_all(cut.path().join("segments")).expect("it can be made");
                write(&torn(durable, cached, &mut random), &cut.path().join("index"));
                let what = format!("P2P_TEST_SEED={seed}, image {number}");
                let disk: Arc<dyn Disk> = Arc::new(SystemDisk);
                let store = open(&disk, cut.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
                expected.check(&store, &what);
                history.check(&store, made_again(cut.path()), &what);
                let mut counts = counts.lock().expect("nothing panics under it");
                *counts = (counts.0 + 1, counts.1 + usize::from(made_again(cut.path())));
            }
        };
        let disk = Watched { hook: Arc::new(Mutex::new(Box::new(hook))), durable: Arc::default() };
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let store = open(&disk, root.path()).expect("it opens");
        let now = || expected.lock().expect("nothing panics under it");
        assert!(rebuild(&store, &expected).expect("it is made"));
        let mut random = StdRng::seed_from_u64(seed);
        for number in 0..BATCHES {
            let steps: Vec<Step> = (0..random.random_range(1..12)).map(|_| Step::random(&mut random)).collect();
            let name = random.random_range(0..8);
            let change = now().1.change(name, edit(&mut random));
            now().0.pending.clone_from(&steps);
            let mut requests: Vec<Request> = steps.iter().map(Step::request).collect();
            requests.push(Request::Table(change));
            let mut answers = batch(&store, requests);
            assert!(matches!(answers.pop(), Some(Ok(Answer::Table(true)))));
            now().0.take(&store, &steps, &answers);
            now().1.settle();
            if number % 5 == 4 {
                compact(&store, &disk, root.path()).expect("it compacts");
            }
        }
        let (tried, again) = *tried.lock().expect("nothing panics under it");
        println!("seed {seed}: {tried} images, of which {again} had to be made again");
        assert!(again < tried, "a sled that is written between syncs alone is mostly good");
    }
}
