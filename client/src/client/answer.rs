//! What goes into a purchase and comes out of it, as applications see it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::{Endpoint, Refusal, RequestId};
use farthing_protocol::receipt::SignedReceipt;
use tokio::sync::mpsc;

use crate::market::Goods;

/// What an application wants answered.
#[derive(Debug, Clone)]
pub struct Request {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The OpenAI request body; its `model` chooses the model, its `stream` the mode.
    pub body: Bytes,
}

/// One thing an [`Answer`] yields.
#[derive(Debug, Clone)]
pub enum Event {
    /// The JSON of one stream event, or the whole document of a plain answer.
    Data(Bytes),
    /// The end, after all data: what it cost.
    End(Box<Bill>),
    /// The end of an answer bought over plain HTTP: what it cost, or at most if its seller did
    /// not say.
    Paid(Amount),
}

/// What a purchase cost, with the seller's receipt as proof.
#[derive(Debug, Clone)]
pub struct Bill {
    /// The signed receipt of the seller that ended the answer; checked and recorded.
    pub receipt: SignedReceipt,
    /// What all sellers charged that had a part in the answer, in atoms; of one that broke off and
    /// sent no receipt, what it may charge at most.
    pub charged: Amount,
    /// The receipts of those that broke off before.
    pub earlier: Vec<SignedReceipt>,
}

/// An answer on its way. Dropping it cancels the purchase; what was delivered is paid.
#[derive(Debug)]
pub struct Answer {
    /// The purchase's id.
    pub request: RequestId,
    /// Who sells.
    pub seller: NodeId,
    /// The model, as the offer names it.
    pub model: String,
    /// Why this seller: one line for people.
    pub why: String,
    /// The sellers that were tried in vain before, in order.
    pub tried: Vec<Attempt>,
    /// All that would have been asked, in order, with what they offer.
    pub plan: Vec<Arc<Goods>>,
    pub(crate) events: mpsc::Receiver<Result<Event, InferError>>,
}

impl Answer {
    /// The next event; `None` after [`Event::End`] or an error.
    pub async fn next(&mut self) -> Option<Result<Event, InferError>> {
        self.events.recv().await
    }

    /// What its seller offers of the model.
    #[must_use]
    pub fn goods(&self) -> Option<&Goods> {
        let mut plan = self.plan.iter();
        let its = |goods: &&Arc<Goods>| goods.seller == self.seller && goods.model.id == self.model;
        plan.find(its).map(|goods| &**goods)
    }
}

/// One seller that was tried in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The seller.
    pub seller: NodeId,
    /// The model it was asked for.
    pub model: String,
    /// What went wrong, as an HTTP status says it.
    pub status: u16,
    /// What went wrong.
    pub reason: String,
}

/// What a person must do before anything can be bought.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Errand {
    /// Say yes to a dear purchase, or sign a deposit elsewhere.
    #[error("a person is needed: {0}")]
    Approval(String),
    /// Fill the wallet: it cannot fund a channel.
    #[error(
        "the wallet {address} holds {balance} atoms but {needed} are needed for a deposit; send the token to it"
    )]
    EmptyWallet {
        /// The payer's address.
        address: String,
        /// What it holds.
        balance: Amount,
        /// What is needed.
        needed: Amount,
    },
}

/// Why there is no answer, or no more of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InferError {
    /// The request is wrong and would be refused by every seller.
    #[error("{0}")]
    BadRequest(String),
    /// The body is larger than any seller takes.
    #[error("the request body has {len} bytes; at most {max} are accepted")]
    TooLarge {
        /// Bytes given.
        len: usize,
        /// Bytes accepted.
        max: usize,
    },
    /// Nobody offers this model.
    #[error("no seller offers the model `{model}`; `farthing models` lists what is on offer")]
    UnknownModel {
        /// The model asked for.
        model: String,
    },
    /// The model is known but nobody sells it now on acceptable terms.
    #[error("no seller for `{model}`: {reason}")]
    NoSeller {
        /// The model asked for.
        model: String,
        /// Why each was left out.
        reason: String,
    },
    /// A limit of the spend policy forbids it.
    #[error("spend limit reached: {0}")]
    SpendLimit(String),
    /// A person must act first.
    #[error(transparent)]
    Errand(#[from] Errand),
    /// The chain cannot be used: wrong chain id, contract absent, endpoint away.
    #[error("the chain cannot be used: {0}")]
    Chain(String),
    /// The model server refused the request; its own answer.
    #[error("the model server answered {status}")]
    Upstream {
        /// HTTP status.
        status: u16,
        /// Body as it came.
        body: Bytes,
    },
    /// Every seller is busy.
    #[error("every seller of this model is busy or failing; try again in {retry_after_ms} ms")]
    Busy {
        /// The shortest wait any of them named.
        retry_after_ms: u64,
        /// Those that were asked and said so; none when their last word still counted.
        attempts: Vec<Attempt>,
    },
    /// All sellers that were tried failed before the first token.
    #[error("{} tried in vain: {}", .attempts.len(), describe(.attempts))]
    Failed {
        /// Who was tried, and what happened.
        attempts: Vec<Attempt>,
    },
    /// The answer broke off after it had begun, and nobody could go on with it. What was delivered
    /// is paid.
    #[error("the answer broke off: {0}")]
    Interrupted(Break),
    /// The client itself cannot go on (its ledger failed).
    #[error("the client cannot go on: {0}")]
    Internal(String),
}

/// Why an answer broke off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// What went wrong first, and why nobody went on with it.
    pub reason: String,
    /// The sellers that were tried or broke off, in order.
    pub attempts: Vec<Attempt>,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl<T: Into<String>> From<T> for Break {
    fn from(reason: T) -> Self {
        Self {
            reason: reason.into(),
            attempts: Vec::new(),
        }
    }
}

fn describe(attempts: &[Attempt]) -> String {
    let lines: Vec<_> = attempts
        .iter()
        .map(|a| format!("{}: {}", a.seller.short(), a.reason))
        .collect();
    lines.join("; ")
}

impl InferError {
    /// The sellers that were tried in vain, or broke off, in order.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        match self {
            Self::Busy { attempts, .. } | Self::Failed { attempts } => attempts,
            Self::Interrupted(broken) => &broken.attempts,
            _ => &[],
        }
    }

    /// Whether another model may still take the request: this one refused what it says.
    #[must_use]
    pub const fn is_about_the_request(&self) -> bool {
        matches!(
            self,
            Self::BadRequest(_)
                | Self::TooLarge { .. }
                | Self::Upstream { .. }
                | Self::UnknownModel { .. }
        )
    }
}

/// How a refusal reads to the application.
impl From<Refusal> for InferError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Upstream { status, body } => Self::Upstream { status, body },
            Refusal::Busy { retry_after_ms } => Self::Busy {
                retry_after_ms,
                attempts: Vec::new(),
            },
            Refusal::BadRequest(reason) => Self::BadRequest(reason),
            other => Self::Interrupted(other.to_string().into()),
        }
    }
}
