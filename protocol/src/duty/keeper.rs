//! The loop: what changed is compared, what is missing fetched, what is over freed.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use super::{
    Audited, EXTRA, Input, Moment, Output, Pulled, Row, Scanned, Settings, Span, View,
    audits::Audits,
    collection::{Collection, Due},
    counts::Counts,
    facts::{Facts, Turned},
    pulls::{Answer, Pulls},
    sweep::Sweep,
    yields::Yields,
};
use crate::{chance::Chance, key::Key, machine::StateMachine};

/// A store that is fuller than this share takes nothing more, until it is emptier than [`ROOMY`].
pub const FULL: f64 = 0.95;
const ROOMY: f64 = 0.85;
/// From here on cached copies are given up, until there is room again.
const TIGHT: f64 = 0.90;
/// A disk that refused a chunk, whatever it should have room for, is tried again after so long; and so is a peer that did
/// not answer for what it has.
const REFUSED_AGAIN: Duration = Duration::from_secs(600);
/// Neighbours that are compared with, as a multiple of the peers that share a chunk.
const NEIGHBOURHOOD: usize = 2;

/// What a row is to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It should hold the chunk: it is of the nearest, or a user pinned it here.
    Duty,
    /// Something lists it, and others should hold it.
    Cached,
    /// Nothing lists it.
    Unlisted,
}

/// The loop as a machine; see the [module](super).
#[derive(Debug)]
pub struct Keeper {
    settings: Settings,
    view: View,
    facts: Facts,
    chance: Chance,
    most_copies: u8,
    used: f64,
    full: bool,
    /// The disk refused a chunk, and has been as full as this since: it counts as full until then, or until there is more
    /// room.
    refused: Option<(Instant, f64)>,
    leaving: bool,
    sweep: Sweep,
    pulls: Pulls,
    audits: Audits,
    yields: Yields,
    requests: u64,
    collection: Collection,
    counts: Counts,
    outputs: VecDeque<Output>,
}

impl Keeper {
    /// Of a node that starts now, at `moment` of its own clock. `storing`: it takes chunks.
    pub fn new(local: PeerId, storing: bool, settings: Settings, now: Instant, moment: Moment, chance: Chance) -> Self {
        Self {
            settings,
            view: View::new(local, storing, settings.repair_delay),
            facts: Facts::default(),
            chance,
            most_copies: 1,
            used: 0.0,
            full: false,
            refused: None,
            leaving: false,
            sweep: Sweep::new(now),
            pulls: Pulls::new(now, settings.repair_bytes_per_second),
            audits: Audits::new(settings.audit_interval, settings.repair_delay),
            yields: Yields::default(),
            requests: 0,
            collection: Collection::new(settings.grace, now, moment),
            counts: Counts::default(),
            outputs: VecDeque::new(),
        }
    }

    /// The time of this node's own clock.
    pub fn moment(&self, now: Instant) -> Moment {
        self.collection.moment(now)
    }

    /// Who could hold chunks.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether this node's own store has no room, as it says in its greeting.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Chunks that this node should hold, here or not, as each part of the keyspace was looked at last.
    pub fn duty(&self) -> u64 {
        self.counts.total()
    }

    /// What was unlisted before this may be freed once its grace is over; `None`: nothing may, something cannot be read.
    pub fn freeable_before(&self, now: Instant) -> Option<Moment> {
        self.collection.freeable_before(now, &self.view)
    }

    /// The most copies that anything live wants.
    pub fn most_copies(&self) -> u8 {
        self.most_copies
    }

    /// Chunks that are missing and in hand, being fetched, and known to be lacked by a peer that should have them.
    pub fn in_hand(&self) -> (usize, usize, usize) {
        (self.pulls.len(), self.pulls.in_flight(), self.facts.lacking())
    }

    /// Whether nothing is under way that is not waiting for a time.
    pub fn is_idle(&self) -> bool {
        self.outputs.is_empty() && self.sweep.is_idle() && self.pulls.len() == 0
    }

    /// What a row is to this node now.
    pub fn role(&self, now: Instant, key: &Key, row: &Row) -> Role {
        match row.copies() {
            // Whatever else lists it, and whoever else has it: also where this node takes on no share.
            _ if row.is_pinned() => Role::Duty,
            0 => Role::Unlisted,
            copies if self.is_duty(now, key, copies) => Role::Duty,
            _ => Role::Cached,
        }
    }

