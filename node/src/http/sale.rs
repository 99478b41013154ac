//! A sale beside the response that tells of it: it goes on to its receipt whatever becomes of the
//! connection.

use std::sync::Arc;

use farthing_protocol::purchase::Ask;
use tokio::sync::mpsc;

use crate::http::Shared;
use crate::http::problem::Denied;
use crate::http::window::{Means, Window, Word};
use crate::serve::{self, Halt};

/// Begins a sale; `held` is given back when it is over.
pub(in crate::http) fn begin<G: Send + 'static>(
    shared: &Arc<Shared>,
    mut ask: Ask,
    (means, shows_usage): (Means, bool),
    held: G,
) -> mpsc::Receiver<Word> {
    let shop = Arc::clone(&shared.desk.shop);
    let (mut window, words) = Window::new(shop.ledger.clone(), means, shows_usage);
    shared.sales.spawn(async move {
        let request = ask.request;
        // Here and not before, so that whatever is entered is also ended.
        if let Err(denied) = window.enter().await {
            let word = match denied {
                Denied::Refused(refusal) => Word::Refused(refusal),
                Denied::Payment(reason) | Denied::Behind(reason, _) => Word::Unpaid(reason),
            };
            // Whoever asked may have gone.
            window.say(word).await.ok();
            return;
        }
        match serve::sell(&shop, &mut window, &mut ask).await {
            Ok(ending) => tracing::debug!(request = %request.short(), ?ending, "sold over HTTP"),
            Err(Halt::Refused(refusal)) => {
                shop.metrics.refused(&refusal);
                tracing::debug!(request = %request.short(), %refusal, "refused over HTTP");
                window.forget().await;
                // Whoever asked may have gone.
                window.refuse(refusal).await.ok();
            }
            Err(Halt::Gone(error)) => {
                tracing::debug!(request = %request.short(), %error, "the client is gone");
                window.forget().await;
            }
        }
        drop(held);
    });
    words
}
