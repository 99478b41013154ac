//! The one place that every dial passes, whoever asked for it: a caller, an offer, Kademlia, a
//! peer that wants its address tested or a hole punched. Where strangers take part, an address
//! that one of them named must lead out onto the Internet; only the operator's own words
//! (bootstrap peers, [`crate::net::Net::dial`]) may lead anywhere.

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

/// What may be dialled.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    reach: Reach,
    /// Whether private networks are ours too.
    lan: bool,
    trusted: Arc<Mutex<HashSet<Multiaddr>>>,
}

impl Rules {
    /// Rules for this reach; private addresses pass if `lan`.
    pub(super) fn new(reach: Reach, lan: bool) -> Self {
        Self {
            reach,
            lan,
            trusted: Arc::default(),
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

    /// Whether the address may be dialled. Of a relayed one, the relay's place decides.
    pub(super) fn admit(&self, address: &Multiaddr) -> bool {
        let (place, _) = peer::split(peer::first_hop(address));
        if self.reach == Reach::Local {
            return true;
        }
        let strangers = peer::allowed(&place, Reach::Public);
        strangers && (self.lan || peer::is_public(&place))
            || self
                .trusted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&place)
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
        let rules = Rules::new(Reach::Public, false);
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
        assert!(admits(
            &Rules::new(Reach::Public, true),
            "/ip4/192.168.1.1/tcp/1"
        ));
        assert!(admits(
            &Rules::new(Reach::Local, false),
            "/ip4/127.0.0.1/tcp/1"
        ));
    }

    #[test]
    fn what_the_operator_names_may_lead_anywhere_and_is_bounded() {
        let rules = Rules::new(Reach::Public, false);
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
