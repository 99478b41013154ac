//! The door: the ordered list of checks a purchase must pass, each with its named refusal.
//!
//! The cheapest comes first; nothing is worked and nothing reserved before the last. A rule one
//! cannot point at cannot be disputed, so each is one function.

use alloy::primitives::{B256, keccak256};
use farthing_protocol::amount::Amount;
use farthing_protocol::body::Body;
use farthing_protocol::channel::Acceptance;
use farthing_protocol::eip712::SignatureError;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::{ModelOffer, OfferHash};
use farthing_protocol::pricing::{self, Demand};
use farthing_protocol::purchase::{Ask, Endpoint, Mode, Refusal, RequestId, VoucherFault};
use farthing_protocol::receipt::model_hash;
use farthing_protocol::voucher::SignedVoucher;
use farthing_protocol::x402::ChannelId;

use crate::ledger::once::is_once;
use crate::ledger::{ChannelView, Ledger, LedgerError};
use crate::shop::Shop;
use crate::upstream::{Health, prepare_body};

/// A purchase that may be served: everything that was checked, by type.
#[derive(Debug)]
pub struct Admitted {
    /// The purchase.
    pub request: RequestId,
    /// The channel that pays.
    pub channel: ChannelId,
    /// The offer whose prices apply.
    pub offer: OfferHash,
    /// The model on offer.
    pub model: ModelOffer,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Plain or streamed.
    pub mode: Mode,
    /// The most it can use.
    pub demand: Demand,
    /// How many answers it asks for.
    pub choices: u64,
    /// The most it may cost.
    pub max_cost: Amount,
    /// What to reserve before work starts.
    pub opening: Amount,
    /// What is charged at least, however little is used.
    pub least: Amount,
    /// keccak-256 of the body as asked.
    pub request_hash: B256,
    /// keccak-256 of the model id.
    pub model_hash: B256,
    /// The body for the model server.
    pub body: Vec<u8>,
}

/// How a buyer is known: whose money it may spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payer {
    /// By its node id, over libp2p: it has shown there that it holds the channel's key.
    Node(NodeId),
    /// By the voucher it brings, over HTTP, and by nothing else.
    Voucher,
    /// By a payment made for this purchase, over HTTP: for what it uses, or in full.
    Once {
        /// What is taken at least, however little is used: to take it costs a transaction.
        least: Amount,
    },
}

/// Passes an ask through every check.
///
/// # Errors
/// The first [`Refusal`].
pub async fn admit(shop: &Shop, payer: Payer, ask: &Ask) -> Result<Admitted, Refusal> {
    size(shop, ask)?;
    let model = on_offer(shop, ask)?;
    let body = Body::parse(&ask.body).map_err(bad_request)?;
    mode(ask, &body)?;
    healthy(shop)?;
    let demand = Demand::of(&ask.body, &body, ask.endpoint, &model).map_err(bad_request)?;
    let opening = affordable(ask, payer, &demand, &model)?;
    let view = channel(&shop.ledger, ask.channel)?;
    exposure(shop, &view)?;
    if let Some(voucher) = ask.voucher {
        take_voucher(shop, payer, ask.channel, voucher).await?;
    }
    owner(&shop.ledger, payer, ask, &view)?;
    let upstream_body = upstream_body(shop, &model, &body, ask)?;
    Ok(Admitted {
        request: ask.request,
        channel: ask.channel,
        offer: ask.offer,
        endpoint: ask.endpoint,
        mode: ask.mode,
        demand,
        choices: pricing::choices(&body).map_err(bad_request)?,
        max_cost: ask.max_cost,
        opening,
        least: match payer {
            Payer::Once { least } => least,
            Payer::Node(_) | Payer::Voucher => Amount::ZERO,
        },
        request_hash: keccak256(&ask.body),
        model_hash: model_hash(&model.id),
        body: upstream_body,
        model,
    })
}

fn size(shop: &Shop, ask: &Ask) -> Result<(), Refusal> {
    let max = shop.limits.max_body;
    if ask.body.len() as u64 > max {
        return Err(Refusal::TooLarge { max });
    }
    Ok(())
}

fn on_offer(shop: &Shop, ask: &Ask) -> Result<ModelOffer, Refusal> {
    let offer = shop
        .shelf
        .find(ask.offer, shop.clock.now())
        .ok_or(Refusal::StaleOffer)?;
    let model = offer
        .offer()
        .model(&ask.model)
        .ok_or(Refusal::UnknownModel)?;
    if !model.endpoints.contains(&ask.endpoint) {
        return Err(Refusal::Endpoint);
    }
    Ok(model.clone())
}

fn mode(ask: &Ask, body: &Body<'_>) -> Result<(), Refusal> {
    let streams = body
        .get::<bool>("stream")
        .map_err(bad_request)?
        .unwrap_or(false);
    let asked = ask.mode == Mode::Stream;
    if streams != asked {
        return Err(bad_request(
            "the body's `stream` and the ask's mode disagree",
        ));
    }
    if asked && !ask.endpoint.writes() {
        let whole = format!("{} are not streamed", ask.endpoint);
        return Err(bad_request(whole));
    }
    Ok(())
}

