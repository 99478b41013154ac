//! The figures as a page of Markdown, with the bars they must pass.

use std::fmt::{self, Write as _};
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::bench::Effort;
use crate::bench::figures::{Pair, Sample};
use crate::bench::fleet::Each;
use crate::bench::load::{Spent, Unary};
use crate::bench::machine::Machine;
use crate::bench::streams::{Burst, Paced};
use crate::section::Section;

/// Where the figures stand.
const SECTION: Section = Section { name: "bench" };

/// The bars are a prototype's figures on a machine where the model server itself answered in 59 µs,
/// and 80 000 times a second; so they are also given as ratios to that.
const ADDED: Duration = Duration::from_micros(450);
const ADDED_RATIO: f64 = 450.0 / 59.0;
const CHUNK: Duration = Duration::from_micros(50);
const RATE: f64 = 4800.0;
const RATE_RATIO: f64 = 4_800.0 / 80_000.0;
const IDLE: u64 = 40 * MIB;
const MIB: u64 = 1024 * 1024;

/// All figures of a run.
#[derive(Debug)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// How much was measured.
    pub effort: Effort,
    /// Memory before any request.
    pub idle: Each<u64>,
    /// Memory after all of them.
    pub loaded: Each<u64>,
    /// One request at a time.
    pub single: Unary,
    /// Many at once.
    pub many: Unary,
    /// Streams as fast as they go.
    pub burst: Burst,
    /// Streams at a pace.
    pub paced: Paced,
}

/// One promise and what was measured.
struct Bar {
    what: &'static str,
    bar: String,
    got: String,
    passed: bool,
}

impl Report {
    fn bars(&self) -> Vec<Bar> {
        let added = self.single.0.latency().added(50);
        let chunk = self.paced.way.added(50);
        let (rate, direct_rate) = (self.many.0.paid.rate(), self.many.0.direct.rate());
        let direct = self.single.0.direct.latency.median().as_secs_f64();
        let times = added.as_secs_f64() / direct.max(f64::EPSILON);
        let share = rate / direct_rate.max(f64::EPSILON);
        let idle = self.idle.node;
        vec![
            Bar {
                what: "added to a plain request, one at a time, p50",
                bar: format!("< {}", micros(ADDED)),
                got: micros(added),
                passed: added < ADDED,
            },
            Bar {
                what: "the same, as a multiple of the direct request",
                bar: format!("< {ADDED_RATIO:.1}"),
                got: format!("{times:.1}"),
                passed: times < ADDED_RATIO,
            },
            Bar {
                what: "added to a paced chunk, p50",
                bar: format!("< {}", micros(CHUNK)),
                got: micros(chunk),
                passed: chunk < CHUNK,
            },
            Bar {
                what: "paid requests per second, 64 at once",
                bar: format!("≥ {RATE:.0}"),
                got: format!("{rate:.0}"),
                passed: rate >= RATE,
            },
            Bar {
                what: "the same, as a share of direct requests per second",
                bar: format!("≥ {RATE_RATIO:.3}"),
                got: format!("{share:.3}"),
                passed: share >= RATE_RATIO,
            },
            Bar {
                what: "memory of an idle node",
                bar: format!("< {}", mebibytes(IDLE)),
                got: mebibytes(idle),
                passed: idle < IDLE,
            },
        ]
    }

    /// Replaces the figures on a page, or begins the page.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        SECTION.write(path, &self.to_string())
    }
}

