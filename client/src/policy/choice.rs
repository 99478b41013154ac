//! Which models a request asks for, and how they are to be ordered: its `model` and `models`,
//! aliases, suffixes, and the rules of `auto`, which also choose for a request that names none.
//! Pure.

use bytes::Bytes;
use farthing_protocol::body::{Body, quote};
use farthing_protocol::offer::MAX_TEXT;
use farthing_protocol::purchase::Endpoint;

use crate::config::{Config, Strategy};
use crate::policy::auto::{self, Facts};
use crate::policy::needs::Needs;
use crate::policy::preferences::{MaxPrice, Preferences, Sort};
use crate::policy::{BYTES_PER_TOKEN, Refused};

/// The most models one request may name.
const MODELS: usize = 8;
/// Names that leave the model to the rules.
const AUTO: [&str; 2] = ["auto", "openrouter/auto"];
/// Suffixes of a model's name, and the order of sellers that each asks for.
const SUFFIXES: [(&str, Sort); 3] = [
    (":nitro", Sort::Throughput),
    (":floor", Sort::Price),
    (":exacto", Sort::Quality),
];
/// Fields that are for the router and not for a seller.
const OURS: [&str; 3] = ["provider", "models", "session_id"];

/// What a request asks for, beside its content.
pub(super) struct Asked {
    /// At least one.
    pub(super) models: Vec<String>,
    pub(super) rule: Option<String>,
    pub(super) strategy: Strategy,
    pub(super) needs: Needs,
    pub(super) preferences: Preferences,
    pub(super) max_price: MaxPrice,
    /// The `model` field as it came.
    named: Option<String>,
}

impl Asked {
    pub(super) fn of(
        body: &Body<'_>,
        endpoint: Endpoint,
        config: &Config,
        bytes: usize,
    ) -> Result<Self, Refused> {
        let decimals = config.chain.token_decimals;
        let (preferences, max_price) = Preferences::of(body, &config.router, decimals)?;
        let named = body.get::<String>("model")?;
        let others = body.get::<Vec<String>>("models")?.unwrap_or_default();
        let mut asked = Self {
            models: Vec::new(),
            rule: None,
            strategy: config.router.strategy,
            needs: Needs::of(body),
            preferences,
            max_price,
            named,
        };
        let mut names: Vec<_> = asked.named.iter().cloned().chain(others).collect();
        names.dedup();
        if names.len() > MODELS {
            return Err(Refused::TooManyModels(MODELS));
        }
        for name in &names {
            if name.is_empty() || name.len() > MAX_TEXT {
                return Err(Refused::ModelName);
            }
            if AUTO.contains(&name.as_str()) && !config.aliases.contains_key(name) {
                asked.by_rule(body, endpoint, config, bytes)?;
            } else {
                asked.add(name, config);
            }
        }
        if names.is_empty() && !config.auto.is_empty() {
            asked.by_rule(body, endpoint, config, bytes)?;
        }
        match asked.models.is_empty() {
            true => Err(Refused::Missing("model")),
            false => Ok(asked),
        }
    }

    /// Adds a model by its name: an alias, or an id with or without a suffix.
    fn add(&mut self, name: &str, config: &Config) {
        let mut id = name;
        let suffix = SUFFIXES.iter().find(|(suffix, _)| name.ends_with(suffix));
        if let Some((suffix, sort)) = suffix
            && !config.aliases.contains_key(name)
        {
            id = name.strip_suffix(suffix).unwrap_or(name);
            self.preferences.sort = self.preferences.sort.or(Some(*sort));
        }
        let id = config.aliases.get(id).map_or(id, String::as_str);
        if !id.is_empty() && !self.models.iter().any(|known| known == id) {
            self.models.push(id.to_owned());
        }
    }

    fn by_rule(
        &mut self,
        body: &Body<'_>,
        endpoint: Endpoint,
        config: &Config,
        bytes: usize,
    ) -> Result<(), Refused> {
        let prompt = u32::try_from(bytes as u64 / BYTES_PER_TOKEN).unwrap_or(u32::MAX);
        let facts = Facts {
            task: auto::task(body, endpoint)?,
            prompt,
            needs: self.needs,
        };
        let task = facts.task;
        let (place, rule) =
            auto::choose(&config.auto, &facts).ok_or(Refused::NoRule { task, prompt })?;
        let name = rule
            .name
            .clone()
            .unwrap_or_else(|| format!("{}", place + 1));
        self.rule = Some(format!("{name} ({task}, about {prompt} tokens)"));
        self.strategy = rule.strategy.unwrap_or(self.strategy);
        for model in &rule.models {
            self.add(model, config);
        }
        Ok(())
    }

    /// The body to send: as it came, if nothing in it must change.
    pub(super) fn send(&self, fields: &Body<'_>, body: &Bytes) -> Bytes {
        let model = &self.models[0];
        let same = self.named.as_ref() == Some(model);
        if same && OURS.iter().all(|field| fields.raw(field).is_none()) {
            return body.clone();
        }
        Bytes::from(fields.rewritten(&[("model", &quote(model))], &OURS))
    }
}
