//! A route as text.

use crate::cli::render::{Left, Right, View, json, safe, table};
use crate::report::{RouteChoice, RouteReport};

impl View {
    /// Whom the router would ask, and why.
    #[must_use]
    pub fn route(&self, report: &RouteReport) -> String {
        if self.json {
            return json(report);
        }
        let mut text = format!(
            "{} ({}); seed {:016x}\n",
            safe(&report.models.join(", ")),
            report.strategy,
            report.seed
        );
        if let Some(rule) = &report.rule {
            text += &format!("chosen by the rule {}\n", safe(rule));
        }
        let looked_at = report.kept.len() + report.dropped.len();
        text += &format!(
            "{} on offer, {looked_at} looked at, {} may be asked, at most {} before the first token\n\n",
            report.on_offer,
            report.kept.len(),
            report.attempts
        );
        let rows: Vec<_> = report.kept.iter().zip(1..).map(row).collect();
        let head = [
            ("", Right),
            ("seller", Left),
            ("model", Left),
            ("score", Right),
            ("atoms", Right),
            ("first token", Right),
            ("all", Right),
            ("success", Right),
            ("running", Right),
            ("", Left),
        ];
        text += &table(head, &rows);
        if !report.dropped.is_empty() {
            let rows: Vec<_> = report
                .dropped
                .iter()
                .map(|dropped| {
                    let seller = dropped.seller.short();
                    [seller, dropped.model.clone(), dropped.reason.clone()]
                })
                .collect();
            let head = [("left out", Left), ("model", Left), ("why", Left)];
            text.push('\n');
            text += &table(head, &rows);
        }
        text
    }
}

fn row((choice, place): (&RouteChoice, usize)) -> [String; 10] {
    let known = choice.purchases > 0.0;
    [
        place.to_string(),
        choice.seller.short(),
        choice.model.clone(),
        format!("{:.4e}", choice.score),
        choice.cost.to_string(),
        format!("{:.0} ms", choice.first_token_ms),
        format!("{:.1} s", choice.total_ms / 1000.0),
        format!("{:.0} %", choice.success * 100.0),
        choice.in_flight.to_string(),
        match (&choice.standing, known) {
            (Some(standing), _) => standing.clone(),
            (None, false) => "never tried".to_owned(),
            (None, true) => String::new(),
        },
    ]
}
