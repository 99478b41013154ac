//! An answer of a model server of one's own: nothing is paid, and none is asked for more at once
//! than it has slots.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use farthing_protocol::body::{Body, quote};
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::Refusal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::market::Access;
use crate::purchase::PurchaseError;
use crate::purchase::web::ask::Unpayable;
use crate::purchase::web::{Said, Turn, WebDeal, WebPurchase, WebShop, refused};

/// After how long one whose slots are all taken is worth another try, in milliseconds.
const RETRY_AFTER: u64 = 1_000;

/// The slots of model servers of one's own.
#[derive(Debug, Default)]
pub(in crate::purchase) struct Slots(Mutex<HashMap<NodeId, Arc<Semaphore>>>);

impl Slots {
    /// A slot, if one is free.
    fn take(&self, of: NodeId, all: u32) -> Option<OwnedSemaphorePermit> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = usize::try_from(all).unwrap_or(Semaphore::MAX_PERMITS);
        let slots = known
            .entry(of)
            .or_insert_with(|| Arc::new(Semaphore::new(all.min(Semaphore::MAX_PERMITS))));
        Arc::clone(slots).try_acquire_owned().ok()
    }
}

impl WebShop {
    /// Asks a model server of one's own, and returns when the answer begins.
    ///
    /// # Errors
    /// [`PurchaseError`]; nothing is ever charged.
    pub(in crate::purchase) async fn ask_own(
        &self,
        deal: WebDeal,
        access: &Access,
    ) -> Result<WebPurchase, PurchaseError> {
        let busy = PurchaseError::Refused(Refusal::Busy {
            retry_after_ms: RETRY_AFTER,
        });
        let slot = self.slots.take(deal.offer.id, access.slots).ok_or(busy)?;
        let body = named(&deal, access)?;
        let key = access.key.clone();
        let at = (&deal.offer.base, deal.endpoint);
        let asked = self.door.ask_own(at, body, key, deal.first_by);
        match asked.await? {
            Said::Sold { body, .. } => {
                let turn = Turn::Slot(slot);
                Ok(WebPurchase::begin(deal, None, (None, body), turn))
            }
            Said::Refused(turned) => Err(refused(turned)),
            Said::Asked(_) => {
                Err(Unpayable::Terms("money, and is listed under `upstream`, not `x402`").into())
            }
        }
    }
}

/// The body with the model's name there.
fn named(deal: &WebDeal, access: &Access) -> Result<Bytes, PurchaseError> {
    let Some(name) = access
        .names
        .get(&deal.model)
        .filter(|name| **name != deal.model)
    else {
        return Ok(deal.body.clone());
    };
    let fields = Body::parse(&deal.body);
    let fields = fields.map_err(|_| PurchaseError::Protocol("a body that cannot be read"))?;
    Ok(fields.with(&[("model", &quote(name))]).into())
}
