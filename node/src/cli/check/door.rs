//! The HTTP door, tried: its certificate, its address, and, where a node runs there, its prices.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use farthing_protocol::chain::{Chain, ChainError};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::payment::{
    BatchExtra, Caip2, PAYMENT_REQUIRED, PaymentRequired, PaymentRequirements, decode, scheme,
};
use farthing_protocol::purchase::Endpoint;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::cli::check::knock::{self, Reply};
use crate::cli::check::{CHAIN_TIMEOUT, Check};
use crate::config::{Config, HttpConfig};
use crate::http::{BindError, Certificate};

/// The longest until the door must answer one question.
const ANSWER: Duration = Duration::from_secs(20);
/// How long before a certificate ends it is time to think of the next.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// Everything about the door; nothing while it is shut. `claim` is the claim key's address, if it
/// is known.
pub(super) async fn door(
    config: &Config,
    claim: Option<Address>,
    chain: Option<&Chain>,
) -> Vec<Check> {
    let Some(listen) = config.http.listen else {
        return Vec::new();
    };
    let mut checks = Vec::new();
    let certificate = Certificate::read(&config.http);
    checks.extend(tls(&certificate, Clock::system().now()));
    checks.push(address(config, claim, (listen, certificate.ok().flatten())).await);
    checks.extend(public_url(&config.http));
    if let Some(chain) = chain {
        checks.push(exact(
            timeout(CHAIN_TIMEOUT, eip3009(chain))
                .await
                .unwrap_or_else(|_| late()),
        ));
        checks.push(upto(
            timeout(CHAIN_TIMEOUT, chain.verify_upto())
                .await
                .unwrap_or_else(|_| late()),
        ));
    }
    checks
}

fn late<T>() -> Result<T, ChainError> {
    Err(ChainError::Unavailable("it takes too long".into()))
}

/// The certificate can be read, fits its key, and is valid now.
pub(super) fn tls(
    certificate: &Result<Option<Certificate>, BindError>,
    now: Timestamp,
) -> Option<Check> {
    let name = "door's certificate";
    let certificate = match certificate {
        Ok(certificate) => certificate.as_ref()?,
        Err(error) => {
            let todo = "give the certificate's chain (your own first) in http.tls_certificate and its key in http.tls_key, both PEM and readable by this user";
            return Some(Check::problem(name, error, todo));
        }
    };
    let Some((from, until)) = certificate.valid() else {
        let what = "it is no certificate that we can read";
        return Some(Check::problem(
            name,
            what,
            "ask your certificate authority for another",
        ));
    };
    Some(if now < from {
        Check::problem(
            name,
            "it is not valid yet",
            "set this machine's clock, or wait",
        )
    } else if now >= until {
        let days = now.since(until).as_secs() / 86_400;
        let what = format!("it expired {days} days ago: buyers refuse it");
        Check::problem(name, what, "renew it, then restart the node")
    } else if until.since(now) < SOON {
        let days = until.since(now).as_secs() / 86_400;
        let todo = "renew it, then restart the node: it is read at the start";
        Check::warning(name, format!("it expires in {days} days"), todo)
    } else {
        let days = until.since(now).as_secs() / 86_400;
        Check::ok(name, format!("fits its key and is good for {days} days"))
    })
}

/// The address is free, or a node of ours answers there.
async fn address(
    config: &Config,
    claim: Option<Address>,
    (listen, certificate): (SocketAddr, Option<Certificate>),
) -> Check {
    let name = "door";
    match TcpListener::bind(listen) {
        Ok(_) => Check::ok(
            name,
            format!("{listen} is free; while the node runs, this asks it for its prices too"),
        ),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            asked(config, claim, (listen, certificate)).await
        }
        Err(error) => Check::problem(
            name,
            format!("{listen}: {error}"),
            "set http.listen to an address of this machine and a port above 1023",
        ),
    }
}

/// Asks what is there for its prices, as a buyer does: by GET, and by a POST without a payment.
pub(super) async fn asked(
    config: &Config,
    claim: Option<Address>,
    (listen, certificate): (SocketAddr, Option<Certificate>),
) -> Check {
    let name = "door";
    let model = config.models.first();
    let endpoint = model.and_then(|model| model.endpoints.first().copied());
    let path = format!("/v1{}", endpoint.unwrap_or(Endpoint::Chat).path());
    let body = json!({
        "model": model.map_or("none", |model| model.id.as_str()),
        "messages": [{ "role": "user", "content": "What does it cost?" }],
        "max_tokens": 1,
    });
    for (method, body) in [("GET", None), ("POST", Some(&body))] {
        let body = body.map(Value::to_string).unwrap_or_default();
        let asking = knock::ask(listen, certificate.clone(), (method, &path, &body));
        let answered = timeout(ANSWER, asking).await;
        let answered = answered.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let found = answered.and_then(|reply| price(&reply, config, claim));
        if let Err(what) = found {
            return Check::problem(
                name,
                format!("{method} {path} at {listen}: {what}"),
                "if that is this node, restart it with this configuration (and see its log); else stop what listens there, or set http.listen",
            );
        }
    }
    Check::ok(
        name,
        format!("{listen} answers GET and POST with 402 and these terms"),
    )
}

