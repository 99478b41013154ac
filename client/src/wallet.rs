//! The only door to the payment keys: check, record, then sign.
//!
//! Two keys: the **payer** owns the tokens and signs deposits; the **authorizer** is the hot key
//! that signs vouchers. The payer may be elsewhere, a hardware wallet or a contract: this machine
//! then holds the authorizer only, and deposits are signed there ([`Wallet::deposit`]). A voucher is
//! signed only for a ceiling that [`Ledger::promise`] has checked against the spend policy and the
//! store has on disk. Signing the same ceiling again gives the same bytes and is harmless: vouchers
//! are cumulative. Payments for one purchase pass the same checks ([`once`]).

pub mod once;
mod tab;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::{Address, B256, keccak256};
use farthing_protocol::amount::Amount;
use farthing_protocol::channel::Rejected;
use farthing_protocol::clock::Clock;
use farthing_protocol::eip712::{Domain, EvmKey, Signed};
use farthing_protocol::purchase::{Endpoint, RequestId};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::root::{self, CoSigned, ReceiptRoot, RootWord, SignedRoot};
use farthing_protocol::testimony::{SignedTestimony, Testimony};
use farthing_protocol::voucher::{SignedVoucher, Voucher};
use farthing_protocol::x402::{
    ChannelConfig, ChannelId, DEPOSIT_VALIDITY, Deposit, DepositTerms, Network,
};

use crate::ledger::{Ledger, LedgerError, Limits, Want, Wish};
use crate::wallet::tab::Line;
pub use crate::wallet::tab::Tab;

/// Who owns the tokens and signs deposits.
#[derive(Debug)]
pub enum Payer {
    /// A key on this machine.
    Here(EvmKey),
    /// An account whose key, or whose owners, are elsewhere.
    Elsewhere(Address),
}

impl Payer {
    /// The address whose tokens are spent.
    #[must_use]
    pub const fn address(&self) -> Address {
        match self {
            Self::Here(key) => key.address(),
            Self::Elsewhere(address) => *address,
        }
    }
}

impl From<EvmKey> for Payer {
    fn from(key: EvmKey) -> Self {
        Self::Here(key)
    }
}

/// The two payment keys. They may be the same key.
#[derive(Debug)]
pub struct Keys {
    /// Owns the tokens; signs deposits.
    pub payer: Payer,
    /// Signs vouchers.
    pub authorizer: EvmKey,
}

#[derive(Debug)]
struct Inside {
    keys: Keys,
    limits: Limits,
    network: Network,
    domain: Domain,
    /// The domain roots over receipts are signed in.
    roots: Domain,
    clock: Clock,
    ledger: Ledger,
    /// The voucher last signed on each channel: most purchases need no new one.
    signed: Mutex<HashMap<ChannelId, SignedVoucher>>,
}

/// A handle to the wallet; clones share it.
#[derive(Debug, Clone)]
pub struct Wallet(Arc<Inside>);

impl Wallet {
    /// A wallet with these keys, obeying these limits.
    #[must_use]
    pub fn new(keys: Keys, limits: Limits, network: Network, clock: Clock, ledger: Ledger) -> Self {
        let (domain, roots) = (network.domain(), root::domain(&network));
        Self(Arc::new(Inside {
            keys,
            limits,
            network,
            domain,
            roots,
            clock,
            ledger,
            signed: Mutex::default(),
        }))
    }

    /// The address whose tokens are spent.
    #[must_use]
    pub fn payer(&self) -> Address {
        self.0.keys.payer.address()
    }

    /// The address that signs vouchers.
    #[must_use]
    pub fn authorizer(&self) -> Address {
        self.0.keys.authorizer.address()
    }

    /// Whether the payer's key is on this machine.
    #[must_use]
    pub fn signs_deposits(&self) -> bool {
        matches!(self.0.keys.payer, Payer::Here(_))
    }

    /// The spend policy.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The payer's key, for transactions that only it can send; none when it is elsewhere.
    #[must_use]
    pub fn payer_key(&self) -> Option<&EvmKey> {
        match &self.0.keys.payer {
            Payer::Here(key) => Some(key),
            Payer::Elsewhere(_) => None,
        }
    }

    /// The key that pays gas for withdrawals.
    #[must_use]
    pub fn gas_key(&self) -> &EvmKey {
        &self.0.keys.authorizer
    }

