//! What a buyer says of a seller it has paid.
//!
//! A [`Testimony`] counts what became of the purchases on one channel, model by model. Words are
//! free, so it carries what anyone can check: the channel's terms, whose `payerAuthorizer` has
//! signed it (so the witness is who paid), a receipt on that channel signed by the seller's node
//! (so the channel is that seller's), and the channel's name, under which the contract says what
//! was really claimed. How much a testimony weighs is decided by that sum alone, not here.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use alloy::primitives::B256;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::amount::Amount;
use crate::clock::Timestamp;
use crate::eip712::{Domain, EvmKey, EvmSignature, SignatureError, Signed, Typed};
use crate::identity::{BadSignature, NodeId};
use crate::receipt::SignedReceipt;
use crate::x402::{ChannelConfig, ChannelId, Network};

mod sol_types {
    alloy::sol! {
        struct Line {
            bytes32 modelId;
            uint32 served;
            uint32 failed;
            uint32 broken;
            uint32 disputed;
            uint32 invalid;
            uint128 charged;
        }

        struct Testimony {
            bytes32 channelId;
            bytes32 seller;
            uint64 sinceMs;
            uint64 untilMs;
            Line[] lines;
        }
    }
}

/// The most models one testimony is about.
pub const MAX_LINES: usize = 16;
/// How long after its end a testimony counts.
pub const LIFETIME: Duration = Duration::from_secs(14 * 86_400);
/// How old the receipt in it may be at its end: whoever speaks has bought lately.
pub const RECENT: Duration = Duration::from_secs(7 * 86_400);
/// How far ahead of ours a witness's clock may be.
pub const SKEW: Duration = Duration::from_secs(60);

/// The domain's name.
pub const DOMAIN: &str = "Inference Testimonies";

/// The domain in which testimonies about sellers on a network are signed.
#[must_use]
pub fn domain(network: &Network) -> Domain {
    Domain::new(DOMAIN, "1", network.chain_id, network.settlement)
}

/// What became of the purchases of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The model, as receipts name it.
    pub model: B256,
    /// Whole answers.
    pub served: u32,
    /// Purchases that brought nothing.
    pub failed: u32,
    /// Answers that broke off.
    pub broken: u32,
    /// Receipts that were false.
    pub disputed: u32,
    /// Whole answers that were not what was asked for: arguments that no tool takes, text where
    /// JSON was wanted, words unlike what other sellers of the model say.
    pub invalid: u32,
    /// Atoms charged.
    pub charged: Amount,
}

/// What a buyer says of a seller, over one channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Testimony {
    /// The channel that paid.
    pub channel: ChannelId,
    /// Of whom.
    pub seller: NodeId,
    /// From when on it counts.
    pub since: Timestamp,
    /// Until when. A later testimony on the same channel takes its place.
    pub until: Timestamp,
    /// Model by model, each once.
    #[serde(deserialize_with = "few")]
    pub lines: Vec<Line>,
}

/// Reads at most [`MAX_LINES`], and makes room for no more, whatever number is claimed.
fn few<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Line>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Vec<Line>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_LINES} lines")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Vec<Line>, A::Error> {
            let mut lines = Vec::new();
            while let Some(line) = all.next_element()? {
                if lines.len() == MAX_LINES {
                    return Err(A::Error::invalid_length(lines.len() + 1, &self));
                }
                lines.push(line);
            }
            Ok(lines)
        }
    }

    from.deserialize_seq(Few)
}

impl Typed for Testimony {
    type Sol = sol_types::Testimony;

    fn to_sol(&self) -> Self::Sol {
        let line = |line: &Line| sol_types::Line {
            modelId: line.model,
            served: line.served,
            failed: line.failed,
            broken: line.broken,
            disputed: line.disputed,
            invalid: line.invalid,
            charged: line.charged.get(),
        };
        sol_types::Testimony {
            channelId: self.channel.0,
            seller: B256::from(*self.seller.as_bytes()),
            sinceMs: self.since.0,
            untilMs: self.until.0,
            lines: self.lines.iter().map(line).collect(),
        }
    }
}

