//! Which channels to claim from, and when: pure rules.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use alloy::primitives::Address;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{ClaimRow, Write};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::x402::ChannelId;

use crate::ledger::ChannelView;
use crate::settlement::Policy;

/// Since when each channel has something unclaimed.
pub(in crate::settlement) type Since = HashMap<ChannelId, Timestamp>;
/// Channels that hold less than was charged, and what they hold.
pub(in crate::settlement) type Short = HashMap<ChannelId, Amount>;

/// Gas of one more row in a claim, rounded up (measured: 21 500, and 480 bytes of data).
const GAS_OF_A_ROW: u128 = 25_000;
/// Wei of a whole coin.
const COIN: u128 = 1_000_000_000_000_000_000;

/// What is known when a claim is decided on.
#[derive(Debug, Clone, Copy)]
pub(in crate::settlement) struct Standing<'a> {
    /// The channels.
    pub(in crate::settlement) channels: &'a [(ChannelId, ChannelView)],
    /// Totals that claims on their way are about.
    pub(in crate::settlement) in_flight: &'a HashMap<ChannelId, Amount>,
    /// Channels that hold less than was charged.
    pub(in crate::settlement) short: &'a Short,
    /// Since when each channel has something unclaimed.
    pub(in crate::settlement) since: &'a Since,
    /// What one more row costs now, in atoms; zero when gas has no price.
    pub(in crate::settlement) row_cost: Amount,
    /// Now.
    pub(in crate::settlement) now: Timestamp,
}

/// The row that claims all of a channel's charges, if there is something to claim.
pub(in crate::settlement) fn row(view: &ChannelView) -> Option<ClaimRow> {
    row_within(view, None)
}

/// As [`row`], where the channel may hold less than was charged: the contract pays out what is
/// there, and refuses a row that asks for more.
fn row_within(view: &ChannelView, held: Option<Amount>) -> Option<ClaimRow> {
    let voucher = view.voucher?;
    // Never more than was signed, and never more than was charged.
    let charged = view.channel.charged().min(voucher.message.ceiling);
    let total_claimed = charged.min(held.unwrap_or(charged));
    let more = total_claimed > view.channel.claimed();
    more.then_some(ClaimRow {
        config: view.config,
        voucher,
        total_claimed,
    })
}

/// What one more row costs in atoms, at so many wei per gas and so many atoms per coin.
pub(in crate::settlement) fn row_cost(wei_per_gas: u128, coin_price: Amount) -> Amount {
    let wei = wei_per_gas.saturating_mul(GAS_OF_A_ROW);
    // Divided in two steps, for the product of both may not fit.
    let thousandths = wei / (COIN / 1_000_000_000);
    Amount::atoms(thousandths.saturating_mul(coin_price.get()) / 1_000_000_000)
}

/// Remembers since when channels are owed something; returns what changed.
pub(in crate::settlement) fn note(
    since: &mut Since,
    (channels, short): (&[(ChannelId, ChannelView)], &Short),
    now: Timestamp,
) -> Vec<(ChannelId, Option<Timestamp>)> {
    let mut changed = Vec::new();
    for (id, view) in channels {
        let owed = row_within(view, short.get(id).copied()).is_some();
        if owed && !since.contains_key(id) {
            since.insert(*id, now);
            changed.push((*id, Some(now)));
        } else if !owed && since.remove(id).is_some() {
            changed.push((*id, None));
        }
    }
    changed
}

/// A row that no claim on its way has covered.
struct Owed<'a> {
    id: ChannelId,
    view: &'a ChannelView,
    row: ClaimRow,
    /// What it claims beyond what is claimed or on its way.
    fresh: Amount,
    /// Whether a claim on its way is about the channel: then the next can wait.
    on_its_way: bool,
}

