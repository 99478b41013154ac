//! Reports as text.

use std::time::Duration;

use farthing_protocol::clock::Timestamp;

use crate::cli::table::Table;
use crate::report::{ChannelEarnings, Claimed, Earnings, Status, Token, Transaction, Why};

/// How a running node is.
pub(super) fn status(status: &Status) -> String {
    let mut facts = Table::default();
    facts.row(["node", &status.node.to_string()]);
    let up = span(status.now.since(status.started));
    facts.row(["version", &format!("{}, up {up}", status.version)]);
    facts.row(["peers", &status.peers.to_string()]);
    facts.row(["reached", &status.reach.how]);
    if let Some(remedy) = &status.reach.remedy {
        facts.row(["", &format!("→ {remedy}")]);
    }
    facts.row(["payout", &status.payout.to_string()]);
    facts.row(["claim key", &status.claim.to_string()]);
    let chain = state(status.chain_away.as_deref());
    facts.row(["chain", &format!("{}, {chain}", status.chain_id)]);
    let upstream = state(status.upstream_down.as_deref());
    facts.row(["model server", &upstream]);
    let offer = status.offer.as_ref().map_or_else(
        || "none: nothing is on sale".to_owned(),
        |offer| {
            let left = span(offer.expires.since(status.now));
            format!("number {}, valid for {left}", offer.seq)
        },
    );
    facts.row(["offer", &offer]);
    let mut label = "reached at";
    for address in &status.addresses {
        facts.row([label, address]);
        label = "";
    }
    let mut models = Table::new(&[
        "model",
        "running",
        "input",
        "cached",
        "output",
        "at the server",
    ]);
    for model in &status.models {
        let there = model.upstream_name.as_deref();
        models.row([
            model.id.clone(),
            format!("{} of {}", model.running, model.slots),
            model.prices.input.to_string(),
            model.prices.cached_input.to_string(),
            model.prices.output.to_string(),
            there.unwrap_or("missing: not sold").to_owned(),
        ]);
    }
    format!(
        "{}\n{}(prices in micro-atoms per token)\n",
        facts.show(),
        models.show()
    )
}

fn state(trouble: Option<&str>) -> String {
    trouble.map_or_else(|| "answers".into(), |why| format!("does not answer: {why}"))
}

/// What the node has earned; `now` is when.
pub(super) fn earnings(earnings: &Earnings, now: Timestamp) -> String {
    let Earnings {
        token,
        total,
        channels,
        ..
    } = earnings;
    let mut sums = Table::default();
    let settled = earnings
        .settled
        .map_or("?".to_owned(), |settled| token.show(settled));
    for (name, amount, meaning) in [
        (
            "charged",
            token.show(total.charged),
            "what the receipts say",
        ),
        ("claimed", token.show(total.claimed), "safe on chain"),
        ("settled", settled, "paid out to your address"),
        (
            "at risk",
            token.show(total.at_risk),
            "charged, not claimed yet",
        ),
        (
            "in flight",
            token.show(total.in_flight),
            "of that, being claimed now",
        ),
        (
            "unconfirmed",
            token.show(earnings.unconfirmed),
            "deposits not deep enough to count",
        ),
    ] {
        sums.row([name.to_owned(), amount, meaning.to_owned()]);
    }
    let mut text = sums.show();
    if let Some(trouble) = &earnings.trouble {
        text.push_str(&format!("\nClaims must wait: {trouble}\n"));
    }
    if !total.lost.is_zero() {
        let lost = token.show(total.lost);
        text.push_str(&format!(
            "\n{lost} was charged on channels that do not hold it any more.\n"
        ));
    }
    if earnings.reorganisations > 0 {
        let times = earnings.reorganisations;
        text.push_str(&format!(
            "\nThe chain took blocks back {times} times since the start.\n"
        ));
    }
    if !earnings.in_flight.is_empty() {
        let mut table = Table::new(&[
            "on its way",
            "channel",
            "transaction",
            "age",
            "gwei",
            "state",
        ]);
        for one in &earnings.in_flight {
            table.row(transaction_row(one, now));
        }
        text.push_str(&format!("\n{}", table.show()));
    }
    if channels.is_empty() {
        return format!("{text}\nNothing was sold yet.\n");
    }
    let mut table = Table::new(&[
        "channel", "payer", "receipts", "charged", "claimed", "at risk", "why",
    ]);
    for channel in channels {
        table.row(channel_row(channel, token, now));
    }
    format!("{text}\n{}", table.show())
}