impl Pair<Spent> {
    fn latency(&self) -> Pair<Sample> {
        Pair {
            direct: self.direct.latency.clone(),
            paid: self.paid.latency.clone(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut page = String::new();
        self.head(&mut page)?;
        self.bar_table(&mut page)?;
        self.times(&mut page)?;
        self.costs(&mut page)?;
        self.memory(&mut page)?;
        f.write_str(page.trim_end())?;
        f.write_str("\n")
    }
}

impl Report {
    fn head(&self, page: &mut String) -> fmt::Result {
        let Machine {
            cores,
            processor,
            kernel,
            load,
        } = &self.machine;
        writeln!(
            page,
            "Machine: {cores} cores ({processor}), Linux {kernel}, load average {load} at the start. \
             Everything runs on it: chain, model server, node, gateway and the load. Transport: {:?}.\n",
            self.effort.place.transport
        )
    }

    fn bar_table(&self, page: &mut String) -> fmt::Result {
        writeln!(page, "| bar | limit | measured | |\n|---|---|---|---|")?;
        for bar in self.bars() {
            let verdict = if bar.passed { "pass" } else { "**miss**" };
            writeln!(
                page,
                "| {} | {} | {} | {verdict} |",
                bar.what, bar.bar, bar.got
            )?;
        }
        writeln!(page)
    }

    fn times(&self, page: &mut String) -> fmt::Result {
        let (single, many) = (&self.single.0, &self.many.0);
        let at_once = self.effort.at_once;
        let (chunks, pace) = (self.effort.chunks, self.effort.pace.as_millis());
        writeln!(
            page,
            "| | direct p50 / p99 | paid p50 / p99 | added p50 / p99 | ratio of p50 |\n|---|---|---|---|---|"
        )?;
        let rows = [
            ("plain request, one at a time".to_owned(), single.latency()),
            (format!("plain request, {at_once} at once"), many.latency()),
            (
                format!("first token, a chunk every {pace} ms"),
                self.paced.first.clone(),
            ),
            (
                format!("first token, {chunks} chunks unpaced"),
                self.burst.first.clone(),
            ),
            (
                format!("{chunks} chunks, unpaced, to the end"),
                self.burst.total.clone(),
            ),
            (
                format!("way of a chunk, one every {pace} ms"),
                self.paced.way.clone(),
            ),
        ];
        for (what, pair) in rows {
            row(page, &what, &pair)?;
        }
        writeln!(page)?;
        writeln!(
            page,
            "| requests per second | direct | paid | ratio |\n|---|---|---|---|"
        )?;
        for (what, pair) in [("one at a time", single), ("many at once", many)] {
            let (direct, paid) = (pair.direct.rate(), pair.paid.rate());
            let share = paid / direct.max(f64::EPSILON);
            writeln!(page, "| {what} | {direct:.0} | {paid:.0} | {share:.2} |")?;
        }
        let chunk = self.burst.total.added(50) / u32::try_from(chunks.max(1)).unwrap_or(1);
        writeln!(
            page,
            "\nA chunk of an unpaced stream costs {} more, paid, than directly: the stream's whole \
             added time by its {chunks} chunks.",
            micros(chunk)
        )?;
        let rates = &many.paid.rates;
        let rates: Vec<_> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
        writeln!(
            page,
            "\nRounds of {at_once} paid at once: {}.\n",
            rates.join(", ")
        )
    }

    fn costs(&self, page: &mut String) -> fmt::Result {
        writeln!(
            page,
            "| processor time per paid request | gateway | node | model server | load |\n|---|---|---|---|---|"
        )?;
        let kinds = [
            ("one at a time", &self.single),
            ("many at once", &self.many),
        ];
        for (what, unary) in &kinds {
            let spent = &unary.0.paid;
            let each =
                |cpu: Duration| micros(cpu / u32::try_from(spent.count().max(1)).unwrap_or(1));
            let cpu = &spent.cpu;
            let (gateway, node) = (each(cpu.gateway), each(cpu.node));
            let (upstream, load) = (each(cpu.upstream), each(cpu.load));
            writeln!(
                page,
                "| {what} | {gateway} | {node} | {upstream} | {load} |"
            )?;
        }
        writeln!(
            page,
            "\n| per 1000 paid requests | batches, gateway | disk writes, gateway | batches, node | disk writes, node | vouchers |\n|---|---|---|---|---|---|"
        )?;
        for (what, unary) in &kinds {
            let spent = &unary.0.paid;
            let each = |count: u64| count * 1000 / (spent.count().max(1) as u64);
            // Each purchase makes one batch of its own on either side; the others are vouchers.
            let vouchers = each(spent.node.commits).saturating_sub(1000);
            let (batches, writes) = (each(spent.gateway.commits), each(spent.gateway.syncs));
            let (at_node, node_writes) = (each(spent.node.commits), each(spent.node.syncs));
            writeln!(
                page,
                "| {what} | {batches} | {writes} | {at_node} | {node_writes} | {vouchers} |"
            )?;
        }
        writeln!(
            page,
            "\nEach purchase has one receipt, signed by the node and checked by the gateway (ed25519); \
             each voucher is signed once and checked once (secp256k1).\n"
        )
    }

    fn memory(&self, page: &mut String) -> fmt::Result {
        writeln!(
            page,
            "| resident memory | gateway | node | model server |\n|---|---|---|---|"
        )?;
        for (what, each) in [("idle", &self.idle), ("after all rounds", &self.loaded)] {
            let (gateway, node) = (mebibytes(each.gateway), mebibytes(each.node));
            let upstream = mebibytes(each.upstream);
            writeln!(page, "| {what} | {gateway} | {node} | {upstream} |")?;
        }
        Ok(())
    }
}

fn row(page: &mut String, what: &str, pair: &Pair<Sample>) -> fmt::Result {
    let both = |sample: &Sample| {
        let (half, most) = (sample.median(), sample.percentile(99));
        format!("{} / {}", micros(half), micros(most))
    };
    let (direct, paid) = (both(&pair.direct), both(&pair.paid));
    let (half, most) = (micros(pair.added(50)), micros(pair.added(99)));
    let direct_half = pair.direct.median().as_secs_f64().max(f64::EPSILON);
    let ratio = pair.paid.median().as_secs_f64() / direct_half;
    writeln!(
        page,
        "| {what} | {direct} | {paid} | {half} / {most} | {ratio:.1} |"
    )
}

fn micros(time: Duration) -> String {
    let micros = time.as_micros();
    if micros < 10_000 {
        format!("{micros} µs")
    } else {
        format!("{:.1} ms", time.as_secs_f64() * 1000.0)
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB as f64)
}
