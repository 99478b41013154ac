//! The counter of one purchase: what the buyer says, and what is said to it.

use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::channel::Rejected;
use farthing_protocol::codec;
use farthing_protocol::frame::{ASK_LIMIT, PAY_LIMIT, ToBuyer, ToSeller};
use farthing_protocol::identity::NodeId;
use farthing_protocol::net::Stream;
use farthing_protocol::net::session::{Limits, RecvError};
use farthing_protocol::net::wire::{self, Hears, Speaks, WireError};
use farthing_protocol::purchase::{Ask, Ending, Load, Refusal};
use farthing_protocol::x402::ChannelId;
use tokio::time::Instant;

use crate::admission::{self, Admitted};
use crate::ledger::{LedgerError, Reservation};
use crate::serve::Halt;
use crate::shop::Shop;

/// How long a buyer may take to send its ask.
const ASK_WAIT: Duration = Duration::from_secs(8);

/// How long the word that a purchase is accepted waits for the first part of the answer, to leave
/// in one packet with it.
const NEWS_WAIT: Duration = Duration::from_millis(5);

/// Both halves of the stream, and the shop behind the counter.
pub(in crate::serve) struct Till<'s> {
    shop: &'s Shop,
    pub(in crate::serve) buyer: NodeId,
    pub(in crate::serve) hears: Hears,
    pub(in crate::serve) speaks: Speaks,
}

impl<'s> Till<'s> {
    pub(in crate::serve) fn new(shop: &'s Shop, buyer: NodeId, stream: Stream) -> Self {
        let (hears, speaks) = wire::over(stream, Limits::default());
        Self {
            shop,
            buyer,
            hears,
            speaks,
        }
    }

    /// The first frame, which must be an ask.
    pub(in crate::serve) async fn ask(&mut self) -> Result<Ask, WireError> {
        match self
            .hears
            .expect(ASK_LIMIT, Instant::now() + ASK_WAIT)
            .await?
        {
            ToSeller::Ask(ask) => Ok(*ask),
            ToSeller::Pay(_) | ToSeller::Cancel => {
                let strange = "the first frame is no ask".to_owned();
                Err(WireError::Codec(codec::Error::Malformed(strange)))
            }
        }
    }

    /// Tells whoever sent something else than an ask what is wrong with it.
    pub(in crate::serve) async fn refuse_noise(&mut self, error: &WireError) {
        let refusal = match error {
            WireError::Recv(RecvError::TooLarge { .. }) => Refusal::TooLarge {
                max: self.shop.limits.max_body,
            },
            WireError::Codec(_) => Refusal::BadRequest(error.to_string()),
            // Nobody is there to hear it.
            _ => return,
        };
        self.shop.metrics.refused(&refusal);
        self.refuse(refusal, Load::default()).await;
    }

    /// Says no. Whether the buyer still hears it does not matter.
    pub(in crate::serve) async fn refuse(&mut self, refusal: Refusal, load: Load) {
        let said = self.end(&ToBuyer::Refused { refusal, load }).await;
        if let Err(error) = said {
            tracing::debug!(%error, "the buyer did not hear its refusal");
        }
    }

    /// Says the last word.
    pub(in crate::serve) async fn end(&mut self, word: &ToBuyer) -> Result<(), WireError> {
        self.speaks.send(word).await?;
        self.speaks.close().await
    }

    /// Sets the opening amount aside, asking for a voucher if it is not covered.
    pub(in crate::serve) async fn reserve(
        &mut self,
        admitted: &Admitted,
        deadline: Instant,
    ) -> Result<Reservation, Halt> {
        loop {
            let reserved =
                self.shop
                    .ledger
                    .reserve(admitted.channel, admitted.request, admitted.opening);
            match reserved {
                Ok(reservation) => return Ok(reservation),
                Err(LedgerError::Rejected(Rejected::OverCeiling { .. })) => {}
                Err(error) => return Err(super::unavailable(&error).into()),
            }
            if let Some(ending) = self
                .await_voucher(admitted.channel, admitted.opening, deadline)
                .await?
            {
                return Err(match ending {
                    Ending::Cancelled => Halt::Gone(WireError::Ended),
                    _ => {
                        Refusal::Unavailable("no sufficient voucher came in time".to_owned()).into()
                    }
                });
            }
        }
    }

    /// Asks for a voucher that covers `more` and waits until the channel has room for it, or
    /// something ends the purchase.
    pub(in crate::serve) async fn await_voucher(
        &mut self,
        channel: ChannelId,
        more: Amount,
        deadline: Instant,
    ) -> Result<Option<Ending>, Halt> {
        let patience = (Instant::now() + self.shop.limits.unpaid_wait).min(deadline);
        loop {
            let Some(view) = self.shop.ledger.channel(channel) else {
                return Err(Refusal::NoChannel.into());
            };
            if view.channel.slack() >= more {
                return Ok(None);
            }
            let ceiling = view.channel.required(more).map_err(super::too_dear)?;
            let charged = view.channel.charged();
            self.speaks
                .send(&ToBuyer::NeedVoucher { ceiling, charged })
                .await?;
            let word = self.hears.next::<ToSeller>(PAY_LIMIT, patience).await;
            if let Some(ending) = self.heard(channel, word).await {
                return Ok(Some(if ending == Ending::Limit {
                    Ending::Unpaid
                } else {
                    ending
                }));
            }
        }
    }

    /// Acts on what the buyer said in the middle of a purchase: `Some` ends it.
    pub(in crate::serve) async fn heard(
        &mut self,
        channel: ChannelId,
        word: Result<Option<ToSeller>, WireError>,
    ) -> Option<Ending> {
        match word {
            Ok(Some(ToSeller::Pay(voucher))) => {
                match admission::take_voucher(self.shop, self.buyer, channel, voucher).await {
                    Ok(()) => None,
                    Err(refusal) => {
                        tracing::info!(channel = %channel.short(), %refusal, "a voucher was refused");
                        Some(Ending::Unpaid)
                    }
                }
            }
            Ok(Some(ToSeller::Cancel | ToSeller::Ask(_)) | None) => Some(Ending::Cancelled),
            Err(WireError::Recv(RecvError::Deadline)) => Some(Ending::Limit),
            Err(error) => {
                tracing::debug!(%error, "the buyer's stream failed");
                Some(Ending::Cancelled)
            }
        }
    }

    /// Runs `work` unless the buyer cancels first. Vouchers that come meanwhile are taken; what is
    /// queued for the buyer leaves when the work takes longer than [`NEWS_WAIT`].
    pub(in crate::serve) async fn unless_cancelled<T>(
        &mut self,
        channel: ChannelId,
        deadline: Instant,
        work: impl Future<Output = T>,
    ) -> Result<T, Halt> {
        tokio::pin!(work);
        let news = tokio::time::sleep(NEWS_WAIT);
        tokio::pin!(news);
        let mut waits = true;
        loop {
            let word = tokio::select! {
                word = self.hears.next::<ToSeller>(PAY_LIMIT, deadline) => word,
                done = &mut work => return Ok(done),
                () = &mut news, if waits => {
                    waits = false;
                    self.speaks.flush().await?;
                    continue;
                }
            };
            match self.heard(channel, word).await {
                None => {}
                Some(Ending::Cancelled) => return Err(Halt::Gone(WireError::Ended)),
                Some(Ending::Unpaid) => {
                    return Err(Refusal::Unavailable("a voucher was refused".to_owned()).into());
                }
                Some(_) => {
                    let late = "the deadline passed before the model server answered";
                    return Err(Refusal::Unavailable(late.to_owned()).into());
                }
            }
        }
    }
}
