//! What the upstream has seen, and the means to wait for more of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::Shared;
use super::behaviour::Fault;

/// Which of its doors a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/moderations`
    Moderations,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has arrived.
    Started,
    /// The answer has been handed over as far as the upstream meant to, faults included.
    Finished,
    /// The client went away first.
    Disconnected,
}

/// One request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its number, counted from 1 in order of arrival.
    pub number: u64,
    /// The door it came through.
    pub endpoint: Endpoint,
    /// The body, byte for byte.
    pub body: Bytes,
    /// The `Authorization` header, if there was one.
    pub authorization: Option<String>,
    /// Chunks of content sent so far.
    pub chunks: u64,
    /// How far it has come.
    pub stage: Stage,
}

/// The memory of an upstream.
#[derive(Debug)]
pub(super) struct Record {
    remember: bool,
    count: AtomicU64,
    model_lists: AtomicU64,
    failed_once: AtomicBool,
    scripted: AtomicBool,
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    requests: Vec<Request>,
    script: HashMap<u64, Fault>,
}

impl Record {
    pub(super) fn new(remember: bool) -> Self {
        Self {
            remember,
            count: AtomicU64::new(0),
            model_lists: AtomicU64::new(0),
            failed_once: AtomicBool::new(false),
            scripted: AtomicBool::new(false),
            inner: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves no half-made record, so poison means nothing here.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn script(&self, number: u64, fault: Fault) {
        self.inner().script.insert(number, fault);
        self.scripted.store(true, Ordering::Release);
    }

    /// The fault to commit in this request: the scripted one, else the general one.
    pub(super) fn fault(&self, number: u64, general: Option<&Fault>) -> Option<Fault> {
        if self.scripted.load(Ordering::Acquire)
            && let Some(fault) = self.inner().script.remove(&number)
        {
            return Some(fault);
        }
        match general? {
            Fault::ServerErrorOnce if self.failed_once.swap(true, Ordering::AcqRel) => None,
            fault => Some(fault.clone()),
        }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.inner().requests.clone()
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn model_lists(&self) -> u64 {
        self.model_lists.load(Ordering::Acquire)
    }

    pub(super) fn models_listed(&self) {
        self.model_lists.fetch_add(1, Ordering::AcqRel);
    }

    /// Number and note a new request.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        endpoint: Endpoint,
        body: Bytes,
        authorization: Option<String>,
    ) -> Visit {
        let record = &shared.record;
        let number = if record.remember {
            // Numbered under the lock, so that request n is always at index n - 1.
            let mut inner = record.inner();
            let number = record.count.fetch_add(1, Ordering::AcqRel) + 1;
            let (chunks, stage) = (0, Stage::Started);
            inner.requests.push(Request {
                number,
                endpoint,
                body,
                authorization,
                chunks,
                stage,
            });
            number
        } else {
            record.count.fetch_add(1, Ordering::AcqRel) + 1
        };
        record.announce();
        Visit {
            shared: shared.clone(),
            number,
            over: false,
        }
    }

    fn update(&self, number: u64, change: impl FnOnce(&mut Request)) {
        if !self.remember {
            return;
        }
        let index = usize::try_from(number - 1).unwrap_or(usize::MAX);
        if let Some(request) = self.inner().requests.get_mut(index) {
            change(request);
        }
        self.announce();
    }

    fn announce(&self) {
        if self.remember {
            self.changed.send_replace(());
        }
    }

    /// Wait until request `number` exists and satisfies `reached`.
    pub(super) async fn until(&self, number: u64, reached: impl Fn(&Request) -> bool) -> Request {
        let mut changes = self.changed.subscribe();
        loop {
            let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
            let found = self
                .inner()
                .requests
                .get(index)
                .filter(|request| reached(request))
                .cloned();
            if let Some(request) = found {
                return request;
            }
            // The sender lives in `self`, so this cannot fail.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The presence of a client. Dropped before it is over, the client has gone.
#[derive(Debug)]
pub(super) struct Visit {
    shared: Arc<Shared>,
    /// The request's number.
    pub(super) number: u64,
    over: bool,
}

impl Visit {
    /// One more chunk of content is on its way.
    pub(super) fn sent_chunk(&self) {
        self.shared
            .record
            .update(self.number, |request| request.chunks += 1);
    }

    /// The upstream has done all it meant to do.
    pub(super) fn finish(&mut self) {
        self.over = true;
        self.shared
            .record
            .update(self.number, |request| request.stage = Stage::Finished);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if !self.over {
            self.shared
                .record
                .update(self.number, |request| request.stage = Stage::Disconnected);
        }
    }
}
