//! The key table: against a model, through power cuts at every step, and when the index is lost.
//!
//! `P2P_TEST_SEED=7 cargo test -p p2p-node --lib store::tests::key_table` runs one seed of the power cuts.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use p2p_protocol::Key;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    super::*,
    chunk, directory,
    disk::{Fault, Leaves, State, TestDisk},
    power::{self, batch, seeds},
    run, until,
};

const ROOT: &str = "/store";
const PROGRESS: &[u8] = b"progress";
const NAMES: u8 = 8;

fn key(name: u8) -> Key {
    // At both ends of the keyspace too.
    Key([name.wrapping_mul(85); 32])
}

fn add(current: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    let sum = current.map_or(0, |current| current[0]).wrapping_add(operand[0]);
    // Nothing left: it goes.
    (sum != 0).then(|| vec![sum])
}

/// What the table has, with the progress that was written together with it; `None`: it is lost.
type Seen = Option<(u64, BTreeMap<Key, Bytes>, Option<Bytes>)>;

fn seen(store: &Store) -> Seen {
    let table = store.key_table();
    let generation = table.generation().expect("it reads");
    let entries: BTreeMap<_, _> = table.range(.., usize::MAX).expect("it reads").into_iter().collect();
    assert_eq!(table.entries().expect("it reads"), entries.len() as u64, "they are counted");
    let progress = table.note(PROGRESS).expect("it reads");
    generation.map(|generation| (generation, entries, progress))
}

/// The states that the table was in, from the last that is known to be on disk.
#[derive(Clone, Debug)]
pub(super) struct History {
    states: Vec<Seen>,
    number: u32,
}

impl History {
    /// It was never made.
    pub(super) fn lost() -> Self {
        Self { states: vec![None], number: 0 }
    }

    fn last(&self) -> Seen {
        self.states.last().cloned().flatten()
    }

    /// A change of `name`, and what the table is after it.
    pub(super) fn change(&mut self, name: u8, edit: Edit) -> TableChange {
        self.number += 1;
        let progress = Bytes::copy_from_slice(&self.number.to_be_bytes());
        let (generation, mut entries, _) = self.last().unwrap_or_default();
        let after = match &edit {
            Edit::Set(value) => Some(value.clone()),
            Edit::Remove => None,
            Edit::Merge(merge, operand) => merge(entries.get(&key(name)).map(|v| &v[..]), operand).map(Bytes::from),
        };
        match after {
            Some(value) => drop(entries.insert(key(name), value)),
            None => drop(entries.remove(&key(name))),
        }
        if self.last().is_some() {
            self.states.push(Some((generation, entries, Some(progress.clone()))));
        }
        let notes = vec![(Bytes::from_static(PROGRESS), Some(progress))];
        TableChange { generation, entries: vec![(key(name), edit)], notes }
    }

    /// The last state is on disk.
    pub(super) fn settle(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }

    /// It is lost, and that is on disk.
    fn lose(&mut self) {
        self.states = vec![None];
    }

    /// An empty one of this generation may be seen too.
    pub(super) fn expect_made(&mut self, generation: u64) {
        self.states.push(Some((generation, BTreeMap::new(), None)));
    }

    /// It is what the store says.
    pub(super) fn adopt(&mut self, store: &Store) {
        self.states = vec![seen(store)];
    }

    pub(super) fn check(&self, store: &Store, may_be_lost: bool, what: &str) {
        let seen = seen(store);
        let allowed = self.states.contains(&seen) || (may_be_lost && seen.is_none());
        assert!(allowed, "{what}: {seen:?} is none of {:?}, lost: {may_be_lost}", self.states);
    }
}

pub(super) fn edit(random: &mut StdRng) -> Edit {
    match random.random_range(0..4) {
        0 => Edit::Remove,
        1 => Edit::Merge(add, vec![random.random_range(0..3)].into()),
        _ => Edit::Set(vec![random.random(); 40].into()),
    }
}

fn reopen(disk: &TestDisk) -> Store {
    power::open(&(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT)).expect("it opens")
}

