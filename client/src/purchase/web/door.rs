//! The way to an x402 seller, or a model server of one's own: plain HTTP, bounded and with deadlines, never redirected elsewhere.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use farthing_protocol::payment::{
    self, PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequired,
    SettlementResponse,
};
use farthing_protocol::purchase::Endpoint;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, StatusCode, Url};
use tokio::time::{Instant, timeout_at};

use crate::purchase::PurchaseError;
use crate::purchase::near::{self, Near, Rest};

/// The most bytes of an error's document that are read.
const ERROR_LIMIT: usize = 16 * 1024;
/// What is late when nothing has come.
const WORD: &str = "word from the seller";

/// Connections to sellers, and to model servers of one's own.
#[derive(Debug, Clone)]
pub(in crate::purchase) struct Door {
    far: reqwest::Client,
    near: Near,
}

/// What a seller answered.
pub(in crate::purchase) enum Said {
    /// The answer begins.
    Sold {
        settlement: Option<SettlementResponse>,
        body: Body,
    },
    /// 402.
    Asked(Box<PaymentRequired>),
    /// Another status: nothing is sold. What it was given it may still take.
    Refused(Turned),
}

/// A refusal.
pub(in crate::purchase) struct Turned {
    pub(in crate::purchase) status: u16,
    pub(in crate::purchase) body: Bytes,
    /// After how long to come again, in milliseconds.
    pub(in crate::purchase) retry_after_ms: Option<u64>,
}

/// A body that is read piece by piece.
pub(in crate::purchase) enum Body {
    Far(Box<reqwest::Response>),
    Near(Box<Rest>),
}

impl Door {
    pub(in crate::purchase) fn new(connect: Duration) -> Result<Self, PurchaseError> {
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .connect_timeout(connect)
            .no_proxy()
            .build();
        let client = client.map_err(|_| PurchaseError::Protocol("no HTTP client can be made"))?;
        Ok(Self {
            far: client,
            near: Near::new(connect),
        })
    }

    /// Sends a request, with its payment if there is one; without a body it is a GET.
    pub(in crate::purchase) async fn ask(
        &self,
        url: Url,
        body: Option<Bytes>,
        payment: Option<&PaymentPayload>,
        deadline: Instant,
    ) -> Result<Said, PurchaseError> {
        let mut request = match body {
            Some(body) => {
                let post = self.far.post(url).body(body);
                post.header(CONTENT_TYPE, "application/json")
            }
            None => self.far.get(url),
        };
        if let Some(payment) = payment {
            let text = payment::encode(payment)
                .map_err(|_| PurchaseError::Protocol("its terms do not fit a header"))?;
            request = request.header(PAYMENT_SIGNATURE, text);
        }
        answered(request, deadline).await
    }

    /// Sends a request to a model server of one's own, with its key.
    pub(in crate::purchase) async fn ask_own(
        &self,
        (base, endpoint): (&Url, Endpoint),
        body: Bytes,
        key: Option<HeaderValue>,
        deadline: Instant,
    ) -> Result<Said, PurchaseError> {
        if near::is_near(base) {
            let asked = self.near.ask((base, endpoint), body, key);
            let asked = timeout_at(deadline, asked).await;
            let (head, rest) = asked.map_err(|_| PurchaseError::Late(WORD))??;
            let body = Body::Near(Box::new(rest));
            return said((head.status(), head.headers()), body, deadline).await;
        }
        let mut request = self.far.post(url(base, endpoint)?).body(body);
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header(AUTHORIZATION, key);
        }
        answered(request, deadline).await
    }
}

/// What comes of a request.
async fn answered(request: RequestBuilder, deadline: Instant) -> Result<Said, PurchaseError> {
    let response = timeout_at(deadline, request.send()).await;
    let response = response.map_err(|_| PurchaseError::Late(WORD))?;
    let mut response = response.map_err(|error| match error.is_connect() {
        true => PurchaseError::Unreached(error.without_url().to_string()),
        false => PurchaseError::Lost(error.without_url().to_string()),
    })?;
    let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
    let body = Body::Far(Box::new(response));
    said((status, &headers), body, deadline).await
}

/// What an answer says.
async fn said(
    (status, headers): (StatusCode, &HeaderMap),
    mut body: Body,
    deadline: Instant,
) -> Result<Said, PurchaseError> {
    let header = |name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
    if status == StatusCode::PAYMENT_REQUIRED {
        let bytes = header(PAYMENT_REQUIRED).unwrap_or_default();
        let asked = payment::decode(&bytes)
            .map_err(|_| PurchaseError::Protocol("a 402 without terms that can be read"))?;
        return Ok(Said::Asked(Box::new(asked)));
    }
    let settlement = match header(PAYMENT_RESPONSE) {
        None => None,
        Some(bytes) => Some(
            payment::decode(&bytes)
                .map_err(|_| PurchaseError::Protocol("a settlement that cannot be read"))?,
        ),
    };
    let after = header("retry-after").and_then(|value| String::from_utf8(value).ok());
    let after = after.and_then(|seconds| seconds.trim().parse::<u64>().ok());
    if !status.is_success() {
        let (status, whole) = (status.as_u16(), body.whole(ERROR_LIMIT, deadline).await);
        return Ok(Said::Refused(Turned {
            status,
            body: whole.unwrap_or_default(),
            retry_after_ms: after.map(|seconds| seconds.saturating_mul(1_000)),
        }));
    }
    Ok(Said::Sold { settlement, body })
}

impl Body {
    /// The next piece; none at the end.
    pub(in crate::purchase) async fn next(
        &mut self,
        by: Instant,
    ) -> Result<Option<Bytes>, PurchaseError> {
        let next = async {
            match self {
                Self::Near(rest) => rest.next().await,
                Self::Far(response) => {
                    let piece = response.chunk().await;
                    piece.map_err(|error| PurchaseError::Lost(error.without_url().to_string()))
                }
            }
        };
        let next = timeout_at(by, next).await;
        next.map_err(|_| PurchaseError::Late("more of the answer"))?
    }

    /// All of it, if it is not longer than `limit`.
    pub(in crate::purchase) async fn whole(
        &mut self,
        limit: usize,
        by: Instant,
    ) -> Result<Bytes, PurchaseError> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next(by).await? {
            if whole.len().saturating_add(piece.len()) > limit {
                return Err(PurchaseError::Protocol("a document without end"));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }
}

/// Where an endpoint is below a base such as `https://seller.example/v1`.
pub(in crate::purchase) fn url(base: &Url, endpoint: Endpoint) -> Result<Url, PurchaseError> {
    let base = base.as_str().trim_end_matches('/');
    Url::parse(&format!("{base}{}", endpoint.path()))
        .map_err(|_| PurchaseError::Protocol("its address is no URL"))
}
