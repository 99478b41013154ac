//! The figures of all ways as a page of Markdown with its plots, and the bars they must pass.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::section::Section;
use crate::sim::figures::{Figures, Summary, quantile};
use crate::sim::plot::{Axis, Plot, Series};
use crate::sim::seller::{Kind, SECOND};
use crate::sim::ways::Way;
use crate::sim::world::Size;

/// The page.
pub const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/simulation.md");
/// The folder of its plots, beside it.
const PLOTS: &str = "simulation";
/// Where the figures stand.
const SECTION: Section = Section { name: "sim" };
/// The share of the time in which buyers have yet to learn. The bars are of the rest.
const COLD: f64 = 0.25;
/// How many steps the time has in the plot of learning.
const STEPS: u64 = 24;

/// The bars.
const SUCCESS: f64 = 0.999;
const COST: f64 = 1.10;
const FIRST: f64 = 1.15;
const TAIL: f64 = 0.5;
/// A baseline that answers less than this share is not compared by its times.
const WORTHY: f64 = 0.95;
const DECISION: Duration = Duration::from_micros(50);

/// How long a choice takes among so many sellers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Sellers that offer the model.
    pub sellers: usize,
    /// The middle.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
}

/// The figures of a comparison.
#[derive(Debug)]
pub struct Report {
    /// The world's seed.
    pub seed: u64,
    /// The world's size.
    pub size: Size,
    /// Every way's run.
    pub runs: Vec<Figures>,
    /// How long the router's choices take, in real time.
    pub paces: Vec<Pace>,
    /// The bars in worlds of other seeds.
    pub others: Vec<(u64, Vec<Bar>)>,
}

/// One promise and what was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What is promised.
    pub what: String,
    /// The bound.
    pub bar: String,
    /// What came out.
    pub got: String,
    /// Whether it holds.
    pub held: bool,
}

impl Report {
    /// When the buyers are reckoned to know their sellers, in seconds.
    #[must_use]
    pub fn warm(&self) -> u64 {
        (self.size.demand.seconds as f64 * COLD) as u64
    }

    fn of(&self, way: Way) -> Option<Summary> {
        let run = self.runs.iter().find(|run| run.way == way)?;
        Some(run.summary(self.warm(), self.size.demand.seconds))
    }

    /// The bars, as far as the ways that they compare were run.
    #[must_use]
    pub fn bars(&self) -> Vec<Bar> {
        let mut bars = Vec::new();
        if let (Some(ours), Some(oracle)) = (self.of(Way::Farthing), self.of(Way::Oracle)) {
            bars.extend(self.against(&ours, &oracle));
        }
        let largest = self.paces.iter().max_by_key(|pace| pace.sellers);
        bars.extend(largest.map(|pace| Bar {
            what: format!("a choice among {} sellers, p99", pace.sellers),
            bar: format!("< {DECISION:?}"),
            got: format!("{:.1?}", pace.p99),
            held: pace.p99 < DECISION,
        }));
        bars
    }

    fn against(&self, ours: &Summary, oracle: &Summary) -> Vec<Bar> {
        let baselines = self.runs.iter().map(|run| run.way);
        let baselines: Vec<_> = baselines
            .filter(|way| way.is_baseline())
            .filter_map(|way| self.of(way).map(|summary| (way, summary)))
            .collect();
        let ratio = |what: &str, most: f64, got: f64| Bar {
            what: what.to_owned(),
            bar: format!("at most {most:.2}"),
            got: format!("{got:.3}"),
            held: got <= most,
        };
        let mut bars = vec![
            Bar {
                what: "requests answered in full".into(),
                bar: format!("at least {:.1} %", SUCCESS * 100.0),
                got: format!("{:.3} %", ours.success * 100.0),
                held: ours.success >= SUCCESS,
            },
            ratio("cost, to the oracle's", COST, ours.cost / oracle.cost),
            ratio(
                "first token p50, to the oracle's",
                FIRST,
                ours.first_p50 / oracle.first_p50,
            ),
        ];
        let by = |pick: fn(&Summary) -> f64| {
            let by_value =
                |a: &&(Way, Summary), b: &&(Way, Summary)| pick(&a.1).total_cmp(&pick(&b.1));
            baselines.iter().min_by(by_value).copied()
        };
        // Who gives up early is not fast.
        let answers = |summary: &Summary| match summary.success >= WORTHY {
            true => summary.first_p99,
            false => f64::MAX,
        };
        // The best by just this; and, for who means another, by the objective.
        if let Some((way, best)) = by(answers) {
            bars.push(ratio(
                &format!("first token p99, to the least of any baseline ({way})"),
                TAIL,
                ours.first_p99 / best.first_p99,
            ));
        }
        if let Some((way, best)) = by(|summary| summary.objective) {
            bars.push(ratio(
                &format!(
                    "first token p99, to that of the baseline with the best objective ({way})"
                ),
                TAIL,
                ours.first_p99 / best.first_p99,
            ));
            bars.push(Bar {
                what: format!("the objective, to the best baseline's ({way})"),
                bar: "below 1".into(),
                got: format!("{:.3}", ours.objective / best.objective),
                held: ours.objective < best.objective,
            });
        }
        bars
    }