fn check(state: &State, history: &History, faults: bool, random: &mut StdRng, what: &str) {
    let cuts = [TestDisk::killed(state), state.cut(Leaves::Nothing, random), state.cut(Leaves::Some, random)];
    for (disk, kind) in cuts.into_iter().zip(["killed", "nothing left", "some left"]) {
        history.check(&reopen(&disk), faults, &format!("{what}, {kind}"));
        let disk = TestDisk::killed(&disk.state());
        disk.remove_directory(&Path::new(ROOT).join("index")).expect("it is removed");
        assert_eq!(seen(&reopen(&disk)), None, "{what}: with the index it is lost");
    }
}

/// Makes the table anew with some entries; their state counts from the end on.
fn rebuild(store: &Store, history: &Mutex<History>, random: &mut StdRng) -> Result<bool, StoreError> {
    let mut rebuild = store.key_table().rebuild()?;
    let mut names: Vec<u8> = (0..NAMES).filter(|_| random.random()).collect();
    names.sort_by_key(|name| key(*name));
    let note = (Bytes::from_static(PROGRESS), Bytes::copy_from_slice(&random.random::<[u8; 4]>()));
    let entries = names.iter().map(|name| (key(*name), Bytes::from(vec![*name; 3])));
    let state = (rebuild.generation(), entries.clone().collect(), Some(note.1.clone()));
    history.lock().expect("nothing panics under it").states.push(Some(state));
    for (key, value) in entries {
        rebuild.push(key, value)?;
    }
    rebuild.finish(&[note])
}

/// Runs random work, with faults or without, and looks at every step of it.
fn work(seed: u64, faults: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = TestDisk::new();
    let store = reopen(&disk);
    let history = Arc::new(Mutex::new(History::lost()));
    let now = || history.lock().expect("nothing panics under it");
    assert_eq!(seen(&store), None, "a new one is lost: it has to be made");
    assert!(!store.key_table().apply(&TableChange::default()).expect("it answers"), "and takes no change");
    let (watched, mut chance) = (Arc::clone(&history), StdRng::seed_from_u64(seed ^ 1));
    let mut step = 0;
    disk.watch(move |state| {
        step += 1;
        let history = watched.lock().expect("nothing panics under it").clone();
        let what = format!("P2P_TEST_SEED={seed}, faults {faults}, step {step}");
        check(state, &history, faults, &mut chance, &what);
    });
    for round in 0..60_u64 {
        if faults && random.random_bool(0.2) {
            disk.fail([Fault::Sync, Fault::IndexSync][random.random_range(0..2)], random.random_range(0..2));
        }
        let name = random.random_range(0..NAMES);
        let lost = now().last().is_none();
        // Whether it was done, and on disk.
        let outcome = match random.random_range(0..11) {
            kind if lost || kind == 0 => rebuild(&store, &history, &mut random),
            1..4 => {
                let change = now().change(name, edit(&mut random));
                assert!(store.key_table().apply(&change).expect("applying syncs nothing"));
                continue;
            }
            4 => batch(&store, vec![Request::Flush]).remove(0).map(|_| true),
            5..8 => {
                let change = now().change(name, edit(&mut random));
                batch(&store, vec![Request::Table(change)]).remove(0).map(|answer| answer == Answer::Table(true))
            }
            8..10 => {
                let change = now().change(name, edit(&mut random));
                let put = Request::PutWith(chunk(round, 100), change);
                let answer = batch(&store, vec![put]).remove(0);
                answer.map(|answer| answer == Answer::PutWith(Put::New, true))
            }
            _ => {
                let stale = TableChange { generation: 7, ..now().clone().change(name, Edit::Remove) };
                assert!(!store.key_table().apply(&stale).expect("it answers"), "it was for another generation");
                continue;
            }
        };
        assert!(faults || matches!(outcome, Ok(true)), "{outcome:?}");
        if store.key_table().generation().is_err() {
            // The index failed; the next commit makes it again.
            batch(&store, vec![Request::Flush]);
        }
        match seen(&store) {
            None => now().lose(),
            found => {
                let done = matches!(outcome, Ok(true));
                if !done && now().last() != found {
                    // It was refused.
                    now().states.pop();
                }
                assert_eq!(now().last(), found, "P2P_TEST_SEED={seed}, round {round}");
                if done {
                    now().settle();
                }
                let all = store.with(|table| table.index().range(&[7], &[8], usize::MAX)).expect("it reads").len();
                assert_eq!(
                    all,
                    now().last().map_or(0, |(_, entries, _)| entries.len() + 1),
                    "no other generation stays"
                );
            }
        }
    }
}

