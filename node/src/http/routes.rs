//! Path → handler, and what every answer says to browsers.

use std::sync::Arc;

use alloy::primitives::B256;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, CONTENT_LENGTH, HOST,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use farthing_protocol::offer::{ModelOffer, OfferHash};
use farthing_protocol::payment::{
    Batch, Caip2, PAYMENT_SIGNATURE, Payment, PaymentPayload, PaymentRequirements, Reason,
    Resource, VERSION, header, v1,
};
use farthing_protocol::purchase::{Endpoint, Refusal};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::http::answer::Form;
use crate::http::crowd::{Peer, Room};
use crate::http::problem::{Denied, Problem};
use crate::http::quote::{OFFER, Quote, Stand, Wish};
use crate::http::{Shared, answer, batch, crowd, once, witness};
use crate::upstream::Health;

/// The most bytes of a `Host` that is repeated in an answer.
const MAX_HOST: usize = 255;

/// What a handler knows of the door.
#[derive(Debug, Clone)]
struct Porch {
    shared: Arc<Shared>,
    scheme: &'static str,
}

/// Every path.
pub(in crate::http) fn all(shared: Arc<Shared>, secure: bool) -> Router {
    let scheme = if secure { "https" } else { "http" };
    let paid = |endpoint| {
        get(move |porch, uri, request| probe(endpoint, porch, uri, request))
            .post(move |porch, uri, request| purchase(endpoint, porch, uri, request))
    };
    Router::new()
        .route("/v1/chat/completions", paid(Endpoint::Chat))
        .route("/v1/completions", paid(Endpoint::Completions))
        .route("/v1/embeddings", paid(Endpoint::Embeddings))
        .route("/v1/moderations", paid(Endpoint::Moderations))
        .route("/v1/models", get(models))
        .route("/health", get(health))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(browsers))
        .with_state(Porch { shared, scheme })
}

