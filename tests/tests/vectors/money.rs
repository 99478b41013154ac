//! Channels, vouchers and deposits, as x402 `batch-settlement` has them.

use alloy::primitives::{Address, B256, Bytes as Hex, U256, address, hex, keccak256};
use alloy::sol_types::SolStruct;
use farthing_protocol::amount::Amount;
use farthing_protocol::eip712::{EvmKey, EvmSignature, SignatureError, Signed, Typed};
use farthing_protocol::testing;
use farthing_protocol::voucher::{SignedVoucher, Voucher};
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit, Network, PayerSignature};
use serde::{Deserialize, Serialize};

use super::samples;
use super::sheet::Vector;

pub const CHANNEL: &str =
    "A channel's terms and its id: the EIP-712 digest of them in the settlement contract's domain.";
pub const VOUCHER: &str = "A voucher, what is signed, the signature, and what a reader that expects `signer` decides. `secret` is a test key.";
pub const DEPOSIT: &str = "A deposit's EIP-3009 authorization in the token's domain, and the collector's argument. `secret` is the payer's test key; a payer without one is a contract.";

/// The channel of x402's own published example.
fn x402_config() -> ChannelConfig {
    ChannelConfig {
        payer: address!("70997970C51812dc3A010C7d01b50e0d17dc79C8"),
        payer_authorizer: address!("70997970C51812dc3A010C7d01b50e0d17dc79C8"),
        receiver: address!("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"),
        receiver_authorizer: address!("90F79bf6EB2c4f870365E785982E1f101E93b906"),
        token: testing::network().token,
        withdraw_delay: 900,
        salt: B256::ZERO,
    }
}

/// Its payer: anvil's well-known second account.
fn x402_key() -> EvmKey {
    let secret = hex!("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d");
    EvmKey::from_bytes(&secret).expect("a valid key")
}

/// A channel and its name.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelVector {
    name: String,
    network: Network,
    domain_separator: B256,
    config: ChannelConfig,
    r#type: String,
    type_hash: B256,
    struct_hash: B256,
    id: ChannelId,
}

impl Vector for ChannelVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        assert_eq!(self.config.id(&self.network), self.id, "{}", self.name);
        assert_eq!(keccak256(&self.r#type), self.type_hash);
        let digest = digest(self.domain_separator, self.struct_hash);
        assert_eq!(digest, self.id.0, "{}", self.name);
    }
}

/// EIP-712's last step, written out.
fn digest(separator: B256, struct_hash: B256) -> B256 {
    keccak256([&[0x19, 0x01], separator.as_slice(), struct_hash.as_slice()].concat())
}

pub fn channels() -> Vec<ChannelVector> {
    let vector = |(name, config): (&str, ChannelConfig)| {
        let network = testing::network();
        let sol = config.to_sol();
        ChannelVector {
            name: name.to_owned(),
            domain_separator: network.domain().separator(),
            config,
            r#type: <ChannelConfig as Typed>::Sol::eip712_encode_type().into_owned(),
            type_hash: sol.eip712_type_hash(),
            struct_hash: sol.eip712_hash_struct(),
            id: config.id(&network),
            network,
        }
    };
    let second = ChannelConfig {
        salt: B256::with_last_byte(1),
        ..testing::channel_config()
    };
    let all = [
        ("x402-published", x402_config()),
        ("test-channel", testing::channel_config()),
        ("second-lane", second),
    ];
    all.map(vector).into()
}

/// A voucher and a reader's verdict.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoucherVector {
    name: String,
    domain_separator: B256,
    voucher: SignedVoucher,
    r#type: String,
    struct_hash: B256,
    digest: B256,
    secret: B256,
    signer: Address,
    verdict: String,
}

impl Vector for VoucherVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        assert_eq!(digest(self.domain_separator, self.struct_hash), self.digest);
        let verdict = verdict(self.voucher, self.signer);
        assert_eq!(verdict, self.verdict, "{}", self.name);
        if verdict == "good" {
            let key = EvmKey::from_bytes(&self.secret.0).expect("a key");
            let again = Signed::sign(self.voucher.message, &testing::network().domain(), &key);
            assert_eq!(again, self.voucher, "{}", self.name);
        }
    }
}

fn verdict(voucher: SignedVoucher, signer: Address) -> String {
    let text = match voucher.verify(&testing::network().domain(), signer) {
        Ok(_) => "good",
        Err(SignatureError::RecoveryByte(_)) => "recovery byte",
        Err(SignatureError::HighS) => "high s",
        Err(SignatureError::Invalid) => "no point",
        Err(SignatureError::WrongSigner { .. }) => "wrong signer",
    };
    text.to_owned()
}