#[test]
fn a_power_cut_leaves_the_key_table_in_a_state_that_it_had_since_the_last_sync() {
    seeds().into_iter().for_each(|seed| work(seed, false));
}

#[test]
fn a_failed_sync_costs_the_key_table_and_says_so() {
    seeds().into_iter().for_each(|seed| work(seed, true));
}

#[derive(Clone, Debug)]
enum Step {
    Edit(u8, Option<u8>, bool),
    Merge(u8, u8),
    Note(u8, Option<u8>),
    Rebuild(Vec<u8>),
    Reopen,
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..NAMES, any::<Option<u8>>(), any::<bool>()).prop_map(|(name, value, synced)| Step::Edit(name, value, synced)),
        4 => (0..NAMES, 0..4u8).prop_map(|(name, operand)| Step::Merge(name, operand)),
        2 => (0..3u8, any::<Option<u8>>()).prop_map(|(name, value)| Step::Note(name, value)),
        1 => proptest::collection::vec(0..NAMES, 0..8).prop_map(Step::Rebuild),
        1 => Just(Step::Reopen),
        1 => Just(Step::Lose),
    ]
}

async fn play(path: Option<&Path>, steps: &[Step]) {
    let mut store = path.map_or_else(|| Store::in_memory(1 << 40), super::open);
    let (mut model, mut notes) = (BTreeMap::<Key, Bytes>::new(), BTreeMap::<Bytes, Bytes>::new());
    for step in steps {
        let table = store.key_table();
        let generation = match table.generation().expect("it reads") {
            Some(generation) => generation,
            None => {
                let rebuild = table.rebuild().expect("it begins");
                let generation = rebuild.generation();
                assert!(rebuild.finish(&[]).expect("it is made"));
                generation
            }
        };
        let mut change = TableChange { generation, ..TableChange::default() };
        match step {
            Step::Edit(name, value, synced) => {
                let value = value.map(|value| Bytes::from(vec![value; usize::from(value) % 65]));
                // The second of two edits of a key sees the first.
                change.entries.push((key(*name), Edit::Set(vec![9].into())));
                change.entries.push((key(*name), value.clone().map_or(Edit::Remove, Edit::Set)));
                match value {
                    Some(value) => drop(model.insert(key(*name), value)),
                    None => drop(model.remove(&key(*name))),
                }
                let done = if *synced { table.commit(change).await } else { table.apply(&change) };
                assert!(done.expect("it writes"));
            }
            Step::Merge(name, operand) => {
                let operand = Bytes::from(vec![*operand]);
                let current = model.get(&key(*name)).filter(|value| !value.is_empty());
                match add(current.map(|value| &value[..]), &operand) {
                    Some(sum) => drop(model.insert(key(*name), sum.into())),
                    None => drop(model.remove(&key(*name))),
                }
                let merge: Merge = |current, operand| add(current.filter(|value| !value.is_empty()), operand);
                change.entries.push((key(*name), Edit::Merge(merge, operand)));
                assert!(table.apply(&change).expect("it writes"));
            }
            Step::Note(name, value) => {
                let (name, value) = (Bytes::from(vec![*name; 9]), value.map(|value| Bytes::from(vec![value; 9])));
                match value.clone() {
                    Some(value) => drop(notes.insert(name.clone(), value)),
                    None => drop(notes.remove(&name)),
                }
                change.notes.push((name, value));
                assert!(table.apply(&change).expect("it writes"));
            }
            Step::Rebuild(names) => {
                (model, notes) = Default::default();
                model.extend(names.iter().map(|name| (key(*name), Bytes::from(vec![*name]))));
                let given_up = table.rebuild().expect("it begins");
                let mut rebuild = table.rebuild().expect("it begins");
                for (key, value) in &model {
                    assert!(rebuild.push(*key, value.clone()).expect("it is in order"));
                }
                assert!(!given_up.finish(&[]).expect("it answers"), "another has begun");
                assert!(rebuild.finish(&[]).expect("it is made"));
            }
            Step::Reopen | Step::Lose => {
                let Some(path) = path else { continue };
                store.close().await.expect("it closes");
                if matches!(step, Step::Lose) {
                    std::fs::remove_dir_all(path.join("index")).expect("it is there");
                    (model, notes) = Default::default();
                }
                store = super::open(path);
                let generation = store.key_table().generation().expect("it reads");
                assert_eq!(generation.is_none(), matches!(step, Step::Lose), "it is known to be lost");
            }
        }
        compare(&store.key_table(), &model, &notes);
    }
    store.close().await.expect("it closes");
}

