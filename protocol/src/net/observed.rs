//! The addresses under which others see us. Believed once several peers that *we* dialled agree,
//! for whoever dials us could say anything. Seen is not reachable: a firewall may still stand in
//! between.

use std::collections::{HashMap, HashSet};

use libp2p::{Multiaddr, PeerId};

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
    /// Notes a sighting; true when it is the one that makes the address believed.
    pub(super) fn note(&mut self, address: &Multiaddr, witness: PeerId) -> bool {
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
