//! What an agent may spend that buys through `farthing mcp`.

use farthing_protocol::amount::Amount;
use serde::{Deserialize, Serialize};

/// The limits of one agent's session. They stand below those of [`super::Spend`], which hold for
/// everything that the wallet pays. Amounts are in atoms of the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mcp {
    /// The most one call may cost.
    pub per_call: Amount,
    /// The most all calls may cost, from the start of the program to its end.
    pub per_session: Amount,
}

impl Default for Mcp {
    fn default() -> Self {
        Self {
            per_call: Amount::atoms(20_000),
            per_session: Amount::atoms(200_000),
        }
    }
}
