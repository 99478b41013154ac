//! Rules for `model: "auto"`: what a request is about, and the models for it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Strategy;

/// What a request is about, as its words tell or its `metadata.task` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Anything else.
    Chat,
    /// Programs.
    Code,
    /// Calculating and proving.
    Math,
    /// From one language to another.
    Translation,
    /// Less of the same.
    Summary,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chat => "chat",
            Self::Code => "code",
            Self::Math => "math",
            Self::Translation => "translation",
            Self::Summary => "summary",
        })
    }
}

/// A rule: the first whose conditions all hold says which models a request goes to. A condition
/// that is left out holds always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auto {
    /// What explanations call it; its number if it has no name.
    pub name: Option<String>,
    /// What the request is about: one of these.
    pub tasks: Vec<Task>,
    /// Its prompt has at least so many tokens, about.
    pub min_prompt: Option<u32>,
    /// Its prompt has at most so many tokens, about.
    pub max_prompt: Option<u32>,
    /// Whether it brings tools.
    pub tools: Option<bool>,
    /// Whether there are images in it.
    pub images: Option<bool>,
    /// Whether its answer must follow a JSON schema.
    pub schema: Option<bool>,
    /// The models, the best first: ids or aliases, with or without a suffix.
    pub models: Vec<String>,
    /// What matters most; `router.strategy` if left out.
    pub strategy: Option<Strategy>,
}
