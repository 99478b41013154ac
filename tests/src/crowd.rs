//! `make crowd`: what discovery costs each peer as sellers grow in number, and how soon a
//! newcomer has bought. Swarms are the production ones ([`Net`](farthing_protocol::net::Net)) under
//! a sky in one process, their offers signed and checked as everywhere.

mod newcomer;
mod swarms;

use std::fmt;
use std::io;
use std::time::Duration;

use farthing_protocol::net::StartError;

use crate::bench::figures::Sample;
use crate::bench::machine::Machine;
use crate::crowd::swarms::Waits;
use crate::section::Section;
use crate::street::StreetError;

/// Where the figures stand.
pub const SECTION: Section = Section { name: "crowd" };
/// How often a seller publishes its offer anew although nothing changed.
const REFRESH: f64 = 300.0;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum CrowdError {
    /// A swarm.
    #[error(transparent)]
    Net(#[from] StartError),
    /// A node, a client or the chain.
    #[error(transparent)]
    Street(#[from] StreetError),
    /// The machine's own figures.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Something that must happen did not.
    #[error("{0}")]
    Failed(String),
}

/// What one size of crowd costs.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Peers in one process.
    pub peers: usize,
    /// Connections of each.
    pub connections: f64,
    /// Offers published.
    pub offers: usize,
    /// Bytes of an offer.
    pub offer: usize,
    /// Bytes a peer sends in a second when nothing is published.
    pub idle: f64,
    /// Bytes a peer sends for each offer, over those.
    pub bytes: f64,
    /// Processor time a peer takes for each offer, over that of doing nothing.
    pub cpu: Duration,
    /// Processor time a peer takes in a second when nothing is published.
    pub idle_cpu: Duration,
    /// The share of peers an offer reaches, 0 to 1.
    pub reached: f64,
    /// From publishing to being heard.
    pub half: Duration,
    /// The same for 99 of 100.
    pub most: Duration,
    /// Peers that were looked for by name alone.
    pub sought: usize,
    /// Of these, found.
    pub found: usize,
    /// How long that took, to the stream.
    pub search: Duration,
}

/// How soon newcomers have bought.
#[derive(Debug, Clone)]
pub struct Newcomers {
    /// What lies between them and the sellers.
    pub place: &'static str,
    /// Offers in the books they read.
    pub offers: usize,
    /// From starting the client to the whole first answer, its deposit included.
    pub bought: Sample,
}

/// All of it.
#[derive(Debug)]
pub struct Report {
    machine: Machine,
    costs: Vec<Cost>,
    newcomers: Vec<Newcomers>,
}

/// Measures crowds of these sizes, in which nothing is published for `quiet`, and so many newcomers
/// in each place. `progress` is told what is done next: a thousand peers take minutes.
///
/// # Errors
/// [`CrowdError`].
pub async fn measure(
    sizes: &[usize],
    quiet: Duration,
    newcomers: u8,
    progress: impl Fn(&str),
) -> Result<Report, CrowdError> {
    let machine = Machine::look();
    let mut arrived = Vec::new();
    for place in newcomer::PLACES {
        progress(&format!("{newcomers} newcomers, {}", place.name));
        arrived.push(newcomer::arrive(place, newcomers).await?);
    }
    let mut costs = Vec::new();
    for (nth, peers) in sizes.iter().enumerate() {
        costs.push(swarms::measure(nth, *peers, Waits::of(*peers, quiet), &progress).await?);
    }
    Ok(Report {
        machine,
        costs,
        newcomers: arrived,
    })
}

impl Cost {
    /// Bytes sent in a second and the share of a core, with so many sellers.
    fn at(&self, sellers: f64) -> (f64, f64) {
        let rate = sellers / REFRESH;
        let bytes = self.idle + rate * self.bytes;
        let core = self.idle_cpu.as_secs_f64() + rate * self.cpu.as_secs_f64();
        (bytes, core)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            cores,
            processor,
            load,
            ..
        } = &self.machine;
        writeln!(f, "On {processor}, {cores} cores, load before {load}.\n")?;
        writeln!(
            f,
            "| peers | connections of each | offers | reached | heard p50 | p99 | idle, sent by \
             each | per offer, sent by each | processor per offer and peer | idle | \
             found by name alone, p50 |\n|---|---|---|---|---|---|---|---|---|---|---|"
        )?;
        for cost in &self.costs {
            writeln!(
                f,
                "| {} | {:.1} | {} of {} bytes | {:.1} % | {:.0} ms | {:.0} ms | {:.0} B/s | {:.0} B \
                 | {} us | {:.2} % of a core | {} of {}, {:.0} ms |",
                cost.peers,
                cost.connections,
                cost.offers,
                cost.offer,
                cost.reached * 100.0,
                cost.half.as_secs_f64() * 1e3,
                cost.most.as_secs_f64() * 1e3,
                cost.idle,
                cost.bytes,
                cost.cpu.as_micros(),
                cost.idle_cpu.as_secs_f64() * 100.0,
                cost.found,
                cost.sought,
                cost.search.as_secs_f64() * 1e3,
            )?;
        }
        if let Some(last) = self.costs.last() {
            extrapolate(f, last)?;
        }
        writeln!(
            f,
            "\n| a newcomer | offers in the books | trials | first purchase p50 | p90 | slowest |\n|---|---|---|---|---|---|"
        )?;
        for newcomers in &self.newcomers {
            let milliseconds = |percent| newcomers.bought.percentile(percent).as_millis();
            writeln!(
                f,
                "| {} | {} | {} | {} ms | {} ms | {} ms |",
                newcomers.place,
                newcomers.offers,
                newcomers.bought.len(),
                milliseconds(50),
                milliseconds(90),
                milliseconds(100),
            )?;
        }
        Ok(())
    }
}

/// What each peer sends (and as much comes in) and takes of a core: `idle + sellers / 300 s × per
/// offer`, for what was measured in the largest crowd.
fn extrapolate(f: &mut fmt::Formatter<'_>, cost: &Cost) -> fmt::Result {
    writeln!(
        f,
        "\n| sellers | offers a second | each peer sends (and receives) | of a core |\n|---|---|---|---|"
    )?;
    for sellers in [10.0, 100.0, 1_000.0, 10_000.0, 100_000.0] {
        let (bytes, core) = cost.at(sellers);
        let rate = sellers / REFRESH;
        writeln!(
            f,
            "| {sellers} | {rate:.2} | {:.1} KB/s | {:.2} % |",
            bytes / 1e3,
            core * 100.0
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_small_crowd_is_measured_and_every_offer_reaches_everybody() {
        let waits = Waits {
            settle: Duration::from_secs(6),
            quiet: Duration::from_secs(1),
        };
        let cost = swarms::measure(0, 6, waits, &|_| ())
            .await
            .expect("measures");
        assert!((cost.reached - 1.0).abs() < f64::EPSILON, "{cost:?}");
        assert!(cost.bytes > cost.offer as f64, "{cost:?}");
        let (few, many) = (cost.at(10.0).0, cost.at(10_000.0).0);
        assert!(many > few);
    }
}
