//! Figures under each other.

/// Rows of cells under a head; a column whose head begins with `>` stands at the right.
#[derive(Debug, Clone)]
pub struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(head: &[&str]) -> Self {
        let name = |column: &&str| column.trim_start_matches('>').to_owned();
        Self {
            right: head.iter().map(|column| column.starts_with('>')).collect(),
            rows: vec![head.iter().map(name).collect()],
        }
    }

    /// One row more.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The lines, the head first.
    pub(in crate::show) fn lines(&self) -> impl Iterator<Item = String> + '_ {
        let widths: Vec<usize> = (0..self.right.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        self.rows.iter().map(move |row| {
            let cells = row.iter().zip(&widths).zip(&self.right);
            let cells = cells.map(|((cell, &width), &right)| {
                if right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("   ");
            line.trim_end().to_owned()
        })
    }
}

/// A text cut to so many letters.
#[must_use]
pub fn shorten(text: &str, letters: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= letters {
        return text;
    }
    let cut: String = text.chars().take(letters.saturating_sub(1)).collect();
    format!("{}…", cut.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_under_each_other() {
        let mut table = Table::new(&["who", ">atoms"]);
        table.row(["a".to_owned(), "7".to_owned()]);
        table.row(["longer".to_owned(), "12345".to_owned()]);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(
            lines,
            ["who      atoms", "a            7", "longer   12345"]
        );
    }

    #[test]
    fn a_text_is_cut_by_letters() {
        assert_eq!(shorten("a\n b", 5), "a b");
        assert_eq!(shorten("äöüäöü", 4), "äöü…");
    }
}
