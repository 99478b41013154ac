//! Chain nodes that lag, keep silent, refuse: what is not to be believed of them, and what is not
//! to be stopped by them.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{ChainError, Outcome, Write};
use futures::task::noop_waker;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::ledger::Observation;
use crate::ledger::once::Once;
use crate::ledger::records::Purpose;
use crate::settlement::actor::Actor;
use crate::settlement::errand::Attempt;
use crate::settlement::sight::Sight;
use crate::settlement::tests::world::{Office, World, atoms, claim_key, config, eventually};
use crate::settlement::tests::{GWEI, MINUTE, deep, eager, under_way};
use crate::settlement::{Fate, Policy, SettlementError, journal};

/// Goes on with something so many times; true when it has come to its end.
fn poll_so_often<T>(mut life: Pin<&mut impl Future<Output = T>>, polls: u32) -> Option<T> {
    let waker = noop_waker();
    let mut context = Context::from_waker(&waker);
    for _ in 0..polls {
        if let Poll::Ready(end) = life.as_mut().poll(&mut context) {
            return Some(end);
        }
    }
    None
}

/// The channel holds so much, and the books know it.
async fn holds(world: &World, office: &Office, lane: u8, amount: u128) {
    world.deposits(lane, amount, 1).await;
    let seen = Observation {
        balance: atoms(amount),
        claimed: Amount::ZERO,
        armed: Amount::ZERO,
    };
    let known = office.ledger.observe(config(lane), world.id(lane), seen);
    known.await.expect("is entered");
}

fn exact_write(once: &Once) -> Write {
    match once {
        Once::Exact(transfer) => Write::Exact {
            transfer: *transfer,
        },
        Once::Upto(_) => unreachable!("made an exact one"),
    }
}

/// All that is under way is handed in again with the next look.
fn hand_in_next(actor: &mut Actor) {
    for errand in actor.errands.values_mut() {
        errand.sent = Instant::now() - MINUTE;
    }
}

#[tokio::test]
async fn regression_a_deposit_handed_in_again_does_not_lift_the_freeze_of_a_refund() {
    let world = World::new();
    let (office, mut actor) = world.build(Policy::default()).await;
    holds(&world, &office, 0, 1_000).await;
    world.chain.set_held(true);
    let (reply, _refund) = oneshot::channel();
    actor.refund(world.id(0), None, reply).await;
    assert_eq!(actor.errands.len(), 1, "it is under way");
    let frozen = office.view(0).channel;
    assert_eq!(frozen.available(), Amount::ZERO);
    let (reply, mut made) = oneshot::channel();
    let again = world.deposit(0, 1_000, 1);
    actor.deposit(config(0), again, reply).await;
    let moved = made.try_recv().expect("is answered").expect("is known");
    assert_eq!(moved.amount, atoms(1_000));
    assert_eq!(office.view(0).channel, frozen, "it is promised back");
    drop(actor);
    world.shut(office).await;
}

#[tokio::test]
async fn regression_a_channel_that_is_taken_in_does_not_lift_the_freeze_of_a_refund() {
    let world = World::new();
    let (office, actor) = world.build(Policy::default()).await;
    for lane in 0.. {
        world.deposits(lane, 1_000, 1).await;
        let (config, id) = (config(lane), world.id(lane));
        let mut adopted = pin!(office.settlement.adopt(config, id));
        // So far it comes alone.
        drop(poll_so_often(adopted.as_mut(), lane.into()));
        if office.find(lane).is_some() {
            assert!(lane > 2, "only {lane} places");
            break;
        }
        // Meanwhile its deposit is entered, and a refund begun.
        let frozen = Observation {
            balance: atoms(1_000),
            claimed: Amount::ZERO,
            armed: atoms(1_000),
        };
        let known = office.ledger.observe(config, id, frozen).await;
        known.expect("is entered");
        let view = adopted.await.expect("is known");
        assert_eq!(view.channel.available(), Amount::ZERO, "{lane} polls");
    }
    drop(actor);
    world.shut(office).await;
}

#[tokio::test]
async fn regression_what_a_node_finds_too_cheap_is_signed_anew_and_dearer() {
    let world = World::new();
    let (office, mut actor) = world.build(eager()).await;
    holds(&world, &office, 0, 1_000).await;
    office.sell(0, 300).await;
    world.chain.set_held(true);
    actor.news_came().await;
    assert_eq!(actor.errands.len(), 1, "it is claimed");
    // Blocks have become dear, and the pool takes nothing that they would not.
    world.chain.forget_waiting();
    world.chain.set_base_fee(5 * GWEI);
    world.chain.set_choosy(true);
    world.chain.set_held(false);
    hand_in_next(&mut actor);
    actor.look_after().await;
    assert_eq!(world.on_chain(0).await.claimed, Amount::ZERO);
    world.clock.advance(MINUTE);
    actor.look_after().await;
    assert_eq!(world.on_chain(0).await.claimed, atoms(300));
    drop(actor);
    world.shut(office).await;
}

