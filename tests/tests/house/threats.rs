//! The list of attacks: none is forgotten, and each names a test that exists or says why not.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::none_of;
use crate::source::{everything, files, read, root};

/// The lists whose every number must have its row.
const LISTS: [(char, RangeInclusive<u32>); 2] = [('N', 1..=54), ('P', 1..=20)];
/// What the last column may say instead of a test.
const REASONS: [&str; 4] = [
    "to come",
    "cannot happen",
    "not defended",
    "by construction",
];

/// A row of the tables of attacks.
struct Row {
    /// The numbers it answers.
    numbers: String,
    /// The test, or why there is none.
    test: String,
    line: String,
}

fn rows() -> Vec<Row> {
    let page = read(&root().join("docs/threat-model.md"));
    let mut rows = Vec::new();
    let mut numbered = None;
    for line in page.lines() {
        let Some(cells) = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |")) else {
            // The line under the names of the columns belongs to the table; any other ends it.
            numbered = numbered.filter(|_| line.starts_with("|---"));
            continue;
        };
        let cells: Vec<_> = cells.split(" | ").collect();
        let Some(numbered) = numbered else {
            numbered = Some(cells.first() == Some(&"#"));
            continue;
        };
        let numbers = if numbered { cells.first() } else { None };
        rows.push(Row {
            numbers: numbers.copied().unwrap_or_default().to_owned(),
            test: cells.last().copied().unwrap_or_default().to_owned(),
            line: line.chars().take(80).collect(),
        });
    }
    rows
}

/// The names in a cell that are those of tests: the code in it.
fn named(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_the_threat_model_names_exists() {
    let sources = everything();
    let contracts = files(&root().join("protocol/contracts/test"), "sol");
    let solidity: String = contracts.iter().map(|file| read(file)).collect();
    let exists = |name: &str| {
        let rust = format!("fn {name}(");
        let sol = format!("function {name}(");
        sources.iter().any(|s| s.bare.contains(&rust)) || solidity.contains(&sol)
    };
    let rows = rows();
    let lost = rows.iter().flat_map(|row| named(&row.test));
    none_of(
        lost.filter(|name| !exists(name))
            .map(str::to_owned)
            .collect(),
        "Correct the name in docs/threat-model.md, or write \"to come\" if there is no such test.",
    );
}

#[test]
fn every_attack_names_a_test_or_says_why_there_is_none() {
    let rows = rows();
    assert!(rows.len() > 60, "{} rows were found", rows.len());
    let answered = |row: &Row| {
        named(&row.test).next().is_some() || REASONS.iter().any(|reason| row.test.contains(reason))
    };
    none_of(
        rows.iter()
            .filter(|row| !answered(row))
            .map(|row| row.line.clone())
            .collect(),
        "The last column of docs/threat-model.md names a test in backticks, or says one of: to \
         come, cannot happen, not defended, by construction.",
    );
}

#[test]
fn every_attack_on_the_lists_has_its_row() {
    let rows = rows();
    let told: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| row.numbers.split(", "))
        .collect();
    let all = LISTS
        .iter()
        .flat_map(|(list, numbers)| numbers.clone().map(move |n| format!("{list}{n}")));
    none_of(
        all.filter(|number| !told.contains(number.as_str()))
            .collect(),
        "Give the attack of this number its row in docs/threat-model.md.",
    );
}
