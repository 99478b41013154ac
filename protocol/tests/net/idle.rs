//! What nobody uses is closed, though gossip has streams on it; what is used is not.

use std::time::Duration;

use farthing_protocol::{
    identity::NodeId,
    net::{
        Config, Inbox, Net, PeerEvent, Protocol, Reach,
        session::{Limits, Session},
    },
};
use tokio::{sync::mpsc, time::Instant};

use crate::echo::{PATIENCE, echo, soon};

async fn node(seed: u8, topic: &str) -> (Net, Inbox) {
    let config = Config {
        listen: vec!["/ip4/127.0.0.1/tcp/0".into()],
        reach: Reach::Local,
        topic: topic.into(),
        idle: Duration::from_millis(300),
        ..Config::default()
    };
    Net::start([seed; 32], config).await.unwrap()
}

async fn until_gone(peers: &mut mpsc::Receiver<PeerEvent>, peer: NodeId) {
    let gone = PeerEvent::Disconnected(peer);
    soon(async { while peers.recv().await.expect("the network has stopped") != gone {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_only_gossip_has_streams_on_is_closed_unless_it_is_a_neighbours() {
    let (left, mut left_inbox) = node(1, "/farthing/offers/1/here").await;
    let (neighbour, _neighbour_inbox) = node(2, "/farthing/offers/1/here").await;
    let (stranger, stranger_inbox) = node(3, "/farthing/offers/1/there").await;
    echo(stranger_inbox.streams);
    let of = |net: &Net| net.listen_addresses()[0].clone();
    left.dial(&of(&neighbour)).await.unwrap();
    let met = PeerEvent::Neighbour(neighbour.local());
    soon(async { while left_inbox.peers.recv().await.unwrap() != met {} }).await;
    left.dial(&of(&stranger)).await.unwrap();
    let stream = left.open(stranger.local(), &[], Protocol::Purchase);
    let mut session = Session::new(stream.await.unwrap(), Limits::default());
    // Idle for longer than it may be, but for a stream that waits.
    let deadline = Instant::now() + Duration::from_millis(900);
    assert!(session.recv(1, deadline).await.is_err(), "nothing was said");
    session.send(b"?").await.unwrap();
    let answer = session.recv(1, Instant::now() + PATIENCE).await;
    assert_eq!(answer.unwrap().unwrap(), "?");
    drop(session);
    until_gone(&mut left_inbox.peers, stranger.local()).await;
    assert!(left.stats().connections > 0, "the neighbour stays");
    for net in [left, neighbour, stranger] {
        net.stop().await;
    }
}
