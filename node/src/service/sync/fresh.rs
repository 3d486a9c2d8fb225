//! Fresh names: which storing peers this node counts, being introduced to them, and asking them for what is newest
//! ([`p2p_protocol::fresh`] has the rules and why they are enough).
//!
//! The members are records of the store's log, like the catalogue that they vouch for: whoever loses one loses both.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream, stream::FuturesUnordered};
use libp2p::PeerId;
use p2p_protocol::{
    catalogue::{Kept as _, SignedPublication},
    fresh::{Begun, Changed, FOUNDING, Inquiry, Members, Row, Verdict},
    wire::sync_fresh::{Ask, AskName, Told},
};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{SessionError, Sync, capable, hello, open, session};
use crate::{
    net::{BAN, Network},
    service::{catalogue::ledger::Ledger, worker::Work},
    store::{Store, StoreError},
};

/// Keys of members' records: the network's tag and the peer id follow.
const MEMBER: &[u8] = b"fresh/member/";
/// The record that says whose log began with its identity: the peer id, then whether it had nobody to join.
const BORN: &[u8] = b"fresh/born";
/// A peer may take so long to be asked: its disk and a slow link's round trips, many times over.
const ONE: Duration = Duration::from_secs(5);
/// A fresh read may take so long; who has not answered then has not.
const ALL: Duration = Duration::from_secs(12);
/// Peers that are asked at once: enough for a quorum of any network that a person has.
const AT_ONCE: usize = 32;
/// Peers that this node is introduced to at once: each takes a comparison of catalogues.
const INTRODUCED_AT_ONCE: usize = 2;
/// Until an introduction that failed, or was to one that was not complete yet, is tried again: it doubles from here ...
const AGAIN: Duration = Duration::from_secs(1);
/// ... to here.
const AGAIN_AT_MOST: Duration = Duration::from_secs(600);
/// How often members that are connected all the time are written down as seen, and those long gone are forgotten.
const REFRESH: Duration = Duration::from_secs(6 * 60 * 60);
/// Records of a page.
const PAGE: usize = 512;

/// Notes that the log of `store` begins with the identity `peer`, which was made just now, and has published nothing;
/// `founding`: in a network that nobody told it of.
///
/// # Errors
/// The store's.
pub async fn begins_with(store: &Store, peer: &PeerId, founding: bool) -> Result<(), StoreError> {
    let value = [&peer.to_bytes()[..], &[u8::from(founding)]].concat();
    store.put_record(Bytes::from_static(BORN), value.into()).await
}

/// The members that this node counts, in memory and on disk.
pub(super) struct Circle {
    ledger: Arc<Ledger>,
    network: Network,
    members: Mutex<Members>,
    /// Held while rows are written, so that what is told was written whoever wrote it.
    writing: AsyncMutex<()>,
    /// Something was learned that may call for an introduction.
    news: Notify,
}

impl std::fmt::Debug for Circle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Circle").finish_non_exhaustive()
    }
}

