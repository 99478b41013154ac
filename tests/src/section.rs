//! A part of a page that a program writes: between two marks, and nothing else is touched.

use std::io;
use std::path::Path;

/// The page of figures.
pub const BENCHMARKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md");

/// A part of a page.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// What writes it, as in `make NAME`.
    pub name: &'static str,
}

impl Section {
    fn marks(self) -> (String, String) {
        let name = self.name;
        (
            format!("<!-- {name}: begin, written by `make {name}` -->"),
            format!("<!-- {name}: end -->"),
        )
    }

    /// Replaces the figures in a file, or begins it.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn write(self, path: &Path, figures: &str) -> io::Result<()> {
        let page = match std::fs::read_to_string(path) {
            Ok(page) => page,
            Err(error) if error.kind() == io::ErrorKind::NotFound => "# Benchmarks\n".to_owned(),
            Err(error) => return Err(error),
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, self.placed(&page, figures))
    }

    /// The page with these figures between the marks; at its end when it has none.
    #[must_use]
    pub fn placed(self, page: &str, figures: &str) -> String {
        let (begin, end) = self.marks();
        let figures = format!("{begin}\n\n{}\n\n{end}", figures.trim());
        match (page.split_once(&begin), page.split_once(&end)) {
            (Some((before, _)), Some((_, after))) => format!("{before}{figures}{after}"),
            _ => format!("{}\n\n{figures}\n", page.trim_end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_replace_figures_and_nothing_else() {
        let (bench, gas) = (Section { name: "bench" }, Section { name: "gas" });
        let once = bench.placed("# Page\n\nText.\n", "one");
        let both = gas.placed(&once, "two");
        let again = bench.placed(&format!("{both}More.\n"), "three");
        assert!(again.starts_with("# Page\n\nText.\n\n<!-- bench: begin"));
        assert!(again.ends_with("two\n\n<!-- gas: end -->\nMore.\n"));
        assert!(again.contains("three") && !again.contains("one"));
    }
}
