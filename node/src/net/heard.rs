//! When a peer was last heard, since when it owes an answer, and how far away it is: stamps of each peer, set by the bytes
//! of its connections as they pass, and read by whoever asks. Nothing is sent, and nobody is told.

use std::{
    collections::HashMap,
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{
    AsyncRead, AsyncWrite, TryFutureExt as _,
    future::MapOk,
    io::{IoSlice, IoSliceMut},
};
use libp2p::{
    PeerId,
    core::{
        UpgradeInfo,
        muxing::{StreamMuxer, StreamMuxerEvent},
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
};

use super::gather::Gather;
use crate::runner::now;

/// What is said to a peer within so long of hearing it is taken for an answer to what was heard: every exchange has a last
/// word, and two that both wait for an answer to theirs would never be done. Longer than a round trip.
const ANSWERING: Duration = Duration::from_secs(2);

/// The stamps of one peer, in microseconds since `since`; each is a hint of its own, so that none orders the others.
struct Stamps {
    since: Instant,
    heard: AtomicU64,
    /// When the first thing that was no answer was said after the last was heard, or something earlier.
    said: AtomicU64,
    /// The last measured round trip in microseconds and one; 0: none was measured.
    round_trip: AtomicU64,
}

/// When a peer was last heard. A clone reads the same stamps: what it says is true at the moment that it is asked.
#[derive(Clone)]
pub struct Heard(Arc<Stamps>);

impl Default for Heard {
    fn default() -> Self {
        Self::now()
    }
}

impl Heard {
    /// Of a peer that is heard now for the first time.
    pub fn now() -> Self {
        Self::since(now())
    }

    fn since(since: Instant) -> Self {
        let (heard, said, round_trip) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Stamps { since, heard, said, round_trip }))
    }

    /// When the last byte came from the peer, over any of its connections.
    pub fn last(&self) -> Instant {
        self.at(&self.0.heard)
    }

    /// Since when something that was said to the peer waits for a byte of it; `None`: it was heard since.
    pub fn unanswered(&self) -> Option<Instant> {
        let (said, heard) = (self.0.said.load(Ordering::Relaxed), self.0.heard.load(Ordering::Relaxed));
        (said > heard).then(|| self.0.since + Duration::from_micros(said))
    }

    /// The last measured round trip, while the peer is connected.
    pub fn latency(&self) -> Option<Duration> {
        self.0.round_trip.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_micros)
    }

    /// A byte came.
    pub fn hear(&self, at: Instant) {
        self.0.heard.store(self.micros(at), Ordering::Relaxed);
    }

    /// A byte went.
    pub fn say(&self, at: Instant) {
        let (at, heard) = (self.micros(at), self.0.heard.load(Ordering::Relaxed));
        if self.0.said.load(Ordering::Relaxed) <= heard && at > heard.saturating_add(micros(ANSWERING)) {
            self.0.said.store(at, Ordering::Relaxed);
        }
    }

    /// A round trip was measured, or what was measured says nothing any more.
    pub fn measure(&self, round_trip: Option<Duration>) {
        let stamp = round_trip.map_or(0, |time| micros(time).saturating_add(1));
        self.0.round_trip.store(stamp, Ordering::Relaxed);
    }

    fn at(&self, stamp: &AtomicU64) -> Instant {
        self.0.since + Duration::from_micros(stamp.load(Ordering::Relaxed))
    }

    fn micros(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.0.since))
    }
}

fn micros(time: Duration) -> u64 {
    // 2^64 microseconds are longer than anything runs.
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Two that read the same stamps: what they read is no part of what a peer is.
impl PartialEq for Heard {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Heard {}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heard").field("last", &self.last()).field("unanswered", &self.unanswered()).finish()
    }
}

/// The stamps of every peer that somebody still has: its connections, and whoever knows it.
#[derive(Clone, Debug, Default)]
pub struct Ears(Arc<Mutex<HashMap<PeerId, Weak<Stamps>>>>);

impl Ears {
    /// The stamps of a peer, new ones if nobody has any.
    pub fn of(&self, peer: &PeerId) -> Heard {
        // Nothing under this lock panics.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stamps) = all.get(peer).and_then(Weak::upgrade) {
            return Heard(stamps);
        }
        // Peers come seldom: a look at all of them then keeps the map as small as the number of those that are known.
        all.retain(|_, stamps| stamps.strong_count() > 0);
        let heard = Heard::now();
        all.insert(*peer, Arc::downgrade(&heard.0));
        heard
    }

    /// The stamps of a peer whose handshake is over: it was heard.
    pub(super) fn met(&self, peer: &PeerId) -> Heard {
        let heard = self.of(peer);
        heard.hear(now());
        heard
    }
}

/// A stream that stamps what passes.
pub(super) struct Ear<S> {
    inner: S,
    heard: Heard,
}

impl<S: AsyncRead + Unpin> AsyncRead for Ear<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.listened(read)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read_vectored(context, buffers);
        self.listened(read)
    }
}

