//! How many of those who are here come from one address: nobody takes the room of all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, HeaderName};
use tokio::sync::OwnedSemaphorePermit;

/// Where a proxy says for whom it asks.
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The most hops of one request that are looked at.
const MOST_HOPS: usize = 16;
/// What one customer has of IPv6.
const PREFIX: u128 = !0 << 64;

/// The far end of a connection.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct Peer(pub(in crate::http) IpAddr);

/// Those who are here, by address.
#[derive(Debug)]
pub(in crate::http) struct Crowd {
    /// Of one address; 0 means any number.
    most: u32,
    here: Mutex<HashMap<IpAddr, u32>>,
}

/// One of them; it leaves when dropped.
#[derive(Debug)]
pub(in crate::http) struct Seat(Option<(Arc<Crowd>, IpAddr)>);

/// Room for a request, among all and among those of its address. Both are given back when it is
/// dropped.
#[derive(Debug)]
pub(in crate::http) struct Room {
    _among_all: OwnedSemaphorePermit,
    _seat: Seat,
}

impl Room {
    pub(in crate::http) const fn new(among_all: OwnedSemaphorePermit, seat: Seat) -> Self {
        Self {
            _among_all: among_all,
            _seat: seat,
        }
    }
}

impl Crowd {
    pub(in crate::http) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self {
            most,
            here: Mutex::default(),
        })
    }

    fn here(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        // Plain data, whole at every step.
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one more in, unless there are too many from its address. Who has none is not counted.
    pub(in crate::http) fn enter(self: &Arc<Self>, who: Option<IpAddr>) -> Option<Seat> {
        let Some(who) = who.filter(|_| self.most > 0) else {
            return Some(Seat(None));
        };
        let mut here = self.here();
        let count = here.entry(who).or_default();
        if *count >= self.most {
            return None;
        }
        *count = count.saturating_add(1);
        drop(here);
        Some(Seat(Some((Arc::clone(self), who))))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some((crowd, who)) = self.0.take() else {
            return;
        };
        let mut here = crowd.here();
        if let Some(count) = here.get_mut(&who) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                here.remove(&who);
            }
        }
    }
}

/// Whom a connection counts for: nobody when it is a proxy's.
pub(in crate::http) fn guest(peer: IpAddr, proxies: &[IpAddr]) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    (!proxies.contains(&peer)).then(|| customer(peer))
}

/// Whom a request counts for. Only a proxy is asked for whom it comes, and each says at the end of
/// the list who came to it.
pub(in crate::http) fn asker(
    peer: IpAddr,
    headers: &HeaderMap,
    proxies: &[IpAddr],
) -> Option<IpAddr> {
    if let Some(guest) = guest(peer, proxies) {
        return Some(guest);
    }
    let lists: Vec<_> = headers.get_all(FORWARDED).iter().collect();
    let lists = lists.iter().rev().map(|list| list.as_bytes());
    // Bytes: what a client has put before a proxy's word need not be text.
    let hops = lists.flat_map(|list| list.rsplit(|byte| *byte == b','));
    for hop in hops.take(MOST_HOPS) {
        // What is no address was not written by a proxy of ours: nothing before it counts.
        let hop = address(hop)?;
        if let Some(guest) = guest(hop, proxies) {
            return Some(guest);
        }
    }
    None
}

/// An address, with or without a port.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let with_port = || hop.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    hop.parse().ok().or_else(with_port)
}

fn customer(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(long) => Ipv6Addr::from_bits(long.to_bits() & PREFIX).into(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn through(lists: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for list in lists {
            headers.append(FORWARDED, list.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn one_address_fills_its_own_share_and_no_more() {
        let crowd = Crowd::new(2);
        let (one, other) = (Some(ip("192.0.2.1")), Some(ip("192.0.2.2")));
        let seats = [crowd.enter(one), crowd.enter(one)];
        assert!(seats.iter().all(Option::is_some));
        assert!(crowd.enter(one).is_none());
        let second = crowd.enter(other);
        assert!(second.is_some() && crowd.enter(None).is_some());
        drop(seats);
        assert!(crowd.enter(one).is_some(), "they have left");
        drop(second);
        assert!(crowd.here().is_empty(), "nothing is kept of who is gone");
        let open = Crowd::new(0);
        let many: Vec<_> = (0..100).map(|_| open.enter(one)).collect();
        assert!(many.iter().all(Option::is_some));
    }

    #[test]
    fn a_request_counts_for_who_came_to_the_last_proxy_of_ours() {
        let proxies = [ip("127.0.0.1"), ip("10.0.0.9")];
        let of = |peer, lists: &[&str]| asker(ip(peer), &through(lists), &proxies);
        let stranger = Some(ip("192.0.2.1"));
        assert_eq!(of("192.0.2.1", &["203.0.113.7"]), stranger, "not believed");
        assert_eq!(of("127.0.0.1", &["203.0.113.7, 192.0.2.1"]), stranger);
        assert_eq!(of("127.0.0.1", &["192.0.2.1, 10.0.0.9"]), stranger);
        assert_eq!(of("127.0.0.1", &["203.0.113.7", "192.0.2.1"]), stranger);
        assert_eq!(of("127.0.0.1", &[]), None);
        assert_eq!(of("127.0.0.1", &["192.0.2.1, unknown"]), None);
        assert_eq!(of("127.0.0.1", &["192.0.2.1:4711"]), stranger);
        let mut bytes = HeaderMap::new();
        let odd = HeaderValue::from_bytes(b"\xff, 192.0.2.1").expect("bytes");
        bytes.append(FORWARDED, odd);
        assert_eq!(asker(proxies[0], &bytes, &proxies), stranger);
        assert_eq!(of("::ffff:192.0.2.1", &[]), stranger);
        assert_eq!(of("2001:db8::1:2:3:4", &[]), Some(ip("2001:db8::")));
    }
}
