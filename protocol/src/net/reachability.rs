//! Whether strangers reach us, how, and if not, why not: a pure judgement of what was seen.

/// How strangers reach this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reachability {
    /// Not known yet: nobody has tried.
    #[default]
    Unknown,
    /// The operator has said where the node is reached, and nobody has found otherwise.
    Told,
    /// A peer that was asked to dialled an address of ours, and came through.
    Tested,
    /// A peer we had never dialled has come to us directly.
    Visited,
    /// Only through relays, so many of them.
    Relayed {
        /// Relays that hold a place for us.
        relays: usize,
        /// What stands in the way of a direct connection.
        barrier: Barrier,
    },
    /// Not at all.
    Unreachable(Barrier),
}

/// What stands between us and strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Barrier {
    /// We listen nowhere.
    #[error("the node listens at no address")]
    NotListening,
    /// No peer is connected: nobody can tell where we are, nor find us.
    #[error("no peer is connected")]
    Alone,
    /// Peers see us at no address of the Internet.
    #[error("all known addresses are private")]
    PrivateAddress,
    /// Peers that were asked to dial our address found it shut.
    #[error("the port is closed: peers that dialled it did not get through")]
    PortClosed,
    /// As before, and no relay is known.
    #[error("the node is behind a NAT or firewall and knows no relay")]
    NoRelay,
    /// As before, and all relays refused.
    #[error("the node is behind a NAT or firewall and every relay it knows refused it")]
    RelayRefused,
}

impl Barrier {
    /// What an operator can do about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NotListening => "set network.listen",
            Self::Alone => {
                "set network.bootstrap to peers that are up, and let this machine reach them"
            }
            Self::PrivateAddress => {
                "forward the ports of network.listen to this machine and set network.external to the \
                 public address"
            }
            Self::PortClosed => {
                "open the ports of network.listen, TCP and UDP, in the firewall and forward them in the \
                 router"
            }
            Self::NoRelay => {
                "open the ports of network.listen, or add a peer that lends itself as a relay to \
                 network.bootstrap"
            }
            Self::RelayRefused => {
                "open the ports of network.listen, or add another relay to network.bootstrap: these are full"
            }
        }
    }
}

/// What was seen of how we can be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sightings {
    /// We listen somewhere.
    pub(super) listens: bool,
    /// The operator has given an address.
    pub(super) told: bool,
    /// A stranger came in.
    pub(super) visited: bool,
    /// The last test of an address by a peer.
    pub(super) tested: Option<bool>,
    /// Somebody sees us at an address of the Internet.
    pub(super) public: bool,
    /// Peers connected.
    pub(super) peers: usize,
    /// Relays that hold a place for us.
    pub(super) held: usize,
    /// Relays known.
    pub(super) relays: usize,
    /// A relay has refused us.
    pub(super) refused: bool,
    /// We have asked for relays: nobody has come in yet.
    pub(super) in_need: bool,
}

impl Sightings {
    /// What follows from it.
    pub(super) fn judge(&self) -> Reachability {
        if self.visited {
            return Reachability::Visited;
        }
        if self.tested == Some(true) {
            return Reachability::Tested;
        }
        if self.told && self.tested.is_none() {
            return Reachability::Told;
        }
        match (self.held, self.barrier()) {
            (0, None) => Reachability::Unknown,
            (0, Some(barrier)) => Reachability::Unreachable(barrier),
            (relays, barrier) => Reachability::Relayed {
                relays,
                barrier: barrier.unwrap_or(Barrier::PrivateAddress),
            },
        }
    }

    fn barrier(&self) -> Option<Barrier> {
        if self.peers == 0 {
            return Some(Barrier::Alone);
        }
        let direct = match (self.listens, self.tested, self.public) {
            (false, ..) => Barrier::NotListening,
            (true, Some(false), _) => Barrier::PortClosed,
            (true, None, false) => Barrier::PrivateAddress,
            (true, ..) => return None,
        };
        // Whoever looks for relays is told of what is in the way of those.
        match (self.in_need, self.held, self.relays, self.refused) {
            (true, 0, 0, _) => Some(Barrier::NoRelay),
            (true, 0, _, true) => Some(Barrier::RelayRefused),
            _ => Some(direct),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_to_be_unreachable_has_its_name() {
        let home = Sightings {
            listens: true,
            public: true,
            peers: 1,
            ..Sightings::default()
        };
        let shut = Sightings {
            tested: Some(false),
            ..home
        };
        let in_need = Sightings {
            in_need: true,
            ..shut
        };
        let unreachable = Reachability::Unreachable;
        let cases = [
            (home, Reachability::Unknown),
            (
                Sightings {
                    visited: true,
                    ..shut
                },
                Reachability::Visited,
            ),
            (
                Sightings {
                    tested: Some(true),
                    ..home
                },
                Reachability::Tested,
            ),
            (Sightings { told: true, ..home }, Reachability::Told),
            (
                Sightings { told: true, ..shut },
                unreachable(Barrier::PortClosed),
            ),
            (Sightings { peers: 0, ..home }, unreachable(Barrier::Alone)),
            (
                Sightings {
                    listens: false,
                    ..home
                },
                unreachable(Barrier::NotListening),
            ),
            (
                Sightings {
                    public: false,
                    ..home
                },
                unreachable(Barrier::PrivateAddress),
            ),
            (shut, unreachable(Barrier::PortClosed)),
            (in_need, unreachable(Barrier::NoRelay)),
            (
                Sightings {
                    relays: 2,
                    refused: true,
                    ..in_need
                },
                unreachable(Barrier::RelayRefused),
            ),
            (
                Sightings {
                    relays: 2,
                    held: 1,
                    ..in_need
                },
                Reachability::Relayed {
                    relays: 1,
                    barrier: Barrier::PortClosed,
                },
            ),
        ];
        for (seen, expected) in cases {
            assert_eq!(seen.judge(), expected, "{seen:?}");
        }
    }
}
