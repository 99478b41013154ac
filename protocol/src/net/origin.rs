//! Where the other end of a connection is, as far as that bounds what one party may take of us:
//! names cost nothing, networks do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::net::peer;

/// Where a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Behind a relay, which does not tell; or gone.
    Unknown,
    /// On this machine or a network of ours.
    Near,
    /// Where our operator has said, by a name: strangers' names are not dialled.
    Named,
    /// On the Internet: the /24 of an IPv4 address, the /48 of an IPv6 one, which one party can
    /// hold whole.
    Network(IpAddr),
}

impl Origin {
    /// Where the other end of a connection without a relay is.
    pub(super) fn of(end: &Multiaddr) -> Self {
        let ip: IpAddr = match end.iter().next() {
            Some(Protocol::Ip4(ip)) => ip.into(),
            Some(Protocol::Ip6(ip)) => ip.to_canonical(),
            Some(Protocol::Memory(_)) => return Self::Near,
            Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => return Self::Named,
            _ => return Self::Unknown,
        };
        if !peer::is_public(&Multiaddr::from(ip).with(Protocol::Tcp(1))) {
            return Self::Near;
        }
        Self::Network(match ip {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << 8)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 80)).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Origin {
        Origin::of(&text.parse().expect("an address"))
    }

    #[test]
    fn a_network_is_what_one_party_can_hold_whole() {
        let home = of("/ip4/9.9.9.1/tcp/1");
        assert!(matches!(home, Origin::Network(_)));
        assert_eq!(home, of("/ip4/9.9.9.255/udp/9/quic-v1"));
        assert_eq!(home, of("/ip6/::ffff:9.9.9.7/tcp/1"));
        assert_ne!(home, of("/ip4/9.9.8.1/tcp/1"));
        let six = of("/ip6/2a00:1:1:1::1/tcp/1");
        assert!(matches!(six, Origin::Network(_)));
        assert_eq!(six, of("/ip6/2a00:1:1:ffff::2/tcp/1"));
        assert_ne!(six, of("/ip6/2a00:1:2::1/tcp/1"));
    }

    #[test]
    fn what_is_no_place_on_the_internet_is_no_network() {
        for near in [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/192.168.1.2/tcp/1",
            "/ip4/100.64.0.1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/memory/1",
        ] {
            assert_eq!(of(near), Origin::Near, "{near}");
        }
        assert_eq!(of("/dns4/example.org/tcp/1"), Origin::Named);
        let name = Multiaddr::empty().with(Protocol::P2p(libp2p::PeerId::random()));
        assert_eq!(Origin::of(&name), Origin::Unknown, "in through a relay");
    }
}
