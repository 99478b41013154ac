//! Whether strangers will reach the node: its peers are asked, under a name of one use, so that a
//! running node is not disturbed.

use std::time::Duration;

use farthing_protocol::chain::{Chain, ChainError};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::keystore::Secret;
use farthing_protocol::net::{ConnectError, Net, Reachability, StartError};
use farthing_protocol::offer::MAX_SKEW;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::check::{CHAIN_TIMEOUT, Check, Outcome};
use crate::config::Config;
use crate::node::net_config;
use crate::report::Reach;

/// How long peers may take to try our ports and relays to give a place.
const PATIENCE: Duration = Duration::from_secs(25);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(100);
/// How far behind a chain's newest block may be.
const BLOCK_AGE: Duration = Duration::from_secs(600);

/// Bootstrap peers answer, strangers get in. `ports` are the checks of the ports.
pub(super) async fn reach(config: &Config, ports: &[Check]) -> Vec<Check> {
    let mut checks = Vec::new();
    // Without the ports (a running node has them) peers can be asked for, but not let in.
    let free = ports
        .iter()
        .all(|port| matches!(port.outcome, Outcome::Ok(_)));
    let mut asked = net_config(config);
    if !free {
        asked.listen.clear();
    }
    let seed = match Secret::random() {
        Ok(seed) => seed,
        Err(error) => return vec![Check::problem(NAME, error, "try again")],
    };
    let (net, _inbox) = match Net::start(*seed.expose(), asked).await {
        Ok(started) => started,
        Err(error) => return vec![not_started(&error)],
    };
    for address in &config.network.bootstrap {
        checks.push(bootstrap(address, net.dial(address).await.err()));
    }
    let alone = config.network.bootstrap.is_empty();
    match (alone, free) {
        (true, _) => checks.push(no_bootstrap(config)),
        (false, false) => checks.push(Check::warning(
            NAME,
            "not tried: the ports are in use",
            "ask the running node: `farthing-node status` says how it is reached",
        )),
        (false, true) => checks.push(reached(config, decided(&net).await)),
    }
    net.stop().await;
    checks
}

const NAME: &str = "reachable";

/// Waits until it is clear how we are reached.
async fn decided(net: &Net) -> Reachability {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = net.reachability();
        let clear = matches!(
            now,
            Reachability::Tested | Reachability::Visited | Reachability::Relayed { .. }
        );
        if clear || Instant::now() >= end {
            return now;
        }
        sleep(LOOK).await;
    }
}

fn not_started(error: &StartError) -> Check {
    let todo = match error {
        StartError::Address(_) | StartError::Bootstrap(_) => "mend the [network] table",
        StartError::Listen { .. } | StartError::ListenerClosed(_) | StartError::Deadline => {
            "set network.listen to addresses of this machine"
        }
        StartError::Setup(_) => "set network.mdns = false and try again",
    };
    Check::problem(NAME, error, todo)
}

/// One bootstrap peer answers.
pub(super) fn bootstrap(address: &str, error: Option<ConnectError>) -> Check {
    let name = "bootstrap peer";
    let Some(error) = error else {
        return Check::ok(name, address);
    };
    let todo = match error {
        ConnectError::WrongPeer => "mend the name behind /p2p/ in network.bootstrap",
        ConnectError::Oneself => "take this node's own address out of network.bootstrap",
        ConnectError::NoAddress => "write it as /ip4/<address>/tcp/<port>/p2p/<name>",
        ConnectError::Limit | ConnectError::Busy | ConnectError::Stopped => "try again",
        ConnectError::Unreachable | ConnectError::Deadline => {
            "see that this machine reaches the Internet (TCP and UDP outwards), or name another peer"
        }
    };
    Check::warning(name, format!("{address}: {error}"), todo)
}

fn no_bootstrap(config: &Config) -> Check {
    if config.network.mdns {
        let what =
            "nobody outside this local network will find the node: network.bootstrap is empty";
        return Check::warning(NAME, what, "name a peer in network.bootstrap");
    }
    Check::problem(
        NAME,
        "nobody will find the node: network.bootstrap is empty and network.mdns is off",
        "name a peer in network.bootstrap",
    )
}

/// What came of it.
pub(super) fn reached(config: &Config, reachability: Reachability) -> Check {
    let Reach { how, remedy } = Reach::of(reachability);
    match (reachability, remedy) {
        (Reachability::Unreachable(_), Some(remedy)) => Check::problem(NAME, how, remedy),
        (_, Some(remedy)) => Check::warning(NAME, how, remedy),
        (Reachability::Unknown, None) if !config.chain.is_local() => Check::warning(
            NAME,
            "no peer has tried the ports: none of them offers to",
            "name more peers in network.bootstrap",
        ),
        (_, None) => Check::ok(NAME, how),
    }
}

/// This machine's clock agrees with the chain's.
pub(super) async fn clock(chain: &Chain) -> Check {
    let latest = timeout(CHAIN_TIMEOUT, chain.latest()).await;
    let late = Err(ChainError::Unavailable("it takes too long".into()));
    let block = latest.unwrap_or(late).map(|block| block.timestamp);
    told(block, Clock::system().now())
}

/// A clock that is ahead makes offers of the future, which nobody believes; one that is behind
/// makes expired ones. A chain without traffic may be behind for any time.
pub(super) fn told(block: Result<u64, ChainError>, now: Timestamp) -> Check {
    let name = "clock";
    let block = match block {
        Ok(seconds) => Timestamp(seconds.saturating_mul(1_000)),
        Err(error) => return Check::warning(name, error, "try again when the chain answers"),
    };
    let todo = "set this machine's clock (`timedatectl set-ntp true`)";
    if block > now.plus(MAX_SKEW) {
        let behind = block.since(now).as_secs();
        let what = format!("{behind} s behind the chain's newest block: offers will have expired");
        return Check::problem(name, what, todo);
    }
    let ahead = now.since(block);
    if ahead > BLOCK_AGE {
        let seconds = ahead.as_secs();
        let what = format!(
            "{seconds} s ahead of the chain's newest block: either the chain is idle, or nobody \
             will believe offers of the future"
        );
        return Check::warning(name, what, todo);
    }
    Check::ok(name, "agrees with the chain's")
}
