//! Pings that are asked for (the libp2p ping protocol, `/ipfs/ping/1.0.0`), and answers to everybody's.
//!
//! libp2p's own behaviour pings each connection at once and then at a fixed interval, needed or not. This one does so only
//! when the driver asks.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
        NotifyHandler, SubstreamProtocol, ToSwarm,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");
/// Bytes of a ping, and of its answer.
const BYTES: usize = 32;

/// A ping was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pong {
    /// By whom.
    pub peer: PeerId,
    /// On which connection.
    pub connection: ConnectionId,
    /// After how long.
    pub round_trip: Duration,
}

/// The behaviour.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Bounded by the connections: the swarm takes each as soon as it is there.
    events: VecDeque<ToSwarm<Pong, Ask>>,
}

impl Pulse {
    /// Pings a connection, unless it is being pinged.
    pub fn ask(&mut self, peer_id: PeerId, connection: ConnectionId) {
        self.events.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event: Ask });
    }
}

impl NetworkBehaviour for Pulse {
    type ConnectionHandler = Handler;
    type ToSwarm = Pong;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, round_trip: Duration) {
        self.events.push_back(ToSwarm::GenerateEvent(Pong { peer, connection, round_trip }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Pong, Ask>> {
        // Whoever asks, asks between two polls of the swarm.
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// The driver asks for a ping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask;

/// Where the pings of this node on one connection are. A connection that does not answer is the driver's to close.
#[derive(Default)]
enum Outbound {
    /// None is wanted, and there is no stream for one.
    #[default]
    Rest,
    /// One is wanted.
    Fresh,
    /// The stream is being opened.
    Opening,
    /// Sent, and not answered yet.
    Pinging(BoxFuture<'static, io::Result<(Stream, Duration)>>),
    /// None is wanted; the stream is kept for the next one.
    Idle(Stream),
}

/// The pings of one connection.
#[derive(Default)]
pub(super) struct Handler {
    outbound: Outbound,
    /// The peer's latest stream.
    inbound: Option<BoxFuture<'static, io::Result<Infallible>>>,
}

impl Handler {
    fn open() -> SubstreamProtocol<ReadyUpgrade<StreamProtocol>, ()> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Ask;
    type ToBehaviour = Duration;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<ReadyUpgrade<StreamProtocol>, ()> {
        Self::open()
    }

    fn on_behaviour_event(&mut self, Ask: Ask) {
        self.outbound = match std::mem::take(&mut self.outbound) {
            Outbound::Idle(stream) => Outbound::Pinging(ping(stream).boxed()),
            Outbound::Rest => Outbound::Fresh,
            busy => busy,
        };
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, (), Duration>> {
        if let Some(answering) = &mut self.inbound
            && answering.poll_unpin(context).is_ready()
        {
            self.inbound = None;
        }
        match &mut self.outbound {
            Outbound::Fresh => {
                self.outbound = Outbound::Opening;
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol: Self::open() })
            }
            Outbound::Pinging(pinging) => match pinging.poll_unpin(context) {
                Poll::Ready(Ok((stream, round_trip))) => {
                    self.outbound = Outbound::Idle(stream);
                    Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(round_trip))
                }
                Poll::Ready(Err(_)) => {
                    self.outbound = Outbound::Rest;
                    Poll::Pending
                }
                Poll::Pending => Poll::Pending,
            },
            Outbound::Rest | Outbound::Opening | Outbound::Idle(_) => Poll::Pending,
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, ReadyUpgrade<StreamProtocol>, ReadyUpgrade<StreamProtocol>>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: mut stream, .. }) => {
                stream.ignore_for_keep_alive();
                self.inbound = Some(answer(stream).boxed());
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: mut stream, .. }) => {
                stream.ignore_for_keep_alive();
                self.outbound = Outbound::Pinging(ping(stream).boxed());
            }
            // It broke, or the peer does not answer pings.
            ConnectionEvent::DialUpgradeError(_) => self.outbound = Outbound::Rest,
            _ => {}
        }
    }
}

/// Sends one ping; how long its answer took.
async fn ping(mut stream: Stream) -> io::Result<(Stream, Duration)> {
    let sent: [u8; BYTES] = rand::random();
    let began = Instant::now();
    stream.write_all(&sent).await?;
    stream.flush().await?;
    let mut answer = [0; BYTES];
    stream.read_exact(&mut answer).await?;
    if answer != sent {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((stream, began.elapsed()))
}

/// Answers pings until the stream ends, one at a time: a peer that sends more waits.
async fn answer(mut stream: Stream) -> io::Result<Infallible> {
    let mut bytes = [0; BYTES];
    loop {
        stream.read_exact(&mut bytes).await?;
        stream.write_all(&bytes).await?;
        stream.flush().await?;
    }
}
