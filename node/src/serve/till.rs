//! The counter of a stream's purchases: what the buyer says, and what is said to it.

use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::channel::Rejected;
use farthing_protocol::codec;
use farthing_protocol::frame::{ASK_LIMIT, KEPT_OPEN, PAY_LIMIT, Part, ToBuyer, ToSeller};
use farthing_protocol::identity::NodeId;
use farthing_protocol::net::Stream;
use farthing_protocol::net::session::{Limits, RecvError};
use farthing_protocol::net::wire::{self, Hears, Speaks, WireError};
use farthing_protocol::purchase::{Ask, Ending, Load, Refusal, Usage};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::root::RootWord;
use farthing_protocol::x402::ChannelId;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::admission::{self, Admitted, Payer};
use crate::ledger::{LedgerError, Reservation};
use crate::serve::turnstile::Turnstile;
use crate::serve::{Counter, Flush, Halt};
use crate::shop::{RETRY_AFTER_MS, Shop};

/// How long a buyer may take to send its ask.
const ASK_WAIT: Duration = Duration::from_secs(8);

/// The most words of a purchase that is over that are let pass: a voucher may have crossed the
/// last word.
const LATE_WORDS: usize = 8;

/// What a buyer does after a purchase.
#[derive(Debug)]
pub(in crate::serve) enum Next {
    /// It asks, or says what is no ask.
    Asks(Box<Result<Ask, WireError>>),
    /// What came belonged to the purchase before: it may ask yet.
    Waits,
    /// It is gone.
    Leaves,
}

/// Both halves of the stream, and the shop behind the counter.
pub(in crate::serve) struct Till<'s> {
    shop: &'s Shop,
    buyer: NodeId,
    hears: Hears,
    speaks: Speaks,
    /// Who decides whether the stream is kept for another purchase. Without one it is not.
    turnstile: Option<Turnstile>,
    kept: Option<OwnedSemaphorePermit>,
    /// Words of the purchase before that came since.
    late: usize,
}

impl<'s> Till<'s> {
    pub(in crate::serve) fn new(shop: &'s Shop, buyer: NodeId, stream: Stream) -> Self {
        let (hears, speaks) = wire::over(stream, Limits::default());
        Self {
            shop,
            buyer,
            hears,
            speaks,
            turnstile: None,
            kept: None,
            late: 0,
        }
    }

    /// Keeps the stream for another purchase while there is room.
    pub(in crate::serve) fn kept_by(self, turnstile: Turnstile) -> Self {
        Self {
            turnstile: Some(turnstile),
            ..self
        }
    }

    /// Whether the buyer was told that it may ask again.
    pub(in crate::serve) const fn is_open(&self) -> bool {
        self.kept.is_some()
    }

    /// Waits on a stream that was kept until something comes: no memory and no place is taken up
    /// for a buyer that says nothing. False when the node stops, the buyer is gone, or it has
    /// waited long enough.
    pub(in crate::serve) async fn is_asked_again(&mut self) -> bool {
        let Some(turnstile) = self.turnstile.clone() else {
            return false;
        };
        tokio::select! {
            biased;
            () = turnstile.stopped() => false,
            asked = self.hears.stirs(Instant::now() + KEPT_OPEN) => asked,
        }
    }

    /// What the buyer says after a purchase. What still comes of the one before means nothing.
    pub(in crate::serve) async fn next_ask(&mut self) -> Next {
        let deadline = Instant::now() + ASK_WAIT;
        loop {
            match self.hears.next(ASK_LIMIT, deadline).await {
                Ok(Some(ToSeller::Ask(ask))) => {
                    self.kept = None;
                    self.late = 0;
                    return Next::Asks(Box::new(Ok(*ask)));
                }
                Ok(Some(ToSeller::Pay(_) | ToSeller::Cancel)) if self.late < LATE_WORDS => {
                    self.late += 1;
                    if self.hears.is_quiet() {
                        return Next::Waits;
                    }
                }
                Ok(Some(_)) => {
                    let strange = "words of a purchase that is over".to_owned();
                    let error = WireError::Codec(codec::Error::Malformed(strange));
                    return Next::Asks(Box::new(Err(error)));
                }
                Ok(None) | Err(WireError::Recv(RecvError::Deadline)) => return Next::Leaves,
                Err(error) => return Next::Asks(Box::new(Err(error))),
            }
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

    /// Says that there is no room.
    pub(in crate::serve) async fn refuse_busy(&mut self, ask: &Ask) {
        let refusal = Refusal::Busy {
            retry_after_ms: RETRY_AFTER_MS,
        };
        self.shop.metrics.refused(&refusal);
        self.refuse(refusal, self.shop.seats.load(&ask.model)).await;
    }

    /// Says the last word of all.
    async fn end(&mut self, word: &ToBuyer) -> Result<(), WireError> {
        self.speaks.send(word).await?;
        self.speaks.close().await
    }
}

impl Counter for Till<'_> {
    type Word = Result<Option<ToSeller>, WireError>;

    fn payer(&self) -> Payer {
        Payer::Node(self.buyer)
    }

    async fn accepted(&mut self, load: Load) -> Result<(), WireError> {
        self.speaks.queue(&ToBuyer::Accepted { load }).await
    }

    async fn flush(&mut self) -> Result<(), WireError> {
        self.speaks.flush().await
    }

    async fn word(&mut self, deadline: Instant) -> Self::Word {
        self.hears.next(PAY_LIMIT, deadline).await
    }

    /// A buyer counts every event.
    fn shows(&self, _event: &[u8]) -> bool {
        true
    }

    /// The channel pays.
    async fn before(&mut self, _: Amount) -> Result<(), Halt> {
        Ok(())
    }

    /// The channel pays.
    async fn after(&mut self, _: Amount) {}

    async fn deliver(
        &mut self,
        piece: Bytes,
        part: Part,
        usage: Usage,
        flush: Flush,
    ) -> Result<(), WireError> {
        let chunk = ToBuyer::Chunk {
            data: piece,
            part,
            usage,
        };
        match flush {
            Flush::Now => self.speaks.send(&chunk).await,
            Flush::Later => self.speaks.queue(&chunk).await,
        }
    }

    async fn done(
        &mut self,
        receipt: SignedReceipt,
        load: Load,
        root: Option<RootWord>,
    ) -> Result<(), WireError> {
        let kept = self.turnstile.as_ref().and_then(Turnstile::keep);
        let done = ToBuyer::Done {
            receipt: Box::new(receipt),
            load,
            root: root.map(Box::new),
            open: kept.is_some(),
        };
        if kept.is_none() {
            return self.end(&done).await;
        }
        self.speaks.send(&done).await?;
        self.kept = kept;
        Ok(())
    }

    /// Asks for a voucher if it is not covered.
    async fn reserve(
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
                .await_cover(admitted.channel, admitted.opening, deadline)
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

    /// Asks for a voucher that covers `more`.
    async fn await_cover(
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

    async fn heard(&mut self, channel: ChannelId, word: Self::Word) -> Option<Ending> {
        match word {
            Ok(Some(ToSeller::Pay(voucher))) => {
                match admission::take_voucher(self.shop, self.payer(), channel, voucher).await {
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
}
