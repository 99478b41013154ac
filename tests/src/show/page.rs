//! A terminal as a page: titles, lines, text that flows, and what is being waited for.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::show::Table;

/// What stands in front of every line.
const MARGIN: &str = "  ";
/// Flowing text is broken before this column.
const WIDTH: usize = 88;

/// A page. Clones write on the same one.
#[derive(Clone)]
pub struct Page(Arc<Mutex<Sheet>>);

struct Sheet {
    out: Box<dyn Write + Send>,
    /// Titles are bold, asides dim.
    styled: bool,
    /// Since when something is waited for.
    waiting: Option<Instant>,
    /// The column that flowing text is at, 0 at the start of a line.
    column: usize,
    /// Letters of a word that is not whole yet.
    word: String,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

impl Page {
    /// The terminal, or whatever standard output is.
    #[must_use]
    pub fn stdout() -> Self {
        let out = io::stdout();
        let styled = out.is_terminal();
        Self::on(Box::new(out), styled)
    }

    /// A page on anything.
    #[must_use]
    pub fn on(out: Box<dyn Write + Send>, styled: bool) -> Self {
        Self(Arc::new(Mutex::new(Sheet {
            out,
            styled,
            waiting: None,
            column: 0,
            word: String::new(),
        })))
    }

    fn sheet(&self) -> MutexGuard<'_, Sheet> {
        // What is on a page after a panic is still a page.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A section begins.
    ///
    /// # Errors
    /// When the page cannot be written on; so for every method.
    pub fn title(&self, title: &str) -> io::Result<()> {
        let mut sheet = self.sheet();
        sheet.settle()?;
        let (bold, plain) = sheet.style("\x1b[1m");
        writeln!(sheet.out, "\n{bold}{title}{plain}")?;
        sheet.out.flush()
    }

    /// One line.
    ///
    /// # Errors
    /// See [`Page::title`].
    pub fn line(&self, line: &str) -> io::Result<()> {
        let mut sheet = self.sheet();
        sheet.settle()?;
        match line {
            "" => writeln!(sheet.out)?,
            line => writeln!(sheet.out, "{MARGIN}{line}")?,
        }
        sheet.out.flush()
    }

    /// A remark beside the story, broken into lines.
    ///
    /// # Errors
    /// See [`Page::title`].
    pub fn aside(&self, remark: &str) -> io::Result<()> {
        let mut sheet = self.sheet();
        sheet.settle()?;
        let (dim, plain) = sheet.style("\x1b[2m");
        write!(sheet.out, "{dim}")?;
        for word in remark.split(' ') {
            sheet.word.push_str(word);
            sheet.put_word()?;
        }
        write!(sheet.out, "{plain}")?;
        sheet.paragraph()?;
        sheet.out.flush()
    }

    /// A table.
    ///
    /// # Errors
    /// See [`Page::title`].
    pub fn table(&self, table: &Table) -> io::Result<()> {
        let mut sheet = self.sheet();
        sheet.settle()?;
        let (dim, plain) = sheet.style("\x1b[2m");
        let mut lines = table.lines();
        if let Some(head) = lines.next() {
            writeln!(sheet.out, "{MARGIN}{dim}{head}{plain}")?;
        }
        for line in lines {
            writeln!(sheet.out, "{MARGIN}{line}")?;
        }
        sheet.out.flush()
    }

    /// Says what is waited for, until the next word on the page.
    ///
    /// # Errors
    /// See [`Page::title`].
    pub fn waiting(&self, what: &str) -> io::Result<()> {
        let mut sheet = self.sheet();
        sheet.settle()?;
        write!(sheet.out, "{MARGIN}waiting for {what} ")?;
        sheet.waiting = Some(Instant::now());
        sheet.out.flush()
    }

    /// A piece of a text that flows over the page as it comes; words are kept whole.
    ///
    /// # Errors
    /// See [`Page::title`].
    pub fn flow(&self, piece: &str) -> io::Result<()> {
        let mut sheet = self.sheet();
        if sheet.waiting.is_some() {
            sheet.settle()?;
        }
        for letter in piece.chars() {
            match letter {
                '\n' => sheet.paragraph()?,
                ' ' => sheet.put_word()?,
                // Nothing a model says may move the cursor.
                other if other.is_control() => {}
                other => sheet.word.push(other),
            }
        }
        sheet.out.flush()
    }
}

impl Sheet {
    fn style(&self, code: &'static str) -> (&'static str, &'static str) {
        if self.styled {
            (code, "\x1b[0m")
        } else {
            ("", "")
        }
    }

    /// Ends whatever does not end in a line break.
    fn settle(&mut self) -> io::Result<()> {
        if let Some(since) = self.waiting.take() {
            let seconds = since.elapsed().as_secs_f64();
            writeln!(self.out, "... {seconds:.2} s")?;
        }
        self.paragraph()
    }

    fn paragraph(&mut self) -> io::Result<()> {
        self.put_word()?;
        if self.column > 0 {
            writeln!(self.out)?;
            self.column = 0;
        }
        Ok(())
    }

    fn put_word(&mut self) -> io::Result<()> {
        let word = std::mem::take(&mut self.word);
        if word.is_empty() {
            return Ok(());
        }
        let width = word.chars().count();
        if self.column > 0 && self.column + 1 + width > WIDTH {
            writeln!(self.out)?;
            self.column = 0;
        }
        let before = if self.column == 0 { MARGIN } else { " " };
        write!(self.out, "{before}{word}")?;
        self.column += before.len() + width;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flowing_text_keeps_its_words_whole_and_its_paragraphs() {
        let paper = Paper::default();
        let page = Page::on(Box::new(paper.clone()), false);
        page.flow("Once up").expect("writes");
        page.flow("on a time.\n\nThe\u{1b}[2J end").expect("writes");
        page.title("Next").expect("writes");
        let written = String::from_utf8(paper.0.lock().expect("not poisoned").clone());
        assert_eq!(
            written.expect("text"),
            "  Once upon a time.\n  The[2J end\n\nNext\n"
        );
    }
}
