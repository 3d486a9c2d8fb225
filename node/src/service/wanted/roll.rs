//! What was live when everything was read, on disk, so that the next start knows which rows need not be looked at again.
//!
//! A note of what each publication was read over would be as large as its row. Those that list their few entries
//! themselves, which are nearly all, have none. One note says what was live when all of it was read over this node's parts
//! of the keyspace (a [`Roll`]). Before a reference is taken off, what it says of that publication is taken back: as long
//! as it stands, rows name at least what it says. Before the first reference that comes since it is noted that there may
//! be more.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use p2p_protocol::duty::Roll;

use super::{Note, Wanted};
use crate::store::{KeyTable, StoreError};

/// The note of the roll, behind the first eight bytes of the hash of the parts that it was read over.
const ROLL: &[u8] = b"roll";
/// The note that references came since.
const SINCE: &[u8] = b"roll/since";

/// What is noted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Noted {
    /// What was live when all of it was read.
    pub roll: Roll,
    /// Whether references may have come since.
    pub since: bool,
    parts: [u8; 8],
}

/// What is on disk of it.
#[derive(Debug)]
pub(super) struct Standing(Mutex<State>);

#[derive(Clone, Debug)]
enum State {
    Nothing,
    Noted(Box<Noted>),
    /// It could not be changed: it counts no more, and goes with the next change.
    Wrong,
}

impl Standing {
    pub(super) fn read(keys: &KeyTable) -> Result<Self, StoreError> {
        Ok(Self(Mutex::new(read(keys)?.map_or(State::Nothing, |noted| State::Noted(Box::new(noted))))))
    }

    /// Nothing is noted: the table is another one.
    pub(super) fn lost(&self) {
        *self.lock() = State::Nothing;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // It is one value: a panic leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What is to be noted before a reference is listed.
    fn listing(&mut self) -> Option<Note> {
        match self {
            Self::Noted(noted) if !noted.since => {
                noted.since = true;
                Some((SINCE.into(), Some(Bytes::new())))
            }
            _ => self.wrong(),
        }
    }

    /// What is to be noted before references to these are taken off.
    fn unlisting(&mut self, publications: impl IntoIterator<Item = u64>) -> Option<Note> {
        match self {
            Self::Noted(noted) => noted.roll.forget(publications).then(|| (ROLL.into(), Some(encode(noted)))),
            _ => self.wrong(),
        }
    }

    /// What is to be noted before rows are left out, or parts move.
    fn moving(&mut self) -> Option<Note> {
        if !matches!(self, Self::Nothing) {
            *self = Self::Wrong;
        }
        self.wrong()
    }

    fn wrong(&mut self) -> Option<Note> {
        matches!(self, Self::Wrong).then(|| (ROLL.into(), None))
    }
}

impl Wanted {
    /// What was live when all of it was read over the parts of the keyspace as they are noted; `None`: that is not known.
    ///
    /// # Errors
    ///
    /// The store's.
    pub fn roll(&self) -> Result<Option<Noted>, StoreError> {
        let parts = self.parts_hash()?;
        match &*self.inner.roll.lock() {
            State::Noted(noted) if noted.parts == parts => Ok(Some((**noted).clone())),
            _ => Ok(None),
        }
    }

    /// Notes that all of this is live and was read over the parts as they are noted, and that rows name nothing else.
    /// Nothing may be listed or unlisted meanwhile. Blocks.
    ///
    /// # Errors
    ///
    /// The store's: then nothing is noted.
    pub fn note_roll(&self, roll: &Roll) -> Result<(), StoreError> {
        let noted = Noted { roll: roll.clone(), since: false, parts: self.parts_hash()? };
        let notes = vec![(ROLL.into(), Some(encode(&noted))), (SINCE.into(), None)];
        let mut state = self.inner.roll.lock();
        *state = State::Wrong;
        self.apply(Vec::new(), notes)?;
        *state = State::Noted(Box::new(noted));
        Ok(())
    }

    /// A reference will be listed.
    pub(super) fn before_listing(&self) -> Result<(), StoreError> {
        self.before(State::listing)
    }

    /// References to these will be taken off.
    pub(super) fn before_unlisting(&self, publications: impl IntoIterator<Item = u64>) -> Result<(), StoreError> {
        self.before(|state| state.unlisting(publications))
    }

    /// Rows will be left out that are outside of some part, or a part moves.
    pub(super) fn before_moving(&self) -> Result<(), StoreError> {
        self.before(State::moving)
    }

    /// A batch of the index is on disk with all before it, or not at all.
    fn before(&self, note: impl FnOnce(&mut State) -> Option<Note>) -> Result<(), StoreError> {
        let mut state = self.inner.roll.lock();
        let Some(note) = note(&mut state) else { return Ok(()) };
        let gone = note.1.is_none();
        match self.apply(Vec::new(), vec![note]) {
            Ok(()) if gone => *state = State::Nothing,
            Ok(()) => {}
            Err(error) => {
                *state = State::Wrong;
                return Err(error);
            }
        }
        Ok(())
    }

