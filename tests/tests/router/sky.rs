//! The market under a sky: sellers behind NATs, delay, loss, partitions and churn, with the rules
//! that hold among strangers. Nodes and clients are the production code; only TCP is replaced.

use std::net::Ipv4Addr;
use std::time::Duration;

use farthing_node::config::Config as SellerConfig;
use farthing_protocol::net::sky::{Nat, Sky, Weather};
use farthing_protocol::net::{Barrier, Reachability};
use farthing_protocol::purchase::Ending;
use farthing_protocol::testing;
use farthing_tests::street::{Buyer, MODEL, Street, TestNet, eventually};
use farthing_tests::upstream::Behaviour;

const RELAY: Ipv4Addr = Ipv4Addr::new(9, 0, 0, 1);
const SELLER: Ipv4Addr = Ipv4Addr::new(9, 0, 0, 2);
const BUYER: Ipv4Addr = Ipv4Addr::new(9, 0, 0, 3);

const FINE: Weather = Weather {
    delay: Duration::from_millis(5),
    jitter: Duration::ZERO,
    loss: 0.0,
};

/// Where the seller and the buyer live; the relay is always public.
fn place(sky: &Sky, seller: Option<Nat>, buyer: Option<Nat>) {
    let homes = [(1, RELAY, None), (2, SELLER, seller), (100, BUYER, buyer)];
    for (n, outside, nat) in homes {
        let id = testing::node_key(n).id();
        match nat {
            Some(nat) => sky.behind(id, nat, outside),
            None => sky.public(id, outside),
        }
    }
}

fn seller_config(n: usize, config: &mut SellerConfig) {
    config.network.listen = vec!["/ip4/0.0.0.0/tcp/4801".into()];
    if n == 0 {
        config.network.external = vec![format!("/ip4/{RELAY}/tcp/4801")];
        config.network.relay.serve = true;
        // What is bought is the other seller's.
        for model in &mut config.models {
            model.id = "relay/model".into();
            model.upstream_name = Some(MODEL.into());
        }
    }
}

/// A relay, a seller and a buyer among strangers.
async fn street(behaviour: Behaviour) -> Street {
    let relay = format!("/ip4/{RELAY}/tcp/4801/p2p/{}", testing::node_key(1).id());
    let street = TestNet::new()
        .network(testing::base_sepolia())
        .sellers(2)
        .upstreams(behaviour)
        .seller_config(seller_config)
        .buyer_config(move |_, config| {
            config.network.listen = vec!["/ip4/0.0.0.0/tcp/4801".into()];
            config.network.bootstrap = vec![relay.clone()];
        });
    street.start().await.expect("starts")
}

fn reach(street: &Street) -> Reachability {
    street.sellers[1].node().net().reachability()
}

/// Waits until the buyer has heard an offer that names an address at the relay.
async fn offered_at_the_relay(street: &Street) {
    let seller = street.sellers[1].id();
    let offered = || {
        let market = street.buyers[0].client().market();
        let offer = market.and_then(|market| market.offer(seller));
        let offer = offer.map(|offer| offer.offer().addresses.clone());
        offer.is_some_and(|addresses| addresses.iter().any(|a| a.contains("/p2p-circuit")))
    };
    // Nothing is published twice within ten seconds.
    eventually("the offer names the relay", offered)
        .await
        .expect("does");
}

