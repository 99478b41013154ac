//! Markdown files as far as links need: what they point to and what can be pointed to.

use std::path::{Path, PathBuf};

use crate::source::{files, read, root};

/// The pages whose links are checked.
pub(crate) fn pages() -> Vec<PathBuf> {
    let mut pages = files(&root().join("docs"), "md");
    pages.push(root().join("README.md"));
    pages
}

/// The text without code, whose brackets are no links.
fn prose(page: &Path) -> String {
    let (mut text, mut fenced) = (String::new(), false);
    for line in read(page).lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            // The odd parts are between backticks.
            let parts = line.split('`').step_by(2);
            text.extend(parts.flat_map(|part| [part, "``"]));
        }
        text.push('\n');
    }
    text
}

/// What a page links to.
pub(crate) fn links(page: &Path) -> Vec<String> {
    let text = prose(page);
    let targets = text.match_indices("](").filter_map(|(at, mark)| {
        let rest = text.get(at + mark.len()..)?;
        let (target, _) = rest.split_once(')')?;
        Some(target.split(' ').next()?.to_owned())
    });
    targets.collect()
}

/// The names of a page's headings in links, as GitHub makes them.
pub(crate) fn anchors(page: &Path) -> Vec<String> {
    let (mut found, mut fenced) = (Vec::new(), false);
    for line in read(page).lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let heading = line.trim_start_matches('#');
        if fenced || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let name = anchor(heading.trim());
        let earlier = found.iter().filter(|known| **known == name).count();
        match earlier {
            0 => found.push(name),
            more => found.push(format!("{name}-{more}")),
        }
    }
    found
}

fn anchor(heading: &str) -> String {
    let letters = heading.to_lowercase();
    let kept = letters
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
