//! What the client tells people about itself, and what they may do with its channels.

use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::evidence::Evidence;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::x402::ChannelId;

use crate::channels::ChannelError;
use crate::client::parts::{self, Parts};
use crate::ledger::Account;
use crate::purchase::PurchaseError;
use crate::receipts::Receipts;
use crate::report::{
    ActionError, ActionReport, ChannelAction, ChannelPhase, ChannelReport, HealthReport, Spending,
    Standing, Token, WalletReport,
};

impl Parts {
    pub(in crate::client) async fn health(&self) -> HealthReport {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        HealthReport {
            version: env!("CARGO_PKG_VERSION").into(),
            peers: count(self.net.peers().len()),
            sellers: count(self.market.sellers()),
            models: count(self.market.models().len()),
            chain_fault: self
                .chain
                .latest()
                .await
                .err()
                .map(|error| error.to_string()),
        }
    }

    pub(in crate::client) fn token(&self) -> Token {
        parts::token(&self.config)
    }

    pub(in crate::client) fn standing(&self) -> Standing {
        let mut sum = Standing {
            sellers: self.market.sellers(),
            ..Standing::default()
        };
        sum.charged = self.ledger.charged_once();
        sum.promised = self.ledger.signed_once();
        for (_, account) in self.ledger.accounts() {
            let channel = account.channel;
            let unspent = channel.balance().saturating_sub(channel.charged());
            sum.channels += 1;
            sum.charged = sum.charged.saturating_add(channel.charged());
            sum.promised = sum.promised.saturating_add(channel.ceiling());
            sum.unspent = sum.unspent.saturating_add(unspent);
        }
        sum
    }

    pub(in crate::client) async fn wallet_report(&self) -> WalletReport {
        let limits = self.wallet.limits();
        let promised = self.ledger.promised(self.clock.now());
        let unspent = |account: &Account| {
            account
                .channel
                .balance()
                .saturating_sub(account.channel.charged())
        };
        let accounts = self.ledger.accounts();
        let in_channels = accounts.iter().map(|(_, account)| unspent(account));
        WalletReport {
            token: self.token(),
            chain_id: self.config.chain.chain_id,
            payer: self.wallet.payer(),
            authorizer: self.wallet.authorizer(),
            balance: self.chain.token_balance(self.wallet.payer()).await.ok(),
            in_channels: in_channels.fold(Amount::ZERO, Amount::saturating_add),
            today: Spending {
                spent: promised.today,
                limit: limits.per_day,
            },
            total: Spending {
                spent: promised.total,
                limit: limits.total,
            },
            per_purchase: limits.per_purchase,
            per_seller: limits.per_seller,
            per_model: limits.per_model,
            approve_above: limits.approve_above,
            waiting: self.approvals().len(),
            elsewhere: !self.wallet.signs_deposits(),
        }
    }

    pub(in crate::client) async fn channel_reports(
        &self,
    ) -> Result<Vec<ChannelReport>, ActionError> {
        let mut reports = Vec::new();
        for (id, _) in self.ledger.accounts() {
            reports.push(self.channel_report(id).await?);
        }
        reports.sort_by_key(|report| report.id);
        Ok(reports)
    }

    /// One channel, as the chain shows it if it answers, else as the books have it.
    pub(in crate::client) async fn channel_report(
        &self,
        id: ChannelId,
    ) -> Result<ChannelReport, ActionError> {
        let known = self
            .ledger
            .account(id)
            .ok_or_else(|| ActionError::Unknown("such channel".into()))?;
        let account = self.channels.refresh(id).await.unwrap_or(known);
        let channel = account.channel;
        Ok(ChannelReport {
            id,
            seller: account.seller,
            phase: self.phase(id, &account).await,
            balance: channel.balance(),
            charged: channel.charged(),
            reserved: channel.reserved(),
            ceiling: channel.ceiling(),
            claimed: channel.claimed(),
            receipts: channel.receipts(),
        })
    }

