//! Payments made for one purchase: what an x402 seller may take by `exact` or `upto`.
//!
//! One is on disk before it is signed, and counts against every limit from then on. Whoever has
//! it may take it until its time is over, so nothing a seller says gives it back: it is settled
//! by an answer, or when its time is over by what the chain shows.

use std::collections::{HashMap, HashSet};

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::receipt::model_hash;
use farthing_protocol::store::{Batch, BatchError};
use farthing_protocol::x402::{Permit, Transfer};
use serde::{Deserialize, Serialize};

use crate::ledger::books::Books;
use crate::ledger::days::DayRow;
use crate::ledger::{
    DAYS, Ledger, LedgerError, Limits, MODEL_DAYS, ONCE, PAYMENTS, Payment, SELLER_DAYS,
};

/// The place of such payments among those over HTTP: no channel has this name.
pub const NO_CHANNEL: B256 = B256::ZERO;

/// What the payer signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Once {
    /// Taken in full.
    Exact(Transfer),
    /// Taken for what was used.
    Upto(Permit),
}

impl Once {
    /// The most that can be taken, in atoms.
    #[must_use]
    pub const fn ceiling(&self) -> Amount {
        match self {
            Self::Exact(transfer) => transfer.amount,
            Self::Upto(permit) => permit.ceiling,
        }
    }

    /// Seconds since the epoch after which it cannot be taken.
    #[must_use]
    pub const fn until(&self) -> u64 {
        match self {
            Self::Exact(transfer) => transfer.valid_before,
            Self::Upto(permit) => permit.deadline,
        }
    }
}

/// A payment that was, or is about to be, signed and whose end is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenOnce {
    /// The purchase.
    pub request: RequestId,
    /// The seller.
    pub seller: NodeId,
    /// Where it sells.
    pub url: String,
    /// The model.
    pub model: String,
    /// What is signed.
    pub once: Once,
    /// When.
    pub at: Timestamp,
}

/// As it is kept: with the day it counts on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedOnce {
    /// The payment.
    pub opened: OpenOnce,
    /// The day (UTC, days since the epoch) whose limits it counts against.
    pub day: u64,
}

#[derive(Debug)]
struct Entry {
    counted: CountedOnce,
    /// A purchase waits for its end.
    running: bool,
}

/// All of them in memory.
#[derive(Debug, Default)]
pub(in crate::ledger) struct Onces {
    open: HashMap<RequestId, Entry>,
    /// What was signed for those that are settled.
    settled: Amount,
    /// What was charged by them.
    charged: Amount,
    /// Sellers whose price was a false one.
    false_sellers: HashSet<NodeId>,
}

impl Onces {
    /// All that was signed and was not given back.
    pub(in crate::ledger) fn total(&self) -> Amount {
        let open = self.open.values();
        open.map(|entry| entry.counted.opened.once.ceiling())
            .fold(self.settled, Amount::saturating_add)
    }

    /// Enters one that is settled.
    pub(in crate::ledger) fn enter(&mut self, payment: &Payment) {
        self.settled = self.settled.saturating_add(payment.signed);
        self.charged = self.charged.saturating_add(payment.charged);
        if payment.dispute.is_some() {
            self.false_sellers.insert(payment.seller);
        }
    }
}

fn seller_of(opened: &OpenOnce) -> B256 {
    B256::from(*opened.seller.as_bytes())
}

impl Books {
    /// Enters one that is open after a start.
    pub(in crate::ledger) fn load_once(&mut self, counted: CountedOnce) {
        let opened = &counted.opened;
        let model = model_hash(&opened.model);
        self.models.hold(model, opened.once.ceiling());
        let running = false;
        self.once
            .open
            .insert(opened.request, Entry { counted, running });
    }

    fn open_once(
        &mut self,
        opened: &OpenOnce,
        limits: &Limits,
    ) -> Result<(CountedOnce, DayRow), LedgerError> {
        let (more, seller) = (opened.once.ceiling(), seller_of(opened));
        let model = model_hash(&opened.model);
        let day = self.days.day().max(opened.at.day());
        self.within_model((model, more), limits, day)?;
        self.within(more, seller, limits, day)?;
        let row = self.days.add(seller, more, day);
        self.models.hold(model, more);
        let counted = CountedOnce {
            opened: opened.clone(),
            day,
        };
        let entry = Entry {
            counted: counted.clone(),
            running: true,
        };
        self.once.open.insert(opened.request, entry);
        Ok((counted, row))
    }

