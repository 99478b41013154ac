use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::roll::Told;
use farthing_protocol::testimony::SignedTestimony;
use farthing_protocol::testing;
use farthing_protocol::x402::ChannelConfig;

use super::*;
use crate::ledger::schema;
use crate::market::{Outcome, Served};

const NOW: Timestamp = Timestamp(1_790_000_000_000);
const MODEL: &str = "test/model";

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    clock: Clock,
    market: Market,
    roll: Roll,
    reputation: Reputation,
}

fn rules() -> Rules {
    Rules {
        credit: Amount::atoms(50_000),
        stake: Amount::atoms(10_000_000),
        listen: true,
    }
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = Clock::manual(NOW);
    let store = Store::open(dir.path(), schema()).expect("opens");
    let market = Market::new(testing::network(), clock.clone());
    for n in 1..=2 {
        market.hear(testing::signed_offer_of(n, 1, NOW));
    }
    let roll = Roll::new(testing::network(), clock.clone());
    let reputation = reopened(&store, &market, &roll, &clock);
    World {
        _dir: dir,
        store,
        clock,
        market,
        roll,
        reputation,
    }
}

fn reopened(store: &Store, market: &Market, roll: &Roll, clock: &Clock) -> Reputation {
    let ground = Ground {
        store: store.clone(),
        market: market.clone(),
        roll: roll.clone(),
        clock: clock.clone(),
        us: testing::evm_key(3).address(),
    };
    Reputation::open(ground, rules()).expect("opens")
}

fn seller(n: u8) -> NodeId {
    testing::node_key(n).id()
}

impl World {
    fn buys(&self, n: u8, outcome: Outcome) {
        let trial = self.market.begin(seller(n), MODEL, Endpoint::Chat);
        trial.record(outcome);
    }

    /// What the router will be told.
    fn measured(&self, n: u8) -> crate::market::Measured {
        let snapshot = self.market.snapshot(MODEL, Endpoint::Chat);
        let candidate = snapshot.iter().find(|it| it.seller() == seller(n));
        *candidate.expect("is on offer").measured
    }

    /// Hears a testimony of seller 1 with so much claimed on its channel, made by the `n`th payer.
    fn hears(&self, n: u8, failed: bool, claimed: u128) -> SignedTestimony {
        let config = ChannelConfig {
            payer: testing::evm_key(n).address(),
            ..testing::channel_config()
        };
        self.hears_of(config, n, failed, claimed)
    }

    /// The same over a channel on these terms.
    fn hears_of(
        &self,
        config: ChannelConfig,
        n: u8,
        failed: bool,
        claimed: u128,
    ) -> SignedTestimony {
        let mut said = testing::testimony_of(1, config, 8, NOW);
        let line = &mut said.testimony.lines[0];
        (line.served, line.failed) = if failed { (0, 10) } else { (10, 0) };
        let by = (&testing::network(), &testing::evm_key(8));
        let said = SignedTestimony::sign(said.testimony, config, said.receipt, by);
        let channel = said.testimony.channel;
        assert_eq!(self.roll.hear(said.clone(), seller(n)), Told::Fresh);
        self.roll.looked_up(channel, Amount::atoms(claimed));
        self.reputation.refresh();
        said
    }
}

pub(super) fn served() -> Outcome {
    Outcome::Served(Served {
        first_token: Some(Duration::from_millis(10)),
        elapsed: Duration::from_millis(100),
        longest_gap: Duration::from_millis(10),
        prompt: 10,
        tokens: 10,
        charged: Amount::atoms(1_000),
    })
}

#[test]
fn what_happened_outlives_the_markets_minutes_and_a_restart() {
    let world = world();
    for _ in 0..10 {
        world.buys(1, Outcome::Failed);
        world.buys(2, served());
    }
    world.reputation.refresh();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let saved = runtime
        .expect("a runtime")
        .block_on(world.reputation.save());
    saved.expect("is written");
    world.clock.advance(Duration::from_secs(86_400));
    let market = Market::new(testing::network(), world.clock.clone());
    let again = reopened(&world.store, &market, &world.roll, &world.clock);
    assert!(again.belief(seller(1), MODEL).success < 0.4);
    assert!(again.belief(seller(2), MODEL).success > 0.9);
    let report = again.report();
    let known = report.iter().find(|it| it.seller == seller(2));
    let known = known.expect("is known");
    assert_eq!((known.served, known.failed), (10, 0));
    assert_eq!(known.charged, Amount::atoms(10_000));
}

#[test]
fn a_false_receipt_sinks_a_seller_at_once() {
    let world = world();
    for _ in 0..10 {
        world.buys(1, served());
    }
    world.buys(1, Outcome::Failed);
    world.reputation.note(seller(1), MODEL, Deed::Disputed);
    let belief = world.reputation.belief(seller(1), MODEL);
    assert!(belief.success < 0.5, "{belief:?}");
    assert!(belief.credit < rules().credit, "{belief:?}");
    assert!(world.measured(1).credit < rules().credit);
}

#[test]
fn credit_grows_with_what_was_paid_and_had() {
    let world = world();
    assert_eq!(world.measured(1).credit, rules().credit);
    for _ in 0..100 {
        world.buys(1, served());
    }
    world.reputation.refresh();
    assert!(world.measured(1).credit >= Amount::atoms(149_000));
    assert_eq!(world.measured(2).credit, rules().credit);
}

#[test]
fn others_who_paid_are_heard_and_our_own_experience_outweighs_them() {
    let world = world();
    world.hears(9, true, 50_000_000);
    let warned = world.measured(1).success;
    assert!(warned < 0.75, "{warned}");
    for _ in 0..20 {
        world.buys(1, served());
    }
    world.reputation.refresh();
    let known = world.measured(1).success;
    assert!(known > 0.92, "{known}");
}

