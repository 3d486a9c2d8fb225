//! One catch-up session, from either side (`protocol/SPEC.md`, "Catch-up").

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::try_join_all;
use libp2p::PeerId;
use p2p_protocol::{
    bucket::Bucket,
    catalogue::{InvalidPublication, Outcome, SignedPublication},
    reconcile::{Id, Initiator, ReconcileLimits, Step, respond},
    wire::{
        sync::{Frame, MAX_PAYLOAD_BYTES, MAX_WANTED, pack},
        sync_fresh::{Ask, Told},
        turns::TurnError,
        version::Hello,
    },
};
use tokio::time::sleep;

use super::{fresh::Circle, refused::Refused};
use crate::{
    net::Stream,
    runner::now,
    service::{
        blocking::Blocking,
        catalogue::ledger::Ledger,
        turns::{self, Answerer, SessionError, out_of_turn, serve},
    },
};

/// How long one frame may take, either way.
const FRAME: Duration = Duration::from_secs(20);
/// The most frames of one session that is served: twice what a million entries take that are all pulled.
const FRAMES: usize = 16_384;
/// Signatures that a thread checks in a row (some 3 ms): a frame has work for a few.
const CHECKED_AT_ONCE: usize = 64;
/// What a peer may ask at once: frames, a new session counting as [`OPENING_COST`] of them. Some 300,000 entries.
const BUDGET: u32 = 1600;
/// How many of them come back in a second: a million entries within a minute, a quarter of a core while it lasts.
const BUDGET_PER_SECOND: u32 = 150;
/// What opening a session costs: five a second in the long run.
const OPENING_COST: u32 = 10;

/// What a session moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Summary {
    /// Publications that were new here.
    pub(super) pulled: usize,
    /// Publications that stand there, on disk, after they were pushed.
    pub(super) pushed: usize,
    /// The two catalogues were compared, and not only something asked or handed over.
    pub(super) compared: bool,
}

type Asker = turns::Asker<Frame>;

/// The opener's side: finds the difference, pulls, then pushes. What was pulled before a failure stays, and a peer that
/// does not understand one of the two is asked for the other all the same.
///
/// What each answer of the comparison shows to be missing is moved before the next is asked for, so that a session of any
/// size holds no more than one answer lists, and one that breaks off leaves little to be done again. What either side
/// `refused` of late is left where it is.
pub(super) async fn catch_up(
    ledger: &Ledger,
    (peer, refused): (PeerId, &Refused),
    blocking: &Blocking,
    own: Hello,
    stream: Stream,
) -> Result<Summary, SessionError> {
    let mut summary = Summary { compared: true, ..Summary::default() };
    let mut initiator = Initiator::new(ReconcileLimits::default());
    let mut message = initiator.initiate(ledger.map().ids());
    let mut asker = Asker::begin(stream, own, FRAME).await?;
    loop {
        let Frame::Difference(response) = asker.ask(&Frame::Reconcile(message.into())).await? else {
            return Err(out_of_turn());
        };
        let step = initiator.handle(ledger.map().ids(), &response)?;
        let (mut need, mut have) = initiator.take_found();
        refused.leave_out(&ledger.local(), &mut need);
        refused.leave_out(&peer, &mut have);
        taking_part(pull(ledger, refused, blocking, &mut asker, need, &mut summary).await)?;
        taking_part(push(ledger, (peer, refused), &mut asker, &have, &mut summary).await)?;
        match step {
            Step::Send(next) => message = next,
            Step::Done => break,
        }
    }
    asker.end().await;
    Ok(summary)
}

/// Gives a peer one signed publication; whether it stands there now, on disk, and what the peer then says to `ask`, where
/// it is asked and understands that.
pub(super) async fn hand(
    own: Hello,
    stream: Stream,
    signed_bytes: Bytes,
    ask: Option<Ask>,
) -> Result<(bool, Option<Told>), SessionError> {
    let mut asker = Asker::begin(stream, own, FRAME).await?;
    let Frame::Taken(count) = asker.ask(&Frame::Push(vec![signed_bytes])).await? else {
        return Err(out_of_turn());
    };
    let mut answer = None;
    if let Some(ask) = ask.filter(|_| count > 0) {
        answer = match asker.ask(&Frame::Ask(ask)).await {
            Ok(Frame::Told(told)) => Some(told),
            Ok(_) => return Err(out_of_turn()),
            Err(SessionError::Unsupported) => None,
            Err(error) => return Err(error),
        };
    }
    asker.end().await;
    Ok((count > 0, answer))
}