#[tokio::test]
async fn regression_a_dearer_copy_that_is_still_too_cheap_is_followed_by_another() {
    let world = World::new();
    let (office, mut actor) = world.build(eager()).await;
    holds(&world, &office, 0, 1_000).await;
    office.sell(0, 300).await;
    world.chain.set_held(true);
    actor.news_came().await;
    let place = *actor.errands.keys().next().expect("it is claimed");
    // Somebody's transaction in the same place: what we raise by does not take its place.
    world.chain.set_base_fee(2 * GWEI);
    world.takes_place(place).await;
    world.chain.set_base_fee(GWEI / 2);
    world.clock.advance(MINUTE);
    actor.look_after().await;
    assert_eq!(actor.errands[&place].attempts.len(), 2);
    world.chain.forget_waiting();
    world.chain.set_held(false);
    world.chain.set_choosy(true);
    world.chain.set_base_fee(5 * GWEI);
    world.clock.advance(MINUTE);
    actor.look_after().await;
    assert_eq!(world.on_chain(0).await.claimed, atoms(300));
    drop(actor);
    world.shut(office).await;
}

#[tokio::test]
async fn what_no_node_takes_for_its_fee_is_not_tried_in_other_places() {
    let world = World::new().with_max_fee(GWEI);
    let (office, mut actor) = world.build(Policy::default()).await;
    world.chain.set_choosy(true);
    world.chain.set_base_fee(5 * GWEI);
    let (_, once) = world.exact(700, 1);
    let purpose = Purpose::Once(world.id(0));
    let sent = actor.submit(&exact_write(&once), purpose).await;
    let cheap = matches!(sent, Err(SettlementError::Chain(ChainError::Underpriced)));
    assert!(cheap, "{sent:?}");
    let left = journal::unfinished(office.store()).expect("reads");
    assert!(left.is_empty() && actor.errands.is_empty());
    drop(actor);
    world.shut(office).await;
}

#[tokio::test]
async fn regression_a_withdrawal_that_ends_while_a_channel_is_looked_at_is_not_lent_again() {
    for depth in [1, 3] {
        let mut polls = 0;
        loop {
            let world = World::new();
            let sight = Sight::new(world.handle(), depth, Amount::ZERO);
            world.deposits(0, 1_000, 1).await;
            world.initiates(0, 700).await;
            world.delay_passes(0);
            world.chain.mine(depth);
            let mut look = pin!(sight.look(world.id(0)));
            if poll_so_often(look.as_mut(), polls).is_some() {
                break;
            }
            world.finalizes(0).await;
            let seen = look.await.expect("answers");
            let lent = seen.balance.saturating_sub(seen.armed);
            assert_eq!(lent, atoms(300), "depth {depth}, after {polls} polls");
            polls += 1;
        }
        assert!(polls > 2, "only {polls} places for it to end");
    }
}

#[tokio::test]
async fn regression_a_node_that_refuses_events_stops_no_claim_and_no_conclusion() {
    let world = World::new();
    let policy = Policy {
        claim_at: atoms(1),
        ..deep()
    };
    let office = world.open(policy).await;
    office.funded(&world, 0, 1_000).await;
    world.chain.set_eventless(true);
    let more = office.asks(world.deposit(1, 500, 1));
    office.sell(0, 300).await;
    eventually("both are mined", || {
        let in_flight = office.settlement.outlook().in_flight;
        in_flight.len() == 2 && in_flight.iter().all(|one| one.mined.is_some())
    })
    .await;
    world.chain.mine(3);
    let moved = more.await.expect("runs").expect("counts");
    assert_eq!(moved.amount, atoms(500));
    under_way(&office, 0).await;
    assert_eq!(office.claimed(0), atoms(300));
    world.close(office).await;
}

#[tokio::test]
async fn a_deposit_behind_a_withdrawal_is_not_lent_while_no_node_names_its_event() {
    let world = World::new();
    let depth = deep().confirmations;
    let sight = Sight::new(world.handle(), depth, Amount::ZERO);
    let lent = async || {
        let seen = sight.look(world.id(0)).await.expect("answers");
        seen.balance.saturating_sub(seen.armed)
    };
    world.deposits(0, 1_000, 1).await;
    world.initiates(0, 700).await;
    world.delay_passes(0);
    world.chain.mine(depth);
    world.chain.set_eventless(true);
    assert_eq!(lent().await, atoms(300));
    world.finalizes(0).await;
    world.deposits(0, 700, 2).await;
    assert_eq!(world.balance(0).await, atoms(1_000));
    assert_eq!(lent().await, atoms(300), "a reorganisation may take it");
    world.chain.mine(depth);
    assert_eq!(lent().await, atoms(1_000));
}

