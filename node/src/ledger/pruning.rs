//! Old receipts leave the books: in blocks, the oldest first, archived before they go. Payments made
//! for one purchase leave whole, with their one receipt.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::history::BLOCK;
use farthing_protocol::receipt::Receipt;
use farthing_protocol::retention::{Archive, Reach, Retention};
use farthing_protocol::store::{Batch, BatchError, ReadError, Store};
use farthing_protocol::x402::{ChannelConfig, ChannelId};
use serde::Serialize;

use crate::ledger::once::is_once;
use crate::ledger::records::{COUNTERS, DOORS, ONCE};
use crate::ledger::{CHANNELS, Ledger, LedgerError, RECEIPTS, SERVED};

/// Channels looked at between two rests.
const STRIDE: usize = 64;
/// The counters of what has left.
const PAYMENTS: &str = "retired-payments";
const CHARGED: &str = "retired-charged";
const TAKEN: &str = "retired-taken";

/// The oldest receipts of a channel: when the first ended, and its place.
type Head = Reverse<(Timestamp, ChannelId, u64)>;

/// What the payments made for one purchase came to that have left the books.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retired {
    /// How many.
    pub payments: u64,
    /// What was charged on them.
    pub charged: Amount,
    /// What was taken of them.
    pub taken: Amount,
}

impl Retired {
    /// What the counters on disk say.
    pub(in crate::ledger) fn read(store: &Store) -> Result<Self, ReadError> {
        let of = |name: &str| -> Result<u64, ReadError> {
            let count = store.get(&COUNTERS, &name.to_owned())?;
            Ok(count.unwrap_or_default())
        };
        Ok(Self {
            payments: of(PAYMENTS)?,
            charged: Amount::atoms(of(CHARGED)?.into()),
            taken: Amount::atoms(of(TAKEN)?.into()),
        })
    }

    fn plus(self, charged: Amount, taken: Amount) -> Self {
        Self {
            payments: self.payments.saturating_add(1),
            charged: self.charged.saturating_add(charged),
            taken: self.taken.saturating_add(taken),
        }
    }

    fn write(&self, batch: Batch) -> Result<Batch, BatchError> {
        let small = |amount: Amount| u64::try_from(amount.get()).unwrap_or(u64::MAX);
        batch
            .put(&COUNTERS, &PAYMENTS.to_owned(), &self.payments)?
            .put(&COUNTERS, &CHARGED.to_owned(), &small(self.charged))?
            .put(&COUNTERS, &TAKEN.to_owned(), &small(self.taken))
    }
}

/// A payment made for one purchase, as it is archived.
#[derive(Serialize)]
struct Bygone<'a> {
    receipt: &'a Receipt,
    /// Who paid whom, how, and under which nonce.
    terms: ChannelConfig,
    taken: Amount,
}

