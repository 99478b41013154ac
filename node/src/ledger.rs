//! What buyers owe: the best voucher, the charges and the receipts of every channel.
//!
//! The books live in memory behind one short lock and on disk behind the store's committer;
//! batches are sent in the order in which the books changed. Three promises:
//!
//! - a voucher is on disk before anything is worked against it;
//! - a charge and its receipt are on disk, in one batch, before the buyer hears of them;
//! - after a crash, what a checkpoint recorded is charged once, and nothing else.
//!
//! The rules themselves are [`farthing_protocol::channel`]'s.

pub mod records;
mod reservation;
pub mod once;
mod receipts;
mod pruning;
mod doors;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::Address;
use farthing_protocol::amount::{Amount, Overflow};
use farthing_protocol::channel::{Acceptance, Channel, Charge, Lesson, Rejected};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::eip712::Verified;
use farthing_protocol::frame::Statement;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::{Ending, RequestId};
use farthing_protocol::receipt::Receipt;
use farthing_protocol::root::CoSigned;
use farthing_protocol::store::{Batch, BatchError, CommitError, Health, Order, ReadError, Store};
use farthing_protocol::voucher::{SignedVoucher, Voucher};
use farthing_protocol::x402::{ChannelConfig, ChannelId};

pub use crate::ledger::doors::Door;
pub use crate::ledger::pruning::Retired;
pub use crate::ledger::receipts::Compared;
use crate::ledger::receipts::Tree;
pub use crate::ledger::records::{
    CHANNELS, ChannelRecord, NODES, OPEN, OpenPurchase, RECEIPTS, ROOTS, SERVED, schema,
};
pub use crate::ledger::reservation::Reservation;

