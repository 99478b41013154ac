//! Transactions on disk: written before they are sent, closed when their end is known.

use std::collections::BTreeMap;

use alloy::primitives::{B256, Bytes};
use farthing_protocol::chain::{Outcome, Prepared};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::store::{Batch, Order, Store};

use tokio::time::Instant;

use crate::ledger::records::{MINED, Mined, Pending, Purpose, RAW, RAW_PIECE, TRANSACTIONS};
use crate::settlement::SettlementError;
use crate::settlement::errand::Attempt;

/// Records a signed transaction. Broadcast it only after this.
pub(in crate::settlement) async fn record(
    store: &Store,
    prepared: &Prepared,
    purpose: Purpose,
    now: Timestamp,
) -> Result<(), SettlementError> {
    let batch = entered(Batch::new(), prepared, purpose, now)?;
    Ok(store.commit(batch).await?)
}

/// Records a signed transaction that does the work of others, which are over, all at once.
pub(in crate::settlement) async fn exchange(
    store: &Store,
    old: &[Attempt],
    new: (&Prepared, Purpose),
    now: Timestamp,
) -> Result<(), SettlementError> {
    let batch = removed(store, Batch::new(), old)?;
    let batch = entered(batch, new.0, new.1, now)?;
    Ok(store.commit(batch).await?)
}

fn entered(
    batch: Batch,
    prepared: &Prepared,
    purpose: Purpose,
    now: Timestamp,
) -> Result<Batch, SettlementError> {
    let pending = Pending {
        purpose,
        nonce: prepared.nonce,
        fees: prepared.fees,
        signed: now,
    };
    let mut batch = batch.put(&TRANSACTIONS, &prepared.hash, &pending)?;
    // One that a reorganisation took back is mined no longer.
    batch = batch.delete(&MINED, &prepared.hash);
    for (place, piece) in (0_u32..).zip(prepared.raw.chunks(RAW_PIECE)) {
        let piece = Bytes::copy_from_slice(piece).0;
        batch = batch.put(&RAW, &(prepared.hash, place), &piece)?;
    }
    Ok(batch)
}

fn removed(store: &Store, batch: Batch, attempts: &[Attempt]) -> Result<Batch, SettlementError> {
    let mut batch = batch;
    for attempt in attempts {
        batch = batch.delete(&TRANSACTIONS, &attempt.hash);
        for (key, _) in store.scan_prefix(&RAW, &attempt.hash, Order::Up, usize::MAX)? {
            batch = batch.delete(&RAW, &key);
        }
    }
    Ok(batch)
}

/// What is unfinished: the transactions of each nonce, in the order in which they were signed.
pub(in crate::settlement) type Unfinished = BTreeMap<u64, (Purpose, Vec<Attempt>)>;

/// The transactions whose end is not known.
pub(in crate::settlement) fn unfinished(store: &Store) -> Result<Unfinished, SettlementError> {
    let mut found = Unfinished::new();
    for (hash, pending) in store.scan(&TRANSACTIONS, .., Order::Up, usize::MAX)? {
        let pieces = store.scan_prefix(&RAW, &hash, Order::Up, usize::MAX)?;
        let raw: Vec<u8> = pieces.into_iter().flat_map(|(_, piece)| piece).collect();
        let attempt = Attempt {
            hash,
            raw: Bytes::from(raw),
            fees: pending.fees,
            signed: pending.signed,
            since: Instant::now(),
        };
        let (_, attempts) = found
            .entry(pending.nonce)
            .or_insert((pending.purpose, Vec::new()));
        attempts.push(attempt);
    }
    for (_, attempts) in found.values_mut() {
        attempts.sort_by_key(|attempt| (attempt.fees.max, attempt.signed));
    }
    Ok(found)
}

/// Enters the end of an errand: what was mined, if anything was.
pub(in crate::settlement) async fn close(
    store: &Store,
    attempts: &[Attempt],
    mined: Option<(B256, Mined)>,
) -> Result<(), SettlementError> {
    let mut batch = removed(store, Batch::new(), attempts)?;
    if let Some((hash, mined)) = mined {
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
