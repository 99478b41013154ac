//! The books in memory: pure changes, no disk.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use alloy::primitives::B256;

use farthing_protocol::amount::Amount;
use farthing_protocol::channel::{Channel, Lesson, Rejected};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::history;
use farthing_protocol::identity::NodeId;
use farthing_protocol::merkle::Node;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::receipt::VerifiedReceipt;
use farthing_protocol::root::{CoSigned, ReceiptRoot};
use farthing_protocol::x402::ChannelId;

use crate::ledger::approvals::Approvals;
use crate::ledger::days::{DayRow, Days};
use crate::ledger::models::Models;
use crate::ledger::once::Onces;
use crate::ledger::receipts::Tree;
use crate::ledger::records::{Account, Standing};
use crate::ledger::{Base, LedgerError, Limits, Opened, Promised, Want};

/// How long after a root was asked for the next may be, unless many receipts have come since.
const ROOT_PAUSE: Duration = Duration::from_secs(1);

/// Money set aside for one purchase.
#[derive(Debug, Clone, Copy)]
struct Held {
    amount: Amount,
    /// The hash of the model's id.
    model: B256,
    /// Its end was not seen.
    doubtful: bool,
}

#[derive(Debug)]
struct Entry {
    account: Account,
    /// Receipts booked beyond `account.booked`, where parallel purchases left gaps.
    ahead: BTreeMap<u64, history::Entry>,
    held: HashMap<RequestId, Held>,
    /// The highest ceiling that is on disk.
    recorded: Amount,
    /// Read from disk and not yet compared with the seller's books: a crash may have cut off
    /// purchases of which nothing is left here.
    unsettled: bool,
    /// Over the receipts before `account.booked`.
    tree: Tree,
    /// The newest root that both sides have signed.
    root: Option<CoSigned>,
    /// Of so many receipts a root was asked for, and when.
    asked: (u64, Timestamp),
}

impl Entry {
    /// How many receipts are under a root that both sides have signed.
    fn covered(&self) -> u64 {
        self.root.map_or(0, |signed| signed.root.count)
    }

    /// The root over all receipts so far, if they are more than the newest signed one covers.
    fn uncovered(&self) -> Option<ReceiptRoot> {
        match &self.tree {
            Tree::Known(history) if history.count() > self.covered() => history.root(),
            _ => None,
        }
    }

    /// Appends to the tree what has no gap before it any more; returns the nodes to keep. A
    /// receipt that contradicts those before it freezes the channel: both are signed.
    fn grow(&mut self) -> Vec<Node> {
        let mut kept = Vec::new();
        while let Some(next) = self.ahead.remove(&self.account.booked) {
            self.account.booked = self.account.booked.saturating_add(1);
            let Tree::Known(history) = &mut self.tree else {
                continue;
            };
            match history.append(&next) {
                Ok(nodes) => kept.extend(nodes),
                Err(error) => {
                    tracing::error!(seller = %self.account.seller.short(), %error, "a seller contradicts its own receipts and is not used again");
                    self.account.standing = Standing::Frozen;
                    self.tree = Tree::Lost;
                }
            }
        }
        kept
    }
}

/// What must be written because a receipt was booked.
#[derive(Debug)]
pub(in crate::ledger) struct Booked {
    pub(in crate::ledger) account: Account,
    pub(in crate::ledger) fate: Fate,
    pub(in crate::ledger) nodes: Vec<Node>,
}

/// What became of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It settled a purchase we had money set aside for.
    Settled,
    /// It is for a purchase we had forgotten (a crash); it is covered by our signature.
    Recovered,
    /// It was booked before.
    Known,
    /// The seller has signed another one for the same place: both are kept, and nothing more is
    /// promised to it.
    Double,
}

/// What must be written because a promise was made.
#[derive(Debug, Clone, Copy)]
pub(in crate::ledger) struct Change {
    pub(in crate::ledger) account: Account,
    pub(in crate::ledger) row: DayRow,
}

/// All channels, and what is promised in all.
#[derive(Debug, Default)]
pub(in crate::ledger) struct Books {
    channels: HashMap<ChannelId, Entry>,
    pub(in crate::ledger) days: Days,
    pub(in crate::ledger) once: Onces,
    pub(in crate::ledger) models: Models,
    pub(in crate::ledger) approvals: Approvals,
}

impl Books {
    pub(in crate::ledger) fn load(
        &mut self,
        id: ChannelId,
        account: Account,
        ahead: impl Iterator<Item = (u64, history::Entry)>,
    ) {
        let recorded = account.channel.ceiling();
        let ahead = ahead.collect();
        self.channels.insert(
            id,
            Entry {
                account,
                ahead,
                held: HashMap::new(),
                recorded,
                unsettled: true,
                tree: Tree::default(),
                root: None,
                asked: (0, Timestamp(0)),
            },
        );
    }

