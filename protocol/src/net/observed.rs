//! The addresses under which others see us. Believed once several peers that *we* dialled agree,
//! for whoever dials us could say anything. Seen is not reachable: a firewall may still stand in
//! between.

use std::collections::{HashMap, HashSet};

use libp2p::{Multiaddr, PeerId};

use crate::net::peer;

/// Peers that must agree.
const WITNESSES: usize = 3;

/// Addresses under observation; more are not taken up.
const MAX_ADDRESSES: usize = 32;

/// Who has seen us where.
#[derive(Default)]
pub(super) struct Observed {
    seen: HashMap<Multiaddr, HashSet<PeerId>>,
}

impl Observed {
    /// Notes a sighting; true when it is the one that makes the address believed. What the
    /// witness said before of the same transport no longer counts: nobody fills the list alone.
    pub(super) fn note(&mut self, address: &Multiaddr, witness: PeerId) -> bool {
        self.seen.retain(|seen, witnesses| {
            if seen != address && peer::is_quic(seen) == peer::is_quic(address) {
                witnesses.remove(&witness);
            }
            !witnesses.is_empty()
        });
        if self.seen.len() >= MAX_ADDRESSES && !self.seen.contains_key(address) {
            return false;
        }
        let witnesses = self.seen.entry(address.clone()).or_default();
        witnesses.len() < WITNESSES && witnesses.insert(witness) && witnesses.len() == WITNESSES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_believed_once_when_three_peers_have_seen_it() {
        let mut observed = Observed::default();
        let address: Multiaddr = "/ip4/9.9.9.9/tcp/1".parse().unwrap();
        let [a, b, c, d] = [(); 4].map(|()| PeerId::random());
        let sightings = [a, a, b, c, d, c].map(|witness| observed.note(&address, witness));
        assert_eq!(sightings, [false, false, false, true, false, false]);
    }

    #[test]
    fn a_witness_that_invents_addresses_without_end_holds_one_place() {
        let mut observed = Observed::default();
        let liar = PeerId::random();
        let at = |port: usize| format!("/ip4/9.9.9.9/tcp/{port}").parse().unwrap();
        for port in 1..1_000 {
            observed.note(&at(port), liar);
        }
        assert_eq!(observed.seen.len(), 1);
        let quic = "/ip4/9.9.9.9/udp/1/quic-v1".parse().unwrap();
        observed.note(&quic, liar);
        assert_eq!(observed.seen.len(), 2, "the other transport is another");
        let honest = [(); WITNESSES].map(|()| observed.note(&at(1), PeerId::random()));
        assert_eq!(honest, [false, false, true]);
    }

    #[test]
    fn many_invented_addresses_do_not_fill_the_memory() {
        let mut observed = Observed::default();
        for port in 1..1_000 {
            observed.note(
                &format!("/ip4/9.9.9.9/tcp/{port}").parse().unwrap(),
                PeerId::random(),
            );
        }
        assert_eq!(observed.seen.len(), MAX_ADDRESSES);
    }
}
