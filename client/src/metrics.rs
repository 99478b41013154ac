//! [`Metrics`]: what the buyer counts. A field's doc comment is its help text.

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Bounds of latency buckets, in seconds: a local answer takes a millisecond, a long one minutes.
const SECONDS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
];

/// The status with which a request was answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    /// The route, as written in the router.
    pub route: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// How a purchase ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Ended {
    /// The whole answer came, with its receipt.
    Complete,
    /// The application hung up.
    Cancelled,
    /// It broke off after its first token.
    Interrupted,
    /// No seller delivered a first token.
    Failed,
    /// It was refused before any seller was asked.
    Refused,
}

/// The label of [`Ended`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ending {
    /// How it ended.
    pub ended: Ended,
}

/// What became of an offer that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum OfferVerdict {
    /// New.
    Fresh,
    /// Known or late.
    Old,
    /// Malformed or forged.
    Bad,
}

/// The label of [`OfferVerdict`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfferLabel {
    /// What became of it.
    pub verdict: OfferVerdict,
}

/// Defines the struct and its registration at once, so that a doc comment is the help text.
macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty = $new:expr,)+) => {
        /// What the buyer counts. Clones share the numbers.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $name: $kind,)+
        }

        impl Default for Metrics {
            fn default() -> Self {
                Self { $($name: $new,)+ }
            }
        }

        impl Metrics {
            /// Names every metric in a registry.
            pub fn register(&self, registry: &mut Registry) {
                $(
                    let help = concat!($($help),+).trim().trim_end_matches('.');
                    registry.register(stringify!($name), help, self.$name.clone());
                )+
            }
        }
    };
}

metrics! {
    /// Requests answered by the gateway, by route and status.
    gateway_requests: Family<Answered, Counter> = Family::default(),
    /// Streams open at the gateway now.
    gateway_streams_open: Gauge = Gauge::default(),
    /// Seconds from a request's arrival to the head of its answer.
    gateway_head_seconds: Histogram = Histogram::new(SECONDS),
    /// Atoms charged by receipts, over all channels.
    wallet_charged_atoms: Gauge = Gauge::default(),
    /// Atoms promised by vouchers, over all channels.
    wallet_promised_atoms: Gauge = Gauge::default(),
    /// Channels that pay.
    channels_open: Gauge = Gauge::default(),
    /// Atoms deposited in channels and not charged.
    channels_unspent_atoms: Gauge = Gauge::default(),
    /// Sellers with an unexpired offer.
    market_sellers: Gauge = Gauge::default(),
}

impl Metrics {
    /// All numbers in the Prometheus text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("farthing");
        self.register(&mut registry);
        let mut text = String::new();
        // Writing into a string cannot fail.
        encode(&mut text, &registry).unwrap_or_default();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_text_is_the_doc_comment() {
        let metrics = Metrics::default();
        let answered = Answered {
            route: "/v1/models",
            status: 200,
        };
        metrics.gateway_requests.get_or_create(&answered).inc();
        let text = metrics.text();
        assert!(text.contains(
            "# HELP farthing_gateway_requests Requests answered by the gateway, by route and status."
        ));
        let line = "farthing_gateway_requests_total{route=\"/v1/models\",status=\"200\"} 1";
        assert!(text.contains(line), "{text}");
    }
}
