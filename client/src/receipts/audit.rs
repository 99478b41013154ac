//! Whether receipts prove what they say: by their signatures, their order, their totals and the
//! root over them. Pure: of the own books or of a file from anywhere.

use farthing_protocol::amount::Amount;
use farthing_protocol::eip712::Signed;
use farthing_protocol::history::History;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::root;
use serde::Serialize;

use crate::receipts::base;
use crate::report::{PaymentReport, ReceiptBook, ReceiptReport};

/// The most faults that are spelled out; all are counted.
const SPELLED: usize = 20;

/// What was found in one channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What its receipts were checked against.
    #[serde(skip)]
    pub book: ReceiptBook,
    /// Receipts looked at.
    pub checked: u64,
    /// What they charge.
    pub charged: Amount,
    /// How many of the channel's receipts are under a root that both sides have signed, and that
    /// these receipts lead to.
    pub covered: u64,
    /// How many faults there are.
    pub count: u64,
    /// The first of them.
    pub faults: Vec<String>,
}

/// What is wrong with the receipt of a payment over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PaymentFault {
    /// The purchase.
    pub payment: RequestId,
    /// What is wrong.
    pub fault: &'static str,
}

/// What was found in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// In each channel.
    pub verdicts: Vec<Verdict>,
    /// In payments over HTTP, whose receipts stand alone: no root and no order bind them.
    pub payments: Vec<PaymentFault>,
}

impl Checked {
    /// How many faults there are.
    #[must_use]
    pub fn faults(&self) -> u64 {
        let channels = self.verdicts.iter().map(|verdict| verdict.count);
        let payments = u64::try_from(self.payments.len()).unwrap_or(u64::MAX);
        channels.fold(payments, u64::saturating_add)
    }
}

/// What is wrong with a payment's receipt, if it has one.
#[must_use]
pub fn payment_fault(held: &PaymentReport) -> Option<PaymentFault> {
    let signed = held.payment.receipt.as_ref()?;
    let fault = if signed.clone().verify(signed.seller).is_err() {
        "its receipt is not signed by the seller it names"
    } else if signed.receipt.charged != held.payment.charged {
        "its receipt says another charge than the payment"
    } else {
        return None;
    };
    Some(PaymentFault {
        payment: held.payment.request,
        fault,
    })
}

/// One channel being checked.
#[derive(Debug)]
pub struct Audit {
    verdict: Verdict,
    /// The tree so far; nothing when what was before is not known.
    history: Option<History>,
    next: u64,
    total: Option<Amount>,
}

impl Audit {
    /// Begins with what is known of the channel itself.
    #[must_use]
    pub fn of(book: ReceiptBook) -> Self {
        let history = base(&book).map(|peaks| History::resume(book.channel, peaks, None));
        let mut audit = Self {
            next: book.from,
            history,
            total: None,
            verdict: Verdict {
                book,
                checked: 0,
                charged: Amount::ZERO,
                covered: 0,
                count: 0,
                faults: Vec::new(),
            },
        };
        audit.terms();
        audit
    }

    /// The channel's own words: its id, the root, and what the seller signed against it.
    fn terms(&mut self) {
        let book = self.verdict.book.clone();
        if book.config.id(&book.network) != book.channel {
            self.fault("the channel's id is not that of its terms".to_owned());
        }
        if let Some(root) = &book.root
            && let Err(error) = root.verify(&book.config, &book.network)
        {
            self.fault(format!(
                "the root over {} receipts: {error}",
                root.root.count
            ));
        }
        if let Some(other) = book.contradiction {
            let Signed { message, .. } = other;
            let domain = root::domain(&book.network);
            let claim = book.config.receiver_authorizer;
            let whose = match other.verify(&domain, claim) {
                Ok(_) => "the seller has signed",
                Err(_) => "somebody other than the seller has signed",
            };
            let count = message.count;
            self.fault(format!(
                "{whose} another root over the first {count} receipts"
            ));
        }
        for other in book.doubles {
            let seq = other.receipt.seq;
            let whose = match other.verify(book.seller) {
                Ok(_) => "the seller has signed",
                Err(_) => "somebody other than the seller has signed",
            };
            self.fault(format!("{whose} another receipt {seq} too"));
        }
        self.compare();
    }

    fn fault(&mut self, what: String) {
        self.verdict.count = self.verdict.count.saturating_add(1);
        if self.verdict.faults.len() < SPELLED {
            self.verdict.faults.push(what);
        }
    }

    /// Checks the next receipt.
    pub fn take(&mut self, held: &ReceiptReport) {
        let (receipt, book) = (&held.signed.receipt, &self.verdict.book);
        let seq = receipt.seq;
        let signed = held.signed.clone().verify(book.seller).is_ok();
        let foreign = receipt.channel != book.channel;
        self.verdict.checked = self.verdict.checked.saturating_add(1);
        self.verdict.charged = self.verdict.charged.saturating_add(receipt.charged);
        if foreign {
            return self.fault(format!("receipt {seq} is another channel's"));
        }
        if !signed {
            self.fault(format!("receipt {seq} is not signed by the seller"));
        }
        // Beyond the last one without a gap others may be missing: purchases still under way.
        let loose = seq > self.next && self.next >= self.verdict.book.count;
        if seq != self.next && !loose {
            let next = self.next;
            self.fault(format!("receipt {seq} where {next} is the next"));
            self.history = None;
        }
        if !loose && seq == self.next {
            self.follow(held);
        }
        self.next = seq.saturating_add(1);
        self.total = Some(receipt.cumulative);
    }

    /// The receipt follows another, or is the first here.
    fn follow(&mut self, held: &ReceiptReport) {
        let receipt = &held.signed.receipt;
        let due = self
            .total
            .map(|total| total.saturating_add(receipt.charged));
        if due.is_some_and(|due| due != receipt.cumulative) {
            let (seq, got) = (receipt.seq, receipt.cumulative);
            self.fault(format!(
                "receipt {seq} says {got} atoms in all, which does not follow from the one before"
            ));
        }
        self.total = Some(receipt.cumulative);
        if let Some(history) = &mut self.history
            && history.push(receipt).is_err()
        {
            self.history = None;
        }
        self.compare();
    }

    /// At the root's count, the tree must be the root's.
    fn compare(&mut self) {
        let Some(root) = self.verdict.book.root else {
            return;
        };
        let Some(history) = &self.history else {
            return;
        };
        if history.count() != root.root.count {
            return;
        }
        // Where nothing was taken yet, the total is not known: the hash says it all.
        let own = history
            .root()
            .map_or_else(|| history.peaks().root(), |own| Some(own.root));
        let total = self.total.is_none_or(|total| total == root.root.cumulative);
        if own == Some(root.root.root) && total {
            self.verdict.covered = root.root.count;
        } else {
            let count = root.root.count;
            self.fault(format!(
                "the first {count} receipts are not those of the root that both have signed"
            ));
        }
    }

    /// What was found.
    #[must_use]
    pub fn end(mut self) -> Verdict {
        let (next, count) = (self.next, self.verdict.book.count);
        if next < count {
            self.fault(format!("receipts {next} to {} are missing", count - 1));
        }
        let root = self.verdict.book.root.map(|root| root.root.count);
        if let Some(count) = root
            && self.verdict.covered != count
            && self.verdict.count == 0
        {
            self.fault(format!(
                "the root over {count} receipts cannot be compared: what was before receipt {} is not known",
                self.verdict.book.from
            ));
        }
        self.verdict
    }
}

#[cfg(test)]
mod tests;
