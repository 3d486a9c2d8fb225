//! Power cuts at every step of random work, on a disk that loses, tears and reorders what was not synced: all that was
//! acknowledged is there and intact, nothing that was removed is back, and the index is not made anew.
//!
//! `P2P_TEST_SEED=7 cargo test -p p2p-node --lib store::tests::power` runs one seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures::FutureExt as _;
use p2p_protocol::{Chunk, Key};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::oneshot;

use super::{
    super::*,
    all, chunk,
    disk::{Fault, Leaves, State, TestDisk},
};
use crate::store::{compact::LIVE_PERCENT, writer};

const TUNING: Tuning = Tuning { segment_bytes: 6 * 1024, reserve_bytes: 0 };
const ROOT: &str = "/store";
const NAMES: u8 = 16;
/// Less than all names take, so that caches give way.
const CAPACITY: u64 = 14 * 1024;
const STEPS: usize = 30;

/// What an inline store is asked is done at once.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("it does not wait")
}

fn named(name: u8) -> Chunk {
    chunk(u64::from(name), usize::from(name) * 397 % 2100)
}

fn reopen(disk: &TestDisk) -> Result<Store, StoreError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    open(&disk, Path::new(ROOT))
}

/// Without threads.
pub(super) fn open(disk: &Arc<dyn Disk>, root: &Path) -> Result<Store, StoreError> {
    let writer = writer::open(disk, root, CAPACITY, TUNING)?;
    let shared = Arc::clone(&writer.shared);
    Ok(Store { inner: Arc::new(Inner { shared, door: Door::Inline(Box::new(Mutex::new(Some(writer)))) }) })
}

pub(super) fn writer(store: &Store) -> MutexGuard<'_, Option<Writer>> {
    match &store.inner.door {
        Door::Inline(writer) => writer.lock().expect("nothing panics under it"),
        Door::Thread { .. } => panic!("opened without threads"),
    }
}

/// Commits all at once, as the writer's thread does, and gives the answers.
pub(super) fn batch(store: &Store, requests: Vec<Request>) -> Vec<Outcome> {
    let (operations, answers): (Vec<_>, Vec<_>) = requests
        .into_iter()
        .map(|request| {
            let (reply, answer) = oneshot::channel();
            (Operation { request, reply, permit: None }, answer)
        })
        .unzip();
    writer(store).as_mut().expect("it is open").commit(operations);
    answers.into_iter().map(|answer| answer.blocking_recv().expect("all are answered")).collect()
}