    fn is_duty(&self, now: Instant, key: &Key, copies: u8) -> bool {
        let k = usize::from(copies);
        let nearer = self.view.nearer(key);
        if !self.view.is_storing() || self.leaving || nearer >= k + EXTRA {
            return false;
        }
        // Nearly always it ends here: a look at who is nearer is for those that may have to step in.
        if nearer < k || !(self.view.has_doubts() || self.facts.knows(key)) {
            return nearer < k;
        }
        let local = self.view.local();
        let nearest = self.view.ranking().nearest(key, k + EXTRA);
        let nearer = nearest.iter().take_while(|peer| **peer != local);
        nearer.filter(|peer| self.is_credible(now, key, peer)).count() < k
    }

    fn is_credible(&self, now: Instant, key: &Key, peer: &PeerId) -> bool {
        if self.view.is_liar(peer) {
            return false;
        }
        self.facts.is_held(key, peer)
            || !(self.view.is_full(peer) || self.facts.is_lacking(now, key, peer, self.settings.repair_delay))
    }

    /// Peers came, went or count otherwise: what they are near to is compared again.
    fn viewed(&mut self, now: Instant, changed: &[Key]) {
        if changed.is_empty() {
            return;
        }
        self.collection.stir();
        let count = usize::from(self.most_copies) + EXTRA + 1;
        let mine = self.view.reach().within(count);
        let mut near = false;
        for key in changed {
            let common = mine.and(&self.view.reach_of(*key).within(count));
            near |= !common.is_empty();
            self.sweep.mark_all(&common);
        }
        self.yields.forget(now);
        let neighbours = self.view.neighbours(NEIGHBOURHOOD * count);
        self.audits.set(now, &neighbours, &mut self.chance);
        self.facts.neighbours(&neighbours);
        if near {
            self.audits.reset(now, &mut self.chance);
        }
    }

    fn scanned(&mut self, now: Instant, scan: u64, rows: &[Scanned], ended: bool) {
        let last = rows.last().map(|row| row.key);
        let Some(looked) = self.sweep.take(scan, last, ended) else { return };
        let (mut free, mut duty) = (Vec::new(), Vec::new());
        let moment = self.moment(now);
        // A look at all peers, which most scans do not need.
        let barrier =
            rows.iter().any(|one| one.held && !one.row.is_needed()).then(|| self.collection.barrier(now, &self.view));
        for scanned in rows.iter().filter(|scanned| looked.contains(&scanned.key)) {
            let Scanned { key, row, held } = scanned;
            let role = self.role(now, key, row);
            if role == Role::Duty {
                duty.push(*key);
            }
            if *held || role != Role::Duty {
                self.pulls.remove(key);
            }
            match (role, held) {
                (Role::Duty, false) => self.miss(key, row),
                (Role::Cached, true) if self.needs_room() => self.offer_up(now, key, row),
                (Role::Unlisted, true) if self.collection.is_over(row, moment, barrier.unwrap_or_default()) => {
                    free.push(row.entry)
                }
                _ => {}
            }
        }
        self.counts.looked(&looked, duty);
        self.pulls.settle(&looked);
        if !free.is_empty() {
            self.outputs.push_back(Output::Free(free));
        }
    }

    /// A chunk that this node should hold is not here.
    fn miss(&mut self, key: &Key, row: &Row) {
        if self.full {
            return;
        }
        if !self.pulls.has_room() {
            self.sweep.mark(Span::of(*key));
            return;
        }
        let local = self.view.local();
        let mut members = self.view.ranking().nearest(key, usize::from(row.copies()) + EXTRA);
        members.retain(|peer| *peer != local && self.view.is_connected(peer));
        self.pulls.add(*key, row.entry, (row.copies(), row.is_pinned()), &members);
    }

