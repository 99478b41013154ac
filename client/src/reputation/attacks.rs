//! The bounds of `docs/threat-model.md`, held: what words can move, what they cost, how fast our
//! own experience corrects them.

use alloy::primitives::{Address, B256};
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::receipt::model_hash;
use farthing_protocol::roll::{Heard, Roll, Told};
use farthing_protocol::testimony::{LIFETIME, SignedTestimony};
use farthing_protocol::testing;
use farthing_protocol::x402::ChannelConfig;
use proptest::prelude::*;

use crate::market::Belief;
use crate::reputation::hearsay::{Word, weigh};
use crate::reputation::judgement::{
    Known, MOST_WORD, Newcomers, OWN_HALF, Rules, judge, weight_of,
};

const NOW: Timestamp = Timestamp(1_790_000_000_000);
const STAKE: u128 = 10_000_000;
/// What a word is at least without, and at most with, all that words can do.
const FLOOR: f64 = 0.9 * 3.0 / (3.0 + MOST_WORD);
const CEILING: f64 = (0.9 * 3.0 + MOST_WORD) / (3.0 + MOST_WORD);

fn rules() -> Rules {
    Rules {
        credit: Amount::atoms(50_000),
        stake: Amount::atoms(STAKE),
        listen: true,
    }
}

/// The `n`th payer, of as many as one likes.
fn payer(n: usize) -> Address {
    let mut bytes = [0xee; 20];
    bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
    Address::from(bytes)
}

/// Testimonies of seller 1 with these atoms claimed on their channels, each by another payer: of
/// so many purchases in ten the answer was whole.
fn said(claimed: &[u128], served: u32, first: usize) -> Vec<Heard> {
    let roll = Roll::new(testing::network(), Clock::manual(NOW));
    for (n, claimed) in claimed.iter().enumerate() {
        let config = ChannelConfig {
            payer: payer(first + n),
            salt: B256::from(alloy::primitives::U256::from(first + n)),
            ..testing::channel_config()
        };
        let mut it = testing::testimony_of(1, config, 8, NOW);
        (it.testimony.lines[0].served, it.testimony.lines[0].failed) = (served, 10 - served);
        let by = (&testing::network(), &testing::evm_key(8));
        let it = SignedTestimony::sign(it.testimony, config, it.receipt, by);
        let channel = it.testimony.channel;
        assert_eq!(roll.hear(it, testing::node_key(2).id()), Told::Fresh);
        roll.looked_up(channel, Amount::atoms(*claimed));
    }
    roll.heard()
}

fn word(heard: &[Heard]) -> Word {
    let words = weigh(heard, Address::ZERO, Amount::atoms(STAKE), NOW);
    let key = (testing::node_key(1).id(), model_hash("test/model"));
    words.get(&key).copied().unwrap_or_default()
}

/// What is believed of seller 1 after so many good and bad purchases of ours, when this is said.
fn believed(heard: &[Heard], good: u32, bad: u32) -> Belief {
    let known = Known {
        good: f64::from(good),
        bad: f64::from(bad),
        settled: Amount::ZERO,
        word: Some(word(heard)),
    };
    judge(&known, Newcomers::default(), rules())
}

/// The bound of the threat model: how far `paid` atoms can pull a newcomer down.
#[allow(clippy::cast_precision_loss, reason = "a bound")]
fn slandered(paid: u128) -> f64 {
    let weight = MOST_WORD * paid as f64 / (paid + STAKE) as f64;
    0.9 * 3.0 / (3.0 + weight)
}

