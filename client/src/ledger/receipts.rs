//! The receipts of every channel: as rows, and as the tree whose root both sides sign.
//!
//! Mirrors the seller's. The tree grows by the receipts that are booked without a gap; those that
//! parallel purchases brought ahead of their turn wait for it in memory.

use std::collections::BTreeMap;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::history::{BLOCK, BLOCK_LEVEL, History, leaf_of};
use farthing_protocol::merkle::{Node, Peaks, Proof};
use farthing_protocol::purchase::RequestId;
use farthing_protocol::receipt::{SignedReceipt, VerifiedReceipt};
use farthing_protocol::root::{CoSigned, ReceiptRoot, SignedRoot};
use farthing_protocol::store::{Batch, BatchError, Order, ReadError};
use farthing_protocol::x402::ChannelId;

use crate::ledger::{
    CHANNELS, CONTRADICTIONS, DOUBLES, Fate, Kept, Ledger, LedgerError, MODEL_DAYS, NODES,
    RECEIPTS, REQUESTS, ROOTS, Standing,
};

/// The tree over a channel's receipts, as far as it is in memory.
#[derive(Debug, Default)]
pub(in crate::ledger) enum Tree {
    /// Not needed yet since the start.
    #[default]
    Unread,
    /// Up to the last receipt that is booked without a gap.
    Known(History),
    /// Rows are missing that it would have to be read from: no root is signed on this channel.
    Lost,
}

/// Adds the nodes that receipts have completed to their batch.
pub(in crate::ledger) fn keep(
    id: ChannelId,
    nodes: &[Node],
    mut batch: Batch,
) -> Result<Batch, BatchError> {
    for node in nodes {
        batch = batch.put(&NODES, &(id.0, (node.level, node.index)), &node.hash)?;
    }
    Ok(batch)
}

