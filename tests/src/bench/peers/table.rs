//! The figures as a page of Markdown, with the bars they must pass.

use std::fmt::{self, Write as _};
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::bench::machine::Machine;
use crate::bench::peers::figures::{Figures, Round, Spread};
use crate::bench::peers::{AT_ONCE, Contestant, Effort};
use crate::section::Section;

/// Where the figures stand.
const SECTION: Section = Section {
    name: "bench-peers",
};

/// How many times as many requests per second of its processor time a gateway of ours must answer.
const RATIOS: [(Contestant, Contestant, f64); 4] = [
    (Contestant::Own, Contestant::LiteLlm, 60.0),
    (Contestant::Own, Contestant::Portkey, 8.0),
    (Contestant::Paid, Contestant::LiteLlm, 30.0),
    (Contestant::Paid, Contestant::Portkey, 4.0),
];
/// How much later the first token of a stream may come.
const FIRST: f64 = 2e-3;

/// All figures of a run.
#[derive(Debug)]
pub struct Report {
    pub(super) machine: Machine,
    pub(super) versions: Vec<String>,
    pub(super) effort: Effort,
    pub(super) figures: Figures,
}

impl Report {
    /// Replaces the figures on a page, or begins the page.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        SECTION.write(path, &self.to_string())
    }

    fn contestants(&self) -> impl Iterator<Item = Contestant> {
        self.figures.rounds.keys().copied()
    }

    /// All but the model server.
    fn gateways(&self) -> impl Iterator<Item = Contestant> {
        self.contestants().skip(1)
    }

    fn head(&self, page: &mut String) -> fmt::Result {
        let Machine {
            cores: _,
            processor,
            kernel,
            load,
        } = &self.machine;
        let core = self.effort.place.core;
        let core = core.map_or_else(String::new, |core| format!(" (number {core})"));
        writeln!(
            page,
            "Machine: {processor}, Linux {kernel}, load average {load} at the start; one core{core} for \
             the gateways, one for load, model server, node and chain. Others: {}. Transport of the \
             bought ones: {:?}. Rounds: {}; the middle one, and in brackets the least and the most.\n",
            if self.versions.is_empty() {
                "none".to_owned()
            } else {
                self.versions.join(", ")
            },
            self.effort.place.transport,
            self.effort.rounds,
        )
    }

    fn bars(&self, page: &mut String) -> fmt::Result {
        writeln!(page, "| bar | limit | measured | |\n|---|---|---|---|")?;
        for (ours, theirs, bar) in RATIOS {
            let Some(got) = self.figures.ratio(ours, theirs, per_cpu) else {
                continue;
            };
            writeln!(
                page,
                "| {}: requests per second of processor time, as a multiple of {}'s | ≥ {bar:.0} | {} | {} |",
                ours.name(),
                theirs.name(),
                spread(Some(got), |ratio| format!("{ratio:.1}")),
                verdict(got.middle >= bar)
            )?;
        }
        for (ours, bar) in [(Contestant::Own, Some(FIRST)), (Contestant::Paid, None)] {
            let Some(got) = self.figures.added(ours, |round| first(round, 99)) else {
                continue;
            };
            let limit = bar.map_or("none".to_owned(), |bar| format!("< {}", time(bar)));
            writeln!(
                page,
                "| {}: added to the first token, p99, {AT_ONCE} streams at once | {limit} | {} | {} |",
                ours.name(),
                spread(Some(got), time),
                bar.map_or("", |bar| verdict(got.middle < bar))
            )?;
        }
        writeln!(page)
    }

    fn plain(&self, page: &mut String) -> fmt::Result {
        writeln!(
            page,
            "| plain requests | {AT_ONCE} at once, per second | p99 | of its core | per second of its \
             processor time | most per second with p99 ≤ 10 ms (at once) | memory at the end |\n\
             |---|---|---|---|---|---|---|"
        )?;
        for contestant in self.contestants() {
            let of = |figure: fn(&Round) -> Option<f64>| self.figures.spread(contestant, figure);
            let rate = of(|round| Some(round.full()?.rate()));
            let slow = of(|round| Some(round.full()?.latency.percentile(99).as_secs_f64()));
            let busy = of(|round| Some(round.full()?.busy()));
            let gateway = contestant != Contestant::Direct;
            let memory = self.figures.memory.get(&contestant).copied();
            writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {} |",
                contestant.name(),
                spread(rate, whole),
                spread(slow, time),
                spread(busy.filter(|_| gateway), |busy| format!(
                    "{:.0} %",
                    busy * 100.0
                )),
                spread(of(per_cpu), whole),
                self.best(contestant),
                memory
                    .filter(|_| gateway)
                    .map_or_else(String::new, mebibytes),
            )?;
        }
        writeln!(page)
    }

    /// The most requests per second that a contestant answers quickly.
    fn best(&self, contestant: Contestant) -> String {
        let rounds = self.figures.of(contestant);
        let best = rounds.iter().filter_map(Round::best);
        let (mut lines, rates): (Vec<_>, Vec<_>) =
            best.map(|(lines, run)| (lines, run.rate())).unzip();
        lines.sort_unstable();
        let (Some(least), Some(most)) = (lines.first(), lines.last()) else {
            return "none".to_owned();
        };
        let lines = if least == most {
            least.to_string()
        } else {
            format!("{least}–{most}")
        };
        let missed = match rounds.len() - rates.len() {
            0 => String::new(),
            missed => format!(", none in {missed} rounds"),
        };
        format!("{} ({lines}){missed}", spread(Spread::of(rates), whole))
    }

    fn times(&self, page: &mut String) -> fmt::Result {
        writeln!(
            page,
            "| added | one request at a time, p50 | p99 | first of {} chunks, {AT_ONCE} streams at once, p50 | \
             p99 | processor time of a stream |\n|---|---|---|---|---|---|",
            self.effort.chunks
        )?;
        for contestant in self.gateways() {
            let added = |figure: &dyn Fn(&Round) -> Option<Duration>| {
                spread(self.figures.added(contestant, figure), time)
            };
            let cpu = self
                .figures
                .spread(contestant, |round| Some(round.streams.per_cpu()?.recip()));
            writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} |",
                contestant.name(),
                added(&|round| single(round, 50)),
                added(&|round| single(round, 99)),
                added(&|round| first(round, 50)),
                added(&|round| first(round, 99)),
                spread(cpu, time),
            )?;
        }
        let direct = |figure: &dyn Fn(&Round) -> Option<Duration>| {
            let figure = |round: &Round| Some(figure(round)?.as_secs_f64());
            spread(self.figures.spread(Contestant::Direct, figure), time)
        };
        writeln!(
            page,
            "\nStraight to the model server one request takes {} at p50 and {} at p99, a first token {} and {}.\n",
            direct(&|round| single(round, 50)),
            direct(&|round| single(round, 99)),
            direct(&|round| first(round, 50)),
            direct(&|round| first(round, 99)),
        )
    }

    /// How much more the load can ask for than a contestant answers.
    fn ceiling(&self, page: &mut String) -> fmt::Result {
        let rate = |round: &Round| Some(round.full()?.rate());
        let times: Vec<_> = self
            .gateways()
            .filter_map(|contestant| {
                let times = self.figures.ratio(Contestant::Direct, contestant, rate)?;
                Some(format!("{:.1} times {}'s", times.middle, contestant.name()))
            })
            .collect();
        writeln!(
            page,
            "What load and model server can do without a gateway, {AT_ONCE} at once, is {}. Where a \
             gateway's core is not busy, the other core was the limit, and only the requests per second \
             of processor time say what the gateway can do.",
            times.join(", ")
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut page = String::new();
        self.head(&mut page)?;
        self.bars(&mut page)?;
        self.plain(&mut page)?;
        self.times(&mut page)?;
        self.ceiling(&mut page)?;
        f.write_str(&page)
    }
}

fn per_cpu(round: &Round) -> Option<f64> {
    round.full()?.per_cpu()
}

fn single(round: &Round, percent: usize) -> Option<Duration> {
    Some(round.at(1)?.latency.percentile(percent))
}

fn first(round: &Round, percent: usize) -> Option<Duration> {
    let sample = &round.streams.latency;
    (!sample.is_empty()).then(|| sample.percentile(percent))
}

const fn verdict(passed: bool) -> &'static str {
    if passed { "pass" } else { "**miss**" }
}

fn spread(spread: Option<Spread>, show: impl Fn(f64) -> String) -> String {
    let Some(spread) = spread else {
        return String::new();
    };
    let (least, most) = (show(spread.least), show(spread.most));
    format!("{} [{least} to {most}]", show(spread.middle))
}

fn whole(figure: f64) -> String {
    format!("{figure:.0}")
}

fn time(seconds: f64) -> String {
    if seconds < 0.01 {
        format!("{:.0} µs", seconds * 1e6)
    } else {
        format!("{:.1} ms", seconds * 1e3)
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / (1024.0 * 1024.0))
}
