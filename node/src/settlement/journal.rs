//! Transactions on disk: written before they are sent, closed when their end is known.

use alloy::primitives::{B256, Bytes};
use farthing_protocol::chain::{Outcome, Prepared};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::store::{Batch, Order, Store};

use crate::ledger::records::{MINED, Mined, Pending, Purpose, RAW, RAW_PIECE, TRANSACTIONS};
use crate::settlement::SettlementError;

/// Records a signed transaction. Broadcast it only after this.
pub(in crate::settlement) async fn record(
    store: &Store,
    prepared: &Prepared,
    purpose: Purpose,
    now: Timestamp,
) -> Result<(), SettlementError> {
    let pending = Pending {
        purpose,
        nonce: prepared.nonce,
        signed: now,
    };
    let mut batch = Batch::new().put(&TRANSACTIONS, &prepared.hash, &pending)?;
    for (place, piece) in (0_u32..).zip(prepared.raw.chunks(RAW_PIECE)) {
        let piece = bytes::Bytes::copy_from_slice(piece);
        batch = batch.put(&RAW, &(prepared.hash, place), &piece)?;
    }
    Ok(store.commit(batch).await?)
}

/// The transactions whose end is not known, with their raw bytes.
pub(in crate::settlement) fn unfinished(
    store: &Store,
) -> Result<Vec<(B256, Pending, Bytes)>, SettlementError> {
    let pending = store.scan(&TRANSACTIONS, .., Order::Up, usize::MAX)?;
    let with_raw = pending.into_iter().map(|(hash, pending)| {
        let pieces = store.scan_prefix(&RAW, &hash, Order::Up, usize::MAX)?;
        let raw: Vec<u8> = pieces.into_iter().flat_map(|(_, piece)| piece).collect();
        Ok((hash, pending, Bytes::from(raw)))
    });
    with_raw.collect()
}

/// Enters the end of a transaction.
pub(in crate::settlement) async fn close(
    store: &Store,
    hash: B256,
    mined: Option<Mined>,
) -> Result<(), SettlementError> {
    let mut batch = Batch::new().delete(&TRANSACTIONS, &hash);
    for (key, _) in store.scan_prefix(&RAW, &hash, Order::Up, usize::MAX)? {
        batch = batch.delete(&RAW, &key);
    }
    if let Some(mined) = mined {
        batch = batch.put(&MINED, &hash, &mined)?;
    }
    Ok(store.commit(batch).await?)
}

/// The record of a mined transaction.
pub(in crate::settlement) const fn mined(
    purpose: Purpose,
    outcome: Outcome,
    seen: Timestamp,
) -> Mined {
    Mined {
        purpose,
        block: outcome.block,
        success: outcome.success,
        seen,
    }
}
