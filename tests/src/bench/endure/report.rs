//! The figures of a long run as a page of Markdown.

use std::fmt;
use std::time::Duration;

use crate::bench::endure::line::slope;
use crate::bench::endure::{Filled, Kind, Look, Plan, Seen};
use crate::bench::machine::Machine;
use crate::chaos::audit::Audit;
use crate::section::Section;

/// Where the figures stand.
pub const SECTION: Section = Section { name: "soak" };

const MIB: f64 = 1024.0 * 1024.0;
/// So many looks are shown; all of them are counted.
const SHOWN: usize = 12;

/// All of it.
#[derive(Debug)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// What was asked for.
    pub plan: Plan,
    /// What was bought before.
    pub filled: Filled,
    /// Every look.
    pub looks: Vec<Look>,
    /// When all applications had gone.
    pub last: Look,
    /// What the applications saw.
    pub seen: Seen,
    /// What the books say.
    pub audit: Audit,
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} s, {} answered, gateway {:.1} MiB, node {:.1} MiB",
            self.at.as_secs_f64(),
            self.answered,
            self.memory.gateway as f64 / MIB,
            self.memory.node as f64 / MIB
        )
    }
}

/// A figure of a look.
type Figure = fn(&Look) -> f64;

const FIGURES: [(&str, &str, Figure); 10] = [
    ("memory, gateway", "KiB", |look| {
        look.memory.gateway as f64 / 1024.0
    }),
    ("memory, node", "KiB", |look| {
        look.memory.node as f64 / 1024.0
    }),
    ("files and sockets, gateway", "", |look| {
        look.descriptors.gateway as f64
    }),
    ("files and sockets, node", "", |look| {
        look.descriptors.node as f64
    }),
    ("threads, gateway", "", |look| look.threads.gateway as f64),
    ("threads, node", "", |look| look.threads.node as f64),
    ("tasks, gateway", "", |look| look.tasks.0 as f64),
    ("tasks, node", "", |look| look.tasks.1 as f64),
    ("disk, gateway", "KiB", |look| look.disk.0 as f64 / 1024.0),
    ("disk, node", "KiB", |look| look.disk.1 as f64 / 1024.0),
];

impl Report {
    fn counted(&self) -> impl Iterator<Item = &Look> + Clone {
        let from = self.plan.warm_up;
        self.looks.iter().filter(move |look| look.at >= from)
    }

    /// By how much a figure rises in a minute, and in a thousand answers.
    fn slopes(&self, figure: Figure) -> [Option<f64>; 2] {
        let looks = self.counted();
        let minutes = looks
            .clone()
            .map(|l| (l.at.as_secs_f64() / 60.0, figure(l)));
        let answers = looks.map(|l| (l.answered as f64 / 1000.0, figure(l)));
        [slope(minutes), slope(answers)]
    }

    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (machine, plan, last) = (&self.machine, &self.plan, &self.last);
        let time = last.at.as_secs_f64().max(f64::EPSILON);
        let share = |cpu: Duration| 100.0 * cpu.as_secs_f64() / time;
        writeln!(
            f,
            "{} cores ({}), Linux {}, load average {} at the start. {:.0} s of traffic, the first {} s of \
             which do not count for the slopes, {:.0} answers a second; of one core the gateway used \
             {:.0} %, the node {:.0} %; transport: {:?}.\n",
            machine.cores,
            machine.processor,
            machine.kernel,
            machine.load,
            time,
            plan.warm_up.as_secs(),
            last.answered as f64 / time,
            share(last.cpu.gateway),
            share(last.cpu.node),
            plan.transport
        )?;
        let filled = &self.filled;
        let mib = |bytes: u64| bytes as f64 / MIB;
        writeln!(
            f,
            "Before, {} plain answers were bought as fast as they came: the gateway grew from {:.1} to \
             {:.1} MiB, the node from {:.1} to {:.1} MiB: mostly the store's cache of pages, which is \
             bounded.\n",
            filled.purchases,
            mib(filled.before.gateway),
            mib(filled.after.gateway),
            mib(filled.before.node),
            mib(filled.after.node),
        )?;
        writeln!(f, "| applications | answers |\n|---|---|")?;
        for (kind, count) in Kind::ALL.iter().zip(self.seen.as_expected) {
            writeln!(f, "| {} | {count} |", kind.name())?;
        }
        writeln!(
            f,
            "| anything else than was expected | {} |",
            self.seen.surprises
        )?;
        for reason in &self.seen.reasons {
            writeln!(f, "\n{reason}")?;
        }
        Ok(())
    }

    fn rows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = self.looks.len().div_ceil(SHOWN).max(1);
        writeln!(
            f,
            "\n| at | answers | gateway | node | on disk, gateway | node |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        let looks = self.looks.iter().step_by(step).chain([&self.last]);
        for look in looks {
            let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB);
            writeln!(
                f,
                "| {:.0} s | {} | {} | {} | {} | {} |",
                look.at.as_secs_f64(),
                look.answered,
                mib(look.memory.gateway),
                mib(look.memory.node),
                mib(look.disk.0),
                mib(look.disk.1)
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        self.rows(f)?;
        writeln!(
            f,
            "\n| after the warm-up | least | most | slope a minute | slope in 1000 answers |"
        )?;
        writeln!(f, "|---|---|---|---|---|")?;
        for (what, unit, figure) in FIGURES {
            let values = self.counted().map(figure);
            let least = values.clone().fold(f64::INFINITY, f64::min);
            let most = values.fold(f64::NEG_INFINITY, f64::max);
            let slopes = self.slopes(figure).map(|slope| match slope {
                Some(slope) => format!("{slope:+.2} {unit}").trim_end().to_owned(),
                None => "none".to_owned(),
            });
            writeln!(
                f,
                "| {what} | {} | {} | {} |",
                format!("{least:.0} {unit}").trim_end(),
                format!("{most:.0} {unit}").trim_end(),
                slopes.join(" | ")
            )?;
        }
        writeln!(f, "\nThe books:\n")?;
        for (name, value) in &self.audit.figures {
            writeln!(f, "- {name}: {value}")?;
        }
        match self.audit.violations.len() {
            0 => writeln!(f, "\nBoth books and the chain agree to the atom."),
            count => {
                writeln!(f, "\n{count} things do not hold:\n")?;
                for (harm, what) in self.audit.violations.iter().take(20) {
                    writeln!(f, "- {harm}: {what}")?;
                }
                Ok(())
            }
        }
    }
}