    /// Writes the figures into the page and draws the plots beside it.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, page: &Path) -> io::Result<()> {
        let folder = page.with_file_name(PLOTS);
        fs::create_dir_all(&folder)?;
        for (name, plot) in self.plots() {
            fs::write(folder.join(format!("{name}.svg")), plot.svg())?;
        }
        SECTION.write(page, &self.to_string())
    }

    fn plots(&self) -> [(&'static str, Plot); 3] {
        [
            ("first-token", self.first_tokens()),
            ("learning", self.learning()),
            ("cost-and-time", self.costs()),
        ]
    }

    fn series(&self, points: impl Fn(&Figures) -> Vec<(f64, f64)>) -> Vec<Series> {
        let series = |run: &Figures| Series {
            name: run.way.to_string(),
            points: points(run),
        };
        self.runs.iter().map(series).collect()
    }

    fn first_tokens(&self) -> Plot {
        let warm = self.warm() * SECOND;
        let points = |run: &Figures| {
            let answers = run.answers.iter().filter(|answer| answer.at >= warm);
            let all = answers.clone().count().max(1) as f64;
            let whole = answers.filter(|answer| answer.whole);
            let mut firsts: Vec<_> = whole.filter_map(|answer| answer.first).collect();
            firsts.sort_by(f64::total_cmp);
            let answered = firsts.len() as f64 / all;
            let steps = (0..=100).map(|step| f64::from(step) / 100.0);
            steps
                .map(|share| (quantile(&firsts, share), share * answered))
                .collect()
        };
        Plot {
            title: "Answered within a time to the first token",
            across: axis("milliseconds to the first token", (100.0, 100_000.0), true),
            up: axis("share of all requests", (0.0, 1.0), false),
            series: self.series(points),
            lines: true,
        }
    }

    fn learning(&self) -> Plot {
        let seconds = self.size.demand.seconds;
        let step = (seconds / STEPS).max(1);
        let points = |run: &Figures| {
            let steps = (0..seconds / step).map(|n| (n * step, (n + 1) * step));
            steps
                .map(|(from, until)| (from as f64, run.summary(from, until).objective))
                .collect()
        };
        Plot {
            title: "The objective as time goes by (less is better)",
            across: axis(
                "seconds since the buyers began",
                (0.0, seconds as f64),
                false,
            ),
            up: axis("objective", (0.2, 10.0), true),
            series: self.series(points),
            lines: true,
        }
    }

    fn costs(&self) -> Plot {
        let points = |run: &Figures| {
            let summary = run.summary(self.warm(), self.size.demand.seconds);
            // Who answers nobody costs nothing and is not the best.
            let worthy = summary.success >= WORTHY;
            worthy
                .then_some((summary.cost, summary.first_p99))
                .into_iter()
                .collect()
        };
        Plot {
            title: "Cost and the 99th percentile of the first token (lower left is better)",
            across: axis("cost, to a middling honest seller's", (0.0, 1.6), false),
            up: axis("milliseconds", (500.0, 100_000.0), true),
            series: self.series(points),
            lines: false,
        }
    }
}