impl<S> Ear<S> {
    fn listened(&self, read: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(read, Poll::Ready(Ok(1..))) {
            self.heard.hear(now());
        }
        read
    }

    fn spoke(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.heard.say(now());
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ear<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.spoke(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.spoke(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

/// A security handshake whose connection stamps what passes, below the streams: what a multiplexer says to its like
/// (a window, a ping) is heard too. What is written is gathered ([`Gather`]).
#[derive(Clone)]
pub(super) struct Hearing<U> {
    /// The handshake.
    pub upgrade: U,
    /// Where the stamps are.
    pub ears: Ears,
}

impl<U: UpgradeInfo> UpgradeInfo for Hearing<U> {
    type Info = U::Info;
    type InfoIter = U::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.upgrade.protocol_info()
    }
}

type Secured<S> = (PeerId, S);
type Heeded<S> = Secured<Ear<Gather<S>>>;
type Wrap<S> = Box<dyn FnOnce(Secured<S>) -> Heeded<S> + Send>;

fn wrap<S: AsyncWrite>(ears: Ears) -> Wrap<S> {
    Box::new(move |(peer, stream)| {
        let inner = Gather::new(stream);
        (peer, Ear { inner, heard: ears.met(&peer) })
    })
}

impl<C, S, U> InboundConnectionUpgrade<C> for Hearing<U>
where
    S: AsyncWrite,
    U: InboundConnectionUpgrade<C, Output = Secured<S>>,
{
    type Output = Heeded<S>;
    type Error = U::Error;
    type Future = MapOk<U::Future, Wrap<S>>;

    fn upgrade_inbound(self, socket: C, protocol: Self::Info) -> Self::Future {
        self.upgrade.upgrade_inbound(socket, protocol).map_ok(wrap(self.ears))
    }
}

impl<C, S, U> OutboundConnectionUpgrade<C> for Hearing<U>
where
    S: AsyncWrite,
    U: OutboundConnectionUpgrade<C, Output = Secured<S>>,
{
    type Output = Heeded<S>;
    type Error = U::Error;
    type Future = MapOk<U::Future, Wrap<S>>;

    fn upgrade_outbound(self, socket: C, protocol: Self::Info) -> Self::Future {
        self.upgrade.upgrade_outbound(socket, protocol).map_ok(wrap(self.ears))
    }
}

/// A connection that has its streams within (QUIC): each of them stamps what passes.
pub(super) struct Heeding<M> {
    /// The connection.
    pub inner: M,
    /// Its peer's stamps.
    pub heard: Heard,
}

impl<M: StreamMuxer + Unpin> Heeding<M> {
    fn ear(&self, inner: M::Substream) -> Ear<M::Substream> {
        Ear { inner, heard: self.heard.clone() }
    }
}

impl<M: StreamMuxer + Unpin> StreamMuxer for Heeding<M>
where
    M::Substream: Unpin,
{
    type Substream = Ear<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Self::Substream, M::Error>> {
        Pin::new(&mut self.inner).poll_inbound(context).map_ok(|stream| self.ear(stream))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Self::Substream, M::Error>> {
        Pin::new(&mut self.inner).poll_outbound(context).map_ok(|stream| self.ear(stream))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), M::Error>> {
        Pin::new(&mut self.inner).poll_close(context)
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, M::Error>> {
        Pin::new(&mut self.inner).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_owes_an_answer_from_the_first_thing_that_was_said_until_it_is_heard() {
        let start = now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let heard = Heard::since(start);
        assert_eq!((heard.last(), heard.unanswered()), (start, None));
        heard.say(at(3));
        heard.say(at(4));
        assert_eq!(heard.unanswered(), Some(at(3)), "the first counts");
        heard.hear(at(6));
        assert_eq!((heard.last(), heard.unanswered()), (at(6), None));
        heard.say(at(7));
        assert_eq!(heard.unanswered(), None, "the last word of an exchange wants no answer");
        heard.say(at(9));
        assert_eq!((heard.last(), heard.unanswered()), (at(6), Some(at(9))), "and then anew");
    }

    #[test]
    fn a_round_trip_of_nothing_is_one_too() {
        let heard = Heard::now();
        assert_eq!(heard.latency(), None);
        for round_trip in [Duration::ZERO, Duration::from_micros(350)] {
            heard.measure(Some(round_trip));
            assert_eq!(heard.latency(), Some(round_trip));
        }
        heard.measure(None);
        assert_eq!(heard.latency(), None);
    }

    #[test]
    fn stamps_are_shared_while_somebody_has_them_and_forgotten_then() {
        let (ears, peer) = (Ears::default(), PeerId::random());
        let (one, two) = (ears.of(&peer), ears.of(&peer));
        assert_eq!(one, two);
        drop(one);
        assert_eq!(ears.of(&peer), two, "somebody has them");
        drop(two);
        for _ in 0..100 {
            drop(ears.of(&PeerId::random()));
        }
        assert_eq!(ears.0.lock().expect("nothing panicked").len(), 1, "only the last that came is still there");
    }
}
