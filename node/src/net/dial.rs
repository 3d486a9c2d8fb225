//! Dials that somebody waits for: answered once the peer is identified, or with the reason why not.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::transport::TransportError,
    swarm::{ConnectionId, DialError},
};
use tokio::sync::oneshot;

use super::{NetError, Source, address};

/// Callers that may wait at once: services bound their own work, so this is only a fence (a guess).
const MAX_WAITING: usize = 1024;

/// Who gets the answer.
#[derive(Debug)]
pub(super) enum Reply {
    /// `Network::dial`.
    Peer(oneshot::Sender<Result<PeerId, NetError>>),
    /// `Network::dial_peer`, and streams that wait for a connection.
    Done(oneshot::Sender<Result<(), NetError>>),
}

impl Reply {
    /// Answers; whoever went away does not mind.
    pub fn send(self, answer: Result<PeerId, NetError>) {
        match self {
            Self::Peer(reply) => drop(reply.send(answer)),
            Self::Done(reply) => drop(reply.send(answer.map(|_| ()))),
        }
    }
}

#[derive(Debug)]
struct Waiter {
    subject: String,
    reply: Reply,
    deadline: Instant,
    /// The attempt that decides, and where it goes; `None`: any attempt to reach the peer.
    attempt: Option<Attempt>,
}

/// A dial of an address that somebody named.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    /// The swarm's name for it.
    pub id: ConnectionId,
    /// Where it goes.
    pub address: Multiaddr,
    /// Who named it.
    pub source: Source,
}

/// Everybody who waits for a dial.
#[derive(Debug)]
pub(super) struct Dials {
    /// Dials of an address whose peer is not known yet.
    unknown: HashMap<ConnectionId, Waiter>,
    known: HashMap<PeerId, Vec<Waiter>>,
    patience: Duration,
}

impl Dials {
    /// Nobody waits yet; each answer comes within `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { unknown: HashMap::new(), known: HashMap::new(), patience }
    }

    /// Waits for the attempt `attempt` at an address without a peer id.
    pub fn wait_address(&mut self, attempt: Attempt, reply: Reply, now: Instant) {
        let subject = attempt.address.to_string();
        if let Some(reply) = self.admit(&subject, reply) {
            let deadline = now + self.patience;
            self.unknown.insert(attempt.id, Waiter { subject, reply, deadline, attempt: Some(attempt) });
        }
    }

    /// Waits until `peer` is identified; the failure of `attempt` (of any, if none is named) is the answer otherwise.
    pub fn wait_peer(&mut self, peer: PeerId, attempt: Option<Attempt>, reply: Reply, now: Instant) {
        let subject = peer.to_string();
        if let Some(reply) = self.admit(&subject, reply) {
            let waiter = Waiter { subject, reply, deadline: now + self.patience, attempt };
            self.known.entry(peer).or_default().push(waiter);
        }
    }

    fn admit(&self, subject: &str, reply: Reply) -> Option<Reply> {
        if self.unknown.len() + self.known.values().map(Vec::len).sum::<usize>() < MAX_WAITING {
            return Some(reply);
        }
        let reason = "too many dials are under way".to_owned();
        reply.send(Err(NetError::Unreachable { subject: subject.to_owned(), reason }));
        None
    }

    /// A connection is up. The attempt that it came of, if somebody waits for it: the address is this peer's.
    pub fn on_established(&mut self, id: ConnectionId, peer: PeerId) -> Option<Attempt> {
        if let Some(waiter) = self.unknown.remove(&id) {
            self.known.entry(peer).or_default().push(waiter);
        }
        let waiters = self.known.get(&peer)?;
        waiters.iter().filter_map(|waiter| waiter.attempt.as_ref()).find(|attempt| attempt.id == id).cloned()
    }

    /// The peer is of this network.
    pub fn on_identified(&mut self, peer: PeerId) {
        for waiter in self.known.remove(&peer).unwrap_or_default() {
            waiter.reply.send(Ok(peer));
        }
    }

    /// The peer is not.
    pub fn on_foreign(&mut self, peer: PeerId, reason: &str) {
        for waiter in self.known.remove(&peer).unwrap_or_default() {
            let reason = reason.to_owned();
            waiter.reply.send(Err(NetError::WrongNetwork { subject: waiter.subject, reason }));
        }
    }

    /// Its last connection is gone before identify was done (or it was refused).
    pub fn on_lost(&mut self, peer: PeerId, reason: &str) {
        for waiter in self.known.remove(&peer).unwrap_or_default() {
            let reason = reason.to_owned();
            waiter.reply.send(Err(NetError::Unreachable { subject: waiter.subject, reason }));
        }
    }

    /// An attempt failed. `open`: the peer has a connection all the same.
    pub fn on_failed(&mut self, attempt: ConnectionId, peer: Option<PeerId>, open: bool, error: &DialError) {
        let reason = reason(error);
        if let Some(waiter) = self.unknown.remove(&attempt) {
            waiter.reply.send(Err(NetError::Unreachable { subject: waiter.subject, reason: reason.clone() }));
        }
        let Some(peer) = peer.filter(|_| !open) else { return };
        let Some(waiters) = self.known.get_mut(&peer) else { return };
        let (failed, rest) = std::mem::take(waiters)
            .into_iter()
            .partition::<Vec<_>, _>(|waiter| waiter.attempt.as_ref().is_none_or(|mine| mine.id == attempt));
        if rest.is_empty() {
            self.known.remove(&peer);
        } else {
            *waiters = rest;
        }
        for waiter in failed {
            waiter.reply.send(Err(NetError::Unreachable { subject: waiter.subject, reason: reason.clone() }));
        }
    }

    /// Answers those who waited too long.
    pub fn tick(&mut self, now: Instant) {
        let late: Vec<_> = self.unknown.extract_if(|_, waiter| waiter.deadline <= now).map(|(_, w)| w).collect();
        let late: Vec<_> = late
            .into_iter()
            .chain(self.known.values_mut().flat_map(|w| w.extract_if(.., |w| w.deadline <= now)))
            .collect();
        self.known.retain(|_, waiters| !waiters.is_empty());
        for waiter in late {
            waiter.reply.send(Err(NetError::Timeout { subject: waiter.subject }));
        }
    }
}