const fn axis(name: &'static str, ends: (f64, f64), ratios: bool) -> Axis {
    Axis { name, ends, ratios }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size {
            sellers,
            bad,
            demand,
        } = self.size;
        let requests = self.runs.first().map_or(0, |run| run.answers.len());
        writeln!(
            f,
            "Seed {}: {sellers} sellers, {:.0} % of them bad; {} buyers with {requests} requests in {} s. The first {} s, in which buyers have yet to learn, stand apart.\n",
            self.seed,
            bad * 100.0,
            demand.buyers,
            demand.seconds,
            self.warm(),
        )?;
        table(f, &self.bars())?;
        self.elsewhere(f)?;
        writeln!(f, "\n### Once the buyers know their sellers\n")?;
        self.summaries(f, self.warm(), demand.seconds)?;
        writeln!(f, "\n### While they learn\n")?;
        self.summaries(f, 0, self.warm())?;
        writeln!(f, "\n### Who served, over the whole run\n")?;
        self.kinds(f)?;
        if !self.paces.is_empty() {
            writeln!(f, "\n### How long a choice takes\n")?;
            writeln!(f, "| sellers | p50 | p99 |\n|---|---|---|")?;
            for Pace { sellers, p50, p99 } in &self.paces {
                writeln!(f, "| {sellers} | {p50:.1?} | {p99:.1?} |")?;
            }
        }
        writeln!(f)?;
        for (name, plot) in self.plots() {
            writeln!(f, "![{}]({PLOTS}/{name}.svg)\n", plot.title)?;
        }
        Ok(())
    }
}

impl Report {
    fn elsewhere(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (seed, bars) in &self.others {
            let found = |bar: &Bar| match bar.held {
                true => format!("{} {}", bar.what, bar.got),
                false => format!("{} **{}, missed**", bar.what, bar.got),
            };
            let found: Vec<_> = bars.iter().map(found).collect();
            writeln!(f, "\nSeed {seed}: {}.", found.join("; "))?;
        }
        Ok(())
    }

    fn summaries(&self, f: &mut fmt::Formatter<'_>, from: u64, until: u64) -> fmt::Result {
        let oracle = self.runs.iter().find(|run| run.way == Way::Oracle);
        let least = oracle.map(|run| run.summary(from, until).objective);
        writeln!(
            f,
            "| way | answered | first token p50 | p99 | end p50 | cost | objective | regret | tries | turned away | hedged | continued |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
        )?;
        for run in &self.runs {
            let s = run.summary(from, until);
            let regret = least.map_or(String::new(), |least| {
                format!("{:.0} %", (s.objective / least - 1.0) * 100.0)
            });
            writeln!(
                f,
                "| {} | {:.2} % | {:.0} ms | {:.0} ms | {:.0} ms | {:.3} | {:.3} | {regret} | {:.2} | {:.2} | {:.1} % | {:.2} % |",
                run.way,
                s.success * 100.0,
                s.first_p50,
                s.first_p99,
                s.elapsed_p50,
                s.cost,
                s.objective,
                s.tries,
                s.busy,
                s.hedged * 100.0,
                s.rescued * 100.0,
            )?;
        }
        Ok(())
    }

    fn kinds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| way | spread (Gini) | busiest honest seller, to the mean | answers from bad sellers | most of them from |\n|---|---|---|---|---|"
        )?;
        for run in &self.runs {
            let all: u64 = run.served.iter().sum();
            let mean = all as f64 / run.served.len().max(1) as f64;
            let most = run.served.iter().max().copied().unwrap_or(0) as f64;
            let bad = run.kinds.iter().filter(|(kind, _)| **kind != Kind::Honest);
            let worst = bad.max_by_key(|(_, served)| **served);
            let worst = worst.filter(|(_, served)| **served > 0);
            let worst = worst.map_or("nobody".to_owned(), |(kind, _)| kind.to_string());
            writeln!(
                f,
                "| {} | {:.2} | {:.0} | {:.1} % | {worst} |",
                run.way,
                run.spread(),
                most / mean.max(1e-9),
                run.from_bad() * 100.0,
            )?;
        }
        Ok(())
    }
}

fn table(f: &mut fmt::Formatter<'_>, bars: &[Bar]) -> fmt::Result {
    writeln!(f, "| promised | bar | found | |\n|---|---|---|---|")?;
    for Bar {
        what,
        bar,
        got,
        held,
    } in bars
    {
        let held = if *held { "held" } else { "**missed**" };
        writeln!(f, "| {what} | {bar} | {got} | {held} |")?;
    }
    Ok(())
}