/// Pages of any site may buy: a payment is a signature, and nothing here is known by a cookie.
async fn browsers(request: Request, next: Next) -> Response {
    let asks = request.method() == Method::OPTIONS;
    let mut response = if asks {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
    set(ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    set(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        "PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE, Retry-After",
    );
    if asks {
        set(ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS");
        set(
            ACCESS_CONTROL_ALLOW_HEADERS,
            "Content-Type, Authorization, PAYMENT-SIGNATURE, X-PAYMENT, Access-Control-Expose-Headers",
        );
        set(ACCESS_CONTROL_MAX_AGE, "86400");
    }
    response
}

async fn purchase(
    endpoint: Endpoint,
    State(porch): State<Porch>,
    uri: Uri,
    request: Request,
) -> Response {
    match sell(endpoint, &porch, uri.path(), request).await {
        Ok(response) => response,
        Err(problem) => {
            if let Problem::Refused(refusal) = &problem {
                porch.shared.desk.shop.metrics.refused(refusal);
            }
            problem.into_response()
        }
    }
}

async fn sell(
    endpoint: Endpoint,
    porch: &Porch,
    path: &str,
    request: Request,
) -> Result<Response, Problem> {
    let shared = &porch.shared;
    let (parts, body) = request.into_parts();
    let room = room(shared, &parts)?;
    let stand = porch.stand(&parts.headers, path);
    let payment = payment(&parts.headers)?;
    let body = arrived(shared, &parts.headers, body).await?;
    let wish = Wish {
        stand,
        endpoint,
        body,
        offer: payment
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .and_then(told),
    };
    let quote = Quote::of(shared, wish)?;
    let payment = match payment {
        Ok(Some(payment)) => payment,
        Ok(None) => return Ok(answer::required(shared, &quote, None, None)),
        Err(reason) => return Ok(answer::required(shared, &quote, Some(reason), None)),
    };
    let done = pay(shared, &quote, &payment, room).await;
    Ok(done.unwrap_or_else(|denied| answer::denied(shared, &quote, denied)))
}

/// Each scheme to its own.
async fn pay(
    shared: &Arc<Shared>,
    quote: &Quote,
    made: &Made,
    room: Room,
) -> Result<Response, Denied> {
    let (way, payment, form) = chosen(shared, quote, made)?;
    let once = match payment {
        Payment::Batch(Batch::Refund(_)) => return Err(Reason::BatchPayloadType.into()),
        Payment::Batch(payment) => return batch::buy(shared, quote, payment, room).await,
        Payment::Exact(payment) => once::exact(shared, &way, &payment)?,
        Payment::Upto(payment) => once::upto(shared, &way, &payment)?,
    };
    once::buy(shared, quote, (&way, once, form), room).await
}

/// What the smallest request costs; and refunds, which stock clients ask for by GET.
async fn probe(
    endpoint: Endpoint,
    State(porch): State<Porch>,
    uri: Uri,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let given = give_back(endpoint, &porch, uri.path(), &parts).await;
    given.unwrap_or_else(IntoResponse::into_response)
}

async fn give_back(
    endpoint: Endpoint,
    porch: &Porch,
    path: &str,
    parts: &Parts,
) -> Result<Response, Problem> {
    let shared = &porch.shared;
    let _room = room(shared, parts)?;
    let quote = Quote::probe(shared, porch.stand(&parts.headers, path), endpoint)?;
    let refund = match payment(&parts.headers)? {
        Ok(None) => return Ok(answer::required(shared, &quote, None, None)),
        Ok(Some(Made::Now(payment))) => payment.payment(),
        Ok(Some(Made::Older(payment))) => payment.payment(),
        Err(reason) => Err(reason),
    };
    match refund {
        Ok(Payment::Batch(Batch::Refund(refund))) => {
            let given = batch::refund(shared, refund).await;
            Ok(given.unwrap_or_else(|denied| answer::denied(shared, &quote, denied)))
        }
        Ok(_) => Err(Problem::OnlyRefund),
        Err(reason) => Ok(answer::required(shared, &quote, Some(reason), None)),
    }
}

/// Room among all requests, and among those of the same client.
fn room(shared: &Shared, parts: &Parts) -> Result<Room, Problem> {
    let peer = parts.extensions.get::<Peer>();
    let who =
        peer.and_then(|Peer(peer)| crowd::asker(*peer, &parts.headers, &shared.settings.proxies));
    let seat = shared.askers.enter(who).ok_or(Problem::Crowded)?;
    let permit = Arc::clone(&shared.requests).try_acquire_owned();
    Ok(Room::new(permit.map_err(|_| Problem::Full)?, seat))
}

/// A payment in the words of one version or the other.
enum Made {
    Now(Box<PaymentPayload>),
    Older(v1::PaymentPayload),
}

/// The payment that came with the request, or why it cannot be read.
fn payment(headers: &HeaderMap) -> Result<Result<Option<Made>, Reason>, Problem> {
    let of = |name| match answer::payment_of(headers, name) {
        Ok(Some(bytes)) if bytes.len() > header::HEADER_LIMIT => Err(Problem::LongHeader),
        other => Ok(other),
    };
    let read = match (of(PAYMENT_SIGNATURE)?, of(v1::PAYMENT)?) {
        (Ok(Some(bytes)), _) => answer::read(&bytes).map(Made::Now).map(Some),
        (Ok(None), Ok(Some(bytes))) => answer::read(&bytes).map(Made::Older).map(Some),
        (Ok(None), Ok(None)) => Ok(None),
        (Err(reason), _) | (_, Err(reason)) => Err(reason),
    };
    Ok(read)
}

/// The offer whose prices the buyer says it was told.
fn told(payment: &Made) -> Option<OfferHash> {
    let Made::Now(payment) = payment else {
        return None;
    };
    let text = payment.accepted.extra_text(OFFER)?;
    text.parse::<B256>().ok().map(OfferHash)
}

/// The payment, if it is made for what this request costs, in one of the ways that we accept.
fn chosen(
    shared: &Shared,
    quote: &Quote,
    made: &Made,
) -> Result<(PaymentRequirements, Payment, Form), Reason> {
    let chain = shared.desk.terms.network.chain_id;
    let ways = quote.accepts(shared);
    let way = |scheme: &str| {
        let way = ways.iter().find(|way| way.scheme == scheme);
        way.cloned().ok_or(Reason::UnsupportedScheme)
    };
    match made {
        Made::Now(payment) => {
            if payment.x402_version != VERSION {
                return Err(Reason::InvalidVersion);
            }
            if payment.accepted.network != Caip2(chain) {
                return Err(Reason::InvalidNetwork);
            }
            let way = way(&payment.accepted.scheme)?;
            if !way.is_echoed_by(&payment.accepted) {
                return Err(Reason::InvalidRequirements);
            }
            Ok((way, payment.payment()?, Form::Now(Caip2(chain))))
        }
        Made::Older(payment) => {
            if payment.x402_version != v1::VERSION {
                return Err(Reason::InvalidVersion);
            }
            let name = v1::name_of(chain).filter(|name| *name == payment.network);
            let name = name.ok_or(Reason::InvalidNetwork)?;
            Ok((way(&payment.scheme)?, payment.payment()?, Form::Older(name)))
        }
    }
}

/// Reads the body, at most as much as is sold and for as long as a request may take.
async fn arrived(
    shared: &Shared,
    headers: &HeaderMap,
    body: axum::body::Body,
) -> Result<Bytes, Problem> {
    let max = shared.desk.shop.limits.max_body;
    let too_large = || Problem::Refused(Refusal::TooLarge { max });
    let stated = headers.get(CONTENT_LENGTH);
    let stated = stated.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if stated.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let mut incoming = body.into_data_stream();
    let whole = async {
        let mut body = Vec::new();
        while let Some(part) = incoming.next().await {
            let part = part.map_err(|_| Problem::NotArrived("the connection broke"))?;
            body.extend_from_slice(&part);
            if body.len() as u64 > max {
                return Err(too_large());
            }
        }
        Ok(Bytes::from(body))
    };
    let read = timeout(shared.settings.read_timeout, whole).await;
    read.map_err(|_| Problem::NotArrived("it took too long (`http.read_timeout`)"))?
}

impl Porch {
    /// What is for sale at a path, and whether we vouch for that address.
    fn stand(&self, headers: &HeaderMap, path: &str) -> Stand {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let plain = host.filter(|host| {
            host.len() <= MAX_HOST && host.bytes().all(|byte| byte.is_ascii_graphic())
        });
        let host = plain.unwrap_or("localhost");
        let configured = self.shared.settings.public_url.clone();
        let attested = configured.is_some() || witness::is_here(host);
        let base = configured.unwrap_or_else(|| format!("{}://{host}", self.scheme));
        Stand {
            resource: Resource {
                url: format!("{}{path}", base.trim_end_matches('/')),
                description: Some("Inference by a Farthing node".to_owned()),
                mime_type: Some("application/json".to_owned()),
            },
            attested,
        }
    }
}

/// `GET /v1/models`: what is on sale, and its prices.
async fn models(State(porch): State<Porch>) -> Response {
    let offer = porch.shared.desk.shop.shelf.newest();
    let since = offer
        .as_ref()
        .map_or(0, |offer| offer.offer().issued.seconds());
    let models = offer.iter().flat_map(|offer| &offer.offer().models);
    let data: Vec<_> = models.map(|model| card(model, since)).collect();
    answer::free(&json!({ "object": "list", "data": data }))
}

/// A model in OpenAI's shape, with what is ours under `farthing`.
fn card(model: &ModelOffer, since: u64) -> Value {
    let owner = model.id.split_once('/');
    json!({
        "id": model.id,
        "object": "model",
        "created": since,
        "owned_by": owner.map_or("unknown", |(owner, _)| owner),
        "farthing": {
            "endpoints": model.endpoints,
            "features": model.features,
            "context": model.context,
            "max_output": model.max_output,
            "prices_micro_atoms": model.prices,
        },
    })
}

/// `GET /health`: 200 when a purchase has a chance, else 503.
async fn health(State(porch): State<Porch>) -> Response {
    let shop = &porch.shared.desk.shop;
    let up = matches!(shop.upstream.health(), Health::Up);
    let ready = up && shop.shelf.newest().is_some();
    let (status, word) = match ready {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    (status, answer::free(&json!({ "status": word }))).into_response()
}

async fn unknown_path(uri: Uri) -> Response {
    let path: String = uri.path().chars().take(MAX_HOST).collect();
    Problem::UnknownPath(path).into_response()
}

async fn wrong_method(method: Method) -> Response {
    Problem::Method(method.to_string()).into_response()
}
