//! The lister's world: publications as they become live and cease to be, and manifests that are read.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered},
};
use p2p_protocol::{
    HashCode, Multihash,
    catalogue::Publication,
    duty::{
        self, PIN, Span, Spans,
        lister::{Input, Listed, Lister, Output},
        reach::Reach,
    },
    manifest::Listing,
};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        mpsc, oneshot, watch,
    },
    time::{sleep, sleep_until},
};

use super::{
    Around,
    compare::{self, Comparison, Drift},
    pins::{self, Pins},
    read::{Inline, Purpose, Reading, Touched},
};
use crate::{
    runner::{World, now},
    service::{catalogue::Live, wanted::Noted},
    store::StoreError,
};

/// After the catalogue could not be read it is read again so much later.
const RETRY: Duration = Duration::from_secs(1);
/// Publications that may wait to be read before more are told: some 300 KiB with what they list.
const PENDING: usize = 1024;
/// How often it is noted at the most what is live, once all of it was read; what changed since is read again after a
/// kill, with a sixty-fourth of all for each change.
const NOTE_EVERY: Duration = Duration::from_secs(30);
/// All that is live is told again after so many times as long as it took: a quarter of a core at the most.
const REST: u32 = 3;

/// What the lister's world is told by others.
pub(super) struct Heard {
    /// Which publications become live and cease to be.
    pub(super) liveness: broadcast::Receiver<Live>,
    /// Where this node stands.
    pub(super) reaches: watch::Receiver<Option<Reach>>,
    /// Comparisons that are asked for.
    pub(super) comparisons: mpsc::Receiver<Comparison>,
    /// Counts changes of the pins' records.
    pub(super) pins: watch::Receiver<u64>,
}

/// What an earlier run left that had read everything.
pub(super) struct Earlier {
    /// What was live then.
    pub(super) noted: Noted,
    /// The parts of the keyspace that it was read over, by copies.
    pub(super) parts: BTreeMap<u8, Arc<Spans>>,
}

/// What runs for the lister, and the inputs that it has not had.
pub(super) struct Lists {
    around: Around,
    /// The keeper's inputs.
    keeper: mpsc::Sender<duty::Input>,
    heard: Heard,
    waiting: VecDeque<Input>,
    pins: Pins,
    /// Publications that are to be read again only to be compared with the rows.
    comparing: BTreeSet<u64>,
    /// All that is live, while it is told, and since when.
    telling: Option<BoxStream<'static, Result<Vec<Publication>, StoreError>>>,
    since: Instant,
    /// Everything was told once: before that nothing is decided.
    told: bool,
    /// It is to be told once more when this is over.
    once_more: bool,
    /// What the keeper is to be told once everything was: that all was read.
    all_read: bool,
    /// What the keeper is to be told of what could not be read: the last word.
    unread: Option<Option<Instant>>,
    /// What waits to be read.
    pending: usize,
    /// What an earlier run had read things over, of what was not told yet.
    covered: BTreeMap<u64, Arc<Spans>>,
    /// Until all that is live now was told.
    earlier: Option<Earlier>,
    /// Rows may name what is not live: they are looked through once there is nothing else to do.
    drifted: bool,
    /// What is live is to be noted, once all of it was read, and not before that.
    unnoted: bool,
    note_at: Instant,
    /// Those of which it had read a part, as far as is known: if they cease before they are read again, rows may name them.
    half_read: BTreeSet<u64>,
    /// A comparison that waits to be told what is live.
    comparison: Option<Comparison>,
    /// What lists its few entries itself and is to be read: noted together once nothing more was decided.
    inline: Vec<Inline>,
    /// Those that are being noted. Others wait meanwhile and are noted together: each batch of the index costs two writes
    /// of its file that are waited for, whatever is in it.
    noting: Option<BoxFuture<'static, Input>>,
    /// Bounded by the machine.
    running: FuturesUnordered<BoxFuture<'static, Option<Input>>>,
    most_copies: u8,
    /// As they were written down.
    parts: BTreeMap<u8, Arc<Spans>>,
}

