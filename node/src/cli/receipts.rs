//! What was sold: the newest as a table, or all as lines.

use std::io::{self, Write};
use std::path::Path;

use alloy::primitives::B256;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::x402::ChannelId;

use crate::cli::control::{self, ControlError, Question};
use crate::cli::show::span;
use crate::cli::table::Table;
use crate::report::{Sold, SoldPage};

/// Why not all was written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The running node.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Where it is written to.
    #[error("cannot write receipts: {0}")]
    Write(#[from] io::Error),
}

/// The newest, by how long ago they ended.
pub(super) fn list(page: &SoldPage, now: Timestamp) -> String {
    if page.sold.is_empty() {
        return "Nothing was sold yet.\n".to_owned();
    }
    let mut table = Table::new(&[
        "ago", "door", "payer", "model", "in", "out", "charged", "ended", "channel", "seq",
    ]);
    for sold in &page.sold {
        table.row(row(sold, page, now));
    }
    table.show()
}

fn row(sold: &Sold, page: &SoldPage, now: Timestamp) -> [String; 10] {
    let receipt = &sold.signed.receipt;
    [
        span(now.since(receipt.finished)),
        sold.door.clone(),
        sold.payer.map_or("?".to_owned(), |payer| payer.to_string()),
        sold.model
            .clone()
            .unwrap_or_else(|| "no longer sold".to_owned()),
        receipt.usage.prompt.to_string(),
        receipt.usage.completion.to_string(),
        page.token.show(receipt.charged),
        format!("{:?}", receipt.ending).to_lowercase(),
        receipt.channel.short(),
        receipt.seq.to_string(),
    ]
}

/// Writes all as lines of JSON, a page at a time, and returns how many there were. The books go on
/// meanwhile: what is sold while it is written may be among them or not.
pub(super) async fn export(data_dir: &Path, to: &mut dyn Write) -> Result<u64, ExportError> {
    let (mut place, mut count) = ((ChannelId(B256::ZERO), 0), 0_u64);
    loop {
        let page: SoldPage = control::ask(data_dir, Question::After(place.0, place.1)).await?;
        let Some(last) = page.sold.last().map(|sold| &sold.signed.receipt) else {
            to.flush()?;
            return Ok(count);
        };
        let next = (last.channel, last.seq);
        if next <= place && count > 0 {
            // A node that goes in circles would keep us for ever.
            return Err(ControlError::Malformed.into());
        }
        place = next;
        for sold in &page.sold {
            let line = serde_json::to_string(sold).map_err(io::Error::from)?;
            writeln!(to, "{line}")?;
            count = count.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Path as Segments;
    use axum::routing::get;
    use axum::{Json, Router};
    use farthing_protocol::amount::Amount;
    use farthing_protocol::offer::OfferHash;
    use farthing_protocol::purchase::{Ending, RequestId, Usage};
    use farthing_protocol::receipt::Receipt;
    use farthing_protocol::testing;
    use tokio::net::UnixListener;

    use super::*;
    use crate::control::SOCKET;
    use crate::report::Token;

    fn sold(seq: u64) -> Sold {
        let receipt = Receipt {
            channel: ChannelId(B256::repeat_byte(7)),
            seq,
            request: RequestId(B256::ZERO),
            request_hash: B256::ZERO,
            response_hash: B256::ZERO,
            model_hash: B256::ZERO,
            offer: OfferHash(B256::ZERO),
            usage: Usage {
                prompt: 12,
                cached: 0,
                completion: 30,
            },
            charged: Amount::atoms(1_500_000),
            cumulative: Amount::atoms(1_500_000),
            started: Timestamp(0),
            finished: Timestamp(1_000),
            ending: Ending::Complete,
        };
        Sold {
            payer: Some(testing::evm_key(9).address()),
            door: "http exact".to_owned(),
            model: None,
            signed: receipt.sign(&testing::node_key(1)),
        }
    }

    fn page(seqs: std::ops::Range<u64>) -> SoldPage {
        SoldPage {
            token: Token {
                address: alloy::primitives::Address::ZERO,
                symbol: "USDC".into(),
                decimals: 6,
            },
            sold: seqs.map(sold).collect(),
        }
    }

    #[test]
    fn a_sale_is_one_line_that_says_to_whom_and_through_which_door() {
        let text = list(&page(0..1), Timestamp(61_000));
        let line = text.lines().nth(1).expect("a row");
        for part in [
            "1m 0s",
            "http exact",
            &testing::evm_key(9).address().to_string(),
            "no longer sold",
            "1.500000 USDC",
            "complete",
            "07070707",
        ] {
            assert!(line.contains(part), "{part}\n{text}");
        }
        assert_eq!(list(&page(0..0), Timestamp(0)), "Nothing was sold yet.\n");
    }

    #[tokio::test]
    async fn an_export_reads_every_page_and_ends_and_no_circle_keeps_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let answer = |Segments((_, seq)): Segments<(B256, u64)>| async move {
            let next = if seq == 0 { 1 } else { seq + 1 };
            Json(page(next..(next + 2).min(6)))
        };
        let routes = Router::new().route("/receipts/after/{channel}/{seq}", get(answer));
        let listener = UnixListener::bind(dir.path().join(SOCKET)).expect("binds");
        tokio::spawn(axum::serve(listener, routes).into_future());
        let mut written = Vec::new();
        let count = export(dir.path(), &mut written).await.expect("exports");
        assert_eq!(count, 5);
        let text = String::from_utf8(written).expect("text");
        let seqs = text.lines().map(|line| {
            let sold: Sold = serde_json::from_str(line).expect("a line");
            let good = sold.signed.clone().verify(testing::node_key(1).id());
            assert!(good.is_ok(), "signed by the node");
            sold.signed.receipt.seq
        });
        assert_eq!(seqs.collect::<Vec<_>>(), [1, 2, 3, 4, 5]);

        let other = tempfile::tempdir().expect("a directory");
        let circle = Router::new().route(
            "/receipts/after/{channel}/{seq}",
            get(|| async { Json(page(1..3)) }),
        );
        let listener = UnixListener::bind(other.path().join(SOCKET)).expect("binds");
        tokio::spawn(axum::serve(listener, circle).into_future());
        let ended = export(other.path(), &mut Vec::new()).await;
        assert!(matches!(
            ended,
            Err(ExportError::Control(ControlError::Malformed))
        ));
    }
}
