//! [`Lines`]: streams to sellers, kept from one purchase to the next. To open one takes the tasks
//! of both connections several turns; to go on with one takes none.
//!
//! A handle over one short lock. A line is used by one purchase at a time, is given back only
//! when the seller has said that it waits for another ask, and not for long: with time a better
//! connection may have come.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use farthing_protocol::frame::{ASK_LIMIT, KEPT_OPEN};
use farthing_protocol::identity::NodeId;
use farthing_protocol::net::session::Limits;
use farthing_protocol::net::wire::{self, Hears, Speaks};
use farthing_protocol::net::{Net, OpenError, Protocol};
use farthing_protocol::offer::VerifiedOffer;
use tokio::time::{Instant, timeout};

/// The most lines kept to one seller.
const PER_SELLER: usize = 64;
/// The most lines kept in all.
const MOST: usize = 1_024;
/// How old a line gets, used or not.
const LIFETIME: Duration = Duration::from_secs(120);

/// A stream to a seller.
#[derive(Debug)]
pub(in crate::purchase) struct Line {
    pub(in crate::purchase) hears: Hears,
    pub(in crate::purchase) speaks: Speaks,
    born: Instant,
    /// A relay stands in it.
    relayed: bool,
}

/// A line that waits, and since when.
#[derive(Debug)]
struct Kept {
    line: Line,
    since: Instant,
}

impl Kept {
    /// Half of what the seller grants, so that both never differ about its end.
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < KEPT_OPEN / 2 && self.line.born.elapsed() < LIFETIME
    }
}

#[derive(Debug, Default)]
struct Idle {
    sellers: HashMap<NodeId, Vec<Kept>>,
    count: usize,
}

/// The lines to all sellers. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct Lines {
    net: Net,
    idle: Arc<Mutex<Idle>>,
}

impl Lines {
    /// None yet.
    #[must_use]
    pub fn new(net: Net) -> Self {
        Self {
            net,
            idle: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        // Every change below is whole before anything can panic.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line to this offer's seller: one that waits, or a new one within `patience`.
    pub(in crate::purchase) async fn line(
        &self,
        offer: &VerifiedOffer,
        patience: Duration,
    ) -> Result<Line, OpenError> {
        let offer = offer.offer();
        if let Some(line) = self.take(offer.seller) {
            return Ok(line);
        }
        let opening = self
            .net
            .open(offer.seller, &offer.addresses, Protocol::Purchase);
        let stream = timeout(patience, opening)
            .await
            .map_err(|_| OpenError::Deadline)??;
        let relayed = stream.is_relayed();
        let limits = Limits {
            frame: ASK_LIMIT,
            ..Limits::default()
        };
        let (hears, speaks) = wire::over(stream, limits);
        Ok(Line {
            hears,
            speaks,
            born: Instant::now(),
            relayed,
        })
    }

    /// The line that was used last, if it still waits.
    fn take(&self, seller: NodeId) -> Option<Line> {
        let mut idle = self.lock();
        let idle = &mut *idle;
        let lines = idle.sellers.get_mut(&seller)?;
        while let Some(mut kept) = lines.pop() {
            idle.count = idle.count.saturating_sub(1);
            if kept.is_fresh() && kept.line.hears.is_quiet() {
                return Some(kept.line);
            }
        }
        idle.sellers.remove(&seller);
        None
    }

    /// Keeps a line for the next purchase, if there is room.
    pub(in crate::purchase) fn keep(&self, seller: NodeId, line: Line) {
        // A circuit ends one day, and a direct connection may have come meanwhile.
        if line.relayed {
            return;
        }
        let mut idle = self.lock();
        if idle.count >= MOST {
            idle.sweep();
        }
        if idle.count >= MOST {
            return;
        }
        let lines = idle.sellers.entry(seller).or_default();
        if lines.len() < PER_SELLER {
            let since = Instant::now();
            lines.push(Kept { line, since });
            idle.count += 1;
        }
    }

    /// Ends the lines that nobody used for long. Call it now and then.
    pub fn sweep(&self) {
        self.lock().sweep();
    }
}

impl Idle {
    fn sweep(&mut self) {
        self.sellers.retain(|_, lines| {
            lines.retain(Kept::is_fresh);
            !lines.is_empty()
        });
        self.count = self.sellers.values().map(Vec::len).sum();
    }
}
