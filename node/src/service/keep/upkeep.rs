//! The keeper's world: peers as they come and go, and what is scanned, asked, fetched and freed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, OptionFuture, ready},
    stream::FuturesUnordered,
};
use p2p_protocol::{
    Key, PeerId,
    duty::{Bringer, Input, Keeper, Output, Pulled, Said, Settings, Span, reach::Reach},
    manifest::Entry,
};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        mpsc, watch,
    },
    time::{Interval, MissedTickBehavior, interval},
};

use super::{Around, Health, role::Question};
use crate::{
    runner::{World, now},
    service::{audit::Standing, sync::Compared, worker::Work},
    store::StoreError,
};

/// How often the clock is written down.
const MINUTE: Duration = Duration::from_secs(60);
/// How often the store is looked at: its room, what it found damaged, what came that nothing lists. Costs microseconds.
const LOOK: Duration = Duration::from_secs(10);
/// Peers that are tried for one chunk before anybody is.
const SOURCES: usize = 3;
/// Damaged chunks that are looked at in one minute: what is damaged beside them is found missing by the next look at
/// everything.
const DAMAGED: usize = 4096;

/// What runs for the keeper, and the inputs that it has not had.
pub(super) struct Upkeep<'a> {
    around: Around,
    settings: Settings,
    /// Its own, for the keeper to be told by others as long as it runs.
    _inputs: mpsc::Sender<Input>,
    incoming: mpsc::Receiver<Input>,
    compared: broadcast::Receiver<Compared>,
    topology: watch::Receiver<u64>,
    reach: watch::Sender<Option<Reach>>,
    /// Storing peers as the keeper knows them: connected, and what they said.
    peers: BTreeMap<PeerId, (bool, Said)>,
    waiting: VecDeque<Input>,
    /// Bounded by the machine.
    running: FuturesUnordered<BoxFuture<'static, Option<Input>>>,
    /// Bytes that are being fetched, and not in the store yet.
    pulling: Arc<AtomicU64>,
    minute: Interval,
    look: Interval,
    /// The first round of discovery, until it is over: before that it is not known where this node stands.
    discovering: Option<BoxFuture<'static, ()>>,
    /// What the machine wanted until then: a node that saw only some of its peers would fetch what is theirs. Bounded by
    /// the machine, which has a few looks and questions under way.
    held_back: Vec<Output>,
    health: Arc<Mutex<Health>>,
    questions: &'a mut mpsc::Receiver<Question>,
    /// Answered when the machine stands still.
    asked: Vec<Question>,
    /// As the keeper was told.
    leaving: bool,
    /// What audits were told of the view, by its changes, and of the most copies.
    stands: Option<(u64, u8)>,
    work: &'a Work,
}

impl<'a> Upkeep<'a> {
    pub(super) fn new(
        around: Around,
        settings: Settings,
        (inputs, incoming): (mpsc::Sender<Input>, mpsc::Receiver<Input>),
        reach: watch::Sender<Option<Reach>>,
        health: Arc<Mutex<Health>>,
        questions: &'a mut mpsc::Receiver<Question>,
        work: &'a Work,
    ) -> Self {
        let (compared, mut topology) = (around.sync.compared(), around.locate.changes());
        topology.mark_changed();
        let (mut minute, mut look) = (interval(MINUTE), interval(LOOK));
        minute.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let locate = around.locate.clone();
        let discovering = async move { locate.discovered().await }.boxed();
        Self {
            around,
            settings,
            _inputs: inputs,
            incoming,
            compared,
            topology,
            reach,
            peers: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: FuturesUnordered::new(),
            pulling: Arc::default(),
            minute,
            look,
            discovering: Some(discovering),
            held_back: Vec::new(),
            health,
            questions,
            asked: Vec::new(),
            leaving: false,
            stands: None,
            work,
        }
    }