impl Lists {
    /// Everything that is live is told first, a page of the log after the other.
    pub(super) fn new(
        around: Around,
        keeper: mpsc::Sender<duty::Input>,
        heard: Heard,
        earlier: Option<Earlier>,
    ) -> Result<Self, StoreError> {
        let covered = around.wanted.covered()?;
        // Without a note nobody knows what rows name.
        let drifted = earlier.as_ref().is_none_or(|earlier| earlier.noted.since);
        let mut lists = Self {
            around,
            keeper,
            heard,
            waiting: VecDeque::new(),
            pins: Pins::default(),
            comparing: BTreeSet::new(),
            telling: None,
            since: now(),
            told: false,
            once_more: false,
            // Unless the machine says otherwise meanwhile.
            all_read: true,
            unread: None,
            pending: 0,
            covered,
            earlier,
            drifted,
            unnoted: true,
            note_at: now(),
            half_read: BTreeSet::new(),
            comparison: None,
            inline: Vec::new(),
            noting: None,
            running: FuturesUnordered::new(),
            most_copies: 0,
            parts: BTreeMap::new(),
        };
        lists.look_at_pins()?;
        lists.compare();
        Ok(lists)
    }

    /// Compares what is pinned with what the machine was told.
    fn look_at_pins(&mut self) -> Result<(), StoreError> {
        let changes = self.pins.look(&self.around.store, &self.around.catalogue)?;
        self.repin(changes);
        Ok(())
    }

    fn repin(&mut self, changes: Vec<pins::Change>) {
        for change in changes {
            match change {
                pins::Change::Live(listed) => self.is_live(listed),
                pins::Change::Gone(id, root) => {
                    // Rows outside of this node's part name a publication only if their chunk was here when it was read.
                    // Now it is: without this, a copy that may be the last would be freed as if nothing listed it.
                    let listing = self.around.catalogue.by_root(&root);
                    self.waiting.push_back(Input::Compare(listing.iter().map(reference).collect()));
                    self.waiting.push_back(Input::Gone { publication: id, listed: None });
                    self.ceased(id);
                }
                pins::Change::Over(target) => {
                    let store = self.around.store.clone();
                    let ending = async move {
                        if let Some((publisher, name)) = target.name() {
                            tracing::info!(%publisher, %name, "a pin is over: the name was removed");
                        }
                        told(store.remove_record(target.key()).await.map(|()| true));
                        None
                    };
                    self.running.push(ending.boxed());
                }
            }
        }
    }

    /// A page more of all that is live; behind the last one, what rows were read for and was in none is gone.
    fn compared(&mut self, page: Option<Result<Vec<Publication>, StoreError>>) {
        match page {
            Some(Ok(page)) => {
                // The machine leaves alone what it has nothing to do for.
                page.iter().for_each(|publication| self.became(publication));
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the catalogue could not be read; it is tried again");
                self.telling = None;
                self.compare();
                let later = stream::once(sleep(RETRY)).map(|()| Ok(Vec::new()));
                self.telling = self.telling.take().map(|pages| later.chain(pages).boxed());
            }
            None if self.once_more => self.compare(),
            None => {
                self.telling = None;
                // What became of names meanwhile was not told.
                told(self.look_at_pins().map(|()| true));
                self.told = true;
                self.waiting.push_back(Input::Told);
                // Before this node's place is known: nothing was read yet.
                let earlier = self.earlier.take().map(|earlier| Input::Doubt(Box::new(earlier.noted.roll)));
                self.waiting.extend(earlier);
                // What is of an earlier run is unknown to the machine, and its manifest may be gone: its rows are looked
                // through.
                let unknown = std::mem::take(&mut self.covered).into_keys();
                self.waiting.extend(unknown.map(|id| Input::Named(vec![id])));
                if std::mem::take(&mut self.all_read) {
                    self.unread = Some(None);
                }
            }
        }
    }

    /// Compares all rows with what is live, and what some publications list with the rows.
    fn look_through(&mut self, Comparison { begins_at, done }: Comparison, live: Vec<u64>) {
        let (before, behind) = live.split_at(live.partition_point(|id| *id < begins_at));
        let again: Vec<u64> = behind.iter().chain(before).take(compare::READ_AGAIN).copied().collect();
        self.comparing.extend(&again);
        self.waiting.push_back(Input::Compare(again));
        self.look_at_rows(live, Some(done));
    }

