//! What is on sale: the configured models that the model server has, each with its name there.

use std::sync::{Arc, Mutex, PoisonError};

use farthing_protocol::offer::ModelOffer;

use crate::config::ModelConfig;
use crate::upstream::Upstream;

/// One model on sale.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    offer: ModelOffer,
    upstream_name: String,
}

/// A handle to the catalog; clones share it.
#[derive(Debug, Clone)]
pub struct Catalog {
    models: Arc<Vec<ModelConfig>>,
    items: Arc<Mutex<Arc<Vec<Item>>>>,
}

impl Catalog {
    /// An empty catalog of these models, until [`Catalog::refresh`] has found them.
    #[must_use]
    pub fn new(models: Vec<ModelConfig>) -> Self {
        Self {
            models: Arc::new(models),
            items: Arc::default(),
        }
    }

    fn items(&self) -> Arc<Vec<Item>> {
        Arc::clone(&self.items.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the model server what it has. On a failure the catalog stays as it is.
    pub async fn refresh(&self, upstream: &Upstream) {
        let found = match upstream.discover().await {
            Ok(found) => found,
            Err(error) => {
                return tracing::warn!(%error, "the model server does not list its models");
            }
        };
        let item = |model: &ModelConfig| {
            let name = model.at_upstream(&found);
            if name.is_none() {
                tracing::warn!(
                    model = model.id,
                    ?found,
                    "the model server does not have a model on sale; set upstream_name"
                );
            }
            let upstream_name = name?.to_owned();
            Some(Item {
                offer: model.offer(),
                upstream_name,
            })
        };
        let items: Vec<_> = self.models.iter().filter_map(item).collect();
        *self.items.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(items);
    }

    /// The models as the offer states them.
    #[must_use]
    pub fn offers(&self) -> Vec<ModelOffer> {
        self.items().iter().map(|item| item.offer.clone()).collect()
    }

    /// A model's name at the model server.
    #[must_use]
    pub fn upstream_name(&self, model: &str) -> Option<String> {
        let items = self.items();
        let item = items.iter().find(|item| item.offer.id == model)?;
        Some(item.upstream_name.clone())
    }
}