fn claims() -> impl Strategy<Value = Vec<u128>> {
    proptest::collection::vec(1_u128..1_000_000_000_000, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// N38: a ring pays itself and has its money back but for gas, so its praise must buy next to
    /// nothing, whatever it turns over.
    #[test]
    fn a_ring_that_praises_itself_gains_next_to_nothing_whatever_it_turns_over(claims in claims()) {
        let belief = believed(&said(&claims, 10, 0), 0, 0);
        prop_assert!(belief.success <= CEILING + 1e-9, "{belief:?}");
        prop_assert!(belief.weight <= 3.0 + MOST_WORD + 1e-9);
        prop_assert_eq!(belief.credit, rules().credit, "no word lifts the credit");
    }

    /// N38: below the stake, many payers with a little are one payer with all of it.
    #[test]
    fn many_names_with_little_money_are_one_with_all_of_it(parts in 1_usize..12, each in 1_u128..800_000) {
        let many = word(&said(&vec![each; parts], 0, 0));
        let one = word(&said(&[each * parts as u128], 0, 0));
        prop_assert!((many.value - one.value).abs() < 1e-3);
        prop_assert!((many.quality - one.quality).abs() < 1e-9);
    }

    /// Slander costs what is paid to the slandered seller, and reaches so far.
    #[test]
    fn slander_moves_a_seller_by_what_was_paid_to_it_and_no_further(claims in claims()) {
        let belief = believed(&said(&claims, 0, 0), 0, 0);
        let paid = claims.iter().map(|claimed| claimed.min(&STAKE)).sum();
        prop_assert!(belief.success >= slandered(paid) - 1e-6, "{belief:?}");
        prop_assert!(belief.success >= FLOOR - 1e-9);
    }

    /// Against those who are content, slander counts by its share of the money.
    #[test]
    fn slander_of_a_seller_with_content_customers_counts_by_its_share(
        honest in 1_u128..STAKE,
        slander in 1_u128..STAKE,
    ) {
        let mut heard = said(&[honest], 10, 0);
        heard.extend(said(&[slander], 0, 100));
        let word = word(&heard);
        let share = honest as f64 / (honest + slander) as f64;
        prop_assert!((word.quality - share).abs() < 1e-6, "{word:?}");
    }

    /// More praise never lowers, more slander never lifts, and nothing leaves its bounds.
    #[test]
    fn beliefs_stay_within_their_bounds_and_follow_what_is_said(
        good in 0_u32..200, bad in 0_u32..200, claims in claims(), served in 0_u32..10,
    ) {
        let worse = believed(&said(&claims, served, 0), good, bad);
        let better = believed(&said(&claims, served + 1, 0), good, bad);
        prop_assert!(better.success >= worse.success - 1e-9);
        prop_assert!((0.0..=1.0).contains(&worse.success) && worse.weight >= 3.0);
        prop_assert!(worse.credit <= rules().credit);
    }
}

#[test]
fn words_without_money_weigh_nothing() {
    let belief = believed(&said(&[0, 0, 0], 0, 0), 0, 0);
    assert!((belief.success - 0.9).abs() < 1e-9, "{belief:?}");
}

#[test]
fn a_payer_that_bought_much_counts_for_its_stake() {
    let one = word(&said(&[STAKE * 1_000], 0, 0));
    assert!((one.value - 10_000_000.0).abs() < 1.0, "{one:?}");
    let mut heard = said(&[STAKE * 1_000], 0, 0);
    heard.extend(said(&[STAKE, STAKE], 10, 100));
    assert!(word(&heard).quality > 0.66);
}

#[test]
fn our_own_purchases_correct_any_praise_and_any_slander_within_eight() {
    let praise = said(&[STAKE; 8], 10, 0);
    let slander = said(&[STAKE; 8], 0, 0);
    assert!(believed(&praise, 0, 3).success < 0.68);
    assert!(believed(&praise, 0, 8).success < 0.4);
    assert!(believed(&slander, 8, 0).success > 0.8);
    assert!(believed(&slander, 20, 0).success > 0.9);
}

#[test]
fn others_word_vanishes_behind_our_own() {
    let word = word(&said(&[STAKE; 4], 10, 0));
    let weight = |made: f64| weight_of(&word, made, Amount::atoms(STAKE));
    assert!((weight(OWN_HALF) - weight(0.0) / 2.0).abs() < 1e-9);
    assert!(weight(100.0) < 0.25);
}

#[test]
fn old_words_fade_and_end() {
    let mut heard = said(&[STAKE], 0, 0);
    let key = (testing::node_key(1).id(), model_hash("test/model"));
    let at = |heard: &[Heard], now| {
        let words = weigh(heard, Address::ZERO, Amount::atoms(STAKE), now);
        words.get(&key).copied().unwrap_or_default().value
    };
    let fresh = at(&heard, NOW);
    let days = std::time::Duration::from_secs(3 * 86_400);
    assert!((at(&heard, NOW.plus(days)) - fresh / 2.0).abs() < 1.0);
    assert!(at(&heard, NOW.plus(LIFETIME)) < fresh / 20.0);
    heard.clear();
    assert!(at(&heard, NOW).abs() < f64::EPSILON);
}