    /// Sets money aside for a new purchase and returns the voucher that covers it.
    ///
    /// # Errors
    /// [`LedgerError`]; the limit `per_purchase`, the request's tab and a person's word are
    /// checked here against what the purchase may cost.
    pub async fn hold(
        &self,
        want: Want,
        order: Order<'_>,
    ) -> Result<(Hold, SignedVoucher), LedgerError> {
        let line = order.tab.open(want.request, order.wish.max_cost)?;
        // First the guard: whoever asked may go while the promise is being written.
        let mut hold = Hold {
            wallet: self.clone(),
            line,
            channel: want.channel,
            request: want.request,
            model: want.model,
            amount: want.more,
            approval: None,
            end: End::Release,
        };
        hold.approval = self.allowed(order).await?;
        let voucher = self.promise(want).await?;
        Ok((hold, voucher))
    }

    /// Checks what one purchase may cost, and takes a person's word if it wants one.
    async fn allowed(&self, order: Order<'_>) -> Result<Option<B256>, LedgerError> {
        let limits = &self.0.limits;
        let (allowed, max_cost) = (limits.per_purchase, order.wish.max_cost);
        if max_cost > allowed {
            let spent = Amount::ZERO;
            return Err(LedgerError::Limit {
                limit: "per_purchase",
                allowed,
                spent,
                more: max_cost,
            });
        }
        if limits.approve_above.is_none_or(|above| max_cost <= above) {
            return Ok(None);
        }
        let (id, now) = (order.subject(), self.0.clock.now());
        self.0.ledger.take_approval(id, order.wish, now).await?;
        Ok(Some(id))
    }

    /// The voucher over what a channel's purchases have charged and no more: what a refund is
    /// asked for with.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], the store's.
    pub async fn charged(&self, channel: ChannelId) -> Result<SignedVoucher, LedgerError> {
        let account = self.0.ledger.account(channel);
        let charged = account.ok_or(LedgerError::NoChannel)?.channel.charged();
        self.sign(channel, charged).await
    }

    /// Checks, records, signs.
    async fn promise(&self, want: Want) -> Result<SignedVoucher, LedgerError> {
        let inside = &self.0;
        let ceiling = inside
            .ledger
            .promise(want, &inside.limits, inside.clock.now())
            .await?;
        self.sign(want.channel, ceiling).await
    }

    /// Signs a ceiling that is recorded, waiting until it is.
    async fn sign(
        &self,
        channel: ChannelId,
        ceiling: Amount,
    ) -> Result<SignedVoucher, LedgerError> {
        self.0.ledger.durable(channel, ceiling).await?;
        let message = Voucher { channel, ceiling };
        if let Some(known) = self.signed().get(&channel)
            && known.message == message
        {
            return Ok(*known);
        }
        let voucher = Signed::sign(message, &self.0.domain, &self.0.keys.authorizer);
        self.signed().insert(channel, voucher);
        Ok(voucher)
    }

