//! Nodes under a sky: NATs, partitions, delay and loss, with strangers' rules in force
//! (`Reach::Public`).

use std::{net::Ipv4Addr, time::Duration};

use farthing_protocol::{
    net::{
        Barrier, Config, Inbox, Net, PeerEvent, Protocol, Reachability, RelayLimits,
        session::{Limits, Session},
        sky::{Filtering, Mapping, Nat, Sky, Weather},
    },
    testing::node_key,
};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    echo::{PATIENCE, echo, soon, until},
    exchange::exchange,
};

const RELAY: Ipv4Addr = Ipv4Addr::new(9, 0, 0, 1);
const SELLER: Ipv4Addr = Ipv4Addr::new(9, 0, 0, 2);
const BUYER: Ipv4Addr = Ipv4Addr::new(9, 0, 0, 3);

const FINE: Weather = Weather {
    delay: Duration::from_millis(5),
    jitter: Duration::ZERO,
    loss: 0.0,
};

fn listening() -> Config {
    Config {
        listen: vec!["/ip4/0.0.0.0/tcp/4801".into()],
        ..Config::default()
    }
}

async fn node(n: u8, config: Config) -> (Net, Inbox) {
    Net::start(node_key(n).seed(), config).await.unwrap()
}

async fn await_event(peers: &mut mpsc::Receiver<PeerEvent>, wanted: PeerEvent) {
    soon(async { while peers.recv().await.expect("the network has stopped") != wanted {} }).await;
}

struct World {
    sky: Sky,
    relay: Net,
    _relay: Inbox,
    seller: Net,
}

/// A public relay and a seller behind `nat` that holds a place there.
async fn world(nat: Nat) -> World {
    let sky = Sky::new(7, FINE);
    sky.public(node_key(1).id(), RELAY);
    sky.behind(node_key(2).id(), nat, SELLER);
    let config = Config {
        external: vec![format!("/ip4/{RELAY}/tcp/4801")],
        lends: Some(RelayLimits::default()),
        ..listening()
    };
    let (relay, kept) = node(1, config).await;
    let config = Config {
        bootstrap: relay.listen_addresses(),
        relays: 1,
        ..listening()
    };
    let (seller, inbox) = node(2, config).await;
    echo(inbox.streams);
    until("the seller has a place at the relay", || {
        seller
            .listen_addresses()
            .iter()
            .any(|a| a.contains("/p2p-circuit"))
    })
    .await;
    World {
        sky,
        relay,
        _relay: kept,
        seller,
    }
}