    /// Looks through all rows for what is not live.
    fn look_at_rows(&mut self, live: Vec<u64>, done: Option<oneshot::Sender<Drift>>) {
        let around = self.around.clone();
        let looking = async move {
            match compare::rows(&around, &live).await {
                Ok((found, named)) => {
                    // Whoever asked may not wait any more.
                    let _ = done.map(|done| done.send(found));
                    Some(Input::Named(named))
                }
                Err(error) => {
                    tracing::warn!(%error, "the table of what is wanted could not be compared with the catalogue");
                    let again = done.is_none();
                    // Whoever asked is told nothing, and asks again.
                    drop(done);
                    sleep(RETRY).await;
                    again.then_some(Input::Look)
                }
            }
        };
        self.running.push(looking.boxed());
    }

    /// Notes what is live, where all of it was read and nothing is under way.
    fn note(&mut self, machine: &Lister) {
        let due = self.unnoted && self.note_at <= now();
        if due {
            self.note_at = now() + NOTE_EVERY;
        }
        let nothing_waits = self.waiting.is_empty() && self.inline.is_empty() && self.noting.is_none();
        if !self.told || !nothing_waits || !self.running.is_empty() || !machine.is_idle() {
            return;
        }
        if std::mem::take(&mut self.drifted) {
            self.waiting.push_back(Input::Look);
        } else if due {
            self.unnoted = false;
            if let Err(error) = self.around.wanted.note_roll(machine.roll()) {
                tracing::warn!(%error, "what is live could not be written down");
                self.unnoted = true;
            }
        }
    }

    /// Tells everything once more, from the start: after what is being told by now.
    fn tell_again(&mut self) {
        if self.telling.is_some() { self.once_more = true } else { self.compare() }
    }

    /// Begins to tell, from the start; after a rest, where it was told just now.
    fn compare(&mut self) {
        let rest = if self.telling.is_some() && self.told {
            now().saturating_duration_since(self.since) * REST
        } else {
            Duration::ZERO
        };
        self.once_more = false;
        self.waiting.push_back(Input::Telling);
        let pages = self.around.catalogue.live_pages();
        self.since = now() + rest;
        self.telling = Some(stream::once(sleep(rest)).map(|()| Ok(Vec::new())).chain(pages).boxed());
    }

    fn became(&mut self, publication: &Publication) {
        self.is_live(listed(publication));
    }

    fn is_live(&mut self, listed: Listed) {
        let covered = self.covered.remove(&listed.publication);
        if covered.as_ref().is_some_and(|covered| covered.is_empty()) {
            self.half_read.insert(listed.publication);
        }
        // Of what lists its few entries itself nobody notes what it was read over.
        let inline = matches!(listed.listing, Listing::Inline(_)) && listed.copies != PIN;
        let earlier = self.earlier.as_ref().filter(|_| inline && covered.is_none());
        let earlier = earlier.and_then(|earlier| earlier.parts.get(&listed.copies)).cloned();
        let doubtful = earlier.is_some();
        self.waiting.push_back(Input::Live { listed, covered: covered.or(earlier).unwrap_or_default(), doubtful });
    }

    /// What ceased may be named by rows of which the machine knows nothing: an earlier run was ended half-way, or this one
    /// did not come to it.
    fn ceased(&mut self, id: u64) {
        if self.half_read.remove(&id) | self.covered.remove(&id).is_some() {
            self.waiting.push_back(Input::Named(vec![id]));
        }
    }

    fn changed(&mut self, live: Live) {
        let publication = match live {
            Live::Became(publication) => {
                self.became(&publication);
                publication
            }
            Live::Ceased(publication) => {
                let id = reference(&publication);
                self.waiting.push_back(Input::Gone { publication: id, listed: Some(listed(&publication)) });
                self.ceased(id);
                publication
            }
        };
        let changes = self.pins.changed(&publication, &self.around.catalogue);
        self.repin(changes);
    }
}