/// Why a part of a tree cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Gap {
    /// It is not there (any more).
    #[error("a part of the channel's receipts is not in the books")]
    Missing,
    /// The store.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Ledger {
    /// The receipt of one purchase.
    ///
    /// # Errors
    /// The store's.
    pub fn receipt(&self, request: RequestId) -> Result<Option<Kept>, LedgerError> {
        let Some(place) = self.store.get(&REQUESTS, &request.0)? else {
            return Ok(None);
        };
        Ok(self.store.get(&RECEIPTS, &place)?)
    }

    /// The newest receipts of a channel.
    ///
    /// # Errors
    /// The store's.
    pub fn newest_receipts(&self, id: ChannelId, limit: usize) -> Result<Vec<Kept>, LedgerError> {
        let range = (id.0, 0)..=(id.0, u64::MAX);
        let rows = self.store.scan(&RECEIPTS, range, Order::Down, limit)?;
        Ok(rows.into_iter().map(|(_, kept)| kept).collect())
    }

    /// The receipts of a channel before `end`, the newest first.
    ///
    /// # Errors
    /// The store's.
    pub fn receipts_before(
        &self,
        id: ChannelId,
        end: u64,
        limit: usize,
    ) -> Result<Vec<Kept>, LedgerError> {
        let rows = self
            .store
            .scan(&RECEIPTS, (id.0, 0)..(id.0, end), Order::Down, limit)?;
        Ok(rows.into_iter().map(|(_, kept)| kept).collect())
    }

    /// What was charged on each day (UTC, days since the epoch) from `from` on.
    ///
    /// # Errors
    /// The store's.
    pub fn charged_by_day(&self, from: u64) -> Result<BTreeMap<u64, Amount>, LedgerError> {
        let range = (from, B256::ZERO)..;
        let rows = self.store.scan(&MODEL_DAYS, range, Order::Up, usize::MAX)?;
        let mut days: BTreeMap<u64, Amount> = BTreeMap::new();
        for ((day, _), charged) in rows {
            let sum = days.entry(day).or_default();
            *sum = sum.saturating_add(charged);
        }
        Ok(days)
    }

    /// The receipts of a channel from `from` on.
    ///
    /// # Errors
    /// The store's.
    pub fn receipts(
        &self,
        id: ChannelId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Kept>, LedgerError> {
        let range = (id.0, from)..=(id.0, u64::MAX);
        let rows = self.store.scan(&RECEIPTS, range, Order::Up, limit)?;
        Ok(rows.into_iter().map(|(_, kept)| kept).collect())
    }

    /// Reads a channel's tree if it has not been since the start. Whoever appends calls it before:
    /// until one has, all the channel's booked receipts are on disk.
    pub(in crate::ledger) fn read_tree(&self, id: ChannelId) -> Result<(), LedgerError> {
        let Some(count) = self.books().unread(id)? else {
            return Ok(());
        };
        let tree = match self.history(id, count) {
            Ok(history) => Tree::Known(history),
            Err(Gap::Missing) => {
                tracing::warn!(channel = %id.short(), "receipts are missing; no roots are signed on this channel");
                Tree::Lost
            }
            Err(Gap::Read(error)) => return Err(error.into()),
        };
        self.books().plant(id, tree);
        Ok(())
    }

    /// The tree over the first `count` receipts, from what is on disk.
    ///
    /// # Errors
    /// [`Gap`].
    pub fn history(&self, id: ChannelId, count: u64) -> Result<History, Gap> {
        let total = match count.checked_sub(1) {
            None => None,
            Some(last) => {
                let last = self.store.get(&RECEIPTS, &(id.0, last))?;
                Some(last.ok_or(Gap::Missing)?.receipt.receipt.cumulative)
            }
        };
        let peaks = Peaks::read(count, |level, index| self.block(id, level, index))?;
        Ok(History::resume(id, peaks, total))
    }

    /// The proof that receipt `seq` is among the first `count`; `None` if it cannot be.
    ///
    /// # Errors
    /// [`Gap`].
    pub fn proof(&self, id: ChannelId, seq: u64, count: u64) -> Result<Option<Proof>, Gap> {
        Proof::read(seq, count, |level, index| self.block(id, level, index))
    }

    /// One complete part of a tree: a row from [`BLOCK_LEVEL`] up, hashed from receipts below.
    fn block(&self, id: ChannelId, level: u8, index: u64) -> Result<B256, Gap> {
        if level >= BLOCK_LEVEL {
            let row = self.store.get(&NODES, &(id.0, (level, index)))?;
            return row.ok_or(Gap::Missing);
        }
        let size = 1_u64 << level;
        let from = index.checked_mul(size).ok_or(Gap::Missing)?;
        let range = (id.0, from)..(id.0, from.saturating_add(size));
        let rows = self
            .store
            .scan(&RECEIPTS, range, Order::Up, BLOCK as usize)?;
        let mut peaks = Peaks::default();
        for (_, kept) in &rows {
            peaks.push(leaf_of(&kept.receipt.receipt), |_| {});
        }
        let whole = peaks.count() == size;
        peaks.root().filter(|_| whole).ok_or(Gap::Missing)
    }

    /// The root over a channel's receipts, if it is time to sign it: many receipts are under none,
    /// or some and none was asked for a while ago. All it covers is on disk when this returns.
    ///
    /// # Errors
    /// The store's.
    pub async fn due_root(
        &self,
        id: ChannelId,
        now: Timestamp,
    ) -> Result<Option<ReceiptRoot>, LedgerError> {
        self.read_tree(id)?;
        let due = self.books().due_root(id, now);
        self.landed(due).await
    }

    /// The root over all of a channel's receipts that no root covers yet, due or not.
    ///
    /// # Errors
    /// The store's.
    pub async fn whole_root(&self, id: ChannelId) -> Result<Option<ReceiptRoot>, LedgerError> {
        self.read_tree(id)?;
        let due = self.books().whole_root(id);
        self.landed(due).await
    }

    /// Waits until the receipts under a root are on disk.
    async fn landed(&self, root: Option<ReceiptRoot>) -> Result<Option<ReceiptRoot>, LedgerError> {
        if root.is_some() {
            self.written().await?;
        }
        Ok(root)
    }

    /// Keeps a root that both sides have signed, if it is newer than the one there is. It is on its
    /// way to disk when this returns: losing it in a crash loses nothing, the seller signs again.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], the store's.
    pub async fn cosign(&self, root: CoSigned) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let id = root.root.channel;
        let mut books = self.books();
        if books.cosign(root)? {
            permit.later(Batch::new().put(&ROOTS, &id.0, &root)?)?;
        }
        Ok(())
    }

    /// The newest root that both sides have signed.
    #[must_use]
    pub fn root(&self, id: ChannelId) -> Option<CoSigned> {
        self.books().root(id)
    }

    /// Keeps what a seller has signed against its own receipts, and freezes the channel.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], the store's.
    pub async fn contradict(&self, theirs: SignedRoot) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let id = theirs.message.channel;
        let durable = {
            let mut books = self.books();
            let account = books.update(id, |account| {
                account.standing = Standing::Frozen;
                Ok(())
            })?;
            let batch = Batch::new()
                .put(&CONTRADICTIONS, &id.0, &theirs)?
                .put(&CHANNELS, &id.0, &account)?;
            permit.commit(batch)
        };
        Ok(durable.await?)
    }

    /// Makes no more promises on a channel: its seller is not to be believed.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], the store's.
    pub async fn freeze(&self, id: ChannelId) -> Result<(), LedgerError> {
        let frozen = self.update(id, |account| {
            account.standing = Standing::Frozen;
            Ok(())
        });
        frozen.await.map(drop)
    }

    /// A receipt whose place is taken: the one that was booked, or evidence. A receipt for money
    /// that is still set aside was booked nowhere.
    pub(in crate::ledger) async fn repeated(
        &self,
        receipt: &VerifiedReceipt,
    ) -> Result<Fate, LedgerError> {
        let signed = receipt.signed();
        let (id, seq) = (signed.receipt.channel, signed.receipt.seq);
        // What was booked a moment ago is on its way to disk.
        self.store.commit(Batch::new()).await?;
        let booked = self.store.get(&RECEIPTS, &(id.0, seq))?;
        let other = match booked {
            Some(kept) => kept.receipt.receipt != signed.receipt,
            None => self.books().holds(id, signed.receipt.request),
        };
        if !other {
            return Ok(Fate::Known);
        }
        let permit = self.store.reserve().await?;
        let durable = {
            let mut books = self.books();
            let account = books.update(id, |account| {
                account.standing = Standing::Frozen;
                Ok(())
            })?;
            let batch = Batch::new()
                .put(&DOUBLES, &(id.0, seq), signed)?
                .put(&CHANNELS, &id.0, &account)?;
            permit.commit(batch)
        };
        durable.await?;
        self.release(id, signed.receipt.request);
        tracing::error!(channel = %id.short(), seq, "a seller has signed two receipts for one place and is not used again");
        Ok(Fate::Double)
    }

    /// Receipts of a channel that its seller has signed beside the ones at their places.
    ///
    /// # Errors
    /// The store's.
    pub fn doubles(&self, id: ChannelId) -> Result<Vec<SignedReceipt>, LedgerError> {
        let rows = self
            .store
            .scan_prefix(&DOUBLES, &id.0, Order::Up, usize::MAX)?;
        Ok(rows.into_iter().map(|(_, signed)| signed).collect())
    }

    /// What the seller of a channel has signed against its own receipts.
    ///
    /// # Errors
    /// The store's.
    pub fn contradiction(&self, id: ChannelId) -> Result<Option<SignedRoot>, LedgerError> {
        Ok(self.store.get(&CONTRADICTIONS, &id.0)?)
    }
}