    async fn phase(&self, id: ChannelId, account: &Account) -> ChannelPhase {
        let channel = account.channel;
        if !channel.armed().is_zero()
            && let Ok(Some(withdrawal)) = self.chain.pending_withdrawal(id).await
        {
            let seconds = withdrawal
                .initiated_at
                .saturating_add(account.config.withdraw_delay);
            let ready = Timestamp(seconds.saturating_mul(1000));
            return ChannelPhase::Withdrawing {
                amount: withdrawal.amount,
                ready,
            };
        }
        if channel.balance() <= channel.claimed() {
            ChannelPhase::Closed
        } else {
            ChannelPhase::Open
        }
    }

    pub(in crate::client) async fn act(
        &self,
        id: ChannelId,
        action: ChannelAction,
    ) -> Result<ActionReport, ActionError> {
        let account = self
            .ledger
            .account(id)
            .ok_or_else(|| ActionError::Unknown("such channel".into()))?;
        let offer = || {
            let gone = "the seller has no offer now; `withdraw` needs no seller".to_owned();
            self.market
                .offer(account.seller)
                .ok_or(ActionError::Unavailable(gone))
        };
        let (message, transaction) = match action {
            ChannelAction::TopUp { amount } => {
                let amount = amount.unwrap_or(self.config.spend.deposit);
                self.channels.add(&*offer()?, id, amount).await?;
                (format!("deposited {}", self.token().show(amount)), None)
            }
            ChannelAction::Refund => {
                let amount = match self.market.web_offer(account.seller) {
                    Some(web) => self.web.refund(&web, id).await?,
                    None => self.channels.refund(&*offer()?, id).await?,
                };
                (
                    format!("the seller returned {}", self.token().show(amount)),
                    None,
                )
            }
            ChannelAction::Withdraw => {
                let hash = self.channels.withdraw(id, None).await?;
                let delay = account.config.withdraw_delay;
                (
                    format!("withdrawal begun; a running gateway completes it in {delay} s"),
                    Some(hash),
                )
            }
            ChannelAction::Finalize => {
                let hash = self.channels.finalize(id).await?;
                ("withdrawal complete".to_owned(), Some(hash))
            }
        };
        let transaction = transaction.map(|hash| hash.to_string());
        Ok(ActionReport {
            message,
            transaction,
            channel: self.channel_report(id).await?,
        })
    }

    /// The receipts in the books, with those that were on their way to the disk. A store that
    /// writes no more is still read.
    pub(in crate::client) async fn records(&self) -> Receipts<'_> {
        if let Err(error) = self.ledger.written().await {
            tracing::warn!(%error, "what was booked last may be missing from what is shown");
        }
        Receipts::new(&self.ledger, self.chain.network())
    }

    /// The evidence of one receipt. One that no root of both covers yet is shown to its seller
    /// first, if the seller can be reached.
    pub(in crate::client) async fn evidence(
        &self,
        request: RequestId,
    ) -> Result<Evidence, ActionError> {
        let receipt = self.records().await.one(request)?.signed.receipt;
        let covered = self.ledger.root(receipt.channel);
        if covered.is_none_or(|root| root.root.count <= receipt.seq)
            && let Some(account) = self.ledger.account(receipt.channel)
            && let Some(offer) = self.market.offer(account.seller)
        {
            self.channels.cover(&offer, receipt.channel).await?;
        }
        self.records().await.evidence(request)
    }
}

impl From<PurchaseError> for ActionError {
    fn from(error: PurchaseError) -> Self {
        match error {
            PurchaseError::Channel(error) => (*error).into(),
            PurchaseError::Ledger(error) => error.into(),
            PurchaseError::Unreached(_) | PurchaseError::Late(_) => {
                Self::Unavailable(error.to_string())
            }
            other => Self::Refused(other.to_string()),
        }
    }
}

impl From<ChannelError> for ActionError {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Ledger(error) => error.into(),
            ChannelError::Silent(_) => Self::Unavailable(error.to_string()),
            ChannelError::NoDraft => {
                Self::Unknown("such deposit to be signed: prepare it anew".into())
            }
            ChannelError::Chain(chain) if chain.is_unavailable() => {
                Self::Unavailable(chain.to_string())
            }
            other => Self::Refused(other.to_string()),
        }
    }
}
