//! What we owe: promises made, money set aside for running purchases, receipts held.
//!
//! The books live in memory behind one short lock and on disk behind the store's committer. Two
//! promises: a ceiling is on disk before it is signed ([`Ledger::promise`]), and every receipt is
//! booked exactly once, by its place in the channel, in whatever order receipts arrive.
//!
//! A purchase whose end we did not see leaves its money set aside **in doubt** until the seller's
//! receipts, or its signed statement, tell what became of it.

pub mod records;
pub mod experience;
mod receipts;
mod approvals;
mod days;
mod models;
mod pruning;
pub mod payments;
pub mod joint;
pub mod once;
mod books;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::{Address, B256};
use farthing_protocol::amount::{Amount, Overflow};
use farthing_protocol::channel::{Lesson, Rejected};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::history::Entry;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::receipt::{SignedReceipt, VerifiedReceipt};
use farthing_protocol::store::{Batch, BatchError, CommitError, Order, ReadError, Store};
use farthing_protocol::x402::{ChannelConfig, ChannelId};

pub use crate::ledger::approvals::{MAX_APPROVALS, Reply, Wish};
pub use crate::ledger::books::Fate;
use crate::ledger::books::{Booked, Books};
use crate::ledger::once::{NO_CHANNEL, day_rows};
pub use crate::ledger::payments::{Payment, Scheme};
pub use crate::ledger::receipts::Gap;
use crate::ledger::receipts::keep;
pub use crate::ledger::records::{
    APPROVALS, Account, CHANNELS, CONTRADICTIONS, DAYS, DEPOSITS, DOUBLES, DRAFTS, EXPERIENCES,
    JOINTS, Kept, MODEL_DAYS, NODES, ONCE, PAYMENTS, PROBE_DAYS, PendingDeposit, RECEIPTS,
    REQUESTS, ROOTS, SELLER_DAYS, Standing, schema,
};
use crate::report::{Approval, Word};

/// Why the books cannot be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// There is no such channel.
    #[error("no such channel")]
    NoChannel,
    /// The channel is frozen or closing.
    #[error("the channel is no longer used ({0:?})")]
    NotInUse(Standing),
    /// The channel's rules forbid it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// A limit of the spend policy forbids it.
    #[error(
        "{limit} is {allowed} atoms; {spent} are promised and {more} more are needed (raise [spend] {limit} to allow it)"
    )]
    Limit {
        /// The limit's name in the config.
        limit: &'static str,
        /// What it allows.
        allowed: Amount,
        /// What is promised already.
        spent: Amount,
        /// What would be added.
        more: Amount,
    },
    /// What one request may cost, with what those may charge that were asked for it before.
    #[error(
        "the request may cost {allowed} atoms ([spend] per_purchase, or its own provider.max_cost); those that were asked for it may charge {spent}, and {more} more are needed"
    )]
    Tab {
        /// What it may cost.
        allowed: Amount,
        /// What may be charged already.
        spent: Amount,
        /// What would be added.
        more: Amount,
    },
    /// A person must say yes first.
    #[error(
        "it may cost {max_cost} atoms, over [spend] approve_above, and {reply}; see `farthing wallet approvals`"
    )]
    Approval {
        /// What to approve.
        id: B256,
        /// The most the purchase may cost.
        max_cost: Amount,
        /// How things stand.
        reply: Reply,
    },
    /// The payer's key is elsewhere, and a payment for one purchase needs it at once.
    #[error(
        "the payer {0} signs elsewhere: a payment for one purchase cannot be signed here, only a channel's can (`farthing wallet deposit --prepare`)"
    )]
    Elsewhere(Address),
    /// The store did not take it. Nothing more is bought until the client is restarted.
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

/// How much may be promised: the spend policy, in atoms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// On one purchase.
    pub per_purchase: Amount,
    /// To one seller in one day (UTC).
    pub per_seller: Amount,
    /// For one model in one day (UTC): set aside and charged.
    pub per_model: Amount,
    /// Instead of it, for some models, by the hash of their id.
    pub models: BTreeMap<B256, Amount>,
    /// In one day (UTC).
    pub per_day: Amount,
    /// In all.
    pub total: Amount,
    /// A purchase that may cost more than this wants a person's word.
    pub approve_above: Option<Amount>,
}

impl Limits {
    /// What one model may cost in a day.
    #[must_use]
    pub fn of_model(&self, model: B256) -> Amount {
        self.models.get(&model).copied().unwrap_or(self.per_model)
    }
}

