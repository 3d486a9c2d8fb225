//! Where the node listens: which ports are free, and an error that says so when one is not.
//!
//! libp2p listens on TCP with SO_REUSEPORT: two daemons on one port would share it without an error, and dials would
//! go astray. So each port is first bound in the plain way.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use super::{Listen, NetError, TransportKind, address};

/// Ports that are tried before TCP and QUIC get different ones: many free ports at once is the rule.
const ATTEMPTS: usize = 16;

/// A plan: the addresses to listen on, all of which must work, or sets of them of which the first that works is taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// Tried in order; an error of the last one is the answer.
    pub sets: Vec<Vec<Multiaddr>>,
}

/// Which addresses to listen on.
pub(super) fn plan(listen: &Listen, transport: TransportKind) -> Result<Plan, NetError> {
    match (listen, transport) {
        (Listen::Exact(addresses), _) => {
            for address in addresses {
                probe(address).map_err(|error| refused(address, &error))?;
            }
            Ok(Plan { sets: vec![addresses.clone()] })
        }
        (Listen::Default { .. }, TransportKind::Memory) => {
            Ok(Plan { sets: vec![vec![Multiaddr::empty().with(Protocol::Memory(0))]] })
        }
        (Listen::Default { port }, TransportKind::Real) => {
            let hosts = hosts();
            let mut sets = Vec::new();
            if is_free(&hosts, *port) {
                sets.push(everywhere(&hosts, *port));
            }
            // Another port that is free for both; a few, because others may take one in the meantime.
            for _ in 0..ATTEMPTS {
                if sets.len() >= 4 {
                    break;
                }
                if let Some(port) = any_free_port().filter(|port| is_free(&hosts, *port)) {
                    sets.push(everywhere(&hosts, port));
                }
            }
            sets.push(everywhere(&hosts, 0));
            Ok(Plan { sets })
        }
    }
}

/// The error for an address that cannot be listened on.
pub(super) fn refused(address: &Multiaddr, error: &io::Error) -> NetError {
    let port = address::port(address).map_or_else(String::new, |port| format!(" {port}"));
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => format!("port{port} is in use by another program"),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => format!("this user may not use port{port}"),
        _ => error.to_string(),
    };
    NetError::Listen { address: address.clone(), reason }
}

fn hosts() -> Vec<IpAddr> {
    let mut hosts = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    if bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), SocketType::DGRAM).is_ok() {
        hosts.push(Ipv6Addr::UNSPECIFIED.into());
    }
    hosts
}

/// QUIC before TCP: its socket is never shared, so a race for the port shows there.
fn everywhere(hosts: &[IpAddr], port: u16) -> Vec<Multiaddr> {
    let quic = hosts.iter().map(|host| Multiaddr::from(*host).with(Protocol::Udp(port)).with(Protocol::QuicV1));
    let tcp = hosts.iter().map(|host| Multiaddr::from(*host).with(Protocol::Tcp(port)));
    quic.chain(tcp).collect()
}

fn is_free(hosts: &[IpAddr], port: u16) -> bool {
    hosts.iter().all(|host| {
        let address = SocketAddr::new(*host, port);
        bind(address, SocketType::STREAM).is_ok() && bind(address, SocketType::DGRAM).is_ok()
    })
}

fn any_free_port() -> Option<u16> {
    let socket = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.local_addr().ok().map(|address| address.port())
}

/// Whether an address that the user named can be had; what is no socket address is left to libp2p.
fn probe(address: &Multiaddr) -> io::Result<()> {
    let (Some(host), Some(port)) = (address::ip(address), address::port(address)) else { return Ok(()) };
    let kind = if address::is_udp(address) { SocketType::DGRAM } else { SocketType::STREAM };
    bind(SocketAddr::new(host, port), kind)
}

/// Binds in the plain way, IPv6 for IPv6 alone as libp2p has it, and lets go again.
fn bind(address: SocketAddr, kind: SocketType) -> io::Result<()> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // A port whose last connections are still being forgotten is free; one that is listened on is not.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    net::bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        net::listen(&socket, 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_where_it_was_named_and_another_one_where_it_was_not() {
        let taken = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let named: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("a multiaddr");
        let error = plan(&Listen::Exact(vec![named.clone()]), TransportKind::Real).expect_err("the port is taken");
        assert!(matches!(&error, NetError::Listen { address, .. } if *address == named), "{error}");
        assert!(error.to_string().contains("in use"), "{error}");

        let plan = plan(&Listen::Default { port }, TransportKind::Real).expect("another port");
        let first = plan.sets.first().expect("a set");
        let ports: Vec<_> = first.iter().filter_map(address::port).collect();
        assert!(ports.iter().all(|p| *p == ports[0] && *p != port && *p != 0), "{ports:?}");
        assert!(ports.len() >= 2);
    }

    #[test]
    fn a_taken_udp_port_is_an_error_too() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let named: Multiaddr = format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().expect("a multiaddr");
        assert!(plan(&Listen::Exact(vec![named]), TransportKind::Real).is_err());
        // The same number is free for TCP.
        let named: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("a multiaddr");
        assert!(plan(&Listen::Exact(vec![named]), TransportKind::Real).is_ok());
    }

    #[test]
    fn an_address_of_another_machine_says_so() {
        let named: Multiaddr = "/ip4/192.0.2.1/tcp/4242".parse().expect("a multiaddr");
        let error = plan(&Listen::Exact(vec![named]), TransportKind::Real).expect_err("not ours");
        assert!(error.to_string().contains("no such address"), "{error}");
    }
}