impl Circle {
    /// Reads the members from the ledger's store.
    pub(super) fn load(ledger: Arc<Ledger>, network: Network) -> Result<Self, StoreError> {
        let (store, local) = (ledger.store().clone(), ledger.local());
        let prefix = prefix(&ledger);
        let mut rows = Vec::new();
        let mut after: Option<Bytes> = None;
        loop {
            let page = store.records(&prefix, after.as_deref(), PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            let row =
                |(key, value): &(Bytes, Bytes)| Some((PeerId::from_bytes(&key[prefix.len()..]).ok()?, read(value)?));
            rows.extend(page.iter().filter_map(row));
        }
        let begun = match store.record(BORN)?.as_deref().and_then(<[u8]>::split_last) {
            Some((founding, peer)) if *peer == local.to_bytes() => match founding {
                0 => Begun::Joining,
                _ => Begun::Founding,
            },
            _ => Begun::Lost,
        };
        let stores = store.usage().capacity_bytes > 0;
        let members = Mutex::new(Members::new(local, stores, begun, rows));
        Ok(Self { ledger, network, members, writing: AsyncMutex::default(), news: Notify::new() })
    }

    /// For a short look.
    pub(super) fn members(&self) -> MutexGuard<'_, Members> {
        // Nothing under this lock panics.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the members, and returns once that is on disk. Whoever is told of it later finds it there.
    async fn change(&self, change: impl FnOnce(&mut Members) -> Changed) -> Result<(), StoreError> {
        let _one = self.writing.lock().await;
        let prefix = prefix(&self.ledger);
        let rows: Vec<_> = {
            let mut members = self.members();
            let changed = change(&mut members);
            let own = members.complete(unix_seconds());
            let key = |peer: &PeerId| Bytes::from([&prefix[..], &peer.to_bytes()].concat());
            let record = |peer: PeerId| (key(&peer), members.get(&peer).map(|row| written(&row)));
            let mut rows: Vec<_> = changed.into_iter().map(record).collect();
            rows.extend(own.map(|(local, row)| (key(&local), Some(written(&row)))));
            rows
        };
        if rows.is_empty() {
            return Ok(());
        }
        self.ledger.store().change_records(rows).await?;
        self.news.notify_one();
        Ok(())
    }

    fn is_connected(&self, peer: &PeerId) -> bool {
        self.network.peers().borrow().peers.get(peer).is_some_and(|row| row.connected)
    }

    /// What this node asks others with.
    pub(super) fn ask(&self, name: Option<AskName>) -> Ask {
        let members = self.members();
        Ask { stores: members.stores(), members: members.told(unix_seconds(), |peer| self.is_connected(peer)), name }
    }

    /// Answers a peer, counting it and whom it counts first.
    pub(super) async fn answer(&self, peer: PeerId, ask: &Ask) -> Result<Told, StoreError> {
        let now = unix_seconds();
        self.change(|members| {
            let mut changed = members.learn(now, &ask.members);
            if ask.stores && members.saw(now, peer, false) {
                changed.push(peer);
            }
            changed
        })
        .await?;
        let mut told = {
            let members = self.members();
            Told {
                complete: members.is_complete(),
                own: members.has_own(),
                stores: members.stores(),
                members: members.told(now, |peer| self.is_connected(peer)),
                ..Told::default()
            }
        };
        if let Some(name) = &ask.name {
            self.tell(&mut told, name);
        }
        Ok(told)
    }

    /// Adds what is current under a name, then earlier versions as far as they fit. What is current and lost on the disk
    /// makes it no answer, as what does not fit does.
    fn tell(&self, told: &mut Told, AskName { publisher, name }: &AskName) {
        let mut bytes = Told::bytes_before_entries(told.members.len());
        // Under one lock, so that nothing is missed that is superseded meanwhile; it reads no more than fits into a frame.
        self.ledger.look(|map, kept| {
            let (current, earlier) = map.keys_with_name(publisher.as_ref(), name);
            let is_current = std::iter::repeat_n(true, current.len()).chain(std::iter::repeat(false));
            for (key, is_current) in current.iter().chain(&earlier).zip(is_current) {
                let told_of = kept.signed_bytes(key).is_some_and(|signed| {
                    // Another name's hash may begin alike.
                    !is_of(&signed, name) || told.add(&mut bytes, &signed)
                });
                if !told_of {
                    told.cut |= is_current;
                    return;
                }
            }
        });
    }

    /// Takes in what a peer has said of itself and of others.
    pub(super) async fn heard(&self, peer: PeerId, told: &Told) -> Result<(), StoreError> {
        let now = unix_seconds();
        self.change(|members| {
            let mut changed = members.learn(now, &told.members);
            if told.stores && members.saw(now, peer, told.complete) {
                changed.push(peer);
            }
            changed
        })
        .await
    }

    /// This node and a peer, which was (not) complete before, have compared their catalogues since it counts this node.
    async fn introduced(&self, peer: PeerId, complete: bool) -> Result<(), StoreError> {
        self.ledger.flushed().await?;
        self.change(|members| if members.introduced(peer, complete) { vec![peer] } else { Vec::new() }).await
    }
}

/// Why a name is not fresh: how many answered that count, how many it takes, and who did not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Short {
    /// Answers that count.
    pub answered: usize,
    /// How many it takes.
    pub needed: usize,
    /// Who did not answer, or not for certain.
    pub silent: Vec<PeerId>,
}