pub fn vouchers() -> Vec<VoucherVector> {
    let published = Voucher {
        channel: x402_config().id(&testing::network()),
        ceiling: Amount::atoms(7200),
    };
    let published = Signed::sign(published, &testing::network().domain(), &x402_key());
    let good = samples::voucher(1_000_000);
    let with = |change: fn(&mut [u8; 65])| {
        let mut bytes = *good.signature.as_bytes();
        change(&mut bytes);
        Signed {
            signature: EvmSignature::from_bytes(bytes),
            ..good
        }
    };
    let mut more = good;
    more.message.ceiling = Amount::atoms(1_000_001);
    let session = testing::evm_key(8);
    vec![
        voucher("x402-published", published, &x402_key()),
        voucher("good", good, &session),
        voucher("proof-over-nothing", samples::voucher(0), &session),
        voucher("largest-ceiling", samples::voucher(u128::MAX), &session),
        voucher("high-s-twin", with(twin), &session),
        voucher(
            "recovery-byte-0-or-1",
            with(|bytes| bytes[64] -= 27),
            &session,
        ),
        voucher("no-point", with(|bytes| bytes[..32].fill(0xff)), &session),
        voucher("other-ceiling", more, &session),
        voucher("other-key", good, &testing::evm_key(7)),
    ]
}

/// The other signature that recovers to the same key.
fn twin(bytes: &mut [u8; 65]) {
    let order = U256::from_be_bytes(hex!(
        "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
    ));
    let s = U256::from_be_slice(&bytes[32..64]);
    bytes[32..64].copy_from_slice(&(order - s).to_be_bytes::<32>());
    bytes[64] = 55 - bytes[64];
}

fn voucher(name: &str, voucher: SignedVoucher, key: &EvmKey) -> VoucherVector {
    let domain = testing::network().domain();
    let sol = voucher.message.to_sol();
    VoucherVector {
        name: name.to_owned(),
        domain_separator: domain.separator(),
        voucher,
        r#type: <Voucher as Typed>::Sol::eip712_encode_type().into_owned(),
        struct_hash: sol.eip712_hash_struct(),
        digest: domain.hash(&sol),
        secret: key.secret().into(),
        signer: key.address(),
        verdict: verdict(voucher, key.address()),
    }
}

alloy::sol! {
    /// As EIP-3009 has it, written here again so that a digest is checked by two hands.
    struct ReceiveWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

/// A deposit and what the token checks.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepositVector {
    name: String,
    network: Network,
    token_domain_separator: B256,
    config: ChannelConfig,
    channel: ChannelId,
    deposit: Deposit,
    nonce: B256,
    r#type: String,
    digest: B256,
    secret: Option<B256>,
    collector_data: Hex,
}

impl Vector for DepositVector {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) {
        let Self {
            deposit,
            network,
            config,
            ..
        } = self;
        assert_eq!(deposit.nonce(self.channel), self.nonce, "{}", self.name);
        assert_eq!(deposit.digest(config, network), self.digest);
        assert_eq!(deposit.collector_data(), self.collector_data);
        if let Some(secret) = self.secret {
            assert_eq!(deposit.verify(config, network), Ok(()), "{}", self.name);
            let key = EvmKey::from_bytes(&secret.0).expect("a key");
            let signature = PayerSignature::from(key.sign_hash(self.digest));
            assert_eq!(signature, deposit.signature);
        }
    }
}

pub fn deposits() -> Vec<DepositVector> {
    let key = testing::evm_key(9);
    let by_a_contract = Deposit {
        signature: PayerSignature::new(vec![0xc0; 130].into()).expect("fits"),
        ..samples::deposit()
    };
    let contract = ChannelConfig {
        payer: Address::repeat_byte(0xda),
        ..testing::channel_config()
    };
    vec![
        deposit(
            "first",
            testing::channel_config(),
            samples::deposit(),
            Some(key.secret().into()),
        ),
        deposit("by-a-contract", contract, by_a_contract, None),
    ]
}

fn deposit(
    name: &str,
    config: ChannelConfig,
    deposit: Deposit,
    secret: Option<B256>,
) -> DepositVector {
    let network = testing::network();
    let channel = config.id(&network);
    let message = ReceiveWithAuthorization {
        from: config.payer,
        to: network.collector,
        value: U256::from(deposit.amount.get()),
        validAfter: U256::from(deposit.valid_after),
        validBefore: U256::from(deposit.valid_before),
        nonce: deposit.nonce(channel),
    };
    DepositVector {
        name: name.to_owned(),
        token_domain_separator: network.token_domain().separator(),
        config,
        channel,
        nonce: message.nonce,
        r#type: ReceiveWithAuthorization::eip712_encode_type().into_owned(),
        digest: network.token_domain().hash(&message),
        secret,
        collector_data: deposit.collector_data(),
        deposit,
        network,
    }
}
