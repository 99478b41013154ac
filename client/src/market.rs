//! [`Market`]: what the buyer knows of the sellers. Their offers (the protocol's
//! [`Book`]) and what it measured itself, per seller, model and endpoint: success, speed, load, a
//! pause after failures; and which seller has which conversation in its cache.
//!
//! A handle over one short lock; nothing waits inside. It judges nobody: it hands out plain
//! [`Candidate`]s and the router decides. A request looks at a few of many sellers
//! ([`Market::look`]); an explanation at all ([`Market::snapshot`]). Bounded in sellers, in models
//! per seller, and in conversations. Measurements outlast a restart: whoever holds the store
//! writes [`Market::unwritten`] and reads it back by [`Market::load`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::book::{self, Book, Heard};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::frame::{BOOK_PAGE, Frame};
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::{Endpoint, SignedOffer, VerifiedOffer};
use farthing_protocol::purchase::Load;
use farthing_protocol::x402::Network;

use crate::policy::{Session, Warm};
use crate::report::{ModelListing, OfferReport};

mod sketch;
mod slope;
mod belief;
mod stats;
mod web;
mod goods;
mod listing;
mod memory;
mod sessions;
mod shelf;

pub use belief::{Belief, Tally};
pub use goods::{Candidate, Goods, Source, Ware};
use memory::Memory;
pub use memory::{Change, MEASURED, Memo};
use sessions::Sessions;
use shelf::{Look, Shelf};
pub use shelf::{mix, mix_seed};
pub use sketch::Spread;
use stats::Stats;
pub use stats::{Measured, Outcome, Pause, Served};
pub use web::{Access, Fee, WebOffer};

/// What was measured longer ago than this is not told as what was measured lately.
const LATELY: Duration = Duration::from_secs(30 * 60);
/// When the offers of one that does not end end.
const NEVER: Timestamp = Timestamp(u64::MAX);

/// What the buyer knows of the sellers. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Market {
    state: Arc<Mutex<State>>,
    network: Arc<Network>,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    book: Book,
    /// Who sells a model at an endpoint.
    shelves: HashMap<String, BTreeMap<Endpoint, Shelf>>,
    memory: Memory,
    sessions: Sessions,
    /// Sellers met over HTTP, as configured.
    web: Vec<Arc<WebOffer>>,
    salt: u64,
}

/// What a request wants to look at.
pub struct Wanted<'a> {
    /// The model.
    pub model: &'a str,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Decides who is looked at by lot.
    pub seed: u64,
    /// Who has the conversation in its cache.
    pub warm: Option<NodeId>,
    /// Whether goods can serve the request at all. Only they are looked for; a few others may be
    /// among the candidates.
    pub admits: &'a dyn Fn(&Goods) -> bool,
    /// Whether a seller is named by the request, and so must be looked at.
    pub names: Option<&'a dyn Fn(&Goods) -> bool>,
}

impl Market {
    /// An empty market on a network.
    #[must_use]
    pub fn new(network: Network, clock: Clock) -> Self {
        Self::salted(network, clock, 0)
    }

