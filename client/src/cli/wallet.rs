//! `farthing wallet …`: a person's part in paying.

use alloy::primitives::{B256, Bytes};
use clap::{Args, Subcommand};
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::x402::PayerSignature;

use crate::cli::remote::{Remote, RemoteError};
use crate::cli::render::View;
use crate::report::{DepositWish, Permit2Wish, Word};

/// What a person may do for the wallet.
#[derive(Debug, Subcommand)]
pub enum WalletCommand {
    /// Deposits for a payer whose key is elsewhere: prints what to sign, takes the signature back
    Deposit(DepositCommand),
    /// Lets Permit2 move the payer's tokens, for sellers that take `upto` only: a transaction of
    /// the payer's, who needs gas. Each payment is still signed within the limits
    Permit2 {
        /// Atoms; 0 takes it back [default: `spend.per_day`]
        amount: Option<Amount>,
    },
    /// Lists the purchases that want a yes
    Approvals,
    /// Says yes to one purchase, once
    Approve {
        /// Its id, or eight or more of its first digits
        purchase: String,
    },
    /// Says no to a purchase
    Deny {
        /// Its id, or eight or more of its first digits
        purchase: String,
    },
}

/// Either half of a deposit that is signed elsewhere.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("half").required(true))]
pub struct DepositCommand {
    /// Prints the EIP-712 typed data that the payer must sign
    #[arg(long, group = "half", requires = "seller")]
    prepare: bool,
    /// Takes the payer's signature of what was prepared
    #[arg(long, group = "half", requires = "signature", value_name = "ID")]
    import: Option<B256>,
    /// Whose channel it is for
    #[arg(long, value_name = "NODE")]
    seller: Option<NodeId>,
    /// Atoms [default: `spend.deposit`]
    #[arg(long)]
    amount: Option<Amount>,
    /// Hours there are to sign it and have it mined
    #[arg(long, default_value_t = 24)]
    hours: u64,
    /// The signature: 65 bytes of a key, or whatever a contract takes, as 0x and hex
    #[arg(long, value_parser = signature)]
    signature: Option<PayerSignature>,
}

impl WalletCommand {
    pub(in crate::cli) async fn run(
        self,
        remote: &Remote,
        view: &View,
    ) -> Result<String, RemoteError> {
        Ok(match self {
            Self::Deposit(command) => command.run(remote, view).await?,
            Self::Permit2 { amount } => {
                view.permit2(&remote.allow_permit2(Permit2Wish { amount }).await?)
            }
            Self::Approvals => view.approvals(&remote.approvals().await?),
            Self::Approve { purchase } => {
                view.approvals(&[remote.approve(&purchase, Word::Granted).await?])
            }
            Self::Deny { purchase } => {
                view.approvals(&[remote.approve(&purchase, Word::Denied).await?])
            }
        })
    }
}

impl DepositCommand {
    async fn run(self, remote: &Remote, view: &View) -> Result<String, RemoteError> {
        if let (Some(id), Some(signature)) = (self.import, self.signature) {
            return Ok(view.action(&remote.import(id, &signature).await?));
        }
        let Some(seller) = self.seller else {
            let text = "`--prepare` needs `--seller`".to_owned();
            return Err(RemoteError::Refused(text));
        };
        let wish = DepositWish {
            seller,
            amount: self.amount,
            valid: self.hours.saturating_mul(3600),
        };
        Ok(view.draft(&remote.prepare(wish).await?))
    }
}

fn signature(text: &str) -> Result<PayerSignature, String> {
    let bytes: Bytes = text
        .parse()
        .map_err(|_| "not hex: write it as 0x…".to_owned())?;
    PayerSignature::new(bytes).map_err(|e| e.to_string())
}
