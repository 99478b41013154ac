//! The receipts of every channel: as rows, and as the tree whose root both sides sign.
//!
//! In memory a channel keeps the peaks of its tree and the last few leaves; on disk every 64th
//! receipt writes, in its own batch, the nodes it completes. What lies between is hashed again
//! from the rows when a channel's tree is first needed after a start, so nothing can diverge.

use std::ops::Bound;

use alloy::primitives::B256;
use farthing_protocol::eip712::Verified;
use farthing_protocol::history::{BLOCK, BLOCK_LEVEL, History, Trail, leaf_of};
use farthing_protocol::merkle::{Node, Peaks};
use farthing_protocol::receipt::Receipt;
use farthing_protocol::root::{CoSigned, ReceiptRoot};
use farthing_protocol::store::{Batch, BatchError, Order, ReadError};
use farthing_protocol::x402::ChannelId;

use crate::ledger::{Ledger, LedgerError, NODES, RECEIPTS, ROOTS};

/// The tree over a channel's receipts, as far as it is in memory.
#[derive(Debug, Default)]
pub(in crate::ledger) enum Tree {
    /// Not needed yet since the start.
    #[default]
    Unread,
    /// Up to the newest receipt.
    Known(Box<Trail>),
    /// Rows are missing that it would have to be read from: no root is signed on this channel.
    Lost,
}

impl Tree {
    /// Appends a receipt to the tree, and the nodes it completes to its batch.
    pub(in crate::ledger) fn append(
        &mut self,
        receipt: &Receipt,
        batch: Batch,
    ) -> Result<Batch, BatchError> {
        let Self::Known(trail) = self else {
            return Ok(batch);
        };
        match trail.push(receipt) {
            Ok(nodes) => keep(receipt.channel, &nodes, batch),
            Err(error) => {
                // Our own books made it: a defect, and no reason to stop selling.
                tracing::error!(channel = %receipt.channel.short(), %error, "a receipt does not follow; no more roots are signed here");
                *self = Self::Lost;
                Ok(batch)
            }
        }
    }
}

fn keep(id: ChannelId, nodes: &[Node], mut batch: Batch) -> Result<Batch, BatchError> {
    for node in nodes {
        batch = batch.put(&NODES, &(id.0, (node.level, node.index)), &node.hash)?;
    }
    Ok(batch)
}

/// Why a part of a tree cannot be had.
#[derive(Debug)]
enum Gap {
    /// It is not there (any more).
    Missing,
    /// The store.
    Read(ReadError),
}

impl From<ReadError> for Gap {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// How a buyer's root compares with our receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// It is ours.
    Same,
    /// It is too old or too new to say.
    Later,
    /// Ours is this one.
    Differs(ReceiptRoot),
}

