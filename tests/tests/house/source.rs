//! Rust files as text: without comments and strings, without tests, cut into functions and enums.
//! Not a parser: it relies on code that rustfmt has formatted.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The folders of our crates.
pub(crate) const CRATES: [&str; 4] = ["protocol", "node", "client", "tests"];
/// Folders that hold nothing of ours.
const FOREIGN: [&str; 4] = ["target", "node_modules", "out", "cache"];

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// A path as people write it: from the workspace's folder on.
pub(crate) fn short(path: &Path) -> String {
    let root = root();
    path.strip_prefix(&root)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// The text of a file.
pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| format!("unreadable: {error}"))
}

/// All files below a folder with this extension, sorted.
pub(crate) fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return found;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !FOREIGN.contains(&name.as_ref()) && !name.starts_with('.') {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// One Rust file.
pub(crate) struct Source {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Without comments and the insides of strings. As long as the file.
    pub(crate) bare: String,
    /// Also without what is compiled for tests only.
    pub(crate) shipped: String,
    /// Lines, those of tests not counted.
    pub(crate) lines: usize,
}

impl Source {
    fn read(path: PathBuf) -> Self {
        let text = read(&path);
        Self::of(path, &text)
    }

    /// The file with this text.
    pub(crate) fn of(path: PathBuf, text: &str) -> Self {
        let bare = bare(text);
        let tests = test_parts(&bare);
        let mut shipped = bare.clone().into_bytes();
        let mut lines = text.lines().count();
        for part in tests {
            let inside = bare.get(part.clone()).unwrap_or_default();
            lines = lines.saturating_sub(inside.matches('\n').count() + 1);
            blank(&mut shipped, part);
        }
        let shipped = String::from_utf8_lossy(&shipped).into_owned();
        Self {
            path,
            bare,
            shipped,
            lines,
        }
    }

    /// The file's name from the workspace's folder on.
    pub(crate) fn name(&self) -> String {
        short(&self.path)
    }

    /// The line of a place.
    pub(crate) fn line(&self, at: usize) -> usize {
        let before = self.bare.get(..at).unwrap_or_default();
        before.matches('\n').count() + 1
    }
}

/// Every Rust file of the workspace.
pub(crate) fn everything() -> Vec<Source> {
    let folders = CRATES.iter().map(|name| root().join(name));
    folders
        .flat_map(|folder| files(&folder, "rs"))
        .map(Source::read)
        .collect()
}

/// What is compiled into a crate when it is not tested: the files below `src` that no
/// `#[cfg(test)] mod` brings in.
pub(crate) fn shipped(name: &str) -> Vec<Source> {
    let src = root().join(name).join("src");
    let sources: Vec<_> = files(&src, "rs").into_iter().map(Source::read).collect();
    let tests: BTreeSet<PathBuf> = sources.iter().flat_map(test_modules).collect();
    let is_test = |path: &Path| {
        path.ancestors()
            .any(|up| tests.contains(&up.with_extension("")))
    };
    sources
        .into_iter()
        .filter(|source| !is_test(&source.path))
        .collect()
}

/// The modules that a file declares for tests only, as paths without extension.
fn test_modules(source: &Source) -> Vec<PathBuf> {
    let stem = source.path.file_stem().unwrap_or_default();
    let home = match stem.to_str() {
        Some("lib" | "main") => source.path.parent().unwrap_or(&source.path).to_path_buf(),
        _ => source.path.with_extension(""),
    };
    let parts = test_parts(&source.bare).into_iter();
    let declared = parts.filter_map(|part| {
        let text = source.bare.get(part)?.strip_suffix(';')?;
        let (_, name) = text.rsplit_once("mod ")?;
        Some(home.join(name.trim()))
    });
    declared.collect()
}

/// The text with comments and the insides of strings and characters blanked.
fn bare(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes.get(at..).unwrap_or_default() {
            [b'/', b'/', ..] => line_end(&bytes, at),
            [b'/', b'*', ..] => comment_end(&bytes, at),
            [b'"', ..] => string_end(&bytes, at),
            [b'r', b'"' | b'#', ..] if !is_word(before(&bytes, at)) => raw_end(&bytes, at),
            [b'b', b'r', b'"' | b'#', ..] if !is_word(before(&bytes, at)) => {
                raw_end(&bytes, at + 1)
            }
            [b'\'', b'\\', ..] => find(&bytes, at + 3, b'\'') + 1,
            [b'\'', _, b'\'', ..] => at + 3,
            // A character of several bytes.
            [b'\'', byte, ..] if *byte >= 0x80 => find(&bytes, at + 1, b'\'') + 1,
            _ => {
                at += 1;
                continue;
            }
        };
        // A word that only begins like a raw string.
        let end = end.max(at + 1);
        if end > at + 1 {
            blank(&mut bytes, at..end);
        }
        at = end;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn before(bytes: &[u8], at: usize) -> u8 {
    at.checked_sub(1)
        .and_then(|at| bytes.get(at))
        .copied()
        .unwrap_or(b' ')
}

/// Whether a byte can be a part of a name.
pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn find(bytes: &[u8], from: usize, wanted: u8) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let place = rest.iter().position(|byte| *byte == wanted);
    place.map_or(bytes.len(), |place| from + place)
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    find(bytes, at, b'\n')
}

fn comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut at) = (0_u32, at);
    while at < bytes.len() {
        match bytes.get(at..).unwrap_or_default() {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of a raw string whose `r` is at `at`; `at` itself when it is none.
fn raw_end(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at + 1..).unwrap_or_default();
    let hashes = rest.iter().take_while(|byte| **byte == b'#').count();
    if rest.get(hashes) != Some(&b'"') {
        return at;
    }
    let close: Vec<u8> = [vec![b'"'], vec![b'#'; hashes]].concat();
    let inside = at + hashes + 2;
    let rest = bytes.get(inside..).unwrap_or_default();
    let place = rest.windows(close.len()).position(|found| found == close);
    place.map_or(bytes.len(), |place| inside + place + close.len())
}

fn blank(bytes: &mut [u8], part: Range<usize>) {
    for byte in bytes.get_mut(part).unwrap_or_default() {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

/// Where the items are that only tests see, each with its attribute.
fn test_parts(bare: &str) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    for mark in ["#[cfg(test)]", "#[cfg(all(test,", "#![cfg(test)]"] {
        for (at, _) in bare.match_indices(mark) {
            let end = match mark.starts_with("#!") {
                true => bare.len(),
                false => item_end(bare, at),
            };
            parts.push(at..end);
        }
    }
    parts.sort_by_key(|part| part.start);
    let mut whole: Vec<Range<usize>> = Vec::new();
    for part in parts {
        if whole.last().is_none_or(|last| last.end <= part.start) {
            whole.push(part);
        }
    }
    whole
}

/// Where the item ends whose first attribute is at `at`: an item, a variant, a field or an arm.
fn item_end(bare: &str, at: usize) -> usize {
    let bytes = bare.as_bytes();
    let mut at = at;
    loop {
        at += bytes
            .get(at..)
            .unwrap_or_default()
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        if bytes.get(at) != Some(&b'#') {
            break;
        }
        at = closing(bytes, find(bytes, at, b'[')) + 1;
    }
    let first = bare.get(at..).unwrap_or_default();
    let word = first.split(|c: char| !c.is_alphanumeric()).next();
    let item = matches!(
        word,
        Some(
            "pub"
                | "fn"
                | "mod"
                | "impl"
                | "struct"
                | "enum"
                | "use"
                | "const"
                | "static"
                | "trait"
                | "type"
                | "async"
                | "let"
                | "macro_rules"
        )
    );
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' => return closing(bytes, at) + 1,
            b'(' | b'[' => at = closing(bytes, at) + 1,
            b';' => return at + 1,
            b',' if !item => return at + 1,
            b'}' => return at,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Where the bracket that opens at `at` is closed.
pub(crate) fn closing(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0_u32;
    for (place, byte) in bytes.iter().enumerate().skip(at) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return place;
        }
    }
    bytes.len().saturating_sub(1)
}

/// A function: its name, where it is, how long it is and how many parameters it takes.
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
    pub(crate) parameters: usize,
}

