//! What `docs/protocol.md` says about the vectors.

/// A `##` section of the page.
pub struct Section {
    pub title: String,
    pub paragraphs: Vec<String>,
}

/// The page.
pub fn text() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
    std::fs::read_to_string(path).expect("docs/protocol.md")
}

/// The page's sections, without what stands before the first.
pub fn sections() -> Vec<Section> {
    let text = text();
    let parts = text.split("\n## ").skip(1);
    parts
        .map(|part| {
            let (title, rest) = part.split_once('\n').unwrap_or((part, ""));
            let paragraphs = rest.split("\n\n").map(|p| p.trim().to_owned());
            Section {
                title: title.to_owned(),
                paragraphs: paragraphs.filter(|p| !p.is_empty()).collect(),
            }
        })
        .collect()
}

/// `file/vector` for each that a paragraph beginning with `Vectors:` names, sorted.
pub fn named() -> Vec<String> {
    let mut named = Vec::new();
    for section in sections() {
        for paragraph in section.paragraphs {
            if paragraph.starts_with("Vectors: ") {
                names(&paragraph, &mut named);
            }
        }
    }
    named.sort();
    named
}

/// In code marks: a file of vectors, then its vectors.
fn names(paragraph: &str, named: &mut Vec<String>) {
    let mut file = "";
    for mark in paragraph.split('`').skip(1).step_by(2) {
        match mark.strip_suffix(".json") {
            Some(name) => file = name,
            None => named.push(format!("{file}/{mark}")),
        }
    }
}

/// What the page's table of limits says of a constant.
pub fn limit(name: &str) -> Option<u64> {
    let start = format!("| [`{name}`](");
    let text = text();
    let row = text.lines().find(|line| line.starts_with(&start))?;
    row.split('|').nth(2)?.trim().parse().ok()
}