    fn signed(&self) -> MutexGuard<'_, HashMap<ChannelId, SignedVoucher>> {
        // Whatever is in it was signed: a panic elsewhere does not change that.
        self.0.signed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The voucher over what is promised already: for a seller that has not seen it.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], the store's.
    pub async fn newest(&self, channel: ChannelId) -> Result<SignedVoucher, LedgerError> {
        let account = self
            .0
            .ledger
            .account(channel)
            .ok_or(LedgerError::NoChannel)?;
        self.sign(channel, account.channel.ceiling()).await
    }

    /// A voucher over nothing: proves to a seller that we hold the channel's key.
    #[must_use]
    pub fn proof(&self, channel: ChannelId) -> SignedVoucher {
        let nothing = Voucher {
            channel,
            ceiling: Amount::ZERO,
        };
        Signed::sign(nothing, &self.0.domain, &self.0.keys.authorizer)
    }

    /// The root over a channel's receipts, signed, if one is due: all it covers is on disk.
    ///
    /// # Errors
    /// The store's.
    pub async fn acknowledge(&self, id: ChannelId) -> Result<Option<SignedRoot>, LedgerError> {
        let due = self.0.ledger.due_root(id, self.0.clock.now()).await?;
        Ok(due.map(|root| self.sign_root(root)))
    }

    /// The root over all of a channel's receipts that none covers yet, signed.
    ///
    /// # Errors
    /// The store's.
    pub async fn acknowledge_all(&self, id: ChannelId) -> Result<Option<SignedRoot>, LedgerError> {
        let whole = self.0.ledger.whole_root(id).await?;
        Ok(whole.map(|root| self.sign_root(root)))
    }

    /// Signs what became of purchases on a channel, to be told others. It promises nothing.
    #[must_use]
    pub fn testify(
        &self,
        said: Testimony,
        config: ChannelConfig,
        receipt: SignedReceipt,
    ) -> SignedTestimony {
        let by = (&self.0.network, &self.0.keys.authorizer);
        SignedTestimony::sign(said, config, receipt, by)
    }

    fn sign_root(&self, root: ReceiptRoot) -> SignedRoot {
        Signed::sign(root, &self.0.roots, &self.0.keys.authorizer)
    }

    /// Takes what a seller says to a root of ours: keeps it if the seller has signed it too. A
    /// seller that signs another one, or nothing that can be checked, is not paid again.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`], the store's.
    pub async fn countersigned(
        &self,
        ours: &SignedRoot,
        word: RootWord,
    ) -> Result<(), LedgerError> {
        let (ledger, id) = (&self.0.ledger, ours.message.channel);
        let account = ledger.account(id).ok_or(LedgerError::NoChannel)?;
        let claim = account.config.receiver_authorizer;
        let by_seller = |signed: SignedRoot| signed.verify(&self.0.roots, claim).is_ok();
        let (root, buyer) = (ours.message, ours.signature);
        let why = match word {
            RootWord::Signed(seller) => {
                let message = root;
                let signature = seller;
                if by_seller(Signed { message, signature }) {
                    return ledger
                        .cosign(CoSigned {
                            root,
                            buyer,
                            seller,
                        })
                        .await;
                }
                "its signature under a root is not its own"
            }
            RootWord::Later => return Ok(()),
            RootWord::Foreign => "it calls our signature under a root another's",
            RootWord::Differs(theirs) => {
                let same = theirs.message.channel == id && theirs.message.count == root.count;
                if same && theirs.message != root && by_seller(theirs) {
                    tracing::error!(seller = %account.seller.short(), "a seller signs a root that contradicts its own receipts; it is not used again");
                    return ledger.contradict(theirs).await;
                }
                "its other root is not one it signed over the same receipts"
            }
        };
        tracing::error!(seller = %account.seller.short(), why, "a seller does not stand by its receipts; it is not used again");
        ledger.freeze(id).await
    }

    /// Whether `voucher` carries our own signature: what makes a seller's counter believable.
    #[must_use]
    pub fn is_ours(&self, voucher: &SignedVoucher) -> bool {
        voucher.verify(&self.0.domain, self.authorizer()).is_ok()
    }

    /// Signs a deposit that the caller has checked; it must be recorded before it is sent. None
    /// when the payer's key is elsewhere.
    #[must_use]
    pub fn deposit(&self, config: &ChannelConfig, amount: Amount, salt: B256) -> Option<Deposit> {
        let Payer::Here(key) = &self.0.keys.payer else {
            return None;
        };
        let valid_before = self.0.clock.now().plus(DEPOSIT_VALIDITY);
        let terms = DepositTerms {
            amount,
            valid_before,
            salt,
        };
        Some(Deposit::sign(config, terms, &self.0.network, key))
    }
}

/// What a purchase is for: what a person is asked about when it is dear.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// What may be charged, by whom, for which model.
    pub wish: Wish<'a>,
    /// What is asked.
    pub endpoint: Endpoint,
    /// The request's body.
    pub body: &'a [u8],
    /// What the request may cost, with what those may charge that were asked for it before.
    pub tab: &'a Tab,
}

impl Order<'_> {
    /// The same for the same request, whoever sells.
    fn subject(&self) -> B256 {
        let model = keccak256(self.wish.model);
        let endpoint = keccak256(self.endpoint.to_string());
        keccak256([model.as_slice(), endpoint.as_slice(), self.body].concat())
    }
}

/// What happens to the money when a hold is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing was asked or everything was refused: it is given back.
    Release,
    /// The seller may have worked: it stays set aside until we know.
    Doubt,
    /// A receipt has settled it.
    Settled,
}

/// Money set aside for one running purchase.
#[derive(Debug)]
#[must_use = "dropping a hold gives the money back, or leaves it in doubt"]
pub struct Hold {
    wallet: Wallet,
    line: Line,
    channel: ChannelId,
    request: RequestId,
    model: B256,
    amount: Amount,
    /// A person's word that it uses up.
    approval: Option<B256>,
    end: End,
}

impl Hold {
    /// What is set aside.
    #[must_use]
    pub const fn amount(&self) -> Amount {
        self.amount
    }

