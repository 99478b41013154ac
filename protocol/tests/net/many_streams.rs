//! More streams than one connection carries, and readers that stop among many.

use farthing_protocol::net::{
    Config, Inbox, Incoming, Net, OpenError, Protocol, Reach,
    session::{Limits, Session},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::echo::{PATIENCE, echo, soon};

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// What we open to one peer at most.
const MOST: usize = 3_072;
/// Readers that stop.
const STOPPED: usize = 64;
/// What each of them is sent before its window is full, at least.
const WINDOW: usize = 96 * 1024;
const FRAME: usize = 16 * 1024;

fn config(listen: &[&str]) -> Config {
    let mut config = Config {
        listen: listen.iter().map(|text| (*text).to_owned()).collect(),
        reach: Reach::Local,
        ..Config::default()
    };
    config.limits.streams_per_peer = 2 * MOST;
    config
}

async fn pair(listen: &str) -> (Net, Net, Inbox) {
    let (left, _) = Net::start([1; 32], config(&[])).await.unwrap();
    let (right, inbox) = Net::start([2; 32], config(&[listen])).await.unwrap();
    left.dial(&right.listen_addresses()[0]).await.unwrap();
    (left, right, inbox)
}

async fn open(from: &Net, to: &Net) -> Result<Session, OpenError> {
    let stream = from.open(to.local(), &[], Protocol::Purchase).await?;
    Ok(Session::new(stream, Limits::default()))
}

async fn is_answered(session: &mut Session) {
    session.send(b"hello").await.unwrap();
    let answer = session.recv(5, Instant::now() + PATIENCE).await;
    assert_eq!(answer.unwrap().unwrap(), "hello");
}

/// Past what a connection carries yamux would end it, and every stream on it.
async fn one_more_than_a_connection_carries(listen: &str) {
    let (left, right, inbox) = pair(listen).await;
    echo(inbox.streams);
    let mut sessions = Vec::new();
    for _ in 0..MOST {
        let mut session = soon(open(&left, &right)).await.unwrap();
        soon(is_answered(&mut session)).await;
        sessions.push(session);
    }
    let refused = soon(open(&left, &right)).await;
    assert_eq!(refused.err(), Some(OpenError::Full));
    for session in [0, MOST - 1] {
        soon(is_answered(&mut sessions[session])).await;
    }
    assert_eq!(right.stats().streams_refused, 0);
    drop(sessions.pop());
    let mut session = soon(open(&left, &right)).await.unwrap();
    soon(is_answered(&mut session)).await;
    left.stop().await;
    right.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_more_than_a_tcp_connection_carries_is_refused_and_the_others_live() {
    one_more_than_a_connection_carries(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_more_than_a_quic_connection_carries_is_refused_and_the_others_live() {
    one_more_than_a_connection_carries(QUIC).await;
}

/// Sends without end on the first streams, and counts; answers on all others.
fn flood(mut streams: mpsc::Receiver<Incoming>, sent: watch::Sender<Vec<usize>>) {
    tokio::spawn(async move {
        for number in 0.. {
            let Some(incoming) = streams.recv().await else {
                return;
            };
            let mut session = Session::new(incoming.stream, Limits::default());
            let sent = sent.clone();
            tokio::spawn(async move {
                if number >= STOPPED {
                    let frame = session.recv(5, Instant::now() + PATIENCE).await;
                    return session.send(&frame.unwrap().unwrap()).await.unwrap();
                }
                while session.send(&[7; FRAME]).await.is_ok() {
                    sent.send_modify(|all| all[number] += FRAME);
                }
            });
        }
    });
}

/// Readers that have stopped, each with a full window of its own, leave room for the others.
async fn readers_that_stop(listen: &str) {
    let (left, right, inbox) = pair(listen).await;
    let (sent, mut counts) = watch::channel(vec![0; STOPPED]);
    flood(inbox.streams, sent);
    let mut stopped = Vec::new();
    for _ in 0..STOPPED {
        let mut session = soon(open(&left, &right)).await.unwrap();
        // Until a first word the stream is not announced.
        session.send(b"").await.unwrap();
        stopped.push(session);
    }
    let full = |all: &Vec<usize>| all.iter().all(|sent| *sent >= WINDOW);
    soon(counts.wait_for(full)).await.unwrap();
    let mut session = soon(open(&left, &right)).await.unwrap();
    soon(is_answered(&mut session)).await;
    left.stop().await;
    right.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_hold_up_nobody_else_over_tcp() {
    readers_that_stop(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_hold_up_nobody_else_over_quic() {
    readers_that_stop(QUIC).await;
}