/// What a round goes by.
struct Round<'a> {
    retention: &'a Retention,
    archive: Option<&'a Archive>,
    now: Timestamp,
    /// Payments of which a transaction is on its way.
    taking: HashSet<ChannelId>,
}

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
        let round = Round {
            retention,
            archive,
            now,
            taking: self.being_taken()?,
        };
        let (mut heads, mut held) = self.heads(&round).await?;
        let mut pruned = 0_u64;
        while let Some(Reverse((oldest, id, from))) = heads.pop() {
            let full = held > retention.most;
            if !full && now.since(oldest) < retention.keep {
                break;
            }
            let single = self.channel(id).is_some_and(|view| is_once(&view.config));
            let gone = match single {
                true => self.prune_single(id, &round, full).await?,
                false => self.prune_block(id, from, (&round, full)).await?,
            };
            if gone == 0 {
                continue;
            }
            held = held.saturating_sub(gone);
            pruned = pruned.saturating_add(gone);
            let next = self.receipts(id, from.saturating_add(gone), 1)?;
            heads.extend(next.first().map(|it| Reverse((it.finished, id, it.seq))));
            tokio::task::yield_now().await;
        }
        Ok(pruned)
    }

    async fn prune_block(
        &self,
        id: ChannelId,
        from: u64,
        (round, full): (&Round<'_>, bool),
    ) -> Result<u64, LedgerError> {
        let block = self.receipts(id, from, usize::try_from(BLOCK).unwrap_or(64))?;
        let reach = self.reach(id)?;
        let Round {
            retention, archive, ..
        } = round;
        let signed = retention.may_go(&block, &reach, full, round.now);
        let alone = archive.is_some() && retention.may_go_unsigned(&block, &reach, round.now);
        if !signed && !alone {
            return Ok(0);
        }
        if let Some(archive) = archive {
            archive.keep(round.now.day(), &block).await?;
        }
        self.drop_block(&block).await?;
        Ok(BLOCK)
    }

    /// A payment for one purchase goes with all that is known of it. By then it is taken, deep in
    /// the chain, which from there on refuses to take it twice.
    async fn prune_single(
        &self,
        id: ChannelId,
        round: &Round<'_>,
        full: bool,
    ) -> Result<u64, LedgerError> {
        let receipts = self.receipts(id, 0, 2)?;
        let ([receipt], Some(view)) = (receipts.as_slice(), self.channel(id)) else {
            return Ok(0);
        };
        let old = round.retention.is_old(&receipts, full, round.now);
        if !old || !self.is_over(id, round)? {
            return Ok(0);
        }
        if let Some(archive) = round.archive {
            let bygone = Bygone {
                receipt,
                terms: view.config,
                taken: view.channel.claimed(),
            };
            archive.keep(round.now.day(), &[bygone]).await?;
        }
        self.retire(id, Some(receipt)).await?;
        Ok(1)
    }

    /// Whether nothing hangs on a payment any more.
    fn is_over(&self, id: ChannelId, round: &Round<'_>) -> Result<bool, LedgerError> {
        let quiet = self.channel(id).is_some_and(|view| {
            view.channel.reserved().is_zero() && view.channel.unclaimed().is_zero()
        });
        Ok(quiet && !round.taking.contains(&id) && self.store.get(&ONCE, &id.0)?.is_none())
    }

    async fn retire(&self, id: ChannelId, receipt: Option<&Receipt>) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let durable = {
            let mut books = self.books();
            let Some(entry) = books.channels.get(&id) else {
                return Ok(());
            };
            let (config, channel) = (entry.record.config, entry.record.channel);
            let retired = books.retired.plus(channel.charged(), channel.claimed());
            let mut batch = Batch::new().delete(&CHANNELS, &id.0);
            if let Some(receipt) = receipt {
                batch = drop_receipt(receipt, batch);
            }
            let batch = retired.write(batch)?;
            books.leave(id, config.payer);
            books.retired = retired;
            permit.commit(batch)
        };
        Ok(durable.await?)
    }

    /// What the payments made for one purchase came to that have left the books.
    #[must_use]
    pub fn retired(&self) -> Retired {
        self.books().retired
    }

    /// The first receipt of each channel, and how many there are in all. Payments that were taken
    /// for nothing that was served have none, and leave on the way.
    async fn heads(&self, round: &Round<'_>) -> Result<(BinaryHeap<Head>, u64), LedgerError> {
        let (mut heads, mut held) = (BinaryHeap::new(), 0_u64);
        for (n, (id, view)) in self.channels().into_iter().enumerate() {
            let empty = is_once(&view.config)
                && view.channel.receipts() == 0
                && !view.channel.claimed().is_zero();
            if empty && self.is_over(id, round)? {
                self.retire(id, None).await?;
            } else if let Some(first) = self.receipts(id, 0, 1)?.first() {
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
        let batch = block.iter();
        let batch = batch.fold(Batch::new(), |batch, receipt| drop_receipt(receipt, batch));
        Ok(self.store.commit(batch).await?)
    }
}

fn drop_receipt(receipt: &Receipt, batch: Batch) -> Batch {
    batch
        .delete(&RECEIPTS, &(receipt.channel.0, receipt.seq))
        .delete(&SERVED, &receipt.request.0)
        .delete(&DOORS, &receipt.request.0)
}
