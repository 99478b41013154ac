//! The order of those that can be asked: who is wanted by name, who lacks something, who is
//! slower than asked for, and within each of these by score; among near-equals by lot and load,
//! so that not everybody asks the same; and now and then a newcomer.

use std::time::Duration;

use farthing_protocol::amount::Cost;

use crate::market::{Candidate, Measured, mix, mix_seed};
use crate::policy::{Percentiles, Terms};
use crate::router::{Choice, Standing};

/// A newcomer is explored only up to this multiple of the best seller's expected cost.
const EXPLORE_COST: u128 = 2;
/// How much more often newcomers are explored as long as nobody is known.
const EAGER: u64 = 9;
/// Scores within this multiple of the best one are as good as it.
const NEAR: f64 = 1.1;
/// The seller that has the conversation in its cache is asked again while its score is within
/// this multiple of the best.
const STICKY: f64 = 1.5;

/// Among fewer sellers than this, a low price is no sign of anything.
const MANY: usize = 8;
/// Who succeeds less often than this has not shown it.
const PROVEN: f64 = 0.7;

/// How far a choice stands behind others, whatever its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Tier {
    /// Its place in the order asked for; those not named stand behind those that are.
    ordered: usize,
    /// Features asked for that it does not state.
    lacks: usize,
    /// Whether it is slower than preferred.
    slow: bool,
}

impl Tier {
    pub(super) fn of(terms: &Terms, candidate: &Candidate) -> Self {
        let order = &terms.preferences.order;
        let goods = &candidate.goods;
        let named = order.iter().position(|name| goods.is_named(name));
        let has = |name: &&str| goods.model.features.iter().any(|feature| feature == name);
        let skills = terms.needs.skills().filter(|name| !has(name));
        Self {
            ordered: named.unwrap_or(order.len()),
            lacks: skills.count(),
            slow: is_slow(terms, &candidate.measured),
        }
    }
}

/// Whether a seller is known to be slower than preferred.
fn is_slow(terms: &Terms, measured: &Measured) -> bool {
    let wanted = &terms.preferences;
    let late = |limit: Option<u64>, millis: Option<f64>| match (limit, millis) {
        (Some(limit), Some(millis)) => millis > thousandths(limit),
        _ => false,
    };
    let latency = &wanted.max_latency;
    let half = measured.first_token_p50.or(measured.first_token);
    let Percentiles { p50, p95, p99 } = wanted.min_throughput;
    let least = p50.into_iter().chain(p95).chain(p99).max();
    let slow = match (least, measured.throughput()) {
        (Some(least), Some(speed)) => speed * 1000.0 < thousandths(least),
        _ => false,
    };
    slow || late(latency.p50, half)
        || late(latency.p95, measured.first_token_p95)
        || late(latency.p99, measured.first_token_p99)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a preference compares; nothing is paid by it"
)]
const fn thousandths(number: u64) -> f64 {
    number as f64
}

/// Puts the choices in order.
pub(super) fn order(terms: &Terms, choices: Vec<Choice>, seed: u64) -> Vec<Choice> {
    let mut lineup = Lineup::by_score(choices, seed);
    if lineup.len() == 0 {
        return Vec::new();
    }
    let best = lineup.at(0);
    let free =
        terms.preferences.sort.is_none() && best.tier.ordered == terms.preferences.order.len();
    if free && best.standing == Standing::Score {
        lineup.back();
        if !lineup.stick(terms) {
            lineup.spread(seed);
            lineup.explore(terms, seed);
        }
    }
    let mut choices = lineup.done();
    if terms.preferences.no_fallbacks && terms.preferences.order.is_empty() {
        choices.truncate(1);
    }
    choices
}

/// Choices and the order they come into. Only the order is moved about: a choice is large, and
/// there is little time.
struct Lineup {
    choices: Vec<Choice>,
    /// Places in `choices`.
    order: Vec<usize>,
}

/// A pause, a tier and a score, in the order they count, and the place of what has them.
type Rank = (Option<Duration>, Tier, f64, usize);

impl Lineup {
    fn by_score(choices: Vec<Choice>, seed: u64) -> Self {
        // Side by side: a choice is too large to be compared where it lies.
        let rank = |(place, choice): (usize, &Choice)| {
            let paused = match choice.standing {
                Standing::LastResort(pause) => Some(pause.left()),
                _ => None,
            };
            (paused, choice.tier, choice.score, place)
        };
        let mut ranks: Vec<_> = choices.iter().enumerate().map(rank).collect();
        let tie = |place: usize| mix(seed, choices[place].candidate.seller());
        ranks.sort_unstable_by(|a: &Rank, b: &Rank| {
            let class = a.0.cmp(&b.0).then(a.1.cmp(&b.1));
            let score = class.then(a.2.total_cmp(&b.2));
            let equal = score.then_with(|| tie(a.3).cmp(&tie(b.3)));
            equal.then(a.3.cmp(&b.3))
        });
        let order = ranks.into_iter().map(|(_, _, _, place)| place).collect();
        Self { choices, order }
    }

    const fn len(&self) -> usize {
        self.order.len()
    }

    /// The choice at a place of the order.
    fn at(&self, place: usize) -> &Choice {
        &self.choices[self.order[place]]
    }

