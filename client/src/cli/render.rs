//! Reports as text that reads well in a terminal. Pure; a seller's words are shown without the
//! control characters that could move a cursor.

mod receipts;
mod sellers;
mod route;

use std::path::Path;

use farthing_protocol::amount::Amount;
use serde::Serialize;

use crate::cli::chat::Bill;
pub use crate::cli::render::receipts::{CSV_HEAD, csv_line, csv_payment, json_line};
use crate::config::Chain;
use crate::report::calendar::moment;
use crate::report::{
    ActionReport, ApprovalReport, ChannelPhase, ChannelReport, DraftReport, InitReport,
    ModelListing, OfferReport, Permit2Report, Spending, Token, WalletReport,
};

/// How reports are shown.
#[derive(Debug, Clone)]
pub struct View {
    /// The token amounts are in.
    pub token: Token,
    /// JSON instead of tables.
    pub json: bool,
}

/// The token of a chain.
#[must_use]
pub fn token(chain: &Chain) -> Token {
    Token {
        address: chain.token,
        symbol: chain.token_symbol.clone(),
        decimals: chain.token_decimals,
    }
}

/// A text without control characters, but for line breaks and tabs.
#[must_use]
pub fn safe(text: &str) -> String {
    let shown = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(shown).collect()
}

/// On which side of its column a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}
use Side::{Left, Right};

