//! A NAT: how it names what leaves, and what it lets in (RFC 4787).

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddrV4},
};

/// How a NAT behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat {
    /// How it names what leaves.
    pub mapping: Mapping,
    /// What it lets in.
    pub filtering: Filtering,
}

impl Nat {
    /// One outside port for each inside one, and only those let in that were spoken to: most
    /// routers at home. Holes can be punched.
    pub const HOME: Self = Self {
        mapping: Mapping::Independent,
        filtering: Filtering::ByPort,
    };
    /// Another outside port for each destination: the large NATs of mobile networks. Holes
    /// cannot be punched.
    pub const CARRIER: Self = Self {
        mapping: Mapping::PerDestination,
        filtering: Filtering::ByPort,
    };
}

/// How a NAT names what leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// One outside port for each inside one.
    Independent,
    /// One for each inside port and destination.
    PerDestination,
}

/// What a NAT lets in at a port it has given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtering {
    /// Everything.
    Open,
    /// What comes from a machine that was spoken to.
    ByAddress,
    /// What comes from an address and port that was spoken to.
    ByPort,
}

/// One NAT at work.
#[derive(Debug)]
pub(super) struct Box {
    nat: Nat,
    holes: Vec<Hole>,
}

/// An outside port that was given out.
#[derive(Debug)]
struct Hole {
    inside: SocketAddrV4,
    /// The destination it is for, if it is for one only.
    only: Option<SocketAddrV4>,
    port: u16,
    spoken_to: HashSet<SocketAddrV4>,
}

/// The first outside port that is given out.
const FIRST_PORT: u16 = 20_000;

impl Box {
    pub(super) fn new(nat: Nat) -> Self {
        Self {
            nat,
            holes: Vec::new(),
        }
    }

    /// The outside port of what leaves.
    pub(super) fn leave(&mut self, inside: SocketAddrV4, to: SocketAddrV4) -> u16 {
        let only = (self.nat.mapping == Mapping::PerDestination).then_some(to);
        let next = FIRST_PORT.saturating_add(u16::try_from(self.holes.len()).unwrap_or(u16::MAX));
        let is_it = |hole: &Hole| hole.inside == inside && hole.only == only;
        let at = self.holes.iter().position(is_it).unwrap_or_else(|| {
            self.holes.push(Hole {
                inside,
                only,
                port: next,
                spoken_to: HashSet::new(),
            });
            self.holes.len() - 1
        });
        let Some(hole) = self.holes.get_mut(at) else {
            return next;
        };
        hole.spoken_to.insert(to);
        hole.port
    }

    /// The inside address of what comes in, if it may.
    pub(super) fn enter(&self, from: SocketAddrV4, port: u16) -> Option<SocketAddrV4> {
        let hole = self.holes.iter().find(|hole| hole.port == port)?;
        let known = |ip: &Ipv4Addr| hole.spoken_to.iter().any(|to| to.ip() == ip);
        let passes = match self.nat.filtering {
            Filtering::Open => true,
            Filtering::ByAddress => known(from.ip()),
            Filtering::ByPort => hole.spoken_to.contains(&from),
        };
        passes.then_some(hole.inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn a_nat_at_home_has_one_name_and_lets_in_whom_it_has_spoken_to() {
        let mut nat = Box::new(Nat::HOME);
        let inside = at("10.0.0.2:4801");
        let port = nat.leave(inside, at("9.0.0.1:1"));
        assert_eq!(nat.leave(inside, at("9.0.0.2:1")), port);
        assert_eq!(nat.enter(at("9.0.0.1:1"), port), Some(inside));
        assert_eq!(nat.enter(at("9.0.0.1:2"), port), None);
        assert_eq!(nat.enter(at("9.0.0.3:1"), port), None);
        assert_eq!(nat.enter(at("9.0.0.1:1"), port + 1), None);
    }

    #[test]
    fn a_carriers_nat_has_a_name_for_each_destination() {
        let mut nat = Box::new(Nat::CARRIER);
        let inside = at("10.0.0.2:4801");
        let one = nat.leave(inside, at("9.0.0.1:1"));
        let other = nat.leave(inside, at("9.0.0.2:1"));
        assert_ne!(one, other);
        assert_eq!(nat.enter(at("9.0.0.2:1"), one), None);
        assert_eq!(nat.enter(at("9.0.0.2:1"), other), Some(inside));
    }

    #[test]
    fn a_nat_that_filters_by_address_lets_in_another_port() {
        let nat = Nat {
            filtering: Filtering::ByAddress,
            ..Nat::HOME
        };
        let mut nat = Box::new(nat);
        let port = nat.leave(at("10.0.0.2:4801"), at("9.0.0.1:1"));
        assert!(nat.enter(at("9.0.0.1:2"), port).is_some());
        assert_eq!(nat.enter(at("9.0.0.2:1"), port), None);
    }
}
