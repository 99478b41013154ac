//! The settlement contract's logs as events of a channel.

use alloy::rpc::types::Log;
use alloy::sol_types::SolEventInterface;

use crate::amount::Amount;
use crate::chain::abi::ISettlement;
use crate::chain::words::{Change, Event, Withdrawal};
use crate::x402::ChannelId;

/// A log as an event of a channel; `None` for one taken back by a reorganisation or unknown.
pub(super) fn event(log: &Log) -> Option<Event> {
    let change = change(log)?;
    (!log.removed).then_some(())?;
    Some(Event {
        block: log.block_number?,
        transaction: log.transaction_hash?,
        channel: ChannelId(*log.inner.topics().get(1)?),
        change,
    })
}

fn change(log: &Log) -> Option<Change> {
    use ISettlement::ISettlementEvents as Sol;
    let decoded = <Sol as SolEventInterface>::decode_log(&log.inner).ok()?;
    Some(match decoded.data {
        Sol::Deposited(event) => Change::Deposited {
            amount: Amount::atoms(event.amount),
            balance: Amount::atoms(event.newBalance),
        },
        Sol::Claimed(event) => Change::Claimed {
            amount: Amount::atoms(event.claimAmount),
            claimed: Amount::atoms(event.newTotalClaimed),
        },
        Sol::Refunded(event) => Change::Refunded {
            amount: Amount::atoms(event.amount),
        },
        Sol::WithdrawInitiated(event) => Change::WithdrawInitiated {
            amount: Amount::atoms(event.amount),
            finalize_after: event.finalizeAfter.to(),
        },
        Sol::WithdrawFinalized(event) => Change::WithdrawFinalized {
            amount: Amount::atoms(event.amount),
        },
        Sol::Settled(_) => return None,
    })
}

/// An event as a started withdrawal, if it is one.
pub(super) fn withdrawal(event: Event) -> Option<Withdrawal> {
    let Change::WithdrawInitiated {
        amount,
        finalize_after,
    } = event.change
    else {
        return None;
    };
    Some(Withdrawal {
        channel: event.channel,
        amount,
        finalize_after,
        block: event.block,
    })
}
