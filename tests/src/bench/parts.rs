//! What the parts of a paid request cost by themselves: signatures, checks, the disk, and a
//! seller's books on 1, 16 and 256 channels.

use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use alloy::primitives::keccak256;
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::eip712::Signed;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, RequestId, Usage};
use farthing_protocol::receipt::Receipt;
use farthing_protocol::store::Batch;
use farthing_protocol::testing;
use farthing_protocol::voucher::Voucher;
use farthing_protocol::x402::ChannelId;
use tokio::time::Instant;

use crate::bench::figures::Sample;
use crate::bench::machine::Machine;
use crate::bench::receipts::{BEGIN, Books, BooksError, Figures};
use crate::section::Section;

/// Where the figures stand.
pub const SECTION: Section = Section { name: "ledger" };

/// How often each of the small things is done.
const REPEATS: u32 = 2_000;
/// The channels of the books that are measured.
const CHANNELS: [u64; 3] = [1, 16, 256];
/// Purchases that end at once.
const AT_ONCE: [usize; 3] = [1, 64, 256];

/// One thing and how long it takes.
#[derive(Debug)]
pub struct Part {
    what: &'static str,
    time: Duration,
}

/// Books with so many channels, so many purchases ending on them at once.
#[derive(Debug)]
pub struct Run {
    channels: u64,
    at_once: usize,
    rate: f64,
    times: Sample,
}

/// What was measured.
#[derive(Debug)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Signatures, hashes, the disk.
    pub parts: Vec<Part>,
    /// The books.
    pub runs: Vec<Run>,
    /// Books with many receipts, if they were asked for.
    pub many: Option<Figures>,
}

/// Measures all of it, with books in directories below `dir`.
///
/// # Errors
/// [`BooksError`].
pub async fn measure(dir: &Path) -> Result<Report, BooksError> {
    let machine = Machine::look();
    let mut parts = signatures()?;
    parts.push(disk(&dir.join("disk")).await?);
    let mut runs = Vec::new();
    for channels in CHANNELS {
        let mut books = Books::open(&dir.join(channels.to_string()), channels).await?;
        books.sell(1_000).await?;
        for at_once in AT_ONCE {
            let count = if at_once == 1 { 2_000 } else { 20_000 };
            let begun = Instant::now();
            let times = books.sell_by(count, at_once).await?;
            let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
            let times = times.into_iter().collect();
            runs.push(Run {
                channels,
                at_once,
                rate,
                times,
            });
        }
        books.ledger.store().stop().await;
    }
    Ok(Report {
        machine,
        parts,
        runs,
        many: None,
    })
}

/// How long something takes that comes out right.
fn each(what: &'static str, mut work: impl FnMut() -> bool) -> Result<Part, BooksError> {
    let begun = Instant::now();
    let good = (0..REPEATS).all(|_| black_box(work()));
    let time = begun.elapsed() / REPEATS;
    match good {
        true => Ok(Part { what, time }),
        false => Err(BooksError::Wrong(what)),
    }
}

/// What both sides compute for a purchase, and for the few that need a new voucher.
fn signatures() -> Result<Vec<Part>, BooksError> {
    let (node, key) = (testing::node_key(1), testing::evm_key(8));
    let domain = testing::network().domain();
    let receipt = receipt();
    let signed = receipt.clone().sign(&node);
    let voucher = Voucher {
        channel: receipt.channel,
        ceiling: Amount::atoms(900),
    };
    let paid = Signed::sign(voucher, &domain, &key);
    let body = vec![b'x'; 1024];
    Ok(vec![
        each("receipt signed (ed25519), each purchase", || {
            receipt.clone().sign(&node).receipt == receipt
        })?,
        each("receipt checked, each purchase", || {
            signed.clone().verify(node.id()).is_ok()
        })?,
        each("voucher signed (secp256k1), one per window", || {
            Signed::sign(voucher, &domain, &key).message == voucher
        })?,
        each("voucher checked, one per window", || {
            paid.verify(&domain, key.address()).is_ok()
        })?,
        each("body of 1 KiB hashed, on each side", || {
            !keccak256(black_box(&body)).is_zero()
        })?,
    ])
}

