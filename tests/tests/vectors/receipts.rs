//! Receipts: fields, struct hash, the bytes signed, the signature.

use alloy::primitives::{B256, Bytes as Hex};
use alloy::sol_types::SolStruct;
use farthing_protocol::eip712::Typed;
use farthing_protocol::purchase::Ending;
use farthing_protocol::receipt::{Receipt, SignedReceipt};
use serde::{Deserialize, Serialize};

use super::ink::verify_ed25519;
use super::samples;
use super::sheet::Vector;

pub const ABOUT: &str = "A receipt, its EIP-712 type and struct hash, and the seller's ed25519 signature over `signed`: the label, a zero byte and the struct hash.";

/// Every way a purchase can end.
pub const ENDINGS: [Ending; 6] = [
    Ending::Complete,
    Ending::Cancelled,
    Ending::UpstreamFailed,
    Ending::Unpaid,
    Ending::Interrupted,
    Ending::Limit,
];

/// A receipt and what is signed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptVector {
    name: String,
    receipt: SignedReceipt,
    r#type: String,
    type_hash: B256,
    status: u8,
    struct_hash: B256,
    signed: Hex,
}

impl Vector for ReceiptVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let signed = &self.receipt;
        assert_eq!(
            signed.receipt.struct_hash(),
            self.struct_hash,
            "{}",
            self.name
        );
        assert_eq!(signed.receipt.to_sol().status, self.status);
        assert!(
            signed.clone().verify(signed.seller).is_ok(),
            "{}",
            self.name
        );
        verify_ed25519(&signed.seller, &self.signed, &signed.signature);
        assert_eq!(alloy::primitives::keccak256(&self.r#type), self.type_hash);
    }
}

pub fn receipts() -> Vec<ReceiptVector> {
    ENDINGS.map(vector).into()
}

fn vector(ending: Ending) -> ReceiptVector {
    let name = match ending {
        Ending::Complete => "complete",
        Ending::Cancelled => "cancelled",
        Ending::UpstreamFailed => "upstream-failed",
        Ending::Unpaid => "unpaid",
        Ending::Interrupted => "interrupted",
        Ending::Limit => "limit",
    };
    let receipt = samples::signed_receipt(ending);
    let sol = receipt.receipt.to_sol();
    let struct_hash = receipt.receipt.struct_hash();
    ReceiptVector {
        name: name.to_owned(),
        r#type: <Receipt as Typed>::Sol::eip712_encode_type().into_owned(),
        type_hash: sol.eip712_type_hash(),
        status: sol.status,
        struct_hash,
        signed: [&b"farthing receipt v1\0"[..], struct_hash.as_slice()]
            .concat()
            .into(),
        receipt,
    }
}