    /// The channel.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        self.channel
    }

    /// The model it is for, as receipts name it.
    #[must_use]
    pub const fn model(&self) -> B256 {
        self.model
    }

    /// The voucher over all that is promised on the channel.
    ///
    /// # Errors
    /// As [`Wallet::newest`].
    pub async fn newest(&self) -> Result<SignedVoucher, LedgerError> {
        self.wallet.newest(self.channel).await
    }

    /// The root over the channel's receipts to send along, if one is due.
    ///
    /// # Errors
    /// As [`Wallet::acknowledge`].
    pub async fn acknowledge(&self) -> Result<Option<SignedRoot>, LedgerError> {
        self.wallet.acknowledge(self.channel).await
    }

    /// Takes the seller's answer to that root.
    ///
    /// # Errors
    /// As [`Wallet::countersigned`].
    pub async fn countersigned(
        &self,
        ours: &SignedRoot,
        word: RootWord,
    ) -> Result<(), LedgerError> {
        self.wallet.countersigned(ours, word).await
    }

    /// The voucher over exactly so much, which what is promised covers: for a seller that counts
    /// its price and nothing ahead.
    ///
    /// # Errors
    /// [`LedgerError::Rejected`] when it is more than is promised.
    pub async fn exactly(&self, ceiling: Amount) -> Result<SignedVoucher, LedgerError> {
        let account = self.wallet.0.ledger.account(self.channel);
        let promised = account.ok_or(LedgerError::NoChannel)?.channel.ceiling();
        if ceiling > promised {
            return Err(LedgerError::Rejected(Rejected::OverCeiling {
                needed: ceiling,
                ceiling: promised,
            }));
        }
        self.wallet.sign(self.channel, ceiling).await
    }

    /// From here on the seller may work: call it before the ask is sent.
    pub fn at_risk(&mut self) {
        self.end = End::Doubt;
    }

    /// The seller refused: nothing is charged.
    pub fn refused(&mut self) {
        self.end = End::Release;
    }

    /// The seller is told to stop: nothing more is signed to it for this purchase.
    pub fn stops(&self) {
        self.line.leaves(self.signed());
    }

    /// A receipt, or whatever stands for one, over so much is booked.
    pub fn settled(&mut self, charged: Amount) {
        self.line.charged(charged);
        self.end = End::Settled;
    }

    /// What was signed on the channel and is not booked: the seller may have worked for this
    /// purchase on what was signed for another.
    pub(crate) fn signed(&self) -> Amount {
        let account = self.wallet.0.ledger.account(self.channel);
        account.map_or(Amount::MAX, |account| {
            let channel = account.channel;
            channel.ceiling().saturating_sub(channel.charged())
        })
    }

    /// Sets `more` aside. The voucher comes from the returned future, which borrows nothing and so
    /// can be waited for beside the stream; call [`Hold::extended`] when it has come.
    pub fn extend(
        &self,
        more: Amount,
        headroom: Amount,
    ) -> impl Future<Output = Result<SignedVoucher, LedgerError>> + Send + 'static {
        let wallet = self.wallet.clone();
        let want = Want {
            channel: self.channel,
            request: self.request,
            model: self.model,
            more,
            headroom,
            floor: Amount::ZERO,
        };
        async move { wallet.promise(want).await }
    }

    /// The voucher over at least `floor`: for a seller that is further than we have read.
    ///
    /// # Errors
    /// As [`Wallet::hold`].
    pub async fn raise(&self, floor: Amount) -> Result<SignedVoucher, LedgerError> {
        let want = Want {
            channel: self.channel,
            request: self.request,
            model: self.model,
            more: Amount::ZERO,
            headroom: Amount::ZERO,
            floor,
        };
        self.wallet.promise(want).await
    }

    /// Enters that an extension by `more` has come.
    pub fn extended(&mut self, more: Amount) {
        self.amount = self.amount.saturating_add(more);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let ledger = &self.wallet.0.ledger;
        if let Some(id) = self.approval {
            ledger.end_approval(id, self.end != End::Release);
        }
        match self.end {
            End::Release => {
                self.line.is_free();
                ledger.release(self.channel, self.request);
            }
            End::Doubt => {
                self.line.is_lost(self.signed());
                ledger.doubt(self.channel, self.request);
            }
            End::Settled => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use farthing_protocol::testing;

    use super::*;

    #[test]
    fn regression_a_yes_to_one_endpoint_is_none_to_another() {
        let tab = Tab::new(Amount::ZERO);
        let order = |endpoint, body: &'static [u8]| Order {
            tab: &tab,
            wish: Wish {
                model: "a/b",
                seller: testing::node_key(1).id(),
                max_cost: Amount::atoms(1),
            },
            endpoint,
            body,
        };
        let body = br#"{"messages":[],"prompt":"x"}"#;
        let chat = order(Endpoint::Chat, body).subject();
        assert_eq!(chat, order(Endpoint::Chat, body).subject());
        assert_ne!(chat, order(Endpoint::Completions, body).subject());
        assert_ne!(chat, order(Endpoint::Chat, b"{}").subject());
    }
}
