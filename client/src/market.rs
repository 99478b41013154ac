//! [`Market`]: what the buyer knows of the sellers. Their offers (the protocol's
//! [`Book`]) and what it measured itself, per seller and model: success, speed, load, a pause
//! after failures.
//!
//! A handle over one short lock; nothing waits inside. It judges nobody: it hands out plain
//! [`Candidate`]s and the router decides. Bounded in sellers, and in models per seller.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farthing_protocol::book::{Book, Heard};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::frame::BOOK_PAGE;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::{Endpoint, MAX_MODELS, ModelOffer, SignedOffer, VerifiedOffer};
use farthing_protocol::purchase::Load;
use farthing_protocol::x402::Network;

use crate::report::{ModelListing, OfferReport};

mod sketch;
mod stats;
mod web;
mod listing;

use stats::Stats;
pub use stats::{Measured, Outcome, Pause, Served};
pub use web::WebOffer;

/// The most sellers whose measurements are kept.
const MAX_MEASURED: usize = 10_000;
/// After so many fresh offers the index by model is rebuilt, so that models no longer offered
/// do not stay in it.
const REBUILD: usize = 4_096;

/// Where a seller is met.
#[derive(Debug, Clone)]
pub enum Source {
    /// On the peer-to-peer network.
    Peer(Arc<VerifiedOffer>),
    /// Over plain HTTP.
    Web(Arc<WebOffer>),
}

impl Source {
    fn models(&self) -> &[ModelOffer] {
        match self {
            Self::Peer(offer) => &offer.offer().models,
            Self::Web(offer) => &offer.models,
        }
    }
}

/// One seller of a model, with what is known about it.
#[derive(Debug, Clone)]
pub struct Candidate {
    source: Source,
    place: usize,
    /// What was measured.
    pub measured: Measured,
}

impl Candidate {
    /// The seller of this offer as a candidate for a model, if it offers it.
    #[must_use]
    pub fn of(offer: Arc<VerifiedOffer>, model: &str, measured: Measured) -> Option<Self> {
        Self::from(Source::Peer(offer), model, measured)
    }

    fn from(source: Source, model: &str, measured: Measured) -> Option<Self> {
        let mut models = source.models().iter();
        let place = models.position(|offered| offered.id == model)?;
        Some(Self {
            source,
            place,
            measured,
        })
    }

    /// The seller.
    #[must_use]
    pub fn seller(&self) -> NodeId {
        match &self.source {
            Source::Peer(offer) => offer.offer().seller,
            Source::Web(offer) => offer.id,
        }
    }

    /// Where the seller is met.
    #[must_use]
    pub const fn source(&self) -> &Source {
        &self.source
    }

    /// The model within the offer.
    #[must_use]
    pub fn model(&self) -> &ModelOffer {
        // `of` found the model at this place, and offers do not change.
        &self.source.models()[self.place]
    }
}

/// What the buyer knows of the sellers. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Market {
    state: Arc<Mutex<State>>,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    book: Book,
    /// Who offered a model at some time; whether they still do is the book's word.
    sellers: HashMap<String, BTreeSet<NodeId>>,
    fresh: usize,
    measured: HashMap<NodeId, Vec<(String, Endpoint, Stats)>>,
    /// Sellers met over HTTP, as configured.
    web: Vec<Arc<WebOffer>>,
}