fn healthy(shop: &Shop) -> Result<(), Refusal> {
    match shop.upstream.health() {
        Health::Up => Ok(()),
        Health::Down(reason) => {
            tracing::debug!(%reason, "refused: the model server is down");
            Err(Refusal::Unavailable("the model server is down".to_owned()))
        }
    }
}

fn upstream_body(
    shop: &Shop,
    model: &ModelOffer,
    body: &Body<'_>,
    ask: &Ask,
) -> Result<Vec<u8>, Refusal> {
    let name = shop
        .catalog
        .upstream_name(&model.id)
        .ok_or(Refusal::UnknownModel)?;
    // What was reserved for: the newer of the two fields wins, as in `Demand::of`.
    let newer = body
        .get::<u32>("max_completion_tokens")
        .map_err(bad_request)?;
    let asked = newer.or(body.get::<u32>("max_tokens").map_err(bad_request)?);
    let reserved = asked.unwrap_or(model.max_output).min(model.max_output);
    let limit = ask.endpoint.writes().then_some(reserved);
    prepare_body(body, &name, ask.mode, limit).map_err(bad_request)
}

/// The opening reservation, if the buyer's ceiling allows for it. Who cannot be asked for another
/// voucher has all of it reserved.
fn affordable(
    ask: &Ask,
    payer: Payer,
    demand: &Demand,
    model: &ModelOffer,
) -> Result<Amount, Refusal> {
    let too_large = |_| bad_request("the request's cost cannot be represented");
    let opening = match payer {
        Payer::Node(_) => demand.opening(&model.prices, pricing::FIRST_WINDOW),
        Payer::Voucher => demand.quote(&model.prices),
        Payer::Once { least } => demand.quote(&model.prices).map(|quote| quote.max(least)),
    };
    let opening = opening.map_err(too_large)?;
    if opening > ask.max_cost {
        return Err(Refusal::CostCeiling { needed: opening });
    }
    Ok(opening)
}

fn channel(ledger: &Ledger, id: ChannelId) -> Result<ChannelView, Refusal> {
    ledger.channel(id).ok_or(Refusal::NoChannel)
}

/// The most we stand to lose to one payer, over all its channels, should claiming fail.
fn exposure(shop: &Shop, view: &ChannelView) -> Result<(), Refusal> {
    if shop.ledger.exposure(view.config.payer) >= shop.limits.exposure {
        let text =
            "the payer's unclaimed charges have reached this seller's limit; a claim is on its way";
        return Err(Refusal::Unavailable(text.to_owned()));
    }
    Ok(())
}

/// A channel is spent only by who has shown to hold its key, to us and by something that nobody
/// else can have seen: its name and its older vouchers are on the chain for all to read.
fn owner(ledger: &Ledger, payer: Payer, ask: &Ask, view: &ChannelView) -> Result<(), Refusal> {
    let proven = match payer {
        Payer::Node(buyer) => !is_once(&view.config) && ledger.is_owner(ask.channel, buyer),
        Payer::Voucher => ask.voucher.is_some(),
        // The payment was checked before it was entered; nobody else can name its channel.
        Payer::Once { .. } => is_once(&view.config),
    };
    if proven {
        Ok(())
    } else {
        Err(Refusal::Voucher(VoucherFault::Unproven))
    }
}

/// Verifies and records a voucher. The very bytes already on record need no second look.
/// Whoever brings one that is new has the channel's key.
///
/// # Errors
/// [`Refusal::Voucher`], [`Refusal::NoChannel`], [`Refusal::Unavailable`].
pub async fn take_voucher(
    shop: &Shop,
    payer: Payer,
    channel: ChannelId,
    voucher: SignedVoucher,
) -> Result<(), Refusal> {
    let view = self::channel(&shop.ledger, channel)?;
    if voucher.message.channel != channel {
        return Err(Refusal::Voucher(VoucherFault::OtherChannel));
    }
    let known = view.voucher == Some(voucher) && view.channel.ceiling() >= voucher.message.ceiling;
    if known {
        return Ok(());
    }
    let verified = voucher
        .verify(&shop.domain, view.config.payer_authorizer)
        .map_err(fault)?;
    let taken = shop.ledger.take(verified).await;
    let raised = taken.map_err(|error| refusal(&error, &view))? == Acceptance::Raised;
    if let (true, Payer::Node(buyer)) = (raised, payer) {
        shop.ledger.own(channel, buyer);
    }
    Ok(())
}

fn fault(error: SignatureError) -> Refusal {
    Refusal::Voucher(match error {
        SignatureError::WrongSigner { .. } => VoucherFault::Foreign,
        SignatureError::RecoveryByte(_) | SignatureError::HighS | SignatureError::Invalid => {
            VoucherFault::NotCanonical
        }
    })
}

fn refusal(error: &LedgerError, view: &ChannelView) -> Refusal {
    match error {
        LedgerError::NoChannel => Refusal::NoChannel,
        LedgerError::Duplicate => Refusal::Duplicate,
        LedgerError::Rejected(_) => Refusal::Voucher(VoucherFault::OverDeposit {
            available: view.channel.available(),
        }),
        other => {
            tracing::error!(error = %other, "the ledger failed");
            Refusal::Unavailable("the seller's ledger failed".to_owned())
        }
    }
}

fn bad_request(error: impl std::fmt::Display) -> Refusal {
    Refusal::BadRequest(error.to_string())
}
