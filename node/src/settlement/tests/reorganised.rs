//! Blocks that are taken back: what was in them is sent again, and nothing counts twice.

use super::*;

#[tokio::test]
async fn a_claim_that_a_reorganisation_takes_back_is_sent_again() {
    let world = World::new();
    let office = world
        .open(Policy {
            claim_at: atoms(1),
            ..deep()
        })
        .await;
    office.funded(&world, 0, 1_000).await;
    office.sell(0, 300).await;
    eventually("it is mined, but not deep", || {
        let in_flight = office.settlement.outlook().in_flight;
        in_flight.first().is_some_and(|claim| claim.mined.is_some())
    })
    .await;
    assert_eq!(office.claimed(0), Amount::ZERO, "it counts when it is deep");
    let was = office.settlement.outlook().in_flight[0].mined;
    world.chain.reorganise(1);
    assert_eq!(world.on_chain(0).await.claimed, Amount::ZERO);
    eventually("it is mined once more", || {
        let in_flight = office.settlement.outlook().in_flight;
        in_flight
            .first()
            .is_some_and(|claim| claim.mined.is_some() && claim.mined != was)
    })
    .await;
    world.chain.mine(3);
    under_way(&office, 0).await;
    assert_eq!(office.claimed(0), atoms(300));
    assert_eq!(world.on_chain(0).await.claimed, atoms(300));
    world.close(office).await;
}

#[tokio::test]
async fn a_deposit_that_a_reorganisation_takes_back_lowers_what_may_be_promised_and_is_sent_again()
{
    let world = World::new();
    let office = world.open(Policy::default()).await;
    office.funded(&world, 0, 1_000).await;
    office.sell(0, 300).await;
    assert_eq!(office.view(0).channel.available(), atoms(1_000));
    world.chain.set_held(true);
    world.chain.reorganise(2);
    assert_eq!(world.on_chain(0).await.balance, Amount::ZERO);
    eventually("nothing more may be promised", || {
        office.view(0).channel.available().is_zero()
    })
    .await;
    assert!(office.settlement.outlook().short.contains_key(&world.id(0)));
    under_way(&office, 1).await;
    world.chain.set_held(false);
    eventually("it is back", || {
        office.view(0).channel.available() == atoms(1_000)
    })
    .await;
    eventually("it holds what was charged", || {
        office.settlement.outlook().short.is_empty()
    })
    .await;
    office.settlement.claim().await.expect("claims");
    assert_eq!(office.claimed(0), atoms(300));
    assert_eq!(office.settlement.outlook().reorganisations, 1);
    world.close(office).await;
}

#[tokio::test]
async fn a_reorganisation_while_we_were_down_is_noticed_at_the_start() {
    let world = World::new();
    let office = world.open(eager()).await;
    office.funded(&world, 0, 1_000).await;
    office.sell(0, 300).await;
    eventually("it is claimed", || office.claimed(0) == atoms(300)).await;
    let height = world.height().await;
    let read = || {
        office
            .store()
            .get(&HEADS, &height)
            .expect("reads")
            .is_some()
    };
    eventually("the block is read", read).await;
    world.close(office).await;
    world.chain.reorganise(1);
    assert_eq!(world.on_chain(0).await.claimed, Amount::ZERO);
    let office = world.open(eager()).await;
    eventually("it is noticed", || {
        office.settlement.outlook().reorganisations == 1
    })
    .await;
    let again = async {
        while world.on_chain(0).await.claimed != atoms(300) {
            tokio::task::yield_now().await;
        }
    };
    let again = tokio::time::timeout(MINUTE, again).await;
    again.expect("it is claimed again");
    eventually("the books follow", || office.claimed(0) == atoms(300)).await;
    world.close(office).await;
}
