//! What can be wrong with values that are of the right kind.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use alloy::primitives::Address;
use farthing_protocol::frame::ASK_LIMIT;
use farthing_protocol::net::Limits;
use farthing_protocol::offer::{MAX_ADDRESSES, MAX_LIFETIME, MAX_MODELS, MAX_TEXT};
use farthing_protocol::x402::WITHDRAW_DELAY;

use crate::config::chain::LOCAL_TOKEN;
use crate::config::{Config, ModelConfig};

/// The most rows the settlement job puts into one claim.
const MAX_ROWS: u32 = 50;
/// The deepest confirmation: nodes answer about the state of the last hundred blocks or so.
const MAX_DEPTH: u64 = 64;
/// The longest wait of any kind.
const MAX_WAIT: Duration = Duration::from_secs(30 * 86_400);

/// A value that makes no sense, named by its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {fault}")]
pub struct Invalid {
    /// The key's path in the file.
    pub key: String,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It must be given on a public chain.
    Required,
    /// It is the development network's, on a public chain.
    Development,
    /// Nothing is given where something is needed.
    Empty,
    /// It is zero.
    Zero,
    /// It is not an http or https URL.
    NotUrl,
    /// It is not a multiaddress.
    NotMultiaddr,
    /// It is not `author/name`.
    NotModelId,
    /// Another entry has the same.
    Repeated,
    /// It is larger, longer or more than this.
    Over(String),
    /// It is smaller or shorter than this.
    Under(String),
    /// It is given without this other key.
    Without(&'static str),
    /// Others can reach it, and nothing is encrypted.
    Plain,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Required => f.write_str("must be given on a public chain"),
            Self::Development => {
                f.write_str("is the development network's: write out the public chain's")
            }
            Self::Empty => f.write_str("is empty"),
            Self::Zero => f.write_str("is zero"),
            Self::NotUrl => f.write_str("is not an http:// or https:// URL"),
            Self::NotMultiaddr => {
                f.write_str("is not a multiaddress such as /ip4/0.0.0.0/tcp/4801")
            }
            Self::NotModelId => f.write_str("is not of the form author/name"),
            Self::Repeated => f.write_str("is used by another entry too"),
            Self::Over(most) => write!(f, "exceeds {most}"),
            Self::Under(least) => write!(f, "is below {least}"),
            Self::Without(other) => write!(f, "is of no use without `{other}`: give both"),
            Self::Plain => f.write_str(
                "can be reached by others: set `http.tls_certificate` and `http.tls_key`, or \
                 listen on 127.0.0.1 behind a proxy that speaks TLS",
            ),
        }
    }
}

/// Everything that is wrong.
pub(super) fn of(config: &Config) -> Vec<Invalid> {
    let mut found = Found(Vec::new());
    chain(config, &mut found);
    network(config, &mut found);
    upstream(config, &mut found);
    models(config, &mut found);
    offer(config, &mut found);
    limits(config, &mut found);
    http(config, &mut found);
    found.0
}

/// The list being made.
struct Found(Vec<Invalid>);

impl Found {
    fn when(&mut self, bad: bool, key: impl Into<String>, fault: Fault) {
        if bad {
            let key = key.into();
            self.0.push(Invalid { key, fault });
        }
    }
}