impl World<Lister> for Lists {
    fn act(&mut self, output: Output) {
        let (around, keeper) = (self.around.clone(), self.keeper.clone());
        self.unnoted |= matches!(output, Output::Read { .. } | Output::Purge(_) | Output::Narrowed { .. });
        match output {
            Output::Read { listed, spans, list, covers } => {
                let purpose = match self.comparing.remove(&listed.publication) {
                    true if list => Purpose::Compare,
                    _ if list => Purpose::List,
                    _ => Purpose::Unlist,
                };
                let root = match listed.listing {
                    Listing::Manifest(root) => root,
                    Listing::Inline(entries) => {
                        let (publication, copies) = (listed.publication, listed.copies);
                        self.inline.push(Inline { publication, copies, entries, spans, purpose });
                        return;
                    }
                };
                let reading = async move {
                    let id = listed.publication;
                    let (around, listed, spans) = (&around, &listed, &*spans);
                    let touched = Touched::default();
                    let mut reading = Reading { around, listed, root, spans, purpose, touched };
                    let done = async {
                        let complete = reading.run().await?;
                        if complete {
                            around.wanted.set_covered(id, list.then_some(&*covers))?;
                        }
                        Ok(complete)
                    };
                    let complete = told(done.await);
                    // What was listed before something could not be had is compared too.
                    tell(&keeper, list, reading.touched.changed(spans).iter()).await;
                    Some(Input::Done { publication: id, complete })
                };
                self.running.push(reading.boxed());
            }
            Output::Purge(ids) => {
                self.running.push(purge(around, keeper, ids).boxed());
            }
            Output::Tell => self.tell_again(),
            Output::Live(live) => match self.comparison.take() {
                Some(comparison) => self.look_through(comparison, live),
                None => self.look_at_rows(live, None),
            },
            Output::Drifted => self.drifted = true,
            Output::Narrowed { copies, spans } => {
                let others = self.parts.iter().filter(|(other, _)| **other != copies).map(|(_, part)| part);
                let needed: Spans = others.chain([&spans]).flat_map(|part| part.iter()).collect();
                let narrowing = async move {
                    let wanted = around.wanted.clone();
                    let step = move || wanted.narrow(&needed);
                    let done = around.blocking.run(step).await.unwrap_or_else(|unfinished| Err(unfinished.into()));
                    told(done.map(|()| true));
                    None
                };
                self.running.push(narrowing.boxed());
            }
            // What is not told yet may be unread too.
            Output::Unread(None) if self.telling.is_some() => self.all_read = true,
            Output::Unread(until) => {
                self.all_read = false;
                self.unread = Some(until);
            }
        }
    }

    async fn next(&mut self) -> Option<Input> {
        loop {
            if let Some(input) = self.waiting.pop_front() {
                return Some(input);
            }
            // What is live is told before anything is decided by it; afterwards only as fast as it is read.
            let keeper = self.keeper.clone();
            let (told, more) = (self.told, !self.told || self.pending < PENDING);
            tokio::select! {
                changed = self.heard.reaches.changed(), if told => {
                    changed.ok()?;
                    if let Some(reach) = self.heard.reaches.borrow_and_update().clone() {
                        return Some(Input::Moved(reach));
                    }
                }
                live = self.heard.liveness.recv(), if more => match live {
                    Ok(live) => self.changed(live),
                    Err(RecvError::Lagged(_)) => self.tell_again(),
                    Err(RecvError::Closed) => return None,
                },
                changed = self.heard.pins.changed(), if told => {
                    changed.ok()?;
                    if let Err(error) = self.look_at_pins() {
                        tracing::warn!(%error, "what is pinned could not be read");
                    }
                }
                Some(comparison) = self.heard.comparisons.recv(), if told => {
                    self.comparison = Some(comparison);
                    return Some(Input::Look);
                }
                // Whoever hears it is gone only with this.
                Ok(permit) = keeper.reserve_owned(), if told && self.unread.is_some() => {
                    if let Some(until) = self.unread.take() {
                        permit.send(duty::Input::Unread(until));
                    }
                }
                page = next_page(&mut self.telling), if self.telling.is_some() && more => self.compared(page),
                Some(done) = self.running.next(), if told => if let Some(input) = done {
                    // There may be more than are named at once.
                    self.drifted |= matches!(&input, Input::Named(named) if named.len() >= compare::MOST_NAMED);
                    return Some(input);
                },
                noted = noted(&mut self.noting), if told => {
                    self.noting = None;
                    return Some(noted);
                }
                // Nothing is completed: it is looked whether something is to be noted.
                () = sleep_until(self.note_at.into()), if told && self.unnoted => return Some(Input::Completed(Vec::new())),
            }
        }
    }