    /// All from a place of the order on.
    fn rest(&self, place: usize) -> impl Iterator<Item = &Choice> {
        self.order[place..]
            .iter()
            .map(|choice| &self.choices[*choice])
    }

    /// Puts the one at a place first, and says why.
    fn lead(&mut self, place: usize, standing: Standing) {
        let choice = self.order[place];
        self.choices[choice].standing = standing;
        self.order[..=place].rotate_right(1);
    }

    /// The choices in order, each moved once, where they lie.
    fn done(self) -> Vec<Choice> {
        let Self { mut choices, order } = self;
        let mut lies: Vec<_> = (0..order.len()).collect();
        let mut holds = lies.clone();
        for (place, wanted) in order.into_iter().enumerate() {
            let from = lies[wanted];
            choices.swap(place, from);
            let moved = holds[place];
            holds.swap(place, from);
            lies[moved] = from;
        }
        choices
    }

    /// Behind the first place, puts those that have shown that they answer before the others of
    /// their tier: who is unknown is not the rescue of somebody else who failed. Of the unknown,
    /// those whose price is below most others' come last: whoever only wants to be asked asks
    /// little.
    fn back(&mut self) {
        let tier = self.at(0).tier;
        let alike = |choice: &&Choice| choice.tier == tier && is_scored(choice);
        let alike = self.rest(0).take_while(alike).count();
        let mut costs: Vec<_> = self
            .rest(0)
            .take(alike)
            .map(|choice| choice.expected.cost)
            .collect();
        let place = costs.len() * 2 / 3;
        let (_, middle, _) = costs.select_nth_unstable(place);
        let middle = *middle;
        let many = alike >= MANY;
        // The first place is a gamble, as soon as somebody stands behind it: so is one that failed
        // asked again when its score allows.
        let gamble = usize::from(self.rest(0).take(alike).any(is_proven));
        let choices = &self.choices;
        self.order[gamble..alike].sort_by_key(|choice| {
            let choice = &choices[*choice];
            let proven = is_proven(choice);
            let bait = many && !proven && choice.expected.cost < middle;
            (!proven, bait)
        });
    }

    /// Asks the seller again that has the conversation in its cache, unless others are much better.
    fn stick(&mut self, terms: &Terms) -> bool {
        let Some(warm) = terms.warm else { return false };
        let (tier, best) = (self.at(0).tier, self.at(0).score);
        let is_warm = |choice: &Choice| choice.candidate.seller() == warm.seller;
        let Some(place) = self.rest(0).position(is_warm) else {
            return false;
        };
        let choice = self.at(place);
        if choice.tier != tier || choice.score > best * STICKY {
            return false;
        }
        self.lead(place, Standing::Warm);
        true
    }

    /// Of those that are as good as the best, takes two by lot, and of these the better one.
    fn spread(&mut self, seed: u64) {
        let (tier, best) = (self.at(0).tier, self.at(0).score);
        let near = |choice: &&Choice| choice.tier == tier && choice.score <= best * NEAR;
        let near = self.rest(0).take_while(near).count() as u64;
        if near < 3 {
            return;
        }
        let lot = |n: u64, of: u64| mix_seed(seed ^ mix_seed(n)) % of;
        let first = lot(1, near);
        let other = (first + 1 + lot(2, near - 1)) % near;
        // They are in order: the earlier is the better.
        let chosen = usize::try_from(first.min(other)).unwrap_or(0);
        self.lead(chosen, Standing::Score);
    }

    /// Now and then puts a seller that was never tried in front of one that was.
    fn explore(&mut self, terms: &Terms, seed: u64) {
        let untried = |choice: &Choice| choice.candidate.measured.weight == 0.0;
        let best = self.at(0);
        // Who knows few yet has more to learn.
        let proven = self.rest(0).filter(|choice| is_proven(choice)).count() as u64;
        let share = u64::from(terms.explore) * (1 + EAGER / (1 + proven));
        if untried(best) || mix_seed(seed) % 100 >= share {
            return;
        }
        let limit = best.expected.cost.get().saturating_mul(EXPLORE_COST);
        let tier = best.tier;
        let newcomers = (1..self.len()).filter(|place| {
            let choice = self.at(*place);
            let affordable = choice.expected.cost <= Cost::micro_atoms(limit);
            untried(choice) && affordable && choice.tier == tier
        });
        // Two by lot, and of these the one that promises more: they are in order.
        let lot = |place: &usize| mix(seed, self.at(*place).candidate.seller());
        let mut newcomers: Vec<_> = newcomers.collect();
        newcomers.sort_by_key(lot);
        newcomers.truncate(2);
        let by_score = |a: &usize, b: &usize| self.at(*a).score.total_cmp(&self.at(*b).score);
        if let Some(place) = newcomers.into_iter().min_by(by_score) {
            self.lead(place, Standing::Explored);
        }
    }
}

fn is_scored(choice: &Choice) -> bool {
    choice.standing == Standing::Score
}

/// Whether it has answered before, and mostly does.
fn is_proven(choice: &Choice) -> bool {
    let measured = &choice.candidate.measured;
    // Whose answers are documents has no first token, and no failure since the last of them.
    let has_answered = measured.first_token.is_some() || measured.failures == 0;
    measured.weight > 0.0 && has_answered && measured.success >= PROVEN
}
