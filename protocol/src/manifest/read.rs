//! Reading a range of a manifest: which of its chunks is needed next, and what it lists. Pure: it fetches nothing.

use std::{collections::VecDeque, ops::Range};

use super::{
    Child, LEAF_ENTRIES, Leaf, MAX_MALFORMED, Malformed, Manifest, Place, Shape, Step, Unasked,
    search::{Search, share},
};
use crate::{Chunk, Key};

/// Inner nodes that are remembered: a path from the root has three at most, and a search that guessed wrong comes back to
/// one of the last. 64 KiB each.
const REMEMBERED_NODES: usize = 6;
/// Leaves that are remembered: those that a search looked at are often the next to be listed. 10 KiB each.
const REMEMBERED_LEAVES: usize = 6;

/// Lists what a manifest has in a range of keys, reading little beside what it lists: the inner nodes above, and a leaf
/// or two to find the beginning; whatever the keys are, at most about twice the logarithm of the number of leaves.
///
/// Call [`next_step`](Self::next_step) until it is [`Step::Done`], and answer each [`Step::Want`] by
/// [`supply`](Self::supply) or [`lacking`](Self::lacking). What is listed ascends, over all steps; so a reader that was
/// left at any time is made anew from the last key listed on. A malformed part is told and lists nothing, and what
/// stands beside it is listed all the same.
#[derive(Debug)]
pub struct RangeReader {
    shape: Shape,
    root: Child,
    from: Key,
    /// Not included; the end of the keyspace without one.
    to: Option<Key>,
    state: State,
    wanted: Option<Child>,
    /// One malformed part, and perhaps that it was the last: two at most.
    told: VecDeque<Step>,
    nodes: Recent<Place, Vec<Child>>,
    leaves: Recent<u64, Leaf>,
    /// Leaves, by number, that list nothing; apart from each other and ascending. At most one more for each malformed or
    /// lacking part that the state may still meet.
    unreadable: Vec<Range<u64>>,
    malformed: u32,
    bytes_read: u64,
}

#[derive(Debug)]
enum State {
    Search(Search),
    /// Leaves from `at` on are listed; `after` is the last key of the nearest before it that was read.
    Scan {
        at: u64,
        after: Option<Key>,
    },
    Done,
}

impl RangeReader {
    /// Reads the keys from `from` up to `to`, which is not included (none: to the end of the keyspace).
    ///
    /// # Errors
    ///
    /// No manifest has so many entries, or such a root.
    pub fn new(manifest: &Manifest, from: Key, to: Option<Key>) -> Result<Self, Malformed> {
        let shape = Shape::new(manifest.entries)?;
        let root = shape.root_of(manifest)?;
        let empty = to.is_some_and(|to| to <= from);
        let state = if empty { State::Done } else { State::Search(Search::new(from, manifest.entries)) };
        Ok(Self {
            shape,
            root,
            from,
            to,
            state,
            wanted: None,
            told: VecDeque::new(),
            nodes: Recent::new(REMEMBERED_NODES),
            leaves: Recent::new(REMEMBERED_LEAVES),
            unreadable: Vec::new(),
            malformed: 0,
            bytes_read: 0,
        })
    }

