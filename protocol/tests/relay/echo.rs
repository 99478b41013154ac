//! A peer that answers every frame with itself, and who asks it.

use std::time::Duration;

use farthing_protocol::{
    identity::NodeId,
    net::{
        Incoming, Net, Protocol,
        session::{Limits, Session},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Answers every frame with itself.
pub(crate) fn echo(mut streams: mpsc::Receiver<Incoming>) {
    tokio::spawn(async move {
        while let Some(incoming) = streams.recv().await {
            tokio::spawn(async move {
                let mut session = Session::new(incoming.stream, Limits::default());
                while let Ok(Some(frame)) = session.recv(1 << 20, Instant::now() + PATIENCE).await {
                    if session.send(&frame).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Sends `frames` frames of 64 KiB on one stream and has them back.
pub(crate) async fn exchange(
    net: &Net,
    peer: NodeId,
    at: &[String],
    frames: usize,
) -> Result<(), String> {
    let stream = net.open(peer, at, Protocol::Purchase).await;
    let mut session = Session::new(stream.map_err(|e| e.to_string())?, Limits::default());
    for n in 0..frames {
        let frame = vec![n as u8; 64 * 1024];
        session
            .send(&frame)
            .await
            .map_err(|e| format!("{n}: {e}"))?;
        let back = session.recv(1 << 20, Instant::now() + PATIENCE).await;
        match back {
            Ok(Some(back)) if back == frame => {}
            other => return Err(format!("{n}: {:?}", other.map(|frame| frame.is_some()))),
        }
    }
    Ok(())
}
