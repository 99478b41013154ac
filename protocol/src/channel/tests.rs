//! What must hold for every sequence of operations, and the named refusals.

use proptest::prelude::*;

use super::*;

const fn atoms(n: u128) -> Amount {
    Amount::atoms(n)
}

fn funded(balance: u128, ceiling: u128) -> Channel {
    let mut channel = Channel::open(atoms(balance), Amount::ZERO);
    channel.accept(atoms(ceiling)).expect("covered");
    channel
}

#[test]
fn a_lower_voucher_is_stale_and_changes_nothing() {
    let mut channel = funded(100, 50);
    let before = channel;
    assert_eq!(channel.accept(atoms(50)), Ok(Acceptance::Stale));
    assert_eq!(channel.accept(atoms(10)), Ok(Acceptance::Stale));
    assert_eq!(channel, before);
}

#[test]
fn a_voucher_over_the_deposit_is_refused() {
    let mut channel = funded(100, 50);
    let refusal = Rejected::OverDeposit {
        ceiling: atoms(101),
        available: atoms(100),
    };
    assert_eq!(channel.accept(atoms(101)), Err(refusal));
    channel.arm(atoms(40));
    assert!(matches!(
        channel.accept(atoms(61)),
        Err(Rejected::OverDeposit { .. })
    ));
    assert_eq!(channel.accept(atoms(60)), Ok(Acceptance::Raised));
}

#[test]
fn an_armed_withdrawal_leaves_running_purchases_but_no_new_ones() {
    let mut channel = funded(100, 100);
    channel.reserve(atoms(30)).expect("covered");
    channel.arm(atoms(100));
    assert!(matches!(
        channel.reserve(atoms(1)),
        Err(Rejected::OverCeiling { .. })
    ));
    let charge = channel
        .charge(atoms(30), Cost::micro_atoms(30 * MICRO))
        .expect("reserved");
    assert_eq!(charge.cumulative, atoms(30));
}

#[test]
fn fractions_of_an_atom_are_carried_not_lost() {
    let mut channel = funded(100, 100);
    let mut charged = Vec::new();
    for _ in 0..4 {
        channel.reserve(atoms(1)).expect("covered");
        let charge = channel
            .charge(atoms(1), Cost::micro_atoms(600_000))
            .expect("reserved");
        charged.push(charge.charged.get());
    }
    // 0.6, 1.2, 1.8, 2.4 atoms worked.
    assert_eq!(charged, [0, 1, 0, 1]);
}

#[test]
fn a_cost_above_its_reservation_is_refused_until_capped() {
    let mut channel = funded(100, 100);
    channel.reserve(atoms(5)).expect("covered");
    let cost = Cost::micro_atoms(5 * MICRO + 1);
    assert!(matches!(
        channel.charge(atoms(5), cost),
        Err(Rejected::OverReserved { .. })
    ));
    let charge = channel
        .charge(atoms(5), Channel::cap(atoms(5), cost))
        .expect("capped");
    assert_eq!(charge.charged, atoms(5));
}

#[test]
fn a_counter_is_adopted_only_with_proof() {
    let mut channel = funded(100, 20);
    assert!(matches!(
        channel.adopt(atoms(30), 3, atoms(20)),
        Err(Rejected::OverCeiling { .. })
    ));
    assert!(matches!(
        channel.adopt(atoms(30), 3, atoms(200)),
        Err(Rejected::OverDeposit { .. })
    ));
    channel.adopt(atoms(30), 3, atoms(40)).expect("proven");
    assert_eq!(
        (channel.charged(), channel.ceiling(), channel.receipts()),
        (atoms(30), atoms(40), 3)
    );
}

#[test]
fn the_chain_cannot_take_back_a_claim() {
    let mut channel = funded(100, 50);
    channel
        .observe(atoms(100), Amount::ZERO)
        .expect("plausible");
    channel.reserve(atoms(50)).expect("covered");
    channel
        .charge(atoms(50), Cost::micro_atoms(50 * MICRO))
        .expect("reserved");
    channel.observe(atoms(100), atoms(50)).expect("plausible");
    assert!(matches!(
        channel.observe(atoms(100), atoms(49)),
        Err(Rejected::Regressed { .. })
    ));
    assert!(matches!(
        channel.observe(atoms(49), atoms(50)),
        Err(Rejected::Regressed { .. })
    ));
}

