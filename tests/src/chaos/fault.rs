//! The faults, by name, and the order in which a seed lets them strike.

use std::fmt;

use crate::chaos::process::Dice;

/// One of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The node.
    Seller,
    /// The gateway.
    Buyer,
}

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9`, and a start soon after.
    Kill(Side),
    /// Its disk takes nothing more: every write fails until it is started again.
    DiskFull(Side),
    /// Its clock jumps by anything from seconds to days, and jumps back.
    ClockJump(Side),
    /// Its chain node answers with errors.
    RpcErrors(Side),
    /// Its chain node takes questions and does not answer.
    RpcSilent(Side),
    /// Its chain node does as told, and the answer is lost; every other time the program is killed
    /// before it can ask again.
    RpcAnswersLost(Side),
    /// Its chain node answers with something else.
    RpcGarbage(Side),
    /// The chain takes back its last blocks.
    Reorg,
    /// Every connection between the two is cut.
    ConnectionsCut,
    /// A program stands still for a while and goes on: what it sends comes late.
    StreamsDelayed(Side),
    /// The model server breaks off its answers.
    AnswersCut,
    /// The model server falls silent within its answers.
    AnswersStalled,
}

impl Fault {
    /// Every fault there is, each side's by itself.
    pub const ALL: [Self; 20] = [
        Self::Kill(Side::Seller),
        Self::Kill(Side::Buyer),
        Self::DiskFull(Side::Seller),
        Self::DiskFull(Side::Buyer),
        Self::ClockJump(Side::Seller),
        Self::ClockJump(Side::Buyer),
        Self::RpcErrors(Side::Seller),
        Self::RpcErrors(Side::Buyer),
        Self::RpcSilent(Side::Seller),
        Self::RpcSilent(Side::Buyer),
        Self::RpcAnswersLost(Side::Seller),
        Self::RpcAnswersLost(Side::Buyer),
        Self::RpcGarbage(Side::Seller),
        Self::RpcGarbage(Side::Buyer),
        Self::Reorg,
        Self::ConnectionsCut,
        Self::StreamsDelayed(Side::Seller),
        Self::StreamsDelayed(Side::Buyer),
        Self::AnswersCut,
        Self::AnswersStalled,
    ];

    /// Its row in the table, without the side.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Kill(_) => "kill -9",
            Self::DiskFull(_) => "full disk",
            Self::ClockJump(_) => "clock jump",
            Self::RpcErrors(_) => "chain node answers errors",
            Self::RpcSilent(_) => "chain node does not answer",
            Self::RpcAnswersLost(_) => "chain node's answers are lost",
            Self::RpcGarbage(_) => "chain node answers garbage",
            Self::Reorg => "reorg",
            Self::ConnectionsCut => "connections cut",
            Self::StreamsDelayed(_) => "streams delayed",
            Self::AnswersCut => "model server breaks off",
            Self::AnswersStalled => "model server stalls",
        }
    }

    /// Whose it is.
    #[must_use]
    pub const fn side(self) -> Option<Side> {
        match self {
            Self::Kill(side)
            | Self::DiskFull(side)
            | Self::ClockJump(side)
            | Self::RpcErrors(side)
            | Self::RpcSilent(side)
            | Self::RpcAnswersLost(side)
            | Self::RpcGarbage(side)
            | Self::StreamsDelayed(side) => Some(side),
            Self::Reorg | Self::ConnectionsCut | Self::AnswersCut | Self::AnswersStalled => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side() {
            Some(Side::Seller) => write!(f, "{}, seller", self.kind()),
            Some(Side::Buyer) => write!(f, "{}, buyer", self.kind()),
            None => f.write_str(self.kind()),
        }
    }
}

/// So many faults in an order that the dice decide: each of them once before any of them twice.
#[must_use]
pub fn schedule(count: usize, dice: &mut Dice) -> Vec<Fault> {
    let mut faults = Vec::with_capacity(count);
    while faults.len() < count {
        let mut round = Fault::ALL;
        for last in (1..round.len()).rev() {
            let other = dice.between(0, last as u64);
            round.swap(last, usize::try_from(other).unwrap_or(last));
        }
        faults.extend(round.into_iter().take(count - faults.len()));
    }
    faults
}

/// One fault of each kind; whose it is, the dice decide.
#[must_use]
pub fn one_of_each(dice: &mut Dice) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    for fault in schedule(Fault::ALL.len(), dice) {
        if faults.iter().all(|known| known.kind() != fault.kind()) {
            faults.push(fault);
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_strikes_before_any_strikes_twice_and_a_seed_decides_the_order() {
        let plan = schedule(45, &mut Dice::new(3));
        assert_eq!(plan, schedule(45, &mut Dice::new(3)));
        assert_ne!(plan, schedule(45, &mut Dice::new(4)));
        for fault in Fault::ALL {
            assert!(plan[..20].contains(&fault), "{fault}");
        }
    }

    #[test]
    fn one_of_each_kind_is_of_each_kind() {
        let few = one_of_each(&mut Dice::new(5));
        let kinds: std::collections::HashSet<_> = few.iter().map(|fault| fault.kind()).collect();
        assert_eq!(few.len(), kinds.len());
        for fault in Fault::ALL {
            assert!(kinds.contains(fault.kind()), "{fault}");
        }
    }
}
