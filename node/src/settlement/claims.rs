//! Which channels to claim from, and when: pure rules.

use std::cmp::Reverse;
use std::collections::HashMap;

use farthing_protocol::chain::{ClaimRow, Write};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::x402::ChannelId;

use crate::ledger::ChannelView;
use crate::settlement::Policy;

/// Since when each channel has something unclaimed.
pub(in crate::settlement) type Since = HashMap<ChannelId, Timestamp>;

/// The row that claims all of a channel's charges, if there is something to claim.
pub(in crate::settlement) fn row(view: &ChannelView) -> Option<ClaimRow> {
    let voucher = view.voucher?;
    // Never more than was signed, and never more than was charged.
    let total_claimed = view.channel.charged().min(voucher.message.ceiling);
    let more = total_claimed > view.channel.claimed();
    more.then_some(ClaimRow {
        config: view.config,
        voucher,
        total_claimed,
    })
}

/// Remembers since when channels are owed something.
pub(in crate::settlement) fn note(
    since: &mut Since,
    channels: &[(ChannelId, ChannelView)],
    now: Timestamp,
) {
    for (id, view) in channels {
        if row(view).is_some() {
            since.entry(*id).or_insert(now);
        } else {
            since.remove(id);
        }
    }
}

/// True when a claim is due: a withdrawal is armed against something unclaimed, a channel has
/// enough to be worth it, or something has waited long enough.
pub(in crate::settlement) fn due(
    policy: &Policy,
    since: &Since,
    channels: &[(ChannelId, ChannelView)],
    now: Timestamp,
) -> bool {
    channels
        .iter()
        .filter(|(_, view)| row(view).is_some())
        .any(|(id, view)| {
            let old = since
                .get(id)
                .is_some_and(|start| now.since(*start) >= policy.claim_age);
            let large = view.channel.unclaimed() >= policy.claim_at;
            let armed = !view.channel.armed().is_zero();
            old || large || armed
        })
}

/// The rows of the next claim: armed channels first, then by value, at most `max`, all paid out
/// to one address.
pub(in crate::settlement) fn rows(
    channels: &[(ChannelId, ChannelView)],
    max: usize,
) -> Vec<ClaimRow> {
    let mut owed: Vec<_> = channels
        .iter()
        .filter_map(|(_, view)| row(view).map(|row| (view, row)))
        .collect();
    owed.sort_by_key(|(view, _)| {
        (
            view.channel.armed().is_zero(),
            Reverse(view.channel.unclaimed()),
        )
    });
    let payout = |row: &ClaimRow| (row.config.receiver, row.config.token);
    let first = owed.first().map(|(_, row)| payout(row));
    let rows = owed.into_iter().map(|(_, row)| row);
    rows.filter(|row| Some(payout(row)) == first)
        .take(max)
        .collect()
}

/// The transaction that claims these rows and pays them out.
pub(in crate::settlement) fn write(rows: Vec<ClaimRow>) -> Option<Write> {
    let (receiver, token) = rows
        .first()
        .map(|row| (row.config.receiver, row.config.token))?;
    Some(Write::ClaimAndSettle {
        rows,
        receiver,
        token,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use farthing_protocol::amount::{Amount, Cost};
    use farthing_protocol::channel::Channel;
    use farthing_protocol::eip712::Signed;
    use farthing_protocol::testing;
    use farthing_protocol::voucher::Voucher;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn view(charged: u128, salt: u8) -> (ChannelId, ChannelView) {
        let mut config = testing::channel_config();
        config.salt.0[31] = salt;
        let id = config.id(&testing::network());
        let mut channel = Channel::open(Amount::atoms(1000), Amount::ZERO);
        channel.accept(Amount::atoms(900)).expect("covered");
        channel.reserve(Amount::atoms(charged)).expect("covered");
        let cost = Amount::atoms(charged).to_cost().unwrap_or(Cost::ZERO);
        channel
            .charge(Amount::atoms(charged), cost)
            .expect("reserved");
        let voucher = Voucher {
            channel: id,
            ceiling: Amount::atoms(900),
        };
        let voucher = Signed::sign(voucher, &testing::network().domain(), &testing::evm_key(8));
        (
            id,
            ChannelView {
                config,
                channel,
                voucher: Some(voucher),
            },
        )
    }

    fn policy() -> Policy {
        Policy {
            claim_at: Amount::atoms(500),
            claim_age: Duration::from_secs(60),
            max_rows: 50,
            confirmations: 1,
            poll: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_claim_takes_what_is_charged_and_never_the_ceiling() {
        assert_eq!(
            row(&view(30, 0).1).map(|row| row.total_claimed),
            Some(Amount::atoms(30))
        );
        assert_eq!(row(&view(0, 0).1), None);
    }

    #[test]
    fn armed_channels_come_first_and_then_the_largest() {
        let (mut armed, large, small) = (view(5, 1), view(300, 2), view(20, 3));
        armed.1.channel.arm(Amount::atoms(100));
        let rows = rows(&[small, large, armed], 2);
        let charged: Vec<_> = rows.iter().map(|row| row.total_claimed.get()).collect();
        assert_eq!(charged, [5, 300]);
    }

    #[test]
    fn a_claim_is_due_by_value_by_age_or_by_a_withdrawal() {
        let mut channels = [view(30, 0)];
        let mut since = Since::new();
        note(&mut since, &channels, NOW);
        assert!(!due(&policy(), &since, &channels, NOW));
        assert!(due(
            &policy(),
            &since,
            &channels,
            NOW.plus(Duration::from_secs(60))
        ));
        assert!(due(&policy(), &since, &[view(500, 0)], NOW));
        channels[0].1.channel.arm(Amount::atoms(1));
        assert!(due(&policy(), &since, &channels, NOW));
    }
}
