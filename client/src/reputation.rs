//! [`Reputation`]: what is believed of sellers, and why.
//!
//! Three sources, in this order of weight: what became of our own purchases ([`Experience`], kept
//! for weeks, on disk), what others testify who have paid the seller on chain ([`hearsay`]), and
//! how newcomers did lately. [`judgement`] makes one [`Belief`] of them, which the market is told:
//! it measures the last minutes, and counts from there.
//!
//! A handle over one short lock; nothing waits inside but for the store. Bounded in sellers.

pub mod hearsay;
pub mod judgement;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::identity::NodeId;
use farthing_protocol::receipt::model_hash;
use farthing_protocol::roll::{Heard, Roll};
use farthing_protocol::store::{Batch, Order, Store};
use farthing_protocol::testimony::{Line, MAX_LINES};

use crate::ledger::experience::{Deed, Experience, faded};
use crate::ledger::{EXPERIENCES, LedgerError};
use crate::market::{Belief, Market, Tally};
use crate::report::{SellerReport, WordReport};
use crate::reputation::hearsay::Word;
use crate::reputation::judgement::{Known, Newcomers, Rules, judge, newcomer};

/// The most models at sellers that experience is kept of.
const MAX_EXPERIENCES: usize = 10_000;
/// So many purchases make a newcomer known.
const FIRST: f64 = 3.0;
/// Time in which what newcomers did counts half.
const NEWCOMERS_HALF_LIFE: Duration = Duration::from_secs(3_600);
/// How often everything is weighed anew although nothing happened: words and deeds fade.
const ANEW: Duration = Duration::from_secs(60);
/// Rows written in one batch.
const ROWS: usize = 64;

/// One model at one seller.
type Name = (NodeId, B256);

/// What it stands on.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Where experience is kept.
    pub store: Store,
    /// Who is told what is believed, and tells what happened.
    pub market: Market,
    /// What others say.
    pub roll: Roll,
    /// The time of day.
    pub clock: Clock,
    /// Whose own testimonies do not count: our payer.
    pub us: Address,
}

/// What is believed of sellers. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Reputation {
    ground: Ground,
    rules: Rules,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    own: BTreeMap<Name, Experience>,
    words: HashMap<Name, Word>,
    newcomers: Newcomers,
    newcomers_at: Timestamp,
    /// What the disk does not have yet.
    changed: HashSet<Name>,
    /// Of whom the market was told, by the model's id.
    told: HashMap<Name, String>,
    /// How the roll stood when it was weighed last, and when that was.
    heard: u64,
    weighed: Option<Timestamp>,
    /// Of whom something is said, but no offer says yet where their money goes.
    unmet: HashSet<NodeId>,
}

