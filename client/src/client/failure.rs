//! Why one seller did not do it: what that says of the seller, of us, and to the application.

use std::time::Duration;

use farthing_protocol::identity::NodeId;
use farthing_protocol::net::OpenError;
use farthing_protocol::purchase::Refusal;

use crate::channels::ChannelError;
use crate::client::answer::{Attempt, Errand, InferError};
use crate::ledger::LedgerError;
use crate::market::Outcome;
use crate::purchase::PurchaseError;
use crate::purchase::web::Unpayable;

/// The most characters of a reason that are told.
const REASON: usize = 200;

/// Why one seller did not begin, or did not end.
#[derive(Debug, thiserror::Error)]
pub(in crate::client) enum Failure {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Purchase(#[from] PurchaseError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What it sends is no answer.
    #[error("it sends what is no answer: {0}")]
    Nonsense(&'static str),
    /// Its answer is whole by its own word, and is not.
    #[error("{0}")]
    Ended(&'static str),
    /// It was to say again what another seller said, and says something else.
    #[error("its answer is another one")]
    Differs,
}

impl Failure {
    /// Whether the seller may still be heard.
    pub(in crate::client) const fn leaves_the_stream(&self) -> bool {
        match self {
            Self::Purchase(error) => error.leaves_the_stream(),
            Self::Channel(_) | Self::Ledger(_) | Self::Nonsense(_) | Self::Differs => true,
            Self::Ended(_) => false,
        }
    }

    /// Whether the seller has a payment for this purchase alone.
    pub(in crate::client) const fn is_taken(&self) -> bool {
        matches!(self, Self::Purchase(PurchaseError::Taken(_)))
    }

    /// Whether the seller says that the request is wrong.
    pub(in crate::client) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Purchase(PurchaseError::Refused(_)))
    }

    /// Whether the seller had no room, and so cost no more than one way there and back.
    pub(in crate::client) const fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::Purchase(PurchaseError::Refused(Refusal::Busy { .. }))
        )
    }

    /// Whether it may be gone when the same seller is asked once more. One that is silent or busy
    /// is not asked twice.
    pub(in crate::client) const fn may_pass(&self) -> bool {
        match self {
            Self::Purchase(error) => match error {
                PurchaseError::Refused(Refusal::Upstream { status, .. }) => {
                    matches!(*status, 500 | 502)
                }
                PurchaseError::Refused(Refusal::Unavailable(_))
                | PurchaseError::Broken(_)
                | PurchaseError::Lost(_) => true,
                _ => false,
            },
            Self::Nonsense(_) | Self::Ended(_) => true,
            _ => false,
        }
    }

    /// Why, for whoever asked: without addresses, and not at any length a seller likes.
    pub(in crate::client) fn reason(&self) -> String {
        let text = match self {
            Self::Purchase(PurchaseError::Unreachable(_) | PurchaseError::Unreached(_)) => {
                "the seller cannot be reached".to_owned()
            }
            Self::Purchase(PurchaseError::Broken(_)) => "the stream broke".to_owned(),
            Self::Purchase(PurchaseError::Lost(_)) => "the connection was lost".to_owned(),
            other => other.to_string(),
        };
        let printable = |c: &char| !c.is_control();
        text.chars().filter(printable).take(REASON).collect()
    }

    /// This failure of a seller, asked for a model, in the history of an answer.
    pub(in crate::client) fn of(&self, seller: NodeId, model: &str) -> Attempt {
        Attempt {
            seller,
            model: model.to_owned(),
            status: self.status(),
            reason: self.reason(),
        }
    }

    /// What went wrong, as an HTTP status says it.
    const fn status(&self) -> u16 {
        match self {
            Self::Purchase(error) => match error {
                PurchaseError::Refused(refusal) => match refusal {
                    Refusal::Upstream { status, .. } => *status,
                    Refusal::BadRequest(_) => 400,
                    Refusal::TooLarge { .. } => 413,
                    Refusal::Busy { .. } => 429,
                    _ => 503,
                },
                PurchaseError::Late(_) => 504,
                PurchaseError::Unpayable(_)
                | PurchaseError::Channel(_)
                | PurchaseError::Ledger(_) => 402,
                _ => 502,
            },
            Self::Channel(_) | Self::Ledger(_) => 402,
            Self::Nonsense(_) | Self::Ended(_) | Self::Differs => 502,
        }
    }
}

