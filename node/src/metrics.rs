//! What the node counts. The doc comment of a field is its help text.
//!
//! Each [`Metrics`] has a registry of its own, so two nodes in one process do not share counters.
//! Clones count together.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use farthing_protocol::amount::Amount;
use farthing_protocol::purchase::{Ending, Refusal, Usage};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What every metric's name starts with.
const PREFIX: &str = "farthing_node";

/// A number that only rises.
pub type Count = Counter<u64, AtomicU64>;

/// One label: what kind of thing is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// Its name.
    pub kind: &'static str,
}

/// A count for each kind.
pub type Counts = Family<Kind, Count>;

/// Declares the struct and registers each field under its name, with its doc comment as help.
/// (The library adds `_total` to the names of counters.)
macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty = $new:expr;)+) => {
        /// Counters, gauges and histograms of one node.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $name: $kind,)+
            registry: Arc<Registry>,
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix(PREFIX);
                $(
                    let $name: $kind = $new;
                    let help = concat!($($help),+).trim().trim_end_matches('.');
                    registry.register(stringify!($name), help, $name.clone());
                )+
                Self { $($name,)+ registry: Arc::new(registry) }
            }
        }
    };
}

metrics! {
    /// Purchases by how they ended.
    serve_purchases: Counts = Counts::default();
    /// Purchases refused, by reason.
    admission_refusals: Counts = Counts::default();
    /// Purchases being served.
    serve_running: Gauge = Gauge::default();
    /// Purchases that can be served at once.
    serve_slots: Gauge = Gauge::default();
    /// Tokens sold, by kind: prompt, cached (part of prompt), completion.
    meter_tokens: Counts = Counts::default();
    /// Atoms charged.
    ledger_charged_atoms: Count = Count::default();
    /// Roots over receipts that buyers sent, by what was answered.
    ledger_roots: Counts = Counts::default();
    /// Open channels.
    ledger_channels: Gauge = Gauge::default();
    /// Atoms charged but not yet claimed on chain.
    ledger_unclaimed_atoms: Gauge = Gauge::default();
    /// Whether the model server answers: 1 or 0.
    upstream_up: Gauge = Gauge::default();
    /// Requests the model server failed, by how.
    upstream_failures: Counts = Counts::default();
    /// Atoms claimed on chain, over all channels.
    settlement_claimed_atoms: Gauge = Gauge::default();
    /// Transactions sent and not final: deposits, claims, refunds.
    settlement_in_flight: Gauge = Gauge::default();
    /// Of those, how many had their fee raised.
    settlement_raised: Gauge = Gauge::default();
    /// Channels whose claim the contract refuses, or whose books it contradicts.
    settlement_refused: Gauge = Gauge::default();
    /// Channels with a withdrawal armed.
    settlement_armed: Gauge = Gauge::default();
    /// Atoms deposited that are not deep enough to count.
    settlement_unconfirmed_atoms: Gauge = Gauge::default();
    /// How often the chain took blocks back since the start.
    settlement_reorganisations: Gauge = Gauge::default();
    /// Whether the chain answered when last asked: 1 or 0.
    settlement_chain_up: Gauge = Gauge::default();
    /// Batches on disk since the start.
    ledger_batches: Gauge = Gauge::default();
    /// Offers published.
    announce_offers: Count = Count::default();
    /// Connected peers.
    announce_peers: Gauge = Gauge::default();
    /// How strangers reach the node: 2 directly, 1 through relays, 0 not at all or not known yet.
    announce_reach: Gauge = Gauge::default();
    /// Relays that hold a place for the node.
    announce_relays: Gauge = Gauge::default();
    /// Peers that only a relay connects to the node.
    announce_relayed_peers: Gauge = Gauge::default();
}

impl Metrics {
    /// All of it in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::new();
        match text::encode(&mut out, &self.registry) {
            Ok(()) => out,
            // Only a failing writer fails, and a string does not.
            Err(_) => String::new(),
        }
    }

    /// Counts a purchase that ended.
    pub fn purchase_ended(&self, ending: Ending, usage: &Usage, charged: Amount) {
        count(&self.serve_purchases, ending_name(ending));
        for (kind, tokens) in [
            ("prompt", usage.prompt),
            ("cached", usage.cached),
            ("completion", usage.completion),
        ] {
            let counter = self.meter_tokens.get_or_create_owned(&Kind { kind });
            counter.inc_by(u64::from(tokens));
        }
        self.ledger_charged_atoms.inc_by(atoms(charged));
    }

    /// Counts a purchase that was refused.
    pub fn refused(&self, refusal: &Refusal) {
        count(&self.admission_refusals, refusal_name(refusal));
    }
}

/// One more of this kind.
pub fn count(counts: &Counts, kind: &'static str) {
    counts.get_or_create_owned(&Kind { kind }).inc();
}

/// An amount as a counter takes it. Counters hold 64 bits: no supply of a 6-decimal dollar
/// exceeds them.
#[must_use]
pub fn atoms(amount: Amount) -> u64 {
    u64::try_from(amount.get()).unwrap_or(u64::MAX)
}

/// The label of an ending.
#[must_use]
pub const fn ending_name(ending: Ending) -> &'static str {
    match ending {
        Ending::Complete => "complete",
        Ending::Cancelled => "cancelled",
        Ending::UpstreamFailed => "upstream_failed",
        Ending::Unpaid => "unpaid",
        Ending::Interrupted => "interrupted",
        Ending::Limit => "limit",
    }
}

/// The label of a refusal.
#[must_use]
pub const fn refusal_name(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownModel => "unknown_model",
        Refusal::Endpoint => "endpoint",
        Refusal::StaleOffer => "stale_offer",
        Refusal::BadRequest(_) => "bad_request",
        Refusal::Upstream { .. } => "upstream",
        Refusal::Busy { .. } => "busy",
        Refusal::TooLarge { .. } => "too_large",
        Refusal::CostCeiling { .. } => "cost_ceiling",
        Refusal::NoChannel => "no_channel",
        Refusal::Voucher(_) => "voucher",
        Refusal::Duplicate => "duplicate",
        Refusal::Unavailable(_) => "unavailable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text_with_its_help() {
        let metrics = Metrics::default();
        let usage = Usage {
            prompt: 30,
            cached: 10,
            completion: 5,
        };
        metrics.purchase_ended(Ending::Complete, &usage, Amount::atoms(7));
        metrics.refused(&Refusal::Busy { retry_after_ms: 1 });
        metrics.clone().serve_running.set(3);
        let text = metrics.encode();
        for line in [
            "# HELP farthing_node_serve_purchases Purchases by how they ended.",
            "farthing_node_serve_purchases_total{kind=\"complete\"} 1",
            "farthing_node_meter_tokens_total{kind=\"cached\"} 10",
            "farthing_node_ledger_charged_atoms_total 7",
            "farthing_node_admission_refusals_total{kind=\"busy\"} 1",
            "farthing_node_serve_running 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn two_nodes_do_not_count_together() {
        let (one, other) = (Metrics::default(), Metrics::default());
        one.announce_offers.inc();
        assert_eq!(other.announce_offers.get(), 0);
    }

    #[test]
    fn a_counter_takes_any_amount() {
        assert_eq!(atoms(Amount::MAX), u64::MAX);
    }
}