/// Why an attempt failed, in words for a user.
pub(super) fn reason(error: &DialError) -> String {
    match error {
        DialError::LocalPeerId { .. } => "that is this node itself".to_owned(),
        DialError::NoAddresses => "no address of it is known".to_owned(),
        DialError::DialPeerConditionFalse(_) => "it is being dialled already".to_owned(),
        DialError::Aborted => "the attempt was given up".to_owned(),
        DialError::WrongPeerId { obtained, address } => {
            format!("{} belongs to another peer, {obtained}", address::bare(address))
        }
        DialError::Denied { cause } => innermost(cause),
        DialError::Transport(attempts) => {
            let mut reasons: Vec<_> = attempts.iter().map(|(address, error)| attempt_reason(address, error)).collect();
            reasons.sort_unstable();
            reasons.dedup();
            // A peer with many addresses fails in many ways; the first few say enough.
            reasons.truncate(4);
            reasons.join("; ")
        }
    }
}

fn attempt_reason(address: &Multiaddr, error: &TransportError<std::io::Error>) -> String {
    match error {
        TransportError::MultiaddrNotSupported(address) => format!("{address}: no transport for such an address"),
        TransportError::Other(error) => format!("{}: {}", address::bare(address), innermost(error)),
    }
}

/// The cause at the bottom; those above it only repeat it.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    let text = error.to_string();
    // The innermost ones of libp2p are `io::Error`s that carry another error as text.
    text.rsplit(": ").next().filter(|last| !last.is_empty()).map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(dials: &mut Dials, peer: PeerId, now: Instant) -> oneshot::Receiver<Result<(), NetError>> {
        let (reply, answer) = oneshot::channel();
        dials.wait_peer(peer, None, Reply::Done(reply), now);
        answer
    }

    #[test]
    fn each_who_waits_gets_one_answer() {
        let (mut dials, now) = (Dials::new(Duration::from_secs(20)), Instant::now());
        let (found, foreign, lost, late) = (PeerId::random(), PeerId::random(), PeerId::random(), PeerId::random());
        let mut answers = [found, foreign, lost, late].map(|peer| waiter(&mut dials, peer, now));
        dials.on_identified(found);
        dials.on_foreign(foreign, "another");
        dials.on_lost(lost, "closed");
        dials.tick(now + Duration::from_secs(21));
        assert_eq!(answers[0].try_recv(), Ok(Ok(())));
        assert!(matches!(answers[1].try_recv(), Ok(Err(NetError::WrongNetwork { .. }))));
        assert!(matches!(answers[2].try_recv(), Ok(Err(NetError::Unreachable { .. }))));
        assert!(matches!(answers[3].try_recv(), Ok(Err(NetError::Timeout { .. }))));
        assert!(dials.known.is_empty() && dials.unknown.is_empty());
    }

    #[test]
    fn another_attempts_failure_is_no_answer() {
        let (mut dials, now, peer) = (Dials::new(Duration::from_secs(20)), Instant::now(), PeerId::random());
        let attempt = |id| Attempt {
            id: ConnectionId::new_unchecked(id),
            address: "/ip4/10.0.0.1/tcp/1".parse().expect("a multiaddr"),
            source: Source::Manual,
        };
        let (reply, mut answer) = oneshot::channel();
        dials.wait_peer(peer, Some(attempt(1)), Reply::Peer(reply), now);
        dials.on_failed(ConnectionId::new_unchecked(2), Some(peer), false, &DialError::Aborted);
        assert!(answer.try_recv().is_err());
        assert!(dials.on_established(ConnectionId::new_unchecked(2), peer).is_none());
        dials.on_failed(ConnectionId::new_unchecked(1), Some(peer), true, &DialError::Aborted);
        assert!(answer.try_recv().is_err(), "it is connected otherwise");
        assert!(dials.on_established(ConnectionId::new_unchecked(1), peer).is_some());
        dials.on_identified(peer);
        assert_eq!(answer.try_recv(), Ok(Ok(peer)));
    }

    #[test]
    fn those_who_wait_are_bounded() {
        let (mut dials, now, peer) = (Dials::new(Duration::from_secs(20)), Instant::now(), PeerId::random());
        let mut answers: Vec<_> = (0..MAX_WAITING).map(|_| waiter(&mut dials, peer, now)).collect();
        assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()));
        assert!(matches!(waiter(&mut dials, peer, now).try_recv(), Ok(Err(NetError::Unreachable { .. }))));
    }

    #[test]
    fn reasons_are_sentences() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/1".parse().expect("a multiaddr");
        let error = DialError::Transport(vec![(address, TransportError::Other(refused))]);
        assert_eq!(reason(&error), "/ip4/10.0.0.1/tcp/1: connection refused");
    }
}
