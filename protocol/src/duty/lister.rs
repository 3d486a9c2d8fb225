//! Which manifests are read over which part of the keyspace, so that the wanted table says what the catalogue does.
//!
//! Each publication covers what it was read over; what it should cover is this node's [part](super::parts) of the
//! keyspace, and that moves as peers come and go. Rows name their references, so that to read twice is to read once.
//!
//! A pin is listed like a publication, with [`PIN`] for its copies: its part is all of the keyspace, wherever this node
//! stands.
//!
//! What a publication lists is kept while there is something to do for it; of one that is [at rest](super::rest) it is
//! asked for again ([`Output::Tell`]).
//!
//! Of a publication that lists its few entries itself nobody writes down what it was read over: an earlier run left a
//! [`Roll`] of what was live when all of it was read, and what differs from that is read again ([`Input::Doubt`]).

mod events;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::events::{Input, Listed, Output};
use super::{
    PIN, Roll, SEEN_GRACES, Spans,
    parts::{Moved, Parts},
    reach::Reach,
    rest::{Cover, Rest},
};
use crate::{machine::StateMachine, manifest::Listing};

/// After a manifest that could not be read; it doubles to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Manifests that are read at once, or looks at every row.
const MOST_READS: usize = 4;
/// Publications that are read at once, with those that list their few entries themselves: what one step of the disk takes
/// together.
const MOST_AT_ONCE: usize = 256;
/// How many may be [pending](Lister::pending): what a publication lists is kept until it is read, some 300 bytes. Those
/// beyond are at rest meanwhile, and asked for again.
pub const MOST_PENDING: usize = 4096;
/// Publications whose references are taken off by one look at every row.
const PURGED_AT_ONCE: usize = 4096;

#[derive(Debug)]
struct Publication {
    listed: Listed,
    /// What it was read over, as far as that is kept.
    covered: Arc<Spans>,
    /// Where there may be references to it.
    touched: Arc<Spans>,
    /// It is not live any more: its references are to go.
    gone: bool,
    /// In which round it was told last.
    round: u16,
    first_seen: Instant,
    reading: Option<Reading>,
    tries: u32,
    /// It could not be read, and is tried again then.
    again: Option<Instant>,
}

impl Publication {
    /// One that is live and was not looked at yet.
    fn new(listed: Listed, covered: Arc<Spans>, touched: Arc<Spans>, first_seen: Instant) -> Self {
        Self { listed, covered, touched, gone: false, round: 0, first_seen, reading: None, tries: 0, again: None }
    }
}

/// What is under way for a publication.
#[derive(Debug)]
struct Reading {
    list: bool,
    covers: Arc<Spans>,
    /// By its manifest, or a look at every row.
    long: bool,
}

/// What is read when.
#[derive(Debug)]
pub struct Lister {
    grace: Duration,
    parts: Parts,
    /// Those that something is to be done for, or was not done.
    publications: BTreeMap<u64, Publication>,
    /// The others.
    rest: Rest,
    /// Those at rest that are to be compared with their rows.
    comparing: BTreeSet<u64>,
    /// Counts how often all that is live was told from the start.
    round: u16,
    /// Some at rest are to be told again; it was asked for.
    to_tell: bool,
    telling: bool,
    /// When the first input came: what is at rest counts seconds from then.
    began: Option<Instant>,
    /// Those with something to do: now, or after a wait; those that are being read are in neither.
    ready: BTreeSet<u64>,
    waiting: BTreeSet<(Instant, u64)>,
    reading: usize,
    /// Of those that are being read: with something to fetch, or a look at every row.
    reading_long: usize,
    /// Those that are live and have something to do, or are being read, by when they were first seen.
    unread_since: BTreeSet<(Instant, u64)>,
    unread: Option<Instant>,
    /// Of all that are live.
    roll: Roll,
    outputs: VecDeque<Output>,
}

