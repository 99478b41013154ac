//! The claim, and where every atom is afterwards.

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::Change;

use crate::demo::books::{Account, Balances, total};
use crate::demo::stage::name;
use crate::demo::story::{Story, StoryError};
use crate::show::{Table, atoms, usdc};
use crate::street::Seller;

impl Story<'_> {
    /// The sellers claim, and all balances are compared.
    pub(in crate::demo::story) async fn claim(
        &mut self,
        at_first: &Balances,
    ) -> Result<(), StoryError> {
        self.page
            .title("On chain: a deposit and a claim, whatever the number of answers")?;
        self.deposits().await?;
        let unclaimed = self.balances().await?;
        let mut claims = Vec::new();
        for (n, seller) in self.stage.street.sellers.iter().enumerate() {
            for moved in seller.node().settlement().claim().await? {
                claims.push(moved.amount);
                let what = format!("{} claims", name(n));
                self.transaction(&what, moved.transaction, moved.amount)
                    .await?;
            }
        }
        self.claims(&claims).await?;
        let claimed = self.balances().await?;
        self.receipts().await?;
        self.page.title("Where the money is")?;
        self.page.table(&sheet(at_first, &unclaimed, &claimed))?;
        self.add_up(at_first, &unclaimed, &claimed).await
    }

    async fn deposits(&mut self) -> Result<(), StoryError> {
        let latest = self.chain.latest().await?.number;
        for event in self.chain.events(0..=latest).await? {
            if let Change::Deposited { amount, .. } = event.change {
                self.transaction("deposit", event.transaction, amount)
                    .await?;
            }
        }
        let buyer = &self.stage.street.buyers[0].wallet_keys();
        let mut gas = 0;
        for account in [buyer.payer.address(), buyer.authorizer.address()] {
            gas += self.chain.gas_balance(account).await?;
        }
        let what = "the buyer owns no gas: the seller handed in the deposit it had signed";
        Ok(self.checks.holds(what, gas == 0)?)
    }

    /// What the sellers say they claimed, and what the contract says.
    async fn claims(&mut self, claims: &[Amount]) -> Result<(), StoryError> {
        let latest = self.chain.latest().await?.number;
        let events = self.chain.events(0..=latest).await?;
        let amounts = events.into_iter().filter_map(|event| match event.change {
            Change::Claimed { amount, .. } => Some(amount),
            _ => None,
        });
        let what = "the contract's own events say it was claimed";
        let said = total(claims.iter().copied());
        self.checks
            .holds("there was something to claim", !said.is_zero())?;
        Ok(self.checks.equal(what, total(amounts), said)?)
    }

    async fn transaction(&self, what: &str, hash: B256, amount: Amount) -> Result<(), StoryError> {
        let outcome = self.chain.outcome(hash).await?;
        let outcome = outcome.ok_or(StoryError::Missing("transaction of the claim"))?;
        self.fact(
            what,
            &format!("{} atoms = {} USDC", atoms(amount), usdc(amount)),
        )?;
        self.fact("", &format!("{hash}"))?;
        self.fact(
            "",
            &format!("in block {}, {} gas", outcome.block, outcome.gas),
        )?;
        Ok(())
    }

    /// Every receipt on every channel, once more.
    async fn receipts(&mut self) -> Result<(), StoryError> {
        self.page.title("All receipts, once more")?;
        for (n, seller) in self.stage.street.sellers.iter().enumerate() {
            for account in self.accounts(seller).await? {
                let (name, count) = (name(n), account.held.len());
                self.checks.holds(
                    &format!(
                        "{name}: {count} receipts, numbered without a gap, each adding its charge"
                    ),
                    account.follows(),
                )?;
                self.checks.holds(
                    &format!("{name}: {count} signatures verified; the seller's books hold the same receipts"),
                    account.signed() == count && account.agrees(),
                )?;
                let what = format!("{name}: all tokens at its prices make the sum of its receipts");
                self.checks.equal(&what, account.due(), account.charged())?;
            }
        }
        Ok(())
    }

    async fn accounts(&self, seller: &Seller) -> Result<Vec<Account>, StoryError> {
        Ok(Account::with(seller, &self.stage.street, &self.chain).await?)
    }

    /// The equations of the money: on chain, in the receipts, in both sides' books.
    async fn add_up(
        &mut self,
        at_first: &Balances,
        unclaimed: &Balances,
        claimed: &Balances,
    ) -> Result<(), StoryError> {
        let mut deposited = Amount::ZERO;
        let mut left = Amount::ZERO;
        for (n, seller) in self.stage.street.sellers.iter().enumerate() {
            let accounts = self.accounts(seller).await?;
            deposited = total(
                accounts
                    .iter()
                    .map(|a| a.on_chain.balance)
                    .chain([deposited]),
            );
            let rest = |a: &Account| a.on_chain.balance.saturating_sub(a.on_chain.claimed);
            left = total(accounts.iter().map(rest).chain([left]));
            let rose = claimed.payouts[n].saturating_sub(at_first.payouts[n]);
            let charged = total(accounts.iter().map(Account::charged));
            let what = format!(
                "{}'s token balance rose by the sum of its receipts",
                name(n)
            );
            self.checks.equal(&what, rose, charged)?;
            if !accounts.is_empty() {
                let what = format!("{}'s books say the same", name(n));
                self.checks.equal(&what, seller.charged(), charged)?;
                let taken = total(accounts.iter().map(|a| a.on_chain.claimed));
                let what = "and the contract: claimed on its channels";
                self.checks.equal(what, taken, charged)?;
            }
        }
        let buyer = &self.stage.street.buyers[0];
        let paid_out = total(claimed.payouts.iter().copied());
        self.checks.equal(
            "the buyer's books say it was charged",
            buyer.charged(),
            paid_out,
        )?;
        let spent = at_first.wallet.saturating_sub(claimed.wallet);
        self.checks
            .equal("the buyer's wallet gave its deposits", spent, deposited)?;
        let what = "before the claim the contract held them";
        self.checks.equal(what, unclaimed.contract, deposited)?;
        let what = "now it holds what channels hold less what was claimed";
        self.checks.equal(what, claimed.contract, left)?;
        let what = "wallet, contract and sellers together hold what there was at first";
        Ok(self.checks.equal(what, claimed.sum(), at_first.sum())?)
    }
}

/// The three moments beside each other.
fn sheet(at_first: &Balances, unclaimed: &Balances, claimed: &Balances) -> Table {
    let mut table = Table::new(&[
        "atoms",
        ">at first",
        ">before the claim",
        ">after it",
        ">change",
        ">in USDC",
    ]);
    let mut row = |who: String, read: &dyn Fn(&Balances) -> Amount| {
        let [first, then, now] = [at_first, unclaimed, claimed].map(read);
        table.row([
            who,
            atoms(first),
            atoms(then),
            atoms(now),
            difference(first, now, atoms),
            difference(first, now, usdc),
        ]);
    };
    row("buyer's wallet".to_owned(), &|b| b.wallet);
    row("settlement contract".to_owned(), &|b| b.contract);
    for n in 0..at_first.payouts.len() {
        row(format!("seller {}", name(n)), &|b| b.payouts[n]);
    }
    row("together".to_owned(), &Balances::sum);
    table
}

fn difference(first: Amount, now: Amount, show: fn(Amount) -> String) -> String {
    match now.sub(first) {
        Ok(more) if more.is_zero() => "0".to_owned(),
        Ok(more) => format!("+{}", show(more)),
        Err(_) => format!("-{}", show(first.saturating_sub(now))),
    }
}