    fn settled(&mut self, machine: &Lister) {
        self.pending = machine.pending();
        if self.noting.is_none() && !self.inline.is_empty() {
            let inline = std::mem::take(&mut self.inline);
            self.noting = Some(note_inline(self.around.clone(), self.keeper.clone(), inline).boxed());
        }
        for (copies, part) in machine.parts() {
            if self.parts.get(copies).is_some_and(|known| Arc::ptr_eq(known, part)) {
                continue;
            }
            self.parts.insert(*copies, part.clone());
            self.unnoted = true;
            if let Err(error) = self.around.wanted.set_part(*copies, part) {
                tracing::warn!(%error, "a part of the table could not be written down");
            }
        }
        self.note(machine);
        if machine.most_copies() != self.most_copies {
            self.most_copies = machine.most_copies();
            let (keeper, most) = (self.keeper.clone(), self.most_copies);
            let telling = async move {
                // The keeper is gone only with this.
                let _ = keeper.send(duty::Input::MostCopies(most)).await;
                None
            };
            self.running.push(telling.boxed());
        }
    }
}

/// What a row knows a publication as, by where it stands and what it says.
pub(super) fn reference(publication: &Publication) -> u64 {
    let says = [&publication.key().0[..], &publication.version.to_be_bytes(), &publication.root.to_bytes()].concat();
    known_as(&says)
}

/// What a row knows something as that says this: the first eight bytes of its BLAKE3 hash. Anybody may compute it: nothing
/// secret hangs on it, and rows are this node's own.
pub(super) fn known_as(says: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = Multihash::of(HashCode::Blake3, says).digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// What a publication lists, by what rows know it as.
fn listed(publication: &Publication) -> Listed {
    Listed {
        publication: reference(publication),
        listing: publication.listing.clone(),
        chunks: publication.chunks,
        copies: publication.replicas,
        publisher: Some(publication.publisher),
    }
}

/// What lists its few entries itself, all that is to be read by now.
async fn note_inline(around: Around, keeper: mpsc::Sender<duty::Input>, inline: Vec<Inline>) -> Input {
    let ids: Vec<u64> = inline.iter().map(|inline| inline.publication).collect();
    let unlists = inline.iter().any(|inline| inline.purpose == Purpose::Unlist);
    let wanted = around.wanted.clone();
    let noted = around.blocking.run(move || Inline::note(&wanted, inline)).await;
    match noted.map_err(|_| StoreError::Closed).and_then(|noted| noted) {
        Ok(touched) => {
            tell(&keeper, !unlists, touched.into_iter().map(Span::of)).await;
            Input::Completed(ids)
        }
        Err(error) => {
            told(Err(error));
            Input::Failed(ids)
        }
    }
}

async fn purge(around: Around, keeper: mpsc::Sender<duty::Input>, ids: Vec<u64>) -> Option<Input> {
    let (wanted, purged) = (around.wanted.clone(), ids.iter().copied().collect());
    let step =
        move || wanted.purge(&purged).and_then(|()| purged.iter().try_for_each(|id| wanted.set_covered(*id, None)));
    let purged = around.blocking.run(step).await.unwrap_or_else(|unfinished| Err(unfinished.into()));
    told(purged.map(|()| true));
    tell(&keeper, false, [Span::ALL].into_iter()).await;
    Some(Input::Completed(ids))
}

/// What changed is compared again; what was unlisted may be freed once its grace is over.
async fn tell(keeper: &mpsc::Sender<duty::Input>, list: bool, spans: impl Iterator<Item = Span>) {
    // The keeper is gone only with those who tell it.
    if !list {
        let _ = keeper.send(duty::Input::Unlisted).await;
    }
    for span in spans {
        let _ = keeper.send(duty::Input::Changed(span)).await;
    }
}

fn told(outcome: Result<bool, StoreError>) -> bool {
    outcome.unwrap_or_else(|error| {
        tracing::warn!(%error, "what a publication or a pin lists could not be noted");
        false
    })
}

/// What is being noted; never, where nothing is.
async fn noted(noting: &mut Option<BoxFuture<'static, Input>>) -> Input {
    match noting {
        Some(noting) => noting.await,
        None => std::future::pending().await,
    }
}

async fn next_page<T>(pages: &mut Option<BoxStream<'static, T>>) -> Option<T> {
    match pages {
        Some(pages) => pages.next().await,
        None => std::future::pending().await,
    }
}
