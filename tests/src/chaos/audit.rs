//! After the storm: both disks, the chain and the model server are compared.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use alloy::primitives::{Address, B256};
use farthing_client::ledger::Standing;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::chain::local::LocalChain;
use farthing_protocol::clock::Clock;
use farthing_protocol::pricing::FIRST_WINDOW;
use farthing_protocol::receipt::Receipt;
use farthing_protocol::store::Store;
use farthing_protocol::x402::ChannelId;

use crate::chaos::traffic::{self, Asked, Kind};
use crate::chaos::{ChaosError, OUTPUT_PRICE, WORKERS};
use crate::upstream::Request;

/// Tokens that may be between the model server and the buyer when something breaks.
const IN_FLIGHT: u64 = 16;

/// What one fault may cost the seller: a window of each purchase that ran.
#[must_use]
pub fn allowance() -> Amount {
    let tokens = (WORKERS as u64).saturating_mul(FIRST_WINDOW + IN_FLIGHT);
    Price(OUTPUT_PRICE).times(tokens).ceil()
}

/// Both books, opened after everybody has stopped.
#[derive(Debug)]
pub struct Books {
    seller: farthing_node::ledger::Ledger,
    buyer: farthing_client::ledger::Ledger,
}

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Harm {
    /// A promise that a side had made or taken is forgotten.
    LostVoucher,
    /// Something is charged twice, or charged without having been worked.
    DoubleCharge,
    /// Money or a channel that can no longer be used.
    Stuck,
    /// More work unpaid than one window.
    Unpaid,
    /// Books that do not agree in another way.
    Disagreement,
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LostVoucher => "lost voucher",
            Self::DoubleCharge => "double charge",
            Self::Stuck => "stuck",
            Self::Unpaid => "unpaid work",
            Self::Disagreement => "books that disagree",
        })
    }
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// Figures by name, in order.
    pub figures: Vec<(&'static str, String)>,
    /// Everything that does not hold.
    pub violations: Vec<(Harm, String)>,
    /// By each request's hash: tokens of answers in its receipts.
    pub sold: HashMap<B256, u64>,
}

impl Audit {
    /// Notes a figure.
    pub fn note(&mut self, name: &'static str, value: impl fmt::Display) {
        self.figures.push((name, value.to_string()));
    }

    fn check(&mut self, holds: bool, harm: Harm, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push((harm, what()));
        }
    }

    /// How often this was found.
    #[must_use]
    pub fn count(&self, harm: Harm) -> usize {
        let found = self.violations.iter().filter(|(found, _)| *found == harm);
        found.count()
    }
}

impl Books {
    /// Opens the books on both disks.
    ///
    /// # Errors
    /// [`ChaosError::Book`].
    pub async fn open(seller: &Path, buyer: &Path) -> Result<Self, ChaosError> {
        let book = |error: String| ChaosError::Book(error);
        let store = Store::open(seller, farthing_node::ledger::schema())
            .map_err(|e| book(e.to_string()))?;
        let seller = farthing_node::ledger::Ledger::open(store, Clock::system().now()).await;
        let store = Store::open(buyer, farthing_client::client::schema())
            .map_err(|e| book(e.to_string()))?;
        let buyer = farthing_client::ledger::Ledger::open(store);
        Ok(Self {
            seller: seller.map_err(|e| book(e.to_string()))?,
            buyer: buyer.map_err(|e| book(e.to_string()))?,
        })
    }

    /// Compares the two with each other and with the chain.
    ///
    /// # Errors
    /// [`ChaosError`] when something cannot be read.
    pub async fn audit(&self, anvil: &LocalChain, payout: Address) -> Result<Audit, ChaosError> {
        let mut audit = Audit::default();
        let (mut charged, mut locked) = (Amount::ZERO, Amount::ZERO);
        let mut requests = HashSet::new();
        let channels = self.seller.channels();
        audit.note("channels", channels.len());
        for (id, view) in channels {
            let receipts = self.seller_receipts(id)?;
            self.compare(&mut audit, id, &receipts)?;
            for receipt in &receipts {
                *audit.sold.entry(receipt.request_hash).or_default() +=
                    u64::from(receipt.usage.completion);
                let fresh = requests.insert(receipt.request);
                audit.check(fresh, Harm::DoubleCharge, || {
                    format!("request {} is charged twice", receipt.request)
                });
            }
            charged = charged.saturating_add(view.channel.charged());
            let on_chain = anvil.chain()?.channel(id).await?;
            audit.check(
                on_chain.claimed == view.channel.charged(),
                Harm::Stuck,
                || {
                    format!(
                        "channel {id}: claimed {} of {} charged",
                        on_chain.claimed,
                        view.channel.charged()
                    )
                },
            );
            locked = locked.saturating_add(on_chain.balance.saturating_sub(on_chain.claimed));
        }
        audit.note("receipts", requests.len());
        audit.note("charged (atoms)", charged);
        let chain = anvil.chain()?;
        let paid = chain.token_balance(payout).await?;
        audit.note("paid out on chain (atoms)", paid);
        audit.check(paid == charged, Harm::Stuck, || {
            format!("{charged} charged, {paid} paid out")
        });
        let held = chain.token_balance(chain.network().settlement).await?;
        audit.check(held == locked, Harm::Disagreement, || {
            format!("the contract holds {held}, its channels make {locked}")
        });
        Ok(audit)
    }

    fn seller_receipts(&self, id: ChannelId) -> Result<Vec<Receipt>, ChaosError> {
        self.seller
            .receipts(id, 0, usize::MAX)
            .map_err(|e| ChaosError::Book(e.to_string()))
    }

