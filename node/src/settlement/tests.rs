//! The settlement on the chain in memory: what it does when the chain misbehaves, and when it is
//! itself cut off at any await.

mod world;
mod deaths;
mod faults;
mod nodes;
mod reorganised;
mod anvil;

use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::store::Order;
use farthing_protocol::testing;

use crate::ledger::Observation;
use crate::ledger::records::{HEADS, MINED, Purpose};
use crate::settlement::tests::world::{Office, World, atoms, claim_key, config, eventually};
use crate::settlement::{Policy, SettlementError, journal};

const MINUTE: Duration = Duration::from_secs(61);
const GWEI: u128 = 1_000_000_000;

fn eager() -> Policy {
    Policy {
        claim_at: atoms(1),
        ..Policy::default()
    }
}

fn deep() -> Policy {
    Policy {
        confirmations: 3,
        ..Policy::default()
    }
}

async fn under_way(office: &Office, many: usize) {
    eventually("so many transactions are under way", || {
        office.settlement.outlook().in_flight.len() == many
    })
    .await;
}

#[tokio::test]
async fn a_stuck_claim_is_replaced_by_dearer_ones_until_it_is_mined() {
    let world = World::new();
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_held(true);
    office.sell(0, 300).await;
    under_way(&office, 1).await;
    let first = office.settlement.outlook().in_flight[0].clone();
    world.chain.set_base_fee(5 * GWEI);
    world.chain.set_held(false);
    world.chain.mine(1);
    assert_eq!(office.claimed(0), Amount::ZERO);
    world.clock.advance(MINUTE);
    under_way(&office, 0).await;
    assert_eq!(office.claimed(0), atoms(300));
    let mined = office
        .store()
        .scan(&MINED, .., Order::Up, 9)
        .expect("reads");
    let claims = mined
        .iter()
        .filter(|(_, mined)| mined.purpose == Purpose::Claim);
    let claims: Vec<_> = claims.collect();
    assert_eq!(claims.len(), 1);
    assert_ne!(claims[0].0, first.hash, "a dearer one was mined");
    world.close(office).await;
}

#[tokio::test]
async fn a_fee_is_raised_by_an_eighth_at_least_and_never_above_the_limit() {
    let world = World::new().with_max_fee(2 * GWEI);
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_held(true);
    office.sell(0, 300).await;
    under_way(&office, 1).await;
    let offered = office.settlement.outlook().in_flight[0].fee;
    assert_eq!(offered, GWEI);
    world.clock.advance(MINUTE);
    eventually("the fee is raised", || {
        office.settlement.outlook().in_flight[0].attempts == 2
    })
    .await;
    let raised = office.settlement.outlook().in_flight[0].fee;
    assert!(raised >= offered + offered / 8, "{raised}");
    world.chain.set_base_fee(50 * GWEI);
    for attempts in [3, 3] {
        world.clock.advance(MINUTE);
        eventually("the limit is reached", || {
            office.settlement.outlook().in_flight[0].attempts == attempts
        })
        .await;
    }
    assert_eq!(office.settlement.outlook().in_flight[0].fee, 2 * GWEI);
    // It waits until the chain is cheap again.
    world.chain.set_base_fee(GWEI);
    world.chain.set_held(false);
    world.chain.mine(1);
    under_way(&office, 0).await;
    assert_eq!(office.claimed(0), atoms(300));
    world.close(office).await;
}

#[tokio::test]
async fn whichever_transaction_of_a_nonce_is_mined_counts() {
    let world = World::new();
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_held(true);
    office.sell(0, 300).await;
    under_way(&office, 1).await;
    world.clock.advance(MINUTE);
    eventually("there are two", || {
        office.settlement.outlook().in_flight[0].attempts == 2
    })
    .await;
    let unfinished = journal::unfinished(office.store()).expect("reads");
    let (_, attempts) = unfinished.values().next().expect("one nonce");
    let (old, new) = (attempts[0].clone(), attempts[1].clone());
    // The world forgets the newer one and mines the older.
    world.chain.forget_waiting();
    world.chain.set_held(false);
    world.handle().broadcast(&old.raw).await.ok();
    under_way(&office, 0).await;
    assert_eq!(office.claimed(0), atoms(300));
    let mined = |hash| office.store().get(&MINED, &hash).expect("reads").is_some();
    assert!(mined(old.hash) || mined(new.hash));
    assert!(
        journal::unfinished(office.store())
            .expect("reads")
            .is_empty()
    );
    world.close(office).await;
}

