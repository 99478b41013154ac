//! The door for buyers that come over HTTP and pay by x402.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use farthing_protocol::amount::Amount;
use serde::{Deserialize, Serialize};

/// The door for buyers that come over HTTP and pay by x402.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Its address; without one it stays shut. Any but a loopback address needs a certificate.
    pub listen: Option<SocketAddr>,
    /// A file of certificates in PEM, the server's own first: TLS is spoken.
    pub tls_certificate: Option<PathBuf>,
    /// The file of its private key in PEM.
    pub tls_key: Option<PathBuf>,
    /// How buyers reach it, without a path, when that is not what they put into `Host`.
    pub public_url: Option<String>,
    /// The least that a payment made for one purchase brings, for each costs a transaction:
    /// `exact` and `upto` cost at least that, and `upto` is offered from there on.
    pub min_single: Amount,
    /// Connections at once.
    pub connections: u32,
    /// Requests at once, those included that are told a price.
    pub requests: u32,
    /// Connections at once of one client address; 0 for no limit of their own.
    pub connections_per_client: u32,
    /// Requests at once of one client address; 0 for no limit of their own.
    pub requests_per_client: u32,
    /// Addresses of proxies before the door: their connections are not limited, and whom a request
    /// counts for is the last address in `X-Forwarded-For` that is not one of them.
    pub proxies: Vec<IpAddr>,
    /// The longest until a request has arrived: its head, and then its body.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// The longest a request waits for those before it on its channel.
    #[serde(with = "humantime_serde")]
    pub turn_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: None,
            tls_certificate: None,
            tls_key: None,
            public_url: None,
            min_single: Amount::atoms(20_000),
            connections: 1024,
            requests: 256,
            connections_per_client: 128,
            requests_per_client: 64,
            proxies: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            read_timeout: Duration::from_secs(20),
            turn_timeout: Duration::from_secs(60),
        }
    }
}

impl HttpConfig {
    /// Whether TLS is spoken.
    #[must_use]
    pub const fn has_tls(&self) -> bool {
        self.tls_certificate.is_some() && self.tls_key.is_some()
    }
}
