//! Permit2's signed transfers, and the proxy of x402 `upto` that takes them.

use alloy::primitives::{Address, U256};
use alloy::sol_types::{Revert, SolInterface, SolValue};

use super::{Context, Done, Model, Reverted};
use crate::amount::Amount;
use crate::chain::abi::{IPermit2, IUptoProxy};
use crate::chain::permit_place;
use crate::eip712::{EvmSignature, SignatureError, Signed, Typed};
use crate::x402::{PERMIT2, Permit};

impl Model {
    pub(super) fn run_permit2(&mut self, data: &[u8]) -> Result<Done, Reverted> {
        use IPermit2::IPermit2Calls as Calls;
        let call = Calls::abi_decode(data).map_err(|_| Reverted::silent())?;
        Ok(Done::returning(match call {
            Calls::DOMAIN_SEPARATOR(_) => Permit::domain(self.network.chain_id)
                .separator()
                .abi_encode(),
            Calls::nonceBitmap(call) => self.permits(call.owner, call.word).abi_encode(),
        }))
    }

    pub(super) fn run_upto(&mut self, by: Context, data: &[u8]) -> Result<Done, Reverted> {
        use IUptoProxy::IUptoProxyCalls as Calls;
        let call = Calls::abi_decode(data).map_err(|_| Reverted::silent())?;
        match call {
            Calls::PERMIT2(_) => Ok(Done::returning(PERMIT2.abi_encode())),
            Calls::settle(call) => {
                self.take(by, &call)?;
                Ok(Done::default())
            }
        }
    }

    /// An owner takes a permit back: its nonce counts as used.
    pub(in crate::chain) fn invalidate(&mut self, owner: Address, nonce: U256) {
        let (word, bit) = permit_place(nonce);
        let mut bits = self.permits(owner, word);
        bits.set_bit(bit, true);
        self.permits.insert((owner, word), bits);
    }

    fn permits(&self, owner: Address, word: U256) -> U256 {
        let bits = self.permits.get(&(owner, word));
        bits.copied().unwrap_or_default()
    }

    /// First the proxy's checks, then Permit2's.
    fn take(&mut self, by: Context, call: &IUptoProxy::settleCall) -> Result<(), Reverted> {
        let (permit, witness) = (&call.permit, &call.witness);
        let now = U256::from(by.now);
        require!(
            by.caller == witness.facilitator,
            IUptoProxy::UnauthorizedFacilitator {}
        );
        require!(
            call.amount <= permit.permitted.amount,
            IUptoProxy::AmountExceedsPermitted {}
        );
        require!(!call.owner.is_zero(), IUptoProxy::InvalidOwner {});
        require!(!witness.to.is_zero(), IUptoProxy::InvalidDestination {});
        require!(now >= witness.validAfter, IUptoProxy::PaymentTooEarly {});
        require!(
            now <= permit.deadline,
            IPermit2::SignatureExpired {
                signatureDeadline: permit.deadline
            }
        );
        let (word, bit) = permit_place(permit.nonce);
        let mut bits = self.permits(call.owner, word);
        require!(!bits.bit(bit), IPermit2::InvalidNonce {});
        bits.set_bit(bit, true);
        self.permits.insert((call.owner, word), bits);
        self.check_permit(call)?;
        // Permit2 says nothing of why the token refuses.
        let failed = || Reverted::because(Revert::from("TRANSFER_FROM_FAILED"));
        if permit.permitted.token != self.network.token {
            return Err(failed());
        }
        let transfer = (witness.to, call.amount.saturating_to());
        self.transfer_from(PERMIT2, call.owner, transfer)
            .ok_or_else(failed)
    }

    fn check_permit(&self, call: &IUptoProxy::settleCall) -> Result<(), Reverted> {
        let invalid = || Reverted::because(IPermit2::InvalidSignature {});
        let message = Permit {
            owner: call.owner,
            token: call.permit.permitted.token,
            ceiling: Amount::atoms(call.permit.permitted.amount.saturating_to()),
            nonce: call.permit.nonce,
            deadline: call.permit.deadline.saturating_to(),
            to: call.witness.to,
            facilitator: call.witness.facilitator,
            valid_after: call.witness.validAfter.saturating_to(),
        };
        let domain = Permit::domain(self.network.chain_id);
        if self.wallets.contains_key(&call.owner) {
            let digest = domain.hash(&message.to_sol());
            require!(
                self.consents(call.owner, digest, &call.signature),
                IPermit2::InvalidContractSignature {}
            );
            return Ok(());
        }
        let Ok(bytes) = <[u8; 65]>::try_from(call.signature.as_ref()) else {
            return Err(Reverted::because(IPermit2::InvalidSignatureLength {}));
        };
        let signature = EvmSignature::from_bytes(bytes);
        let verified = Signed { message, signature }.verify(&domain, call.owner);
        verified.map(|_| ()).map_err(|error| match error {
            SignatureError::WrongSigner { .. } => Reverted::because(IPermit2::InvalidSigner {}),
            SignatureError::RecoveryByte(_) | SignatureError::HighS | SignatureError::Invalid => {
                invalid()
            }
        })
    }
}
