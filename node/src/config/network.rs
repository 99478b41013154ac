//! Where peers are met, and how the node is reached.

use std::time::Duration;

use farthing_protocol::net::RelayLimits;
use serde::{Deserialize, Serialize};

/// Where peers are met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Multiaddresses at which others reach the node, when it cannot find out itself.
    pub external: Vec<String>,
    /// Multiaddresses (ending in `/p2p/<id>`) of peers to start from.
    pub bootstrap: Vec<String>,
    /// Find peers on the local network; on a public chain, also whether private addresses are
    /// dialled at all.
    pub mdns: bool,
    /// How many relays hold a place for the node as long as no stranger has come to it directly.
    pub relays: u32,
    /// What the node lends to others as a relay.
    pub relay: RelayConfig,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            listen: vec![
                "/ip4/0.0.0.0/udp/4801/quic-v1".into(),
                "/ip4/0.0.0.0/tcp/4801".into(),
            ],
            external: Vec::new(),
            bootstrap: Vec::new(),
            mdns: true,
            relays: 2,
            relay: RelayConfig::default(),
        }
    }
}

/// What the node lends to others as a relay: to sellers that strangers cannot reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// Lend at all. Of use only where strangers reach the node.
    pub serve: bool,
    /// Peers that hold a place at once.
    pub reservations: u32,
    /// Circuits at once, of all peers together.
    pub circuits: u32,
    /// Circuits one peer may have opened at once.
    pub circuits_per_peer: u32,
    /// The longest a circuit lives.
    #[serde(with = "humantime_serde")]
    pub circuit_duration: Duration,
    /// The most bytes through one circuit, both ways together.
    pub circuit_bytes: u64,
}

impl Default for RelayConfig {
    fn default() -> Self {
        let limits = RelayLimits::default();
        Self {
            serve: false,
            reservations: limits.reservations,
            circuits: limits.circuits,
            circuits_per_peer: limits.circuits_per_peer,
            circuit_duration: limits.circuit_duration,
            circuit_bytes: limits.circuit_bytes,
        }
    }
}

impl RelayConfig {
    /// The limits, if the node lends.
    #[must_use]
    pub fn lends(&self) -> Option<RelayLimits> {
        self.serve.then(|| RelayLimits {
            reservations: self.reservations,
            circuits: self.circuits,
            circuits_per_peer: self.circuits_per_peer,
            circuit_duration: self.circuit_duration,
            circuit_bytes: self.circuit_bytes,
            ..RelayLimits::default()
        })
    }
}
