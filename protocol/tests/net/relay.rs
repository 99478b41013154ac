//! Nodes that cannot be reached, and the relays that let them sell all the same: over real TCP
//! and QUIC on loopback.

use farthing_protocol::{
    identity::NodeId,
    net::{
        Barrier, Config, ConnectError, Inbox, Net, OpenError, Protocol, Reach, Reachability,
        RelayLimits,
    },
};

use crate::{
    echo::{echo, soon, until},
    exchange::exchange,
};

const TCP: &str = "/ip4/127.0.0.1/tcp/0";

fn local(listen: &[&str]) -> Config {
    Config {
        listen: listen.iter().map(|text| (*text).to_owned()).collect(),
        reach: Reach::Local,
        ..Config::default()
    }
}

async fn node(seed: u8, config: Config) -> (Net, Inbox) {
    Net::start([seed; 32], config).await.unwrap()
}

async fn relay(seed: u8, lends: RelayLimits) -> (Net, Inbox) {
    let config = Config {
        lends: Some(lends),
        ..local(&[TCP])
    };
    node(seed, config).await
}

/// A node that listens nowhere and looks for a place at `relay`.
async fn hidden(seed: u8, relay: &Net) -> (Net, Inbox) {
    let config = Config {
        bootstrap: relay.listen_addresses(),
        relays: 1,
        ..local(&[])
    };
    node(seed, config).await
}

fn circuits(net: &Net) -> Vec<String> {
    let all = net.listen_addresses().into_iter();
    all.filter(|address| address.contains("/p2p-circuit"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_megabytes_through_a_relay_is_not_cut() {
    let (relay, _keep) = relay(1, RelayLimits::default()).await;
    let (seller, inbox) = hidden(2, &relay).await;
    echo(inbox.streams);
    until("it has a place at the relay", || {
        !circuits(&seller).is_empty()
    })
    .await;
    assert_eq!(
        seller.reachability(),
        Reachability::Relayed {
            relays: 1,
            barrier: Barrier::NotListening
        }
    );
    let (buyer, _inbox) = node(3, local(&[])).await;
    exchange(&buyer, seller.local(), &circuits(&seller), 64)
        .await
        .unwrap();
    assert_eq!(buyer.stats().relayed, 1, "it came through the relay");
    for net in [buyer, seller, relay] {
        net.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_near_its_end_is_replaced_before_it_cuts_a_stream() {
    let lends = RelayLimits {
        circuit_bytes: 1024 * 1024,
        ..RelayLimits::default()
    };
    let (relay, _keep) = relay(1, lends).await;
    let (seller, inbox) = hidden(2, &relay).await;
    echo(inbox.streams);
    until("it has a place at the relay", || {
        !circuits(&seller).is_empty()
    })
    .await;
    let (buyer, _inbox) = node(3, local(&[])).await;
    // Six times what one circuit may carry.
    for n in 0..24 {
        let done = exchange(&buyer, seller.local(), &circuits(&seller), 2).await;
        assert_eq!(done, Ok(()), "purchase {n}");
    }
    for net in [buyer, seller, relay] {
        net.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_beyond_a_circuits_bytes_is_cut_so_that_a_relay_cannot_be_drained() {
    let lends = RelayLimits {
        circuit_bytes: 512 * 1024,
        ..RelayLimits::default()
    };
    let (relay, _keep) = relay(1, lends).await;
    let (seller, inbox) = hidden(2, &relay).await;
    echo(inbox.streams);
    until("it has a place at the relay", || {
        !circuits(&seller).is_empty()
    })
    .await;
    let (buyer, _inbox) = node(3, local(&[])).await;
    let cut = exchange(&buyer, seller.local(), &circuits(&seller), 64).await;
    assert!(cut.is_err());
    for net in [buyer, seller, relay] {
        net.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_relay_refuses_and_the_node_says_so() {
    let lends = RelayLimits {
        reservations: 1,
        ..RelayLimits::default()
    };
    let (relay, _keep) = relay(1, lends).await;
    let (first, _first) = hidden(2, &relay).await;
    until("it has a place at the relay", || {
        !circuits(&first).is_empty()
    })
    .await;
    let (second, _second) = hidden(3, &relay).await;
    let refused = Reachability::Unreachable(Barrier::RelayRefused);
    until("there is no place for the second", || {
        second.reachability() == refused
    })
    .await;
    assert!(circuits(&second).is_empty());
    for net in [first, second, relay] {
        net.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_asks_for_endless_circuits_is_stopped() {
    let lends = RelayLimits {
        burst_per_peer: 3,
        ..RelayLimits::default()
    };
    let (relay, _keep) = relay(1, lends).await;
    let mut sellers = Vec::new();
    for seed in 10..16 {
        let (seller, inbox) = hidden(seed, &relay).await;
        echo(inbox.streams);
        until("it has a place at the relay", || {
            !circuits(&seller).is_empty()
        })
        .await;
        sellers.push(seller);
    }
    let (buyer, _inbox) = node(3, local(&[])).await;
    let mut through = 0;
    for seller in &sellers {
        let opened = exchange(&buyer, seller.local(), &circuits(seller), 1).await;
        through += usize::from(opened.is_ok());
    }
    assert_eq!(through, 3);
    let (other, _inbox) = node(4, local(&[])).await;
    exchange(&other, sellers[5].local(), &circuits(&sellers[5]), 1)
        .await
        .unwrap();
    for net in sellers.into_iter().chain([buyer, other, relay]) {
        net.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_relay_is_found_again_and_the_address_comes_back() {
    let (first, _keep) = relay(1, RelayLimits::default()).await;
    let at = first.listen_addresses();
    let (seller, inbox) = hidden(2, &first).await;
    echo(inbox.streams);
    until("it has a place at the relay", || {
        !circuits(&seller).is_empty()
    })
    .await;
    first.stop().await;
    until("the place is gone", || circuits(&seller).is_empty()).await;
    let alone = Reachability::Unreachable(Barrier::Alone);
    until("it knows that it is alone", || {
        seller.reachability() == alone
    })
    .await;
    let config = Config {
        listen: at
            .iter()
            .filter_map(|a| a.split("/p2p/").next().map(Into::into))
            .collect(),
        lends: Some(RelayLimits::default()),
        ..local(&[])
    };
    let (again, _inbox) = node(1, config).await;
    until("it has a place at the relay", || {
        !circuits(&seller).is_empty()
    })
    .await;
    let (buyer, _inbox) = node(3, local(&[])).await;
    exchange(&buyer, seller.local(), &circuits(&seller), 1)
        .await
        .unwrap();
    for net in [buyer, seller, again] {
        net.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_found_by_its_name_alone() {
    let (root, _root) = node(1, local(&[TCP])).await;
    let joining = || Config {
        bootstrap: root.listen_addresses(),
        ..local(&[TCP])
    };
    let (seller, inbox) = node(2, joining()).await;
    echo(inbox.streams);
    let (buyer, _inbox) = node(3, joining()).await;
    // The root learns of the seller by identify, and tells the buyer by Kademlia.
    soon(async { while exchange(&buyer, seller.local(), &[], 1).await.is_err() {} }).await;
    let nobody = NodeId::from_bytes([9; 32]);
    let lost = buyer.open(nobody, &[], Protocol::Call).await.err();
    assert_eq!(lost, Some(OpenError::Connect(ConnectError::NoAddress)));
    for net in [buyer, seller, root] {
        net.stop().await;
    }
}
