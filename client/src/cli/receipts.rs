//! `farthing receipts`: of a running gateway, or straight from the books when none runs.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::evidence::{Evidence, Flaw};
use farthing_protocol::history::leaf_of;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::store::{OpenError, Store};
use farthing_protocol::x402::{ChannelId, Network};
use serde::{Deserialize, Serialize};

use crate::cli::remote::{Remote, RemoteError};
use crate::cli::render::{self, View};
use crate::cli::{Failure, request_id};
use crate::client;
use crate::config::Config;
use crate::ledger::{Ledger, LedgerError};
use crate::receipts::Receipts;
use crate::receipts::audit::{Audit, Checked, payment_fault};
use crate::report::calendar::Date;
use crate::report::{
    ActionError, PaymentReport, ReceiptBook, ReceiptPage, ReceiptQuery, ReceiptReport,
};

/// The longest line of a file of receipts.
const LINE: usize = 64 * 1024;
/// The largest file with a proof.
const PROOF: u64 = 256 * 1024;

/// What to do with receipts.
#[derive(Debug, Subcommand)]
pub enum ReceiptsCommand {
    /// Lists the newest
    List {
        /// Only of this channel
        #[arg(long)]
        channel: Option<ChannelId>,
        /// Only of this seller: its id, or the end of it as tables show it
        #[arg(long)]
        seller: Option<String>,
        /// Only of this model
        #[arg(long)]
        model: Option<String>,
        /// Only since then: 7d, 12h, 2026-11-20, 2026-11-20T10:30 (UTC) or milliseconds
        #[arg(long, value_parser = when)]
        since: Option<When>,
        /// Only before then, as `--since`: how the next page is asked for
        #[arg(long, value_parser = when)]
        before: Option<When>,
        /// About so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Shows one
    Show {
        /// The purchase's id, as in the header `x-request-id`
        #[arg(value_parser = request_id)]
        request: RequestId,
    },
    /// Writes them all, with what is needed to check them elsewhere
    Export {
        /// Only of this channel
        #[arg(long)]
        channel: Option<ChannelId>,
        /// JSON lines can be checked by `verify`, CSV is for spreadsheets
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// A new file [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Checks signatures, order, totals and roots, of the own books or of a file
    Verify {
        /// A file that `export` wrote, as JSON lines
        #[arg(long, value_name = "FILE", conflicts_with_all = ["channel", "proof"])]
        file: Option<PathBuf>,
        /// A file that `prove` wrote
        #[arg(long, value_name = "FILE")]
        proof: Option<PathBuf>,
        /// Only this channel
        #[arg(long)]
        channel: Option<ChannelId>,
    },
    /// Writes what a contract needs to believe one receipt, as JSON
    Prove {
        /// The purchase's id
        #[arg(value_parser = request_id)]
        request: RequestId,
        /// A new file [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// How receipts are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A JSON object on each line.
    Jsonl,
    /// A table with a head.
    Csv,
}

/// A moment, or how long ago it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Then.
    At(Timestamp),
    /// So many milliseconds ago.
    Ago(u64),
}

impl When {
    fn on(self, clock: &Clock) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(millis) => Timestamp(clock.now().0.saturating_sub(millis)),
        }
    }
}

/// Why receipts are not shown or not proven.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptsError {
    /// The books cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The books cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What was asked for is not there.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// A file is not what it should be.
    #[error("{}, line {line}: {reason}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A proof does not hold.
    #[error("the proof does not hold: {0}")]
    Flaw(#[from] Flaw),
    /// Receipts do not hold.
    #[error("{0} faults were found")]
    Faults(u64),
}

/// One line of an export: first a channel, then its receipts in order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Book(Box<ReceiptBook>),
    Receipt(Box<ReceiptReport>),
    /// At the end, what was paid over plain HTTP.
    Payment(Box<PaymentReport>),
}

/// A proof as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Proven {
    evidence: Evidence,
    /// The receipt's leaf in the tree.
    leaf: alloy::primitives::B256,
    /// A call of `ReceiptVerifier.verify`.
    calldata: alloy::primitives::Bytes,
}

/// Where the receipts are.
enum Source {
    /// With a running gateway.
    Running(Remote),
    /// In books that nobody has open.
    Still(Ledger, Network),
}