fn compare(table: &KeyTable, model: &BTreeMap<Key, Bytes>, notes: &BTreeMap<Bytes, Bytes>) {
    let expected: Vec<_> = model.iter().map(|(key, value)| (*key, value.clone())).collect();
    assert_eq!(table.range(.., usize::MAX).expect("it reads"), expected);
    assert_eq!(table.entries().expect("it reads"), expected.len() as u64);
    let expected: Vec<_> = notes.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    assert_eq!(table.notes(None, 9).expect("it reads"), expected);
    for name in 0..NAMES {
        let (key, other) = (key(name), key(name.wrapping_add(3)));
        assert_eq!(table.get(&key).expect("it reads").as_ref(), model.get(&key));
        let count = |range: Vec<(Key, Bytes)>| range.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        if key <= other {
            let within = model.range(key..=other).map(|(key, _)| *key).take(2).collect::<Vec<_>>();
            assert_eq!(count(table.range(key..=other, 2).expect("it reads")), within);
        }
        let behind = (std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded);
        let after = model.range(behind).map(|(key, _)| *key).collect::<Vec<_>>();
        assert_eq!(count(table.range(behind, 99).expect("it reads")), after);
        let before = model.range(..key).map(|(key, _)| *key).collect::<Vec<_>>();
        assert_eq!(count(table.range(..key, 99).expect("it reads")), before);
    }
    let first = notes.keys().next().map(|name| &name[..]);
    let after = table.notes(first, 1).expect("it reads").pop().map(|(name, _)| name);
    assert_eq!(after.as_ref(), notes.keys().nth(1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_key_table_does_what_the_model_does(steps in proptest::collection::vec(step(), 1..30)) {
        run(async {
            play(None, &steps).await;
            let directory = directory();
            play(Some(directory.path()), &steps).await;
        });
    }
}

fn spread(number: u64) -> Key {
    Key(*blake3::hash(&number.to_be_bytes()).as_bytes())
}

/// Makes the table anew with an entry for each of `numbers`.
fn fill(table: &KeyTable, numbers: std::ops::Range<u64>) {
    let mut rebuild = table.rebuild().expect("it begins");
    let mut keys: Vec<_> = numbers.map(spread).collect();
    keys.sort_unstable();
    keys.iter().for_each(|key| assert!(rebuild.push(*key, Bytes::from_static(b"value")).expect("it loads")));
    assert!(matches!(rebuild.push(keys[0], Bytes::new()), Err(StoreError::Io { .. })), "the keys ascend");
    assert!(rebuild.finish(&[]).expect("it is made"));
}

#[test]
fn a_generation_that_begins_while_others_are_swept_away_keeps_its_entries() {
    run(async {
        let directory = directory();
        let store = super::open(directory.path());
        let table = store.key_table();
        for round in 0..300 {
            fill(&table, round * 10..(round + 1) * 10);
            assert_eq!(table.range(.., usize::MAX).expect("it reads").len(), 10);
        }
        store.close().await.expect("it closes");
    });
}

#[test]
fn what_is_over_a_bound_is_refused_and_the_old_generation_goes_in_the_background() {
    run(async {
        let directory = directory();
        let store = super::open(directory.path());
        let table = store.key_table();
        fill(&table, 0..3000);
        fill(&table, 3000..7000);
        let in_index = || store.with(|table| table.index().range(&[7], &[8], usize::MAX)).expect("it reads").len();
        until("the sweep", || in_index() == 4000).await;
        assert_eq!(table.entries().expect("it reads"), 4000);
        assert_eq!(table.get(&spread(1)).expect("it reads"), None);
        let generation = table.generation().expect("it reads").expect("it was made");
        let value = Bytes::from(vec![0; MAX_TABLE_VALUE_BYTES + 1]);
        let many = (0..=MAX_TABLE_CHANGES as u64).map(|number| (spread(number), Edit::Remove)).collect();
        let note = (Bytes::from_static(b"note"), Some(Bytes::from(vec![0; MAX_NOTE_BYTES + 1])));
        let change = TableChange { generation, ..TableChange::default() };
        for bad in [
            TableChange { entries: vec![(spread(1), Edit::Set(value))], ..change.clone() },
            TableChange { entries: many, ..change.clone() },
            TableChange { notes: vec![note], ..change },
        ] {
            assert!(matches!(table.apply(&bad), Err(StoreError::Io { .. })), "{bad:?}");
            assert!(matches!(table.commit(bad).await, Err(StoreError::Io { .. })));
        }
        assert_eq!(table.entries().expect("it reads"), 4000);
        store.close().await.expect("it closes");
    });
}

#[test]
fn a_key_table_that_lost_an_entry_is_lost_as_a_whole() {
    run(async {
        let directory = directory();
        let store = super::open(directory.path());
        let mut rebuild = store.key_table().rebuild().expect("it begins");
        assert!(rebuild.push(key(0), Bytes::from_static(b"value")).expect("it loads"));
        assert!(rebuild.push(key(1), Bytes::from_static(b"value")).expect("it loads"));
        assert!(rebuild.finish(&[]).expect("it is made"));
        store.put(chunk(1, 100)).await.expect("there is room");
        // As an index that was killed after a sync that failed.
        let found = store.with(|table| table.index().range(&[7], &[8], 1)).expect("it reads");
        store.with(|table| table.index().apply(vec![(found[0].0.to_vec(), None)])).expect("it writes");
        store.close().await.expect("it closes");
        super::unclean(directory.path());
        let store = super::open(directory.path());
        assert_eq!(store.key_table().generation().expect("it reads"), None);
        assert!(store.entry(&chunk(1, 100).cid().hash).expect("it reads").is_some());
        assert!(!directory.path().join("index.aside").exists(), "the index itself is sound");
        store.close().await.expect("it closes");
    });
}

#[test]
fn which_keys_have_a_chunk_is_what_each_says_however_dense_they_are() {
    run(async {
        let store = Store::in_memory(1 << 30);
        let keys = |numbers: std::ops::Range<u64>| numbers.map(|number| Key::from(&chunk(number, 20).cid().hash));
        for number in 0..500 {
            store.put(chunk(number, 20)).await.expect("there is room");
        }
        // All that are here, few of many, some and others, one, and none.
        for (every, numbers) in [(1, 0..500), (40, 0..500), (3, 250..2000), (1, 499..500), (1, 500..700), (1, 0..0)] {
            let mut asked: Vec<_> = keys(numbers).step_by(every).collect();
            asked.sort_unstable();
            let here: std::collections::BTreeSet<_> = keys(0..500).collect();
            let expected: Vec<_> = asked.iter().map(|key| here.contains(key)).collect();
            assert_eq!(store.present(&asked).expect("it reads"), expected, "every {every}");
        }
    });
}