fn transaction_row(one: &Transaction, now: Timestamp) -> [String; 6] {
    let state = match (one.mined, one.attempts) {
        (Some(block), _) => format!("mined in block {block}, not deep enough yet"),
        (None, 0 | 1) => "waits to be mined".to_owned(),
        (None, attempts) => format!("waits; its fee was raised {} times", attempts - 1),
    };
    [
        one.purpose.clone(),
        one.channel.map_or("several".to_owned(), |id| id.short()),
        format!("{:#x}", one.hash),
        span(now.since(one.signed)),
        format!(
            "{}.{:03}",
            one.fee / 1_000_000_000,
            one.fee / 1_000_000 % 1000
        ),
        state,
    ]
}

fn channel_row(channel: &ChannelEarnings, token: &Token, now: Timestamp) -> [String; 7] {
    let bare = |amount| {
        let shown = token.show(amount);
        shown.split(' ').next().unwrap_or_default().to_owned()
    };
    [
        channel.channel.short(),
        channel.payer.to_string(),
        channel.receipts.to_string(),
        bare(channel.sums.charged),
        bare(channel.sums.claimed),
        bare(channel.sums.at_risk),
        why(&channel.why, token, now),
    ]
}

fn why(why: &Why, token: &Token, now: Timestamp) -> String {
    match why {
        Why::Safe => "all claimed".into(),
        Why::Small { claim_by } => {
            let left = span(claim_by.since(now));
            format!("not yet worth a claim's gas; claimed in {left} at the latest")
        }
        Why::Due => "in the next claim".into(),
        Why::Claiming { transaction } => format!("claim {transaction:#x} is on its way"),
        Why::Leaving { at } => {
            let left = span(at.since(now));
            format!("the buyer withdraws in {left}: being claimed before")
        }
        Why::ChainAway => "the chain does not answer; claimed when it does".into(),
        Why::Held { why } => format!("claims must wait: {why}"),
        Why::Short { holds, lost } => {
            let (holds, lost) = (token.show(*holds), token.show(*lost));
            format!("the channel holds {holds} only: {lost} cannot be claimed")
        }
        Why::Refused { why } => format!("the contract refuses: {why}"),
        Why::Uncovered => "no voucher covers it: the buyer left without paying".into(),
    }
}

/// What claiming now has moved.
pub(super) fn claimed(claimed: &Claimed) -> String {
    if claimed.transactions.is_empty() {
        return "Nothing to claim: everything charged is claimed already.\n".into();
    }
    let mut table = Table::new(&["transaction", "moved"]);
    for (transaction, amount) in &claimed.transactions {
        table.row([format!("{transaction:#x}"), claimed.token.show(*amount)]);
    }
    table.show()
}