fn receipt() -> Receipt {
    Receipt {
        channel: ChannelId(keccak256([1])),
        seq: 7,
        request: RequestId(keccak256([2])),
        request_hash: keccak256([3]),
        response_hash: keccak256([4]),
        model_hash: keccak256([5]),
        offer: OfferHash(keccak256([6])),
        usage: Usage {
            prompt: 100,
            cached: 0,
            completion: 200,
        },
        charged: Amount::atoms(20),
        cumulative: Amount::atoms(900),
        started: BEGIN,
        finished: Timestamp(BEGIN.0 + 900),
        ending: Ending::Complete,
    }
}

/// One row made durable by itself.
async fn disk(dir: &Path) -> Result<Part, BooksError> {
    let books = Books::open(dir, 1).await?;
    let mut times = Vec::new();
    for n in 0..REPEATS {
        let place = (books.channels[0].0.0, u64::from(n));
        let row = Batch::new().put(
            &farthing_node::ledger::SERVED,
            &keccak256(n.to_le_bytes()),
            &place,
        );
        let row = row.map_err(farthing_node::ledger::LedgerError::from)?;
        let begun = Instant::now();
        let written = books.ledger.store().commit(row).await;
        written.map_err(farthing_node::ledger::LedgerError::from)?;
        times.push(begun.elapsed());
    }
    books.ledger.store().stop().await;
    let times: Sample = times.into_iter().collect();
    Ok(Part {
        what: "a row on the disk, waited for, p50",
        time: times.median(),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            cores,
            processor,
            kernel,
            load,
        } = &self.machine;
        writeln!(
            f,
            "Machine: {cores} cores ({processor}), Linux {kernel}, load average {load} at the start.\n"
        )?;
        writeln!(f, "| part of a paid request | time |\n|---|---|")?;
        for Part { what, time } in &self.parts {
            writeln!(f, "| {what} | {:.1} µs |", time.as_secs_f64() * 1e6)?;
        }
        writeln!(
            f,
            "\n| a seller's books: channels | purchases at once | a second | p50 / p99 until on disk |\n|---|---|---|---|"
        )?;
        for run in &self.runs {
            let (half, most) = (run.times.median(), run.times.percentile(99));
            writeln!(
                f,
                "| {} | {} | {:.0} | {:.2} / {:.2} ms |",
                run.channels,
                run.at_once,
                run.rate,
                half.as_secs_f64() * 1e3,
                most.as_secs_f64() * 1e3
            )?;
        }
        match &self.many {
            Some(figures) => write!(f, "\n{figures}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hundredth = (self.receipts / 100).max(1);
        let rate = |count: u64, time: Duration| count as f64 / time.as_secs_f64().max(1e-9);
        let (prune, gone) = self.prune;
        let rows = [
            (
                "appended a second, all / the last hundredth",
                format!(
                    "{:.0} / {:.0}",
                    rate(self.receipts, self.append),
                    rate(hundredth, self.append_last)
                ),
            ),
            ("one found by its purchase", format!("{:?}", self.lookup)),
            ("256 read in order", format!("{:?}", self.page)),
            ("books opened again", format!("{:?}", self.reopen)),
            (
                "pruned a second, into the archive",
                format!("{:.0}", rate(gone, prune)),
            ),
            (
                "bytes on disk, each",
                format!("{}", self.bytes / self.receipts.max(1)),
            ),
        ];
        writeln!(f, "| books with {} receipts | |\n|---|---|", self.receipts)?;
        for (what, figure) in rows {
            writeln!(f, "| {what} | {figure} |")?;
        }
        Ok(())
    }
}
