//! The seller's signed word for its prices and for having served: x402's `offer-receipt`.
//!
//! Both name an address. Only one that the operator has configured is signed, or one on this
//! machine: what a stranger puts into `Host` is not ours to vouch for.

use std::net::IpAddr;
use std::sync::Arc;

use alloy::primitives::{Address, B256};
use farthing_protocol::payment::attestation::{
    self, Attested, OFFER_RECEIPT, ReceiptWords, VERSION,
};
use farthing_protocol::payment::{Caip2, Fields, PaymentRequirements};

use crate::http::Shared;
use crate::http::answer::Form;
use crate::http::quote::Quote;
use crate::shop::Shop;

/// Whether a `Host` is this machine, seen from itself.
pub(in crate::http) fn is_here(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => host.split(':').next(),
    };
    let name = name.unwrap_or_default();
    let address = name.parse::<IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// What a 402 says of its ways to pay.
pub(in crate::http) fn offers(
    shared: &Shared,
    quote: &Quote,
    accepts: &[PaymentRequirements],
) -> Fields {
    let mut extensions = Fields::new();
    if quote.attested {
        let shop = &shared.desk.shop;
        let now = shop.clock.now();
        let ways = (0_u32..).zip(accepts);
        let offers: Vec<_> = ways
            .map(|way| Attested::offer(way, &quote.resource.url, now, &shop.claim))
            .collect();
        extensions.insert(OFFER_RECEIPT.to_owned(), attestation::offers(&offers));
    }
    extensions
}

/// Signs that a purchase was served, when it was.
#[derive(Debug)]
pub(in crate::http) struct Witness {
    shop: Arc<Shop>,
    url: String,
    network: Caip2,
    payer: Address,
}

impl Witness {
    /// A witness of a purchase, where there is to be one. The first version has no extensions.
    pub(in crate::http) fn of(
        shared: &Shared,
        quote: &Quote,
        (form, payer): (Form, Address),
    ) -> Option<Self> {
        let Form::Now(network) = form else {
            return None;
        };
        quote.attested.then(|| Self {
            shop: Arc::clone(&shared.desk.shop),
            url: quote.resource.url.clone(),
            network,
            payer,
        })
    }

    /// Adds its word to what is said of a payment that `transaction` took, if one did.
    pub(in crate::http) fn tell(&self, extensions: &mut Fields, transaction: Option<B256>) {
        let words = ReceiptWords {
            version: VERSION,
            network: self.network.to_string(),
            resource_url: self.url.clone(),
            payer: self.payer.to_checksum(None),
            issued_at: self.shop.clock.now().seconds(),
            transaction: transaction
                .map(|hash| format!("{hash:#x}"))
                .unwrap_or_default(),
        };
        let signed = Attested::sign(words, &self.shop.claim);
        extensions.insert(OFFER_RECEIPT.to_owned(), attestation::receipt(&signed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_here() {
        for host in [
            "localhost",
            "localhost:4021",
            "127.0.0.1:4021",
            "127.1.2.3",
            "[::1]:4021",
        ] {
            assert!(is_here(host), "{host}");
        }
        for host in [
            "",
            "seller.example",
            "localhost.example:1",
            "10.0.0.1",
            "::1",
            "[::2]:1",
            "127.0.0.1.example",
        ] {
            assert!(!is_here(host), "{host}");
        }
    }
}