/// A testimony with all that is needed to check it, unchecked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedTestimony {
    /// What is said.
    pub testimony: Testimony,
    /// The channel's terms, which name it.
    pub config: ChannelConfig,
    /// Any receipt on the channel that is not old: the seller's own word that it is its channel.
    pub receipt: SignedReceipt,
    /// By the channel's `payerAuthorizer`.
    pub signature: EvmSignature,
}

/// Why a testimony is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TestimonyError {
    /// Its time is over.
    #[error("it is too old")]
    Expired,
    /// It is about times that have not been, or that end before they begin.
    #[error("its times cannot be")]
    Times,
    /// None, too many, or one model twice.
    #[error("it must be about 1 to {MAX_LINES} models, each once")]
    Lines,
    /// Not a channel of this network, or terms of another one.
    #[error("the channel's terms are not those of a channel of this network")]
    Channel,
    /// The receipt is of another channel, or of another time.
    #[error("the receipt in it is of another channel, or too old")]
    Receipt,
    /// The seller did not sign the receipt.
    #[error("the receipt in it: {0}")]
    Seller(BadSignature),
    /// Somebody else signed.
    #[error("the channel's key did not sign it: {0}")]
    Witness(SignatureError),
}

impl SignedTestimony {
    /// Signs a testimony. Outside tests the client's `wallet.rs` does.
    #[must_use]
    pub fn sign(
        testimony: Testimony,
        config: ChannelConfig,
        receipt: SignedReceipt,
        (network, key): (&Network, &EvmKey),
    ) -> Self {
        let signed = Signed::sign(testimony, &domain(network), key);
        Self {
            testimony: signed.message,
            config,
            receipt,
            signature: signed.signature,
        }
    }

    /// The testimony, if everything in it that needs no chain is as it must be.
    ///
    /// # Errors
    /// [`TestimonyError`]; only [`TestimonyError::Expired`] is nobody's fault.
    pub fn verify(
        self,
        network: &Network,
        now: Timestamp,
    ) -> Result<VerifiedTestimony, TestimonyError> {
        self.check_times(now)?;
        let said = &self.testimony;
        let models: HashSet<_> = said.lines.iter().map(|line| line.model).collect();
        if models.is_empty() || models.len() != said.lines.len() || models.len() > MAX_LINES {
            return Err(TestimonyError::Lines);
        }
        let ours = self.config.token == network.token && !self.config.payer_authorizer.is_zero();
        if !ours || self.config.id(network) != said.channel {
            return Err(TestimonyError::Channel);
        }
        if self.receipt.receipt.channel != said.channel {
            return Err(TestimonyError::Receipt);
        }
        let receipt = self.receipt.clone().verify(said.seller);
        receipt.map_err(TestimonyError::Seller)?;
        let signed = Signed {
            message: said.clone(),
            signature: self.signature,
        };
        let verified = signed.verify(&domain(network), self.config.payer_authorizer);
        verified.map_err(TestimonyError::Witness)?;
        Ok(VerifiedTestimony(self))
    }

    fn check_times(&self, now: Timestamp) -> Result<(), TestimonyError> {
        let (since, until) = (self.testimony.since, self.testimony.until);
        if now.since(until) >= LIFETIME {
            return Err(TestimonyError::Expired);
        }
        if until > now.plus(SKEW) || since > until {
            return Err(TestimonyError::Times);
        }
        let finished = self.receipt.receipt.finished;
        if finished > until.plus(SKEW) || until.since(finished) > RECENT {
            return Err(TestimonyError::Receipt);
        }
        Ok(())
    }
}

/// A testimony whose signatures, names and times have been checked: the only way here is
/// [`SignedTestimony::verify`]. What was claimed on its channel, the chain says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedTestimony(SignedTestimony);

impl VerifiedTestimony {
    /// What is said.
    #[must_use]
    pub const fn testimony(&self) -> &Testimony {
        &self.0.testimony
    }

    /// The terms of the channel that paid.
    #[must_use]
    pub const fn config(&self) -> &ChannelConfig {
        &self.0.config
    }

