//! Prunes old receipts: one task, off the way of every purchase.
//!
//! It owns the archive's files. It never drops what money or a proof hangs on
//! ([`farthing_protocol::retention`]), works in small steps, and ends with its token.

use std::time::Duration;

use farthing_protocol::clock::Clock;
use farthing_protocol::retention::{Archive, Retention};
use tokio_util::sync::CancellationToken;

use crate::config::ReceiptsConfig;
use crate::ledger::Ledger;

/// How long after the start, and after each round, the next one is.
const ROUND: Duration = Duration::from_secs(600);

/// The keeper of the receipts.
#[derive(Debug)]
pub struct Keeper {
    ledger: Ledger,
    clock: Clock,
    retention: Retention,
    archive: Option<Archive>,
}

impl Keeper {
    /// A keeper of these books; what it archives goes below `data_dir`.
    #[must_use]
    pub fn new(
        ledger: Ledger,
        clock: Clock,
        config: &ReceiptsConfig,
        data_dir: &std::path::Path,
    ) -> Self {
        Self {
            ledger,
            clock,
            retention: Retention {
                keep: config.keep,
                most: config.most,
            },
            archive: config
                .archive
                .then(|| Archive::new(data_dir.join("receipts"))),
        }
    }

    /// Prunes from time to time until cancelled.
    pub async fn run(self, until: CancellationToken) {
        loop {
            tokio::select! {
                () = until.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
            }
            let round = self
                .ledger
                .prune(&self.retention, self.archive.as_ref(), self.clock.now());
            tokio::select! {
                // A block is archived first and dropped in one batch: it may end anywhere.
                () = until.cancelled() => return,
                pruned = round => match pruned {
                    Ok(0) => {}
                    Ok(receipts) => tracing::info!(receipts, "pruned old receipts"),
                    Err(error) => tracing::error!(%error, "receipts cannot be pruned"),
                },
            }
        }
    }
}
