//! Where the money is, and whether all of it is accounted for.

use farthing_client::ledger::{Kept, LedgerError as BuyerError};
use farthing_node::ledger::LedgerError as SellerError;
use farthing_protocol::amount::{Amount, Cost};
use farthing_protocol::chain::{Chain, ChainError, OnChain};
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Prices;
use farthing_protocol::pricing;
use farthing_protocol::receipt::Receipt;
use farthing_protocol::x402::ChannelId;

use crate::show::{Page, atoms};
use crate::street::{Seller, Street};

/// Why the books cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BooksError {
    /// The chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The buyer's ledger.
    #[error(transparent)]
    Buyer(#[from] BuyerError),
    /// A seller's ledger.
    #[error(transparent)]
    Seller(#[from] SellerError),
}

/// Token balances on chain, of everybody who can have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balances {
    /// The buyer's wallet.
    pub wallet: Amount,
    /// The settlement contract.
    pub contract: Amount,
    /// Each seller's payout address.
    pub payouts: Vec<Amount>,
}

impl Balances {
    /// As the chain has them now.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn read(street: &Street, chain: &Chain) -> Result<Self, ChainError> {
        let payer = street.buyers[0].wallet_keys().payer.address();
        let mut payouts = Vec::new();
        for seller in &street.sellers {
            payouts.push(chain.token_balance(seller.payout()).await?);
        }
        Ok(Self {
            wallet: chain.token_balance(payer).await?,
            contract: chain.token_balance(street.network.settlement).await?,
            payouts,
        })
    }

    /// All of it.
    #[must_use]
    pub fn sum(&self) -> Amount {
        let payouts = self.payouts.iter().copied();
        total(payouts.chain([self.wallet, self.contract]))
    }
}

/// One channel, as the buyer's books, the seller's books and the chain have it.
#[derive(Debug)]
pub struct Account {
    /// The channel.
    pub id: ChannelId,
    /// Whom it pays.
    pub seller: NodeId,
    /// What the buyer signed for at most.
    pub ceiling: Amount,
    /// The buyer's receipts, in order.
    pub held: Vec<Kept>,
    /// The seller's receipts, in order.
    pub issued: Vec<Receipt>,
    /// What the chain says.
    pub on_chain: OnChain,
    /// What the seller asks.
    pub prices: Prices,
}

impl Account {
    /// Every channel of the buyer's with this seller.
    ///
    /// # Errors
    /// [`BooksError`].
    pub async fn with(
        seller: &Seller,
        street: &Street,
        chain: &Chain,
    ) -> Result<Vec<Self>, BooksError> {
        let buyer = street.buyers[0].ledger();
        let prices = seller
            .config
            .models
            .first()
            .map(|model| model.offer().prices);
        let mut accounts = Vec::new();
        for (id, account) in buyer.accounts() {
            if account.seller != seller.id() {
                continue;
            }
            accounts.push(Self {
                id,
                seller: account.seller,
                ceiling: account.channel.ceiling(),
                held: buyer.receipts(id, 0, usize::MAX)?,
                issued: seller.node().ledger().receipts(id, 0, usize::MAX)?,
                on_chain: chain.channel(id).await?,
                prices: prices.unwrap_or_default(),
            });
        }
        Ok(accounts)
    }

    /// What the receipts the buyer holds charge.
    #[must_use]
    pub fn charged(&self) -> Amount {
        total(self.held.iter().map(|kept| kept.receipt.receipt.charged))
    }

    /// What their tokens cost at the seller's prices, in whole atoms over all of them.
    #[must_use]
    pub fn due(&self) -> Amount {
        let costs = self.held.iter().map(|kept| {
            let cost = pricing::cost(&kept.receipt.receipt.usage, &self.prices);
            cost.unwrap_or_default()
        });
        costs
            .fold(Cost::ZERO, |sum, cost| sum.add(cost).unwrap_or(sum))
            .floor()
    }

    /// Whether the receipts follow one another without a gap, each adding its charge.
    #[must_use]
    pub fn follows(&self) -> bool {
        let mut sum = Amount::ZERO;
        (0_u64..).zip(&self.held).all(|(place, kept)| {
            let receipt = &kept.receipt.receipt;
            sum = sum.saturating_add(receipt.charged);
            receipt.seq == place && receipt.cumulative == sum && kept.dispute.is_none()
        })
    }

    /// How many of the receipts carry the seller's signature.
    #[must_use]
    pub fn signed(&self) -> usize {
        let good = |kept: &&Kept| kept.receipt.clone().verify(self.seller).is_ok();
        self.held.iter().filter(good).count()
    }

    /// Whether both sides keep the very same receipts.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.held
            .iter()
            .map(|kept| &kept.receipt.receipt)
            .eq(&self.issued)
    }
}

/// The sum.
pub fn total(amounts: impl IntoIterator<Item = Amount>) -> Amount {
    amounts
        .into_iter()
        .fold(Amount::ZERO, Amount::saturating_add)
}

/// Figures that must agree: each is said on the page, and those that do not are remembered.
#[derive(Debug)]
pub struct Checks {
    page: Page,
    made: usize,
    wrong: Vec<String>,
}

impl Checks {
    /// None so far.
    #[must_use]
    pub const fn new(page: Page) -> Self {
        Self {
            page,
            made: 0,
            wrong: Vec::new(),
        }
    }

    /// Two amounts are the same.
    ///
    /// # Errors
    /// When the page cannot be written on; so for every method.
    pub fn equal(&mut self, what: &str, one: Amount, other: Amount) -> std::io::Result<()> {
        if one == other {
            return self.holds(&format!("{what}: {} atoms", atoms(one)), true);
        }
        let (one, other) = (atoms(one), atoms(other));
        self.holds(&format!("{what}: {one} is not {other} atoms"), false)
    }

    /// Something is so.
    ///
    /// # Errors
    /// See [`Checks::equal`].
    pub fn holds(&mut self, what: &str, holds: bool) -> std::io::Result<()> {
        self.made += 1;
        if holds {
            return self.page.line(&format!("✓ {what}"));
        }
        self.wrong.push(what.to_owned());
        self.page.line(&format!("✗ {what}"))
    }

    /// How many were made, and those that failed.
    #[must_use]
    pub fn verdict(self) -> (usize, Vec<String>) {
        (self.made, self.wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atom_too_much_is_remembered_and_said() {
        let mut checks = Checks::new(Page::on(Box::new(std::io::sink()), false));
        let (one, other) = (Amount::atoms(153), Amount::atoms(154));
        checks.equal("the same", one, one).expect("writes");
        checks.equal("the claim", one, other).expect("writes");
        let (made, wrong) = checks.verdict();
        assert_eq!(made, 2);
        assert_eq!(wrong, ["the claim: 153 is not 154 atoms"]);
    }
}
