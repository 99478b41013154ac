//! The model server: where it is and how long it may take.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The model server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Base URL of an OpenAI-compatible API, ending in `/v1`.
    pub base_url: String,
    /// A file whose first line is the API key, if it needs one.
    pub api_key_file: Option<PathBuf>,
    /// The longest until a connection stands.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// The longest from the request to a stream's first event.
    #[serde(with = "humantime_serde")]
    pub first_token_timeout: Duration,
    /// The longest between two events of a stream.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// The longest for one answer in all.
    #[serde(with = "humantime_serde")]
    pub total_timeout: Duration,
    /// How often the server is asked whether it is well.
    #[serde(with = "humantime_serde")]
    pub health_interval: Duration,
    /// A command that is the server: started, watched and restarted by the node.
    pub command: Option<CommandConfig>,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            base_url: "http://127.0.0.1:8080/v1".into(),
            api_key_file: None,
            connect_timeout: Duration::from_secs(5),
            first_token_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(60),
            total_timeout: Duration::from_secs(600),
            health_interval: Duration::from_secs(10),
            command: None,
        }
    }
}

/// A model server the node starts itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Variables added to its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The longest from its start until it answers; loading a model takes time.
    #[serde(default = "ready_timeout", with = "humantime_serde")]
    pub ready_timeout: Duration,
}

const fn ready_timeout() -> Duration {
    Duration::from_secs(300)
}
