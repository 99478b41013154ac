//! A model server that is not one: an OpenAI-compatible upstream as a value.
//!
//! It answers `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` and
//! `/v1/moderations` with deterministic words at a chosen pace, calls the tools that a prompt names
//! and keeps to a JSON schema where a request asks for one, and fails in named ways when told to.
//! It is the twin of a real llama.cpp in tests and the upstream of the benches, so it is quick:
//! every chunk is prepared when the behaviour is set, and a request only strings prepared chunks
//! together.
//!
//! Tests never sleep for it: [`MockUpstream::started`], [`MockUpstream::finished`] and
//! [`MockUpstream::disconnected`] wait for the event itself.
//!
//! ```
//! # async fn doc() -> std::io::Result<()> {
//! use farthing_tests::upstream::{Behaviour, Fault, MockUpstream};
//!
//! let upstream = MockUpstream::start(Behaviour::default().tokens(32)).await?;
//! upstream.fail(2, Fault::CutAfter(5)); // the second request breaks after five chunks
//! println!("{}/chat/completions", upstream.base_url());
//! # Ok(())
//! # }
//! ```
//!
//! It ends, with every connection, when the value is dropped.

mod behaviour;
mod bodies;
mod skills;
mod plan;
mod record;
mod socket;
mod http;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use behaviour::{Behaviour, Fault, Prefix, StreamUsage};
pub use bodies::{CHARS_PER_PROMPT_TOKEN, prompt_tokens};
pub use plan::nanos;
pub use record::{Endpoint, Request, Stage};

use bodies::Bodies;
use record::Record;
use socket::Door;

/// A running mock upstream on loopback. Dropping it closes every connection at once.
#[derive(Debug)]
pub struct MockUpstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

/// What the handlers and the value outside share.
#[derive(Debug)]
struct Shared {
    manner: Mutex<Arc<Manner>>,
    record: Record,
    /// How often tokens were counted.
    counts: AtomicU64,
}

/// A behaviour with everything that can be prepared from it.
#[derive(Debug)]
struct Manner {
    behaviour: Behaviour,
    bodies: Bodies,
}

impl Shared {
    fn manner(&self) -> Arc<Manner> {
        self.manner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl MockUpstream {
    /// Start on a free loopback port.
    pub async fn start(behaviour: Behaviour) -> io::Result<Self> {
        Self::start_on(0, behaviour).await
    }

    /// Start on the given loopback port; 0 picks a free one.
    pub async fn start_on(port: u16, behaviour: Behaviour) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let record = Record::new(behaviour.remember);
        let manner = Mutex::new(Arc::new(Manner::new(behaviour)));
        let counts = AtomicU64::default();
        let shared = Arc::new(Shared {
            manner,
            record,
            counts,
        });
        let door = Door::new(listener, stop.clone());
        tokio::spawn(
            stop.clone()
                .run_until_cancelled_owned(http::serve(door, shared.clone())),
        );
        Ok(Self {
            address,
            shared,
            stop,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL to configure as an upstream, ending in `/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Behave differently from the next request on. Requests already running are not touched,
    /// and what was recorded and scripted stays.
    pub fn behave(&self, behaviour: Behaviour) {
        let manner = Arc::new(Manner::new(behaviour));
        *self
            .shared
            .manner
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Let the request with this number (counted from 1) fail in this way, whatever else is set.
    pub fn fail(&self, number: u64, fault: Fault) {
        self.shared.record.script(number, fault);
    }

    /// Every numbered request so far, in order of arrival. Listing the models is not numbered.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.record.requests()
    }

    /// How many numbered requests have arrived.
    pub fn count(&self) -> u64 {
        self.shared.record.count()
    }

    /// How often the list of models was asked for.
    pub fn model_lists(&self) -> u64 {
        self.shared.record.model_lists()
    }

    /// How often it has counted tokens.
    pub fn counts(&self) -> u64 {
        self.shared.counts.load(Ordering::Acquire)
    }

    /// Wait until request `number` has arrived, and return it.
    pub async fn started(&self, number: u64) -> Request {
        self.shared.record.until(number, |_| true).await
    }

    /// Wait until request `number` has been answered as far as the upstream meant to.
    pub async fn finished(&self, number: u64) -> Request {
        self.shared
            .record
            .until(number, |request| request.stage == Stage::Finished)
            .await
    }

    /// Wait until the client of request `number` has gone before its answer was complete.
    pub async fn disconnected(&self, number: u64) -> Request {
        self.shared
            .record
            .until(number, |request| request.stage == Stage::Disconnected)
            .await
    }

    /// Wait until request `number` has been sent at least `chunks` chunks of content.
    pub async fn sent(&self, number: u64, chunks: u64) -> Request {
        self.shared
            .record
            .until(number, |request| request.chunks >= chunks)
            .await
    }
}

impl Manner {
    fn new(behaviour: Behaviour) -> Self {
        let bodies = Bodies::prepare(&behaviour);
        Self { behaviour, bodies }
    }
}

impl Drop for MockUpstream {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