/// Everything that can happen to a channel.
#[derive(Debug, Clone)]
enum Op {
    Raise(u128),
    Reserve(u128),
    Release(u128),
    Resume(u128),
    Charge(u128, u128),
    Settle(u128, u128),
    Observe(u128, u128),
    Arm(u128),
    Adopt(u128, u64, u128),
}

/// Mostly plausible numbers, some absurd ones.
fn number() -> impl Strategy<Value = u128> {
    prop_oneof![9 => 0..2000_u128, 1 => any::<u128>()]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        number().prop_map(Op::Raise),
        number().prop_map(Op::Reserve),
        number().prop_map(Op::Release),
        number().prop_map(Op::Resume),
        (number(), number()).prop_map(|(r, c)| Op::Charge(r, c.saturating_mul(300_000))),
        (number(), number()).prop_map(|(r, c)| Op::Settle(r, c)),
        (number(), number()).prop_map(|(b, c)| Op::Observe(b, c)),
        number().prop_map(Op::Arm),
        (number(), any::<u64>(), number()).prop_map(|(c, n, p)| Op::Adopt(c, n, p)),
    ]
}

fn apply(channel: &mut Channel, op: &Op) -> Result<(), Rejected> {
    match *op {
        Op::Raise(ceiling) => channel.accept(atoms(ceiling)).map(drop),
        Op::Reserve(amount) => channel.reserve(atoms(amount)),
        Op::Release(amount) => channel.release(atoms(amount)),
        Op::Resume(amount) => {
            channel.resume(atoms(amount));
            Ok(())
        }
        Op::Charge(r, cost) => channel.charge(atoms(r), Cost::micro_atoms(cost)).map(drop),
        Op::Settle(r, charged) => channel.settle(atoms(r), atoms(charged)),
        Op::Observe(balance, claimed) => channel.observe(atoms(balance), atoms(claimed)),
        Op::Arm(amount) => {
            channel.arm(atoms(amount));
            Ok(())
        }
        Op::Adopt(charged, receipts, proven) => {
            channel.adopt(atoms(charged), receipts, atoms(proven))
        }
    }
}