    /// A cached copy may go, once its replica set proved that it has it.
    fn offer_up(&mut self, now: Instant, key: &Key, row: &Row) {
        let k = usize::from(row.copies());
        let members = self.view.ranking().nearest(key, k);
        let fit = |peer: &PeerId| {
            *peer != self.view.local()
                && self.view.is_connected(peer)
                && !self.view.is_liar(peer)
                && !self.facts.is_lacking(now, key, peer, Duration::ZERO)
        };
        if members.len() < k || !members.iter().all(fit) {
            return;
        }
        // In view for long enough, and not one that did not answer just now.
        let ready = members.iter().filter_map(|peer| {
            let settled = self.view.since(peer)? + self.settings.probation;
            Some(settled.max(self.yields.shunned(peer).unwrap_or(settled)))
        });
        match ready.max() {
            Some(at) if at > now => self.yields.later(at),
            // Those that are in hand come first.
            Some(_) if !self.yields.has_room() => self.yields.later(now),
            Some(_) => self.yields.add(*key, row.entry, &members),
            None => {}
        }
    }

    /// Looks at every row where something may be freed, and has catalogues compared where that is waited for.
    fn collect(&mut self, now: Instant) {
        match self.collection.due(now, &self.view) {
            Some(Due::Look) => self.sweep.pass(now),
            Some(Due::Compare(peers)) => self.outputs.extend(peers.into_iter().map(Output::Compare)),
            None => {}
        }
    }

    fn answered(&mut self, now: Instant, request: u64, has: Option<&[bool]>) {
        let Some(Answer { peer, said, answered }) = self.pulls.answer(request, has) else { return };
        for (key, has) in said {
            match has {
                Some(true) => self.facts.has(key, peer),
                Some(false) => self.facts.lacks(now, key, peer),
                None => {}
            }
        }
        for one in answered {
            if one.pinned || self.is_duty(now, &one.key, one.copies) {
                self.pulls.ready(one.key);
            } else {
                self.pulls.remove(&one.key);
            }
        }
    }

    fn audited(&mut self, now: Instant, peer: PeerId, outcome: Audited) {
        let calm = outcome == Audited::Equal;
        self.audits.done(now, &peer, calm, &mut self.chance);
        match outcome {
            Audited::Equal => self.facts.forget_peer(&peer),
            Audited::Lacks { keys, filling } => {
                self.facts.audited(now, peer, keys, filling, self.settings.repair_delay)
            }
            Audited::Lied(keys) => self.lied(now, peer, keys),
            Audited::Apart | Audited::Failed => {}
        }
    }

    fn lied(&mut self, now: Instant, peer: PeerId, keys: Vec<Key>) {
        keys.into_iter().for_each(|key| self.facts.lacks(now, key, peer));
        let changed = self.view.lied(now, &peer, self.settings.probation);
        self.viewed(now, &changed);
    }

    fn space(&mut self, now: Instant, used: u64, capacity: u64) {
        let needed = self.needs_room();
        self.used = if capacity == 0 { 1.0 } else { used as f64 / capacity as f64 };
        if let Some((_, at)) = &mut self.refused {
            // It may have filled up further: there is more room once it is emptier than ever since.
            *at = at.max(self.used);
        }
        self.fill(now);
        if self.needs_room() && !needed {
            self.sweep.pass(now);
        }
    }

    /// Whether cached copies are to be given up.
    fn needs_room(&self) -> bool {
        self.used >= TIGHT || self.full
    }

    /// Whether there is room follows from the use of the disk, and from what the disk refused.
    fn fill(&mut self, now: Instant) {
        self.refused.take_if(|(until, at)| *until <= now || self.used <= *at * (ROOMY / FULL));
        let before = self.full;
        self.full = self.refused.is_some() || if self.full { self.used > ROOMY } else { self.used >= FULL };
        match (before, self.full) {
            (false, true) => self.pulls.clear(),
            (true, false) => {
                self.pulls.hurry(now);
                self.sweep.pass(now);
            }
            _ => {}
        }
    }

    /// All that follows from what was taken in.
    fn go_on(&mut self, now: Instant) {
        let delay = self.settings.repair_delay;
        for key in self.facts.ripe(now, delay) {
            self.sweep.mark(Span::of(key));
        }
        for Turned { key, peer, had } in self.facts.turned() {
            if !had || self.view.is_full(&peer) {
                self.sweep.mark(Span::of(key));
            }
        }
        for key in self.pulls.due(now) {
            self.sweep.mark(Span::of(key));
        }
        if self.sweep.next_pass() <= now || (self.needs_room() && self.yields.is_due(now)) {
            self.sweep.pass(now);
        }
        self.collect(now);
        for peer in self.audits.due(now, |peer| self.view.is_connected(peer)) {
            self.outputs.push_back(Output::Audit(peer));
        }
        while let Some((peer, entries)) = self.pulls.ask(self.requests + 1) {
            self.requests += 1;
            self.outputs.push_back(Output::Ask { request: self.requests, peer, entries });
        }
        while let Some((peer, entries)) = self.yields.ask(self.requests + 1) {
            self.requests += 1;
            self.outputs.push_back(Output::Prove { request: self.requests, peer, entries });
        }
        while let Some((entry, from)) = self.pulls.pull(now) {
            self.outputs.push_back(Output::Pull { entry, from });
        }
        if self.pulls.has_room()
            && let Some((scan, span)) = self.sweep.begin()
        {
            self.outputs.push_back(Output::Scan { scan, span });
        }
    }
}

