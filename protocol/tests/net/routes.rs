//! Whoever can be reached is found by the name alone, although connections that nobody uses are
//! closed, and tables of routes look around little.

use std::{net::Ipv4Addr, time::Duration};

use farthing_protocol::{
    net::{
        Config, Net, PeerEvent, Protocol,
        sky::{Sky, Weather},
    },
    testing::node_key,
};
use futures::future::join_all;
use tokio::sync::mpsc;

use crate::echo::{echo, soon};

/// Twice what one part of a table holds.
const CROWD: u8 = 40;

/// A third are on one network.
fn address(n: u8) -> Ipv4Addr {
    match n % 3 {
        0 => Ipv4Addr::new(9, 1, 0, n),
        _ => Ipv4Addr::new(9, 1, n, 1),
    }
}

/// A node with an address that anybody can reach, which its operator may have said; on a topic of its
/// own, so that gossip holds no connection.
async fn node(sky: &Sky, n: u8, is_told: bool) -> (Net, mpsc::Receiver<PeerEvent>) {
    sky.public(node_key(n).id(), address(n));
    let told = is_told.then(|| format!("/ip4/{}/tcp/4801", address(n)));
    let config = Config {
        listen: vec!["/ip4/0.0.0.0/tcp/4801".into()],
        external: told.into_iter().collect(),
        topic: format!("/farthing/offers/1/{n}"),
        idle: Duration::from_millis(500),
        ..Config::default()
    };
    let (net, inbox) = Net::start(node_key(n).seed(), config).await.unwrap();
    echo(inbox.streams);
    (net, inbox.peers)
}

async fn meet(net: &Net, other: &Net) {
    net.dial(&other.listen_addresses()[0]).await.unwrap();
}

/// Until `from` has a stream to `to`, of whom it knows only the name.
async fn find(from: &Net, to: &Net) {
    soon(async { while from.open(to.local(), &[], Protocol::Call).await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_crowd_in_which_each_has_met_two_everybody_is_found_though_some_fall_silent() {
    let sky = Sky::new(11, Weather::default());
    let mut crowd: Vec<Net> = Vec::new();
    for n in 1..=CROWD {
        let (net, _) = node(&sky, n, true).await;
        let n = usize::from(n);
        for other in [n * 7, n * 13 + 5] {
            if let Some(other) = crowd.get(other % crowd.len().max(1)) {
                meet(&net, other).await;
            }
        }
        crowd.push(net);
    }
    let silent = crowd.split_off(crowd.len() - 4);
    let cut: Vec<Ipv4Addr> = (CROWD - 3..=CROWD).map(address).collect();
    sky.cut(&cut);
    let pairs = crowd.iter().enumerate().map(|(n, from)| {
        let to = &crowd[(n * 3 + 17) % crowd.len()];
        (from, to)
    });
    let others = pairs.filter(|(from, to)| from.local() != to.local());
    join_all(others.map(|(from, to)| find(from, to))).await;
    join_all(crowd.iter().chain(&silent).map(Net::stop)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_reached_for_the_first_time_tells_those_it_had_left() {
    let sky = Sky::new(12, Weather::default());
    let (root, _) = node(&sky, 101, true).await;
    let (seller, mut peers) = node(&sky, 102, false).await;
    let (stranger, _) = node(&sky, 103, false).await;
    let (buyer, _) = node(&sky, 104, false).await;
    meet(&seller, &root).await;
    let left = PeerEvent::Disconnected(root.local());
    soon(async { while peers.recv().await.unwrap() != left {} }).await;
    meet(&stranger, &seller).await;
    meet(&buyer, &root).await;
    find(&buyer, &seller).await;
    for net in [root, seller, stranger, buyer] {
        net.stop().await;
    }
}