    /// As it is sent.
    #[must_use]
    pub const fn signed(&self) -> &SignedTestimony {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    fn changed(change: impl FnOnce(&mut SignedTestimony)) -> Result<(), TestimonyError> {
        let mut signed = testing::testimony(8, NOW);
        change(&mut signed);
        signed.verify(&testing::network(), NOW).map(|_| ())
    }

    /// Changed by the witness itself, who signs again.
    fn resigned(change: impl FnOnce(&mut SignedTestimony)) -> Result<(), TestimonyError> {
        changed(|signed| {
            change(signed);
            let SignedTestimony {
                testimony,
                config,
                receipt,
                ..
            } = signed.clone();
            let by = (&testing::network(), &testing::evm_key(8));
            *signed = SignedTestimony::sign(testimony, config, receipt, by);
        })
    }

    #[test]
    fn a_testimony_by_who_paid_about_who_was_paid_is_believable() {
        assert_eq!(changed(|_| ()), Ok(()));
    }

    #[test]
    fn nobody_else_can_speak_for_a_channel() {
        let other = testing::testimony(7, NOW).signature;
        assert!(matches!(
            changed(|it| it.signature = other),
            Err(TestimonyError::Witness(_))
        ));
        assert!(matches!(
            changed(|it| it.testimony.lines[0].failed += 1),
            Err(TestimonyError::Witness(_))
        ));
        let own = testing::evm_key(7).address();
        assert_eq!(
            resigned(|it| it.config.payer_authorizer = own),
            Err(TestimonyError::Channel),
            "the key is in the channel's name"
        );
    }

    #[test]
    fn a_channel_that_the_seller_never_gave_a_receipt_for_says_nothing_of_it() {
        assert!(matches!(
            resigned(|it| it.testimony.seller = testing::node_key(2).id()),
            Err(TestimonyError::Seller(_))
        ));
        assert!(matches!(
            resigned(|it| it.receipt.receipt.seq += 1),
            Err(TestimonyError::Seller(_))
        ));
        assert_eq!(
            resigned(|it| it.receipt.receipt.channel = ChannelId(B256::ZERO)),
            Err(TestimonyError::Receipt)
        );
    }

    #[test]
    fn a_testimony_counts_for_its_time_only() {
        let later = |by: Duration| {
            let signed = testing::testimony(8, NOW);
            signed.verify(&testing::network(), NOW.plus(by)).map(|_| ())
        };
        assert_eq!(later(LIFETIME - Duration::from_secs(1)), Ok(()));
        assert_eq!(later(LIFETIME), Err(TestimonyError::Expired));
        let ahead = NOW.plus(SKEW * 2);
        assert_eq!(
            resigned(|it| it.testimony.until = ahead),
            Err(TestimonyError::Times)
        );
        assert_eq!(
            resigned(|it| it.testimony.since = it.testimony.until.plus(SKEW)),
            Err(TestimonyError::Times)
        );
    }

    #[test]
    fn whoever_speaks_has_bought_lately() {
        let before = Timestamp(NOW.0 - 8 * 86_400_000);
        let old = testing::testimony(8, before).receipt;
        assert_eq!(
            resigned(|it| it.receipt = old),
            Err(TestimonyError::Receipt)
        );
    }

    #[test]
    fn a_model_is_spoken_of_once_and_there_are_not_too_many() {
        let line = testing::testimony(8, NOW).testimony.lines[0];
        let many = |n: u8| {
            let each = |n| Line {
                model: B256::repeat_byte(n),
                ..line
            };
            (0..n).map(each).collect::<Vec<_>>()
        };
        for lines in [Vec::new(), vec![line, line], many(17)] {
            assert_eq!(
                resigned(|it| it.testimony.lines = lines),
                Err(TestimonyError::Lines)
            );
        }
        assert_eq!(resigned(|it| it.testimony.lines = many(16)), Ok(()));
    }

    #[test]
    fn a_testimony_of_another_network_is_refused() {
        let other = Network {
            chain_id: 1,
            ..testing::network()
        };
        let verified = testing::testimony(8, NOW).verify(&other, NOW);
        assert_eq!(verified, Err(TestimonyError::Channel));
    }
}