/// What is promised against the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Promised {
    /// Today.
    pub today: Amount,
    /// In all.
    pub total: Amount,
}

/// What a purchase wants set aside.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// The channel.
    pub channel: ChannelId,
    /// The purchase.
    pub request: RequestId,
    /// The hash of the model's id.
    pub model: B256,
    /// What it may charge, on top of what it already holds.
    pub more: Amount,
    /// What to sign ahead if something must be signed, so that most purchases need no signature.
    pub headroom: Amount,
    /// The least ceiling to sign, whatever is set aside.
    pub floor: Amount,
}

/// A handle to the books; clones share them.
#[derive(Debug, Clone)]
pub struct Ledger {
    store: Store,
    books: Arc<Mutex<Books>>,
}

impl Ledger {
    /// Opens the books.
    ///
    /// # Errors
    /// [`LedgerError::Read`].
    pub fn open(store: Store) -> Result<Self, LedgerError> {
        let mut books = Books::default();
        for (id, account) in store.scan(&CHANNELS, .., Order::Up, usize::MAX)? {
            let range = (id, account.booked)..=(id, u64::MAX);
            let ahead = store.scan(&RECEIPTS, range, Order::Up, usize::MAX)?;
            books.load(
                ChannelId(id),
                account,
                ahead
                    .into_iter()
                    .map(|((_, seq), kept)| (seq, Entry::of(&kept.receipt.receipt))),
            );
        }
        for (_, root) in store.scan(&ROOTS, .., Order::Up, usize::MAX)? {
            books.cosign(root)?;
        }
        if let Some((day, promised)) = store.last(&DAYS)? {
            let sellers = store.scan_prefix(&SELLER_DAYS, &day, Order::Up, usize::MAX)?;
            let sellers = sellers
                .into_iter()
                .map(|((_, seller), promised)| (seller, promised));
            books.days.load(day, promised, sellers);
        }
        if let Some(((day, _), _)) = store.last(&MODEL_DAYS)? {
            let models = store.scan_prefix(&MODEL_DAYS, &day, Order::Up, usize::MAX)?;
            let models = models.into_iter().map(|((_, model), sum)| (model, sum));
            books.models.load(day, models);
        }
        for (_, counted) in store.scan(&ONCE, .., Order::Up, usize::MAX)? {
            books.load_once(counted);
        }
        for (_, payment) in store.scan_prefix(&PAYMENTS, &NO_CHANNEL, Order::Up, usize::MAX)? {
            books.once.enter(&payment);
        }
        for (id, approval) in store.scan(&APPROVALS, .., Order::Up, usize::MAX)? {
            books.approvals.load(id, approval);
        }
        Ok(Self {
            store,
            books: Arc::new(Mutex::new(books)),
        })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing in here panics while holding the lock; the state is whole even if it did.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store below.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// A channel.
    #[must_use]
    pub fn account(&self, id: ChannelId) -> Option<Account> {
        self.books().account(id)
    }

    /// Every channel.
    #[must_use]
    pub fn accounts(&self) -> Vec<(ChannelId, Account)> {
        self.books().accounts()
    }

    /// The sellers with a frozen channel: their receipts were false.
    #[must_use]
    pub fn frozen(&self) -> HashSet<NodeId> {
        self.books().frozen().collect()
    }

    /// What is promised against the limits, as of `now`.
    #[must_use]
    pub fn promised(&self, now: Timestamp) -> Promised {
        self.books().promised(now.day())
    }

    /// True when the channel has purchases whose end we do not know, or may have: after a start,
    /// or when receipts are missing although nothing runs.
    #[must_use]
    pub fn in_doubt(&self, id: ChannelId) -> bool {
        self.books().in_doubt(id)
    }

    /// The first receipt that is not booked.
    #[must_use]
    pub fn booked(&self, id: ChannelId) -> u64 {
        self.books().account(id).map_or(0, |account| account.booked)
    }

    /// Sets money aside for a purchase, raising the ceiling if needed, within the limits. Returns
    /// when the ceiling that must now be signed is on disk: the one function that makes promises.
    ///
    /// # Errors
    /// [`LedgerError::Limit`], [`Rejected::OverDeposit`] when the channel must be topped up.
    pub async fn promise(
        &self,
        want: Want,
        limits: &Limits,
        now: Timestamp,
    ) -> Result<Amount, LedgerError> {
        let permit = self.store.reserve().await?;
        let (durable, ceiling) = {
            let mut books = self.books();
            let day = books.days.day().max(now.day());
            match books.promise(want, limits, day)? {
                Some(change) => {
                    let batch = Batch::new().put(&CHANNELS, &want.channel.0, &change.account)?;
                    let batch = day_rows(batch, &change.row)?;
                    (permit.commit(batch), change.account.channel.ceiling())
                }
                // Covered by an older promise.
                None => return self.covering(want.channel, books),
            }
        };
        durable.await?;
        self.books().recorded(want.channel, ceiling);
        Ok(ceiling)
    }

    /// The recorded ceiling, if it is on disk already.
    fn covering(&self, id: ChannelId, books: MutexGuard<'_, Books>) -> Result<Amount, LedgerError> {
        drop(books);
        let account = self.account(id).ok_or(LedgerError::NoChannel)?;
        Ok(account.channel.ceiling())
    }

    /// Waits until `ceiling` is on disk; another purchase may have raised it a moment ago.
    ///
    /// # Errors
    /// The store's.
    pub async fn durable(&self, id: ChannelId, ceiling: Amount) -> Result<(), LedgerError> {
        if self.books().is_recorded(id, ceiling) {
            return Ok(());
        }
        self.store.commit(Batch::new()).await?;
        self.books().recorded(id, ceiling);
        Ok(())
    }

    /// Gives a purchase's money back: nothing was or will be charged.
    pub fn release(&self, id: ChannelId, request: RequestId) {
        self.books().release(id, request);
    }

    /// Leaves a purchase's money set aside until its receipt is found or its seller denies it.
    pub fn doubt(&self, id: ChannelId, request: RequestId) {
        self.books().doubt(id, request);
    }

    /// Takes the grant of a purchase that wants a person's word. It has left the disk when this
    /// returns.
    ///
    /// # Errors
    /// [`LedgerError::Approval`] when there is none; the purchase then waits for a word.
    pub async fn take_approval(
        &self,
        id: B256,
        wish: Wish<'_>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let (durable, reply, taken) = {
            let mut books = self.books();
            let (reply, rows) = books.approvals.take(id, wish, now);
            let taken = Taken(self, (reply == Reply::Go).then_some(id));
            (permit.commit(approval_rows(rows)?), reply, taken)
        };
        durable.await?;
        taken.keep();
        let max_cost = wish.max_cost;
        match reply {
            Reply::Go => Ok(()),
            reply => Err(LedgerError::Approval {
                id,
                max_cost,
                reply,
            }),
        }
    }