fn check_step(before: &Channel, after: &Channel, op: &Op) -> Result<(), TestCaseError> {
    let promised = after.charged().add(after.reserved()).expect("fits");
    prop_assert!(
        promised <= after.ceiling(),
        "charged + reserved over the ceiling"
    );
    prop_assert!(
        after.ceiling() <= after.balance(),
        "ceiling over the deposit"
    );
    prop_assert!(
        after.claimed() <= after.ceiling(),
        "claimed over the ceiling"
    );
    prop_assert!(after.charged() >= before.charged(), "charges fell");
    prop_assert!(after.claimed() >= before.claimed(), "claims fell");
    prop_assert!(after.receipts() >= before.receipts(), "receipts fell");
    if !matches!(op, Op::Observe(..)) {
        prop_assert!(after.ceiling() >= before.ceiling(), "the ceiling fell");
    }
    if matches!(op, Op::Raise(_)) && after.ceiling() > before.ceiling() {
        prop_assert!(
            after.ceiling() <= after.available(),
            "promised an armed withdrawal"
        );
    }
    if matches!(op, Op::Reserve(_)) && after.reserved() > before.reserved() {
        prop_assert!(
            promised <= after.available(),
            "reserved an armed withdrawal"
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_sequence_of_operations_breaks_the_invariants(
        balance in 0..2000_u128,
        ops in prop::collection::vec(op(), 0..60),
    ) {
        let mut channel = Channel::open(atoms(balance), Amount::ZERO);
        for op in &ops {
            let before = channel;
            if apply(&mut channel, op).is_err() {
                prop_assert_eq!(channel, before, "a refused operation changed the state");
            }
            check_step(&before, &channel, op)?;
        }
    }

    #[test]
    fn whatever_the_buyer_issues_the_seller_accepts(
        balance in any::<u128>(),
        armed in number(),
        ceilings in prop::collection::vec(number(), 1..20),
    ) {
        let mut buyer = Channel::open(atoms(balance), Amount::ZERO);
        buyer.arm(atoms(armed));
        let mut seller = buyer;
        for ceiling in ceilings {
            if let Ok(issued) = buyer.issue(atoms(ceiling)) {
                prop_assert_eq!(seller.accept(atoms(ceiling)), Ok(issued));
            }
        }
        prop_assert_eq!(buyer, seller);
    }

    #[test]
    fn the_charges_of_a_channel_are_the_floor_of_its_total_cost(
        costs in prop::collection::vec(0..5_000_000_u128, 1..50),
    ) {
        let mut channel = funded(1_000_000, 1_000_000);
        let mut sum = Amount::ZERO;
        for cost in &costs {
            let cost = Cost::micro_atoms(*cost);
            channel.reserve(cost.ceil()).expect("covered");
            let charge = channel.charge(cost.ceil(), cost).expect("reserved");
            prop_assert!(charge.charged <= cost.ceil(), "a charge exceeds its quote");
            sum = sum.add(charge.charged).expect("fits");
            prop_assert_eq!(charge.cumulative, sum);
        }
        prop_assert_eq!(sum, Cost::micro_atoms(costs.iter().sum()).floor());
        prop_assert_eq!(channel.reserved(), Amount::ZERO);
    }
}

#[test]
fn a_window_grows_with_what_went_well_and_shrinks_on_trouble() {
    let prices = crate::offer::Prices {
        output: crate::amount::Price(500_000),
        ..Default::default()
    };
    let ahead = |channel: &Channel| crate::pricing::window(&prices, channel.earned());
    let mut channel = Channel::open(Amount::atoms(100_000), Amount::ZERO);
    let mut buy = |atoms: u128, lesson| {
        let amount = Amount::atoms(atoms);
        channel
            .issue(channel.required(amount).expect("fits"))
            .expect("is paid for");
        channel.reserve(amount).expect("is covered");
        channel.settle(amount, amount).expect("is reserved");
        channel.learn(lesson, amount);
        ahead(&channel)
    };
    assert_eq!(buy(3_200, Lesson::of(Ending::Complete)), 400);
    assert_eq!(buy(3_200, Lesson::of(Ending::Cancelled)), 800);
    assert_eq!(buy(10, Lesson::of(Ending::Interrupted)), 400);
    assert_eq!(buy(0, Lesson::of(Ending::UpstreamFailed)), 200);
    assert_eq!(buy(1_600, Lesson::of(Ending::Limit)), 400);
    assert_eq!(
        buy(10, Lesson::of(Ending::Unpaid)),
        crate::pricing::FIRST_WINDOW
    );
    assert_eq!(buy(1_600, Lesson::Trust), 200);
    assert_eq!(buy(1_600, Lesson::Anew), crate::pricing::FIRST_WINDOW);
}

proptest! {
    #[test]
    fn nothing_is_earned_that_was_not_charged_and_trouble_never_helps(
        ends in proptest::collection::vec((0_u128..1_000, 0_u8..3), 1..40),
    ) {
        let mut channel = Channel::open(Amount::atoms(1_000_000), Amount::ZERO);
        for (atoms, lesson) in ends {
            let amount = Amount::atoms(atoms);
            channel.issue(channel.required(amount).expect("fits")).expect("is paid for");
            channel.reserve(amount).expect("is covered");
            channel.settle(amount, amount).expect("is reserved");
            let before = channel.earned();
            let lesson = [Lesson::Trust, Lesson::Caution, Lesson::Anew][usize::from(lesson)];
            channel.learn(lesson, amount);
            prop_assert!(channel.earned() <= channel.charged());
            if lesson != Lesson::Trust {
                prop_assert!(channel.earned() <= before);
            }
        }
    }
}
