//! Faults that were found by reading, each with the world in which it showed.

use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{ChainError, Receipts};
use farthing_protocol::store::Order;

use crate::ledger::records::{MINED, Purpose};
use crate::settlement::sight::Sight;
use crate::settlement::tests::world::{World, atoms, claim_key, config, eventually, payer};
use crate::settlement::tests::{MINUTE, deep, eager, under_way};
use crate::settlement::{Fate, Policy, SettlementError, journal};

#[tokio::test]
async fn regression_what_a_withdrawal_left_is_claimed_once_and_the_rest_told_as_lost() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    office.funded(&world, 0, 1_000).await;
    office.sell(0, 600).await;
    office.task.abort();
    world.shut(office).await;
    // Nobody is there to claim in time.
    world.withdraws(0, 700).await;
    let office = world.open(Policy::default()).await;
    eventually("what is left is claimed", || {
        office.claimed(0) == atoms(300)
    })
    .await;
    assert_eq!(world.on_chain(0).await.claimed, atoms(300));
    under_way(&office, 0).await;
    let view = office.view(0);
    assert_eq!(view.channel.charged(), atoms(600), "the books keep it");
    assert_eq!(view.channel.slack(), Amount::ZERO);
    let outlook = office.settlement.outlook();
    assert_eq!(outlook.lost(world.id(0), &view), atoms(300));
    assert_eq!(outlook.short[&world.id(0)], atoms(300));
    assert!(outlook.refused.is_empty());
    // Nothing more is sent for it, asked or not.
    let sent = world.nonces().await;
    let moved = office.settlement.claim().await.expect("nothing to do");
    assert!(moved.is_empty());
    let refund = office.settlement.refund(world.id(0), None).await;
    assert!(matches!(refund, Err(SettlementError::Nothing)));
    assert_eq!(world.nonces().await, sent);
    // What is deposited anew pays what is owed first.
    let more = world.deposit(0, 400, 2);
    office.settlement.deposit(config(0), more).await.ok();
    office.settlement.claim().await.expect("claims");
    eventually("all is claimed", || office.claimed(0) == atoms(600)).await;
    assert!(office.settlement.outlook().short.is_empty());
    world.close(office).await;
}

#[tokio::test]
async fn regression_a_row_that_was_refused_is_tried_again_after_a_while() {
    let world = World::new();
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_contrary(true);
    office.sell(0, 300).await;
    eventually("it is refused", || {
        let refused = office.settlement.outlook().refused;
        refused.contains_key(&world.id(0))
    })
    .await;
    world.chain.set_contrary(false);
    world.clock.advance(MINUTE);
    eventually("it is claimed", || office.claimed(0) == atoms(300)).await;
    assert!(office.settlement.outlook().refused.is_empty());
    world.close(office).await;
}

#[tokio::test]
async fn regression_a_payment_that_only_another_node_knows_to_be_mined_is_booked_as_made() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    world.chain.set_receipts(Receipts::Elsewhere);
    let (id, once) = world.exact(700, 1);
    let taken = office.settlement.take(id, once, atoms(700)).await;
    taken.expect("is made");
    let mined = office
        .store()
        .scan(&MINED, .., Order::Up, 9)
        .expect("reads");
    assert_eq!(mined.len(), 1);
    assert!(mined[0].1.success && mined[0].1.purpose == Purpose::Once(id));
    let fate = office.settlement.fate(id, &once).await;
    assert_eq!(fate.expect("answers"), Fate::Taken);
    world.close(office).await;
}

