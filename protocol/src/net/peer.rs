//! Names and addresses at the border: [`NodeId`] on our side, peer ids and multiaddresses on
//! libp2p's. Addresses that strangers hand us are sifted here before anybody dials them.

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use crate::{identity::NodeId, net::Reach};

/// Multihash and protobuf header before an ed25519 key in a peer id.
const PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// Addresses of one peer worth trying: two transports over two families, twice.
const MAX_ADDRESSES: usize = 8;

/// The node behind a peer id, or `None` if its key is not ed25519.
pub(super) fn node_of(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&PREFIX)?;
    <[u8; 32]>::try_from(key).ok().map(NodeId::from_bytes)
}

/// The peer id of a node.
pub(super) fn peer_of(node: NodeId) -> PeerId {
    let mut bytes = [0; 38];
    bytes[..6].copy_from_slice(&PREFIX);
    bytes[6..].copy_from_slice(node.as_bytes());
    PeerId::from_bytes(&bytes).expect("an identity multihash of 36 bytes is a peer id")
}

/// What of the address is dialled first: all of it, or the relay before a circuit.
pub(super) fn first_hop(address: &Multiaddr) -> Multiaddr {
    let parts = address.iter();
    parts
        .take_while(|part| !matches!(part, Protocol::P2pCircuit))
        .collect()
}

/// Whether the address leads through a relay.
pub(super) fn is_relayed(address: &Multiaddr) -> bool {
    address
        .iter()
        .any(|part| matches!(part, Protocol::P2pCircuit))
}

/// The relay a place leads through, if it is `<place of ours>/p2p/<relay>/p2p-circuit`.
pub(super) fn relay_of(place: &Multiaddr, reach: Reach) -> Option<PeerId> {
    let mut place = place.clone();
    let circuit = matches!(place.pop(), Some(Protocol::P2pCircuit));
    let (hop, relay) = split(place);
    relay.filter(|_| circuit && allowed(&hop, reach))
}

/// Splits `…/p2p/<peer>` into the place and the peer.
pub(super) fn split(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    let peer = match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    };
    if peer.is_some() {
        address.pop();
    }
    (address, peer)
}

/// The address as others should write it: with the peer at its end.
pub(super) fn full(address: &Multiaddr, peer: PeerId) -> String {
    address
        .clone()
        .with_p2p(peer)
        .map_or_else(|other| other.to_string(), |full| full.to_string())
}

/// What of a stranger's address list may be dialled: parsable, on a transport of ours or through
/// one relay that is, not another peer's, allowed by `reach`, each once and few.
pub(super) fn dialable(addresses: &[String], peer: PeerId, reach: Reach) -> Vec<Multiaddr> {
    let mut kept = Vec::new();
    for address in addresses
        .iter()
        .filter_map(|text| text.parse::<Multiaddr>().ok())
    {
        let (place, named) = split(address);
        let ours = named.is_none_or(|named| named == peer);
        let relayed = relay_of(&place, reach).is_some_and(|relay| relay != peer);
        if ours && (relayed || allowed(&place, reach)) && !kept.contains(&place) {
            kept.push(place);
        }
        if kept.len() == MAX_ADDRESSES {
            break;
        }
    }
    kept
}

/// Whether the address is one transport of ours, at a place `reach` lets us dial.
pub(super) fn allowed(address: &Multiaddr, reach: Reach) -> bool {
    let mut parts = address.iter();
    let place = match parts.next() {
        Some(Protocol::Memory(_)) => return reach == Reach::Local && parts.next().is_none(),
        Some(Protocol::Ip4(ip)) => {
            reach == Reach::Local
                || !(ip.is_loopback()
                    || ip.is_link_local()
                    || ip.is_broadcast()
                    || ip.is_documentation())
                    && ip.octets()[0] != 0
                    && !ip.is_multicast()
        }
        Some(Protocol::Ip6(ip)) => match ip.to_ipv4_mapped() {
            Some(_) => false,
            None => {
                reach == Reach::Local
                    || !(ip.is_loopback()
                        || ip.is_unspecified()
                        || ip.is_multicast()
                        || ip.is_unicast_link_local())
            }
        },
        // A stranger's name may lead anywhere, also into our own house.
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => reach == Reach::Local,
        _ => false,
    };
    let transport = match (parts.next(), parts.next(), parts.next()) {
        (Some(Protocol::Tcp(port)), None, None) => port != 0,
        (Some(Protocol::Udp(port)), Some(Protocol::QuicV1), None) => port != 0,
        _ => false,
    };
    place && transport
}

