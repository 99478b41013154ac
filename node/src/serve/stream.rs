//! The purchases of one libp2p stream, one after another.

use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::identity::NodeId;
use farthing_protocol::net::Stream;
use farthing_protocol::net::wire::WireError;
use farthing_protocol::purchase::{Ask, Refusal};

use crate::serve::till::{Next, Till};
use crate::serve::turnstile::{Place, Turnstile};
use crate::serve::{Halt, sell};
use crate::shop::Shop;

/// How long a buyer for whom there is no room may take to ask.
const TURN_AWAY_WAIT: Duration = Duration::from_secs(3);

/// The way in, and the place that was taken there.
pub type Entry = (Turnstile, Place);

/// Serves the purchases of `buyer` on a fresh stream, one after another, and returns when no
/// further one comes. `place` is the first one's.
pub async fn serve(shop: Arc<Shop>, buyer: NodeId, stream: Stream, (turnstile, place): Entry) {
    let mut till = Till::new(&shop, buyer, stream).kept_by(turnstile.clone());
    let mut asked = till.ask().await;
    let mut place = place;
    loop {
        let mut ask = match asked {
            Ok(ask) => ask,
            Err(error) => {
                tracing::debug!(%error, "no ask came");
                return till.refuse_noise(&error).await;
            }
        };
        let open = purchase(&shop, &mut till, &mut ask).await;
        drop(place);
        if !open {
            return;
        }
        (asked, place) = match next(&mut till, &turnstile, buyer).await {
            Some(next) => next,
            None => return,
        };
    }
}

/// The next ask on a stream that was kept, and its place. What comes is read only from a place: a
/// body is large.
async fn next(
    till: &mut Till<'_>,
    turnstile: &Turnstile,
    buyer: NodeId,
) -> Option<(Result<Ask, WireError>, Place)> {
    while till.is_asked_again().await {
        let Some(place) = turnstile.enter(buyer) else {
            no_room(till, turnstile).await;
            return None;
        };
        match till.next_ask().await {
            Next::Asks(asked) => return Some((*asked, place)),
            Next::Waits => {}
            Next::Leaves => return None,
        }
    }
    None
}

/// Says that we are busy, so that the buyer knows that nothing is charged; to a crowd beyond that
/// too, silence.
async fn no_room(till: &mut Till<'_>, turnstile: &Turnstile) {
    let Some(_place) = turnstile.turn_away() else {
        return tracing::debug!("no room for another purchase");
    };
    let asked = tokio::time::timeout(TURN_AWAY_WAIT, till.next_ask()).await;
    if let Ok(Next::Asks(asked)) = asked
        && let Ok(ask) = *asked
    {
        till.refuse_busy(&ask).await;
    }
}

/// One purchase; whether another may follow on the stream.
async fn purchase(shop: &Shop, till: &mut Till<'_>, ask: &mut Ask) -> bool {
    let request = ask.request;
    match sell(shop, till, ask).await {
        Ok(ending) => {
            tracing::debug!(request = %request.short(), ?ending, "purchase ended");
        }
        Err(Halt::Refused(refusal)) => {
            shop.metrics.refused(&refusal);
            tracing::debug!(request = %request.short(), %refusal, "purchase refused");
            till.refuse(refusal, shop.seats.load(&ask.model)).await;
        }
        Err(Halt::Gone(error)) => {
            tracing::debug!(request = %request.short(), %error, "the buyer is gone");
            // One that only cancelled still listens: it need not wonder what it was charged.
            let nothing =
                Refusal::Unavailable("cancelled before anything was delivered".to_owned());
            till.refuse(nothing, shop.seats.load(&ask.model)).await;
        }
    }
    till.is_open()
}

/// Tells a buyer that there is no room, once it has asked.
pub async fn turn_away(shop: &Shop, buyer: NodeId, stream: Stream) {
    let mut till = Till::new(shop, buyer, stream);
    if let Ok(Ok(ask)) = tokio::time::timeout(TURN_AWAY_WAIT, till.ask()).await {
        till.refuse_busy(&ask).await;
    }
}