async fn buys(street: &Street, tokens: u32) {
    let heard = street.buyers[0]
        .buy(Buyer::stream(tokens))
        .await
        .expect("answers");
    assert_eq!(heard.seller, street.sellers[1].id());
    assert_eq!(heard.bill.receipt.receipt.ending, Ending::Complete);
    assert_eq!(heard.bill.receipt.receipt.usage.completion, tokens);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purchase_through_delay_and_loss_ends_right() {
    let bad = Weather {
        delay: Duration::from_millis(40),
        jitter: Duration::from_millis(30),
        loss: 0.03,
    };
    let sky = Sky::new(1, bad);
    place(&sky, None, None);
    let street = street(Behaviour::default().tokens(300)).await;
    for _ in 0..3 {
        buys(&street, 300).await;
    }
    assert!(!street.settled().await.expect("both books agree").is_zero());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_behind_a_nat_sells_through_a_relay_and_is_upgraded_to_direct() {
    let sky = Sky::new(2, FINE);
    place(&sky, Some(Nat::HOME), Some(Nat::HOME));
    let street = street(Behaviour::default().tokens(40)).await;
    offered_at_the_relay(&street).await;
    buys(&street, 40).await;
    let direct = || street.sellers[1].node().net().stats().relayed == 0;
    eventually("a hole is punched", direct).await.expect("is");
    buys(&street, 40).await;
    assert!(matches!(reach(&street), Reachability::Relayed { .. }));
    assert!(!street.settled().await.expect("both books agree").is_zero());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_behind_a_nat_that_allows_no_holes_keeps_selling_through_the_relay() {
    let sky = Sky::new(3, FINE);
    place(&sky, Some(Nat::CARRIER), Some(Nat::CARRIER));
    let street = street(Behaviour::default().tokens(400)).await;
    offered_at_the_relay(&street).await;
    for _ in 0..3 {
        buys(&street, 400).await;
        assert_eq!(street.sellers[1].node().net().stats().relayed, 1);
    }
    let told = Reachability::Relayed {
        relays: 1,
        barrier: Barrier::PortClosed,
    };
    eventually("the seller knows why", || reach(&street) == told)
        .await
        .expect("does");
    assert!(!street.settled().await.expect("both books agree").is_zero());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_a_short_partition() {
    let sky = Sky::new(4, FINE);
    place(&sky, None, None);
    let paced = Behaviour::default()
        .tokens(200)
        .pace(Duration::from_millis(5));
    let street = street(paced).await;
    let buying = buys(&street, 200);
    let weather = async {
        let running = || street.sellers[1].node().ledger().running() > 0;
        eventually("the stream runs", running).await.expect("does");
        sky.cut(&[BUYER]);
        tokio::time::sleep(Duration::from_millis(700)).await;
        sky.heal();
    };
    tokio::join!(buying, weather);
    assert!(!street.settled().await.expect("both books agree").is_zero());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_market_recovers_when_a_long_partition_heals() {
    let sky = Sky::new(5, FINE);
    place(&sky, None, None);
    let street = street(Behaviour::default().tokens(20)).await;
    buys(&street, 20).await;
    sky.cut(&[BUYER]);
    let lost = async {
        let gone = || street.sellers[1].node().net().peers().len() < 2;
        while !gone() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // Silence is noticed by pings, within forty seconds.
    tokio::time::timeout(Duration::from_secs(80), lost)
        .await
        .expect("noticed");
    sky.heal();
    let back = || street.sellers[0].node().net().peers().len() >= 2;
    eventually("the buyer is back", back).await.expect("is");
    buys(&street, 20).await;
    assert!(!street.settled().await.expect("both books agree").is_zero());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_of_sellers_does_not_lose_a_buyer_its_market() {
    let mut street = TestNet::new().sellers(4).start().await.expect("starts");
    // Three come and go; the one whom all know at the start stays for now.
    for round in 0..6 {
        let n = 1 + round % 3;
        street.sellers[n].stop().await;
        let heard = street.buyers[0].buy(Buyer::chat(4)).await.expect("answers");
        assert_ne!(heard.seller, street.sellers[n].id());
        // It comes back at another port.
        street.sellers[n].config.network.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
        street.start_seller(n).await.expect("starts again");
        street.buyers[0].buy(Buyer::chat(4)).await.expect("answers");
    }
    // Now it goes too, and those that moved are found where they are, once they are forgiven.
    street.sellers[0].stop().await;
    let found = async {
        loop {
            match street.buyers[0].buy(Buyer::chat(4)).await {
                Ok(heard) => return heard.seller,
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(90), found).await;
    assert_ne!(found.expect("is found"), street.sellers[0].id());
    street.start_seller(0).await.expect("starts again");
    assert!(!street.settled().await.expect("both books agree").is_zero());
    street.stop().await;
}