    /// What is next. [`Step::Want`] is said again until it was answered, everything else once.
    pub fn next_step(&mut self) -> Step {
        loop {
            if let Some(told) = self.told.pop_front() {
                return told;
            }
            let step = match &self.state {
                State::Search(search) => match search.found() {
                    Some(at) => {
                        self.state = State::Scan { at, after: search.after() };
                        None
                    }
                    None => self.search(),
                },
                State::Scan { at, after } => self.scan(*at, *after),
                State::Done => Some(Step::Done),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// Answers [`Step::Want`] with its chunk.
    ///
    /// # Errors
    ///
    /// It is not the one that was asked for last; nothing has changed.
    pub fn supply(&mut self, chunk: &Chunk) -> Result<(), Unasked> {
        let wanted = self.wanted.take_if(|wanted| wanted.entry.cid == *chunk.cid()).ok_or(Unasked(*chunk.cid()))?;
        self.bytes_read += chunk.len() as u64;
        let place = wanted.place;
        let read = if place.level > 0 {
            self.shape.children(place, chunk).map(|children| self.nodes.put(place, children))
        } else if chunk.len() == wanted.entry.length as usize {
            Leaf::decode(chunk.bytes()).map(|leaf| self.leaves.put(place.index, leaf))
        } else {
            Err(Malformed("a leaf has another length"))
        };
        if read.is_err() {
            self.refuse(place);
        }
        Ok(())
    }

    /// Answers [`Step::Want`] where the chunk cannot be had: what is below it is left out, and the rest goes on.
    pub fn lacking(&mut self) {
        if let Some(wanted) = self.wanted.take() {
            self.leave_out(self.shape.leaves_under(wanted.place));
        }
    }

    /// Up to `limit` leaves that are likely to be wanted after the current one, for fetching them ahead. They are
    /// supplied in their turn like any other.
    pub fn ahead(&self, limit: usize) -> Vec<super::Entry> {
        let State::Scan { at, after } = &self.state else { return Vec::new() };
        let above = self.nodes.peek(|place| place.level == 1 && self.shape.leaves_under(*place).contains(at));
        let each = LEAF_ENTRIES as u64;
        let rest = self.shape.entries().saturating_sub(at * each);
        // One more than the even spread says, which is only the likely place.
        let leaves = self.to.map_or(rest, |to| share(&to, after.as_ref(), None, rest)) / each + 1;
        let likely = |child: &&Child| {
            let leaf = child.place.index;
            leaf > *at && leaf <= at.saturating_add(leaves) && !self.leaves.has(&leaf)
        };
        above.into_iter().flatten().filter(likely).take(limit).map(|child| child.entry).collect()
    }

    /// Bytes of the manifest's chunks that were supplied so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Looks at one more leaf to find where the range begins.
    fn search(&mut self) -> Option<Step> {
        let State::Search(search) = &self.state else { return None };
        let guess = search.guess();
        let (low, high) = search.in_question();
        let leaf = match self.left_out(guess) {
            None => guess,
            // Ranges that are left out never touch, so that what is next to one can be read.
            Some(out) if out.end < high => out.end,
            Some(out) if out.start > low => out.start - 1,
            Some(_) => {
                if let State::Search(search) = &mut self.state {
                    search.give_up();
                }
                return None;
            }
        };
        if let Some(want) = self.look(leaf) {
            return Some(want);
        }
        let State::Search(search) = &mut self.state else { return None };
        let read = self.leaves.get(&leaf)?;
        search.narrow(leaf, read.first(), read.last());
        None
    }

    /// Lists the leaf `at`, if it is read.
    fn scan(&mut self, at: u64, after: Option<Key>) -> Option<Step> {
        if at >= self.shape.leaves() {
            self.state = State::Done;
            return None;
        }
        if let Some(out) = self.left_out(at) {
            self.state = State::Scan { at: out.end, after };
            return None;
        }
        if let Some(want) = self.look(at) {
            return Some(want);
        }
        let leaf = self.leaves.take(&at)?;
        if leaf.check_between(after.as_ref(), None).is_err() {
            self.refuse(Place { level: 0, index: at });
            return None;
        }
        let last = leaf.last();
        let over = self.to.is_some_and(|to| last >= to);
        self.state = if over { State::Done } else { State::Scan { at: at + 1, after: Some(last) } };
        let mut entries = leaf.into_entries();
        entries.retain(|(key, _)| *key >= self.from && self.to.is_none_or(|to| *key < to));
        (!entries.is_empty()).then_some(Step::Listed(entries))
    }

    /// `None` if the leaf is remembered; else what is wanted to get there.
    fn look(&mut self, leaf: u64) -> Option<Step> {
        if self.leaves.get(&leaf).is_some() {
            return None;
        }
        let mut child = self.root;
        while let Some(children) = self.nodes.get(&child.place) {
            // Every leaf of the tree is below one child of each node on its way.
            child =
                *children.get(children.partition_point(|child| self.shape.leaves_under(child.place).end <= leaf))?;
        }
        self.wanted = Some(child);
        Some(Step::Want(child.entry))
    }

    /// What stands at `place` is malformed.
    fn refuse(&mut self, place: Place) {
        self.malformed += 1;
        self.told.push_back(Step::Malformed(place));
        self.leave_out(self.shape.leaves_under(place));
        if self.malformed >= MAX_MALFORMED && place != self.root.place {
            self.told.push_back(Step::Malformed(self.root.place));
            self.state = State::Done;
        }
    }

    fn leave_out(&mut self, mut out: Range<u64>) {
        if let State::Scan { at, .. } = self.state {
            // What is behind is never met again.
            self.unreadable.retain(|range| range.end > at);
        }
        self.unreadable.retain(|range| {
            let apart = range.end < out.start || range.start > out.end;
            if !apart {
                out = out.start.min(range.start)..out.end.max(range.end);
            }
            apart
        });
        self.unreadable.push(out);
    }

    /// The leaves around this one that list nothing, if it is one of them.
    fn left_out(&self, leaf: u64) -> Option<Range<u64>> {
        self.unreadable.iter().find(|range| range.contains(&leaf)).cloned()
    }
}

/// The last few that were used.
#[derive(Debug)]
struct Recent<K, V> {
    most: usize,
    /// The last used last.
    kept: Vec<(K, V)>,
}

impl<K: PartialEq, V> Recent<K, V> {
    fn new(most: usize) -> Self {
        Self { most, kept: Vec::with_capacity(most) }
    }

    fn put(&mut self, key: K, value: V) {
        self.take(&key);
        if self.kept.len() == self.most {
            self.kept.remove(0);
        }
        self.kept.push((key, value));
    }

    fn get(&mut self, key: &K) -> Option<&V> {
        let at = self.kept.iter().position(|(kept, _)| kept == key)?;
        self.kept[at..].rotate_left(1);
        self.kept.last().map(|(_, value)| value)
    }

    fn take(&mut self, key: &K) -> Option<V> {
        let at = self.kept.iter().position(|(kept, _)| kept == key)?;
        Some(self.kept.remove(at).1)
    }

    fn has(&self, key: &K) -> bool {
        self.kept.iter().any(|(kept, _)| kept == key)
    }

    fn peek(&self, is: impl Fn(&K) -> bool) -> Option<&V> {
        self.kept.iter().find(|(kept, _)| is(kept)).map(|(_, value)| value)
    }
}