    fn settle_once(&mut self, request: RequestId, payment: &Payment) -> bool {
        let Some(entry) = self.once.open.remove(&request) else {
            return false;
        };
        let opened = &entry.counted.opened;
        let model = model_hash(&opened.model);
        self.models.release(model, opened.once.ceiling());
        self.once.enter(payment);
        true
    }

    /// What was never taken and never can be is given back.
    fn void_once(&mut self, request: RequestId) -> Option<Option<DayRow>> {
        let entry = self.once.open.remove(&request)?;
        let (opened, day) = (&entry.counted.opened, entry.counted.day);
        let (amount, seller) = (opened.once.ceiling(), seller_of(opened));
        self.models.release(model_hash(&opened.model), amount);
        Some(self.days.take_back(seller, amount, day))
    }
}

pub(in crate::ledger) fn day_rows(batch: Batch, row: &DayRow) -> Result<Batch, BatchError> {
    batch.put(&DAYS, &row.day, &row.today)?.put(
        &SELLER_DAYS,
        &(row.day, row.seller),
        &row.to_seller,
    )
}

impl Ledger {
    /// Enters a payment that is about to be signed, within the limits. It is on disk when this
    /// returns.
    ///
    /// # Errors
    /// [`LedgerError::Limit`], the store's.
    pub async fn open_once(&self, opened: &OpenOnce, limits: &Limits) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let durable = {
            let mut books = self.books();
            let (counted, row) = books.open_once(opened, limits)?;
            let batch = Batch::new().put(&ONCE, &opened.request.0, &counted);
            match batch.and_then(|batch| day_rows(batch, &row)) {
                Ok(batch) => permit.commit(batch),
                Err(error) => {
                    // Nothing is signed: it counts for nothing.
                    books.void_once(opened.request);
                    return Err(error.into());
                }
            }
        };
        Ok(durable.await?)
    }

    /// Books what was taken of a payment. One that is settled already stays as it is.
    ///
    /// # Errors
    /// The store's.
    pub async fn settle_once(&self, payment: &Payment) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let request = payment.request;
        let (model, day) = (model_hash(&payment.model), payment.at.day());
        let paid = Batch::new().put(&PAYMENTS, &(NO_CHANNEL, request.0), payment)?;
        let durable = {
            let mut books = self.books();
            if !books.settle_once(request, payment) {
                return Ok(());
            }
            // What was signed, as for every other limit: a price that is too low is only said.
            let spent = books.models.charge(model, payment.signed, day);
            let batch = paid
                .delete(&ONCE, &request.0)
                .put(&MODEL_DAYS, &(day, model), &spent)?;
            permit.commit(batch)
        };
        Ok(durable.await?)
    }

    /// Gives a payment back that was not taken and cannot be any more.
    ///
    /// # Errors
    /// The store's.
    pub async fn void_once(&self, request: RequestId) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let durable = {
            let mut books = self.books();
            let Some(row) = books.void_once(request) else {
                return Ok(());
            };
            let batch = Batch::new().delete(&ONCE, &request.0);
            permit.commit(match &row {
                Some(row) => day_rows(batch, row)?,
                None => batch,
            })
        };
        Ok(durable.await?)
    }

    /// No purchase waits for this payment's end any more; its time and the chain tell it.
    pub fn leave_once(&self, request: RequestId) {
        if let Some(entry) = self.books().once.open.get_mut(&request) {
            entry.running = false;
        }
    }

    /// The payments whose end is not known and no purchase waits for.
    #[must_use]
    pub fn left_once(&self) -> Vec<OpenOnce> {
        let books = self.books();
        let left = books.once.open.values().filter(|entry| !entry.running);
        left.map(|entry| entry.counted.opened.clone()).collect()
    }

    /// What such payments were charged in all, in atoms.
    #[must_use]
    pub fn charged_once(&self) -> Amount {
        self.books().once.charged
    }

    /// What was signed for such payments and was not given back, in atoms.
    #[must_use]
    pub fn signed_once(&self) -> Amount {
        self.books().once.total()
    }

    /// Whether a seller's price of such a payment was a false one.
    #[must_use]
    pub fn is_false(&self, seller: NodeId) -> bool {
        self.books().once.false_sellers.contains(&seller)
    }
}
