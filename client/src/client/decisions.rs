//! The record of the router's decisions: lines of JSON in a file in the data directory, bounded,
//! written by a task off the way of every purchase. What the task cannot keep up with is left out.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::router::record::Line;

/// The record's name within the data directory, and that of its older half.
pub const FILE: &str = "decisions.jsonl";
/// The older half.
pub const OLDER: &str = "decisions.1.jsonl";
/// Lines that wait to be written.
const WAITING: usize = 256;
/// Lines written at once.
const TOGETHER: usize = 64;
/// The most bytes of either half, whatever sellers write into their offers.
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// The handle.
#[derive(Debug)]
pub(in crate::client) struct Decisions(Option<mpsc::Sender<Line>>);

/// The living part. It ends when its token is cancelled; what waits is written first.
pub(in crate::client) struct Writer {
    lines: mpsc::Receiver<Line>,
    pages: Option<Pages>,
}

/// Two files that hold so many decisions, the newer and the older half.
struct Pages {
    dir: PathBuf,
    half: u32,
    most_bytes: u64,
    written: u32,
    bytes: u64,
}

impl Decisions {
    /// A record of at most so many decisions; none are recorded for 0.
    pub(in crate::client) fn new(dir: &Path, most: u32) -> (Self, Writer) {
        let (sender, lines) = mpsc::channel(WAITING);
        let pages = (most > 0).then(|| Pages::open(dir, most));
        let handle = Self(pages.is_some().then_some(sender));
        (handle, Writer { lines, pages })
    }

    /// Whether decisions are recorded.
    pub(in crate::client) const fn wanted(&self) -> bool {
        self.0.is_some()
    }

    pub(in crate::client) fn note(&self, line: Line) {
        if let Some(sender) = &self.0
            && sender.try_send(line).is_err()
        {
            tracing::debug!("a decision is not recorded: too many wait");
        }
    }
}

impl Writer {
    pub(in crate::client) async fn run(mut self, stop: CancellationToken) {
        let Some(mut pages) = self.pages.take() else {
            return;
        };
        let mut lines = Vec::with_capacity(TOGETHER);
        loop {
            tokio::select! {
                biased;
                read = self.lines.recv_many(&mut lines, TOGETHER) => if read == 0 { return },
                () = stop.cancelled() => return,
            }
            let batch = std::mem::take(&mut lines);
            let written = tokio::task::spawn_blocking(move || {
                let result = pages.write(&batch);
                (pages, result)
            });
            match written.await {
                Ok((same, result)) => {
                    pages = same;
                    if let Err(error) = result {
                        tracing::warn!(%error, "decisions cannot be recorded");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the record of decisions was lost");
                    return;
                }
            }
        }
    }
}

impl Pages {
    fn open(dir: &Path, most: u32) -> Self {
        let written = File::open(dir.join(FILE)).map_or(0, |file| {
            let lines = BufReader::new(file).lines().map_while(Result::ok);
            lines
                .filter(|line| line.starts_with("{\"decision\""))
                .count()
        });
        Self {
            dir: dir.to_owned(),
            half: most.div_ceil(2),
            most_bytes: MOST_BYTES,
            written: u32::try_from(written).unwrap_or(u32::MAX),
            bytes: fs::metadata(dir.join(FILE)).map_or(0, |file| file.len()),
        }
    }

    fn write(&mut self, lines: &[Line]) -> std::io::Result<()> {
        let mut text = Vec::new();
        for line in lines {
            if matches!(line, Line::Decision(_)) {
                let bytes = self.bytes.saturating_add(text.len() as u64);
                if self.written >= self.half || bytes >= self.most_bytes {
                    self.append(&text)?;
                    text.clear();
                    fs::rename(self.dir.join(FILE), self.dir.join(OLDER))?;
                    (self.written, self.bytes) = (0, 0);
                }
                self.written += 1;
            }
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        self.append(&text)
    }

    fn append(&mut self, text: &[u8]) -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let path = self.dir.join(FILE);
        let mut file = options.append(true).create(true).mode(0o600).open(path)?;
        file.write_all(text)?;
        self.bytes = self.bytes.saturating_add(text.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use farthing_protocol::clock::Timestamp;
    use farthing_protocol::purchase::Endpoint;

    use super::*;
    use crate::config::Config;
    use crate::policy::Terms;
    use crate::router::record::Decision;

    fn decision() -> Line {
        let body = Bytes::from_static(br#"{"model":"a/b","messages":["secret"]}"#);
        let terms = Terms::of(Endpoint::Chat, &body, &Config::default()).expect("accepted");
        Line::Decision(Box::new(Decision::draft(&terms, &[], Timestamp(1), 0)))
    }

    fn count(path: &Path) -> usize {
        fs::read_to_string(path).map_or(0, |text| text.lines().count())
    }

    #[test]
    fn a_record_is_bounded_and_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let (newer, older) = (dir.path().join(FILE), dir.path().join(OLDER));
        for _ in 0..10 {
            let mut pages = Pages::open(dir.path(), 6);
            pages.write(&[decision(), decision()]).expect("is written");
            assert!(count(&newer) <= 3 && count(&older) <= 3);
        }
        assert_eq!(count(&newer) + count(&older), 5);
        let text = fs::read_to_string(newer).expect("is read");
        assert!(!text.contains("secret"));
    }

    #[test]
    fn a_record_is_bounded_in_bytes_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut pages = Pages::open(dir.path(), 1000);
        pages.most_bytes = 4000;
        let one = serde_json::to_vec(&decision()).expect("is written").len() as u64;
        for _ in 0..50 {
            pages.write(&[decision()]).expect("is written");
            for file in [FILE, OLDER] {
                let bytes = fs::metadata(dir.path().join(file)).map_or(0, |file| file.len());
                assert!(bytes <= 4000 + one + 1, "{bytes}");
            }
        }
        assert!(count(&dir.path().join(FILE)) > 0);
    }

    #[tokio::test]
    async fn what_waits_is_written_before_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let (decisions, writer) = Decisions::new(dir.path(), 100);
        for _ in 0..5 {
            decisions.note(decision());
        }
        let stop = CancellationToken::new();
        stop.cancel();
        writer.run(stop).await;
        assert_eq!(count(&dir.path().join(FILE)), 5);
        let (none, _) = Decisions::new(dir.path(), 0);
        assert!(!none.wanted());
    }
}