impl Sync {
    /// Makes sure that the catalogue here has each version of a name that was settled before this call; what is learned
    /// is on disk on return. `publisher`: of that one alone. Takes 12 s at the most. Cancel-safe.
    ///
    /// # Errors
    /// Where too few answer.
    pub async fn fresh(&self, publisher: Option<PeerId>, name: &str) -> Result<(), Short> {
        let deadline = Instant::now() + ALL;
        let connected = capable(&self.network.peers().borrow(), &self.protocol);
        let connected = connected.into_iter().map(|(peer, _)| peer);
        let mut inquiry = Inquiry::new(publisher, &self.circle.members(), connected);
        let mut waiting = VecDeque::new();
        let mut asked = FuturesUnordered::new();
        let verdict = loop {
            waiting.extend(inquiry.ask());
            while asked.len() < AT_ONCE
                && let Some(peer) = waiting.pop_front()
            {
                let name = AskName { publisher, name: name.to_owned() };
                asked.push(async move { (peer, self.ask(peer, Some(name)).await) });
            }
            match inquiry.verdict(&self.circle.members()) {
                Verdict::Open => {}
                verdict => break verdict,
            }
            match timeout_at(deadline, asked.next()).await {
                Ok(Some((peer, Ok(told)))) => inquiry.told(peer, &told),
                Ok(Some((peer, Err(why)))) => {
                    tracing::debug!(%peer, why, "a peer was asked for a name and did not answer");
                    inquiry.failed(peer);
                }
                Ok(None) => break inquiry.verdict(&self.circle.members()),
                Err(_) => {
                    let late: Vec<PeerId> = inquiry.open().collect();
                    late.into_iter().for_each(|peer| inquiry.failed(peer));
                    break inquiry.verdict(&self.circle.members());
                }
            }
        };
        match verdict {
            // What was told must not be forgotten by a kill: a later read would go back behind this one.
            Verdict::Fresh if self.ledger.flushed().await.is_ok() => Ok(()),
            Verdict::Fresh | Verdict::Open => Err(Short { answered: 0, needed: 1, silent: Vec::new() }),
            Verdict::Short { answered, needed, silent } => Err(Short { answered, needed, silent }),
        }
    }

    /// Whether this node can tell others what is newest.
    pub fn is_complete(&self) -> bool {
        self.circle.members().is_complete()
    }

