//! The figures of many streams as a page of Markdown.

use std::fmt;
use std::time::Duration;

use crate::bench::figures::Sample;
use crate::bench::fleet::Each;
use crate::bench::machine::Machine;
use crate::bench::many::{Crowd, Plan, Stopped};
use crate::section::Section;

/// Where the figures stand.
pub const SECTION: Section = Section {
    name: "bench-streams",
};

const MIB: f64 = 1024.0 * 1024.0;

/// All of it.
#[derive(Debug)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// What was asked for.
    pub plan: Plan,
    /// The crowds.
    pub crowds: Vec<Crowd>,
    /// The readers that stop.
    pub stopped: Stopped,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (machine, plan) = (&self.machine, &self.plan);
        writeln!(
            f,
            "{} cores ({}), Linux {}, load average {} at the start. Everything runs on it. {} streams, \
             opened over {} s, a token every {} ms on each, {} tokens, prompts of {} bytes; transport: {:?}.\n",
            machine.cores,
            machine.processor,
            machine.kernel,
            machine.load,
            plan.streams,
            plan.opening.as_secs(),
            plan.pace.as_millis(),
            plan.chunks,
            plan.prompt,
            plan.transport
        )?;
        let names = self.crowds.iter().map(|crowd| crowd.way.to_string());
        writeln!(f, "| | {} |", names.collect::<Vec<_>>().join(" | "))?;
        writeln!(f, "|---{}|", "|---".repeat(self.crowds.len()))?;
        for (what, of) in ROWS {
            let cells = self.crowds.iter().map(|crowd| of(crowd, self));
            writeln!(f, "| {what} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
        }
        for crowd in &self.crowds {
            for reason in &crowd.reasons {
                writeln!(f, "\n{}: {reason}", crowd.way)?;
            }
        }
        self.stopped.fmt(f)
    }
}

type Row = (&'static str, fn(&Crowd, &Report) -> String);

const ROWS: [Row; 17] = [
    (
        "streams open at once, at most / least while watched",
        |crowd, _| format!("{} / {}", crowd.open, crowd.least),
    ),
    ("opened within", |crowd, _| seconds(crowd.opened)),
    ("streams that failed", |crowd, _| crowd.failed.to_string()),
    (
        "until the first token, beyond the model server's pace, while they open, p50 / p99",
        |crowd, _| both(&crowd.growing),
    ),
    (
        "until the first token of one more, when all are open, p50 / p99",
        |crowd, _| both(&crowd.beside),
    ),
    ("between two tokens, p50 / p99", |crowd, _| {
        both(&crowd.gaps)
    }),
    (
        "a token's way from model server to application, p50 / p99",
        |crowd, _| both(&crowd.ways),
    ),
    ("memory of a stream, gateway", |crowd, _| {
        per_stream(crowd, |each| each.gateway)
    }),
    ("memory of a stream, node", |crowd, _| {
        per_stream(crowd, |each| each.node)
    }),
    ("gateway, idle / all open / all ended", |crowd, _| {
        three(crowd, |each| each.gateway)
    }),
    ("node, idle / all open / all ended", |crowd, _| {
        three(crowd, |each| each.node)
    }),
    ("files and sockets, gateway / node", |crowd, _| {
        format!("{} / {}", crowd.descriptors.gateway, crowd.descriptors.node)
    }),
    (
        "tasks of the gateway, idle / all open / all ended",
        |crowd, _| {
            let [idle, open, ended] = crowd.tasks.map(|(gateway, _)| gateway);
            format!("{idle} / {open} / {ended}")
        },
    ),
    (
        "tasks of the node, idle / all open / all ended",
        |crowd, _| {
            let [idle, open, ended] = crowd.tasks.map(|(_, node)| node);
            format!("{idle} / {open} / {ended}")
        },
    ),
    ("tokens a second", |crowd, _| {
        let rate = crowd.chunks as f64 / crowd.watched.as_secs_f64().max(f64::EPSILON);
        format!("{rate:.0}")
    }),
    (
        "processor time of a token: gateway / node / model server / load",
        |crowd, _| {
            let each = crowd.cpu;
            let times = [each.gateway, each.node, each.upstream, each.load];
            let times = times.map(|cpu| format!("{} µs", crowd.per_chunk(cpu).as_micros()));
            times.join(" / ")
        },
    ),
    ("of all cores in use", |crowd, report| {
        format!("{:.0} %", crowd.busy(report.machine.cores))
    }),
];

fn per_stream(crowd: &Crowd, of: fn(&Each<u64>) -> u64) -> String {
    let [idle, open, _] = &crowd.memory;
    let more = of(open).saturating_sub(of(idle)) as f64;
    format!("{:.1} KiB", more / 1024.0 / crowd.open.max(1) as f64)
}

fn three(crowd: &Crowd, of: fn(&Each<u64>) -> u64) -> String {
    let [idle, open, ended] = crowd.memory.each_ref().map(|each| of(each) as f64 / MIB);
    format!("{idle:.1} / {open:.1} / {ended:.1} MiB")
}

fn both(sample: &Sample) -> String {
    format!(
        "{} / {}",
        millis(sample.median()),
        millis(sample.percentile(99))
    )
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{} readers stop after 1 MiB of a paid stream, of which {:.0} MiB are left, {:.0} MiB in all:\n",
            self.readers,
            self.unread as f64 / MIB,
            self.unread as f64 * self.readers as f64 / MIB
        )?;
        writeln!(f, "| | gateway | node | model server |")?;
        writeln!(f, "|---|---|---|---|")?;
        for (when, each) in &self.memory {
            let [gateway, node, upstream] =
                [each.gateway, each.node, each.upstream].map(|bytes| bytes as f64 / MIB);
            writeln!(
                f,
                "| {when} | {gateway:.1} MiB | {node:.1} MiB | {upstream:.1} MiB |"
            )?;
        }
        let (gateway, node) = self.idle;
        writeln!(
            f,
            "\nMeanwhile the gateway uses {} ms of processor time a second and the node {} ms, and {} \
             others read streams as long to their end in {} each (p50).",
            gateway.as_millis(),
            node.as_millis(),
            self.others.len(),
            millis(self.others.median())
        )
    }
}
