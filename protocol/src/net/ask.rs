//! One question, one answer: the whole of the call protocol from the asking side.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::frame::{ANSWER_LIMIT, Answer, BOOK_PAGE, Call};
use crate::identity::NodeId;
use crate::net::session::Limits;
use crate::net::wire::{self, WireError};
use crate::net::{Net, OpenError, Protocol};
use crate::offer::SignedOffer;

/// How long a page of a book may take.
const BOOK_WAIT: Duration = Duration::from_secs(10);
/// The most bytes of one peer's book that are read.
const BOOK_BYTES: usize = 8 * 1024 * 1024;
/// How long one peer may take for its whole book.
const WHOLE_BOOK_WAIT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nothing was asked.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The conversation broke off: it is not known whether the question was heard.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The answer is one to another question.
    #[error("the answer does not fit the question")]
    Misfit,
}

/// Asks a peer, and waits for the answer for at most `wait`.
///
/// # Errors
/// [`AskError::Open`] or [`AskError::Wire`].
pub async fn ask(
    net: &Net,
    peer: NodeId,
    addresses: &[String],
    call: &Call,
    wait: Duration,
) -> Result<Answer, AskError> {
    let stream = net.open(peer, addresses, Protocol::Call).await?;
    let (mut hears, mut speaks) = wire::over(stream, Limits::default());
    speaks.send(call).await?;
    Ok(hears.expect(ANSWER_LIMIT, Instant::now() + wait).await?)
}

/// Reads the book of a connected peer, page by page. The offers are not checked yet.
///
/// # Errors
/// [`AskError`].
pub async fn read_book(net: &Net, peer: NodeId) -> Result<Vec<SignedOffer>, AskError> {
    let reading = timeout(WHOLE_BOOK_WAIT, read_pages(net, peer));
    reading
        .await
        .unwrap_or(Err(AskError::Open(OpenError::Deadline)))
}

async fn read_pages(net: &Net, peer: NodeId) -> Result<Vec<SignedOffer>, AskError> {
    let mut offers: Vec<SignedOffer> = Vec::new();
    while offers.iter().map(|offer| offer.offer.len()).sum::<usize>() < BOOK_BYTES {
        let from = u32::try_from(offers.len()).unwrap_or(u32::MAX);
        let page = timeout(
            BOOK_WAIT,
            ask(net, peer, &[], &Call::Book { from }, BOOK_WAIT),
        )
        .await;
        match page.unwrap_or(Err(AskError::Open(OpenError::Deadline)))? {
            Answer::Book(page) if page.is_empty() => break,
            Answer::Book(page) if page.len() <= BOOK_PAGE => offers.extend(page),
            _ => return Err(AskError::Misfit),
        }
    }
    Ok(offers)
}
