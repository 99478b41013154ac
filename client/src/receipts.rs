//! What can be asked about the receipts held: a page of them, all of a channel, the proof of one.
//!
//! Only reads. A running gateway answers with it on its control socket, and the command line
//! itself when no gateway runs.

pub mod audit;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use farthing_protocol::clock::Timestamp;
use farthing_protocol::evidence::Evidence;
use farthing_protocol::history::BLOCK;
use farthing_protocol::merkle::Peaks;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::receipt::{SignedReceipt, model_hash};
use farthing_protocol::x402::{ChannelId, Network};

use crate::ledger::{Account, Gap, Kept, Ledger, LedgerError};
use crate::report::{
    ActionError, PaymentReport, ReceiptBook, ReceiptPage, ReceiptQuery, ReceiptReport,
};

/// The most receipts in one page.
pub const MOST: usize = 1_000;
/// Receipts read at once.
const STRETCH: usize = 128;
/// The most receipts looked at for one page; a filter that finds nothing in so many goes on in
/// the next one.
const MOST_READ: usize = 100_000;
/// The most receipts for places already taken that are shown: a line of an export has a limit.
const DOUBLES_SHOWN: usize = 8;
/// How far receipts of parallel purchases may be out of the order in which they ended.
const DISORDER: u64 = 256;

/// The receipts in some books.
#[derive(Debug, Clone, Copy)]
pub struct Receipts<'a> {
    ledger: &'a Ledger,
    network: &'a Network,
}

/// One channel's receipts from the newest on.
struct Lane<'a> {
    ledger: &'a Ledger,
    id: ChannelId,
    /// Those read and not yet taken, the newest last.
    ready: Vec<Kept>,
    /// All from this place on are read.
    next: u64,
}

impl Lane<'_> {
    /// The end of the newest, if there is one.
    fn head(&mut self) -> Result<Option<Timestamp>, LedgerError> {
        if self.ready.is_empty() && self.next > 0 {
            self.ready = self.ledger.receipts_before(self.id, self.next, STRETCH)?;
            self.ready.reverse();
            let oldest = self.ready.first().map(|kept| kept.receipt.receipt.seq);
            self.next = oldest.unwrap_or(0);
        }
        let newest = self.ready.last();
        Ok(newest.map(|kept| kept.receipt.receipt.finished))
    }
}

impl<'a> Receipts<'a> {
    /// The receipts in these books.
    #[must_use]
    pub const fn new(ledger: &'a Ledger, network: &'a Network) -> Self {
        Self { ledger, network }
    }

    /// A page of receipts, newest first. Those that ended in the same millisecond as the last one
    /// are all on it, so that the next page begins cleanly before.
    ///
    /// # Errors
    /// The store's.
    pub fn page(&self, query: &ReceiptQuery) -> Result<ReceiptPage, LedgerError> {
        let limit = (query.limit as usize).clamp(1, MOST);
        let wanted = Wanted::of(query);
        let mut lanes = self.lanes(query)?;
        let mut order = BinaryHeap::new();
        for (place, lane) in lanes.iter_mut().enumerate() {
            order.extend(lane.head()?.map(|finished| (finished, Reverse(place))));
        }
        let (mut page, mut read) = (ReceiptPage::default(), 0_usize);
        while let Some((finished, Reverse(place))) = order.pop() {
            let last = page
                .receipts
                .last()
                .map(|it: &ReceiptReport| it.signed.receipt.finished);
            if (page.receipts.len() >= limit && last != Some(finished)) || read >= MOST_READ {
                page.next = Some(Timestamp(finished.0.saturating_add(1)));
                break;
            }
            if query.since.is_some_and(|since| finished < since) {
                break;
            }
            let Some(lane) = lanes.get_mut(place) else {
                break;
            };
            read += 1;
            if let Some(kept) = lane.ready.pop()
                && wanted.is(&kept)
            {
                page.receipts.push(report(kept));
            }
            order.extend(lane.head()?.map(|finished| (finished, Reverse(place))));
        }
        self.with_payments(page, query, limit)
    }

