//! [`Shelf`]: who sells one model at one endpoint, kept in order, so that a decision looks at a
//! few of them and not at all.
//!
//! The orders are kept up to date by what changes them, an offer heard or a purchase ended, each
//! at the cost of a few steps in a tree. A request then takes the best of those that were
//! measured, the cheapest of all, and some by lot: whoever would win among all is nearly always
//! among these, and newcomers come up by price or by lot. Equal ones stand in an order of the
//! buyer's own, so that not all buyers ask the same.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;

use crate::market::Candidate;
use crate::market::goods::Goods;
use crate::market::stats::Measured;

/// Up to so many sellers, all are looked at.
const FEW: usize = 64;
/// How many are taken from each order.
const BEST: [usize; ORDERS] = [36, 6, 8, 8];
/// How many are taken by lot.
const LOT: usize = 4;
/// How many of those that cannot be tried now are taken, for the case that nobody can.
const PAUSED: usize = 8;
/// How many are passed over in one order before it is given up, while others have brought some.
const PASSED: usize = 256;
/// By value and by time, of those that were measured; by price, of all; and of those that were
/// not, so that newcomers are met even if others are known to be cheap.
const ORDERS: usize = 4;
const PRICE: usize = 2;

/// A request of average size, by which sellers are kept in order: tokens of prompt and answer.
const PROMPT: u64 = 1000;
const ANSWER: u64 = 256;
/// Milliseconds to a first token, and per token, where nothing was measured.
const FIRST_TOKEN: f64 = 500.0;
const PER_TOKEN: f64 = 20.0;

/// What a request wants to see of a shelf.
pub(super) struct Look<'a> {
    pub(super) now: Timestamp,
    pub(super) seed: u64,
    /// Whether goods can serve it at all.
    pub(super) admits: &'a dyn Fn(&Goods) -> bool,
    /// Whether a seller must be looked at.
    pub(super) names: Option<&'a dyn Fn(&Goods) -> bool>,
    /// The seller that has the conversation in its cache.
    pub(super) warm: Option<NodeId>,
    /// What stands for those that nothing is known of.
    pub(super) newcomer: Measured,
    pub(super) measured: &'a dyn Fn(NodeId) -> Option<Measured>,
}

#[derive(Debug)]
struct Item {
    goods: Arc<Goods>,
    expires: Timestamp,
    keys: [Option<Key>; ORDERS],
}

/// A place in an order: how good, which of equals, and whose.
type Key = (u64, u64, usize);

/// Who sells one model at one endpoint.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    items: Vec<Option<Item>>,
    free: Vec<usize>,
    places: HashMap<NodeId, usize>,
    orders: [BTreeSet<Key>; ORDERS],
}

impl Shelf {
    /// Puts a seller's goods on the shelf, in the place of what it had there.
    pub(super) fn put(&mut self, goods: Arc<Goods>, expires: Timestamp, salt: u64) {
        let seller = goods.seller;
        self.take(seller);
        let item = Item {
            goods,
            expires,
            keys: [None; ORDERS],
        };
        let place = self.free.pop().unwrap_or(self.items.len());
        match self.items.get_mut(place) {
            Some(empty) => *empty = Some(item),
            None => self.items.push(Some(item)),
        }
        self.places.insert(seller, place);
        self.order(seller, None, salt);
    }

    /// Takes a seller off.
    pub(super) fn take(&mut self, seller: NodeId) {
        let Some(place) = self.places.remove(&seller) else {
            return;
        };
        if let Some(item) = self.items[place].take() {
            self.unlist(&item.keys);
        }
        self.free.push(place);
    }

    /// Puts a seller where it belongs by what was measured of it.
    pub(super) fn order(&mut self, seller: NodeId, measured: Option<&Measured>, salt: u64) {
        let Some(place) = self.places.get(&seller).copied() else {
            return;
        };
        let Some(item) = self.items[place].as_mut() else {
            return;
        };
        let equal = mix(salt, seller);
        let keys = standing(&item.goods, measured);
        let keys = keys.map(|key| key.map(|key| (key.to_bits(), equal, place)));
        let old = std::mem::replace(&mut item.keys, keys);
        self.unlist(&old);
        for (order, key) in self.orders.iter_mut().zip(keys) {
            order.extend(key);
        }
    }

    fn unlist(&mut self, keys: &[Option<Key>; ORDERS]) {
        for (order, key) in self.orders.iter_mut().zip(keys) {
            if let Some(key) = key {
                order.remove(key);
            }
        }
    }

    /// Takes off whose offers have ended.
    pub(super) fn sweep(&mut self, now: Timestamp) {
        let over = |item: &&Item| item.expires <= now;
        let items = self.items.iter().flatten().filter(over);
        let sellers: Vec<_> = items.map(|item| item.goods.seller).collect();
        for seller in sellers {
            self.take(seller);
        }
    }

    /// How many are on it, some of them perhaps out of date.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Everyone who offers it now.
    pub(super) fn all(&self, now: Timestamp) -> impl Iterator<Item = &Arc<Goods>> {
        let items = self.items.iter().flatten();
        items
            .filter(move |item| item.expires > now)
            .map(|item| &item.goods)
    }

