//! Proves the set-up: a list of named checks, each of which says what to do when it fails.
//!
//! A check is a function of what it needs and returns one line.

mod knock;
mod door;
mod reach;

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use alloy::primitives::Address;
use farthing_protocol::chain::{Chain, ChainError};
use farthing_protocol::keystore::{KeyError, Passphrase};
use tokio::time::timeout;

use crate::cli::keys;
use crate::cli::table::Table;
use crate::config::{ChainConfig, Config, ModelConfig, UpstreamConfig};
use crate::metrics::Metrics;
use crate::node::{Keys, Outside};
use crate::upstream::{Health, Upstream};

/// The longest until a model server that already runs must answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest for all questions to the chain.
const CHAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Gas that a claim or a deposit may take; on a cheap chain, a fraction of a cent.
const GAS_OF_A_CLAIM: u128 = 300_000;

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    /// What is checked.
    name: String,
    outcome: Outcome,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All is well.
    Ok(String),
    /// The node runs, but not as it might.
    Warning { what: String, todo: String },
    /// The node cannot do its work.
    Problem { what: String, todo: String },
}

impl Check {
    fn ok(name: impl Into<String>, detail: impl Display) -> Self {
        Self {
            name: name.into(),
            outcome: Outcome::Ok(detail.to_string()),
        }
    }

    fn warning(name: impl Into<String>, what: impl Display, todo: impl Display) -> Self {
        Self {
            name: name.into(),
            outcome: Outcome::Warning {
                what: what.to_string(),
                todo: todo.to_string(),
            },
        }
    }

    /// A check that failed.
    pub(super) fn problem(name: impl Into<String>, what: impl Display, todo: impl Display) -> Self {
        Self {
            name: name.into(),
            outcome: Outcome::Problem {
                what: what.to_string(),
                todo: todo.to_string(),
            },
        }
    }

    /// True when the node cannot do its work.
    pub(super) const fn is_problem(&self) -> bool {
        matches!(self.outcome, Outcome::Problem { .. })
    }
}

/// The list as text.
pub(super) fn show(checks: &[Check]) -> String {
    let mut table = Table::default();
    for check in checks {
        let (sign, what, todo) = match &check.outcome {
            Outcome::Ok(detail) => ("ok", detail, None),
            Outcome::Warning { what, todo } => ("note", what, Some(todo)),
            Outcome::Problem { what, todo } => ("FAIL", what, Some(todo)),
        };
        let mut lines = what.lines();
        let first = lines.next().unwrap_or_default();
        table.row([sign, check.name.as_str(), first]);
        for line in lines {
            table.row(["", "", line]);
        }
        if let Some(todo) = todo {
            table.row(["", "", &format!("→ {todo}")]);
        }
    }
    let problems = checks.iter().filter(|check| check.is_problem()).count();
    let end = match problems {
        0 => "Ready: `farthing-node run`.".to_owned(),
        1 => "1 problem.".to_owned(),
        many => format!("{many} problems."),
    };
    format!("{}\n{end}\n", table.show())
}

/// Every check of a valid configuration, in the order in which to mend them.
pub(super) async fn all(config: &Config, passphrase: Option<&Passphrase>) -> Vec<Check> {
    let mut checks = vec![
        Check::ok("configuration", "valid"),
        data_dir(&config.data_dir),
    ];
    let (check, opened) = keys_open(&config.data_dir, passphrase);
    checks.push(check);
    let claim = opened.as_ref().map(|keys| keys.claim.address());
    checks.push(addresses(&config.chain, claim));
    checks.extend(upstream(&config.upstream, &config.models).await);
    let (more, there) = chain(config, claim).await;
    checks.extend(more);
    if let Some(chain) = &there {
        checks.push(reach::clock(chain).await);
    }
    let listen = config.network.listen.iter();
    let ports: Vec<Check> = listen.map(|address| port(address)).collect();
    let reached = reach::reach(config, &ports).await;
    checks.extend(ports);
    checks.extend(reached);
    checks.extend(door::door(config, claim, there.as_ref()).await);
    checks
}

/// The data directory exists, or can be made, and can be written.
fn data_dir(path: &Path) -> Check {
    let name = "data directory";
    let write = || {
        std::fs::create_dir_all(path)?;
        let probe = path.join(".check");
        std::fs::write(&probe, b"check")?;
        std::fs::remove_file(probe)
    };
    match write() {
        Ok(()) => Check::ok(name, path.display()),
        Err(error) => Check::problem(
            name,
            format!("{}: {error}", path.display()),
            "make it yours, or set data_dir to a directory that is",
        ),
    }
}

