//! How much of the table of routes one network may hold, so that one party with many names cannot
//! surround us with them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use libp2p::PeerId;
use tokio::time::Instant;

/// Peers of one network in one part of the table, and in all of it: what Ethereum's discovery
/// (the discv5 crate) allows. Two of twenty leave the rest of a part to others.
const IN_PART: usize = 2;
const IN_TABLE: usize = 10;

/// How long a peer that was taken up may wait until whoever it is to replace was asked: libp2p's minute,
/// and another until we look.
const WAITING: Duration = Duration::from_secs(120);

/// Who was not met for so long takes nobody's place: the table keeps the silent until theirs is needed,
/// and those who live are met whenever all of it is refreshed.
const SILENT: Duration = Duration::from_secs(2 * 3_600);

/// A peer's place in the table.
#[derive(Debug)]
struct Place {
    network: IpAddr,
    part: Option<u32>,
    taken: Instant,
    /// When the peer was last met.
    met: Instant,
}

/// Who has a place in the table, by network.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<PeerId, Place>);

impl Shares {
    /// Forgets those who have lost their place.
    pub(super) fn keep(&mut self, present: &HashSet<PeerId>, now: Instant) {
        let since = |then| now.saturating_duration_since(then);
        self.0
            .retain(|peer, place| present.contains(peer) || since(place.taken) < WAITING);
    }

    /// A peer that has a place is met again.
    pub(super) fn met(&mut self, peer: &PeerId, now: Instant) {
        if let Some(place) = self.0.get_mut(peer) {
            place.met = now;
        }
    }

    /// Whether the network has not had its share yet, in this part of the table and in all of it.
    pub(super) fn has_room(&self, network: IpAddr, part: Option<u32>, now: Instant) -> bool {
        let is_met = |place: &&Place| now.saturating_duration_since(place.met) < SILENT;
        let of_network = || {
            let all = self.0.values().filter(|place| place.network == network);
            all.filter(is_met)
        };
        let in_part = of_network().filter(|place| place.part == part).count();
        in_part < IN_PART && of_network().count() < IN_TABLE
    }

    /// The peer is taken up.
    pub(super) fn take(
        &mut self,
        peer: PeerId,
        (network, part): (IpAddr, Option<u32>),
        now: Instant,
    ) {
        let place = Place {
            network,
            part,
            taken: now,
            met: now,
        };
        self.0.insert(peer, place);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const MANY: IpAddr = IpAddr::V4(Ipv4Addr::new(9, 9, 9, 0));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(9, 9, 8, 0));

    /// Takes peers of `MANY` up wherever there is room: who has a place, and in which part.
    fn filled(now: Instant) -> (Shares, Vec<(u32, PeerId)>) {
        let mut shares = Shares::default();
        let mut taken = Vec::new();
        for part in 0..50 {
            while shares.has_room(MANY, Some(part), now) {
                let peer = PeerId::random();
                shares.take(peer, (MANY, Some(part)), now);
                taken.push((part, peer));
            }
        }
        (shares, taken)
    }

    #[test]
    fn one_network_has_two_places_in_a_part_and_ten_in_all() {
        let now = Instant::now();
        let (shares, taken) = filled(now);
        let parts: Vec<u32> = taken.iter().map(|(part, _)| *part).collect();
        assert_eq!(parts, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
        assert!(
            shares.has_room(OTHER, Some(0), now),
            "of others there is none"
        );
    }

    #[test]
    fn who_waits_for_a_place_counts_until_it_should_have_it() {
        let now = Instant::now();
        let (mut shares, taken) = filled(now);
        let all: HashSet<PeerId> = taken.iter().map(|(_, peer)| *peer).collect();
        let mut fewer = all.clone();
        fewer.remove(&taken[0].1);
        let soon = now + WAITING - Duration::from_secs(1);
        shares.keep(&fewer, soon);
        assert!(!shares.has_room(MANY, Some(0), soon));
        let later = now + WAITING;
        shares.keep(&all, later);
        assert!(!shares.has_room(MANY, Some(0), later), "who is there stays");
        shares.keep(&fewer, later);
        assert!(
            shares.has_room(MANY, Some(0), later),
            "one has lost its place"
        );
    }

    #[test]
    fn the_silent_leave_room_for_their_neighbours() {
        let start = Instant::now();
        let (mut shares, taken) = filled(start);
        let soon = start + SILENT - Duration::from_secs(1);
        assert!(!shares.has_room(MANY, Some(0), soon));
        for (_, peer) in &taken[1..] {
            shares.met(peer, soon);
        }
        let late = start + SILENT;
        assert!(shares.has_room(MANY, Some(0), late), "one was not met");
        assert!(!shares.has_room(MANY, Some(1), late), "those were");
    }
}