#[tokio::test]
async fn regression_a_payment_is_not_given_up_before_the_slowest_node_must_know_of_it() {
    let world = World::new();
    world.chain.set_most_behind(4);
    let (office, mut actor) = world.build(Policy::default()).await;
    let (id, once) = world.exact(700, 1);
    world.chain.set_receipts(Receipts::Hidden);
    let (reply, mut end) = tokio::sync::oneshot::channel();
    let write = farthing_protocol::chain::Write::Exact {
        transfer: match once {
            crate::ledger::once::Once::Exact(transfer) => transfer,
            crate::ledger::once::Once::Upto(_) => unreachable!("made an exact one"),
        },
    };
    actor.take(id, write, reply).await;
    let looks = async {
        while !actor.errands.values().any(|errand| errand.lost.is_some()) {
            actor.look_after().await;
            tokio::task::yield_now().await;
        }
    };
    let looked = tokio::time::timeout(MINUTE, looks).await;
    looked.expect("its place is seen to be taken");
    world.chain.mine(3);
    actor.look_after().await;
    assert_eq!(actor.errands.len(), 1, "it is not given up");
    let fate = office.settlement.fate(id, &once).await;
    assert_eq!(fate.expect("answers"), Fate::UnderWay);
    world.chain.set_receipts(Receipts::Shown);
    actor.look_after().await;
    assert!(actor.errands.is_empty());
    end.try_recv().expect("is told").expect("is made");
    drop(actor);
    world.shut(office).await;
}

#[tokio::test]
async fn regression_a_payment_that_was_sent_is_never_said_to_be_untouched() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    let (id, once) = world.exact(700, 1);
    world.chain.set_held(true);
    let taking = office.takes((id, once), 700);
    under_way(&office, 1).await;
    let sent = office.settlement.outlook().in_flight[0].clone();
    world.takes_place(sent.nonce).await;
    world.cancels(&once);
    world.chain.set_held(false);
    world.chain.mine(1);
    // Who hears that the contract refuses lets the same payment buy again.
    let told = taking.await.expect("runs");
    let unknown = matches!(told, Err(SettlementError::Chain(ChainError::Unconfirmed(hash))) if hash == sent.hash);
    assert!(unknown, "{told:?}");
    world.close(office).await;
}

#[tokio::test]
async fn regression_a_place_that_is_taken_while_there_is_no_gas_is_left_when_there_is() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    let (id, once) = world.exact(700, 1);
    world.chain.set_held(true);
    let taking = office.takes((id, once), 700);
    under_way(&office, 1).await;
    let nonce = office.settlement.outlook().in_flight[0].nonce;
    world.takes_place(nonce).await;
    world.chain.set_held(false);
    world.chain.set_funds(claim_key().address(), 0);
    world.chain.mine(1);
    // It looks a hundred times and keeps what cannot be moved yet.
    let looks = world.chain.asked();
    eventually("it was looked after", || world.chain.asked() > looks + 500).await;
    under_way(&office, 1).await;
    world
        .chain
        .set_funds(claim_key().address(), 1_000_000_000_000_000_000);
    let moved = taking.await.expect("runs");
    assert!(!moved.expect("is made").transaction.is_zero());
    assert_eq!(world.nonces().await, nonce + 2);
    world.close(office).await;
}

#[tokio::test]
async fn regression_what_every_node_refuses_for_long_does_not_keep_all_others_waiting() {
    let world = World::new();
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_held(true);
    office.sell(0, 300).await;
    under_way(&office, 1).await;
    // Nobody knows it any more, and nobody takes it: there is no gas for it.
    world.chain.forget_waiting();
    world.chain.set_funds(claim_key().address(), 0);
    eventually("it is given up", || {
        world.clock.advance(MINUTE);
        office.settlement.outlook().in_flight.is_empty()
    })
    .await;
    eventually("what is wrong is told", || {
        let trouble = office.settlement.outlook().trouble;
        trouble.is_some_and(|why| why.contains("for gas"))
    })
    .await;
    world.chain.set_held(false);
    world
        .chain
        .set_funds(claim_key().address(), 1_000_000_000_000_000_000);
    eventually("it is claimed anew", || office.claimed(0) == atoms(300)).await;
    world.close(office).await;
}