    /// One channel: the seller's receipts add up, and the buyer has the same.
    fn compare(
        &self,
        audit: &mut Audit,
        id: ChannelId,
        receipts: &[Receipt],
    ) -> Result<(), ChaosError> {
        let mut cumulative = Amount::ZERO;
        for (seq, receipt) in (0_u64..).zip(receipts) {
            cumulative = cumulative.saturating_add(receipt.charged);
            let whole = receipt.seq == seq && receipt.cumulative == cumulative;
            audit.check(whole, Harm::Disagreement, || {
                format!("channel {id}: receipt {seq} does not follow from those before it")
            });
        }
        let (seller, buyer) = (self.seller.channel(id), self.buyer.account(id));
        let (Some(seller), Some(buyer)) = (seller, buyer) else {
            let unknown = format!("channel {id} is unknown to one side");
            audit.violations.push((Harm::LostVoucher, unknown));
            return Ok(());
        };
        let charged = seller.channel.charged();
        audit.check(charged == cumulative, Harm::Disagreement, || {
            format!("channel {id}: {charged} charged, receipts make {cumulative}")
        });
        let booked = buyer.channel.charged();
        audit.check(booked == cumulative, Harm::Disagreement, || {
            format!("channel {id}: the buyer's books say {booked}, the seller's {cumulative}")
        });
        let usable = buyer.standing != Standing::Frozen && buyer.channel.reserved().is_zero();
        audit.check(usable, Harm::Stuck, || {
            format!(
                "channel {id}: the buyer has {} set aside for ever, or froze it ({:?})",
                buyer.channel.reserved(),
                buyer.standing
            )
        });
        let ceiling = seller
            .voucher
            .map(|v| v.message.ceiling)
            .unwrap_or_default();
        audit.check(ceiling >= cumulative, Harm::LostVoucher, || {
            format!("channel {id}: {cumulative} charged over a ceiling of {ceiling}")
        });
        let known = buyer.channel.ceiling();
        audit.check(known >= ceiling, Harm::LostVoucher, || {
            format!("channel {id}: the buyer forgot a voucher over {ceiling} (knows {known})")
        });
        let kept = self
            .buyer
            .receipts(id, 0, usize::MAX)
            .map_err(|e| ChaosError::Book(e.to_string()))?;
        let same = kept.len() == receipts.len()
            && kept
                .iter()
                .zip(receipts)
                .all(|(kept, own)| kept.receipt.receipt == *own);
        audit.check(same, Harm::Disagreement, || {
            format!(
                "channel {id}: the buyer keeps {} receipts, the seller {}",
                kept.len(),
                receipts.len()
            )
        });
        Ok(())
    }
}

/// The model server's count beside the receipts', request by request.
#[derive(Debug, Default)]
pub struct Work {
    /// Tokens that were worked and not paid. (What somebody hung up on is not wanted, and not
    /// counted.)
    pub unpaid: Vec<(Asked, u64)>,
    /// Tokens that were paid and not worked.
    pub invented: Vec<(Asked, u64)>,
}

impl Work {
    /// Compares what was made with what was `sold`, by [`Audit::sold`].
    #[must_use]
    pub fn compare(asked: &[Asked], worked: &[Request], sold: &HashMap<B256, u64>) -> Self {
        let mut made: HashMap<u64, u64> = HashMap::new();
        for request in worked {
            if let Some(number) = traffic::number(&request.body) {
                *made.entry(number).or_default() += request.chunks;
            }
        }
        let mut work = Self::default();
        for asked in asked.iter().filter(|asked| asked.kind != Kind::Plain) {
            let made = made.get(&asked.number).copied().unwrap_or_default();
            let sold = sold.get(&asked.hash).copied().unwrap_or_default();
            if sold > made {
                work.invented.push((*asked, sold - made));
            }
            if asked.kind == Kind::Stream && made > sold {
                work.unpaid.push((*asked, made - sold));
            }
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::upstream::{Endpoint, Stage};

    fn asked(number: u64, kind: Kind) -> Asked {
        Asked {
            number,
            hash: B256::with_last_byte(number as u8),
            kind,
            fault: 1,
        }
    }

    fn worked(number: u64, chunks: u64) -> Request {
        Request {
            number,
            endpoint: Endpoint::Chat,
            body: Bytes::from(format!("{{\"user\":\"application {number}\"}}")),
            authorization: None,
            chunks,
            stage: Stage::Finished,
        }
    }

    #[test]
    fn work_is_compared_with_receipts_request_by_request() {
        let asked = [
            asked(1, Kind::Stream),
            asked(2, Kind::Stream),
            asked(3, Kind::HangUp),
            asked(4, Kind::Stream),
        ];
        // The first was tried twice; what the second was overpaid must not hide its loss.
        let worked = [worked(1, 90), worked(1, 200), worked(2, 10), worked(3, 30)];
        let sold = [(1, 200), (2, 20), (3, 25)];
        let sold = sold.map(|(n, tokens)| (B256::with_last_byte(n), tokens));
        let work = Work::compare(&asked, &worked, &HashMap::from(sold));
        let plain = |(asked, tokens): &(Asked, u64)| (asked.number, *tokens);
        assert_eq!(work.unpaid.iter().map(plain).collect::<Vec<_>>(), [(1, 90)]);
        assert_eq!(
            work.invented.iter().map(plain).collect::<Vec<_>>(),
            [(2, 10)]
        );
    }
}
