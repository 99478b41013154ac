//! What is asked of every node at once: whether one knows a transaction to be mined, whether one
//! takes it.
//!
//! One that says yes is enough. A node that rests is only glanced at, so one that swallows its
//! questions costs a whole deadline once and not each time.

use std::future::Future;

use alloy::primitives::{B256, Bytes};
use alloy::providers::RootProvider;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, timeout};

use crate::chain::error::ChainError;
use crate::chain::rpc::{Fault, GLANCE, Rpc, hand_in, outcome_of};
use crate::chain::words::{Outcome, Told};

impl Rpc {
    /// As [`super::super::door::Door::spread`]. When one has taken it the others that do not rest
    /// have a moment more: what only one node knows is forgotten with it.
    pub(in crate::chain) async fn spread(&self, raw: &Bytes) -> Told {
        let question = |node| hand_in(node, raw.clone());
        let places = 0..self.0.endpoints.len();
        let mut open: Vec<_> = places.clone().filter(|place| !self.rests(*place)).collect();
        let mut all: FuturesUnordered<_> = places
            .map(|place| self.ask_place(place, &question))
            .collect();
        let mut word = Err(ChainError::Unavailable("no node answers".into()));
        let mut by_all = true;
        while let Some((place, told)) = all.next().await {
            open.retain(|other| *other != place);
            match told {
                Ok(()) => {
                    word = Ok(());
                    break;
                }
                Err(error) => {
                    by_all &= !error.is_unavailable();
                    if word
                        .as_ref()
                        .is_err_and(|known| says(known) <= says(&error))
                    {
                        word = Err(error);
                    }
                }
            }
        }
        if word.is_ok() {
            by_all = false;
            let rest = async {
                while !open.is_empty()
                    && let Some((place, _)) = all.next().await
                {
                    open.retain(|other| *other != place);
                }
            };
            // Whoever is not done in time rests.
            if timeout(GLANCE.min(self.0.config.timeout), rest)
                .await
                .is_err()
            {
                open.iter().for_each(|place| self.fell_silent(*place));
            }
        }
        let word = self.or_mined(raw, word).await;
        Told { word, by_all }
    }

    /// As [`super::super::door::Door::outcome_anywhere`].
    pub(in crate::chain) async fn outcome_anywhere(
        &self,
        hash: B256,
    ) -> Result<Option<Outcome>, ChainError> {
        let question = |node| outcome_of(node, hash);
        let places = 0..self.0.endpoints.len();
        let mut all: FuturesUnordered<_> = places
            .map(|place| self.ask_place(place, &question))
            .collect();
        let mut known = Err(ChainError::Unavailable("no node configured".into()));
        while let Some((_, told)) = all.next().await {
            match told {
                Ok(Some(outcome)) => return Ok(Some(outcome)),
                Ok(None) => known = Ok(None),
                Err(error) if known.is_err() => known = Err(error),
                Err(_) => {}
            }
        }
        known
    }

    /// Asks one node, for a moment only if it rests.
    async fn ask_place<T, F, A>(&self, place: usize, question: &F) -> (usize, Result<T, ChainError>)
    where
        F: Fn(RootProvider) -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        let Some(endpoint) = self.0.endpoints.get(place) else {
            let nobody = ChainError::Unavailable("no node configured".into());
            return (place, Err(nobody));
        };
        let mut limit = self.0.config.timeout;
        // When all rest, all are asked all the same.
        if self.rests(place) && (0..self.0.endpoints.len()).any(|other| !self.rests(other)) {
            limit = limit.min(GLANCE);
        }
        let told = timeout(limit, self.ask_one(endpoint, question)).await;
        let told = told.unwrap_or_else(|_| {
            let why = format!("{} took over {limit:?}", endpoint.host());
            Err(ChainError::Unavailable(why))
        });
        if matches!(told, Err(ChainError::Unavailable(_))) {
            self.fell_silent(place);
        }
        (place, told)
    }

    fn rests(&self, place: usize) -> bool {
        let until = self
            .0
            .endpoints
            .get(place)
            .and_then(|node| node.rests_until());
        until.is_some_and(|until| until > Instant::now())
    }

    /// It rests; one that rests already does so no longer for many questions asked at once.
    fn fell_silent(&self, place: usize) {
        if !self.rests(place)
            && let Some(endpoint) = self.0.endpoints.get(place)
        {
            endpoint.failed(Instant::now());
        }
    }
}

/// How much a node's word says of a transaction: more than the silence of another, and that one
/// finds it too cheap more than that another does not want it at all.
const fn says(word: &ChainError) -> u8 {
    match word {
        ChainError::Unavailable(_) | ChainError::WrongChain { .. } => 0,
        ChainError::Underpriced => 2,
        ChainError::NonceUsed => 3,
        _ => 1,
    }
}