    /// What became of a purchase that had a grant.
    pub fn end_approval(&self, id: B256, used: bool) {
        let mut books = self.books();
        if used {
            books.approvals.use_up(id);
        } else {
            books.approvals.give_back(id);
        }
    }

    /// The purchases that want a word, or have one that is not used yet.
    #[must_use]
    pub fn approvals(&self, now: Timestamp) -> Vec<(B256, Approval)> {
        self.books().approvals.list(now)
    }

    /// A person's word on a purchase; none when it is not (or no more) waited for.
    ///
    /// # Errors
    /// The store's.
    pub async fn say(
        &self,
        id: B256,
        word: Word,
        now: Timestamp,
    ) -> Result<Option<Approval>, LedgerError> {
        let permit = self.store.reserve().await?;
        let (durable, approval) = {
            let mut books = self.books();
            let Some((approval, rows)) = books.approvals.say(id, word, now) else {
                return Ok(None);
            };
            (permit.commit(approval_rows(rows)?), approval)
        };
        durable.await?;
        Ok(Some(approval))
    }

    /// Books a receipt, once. It settles the purchase it names. It is on its way to the disk when
    /// this returns ([`Ledger::written`] waits for it): a crash before it arrives loses nothing, for
    /// its seller shows it again when the books are compared.
    ///
    /// # Errors
    /// [`LedgerError`]; [`Rejected::OverReserved`] when it charges more than was set aside.
    pub async fn book(
        &self,
        receipt: VerifiedReceipt,
        kept: Note,
        now: Timestamp,
    ) -> Result<Fate, LedgerError> {
        let (id, seq) = (receipt.receipt().channel, receipt.receipt().seq);
        self.read_tree(id)?;
        let permit = self.store.reserve().await?;
        let fate = {
            let mut books = self.books();
            let lesson = match kept.dispute {
                None => Lesson::of(receipt.receipt().ending),
                Some(_) => Lesson::Anew,
            };
            let Booked {
                account,
                fate,
                nodes,
            } = books.book(&receipt, lesson)?;
            if fate != Fate::Known {
                let (model, charged) = (receipt.receipt().model_hash, receipt.receipt().charged);
                let spent = books.models.charge(model, charged, now.day());
                let signed: SignedReceipt = receipt.signed().clone();
                let request = signed.receipt.request;
                let Note {
                    model: name,
                    endpoint,
                    dispute,
                } = kept;
                let kept = Kept {
                    receipt: signed,
                    model: name,
                    endpoint,
                    dispute,
                };
                let batch = Batch::new()
                    .put(&MODEL_DAYS, &(now.day(), model), &spent)?
                    .put(&CHANNELS, &id.0, &account)?
                    .put(&RECEIPTS, &(id.0, seq), &kept)?
                    .put(&REQUESTS, &request.0, &(id.0, seq))?;
                let batch = keep(id, &nodes, batch)?;
                // A write that fails stops all others, and says so.
                permit.later(batch)?;
            }
            fate
        };
        if fate == Fate::Known {
            return self.repeated(&receipt).await;
        }
        Ok(fate)
    }

