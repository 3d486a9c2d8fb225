//! Streams: opened with retries, accepted without losing any.
//!
//! libp2p-stream drops an inbound stream when its acceptor lags behind (its queue holds one), and the opener finds
//! out only when it reads. So the acceptor begins every stream with one byte, [`TAKEN`], as soon as somebody has the
//! stream in hand; the opener waits for it and opens another stream if none comes. This is the one file that knows.

use std::time::{Duration, Instant};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::PeerId;
use libp2p_stream::{Control, OpenStreamError};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Heard, Inbound, NetError, Stream, behaviour::stream_protocol};

/// What the acceptor of a stream sends first.
pub const TAKEN: u8 = 1;
/// Streams that are being opened at once; services keep one session a peer, so this is only a fence (a guess).
const MAX_OPENING: usize = 1024;
/// How often a stream is opened anew when the acceptor dropped it: with the waits below, for about three seconds.
const ATTEMPTS: u32 = 10;
/// The first wait before another attempt; it doubles up to [`RETRY_MOST`].
const RETRY_LEAST: Duration = Duration::from_millis(10);
/// The longest wait between two attempts.
const RETRY_MOST: Duration = Duration::from_millis(640);
/// The longest that one attempt may take: a negotiation and a byte, on a busy link.
const STEP_WITHIN: Duration = Duration::from_secs(10);

/// Streams that are being opened, and the protocols that are accepted.
pub(super) struct Streams {
    control: Control,
    opening: JoinSet<()>,
    accepting: JoinSet<()>,
}

impl Streams {
    /// None yet.
    pub fn new(control: Control) -> Self {
        Self { control, opening: JoinSet::new(), accepting: JoinSet::new() }
    }

    /// Opens a stream once `connected` says that the peer is there.
    pub fn open(
        &mut self,
        peer: PeerId,
        protocol: String,
        connected: oneshot::Receiver<Result<(), NetError>>,
        heard: Heard,
        reply: oneshot::Sender<Result<Stream, NetError>>,
    ) {
        while self.opening.try_join_next().is_some() {}
        if self.opening.len() >= MAX_OPENING {
            let reason = "too many streams are being opened".to_owned();
            let _ = reply.send(Err(NetError::Unreachable { subject: peer.to_string(), reason }));
            return;
        }
        let control = self.control.clone();
        self.opening.spawn(async move {
            let mut reply = reply;
            let opened = async {
                connected.await.map_err(|_| NetError::Stopped)??;
                open(control, peer, protocol, &heard).await
            };
            tokio::select! {
                answer = opened => drop(reply.send(answer)),
                // Whoever asked went away.
                () = reply.closed() => {}
            }
        });
    }

    /// Hands the inbound streams of `protocol` to `streams`; while that queue is full, openers try again.
    pub fn accept(&mut self, protocol: String, streams: mpsc::Sender<Inbound>) -> Result<(), NetError> {
        while self.accepting.try_join_next().is_some() {}
        let name = stream_protocol(protocol.clone())?;
        let mut inbound = self.control.accept(name).map_err(|_| NetError::Unreachable {
            subject: protocol,
            reason: "its streams are accepted already".to_owned(),
        })?;
        self.accepting.spawn(async move {
            // Bounded by the places in `streams`: each task holds one.
            let mut greeting = JoinSet::new();
            loop {
                tokio::select! {
                    next = inbound.next() => match next {
                        Some((peer, stream)) => {
                            // Without a place the stream is dropped, which the opener sees and tries again.
                            if let Ok(place) = streams.clone().try_reserve_owned() {
                                greeting.spawn(take(peer, stream, place));
                            }
                        }
                        None => break,
                    },
                    Some(_) = greeting.join_next() => {}
                    // The protocol is given up with its acceptor.
                    () = streams.closed() => break,
                }
            }
        });
        Ok(())
    }
}

async fn take(peer: PeerId, mut stream: libp2p::Stream, place: mpsc::OwnedPermit<Inbound>) {
    let said = async {
        stream.write_all(&[TAKEN]).await?;
        stream.flush().await
    };
    if let Ok(Ok(())) = timeout(STEP_WITHIN, said).await {
        place.send((peer, Box::new(stream)));
    }
}

async fn open(mut control: Control, peer: PeerId, protocol: String, heard: &Heard) -> Result<Stream, NetError> {
    let name = stream_protocol(protocol.clone())?;
    let mut reason = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            let most = RETRY_MOST.min(RETRY_LEAST * 2_u32.saturating_pow(attempt - 1));
            // Those who collided must not collide again.
            sleep(most.mul_f64(rand::random_range(0.5..1.0))).await;
        }
        let mut stream = match timeout(STEP_WITHIN, control.open_stream(peer, name.clone())).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(OpenStreamError::UnsupportedProtocol(_))) => return Err(NetError::Unsupported { peer, protocol }),
            Ok(Err(error)) => {
                reason = error.to_string();
                continue;
            }
            Err(_) => return Err(NetError::Timeout { subject: format!("{peer}, asked for a stream,") }),
        };
        let (mut first, asked) = ([0], Instant::now());
        match timeout(STEP_WITHIN, stream.read_exact(&mut first)).await {
            Ok(Ok(())) if first[0] == TAKEN => {
                // The first round trip that is seen: a ping for that alone would cost a stream in each direction.
                if heard.latency().is_none_or(|known| known > asked.elapsed()) {
                    heard.measure(Some(asked.elapsed()));
                }
                return Ok(Box::new(stream));
            }
            Ok(Ok(())) => {
                reason = "it does not begin streams as it should".to_owned();
                break;
            }
            Ok(Err(_)) => reason = "it has no room for another stream".to_owned(),
            Err(_) => return Err(NetError::Timeout { subject: format!("{peer}, asked for a stream,") }),
        }
    }
    Err(NetError::Unreachable { subject: peer.to_string(), reason })
}
