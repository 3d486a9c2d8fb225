//! What a multiaddr says: its peer, whether it can be dialled from elsewhere, how near it is (multiaddr spec).

use std::net::IpAddr;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

pub use p2p_protocol::discovery::MAX_ADDRESSES;

/// The address without its `/p2p/…`, and that peer.
pub fn split_peer(address: &Multiaddr) -> (Multiaddr, Option<PeerId>) {
    let mut bare = address.clone();
    match bare.pop() {
        Some(Protocol::P2p(peer)) => (bare, Some(peer)),
        _ => (address.clone(), None),
    }
}

/// The address without its `/p2p/…`.
pub fn bare(address: &Multiaddr) -> Multiaddr {
    split_peer(address).0
}

/// The IP address that it begins with.
pub fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// Whether it names this machine only.
pub fn is_loopback(address: &Multiaddr) -> bool {
    ip(address).is_some_and(|ip| ip.is_loopback())
}

/// Whether it is on this machine or a local network, where TCP is faster than QUIC.
pub fn is_private(address: &Multiaddr) -> bool {
    match ip(address) {
        Some(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        Some(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        None => false,
    }
}

/// The port that it names.
pub fn port(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

/// Whether it goes over UDP.
pub fn is_udp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Udp(_)))
}

/// Whether another node can use it: a whole address of a transport that is spoken here, with a port.
///
/// IPv6 link-local addresses are left out: without their zone nobody can dial them.
pub fn is_dialable(address: &Multiaddr) -> bool {
    let usable_ip = match ip(address) {
        Some(IpAddr::V4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Some(IpAddr::V6(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
        None => true,
    };
    let parts: Vec<_> = bare(address).iter().map(|part| part.acquire()).collect();
    let whole = match parts.as_slice() {
        [host, Protocol::Tcp(port)] => is_host(host) && *port != 0,
        [host, Protocol::Udp(port), Protocol::QuicV1] => is_host(host) && *port != 0,
        [Protocol::Dnsaddr(_)] => true,
        [Protocol::Memory(port)] => *port != 0,
        _ => false,
    };
    usable_ip && whole
}

fn is_host(part: &Protocol<'_>) -> bool {
    matches!(part, Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_))
}

/// The dialable ones of `addresses`, bare, each once, at most [`MAX_ADDRESSES`]. Loopback addresses are kept only
/// when `loopback` says that the peer is on this machine.
pub fn usable(addresses: impl IntoIterator<Item = Multiaddr>, loopback: bool) -> Vec<Multiaddr> {
    let mut kept = Vec::new();
    for address in addresses {
        let address = bare(&address);
        if is_dialable(&address) && (loopback || !is_loopback(&address)) && !kept.contains(&address) {
            kept.push(address);
        }
        if kept.len() == MAX_ADDRESSES {
            break;
        }
    }
    kept
}

/// `listening` with the one first that the connection from or to `remote` goes to: that address itself, or else
/// the one with the same IP address and transport (an inbound connection comes from another port).
pub fn in_use_first(mut listening: Vec<Multiaddr>, remote: &Multiaddr, dialled: bool) -> Vec<Multiaddr> {
    let remote = bare(remote);
    let place = listening.iter().position(|address| *address == remote).or_else(|| {
        listening.iter().position(|a| ip(a).is_some() && ip(a) == ip(&remote) && is_udp(a) == is_udp(&remote))
    });
    match place {
        Some(place) => listening[..=place].rotate_right(1),
        None if dialled && is_dialable(&remote) => {
            listening.insert(0, remote);
            listening.truncate(MAX_ADDRESSES);
        }
        None => {}
    }
    listening
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddr")
    }

    #[test]
    fn dialable_addresses_are_told_from_the_others() {
        for text in [
            "/ip4/10.0.0.1/tcp/4242",
            "/ip6/2001:db8::1/udp/4242/quic-v1",
            "/dns4/example.org/tcp/1",
            "/memory/7",
            "/ip4/127.0.0.1/tcp/1",
        ] {
            assert!(is_dialable(&address(text)), "{text}");
        }
        for text in [
            "/ip4/0.0.0.0/tcp/4242",
            "/ip6/::/tcp/4242",
            "/ip6/fe80::1/tcp/4242",
            "/ip4/10.0.0.1/tcp/0",
            "/ip4/10.0.0.1/udp/4242",
            "/ip4/10.0.0.1",
            "/ip4/10.0.0.1/tcp/1/ws",
            "/memory/0",
        ] {
            assert!(!is_dialable(&address(text)), "{text}");
        }
    }

    #[test]
    fn a_list_from_a_peer_is_bounded_and_cleaned() {
        let many = (1..=100).map(|port| address(&format!("/ip4/10.0.0.1/tcp/{port}")));
        assert_eq!(usable(many, true).len(), MAX_ADDRESSES);
        let mixed = ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1"].map(address);
        assert_eq!(usable(mixed.clone(), false), vec![address("/ip4/10.0.0.1/tcp/1")]);
        assert_eq!(usable(mixed, true).len(), 2);
    }

    #[test]
    fn the_address_in_use_comes_first() {
        let listening = ["/ip4/10.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1"].map(address);
        let sorted = in_use_first(listening.to_vec(), &address("/ip4/10.0.0.1/tcp/50000"), false);
        assert_eq!(sorted[0], address("/ip4/10.0.0.1/tcp/1"));
        assert_eq!(sorted.len(), 3);
        let sorted = in_use_first(listening.to_vec(), &address("/ip4/192.0.2.1/tcp/9"), true);
        assert_eq!(sorted[0], address("/ip4/192.0.2.1/tcp/9"));
        assert_eq!(in_use_first(listening.to_vec(), &address("/ip4/192.0.2.1/tcp/9"), false), listening);
    }
}