/// Asks a peer; the publications that it tells are taken in.
pub(super) async fn ask(
    ledger: &Ledger,
    blocking: &Blocking,
    own: Hello,
    stream: Stream,
    ask: Ask,
) -> Result<Told, SessionError> {
    let mut asker = Asker::begin(stream, own, FRAME).await?;
    let Frame::Told(mut told) = asker.ask(&Frame::Ask(ask)).await? else {
        return Err(out_of_turn());
    };
    take(ledger, blocking, std::mem::take(&mut told.entries), None).await?;
    asker.end().await;
    Ok(told)
}

/// A peer that does not understand one half of a session may understand the other.
fn taking_part(outcome: Result<(), SessionError>) -> Result<(), SessionError> {
    match outcome {
        Err(SessionError::Unsupported) => Ok(()),
        other => other,
    }
}

/// Asks once for each of `need` that has not come by another way; while one answer is checked, the next is under way.
async fn pull(
    ledger: &Ledger,
    refused: &Refused,
    blocking: &Blocking,
    asker: &mut Asker,
    need: Vec<Id>,
    summary: &mut Summary,
) -> Result<(), SessionError> {
    let mut need = need.into_iter();
    let mut asked = Vec::new();
    more(ledger, &mut need, &mut asked);
    if asked.is_empty() {
        return Ok(());
    }
    asker.say(&Frame::Want(asked.clone())).await?;
    loop {
        let Frame::Entries { answered, entries } = asker.hear().await? else {
            return Err(out_of_turn());
        };
        let answered = usize::from(answered);
        if answered == 0 || answered > asked.len() {
            return Err(SessionError::Hostile("it answered none of what was wanted, or more".to_owned()));
        }
        let rest = asked.split_off(answered);
        let answered = std::mem::replace(&mut asked, rest);
        more(ledger, &mut need, &mut asked);
        if !asked.is_empty() {
            asker.say(&Frame::Want(asked.clone())).await?;
        }
        let taken = take(ledger, blocking, entries, Some(&answered)).await?;
        refused.note(&ledger.local(), taken.refused);
        summary.pulled += taken.new;
        if asked.is_empty() {
            return Ok(());
        }
    }
}

/// Sends those of `have` that still stand.
async fn push(
    ledger: &Ledger,
    (peer, refused): (PeerId, &Refused),
    asker: &mut Asker,
    have: &[Id],
    summary: &mut Summary,
) -> Result<(), SessionError> {
    let mut have = have.iter().peekable();
    while have.peek().is_some() {
        let entries = standing(ledger, &mut have);
        if entries.is_empty() {
            break;
        }
        let pushed: Vec<Id> = entries.iter().map(|entry| *blake3::hash(entry).as_bytes()).collect();
        let Frame::Taken(count) = asker.ask(&Frame::Push(entries)).await? else {
            return Err(out_of_turn());
        };
        summary.pushed += usize::from(count);
        // It does not say which: the others stand there now, and are found no more.
        if usize::from(count) < pushed.len() {
            refused.note(&peer, pushed);
        }
    }
    Ok(())
}

/// The acceptor's side: answers until the opener closes. Its summary counts what was pushed to it as pulled.
pub(super) async fn answer(
    ledger: &Ledger,
    circle: &Circle,
    blocking: &Blocking,
    own: Hello,
    (peer, stream): (PeerId, Stream),
    budget: &Budget,
) -> Result<Summary, SessionError> {
    let mut summary = Summary::default();
    let Some(mut answerer) = Answerer::begin(stream, own, FRAME, FRAMES).await? else { return Ok(summary) };
    while let Some(asked) = answerer.next().await? {
        budget.frame().await;
        let answer = match asked {
            Ok(Frame::Reconcile(message)) => {
                summary.compared = true;
                let response = respond(ledger.map().ids(), &message, MAX_PAYLOAD_BYTES)?;
                Frame::Difference(response.into())
            }
            Ok(Frame::Want(ids)) => {
                let mut ids = ids.iter().peekable();
                let asked = ids.len();
                let entries = standing(ledger, &mut ids);
                // At most MAX_WANTED.
                Frame::Entries { answered: (asked - ids.len()) as u16, entries }
            }
            Ok(Frame::Push(entries)) => {
                let Taken { new, standing, .. } = take(ledger, blocking, entries, None).await?;
                summary.pulled += new;
                // It says what is on disk; where that failed, nothing is known of any of it.
                let kept = ledger.flushed().await.map_or(0, |()| standing);
                Frame::Taken(u16::try_from(kept).unwrap_or(u16::MAX))
            }
            Ok(Frame::Ask(ask)) => Frame::Told(circle.answer(peer, &ask).await?),
            Err(TurnError::Unsupported(_)) => Frame::Unsupported,
            Ok(_) => return Err(out_of_turn()),
            Err(error) => return Err(error.into()),
        };
        answerer.answer(&answer).await?;
    }
    Ok(summary)
}

