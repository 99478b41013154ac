//! The oracle: it knows what becomes of a request at every seller, and takes the best.
//!
//! Two of them. One sees the future, dice and outages included; nobody can do better for one
//! request, given what the sellers do at that moment. The other knows every seller's true nature
//! and what it does at present, but not the dice: what a buyer could know at the very best.

use crate::sim::seller::{How, Seller, Work};
use crate::sim::shop::{Door, Shop};
use crate::sim::workload::Request;
use crate::sim::world::{World, cost};

/// What an oracle knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Everything, dice and the future included.
    Future,
    /// Natures and loads.
    Present,
}

/// The objective that everything is measured by, and that the client's default strategy
/// (`balanced`) seeks: what was paid and the root of the time to the end of the answer, each as a
/// multiple of a middling honest seller's. Less is better.
#[must_use]
pub fn objective(world: &World, request: &Request, paid: f64, millis: f64) -> f64 {
    let yardstick = &world.yardstick;
    paid / yardstick.cost(request) * (millis / yardstick.millis(request)).sqrt()
}

/// Whom an oracle takes, the best first; at most `most`.
#[must_use]
pub fn choose(
    sight: Sight,
    world: &World,
    shops: &[Shop],
    request: &Request,
    most: usize,
) -> Vec<usize> {
    let scene = Scene {
        world,
        request,
        sight,
    };
    let mut best: Vec<(f64, usize)> = Vec::with_capacity(most + 1);
    for (place, seller) in world.sellers.iter().enumerate() {
        let least = scene.least(seller);
        if best.len() == most && best[most - 1].0 <= least {
            continue;
        }
        let Some(value) = scene.value(place, seller, &shops[place]) else {
            continue;
        };
        let rank = best.partition_point(|(known, _)| *known <= value);
        if rank < most {
            best.insert(rank, (value, place));
            best.truncate(most);
        }
    }
    best.into_iter().map(|(_, place)| place).collect()
}

struct Scene<'a> {
    world: &'a World,
    request: &'a Request,
    sight: Sight,
}

impl Scene<'_> {
    fn paid(&self, seller: &Seller) -> f64 {
        let Request { prompt, output, .. } = *self.request;
        let prices = seller.prices_at(self.request.at);
        cost(prompt, output, &prices) * seller.surcharge()
    }

    /// No chance and no load make it better than this.
    fn least(&self, seller: &Seller) -> f64 {
        let Request { prompt, output, .. } = *self.request;
        let (first, per_token) = seller.nature(prompt, output);
        let millis = first + per_token * f64::from(output.saturating_sub(1));
        objective(self.world, self.request, self.paid(seller), millis)
    }

    /// What choosing this seller leads to; none if it does not lead to an answer.
    fn value(&self, place: usize, seller: &Seller, shop: &Shop) -> Option<f64> {
        let request = self.request;
        if !matches!(shop.door(seller, request.at), Door::Free | Door::Queue) {
            return None;
        }
        let (begins, beside) = shop.forecast(seller, request.at);
        if self.sight == Sight::Present {
            let chance = seller.reliability();
            let waits = (begins - request.at) as f64 / 1000.0;
            let crowd = seller.crowd(beside);
            let (first, per_token) = seller.nature(request.prompt, request.output);
            let millis =
                waits + first + per_token * crowd * f64::from(request.output.saturating_sub(1));
            let value = objective(self.world, request, self.paid(seller), millis);
            return (chance > 0.0).then(|| value / (chance * chance));
        }
        let work = Work {
            seed: self.world.seed,
            request,
            place: place as u64,
            prompt: request.prompt,
            tokens: request.output,
        };
        let fate = seller.fate(&work, begins, beside);
        let millis = fate.end.saturating_sub(request.at) as f64 / 1000.0;
        (fate.how == How::Done).then(|| objective(self.world, request, self.paid(seller), millis))
    }
}
