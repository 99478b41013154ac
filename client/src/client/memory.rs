//! Keeps what was measured on disk: now and then and at the end, off the way of every purchase.

use std::time::Duration;

use farthing_protocol::store::{Batch, Order, ReadError, Store};
use tokio_util::sync::CancellationToken;

use crate::market::{MEASURED, Market};

/// How often.
const ROUND: Duration = Duration::from_secs(60);
/// Rows written at once.
const TOGETHER: usize = 32;

/// A living part without questions.
pub(in crate::client) struct Memory {
    market: Market,
    store: Store,
}

impl Memory {
    /// Reads back what was measured before this start.
    ///
    /// # Errors
    /// [`ReadError`].
    pub(in crate::client) fn open(market: Market, store: Store) -> Result<Self, ReadError> {
        market.load(store.scan(&MEASURED, .., Order::Up, usize::MAX)?);
        Ok(Self { market, store })
    }

    /// Ends when its token is cancelled, after a last round.
    pub(in crate::client) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(ROUND) => self.write().await,
            }
        }
        self.write().await;
    }

    /// Measurements are worth no error of their own: when the disk fails, purchases say so.
    async fn write(&self) {
        let changes = self.market.unwritten();
        for some in changes.chunks(TOGETHER) {
            let mut batch = Batch::new();
            for (key, memo) in some {
                let put = match memo {
                    Some(memo) => batch.put(&MEASURED, key, memo),
                    None => Ok(batch.delete(&MEASURED, key)),
                };
                batch = match put {
                    Ok(batch) => batch,
                    Err(error) => {
                        return tracing::warn!(%error, "measurements cannot be kept");
                    }
                };
            }
            if let Err(error) = self.store.commit(batch).await {
                return tracing::warn!(%error, "measurements cannot be kept");
            }
        }
    }
}