    /// Tells the keeper what is different among the storing peers.
    fn follow(&mut self) {
        let leaving = self.around.transfer.is_leaving();
        if leaving != self.leaving {
            self.leaving = leaving;
            self.waiting.push_back(Input::Leaving(leaving));
        }
        let present: BTreeMap<_, _> =
            self.around.locate.storing().into_iter().map(|(peer, here, said)| (peer, (here, said))).collect();
        for (peer, (here, said)) in &present {
            let before = self.peers.get(peer).copied();
            if before == Some((*here, *said)) {
                continue;
            }
            // Away counts from the end of the connection, not from the last byte: a peer at rest says nothing for minutes,
            // and a restart must not find most of its delay used up.
            match (before.map(|(here, _)| here), here) {
                (Some(true), false) => self.waiting.push_back(Input::Left(*peer, now())),
                (None, false) => self.waiting.push_back(Input::Remembered(*peer)),
                _ => self.waiting.push_back(Input::Heard(*peer)),
            }
            self.waiting.push_back(Input::Said(*peer, *said));
        }
        for (peer, (here, _)) in &self.peers {
            if *here && !present.contains_key(peer) {
                self.waiting.push_back(Input::Left(*peer, now()));
            }
        }
        self.peers = present;
    }

    fn look_around(&mut self) {
        self.waiting.push_back(space(&self.around));
        if self.around.wanted.take_news() {
            self.waiting.push_back(Input::Unlisted);
        }
        match self.around.store.damaged(None, DAMAGED) {
            Ok(damaged) => {
                let spans = damaged.iter().map(|entry| Span::of(Key::from(&entry.cid.hash)));
                self.waiting.extend(spans.map(Input::Changed));
            }
            Err(error) => tracing::warn!(%error, "what is damaged cannot be read"),
        }
    }

    fn keep_time(&self) {
        if let Err(error) = self.around.wanted.keep_time() {
            tracing::warn!(%error, "the time could not be written down");
        }
    }
}

impl World<Keeper> for Upkeep<'_> {
    fn act(&mut self, output: Output) {
        if self.discovering.is_some() {
            self.held_back.push(output);
            return;
        }
        let around = self.around.clone();
        let grace = self.settings.grace;
        let doing = match output {
            Output::Scan { scan, span } => scan_rows(around, scan, span).boxed(),
            Output::Ask { request, peer, entries } => ask(around, request, peer, entries).boxed(),
            Output::Pull { entry, from } => match Room::take(&self.pulling, &around, entry.length) {
                Some(room) => pull(around, entry, from, room).boxed(),
                None => ready(Some(Input::Pulled(entry.key(), Pulled::NoSpace))).boxed(),
            },
            Output::Compare(peer) => async move {
                around.sync.compare(peer);
                None
            }
            .boxed(),
            Output::Free(entries) => free(around, entries, grace).boxed(),
            Output::Prove { request, peer, entries } => {
                async move { Some(Input::Proved { request, proved: around.audit.prove(peer, &entries).await }) }.boxed()
            }
            Output::Audit(peer) => async move { Some(Input::Audited(peer, around.audit.compare(peer).await)) }.boxed(),
            Output::GiveUp(entries) => {
                // As it stood when they were proved.
                let standing = around.audit.standing();
                give_up(around, entries, standing).boxed()
            }
        };
        self.running.push(doing);
    }

    async fn next(&mut self) -> Option<Input> {
        loop {
            if let Some(input) = self.waiting.pop_front() {
                return Some(input);
            }
            tokio::select! {
                changed = self.topology.changed() => {
                    changed.ok()?;
                    self.follow();
                }
                compared = self.compared.recv() => match compared {
                    Ok(Compared { peer, begun }) => return Some(Input::Reconciled(peer, begun)),
                    // One that is lost is made again where it is waited for.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                },
                Some(input) = self.incoming.recv() => return Some(input),
                // Before it is known who is there, nothing that is said would be true.
                Some(question) = self.questions.recv(), if self.discovering.is_none() => {
                    self.asked.push(question);
                    // An input, after which the machine is looked at.
                    return Some(space(&self.around));
                }
                Some(done) = self.running.next() => {
                    if let Some(Input::Pulled(_, Pulled::NoSpace)) = done {
                        self.waiting.push_back(space(&self.around));
                    }
                    self.waiting.extend(done);
                }
                Some(()) = OptionFuture::from(self.discovering.as_mut()) => {
                    self.discovering = None;
                    // Whoever is here counts as heard now: an input, after which the machine's view is looked at.
                    self.peers.clear();
                    self.follow();
                    self.look_around();
                    // What waits is told to the machine before any of these is answered.
                    std::mem::take(&mut self.held_back).into_iter().for_each(|output| self.act(output));
                }
                _ = self.minute.tick() => self.keep_time(),
                _ = self.look.tick() => self.look_around(),
            }
        }
    }

    fn settled(&mut self, machine: &Keeper) {
        if self.discovering.is_none() {
            let reach = machine.view().reach();
            self.reach.send_if_modified(|known| {
                let other = known.as_ref() != Some(reach);
                if other {
                    *known = Some(reach.clone());
                }
                other
            });
        }
        self.asked.drain(..).for_each(|question| question.answer(machine));
        let (wanting, fetching, lacking) = machine.in_hand();
        let cautious = machine.view().is_cautious();
        let health = Health { duty: machine.duty(), wanting, fetching, lacking, cautious };
        self.around.audit.lacking(wanting);
        let seen = (machine.view().changes(), machine.most_copies());
        if self.discovering.is_none() && self.stands != Some(seen) {
            self.stands = Some(seen);
            self.around.audit.stand(Standing { ranking: machine.view().ranking().clone(), most_copies: seen.1 });
            let known =
                |peer: &PeerId| Some((Bringer::from(peer), machine.view().since(peer)? + self.settings.probation));
            self.around.wanted.acquaint(self.peers.keys().filter_map(known));
        }
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
        if wanting == 0 {
            self.work.idle();
        } else {
            self.work.working(0, Some(wanting as u64));
        }
    }
}