    /// Those that a request looks at.
    pub(super) fn look(&self, look: &Look<'_>) -> Vec<Candidate> {
        let mut basket = Basket {
            shelf: self,
            look,
            seen: vec![false; self.items.len()],
            kept: Vec::with_capacity(2 * FEW),
            paused: Vec::new(),
        };
        if self.len() <= FEW {
            (0..self.items.len()).for_each(|place| basket.add_any(place));
        } else {
            basket.fill();
        }
        let Basket {
            mut kept, paused, ..
        } = basket;
        kept.extend(paused);
        kept
    }
}

/// What was taken from a shelf so far.
struct Basket<'a> {
    shelf: &'a Shelf,
    look: &'a Look<'a>,
    /// By place.
    seen: Vec<bool>,
    kept: Vec<Candidate>,
    paused: Vec<Candidate>,
}

impl<'a> Basket<'a> {
    fn fill(&mut self) {
        if let Some(names) = self.look.names {
            self.add_named(names);
        }
        if let Some(place) = self.look.warm.and_then(|id| self.shelf.places.get(&id)) {
            self.add(*place);
        }
        for (order, most) in BEST.into_iter().enumerate() {
            self.add_best(order, most, PASSED);
        }
        let slots = self.shelf.items.len() as u64;
        for n in 0..LOT as u64 {
            let lot = mix_seed(self.look.seed ^ mix_seed(n)) % slots.max(1);
            self.add(usize::try_from(lot).unwrap_or(0));
        }
        if self.kept.is_empty() {
            // What it asks for is rare: it is looked for to the end.
            self.add_best(PRICE, FEW, usize::MAX);
        }
    }

    fn add_named(&mut self, names: &dyn Fn(&Goods) -> bool) {
        let mut left = FEW;
        let shelf = self.shelf;
        for (place, item) in shelf.items.iter().enumerate() {
            let named = |item: &Item| names(&item.goods);
            if item.as_ref().is_some_and(named) {
                self.add_any(place);
                left -= 1;
                if left == 0 {
                    return;
                }
            }
        }
    }

    fn add_best(&mut self, order: usize, most: usize, passed: usize) {
        let (mut taken, mut over) = (0, 0);
        let shelf = self.shelf;
        for (_, _, place) in &shelf.orders[order] {
            if self.seen[*place] || self.add(*place) {
                taken += 1;
            } else {
                over += 1;
            }
            if taken >= most || over >= passed {
                return;
            }
        }
    }

    /// Adds one that can serve the request; whether it can be tried now.
    fn add(&mut self, place: usize) -> bool {
        let Some(item) = self.current(place) else {
            return false;
        };
        if self.seen[place] || !(self.look.admits)(&item.goods) {
            return false;
        }
        self.keep(place, &item.goods)
    }

    /// Adds one, whether it can serve the request or not: the explanation says why not.
    fn add_any(&mut self, place: usize) {
        if let Some(item) = self.current(place)
            && !self.seen[place]
        {
            self.keep(place, &item.goods);
        }
    }

    fn current(&self, place: usize) -> Option<&'a Item> {
        let item = self.shelf.items.get(place)?.as_ref();
        item.filter(|item| item.expires > self.look.now)
    }

    fn keep(&mut self, place: usize, goods: &Arc<Goods>) -> bool {
        let measured = (self.look.measured)(goods.seller).unwrap_or(self.look.newcomer);
        let candidate = Candidate {
            goods: Arc::clone(goods),
            measured: Arc::new(measured),
        };
        if candidate.measured.pause.is_none() {
            self.seen[place] = true;
            self.kept.push(candidate);
            return true;
        }
        if self.paused.len() < PAUSED || self.shelf.len() <= FEW {
            self.seen[place] = true;
            self.paused.push(candidate);
        }
        false
    }
}

/// Where goods stand in each order; less is better.
#[allow(
    clippy::cast_precision_loss,
    reason = "an order compares; nothing is paid by it"
)]
fn standing(goods: &Goods, measured: Option<&Measured>) -> [Option<f64>; ORDERS] {
    let prices = &goods.model.prices;
    let price = |price: farthing_protocol::amount::Price| price.0 as f64;
    let cost = price(prices.input) * PROMPT as f64
        + price(prices.output) * ANSWER as f64
        + price(prices.request);
    let known = measured.filter(|measured| measured.weight > 0.0);
    let success = measured.map_or(1.0, |measured| measured.success.max(0.01));
    let dear = cost.max(1.0) / success;
    let [mut value, mut time] = [None, None];
    if let Some(measured) = known {
        let first = measured.first_token.unwrap_or(FIRST_TOKEN);
        let took = first + measured.per_token.unwrap_or(PER_TOKEN) * ANSWER as f64;
        time = Some(took.max(1.0) / success);
        value = Some(dear * took.max(1.0).sqrt() / success);
    }
    let new = known.is_none().then_some(dear);
    [value, time, Some(dear), new]
}

/// A number that looks random, from the seed alone (splitmix64).
#[must_use]
pub const fn mix_seed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number that looks random, from seed and seller.
#[must_use]
pub fn mix(seed: u64, seller: NodeId) -> u64 {
    let words = seller.as_bytes().chunks_exact(8);
    words.fold(mix_seed(seed), |sum, word| {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        mix_seed(sum ^ word)
    })
}

#[cfg(test)]
mod tests;