impl StateMachine for Keeper {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Heard(peer) => {
                let came = !self.view.is_connected(&peer);
                let changed = self.view.heard(now, peer, true);
                self.viewed(now, &changed);
                if came {
                    self.pulls.hurry(now);
                }
            }
            Input::Remembered(peer) => {
                let changed = self.view.heard(now, peer, false);
                self.viewed(now, &changed);
            }
            Input::Said(peer, said) => {
                if self.view.is_full(&peer) && !said.full {
                    // It has room again and fetches its share: what it lacks counts from when it is found to lack it.
                    self.facts.forget_peer(&peer);
                }
                let changed = self.view.said(now, peer, said);
                self.viewed(now, &changed);
            }
            Input::Left(peer, heard) => {
                let changed = self.view.left(now, &peer, heard);
                self.viewed(now, &changed);
            }
            Input::Space { used, capacity } => self.space(now, used, capacity),
            Input::MostCopies(copies) => {
                if copies > self.most_copies {
                    self.sweep.pass(now);
                }
                self.most_copies = copies;
            }
            Input::Rows { scan, rows, ended } => self.scanned(now, scan, &rows, ended),
            Input::Holdings { request, has } => self.answered(now, request, has.as_deref()),
            Input::Pulled(key, outcome) => {
                self.pulls.pulled(now, &key, outcome == Pulled::Kept, &mut self.chance);
                if outcome == Pulled::NoSpace {
                    let needed = self.needs_room();
                    self.refused = Some((now + REFUSED_AGAIN, self.used));
                    self.fill(now);
                    if !needed {
                        self.sweep.pass(now);
                    }
                }
            }
            Input::Proved { request, proved } => {
                if let Some((peer, go, failed)) = self.yields.answer(request, proved.as_deref()) {
                    failed.iter().for_each(|key| self.facts.lacks(now, *key, peer));
                    if proved.is_none() {
                        self.yields.shun(peer, now + REFUSED_AGAIN);
                    }
                    if !go.is_empty() {
                        self.outputs.push_back(Output::GiveUp(go));
                    }
                }
            }
            Input::Audited(peer, outcome) => self.audited(now, peer, outcome),
            Input::Reconciled(peer, begun) => self.collection.compared(peer, begun),
            Input::Changed(span) => self.sweep.mark(span),
            Input::Unlisted => self.collection.unlisted(now),
            Input::Unread(until) => self.collection.set_unread(until),
            Input::Leaving(leaving) => {
                self.leaving = leaving;
                self.pulls.clear();
                self.sweep.pass(now);
            }
        }
        self.go_on(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        let changed = self.view.update(now);
        self.viewed(now, &changed);
        self.collection.update(now);
        if self.refused.is_some_and(|(until, _)| until <= now) {
            self.fill(now);
        }
        self.go_on(now);
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let times = [
            (self.view.next(), "a peer has been away for long"),
            (self.facts.next(self.settings.repair_delay), "a peer has lacked a chunk for long"),
            (self.pulls.next(), "the next chunk may be fetched"),
            (self.audits.next(), "a neighbour is to be compared with"),
            (Some(self.sweep.next_pass()), "everything is to be compared"),
            (self.collection.next(), "a grace is over"),
            (self.refused.map(|(until, _)| until), "the disk may have room again"),
            (self.needs_room().then(|| self.yields.next()).flatten(), "cached copies may be proved"),
            (self.collection.unread(), "what could not be read does not count any more"),
        ];
        times.into_iter().filter_map(|(at, why)| Some((at?, why))).min_by_key(|(at, _)| *at)
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}