/// What the chunks take and may take. A disk that others fill is part of what they may take, as in what peers are told:
/// who makes room on it ends the condition.
fn space(around: &Around) -> Input {
    let usage = around.store.usage();
    let capacity = usage.capacity_bytes.min(usage.bytes.saturating_add(usage.free_bytes));
    Input::Space { used: usage.bytes, capacity }
}

async fn scan_rows(around: Around, scan: u64, span: Span) -> Option<Input> {
    let wanted = around.wanted.clone();
    let step = move || wanted.scan(&span);
    match around.blocking.run(step).await.unwrap_or_else(|unfinished| Err(unfinished.into())) {
        Ok((rows, ended)) => Some(Input::Rows { scan, rows, ended }),
        Err(error) => {
            tracing::warn!(%error, "the table of what is wanted cannot be read");
            // It is looked at again with everything else.
            Some(Input::Rows { scan, rows: Vec::new(), ended: true })
        }
    }
}

async fn ask(around: Around, request: u64, peer: PeerId, entries: Vec<Entry>) -> Option<Input> {
    let hashes = entries.iter().map(|entry| entry.cid.hash).collect();
    let has = match around.transfer.holdings(peer, hashes).await {
        Ok(held) => Some(held.iter().map(Option::is_some).collect()),
        Err(error) => {
            tracing::debug!(%peer, %error, "a peer does not say what it has");
            None
        }
    };
    Some(Input::Holdings { request, has })
}

/// What a record takes beside its chunk, at most (`store`): a little too much harms nobody.
const BESIDE_BYTES: u64 = 256;

/// Room for a chunk that is being fetched: several are at once, and nothing is fetched that the store then refuses.
struct Room {
    pulling: Arc<AtomicU64>,
    bytes: u64,
}

