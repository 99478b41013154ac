//! After the storm: both disks, the chain and the model server are compared.

use std::collections::HashSet;
use std::path::Path;

use alloy::primitives::{Address, keccak256};
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::chain::local::LocalChain;
use farthing_protocol::clock::Clock;
use farthing_protocol::pricing::FIRST_WINDOW;
use farthing_protocol::receipt::Receipt;
use farthing_protocol::store::Store;
use farthing_protocol::x402::ChannelId;

use crate::chaos::traffic::{self, Counts};
use crate::chaos::{ChaosError, OUTPUT_PRICE, WORKERS};
use crate::upstream::MockUpstream;

/// Tokens that may be between the model server and the buyer when a process dies.
const IN_FLIGHT: u64 = 16;

/// Both books, opened after everybody has stopped.
#[derive(Debug)]
pub struct Books {
    seller: farthing_node::ledger::Ledger,
    buyer: farthing_client::ledger::Ledger,
}

/// What the books are compared with.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The chain.
    pub anvil: &'a LocalChain,
    /// Where the seller's money went.
    pub payout: Address,
    /// What was worked.
    pub upstream: &'a MockUpstream,
    /// Kills of seller and buyer.
    pub kills: (u32, u32),
    /// What the applications saw.
    pub counts: Counts,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// Figures by name, in order.
    pub figures: Vec<(&'static str, String)>,
    /// Everything that does not hold.
    pub violations: Vec<String>,
}

impl Audit {
    fn note(&mut self, name: &'static str, value: impl std::fmt::Display) {
        self.figures.push((name, value.to_string()));
    }

    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(what());
        }
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
        let store = Store::open(buyer, farthing_client::ledger::schema())
            .map_err(|e| book(e.to_string()))?;
        let buyer = farthing_client::ledger::Ledger::open(store);
        Ok(Self {
            seller: seller.map_err(|e| book(e.to_string()))?,
            buyer: buyer.map_err(|e| book(e.to_string()))?,
        })
    }

    /// Compares everything with everything.
    ///
    /// # Errors
    /// [`ChaosError`] when something cannot be read.
    pub async fn audit(&self, scene: Scene<'_>) -> Result<Audit, ChaosError> {
        let mut audit = Audit::default();
        audit.note("kills of the seller", scene.kills.0);
        audit.note("kills of the buyer", scene.kills.1);
        audit.note("answers whole", scene.counts.whole);
        audit.note("answers broken or refused", scene.counts.failed);
        let mut charged = Amount::ZERO;
        let mut locked = Amount::ZERO;
        let mut requests = HashSet::new();
        let streams = keccak256(traffic::body(traffic::Kind::Stream));
        let mut sold = 0_u64;
        for (id, view) in self.seller.channels() {
            let receipts = self.seller_receipts(id)?;
            self.compare(&mut audit, id, &receipts)?;
            for receipt in &receipts {
                if receipt.request_hash == streams {
                    sold += u64::from(receipt.usage.completion);
                }
                let fresh = requests.insert(receipt.request);
                audit.check(fresh, || {
                    format!("request {} is charged twice", receipt.request)
                });
            }
            charged = charged.saturating_add(view.channel.charged());
            let on_chain = scene.anvil.chain()?.channel(id).await?;
            audit.check(on_chain.claimed == view.channel.charged(), || {
                format!(
                    "channel {id}: claimed {} of {} charged",
                    on_chain.claimed,
                    view.channel.charged()
                )
            });
            locked = locked.saturating_add(on_chain.balance.saturating_sub(on_chain.claimed));
        }
        audit.note("receipts", requests.len());
        audit.note("charged (atoms)", charged);
        self.against_chain(&mut audit, &scene, charged, locked)
            .await?;
        against_work(&mut audit, &scene, sold);
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
            audit.check(whole, || {
                format!("channel {id}: receipt {seq} does not follow from those before it")
            });
        }
        let (seller, buyer) = (self.seller.channel(id), self.buyer.account(id));
        let (Some(seller), Some(buyer)) = (seller, buyer) else {
            audit
                .violations
                .push(format!("channel {id} is unknown to one side"));
            return Ok(());
        };
        audit.check(seller.channel.charged() == cumulative, || {
            format!(
                "channel {id}: {} charged, receipts make {cumulative}",
                seller.channel.charged()
            )
        });
        audit.check(buyer.channel.charged() == cumulative, || {
            format!(
                "channel {id}: the buyer's books say {}, the seller's {cumulative}",
                buyer.channel.charged()
            )
        });
        let ceiling = seller
            .voucher
            .map(|v| v.message.ceiling)
            .unwrap_or_default();
        audit.check(ceiling >= cumulative, || {
            format!("channel {id}: {cumulative} charged over a ceiling of {ceiling}")
        });
        audit.check(buyer.channel.ceiling() >= ceiling, || {
            format!(
                "channel {id}: the buyer forgot a voucher over {ceiling} (knows {})",
                buyer.channel.ceiling()
            )
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
        audit.check(same, || {
            format!(
                "channel {id}: the buyer keeps {} receipts, the seller {}",
                kept.len(),
                receipts.len()
            )
        });
        Ok(())
    }

    async fn against_chain(
        &self,
        audit: &mut Audit,
        scene: &Scene<'_>,
        charged: Amount,
        locked: Amount,
    ) -> Result<(), ChaosError> {
        let chain = scene.anvil.chain()?;
        let paid = chain.token_balance(scene.payout).await?;
        audit.note("paid out on chain (atoms)", paid);
        audit.check(paid == charged, || {
            format!("{charged} charged, {paid} paid out")
        });
        let held = chain.token_balance(chain.network().settlement).await?;
        audit.check(held == locked, || {
            format!("the contract holds {held}, its channels make {locked}")
        });
        Ok(())
    }
}

/// The seller was paid for what it worked, less at most one window for each purchase that ran
/// when something was killed.
fn against_work(audit: &mut Audit, scene: &Scene<'_>, sold: u64) {
    let streamed = |body: &[u8]| body.windows(13).any(|part| part == b"\"stream\":true");
    let streams = scene
        .upstream
        .requests()
        .into_iter()
        .filter(|request| streamed(&request.body));
    let tokens: u64 = streams.map(|request| request.chunks).sum();
    let kills = u64::from(scene.kills.0) + u64::from(scene.kills.1);
    let lost = kills
        .saturating_mul(WORKERS as u64)
        .saturating_mul(FIRST_WINDOW + IN_FLIGHT);
    let bound = Price(OUTPUT_PRICE).times(lost).ceil();
    audit.note("tokens streamed by the model server", tokens);
    audit.note("tokens of streams in receipts", sold);
    // Of streams alone: what plain answers and prompts brought in must not hide a loss.
    let unpaid = Price(OUTPUT_PRICE)
        .times(tokens.saturating_sub(sold))
        .floor();
    audit.note("streamed and unpaid (atoms)", unpaid);
    audit.note("allowed: a window per purchase and kill (atoms)", bound);
    audit.check(unpaid <= bound, || {
        format!("{unpaid} atoms of work are unpaid, {bound} at most are allowed")
    });
    audit.check(sold > 0, || "no stream was sold at all".to_owned());
}
