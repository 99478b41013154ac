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

/// Who was not met for so long makes room for another of its network: the table keeps the silent until
/// somebody else needs their place, and would keep a network's share for those that are gone.
const SILENT: Duration = Duration::from_secs(2 * 3_600);

/// Whether a network may have one more peer in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It has had its share.
    None,
    /// It has not.
    Free,
    /// If this peer of its, which was not met for long, leaves the table.
    Instead(PeerId),
}

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
    pub(super) fn room(&self, network: IpAddr, part: Option<u32>, now: Instant) -> Room {
        let all = self.0.iter().filter(|(_, place)| place.network == network);
        let all: Vec<(&PeerId, &Place)> = all.collect();
        let here: Vec<_> = all
            .iter()
            .filter(|(_, place)| place.part == part)
            .copied()
            .collect();
        let among = match (here.len() < IN_PART, all.len() < IN_TABLE) {
            (true, true) => return Room::Free,
            (true, false) => all,
            // One less here is one less in all.
            (false, _) => here,
        };
        let silent = |place: &Place| now.saturating_duration_since(place.met) >= SILENT;
        let longest = among.into_iter().min_by_key(|(_, place)| place.met);
        let longest = longest.filter(|(_, place)| silent(place));
        longest.map_or(Room::None, |(peer, _)| Room::Instead(*peer))
    }

    /// A peer has left the table.
    pub(super) fn left(&mut self, peer: &PeerId) {
        self.0.remove(peer);
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
            while shares.room(MANY, Some(part), now) == Room::Free {
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
        assert_eq!(shares.room(OTHER, Some(0), now), Room::Free);
        assert_eq!(shares.room(MANY, Some(9), now), Room::None);
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
        assert_eq!(shares.room(MANY, Some(0), soon), Room::None);
        let later = now + WAITING;
        shares.keep(&all, later);
        assert_eq!(shares.room(MANY, Some(0), later), Room::None, "all stay");
        shares.keep(&fewer, later);
        assert_eq!(shares.room(MANY, Some(0), later), Room::Free, "one left");
    }

    #[test]
    fn the_longest_silent_makes_room_for_another_of_its_network() {
        let start = Instant::now();
        let (mut shares, taken) = filled(start);
        let soon = start + SILENT - Duration::from_secs(1);
        assert_eq!(shares.room(MANY, Some(0), soon), Room::None);
        let (_, silent) = taken[0];
        for (_, peer) in &taken[1..] {
            shares.met(peer, soon);
        }
        let late = start + SILENT;
        assert_eq!(shares.room(MANY, Some(0), late), Room::Instead(silent));
        assert_eq!(
            shares.room(MANY, Some(1), late),
            Room::None,
            "those were met"
        );
        assert_eq!(shares.room(MANY, Some(9), late), Room::Instead(silent));
        shares.left(&silent);
        assert_eq!(shares.room(MANY, Some(9), late), Room::Free);
    }
}
