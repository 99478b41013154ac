//! A peer that answers every frame with itself.

use std::time::Duration;

use farthing_protocol::net::{
    Incoming,
    session::{Limits, Session},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Looks until it holds; for facts that announce themselves nowhere.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let look = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, look).await.is_ok(), "not in time: {what}");
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
