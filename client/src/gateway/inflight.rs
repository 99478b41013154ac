//! Requests under way that have a name: a library that tries again while the first is still being
//! answered does not buy twice.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::{B256, keccak256};
use axum::http::HeaderMap;
use farthing_protocol::purchase::Endpoint;

use crate::gateway::error::Problem;

/// The header by which a request is the same as one before.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The names under way; as many as there are requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Mutex<HashSet<B256>>>);

/// One request's place, until it is answered.
#[derive(Debug)]
pub(crate) struct Place {
    all: InFlight,
    name: B256,
}

impl InFlight {
    fn names(&self) -> MutexGuard<'_, HashSet<B256>> {
        // A set is whole between any two lines.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for this request, if it has a name. Another body under the same name is another
    /// request.
    ///
    /// # Errors
    /// [`Problem::InFlight`] while the same is under way.
    pub(crate) fn enter(
        &self,
        headers: &HeaderMap,
        endpoint: Endpoint,
        body: &[u8],
    ) -> Result<Option<Place>, Problem> {
        let Some(key) = headers.get(IDEMPOTENCY_KEY) else {
            return Ok(None);
        };
        let parts = [key.as_bytes(), endpoint.path().as_bytes(), body];
        let name = keccak256(parts.map(|part| keccak256(part).0).concat());
        if !self.names().insert(name) {
            return Err(Problem::InFlight);
        }
        Ok(Some(Place {
            all: self.clone(),
            name,
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.names().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_request_waits_and_another_does_not() {
        let all = InFlight::default();
        let mut named = HeaderMap::new();
        named.insert(IDEMPOTENCY_KEY, "a".parse().expect("a value"));
        let first = all.enter(&named, Endpoint::Chat, b"{}").expect("enters");
        let again = all.enter(&named, Endpoint::Chat, b"{}");
        assert!(matches!(again, Err(Problem::InFlight)), "{again:?}");
        for (endpoint, body) in [(Endpoint::Chat, b"[]"), (Endpoint::Completions, b"{}")] {
            assert!(all.enter(&named, endpoint, body).is_ok());
        }
        let unnamed = HeaderMap::new();
        for _ in 0..2 {
            assert!(matches!(
                all.enter(&unnamed, Endpoint::Chat, b"{}"),
                Ok(None)
            ));
        }
        drop(first);
        assert!(all.enter(&named, Endpoint::Chat, b"{}").is_ok());
    }
}
