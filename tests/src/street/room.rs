//! Where a seller or buyer lives: the test's own runtime, or one that can be pulled away under it.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::street::PATIENCE;

/// A room. One of its own ends, with every task in it, when it is left or dropped: a crash.
#[derive(Debug)]
pub(in crate::street) struct Room(Option<Runtime>);

impl Room {
    /// A room of its own, or a place in the caller's runtime.
    pub(in crate::street) fn new(own: bool) -> io::Result<Self> {
        let build = || {
            Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
        };
        Ok(Self(own.then(build).transpose()?))
    }

    /// Runs `work` inside.
    pub(in crate::street) async fn run<F>(&self, work: F) -> io::Result<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match &self.0 {
            Some(runtime) => runtime.spawn(work).await.map_err(io::Error::other),
            None => Ok(work.await),
        }
    }

    /// Pulls the room away: every task in it ends where it stands. Then makes it anew.
    pub(in crate::street) fn crash(&mut self) -> io::Result<()> {
        let new = Self::new(self.0.is_some())?;
        drop(std::mem::replace(self, new));
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Tries to start what lives on a disk until the crashed one before it has let go of it.
pub(in crate::street) async fn once_free<T, E, F>(
    mut start: impl FnMut() -> F,
    busy: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        match start().await {
            Err(error) if busy(&error) && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            done => return done,
        }
    }
}