    /// Asks one peer; what it tells of the name is in the catalogue then, and whom it counts is counted here.
    pub(super) async fn ask(&self, peer: PeerId, name: Option<AskName>) -> Result<Told, String> {
        let asking = async {
            let (_, stream) = self.network.open_spoken(peer, &self.protocol).await?;
            session::ask(&self.ledger, &self.blocking, hello(&self.network), stream, self.circle.ask(name)).await
        };
        match timeout(ONE, asking).await.unwrap_or(Err(SessionError::Timeout)) {
            Ok(told) => match self.circle.heard(peer, &told).await {
                Ok(()) => Ok(told),
                Err(error) => Err(error.to_string()),
            },
            Err(SessionError::Hostile(reason)) => {
                self.network.ban(peer, BAN, reason.clone()).await;
                Err(reason)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Is introduced to a peer: it is told of this node, then the catalogues are compared. Whether it is a member and
    /// was complete; `None`: it does not store.
    async fn introduce(&self, peer: PeerId) -> Result<Option<bool>, String> {
        let told = self.ask(peer, None).await?;
        if !told.stores {
            return Ok(None);
        }
        let compared = open(&self.ledger, &self.refused, &self.blocking, &self.network, peer, &self.protocol).await;
        match compared {
            Ok(_) => match self.circle.introduced(peer, told.complete).await {
                Ok(()) => Ok(Some(told.complete)),
                Err(error) => Err(error.to_string()),
            },
            Err(SessionError::Hostile(reason)) => {
                self.network.ban(peer, BAN, reason.clone()).await;
                Err(reason)
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// When a connected peer is to be met next.
struct Meeting {
    epoch: u64,
    /// `None`: it does not store, and says so for as long as it is connected.
    at: Option<Instant>,
    wait: Duration,
}

/// Has this node introduced to the storing peers that are connected, until the network is gone.
pub(super) async fn run(sync: Sync, work: Work) {
    let mut peers = sync.network.peers();
    let mut caught_up = sync.ledger.caught_up();
    let mut meetings: HashMap<PeerId, Meeting> = HashMap::new();
    let mut refresh = Instant::now();
    let mut founding = Some(Instant::now() + FOUNDING);
    loop {
        // A node counts from its first introduction on; one that is gone before it has the catalogue would be missed.
        if caught_up.wait_for(|caught_up| *caught_up).await.is_err() {
            return;
        }
        let connected: BTreeMap<PeerId, u64> =
            capable(&peers.borrow_and_update(), &sync.protocol).into_iter().collect();
        meetings.retain(|peer, meeting| connected.get(peer) == Some(&meeting.epoch));
        let now = Instant::now();
        if founding.is_some_and(|at| at <= now) {
            founding = None;
            sync.circle.members().waited();
        }
        if now >= refresh {
            refresh = now + REFRESH;
            see(&sync.circle, &connected).await;
        }
        let due: Vec<PeerId> = {
            let members = sync.circle.members();
            let to_meet = connected.iter().filter(|(peer, _)| {
                members.get(peer).is_none_or(|row| row.introduced != Some(true))
                    && meetings.get(*peer).is_none_or(|meeting| meeting.at.is_some_and(|at| at <= now))
            });
            to_meet.map(|(peer, _)| *peer).collect()
        };
        if !due.is_empty() {
            work.working(0, Some(due.len() as u64));
            let met = stream::iter(due).map(|peer| {
                let sync = sync.clone();
                async move { (peer, sync.introduce(peer).await) }
            });
            let met: Vec<_> = met.buffer_unordered(INTRODUCED_AT_ONCE).collect().await;
            for (peer, outcome) in met {
                let Some(epoch) = connected.get(&peer) else { continue };
                let before = meetings.get(&peer).map_or(AGAIN / 2, |meeting| meeting.wait);
                let wait = (before * 2).min(AGAIN_AT_MOST);
                let at = match outcome {
                    Ok(None) => None,
                    Ok(Some(_)) => Some(Instant::now() + wait),
                    Err(why) => {
                        tracing::debug!(%peer, why, "could not be introduced to a peer");
                        Some(Instant::now() + wait)
                    }
                };
                meetings.insert(peer, Meeting { epoch: *epoch, at, wait });
            }
            continue;
        }
        let next = {
            let members = sync.circle.members();
            let open =
                meetings.iter().filter(|(peer, _)| members.get(peer).is_none_or(|row| row.introduced != Some(true)));
            open.filter_map(|(_, meeting)| meeting.at).chain([refresh]).chain(founding).min().unwrap_or(refresh)
        };
        work.waiting(next);
        tokio::select! {
            changed = peers.changed() => if changed.is_err() { return },
            () = sync.circle.news.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}

/// Notes that the connected members are seen now, and forgets who was not for long.
async fn see(circle: &Circle, connected: &BTreeMap<PeerId, u64>) {
    let now = unix_seconds();
    let seen = circle.change(|members| {
        let mut changed: Changed = connected
            .keys()
            .filter(|peer| members.get(peer).is_some() && members.saw(now, **peer, false))
            .copied()
            .collect();
        changed.extend(members.forget(now));
        changed
    });
    if let Err(error) = seen.await {
        tracing::warn!(%error, "cannot write down which storing peers were seen");
    }
}

fn is_of(signed_bytes: &[u8], name: &str) -> bool {
    SignedPublication::read_back(signed_bytes).is_ok_and(|signed| signed.publication().name.as_deref() == Some(name))
}

fn prefix(ledger: &Ledger) -> Vec<u8> {
    [MEMBER, &blake3::hash(ledger.network_name().as_bytes()).as_bytes()[..8]].concat()
}

/// A row's record: when it was seen, whether it was complete, and the introduction.
fn written(row: &Row) -> Bytes {
    let introduced = match row.introduced {
        None => 0,
        Some(false) => 1,
        Some(true) => 2,
    };
    [&row.seen.to_be_bytes()[..], &[u8::from(row.complete), introduced]].concat().into()
}

fn read(value: &[u8]) -> Option<Row> {
    let (seen, [complete @ (0 | 1), introduced]) = value.split_first_chunk()? else { return None };
    let introduced = match introduced {
        0 => None,
        1 => Some(false),
        2 => Some(true),
        _ => return None,
    };
    Some(Row { seen: u64::from_be_bytes(*seen), complete: *complete == 1, introduced })
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
