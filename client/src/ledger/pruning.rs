//! Old receipts leave the books: in blocks, the oldest first, archived before they go.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use farthing_protocol::clock::Timestamp;
use farthing_protocol::history::BLOCK;
use farthing_protocol::receipt::Receipt;
use farthing_protocol::retention::{Archive, Reach, Retention};
use farthing_protocol::store::Batch;
use farthing_protocol::x402::ChannelId;

use crate::ledger::{JOINTS, Kept, Ledger, LedgerError, RECEIPTS, REQUESTS, Standing};

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
            let receipts: Vec<Receipt> =
                block.iter().map(|it| it.receipt.receipt.clone()).collect();
            // What is disputed is evidence.
            let evidence = block.iter().any(|it| it.dispute.is_some());
            let Some(reach) = self.reach(id).filter(|_| !evidence) else {
                continue;
            };
            if !retention.may_go(&receipts, &reach, full, now) {
                continue;
            }
            if let Some(archive) = archive {
                archive.keep(now.day(), &block).await?;
            }
            self.drop_block(&block).await?;
            held = held.saturating_sub(BLOCK);
            pruned = pruned.saturating_add(BLOCK);
            let next = self.receipts(id, from.saturating_add(BLOCK), 1)?;
            heads.extend(next.first().map(|it| head(id, &it.receipt.receipt)));
            tokio::task::yield_now().await;
        }
        Ok(pruned)
    }

    /// The first receipt of each channel, and how many there are in all.
    async fn heads(&self) -> Result<(BinaryHeap<Head>, u64), LedgerError> {
        let (mut heads, mut held) = (BinaryHeap::new(), 0_u64);
        for (n, (id, account)) in self.accounts().into_iter().enumerate() {
            if let Some(first) = self.receipts(id, 0, 1)?.first() {
                let first = &first.receipt.receipt;
                held = held.saturating_add(account.booked.saturating_sub(first.seq));
                heads.push(head(id, first));
            }
            if n % STRIDE == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok((heads, held))
    }

    /// How far receipts may go; nowhere on a channel whose seller was found false.
    fn reach(&self, id: ChannelId) -> Option<Reach> {
        let account = self.account(id)?;
        let root = self.root(id)?;
        (account.standing != Standing::Frozen).then(|| Reach {
            covered: root.root.count,
            count: account.booked,
            claimed: account.channel.claimed(),
        })
    }

    async fn drop_block(&self, block: &[Kept]) -> Result<(), LedgerError> {
        let mut batch = Batch::new();
        for kept in block {
            let receipt = &kept.receipt.receipt;
            batch = batch
                .delete(&RECEIPTS, &(receipt.channel.0, receipt.seq))
                .delete(&REQUESTS, &receipt.request.0)
                .delete(&JOINTS, &receipt.request.0);
        }
        Ok(self.store.commit(batch).await?)
    }
}

const fn head(id: ChannelId, first: &Receipt) -> Head {
    Reverse((first.finished, id, first.seq))
}
