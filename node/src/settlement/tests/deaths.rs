//! Cut off at every await, one after the other: nothing is lost, nothing is done twice.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use farthing_protocol::testing;

use crate::settlement::tests::world::{Office, WEALTH, World, atoms, config};
use crate::settlement::{Policy, SettlementError, journal};

/// A future that is dropped in the middle of what it does.
struct Mortal<F> {
    life: Pin<Box<F>>,
    polls: u32,
}

impl<F: Future<Output = ()>> Future for Mortal<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(left) = self.polls.checked_sub(1) else {
            return Poll::Ready(());
        };
        self.polls = left;
        self.life.as_mut().poll(context)
    }
}

fn policy() -> Policy {
    Policy {
        confirmations: 2,
        trust_unconfirmed: atoms(1_000_000),
        // News seldom: what is of interest comes from orders.
        poll: Duration::from_millis(50),
        ..Policy::default()
    }
}

/// A deposit, a sale, a claim, a refund: each asked for until it is answered. True when all were.
async fn live(world: &World, office: &Office) -> Result<(), SettlementError> {
    let deposit = world.deposit(0, 1_000, 1);
    if world.on_chain(0).await.claimed.is_zero() {
        office.settlement.deposit(config(0), deposit).await?;
        if office.view(0).channel.charged().is_zero() {
            office.sell(0, 300).await;
        }
    }
    // Blocks come without our doing, but no more than are needed.
    let (settlement, chain) = (office.settlement.clone(), world.chain.clone());
    let watched = settlement.clone();
    let blocks = tokio::spawn(async move {
        loop {
            let in_flight = watched.outlook().in_flight;
            if in_flight.iter().any(|one| one.mined.is_some()) {
                chain.mine(1);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let done = async {
        settlement.claim().await?;
        match settlement.refund(world.id(0), None).await {
            Ok(_) | Err(SettlementError::Nothing) => Ok(()),
            Err(error) => Err(error),
        }
    };
    let done = done.await;
    blocks.abort();
    // It holds the books open.
    blocks.await.ok();
    done
}

/// Lives once with an actor that dies after so many polls, then with one that does not. Returns
/// whether the first one died.
async fn die_after(polls: u32) -> bool {
    let world = World::new();
    let (office, actor) = world.build(policy()).await;
    let mortal = Mortal {
        life: Box::pin(actor.run()),
        polls,
    };
    let office = Office {
        task: tokio::spawn(mortal),
        ..office
    };
    let first = live(&world, &office).await;
    let died = first.is_err();
    if died {
        world.shut(office).await;
    } else {
        world.close(office).await;
    }
    let office = world.open(policy()).await;
    let lives = async {
        loop {
            match live(&world, &office).await {
                Ok(()) => break,
                // A refund of the life before is still on its way.
                Err(SettlementError::InUse) => tokio::task::yield_now().await,
                Err(error) => panic!("after {polls} polls: {error}"),
            }
        }
    };
    let lived = tokio::time::timeout(Duration::from_secs(60), lives).await;
    assert!(lived.is_ok(), "after {polls} polls: the refund never ends");
    world.chain.mine(4);
    world.close(office).await;
    let (office, actor) = world.build(policy()).await;
    drop(actor);
    let left = journal::unfinished(office.store()).expect("reads");
    assert!(left.is_empty(), "after {polls} polls: {left:?}");
    let channel = office.view(0).channel;
    assert_eq!(
        (channel.charged(), channel.claimed()),
        (atoms(300), atoms(300))
    );
    world.shut(office).await;
    assert_eq!(
        world.payer_holds().await,
        WEALTH - 300,
        "after {polls} polls"
    );
    assert_eq!(
        world.tokens(testing::payout()).await,
        300,
        "after {polls} polls"
    );
    died
}

#[tokio::test]
async fn cut_off_at_any_await_nothing_is_lost_and_nothing_done_twice() {
    let mut polls = 0;
    while die_after(polls).await {
        polls += 1;
    }
    println!("{polls} places to die in");
    assert!(polls > 60, "only {polls} places to die in");
}