impl Lister {
    /// Nothing is live yet. `grace`: of the settings; `parts`: what an earlier run kept, by copies.
    pub fn new(grace: Duration, parts: BTreeMap<u8, Arc<Spans>>) -> Self {
        Self {
            grace,
            parts: Parts::new(parts),
            publications: BTreeMap::new(),
            rest: Rest::default(),
            comparing: BTreeSet::new(),
            round: 0,
            to_tell: false,
            telling: false,
            began: None,
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            reading: 0,
            reading_long: 0,
            unread_since: BTreeSet::new(),
            unread: None,
            roll: Roll::new(0),
            outputs: VecDeque::new(),
        }
    }

    /// The same with a salt for its [`roll`](Self::roll): that of the roll that an earlier run left.
    #[must_use]
    pub fn salted(self, salt: u64) -> Self {
        Self { roll: Roll::new(salt), ..self }
    }

    /// What is live, pins too.
    pub fn roll(&self) -> &Roll {
        &self.roll
    }

    /// The most copies that a live publication wants.
    pub fn most_copies(&self) -> u8 {
        self.parts().keys().copied().max().unwrap_or(1)
    }

    /// The parts of the keyspace whose rows are kept, by copies.
    pub fn parts(&self) -> &BTreeMap<u8, Arc<Spans>> {
        self.parts.by_copies()
    }

    /// Whether all that is live was read.
    pub fn is_idle(&self) -> bool {
        let told = !self.to_tell && !self.telling && self.rest.last_lacking().is_none();
        self.reading == 0 && self.ready.is_empty() && self.waiting.is_empty() && told
    }

    /// How many are to be read now: who tells of more may wait while they are many.
    pub fn pending(&self) -> usize {
        self.reading + self.ready.len()
    }

    fn moved(&mut self, reach: Reach) {
        let first = !self.parts.is_known();
        let moved = self.parts.moved(reach);
        for Moved { copies, part, narrowed } in &moved {
            if *narrowed {
                self.outputs.push_back(Output::Narrowed { copies: *copies, spans: part.clone() });
            }
            self.to_tell |= self.rest.moved(*copies, part);
        }
        let mut opened: Vec<u64> = if first { self.publications.keys().copied().collect() } else { Vec::new() };
        // Most publications cover the part that there was: each of those is worked out once.
        let mut kept: BTreeMap<(u8, *const Spans), (Arc<Spans>, bool)> = BTreeMap::new();
        for (id, known) in &mut self.publications {
            let copies = known.listed.copies;
            let Some(Moved { part, .. }) = moved.iter().find(|moved| moved.copies == copies) else { continue };
            let place = (copies, Arc::as_ptr(&known.covered));
            let (covered, complete) = kept
                .entry(place)
                .or_insert_with(|| {
                    let covered = known.covered.and(part);
                    let complete = part.without(&covered).is_empty();
                    (Arc::new(covered), complete)
                })
                .clone();
            known.covered = covered;
            if !complete {
                opened.push(*id);
            }
        }
        opened.into_iter().for_each(|id| self.open(id));
    }

    /// There is something to do for a publication.
    fn open(&mut self, id: u64) {
        let Some(known) = self.publications.get(&id) else { return };
        let since = (known.first_seen, id);
        if known.gone {
            self.unread_since.remove(&since);
        } else {
            self.unread_since.insert(since);
        }
        // Once what is under way is done it is looked at again.
        if known.reading.is_none() && known.again.is_none() {
            self.ready.insert(id);
        }
    }

    /// There is nothing to do for a publication.
    fn close(&mut self, id: u64) {
        self.ready.remove(&id);
        let Some(known) = self.publications.get(&id) else { return };
        self.unread_since.remove(&(known.first_seen, id));
        // Pins are few, and told once.
        let stays = known.listed.copies == PIN;
        if !stays && !known.gone && known.reading.is_none() && known.again.is_none() {
            let seen = self.seconds(known.first_seen);
            let (covered, touched) = (known.covered.clone(), known.touched.clone());
            let cover = Cover { copies: known.listed.copies, covered, touched, complete: true, doubtful: false };
            if self.rest.put(id, cover, seen, known.round) {
                self.publications.remove(&id);
            }
        }
    }