/// A duration by its two largest units: `2d 3h`.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{Address, B256};
    use farthing_protocol::amount::Amount;
    use farthing_protocol::net::{Barrier, Reachability};
    use farthing_protocol::testing;
    use farthing_protocol::x402::ChannelId;

    use super::*;
    use crate::report::{ModelStatus, OfferStatus, Reach, Sums};

    fn token() -> Token {
        Token {
            address: Address::ZERO,
            symbol: "USDC".into(),
            decimals: 6,
        }
    }

    fn channel(charged: u128, claimed: u128, why: Why) -> ChannelEarnings {
        ChannelEarnings {
            channel: ChannelId(B256::repeat_byte(7)),
            payer: Address::repeat_byte(9),
            receipts: 3,
            sums: Sums {
                charged: Amount::atoms(charged),
                claimed: Amount::atoms(claimed),
                at_risk: Amount::atoms(charged - claimed),
                in_flight: Amount::ZERO,
                lost: Amount::ZERO,
            },
            armed: Amount::ZERO,
            unconfirmed: Amount::ZERO,
            since: None,
            ceiling: Amount::atoms(charged),
            why,
        }
    }

    #[test]
    fn earnings_tell_what_is_at_risk_per_channel_and_why() {
        let hour = Timestamp(3_600_000);
        let channels = vec![
            channel(2_500_000, 0, Why::Leaving { at: hour }),
            channel(70, 20, Why::Small { claim_by: hour }),
            channel(1_000_000, 1_000_000, Why::Safe),
        ];
        let sums = channels.iter().map(|channel| channel.sums);
        let report = Earnings {
            token: token(),
            total: sums.fold(Sums::default(), Sums::plus),
            settled: Some(Amount::atoms(900_000)),
            unconfirmed: Amount::atoms(10_000),
            trouble: Some("send it some gas".into()),
            reorganisations: 2,
            in_flight: vec![Transaction {
                purpose: "claim".into(),
                channel: None,
                hash: B256::repeat_byte(3),
                nonce: 4,
                signed: Timestamp(0),
                fee: 1_125_000_000,
                attempts: 3,
                mined: None,
            }],
            channels,
        };
        let text = earnings(&report, Timestamp(60_000));
        let lines: Vec<&str> = text.lines().collect();
        for part in [
            "charged      3.500070 USDC  what the receipts say",
            "claimed      1.000020 USDC  safe on chain",
            "settled      0.900000 USDC  paid out to your address",
            "at risk      2.500050 USDC  charged, not claimed yet",
            "in flight    0.000000 USDC  of that, being claimed now",
            "unconfirmed  0.010000 USDC  deposits not deep enough to count",
            "Claims must wait: send it some gas",
            "The chain took blocks back 2 times since the start.",
            "1m 0s  1.125  waits; its fee was raised 2 times",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let lines = &lines[lines.len() - 4..];
        assert!(lines[0].starts_with("channel   payer"), "{text}");
        assert!(lines[1].starts_with("07070707  0x0909"), "{text}");
        assert!(
            lines[1].ends_with(
                "2.500000  0.000000  2.500000  the buyer withdraws in 59m 0s: being claimed before"
            ),
            "{text}"
        );
        assert!(lines[2].contains("0.000050  not yet worth"), "{text}");
        assert!(lines[3].ends_with("0.000000  all claimed"), "{text}");
    }

    #[test]
    fn a_node_that_sold_nothing_says_so() {
        let report = Earnings {
            token: token(),
            total: Sums::default(),
            settled: None,
            unconfirmed: Amount::ZERO,
            trouble: None,
            reorganisations: 0,
            in_flight: vec![],
            channels: vec![],
        };
        assert!(earnings(&report, Timestamp(0)).contains("Nothing was sold yet."));
        let nothing = Claimed {
            token: token(),
            transactions: vec![],
        };
        assert!(claimed(&nothing).starts_with("Nothing to claim"));
    }

    #[test]
    fn status_says_what_is_wrong() {
        let report = Status {
            node: testing::node_key(1).id(),
            version: "0.1.0".into(),
            started: Timestamp(0),
            now: Timestamp(90_061_000),
            chain_id: 31337,
            payout: testing::payout(),
            claim: testing::evm_key(1).address(),
            addresses: vec!["/ip4/1.2.3.4/tcp/1".into(), "/ip4/1.2.3.4/tcp/2".into()],
            reach: Reach::of(Reachability::Unreachable(Barrier::NoRelay)),
            peers: 2,
            upstream_down: Some("connection refused".into()),
            chain_away: None,
            offer: Some(OfferStatus {
                seq: 7,
                expires: Timestamp(90_061_000 + 59_000),
            }),
            models: vec![ModelStatus {
                id: "a/b".into(),
                upstream_name: None,
                prices: testing::model().prices,
                running: 1,
                slots: 4,
            }],
        };
        let text = status(&report);
        for part in [
            "up 1d 1h",
            "reached       not at all: the node is behind a NAT or firewall and knows no relay",
            "→ open the ports of network.listen, or add a peer",
            "model server  does not answer: connection refused",
            "chain         31337, answers",
            "offer         number 7, valid for 59s",
            "reached at    /ip4/1.2.3.4/tcp/1\n              /ip4/1.2.3.4/tcp/2\n",
            "a/b    1 of 4   100000  50000   500000  missing: not sold",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