    fn parts_hash(&self) -> Result<[u8; 8], StoreError> {
        let mut hasher = blake3::Hasher::new();
        for (copies, part) in self.parts()? {
            let part = part.to_bytes();
            // A part is a note: some hundred bytes.
            hasher.update(&[copies]).update(&(part.len() as u64).to_be_bytes()).update(&part);
        }
        let mut hash = [0; 8];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Ok(hash)
    }
}

fn encode(noted: &Noted) -> Bytes {
    [&noted.parts[..], &noted.roll.to_bytes()].concat().into()
}

fn read(keys: &KeyTable) -> Result<Option<Noted>, StoreError> {
    let Some(note) = keys.note(ROLL)? else { return Ok(None) };
    let since = keys.note(SINCE)?.is_some();
    let noted = note.split_first_chunk::<8>().and_then(|(parts, roll)| {
        let roll = Roll::from_bytes(roll)?;
        Some(Noted { roll, since, parts: *parts })
    });
    Ok(noted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use p2p_protocol::{
        Cid, Codec,
        duty::{Reference, Span, Spans},
        manifest::Entry,
    };

    use super::*;
    use crate::{service::wanted::Few, store::Store};

    fn entry(number: u64) -> Entry {
        Entry { cid: Cid::of(Codec::Raw, &number.to_be_bytes()), length: 8 }
    }

    fn few(publication: u64, list: bool) -> Few {
        let entry = entry(publication);
        Few { reference: Reference { publication, copies: 3 }, entries: vec![(entry.key(), entry)], list }
    }

    /// What a node finds that starts now.
    fn found(store: &Store) -> Option<Noted> {
        Wanted::open(store.clone()).expect("it opens").roll().expect("it reads")
    }

    /// A table in which these are listed, and noted.
    fn listed(publications: &[u64]) -> (Store, Wanted, Roll) {
        let store = Store::in_memory(1 << 30);
        let wanted = Wanted::open(store.clone()).expect("it opens");
        assert!(wanted.make().expect("it is made") && found(&store).is_none());
        wanted.set_part(3, &Spans::all()).expect("it writes");
        wanted.note_few(publications.iter().map(|publication| few(*publication, true))).expect("it writes");
        let mut roll = Roll::new(11);
        publications.iter().for_each(|publication| roll.toggle(*publication));
        wanted.note_roll(&roll).expect("it writes");
        let noted = found(&store).expect("it is noted");
        assert!(noted.roll == roll && !noted.since);
        (store, wanted, roll)
    }

    #[test]
    fn what_is_listed_since_is_noted_and_what_is_taken_off_is_taken_back_before() {
        let (store, wanted, roll) = listed(&[1, 2, 3]);
        wanted.note_few([few(9, true)]).expect("it writes");
        let noted = found(&store).expect("it is noted");
        assert!(noted.roll == roll && noted.since);

        let taken_back = |publication: u64| {
            let mut roll = roll.clone();
            assert!(roll.forget([publication]));
            found(&store).is_some_and(|noted| noted.roll == roll)
        };
        wanted.note_few([few(2, false)]).expect("it writes");
        assert!(taken_back(2));
        wanted.note_roll(&roll).expect("it writes");
        assert!(found(&store).is_some_and(|noted| noted.roll == roll && !noted.since), "it counts from then");
        wanted.unlist(1, [entry(1).key()]).expect("it writes");
        assert!(taken_back(1));
        wanted.note_roll(&roll).expect("it writes");
        wanted.purge(&BTreeSet::from([3])).expect("it writes");
        assert!(taken_back(3));
        wanted.note_roll(&roll).expect("it writes");
        wanted.list(Reference { publication: 12, copies: 3 }, &[(entry(12).key(), entry(12))]).expect("it writes");
        assert!(found(&store).is_some_and(|noted| noted.since));
    }

    #[test]
    fn it_counts_for_the_parts_that_all_was_read_over_and_for_their_table() {
        let half: Spans = [Span { to: None, from: entry(0).key() }].into_iter().collect();
        let (store, wanted, roll) = listed(&[1, 2]);
        wanted.set_part(3, &half).expect("it writes");
        assert_eq!(found(&store), None);
        // And not when the part is again what it was: rows were left out meanwhile.
        wanted.set_part(3, &Spans::all()).expect("it writes");
        assert_eq!(found(&store), None);
        wanted.note_roll(&roll).expect("it writes");
        wanted.narrow(&half).expect("it writes");
        assert_eq!(found(&store), None);
        wanted.note_roll(&roll).expect("it writes");
        assert!(wanted.make().expect("it is made"));
        assert_eq!((found(&store), wanted.roll().expect("it reads")), (None, None));
    }
}