fn chain(config: &Config, found: &mut Found) {
    let chain = &config.chain;
    found.when(chain.rpc.is_empty(), "chain.rpc", Fault::Empty);
    found.when(
        !chain.rpc.iter().all(|url| is_url(url)),
        "chain.rpc",
        Fault::NotUrl,
    );
    for (key, address) in [
        ("settlement", chain.settlement),
        ("collector", chain.collector),
        ("token", chain.token),
        // One that is not given is not zero.
        ("payout", chain.payout.unwrap_or(Address::repeat_byte(1))),
    ] {
        found.when(address.is_zero(), format!("chain.{key}"), Fault::Zero);
    }
    found.when(
        chain.payout.is_none() && !chain.is_local(),
        "chain.payout",
        Fault::Required,
    );
    // A written example whose chain id was changed alone.
    found.when(
        chain.token == LOCAL_TOKEN && !chain.is_local(),
        "chain.token",
        Fault::Development,
    );
    let delay = chain.withdraw_delay.as_secs();
    let (least, most) = (*WITHDRAW_DELAY.start(), *WITHDRAW_DELAY.end());
    found.when(
        delay < least,
        "chain.withdraw_delay",
        Fault::Under(format!("{least} seconds")),
    );
    found.when(
        delay > most,
        "chain.withdraw_delay",
        Fault::Over(format!("{most} seconds")),
    );
    let settlement = &config.settlement;
    found.when(settlement.max_rows == 0, "settlement.max_rows", Fault::Zero);
    found.when(
        settlement.max_rows > MAX_ROWS,
        "settlement.max_rows",
        Fault::Over(MAX_ROWS.to_string()),
    );
    found.when(settlement.max_fee == 0, "settlement.max_fee", Fault::Zero);
    let depth = settlement.confirmations;
    found.when(depth == 0, "settlement.confirmations", Fault::Zero);
    found.when(
        depth > MAX_DEPTH,
        "settlement.confirmations",
        Fault::Over(format!(
            "{MAX_DEPTH} blocks, as far as chain nodes remember"
        )),
    );
    wait(found, "settlement.bump_after", settlement.bump_after);
    wait(found, "settlement.claim_age", settlement.claim_age);
    wait(found, "settlement.poll_interval", settlement.poll_interval);
}

fn network(config: &Config, found: &mut Found) {
    let network = &config.network;
    found.when(network.listen.is_empty(), "network.listen", Fault::Empty);
    for (key, addresses) in [
        ("network.listen", &network.listen),
        ("network.external", &network.external),
        ("network.bootstrap", &network.bootstrap),
    ] {
        let looks_wrong =
            |text: &String| !text.starts_with('/') || text.contains(char::is_whitespace);
        found.when(addresses.iter().any(looks_wrong), key, Fault::NotMultiaddr);
    }
    found.when(
        network.external.len() > MAX_ADDRESSES,
        "network.external",
        Fault::Over(format!("{MAX_ADDRESSES} addresses")),
    );
    let relay = &network.relay;
    for (key, value) in [
        ("reservations", u64::from(relay.reservations)),
        ("circuits", u64::from(relay.circuits)),
        ("circuits_per_peer", u64::from(relay.circuits_per_peer)),
        ("circuit_bytes", relay.circuit_bytes),
    ] {
        found.when(value == 0, format!("network.relay.{key}"), Fault::Zero);
    }
    if let Some(lends) = relay.lends() {
        let least = lends.least_circuits(Limits::default().connections_per_address);
        found.when(
            lends.circuits < least,
            "network.relay.circuits",
            Fault::Under(format!(
                "{least}, so that one network address cannot hold them all: raise it, or lower \
                 network.relay.circuits_per_peer"
            )),
        );
    }
    wait(
        found,
        "network.relay.circuit_duration",
        relay.circuit_duration,
    );
}

fn upstream(config: &Config, found: &mut Found) {
    let upstream = &config.upstream;
    found.when(
        !is_url(&upstream.base_url),
        "upstream.base_url",
        Fault::NotUrl,
    );
    for (key, duration) in [
        ("connect_timeout", upstream.connect_timeout),
        ("first_token_timeout", upstream.first_token_timeout),
        ("idle_timeout", upstream.idle_timeout),
        ("total_timeout", upstream.total_timeout),
        ("health_interval", upstream.health_interval),
    ] {
        wait(found, &format!("upstream.{key}"), duration);
    }
    if let Some(command) = &upstream.command {
        let nameless = command.program.as_os_str().is_empty();
        found.when(nameless, "upstream.command.program", Fault::Empty);
        wait(
            found,
            "upstream.command.ready_timeout",
            command.ready_timeout,
        );
    }
}

fn models(config: &Config, found: &mut Found) {
    found.when(
        config.models.len() > MAX_MODELS,
        "models",
        Fault::Over(format!("{MAX_MODELS} entries")),
    );
    let mut ids = HashSet::new();
    for (index, model) in config.models.iter().enumerate() {
        let key = |name: &str| format!("models[{index}].{name}");
        found.when(!ids.insert(&model.id), key("id"), Fault::Repeated);
        one_model(model, &key, found);
    }
}