#[tokio::test]
async fn a_place_taken_by_a_foreign_transaction_is_left_and_the_deposit_made_in_another() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    world.chain.set_held(true);
    let deposit = world.deposit(0, 1_000, 1);
    let asked = office.asks(deposit.clone());
    under_way(&office, 1).await;
    let nonce = office.settlement.outlook().in_flight[0].nonce;
    world.takes_place(nonce).await;
    world.chain.set_held(false);
    world.chain.mine(1);
    let moved = asked.await.expect("runs").expect("is mined");
    assert_eq!(moved.amount, atoms(1_000));
    assert_eq!(world.balance(0).await, atoms(1_000));
    assert!(world.nonces().await > nonce + 1);
    world.close(office).await;
}

#[tokio::test]
async fn a_claim_whose_place_is_taken_is_made_again() {
    let world = World::new();
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_held(true);
    office.sell(0, 300).await;
    under_way(&office, 1).await;
    let nonce = office.settlement.outlook().in_flight[0].nonce;
    world.takes_place(nonce).await;
    world.chain.set_held(false);
    world.chain.mine(1);
    eventually("it is claimed", || office.claimed(0) == atoms(300)).await;
    world.close(office).await;
}

#[tokio::test]
async fn a_nonce_the_node_has_forgotten_is_not_given_away_twice() {
    let world = World::new();
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_held(true);
    office.sell(0, 300).await;
    under_way(&office, 1).await;
    // Another node, or one that was restarted: it knows nothing of what waits.
    world.chain.forget_waiting();
    let asked = office.asks(world.deposit(1, 500, 1));
    under_way(&office, 2).await;
    let nonces: Vec<_> = office
        .settlement
        .outlook()
        .in_flight
        .iter()
        .map(|t| t.nonce)
        .collect();
    assert_ne!(nonces[0], nonces[1]);
    world.chain.set_held(false);
    asked.await.expect("runs").expect("is mined");
    under_way(&office, 0).await;
    assert_eq!(office.claimed(0), atoms(300));
    world.close(office).await;
}

#[tokio::test]
async fn a_gap_in_the_nonces_is_filled_so_that_what_waits_behind_it_is_mined() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    office.funded(&world, 0, 1_000).await;
    office.sell(0, 300).await;
    let store = office.store().clone();
    let next = world.nonces().await;
    let write = office.claim_write(0);
    let chain = world.handle();
    let behind = chain
        .prepare(&write, &claim_key(), Some(next + 1))
        .await
        .expect("possible");
    let now = world.clock.now();
    journal::record(&store, &behind, Purpose::Claim, now)
        .await
        .expect("records");
    drop(store);
    // Not in order: nothing is claimed on the way out.
    office.task.abort();
    world.shut(office).await;
    let office = world.open(Policy::default()).await;
    eventually("it is claimed", || office.claimed(0) == atoms(300)).await;
    assert_eq!(world.nonces().await, next + 2);
    world.close(office).await;
}

#[tokio::test]
async fn deposits_count_when_they_are_deep_and_before_only_within_the_allowance_for_all() {
    let world = World::new();
    let policy = Policy {
        trust_unconfirmed: atoms(600),
        ..deep()
    };
    let office = world.open(policy).await;
    // Small enough to count at once.
    let small = office
        .settlement
        .deposit(config(0), world.deposit(0, 400, 1))
        .await;
    assert_eq!(small.expect("counts").amount, atoms(400));
    // What is left of the allowance counts of the next, the rest when it is deep.
    let asked = office.asks(world.deposit(1, 500, 1));
    eventually("a part counts", || {
        office
            .find(1)
            .is_some_and(|view| view.channel.balance() == atoms(200))
    })
    .await;
    eventually("the rest is shown", || {
        let waits = office.settlement.outlook().unconfirmed;
        waits.get(&world.id(1)) == Some(&atoms(300))
    })
    .await;
    let again = office
        .settlement
        .deposit(config(0), world.deposit(0, 400, 1))
        .await;
    assert_eq!(again.expect("is known").amount, atoms(400));
    world.chain.mine(2);
    assert_eq!(
        asked.await.expect("runs").expect("is deep").amount,
        atoms(500)
    );
    assert_eq!(office.view(1).channel.balance(), atoms(500));
    assert!(office.settlement.outlook().unconfirmed.is_empty());
    world.close(office).await;
}