impl Reputation {
    /// What was experienced before, from the store.
    ///
    /// # Errors
    /// [`LedgerError::Read`].
    pub fn open(ground: Ground, rules: Rules) -> Result<Self, LedgerError> {
        let mut state = State::default();
        for ((seller, model), known) in
            ground.store.scan(&EXPERIENCES, .., Order::Up, usize::MAX)?
        {
            state
                .own
                .insert((NodeId::from_bytes(seller.0), model), known);
        }
        let reputation = Self {
            ground,
            rules,
            state: Arc::new(Mutex::new(state)),
        };
        reputation.refresh();
        Ok(reputation)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters what was found out about a purchase beside how it ended.
    pub fn note(&self, seller: NodeId, model: &str, deed: Deed) {
        let now = self.ground.clock.now();
        let mut state = self.lock();
        // What led to it is entered first.
        self.hear_tallies(&mut state, now);
        state.note(seller, model, deed, now);
        if deed == Deed::Disputed {
            // It concerns all the seller's models: everything is weighed anew.
            state.weighed = None;
        }
        self.tell(&state, (seller, model_hash(model)), model, now);
    }

    /// Takes in what happened in the market and what others say, and tells the market what is
    /// believed. Call it often: without news it costs nothing.
    pub fn refresh(&self) {
        let (now, heard) = (self.ground.clock.now(), self.ground.roll.changes());
        let mut state = self.lock();
        self.hear_tallies(&mut state, now);
        let fresh = |at: Timestamp| heard == state.heard && now.since(at) < ANEW;
        let met = |seller: &NodeId| self.ground.market.offer(*seller).is_some();
        if state.weighed.is_some_and(fresh) && !state.unmet.iter().any(met) {
            return;
        }
        let us = self.ground.us;
        let said = self.believable(&mut state);
        state.words = hearsay::weigh(&said, us, self.rules.stake, now);
        state.heard = heard;
        state.weighed = Some(now);
        self.tell_all(&mut state, now);
    }

    /// Those testimonies whose channel pays whom the seller's own offer names. Any seller can give
    /// a receipt on a channel that pays somebody else, such as its witness.
    fn believable(&self, state: &mut State) -> Vec<Heard> {
        state.unmet.clear();
        let mut said = self.ground.roll.heard();
        said.retain(|heard| {
            let seller = heard.testimony.testimony().seller;
            let Some(offer) = self.ground.market.offer(seller) else {
                state.unmet.insert(seller);
                return false;
            };
            heard.testimony.config().receiver == offer.offer().payout
        });
        said
    }

    fn hear_tallies(&self, state: &mut State, now: Timestamp) {
        for ((seller, model), tally) in self.ground.market.tallies() {
            state.count(seller, &model, tally, now);
            self.tell(state, (seller, model_hash(&model)), &model, now);
        }
    }

    /// Tells the market what is believed of one.
    fn tell(&self, state: &State, name: Name, model: &str, now: Timestamp) {
        let belief = judge(&state.known(name, now), state.newcomers(now), self.rules);
        self.ground.market.believe(name.0, model, belief);
    }

    /// Tells the market what is believed of everybody that anything is known of.
    fn tell_all(&self, state: &mut State, now: Timestamp) {
        let market = &self.ground.market;
        market.believe_newcomers(newcomer(state.newcomers(now), self.rules));
        let own = state.own.iter();
        let mut known: HashMap<Name, String> =
            own.map(|(name, it)| (*name, it.model.clone())).collect();
        for name in state.words.keys() {
            if !known.contains_key(name) {
                // A testimony names models by their hash; who offers it now says its name.
                known.extend(self.model(*name).map(|model| (*name, model)));
            }
        }
        for (name, model) in &known {
            self.tell(state, *name, model, now);
        }
        let gone = state
            .told
            .iter()
            .filter(|(name, _)| !known.contains_key(*name));
        gone.for_each(|(name, model)| market.forget(name.0, model));
        state.told = known;
    }

    fn model(&self, (seller, hash): Name) -> Option<String> {
        let offer = self.ground.market.offer(seller)?;
        let mut models = offer.offer().models.iter();
        let model = models.find(|model| model_hash(&model.id) == hash)?;
        Some(model.id.clone())
    }

    /// What is believed of a seller's model now.
    #[must_use]
    pub fn belief(&self, seller: NodeId, model: &str) -> Belief {
        let now = self.ground.clock.now();
        let state = self.lock();
        let newcomers = state.newcomers(now);
        match state.is_known((seller, model_hash(model))) {
            true => judge(
                &state.known((seller, model_hash(model)), now),
                newcomers,
                self.rules,
            ),
            false => newcomer(newcomers, self.rules),
        }
    }

    /// What became of our purchases from a seller, to be told others: since when, and by model,
    /// those first that cost most.
    #[must_use]
    pub fn lines(&self, seller: NodeId) -> Option<(Timestamp, Vec<Line>)> {
        let state = self.lock();
        let own = state.own.iter().filter(|((of, _), _)| *of == seller);
        let mut own: Vec<_> = own.filter(|(_, known)| is_telling(known)).collect();
        own.sort_by_key(|((_, model), known)| (std::cmp::Reverse(known.charged), *model));
        own.truncate(MAX_LINES);
        let since = own.iter().map(|(_, known)| known.since).min()?;
        let line = |((_, model), known): (&Name, &Experience)| Line {
            model: *model,
            served: known.served,
            failed: known.plainly_failed(),
            broken: known.broken,
            disputed: known.disputed,
            invalid: known.plainly_invalid(),
            charged: known.charged,
        };
        Some((since, own.into_iter().map(line).collect()))
    }

    /// Everybody that anything is known of, and what is believed of them and why: the best known
    /// first.
    #[must_use]
    pub fn report(&self) -> Vec<SellerReport> {
        self.refresh();
        let now = self.ground.clock.now();
        let state = self.lock();
        let newcomers = state.newcomers(now);
        let own = state.own.iter().map(|(name, known)| (name, &known.model));
        let told: HashMap<_, _> = state.told.iter().chain(own).collect();
        let report = |(name, model): (&Name, &String)| {
            let known = state.known(*name, now);
            let belief = judge(&known, newcomers, self.rules);
            let own = state.own.get(name);
            let count = |count: fn(&Experience) -> u32| own.map_or(0, count);
            SellerReport {
                seller: name.0,
                model: model.clone(),
                success: belief.success,
                credit: belief.credit,
                served: count(|known| known.served),
                failed: count(Experience::plainly_failed),
                broken: count(|known| known.broken),
                disputed: count(|known| known.disputed),
                invalid: count(|known| known.invalid),
                charged: own.map(|known| known.charged).unwrap_or_default(),
                word: known.word.map(WordReport::from),
                why: known.to_string(),
            }
        };
        let mut reports: Vec<_> = told.into_iter().map(report).collect();
        reports.sort_by(|a, b| {
            let made = |report: &SellerReport| report.served.saturating_add(report.failed);
            let name = |report: &SellerReport| (report.seller, report.model.clone());
            made(b).cmp(&made(a)).then_with(|| name(a).cmp(&name(b)))
        });
        reports
    }

    /// Writes what has changed. What is lost in a crash was only experience.
    ///
    /// # Errors
    /// The store's; what was not written is tried again.
    pub async fn save(&self) -> Result<(), LedgerError> {
        loop {
            let (names, batch) = self.lock().rows()?;
            if names.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.ground.store.commit(batch).await {
                self.lock().changed.extend(names);
                return Err(error.into());
            }
        }
    }
}

/// Whether there is anything to tell of it.
const fn is_telling(known: &Experience) -> bool {
    known.served > 0 || known.failed > 0 || known.broken > 0 || known.disputed > 0
}

/// All models of a seller.
fn models_of(seller: NodeId) -> std::ops::RangeInclusive<Name> {
    (seller, B256::ZERO)..=(seller, B256::repeat_byte(0xff))
}

impl From<Word> for WordReport {
    fn from(word: Word) -> Self {
        Self {
            payers: word.payers,
            value: word.value,
            quality: word.quality,
        }
    }
}

impl State {
    fn count(&mut self, seller: NodeId, model: &str, tally: Tally, now: Timestamp) {
        let name = (seller, model_hash(model));
        let before = self.own.get(&name).map_or(0.0, |known| {
            let (good, bad) = known.weights(now);
            good + bad
        });
        if before < FIRST {
            let Newcomers { good, bad } = self.newcomers(now);
            self.newcomers = Newcomers {
                good: good + f64::from(tally.served).min(FIRST),
                bad: bad + f64::from(tally.failed).min(FIRST),
            };
            self.newcomers_at = now;
        }
        if tally.served > 0 {
            self.note(
                seller,
                model,
                Deed::Served(tally.served, tally.charged),
                now,
            );
        }
        if tally.failed > 0 {
            self.note(seller, model, Deed::Failed(tally.failed), now);
        }
    }