/// The keys exist, only their owner can read them, and the passphrase opens them.
fn keys_open(data_dir: &Path, passphrase: Option<&Passphrase>) -> (Check, Option<Keys>) {
    let name = "keys";
    if !keys::exist(data_dir) {
        let todo = "run `farthing-node init`";
        return (Check::problem(name, "there are none", todo), None);
    }
    let Some(passphrase) = passphrase else {
        let what = "present; not opened, for no passphrase file is given";
        let todo = "give --passphrase-file to check the keys and the claim key's gas too";
        return (Check::warning(name, what, todo), None);
    };
    match keys::open(data_dir, passphrase) {
        Ok(keys) => {
            let claim = keys.claim.address();
            let detail = format!("node {}, claim key {claim}", keys.node.id());
            (Check::ok(name, detail), Some(keys))
        }
        Err(error) => {
            let todo = match &error {
                KeyError::WrongPassphrase(_) => "give the passphrase they were made with",
                KeyError::Exposed { .. } => "then run `farthing-node check` again",
                _ => "restore the keys from a backup",
            };
            (Check::problem(name, error, todo), None)
        }
    }
}

/// Where the money goes is a place of its own.
fn addresses(config: &ChainConfig, claim: Option<Address>) -> Check {
    let name = "payout address";
    let Some(payout) = config.payout else {
        return Check::warning(
            name,
            "none given: earnings go to the claim key, which is kept on this machine",
            "set chain.payout to a cold address before there is real money in it",
        );
    };
    let contracts = [config.settlement, config.collector, config.token];
    if contracts.contains(&payout) {
        return Check::problem(
            name,
            format!("{payout} is a contract of this network: money sent there is lost"),
            "set chain.payout to an address of yours",
        );
    }
    if Some(payout) == claim {
        return Check::warning(
            name,
            "it is the claim key's, which is kept on this machine",
            "set chain.payout to a cold address",
        );
    }
    Check::ok(name, payout)
}

/// The model server answers and has the models that are sold.
async fn upstream(config: &UpstreamConfig, models: &[ModelConfig]) -> Vec<Check> {
    let name = "model server";
    let upstream = match Upstream::start(config, &Metrics::default()) {
        Ok(upstream) => upstream,
        Err(error) => {
            let todo = "mend the [upstream] table";
            return vec![Check::problem(name, error, todo)];
        }
    };
    let patience = config.command.as_ref().map_or(ANSWER_TIMEOUT, |command| {
        command.ready_timeout.max(ANSWER_TIMEOUT)
    });
    let mut health = upstream.watch_health();
    let up = timeout(patience, health.wait_for(|health| *health == Health::Up)).await;
    let checks = match up {
        Ok(Ok(_)) => match upstream.discover().await {
            Ok(discovered) => found(config, models, &discovered),
            Err(error) => vec![silent(config, error)],
        },
        _ => match upstream.health() {
            Health::Down(reason) => vec![silent(config, reason)],
            Health::Up => vec![silent(config, "it is up and down")],
        },
    };
    upstream.stop().await;
    checks
}

fn silent(config: &UpstreamConfig, reason: impl Display) -> Check {
    let todo = if config.command.is_some() {
        "run the command of [upstream.command] by hand to see what it says"
    } else {
        "start the model server, or set upstream.base_url (it ends in /v1) and api_key_file"
    };
    let what = format!("{}: {reason}", config.base_url);
    Check::problem("model server", what, todo)
}

fn found(config: &UpstreamConfig, models: &[ModelConfig], discovered: &[String]) -> Vec<Check> {
    let detail = format!("{} answers and lists {}", config.base_url, discovered.len());
    let mut checks = vec![Check::ok("model server", detail)];
    if models.is_empty() {
        checks.push(Check::problem(
            "models",
            format!(
                "none has a price; the server has: {}",
                discovered.join(", ")
            ),
            "add a [[models]] table with prices to the configuration",
        ));
    }
    for model in models {
        let name = format!("model {}", model.id);
        checks.push(match model.at_upstream(discovered) {
            Some(there) => Check::ok(name, format!("is {there} at the server")),
            None => Check::problem(
                name,
                format!("not found; the server has: {}", discovered.join(", ")),
                "set its upstream_name to one of them",
            ),
        });
    }
    checks
}