impl Market {
    /// An empty market on a network.
    #[must_use]
    pub fn new(network: Network, clock: Clock) -> Self {
        let state = State {
            book: Book::new(network),
            sellers: HashMap::new(),
            fresh: 0,
            measured: HashMap::new(),
            web: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the bytes of a gossip message.
    pub fn hear_bytes(&self, bytes: &[u8]) -> Heard {
        let now = self.clock.now();
        let mut state = self.lock();
        let heard = state.book.hear_bytes(bytes, now);
        state.index(&heard, now);
        heard
    }

    /// Takes an offer from another node's book.
    pub fn hear(&self, offer: SignedOffer) -> Heard {
        let now = self.clock.now();
        let mut state = self.lock();
        let heard = state.book.hear(offer, now);
        state.index(&heard, now);
        heard
    }

    /// Takes an offer that is checked already.
    pub fn take(&self, offer: Arc<VerifiedOffer>) -> Heard {
        let now = self.clock.now();
        let mut state = self.lock();
        let heard = state.book.take(offer, now);
        state.index(&heard, now);
        heard
    }

    /// A page of the book for a newcomer, from the `from`th seller on.
    #[must_use]
    pub fn page(&self, from: usize) -> Vec<SignedOffer> {
        self.lock().book.page(from, BOOK_PAGE, self.clock.now())
    }

    /// One seller's newest unexpired offer.
    #[must_use]
    pub fn offer(&self, seller: NodeId) -> Option<Arc<VerifiedOffer>> {
        self.lock().book.offer(seller, self.clock.now()).cloned()
    }

    /// Everyone who offers this model now, with what was measured at this endpoint.
    #[must_use]
    pub fn snapshot(&self, model: &str, endpoint: Endpoint) -> Vec<Candidate> {
        let now = self.clock.now();
        let state = self.lock();
        let sellers = state.sellers.get(model).into_iter().flatten();
        let candidate = |seller: &NodeId| {
            let offer = state.book.offer(*seller, now)?;
            let measured = state.measured(*seller, model, endpoint, now);
            let measured = measured.unwrap_or_default();
            Candidate::of(Arc::clone(offer), model, measured)
        };
        let peers = sellers.filter_map(candidate);
        let web = state.web.iter().filter_map(|offer| {
            let measured = state.measured(offer.id, model, endpoint, now);
            let measured = measured.unwrap_or_default();
            Candidate::from(Source::Web(Arc::clone(offer)), model, measured)
        });
        peers.chain(web).collect()
    }

    /// A seller met over HTTP, if it is listed.
    #[must_use]
    pub fn web_offer(&self, seller: NodeId) -> Option<Arc<WebOffer>> {
        let state = self.lock();
        state.web.iter().find(|offer| offer.id == seller).cloned()
    }

    /// Lists a seller met over HTTP, in the place of what it was before.
    pub fn list_web(&self, offer: WebOffer) {
        let mut state = self.lock();
        state.web.retain(|known| known.id != offer.id);
        state.web.push(Arc::new(offer));
    }

    /// Begins a purchase: it counts as in flight until the [`Trial`] is dropped.
    #[must_use]
    pub fn begin(&self, seller: NodeId, model: &str, endpoint: Endpoint) -> Trial {
        let now = self.clock.now();
        self.lock().stats(seller, model, endpoint, now).begin(now);
        Trial {
            market: self.clone(),
            seller,
            model: model.to_owned(),
            endpoint,
            began: now,
        }
    }

    /// The models on offer, by id.
    #[must_use]
    pub fn models(&self) -> Vec<ModelListing> {
        let state = self.lock();
        let now = self.clock.now();
        listing::models(state.book.offers(now), &state.web, now)
    }

    /// Every offer of every model, by model and price.
    #[must_use]
    pub fn offers(&self) -> Vec<OfferReport> {
        let now = self.clock.now();
        let state = self.lock();
        let measured = |seller, model: &str| {
            let known = |endpoint| state.measured(seller, model, endpoint, now);
            Endpoint::ALL.into_iter().find_map(known)
        };
        listing::offers(state.book.offers(now), measured, now)
    }

    /// How many sellers have an unexpired offer.
    #[must_use]
    pub fn sellers(&self) -> usize {
        let state = self.lock();
        state.book.offers(self.clock.now()).count() + state.web.len()
    }

    /// Forgets the texts of expired offers. Call it now and then.
    pub fn sweep(&self) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.book.sweep(now);
        state.rebuild(now);
    }
}

impl State {
    /// Notes who offers what.
    fn index(&mut self, heard: &Heard, now: Timestamp) {
        let Heard::Fresh(offer) = heard else { return };
        self.fresh += 1;
        if self.fresh >= REBUILD {
            self.rebuild(now);
            return;
        }
        self.list(&Arc::clone(offer));
    }

    fn list(&mut self, offer: &VerifiedOffer) {
        let offer = offer.offer();
        for model in &offer.models {
            let sellers = self.sellers.entry(model.id.clone()).or_default();
            sellers.insert(offer.seller);
        }
    }

    fn rebuild(&mut self, now: Timestamp) {
        self.fresh = 0;
        self.sellers.clear();
        let offers: Vec<_> = self.book.offers(now).cloned().collect();
        for offer in offers {
            self.list(&offer);
        }
    }

    fn measured(
        &self,
        seller: NodeId,
        model: &str,
        endpoint: Endpoint,
        now: Timestamp,
    ) -> Option<Measured> {
        let models = self.measured.get(&seller)?;
        let (_, _, stats) = models
            .iter()
            .find(|(id, at, _)| id == model && *at == endpoint)?;
        Some(stats.at(now))
    }

    /// The measurements of a seller, model and endpoint; the least recently used ones make room.
    fn stats(
        &mut self,
        seller: NodeId,
        model: &str,
        endpoint: Endpoint,
        now: Timestamp,
    ) -> &mut Stats {
        if !self.measured.contains_key(&seller) && self.measured.len() >= MAX_MEASURED {
            let used = |models: &Vec<(String, Endpoint, Stats)>| {
                models.iter().map(|(_, _, stats)| stats.used()).max()
            };
            let oldest = self.measured.iter().min_by_key(|(_, models)| used(models));
            if let Some(seller) = oldest.map(|(seller, _)| *seller) {
                self.measured.remove(&seller);
            }
        }
        let models = self.measured.entry(seller).or_default();
        let place = models
            .iter()
            .position(|(id, at, _)| id == model && *at == endpoint);
        let place = place.unwrap_or_else(|| {
            if models.len() >= MAX_MODELS {
                let oldest = (0..models.len()).min_by_key(|place| models[*place].2.used());
                models.swap_remove(oldest.unwrap_or(0));
            }
            models.push((model.to_owned(), endpoint, Stats::new(now)));
            models.len() - 1
        });
        &mut models[place].2
    }
}

/// One purchase that is under way. Dropped without an outcome, it says nothing of the seller.
#[derive(Debug)]
pub struct Trial {
    market: Market,
    seller: NodeId,
    model: String,
    endpoint: Endpoint,
    began: Timestamp,
}

impl Trial {
    /// The first token is here: until then the wait counts against the seller.
    pub fn answered(&self) {
        self.change(|stats, _| stats.answered(self.began));
    }

    /// The load the seller reported with an answer.
    pub fn load(&self, load: Load) {
        self.change(|stats, now| stats.load(load, now));
    }

    /// How it ended.
    pub fn record(self, outcome: Outcome) {
        self.change(|stats, now| stats.record(outcome, now));
    }

    fn change(&self, change: impl FnOnce(&mut Stats, Timestamp)) {
        let now = self.market.clock.now();
        let mut state = self.market.lock();
        change(
            state.stats(self.seller, &self.model, self.endpoint, now),
            now,
        );
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.change(|stats, _| {
            stats.answered(self.began);
            stats.end();
        });
    }
}

#[cfg(test)]
mod tests;
