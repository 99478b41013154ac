//! What a test tells the twin to do, and what it does from outside the chain's history.

use alloy::primitives::{Address, B256, U256};

use super::{Line, MemoryChain, Receipts};
use crate::amount::Amount;

impl MemoryChain {
    /// Test tokens for an account.
    pub fn mint(&self, to: Address, amount: Amount) {
        self.lock().alter(|model| model.mint(to, amount.get()));
    }

    /// Makes an account a contract wallet (EIP-1271) that wants the signatures of all its owners.
    pub fn place_wallet(&self, at: Address, owners: Vec<Address>) {
        self.lock().model.place_wallet(at, owners);
    }

    /// Lets a spender move an owner's tokens, as the owner's own transaction would.
    pub fn approve(&self, owner: Address, spender: Address, amount: Amount) {
        let value = U256::from(amount.get());
        self.lock()
            .alter(|model| model.approve(owner, spender, value));
    }

    /// Wei for an account's gas.
    pub fn fund(&self, account: Address, wei: u128) {
        let mut state = self.lock();
        let balance = state.gas.entry(account).or_default();
        *balance = balance.saturating_add(wei);
    }

    /// Goes away: every question fails like an outage, until it comes back.
    pub fn set_away(&self, away: bool) {
        self.lock().line = if away { Line::Away } else { Line::Up };
    }

    /// Takes transactions but lets their sender believe in an outage.
    pub fn set_deaf(&self, deaf: bool) {
        self.lock().line = if deaf { Line::Deaf } else { Line::Up };
    }

    /// Leaves events out of its answers, as a node does whose index is broken.
    pub fn set_mute(&self, mute: bool) {
        self.lock().mute = mute;
    }

    /// Refuses questions for events, as a node does that does not serve them.
    pub fn set_eventless(&self, eventless: bool) {
        self.lock().eventless = eventless;
    }

    /// Takes only what offers what blocks ask, as some nodes' pools do.
    pub fn set_choosy(&self, choosy: bool) {
        self.lock().choosy = choosy;
    }

    /// Behaves like several nodes of which one says nothing.
    pub fn set_partly_silent(&self, silent: bool) {
        self.lock().partly_silent = silent;
    }

    /// Says who knows of mined transactions from now on.
    pub fn set_receipts(&self, receipts: Receipts) {
        self.lock().receipts = receipts;
    }

    /// Refuses in simulation what the contract would do, as a node does that lags behind.
    pub fn set_contrary(&self, contrary: bool) {
        self.lock().contrary = contrary;
    }

    /// How many questions it was asked.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.lock().asked
    }

    /// Behaves like several nodes whose answers may be so many blocks apart.
    pub fn set_most_behind(&self, blocks: u64) {
        self.lock().most_behind = blocks;
    }

    /// Sets what an account has for gas.
    pub fn set_funds(&self, account: Address, wei: u128) {
        self.lock().gas.insert(account, wei);
    }

    /// A payer cancels an authorization (EIP-3009), as its own transaction would.
    pub fn cancel_authorization(&self, payer: Address, nonce: B256) {
        self.lock().alter(|model| model.cancel(payer, nonce));
    }

    /// An owner uses up a nonce of Permit2, as its own transaction would.
    pub fn cancel_permit(&self, owner: Address, nonce: U256) {
        self.lock().alter(|model| model.invalidate(owner, nonce));
    }

    /// Holds transactions back until [`MemoryChain::mine`], or mines them at once again.
    pub fn set_held(&self, held: bool) {
        self.lock().held = held;
    }

    /// Makes blocks ask so much per gas; transactions that offer less wait.
    pub fn set_base_fee(&self, wei: u128) {
        self.lock().base_fee = wei;
    }

    /// Forgets the transactions that wait, as nodes do under pressure.
    pub fn forget_waiting(&self) {
        self.lock().waiting.clear();
    }

    /// Takes back the last blocks, as far as they are remembered; one more than them come in
    /// their place, without what was in them.
    pub fn reorganise(&self, blocks: u64) {
        let now = self.clock.now().seconds();
        let mut state = self.lock();
        let taken = state.take_back(blocks);
        let held = std::mem::take(&mut state.waiting);
        for _ in 0..=taken {
            state.mine(now);
        }
        state.waiting = held;
    }

    /// Mines so many blocks; the first takes all that waits.
    pub fn mine(&self, blocks: u64) {
        let now = self.clock.now().seconds();
        let mut state = self.lock();
        for _ in 0..blocks {
            state.mine(now);
        }
    }
}