impl Source {
    async fn open(config: &Config) -> Result<Self, Failure> {
        if let Ok(remote) = Remote::new(config) {
            match remote.models().await {
                Err(RemoteError::NotRunning { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(Self::Running(remote)),
            }
        }
        let data_dir = config.data_dir.clone();
        if !Store::is_in(&data_dir) {
            return Err(RemoteError::NotRunning { data_dir }.into());
        }
        let store = Store::open(&data_dir, client::schema()).map_err(ReceiptsError::from)?;
        let ledger = Ledger::open(store).map_err(ReceiptsError::from)?;
        Ok(Self::Still(ledger, client::network(config)))
    }

    async fn page(&self, query: &ReceiptQuery) -> Result<ReceiptPage, Failure> {
        Ok(match self {
            Self::Running(remote) => remote.receipts(query).await?,
            Self::Still(ledger, network) => {
                let page = Receipts::new(ledger, network).page(query);
                page.map_err(ReceiptsError::from)?
            }
        })
    }

    async fn one(&self, request: RequestId) -> Result<ReceiptReport, Failure> {
        Ok(match self {
            Self::Running(remote) => remote.receipt(request).await?,
            Self::Still(ledger, network) => {
                let one = Receipts::new(ledger, network).one(request);
                one.map_err(ReceiptsError::from)?
            }
        })
    }

    async fn payment(&self, request: RequestId) -> Result<PaymentReport, Failure> {
        Ok(match self {
            Self::Running(remote) => remote.payment(request).await?,
            Self::Still(ledger, network) => {
                let one = Receipts::new(ledger, network).payment(request);
                one.map_err(ReceiptsError::from)?
            }
        })
    }

    async fn payments(&self, query: &ReceiptQuery) -> Result<Vec<PaymentReport>, Failure> {
        Ok(match self {
            Self::Running(remote) => remote.payments(query).await?,
            Self::Still(ledger, network) => {
                let all = Receipts::new(ledger, network).payments(query);
                all.map_err(ReceiptsError::from)?
            }
        })
    }

    async fn books(&self) -> Result<Vec<ReceiptBook>, Failure> {
        Ok(match self {
            Self::Running(remote) => remote.books().await?,
            Self::Still(ledger, network) => {
                let books = Receipts::new(ledger, network).books();
                books.map_err(ReceiptsError::from)?
            }
        })
    }

    async fn stretch(&self, id: ChannelId, from: u64) -> Result<Vec<ReceiptReport>, Failure> {
        Ok(match self {
            Self::Running(remote) => remote.stretch(id, from).await?,
            Self::Still(ledger, network) => {
                let stretch = Receipts::new(ledger, network).stretch(id, from);
                stretch.map_err(ReceiptsError::from)?
            }
        })
    }

    async fn evidence(&self, request: RequestId) -> Result<Evidence, Failure> {
        Ok(match self {
            Self::Running(remote) => remote.evidence(request).await?,
            Self::Still(ledger, network) => {
                let evidence = Receipts::new(ledger, network).evidence(request);
                evidence.map_err(ReceiptsError::from)?
            }
        })
    }

    async fn close(self) {
        if let Self::Still(ledger, _) = self {
            ledger.store().stop().await;
        }
    }
}

/// Does what is asked; what there is to say goes to `out`.
///
/// # Errors
/// Any [`Failure`].
pub async fn run(
    config: &Config,
    command: ReceiptsCommand,
    view: &View,
    out: &mut impl Write,
) -> Result<(), Failure> {
    // Files need no books.
    match &command {
        ReceiptsCommand::Verify {
            file: Some(file), ..
        } => return tell(&from_file(file)?, view, out),
        ReceiptsCommand::Verify {
            proof: Some(file), ..
        } => return proof_file(file, out),
        _ => {}
    }
    let source = Source::open(config).await?;
    let done = on(&source, command, view, out).await;
    source.close().await;
    done
}

async fn on(
    source: &Source,
    command: ReceiptsCommand,
    view: &View,
    out: &mut impl Write,
) -> Result<(), Failure> {
    match command {
        ReceiptsCommand::List {
            channel,
            seller,
            model,
            since,
            before,
            limit,
        } => {
            let clock = Clock::system();
            let query = ReceiptQuery {
                channel,
                seller,
                model,
                since: since.map(|when| when.on(&clock)),
                before: before.map(|when| when.on(&clock)),
                limit,
            };
            write(out, &view.receipts(&source.page(&query).await?))
        }
        ReceiptsCommand::Show { request } => match source.one(request).await {
            Ok(held) => write(out, &view.receipt(&held)),
            // One that was bought over HTTP has its own place.
            Err(error) => match source.payment(request).await {
                Ok(held) => write(out, &view.payment(&held)),
                Err(_) => Err(error),
            },
        },
        ReceiptsCommand::Export {
            channel,
            format,
            out: file,
        } => match file {
            Some(file) => {
                let mut writer = BufWriter::new(new_file(&file)?);
                export(source, channel, format, &mut writer).await?;
                let failed = Failure::io(format!("cannot write {}", file.display()));
                let written = writer
                    .into_inner()
                    .map_err(std::io::IntoInnerError::into_error);
                written.and_then(|file| file.sync_all()).map_err(failed)
            }
            None => export(source, channel, format, out).await,
        },
        ReceiptsCommand::Verify { channel, .. } => tell(&own(source, channel).await?, view, out),
        ReceiptsCommand::Prove { request, out: file } => {
            let evidence = source.evidence(request).await?;
            evidence.verify().map_err(ReceiptsError::from)?;
            let proven = Proven {
                leaf: leaf_of(&evidence.signed.receipt),
                calldata: evidence.calldata(),
                evidence,
            };
            let text = render::json(&proven);
            match file {
                Some(file) => write(&mut new_file(&file)?, &text),
                None => write(out, &text),
            }
        }
    }
}

/// A file that nobody else reads. One that is there is not written over.
fn new_file(path: &Path) -> Result<File, Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    made.map_err(Failure::io(format!("cannot make {}", path.display())))
}

fn write(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    let failed = Failure::io("cannot write");
    writeln!(out, "{}", text.trim_end()).map_err(failed)
}

async fn export(
    source: &Source,
    channel: Option<ChannelId>,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Failure> {
    if format == Format::Csv {
        write(out, render::CSV_HEAD)?;
    }
    for book in source.books().await? {
        let (id, mut from) = (book.channel, book.from);
        if channel.is_some_and(|only| only != id) {
            continue;
        }
        if format == Format::Jsonl {
            write(out, &render::json_line(&Line::Book(Box::new(book))))?;
        }
        loop {
            let stretch = source.stretch(id, from).await?;
            let Some(last) = stretch.last() else {
                break;
            };
            from = last.signed.receipt.seq.saturating_add(1);
            for held in stretch {
                match format {
                    Format::Csv => write(out, &render::csv_line(&held))?,
                    Format::Jsonl => {
                        write(out, &render::json_line(&Line::Receipt(Box::new(held))))?
                    }
                }
            }
        }
    }
    let query = ReceiptQuery {
        channel,
        ..ReceiptQuery::default()
    };
    for held in source.payments(&query).await? {
        match format {
            Format::Csv => write(out, &render::csv_payment(&held))?,
            Format::Jsonl => write(out, &render::json_line(&Line::Payment(Box::new(held))))?,
        }
    }
    Ok(())
}

/// Checks the receipts in the books.
async fn own(source: &Source, channel: Option<ChannelId>) -> Result<Checked, Failure> {
    let mut verdicts = Vec::new();
    for book in source.books().await? {
        let (id, mut from) = (book.channel, book.from);
        if channel.is_some_and(|only| only != id) {
            continue;
        }
        let mut audit = Audit::of(book);
        loop {
            let stretch = source.stretch(id, from).await?;
            let Some(last) = stretch.last() else {
                break;
            };
            from = last.signed.receipt.seq.saturating_add(1);
            stretch.iter().for_each(|held| audit.take(held));
        }
        verdicts.push(audit.end());
    }
    let query = ReceiptQuery {
        channel,
        ..ReceiptQuery::default()
    };
    let payments = source.payments(&query).await?;
    let payments = payments.iter().filter_map(payment_fault).collect();
    Ok(Checked { verdicts, payments })
}

/// Checks the receipts in a file, by what the file itself says of their channels.
fn from_file(path: &Path) -> Result<Checked, Failure> {
    let failed = || Failure::io(format!("cannot read {}", path.display()));
    let mut reader = BufReader::new(File::open(path).map_err(failed())?);
    let (mut checked, mut audit) = (Checked::default(), None::<Audit>);
    let (mut line, mut number) = (Vec::new(), 0_u64);
    loop {
        line.clear();
        number = number.saturating_add(1);
        let wrong = |reason: String| ReceiptsError::Line {
            file: path.to_owned(),
            line: number,
            reason,
        };
        let mut bounded = reader.by_ref().take(LINE as u64);
        if bounded.read_until(b'\n', &mut line).map_err(failed())? == 0 {
            break;
        }
        if line.len() >= LINE {
            return Err(wrong("it is too long to be a receipt".to_owned()).into());
        }
        match serde_json::from_slice(&line).map_err(|error| wrong(error.to_string()))? {
            Line::Book(book) => checked
                .verdicts
                .extend(audit.replace(Audit::of(*book)).map(Audit::end)),
            Line::Payment(held) => checked.payments.extend(payment_fault(&held)),
            Line::Receipt(held) => audit
                .as_mut()
                .ok_or_else(|| wrong("a receipt before its channel".to_owned()))?
                .take(&held),
        }
    }
    checked.verdicts.extend(audit.map(Audit::end));
    Ok(checked)
}

/// Says what was found; faults are a failure.
fn tell(checked: &Checked, view: &View, out: &mut impl Write) -> Result<(), Failure> {
    write(out, &view.checked(checked))?;
    match checked.faults() {
        0 => Ok(()),
        faults => Err(ReceiptsError::Faults(faults).into()),
    }
}

/// Checks a proof that `prove` wrote.
fn proof_file(path: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let failed = || Failure::io(format!("cannot read {}", path.display()));
    let file = File::open(path).map_err(failed())?;
    let mut bytes = Vec::new();
    file.take(PROOF).read_to_end(&mut bytes).map_err(failed())?;
    let proven: Proven = serde_json::from_slice(&bytes).map_err(|error| ReceiptsError::Line {
        file: path.to_owned(),
        line: error.line() as u64,
        reason: error.to_string(),
    })?;
    proven.evidence.verify().map_err(ReceiptsError::from)?;
    if proven.calldata != proven.evidence.calldata() {
        let reason = "its calldata is not that of its evidence".to_owned();
        let (file, line) = (path.to_owned(), 0);
        return Err(ReceiptsError::Line { file, line, reason }.into());
    }
    let receipt = &proven.evidence.signed.receipt;
    let text = format!(
        "The proof holds: receipt {} of channel {} is one of the first {} that buyer and seller have signed for.",
        receipt.seq, receipt.channel, proven.evidence.root.root.count
    );
    write(out, &text)
}

/// A moment as people write it.
fn when(text: &str) -> Result<When, String> {
    let wrong =
        || "write it as 7d, 12h, 30m, 2026-11-20, 2026-11-20T10:30 or milliseconds".to_owned();
    let number = |digits: &str| digits.parse::<u64>().map_err(|_| wrong());
    for (unit, millis) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ] {
        if let Some(digits) = text.strip_suffix(unit) {
            return Ok(When::Ago(number(digits)?.saturating_mul(millis)));
        }
    }
    let Some((date, time)) = text
        .split_once('T')
        .or(text.contains('-').then_some((text, "0:0")))
    else {
        return Ok(When::At(Timestamp(number(text)?)));
    };
    let parts = |text: &str, sign: char| -> Result<Vec<u64>, String> {
        text.trim_end_matches('Z').split(sign).map(number).collect()
    };
    let (date, time) = (parts(date, '-')?, parts(time, ':')?);
    let ([year, month @ 1..=12, day @ 1..=31], [hour @ 0..=23, minute @ 0..=59, rest @ ..]) =
        (date.as_slice(), time.as_slice())
    else {
        return Err(wrong());
    };
    let second = rest.first().copied().unwrap_or(0);
    if !(1970..=9999).contains(year) || second > 59 || rest.len() > 1 {
        return Err(wrong());
    }
    let date = Date {
        year: *year,
        month: *month,
        day: *day,
    };
    let seconds = (date.days() * 24 + hour) * 3600 + minute * 60 + second;
    Ok(When::At(Timestamp(seconds * 1000)))
}

#[cfg(test)]
mod tests;