    fn note(&mut self, seller: NodeId, model: &str, deed: Deed, now: Timestamp) {
        let name = (seller, model_hash(model));
        if !self.own.contains_key(&name) && self.own.len() >= MAX_EXPERIENCES {
            let oldest = self.own.iter().min_by_key(|(_, known)| known.used);
            if let Some(oldest) = oldest.map(|(name, _)| *name) {
                self.own.remove(&oldest);
                self.changed.insert(oldest);
            }
        }
        let known = self
            .own
            .entry(name)
            .or_insert_with(|| Experience::new(model, now));
        known.note(deed, now);
        self.changed.insert(name);
        if deed == Deed::Disputed {
            // Who lies in one model's receipts has earned nothing by another's.
            for (name, known) in self.own.range_mut(models_of(seller)) {
                known.settled = Amount::ZERO;
                self.changed.insert(*name);
            }
        }
    }

    fn newcomers(&self, now: Timestamp) -> Newcomers {
        let factor = faded(now.since(self.newcomers_at), NEWCOMERS_HALF_LIFE);
        Newcomers {
            good: self.newcomers.good * factor,
            bad: self.newcomers.bad * factor,
        }
    }

    fn is_known(&self, name: Name) -> bool {
        self.own.contains_key(&name) || self.words.contains_key(&name)
    }

    fn known(&self, name: Name, now: Timestamp) -> Known {
        let own = self.own.get(&name);
        let (good, bad) = own.map_or((0.0, 0.0), |known| known.weights(now));
        Known {
            good,
            bad,
            settled: self
                .own
                .range(models_of(name.0))
                .fold(Amount::ZERO, |sum, (_, known)| {
                    sum.saturating_add(known.settled)
                }),
            word: self.words.get(&name).copied(),
        }
    }

    /// Some of the rows that the disk does not have, and their names.
    fn rows(&mut self) -> Result<(Vec<Name>, Batch), LedgerError> {
        let names: Vec<_> = self.changed.iter().take(ROWS).copied().collect();
        let mut batch = Batch::new();
        for (seller, model) in &names {
            let key = (B256::from(*seller.as_bytes()), *model);
            batch = match self.own.get(&(*seller, *model)) {
                Some(known) => batch.put(&EXPERIENCES, &key, known)?,
                None => batch.delete(&EXPERIENCES, &key),
            };
        }
        for name in &names {
            self.changed.remove(name);
        }
        Ok((names, batch))
    }
}