    /// Adds the payments over HTTP of a page's time, and cuts it where both are enough.
    fn with_payments(
        &self,
        mut page: ReceiptPage,
        query: &ReceiptQuery,
        limit: usize,
    ) -> Result<ReceiptPage, LedgerError> {
        page.payments = self.payments(query)?;
        // What ended in the next page's first millisecond, or before it, is for that page.
        if let Some(next) = page.next {
            page.payments.retain(|held| held.payment.at >= next);
        }
        let receipts = page.receipts.iter();
        let mut times: Vec<_> = receipts
            .map(|held| held.signed.receipt.finished)
            .chain(page.payments.iter().map(|held| held.payment.at))
            .collect();
        times.sort_unstable_by_key(|at| Reverse(*at));
        if times.len() > limit
            && let Some(oldest) = limit.checked_sub(1).and_then(|last| times.get(last))
            && times.last().is_some_and(|last| last < oldest)
        {
            let kept = |at: Timestamp| at >= *oldest;
            page.receipts
                .retain(|held| kept(held.signed.receipt.finished));
            page.payments.retain(|held| kept(held.payment.at));
            page.next = Some(*oldest);
        }
        Ok(page)
    }

    /// The payments over HTTP that a query is about, newest first.
    ///
    /// # Errors
    /// The store's.
    pub fn payments(&self, query: &ReceiptQuery) -> Result<Vec<PaymentReport>, LedgerError> {
        let wanted = |held: &PaymentReport| {
            let (payment, seller) = (&held.payment, held.payment.seller.to_string());
            query.channel.is_none_or(|only| held.channel == Some(only))
                && query
                    .seller
                    .as_ref()
                    .is_none_or(|end| seller.ends_with(end.as_str()))
                && query
                    .model
                    .as_ref()
                    .is_none_or(|model| *model == payment.model)
                && query.since.is_none_or(|since| payment.at >= since)
                && query.before.is_none_or(|before| payment.at < before)
        };
        let all = self.ledger.all_payments()?.into_iter();
        let mut all: Vec<_> = all
            .map(|(channel, payment)| PaymentReport { channel, payment })
            .filter(wanted)
            .collect();
        all.sort_by_key(|held| (Reverse(held.payment.at), held.payment.request));
        Ok(all)
    }

    /// The payment over HTTP of one purchase.
    ///
    /// # Errors
    /// [`ActionError::Unknown`] when there is none; the store's.
    pub fn payment(&self, request: RequestId) -> Result<PaymentReport, ActionError> {
        let found = self.ledger.payment(request)?;
        let report = found.map(|(channel, payment)| PaymentReport { channel, payment });
        report.ok_or_else(|| ActionError::Unknown("payment over HTTP of this request".into()))
    }

