//! Old receipts leave the books: in blocks, the oldest first, archived before they go.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use farthing_protocol::clock::Timestamp;
use farthing_protocol::history::BLOCK;
use farthing_protocol::receipt::Receipt;
use farthing_protocol::retention::{Archive, Reach, Retention};
use farthing_protocol::store::Batch;
use farthing_protocol::x402::ChannelId;

use crate::ledger::{Ledger, LedgerError, RECEIPTS, SERVED};

/// Channels looked at between two rests.
const STRIDE: usize = 64;

/// The oldest receipts of a channel: when the first ended, and its place.
type Head = Reverse<(Timestamp, ChannelId, u64)>;

impl Ledger {
    /// Prunes what may go, and returns how many receipts went. Purchases go on meanwhile: it rests
    /// between blocks, and each is one small batch.
    ///
    /// # Errors
    /// The store's, or the archive's; what has gone until then is gone.
    pub async fn prune(
        &self,
        retention: &Retention,
        archive: Option<&Archive>,
        now: Timestamp,
    ) -> Result<u64, LedgerError> {
        let (mut heads, mut held) = self.heads().await?;
        let mut pruned = 0_u64;
        while let Some(Reverse((oldest, id, from))) = heads.pop() {
            let full = held > retention.most;
            if !full && now.since(oldest) < retention.keep {
                break;
            }
            let block = self.receipts(id, from, usize::try_from(BLOCK).unwrap_or(64))?;
            let reach = self.reach(id)?;
            if !retention.may_go(&block, &reach, full, now) {
                continue;
            }
            if let Some(archive) = archive {
                archive.keep(now.day(), &block).await?;
            }
            self.drop_block(&block).await?;
            held = held.saturating_sub(BLOCK);
            pruned = pruned.saturating_add(BLOCK);
            let next = self.receipts(id, from.saturating_add(BLOCK), 1)?;
            heads.extend(next.first().map(|it| Reverse((it.finished, id, it.seq))));
            tokio::task::yield_now().await;
        }
        Ok(pruned)
    }

    /// The first receipt of each channel, and how many there are in all.
    async fn heads(&self) -> Result<(BinaryHeap<Head>, u64), LedgerError> {
        let (mut heads, mut held) = (BinaryHeap::new(), 0_u64);
        for (n, (id, view)) in self.channels().into_iter().enumerate() {
            if let Some(first) = self.receipts(id, 0, 1)?.first() {
                let count = view.channel.receipts().saturating_sub(first.seq);
                held = held.saturating_add(count);
                heads.push(Reverse((first.finished, id, first.seq)));
            }
            if n % STRIDE == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok((heads, held))
    }

    fn reach(&self, id: ChannelId) -> Result<Reach, LedgerError> {
        let mut books = self.books();
        let entry = books.entry(id)?;
        let channel = &entry.record.channel;
        Ok(Reach {
            covered: entry.covered(),
            count: channel.receipts(),
            claimed: channel.claimed(),
        })
    }

    async fn drop_block(&self, block: &[Receipt]) -> Result<(), LedgerError> {
        let mut batch = Batch::new();
        for receipt in block {
            batch = batch
                .delete(&RECEIPTS, &(receipt.channel.0, receipt.seq))
                .delete(&SERVED, &receipt.request.0);
        }
        Ok(self.store.commit(batch).await?)
    }
}
