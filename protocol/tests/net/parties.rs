//! The network as its users see it: two or three nodes in one process.

use std::time::Duration;

use farthing_protocol::{
    identity::NodeId,
    net::{
        Config, ConnectError, Inbox, Net, OpenError, PeerEvent, Protocol, PublishError, Reach,
        StartError,
        session::{Limits, RecvError, SendError, Session},
    },
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::echo::{PATIENCE, echo, soon};

const MEMORY: &str = "/memory/0";
const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

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

/// Waits for an event, passing over the others.
async fn await_event(peers: &mut mpsc::Receiver<PeerEvent>, wanted: PeerEvent) {
    soon(async { while peers.recv().await.expect("the network has stopped") != wanted {} }).await;
}

/// One request and its answer on a new stream.
async fn ask(net: &Net, peer: NodeId, addresses: &[String], body: &[u8]) -> Result<(), String> {
    let stream = net
        .open(peer, addresses, Protocol::Purchase)
        .await
        .map_err(|error| format!("open: {error}"))?;
    let mut session = Session::new(stream, Limits::default());
    session
        .send(body)
        .await
        .map_err(|error| format!("send: {error}"))?;
    let deadline = Instant::now() + PATIENCE;
    match session.recv(body.len(), deadline).await {
        Ok(Some(answer)) if answer == body => {}
        other => return Err(format!("recv: {other:?}")),
    }
    session
        .writer
        .close()
        .await
        .map_err(|error| format!("close: {error}"))?;
    match session.recv(0, deadline).await {
        Ok(None) => Ok(()),
        other => Err(format!("end: {other:?}")),
    }
}

async fn storm(listen: &str) {
    let (left, left_inbox) = node(1, local(&[listen])).await;
    let (right, right_inbox) = node(2, local(&[listen])).await;
    echo(left_inbox.streams);
    echo(right_inbox.streams);
    let mut tasks = JoinSet::new();
    for task in 0..64 {
        let (from, to) = if task % 2 == 0 {
            (&left, &right)
        } else {
            (&right, &left)
        };
        let (net, peer, addresses) = (from.clone(), to.local(), to.listen_addresses());
        tasks.spawn(async move {
            for _ in 0..500 {
                ask(&net, peer, &addresses, &[7; 1_024]).await?;
            }
            Ok::<_, String>(())
        });
    }
    let results = timeout(3 * PATIENCE, tasks.join_all())
        .await
        .expect("the storm does not end");
    let errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(
        errors.is_empty(),
        "{} of 64: {:?}",
        errors.len(),
        errors.first()
    );
    assert_eq!(
        left.stats().streams_refused + right.stats().streams_refused,
        0
    );
    left.stop().await;
    right.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_both_ways_over_memory_lose_nothing() {
    storm(MEMORY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_both_ways_over_tcp_lose_nothing() {
    storm(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_both_ways_over_quic_lose_nothing() {
    storm(QUIC).await;
}

#[tokio::test]
async fn a_stream_can_be_read_before_anything_is_written() {
    for listen in [MEMORY, TCP, QUIC] {
        let (left, _left_inbox) = node(1, local(&[])).await;
        let (right, inbox) = node(2, local(&[listen])).await;
        echo(inbox.streams);
        let stream = left
            .open(right.local(), &right.listen_addresses(), Protocol::Call)
            .await
            .unwrap();
        let (mut reader, mut writer) = Session::new(stream, Limits::default()).split();
        let read =
            tokio::spawn(async move { reader.recv(1 << 20, Instant::now() + PATIENCE).await });
        tokio::task::yield_now().await;
        let body = vec![3; 1 << 20];
        writer.send(&body).await.unwrap();
        assert_eq!(soon(read).await.unwrap().unwrap().unwrap(), body);
    }
}

#[tokio::test]
async fn a_message_travels_only_when_it_was_accepted() {
    let (a, mut a_inbox) = node(1, local(&[])).await;
    let (b, mut b_inbox) = node(2, local(&[MEMORY])).await;
    let (c, mut c_inbox) = node(3, local(&[])).await;
    assert_eq!(a.publish("to nobody").await, Err(PublishError::Alone));
    for net in [&a, &c] {
        assert_eq!(net.dial(&b.listen_addresses()[0]).await, Ok(b.local()));
    }
    await_event(&mut a_inbox.peers, PeerEvent::Neighbour(b.local())).await;
    await_event(&mut b_inbox.peers, PeerEvent::Neighbour(c.local())).await;
    for text in ["ignored", "accepted"] {
        a.publish(text).await.unwrap();
        let gossip = soon(b_inbox.gossip.recv()).await.unwrap();
        assert_eq!(
            (gossip.source, &gossip.bytes[..]),
            (a.local(), text.as_bytes())
        );
        match text {
            "accepted" => gossip.verdict.accept(),
            _ => gossip.verdict.ignore(),
        }
    }
    assert_eq!(a.publish("accepted").await, Err(PublishError::Duplicate));
    assert_eq!(
        a.publish(vec![0; 65 * 1024]).await,
        Err(PublishError::TooLarge)
    );
    // The first thing that reaches C is what B accepted, not what it ignored before.
    let gossip = soon(c_inbox.gossip.recv()).await.unwrap();
    assert_eq!(
        (gossip.source, &gossip.bytes[..]),
        (b.local(), &b"accepted"[..])
    );
}

#[tokio::test]
async fn a_spammer_is_graylisted_after_a_few_bad_messages() {
    let (spammer, mut inbox) = node(1, local(&[])).await;
    let (victim, mut victim_inbox) = node(2, local(&[MEMORY])).await;
    spammer.dial(&victim.listen_addresses()[0]).await.unwrap();
    await_event(&mut inbox.peers, PeerEvent::Neighbour(victim.local())).await;
    let mut seen = 0;
    loop {
        spammer.publish(format!("spam {seen}")).await.unwrap();
        soon(victim_inbox.gossip.recv())
            .await
            .unwrap()
            .verdict
            .reject();
        seen += 1;
        // The second spam can only be seen after the first was judged, and so on.
        let graylisted = loop {
            match victim_inbox.peers.try_recv() {
                Ok(PeerEvent::Graylisted(peer)) => break peer == spammer.local(),
                Ok(_) => {}
                Err(_) if seen < 3 => break false,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        if graylisted {
            break;
        }
        assert!(seen < 5, "still listening after {seen} bad messages");
    }
    assert!((2..=4).contains(&seen), "{seen}");
}

#[tokio::test]
async fn unjudged_messages_are_bounded_and_forgotten() {
    let (a, mut a_inbox) = node(1, local(&[])).await;
    let mut config = local(&[MEMORY]);
    config.limits.gossip_queued = 4;
    let (b, mut inbox) = node(2, config).await;
    a.dial(&b.listen_addresses()[0]).await.unwrap();
    await_event(&mut a_inbox.peers, PeerEvent::Neighbour(b.local())).await;
    for n in 0..20 {
        a.publish(format!("message {n}")).await.unwrap();
    }
    soon(async {
        while b.stats().gossip_dropped < 16 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Dropping a message unjudged makes room again.
    for _ in 0..4 {
        drop(soon(inbox.gossip.recv()).await.unwrap());
    }
    soon(async {
        let mut n = 0;
        while inbox.gossip.try_recv().is_err() {
            n += 1;
            a.publish(format!("more {n}")).await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn streams_past_the_cap_are_refused_and_the_others_live() {
    let (left, _left_inbox) = node(1, local(&[])).await;
    let mut config = local(&[MEMORY]);
    config.limits.streams_per_peer = 3;
    let (right, mut inbox) = node(2, config).await;
    let addresses = right.listen_addresses();
    let mut kept = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..3 {
        let mut session = open(&left, &right, &addresses).await;
        session.send(b"first").await.unwrap();
        theirs.push(Session::new(
            soon(inbox.streams.recv()).await.unwrap().stream,
            Limits::default(),
        ));
        kept.push(session);
    }
    // The fourth is told so at its first read.
    let mut fourth = open(&left, &right, &addresses).await;
    fourth.send(b"first").await.ok();
    let told = soon(fourth.recv(10, Instant::now() + PATIENCE)).await;
    assert!(matches!(told, Ok(None) | Err(RecvError::Reset)), "{told:?}");
    assert_eq!(right.stats().streams_refused, 1);
    for (ours, theirs) in kept.iter_mut().zip(&mut theirs) {
        theirs.send(b"hello").await.unwrap();
        assert_eq!(
            soon(ours.recv(5, Instant::now() + PATIENCE))
                .await
                .unwrap()
                .unwrap(),
            "hello"
        );
    }
    // Room is made when a stream ends.
    drop(theirs.pop());
    let mut fifth = open(&left, &right, &addresses).await;
    fifth.send(b"first").await.unwrap();
    assert_eq!(soon(inbox.streams.recv()).await.unwrap().peer, left.local());
}

async fn open(from: &Net, to: &Net, addresses: &[String]) -> Session {
    let stream = from
        .open(to.local(), addresses, Protocol::Purchase)
        .await
        .unwrap();
    Session::new(
        stream,
        Limits {
            write: Duration::from_millis(200),
            ..Limits::default()
        },
    )
}

#[tokio::test]
async fn a_full_inbox_refuses_streams_and_does_not_stop_the_swarm() {
    let (left, _left_inbox) = node(1, local(&[])).await;
    let mut config = local(&[MEMORY]);
    config.limits.streams_queued = 2;
    let (right, inbox) = node(2, config).await;
    let addresses = right.listen_addresses();
    let mut sessions = Vec::new();
    for _ in 0..10 {
        let mut session = open(&left, &right, &addresses).await;
        session.send(b"anybody?").await.ok();
        sessions.push(session);
    }
    soon(async {
        while right.stats().streams_refused < 8 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(inbox.streams.len(), 2);
    assert_eq!(left.peers(), [right.local()]);
}

#[tokio::test]
async fn a_peer_that_stalls_meets_the_deadline_on_both_sides() {
    for listen in [MEMORY, TCP, QUIC] {
        let (left, _left_inbox) = node(1, local(&[])).await;
        let (right, mut inbox) = node(2, local(&[listen])).await;
        let mut session = open(&left, &right, &right.listen_addresses()).await;
        session.send(b"hello").await.unwrap();
        let _held = soon(inbox.streams.recv()).await.unwrap();
        let soon_over = Instant::now() + Duration::from_millis(50);
        assert_eq!(
            session.recv(1 << 20, soon_over).await,
            Err(RecvError::Deadline)
        );
        // It does not read either: its window fills.
        let mut sent = Ok(());
        for _ in 0..8 {
            sent = sent.and(session.send(&vec![0; 1 << 20]).await);
        }
        assert_eq!(sent, Err(SendError::Deadline));
    }
}

#[tokio::test]
async fn an_oversize_frame_from_a_peer_is_refused() {
    let (left, _left_inbox) = node(1, local(&[])).await;
    let (right, mut inbox) = node(2, local(&[MEMORY])).await;
    let mut session = open(&left, &right, &right.listen_addresses()).await;
    session.send(&[0; 1_000]).await.unwrap();
    let mut theirs = Session::new(
        soon(inbox.streams.recv()).await.unwrap().stream,
        Limits::default(),
    );
    let refused = soon(theirs.recv(999, Instant::now() + PATIENCE)).await;
    assert_eq!(
        refused,
        Err(RecvError::TooLarge {
            len: 1_000,
            max: 999
        })
    );
}

#[tokio::test]
async fn an_unreachable_peer_is_an_error_in_time() {
    let mut key = 0;
    let config = Config {
        open: Duration::from_millis(500),
        ..local(&[])
    };
    let (net, _inbox) = node(1, config).await;
    let mut open = async |addresses: &[&str]| {
        // A stranger each time, so that no dial is shared with the one before.
        key += 1;
        let stranger = NodeId::from_bytes([key; 32]);
        let addresses: Vec<_> = addresses.iter().map(|text| (*text).to_owned()).collect();
        let started = Instant::now();
        let error = net
            .open(stranger, &addresses, Protocol::Call)
            .await
            .unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(5));
        error
    };
    let unreachable = OpenError::Connect(ConnectError::Unreachable);
    let no_address = OpenError::Connect(ConnectError::NoAddress);
    assert_eq!(open(&["/ip4/127.0.0.1/tcp/1"]).await, unreachable);
    assert_eq!(open(&["/memory/4242"]).await, unreachable);
    // Nobody answers on UDP, and nobody says so.
    assert_eq!(
        open(&["/ip4/127.0.0.1/udp/9/quic-v1"]).await,
        OpenError::Deadline
    );
    assert_eq!(open(&[]).await, no_address);
    assert_eq!(
        open(&["nonsense", "/ip4/9.9.9.9/tcp/80/ws"]).await,
        no_address
    );
    assert_eq!(net.dial("nonsense").await, Err(ConnectError::NoAddress));
}

#[tokio::test]
async fn another_peer_at_the_address_is_not_mistaken() {
    let (left, _left_inbox) = node(1, local(&[])).await;
    let (right, _right_inbox) = node(2, local(&[TCP])).await;
    let place = right.listen_addresses()[0]
        .split("/p2p/")
        .next()
        .unwrap()
        .to_owned();
    let (absent, _absent_inbox) = node(3, local(&[])).await;
    let error = left
        .open(absent.local(), &[place], Protocol::Call)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Connect(ConnectError::WrongPeer | ConnectError::Unreachable)
        ),
        "{error:?}"
    );
    let oneself = right
        .open(right.local(), &right.listen_addresses(), Protocol::Call)
        .await;
    assert_eq!(
        oneself.unwrap_err(),
        OpenError::Connect(ConnectError::Oneself)
    );
}

#[tokio::test]
async fn many_opens_at_once_share_one_connection() {
    let (left, _left_inbox) = node(1, local(&[])).await;
    let (right, inbox) = node(2, local(&[QUIC, TCP])).await;
    echo(inbox.streams);
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let (net, peer, addresses) = (left.clone(), right.local(), right.listen_addresses());
        tasks.spawn(async move { ask(&net, peer, &addresses, b"hello").await });
    }
    assert!(
        soon(tasks.join_all())
            .await
            .into_iter()
            .all(|result| result.is_ok())
    );
    assert_eq!(
        (left.stats().connections, right.stats().connections),
        (1, 1)
    );
}

#[tokio::test]
async fn a_lost_bootstrap_peer_is_dialled_again() {
    let (first, first_inbox) = node(2, local(&[MEMORY])).await;
    let place = first.listen_addresses()[0].clone();
    let port = place.split("/p2p/").next().unwrap().to_owned();
    let (net, mut inbox) = node(
        1,
        Config {
            bootstrap: vec![place],
            ..local(&[])
        },
    )
    .await;
    await_event(&mut inbox.peers, PeerEvent::Connected(first.local())).await;
    first.stop().await;
    drop(first_inbox);
    await_event(&mut inbox.peers, PeerEvent::Disconnected(first.local())).await;
    assert!(net.peers().is_empty());
    let (again, _again_inbox) = node(2, local(&[&port])).await;
    await_event(&mut inbox.peers, PeerEvent::Connected(again.local())).await;
}

#[tokio::test]
async fn a_connection_lost_between_two_opens_is_made_again() {
    let (left, mut left_inbox) = node(1, local(&[])).await;
    let (first, inbox) = node(2, local(&[MEMORY])).await;
    echo(inbox.streams);
    let addresses = first.listen_addresses();
    ask(&left, first.local(), &addresses, b"one").await.unwrap();
    first.stop().await;
    await_event(
        &mut left_inbox.peers,
        PeerEvent::Disconnected(first.local()),
    )
    .await;
    let port = addresses[0].split("/p2p/").next().unwrap();
    let (second, inbox) = node(2, local(&[port])).await;
    echo(inbox.streams);
    ask(&left, second.local(), &addresses, b"two")
        .await
        .unwrap();
}

/// Waits until only the test itself is left.
async fn all_tasks_end() {
    let metrics = tokio::runtime::Handle::current().metrics();
    soon(async {
        while metrics.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn stop_ends_everything() {
    for listen in [MEMORY, TCP, QUIC] {
        let (left, mut left_inbox) = node(1, local(&[listen])).await;
        let (right, mut inbox) = node(2, local(&[listen])).await;
        let addresses = right.listen_addresses();
        let mut ours = open(&left, &right, &addresses).await;
        ours.send(b"hello").await.unwrap();
        let mut theirs = Session::new(
            soon(inbox.streams.recv()).await.unwrap().stream,
            Limits::default(),
        );
        assert_eq!(
            soon(theirs.recv(5, Instant::now() + PATIENCE))
                .await
                .unwrap()
                .unwrap(),
            "hello"
        );
        soon(right.stop()).await;
        // A stream held on either side ends.
        let ended = soon(ours.recv(5, Instant::now() + PATIENCE)).await;
        assert!(
            matches!(ended, Ok(None) | Err(RecvError::Reset | RecvError::Io(_))),
            "{ended:?}"
        );
        let ended = soon(theirs.recv(5, Instant::now() + PATIENCE)).await;
        assert!(
            matches!(ended, Ok(None) | Err(RecvError::Reset | RecvError::Io(_))),
            "{ended:?}"
        );
        // The inbox runs dry, and the handle says so.
        assert!(soon(inbox.streams.recv()).await.is_none());
        assert!(soon(inbox.gossip.recv()).await.is_none());
        soon(async { while inbox.peers.recv().await.is_some() {} }).await;
        let stopped = right
            .open(left.local(), &left.listen_addresses(), Protocol::Call)
            .await;
        assert_eq!(
            stopped.unwrap_err(),
            OpenError::Connect(ConnectError::Stopped)
        );
        assert_eq!(right.publish("x").await, Err(PublishError::Stopped));
        soon(right.stop()).await;
        // So does dropping the last handle.
        await_event(
            &mut left_inbox.peers,
            PeerEvent::Disconnected(right.local()),
        )
        .await;
        drop((ours, theirs, left));
        soon(async { while left_inbox.peers.recv().await.is_some() {} }).await;
        all_tasks_end().await;
    }
}

#[tokio::test]
async fn a_node_that_cannot_listen_says_where() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().unwrap().port());
    let error = Net::start([1; 32], local(&[&address])).await.err().unwrap();
    assert!(
        matches!(&error, StartError::Listen { address: named, .. } if *named == address),
        "{error:?}"
    );
    let error = Net::start([1; 32], local(&["nowhere"]))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, StartError::Address(_)));
    let error = Net::start(
        [1; 32],
        Config {
            bootstrap: vec![MEMORY.into()],
            ..local(&[])
        },
    )
    .await
    .err()
    .unwrap();
    assert!(matches!(error, StartError::Bootstrap(_)));
}
