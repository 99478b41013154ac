//! Settings, documents and the table of dependencies: what people read must be true.

use std::collections::BTreeSet;

use crate::markdown::{anchors, links, pages};
use crate::none_of;
use crate::source::{files, read, root, short};

#[test]
fn the_nodes_example_file_is_its_default() {
    use farthing_node::config::Config;
    let file = root().join("node/node.example.toml");
    let example: Config = toml::from_str(&read(&file)).expect("node/node.example.toml loads");
    assert_eq!(
        example,
        Config::default(),
        "node/node.example.toml must show every key at the default of node/src/config.rs"
    );
}

#[test]
fn the_clients_example_file_is_its_default() {
    use farthing_client::config::Config;
    let file = root().join("client/client.example.toml");
    let example: Config = toml::from_str(&read(&file)).expect("client/client.example.toml loads");
    assert_eq!(
        example,
        Config::default(),
        "client/client.example.toml must show every key at the default of client/src/config.rs"
    );
}

/// The metrics that a file defines: the fields below `metrics! {`.
fn metrics(file: &str, prefix: &str) -> Vec<String> {
    let text = read(&root().join(file));
    let body = text.split_once("\nmetrics! {").unwrap_or_default().1;
    let body = body.split_once("\n}").unwrap_or_default().0;
    let names = body.lines().filter_map(|line| {
        let (name, rest) = line.trim().split_once(": ")?;
        (!name.starts_with("//") && rest.contains('=')).then(|| format!("{prefix}_{name}"))
    });
    names.collect()
}

#[test]
fn every_metric_has_its_row() {
    let page = read(&root().join("docs/operations.md"));
    let node = metrics("node/src/metrics.rs", "farthing_node");
    let client = metrics("client/src/metrics.rs", "farthing");
    assert!(
        !node.is_empty() && !client.is_empty(),
        "no metric was found"
    );
    let silent = node.into_iter().chain(client).filter(|name| {
        let row = format!("| `{name}` |");
        !page.lines().any(|line| line.starts_with(&row))
    });
    none_of(
        silent.collect(),
        "Add its row to the table of metrics in docs/operations.md: what it says and when to look.",
    );
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let mut faults = Vec::new();
    for page in pages() {
        let folder = page.parent().unwrap_or(&page).to_path_buf();
        for link in links(&page) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = match link.split_once('#') {
                Some((path, anchor)) => (path, Some(anchor)),
                None => (link.as_str(), None),
            };
            let target = if path.is_empty() {
                page.clone()
            } else {
                folder.join(path)
            };
            let name = short(&page);
            if !target.exists() {
                faults.push(format!("{name}: `{link}`: there is no such file"));
            } else if let Some(anchor) = anchor
                && target.extension().is_some_and(|e| e == "md")
                && !anchors(&target).iter().any(|known| known == anchor)
            {
                faults.push(format!("{name}: `{link}`: there is no such heading"));
            }
        }
    }
    none_of(faults, "Correct the link, or write what it promises.");
}

#[test]
fn every_document_is_reached_from_the_reading_order() {
    let index = root().join("docs/README.md");
    let linked: BTreeSet<_> = links(&index)
        .iter()
        .map(|link| {
            root()
                .join("docs")
                .join(link.split('#').next().unwrap_or(link))
        })
        .collect();
    let pages = pages().into_iter();
    let lost = pages.filter(|page| *page != index && page.parent() == index.parent());
    none_of(
        lost.filter(|page| !linked.contains(page))
            .map(|page| short(&page))
            .collect(),
        "Link it in docs/README.md, where readers look.",
    );
}

#[test]
fn every_dependency_says_why_it_is_here() {
    let manifest: toml::Table = read(&root().join("Cargo.toml"))
        .parse()
        .expect("Cargo.toml is TOML");
    let workspace = manifest
        .get("workspace")
        .and_then(|w| w.get("dependencies"));
    let dependencies = workspace.and_then(toml::Value::as_table);
    let dependencies = dependencies.expect("the workspace has dependencies");
    let pages = files(&root().join("docs/decisions"), "md");
    let decisions: String = pages.iter().map(|page| read(page)).collect();
    let ours = |value: &toml::Value| value.get("path").is_some();
    let foreign = dependencies.iter().filter(|(_, value)| !ours(value));
    let silent = foreign.filter(|(name, _)| {
        let row = format!("| `{name}` |");
        !decisions.lines().any(|line| line.starts_with(&row))
    });
    none_of(
        silent
            .map(|(name, _)| format!("Cargo.toml: `{name}`"))
            .collect(),
        "Add its row to the table in docs/decisions/0001-dependencies.md: what it does for us, \
         its licence, whether it is maintained.",
    );
}