    /// An empty market whose order among equals is its own: by the salt.
    #[must_use]
    pub fn salted(network: Network, clock: Clock, salt: u64) -> Self {
        let state = State {
            book: Book::new(network.clone()),
            shelves: HashMap::new(),
            memory: Memory::default(),
            sessions: Sessions::default(),
            web: Vec::new(),
            salt,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            network: Arc::new(network),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the bytes of a gossip message.
    pub fn hear_bytes(&self, bytes: &[u8]) -> Heard {
        match SignedOffer::decode(bytes) {
            Ok(offer) => self.hear(offer),
            Err(error) => Heard::Bad(error.into()),
        }
    }

    /// Takes an offer from another node's book. Its signatures are checked before anybody has to
    /// wait for it.
    pub fn hear(&self, offer: SignedOffer) -> Heard {
        match book::check(offer, &self.network, self.clock.now()) {
            Ok(offer) => self.take(Arc::new(offer)),
            Err(heard) => heard,
        }
    }

    /// Takes an offer that is checked already.
    pub fn take(&self, offer: Arc<VerifiedOffer>) -> Heard {
        let now = self.clock.now();
        let mut state = self.lock();
        let old = state.book.offer(offer.offer().seller, now).cloned();
        let heard = state.book.take(offer, now);
        if let Heard::Fresh(offer) = &heard {
            let goods = Goods::of_peer(offer).collect();
            state.put(goods, old.as_deref(), offer.offer().expires, now);
        }
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

    /// Everyone who offers this model now, with what was measured at this endpoint: those first
    /// that sell it there.
    #[must_use]
    pub fn snapshot(&self, model: &str, endpoint: Endpoint) -> Vec<Candidate> {
        let now = self.clock.now();
        let state = self.lock();
        let Some(shelves) = state.shelves.get(model) else {
            return Vec::new();
        };
        let here = shelves.get(&endpoint).into_iter();
        let elsewhere = shelves.iter().filter(|(at, _)| **at != endpoint);
        let mut seen = HashSet::new();
        let all = here.chain(elsewhere.map(|(_, shelf)| shelf));
        let goods = all.flat_map(|shelf| shelf.all(now));
        let new = goods.filter(|goods| seen.insert(goods.seller));
        new.map(|goods| Candidate {
            goods: Arc::clone(goods),
            measured: Arc::new(
                state
                    .memory
                    .of(goods.seller, model, endpoint, now)
                    .unwrap_or_else(|| state.memory.newcomer()),
            ),
        })
        .collect()
    }

    /// Those sellers of a model that a request looks at: all of a few; of many the best of those
    /// that were measured, the cheapest, some by lot, and whoever the request names.
    #[must_use]
    pub fn look(&self, wanted: &Wanted<'_>) -> Vec<Candidate> {
        let now = self.clock.now();
        let state = self.lock();
        let shelves = state.shelves.get(wanted.model);
        let Some(shelf) = shelves.and_then(|shelves| shelves.get(&wanted.endpoint)) else {
            return Vec::new();
        };
        let memory = &state.memory;
        shelf.look(&Look {
            now,
            seed: wanted.seed,
            admits: wanted.admits,
            names: wanted.names,
            warm: wanted.warm,
            newcomer: memory.newcomer(),
            measured: &|seller| memory.of(seller, wanted.model, wanted.endpoint, now),
        })
    }

    /// How many sell a model at an endpoint, as far as is known.
    #[must_use]
    pub fn on_offer(&self, model: &str, endpoint: Endpoint) -> usize {
        let state = self.lock();
        let shelf = state.shelves.get(model).and_then(|all| all.get(&endpoint));
        shelf.map_or(0, Shelf::len)
    }

    /// A seller met over HTTP, if it is listed.
    #[must_use]
    pub fn web_offer(&self, seller: NodeId) -> Option<Arc<WebOffer>> {
        let state = self.lock();
        state.web.iter().find(|offer| offer.id == seller).cloned()
    }

    /// Lists a seller met over HTTP, in the place of what it was before.
    pub fn list_web(&self, offer: WebOffer) {
        let now = self.clock.now();
        let mut state = self.lock();
        let offer = Arc::new(offer);
        for shelves in state.shelves.values_mut() {
            shelves.values_mut().for_each(|shelf| shelf.take(offer.id));
        }
        state.web.retain(|known| known.id != offer.id);
        state.web.push(Arc::clone(&offer));
        state.put(Goods::of_web(&offer).collect(), None, NEVER, now);
    }

    /// Begins a purchase: it counts as in flight until the [`Trial`] is dropped.
    #[must_use]
    pub fn begin(&self, seller: NodeId, model: &str, endpoint: Endpoint) -> Trial {
        let now = self.clock.now();
        let what = (seller, model, endpoint);
        self.lock().change(what, now, |stats| stats.begin(now));
        Trial {
            market: self.clone(),
            seller,
            model: model.to_owned(),
            endpoint,
            began: now,
        }
    }

    /// Who has this conversation in its cache, unless that is longer ago than `idle`.
    #[must_use]
    pub fn warm(&self, session: Session, idle: Duration) -> Option<Warm> {
        self.lock().sessions.of(session, idle, self.clock.now())
    }

    /// A seller has this conversation in its cache now.
    pub fn warmed(&self, session: Session, warm: Warm) {
        let now = self.clock.now();
        self.lock().sessions.note(session, warm, now);
    }

    /// What was measured and is not on disk yet. It counts as written from now on.
    #[must_use]
    pub fn unwritten(&self) -> Vec<Change> {
        self.lock().memory.unwritten()
    }

    /// Takes in what was measured before this start. Call it first of all.
    pub fn load(&self, rows: Vec<((B256, B256), Memo)>) {
        let now = self.clock.now();
        self.lock().memory.load(rows, now);
    }

    /// Takes what is believed of a seller's model beside what is measured here.
    pub fn believe(&self, seller: NodeId, model: &str, belief: Belief) {
        let now = self.clock.now();
        let mut state = self.lock();
        if state.memory.beliefs.believe(seller, model, belief) {
            state.reorder(seller, model, now);
        }
    }

    /// Takes what is believed of sellers that nothing else is believed of.
    pub fn believe_newcomers(&self, belief: Belief) {
        self.lock().memory.beliefs.believe_newcomers(belief);
    }

    /// Nothing is believed any more of this seller's model, but what is of any newcomer.
    pub fn forget(&self, seller: NodeId, model: &str) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.memory.beliefs.forget(seller, model);
        state.reorder(seller, model, now);
    }

    /// What became of purchases since this was asked last, by seller and model.
    #[must_use]
    pub fn tallies(&self) -> Vec<((NodeId, String), Tally)> {
        self.lock().memory.beliefs.tallies()
    }

    /// The models on offer, by id.
    #[must_use]
    pub fn models(&self) -> Vec<ModelListing> {
        let state = self.lock();
        let now = self.clock.now();
        listing::models(state.book.offers(now), &state.web, now)
    }

    /// Who sells what, by model and price: of one model, or of all.
    #[must_use]
    pub fn wares(&self, model: Option<&str>) -> Vec<Ware> {
        let now = self.clock.now();
        let state = self.lock();
        let wanted = state.shelves.iter();
        let wanted = wanted.filter(|(id, _)| model.is_none_or(|model| model == id.as_str()));
        let mut wares = Vec::new();
        for (_, shelves) in wanted {
            let mut seen = HashSet::new();
            let all = shelves.values().flat_map(|shelf| shelf.all(now));
            let new = all.filter(|goods| seen.insert(goods.seller));
            wares.extend(new.map(|goods| state.ware(goods, now)));
        }
        wares.sort_by(|a, b| a.goods.rank().cmp(&b.goods.rank()));
        wares
    }

    /// How requests may name a seller: its id, or the host of one met over plain HTTP.
    #[must_use]
    pub fn name_of(&self, seller: NodeId) -> String {
        let web = self.web_offer(seller);
        let host = web.as_ref().and_then(|offer| offer.base.host_str());
        host.map_or_else(|| seller.to_string(), str::to_owned)
    }

    /// Every offer of every model, by model and price.
    #[must_use]
    pub fn offers(&self) -> Vec<OfferReport> {
        let now = self.clock.now();
        let state = self.lock();
        let measured = |seller, model: &str| {
            let known = |endpoint| state.memory.of(seller, model, endpoint, now);
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

    /// Forgets expired offers. Call it now and then.
    pub fn sweep(&self) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.book.sweep(now);
        state.shelves.retain(|_, shelves| {
            shelves.values_mut().for_each(|shelf| shelf.sweep(now));
            shelves.retain(|_, shelf| shelf.len() > 0);
            !shelves.is_empty()
        });
    }
}

impl State {
    fn ware(&self, goods: &Arc<Goods>, now: Timestamp) -> Ware {
        let (seller, model) = (goods.seller, &goods.model);
        let known = |endpoint: &Endpoint| self.memory.of(seller, &model.id, *endpoint, now);
        let measured = model.endpoints.iter().find_map(known);
        Ware {
            goods: Arc::clone(goods),
            measured: measured.filter(|measured| measured.weight > 0.0),
            first_tokens: self.memory.first_tokens(goods, LATELY, now),
        }
    }

    /// Puts a seller's goods on their shelves, and takes off what its old offer had there.
    fn put(
        &mut self,
        goods: Vec<Goods>,
        old: Option<&VerifiedOffer>,
        expires: Timestamp,
        now: Timestamp,
    ) {
        if let Some(old) = old {
            for model in &old.offer().models {
                let shelves = self.shelves.get_mut(&model.id).into_iter();
                shelves
                    .flat_map(BTreeMap::values_mut)
                    .for_each(|shelf| shelf.take(old.offer().seller));
            }
        }
        for goods in goods {
            let goods = Arc::new(goods);
            let (seller, model) = (goods.seller, &goods.model);
            for endpoint in &model.endpoints {
                let shelves = self.shelves.entry(model.id.clone()).or_default();
                let shelf = shelves.entry(*endpoint).or_default();
                shelf.put(Arc::clone(&goods), expires, self.salt);
                let measured = self.memory.of(seller, &model.id, *endpoint, now);
                if measured.is_some() {
                    shelf.order(seller, measured.as_ref(), self.salt);
                }
            }
        }
    }

    /// Puts a seller where it belongs on every shelf of a model.
    fn reorder(&mut self, seller: NodeId, model: &str, now: Timestamp) {
        let shelves = self.shelves.get_mut(model).into_iter().flatten();
        for (endpoint, shelf) in shelves {
            let measured = self.memory.of(seller, model, *endpoint, now);
            shelf.order(seller, measured.as_ref(), self.salt);
        }
    }

    fn change(
        &mut self,
        what: (NodeId, &str, Endpoint),
        now: Timestamp,
        change: impl FnOnce(&mut Stats),
    ) {
        self.memory.change(what, now, change);
    }

    /// The same, when it changes what the seller is taken for.
    fn judge(
        &mut self,
        what: (NodeId, &str, Endpoint),
        now: Timestamp,
        change: impl FnOnce(&mut Stats),
    ) {
        self.change(what, now, change);
        let (seller, model, endpoint) = what;
        self.memory.note(seller, model, endpoint);
        let measured = self.memory.of(seller, model, endpoint, now);
        let shelves = self.shelves.get_mut(model);
        if let Some(shelf) = shelves.and_then(|all| all.get_mut(&endpoint)) {
            shelf.order(seller, measured.as_ref(), self.salt);
        }
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
        let now = self.market.clock.now();
        let what = (self.seller, self.model.as_str(), self.endpoint);
        let mut state = self.market.lock();
        let beliefs = &mut state.memory.beliefs;
        beliefs.count(self.seller, &self.model, outcome);
        state.judge(what, now, |stats| stats.record(outcome, now));
    }

    fn change(&self, change: impl FnOnce(&mut Stats, Timestamp)) {
        let now = self.market.clock.now();
        let what = (self.seller, self.model.as_str(), self.endpoint);
        let mut state = self.market.lock();
        state.change(what, now, |stats| change(stats, now));
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
