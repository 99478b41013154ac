//! The token: balances, allowances, and what payers authorize.

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::{SolCall, SolInterface, SolValue};

use super::{Context, Done, Model, Reverted};
use crate::amount::Amount;
use crate::chain::abi::{ISettlement, IToken};
use crate::eip712::Typed;
use crate::x402::{ChannelConfig, Deposit, PayerSignature, Transfer};

/// An authorization to move money, once its signature is known to be right.
struct Authorized {
    from: Address,
    to: Address,
    amount: u128,
    after: U256,
    before: U256,
    nonce: B256,
}

impl Model {
    /// Test money for anyone.
    pub(in crate::chain) fn mint(&mut self, to: Address, amount: u128) {
        let tokens = self.tokens.entry(to).or_default();
        *tokens = tokens.saturating_add(amount);
    }

    /// Lets a spender move an owner's money.
    pub(in crate::chain) fn approve(&mut self, owner: Address, spender: Address, value: U256) {
        self.allowances.insert((owner, spender), value);
    }

    /// A payer takes an authorization back: it cannot be used any more.
    pub(in crate::chain) fn cancel(&mut self, payer: Address, nonce: B256) {
        self.used.insert((payer, nonce));
    }

    fn held(&self, account: Address) -> u128 {
        self.tokens.get(&account).copied().unwrap_or_default()
    }

    fn allowance(&self, owner: Address, spender: Address) -> U256 {
        let allowed = self.allowances.get(&(owner, spender));
        allowed.copied().unwrap_or_default()
    }

    pub(super) fn run_token(&mut self, by: Context, data: &[u8]) -> Result<Done, Reverted> {
        use IToken::ITokenCalls as Calls;
        let call = Calls::abi_decode(data).map_err(|_| Reverted::silent())?;
        Ok(Done::returning(match call {
            Calls::name(_) => IToken::nameCall::abi_encode_returns(&self.network.token_name),
            Calls::version(_) => {
                IToken::versionCall::abi_encode_returns(&self.network.token_version)
            }
            Calls::DOMAIN_SEPARATOR(_) => self.network.token_domain().separator().abi_encode(),
            Calls::balanceOf(call) => U256::from(self.held(call.account)).abi_encode(),
            Calls::allowance(call) => self.allowance(call.owner, call.spender).abi_encode(),
            Calls::authorizationState(call) => self
                .used
                .contains(&(call.authorizer, call.nonce))
                .abi_encode(),
            Calls::mint(call) => {
                self.mint(call.to, call.value.saturating_to());
                Vec::new()
            }
            Calls::approve(call) => {
                require!(
                    !call.spender.is_zero(),
                    IToken::ERC20InvalidSpender {
                        spender: call.spender
                    }
                );
                self.approve(by.caller, call.spender, call.value);
                true.abi_encode()
            }
            Calls::transferWithAuthorization(call) => {
                self.transfer_with_authorization(by, &call)?;
                Vec::new()
            }
        }))
    }

    fn transfer_with_authorization(
        &mut self,
        by: Context,
        call: &IToken::transferWithAuthorizationCall,
    ) -> Result<(), Reverted> {
        let message = Transfer {
            from: call.from,
            to: call.to,
            amount: Amount::atoms(call.value.saturating_to()),
            valid_after: call.validAfter.saturating_to(),
            valid_before: call.validBefore.saturating_to(),
            nonce: call.nonce,
        };
        let digest = self.network.token_domain().hash(&message.to_sol());
        require!(
            self.consents(call.from, digest, &call.signature),
            IToken::ERC3009InvalidSignature {}
        );
        self.authorized(
            by,
            &Authorized {
                from: call.from,
                to: call.to,
                amount: message.amount.get(),
                after: call.validAfter,
                before: call.validBefore,
                nonce: call.nonce,
            },
        )
    }

    /// What collector and token do: check the authorization, use it up, move the money.
    pub(super) fn collect(
        &mut self,
        by: Context,
        config: &ChannelConfig,
        call: &ISettlement::depositCall,
    ) -> Result<(), Reverted> {
        type Data = (U256, U256, U256, Bytes);
        let (after, before, salt, signature) =
            Data::abi_decode_params(&call.collectorData).map_err(|_| Reverted::silent())?;
        let invalid = || Reverted::because(IToken::ERC3009InvalidSignature {});
        let deposit = Deposit {
            amount: Amount::atoms(call.amount),
            valid_after: after.saturating_to(),
            valid_before: before.saturating_to(),
            salt: salt.into(),
            signature: PayerSignature::new(signature).map_err(|_| invalid())?,
        };
        let digest = deposit.digest(config, &self.network);
        let bytes = deposit.signature.bytes();
        require!(
            self.consents(config.payer, digest, bytes),
            IToken::ERC3009InvalidSignature {}
        );
        let authorized = Authorized {
            from: config.payer,
            to: self.network.settlement,
            amount: call.amount,
            after,
            before,
            nonce: deposit.nonce(self.id(config)),
        };
        self.authorized(by, &authorized)
    }

    fn authorized(&mut self, by: Context, what: &Authorized) -> Result<(), Reverted> {
        let now = U256::from(by.now);
        require!(
            now > what.after && now < what.before,
            IToken::ERC3009InvalidAuthorizationTime {
                validAfter: what.after,
                validBefore: what.before,
            }
        );
        require!(
            self.used.insert((what.from, what.nonce)),
            IToken::ERC3009UsedAuthorization {
                authorizer: what.from,
                nonce: what.nonce,
            }
        );
        self.transfer(what.from, what.to, what.amount)
    }

    pub(super) fn transfer(
        &mut self,
        from: Address,
        to: Address,
        amount: u128,
    ) -> Result<(), Reverted> {
        require!(!to.is_zero(), IToken::ERC20InvalidReceiver { receiver: to });
        let held = self.held(from);
        let Some(rest) = held.checked_sub(amount) else {
            return Err(Reverted::because(IToken::ERC20InsufficientBalance {
                sender: from,
                balance: U256::from(held),
                needed: U256::from(amount),
            }));
        };
        self.tokens.insert(from, rest);
        self.mint(to, amount);
        Ok(())
    }

    /// Moves another's money, as far as it was allowed; an allowance of all that there can be
    /// does not shrink.
    pub(super) fn transfer_from(
        &mut self,
        spender: Address,
        owner: Address,
        (to, amount): (Address, u128),
    ) -> Option<()> {
        let allowed = self.allowance(owner, spender);
        let rest = allowed.checked_sub(U256::from(amount))?;
        self.transfer(owner, to, amount).ok()?;
        if allowed != U256::MAX {
            self.approve(owner, spender, rest);
        }
        Some(())
    }
}