    /// A time as what is at rest has it.
    fn seconds(&self, at: Instant) -> u32 {
        let seconds = self.began.map_or(0, |began| at.saturating_duration_since(began).as_secs());
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// See [`seconds`](Self::seconds); less than a second too early.
    fn instant(&self, now: Instant, seconds: u32) -> Instant {
        self.began.map_or(now, |began| began + Duration::from_secs(u64::from(seconds)))
    }

    /// A publication is live, or is told to be once more.
    fn live(&mut self, now: Instant, listed: Listed, covered: Arc<Spans>, doubtful: bool) {
        let (id, copies) = (listed.publication, listed.copies);
        let compared = self.comparing.remove(&id);
        self.rest.told(id, self.round);
        if self.rest.get(id).is_some_and(|cover| cover.complete && !compared) {
            return;
        }
        let full = self.pending() >= MOST_PENDING;
        if full && self.rest.get(id).is_some() {
            self.to_tell = true;
            if compared {
                self.comparing.insert(id);
            }
            return;
        }
        if let Some((cover, seen)) = self.rest.take(id) {
            // Until what is only compared is read its rows stand: nothing waits for it.
            let covered = if cover.complete { Arc::default() } else { cover.covered };
            let known = Publication::new(listed, covered, cover.touched, self.instant(now, seen));
            self.publications.insert(id, Publication { round: self.round, ..known });
            if cover.complete {
                self.ready.insert(id);
            } else {
                self.open(id);
            }
            return;
        }
        if let Some(known) = self.publications.get_mut(&id) {
            known.round = self.round;
            // It was restored before its references were gone, perhaps by those who did not know what it lists.
            if std::mem::take(&mut known.gone) {
                self.roll.toggle(id);
                known.listed = listed;
                self.open(id);
            }
            return;
        }
        self.roll.toggle(id);
        let part = self.parts.of(copies);
        let touched = covered.clone();
        let covered = if *covered == *part { part.clone() } else { Arc::new(covered.and(&part)) };
        // All of it was read in an earlier run.
        let complete = !covered.is_empty() && part.without(&covered).is_empty();
        if (full && !complete || doubtful && complete) && copies != PIN {
            let cover = Cover { copies, covered: covered.clone(), touched: touched.clone(), complete, doubtful };
            if self.rest.put(id, cover, self.seconds(now), self.round) {
                self.to_tell |= !complete;
                return;
            }
        }
        let (covered, complete) = if doubtful { (Arc::default(), false) } else { (covered, complete) };
        let known = Publication::new(listed, covered, touched, now);
        self.publications.insert(id, Publication { round: self.round, ..known });
        if complete { self.close(id) } else { self.open(id) }
    }

    /// A publication is not live any more.
    fn gone(&mut self, now: Instant, id: u64, listed: Option<Listed>) {
        self.comparing.remove(&id);
        if let Some((cover, seen)) = self.rest.take(id) {
            // What it listed is looked for in every row where it is not known any more.
            let tries = u32::from(listed.is_none());
            let listed = listed.unwrap_or_else(|| Listed::unknown(id, cover.copies));
            let known = Publication::new(listed, cover.covered, cover.touched, self.instant(now, seen));
            self.publications.insert(id, Publication { tries, ..known });
        }
        if let Some(known) = self.publications.get_mut(&id) {
            if !std::mem::replace(&mut known.gone, true) {
                self.roll.toggle(id);
            }
            if let Some(again) = known.again.take() {
                self.waiting.remove(&(again, id));
            }
            self.open(id);
        }
    }

    /// What was never told to be live, or is gone and was not read, or is done with, and is named all the same: it has no
    /// manifest to go by.
    fn named(&mut self, now: Instant, id: u64) {
        if self.rest.get(id).is_some() {
            return;
        }
        if let Some(known) = self.publications.get_mut(&id) {
            if known.gone && known.touched.is_empty() {
                (known.touched, known.tries) = (Arc::new(Spans::all()), 1);
            }
            return;
        }
        let listed = Listed::unknown(id, self.most_copies());
        let known = Publication::new(listed, Arc::default(), Arc::new(Spans::all()), now);
        // As after a manifest that could not be read.
        self.publications.insert(id, Publication { gone: true, tries: 1, ..known });
        self.open(id);
    }

    /// It is read again as if it had never been. Until then its rows stand: nothing waits for it.
    fn compare(&mut self, id: u64) {
        if self.rest.get(id).is_some_and(|cover| !cover.covered.is_empty()) {
            self.comparing.insert(id);
            self.to_tell = true;
            return;
        }
        let Some(known) = self.publications.get_mut(&id) else { return };
        if known.gone || known.reading.is_some() || known.again.is_some() || known.covered.is_empty() {
            return;
        }
        known.covered = Arc::default();
        self.ready.insert(id);
    }

    /// All that is live was told.
    fn told(&mut self, now: Instant) {
        self.telling = false;
        // What was to be compared and was not told is not live any more.
        if !self.to_tell {
            self.comparing.clear();
        }
        let stale = |known: &Publication| !known.gone && known.round != self.round && known.listed.copies != PIN;
        let open = self.publications.iter().filter(|(_, known)| stale(known)).map(|(id, _)| *id);
        for id in open.chain(self.rest.not_told(self.round)).collect::<Vec<_>>() {
            self.gone(now, id, None);
        }
    }

    fn go_on(&mut self, now: Instant) {
        while let Some(&(again, id)) = self.waiting.first()
            && again <= now
        {
            self.waiting.pop_first();
            if let Some(known) = self.publications.get_mut(&id) {
                known.again = None;
                self.ready.insert(id);
            }
        }
        while self.parts.is_known()
            && self.reading < MOST_AT_ONCE
            && self.reading_long < MOST_READS
            && let Some(id) = self.ready.pop_first()
        {
            self.read(id);
        }
        let last = self.unread_since.last().map(|(seen, _)| *seen);
        // Seconds were cut off.
        let lacking = self.rest.last_lacking().map(|seconds| self.instant(now, seconds.saturating_add(1)));
        let until = last.max(lacking).map(|seen| seen + self.grace * SEEN_GRACES).filter(|until| *until > now);
        if until != self.unread {
            self.unread = until;
            self.outputs.push_back(Output::Unread(until));
        }
        if self.parts.is_known() && self.to_tell && !self.telling {
            (self.to_tell, self.telling) = (false, true);
            self.outputs.push_back(Output::Tell);
        }
    }

    fn read(&mut self, id: u64) {
        let Some(copies) = self.publications.get(&id).map(|known| known.listed.copies) else { return };
        let part = self.parts.of(copies);
        let Some(known) = self.publications.get_mut(&id) else { return };
        if known.gone && known.touched.is_empty() {
            self.close(id);
            self.publications.remove(&id);
            return;
        }
        // All of it was read in an earlier run.
        if !known.gone && !known.covered.is_empty() && part.without(&known.covered).is_empty() {
            self.close(id);
            return;
        }
        let (list, listed) = (!known.gone, known.listed.clone());
        let covers = if list { part } else { Arc::default() };
        let purged = !list && known.tries > 0;
        let long = purged || matches!(listed.listing, Listing::Manifest(_));
        known.reading = Some(Reading { list, covers: covers.clone(), long });
        self.reading += 1;
        self.reading_long += usize::from(long);
        if purged {
            self.purge(id);
            return;
        }
        let spans = if list { Arc::new(covers.without(&known.covered)) } else { known.touched.clone() };
        if list {
            known.touched = Arc::new(known.touched.iter().chain(spans.iter()).collect());
        }
        self.outputs.push_back(Output::Read { listed, spans, list, covers });
    }

    /// Has references taken off by a look at every row, and those to others that want the same.
    fn purge(&mut self, id: u64) {
        let purged = |known: &Publication| known.gone && known.tries > 0 && !known.touched.is_empty();
        let others = self.ready.iter().filter(|id| self.publications.get(id).is_some_and(purged));
        let others: Vec<u64> = others.take(PURGED_AT_ONCE - 1).copied().collect();
        for other in &others {
            self.ready.remove(other);
            if let Some(known) = self.publications.get_mut(other) {
                known.reading = Some(Reading { list: false, covers: Arc::default(), long: true });
                self.reading += 1;
                self.reading_long += 1;
            }
        }
        self.outputs.push_back(Output::Purge([vec![id], others].concat()));
    }

    fn done(&mut self, now: Instant, id: u64, complete: bool) {
        let part = self.publications.get(&id).map(|known| known.listed.copies).map(|copies| self.parts.of(copies));
        let (Some(known), Some(part)) = (self.publications.get_mut(&id), part) else { return };
        let Some(Reading { list, covers, long }) = known.reading.take() else { return };
        self.reading -= 1;
        self.reading_long -= usize::from(long);
        if !complete {
            let wait = FIRST_WAIT.saturating_mul(1 << known.tries.min(16)).min(LONGEST_WAIT);
            known.tries += 1;
            if known.gone {
                // What is gone is taken off by a look at every row instead.
                self.open(id);
            } else {
                known.again = Some(now + wait);
                self.waiting.insert((now + wait, id));
            }
            return;
        }
        known.tries = 0;
        if list {
            known.covered = if Arc::ptr_eq(&covers, &part) { covers } else { Arc::new(covers.and(&part)) };
            if !known.gone && part.without(&known.covered).is_empty() {
                self.close(id);
            } else {
                self.open(id);
            }
        } else if known.gone {
            self.close(id);
            self.publications.remove(&id);
        } else {
            // Restored meanwhile: it is read anew.
            (known.covered, known.touched) = Default::default();
            self.open(id);
        }
    }
}

impl StateMachine for Lister {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Instant, input: Input) {
        self.began.get_or_insert(now);
        match input {
            Input::Live { listed, covered, doubtful } => self.live(now, listed, covered, doubtful),
            Input::Gone { publication, listed } => self.gone(now, publication, listed),
            // Two rounds are taken for one only if 65,535 between them were broken off.
            Input::Telling => self.round = self.round.wrapping_add(1),
            Input::Told => self.told(now),
            Input::Look => {
                let live = self.publications.iter().filter(|(_, known)| !known.gone).map(|(id, _)| *id);
                let mut live: Vec<u64> = live.chain(self.rest.ids()).collect();
                live.sort_unstable();
                self.outputs.push_back(Output::Live(live));
            }
            Input::Completed(ids) => ids.into_iter().for_each(|id| self.done(now, id, true)),
            Input::Failed(ids) => ids.into_iter().for_each(|id| self.done(now, id, false)),
            Input::Named(ids) => ids.into_iter().for_each(|id| self.named(now, id)),
            Input::Compare(ids) => ids.into_iter().for_each(|id| self.compare(id)),
            Input::Doubt(roll) => {
                let differing = self.roll.differing(&roll);
                self.to_tell |= self.rest.doubt(differing);
                if differing != 0 {
                    self.outputs.push_back(Output::Drifted);
                }
            }
            Input::Moved(reach) => self.moved(reach),
            Input::Done { publication, complete } => self.done(now, publication, complete),
        }
        self.go_on(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.go_on(now);
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let again = self.waiting.first().map(|(at, _)| (*at, "a manifest is to be read again"));
        let unread = self.unread.map(|at| (at, "what could not be read does not count any more"));
        again.into_iter().chain(unread).min_by_key(|(at, _)| *at)
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}

#[cfg(test)]
#[path = "lister_tests.rs"]
mod tests;
