//! Connections: TCP with TLS 1.3 first and Noise beside it over Yamux, QUIC, DNS over both; or channels in memory.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, Swarm, SwarmBuilder,
    core::{
        Transport,
        transport::{
            DialOpts, ListenerId, MemoryTransport, PortUse, TransportError, TransportEvent, dummy::DummyTransport,
        },
        upgrade::Version,
    },
    dns,
    identity::Keypair,
    noise, quic, tcp, tls, yamux,
};

use super::{
    Config, NetError, TransportKind, Tuning, address,
    behaviour::{Behaviour, NEVER},
    heard::{Ears, Hearing, Heeding},
};

/// How long QUIC waits on a local network, so that TCP, which is faster there, is first.
const QUIC_PATIENCE: Duration = Duration::from_millis(250);
/// A mapping of a NAT for UDP is to last two minutes (RFC 4787, 4.3), but many last thirty seconds (RFC 9000, 10.1.2), so
/// that whoever is behind one must be heard more often to be reached at all.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(25);
/// A connection of QUIC that brings nothing for so long is dead: two keep-alives may get lost.
const QUIC_IDLE: Duration = Duration::from_secs(80);

/// A swarm that listens nowhere yet.
pub(super) fn swarm(
    config: &Config,
    behaviour: Behaviour,
    tuning: &Tuning,
    ears: &Ears,
) -> Result<Swarm<Behaviour>, NetError> {
    let tls = |keypair: &Keypair| Ok::<_, tls::certificate::GenError>(hearing(tls::Config::new(keypair)?, ears));
    let noise = |keypair: &Keypair| Ok::<_, noise::Error>(hearing(noise::Config::new(keypair)?, ears));
    let builder = SwarmBuilder::with_existing_identity(config.keypair.clone()).with_tokio();
    // The builder's type differs in each arm, so the last steps are written once here.
    macro_rules! finish {
        ($builder:expr) => {
            $builder
                .with_behaviour(|_| behaviour)
                .map_err(broken)?
                .with_swarm_config(|settings| settings.with_idle_connection_timeout(NEVER))
                .with_connection_timeout(tuning.handshake)
                .build()
        };
    }
    // Connections of a mesh stay for as long as both ends want them; the driver finds dead ones.
    let swarm = match config.transport {
        TransportKind::Real => {
            let builder = builder
                .with_tcp(tcp::Config::default().nodelay(true), (tls, noise), yamux::Config::default)
                .map_err(broken)?
                .with_other_transport(|keypair| {
                    let ears = ears.clone();
                    Patient { inner: quic(keypair, tuning) }
                        .map(move |(peer, inner), _| (peer, Heeding { inner, heard: ears.met(&peer) }))
                })
                .map_err(broken)?;
            // Without an /etc/resolv.conf only names fail, not the node.
            match dns::tokio::Transport::system(DummyTransport::<()>::new()) {
                Ok(_) => finish!(builder.with_dns().map_err(broken)?),
                Err(error) => {
                    tracing::warn!("names in addresses cannot be resolved: {error}");
                    let (servers, options) = (dns::ResolverConfig::default(), dns::ResolverOpts::default());
                    finish!(builder.with_dns_config(servers, options))
                }
            }
        }
        TransportKind::Memory => finish!(
            builder
                .with_other_transport(|keypair| {
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
                        MemoryTransport::new()
                            .upgrade(Version::V1Lazy)
                            .authenticate(noise(keypair)?)
                            .multiplex(yamux::Config::default()),
                    )
                })
                .map_err(broken)?
        ),
    };
    Ok(swarm)
}

/// A handshake whose connections are listened to.
fn hearing<U>(upgrade: U, ears: &Ears) -> Hearing<U> {
    Hearing { upgrade, ears: ears.clone() }
}

fn quic(keypair: &Keypair, tuning: &Tuning) -> quic::tokio::Transport {
    let mut config = quic::Config::new(keypair);
    config.handshake_timeout = tuning.handshake;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    // A minute or two in milliseconds fits.
    config.max_idle_timeout = u32::try_from(QUIC_IDLE.as_millis()).unwrap_or(u32::MAX);
    quic::tokio::Transport::new(config)
}

fn broken(error: impl std::fmt::Display) -> NetError {
    NetError::Unreachable { subject: "the network".to_owned(), reason: error.to_string() }
}

/// QUIC that lets TCP go first to addresses on a local network (the swarm dials all addresses at once). Where QUIC
/// is all there is, it costs a quarter of a second once a connection.
struct Patient<T> {
    inner: T,
}

impl<T> Transport for Patient<T>
where
    T: Transport + Unpin,
    T::Dial: Send + 'static,
    T::Output: 'static,
    T::Error: 'static,
{
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = BoxFuture<'static, Result<T::Output, T::Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<T::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, mut options: DialOpts) -> Result<Self::Dial, TransportError<T::Error>> {
        let wait = address::is_private(&address);
        // The listening socket serves dials too; a new one for each would only cost file descriptors.
        options.port_use = PortUse::Reuse;
        let dial = self.inner.dial(address, options)?;
        if !wait {
            return Ok(dial.boxed());
        }
        Ok(async move {
            tokio::time::sleep(QUIC_PATIENCE).await;
            dial.await
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_without_name_servers_builds_a_transport() {
        let (servers, options) = (dns::ResolverConfig::default(), dns::ResolverOpts::default());
        let _ = dns::tokio::Transport::custom(DummyTransport::<()>::new(), servers, options);
    }
}
