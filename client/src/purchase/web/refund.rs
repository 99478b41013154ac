//! The rest of a channel, asked back from a seller met over plain HTTP: a GET is told the terms,
//! and a second one brings a voucher over what was charged and no more.

use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::payment::Reason;
use farthing_protocol::purchase::Endpoint;
use farthing_protocol::x402::ChannelId;
use tokio::time::{Instant, timeout_at};

use crate::channels::ChannelError;
use crate::ledger::LedgerError;
use crate::market::WebOffer;
use crate::purchase::PurchaseError;
use crate::purchase::web::ask::{Unpayable, Way};
use crate::purchase::web::{Said, WebShop, door, refused};

/// How long a seller may take to have its transaction mined.
const REFUND_WAIT: Duration = Duration::from_secs(150);
/// How often its counter is taken over.
const TRIES: u32 = 2;

impl WebShop {
    /// Has the seller send the unspent rest of a channel back, at its gas; returns how much our
    /// own chain node shows to have come, in atoms. Its counter is taken over first where our
    /// signature proves it.
    ///
    /// # Errors
    /// [`PurchaseError`].
    pub async fn refund(&self, offer: &WebOffer, id: ChannelId) -> Result<Amount, PurchaseError> {
        let deadline = Instant::now() + REFUND_WAIT;
        let turn = self.purse.channels.turn(offer.id).lock_owned();
        let turn = timeout_at(deadline, turn).await;
        let _turn = turn.map_err(|_| PurchaseError::Late("turn with this seller"))?;
        let url = door::url(&offer.base, Endpoint::Chat)?;
        let asked = self.door.ask(url.clone(), None, None, deadline).await?;
        let mut way = self.way(asked)?;
        for _ in 0..TRIES {
            let (ledger, wallet) = (&self.purse.ledger, &self.purse.wallet);
            let account = ledger.account(id).ok_or(LedgerError::NoChannel)?;
            let config = account.config;
            if way.config(config.payer, config.payer_authorizer, config.salt) != config {
                return Err(Unpayable::Terms("those of another channel").into());
            }
            let doubts = ledger.doubts(id);
            let voucher = wallet.charged(id).await?;
            let payload = way.refund(config, &voucher);
            let before = self.purse.channels.chain().channel(id).await;
            let before = before.map_err(ChannelError::from)?.balance;
            let asked = self.door.ask(url.clone(), None, Some(&payload), deadline);
            match asked.await? {
                Said::Sold { .. } => {
                    // It took a voucher over exactly our count.
                    ledger.settle_doubts(id, &doubts);
                    return Ok(self.purse.channels.returned(id, before).await?);
                }
                said => {
                    let asked = self.way(said)?;
                    let why = asked.required.error.as_deref().unwrap_or_default();
                    match Reason::of(why) {
                        Some(Reason::BatchMismatch | Reason::BatchBelowClaimed) => {
                            self.correct(&asked, Some(id), None).await?;
                        }
                        _ => {
                            let why: String = why.chars().take(200).collect();
                            return Err(PurchaseError::Lost(format!("no refund: {why}")));
                        }
                    }
                    way = asked;
                }
            }
        }
        Err(PurchaseError::Protocol(
            "it corrects our count again and again",
        ))
    }

    fn way(&self, said: Said) -> Result<Way, PurchaseError> {
        match said {
            Said::Asked(required) => Ok(Way::of(&required, self.purse.channels.network())?),
            Said::Refused(turned) => Err(refused(turned)),
            Said::Sold { .. } => Err(PurchaseError::Protocol("it asks for no payment")),
        }
    }
}
