//! Carries one transaction to its end.

use std::time::Duration;

use alloy::primitives::{B256, Bytes};
use farthing_protocol::chain::{Chain, ChainError, Outcome};
use tokio::time::Instant;

/// How long one may take; it is looked for again after a restart.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long one that met an outage waits until it is sent again.
const AGAIN: Duration = Duration::from_secs(5);

/// Sends a transaction until it is mined, however often the line breaks. Sending twice is harmless.
pub(in crate::settlement) async fn carry_through(
    chain: &Chain,
    hash: B256,
    raw: &Bytes,
    depth: u64,
) -> Result<Outcome, ChainError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match chain.broadcast(raw).await {
            Err(error) if error.is_unavailable() => {}
            Err(ChainError::NonceUsed) if chain.outcome(hash).await == Ok(None) => {
                return Err(ChainError::NonceUsed);
            }
            Err(error) => tracing::debug!(%hash, %error, "a transaction was not taken again"),
            Ok(_) => {}
        }
        match chain.wait(hash, depth, AGAIN).await {
            Err(_) if Instant::now() < end => {}
            outcome => return outcome,
        }
    }
}
