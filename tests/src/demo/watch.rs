//! Watches vouchers leave the buyer's wallet: listens to the client's own events
//! ([`VOUCHERS`]), so that the story shows what was really sent, and when.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farthing_client::purchase::VOUCHERS;
use farthing_protocol::amount::Amount;
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The most that are remembered: the demo may stay up for days.
const MEMORY: usize = 1024;

/// A voucher that was sent to a seller.
#[derive(Debug, Clone)]
pub struct Sent {
    /// For which purchase.
    pub request: String,
    /// What the seller may claim in all on the channel.
    pub ceiling: Amount,
    /// What of it is set aside for this purchase.
    pub set_aside: Amount,
    /// Stream events that had come by then.
    pub events: u64,
    /// When.
    pub at: Instant,
}

/// What was seen so far. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Mutex<VecDeque<Sent>>>);

impl Watch {
    fn seen(&self) -> MutexGuard<'_, VecDeque<Sent>> {
        // A list after a panic is still a list.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layer to install; it hears nothing but vouchers.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let only = Targets::new().with_target(VOUCHERS, Level::DEBUG);
        Layer::<S>::with_filter(Ear(self.clone()), only)
    }

    /// The vouchers sent for one purchase, in order.
    #[must_use]
    pub fn of(&self, request: &str) -> Vec<Sent> {
        let seen = self.seen();
        seen.iter()
            .filter(|s| s.request == request)
            .cloned()
            .collect()
    }
}

struct Ear(Watch);

impl<S: Subscriber> Layer<S> for Ear {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Some(sent) = fields.sent() else { return };
        let mut seen = self.0.seen();
        if seen.len() == MEMORY {
            seen.pop_front();
        }
        seen.push_back(sent);
    }
}

/// The fields of one event.
#[derive(Default)]
struct Fields {
    request: Option<String>,
    ceiling: Option<Amount>,
    set_aside: Option<Amount>,
    events: Option<u64>,
}

impl Fields {
    fn sent(self) -> Option<Sent> {
        Some(Sent {
            request: self.request?,
            ceiling: self.ceiling?,
            set_aside: self.set_aside?,
            events: self.events?,
            at: Instant::now(),
        })
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "request" => self.request = Some(text),
            "ceiling" => self.ceiling = text.parse().ok(),
            "set_aside" => self.set_aside = text.parse().ok(),
            _ => {}
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "events" {
            self.events = Some(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn a_voucher_is_seen_and_nothing_else() {
        let watch = Watch::default();
        let subscriber = tracing_subscriber::registry().with(watch.layer());
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(request = "0x1", "something else");
            let (ceiling, set_aside) = (Amount::atoms(70), Amount::atoms(32));
            tracing::debug!(target: VOUCHERS, request = %"0x1", %ceiling, %set_aside, events = 3_u64);
        });
        let seen = watch.of("0x1");
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].ceiling, Amount::atoms(70));
        assert_eq!(seen[0].events, 3);
        assert!(watch.of("0x2").is_empty());
    }
}