#[tokio::test]
async fn a_deposit_asked_for_again_while_it_is_under_way_is_waited_for_and_not_made_twice() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    world.chain.set_held(true);
    let asked = [1, 1].map(|salt| office.asks(world.deposit(0, 1_000, salt)));
    under_way(&office, 1).await;
    let other = office
        .settlement
        .deposit(config(0), world.deposit(0, 1_000, 2))
        .await;
    assert!(matches!(other, Err(SettlementError::Busy)), "{other:?}");
    world.chain.set_held(false);
    world.chain.mine(1);
    for asked in asked {
        assert_eq!(
            asked.await.expect("runs").expect("is mined").amount,
            atoms(1_000)
        );
    }
    world.close(office).await;
}

#[tokio::test]
async fn one_bad_row_costs_only_itself() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    for lane in 0..5 {
        office.funded(&world, lane, 1_000).await;
        office.sell(lane, 100 + u128::from(lane)).await;
    }
    let mut channels = Vec::new();
    for lane in 0..5 {
        channels.push((world.id(lane), office.view(lane)));
    }
    office.task.abort();
    world.shut(office).await;
    // The buyer takes the money of one channel back, and nobody is there to see it.
    world.withdraws_all(3).await;
    let (office, mut actor) = world.build(Policy::default()).await;
    let rows = channels
        .iter()
        .filter_map(|(_, view)| crate::settlement::claims::row(view));
    let sent = actor.claim(vec![rows.collect()]).await.expect("claims");
    assert!(!sent.is_empty() && sent.len() < 4, "{}", sent.len());
    let refused = office.settlement.outlook().refused;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[&world.id(3)], "ClaimExceedsBalance");
    for lane in [0, 1, 2, 4] {
        let expected = atoms(100 + u128::from(lane));
        assert_eq!(world.on_chain(lane).await.claimed, expected);
    }
    drop(actor);
    world.shut(office).await;
}

#[tokio::test]
async fn a_withdrawal_whose_event_was_lost_is_found_on_patrol() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    for lane in 0..3 {
        office.funded(&world, lane, 1_000).await;
    }
    office.sell(1, 300).await;
    world.chain.set_mute(true);
    world.initiates(1, 1_000).await;
    eventually("it is seen and claimed against", || {
        office.claimed(1) == atoms(300)
    })
    .await;
    assert_eq!(office.view(1).channel.armed(), atoms(700));
    assert_eq!(office.view(1).channel.slack(), Amount::ZERO);
    world.close(office).await;
}

#[tokio::test]
async fn two_lanes_of_one_payer_are_independent() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    for lane in [0, 1] {
        office.funded(&world, lane, 1_000).await;
        office.sell(lane, 100).await;
    }
    assert_eq!(office.ledger.exposure(config(0).payer), atoms(200));
    office
        .settlement
        .refund(world.id(0), None)
        .await
        .expect("refunds");
    assert_eq!(world.on_chain(0).await.balance, atoms(100));
    assert_eq!(world.on_chain(1).await.balance, atoms(1_000));
    office.sell(1, 50).await;
    office.settlement.claim().await.expect("claims");
    assert_eq!(
        (office.claimed(0), office.claimed(1)),
        (atoms(100), atoms(150))
    );
    // The drained lane is opened again.
    let again = office
        .settlement
        .deposit(config(0), world.deposit(0, 700, 9))
        .await;
    assert_eq!(again.expect("reopens").amount, atoms(800));
    office.sell(0, 60).await;
    office.settlement.claim().await.expect("claims");
    assert_eq!(office.claimed(0), atoms(160));
    world.close(office).await;
}