    /// Where to begin in each channel that a query is about.
    fn lanes(&self, query: &ReceiptQuery) -> Result<Vec<Lane<'a>>, LedgerError> {
        let mut lanes = Vec::new();
        for (id, account) in self.ledger.accounts() {
            let seller = account.seller.to_string();
            let other = query.channel.is_some_and(|only| only != id)
                || query
                    .seller
                    .as_ref()
                    .is_some_and(|end| !seller.ends_with(end.as_str()));
            if other {
                continue;
            }
            let next = match query.before {
                Some(before) => self.place(id, before)?,
                None => u64::MAX,
            };
            lanes.push(Lane {
                ledger: self.ledger,
                id,
                ready: Vec::new(),
                next,
            });
        }
        Ok(lanes)
    }

    /// A place in a channel before which lie all receipts that ended before a moment.
    fn place(&self, id: ChannelId, before: Timestamp) -> Result<u64, LedgerError> {
        let end = self.ledger.newest_receipts(id, 1)?;
        let end = end.first().map_or(0, |kept| kept.receipt.receipt.seq + 1);
        let (mut low, mut high) = (0, end);
        while low < high {
            let middle = low.midpoint(high);
            let found = self.ledger.receipts(id, middle, 1)?;
            let later = |kept: &Kept| kept.receipt.receipt.finished >= before;
            if found.first().is_none_or(later) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low.saturating_add(DISORDER).min(end))
    }

    /// The receipts of a channel from `from` on, in order.
    ///
    /// # Errors
    /// The store's.
    pub fn stretch(&self, id: ChannelId, from: u64) -> Result<Vec<ReceiptReport>, LedgerError> {
        let kept = self.ledger.receipts(id, from, MOST)?;
        Ok(kept.into_iter().map(report).collect())
    }

    /// The receipt of one purchase.
    ///
    /// # Errors
    /// [`ActionError::Unknown`] when there is none (any more); the store's.
    pub fn one(&self, request: RequestId) -> Result<ReceiptReport, ActionError> {
        let kept = self.ledger.receipt(request)?;
        kept.map(report).ok_or_else(|| {
            let what = "receipt of this request in the books; one that was pruned is in the archive, if [receipts] keeps one";
            ActionError::Unknown(what.into())
        })
    }

    /// What is needed of each channel to check its receipts elsewhere.
    ///
    /// # Errors
    /// The store's.
    pub fn books(&self) -> Result<Vec<ReceiptBook>, LedgerError> {
        let mut books = Vec::new();
        for (id, account) in self.ledger.accounts() {
            books.push(self.book(id, &account)?);
        }
        books.sort_by_key(|book| book.channel);
        Ok(books)
    }

    fn book(&self, id: ChannelId, account: &Account) -> Result<ReceiptBook, LedgerError> {
        let first = self.ledger.receipts(id, 0, 1)?;
        let from = first
            .first()
            .map_or(account.booked, |kept| kept.receipt.receipt.seq);
        let before = self.ledger.history(id, from - from % BLOCK);
        let peaks = match before.as_ref().map(|history| history.peaks()) {
            Ok(peaks) if peaks.count() == from => peaks.hashes().to_vec(),
            Err(Gap::Read(error)) => return Err(error.clone().into()),
            _ => Vec::new(),
        };
        Ok(ReceiptBook {
            channel: id,
            network: self.network.clone(),
            config: account.config,
            seller: account.seller,
            from,
            peaks,
            count: account.booked,
            root: self.ledger.root(id),
            contradiction: self.ledger.contradiction(id)?,
            doubles: self.doubles(id)?,
        })
    }

    /// Some are as good as all: the first has ended the channel.
    fn doubles(&self, id: ChannelId) -> Result<Vec<SignedReceipt>, LedgerError> {
        let mut doubles = self.ledger.doubles(id)?;
        doubles.truncate(DOUBLES_SHOWN);
        Ok(doubles)
    }

    /// The evidence of one receipt, checked.
    ///
    /// # Errors
    /// [`ActionError::Unknown`] when there is no such receipt; [`ActionError::Refused`] when no
    /// root of both covers it, or what the proof is made of was pruned.
    pub fn evidence(&self, request: RequestId) -> Result<Evidence, ActionError> {
        let signed = self.one(request)?.signed;
        let (id, seq) = (signed.receipt.channel, signed.receipt.seq);
        let account = self.ledger.account(id);
        let account = account.ok_or_else(|| ActionError::Unknown("such channel".into()))?;
        let root = self.ledger.root(id).filter(|root| seq < root.root.count);
        let root = root.ok_or_else(|| {
            ActionError::Refused(
                "the seller has not signed a root over this receipt yet; it does with a later purchase, or at once when asked through a running gateway".into(),
            )
        })?;
        let proof = match self.ledger.proof(id, seq, root.root.count) {
            Ok(Some(proof)) => proof,
            Err(Gap::Read(error)) => return Err(LedgerError::from(error).into()),
            Ok(None) | Err(Gap::Missing) => {
                let why = "other receipts that its proof is made of are not in the books";
                return Err(ActionError::Refused(why.into()));
            }
        };
        let evidence = Evidence {
            network: self.network.clone(),
            channel: account.config,
            signed,
            root,
            proof,
        };
        match evidence.verify() {
            Ok(()) => Ok(evidence),
            Err(flaw) => Err(ActionError::Internal(format!(
                "the proof made is none: {flaw}"
            ))),
        }
    }
}

/// What a page's receipts must be.
struct Wanted<'q> {
    query: &'q ReceiptQuery,
    model: Option<alloy::primitives::B256>,
}

impl<'q> Wanted<'q> {
    fn of(query: &'q ReceiptQuery) -> Self {
        Self {
            query,
            model: query.model.as_deref().map(model_hash),
        }
    }

    fn is(&self, kept: &Kept) -> bool {
        let receipt = &kept.receipt.receipt;
        self.model.is_none_or(|model| model == receipt.model_hash)
            && self
                .query
                .before
                .is_none_or(|before| receipt.finished < before)
            && self
                .query
                .since
                .is_none_or(|since| receipt.finished >= since)
    }
}

fn report(kept: Kept) -> ReceiptReport {
    ReceiptReport {
        model: kept.model,
        endpoint: kept.endpoint,
        dispute: kept.dispute,
        signed: kept.receipt,
    }
}

/// The tree before the first receipt of a book: nothing when its peaks do not say.
#[must_use]
pub fn base(book: &ReceiptBook) -> Option<Peaks> {
    Peaks::new(book.from, book.peaks.clone())
}

impl From<LedgerError> for ActionError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::NoChannel => Self::Unknown("such channel".into()),
            LedgerError::Commit(_)
            | LedgerError::Read(_)
            | LedgerError::Batch(_)
            | LedgerError::Archive(_) => Self::Internal(error.to_string()),
            other => Self::Refused(other.to_string()),
        }
    }
}