#[tokio::test]
async fn regression_when_the_dearest_is_refused_the_next_dearest_is_handed_in() {
    let world = World::new();
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_held(true);
    office.sell(0, 300).await;
    under_way(&office, 1).await;
    let unfinished = journal::unfinished(office.store()).expect("reads");
    let (_, attempts) = unfinished.values().next().expect("one nonce").clone();
    let gas = farthing_protocol::chain::gas_of(&attempts[0].raw).expect("ours");
    // Enough for what waits, and not for anything dearer.
    let purse = u128::from(gas) * attempts[0].fees.max;
    world.chain.set_funds(claim_key().address(), purse);
    world.clock.advance(MINUTE);
    eventually("a dearer one is signed", || {
        office.settlement.outlook().in_flight[0].attempts == 2
    })
    .await;
    world.chain.forget_waiting();
    world.chain.set_held(false);
    eventually("the cheaper one is mined", || {
        office.claimed(0) == atoms(300)
    })
    .await;
    world.close(office).await;
}

#[tokio::test]
async fn regression_a_payment_that_its_payer_cancelled_is_not_one_that_we_took() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    for (id, once) in [world.exact(700, 1), world.upto(700, 1)] {
        let fate = async || office.settlement.fate(id, &once).await.expect("answers");
        assert_eq!(fate().await, Fate::Open);
        world.cancels(&once);
        assert_eq!(fate().await, Fate::Cancelled);
        let refused = office.settlement.take(id, once, atoms(700)).await;
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(fate().await, Fate::Cancelled);
    }
    for (id, once) in [world.exact(700, 2), world.upto(700, 2)] {
        let fate = async || office.settlement.fate(id, &once).await.expect("answers");
        world.chain.set_held(true);
        let taking = office.takes((id, once), 700);
        under_way(&office, 1).await;
        assert_eq!(fate().await, Fate::UnderWay);
        world.chain.set_held(false);
        world.chain.mine(1);
        taking.await.expect("runs").expect("is taken");
        assert_eq!(fate().await, Fate::Taken);
    }
    world.close(office).await;
}

#[tokio::test]
async fn regression_a_deposit_that_its_payer_cancelled_is_not_said_to_be_made() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    let deposit = world.deposit(0, 1_000, 1);
    let nonce = deposit.nonce(world.id(0));
    world.chain.cancel_authorization(payer().address(), nonce);
    let made = office.settlement.deposit(config(0), deposit).await;
    assert!(made.is_err(), "{made:?}");
    assert!(office.find(0).is_none(), "it takes no room");
    world.close(office).await;
}

#[tokio::test]
async fn regression_a_young_deposit_behind_a_withdrawal_does_not_count_in_full() {
    let world = World::new();
    let depth = deep().confirmations;
    let sight = Sight::new(world.handle(), depth, Amount::ZERO);
    let counts = async || sight.look(world.id(0)).await.expect("answers").balance;
    world.deposits(0, 1_000, 1).await;
    assert_eq!(counts().await, Amount::ZERO);
    world.chain.mine(depth);
    assert_eq!(counts().await, atoms(1_000));
    world.withdraws_all(0).await;
    world.deposits(0, 700, 2).await;
    assert_eq!(world.balance(0).await, atoms(700));
    assert_eq!(counts().await, Amount::ZERO, "a reorganisation may take it");
    assert_eq!(sight.unconfirmed()[&world.id(0)], atoms(700));
    world.chain.mine(depth);
    assert_eq!(counts().await, atoms(700));
    // A node that keeps its events to itself still shows what the balance rose by.
    world.chain.set_mute(true);
    world.deposits(0, 200, 3).await;
    assert_eq!(counts().await, atoms(700));
}

#[tokio::test]
async fn regression_a_gap_that_another_has_filled_is_not_filled_elsewhere() {
    let world = World::new();
    let (office, mut actor) = world.build(Policy::default()).await;
    let chain = world.handle();
    let place = world.nonces().await;
    let filler = chain.filler(&claim_key(), place).await.expect("possible");
    world.takes_place(place).await;
    let sent = actor.send(filler, Purpose::Filler).await;
    let taken = matches!(sent, Err(SettlementError::Chain(ChainError::NonceUsed)));
    assert!(taken, "{sent:?}");
    assert_eq!(world.nonces().await, place + 1);
    assert!(actor.errands.is_empty());
    let left = journal::unfinished(office.store()).expect("reads");
    assert!(left.is_empty());
    drop(actor);
    world.shut(office).await;
}