    /// Waits until all that was booked before is on disk, where readers find it.
    ///
    /// # Errors
    /// The store's.
    pub async fn written(&self) -> Result<(), LedgerError> {
        Ok(self.store.commit(Batch::new()).await?)
    }

    /// Changes a channel's record and waits until it is on disk.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], what `change` refuses, the store's.
    pub async fn update(
        &self,
        id: ChannelId,
        change: impl FnOnce(&mut Account) -> Result<(), Rejected>,
    ) -> Result<Account, LedgerError> {
        let permit = self.store.reserve().await?;
        let (durable, account) = {
            let mut books = self.books();
            let account = books.update(id, change)?;
            (
                permit.commit(Batch::new().put(&CHANNELS, &id.0, &account)?),
                account,
            )
        };
        durable.await?;
        Ok(account)
    }

    /// The purchases whose end we do not know.
    #[must_use]
    pub fn doubts(&self, id: ChannelId) -> Vec<RequestId> {
        self.books().doubts(id)
    }

    /// Ends these doubts about a channel: the seller's statement, asked for after they arose,
    /// covers them.
    pub fn settle_doubts(&self, id: ChannelId, doubts: &[RequestId]) {
        self.books().settle_doubts(id, doubts);
    }

    /// Enters a channel that is open on chain, or what the chain now says of a known one.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn observe(&self, opened: Opened, now: Timestamp) -> Result<Account, LedgerError> {
        let permit = self.store.reserve().await?;
        let (durable, account) = {
            let mut books = self.books();
            let account = books.observe(&opened, now)?;
            (
                permit.commit(Batch::new().put(&CHANNELS, &opened.id.0, &account)?),
                account,
            )
        };
        durable.await?;
        Ok(account)
    }
}

/// A grant on its way to a purchase. Whoever asked may go while it leaves the disk: then nobody
/// uses it.
struct Taken<'a>(&'a Ledger, Option<B256>);

impl Taken<'_> {
    fn keep(mut self) {
        self.1 = None;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.1 {
            self.0.end_approval(id, false);
        }
    }
}

fn approval_rows(rows: approvals::Rows) -> Result<Batch, BatchError> {
    let mut batch = Batch::new();
    for (id, approval) in rows {
        batch = match approval {
            Some(approval) => batch.put(&APPROVALS, &id, &approval)?,
            None => batch.delete(&APPROVALS, &id),
        };
    }
    Ok(batch)
}

/// What is kept beside a receipt.
#[derive(Debug, Clone, Default)]
pub struct Note {
    /// The model's id.
    pub model: Option<String>,
    /// The endpoint.
    pub endpoint: Option<Endpoint>,
    /// What is wrong with it.
    pub dispute: Option<String>,
}

/// A channel as the chain shows it.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// Its id.
    pub id: ChannelId,
    /// The seller's node.
    pub seller: NodeId,
    /// Its terms.
    pub config: ChannelConfig,
    /// Deposited.
    pub balance: Amount,
    /// Claimed.
    pub claimed: Amount,
    /// Asked back.
    pub armed: Amount,
    /// Where our books begin, if they do not know it.
    pub base: Base,
}

/// What was bought on a channel before our books knew it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Base {
    /// Charged.
    pub charged: Amount,
    /// Receipts issued.
    pub receipts: u64,
    /// Promised with our own signature.
    pub ceiling: Amount,
}
