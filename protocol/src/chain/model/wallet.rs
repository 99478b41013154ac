//! Contracts that own money and sign by EIP-1271, as `TestWallet.sol` does.

use alloy::primitives::{Address, B256};
use alloy::sol_types::SolCall;

use super::{Done, Model, Reverted};
use crate::chain::abi::IWallet;
use crate::eip712::EvmSignature;

impl Model {
    /// Makes an account a contract with these owners, as `TestWallet.sol` is one.
    pub(in crate::chain) fn place_wallet(&mut self, at: Address, mut owners: Vec<Address>) {
        owners.sort_unstable();
        self.wallets.insert(at, owners);
    }

    /// Whether these bytes are an account's consent: a contract's own word, or a key's canonical
    /// signature, never both.
    pub(super) fn consents(&self, account: Address, digest: B256, bytes: &[u8]) -> bool {
        if let Some(owners) = self.wallets.get(&account) {
            return all_signed(owners, digest, bytes);
        }
        let bytes = <[u8; 65]>::try_from(bytes);
        bytes.is_ok_and(|bytes| EvmSignature::from_bytes(bytes).recover(digest) == Ok(account))
    }
}

/// What the wallet says when it is asked.
pub(super) fn run(owners: &[Address], data: &[u8]) -> Result<Done, Reverted> {
    let call = IWallet::isValidSignatureCall::abi_decode(data).map_err(|_| Reverted::silent())?;
    let good = all_signed(owners, call.hash, &call.signature);
    let word = if good {
        IWallet::isValidSignatureCall::SELECTOR
    } else {
        [0; 4]
    };
    let output = IWallet::isValidSignatureCall::abi_encode_returns(&word.into());
    Ok(Done::returning(output))
}

/// Whether the bytes are one canonical signature of each owner, in their order.
fn all_signed(owners: &[Address], digest: B256, bytes: &[u8]) -> bool {
    let (signatures, rest) = bytes.as_chunks::<65>();
    let signed = |(bytes, owner): (&[u8; 65], &Address)| {
        EvmSignature::from_bytes(*bytes).recover(digest) == Ok(*owner)
    };
    rest.is_empty()
        && !owners.is_empty()
        && signatures.len() == owners.len()
        && signatures.iter().zip(owners).all(signed)
}