impl Room {
    fn take(pulling: &Arc<AtomicU64>, around: &Around, length: u32) -> Option<Self> {
        let room = Self { pulling: Arc::clone(pulling), bytes: u64::from(length) + BESIDE_BYTES };
        let before = pulling.fetch_add(room.bytes, Ordering::Relaxed);
        // One that is not to be had gives its bytes back as it is dropped.
        (before + room.bytes <= around.store.usage().free_bytes).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.pulling.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Fetches a chunk and keeps it: from those that said that they have it, else from anybody.
async fn pull(around: Around, entry: Entry, from: Vec<PeerId>, _room: Room) -> Option<Input> {
    let key = entry.key();
    let mut found = None;
    for peer in from.into_iter().take(SOURCES) {
        if let Ok(Some(chunk)) = around.transfer.fetch(peer, entry.cid).await {
            found = Some(chunk);
            break;
        }
    }
    let copies = around.wanted.row(&key).ok().flatten().map_or(0, |row| row.copies());
    if found.is_none() {
        let job = around.fetch.begin(entry.cid, Vec::new(), copies.max(1));
        found = job.sized_chunk(entry.cid, entry.length.into()).await.ok().map(|(chunk, _)| chunk);
    }
    let Some(chunk) = found else { return Some(Input::Pulled(key, Pulled::Failed)) };
    let outcome = match around.wanted.put(chunk).await {
        Ok(_) => Pulled::Kept,
        Err(StoreError::NoSpace { .. }) => Pulled::NoSpace,
        Err(error) => {
            tracing::warn!(%error, cid = %entry.cid, "a missing chunk was fetched and could not be kept");
            Pulled::Failed
        }
    };
    Some(Input::Pulled(key, outcome))
}

/// Gives cached copies up that each of the k proved to have, unless a peer came or went since, or they are not cached any
/// more.
async fn give_up(around: Around, entries: Vec<Entry>, proved: Option<Arc<Standing>>) -> Option<Input> {
    let (audit, may_go) = (around.audit.clone(), may_go(proved, around.locate.local()));
    let may = |key: &Key, copies: u8| may_go(key, copies, audit.standing());
    match around.wanted.give_up(&entries, may).await {
        Ok(0) => {}
        Ok(given_up) => tracing::info!(chunks = given_up, "gave copies up that others proved to have"),
        Err(error) => tracing::warn!(%error, "copies that others have could not be given up"),
    }
    Some(space(&around))
}

/// Whether copies may go that were proved to somebody who stood so: nobody came or went since, and others are to hold as many
/// as are wanted by now.
fn may_go(proved: Option<Arc<Standing>>, local: PeerId) -> impl Fn(&Key, u8, Option<Arc<Standing>>) -> bool {
    let reach = proved.as_ref().map(|standing| standing.reach_of(&local));
    move |key, copies, now| {
        let same = now.zip(proved.as_ref()).is_some_and(|(now, then)| Arc::ptr_eq(&now, then));
        same && reach.as_ref().is_some_and(|reach| reach.nearer(key) >= usize::from(copies))
    }
}

async fn free(around: Around, entries: Vec<Entry>, grace: Duration) -> Option<Input> {
    match around.wanted.free(&entries, grace).await {
        Ok(0) => {}
        Ok(freed) => tracing::info!(chunks = freed, "freed what nothing lists any more"),
        Err(error) => tracing::warn!(%error, "what nothing lists could not be freed"),
    }
    None
}

#[cfg(test)]
mod tests {
    use p2p_protocol::{HashCode, Multihash, placement::Candidate, ranking::Ranking};

    use super::*;
    use crate::service::rig::peer;

    #[test]
    fn what_was_proved_goes_only_where_nobody_came_or_went_and_enough_others_are_nearer() {
        let all: Vec<PeerId> = (1..=5).map(peer).collect();
        let standing = || {
            let ranking = Ranking::new(all.iter().copied().map(Candidate::from));
            Arc::new(Standing { ranking, most_copies: 4 })
        };
        let (proved, another) = (standing(), standing());
        let key = Key::from(&Multihash::of(HashCode::Blake3, b"a chunk"));
        let order = proved.ranking.nearest(&key, 5);
        let goes = may_go(Some(proved.clone()), order[3]);
        assert!(goes(&key, 3, Some(proved.clone())));
        assert!(!goes(&key, 4, Some(proved.clone())), "more are wanted by now, and it is to hold one of them");
        assert!(!goes(&key, 3, Some(another)) && !goes(&key, 3, None), "somebody came or went");
        assert!(!may_go(None, order[3])(&key, 3, Some(proved)));
    }
}
