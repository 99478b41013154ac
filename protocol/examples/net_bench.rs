//! What a stream costs: `cargo run --release --example net_bench --features net`.
//! Two nodes in one process; each request opens a stream, sends 1 KiB and reads 1 KiB.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::time::Duration;

use farthing_protocol::net::{
    Config, Inbox, Net, Protocol, Reach,
    session::{Limits, Session},
};
use tokio::{task::JoinSet, time::Instant};

const BODY: [u8; 1_024] = [7; 1_024];

async fn node(seed: u8, listen: Vec<String>) -> (Net, Inbox) {
    Net::start(
        [seed; 32],
        Config {
            listen,
            reach: Reach::Local,
            ..Config::default()
        },
    )
    .await
    .unwrap()
}

async fn request(net: &Net, server: &Net, addresses: &[String]) -> Duration {
    let started = Instant::now();
    let stream = net
        .open(server.local(), addresses, Protocol::Purchase)
        .await
        .unwrap();
    let mut session = Session::new(stream, Limits::default());
    session.send(&BODY).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    session.recv(BODY.len(), deadline).await.unwrap().unwrap();
    started.elapsed()
}

async fn measure(name: &str, listen: &str) {
    let (server, mut inbox) = node(1, vec![listen.into()]).await;
    let (client, _inbox) = node(2, Vec::new()).await;
    tokio::spawn(async move {
        while let Some(incoming) = inbox.streams.recv().await {
            tokio::spawn(async move {
                let mut session = Session::new(incoming.stream, Limits::default());
                let deadline = Instant::now() + Duration::from_secs(30);
                let body = session.recv(BODY.len(), deadline).await.unwrap().unwrap();
                session.send(&body).await.unwrap();
            });
        }
    });
    let addresses = server.listen_addresses();
    let started = Instant::now();
    client.dial(&addresses[0]).await.unwrap();
    let connect = started.elapsed();
    let mut alone = Vec::new();
    for n in 0..12_000 {
        let took = request(&client, &server, &addresses).await;
        if n >= 2_000 {
            alone.push(took);
        }
    }
    alone.sort();
    let (tasks, each) = (64, 2_000);
    let started = Instant::now();
    let mut crowd = JoinSet::new();
    for _ in 0..tasks {
        let (client, server, addresses) = (client.clone(), server.clone(), addresses.clone());
        crowd.spawn(async move {
            for _ in 0..each {
                request(&client, &server, &addresses).await;
            }
        });
    }
    crowd.join_all().await;
    let rate = f64::from(tasks * each) / started.elapsed().as_secs_f64();
    println!(
        "{name:7} connect {connect:?}; alone p50 {:?} p99 {:?}; 64 at once {rate:.0}/s, refused {}",
        alone[alone.len() / 2],
        alone[alone.len() * 99 / 100],
        server.stats().streams_refused,
    );
    client.stop().await;
    server.stop().await;
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    measure("memory", "/memory/0").await;
    measure("tcp", "/ip4/127.0.0.1/tcp/0").await;
    measure("quic", "/ip4/127.0.0.1/udp/0/quic-v1").await;
}