fn one_model(model: &ModelConfig, key: &dyn Fn(&str) -> String, found: &mut Found) {
    found.when(!is_model_id(&model.id), key("id"), Fault::NotModelId);
    found.when(
        model.id.len() > MAX_TEXT,
        key("id"),
        Fault::Over(format!("{MAX_TEXT} bytes")),
    );
    let nameless = model.upstream_name.as_deref() == Some("");
    found.when(nameless, key("upstream_name"), Fault::Empty);
    found.when(model.endpoints.is_empty(), key("endpoints"), Fault::Empty);
    for (name, value) in [
        ("context", model.context),
        ("max_output", model.max_output),
        ("slots", model.slots),
    ] {
        found.when(value == 0, key(name), Fault::Zero);
    }
    found.when(
        model.max_output > model.context,
        key("max_output"),
        Fault::Over(format!("the context of {} tokens", model.context)),
    );
}

fn offer(config: &Config, found: &mut Found) {
    let offer = &config.offer;
    wait(found, "offer.refresh", offer.refresh);
    found.when(
        offer.lifetime > MAX_LIFETIME,
        "offer.lifetime",
        Fault::Over(format!("{} minutes", MAX_LIFETIME.as_secs() / 60)),
    );
    found.when(
        offer.refresh >= offer.lifetime,
        "offer.refresh",
        Fault::Over("what is shorter than offer.lifetime".into()),
    );
    for (key, text) in [
        ("offer.region", &offer.region),
        ("offer.data_policy", &offer.data_policy),
    ] {
        let text = text.as_deref();
        found.when(text == Some(""), key, Fault::Empty);
        found.when(
            text.is_some_and(|text| text.len() > MAX_TEXT),
            key,
            Fault::Over(format!("{MAX_TEXT} bytes")),
        );
    }
}

fn limits(config: &Config, found: &mut Found) {
    let limits = &config.limits;
    // Room for what surrounds the body in the ask's frame.
    let most = ASK_LIMIT as u64 - 4096;
    found.when(limits.max_body == 0, "limits.max_body", Fault::Zero);
    found.when(
        limits.max_body > most,
        "limits.max_body",
        Fault::Over(format!("{most} bytes")),
    );
    let none = limits.purchases_per_buyer == 0;
    found.when(none, "limits.purchases_per_buyer", Fault::Zero);
    found.when(limits.slots == 0, "limits.slots", Fault::Zero);
    wait(found, "limits.unpaid_wait", limits.unpaid_wait);
    wait(found, "limits.checkpoint", limits.checkpoint);
    wait(found, "limits.max_deadline", limits.max_deadline);
    let exposure = limits.exposure_per_payer;
    found.when(exposure.is_zero(), "limits.exposure_per_payer", Fault::Zero);
    found.when(config.log.level.is_empty(), "log.level", Fault::Empty);
}

fn http(config: &Config, found: &mut Found) {
    let http = &config.http;
    let reachable = http.listen.is_some_and(|at| !at.ip().is_loopback());
    found.when(reachable && !http.has_tls(), "http.listen", Fault::Plain);
    let (certificate, key) = (&http.tls_certificate, &http.tls_key);
    found.when(
        certificate.is_some() && key.is_none(),
        "http.tls_certificate",
        Fault::Without("http.tls_key"),
    );
    found.when(
        key.is_some() && certificate.is_none(),
        "http.tls_key",
        Fault::Without("http.tls_certificate"),
    );
    let odd = http.public_url.as_deref().is_some_and(|url| !is_url(url));
    found.when(odd, "http.public_url", Fault::NotUrl);
    found.when(http.connections == 0, "http.connections", Fault::Zero);
    found.when(http.requests == 0, "http.requests", Fault::Zero);
    wait(found, "http.read_timeout", http.read_timeout);
    wait(found, "http.turn_timeout", http.turn_timeout);
}

/// A wait is neither nothing nor for ever.
fn wait(found: &mut Found, key: &str, duration: Duration) {
    found.when(duration.is_zero(), key, Fault::Zero);
    let longest = format!("{} days", MAX_WAIT.as_secs() / 86_400);
    found.when(duration > MAX_WAIT, key, Fault::Over(longest));
}

fn is_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
}

fn is_model_id(text: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    text.split_once('/')
        .is_some_and(|(author, name)| plain(author) && plain(name))
}