/// What a failure says about the seller.
pub(in crate::client) fn blame(failure: &Failure) -> Outcome {
    match failure {
        Failure::Purchase(error) => match error {
            PurchaseError::Refused(Refusal::Busy { retry_after_ms }) => Outcome::Busy {
                retry_after: Duration::from_millis(*retry_after_ms),
            },
            PurchaseError::Refused(refusal) if !refusal.may_succeed_elsewhere() => {
                Outcome::Blameless
            }
            PurchaseError::Refused(Refusal::StaleOffer)
            | PurchaseError::Unreachable(OpenError::Full)
            | PurchaseError::Ledger(_)
            | PurchaseError::Unpayable(Unpayable::Allowance { .. }) => Outcome::Blameless,
            PurchaseError::Channel(error) => blame_channel(error),
            _ => Outcome::Failed,
        },
        Failure::Channel(error) => blame_channel(error),
        Failure::Ledger(_) | Failure::Differs => Outcome::Blameless,
        Failure::Nonsense(_) | Failure::Ended(_) => Outcome::Failed,
    }
}

/// Our own wallet, limits and chain are not the seller's fault.
const fn blame_channel(error: &ChannelError) -> Outcome {
    match error {
        ChannelError::Silent(_) | ChannelError::Refused(_) | ChannelError::Liar(_) => {
            Outcome::Failed
        }
        _ => Outcome::Blameless,
    }
}

/// A failure that no other seller could mend.
pub(in crate::client) fn terminal(failure: &Failure) -> Option<InferError> {
    let ledger = match failure {
        Failure::Purchase(PurchaseError::Refused(refusal)) if !refusal.may_succeed_elsewhere() => {
            return Some(refusal.clone().into());
        }
        Failure::Purchase(PurchaseError::Ledger(error)) | Failure::Ledger(error) => error,
        Failure::Channel(ChannelError::Ledger(error)) => error,
        Failure::Purchase(PurchaseError::Channel(error)) => match &**error {
            ChannelError::Ledger(error) => error,
            _ => return None,
        },
        _ => return None,
    };
    match ledger {
        // Another seller may still be paid.
        LedgerError::Limit {
            limit: "per_seller",
            ..
        } => None,
        LedgerError::Limit { .. } => Some(InferError::SpendLimit(ledger.to_string())),
        LedgerError::Approval { .. } => Some(Errand::Approval(ledger.to_string()).into()),
        LedgerError::Commit(_)
        | LedgerError::Read(_)
        | LedgerError::Batch(_)
        | LedgerError::Archive(_) => Some(InferError::Internal(ledger.to_string())),
        _ => None,
    }
}

/// What to tell the application when all were tried: the cause it can act on, if there is one.
pub(in crate::client) fn verdict(attempts: Vec<Attempt>, causes: Vec<Failure>) -> InferError {
    let mut shortest = None;
    let mut busy = 0;
    for cause in &causes {
        if let Failure::Purchase(PurchaseError::Refused(Refusal::Busy { retry_after_ms })) = cause {
            busy += 1;
            let wait = *retry_after_ms;
            shortest = Some(shortest.map_or(wait, |least: u64| least.min(wait)));
        } else if let Some(error) = ours(cause) {
            return error;
        }
    }
    match shortest {
        Some(retry_after_ms) if busy == causes.len() => InferError::Busy {
            retry_after_ms,
            attempts,
        },
        _ => InferError::Failed { attempts },
    }
}

/// A cause that lies with the buyer's own money or chain.
pub(in crate::client) fn ours(cause: &Failure) -> Option<InferError> {
    match cause {
        Failure::Channel(error) => our_channel(error),
        Failure::Purchase(PurchaseError::Channel(error)) => our_channel(error),
        Failure::Purchase(PurchaseError::Ledger(error)) | Failure::Ledger(error) => match error {
            LedgerError::Limit { .. } => Some(InferError::SpendLimit(error.to_string())),
            LedgerError::Elsewhere(_) => Some(Errand::Approval(error.to_string()).into()),
            _ => None,
        },
        Failure::Purchase(PurchaseError::Unpayable(error @ Unpayable::Allowance { .. })) => {
            Some(Errand::Approval(error.to_string()).into())
        }
        Failure::Purchase(_) | Failure::Nonsense(_) | Failure::Ended(_) | Failure::Differs => None,
    }
}

fn our_channel(error: &ChannelError) -> Option<InferError> {
    match error {
        ChannelError::EmptyWallet {
            address,
            balance,
            needed,
        } => Some(InferError::Errand(Errand::EmptyWallet {
            address: address.clone(),
            balance: *balance,
            needed: *needed,
        })),
        ChannelError::MaxDeposit { .. } => Some(InferError::SpendLimit(error.to_string())),
        ChannelError::Elsewhere { .. } => Some(Errand::Approval(error.to_string()).into()),
        ChannelError::Chain(error) => Some(InferError::Chain(error.to_string())),
        ChannelError::Ledger(error @ LedgerError::Limit { .. }) => {
            Some(InferError::SpendLimit(error.to_string()))
        }
        _ => None,
    }
}
