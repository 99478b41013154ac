//! The seller's answer to a buyer's root over their receipts: signed too, if it is ours.
//!
//! A root that cannot be compared is put off; it never fails the purchase it came with. A different
//! one is answered with our own, signed: from then on one of the two can be shown to be wrong.

use farthing_protocol::eip712::Signed;
use farthing_protocol::root::{CoSigned, RootWord, SignedRoot};
use farthing_protocol::store::Batch;
use farthing_protocol::x402::ChannelId;

use crate::ledger::once::is_once;
use crate::ledger::{Compared, LedgerError};
use crate::metrics::count;
use crate::shop::Shop;

/// What we say to a root that came with a purchase on `channel`, or by a call.
pub async fn answer(shop: &Shop, channel: ChannelId, root: SignedRoot) -> RootWord {
    let word = compared(shop, channel, root).await;
    let word = word.unwrap_or_else(|error| {
        tracing::error!(channel = %channel.short(), %error, "a root could not be compared");
        RootWord::Later
    });
    let kind = match word {
        RootWord::Signed(_) => "signed",
        RootWord::Later => "later",
        RootWord::Differs(_) => "differs",
        RootWord::Foreign => "foreign",
    };
    count(&shop.metrics.ledger_roots, kind);
    word
}

async fn compared(
    shop: &Shop,
    channel: ChannelId,
    root: SignedRoot,
) -> Result<RootWord, LedgerError> {
    let Some(view) = shop.ledger.channel(channel) else {
        return Ok(RootWord::Later);
    };
    if root.message.channel != channel || is_once(&view.config) {
        return Ok(RootWord::Foreign);
    }
    let Ok(verified) = root.verify(&shop.roots, view.config.payer_authorizer) else {
        return Ok(RootWord::Foreign);
    };
    match shop.ledger.compare(&verified)? {
        Compared::Later => Ok(RootWord::Later),
        Compared::Differs(own) => {
            tracing::error!(
                channel = %channel.short(),
                count = own.count,
                "a buyer has signed another root over our receipts; keep both books"
            );
            // It may cover a receipt that is only on its way to disk: behind that.
            shop.ledger.store().commit(Batch::new()).await?;
            Ok(RootWord::Differs(Signed::sign(
                own,
                &shop.roots,
                &shop.claim,
            )))
        }
        Compared::Same => {
            let ours = Signed::sign(*verified, &shop.roots, &shop.claim);
            shop.ledger
                .cosign(CoSigned {
                    root: *verified,
                    buyer: *verified.signature(),
                    seller: ours.signature,
                })
                .await?;
            Ok(RootWord::Signed(ours.signature))
        }
    }
}