/// As many more ids to ask for as one frame takes: of those that have not come by another way in the meantime.
fn more(ledger: &Ledger, need: &mut impl Iterator<Item = Id>, asked: &mut Vec<Id>) {
    let map = ledger.map();
    let room = MAX_WANTED.saturating_sub(asked.len());
    asked.extend(need.filter(|id| !map.ids().contains(id)).take(room));
}

/// As many of the publications as one frame holds; takes their ids off, and those of what does not stand any more.
fn standing<'a>(ledger: &Ledger, ids: &mut std::iter::Peekable<impl Iterator<Item = &'a Id>>) -> Vec<Bytes> {
    let mut packed = 0;
    let mut entries = Vec::new();
    while let Some(id) = ids.peek() {
        if let Some(bytes) = ledger.signed_bytes(id) {
            if !pack(&mut packed, bytes.len()) {
                break;
            }
            entries.push(bytes);
        }
        ids.next();
    }
    entries
}

/// What became of publications that were taken in.
#[derive(Default)]
struct Taken {
    /// How many did not stand before.
    new: usize,
    /// How many stand now.
    standing: usize,
    /// Those that have no room here, or that only a later version can read.
    refused: Vec<Id>,
}

/// Checks publications and takes them in. What only a later version can read is left out: it is nobody's fault. `wanted`:
/// all must be of these, in their order.
async fn take(
    ledger: &Ledger,
    blocking: &Blocking,
    entries: Vec<Bytes>,
    wanted: Option<&[Id]>,
) -> Result<Taken, SessionError> {
    let mut taken = Taken::default();
    let mut wanted = wanted.map(<[Id]>::iter);
    let mut new = Vec::new();
    for entry in entries {
        if ledger.knows(&entry) {
            taken.standing += 1;
            continue;
        }
        if let Some(wanted) = &mut wanted {
            let id = blake3::hash(&entry);
            if !wanted.any(|other| id == *other) {
                return Err(SessionError::Hostile("it sent a publication that was not wanted".to_owned()));
            }
        }
        new.push(entry);
    }
    let ids: Vec<Id> = new.iter().map(|entry| *blake3::hash(entry).as_bytes()).collect();
    for (id, checked) in ids.into_iter().zip(check(ledger.network_name(), blocking, new).await?) {
        let signed = match checked {
            Ok(signed) => signed,
            Err(error) if error.is_unknown() => {
                tracing::debug!(%error, "left out what only a later version can read");
                taken.refused.push(id);
                continue;
            }
            Err(error) => return Err(SessionError::Hostile(error.to_string())),
        };
        match ledger.take(signed).await {
            Outcome::Taken { .. } => {
                taken.new += 1;
                taken.standing += 1;
            }
            Outcome::Known => taken.standing += 1,
            Outcome::Beyond => taken.refused.push(id),
            Outcome::Older => {}
        }
    }
    Ok(taken)
}

/// Checks signatures, in order, on several threads at once. One by one: checking many together, which is faster, may take
/// what checking it alone refuses (an equation that holds but for a small factor), and nodes would not agree.
async fn check(network_name: &str, blocking: &Blocking, entries: Vec<Bytes>) -> Result<Vec<Checked>, SessionError> {
    let parts = entries.chunks(CHECKED_AT_ONCE).map(|part| {
        let (part, network_name) = (part.to_vec(), network_name.to_owned());
        blocking.run(move || {
            part.iter().map(|entry| SignedPublication::decode(&network_name, entry)).collect::<Vec<Checked>>()
        })
    });
    let checked = try_join_all(parts).await.map_err(|_| SessionError::NotReady("the signatures were not checked"))?;
    Ok(checked.into_iter().flatten().collect())
}

type Checked = Result<SignedPublication, InvalidPublication>;

/// What one peer may ask of this node.
#[derive(Debug)]
pub(super) struct Budget(Mutex<Bucket>);

impl Default for Budget {
    fn default() -> Self {
        Self(Mutex::new(Bucket::new(now(), BUDGET, BUDGET_PER_SECOND)))
    }
}

impl Budget {
    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pays for a frame, waiting until there is enough. At most as many wait as the peer has sessions.
    async fn frame(&self) {
        let wait = self.bucket().take(now(), 1);
        // No time at all would still take a tick of the timer.
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

impl serve::Budget for Budget {
    fn open(&self) -> bool {
        self.bucket().try_take(now(), OPENING_COST)
    }

    fn is_full(&self) -> bool {
        self.bucket().is_full(now())
    }
}
