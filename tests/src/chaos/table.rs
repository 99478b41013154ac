//! The table at the end: by kind of fault, what it did and what it cost.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use farthing_protocol::amount::Amount;

use crate::chaos::audit::{Harm, allowance};
use crate::chaos::{Report, Strike};

/// All faults of a kind.
#[derive(Debug, Default)]
struct Row {
    count: usize,
    felt: usize,
    healed: Vec<Duration>,
    stuck: usize,
    invented: usize,
    unpaid: Amount,
    worst: Amount,
}

impl Row {
    fn enter(&mut self, strike: &Strike) {
        self.count += 1;
        self.felt += usize::from(strike.felt > 0);
        match strike.healed {
            Some(took) => self.healed.push(took),
            None => self.stuck += 1,
        }
        self.invented += usize::from(!strike.invented.is_zero());
        self.unpaid = self.unpaid.saturating_add(strike.unpaid);
        self.worst = self.worst.max(strike.unpaid);
    }

    /// Half of them were over after the first, all after the second.
    fn healing(&self) -> String {
        let mut healed = self.healed.clone();
        healed.sort_unstable();
        let seconds = |at: Option<&Duration>| at.map_or(0.0, Duration::as_secs_f64);
        let middle = seconds(healed.get(healed.len() / 2));
        format!("{middle:.1} / {:.1} s", seconds(healed.last()))
    }

    fn line(&self, name: &str, lost: usize, double: usize, stuck: usize) -> String {
        format!(
            "| {name} | {} | {} | {lost} | {double} | {stuck} | {} | {} of {} | {} |\n",
            self.count,
            self.felt,
            self.unpaid,
            self.worst,
            allowance(),
            self.healing(),
        )
    }
}

/// The table, in Markdown. What only an audit of the books shows (lost vouchers, requests charged
/// twice, channels that cannot be claimed) is found after an act and has no one kind: it is in
/// the last row.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut all = Row::default();
    for strike in &report.strikes {
        rows.entry(strike.fault.to_string())
            .or_default()
            .enter(strike);
        all.enter(strike);
    }
    let mut text = String::from(
        "| fault | count | felt | lost vouchers | double charges | stuck | unpaid (atoms) | worst \
         of one, of the window allowed | until a whole answer, median / longest |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, row) in &rows {
        let (invented, stuck) = (row.invented, row.stuck);
        text += &row.line(name, 0, invented, stuck);
    }
    let count = |harm| report.audit.count(harm);
    text += &all.line(
        "**all**",
        count(Harm::LostVoucher),
        count(Harm::DoubleCharge),
        count(Harm::Stuck),
    );
    text
}

/// The figures, and whatever does not hold.
#[must_use]
pub fn figures(report: &Report) -> String {
    let mut text = String::new();
    for (name, value) in &report.audit.figures {
        // Writing to a string does not fail.
        writeln!(text, "- {name}: {value}").ok();
    }
    for (harm, violation) in &report.audit.violations {
        writeln!(text, "- VIOLATION ({harm}): {violation}").ok();
    }
    text
}
