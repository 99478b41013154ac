//! The order of those that can be asked: who is wanted by name, who lacks something, who is
//! slower than asked for, and within each of these by score; among near-equals by lot and load,
//! so that not everybody asks the same; and now and then a newcomer.

use farthing_protocol::amount::Cost;

use crate::market::{Measured, mix, mix_seed};
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
    pub(super) fn of(terms: &Terms, choice: &Choice) -> Self {
        let order = &terms.preferences.order;
        let goods = &choice.candidate.goods;
        let named = order.iter().position(|name| goods.is_named(name));
        let has = |name: &&str| goods.model.features.iter().any(|feature| feature == name);
        let skills = terms.needs.skills().filter(|name| !has(name));
        Self {
            ordered: named.unwrap_or(order.len()),
            lacks: skills.count(),
            slow: is_slow(terms, &choice.candidate.measured),
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
pub(super) fn order(terms: &Terms, choices: &mut Vec<Choice>, seed: u64) {
    let paused = |choice: &Choice| match choice.standing {
        Standing::LastResort(pause) => Some(pause.left()),
        _ => None,
    };
    let tie = |choice: &Choice| mix(seed, choice.candidate.seller());
    choices.sort_by(|a, b| {
        let by_score = a.score.total_cmp(&b.score);
        paused(a)
            .cmp(&paused(b))
            .then(a.tier.cmp(&b.tier))
            .then(by_score)
            .then_with(|| tie(a).cmp(&tie(b)))
    });
    let Some(best) = choices.first() else { return };
    let free =
        terms.preferences.sort.is_none() && best.tier.ordered == terms.preferences.order.len();
    if free && best.standing == Standing::Score {
        back(choices);
        if !stick(terms, choices) {
            spread(choices, seed);
            explore(terms, choices, seed);
        }
    }
    if terms.preferences.no_fallbacks && terms.preferences.order.is_empty() {
        choices.truncate(1);
    }
}

/// Behind the first place, puts those that have shown that they answer before the others of their
/// tier: who is unknown is not the rescue of somebody else who failed. Of the unknown, those whose
/// price is below most others' come last: whoever only wants to be asked asks little.
fn back(choices: &mut [Choice]) {
    let tier = choices[0].tier;
    let tier = choices.partition_point(|choice| choice.tier == tier && is_scored(choice));
    let choices = &mut choices[..tier];
    let mut costs: Vec<_> = choices.iter().map(|choice| choice.expected.cost).collect();
    let place = costs.len() * 2 / 3;
    let (_, middle, _) = costs.select_nth_unstable(place);
    let middle = *middle;
    let many = choices.len() >= MANY;
    // The first place is a gamble, as soon as somebody stands behind it: so is one that failed
    // asked again when its score allows.
    let gamble = usize::from(choices.iter().any(is_proven));
    choices[gamble..].sort_by_key(|choice| {
        let proven = is_proven(choice);
        let bait = many && !proven && choice.expected.cost < middle;
        (!proven, bait)
    });
}

fn is_scored(choice: &Choice) -> bool {
    choice.standing == Standing::Score
}

/// Whether it has answered before, and mostly does.
fn is_proven(choice: &Choice) -> bool {
    let measured = &choice.candidate.measured;
    measured.weight > 0.0 && measured.first_token.is_some() && measured.success >= PROVEN
}

/// Asks the seller again that has the conversation in its cache, unless others are much better.
fn stick(terms: &Terms, choices: &mut [Choice]) -> bool {
    let Some(warm) = terms.warm else { return false };
    let (tier, best) = (choices[0].tier, choices[0].score);
    let place = choices
        .iter()
        .position(|choice| choice.candidate.seller() == warm.seller);
    let Some(place) = place else { return false };
    if choices[place].tier != tier || choices[place].score > best * STICKY {
        return false;
    }
    choices[place].standing = Standing::Warm;
    choices[..=place].rotate_right(1);
    true
}

/// Of those that are as good as the best, takes two by lot, and of these the better one.
fn spread(choices: &mut [Choice], seed: u64) {
    let (tier, best) = (choices[0].tier, choices[0].score);
    let near = |choice: &&Choice| choice.tier == tier && choice.score <= best * NEAR;
    let near = choices.iter().take_while(near).count() as u64;
    if near < 3 {
        return;
    }
    let lot = |n: u64, of: u64| mix_seed(seed ^ mix_seed(n)) % of;
    let first = lot(1, near);
    let other = (first + 1 + lot(2, near - 1)) % near;
    // They are in order: the earlier is the better.
    let chosen = usize::try_from(first.min(other)).unwrap_or(0);
    choices[..=chosen].rotate_right(1);
}

/// Now and then puts a seller that was never tried in front of one that was.
fn explore(terms: &Terms, choices: &mut [Choice], seed: u64) {
    let untried = |choice: &Choice| choice.candidate.measured.weight == 0.0;
    let best = &choices[0];
    // Who knows few yet has more to learn.
    let proven = choices.iter().filter(|choice| is_proven(choice)).count() as u64;
    let share = u64::from(terms.explore) * (1 + EAGER / (1 + proven));
    if untried(best) || mix_seed(seed) % 100 >= share {
        return;
    }
    let limit = best.expected.cost.get().saturating_mul(EXPLORE_COST);
    let tier = best.tier;
    let newcomers = (1..choices.len()).filter(|place| {
        let choice = &choices[*place];
        let affordable = choice.expected.cost <= Cost::micro_atoms(limit);
        untried(choice) && affordable && choice.tier == tier
    });
    // Two by lot, and of these the one that promises more: they are in order.
    let lot = |place: &usize| mix(seed, choices[*place].candidate.seller());
    let mut newcomers: Vec<_> = newcomers.collect();
    newcomers.sort_by_key(lot);
    newcomers.truncate(2);
    let by_score = |a: &usize, b: &usize| choices[*a].score.total_cmp(&choices[*b].score);
    let Some(place) = newcomers.into_iter().min_by(by_score) else {
        return;
    };
    choices[place].standing = Standing::Explored;
    choices[..=place].rotate_right(1);
}