impl World {
    async fn buyer(&self, nat: Option<Nat>) -> (Net, Inbox) {
        match nat {
            Some(nat) => self.sky.behind(node_key(3).id(), nat, BUYER),
            None => self.sky.public(node_key(3).id(), BUYER),
        }
        let config = Config {
            bootstrap: self.relay.listen_addresses(),
            ..listening()
        };
        node(3, config).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_behind_a_nat_at_home_sells_through_a_relay_and_then_directly() {
    let world = world(Nat::HOME).await;
    let (buyer, _inbox) = world.buyer(Some(Nat::HOME)).await;
    let at = world.seller.listen_addresses();
    exchange(&buyer, world.seller.local(), &at, 2)
        .await
        .unwrap();
    until("a hole is punched", || buyer.stats().relayed == 0).await;
    // The relay may go now: the two need it no longer.
    world.relay.stop().await;
    until("the relay is gone", || {
        buyer.peers() == [world.seller.local()]
    })
    .await;
    exchange(&buyer, world.seller.local(), &[], 32)
        .await
        .unwrap();
    buyer.stop().await;
    world.seller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_behind_a_carriers_nat_goes_on_selling_through_the_relay() {
    let world = world(Nat::CARRIER).await;
    let (buyer, _inbox) = world.buyer(Some(Nat::CARRIER)).await;
    let at = world.seller.listen_addresses();
    for _ in 0..4 {
        exchange(&buyer, world.seller.local(), &at, 8)
            .await
            .unwrap();
        assert_eq!(buyer.stats().relayed, 1);
    }
    until("the relay's word that the port is shut", || {
        let relayed = Reachability::Relayed {
            relays: 1,
            barrier: Barrier::PortClosed,
        };
        world.seller.reachability() == relayed
    })
    .await;
    buyer.stop().await;
    world.seller.stop().await;
    world.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nat_that_lets_only_the_tester_in_does_not_pass_for_reachable() {
    let nat = Nat {
        mapping: Mapping::Independent,
        filtering: Filtering::ByAddress,
    };
    let world = world(nat).await;
    until("the test passes", || {
        world.seller.reachability() == Reachability::Tested
    })
    .await;
    // Whoever it has not spoken to still needs the relay, which is kept.
    let (buyer, _inbox) = world.buyer(None).await;
    let at = world.seller.listen_addresses();
    exchange(&buyer, world.seller.local(), &at, 1)
        .await
        .unwrap();
    buyer.stop().await;
    world.seller.stop().await;
    world.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_strangers_reach_gives_its_place_at_the_relay_back() {
    let sky = Sky::new(7, FINE);
    for (n, ip) in [(1, RELAY), (2, SELLER), (3, BUYER)] {
        sky.public(node_key(n).id(), ip);
    }
    let config = Config {
        external: vec![format!("/ip4/{RELAY}/tcp/4801")],
        lends: Some(RelayLimits::default()),
        ..listening()
    };
    let (relay, _relay) = node(1, config).await;
    let config = Config {
        bootstrap: relay.listen_addresses(),
        relays: 1,
        ..listening()
    };
    let (seller, inbox) = node(2, config).await;
    echo(inbox.streams);
    until("the port is found open", || {
        seller.reachability() == Reachability::Tested
    })
    .await;
    let direct = vec![format!("/ip4/{SELLER}/tcp/4801")];
    let (buyer, _inbox) = node(3, listening()).await;
    exchange(&buyer, seller.local(), &direct, 1).await.unwrap();
    until("a stranger has come", || {
        seller.reachability() == Reachability::Visited
    })
    .await;
    until("the place is given back", || {
        !seller
            .listen_addresses()
            .iter()
            .any(|a| a.contains("/p2p-circuit"))
    })
    .await;
    for net in [buyer, seller, relay] {
        net.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_a_short_partition_and_peers_meet_again_after_a_long_one() {
    let sky = Sky::new(7, FINE);
    sky.public(node_key(1).id(), RELAY);
    sky.public(node_key(2).id(), SELLER);
    let (left, left_inbox) = node(1, listening()).await;
    echo(left_inbox.streams);
    let config = Config {
        bootstrap: vec![format!("/ip4/{RELAY}/tcp/4801/p2p/{}", left.local())],
        ..listening()
    };
    let (right, mut inbox) = node(2, config).await;
    await_event(&mut inbox.peers, PeerEvent::Connected(left.local())).await;
    let stream = right
        .open(left.local(), &[], Protocol::Purchase)
        .await
        .unwrap();
    let mut session = Session::new(stream, Limits::default());
    session.send(b"one").await.unwrap();
    assert_eq!(
        session
            .recv(3, Instant::now() + PATIENCE)
            .await
            .unwrap()
            .unwrap(),
        "one"
    );
    sky.cut(&[RELAY]);
    session.send(b"two").await.unwrap();
    let silence = session
        .recv(3, Instant::now() + Duration::from_millis(200))
        .await;
    assert!(silence.is_err());
    sky.heal();
    assert_eq!(
        session
            .recv(3, Instant::now() + PATIENCE)
            .await
            .unwrap()
            .unwrap(),
        "two"
    );
    sky.cut(&[RELAY]);
    await_event(&mut inbox.peers, PeerEvent::Disconnected(left.local())).await;
    let alone = Reachability::Unreachable(Barrier::Alone);
    until("it knows that it is alone", || {
        right.reachability() == alone
    })
    .await;
    sky.heal();
    await_event(&mut inbox.peers, PeerEvent::Connected(left.local())).await;
    exchange(&right, left.local(), &[], 1).await.unwrap();
    left.stop().await;
    right.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_make_a_public_node_dial_into_its_own_house() {
    let sky = Sky::new(7, FINE);
    sky.public(node_key(1).id(), RELAY);
    let (net, _inbox) = node(1, listening()).await;
    let peer = node_key(9).id();
    for place in [
        "/ip4/127.0.0.1/tcp/22",
        "/ip4/192.168.1.1/tcp/80",
        "/dns4/inside.example/tcp/1",
    ] {
        let relayed = format!("{place}/p2p/{}/p2p-circuit", node_key(8).id());
        for at in [place.to_owned(), relayed] {
            let begun = Instant::now();
            assert!(net.open(peer, &[at], Protocol::Call).await.is_err());
            assert!(begun.elapsed() < PATIENCE);
        }
    }
    net.stop().await;
}