impl Standing<'_> {
    /// The claims that are due, each to be sent as one transaction: first each channel against
    /// which a withdrawal is armed, by itself, so that no other row can fail it; then, if any
    /// channel has enough, has waited long enough or has brought its payer to the limit, all that
    /// are worth a row.
    pub(in crate::settlement) fn due(&self, policy: &Policy) -> Vec<Vec<ClaimRow>> {
        let heavy = self.heavy(policy);
        let worth = self.worth(policy);
        let is_due = |owed: &Owed<'_>| {
            let pressing = is_armed(owed.view)
                || self.is_old(policy, owed.id)
                || heavy.contains(&owed.view.config.payer);
            owed.fresh >= worth || (pressing && !owed.on_its_way)
        };
        let (armed, others): (Vec<_>, Vec<_>) = self
            .owed()
            .into_iter()
            .partition(|owed| is_armed(owed.view));
        let armed = armed.into_iter().filter(is_due).map(|owed| vec![owed.row]);
        let mut due: Vec<_> = armed.collect();
        if others.iter().any(is_due) {
            let rides = |owed: &Owed<'_>| is_due(owed) || owed.fresh > self.row_cost;
            let rows = others.into_iter().filter(rides).map(|owed| owed.row);
            due.extend(batches(rows.collect(), policy.max_rows));
        }
        due
    }

    /// Everything that can be claimed, whether it is worth it or not.
    pub(in crate::settlement) fn all(&self, policy: &Policy) -> Vec<Vec<ClaimRow>> {
        let (armed, others): (Vec<_>, Vec<_>) = self
            .owed()
            .into_iter()
            .partition(|owed| is_armed(owed.view));
        let armed = armed.into_iter().map(|owed| vec![owed.row]);
        let others = others.into_iter().map(|owed| owed.row).collect();
        armed.chain(batches(others, policy.max_rows)).collect()
    }

    /// What can be claimed, the largest first.
    fn owed(&self) -> Vec<Owed<'_>> {
        let owed = self.channels.iter().filter_map(|(id, view)| {
            let row = row_within(view, self.short.get(id).copied())?;
            let on_its_way = self.in_flight.get(id).copied().unwrap_or_default();
            let covered = on_its_way.max(view.channel.claimed());
            let fresh = row.total_claimed.saturating_sub(covered);
            (!fresh.is_zero()).then_some(Owed {
                id: *id,
                view,
                row,
                fresh,
                on_its_way: !on_its_way.is_zero(),
            })
        });
        let mut owed: Vec<_> = owed.collect();
        owed.sort_by_key(|owed| Reverse(owed.fresh));
        owed
    }

    /// What makes a claim worth its gas.
    fn worth(&self, policy: &Policy) -> Amount {
        let multiple = self.row_cost.get().saturating_mul(policy.gas_multiple);
        policy.claim_at.max(Amount::atoms(multiple))
    }

    fn is_old(&self, policy: &Policy, id: ChannelId) -> bool {
        let start = self.since.get(&id);
        start.is_some_and(|start| self.now.since(*start) >= policy.claim_age)
    }

    /// Payers who owe so much over all their channels that they are served no more.
    fn heavy(&self, policy: &Policy) -> HashSet<Address> {
        let mut owed: HashMap<Address, Amount> = HashMap::new();
        for (_, view) in self.channels {
            let sum = owed.entry(view.config.payer).or_default();
            *sum = sum.saturating_add(view.channel.unclaimed());
        }
        let heavy = owed.into_iter().filter(|(_, sum)| *sum >= policy.exposure);
        heavy.map(|(payer, _)| payer).collect()
    }
}

fn is_armed(view: &ChannelView) -> bool {
    !view.channel.armed().is_zero()
}