/// Why the books cannot be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// There is no such channel.
    #[error("no such channel")]
    NoChannel,
    /// The channel's rules forbid it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The request id was used before.
    #[error("this request id was used before")]
    Duplicate,
    /// The store did not take it. Nothing more is sold until the node is restarted.
    #[error("the ledger cannot be written: {0}")]
    Commit(#[from] CommitError),
    /// A record does not fit the store.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The store cannot be read.
    #[error("the ledger cannot be read: {0}")]
    Read(#[from] ReadError),
    /// Receipts cannot be written where they go when they leave the books.
    #[error("the archive of receipts cannot be written: {0}")]
    Archive(#[from] std::io::Error),
}

impl From<Overflow> for LedgerError {
    fn from(error: Overflow) -> Self {
        Self::Rejected(error.into())
    }
}

/// A purchase that has ended, before it has its place among the receipts.
#[derive(Debug, Clone)]
pub struct Served {
    /// What a checkpoint would say of it.
    pub purchase: OpenPurchase,
    /// When it ended.
    pub finished: Timestamp,
    /// How it ended.
    pub ending: Ending,
}

/// A channel as the books have it now.
#[derive(Debug, Clone, Copy)]
pub struct ChannelView {
    /// Its terms.
    pub config: ChannelConfig,
    /// Its state.
    pub channel: Channel,
    /// The highest voucher.
    pub voucher: Option<SignedVoucher>,
}

#[derive(Debug)]
struct Entry {
    record: ChannelRecord,
    tree: Tree,
    /// The newest root that both sides have signed.
    root: Option<CoSigned>,
}

impl Entry {
    fn new(record: ChannelRecord) -> Self {
        Self {
            record,
            tree: Tree::default(),
            root: None,
        }
    }

    /// How many receipts are under a root that both sides have signed.
    fn covered(&self) -> u64 {
        self.root.map_or(0, |signed| signed.root.count)
    }

    fn view(&self) -> ChannelView {
        let ChannelRecord {
            config,
            channel,
            voucher,
        } = self.record;
        ChannelView {
            config,
            channel,
            voucher,
        }
    }
}

#[derive(Debug, Default)]
struct Books {
    channels: HashMap<ChannelId, Entry>,
    running: HashSet<RequestId>,
    /// Who has shown to hold a channel's key. Shown anew after a restart.
    owners: HashMap<ChannelId, NodeId>,
    /// Each payer's channels.
    lanes: HashMap<Address, Vec<ChannelId>>,
    /// What the payments came to that have left the books.
    retired: Retired,
}

impl Books {
    fn entry(&mut self, id: ChannelId) -> Result<&mut Entry, LedgerError> {
        self.channels.get_mut(&id).ok_or(LedgerError::NoChannel)
    }

    fn enter(&mut self, id: ChannelId, record: ChannelRecord) -> ChannelView {
        if let Some(entry) = self.channels.get_mut(&id) {
            entry.record = record;
            return entry.view();
        }
        let lanes = self.lanes.entry(record.config.payer).or_default();
        lanes.push(id);
        let entry = Entry::new(record);
        let view = entry.view();
        self.channels.insert(id, entry);
        view
    }

    fn leave(&mut self, id: ChannelId, payer: Address) {
        self.channels.remove(&id);
        if let Some(lanes) = self.lanes.get_mut(&payer) {
            lanes.retain(|lane| *lane != id);
            if lanes.is_empty() {
                self.lanes.remove(&payer);
            }
        }
    }
}

/// A handle to the books; clones share them.
#[derive(Debug, Clone)]
pub struct Ledger {
    store: Store,
    books: Arc<Mutex<Books>>,
}

impl Ledger {
    /// Opens the books. Purchases that a crash cut off are charged as their last checkpoint says,
    /// and end as [`Ending::Interrupted`].
    ///
    /// # Errors
    /// [`LedgerError`] when the store cannot be read or written.
    pub async fn open(store: Store, now: Timestamp) -> Result<Self, LedgerError> {
        let mut books = Books::default();
        for (id, mut record) in store.scan(&CHANNELS, .., Order::Up, usize::MAX)? {
            record.revive()?;
            books.enter(ChannelId(id), record);
        }
        for (id, root) in store.scan(&ROOTS, .., Order::Up, usize::MAX)? {
            match books.entry(ChannelId(id)) {
                Ok(entry) => entry.root = Some(root),
                // A row that leads nowhere is no reason not to start.
                Err(_) => tracing::error!(channel = %ChannelId(id).short(), "a root of no channel"),
            }
        }
        books.retired = Retired::read(&store)?;
        let ledger = Self {
            store,
            books: Arc::new(Mutex::new(books)),
        };
        for (id, purchase) in ledger.store.scan(&OPEN, .., Order::Up, usize::MAX)? {
            let request = RequestId(id);
            if ledger.channel(purchase.channel).is_none() {
                tracing::error!(request = %request.short(), "a checkpoint of no channel");
                continue;
            }
            ledger.finish_interrupted(request, purchase, now).await?;
        }
        Ok(ledger)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing in here panics while holding the lock; the state is whole even if it did.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the books can be written. After the first failed write they cannot, until a
    /// restart.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.store.health() == Health::Sound
    }

    /// The store below, for other parts' own tables.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    async fn finish_interrupted(
        &self,
        request: RequestId,
        purchase: OpenPurchase,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        let id = purchase.channel;
        let reservation = {
            let mut books = self.books();
            let amount = books.entry(id)?.record.channel.resume(purchase.cost.ceil());
            books.running.insert(request);
            Reservation::new(self.clone(), id, request, amount)
        };
        let served = Served {
            purchase,
            finished: now,
            ending: Ending::Interrupted,
        };
        self.finish(reservation, served).await.map(drop)
    }

    /// A channel, if the books know it.
    #[must_use]
    pub fn channel(&self, id: ChannelId) -> Option<ChannelView> {
        self.books().channels.get(&id).map(Entry::view)
    }

    /// Every channel.
    #[must_use]
    pub fn channels(&self) -> Vec<(ChannelId, ChannelView)> {
        self.books()
            .channels
            .iter()
            .map(|(id, entry)| (*id, entry.view()))
            .collect()
    }

    /// Purchases reserved now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.books().running.len()
    }

    /// Enters what the chain says of a channel: a new one, a deposit, a claim, a withdrawal.
    ///
    /// # Errors
    /// [`LedgerError`]; a report that contradicts the books is refused and changes nothing.
    pub async fn observe(
        &self,
        config: ChannelConfig,
        id: ChannelId,
        seen: Observation,
    ) -> Result<ChannelView, LedgerError> {
        let permit = self.store.reserve().await?;
        let (durable, view) = {
            let mut books = self.books();
            let known = books.channels.get(&id).map(|entry| entry.record);
            let mut record = known.unwrap_or_else(|| {
                let channel = Channel::open(seen.balance, seen.claimed);
                ChannelRecord {
                    config,
                    channel,
                    voucher: None,
                }
            });
            record.channel.retreat(seen.claimed);
            record.channel.observe(seen.balance, seen.claimed)?;
            record.channel.arm(seen.armed);
            if let Some(entry) = books.channels.get(&id)
                && entry.record == record
            {
                return Ok(entry.view());
            }
            let batch = Batch::new().put(&CHANNELS, &id.0, &record)?;
            (permit.commit(batch), books.enter(id, record))
        };
        durable.await?;
        Ok(view)
    }

    /// What a payer owes over all its channels, charged and not claimed.
    #[must_use]
    pub fn exposure(&self, payer: Address) -> Amount {
        let books = self.books();
        let lanes = books.lanes.get(&payer).into_iter().flatten();
        let owed = lanes.filter_map(|id| books.channels.get(id));
        let owed = owed.map(|entry| entry.record.channel.unclaimed());
        owed.fold(Amount::ZERO, Amount::saturating_add)
    }

    /// Takes a verified voucher. Returns when it is on disk and may be worked against.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], [`Rejected::OverDeposit`], or the store's.
    pub async fn take(&self, voucher: Verified<Voucher>) -> Result<Acceptance, LedgerError> {
        let (id, ceiling) = (voucher.channel, voucher.ceiling);
        let permit = self.store.reserve().await?;
        let durable = {
            let mut books = self.books();
            let entry = books.entry(id)?;
            let mut after = entry.record.channel;
            if after.accept(ceiling)? == Acceptance::Stale {
                return Ok(Acceptance::Stale);
            }
            let known = entry
                .record
                .voucher
                .is_some_and(|v| v.message.ceiling >= ceiling);
            let batch = if known {
                // Another purchase has just sent it to disk: wait for that.
                Batch::new()
            } else {
                let record = ChannelRecord {
                    voucher: Some(voucher.into_signed()),
                    ..entry.record
                };
                let batch = Batch::new().put(&CHANNELS, &id.0, &record)?;
                entry.record = record;
                batch
            };
            permit.commit(batch)
        };
        durable.await?;
        Ok(self.books().entry(id)?.record.channel.accept(ceiling)?)
    }

    /// Remembers that `buyer` has shown to hold the channel's key.
    pub fn own(&self, id: ChannelId, buyer: NodeId) {
        self.books().owners.insert(id, buyer);
    }

    /// Whether `buyer` is who last showed to hold the channel's key.
    #[must_use]
    pub fn is_owner(&self, id: ChannelId, buyer: NodeId) -> bool {
        self.books().owners.get(&id) == Some(&buyer)
    }

    /// Sets money aside for a purchase.
    ///
    /// # Errors
    /// [`LedgerError::Duplicate`], [`LedgerError::NoChannel`], [`Rejected::OverCeiling`].
    pub fn reserve(
        &self,
        id: ChannelId,
        request: RequestId,
        amount: Amount,
    ) -> Result<Reservation, LedgerError> {
        let mut books = self.books();
        if books.running.contains(&request) {
            return Err(LedgerError::Duplicate);
        }
        books.entry(id)?.record.channel.reserve(amount)?;
        books.running.insert(request);
        drop(books);
        let reservation = Reservation::new(self.clone(), id, request, amount);
        // A purchase that ends is among the running until its receipt is on disk, so it is found
        // in one place or the other. Dropped, the reservation is given back.
        if self.store.get(&SERVED, &request.0)?.is_some() {
            return Err(LedgerError::Duplicate);
        }
        Ok(reservation)
    }

    pub(in crate::ledger) fn extend(&self, id: ChannelId, more: Amount) -> Result<(), LedgerError> {
        Ok(self.books().entry(id)?.record.channel.reserve(more)?)
    }

    pub(in crate::ledger) fn release(&self, id: ChannelId, request: RequestId, amount: Amount) {
        let mut books = self.books();
        books.running.remove(&request);
        if let Some(entry) = books.channels.get_mut(&id)
            && let Err(error) = entry.record.channel.release(amount)
        {
            tracing::error!(channel = %id.short(), %error, "a reservation was released twice");
        }
    }

    /// Records how far a running purchase has come: what a crash would charge. Returns when it is
    /// on its way to disk, in order before whatever is sent after it; a crash in between costs the
    /// seller that little, never the buyer.
    ///
    /// # Errors
    /// The store's.
    pub async fn checkpoint(
        &self,
        reservation: &Reservation,
        purchase: &OpenPurchase,
    ) -> Result<(), LedgerError> {
        let batch = Batch::new().put(&OPEN, &reservation.request().0, purchase)?;
        let batch = doors::note(reservation, batch)?;
        self.store.reserve().await?.later(batch)?;
        Ok(())
    }

    /// Ends a purchase: charges it (never more than was reserved) and writes its receipt.
    ///
    /// # Errors
    /// [`LedgerError`]; on one of the store's the charge must be taken as not made.
    pub async fn finish(
        &self,
        reservation: Reservation,
        served: Served,
    ) -> Result<Receipt, LedgerError> {
        let (id, request) = (reservation.channel(), reservation.request());
        self.read_tree(id)?;
        let permit = self.store.reserve().await?;
        let (durable, receipt) = {
            let mut books = self.books();
            let entry = books.entry(id)?;
            let cost = Channel::cap(reservation.amount(), served.purchase.cost);
            let mut record = entry.record;
            let charge = record.channel.charge(reservation.amount(), cost)?;
            let lesson = Lesson::of(served.ending);
            record.channel.learn(lesson, charge.charged);
            let receipt = receipt(id, request, &served, charge);
            let batch = Batch::new()
                .put(&CHANNELS, &id.0, &record)?
                .put(&RECEIPTS, &(id.0, charge.seq), &receipt)?
                .put(&SERVED, &request.0, &(id.0, charge.seq))?
                .delete(&OPEN, &request.0);
            let batch = doors::note(&reservation, batch)?;
            let batch = entry.tree.append(&receipt, batch)?;
            entry.record = record;
            reservation.spent();
            (permit.commit(batch), receipt)
        };
        let durable = durable.await;
        self.books().running.remove(&request);
        durable?;
        Ok(receipt)
    }

    /// What we hold of a channel, for its buyer.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], the store's.
    pub fn statement(&self, id: ChannelId) -> Result<Statement, LedgerError> {
        let view = self.channel(id).ok_or(LedgerError::NoChannel)?;
        let root = self.root(id);
        let peaks = root
            .map(|signed| self.peaks_under(&signed.root))
            .transpose()?;
        Ok(Statement {
            charged: view.channel.charged(),
            receipts: view.channel.receipts(),
            voucher: view.voucher,
            balance: view.channel.balance(),
            root,
            peaks: peaks.unwrap_or_default(),
        })
    }
}

/// What the chain says of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Deposited.
    pub balance: Amount,
    /// Claimed.
    pub claimed: Amount,
    /// Asked back by the buyer.
    pub armed: Amount,
}

fn receipt(id: ChannelId, request: RequestId, served: &Served, charge: Charge) -> Receipt {
    let purchase = &served.purchase;
    Receipt {
        channel: id,
        seq: charge.seq,
        request,
        request_hash: purchase.request_hash,
        response_hash: purchase.response_hash,
        model_hash: purchase.model_hash,
        offer: purchase.offer,
        usage: purchase.usage,
        charged: charge.charged,
        cumulative: charge.cumulative,
        started: purchase.started,
        finished: served.finished,
        ending: served.ending,
    }
}
