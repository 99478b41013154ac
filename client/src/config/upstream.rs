//! Model servers of one's own, which stand in the market beside the sellers and cost nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::is_private;

/// A model server of one's own, or an account with one that is paid elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its OpenAI-compatible base, such as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// What it serves: the model's id on the market → its name there.
    pub models: BTreeMap<String, String>,
    /// A file with the key it wants.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// Requests it answers at once; those beyond go to the market. None: it only counts tokens.
    #[serde(default = "slots")]
    pub slots: u32,
    /// Whether its `/tokenize` counts what sellers of the same models say that they counted.
    #[serde(default)]
    pub tokenize: bool,
    /// The longest answer it gives, in tokens.
    #[serde(default = "super::max_output")]
    pub max_output: u32,
}

const fn slots() -> u32 {
    8
}

impl Upstream {
    /// What is wrong with it, if anything: the key and the reason.
    pub(super) fn fault(&self) -> Option<(&'static str, &'static str)> {
        match self {
            _ if !is_private(&self.url) => {
                Some(("upstream.url", "must be https, or http on this machine"))
            }
            _ if self.models.is_empty() => Some(("upstream.models", "names no model")),
            _ if self.slots == 0 && !self.tokenize => Some((
                "upstream.slots",
                "must be at least 1, unless it counts tokens",
            )),
            _ => None,
        }
    }
}