/// Rows in claims of at most `max`, each paid out to one address, in the same order.
fn batches(rows: Vec<ClaimRow>, max: usize) -> Vec<Vec<ClaimRow>> {
    let payout = |row: &ClaimRow| (row.config.receiver, row.config.token);
    let mut batches: Vec<Vec<ClaimRow>> = Vec::new();
    for row in rows {
        let fits = |batch: &&mut Vec<ClaimRow>| {
            batch.len() < max.max(1) && batch.first().map(payout) == Some(payout(&row))
        };
        match batches.iter_mut().find(fits) {
            Some(batch) => batch.push(row),
            None => batches.push(vec![row]),
        }
    }
    batches
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

    use farthing_protocol::amount::Cost;
    use farthing_protocol::channel::Channel;
    use farthing_protocol::eip712::Signed;
    use farthing_protocol::testing;
    use farthing_protocol::voucher::Voucher;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn view(charged: u128, salt: u8) -> (ChannelId, ChannelView) {
        let mut config = testing::channel_config();
        config.salt.0[31] = salt;
        // A payer of its own.
        config.payer.0[19] = salt;
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
            claim_age: HOUR,
            max_rows: 50,
            exposure: Amount::atoms(800),
            gas_multiple: 50,
            ..Policy::default()
        }
    }

    /// What is due of these channels an hour after `since`; what each row claims.
    fn due(
        channels: &[(ChannelId, ChannelView)],
        change: impl FnOnce(&mut Standing<'_>),
    ) -> Vec<Vec<u128>> {
        let (since, in_flight, short) = (Since::new(), HashMap::new(), Short::new());
        let mut standing = Standing {
            channels,
            in_flight: &in_flight,
            short: &short,
            since: &since,
            row_cost: Amount::ZERO,
            now: NOW,
        };
        change(&mut standing);
        let due = standing.due(&policy());
        let total = |row: &ClaimRow| row.total_claimed.get();
        due.iter()
            .map(|rows| rows.iter().map(total).collect())
            .collect()
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
    fn a_channel_that_holds_less_than_was_charged_is_claimed_as_far_as_it_holds() {
        let mut channels = [view(600, 1)];
        let id = channels[0].0;
        let short: &'static Short = Box::leak(Box::new(Short::from([(id, Amount::atoms(250))])));
        let holds = |standing: &mut Standing<'_>| standing.short = short;
        channels[0].1.channel.arm(Amount::atoms(1));
        assert_eq!(due(&channels, holds), [[250]]);
        let mut since = Since::new();
        assert_eq!(note(&mut since, (&channels, short), NOW).len(), 1);
        // What was there is claimed: nothing is left to ask for, and nothing is owed by age.
        let channel = &mut channels[0].1.channel;
        let balance = channel.balance();
        let claimed = channel.observe(balance, Amount::atoms(250));
        claimed.expect("follows");
        assert!(due(&channels, holds).is_empty());
        let changed = note(&mut since, (&channels, short), NOW.plus(HOUR));
        assert_eq!(changed, [(id, None)]);
    }

    #[test]
    fn each_armed_channel_is_claimed_alone_and_first_then_the_others_by_value() {
        let (mut armed, mut other) = (view(5, 1), view(7, 2));
        armed.1.channel.arm(Amount::atoms(100));
        other.1.channel.arm(Amount::atoms(100));
        let channels = [view(20, 3), view(600, 4), armed, other];
        let expected = [vec![7], vec![5], vec![600, 20]];
        assert_eq!(due(&channels, |_| {}), expected);
    }

    #[test]
    fn a_claim_is_due_by_value_by_age_or_by_a_withdrawal() {
        let mut channels = [view(30, 0)];
        let none: [Vec<u128>; 0] = [];
        assert_eq!(due(&channels, |_| {}), none);
        let mut since = Since::new();
        assert_eq!(note(&mut since, (&channels, &Short::new()), NOW).len(), 1);
        assert!(note(&mut since, (&channels, &Short::new()), NOW.plus(HOUR)).is_empty());
        let later = |standing: &mut Standing<'_>| standing.now = NOW.plus(HOUR);
        assert_eq!(due(&channels, later), none);
        let (id, _) = channels[0];
        let since = Since::from([(id, NOW)]);
        let since: &'static Since = Box::leak(Box::new(since));
        let old = |standing: &mut Standing<'_>| {
            standing.since = since;
            standing.now = NOW.plus(HOUR);
        };
        assert_eq!(due(&channels, old), [[30]]);
        assert_eq!(due(&[view(500, 0)], |_| {}), [[500]]);
        channels[0].1.channel.arm(Amount::atoms(1));
        assert_eq!(due(&channels, |_| {}), [[30]]);
    }

    #[test]
    fn a_payer_at_the_limit_over_all_its_lanes_is_claimed_from_at_once() {
        let (one, mut other) = (view(400, 1), view(400, 2));
        assert!(due(&[one, other], |_| {}).is_empty());
        other.1.config.payer = one.1.config.payer;
        assert_eq!(due(&[one, other], |_| {}), [[400, 400]]);
    }

    #[test]
    fn what_is_on_its_way_is_not_claimed_again() {
        let channels = [view(600, 1)];
        let on_its_way = |atoms| {
            let map = HashMap::from([(channels[0].0, Amount::atoms(atoms))]);
            let map: &'static HashMap<_, _> = Box::leak(Box::new(map));
            move |standing: &mut Standing<'_>| standing.in_flight = map
        };
        assert!(due(&channels, on_its_way(600)).is_empty());
        assert!(due(&channels, on_its_way(200)).is_empty());
        assert_eq!(due(&channels, on_its_way(100)), [[600]]);
    }

    #[test]
    fn a_claim_is_worth_a_multiple_of_its_gas_and_what_is_worth_less_than_a_row_stays() {
        // 25 000 gas at a gwei are 25 000 gwei; a coin of 3 000 dollars makes them 75 000 atoms.
        let dollars = Amount::atoms(3_000_000_000);
        assert_eq!(row_cost(1_000_000_000, dollars), Amount::atoms(75_000));
        assert_eq!(row_cost(1_000_000_000, Amount::ZERO), Amount::ZERO);
        assert_eq!(
            row_cost(u128::MAX, dollars).get(),
            u128::MAX / 1_000_000_000
        );
        let channels = [view(600, 1), view(12, 2), view(11, 3)];
        let gas =
            |atoms| move |standing: &mut Standing<'_>| standing.row_cost = Amount::atoms(atoms);
        assert!(due(&channels, gas(13)).is_empty());
        assert_eq!(due(&channels, gas(11)), [[600, 12]]);
    }

    #[test]
    fn a_claim_has_so_many_rows_and_one_payout_address() {
        let mut channels: Vec<_> = (1..=5)
            .map(|salt| view(600 + u128::from(salt), salt))
            .collect();
        channels[4].1.config.receiver = alloy::primitives::Address::repeat_byte(5);
        let rows = channels.iter().filter_map(|(_, view)| row(view)).collect();
        let sizes: Vec<_> = batches(rows, 3).iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 1, 1]);
    }
}