/// Whether the address means the same place to everybody on the Internet.
pub(super) fn is_public(address: &Multiaddr) -> bool {
    let private = match address.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            ip.is_private() || (ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64)
        }
        Some(Protocol::Ip6(ip)) => ip.is_unique_local(),
        _ => true,
    };
    !private && allowed(address, Reach::Public)
}

/// Whether the address uses QUIC, our first choice.
pub(super) fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::QuicV1))
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;

    #[test]
    fn a_node_is_written_like_its_libp2p_peer_id() {
        for seed in 0..32 {
            let pair = Keypair::ed25519_from_bytes([seed; 32]).unwrap();
            let peer = pair.public().to_peer_id();
            let node = node_of(&peer).unwrap();
            assert_eq!(node.to_string(), peer.to_string());
            assert_eq!(peer.to_string().parse::<NodeId>().unwrap(), node);
            assert_eq!(peer_of(node), peer);
            assert!(node.to_string().starts_with("12D3KooW"));
        }
    }

    #[test]
    fn a_key_that_is_not_ed25519_has_no_node() {
        let mut secp256k1 = vec![0x00, 0x25, 0x08, 0x02, 0x12, 0x21];
        secp256k1.extend([2; 33]);
        assert_eq!(node_of(&PeerId::from_bytes(&secp256k1).unwrap()), None);
        let mut rsa = vec![0x12, 0x20];
        rsa.extend([7; 32]);
        assert_eq!(node_of(&PeerId::from_bytes(&rsa).unwrap()), None);
    }

    #[test]
    fn a_stranger_cannot_make_us_dial_just_anything() {
        let pair = Keypair::ed25519_from_bytes([1; 32]).unwrap();
        let peer = pair.public().to_peer_id();
        let cases = [
            ("/ip4/9.9.9.9/tcp/4001", true, true),
            ("/ip4/9.9.9.9/udp/4001/quic-v1", true, true),
            ("/ip4/192.168.1.4/tcp/4001", true, true),
            ("/dns4/seller.example/udp/4001/quic-v1", false, true),
            ("/ip4/127.0.0.1/tcp/4001", false, true),
            ("/ip6/::1/tcp/4001", false, true),
            ("/ip4/169.254.169.254/tcp/80", false, true),
            ("/ip4/224.0.0.1/udp/4001/quic-v1", false, true),
            ("/memory/7", false, true),
            ("/ip6/::ffff:127.0.0.1/tcp/4001", false, false),
            ("/ip4/9.9.9.9/tcp/0", false, false),
            ("/ip4/9.9.9.9/udp/53", false, false),
            ("/ip4/9.9.9.9/tcp/80/ws", false, false),
            ("not an address", false, false),
        ];
        for (text, public, local) in cases {
            let list = [text.to_owned()];
            assert_eq!(
                dialable(&list, peer, Reach::Public).len(),
                usize::from(public),
                "{text}"
            );
            assert_eq!(
                dialable(&list, peer, Reach::Local).len(),
                usize::from(local),
                "{text}"
            );
        }
        for (text, public, local) in cases.into_iter().filter(|(text, ..)| *text != "/memory/7") {
            let relay = PeerId::random();
            let list = [format!("{text}/p2p/{relay}/p2p-circuit/p2p/{peer}")];
            let through = |reach| dialable(&list, peer, reach).len();
            assert_eq!(through(Reach::Public), usize::from(public), "{text}");
            assert_eq!(through(Reach::Local), usize::from(local), "{text}");
        }
        let itself = [format!("/ip4/9.9.9.9/tcp/1/p2p/{peer}/p2p-circuit")];
        let twice = [format!(
            "/ip4/9.9.9.9/tcp/1/p2p/{0}/p2p-circuit/p2p/{0}/p2p-circuit",
            PeerId::random()
        )];
        let nameless = ["/ip4/9.9.9.9/tcp/1/p2p-circuit".to_owned()];
        for list in [itself, twice, nameless] {
            assert!(dialable(&list, peer, Reach::Local).is_empty(), "{list:?}");
        }
        let other = Keypair::ed25519_from_bytes([2; 32])
            .unwrap()
            .public()
            .to_peer_id();
        assert!(
            dialable(
                &[format!("/ip4/9.9.9.9/tcp/1/p2p/{other}")],
                peer,
                Reach::Public
            )
            .is_empty()
        );
        let many: Vec<_> = (1..100)
            .map(|port| format!("/ip4/9.9.9.9/tcp/{port}"))
            .collect();
        assert_eq!(dialable(&many, peer, Reach::Public).len(), MAX_ADDRESSES);
    }
}