/// Compacts all that is worth it.
pub(super) fn compact(store: &Store, disk: &Arc<dyn Disk>, root: &Path) -> Result<(), StoreError> {
    let mut stuck = BTreeSet::new();
    loop {
        let job = writer(store).as_mut().expect("it is open").worth_compacting(LIVE_PERCENT, &stuck);
        let Some((number, sealed)) = job else { return Ok(()) };
        let asked = store.clone();
        let ask = move |request| match request {
            Request::Retire(number) => writer(&asked).as_mut().expect("it is open").retire(number).map(drop),
            request => batch(&asked, vec![request]).remove(0).map(drop),
        };
        let compaction = Compaction {
            shared: Arc::clone(&store.inner.shared),
            disk: Arc::clone(disk),
            directory: root.join("segments"),
            ask: Box::new(ask),
            stop: Arc::default(),
        };
        if !compaction.compact(number, sealed)? {
            stuck.insert(number);
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Put(u8),
    Remove(u8),
    Value(u8, u8),
    Unset(u8),
}

impl Step {
    pub(super) fn random(random: &mut StdRng) -> Self {
        let name = random.random_range(0..NAMES);
        match random.random_range(0..9) {
            0..5 => Self::Put(name),
            5..8 => Self::Remove(name),
            _ if random.random_bool(0.3) => Self::Unset(name % 4),
            _ => Self::Value(name % 4, random.random()),
        }
    }

    pub(super) fn request(&self) -> Request {
        let hash = |name: &u8| named(*name).cid().hash;
        match self {
            Self::Put(name) => Request::Put(named(*name)),
            Self::Remove(name) => Request::Remove(vec![hash(name)]),
            Self::Value(name, value) => Request::Values(vec![(vec![*name].into(), Some(vec![*value; 40].into()))]),
            Self::Unset(name) => Request::Values(vec![(vec![*name].into(), None)]),
        }
    }

    /// Whether `name` is here after it, if it was or was not before.
    fn after(&self, name: u8, here: bool) -> bool {
        match self {
            Self::Put(put) if *put == name => true,
            Self::Remove(removed) if *removed == name => false,
            _ => here,
        }
    }
}

/// What was acknowledged, and what is under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    chunks: BTreeSet<u8>,
    values: BTreeMap<u8, u8>,
    pub(super) pending: Vec<Step>,
    /// The index is there and no test took it away: no power cut is a reason to make it anew.
    settled: bool,
}

impl Expected {
    /// Whether `name` may be here now, and whether it may be missing: any part of what is under way may be done.
    fn allowed(&self, name: u8) -> BTreeSet<bool> {
        let mut states = BTreeSet::from([self.chunks.contains(&name)]);
        for step in &self.pending {
            let more: Vec<_> = states.iter().map(|here| step.after(name, *here)).collect();
            states.extend(more);
        }
        states
    }

    pub(super) fn check(&self, store: &Store, what: &str) {
        let mut found: BTreeMap<Key, Entry> =
            all(store).into_iter().map(|entry| (Key::from(&entry.cid.hash), entry)).collect();
        for name in 0..NAMES {
            let chunk = named(name);
            let entry = found.remove(&Key::from(&chunk.cid().hash));
            let allowed = self.allowed(name);
            assert!(allowed.contains(&entry.is_some()), "{what}: chunk {name} is {entry:?}, allowed {allowed:?}");
            let read = block_on(store.get(&chunk.cid().hash)).expect("it reads");
            assert_eq!(read, entry.map(|_| chunk), "{what}: chunk {name} is intact");
        }
        assert!(found.is_empty(), "{what}: {found:?}");
        let values: BTreeMap<Bytes, Bytes> =
            store.records(b"", None, usize::MAX).expect("it reads").into_iter().collect();
        for name in 0..4 {
            let mut allowed: Vec<Option<u8>> = vec![self.values.get(&name).copied()];
            let pending = self.pending.iter();
            allowed.extend(pending.filter_map(|step| match step {
                Step::Value(key, value) if *key == name => Some(Some(*value)),
                Step::Unset(key) if *key == name => Some(None),
                _ => None,
            }));
            let value = values.get(&[name][..]).map(|value| value[0]);
            assert!(allowed.contains(&value), "{what}: value {name} is {value:?}, not one of {allowed:?}");
        }
        assert_eq!(store.damaged(None, 9).expect("it reads"), [], "{what}: nothing is damaged");
        let mut writer = writer(store);
        let segments = writer.as_mut().expect("it is open").log.segments().expect("on a disk").all();
        assert!(segments.iter().all(|(_, salt, _)| salt.is_some()), "{what}: every header is whole: {segments:?}");
    }
}

impl Expected {
    /// Takes in what was answered to `steps`.
    pub(super) fn take(&mut self, store: &Store, steps: &[Step], answers: &[Outcome]) {
        // What failed may still be done by a kill, until something else is answered.
        if answers.iter().any(Result::is_ok) {
            self.pending.clear();
        }
        let done: Vec<&Step> =
            steps.iter().zip(answers).filter(|(_, answer)| answer.is_ok()).map(|(step, _)| step).collect();
        let found: BTreeSet<_> = all(store).into_iter().map(|entry| entry.cid).collect();
        for name in 0..NAMES {
            let before = self.chunks.remove(&name);
            let after = done.iter().fold(before, |here, step| step.after(name, here));
            let here = found.contains(named(name).cid());
            assert_eq!(here, after, "chunk {name}");
            if here {
                self.chunks.insert(name);
            }
        }
        for step in done {
            match step {
                Step::Value(key, value) => drop(self.values.insert(*key, *value)),
                Step::Unset(key) => drop(self.values.remove(key)),
                Step::Put(_) | Step::Remove(_) => {}
            }
        }
    }

    /// Takes what the store says for what was acknowledged.
    fn adopt(&mut self, store: &Store) {
        let found: BTreeSet<_> = all(store).into_iter().map(|entry| entry.cid).collect();
        self.chunks = (0..NAMES).filter(|name| found.contains(named(*name).cid())).collect();
        let values = store.records(b"", None, usize::MAX).expect("it reads").into_iter();
        self.values = values.map(|(key, value)| (key[0], value[0])).collect();
        self.pending.clear();
    }
}

fn without_index(disk: &TestDisk) -> TestDisk {
    let disk = TestDisk::killed(&disk.state());
    disk.remove_directory(&Path::new(ROOT).join("index")).expect("it is removed");
    disk
}

/// Looks at `state` as power cuts leave it.
fn check_cuts(state: &State, expected: &Expected, random: &mut StdRng, what: &str) {
    for leaves in [Leaves::Nothing, Leaves::Some] {
        let what = format!("{what}, {leaves:?} left");
        let disk = state.cut(leaves, random);
        let (image, seen) = (TestDisk::killed(&disk.state()), Arc::new(Mutex::new(Vec::new())));
        if random.random_bool(0.1) {
            let seen = Arc::clone(&seen);
            disk.watch(move |state| seen.lock().expect("nothing panics under it").push(state.clone()));
        }
        let before = disk.index_node(Path::new(ROOT));
        let store = reopen(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
        expected.check(&store, &what);
        let anew = before.is_none() || before != disk.index_node(Path::new(ROOT));
        assert!(!(expected.settled && anew), "{what}: the index was made anew");
        drop(store);
        let store = reopen(&without_index(&image)).unwrap_or_else(|error| panic!("{what}, no index: {error}"));
        expected.check(&store, &format!("{what}, no index"));
        // The power goes again while it recovers.
        let seen = seen.lock().expect("nothing panics under it");
        if !seen.is_empty() {
            let disk = seen[random.random_range(0..seen.len())].cut(Leaves::Some, random);
            let store = reopen(&disk).unwrap_or_else(|error| panic!("{what}, twice: {error}"));
            expected.check(&store, &format!("{what}, twice"));
        }
    }
}

/// A killed process leaves all in the cache: what is put again then is acknowledged, and survives a cut.
fn check_kill(state: &State, expected: &Expected, random: &mut StdRng, what: &str) {
    let disk = TestDisk::killed(state);
    let store = reopen(&disk).unwrap_or_else(|error| panic!("{what}, killed: {error}"));
    expected.check(&store, &format!("{what}, killed"));
    let here: Vec<u8> =
        (0..NAMES).filter(|name| store.entry(&named(*name).cid().hash).expect("it reads").is_some()).collect();
    for name in &here {
        assert_eq!(block_on(store.put(named(*name))).expect("it is here"), Put::Known);
    }
    let cut = disk.state().cut(Leaves::Nothing, random);
    for disk in [without_index(&cut), cut] {
        let store = reopen(&disk).unwrap_or_else(|error| panic!("{what}, killed and cut: {error}"));
        for name in &here {
            let found = block_on(store.get(&named(*name).cid().hash)).expect("it reads");
            assert_eq!(found, Some(named(*name)), "{what}: chunk {name} was known after a kill, and lost by a cut");
        }
    }
}

/// Runs random work, with faults or without, and looks at every step of it.
fn work(seed: u64, faults: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = TestDisk::new();
    let expected = Arc::new(Mutex::new(Expected::default()));
    let now = || expected.lock().expect("nothing panics under it");
    {
        let expected = Arc::clone(&expected);
        let mut random = StdRng::seed_from_u64(seed ^ 1);
        let mut step = 0;
        disk.watch(move |state| {
            step += 1;
            let expected = expected.lock().expect("nothing panics under it").clone();
            let what = format!("P2P_TEST_SEED={seed}, faults {faults}, step {step}");
            check_cuts(state, &expected, &mut random, &what);
            check_kill(state, &expected, &mut random, &what);
        });
    }
    let mut store = reopen(&disk).expect("it opens");
    now().settled = true;
    for _ in 0..STEPS {
        if faults && random.random_bool(0.3) {
            let fault = [Fault::Sync, Fault::Write, Fault::IndexSync][random.random_range(0..3)];
            disk.fail(fault, random.random_range(0..2));
            now().settled &= fault != Fault::IndexSync;
        }
        match random.random_range(0..14) {
            // A pass, which overwrites what was removed.
            12.. => {
                let mut position = None;
                loop {
                    let step = block_on(store.read_pass(position, 700));
                    let Ok(step) = step.map_err(|error| assert!(faults, "{error}")) else { break };
                    position = step.next;
                    if position.is_none() {
                        break;
                    }
                }
            }
            0 => drop(
                compact(&store, &(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT))
                    .map_err(|error| assert!(faults, "{error}")),
            ),
            kind @ 1..4 => {
                if kind > 1 {
                    block_on(store.close()).expect("it closes");
                }
                drop(store);
                if kind == 3 {
                    now().settled = false;
                    disk.remove_directory(&Path::new(ROOT).join("index")).expect("it is removed");
                }
                store = match reopen(&disk) {
                    Ok(store) => store,
                    Err(error) => {
                        assert!(faults, "{error}");
                        // A fault comes once.
                        reopen(&disk).expect("it opens without a fault")
                    }
                };
                // What had failed is done or not from now on.
                let seen = now().clone();
                seen.check(&store, &format!("P2P_TEST_SEED={seed}, faults {faults}, opened"));
                now().adopt(&store);
            }
            _ => {
                let steps: Vec<Step> = (0..random.random_range(1..6)).map(|_| Step::random(&mut random)).collect();
                now().pending.extend_from_slice(&steps);
                let answers = batch(&store, steps.iter().map(Step::request).collect());
                let refused = |answer: &Outcome| matches!(answer, Err(StoreError::NoSpace { .. }));
                assert!(faults || answers.iter().all(|answer| answer.is_ok() || refused(answer)), "{answers:?}");
                now().take(&store, &steps, &answers);
                // Whatever it was before, it is sound now: what is made anew is on disk before anything is answered.
                now().settled = disk.state().faultless() && answers.iter().all(Result::is_ok);
            }
        }
        let seen = now().clone();
        seen.check(&store, &format!("P2P_TEST_SEED={seed}, faults {faults}"));
    }
}

pub(super) fn seeds() -> Vec<u64> {
    match std::env::var("P2P_TEST_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=4).collect(),
    }
}

#[test]
fn a_power_cut_at_any_step_loses_nothing_that_was_acknowledged() {
    seeds().into_iter().for_each(|seed| work(seed, false));
}

#[test]
fn a_sync_or_a_write_that_fails_acknowledges_nothing_then_or_later() {
    seeds().into_iter().for_each(|seed| work(seed, true));
}

#[test]
fn a_removed_segment_does_not_come_back_with_what_was_deleted() {
    let disk = TestDisk::new();
    let store = reopen(&disk).expect("it opens");
    let put = |seed: u64| {
        let chunk = chunk(seed, 1000);
        (chunk.cid().hash, Request::Put(chunk))
    };
    // The first segment has chunks, the second their deletions and what fills it up, which goes too.
    let (gone, puts): (Vec<_>, Vec<_>) = (0..5).map(put).unzip();
    batch(&store, puts);
    batch(&store, vec![put(10).1]);
    batch(&store, vec![Request::Remove(gone.clone())]);
    batch(&store, vec![put(11).1, put(12).1, put(13).1]);
    batch(&store, vec![put(20).1]);
    batch(&store, vec![Request::Remove((10..14).map(|seed| put(seed).0).collect())]);
    compact(&store, &(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT)).expect("it compacts");
    let segments = disk.names(&Path::new(ROOT).join("segments")).expect("it is there");
    assert!(!segments.iter().any(|name| name == "00000001.seg" || name == "00000002.seg"), "{segments:?}");
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..100 {
        let store = reopen(&without_index(&disk.state().cut(Leaves::Some, &mut random))).expect("it opens");
        for hash in &gone {
            assert_eq!(store.entry(hash).expect("it reads"), None, "it was removed, and compacted away");
        }
    }
}

#[test]
fn what_a_full_disk_took_back_does_not_come_back() {
    let disk = TestDisk::new();
    let store = reopen(&disk).expect("it opens");
    let hashes: Vec<_> = (1..3).map(|name| named(name).cid().hash).collect();
    for name in 1..3 {
        block_on(store.put(named(name))).expect("there is room");
    }
    // The first of two deletions gets to the file, the second does not: neither is done.
    disk.fail(Fault::Write, 0);
    assert!(matches!(block_on(store.remove(hashes.clone())), Err(StoreError::NoSpace { .. })));
    assert_eq!(block_on(store.put(named(1))).expect("it is here"), Put::Known);
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..100 {
        let store = reopen(&disk.state().cut(Leaves::Some, &mut random)).expect("it opens");
        assert!(store.entry(&hashes[0]).expect("it reads").is_some(), "it was acknowledged after the deletion failed");
    }
}

#[test]
fn a_segment_goes_only_when_the_index_on_disk_is_past_it() {
    let disk = TestDisk::new();
    let store = reopen(&disk).expect("it opens");
    let gone: Vec<_> = (0..5).map(|seed| chunk(seed, 1000)).collect();
    batch(&store, gone.iter().map(|chunk| Request::Put(chunk.clone())).collect());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let states = Arc::clone(&seen);
    disk.watch(move |state| states.lock().expect("nothing panics under it").push(state.clone()));
    // Its deletions are in the next segment; the index is behind for a moment, at the end of the first.
    let hashes = gone.iter().map(|chunk| chunk.cid().hash).collect();
    batch(&store, vec![Request::Remove(hashes), Request::Put(chunk(9, 1500))]);
    let states = std::mem::take(&mut *seen.lock().expect("nothing panics under it"));
    assert!(states.len() > 5, "{}", states.len());
    for state in states {
        let disk = TestDisk::killed(&state);
        let store = reopen(&disk).expect("it opens");
        compact(&store, &(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT)).expect("it compacts");
        let disk = disk.state().cut(Leaves::Nothing, &mut StdRng::seed_from_u64(1));
        let before = disk.index_node(Path::new(ROOT));
        let store = reopen(&disk).expect("it opens");
        assert_eq!(disk.index_node(Path::new(ROOT)), before, "the index was made anew");
        assert_eq!(store.damaged(None, 9).expect("it reads"), [], "what was removed is not damaged");
    }
}