/// The price in an answer, if it is one that a buyer can pay to this node.
fn price(reply: &Reply, config: &Config, claim: Option<Address>) -> Result<(), String> {
    if reply.status != 402 {
        return Err(format!("it answers {} and not 402", reply.status));
    }
    let header = reply.header(PAYMENT_REQUIRED);
    let header = header.ok_or("its 402 has no PAYMENT-REQUIRED header: no node of ours")?;
    let required: PaymentRequired =
        decode(header.as_bytes()).map_err(|error| format!("its price cannot be read: {error}"))?;
    if let Some(base) = &config.http.public_url {
        let url = &required.resource.url;
        if !url.starts_with(base.trim_end_matches('/')) {
            return Err(format!(
                "it calls itself {url}, not http.public_url ({base})"
            ));
        }
    }
    let mut ways = required.accepts.iter();
    let batch = ways.find(|way| way.scheme == scheme::BATCH);
    let batch = batch.ok_or("it does not offer batch-settlement")?;
    required
        .accepts
        .iter()
        .try_for_each(|way| terms(way, config, claim))?;
    channel(batch, config, claim)
}

/// What all ways to pay have.
fn terms(way: &PaymentRequirements, config: &Config, claim: Option<Address>) -> Result<(), String> {
    let chain = &config.chain;
    let payout = chain.payout.or(claim);
    let checks = [
        (
            "network",
            "chain.chain_id",
            way.network == Caip2(chain.chain_id),
        ),
        ("asset", "chain.token", way.asset == chain.token),
        (
            "payTo",
            "chain.payout",
            payout.is_none_or(|payout| payout == way.pay_to),
        ),
        ("amount", "a price", !way.amount.is_zero()),
    ];
    wrong(&way.scheme, &checks)
}

/// What a channel's terms are made of.
fn channel(
    way: &PaymentRequirements,
    config: &Config,
    claim: Option<Address>,
) -> Result<(), String> {
    let extra: BatchExtra = serde_json::from_value(Value::Object(way.extra.clone()))
        .map_err(|error| format!("its batch-settlement terms cannot be read: {error}"))?;
    let chain = &config.chain;
    let checks = [
        (
            "withdrawDelay",
            "chain.withdraw_delay",
            extra.withdraw_delay == chain.withdraw_delay.as_secs(),
        ),
        (
            "receiverAuthorizer",
            "the claim key",
            claim.is_none_or(|claim| claim == extra.receiver_authorizer),
        ),
        ("name", "chain.token_name", extra.name == chain.token_name),
        (
            "version",
            "chain.token_version",
            extra.version == chain.token_version,
        ),
        (
            "minDeposit",
            "chain.min_deposit",
            extra.min_deposit == Some(chain.min_deposit),
        ),
    ];
    wrong(&way.scheme, &checks)
}

fn wrong(scheme: &str, checks: &[(&str, &str, bool)]) -> Result<(), String> {
    match checks.iter().find(|(.., holds)| !holds) {
        Some((field, key, _)) => Err(format!("its {field} for {scheme} is not {key}")),
        None => Ok(()),
    }
}

/// Buyers are told an address; one that only they have named is not signed.
pub(super) fn public_url(http: &HttpConfig) -> Option<Check> {
    let name = "door's address";
    match &http.public_url {
        Some(url) if url.starts_with("http://") && !url.contains("://127.0.0.1") => {
            let todo = "put a proxy that speaks TLS before the door and write its https:// address";
            let what =
                format!("{url} is not encrypted: prompts and payments can be read on the way");
            Some(Check::warning(name, what, todo))
        }
        Some(url) => Some(Check::ok(name, url)),
        None => Some(Check::warning(
            name,
            "http.public_url is not set: prices and receipts for others than this machine are not signed (`offer-receipt`)",
            "set http.public_url to how buyers reach the door, such as https://node.example",
        )),
    }
}

/// Whether the token keeps authorizations as EIP-3009 has it.
async fn eip3009(chain: &Chain) -> Result<(), ChainError> {
    let nobody = Address::repeat_byte(1);
    chain.authorization_used(nobody, B256::ZERO).await.map(drop)
}

pub(super) fn exact(found: Result<(), ChainError>) -> Check {
    let name = "payments by exact";
    match found {
        Ok(()) => Check::ok(name, "the token takes authorizations (EIP-3009)"),
        Err(error) if error.is_unavailable() => {
            Check::warning(name, error, "try again when the chain answers")
        }
        Err(error) => Check::problem(
            name,
            format!("the token knows no authorizations (EIP-3009): {error}"),
            "set chain.token to one that does, such as USDC: deposits need it too",
        ),
    }
}

pub(super) fn upto(found: Result<(), ChainError>) -> Check {
    let name = "payments by upto";
    match found {
        Ok(()) => Check::ok(name, "Permit2 and its proxy are there"),
        Err(error) if error.is_unavailable() => {
            Check::warning(name, error, "try again when the chain answers")
        }
        Err(error) => Check::warning(
            name,
            format!("not offered on this chain: {error}"),
            "nothing, if channels and exact are enough; the contracts are not ours to deploy",
        ),
    }
}