/// The functions of a file that are not tests.
pub(crate) fn functions(source: &Source) -> Vec<Function> {
    let (text, bytes) = (&source.shipped, source.shipped.as_bytes());
    let starts = text
        .match_indices("fn ")
        .filter(|(at, _)| !is_word(before(bytes, *at)));
    let function = |(at, _): (usize, &str)| {
        let rest = text.get(at + 3..)?;
        let name: String = rest.chars().take_while(|c| is_word(*c as u8)).collect();
        let open = find(bytes, at + 3 + generics(rest, name.len()), b'(');
        let close = closing(bytes, open);
        let tail = bytes.get(close..)?;
        let end = tail.iter().position(|byte| matches!(byte, b'{' | b';'))? + close;
        let body = match bytes.get(end) {
            Some(b'{') => closing(bytes, end),
            _ => end,
        };
        let line = source.line(at);
        (!name.is_empty()).then(|| Function {
            line,
            lines: source.line(body) - line + 1,
            parameters: parameters(text.get(open + 1..close).unwrap_or_default()),
            name,
        })
    };
    starts.filter_map(function).collect()
}

/// How long a name and the generics behind it are.
fn generics(rest: &str, name: usize) -> usize {
    let mut depth = 0_i32;
    for (place, byte) in rest.bytes().enumerate().skip(name) {
        match byte {
            b'<' => depth += 1,
            b'>' if rest.as_bytes().get(place - 1) != Some(&b'-') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return place;
        }
    }
    name
}

/// How many parameters a list has, `self` not counted.
fn parameters(list: &str) -> usize {
    let parts = split(list);
    let own = |part: &&String| {
        let part = part.trim();
        !part.is_empty() && part.split([' ', '&', ':']).all(|word| word != "self")
    };
    parts.iter().filter(own).count()
}

/// A list cut at the commas that are in no bracket.
pub(crate) fn split(list: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0_i32);
    let mut last = ' ';
    for c in list.chars() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            '>' if last == '-' || last == '=' => {}
            ')' | ']' | '}' | '>' => depth -= 1,
            _ => {}
        }
        last = c;
        match (c, parts.last_mut()) {
            (',', _) if depth == 0 => parts.push(String::new()),
            (_, Some(part)) => part.push(c),
            _ => {}
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}