    fn entry(&mut self, id: ChannelId) -> Result<&mut Entry, LedgerError> {
        self.channels.get_mut(&id).ok_or(LedgerError::NoChannel)
    }

    pub(in crate::ledger) fn account(&self, id: ChannelId) -> Option<Account> {
        self.channels.get(&id).map(|entry| entry.account)
    }

    pub(in crate::ledger) fn accounts(&self) -> Vec<(ChannelId, Account)> {
        self.channels
            .iter()
            .map(|(id, entry)| (*id, entry.account))
            .collect()
    }

    /// The sellers with a frozen channel.
    pub(in crate::ledger) fn frozen(&self) -> impl Iterator<Item = NodeId> + '_ {
        let accounts = self.channels.values().map(|entry| &entry.account);
        let frozen = accounts.filter(|account| account.standing == Standing::Frozen);
        frozen.map(|account| account.seller)
    }

    pub(in crate::ledger) fn in_doubt(&self, id: ChannelId) -> bool {
        self.channels.get(&id).is_some_and(|entry| {
            let doubtful = entry.held.values().any(|held| held.doubtful);
            let missing = entry.held.is_empty() && !entry.ahead.is_empty();
            doubtful || missing || entry.unsettled
        })
    }

    pub(in crate::ledger) fn doubts(&self, id: ChannelId) -> Vec<RequestId> {
        let held = self.channels.get(&id).map(|entry| &entry.held);
        let held = held.into_iter().flatten();
        held.filter(|(_, held)| held.doubtful)
            .map(|(request, _)| *request)
            .collect()
    }

    /// What counts against `total`: all that we have signed.
    pub(in crate::ledger) fn promised(&self, day: u64) -> Promised {
        let ceilings = self
            .channels
            .values()
            .map(|entry| entry.account.channel.ceiling());
        Promised {
            today: self.days.today(day),
            total: ceilings.fold(self.once.total(), Amount::saturating_add),
        }
    }

    pub(in crate::ledger) fn recorded(&mut self, id: ChannelId, ceiling: Amount) {
        if let Some(entry) = self.channels.get_mut(&id) {
            entry.recorded = entry.recorded.max(ceiling);
        }
    }

    pub(in crate::ledger) fn is_recorded(&self, id: ChannelId, ceiling: Amount) -> bool {
        self.channels
            .get(&id)
            .is_some_and(|entry| entry.recorded >= ceiling)
    }

    /// Sets `want.more` aside; `Some` when a higher ceiling must be written first.
    pub(in crate::ledger) fn promise(
        &mut self,
        want: Want,
        limits: &Limits,
        day: u64,
    ) -> Result<Option<Change>, LedgerError> {
        let account = self.account(want.channel).ok_or(LedgerError::NoChannel)?;
        if account.standing != Standing::Good {
            return Err(LedgerError::NotInUse(account.standing));
        }
        self.within_model((want.model, want.more), limits, day)?;
        let mut channel = account.channel;
        let before = channel.ceiling();
        let required = channel.required(want.more)?.max(want.floor);
        if required > before.min(channel.available()) {
            let seller = B256::from(*account.seller.as_bytes());
            let ceiling = self.affordable(&channel, required, (&want, seller), (limits, day))?;
            channel.issue(ceiling)?;
        }
        channel.reserve(want.more)?;
        let raised = channel.ceiling().saturating_sub(before);
        let entry = self.entry(want.channel)?;
        entry.account.channel = channel;
        let held = entry.held.entry(want.request).or_insert(Held {
            amount: Amount::ZERO,
            model: want.model,
            doubtful: false,
        });
        held.amount = held.amount.saturating_add(want.more);
        let account = entry.account;
        self.models.hold(want.model, want.more);
        if raised.is_zero() {
            return Ok(None);
        }
        let seller = B256::from(*account.seller.as_bytes());
        let row = self.days.add(seller, raised, day);
        Ok(Some(Change { account, row }))
    }

    /// The ceiling to sign: with headroom if the limits and the deposit leave room for it.
    fn affordable(
        &self,
        channel: &Channel,
        required: Amount,
        (want, seller): (&Want, B256),
        (limits, day): (&Limits, u64),
    ) -> Result<Amount, LedgerError> {
        let available = channel.available();
        if required > available {
            return Err(Rejected::OverDeposit {
                ceiling: required,
                available,
            }
            .into());
        }
        let generous = required.saturating_add(want.headroom).min(available);
        let raise = |ceiling: Amount| ceiling.saturating_sub(channel.ceiling());
        match self.within(raise(generous), seller, limits, day) {
            Ok(()) => Ok(generous),
            Err(_) => self
                .within(raise(required), seller, limits, day)
                .map(|()| required),
        }
    }

    /// What the limits of the day, of a seller and of all leave room for.
    pub(in crate::ledger) fn within(
        &self,
        more: Amount,
        seller: B256,
        limits: &Limits,
        day: u64,
    ) -> Result<(), LedgerError> {
        let promised = self.promised(day);
        let checks = [
            (
                "per_seller",
                limits.per_seller,
                self.days.to_seller(seller, day),
            ),
            ("per_day", limits.per_day, promised.today),
            ("total", limits.total, promised.total),
        ];
        for (limit, allowed, spent) in checks {
            if spent.saturating_add(more) > allowed {
                return Err(LedgerError::Limit {
                    limit,
                    allowed,
                    spent,
                    more,
                });
            }
        }
        Ok(())
    }

    /// One model's share of the day: whatever covers it, also slack that was signed for others.
    pub(in crate::ledger) fn within_model(
        &self,
        (model, more): (B256, Amount),
        limits: &Limits,
        day: u64,
    ) -> Result<(), LedgerError> {
        let (allowed, spent) = (limits.of_model(model), self.models.spent(model, day));
        if !more.is_zero() && spent.saturating_add(more) > allowed {
            return Err(LedgerError::Limit {
                limit: "per_model",
                allowed,
                spent,
                more,
            });
        }
        Ok(())
    }

    pub(in crate::ledger) fn release(&mut self, id: ChannelId, request: RequestId) {
        let Some(entry) = self.channels.get_mut(&id) else {
            return;
        };
        let Some(held) = entry.held.remove(&request) else {
            return;
        };
        self.models.release(held.model, held.amount);
        if let Err(error) = entry.account.channel.release(held.amount) {
            tracing::error!(channel = %id.short(), %error, "money was released twice");
        }
    }

    pub(in crate::ledger) fn doubt(&mut self, id: ChannelId, request: RequestId) {
        let Some(entry) = self.channels.get_mut(&id) else {
            return;
        };
        if let Some(held) = entry.held.get_mut(&request) {
            held.doubtful = true;
            // Written with the next change: whoever breaks off gets less ahead next time.
            let channel = &mut entry.account.channel;
            channel.learn(Lesson::Caution, Amount::ZERO);
        }
    }

    /// Whether money is set aside for a purchase.
    pub(in crate::ledger) fn holds(&self, id: ChannelId, request: RequestId) -> bool {
        let entry = self.channels.get(&id);
        entry.is_some_and(|entry| entry.held.contains_key(&request))
    }

    /// What a running purchase has set aside, and for which model.
    pub(in crate::ledger) fn held(
        &mut self,
        id: ChannelId,
        request: RequestId,
    ) -> Result<(Amount, B256), LedgerError> {
        let held = self.entry(id)?.held.get(&request);
        Ok(held
            .map(|held| (held.amount, held.model))
            .unwrap_or_default())
    }

    /// A purchase is settled: nothing is set aside for it any more.
    pub(in crate::ledger) fn forget(&mut self, id: ChannelId, request: RequestId) {
        if let Some(entry) = self.channels.get_mut(&id) {
            entry.held.remove(&request);
        }
    }

    pub(in crate::ledger) fn settle_doubts(&mut self, id: ChannelId, doubts: &[RequestId]) {
        for request in doubts {
            self.release(id, *request);
        }
        if let Some(entry) = self.channels.get_mut(&id) {
            entry.unsettled = false;
        }
    }

    /// Books a receipt at its place.
    pub(in crate::ledger) fn book(
        &mut self,
        checked: &VerifiedReceipt,
        lesson: Lesson,
    ) -> Result<Booked, LedgerError> {
        let receipt = checked.receipt();
        let entry = self.entry(receipt.channel)?;
        if receipt.seq < entry.account.booked || entry.ahead.contains_key(&receipt.seq) {
            return Ok(Booked {
                account: entry.account,
                fate: Fate::Known,
                nodes: Vec::new(),
            });
        }
        let mut channel = entry.account.channel;
        let fate = match entry.held.get(&receipt.request) {
            Some(held) => {
                // The seller may have worked on what an older promise covers, ahead of us.
                let beyond = receipt.charged.saturating_sub(held.amount);
                channel.reserve(beyond)?;
                channel.settle(held.amount.saturating_add(beyond), receipt.charged)?;
                Fate::Settled
            }
            None => {
                channel.reserve(receipt.charged)?;
                channel.settle(receipt.charged, receipt.charged)?;
                Fate::Recovered
            }
        };
        channel.learn(lesson, receipt.charged);
        entry.account.channel = channel;
        let held = entry.held.remove(&receipt.request);
        entry
            .ahead
            .insert(receipt.seq, history::Entry::of_checked(checked));
        let nodes = entry.grow();
        let account = entry.account;
        if let Some(held) = held {
            self.models.release(held.model, held.amount);
        }
        Ok(Booked {
            account,
            fate,
            nodes,
        })
    }

    /// How many receipts the tree must be read from; nothing when it is in memory.
    pub(in crate::ledger) fn unread(&mut self, id: ChannelId) -> Result<Option<u64>, LedgerError> {
        let entry = self.entry(id)?;
        let unread = matches!(entry.tree, Tree::Unread);
        Ok(unread.then_some(entry.account.booked))
    }

    /// Puts a tree that was read in its place.
    pub(in crate::ledger) fn plant(&mut self, id: ChannelId, tree: Tree) {
        if let Some(entry) = self.channels.get_mut(&id)
            && matches!(entry.tree, Tree::Unread)
        {
            entry.tree = tree;
        }
    }

    /// The root to have signed now, if it is time.
    pub(in crate::ledger) fn due_root(
        &mut self,
        id: ChannelId,
        now: Timestamp,
    ) -> Option<ReceiptRoot> {
        let entry = self.channels.get_mut(&id)?;
        let count = entry.account.booked;
        let (asked, at) = entry.asked;
        let many = count.saturating_sub(asked.max(entry.covered())) >= history::ROOT_EVERY;
        if !many && now.since(at) < ROOT_PAUSE {
            return None;
        }
        let root = entry.uncovered()?;
        entry.asked = (count, now);
        Some(root)
    }

    /// The root over all receipts that none covers yet.
    pub(in crate::ledger) fn whole_root(&self, id: ChannelId) -> Option<ReceiptRoot> {
        self.channels.get(&id)?.uncovered()
    }

    /// Enters a root that both have signed; true if it is newer than the one there was.
    pub(in crate::ledger) fn cosign(&mut self, root: CoSigned) -> Result<bool, LedgerError> {
        let entry = self.entry(root.root.channel)?;
        let newer = root.root.count > entry.covered();
        if newer {
            entry.root = Some(root);
        }
        Ok(newer)
    }

    pub(in crate::ledger) fn root(&self, id: ChannelId) -> Option<CoSigned> {
        self.channels.get(&id)?.root
    }

    pub(in crate::ledger) fn update(
        &mut self,
        id: ChannelId,
        change: impl FnOnce(&mut Account) -> Result<(), Rejected>,
    ) -> Result<Account, LedgerError> {
        let entry = self.entry(id)?;
        let mut account = entry.account;
        change(&mut account)?;
        entry.account = account;
        entry.recorded = entry.recorded.min(account.channel.ceiling());
        Ok(account)
    }

    pub(in crate::ledger) fn observe(
        &mut self,
        seen: &Opened,
        now: Timestamp,
    ) -> Result<Account, LedgerError> {
        if !self.channels.contains_key(&seen.id) {
            let Base {
                charged,
                receipts,
                ceiling,
            } = seen.base;
            let mut channel = Channel::open(seen.balance, seen.claimed);
            let (charged, ceiling) = (charged.max(seen.claimed), ceiling.max(seen.claimed));
            channel.adopt(charged, receipts, ceiling)?;
            let account = Account {
                seller: seen.seller,
                config: seen.config,
                channel,
                booked: receipts,
                standing: Standing::Good,
                opened: now,
            };
            self.load(seen.id, account, std::iter::empty());
            self.entry(seen.id)?.unsettled = false;
        }
        let entry = self.entry(seen.id)?;
        let mut channel = entry.account.channel;
        match channel.observe(seen.balance, seen.claimed) {
            Ok(()) => {
                channel.arm(seen.armed);
                if entry.account.standing == Standing::Short {
                    entry.account.standing = Standing::Good;
                }
            }
            // The seller did not claim in time and we have our money back, or our chain node is
            // behind: nothing is promised until it shows the money (again).
            Err(Rejected::Regressed { .. }) if seen.balance < channel.charged() => {
                channel.arm(channel.balance());
                if entry.account.standing == Standing::Good {
                    entry.account.standing = Standing::Short;
                }
            }
            Err(error) => return Err(error.into()),
        }
        entry.account.channel = channel;
        Ok(entry.account)
    }
}
