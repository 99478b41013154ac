//! Real QUIC through a line that loses, delays and reorders packets: a proxy in user space, from
//! one seed.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use farthing_protocol::net::{
    Config, Net, Protocol, Reach,
    session::{Limits, Session},
};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep},
};

use crate::echo::{PATIENCE, echo};

/// Packets of a thousand that are lost.
const LOSS: u64 = 30;

/// A line to `server`, which begins at the returned address; counts what it lost.
async fn line(server: SocketAddr, lost: Arc<AtomicU64>) -> SocketAddr {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let at = front.local_addr().unwrap();
    tokio::spawn(async move {
        let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut packet = vec![0; 65_536];
        let mut random = 7;
        while let Ok((length, from)) = front.recv_from(&mut packet).await {
            let back = match backs.get(&from) {
                Some(back) => Arc::clone(back),
                None => {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    let both = (Arc::clone(&back), Arc::clone(&front));
                    tokio::spawn(returning(both, from, Arc::clone(&lost)));
                    backs.insert(from, Arc::clone(&back));
                    back
                }
            };
            carry(
                (back, server),
                packet[..length].to_vec(),
                &mut random,
                &lost,
            );
        }
    });
    at
}

async fn returning(
    (back, front): (Arc<UdpSocket>, Arc<UdpSocket>),
    to: SocketAddr,
    lost: Arc<AtomicU64>,
) {
    let mut packet = vec![0; 65_536];
    let mut random = 11;
    while let Ok((length, _)) = back.recv_from(&mut packet).await {
        let packet = packet[..length].to_vec();
        carry((Arc::clone(&front), to), packet, &mut random, &lost);
    }
}

/// Sends a packet later, or never. Packets overtake each other.
fn carry(
    (socket, to): (Arc<UdpSocket>, SocketAddr),
    packet: Vec<u8>,
    random: &mut u64,
    lost: &AtomicU64,
) {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    let (dice, jitter) = ((*random >> 33) % 1_000, (*random >> 45) % 10);
    if dice < LOSS {
        lost.fetch_add(1, Ordering::Relaxed);
        return;
    }
    tokio::spawn(async move {
        sleep(Duration::from_millis(10 + jitter)).await;
        // A socket that is closed by now has nobody behind it.
        socket.send_to(&packet, to).await.ok();
    });
}

fn local(listen: &[&str]) -> Config {
    Config {
        listen: listen.iter().map(|text| (*text).to_owned()).collect(),
        reach: Reach::Local,
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quic_stream_through_loss_delay_and_reordering_is_whole() {
    let quic = "/ip4/127.0.0.1/udp/0/quic-v1";
    let (seller, inbox) = Net::start([1; 32], local(&[quic])).await.unwrap();
    let address = &seller.listen_addresses()[0];
    let port = address.split('/').nth(4).unwrap().parse().unwrap();
    let lost = Arc::new(AtomicU64::new(0));
    let server = SocketAddr::from(([127, 0, 0, 1], port));
    let at = line(server, Arc::clone(&lost)).await;
    echo(inbox.streams);
    let (buyer, _inbox) = Net::start([2; 32], local(&[])).await.unwrap();
    let through = format!("/ip4/127.0.0.1/udp/{}/quic-v1", at.port());
    let stream = buyer
        .open(seller.local(), &[through], Protocol::Purchase)
        .await
        .unwrap();
    let mut session = Session::new(stream, Limits::default());
    for n in 0..32_u8 {
        let frame = vec![n; 32 * 1024];
        session.send(&frame).await.unwrap();
        let back = session
            .recv(1 << 20, Instant::now() + PATIENCE)
            .await
            .unwrap();
        assert!(back.unwrap() == frame, "frame {n}");
    }
    assert!(lost.load(Ordering::Relaxed) > 10, "the line was good");
    buyer.stop().await;
    seller.stop().await;
}
