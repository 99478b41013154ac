//! The one place that every dial passes, whoever asked for it: a caller, an offer, Kademlia, a
//! peer that wants its address tested or a hole punched. Where strangers take part, an address
//! that one of them named must lead out onto the Internet; only the operator's own words
//! (bootstrap peers, [`crate::net::Net::dial`]) may lead anywhere, and what mDNS finds into the
//! private networks it was found in.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, Transport, TransportError,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, ListenerId, TransportEvent},
    },
};

use crate::net::{Reach, peer};

/// Addresses the operator has named; more of them are not remembered.
const MAX_TRUSTED: usize = 1_024;

/// Addresses found on the local network; more of them are not taken up until some are gone.
const MAX_FOUND: usize = 1_024;

/// What may be dialled.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    reach: Reach,
    trusted: Arc<Mutex<HashSet<Multiaddr>>>,
    /// What mDNS says is there now.
    found: Arc<Mutex<HashSet<Multiaddr>>>,
}

impl Rules {
    /// Rules for this reach; nothing is named or found yet.
    pub(super) fn new(reach: Reach) -> Self {
        Self {
            reach,
            trusted: Arc::default(),
            found: Arc::default(),
        }
    }

    /// Lets an address of the operator's pass from now on.
    pub(super) fn trust(&self, address: &Multiaddr) {
        let (place, _) = peer::split(address.clone());
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        if trusted.len() < MAX_TRUSTED {
            trusted.insert(place);
        }
    }

    /// Lets an address that mDNS found pass until it is gone.
    pub(super) fn find(&self, address: &Multiaddr) {
        let (place, _) = peer::split(address.clone());
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() < MAX_FOUND && peer::allowed(&place, Reach::Public) {
            found.insert(place);
        }
    }

    /// mDNS no longer hears of the address.
    pub(super) fn lose(&self, address: &Multiaddr) {
        let (place, _) = peer::split(address.clone());
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.remove(&place);
    }

    /// Whether the address may be dialled. Of a relayed one, the relay's place decides.
    pub(super) fn admit(&self, address: &Multiaddr) -> bool {
        let (place, _) = peer::split(peer::first_hop(address));
        if self.reach == Reach::Local {
            return true;
        }
        let among = |places: &Mutex<HashSet<Multiaddr>>| {
            let places = places.lock().unwrap_or_else(PoisonError::into_inner);
            places.contains(&place)
        };
        peer::is_public(&place) || among(&self.trusted) || among(&self.found)
    }
}

/// A transport that dials only what the [`Rules`] admit.
pub(super) struct Gate {
    inner: Boxed<(PeerId, StreamMuxerBox)>,
    rules: Rules,
}

impl Gate {
    pub(super) fn new(inner: Boxed<(PeerId, StreamMuxerBox)>, rules: Rules) -> Self {
        Self { inner, rules }
    }
}

impl Transport for Gate {
    type Output = (PeerId, StreamMuxerBox);
    type Error = std::io::Error;
    type ListenerUpgrade = <Boxed<(PeerId, StreamMuxerBox)> as Transport>::ListenerUpgrade;
    type Dial = <Boxed<(PeerId, StreamMuxerBox)> as Transport>::Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        if !self.rules.admit(&address) {
            tracing::debug!(%address, "dial_forbidden");
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        self.inner.dial(address, options)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(rules: &Rules, text: &str) -> bool {
        rules.admit(&text.parse().unwrap())
    }

    #[test]
    fn a_stranger_cannot_make_us_dial_into_our_own_house_by_any_way() {
        let rules = Rules::new(Reach::Public);
        let relay = PeerId::random();
        let peer = PeerId::random();
        let cases = [
            ("/ip4/9.9.9.9/tcp/1", true),
            ("/ip4/127.0.0.1/tcp/1", false),
            ("/ip4/192.168.1.1/tcp/80", false),
            ("/ip4/100.64.0.1/tcp/80", false),
            ("/dns4/inside.example/tcp/1", false),
            ("/ip4/9.9.9.9/tcp/1/ws", false),
        ];
        for (place, passes) in cases {
            assert_eq!(admits(&rules, place), passes, "{place}");
            let named = format!("{place}/p2p/{peer}");
            assert_eq!(admits(&rules, &named), passes, "{named}");
            let relayed = format!("{place}/p2p/{relay}/p2p-circuit/p2p/{peer}");
            assert_eq!(admits(&rules, &relayed), passes, "{relayed}");
        }
        assert!(admits(&Rules::new(Reach::Local), "/ip4/127.0.0.1/tcp/1"));
    }

    #[test]
    fn a_private_place_is_open_while_mdns_finds_it_and_no_other_beside_it() {
        let rules = Rules::new(Reach::Public);
        let found: Multiaddr = "/ip4/192.168.1.1/tcp/1".parse().unwrap();
        rules.find(&found.clone().with_p2p(PeerId::random()).unwrap());
        assert!(rules.admit(&found));
        assert!(!admits(&rules, "/ip4/192.168.1.1/tcp/80"));
        assert!(!admits(&rules, "/ip4/192.168.1.2/tcp/1"));
        rules.lose(&found.clone().with_p2p(PeerId::random()).unwrap());
        assert!(!rules.admit(&found));
        rules.find(&"/ip4/127.0.0.1/tcp/1".parse().unwrap());
        assert!(!admits(&rules, "/ip4/127.0.0.1/tcp/1"), "not even mDNS");
        for port in 1..5_000 {
            rules.find(&format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap());
        }
        assert_eq!(rules.found.lock().unwrap().len(), MAX_FOUND);
    }

    #[test]
    fn what_the_operator_names_may_lead_anywhere_and_is_bounded() {
        let rules = Rules::new(Reach::Public);
        let own: Multiaddr = "/dns4/relay.lan/tcp/1".parse().unwrap();
        rules.trust(&own.clone().with_p2p(PeerId::random()).unwrap());
        assert!(rules.admit(&own));
        for port in 1..5_000 {
            rules.trust(&format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap());
        }
        assert!(!admits(&rules, "/ip4/127.0.0.1/tcp/4999"));
        assert_eq!(rules.trusted.lock().unwrap().len(), MAX_TRUSTED);
    }
}