#[test]
fn our_own_testimony_is_not_heard_twice_and_worthless_ones_move_nothing() {
    let world = world();
    let before = world.measured(1).success;
    world.hears(3, true, 50_000_000);
    world.hears(9, true, 0);
    assert!((world.measured(1).success - before).abs() < 1e-9);
}

#[test]
fn a_channel_that_pays_somebody_else_than_the_seller_moves_nothing() {
    let world = world();
    let before = world.measured(1).success;
    let config = ChannelConfig {
        payer: testing::evm_key(9).address(),
        receiver: testing::evm_key(9).address(),
        ..testing::channel_config()
    };
    world.hears_of(config, 9, true, 50_000_000);
    assert_eq!(world.roll.heard().len(), 1, "the chain shows a claim");
    assert!((world.measured(1).success - before).abs() < 1e-9);
}

#[test]
fn what_is_said_of_a_seller_counts_as_soon_as_its_offer_is_there() {
    let world = world();
    world.clock.advance(Duration::from_secs(601));
    world.market.sweep();
    world.hears(9, true, 50_000_000);
    assert!(world.reputation.belief(seller(1), MODEL).success > 0.89);
    let again = testing::signed_offer_of(1, 2, world.clock.now());
    world.market.hear(again);
    world.reputation.refresh();
    assert!(world.measured(1).success < 0.75, "without a minute's wait");
}

#[test]
fn what_is_experienced_by_comparison_is_believed_but_not_told() {
    let world = world();
    world.buys(1, served());
    world.reputation.note(seller(1), MODEL, Deed::Alone);
    world.reputation.note(seller(1), MODEL, Deed::Invalid);
    let (_, lines) = world.reputation.lines(seller(1)).expect("something");
    assert_eq!(lines[0].invalid, 1, "what anyone could see");
    let report = world.reputation.report();
    let known = report.iter().find(|it| it.seller == seller(1));
    assert_eq!(known.map(|known| known.invalid), Some(2));
    assert!(world.reputation.belief(seller(1), MODEL).success < 0.6);
}

#[test]
fn credit_is_a_sellers_whatever_the_model_and_a_lie_about_one_takes_all_of_it() {
    let world = world();
    for _ in 0..100 {
        world.buys(1, served());
    }
    world.reputation.refresh();
    let other = || world.reputation.belief(seller(1), "test/other").credit;
    world
        .reputation
        .note(seller(1), "test/other", Deed::Served(1, Amount::ZERO));
    assert!(other() >= Amount::atoms(149_000), "{}", other());
    world
        .reputation
        .note(seller(1), "test/other", Deed::Disputed);
    let first = world.reputation.belief(seller(1), MODEL).credit;
    assert!(first <= rules().credit, "{first}");
    world.reputation.refresh();
    assert!(world.measured(1).credit <= rules().credit);
}

#[test]
fn newcomers_that_cheat_leave_less_credit_to_the_next() {
    let world = world();
    for n in 10..20 {
        for _ in 0..3 {
            world.buys(n, Outcome::Failed);
        }
    }
    world.reputation.refresh();
    world.clock.advance(ANEW);
    world.reputation.refresh();
    assert!(world.measured(2).credit < Amount::atoms(rules().credit.get() / 3));
}

#[test]
fn a_credit_of_few_atoms_is_not_rounded_to_nothing() {
    let few = Rules {
        credit: Amount::atoms(900),
        ..rules()
    };
    let belief = judge(&Known::default(), Newcomers::default(), few);
    assert!(belief.credit >= Amount::atoms(890), "{belief:?}");
}

#[test]
fn what_others_say_is_forgotten_when_it_is_old() {
    let world = world();
    let before = world.measured(1).success;
    world.hears(9, true, 50_000_000);
    world.clock.advance(Duration::from_secs(14 * 86_400));
    for n in 1..=2 {
        world
            .market
            .hear(testing::signed_offer_of(n, 2, world.clock.now()));
    }
    world.roll.sweep();
    world.reputation.refresh();
    assert!((world.measured(1).success - before).abs() < 1e-9);
}

#[test]
fn new_names_do_not_make_new_trust() {
    let world = world();
    let before = world.measured(2).success;
    for n in 10..20 {
        for _ in 0..3 {
            world.buys(n, Outcome::Failed);
        }
    }
    world.reputation.refresh();
    world.clock.advance(ANEW);
    world.reputation.refresh();
    let after = world.measured(2).success;
    assert!(after < before / 3.0, "{after}");
    world.clock.advance(Duration::from_secs(8 * 3_600));
    world
        .market
        .hear(testing::signed_offer_of(2, 2, world.clock.now()));
    world.reputation.refresh();
    assert!(world.measured(2).success > 0.85, "it is forgiven");
}

#[test]
fn what_is_told_others_is_what_happened() {
    let world = world();
    world.buys(1, served());
    world.buys(1, Outcome::Failed);
    world.reputation.note(seller(1), MODEL, Deed::Broken);
    let (since, lines) = world.reputation.lines(seller(1)).expect("something");
    assert_eq!((since, lines.len()), (NOW, 1));
    let line = lines[0];
    assert_eq!(line.model, model_hash(MODEL));
    assert_eq!((line.served, line.failed, line.broken), (1, 0, 1));
    assert_eq!(line.charged, Amount::atoms(1_000));
    assert!(world.reputation.lines(seller(2)).is_none());
    assert_ne!(line.model, B256::ZERO);
}