impl Ledger {
    /// A channel's receipts from `from` on, in order, at most `limit`.
    ///
    /// # Errors
    /// The store's.
    pub fn receipts(
        &self,
        id: ChannelId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Receipt>, LedgerError> {
        let range = (id.0, from)..=(id.0, u64::MAX);
        let rows = self.store.scan(&RECEIPTS, range, Order::Up, limit)?;
        Ok(rows.into_iter().map(|(_, receipt)| receipt).collect())
    }

    /// One receipt, if it is in the books.
    ///
    /// # Errors
    /// The store's.
    pub fn receipt(&self, id: ChannelId, seq: u64) -> Result<Option<Receipt>, LedgerError> {
        Ok(self.store.get(&RECEIPTS, &(id.0, seq))?)
    }

    /// The receipts of all channels that come after a place, at most `limit`, in the order of
    /// channels and of their places.
    ///
    /// # Errors
    /// The store's.
    pub fn receipts_after(
        &self,
        id: ChannelId,
        seq: u64,
        limit: usize,
    ) -> Result<Vec<Receipt>, LedgerError> {
        let range = (Bound::Excluded((id.0, seq)), Bound::Unbounded);
        let rows = self.store.scan(&RECEIPTS, range, Order::Up, limit)?;
        Ok(rows.into_iter().map(|(_, receipt)| receipt).collect())
    }

    /// Reads a channel's tree if it has not been since the start. Whoever appends calls it before:
    /// until one has, all the channel's receipts are on disk.
    pub(in crate::ledger) fn read_tree(&self, id: ChannelId) -> Result<(), LedgerError> {
        let count = {
            let mut books = self.books();
            let entry = books.entry(id)?;
            match entry.tree {
                Tree::Unread => entry.record.channel.receipts(),
                Tree::Known(_) | Tree::Lost => return Ok(()),
            }
        };
        let tree = match self.history(id, count) {
            Ok(history) => Tree::Known(Box::new(history.into())),
            Err(Gap::Missing) => {
                tracing::warn!(channel = %id.short(), "receipts are missing; no roots are signed on this channel");
                Tree::Lost
            }
            Err(Gap::Read(error)) => return Err(error.into()),
        };
        let mut books = self.books();
        let entry = books.entry(id)?;
        if matches!(entry.tree, Tree::Unread) {
            entry.tree = tree;
        }
        Ok(())
    }

    fn history(&self, id: ChannelId, count: u64) -> Result<History, Gap> {
        let total = match count.checked_sub(1) {
            None => None,
            Some(last) => {
                let last = self.store.get(&RECEIPTS, &(id.0, last))?;
                Some(last.ok_or(Gap::Missing)?.cumulative)
            }
        };
        let peaks = Peaks::read(count, |level, index| self.block(id, level, index))?;
        Ok(History::resume(id, peaks, total))
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
        for (_, receipt) in &rows {
            peaks.push(leaf_of(receipt), |_| {});
        }
        let whole = peaks.count() == size;
        peaks.root().filter(|_| whole).ok_or(Gap::Missing)
    }

    /// Compares a root that the channel's key has signed with our own receipts.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], the store's.
    pub fn compare(&self, root: &Verified<ReceiptRoot>) -> Result<Compared, LedgerError> {
        self.read_tree(root.channel)?;
        let mut books = self.books();
        let Tree::Known(trail) = &books.entry(root.channel)?.tree else {
            return Ok(Compared::Later);
        };
        Ok(match trail.root_at(root.count) {
            Some(own) if own == **root => Compared::Same,
            Some(own) => Compared::Differs(own),
            None => Compared::Later,
        })
    }

    /// Keeps a root that both sides have signed, if it is newer than the one there is. It is on its
    /// way to disk when this returns, before whatever is sent after it: losing it in a crash loses
    /// nothing, the buyer asks again.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], the store's.
    pub async fn cosign(&self, root: CoSigned) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let id = root.root.channel;
        let mut books = self.books();
        let entry = books.entry(id)?;
        if root.root.count > entry.covered() {
            let batch = Batch::new().put(&ROOTS, &id.0, &root)?;
            entry.root = Some(root);
            permit.later(batch)?;
        }
        Ok(())
    }

    /// The newest root that both sides have signed.
    #[must_use]
    pub fn root(&self, id: ChannelId) -> Option<CoSigned> {
        self.books().channels.get(&id).and_then(|entry| entry.root)
    }

    /// The tree at the last whole block under a root: what a buyer that lost its books begins
    /// with. Nothing if rows are missing.
    ///
    /// # Errors
    /// The store's.
    pub fn peaks_under(&self, root: &ReceiptRoot) -> Result<Vec<B256>, LedgerError> {
        let count = root.count - root.count % BLOCK;
        let peaks = Peaks::read(count, |level, index| self.block(root.channel, level, index));
        match peaks {
            Ok(peaks) => Ok(peaks.hashes().to_vec()),
            Err(Gap::Missing) => Ok(Vec::new()),
            Err(Gap::Read(error)) => Err(error.into()),
        }
    }
}