/// The chain answers, is the right one, has the contracts, and the claim key can pay for gas. Also
/// returns it, if it is there.
async fn chain(config: &Config, claim: Option<Address>) -> (Vec<Check>, Option<Chain>) {
    let name = "chain";
    let late = || Err(ChainError::Unavailable("it takes too long".into()));
    let outside = match Outside::real(config) {
        Ok(outside) => outside,
        Err(error) => return (vec![Check::problem(name, error, "mend chain.rpc")], None),
    };
    let chain = outside.chain;
    let verified = timeout(CHAIN_TIMEOUT, chain.verify()).await;
    let verified = chain_verified(&config.chain, verified.unwrap_or_else(|_| late()));
    let is_there = !verified.is_problem();
    let mut checks = vec![verified];
    if let Some(claim) = claim.filter(|_| is_there) {
        let funds = timeout(CHAIN_TIMEOUT, gas(&chain, claim)).await;
        let late = Err(ChainError::Unavailable("it takes too long".into()));
        checks.push(claim_gas(claim, funds.unwrap_or(late)));
    }
    (checks, is_there.then_some(chain))
}

fn chain_verified(config: &ChainConfig, verified: Result<(), ChainError>) -> Check {
    let id = config.chain_id;
    let error = match verified {
        Ok(()) => {
            let detail = format!("{id} answers; contracts, token and its signing domain are right");
            return Check::ok("chain", detail);
        }
        Err(error) => error,
    };
    let todo = match &error {
        ChainError::Unavailable(_) if config.is_local() => {
            "start the development chain (`make demo` does), or set chain.rpc"
        }
        ChainError::Unavailable(_) => "set chain.rpc to nodes that can be reached from here",
        ChainError::WrongChain { .. } => {
            "set chain.rpc to nodes of chain.chain_id, or that to theirs"
        }
        ChainError::TokenDomain { .. } => "set chain.token_name and chain.token_version",
        _ => "compare chain.settlement, collector and token with the documentation",
    };
    Check::problem("chain", error, todo)
}

/// What the key holds, and what a claim costs: both in wei.
async fn gas(chain: &Chain, claim: Address) -> Result<(u128, u128), ChainError> {
    let held = chain.gas_balance(claim).await?;
    let price = chain.fees().await?.max;
    Ok((held, price.saturating_mul(GAS_OF_A_CLAIM)))
}

fn claim_gas(claim: Address, funds: Result<(u128, u128), ChainError>) -> Check {
    let name = "gas";
    match funds {
        Ok((held, cost)) if held < cost => Check::problem(
            name,
            format!("the claim key {claim} holds {held} wei; one claim may cost {cost}"),
            "send it some of the chain's own coin",
        ),
        Ok((held, cost)) => {
            let claims = held.checked_div(cost);
            let enough = claims.map_or("any number of".into(), |claims| claims.to_string());
            Check::ok(name, format!("enough for {enough} claims at today's price"))
        }
        Err(error) => Check::problem(name, error, "try again when the chain answers"),
    }
}

/// Nobody else listens at this multiaddress.
fn port(multiaddr: &str) -> Check {
    let name = "port";
    let Some((address, transport)) = socket_of(multiaddr) else {
        let what = format!("{multiaddr}: neither TCP nor QUIC on an IP address");
        return Check::warning(name, what, "it is tried when the node starts");
    };
    let bound = match transport {
        Transport::Tcp => TcpListener::bind(address).map(drop),
        Transport::Udp => UdpSocket::bind(address).map(drop),
    };
    match bound {
        Ok(()) => Check::ok(name, format!("{multiaddr} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Check::warning(
            name,
            format!("{multiaddr} is in use"),
            "all is well if that is this node, running; else set network.listen",
        ),
        Err(error) => Check::problem(
            name,
            format!("{multiaddr}: {error}"),
            "set network.listen to an address of this machine and a port above 1023",
        ),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

/// The socket behind `/ip4/…/tcp/…` or `/ip6/…/udp/…/quic-v1`.
fn socket_of(multiaddr: &str) -> Option<(SocketAddr, Transport)> {
    let mut parts = multiaddr.strip_prefix('/')?.split('/');
    let ip: IpAddr = match parts.next()? {
        "ip4" => IpAddr::V4(parts.next()?.parse().ok()?),
        "ip6" => IpAddr::V6(parts.next()?.parse().ok()?),
        _ => return None,
    };
    let transport = match parts.next()? {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => return None,
    };
    let port = parts.next()?.parse().ok()?;
    Some((SocketAddr::new(ip, port), transport))
}

#[cfg(test)]
mod tests;