#[tokio::test]
async fn regression_a_channel_that_cannot_be_looked_at_keeps_nobody_from_being_claimed_from() {
    let world = World::new();
    // Deeper than the chain remembers its states.
    let policy = Policy {
        confirmations: 200,
        ..eager()
    };
    let (office, mut actor) = world.build(policy).await;
    holds(&world, &office, 0, 1_000).await;
    office.sell(0, 300).await;
    world.chain.mine(300);
    let looked = actor.refresh_all(&[world.id(0)]).await;
    assert!(looked.is_err(), "it stays stale");
    actor.news_came().await;
    assert_eq!(world.on_chain(0).await.claimed, atoms(300));
    assert!(office.settlement.outlook().away, "and it is told");
    drop(actor);
    world.shut(office).await;
}

const MINED: Outcome = Outcome {
    block: 2,
    success: true,
    gas: 1,
    gas_price: 1,
};

#[tokio::test]
async fn regression_what_we_found_mined_is_taken_whatever_a_node_says_of_it() {
    let world = World::new();
    let (office, actor) = world.build(Policy::default()).await;
    let (store, now) = (office.store(), world.clock.now());
    // At each step of the question it is found to be mined; the node that is asked lags behind.
    for place in 0_u8.. {
        let (id, once) = world.exact(700, place);
        let hash = B256::repeat_byte(place);
        let mined = journal::mined(Purpose::Once(id), MINED, now);
        let mut asked = pin!(office.settlement.fate(id, &once));
        if let Some(fate) = poll_so_often(asked.as_mut(), place.into()) {
            assert_eq!(fate.expect("answers"), Fate::Open);
            assert!(place > 2, "only {place} places");
            break;
        }
        let closed = journal::close(store, &[], Some((hash, mined))).await;
        closed.expect("is entered");
        let fate = asked.await.expect("answers");
        assert_eq!(fate, Fate::Taken, "after {place} polls");
    }
    drop(actor);
    world.shut(office).await;
}

#[tokio::test]
async fn what_a_reorganisation_took_back_is_taken_no_longer() {
    let world = World::new();
    let (office, actor) = world.build(Policy::default()).await;
    let (store, now) = (office.store(), world.clock.now());
    let (id, once) = world.exact(700, 1);
    let prepared = actor.prepare(&exact_write(&once)).await.expect("possible");
    let purpose = Purpose::Once(id);
    let fate = async || office.settlement.fate(id, &once).await.expect("answers");
    let mined = (prepared.hash, journal::mined(purpose, MINED, now));
    journal::close(store, &[], Some(mined)).await.expect("ends");
    assert_eq!(fate().await, Fate::Taken);
    let again = journal::record(store, &prepared, purpose, now).await;
    again.expect("is under way again");
    assert_eq!(fate().await, Fate::UnderWay);
    let given_up = journal::close(store, &[Attempt::new(prepared, now)], None).await;
    given_up.expect("ends");
    assert_eq!(fate().await, Fate::Open);
    drop(actor);
    world.shut(office).await;
}

/// Ten minutes and more, in each of which all is handed in again.
async fn ten_minutes(world: &World, actor: &mut Actor) {
    for _ in 0..12 {
        hand_in_next(actor);
        actor.look_after().await;
        world.clock.advance(MINUTE);
    }
}

#[tokio::test]
async fn regression_a_payment_is_not_given_up_while_a_silent_node_may_have_it() {
    let world = World::new();
    let (office, mut actor) = world.build(eager()).await;
    holds(&world, &office, 0, 1_000).await;
    office.sell(0, 300).await;
    world.chain.set_held(true);
    let (id, once) = world.exact(700, 1);
    let sent = actor.submit(&exact_write(&once), Purpose::Once(id)).await;
    let payment = sent.expect("is sent");
    actor.news_came().await;
    assert_eq!(actor.errands.len(), 2, "there is a claim too");
    // There is no gas for either, say those who answer.
    world.chain.forget_waiting();
    world.chain.set_funds(claim_key().address(), 0);
    world.chain.set_partly_silent(true);
    ten_minutes(&world, &mut actor).await;
    let left: Vec<_> = actor.errands.keys().copied().collect();
    assert_eq!(left, [payment], "a claim is made anew");
    world.chain.set_partly_silent(false);
    ten_minutes(&world, &mut actor).await;
    assert!(actor.errands.is_empty(), "all have refused it");
    drop(actor);
    world.shut(office).await;
}