#[tokio::test]
async fn regression_a_payment_for_one_purchase_has_no_rest_that_is_returned_at_our_gas() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    let mut terms = config(0);
    terms.withdraw_delay = 1;
    let id = terms.id(&testing::network());
    let seen = Observation {
        balance: atoms(1_000),
        claimed: Amount::ZERO,
        armed: Amount::ZERO,
    };
    let entered = office.ledger.observe(terms, id, seen).await;
    entered.expect("is entered");
    let sent = world.nonces().await;
    let refund = office.settlement.refund(id, None).await;
    assert!(
        matches!(refund, Err(SettlementError::Nothing)),
        "{refund:?}"
    );
    world.chain.mine(1);
    assert_eq!(world.nonces().await, sent);
    world.close(office).await;
}

#[tokio::test]
async fn a_refund_of_a_part_leaves_the_rest_and_never_takes_what_was_charged() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    office.funded(&world, 0, 1_000).await;
    office.sell(0, 300).await;
    let moved = office
        .settlement
        .refund(world.id(0), Some(atoms(200)))
        .await;
    assert_eq!(moved.expect("refunds").amount, atoms(200));
    assert_eq!(world.on_chain(0).await.balance, atoms(800));
    assert_eq!(office.claimed(0), atoms(300), "claimed on the way");
    assert_eq!(office.view(0).channel.available(), atoms(800));
    let rest = office
        .settlement
        .refund(world.id(0), Some(atoms(9_999)))
        .await;
    assert_eq!(rest.expect("refunds").amount, atoms(500));
    let none = office.settlement.refund(world.id(0), None).await;
    assert!(matches!(none, Err(SettlementError::Nothing)), "{none:?}");
    world.close(office).await;
}

#[tokio::test]
async fn a_channel_the_books_have_forgotten_is_taken_in_from_the_chain() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    office.funded(&world, 0, 1_000).await;
    office.sell(0, 300).await;
    office.settlement.claim().await.expect("claims");
    office.sell(0, 40).await;
    world.initiates(0, 200).await;
    let world = world.loses_disk(office).await;
    let office = world.open(Policy::default()).await;
    let nowhere = office.settlement.adopt(config(7), world.id(7)).await;
    assert!(nowhere.is_err(), "{nowhere:?}");
    assert!(
        office.ledger.channels().is_empty(),
        "what is not there takes no room"
    );
    let view = office
        .settlement
        .adopt(config(0), world.id(0))
        .await
        .expect("is there");
    // What was charged and not claimed is forfeited; the withdrawal is seen on first contact.
    assert_eq!(view.channel.charged(), atoms(300));
    assert_eq!(view.channel.claimed(), atoms(300));
    assert_eq!(view.channel.available(), atoms(800));
    assert_eq!(view.channel.receipts(), 0);
    office.sell(0, 60).await;
    office.settlement.claim().await.expect("claims");
    assert_eq!(world.on_chain(0).await.claimed, atoms(360));
    world.close(office).await;
}

#[tokio::test]
async fn without_gas_claims_wait_and_say_so() {
    let world = World::new();
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_base_fee(u128::MAX / 1_000_000_000_000);
    office.sell(0, 300).await;
    eventually("it is told", || {
        let trouble = office.settlement.outlook().trouble;
        trouble.is_some_and(|why| why.contains("for gas"))
    })
    .await;
    assert!(!office.settlement.outlook().away);
    world.chain.set_base_fee(GWEI / 2);
    eventually("it is claimed", || office.claimed(0) == atoms(300)).await;
    assert_eq!(office.settlement.outlook().trouble, None);
    world.close(office).await;
}

#[tokio::test]
async fn the_age_of_a_charge_is_remembered_across_a_restart() {
    let world = World::new();
    let office = world.open(Policy::default()).await;
    office.funded(&world, 0, 1_000).await;
    office.sell(0, 300).await;
    let noted = || office.settlement.outlook().since.contains_key(&world.id(0));
    eventually("it is noted", noted).await;
    let actor = office.task.abort_handle();
    actor.abort();
    world.shut(office).await;
    world.clock.advance(Policy::default().claim_age);
    let office = world.open(Policy::default()).await;
    eventually("it is claimed for its age", || {
        office.claimed(0) == atoms(300)
    })
    .await;
    world.close(office).await;
}
