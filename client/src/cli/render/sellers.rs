//! What is believed of sellers, as a table.

use farthing_protocol::amount::Amount;

use crate::cli::render::Side::{Left, Right};
use crate::cli::render::{View, json, or_dash, table};
use crate::report::SellerReport;

impl View {
    /// What is believed of sellers, and why.
    #[must_use]
    pub fn sellers(&self, sellers: &[SellerReport]) -> String {
        if self.json {
            return json(&sellers);
        }
        if sellers.is_empty() {
            return "Nothing is known of any seller yet.\n".into();
        }
        let row = |report: &SellerReport| {
            let own = report.served > 0 || report.failed > 0 || report.disputed > 0;
            let word = report.word.filter(|word| word.payers > 0);
            [
                report.seller.short(),
                report.model.clone(),
                format!("{:.0} %", report.success * 100.0),
                self.token.show(report.credit),
                or_dash(own.then(|| report.served.to_string())),
                or_dash(own.then(|| (report.failed.saturating_add(report.broken)).to_string())),
                or_dash(own.then(|| report.invalid.to_string())),
                or_dash(own.then(|| report.disputed.to_string())),
                or_dash(word.map(|word| {
                    let share = word.quality * 100.0;
                    let behind = self.token.show(atoms(word.value));
                    format!("{share:.0} % by {}, {behind}", word.payers)
                })),
            ]
        };
        let rows: Vec<_> = sellers.iter().map(row).collect();
        let head = [
            ("SELLER", Left),
            ("MODEL", Left),
            ("BELIEVED", Right),
            ("CREDIT", Right),
            ("GOOD", Right),
            ("FAILED", Right),
            ("INVALID", Right),
            ("FALSE", Right),
            ("OTHERS SAY", Left),
        ];
        let whys = sellers
            .iter()
            .filter(|_| sellers.len() == 1)
            .map(|report| format!("{}\n", report.why));
        table(head, &rows) + &whys.collect::<String>()
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shown to people"
)]
const fn atoms(value: f64) -> Amount {
    Amount::atoms(value as u128)
}