/// A table with two spaces between its columns.
fn table<const N: usize>(head: [(&str, Side); N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows
        .iter()
        .map(|row| {
            row.each_ref()
                .map(|cell| safe(cell).replace(['\n', '\t'], " "))
        })
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(head[column].0.chars().count())
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let width = widths[column];
            let padded = match head[column].1 {
                Left => format!("{cell:<width$}"),
                Right => format!("{cell:>width$}"),
            };
            line += &padded;
            line += "  ";
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = line(head.map(|(name, _)| name));
    for row in &rows {
        text += &line(row.each_ref().map(String::as_str));
    }
    text
}

/// Lines of names and values.
fn sheet(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or(0) + 2;
    let line = |(name, value): &(&str, String)| format!("{name:<width$}{}\n", safe(value));
    lines.iter().map(line).collect()
}

/// A report as JSON.
#[must_use]
pub fn json(report: &impl Serialize) -> String {
    serde_json::to_string_pretty(report).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

impl View {
    /// Atoms and units of the token.
    fn both(&self, amount: Amount) -> String {
        format!("{} ({amount} atoms)", self.token.show(amount))
    }

    fn of(&self, spending: Spending) -> String {
        let limit = self.token.show(spending.limit);
        format!("{} of {limit}", self.both(spending.spent))
    }

    /// The models on offer.
    #[must_use]
    pub fn models(&self, models: &[ModelListing]) -> String {
        if self.json {
            return json(&models);
        }
        if models.is_empty() {
            return "No model is on offer now.\n".into();
        }
        let row = |model: &ModelListing| {
            [
                model.id.clone(),
                model.sellers.to_string(),
                self.token.show_price(model.cheapest.input),
                self.token.show_price(model.cheapest.output),
                model.context.to_string(),
                list(&model.endpoints),
            ]
        };
        let rows: Vec<_> = models.iter().map(row).collect();
        let head = [
            ("MODEL", Left),
            ("SELLERS", Right),
            ("INPUT FROM", Right),
            ("OUTPUT FROM", Right),
            ("CONTEXT", Right),
            ("ENDPOINTS", Left),
        ];
        table(head, &rows)
    }

    /// Every offer of every model.
    #[must_use]
    pub fn offers(&self, offers: &[OfferReport]) -> String {
        if self.json {
            return json(&offers);
        }
        if offers.is_empty() {
            return "No offer was heard yet.\n".into();
        }
        let row = |offer: &OfferReport| {
            let measured = offer.measured.as_ref();
            let speed = measured.and_then(|m| m.tokens_per_second);
            [
                offer.model.clone(),
                offer.seller.short(),
                self.token.show_price(offer.prices.input),
                self.token.show_price(offer.prices.output),
                offer.slots.to_string(),
                or_dash(
                    measured
                        .and_then(|m| m.first_token_ms)
                        .map(|ms| format!("{ms} ms")),
                ),
                or_dash(speed.map(|speed| format!("{speed:.0}/s"))),
                or_dash(measured.map(|m| format!("{:.0} %", m.success * 100.0))),
                or_dash(offer.region.clone()),
            ]
        };
        let rows: Vec<_> = offers.iter().map(row).collect();
        let head = [
            ("MODEL", Left),
            ("SELLER", Left),
            ("INPUT", Right),
            ("OUTPUT", Right),
            ("SLOTS", Right),
            ("FIRST TOKEN", Right),
            ("TOKENS", Right),
            ("SUCCESS", Right),
            ("REGION", Left),
        ];
        table(head, &rows)
    }

    /// The wallet.
    #[must_use]
    pub fn wallet(&self, wallet: &WalletReport) -> String {
        if self.json {
            return json(wallet);
        }
        let view = Self {
            token: wallet.token.clone(),
            json: false,
        };
        let unknown = || "unknown: the chain does not answer".to_owned();
        sheet(&[
            (
                "payer",
                format!("{} (send {} here)", wallet.payer, wallet.token.symbol),
            ),
            ("voucher key", wallet.authorizer.to_string()),
            ("chain", wallet.chain_id.to_string()),
            ("token", wallet.token.address.to_string()),
            (
                "balance",
                wallet
                    .balance
                    .map_or_else(unknown, |balance| view.both(balance)),
            ),
            ("in channels", view.both(wallet.in_channels)),
            ("spent today", view.of(wallet.today)),
            ("spent in all", view.of(wallet.total)),
            (
                "per purchase",
                format!("at most {}", view.both(wallet.per_purchase)),
            ),
            (
                "per seller",
                format!("at most {} a day", view.both(wallet.per_seller)),
            ),
            (
                "per model",
                format!("at most {} a day", view.both(wallet.per_model)),
            ),
            ("approval", view.approval_rule(wallet)),
        ])
    }

    fn approval_rule(&self, wallet: &WalletReport) -> String {
        match wallet.approve_above {
            None => "nothing wants a yes".to_owned(),
            Some(above) => format!(
                "over {}; {} waiting (`farthing wallet approvals`)",
                self.both(above),
                wallet.waiting
            ),
        }
    }

    /// A deposit to be signed elsewhere: what to sign, and what to do with the signature.
    #[must_use]
    pub fn draft(&self, draft: &DraftReport) -> String {
        if self.json {
            return json(draft);
        }
        format!(
            "{}\n\nThe payer {} deposits {} into channel {}.\nHave it sign the above (eth_signTypedData_v4), then, before {}:\n  farthing wallet deposit --import {} --signature 0x…\n",
            json(&draft.typed_data),
            draft.payer,
            self.token.show(draft.amount),
            draft.channel,
            moment(draft.until),
            draft.id,
        )
    }

    /// What Permit2 may move.
    #[must_use]
    pub fn permit2(&self, report: &Permit2Report) -> String {
        if self.json {
            return json(report);
        }
        format!(
            "Permit2 may move {} of the payer {}, by payments it signs.\nTransaction {}\n",
            self.token.show(report.allowed),
            report.payer,
            report.transaction,
        )
    }

    /// The purchases that want a person's word.
    #[must_use]
    pub fn approvals(&self, approvals: &[ApprovalReport]) -> String {
        if self.json {
            return json(&approvals);
        }
        if approvals.is_empty() {
            return "No purchase waits for a yes.\n".into();
        }
        let row = |report: &ApprovalReport| {
            let approval = &report.approval;
            [
                report.id.to_string().chars().take(10).collect(),
                moment(approval.asked),
                approval.model.clone(),
                self.token.show(approval.max_cost),
                format!("{:?}", approval.word).to_lowercase(),
                moment(approval.until),
            ]
        };
        let rows: Vec<_> = approvals.iter().map(row).collect();
        let head = [
            ("PURCHASE", Left),
            ("ASKED", Left),
            ("MODEL", Left),
            ("AT MOST", Right),
            ("WORD", Left),
            ("UNTIL", Left),
        ];
        table(head, &rows)
    }

    /// The channels.
    #[must_use]
    pub fn channels(&self, channels: &[ChannelReport]) -> String {
        if self.json {
            return json(&channels);
        }
        if channels.is_empty() {
            return "No channel is open; the first purchase opens one.\n".into();
        }
        let row = |channel: &ChannelReport| {
            [
                channel.id.to_string(),
                channel.seller.short(),
                phase(channel.phase),
                self.token.show(channel.balance),
                self.token.show(channel.charged),
                self.token.show(channel.claimed),
                channel.receipts.to_string(),
            ]
        };
        let rows: Vec<_> = channels.iter().map(row).collect();
        let head = [
            ("CHANNEL", Left),
            ("SELLER", Left),
            ("STATE", Left),
            ("DEPOSITED", Right),
            ("CHARGED", Right),
            ("CLAIMED", Right),
            ("RECEIPTS", Right),
        ];
        table(head, &rows)
    }

    /// What an action did.
    #[must_use]
    pub fn action(&self, report: &ActionReport) -> String {
        if self.json {
            return json(report);
        }
        let mut text = safe(&report.message) + "\n";
        if let Some(transaction) = &report.transaction {
            text += &format!("transaction {}\n", safe(transaction));
        }
        text + &self.channels(std::slice::from_ref(&report.channel))
    }
}

fn phase(phase: ChannelPhase) -> String {
    match phase {
        ChannelPhase::Opening => "opening".into(),
        ChannelPhase::Open => "open".into(),
        ChannelPhase::Withdrawing { ready, .. } => format!("withdrawing until {}", moment(ready)),
        ChannelPhase::Closed => "closed".into(),
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    items.join(", ")
}

/// What an answer cost, in one line, and why its seller was chosen.
#[must_use]
pub fn bill(token: &Token, model: &str, bill: &Bill, why: &str) -> String {
    let line = format!(
        "{model} from {} for {} ({} atoms), receipt {}, request {}",
        bill.seller,
        token.show(bill.charged),
        bill.charged,
        bill.receipt_seq,
        bill.request,
    );
    let why = if why.is_empty() {
        String::new()
    } else {
        format!("\nchosen: {why}")
    };
    safe(&(line + &why))
}

/// What `init` made, and what to do next.
#[must_use]
pub fn init(report: &InitReport, chain_id: u64, file: &Path, written: bool) -> String {
    let word = if written { "written" } else { "kept as it was" };
    let next = format!(
        "\nSend {} (token {} on chain {chain_id}) to the payer, then run `farthing gateway`.\n",
        report.token.symbol, report.token.address
    );
    sheet(&[
        ("configuration", format!("{} ({word})", file.display())),
        ("node", report.node.to_string()),
        ("payer", report.payer.to_string()),
        ("voucher key", report.authorizer.to_string()),
    ]) + &next
}
